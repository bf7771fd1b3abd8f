"""Why a product scores as it does, and why one is not among the answers of a search.

Legend: `B` queries, `D` dimension, `P` parts of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index_builder.faiss_files import ivf_of
from index_builder.filters import parse_condition
from index_builder.groups import GroupRanking
from index_builder.open_version import OpenVersion
from index_builder.ranking import Ranking
from index_builder.shard_search import ShardSearch

DEEPEST_RANK = 10_000
"""So far down a sequence a product is looked for."""

FIRST_PROBES = 16
"""Lists among which that of a product is looked for at first."""

WhyStatus = Literal[
    "found",
    "earlier_page",
    "other_of_group",
    "below_k",
    "list_not_probed",
    "not_a_candidate",
    "filtered_out",
    "not_in_version",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """What the score of a product for a query is made of.

    Attributes:
        score: by which answers are ordered: the refined score, else that of the codes.
        code_score: inner product as the codes of the index have it.
        refined_score: the same by the refine codes; None where the search does not re-rank.
        list_number: the inverted list that holds the product.
        list_rank: how many lists have to be probed to reach it.
        probed: how many are. More, where those hold too few products that pass the filter.
        parts: shares of the score by part of the vectors, such as `text` and `image`. They and `rounding` sum to the
            score. Empty where vectors have no such parts.
        rounding: of the score, what is in no part. Below 1e-5 where scores are inner products with a vector, as those
            of PQ, SQ8, exact and all re-ranked ones are; FastScan rounds the query too, and RaBitQ adds to it what it
            reckons that its bits leave out.
    """

    product_id: str
    row: int
    score: float
    code_score: float
    refined_score: float | None
    list_number: int
    list_rank: int
    probed: int
    parts: dict[str, float] = field(default_factory=dict)
    rounding: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class WhyNot:
    """Where a product is in the answer to a query, or why it is not in it.

    Attributes:
        status: `found`; `earlier_page`: before the offset; `other_of_group`: its group is found by a better member;
            `below_k`: it scores less than the last answer; `list_not_probed`: it scores more, but its list was not
            probed; `not_a_candidate`: it was not re-ranked; `filtered_out`; `not_in_version`.
        rank: of the product, or its group, in the whole sequence from 1; None where it is not within the first 10,000.
        last_score: of the last answer; None where fewer than k were found.
        failed: conditions of the filter that it does not pass, each with the value that it has.
        needed: the setting, `nprobe` or `refine_factor`, that would have reached it; None where that is not the cause.
        needed_rank: its rank then; behind the answers where the setting also finds better ones.
        best_member: product id of the one that stands for its group.
        explanation: of its score; None for a product that is not in the version.
    """

    product_id: str
    status: WhyStatus
    rank: int | None = None
    last_score: float | None = None
    failed: tuple[str, ...] = ()
    needed: int | None = None
    needed_rank: int | None = None
    best_member: str | None = None
    explanation: Explanation | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A search as it was asked, with the version that answered it."""

    state: OpenVersion
    ranking: Ranking
    filter: object
    group_column: str | None

    @property
    def sequence(self) -> Ranking | GroupRanking:
        """What the answers are a slice of."""
        if self.group_column is None:
            return self.ranking
        return GroupRanking(self.ranking, self.state.groups.by(self.group_column))

    def only(self, query: int) -> Asked:
        """The same of one query."""
        queries = self.ranking.queries[query : query + 1]
        return replace(self, ranking=replace(self.ranking, queries=queries))


def explain(asked: Asked, row: int, parts: Mapping[str, slice], score: float | None = None) -> Explanation:
    """Explains the score of a row for the one query of `asked`; `score` is the one it has in an answer."""
    ranking = asked.ranking
    search, codes, query = ranking.search, ranking.codes, ranking.queries
    shares = np.zeros((len(parts), query.shape[1]), np.float32)
    for share, part in zip(shares, parts.values(), strict=True):
        share[part] = query[0, part]
    vectors = np.concatenate([query, shares, np.zeros_like(query)])
    by_codes = scores = code_scores(search, vectors, row)
    refined = codes is not None and ranking.refine_factor > 0
    if codes is not None and refined:
        scores = codes.scores(vectors, np.full((len(vectors), 1), row))[:, 0]
    score = float(scores[0]) if score is None else score
    # What a code scores with no vector at all is part of no part.
    of_parts = scores[1:-1].astype(np.float64) - scores[-1]
    number = search.list_of(row)
    return Explanation(
        product_id=asked.state.products.take(np.array([row]), "product_id")[0].as_py(),
        row=row,
        score=score,
        code_score=float(by_codes[0]),
        refined_score=float(scores[0]) if refined else None,
        list_number=number,
        list_rank=probes_to_reach(search, query, number),
        probed=min(ranking.nprobe, search.lists),
        parts=dict(zip(parts, of_parts.tolist(), strict=True)),
        rounding=score - float(of_parts.sum()) if parts else 0.0,
    )


