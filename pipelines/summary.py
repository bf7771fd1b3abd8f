"""What a run did, in the words and numbers with which it ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from index_builder.explain import explain_index, serving_shards
from index_builder.spec import IndexConfig, IndexSpec
from pipelines.outcome import Outcome, Totals
from pipelines.run_record import STAGES, RunRecord

_SAID = {
    "published": "published",
    "unchanged": "nothing changed: stays published",
    "held": "NOT published: a gate failed",
}


def print_summary(outcome: Outcome, record: RunRecord, *, console: Console | None = None) -> None:
    """Prints the closing summary of a run to standard output."""
    print_lines(summary_lines(outcome, record), title="Summary", console=console)


def print_lines(lines: Sequence[tuple[str, str]], *, title: str, console: Console | None = None) -> None:
    """Prints (what, how much) pairs to standard output."""
    console = console or Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in lines:
        table.add_row(name, value)
    console.print(table)


def index_lines(config: IndexConfig, spec: IndexSpec, rows: int) -> list[tuple[str, str]]:
    """An index to be built, and why it is built so, as (what, how) pairs."""
    first, *others = explain_index(config, spec, rows)
    return [("index", first), *(("", line) for line in others)]


def summary_lines(outcome: Outcome, record: RunRecord) -> list[tuple[str, str]]:
    """The summary as (what, how much) pairs, in the order in which they are read."""
    totals = outcome.totals
    lines = [("products in", f"{totals.rows_in:,}")]
    lines += [("embedded", f"{totals.embedded:,}"), ("carried over", _carried_over(totals, record))]
    lines.append(("rejected", f"{totals.rejected:,}"))
    if totals.degraded:
        lines.append(("degraded", f"{totals.degraded:,} (indexed without the part that could not be used)"))
    lines += [(f"  {reason}", f"{count:,}") for reason, count in totals.by_reason.items()]
    if totals.texts_cut:
        lines.append(("texts cut", f"{totals.texts_cut:,} (longer than the text tower reads)"))
    shard_reports = [*record.reports("embed").values(), *record.reports("import").values()]
    skipped = sum(report["skipped"] for report in shard_reports)
    lines.append(("catalog shards", f"{totals.shards:,}, of which {skipped:,} stood complete and were skipped"))
    lines += [("seconds", _seconds_by_stage(record))]
    lines += [("codec", report["codec"]) for report in record.reports("train").values() if "codec" in report]
    re_ranked = f", {outcome.refine_factor} candidates re-ranked for each" if outcome.refine_factor else ""
    lines += [
        (
            "index",
            f"{totals.products:,} products, {outcome.factory}, {serving_shards(outcome.serving_shards)}, "
            f"{decimal(outcome.index_bytes)}",
        ),
        (
            f"recall {outcome.recall_k}@{outcome.recall_k}",
            f"{outcome.recall:.4f} against exact search ({outcome.recall_queries:,} {outcome.recall_over}, "
            f"nprobe {outcome.nprobe}{re_ranked}, {outcome.latency_ms:.2f} ms a query)",
        ),
        ("version", f"{outcome.version} ({_SAID[outcome.status]})"),
        ("at", outcome.uri),
    ]
    lines += [("gate failed", failed) for failed in outcome.failed_gates]
    return lines


def _carried_over(totals: Totals, record: RunRecord) -> str:
    said = record.reports("plan").get("all", {}).get("nothing_carried_over", "")
    if totals.pictures_unchanged:
        said = f"{totals.pictures_unchanged:,} pictures not read again: they have not changed"
    return f"{totals.carried_over:,}" + (f" ({said})" if said else "")


def _seconds_by_stage(record: RunRecord) -> str:
    """Busy seconds of each stage; those of units that ran side by side add up."""
    parts = []
    for stage in STAGES:
        reports = record.reports(stage).values()
        if reports:
            parts.append(f"{stage} {sum(report.get('seconds', 0.0) for report in reports):.1f}")
    return ", ".join(parts)
