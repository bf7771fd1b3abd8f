"""A catalog of which every second row is dirty, through the whole job: each kind of dirt gets its dead letter, and the
good rows before and after it are in the published index.

The table below is every kind that one JSON Lines catalog can hold, pictures on disk and on a web server included.
`catalog/test_dirty_records.py` has the kinds that only other formats can hold.
"""

from __future__ import annotations

import base64
import io
import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from index_builder import IndexReader, publish
from pipelines.catalog.dead_letters import DeadLetter, read_dead_letters
from pipelines.indexing.progress import summary_lines
from pipelines.indexing.publish_step import RunResult
from pipelines.indexing.run_record import RunRecord
from tests.pipelines.images.image_server import ImageServer, Request, image_server
from tests.pipelines.indexing.job import product, run_job


def encoded(kind: str, *, side: int = 64) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(file, kind)
    return file.getvalue()


JPEG, PNG = encoded("JPEG"), encoded("PNG")
LONG_TEXT = " ".join(f"word{number}" for number in range(3000))
FETCH = {"timeout_seconds": 0.4, "total_timeout_seconds": 1.2, "max_attempts": 2, "max_bytes": 60_000}
DECODE = {"max_pixels": 100_000}


@dataclass(frozen=True)
class Dirt:
    """One kind: a row, and what becomes of it ("" for outcome: nothing, it is indexed as it is)."""

    name: str
    outcome: str
    reason: str = ""
    line: bytes | None = None
    """The whole line, for rows that are no proper record; `%ID%` stands for the id."""
    fields: dict[str, Any] | None = None
    """Fields of a proper record, else good. `{server}` in a picture stands for the server's address."""

    @property
    def product_id(self) -> str:
        return f"dirty-{self.name.replace(' ', '-')}"

    def as_line(self, server: ImageServer) -> bytes:
        if self.line is not None:
            return self.line.replace(b"%ID%", self.product_id.encode())
        record = {"product_id": self.product_id, "title": "small red chair", "image": "good.jpg", "price": 1.5}
        record |= self.fields or {}
        if isinstance(record["image"], str):
            record["image"] = record["image"].replace("{server}", f"http://127.0.0.1:{server.port}")
            record["image"] = record["image"].replace("{unlisted}", f"http://localhost:{server.port}")
        return json.dumps(record).encode()


def row(name: str, reason: str, **fields: Any) -> Dirt:
    return Dirt(name, "rejected", reason, fields=fields)


def line(name: str, reason: str, text: bytes) -> Dirt:
    return Dirt(name, "rejected", reason, line=text)


def picture(name: str, reason: str, image: str) -> Dirt:
    return Dirt(name, "degraded", reason, fields={"image": image})


