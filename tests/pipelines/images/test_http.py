"""Fetching from a real server that is slow, rude, or lies. Times are short, so limits are too."""

from __future__ import annotations

import base64
import re
import socket
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import tenacity

from pipelines.catalog.config import CatalogConfigError
from pipelines.catalog.dead_letters import ImageError, Reason
from pipelines.images import http
from pipelines.images.config import FetchConfig
from pipelines.images.fetch import ImageFetcher
from pipelines.images.http import FetchedImage
from tests.pipelines.images.image_server import ImageServer, Request, image_server

PICTURE = bytes(range(256)) * 40  # the fetcher does not look inside
PRIVATE = {"intranet.test": "10.0.0.7", "metadata.test": "169.254.169.254"}


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ImageServer]:
    with image_server() as running:
        yield running


@pytest.fixture
def server(shared_server: ImageServer) -> ImageServer:
    shared_server.reset()
    shared_server.answers["/picture.jpg"] = lambda request: request.send(body=PICTURE)
    return shared_server


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds between attempts, which are not waited."""
    seconds: list[float] = []
    monkeypatch.setattr(tenacity, "sleep_using_event", lambda closed: seconds.append)
    return seconds


class Names:
    """A resolver that knows the tests' hosts, and remembers what it was asked."""

    def __init__(self, **addresses: list[str]):
        self.addresses = addresses
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host in self.addresses:
            return self.addresses[host]
        if host in PRIVATE:
            return [PRIVATE[host]]
        if host.endswith(".shop.test") or host == "127.0.0.1":
            return ["127.0.0.1"]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def fetcher(names: Names | None = None, **changes: Any) -> ImageFetcher:
    values: dict[str, Any] = {
        "allow_private_hosts": ("127.0.0.1", "*.shop.test"),
        "timeout_seconds": 10.0,
        "total_timeout_seconds": 30.0,
        "host_failures_before_pause": 0,
    }
    return ImageFetcher(FetchConfig(**(values | changes)), resolver=names or Names())


def fetch(url: str, known_etag: str | None = None, names: Names | None = None, **changes: Any) -> FetchedImage:
    return fetcher(names, **changes).fetch(url, known_etag)


