from __future__ import annotations

import numpy as np
import pytest

from pipelines.catalog.previous_version import KEYED_RECORD, keyed_records
from pipelines.catalog.sorted_runs import SortedRun, read_partition, sorted_by_key, write_run


def records(seed: int, keys: int, *, shard: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    digests = random.integers(0, 256, (keys, 16), np.uint8)
    return keyed_records(np.concatenate([digests, digests[: keys // 3]]), shard, np.arange(keys + keys // 3))


@pytest.mark.parametrize("partitions", [1, 3, 64])
def test_partitions_of_all_runs_are_the_whole_sorted(tmp_path, partitions):
    batches = [records(number % 3, 200, shard=number) for number in range(5)]
    runs = []
    for number, batch in enumerate(batches):
        path = str(tmp_path / str(number))
        starts = write_run(path, sorted_by_key([batch[:50], batch[50:]]), partitions)
        runs.append(SortedRun(uri=path, starts=tuple(starts)))
    found = np.concatenate([read_partition(runs, partition) for partition in range(partitions)])
    whole = np.concatenate(batches)
    order = np.lexsort((whole["row"], whole["shard"], whole["tail"], whole["key"]))
    assert np.array_equal(found, whole[order])


def test_keys_of_one_first_half_are_kept_apart():
    keys = np.zeros((6, 16), np.uint8)
    keys[:, 15] = [2, 1, 2, 1, 3, 2]
    found = sorted_by_key([keyed_records(keys, 0, np.arange(6))])
    assert found["tail"].tolist() == [1, 1, 2, 2, 2, 3]
    assert found["row"].tolist() == [1, 3, 0, 2, 5, 4]
    assert sorted_by_key([]).dtype == KEYED_RECORD
