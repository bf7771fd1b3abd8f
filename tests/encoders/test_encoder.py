from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders import load_product_encoder, load_query_encoder
from encoders.image_decoding import image_pixels
from tests.encoders.tiny import MODELS, random_picture, save_tiny_encoder

TEXT_QUERY_MODELS = [pair for pair in MODELS if pair[0] != "match3"]
TEXTS = ["red dress", "small wooden lamp with cotton for large shoe", "mug", "green chair", "x"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {pair: save_tiny_encoder(root / f"{pair[0]}-{pair[1]}", model=pair[0], fusion=pair[1]) for pair in MODELS}


@pytest.fixture(scope="module")
def three(saved):
    return load_product_encoder(saved["3tmm", None])


def unit(vectors: np.ndarray) -> bool:
    return bool(np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5))


@pytest.mark.parametrize("pair", MODELS)
def test_products_of_every_kind(saved, pair):
    encoder = load_product_encoder(saved[pair])
    pictures = [random_picture(seed) for seed in range(5)]
    vectors = encoder.encode(TEXTS, pictures)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, encoder.dim)
    assert unit(vectors)
    assert np.array_equal(encoder.encode(TEXTS, pictures), vectors), "equal inputs, equal bytes"
    without = encoder.encode(TEXTS, [None, *pictures[1:]])
    assert (without[0] != vectors[0]).any() == encoder.uses_images
    assert np.allclose(without[1:], vectors[1:], atol=1e-6)


@pytest.mark.parametrize("pair", [pair for pair in MODELS if pair[0] != "match3"])
def test_a_concatenation_keeps_text_and_image_apart(saved, pair):
    products, queries = load_product_encoder(saved[pair]), load_query_encoder(saved[pair].uri)
    if pair[1] not in ("concat", "alpha"):
        assert not queries.parts
        return
    texts = products.encode(TEXTS, [None] * 5)
    both = products.encode(TEXTS, [random_picture(seed) for seed in range(5)])
    assert list(queries.parts) == ["text", "image"]
    text, image = queries.parts.values()
    assert not texts[:, image].any()
    assert texts[:, text].any()
    assert both[:, image].any()
    assert text.stop == image.start
    assert image.stop == queries.dim


