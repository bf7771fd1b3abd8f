"""The metrics of paper A ("Multimodal semantic retrieval for product search", section 4), one value for each query.

Legend: Q queries, K results, L labels. Values are float64 `[Q]`, NaN where a query has none.

Means and deviations are over the queries. Net figures look at what is left of a system's results when those that the
baseline also found are dropped.
"""

from __future__ import annotations

import numpy as np

from pipelines.evaluation.judgments import UNKNOWN, KeyedPairs


def recall(wanted: KeyedPairs, found: np.ndarray) -> np.ndarray:
    """Share of the wanted products that were found; NaN for a query that wants none.

    Args:
        wanted: Pairs of query and wanted product.
        found: int64 `[Q, K]`, -1 where fewer were found.
    """
    hits = (wanted.labels_of(found) != UNKNOWN).sum(axis=1)
    return _share(hits, wanted.count_by_query(len(found)))


def label_precision(result_labels: np.ndarray, labels: int) -> np.ndarray:
    """Share of each label among the labelled results, `[L, Q]`; NaN for a query none of whose results is labelled.

    Args:
        result_labels: int64 `[Q, K]`, places of labels; UNKNOWN for results that are left out.
        labels: L.
    """
    rows = np.arange(len(result_labels), dtype=np.int64)[:, None]
    # One more column for what is left out.
    places = rows * (labels + 1) + np.where(result_labels == UNKNOWN, labels, result_labels)
    counts = np.bincount(places.ravel(), minlength=len(result_labels) * (labels + 1)).reshape(-1, labels + 1)[
        :, :labels
    ]
    return np.stack([_share(counts[:, label], counts.sum(axis=1)) for label in range(labels)]).reshape(labels, -1)


def labelled_share(result_labels: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Share of the results that have a label, of which alone `label_precision` speaks; NaN where nothing was found."""
    return _share((result_labels != UNKNOWN).sum(axis=1), (found >= 0).sum(axis=1))


def shared_results(found: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Which results the baseline found too, for the same query: bool `[Q, K]`.

    Args:
        found: int64 `[Q, K]`, -1 where fewer were found.
        baseline: int64 `[Q, K]`, of the baseline.
    """
    products = int(max(found.max(initial=-1), baseline.max(initial=-1))) + 2
    starts = np.arange(len(found), dtype=np.int64)[:, None] * products
    # -1 becomes place 0 of each query's range, so the keys of all queries together ascend.
    keys = (starts + np.sort(baseline, axis=1) + 1).ravel()
    asked = (starts + found + 1).ravel()
    if not len(keys):
        return np.zeros(found.shape, bool)
    places = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return (keys[places] == asked).reshape(found.shape) & (found >= 0)


def net_results(found: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """A system's results without those that the baseline found too: int64 `[Q, K]`, -1 in the places that fall out."""
    return np.where(shared_results(found, baseline), -1, found)


def net_recall(wanted: KeyedPairs, found: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Of the wanted products that the baseline missed, the share that the system found; NaN where it missed none.

    The paper does not write the formula. This reading is the one that its table 4 allows: a net recall of 56.2 beside
    a baseline's recall of 78.1 cannot be a share of all purchases.
    """
    net_hits = (wanted.labels_of(net_results(found, baseline)) != UNKNOWN).sum(axis=1)
    missed = wanted.count_by_query(len(found)) - (wanted.labels_of(baseline) != UNKNOWN).sum(axis=1)
    return _share(net_hits, missed)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    shares = np.full(len(whole), np.nan)
    np.divide(part, whole, out=shares, where=whole > 0)
    return shares
