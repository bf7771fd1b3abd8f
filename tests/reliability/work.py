"""Flips and cuts over every file of a work folder: healed, or refused and healed by the next run; never published.

    python -m tests.reliability.work --trials 200 --seed 16

The night is run again over a folder in which one to three files are damaged. It must come to the very version of before
("nothing changed"), if need be at the second go.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from random import Random

from index_builder import publish
from tests.reliability.trials import Outcomes, damaged, iter_apart, run_apart, run_command

ALLOWED = frozenset({"healed", "refused, then healed"})
PRODUCTS = 120


def run(trials: int, seed: int, kept: Path | None = None) -> Outcomes:
    """So many damages, each of a fresh copy of the folder."""
    logging.disable()
    outcomes = Outcomes(ALLOWED, kept=kept)
    waiting = [trial for trial in range(trials) if ("work folder", repr(trial)) not in outcomes.done]
    with tempfile.TemporaryDirectory(prefix="shelfmark-reliability-") as folder:
        shop, made = Path(folder, "shop"), Path(folder, "made")

        def first(_: int) -> str:
            from tests.pipelines.indexing.job import product, run_job, write_catalog

            write_catalog(shop / "catalog", [product(number) for number in range(PRODUCTS)])
            run_job(shop)
            return "made"

        ((_, outcome),) = run_apart([0], first, seconds=300)  # the parent loads no towers: it is forked from
        if outcome != "made":
            raise RuntimeError(outcome)
        shutil.copytree(shop, made)
        version = publish.read_current(str(shop / "index"))
        files = [path.relative_to(shop) for path in sorted((shop / "work").rglob("*")) if path.is_file()]
        files = [path for path in files if "runs" not in path.parts and "lease" not in path.parts]

        def attempt(trial: int) -> str:
            from pipelines.config.exit_codes import EXPECTED_ERRORS, RunFailedError
            from tests.pipelines.indexing.job import run_job

            random = Random(f"{seed} {trial}")
            shutil.rmtree(shop)
            shutil.copytree(made, shop)
            chosen = random.sample(files, random.choice([1, 1, 2, 3]))
            for name in chosen:
                path = shop / name
                path.write_bytes(damaged(path.read_bytes(), random))
            options = random.choice([[], ["--index.seed", "7", "--index.reuse_codec", "false"]])
            said = ""
            try:
                result, _ = run_job(shop, *options)
            except (RunFailedError, *EXPECTED_ERRORS) as error:
                said = str(error)
                result, _ = run_job(shop, *options)
            if options:  # another index; then the first one again, from what stands now
                result, _ = run_job(shop)
            name = result.version.partition("-")[2]
            if name != version.partition("-")[2]:
                return f"published {result.version} in place of {version} after damage to {chosen}"
            return f"refused, then healed: {said}" if said else "healed"

        for trial, outcome in iter_apart(waiting, attempt, seconds=600):
            outcomes.add("work folder", trial, outcome)
    return outcomes


if __name__ == "__main__":
    run_command("Damaged work folders", 200, run)