@pytest.mark.parametrize("pair", MODELS)
def test_order_and_company_do_not_matter(saved, pair):
    """Texts are sorted by length inside; every row must come back to its place."""
    encoder = load_product_encoder(saved[pair])
    pictures = [random_picture(seed) for seed in range(5)]
    together = encoder.encode(TEXTS, pictures)
    alone = np.concatenate([encoder.encode([text], [picture]) for text, picture in zip(TEXTS, pictures, strict=True)])
    assert np.allclose(together, alone, atol=1e-5)
    assert np.allclose(encoder.encode(TEXTS[::-1], pictures[::-1]), together[::-1], atol=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("pair", MODELS)
def test_half_precision_gives_float32_vectors_that_are_close(saved, pair, precision):
    pictures = [random_picture(seed) for seed in range(5)]
    exact, half = (load_product_encoder(replace(saved[pair], precision=name)) for name in ("float32", precision))
    found = half.encode(TEXTS, [None, *pictures[1:]]) if half.uses_images else half.encode(TEXTS)
    assert found.dtype == np.float32
    assert unit(found)
    expected = exact.encode(TEXTS, [None, *pictures[1:]])
    assert (np.einsum("bd,bd->b", found, expected) > 0.998).all()
    assert half.fingerprint != exact.fingerprint


def test_fuse_takes_rows_of_shared_texts_and_pictures(three):
    text = three.encode_texts(TEXTS[:2])
    image = three.encode_images(np.stack([image_pixels(random_picture(seed), three.preprocessing) for seed in (1, 2)]))
    found = three.fuse(text, np.array([0, 1, 0, -1]), image, np.array([[1], [0], [-1], [1]]))
    expected = three.encode(
        [TEXTS[0], TEXTS[1], TEXTS[0], None], [random_picture(2), random_picture(1), None, random_picture(2)]
    )
    assert np.allclose(found, expected, atol=1e-6)


def test_several_pictures_count_by_the_mean_of_those_that_are_there(three):
    pixels = np.stack([image_pixels(random_picture(seed), three.preprocessing) for seed in (1, 2)])
    text, image = three.encode_texts(["mug"]), three.encode_images(pixels)
    mean = torch.nn.functional.normalize(image, dim=-1).mean(0, keepdim=True)
    rows = np.array([0])
    both = three.fuse(text, rows, image, np.array([[0, 1]]))
    assert np.allclose(both, three.fuse(text, rows, mean, np.array([[0]])), atol=1e-6)
    one = three.fuse(text, rows, image, np.array([[-1, 1]]))
    assert np.array_equal(one, three.fuse(text, rows, image, np.array([[1]])))
    assert not np.allclose(one, both, atol=1e-4)


def test_products_with_nothing_to_encode(three, saved):
    with pytest.raises(ValueError, match=r"1 of 2 products have nothing to encode.*row 1"):
        three.encode(["mug", None], [random_picture(1), None])
    bibert = load_product_encoder(saved["bibert", None])
    with pytest.raises(ValueError, match="needs a text of each"):
        bibert.encode([None], [random_picture(1)])
    with pytest.raises(ValueError, match="reads no pictures"):
        bibert.encode_images(np.zeros((1, 3, 16, 16), np.uint8))


def test_rows_out_of_range(three):
    text = three.encode_texts(["mug"])
    with pytest.raises(ValueError, match="text_rows"):
        three.fuse(text, np.array([1]), None, np.array([[-1]]))
    with pytest.raises(ValueError, match="image_rows"):
        three.fuse(text, np.array([0]), None, np.array([[0]]))
    with pytest.raises(ValueError, match="text_rows"):
        three.fuse(text, np.array([-2]), None, np.array([[-1]]))


def test_pixels_of_another_shape(three):
    for pixels in (np.zeros((1, 3, 8, 8), np.uint8), np.zeros((1, 3, 16, 16), np.float32)):
        with pytest.raises(ValueError, match="expected uint8"):
            three.encode_images(pixels)


def test_empty_batches(three):
    assert three.encode_texts([]).shape == (0, 12)
    assert three.encode_images(np.zeros((0, 3, 16, 16), np.uint8)).shape == (0, 8)
    assert three.encode([], []).shape == (0, 12)


def test_truncated_texts_are_counted_and_their_end_is_not_read(three):
    long = "red " * 40
    assert three.tokenize([long, "mug"]).truncated == 1
    assert np.array_equal(three.encode([long]), three.encode([long + "green"]))


@pytest.mark.parametrize("pair", TEXT_QUERY_MODELS)
def test_queries_of_every_kind(saved, pair):
    query = load_query_encoder(saved[pair].uri, device="cpu")
    vectors = query.encode(TEXTS)
    assert vectors.shape == (5, query.dim)
    assert vectors.dtype == np.float32
    assert unit(vectors)
    assert query.accepts_images == (pair[0] != "bibert")
    if query.accepts_images:
        mixed = query.encode(["mug", None, "red dress"], [None, random_picture(1), random_picture(2)])
        assert unit(mixed)
        assert np.allclose(mixed[0], query.encode(["mug"])[0], atol=1e-6)
        assert np.allclose(mixed[1], query.encode(images=[random_picture(1)])[0], atol=1e-6)
        both = query.encode(["red dress"])[0] + query.encode(images=[random_picture(2)])[0]
        is_sum = np.allclose(mixed[2], both / np.linalg.norm(both), atol=1e-6)
        assert is_sum == (pair != ("match4", "mlp"))
    else:
        with pytest.raises(ValueError, match="takes no pictures"):
            query.encode(["mug"], [random_picture(1)])


def test_a_picture_query_of_3tmm_is_a_product_without_text(saved, three):
    query = load_query_encoder(saved["3tmm", None].uri, device="cpu")
    assert np.allclose(query.encode(images=[random_picture(1)]), three.encode([None], [random_picture(1)]), atol=1e-6)


def test_weight_of_the_picture(saved):
    query = load_query_encoder(saved["3tmm", None].uri, device="cpu")
    text, image = query.encode(["mug"])[0], query.encode(images=[random_picture(1)])[0]
    query.image_weight = 0.2
    expected = 0.8 * text + 0.2 * image
    found = query.encode(["mug"], [random_picture(1)])[0]
    assert np.allclose(found, expected / np.linalg.norm(expected), atol=1e-6)


def test_bibert_sides_differ_by_their_layer_norms(saved):
    product, query = load_product_encoder(saved["bibert", None]), load_query_encoder(saved["bibert", None].uri)
    assert not np.allclose(product.encode(["mug"]), query.encode(["mug"]), atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"texts": ["a", None]}, "query 1 has neither"),
        ({"texts": ["a"], "images": [None, None]}, "1 texts and 2 images"),
    ],
)
def test_queries_that_are_none(saved, arguments, words):
    query = load_query_encoder(saved["3tmm", None].uri, device="cpu")
    with pytest.raises(ValueError, match=words):
        query.encode(**arguments)


def test_no_queries(saved):
    query = load_query_encoder(saved["3tmm", None].uri, device="cpu")
    assert query.encode([]).shape == query.encode().shape == (0, 12)


def test_threads_do_not_change_the_bytes(three):
    texts, pictures = TEXTS * 20, [random_picture(seed) for seed in range(5)] * 20
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(three.encode(texts, pictures))
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(*found)
