"""A guess says which columns of an unknown catalog are the id, the title, the picture and so on, and why.

First by the columns' names in the languages that shops write them in, then by what stands in them; a name alone does
not make an id of values that repeat, or a picture of words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from statistics import mean
from typing import Any

from pipelines.catalog.column_names import COMPOUND, is_locale_name, owner_of, role_of
from pipelines.catalog.samples import Sample
from pipelines.catalog.schemas import IMAGE_KEYS

ROLES = ("id", "title", "brand", "category", "description", "image", "price")

_IMAGE_TEXT = re.compile(
    r"(?i)data:image/|(https?:|s3:|gs:)?//|\S*[^.\s/]\.(jpe?g|png|webp|avif|gif|bmp|tiff?)([?#]|$)"
)
_BASE64_IMAGE = re.compile(r"/9j/|iVBORw0KGgo|R0lGOD|UklGR")
_PRICE = re.compile(r"[^\d]{0,4}\d[\d.,' ]*[^\d]{0,4}")
_SHORT, _LONG = 64, 120  # characters of an id, and from where on a text is a description
_DISTINCT = 0.98
_MAX_REPEATED = 0.02
"""So many rows may repeat the id of another where the column is named as an id: each leaves a letter. One doubled
article number must not make another column the id, and so every product a new one."""
_FEW_ROWS = 20


@dataclass(frozen=True, slots=True)
class Guess:
    """A column and why it is taken for what it is; an id may be of several columns."""

    columns: tuple[str, ...]
    why: str


def guess_columns(sample: Sample, below: str = "", roles: Sequence[str] = ROLES) -> dict[str, Guess]:
    """The columns by role; a role for which no column is fit is absent.

    Args:
        below: Only columns whose path begins so (`_source.`) are looked at.
        roles: Those of `ROLES` that are wanted.
    """
    values = {name: sample.values(name) for name in sample.columns if name.startswith(below)}
    named: dict[str, list[str]] = {role: [] for role in roles}
    told = {name: role_of(name.removeprefix(below)) for name in values}
    for name in sorted(values, key=lambda name: (told[name] or ("", (0, 0, 0)))[1]):
        if (of_role := told[name]) is not None and of_role[0] in named:
            named[of_role[0]].append(name)
    owners = {name: owner_of(name.removeprefix(below)) for name in values}
    rows = len(sample.rows)
    found: dict[str, Guess] = {}
    for by_name in (True, False):  # what a name says of any column comes before what values say
        for role in roles:
            taken = {column for guess in found.values() for column in guess.columns}
            if role in found:
                continue
            if by_name:
                guess = _by_name(role, [name for name in named[role] if name not in taken], values, rows)
            else:
                own = {name: given for name, given in values.items() if owners[name] in (None, role)}
                guess = _by_values(role, {name: own[name] for name in own if name not in taken}, rows)
            found |= {} if guess is None else {role: guess}
    if "id" in found:
        found["id"] = _with_passed_over(found["id"], named["id"], values, rows)
    return {role: found[role] for role in roles if role in found}


def is_headless(sample: Sample) -> bool:
    """Whether the names of a table look like its values: its first line is a product, not the columns' names.

    They do where none is a word for a column, and one is a number above numbers, an address, spelled as most values
    below it are (`sku-0007` above `sku-0008`), or comes again below.
    """
    if sample.format not in ("csv", "xlsx"):
        return False
    values = {name: list(map(str, sample.values(name))) for name in sample.columns}
    again = {name for name, given in values.items() if given.count(name) >= max(2, len(given) * 0.1)}
    if any(role_of(name) for name in values if name not in again):
        return False
    return bool(again) or any(_is_like_values(name, given) for name, given in values.items())


def _is_like_values(name: str, given: Sequence[str]) -> bool:
    if re.match(r"(?i)(https?:)?//", name):
        return True
    spelled = _spelling(name)
    return "0" in spelled and _share(given, lambda value: _spelling(value) == spelled) >= 0.8


def _spelling(text: str) -> str:
    """A text with one sign for all its numbers: `12.5` and `3` are spelled alike."""
    return re.sub(r"\d+([.,]\d+)*", "0", text.strip())


def _by_name(role: str, names: Sequence[str], values: dict[str, list[Any]], rows: int) -> Guess | None:
    fallback: Guess | None = None
    for name in names:
        given = values[name]
        if role == "id":
            if _is_id(given, rows):
                return Guess((name,), f"named so, and different in each of {rows:,} rows looked at")
            locale = next((each for each in values if is_locale_name(each) and each != name), None)
            if locale is not None and _are_ids_together(name, locale, values, rows):
                return Guess((name, locale), f"named so; {name} repeats, with {locale} it is different in each row")
            if _is_id(given, rows, repeated=max(rows * _MAX_REPEATED, int(rows >= _FEW_ROWS))):
                why = f"named so; {_repeated(given):,} of {rows:,} rows repeat that of another, and leave a letter"
                return Guess((name,), why)
            if fallback is None and given and all(_is_short(value) for value in given):
                fallback = Guess(
                    (name,),
                    f"named so, but only {len(set(map(str, given))):,} of {rows:,} rows "
                    "looked at have one of their own: the others will be rejected",
                )
        elif role == "image":
            if given and _share(given, _is_image) >= 0.5:
                return Guess((name,), f"named so, and holds pictures or their addresses ({_shown(given[0])})")
        elif role == "price" and not _is_plain_price(name) and _share(given, _is_amount) < 0.5:
            continue
        elif given and not all(_is_image(value) for value in given):
            return Guess((name,), "named so")
    return fallback


def _with_passed_over(guess: Guess, names: Sequence[str], values: dict[str, list[Any]], rows: int) -> Guess:
    """The guess with why it is not the column whose name tells an id better."""
    better = names[: names.index(guess.columns[0])] if guess.columns[0] in names else names
    if not better:
        return guess
    given = values[better[0]]
    if repeated := _repeated(given):
        found = f"{repeated:,} of {rows:,} rows repeat the value of another"
    elif len(given) < rows:
        found = f"{rows - len(given):,} of {rows:,} rows have none"
    else:
        found = "its values are no short texts or whole numbers"
    return Guess(guess.columns, f"{guess.why}; not {better[0]}: {found}")


def _repeated(given: Sequence[Any]) -> int:
    return len(given) - len(set(map(str, given)))


def _by_values(role: str, values: dict[str, list[Any]], rows: int) -> Guess | None:
    free = {name: given for name, given in values.items() if given}
    if role == "id":
        fit = [name for name, given in free.items() if _is_id(given, rows) and not any(map(_is_image, given))]
        # Whole numbers and codes before words: a title may be different in each row too.
        fit.sort(key=lambda name: _share(free[name], _has_space))
        if fit and not _share(free[fit[0]], _has_space):
            return Guess((fit[0],), f"short, and different in each of {rows:,} rows looked at")
    if role == "image":
        fit = [name for name, given in free.items() if _share(given, _is_picture_address) >= 0.8]
        if fit:
            return Guess((fit[0],), f"holds pictures or their addresses ({_shown(free[fit[0]][0])})")
    if role in ("title", "description"):
        texts = {name: given for name, given in free.items() if _share(given, _is_words) >= 0.5}
        texts = {name: given for name, given in texts.items() if len(set(map(str, given))) >= len(given) * 0.5}
        lengths = {name: mean(len(str(value)) for value in given) for name, given in texts.items()}
        of_role = [name for name in texts if (lengths[name] > _LONG) == (role == "description")]
        if of_role:
            distinct = {name: len(set(map(str, texts[name]))) for name in of_role}
            best = max(of_role, key=lambda name: lengths[name] if role == "description" else distinct[name])
            return Guess((best,), f"words, {lengths[best]:.0f} characters on average, mostly different")
    return None


def _is_id(given: Sequence[Any], rows: int, repeated: float = 0) -> bool:
    """Whether nearly every row has a value, and no more than so many that of another."""
    return len(given) >= rows * _DISTINCT > 0 and _repeated(given) <= repeated and all(map(_is_short, given))


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | bytes) and not isinstance(value, bool) and len(str(value).strip()) <= _SHORT


def _are_ids_together(name: str, locale: str, values: dict[str, list[Any]], rows: int) -> bool:
    if len(values[name]) != rows or len(values[locale]) != rows:
        return False
    return len(set(zip(map(str, values[name]), map(str, values[locale]), strict=True))) == rows


def _is_image(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_image, value))
    if isinstance(value, dict):
        return any(value.get(key) for key in IMAGE_KEYS)
    if isinstance(value, bytes):
        return len(value) > _SHORT
    text = value.strip().lstrip("[\"' ") if isinstance(value, str) else ""
    return bool(_IMAGE_TEXT.match(text) or _BASE64_IMAGE.match(text))


def _is_picture_address(value: Any) -> bool:
    """As `_is_image`, but an address must end as a picture's does: a product's page is an address too."""
    if isinstance(value, str):
        text = value.strip().lower()
        return bool(_BASE64_IMAGE.match(value) or re.search(r"\.(jpe?g|png|webp|avif|gif)\W*([?#].*)?$", text))
    return isinstance(value, bytes | list | dict) and _is_image(value)


def _is_words(value: Any) -> bool:
    return isinstance(value, str) and any(map(str.isalpha, value)) and not _is_image(value) and _has_space(value)


def _has_space(value: Any) -> bool:
    return " " in str(value).strip()


def image_separator(values: Sequence[Any]) -> str | None:
    """What stands between the pictures of one value, where some values hold several; None where none does."""
    texts = [value for value in values if isinstance(value, str) and not value.lstrip().startswith(("[", "data:"))]
    for separator in (",", "|", ";"):
        split = [text.split(separator) for text in texts if separator in text]
        if split and all(all(map(_is_picture_address, parts)) for parts in split):
            return separator
    return None


def is_price_text(value: Any) -> bool:
    """Whether a text spells an amount, with a currency or not: `19,90`, `EUR 1.299,00`, `$5`."""
    return isinstance(value, str) and _PRICE.fullmatch(value.strip()) is not None


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) or is_price_text(value)


def _is_plain_price(name: str) -> bool:
    told = role_of(name)
    return told is not None and told[1][1] < COMPOUND


def _share(given: Sequence[Any], holds: Any) -> float:
    return sum(1 for value in given if holds(value)) / len(given) if given else 0.0


def _shown(value: Any) -> str:
    text = f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
