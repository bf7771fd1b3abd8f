"""The rows of each value of a column, written once a version, so that a filter need not look at every product.

A column with few different values (a kind, a brand, whether it is in stock) gets a roaring bitmap of rows for each of
them. A condition on such a column is then asked of its values, some dozens, and the bitmaps of those for which it is
true are united. Of 1,000,000 products `kind in (five)` takes 2 ms so, and 50 on the column itself; columns of numbers
with many values are compared as they are, in 4 ms: sorting them, or zone maps, would save nothing.

Legend: `N` rows, `V` different values of a column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pyroaring import BitMap

from index_builder import storage
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


def write_filter_bitmaps(products_uri: str, out_uri: str) -> str:
    """Writes the bitmaps of all columns of a `products.arrow` that have few different values; the same table gives the
    same bytes. Does nothing if they stand already. Gives the file's URI.

    Null is a value too. Columns of lists and of nested values have none. Memory: 10 bytes a row.
    """

    def make(path: str) -> None:
        with storage.localized(products_uri) as source:
            products = pa.ipc.open_file(pa.memory_map(source)).read_all()
        schema = SCHEMA.with_metadata({_ROWS_KEY: str(products.num_rows).encode()})
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for field in products.schema:
                numbers = _value_numbers(products.column(field.name)) if field.name != "product_id" else None
                if numbers is not None and len(numbers):
                    writer.write_batch(_bitmaps(field.name, numbers))

    inputs = [storage.sha256_file(products_uri), MOST_VALUES, ROWS_PER_VALUE, FEW_VALUES]
    return storage.artifact(out_uri, inputs, make).uri


def _is_plain(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_integer)
    return any(
        test(kind)
        for test in (*tests, pa.types.is_float32, pa.types.is_float64, pa.types.is_decimal, pa.types.is_temporal)
    )


def _value_numbers(column: pa.ChunkedArray) -> np.ndarray | None:
    """For each row the number of its value, in the order of their first rows: uint16 [N]; None for too many values, or
    values of a kind that is not told apart here.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not _is_plain(column.type):
        return None
    known = pa.array([], column.type)
    found = []
    for chunk in column.chunks:
        encoded = chunk.dictionary_encode(null_encoding="encode")
        places = pc.index_in(encoded.dictionary, value_set=known)
        new = places.is_null().to_numpy(zero_copy_only=False)
        numbers = places.fill_null(0).to_numpy().astype(np.uint16)
        numbers[new] = len(known) + np.arange(np.count_nonzero(new))
        known = pa.concat_arrays([known, encoded.dictionary.filter(pa.array(new))])
        if len(known) > MOST_VALUES:
            return None
        found.append(numbers[encoded.indices.to_numpy()])
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
        """Bool [N]: whether a row's value is one of those chosen, bool [V]."""
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
        return BitMap.deserialize(stored.to_pybytes())


class FilterBitmaps(Mapping[str, ValueBitmaps]):
    """The columns of a version that have bitmaps, by name: the file is memory-mapped. Threads may share it.

    VerificationError for a file that is none, or not of these products; for a column, when it is used first.
    """

    def __init__(self, path: str, products: pa.Table, take: Callable[[np.ndarray, str], pa.Array]) -> None:
        """Args: take: gives the values of some rows, int64 [n], of a column of the products."""
        try:
            reader = pa.ipc.open_file(pa.memory_map(path))
            rows = (reader.schema.metadata or {}).get(_ROWS_KEY, b"").decode("latin-1")
            if reader.schema.names != SCHEMA.names or rows != str(products.num_rows):
                expected = f"{SCHEMA.names} of {products.num_rows} rows"
                raise VerificationError(
                    f"{path}: expected {expected}, found {reader.schema.names} of {rows or 'no'} rows"
                )
            batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
            self._batches = {batch.column("column")[0].as_py(): batch for batch in batches}
        except (pa.ArrowException, OSError) as error:
            raise VerificationError(f"{path}: expected the bitmaps of filter columns, found {error}") from error
        if unknown := self._batches.keys() - set(products.column_names):
            raise VerificationError(f"{path}: expected columns of the products, found {sorted(map(str, unknown))}")
        self._path, self._rows, self._take = path, products.num_rows, take
        self._opened: dict[str, ValueBitmaps] = {}

    def __getitem__(self, name: str) -> ValueBitmaps:
        if name not in self._opened:
            batch = self._batches[name]
            first, counts = batch.column("row").to_numpy(), batch.column("rows").to_numpy()
            if counts.sum() != self._rows or first.min() < 0 or first.max() >= self._rows:
                raise VerificationError(f"{self._path}: expected {name!r} of {self._rows} rows, found other ones")
            values = pa.record_batch({name: self._take(first, name)})
            self._opened[name] = ValueBitmaps(self._path, self._rows, values, batch)
        return self._opened[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)
