"""Compares two published versions: products that came, went or changed, and how the index was made.

Ids are compared by digest, sorted in buckets on disk, so memory does not grow with the catalog.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index_builder import IndexReader, Manifest, VersionNotFoundError, marks, publish
from index_builder.manifest import IMAGE_COLUMNS
from pipelines.catalog.previous_version import ExternalSort, add_ids, first_rows, repeats_id

EXAMPLES = 5
_OLD, _NEW = 0, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionDiff:
    """Two versions compared.

    Attributes:
        added, removed: Products that only the new, only the old version has.
        kept: Products of both; `edited` of them have another value in some column.
        changed: Kept products by display or filter column whose value differs; columns without a change are left out.
            Which images a product has vectors of is compared over all its rows.
        columns_added, columns_removed: Columns that only one of the versions has, or that changed their type.
        added_examples, removed_examples: A few ids from all over them, in the order of their version.
    """

    old: Manifest
    new: Manifest
    added: int
    removed: int
    kept: int
    changed: dict[str, int]
    columns_added: tuple[str, ...]
    columns_removed: tuple[str, ...]
    added_examples: tuple[str, ...]
    removed_examples: tuple[str, ...]
    edited: int = 0


def compare_versions(index_uri: str, old: str, new: str) -> VersionDiff:
    """Compares two versions of an index; raises VersionNotFoundError where there is no such version."""
    readers = [IndexReader.open(index_uri, version) for version in (old, new)]
    return compare_products([reader.manifest for reader in readers], [reader.products for reader in readers])


def compare_products(manifests: Sequence[Manifest], tables: list[pa.Table]) -> VersionDiff:
    """The same for the manifests and product tables of two versions, the old one first."""
    fields = [{(field.name, field.type) for field in table.schema if field.name != "product_id"} for table in tables]
    shared = sorted(name for name, _ in fields[_OLD] & fields[_NEW])
    # With a vector an image a product has several rows, side by side.
    several = [bool(manifest.catalog.vectors) for manifest in manifests]
    begins = [
        first_rows(table.column("product_id")) if own else np.empty(0, np.int64)
        for table, own in zip(tables, several, strict=True)
    ]
    kept, edited, changed = 0, 0, dict.fromkeys(shared, 0)
    singles: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    with ExternalSort(sum(table.num_rows for table in tables)) as sorting:
        for side, table in enumerate(tables):
            ids = table.column("product_id")
            if several[side]:
                add_ids(sorting, ids.take(pa.array(begins[side])), side, begins[side])
            else:
                add_ids(sorting, ids, side)
        for records in sorting.sorted_buckets():
            pairs, alone = _paired(records)
            kept += len(pairs[_OLD])
            any_differs = np.zeros(len(pairs[_OLD]), bool)
            for name in shared:
                if name in IMAGE_COLUMNS and all(several):
                    changed[name] += _count_changed_rows(tables, pairs, begins, name)
                else:
                    differs = _differs(tables, pairs, name)
                    changed[name] += int(np.count_nonzero(differs))
                    any_differs |= differs
            edited += int(np.count_nonzero(any_differs))
            for side in (_OLD, _NEW):
                singles[side].append(alone[side])
    rows = [np.sort(np.concatenate([np.empty(0, np.int64), *found])) for found in singles]
    examples = [_ids_at(table, _spread(found)) for table, found in zip(tables, rows, strict=True)]
    return VersionDiff(
        old=manifests[_OLD],
        new=manifests[_NEW],
        added=len(rows[_NEW]),
        removed=len(rows[_OLD]),
        kept=kept,
        changed={name: count for name, count in changed.items() if count},
        columns_added=tuple(sorted(name for name, _ in fields[_NEW] - fields[_OLD])),
        columns_removed=tuple(sorted(name for name, _ in fields[_OLD] - fields[_NEW])),
        added_examples=examples[_NEW],
        removed_examples=examples[_OLD],
        edited=edited,
    )


def version_before(index_uri: str, version: str) -> str:
    """The newest complete version before this one whose gates all held, and that nobody went back from."""
    decisions = marks.read_decisions(index_uri)
    for name in reversed([name for name in publish.list_versions(index_uri) if name < version]):
        if marks.may_be_published(publish.read_manifest(index_uri, name), decisions):
            return name
    raise VersionNotFoundError(
        f"{index_uri}: no version before {version} that passed its gates and was not rolled back"
    )


def newest_version(index_uri: str) -> str:
    """The newest complete version, published or not; VersionNotFoundError where there is none."""
    return complete_versions(index_uri)[-1]


def complete_versions(index_uri: str) -> tuple[str, ...]:
    """Ids of all complete versions, oldest first; VersionNotFoundError where there is none."""
    versions = publish.list_versions(index_uri)
    if not versions:
        raise VersionNotFoundError(
            f"--index {index_uri}: expected a folder with published versions (index.uri), found none; check the "
            "address, or make a version first (python -m pipelines.embed_catalog)"
        )
    return versions


def _paired(records: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Rows (old, new) of products that both versions have, and the rows of those that one alone has, int64.

    An id occurs once in a version, and old sorts before new, so a product of both is two records side by side.
    """
    first = np.flatnonzero(repeats_id(records)) - 1
    alone = np.ones(len(records), bool)
    alone[first] = alone[first + 1] = False
    rows = records["row"].astype(np.int64)
    pairs = (rows[first], rows[first + 1])
    return pairs, (rows[alone & (records["shard"] == _OLD)], rows[alone & (records["shard"] == _NEW)])


