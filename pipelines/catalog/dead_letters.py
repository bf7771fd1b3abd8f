"""Dead letters name the products, rows and images that could not be taken as they are, and why.

A letter's outcome is either `rejected` (the row became no product) or `degraded` (the product was indexed without the
part that was broken).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index_builder.storage import atomic_file, localized

Outcome = Literal["rejected", "degraded"]
Stage = Literal["read", "validate", "import", "fetch", "decode", "embed", "number"]

MAX_DETAIL_CHARACTERS = 500
MAX_TITLE_CHARACTERS = 120

REJECTED_FILE = "rejected.parquet"
REJECTED_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("product_id", "outcome", "stage", "reason", "detail", "file", "unit")),
        ("number", pa.int64()),
        *((name, pa.string()) for name in ("title", "picture")),
    ]
)
"""Of a version's `rejected.parquet`, part of the artifact contract (`index_builder/README.md`). Versions made before
Shelfmark named places have only the first five columns."""

PLACES_SCHEMA = pa.schema([REJECTED_SCHEMA.field(name) for name in ("file", "unit", "number", "title")])


class Reason(StrEnum):
    """Why a row, a value or an image was not taken, by an example, and what to do. Part of the artifact contract."""

    missing_id = "missing_id"
    """The id column is empty, or `NULL`.

    Remedy: Fill it in, or name another column as `catalog.id_field`; footers of reports are rows too: `catalog.where
        "id is not null"`.
    """
    duplicate_id = "duplicate_id"
    """`row id 12 already stands for this id`.

    Remedy: The first row is indexed. Several columns make an id (`[product_id, locale]`), or rows of one product are
        grouped by `catalog.group_by`.
    """
    malformed_record = "malformed_record"
    """`expected 14 columns, got 15`: a delimiter or a quote inside a value that is not quoted, or a line of JSON that
    is cut off.

    Remedy: Quote values in the export (a record may have `catalog.max_record_bytes`); `catalog.csv_quote`, `csv_escape`
        and `csv_delimiter` where the whole file is written otherwise.
    """
    empty_product = "empty_product"
    """Neither text nor picture: the title is empty or a null word, and there is no picture.

    Remedy: Name more `catalog.text_fields`, or leave such rows out by `catalog.where`.
    """
    field_type_mismatch = "field_type_mismatch"
    """`price: expected double, found 'on request'`: a display or filter value does not fit its column's type; it
    becomes null, the product stays (degraded).

    Remedy: Correct the value, or `catalog.column_types '{price: string}'`.
    """
    vector_unusable = "vector_unusable"
    """A vector made elsewhere that is missing, of another length, not finite, or zero (`pipelines.build_index`).

    Remedy: Make the vector again.
    """
    picture_missing = "picture_missing"
    """The value is an address, and there is no file, or a 404.

    Remedy: Relative paths start at the current folder, or at `catalog.image_root` where it is set; are the export and
        the pictures of the same day?
    """
    picture_unreadable = "picture_unreadable"
    """The file is no picture: often an HTML page of the shop.

    Remedy: Open the address in a browser; name the right column as `catalog.image_field`.
    """
    picture_truncated = "picture_truncated"
    """The file ends early, or is damaged inside.

    Remedy: Upload the picture again.
    """
    picture_too_large = "picture_too_large"
    """More pixels than `decode.max_pixels`.

    Remedy: Scale it down, or raise the limit.
    """
    picture_too_many_bytes = "picture_too_many_bytes"
    """More bytes than `fetch.max_bytes`.

    Remedy: Make the file smaller, or raise the limit.
    """
    picture_unsupported_type = "picture_unsupported_type"
    """A PDF, an SVG, a video.

    Remedy: Export JPEG, PNG, WebP, AVIF or GIF.
    """
    host_not_allowed = "host_not_allowed"
    """The address leads into a private network, to a host that `fetch.allowed_hosts` leaves out, or out of
    `catalog.image_root`.

    Remedy: If the host is yours: `fetch.allow_private_hosts '[images.shop.local]'`.
    """
    scheme_not_allowed = "scheme_not_allowed"
    """`ftp://`, or what else `fetch.allowed_schemes` leaves out.

    Remedy: Serve pictures over https, or set `catalog.image_root`.
    """
    fetch_failed = "fetch_failed"
    """The server said 403 or 500, or refused the connection.

    Remedy: Ask who runs it; the next run fetches only what failed.
    """
    fetch_timeout = "fetch_timeout"
    """No answer within `fetch.timeout_seconds`.

    Remedy: Fewer `fetch.connections_per_host`, or more seconds.
    """


class Place(NamedTuple):
    """Where a row of the catalog stands; as text `part-3.csv, line 1024`.

    `unit` is what `number` counts: lines of a text file from 1, rows of any other from 0.
    """

    file: str = ""
    unit: str = ""
    number: int | None = None

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}" if self.file else ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Place:
        """That of a row of a table with `PLACES_SCHEMA`'s columns."""
        return cls(row["file"] or "", row["unit"] or "", row["number"])


NOWHERE = Place()


