"""The exported query encoder gives the vectors of the one on torch."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import open_clip
import pytest
import torch
from google.protobuf import text_format
from torch.onnx._internal.exporter._registration import ONNXRegistry

from encoders import (
    CheckpointError,
    EncoderConfig,
    export_onnx,
    load_onnx_query_encoder,
    load_query_encoder,
    onnx_export,
    save_query_encoder,
)
from encoders.model import EncoderModel, EncoderParts
from encoders.onnx_export import _compare
from encoders.saved_encoder import load_query_parts, save_encoder
from encoders.tokenizers import clip_tokenizer
from tests.encoders.tiny import MODELS, random_picture, save_tiny_siglip_tokenizer, tiny_parts

TEXTS = ["red dress", None, "a small wooden lamp with cotton, for a large chair & more: Ü", "mug", "", "x " * 60, None]
PICTURES = [None, random_picture(1), random_picture(2, (40, 11)), None, None, None, random_picture(3)]


def dim_of(module: torch.nn.Module) -> int | None:
    """Of the vectors that a fusion makes, which may be cut."""
    model = getattr(module, "model", None)
    return None if model is None else model.architecture.dim


@pytest.fixture(scope="module", autouse=True)
def _each_graph_is_exported_once(tmp_path_factory):
    """An export takes a second or two a graph, whatever its size, and the encoders here have towers in common.

    What was exported and compared with its tower once is copied when the same tower is exported under the same name.
    The exporter's table of operators, a third of a second each time, is read once.
    """
    kept, export = tmp_path_factory.mktemp("graphs"), onnx_export._export

    def export_once(module, inputs, shapes, to):
        weights = hashlib.sha256(b"".join(weight.numpy().tobytes() for weight in module.state_dict().values()))
        of_module = f"{module!r} {getattr(module, 'pooling', None)} {dim_of(module)}"
        made_of = f"{to.name} {of_module} {shapes} {weights.hexdigest()}"
        graph = kept / hashlib.sha256(made_of.encode()).hexdigest()
        if not graph.exists():
            export(module, inputs, shapes, to)
            shutil.copyfile(to, graph)
        shutil.copyfile(graph, to)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "_export", export_once)
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


def tiny_parts_of_like_towers(model: str, *, fusion: str | None = None) -> EncoderParts:
    """A tiny encoder whose weights depend on their names alone: towers of the same kind are equal in all models."""
    parts = tiny_parts(model, fusion=fusion)
    weights_by_name(parts.model)
    return parts


def weights_by_name(model: EncoderModel) -> EncoderModel:
    with torch.no_grad():
        for name, weight in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


def save_tiny_encoder(folder: Path, *, model: str, fusion: str | None = None) -> EncoderConfig:
    save_encoder(tiny_parts_of_like_towers(model, fusion=fusion), str(folder))
    return EncoderConfig(uri=str(folder), batch_size=4, device="cpu")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Each model's encoder and its export, made when first asked for."""
    root, made = tmp_path_factory.mktemp("onnx"), {}

    def get(model, fusion):
        folder = root / f"{model}-{fusion}"
        if (model, fusion) not in made:
            save_tiny_encoder(folder, model=model, fusion=fusion)
            export_onnx(str(folder), f"{folder}-onnx")
            made[model, fusion] = (
                load_query_encoder(str(folder), device="cpu"),
                load_onnx_query_encoder(f"{folder}-onnx", threads=1),
            )
        return made[model, fusion]

    return get


