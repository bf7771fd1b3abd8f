"""The frontier: bytes against recall against time, of each kind of code that can be built, over the same lists.

    python -m tests.benchmarks.frontier FOLDER [--bytes 32 48 64 80 128 228] [--queries 1000] [--plot FILE.png]

FOLDER is made by `tests.benchmarks.vectors`. The centroids of the lists are trained once, and every vector gets its
list once, so that only codes differ. Each is then trained, the vectors encoded and searched by FAISS through an HNSW
graph over the centroids (from 2,048 lists on), one query at a time on one thread. Bytes are those of the finished file
for each vector: code, id (8), and its share of centroids, graph and rotation. The build of a version as a whole is
measured by `index_build`.

The bound: the least mean squared distortion that any code of so many bits can have on Gaussian residuals with these
eigenvalues ("reverse water-filling": Cover and Thomas, *Elements of Information Theory*, sec. 10.3.3), and the recall
of vectors that are distorted just so ("test channel"). It bounds distortion, not recall: a code that spends its bits on
what queries see may find more at a greater distortion. Beside each code that can be decoded stands its distortion over
the bound's at its bits.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np

from index_builder.add import BlockEncoder
from index_builder.codec import build_codec
from index_builder.faiss_files import faiss_threads, ivf_of
from index_builder.kmeans import ListAssigner, train_centroids
from index_builder.planner import HNSW_FROM_LISTS, HNSW_LINKS, TRAINING_ROWS_PER_LIST, plan_index
from index_builder.rotation import principal_axes
from index_builder.spec import IndexConfig, IndexSpec
from tests.benchmarks.machine import command_line, machine_line

K = 100
BLOCK_ROWS = 16_384
BOUND_QUERIES = 60
CODE_SAMPLE_ROWS = 40_000
"""Vectors that rotations and codes are trained on."""
REFINED = (2, 4)
"""Candidates that are re-ranked for each neighbour."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One code, measured: bytes a vector, and recall, distortion and time."""

    name: str
    kind: str
    stored: float
    recall_100: float
    recall_10: float
    ms: float
    distortion: float | None = None
    over_bound: float | None = None
    encode_us: float = 0.0

    def __str__(self) -> str:
        distortion = "" if self.distortion is None else f"{self.distortion:.4f}"
        over = "" if self.over_bound is None else f"{self.over_bound:.2f}"
        return (
            f"| {self.name} | {self.stored:.1f} | {self.recall_100:.4f} | {self.recall_10:.4f} | {self.ms:.3f} | "
            f"{distortion} | {over} | {self.encode_us:.1f} |"
        )


