"""Texts and pictures a second through a CLIP's towers: ours against the plain open_clip calls.

    python -m tests.benchmarks.encoder_throughput [--texts N] [--pictures N] [--batch-size B] [--rounds R]
                                                  [--threads T] [--device D]

Plain: `open_clip.tokenize` and `encode_text` at the full context of 77, `encode_image` on pixels that are normalised
floats already, in inference mode. Ours: `ProductEncoder.encode_texts` and `.encode_images` (uint8 pixels). Same weights
(random:ViT-B-32), same titles and pictures of the fashion set, same batch size, same threads, float32. Rounds are
interleaved; medians count. Vectors of both sides are compared first.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from encoders import EncoderConfig, TowerSpec, image_pixels, load_product_encoder
from encoders.saved_encoder import resolve_device, resolve_encoder
from tests.benchmarks.machine import command_line, machine_line
from tests.benchmarks.photos import PROJECT_ROOT

CHECKPOINT = "random:ViT-B-32?seed=0"


def titles_and_pictures(texts: int, pictures: int) -> tuple[list[str], list[Image.Image]]:
    """Titles and photos of products evenly drawn from the fashion set; exits with a message where it is absent."""
    folder = Path(os.environ.get("SHELFMARK_SHARED_DATA", PROJECT_ROOT.parent / "shared" / "data")) / "fashion"
    if not (folder / "catalog").is_dir():
        sys.exit(f"no fashion set at {folder}: SHELFMARK_SHARED_DATA names the folder that holds it; nothing measured")
    table = pq.read_table(folder / "catalog", columns=["title", "image"])
    rows = np.linspace(0, len(table) - 1, max(texts, pictures)).astype(int)
    titles = table["title"].take(rows[np.linspace(0, len(rows) - 1, texts).astype(int)]).to_pylist()
    chosen = table["image"].take(rows[np.linspace(0, len(rows) - 1, pictures).astype(int)]).to_pylist()
    return titles, [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in chosen]


def main() -> None:
    """Compares, times, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    titles, photos = titles_and_pictures(arguments.texts, arguments.pictures)
    config = EncoderConfig(
        model="clip",
        clip_tower=TowerSpec(library="open_clip", checkpoint=CHECKPOINT),
        batch_size=arguments.batch_size,
        device=arguments.device,
        precision="float32",
    )
    ours, device = load_product_encoder(config), resolve_device(arguments.device)
    plain = resolve_encoder(config).load().model
    clip = open_clip.CustomTextCLIP(**resolve_encoder(config).architecture.clip.model_config)
    clip.visual.load_state_dict(plain.image.visual.state_dict())
    clip.text.load_state_dict(plain.clip_text.text.state_dict())
    clip = clip.eval().to(device)
    pixels = np.stack([image_pixels(photo, ours.preprocessing) for photo in photos])
    mean, std = (
        torch.tensor(values).reshape(1, 3, 1, 1) for values in (ours.preprocessing.mean, ours.preprocessing.std)
    )
    floats = ((torch.from_numpy(pixels).float() / 255 - mean) / std).to(device)

    def batches(items):
        return (items[start : start + arguments.batch_size] for start in range(0, len(items), arguments.batch_size))

    @torch.inference_mode()
    def plain_texts() -> torch.Tensor:
        return torch.cat([clip.encode_text(open_clip.tokenize(batch).to(device)) for batch in batches(titles)])

    @torch.inference_mode()
    def plain_pictures() -> torch.Tensor:
        return torch.cat([clip.encode_image(batch) for batch in batches(floats)])

    ways: dict[str, tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor], int]] = {
        "texts": (plain_texts, lambda: ours.encode_texts(titles), len(titles)),
        "pictures": (plain_pictures, lambda: ours.encode_images(pixels), len(pixels)),
    }
    console = Console(width=110)
    console.print(machine_line("torch", "open_clip_torch"), f"{torch.get_num_threads()} threads, on {device}", sep="; ")
    console.print(command_line())
    for name, (theirs, own, _) in ways.items():  # also the warm-up
        left, right = (torch.nn.functional.normalize(way(), dim=-1) for way in (theirs, own))
        console.print(f"{name}: vectors differ by at most {float((left - right).abs().max()):.1e}")
    seconds: dict[tuple[str, str], list[float]] = {(name, side): [] for name in ways for side in ("plain", "ours")}
    for round_number in range(arguments.rounds):
        for name, (theirs, own, count) in ways.items():
            pair = (("plain", theirs), ("ours", own))
            for side, way in pair if round_number % 2 else pair[::-1]:
                began = time.perf_counter()
                way()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name, side].append((time.perf_counter() - began) / count)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    for side in ("plain", "ours"):
        medians["text + picture", side] = medians["texts", side] + medians["pictures", side]
    table = Table("", "plain, ms each", "ours, ms each", "times as fast")
    for name in (*ways, "text + picture"):
        before, after = medians[name, "plain"], medians[name, "ours"]
        table.add_row(name, f"{before * 1e3:.2f}", f"{after * 1e3:.2f}", f"{before / after:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
