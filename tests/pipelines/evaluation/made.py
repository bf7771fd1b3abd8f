"""Rankings and judgments made from a seed, and plain loops in float64 that say what the metrics of one query are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.evaluation.judged_files import JudgedQueries, Pairs
from pipelines.evaluation.measures import Judgments, number_judgments
from pipelines.evaluation.ranking import ProductNumbers

LABELS = ("Exact", "Substitute", "Complement", "Irrelevant")


def numbers_of(products: int) -> ProductNumbers:
    numbers = ProductNumbers()
    numbers.add(pa.array([f"p{number}" for number in range(products)], pa.string()))
    return numbers


def pairs_of(by_query: list[dict[str, int]]) -> Pairs:
    flat = [(row, product, label) for row, labels in enumerate(by_query) for product, label in labels.items()]
    rows, products, labels = zip(*flat, strict=True) if flat else ((), (), ())
    return Pairs(
        queries=np.array(rows, np.int64),
        product_ids=pa.array(products, pa.string()),
        labels=np.array(labels, np.int64),
    )


def queries_of(
    labels: list[dict[str, int]],
    bought: list[set[str]] | None = None,
    *,
    names: tuple[str, ...] = LABELS,
    relevant: tuple[str, ...] = ("Exact",),
) -> JudgedQueries:
    """Queries with these labels (places in `names`) and purchases."""
    return JudgedQueries(
        ids=[f"q{row}" for row in range(len(labels))],
        texts=[f"query {row}" for row in range(len(labels))],
        images=[None] * len(labels),
        judged=pairs_of(labels),
        labels=names if any(labels) else (),
        relevant=frozenset(relevant) if any(labels) else frozenset(),
        purchases=None if bought is None else pairs_of([dict.fromkeys(sorted(products), 0) for products in bought]),
        left_out=0,
    )


class Random:
    """Q queries over P products: rankings of two systems, some shorter than K, labels, and purchases.

    Query 0 has nothing relevant and nothing bought, query 1 no label at all; products from P on are in no catalog.
    """

    def __init__(self, *, queries: int = 40, products: int = 60, k: int = 20, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.k, self.products = k, products
        self.found, self.baseline = (
            np.stack([generator.permutation(products)[:k] for _ in range(queries)]) for _ in range(2)
        )
        self.found[2, 5:] = -1
        self.found[3] = -1
        self.baseline[4, 1:] = -1
        self.labels: list[dict[str, int]] = [
            {f"p{product}": int(generator.integers(0, 4)) for product in generator.permutation(products + 10)[:30]}
            for _ in range(queries)
        ]
        self.labels[0] = dict.fromkeys(self.labels[0], 3)
        self.labels[1] = {}
        self.bought = [
            {product for product, label in labels.items() if label == 0 and generator.random() < 0.7} | {"p1"}
            for labels in self.labels
        ]
        self.bought[0] = set()

    def judgments(self, *, purchases: bool = True, unlabelled: str | None = None) -> Judgments:
        queries = queries_of(self.labels, self.bought if purchases else None)
        return number_judgments(queries, numbers_of(self.products), unlabelled=unlabelled, grades={})

    def ids(self, row: int, found: np.ndarray) -> list[str]:
        return [f"p{product}" for product in found[row] if product >= 0]


def plain_recall(found: list[str], wanted: set[str]) -> float:
    return sum(product in wanted for product in found) / len(wanted) if wanted else float("nan")


def plain_precision(
    found: list[str], labels: dict[str, int], unlabelled: int | None, names: int = len(LABELS)
) -> list[float]:
    shown = [labels.get(product, unlabelled) for product in found]
    known = [label for label in shown if label is not None]
    return [known.count(label) / len(known) if known else float("nan") for label in range(names)]
