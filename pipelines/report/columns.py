"""Faults of columns: a column that is gone, empty, of another type, or spread over other values than the night before.

Every limit stands against what a good night may do. Where at most one product in twenty is added, removed or edited,
no share, no distribution and no quantile of a column can move by more than that, whatever was edited into it: the
distance between two distributions (the share of products that would have to change their value) is at most the share
of products that did change. What is beyond `MOVED` is therefore no such night. `tests/reliability/faults.py` has the
figures of good nights and of planted faults.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.report.night import EXAMPLES, Example, Finding, Night, Pairs, in_words, of_products, short

MOVED = 0.1
"""Distance between two distributions from which on a column is said to be another one."""
EMPTIED = 0.03
"""Share of the products that lost (or got) a value."""
EDITED = 0.2
"""Share of the products whose value is another one."""
FOLD = 3.0
"""Numbers of which the middle one is so many times what it was, or less than one part of as many, are broken."""
ALIKE = 0.01
"""How far apart factors may be that are said to be one."""
MOSTLY_EMPTY = 0.5
"""Of a first night, which nothing can be compared with: share of the products without a value."""
MOST_VALUES = 1000
"""Columns of more distinct values are no categories."""
CATEGORY_ROWS, CATEGORY_LEFT = 10, 0.4
"""A category of so many products is said to be gone, or shrunk, when at most this share of them is left."""
_COMPARED = 100_000


def column_faults(old: Night | None, new: Night, pairs: Pairs | None) -> Iterator[Finding]:
    """What is wrong with the columns of `new`; `old` is the night before, with `pairs` of products of both."""
    if old is None or pairs is None:
        for name in new.columns:
            share = _null_share(new.products.column(name))
            if share > MOSTLY_EMPTY:
                says = of_products(share, f"has no {in_words(name)}", f"have no {in_words(name)}")
                what, found = f"{name} is mostly empty", f"{share:.1%} of the products have no {name}"
                yield Finding(
                    kind="lost", about=name, what=what, says=says, found=found, value=share, limit=MOSTLY_EMPTY
                )
        return
    types = [{name: night.products.schema.field(name).type for name in night.columns} for night in (old, new)]
    for name in sorted(types[0].keys() | types[1].keys()):
        before, after = (each.get(name) for each in types)
        if before == after:
            yield from _faults_of(name, old, new, pairs)
            continue
        if after is None:
            what, found = f"column {name} is gone", f"filters and pages that use {name} find nothing"
            says = f"The column {name} is gone: no product has its {in_words(name)} any more"
        elif before is None:
            what, found = f"column {name} is new", f"of type {after}"
            says = f"The column {name} is new"
        else:
            what, found = f"column {name} changed its type", f"from {before} to {after}: filters on it may fail"
            says = f"The column {name} is of another type: {after}, it was {before}"
        kind = "column"
        if after is not None and pa.types.is_null(after):
            kind, says = "lost", of_products(1.0, f"lost its {in_words(name)}", "")
        yield Finding(
            kind=kind,
            about=name,
            what=what,
            says=says,
            found=found,
            value=1.0,
            limit=0.1 if before is not None else 1.0,
            broken=before is not None,
            examples=_first(pairs.old, pairs.new),
            shows=name,
        )


def _faults_of(name: str, old: Night, new: Night, pairs: Pairs) -> Iterator[Finding]:
    before, after = old.products.column(name), new.products.column(name)
    empty = [_null_share(column) for column in (before, after)]
    if abs(empty[1] - empty[0]) > EMPTIED:
        what = f"{name} lost its values" if empty[1] > empty[0] else f"{name} got values"
        found = f"{empty[1]:.1%} of the products have no {name}, it was {empty[0]:.1%}"
        lost = empty[1] > empty[0]
        without = [_is_empty(column).to_numpy(zero_copy_only=False) for column in _paired(name, old, new, pairs)]
        shown = without[lost] & ~without[not lost]
        word, share = in_words(name), empty[1] if lost and not empty[0] else abs(empty[1] - empty[0])
        says = of_products(share, f"lost its {word}", f"lost their {word}")
        if not lost:
            says = of_products(share, f"has a {word} now, and had none", f"have a {word} now, and had none")
        yield Finding(
            kind="lost" if lost else "spread",
            about=name,
            what=what,
            says=says,
            found=found,
            value=abs(empty[1] - empty[0]),
            limit=EMPTIED,
            broken=lost,
            examples=_first(pairs.old[shown], pairs.new[shown]),
            shows=name,
        )
    yield from _edits(name, old, new, pairs)
    if _is_number(after.type):
        yield from _number_faults(name, old, new, pairs)
    elif pa.types.is_string(after.type) or pa.types.is_boolean(after.type) or pa.types.is_dictionary(after.type):
        yield from _category_faults(name, old, new, pairs)


def _first(old: np.ndarray, new: np.ndarray) -> tuple[Example, ...]:
    return tuple(zip(old[:EXAMPLES].tolist(), new[:EXAMPLES].tolist(), strict=True))


def edited_shares(old: Night, new: Night, pairs: Pairs) -> dict[str, float]:
    """Of the columns that both nights have with one type, the share of the paired products whose value changed."""
    names = [
        name
        for name in new.columns
        if name in old.columns and old.products.schema.field(name).type == new.products.schema.field(name).type
    ]
    return {name: _edited(name, old, new, pairs)[0] for name in names} if len(pairs.old) else {}


def _paired(name: str, old: Night, new: Night, pairs: Pairs) -> tuple[pa.Array, pa.Array]:
    """The values of a column of the products of both nights, in either."""
    before, after = (
        pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        for column in (
            old.products.column(name).take(pa.array(pairs.old)),
            new.products.column(name).take(pa.array(pairs.new)),
        )
    )
    return before, after


def _edited(name: str, old: Night, new: Night, pairs: Pairs) -> tuple[float, np.ndarray, pa.Array, pa.Array]:
    """The share of pairs that differ in a column, which they are, and their values in either night."""
    before, after = _paired(name, old, new, pairs)
    if pa.types.is_nested(before.type):
        differs = np.array([a != b for a, b in zip(before.to_pylist(), after.to_pylist(), strict=True)], bool)
    else:
        unlike = pc.fill_null(pc.not_equal(before, after), False)
        differs = pc.or_(unlike, pc.xor(pc.is_null(before), pc.is_null(after))).to_numpy(zero_copy_only=False)
    differs = differs.astype(bool)
    mask = pa.array(differs)
    share = float(np.mean(differs)) if len(differs) else 0.0
    return share, np.flatnonzero(differs), before.filter(mask), after.filter(mask)


def _edits(name: str, old: Night, new: Night, pairs: Pairs) -> Iterator[Finding]:
    share, places, before, after = _edited(name, old, new, pairs)
    limit = max(EDITED, 2 * old.edited.get(name, 0.0))
    if share <= limit:
        return
    found = f"{share:.1%} of the products have another {name} than the night before"
    usual = old.edited.get(name)
    found += f" (the night before {usual:.1%})" if usual is not None else ""
    kind, broken = "edits", False
    says = of_products(share, f"has another {in_words(name)}", f"have another {in_words(name)}")
    if _is_number(after.type):
        numbers = [np.asarray(pc.cast(each, pa.float64()).to_numpy(zero_copy_only=False)) for each in (before, after)]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = numbers[1] / numbers[0]
        places = places[np.argsort(~np.isfinite(ratios), kind="stable")]
        ratios = ratios[np.isfinite(ratios)]
        if len(ratios):
            middle = float(np.median(ratios))
            found += f"; the middle one is {middle:.3g} times what it was"
            says += ": zero" if not middle else f": the middle one is {middle:.3g} times what it was"
            if middle and np.allclose(np.quantile(ratios, [0.1, 0.9]), middle, rtol=ALIKE, atol=0.0):
                times = f"a {in_words(name)} that is {middle:.3g} times what it was"
                says = of_products(share, f"has {times}", f"have {times}")
            broken = not 1 / FOLD < middle < FOLD
    elif len(before):
        found += f"; such as {short(before[0])}, now {short(after[0])}"
        if pa.types.is_string(after.type) and not _counts(old.products.column(name)):
            held = set(old.products.column(name).take(pa.array(old.rows)).to_pylist()) - {None}
            if len(held) > 1 and sum(value in held for value in after.to_pylist()) > len(after) / 2:
                word, kind, broken = in_words(name), "mixed", True
                says = of_products(share, f"has the {word} of another product", f"have the {word} of others")
    yield Finding(
        kind=kind,
        about=name,
        what=f"{name} changed",
        says=says,
        found=found,
        value=share,
        limit=limit,
        broken=broken,
        examples=_first(pairs.old[places], pairs.new[places]),
        shows=name,
    )


def _number_faults(name: str, old: Night, new: Night, pairs: Pairs) -> Iterator[Finding]:
    before, after = old.products.column(name), new.products.column(name)
    numbers = [_numbers(column) for column in (before, after)]
    if not all(len(each) for each in numbers):
        return
    distance = largest_gap(*numbers)
    if distance > MOVED:
        middles = [float(np.median(each)) for each in numbers]
        found = f"the median is {middles[1]:,.6g}, it was {middles[0]:,.6g}; {distance:.1%} of the values moved"
        says = f"The middle {in_words(name)} is {middles[1]:,.6g}, it was {middles[0]:,.6g}"
        broken = middles[0] != middles[1] and not 1 / FOLD < middles[1] / (middles[0] or 1e-9) < FOLD
        yield _spread(name, says, found, distance, broken=broken, examples=_first(pairs.old, pairs.new))


def _spread(
    name: str, says: str, found: str, distance: float, *, broken: bool = False, examples: tuple[Example, ...] = ()
) -> Finding:
    what = f"{name} is spread otherwise"
    return Finding(
        kind="spread",
        about=name,
        what=what,
        says=says,
        found=found,
        value=distance,
        limit=MOVED,
        broken=broken,
        examples=examples,
        shows=name,
    )


def _category_faults(name: str, old: Night, new: Night, pairs: Pairs) -> Iterator[Finding]:
    before, after = old.products.column(name), new.products.column(name)
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
        found = f"{name} {short(value)} has {left:,} products, it had {rows:,}{more}"
        moved_to, examples = _where_a_category_went(name, value, old, new, pairs)
        word, others = in_words(name), len(shrunk) - 1
        all_of = f"{'All' if not left else f'{rows - left:,} of the'} {rows:,} products"
        if moved_to is None:
            says = f"{all_of} of {word} {short(value)} are gone"
            says += f", and most of {others:,} more" if others else ""
        elif others:
            says = f"{others + 1:,} values of {word} are gone, such as {short(value)}: it is {short(moved_to)} now"
        else:
            says = f"{all_of} whose {word} was {short(value)} have {short(moved_to)} now"
        yield Finding(
            kind="category" if moved_to is None else "edits",
            about=name,
            what=f"a {name} is gone",
            says=says,
            found=found,
            value=2.0 - left / rows,
            limit=1.0 - CATEGORY_LEFT,
            broken=True,
            size=sum(rows - left for _, rows, left in shrunk),
            examples=examples,
            shows=name,
        )
    distance = distribution_distance(*counts)
    if distance > MOVED:
        shares = [{value: rows / sum(each.values()) for value, rows in each.items()} for each in counts]
        moved = max(shares[0].keys() | shares[1].keys(), key=lambda v: abs(shares[1].get(v, 0.0) - shares[0].get(v, 0)))
        was, now = (each.get(moved, 0.0) for each in shares)
        found = f"{distance:.1%} of the products moved; most {short(moved)}: {now:.1%}, it was {was:.1%}"
        says = f"{now:.1%} of the products have the {in_words(name)} {short(moved)}, it was {was:.1%}"
        yield _spread(name, says, found, distance)


def _where_a_category_went(
    name: str, value: object, old: Night, new: Night, pairs: Pairs
) -> tuple[object | None, tuple[Example, ...]]:
    """The category that most products of another one have now, None where they are not there any more; and some."""
    held = np.array([each == value for each in old.products.column(name).take(pa.array(old.rows)).to_pylist()], bool)
    were = old.rows[held]
    kept = np.isin(pairs.old, were)
    if kept.sum() > len(were) / 2:
        now = Counter(new.products.column(name).take(pa.array(pairs.new[kept])).to_pylist())
        return now.most_common(1)[0][0] or "none", _first(pairs.old[kept], pairs.new[kept])
    gone = were[~np.isin(were, pairs.old)][:EXAMPLES].tolist()
    return None, tuple((row, None) for row in gone)


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


def _is_empty(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Which values are null or empty texts."""
    if pa.types.is_string(column.type):
        return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
    return pc.is_null(column)


def _null_share(column: pa.ChunkedArray) -> float:
    """Share of null or empty texts, 0 of a column without rows."""
    return (pc.sum(_is_empty(column)).as_py() or 0) / len(column) if len(column) else 0.0


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
