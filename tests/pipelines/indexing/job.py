"""A small nightly job for tests: a real catalog on disk, a tiny real encoder, the real pipeline."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipelines.config.command_line import load_job_config
from pipelines.indexing import job
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.publish_step import RunResult
from pipelines.indexing.run_record import RunRecord
from tests.encoders.tiny import WORDS, save_tiny_encoder

SCHEMA = pa.schema(
    [
        ("product_id", pa.string()),
        ("title", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("price", pa.float64()),
    ]
)


TOLD = ("manifest.json", "report.html", "report.md", "report.json", "sample.parquet")
"""Files that say when a night was, or that only some tests write."""


def product(number: int, **changes) -> dict:
    """A product with a text and a picture of its own."""
    words = [WORDS[number // 14**place % 14] for place in range(4)]
    colour = (number * 37 % 256, number * 91 % 256, number * 13 % 256)
    file = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(file, "PNG")
    row = {
        "product_id": f"p{number:05d}",
        "title": " ".join(words),
        "image": {"bytes": file.getvalue(), "path": None},
        "price": float(number),
    }
    return row | changes


def write_catalog(folder: Path, rows: list[dict], *, files: int = 2) -> None:
    """Writes rows as Parquet parts; a file that would hold the same bytes is left alone, as a shop's export does."""
    folder.mkdir(parents=True, exist_ok=True)
    share = -(-len(rows) // files)
    for part in range(files):
        table = pa.Table.from_pylist(rows[part * share : (part + 1) * share], schema=SCHEMA)
        path = folder / f"part-{part}.parquet"
        new = io.BytesIO()
        pq.write_table(table, new)
        if not path.exists() or path.read_bytes() != new.getvalue():
            path.write_bytes(new.getvalue())


def arguments(folder: Path, *overrides: str) -> list[str]:
    """The command line of a job whose catalog, work and index lie in `folder`."""
    config = folder / "job.yaml"
    if not config.exists():
        encoder = save_tiny_encoder(folder / "encoder", model="3tmm")
        config.write_text(
            f"""
catalog:
  uri: {folder / "catalog"}
  image_field: image
  display_fields: [title, price]
  shard_rows: 50
encoder:
  uri: {encoder.uri}
  precision: float32
work:
  uri: {folder / "work"}
index:
  uri: {folder / "index"}
  factory: IVF4,PQ4x4
  serving_shards: 2
  rows_per_add: 100
  verify_queries: 40
"""
        )
    return ["--config", str(config), *overrides]


def run_job(folder: Path, *overrides: str) -> tuple[RunResult, RunRecord]:
    """Runs the job in this process."""
    command = load_job_config(arguments(folder, *overrides))
    return job.run_job(CatalogSource(command.config, full=command.flags.full), command.pipeline_options)


def version_files(result: RunResult) -> dict[str, str]:
    """sha256 of the files of a version that must be the same on every run: index, products, dead letters, encoder."""
    root = Path(result.uri)
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name not in TOLD)
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def index_files(result: RunResult) -> dict[str, str]:
    """The same, of the index files alone."""
    return {name: digest for name, digest in version_files(result).items() if name.endswith(".faiss")}
