"""Writes a version into the engine that a shop has: `python -m pipelines.export --index URI --to ENGINE --out WHERE`.

Every row goes there with its id, columns and vector, under a name of the version's own; the name that queries use
points to it once all have arrived. Exit codes: 0 done, 1 failed in work (the engine answers as before), 2 refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from index_builder.version_rows import VectorSource
from pipelines.config.command_line import address, run_command
from pipelines.exporting.export import VectorType
from pipelines.exporting.run import ENGINES, export_version


def main(argv: Sequence[str]) -> int:
    """Exports, and says what was made."""
    arguments = _parser().parse_args(argv)
    done = export_version(
        arguments.index,
        arguments.to,
        arguments.out,
        version=arguments.version,
        name=arguments.name,
        vectors=arguments.vectors,
        vector_field=arguments.vector_field,
        vector_type=arguments.vector_type,
        keep=arguments.keep,
    )
    if done.stood:
        print(
            f"{done.version}: its {done.rows:,} rows stood there whole, as they were exported; none was written again"
        )
    else:
        print(f"{done.version}: {done.rows:,} rows in {done.seconds:,.1f} s, vectors {done.vectors_are}")
    print(f"{arguments.to}: {done.made}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.export", description="Write a version's ids, columns and vectors into another engine."
    )
    parser.add_argument(
        "--index", type=address, required=True, metavar="URI", help="where versions are published (index.uri)"
    )
    parser.add_argument("--version", metavar="ID", help="this version instead of the published one")
    parser.add_argument("--to", choices=list(ENGINES), required=True, help="which engine")
    of_out = "parquet, lance: a folder; the others: the engine's address, such as postgresql://host/shop"
    parser.add_argument("--out", type=address, required=True, metavar="WHERE", help=of_out)
    of_name = "what queries use: alias, view or dataset (default products)"
    parser.add_argument("--name", default="products", metavar="NAME", help=of_name)
    of_vectors = "from the embedding shards, or turned back from the version's codes (default: the first that there is)"
    parser.add_argument("--vectors", choices=get_args(VectorSource), help=of_vectors)
    parser.add_argument("--vector-field", default="vector", metavar="NAME", help="their column (default vector)")
    parser.add_argument("--vector-type", choices=get_args(VectorType), default="float32", help="default float32")
    of_keep = "versions that stay there, this one included (default 2)"
    parser.add_argument("--keep", type=int, default=2, metavar="N", help=of_keep)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