def failure(url: str, names: Names | None = None, **changes: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        fetch(url, names=names, **changes)
    assert caught.value.stage == "fetch"
    return caught.value


def test_a_picture_comes_whole(server: ImageServer) -> None:
    assert fetch(server.url("/picture.jpg")) == FetchedImage(PICTURE, None)
    assert server.requests[0].headers["host"] == f"127.0.0.1:{server.port}"


def test_the_user_agent_says_who_asks(server: ImageServer) -> None:
    fetch(server.url("/picture.jpg"))
    fetch(server.url("/picture.jpg"), user_agent="Example Shop (+https://shop.example/contact)")
    agents = [request.headers["user-agent"] for request in server.requests]
    assert re.fullmatch(r"Shelfmark(/[\w.+]+)? \(indexes product catalogs\)", agents[0])
    assert agents[1] == "Example Shop (+https://shop.example/contact)"
    for unusable in ("a\r\nHost: b", "", " a ", "Läden"):
        with pytest.raises(CatalogConfigError, match=r"fetch\.user_agent: expected a line of ASCII text"):
            FetchConfig(user_agent=unusable)


def test_connections_are_kept(server: ImageServer) -> None:
    pictures = fetcher()
    server.answers["/etag"] = with_etag
    server.answers["/moved"] = lambda request: request.send(302, b"over there", Location="/picture.jpg")
    server.answers["/chunked"] = lambda request: (
        request.send_head(Transfer_Encoding="chunked"),
        request.raw(b"4\r\nABCD\r\n3\r\nEFG\r\n0\r\n\r\n"),
    )
    for _ in range(3):
        assert pictures.fetch(server.url("/moved")).data == PICTURE
        assert pictures.fetch(server.url("/chunked")).data == b"ABCDEFG"
        with pytest.raises(ImageError):
            pictures.fetch(server.url("/no-such-picture"))
        assert pictures.fetch(server.url("/etag"), '"v1"').not_modified
    assert len(server.requests) == 15
    assert server.connections == 1


def test_a_kept_connection_that_the_server_has_left_costs_no_attempt(server: ImageServer) -> None:
    def answer(request: Request) -> None:
        request.send(body=PICTURE)
        request.hang_up()

    server.answers["/leaves"] = answer
    pictures = fetcher(max_attempts=1)
    for number in range(1, 4):
        assert pictures.fetch(server.url("/leaves")).data == PICTURE
        assert server.connections == number


def test_a_kept_connection_that_breaks_under_the_request_costs_no_attempt(server: ImageServer) -> None:
    server.answers["/breaks"] = lambda request: request.reset() if request.number == 2 else request.send(body=PICTURE)
    pictures = fetcher(max_attempts=1)
    for _ in range(3):
        assert pictures.fetch(server.url("/breaks")).data == PICTURE
    assert (server.connections, server.count("/breaks")) == (2, 4)


def test_hosts_unused_longest_are_forgotten(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HOSTS_REMEMBERED", 2)
    pictures = fetcher()

    def visit(host: str) -> int:
        before = server.connections
        assert pictures.fetch(server.url("/picture.jpg", host=host)).data == PICTURE
        return server.connections - before

    assert [visit(f"{name}.shop.test") for name in "aabacab"] == [1, 0, 1, 0, 1, 0, 1]


def test_dirty_urls_are_percent_encoded(server: ImageServer) -> None:
    server.answers["/a%20b/%C3%BC.jpg?x=1%202"] = lambda request: request.send(body=b"found")
    assert fetch(f"  HTTP://127.0.0.1:{server.port}/a b/ü.jpg?x=1 2#top ").data == b"found"
    server.answers["/a%09b%25c.jpg"] = lambda request: request.send(body=b"found")
    assert fetch(server.url("/a\tb%25c.jpg")).data == b"found"


def test_addresses_of_exports_are_read_as_browsers_do(server: ImageServer) -> None:
    server.answers["/media/m/u/x.jpg"] = lambda request: request.send(body=b"found")
    for dirty in ("/media\\m\\u\\x.jpg", "/media/m/u/x.jpg \u00a0\t", "/media/./m/u/y/../x.jpg"):
        assert fetch(server.url(dirty)).data == b"found", dirty
    assert fetch(f"http:/127.0.0.1:{server.port}/media/m/u/x.jpg").data == b"found"


@pytest.mark.parametrize(
    ("reference", "asked"),
    [
        ("/m/u/x.jpg", "/media/m/u/x.jpg"),
        ("m\\u\\x.jpg ", "/media/m/u/x.jpg"),
        ("T-Shirt #1.jpg", "/media/T-Shirt%20%231.jpg"),
        ("50%.jpg", "/media/50%25.jpg"),
        ("a%20b.jpg", "/media/a%20b.jpg"),
        ("mug.jpg?v=3", "/media/mug.jpg?v=3"),
        ("image.php?id=3", "/media/image.php?id=3"),
        ("why?.jpg", "/media/why%3F.jpg"),
        ("schöne Tasse.jpg", "/media/sch%C3%B6ne%20Tasse.jpg"),
        ("//mug.jpg", "/media/mug.jpg"),  # no host is all there is to it
    ],
)
def test_names_below_an_http_root(server: ImageServer, reference: str, asked: str) -> None:
    server.answers[asked] = lambda request: request.send(body=b"found")
    config = FetchConfig(allow_private_hosts=("127.0.0.1",), max_attempts=1)
    assert ImageFetcher(config, server.url("/media/"), resolver=Names()).fetch(reference).data == b"found"


@pytest.mark.parametrize("root", [None, "http://elsewhere.test/media", "/nowhere"])
def test_an_address_without_a_scheme_is_https(root: str | None) -> None:
    names = Names()
    config = FetchConfig(max_attempts=1, allow_private_hosts=())
    with pytest.raises(ImageError) as caught:
        ImageFetcher(config, root, resolver=names).fetch("//cdn.shop.test/x.jpg")
    assert caught.value.detail.startswith("host cdn.shop.test has the address 127.0.0.1, which is not public")
    assert names.asked == ["cdn.shop.test"]
    only_http = FetchConfig(max_attempts=1, allowed_schemes=("http",))
    with pytest.raises(ImageError, match=r"fetch\.allowed_schemes has http, not https"):
        ImageFetcher(only_http, root, resolver=names).fetch("//cdn.shop.test/x.jpg")


# Versions


def with_etag(request: Request, etag: str = '"v1"') -> None:
    if request.headers.get("if-none-match") == etag:
        request.send_head(304, ETag=etag)
    else:
        request.send(body=PICTURE, ETag=etag)


def test_an_unchanged_etag_brings_no_body(server: ImageServer) -> None:
    server.answers["/etag"] = with_etag
    first = fetch(server.url("/etag"))
    assert (first.data, first.etag) == (PICTURE, '"v1"')
    assert fetch(server.url("/etag"), '"v1"') == FetchedImage(b"", '"v1"', not_modified=True)
    changed = fetch(server.url("/etag"), '"v0"')
    assert (changed.data, changed.etag, changed.not_modified) == (PICTURE, '"v1"', False)


def test_an_etag_holds_across_a_redirect(server: ImageServer) -> None:
    server.answers["/etag"] = with_etag
    server.answers["/moved"] = lambda request: request.send(301, Location="/etag")
    assert fetch(server.url("/moved"), '"v1"').not_modified


def test_a_server_without_if_none_match_still_saves_the_body(server: ImageServer) -> None:
    def answer(request: Request) -> None:
        request.send_head(ETag='W/"v1"', Content_Length=1 << 30)  # reading this would take the whole time-out
        request.drip(b"x" * 1000, pause_seconds=0.1)

    server.answers["/ignores"] = answer
    assert fetch(server.url("/ignores"), 'W/"v1"', max_bytes=1 << 31).not_modified


def test_a_settled_date_of_change_is_a_version(server: ImageServer) -> None:
    changed = formatdate(time.time() - 3600, usegmt=True)

    def answer(request: Request) -> None:
        unchanged = request.headers.get("if-modified-since") == changed
        request.send(304 if unchanged else 200, b"" if unchanged else PICTURE, Last_Modified=changed)

    server.answers["/dated"] = answer
    version = fetch(server.url("/dated")).etag
    assert version == f"last-modified:{changed}"
    assert fetch(server.url("/dated"), version).not_modified


def test_a_date_of_this_very_minute_is_no_version(server: ImageServer) -> None:
    now = formatdate(time.time() - 5, usegmt=True)
    server.answers["/fresh"] = lambda request: request.send(body=PICTURE, Last_Modified=now)
    assert fetch(server.url("/fresh")).etag is None


def test_an_unasked_304_is_a_failure(server: ImageServer, waits: list[float]) -> None:
    server.answers["/odd"] = lambda request: request.send_head(304)
    assert failure(server.url("/odd")).reason == Reason.fetch_failed


# Answers that are none


@pytest.mark.parametrize(
    ("status", "reason", "requests"),
    [
        (404, Reason.picture_missing, 1),
        (410, Reason.picture_missing, 1),
        (401, Reason.fetch_failed, 1),
        (403, Reason.fetch_failed, 1),
        (204, Reason.fetch_failed, 1),
        (206, Reason.fetch_failed, 1),
        (302, Reason.fetch_failed, 1),  # without a Location
        (500, Reason.fetch_failed, 3),
        (503, Reason.fetch_failed, 3),
    ],
)
def test_a_status_has_its_reason(
    server: ImageServer, status: int, reason: Reason, requests: int, waits: list[float]
) -> None:
    server.answers["/status"] = lambda request: request.send(status, b"" if status == 204 else b"no")
    found = failure(server.url("/status"))
    assert found.reason == reason
    assert str(status) in found.detail
    assert server.count("/status") == requests


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_passing_trouble_is_waited_out(server: ImageServer, status: int, waits: list[float]) -> None:
    def answer(request: Request) -> None:
        if request.number == 1:
            request.send(status, b"later", Retry_After=0)
        else:
            request.send(body=PICTURE)

    server.answers["/busy"] = answer
    assert fetch(server.url("/busy")).data == PICTURE


def test_the_server_says_how_long_to_wait(server: ImageServer, waits: list[float]) -> None:
    soon = formatdate(time.time() + 4, usegmt=True)

    def answer(request: Request) -> None:
        if request.number < 4:
            request.send(429, b"later", Retry_After=[1, soon, 0][request.number - 1])
        else:
            request.send(body=PICTURE)

    server.answers["/busy"] = answer
    assert fetch(server.url("/busy"), max_attempts=4).data == PICTURE
    assert waits[0] == 1
    assert 2 < waits[1] <= 4
    assert 1 <= waits[2] <= 1.25  # nothing asked for: a quarter of a second, doubled twice, and up to one more


def test_waits_grow_and_are_spread(server: ImageServer, waits: list[float]) -> None:
    server.answers["/busy"] = lambda request: request.send(500, b"no")
    failure(server.url("/busy"), max_attempts=8, total_timeout_seconds=60.0)
    assert server.count("/busy") == 8
    for found, least in zip(waits, (0.25, 0.5, 1, 2, 4, 5, 5), strict=True):
        assert least <= found <= least + 0.25
    assert len({wait % 0.25 for wait in waits}) > 1


@pytest.mark.parametrize("wait", ["3600", "Fri, 31 Dec 2055 23:59:59 GMT"])
def test_a_wait_beyond_the_deadline_is_not_begun(server: ImageServer, wait: str, waits: list[float]) -> None:
    server.answers["/busy"] = lambda request: request.send(429, b"tomorrow", Retry_After=wait)
    assert failure(server.url("/busy")).reason == Reason.fetch_failed
    assert not waits
    assert server.count("/busy") == 1


def test_a_senseless_retry_after_is_passed_over(server: ImageServer, waits: list[float]) -> None:
    server.answers["/busy"] = lambda request: request.send(503, b"later", Retry_After="soon")
    assert failure(server.url("/busy"), max_attempts=2).reason == Reason.fetch_failed
    assert server.count("/busy") == 2


# Slow servers: what they do takes 30 seconds and more, of which a busy machine is told by `SOON`

SOON = 20.0


def silent(request: Request) -> None:
    time.sleep(30)


def head_drip(request: Request) -> None:
    request.drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"z" * 300, pause_seconds=0.1)


def body_drip(request: Request) -> None:
    request.send_head(Content_Length=300)
    request.drip(b"z" * 300, pause_seconds=0.1)


def chunk_drip(request: Request) -> None:
    request.send_head(Transfer_Encoding="chunked")
    request.drip(b"1\r\nz\r\n" * 100, pause_seconds=0.1)


def error_page_drip(request: Request) -> None:
    request.send_head(500, Content_Length=300)
    request.drip(b"z" * 300, pause_seconds=0.1)


@pytest.mark.parametrize("answer", [silent, head_drip, body_drip, chunk_drip])
def test_a_slow_server_meets_the_deadline(server: ImageServer, answer: Any) -> None:
    """Each byte comes well within any socket time-out; all of them would take 30 seconds."""
    server.answers["/slow"] = answer
    started = time.monotonic()
    found = failure(server.url("/slow"), timeout_seconds=0.5, max_attempts=1)
    assert time.monotonic() - started < SOON
    assert found.reason == Reason.fetch_timeout
    assert "0.5 s" in found.detail


def test_a_dripping_error_page_meets_the_deadline(server: ImageServer) -> None:
    server.answers["/slow"] = error_page_drip
    started = time.monotonic()
    assert failure(server.url("/slow"), timeout_seconds=0.5, max_attempts=1).reason == Reason.fetch_failed
    assert time.monotonic() - started < SOON


def test_all_attempts_together_meet_the_total(server: ImageServer) -> None:
    server.answers["/slow"] = silent
    started = time.monotonic()
    found = failure(server.url("/slow"), timeout_seconds=0.5, total_timeout_seconds=4.0, max_attempts=100)
    assert time.monotonic() - started < SOON
    assert found.reason == Reason.fetch_timeout
    assert 1 < server.count("/slow") <= 8


def test_a_stalled_attempt_leaves_time_for_another(server: ImageServer, waits: list[float]) -> None:
    server.answers["/stalls"] = lambda request: silent(request) if request.number == 1 else request.send(body=PICTURE)
    assert fetch(server.url("/stalls"), timeout_seconds=2.0).data == PICTURE


# Broken connections


def test_a_reset_is_tried_again(server: ImageServer, waits: list[float]) -> None:
    server.answers["/reset"] = lambda request: request.reset() if request.number < 3 else request.send(body=PICTURE)
    assert fetch(server.url("/reset")).data == PICTURE
    assert server.count("/reset") == 3


def test_a_reset_in_the_body_fails_in_the_end(server: ImageServer, waits: list[float]) -> None:
    def answer(request: Request) -> None:
        request.send_head(Content_Length=len(PICTURE))
        request.raw(PICTURE[:1000])
        time.sleep(0.05)
        request.reset()

    server.answers["/reset"] = answer
    found = failure(server.url("/reset"))
    assert found.reason == Reason.fetch_failed
    assert "3 attempts" in found.detail
    assert server.count("/reset") == 3


def test_a_closed_port_and_an_unknown_name_fail(waits: list[float]) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert failure(f"http://127.0.0.1:{port}/a.jpg", max_attempts=2).reason == Reason.fetch_failed
    found = failure("http://nowhere.example/a.jpg", max_attempts=2)
    assert found.reason == Reason.fetch_failed
    assert "nowhere.example" in found.detail


def test_the_next_address_of_a_host_is_tried(server: ImageServer) -> None:
    names = Names(**{"two.shop.test": ["127.0.0.9", "127.0.0.1"]})
    assert fetch(server.url("/picture.jpg", host="two.shop.test"), names=names, max_attempts=1).data == PICTURE


@pytest.mark.parametrize(
    "url",
    ["http:///a.jpg", "http://", "http://[::1", "http://a:99999/", "http://" + "a" * 80 + ".test/", "http://.test/"],
)
def test_what_is_no_url_fails(url: str) -> None:
    assert failure(url, max_attempts=1).reason in (Reason.fetch_failed, Reason.host_not_allowed)


# Lies about length


def short_body(request: Request) -> None:
    request.send_head(Content_Length=len(PICTURE) + 500)
    request.raw(PICTURE)
    request.hang_up()


def short_chunk(request: Request) -> None:
    request.send_head(Transfer_Encoding="chunked")
    request.raw(b"ff\r\nonly this")
    request.hang_up()


@pytest.mark.parametrize("answer", [short_body, short_chunk])
def test_a_body_that_stays_short_is_truncated(server: ImageServer, answer: Any, waits: list[float]) -> None:
    server.answers["/short"] = answer
    assert failure(server.url("/short")).reason == Reason.picture_truncated
    assert server.count("/short") == 3


def test_a_body_that_was_short_once_is_tried_again(server: ImageServer, waits: list[float]) -> None:
    server.answers["/short"] = lambda request: (
        short_body(request) if request.number == 1 else request.send(body=PICTURE)
    )
    assert fetch(server.url("/short")).data == PICTURE


def test_what_comes_after_the_promised_length_spoils_nothing(server: ImageServer) -> None:
    def answer(request: Request) -> None:
        request.send_head(Content_Length=10)
        request.raw(PICTURE[:10] + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    server.answers["/long"] = answer
    pictures = fetcher()
    for _ in range(3):
        assert pictures.fetch(server.url("/long")).data == PICTURE[:10]
        assert pictures.fetch(server.url("/picture.jpg")).data == PICTURE


def endless(request: Request) -> None:
    request.send_head(Transfer_Encoding="chunked")
    try:
        while True:
            request.raw(b"1000\r\n" + b"z" * 0x1000 + b"\r\n")
    except OSError:
        request.hang_up()


def unpacks_to_much(request: Request) -> None:
    request.send(body=zlib.compress(bytes(10_000_000)), Content_Encoding="deflate")


@pytest.mark.parametrize(
    "answer",
    [lambda request: request.send_head(Content_Length=10**12), endless, unpacks_to_much],
    ids=["promised", "endless", "unpacks"],
)
def test_the_byte_limit_holds_whatever_is_promised(server: ImageServer, answer: Any) -> None:
    server.answers["/large"] = answer
    found = failure(server.url("/large"), max_bytes=100_000)
    assert found.reason == Reason.picture_too_many_bytes
    assert server.count("/large") == 1


@pytest.mark.parametrize(("name", "window_bits"), [("gzip", 31), ("X-GZip", 31), ("deflate", 15), ("deflate", -15)])
def test_what_was_packed_unasked_is_unpacked(server: ImageServer, name: str, window_bits: int) -> None:
    packer = zlib.compressobj(wbits=window_bits)
    packed = packer.compress(PICTURE) + packer.flush()
    server.answers["/packed"] = lambda request: request.send(body=packed, Content_Encoding=name)
    assert fetch(server.url("/packed")).data == PICTURE
    assert server.requests[0].headers["accept-encoding"] == "identity"


def test_what_cannot_be_unpacked_fails(server: ImageServer, waits: list[float]) -> None:
    server.answers["/packed"] = lambda request: request.send(body=PICTURE, Content_Encoding="gzip")
    assert failure(server.url("/packed")).reason == Reason.fetch_failed
    short = zlib.compress(PICTURE)[:-20]
    server.answers["/short"] = lambda request: request.send(body=short, Content_Encoding="deflate")
    assert failure(server.url("/short")).reason == Reason.picture_truncated
    server.answers["/odd"] = lambda request: request.send(body=PICTURE, Content_Encoding="br")
    assert fetch(server.url("/odd")).data == PICTURE  # as it came; the decoder will say what it is


def test_a_body_of_exactly_the_limit_is_taken(server: ImageServer) -> None:
    assert fetch(server.url("/picture.jpg"), max_bytes=len(PICTURE)).data == PICTURE
    assert failure(server.url("/picture.jpg"), max_bytes=len(PICTURE) - 1).reason == Reason.picture_too_many_bytes


# Where pictures may come from


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "intranet.test",
        "metadata.test",
        "2130706433",
        "0x7f.1",
        "[::1]",
        "0",
        "[::ffff:a00:1]",
    ],
)
def test_private_addresses_are_refused(server: ImageServer, host: str) -> None:
    """Through the system's resolver for literals, as an attacker would write them."""
    config = FetchConfig(max_attempts=1)
    pictures = ImageFetcher(config, resolver=Names()) if host.endswith(".test") else ImageFetcher(config)
    with pytest.raises(ImageError) as caught:
        pictures.fetch(server.url("/picture.jpg", host=host))
    assert caught.value.reason in (Reason.host_not_allowed, Reason.fetch_failed)
    if host not in ("2130706433", "0x7f.1", "0"):  # whether these resolve at all is the system's affair
        assert caught.value.reason == Reason.host_not_allowed
        assert "fetch.allow_private_hosts" in caught.value.detail
    assert server.connections == 0