KINDS = [
    # The record
    line("no id", "missing_id", b'{"title": "a", "price": 1}'),
    line("an empty object", "missing_id", b"{}"),
    row("a null id", "missing_id", product_id=None),
    row("a blank id", "missing_id", product_id=" \t "),
    row("an id that is a fraction", "malformed_record", product_id=1.5),
    row("an id that is a truth value", "malformed_record", product_id=True),
    row("an id that is a list", "malformed_record", product_id=["x"]),
    row("an id that stood before", "duplicate_id", product_id="good-0"),
    row("a text that is an object", "malformed_record", title={"en": "a"}),
    line("bytes that are not UTF-8", "malformed_record", b'{"product_id": "%ID%", "title": "\xc3\x28"}'),
    line("half a surrogate pair", "malformed_record", b'{"product_id": "%ID%", "title": "\\udead"}'),
    line("a record cut off", "malformed_record", b'{"product_id": "%ID%", "title": "a"'),
    line("a comma at the end", "malformed_record", b'{"product_id": "%ID%", "title": "a"},'),
    line("single quotes", "malformed_record", b"{'product_id': '%ID%'}"),
    line("an array", "malformed_record", b"[1, 2]"),
    line("null alone", "malformed_record", b"null"),
    line("a page of HTML", "malformed_record", b"<html><body>502 Bad Gateway</body></html>"),
    line("zero bytes", "malformed_record", b"\x00\x00\x00\x00"),
    line("ten thousand brackets", "malformed_record", b"{" * 10_000),
    row("neither text nor picture", "empty_product", title=None, image=None),
    row("white space for a text", "empty_product", title=" \u2003\n", image=""),
    Dirt("a price in words", "degraded", "field_type_mismatch", fields={"price": "dear"}),
    Dirt("a price that is an object", "degraded", "field_type_mismatch", fields={"price": {"usd": 1}}),
    Dirt("a text that is too long", "", fields={"title": LONG_TEXT}),
    # Pictures in files
    picture("a file that is not there", "picture_missing", "nowhere.jpg"),
    picture("a folder", "picture_unreadable", "folder"),
    picture("an empty file", "picture_unreadable", "empty.jpg"),
    picture("a path out of the root", "host_not_allowed", "../secret.jpg"),
    picture("a link out of the root", "host_not_allowed", "link.jpg"),
    picture("a path with a zero byte", "picture_missing", "a\0b.jpg"),
    picture("a path that is too long", "picture_missing", "a" * 5000 + ".jpg"),
    picture("half a JPEG", "picture_truncated", "half.jpg"),
    picture("half a PNG", "picture_truncated", "half.png"),
    picture("a JPEG head on noise", "picture_unreadable", "noise.jpg"),
    picture("a drawing in SVG", "picture_unsupported_type", "drawing.svg"),
    picture("a PDF", "picture_unsupported_type", "sheet.pdf"),
    picture("text called a picture", "picture_unsupported_type", "words.jpg"),
    picture("more pixels than allowed", "picture_too_large", "large.png"),
    picture("a bomb of pixels", "picture_too_large", "bomb.png"),
    picture("more bytes than allowed", "picture_too_many_bytes", "heavy.png"),
    picture("base64 of no picture", "picture_unsupported_type", "data:image/png;base64," + "QUJD" * 30),
    picture("base64 that is none", "picture_unsupported_type", "data:image/png;base64,*****"),
    picture(
        "base64 of half a picture",
        "picture_truncated",
        "data:image/jpeg;base64," + base64.b64encode(JPEG[: len(JPEG) // 2]).decode(),
    ),
    # Pictures elsewhere
    picture("a scheme that is not allowed", "scheme_not_allowed", "ftp://127.0.0.1/a.jpg"),
    picture("a chain of addresses", "scheme_not_allowed", "simplecache::{server}/good.jpg"),
    picture("an address that is none", "fetch_failed", "http://"),
    picture("a host without an address", "fetch_failed", "http://no-such-host.example/a.jpg"),
    picture("a host that is not listed", "host_not_allowed", "{unlisted}/good.jpg"),
    picture("a redirect to such a host", "host_not_allowed", "{server}/to-unlisted"),
    picture("redirects without end", "fetch_failed", "{server}/round"),
    picture("not found", "picture_missing", "{server}/nowhere.jpg"),
    picture("gone", "picture_missing", "{server}/gone"),
    picture("forbidden", "fetch_failed", "{server}/forbidden"),
    picture("a server that fails", "fetch_failed", "{server}/fails"),
    picture("a server that says nothing", "fetch_timeout", "{server}/silent"),
    picture("a body that drips", "fetch_timeout", "{server}/drips"),
    picture("a connection that is reset", "fetch_failed", "{server}/reset"),
    picture("a length that is a lie", "picture_truncated", "{server}/lies"),
    picture("a body over the limit", "picture_too_many_bytes", "{server}/heavy"),
    picture("a page instead of a picture", "picture_unsupported_type", "{server}/page"),
    # No text to fall back to
    row("a missing file and no text", "picture_missing", title=None, image="nowhere.jpg"),
    row("half a JPEG and no text", "picture_truncated", title=None, image="half.jpg"),
    row("not found and no text", "picture_missing", title=None, image="{server}/nowhere.jpg"),
]


def write_pictures(folder: Path) -> None:
    folder.mkdir()
    (folder / "folder").mkdir()
    head = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + PNG[24:29]  # width and height, then the rest as it was
    bomb = PNG[:12] + head + zlib.crc32(head).to_bytes(4, "big") + PNG[33:]
    files = {
        "good.jpg": JPEG,
        "empty.jpg": b"",
        "half.jpg": JPEG[: len(JPEG) // 2],
        "half.png": PNG[: len(PNG) // 2],
        "noise.jpg": JPEG[:4] + bytes(range(256)) * 8 + JPEG[-2:],
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "sheet.pdf": b"%PDF-1.7\n" + b"x" * 200,
        "words.jpg": b"not a picture at all" * 5,
        "large.png": encoded("PNG", side=400)[:50_000],
        "bomb.png": bomb,
        "heavy.png": encoded("PNG", side=300),
        "../secret.jpg": JPEG,
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "link.jpg").symlink_to(folder / ".." / "secret.jpg")


def prepare(server: ImageServer) -> None:
    def lie(request: Request) -> None:
        request.send_head(200, Content_Length=len(JPEG) + 1000)
        request.raw(JPEG)
        request.hang_up()

    def drip(request: Request) -> None:
        request.send_head(200, Content_Length=len(JPEG))
        request.drip(JPEG, pause_seconds=0.05)

    server.answers |= {
        "/good.jpg": lambda request: request.send(body=JPEG),
        "/to-unlisted": lambda request: request.send(302, Location=f"http://localhost:{server.port}/good.jpg"),
        "/round": lambda request: request.send(302, Location="/round"),
        "/gone": lambda request: request.send(410),
        "/forbidden": lambda request: request.send(403),
        "/fails": lambda request: request.send(500),
        "/silent": lambda request: server_waits(request),
        "/drips": drip,
        "/reset": lambda request: request.reset(),
        "/lies": lie,
        "/heavy": lambda request: request.send(body=b"\xff\xd8\xff" + bytes(70_000)),
        "/page": lambda request: request.send(body=b"<html>please log in</html>", Content_Type="image/jpeg"),
    }


def server_waits(request: Request) -> None:
    request.handler.connection.settimeout(1.0)
    request.handler.rfile.read(1)  # nothing comes: the client waits for us
    request.hang_up()


@dataclass(frozen=True)
class IndexedCatalog:
    """What the job made of the dirty catalog."""

    outcome: RunResult
    letters: list[DeadLetter]
    indexed: set[str]
    record: RunRecord


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> IndexedCatalog:
    folder = tmp_path_factory.mktemp("dirty")
    write_pictures(folder / "pictures")
    with image_server() as server:
        prepare(server)
        lines = [good_line(0)]
        for number, kind in enumerate(KINDS):
            lines += [kind.as_line(server), good_line(number + 1)]
        (folder / "catalog.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        outcome, record = run_job(
            folder,
            *("--catalog.uri", str(folder / "catalog.jsonl"), "--catalog.image_root", str(folder / "pictures")),
            *("--catalog.display_fields", "[price]", "--gates.max_rejected_share", "0.5"),
            *("--gates.max_degraded_share", "0.5"),
            *("--fetch.allow_private_hosts", "[127.0.0.1]", "--fetch.host_failures_before_pause", "0"),
            *(part for name, value in FETCH.items() for part in (f"--fetch.{name}", str(value))),
            *(part for name, value in DECODE.items() for part in (f"--decode.{name}", str(value))),
        )
    letters = list(read_dead_letters(f"{outcome.uri}/rejected.parquet"))
    indexed = IndexReader.open(str(folder / "index")).products["product_id"].to_pylist()
    assert len(indexed) == len(set(indexed))
    return IndexedCatalog(outcome, letters, set(indexed), record)


def good_line(number: int) -> bytes:
    title = product(number)["title"]
    return json.dumps({"product_id": f"good-{number}", "title": title, "image": "good.jpg", "price": 2.5}).encode()


def test_there_are_many_kinds():
    assert len({kind.product_id for kind in KINDS}) == len(KINDS) >= 40


@pytest.mark.parametrize("number", range(len(KINDS)), ids=[kind.name for kind in KINDS])
def test_a_dirty_row_has_its_letter_and_its_neighbours_are_indexed(made: IndexedCatalog, number: int):
    kind = KINDS[number]
    assert {f"good-{number}", f"good-{number + 1}"} <= made.indexed
    mine = [letter for letter in made.letters if letter.product_id == kind.product_id]
    assert (kind.product_id in made.indexed) == (kind.outcome != "rejected")
    if mine or kind.outcome == "degraded":
        assert [(letter.outcome, letter.reason.value) for letter in mine] == [(kind.outcome, kind.reason)]
        assert mine[0].detail


def test_every_row_is_accounted_for(made: IndexedCatalog):
    """Letters of rows without a usable id cannot be told apart by it, so they are counted."""
    expected = Counter(f"{kind.outcome}: {kind.reason}" for kind in KINDS if kind.outcome)
    assert Counter(f"{letter.outcome}: {letter.reason.value}" for letter in made.letters) == expected
    totals = made.outcome.totals
    assert totals.by_reason == dict(expected)
    assert totals.rows_in == 2 * len(KINDS) + 1 == totals.products + totals.rejected
    assert totals.texts_cut == 1
    said = dict(summary_lines(made.outcome, made.record))["texts cut"]
    assert re.match(r"1: the text tower reads \d+ tokens \(as the saved encoder has it\), the end", said)


def test_rows_of_one_product_are_indexed_once_and_every_row_is_accounted_for(tmp_path: Path) -> None:
    header = "handle,title,sku,price,image"
    first = [f"h{number % 20},{'red chair' if number < 20 else ''},s{number},{number}.5," for number in range(60)]
    again = ["h3,small red chair,s60,1.5,", "h3,,s61,2.5,", ",lost,s62,3.5,", "new,green mug,s63,4.5,"]
    for name, rows in (("a.csv", first), ("b.csv", again)):
        (tmp_path / "catalog").mkdir(exist_ok=True)
        (tmp_path / "catalog" / name).write_text("\n".join([header, *rows]) + "\n")
    options = {
        "id_field": "handle",
        "group_by": "handle",
        "display_fields": "[sku, price]",
        "group_lists": "[sku, price]",
    }
    arguments = [text for key, value in options.items() for text in (f"--catalog.{key}", value)]
    outcome, _ = run_job(tmp_path, *arguments, "--gates.max_rejected_share", "0.5", "--index.factory", "Flat")
    assert outcome.totals.products == 21
    assert outcome.totals.by_reason == {"rejected: duplicate_id": 1, "rejected: missing_id": 1}
    catalog = publish.read_manifest(str(tmp_path / "index"), outcome.version).catalog
    assert (catalog.rows_in, catalog.products, catalog.rejected, catalog.folded) == (64, 21, 2, 41)
    where = ("--catalog.where", "sku <> 's5' and handle <> 'h7'", "--gates.max_row_change", "null")
    outcome, record = run_job(tmp_path, *arguments, *where, "--gates.max_rejected_share", "0.5")
    catalog = publish.read_manifest(str(tmp_path / "index"), outcome.version).catalog
    assert catalog.rows_in == 64 == catalog.products + catalog.rejected + catalog.left_out + catalog.folded
    assert catalog.left_out
    lines = dict(summary_lines(outcome, record))
    assert (lines["rows in"], lines["folded by catalog.group_by"]) == ("64", f"{catalog.folded}")
    assert (lines["products"], lines["rejected"]) == (f"{catalog.products}", f"{catalog.rejected}")
    outcome, _ = run_job(tmp_path, *arguments, "--gates.max_rejected_share", "0.5", "--gates.max_row_change", "null")
    products = IndexReader.open(str(tmp_path / "index")).products
    assert products["product_id"].to_pylist() == [*(f"h{number}" for number in range(20)), "new"]
    assert products["sku"].to_pylist()[3] == ["s3", "s23", "s43"]  # the same handle in another file is a letter
    assert products["price"].to_pylist()[20] == [4.5]
