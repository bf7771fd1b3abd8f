"""Answers one query in the terminal: `python -m pipelines.search --index URI "text" [--image FILE] [--filter WHICH]`.

Loads the published version only, its query encoder included. Exit codes: 0 answered, 1 a file turned out to be damaged
or could not be read while it searched, 2 the query, the filter, the group or the address cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import fsspec
import numpy as np

from encoders import ImageDecodingError, QueryEncoder, load_query_encoder
from index_builder import IndexReader, StorageError, VerificationError
from pipelines.config.command_line import address, run_command
from pipelines.config.exit_codes import failures_of_work
from pipelines.config.terminal import table_console
from pipelines.config.validation import ConfigError
from pipelines.published.answers import explained, print_explanations, print_why_not, why_not_values
from pipelines.published.letters import letters_of
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
    if arguments.offset < 0:
        raise ConfigError(f"--offset is {arguments.offset}: expected 0 or more")
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
    with failures_of_work(StorageError, VerificationError, remedy=""):
        _answer(arguments, reader, encoder, vectors)
    return 0


def _answer(arguments: argparse.Namespace, reader: IndexReader, encoder: QueryEncoder, vectors: np.ndarray) -> None:
    """Searches, and prints what was found."""
    settings = {name: getattr(arguments, name) for name in ("k", "filter", "nprobe", "refine_factor", "offset")}
    settings["group"] = arguments.group_by or arguments.group or None
    if arguments.why_not is not None:
        why = reader.why_not(arguments.why_not, vectors[0], **settings, parts=encoder.parts)
        version = reader.manifest.version
        letters = letters_of(arguments.index, version, arguments.why_not)
        if arguments.json:
            print_json(why_not_values(why, letters))
        else:
            print_why_not(why, letters, version=version, asked={"k": arguments.k, "offset": arguments.offset})
        return
    result = reader.search(vectors, **settings)
    places = range(len(result.product_ids[0]) if arguments.explain else 0)
    explanations = [result.explain(place, parts=encoder.parts) for place in places]
    if arguments.json:
        found = found_products(result)
        for product, explanation in zip(found, explanations, strict=False):
            product["explanation"] = explained(explanation)
        print_json(found)
        return
    console, filtered = table_console(width=110), arguments.filter is not None
    print_result(result, title=_title(arguments), console=console, filtered=filtered)
    if arguments.explain:
        mixed = f"scores of the {encoder.model} encoder have no shares of text and image"
        print_explanations(explanations, first_rank=1 + arguments.offset, mixed=mixed, console=console)


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
    parser.add_argument("--group", action="store_true", help="one answer for products of one catalog.group_field")
    parser.add_argument("--group-by", metavar="COLUMN", help="the same for products of one value in another column")
    parser.add_argument("-k", type=int, default=10, metavar="N", help="products, or groups, to show (default 10)")
    parser.add_argument("--offset", type=int, default=0, metavar="N", help="leave out the first N: the next page")
    parser.add_argument("--explain", action="store_true", help="what each score is made of")
    of_why_not = "where this product is, or what keeps it out: the catalog, the filter, the lists probed, its score"
    parser.add_argument("--why-not", metavar="ID", help=of_why_not)
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("--nprobe", type=int, metavar="N", help="inverted lists probed (default: as measured)")
    of_factor = "candidates re-ranked for each answer (default: as measured)"
    parser.add_argument("--refine-factor", type=int, metavar="N", help=of_factor)
    parser.add_argument("--version", metavar="ID", help="search this version instead of the published one")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
