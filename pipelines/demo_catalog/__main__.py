"""Draws products into a folder: `python -m pipelines.demo_catalog --out DIR [--products N | --pairs N]`.

Exit codes: 0 drawn, 1 failed while it drew (run it again), 2 the folder cannot be written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from index_builder import storage
from pipelines.config.command_line import run_command
from pipelines.config.exit_codes import failures_of_work
from pipelines.demo_catalog.write import DEFAULT_PRODUCTS, DEFAULT_SEED, write_demo_catalog, write_training_pairs


def main(argv: Sequence[str]) -> int:
    """Draws; errors are raised."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.demo_catalog",
        description="Draw the demo catalog with its queries and judgments, or pairs to train the demo encoder on.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder, local or fsspec, that is written")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--products",
        type=_count,
        default=DEFAULT_PRODUCTS,
        metavar="N",
        help="products of the demo catalog (default: %(default)s)",
    )
    what.add_argument("--pairs", type=_count, metavar="N", help="draw N training pairs of query and product instead")
    parser.add_argument(
        "--seed", type=int, default=DEFAULT_SEED, help="another seed draws other products (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    storage.check_writable(arguments.out)
    with failures_of_work(remedy="Run the same command again."):
        if arguments.pairs is not None:
            write_training_pairs(arguments.out, pairs=arguments.pairs, seed=arguments.seed)
            print(f"{arguments.pairs} training pairs are in {arguments.out}")
        else:
            write_demo_catalog(arguments.out, products=arguments.products, seed=arguments.seed)
            print(f"{arguments.products} products, their test queries and judgments are in {arguments.out}")
    return 0


def _count(text: str) -> int:
    count = int(text) if text.isascii() and text.isdecimal() else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return count


if __name__ == "__main__":
    sys.exit(run_command(main))
