from __future__ import annotations

import faiss
import numpy as np
import pytest

from index_builder import codec as codec_module
from index_builder import storage
from index_builder.codec import CodecInfo, load_codec, open_codec, train_codec, train_product_quantizer
from index_builder.errors import CodecMismatchError, MissingFileError, TrainingError
from index_builder.faiss_files import ivf_of
from index_builder.planner import check_index
from index_builder.sampling import ShardSample, write_sample
from index_builder.spec import IndexConfig, IndexSpec
from tests.index_builder.builds import clustered, write_shards

DIM = 16


def pieces_of(root: str, rows: int = 1500) -> list[ShardSample]:
    return [
        write_sample([shard], storage.join(root, f"sample/{number}"), training_share=0.9, query_share=0.1)
        for number, shard in enumerate(write_shards(root, clustered(rows, DIM), 500))
    ]


def train(root: str, factory: str, name: str = "codec", *, seed: int = 0, backwards: bool = False) -> CodecInfo:
    samples = pieces_of(root)[:: -1 if backwards else 1]
    return train_codec(samples, IndexSpec.parse(factory, DIM), storage.join(root, name), seed=seed)


@pytest.mark.parametrize(
    "factory", ["Flat", "IVF8,Flat", "IVF8,SQ8", "OPQ4_8,IVF8,PQ4", "PCAR8,IVF8_HNSW8,PQ4x6", "PCA8,Flat", "PQ4"]
)
def test_a_codec_is_trained_empty_and_what_the_spec_says(root: str, factory: str) -> None:
    info = train(root, factory)
    assert load_codec(info.uri) == info
    assert len(info.fingerprint) == 32
    index = open_codec(info)
    assert (index.d, index.ntotal, index.is_trained) == (DIM, 0, True)
    assert index.metric_type == faiss.METRIC_INNER_PRODUCT
    assert ivf_of(index).nlist == info.spec.lists
    assert isinstance(index, faiss.IndexPreTransform) == (info.spec.rotation != "none")
    index.add(clustered(10, DIM))
    assert index.ntotal == 10


def test_the_fingerprint_hangs_on_sample_spec_and_seed_not_on_the_order(tmp_path) -> None:
    root = str(tmp_path)
    one = train(root, "OPQ4_8,IVF8,PQ4", "one")
    assert train(root, "OPQ4_8,IVF8,PQ4", "two", backwards=True).fingerprint == one.fingerprint
    assert train(root, "OPQ4_8,IVF8,PQ4", "three", seed=1).fingerprint != one.fingerprint
    assert train(root, "OPQ4_8,IVF9,PQ4", "four").fingerprint != one.fingerprint