def test_one_private_address_among_public_ones_is_enough_to_refuse(server: ImageServer) -> None:
    names = Names(**{"mixed.test": ["93.184.216.34", "127.0.0.1"]})
    assert failure(server.url("/picture.jpg", host="mixed.test"), names=names).reason == Reason.host_not_allowed
    assert server.connections == 0


def test_the_connection_goes_to_the_address_that_was_checked(server: ImageServer) -> None:
    """A name is looked up once a connection; one that turns private later is refused then."""

    class Rebinding(Names):
        def __call__(self, host: str, port: int) -> list[str]:
            self.asked.append(host)
            return ["127.0.0.1"] if len(self.asked) == 1 else ["169.254.169.254"]

    names = Rebinding()
    server.answers["/closes"] = lambda request: request.send(body=PICTURE, Connection="close")
    pictures = fetcher(names, allow_private_hosts=("once.shop.test",))
    assert pictures.fetch(server.url("/closes", host="once.shop.test")).data == PICTURE
    assert names.asked == ["once.shop.test"]

    strict = fetcher(Rebinding(), allow_private_hosts=())
    with pytest.raises(ImageError) as caught:
        strict.fetch(server.url("/closes", host="once.shop.test"))
    assert caught.value.reason == Reason.host_not_allowed


def test_only_listed_hosts(server: ImageServer) -> None:
    allowed = {"allowed_hosts": ("cdn.shop.test", "*.pictures.shop.test")}
    for host in ("cdn.shop.test", "CDN.shop.test", "cdn.shop.test.", "a.pictures.shop.test", "a.b.pictures.shop.test"):
        assert fetch(server.url("/picture.jpg", host=host), **allowed).data == PICTURE
    before = server.connections
    for host in ("other.shop.test", "pictures.shop.test", "evilcdn.shop.test", "127.0.0.1"):
        assert failure(server.url("/picture.jpg", host=host), **allowed).reason == Reason.host_not_allowed
    assert server.connections == before


