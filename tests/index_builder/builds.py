"""Small catalogs of vectors, and the room's steps called in their order: what most tests here stand on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise

import faiss
import numpy as np
import pyarrow as pa

from index_builder import storage
from index_builder.add import add_shards
from index_builder.codec import CodecInfo, train_codec
from index_builder.embedding_shards import EmbeddingShardWriter, Modality, NumberedShard
from index_builder.exact_search import GroundTruth, exact_neighbours
from index_builder.faiss_files import IndexShard
from index_builder.filter_bitmaps import read_products_file, write_filter_bitmaps
from index_builder.manifest import (
    FILTERS_FILE,
    SEVERAL_ROWS_VERSION,
    CatalogSummary,
    CodecSummary,
    EncoderSummary,
    IndexSummary,
    Manifest,
    RecallSummary,
    SearchSettings,
    index_file_name,
    products_file_name,
    refine_file_name,
)
from index_builder.merge import merge_index_shards
from index_builder.planner import BYTES_PER_DIM, plan_adds, plan_index, plan_refinement, plan_sample, probes_per_factor
from index_builder.publish import publish_version
from index_builder.refine import write_refine_codes
from index_builder.sampling import QuerySet, read_queries, write_sample
from index_builder.spec import IndexConfig, IndexSpec, RefineKind
from index_builder.tuning import SearchChoice, SearchMeasurement, choose_search, measure_search
from index_builder.verify import check_index_shard, check_ranges, check_refine_shard
from index_builder.version_files import StagedFile, staged_bytes, with_nprobe

ENCODER = "0123456789abcdef"


def verify_index(shards: Sequence[IndexShard], *, rows: int, dim: int, codec_fingerprint: str) -> None:
    """Checks the serving shards of a version, each and together, as the workers and the join of a night do."""
    for shard in shards:
        check_index_shard(shard, dim=dim, codec_fingerprint=codec_fingerprint)
    check_ranges(shards, rows=rows)


def verify_refine_codes(shards: Sequence[IndexShard], *, rows: int, dim: int, code_bytes: int) -> None:
    """The same for its refine files."""
    for shard in shards:
        check_refine_shard(shard, dim=dim, code_bytes=code_bytes)
    check_ranges(shards, rows=rows)


def clustered(rows: int, dim: int, *, seed: int = 0) -> np.ndarray:
    """Unit vectors in groups, with variance that falls from axis to axis; exact in float16: float32 [rows, dim]."""
    random = np.random.default_rng(seed)
    scale = np.arange(1, dim + 1) ** -0.7
    centres = random.normal(size=(max(1, rows // 25), dim)) * scale
    vectors = centres[random.integers(0, len(centres), rows)] + 0.5 * random.normal(size=(rows, dim)) * scale
    turned = vectors @ np.linalg.qr(random.normal(size=(dim, dim)))[0]
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    return turned.astype(np.float16).astype(np.float32)


def write_shard(uri: str, vectors: np.ndarray, ids: Sequence[str], *, several_rows: bool = False) -> None:
    """With `several_rows` those of the same id, side by side, are one product."""
    rows, further = len(vectors), np.array([a == b for a, b in pairwise(["", *ids])])
    masks = np.where(further & several_rows, 3 | Modality.FURTHER, 3).astype(np.uint8)
    of_encoder = {"dim": vectors.shape[1], "encoder_fingerprint": ENCODER}
    with EmbeddingShardWriter(uri, **of_encoder, several_rows=several_rows) as writer:
        fingerprints = np.arange(16 * rows, dtype=np.uint32).astype(np.uint8).reshape(rows, 16)
        writer.write(pa.array(ids, pa.string()), vectors, fingerprints, masks)


def write_index(index: faiss.Index, uri: str) -> str:
    """Writes an index file; its sha256."""
    with storage.atomic_file(uri) as path:
        faiss.write_index(index, path)
    return storage.sha256_file(uri)


def write_shards(root: str, vectors: np.ndarray, shard_rows: int) -> list[NumberedShard]:
    shards = []
    for start in range(0, len(vectors), shard_rows):
        part = vectors[start : start + shard_rows]
        uri = storage.join(root, "embeddings", f"{start:07d}.parquet")
        write_shard(uri, part, [f"sku-{row}" for row in range(start, start + len(part))])
        shards.append(NumberedShard(uri=uri, rows=len(part), first_row=start))
    return shards


@dataclass(frozen=True, kw_only=True)
class Build:
    config: IndexConfig
    spec: IndexSpec
    shards: list[NumberedShard]
    codec: CodecInfo
    merged: list[IndexShard]
    refine: RefineKind
    refined: list[IndexShard]
    queries: QuerySet
    truth: GroundTruth
    measured: tuple[SearchMeasurement, ...]
    choice: SearchChoice

    @property
    def staged(self) -> list[StagedFile]:
        """The serving shards as they are published, with the chosen nprobe."""
        return [with_nprobe(shard, self.choice.nprobe) for shard in self.merged]

    @property
    def rows(self) -> int:
        return sum(shard.kept_rows for shard in self.shards)


def build_index(
    root: str, shards: Sequence[NumberedShard], config: IndexConfig, dim: int, *, backwards: bool = False
) -> Build:
    """All steps. `backwards` hands everything on in the opposite order, as workers well might."""
    turn = -1 if backwards else 1
    shards = list(shards)
    rows = sum(shard.kept_rows for shard in shards)
    spec = plan_index(config, rows, dim)
    sample = plan_sample(config, spec, rows)
    samples = [
        write_sample(
            [shard],
            storage.join(root, "sample", f"{number}.parquet"),
            training_share=sample.training_share,
            query_share=sample.query_share,
        )
        for number, shard in enumerate(shards)
    ]
    codec = train_codec(
        samples[::turn],
        spec,
        storage.join(root, "codec"),
        seed=config.seed,
        training_rows=sample.training_rows,
        device=config.device,
    )
    merged = []
    for number, tasks in enumerate(plan_adds(config, spec, shards)):
        parts = [
            add_shards(
                codec, task[::turn], storage.join(root, "parts", f"{number}-{place}.faiss"), device=config.device
            )
            for place, task in enumerate(tasks)
        ]
        uri = storage.join(root, "merged", f"{number}.faiss")
        merged.append(merge_index_shards(parts[::turn], uri, fast_scan=spec.fast_scan != "none"))
    refine = plan_refinement(config, spec)
    refined = []
    if refine != "none":
        for number, tasks in enumerate(plan_adds(config, spec, shards)):
            inputs = [shard for task in tasks for shard in task]
            uri = storage.join(root, "refine", f"{number}.faiss")
            refined.append(write_refine_codes(inputs[::turn], samples[::turn], refine, dim, uri))
        verify_refine_codes(refined, rows=rows, dim=dim, code_bytes=BYTES_PER_DIM[refine] * dim)
    verify_index(merged, rows=rows, dim=dim, codec_fingerprint=codec.fingerprint)
    queries = read_queries(samples[::turn], limit=sample.queries)
    truth = exact_neighbours(queries.vectors, queries.rows, shards[::turn], config.k)
    measured = measure_search(
        [shard.uri for shard in merged],
        queries,
        truth,
        target_recall=config.target_recall,
        refine_uris=[shard.uri for shard in refined],
    )
    choice = choose_search(
        measured, config.target_recall, probes_per_factor=probes_per_factor(spec, refine, rows, config.k)
    )
    return Build(
        config=config,
        spec=spec,
        shards=shards,
        codec=codec,
        merged=merged,
        refine=refine,
        refined=refined,
        measured=measured,
        queries=queries,
        truth=truth,
        choice=choice,
    )


def stage(root: str, build: Build, **columns: pa.Array) -> tuple[dict[str, str | StagedFile], Manifest]:
    """The files and the manifest of a version, ready to publish; with further columns of its products."""
    products = storage.join(root, "products.arrow")
    ids = pa.array([f"sku-{row}" for row in range(build.rows)])
    table = pa.table(
        {
            "product_id": ids,
            "title": pa.array([f"title of {row}" for row in range(build.rows)]),
            "price": pa.array([None if row == 3 else float(row) for row in range(build.rows)], pa.float64()),
            **columns,
        }
    )
    with (
        storage.atomic_file(products) as path,
        pa.OSFile(path, "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table, max_chunksize=500)
    encoder = storage.join(root, "query_encoder", "encoder.json")
    storage.write_json_atomic(encoder, {"model": "none"})
    staged: dict[str, str | StagedFile] = {
        **{index_file_name(n, len(build.merged)): file for n, file in enumerate(build.staged)},
        **{refine_file_name(number, len(build.refined)): shard.uri for number, shard in enumerate(build.refined)},
        "products.arrow": products,
        "query_encoder/encoder.json": encoder,
    }
    manifest = Manifest(
        catalog=CatalogSummary(uri="demo", rows_in=build.rows, products=build.rows),
        encoder=EncoderSummary(model="3tmm", fingerprint=ENCODER, dim=build.spec.dim),
        codec=CodecSummary(fingerprint=build.codec.fingerprint),
        index=IndexSummary(
            spec=build.spec,
            factory=build.spec.factory,
            serving_shards=len(build.merged),
            search=SearchSettings(nprobe=build.choice.nprobe, refine_factor=build.choice.refine_factor),
            refine=build.refine,
        ),
        recall=RecallSummary(k=build.config.k, value=build.choice.recall, queries=len(build.queries.rows)),
        embedding_shards=tuple(shard.uri.rsplit("/", 1)[-1] for shard in build.shards),
    )
    return staged, manifest


def in_parts(root: str, staged: Mapping[str, str | StagedFile], edges: Sequence[int]) -> dict[str, str | StagedFile]:
    """The files of `stage` with the products in several, cut before these rows, and the bitmaps of their columns."""
    name = products_file_name(0, 1)
    source = staged[name]
    with storage.localized(source if isinstance(source, str) else source.uri) as path:
        table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    files = {key: file for key, file in staged.items() if key != name}
    read = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        key = products_file_name(number, len(edges) - 1)
        with storage.atomic_file(storage.join(root, key)) as path, pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table.slice(start, stop - start))
        files[key] = storage.join(root, key)
        read.append(read_products_file(files[key], storage.join(root, f"values-{number}"), of_rows=edges[-1]))
    return files | {FILTERS_FILE: write_filter_bitmaps(read, storage.join(root, "filters"))}


def write_staged(staged: Mapping[str, str | StagedFile], folder: str) -> None:
    """Writes the files of a version into a folder, as they would be published."""
    for name, file in staged.items():
        source = StagedFile(uri=file) if isinstance(file, str) else file
        storage.write_bytes_atomic(storage.join(folder, name), staged_bytes(source))


def published(root: str, rows: int = 300, dim: int = 16, *, seed: int = 0, **config: object) -> str:
    """Publishes an index of random vectors; its address. The vectors are `clustered(rows, dim, seed=seed)`."""
    folder = storage.join(root, f"build-{seed}")
    shards = write_shards(folder, clustered(rows, dim, seed=seed), max(1, rows // 4))
    index = storage.join(root, "index")
    build = build_index(folder, shards, IndexConfig(uri=index, **config), dim)  # type: ignore[arg-type]
    publish_version(index, *stage(folder, build))
    return index


def published_per_image(
    root: str, vectors: np.ndarray, config: IndexConfig, *, now: datetime | None = None, **columns: pa.Array
) -> list[str]:
    """Publishes an index with one to three rows a product, one an image; gives the product id of each row."""
    sizes = [1 + number % 3 for number in range(len(vectors))]
    owners = np.repeat(np.arange(len(vectors)), sizes)[: len(vectors)]
    ids = [f"sku-{owner}" for owner in owners]
    numbers = [1 + row - ids.index(product_id) for row, product_id in enumerate(ids)]
    uri = storage.join(root, "embeddings", "several.parquet")
    write_shard(uri, vectors, ids, several_rows=True)
    shards = [NumberedShard(uri=uri, rows=len(ids), first_row=0)]
    build = build_index(root, shards, config, vectors.shape[1])
    addresses = [f"{product_id}-{number}.jpg" for product_id, number in zip(ids, numbers, strict=True)]
    columns |= {"image_number": pa.array(numbers, pa.int32()), "image_address": pa.array(addresses)}
    staged, manifest = stage(root, build, product_id=pa.array(ids), **columns)
    catalog = replace(manifest.catalog, products=int(owners[-1]) + 1, vectors=len(ids))
    publish_version(
        config.uri, staged, replace(manifest, catalog=catalog, schema_version=SEVERAL_ROWS_VERSION), now=now
    )
    return ids


def build_clustered(root: str, factory: str, target: float = 0.95, shards: int = 2) -> Build:
    """An index of 3,000 clustered vectors of 16 dimensions."""
    config = IndexConfig(uri="x", factory=factory, target_recall=target, serving_shards=shards, verify_queries=150)
    return build_index(root, write_shards(root, clustered(3000, 16), 500), config, 16)
