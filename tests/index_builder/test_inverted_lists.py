from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest

from index_builder import inverted_lists
from index_builder.errors import VerificationError
from index_builder.faiss_files import IndexShard
from index_builder.inverted_lists import ListFile, list_table, merged_lists
from index_builder.merge import merge_index_shards
from tests.benchmarks.machine import peak_bytes

ROWS_OF_LISTS = [
    [[0, 3, 0, 0, 1, 0, 0, 0], [2, 0, 0, 5, 1, 0, 0, 0], [0] * 8],
    [[4, 1, 2, 0, 7, 1, 3, 9], [0, 0, 0, 0, 0, 0, 0, 1], [1, 2, 3, 4, 5, 6, 7, 8]],
    [[0, 0, 40, 0], [1, 0, 37, 2]],
]


def written(folder: Path, sizes: list[list[int]], code_size: int, before: bytes) -> list[str]:
    """Files of random codes and running ids, with some bytes in front of their lists."""
    random, paths, row = np.random.default_rng(0), [], 0
    for number, of_lists in enumerate(sizes):
        data = before + list_table(np.array(of_lists), code_size)
        for rows in of_lists:
            data += random.bytes(rows * code_size) + np.arange(row, row + rows, dtype="<i8").tobytes()
            row += rows
        paths.append(str(folder / f"{number}.lists"))
        Path(paths[-1]).write_bytes(data)
    return paths


def expected(paths: list[str], sizes: list[list[int]], code_size: int, start: int) -> bytes:
    """List by list the codes of all files, then the ids, cut out one by one."""
    codes: dict[int, bytes] = {}
    ids: dict[int, bytes] = {}
    for path, of_lists in zip(paths, sizes, strict=True):
        data = Path(path).read_bytes()[start + len(list_table(np.array(of_lists), code_size)) :]
        for number, rows in enumerate(of_lists):
            codes[number] = codes.get(number, b"") + data[: rows * code_size]
            ids[number] = ids.get(number, b"") + data[rows * code_size : rows * (code_size + 8)]
            data = data[rows * (code_size + 8) :]
    return b"".join(codes[number] + ids[number] for number in range(len(sizes[0])))


@pytest.mark.parametrize("sizes", ROWS_OF_LISTS)
@pytest.mark.parametrize(("buffer_rows", "buffer_sizes"), [(1 << 18, 1 << 18), (8, 6), (3, 1), (1, 1 << 18)])
def test_lists_of_all_files_follow_each_other_whatever_the_buffers_hold(
    tmp_path, monkeypatch: pytest.MonkeyPatch, sizes: list[list[int]], buffer_rows: int, buffer_sizes: int
) -> None:
    monkeypatch.setattr(inverted_lists, "_BUFFER_ROWS", buffer_rows)
    monkeypatch.setattr(inverted_lists, "_BUFFER_SIZES", buffer_sizes)
    paths = written(tmp_path, sizes, 5, b"codec")
    files, of_files = zip(*(ListFile.open(path, 5) for path in paths), strict=True)
    assert [found.tolist() for found in of_files] == sizes
    pieces = [bytes(piece) for piece in merged_lists(files, np.sum(of_files, axis=0))]
    assert b"".join(pieces) == expected(paths, sizes, 5, 5)
    assert max(map(len, pieces)) <= buffer_rows * 13


def test_what_are_no_lists_is_named(tmp_path) -> None:
    (path,) = written(tmp_path, [[1, 2, 3]], 5, b"codec")
    whole = Path(path).read_bytes()
    for data, message in [
        (whole[:20], "expected inverted lists from byte 5 on"),
        (b"another" + whole[5:], "expected inverted lists from byte 5 on"),
        (whole[:-1], f"expected {len(whole)} bytes, found {len(whole) - 1}"),
        (whole[:40], "within the sizes"),
    ]:
        Path(path).write_bytes(data)
        with pytest.raises(VerificationError, match=f"the third part: .*{message}|the third part: ends {message}"):
            ListFile.open(path, 5, name="the third part")


PARTS, LISTS, DIM = 200, 512, 512
CODEC_BYTES = LISTS * DIM * 4


def merge_many(folder: str) -> dict[str, int]:
    """Merges 200 shards of one codec of 1 MB with few open files; what the process held before and at most after."""
    import resource

    random = np.random.default_rng(0)
    codec = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(DIM), DIM, LISTS, faiss.ScalarQuantizer.QT_8bit_direct, faiss.METRIC_INNER_PRODUCT, False
    )
    codec.quantizer.add(random.normal(size=(LISTS, DIM)).astype(np.float32))
    codec.is_trained = True
    parts = []
    for number in range(PARTS):
        codec.reset()
        rows = np.arange(number * 20, number * 20 + 20)
        codec.add_core(
            20,
            faiss.swig_ptr(random.integers(0, 255, (20, DIM)).astype(np.float32)),
            faiss.swig_ptr(rows),
            faiss.swig_ptr(random.integers(0, LISTS, 20)),
        )
        path = f"{folder}/{number}.faiss"
        faiss.write_index(codec, path)
        parts.append(IndexShard(uri=path, rows=20, first_row=number * 20, codec_fingerprint="one", sha256=str(number)))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    before = peak_bytes()
    merged = merge_index_shards(parts, f"{folder}/merged.faiss")
    return {"rows": merged.rows, "grown_bytes": peak_bytes() - before}


def test_memory_and_open_files_do_not_grow_with_the_number_of_shards(tmp_path) -> None:
    """200 codecs of 1 MB would be 200 MB, and 200 files more than the 64 that may be open."""
    program = f"import json; from {__name__} import merge_many; print(json.dumps(merge_many({str(tmp_path)!r})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["rows"] == 20 * PARTS
    assert found["grown_bytes"] < inverted_lists.MERGE_BYTES + 3 * CODEC_BYTES
