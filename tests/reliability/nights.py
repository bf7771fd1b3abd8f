"""Simulated nights of a shop: adds, deletes, edits, a drift, a killed night in five; counts, disk and quiet nights.

    python -m tests.reliability.nights --trials 12 --seed 16

After each night the published version must hold exactly the shop's products; the disk that work and index take must
stay within three times what the first night took, in proportion to the shop; a night without changes must publish
nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import time
from pathlib import Path
from random import Random

from index_builder import IndexReader
from tests.reliability.kills import LONGEST_SECONDS, start
from tests.reliability.trials import Outcomes, run_command

ALLOWED = frozenset({"exact"})
PRODUCTS = 200
KEPT_VERSIONS = 3
ROOM = 3.0


def disk_bytes(folder: Path) -> int:
    """Bytes of all files of work and index, but for the records of runs."""
    files = (path for root in ("work", "index") for path in (folder / root).rglob("*"))
    return sum(path.stat().st_size for path in files if path.is_file() and "runs" not in path.parts)


def night(folder: Path, random: Random, *, is_killed: bool, seconds: float) -> str:
    """Runs one night to its end, if need be after a kill; "" where it ended well."""
    options = ["--index.keep_versions", str(KEPT_VERSIONS), "--gates.max_row_change", "1"]
    if is_killed:
        process = start(folder, *options)
        deadline = time.monotonic() + random.uniform(0.3, 0.9) * seconds
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait(LONGEST_SECONDS)
    code = start(folder, *options).wait(LONGEST_SECONDS)
    return f"exit {code}: {(folder / 'log.txt').read_text()[-300:]}" if code else ""


def run(trials: int, seed: int) -> Outcomes:
    """So many nights."""
    from tests.pipelines.indexing.job import arguments, product, write_catalog

    logging.disable()
    outcomes, random = Outcomes(ALLOWED), Random(seed)
    with tempfile.TemporaryDirectory(prefix="shelfmark-reliability-") as root:
        folder = Path(root, "shop")
        rows = {number: product(number) for number in range(PRODUCTS)}
        write_catalog(folder / "catalog", list(rows.values()))
        arguments(folder)
        following, first_bytes, seconds, quiet_version = PRODUCTS, 0, 10.0, ""
        for number in range(trials):
            kind = "quiet" if number % 4 == 3 else "killed" if number % 5 == 4 else "changed" if number else "first"
            if kind in ("killed", "changed"):
                for gone in random.sample(sorted(rows), random.randint(0, 12)):
                    del rows[gone]
                for changed in random.sample(sorted(rows), 8):
                    rows[changed] = product(changed, title=f"{random.choice(['red', 'blue'])} mug {number}")
                added = random.randint(0, 15)
                rows |= {each: product(each) for each in range(following, following + added)}
                following += added
                write_catalog(folder / "catalog", list(rows.values()))
            started = time.monotonic()
            failed = night(folder, random, is_killed=kind == "killed", seconds=seconds)
            if failed:
                outcomes.add(kind, number, failed)
                continue
            reader = IndexReader.open(str(folder / "index"), verify="full")
            found, version = set(reader.products.column("product_id").to_pylist()), reader.manifest.version
            expected = {row["product_id"] for row in rows.values()}
            size = disk_bytes(folder)
            if not number:
                first_bytes, seconds = size, time.monotonic() - started
            outcome = "exact"
            if found != expected or reader.products.num_rows != len(expected):
                outcome = f"{len(found)} products in place of {len(expected)}"
            elif size > ROOM * first_bytes * max(1.0, len(rows) / PRODUCTS):
                outcome = f"disk: {size:,} bytes after {first_bytes:,}"
            elif kind == "quiet" and version != quiet_version:
                outcome = f"published {version} though nothing changed"
            quiet_version = version
            outcomes.add(kind, number, outcome)
    return outcomes


if __name__ == "__main__":
    run_command("Nights", 12, run)
