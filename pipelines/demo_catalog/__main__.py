"""Draws products into a folder: `python -m pipelines.demo_catalog --out DIR [--products N | --pairs N]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from index_builder.errors import IndexBuilderError
from pipelines.demo_catalog.write import DEFAULT_PRODUCTS, DEFAULT_SEED, write_demo_catalog, write_training_pairs


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and gives its exit code."""
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
    try:
        if arguments.pairs is not None:
            write_training_pairs(arguments.out, pairs=arguments.pairs, seed=arguments.seed)
            print(f"{arguments.pairs} training pairs are in {arguments.out}")
        else:
            write_demo_catalog(arguments.out, products=arguments.products, seed=arguments.seed)
            print(f"{arguments.products} products, their test queries and judgments are in {arguments.out}")
    except IndexBuilderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _count(text: str) -> int:
    count = int(text) if text.isascii() and text.isdecimal() else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text!r}")
    return count


if __name__ == "__main__":
    sys.exit(main())
