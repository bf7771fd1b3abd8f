"""Faults of what was embedded: texts in another script or damaged, vectors that moved, products that are one product,
and shares of the whole that are not as they were.

As in `columns`, the limits stand against what at most one changed product in twenty can move.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.report.columns import (
    CATEGORY_ROWS,
    EDITED,
    EMPTIED,
    MOVED,
    column_faults,
    distribution_distance,
    edited_shares,
    largest_gap,
)
from pipelines.report.night import UNKNOWN, Finding, Night, Pairs, matrix_of

ANEW = 0.12
"""Share of the products with another text or picture: more than twice what a good night edits. Columns may change more
(prices in a sale), so their limit is `EDITED`."""
SHOWN_EXAMPLES = 5
TEXT_CHARACTERS = 121
"""Of a text are sampled."""
FLAWED = 0.02
"""Share of the texts that got what no text should have: markup, or characters of a wrong decoding."""
TURNED = 0.1
"""1 minus the cosine between the middles of a category's vectors in either night."""
UNLIKE = 0.99
"""Cosine below which the vector of a product that was not changed is another one: float16 keeps 0.9999."""
OF_LENGTH = 0.02
"""A vector's length may be so far from the middle one."""
GROWN = 0.02
"""What shares of rejected, degraded, repeated products may grow by."""
LEFT_BEHIND = 0.1
"""Share of the products that came or went."""
OVERLAP = 0.6
"""Mean share of the first ten answers that both nights have, below which answers are said to have moved. Of a good
night about as many stay as products did; a codec that was trained anew may cost another tenth or two."""
FELL = 0.1
"""What the share of titles that find their own product may fall by."""
ERROR_GROWN, LEAST_ERROR, IMBALANCE_GROWN = 1.1, 0.001, 1.5
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


def find_faults(old: Night | None, new: Night) -> tuple[list[Finding], dict[str, float]]:
    """What a person should look at, the worst first, and the share of the products that was edited, by column.

    Without an `old` night only what is wrong whatever was before.
    """
    pairs = None if old is None else Pairs.of(old, new)
    found = [
        *_whole_faults(old, new, pairs),
        *column_faults(old, new, pairs),
        *_flaws(old, new),
        *_text_faults(old, new),
        *_vector_faults(old, new),
    ]
    edited = edited_shares(old, new, pairs) if old is not None and pairs is not None else {}
    return sorted(found, key=lambda each: -each.weight), edited


