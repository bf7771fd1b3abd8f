"""Asks a version what people ask: canaries that must find certain products, and queries whose answers are compared with
those of the version before.

Each version is asked by its own query encoder. Where there is none for words, products stand in for queries: their
vectors find their neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from encoders.query_batches import BaseQueryEncoder
from index_builder import IndexReader
from pipelines.catalog.dead_letters import cut_at_word
from pipelines.config.job import Canary
from pipelines.report.night import matrix_of, title_column

COMPARED = 10
"""Answers of each query that are compared."""
DRAWN = 100
"""Titles that are drawn for queries: the mean overlap is then known to about 2 points."""
_QUERY_CHARACTERS = 60
_AT_A_TIME = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryAnswer:
    """What a canary found.

    Attributes:
        missing: Of its ids those that are not among its first k; `unknown` those of them that the version lacks.
    """

    canary: Canary
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A miss in words, and what to do about one that is meant."""
        missing = ", ".join(self.missing)
        why = f" ({', '.join(self.unknown)} not in the catalog)" if self.unknown else ""
        return f"the query {self.canary.query!r} does not find {missing}{why} among its first {self.canary.k}"


def ask_canaries(
    canaries: Sequence[Canary], reader: IndexReader, encoder: BaseQueryEncoder
) -> tuple[CanaryAnswer, ...]:
    """The answer to each canary."""
    answers = []
    vectors = _encoded([canary.query for canary in canaries], encoder)
    missed: set[str] = set()
    for canary, vector in zip(canaries, vectors, strict=True):
        found = set(reader.search(vector, canary.k).product_ids[0])
        missing = tuple(name for name in canary.ids if name not in found)
        missed |= set(missing)
        answers.append((canary, missing))
    known = _known(reader, missed)
    return tuple(
        CanaryAnswer(canary=canary, missing=missing, unknown=tuple(name for name in missing if name not in known))
        for canary, missing in answers
    )


def _known(reader: IndexReader, ids: set[str]) -> set[str]:
    """Those of some ids that a version has."""
    if not ids:
        return set()
    column, wanted = reader.products.column("product_id"), pa.array(sorted(ids), pa.string())
    return {name for chunk in column.chunks for name in chunk.filter(pc.is_in(chunk, value_set=wanted)).to_pylist()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One query: its words, or the product that stands in for it.

    Attributes:
        own: The product that it should find.
        row_before: The row of the product whose words it is in the night before; None of one that this night drew.
    """

    text: str
    own: str | None = None
    vector: np.ndarray | None = None
    row_before: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One product that a query found: its id, its row in `products.arrow`, its score."""

    product_id: str
    row: int
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedQuery:
    """A query's first answers in two versions, best first; `old` is empty where there is no version before."""

    query: Query
    old: tuple[Answer, ...]
    new: tuple[Answer, ...]

    @property
    def kept(self) -> int:
        """Answers that both have."""
        return len({each.product_id for each in self.old} & {each.product_id for each in self.new})

    @property
    def most(self) -> int:
        """As many as both could have."""
        before, after = ({each.product_id for each in answers} for answers in (self.old, self.new))
        return max(1, min(COMPARED, max(len(before), len(after))))

    @property
    def overlap(self) -> float:
        """Share of the answers that both have, of as many as there could be."""
        return self.kept / self.most


def drawn_queries(sample: pa.Table, products: pa.Table, count: int = DRAWN) -> list[Query]:
    """Titles of sampled products as queries, each once, the same night after night; where `products` have no column of
    titles, the beginnings of the texts.
    """
    found: dict[str, Query] = {}
    column = title_column(products)
    texts = sample["text"] if column is None else products.column(column).take(sample["row"])
    for name, text in zip(sample["product_id"].to_pylist(), texts.to_pylist(), strict=True):
        words = cut_at_word((text or "").strip().split("\n")[0], _QUERY_CHARACTERS)
        if words and words not in found:
            found[words] = Query(text=words, own=name)
        if len(found) == count:
            break
    return list(found.values())


def queries_of_both(before: Sequence[tuple[Query, int]], now: Sequence[Query]) -> list[Query]:
    """The queries of two nights, each once. Those of the night before stay, whatever became of their products: answers
    are compared by them. Those of this night ask whether a product is found by what it is called now.
    """
    found = {query.text: Query(text=query.text, row_before=row) for query, row in before}
    for query in now:
        known = found.get(query.text)
        found[query.text] = query if known is None else replace(query, row_before=known.row_before)
    return list(found.values())


def mean_overlap(compared: Sequence[ComparedQuery]) -> float | None:
    """Mean share of the first answers that both versions have, over the queries of the night before where there are
    such; None without a version before.
    """
    both = [query for query in compared if query.old]
    of_before = [query for query in both if query.query.row_before is not None]
    return float(np.mean([query.overlap for query in of_before or both])) if both else None


def drawn_products(sample: pa.Table, count: int = DRAWN) -> list[Query]:
    """Sampled products as queries by their vectors."""
    picked = sample.slice(0, count)
    vectors = matrix_of(picked["vector"], np.float16)
    return [
        Query(text=text or f"products like {name}", own=name, vector=vector)
        for name, text, vector in zip(
            picked["product_id"].to_pylist(), picked["text"].to_pylist(), vectors, strict=True
        )
        if np.isfinite(vector).all()
    ]


def compare_queries(
    queries: Sequence[Query],
    new: tuple[IndexReader, BaseQueryEncoder | None],
    old: tuple[IndexReader, BaseQueryEncoder | None] | None,
) -> tuple[ComparedQuery, ...]:
    """The first answers to each query in both versions, in the order of the queries."""
    after = _answers(queries, *new)
    before = _answers(queries, *old) if old is not None else [()] * len(queries)
    return tuple(
        ComparedQuery(query=query, old=first, new=second)
        for query, first, second in zip(queries, before, after, strict=True)
    )


def own_found(compared: Sequence[ComparedQuery], *, of_old: bool = False) -> float | None:
    """Share of the queries of a product's words that find that product; None without such queries."""
    own = [
        any(each.product_id == query.query.own for each in (query.old if of_old else query.new))
        for query in compared
        if query.query.own is not None
    ]
    return sum(own) / len(own) if own else None


def _answers(
    queries: Sequence[Query], reader: IndexReader, encoder: BaseQueryEncoder | None
) -> list[tuple[Answer, ...]]:
    if not queries:
        return []
    if encoder is not None and queries[0].vector is None:
        vectors = _encoded([query.text for query in queries], encoder)
    else:
        vectors = np.stack([query.vector for query in queries if query.vector is not None])
    found = []
    for start in range(0, len(vectors), _AT_A_TIME):
        result = reader.search(vectors[start : start + _AT_A_TIME], COMPARED)
        for ids, rows, scores in zip(result.product_ids, result.rows.tolist(), result.scores.tolist(), strict=True):
            each = zip(ids, rows, scores, strict=False)
            found.append(tuple(Answer(product_id=name, row=row, score=score) for name, row, score in each))
    return found


def _encoded(texts: Sequence[str], encoder: BaseQueryEncoder) -> np.ndarray:
    batches = [encoder.encode(texts=texts[start : start + _AT_A_TIME]) for start in range(0, len(texts), _AT_A_TIME)]
    return np.concatenate(batches)
