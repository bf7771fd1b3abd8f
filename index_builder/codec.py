"""The codec is rotation, coarse quantizer and product quantizer, trained as one object with one fingerprint.

It is a trained FAISS index without vectors (`codec.faiss`) and what is known about it (`codec.json`). Every index
shard is made with one codec and names its fingerprint; shards of different codecs must never be merged, and FAISS
would not notice.

A corrected PQ (`PQ63x8+1`) has one more byte. Of a vector x = c + r, with c the centroid of its list, a code gives back
c + r', and a query q finds it with the score q.(c + r'). That misses q.e, where e = r - r'. Queries that probe the list
and should find x lie near c and near x: q.e is mostly c.e and half of r.e, and that sum is what the last byte holds.
The index adds it by itself: queries have a 1 where the last sub-quantizer stands (rotation.py). RaBitQ keeps c.r for
the same reason, and ScaNN's anisotropic loss (Guo et al., 2020) chooses codes by it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np

from index_builder import storage
from index_builder.errors import CodecMismatchError, TrainingError
from index_builder.faiss_files import read_index
from index_builder.kmeans import build_quantizer, shared_assigner, train_centroids
from index_builder.rotation import rotated, train_rotation
from index_builder.sampling import ShardSample, read_training
from index_builder.spec import Device, IndexSpec

log = logging.getLogger(__name__)

CODE_ITERATIONS = 8
MAX_CODE_ROWS = 16_384
FINGERPRINT_DIGITS = 32
_SPLIT = 1.0 / 1024
TOWARDS_VECTOR = 0.5
"""Share of r.e in a correction. For queries that equal x it would be 1; more than that spoils scores of the others."""
TRAINING_REVISION = 3
"""Raised when a change of the code makes another codec from the same sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecInfo:
    """A trained codec.

    Attributes:
        uri: its folder, with `codec.faiss` and `codec.json`.
        fingerprint: 32 hex digits of the sha256 of `codec.faiss`.
    """

    uri: str
    fingerprint: str
    spec: IndexSpec
    training_rows: int

    @property
    def index_uri(self) -> str:
        """The trained, empty FAISS index."""
        return storage.join(self.uri, "codec.faiss")


def train_codec(
    samples: Sequence[ShardSample],
    spec: IndexSpec,
    out_uri: str,
    *,
    seed: int,
    training_rows: int | None = None,
    device: Device = "cpu",
) -> CodecInfo:
    """Trains a codec, or finds the one that was trained here from the same sample, spec and seed.

    The same sample gives the same bytes, whatever the order of the samples and the number of threads. At most
    `training_rows` of it are used.

    Raises:
        TrainingError: the sample is too small for the spec, or of another dimension; or there is no GPU to train on.
    """
    gpu = on_gpu(device)

    def make(path: str) -> dict[str, Any]:
        vectors = _training_vectors(samples, spec, training_rows)
        faiss.write_index(build_codec(vectors, spec, seed=seed, gpu=gpu), f"{path}.faiss")
        fingerprint = storage.sha256_file(f"{path}.faiss")[:FINGERPRINT_DIGITS]
        where = "a GPU" if gpu else "the CPU"
        if not spec.exact:
            log.info("trained codec %s (%s) on %d vectors, on %s", fingerprint, spec.factory, len(vectors), where)
        return {
            "fingerprint": fingerprint,
            "spec": spec.to_dict(),
            "factory": spec.factory,
            "training_rows": len(vectors),
            "device": "gpu" if gpu else "cpu",
        }

    drawn = sorted(sample.sha256 for sample in samples)
    inputs = [drawn, spec.to_dict(), seed, training_rows, TRAINING_REVISION, "gpu" if gpu else "cpu"]
    storage.artifact(storage.join(out_uri, "codec"), inputs, make)
    return load_codec(out_uri)


def on_gpu(device: Device) -> bool:
    """Whether k-means runs on a GPU; TrainingError where one is asked for and FAISS sees none."""
    found = faiss.get_num_gpus()
    if device == "gpu" and not found:
        expected = "faiss-gpu and a driver that it works with, or index.device: cpu"
        raise TrainingError(
            f"index.device is 'gpu', but this FAISS ({faiss.__version__}) sees no GPU: expected {expected}"
        )
    return device != "cpu" and found > 0


def load_codec(uri: str) -> CodecInfo:
    """The codec in a folder; StorageError where there is none."""
    known = _read_facts(uri)
    spec = IndexSpec.from_dict(known["spec"])
    return CodecInfo(uri=uri, fingerprint=known["fingerprint"], spec=spec, training_rows=known["training_rows"])


def _read_facts(uri: str) -> dict[str, Any]:
    known = storage.read_json(storage.join(uri, "codec.json"))
    return known.get("facts", known)  # earlier builds wrote the facts alone


