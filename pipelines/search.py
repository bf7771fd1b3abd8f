"""Answers one query in the terminal: `python -m pipelines.search --index URI "text" [--image FILE] [--filter WHICH]`.

Loads the published version only, its query encoder included. Exit codes: 0 answered, 2 the query, the filter or the
address cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import fsspec

from encoders import ImageDecodingError, load_query_encoder
from index_builder import IndexReader
from pipelines.config.command_line import address, run_command
from pipelines.config.terminal import table_console
from pipelines.config.validation import ConfigError
from pipelines.published.tables import found_products, print_json, print_result


def main(argv: Sequence[str]) -> int:
    """Searches and prints rank, score, product id and the display columns."""
    arguments = _parser().parse_args(argv)
    if arguments.text is not None and not arguments.text.strip():
        raise ConfigError(f"the query's text is {arguments.text!r}: expected words")
    if arguments.text is None and arguments.image is None:
        raise ConfigError("nothing to search for: expected a text, --image FILE, or both")
    if arguments.k < 1:
        raise ConfigError(f"-k is {arguments.k}: expected 1 or more")
    reader = IndexReader.open(arguments.index, version=arguments.version)
    if reader.query_encoder_uri is None:
        raise ConfigError(f"--index {arguments.index}: version {reader.manifest.version} has no query encoder")
    encoder = load_query_encoder(reader.query_encoder_uri, device=arguments.device)
    images = None if arguments.image is None else [_read_image(arguments.image)]
    if images is not None and not encoder.accepts_images:
        raise ConfigError(
            f"--image {arguments.image}: the {encoder.model} encoder of {reader.manifest.version} reads only text"
        )
    if arguments.text is not None and not encoder.accepts_text:
        raise ConfigError(
            f"{arguments.text!r}: the {encoder.model} encoder of {reader.manifest.version} reads only pictures: "
            "expected --image"
        )
    try:
        vectors = encoder.encode(texts=None if arguments.text is None else [arguments.text], images=images)
    except ImageDecodingError as error:
        raise ConfigError(f"--image {arguments.image}: expected a picture (JPEG, PNG, WebP ...): {error}") from error
    result = reader.search(vectors, arguments.k, arguments.filter)
    if arguments.json:
        print_json(found_products(result))
    else:
        print_result(
            result, title=_title(arguments), console=table_console(width=110), filtered=arguments.filter is not None
        )
    return 0


def _title(arguments: argparse.Namespace) -> str:
    asked = [f'"{arguments.text}"'] if arguments.text is not None else []
    asked += [f"picture {arguments.image.rsplit('/', 1)[-1]}"] if arguments.image is not None else []
    return " + ".join(asked) + (f" where {arguments.filter}" if arguments.filter else "")


def _read_image(uri: str) -> bytes:
    try:
        with fsspec.open(uri, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise ConfigError(f"--image {uri}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: no file system of that scheme
        raise ConfigError(f"--image {uri}: cannot be read: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.search", description="Search a published version with a text, a picture, or both."
    )
    parser.add_argument("text", nargs="?", help="the query's words")
    of_index = "where versions are published (index.uri)"
    parser.add_argument("--index", type=address, required=True, metavar="URI", help=of_index)
    parser.add_argument("--image", type=address, metavar="FILE", help="a picture to search with: path or URI")
    of_filter = "only products for which this is true, in SQL's words: \"kind = 'chair' and price < 50\""
    parser.add_argument("--filter", metavar="WHICH", help=of_filter)
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="products to show (default 10)")
    parser.add_argument("--version", metavar="ID", help="search this version instead of the published one")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
