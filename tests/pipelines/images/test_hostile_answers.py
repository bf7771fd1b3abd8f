"""Generated addresses and answers by the thousand, through the real fetcher: each costs its own image at most."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from encoders.preprocessing import ImagePreprocessing
from pipelines.catalog.dead_letters import ImageError, Reason
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.images.fetch import ImageFetcher
from pipelines.images.pool import ImagePool
from tests.pipelines.images.image_server import Request, image_server

MANY = "9" * 5000
HEADERS = {
    "Content-Length": ["9" * 4301, "-1", "1, 1", "+5", "0x10", "\u0665", "", "7"],
    "Content-Encoding": ["gzip", "deflate", "br", "gzip, gzip", "\x7f"],
    "Content-Range": ["bytes 0-6/7", f"bytes 0-{MANY}", "bytes */*", "x"],
    "Transfer-Encoding": ["chunked", "gzip, chunked", "identity", "x"],
    "Last-Modified": ["Mon, 99 Foo 10000 25:61:61 +9999", "-" * 5000, "Thu, 01 Jan 1970", "0"],
    "Date": ["Fri, 31 Dec 9999 23:59:59 -2359", "", "Thu, 01 Jan 1970 00:00:00 GMT"],
    "Retry-After": [MANY, "-1", "1e400", "Fri, 31 Dec 9999 23:59:59 -2359", "0"],
    "Set-Cookie": [
        "=",
        "a=b; Domain=.",
        "a=" + "x" * 9000,
        ";" * 500,
        f"a=b; Expires=x; Max-Age={MANY}",
        "\u00fc=\u0085",
    ],
    "ETag": ['"' + "e" * 9000, "\u00ff", "W/"],
    "X-Bomb": ["y" * 70_000, "y" * 120_000],
    "Location": [
        *(
            "http://[::1%25lo]/a",
            "http://[::ffff:10.0.0.7]/",
            "//",
            "///",
            "http:",
            "https://h" + "h" * 300,
            "\u00fc\u0080",
        ),
        *(
            "?",
            "#",
            "..",
            "http://a.shop.test:99999/",
            "http://\u2488.shop.test/",
            "javascript:1",
            "data:,x",
            "http://0x7f.1/",
        ),
        *("http://user:pw@/", "/again", "http://10.0.0.7/", "http://" + "a." * 200, "http://xn--/", "\\\\10.0.0.7\\a"),
    ],
    "Connection": ["close"],
    "Bad Name": ["x"],
    "X": ["\0"],
    "": ["empty"],
}
LINES = [f"{name}: {value}" for name, values in HEADERS.items() for value in values] + ["No-Colon", " folded"]
STATUSES = [200, 200, 203, 206, 302, 302, 304, 404, 503, 99, 1000]
BODIES = [
    *(b"", b"\x89PNG\r\n\x1a\n", b"picture", b"0\r\n\r\n", b"7\r\npicture\r\n0\r\n\r\n"),
    *(b"ffffffffffffffffffff\r\n", b"\x1f\x8b" + b"\0" * 50, b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 6000),
]
PIECES = [
    *(
        "/a",
        "/a b",
        "/%",
        "/%zz",
        "/\u00fc",
        "/a#b",
        "/a?b#c",
        "/\\..\\..",
        "//",
        "/" + "p" * 5000,
        "/\u202e",
        "/;",
        "/{}",
    ),
    *(
        ":",
        "@",
        "?",
        "[",
        "]",
        "%25lo",
        "%00",
        "\0",
        "\n",
        "\ud800",
        "xn--",
        "\u2488",
        ".",
        "-",
        "*",
        "99999",
        ":80",
        ":0",
        ":-1",
    ),
    *(":\u0665", "e" * 300, "[::1]", "[::1%25lo]", "[v1.x]", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "10.0.0.7"),
    *(
        "metadata.test",
        "a.shop.test",
        "user:pw@",
        "http://",
        "https://",
        "HTTP:/",
        "http:",
        "ftp://",
        "nostore://",
        "//",
    ),
    *("data:,", "javascript:", "::", "\\\\", "\t"),
]
LIMITS: dict[str, Any] = {
    "timeout_seconds": 0.5,
    "total_timeout_seconds": 1.0,
    "max_attempts": 1,
    "max_bytes": 5000,
    "allow_private_hosts": ("a.shop.test",),
    "host_failures_before_pause": 0,
    "allowed_schemes": ("http", "https", "file"),
}


def test_thousands_of_hostile_addresses_and_answers_cost_one_picture_each() -> None:
    random = Random(16)
    answer = [b""]

    def hostile(request: Request) -> None:
        request.raw(answer[0])
        request.hang_up()

    class AnyPath(dict):
        def get(self, path: str, default: object = None) -> Any:
            return hostile

    def resolver(host: str, port: int) -> list[str]:
        """The server for one host; of every other one addresses that must never be dialled, or an error of any kind."""
        if host == "a.shop.test":
            return ["127.0.0.1"]
        if random.random() < 0.1:
            raise random.choice(
                [UnicodeError("label"), OverflowError("port"), ValueError("null byte"), OSError("none")]
            )
        return random.choice([["10.0.0.7", "169.254.169.254"], ["::1"], ["::1%lo"], ["fe80::1%eth0"], []])

    outcomes: Counter[str] = Counter()

    def ask(pictures: ImagePool, url: str) -> None:
        try:
            pictures.fetch_all([url])[0].result()
            outcomes["picture"] += 1
        except ImageError as error:  # any other exception fails the test
            outcomes[error.reason] += 1

    with image_server() as server:
        server.answers = AnyPath()
        roots = (None, "/nowhere", server.url("/media", host="a.shop.test"))
        seen_as = ImagePreprocessing(size=4, mean=(0.5,) * 3, std=(0.5,) * 3)
        pools = [
            ImagePool(ImageFetcher(FetchConfig(**LIMITS), root, resolver=resolver), seen_as, DecodeConfig())
            for root in roots
        ]
        for _ in range(8000):
            start = random.choice(["http://", "https://", "//", "/", ""])
            ask(random.choice(pools), start + "".join(random.choices(PIECES, k=random.randint(1, 5))))
        for _ in range(2000):
            lines = [f"HTTP/1.{random.randint(0, 1)} {random.choice(STATUSES)} X"]
            lines += random.choices(LINES, k=random.randint(0, 5))
            head = random.choice(["\r\n", "\r\n", "\r\n", "\n", "\r"]).join([*lines, "", ""])
            answer[0] = head.encode(random.choice(["latin-1", "utf-8"]), "replace") + random.choice(BODIES)
            ask(pools[0], server.url("/x", host="a.shop.test"))
        for pictures in pools:
            pictures.close()
    assert sum(outcomes.values()) == 10_000
    for kind in ("picture", *Reason.__members__):
        if kind in ("picture", "fetch_failed", "host_not_allowed", "scheme_not_allowed", "picture_missing"):
            assert outcomes[kind] > 50, outcomes
