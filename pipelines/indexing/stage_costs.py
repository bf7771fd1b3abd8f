"""The cost of a run is reckoned stage by stage, by the formulas of COST.md, from how much there is to do.

What a machine needs for a unit of work are first guesses here, made on one core of the machine that COST.md names;
`rates` puts what was measured in their place. Bytes, files and requests follow from the formats and need no guess.

Legend: `N` rows of the index, `D` dimension of the embeddings, `R` dimensions behind the rotation, `L` inverted lists,
`T` training rows, `Q` held-out queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from index_builder.planner import BYTES_PER_DIM, estimate_memory, plan_sample, rows_per_add
from index_builder.spec import IndexConfig, IndexSpec, RefineKind
from pipelines.indexing.build_steps import SHARDS_OF_SAMPLE
from pipelines.indexing.product_groups import ROWS_OF_GROUP, SHARDS_OF_GROUP
from pipelines.indexing.tower_memory import KEPT_BYTES

# One core's seconds. Where each was measured stands in COST.md.
READ_SECONDS = 3.5e-5
CARRY_SECONDS = 6e-5
FETCH_SECONDS = 3e-4
DECODE_SECONDS_PER_BYTE = 8e-9
LEAST_DECODE_SECONDS = 2e-4
OPERATIONS_PER_SECOND = {"float32": 9e10, "bfloat16": 3e11, "float16": 9e10, "int8": 2e11}
GPU_OPERATIONS_PER_SECOND = 1e14
SMALL_TOWER_OPERATIONS = 2e8
"""Added to those of a tower: small ones are slower than their arithmetic."""
UNKNOWN_TOWER_OPERATIONS = 5e9
START_SECONDS = 3.8
LOAD_SECONDS = 2.4
LOAD_SECONDS_PER_WEIGHT = 2e-8
PLAN_SECONDS = 2.1
PLAN_SECONDS_PER_SHARD = 1e-4
LOOKUP_SECONDS = 2e-6
NUMBER_SECONDS = 4e-6
SAMPLE_SECONDS = 3e-6
TASK_SECONDS = 4e-3
MULTIPLY_ADDS_PER_SECOND = 1e10
CODE_SECONDS = 2e-6
SECONDS_PER_BYTE_COPIED = 3e-9
VERIFY_SECONDS = 1.1
TRAIN_SECONDS = 0.1
VERIFY_ROW_SECONDS = 1e-7
TUNING_SECONDS = 5.0
PUBLISH_SECONDS = 1.2

# Bytes.
ID_BYTES = 12
FINGERPRINT_BYTES = 17
SORTED_RECORD_BYTES = 24
PROCESS_BYTES = 350e6
TOWERS_BYTES = 900e6
SHARD_OBJECT_BYTES = 2_000
CODEC_BYTES_PER_LIST = 4

SHARD_REQUESTS = {"plan": 0.01, "embed": 19.0, "import": 19.0, "number": 5.3, "sample": 1.8, "train": 3.3, "add": 2.0}
"""Of a store for each embedding shard; a listing names 1,000 files. `tests.benchmarks.bill requests` counts them."""
TASK_REQUESTS = {"number": 30.0, "sample": 7.0, "train": 19.0, "refine": 10.0, "add": 10.0, "merge": 17.0}
TASK_REQUESTS |= {"verify": 70.0, "publish": 20.0}
"""For each task of a stage, besides; counted there too."""
RUN_REQUESTS = 25
"""Of the plan, whatever the size."""
DEFAULT_IMAGE_BYTES = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Towers:
    """What the product side of an encoder costs.

    Attributes:
        text, image: Operations of a text and of an image; 0 where there is none.
        weights: Numbers in the towers.
        precision: Number format in which they run.
        on_gpu: Whether they run on a GPU.
    """

    text: float = 0.0
    image: float = 0.0
    weights: int = 0
    precision: str = "float32"
    on_gpu: bool = False

    def seconds(self, operations: float) -> float:
        """Of one core, or of the GPU."""
        if self.on_gpu:
            return operations / GPU_OPERATIONS_PER_SECOND
        speed = OPERATIONS_PER_SECOND.get(self.precision, OPERATIONS_PER_SECOND["float32"])
        return (operations + SMALL_TOWER_OPERATIONS * (operations > 0)) / speed


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """How much a run has to do.

    Attributes:
        rows: Of the catalog.
        products: Of the version; `embedded` and `carried` of them in this run, the rest stands complete.
        index_rows: N: one a product, or one an image.
        shards: Embedding shards; `open_shards` of them are made in this run.
        images: A product, on average, and their bytes each; `images_outside` of them are fetched.
        catalog_bytes, column_bytes: Read of the catalog in all, and written of a product's columns.
        trains: Whether a codec is trained, and not the last one kept.
        published: Products of the published version, which carry-over looks up.
    """

    rows: int
    products: int
    embedded: int
    carried: int
    index_rows: int
    shards: int
    open_shards: int
    spec: IndexSpec
    index: IndexConfig
    towers: Towers
    refine: RefineKind = "none"
    images: float = 0.0
    images_outside: float = 0.0
    image_bytes: float = DEFAULT_IMAGE_BYTES
    catalog_bytes: float = 0.0
    column_bytes: float = 60.0
    trains: bool = True
    published: int = 0
    imports: bool = False

    def scaled(self, rows: int, spec: IndexSpec) -> Workload:
        """The same shares of another number of rows."""
        share = rows / self.rows
        counts = {
            name: round(getattr(self, name) * share)
            for name in ("products", "embedded", "carried", "index_rows", "published", "catalog_bytes")
        }
        shards = {name: max(1, round(getattr(self, name) * share)) for name in ("shards", "open_shards")}
        return replace(self, rows=rows, spec=spec, **counts, **shards)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCost:
    """What a stage costs in all, on however many workers.

    Attributes:
        units: What a given rate is a rate of.
        tasks: That workers can share; 1: one worker does it all.
        cpu_seconds: Of all tasks, `cpu_seconds_fixed` among them, which do not grow with the work.
        busy_seconds: How long the tasks take, one after the other.
        memory: Bytes of one worker.
        read, written, scratch: Bytes of the store, of the store, and of a worker's own disk.
        kept: Bytes that stay when the run is over.
    """

    stage: str
    units: int
    tasks: int
    cpu_seconds: float
    busy_seconds: float
    memory: float
    read: float = 0.0
    written: float = 0.0
    scratch: float = 0.0
    kept: float = 0.0
    requests: float = 0.0
    source: str = "guess"

    def wall_seconds(self, workers: int) -> float:
        """Of so many workers: whole tasks, the last of which some wait for."""
        return math.ceil(self.tasks / workers) * self.busy_seconds / self.tasks


def index_bytes(work: Workload) -> float:
    """Of the index and refine files of a version: codes and ids, centroids, and what candidates are re-ranked from."""
    spec, rows = work.spec, work.index_rows
    centroids = spec.lists * CODEC_BYTES_PER_LIST * spec.index_dim
    return rows * (spec.code_bytes + 8 + BYTES_PER_DIM[work.refine] * spec.dim) + centroids


def stage_costs(work: Workload, workers: int = 1) -> tuple[StageCost, ...]:
    """First guesses of all stages, in their order; one whose work is nothing is left out."""
    spec, dim, rows = work.spec, work.spec.dim, work.index_rows
    sample = plan_sample(work.index, spec, rows)
    training_rows = min(rows, sample.training_rows) if work.trains and not spec.exact else 0
    memory = estimate_memory(work.index, spec, rows=rows, training_rows=training_rows, refine=work.refine)
    vector_bytes = 2 * dim + ID_BYTES + FINGERPRINT_BYTES
    entry_bytes = spec.code_bytes + 8
    refine_bytes = rows * BYTES_PER_DIM[work.refine] * dim
    list_bytes = index_bytes(work) - refine_bytes
    products_bytes = rows * (ID_BYTES + work.column_bytes)
    searched = list_bytes + refine_bytes + products_bytes
    sampled = (training_rows + sample.queries) * (2 * dim + FINGERPRINT_BYTES)
    adds = max(1, math.ceil(rows / rows_per_add(work.index, spec)))
    serving = min(work.index.serving_shards, adds)
    files = serving * (2 if work.refine != "none" else 1)

    def cost(stage: str, seconds: float, *, tasks: int = 1, units: int = rows, used: float = 0.0, **sizes) -> StageCost:
        requests = SHARD_REQUESTS.get(stage, 0.0) * work.shards + TASK_REQUESTS.get(stage, 0.0) * tasks
        facts = {"memory": PROCESS_BYTES + used, "requests": requests, **sizes}
        return StageCost(stage=stage, units=units, tasks=tasks, cpu_seconds=seconds, busy_seconds=seconds, **facts)

    plan_seconds = PLAN_SECONDS + PLAN_SECONDS_PER_SHARD * work.shards
    groups = max(1, math.ceil(work.shards / SHARDS_OF_GROUP), math.ceil(rows / ROWS_OF_GROUP))
    stages = [
        cost("start", START_SECONDS * workers, tasks=workers, units=workers),
        cost(
            *("plan", plan_seconds),
            units=work.shards,
            used=work.shards * SHARD_OBJECT_BYTES,
            requests=RUN_REQUESTS + SHARD_REQUESTS["plan"] * work.shards,
        ),
        *_making(work, vector_bytes, workers, cost),
        cost(
            *("number", NUMBER_SECONDS * rows + TASK_SECONDS * work.shards),
            tasks=groups,
            used=4 * SORTED_RECORD_BYTES * rows / groups + work.shards * SHARD_OBJECT_BYTES,
            read=products_bytes + 2 * SORTED_RECORD_BYTES * work.products,
            written=products_bytes + SORTED_RECORD_BYTES * work.products,
            scratch=products_bytes / groups,
        ),
        cost(
            *("sample", SAMPLE_SECONDS * rows + TASK_SECONDS * work.shards),
            tasks=math.ceil(work.shards / SHARDS_OF_SAMPLE),
            read=rows * ID_BYTES + sampled,
            written=sampled,
        ),
        cost(
            *("train", _training_seconds(work, training_rows, sample.queries)),
            used=max(memory.training, sampled),
            read=rows * 2 * dim + sampled,
        ),
    ]
    if work.refine != "none":
        seconds = CODE_SECONDS * rows + SECONDS_PER_BYTE_COPIED * refine_bytes
        stages.append(cost("refine", seconds, tasks=serving, read=rows * 2 * dim, written=refine_bytes))
    copied = SECONDS_PER_BYTE_COPIED * searched
    stages += [
        cost(
            *("add", rows * _seconds_to_add(spec) + TASK_SECONDS * work.shards),
            tasks=adds,
            used=memory.adding,
            read=rows * 2 * dim,
            written=list_bytes,
        ),
        cost(
            *("merge", 2 * SECONDS_PER_BYTE_COPIED * list_bytes + VERIFY_ROW_SECONDS * rows + TASK_SECONDS * adds),
            tasks=serving,
            used=max(memory.laying_out, entry_bytes * rows / spec.lists),
            read=list_bytes,
            written=list_bytes,
            scratch=2 * list_bytes / serving,
        ),
        cost(
            *("verify", VERIFY_SECONDS + _tuning_seconds(work)),
            used=memory.serving / 4,
            read=searched,
            scratch=searched,
        ),
        cost(
            *("publish", PUBLISH_SECONDS + copied),
            tasks=files + groups,
            read=searched,
            written=searched,
            kept=searched,
            scratch=searched / (files + groups),
        ),
    ]
    return tuple(stages)


def _making(work: Workload, vector_bytes: float, workers: int, cost) -> list[StageCost]:
    """Of the embedding shards: by the towers, by carry-over, or from vectors that stand."""
    if work.imports:
        size = work.products * vector_bytes
        seconds = READ_SECONDS * work.products
        return [cost("import", seconds, tasks=work.shards, units=work.products, read=size, written=size, kept=size)]
    towers, share = work.towers, work.embedded / max(1, work.embedded + work.carried)
    made = work.embedded + work.carried
    memory = TOWERS_BYTES + 6.0 * towers.weights + KEPT_BYTES * ((towers.text > 0) + (towers.image > 0))
    loads = min(workers, work.open_shards) if made else 0
    rows_bytes = made * (vector_bytes + work.column_bytes)
    fetched = work.embedded * work.images_outside * work.image_bytes
    read = work.catalog_bytes * made / max(1, work.products)
    images = {"images": work.images, "outside": work.images_outside, "image_bytes": work.image_bytes}
    per_product, on_gpu = seconds_of_product(towers, **images)
    stages = []
    if loads:
        stages.append(
            cost(
                "load",
                loads * (LOAD_SECONDS + LOAD_SECONDS_PER_WEIGHT * towers.weights),
                tasks=loads,
                units=loads,
                used=memory,
            )
        )
    shards = max(1, work.open_shards)
    for stage, products, seconds, part in (
        ("embed", work.embedded, per_product, share),
        ("carry", work.carried, CARRY_SECONDS + LOOKUP_SECONDS * work.published / max(1, work.carried), 1 - share),
    ):
        if products:
            made_here = cost(
                *(stage, seconds * products),
                tasks=max(1, round(shards * part)),
                units=products,
                used=memory,
                read=read * part + (fetched if stage == "embed" else products * 2 * work.spec.dim),
                written=rows_bytes * part,
                kept=rows_bytes * part,
                requests=SHARD_REQUESTS["embed"] * shards * part
                + (products * work.images_outside if stage == "embed" else 0),
            )
            busy = max(seconds, on_gpu) * products if stage == "embed" else made_here.busy_seconds
            stages.append(replace(made_here, busy_seconds=busy))
    return stages


def seconds_of_product(towers: Towers, *, images: float, outside: float, image_bytes: float) -> tuple[float, float]:
    """First guess of one core's, and of the GPU's, seconds for a product that goes through the towers.

    Args:
        images, outside: Of a product, and those of them that are fetched.
        image_bytes: Of each.
    """
    decoding = max(LEAST_DECODE_SECONDS, DECODE_SECONDS_PER_BYTE * image_bytes)
    seconds = READ_SECONDS + images * decoding + outside * FETCH_SECONDS
    on_towers = towers.seconds(towers.text) + images * towers.seconds(towers.image)
    return (seconds, on_towers) if towers.on_gpu else (seconds + on_towers, 0.0)


def _training_seconds(work: Workload, training_rows: int, queries: int) -> float:
    """The true neighbours of the held-out products, and the codec where one is trained."""
    spec, rows = work.spec, work.index_rows
    products = float(queries) * rows * spec.dim
    if training_rows:
        lists = spec.lists if spec.lists < 2048 else 4 * math.sqrt(spec.lists)
        products += training_rows * (spec.dim * spec.rotation_dim + 8.0 * lists * spec.rotation_dim)
        products += min(training_rows, 16_384) * 8.0 * 256 * spec.rotation_dim * (spec.code == "pq")
    open_choice = work.index.factory == "auto" and work.index.bytes_per_vector is None and not spec.exact
    tuning = TUNING_SECONDS * (open_choice and work.trains)
    return TRAIN_SECONDS * bool(training_rows) + products / MULTIPLY_ADDS_PER_SECOND + tuning


def _seconds_to_add(spec: IndexSpec) -> float:
    """Rotation, nearest list and code of one vector."""
    if spec.exact:
        return SECONDS_PER_BYTE_COPIED * spec.code_bytes
    lists = spec.lists if spec.lists < 1024 else 12 * math.sqrt(spec.lists)
    products = spec.dim * spec.rotation_dim + lists * spec.rotation_dim
    products += 2**spec.pq_bits * spec.rotation_dim if spec.code == "pq" else 4 * spec.rotation_dim
    return CODE_SECONDS + products / MULTIPLY_ADDS_PER_SECOND


def _tuning_seconds(work: Workload) -> float:
    """Searching with settings of ever more probes, 64 in all lists' sixteenth."""
    spec, queries = work.spec, min(work.index.verify_queries, work.index_rows)
    compared = work.index_rows * min(1.0, 128 / spec.lists) if not spec.exact else work.index_rows
    return queries * compared * max(1, spec.code_bytes) * 2e-11 * 8
