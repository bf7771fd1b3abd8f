from __future__ import annotations

import io

import ir_measures
import numpy as np
import pytest
import torch
from PIL import Image

from encoders.encoder import ProductEncoder, QueryEncoder
from encoders.training.batches import PairDataset
from encoders.training.config import PairsConfig
from encoders.training.pairs import read_pairs
from encoders.training.validation import HeldOut, recall, validate
from tests.encoders.tiny import random_picture, tiny_parts
from tests.encoders.training.pairs_files import coloured_rows, write_pairs

CPU = torch.device("cpu")


def test_recall_equals_ir_measures():
    random = np.random.default_rng(0)
    queries, products = (torch.from_numpy(random.normal(size=(count, 8)).astype(np.float32)) for count in (40, 300))
    query_of_pair = np.r_[np.arange(40), random.integers(0, 40, 200)]  # some pairs twice
    product_of_pair = random.integers(0, 300, 240)
    found = recall(queries, products, query_of_pair, product_of_pair)
    judged = [
        ir_measures.Qrel(f"q{query}", f"p{product}", 1)
        for query, product in {*zip(query_of_pair.tolist(), product_of_pair.tolist(), strict=True)}
    ]
    scores = (queries @ products.T).numpy()
    ranking = [
        ir_measures.ScoredDoc(f"q{query}", f"p{product}", float(scores[query, product]))
        for query in range(40)
        for product in range(300)
    ]
    expected = ir_measures.calc_aggregate([ir_measures.parse_measure(f"R@{k}") for k in (1, 10, 100)], judged, ranking)
    assert found == pytest.approx({f"recall@{measure['cutoff']}": value for measure, value in expected.items()})


def test_a_query_without_a_vector_finds_nothing():
    vectors = torch.eye(3)
    readable = np.array([True, False, True])
    assert recall(vectors, vectors, np.arange(3), np.arange(3), readable=readable, at=(1,)) == {"recall@1": 2 / 3}


@pytest.mark.parametrize("model", ["bibert", "clip", "3tmm", "4tmm", "match3", "match4"])
@pytest.mark.parametrize("all_products", [False, True])
def test_it_measures_what_the_encoders_find(tmp_path, model, all_products):
    rows = coloured_rows(30)
    for number, row in enumerate(rows):
        row["title"] += f" {number}"
        row["image"]["bytes"] = noise(number)
        row["photo"] = noise(50 + number) if number % 4 or model == "match3" else None
    rows[5]["query"] = rows[2]["query"]
    data = PairsConfig(uri=write_pairs(tmp_path, rows), query_image_field=None if model == "bibert" else "photo")
    pairs, parts = read_pairs(data), tiny_parts(model)
    held = np.arange(12, 30)
    dataset = PairDataset(pairs, held, parts)
    measured = validate(parts.model, HeldOut(pairs, held, dataset, all_products=all_products), batch_size=7, device=CPU)

    products = ProductEncoder(parts, fingerprint="", device=CPU, precision="float32", batch_size=5)
    queries = QueryEncoder(parts, fingerprint="", device=CPU)
    candidates = np.arange(30) if all_products else held
    texts = [pairs.products.texts[row] for row in candidates]
    pictures = [_picture(rows[row]["image"]["bytes"]) for row in candidates]
    vectors = products.encode(texts, pictures if model != "bibert" else None)
    asked = queries.encode(
        [rows[row]["query"] for row in held] if model != "match3" else None,
        [_picture(rows[row]["photo"]) for row in held] if model != "bibert" else None,
    )
    order = candidates[np.argsort(-(asked @ vectors.T), axis=1)]
    wanted = {key: {row for row in held if pairs.query_keys[row] == key} for key in pairs.query_keys[held]}
    for k in (1, 10):
        shares = [
            len(wanted[key] & set(order[np.flatnonzero(pairs.query_keys[held] == key)[0], :k].tolist()))
            / len(wanted[key])
            for key in wanted
        ]
        assert measured[f"recall@{k}"] == pytest.approx(np.mean(shares))


def test_modes_return(tmp_path):
    pairs, parts = read_pairs(PairsConfig(uri=write_pairs(tmp_path, coloured_rows(6)))), tiny_parts("bibert")
    parts.model.train()
    parts.model.query_text.eval()
    held = HeldOut(pairs, np.arange(6), PairDataset(pairs, np.arange(6), parts), all_products=False)
    validate(parts.model, held, batch_size=4, device=CPU)
    assert parts.model.document_text.training
    assert not parts.model.query_text.training


def noise(seed):
    buffer = io.BytesIO()
    random_picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def _picture(data):
    return None if data is None else Image.open(io.BytesIO(data)).convert("RGB")