def main() -> None:
    """Measures, prints a table and draws it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bytes", type=int, nargs="+", default=[32, 48, 64, 80, 128, 228])
    parser.add_argument("--lists", type=int, help="default: as the planner would")
    parser.add_argument("--probes", type=int, default=16)
    parser.add_argument("--queries", type=int, default=1000, help="fewer: only the lists that they probe are encoded")
    parser.add_argument("--only", default="", help="a regular expression that names match")
    parser.add_argument("--factories", nargs="*", default=[], help="further ones, without their lists")
    parser.add_argument("--shaping", type=Path, help="further queries, .npy: auto is also shaped for them")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    print(command_line(), machine_line("faiss-cpu", "numpy"), sep="\n")
    with faiss_threads(1):
        lists = VectorLists(arguments.folder, arguments.lists, arguments.probes, arguments.queries)
        print(
            f"{len(lists.vectors):,} vectors, {lists.vectors.dim} dimensions, {len(lists.centroids):,} lists, ", end=""
        )
        print(
            f"{lists.probes} probed, {len(lists.queries)} queries; {len(lists.rows):,} vectors in the lists they probe"
        )
        print("| code | bytes | 100@100 | 10@10 | ms | distortion | over bound | us to encode |")
        print("|---|---|---|---|---|---|---|---|")
        points = []
        shaping = None if arguments.shaping is None else np.load(arguments.shaping)
        for point in measured(lists, arguments.bytes, arguments.only, arguments.factories, shaping):
            points.append(point)
            print(point, flush=True)
    if arguments.plot:
        draw(points, arguments.folder.name, lists, arguments.plot)


class Vectors:
    """The vectors of a folder's files, as one array that is mapped."""

    def __init__(self, folder: Path) -> None:
        self._files = [np.load(path, mmap_mode="r") for path in sorted((folder / "emb").glob("*.npy"))]
        self._starts = np.cumsum([0, *map(len, self._files)])
        self.dim = self._files[0].shape[1]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, D] of ascending row numbers int64 [n]."""
        files = np.searchsorted(self._starts, rows, side="right") - 1
        parts = [self._files[f][rows[files == f] - self._starts[f]] for f in np.unique(files)]
        return np.concatenate(parts).astype(np.float32, copy=False)


class VectorLists:
    """The vectors, their lists, and what they are searched with: what all codes share."""

    def __init__(self, folder: Path, lists: int | None, probes: int, queries: int) -> None:
        self.vectors = Vectors(folder)
        rows = len(self.vectors)
        self.queries = np.load(folder / "q.npy")[:queries].astype(np.float32)
        self.truth = np.load(folder / "gt.npy")[:queries]
        planned = plan_index(IndexConfig(uri="-"), rows, self.vectors.dim)
        random = np.random.default_rng(0)
        lists = lists or planned.lists
        drawn = random.choice(rows, min(rows, max(TRAINING_ROWS_PER_LIST * lists, 50_000)), replace=False)
        sample = self.vectors[np.sort(drawn)]
        self.centroids = train_centroids(sample, lists, seed=0)
        self.sample = sample[:: max(1, len(sample) // CODE_SAMPLE_ROWS)]
        assigner = ListAssigner(self.centroids)
        blocks = [np.arange(start, min(start + BLOCK_ROWS, rows)) for start in range(0, rows, BLOCK_ROWS)]
        self.lists = np.concatenate([assigner.assign(self.vectors[block]) for block in blocks])
        self.probes = min(probes, lists)
        # The graph finds a few other lists than a comparison with all centroids: two more are kept.
        kept = min(lists, self.probes + 2)
        near = np.argpartition(self.queries @ -self.centroids.T, kept - 1, axis=1)[:, :kept]
        probed = np.zeros(lists, dtype=bool)
        probed[near.ravel()] = True
        self.rows = np.flatnonzero(probed[self.lists])

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Row numbers int64 [n], lists int64 [n] and vectors float32 [n, D] of the lists that are probed."""
        for start in range(0, len(self.rows), BLOCK_ROWS):
            rows = self.rows[start : start + BLOCK_ROWS]
            yield rows, self.lists[rows], self.vectors[rows]

    @cached_property
    def residuals(self) -> np.ndarray:
        """What the centroids leave over of some vectors: float32 [n, D]."""
        rows = self.rows[:: max(1, len(self.rows) // 20_000)]
        return self.vectors[rows] - self.centroids[self.lists[rows]]

    @cached_property
    def spectrum(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues float64 [D], descending, and axes [D, D] of the residuals."""
        return principal_axes(self.residuals, self.vectors.dim)

    def distortions(self, bits: float) -> np.ndarray:
        """The least distortion of each principal axis of the residuals at so many bits a vector: float64 [D]."""
        variances = np.maximum(self.spectrum[0], 1e-12)
        low, high = 0.0, float(variances[0])
        for _ in range(60):
            level = (low + high) / 2
            if 0.5 * np.log2(np.maximum(variances / level, 1)).sum() > bits:
                low = level
            else:
                high = level
        return np.minimum(variances, high)

    def recalls(self, found: np.ndarray) -> tuple[float, float]:
        """Recall 100@100 and 10@10 of rows int64 [Q, 100]."""
        truth = self.truth[: len(found)]
        return tuple(
            float(np.mean([len(np.intersect1d(a[:k], b[:k])) for a, b in zip(found, truth, strict=True)]) / k)
            for k in (K, 10)
        )  # type: ignore[return-value]


def measured(
    lists: VectorLists, sizes: list[int], only: str, further: list[str], shaping: np.ndarray | None
) -> Iterator[Point]:
    """Every code of each size that fits, the bound at that size, and codes with vectors to re-rank from."""
    dim, wanted = lists.vectors.dim, re.compile(only)
    for size in sizes:
        if wanted.search("bound"):
            yield bound(lists, size)
        for kind, factory in dict(factories(size, dim)).items():
            if wanted.search(factory):
                yield from measure(lists, kind, factory, refined=kind == "auto" and size <= dim // 4)
            if kind == "auto" and shaping is not None and "+1" in factory:
                yield from measure(lists, "auto, shaped", factory, shaping=shaping)
    for factory in ("SQ8", *further):
        if wanted.search(factory):
            yield from measure(lists, "SQ8" if factory == "SQ8" else "other", factory)


def factories(size: int, dim: int) -> Iterator[tuple[str, str]]:
    """Kinds of codes, and for each the factory string of about `size` bytes without its lists."""
    planned = plan_index(IndexConfig(uri="-", bytes_per_vector=size, refine="none"), 1_000_000, dim)
    yield "auto", re.sub(r"IVF[^,]*,", "", planned.factory)
    if size <= dim // 2:
        dims = 4 if 4 * size <= dim else 2
        yield "PQ 8 bit", f"OPQ{size}_{dims * size},PQ{size}x8"
    if 4 * size <= dim:
        yield "PQ 4 bit FastScan", f"OPQ{2 * size}_{4 * size},PQ{2 * size}x4fsr"
    for bits in range(1, 6):
        dims = min(dim, (size - (8 if bits == 1 else 20)) * 8 // bits // 8 * 8)
        if dims >= 16 and (dims < dim or (dim * bits + 7) // 8 > 0.7 * size):
            yield f"RaBitQ {bits} bit", f"{'RR' if dims == dim else f'PCAR{dims}'},RaBitQ{bits if bits > 1 else ''}"


def measure(
    lists: VectorLists, kind: str, factory: str, *, refined: bool = False, shaping: np.ndarray | None = None
) -> Iterator[Point]:
    """Trains, encodes and searches one code, and re-ranks its candidates from 8 bits a dimension."""
    before, _, code = factory.rpartition(",")
    spec = IndexSpec.parse(",".join(filter(None, [before, f"IVF{len(lists.centroids)}", code])), lists.vectors.dim)
    if spec.lists >= HNSW_FROM_LISTS:
        spec = replace(spec, hnsw_links=HNSW_LINKS)
    index = build_codec(lists.sample, spec, seed=0, queries=shaping, centroids=lists.centroids)
    encoder = BlockEncoder(index)
    overhead = len(faiss.serialize_index(index))
    seconds, errors, energy = 0.0, 0.0, 0.0
    for number, (rows, where, vectors) in enumerate(lists.blocks()):
        started = time.process_time()
        codes = encoder.encode(vectors, where)
        seconds += time.process_time() - started
        encoder.append(rows, codes)
        if number == 0 and spec.code != "rabitq":  # what it gives back are its signs alone
            errors = float(((encoder.decode(codes) - vectors) ** 2).sum())
            energy = float(((vectors - lists.centroids[where]) ** 2).sum())
    distortion = errors / energy if energy else None
    bits = 8.0 * (spec.code_bytes - spec.corrected)
    least = float(lists.distortions(bits).sum() / lists.spectrum[0].sum())
    searched = packed(index, spec)
    parameters = faiss.SearchParametersIVF(nprobe=lists.probes)
    if isinstance(searched, faiss.IndexPreTransform):
        parameters = faiss.SearchParametersPreTransform(index_params=parameters)
    found = searched.search(lists.queries, K, params=parameters)[1]
    point = Point(
        name=factory if shaping is None else f"{factory}, shaped for queries",
        kind=kind,
        stored=spec.code_bytes + 8 + overhead / len(lists.vectors),
        recall_100=lists.recalls(found)[0],
        recall_10=lists.recalls(found)[1],
        ms=median_ms(searched, lists.queries, parameters),
        distortion=distortion,
        over_bound=None if distortion is None else distortion / least,
        encode_us=1e6 * seconds / len(lists.rows),
    )
    yield point
    if refined:
        yield from re_ranked(lists, searched, parameters, point)


def re_ranked(lists: VectorLists, index: faiss.Index, parameters: object, point: Point) -> Iterator[Point]:
    """The same index with `sq8` codes to re-rank from; the time of decoding is added, as if nothing else were."""
    quantizer = faiss.IndexScalarQuantizer(lists.vectors.dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    quantizer.train(lists.sample)
    for factor in REFINED:
        candidates = index.search(lists.queries, factor * K, params=parameters)[1]
        found, milliseconds = np.empty((len(candidates), K), dtype=np.int64), []
        for number, (query, rows) in enumerate(zip(lists.queries, candidates, strict=True)):
            rows = np.sort(rows[rows >= 0])
            codes = quantizer.sa_encode(lists.vectors[rows])
            started = time.thread_time()
            scores = quantizer.sa_decode(codes) @ query
            found[number] = rows[np.argsort(-scores, kind="stable")[:K]]
            milliseconds.append(1000 * (time.thread_time() - started))
        recalls = lists.recalls(found)
        yield replace(
            point,
            name=f"{point.name} + sq8, {factor}",
            kind="auto + sq8",
            stored=point.stored + lists.vectors.dim,
            recall_100=recalls[0],
            recall_10=recalls[1],
            ms=point.ms + float(np.median(milliseconds)),
        )


def bound(lists: VectorLists, size: int) -> Point:
    """What an ideal code of `size` bytes for Gaussian residuals would find in the same lists."""
    variances, axes = lists.spectrum
    distortions = lists.distortions(8.0 * size)
    share = np.where(variances > 0, distortions / np.maximum(variances, 1e-12), 1.0)
    queries = lists.queries[:BOUND_QUERIES]
    near = np.argsort(queries @ -lists.centroids.T, axis=1)[:, : lists.probes]
    axes = axes.astype(np.float32)
    random = np.random.default_rng(0)
    order = np.argsort(lists.lists, kind="stable")
    ends = np.cumsum(np.bincount(lists.lists, minlength=len(lists.centroids)))
    coded: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for number in np.unique(near):
        rows = np.sort(order[(ends[number - 1] if number else 0) : ends[number]])
        if not len(rows):
            coded[number] = rows, np.empty((0, lists.vectors.dim), dtype=np.float32)
            continue
        turned = (lists.vectors[rows] - lists.centroids[number]) @ axes.T
        noise = random.normal(size=turned.shape) * np.sqrt(distortions * (1 - share))
        coded[number] = rows, (turned * (1 - share) + noise).astype(np.float32) @ axes + lists.centroids[number]
    found = []
    for query, probed in zip(queries, near, strict=True):
        rows, vectors = (np.concatenate(part) for part in zip(*(coded[number] for number in probed), strict=True))
        found.append(rows[np.argsort(vectors @ -query, kind="stable")[:K]])
    recalls = lists.recalls(np.stack(found))
    distortion = float(distortions.sum() / variances.sum())
    stored = size + 8 + len(lists.centroids) * 4 * lists.vectors.dim / len(lists.vectors)
    return Point(
        name=f"bound of {size} bytes ({len(queries)} queries)",
        kind="bound",
        stored=stored,
        recall_100=recalls[0],
        recall_10=recalls[1],
        ms=float("nan"),
        distortion=distortion,
        over_bound=1.0,
    )


def packed(index: faiss.Index, spec: IndexSpec) -> faiss.Index:
    """The index as it is searched: FastScan laid out for SIMD."""
    if spec.memory_mapped:
        return index
    fast = faiss.IndexIVFPQFastScan(faiss.downcast_index(ivf_of(index)))
    searched = faiss.IndexPreTransform(faiss.downcast_VectorTransform(index.chain.at(0)), fast)
    searched.referenced_objects = [index, fast]
    return searched


def median_ms(index: faiss.Index, queries: np.ndarray, parameters: object) -> float:
    """Milliseconds of CPU that one query takes, asked alone on one thread: as its latency where nothing else runs."""
    milliseconds = []
    for query in queries[:200]:
        started = time.thread_time()
        index.search(query[None], K, params=parameters)
        milliseconds.append(1000 * (time.thread_time() - started))
    return float(np.median(milliseconds))


def draw(points: list[Point], name: str, lists: VectorLists, path: Path) -> None:
    """Recall 100@100 and 10@10 over bytes, a line for each kind of code."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), sharex=True)
    for panel, depth in zip(panels, ("recall_100", "recall_10"), strict=True):
        for kind in dict.fromkeys(point.kind for point in points):
            line = sorted((p.stored, getattr(p, depth)) for p in points if p.kind == kind)
            style = {"bound": "k--", "auto": "ro-"}.get(kind, "o-.")
            panel.plot(*zip(*line, strict=True), style, markersize=4, label=kind)
        panel.set_xscale("log", base=2)
        panel.set_xticks(
            [32, 48, 64, 96, 128, 192, 256, 384], labels=["32", "48", "64", "96", "128", "192", "256", "384"]
        )
        panel.set_xlabel("bytes a vector in the file")
        panel.set_ylabel(f"recall {'100@100' if depth == 'recall_100' else '10@10'}")
        panel.grid(alpha=0.3)
    panels[1].legend(fontsize=7)
    figure.suptitle(
        f"{name}: {len(lists.vectors):,} x {lists.vectors.dim}, {len(lists.centroids):,} lists, {lists.probes} probed"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
