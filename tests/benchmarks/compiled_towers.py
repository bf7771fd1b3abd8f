"""What torch's compiler gains over the towers as a night runs them, with frozen weights and without.

    python -m tests.benchmarks.compiled_towers [--images N] [--texts N] [--rounds R] [--precisions P ...] [--ways W ...]

Needs the extra `starter` and g++. Each tower runs one thread in the batches of a night: a ViT-B-32 with random weights,
EfficientNet-Lite0 at 160 pixels, MiniLM over packed texts.

- "plain" runs the library's own layers.
- "night" is what `ProductEncoder` runs: batch norms folded into convolutions, in bfloat16 prepacked layers.
- "compiled" is what `encoder.compile: true` runs: shapes of any size, weights as arguments, texts in batches of one
  length.
- "frozen" compiles for the one shape of a night's batches with `torch._inductor.config.freezing`: weights are
  constants, which are laid out once, and batch norms go into the convolutions. Of MiniLM's packs, whose attention
  differs from pack to pack, what runs token by token is compiled, layer by layer.

Rounds go through all ways in turn, there and back; medians count. The first batch holds the compilation, without
anything kept from an earlier one. The cosine is to plain in float32, and "company" says whether a row has the same
bytes in another order and in other batches.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch._inductor import config as inductor
from torch._inductor.utils import fresh_cache

from encoders import EncoderConfig, FusionSpec, TowerSpec
from encoders.encoder import fold_towers, move_towers, prepack_towers
from encoders.running import ImageRunner, Lanes, Placement, TextRunner
from encoders.saved_encoder import resolve_encoder
from encoders.starter_weights import LITE0
from tests.benchmarks.batch_shapes import CLIP, CPU, MINILM, titles
from tests.benchmarks.machine import command_line, machine_line

LITE0_TOWER = TowerSpec(library="timm", checkpoint=LITE0, image_size=160, resize_mode="longest")
TOWERS = {
    "Lite0 at 160, a picture": EncoderConfig(model="match3", clip_tower=LITE0_TOWER, fusion=FusionSpec(method="sum")),
    "ViT-B-32, a picture": CLIP,
    "MiniLM, a title": MINILM,
}
WAYS = ("plain", "night", "compiled", "frozen")
Run = Callable[[np.ndarray], torch.Tensor]
"""Gives the vectors of the items at these places."""


def of_tower(config: EncoderConfig, way: str, precision: str, count: int) -> Run:
    """A tower made ready in one of the ways."""
    parts = resolve_encoder(replace(config, precision=precision)).load()
    if way == "night":
        fold_towers(parts.model, CPU)
    model = move_towers(parts.model, CPU, precision)
    if way == "night":
        prepack_towers(model, CPU)
    placement = Placement(CPU, 64, Lanes())
    if config is MINILM:
        texts = TextRunner(model.document_text, parts.tokenizer, placement)
        if way == "compiled":
            texts.compile()
        elif way == "frozen":
            for layer in model.document_text.backbone.encoder.layer:
                layer._beside = torch.compile(layer._beside, dynamic=False)
                own = layer.attention.self
                for name in ("query", "key", "value"):
                    setattr(own, name, torch.compile(getattr(own, name), dynamic=False))
        items = titles(count)
        return lambda rows: texts.run([items[row] for row in rows])
    preprocessing = model.architecture.clip.preprocessing
    images = ImageRunner(model.image, preprocessing, placement)
    if way == "compiled":
        images.compile()
    elif way == "frozen":
        images._tower = torch.compile(images._tower, dynamic=False)
    shape = (count, 3, preprocessing.size, preprocessing.size)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return lambda rows: images.run(pixels[rows])


def first_run(config: EncoderConfig, way: str, precision: str, count: int) -> tuple[Run, float]:
    """The tower, and the seconds that its first batch took, with its compilation."""
    with fresh_cache(), inductor.patch(freezing=way == "frozen", fx_graph_cache=False):
        began = time.perf_counter()
        run = of_tower(config, way, precision, count)
        loaded = time.perf_counter()
        run(np.arange(count))
        done = time.perf_counter()
    return run, done - (began if way == "compiled" else loaded)


def main() -> None:
    """Compiles, compares, times, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--texts", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precisions", nargs="+", default=("float32", "bfloat16"), choices=("float32", "bfloat16"))
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=130, highlight=False)
    console.print(machine_line("torch", "timm"), f"1 thread, load {os.getloadavg()[0]:.1f} before", sep="; ")
    console.print(command_line())
    table = Table(
        "ms each, wall / CPU", *arguments.ways, "times as fast as the first", "first batch, s", "cosine", "company"
    )
    for name, config in TOWERS.items():
        count, exact = arguments.texts if config is MINILM else arguments.images, None
        for precision in arguments.precisions:
            runs, firsts, cosines, alike = {}, [], [], []
            torch.compiler.reset()  # of the towers before
            for way in arguments.ways:
                runs[way], first = first_run(config, way, precision, count)
                found = runs[way](np.arange(count))
                exact = found if exact is None else exact
                order = np.random.default_rng(1).permutation(count)[: count - 3]
                alike.append("same" if torch.equal(runs[way](order), found[torch.from_numpy(order)]) else "DIFFERS")
                cosines.append(float(torch.nn.functional.cosine_similarity(found, exact).mean()))
                firsts.append(first)
            seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in arguments.ways}
            for turn in range(arguments.rounds):
                for way in arguments.ways[:: -1 if turn % 2 else 1]:
                    began = time.perf_counter(), time.process_time()
                    runs[way](np.arange(count))
                    seconds[way].append((time.perf_counter() - began[0], time.process_time() - began[1]))
            wall, cpu = (
                {way: statistics.median(pair[kind] for pair in pairs) / count * 1e3 for way, pairs in seconds.items()}
                for kind in (0, 1)
            )
            row = (
                f"{name}, {precision}",
                *(f"{wall[way]:.2f} / {cpu[way]:.2f}" for way in arguments.ways),
                ", ".join(f"{cpu[arguments.ways[0]] / cpu[way]:.2f}" for way in arguments.ways),
                ", ".join(f"{first:.1f}" for first in firsts),
                ", ".join(f"{cosine:.6f}" for cosine in cosines),
                ", ".join(alike),
            )
            table.add_row(*row)
            console.print("; ".join(row), style="dim")
    console.print(table)
    console.print(f"load {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
