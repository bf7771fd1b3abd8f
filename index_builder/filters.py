"""A filter is a condition over columns in SQL's words, such as `kind = 'chair' and price < 50`.

The text is parsed, and every part of it must be one of a few that are known here; it never reaches an interpreter or a
database. Columns may be of any type: text meets a number as the number that it spells, a date as a date, and a list is
what one of its items is. As in SQL, a comparison with null is neither true nor false.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import sqlglot.tokens
from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import ParseError, SqlglotError

from index_builder.comparable import (
    NUMBER,
    TRUTHS,
    as_number,
    as_text,
    as_truth,
    is_list,
    is_number,
    is_temporal,
    numbers_meeting,
)
from index_builder.errors import FilterError

ALLOWED = (
    "names (in double quotes unless they are plain words), text in single quotes, numbers, true, false, "
    "= == != <> < <= > >=, and, or, not, in (...), between, is null, like, ilike and parentheses"
)

BLOCK_ROWS = 65_536
"""Rows that are compared at a time."""
Literal = str | int | float | bool | None

_OPERATORS: dict[type[exp.Expression], str] = {
    exp.EQ: "equal",
    exp.NEQ: "not_equal",
    exp.LT: "less",
    exp.LTE: "less_equal",
    exp.GT: "greater",
    exp.GTE: "greater_equal",
}
_TURNED = {"less": "greater", "less_equal": "greater_equal", "greater": "less", "greater_equal": "less_equal"}


class _Words(Dialect):
    class Tokenizer(sqlglot.tokens.Tokenizer):
        IDENTIFIERS = ['"', "`"]  # noqa: RUF012


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that was parsed.

    Attributes:
        text: As it was written.
        columns: The columns that it names, each once; a nested one by its path, `attributes.color`.
    """

    text: str
    columns: tuple[str, ...]
    tree: exp.Expression = field(repr=False)

    @property
    def number_columns(self) -> frozenset[str]:
        """The columns that are compared with numbers, and with no text."""
        numbers: set[str] = set()
        texts: set[str] = set()
        for node in self.tree.find_all(*_OPERATORS, exp.In, exp.Between, exp.Like, exp.ILike):
            parts = list(node.iter_expressions())
            names = {_name(part, self.text) for part in parts if isinstance(part, exp.Column | exp.Dot)}
            values = [_value(part, self.text) for part in parts if not isinstance(part, exp.Column | exp.Dot)]
            if any(isinstance(value, str) for value in values):
                texts |= names
            elif any(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
                numbers |= names
        return frozenset(numbers - texts)

    def conjuncts(self) -> list[Condition]:
        """The conditions that `and` joins into this one; itself where there is none."""
        found = []
        open_nodes = [self.tree]
        while open_nodes:
            node = open_nodes.pop()
            inner = node.unnest()
            if isinstance(inner, exp.And):
                open_nodes += [inner.expression, inner.this]
                continue
            columns: dict[str, None] = {}
            _check(node, self.text, columns)
            found.append(Condition(node.sql(), tuple(columns), node))
        return found

    def mask(self, rows: pa.RecordBatch) -> pa.BooleanArray:
        """For which rows the condition is true, `[R]` without nulls; not for those where it is null.

        Raises:
            FilterError: a column is not there, or is of a type that cannot be compared so.
        """
        return pc.fill_null(_evaluated(self.tree, rows), False)

    def mask_of(self, products: pa.Table, columns: Mapping[str, ColumnValues] = MappingProxyType({})) -> np.ndarray:
        """The same for all rows of a table: bool [N].

        What is asked of one of `columns` alone is asked of its values only.

        Raises:
            FilterError: as `mask`; VerificationError: the values are not those that were written.
        """
        for name in self.columns:
            if name not in products.column_names:
                raise unknown_column(name, products.column_names)
        found = _evaluated(self.tree, _WholeTable(products, columns))
        return pc.fill_null(found, False).to_numpy(zero_copy_only=False)


class ColumnValues(Protocol):
    """A column by its values.

    Attributes:
        values: One column with each of its values once, null too: [V].
    """

    values: pa.RecordBatch

    def rows_where(self, truth: pa.BooleanArray) -> pa.BooleanArray:
        """What is true, false or null of the values [V], of the rows that have them: [N]."""


@dataclass(frozen=True, slots=True)
class _WholeTable:
    """All products: conditions on a column with known values are answered by these, others block by block."""

    products: pa.Table
    columns: Mapping[str, ColumnValues]

    def answer(self, node: exp.Expression) -> pa.BooleanArray | None:
        """The condition for each row, [N]; None: its parts are to be answered one by one."""
        names = sorted({_name(part, "") for part in node.find_all(exp.Column, exp.Dot) if not _is_part_of_name(part)})
        if len(names) == 1 and names[0] in self.columns:
            column = self.columns[names[0]]
            return column.rows_where(_evaluated(node, column.values))
        has_parts = isinstance(node, exp.And | exp.Or | exp.Not | exp.Paren)
        if has_parts and not self.columns.keys().isdisjoint(names):
            return None
        found = [_evaluated(node, block) for block in _blocks(self.products.select(names))]
        return pa.concat_arrays([pa.array([], pa.bool_()), *found])


def _is_part_of_name(node: exp.Expression) -> bool:
    return isinstance(node.parent, exp.Dot)


def _blocks(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """The rows in blocks of some size: a table of many short batches takes twice as long."""
    waiting: list[pa.RecordBatch] = []
    for batch in table.to_batches(max_chunksize=BLOCK_ROWS):
        if waiting and sum(each.num_rows for each in waiting) + batch.num_rows > BLOCK_ROWS:
            yield pa.concat_batches(waiting)
            waiting = []
        waiting.append(batch)
    if waiting:
        yield pa.concat_batches(waiting)


@lru_cache(64)
def parse_condition(text: str) -> Condition:
    """Parses a condition.

    Raises:
        FilterError: the text is none; the message says at which character, and what is allowed.
    """
    try:
        parsed: list[Any] = _Words().parse_into(exp.Condition, text)
        tree = parsed[0]
        if tree is None:
            raise FilterError(f"expected a condition, found nothing; allowed are {ALLOWED}")
        columns: dict[str, None] = {}
        _check(tree, text, columns)
    except SqlglotError as error:
        raise _refusal(text, *_place(error)) from error
    except RecursionError as error:
        raise FilterError("expected a condition, found one with too many parts inside one another") from error
    if not columns:
        raise FilterError(f"expected a condition over columns, found none in {text!r}")
    return Condition(text, tuple(columns), tree)


def _place(error: SqlglotError) -> tuple[int | None, str]:
    """Where the parser gave up, as characters from 0, and at what."""
    for found in error.errors if isinstance(error, ParseError) else ():
        if found.get("highlight"):
            return len(found.get("start_context") or ""), str(found["highlight"])
    return None, ""


def _refusal(text: str, place: int | None, found: str, hint: str = "") -> FilterError:
    where = f"found {found!r} at character {place + 1}" if place is not None else f"found {text!r}"
    return FilterError(f"expected a condition in SQL's words, {where}{hint}; allowed are {ALLOWED}")


def _refused(node: exp.Expression, text: str, hint: str = "") -> FilterError:
    spans = [inner.meta for inner in node.walk() if "start" in inner.meta]
    if not spans:
        return _refusal(text, None, "", f" with {node.sql()!r} in it{hint}")
    start, end = min(span["start"] for span in spans), max(span["end"] for span in spans)
    return _refusal(text, start, text[start : end + 1], hint)


def _check(node: exp.Expression, text: str, columns: dict[str, None]) -> None:
    """Refuses every part of a condition that is none of the known ones; collects the columns."""
    given = {name for name, value in node.args.items() if value not in (None, [], False)}
    if isinstance(node, exp.And | exp.Or) and given == {"this", "expression"}:
        _check(node.this, text, columns)
        _check(node.expression, text, columns)
    elif isinstance(node, exp.Not | exp.Paren) and given == {"this"}:
        _check(node.this, text, columns)
    elif isinstance(node, exp.Column | exp.Dot):
        columns[_name(node, text)] = None
    elif type(node) in _OPERATORS and given == {"this", "expression"}:
        sides = [_side(node.this, text, columns), _side(node.expression, text, columns)]
        if None in sides:
            raise _refused(node, text, ": nothing equals null, write `is null`")
        if not any(isinstance(side, exp.Expression) for side in sides):
            raise _refused(node, text, ", which compares no column")
    elif isinstance(node, exp.In) and given == {"this", "expressions"}:
        columns[_name(node.this, text)] = None
        for item in node.expressions:
            _value(item, text)
    elif isinstance(node, exp.Between) and given == {"this", "low", "high"}:
        columns[_name(node.this, text)] = None
        if None in (_value(node.args["low"], text), _value(node.args["high"], text)):
            raise _refused(node, text, ": nothing is between null and another value")
    elif isinstance(node, exp.Like | exp.ILike) and given - {"negate"} == {"this", "expression"}:
        columns[_name(node.this, text)] = None
        if not isinstance(_value(node.expression, text), str):
            raise _refused(node, text, ", where a pattern is text, such as '%chair%'")
    elif isinstance(node, exp.Is) and isinstance(node.expression, exp.Null | exp.Boolean):
        if isinstance(node.expression, exp.Null):
            columns[_name(node.this, text)] = None
        else:
            _check(node.this, text, columns)
    else:
        raise _refused(node, text)


def _side(node: exp.Expression, text: str, columns: dict[str, None]) -> exp.Expression | Literal:
    """One side of a comparison: a column (it is collected) or a literal."""
    if isinstance(node, exp.Column | exp.Dot):
        columns[_name(node, text)] = None
        return node
    return _value(node, text)


def _name(node: exp.Expression, text: str) -> str:
    """The column that a node names, in one or more parts."""
    if isinstance(node, exp.Column | exp.Dot):
        parts = node.parts
        if all(isinstance(part, exp.Identifier) for part in parts):
            return ".".join(part.name for part in parts)
    raise _refused(node, text, ", where the name of a column should be")


def _value(node: exp.Expression, text: str) -> Literal:
    if isinstance(node, exp.Neg) and isinstance(node.this, exp.Literal) and not node.this.is_string:
        number = _value(node.this, text)
        return -number if isinstance(number, int | float) else number
    if isinstance(node, exp.Null):
        return None
    if isinstance(node, exp.Boolean):
        return bool(node.this)
    if isinstance(node, exp.Literal):
        if node.is_string:
            return str(node.this)
        try:
            return int(node.this) if node.this.isdecimal() else float(node.this)
        except ValueError:
            pass
    raise _refused(node, text, ", where a text, a number, true or false should be")


def _evaluated(node: exp.Expression, rows: pa.RecordBatch | _WholeTable) -> pa.BooleanArray:
    """The condition for each row: true, false or null, `[R]`."""
    if isinstance(rows, _WholeTable):
        answer = rows.answer(node)
        if answer is not None:
            return answer
    if isinstance(node, exp.Paren):
        return _evaluated(node.this, rows)
    if isinstance(node, exp.Not):
        return pc.invert(_evaluated(node.this, rows))
    if isinstance(node, exp.And | exp.Or):
        both = pc.and_kleene if isinstance(node, exp.And) else pc.or_kleene
        return both(_evaluated(node.this, rows), _evaluated(node.expression, rows))
    if isinstance(node, exp.Is):
        if isinstance(node.expression, exp.Null):
            return _column(node.this, rows).is_null(nan_is_null=True)
        found = _evaluated(node.this, rows)
        return pc.fill_null(found if node.expression.this else pc.invert(found), False)
    if isinstance(node, exp.Column | exp.Dot):
        return _compared("equal", node, True, rows)
    if isinstance(node, exp.In):
        values = [_value(item, "") for item in node.expressions]
        return reduce(pc.or_kleene, (_compared("equal", node.this, value, rows) for value in values))
    if isinstance(node, exp.Between):
        low, high = _value(node.args["low"], ""), _value(node.args["high"], "")
        above, below = _column_test(node.this, "greater_equal", low), _column_test(node.this, "less_equal", high)
        return _of_items(node.this, rows, lambda column: pc.and_kleene(above(column), below(column)))
    if isinstance(node, exp.Like | exp.ILike):
        pattern, is_blind = str(node.expression.this), isinstance(node, exp.ILike)
        like = _of_items(node.this, rows, lambda column: pc.match_like(as_text(column), pattern, ignore_case=is_blind))
        return pc.invert(like) if node.args.get("negate") else like
    operator, left, right = _OPERATORS[type(node)], node.this, node.expression
    if not isinstance(left, exp.Column | exp.Dot):
        left, right, operator = right, left, _TURNED.get(operator, operator)
    if isinstance(right, exp.Column | exp.Dot):
        return _columns_compared(operator, left, right, rows)
    return _compared(operator, left, _value(right, ""), rows)


def _compared(operator: str, node: exp.Expression, value: Literal, rows: pa.RecordBatch) -> pa.BooleanArray:
    """A column beside a literal. No item of a list must equal what the list is to be unequal to."""
    if operator == "not_equal":
        return pc.invert(_compared("equal", node, value, rows))
    return _of_items(node, rows, _column_test(node, operator, value))


def _of_items(
    node: exp.Expression, rows: pa.RecordBatch, test: Callable[[pa.Array], pa.BooleanArray]
) -> pa.BooleanArray:
    """The test for each value of a column; of a list, whether one of its items passes it."""
    column = _column(node, rows)
    if not is_list(column.type):
        return test(column)
    passed = pc.fill_null(test(_plain(column.flatten(), node)), False).to_numpy(zero_copy_only=False)
    lengths = pc.if_else(column.is_valid(), pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    found = np.zeros(len(column), bool)
    found[np.repeat(np.arange(len(column)), lengths)[passed]] = True
    return pc.if_else(column.is_valid(), pa.array(found), pa.scalar(None, pa.bool_()))


def _column_test(node: exp.Expression, operator: str, value: Literal) -> Callable[[pa.Array], pa.BooleanArray]:
    """What compares each value of a plain column with a literal; FilterError where their types never meet."""

    def test(column: pa.Array) -> pa.BooleanArray:
        if value is None:
            return pa.nulls(len(column), pa.bool_())
        kind = column.type
        column, other = _meeting(column, value, node)
        # What spells no number equals none, and has no place before or behind one; a date may be cut short ('2026-05').
        spelt = not pa.types.is_string(column.type) or pa.types.is_string(kind)
        if operator != "equal" and not spelt and not (is_temporal(kind) and str(value).strip()[:1].isdigit()):
            raise FilterError(f"{_name(node, '')!r} is {kind}: expected one to compare it with, found {value!r}")
        return pc.call_function(operator, [column, other])

    return test


def _meeting(column: pa.Array, value: str | int | float | bool, node: exp.Expression) -> tuple[pa.Array, pa.Scalar]:
    """A column and a literal in a type that both have."""
    kind = column.type
    if isinstance(value, bool):
        return (as_truth(column), pa.scalar(value)) if not is_temporal(kind) else _no_meeting(node, kind, value)
    if isinstance(value, int | float):
        if is_temporal(kind):
            return _no_meeting(node, kind, value)
        return numbers_meeting(as_number(column), value)
    if pa.types.is_boolean(kind):
        truth = next((truth for truth, words in TRUTHS.items() if value.strip().lower() in words), None)
        return (as_text(column), pa.scalar(value)) if truth is None else (column, pa.scalar(truth))
    if is_number(kind):
        number = value.strip()
        if re.match(NUMBER, number) is None:
            return as_text(column), pa.scalar(value)
        return numbers_meeting(column, int(number) if number.lstrip("+-").isdigit() else float(number))
    if is_temporal(kind):
        try:
            return column, pa.scalar(value.strip()).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return as_text(column), pa.scalar(value)
    return column, pa.scalar(value)


def _no_meeting(node: exp.Expression, kind: pa.DataType, value: Literal) -> Any:
    raise FilterError(
        f"{_name(node, '')!r} is {kind}, and cannot be compared with {value!r}; write text, such as '2026-01-31'"
    )


def _columns_compared(
    operator: str, left: exp.Expression, right: exp.Expression, rows: pa.RecordBatch
) -> pa.BooleanArray:
    """Two columns, row by row: as numbers where one is of numbers, as true and false likewise, else as they are."""
    columns = [_column(left, rows), _column(right, rows)]
    for node, column in zip((left, right), columns, strict=True):
        if is_list(column.type):
            raise FilterError(
                f"{_name(node, '')!r} is {column.type}: a list is compared with values, not with a column"
            )
    if not columns[0].type.equals(columns[1].type):
        kinds = [column.type for column in columns]
        if any(map(is_number, kinds)) and not any(map(is_temporal, kinds)):
            columns = [as_number(column) for column in columns]
            if any(pa.types.is_floating(column.type) for column in columns):
                columns = [column.cast(pa.float64(), safe=False) for column in columns]
            elif any(pa.types.is_uint64(column.type) for column in columns):
                columns = [column.cast(pa.decimal128(20)) for column in columns]
        elif any(map(pa.types.is_boolean, kinds)) and not any(map(is_temporal, kinds)):
            columns = [as_truth(column) for column in columns]
        elif not all(map(is_temporal, kinds)):
            columns = [as_text(column) for column in columns]
    try:
        return pc.call_function(operator, columns)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return pc.call_function(operator, [as_text(column) for column in columns])


def _column(node: exp.Expression, rows: pa.RecordBatch) -> pa.Array:
    """A column in a type that can be compared; FilterError where it is not there."""
    name = _name(node, "")
    if name not in rows.schema.names:
        raise unknown_column(name, rows.schema.names)
    column = rows.column(name)
    # Whether it is null can be asked of a column of any type.
    return column if isinstance(node.parent, exp.Is) else _plain(column, node)


def unknown_column(name: str, known: Iterable[str]) -> FilterError:
    """The error for a column that is not there: it names the nearest one that is."""
    names = sorted(known)
    by_lower = {each.lower(): each for each in names}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.7)
    hint = f" Did you mean '{by_lower[close[0]]}'?" if close else " (Text stands in single quotes.)"
    if name.partition(".")[0] in names:
        hint = f" To filter by a field of '{name.partition('.')[0]}', name it in catalog.filter_fields."
    return FilterError(f"expected the name of a column, found {name!r}.{hint} Known: {', '.join(names[:12])}.")


def _plain(column: pa.Array, node: exp.Expression) -> pa.Array:
    """A column without the ways of storing it, NaN as null; FilterError for a type that has no order."""
    if isinstance(column, pa.ExtensionArray):
        return _plain(column.storage, node)
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.dictionary_decode(), node)
    if pa.types.is_run_end_encoded(kind):
        return _plain(pc.run_end_decode(column), node)
    if is_list(kind):
        return column
    if pa.types.is_null(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string())
    if pa.types.is_decimal(kind) or pa.types.is_float16(kind):
        column = column.cast(pa.float64())
    if pa.types.is_floating(column.type):
        unknown = pc.is_nan(column)
        return pc.if_else(unknown, pa.scalar(None, column.type), column) if pc.any(unknown).as_py() else column
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return column.cast(pa.timestamp(kind.unit))  # the same moments, in UTC
    if is_number(kind) or is_temporal(kind) or pa.types.is_boolean(kind) or pa.types.is_string(kind):
        return column
    nested = pa.types.is_struct(kind) or pa.types.is_map(kind)
    hint = "; name one of its fields, as in a.b" if nested else ""
    raise FilterError(f"{_name(node, '')!r} is {kind}, which can only be null or not{hint}")
