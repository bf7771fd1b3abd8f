from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from index_builder import merge as merge_module
from index_builder import storage
from index_builder.errors import CodecMismatchError, VerificationError
from index_builder.exact_search import GroundTruth, exact_neighbours
from index_builder.faiss_files import IndexShard, ivf_of
from index_builder.merge import merge_index_shards
from index_builder.sampling import QuerySet
from index_builder.tuning import measure_search
from index_builder.version_files import staged_bytes, with_nprobe
from tests.index_builder.builds import clustered
from tests.index_builder.ready import DIM, ROWS, Ready, ids_of, ready


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "IVF8,SQ8", "OPQ4_8,IVF8,PQ4"])
def test_a_merge_equals_one_add_whatever_the_cut_and_the_order(root: str, factory: str) -> None:
    made = ready(root, factory)
    whole = made.add("whole.faiss", 0, 1, 2, 3)
    parts = [made.add(f"{n}.faiss", n) for n in range(4)]
    halves = [made.add("a.faiss", 0, 1), made.add("b.faiss", 2, 3)]
    merged = [
        merge_index_shards([parts[n] for n in (2, 0, 3, 1)], storage.join(root, "m1.faiss")),
        merge_index_shards(halves[::-1], storage.join(root, "m2.faiss")),
        merge_index_shards([whole], storage.join(root, "m3.faiss")),
    ]
    assert {shard.sha256 for shard in merged} == {whole.sha256}
    assert [(shard.rows, shard.first_row) for shard in merged] == [(ROWS, 0)] * 3
    assert ids_of(merged[0].uri) == list(range(ROWS))


@pytest.mark.parametrize("factory", ["IVF64,Flat", "PCA8,IVF64,PQ4x4np", "IVF64_HNSW8,SQ8"])
@pytest.mark.parametrize("rows", [10, 300])
def test_the_merged_file_is_laid_out_as_faiss_does(tmp_path, factory: str, rows: int) -> None:
    """With few vectors most lists are empty, and FAISS writes down only those that are not."""
    vectors = clustered(2 * rows + 800, DIM)
    codec = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    codec.train(vectors)
    whole, paths = faiss.clone_index(codec), []
    for number in range(2):
        part = faiss.clone_index(codec)
        numbers = np.arange(number * rows, (number + 1) * rows)
        for index in (part, whole):
            index.add_with_ids(vectors[numbers], numbers)
        paths.append(str(tmp_path / f"{number}.faiss"))
        faiss.write_index(part, paths[-1])
    faiss.write_index(whole, str(tmp_path / "whole.faiss"))
    parts = [
        IndexShard(uri=path, rows=rows, first_row=number * rows, codec_fingerprint="f", sha256=str(number))
        for number, path in enumerate(paths)
    ]
    merged = merge_index_shards(parts, str(tmp_path / "merged.faiss"))
    assert merged.sha256 == storage.sha256_file(str(tmp_path / "merged.faiss"))
    assert merged.sha256 == storage.sha256_file(str(tmp_path / "whole.faiss"))


@pytest.mark.parametrize("factory", ["IVF16,PQ8x4fs", "OPQ8_16,IVF16,PQ8x4fsr"])
def test_a_merged_fast_scan_shard_is_the_plain_one_in_another_layout(tmp_path, factory: str) -> None:
    made = ready(str(tmp_path), factory)
    parts = [made.add(f"{n}.faiss", n) for n in range(4)]
    plain = merge_index_shards(parts, str(tmp_path / "plain.faiss"))
    packed = merge_index_shards(parts, str(tmp_path / "packed.faiss"), fast_scan=True)
    index = faiss.read_index(plain.uri)
    expected = faiss.IndexIVFPQFastScan(faiss.downcast_index(ivf_of(index)))
    if isinstance(index, faiss.IndexPreTransform):
        expected = faiss.IndexPreTransform(faiss.downcast_VectorTransform(index.chain.at(0)), expected)
    assert storage.read_bytes(packed.uri) == faiss.serialize_index(expected).tobytes()
    assert packed.sha256 == storage.sha256_file(packed.uri)


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,PQ16x4fs"])
def test_index_bytes_are_written_twice_at_most(tmp_path, factory: str) -> None:
    """Once in parts, once merged; publishing copies the merged file, with the chosen `nprobe` in it."""
    made = ready(str(tmp_path), factory)
    before = _written_bytes()
    parts = [made.add(f"{n}.faiss", n) for n in range(4)]
    merged = merge_index_shards(parts, str(tmp_path / "merged.faiss"), fast_scan=factory.endswith("fs"))
    measure_search([merged.uri], *_asked(made))
    published = staged_bytes(with_nprobe(merged, 3))
    written = _written_bytes() - before
    files = sum(storage.size(shard.uri) for shard in (*parts, merged))
    assert files <= written <= files + 8192
    assert len(published) == storage.size(merged.uri)


