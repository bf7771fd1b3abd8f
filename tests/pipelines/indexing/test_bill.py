from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rich.console import Console

from index_builder import storage
from index_builder.planner import plan_index
from index_builder.spec import IndexConfig
from pipelines.config.command_line import load_job_config
from pipelines.config.job import PlanConfig, PricesConfig
from pipelines.config.validation import ConfigError
from pipelines.images.config import FetchConfig
from pipelines.indexing.bill import Bill, make_out_bill, print_bill
from pipelines.indexing.forecast import UnreadImages
from pipelines.indexing.publish_step import RESULT_FILE
from pipelines.indexing.rates import measured_rates
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import FinishedRun, write_finished_run
from pipelines.indexing.stage_costs import StageCost, Towers, Workload, stage_costs
from pipelines.indexing.tower_memory import KEPT_BYTES
from tests.pipelines.indexing.job import product, write_catalog
from tests.pipelines.indexing.test_forecast import forecast

INDEX = IndexConfig(uri="index")


def workload(rows: int, **changes) -> Workload:
    """A first night over texts of 384 dimensions, in shards of 4,096."""
    shards = -(-rows // 4096)
    facts = {"rows": rows, "products": rows, "embedded": rows, "carried": 0, "index_rows": rows, "shards": shards}
    facts |= {"open_shards": shards, "spec": plan_index(INDEX, rows, 384), "index": INDEX}
    return Workload(**facts | {"towers": Towers(text=3.4e8, weights=22_565_376)} | changes)


def record_run(folder, name: str, work: Workload, factor: float, **plan) -> None:
    """Writes the record of a run that took `factor` times what is guessed of it, on two cores."""
    record = RunRecord(uri=str(folder / "runs" / name))
    costs = {cost.stage: cost for cost in stage_costs(work)}

    def spent(stage: str) -> dict:
        seconds = costs[stage].cpu_seconds * factor if stage in costs else 0.0
        return {"cpu_seconds": seconds, "seconds": seconds / 2}

    facts = {"rows": work.rows, "shards": work.shards, "shards_complete": 0, "nothing_carried_over": "first"} | plan
    record.report("plan", "all", start_cpu_seconds=3.0, **spent("plan"), **facts)
    record.report("load", "000000", **spent("load"))
    made = {"skipped": False, "rows_in": work.rows, "products": work.products, "embedded": work.embedded}
    record.report("embed", "000000", **spent("embed"), **made)
    for stage in ("number", "sample", "add", "merge", "verify", "publish"):
        record.report(stage, "all", **spent(stage))
    record.report("train", "all", kept=False, **spent("train"))
    totals = {"rows_in": work.rows, "products": work.products, "vectors": 0}
    result = {"totals": totals, "factory": work.spec.factory, "refine_factor": 0}
    storage.write_json_atomic(f"{record.uri}/{RESULT_FILE}", result)
    write_finished_run(str(folder), FinishedRun(name=name, shards=(), encoder="e"))


def costs_of(bill: Bill) -> dict[str, StageCost]:
    return {stage.stage: stage for stage in bill.stages}


def test_what_one_run_took_is_what_a_larger_one_will(tmp_path):
    record_run(tmp_path, "20260101", workload(20_000), 1.7)
    work = workload(1_000_000)
    bill = make_out_bill(work, PlanConfig(), str(tmp_path))
    assert {stage.source for stage in bill.stages} == {"measured"}
    assert bill.measured_in == ("20260101",)
    for guess in stage_costs(work):
        if guess.stage != "start":
            found = costs_of(bill)[guess.stage]
            assert found.cpu_seconds == pytest.approx(1.7 * guess.cpu_seconds)
            assert found.busy_seconds == pytest.approx(found.cpu_seconds / 2)
    # Where nothing has run the same is a guess.
    assert {stage.source for stage in make_out_bill(work, PlanConfig(), str(tmp_path / "new")).stages} == {"guess"}


def test_the_rates_are_those_of_the_last_run_that_did_the_work(tmp_path):
    work = workload(20_000)
    record_run(tmp_path, "1", work, 1.0)
    record_run(tmp_path, "2", work, 3.0)
    # A night in which nothing changed: its index was found built, and nothing went through the towers.
    record_run(tmp_path, "3", replace(work, embedded=0, carried=20_000, open_shards=5), 0.0, shards_complete=5)
    rates = measured_rates(str(tmp_path), work)
    assert {stage: rate.run for stage, rate in rates.items() if stage != "start"} == dict.fromkeys(
        ("plan", "load", "embed", "number", "sample", "train", "add", "merge", "verify", "publish"), "2"
    )
    assert rates["add"].factor == pytest.approx(3.0)


def test_given_rates_go_before_all_and_wait_for_the_store(tmp_path):
    given = PlanConfig(rates={"embed": 0.01, "verify": 2e-6}, request_ms=30.0)
    stages = costs_of(make_out_bill(workload(100_000), given, str(tmp_path)))
    assert (stages["embed"].source, stages["embed"].cpu_seconds) == ("given", pytest.approx(1000.0))
    verify = stages["verify"]
    assert verify.busy_seconds == pytest.approx(0.2 + verify.requests * 0.03)
    remote = costs_of(make_out_bill(workload(100_000), PlanConfig(), "memory://work"))["number"]
    assert remote.busy_seconds == pytest.approx(remote.cpu_seconds + remote.requests * 0.03)


def test_workers_share_tasks_and_not_what_one_does_alone(tmp_path):
    work = workload(409_600)
    one, many = (make_out_bill(work, PlanConfig(workers=workers), str(tmp_path)) for workers in (1, 64))
    embed = costs_of(many)["embed"]
    assert embed.tasks == 100
    assert embed.wall_seconds(64) == pytest.approx(2 * embed.busy_seconds / 100)  # 36 of 64 make two shards
    for stage in ("train", "verify"):
        assert costs_of(many)[stage].wall_seconds(64) == costs_of(one)[stage].wall_seconds(1)


def test_a_bill_in_money(tmp_path, capsys):
    prices = PricesConfig(worker_hour=3.6, thousand_requests=1.0, gb_month=10.0)
    work = workload(100_000)
    bill = make_out_bill(work, PlanConfig(prices=prices, rates={"embed": 0.01}, request_ms=0.0), str(tmp_path))
    embed = costs_of(bill)["embed"]
    assert bill.money(embed) == pytest.approx(1000 * 0.001 + embed.requests / 1000)
    print_bill(bill, console=Console(width=120))
    printed = capsys.readouterr().out
    assert "money" in printed
    assert f"{bill.kept / 1e9 * 10:,.2f} a month" in printed
    on_gpu = replace(bill, work=replace(work, towers=Towers(on_gpu=True)), prices=replace(prices, gpu_hour=36.0))
    assert on_gpu.money(embed) == pytest.approx(1000 * 0.011 + embed.requests / 1000)
    assert on_gpu.money(costs_of(bill)["add"]) == bill.money(costs_of(bill)["add"])
    print_bill(make_out_bill(work, PlanConfig(), str(tmp_path)), console=Console(width=120))
    assert "money" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("plan.rows", "many", "plan.rows is 'many': expected a number such as 1e9"),
        ("plan.workers", "0", "plan.workers is 0: expected 1 or more"),
        ("plan.rates.embd", "1", "plan.rates.embd is not known: expected one of embed, carry"),
        ("plan.prices.worker_hour", "-1", "plan.prices.worker_hour is -1"),
    ],
)
def test_a_plan_that_cannot_be_reckoned_with_is_refused(option, value, message):
    with pytest.raises(ConfigError, match=message):
        load_job_config([f"--{option}", value])


