from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders import kept_vectors
from encoders.encoder import QueryEncoder, move_towers
from encoders.errors import CheckpointError
from encoders.kept_vectors import KeptVectors
from encoders.running import Placement
from encoders.tower_features import TowerFeatures
from tests.encoders.tiny import tiny_parts

CPU = Placement(torch.device("cpu"), 8)
TEXTS = ["red dress", "small lamp", "red dress", "wooden chair for a lamp"]


def features(part: str, *, precision: str = "float32", **changes: object) -> TowerFeatures:
    """Of a tiny match4, after changes of `ARCHITECTURE.FIELD`."""
    parts = tiny_parts("match4")
    architecture = parts.model.architecture
    for key, value in changes.items():
        where, field = key.split("__")
        if where == "preprocessing":
            value, where, field = replace(architecture.clip.preprocessing, **{field: value}), "clip", "preprocessing"
        if where == "tokenizer":
            setattr(parts.tokenizer, field, value)
        else:
            architecture = replace(architecture, **{where: replace(getattr(architecture, where), **{field: value})})
    parts.model.architecture = architecture
    move_towers(parts.model, torch.device("cpu"), precision)
    return TowerFeatures(parts, part, precision=precision, placement=CPU)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("image", {"precision": "bfloat16"}),
        ("image", {"preprocessing__size": 32}),
        ("image", {"preprocessing__resize_mode": "longest"}),
        ("image", {"preprocessing__fill_color": 255}),
        ("image", {"clip__model_config": {"stages": True}}),
        ("image", {"clip__library": "timm"}),
        ("document_text", {"precision": "bfloat16"}),
        ("document_text", {"text__pooling": "cls"}),
        ("document_text", {"tokenizer__max_tokens": 600}),
    ],
)
def test_what_gives_other_vectors_has_another_fingerprint(part, change):
    assert features(part).fingerprint == features(part).fingerprint
    assert features(part, **change).fingerprint != features(part).fingerprint


def test_both_sides_of_one_tower_and_a_projection_of_any_weights_share_what_is_kept():
    assert features("document_text").fingerprint == features("query_text").fingerprint
    parts = tiny_parts("match4")
    with torch.no_grad():
        parts.model.image.projection.weight.add_(1.0)
    changed = TowerFeatures(parts, "image", precision="float32", placement=CPU)
    assert changed.fingerprint == features("image").fingerprint
    with torch.no_grad():
        next(iter(parts.model.image.visual.parameters())).add_(1.0)
    changed = TowerFeatures(parts, "image", precision="float32", placement=CPU)
    assert changed.fingerprint != features("image").fingerprint


def test_other_rules_of_decoding_give_other_images(tmp_path):
    pixels = {b"a" * 16: np.zeros((3, 16, 16), np.uint8)}
    one, other = (KeptVectors(tmp_path, decoding=rules).tower(features("image")) for rules in ("1", "2"))
    one.see_pixels(pixels)
    assert b"a" * 16 in one and b"a" * 16 not in other


def test_files_are_written_as_they_fill_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_vectors, "FILE_BYTES", 150)  # two records of 16 floats
    kept, tower = KeptVectors(tmp_path), None
    tower = kept.tower(features("document_text"))
    alone = [tower.run([text]).numpy() for text in TEXTS]
    assert [len(np.load(path)) for path in tower.paths] == [2], "the last text waits"
    kept.save()
    assert [len(np.load(path)) for path in tower.paths] == [2, 1]
    (tower.paths[0].parent / "half.part").write_bytes(b"half-written")
    again = KeptVectors(tmp_path).tower(features("document_text"))
    assert len(again) == 3 and again.rows([b"x" * 16]).tolist() == [-1]
    monkeypatch.setattr(again._features, "run", None)  # nothing is computed
    assert np.array_equal(again.run(TEXTS).numpy(), np.concatenate(alone))
    assert not KeptVectors(tmp_path)._stores, "a folder is read when a tower is asked for"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    kept = KeptVectors(tmp_path / "file")
    kept.tower(features("document_text")).run(TEXTS)
    with pytest.raises(CheckpointError, match=r"file/text-.* expected a folder in which vectors .* can be kept"):
        kept.save()


@pytest.mark.parametrize("model", ["3tmm", "4tmm", "clip", "match3", "match4"])
def test_a_query_encoder_gives_the_same_vectors_from_kept_towers(tmp_path, model):
    parts = tiny_parts(model)
    options = {"fingerprint": "", "device": torch.device("cpu")}
    photos = [np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8) for seed in range(3)]
    texts = [None, "red dress", "small lamp"] if model != "match3" else None
    expected = QueryEncoder(parts, **options).encode(texts, [photos[0], photos[1], None] if texts else photos)
    for kept in (KeptVectors(tmp_path), KeptVectors(tmp_path)):
        encoder = QueryEncoder(parts, **options, kept=kept)
        found = encoder.encode(texts, [photos[0], photos[1], None] if texts else photos)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        kept.save()