def _written_bytes() -> int:
    """What this process has handed to the system to write, in all."""
    if not Path("/proc/self/io").exists():
        pytest.skip("this system does not count the bytes that a process writes")
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["wchar"])


def _asked(made: Ready) -> tuple[QuerySet, GroundTruth]:
    rows = np.arange(20)
    return QuerySet(rows=rows, vectors=made.vectors[rows]), exact_neighbours(made.vectors[rows], rows, made.shards, 5)


def test_a_part_that_was_cut_off_is_named(tmp_path) -> None:
    made = ready(str(tmp_path))
    parts = [made.add("a.faiss", 0, 1), made.add("b.faiss", 2, 3)]
    whole = storage.read_bytes(parts[1].uri)
    for left in (len(whole) - 100, 40):
        storage.write_bytes_atomic(parts[1].uri, whole[:left])
        with pytest.raises(VerificationError, match=r"b\.faiss"):
            merge_index_shards(parts, str(tmp_path / "merged.faiss"))
        assert not storage.exists(str(tmp_path / "merged.faiss"))


def test_the_parts_are_left_as_they_were(tmp_path) -> None:
    made = ready(str(tmp_path))
    parts = [made.add(f"{n}.faiss", n) for n in range(2)]
    merge_index_shards(parts, str(tmp_path / "merged.faiss"))
    assert [storage.sha256_file(part.uri) for part in parts] == [part.sha256 for part in parts]


def test_different_codecs_are_refused(tmp_path: Path) -> None:
    """FAISS itself would merge them, and give nonsense."""
    root = str(tmp_path)
    one, other = ready(root), ready(root, seed=1)
    parts = [one.add("0.faiss", 0), other.add("1.faiss", 1)]
    with pytest.raises(CodecMismatchError, match="different codecs") as caught:
        merge_index_shards(parts, storage.join(root, "merged.faiss"))
    assert one.codec.fingerprint in str(caught.value)
    assert other.codec.fingerprint in str(caught.value)
    assert not storage.exists(storage.join(root, "merged.faiss"))


@pytest.mark.parametrize(
    ("cut", "message"), [([(0, 1), (1, 2)], "share rows"), ([(0,), (0,)], "share rows"), ([(0,), (2,)], "leave a gap")]
)
def test_overlaps_and_gaps_are_refused(tmp_path, cut: list[tuple[int, ...]], message: str) -> None:
    made = ready(str(tmp_path))
    parts = [made.add(f"{n}.faiss", *numbers) for n, numbers in enumerate(cut)]
    with pytest.raises(CodecMismatchError, match=message):
        merge_index_shards(parts, str(tmp_path / "merged.faiss"))


def test_nothing_to_merge(tmp_path) -> None:
    with pytest.raises(CodecMismatchError, match="found none"):
        merge_index_shards([], str(tmp_path / "merged.faiss"))


def test_a_finished_merge_is_left_alone(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ready(root)
    parts = [made.add(f"{n}.faiss", n) for n in range(2)]
    first = merge_index_shards(parts, storage.join(root, "merged.faiss"))
    with monkeypatch.context() as patched:
        patched.setattr(merge_module, "read_index", lambda *a, **kw: pytest.fail("merged again"))
        assert merge_index_shards(parts[::-1], storage.join(root, "merged.faiss")) == first
