"""Values of one column are cleaned: blanks, signs that nobody sees, words that mean nothing, markup, NUL.

Each function works on a whole column. Most columns are clean, so each first looks whether there is anything to do.
`R` rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index_builder.filters import Condition
from pipelines.catalog.arrow_types import is_list, is_text, plain
from pipelines.catalog.config import NULL_VALUES, is_number
from pipelines.catalog.markup import without_markup, without_written_breaks
from pipelines.catalog.numbers import DecimalMark, plain_numbers
from pipelines.catalog.paths import without
from pipelines.catalog.text_scan import ByteSet, has_nul, mask_of, rows_like_words, rows_with_loose_spaces

# Unicode's Default_Ignorable_Code_Point (https://www.unicode.org/reports/tr44/#Default_Ignorable_Code_Point) and the
# marks of interlinear annotation, in three parts. Nobody sees these at all: zero width spaces, soft hyphens, marks of
# direction, variation selectors, tags. They go, so that a word is the same with and without them.
_UNSEEN = (
    r"\x{AD}\x{34F}\x{61C}\x{17B4}\x{17B5}\x{180B}-\x{180F}\x{200B}\x{200E}\x{200F}\x{202A}-\x{202E}\x{2060}-\x{206F}"
    r"\x{FE00}-\x{FE0F}\x{FEFF}\x{FFF0}-\x{FFFB}\x{1BCA0}-\x{1BCA3}\x{1D173}-\x{1D17A}\x{E0000}-\x{E0FFF}"
)
# These are not seen either, but decide how their neighbours look: between letters of scripts that join or stack (a
# Persian plural, an Indic half form), and between emoji (a family), they stay. Anywhere else they go.
_JOINERS = r"\x{200C}\x{200D}"
_JOINED = (
    r"\p{Arabic}\p{Syriac}\p{Nko}\p{Mongolian}\p{Devanagari}\p{Bengali}\p{Gurmukhi}\p{Gujarati}\p{Oriya}\p{Tamil}"
    r"\p{Telugu}\p{Kannada}\p{Malayalam}\p{Sinhala}\p{Thai}\p{Lao}\p{Tibetan}\p{Myanmar}\p{Khmer}\p{Balinese}"
    r"\p{Javanese}\p{Mn}\p{So}\x{2190}-\x{21FF}\x{1F3FB}-\x{1F3FF}"
)
# Fillers, the empty Braille cell and the place of an object that was not copied along: seen as a blank.
_BLANK = r"\x{115F}\x{1160}\x{2800}\x{3164}\x{FFA0}\x{FFFC}"
# Space, control characters (a tab, a NUL), Unicode's separators and blanks, as one class.
_SPACE = rf"[\p{{Z}}\p{{Cc}}{_BLANK}]+"
# What is not a single space between words.
_UNCLEAN = (
    r"  |^ | $|[\p{Cc}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}"
    rf"{_BLANK}{_UNSEEN}{_JOINERS}]"
)
# With which bytes the UTF-8 of any sign above begins, but for a space, and that of few letters.
_UNSEEN_BYTES = ByteSet([*range(0x20), 0x7F, 0xC2, 0xCD, 0xD8, 0xE1, 0xE2, 0xE3, 0xEF, 0xF0, 0xF3])
_HAS_UNSEEN, _HAS_JOINER = f"[{_UNSEEN}{_JOINERS}]", f"[{_JOINERS}]"
# The flags of Wales and the like are spelled with tags.
_UNSEEN_OR_FLAG = rf"(\x{{1F3F4}}[\x{{E0020}}-\x{{E007E}}]+\x{{E007F}})|[{_UNSEEN}]"
_JOINER_OR_JOINED = rf"([{_JOINED}]+(?:[{_JOINERS}][{_JOINED}]+)+)|[{_JOINERS}]"
_NOTHING_SEEN = rf"^[\p{{Z}}{_BLANK}{_UNSEEN}{_JOINERS}]*$"
_UNSEEN_EDGE = rf"^[\p{{Z}}\p{{Cc}}{_BLANK}{_UNSEEN}{_JOINERS}]+|[\p{{Z}}\p{{Cc}}{_BLANK}{_UNSEEN}{_JOINERS}]+$"
_EXACT_FLOAT = 2**53
LONGEST_TEXT = 1 << 20
"""Characters of a text field's value that are looked at; what stands behind them no text tower would read."""
_MAX_ROUNDS = 3  # an entity may stand for an unseen sign within an entity

StripHtml = Literal["auto", "always", "never"]


