"""What recall can be reached, and the cheapest index that reaches it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from index_builder import storage
from index_builder.codec import CodecInfo, open_codec, train_codec
from index_builder.embedding_shards import NumberedShard
from index_builder.exact_search import FILTERED_QUERIES
from index_builder.held_out import HeldOut, find_held_out, held_out_queries, search_shards
from index_builder.planner import candidates, is_open, plan_sample
from index_builder.reachable import reachable, refined_recall, without
from index_builder.sampling import ShardSample, write_sample
from index_builder.selection import choose_candidate, fits, settle
from index_builder.spec import IndexConfig, IndexSpec
from index_builder.tuning import measure_index, measure_search
from tests.index_builder.builds import build_index, clustered, write_shards
from tests.index_builder.near_copies import near_copies

ROWS, DIM = 6000, 128
CODES = IndexSpec.parse("OPQ16_64,IVF64,PQ16", DIM)
CONFIG = IndexConfig(uri="x", target_recall=0.95, verify_queries=150)


@dataclass(frozen=True)
class Catalog:
    root: str
    shards: list[NumberedShard]
    samples: list[ShardSample]
    held: HeldOut
    codec: CodecInfo


def held_out_of(
    config: IndexConfig, spec: IndexSpec, shards: list[NumberedShard], samples: list[ShardSample], root: str
) -> HeldOut:
    rows = sum(shard.kept_rows for shard in shards)
    queries = held_out_queries(config, spec, rows, samples, storage.join(root, "queries"))
    return find_held_out(config, spec, shards, queries, storage.join(root, "held_out"))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root = str(tmp_path_factory.mktemp("selection"))
    shards = write_shards(root, near_copies(300, 20, DIM), 1500)
    plan = plan_sample(CONFIG, CODES, ROWS)
    samples = [
        write_sample(
            *([shard], storage.join(root, "sample", f"{number}.parquet")),
            training_share=plan.training_share,
            query_share=plan.query_share,
        )
        for number, shard in enumerate(shards)
    ]
    held = held_out_of(CONFIG, CODES, shards, samples, root)
    return Catalog(root, shards, samples, held, train_codec(samples, CODES, storage.join(root, "codec"), seed=0))


def test_the_neighbours_are_kept_with_their_vectors(catalog: Catalog) -> None:
    held = catalog.held
    again = held_out_of(CONFIG, CODES, catalog.shards, catalog.samples, catalog.root)
    for first, second in ((held.truth.rows, again.truth.rows), (held.vectors, again.vectors)):
        assert np.array_equal(first, second)
    assert np.array_equal(held.rows[held.neighbours], held.truth.rows[:, : held.neighbours.shape[1]])
    scores = np.einsum("qd,qkd->qk", held.queries.vectors, held.vectors[held.neighbours].astype(np.float32))
    assert np.allclose(scores, held.truth.scores[:, : scores.shape[1]], atol=1e-5)
    assert list(held.filters) == ["10 % at random", "1 % at random", "0.1 % at random", "those near one product"]
    assert all(len(under.truth.rows) == FILTERED_QUERIES for under in held.filters.values())


def test_shards_searched_apart_give_the_same(catalog: Catalog) -> None:
    held, shards, root = catalog.held, catalog.shards, storage.join(catalog.root, "apart")
    groups = (shards[:1], shards[1:3], shards[3:])
    uris = [search_shards(CONFIG, held.queries, some, f"{root}/{number}") for number, some in enumerate(groups)]
    joined = find_held_out(CONFIG, CODES, shards, held.queries, f"{root}/held_out", uris)
    for name in ("rows", "vectors", "neighbours"):
        assert np.array_equal(getattr(joined, name), getattr(held, name)), name
    pairs = [(joined.truth, held.truth)]
    for name, whole in held.filters.items():
        assert np.array_equal(joined.filters[name].rows, whole.rows), name
        pairs.append((joined.filters[name].truth, whole.truth))
    for truth, whole_truth in pairs:
        assert np.array_equal(truth.rows, whole_truth.rows)
        assert np.array_equal(truth.scores, whole_truth.scores)


def test_what_can_be_reached_is_what_is_measured_with_all_lists_probed(catalog: Catalog) -> None:
    config = replace(CONFIG, factory=CODES.factory, bytes_per_vector=16, refine="sq8")
    build = build_index(storage.join(catalog.root, "whole"), catalog.shards, config, DIM)
    reach = reachable(open_codec(build.codec), catalog.held, 10, ROWS)
    uris = [shard.uri for shard in build.merged]
    whole = measure_search(uris, catalog.held.queries, catalog.held.truth, k=10)
    measured = {row.nprobe: row.recall for row in whole}
    assert reach.by_codes == pytest.approx(whole[-1].recall, abs=0.01)
    assert all(recall <= reach.at(nprobe, reach.by_codes) + 0.01 for nprobe, recall in measured.items())
    # All neighbours lie in the lists of their copies: few probes reach what all do.
    assert reach.by_lists[8] > 0.97
    assert list(reach.by_lists.values()) == sorted(reach.by_lists.values())
    sq8 = refined_recall(catalog.held, catalog.samples, "sq8", 10)
    refined = [shard.uri for shard in build.refined]
    by_sq8 = measure_search(uris, catalog.held.queries, catalog.held.truth, k=10, refine_uris=refined)
    assert sq8 == pytest.approx(max(row.recall for row in by_sq8), abs=0.01)
    assert reach.by_codes < sq8 - 0.2
    assert refined_recall(catalog.held, catalog.samples, "fp16", 10) == 1.0


def test_re_ranking_of_what_was_found_counts_that_alone(catalog: Catalog) -> None:
    truth = catalog.held.truth
    assert refined_recall(catalog.held, catalog.samples, "fp16", 10, truth.rows[:, :5]) == pytest.approx(0.5)
    nothing = np.full((len(truth.rows), 5), -1)
    assert refined_recall(catalog.held, catalog.samples, "sq8", 10, nothing) == 0.0
    assert np.array_equal(without(np.array([[4, 7, 9], [1, 2, 3]]), np.array([7, -1])), [[4, 9, -1], [1, 2, 3]])


def test_the_cheapest_candidate_that_reaches_the_target_is_chosen(catalog: Catalog) -> None:
    ladder = candidates(CONFIG, ROWS, DIM)
    assert len(ladder) > 4

    def chosen(target: float, **settings: object) -> int:
        config = replace(CONFIG, target_recall=target, **settings)  # type: ignore[arg-type]
        return ladder.index(choose_candidate(config, ladder, catalog.held, catalog.samples, ROWS))

    assert chosen(0.05) == 0
    assert chosen(0.97) > 0
    # A server without room for what the target needs gets the best of what fits.
    small = replace(CONFIG, server_memory_mb=1)
    assert not fits(small, ladder[-1], ROWS)
    assert fits(small, ladder[chosen(0.999, server_memory_mb=1)], ROWS)
    assert choose_candidate(CONFIG, ladder[:1], catalog.held, catalog.samples, ROWS) is ladder[0]


@pytest.mark.parametrize("given", [{"bytes_per_vector": 64}, {"factory": "IVF64,PQ16"}, {"refine": "sq8"}])
def test_what_the_config_says_is_not_open(given: dict, catalog: Catalog) -> None:
    config = replace(CONFIG, **given)
    assert not is_open(config)
    settled = settle(config, catalog.codec, "none", catalog.held, catalog.samples, ROWS)
    assert (settled.refine, settled.reason) == ("none", "")


def test_codes_that_fall_short_are_re_ranked_and_stay_so(catalog: Catalog) -> None:
    def settled(target: float, **settings: object) -> tuple[str, str]:
        config = replace(CONFIG, target_recall=target)
        found = settle(config, catalog.codec, "none", catalog.held, catalog.samples, ROWS, **settings)  # type: ignore[arg-type]
        return found.refine, found.reason

    reach = settle(CONFIG, catalog.codec, "none", catalog.held, catalog.samples, ROWS).reach
    assert reach is not None
    assert settled(reach.by_codes - 0.01)[0] == "none"
    sq8 = refined_recall(catalog.held, catalog.samples, "sq8", 10)
    kind, reason = settled(sq8 - 0.01)
    assert kind == "sq8"
    assert reason.startswith("re-ranked by sq8: of the neighbours of held-out queries the codes find, with all lists")
    assert f"codes alone {reach.by_codes:.4f}, re-ranked by sq8 {sq8:.4f};" in reason
    assert settled(1.0)[0] == "fp16"
    # What an earlier run chose is kept while it measures well, and where it is more than is needed.
    assert settled(reach.by_codes + 0.005, earlier="none")[0] == "none"
    assert settled(reach.by_codes + 0.02, earlier="none")[0] == "sq8"
    kind, reason = settled(0.05, earlier="sq8")
    assert (kind, "kept from the last run" in reason) == ("sq8", True)


def test_a_target_out_of_reach_is_said_with_what_would_reach_it(catalog: Catalog) -> None:
    config = replace(CONFIG, factory=CODES.factory, bytes_per_vector=16, target_recall=0.85)
    root = storage.join(catalog.root, "short")
    build = build_index(root, catalog.shards, config, DIM)
    reach = reachable(open_codec(build.codec), catalog.held, 10, ROWS)
    (of_some, known), *_ = catalog.held.filters.items()
    none_pass = replace(known, rows=np.empty(0, np.int64))
    held = replace(catalog.held, filters={**catalog.held.filters, "none passes": none_pass})
    given = (build.spec, "none", held, reach, catalog.samples, [shard.uri for shard in build.merged])
    measured = measure_index(config, *given)
    assert not measured.chosen.reached
    assert of_some in [row.filter for row in measured.filtered]
    assert [row.nprobe for row in measured.table] == [1, 2, 4, 8, 16][: len(measured.table)]
    assert measured.chosen.recall > max(row.recall for row in measured.table) - 0.006
    (remedy,) = measured.remedies
    assert remedy.option == "--index.refine sq8"
    refined = build_index(storage.join(root, "refined"), catalog.shards, replace(config, refine="sq8"), DIM)
    assert remedy.recall == pytest.approx(max(row.recall for row in refined.measured), abs=0.01)
    for row in measured.filtered:
        assert 0 < row.pass_share < 0.2
        assert row.recall > 0
        assert row.latency_ms > 0


def test_a_gate_above_the_target_is_told_the_target_that_passes_it(root: str) -> None:
    config = IndexConfig(uri="x", factory="IVF32,Flat", target_recall=0.3, verify_queries=150)
    shards = write_shards(root, clustered(3000, 16), 1500)
    build = build_index(root, shards, config, 16)
    samples = [
        write_sample([shard], storage.join(root, "drawn", f"{number}.parquet"), training_share=0.5, query_share=0.06)
        for number, shard in enumerate(shards)
    ]
    held = held_out_of(config, build.spec, shards, samples, root)
    given = (build.spec, "none", held, reachable(open_codec(build.codec), held, 10, 3000), samples)
    uris = [shard.uri for shard in build.merged]
    enough = measure_index(config, *given, uris)
    assert (enough.chosen.reached, enough.remedies) == (True, ())
    (more,) = measure_index(config, *given, uris, wanted=0.9).remedies
    assert more.option == "--index.target_recall 0.9"
    assert more.recall >= 0.9
    asked = measure_index(replace(config, target_recall=0.9), *given, uris)
    assert asked.chosen.recall >= 0.9
    # Settings that cannot reach the target are passed over, but for those that show the way.
    lists = given[3].by_lists
    tried = {row.nprobe for row in asked.table}
    assert {1, 2, 4} <= tried
    assert not {nprobe for nprobe in tried if nprobe & (nprobe - 1) and lists[nprobe] < 0.9}