@pytest.mark.parametrize(("model", "fusion"), MODELS)
def test_parity(exported, model, fusion):
    ours, graphs = exported(model, fusion)
    for name in ("model", "dim", "fingerprint", "accepts_text", "accepts_images", "image_weight"):
        assert getattr(graphs, name) == getattr(ours, name), name
    kinds = []
    if ours.accepts_text:
        kinds.append(([text for text in TEXTS if text is not None], None))
    if ours.accepts_images:
        kinds.append((None, [picture for picture in PICTURES if picture is not None]))
    if ours.accepts_text and ours.accepts_images:
        kinds.append((TEXTS, PICTURES))
    for texts, pictures in kinds:
        found, expected = graphs.encode(texts, pictures), ours.encode(texts, pictures)
        assert found.dtype == np.float32
        assert found.shape == expected.shape
        assert np.einsum("bd,bd->b", found, expected).min() > 0.9999
        assert np.allclose(found, expected, atol=1e-5)
        first = graphs.encode(texts and texts[:1], pictures and pictures[:1])
        assert np.allclose(first, expected[:1], atol=1e-5), "a batch of one"


def test_an_encoder_saved_for_a_server_is_exported_too(tmp_path):
    config = save_tiny_encoder(tmp_path / "whole", model="match4", fusion="mlp")
    save_query_encoder(config, str(tmp_path / "query_encoder"))
    export_onnx(str(tmp_path / "query_encoder"), str(tmp_path / "onnx"), image_weight=0.9)
    graphs, ours = load_onnx_query_encoder(str(tmp_path / "onnx")), load_query_encoder(config.uri, device="cpu")
    assert (graphs.fingerprint, graphs.image_weight) == (ours.fingerprint, 0.9)
    ours.image_weight = 0.9
    found, expected = (side.encode(["mug"], [random_picture(1)]) for side in (graphs, ours))
    assert np.allclose(found, expected, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["onnx", "query_encoder", "whole"]


def test_a_model_repository_of_triton_answers_as_it_lies(tmp_path):
    """Every configuration is what Triton's own schema reads, and says of the graph beside it what onnxruntime finds."""
    model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    config = save_tiny_encoder(tmp_path / "whole", model="match4", fusion="mlp")
    export_onnx(config.uri, str(tmp_path / "out"), layout="triton")
    kinds = {"TYPE_FP32": "tensor(float)", "TYPE_INT64": "tensor(int64)", "TYPE_BOOL": "tensor(bool)"}
    kinds["TYPE_UINT8"] = "tensor(uint8)"
    names = sorted(path.name for path in (tmp_path / "out" / "models").iterdir())
    assert names == ["fuse_both", "fuse_photo", "fuse_text", "image", "query_text"]
    listed = json.loads((tmp_path / "out" / "ovms.json").read_text())["model_config_list"]
    assert [each["config"]["base_path"].rsplit("/", 1)[-1] for each in listed] == [
        each["config"]["name"] for each in listed
    ]
    assert sorted(each["config"]["name"] for each in listed) == names
    for name in names:
        folder = tmp_path / "out" / "models" / name
        assert sorted(path.name for path in folder.iterdir()) == ["1", "config.pbtxt"]
        read = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        graph = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
        assert (read.name, read.backend) == (name, "onnxruntime")
        assert read.max_batch_size == (0 if name == "fuse_both" else 64)
        for described, found in ((read.input, graph.get_inputs()), (read.output, graph.get_outputs())):
            assert [value.name for value in described] == [value.name for value in found]
            for value, node in zip(described, found, strict=True):
                assert kinds[model_config_pb2.DataType.Name(value.data_type)] == node.type
                shape = list(value.reshape.shape) if value.HasField("reshape") else list(value.dims)
                sizes = [size if isinstance(size, int) else -1 for size in node.shape]
                assert shape == (sizes[1:] if read.max_batch_size else sizes)
    ours, graphs = load_query_encoder(config.uri, device="cpu"), load_onnx_query_encoder(str(tmp_path / "out"))
    assert np.allclose(graphs.encode(TEXTS, PICTURES), ours.encode(TEXTS, PICTURES), atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "eos"])
