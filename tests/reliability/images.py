"""Mutated images of every kind: decoded, or refused with a reason; never a crash, never another error.

python -m tests.reliability.images --trials 10000 --seed 16
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from random import Random

from encoders.preprocessing import ImagePreprocessing
from pipelines.catalog.dead_letters import ImageError
from pipelines.images.decode import decode_image
from tests.encoders.image_files import encoded, photo
from tests.reliability.trials import Outcomes, damaged, run_apart, run_command

ALLOWED = frozenset({"decoded", "refused"})
KINDS = {
    "JPEG": ("JPEG", {}),
    "progressive JPEG": ("JPEG", {"progressive": True}),
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {}),
    "lossless WebP": ("WEBP", {"lossless": True}),
    "GIF": ("GIF", {}),
    "AVIF": ("AVIF", {}),
    "TIFF": ("TIFF", {}),
    "TIFF, LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "BMP": ("BMP", {}),
}
SEEN_AS = ImagePreprocessing(size=32, mean=(0.5,) * 3, std=(0.5,) * 3)


def _files() -> dict[str, bytes]:
    """A file of each kind, written by a child: encoders start threads, with which a process is not forked from."""
    with tempfile.TemporaryDirectory(prefix="shelfmark-reliability-") as folder:

        def write(kind: str) -> str:
            name, options = KINDS[kind]
            Path(folder, kind).write_bytes(encoded(photo(1, 96, 72), name, **options))
            return "written"

        run_apart(KINDS, write)
        return {kind: Path(folder, kind).read_bytes() for kind in KINDS}


def run(trials: int, seed: int) -> Outcomes:
    """So many mutations over all kinds."""
    logging.disable()
    warnings.simplefilter("ignore")
    outcomes = Outcomes(ALLOWED)
    for kind, whole in _files().items():

        def attempt(trial: int, kind: str = kind, whole: bytes = whole) -> str:
            random = Random(f"{seed} {kind} {trial}")
            data = whole
            for _ in range(random.choice([1, 1, 1, 3, 9])):
                data = damaged(data, random)
            try:
                pixels = decode_image(data, SEEN_AS, 4_000_000)
            except ImageError as error:
                return f"refused: {error.reason}"
            return "decoded" if pixels.shape == (3, 32, 32) else f"shape: {pixels.shape}"

        for trial, outcome in run_apart(range(-(-trials // len(KINDS))), attempt):
            outcomes.add(kind, trial, outcome)
    return outcomes


if __name__ == "__main__":
    run_command("Mutated images", 10_000, run)