def test_only_listed_schemes(server: ImageServer) -> None:
    found = failure(server.url("/picture.jpg"), allowed_schemes=("https",))
    assert found.reason == Reason.scheme_not_allowed
    assert failure("ftp://127.0.0.1/a.jpg").reason == Reason.scheme_not_allowed
    assert failure("gopher://127.0.0.1/a.jpg").reason == Reason.scheme_not_allowed


# Redirects


def test_redirects_are_followed(server: ImageServer) -> None:
    server.answers["/a"] = lambda request: request.send(301, Location="b?x=1")
    server.answers["/b?x=1"] = lambda request: request.send(
        307, Location=server.url("/picture.jpg", host="cdn.shop.test")
    )
    assert fetch(server.url("/a")).data == PICTURE
    assert server.requests[-1].headers["host"] == f"cdn.shop.test:{server.port}"


def test_redirects_are_counted(server: ImageServer) -> None:
    server.answers["/loop"] = lambda request: request.send(302, Location="/loop")
    found = failure(server.url("/loop"), max_redirects=4)
    assert found.reason == Reason.fetch_failed
    assert "redirects" in found.detail
    assert server.count("/loop") == 5
    server.answers["/once"] = lambda request: request.send(302, Location="/picture.jpg")
    assert fetch(server.url("/once"), max_redirects=1).data == PICTURE
    assert failure(server.url("/once"), max_redirects=0).reason == Reason.fetch_failed


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("http://metadata.test/latest/meta-data/", Reason.host_not_allowed),
        ("http://169.254.169.254/latest/meta-data/", Reason.host_not_allowed),
        ("http://[fd00::1]/", Reason.host_not_allowed),
        ("//intranet.test/a.jpg", Reason.host_not_allowed),
        ("file:///etc/passwd", Reason.scheme_not_allowed),
        ("s3://bucket/key", Reason.scheme_not_allowed),
        ("memory://a", Reason.scheme_not_allowed),
        ("ftp://127.0.0.1/a.jpg", Reason.scheme_not_allowed),
    ],
)
def test_a_redirect_is_checked_like_a_first_address(server: ImageServer, target: str, reason: Reason) -> None:
    server.answers["/away"] = lambda request: request.send(302, Location=target)

    class Resolver(Names):
        def __call__(self, host: str, port: int) -> list[str]:
            return [host] if host[:1].isdecimal() or ":" in host else super().__call__(host, port)

    assert failure(server.url("/away"), names=Resolver()).reason == reason
    assert server.count("/away") == 1