def test_other_poolings(tmp_path, pooling):
    parts = tiny_parts_of_like_towers("bibert")
    values = json.loads(json.dumps(parts.model.architecture.to_dict()))
    values["text_tower"]["pooling"] = pooling
    architecture = type(parts.model.architecture).from_dict(values, text_config=parts.model.architecture.text.config)
    model = type(parts.model)(architecture)
    model.load_weights(parts.model.weights(), side="both", where="test")
    save_encoder(EncoderParts(model=model, tokenizer=parts.tokenizer), str(tmp_path / "e"))
    export_onnx(str(tmp_path / "e"), str(tmp_path / "onnx"))
    texts = [text for text in TEXTS if text is not None]
    expected = load_query_encoder(str(tmp_path / "e"), device="cpu").encode(texts)
    assert np.allclose(load_onnx_query_encoder(str(tmp_path / "onnx")).encode(texts), expected, atol=1e-5)


@pytest.mark.parametrize("model", ["4tmm", "match4"])
def test_serving_needs_no_torch(tmp_path, exported, model):
    ours, graphs = exported(model, "mlp")
    random_picture(1).save(tmp_path / "picture.png")
    code = (
        "import sys; from PIL import Image; from encoders import load_onnx_query_encoder\n"
        "encoder = load_onnx_query_encoder(sys.argv[1])\n"
        "vectors = encoder.encode(['red dress'], [Image.open(sys.argv[2])])\n"
        "print([m for m in ('torch', 'transformers', 'open_clip', 'onnx') if m in sys.modules])\n"
        "print(*vectors[0].tolist())"
    )
    paths = [str(graphs.folder), str(tmp_path / "picture.png")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    loaded, vector = done.stdout.splitlines()
    assert loaded == "[]"
    expected = ours.encode(["red dress"], [random_picture(1)])[0]
    assert np.allclose(np.array(vector.split(), np.float32), expected, atol=1e-5)


def test_a_siglip_is_served_without_torch(tmp_path):
    """A tower that sees its whole context, and a tokenizer that transformers made."""
    clip = tiny_parts("clip").model.architecture.clip
    text = {**clip.model_config["text_cfg"], "hf_tokenizer_name": "org/siglip", "no_causal_mask": True}
    text |= {"pool_type": "last", "vocab_size": 100, "tokenizer_kwargs": {"clean": "canonicalize"}}
    clip = replace(clip, model_config={**clip.model_config, "text_cfg": text})
    tokenizer = clip_tokenizer(text, save_tiny_siglip_tokenizer(tmp_path / "tokenizer"))
    architecture = replace(tiny_parts("clip").model.architecture, clip=clip)
    model = weights_by_name(EncoderModel(architecture))
    save_encoder(EncoderParts(model=model, clip_tokenizer=tokenizer), str(tmp_path / "e"))
    export_onnx(str(tmp_path / "e"), str(tmp_path / "onnx"))
    texts = ["Small red-dress_for 2", "", "手 mug & lamp, Ü", "wooden chair " * 20]
    code = (
        "import json, sys; from encoders import load_onnx_query_encoder\n"
        "encoder = load_onnx_query_encoder(sys.argv[1])\n"
        "texts = json.loads(sys.argv[2])\n"
        "ids = encoder._tokenizers['clip_text'].tokenize(texts).padded()[0].tolist()\n"
        "vectors = encoder.encode(texts).tolist()\n"
        "assert not {'torch', 'transformers', 'open_clip'} & set(sys.modules)\n"
        "print(json.dumps([ids, vectors]))"
    )
    given = [str(tmp_path / "onnx"), json.dumps(texts)]
    done = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ids, vectors = json.loads(done.stdout)
    theirs = open_clip.tokenizer.HFTokenizer(str(tmp_path / "tokenizer"), context_length=16, clean="canonicalize")
    assert ids == theirs(texts).tolist()
    expected = load_query_encoder(str(tmp_path / "e"), device="cpu").encode(texts)
    assert np.allclose(np.array(vectors, np.float32), expected, atol=1e-5)


def test_an_older_export_says_nothing_of_the_cleaning_of_byte_pairs(tmp_path, exported):
    ours, graphs = exported("clip", None)
    shutil.copytree(graphs.folder, tmp_path / "older")
    values = json.loads((tmp_path / "older" / "onnx.json").read_text())
    assert values["clip_text"].pop("cleaning") == "lower"
    (tmp_path / "older" / "onnx.json").write_text(json.dumps(values))
    texts = ["Red  DRESS &amp; more", "mug"]
    found = load_onnx_query_encoder(str(tmp_path / "older"), threads=1).encode(texts)
    assert np.allclose(found, ours.encode(texts), atol=1e-5)


def test_queries_that_an_encoder_does_not_take(exported):
    with pytest.raises(ValueError, match="takes no texts"):
        exported("match3", None)[1].encode(["mug"])
    with pytest.raises(ValueError, match="takes no pictures"):
        exported("bibert", None)[1].encode(images=[random_picture(1)])
    with pytest.raises(ValueError, match="query 1 has neither"):
        exported("clip", None)[1].encode(["mug", None])


def test_folders_that_are_no_export(tmp_path, exported):
    with pytest.raises(CheckpointError, match=r"no onnx\.json"):
        load_onnx_query_encoder(str(tmp_path))
    (tmp_path / "holiday.txt").write_text("mine")
    save_tiny_encoder(tmp_path / "e", model="bibert")
    with pytest.raises(CheckpointError, match="holds no exported encoder"):
        export_onnx(str(tmp_path / "e"), str(tmp_path))
    assert (tmp_path / "holiday.txt").exists()
    for _ in range(2):  # the second replaces the first
        values = export_onnx(str(tmp_path / "e"), str(tmp_path / "onnx"))
    onnx.checker.check_model(str(tmp_path / "onnx" / "query_text.onnx"), full_check=True)
    (tmp_path / "onnx" / "fuse_text.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"no fuse_text\.onnx.*export it again"):
        load_onnx_query_encoder(str(tmp_path / "onnx"))
    (tmp_path / "onnx" / "fuse_text.onnx").write_bytes(b"no graph")
    with pytest.raises(CheckpointError, match="cannot be loaded by ONNX Runtime"):
        load_onnx_query_encoder(str(tmp_path / "onnx"))
    (tmp_path / "onnx" / "onnx.json").write_text(json.dumps({**values, "schema_version": 9}))
    with pytest.raises(CheckpointError, match="schema_version 9"):
        load_onnx_query_encoder(str(tmp_path / "onnx"))


def test_a_graph_that_differs_from_its_tower_is_noticed(exported):
    graph = exported("bibert", None)[1].folder / "query_text.onnx"
    tower = load_query_parts(graph.parent.with_name("bibert-None"))[0].model.query_text.eval()
    ids = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
    fixed = ({}, {})
    _compare(tower, (ids, ids != 0), fixed, graph)
    with torch.no_grad():
        tower.projection.weight[0, 0] += 0.1
    with pytest.raises(CheckpointError, match=r"query_text\.onnx differs from its tower"):
        _compare(tower, (ids, ids != 0), fixed, graph)


def test_a_cut_encoder_is_exported_cut(tmp_path):
    parts = tiny_parts_of_like_towers("3tmm")
    save_encoder(parts, str(tmp_path / "whole"))
    save_query_encoder(EncoderConfig(uri=str(tmp_path / "whole"), dim=5, precision="float32"), str(tmp_path / "query"))
    values = export_onnx(str(tmp_path / "query"), str(tmp_path / "onnx"))
    expected = load_query_encoder(str(tmp_path / "query"), device="cpu").encode(TEXTS[:1], [PICTURES[1]])
    assert values["dim"] == expected.shape[1] == 5
    found = load_onnx_query_encoder(str(tmp_path / "onnx")).encode(TEXTS[:1], [PICTURES[1]])
    np.testing.assert_allclose(found, expected, atol=1e-5)
