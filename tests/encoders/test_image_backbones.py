"""Image towers of timm, transformers and open_clip without a CLIP around them: small seeded checkpoints, no hub."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Dinov2Config, SiglipConfig

from encoders import (
    CheckpointError,
    EncoderConfig,
    EncoderConfigError,
    FusionSpec,
    TowerSpec,
    check_encoder,
    export_onnx,
    image_pixels,
    load_onnx_query_encoder,
    load_product_encoder,
    load_query_encoder,
    save_query_encoder,
)
from encoders.image_tower import build_clip
from encoders.running import ImageRunner, Lanes, Placement
from encoders.saved_encoder import resolve_encoder, save_encoder
from pipelines.config.job import JobConfig
from pipelines.config.validation import build_config
from pipelines.config.yaml_files import read_config_file
from tests.encoders.tiny import random_picture, save_tiny_bert, save_tiny_clip, save_tiny_siglip_tokenizer

PICTURES = [random_picture(seed, (40, 30)) for seed in range(3)]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]


def save_timm(folder: Path, name: str = "test_efficientnet", **changes) -> Path:
    """As timm's push to a hub writes it, with its classifier."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=7)
    pretrained = {"input_size": [3, 64, 64], "mean": MEAN, "std": STD, "interpolation": "bilinear", "crop_pct": 0.9}
    pretrained |= {key: model.pretrained_cfg[key] for key in ("classifier", "fixed_input_size")}
    if pretrained["fixed_input_size"]:
        pretrained["input_size"] = list(model.pretrained_cfg["input_size"])
    values = {"architecture": name, "num_classes": 7, "num_features": model.num_features, "pretrained_cfg": pretrained}
    (folder / "config.json").write_text(json.dumps(values | changes))
    save_file(model.state_dict(), str(folder / "model.safetensors"))
    return folder


def save_transformers(folder: Path, kind: str) -> Path:
    """As `save_pretrained` writes it; SigLIP whole, with its text half."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    processor = {"image_mean": MEAN, "image_std": STD, "resample": 3}
    if kind == "dinov2":
        config = Dinov2Config(**sizes, image_size=28, patch_size=7)
        processor |= {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}, "do_center_crop": True}
    else:
        vision = sizes | {"intermediate_size": 32, "image_size": 32, "patch_size": 8}
        text = sizes | {"intermediate_size": 32, "vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2}
        config = SiglipConfig(vision_config=vision, text_config=text)
        processor |= {"size": {"height": 32, "width": 32}, "resample": 2}
    AutoModel.from_config(config).save_pretrained(str(folder))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def save_image_only_clip(folder: Path) -> Path:
    """An open_clip folder without a text tower."""
    save_tiny_clip(folder)
    path = folder / "open_clip_config.json"
    values = json.loads(path.read_text())
    del values["model_cfg"]["text_cfg"]
    path.write_text(json.dumps(values))
    weights = folder / "open_clip_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(weights).items() if name.startswith("visual.")}, weights)
    return folder


def tower(library: str, folder: Path, **options) -> TowerSpec:
    return TowerSpec(library=library, checkpoint=str(folder), **options)


def images_alone(spec: TowerSpec) -> EncoderConfig:
    fusion = FusionSpec(method="sum")
    return EncoderConfig(model="match3", clip_tower=spec, fusion=fusion, device="cpu", precision="float32")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, TowerSpec]:
    root = tmp_path_factory.mktemp("backbones")
    return {
        "timm": tower("timm", save_timm(root / "timm")),
        "stages": tower("timm", save_timm(root / "stages"), stages=True),
        "stages alone": tower("timm", save_timm(root / "alone"), stages="alone"),
        "timm vit": tower("timm", save_timm(root / "vit", "test_vit")),
        "dinov2": tower("transformers", save_transformers(root / "dinov2", "dinov2")),
        "siglip": tower("transformers", save_transformers(root / "siglip", "siglip")),
        "open_clip": tower("open_clip", save_image_only_clip(root / "clip")),
    }


def theirs(name: str, spec: TowerSpec, pixels: torch.Tensor) -> torch.Tensor:
    """Vectors of normalised pixels by the library's own loading."""
    folder = Path(spec.checkpoint)
    if spec.library == "timm":
        architecture = json.loads((folder / "config.json").read_text())["architecture"]
        model = timm.create_model(architecture, pretrained=False, num_classes=7)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        model.reset_classifier(0)
        return model.eval()(pixels)
    model = AutoModel.from_pretrained(str(folder)).eval()
    model = model.vision_model if name == "siglip" else model
    return model(pixel_values=pixels).pooler_output