def copy_codec(codec: CodecInfo, out_uri: str) -> CodecInfo:
    """Copies a codec into another folder; gives it as it is known there."""

    def make(path: str) -> dict[str, Any]:
        storage.copy_file(codec.index_uri, f"{path}.faiss")
        return _read_facts(codec.uri)

    if codec.uri != out_uri:
        storage.artifact(storage.join(out_uri, "codec"), ["copied", codec.fingerprint], make)
    return replace(codec, uri=out_uri)


def open_codec(codec: CodecInfo) -> faiss.Index:
    """The trained, empty index, in memory; CodecMismatchError where it is not the one the fingerprint was made of."""
    with storage.localized(codec.index_uri) as path:
        found = storage.sha256_file(path)[:FINGERPRINT_DIGITS]
        if found != codec.fingerprint:
            raise CodecMismatchError(
                f"{codec.index_uri}: expected codec {codec.fingerprint}, found {found}; "
                "remove the folder to train it again"
            )
        return read_index(path, memory_mapped=False)


def build_codec(vectors: np.ndarray, spec: IndexSpec, *, seed: int, gpu: bool = False) -> faiss.Index:
    """Trains the FAISS index of a spec on float16 or float32 [n, D]; n may be 0 where nothing is trained."""
    transform = train_rotation(vectors, spec, seed=seed)
    turned = rotated(vectors, transform)
    centroids = train_centroids(turned, spec.lists, seed=seed, gpu=gpu)
    ivf = _empty_ivf(build_quantizer(centroids, spec), spec)
    if spec.code != "flat":
        chosen = turned[code_training_rows(len(turned), seed=seed)]
        near = centroids[shared_assigner(centroids).assign(chosen)] if ivf.by_residual else np.float32(0)
        chosen -= near
        if spec.corrected:
            train_corrected_quantizer(chosen, near, ivf.pq, seed=seed)
        elif spec.code == "pq":
            train_product_quantizer(chosen, ivf.pq, seed=seed)
        elif spec.code == "rabitq":
            ivf.rabitq.train(chosen)
        else:
            ivf.sq.train(chosen)
    ivf.is_trained = True
    return ivf if transform is None else faiss.IndexPreTransform(transform, ivf)


def _empty_ivf(quantizer: faiss.Index, spec: IndexSpec) -> faiss.IndexIVF:
    size, metric = (spec.index_dim, spec.lists), faiss.METRIC_INNER_PRODUCT
    if spec.code == "flat":
        return faiss.IndexIVFFlat(quantizer, *size, metric)
    if spec.code == "sq8":
        return faiss.IndexIVFScalarQuantizer(quantizer, *size, faiss.ScalarQuantizer.QT_8bit, metric, True)
    if spec.code == "rabitq":
        return faiss.IndexIVFRaBitQ(quantizer, *size, metric, True, spec.rabitq_bits)
    ivf = faiss.IndexIVFPQ(quantizer, *size, spec.pq_m + spec.corrected, spec.pq_bits, metric)
    ivf.by_residual = spec.fast_scan != "fs"
    # Polysemous training costs many times the rest, and serves a search that is not used here.
    ivf.do_polysemous_training = False
    return ivf


def code_training_rows(rows: int, *, seed: int) -> np.ndarray:
    """Which of the sampled vectors the code is trained on, in random order: int64, at most `MAX_CODE_ROWS`."""
    return np.random.default_rng(seed).permutation(rows)[:MAX_CODE_ROWS]


def train_product_quantizer(residuals: np.ndarray, pq: faiss.ProductQuantizer, *, seed: int) -> None:
    """Sets the centroids of `pq`, by k-means in every subspace at once.

    Lloyd's algorithm as in FAISS, but all sub-quantizers take each step together: FAISS's own encoder assigns (its
    kernels for small subspaces are many times faster than the general search that `ProductQuantizer.train` assigns
    with), `bincount` averages. Of what the coarse quantizer leaves over, float32 [n, d], `MAX_CODE_ROWS` are used.

    Raises:
        TrainingError: fewer rows than centroids.
    """
    if len(residuals) < pq.ksub:
        raise TrainingError(
            f"expected at least {pq.ksub} training vectors for PQ with {pq.nbits} bits, found {len(residuals)}; "
            "ask for fewer bits or Flat in index.factory, or for a larger index.training_rows"
        )
    rows = np.ascontiguousarray(residuals[code_training_rows(len(residuals), seed=seed)])
    if pq.nbits != 8:
        pq.cp.seed, pq.cp.niter = seed, CODE_ITERATIONS
        pq.cp.min_points_per_centroid, pq.cp.max_points_per_centroid = 1, MAX_CODE_ROWS
        pq.train(rows)
        return
    # The rows are in random order: the first of them are random starting points.
    centroids = rows[: pq.ksub].reshape(pq.ksub, pq.M, pq.dsub).transpose(1, 0, 2).copy()
    for _ in range(CODE_ITERATIONS):
        faiss.copy_array_to_vector(centroids.ravel(), pq.centroids)
        centroids = _averages(rows, pq.compute_codes(rows), centroids.shape)
    faiss.copy_array_to_vector(centroids.ravel(), pq.centroids)


