from __future__ import annotations

import pytest
import xxhash

from pipelines.catalog.previous_version import KnownPicture, KnownPictures, build_known_pictures, write_known_pictures


def picture(number: int) -> KnownPicture:
    reference, digest = (xxhash.xxh3_128_digest(f"{name} {number}".encode()) for name in ("reference", "digest"))
    return KnownPicture(reference=reference, digest=digest, etag=f'"v{number}"')


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    return str(tmp_path) if request.param == "local" else f"memory://known-pictures/{tmp_path.name}"


def test_each_reference_finds_its_picture_in_any_order(folder):
    first, second = [picture(number) for number in range(300)], [picture(number) for number in range(300, 340)]
    write_known_pictures(f"{folder}/a.arrow", first)
    write_known_pictures(f"{folder}/b.arrow", second)
    known = KnownPictures(build_known_pictures([f"{folder}/a.arrow", f"{folder}/b.arrow"], f"{folder}/lookup"))
    wanted = [*second[::-7], picture(9999), *first[::11]]
    found = known.find([each.reference for each in wanted])
    assert found == [None if each == picture(9999) else each for each in wanted]
    assert known.find([None, second[0].reference, None]) == [None, second[0], None]
    assert known.find([]) == []


def test_a_reference_that_several_products_share_is_kept_once(tmp_path):
    write_known_pictures(f"{tmp_path}/a.arrow", [picture(1), picture(2), picture(1)])
    source = build_known_pictures([f"{tmp_path}/a.arrow"], f"{tmp_path}/lookup")
    assert source.pictures == 2
    assert KnownPictures(source).find([picture(1).reference]) == [picture(1)]


def test_a_file_that_is_gone_costs_only_its_pictures(tmp_path):
    write_known_pictures(f"{tmp_path}/a.arrow", [picture(1)])
    source = build_known_pictures([f"{tmp_path}/gone.arrow", f"{tmp_path}/a.arrow"], f"{tmp_path}/lookup")
    assert KnownPictures(source).find([picture(1).reference, picture(2).reference]) == [picture(1), None]
    again = build_known_pictures([], f"{tmp_path}/lookup")
    assert again == source, "a lookup that stands is taken as it is"


def test_nothing_is_known_without_files(tmp_path):
    source = build_known_pictures([], f"{tmp_path}/lookup")
    assert KnownPictures(source).find([picture(1).reference]) == [None]