def clean_text(column: pa.StringArray) -> pa.StringArray:
    """A text column with runs of blanks as one space, none at the ends, no unseen signs; null where nothing is left."""
    rows = np.union1d(_UNSEEN_BYTES.rows_with(column), rows_with_loose_spaces(column))
    if len(rows):
        unclean = pc.fill_null(pc.match_substring_regex(column.take(pa.array(rows)), _UNCLEAN), False)
        rows = rows[unclean.to_numpy(zero_copy_only=False)]
    if len(rows):
        texts = column.take(pa.array(rows))
        if pc.any(pc.match_substring_regex(texts, _HAS_UNSEEN)).as_py():
            texts = pc.replace_substring_regex(texts, _UNSEEN_OR_FLAG, r"\1")
            if pc.any(pc.match_substring_regex(texts, _HAS_JOINER)).as_py():
                texts = pc.replace_substring_regex(texts, _JOINER_OR_JOINED, r"\1")
        texts = pc.utf8_trim(pc.replace_substring_regex(texts, _SPACE, " "), " ")
        column = pc.replace_with_mask(column, mask_of(rows, len(column)), texts)
    return _with_nulls(column, pc.equal(pc.binary_length(column), 0))


def text_column(
    column: pa.Array, null_values: Sequence[str] = NULL_VALUES, strip_html: StripHtml = "auto"
) -> pa.StringArray:
    """A column of a text field as clean text: numbers in decimal, the items of a list joined by a space.

    A value, or an item, that is one of `null_values` once it is clean is none.
    """
    column = plain(column)
    if not is_list(column.type):
        return _clean_values(column, null_values, strip_html)
    items = _clean_values(plain(column.flatten()), null_values, strip_html)
    lists = pa.ListArray.from_arrays(_offsets(column), pc.fill_null(items, ""))
    return clean_text(pc.binary_join(lists, " "))


def _clean_values(column: pa.Array, null_values: Sequence[str], strip_html: StripHtml) -> pa.StringArray:
    if not is_text(column.type):
        return without_words(_number_texts(column), null_values)
    texts = clean_text(without_written_breaks(_cut(column.cast(pa.string()))))
    for _ in range(_MAX_ROUNDS):
        stripped = without_markup(texts, strip_html)
        if stripped is texts:
            break
        texts = clean_text(stripped)
    return without_words(texts, null_values)


def _cut(texts: pa.StringArray) -> pa.StringArray:
    """Texts of at most `LONGEST_TEXT` characters."""
    rows = np.flatnonzero(pc.fill_null(pc.greater(pc.binary_length(texts), LONGEST_TEXT), False))
    if not len(rows):
        return texts
    cut = pc.utf8_slice_codeunits(texts.take(pa.array(rows)), 0, LONGEST_TEXT)
    return pc.replace_with_mask(texts, mask_of(rows, len(texts)), cut)


def _number_texts(column: pa.Array) -> pa.StringArray:
    """Anything but text as text; null where it is no number, whichever words count as none."""
    if pa.types.is_floating(column.type):
        column = _with_nulls(column, pc.is_nan(column))
    return column.cast(pa.string())


def trim_unseen(texts: pa.StringArray) -> pa.StringArray:
    """Without white space, control characters and signs that nobody sees at both ends."""
    texts = pc.utf8_trim_whitespace(texts)
    rows = _UNSEEN_BYTES.rows_with(texts)
    if not len(rows):
        return texts
    trimmed = pc.replace_substring_regex(texts.take(pa.array(rows)), _UNSEEN_EDGE, "")
    return pc.replace_with_mask(texts, mask_of(rows, len(texts)), trimmed)


def without_words(texts: pa.StringArray, words: Sequence[str]) -> pa.StringArray:
    """Null where a text is one of the words, between blanks."""
    rows = rows_like_words(texts, words)
    if not len(rows):
        return texts
    wanted = pa.array([" ".join(word.split()) for word in words], pa.string())
    found = pc.is_in(pc.utf8_trim_whitespace(texts.take(pa.array(rows))), value_set=wanted)
    rows = rows[found.to_numpy(zero_copy_only=False)]
    return _with_nulls(texts, mask_of(rows, len(texts))) if len(rows) else texts


def _with_nulls(column: pa.Array, where: pa.BooleanArray) -> pa.Array:
    if not pc.any(where).as_py():
        return column
    return pc.if_else(pc.fill_null(where, False), pa.scalar(None, column.type), column)


