from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index_builder.errors import SpecError
from index_builder.spec import IndexConfig, IndexSpec


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("Flat", {"lists": 1, "code": "flat"}),
        ("IVF64,Flat", {"lists": 64, "code": "flat"}),
        ("PCAR64,IVF64,PQ32x8", {"rotation": "pcar", "rotation_dim": 64, "lists": 64, "pq_m": 32, "pq_bits": 8}),
        ("PCA64,IVF64,PQ16np", {"rotation": "pca", "rotation_dim": 64, "pq_m": 16, "pq_bits": 8}),
        ("OPQ16_64, IVF4096_HNSW32, PQ16x4", {"rotation": "opq", "hnsw_links": 32, "lists": 4096, "pq_bits": 4}),
        ("OPQ16,IVF8,PQ16", {"rotation": "opq", "rotation_dim": 128}),
        ("IVF8,SQ8", {"code": "sq8", "pq_m": 0}),
        ("PQ8", {"lists": 1, "code": "pq", "pq_m": 8}),
        ("OPQ31_124,IVF8,PQ31x8+1", {"corrected": True, "code_bytes": 32, "dims_per_code": 4, "index_dim": 128}),
        ("OPQ40,IVF8,PQ40+1", {"rotation_dim": 128, "code_bytes": 41, "dims_per_code": 4, "index_dim": 164}),
        ("OPQ10,PQ10x8+1", {"rotation_dim": 128, "dims_per_code": 13, "index_dim": 143}),
        *((f"PCAR64,IVF8,RaBitQ{bits}", {"rotation": "pcar", "rabitq_bits": bits}) for bits in range(1, 6)),
    ],
)
def test_the_usual_factory_strings(factory: str, expected: dict[str, object]) -> None:
    spec = IndexSpec.parse(factory, 128)
    assert {key: getattr(spec, key) for key in expected} == expected
    assert IndexSpec.parse(spec.factory, 128) == spec
    assert IndexSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("HNSW32", "'HNSW32'"),
        ("IVF64", "nothing where one of Flat, SQ8, PQ or RaBitQ"),
        ("IVF64,PQ16,Flat", "'PQ16,Flat'"),
        ("IVF64,PQ16,RFlat", "RFlat"),
        ("PQ7", r"is 7, expected a divisor of 128.*1, 2, 4, 8"),
        ("PCA100,PQ16", "a divisor of 100"),
        ("PCA200,PQ16", "200, expected 1 to 128"),
        ("OPQ16,IVF8,PQ8", "expected PQ16"),
        ("OPQ16,IVF8,Flat", "expected PQ16"),
        ("IVF0,Flat", "inverted lists is 0"),
        ("IVF8,PQ16x20", "bits of PQ is 20"),
        ("IVF8_HNSW2,Flat", "HNSW links is 2"),
        ("IVF8,PQ16x8fs", "a PQ of 4 bits"),
        ("IVF8,PQ1x4fs", "even number of sub-quantizers"),
        ("IVF8,RaBitQ0", "1 to 9"),
        ("IVF8,PQ16+1", "correction is '.1 behind none and pq', expected OPQ and a PQ of 8 bits"),
        ("OPQ16,IVF8,PQ16x6+1", "correction"),
        ("OPQ200_128,IVF8,PQ200x8+1", "sub-quantizers of PQ is 200, expected 1 to 128"),
        ("RR64,IVF8,RaBitQ", "is 64, expected 128"),
        ("", "''"),
    ],
)
def test_what_cannot_be_built_is_refused_with_key_and_value(factory: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        IndexSpec.parse(factory, 128)
    assert "index.factory" in str(caught.value)
    assert isinstance(caught.value, ValueError)


@given(st.text(alphabet="PCAROQIVFSHNWlat0123456789,_x+", max_size=24))
def test_any_string_gives_a_spec_or_a_clear_error(factory: str) -> None:
    try:
        spec = IndexSpec.parse(factory, 64)
    except SpecError:
        return
    assert IndexSpec.parse(spec.factory, 64) == spec


@pytest.mark.parametrize(
    ("factory", "code_bytes", "exact"),
    [
        ("Flat", 512, True),
        ("IVF4,Flat", 512, False),
        ("PCA64,Flat", 256, False),
        ("SQ8", 128, False),
        ("PQ16x4", 8, False),
        ("OPQ16,IVF4,PQ16x8+1", 17, False),
        *((f"RR,IVF4,RaBitQ{bits}", size, False) for bits, size in ((1, 24), (2, 52), (3, 68), (4, 84), (5, 100))),
    ],
)
def test_code_size_and_exactness(factory: str, code_bytes: int, exact: bool) -> None:
    spec = IndexSpec.parse(factory, 128)
    assert (spec.code_bytes, spec.exact) == (code_bytes, exact)


def test_a_spec_from_json_is_checked() -> None:
    values = IndexSpec.parse("IVF8,PQ16", 128).to_dict()
    with pytest.raises(SpecError, match="unknown key 'probes'"):
        IndexSpec.from_dict(values | {"probes": 3})
    with pytest.raises(SpecError, match="lists"):
        IndexSpec.from_dict({key: value for key, value in values.items() if key != "lists"})
    with pytest.raises(SpecError, match="rotation_dim"):
        IndexSpec.from_dict(values | {"rotation_dim": 64})
    with pytest.raises(SpecError, match="expected 0 for code flat"):
        IndexSpec.from_dict(values | {"code": "flat"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("uri", " "),
        ("factory", ""),
        ("bytes_per_vector", 0),
        ("target_recall", 0.0),
        ("target_recall", 1.5),
        ("serving_shards", 0),
        ("rows_per_add", 0),
        ("verify_queries", 0),
        ("k", 0),
        ("seed", -1),
        ("training_rows", 0),
        ("keep_versions", 0),
    ],
)
def test_config_values_are_checked(key: str, value: object) -> None:
    with pytest.raises(SpecError, match=f"index.{key} is "):
        IndexConfig(**({"uri": "x"} | {key: value}))


def test_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        IndexConfig(uri="x").k = 3  # type: ignore[misc]
