"""Faults of columns: a column that is gone, empty, of another type, or spread over other values than the night before.

Every limit stands against what a good night may do. Where at most one product in twenty is added, removed or edited,
no share, no distribution and no quantile of a column can move by more than that, whatever was edited into it: the
distance between two distributions (the share of products that would have to change their value) is at most the share
of products that did change. What is beyond `MOVED` is therefore no such night. `tests/reliability/faults.py` has the
figures of good nights and of planted faults.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.report.night import Finding, Night, Pairs

MOVED = 0.1
"""Distance between two distributions from which on a column is said to be another one."""
EMPTIED = 0.03
"""Share of the products that lost (or got) a value."""
EDITED = 0.2
"""Share of the products whose value is another one."""
MOSTLY_EMPTY = 0.5
"""Of a first night, which nothing can be compared with: share of the products without a value."""
MOST_VALUES = 1000
"""Columns of more distinct values are no categories."""
CATEGORY_ROWS, CATEGORY_LEFT = 10, 0.3
"""A category of so many products is said to be gone, or shrunk, when at most this share of them is left."""
_COMPARED = 100_000


def column_faults(old: Night | None, new: Night, pairs: Pairs | None) -> Iterator[Finding]:
    """What is wrong with the columns of `new`; `old` is the night before, with `pairs` of products of both."""
    if old is None or pairs is None:
        for name in new.columns:
            share = _null_share(new.products.column(name))
            if share > MOSTLY_EMPTY:
                found = f"{share:.1%} of the products have no {name}"
                yield Finding(what=f"{name} is mostly empty", found=found, value=share, limit=MOSTLY_EMPTY)
        return
    types = [{name: night.products.schema.field(name).type for name in night.columns} for night in (old, new)]
    for name in sorted(types[0].keys() | types[1].keys()):
        before, after = (each.get(name) for each in types)
        if before == after:
            yield from _faults_of(name, old, new, pairs)
            continue
        if after is None:
            what, found = f"column {name} is gone", f"filters and pages that use {name} find nothing"
        elif before is None:
            what, found = f"column {name} is new", f"of type {after}"
        else:
            what, found = f"column {name} changed its type", f"from {before} to {after}: filters on it may fail"
        yield Finding(what=what, found=found, value=1.0, limit=0.1 if before is not None else 1.0)


def _faults_of(name: str, old: Night, new: Night, pairs: Pairs) -> Iterator[Finding]:
    before, after = old.products.column(name), new.products.column(name)
    empty = [_null_share(column) for column in (before, after)]
    if abs(empty[1] - empty[0]) > EMPTIED:
        what = f"{name} lost its values" if empty[1] > empty[0] else f"{name} got values"
        found = f"{empty[1]:.1%} of the products have no {name}, it was {empty[0]:.1%}"
        yield Finding(what=what, found=found, value=abs(empty[1] - empty[0]), limit=EMPTIED)
    yield from _edits(name, old, new, pairs)
    if _is_number(after.type):
        yield from _number_faults(name, before, after)
    elif pa.types.is_string(after.type) or pa.types.is_boolean(after.type) or pa.types.is_dictionary(after.type):
        yield from _category_faults(name, before, after)


def edited_shares(old: Night, new: Night, pairs: Pairs) -> dict[str, float]:
    """Of the columns that both nights have with one type, the share of the paired products whose value changed."""
    names = [
        name
        for name in new.columns
        if name in old.columns and old.products.schema.field(name).type == new.products.schema.field(name).type
    ]
    return {name: _edited(name, old, new, pairs)[0] for name in names} if len(pairs.old) else {}


def _edited(name: str, old: Night, new: Night, pairs: Pairs) -> tuple[float, pa.Array, pa.Array]:
    """The share of pairs that differ in a column, and their values in either night."""
    before, after = (
        pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        for column in (
            old.products.column(name).take(pa.array(pairs.old)),
            new.products.column(name).take(pa.array(pairs.new)),
        )
    )
    if pa.types.is_nested(before.type):
        differs = np.array([a != b for a, b in zip(before.to_pylist(), after.to_pylist(), strict=True)], bool)
    else:
        unlike = pc.fill_null(pc.not_equal(before, after), False)
        differs = pc.or_(unlike, pc.xor(pc.is_null(before), pc.is_null(after))).to_numpy(zero_copy_only=False)
    mask = pa.array(differs.astype(bool))
    return float(np.mean(differs)) if len(differs) else 0.0, before.filter(mask), after.filter(mask)


def _edits(name: str, old: Night, new: Night, pairs: Pairs) -> Iterator[Finding]:
    share, before, after = _edited(name, old, new, pairs)
    limit = max(EDITED, 2 * old.edited.get(name, 0.0))
    if share <= limit:
        return
    found = f"{share:.1%} of the products have another {name} than the night before"
    usual = old.edited.get(name)
    found += f" (the night before {usual:.1%})" if usual is not None else ""
    if _is_number(after.type):
        numbers = [np.asarray(pc.cast(each, pa.float64()).to_numpy(zero_copy_only=False)) for each in (before, after)]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = numbers[1] / numbers[0]
        ratios = ratios[np.isfinite(ratios)]
        found += f"; the middle one is {np.median(ratios):.3g} times what it was" if len(ratios) else ""
    elif len(before):
        found += f"; such as {_short(before[0])}, now {_short(after[0])}"
    yield Finding(what=f"{name} changed", found=found, value=share, limit=limit)


def _number_faults(name: str, before: pa.ChunkedArray, after: pa.ChunkedArray) -> Iterator[Finding]:
    numbers = [_numbers(column) for column in (before, after)]
    if not all(len(each) for each in numbers):
        return
    distance = largest_gap(*numbers)
    if distance > MOVED:
        middles = [float(np.median(each)) for each in numbers]
        found = f"the median is {middles[1]:,.6g}, it was {middles[0]:,.6g}; {distance:.1%} of the values moved"
        yield Finding(what=f"{name} is spread otherwise", found=found, value=distance, limit=MOVED)


def _category_faults(name: str, before: pa.ChunkedArray, after: pa.ChunkedArray) -> Iterator[Finding]:
    counts = [_counts(column) for column in (before, after)]
    if not counts[0] or not counts[1] or len(counts[0]) > MOST_VALUES:
        return
    shrunk = [
        (value, rows, counts[1].get(value, 0))
        for value, rows in counts[0].items()
        if rows >= CATEGORY_ROWS and counts[1].get(value, 0) <= CATEGORY_LEFT * rows
    ]
    if shrunk:
        value, rows, left = max(shrunk, key=lambda each: each[1] - each[2])
        more = f", and {len(shrunk) - 1:,} more" if len(shrunk) > 1 else ""
        found = f"{name} {_short(value)} has {left:,} products, it had {rows:,}{more}"
        lost = 1.0 - left / rows
        yield Finding(what=f"a {name} is gone", found=found, value=1.0 + lost, limit=1.0 - CATEGORY_LEFT)
    distance = distribution_distance(*counts)
    if distance > MOVED:
        shares = [{value: rows / sum(each.values()) for value, rows in each.items()} for each in counts]
        moved = max(shares[0].keys() | shares[1].keys(), key=lambda v: abs(shares[1].get(v, 0.0) - shares[0].get(v, 0)))
        was, now = (each.get(moved, 0.0) for each in shares)
        found = f"{distance:.1%} of the products moved; most {_short(moved)}: {now:.1%}, it was {was:.1%}"
        yield Finding(what=f"{name} is spread otherwise", found=found, value=distance, limit=MOVED)


def distribution_distance(old: dict[object, int], new: dict[object, int]) -> float:
    """Total variation distance between two counts by value: half the sum of the differences of shares."""
    sizes = max(1, sum(old.values())), max(1, sum(new.values()))
    return sum(abs(old.get(value, 0) / sizes[0] - new.get(value, 0) / sizes[1]) for value in old.keys() | new) / 2


def largest_gap(old: np.ndarray, new: np.ndarray) -> float:
    """Kolmogorov and Smirnov's distance of two samples: the largest gap between their shares below a number."""
    old, new = np.sort(old), np.sort(new)
    values = np.concatenate([old, new])
    below = (np.searchsorted(each, values, side="right") / len(each) for each in (old, new))
    return float(np.abs(np.subtract(*below)).max())


def _null_share(column: pa.ChunkedArray) -> float:
    """Share of null or empty texts, 0 of a column without rows."""
    empty = column.null_count
    if pa.types.is_string(column.type):
        empty += pc.sum(pc.equal(pc.utf8_trim_whitespace(column), "")).as_py() or 0
    return empty / len(column) if len(column) else 0.0


def _counts(column: pa.ChunkedArray) -> dict[object, int]:
    """Rows by value, without nulls; empty where almost every row has a value of its own."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    counts = pc.value_counts(column.drop_null())
    if len(counts) > max(20, len(column) // 2):
        return {}
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Finite values as float64, every n-th where there are very many."""
    step = max(1, len(column) // _COMPARED)
    chosen = column.take(pa.array(np.arange(0, len(column), step)))
    values = pc.cast(chosen, pa.float64()).drop_null().to_numpy()
    return values[np.isfinite(values)]


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _short(value: object) -> str:
    text = str(value.as_py() if isinstance(value, pa.Scalar) else value)
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
