from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index_builder import drift, storage
from index_builder.add import add_shards
from index_builder.codec import copy_codec, open_codec, train_codec
from index_builder.drift import (
    CodecChoice,
    CodecFit,
    ReusableCodec,
    choose_codec,
    estimate_fit,
    find_reusable,
    list_imbalance,
    measure_fit,
    save_fit,
)
from index_builder.sampling import ShardSample, write_sample
from index_builder.spec import IndexConfig, IndexSpec
from tests.index_builder.builds import clustered, write_shards

SPEC = IndexSpec.parse("OPQ8_16,IVF16,PQ8", 24)
ASKED = {"factory": "x", "seed": 0}


def sample(folder: Path, vectors: np.ndarray) -> list[ShardSample]:
    shards = write_shards(str(folder), vectors, 1000)
    return [
        write_sample([shard], str(folder / f"{number}.parquet"), training_share=0.6, query_share=0.1)
        for number, shard in enumerate(shards)
    ]


@pytest.fixture
def reusable(tmp_path: Path) -> ReusableCodec:
    samples = sample(tmp_path / "first", clustered(4000, 24))
    codec = train_codec(samples, SPEC, str(tmp_path / "codec"), seed=0)
    shards = write_shards(str(tmp_path / "first"), clustered(4000, 24), 1000)
    fit = measure_fit(codec, [add_shards(codec, shards, str(tmp_path / "index")).uri], samples, 0.9)
    save_fit(codec, ASKED, fit, fit)
    found = find_reusable(codec.uri, ASKED)
    assert found is not None
    return found


def test_a_codec_fits_the_catalog_it_was_trained_for_and_one_like_it(tmp_path: Path, reusable: ReusableCodec) -> None:
    assert 0 < reusable.trained.quantization_error < 0.5
    assert 1 < reusable.trained.list_imbalance < 2
    changed = clustered(4000, 24)
    changed[:200] = 0.9 * changed[200:400] + 0.1 * changed[400:600]
    changed[:200] /= np.linalg.norm(changed[:200], axis=1, keepdims=True)
    assert drift.why_not(reusable, estimate_fit(reusable.codec, sample(tmp_path / "like", changed), 4000)) == ""


def test_the_fit_is_estimated_before_the_build_as_it_is_measured_after_it(
    tmp_path: Path, reusable: ReusableCodec
) -> None:
    estimated = estimate_fit(reusable.codec, sample(tmp_path / "same", clustered(4000, 24)), 4000)
    assert estimated.products == reusable.trained.products == 4000
    assert estimated.quantization_error == reusable.trained.quantization_error
    assert estimated.list_imbalance == pytest.approx(reusable.trained.list_imbalance, rel=0.05)


def test_other_products_are_noticed(tmp_path: Path, reusable: ReusableCodec) -> None:
    others = estimate_fit(reusable.codec, sample(tmp_path / "others", clustered(4000, 24, seed=5)), 4000)
    assert "quantization error" in drift.why_not(reusable, others)
    assert others.quantization_error > 1.05 * reusable.trained.quantization_error


@pytest.mark.parametrize(
    ("today", "latest", "words"),
    [
        ({}, {}, ""),
        ({"products": 8001}, {}, "8,001 products, it was trained for 4,000"),
        ({"products": 1999}, {}, "1,999 products"),
        ({"products": 8000}, {}, ""),
        ({"list_imbalance": 9.0}, {}, "imbalance 9.00"),
        ({}, {"recall": 0.88}, "recall fell from 0.9000 to 0.8800"),
        ({}, {"recall": 0.895}, ""),
        ({"quantization_error": None}, {}, ""),
    ],
)
def test_each_limit_has_its_words(reusable: ReusableCodec, today: dict, latest: dict, words: str) -> None:
    changed = replace(reusable, latest=replace(reusable.latest, **latest))
    found = drift.why_not(changed, replace(reusable.trained, **today))
    assert words in found
    assert bool(found) == bool(words)


def test_an_exact_index_has_no_codec_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    samples, flat = sample(tmp_path / "same", clustered(4000, 24)), IndexSpec.parse("Flat", 24)
    config = IndexConfig(uri="x", factory="Flat")
    choice = choose_codec(samples, flat, str(tmp_path / "flat"), config=config, products=4000, reusable=None)
    assert choice.reason == "none: an exact index (Flat) holds the vectors themselves, nothing is trained"
    assert "codec" not in caplog.text
    choose_codec(samples, SPEC, str(tmp_path / "trained"), config=config, products=4000, reusable=None)
    assert "trained codec" in caplog.text


def test_the_choice_of_a_codec_says_why(tmp_path: Path, reusable: ReusableCodec) -> None:
    samples = sample(tmp_path / "same", clustered(4000, 24))
    config = IndexConfig(uri="x", factory=SPEC.factory)

    def choose(name: str, config: IndexConfig, codec: ReusableCodec | None) -> CodecChoice:
        return choose_codec(samples, SPEC, str(tmp_path / name), config=config, products=4000, reusable=codec)

    kept = choose("kept", config, reusable)
    assert (kept.kept, kept.reason) == (True, "kept from the last run: it fits today's products")
    assert kept.codec == replace(reusable.codec, uri=str(tmp_path / "kept"))
    first = choose("first", config, None)
    assert (first.kept, first.reason) == (False, "trained: there is no earlier one for this config")
    assert choose("first", config, None) == first
    never = choose("never", replace(config, reuse_codec=False), None)
    assert never.reason == "trained: index.reuse_codec is false"
    fallen = choose("fallen", config, replace(reusable, latest=replace(reusable.latest, recall=0.5)))
    assert fallen.reason == "trained: recall fell from 0.9000 to 0.5000 in the last run"
    assert fallen.codec.fingerprint == first.codec.fingerprint