def test_a_redirect_off_the_list_of_hosts_is_refused(server: ImageServer) -> None:
    server.answers["/away"] = lambda request: request.send(
        302, Location=server.url("/picture.jpg", host="cdn.shop.test")
    )
    assert failure(server.url("/away"), allowed_hosts=("127.0.0.1",)).reason == Reason.host_not_allowed
    assert server.count("/picture.jpg") == 0


def test_a_password_goes_to_its_own_host_only(server: ImageServer) -> None:
    server.answers["/here"] = lambda request: request.send(302, Location="/picture.jpg")
    server.answers["/away"] = lambda request: request.send(
        302, Location=server.url("/picture.jpg", host="cdn.shop.test")
    )
    with_password = f"http://user:secret@127.0.0.1:{server.port}"
    fetch(f"{with_password}/here")
    fetch(f"{with_password}/away")
    assert ["authorization" in request.headers for request in server.requests] == [True, True, True, False]
    assert "secret" not in failure(f"{with_password}/missing?signature=secret").detail


@pytest.mark.parametrize("name", ["/fotos/schön.jpg", "/fotos/a b.jpg"])
def test_a_location_in_raw_utf8(server: ImageServer, name: str) -> None:
    server.answers["/away"] = lambda request: request.raw(
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + name.encode() + b"\r\n\r\n"
    )
    server.answers[quote(name)] = lambda request: request.send(body=PICTURE)
    assert fetch(server.url("/away")).data == PICTURE


