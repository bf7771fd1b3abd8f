"""The reader opens a published version and searches it. What a server needs, and nothing of how it was built.

Legend: `B` queries, `D` dimension, `N` products, `k` neighbours.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index_builder import storage
from index_builder.checksums import Verify
from index_builder.errors import IndexBuilderError
from index_builder.manifest import Manifest
from index_builder.open_version import OpenVersion, ProductRows, open_current, open_version
from index_builder.publish import QUERY_ENCODER_FOLDER, read_current
from index_builder.shard_search import filled_up, search_refined


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What was found.

    Attributes:
        scores: float32 [B, k], descending; -inf where fewer were found.
        rows: int64 [B, k], rows of `products`; -1 where fewer were found.
        product_ids: B lists of at most k ids, in the order of `rows`; shorter where fewer were found.
        version: that answered; the reader may be on another one by now.
    """

    scores: np.ndarray
    rows: np.ndarray
    product_ids: list[list[str]]
    version: str
    lookup: ProductRows

    @property
    def products(self) -> pa.Table:
        """The table that `rows` are rows of: that of the version that answered."""
        return self.lookup.table

    def columns(self, names: Sequence[str], query: int = 0) -> pa.Table:
        """Columns of the products that one query found, best first. Much faster than `products.take(rows)`.

        Raises:
            KeyError: there is no such column.
        """
        rows = self.rows[query]
        return self.lookup.take_columns(rows[rows >= 0], names)


class IndexReader:
    """A published index, open for search. Threads may share it. Made by `IndexReader.open`."""

    def __init__(self, uri: str, version: str | None, state: OpenVersion, verify: Verify = "sizes") -> None:
        self._uri = uri
        self._verify: Verify = verify
        self._pinned = version
        self._state = state
        self._refreshing = threading.Lock()

    @classmethod
    def open(cls, uri: str, version: str | None = None, *, verify: Verify = "sizes") -> IndexReader:
        """Opens a version of the index at `uri`, by default the published one.

        Args:
            verify: How much of the files is compared with what was published, besides their sizes and all that could
                crash the process, which always is: `sizes` nothing more; `sampled` blocks drawn at random; `full` all
                bytes. A column of the products is checked when it is first used. See `check_next` for the rest.

        Raises:
            VersionNotFoundError: nothing is published there, or there is no such version.
            VerificationError: a file is not what the manifest says.
        """
        state = open_current(uri, verify) if version is None else open_version(uri, version, verify)
        return cls(uri, version, state, verify)

    @property
    def manifest(self) -> Manifest:
        """What the version is, how it was made and measured."""
        return self._state.manifest

    @property
    def products(self) -> pa.Table:
        """Row -> product_id and the display and filter columns; memory-mapped."""
        return self._state.products.table

    @property
    def query_encoder_uri(self) -> str | None:
        """The folder of the query encoder; None for a version of vectors made elsewhere.

        A local one is compared with what was published when it is first asked for.

        Raises:
            VerificationError: a file of it is damaged or missing.
        """
        files = [entry for entry in self.manifest.files if entry.path.startswith(f"{QUERY_ENCODER_FOLDER}/")]
        if storage.is_local(self._state.uri):
            self._state.checks.check_others(storage.local_path(self._state.uri), files)
        return storage.join(self._state.uri, QUERY_ENCODER_FOLDER) if files else None

    def refresh(self) -> bool:
        """Opens the version that is published now, if it is another one; whether it was. A pinned version stays.

        Searches that are under way finish on the version of before, and new ones go on there until the new version is
        open. After an error, one that `open` raises, the reader stays on the version that it has.
        """
        if self._pinned is not None:
            return False
        # One at a time: a slow refresh must not put an older version over the one that a later refresh opened.
        with self._refreshing:
            if read_current(self._uri) == self.manifest.version:
                return False
            opened = open_current(self._uri, self._verify)
            changed = opened.manifest.version != self.manifest.version
            self._state = opened
            return changed

    def check_next(self, max_bytes: int = 64 << 20) -> int:
        """Compares the next blocks of the open files with what was published, in turn; for a server, now and then.

        Returns:
            Bytes compared, about `max_bytes`; 0 for a version that was published before there were checksums.

        Raises:
            VerificationError: a block is damaged; names file and bytes.
        """
        return self._state.checks.check_next(max_bytes)

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        filter: str | pc.Expression | np.ndarray | None = None,
        nprobe: int | None = None,
        refine_factor: int | None = None,
    ) -> SearchResult:
        """The k products with the largest inner product, over all serving shards; ties by row.

        Args:
            vectors: float32 [B, D] (or [D]), L2-normalised, as the query encoder gives them.
            filter: products that may be found: a condition over the columns of `products` in SQL's words
                (`"kind = 'chair' and price < 50"`, see `filters`), an Arrow expression, or bool [N].
            nprobe: inverted lists probed; None: what was chosen for the target recall. More are probed where a filter
                leaves these few rows, and wherever they hold fewer than k: min(k, products that pass) are always found.
            refine_factor: candidates re-ranked for each neighbour wanted, where the version has refine codes; 0: none;
                None: what was chosen for the target recall.

        Raises:
            IndexBuilderError: the vectors have another dimension or are not finite, or `k`, `nprobe` or `refine_factor`
                is no whole number in range.
            FilterError: the filter names a column that is not there, or has another length than N.
        """
        state = self._state
        dim = state.manifest.index.spec.dim
        queries = np.atleast_2d(np.ascontiguousarray(vectors, dtype=np.float32))
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise IndexBuilderError(f"expected query vectors of shape [B, {dim}], found {list(np.shape(vectors))}")
        if not np.isfinite(queries).all():
            raise IndexBuilderError("expected finite query vectors, found NaN or infinity")
        settings = state.manifest.index.search
        k = _whole("k", k, at_least=1)
        probes = settings.nprobe if nprobe is None else _whole("nprobe", nprobe, at_least=1)
        factor = settings.refine_factor
        if refine_factor is not None:
            factor = _whole("refine_factor", refine_factor, at_least=0)
        selection = None if filter is None else state.filters.select(filter)
        # More than N cannot be found, and FAISS reserves memory for k.
        asked = min(k, max(1, state.search.rows))
        scores, rows = search_refined(
            state.search, state.refine, queries, asked, nprobe=probes, refine_factor=factor, selection=selection
        )
        if asked < k:
            scores, rows = filled_up(scores, rows, k)
        found = rows >= 0
        ids = state.products.take(rows[found], "product_id").to_pylist()
        ends = np.cumsum(found.sum(axis=1)).tolist()
        product_ids = [ids[start:end] for start, end in pairwise([0, *ends])]
        return SearchResult(scores, rows, product_ids, state.manifest.version, state.products)


def _whole(name: str, value: int, *, at_least: int) -> int:
    """The value as an int, NumPy's too; IndexBuilderError where it is none, or too small."""
    try:
        number = operator.index(value)
    except TypeError:
        raise IndexBuilderError(f"{name}: expected a whole number, found {value!r}") from None
    if isinstance(value, bool | np.bool_) or number < at_least:
        raise IndexBuilderError(f"{name}: expected a whole number of at least {at_least}, found {value!r}")
    return number