def test_an_adopted_codec_is_the_same_one(tmp_path: Path, reusable: ReusableCodec) -> None:
    codec = copy_codec(reusable.codec, str(tmp_path / "other"))
    assert codec.fingerprint == reusable.codec.fingerprint
    assert open_codec(codec).is_trained
    assert copy_codec(reusable.codec, reusable.codec.uri) == reusable.codec


def test_a_codec_of_another_config_or_without_a_fit_is_not_reused(tmp_path: Path, reusable: ReusableCodec) -> None:
    assert find_reusable(reusable.codec.uri, ASKED | {"seed": 1}) is None
    assert find_reusable(str(tmp_path / "nowhere"), ASKED) is None
    copy_codec(reusable.codec, str(tmp_path / "copied"))
    assert find_reusable(str(tmp_path / "copied"), ASKED) is None


def damage(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def test_a_codec_whose_bytes_were_damaged_is_trained_anew(
    tmp_path: Path, reusable: ReusableCodec, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "codec" / "codec.faiss"
    data = path.read_bytes()
    samples = sample(tmp_path / "today", clustered(4000, 24))
    for number, damaged in enumerate((data[:-1] + bytes([data[-1] ^ 1]), None)):
        path.write_bytes(damaged) if damaged is not None else path.unlink()
        config, out = IndexConfig(uri="x", factory="auto"), str(tmp_path / f"next{number}")
        choice = choose_codec(samples, SPEC, out, config=config, products=4000, reusable=reusable)
        assert (choice.kept, choice.reason) == (False, "trained: that of the last run was damaged")
        open_codec(choice.codec)
    assert "the codec of the last run is not kept" in caplog.text


@pytest.mark.parametrize(("old", "new"), [(b'"spec"', b'"spfc"'), (b'"lists": 16', b'"lists": 17'), (b"{", b"[")])
def test_a_codec_whose_description_was_damaged_is_not_reused(
    tmp_path: Path, reusable: ReusableCodec, old: bytes, new: bytes
) -> None:
    damage(tmp_path / "codec" / "codec.json", old, new)
    assert find_reusable(reusable.codec.uri, ASKED) is None


def test_imbalance_is_one_when_even_and_the_lists_when_all_in_one() -> None:
    assert list_imbalance(np.array([5, 5, 5, 5])) == 1
    assert list_imbalance(np.array([20, 0, 0, 0])) == 4
    assert list_imbalance(np.zeros(3, dtype=np.int64)) == 1


def test_vectors_kept_as_they_are_have_no_error(tmp_path: Path) -> None:
    samples = sample(tmp_path, clustered(2000, 24))
    codec = train_codec(samples, IndexSpec.parse("IVF8,Flat", 24), storage.join(str(tmp_path), "codec"), seed=0)
    fit = estimate_fit(codec, samples, 2000)
    assert isinstance(fit, CodecFit)
    assert fit.quantization_error < 1e-9


@pytest.mark.parametrize("factory", ["RR,IVF16,RaBitQ", "PCAR16,IVF16,RaBitQ3", "OPQ7_24,IVF16,PQ7x8+1"])
def test_every_kind_of_code_has_a_fit(tmp_path: Path, factory: str) -> None:
    samples = sample(tmp_path / "first", clustered(4000, 24))
    codec = train_codec(samples, IndexSpec.parse(factory, 24), str(tmp_path / "codec"), seed=0)
    trained = estimate_fit(codec, samples, 4000)
    fit = ReusableCodec(codec=codec, trained=trained, latest=trained)
    assert 0 < trained.quantization_error < 1
    assert drift.why_not(fit, estimate_fit(codec, samples, 4000)) == ""
    others = estimate_fit(codec, sample(tmp_path / "others", clustered(4000, 24, seed=5)), 4000)
    assert "quantization error" in drift.why_not(fit, others)


def test_queries_shape_a_codec_that_auto_plans_and_no_other(tmp_path: Path) -> None:
    samples = sample(tmp_path / "first", clustered(4000, 24))
    uri = str(tmp_path / "queries.npy")
    np.save(uri, clustered(100, 24, seed=7))
    chosen = {}
    for factory in ("OPQ7_24,IVF16,PQ7x8+1", "OPQ8_24,IVF16,PQ8"):
        for queries_uri in (None, uri):
            config = IndexConfig(uri="x", factory=factory, queries_uri=queries_uri, verify_queries=50)
            folder = str(tmp_path / f"{factory} {queries_uri is None}")
            spec = IndexSpec.parse(factory, 24)
            choice = choose_codec(samples, spec, folder, config=config, products=4000, reusable=None)
            chosen[spec.corrected, queries_uri is None] = choice.codec.fingerprint
    assert chosen[True, True] != chosen[True, False]
    assert chosen[False, True] == chosen[False, False]
