"""The order in which a search finds rows: one sequence for each query, of which every answer is a slice.

What a search for k finds depends on k, for k says how many candidates are re-ranked and how many lists are probed. So
the sequence is made of blocks of fixed depths, in a series of 1, 2, 5, 10, 20 ... times that of the first: block j is
what a search for its depth finds, without what stands in the blocks before it, best first. The first block is as deep
as the recall of the version was measured for. No row is in it twice, and none that passes is left out.

In most searches all blocks follow from one scan of the inverted lists, for the rows with the best codes for any depth
are the first of those for a greater one. Where a search has to probe more lists the deeper it is, or skips codes, it
is done again for each block, and blocks are fewer: 1, 10, 100 ...

Legend: `B` queries, `D` dimension, `d` depth of a block, `c` candidates for it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from index_builder.faiss_files import top_by_score
from index_builder.shard_search import RefineCodes, RowSelection, ShardSearch, best_by_score, search_refined

SPARE_CANDIDATES = 8
"""Candidates beyond those wanted, that show where rows of one score end."""
SCANNED_STEPS = (1, 2, 5)
"""Depths of blocks of one scan, in each power of ten. Many, so that little more is re-ranked than is wanted."""
SEARCHED_STEPS = (1,)
"""The same of blocks that are searched for one by one. Few, for each is a search."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The sequences of some queries, float32 [B, D]. The settings are those of `search_refined`.

    Attributes:
        first_depth: of the first block.
    """

    search: ShardSearch
    codes: RefineCodes | None
    queries: np.ndarray
    nprobe: int
    refine_factor: int
    selection: RowSelection | None
    first_depth: int

    @property
    def total(self) -> int:
        """Rows in a sequence: all that pass."""
        return self.search.rows if self.selection is None else self.selection.rows

    def first(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first rows of each sequence: `count` or some more, or all there are.

        As scores float32 [B, n] and rows int64 [B, n]; -inf and -1 behind a sequence that is shorter than others.
        """
        count = min(count, self.total)
        if not count:
            return np.empty((len(self.queries), 0), np.float32), np.empty((len(self.queries), 0), np.int64)
        if self.selection is not None and self.selection.is_compared_whole(self.codes, self.refine_factor):
            return self._searched(count)
        if self.selection is None and self.search.scores_every_code:
            return self._scanned(_depths(self.first_depth, SCANNED_STEPS, count, self.total))
        depths = _depths(self.first_depth, SEARCHED_STEPS, count, self.total)
        blocks = [self._searched(depth) for depth in depths]
        if len(blocks) == 1:
            return blocks[0]
        return padded([_joined([(scores[n], rows[n]) for scores, rows in blocks]) for n in range(len(self.queries))])

    def _searched(self, depth: int, query: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """What a search of one depth finds for all queries, or for one: [B, depth] or [1, depth]."""
        return search_refined(
            self.search,
            self.codes,
            self.queries if query is None else self.queries[query : query + 1],
            depth,
            nprobe=self.nprobe,
            refine_factor=self.refine_factor,
            selection=self.selection,
        )

    def _scanned(self, depths: list[int]) -> tuple[np.ndarray, np.ndarray]:
        refined = self.codes is not None and self.refine_factor > 0
        candidates = [min(depth * max(1, self.refine_factor if refined else 1), self.total) for depth in depths]
        scores, rows = self._best_codes(candidates[-1])
        if self.codes is not None and refined:
            scores = self.codes.scores(self.queries, rows)
        held = (rows >= 0).sum(axis=1)
        short = np.flatnonzero(held < candidates[-1])
        if not len(short):
            return _in_blocks(scores, rows, depths, candidates) if refined else (scores, rows)
        # The lists that are probed do not hold as many candidates as the deepest block wants. Those blocks for which
        # they do are the same as ever; the deeper ones probe more lists, each for itself.
        sequences = []
        for query in range(len(rows)):
            standing = sum(wanted <= held[query] for wanted in candidates)
            parts = []
            if standing:
                known = candidates[standing - 1]
                of_query = slice(query, query + 1), slice(known)
                ordered = _in_blocks(scores[of_query], rows[of_query], depths[:standing], candidates[:standing])
                parts = [(ordered[0][0], ordered[1][0])]
            for depth in depths[standing:]:
                found = self._searched(depth, query)
                parts.append((found[0][0], found[1][0]))
            sequences.append(_joined(parts))
        return padded(sequences)

    def _best_codes(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the lists probed that have the best codes, [B, count]; the same for every greater count.

        Of rows with the same score FAISS keeps any: so many more are asked for that all of them are there.
        """
        width = min(count + SPARE_CANDIDATES, self.total)
        while True:
            scores, rows = self.search.search(self.queries, width, nprobe=self.nprobe, widen=False)
            if width >= self.total:
                break
            tied = (rows[:, -1] >= 0) & (scores[:, -1] == scores[:, count - 1])
            if not tied.any():
                break
            width = min(4 * width, self.total)
        return scores[:, :count], rows[:, :count]


def _depths(first: int, steps: tuple[int, ...], count: int, total: int) -> list[int]:
    """The depths of the blocks of the first `count` of `total` rows."""
    depths: list[int] = []
    series = (first * step * 10**power for power in itertools.count() for step in steps)
    while not depths or depths[-1] < count:
        depths.append(min(next(series), total))
    return depths


def _in_blocks(
    scores: np.ndarray, rows: np.ndarray, depths: list[int], candidates: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The sequence of blocks, each the best by score of a beginning of the columns of scores and rows [B, c].

    As [B, n], where n is that of the shortest sequence: blocks overlap less in some than in others.
    """
    if len(depths) == 1:
        return best_by_score(scores, rows, depths[0])
    order = np.lexsort((rows, -scores), axis=1)
    block = np.full(order.shape, len(depths))
    for number in reversed(range(len(depths))):
        inside = order < candidates[number]
        block[inside & (np.cumsum(inside, axis=1) <= depths[number])] = number
    length = int((block < len(depths)).sum(axis=1).min())
    order = np.take_along_axis(order, np.argsort(block, axis=1, kind="stable")[:, :length], axis=1)
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of one query, scores and rows [d] each, one behind the other, every row where it stands first."""
    scores, rows = (np.concatenate([part[number] for part in parts]) for number in (0, 1))
    first = np.sort(np.unique(rows, return_index=True)[1])
    first = first[rows[first] >= 0]
    return scores[first], rows[first]


def padded(sequences: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of several queries as arrays, -inf and -1 behind the shorter ones."""
    if len(sequences) == 1:
        return sequences[0][0][None], sequences[0][1][None]
    width = max((len(rows) for _, rows in sequences), default=0)
    scores = np.full((len(sequences), width), -np.inf, np.float32)
    rows = np.full((len(sequences), width), -1, np.int64)
    for query, (found, numbers) in enumerate(sequences):
        scores[query, : len(found)], rows[query, : len(numbers)] = found, numbers
    return scores, rows


def sliced(scores: np.ndarray, rows: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """A slice of sequences, best first: a row that only a deeper block found may score higher than those before it."""
    scores, rows = scores[:, start:stop], rows[:, start:stop]
    if (scores[:, 1:] > scores[:, :-1]).any():
        return top_by_score(scores, rows, rows.shape[1])
    return scores, rows
