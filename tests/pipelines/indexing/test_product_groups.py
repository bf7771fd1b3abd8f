"""Numbering by groups gives what one worker gives, in parts; each step may run twice, also at the same time."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index_builder import IndexReader, storage
from pipelines.catalog.dead_letters import DeadLetter, Reason, read_dead_letters
from pipelines.indexing import product_groups
from pipelines.indexing.product_groups import (
    ShardGroups,
    find_group_repeats,
    join_groups,
    list_group,
    write_group_part,
)
from pipelines.indexing.product_table import Numbering, number_products
from pipelines.indexing.shard_files import (
    SUMMARIES,
    ShardFiles,
    ShardSummary,
    ShardTask,
    StandingRows,
    read_summaries,
)
from tests.counting_store import counted_store, counting
from tests.pipelines.indexing.job import index_files, product, run_job, version_files, write_catalog
from tests.pipelines.indexing.test_product_table import write_shard

SUMMARY = {"rows_in": 40, "by_reason": {"rejected: x": 1}, "cosines": [0.5], "seconds": {"wall": 1.5}}


def shards(folder: Path, count: int) -> list[ShardFiles]:
    """Shards of 40 products, a third of them with ids that occur elsewhere too, in another place than the first's."""
    random = np.random.default_rng(3)
    made = []
    for number in range(count):
        ids = [f"p{value}" for value in random.integers(0, 40 * count, 40)] if number != 2 else []
        price = pa.array(np.arange(len(ids)) + (0.5 if number % 3 == 1 else 0))
        letter = DeadLetter(f"bad-{number}", "rejected", "validate", Reason.empty_product, "x")
        made.append(write_shard(str(folder), f"k{number}", ids, {"price": price}, [letter]))
    return made


def groups_of(files: list[ShardFiles], monkeypatch: pytest.MonkeyPatch, size: int) -> ShardGroups:
    monkeypatch.setattr(product_groups, "SHARDS_OF_GROUP", size)
    tasks = [ShardTask(position=number, files=each, rows=StandingRows(40)) for number, each in enumerate(files)]
    return ShardGroups.of_plan(tasks)


def number_by_groups(files: list[ShardFiles], groups: ShardGroups, out: str, *, times: int = 1) -> Numbering:
    """As the pipeline runs it; the work of each step comes in no order, and `times` at the same time."""
    random = np.random.default_rng(5)
    by_group: dict[int, list[ShardSummary]] = {}
    for position in random.permutation(len(files)).tolist():
        summary = ShardSummary(position=position, key=files[position].key, products=position, **SUMMARY)
        by_group.setdefault(groups.group_of(position), []).append(summary)
    order = random.permutation(len(by_group)).tolist()
    with ThreadPoolExecutor(4) as pool:

        def each(step):
            found = list(pool.map(step, [number for number in order for _ in range(times)]))
            assert all(found[number] == found[number - number % times] for number in range(len(found)))
            return found[::times]

        listed = each(lambda number: list_group(groups, number, by_group[number], files[0].folder, out))
        repeats = each(lambda number: find_group_repeats(listed, number, out))
        written = each(lambda number: write_group_part(listed, repeats, number, out))
        joined = list(pool.map(lambda _: join_groups(listed, written, out), range(times)))
    assert all(each == joined[0] for each in joined)
    return joined[0][0]


def products_of(numbering: Numbering) -> list[pa.Table]:
    tables = []
    for part in numbering.products:
        with pa.memory_map(part.uri) as source:
            tables.append(pa.ipc.open_file(source).read_all())
        assert part.rows == len(tables[-1])
        assert part.first_row == sum(map(len, tables[:-1]))
    return tables


