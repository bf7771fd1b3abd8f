"""One query in the terminal: `python -m pipelines.search --index URI "text" [--image FILE]`.

Loads the published version only, its query encoder included.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import fsspec
from PIL import Image, UnidentifiedImageError
from rich.console import Console
from rich.table import Table

from encoders import load_query_encoder
from index_builder import IndexReader, SearchResult
from pipelines.config.command_line import run_command
from pipelines.config.validation import ConfigError

SCORE_DIGITS = 4


def main(argv: Sequence[str]) -> int:
    """Searches and prints rank, score, product id and the display columns."""
    arguments = _parser().parse_args(argv)
    if arguments.text is None and arguments.image is None:
        raise ConfigError("nothing to search for: expected a text, --image FILE, or both")
    if arguments.k < 1:
        raise ConfigError(f"-k is {arguments.k}: expected 1 or more")
    reader = IndexReader.open(arguments.index, version=arguments.version)
    if reader.query_encoder_uri is None:
        raise ConfigError(f"--index {arguments.index}: version {reader.manifest.version} has no query encoder")
    encoder = load_query_encoder(reader.query_encoder_uri, device=arguments.device)
    images = None if arguments.image is None else [_open_picture(arguments.image)]
    if images is not None and not encoder.accepts_images:
        raise ConfigError(
            f"--image {arguments.image}: the {encoder.model} encoder of {reader.manifest.version} reads only text"
        )
    if arguments.text is not None and not encoder.accepts_text:
        raise ConfigError(
            f"{arguments.text!r}: the {encoder.model} encoder of {reader.manifest.version} reads only pictures: "
            "expected --image"
        )
    vectors = encoder.encode(texts=None if arguments.text is None else [arguments.text], images=images)
    result = reader.search(vectors, arguments.k)
    print_result(reader, result, title=_title(arguments))
    return 0


def print_result(reader: IndexReader, result: SearchResult, *, title: str, console: Console | None = None) -> None:
    """Prints the products found for the first query as a table, display columns beside the id."""
    columns = [name for name in reader.products.column_names if name != "product_id"]
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("product_id", no_wrap=True)
    for name in columns:
        table.add_column(name)
    rows = [int(row) for row in result.rows[0] if row >= 0]
    found = reader.products.take(rows).select(columns).to_pylist() if rows else []
    for rank, (score, product_id, shown) in enumerate(
        zip(result.scores[0], result.product_ids[0], found, strict=False), start=1
    ):
        cells = ["" if shown[name] is None else str(shown[name]) for name in columns]
        table.add_row(str(rank), f"{score:.{SCORE_DIGITS}f}", product_id, *cells)
    # A pipe has no width of its own; wide enough that titles stay on their line.
    console = console or Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    if not rows:
        console.print("no product found")


def _title(arguments: argparse.Namespace) -> str:
    parts = [f'"{arguments.text}"'] if arguments.text is not None else []
    parts += [f"picture {arguments.image.rsplit('/', 1)[-1]}"] if arguments.image is not None else []
    return " + ".join(parts)


def _open_picture(uri: str) -> Image.Image:
    try:
        with fsspec.open(uri, "rb") as file:
            picture = Image.open(file)
            picture.load()
    except FileNotFoundError as error:
        raise ConfigError(f"--image {uri}: no such file") from error
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"--image {uri}: expected a picture (JPEG, PNG, WebP ...), found none: {error}") from error
    return picture


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.search", description="Search a published version with a text, a picture, or both."
    )
    parser.add_argument("text", nargs="?", help="the query's words")
    parser.add_argument("--index", required=True, metavar="URI", help="where versions are published (index.uri)")
    parser.add_argument("--image", metavar="FILE", help="a picture to search with: path or URI")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="products to show (default 10)")
    parser.add_argument("--version", metavar="ID", help="search this version instead of the published one")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