def train_corrected_quantizer(
    residuals: np.ndarray, centroids: np.ndarray, pq: faiss.ProductQuantizer, *, seed: int
) -> None:
    """Sets the centroids of `pq`, whose last sub-quantizer holds the correction (see the module).

    Of residuals float32 [n, d], zero in the last subspace, and the centroids of their lists float32 [n, d].
    """
    plain = faiss.ProductQuantizer(pq.d - pq.dsub, pq.M - 1, pq.nbits)
    train_product_quantizer(residuals[:, : plain.d], plain, seed=seed)
    kept = np.ascontiguousarray(residuals[:, : plain.d])
    missed = kept - plain.decode(plain.compute_codes(kept))
    last = np.zeros((pq.ksub, pq.dsub), dtype=np.float32)
    last[:, 0] = _levels(_corrections(kept, missed, centroids[:, : plain.d]), pq.ksub)
    values = np.concatenate([faiss.vector_to_array(plain.centroids), last.ravel()])
    faiss.copy_array_to_vector(values, pq.centroids)


def correction_codes(
    pq: faiss.ProductQuantizer, codes: np.ndarray, residuals: np.ndarray, centroids: np.ndarray
) -> np.ndarray:
    """The last byte of each code of a corrected quantizer: uint8 [n].

    Args:
        codes: uint8 [n, M]; their last byte does not count.
        residuals, centroids: float32 [n, d], as in `train_corrected_quantizer`.
    """
    levels = faiss.vector_to_array(pq.centroids).reshape(pq.M, pq.ksub, pq.dsub)[-1, :, 0]
    missed = residuals - pq.decode(np.ascontiguousarray(codes))
    missed[:, -pq.dsub :] = 0
    middles = (levels[1:] + levels[:-1]) / 2
    return np.searchsorted(middles, _corrections(residuals, missed, centroids)).astype(np.uint8)


def _corrections(residuals: np.ndarray, missed: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", centroids + np.float32(TOWARDS_VECTOR) * residuals, missed)


def _levels(values: np.ndarray, count: int) -> np.ndarray:
    """What values float32 [n] are rounded to, by k-means from their quantiles: float32 [count], ascending."""
    levels = np.quantile(values.astype(np.float64), (np.arange(count) + 0.5) / count)
    for _ in range(CODE_ITERATIONS):
        nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, values)
        rows = np.bincount(nearest, minlength=count)
        sums = np.bincount(nearest, weights=values, minlength=count)
        levels = np.sort(np.where(rows > 0, sums / np.maximum(rows, 1), levels))
    return levels.astype(np.float32)


def _averages(rows: np.ndarray, codes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """New centroids float32 [M, K, d / M] = `shape`: the averages of the rows assigned by uint8 `codes` [n, M]."""
    subspaces, ksub, dsub = shape
    cells = (codes.astype(np.int64) + np.arange(subspaces) * ksub).ravel()
    counts = np.bincount(cells, minlength=subspaces * ksub)
    values = rows.reshape(-1, dsub)
    sums = np.stack([np.bincount(cells, weights=values[:, j], minlength=len(counts)) for j in range(dsub)], axis=1)
    averages = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32).reshape(shape)
    counts = counts.reshape(subspaces, ksub)
    # The fullest centroid of a subspace is split for each one without rows, as FAISS does.
    for subspace, empty in np.argwhere(counts == 0):
        fullest = counts[subspace].argmax()
        half = averages[subspace, fullest] * _SPLIT
        averages[subspace, empty] = averages[subspace, fullest] + half
        averages[subspace, fullest] -= half
        counts[subspace, empty] = counts[subspace, fullest] // 2
        counts[subspace, fullest] -= counts[subspace, empty]
    return averages


def _training_vectors(samples: Sequence[ShardSample], spec: IndexSpec, limit: int | None) -> np.ndarray:
    if spec.exact:
        return np.empty((0, spec.dim), dtype=np.float16)
    for sample in samples:
        if sample.dim != spec.dim:
            raise TrainingError(f"{sample.uri}: expected vectors of {spec.dim} dimensions, found {sample.dim}")
    vectors = read_training(samples, limit=limit)
    if not len(vectors):
        raise TrainingError(
            f"the sample has no vectors to train {spec.factory} on; expected some in {len(samples)} samples"
        )
    return vectors