def test_a_cookie_set_on_a_redirect_is_sent_on(server: ImageServer) -> None:
    def guarded(request: Request) -> None:
        if request.headers.get("cookie"):
            request.send(body=PICTURE)
        else:
            request.send(302, Location=request.path, Set_Cookie="seen=1; Path=/; HttpOnly")

    server.answers["/guarded"] = guarded
    assert fetch(server.url("/guarded")).data == PICTURE
    assert [request.headers.get("cookie") for request in server.requests] == [None, "seen=1"]
    fetch(server.url("/picture.jpg"))
    assert "cookie" not in server.requests[-1].headers, "an image has its own cookies"
    with_login = f"http://user:secret@127.0.0.1:{server.port}/guarded"
    assert fetch(with_login).data == PICTURE


@pytest.mark.parametrize(
    ("cookie", "target", "sent"),
    [
        ("a=1", "cdn.shop.test", None),
        ("a=1; Domain=shop.test", "cdn.shop.test", "a=1"),
        ("a=1; Domain=test", "cdn.shop.test", None),
        ("a=1; Domain=other.test", "img.other.test", None),
        ("a=1; Path=/elsewhere", "img.shop.test", None),
        ("a=1; Secure", "img.shop.test", None),
        ("a=1; Max-Age=0", "img.shop.test", None),
    ],
)
def test_a_cookie_goes_only_where_its_host_may_send_it(
    server: ImageServer, cookie: str, target: str, sent: str | None
) -> None:
    there = server.url("/picture.jpg", host=target)
    server.answers["/away"] = lambda request: request.send(302, Location=there, Set_Cookie=cookie)
    names = Names(**{"img.other.test": ["127.0.0.1"]})
    allowed = ("*.shop.test", "*.other.test")
    assert fetch(server.url("/away", host="img.shop.test"), names=names, allow_private_hosts=allowed).data == PICTURE
    assert server.requests[-1].headers.get("cookie") == sent


@pytest.mark.parametrize(
    ("status", "content_range", "is_whole"),
    [
        (203, None, True),
        (206, f"bytes 0-{len(PICTURE) - 1}/{len(PICTURE)}", True),
        (206, f"bytes 0-{len(PICTURE) - 1}/{len(PICTURE) + 1}", False),
        (206, f"bytes 1-{len(PICTURE)}/{len(PICTURE) + 1}", False),
        (206, f"bytes 0-{len(PICTURE) - 1}/*", False),
        (206, "bytes 0-9/10", False),  # another length than what comes
        (206, None, False),
        (204, None, False),
    ],
)
def test_only_whole_content_is_a_picture(
    server: ImageServer, status: int, content_range: str | None, is_whole: bool
) -> None:
    headers = {"Content_Range": content_range} if content_range else {}
    server.answers["/part"] = lambda request: request.send(status, PICTURE, **headers)
    if is_whole:
        assert fetch(server.url("/part")).data == PICTURE
    else:
        assert failure(server.url("/part"), max_attempts=1).reason == Reason.fetch_failed


@pytest.mark.parametrize("host", ["[::1%25lo]", "[fe80::1%25eth0]", "[::1%lo]"])
def test_a_zone_is_no_host_also_behind_a_redirect(server: ImageServer, host: str) -> None:
    names = Names()
    assert failure(f"http://{host}/a.png", names=names).reason in (Reason.host_not_allowed, Reason.fetch_failed)
    server.answers["/away"] = lambda request: request.send(302, Location=f"http://{host}/a.png")
    assert failure(server.url("/away"), names=names).reason in (Reason.host_not_allowed, Reason.fetch_failed)
    assert names.asked == ["127.0.0.1"]


