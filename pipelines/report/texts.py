"""Faults of texts: in another language, script or length, damaged, empty, or those of other products.

As in `columns`, the limits stand against what at most one changed product in twenty can move.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.report.columns import EMPTIED, MOVED, distribution_distance, largest_gap
from pipelines.report.night import (
    ANEW,
    EXAMPLES,
    TEXT,
    Example,
    Finding,
    Night,
    Pairs,
    in_words,
    of_products,
    short,
    title_column,
)

_TAIL = 30
"""Characters behind a title that tell one description from another."""
FLAWED = 0.02
"""Share of the texts that got what no text should have: markup, or characters of a wrong decoding."""
OTHER_WORDS = 0.3
"""Distance from which on texts in other words are taken for broken: of another language, or another shop."""
_MARKUP = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(?:\s[^<>]*)?/?>|&(?:[a-zA-Z]{2,8}|#\d{2,5});")
# UTF-8 read as Windows-1252 or Latin-1: a lead byte's letter and what continuation bytes become; and what could not be
# decoded at all.
_WRONG_DECODING = re.compile("[ÂÃÄÅÐÑâ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|\ufffd")
_WORD = re.compile(r"\w+")
_SCRIPTS = (
    ("Latin", (0x41, 0x24F)),
    ("Greek", (0x370, 0x3FF)),
    ("Cyrillic", (0x400, 0x52F)),
    ("Hebrew", (0x590, 0x5FF)),
    ("Arabic", (0x600, 0x77F)),
    ("Devanagari", (0x900, 0x97F)),
    ("Thai", (0xE00, 0xE7F)),
    ("Kana", (0x3040, 0x30FF)),
    ("Han", (0x3400, 0x9FFF)),
    ("Hangul", (0xAC00, 0xD7AF)),
)


@dataclass(frozen=True, slots=True)
class TextFacts:
    """What a sample's texts look like.

    Attributes:
        lengths: Characters of each text that is not empty, int64.
        empty: Share of the texts.
        scripts, words: Letters by script, and the most frequent words by number of texts.
    """

    lengths: np.ndarray
    empty: float
    scripts: dict[object, int]
    words: dict[object, int]

    @classmethod
    def of(cls, texts: Sequence[str | None]) -> TextFacts:
        """Those of some texts."""
        there = [text for text in texts if text and text.strip()]
        letters: Counter[object] = Counter()
        words: Counter[object] = Counter()
        for text in there:
            words.update({word.casefold() for word in _WORD.findall(text) if not word.isdigit()})
            codes = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
            for name, (first, last) in _SCRIPTS:
                if count := int(((codes >= first) & (codes <= last)).sum()):
                    letters[name] += count
        return cls(
            lengths=np.array([len(text) for text in there], np.int64),
            empty=1.0 - len(there) / max(1, len(texts)),
            scripts=dict(letters),
            words=dict(words),
        )


def text_faults(old: Night | None, new: Night) -> Iterator[Finding]:
    """What is unlike the night before in the texts that were embedded."""
    if new.sample is None or not new.sample.num_rows or old is None or old.sample is None:
        return
    was, now = (TextFacts.of(night.sample.column("text").to_pylist()) for night in (old, new) if night.sample)
    share, changed = _changed_texts(old.sample, new.sample)
    pairs = [rows for _, _, rows in changed[:EXAMPLES]]
    has_others = of_products(share, "has another text", "have another text") if share > ANEW else ""
    of_others = _of_others(old, new, changed)

    def fault(kind: str, what: str, says: str, found: str, value: float, limit: float, *, broken: bool) -> Finding:
        facts: Any = {"kind": kind, "what": what, "says": says, "found": found, "value": value, "limit": limit}
        return Finding(**facts, broken=broken, examples=tuple(pairs), shows=TEXT)

    if (gap := abs(now.empty - was.empty)) > EMPTIED:
        found = f"{now.empty:.1%} of the products have no text, it was {was.empty:.1%}"
        less = now.empty > was.empty
        says = of_products(gap, "lost its text", "lost their text") if less else f"Texts came: {found}"
        emptied = [rows for _, after, rows in changed if not after][:EXAMPLES]
        told = fault("no text", "texts came or went", says, found, gap, EMPTIED, broken=less)
        yield replace(told, examples=tuple(emptied)) if less else told
    if len(now.lengths) and len(was.lengths):
        gap = largest_gap(was.lengths, now.lengths)
        if gap > MOVED:
            middles = [int(np.median(each.lengths)) for each in (was, now)]
            found = (
                f"the middle text has {middles[1]} characters, it had {middles[0]} (of those first 121 that are kept)"
            )
            says = f"{has_others or 'The texts have another length'}: {found}"
            yield fault("texts", "texts have another length", says, found, gap, MOVED, broken=False)
    for name, what in (("scripts", "texts in another script"), ("words", "texts in other words")):
        counts = getattr(was, name), getattr(now, name)
        distance = distribution_distance(*counts) if all(counts) else 0.0
        if distance > MOVED:
            came, went = (
                ", ".join(sorted(map(str, one), key=lambda each: other.get(each, 0) - one[each])[:5])
                for one, other in (counts[::-1], counts)
            )
            found = f"{distance:.1%} of them; more often now: {came}; less often: {went}"
            in_others = "in another script" if name == "scripts" else "in other words"
            says = f"{has_others}, {in_others}" if has_others else f"The texts are {in_others}"
            says += f": {came} instead of {went}"
            yield fault(name, what, says, found, distance, MOVED, broken=distance > OTHER_WORDS)
    if share > ANEW:
        before, after, _ = changed[0]
        found = f"{share:.1%} of the products have another text; such as {short(before)}, now {short(after)}"
        kind = "texts"
        if of_others:
            kind = "mixed"
            has_others = of_products(
                share, f"has the {of_others} of another product", f"have the {of_others} of others"
            )
        yield fault(kind, "texts changed", has_others, found, share, ANEW, broken=bool(of_others))


def count_changed_texts(old: Night, new: Night) -> tuple[int, int]:
    """Of the sampled products that both nights have: how many have another text, as far as it is sampled, and all."""
    if old.sample is None or new.sample is None:
        return 0, 0
    names = ("product_id", "text")
    texts = [
        dict(zip(*(night.sample[name].to_pylist() for name in names), strict=True))
        for night in (old, new)
        if night.sample
    ]
    both = texts[0].keys() & texts[1].keys()
    return sum(texts[0][name] != texts[1][name] for name in both), len(both)


def _shared_words(first: str | None, second: str | None) -> float:
    """Share of the words of two texts that both have; 1 of one that is empty, which shows little."""
    words = [set(_WORD.findall((text or "").casefold())) for text in (first, second)]
    return len(words[0] & words[1]) / len(words[0] | words[1]) if all(words) else 1.0


def _of_others(old: Night, new: Night, changed: Sequence[tuple[str | None, str | None, Example]]) -> str:
    """What most changed texts have from other products: the text, the description behind the title, or ""."""
    columns = [title_column(night.products) for night in (old, new)]

    def behind_title(night: Night, column: str | None, row: int | None, text: str | None) -> str:
        title = night.products[column][row].as_py() if column is not None and row is not None else None
        return (text or "").removeprefix(title or "").strip()[:_TAIL]

    texts, rows = ([] if old.sample is None else old.sample[name].to_pylist() for name in ("text", "row"))
    there = {text for text in texts if text}
    tails = {behind_title(old, columns[0], row, text) for row, text in zip(rows, texts, strict=True)} - {""}
    other_texts = sum(after in there for _, after, _ in changed)
    other_tails = 0
    for before, after, (was, now) in changed:
        tail = behind_title(new, columns[1], now, after)
        other_tails += tail in tails and tail != behind_title(old, columns[0], was, before)
    if min(len(there), len(tails)) > 1 and max(other_texts, other_tails) > len(changed) / 2:
        return "text" if other_texts > len(changed) / 2 else "description"
    return ""


def _changed_texts(old: pa.Table, new: pa.Table) -> tuple[float, list[tuple[str | None, str | None, Example]]]:
    """Of the products that two samples share: how many have another text, and which, with their rows:
    those first that share the fewest words.
    """
    names = ("product_id", "text", "row")
    before = {name: (text, row) for name, text, row in zip(*(old[each].to_pylist() for each in names), strict=True)}
    both = [
        (*before[name], text, row)
        for name, text, row in zip(*(new[each].to_pylist() for each in names), strict=True)
        if name in before
    ]
    changed = [(first, second, (row, now)) for first, row, second, now in both if first != second]
    changed.sort(key=lambda each: _shared_words(each[0], each[1]))
    return len(changed) / max(1, len(both)), changed


def flaws(old: Night | None, new: Night, pairs: Pairs | None) -> Iterator[Finding]:
    """Markup and wrong decoding in the texts that are embedded and in those that are shown."""
    before = {} if old is None else dict(_sampled_texts(old))
    row_before = {} if pairs is None else dict(zip(pairs.new.tolist(), pairs.old.tolist(), strict=True))
    for name, texts in _sampled_texts(new):
        for what, one, several, pattern in _FLAWS:
            flawed = [row for row, text in enumerate(texts) if text is not None and pattern.search(text)]
            was = sum(text is not None and pattern.search(text) is not None for text in before.get(name, ()))
            shares = was / max(1, len(before.get(name, ()))), len(flawed) / max(1, len(texts))
            if shares[1] - shares[0] > FLAWED:
                example = short(texts[flawed[0]])
                found = f"{shares[1]:.1%} of the products, it was {shares[0]:.1%}; such as {example}"
                word = "text" if name == TEXT else in_words(name)
                rows = new.rows[flawed[:EXAMPLES]].tolist()
                yield Finding(
                    kind="flaw",
                    about="" if name in (TEXT, title_column(new.products)) else name,
                    what=f"{what} in {'texts' if name == TEXT else name}",
                    says=of_products(shares[1], one.format(f"its {word}"), several.format(f"their {word}")),
                    found=found,
                    value=shares[1] - shares[0],
                    limit=FLAWED,
                    broken=True,
                    examples=tuple((row_before.get(row), row) for row in rows),
                    shows=name,
                )


_FLAWS = (
    ("markup", "has markup in {}", "have markup in {}", _MARKUP),
    ("a wrong decoding", "has {} decoded wrongly", "have {} decoded wrongly", _WRONG_DECODING),
)


def _sampled_texts(night: Night) -> Iterator[tuple[str, list[str | None]]]:
    """The sample's texts, and the values of each column of texts in sampled rows."""
    if night.sample is not None:
        yield TEXT, night.sample["text"].to_pylist()
    rows = pa.array(night.rows)
    for name in night.columns:
        if pa.types.is_string(night.products.schema.field(name).type):
            yield name, night.products.column(name).take(rows).to_pylist()
