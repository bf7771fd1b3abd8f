"""Rows of any schema and any values, in every format: each row is a product or a letter, or the file is refused.

    python -m tests.reliability.rows --trials 10000 --seed 16

hypothesis draws the schema and the values (nested types, nulls, empty and huge numbers, texts of any characters), a
trial writes them as a file of one format and reads it as a run does. Nothing is lost and nothing counts twice.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.plan import catalog_schema, plan_catalog
from pipelines.catalog.products import to_products
from pipelines.catalog.reading import read_shard
from tests.reliability.trials import Outcomes, run_apart, run_command

ALLOWED = frozenset({"counted", "refused"})
AT_A_TIME = 50
"""Examples of one draw: what hypothesis starts with are small ones."""

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_IDS = st.one_of(_TEXTS, st.sampled_from(["", " ", "1", "1.0", "0001", "null", "N/A", "é", "e\u0301", "a\0b"]))
_LEAVES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.string(), _TEXTS),
    (pa.large_string(), _TEXTS),
    (pa.string_view(), _TEXTS),
    (pa.binary(), st.binary(max_size=8)),
    (pa.bool_(), st.booleans()),
    (pa.int8(), st.integers(-128, 127)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float16(), st.floats(width=16)),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats()),
    (pa.decimal128(38, 4), st.decimals(min_value=-(10**20), max_value=10**20, places=4)),
    (pa.date32(), st.dates()),
    (pa.timestamp("us"), st.datetimes()),
    (pa.timestamp("ns", "UTC"), st.integers(-(2**62), 2**62)),
    (pa.time64("us"), st.times()),
    (pa.duration("s"), st.integers(-(2**31), 2**31)),
    (pa.null(), st.none()),
    (pa.dictionary(pa.int8(), pa.string()), _TEXTS),
]
Column = tuple[pa.DataType, st.SearchStrategy[Any]]


def _nested(inner: st.SearchStrategy[Column]) -> st.SearchStrategy[Column]:
    def lists(of: Column) -> Column:
        return pa.list_(of[0]), st.lists(st.none() | of[1], max_size=3)

    def structs(of: tuple[Column, Column]) -> Column:
        kinds = [pa.field("a", of[0][0]), pa.field("b", of[1][0])]
        return pa.struct(kinds), st.fixed_dictionaries({"a": st.none() | of[0][1], "b": st.none() | of[1][1]})

    def maps(of: Column) -> Column:
        pairs = st.lists(st.tuples(_TEXTS, st.none() | of[1]), max_size=3)
        return pa.map_(pa.string(), of[0]), pairs

    return st.one_of(inner.map(lists), st.tuples(inner, inner).map(structs), inner.map(maps))


_COLUMNS = st.recursive(st.sampled_from(_LEAVES), _nested, max_leaves=3)


@dataclass(frozen=True)
class Rows:
    """A drawn catalog: its rows, and which columns are shown."""

    table: pa.Table
    shown: tuple[str, ...]


@st.composite
def any_rows(draw: st.DrawFn) -> Rows:
    """Ids and titles of any kind, and up to three columns of any type; at most eight rows."""
    count = draw(st.integers(1, 8))
    columns: dict[str, pa.Array] = {}
    named = draw(st.lists(_COLUMNS, max_size=3))
    given: list[tuple[str, Column]] = [(f"c{number}", column) for number, column in enumerate(named)]
    title = draw(st.sampled_from([*_LEAVES, (pa.list_(pa.string()), st.lists(st.none() | _TEXTS, max_size=3))]))
    for name, (kind, values) in [("product_id", (pa.string(), _IDS)), ("title", title), *given]:
        drawn = draw(st.lists(st.none() | values, min_size=count, max_size=count))
        columns[name] = pa.array(drawn, kind)
    return Rows(pa.table(columns), tuple(name for name, _ in given))


def _arrow(table: pa.Table, *, stream: bool = False) -> bytes:
    sink = io.BytesIO()
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return sink.getvalue()


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    views = [field.name for field in table.schema if "view" in str(field.type)]  # Parquet has none
    pq.write_table(table.drop_columns(views) if "title" not in views else _plain(table), sink, row_group_size=3)
    return sink.getvalue()


def _plain(table: pa.Table) -> pa.Table:
    names = [field.name for field in table.schema if "view" not in str(field.type) or field.name == "title"]
    return table.select(names).set_column(1, "title", table["title"].cast(pa.string()))


def _words(value: Any) -> Any:
    """A value as a shop's export to JSON would have it."""
    if isinstance(value, dict):
        return {key: _words(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_words(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _jsonl(table: pa.Table) -> bytes:
    return "".join(json.dumps(_words(row)) + "\n" for row in table.to_pylist()).encode()


def _json(table: pa.Table) -> bytes:
    return json.dumps({"products": [_words(row) for row in table.to_pylist()]}, ensure_ascii=False).encode()


def _csv(table: pa.Table) -> bytes:
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(table.column_names)
    for row in table.to_pylist():
        # A line break within a value is a setting (`csv_newlines_in_values`), and no matter of this trial.
        cells = ("" if value is None else " ".join(str(_words(value)).split()) for value in row.values())
        writer.writerow([cell.replace("\0", "") for cell in cells])
    return sink.getvalue().encode()


FORMATS: dict[str, Callable[[pa.Table], bytes]] = {
    "arrow": _arrow,
    "stream.arrow": lambda table: _arrow(table, stream=True),
    "parquet": _parquet,
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
}


def outcome(rows: Rows, name: str, folder: Path) -> str:
    """What comes of the rows as a file of one format."""
    path, spool = folder / f"a.{name}", folder / "spool"
    try:
        data = FORMATS[name](rows.table)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return "counted: the format has no such type"
    path.write_bytes(data)
    views = [each for each in rows.shown if name == "parquet" and "view" in str(rows.table.schema.field(each).type)]
    config = CatalogConfig(uri=str(path), display_fields=tuple(each for each in rows.shown if each not in views))
    try:
        catalog_schema(config)
        products = letters = 0
        for shard in plan_catalog(config, spool_uri=str(spool)).shards:
            for batch in read_shard(shard, config, batch_rows=4):
                made = to_products(batch, config)
                products, letters = products + len(made.product_ids), letters + len(made.dead_letters)
                made.product_ids.to_pylist(), made.texts.to_pylist(), made.columns.to_pylist()
                made.columns.validate(full=True)
    except CatalogError as error:
        told = path.name in str(error) or "catalog." in str(error)
        return f"refused: {error}" if told else f"unnamed: {error}"
    finally:
        shutil.rmtree(spool, ignore_errors=True)
    if products + letters != rows.table.num_rows:
        return f"lost: {rows.table.num_rows} rows, {products} products and {letters} letters"
    return "counted"


def run(trials: int, seed: int) -> Outcomes:
    """So many examples of each format."""
    logging.disable()
    outcomes = Outcomes(ALLOWED)
    for name in FORMATS:
        with tempfile.TemporaryDirectory(prefix="shelfmark-reliability-") as folder:

            def attempt(turn: int, name: str = name, folder: str = folder) -> str:
                found: list[str] = []

                @hypothesis.seed(f"{seed} {name} {turn}")
                @hypothesis.settings(
                    max_examples=AT_A_TIME,
                    database=None,
                    deadline=None,
                    phases=[hypothesis.Phase.generate],
                    suppress_health_check=list(hypothesis.HealthCheck),
                )
                @hypothesis.given(any_rows())
                def one(rows: Rows) -> None:
                    try:
                        found.append(outcome(rows, name, Path(folder)))
                    except Exception as error:  # noqa: BLE001 - it is what the trial came to
                        found.append(f"error: {type(error).__name__}: {error}: {rows.table.to_pydict()}"[:600])

                one()
                return json.dumps(found)

            for turn, told in run_apart(range(-(-trials // AT_A_TIME)), attempt, seconds=600.0):
                for each in json.loads(told) if told.startswith("[") else [told]:
                    outcomes.add(name, turn, each)
    return outcomes


if __name__ == "__main__":
    run_command("Rows of any schema", 10_000, run)
