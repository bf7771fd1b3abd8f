"""Rows of one product become one row: those that have the same value in `catalog.group_by`.

A product's rows may stand anywhere in its file. A file whose rows fit `HELD_BYTES` is grouped at once; the rows of any
other are first dealt to bucket files, by a hash of that value, until each bucket fits. Each bucket is then grouped by
whole columns.

Legend: `R` rows, `P` products.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce
from itertools import chain, groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.catalog.arrow_types import is_list, plain
from pipelines.catalog.config import CatalogError
from pipelines.catalog.schemas import LEFT_OUT, LINE, PROBLEM
from pipelines.catalog.values import trim_unseen, without_words

HELD_BYTES = 128 << 20
"""Rows that are grouped in memory, by their size as Arrow columns."""

BUCKETS = 64
MAX_ROWS_OF_PRODUCT = 10_000
"""No shop has a product of so many rows: that value of the column stands for none (a parent id of 0)."""

_DEALT_BYTES = 16 << 20
_LEVELS = 2  # buckets, and buckets of a bucket
_OUTPUT_ROWS = 65_536


class Grouper:
    """Groups the rows of one file.

    Args:
        folder: Local folder for the buckets; left as it was.
        key: The column that tells products apart (`group_by`).
        lists: Columns that keep the values of all rows (`group_lists`).
        images: The column of images, whose values are gathered, if there is one.
        null_values: Texts that are none, beside those without a visible character.
        is_kept: Says for which rows `catalog.where` is true; None where there is none.
        judged: The columns that it looks at. A value that is blank in a row is there the first of its product: the
            status that Shopify writes into the first row alone is that of all.
        as_type: Converts a column, given its name, to a type that a later batch of the file has.

    Attributes:
        folded: How many rows went into the row of another: rows in less rows out.
    """

    def __init__(
        self,
        folder: str,
        *,
        key: str,
        lists: Sequence[str],
        images: str | None,
        null_values: Sequence[str],
        is_kept: Callable[[pa.RecordBatch], pa.BooleanArray] | None,
        judged: Sequence[str],
        as_type: Callable[[str, pa.Array, pa.DataType], pa.Array],
    ) -> None:
        self.folded = 0
        self._folder, self._as_type = folder, as_type
        self._key, self._lists, self._images, self._null_values = key, lists, images, null_values
        self._is_kept, self._judged = is_kept, judged

    def group(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """A row for each product, where its first row stood (in a large file: among those of its bucket).

        Args:
            batches: Rows with `LINE` and `PROBLEM`. A row with a problem stands alone, as does one without a value in
                `group_by`. Types may become wider from batch to batch.

        Yields:
            Rows of the same columns, of `schemas.grouped_type`: `LINE` of the first row, and `PROBLEM` for each row
            of a product that has more than `MAX_ROWS_OF_PRODUCT`, or that is left out (`LEFT_OUT`).

        Raises:
            CatalogError: `group_by` is a column of lists or objects.
        """
        with tempfile.TemporaryDirectory(dir=self._folder, prefix="groups-") as folder:
            yield from self._group(lambda: iter(batches), folder, 0)

    def _group(
        self, source: Callable[[], Iterable[pa.RecordBatch]], folder: str, level: int
    ) -> Iterator[pa.RecordBatch]:
        """Groups what `source` gives, in memory if it fits; a bucket can be asked again."""
        batches = (batch for batch in source() if batch.num_rows)
        held, size = deque[pa.RecordBatch](), 0
        for batch in batches:
            held.append(batch)
            size += batch.nbytes
            if size > HELD_BYTES and level < _LEVELS:
                break
        else:
            if held:
                yield from pa.Table.from_batches([self._merged(self._of_one_type(held))]).to_batches(_OUTPUT_ROWS)
            return
        # A bucket that is too large in its turn may hold a value that is no product's. That does not get smaller.
        crowded = self._crowded(source()) if level else None
        buckets = [_Bucket(f"{folder}/{number}") for number in range(BUCKETS)]
        for rows in _pieces(chain((held.popleft() for _ in range(len(held))), batches)):
            if crowded is not None:
                rows = self._refused(rows, pc.fill_null(pc.is_in(self._keys(rows), value_set=crowded), False))
            self._deal(rows, buckets, level)
        for bucket in buckets:
            bucket.close()
        for bucket in buckets:
            yield from self._group(bucket.read, bucket.folder, level + 1)
            shutil.rmtree(bucket.folder)

    def _of_one_type(self, batches: deque[pa.RecordBatch]) -> pa.RecordBatch:
        """Takes the batches and gives them as one, in the types of the last, which are the widest."""
        schema = batches[-1].schema
        same = []
        while batches:
            batch = batches.popleft()
            columns = [
                column if column.type.equals(field.type) else self._as_type(field.name, column, field.type)
                for field, column in zip(schema, batch.columns, strict=True)
            ]
            same.append(pa.RecordBatch.from_arrays(columns, schema=schema))
        return pa.concat_batches(same)

    def _deal(self, rows: pa.RecordBatch, buckets: list[_Bucket], level: int) -> None:
        keys = self._keys(rows)
        # Rows that stand alone go anywhere, but not all to one place.
        lines = rows.column(LINE).to_numpy().astype(np.uint64)
        hashes = np.where(keys.is_null().to_numpy(zero_copy_only=False), _mixed(lines), _hashes(keys))
        numbers = (hashes // np.uint64(BUCKETS**level) % np.uint64(BUCKETS)).astype(np.int64)
        dealt = rows.take(pa.array(np.argsort(numbers, kind="stable")))
        ends = np.cumsum(np.bincount(numbers, minlength=BUCKETS)).tolist()
        for bucket, start, end in zip(buckets, [0, *ends[:-1]], ends, strict=True):
            if end > start:
                bucket.write(dealt.slice(start, end - start))

    def _crowded(self, batches: Iterable[pa.RecordBatch]) -> pa.Array:
        """The values of more rows than a product has."""
        counts = [pa.Table.from_struct_array(pc.value_counts(self._keys(rows))) for rows in batches]
        summed = pa.concat_tables(counts).group_by("values").aggregate([("counts", "sum")])
        many = summed.filter(pc.greater(summed["counts_sum"], MAX_ROWS_OF_PRODUCT))
        return many["values"].combine_chunks().drop_null()

    def _merged(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """`R` rows of one schema as a row for each product, in the order of their first rows."""
        group, first = _groups(self._keys(rows))
        if self._is_kept is not None:
            rows = self._without_left_out(rows, group, len(first))
            group, first = _groups(self._keys(rows))
        sizes = np.bincount(group)
        if len(sizes) and sizes.max() > MAX_ROWS_OF_PRODUCT:
            rows = self._refused(rows, pa.array((sizes > MAX_ROWS_OF_PRODUCT)[group]))
            group, first = _groups(self._keys(rows))
        self.folded += len(group) - len(first)
        blank = {name: self._blank(rows.column(name)) for name in rows.schema.names if name not in (LINE, PROBLEM)}
        listed = [name for name in self._lists if name in blank]
        # Where all of the lists would get nothing (Shopify's rows of further images), the row is none of theirs.
        kept = ~reduce(np.logical_and, [blank[name] for name in listed], np.ones(len(group), bool))
        columns = []
        for name, column in zip(rows.schema.names, rows.columns, strict=True):
            if name in (LINE, PROBLEM):
                columns.append(column.take(pa.array(first)))
            elif name == self._images:
                columns.append(self._gathered(column, group, len(first)))
            elif name in listed:
                order = np.flatnonzero(kept)[np.argsort(group[kept], kind="stable")]
                values = column.take(pa.array(order, mask=blank[name][order]))
                columns.append(_as_lists(values, group[order], len(first)))
            else:
                chosen = _first_given(blank[name], group, len(first))
                columns.append(column.take(pa.array(chosen, mask=chosen < 0)))
        return pa.RecordBatch.from_arrays(columns, names=rows.schema.names)

    def _without_left_out(self, rows: pa.RecordBatch, group: np.ndarray, products: int) -> pa.RecordBatch:
        """The rows, of which those that are not kept have `LEFT_OUT` in place of their values."""
        filled = []
        names = [name for name in self._judged if name in rows.schema.names]
        for name in names:
            blank = self._blank(rows.column(name))
            chosen = np.where(blank, _first_given(blank, group, products)[group], np.arange(len(group)))
            filled.append(rows.column(name).take(pa.array(chosen, mask=chosen < 0)))
        # Without a column a batch would have no rows.
        judged = pa.RecordBatch.from_arrays([rows.column(LINE), *filled], names=[LINE, *names])
        kept = pc.or_(self._is_kept(judged), rows.column(PROBLEM).is_valid()) if self._is_kept else None
        return rows if kept is None else _with_problems(rows, pc.invert(kept), pa.scalar(LEFT_OUT))

    def _gathered(self, column: pa.Array, group: np.ndarray, products: int) -> pa.Array:
        """The images of each product's rows, each once, in the order of the rows: lists `[P]`."""
        items = column
        if is_list(column.type):
            lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
            items, group = column.flatten(), np.repeat(group, lengths)
        codes = _codes(items)
        given = np.flatnonzero(~self._blank(items))
        pairs = group[given] * (codes.max(initial=0) + 1) + codes[given]
        chosen = given[np.sort(np.unique(pairs, return_index=True)[1])]
        order = chosen[np.argsort(group[chosen], kind="stable")]
        return _as_lists(items.take(pa.array(order)), group[order], products)

    def _blank(self, column: pa.Array) -> np.ndarray:
        """Which values say nothing: null, empty, no visible character, one of `null_values`, NaN; bool `[R]`."""
        column = plain(column)
        blank = column.is_null()
        if pa.types.is_floating(column.type):
            blank = column.is_null(nan_is_null=True)
        elif pa.types.is_string(column.type):
            said = without_words(trim_unseen(column), self._null_values)
            blank = pc.or_(said.is_null(), pc.fill_null(pc.equal(pc.binary_length(said), 0), False))
        elif pa.types.is_binary(column.type):
            blank = pc.or_(blank, pc.fill_null(pc.equal(pc.binary_length(column), 0), False))
        elif is_list(column.type):
            blank = pc.or_(blank, pc.fill_null(pc.equal(pc.list_value_length(column), 0), False))
        elif pa.types.is_struct(column.type):
            # flatten(), unlike field(), knows that a null struct has no fields.
            return reduce(np.logical_and, map(self._blank, column.flatten()), np.ones(len(column), bool))
        return blank.to_numpy(zero_copy_only=False)

    def _keys(self, rows: pa.RecordBatch) -> pa.StringArray:
        """The trimmed value of `group_by` as text; null where the row stands alone."""
        alone = rows.column(PROBLEM).is_valid()
        if self._key not in rows.schema.names:
            return pa.nulls(len(rows), pa.string())
        column = plain(rows.column(self._key))
        if pa.types.is_nested(column.type):
            raise CatalogError(
                f"catalog.group_by: expected a column of text or numbers; {self._key!r} is {column.type}"
            )
        alone = pc.or_(alone, pa.array(self._blank(column)))
        if pa.types.is_floating(column.type):
            # 12.0 of one row is the 12 of another, which a number that is missing elsewhere has made a float.
            numbers = column.to_numpy(zero_copy_only=False)
            with np.errstate(invalid="ignore"):
                whole = (np.floor(numbers) == numbers) & (np.abs(numbers) < 2**53)
            texts = pa.array(np.where(whole, numbers, 0).astype(np.int64)).cast(pa.string())
            column = pc.if_else(pa.array(whole), texts, column.cast(pa.string()))
        keys = pc.utf8_trim_whitespace(column.cast(pa.string()))
        return pc.if_else(alone, pa.scalar(None, pa.string()), keys)

    def _refused(self, rows: pa.RecordBatch, wrong: pa.BooleanArray) -> pa.RecordBatch:
        """The rows, of which the wrong ones have a problem in place of their values."""
        if not pc.any(wrong).as_py():
            return rows
        expected = f"expected at most {MAX_ROWS_OF_PRODUCT:,} rows of one product, found more whose {self._key!r} is '"
        keys = pc.utf8_slice_codeunits(plain(rows.column(self._key)).cast(pa.string()), 0, 100)
        return _with_problems(rows, wrong, pc.binary_join_element_wise(expected, keys, "'", ""))