def id_column(column: pa.Array, null_values: Sequence[str] = NULL_VALUES) -> tuple[pa.StringArray, dict[int, str]]:
    """The ids as trimmed text; null where there is none. Whole numbers become decimal text, `12.0` among them.

    Signs that nobody sees stay within an id: it is a key, and other systems have it like that. An id of nothing else
    is none.

    Returns:
        `[R]` ids, and for rows whose id is no id (12.5, a number too large to be exact, one with a NUL or another
        control character in it) what is wrong with it.
    """
    column = plain(column)
    wrong: dict[int, str] = {}
    if pa.types.is_floating(column.type):
        numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        given = np.isfinite(numbers) | np.isinf(numbers)
        with np.errstate(invalid="ignore"):
            whole = given & (np.abs(numbers) < _EXACT_FLOAT) & (np.floor(numbers) == numbers)
        for row in np.flatnonzero(given & ~whole).tolist():
            wrong[row] = f"expected text or a whole number as id, found {numbers[row]}"
        column = pa.array(np.where(whole, numbers, 0).astype(np.int64), mask=~whole)
    if not is_text(column.type):
        return column.cast(pa.string()), wrong
    ids = pc.utf8_trim_whitespace(column.cast(pa.string()))
    ids = _with_nulls(ids, pc.equal(pc.binary_length(ids), 0))
    rows = _UNSEEN_BYTES.rows_with(ids)
    if len(rows):
        some = ids.take(pa.array(rows))
        controlled = pc.fill_null(pc.match_substring_regex(some, r"\p{Cc}"), False)
        for place in pc.indices_nonzero(controlled).to_pylist():
            wrong[int(rows[place])] = f"expected an id without control characters, found {some[place].as_py()!r}"
        no_id = pc.or_(controlled, pc.fill_null(pc.match_substring_regex(some, _NOTHING_SEEN), False))
        ids = _with_nulls(ids, mask_of(rows[no_id.to_numpy(zero_copy_only=False)], len(ids)))
    return without_words(ids, null_values), wrong


def conform(
    column: pa.Array,
    data_type: pa.DataType,
    null_values: Sequence[str] = NULL_VALUES,
    decimal_mark: DecimalMark | None = None,
) -> tuple[pa.Array, dict[int, str]]:
    """A display or filter column in the type that holds for the whole catalog.

    Text becomes a number, a date, true or false where it spells one; the empty text becomes null in any column but one
    of text, the words for none in every column, within lists and objects too. NUL characters go. Texts stay as the shop
    has them otherwise, markup and all: it is the shop that shows them.

    Args:
        decimal_mark: What separates the decimals of the column's numbers, where its texts show it.

    Returns:
        `[R]` values, null where they do not fit, and for those rows what was found.
    """

    def tidy(texts: pa.StringArray, nullable: bool) -> pa.StringArray:
        if has_nul(texts):
            texts = pc.replace_substring(texts, "\0", "")
        return without_words(texts, null_values) if nullable else texts

    column = map_texts(plain(column), tidy)
    if column.type.equals(data_type):
        return column, {}
    if is_text(column.type) and not is_text(data_type):
        column = pc.utf8_trim_whitespace(column.cast(pa.string()))
        column = without_words(_with_nulls(column, pc.equal(column, "")), null_values)
    both = pa.types.is_list(column.type) and pa.types.is_list(data_type)
    if both and not column.type.value_type.equals(data_type.value_type):
        # One item that does not fit costs its place in the list, not the list.
        items, lost = conform(column.flatten(), data_type.value_type, null_values, decimal_mark)
        offsets = _offsets(column)
        rows = np.searchsorted(offsets.to_numpy(), list(lost), side="right") - 1
        lists = pa.ListArray.from_arrays(offsets, items, data_type, mask=column.is_null())
        return lists, {int(row): why for row, why in zip(rows[::-1], reversed(lost.values()), strict=True)}
    is_spelled = pa.types.is_string(column.type) and is_number(data_type)
    try:
        # Where commas are decimal, a text such as 1.299 is a number to Arrow, but another one.
        if not (is_spelled and decimal_mark == ","):
            return column.cast(data_type), {}
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    result, lost = _conform_each(column, data_type, decimal_mark if is_spelled else None, is_spelled)
    return map_texts(result, tidy) if pa.types.is_nested(data_type) else result, lost


