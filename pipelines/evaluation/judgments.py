"""Says what is known of results: a label for each result that has one, and whether it is wanted.

Legend: Q queries, K results, P products with a number, J pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.evaluation.judged_files import JudgedQueries, Pairs, label_grades
from pipelines.evaluation.ranking import ProductNumbers

UNKNOWN = -1
"""The label of a pair that has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyedPairs:
    """Pairs of a query and a product as one number each, ascending, for search.

    Attributes:
        keys: int64 `[J]`, query * products + product. Products that no system has are numbered from `products` - their
            count on.
        labels: int64 `[J]`.
        products: Number of products, unknown ones included.
    """

    keys: np.ndarray
    labels: np.ndarray
    products: int

    def count_by_query(self, queries: int) -> np.ndarray:
        """Pairs of each query, int64 `[Q]`."""
        return np.bincount(self.keys // self.products, minlength=queries)

    def labels_of(self, found: np.ndarray) -> np.ndarray:
        """The label of each result, int64 `[Q, K]`; UNKNOWN where the pair is not here, or nothing was found."""
        keys = np.arange(len(found), dtype=np.int64)[:, None] * self.products + found
        if not len(self.keys):
            return np.full(found.shape, UNKNOWN, np.int64)
        nearest = np.minimum(np.searchsorted(self.keys, keys.ravel()), len(self.keys) - 1).reshape(found.shape)
        return np.where((self.keys[nearest] == keys) & (found >= 0), self.labels[nearest], UNKNOWN)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgments:
    """All that is known of pairs.

    Attributes:
        labels: Every label, best first.
        judged: Labelled pairs.
        wanted: Pairs that recall counts: purchases, or else pairs of a relevant label.
        relevant: Pairs of a relevant label; purchases where there are no labels at all.
        grades: Grade of each label for nDCG.
        unlabelled: What an unlabelled result counts as: a position in `labels`, or UNKNOWN to be left out.
        unknown_products: Judged or bought products that no system has.
        unknown_wanted: Wanted ones among them.
    """

    labels: tuple[str, ...]
    judged: KeyedPairs
    wanted: KeyedPairs
    relevant: KeyedPairs
    grades: tuple[int, ...]
    unlabelled: int
    unknown_products: int
    unknown_wanted: int

    def result_labels(self, found: np.ndarray) -> np.ndarray:
        """The label of each result, int64 `[Q, K]`, unlabelled ones as stated; UNKNOWN where nothing was found."""
        labels = self.judged.labels_of(found)
        return np.where((labels == UNKNOWN) & (found >= 0), self.unlabelled, labels)


def number_judgments(
    queries: JudgedQueries, numbers: ProductNumbers, *, unlabelled: str | None, grades: Mapping[str, int]
) -> Judgments:
    """Brings labels and purchases to the numbers that the rankings have.

    Args:
        unlabelled: The label that a pair without one counts as; None to leave it out.
        grades: Label -> grade, for nDCG; empty for the labels' own.
    """
    labels = queries.labels
    if unlabelled is not None and unlabelled not in labels:
        labels = (*labels, unlabelled)
    wanted = queries.wanted
    relevant = queries.relevant_pairs if len(queries.judged) else wanted
    label_grade = label_grades(labels, queries.relevant, grades) if len(queries.judged) else [1] * max(1, len(labels))
    return Judgments(
        labels=labels,
        judged=_keyed(queries.judged, numbers),
        wanted=_keyed(wanted, numbers),
        relevant=_keyed(relevant, numbers),
        grades=tuple(label_grade),
        unlabelled=UNKNOWN if unlabelled is None else labels.index(unlabelled),
        unknown_products=_unknown(numbers, queries.judged, queries.purchases),
        unknown_wanted=_unknown(numbers, wanted),
    )


def _keyed(pairs: Pairs, numbers: ProductNumbers) -> KeyedPairs:
    found = numbers.find(pairs.product_ids)
    strange = found < 0
    # Each unknown product keeps a number of its own: it counts in recall, and nothing finds it.
    codes = pairs.product_ids.dictionary_encode().indices.to_numpy().astype(np.int64)
    products = len(numbers) + (int(codes.max()) + 1 if len(codes) else 0)
    keys = pairs.queries * max(1, products) + np.where(strange, len(numbers) + codes, found)
    order = np.argsort(keys, kind="stable")
    return KeyedPairs(keys=keys[order], labels=pairs.labels[order], products=max(1, products))


def _unknown(numbers: ProductNumbers, *pairs: Pairs | None) -> int:
    ids = pa.concat_arrays([given.product_ids for given in pairs if given is not None]).unique()
    return int((numbers.find(ids) < 0).sum())
