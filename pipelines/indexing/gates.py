"""The gates are judged: by the plan with what it knows, and before a version is published with what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from index_builder.manifest import Manifest, RecallSummary
from pipelines.catalog.dead_letters import Outcome, Reason
from pipelines.config.job import GatesConfig
from pipelines.indexing.shard_files import Totals

_KEYS: dict[str, str] = {
    Reason.missing_id: "catalog.id_field (of vectors embeddings.id_field)",
    Reason.duplicate_id: "catalog.id_field and catalog.group_by (of vectors embeddings.id_field)",
    Reason.malformed_record: "catalog.format, catalog.csv_delimiter and catalog.encoding",
    Reason.empty_product: "catalog.text_fields and catalog.where",
    Reason.field_type_mismatch: "catalog.column_types",
    Reason.vector_unusable: "embeddings.vector_field",
    Reason.picture_missing: "catalog.image_root",
    Reason.picture_too_large: "decode.max_pixels",
    Reason.picture_too_many_bytes: "fetch.max_bytes",
    Reason.host_not_allowed: "fetch.allowed_hosts and fetch.allow_private_hosts",
    Reason.scheme_not_allowed: "fetch.allowed_schemes",
    Reason.fetch_failed: "catalog.image_field and fetch.proxy",
    Reason.fetch_timeout: "fetch.timeout_seconds and fetch.total_timeout_seconds",
}
"""The keys that a reason hangs on where nearly all rows have it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedGate:
    """A gate with its limit and what was found.

    Attributes:
        key: Of the config, such as `gates.min_recall`.
        limit: The value in force; None: the gate is open.
        found: What was found, in words; what is still to be found, where `holds` is None.
        value: The same as a number, None while it is not known.
        holds: Whether the limit is kept; None while that is not known, or where there is nothing to compare with.
        needed: The limit that would just let this pass, rounded to the open side.
        hint: The most frequent reason, and the key that it hangs on, in words; "" where there is none.
    """

    key: str
    limit: float | None
    found: str
    holds: bool | None
    value: float | None = None
    needed: float = 0.0
    hint: str = ""

    def __str__(self) -> str:
        """A failed gate in words, with the value that would let the version pass."""
        is_recall = self.key.startswith("gates.min_")
        allowed = f"at least {self.limit} is asked for" if is_recall else f"at most {self.limit or 0:.1%} are allowed"
        passes = f"where that is right, --{self.key} {self.needed:g} lets it pass"
        return "; ".join(filter(None, (f"{self.key}: {self.found}, {allowed}", self.hint, passes)))


def judge_gates(
    gates: GatesConfig,
    totals: Totals,
    recall: RecallSummary | float | None,
    previous: Manifest | None,
    *,
    degraded_known: bool = True,
) -> list[JudgedGate]:
    """Every gate of the config, in its order.

    Args:
        recall: Measured, alone or under filters too: the least counts; None before there is an index.
        previous: The version that is published now; without one the change of rows is no gate.
        degraded_known: False before pictures were fetched.
    """
    rejected = f"{totals.rejected:,} of {totals.considered:,} rows ({totals.rejected_share:.1%}) were rejected"
    degraded = f"{totals.degraded:,} of {totals.products:,} products ({totals.degraded_share:.1%}) were degraded"
    least, measured, remedy = _least_recall(recall)
    judged = [
        _judge(*("gates.min_recall", gates.min_recall, least), measured, least=True, hint=remedy),
        _judge(
            *("gates.max_rejected_share", gates.max_rejected_share, totals.rejected_share, rejected),
            hint=_most_frequent("rejected", totals),
        ),
        _judge(
            *("gates.max_degraded_share", gates.max_degraded_share, totals.degraded_share if degraded_known else None),
            degraded if degraded_known else "known when the pictures are decoded",
            hint=_most_frequent("degraded", totals),
        ),
    ]
    before = 0 if previous is None else previous.catalog.products
    change = abs(totals.products - before) / before if before else None
    changed = "no version is published yet"
    if change is not None:
        changed = f"{before:,} products became {totals.products:,} ({change:.1%})"
    judged.append(_judge("gates.max_row_change", gates.max_row_change, change, changed))
    loss, key = totals.precision_loss, "gates.min_precision_cosine"
    lost = "known when products are embedded, of towers in another precision than float32"
    if loss:
        lost = f"1% of {loss['products']:,} products have a cosine to float32 of {loss['percentile_1']:.4f} or less"
    return [*judged, _judge(key, gates.min_precision_cosine, loss.get("percentile_1"), lost, least=True)]


