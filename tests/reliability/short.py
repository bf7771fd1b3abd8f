"""A few trials of each kind that takes less than a second: `python -m tests.reliability.short --seed 3`."""

from __future__ import annotations

import sys

from tests.reliability import addresses, catalogs, images, publishers, s3, store, versions
from tests.reliability.trials import options

TRIALS = {images: 60, catalogs: 5, addresses: 300, publishers: 12, store: 50, versions: 50, s3: 6}


def main() -> int:
    """Prints a table for each kind; 1 where a trial was lost."""
    given = options("Short trials", 1)
    lost = 0
    for module, trials in TRIALS.items():
        outcomes = module.run(trials * given.trials, given.seed)
        outcomes.print(module.__name__.rpartition(".")[2], given.seed)
        lost += len(outcomes.losses)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