@pytest.mark.parametrize("name", ["timm", "timm vit", "dinov2", "siglip"])
def test_vectors_are_those_of_the_library(folders, name):
    spec = folders[name]
    encoder = load_product_encoder(images_alone(spec))
    rules = encoder.preprocessing
    pixels = torch.from_numpy(np.stack([image_pixels(picture, rules) for picture in PICTURES])).float() / 255
    pixels = (pixels - torch.tensor(rules.mean)[:, None, None]) / torch.tensor(rules.std)[:, None, None]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(theirs(name, spec, pixels), dim=-1)
    assert np.allclose(encoder.encode([None] * 3, PICTURES), expected.numpy(), atol=1e-5)
    assert rules.mean == tuple(MEAN) and rules.std == tuple(STD)
    assert (rules.resize_mode, rules.interpolation) == {
        "timm": ("shortest", "bilinear"), "timm vit": ("shortest", "bilinear"),
        "dinov2": ("shortest", "bicubic"), "siglip": ("squash", "bilinear"),
    }[name]  # fmt: skip


def test_stages_stand_beside_the_last_vector(folders):
    """Each part of length sqrt(width): the backbone's own vector, then the means of its maps, the earliest first."""
    plain, staged = (resolve_encoder(images_alone(folders[name])).load().model for name in ("timm", "stages"))
    pixels = torch.from_numpy(np.stack([image_pixels(p, plain.architecture.clip.preprocessing) for p in PICTURES]))
    with torch.no_grad():
        scaled = (pixels.float() / 255 - plain.image.mean) / plain.image.std
        backbone = plain.image.visual
        expected = [backbone(scaled)]
        maps = backbone.bn1(backbone.conv_stem(scaled))
        ends = {stage["module"] for stage in backbone.feature_info}
        for number, block in enumerate(backbone.blocks):
            maps = block(maps)
            if f"blocks.{number}" in ends:
                expected.append(maps.mean((2, 3)))
        expected = [part / part.norm(dim=-1, keepdim=True) * part.shape[-1] ** 0.5 for part in expected]
        found = staged.image.features(pixels)
    assert len(expected) == len(ends) + 1 > 2
    assert torch.allclose(found, torch.cat(expected, dim=-1), atol=1e-4)
    assert found.shape[1] == staged.architecture.clip.dim
    alone = resolve_encoder(images_alone(folders["stages alone"])).load().model
    with torch.no_grad():
        assert torch.equal(alone.image.features(pixels), found[:, expected[0].shape[1] :])
    assert alone.architecture.clip.dim == found.shape[1] - expected[0].shape[1]


def test_stages_are_of_convolutional_networks(folders):
    with pytest.raises(EncoderConfigError, match=r"clip_tower.stages: timm's test_vit has no stages"):
        check_encoder(images_alone(replace(folders["timm vit"], stages=True)))
    with pytest.raises(EncoderConfigError, match="stages is True: expected library 'timm', found 'open_clip'"):
        replace(folders["open_clip"], stages=True)


@pytest.mark.parametrize("name", ["timm", "stages", "stages alone", "timm vit", "dinov2", "siglip", "open_clip"])
def test_images_alone_both_sides(folders, name, tmp_path):
    config = images_alone(folders[name])
    description = check_encoder(config)
    assert (description.uses_text, description.uses_images, description.max_tokens) == (False, True, 0)
    products = load_product_encoder(config)
    save_query_encoder(config, str(tmp_path / "query"))
    queries = load_query_encoder(str(tmp_path / "query"), device="cpu")
    found = queries.encode(images=PICTURES)
    assert np.allclose(found, products.encode([None] * 3, PICTURES), atol=1e-5)
    assert queries.fingerprint == products.fingerprint
    with pytest.raises(ValueError, match="a match3 encoder needs a picture of each"):
        products.encode(["red dress"], [None])
    with pytest.raises(ValueError, match="reads no texts"):
        products.tokenize(["red dress"])


