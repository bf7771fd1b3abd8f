from __future__ import annotations

import numpy as np

from pipelines.indexing.tower_memory import KeptOutputs


def vector(value: float) -> np.ndarray:
    return np.full(4, value, np.float32)


def test_equal_keys_are_made_once_and_kept():
    kept, asked = KeptOutputs(), []

    def make(places: np.ndarray) -> np.ndarray:
        asked.append(places.tolist())
        return np.stack([vector(place) for place in places])

    vectors, made = kept.take([b"a", b"b", b"a", b"c"], make)
    assert (vectors[:, 0].tolist(), made) == ([0, 1, 0, 3], 3)
    vectors, made = kept.take([b"c", b"d", b"a"], make)
    assert (vectors[:, 0].tolist(), made) == ([3, 1, 0], 1)
    assert kept.take([b"d"], make)[1] == 0
    assert asked == [[0, 1, 3], [1]]


def test_those_asked_for_last_stay_within_the_limit():
    kept = KeptOutputs(3 * (16 + 256))
    for number in range(3):
        kept.keep({bytes([number]): vector(number)})
    kept.find([b"\0"])
    kept.keep({b"new": vector(9)})
    assert kept.find([b"\0", b"\1", b"\2", b"new"]).keys() == {b"\0", b"\2", b"new"}


def test_a_kept_vector_does_not_hold_its_batch():
    kept, batch = KeptOutputs(), np.zeros((1000, 4), np.float32)
    kept.keep({b"a": batch[0]})
    assert kept.find([b"a"])[b"a"].base is None
