"""The view shows what a catalog was taken for, or how its config reads it.

So a person sees it before any product is embedded.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.catalog.config import without_login
from pipelines.catalog.dead_letters import cut_at_word
from pipelines.catalog.layouts import Recognised
from pipelines.catalog.products import ImageRef
from pipelines.config.terminal import print_lines, table_console

_TEXT_SHOWN = 200
_NAMES_SHOWN = 20
_DATE = re.compile(r"(?<!\d)(?:(?:19|20)\d\d[-_.]?[01]\d[-_.]?[0-3]\d|[0-3]?\d[-_.][0-3]?\d[-_.](?:19|20)\d\d)(?!\d)")


ShownProduct = tuple[str, str | None, tuple[ImageRef, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogView:
    """A catalog as it is understood, for people.

    Attributes:
        rows: Rows or records of all files.
        samples: (id, text, pictures) of the first products, as they would be embedded.
        encoder: Which encoder will do that, in one line.
        folders: `work.uri` and `index.uri`, as they were given.
        yaml: The job to keep, with every field named.
    """

    recognised: Recognised
    rows: int
    samples: tuple[ShownProduct, ...]
    encoder: str
    folders: tuple[str, str]
    yaml: str


def print_view(view: CatalogView, products: int, *, console: Console | None = None) -> None:
    """Prints what the catalog was taken for, which column is what and why, and the first products."""
    console = console or table_console(110)
    recognised = view.recognised
    counted = f"{products:,} products in {view.rows:,} rows"
    lines = [("taken for", f"{recognised.title}: {counted}"), ("read as", recognised.read_as)]
    if not recognised.layout:
        lines = [("catalog.uri", recognised.config.shown_uri), ("holds", counted)]
    lines += [("note", recognised.note)] if recognised.note else []
    lines += [("not used", _listed(recognised.unused))] if recognised.unused else []
    lines += [("with", view.encoder)]
    lines += [("folders", "work.uri {}, index.uri {}".format(*view.folders))]
    print_lines(lines, title="Catalog", console=console)
    columns = Table(title="Columns", title_justify="left", title_style="bold")
    for heading in ("column", "used as (catalog. ...)", "why"):
        columns.add_column(heading, overflow="fold")
    for row in recognised.reasons:
        columns.add_row(*map(escape, row))
    console.print(columns)
    shown = Table(title="The first products, as they would be embedded", title_justify="left", title_style="bold")
    for heading in ("id", "text", "pictures"):
        shown.add_column(heading, overflow="fold")
    for product_id, text, images in view.samples:
        pictures = "\n".join(map(_shown_image, images))
        shown.add_row(escape(product_id), escape(_cut(text or "(none)")), escape(pictures or "(none)"))
    console.print(shown)


def print_config_to_keep(view: CatalogView) -> None:
    """Prints the job as YAML, as it stands: it is copied into a file."""
    name = view.folders[1].rstrip("/").rsplit("/", 2)[-2:][0].removeprefix("shelfmark-")
    sys.stdout.write(
        f"\n# Keep this as {name}.yaml, change what is not as you mean it, and run it every night:\n"
        f"#   python -m pipelines.embed_catalog --config {name}.yaml\n"
        f"{_dated(view.recognised.config.uris)}{view.yaml}"
    )


def _dated(uris: tuple[str, ...]) -> str:
    """What to do where an address names a day: tomorrow's file is another one."""
    name = uris[-1].rpartition("/")[2]
    glob = _DATE.sub("*", name)
    if glob == name or len(uris) > 1:
        return ""
    return (
        f"# The file's name has a date. With uri: '{without_login(uris[0].removesuffix(name))}{glob}' each night's is "
        "taken;\n# keep only the newest where it lies, or every product is there once for each.\n"
    )


def _listed(names: tuple[str, ...]) -> str:
    more = f", and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_SHOWN else f"{cut_at_word(text, _TEXT_SHOWN)}... ({len(text):,} characters)"


def _shown_image(image: ImageRef) -> str:
    return f"{len(image):,} bytes" if isinstance(image, bytes) else _cut(image)
