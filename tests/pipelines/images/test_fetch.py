"""Pictures from the row itself, from files and from stores, and the paths that are not followed."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from pathlib import Path

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.catalog.dead_letters import ImageError, Reason
from pipelines.images.addresses import resolve
from pipelines.images.config import FetchConfig
from pipelines.images.fetch import ImageFetcher, shown_reference
from pipelines.images.http import FetchedImage

PICTURE = b"not looked into here"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of pictures, with a secret beside it."""
    folder = tmp_path / "pictures"
    (folder / "shoes").mkdir(parents=True)
    (folder / "shoes" / "a.jpg").write_bytes(PICTURE)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "pictures-old").mkdir()
    (tmp_path / "pictures-old" / "a.jpg").write_bytes(b"secret")
    return folder


def fetch(uri: str, root: Path | str | None = None, known_etag: str | None = None, **values) -> FetchedImage:
    config = FetchConfig(**values)
    return ImageFetcher(config, None if root is None else str(root)).fetch(uri, known_etag)


def reason(uri: str, root: Path | str | None = None, **values) -> Reason:
    with pytest.raises(ImageError) as caught:
        fetch(uri, root, **values)
    assert caught.value.stage == "fetch"
    return caught.value.reason


# In the row itself


def test_bytes_are_handed_on() -> None:
    fetcher = ImageFetcher(FetchConfig(max_bytes=len(PICTURE)))
    assert fetcher.fetch(PICTURE) == FetchedImage(PICTURE, None)
    with pytest.raises(ImageError) as caught:
        fetcher.fetch(PICTURE + b"!")
    assert caught.value.reason == Reason.picture_too_many_bytes


@pytest.mark.parametrize("uri", ["", "   "])
def test_an_empty_reference_is_a_missing_picture(uri: str) -> None:
    assert reason(uri) == Reason.picture_missing


# Local files


def test_a_relative_path_is_read_below_the_root(root: Path) -> None:
    for uri in ("shoes/a.jpg", "./shoes//a.jpg", " shoes/a.jpg ", "shoes/../shoes/a.jpg"):
        assert fetch(uri, root).data == PICTURE
    assert fetch("shoes/a.jpg", root, allowed_schemes=()).data == PICTURE
    assert fetch("shoes/a.jpg", root.as_uri()).data == PICTURE


@pytest.mark.parametrize(
    "uri", ["../secret.jpg", "shoes/../../secret.jpg", "../pictures-old/a.jpg", "..", "shoes/up/secret.jpg"]
)
def test_a_relative_path_cannot_leave_the_root(root: Path, uri: str) -> None:
    (root / "shoes" / "up").symlink_to(root.parent)
    assert reason(uri, root) == Reason.host_not_allowed


def test_a_link_within_the_root_and_a_root_that_is_a_link(root: Path) -> None:
    (root / "linked.jpg").symlink_to(root / "shoes" / "a.jpg")
    assert fetch("linked.jpg", root).data == PICTURE
    (root.parent / "current").symlink_to(root)
    assert fetch("shoes/a.jpg", root.parent / "current").data == PICTURE


def test_absolute_paths_are_the_catalogs_own_word(root: Path) -> None:
    path = root / "shoes" / "a.jpg"
    for uri in (str(path), path.as_uri(), f"file://localhost{path}", f"FILE://{path}", f"file:{path}"):
        assert fetch(uri, root).data == PICTURE
        assert fetch(uri).data == PICTURE
        assert reason(uri, root, allowed_schemes=("https",)) == Reason.scheme_not_allowed