@pytest.mark.parametrize("status", [200, 404, 302, 503])
def test_a_length_of_thousands_of_digits_costs_one_picture(server: ImageServer, status: int) -> None:
    head = f"HTTP/1.1 {status} X\r\nLocation: /picture.jpg\r\nContent-Length: {'9' * 4301}\r\n\r\n"

    def long_length(request: Request) -> None:
        request.raw(head.encode())
        request.hang_up()

    server.answers["/long"] = long_length
    failure(server.url("/long"), max_attempts=1)


# Proxies


@pytest.fixture
def proxy() -> Iterator[ImageServer]:
    """Stands at a private address, as an operator's proxy may."""
    with image_server() as running:
        yield running


def proxied(proxy: ImageServer, login: str = "", **changes: Any) -> dict[str, Any]:
    return {"proxy": f"http://{login}gateway.internal:{proxy.port}", "allow_private_hosts": ()} | changes


WORLD = {"cdn.example": ["93.184.216.34"], "gateway.internal": ["127.0.0.1"], "evil.example": ["169.254.169.254"]}


def test_proxies_of_the_environment_are_not_used(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(server.url("/picture.jpg")).data == PICTURE


def test_a_proxy_is_asked_for_what_the_rules_allow(proxy: ImageServer) -> None:
    proxy.answers["http://cdn.example:80/a.jpg?x=1"] = lambda request: request.send(body=PICTURE, ETag='"v1"')
    found = fetch("http://cdn.example/a.jpg?x=1", names=Names(**WORLD), **proxied(proxy, "user:p%40ss@"))
    assert found == FetchedImage(PICTURE, '"v1"')
    (request,) = proxy.requests
    assert request.headers["host"] == "cdn.example"
    assert request.headers["proxy-authorization"] == "Basic " + base64.b64encode(b"user:p@ss").decode()
    assert "authorization" not in request.headers


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "host",
    ["evil.example", "gateway.internal", "127.0.0.1", "10.0.0.7", "[fd00::1]", "169.254.169.254", "nowhere.example"],
)
def test_a_proxy_is_not_asked_for_private_addresses(proxy: ImageServer, scheme: str, host: str) -> None:
    class Resolver(Names):
        def __call__(self, host: str, port: int) -> list[str]:
            return [host] if host[:1].isdecimal() or ":" in host else super().__call__(host, port)

    found = failure(f"{scheme}://{host}:{proxy.port}/a.jpg", names=Resolver(**WORLD), max_attempts=1, **proxied(proxy))
    assert found.reason == (Reason.fetch_failed if host == "nowhere.example" else Reason.host_not_allowed)
    assert proxy.connections == 0


def test_a_redirect_behind_a_proxy_is_checked_like_a_first_address(proxy: ImageServer) -> None:
    names = Names(**WORLD)
    away = proxy.answers
    away["http://cdn.example:80/away"] = lambda request: request.send(302, Location="http://evil.example/latest/")
    away["http://cdn.example:80/file"] = lambda request: request.send(302, Location="file:///etc/passwd")
    away["http://cdn.example:80/list"] = lambda request: request.send(302, Location="http://other.example/")
    assert failure("http://cdn.example/away", names=names, **proxied(proxy)).reason == Reason.host_not_allowed
    assert failure("http://cdn.example/file", names=names, **proxied(proxy)).reason == Reason.scheme_not_allowed
    listed = proxied(proxy, allowed_hosts=("cdn.example",))
    assert failure("http://cdn.example/list", names=names, **listed).reason == Reason.host_not_allowed
    assert len(proxy.requests) == 3


def test_a_name_that_turns_private_behind_a_proxy_is_refused_on_the_next_request(proxy: ImageServer) -> None:
    names = Names(**WORLD)
    proxy.answers["http://cdn.example:80/a.jpg"] = lambda request: request.send(body=PICTURE)
    pictures = fetcher(names, **proxied(proxy))
    assert pictures.fetch("http://cdn.example/a.jpg").data == PICTURE
    names.addresses = WORLD | {"cdn.example": ["10.0.0.7"]}
    with pytest.raises(ImageError) as caught:
        pictures.fetch("http://cdn.example/a.jpg")
    assert caught.value.reason == Reason.host_not_allowed
    assert len(proxy.requests) == 1


def test_tls_goes_through_a_proxy_and_verifies_the_name(
    proxy: ImageServer, tls_server: ImageServer, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    names = Names(**WORLD, **{"cdn.shop.test": ["93.184.216.34"], "other.shop.test": ["93.184.216.35"]})
    pictures = fetcher(names, **proxied(proxy, max_attempts=1))
    for _ in range(2):
        url = tls_server.url("/picture.jpg", host="cdn.shop.test", scheme="https")
        assert pictures.fetch(url).data == PICTURE
    assert [request.path for request in proxy.requests] == [f"cdn.shop.test:{tls_server.port}"]
    other = tls_server.url("/picture.jpg", host="other.shop.test", scheme="https")
    assert "ertificate" in failure(other, names=names, **proxied(proxy, max_attempts=1)).detail


def test_a_proxy_that_refuses_or_is_slow_fails(proxy: ImageServer) -> None:
    names = Names(**WORLD)
    refused = failure("https://cdn.example:1/a.jpg", names=names, **proxied(proxy, max_attempts=1))
    assert refused.reason == Reason.fetch_failed
    proxy.answers["http://cdn.example:80/slow"] = body_drip
    started = time.monotonic()
    slow = proxied(proxy, max_attempts=1, timeout_seconds=0.3)
    assert failure("http://cdn.example/slow", names=names, **slow).reason == Reason.fetch_timeout
    assert time.monotonic() - started < SOON


# Many at a time


def test_no_more_than_the_allowed_connections_at_a_host(server: ImageServer) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def answer(request: Request) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.03)
        with lock:
            now -= 1
        request.send(body=PICTURE)

    pictures = fetcher(connections_per_host=2, timeout_seconds=20.0, total_timeout_seconds=20.0)
    for number in range(12):
        server.answers[f"/{number}"] = answer
    with ThreadPoolExecutor(12) as threads:
        found = list(threads.map(lambda n: pictures.fetch(server.url(f"/{n}")), range(12)))
    assert all(picture.data == PICTURE for picture in found)
    assert most == 2
    assert server.connections <= 2


