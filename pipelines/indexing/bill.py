"""The bill of a run is made out before it: time, workers, memory, disk, requests and money of each stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from pipelines.config.job import PlanConfig, PricesConfig
from pipelines.config.terminal import table_console
from pipelines.indexing.rates import measured_rates, rated_costs
from pipelines.indexing.stage_costs import StageCost, Workload, index_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """What a run would take.

    Attributes:
        workers: That work side by side.
        index_bytes: Of the version's index and refine files.
        measured_in: Names of the runs whose rates were taken.
    """

    work: Workload
    stages: tuple[StageCost, ...]
    workers: int
    prices: PricesConfig
    index_bytes: float
    measured_in: tuple[str, ...] = ()

    @property
    def cpu_seconds(self) -> float:
        """Of all stages."""
        return sum(stage.cpu_seconds for stage in self.stages)

    @property
    def wall_seconds(self) -> float:
        """From the first stage to the last: each waits for the one before."""
        return sum(stage.wall_seconds(self.workers) for stage in self.stages)

    @property
    def kept(self) -> float:
        """Bytes that stay on the store."""
        return sum(stage.kept for stage in self.stages)

    def money(self, stage: StageCost) -> float:
        """Of a stage, for the workers that it keeps busy, its requests, and what it reads."""
        spent = stage.busy_seconds, stage.requests, stage.read
        return self.prices.of_stage(stage.stage, *spent, on_gpu=self.work.towers.on_gpu)

    @property
    def has_prices(self) -> bool:
        """Whether there is anything to reckon money with."""
        return self.prices.prices_work or self.prices.gb_month is not None


def make_out_bill(work: Workload, config: PlanConfig, work_uri: str) -> Bill:
    """The bill at given rates, else those measured on `work_uri`, else first guesses."""
    rates = measured_rates(work_uri, work)
    stages = rated_costs(work, config, rates, work_uri)
    used = {rates[stage.stage].run for stage in stages if stage.source == "measured"}
    return Bill(
        work=work,
        stages=stages,
        workers=config.workers,
        prices=config.prices,
        index_bytes=index_bytes(work),
        measured_in=tuple(sorted(used)),
    )


def print_bill(bill: Bill, *, console: Console | None = None) -> None:
    """Prints the bill to standard output as a table, with what it rests on below."""
    console = console or table_console(116)
    workers = "1 worker" if bill.workers == 1 else f"{bill.workers:,} workers"
    table = Table(
        title=f"Bill for {bill.work.rows:,} rows on {workers}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("stage")
    names = ("workers", "time", "CPU", "memory", "reads", "writes", "disk", "requests")
    for name in (*names, *(["money"] if bill.has_prices else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("rate")
    for stage in bill.stages:
        table.add_row(*_cells(bill, stage))
    total = [
        *("total", "", duration(bill.wall_seconds), duration(bill.cpu_seconds)),
        decimal(int(max(stage.memory for stage in bill.stages))),
        *(_size(sum(getattr(stage, name) for stage in bill.stages)) for name in ("read", "written")),
        _size(max(stage.scratch for stage in bill.stages)),
        count(sum(stage.requests for stage in bill.stages)),
    ]
    if bill.has_prices:
        total.append(f"{sum(map(bill.money, bill.stages)):,.2f}")
    table.add_section()
    table.add_row(*total, "")
    console.print(table)
    for line in notes(bill):
        console.print(line, style="dim", highlight=False)


def _cells(bill: Bill, stage: StageCost) -> list[str]:
    cells = [
        stage.stage,
        f"{min(bill.workers, stage.tasks):,}",
        duration(stage.wall_seconds(bill.workers)),
        duration(stage.cpu_seconds),
        decimal(int(stage.memory)),
        *(_size(getattr(stage, name)) for name in ("read", "written", "scratch")),
        count(stage.requests),
    ]
    return [*cells, *([f"{bill.money(stage):,.2f}"] if bill.has_prices else []), stage.source]


def notes(bill: Bill) -> Sequence[str]:
    """What stands below the table."""
    work = bill.work
    lines = [
        f"{work.embedded:,} products go through the towers, {work.carried:,} are carried over; "
        f"{work.open_shards:,} of {work.shards:,} shards are made",
        f"index {work.spec.factory}: {decimal(int(bill.index_bytes))}; kept on the store in all: "
        f"{decimal(int(bill.kept))}"
        + (f", {bill.kept / 1e9 * bill.prices.gb_month:,.2f} a month" if bill.prices.gb_month is not None else ""),
    ]
    if bill.workers > 1 and bill.has_prices:
        held = bill.workers * bill.wall_seconds / 3600 * (bill.prices.worker_hour or 0.0)
        lines.append(f"with all workers paid for from the first stage to the last, these cost {held:,.2f}")
    sources = {stage.source for stage in bill.stages}
    if "measured" in sources:
        lines.append(f"measured: CPU seconds in {', '.join(bill.measured_in)}, of this work.uri")
    if "guess" in sources:
        lines.append("guess: no run here has measured it; COST.md says what the guess is made of")
    return lines


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    for unit, size, most in (("min", 60.0, 99.5), ("h", 3600.0, 47.5)):
        if seconds / size < most:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} d"


def count(number: float) -> str:
    """A number of requests, rounded where it is large."""
    for size, letter in ((1e9, " G"), (1e6, " M")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:,.0f}"


def _size(size: float) -> str:
    return decimal(int(size)) if size else ""