def test_a_finished_codec_is_not_trained_again(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    real = codec_module.build_codec
    monkeypatch.setattr(codec_module, "build_codec", lambda *a, **kw: trained.append(1) or real(*a, **kw))
    first = train(root, "IVF8,PQ4")
    assert train(root, "IVF8,PQ4", backwards=True) == first
    assert len(trained) == 1
    assert train(root, "IVF8,PQ4", seed=1) != first
    assert len(trained) == 2


def test_a_codec_file_that_was_changed_is_refused(root: str) -> None:
    info = train(root, "IVF8,PQ4")
    other = train(root, "IVF8,PQ4", "other", seed=1)
    storage.copy_file(other.index_uri, info.index_uri)
    with pytest.raises(CodecMismatchError, match=info.fingerprint):
        open_codec(info)


def test_no_codec_and_no_sample(root: str) -> None:
    with pytest.raises(MissingFileError, match=r"codec\.json"):
        load_codec(root)
    with pytest.raises(TrainingError, match="no vectors to train"):
        train_codec([], IndexSpec.parse("IVF8,PQ4", DIM), root, seed=0)
    with pytest.raises(TrainingError, match=f"expected vectors of 32 dimensions, found {DIM}"):
        train_codec(pieces_of(root), IndexSpec.parse("IVF8,PQ4", 32), root, seed=0)


def test_exact_search_needs_no_sample(root: str) -> None:
    info = train_codec([], IndexSpec.parse("Flat", DIM), root, seed=0)
    assert info.training_rows == 0
    assert ivf_of(open_codec(info)).nlist == 1


def test_polysemous_training_is_off(tmp_path) -> None:
    index = open_codec(train(str(tmp_path), "IVF8,PQ4"))
    assert not faiss.downcast_index(index).do_polysemous_training


def test_a_gpu_that_is_not_there_is_refused_and_the_device_is_written_down(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    with pytest.raises(TrainingError, match=r"index.device is 'gpu'.*sees no GPU"):
        check_index(IndexConfig(uri="x", device="gpu"), DIM)
    check_index(IndexConfig(uri="x", device="auto"), DIM)
    codec = train(str(tmp_path), "IVF8,PQ4")
    assert storage.read_json(storage.join(codec.uri, "codec.json"))["facts"]["device"] == "cpu"


def test_kmeans_is_sent_to_the_gpu(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU here: what FAISS is asked for is looked at, and done on the CPU."""
    asked = []
    real = faiss.Kmeans
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "Kmeans", lambda *a, gpu, **kw: asked.append(gpu) or real(*a, **kw))
    samples = pieces_of(str(tmp_path))
    codec = train_codec(samples, IndexSpec.parse("IVF8,PQ4", DIM), str(tmp_path / "c"), seed=0, device="auto")
    assert asked == [True]
    assert storage.read_json(storage.join(codec.uri, "codec.json"))["facts"]["device"] == "gpu"


def relative_error(quantizer: faiss.ProductQuantizer, vectors: np.ndarray) -> float:
    return float(((quantizer.decode(quantizer.compute_codes(vectors)) - vectors) ** 2).sum() / (vectors**2).sum())


@pytest.mark.parametrize("bits", [8, 6])
def test_a_product_quantizer_is_as_good_as_that_of_faiss(bits: int) -> None:
    vectors = clustered(6000, 16)
    ours, theirs = (faiss.ProductQuantizer(16, 4, bits) for _ in range(2))
    train_product_quantizer(vectors, ours, seed=0)
    theirs.cp.niter = 15
    theirs.train(vectors)
    assert relative_error(ours, vectors) < 1.03 * relative_error(theirs, vectors)


def test_the_same_seed_gives_the_same_centroids() -> None:
    vectors = clustered(1000, 8)
    quantizers = [faiss.ProductQuantizer(8, 4, 8) for _ in range(3)]
    for quantizer, seed in zip(quantizers, (0, 0, 1), strict=True):
        train_product_quantizer(vectors, quantizer, seed=seed)
    first, again, other = (faiss.vector_to_array(quantizer.centroids).tobytes() for quantizer in quantizers)
    assert first == again
    assert first != other


def test_centroids_without_rows_are_refilled() -> None:
    """Many equal rows leave most starting points without any."""
    random = np.random.default_rng(0)
    vectors = np.repeat(random.normal(size=(40, 8)).astype(np.float32), 25, axis=0)
    quantizer = faiss.ProductQuantizer(8, 2, 8)
    train_product_quantizer(vectors, quantizer, seed=0)
    assert np.isfinite(faiss.vector_to_array(quantizer.centroids)).all()
    assert relative_error(quantizer, vectors) < 1e-5


def test_too_few_rows_for_a_product_quantizer_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TrainingError, match="at least 256 training vectors for PQ with 8 bits, found 255"):
        train_product_quantizer(clustered(255, 8), faiss.ProductQuantizer(8, 2, 8), seed=0)
    for bits in (4, 8):
        train_product_quantizer(clustered(256, 8), faiss.ProductQuantizer(8, 2, bits), seed=0)
    assert capfd.readouterr() == ("", "")