def test_time_in_line_is_not_held_against_a_picture(server: ImageServer) -> None:
    def answer(request: Request) -> None:
        time.sleep(0.6)
        request.send(body=PICTURE)

    server.answers["/slow"] = answer
    pictures = fetcher(connections_per_host=1, timeout_seconds=2.0, total_timeout_seconds=2.0)
    with ThreadPoolExecutor(6) as threads:  # the last of them waits 3 s
        found = list(threads.map(lambda _: pictures.fetch(server.url("/slow")), range(6)))
    assert all(picture.data == PICTURE for picture in found)


def test_a_dead_host_is_paused_and_tried_again(server: ImageServer) -> None:
    alive = threading.Event()
    server.answers["/a.jpg"] = lambda request: (
        request.send(body=PICTURE) if alive.is_set() else request.send(500, b"no")
    )
    pictures = fetcher(max_attempts=1, host_failures_before_pause=3, host_pause_seconds=2.0)
    reference = server.url("/a.jpg")
    details = []
    for _ in range(6):
        with pytest.raises(ImageError) as caught:
            pictures.fetch(reference)
        assert caught.value.reason == Reason.fetch_failed
        details.append(caught.value.detail)
    assert server.count("/a.jpg") == 3
    assert ["paused" in detail for detail in details] == [False, False, False, True, True, True]
    assert "500" in details[-1]
    alive.set()
    time.sleep(2.05)
    assert pictures.fetch(reference).data == PICTURE
    assert pictures.fetch(reference).data == PICTURE


def test_missing_pictures_pause_no_host(server: ImageServer) -> None:
    pictures = fetcher(host_failures_before_pause=2)
    for _ in range(5):
        with pytest.raises(ImageError) as caught:
            pictures.fetch(server.url("/missing"))
        assert caught.value.reason == Reason.picture_missing


def test_closing_ends_the_wait_between_attempts(server: ImageServer) -> None:
    server.answers["/busy"] = lambda request: request.send(503, b"later", Retry_After=30)
    pictures = fetcher(total_timeout_seconds=60.0)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pictures.fetch, server.url("/busy"))
        while server.count("/busy") == 0:
            time.sleep(0.01)
        time.sleep(0.1)
        started = time.monotonic()
        pictures.close()
        with pytest.raises(ImageError):
            waiting.result(timeout=60)
    assert time.monotonic() - started < SOON


def test_closing_ends_the_line_for_a_host(server: ImageServer) -> None:
    server.answers["/slow"] = silent
    pictures = fetcher(connections_per_host=1, timeout_seconds=4.0, max_attempts=1)
    with ThreadPoolExecutor(8) as threads:
        for _ in range(8):
            threads.submit(pictures.fetch, server.url("/slow"))
        while server.count("/slow") == 0:
            time.sleep(0.01)
        started = time.monotonic()
        pictures.close()
    assert time.monotonic() - started < SOON  # one after another they would take 32 s
    assert server.count("/slow") == 1


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for cdn.shop.test, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=cdn.shop.test", "-addext", "subjectAltName=DNS:cdn.shop.test"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no certificate could be made: {error}")
    return folder / "certificate.pem", folder / "key.pem"


@pytest.fixture(scope="module")
def shared_tls_server(certificate: tuple[Path, Path]) -> Iterator[ImageServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with image_server(lambda plain: context.wrap_socket(plain, server_side=True)) as running:
        yield running


@pytest.fixture
def tls_server(shared_tls_server: ImageServer) -> ImageServer:
    shared_tls_server.reset()
    shared_tls_server.answers["/picture.jpg"] = lambda request: request.send(body=PICTURE)
    return shared_tls_server


def test_tls_verifies_the_name_on_the_checked_address(
    tls_server: ImageServer, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = tls_server.url("/picture.jpg", host="cdn.shop.test", scheme="https")
    other = tls_server.url("/picture.jpg", host="other.shop.test", scheme="https")
    assert failure(good, max_attempts=1).reason == Reason.fetch_failed  # a certificate that nobody vouches for
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    assert fetch(good).data == PICTURE
    found = failure(other, max_attempts=1)
    assert found.reason == Reason.fetch_failed
    assert "ertificate" in found.detail


def test_a_slow_server_meets_the_deadline_over_tls(
    tls_server: ImageServer, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    tls_server.answers["/slow"] = body_drip
    started = time.monotonic()
    url = tls_server.url("/slow", host="cdn.shop.test", scheme="https")
    assert failure(url, timeout_seconds=0.5, max_attempts=1).reason == Reason.fetch_timeout
    assert time.monotonic() - started < SOON