@dataclass(frozen=True, slots=True)
class Places:
    """Where `B` rows of one file stand; `numbers` is int64 `[B]`."""

    file: str
    unit: str
    numbers: np.ndarray

    def __getitem__(self, row: int) -> Place:
        return Place(self.file, self.unit, int(self.numbers[row]))


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One row of `rejected.parquet`.

    `product_id` is trimmed, or "" where the row has none. `stage` is the step that noticed, `reason` a stable code,
    `detail` one line for people, cut at `MAX_DETAIL_CHARACTERS`. `title` is the product's text, cut between words at
    `MAX_TITLE_CHARACTERS`, and `picture` the address of the picture that the letter is about, without login and query.
    """

    product_id: str
    outcome: Outcome
    stage: Stage
    reason: Reason
    detail: str = ""
    place: Place = NOWHERE
    title: str = ""
    picture: str = ""


class ImageError(Exception):
    """An image could not be fetched or decoded. Costs its product the image, never its batch.

    Remedy: By its reason, see the letters. It stops no run.
    """

    def __init__(self, stage: Literal["fetch", "decode"], reason: Reason, detail: str = "") -> None:
        super().__init__(stage, reason, detail)
        self.stage, self.reason, self.detail = stage, reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else str(self.reason)


def letters_to_table(letters: Iterable[DeadLetter]) -> pa.Table:
    """The letters, in the given order, as a table of `REJECTED_SCHEMA`."""
    rows = [
        (
            *(letter.product_id, letter.outcome, letter.stage, letter.reason),
            one_line(letter.detail, MAX_DETAIL_CHARACTERS),
            *(letter.place.file or None, letter.place.unit or None, letter.place.number),
            one_line(letter.title, MAX_TITLE_CHARACTERS) or None,
            one_line(letter.picture, MAX_DETAIL_CHARACTERS) or None,
        )
        for letter in letters
    ]
    columns = zip(*rows, strict=True) if rows else [()] * len(REJECTED_SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, REJECTED_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=REJECTED_SCHEMA)


def write_dead_letters(uri: str, letters: Iterable[DeadLetter]) -> int:
    """Writes the letters as one Parquet file, in place only when complete. Returns how many."""
    table = letters_to_table(letters)
    with atomic_file(uri) as path:
        pq.write_table(table, path, compression="zstd")
    return table.num_rows


def read_dead_letters(uri: str) -> list[DeadLetter]:
    """The inverse of `write_dead_letters`."""
    with localized(uri) as path:
        rows = pq.read_table(path, schema=REJECTED_SCHEMA).to_pylist()
    return [
        DeadLetter(
            *(row["product_id"], row["outcome"], row["stage"], Reason(row["reason"]), row["detail"]),
            place=Place.of(row),
            title=row["title"] or "",
            picture=row["picture"] or "",
        )
        for row in rows
    ]


def examples_by_reason(uri: str, wanted: Iterable[str]) -> dict[str, str]:
    """One letter of each kind in `wanted` (as "rejected: missing_id") in words, from a file of letters."""
    found: dict[str, str] = {}
    missing = set(wanted)
    if not missing:
        return found
    with localized(uri) as path, pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            kinds = pc.binary_join_element_wise(batch.column("outcome"), batch.column("reason"), ": ")
            for kind in sorted(missing):
                if (row := pc.index(kinds, kind).as_py()) >= 0:
                    letter = batch.slice(row, 1).to_pylist()[0]
                    named = " ".join(filter(None, (letter["product_id"], letter["title"] and repr(letter["title"]))))
                    said = (str(Place.of(letter)), named, letter["picture"], letter["detail"])
                    found[kind] = ": ".join(filter(None, said))
            missing -= found.keys()
            if not missing:
                break
    return found


def one_line(text: str, limit: int) -> str:
    """A text as one line that can be printed and stored, of at most `limit` characters."""
    # What follows far behind the limit need not be looked at.
    encoded = text[: 4 * limit].encode("utf-8", "replace").decode("utf-8")
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in encoded).split())
    return line if len(line) <= limit else f"{cut_at_word(line, limit - 3)}..."


def cut_at_word(text: str, limit: int) -> str:
    """The beginning of a text, at most `limit` characters: up to the last word that is whole, unless it is one long
    word.
    """
    if len(text) <= limit:
        return text
    cut = text[: limit + 1].rpartition(" ")[0]
    return (cut if len(cut) > limit // 2 else text[:limit]).rstrip()


def malformed(place: Place, why: str) -> DeadLetter:
    """The letter of a record that could not be read; it has no id that could be trusted."""
    return DeadLetter("", "rejected", "read", Reason.malformed_record, why, place)


def places_table(places: Places, texts: pa.StringArray | None = None) -> pa.Table:
    """Where each of `B` products stands, and the beginning of its text: a table of `PLACES_SCHEMA`."""
    rows, kept = len(places.numbers), MAX_TITLE_CHARACTERS + 1  # one more: a letter sees that the text goes on
    titles = pa.nulls(rows, pa.string()) if texts is None else pc.utf8_slice_codeunits(texts, 0, kept)
    arrays = [pa.repeat(places.file, rows), pa.repeat(places.unit, rows), pa.array(places.numbers, pa.int64()), titles]
    return pa.Table.from_arrays(arrays, schema=PLACES_SCHEMA)