def _whole_faults(old: Night | None, new: Night, pairs: Pairs | None) -> Iterator[Finding]:
    """Faults of counts and of shares of the whole."""
    for name, (what, more, without) in _FIGURES.items():
        now, was = new.figures.get(name), None if old is None else old.figures.get(name)
        if now is None:
            continue
        limit = without if was is None else more
        grown = now - (was or 0.0) if name != "own_title" else (was or now) - now
        if grown > limit:
            found = f"{now:.1%}" + (f", it was {was:.1%}" if was is not None else "")
            yield Finding(what=what, found=found, value=grown, limit=limit)
    if old is None:
        return
    if (overlap := new.figures.get("overlap", 1.0)) < OVERLAP:
        found = f"{overlap:.1%} of the first ten answers are those of the night before, over the queries of this report"
        yield Finding(what="answers moved", found=found, value=1.0 - overlap, limit=1.0 - OVERLAP)
    if new.encoder != old.encoder:
        found = f"{new.encoder} instead of {old.encoder}: all vectors are others, and the query encoder with them"
        if new.made_before:
            found += f"; it is not new, but the one that made {new.made_before}: is it meant that it comes back?"
        own = [night.figures["own_title"] for night in (old, new) if "own_title" in night.figures]
        if len(own) == 2:
            found += f"; {own[1]:.1%} of the titles find their own product, it was {own[0]:.1%}"
        what = "an encoder of before" if new.made_before else "another encoder"
        yield Finding(what=what, found=found, value=1.0, limit=0.1)
    yield from _came_and_went(old, new, pairs)
    before, after = old.catalog, new.catalog
    for word in ("rejected", "degraded", "left_out"):
        shares = [getattr(each, word) / max(1, each.rows_in) for each in (before, after)]
        if abs(shares[1] - shares[0]) > GROWN and (word == "left_out" or shares[1] > shares[0]):
            what, found = word.replace("_", " "), f"{shares[1]:.1%} of the rows, it was {shares[0]:.1%}"
            yield Finding(what=f"more rows {what}", found=found, value=abs(shares[1] - shares[0]), limit=GROWN)
    for reason in after.by_reason:
        shares = [each.by_reason.get(reason, 0) / max(1, each.rows_in) for each in (before, after)]
        if shares[1] - shares[0] > GROWN / 2:
            found = f"{after.by_reason[reason]:,} rows ({shares[1]:.1%}), it was {shares[0]:.1%}"
            yield Finding(what=reason.replace("_", " "), found=found, value=shares[1] - shares[0], limit=GROWN / 2)
    errors = old.codec.quantization_error, new.codec.quantization_error
    if errors[0] and errors[1] and errors[1] > max(ERROR_GROWN * errors[0], errors[0] + LEAST_ERROR):
        found = f"quantization error {errors[1]:.4f}, it was {errors[0]:.4f}"
        yield Finding(what="codes fit worse", found=found, value=errors[1] / errors[0], limit=ERROR_GROWN)
    sizes = old.codec.list_imbalance, new.codec.list_imbalance
    if sizes[0] and sizes[1] > IMBALANCE_GROWN * sizes[0]:
        found = f"imbalance {sizes[1]:.2f}, it was {sizes[0]:.2f} (1 is even)"
        yield Finding(what="lists are uneven", found=found, value=sizes[1] / sizes[0], limit=IMBALANCE_GROWN)


_FIGURES = {
    "own_title": ("titles no longer find their own product", FELL, 1.0),
    "repeated_content": ("products with the text and picture of another", GROWN, 0.2),
    "repeated_image": ("products with one and the same picture", GROWN, 0.05),
    "without_image": ("products without a picture", EMPTIED, 1.0),
}
"""Of each figure what is said, how much worse than the night before it may be, and how large without one."""


def _came_and_went(old: Night, new: Night, pairs: Pairs | None) -> Iterator[Finding]:
    """Products that are no longer there, or that are new: as far as both samples tell."""
    sizes = old.catalog.products, new.catalog.products
    if not all(sizes) or pairs is None:
        return
    kept = len(pairs.old) / pairs.sampled
    change = (sizes[1] - sizes[0]) / sizes[0]
    if abs(change) > LEFT_BEHIND:
        found = f"{sizes[0]:,} products became {sizes[1]:,} ({change:+.1%})"
        what = "fewer products" if change < 0 else "more products"
        yield Finding(what=what, found=found, value=abs(change), limit=LEFT_BEHIND)
    elif 1.0 - kept > EDITED + abs(change):
        found = f"about {1.0 - kept:.1%} of the ids are not those of the night before: ids may have changed"
        yield Finding(what="other products", found=found, value=1.0 - kept, limit=EDITED)


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


