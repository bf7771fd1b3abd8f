"""Queries with what is known of them: which labels products have for a query, and which were bought.

Legend: Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.catalog.picture_columns import PictureRef
from pipelines.config.errors import ConfigError
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.judged_files.judged_pairs import Pairs, read_judgments, read_purchases
from pipelines.evaluation.judged_files.labels import ESCI, relevant_labels
from pipelines.evaluation.judged_files.query_files import query_pictures, read_queries


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedQueries:
    """Queries that something is known of: a label, a purchase, or an annotator that will label what is found.

    Attributes:
        ids: Q ids, in the file's order.
        texts: Q texts, None where a query has none.
        pictures: Q pictures, None where a query has none.
        judged: Labelled pairs; `labels` are places in the list of labels.
        labels: Every label, best first.
        relevant: Those that mean relevant.
        purchases: Bought pairs; None where no file of purchases was given.
        left_out: Queries of the file that nothing is known of.
        two_labels: Pairs that the judgments give different labels, settled as the configuration says.
    """

    ids: list[str]
    texts: list[str | None]
    pictures: list[PictureRef | None]
    judged: Pairs
    labels: tuple[str, ...]
    relevant: frozenset[str]
    purchases: Pairs | None
    left_out: int
    two_labels: int = 0

    @property
    def relevant_pairs(self) -> Pairs:
        """The labelled pairs whose label means relevant."""
        wanted = np.array([label in self.relevant for label in self.labels], bool)
        return self.judged.take(wanted[self.judged.labels] if len(self.judged) else np.zeros(0, bool))

    @property
    def wanted(self) -> Pairs:
        """What recall counts: purchases where there are any, else relevant pairs."""
        return self.relevant_pairs if self.purchases is None else self.purchases


def read_judged_queries(config: EvaluationConfig) -> JudgedQueries:
    """Reads queries and what is known of them.

    Raises:
        ConfigError: A file is missing, cannot be read or lacks a column; a query or a pair is given twice and
            differently; there are too many labels; or nothing is known of any query.
    """
    if config.queries is None:
        raise ConfigError("no queries: expected --queries FILE (evaluation.queries)")
    if config.judgments is None and config.purchases is None and config.annotator is None:
        raise ConfigError(
            "nothing to measure with: expected --judgments FILE, --purchases FILE or evaluation.annotator"
        )
    queries = read_queries(config)
    judged, labels, two_labels = read_judgments(config, queries["id"])
    purchases = read_purchases(config, queries["id"])
    relevant = relevant_labels(labels, config.relevant)
    if purchases is None and config.annotator is None and not relevant:
        raise ConfigError(
            f"{config.judgments}: no product is relevant to any query of {config.queries}; its labels are "
            f"{list(labels)}, expected labels above 0, {ESCI[0]!r}, or those named by --relevant"
        )
    known = np.zeros(len(queries), bool)
    known[judged.queries] = True
    if purchases is not None:
        known[purchases.queries] = True
    if config.annotator is not None:
        known[:] = True
    if not known.any():
        files = " and ".join(filter(None, (config.judgments, config.purchases)))
        raise ConfigError(f"no query of {config.queries} is judged in {files}: do they belong together?")
    kept = queries.filter(pa.array(known))
    new_rows = np.cumsum(known) - 1
    return JudgedQueries(
        ids=kept["id"].to_pylist(),
        texts=kept["text"].to_pylist(),
        pictures=query_pictures(kept["picture"], len(kept)),
        judged=_renumbered(judged, new_rows),
        labels=labels,
        relevant=relevant,
        purchases=None if purchases is None else _renumbered(purchases, new_rows),
        left_out=int((~known).sum()),
        two_labels=two_labels,
    )


def _renumbered(pairs: Pairs, new_rows: np.ndarray) -> Pairs:
    return Pairs(queries=new_rows[pairs.queries], product_ids=pairs.product_ids, labels=pairs.labels)