def test_a_plan_scales_the_shares_it_sees_and_reads_a_sample(tmp_path, capsys):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(200)])
    settings = ("--plan.sample_rows", "60", "--plan.rows", "1e9", "--plan.workers", "64", "--index.factory", "auto")
    planned = forecast(tmp_path, *settings)
    assert (planned.sampled_rows, planned.shards, planned.to_embed, planned.deleted) == (50, 4, 200, None)
    bill = planned.bill
    assert (bill.work.rows, bill.work.embedded, bill.workers) == (1_000_000_000, 1_000_000_000, 64)
    assert bill.work.shards == 20_000_000
    assert bill.work.spec.lists > 100_000
    assert bill.index_bytes == pytest.approx(1e9 * (bill.work.spec.code_bytes + 8), rel=0.02)  # and the centroids
    assert (bill.work.images, bill.work.images_outside) == (1.0, 0.0)
    assert bill.work.image_bytes == pytest.approx(len(product(0)["image"]["bytes"]), rel=0.2)
    assert not (tmp_path / "work" / "embeddings").exists()
    assert dict(planned.limits)["limits"].startswith("67.1 MB a record (catalog.max_record_bytes)")
    told = "\n".join(how for _, how in planned.limits)
    assert re.search(r"5\.\d GB of pictures that wait \(decode\.pending_images\), [\d.]+ GB to decode", told), told
    assert "268.4 MB of rows at a time" in told


def test_no_image_outside_the_catalog_is_read(tmp_path):
    """The network is closed to tests: what would fetch fails."""
    fetcher = UnreadImages(FetchConfig(), None, reads_local=False)
    known = fetcher.fetch("https://shop.example/a.jpg", '"v1"')
    assert (known.not_modified, known.etag) == (True, '"v1"')
    new, other = fetcher.fetch("https://shop.example/a.jpg"), fetcher.fetch("https://shop.example/b.jpg")
    assert new.data != other.data
    (tmp_path / "a.jpg").write_bytes(b"not looked at")
    assert fetcher.fetch(str(tmp_path / "a.jpg")).data != b"not looked at"
    assert fetcher.fetch(b"in the catalog").data == b"in the catalog"
    rows = [
        product(number) | {"image": {"bytes": None, "path": f"https://shop.example/{number}.jpg"}}
        for number in range(60)
    ]
    write_catalog(tmp_path / "catalog", rows)
    planned = forecast(tmp_path, "--index.factory", "Flat", "--plan.image_bytes", "200000")
    assert (planned.to_embed, planned.rejected) == (60, 0)
    assert (planned.bill.work.images_outside, planned.bill.work.image_bytes) == (1.0, 200_000)
    assert costs_of(planned.bill)["embed"].read > 60 * 200_000


def test_the_memory_of_a_worker_counts_what_it_keeps_of_its_towers():
    towers = Towers(text=3.4e8, weights=22_565_376)
    of = (towers, replace(towers, image=1e9))
    bills = [make_out_bill(workload(100_000, towers=each), PlanConfig(), "w") for each in of]
    memory = [costs_of(bill)["embed"].memory for bill in bills]
    assert memory[1] - memory[0] == KEPT_BYTES == 64 * 2**20
    assert memory[0] == 350e6 + 900e6 + 6 * towers.weights + KEPT_BYTES
