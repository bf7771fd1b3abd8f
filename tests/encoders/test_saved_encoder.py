"""Saved encoders: what is written, read back and refused, and the fingerprint that names one."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import fsspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from encoders import EncoderConfig, check_encoder, load_product_encoder, load_query_encoder, save_query_encoder
from encoders.errors import CheckpointError, EncoderConfigError
from encoders.saved_encoder import read_saved, resolve_device, save_encoder
from tests.encoders.tiny import random_picture, save_tiny_encoder, tiny_parts

MODELS = [
    ("bibert", None),
    ("clip", None),
    ("3tmm", None),
    ("4tmm", "concat"),
    ("4tmm", "alpha"),
    ("4tmm", "mlp"),
    ("match3", None),
    ("match4", None),
    ("match4", "mlp"),
]
TEXTS = ["red dress", "small lamp with cotton", "mug"]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("model", "fusion"), MODELS)
def test_save_and_load_are_inverse(tmp_path, model, fusion):
    config = save_tiny_encoder(tmp_path / "one", model=model, fusion=fusion)
    parts = read_saved(tmp_path / "one").load()
    save_encoder(parts, str(tmp_path / "two"))
    assert files(tmp_path / "one") == files(tmp_path / "two")
    description, encoder = check_encoder(config), load_product_encoder(config)
    for name in (
        "model",
        "dim",
        "fingerprint",
        "uses_text",
        "uses_images",
        "text_is_fallback",
        "preprocessing",
        "max_tokens",
    ):
        assert getattr(description, name) == getattr(encoder, name), name
    assert len(encoder.fingerprint) == 16


@pytest.mark.parametrize(("model", "fusion"), MODELS)
def test_query_side_alone_gives_the_same_vectors(tmp_path, model, fusion):
    config = save_tiny_encoder(tmp_path / "whole", model=model, fusion=fusion)
    save_query_encoder(config, str(tmp_path / "query"))
    whole, query = load_query_encoder(str(tmp_path / "whole")), load_query_encoder(str(tmp_path / "query"))
    assert query.fingerprint == whole.fingerprint == load_product_encoder(config).fingerprint
    if query.accepts_text:
        assert np.array_equal(whole.encode(TEXTS), query.encode(TEXTS))
    if query.accepts_images:
        texts, pictures = TEXTS, [random_picture(1), None, random_picture(2)]
        if not query.accepts_text:
            texts, pictures = [None, None], [random_picture(1), random_picture(2)]
        assert np.array_equal(whole.encode(texts, pictures), query.encode(texts, pictures))


def test_query_side_is_the_same_bytes_on_every_call(tmp_path):
    config = save_tiny_encoder(tmp_path / "whole", model="4tmm", fusion="mlp")
    save_query_encoder(config, str(tmp_path / "first"))
    save_query_encoder(config, str(tmp_path / "second"))
    save_query_encoder(config, str(tmp_path / "first"))
    assert files(tmp_path / "first") == files(tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second", "whole"], "no temporary folder stays"


def test_query_side_holds_no_weights_of_the_product_side_alone(tmp_path):
    config = save_tiny_encoder(tmp_path / "whole", model="bibert")
    save_query_encoder(config, str(tmp_path / "query"))
    names = load_file(tmp_path / "query" / "weights.safetensors")
    assert names
    assert all(name.startswith("query_text.") for name in names)
    with pytest.raises(CheckpointError, match="query side only"):
        load_product_encoder(EncoderConfig(uri=str(tmp_path / "query")))


def test_shared_weights_are_saved_once(tmp_path):
    save_tiny_encoder(tmp_path, model="bibert")
    own = [name for name in load_file(tmp_path / "weights.safetensors") if name.startswith("query_text.")]
    assert own
    assert all("LayerNorm" in name or "projection" in name for name in own)


def test_half_precision_products_are_searched_by_a_float32_query_side(tmp_path):
    save_tiny_encoder(tmp_path / "whole", model="3tmm")
    half = EncoderConfig(uri=str(tmp_path / "whole"), precision="bfloat16", device="cpu")
    save_query_encoder(half, str(tmp_path / "query"))
    query, product = load_query_encoder(str(tmp_path / "query")), load_product_encoder(half)
    assert query.fingerprint == product.fingerprint != load_query_encoder(str(tmp_path / "whole")).fingerprint
    assert np.array_equal(query.encode(TEXTS), load_query_encoder(str(tmp_path / "whole")).encode(TEXTS))
    exact = load_product_encoder(EncoderConfig(uri=str(tmp_path / "whole"), device="cpu")).encode(TEXTS)
    assert (np.einsum("bd,bd->b", product.encode(TEXTS), exact) > 0.99).all()


def test_image_weight_of_the_job_travels_with_the_query_side(tmp_path):
    save_tiny_encoder(tmp_path / "whole", model="3tmm")
    config = EncoderConfig(uri=str(tmp_path / "whole"), image_weight=0.25)
    save_query_encoder(config, str(tmp_path / "query"))
    query = load_query_encoder(str(tmp_path / "query"))
    assert query.image_weight == 0.25
    assert query.fingerprint == load_query_encoder(str(tmp_path / "whole")).fingerprint, (
        "no product's vector depends on it"
    )


def test_remote_encoder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = save_tiny_encoder(tmp_path / "local", model="3tmm")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "local"), "/encoders/tiny", recursive=True)
    try:
        remote = EncoderConfig(uri="memory://encoders/tiny", device="cpu", batch_size=4)
        assert check_encoder(remote) == check_encoder(config)
        assert np.array_equal(load_product_encoder(remote).encode(TEXTS), load_product_encoder(config).encode(TEXTS))
    finally:
        memory.rm("/encoders", recursive=True)


def test_folders_that_are_no_saved_encoder(tmp_path):
    with pytest.raises(CheckpointError, match=r"no encoder\.json.*encoder\.model"):
        check_encoder(EncoderConfig(uri=str(tmp_path)))
    save_tiny_encoder(tmp_path / "e")
    values = json.loads((tmp_path / "e" / "encoder.json").read_text())
    (tmp_path / "e" / "encoder.json").write_text(json.dumps({**values, "schema_version": 2}))
    with pytest.raises(CheckpointError, match="schema_version 2"):
        check_encoder(EncoderConfig(uri=str(tmp_path / "e")))
    (tmp_path / "e" / "encoder.json").write_text(json.dumps({**values, "fusion": {"method": "sum"}}))
    with pytest.raises(CheckpointError, match=r"fusion\.method"):
        check_encoder(EncoderConfig(uri=str(tmp_path / "e")))
    del values["text_tower"]
    (tmp_path / "e" / "encoder.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="text_tower"):
        check_encoder(EncoderConfig(uri=str(tmp_path / "e")))


def test_weights_that_do_not_belong(tmp_path):
    config = save_tiny_encoder(tmp_path)
    path = tmp_path / "weights.safetensors"
    weights = load_file(path)
    save_file({name: tensor for name, tensor in weights.items() if "missing_text" not in name}, str(path))
    with pytest.raises(CheckpointError, match=r"1 are missing \(first: product_fusion.missing_text\)"):
        load_product_encoder(config)
    save_file({**weights, "product_fusion.missing_text": torch.zeros(3)}, str(path))
    with pytest.raises(CheckpointError, match=r"missing_text has shape \[3\], expected \[12\]"):
        load_product_encoder(config)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        check_encoder(config)
    path.unlink()
    with pytest.raises(CheckpointError, match="incomplete"):
        check_encoder(config)


def test_a_folder_of_other_things_is_not_replaced(tmp_path):
    (tmp_path / "holiday.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="no saved encoder"):
        save_encoder(tiny_parts("bibert"), str(tmp_path))
    assert (tmp_path / "holiday.txt").read_text() == "mine"


def test_a_failed_save_leaves_the_earlier_one(tmp_path, monkeypatch):
    save_tiny_encoder(tmp_path / "e", seed=0)
    before = files(tmp_path / "e")

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("encoders.saved_encoder.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_tiny_encoder(tmp_path / "e", seed=1)
    assert files(tmp_path / "e") == before
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_libraries_are_loaded_when_they_are_needed(tmp_path):
    """Naming an encoder needs no torch; a text tower, from its check to both sides' vectors, nothing but torch."""
    save_tiny_encoder(tmp_path / "encoder", model="bibert")
    code = (
        "import sys, encoders\n"
        "others = ('transformers', 'open_clip', 'timm', 'torchvision', 'torch._dynamo', 'scipy', 'lightning')\n"
        "loaded = lambda names: [name for name in names if name in sys.modules]\n"
        "config = encoders.EncoderConfig(uri=sys.argv[1]); encoders.image_pixels\n"
        "print(loaded(('torch', *others)))\n"
        "encoders.check_encoder(config)\n"
        "encoders.load_product_encoder(config).encode(['red mug'])\n"
        "encoders.save_query_encoder(config, sys.argv[1] + '-query')\n"
        "encoders.load_query_encoder(sys.argv[1] + '-query').encode(['red mug'])\n"
        "print(loaded(others))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "encoder")]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert done.stdout.splitlines() == ["[]", "[]"]


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(EncoderConfigError, match="cuda:99"):
        resolve_device("cuda:99")


# Of encoders whose weights a formula gives (no random generator, no floating point but exact quarters), written when
# they were first made. A change here makes every index embed its whole catalog again: it wants a reason.
GOLDEN = {
    ("bibert", None): "aebc6f35b9fe688f",
    ("clip", None): "e44eb3f92c45e4db",
    ("3tmm", None): "6bd0e9625b828cd1",
    ("4tmm", "alpha"): "2ff6d0294dec197e",
    ("match3", None): "84c86e6cc27d8cf6",
    ("match4", "mlp"): "0af72391ddc12f7c",
}


def save_formula_encoder(folder, model, fusion) -> EncoderConfig:
    parts = tiny_parts(model, fusion=fusion)
    with torch.no_grad():
        for place, (_, weight) in enumerate(sorted(parts.model.named_parameters())):
            values = (np.arange(weight.numel()) * 7 + place) % 17 - 8
            weight.copy_(torch.from_numpy(values.reshape(weight.shape) / 4))
    save_encoder(parts, str(folder))
    return EncoderConfig(uri=str(folder), device="cpu")


@pytest.mark.parametrize(("model", "fusion"), GOLDEN)
def test_golden_fingerprints(tmp_path, model, fusion):
    config = save_formula_encoder(tmp_path / "encoder", model, fusion)
    assert check_encoder(config).fingerprint == GOLDEN[model, fusion]
    save_query_encoder(config, str(tmp_path / "query"))
    assert load_query_encoder(str(tmp_path / "query"), device="cpu").fingerprint == GOLDEN[model, fusion]


def test_device_batch_size_compile_and_image_weight_do_not_move_it(tmp_path):
    config = save_formula_encoder(tmp_path, "match4", "mlp")
    same = EncoderConfig(uri=config.uri, device="cpu", batch_size=3, compile=True, image_weight=0.1)
    assert check_encoder(same).fingerprint == GOLDEN["match4", "mlp"]


def test_the_weight_of_a_products_text_moves_it(tmp_path):
    config = save_formula_encoder(tmp_path, "match3", None)
    values = json.loads((tmp_path / "encoder.json").read_text())
    values["fusion"]["product_text_weight"] = 0.5
    (tmp_path / "encoder.json").write_text(json.dumps(values))
    assert check_encoder(config).fingerprint != GOLDEN["match3", None]


def test_another_process_and_another_place_give_the_same(tmp_path):
    """A config pickles; vectors and fingerprint depend neither on the folder nor on the seed of Python's hashes."""
    first = save_formula_encoder(tmp_path / "here", "3tmm", None)
    vectors = load_product_encoder(first).encode(["red dress", "mug"])
    (tmp_path / "here").rename(tmp_path / "there")
    config = EncoderConfig(uri=str(tmp_path / "there"), device="cpu", precision="float32")
    code = (
        "import pickle, sys\nfrom encoders import load_product_encoder\n"
        "encoder = load_product_encoder(pickle.load(sys.stdin.buffer))\n"
        "sys.stdout.buffer.write(encoder.fingerprint.encode() + encoder.encode(['red dress', 'mug']).tobytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(config),
        capture_output=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    assert done.stdout[:16].decode() == GOLDEN["3tmm", None]
    assert done.stdout[16:] == vectors.tobytes()


@pytest.mark.parametrize(("model", "fusion"), [("bibert", None), ("3tmm", None), ("4tmm", "mlp"), ("match3", None)])
def test_vectors_are_cut_to_their_first_dimensions_on_both_sides(tmp_path, model, fusion):
    whole = save_tiny_encoder(tmp_path / "one", model=model, fusion=fusion)
    cut = replace(whole, dim=5)
    description = check_encoder(cut)
    assert description.dim == 5
    assert description.fingerprint != check_encoder(whole).fingerprint
    pictures = [random_picture(1), None, random_picture(2)]
    vectors = [load_product_encoder(config).encode(TEXTS, pictures) for config in (whole, cut)]
    expected = vectors[0][:, :5] / np.linalg.norm(vectors[0][:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors[1], expected, atol=1e-6)
    save_query_encoder(cut, str(tmp_path / "query"))
    queries = load_query_encoder(str(tmp_path / "query"), device="cpu")
    assert (queries.dim, queries.fingerprint) == (5, description.fingerprint)
    asked = {"images": [random_picture(3)]} if model == "match3" else {"texts": TEXTS}
    found, uncut = queries.encode(**asked), load_query_encoder(whole.uri, device="cpu").encode(**asked)
    np.testing.assert_allclose(found, uncut[:, :5] / np.linalg.norm(uncut[:, :5], axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "fusion", "dim", "words"),
    [
        ("3tmm", None, 13, "encoder.dim is 13: expected 1 to 12"),
        ("3tmm", None, 0, "encoder.dim is 0"),
        ("4tmm", "alpha", 5, "those of the text alone"),
        ("match4", "mlp", 5, "reads all dimensions"),
    ],
)
def test_dimensions_that_an_encoder_cannot_be_cut_to(tmp_path, model, fusion, dim, words):
    whole = save_tiny_encoder(tmp_path / "one", model=model, fusion=fusion)
    with pytest.raises(EncoderConfigError, match=words):
        check_encoder(replace(whole, dim=dim))