def _with_problems(rows: pa.RecordBatch, wrong: pa.BooleanArray, whys: pa.Array | pa.Scalar) -> pa.RecordBatch:
    """The rows, of which the wrong ones have a problem in place of their values."""
    kept = pa.array(np.arange(len(rows)), mask=wrong.to_numpy(zero_copy_only=False))
    columns = {name: column.take(kept) for name, column in zip(rows.schema.names, rows.columns, strict=True)}
    columns[LINE] = rows.column(LINE)
    columns[PROBLEM] = pc.if_else(wrong, whys, rows.column(PROBLEM))
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


class _Bucket:
    """A folder with the rows that were dealt to it, a file for each schema."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._files = 0
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._schema: pa.Schema | None = None
        os.makedirs(folder)

    def write(self, rows: pa.RecordBatch) -> None:
        if self._writer is None or not rows.schema.equals(self._schema):
            self.close()
            self._schema = rows.schema
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writer = pa.ipc.new_stream(f"{self.folder}/{self._files}.arrows", self._schema, options=options)
            self._files += 1
        self._writer.write_batch(rows)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def read(self) -> Iterator[pa.RecordBatch]:
        for number in range(self._files):
            with pa.OSFile(f"{self.folder}/{number}.arrows") as source, pa.ipc.open_stream(source) as stream:
                yield from stream


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches of one schema joined, to about `_DEALT_BYTES`, so that what a bucket gets is worth writing."""
    size = 0

    def piece_of(batch: pa.RecordBatch) -> tuple[pa.Schema, int]:
        nonlocal size
        size += batch.nbytes
        return batch.schema, size // _DEALT_BYTES

    for _, some in groupby(batches, piece_of):
        yield pa.concat_batches(list(some))