def test_without_a_root_a_relative_path_is_read_as_it_stands(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert fetch("shoes/a.jpg").data == PICTURE
    assert reason("shoes/a.jpg", allowed_schemes=("https",)) == Reason.scheme_not_allowed


def test_a_percent_sign_in_a_path_stays_one(root: Path) -> None:
    (root / "50%20off #1?.jpg").write_bytes(PICTURE)
    assert fetch("50%20off #1?.jpg", root).data == PICTURE
    assert fetch((root / "50%20off #1?.jpg").as_uri()).data == PICTURE


@pytest.mark.parametrize(
    "name",
    [
        "T-Shirt #1.jpg",
        "50%.jpg",
        "a%20b.jpg",
        "why?.jpg",
        "schöne Tasse.jpg",
        "a+b&c=d.jpg",
        "x;y.jpg",
        "back\\slash.jpg",
    ],
)
def test_names_of_files_are_taken_as_they_are(root: Path, name: str) -> None:
    (root / "shoes" / name).write_bytes(b"found")
    for uri in (f"shoes/{name}", f"/shoes/{name}", f" shoes/{name}\u00a0", (root / "shoes" / name).as_uri()):
        assert fetch(uri, root).data == b"found"


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("schöne Tasse.jpg", unicodedata.normalize("NFD", "schöne Tasse.jpg")),
        (unicodedata.normalize("NFD", "schöne Tasse.jpg"), "schöne Tasse.jpg"),
        ("schöne Tasse.jpg", "sch%C3%B6ne%20Tasse.jpg"),
        ("m/u/x.jpg", "m\\u\\x.jpg"),
        ("m/ü x.jpg", "\\m\\u%CC%88%20x.jpg"),
        ("m/u/x.jpg", "/m/u/x.jpg"),
        ("m/u/x.jpg", "//m/u/x.jpg"),
        ("a%20b.jpg", "a%20b.jpg"),
    ],
)
def test_a_file_is_found_as_exports_write_it(root: Path, name: str, written: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"found")
    found = fetch(written, root)
    assert found.data == b"found"
    assert fetch(written, root, found.etag).not_modified


@pytest.mark.parametrize(
    "written", ["..\\secret.jpg", "%2e%2e/secret.jpg", "/../secret.jpg", "shoes\\..\\..\\secret.jpg"]
)
def test_no_way_of_writing_leads_out_of_the_root(root: Path, written: str) -> None:
    with pytest.raises(ImageError) as caught:
        fetch(written, root, allowed_schemes=())
    assert caught.value.reason in (Reason.host_not_allowed, Reason.scheme_not_allowed)


def test_a_leading_slash_is_below_the_root_or_as_it_stands(root: Path) -> None:
    assert fetch("/shoes/a.jpg", root, allowed_schemes=()).data == PICTURE
    assert fetch(str(root.parent / "secret.jpg"), root).data == b"secret"
    assert reason("/shoes/gone.jpg", root) == Reason.picture_missing
    assert reason(str(root.parent / "secret.jpg"), root, allowed_schemes=("https",)) == Reason.scheme_not_allowed


def test_an_address_is_shown_without_login_and_query() -> None:
    assert shown_reference(b"bytes") == ""
    assert shown_reference(" m/u/x y.jpg ") == "m/u/x y.jpg"
    assert shown_reference("https://u:p@cdn.test/a.jpg?sig=1#f") == "https://cdn.test/a.jpg?..."
    assert shown_reference("https://cdn.test/a@2x.jpg") == "https://cdn.test/a@2x.jpg"
    assert shown_reference("s3://bucket/a b.jpg") == "s3://bucket/a b.jpg"
    assert shown_reference("//u:p@cdn.test/a.jpg?sig=1") == "//cdn.test/a.jpg?..."


def test_a_missing_file_says_what_its_path_is_relative_to(root: Path) -> None:
    with pytest.raises(ImageError, match=r"no file at 'm/gone\.jpg', relative to the current folder; set .*image_root"):
        fetch("m/gone.jpg")
    for path, below in (("m/gone.jpg", root), ("/m/gone.jpg", None)):
        with pytest.raises(ImageError, match=r"no file at '/.*/gone\.jpg'$|no file at '/m/gone\.jpg'$"):
            fetch(path, below)


def test_what_is_no_readable_file(root: Path) -> None:
    os.mkfifo(root / "pipe")
    assert reason("shoes/b.jpg", root) == Reason.picture_missing
    assert reason("shoes/a.jpg/b.jpg", root) == Reason.picture_missing
    assert reason("x" * 5000, root) == Reason.picture_missing
    assert reason("a\x00b", root) == Reason.picture_missing
    assert reason("shoes", root) == Reason.picture_unreadable
    assert reason("pipe", root) == Reason.picture_unreadable  # and does not wait for a writer
    assert reason("/dev/zero", root) == Reason.picture_unreadable