def _least_recall(recall: RecallSummary | float | None) -> tuple[float | None, str, str]:
    """The recall that is judged, the same in words, and what was measured to find more."""
    if not isinstance(recall, RecallSummary):
        return recall, "not measured yet" if recall is None else f"recall is {recall:.4f}", ""
    remedies = " and ".join(f"{remedy.option} measures {remedy.recall:.4f}" for remedy in recall.remedies)
    worst = min(recall.filtered, key=lambda row: row.recall, default=None)
    if worst is None or worst.recall >= recall.value:
        return recall.value, f"recall is {recall.value:.4f}", remedies
    return worst.recall, f"recall is {recall.value:.4f}, under a filter ({worst.filter}) {worst.recall:.4f}", remedies


def failed_gates(
    gates: GatesConfig, totals: Totals, recall: RecallSummary | float, previous: Manifest | None
) -> list[str]:
    """The gates that a version does not pass, each in words with the limit, what was found, and what would pass."""
    return [str(gate) for gate in judge_gates(gates, totals, recall, previous) if gate.holds is False]


def gate_lines(judged: list[JudgedGate]) -> list[tuple[str, str]]:
    """The gates in force as (what, how) pairs, for a plan."""
    lines = []
    for gate in judged:
        text = f"{gate.key.removeprefix('gates.')} {gate.limit}"
        if gate.limit is None:
            lines.append(f"{gate.key.removeprefix('gates.')}: no limit")
        elif gate.holds is False:
            lines.append(f"WOULD BE HELD BACK by {gate}")
        else:
            lines.append(f"{text}: {gate.found}" if gate.holds else f"{text} ({gate.found})")
    return [("gates" if not number else "", line) for number, line in enumerate(lines)]


def planned_gates(gates: GatesConfig, products: int, rejected: int, previous: Manifest | None) -> list[tuple[str, str]]:
    """The gates in force, and which of them a catalog of so many products and rejected rows would not pass, as (what,
    how) pairs.
    """
    counted = {"rows_in": products + rejected, "products": products, "rejected": rejected}
    others = ("embedded", "carried_over", "degraded", "images_unchanged", "texts_cut", "shards")
    totals = Totals(**counted, **dict.fromkeys(others, 0), by_reason={})  # type: ignore[arg-type]
    return gate_lines(judge_gates(gates, totals, None, previous, degraded_known=False))


def _most_frequent(outcome: Outcome, totals: Totals) -> str:
    """The reason that most letters of an outcome have, and the key to look at, in words; "" where there is none."""
    reasons = {reason: count for reason, count in totals.by_reason.items() if reason.startswith(f"{outcome}: ")}
    if not reasons:
        return ""
    reason = max(reasons, key=lambda name: reasons[name])
    name = reason.removeprefix(f"{outcome}: ")
    key = _KEYS.get(name)
    return f"most: {name} ({reasons[reason]:,})" + (f", see {key}" if key else "")


def _judge(
    key: str, limit: float | None, value: float | None, found: str, *, least: bool = False, hint: str = ""
) -> JudgedGate:
    if limit is None or value is None:
        return JudgedGate(key=key, limit=limit, found=found, value=value, holds=None if limit is not None else True)
    needed = math.floor(value * 1000) / 1000 if least else math.ceil(value * 1000) / 1000
    holds = value >= limit if least else value <= limit
    return JudgedGate(key=key, limit=limit, found=found, value=value, holds=holds, needed=needed, hint=hint)