def _count_changed_rows(
    tables: list[pa.Table], pairs: tuple[np.ndarray, np.ndarray], begins: Sequence[np.ndarray], name: str
) -> int:
    """Products of both versions whose values of a column, of all their rows, differ.

    Args:
        pairs: The rows that the products begin with, in either version.
        begins: Those of all products of either version, ascending.
    """
    counts = []
    for table, rows, own in zip(tables, pairs, begins, strict=True):
        counts.append(np.diff(own, append=table.num_rows)[np.searchsorted(own, rows)])
    alike = np.flatnonzero(counts[_OLD] == counts[_NEW])
    if not len(alike):
        return len(counts[_OLD])
    sizes = counts[_OLD][alike]
    starts = np.cumsum(sizes) - sizes
    behind_first = np.arange(sizes.sum()) - np.repeat(starts, sizes)
    old, new = (np.repeat(rows[alike], sizes) + behind_first for rows in pairs)
    differs = np.logical_or.reduceat(_differs(tables, (old, new), name), starts)
    return len(counts[_OLD]) - len(alike) + int(np.count_nonzero(differs))


def _differs(tables: list[pa.Table], pairs: tuple[np.ndarray, np.ndarray], name: str) -> np.ndarray:
    """Which pairs of rows have another value of a column, bool; null and a value differ, null and null do not."""
    old, new = (
        table.column(name).take(pa.array(rows)).combine_chunks() for table, rows in zip(tables, pairs, strict=True)
    )
    if pa.types.is_nested(old.type):  # Arrow compares no nested values
        different = (before != after for before, after in zip(old.to_pylist(), new.to_pylist(), strict=True))
        return np.fromiter(different, bool, len(old))
    both = pc.fill_null(pc.not_equal(old, new), False)
    differs = pc.or_(both, pc.xor(pc.is_null(old), pc.is_null(new)))
    return differs.to_numpy(zero_copy_only=False).astype(bool)


def _spread(rows: np.ndarray) -> np.ndarray:
    """Some of the rows from all over them: the first ones alone may all be of one kind."""
    count = min(EXAMPLES, len(rows))
    return rows[np.arange(count) * len(rows) // max(1, count)]


def _ids_at(table: pa.Table, rows: np.ndarray) -> tuple[str, ...]:
    return tuple(table.column("product_id").take(pa.array(rows)).to_pylist())