@pytest.mark.parametrize("size", [1, 3, 4])
def test_groups_number_as_one_worker_does(tmp_path, monkeypatch, size):
    files = shards(tmp_path / "shards", 8)
    whole = number_products(files, str(tmp_path / "whole"))
    parted = number_by_groups(files, groups_of(files, monkeypatch, size), str(tmp_path / "parts"))
    assert len(parted.products) == -(-8 // size)
    assert 40 < whole.duplicates == parted.duplicates
    names = ("shards", "shard_keys", "duplicates_of_shards", "rows", "product_count", "shard_count")
    for name in names:
        assert getattr(parted, name) == getattr(whole, name), name
    assert pa.concat_tables(products_of(parted)) == products_of(whole)[0]
    assert read_dead_letters(parted.rejected_uri) == read_dead_letters(whole.rejected_uri)
    summaries = read_summaries(str(tmp_path / "parts" / f"{SUMMARIES}.parquet"))
    assert summaries == [
        ShardSummary(position=number, key=f"k{number}", products=number, **SUMMARY) for number in range(8)
    ]


def test_each_step_may_run_twice_at_the_same_time(tmp_path, monkeypatch):
    files = shards(tmp_path / "shards", 6)
    groups = groups_of(files, monkeypatch, 2)

    def hashes(out: Path) -> dict[str, str]:
        return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in storage.list_names(str(out))}

    once = number_by_groups(files, groups, str(tmp_path / "once"))
    number_by_groups(files, groups, str(tmp_path / "thrice"), times=3)
    assert hashes(tmp_path / "once") == hashes(tmp_path / "thrice")

    def stamps() -> list[int]:
        return [path.stat().st_mtime_ns for path in sorted((tmp_path / "once").iterdir())]

    before = stamps()
    assert number_by_groups(files, groups, str(tmp_path / "once")) == once
    assert stamps() == before, "what stands is taken"


def test_numbering_asks_five_requests_a_shard(monkeypatch):
    """By one worker or by groups: ids and the columns' schema, then ids, columns and letters."""

    def asked(count: int, size: int) -> int:
        with counted_store() as store:
            files = [
                write_shard(f"{store}/shards", f"k{number}", [f"p{number}", f"q{number}"], {"a": pa.array([1, 2])})
                for number in range(count)
            ]
            with counting() as found:
                if size:
                    number_by_groups(files, groups_of(files, monkeypatch, size), f"{store}/out")
                else:
                    number_products(files, f"{store}/out")
            return found.of("read", "head", "list", below="shards")

    assert asked(9, 0) - asked(3, 0) == asked(9, 3) - asked(3, 1) == 6 * 5


def test_groups_are_cut_by_shards_and_by_rows(monkeypatch):
    monkeypatch.setattr(product_groups, "SHARDS_OF_GROUP", 4)
    monkeypatch.setattr(product_groups, "ROWS_OF_GROUP", 100)
    rows = [10, 10, 10, 10, 10, 60, 60, 200, 5, 95]
    files = ShardFiles(folder="f", key="k")
    groups = ShardGroups.of_plan(
        ShardTask(position=position, files=files, rows=StandingRows(count)) for position, count in enumerate(rows)
    )
    assert groups.starts == (0, 4, 6, 7, 8)
    assert [groups.group_of(position) for position in range(10)] == [0, 0, 0, 0, 1, 1, 2, 3, 4, 4]
    assert [list(range(10))[groups.shards_of(number)] for number in range(5)] == [
        *([0, 1, 2, 3], [4, 5], [6], [7]),
        [8, 9],
    ]
    assert ShardGroups.of_plan([]).starts == (0,)


def test_a_night_by_groups_makes_the_same_index(tmp_path, monkeypatch):
    """Three groups are numbered, searched for what recall is measured by, and published with products in parts."""
    rows = [product(number, image=None) for number in range(118)] + [product(3, image=None), product(50, image=None)]
    write_catalog(tmp_path / "catalog", rows)
    overrides = ("--catalog.image_field", "null", "--catalog.shard_rows", "20")
    whole, _ = run_job(tmp_path, *overrides)
    monkeypatch.setattr(product_groups, "SHARDS_OF_GROUP", 2)
    elsewhere = ("--work.uri", str(tmp_path / "work2"), "--index.uri", str(tmp_path / "index2"))
    parted, record = run_job(tmp_path, *overrides, *elsewhere)
    assert whole.status == parted.status == "published"
    assert index_files(parted) == index_files(whole)
    assert replace(parted.totals, precision_loss={}) == replace(whole.totals, precision_loss={})
    assert {name for name in record.reports("sample") if name.startswith("search")} == {
        f"search-{number:05d}" for number in range(3)
    }
    readers = [IndexReader.open(str(tmp_path / name)) for name in ("index", "index2")]
    assert readers[0].products.to_pydict() == readers[1].products.to_pydict()
    assert {name for name in version_files(parted) if name.startswith("products")} == {
        f"products-{number:05d}-of-00003.arrow" for number in range(3)
    }
    again, record = run_job(tmp_path, *overrides, *elsewhere)
    assert (again.status, again.totals.carried_over) == ("unchanged", 118)