def _groups(keys: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """The product of each row, int64 `[R]`, in the order of first appearance, and the first row of each, `[P]`."""
    encoded = keys.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy().astype(np.int64)
    alone = np.flatnonzero(codes < 0)
    codes[alone] = len(encoded.dictionary) + np.arange(len(alone))
    _, first, group = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[group], first[order]


def _first_given(blank: np.ndarray, group: np.ndarray, products: int) -> np.ndarray:
    """The first row of each product that is not blank, -1 where there is none: int64 `[P]`."""
    given = np.flatnonzero(~blank)[::-1]
    chosen = np.full(products, -1)
    chosen[group[given]] = given  # of several the last one stays: the first row
    return chosen


def _as_lists(values: pa.Array, group: np.ndarray, products: int) -> pa.ListArray:
    """Values that stand in the order of their products as lists `[P]`, null where there are none."""
    lengths = np.bincount(group, minlength=products)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(lengths == 0))


def _codes(values: pa.Array) -> np.ndarray:
    """Numbers that are the same where the values are, int64 `[R]`; white space around a text does not count."""
    values = plain(values)
    if pa.types.is_struct(values.type):
        codes = np.zeros(len(values), np.int64)
        for child in values.flatten():
            more = _codes(child) + 1
            codes = np.unique(codes * (more.max(initial=0) + 1) + more, return_inverse=True)[1]
        return codes
    if pa.types.is_nested(values.type):
        return np.arange(len(values))
    if pa.types.is_string(values.type):
        values = pc.utf8_trim_whitespace(values)
    return values.dictionary_encode().indices.fill_null(-1).to_numpy().astype(np.int64)


def _hashes(keys: pa.StringArray) -> np.ndarray:
    """A hash of each text that is the same on every machine, uint64 `[R]`; anything where it is null."""
    _, offset_buffer, data_buffer = keys.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[keys.offset : keys.offset + len(keys) + 1].astype(np.int64)
    data = np.frombuffer(data_buffer or b"", np.uint8)[offsets[0] : offsets[-1]]
    offsets -= offsets[0]
    places = np.arange(len(data)) - np.repeat(offsets[:-1], np.diff(offsets))
    # A random number for each byte at its place; those of a text are added up (tabulation hashing).
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mixed((places << 8 | data).astype(np.uint64)))])
    return _mixed(sums[offsets[1:]] - sums[offsets[:-1]])


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that leaves no pattern (splitmix64)."""
    numbers = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
