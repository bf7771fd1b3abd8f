"""How near a tower's output from our decoding is to its output from open_clip's own transform: cosines, least and
median.

    python -m tests.benchmarks.decode_agreement [--photos N] [--encoder URI] [--limit COSINE]

Photos: the grocery set (348 pixels wide); without it, drawn ones. At 224 pixels they are too small for a scaled JPEG
decode to be used, so the other rows force one: a smaller tower on the same photos, and the photos enlarged to 800
pixels, and to 797, of which no fraction is whole. The towers are open_clip's ViT-B-32 with random weights, of the
input size given; cosines of such a tower are high for any two photos ("other photo"), so a second pair of columns is
taken after the mean vector was subtracted.
`--encoder` adds a trained encoder (a saved folder) to the towers. Exits with 1 if a plain cosine is below `--limit`.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable

import numpy as np
import open_clip
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from encoders import EncoderConfig, ImagePreprocessing, jpeg_decoding, load_product_encoder
from pipelines.images.config import DecodeConfig
from pipelines.images.decode import decode_image
from tests.benchmarks.machine import command_line, machine_line
from tests.benchmarks.photos import drawn_photo, grocery_photos, jpeg_of_size

Tower = Callable[[torch.Tensor], torch.Tensor]
Transform = Callable[[Image.Image], torch.Tensor]


def random_tower(size: int) -> tuple[Tower, Transform, ImagePreprocessing]:
    """ViT-B-32 with seeded random weights, open_clip's evaluation transform for it, and the same in our words."""
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms("ViT-B-32", pretrained=None, force_image_size=size)
    model.eval()
    wishes = open_clip.get_model_preprocess_cfg(model)
    preprocessing = ImagePreprocessing(
        size=size,
        mean=tuple(wishes["mean"]),
        std=tuple(wishes["std"]),
        interpolation=wishes["interpolation"],
        resize_mode=wishes["resize_mode"],
    )
    return model.encode_image, transform, preprocessing


def trained_tower(uri: str) -> tuple[Tower, Transform, ImagePreprocessing]:
    """The image tower of a saved encoder, with open_clip's transform for its preprocessing."""
    encoder = load_product_encoder(EncoderConfig(uri=uri, device="cpu"))
    wishes = encoder.preprocessing
    if wishes is None:
        raise SystemExit(f"{uri} has no image tower")
    transform = open_clip.image_transform(
        wishes.size,
        is_train=False,
        mean=wishes.mean,
        std=wishes.std,
        resize_mode=wishes.resize_mode,
        interpolation=wishes.interpolation,
        fill_color=wishes.fill_color,
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in (wishes.mean, wishes.std))

    def run(pictures: torch.Tensor) -> torch.Tensor:
        pixels = ((pictures * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        return torch.as_tensor(encoder.encode_images(pixels.numpy()))

    return run, transform, wishes


@torch.inference_mode()
def compare(tower: Tower, transform: Transform, preprocessing: ImagePreprocessing, photos: list[bytes]) -> list[float]:
    """Least and median cosine, the same about the mean vector, and the median cosine to another photo."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    reference, ours = [], []
    for data in photos:
        reference.append(tower(transform(Image.open(io.BytesIO(data)))[None]))
        pixels = torch.from_numpy(decode_image(data, preprocessing, DecodeConfig().max_pixels))
        ours.append(tower(((pixels / 255 - mean) / std)[None]))
    expected, found = torch.cat(reference).float(), torch.cat(ours).float()
    plain = torch.cosine_similarity(expected, found)
    centred = torch.cosine_similarity(expected - expected.mean(0), found - expected.mean(0))
    other = torch.cosine_similarity(expected, expected.roll(1, 0))
    return [float(value) for value in (plain.min(), plain.median(), centred.min(), centred.median(), other.median())]


def divisors(preprocessing: ImagePreprocessing, photos: list[bytes]) -> str:
    """The fractions at which the photos are decoded."""
    needed = (preprocessing.size, preprocessing.size)
    found = {jpeg_decoding.scale_divisor(*Image.open(io.BytesIO(data)).size, needed) for data in photos}
    return ", ".join(f"1/{divisor}" if divisor > 1 else "whole" for divisor in sorted(found))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=100, help="photos to compare (default: %(default)s)")
    parser.add_argument("--encoder", help="a saved encoder, beside the random towers")
    parser.add_argument("--limit", type=float, default=0.999, help="least cosine (default: %(default)s)")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=120)
    console.print(command_line(), machine_line("pillow", "simplejpeg", "torch", "open_clip_torch"), sep="\n")
    photos = grocery_photos(arguments.photos)
    kind = "grocery photos" if photos else "drawn photos"
    if not photos:
        photos = [jpeg_of_size(drawn_photo(seed, 348), 348) for seed in range(arguments.photos)]
    enlarged, uneven = ([jpeg_of_size(Image.open(io.BytesIO(data)), side) for data in photos] for side in (800, 797))
    table = Table(
        title=f"{len(photos)} {kind}; spare resolution {jpeg_decoding.SPARE_RESOLUTION}", title_justify="left"
    )
    for column in (
        "tower",
        "photos",
        "decoded at",
        "least",
        "median",
        "least, centred",
        "median, centred",
        "other photo",
    ):
        table.add_column(column, justify="right" if column not in ("tower", "photos") else "left")
    towers = {f"ViT-B-32 at {size}": random_tower(size) for size in (224, 96)}
    if arguments.encoder:
        towers["trained encoder"] = trained_tower(arguments.encoder)
    least = 1.0
    for name, (tower, transform, preprocessing) in towers.items():
        for photo_kind, chosen in (("as they are", photos), ("at 800 pixels", enlarged), ("at 797 pixels", uneven)):
            cosines = compare(tower, transform, preprocessing, chosen)
            least = min(least, cosines[0])
            decoded_at = divisors(preprocessing, chosen)
            table.add_row(name, photo_kind, decoded_at, *(f"{cosine:.6f}" for cosine in cosines))
    console.print(table)
    console.print(f"least cosine {least:.6f}; limit {arguments.limit}")
    sys.exit(0 if np.round(least, 6) >= arguments.limit else 1)


if __name__ == "__main__":
    main()