@pytest.mark.parametrize("name", ["timm", "stages", "stages alone", "dinov2", "siglip", "open_clip"])
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("3tmm", {"method": "mlp"}),
        ("match3", {"method": "sum", "dim": 10}),
        ("match4", {"method": "mlp", "dim": 10}),
        ("match4", {"method": "sum", "dim": 10, "image_hidden": 6}),
    ],
    ids=["3tmm", "match3", "match4", "match4 hidden"],
)
def test_fused_models_start_from_any_image_tower_and_travel(folders, name, model, options, tmp_path):
    bert = TowerSpec(library="transformers", checkpoint=str(save_tiny_bert(tmp_path / "bert")), max_tokens=12)
    config = EncoderConfig(model=model, text_tower=bert, clip_tower=folders[name], fusion=FusionSpec(**options))
    with pytest.raises(CheckpointError, match=r"no trained (projection|fusion) weights: train it"):
        check_encoder(config)
    parts = resolve_encoder(config).load()  # where training starts
    save_encoder(parts, str(tmp_path / "saved"))
    saved = EncoderConfig(uri=str(tmp_path / "saved"), device="cpu", precision="float32")
    products = load_product_encoder(saved)
    vectors = products.encode(["red dress", None, "blue mug"], [PICTURES[0], PICTURES[1], None])
    assert vectors.shape == (3, 16 if model == "3tmm" else 10)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    queries = load_query_encoder(str(tmp_path / "saved"), device="cpu")
    assert queries.encode(images=PICTURES[:1]).shape == (1, products.dim)
    save_encoder(resolve_encoder(saved).load(), str(tmp_path / "again"))
    for file in ("encoder.json", "weights.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "saved" / file).read_bytes()


def test_a_projection_with_a_hidden_layer_is_the_same_over_kept_features(folders, tmp_path):
    fusion = FusionSpec(method="sum", dim=10, image_hidden=6)
    config = replace(images_alone(folders["stages alone"]), fusion=fusion)
    parts = resolve_encoder(config).load()
    norm = parts.model.image.projection[0]
    norm.running_mean.copy_(torch.randn(norm.running_mean.shape))
    norm.running_var.copy_(torch.rand(norm.running_var.shape) + 0.5)
    save_encoder(parts, str(tmp_path / "saved"))
    encoder = load_product_encoder(EncoderConfig(uri=str(tmp_path / "saved"), device="cpu", precision="float32"))
    pixels = np.stack([image_pixels(picture, encoder.preprocessing) for picture in PICTURES])
    kept = encoder.tower_features("image")
    found = kept.project(kept.run(pixels))
    assert found.shape == (3, 10)
    assert torch.allclose(found, encoder.encode_images(pixels), atol=1e-5)
    with torch.no_grad():
        expected = parts.model.image(torch.from_numpy(pixels))
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["timm", "stages", "timm vit", "dinov2", "siglip"])
def test_a_vectors_bits_are_its_own(folders, name, dtype):
    model = resolve_encoder(images_alone(folders[name])).load().model
    rules = model.architecture.clip.preprocessing
    runner = ImageRunner(model.image.to(dtype), rules, Placement(torch.device("cpu"), 4, Lanes(2)))
    pixels = np.random.default_rng(0).integers(0, 256, (19, 3, rules.size, rules.size), dtype=np.uint8)
    together = runner.run(pixels).numpy()
    for part in np.array_split(np.random.default_rng(0).permutation(19), [1, 3, 8]):
        assert np.array_equal(runner.run(pixels[part]).numpy(), together[part])


@pytest.mark.parametrize("name", ["timm", "stages", "timm vit", "dinov2", "siglip", "open_clip"])
def test_products_in_bfloat16_agree_with_exact_ones(folders, name):
    """Where the CPU multiplies bfloat16 the towers are prepacked, which their libraries must bear."""
    config = images_alone(folders[name])
    exact, half = (load_product_encoder(replace(config, precision=each)) for each in ("float32", "bfloat16"))
    pixels = np.stack([image_pixels(picture, exact.preprocessing) for picture in PICTURES])
    expected, found = (encoder.encode_images(pixels) for encoder in (exact, half))
    assert torch.nn.functional.cosine_similarity(expected, found, dim=-1).min() > 0.999


@pytest.mark.parametrize("name", ["timm", "stages", "hidden"])
def test_queries_without_torch(folders, name, tmp_path):
    config = images_alone(folders["stages alone" if name == "hidden" else name])
    if name == "hidden":
        hidden = replace(config, fusion=FusionSpec(method="sum", dim=10, image_hidden=6))
        save_encoder(resolve_encoder(hidden).load(), str(tmp_path / "hidden"))
        config = EncoderConfig(uri=str(tmp_path / "hidden"), device="cpu", precision="float32")
    save_query_encoder(config, str(tmp_path / "query"))
    export_onnx(str(tmp_path / "query"), str(tmp_path / "onnx"))
    expected = load_query_encoder(str(tmp_path / "query"), device="cpu").encode(images=PICTURES)
    assert np.allclose(load_onnx_query_encoder(str(tmp_path / "onnx")).encode(images=PICTURES), expected, atol=1e-4)


