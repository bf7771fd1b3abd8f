"""A product's vector depends on the product alone: every model, precision, thread count and kind of CPU.

Run as a program it encodes the fixed products of this file and prints a digest for each model and precision.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoders import EncoderConfig, ProductEncoder, load_product_encoder
from encoders.encoder import ProductEncoder as Encoder
from encoders.image_tower import ClipTextTower, ImageTower, build_clip
from encoders.preprocessing import ImagePreprocessing
from encoders.running import ImageRunner, Lanes, TextRunner
from encoders.text_tower import TextTower, build_backbone
from encoders.tokenizers import TokenizedTexts, clip_tokenizer
from tests.encoders.tiny import MODELS, WORDS, random_picture, save_tiny_encoder

PRECISIONS = ("float32", "bfloat16", "float16")
TORCH_THREADS = (1, 2, 4)
PRODUCTS = 45
CPU = torch.device("cpu")
# The same machine as other CPUs: fewer instructions, other kernels.
OTHER_CPUS = {
    "AVX-512": {},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "plain": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}


def cpu_flags() -> str:
    """What of this CPU decides the kernels."""
    info = Path("/proc/cpuinfo")
    found = info.read_text().split() if info.exists() else []
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in found]
    return f"{' '.join(flags)}; torch uses {torch.backends.cpu.get_cpu_capability()}"


def products() -> tuple[list[str | None], list[Image.Image | None]]:
    """Texts of many lengths, some twice, some missing; pictures, some missing."""
    rng = np.random.default_rng(0)
    texts: list[str | None] = [" ".join(rng.choice(WORDS, rng.integers(1, 14))) for _ in range(PRODUCTS)]
    images: list[Image.Image | None] = [random_picture(seed) for seed in range(PRODUCTS)]
    texts[3], images[5], texts[30] = None, None, texts[29]
    return texts, images


def encode(encoder: ProductEncoder, rows: np.ndarray) -> np.ndarray:
    """Vectors of the products at `rows`; a text model gets a text of each."""
    texts, images = products()
    if not encoder.uses_images:
        texts[3] = "mug"
    return encoder.encode([texts[row] for row in rows], [images[row] for row in rows])


def with_threads(count: int, config: EncoderConfig) -> ProductEncoder:
    """The encoder as a process with so many torch threads loads it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return load_product_encoder(config)
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> dict[tuple[str, str | None], EncoderConfig]:
    print(cpu_flags())
    root = tmp_path_factory.mktemp("encoders")
    return {pair: save_tiny_encoder(root / f"{pair[0]}-{pair[1]}", model=pair[0], fusion=pair[1]) for pair in MODELS}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pair", MODELS)
def test_a_products_bits_are_its_own(configs, pair, precision):
    """Together, alone, in parts, in another order, under any batch_size and thread count."""
    config = replace(configs[pair], precision=precision)
    everything = np.arange(PRODUCTS)
    expected = encode(load_product_encoder(config), everything)
    for count, batch_size in zip(TORCH_THREADS, (1, 7, 512), strict=True):
        encoder = with_threads(count, replace(config, batch_size=batch_size))
        order = np.random.default_rng(count).permutation(PRODUCTS)
        assert np.array_equal(encode(encoder, order), expected[order])
        for part in np.array_split(order, [1, 2, 5, 22]):
            assert np.array_equal(encode(encoder, part), expected[part])


