"""Batches of products: each image once, failures where they belong, what is known not read again."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoders.image_decoding import image_digest
from encoders.preprocessing import ImagePreprocessing
from pipelines.catalog.dead_letters import ImageError, Reason
from pipelines.catalog.image_values import ImageRef
from pipelines.catalog.previous_version import KnownImage
from pipelines.images import product_images
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.images.fetch import ImageFetcher
from pipelines.images.pool import ImagePool
from pipelines.images.product_images import content_fingerprints, decode_images, fetch_images


def grey(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (8, 8), level).save(stream, "PNG")
    return stream.getvalue()


def named(name: str) -> ImageRef:
    return name


@pytest.fixture
def pool(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(grey(10))
    (tmp_path / "same.png").write_bytes(grey(10))
    (tmp_path / "b.png").write_bytes(grey(20))
    (tmp_path / "broken.png").write_bytes(grey(30)[:40])
    fetcher = ImageFetcher(FetchConfig(), str(tmp_path))
    with ImagePool(fetcher, ImagePreprocessing(size=4, mean=(0.5,) * 3, std=(0.5,) * 3), DecodeConfig()) as running:
        yield running


def test_each_product_has_its_own_images_and_failures(pool: ImagePool) -> None:
    row = grey(40)
    batch = fetch_images(pool, [[named("a.png"), named("gone.png"), named("b.png")], [], [row], [named("same.png")]])
    first, empty, from_row, copy = batch.products
    a, b = image_digest(grey(10)), image_digest(grey(20))
    assert [product.digests for product in batch.products] == [[a, b], [], [image_digest(grey(40))], [a]]
    assert [(reference, fault.reason) for reference, fault in first.faults] == [
        (named("gone.png"), Reason.picture_missing)
    ]
    assert first.references == [named("a.png"), named("b.png")]
    undecodable = ImageError("decode", Reason.picture_unreadable, "why")
    first.drop({a: undecodable})
    assert (first.digests, first.references) == ([b], [named("b.png")])
    assert first.faults[-1] == (named("a.png"), undecodable)
    assert not empty.faults + from_row.faults + copy.faults
    assert [product.by_reference for product in batch.products] == [True, False, False, True]
    assert [len(product.known) for product in batch.products] == [2, 0, 0, 1]
    assert sorted(batch.data) == sorted({a, b, image_digest(grey(40))})


def test_what_is_still_the_same_is_not_read_again(pool: ImagePool, tmp_path: Path) -> None:
    references = [[named("a.png"), named("b.png")]]
    before = {image.reference: image for image in fetch_images(pool, references).products[0].known}

    class Known:
        def find(self, digests: Sequence[bytes | None]) -> list[KnownImage | None]:
            return [None if digest is None else before.get(digest) for digest in digests]

    (tmp_path / "b.png").write_bytes(grey(21) + b"longer")
    batch = fetch_images(pool, references, Known())
    changed = image_digest(grey(21) + b"longer")
    assert batch.products[0].digests == [image_digest(grey(10)), changed]
    assert list(batch.data) == [changed]
    assert len(batch.products[0].known) == 2


def test_what_cannot_be_decoded_is_told_by_digest(pool: ImagePool) -> None:
    data = {b"a": grey(10), b"x": grey(30)[:40], b"b": grey(20)}
    pixels, faults = decode_images(pool, data)
    assert {digest: int(image.mean()) for digest, image in pixels.items()} == {b"a": 10, b"b": 20}
    assert {digest: fault.reason for digest, fault in faults.items()} == {b"x": Reason.picture_truncated}


def test_other_decoding_rules_are_other_images_but_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    products = (["words", "words"], [[b"d" * 16], []])
    before = content_fingerprints(*products)
    monkeypatch.setattr(product_images, "DECODING_RULES", 99)
    assert np.any(before != content_fingerprints(*products), axis=1).tolist() == [True, False]
