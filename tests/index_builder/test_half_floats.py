"""Halves are widened to the very bits of `astype`, and divided as one would divide them row by row."""

from __future__ import annotations

import numpy as np
import pytest

from index_builder.embedding_shards import divided_halves, row_pieces, widened


def test_every_finite_half_widens_to_the_bits_of_astype():
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(-1, 2048)

    np.testing.assert_array_equal(widened(halves).view(np.uint32), halves.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (1, 1), (1000, 384), (2, 1 << 17)])
def test_any_shape_is_widened(shape: tuple[int, int]):
    halves = np.random.default_rng(0).normal(size=shape).astype(np.float16)

    np.testing.assert_array_equal(widened(halves), halves.astype(np.float32))


def test_rows_apart_and_other_types_are_widened():
    halves = np.random.default_rng(0).normal(size=(600, 32)).astype(np.float16)

    np.testing.assert_array_equal(widened(halves[::2, 3:]), halves[::2, 3:].astype(np.float32))
    np.testing.assert_array_equal(widened(halves.astype(np.float64)), halves.astype(np.float32))


def test_a_given_array_is_written_to():
    halves = np.random.default_rng(0).normal(size=(500, 200)).astype(np.float16)
    rows = np.full((700, 200), 7, dtype=np.float32)

    assert widened(halves, out=rows[:500]).base is rows
    np.testing.assert_array_equal(rows[:500], halves.astype(np.float32))
    assert (rows[500:] == 7).all()


def test_rows_are_divided_and_rounded():
    values = np.random.default_rng(0).normal(size=(1000, 300)).astype(np.float32)
    divisors = np.linalg.norm(values, axis=1).astype(np.float32)

    np.testing.assert_array_equal(divided_halves(values, divisors), (values / divisors[:, None]).astype(np.float16))


def test_pieces_cover_every_row_once():
    matrix = np.empty((1001, 384))

    assert np.concatenate([np.arange(1001)[rows] for rows in row_pieces(matrix)]).tolist() == list(range(1001))
