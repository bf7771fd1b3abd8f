"""The rows of each value of a column, written once a version, so that a filter need not look at every product.

A column with few different values (a kind, a brand, whether it is in stock) gets a roaring bitmap of rows for each of
them. A condition on such a column is then asked of its values, some dozens, and the bitmaps of those for which it is
true are united. Of 1,000,000 products `kind in (five)` takes 2 ms so, and 50 on the column itself; columns of numbers
with many values are compared as they are, in 4 ms: sorting them, or zone maps, would save nothing.

Legend: `N` rows, `V` different values of a column.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from pyroaring import BitMap

from index_builder import storage
from index_builder.errors import StorageError, VerificationError

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
_Pieces = list[tuple[int, bytes]]
"""The rows that have a value: of each part that has it the part's first row, and a bitmap that counts from there."""
# Of one part, on the way: for each column its values, the first row of each in the part, and the bitmaps.
_VALUES_SCHEMA = pa.schema(
    [
        ("column", pa.string()),
        ("values", pa.large_binary()),
        ("first", pa.list_(pa.int64())),
        ("bitmaps", pa.list_(pa.large_binary())),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductsFile:
    """A file of products that was read: all products of a version, or those of a range of rows.

    Attributes:
        sha256: of the file, 64 hex digits.
        values_uri: which of its rows have which value, for `write_filter_bitmaps`.
    """

    uri: str
    rows: int
    sha256: str
    values_uri: str


def read_products_file(products_uri: str, out_uri: str, *, of_rows: int) -> ProductsFile:
    """Reads a file of products once, for its sha256 and the rows of each value of its columns, which go to `out_uri`;
    `of_rows` are those of all files. Does nothing if they stand already. Memory: 10 bytes a row.

    Raises:
        StorageError: the file has not the bytes that it had when it was made.
    """
    made, most = storage.made_hash(products_uri), _most_values(of_rows)

    def make(path: str) -> dict[str, Any]:
        with storage.localized(products_uri) as source:
            as_made, sha256 = xxhash.xxh3_128(), hashlib.sha256()
            with open(source, "rb") as file:
                while chunk := file.read(1 << 20):
                    as_made.update(chunk)
                    sha256.update(chunk)
            if made and as_made.hexdigest() != made:
                raise StorageError(f"{products_uri} was damaged after it was made, so nothing is published")
            table = pa.ipc.open_file(pa.memory_map(source)).read_all()
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, _VALUES_SCHEMA) as writer:
            for field in table.schema:
                if field.name != "product_id" and (found := _values_of(table.column(field.name), most)) is not None:
                    line = dict(zip(_VALUES_SCHEMA.names, (field.name, *found), strict=True))
                    writer.write_batch(pa.RecordBatch.from_pylist([line], schema=_VALUES_SCHEMA))
        return {"rows": table.num_rows, "sha256": sha256.hexdigest()}

    inputs = [made or storage.sha256_file(products_uri), most]
    return ProductsFile(uri=products_uri, values_uri=out_uri, **storage.artifact(out_uri, inputs, make).facts)


def write_filter_bitmaps(parts: Sequence[ProductsFile], out_uri: str) -> str:
    """Writes the bitmaps of all columns of a version's products that have few different values. The same products give
    the same bytes, in one part or in many. Does nothing if they stand already. Gives the file's URI.

    Null is a value too. Columns of lists and of nested values have none. Memory: the bitmaps, and 8 bytes for each row
    of a value.
    """
    rows = sum(part.rows for part in parts)

    def make(path: str) -> None:
        opened = []
        for part in parts:
            with pa.BufferReader(storage.read_bytes(part.values_uri)) as source:
                lines = pa.ipc.open_file(source).read_all().to_pylist()
            opened.append({line["column"]: line for line in lines})
        schema = SCHEMA.with_metadata({_ROWS_KEY: str(rows).encode()})
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for name in opened[0] if rows else ():
                if all(name in each for each in opened):
                    united = _united([each[name] for each in opened], [part.rows for part in parts])
                    if united is not None:
                        writer.write_batch(_batch(name, *united))

    inputs = [[part.sha256 for part in parts], MOST_VALUES, ROWS_PER_VALUE, FEW_VALUES]
    return storage.artifact(out_uri, inputs, make).uri


def _most_values(rows: int) -> int:
    """Of how many different values at most a column has bitmaps."""
    return min(MOST_VALUES, max(FEW_VALUES, rows // ROWS_PER_VALUE))


def _values_of(column: pa.ChunkedArray, most: int) -> tuple[bytes, list[int], list[bytes]] | None:
    """The values of a column in the order of their first rows, as an Arrow stream; these rows; and the bitmaps."""
    found = _value_numbers(column, most)
    if found is None:
        return None
    numbers, values = found
    order = np.argsort(numbers, kind="stable").astype(np.uint32)
    counts = np.bincount(numbers, minlength=len(values))
    stops = np.cumsum(counts)
    firsts = order[stops - counts].tolist() if len(numbers) else []
    bitmaps = [BitMap(order[start:stop]) for start, stop in zip((stops - counts).tolist(), stops.tolist(), strict=True)]
    sink = pa.BufferOutputStream()
    batch = pa.record_batch({"value": values})
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes(), firsts, [bitmap.serialize() for bitmap in bitmaps]


def _united(lines: Sequence[dict[str, Any]], rows: Sequence[int]) -> tuple[list[int], list[_Pieces]] | None:
    """The first row of each value over all parts, of so many rows each, and its bitmap; None for too many values."""
    first_rows: list[int] = []
    pieces: list[_Pieces] = []
    known, start = None, 0
    for line, count in zip(lines, rows, strict=True):
        values = pa.ipc.open_stream(line["values"]).read_all().column("value").combine_chunks()
        known = values[:0] if known is None else known
        places = pc.index_in(values, value_set=known).to_pylist()
        known = pa.concat_arrays([known, values.filter(pa.array([place is None for place in places], pa.bool_()))])
        if len(known) > _most_values(sum(rows)):
            return None
        for place, first, bitmap in zip(places, line["first"], line["bitmaps"], strict=True):
            if place is None:
                place = len(pieces)
                first_rows.append(start + first)
                pieces.append([])
            pieces[place].append((start, bitmap))
        start += count
    return first_rows, pieces


def _is_plain(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_boolean, pa.types.is_integer)
    return any(
        test(kind)
        for test in (*tests, pa.types.is_float32, pa.types.is_float64, pa.types.is_decimal, pa.types.is_temporal)
    )


def _value_numbers(column: pa.ChunkedArray, most: int) -> tuple[np.ndarray, pa.Array] | None:
    """For each row the number of its value, in the order of their first rows: uint16 [N], and the values [V]; None for
    more than `most` values, or values of a kind that is not told apart here.
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
        if len(known) > most:
            return None
        found.append(numbers[encoded.indices.to_numpy()])
    return np.concatenate(found) if found else np.empty(0, np.uint16), known


def _batch(name: str, first_rows: Sequence[int], pieces: Sequence[_Pieces]) -> pa.RecordBatch:
    written, counts = [], []
    for of_value in pieces:
        rows = [np.frombuffer(BitMap.deserialize(each).to_array(), np.uint32) + np.uint32(at) for at, each in of_value]
        bitmap = BitMap(np.concatenate(rows))
        bitmap.run_optimize()
        written.append(bitmap.serialize())
        counts.append(len(bitmap))
    columns = [
        pa.array([name] * len(written)),
        pa.array(first_rows, pa.int64()),
        pa.array(counts, pa.int64()),
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