def code_scores(search: ShardSearch, vectors: np.ndarray, row: int) -> np.ndarray:
    """Inner products of float32 [P, D] with a row as the codes of the index have it: float32 [P]."""
    number = search.list_of(row)
    queries = search.rotated(vectors)
    count = len(queries)
    lists = np.full((count, 1), number)
    parameters = faiss.SearchParametersIVF(nprobe=1, sel=faiss.IDSelectorRange(row, row + 1))
    scores = np.zeros(count, np.float32)
    for index in search.indexes:
        ivf = ivf_of(index)
        distances = np.ascontiguousarray(queries @ ivf.quantizer.reconstruct(number), np.float32)[:, None]
        found, rows = np.empty((count, 1), np.float32), np.empty((count, 1), np.int64)
        arrays = [queries, 1, lists, distances, found, rows]
        pointers = [faiss.swig_ptr(each) if isinstance(each, np.ndarray) else each for each in arrays]
        ivf.search_preassigned_c(count, *pointers, False, parameters)
        scores = np.where(rows[:, 0] == row, found[:, 0], scores)
    return scores


def probes_to_reach(search: ShardSearch, query: np.ndarray, number: int) -> int:
    """How many lists a search for float32 [1, D] has to probe for this list to be among them."""
    quantizer = ivf_of(search.indexes[0]).quantizer
    rotated = search.rotated(query)

    def place(probes: int) -> int | None:
        found = np.flatnonzero(quantizer.search(rotated, probes)[1][0] == number)
        return int(found[0]) if len(found) else None

    probes = min(FIRST_PROBES, search.lists)
    while (found := place(probes)) is None and probes < search.lists:
        probes = min(4 * probes, search.lists)
    if found is None:
        return search.lists
    # A graph may order lists otherwise where it looks for fewer of them.
    least, step = found + 1, 1
    while least < probes and place(least) is None:
        least, step = min(least + step, probes), 2 * step
    return least


def why_not(asked: Asked, product_id: str, start: int, stop: int, parts: Mapping[str, slice]) -> WhyNot:
    """Why the one query of `asked` does not find a product between two places of its sequence, or where it does."""
    state, ranking = asked.state, asked.ranking
    rows = rows_of(state.products.table, product_id)
    if not len(rows):
        return WhyNot(product_id=product_id, status="not_in_version")
    if ranking.selection is not None:
        passing = rows[ranking.selection.passes(rows)]
        if not len(passing):
            failed = tuple(_failed(asked, int(rows[0])))
            explained = explain(asked, int(rows[0]), parts)
            return WhyNot(product_id=product_id, status="filtered_out", failed=failed, explanation=explained)
        rows = passing
    explained = max((explain(asked, int(row), parts) for row in rows.tolist()), key=lambda each: each.score)
    row = explained.row
    scores, found = (each[0] for each in asked.sequence.first(stop))
    last = float(scores[start:stop].min()) if stop <= (found >= 0).sum() and stop > start else None
    rank, member = _place(asked, row)
    below = WhyNot(product_id=product_id, status="below_k", rank=rank, last_score=last, explanation=explained)
    if rank is not None and rank <= max(start, stop):
        status: WhyStatus = "found" if rank > start else "earlier_page"
        if member != row and member not in rows:
            best = state.products.take(np.array([member]), "product_id")[0].as_py()
            return replace(below, status="other_of_group", best_member=best)
        return replace(below, status=status)
    if last is not None and explained.score <= last:
        return below
    if explained.list_rank > explained.probed:
        wider = replace(asked, ranking=replace(ranking, nprobe=explained.list_rank))
        then = _place(wider, row)[0]
        return replace(below, status="list_not_probed", needed=explained.list_rank, needed_rank=then)
    if explained.refined_score is not None:
        for factor in (2 * ranking.refine_factor * 2**power for power in range(12)):
            then = _place(replace(asked, ranking=replace(ranking, refine_factor=factor)), row)[0]
            if (then is not None and then <= stop) or factor * ranking.first_depth > ranking.total:
                return replace(below, status="not_a_candidate", needed=factor, needed_rank=then)
    return below


def rows_of(products: pa.Table, product_id: str) -> np.ndarray:
    """The rows of a product, int64 ascending: one, none, or one for each of its images."""
    found = pc.equal(products.column("product_id"), pa.scalar(product_id, products.schema.field("product_id").type))
    return np.flatnonzero(found.to_numpy())


def _place(asked: Asked, row: int) -> tuple[int | None, int]:
    """The rank of a row, or of its group, from 1, and the row that stands for it; None and itself beyond the depth."""
    codes = None if asked.group_column is None else asked.state.groups.by(asked.group_column).codes
    depth, deepest = 100, min(DEEPEST_RANK, asked.ranking.total)
    while True:
        rows = asked.sequence.first(min(depth, deepest))[1][0]
        rows = rows[rows >= 0]
        places = np.flatnonzero(rows == row if codes is None else codes[rows] == codes[row])
        if len(places):
            return int(places[0]) + 1, int(rows[places[0]])
        if depth >= deepest:
            return None, row
        depth *= 10


def _failed(asked: Asked, row: int) -> Iterator[str]:
    """The conditions of a filter that a row does not pass, with its values there."""
    if not isinstance(asked.filter, str):
        yield "the filter"
        return
    for condition in parse_condition(asked.filter).conjuncts():
        values = asked.state.products.take_columns(np.array([row]), list(condition.columns))
        batch = values.combine_chunks().to_batches()[0]
        if not condition.mask(batch)[0].as_py():
            shown = ", ".join(f"{name} is {value!r}" for name, value in batch.to_pylist()[0].items())
            yield f"{condition.text} ({shown})"
