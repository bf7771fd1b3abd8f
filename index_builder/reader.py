"""The reader opens a published version and searches it. What a server needs, and nothing of how it was built.

Legend: `B` queries, `D` dimension, `N` products, `k` neighbours.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index_builder import storage
from index_builder.checksums import Verify
from index_builder.errors import FilterError, IndexBuilderError
from index_builder.explanation import Asked, Explanation, WhyNot, explain, why_not
from index_builder.groups import EXPECTED_MEMBERS, PRODUCT_COLUMN
from index_builder.manifest import IMAGE_COLUMNS, QUERY_ENCODER_FOLDER, Manifest
from index_builder.open_version import OpenVersion, ProductRows, open_current, open_version
from index_builder.publish import pointed_version
from index_builder.ranking import Ranking, sliced
from index_builder.shard_search import filled_up
from index_builder.tags import is_tag


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What was found.

    Attributes:
        scores: float32 [B, k], descending; -inf where fewer were found.
        rows: int64 [B, k], rows of `products`; -1 where fewer were found.
        product_ids: B lists of at most k ids, in the order of `rows`; shorter where fewer were found.
        version: that answered; the reader may be on another one by now.
        offset: rows, or groups, of the sequence before these.
        group_column: column by which rows are grouped, each of `rows` being the best of its group; None: not at all.
        members: of grouped answers int64 [B, k], the rows of each group that pass the filter; 0 where fewer were found.
        asked: the search that these answer.
    """

    scores: np.ndarray
    rows: np.ndarray
    product_ids: list[list[str]]
    version: str
    lookup: ProductRows
    offset: int = 0
    group_column: str | None = None
    members: np.ndarray | None = None
    asked: Asked | None = field(default=None, repr=False)

    @property
    def products(self) -> pa.Table:
        """The table that `rows` are rows of: that of the version that answered."""
        return self.lookup.table

    @property
    def images(self) -> list[list[tuple[int | None, str | None]]]:
        """Which image of its product each answer is found by, in the order of `rows`: its number there, from 1, and
        its address; None for what is not known. In a version with one vector an image; else nothing is known.
        """
        found = [line[line >= 0] for line in self.rows]
        if not set(IMAGE_COLUMNS) <= set(self.products.column_names):
            return [[(None, None)] * len(rows) for rows in found]
        columns = ([self.lookup.take(rows, name).to_pylist() for name in IMAGE_COLUMNS] for rows in found)
        return [list(zip(numbers, addresses, strict=True)) for numbers, addresses in columns]

    def columns(self, names: Sequence[str], query: int = 0) -> pa.Table:
        """Columns of the products that one query found, best first. Much faster than `products.take(rows)`.

        Raises:
            KeyError: there is no such column.
        """
        rows = self.rows[query]
        return self.lookup.take_columns(rows[rows >= 0], names)

    def explain(self, place: int, query: int = 0, parts: Mapping[str, slice] | None = None) -> Explanation:
        """What the score of one answer is made of.

        Args:
            place: of the answer, from 0.
            query: of the batch.
            parts: dimensions of the vectors by name, as `QueryEncoder.parts` has them; the shares of each are told.

        Raises:
            IndexBuilderError: there is no such answer.
        """
        found = self.product_ids[query]
        if self.asked is None or not 0 <= place < len(found):
            raise IndexBuilderError(f"place: expected 0 to {len(found) - 1} of the answers found, found {place}")
        score = float(self.scores[query, place])
        return explain(self.asked.only(query), int(self.rows[query, place]), parts or {}, score)


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
            version: Its id, which pins it; or a tag, which `refresh` follows.
            verify: How much of the files is compared with what was published, besides their sizes and all that could
                crash the process, which always is: `sizes` nothing more; `sampled` blocks drawn at random; `full` all
                bytes. A column of the products is checked when it is first used. See `check_next` for the rest.

        Raises:
            VersionNotFoundError: nothing is published there, or there is no such version.
            VerificationError: a file is not what the manifest says.
        """
        follows = version is None or is_tag(version)
        state = open_current(uri, verify, version) if follows or version is None else open_version(uri, version, verify)
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
        """Opens the version that is published now, or has the tag, if it is another one; whether it was. One that was
        named by its id stays.

        Searches that are under way finish on the version of before, and new ones go on there until the new version is
        open. After an error, one that `open` raises, the reader stays on the version that it has.
        """
        if self._pinned is not None and not is_tag(self._pinned):
            return False
        # One at a time: a slow refresh must not put an older version over the one that a later refresh opened.
        with self._refreshing:
            if pointed_version(self._uri, self._pinned) == self.manifest.version:
                return False
            opened = open_current(self._uri, self._verify, self._pinned)
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
        offset: int = 0,
        group: bool | str | None = None,
    ) -> SearchResult:
        """The k products with the largest inner product, over all serving shards; ties by row.

        All answers to one vector with the same filter and settings are slices of one sequence (see `ranking`), so that
        pages of any size neither repeat nor skip a product. Each answer is in the order of its scores.

        Args:
            vectors: float32 [B, D] (or [D]), L2-normalised, as the query encoder gives them.
            filter: products that may be found: a condition over the columns of `products` in SQL's words
                (`"kind = 'chair' and price < 50"`, see `filters`), an Arrow expression, or bool [N].
            nprobe: inverted lists probed; None: what was chosen for the target recall. More are probed where a filter
                leaves these few rows, and wherever they hold fewer than k: min(k, products that pass) are always found.
            refine_factor: candidates re-ranked for each neighbour wanted, where the version has refine codes; 0: none;
                None: what was chosen for the target recall, and half of it for groups, where four times the rows are
                ranked.
            offset: products, or groups, of the sequence that are left out before the answer; behind its end nothing is
                found.
            group: a column of `products`; rows with the same value there are one answer, that of their best row, and
                min(k, groups of which a row passes) are found. True: the column that `catalog.group_field` named when
                the version was made. None: in a version with one vector an image the product, so that each is found
                once, by its best image (see `SearchResult.images`); else nothing. False: every row is an answer.

        Raises:
            IndexBuilderError: the vectors have another dimension or are not finite, or `k`, `nprobe`, `refine_factor`
                or `offset` is no whole number in range.
            FilterError: the filter names a column that is not there, or has another length than N; there is no such
                group column, or the version names none.
        """
        asked, start, stop = self._asked(vectors, k, filter, nprobe, refine_factor, offset, group)
        state, ranking = asked.state, asked.ranking
        scores, rows = sliced(*asked.sequence.first(stop), start, stop)
        if rows.shape[1] < k:
            scores, rows = filled_up(scores, rows, k)
        taken = rows >= 0
        ids = state.products.take(rows[taken], "product_id").to_pylist()
        ends = np.cumsum(taken.sum(axis=1)).tolist()
        product_ids = [ids[start:end] for start, end in pairwise([0, *ends])]
        column, members = asked.group_column, None
        if column is not None:
            members = state.groups.by(column).members(rows, ranking.selection)
        return SearchResult(
            scores, rows, product_ids, state.manifest.version, state.products, start, column, members, asked
        )

    def why_not(
        self,
        product_id: str,
        vector: np.ndarray,
        k: int,
        filter: str | pc.Expression | np.ndarray | None = None,
        nprobe: int | None = None,
        refine_factor: int | None = None,
        offset: int = 0,
        group: bool | str | None = None,
        parts: Mapping[str, slice] | None = None,
    ) -> WhyNot:
        """Where a product is in the answer to one vector, float32 [D], or why it is not in it.

        The other arguments are those of `search`, and `parts` those of `SearchResult.explain`; raises as `search`.
        """
        asked, start, stop = self._asked(vector, k, filter, nprobe, refine_factor, offset, group)
        if len(asked.ranking.queries) != 1:
            raise IndexBuilderError(f"expected one query vector, found {len(asked.ranking.queries)}")
        return why_not(asked, product_id, start, stop, parts or {})

    def _asked(
        self,
        vectors: np.ndarray,
        k: int,
        filter: str | pc.Expression | np.ndarray | None,
        nprobe: int | None,
        refine_factor: int | None,
        offset: int,
        group: bool | str | None,
    ) -> tuple[Asked, int, int]:
        """A search whose arguments are checked, and where in its sequence the answer begins and ends."""
        state = self._state
        dim = state.manifest.index.spec.dim
        queries = np.atleast_2d(np.ascontiguousarray(vectors, dtype=np.float32))
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise IndexBuilderError(f"expected query vectors of shape [B, {dim}], found {list(np.shape(vectors))}")
        if not np.isfinite(queries).all():
            raise IndexBuilderError("expected finite query vectors, found NaN or infinity")
        settings = state.manifest.index.search
        k = _whole("k", k, at_least=1)
        offset = _whole("offset", offset, at_least=0)
        probes = settings.nprobe if nprobe is None else _whole("nprobe", nprobe, at_least=1)
        column = _group_column(group, state.manifest)
        factor = settings.refine_factor
        if column is not None:
            state.groups.by(column)
            # Four times the rows are ranked, and any of its members finds a group: half of the factor finds as many.
            factor = (factor + 1) // 2
        if refine_factor is not None:
            factor = _whole("refine_factor", refine_factor, at_least=0)
        first_depth = max(1, state.manifest.recall.k) * (1 if column is None else EXPECTED_MEMBERS)
        selection = None if filter is None else state.filters.select(filter)
        ranking = Ranking(state.search, state.refine, queries, probes, factor, selection, first_depth)
        # More than N cannot be found, and FAISS reserves memory for k.
        most = ranking.total if column is None else min(ranking.total, state.groups.by(column).count)
        return Asked(state, ranking, filter, column), offset, min(offset + k, most) if offset < most else 0

    def list_sizes(self) -> np.ndarray:
        """Rows of each inverted list over all serving shards, int64 [L]."""
        return self._state.search.list_sizes()

    def vectors(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """The vectors of products, float32 [n, D], of length 1: from the refine codes where there are some, else from
        the index's own codes, which hold them less exactly.

        Raises:
            IndexBuilderError: a row is out of range; or there are FastScan codes alone, which cannot be turned back.
        """
        state = self._state
        numbers = np.asarray(rows, np.int64).reshape(-1)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < state.search.rows:
            raise IndexBuilderError(f"expected rows from 0 to {state.search.rows - 1}, found {numbers.tolist()[:8]}")
        codes = state.refine
        found = state.search.reconstruct(numbers) if codes is None else codes.vectors(numbers)
        return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _group_column(group: bool | str | None, manifest: Manifest) -> str | None:
    """The column to group by; FilterError where the version names none, or the value is neither a name nor a bool."""
    of_products = PRODUCT_COLUMN if manifest.catalog.vectors else None  # a product has a row an image
    if group is None:
        return of_products
    if group is False:
        return None
    if group is True:
        group = manifest.catalog.group_field or of_products
        if group is None:
            raise FilterError(
                f"group: expected the name of a column, for version {manifest.version} was made without "
                "catalog.group_field"
            )
    if not isinstance(group, str):
        raise FilterError(f"group: expected the name of a column, True or False, found {group!r}")
    return group


def _whole(name: str, value: int, *, at_least: int) -> int:
    """The value as an int, NumPy's too; IndexBuilderError where it is none, or too small."""
    try:
        number = operator.index(value)
    except TypeError:
        raise IndexBuilderError(f"{name}: expected a whole number, found {value!r}") from None
    if isinstance(value, bool | np.bool_) or number < at_least:
        raise IndexBuilderError(f"{name}: expected a whole number of at least {at_least}, found {value!r}")
    return number
