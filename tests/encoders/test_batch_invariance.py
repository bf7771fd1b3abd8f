"""A product's vector depends on the product alone: every model, precision, thread count and kind of CPU.

Run as a program it encodes the fixed products of this file and prints digests, with one thread and with two.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoders import ProductEncoder, load_product_encoder
from encoders.image_tower import ClipTextTower, ImageTower, build_clip
from encoders.preprocessing import ImagePreprocessing
from encoders.running import ImageRunner, Lanes, Placement, TextRunner
from encoders.text_tower import TextTower, build_backbone
from encoders.tokenizers import TokenizedTexts, clip_tokenizer
from tests.encoders.tiny import MODELS, WORDS, random_picture, save_tiny_encoder, tiny_parts

PRECISIONS = ("float32", "bfloat16", "float16", "int8")
TORCH_THREADS = (1, 2, 4)
PRODUCTS = 27
CPU = torch.device("cpu")
# The same machine as other CPUs: fewer instructions, other kernels.
OTHER_CPUS = {
    "AVX-512": {},
    "all it has": {"ONEDNN_MAX_CPU_ISA": "DEFAULT"},  # bfloat16 in hardware, where there is one
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "plain": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}


def cpu_flags() -> str:
    """What of this CPU decides the kernels."""
    info = Path("/proc/cpuinfo")
    found = info.read_text().split() if info.exists() else []
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in found]
    return f"{' '.join(flags)}; torch uses {torch.backends.cpu.get_cpu_capability()}"


@functools.cache
def products() -> tuple[list[str | None], list[Image.Image | None]]:
    """Texts of many lengths, some twice, some missing; pictures, some missing."""
    rng = np.random.default_rng(0)
    texts: list[str | None] = [" ".join(rng.choice(WORDS, rng.integers(1, 14))) for _ in range(PRODUCTS)]
    images: list[Image.Image | None] = [random_picture(seed) for seed in range(PRODUCTS)]
    texts[3], images[5], texts[20] = None, None, texts[19]
    return texts, images


def encode(encoder: ProductEncoder, rows: np.ndarray) -> np.ndarray:
    """Vectors of the products at `rows`; a text model gets a text of each."""
    texts, images = products()
    instead = None if encoder.uses_images else "mug"
    return encoder.encode([texts[row] or instead for row in rows], [images[row] for row in rows])


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


parts_of = functools.cache(tiny_parts)


def product_encoder(
    model: str, fusion: str | None = None, *, precision: str = "float32", threads: int = 2, batch_size: int = 4
) -> ProductEncoder:
    """The encoder as a process with so many torch threads loads it."""
    parts = parts_of(model, fusion=fusion)
    own = replace(parts, model=copy.deepcopy(parts.model).keep_side("product"))
    with torch_threads(threads):
        return ProductEncoder(own, fingerprint="f", device=CPU, precision=precision, batch_size=batch_size)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("pair", MODELS)
def test_a_products_bits_are_its_own(pair, precision):
    """Together, alone, in parts, in another order, under any batch_size and thread count."""
    expected = encode(product_encoder(*pair, precision=precision), np.arange(PRODUCTS))
    for threads, batch_size in zip(TORCH_THREADS, (1, 7, 512), strict=True):
        encoder = product_encoder(*pair, precision=precision, threads=threads, batch_size=batch_size)
        order = np.random.default_rng(threads).permutation(PRODUCTS)
        assert np.array_equal(encode(encoder, order), expected[order])
        for part in np.array_split(order, [1, 2, 5, 14]):
            assert np.array_equal(encode(encoder, part), expected[part])


def test_side_by_side_in_several_threads():
    encoder = product_encoder("3tmm")
    expected = encode(encoder, np.arange(PRODUCTS))
    parts = [np.random.default_rng(seed).choice(PRODUCTS, 20, replace=False) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for part, found in zip(parts, pool.map(lambda part: encode(encoder, part), parts), strict=True):
            assert np.array_equal(found, expected[part])


def test_empty_slots_of_further_images_change_nothing():
    encoder = product_encoder("3tmm")
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
    runner = TextRunner(tower, _Words(), Placement(CPU, 4, Lanes(2)))
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
    images = ImageRunner(tower, preprocessing, Placement(CPU, 4, lanes))
    pixels = list(np.random.default_rng(0).integers(0, 256, (19, 3, size, size), dtype=np.uint8))
    own_bits(images, pixels, lambda runner, items: runner.run(np.stack(items)))
    text = ClipTextTower(clip.text, dim=64).to(precision).eval()
    texts = TextRunner(text, clip_tokenizer(config["text_cfg"]), Placement(CPU, 4, lanes))
    own_bits(texts, ["red dress " * (row % 7 + 1) for row in range(23)], lambda runner, items: runner.run(items))


def test_the_callers_threads_are_left_alone(tmp_path):
    config = save_tiny_encoder(tmp_path / "clip", model="clip")
    seen = []
    with torch_threads(3):
        encode(load_product_encoder(config), np.arange(10))
        seen.append(torch.get_num_threads())
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: seen.append(torch.get_num_threads())).result()
    assert seen == [3, 3]


def test_processes_with_other_threads_and_instructions():
    """Each kind of CPU gives its own bits, whatever the process and its number of threads."""
    running = {
        cpu: subprocess.Popen(
            [sys.executable, "-m", "tests.encoders.test_batch_invariance"],
            env=os.environ | settings | {"OMP_NUM_THREADS": "1", "MKL_CBWR": ""}, stdout=subprocess.PIPE, text=True,
        )
        for cpu, settings in OTHER_CPUS.items()
    }  # fmt: skip
    here = digests(2)
    for cpu, process in running.items():
        output, _ = process.communicate()
        assert process.returncode == 0, output
        print(cpu, output.splitlines()[0])
        one, two = json.loads(output.splitlines()[-1])
        assert one == two, cpu
        if cpu == "AVX-512":
            assert one == here, "another process on the same CPU"


def test_a_process_that_multiplied_before_the_encoders_came_is_told():
    """MKL settles how it sums with its first product; with AVX2 it sums the last two of eight rows differently then."""
    script = (
        "import torch; x, w = torch.randn(1, 16), torch.randn(16, 16); x @ w\n"
        "from encoders.running import Lanes; Lanes(1)\n"
        "y = torch.nn.functional.linear(x.expand(8, 16).contiguous(), w); print(bool((y == y[0]).all()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | OTHER_CPUS["AVX2"] | {"OMP_NUM_THREADS": "1", "MKL_CBWR": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ("set MKL_CBWR=AVX2,STRICT" in done.stderr) == (done.stdout == "False\n")


def digests(threads: int) -> dict[str, str]:
    """The digest of every model's vectors with so many threads; raises where company changes them."""
    found = {}
    for model, fusion in (("3tmm", None), ("4tmm", "mlp"), ("match4", "mlp")):
        for precision in PRECISIONS:
            encoder = product_encoder(model, fusion, precision=precision, threads=threads)
            together = encode(encoder, np.arange(PRODUCTS))
            for part in (np.arange(1), np.arange(25, 5, -1), np.array([19, 3])):
                if not np.array_equal(encode(encoder, part), together[part]):
                    raise SystemExit(f"{model} {precision}: the company changes a product's vector")
            found[f"{model} {fusion} {precision}"] = hashlib.sha256(together.tobytes()).hexdigest()
    return found


if __name__ == "__main__":
    print(cpu_flags())
    print(json.dumps([digests(1), digests(2)]))