def test_side_by_side_in_several_threads(configs):
    encoder = load_product_encoder(configs["3tmm", None])
    expected = encode(encoder, np.arange(PRODUCTS))
    parts = [np.random.default_rng(seed).choice(PRODUCTS, 20, replace=False) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for part, found in zip(parts, pool.map(lambda part: encode(encoder, part), parts), strict=True):
            assert np.array_equal(found, expected[part])


def test_empty_slots_of_further_images_change_nothing(configs):
    encoder = load_product_encoder(configs["3tmm", None])
    image = np.random.default_rng(0).normal(size=(9, 8)).astype(np.float32)
    none = np.full((3, 1), -1)
    own = np.array([[0, 1, 2], [3, 4, -1], [5, -1, -1]])
    narrow = encoder.fuse(None, none[:, 0], image, own)
    wide = encoder.fuse(None, none[:, 0], image, np.hstack([own, *[none] * 20]))
    assert np.array_equal(narrow, wide)


class _Words:
    """A tokenizer for towers without one: a letter is a token."""

    max_tokens = 40

    def tokenize(self, texts):
        rows = [np.array([1, *(ord(letter) % 90 + 5 for letter in text), 2]) for text in texts]
        offsets = np.cumsum([0, *map(len, rows)])
        return TokenizedTexts(ids=np.concatenate(rows), offsets=offsets, truncated=0, pad_id=0)


def own_bits(runner: TextRunner | ImageRunner, items: list, run) -> None:
    """Asserts that the items' vectors are the same alone, in parts and together."""
    together = run(runner, items).numpy()
    assert np.isfinite(together).all()
    for part in np.array_split(np.random.default_rng(0).permutation(len(items)), [1, 3, 8]):
        assert np.array_equal(run(runner, [items[row] for row in part]).numpy(), together[part])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["bert", "roberta", "mpnet", "distilbert", "modernbert"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_text_towers_of_transformers(kind, precision, pooling):
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 160}
    if kind == "distilbert":
        sizes = {"dim": 96, "n_layers": 2, "n_heads": 4, "hidden_dim": 160}
    torch.manual_seed(0)
    backbone = build_backbone({"model_type": kind, "vocab_size": 100, "max_position_embeddings": 64, "pad_token_id": 0,
                               **({"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
                                  if kind == "modernbert" else {}), **sizes})  # fmt: skip
    tower = TextTower(backbone, pooling=pooling, projection_dim=24).to(precision).eval()
    runner = TextRunner(tower, _Words(), device=CPU, batch_size=4, lanes=Lanes(2))
    texts = ["x" * (row % 19 + 1) + "abc" * (row % 3) for row in range(41)]
    own_bits(runner, texts, lambda runner, texts: runner.run(texts))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vision", ["vit", "resnet", "timm"])
def test_towers_of_open_clip(vision, precision):
    size = 64
    visions = {
        "vit": {"image_size": size, "layers": 2, "width": 192, "head_width": 64, "patch_size": 16},
        "resnet": {"image_size": size, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "timm": {"timm_model_name": "efficientnet_b0", "image_size": size, "timm_pool": "", "timm_proj": "linear"},
    }
    config = {
        "embed_dim": 64,
        "vision_cfg": visions[vision],
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    }
    torch.manual_seed(0)
    clip, lanes = build_clip(config, with_text=True).eval(), Lanes(2)
    preprocessing = ImagePreprocessing(size=size, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    tower = ImageTower(clip.visual, preprocessing, dim=64).to(precision).eval()
    images = ImageRunner(tower, preprocessing, device=CPU, batch_size=4, lanes=lanes)
    pixels = list(np.random.default_rng(0).integers(0, 256, (19, 3, size, size), dtype=np.uint8))
    own_bits(images, pixels, lambda runner, items: runner.run(np.stack(items)))
    text = ClipTextTower(clip.text, dim=64).to(precision).eval()
    texts = TextRunner(text, clip_tokenizer(config["text_cfg"]), device=CPU, batch_size=4, lanes=lanes)
    own_bits(texts, ["red dress " * (row % 7 + 1) for row in range(23)], lambda runner, items: runner.run(items))


def test_the_callers_threads_are_left_alone(configs):
    seen = []

    def look() -> None:
        seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        encoder = load_product_encoder(configs["clip", None])
        encode(encoder, np.arange(10))
        look()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(look).result()
    finally:
        torch.set_num_threads(before)
    assert seen == [3, 3]


@pytest.mark.parametrize("cpu", OTHER_CPUS)
def test_processes_with_other_threads_and_instructions(cpu):
    """Each kind of CPU gives its own bits, and gives them whatever the number of threads."""
    found = []
    for threads in ("1", "2"):
        environment = os.environ | OTHER_CPUS[cpu] | {"OMP_NUM_THREADS": threads, "MKL_CBWR": ""}
        done = subprocess.run(
            [sys.executable, "-m", "tests.encoders.test_batch_invariance"],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(cpu, threads, done.stdout.splitlines()[0])
    assert found[0] == found[1]


def main() -> None:
    """Prints the CPU, and the digest of every model's vectors; raises where company changes them."""
    print(cpu_flags())
    digests = {}
    with tempfile.TemporaryDirectory() as folder:
        for model, fusion in (("3tmm", None), ("4tmm", "mlp"), ("match4", "mlp")):
            config = save_tiny_encoder(Path(folder) / f"{model}-{fusion}", model=model, fusion=fusion)
            for precision in PRECISIONS:
                encoder: Encoder = load_product_encoder(replace(config, precision=precision))
                together = encode(encoder, np.arange(PRODUCTS))
                for part in (np.arange(1), np.arange(40, 5, -1), np.array([29, 3])):
                    if not np.array_equal(encode(encoder, part), together[part]):
                        raise SystemExit(f"{model} {precision}: the company changes a product's vector")
                digests[f"{model} {fusion} {precision}"] = hashlib.sha256(together.tobytes()).hexdigest()
    print(json.dumps(digests))


if __name__ == "__main__":
    main()
