"""The terms of match3 and match4, against NumPy in float64 over the towers' vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from encoders.training.batches import PairDataset
from encoders.training.config import LossWeights, PairsConfig, TrainingConfig
from encoders.training.module import EncoderTraining
from encoders.training.pairs import read_pairs
from tests.encoders.test_losses import reference
from tests.encoders.tiny import tiny_parts
from tests.encoders.training.pairs_files import photographed_rows, write_pairs

TEMPERATURE = 0.2
WEIGHTS = LossWeights(
    photo_picture=1.0, picture_text=0.7, photo_text=0.3, query_text_picture=0.2, query_text_text=0.1, query_product=0.4
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Twelve products of eight texts; product 2 lacks its picture, pair 3 its photo, pair 4 its text."""
    folder = tmp_path_factory.mktemp("pairs")
    data = PairsConfig(uri=write_pairs(folder, photographed_rows()), query_image_field="photo")
    return read_pairs(data)


def terms_of(pairs, model, **options):
    parts = tiny_parts(model)
    module = EncoderTraining(parts.model, TrainingConfig(temperature=TEMPERATURE, losses=WEIGHTS, **options), steps=1)
    module.eval()
    batch = PairDataset(pairs, np.arange(12), parts)[list(range(12))]
    with torch.no_grad():
        return module, batch, {name: float(term) for name, term in module.terms(batch, drop=None).items()}


def term(rows, columns, positives, has_row, has_column, not_negative) -> float:
    kept = has_row & has_column[positives]
    place = np.cumsum(has_column) - 1
    return reference(
        rows[kept], columns[has_column], place[positives[kept]], TEMPERATURE, not_negative[kept][:, has_column], True
    )


@pytest.mark.parametrize("model", ["match3", "match4"])
def test_every_term_equals_its_formula(pairs, model):
    module, batch, found = terms_of(pairs, model)
    encoder = module.model
    with torch.no_grad():
        photo = encoder.encode_query_image(batch.queries.pixels).numpy()
        picture = encoder.encode_product_image(batch.products.pixels).numpy()
        text = encoder.encode_product_text(*batch.products.tokens).numpy()
    own = batch.positives.numpy()
    has_photo, has_words = batch.queries.has_image.numpy(), batch.queries.has_text.numpy()
    has_picture, has_text = batch.products.has_image.numpy(), batch.products.has_text.numpy()
    products = batch.product_keys.numpy()
    assert (len(own), has_photo.sum(), has_picture.sum()) == ((11, 11, 10) if model == "match3" else (12, 11, 11))

    def equal(keys):
        return keys[:, None] == keys[None, :]

    same_text = equal(np.array([pairs.products.texts[row] for row in products]))
    nothing = np.eye(len(products), dtype=bool)[own]
    expected = {
        "photo_picture": term(photo, picture, own, has_photo, has_picture, nothing),
        "picture_text": term(picture, text, np.arange(len(products)), has_picture, has_text, same_text),
        "photo_text": term(photo, text, own, has_photo, has_text, same_text[own]),
    }
    if model == "match4":
        with torch.no_grad():
            words = encoder.encode_query_text(*batch.queries.tokens).numpy()
        same_words = equal(np.array([query or "" for query in pairs.queries]))
        expected |= {
            "query_text_picture": term(words, picture, own, has_words, has_picture, same_words),
            "query_text_text": term(words, text, own, has_words, has_text, same_words | same_text[own]),
        }
    assert found.keys() == expected.keys() | {"query_product"}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("model", ["match3", "match4"])
def test_the_served_query_is_compared_with_the_indexed_product(pairs, model):
    module, batch, found = terms_of(pairs, model)
    encoder = module.model
    keep = np.arange(12) if model == "match4" else np.delete(np.arange(12), 3)  # match3 reads no text
    with torch.no_grad():
        photo = encoder.encode_query_image(batch.queries.pixels).double().numpy()
        picture = encoder.encode_product_image(batch.products.pixels).double().numpy()
        text = encoder.encode_product_text(*batch.products.tokens).double().numpy()
        words = photo
        if model == "match4":
            words = encoder.encode_query_text(*batch.queries.tokens).double().numpy()
    has_photo, has_words = batch.queries.has_image.numpy(), batch.queries.has_text.numpy()
    both = (has_photo & has_words)[:, None]
    queries = np.where(both, 0.5 * photo + 0.5 * words, np.where(has_words[:, None], words, photo))
    has_picture = batch.products.has_image.numpy()[:, None]
    products = np.where(has_picture, 0.3 * text + 0.7 * picture, text)
    queries, products = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (queries, products))
    assert len(queries) == len(keep)
    keys = pairs.query_keys[keep]
    expected = reference(
        queries, products, batch.positives.numpy(), TEMPERATURE, _chosen(keys, batch.positives.numpy()), False
    )
    assert found["query_product"] == pytest.approx(expected, rel=1e-4)


def _chosen(keys, own):
    mask = np.zeros((len(own), own.max() + 1), bool)
    for row, key in enumerate(keys):
        mask[row, own[keys == key]] = True
    return mask


def test_the_loss_is_the_weighted_sum(pairs):
    module, batch, found = terms_of(pairs, "match4")
    weights = {name: getattr(WEIGHTS, name) for name in found}
    assert module.losses(batch, drop=None).item() == pytest.approx(
        sum(weights[name] * value for name, value in found.items()), rel=1e-5
    )


def test_terms_of_weight_zero_are_not_computed(pairs):
    parts = tiny_parts("match4")
    module = EncoderTraining(parts.model, TrainingConfig(losses=LossWeights(photo_text=0, picture_text=0)), steps=1)
    batch = PairDataset(pairs, np.arange(12), parts)[list(range(12))]
    assert module.terms(batch, drop=None).keys() == {"photo_picture", "query_text_picture", "query_text_text"}
