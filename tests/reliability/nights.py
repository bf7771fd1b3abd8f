"""Nights of a shop: adds, deletes, edits, other encoders, drifts, a killed one in five, a quiet one in four.

    python -m tests.reliability.nights --trials 12 --seed 16

After each night the published version must hold exactly the shop's products; the disk that work and index take must
stay within three times what the first night took, in proportion to the shop, and so must the number of records; a night
without changes must publish nothing and leave no more on the disk than it found, unless recall fell in the night before
so far that it trains the codec anew.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from index_builder import publish
from tests.reliability import forks
from tests.reliability.kills import Ground, kill_once, shop
from tests.reliability.trials import Outcomes, run_apart, run_command

ALLOWED = frozenset({"exact", "codec trained anew"})
PRODUCTS = 120
KEPT_VERSIONS = 3
ROOM = 3.0
COLOURS = ("red", "blue")


@dataclass
class Shop:
    """What a shop sells.

    Attributes:
        rows: The catalog's, by number.
        following: The number of the next new product.
    """

    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    following: int = 0

    def add(self, count: int) -> None:
        """New products."""
        from tests.pipelines.indexing.job import product

        self.rows |= {each: product(each) for each in range(self.following, self.following + count)}
        self.following += count

    def edit(self, numbers: list[int], title: str) -> None:
        """Gives products another title, the same for all but a word."""
        from tests.pipelines.indexing.job import product

        self.rows |= {each: product(each, title=f"{title} {COLOURS[each % 2]}") for each in numbers}

    def change(self, random: Random, night: int) -> None:
        """A day: up to 12 products go, 8 are edited, up to 15 come."""
        for gone in random.sample(sorted(self.rows), random.randint(0, 12)):
            del self.rows[gone]
        self.edit(random.sample(sorted(self.rows), 8), f"mug {night}")
        self.add(random.randint(0, 15))


def kind_of(night: int) -> str:
    """What happens in a night, by its number."""
    if not night:
        return "first"
    if night % 4 == 3:
        return "quiet"
    if night % 5 == 4:
        return "killed"
    return {6: "other encoder", 10: "drift"}.get(night % 12, "changed")


def disk_bytes(folder: Path) -> int:
    """Bytes of all files of work and index, but for the records of runs and the lease, which tell seconds."""
    files = (path for root in ("work", "index") for path in (folder / root).rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file() and not {"runs", "lease"} & {*path.parts})


def look(index: str, rows: Mapping[int, Mapping[str, Any]]) -> str:
    """Opens the published version and compares its products with the shop's."""
    from index_builder import IndexReader

    reader = IndexReader.open(index, verify="full")
    found = dict(zip(*(reader.products.column(name).to_pylist() for name in ("product_id", "title")), strict=True))
    expected = {row["product_id"]: row["title"] for row in rows.values()}
    if found == expected and reader.products.num_rows == len(expected):
        return "exact"
    others = len(found.items() ^ expected.items())
    return f"{reader.products.num_rows} products in place of {len(expected)}, {others} not the same"


def run(trials: int, seed: int) -> Outcomes:
    """So many nights."""
    forks.load()
    logging.disable()
    from pipelines.indexing.work_folder import RUNS_KEPT
    from tests.encoders.tiny import save_tiny_encoder
    from tests.pipelines.indexing.job import write_catalog

    outcomes, random, sold = Outcomes(ALLOWED), Random(seed), Shop()
    sold.add(PRODUCTS)
    fixed = ("--index.keep_versions", str(KEPT_VERSIONS), "--gates.max_row_change", "1")
    with tempfile.TemporaryDirectory(prefix="shelfmark-reliability-") as root, shop(Path(root), PRODUCTS) as folder:
        index, log = str(folder / "index"), folder / "log.txt"
        ground = Ground(folder, "one process", options=fixed)
        first = files = size = 0
        version = ""
        for number in range(trials):
            kind = kind_of(number)
            if kind not in ("first", "quiet"):
                sold.change(random, number)
            if kind == "drift":
                sold.edit(random.sample(sorted(sold.rows), len(sold.rows) // 3), f"striped bowl {number}")
            if kind == "other encoder":
                uri = folder / f"encoder-{number}"
                forks.do(lambda uri=uri, number=number: bool(save_tiny_encoder(uri, seed=number)) - 1, log=log)
                ground.options = (*fixed, "--encoder.uri", str(uri))
            forks.do(lambda: write_catalog(folder / "catalog", list(sold.rows.values())) or 0, log=log)
            log.write_text("")
            if kind == "killed":
                kill_once(ground, random, files)
            if code := ground.finish(ground.start()):
                outcomes.add(kind, number, f"exit {code}: {ground.said()}")
                continue
            ((_, outcome),) = run_apart([number], lambda _: look(index, sold.rows))
            before, size, earlier = size, disk_bytes(folder), version
            version = publish.read_current(index)
            if not number:
                first, files = size, ground.made(set())
            if outcome != "exact":
                pass
            elif size > ROOM * first * max(1.0, len(sold.rows) / PRODUCTS):
                outcome = f"disk: {size:,} bytes after {first:,}"
            elif len(ground.runs()) > RUNS_KEPT + 1:
                outcome = f"disk: {len(ground.runs())} records of runs"
            elif kind == "quiet" and re.search(r"codec +trained: recall fell", log.read_text()):
                outcome = "codec trained anew"  # as the night before, which changed much, had announced
            elif kind == "quiet" and (version != earlier or size > before):
                outcome = f"not quiet: {version} after {earlier}, {size:,} bytes after {before:,}"
            outcomes.add(kind, number, outcome)
    return outcomes


if __name__ == "__main__":
    run_command("Nights", 12, run)