def _text_faults(old: Night | None, new: Night) -> Iterator[Finding]:
    if new.sample is None or not new.sample.num_rows:
        return
    now = TextFacts.of(new.sample.column("text").to_pylist())
    was = None
    if old is not None and old.sample is not None:
        was = TextFacts.of(old.sample.column("text").to_pylist())
    if was is None or old is None or old.sample is None:
        return
    if abs(now.empty - was.empty) > EMPTIED:
        found = f"{now.empty:.1%} of the products have no text, it was {was.empty:.1%}"
        yield Finding(what="texts came or went", found=found, value=abs(now.empty - was.empty), limit=EMPTIED)
    if len(now.lengths) and len(was.lengths):
        gap = largest_gap(was.lengths, now.lengths)
        if gap > MOVED:
            middles = [int(np.median(each.lengths)) for each in (was, now)]
            found = f"the middle text has {middles[1]} characters, it had {middles[0]} (counted up to 121)"
            yield Finding(what="texts have another length", found=found, value=gap, limit=MOVED)
    for name, what in (("scripts", "texts in another script"), ("words", "texts in other words")):
        counts = getattr(was, name), getattr(now, name)
        distance = distribution_distance(*counts) if all(counts) else 0.0
        if distance > MOVED:
            gained = sorted(counts[1], key=lambda each: counts[0].get(each, 0) - counts[1][each])[:4]
            found = f"{distance:.1%} of them; more often now: {', '.join(map(str, gained))}"
            yield Finding(what=what, found=found, value=distance, limit=MOVED)
    old_texts = dict(zip(old.sample["product_id"].to_pylist(), old.sample["text"].to_pylist(), strict=True))
    both = [
        (old_texts[name], text)
        for name, text in zip(new.sample["product_id"].to_pylist(), new.sample["text"].to_pylist(), strict=True)
        if name in old_texts
    ]
    changed = [pair for pair in both if pair[0] != pair[1]]
    if both and len(changed) / len(both) > ANEW:
        found = f"{len(changed) / len(both):.1%} of the products have another text"
        found += f"; such as {_cut(changed[0][0])}, now {_cut(changed[0][1])}"
        yield Finding(what="texts changed", found=found, value=len(changed) / len(both), limit=ANEW)


def _flaws(old: Night | None, new: Night) -> Iterator[Finding]:
    """Markup and wrong decoding in the texts that are embedded and in those that are shown."""
    before = {} if old is None else dict(_sampled_texts(old))
    for name, texts in _sampled_texts(new):
        for what, pattern in (("markup", _MARKUP), ("a wrong decoding", _WRONG_DECODING)):
            shares = [
                sum(text is not None and pattern.search(text) is not None for text in each) / max(1, len(each))
                for each in (before.get(name, ()), texts)
            ]
            if shares[1] - shares[0] > FLAWED:
                example = next(_cut(text) for text in texts if text and pattern.search(text))
                found = f"{shares[1]:.1%} of the products, it was {shares[0]:.1%}; such as {example}"
                yield Finding(what=f"{what} in {name}", found=found, value=shares[1] - shares[0], limit=FLAWED)


def _sampled_texts(night: Night) -> Iterator[tuple[str, list[str | None]]]:
    """The sample's texts, and the values of each column of texts in sampled rows."""
    if night.sample is not None:
        yield "texts", night.sample["text"].to_pylist()
    rows = pa.array(night.rows)
    for name in night.columns:
        if pa.types.is_string(night.products.schema.field(name).type):
            yield name, night.products.column(name).take(rows).to_pylist()


def _cut(text: str | None) -> str:
    return repr(text if text is None or len(text) <= 60 else f"{text[:57]}...")


