from __future__ import annotations

import dataclasses
from pathlib import Path

import faiss
import numpy as np
import pyarrow.compute as pc
import pytest

from index_builder import storage
from index_builder.errors import EmbeddingShardError, SpecError, TrainingError, VerificationError
from index_builder.faiss_files import faiss_threads, read_index, top_by_score
from index_builder.planner import BYTES_PER_DIM, code_budget, plan_index, plan_refinement, probes_per_factor
from index_builder.publish import publish_version, read_manifest
from index_builder.reader import IndexReader
from index_builder.refine import write_refine_codes
from index_builder.sampling import ShardSample, write_sample
from index_builder.shard_search import RefineCodes, ShardSearch, best_by_score, search_refined
from index_builder.spec import IndexConfig, IndexSpec
from index_builder.tuning import SearchMeasurement, choose_search
from index_builder.verify import measure_resident_bytes
from tests.index_builder.builds import (
    NumberedShard,
    build_index,
    clustered,
    stage,
    verify_refine_codes,
    write_index,
    write_shards,
)

ROWS, DIM = 3000, 32
VECTORS = clustered(ROWS, DIM)
QUERIES = clustered(40, DIM, seed=7)
CONFIG = IndexConfig(
    uri="x", factory="OPQ8_32,IVF32,PQ8x6", refine="sq8", serving_shards=3, verify_queries=200, target_recall=0.97
)


