from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoders import EncoderConfig, FusionSpec, TowerSpec, load_product_encoder
from encoders.kept_vectors import KeptVectors
from encoders.saved_encoder import save_encoder
from pipelines.catalog.config import CatalogConfig
from pipelines.evaluation import encoder_ranking
from pipelines.evaluation.encoder_ranking import (
    View,
    encode_catalog,
    search_exactly,
    share_of_exact,
)
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.images.fetch import ImageFetcher
from pipelines.images.pool import ImagePool
from tests.encoders.test_image_backbones import save_timm
from tests.encoders.tiny import save_tiny_encoder, tiny_parts
from tests.pipelines.indexing.job import product, write_catalog


def test_exact_search_agrees_with_sorting_every_score(monkeypatch):
    monkeypatch.setattr(encoder_ranking, "SCORES_AT_A_TIME", 100)
    generator = np.random.default_rng(0)
    queries, products = generator.normal(size=(9, 8)), generator.normal(size=(40, 8))
    present = generator.random(40) < 0.7
    rows = search_exactly(queries.astype(np.float32), products.astype(np.float32), present, 5)
    for query, found in zip(queries, rows, strict=True):
        scores = {row: float(products[row] @ query) for row in np.flatnonzero(present)}
        assert found.tolist() == sorted(scores, key=scores.__getitem__, reverse=True)[:5]


def test_exact_search_pads_and_settles_ties_by_row():
    products = np.ones((4, 2), np.float32)
    present = np.array([True, False, True, True])
    queries = np.ones((2, 2), np.float32)
    assert search_exactly(queries, products, present, 5).tolist() == [[0, 2, 3, -1, -1]] * 2
    assert search_exactly(queries, products, np.zeros(4, bool), 2).tolist() == [[-1, -1]] * 2


@pytest.mark.parametrize("k", [1, 7, 30])
def test_ties_of_every_sign_are_settled_as_a_stable_sort_would(k):
    # Few values, so that most scores are shared: also zeros of both signs, and negative ones.
    generator = np.random.default_rng(1)
    products = generator.integers(-1, 2, (200, 2)).astype(np.float32)
    queries = np.array([[1.0, 0.0], [-1.0, 0.0], [0.5, -0.5], [0.0, -0.0]], np.float32)
    rows = search_exactly(queries, products, np.ones(200, bool), k)
    stable = np.argsort(-(queries @ products.T), axis=1, kind="stable")[:, :k]
    assert rows.tolist() == stable.tolist()


def test_another_product_of_the_same_score_is_as_good():
    products = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8]], np.float32)
    queries = np.array([[1, 0], [0, 1]], np.float32)
    present = np.ones(4, bool)
    exact = search_exactly(queries, products, present, 1)
    assert share_of_exact(np.array([[1], [3]]), queries, products, present, exact).tolist() == [1.0, 0.0]
    of_two = search_exactly(queries, products, present, 2)
    half = share_of_exact(np.array([[0, 2], [2, -1]]), queries, products, present, of_two)
    assert half.tolist() == [0.5, 0.5]
    nothing = np.full((2, 1), -1)
    assert np.isnan(share_of_exact(nothing, queries, products, present, nothing)).all()


BROKEN = {"bytes": b"no picture", "path": None}


def encoded(tmp_path: Path, rows: list[dict], *, model: str = "3tmm", pictures: bool = True, **catalog_options):
    write_catalog(tmp_path / "catalog", rows)
    catalog = CatalogConfig(uri=str(tmp_path / "catalog"), image_field="image" if pictures else None, **catalog_options)
    encoder = load_product_encoder(save_tiny_encoder(tmp_path / model, model=model))
    spool = str(tmp_path / "spool")
    if encoder.preprocessing is None or not pictures:
        return encode_catalog([(encoder, list(View))], catalog, None, spool_uri=spool)[0]
    with ImagePool(ImageFetcher(FetchConfig()), encoder.preprocessing, DecodeConfig(threads=1)) as pool:
        return encode_catalog([(encoder, list(View))], catalog, pool, spool_uri=spool)[0]


def test_each_view_sees_what_it_says(tmp_path):
    rows = [product(number) for number in range(6)]
    rows[1] |= {"title": rows[0]["title"]}
    rows[3] |= {"image": rows[2]["image"]}
    found = encoded(tmp_path, rows)
    text, picture, fused = (found.vectors[view] for view in (View.TEXT, View.IMAGE, View.FUSED))
    assert np.allclose(text[0], text[1])
    assert not np.allclose(text[2], text[3])
    assert np.allclose(picture[2], picture[3])
    assert not np.allclose(picture[0], picture[1])
    assert not np.allclose(fused[0], fused[1])
    assert not np.allclose(fused[2], fused[3])
    assert all(present.all() for present in found.present.values())
    assert np.allclose(np.linalg.norm(fused, axis=1), 1.0, atol=1e-5)


