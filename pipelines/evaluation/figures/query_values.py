"""Every metric of a run of a system, one value a query: those that judgments give, and those beside a baseline.

Legend: Q queries, K results.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.evaluation.figures.comparison import Kind, Metric
from pipelines.evaluation.figures.ranking_metrics import (
    label_precision,
    labelled_share,
    net_recall,
    net_results,
    recall,
    shared_results,
)
from pipelines.evaluation.figures.standard_measures import measure_queries, recall_cutoff
from pipelines.evaluation.judged_files.labels import short_name
from pipelines.evaluation.judgments import UNKNOWN, Judgments


def comparison_metrics(judgments: Judgments, measures: Sequence[str], k: int, *, has_baseline: bool) -> list[Metric]:
    """Every metric that a comparison may have, in the order of the tables.

    Args:
        judgments: Whose labels get shares.
        measures: Names as ir-measures has them, beside recall at k.
        k: Results that recall, labels, overlap and net figures look at.
        has_baseline: Whether overlap and net figures have something to refer to.
    """
    metrics = [Metric(name=name, title=name, kind=Kind.MEASURE) for name in dict.fromkeys([f"R@{k}", *measures])]
    metrics.append(Metric(name=exact_name(k), title=f"of exact@{k}", kind=Kind.INDEX))
    # One label alone has a share of 100 %, whatever is found.
    labels = judgments.labels if len(judgments.labels) > 1 else ()
    metrics += [Metric(name=f"P({label})@{k}", title=short_name(label), kind=Kind.LABEL) for label in labels]
    if labels and judgments.unlabelled == UNKNOWN:
        metrics.append(Metric(name=f"labelled@{k}", title="labelled", kind=Kind.COVERAGE))
    if not has_baseline:
        return metrics
    metrics += [
        Metric(name=f"overlap@{k}", title="overlap", kind=Kind.OVERLAP, is_share=False),
        Metric(name=f"net results@{k}", title="left", kind=Kind.OVERLAP, is_share=False),
        Metric(name=f"net R@{k}", title="net recall", kind=Kind.NET_RECALL),
        Metric(name=f"net share@{k}", title="of all", kind=Kind.NET),
    ]
    return metrics + [
        Metric(name=f"net P({label})@{k}", title=f"net {short_name(label)}", kind=Kind.NET_LABEL) for label in labels
    ]


def exact_name(k: int) -> str:
    """Name of the share of the exact results that an index found."""
    return f"of exact@{k}"


def run_values(
    found: np.ndarray, judgments: Judgments, measures: Sequence[str], k: int, baseline: np.ndarray | None
) -> dict[str, np.ndarray]:
    """One run's metrics by name, float64 `[Q]` each; NaN where a query has no value.

    Args:
        found: Product numbers of the run, int64 `[Q, K]`.
        judgments: What is known of them.
        measures: Names as ir-measures has them; recall among them is computed here, of what recall counts.
        k: Results that recall, labels, overlap and net figures look at.
        baseline: What the run is compared with, int64 `[Q, K]`; None leaves overlap and net figures out.
    """
    top = found[:, :k]
    values = {f"R@{k}": recall(judgments.wanted, top)}
    cutoffs = {name: recall_cutoff(name) for name in measures}
    values |= {
        name: recall(judgments.wanted, found[:, :cutoff]) for name, cutoff in cutoffs.items() if cutoff is not None
    }
    values |= measure_queries([name for name, cutoff in cutoffs.items() if cutoff is None], judgments, found)
    values |= _by_label("P", judgments, top, k)
    values[f"labelled@{k}"] = labelled_share(judgments.result_labels(top), top)
    if baseline is not None:
        base_top = baseline[:, :k]
        net = net_results(top, base_top)
        values[f"overlap@{k}"] = shared_results(top, base_top).sum(axis=1).astype(np.float64)
        values[f"net results@{k}"] = (net >= 0).sum(axis=1).astype(np.float64)
        values[f"net R@{k}"] = net_recall(judgments.wanted, top, base_top)
        values[f"net share@{k}"] = recall(judgments.wanted, net)
        values |= _by_label("net P", judgments, net, k)
    return values


def _by_label(prefix: str, judgments: Judgments, found: np.ndarray, k: int) -> dict[str, np.ndarray]:
    if not judgments.labels:
        return {}
    shares = label_precision(judgments.result_labels(found), len(judgments.labels))
    return {f"{prefix}({label})@{k}": share for label, share in zip(judgments.labels, shares, strict=True)}
