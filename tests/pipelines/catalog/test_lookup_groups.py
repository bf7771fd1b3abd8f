"""A lookup that many workers wrote answers as one that one worker wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.catalog import lookup_groups
from pipelines.catalog.lookup_groups import complete_lookup, group_count, list_keys, write_part
from pipelines.catalog.previous_version import (
    CarryOver,
    KnownImages,
    build_carry_over,
    build_known_images,
    fingerprints_of,
    references_of,
    write_known_images,
)
from tests.pipelines.catalog.test_previous_version import fingerprints, picture, write_shard


def build(files: list[str], uri: str, keys_of: lookup_groups.ReadKeys):
    """As the pipeline does, in another order."""
    groups = group_count(len(files))
    runs = [list_keys(files, group, uri, keys_of) for group in reversed(range(groups))][::-1]
    parts = {part: write_part(runs, part, uri) for part in reversed(range(groups))}
    return complete_lookup(files, [parts[part] for part in range(groups)], uri)


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup_groups, "FILES_OF_GROUP", 2)


@pytest.mark.parametrize("scheme", ["", "memory://lookups"])
def test_vectors_come_back_bit_for_bit_from_any_part(tmp_path: Path, scheme: str) -> None:
    folder, stored = scheme + str(tmp_path), {}
    files = [f"{folder}/{number}.parquet" for number in range(5)]
    for number, uri in enumerate(files):
        if number != 2:  # gone
            texts = [f"product {number}-{row}" for row in range(200)]
            stored |= dict(zip(texts, write_shard(uri, texts), strict=True))
    made = build(files, f"{folder}/lookup", fingerprints_of)
    assert (len(made.parts), made.records, sum(made.parts)) == (3, 800, 800)
    assert min(made.parts) > 200, "spread evenly"
    wanted = [*list(stored)[::-3], "changed", "product 2-0"]
    carry_over = CarryOver(made)
    numbers = carry_over.find(fingerprints(wanted))
    assert (numbers == -1).tolist() == [text not in stored for text in wanted]
    assert np.array_equal(carry_over.vectors(numbers[numbers >= 0]), np.stack([stored[text] for text in wanted[:-2]]))
    assert build_carry_over(files, f"{folder}/lookup") == made, "it is taken as it stands"


def test_images_are_known_from_any_part(tmp_path: Path) -> None:
    files = [f"{tmp_path}/{number}.arrow" for number in range(4)]
    images = [picture(number) for number in range(300)]
    for number, uri in enumerate(files):
        write_known_images(uri, images[number::4])
    known = KnownImages(build(files, f"{tmp_path}/lookup", references_of))
    assert known.find([image.reference for image in images]) == images
    assert known.find([picture(999).reference, None]) == [None, None]
    assert build_known_images([], f"{tmp_path}/lookup").records == 300


def test_nothing_to_look_up(tmp_path: Path) -> None:
    files = [f"{tmp_path}/gone-{number}.parquet" for number in range(3)]
    made = build(files, f"{tmp_path}/lookup", fingerprints_of)
    assert (made.parts, made.records) == ((0, 0), 0)
    assert CarryOver(made).find(fingerprints(["a", "b"])).tolist() == [-1, -1]
