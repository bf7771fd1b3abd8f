"""The demo encoder that comes with the package: small, loadable as a user names it, and better with both halves."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors import safe_open

from encoders import EncoderConfig, check_encoder, image_pixels, load_product_encoder, load_query_encoder
from encoders.checkpoint import local_folder
from pipelines.demo_catalog import write_demo_catalog

URI = "package://encoders/pretrained/demo"
PRODUCTS = 600


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo_catalog(str(folder), products=PRODUCTS, files=1, seed=7)
    return folder


def r_precision(query_vectors: np.ndarray, product_vectors: np.ndarray, wanted: list[set[int]]) -> float:
    """Share of the wanted products among as many of the first results; 600 products make recall at 10 too easy."""
    order = np.argsort(-(query_vectors @ product_vectors.T), axis=1).tolist()
    return float(
        np.mean([len(rows & set(found[: len(rows)])) / len(rows) for rows, found in zip(wanted, order, strict=True)])
    )


def test_it_is_small_and_says_how_it_was_made():
    folder = local_folder(URI)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 8e6
    training = json.loads((folder / "encoder.json").read_text())["training"]
    assert training["command"].startswith("python -m pipelines.train_encoder")
    assert training["pairs"] > 10_000
    description = check_encoder(EncoderConfig(uri=URI))
    assert (description.model, description.uses_text, description.uses_images) == ("3tmm", True, True)


def test_its_card_tells_of_these_weights():
    folder = local_folder(URI)
    card = (folder.parent / "README.md").read_text(encoding="utf-8")
    training = json.loads((folder / "encoder.json").read_text())["training"]
    settings = training["settings"]
    fingerprint = check_encoder(EncoderConfig(uri=URI)).fingerprint
    row = next((line for line in card.splitlines() if line.startswith(f"| `{fingerprint}` |")), None)
    assert row is not None, (
        f"encoders/pretrained/README.md has no figures of {fingerprint}: write them after a training"
    )
    told = [cell.strip() for cell in row.strip("|").split("|")][1:6]
    assert told == [
        f"{training['pairs']:,}",
        f"{training['products']:,}",
        str(settings["epochs"]),
        str(settings["seed"]),
        f"{training['validation_loss']:.4f}",
    ]
    with safe_open(str(folder / "weights.safetensors"), framework="numpy") as weights:
        parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.offset_keys())
    assert f"{parameters:,}" in card


def test_text_and_picture_together_find_more_than_either(drawn):
    table = pq.read_table(drawn / "catalog")
    ids = {product_id: row for row, product_id in enumerate(table["product_id"].to_pylist())}
    columns = zip(table["title"].to_pylist(), table["description"].to_pylist(), strict=True)
    texts = [f"{title} {description}" for title, description in columns]
    pictures = [Image.open(io.BytesIO(data)) for data in table["image"].combine_chunks().field("bytes").to_pylist()]
    queries = pq.read_table(drawn / "queries.parquet").to_pydict()
    judged = pq.read_table(drawn / "judgments.parquet")
    wanted = [
        {ids[name] for name in judged.filter(pa.compute.field("query_id") == query)["product_id"].to_pylist()}
        for query in queries["query_id"]
    ]
    products, search = load_product_encoder(EncoderConfig(uri=URI, device="cpu")), load_query_encoder(URI, device="cpu")
    query_vectors = search.encode(queries["query"])
    text = products.encode_texts(texts)
    image = products.encode_images(np.stack([image_pixels(image, products.preprocessing) for image in pictures]))
    rows, none = np.arange(len(texts)), np.full(len(texts), -1)
    both = products.fuse(text, rows, image, rows)
    shares = {
        "both": r_precision(query_vectors, both, wanted),
        "text": r_precision(query_vectors, products.fuse(text, rows, None, none), wanted),
        "picture": r_precision(query_vectors, products.fuse(None, none, image, rows), wanted),
    }
    assert shares["both"] > 0.7, shares
    assert shares["both"] > shares["text"] + 0.1, shares
    assert shares["both"] > shares["picture"] + 0.1, shares

    kinds = np.array(table["kind"].to_pylist())
    for file, kind in (("striped_red_mug.png", "mug"), ("floral_purple_dress.png", "dress")):
        found = search.encode(images=[Image.open(drawn / "query_pictures" / file)]) @ both.T
        assert kinds[np.argmax(found)] == kind, f"a picture alone finds its kind: {file}"