def sampled(root: str, shards: list[NumberedShard]) -> list[ShardSample]:
    return [
        write_sample([shard], storage.join(root, "sample", f"{number}.parquet"), training_share=0.5, query_share=0.1)
        for number, shard in enumerate(shards)
    ]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A published version with refinement; its address. Beside it: `whole.npy`."""
    root = str(tmp_path_factory.mktemp("refined"))
    build = build_index(root, write_shards(root, VECTORS, 500), CONFIG, DIM)
    publish_version(storage.join(root, "index"), *stage(root, build))
    return storage.join(root, "index")


@pytest.mark.parametrize(("kind", "error"), [("sq8", 0.01), ("fp16", 0.0)])
def test_plain_faiss_reads_a_refine_file(root: str, kind: str, error: float) -> None:
    shards = write_shards(root, VECTORS[:1000], 300)
    shard = write_refine_codes(shards[1:], sampled(root, shards), kind, DIM, storage.join(root, "refine.faiss"))
    assert (shard.rows, shard.first_row) == (700, 300)
    with storage.localized(shard.uri) as path:
        assert storage.sha256_file(path) == shard.sha256
        for flags in (0, faiss.IO_FLAG_MMAP_IFC):
            index = faiss.read_index(path, flags)
            assert index.metric_type == faiss.METRIC_INNER_PRODUCT
            found = index.reconstruct_n(0, 700)
            # What lies outside the sample's range is cut; that is little and rare.
            assert np.quantile(np.abs(found - VECTORS[300:1000]), 0.99) <= error


@pytest.mark.parametrize("kind", ["sq8", "fp16"])
def test_the_same_bytes_in_any_order_and_nothing_twice(tmp_path: Path, kind: str) -> None:
    root = str(tmp_path)
    shards = write_shards(root, VECTORS, 500)
    samples = sampled(root, shards)
    first = write_refine_codes(shards, samples, kind, DIM, f"{root}/a.faiss")
    with faiss_threads(1):
        again = write_refine_codes(shards[::-1], samples[::-1], kind, DIM, f"{root}/b.faiss")
    assert first.sha256 == again.sha256
    assert first.codec_fingerprint == again.codec_fingerprint
    written = Path(first.uri).stat().st_mtime_ns
    assert write_refine_codes(shards, samples, kind, DIM, first.uri) == first
    assert Path(first.uri).stat().st_mtime_ns == written
    # FAISS itself would have written the same.
    index = faiss.read_index(first.uri)
    codes = index.sa_encode(VECTORS)
    assert np.array_equal(faiss.vector_to_array(index.codes).reshape(ROWS, -1), codes)
    assert write_index(index, f"{root}/c.faiss") == first.sha256


def test_what_cannot_be_written(tmp_path: Path) -> None:
    root = str(tmp_path)
    shards = write_shards(root, VECTORS[:900], 300)
    with pytest.raises(EmbeddingShardError, match="expected row 300 to be next, found 600"):
        write_refine_codes([shards[0], shards[2]], [], "fp16", DIM, f"{root}/x.faiss")
    with pytest.raises(TrainingError, match="ranges of sq8"):
        write_refine_codes(shards, [], "sq8", DIM, f"{root}/x.faiss")
    assert not storage.exists(f"{root}/x.faiss")


def test_scores_are_those_of_the_decoded_vectors(tmp_path: Path) -> None:
    root = str(tmp_path)
    shards = write_shards(root, VECTORS, 500)
    samples = sampled(root, shards)
    whole = write_refine_codes(shards, samples, "sq8", DIM, f"{root}/whole.faiss")
    parts = [
        write_refine_codes(group, samples, "sq8", DIM, f"{root}/{number}.faiss").uri
        for number, group in enumerate((shards[:1], shards[1:4], shards[4:]))
    ]
    decoded = faiss.read_index(whole.uri).reconstruct_n(0, ROWS)
    rows = np.random.default_rng(0).integers(0, ROWS, (40, 300))
    rows[3, 7:] = -1
    expected = np.where(rows < 0, -np.inf, np.einsum("bd,bmd->bm", QUERIES, decoded[rows]))
    for paths in ([whole.uri], parts):
        codes = RefineCodes(paths)
        assert (codes.rows, codes.dim, codes.code_size) == (ROWS, DIM, DIM)
        assert np.allclose(codes.scores(QUERIES, rows), expected, atol=1e-5)
    assert RefineCodes(parts).scores(QUERIES[:0], rows[:0]).shape == (0, 300)

    other = write_refine_codes(shards[4:], samples[:2], "sq8", DIM, f"{root}/other.faiss")
    with pytest.raises(VerificationError, match=r"other\.faiss: expected the quantizer of"):
        RefineCodes([*parts[:2], other.uri])
    (tmp_path / "none.faiss").write_bytes(b"no index")
    with pytest.raises(VerificationError, match="not an index file"):
        RefineCodes([f"{root}/none.faiss"])
    write_index(faiss.IndexFlatIP(DIM), f"{root}/flat.faiss")
    with pytest.raises(VerificationError, match="expected a scalar quantizer"):
        RefineCodes([f"{root}/flat.faiss"])


@pytest.mark.parametrize(("lines", "width", "k"), [(3, 50, 5), (40, 300, 10), (40, 300, 200), (2, 4000, 1)])
def test_the_best_of_many_with_ties_by_row(lines: int, width: int, k: int) -> None:
    random = np.random.default_rng(width)
    scores = random.integers(0, 60, (lines, width)).astype(np.float32)
    rows = np.stack([random.permutation(width) for _ in range(lines)])
    scores[0, 5:] = -np.inf
    for found, expected in zip(best_by_score(scores, rows, k), top_by_score(scores, rows, k), strict=True):
        assert np.array_equal(found, expected)


def test_refinement_finds_what_codes_alone_do_not(built: str) -> None:
    reader = IndexReader.open(built)
    manifest = reader.manifest
    assert manifest.index.refine == "sq8"
    assert manifest.index.search.refine_factor > 0
    assert len(manifest.refine_files()) == len(manifest.index_files()) == 3
    assert manifest.recall.value >= 0.97
    true = np.argsort(-(QUERIES @ VECTORS.T), axis=1, kind="stable")[:, :10]

    def recall(**settings: int) -> float:
        rows = reader.search(QUERIES, 10, nprobe=32, **settings).rows
        return float(np.mean([len(set(line) & set(right)) / 10 for line, right in zip(rows, true, strict=True)]))

    assert recall(refine_factor=0) < 0.8
    assert recall(refine_factor=40) > 0.97
    result = reader.search(QUERIES, 10)
    assert np.allclose(result.scores, np.take_along_axis(QUERIES @ VECTORS.T, result.rows, 1), atol=0.02)
    assert (np.diff(result.scores, axis=1) <= 0).all()


def test_filters_and_large_k_with_refinement(built: str) -> None:
    reader = IndexReader.open(built)
    kept = (np.arange(ROWS) >= 100) & (np.arange(ROWS) < 160)
    expression = (pc.field("price") >= 100) & (pc.field("price") < 160)
    scores = QUERIES @ VECTORS.T
    scores[:, ~kept] = -np.inf
    for filter in (expression, kept):
        result = reader.search(QUERIES, 70, filter=filter)
        assert (np.sort(result.rows[:, :60], axis=1) == np.arange(100, 160)).all()
        assert (result.rows[:, 60:] == -1).all()
        best = reader.search(QUERIES, 3, filter=filter).rows[:, 0]
        assert (best == scores.argmax(axis=1)).mean() > 0.9
    everything = reader.search(QUERIES[:2], ROWS + 5, nprobe=32)
    assert np.array_equal(np.sort(everything.rows[:, :ROWS], axis=1), np.tile(np.arange(ROWS), (2, 1)))


def test_serving_shards_make_no_difference(built: str, tmp_path: Path) -> None:
    shards = write_shards(str(tmp_path), VECTORS, 500)
    build = build_index(str(tmp_path), shards, dataclasses.replace(CONFIG, serving_shards=1), DIM)
    search = ShardSearch([read_index(shard.uri) for shard in build.merged])
    codes = RefineCodes([shard.uri for shard in build.refined])
    rows = search_refined(search, codes, QUERIES, 10, nprobe=8, refine_factor=4)[1]
    assert np.array_equal(rows, IndexReader.open(built).search(QUERIES, 10, nprobe=8, refine_factor=4).rows)


@pytest.mark.parametrize("passing", [0, 1, 7, 200, 256, 257, 2048])
def test_few_rows_that_pass_are_compared_whole(built: str, passing: int) -> None:
    mask = np.zeros(ROWS, bool)
    mask[np.random.default_rng(passing).permutation(ROWS)[:passing]] = True
    result = IndexReader.open(built).search(QUERIES, 10, filter=mask, nprobe=1)
    scores = np.where(mask, QUERIES @ VECTORS.T, -np.inf)
    truth = np.argsort(-scores, axis=1, kind="stable")[:, : min(10, mask.sum())]
    assert ((result.rows >= 0).sum(axis=1) == truth.shape[1]).all()
    assert np.array_equal(np.isneginf(result.scores), result.rows < 0)
    shared = [len(set(a) & set(b)) for a, b in zip(result.rows.tolist(), truth.tolist(), strict=True)]
    assert sum(shared) >= 0.97 * truth.size


def test_a_refined_version_in_a_remote_folder(built: str, remote_root: str, cache: Path) -> None:
    index = storage.join(remote_root, "index")
    for name in storage.list_names(built):
        storage.copy_file(storage.join(built, name), storage.join(index, name))
    rows = IndexReader.open(index).search(QUERIES, 10).rows
    assert np.array_equal(rows, IndexReader.open(built).search(QUERIES, 10).rows)
    assert len(list(cache.rglob("refine-*.faiss"))) == 3


def test_a_refine_file_that_is_not_that_of_the_manifest(built: str, tmp_path: Path) -> None:
    index = str(tmp_path / "index")
    for name in storage.list_names(built):
        storage.copy_file(storage.join(built, name), storage.join(index, name))
    version = read_manifest(index).version
    path = tmp_path / "index" / "versions" / version / "refine-00001-of-00003.faiss"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(VerificationError, match=r"refine-00001-of-00003\.faiss: expected \d+ bytes"):
        IndexReader.open(index)


def test_verifying_refine_files(tmp_path: Path) -> None:
    root = str(tmp_path)
    shards = write_shards(root, VECTORS, 1500)
    made = [write_refine_codes([shard], [], "fp16", DIM, f"{shard.uri}.faiss") for shard in shards]
    size = BYTES_PER_DIM["fp16"] * DIM
    verify_refine_codes(made, rows=ROWS, dim=DIM, code_bytes=size)
    for wrong, message in (
        ([made[0]], r"expected every row 0\.\.2999, found the first 1500"),
        ([], "no file: expected every row"),
        ([made[1]], r"rows: expected 0\.\.2999, found 1500\.\.2999"),
        ([made[0], dataclasses.replace(made[1], codec_fingerprint="0" * 32)], "codec: expected"),
        ([made[0], dataclasses.replace(made[1], sha256="0" * 64)], "sha256"),
        ([made[0], dataclasses.replace(made[1], rows=1400)], "rows, dimensions and bytes"),
    ):
        with pytest.raises(VerificationError, match=message):
            verify_refine_codes(wrong, rows=ROWS, dim=DIM, code_bytes=size)


@pytest.mark.parametrize(
    ("values", "factory", "refine"),
    [
        ({}, "OPQ63_128,IVF1024,PQ63x8+1", "none"),  # the default budget never multiplies an index of usual dimensions
        ({"bytes_per_vector": 159}, "IVF1024,SQ8", "none"),
        ({"bytes_per_vector": 160}, "OPQ31_124,IVF1024,PQ31x8+1", "sq8"),
        ({"bytes_per_vector": 288}, "OPQ31_124,IVF1024,PQ31x8+1", "fp16"),
        ({"bytes_per_vector": 512}, "IVF1024,Flat", "none"),
        ({"bytes_per_vector": 32, "refine": "sq8"}, "OPQ31_124,IVF1024,PQ31x8+1", "sq8"),
        ({"bytes_per_vector": 160, "refine": "none"}, "IVF1024,SQ8", "none"),
        ({"bytes_per_vector": 160, "refine": "sq8"}, "IVF1024,SQ8", "none"),
        ({"factory": "IVF64,PQ16", "bytes_per_vector": 4096}, "IVF64,PQ16x8", "none"),
        ({"factory": "IVF64,PQ16", "refine": "fp16"}, "IVF64,PQ16x8", "fp16"),
        ({"factory": "IVF64,SQ8", "refine": "fp16"}, "IVF64,SQ8", "fp16"),
        ({"factory": "Flat", "refine": "fp16"}, "Flat", "none"),
    ],
)
def test_what_a_budget_pays_for(values: dict[str, object], factory: str, refine: str) -> None:
    config = IndexConfig(uri="x", **values)  # type: ignore[arg-type]
    spec = plan_index(config, 100_000, 128)
    assert (spec.factory, plan_refinement(config, spec)) == (factory, refine)
    if config.refine == "auto" and config.factory == "auto" and config.bytes_per_vector is not None:
        assert spec.code_bytes + BYTES_PER_DIM[plan_refinement(config, spec)] * 128 <= config.bytes_per_vector


def test_a_small_catalog_is_exact_and_needs_no_refinement() -> None:
    config = IndexConfig(uri="x", bytes_per_vector=160, refine="sq8")
    spec = plan_index(config, 1000, 128)
    assert (spec.factory, plan_refinement(config, spec), code_budget(config, 128)) == ("Flat", "none", 160)
    with pytest.raises(SpecError, match=r"index\.refine is 'sq4', expected auto, none, sq8 or fp16"):
        IndexConfig(uri="x", refine="sq4")  # type: ignore[arg-type]


def test_the_cheapest_pair_is_chosen() -> None:
    rows = [(8, 0, 0.5), (8, 2, 0.9), (8, 4, 0.96), (16, 0, 0.6), (16, 2, 0.97), (64, 0, 0.95)]
    measured = [
        SearchMeasurement(nprobe=nprobe, refine_factor=factor, recall=recall, latency_ms=0.1)
        for nprobe, factor, recall in rows
    ]

    def chosen(cost: float) -> tuple[int, int]:
        choice = choose_search(measured, 0.95, probes_per_factor=cost)
        return choice.nprobe, choice.refine_factor

    assert chosen(1.0) == (8, 4)
    assert chosen(5.0) == (16, 2)
    assert chosen(30.0) == (64, 0)
    spec = IndexSpec.parse("IVF1024,PQ32", 128)
    few, many = (probes_per_factor(spec, "sq8", 100_000, k) for k in (10, 100))
    assert 0 < few < many
    assert probes_per_factor(spec, "none", 100_000, 10) == 0


def test_memory_is_that_of_a_process_that_really_serves(tmp_path: Path) -> None:
    root = str(tmp_path)
    vectors = clustered(3000, 256)
    config = IndexConfig(uri="x", factory="OPQ32_64,IVF16,PQ32x6", refine="fp16", verify_queries=100)
    build = build_index(root, write_shards(root, vectors, 1000), config, 256)
    staged, _ = stage(root, build)
    indexes, refine = [shard.uri for shard in build.merged], [shard.uri for shard in build.refined]
    queries = vectors[::3]

    def resident(refine: list[str], factor: int) -> int:
        return measure_resident_bytes(
            indexes, refine, [staged["products.arrow"]], queries, 20, nprobe=16, refine_factor=factor
        )

    without, refined = resident([], 0), resident(refine, 8)
    assert 100_000 < without < 50_000_000
    # 1.5 MB of float16 vectors, nearly all of them candidates of some query.
    assert refined - without > 1_000_000
    Path(indexes[0]).write_bytes(b"torn")
    with pytest.raises(VerificationError, match="expected the files to open in a fresh process"):
        resident([], 0)
