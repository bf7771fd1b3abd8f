"""The spec says what index is asked for (`IndexConfig`, the `index:` section) and what is built (`IndexSpec`).

`IndexSpec.parse` understands the usual FAISS factory components, separated by commas:

| component | means | here |
|---|---|---|
| `PCA64` | principal components, without centring (the metric is the inner product) | rotation `pca` |
| `PCAR64` | the same, then a seeded random rotation | rotation `pcar` |
| `RR` | a seeded random rotation alone, of all dimensions | rotation `rr` |
| `OPQ16_64` | rotation fitted to 16 sub-quantizers, 64 dimensions out | `opq`, in closed form (see rotation.py) |
| `IVF1024`, `IVF4096_HNSW32` | inverted lists; the second finds them through an HNSW graph | `lists`, `hnsw_links` |
| `PQ16`, `PQ16x8`, `PQ16np` | product quantizer; never polysemous, with or without `np` | code `pq` |
| `PQ63x8+1` | the same behind an `OPQ63_...`, and a byte that corrects the score (see codec.py) | `corrected` |
| `PQ32x4fs`, `PQ32x4fsr` | the same with 4 bits, laid out for SIMD; `r`: of residuals | `pq` with `fast_scan` |
| `RaBitQ`, `RaBitQ4` | 1 to 9 bits a dimension and two numbers a vector (Gao and Long, 2024) | code `rabitq` |
| `SQ8` | one byte a dimension | code `sq8` |
| `Flat` | float32 as it is; without IVF, exact search: one inverted list, for explicit ids | code `flat` |
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from index_builder.errors import SpecError
from index_builder.tags import is_tag

FACTORY_HELP = (
    'a FAISS factory string such as "auto", "Flat", "IVF64,Flat", "OPQ32_128,IVF1024,PQ32x8", '
    '"OPQ64_128,IVF1024,PQ64x4fsr" or "RR,IVF1024,RaBitQ4"'
)
MAX_LISTS = 1 << 20
THUMBNAIL_SIDE = 128
FAST_DIMS_PER_CODE = (2, 4, 8)
"""FAISS has kernels for sub-quantizers of these sizes: about 1 ns a distance, 10 ns with others."""
Device = Literal["cpu", "gpu", "auto"]

RefineKind = Literal["none", "sq8", "fp16"]
"""What candidates are re-ranked from (see refine.py): nothing, or vectors of 8 bits or 16 a dimension."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """The `index:` section of a run's YAML.

    Attributes:
        uri: address of the published index: a folder, local or fsspec.
        factory: `auto`, or a FAISS factory string (see the module).
        bytes_per_vector: code bytes a product may take when `factory` is `auto`, refinement included. Memory of a
            server is about this plus 14 bytes a product. null: as few as reach `target_recall`, as measured on
            held-out products before the index is built, within `server_memory_mb`.
        server_memory_mb: megabytes of codes, ids and refine codes that a server may be given by such a choice. What it
            maps from disk counts. The smallest index is built whatever it takes.
        target_recall: the least share of true neighbours that search should find. `nprobe` is chosen for it, and with
            `bytes_per_vector: null` the bytes of a product: it then holds at k and at 100. Where it is not reached, the
            run says what would.
        refine: a second file to re-rank from: `sq8` (a byte a dimension), `fp16` (two), `none`; `auto`: the one that
            `target_recall` needs, or for which a given `bytes_per_vector` has room. One that is named comes on top of
            `bytes_per_vector`.
        serving_shards: files the index is split into, for servers that share the load.
        rows_per_add: products an add task takes; None: as many as the memory budget allows, at most 200,000.
        seed: of all that is random in training.
        memory_budget_mb: megabytes that the vectors and codes of one step of the build may take (training, adding,
            merging, laying out); a build that needs more is refused before it begins.
        queries_uri: vectors of real queries, to measure recall with, to choose `nprobe` by, and to shape `auto`'s codes
            for (those behind the first `verify_queries`, if at least D): a `.npy` file [Q, D] or a Parquet file with a
            column `vector`. None: products held out of the catalog.
        reuse_codec: keep the codec of the last run while it fits the catalog (see drift.py); false trains each time.
        device: where k-means runs, and the lists of products and their exact neighbours are found: `cpu`; `gpu` (other
            bytes); or `auto`, a GPU on each worker where FAISS sees one.
        training_rows: vectors the codec is trained on; None: as many as the lists need.
        verify_queries: held-out products that recall is measured with. The standard error of recall falls with its
            root: on a million titles 0.0027 with 500, 0.0019 with 1000.
        k: recall is measured as recall k@k.
        keep_versions: published versions to keep; None keeps all.
        thumbnails: write a small picture (WebP) of each product with the version, for the search page and the report:
            true for 128 pixels a side, or how many. About 3 kB a product at 128.
        publish: `auto`: a version that passes its gates is published. `ask`: it is kept and waits for a person, who
            reads its report and says `python -m pipelines.versions approve` or `hold`.
        channel: null: what passes its gates is published. A name such as shadow: it gets this tag instead, beside the
            published version, until `python -m pipelines.versions promote`; the one that had the tag goes, unless it is
            published or has another. Another encoder or index is rehearsed so, at best with a `work.uri` of its own.
    """

    uri: str
    factory: str = "auto"
    bytes_per_vector: int | None = None
    server_memory_mb: int = 4096
    target_recall: float = 0.95
    refine: Literal["auto", "none", "sq8", "fp16"] = "auto"
    serving_shards: int = 1
    rows_per_add: int | None = None
    memory_budget_mb: int = 1024
    queries_uri: str | None = None
    reuse_codec: bool = True
    device: Device = "cpu"
    training_rows: int | None = None
    verify_queries: int = 500
    k: int = 10
    seed: int = 0
    keep_versions: int | None = None
    thumbnails: bool | int = False
    publish: Literal["auto", "ask"] = "auto"
    channel: str | None = None

    def __post_init__(self) -> None:
        _require(bool(self.uri.strip()), "index.uri", self.uri, "a folder, local or an fsspec URI")
        _require(bool(self.factory.strip()), "index.factory", self.factory, FACTORY_HELP)
        tag = "null, or small letters, digits, _ and -, a letter first"
        _require(self.channel is None or is_tag(self.channel), "index.channel", self.channel, tag)
        alone = "null beside index.publish: ask; what a channel rehearses is published by `versions promote` alone"
        _require(self.channel is None or self.publish == "auto", "index.channel", self.channel, alone)
        size = self.bytes_per_vector
        _require(size is None or 1 <= size <= 4096, "index.bytes_per_vector", size, "1 to 4096, or null")
        share = self.target_recall
        _require(0.0 < share <= 1.0, "index.target_recall", share, "a share above 0, at most 1")
        _require(self.device in get_args(Device), "index.device", self.device, "cpu, gpu or auto")
        _require(self.refine in ("auto", "none", "sq8", "fp16"), "index.refine", self.refine, "auto, none, sq8 or fp16")
        side = self.thumbnail_side
        _require(side is None or 16 <= side <= 512, "index.thumbnails", self.thumbnails, "true, false, or 16 to 512")
        _require(self.publish in ("auto", "ask"), "index.publish", self.publish, "auto or ask")
        least_values = {"serving_shards": 1, "memory_budget_mb": 16, "verify_queries": 1, "k": 1, "seed": 0}
        least_values |= {"server_memory_mb": 1}
        for key, least in least_values.items():
            _require(getattr(self, key) >= least, f"index.{key}", getattr(self, key), f"{least} or more")
        for key in ("training_rows", "keep_versions", "rows_per_add"):
            value = getattr(self, key)
            _require(value is None or value >= 1, f"index.{key}", value, "1 or more, or null")

    @property
    def thumbnail_side(self) -> int | None:
        """Pixels of a thumbnail's longer side; None where none are made."""
        if isinstance(self.thumbnails, bool):
            return THUMBNAIL_SIDE if self.thumbnails else None
        return self.thumbnails


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexSpec:
    """A fully resolved index.

    Attributes:
        dim: D of the embeddings.
        rotation: linear map in front (see the module).
        rotation_dim: dimensions behind the map (D without one).
        lists: inverted lists, L; 1 is exact search where the code is `flat`.
        hnsw_links: links a node of the HNSW graph that finds lists; 0: lists are found by comparing with all centroids.
        code: how a vector is kept.
        pq_m, pq_bits: sub-quantizers of `pq` and bits of each, else 0.
        fast_scan: layout of a `pq` of 4 bits that is searched with SIMD, and wholly in memory: `fs` codes the vectors,
            `fsr` what the coarse quantizer leaves over; `none`: lists that are mapped from disk.
        rabitq_bits: bits a dimension of `rabitq`, else 0.
        corrected: a `pq` with one more byte, which makes up for what the others miss where it counts most.
    """

    dim: int
    rotation: Literal["none", "pca", "pcar", "rr", "opq"] = "none"
    rotation_dim: int
    lists: int
    hnsw_links: int = 0
    code: Literal["flat", "sq8", "rabitq", "pq"]
    pq_m: int = 0
    pq_bits: int = 0
    fast_scan: Literal["none", "fs", "fsr"] = "none"
    rabitq_bits: int = 0
    corrected: bool = False

    def __post_init__(self) -> None:
        _require(self.dim >= 1, "index spec: dim", self.dim, "1 or more")
        kept = self.rotation_dim
        if self.rotation in ("none", "rr"):
            key = "index spec: rotation_dim" if self.rotation == "none" else "index.factory: dimensions of RR"
            _require(kept == self.dim, key, kept, f"{self.dim} without a rotation that keeps fewer")
        fits, expected = 1 <= kept <= self.dim, f"1 to {self.dim}, the encoder's dimension"
        _require(fits, "index.factory: dimensions after the rotation", kept, expected)
        _require(1 <= self.lists <= MAX_LISTS, "index.factory: inverted lists", self.lists, f"1 to {MAX_LISTS}")
        _require(self.hnsw_links in (0, *range(4, 129)), "index.factory: HNSW links", self.hnsw_links, "4 to 128")
        if self.corrected:
            fits = self.code == "pq" and self.pq_bits == 8 and self.fast_scan == "none" and self.rotation == "opq"
            found, expected = f"+1 behind {self.rotation} and {self.code}", "OPQ and a PQ of 8 bits in front of it"
            _require(fits, "index.factory: correction", found, expected)
            expected = f"1 to {kept}, the dimensions it codes"
            _require(1 <= self.pq_m <= kept, "index.factory: sub-quantizers of PQ", self.pq_m, expected)
        elif self.code == "pq":
            divisors = [d for d in range(1, kept + 1) if kept % d == 0]
            expected = f"a divisor of {kept}, the dimensions it codes ({', '.join(map(str, divisors))})"
            _require(self.pq_m in divisors, "index.factory: sub-quantizers of PQ", self.pq_m, expected)
            _require(4 <= self.pq_bits <= 12, "index.factory: bits of PQ", self.pq_bits, "4 to 12 (8 is usual)")
        elif self.pq_m or self.pq_bits:
            raise SpecError(
                f"index spec: pq_m and pq_bits are {self.pq_m} and {self.pq_bits}, expected 0 for code {self.code}"
            )
        if self.fast_scan != "none":
            fits = self.code == "pq" and self.pq_bits == 4 and self.pq_m % 2 == 0
            found, expected = f"PQ{self.pq_m}x{self.pq_bits}", "a PQ of 4 bits and an even number of sub-quantizers"
            _require(fits, "index.factory: fast scan of", found, expected)
        fits = 1 <= self.rabitq_bits <= 9 if self.code == "rabitq" else self.rabitq_bits == 0
        _require(fits, "index.factory: bits of RaBitQ", self.rabitq_bits, "1 to 9, and 0 for other codes")

    @classmethod
    def parse(cls, factory: str, dim: int) -> IndexSpec:
        """The spec that a FAISS factory string names, for vectors of `dim`.

        Raises:
            SpecError: a component is not known, stands in the wrong place, or does not fit `dim`.
        """
        components = [component.strip() for component in factory.split(",")]
        values: dict[str, Any] = {"dim": dim, "rotation_dim": dim, "lists": 1}
        opq_m = 0
        if found := re.fullmatch(r"(PCAR?)(\d+)", components[0]):
            values |= {"rotation": found[1].lower(), "rotation_dim": int(found[2])}
        elif found := re.fullmatch(r"OPQ(\d+)(?:_(\d+))?", components[0]):
            opq_m = int(found[1])
            values |= {"rotation": "opq", "rotation_dim": int(found[2] or dim)}
        elif found := re.fullmatch(r"RR(\d+)?", components[0]):
            values |= {"rotation": "rr", "rotation_dim": int(found[1] or dim)}
        if "rotation" in values:
            components = components[1:]
        if components and (found := re.fullmatch(r"IVF(\d+)(?:_HNSW(\d+))?", components[0])):
            values |= {"lists": int(found[1]), "hnsw_links": int(found[2] or 0)}
            components = components[1:]
        if len(components) != 1:
            rest = repr(",".join(components)) if components else "nothing"
            raise _unknown(factory, f"{rest} where one of Flat, SQ8, PQ or RaBitQ should end it")
        if found := re.fullmatch(r"PQ(\d+)(?:x(\d+))?(?:np|(\+1))?", components[0]):
            values |= {"code": "pq", "pq_m": int(found[1]), "pq_bits": int(found[2] or 8), "corrected": bool(found[3])}
        elif found := re.fullmatch(r"PQ(\d+)(?:x(\d+))?(fsr?)", components[0]):
            values |= {"code": "pq", "pq_m": int(found[1]), "pq_bits": int(found[2] or 4), "fast_scan": found[3]}
        elif found := re.fullmatch(r"RaBitQ(\d)?", components[0]):
            values |= {"code": "rabitq", "rabitq_bits": int(found[1] or 1)}
        elif components[0] in ("Flat", "SQ8"):
            values["code"] = components[0].lower()
        else:
            raise _unknown(factory, f"component {components[0]!r}")
        if opq_m and opq_m != values.get("pq_m"):
            raise _unknown(factory, f"OPQ{opq_m} in front of {components[0]}: expected PQ{opq_m} behind it")
        return cls(**values)

    @property
    def exact(self) -> bool:
        """Whether search compares with every stored vector as it is."""
        return self.code == "flat" and self.lists == 1 and self.rotation == "none"

    @property
    def code_bytes(self) -> int:
        """Bytes that one vector's code takes."""
        # RaBitQ: a sign a dimension and two numbers; further bits, and three numbers that belong to them.
        further = self.rabitq_bits - 1
        return {
            "flat": 4 * self.rotation_dim,
            "sq8": self.rotation_dim,
            "rabitq": (self.rotation_dim + 7) // 8 + 8 + (further > 0) * ((self.rotation_dim * further + 7) // 8 + 12),
            "pq": (self.pq_m * self.pq_bits + 7) // 8 + self.corrected,
        }[self.code]

    @property
    def memory_mapped(self) -> bool:
        """Whether a server maps the lists from disk; FastScan's must be in memory."""
        return self.fast_scan == "none"

    @property
    def dims_per_code(self) -> int:
        """Dimensions of a sub-quantizer, 0 without PQ; of a corrected one at most, the others are zero."""
        if not self.pq_m:
            return 0
        dims = -(-self.rotation_dim // self.pq_m)
        return next((fast for fast in FAST_DIMS_PER_CODE if fast >= dims), dims) if self.corrected else dims

    @property
    def index_dim(self) -> int:
        """Dimensions of the FAISS index behind the map."""
        return (self.pq_m + 1) * self.dims_per_code if self.corrected else self.rotation_dim

    @property
    def factory(self) -> str:
        """The factory string that `parse` turns into this spec again."""
        if self.exact:
            return "Flat"
        dims = self.rotation_dim
        rotation = {"pca": f"PCA{dims}", "pcar": f"PCAR{dims}", "rr": "RR", "opq": f"OPQ{self.pq_m}_{dims}"}
        coarse = f"IVF{self.lists}" + (f"_HNSW{self.hnsw_links}" if self.hnsw_links else "")
        code = {
            "flat": "Flat",
            "sq8": "SQ8",
            "rabitq": f"RaBitQ{self.rabitq_bits}" if self.rabitq_bits > 1 else "RaBitQ",
            "pq": f"PQ{self.pq_m}x{self.pq_bits}{'' if self.memory_mapped else self.fast_scan}"
            + ("+1" if self.corrected else ""),
        }
        return ",".join(filter(None, [rotation.get(self.rotation), coarse, code[self.code]]))

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        # Fingerprints cover this: what later versions added is there only where it is used.
        return values if self.corrected else {key: value for key, value in values.items() if key != "corrected"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> IndexSpec:
        """The inverse of `to_dict`; SpecError names a key that is missing or not known."""
        known = {field.name for field in fields(cls)}
        if extra := sorted(set(values) - known):
            raise SpecError(f"index spec: unknown key {extra[0]!r}; expected {', '.join(sorted(known))}")
        try:
            return cls(**values)
        except TypeError as error:
            raise SpecError(f"index spec: {error}") from error


def _require(fits: bool, key: str, value: object, expected: str) -> None:
    if not fits:
        raise SpecError(f"{key} is {value!r}, expected {expected}")


def _unknown(factory: str, what: str) -> SpecError:
    return SpecError(f"index.factory is {factory!r}: cannot use {what}. Expected {FACTORY_HELP}")