def _vector_faults(old: Night | None, new: Night) -> Iterator[Finding]:
    if new.sample is None or not new.sample.num_rows:
        return
    vectors = matrix_of(new.sample.column("vector"), np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(vectors, axis=1)
    usable = np.isfinite(lengths)
    middle = float(np.median(lengths[usable])) if usable.any() else 0.0
    usable &= (np.abs(lengths - middle) <= OF_LENGTH * middle) & (lengths > 0) if _is_unit(middle) else lengths > 0
    if (share := float(1.0 - usable.mean())) > 0.001:
        found = f"{share:.1%} of the sampled vectors are not finite, zero, or of another length"
        yield Finding(what="vectors are damaged", found=found, value=share, limit=0.001)
    if old is None or old.sample is None or old.encoder != new.encoder:
        return
    before = matrix_of(old.sample.column("vector"), np.float16)
    if before.shape[1] != vectors.shape[1]:
        return
    at = {name: row for row, name in enumerate(old.sample["product_id"].to_pylist())}
    ids = new.sample["product_id"].to_pylist()
    found_rows = [(at[name], row) for row, name in enumerate(ids) if name in at and usable[row]]
    rows = np.array(found_rows, np.int64).reshape(-1, 2)
    if not len(rows):
        return
    cosines = _cosines(before[rows[:, 0]], vectors[rows[:, 1]])
    both = ((old.sample, rows[:, 0]), (new.sample, rows[:, 1]))
    digests = [sample["content_fingerprint"].take(pa.array(own)) for sample, own in both]
    edited = pc.not_equal(*digests).to_numpy(zero_copy_only=False).astype(bool)
    same_text = pc.equal(*(sample["text"].take(pa.array(own)) for sample, own in both)).fill_null(False)
    pictures = edited & same_text.to_numpy(zero_copy_only=False).astype(bool)
    if pc.all(pc.equal(digests[1], UNKNOWN)).as_py():  # what made the vectors is not known
        edited, pictures = cosines < UNLIKE, np.zeros(len(rows), bool)
    middle = float(np.median(cosines[edited])) if edited.any() else 1.0
    moved_by = f"the median cosine of their vectors to those of before is {middle:.2f}"
    if pictures.mean() > ANEW and new.figures.get("without_image", 1.0) < 1.0:
        found = f"{pictures.mean():.1%} of the products have another picture than the night before, and the same text "
        found += f"(as far as its first {TEXT_CHARACTERS} characters tell); {moved_by}"
        rows_of = [sample["row"].to_numpy()[own[pictures][:SHOWN_EXAMPLES]].tolist() for sample, own in both]
        examples = tuple(zip(*rows_of, strict=True))
        yield Finding(what="pictures changed", found=found, value=float(pictures.mean()), limit=ANEW, examples=examples)
    elif edited.mean() > ANEW:
        found = f"{edited.mean():.1%} of the products have another text or picture than the night before; {moved_by}"
        yield Finding(what="products were embedded anew", found=found, value=float(edited.mean()), limit=ANEW)
    drifted = float((cosines[~edited] < UNLIKE).mean()) if (~edited).any() else 0.0
    if drifted > 0.01:
        found = f"{drifted:.1%} of the products that nobody changed have another vector: of another encoder, or damaged"
        yield Finding(what="vectors changed by themselves", found=found, value=drifted, limit=0.01)
    moved = float((cosines < 0.5).mean())
    if moved > MOVED:
        found = f"{moved:.1%} of the products are far from where they were (cosine below 0.5)"
        yield Finding(what="products moved far", found=found, value=moved, limit=MOVED)
    yield from _category_drift(old, new, before, vectors)


def _is_unit(length: float) -> bool:
    """Whether vectors of this length are meant to be of length 1 (imported ones need not be)."""
    return abs(length - 1.0) <= 10 * OF_LENGTH


def _category_drift(old: Night, new: Night, before: np.ndarray, after: np.ndarray) -> Iterator[Finding]:
    """Categories whose middle vector turned."""
    worst: tuple[float, str] = (0.0, "")
    for name in new.columns:
        kind = new.products.schema.field(name).type
        if name not in old.columns or not pa.types.is_string(kind) or old.products.schema.field(name).type != kind:
            continue
        values = [
            np.array([value or "" for value in night.products.column(name).take(night.sample["row"]).to_pylist()])
            for night in (old, new)
            if night.sample is not None
        ]
        categories = set(values[0]) & set(values[1]) - {""}
        if not 1 < len(categories) <= len(values[0]) // CATEGORY_ROWS:
            continue
        for category in categories:
            both = [vectors[own == category] for vectors, own in zip((before, after), values, strict=True)]
            if min(map(len, both)) < CATEGORY_ROWS:
                continue
            middles = [np.nan_to_num(each).mean(axis=0, keepdims=True) for each in both]
            turned = 1.0 - float(_cosines(*middles)[0])
            if turned > max(TURNED, worst[0]):
                worst = turned, f"the products of {name} {_cut(str(category))} moved together: cosine {1 - turned:.2f}"
    if worst[1]:
        yield Finding(what="a category moved", found=worst[1], value=worst[0], limit=TURNED)


def _cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return (left * right).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)