def test_the_byte_limit_of_files(root: Path) -> None:
    assert fetch("shoes/a.jpg", root, max_bytes=len(PICTURE)).data == PICTURE
    assert reason("shoes/a.jpg", root, max_bytes=len(PICTURE) - 1) == Reason.picture_too_many_bytes


def test_an_unchanged_file_is_not_read_again(root: Path) -> None:
    version = fetch("shoes/a.jpg", root).etag
    assert fetch("shoes/a.jpg", root, version) == FetchedImage(b"", version, not_modified=True)
    path = root / "shoes" / "a.jpg"
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    again = fetch("shoes/a.jpg", root, version)
    assert (again.data, again.not_modified) == (PICTURE, False)
    assert again.etag != version


# Stores


def test_a_store(memory_root: str) -> None:
    with fsspec.open(f"{memory_root}/a.jpg", "wb") as file:
        file.write(PICTURE)
    uri = f"{memory_root}/a.jpg"
    first = fetch(uri)
    assert first.data == PICTURE
    assert fetch(uri, known_etag=first.etag) == FetchedImage(b"", first.etag, not_modified=True)
    assert fetch(uri, known_etag="another").data == PICTURE
    assert fetch("a.jpg", memory_root).data == PICTURE
    assert fetch(uri, max_bytes=len(PICTURE)).data == PICTURE
    assert reason(uri, max_bytes=len(PICTURE) - 1) == Reason.picture_too_many_bytes
    assert reason(f"{memory_root}/b.jpg") == Reason.picture_missing
    assert reason(memory_root) == Reason.picture_missing  # a folder
    assert reason(uri, allowed_schemes=("https",)) == Reason.scheme_not_allowed


@pytest.mark.parametrize("path", ["../a.jpg", "x/../../a.jpg", "%2e%2e/a.jpg", "x/..\\..\\a.jpg"])
def test_a_relative_path_cannot_leave_a_root_in_a_store(memory_root: str, path: str) -> None:
    assert reason(path, f"{memory_root}/pictures") == Reason.host_not_allowed


def test_buckets_are_hosts() -> None:
    assert reason("s3://elsewhere/a.jpg", allowed_hosts=("ours",)) == Reason.host_not_allowed


@pytest.mark.parametrize(
    "uri",
    [
        "simplecache::https://127.0.0.1/a.jpg",
        "zip://a.jpg::memory://x.zip",
        "filecache::file:///etc/passwd",
        "github://o:r@/a",
    ],
)
def test_ways_around_the_list_of_schemes_are_refused(uri: str) -> None:
    assert reason(uri) == Reason.scheme_not_allowed


def test_a_stores_own_trouble_is_a_failure() -> None:
    assert reason("nosuchstore://a/b.jpg", allowed_schemes=("nosuchstore",)) == Reason.fetch_failed


# Whatever a catalog may hold

PIECES = [
    "http://",
    "https://",
    "HTTP:",
    "//",
    "file://",
    "memory://",
    "data:",
    "::",
    "..",
    "/",
    "\\",
    "@",
    ":",
    "?",
    "#",
]
PIECES += [
    "[",
    "]",
    "%",
    "%zz",
    "%00",
    "\x00",
    "\n",
    " ",
    "\t",
    "é",
    "☃",
    "\ud800",
    "xn--",
    "127.0.0.1",
    "host.test",
    "a",
    ".jpg",
]
PIECES += ["99999", "80", "[::1]", "-", "*", "~", "$HOME", "x" * 300]


@pytest.fixture(scope="module")
def fetchers(tmp_path_factory: pytest.TempPathFactory) -> list[ImageFetcher]:
    def resolver(host: str, port: int) -> list[str]:
        return resolve(host, port) if host == "127.0.0.1" else ["10.0.0.7"]

    config = FetchConfig(max_attempts=1, timeout_seconds=0.5, allow_private_hosts=())
    roots = (None, str(tmp_path_factory.mktemp("pictures")), "memory://pictures", "https://cdn.test/pictures")
    return [ImageFetcher(config, root, resolver=resolver) for root in roots]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(uri=st.one_of(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join), st.text(max_size=20)))
def test_any_reference_gives_a_picture_or_a_picture_error(fetchers: list[ImageFetcher], uri: str) -> None:
    for fetcher in fetchers:
        with contextlib.suppress(ImageError):  # any other exception fails the test
            fetcher.fetch(uri)
