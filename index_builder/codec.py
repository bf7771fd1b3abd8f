"""The codec is rotation, coarse quantizer and product quantizer, trained as one object with one fingerprint.

It is a trained FAISS index without vectors (`codec.faiss`) and what is known about it (`codec.json`). Every index
shard is made with one codec and names its fingerprint; shards of different codecs must never be merged, and FAISS
would not notice.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np

from index_builder import storage
from index_builder.errors import CodecMismatchError, StorageError, TrainingError
from index_builder.faiss_files import read_index
from index_builder.gpu import on_gpu
from index_builder.kmeans import build_quantizer, shared_assigner, train_centroids
from index_builder.product_quantizer import code_training_rows, train_corrected_quantizer, train_product_quantizer
from index_builder.rotation import columns_of, documents_map, rotated, shaped_rotation, train_rotation
from index_builder.sampling import ShardSample, read_training
from index_builder.spec import Device, IndexSpec

log = logging.getLogger(__name__)

FINGERPRINT_DIGITS = 32
TRAINING_REVISION = 4
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
    queries: np.ndarray | None = None,
) -> CodecInfo:
    """Trains a codec, or finds the one that was trained here from the same sample, spec and seed.

    The same sample gives the same bytes, whatever the order of the samples and the number of threads. At most
    `training_rows` of it are used. A corrected code is shaped for `queries`, float32 [Q, D], where they are given.

    Raises:
        TrainingError: the sample is too small for the spec, or of another dimension; or there is no GPU to train on.
    """
    gpu = on_gpu(device)

    def make(path: str) -> dict[str, Any]:
        vectors = _training_vectors(samples, spec, training_rows)
        faiss.write_index(build_codec(vectors, spec, seed=seed, gpu=gpu, queries=queries), f"{path}.faiss")
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
    if queries is not None:
        inputs.append(hashlib.sha256(queries.tobytes()).hexdigest())
    storage.artifact(storage.join(out_uri, "codec"), inputs, make)
    return load_codec(out_uri)


def load_codec(uri: str) -> CodecInfo:
    """The codec in a folder; StorageError where there is none, or its description is damaged."""
    known = _read_facts(uri)
    spec = IndexSpec.from_dict(known["spec"])
    return CodecInfo(uri=uri, fingerprint=known["fingerprint"], spec=spec, training_rows=known["training_rows"])


def _read_facts(uri: str) -> dict[str, Any]:
    known = storage.read_json(storage.join(uri, "codec.json"))
    if "factory" in known:
        return known  # earlier builds wrote the facts alone
    made = storage.find_artifact(storage.join(uri, "codec"), read_bytes=False)
    if made is None:
        raise StorageError(f"{uri}: expected a codec as it was made, found its files damaged; give the command again")
    return made.facts


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


def build_codec(
    vectors: np.ndarray,
    spec: IndexSpec,
    *,
    seed: int,
    gpu: bool = False,
    queries: np.ndarray | None = None,
    centroids: np.ndarray | None = None,
) -> faiss.Index:
    """Trains the FAISS index of a spec on float16 or float32 [n, D]; n may be 0 where nothing is trained.

    Args:
        queries: float32 [Q, D], for whose scores a corrected code is shaped; None: for vectors of the catalog.
        centroids: float32 [L, D], those of the lists, instead of training them: to compare codes.
    """
    transform = train_rotation(vectors, spec, seed=seed, all_dims=queries is not None)
    if centroids is None:
        centroids = train_centroids(rotated(vectors, transform), spec.lists, seed=seed, gpu=gpu)
    else:
        centroids = rotated(centroids, transform)
    chosen = rotated(vectors[code_training_rows(0 if spec.code == "flat" else len(vectors), seed=seed)], transform)
    if spec.corrected:
        transform, chosen, centroids = _shaped(transform, chosen, centroids, spec, queries)
    quantizer = build_quantizer(centroids, spec)
    ivf = _empty_ivf(quantizer, spec)
    if spec.corrected:
        train_corrected_quantizer(chosen, quantizer.reconstruct_n(0, spec.lists), transform, ivf.pq, seed=seed)
    elif spec.code != "flat":
        if ivf.by_residual:
            chosen -= centroids[shared_assigner(centroids).assign(chosen)]
        if spec.code == "pq":
            train_product_quantizer(chosen, ivf.pq, seed=seed)
        elif spec.code == "rabitq":
            ivf.rabitq.train(chosen)
        else:
            ivf.sq.train(chosen)
    ivf.is_trained = True
    return ivf if transform is None else faiss.IndexPreTransform(transform, ivf)


def _shaped(
    principal: faiss.LinearTransform,
    vectors: np.ndarray,
    centroids: np.ndarray,
    spec: IndexSpec,
    queries: np.ndarray | None,
) -> tuple[faiss.LinearTransform, np.ndarray, np.ndarray]:
    """The map in front of a corrected code, and vectors and centroids behind `principal` where documents are coded."""
    assigner = shared_assigner(centroids)
    residuals = vectors - centroids[assigner.assign(vectors)]
    if queries is not None:
        queries = rotated(queries, principal)
        queries -= centroids[assigner.assign(queries)]
    transform = shaped_rotation(principal, vectors, residuals, spec, queries)
    further = columns_of(principal).T @ documents_map(transform)[0]
    return transform, vectors @ further, centroids @ further


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
