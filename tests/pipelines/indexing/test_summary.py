from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from pipelines.indexing.progress import print_summary, summary_lines
from pipelines.indexing.publish_step import RunResult
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import Totals


def outcome(status: str, failed: list[str]) -> RunResult:
    totals = Totals(
        rows_in=1200, products=1100, embedded=100, carried_over=1020, degraded=3, rejected=100, texts_cut=7,
        pictures_unchanged=4, shards=4,
        by_reason={"degraded: picture_missing": 3, "rejected: duplicate_id": 20, "rejected: missing_id": 80},
    )  # fmt: skip
    return RunResult(
        status=status, version="20261121T000000Z-0123456789ab", uri="index/versions/x", totals=totals,
        failed_gates=failed, index_bytes=2_500_000, recall=0.9512, recall_k=10, recall_queries=110, nprobe=4,
        latency_ms=0.213, factory="OPQ8_32,IVF16,PQ8x8", serving_shards=2, previous_version="",
    )  # fmt: skip


def test_the_summary_accounts_for_every_product(tmp_path):
    record = RunRecord(uri=str(tmp_path))
    for unit, skipped in (("0", True), ("1", False), ("2", False), ("3", False)):
        record.report("embed", unit, skipped=skipped, seconds=2.0, rows_in=300, products=275, embedded=25)
    record.report("train", "all", seconds=1.25)
    lines = dict(summary_lines(outcome("published", []), record))
    assert lines["products in"] == "1,200"
    assert lines["carried over"] == "1,020 (4 pictures not read again: they have not changed)"
    assert lines["  rejected: duplicate_id"] == "20"
    assert lines["catalog shards"] == "4, of which 1 stood complete and were skipped"
    assert lines["seconds"] == "embed 8.0, train 1.2"
    assert lines["index"] == "1,100 products, OPQ8_32,IVF16,PQ8x8, 2 serving shards, 2.5 MB"
    assert lines["recall 10@10"].startswith("0.9512 against exact search (110 held-out products, nprobe 4, 0.21 ms")
    assert lines["version"] == "20261121T000000Z-0123456789ab (published)"


def test_the_summary_says_why_nothing_was_carried_over(tmp_path):
    record = RunRecord(uri=str(tmp_path))
    record.report("plan", "all", seconds=0.1, nothing_carried_over="--full was given")
    totals = replace(outcome("published", []).totals, carried_over=0, pictures_unchanged=0)
    lines = dict(summary_lines(replace(outcome("published", []), totals=totals), record))
    assert lines["carried over"] == "0 (--full was given)"


def test_a_failed_gate_is_said_plainly(tmp_path, capsys):
    failed = ["gates.max_rejected_share: 100 of 1,200 rows (8.3%) were rejected, at most 5.0% are allowed"]
    print_summary(outcome("held", failed), RunRecord(uri=str(tmp_path)), console=Console(width=120, highlight=False))
    printed = capsys.readouterr().out
    assert "NOT published: a gate failed" in printed
    assert failed[0] in printed