def test_input_size_and_resize_mode(folders):
    for name, size in (("timm", 48), ("dinov2", 35)):
        spec = replace(folders[name], image_size=size, resize_mode="squash")
        encoder = load_product_encoder(images_alone(spec))
        assert (encoder.preprocessing.size, encoder.preprocessing.resize_mode) == (size, "squash")
        assert np.isfinite(encoder.encode([None], PICTURES[:1])).all()
    for name in ("timm vit", "siglip", "open_clip"):
        with pytest.raises(EncoderConfigError, match=r"clip_tower.image_size is 48: .*leave it out"):
            check_encoder(images_alone(replace(folders[name], image_size=48)))


@pytest.mark.parametrize("name", ["timm", "dinov2", "open_clip"])
@pytest.mark.parametrize("model", ["clip", "4tmm"])
def test_models_with_clips_text_tower_say_what_they_need(folders, name, model, tmp_path):
    bert = TowerSpec(library="transformers", checkpoint=str(save_tiny_bert(tmp_path / "bert")), max_tokens=12)
    config = {"clip": {}, "4tmm": {"text_tower": bert, "fusion": FusionSpec(method="concat")}}[model]
    with pytest.raises((EncoderConfigError, CheckpointError), match="text tower"):
        check_encoder(EncoderConfig(model=model, clip_tower=folders[name], **config))


def test_weights_that_do_not_fit(tmp_path):
    wrong = save_timm(tmp_path / "other")
    values = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps(values | {"architecture": "test_resnet"}))
    with pytest.raises(
        CheckpointError, match=r"do not fit the timm model .* missing \(first: .*expected those of test_resnet"
    ):
        load_product_encoder(images_alone(tower("timm", wrong)))
    (wrong / "config.json").write_text(json.dumps(values | {"architecture": "no_such_net"}))
    with pytest.raises(CheckpointError, match="'no_such_net', which timm has not"):
        check_encoder(images_alone(tower("timm", wrong)))
    dinov2 = save_transformers(tmp_path / "dinov2", "dinov2")
    with pytest.raises(CheckpointError, match=r"this one is of transformers: clip_tower.library"):
        check_encoder(images_alone(tower("timm", dinov2)))
    (wrong / "model.safetensors").rename(wrong / "pytorch_model.bin")
    (wrong / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin, a pickle, which can run code"):
        check_encoder(images_alone(tower("timm", wrong)))


SIGLIP = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "none"},
    "text_cfg": {"context_length": 16, "vocab_size": 200, "hf_tokenizer_name": "tiny", "width": 16, "heads": 2,
                 "layers": 1, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
                 "tokenizer_kwargs": {"clean": "canonicalize"}},
}  # fmt: skip


def save_siglip(folder: Path) -> Path:
    """A small model of SigLIP's architecture as open_clip writes it: a ViT of timm, a text tower without a mask."""
    save_tiny_siglip_tokenizer(folder)
    torch.manual_seed(0)
    clip = build_clip(SIGLIP, with_text=True)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    values = {"model_cfg": SIGLIP, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(values))
    save_file(clip.state_dict(), str(folder / "open_clip_model.safetensors"))
    return folder


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("marqo_ecommerce_b", {"Marqo/marqo-ecommerce-embeddings-B"}),
        ("fashion_siglip", {"Marqo/marqo-fashionSigLIP"}),
        ("siglip2_b16", {"timm/ViT-B-16-SigLIP2", "tiny"}),
    ],
)
def test_shipped_configs_load_through_the_hubs_one_door(name, asked, tmp_path, monkeypatch):
    folder, names = save_siglip(tmp_path / "siglip"), set()

    def snapshot(hub_name, **options):
        names.add(hub_name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: copy.deepcopy(SIGLIP))
    shipped = build_config(JobConfig, read_config_file(name).data, origins={}).encoder
    assert shipped.precision == "auto"
    config = replace(shipped, device="cpu", precision="float32")
    products = load_product_encoder(config)
    assert names == asked
    assert products.preprocessing.resize_mode == "squash"
    vectors = products.encode(["red dress", None], [None, PICTURES[0]])
    save_query_encoder(config, str(tmp_path / "query"))
    queries = load_query_encoder(str(tmp_path / "query"), device="cpu")
    assert np.allclose(queries.encode(["red dress"]), vectors[:1], atol=1e-5)
    assert np.allclose(queries.encode(images=PICTURES[:1]), vectors[1:], atol=1e-5)


def test_a_hub_name_goes_through_the_one_door(folders, monkeypatch):
    asked = []

    def snapshot(name, **options):
        asked.append(name)
        return folders["timm"].checkpoint

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    config = images_alone(TowerSpec(library="timm", checkpoint="timm/test_efficientnet.r160_in1k"))
    assert check_encoder(config).fingerprint == check_encoder(images_alone(folders["timm"])).fingerprint
    assert set(asked) == {"timm/test_efficientnet.r160_in1k"}
