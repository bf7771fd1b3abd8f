"""Training, then evaluation with the same `work.uri`: what a frozen tower has seen once it is not shown again."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoders.running import ImageRunner, TextRunner
from pipelines import evaluate, train_encoder
from pipelines.config.command_line import run_command
from tests.encoders.test_image_backbones import save_timm
from tests.encoders.tiny import save_tiny_bert
from tests.encoders.training.pairs_files import coloured_rows
from tests.pipelines.indexing.job import product


@pytest.fixture
def seen(monkeypatch) -> Counter:
    """How often the towers were shown each image, by its pixels, and each text, by its tokens."""
    counted: Counter = Counter()
    of_images, of_texts = ImageRunner.run, TextRunner.run

    def run_images(self, pixels):
        counted.update(image.tobytes() for image in pixels)
        return of_images(self, pixels)

    def run_texts(self, texts):
        counted.update(self.tokenize(texts).keys())
        return of_texts(self, texts)

    monkeypatch.setattr(ImageRunner, "run", run_images)
    monkeypatch.setattr(TextRunner, "run", run_texts)
    return counted


def test_training_and_evaluations_show_a_tower_each_picture_and_each_text_once(tmp_path, seen, capsys):
    rows = coloured_rows(20)
    catalog, photos = [], []
    for number, row in enumerate(rows):
        for name in (f"{number}", f"photo-{number}"):
            (tmp_path / f"{name}.png").write_bytes(product(number + 100 * name.startswith("photo"))["image"]["bytes"])
        catalog.append({"id": f"p{number}", "name": f"{row['title']} {number}", "picture": f"{number}.png"})
        photos.append({"query_id": number, "query": row["query"], "photo": f"photo-{number}.png"})
    (tmp_path / "products.jsonl").write_text("".join(json.dumps(line) + "\n" for line in catalog))
    asked = {name: [photo[name] for photo in photos] for name in photos[0]}
    pq.write_table(pa.table(asked | {"product_id": [f"p{number}" for number in range(20)]}), tmp_path / "pairs.parquet")
    of_catalog = [
        "--catalog.uri", f"{tmp_path}/products.jsonl", "--catalog.id_field", "id", "--catalog.text_fields", "[name]",
        "--catalog.image_field", "picture", "--catalog.image_root", str(tmp_path), "--catalog.display_fields", "[]",
        "--catalog.filter_fields", "[]", "--work.uri", f"{tmp_path}/work",
    ]  # fmt: skip
    bert, network = save_tiny_bert(tmp_path / "bert"), save_timm(tmp_path / "network")
    training = [
        *of_catalog, "--config", "starter", "--data.uri", f"{tmp_path}/pairs.parquet", "--data.queries", "pairs",
        "--data.query_image_field", "photo", "--data.image_root", str(tmp_path), "--data.validation_share", "0.2",
        "--encoder.text_tower.checkpoint", str(bert), "--encoder.text_tower.max_tokens", "12",
        "--encoder.clip_tower.checkpoint", str(network), "--encoder.clip_tower.image_size", "32",
        "--encoder.fusion.dim", "16", "--training.losses.photo_picture", "1.0",
        "--training.epochs", "2", "--training.batch_size", "8", "--training.progress", "false",
        "--training.precision", "float32", "--training.device", "cpu",
    ]  # fmt: skip
    for name, rate in (("one", "1.0e-3"), ("two", "1.0e-2"), ("three", "2.0e-2")):
        own = ["--training.learning_rate", rate, "--out", f"{tmp_path}/{name}"]
        assert run_command(train_encoder.main, [*training, *own]) == 0
    trained = dict(seen)
    assert sum(len(key) > 16 for key in trained) == 40, "pictures of products, and photos"
    systems = [
        {"name": name, "encoder": {"uri": f"{tmp_path}/{name}", "device": "cpu", "precision": "float32"}}
        for name in ("one", "two", "three")
    ]
    measured = [
        *of_catalog, "--queries", f"{tmp_path}/pairs.parquet", "--purchases", f"{tmp_path}/pairs.parquet",
        "--evaluation.query_image_field", "photo", "--evaluation.query_image_root", str(tmp_path),
        "--evaluation.resamples", "20", "--systems", json.dumps(systems),
    ]  # fmt: skip
    assert run_command(evaluate.main, measured) == 0, capsys.readouterr().err
    assert set(seen.values()) == {1}
    assert dict(seen) == trained, "the training has shown all there is"
    files = sorted((tmp_path / "work" / "vectors").rglob("*.npy"))
    assert sorted(path.parent.name.split("-")[0] for path in files) == ["image", "image", "text", "text"]
    assert sum(map(len, map(np.load, files))) == len(seen)