def test_the_fused_view_is_what_the_encoder_makes_of_both(tmp_path):
    rows = [product(number) for number in range(5)]
    found = encoded(tmp_path, rows)
    encoder = load_product_encoder(save_tiny_encoder(tmp_path / "again", model="3tmm"))
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])) for row in rows]
    titles = [row["title"] for row in rows]
    assert np.allclose(found.vectors[View.FUSED], encoder.encode(titles, pictures), atol=1e-5)
    assert np.allclose(found.vectors[View.TEXT], encoder.encode(titles), atol=1e-5)
    assert np.allclose(found.vectors[View.IMAGE], encoder.encode([None] * 5, pictures), atol=1e-5)


def test_a_product_that_lacks_a_half_is_absent_from_that_view(tmp_path):
    rows = [product(0), product(1, image=None), product(2, title=None), product(3, image=BROKEN)]
    found = encoded(tmp_path, rows)
    assert found.present[View.TEXT].tolist() == [True, True, False, True]
    assert found.present[View.IMAGE].tolist() == [True, False, True, False]
    assert found.present[View.FUSED].tolist() == [True, True, True, True]
    assert not found.vectors[View.IMAGE][1].any()


def test_a_product_id_keeps_its_first_row(tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_ranking, "BATCH_ROWS", 3)
    rows = [product(number) for number in range(8)]
    rows[2] |= {"product_id": "p00001"}
    rows[7] |= {"product_id": "p00000"}
    found = encoded(tmp_path, rows)
    assert found.product_ids == ["p00000", "p00001", "p00003", "p00004", "p00005", "p00006"]
    again = encoded(tmp_path / "without", [row for place, row in enumerate(rows) if place not in (2, 7)])
    assert again.product_ids == found.product_ids
    for view in View:
        assert np.allclose(found.vectors[view], again.vectors[view], atol=1e-5)


def test_an_encoder_or_catalog_without_pictures_has_one_view(tmp_path):
    rows = [product(number) for number in range(4)]
    assert list(encoded(tmp_path / "a", rows, model="bibert").vectors) == [View.TEXT]
    assert list(encoded(tmp_path / "b", rows, pictures=False).vectors) == [View.TEXT]


def test_an_encoder_of_pictures_alone_is_asked_for_no_text(tmp_path):
    write_catalog(tmp_path / "catalog", [product(0), product(1, image=None), product(2)])
    catalog = CatalogConfig(uri=str(tmp_path / "catalog"), image_field="image")
    tower = TowerSpec(library="timm", checkpoint=str(save_timm(tmp_path / "timm")))
    config = EncoderConfig(model="match3", clip_tower=tower, fusion=FusionSpec(method="sum"), device="cpu")
    encoder = load_product_encoder(config)
    with ImagePool(ImageFetcher(FetchConfig()), encoder.preprocessing, DecodeConfig(threads=1)) as pool:
        (found,) = encode_catalog([(encoder, list(View))], catalog, pool, spool_uri=str(tmp_path / "spool"))
    assert found.present[View.FUSED].tolist() == [True, False, True]
    assert np.array_equal(found.vectors[View.FUSED], found.vectors[View.IMAGE])
    assert not found.present[View.TEXT].any()


def test_several_encoders_share_one_reading(tmp_path):
    rows = [product(number) for number in range(10)]
    rows[3] |= {"image": None}
    write_catalog(tmp_path / "catalog", rows)
    catalog = CatalogConfig(uri=str(tmp_path / "catalog"), image_field="image")
    encoders = [
        load_product_encoder(save_tiny_encoder(tmp_path / f"{model}{seed}", model=model, seed=seed))
        for model, seed in (("3tmm", 0), ("clip", 1), ("bibert", 2))
    ]
    views = [(View.FUSED, View.TEXT), (View.IMAGE,), (View.TEXT,)]
    told: list[int] = []
    spool = str(tmp_path / "spool")
    with ImagePool(ImageFetcher(FetchConfig()), encoders[0].preprocessing, DecodeConfig(threads=1)) as pool:
        pairs = list(zip(encoders, views, strict=True))
        together = encode_catalog(pairs, catalog, pool, spool_uri=spool, on_progress=told.append)
        for encoder, wanted, found in zip(encoders, views, together, strict=True):
            reads_pictures = encoder.preprocessing is not None
            own_pool = pool if reads_pictures else None
            (alone,) = encode_catalog([(encoder, list(View))], catalog, own_pool, spool_uri=spool)
            assert found.product_ids == alone.product_ids
            assert tuple(found.vectors) == wanted
            for view in wanted:
                assert np.array_equal(found.vectors[view], alone.vectors[view])
                assert np.array_equal(found.present[view], alone.present[view])
    assert sum(told) == 10