def meets_condition(
    rows: pa.RecordBatch,
    condition: Condition,
    stated: Mapping[str, pa.DataType],
    null_values: Sequence[str],
    types: pa.Schema | None = None,
    decimal_marks: Mapping[str, DecimalMark] | None = None,
) -> pa.BooleanArray:
    """Whether `catalog.where` is true, `[R]` without nulls. Texts compared with numbers may be spelled: `19,90 €`.

    Args:
        stated: Types that the config gives to columns.
        types: Those of other columns that these rows do not have; else they count as texts.
        decimal_marks: Of columns, where their texts show it.
    """
    marks = decimal_marks or {}
    spelled = condition.number_columns
    missing = pa.array(["", *null_values], pa.string())
    columns = []
    for name in condition.columns:
        if name in rows.schema.names:
            column = without(plain(rows.column(name)), missing)
            if name in stated:
                column = conform(column, stated[name], null_values, marks.get(name))[0]
            elif name in spelled and pa.types.is_string(column.type):
                column = plain_numbers(pc.utf8_trim_whitespace(column), marks.get(name))
        else:
            absent = pa.string() if types is None else types.field(name).type
            column = pa.nulls(len(rows), stated.get(name, absent))
        columns.append(column)
    return condition.mask(pa.RecordBatch.from_arrays(columns, names=list(condition.columns)))


def _conform_each(
    column: pa.Array, data_type: pa.DataType, decimal_mark: DecimalMark | None, is_spelled: bool
) -> tuple[pa.Array, dict[int, str]]:
    """Value by value, each distinct one once. Lists and objects that their reader kept as JSON text are parsed."""

    def convert(value: pa.Scalar) -> Any:
        try:
            if pa.types.is_nested(data_type):
                return pa.scalar(json.loads(value.as_py()), data_type).as_py()
            return value.cast(data_type).as_py()
        except (ValueError, TypeError, pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
            return None

    try:
        encoded = column.dictionary_encode()
    except pa.ArrowNotImplementedError:
        given = np.flatnonzero(column.is_valid()).tolist()
        return pa.nulls(len(column), data_type), dict.fromkeys(given, f"expected {data_type}, found {column.type}")
    distinct = encoded.dictionary
    if is_spelled:
        distinct = plain_numbers(distinct, decimal_mark, whole=pa.types.is_integer(data_type))
    try:
        values = distinct.cast(data_type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        values = pa.array(map(convert, distinct), data_type)
    result = values.take(encoded.indices)
    lost = np.flatnonzero(pc.and_not(column.is_valid(), result.is_valid()))
    return result, {int(row): f"expected {data_type}, found {column[int(row)].as_py()!r}" for row in lost}


def map_texts(column: pa.Array, change: Callable[[pa.Array, bool], pa.Array], nullable: bool = True) -> pa.Array:
    """The column with every text in it changed, within lists, structs and maps too.

    Args:
        change: Gives as many texts as it gets, of the same type; told whether they may become null. Where it changes
            nothing it gives the same object, and then so does this.
    """
    data_type = column.type
    if pa.types.is_string(data_type):
        return change(column, nullable)
    if pa.types.is_large_string(data_type) or pa.types.is_string_view(data_type) or pa.types.is_dictionary(data_type):
        if pa.types.is_dictionary(data_type) and not is_text(data_type.value_type):
            return column
        texts = column.cast(pa.string())
        changed = change(texts, nullable)
        return column if changed is texts else changed.cast(data_type)
    if pa.types.is_struct(data_type):
        fields = list(data_type)
        # flatten(), unlike field(), knows that a null struct has no fields.
        before = column.flatten()
        after = [map_texts(child, change, each.nullable) for child, each in zip(before, fields, strict=True)]
        if all(one is other for one, other in zip(before, after, strict=True)):
            return column
        return pa.StructArray.from_arrays(after, fields=fields, mask=column.is_null())
    if pa.types.is_map(data_type):
        lists = column.cast(pa.list_(pa.struct([data_type.key_field, data_type.item_field])))
        changed = map_texts(lists, change)
        if changed is lists:
            return column
        keys, items = changed.values.flatten()
        return pa.MapArray.from_arrays(changed.offsets, keys, items, data_type, mask=changed.is_null())
    if pa.types.is_fixed_size_list(data_type) or pa.types.is_large_list(data_type):
        lists = column.cast(pa.list_(data_type.value_field))
        changed = map_texts(lists, change)
        return column if changed is lists else changed.cast(data_type)
    if pa.types.is_list(data_type):
        items = column.flatten()
        changed = map_texts(items, change, data_type.value_field.nullable)
        if changed is items:
            return column
        return pa.ListArray.from_arrays(_offsets(column), changed, data_type, mask=column.is_null())
    return column


def _offsets(column: pa.Array) -> pa.Int32Array:
    """Where each list begins in what flatten() gives, which leaves out what null lists point at: int32 `[R + 1]`."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
