"""The rows of each value of a column, written once a version, so that a filter need not look at every product.

A column with few different values (a kind, a brand, whether it is in stock) gets a roaring bitmap of rows for each of
them. A condition on such a column is then asked of its values, some dozens, and the bitmaps of those for which it is
true are united. Of 1,000,000 products `kind in (five)` takes 2 ms so, and 50 on the column itself; columns of numbers
with many values are compared as they are, in 4 ms: sorting them, or zone maps, would save nothing.

Legend: `N` rows, `V` different values of a column.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pyroaring import BitMap

from index_builder.errors import VerificationError

MOST_VALUES = 1000
"""A column with more different values than that has no bitmaps."""
ROWS_PER_VALUE = 8
"""Nor has one whose values occur less often on average, as titles do; up to 16 values are always kept."""
FEW_VALUES = 16
SCHEMA = pa.schema(
    [
        pa.field("column", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # the first row with that value: the value itself stands there
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("bitmap", pa.large_binary(), nullable=False),  # roaring's portable format
        pa.field("checksum", pa.uint64(), nullable=False),  # xxh3 of the bitmap
    ]
)
_ROWS_KEY = b"shelfmark.rows"


def write_filter_bitmaps(products: pa.Table, path: str) -> None:
    """Writes the bitmaps of all columns that have few different values to a local path; the same table, the same bytes.

    Null is a value too. Columns of lists and of nested values have none. Memory: 10 bytes a row.
    """
    schema = SCHEMA.with_metadata({_ROWS_KEY: str(products.num_rows).encode()})
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for name in products.column_names:
            if name == "product_id" or not _is_plain(products.schema.field(name).type):
                continue
            numbers = _value_numbers(products.column(name))
            if numbers is not None and len(numbers):
                writer.write_batch(_bitmaps(name, numbers))


def _is_plain(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_integer)
    return any(test(kind) for test in (*tests, pa.types.is_floating, pa.types.is_decimal, pa.types.is_temporal))


def _value_numbers(column: pa.ChunkedArray) -> np.ndarray | None:
    """For each row the number of its value, in the order of their first rows: uint16 [N]; None for too many values."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    known = pa.array([], column.type)
    found = []
    for chunk in column.chunks:
        encoded = chunk.dictionary_encode(null_encoding="encode")
        places = pc.index_in(encoded.dictionary, value_set=known)
        fresh = encoded.dictionary.filter(places.is_null())
        numbers = places.to_numpy(zero_copy_only=False)
        numbers[places.is_null().to_numpy(zero_copy_only=False)] = len(known) + np.arange(len(fresh))
        known = pa.concat_arrays([known, fresh])
        if len(known) > MOST_VALUES:
            return None
        found.append(numbers.astype(np.uint16)[encoded.indices.to_numpy()])
    if len(known) > max(FEW_VALUES, len(column) // ROWS_PER_VALUE):
        return None
    return np.concatenate(found) if found else np.empty(0, np.uint16)


def _bitmaps(name: str, numbers: np.ndarray) -> pa.RecordBatch:
    order = np.argsort(numbers, kind="stable").astype(np.uint32)
    counts = np.bincount(numbers)
    stops = np.cumsum(counts)
    written = []
    for start, stop in zip((stops - counts).tolist(), stops.tolist(), strict=True):
        bitmap = BitMap(order[start:stop])
        bitmap.run_optimize()
        written.append(bitmap.serialize())
    columns = [
        pa.array([name] * len(written)),
        pa.array(order[stops - counts].astype(np.int64)),
        pa.array(counts.astype(np.int64)),
        pa.array(written, pa.large_binary()),
        pa.array([xxhash.xxh3_64_intdigest(each) for each in written], pa.uint64()),
    ]
    return pa.record_batch(columns, schema=SCHEMA)


class ValueBitmaps:
    """The bitmaps of one column. Threads may share it.

    Attributes:
        values: One column with each of its values once, null too: [V].
    """

    def __init__(self, where: str, rows: int, values: pa.RecordBatch, bitmaps: pa.RecordBatch) -> None:
        self.values = values
        self._where, self._rows, self._bitmaps = where, rows, bitmaps
        self._counts = bitmaps.column("rows").to_numpy()

    def rows_where(self, truth: pa.BooleanArray) -> pa.BooleanArray:
        """What is true, false or null of the values [V], of the rows that have them: [N].

        Raises:
            VerificationError: a bitmap is not what was written.
        """
        unknown = truth.is_null().to_numpy(zero_copy_only=False)
        mask = self._mask(truth.fill_null(False).to_numpy(zero_copy_only=False))
        return pa.array(mask, mask=self._mask(unknown)) if unknown.any() else pa.array(mask)

    def _mask(self, chosen: np.ndarray) -> np.ndarray:
        """bool [N]: whether a row's value is one of those chosen, bool [V]."""
        # Every row has one value, so what is left out may be united instead.
        most = bool(2 * self._counts[chosen].sum() > self._rows)
        mask = np.full(self._rows, most)
        numbers = np.flatnonzero(chosen != most).tolist()
        if numbers:
            mask[np.frombuffer(BitMap.union(*map(self._bitmap, numbers)).to_array(), np.uint32)] = not most
        return mask

    def _bitmap(self, number: int) -> BitMap:
        stored = self._bitmaps.column("bitmap")[number].as_buffer()
        if xxhash.xxh3_64_intdigest(stored) != self._bitmaps.column("checksum")[number].as_py():
            name, row = (self._bitmaps.column(key)[number].as_py() for key in ("column", "row"))
            fault = f"expected the bitmap that was written for {name!r} as in row {row}, found another"
            raise VerificationError(f"{self._where}: {fault}; the file is damaged")
        return BitMap.deserialize(stored)


class FilterBitmaps:
    """The columns of a version that have bitmaps: what `write_filter_bitmaps` wrote, memory-mapped.

    VerificationError for a file that is none, or of another number of rows than the products.
    """

    def __init__(self, path: str, products: pa.Table) -> None:
        try:
            reader = pa.ipc.open_file(pa.memory_map(path))
            if reader.schema.names != SCHEMA.names:
                raise VerificationError(f"{path}: expected columns {SCHEMA.names}, found {reader.schema.names}")
            rows = (reader.schema.metadata or {}).get(_ROWS_KEY, b"").decode()
            if rows != str(products.num_rows):
                raise VerificationError(f"{path}: expected bitmaps of {products.num_rows} rows, found {rows or 'none'}")
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            self._batches = {batch.column("column")[0].as_py(): batch for batch in batches}
        except (pa.ArrowInvalid, pa.ArrowIndexError, UnicodeDecodeError, OSError) as error:
            raise VerificationError(f"{path}: expected the bitmaps of filter columns, found no such file: {error}") from error
        self._path, self._products = path, products

    @cached_property
    def columns(self) -> dict[str, ValueBitmaps]:
        """By the name of the column."""
        return dict(self._opened())

    def _opened(self) -> Iterator[tuple[str, ValueBitmaps]]:
        for name, batch in self._batches.items():
            rows = batch.column("row")
            total = pc.sum(batch.column("rows")).as_py()
            if name not in self._products.column_names or total != self._products.num_rows:
                fault = f"expected {name!r} of {self._products.num_rows} products, found it of {total}"
                raise VerificationError(f"{self._path}: {fault}")
            values = self._products.select([name]).take(rows).combine_chunks().to_batches()
            yield name, ValueBitmaps(self._path, self._products.num_rows, values[0], batch)