def test_equal_products_are_ties_wherever_they_stand():
    """A matrix product rounds equal columns unequally, by their place in its kernels' tiles."""
    rng = np.random.default_rng(0)
    for dim in (8, 28, 384):
        kinds = rng.normal(size=(7, dim)).astype(np.float32)
        products = kinds[np.arange(1001) % 7]
        rows = search_exactly(kinds, products, np.ones(1001, bool), 5)
        for kind, found in enumerate(rows):
            best = found[0] % 7
            assert found.tolist() == [best + 7 * step for step in range(5)], (dim, kind)


def test_a_tower_that_was_run_before_is_not_run_again(tmp_path, monkeypatch, caplog):
    """Encoders of the same towers, one after the other: other fusion weights, other projections, the same vectors."""
    rows = [product(number) for number in range(6)]
    rows[1] |= {"title": None, "image": rows[0]["image"]}
    rows[4] |= {"image": BROKEN}
    write_catalog(tmp_path / "catalog", rows)
    catalog, spool = CatalogConfig(uri=str(tmp_path / "catalog"), image_field="image"), str(tmp_path / "spool")
    parts = tiny_parts("match3")
    save_encoder(parts, str(tmp_path / "one"))
    with torch.no_grad():
        parts.model.image.projection.weight.mul_(torch.linspace(0.5, 1.5, parts.model.image.dim)[:, None])
    save_encoder(parts, str(tmp_path / "two"))
    encoders = [
        load_product_encoder(EncoderConfig(uri=str(tmp_path / name), device="cpu", precision="float32"))
        for name in ("one", "two")
    ]
    decoded: list[int] = []
    original = encoder_ranking.decode_images
    counted = lambda pool, data: decoded.append(len(data)) or original(pool, data)  # noqa: E731
    monkeypatch.setattr(encoder_ranking, "decode_images", counted)
    found = {}
    with ImagePool(ImageFetcher(FetchConfig()), encoders[0].preprocessing, DecodeConfig(threads=1)) as pool:

        def encode(encoder, kept):
            return encode_catalog([(encoder, list(View))], catalog, pool, spool_uri=spool, kept=kept)[0]

        found["first"] = encode(encoders[0], KeptVectors(str(tmp_path / "kept")))
        assert sum(decoded) == 5
        decoded.clear()
        found["again"] = encode(encoders[0], KeptVectors(str(tmp_path / "kept")))
        found["second"] = encode(encoders[1], KeptVectors(str(tmp_path / "kept")))
        assert sum(decoded) == 2, "what is broken alone is tried again"
        found["alone"] = encode(encoders[1], KeptVectors(None))
        kept = sorted((tmp_path / "kept").rglob("*.npy"))
        assert [path.parent.name.split("-")[0] for path in kept] == ["image", "text"]
        kept[0].write_bytes(kept[0].read_bytes()[:-50])
        kept[1].write_bytes(kept[1].read_bytes()[:-1] + b"!")
        found["damaged"] = encode(encoders[0], KeptVectors(str(tmp_path / "kept")))
        assert caplog.text.count("is damaged, its vectors are computed again") == 2
        assert sum(map(len, map(np.load, (tmp_path / "kept").rglob("*.npy")))) == 9, "made again"
    for view in View:
        assert np.array_equal(found["first"].vectors[view], found["again"].vectors[view])
        assert np.array_equal(found["second"].vectors[view], found["alone"].vectors[view])
        assert np.array_equal(found["first"].vectors[view], found["damaged"].vectors[view])
    assert not np.allclose(found["first"].vectors[View.IMAGE], found["second"].vectors[View.IMAGE])


@pytest.mark.parametrize(("model", "fusion"), [("3tmm", None), ("clip", None), ("match4", None)])
def test_a_tower_apart_from_its_projection_gives_what_the_tower_gives(tmp_path, model, fusion):
    encoder = load_product_encoder(save_tiny_encoder(tmp_path / "encoder", model=model, fusion=fusion))
    texts = ["red dress", "small lamp", "red  dress", ""]
    kept = KeptVectors(None)
    tower = kept.tower(encoder.tower_features("text"))
    keys = tower.text_keys(texts)
    assert keys[0] == keys[2] != keys[1], "equal tokens"
    np.testing.assert_allclose(tower.run(texts).numpy(), encoder.encode_texts(texts).numpy(), atol=1e-6)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)
    tower, keys = kept.tower(encoder.tower_features("image")), [b"a" * 16, b"b" * 16, b"c" * 16]
    tower.see_pixels(dict(zip(keys, pixels, strict=True)))
    np.testing.assert_allclose(tower.take(keys).numpy(), encoder.encode_images(pixels).numpy(), atol=1e-6)
