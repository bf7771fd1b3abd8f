from __future__ import annotations

import pytest

from index_builder.codec import CodecInfo
from index_builder.drift import CodecFit, ReusableCodec
from index_builder.errors import SpecError
from index_builder.spec import IndexConfig, IndexSpec
from pipelines.indexing.build_steps import check_size, spec_to_build

DIM = 16
TRAINED_FOR = 5000


def codec_at_hand(factory: str, products: int = TRAINED_FOR) -> ReusableCodec:
    spec = IndexSpec.parse(factory, DIM)
    fit = CodecFit(products=products, quantization_error=0.1, list_imbalance=1.1)
    codec = CodecInfo(uri="codec", fingerprint="0" * 32, spec=spec, training_rows=4000)
    return ReusableCodec(codec=codec, trained=fit, latest=fit)


@pytest.mark.parametrize(("rows", "factory"), [(2500, "IVF32,PQ8x8"), (10_000, "IVF32,PQ8x8"), (2499, "Flat")])
def test_a_codec_at_hand_settles_the_index_while_the_catalog_is_about_as_large(rows: int, factory: str) -> None:
    config = IndexConfig(uri="x", bytes_per_vector=8)
    assert spec_to_build(config, rows, DIM, codec_at_hand("IVF32,PQ8x8")).factory == factory


def test_without_a_codec_the_index_is_planned() -> None:
    assert spec_to_build(IndexConfig(uri="x"), 2500, DIM, None).factory == "Flat"


def test_a_catalog_that_shrank_below_what_could_be_trained_keeps_its_codec() -> None:
    config = IndexConfig(uri="x", factory="IVF250,PQ8x8")
    check_size(config, 2500, DIM, codec_at_hand("IVF250,PQ8x8"))
    with pytest.raises(SpecError, match="needs 4,000 products beside those held out, and the catalog has 2,500"):
        check_size(config, 2500, DIM, None)
    with pytest.raises(SpecError, match="has 2,499"):
        check_size(config, 2499, DIM, codec_at_hand("IVF250,PQ8x8"))


def test_a_codec_at_hand_does_not_lift_the_memory_budget() -> None:
    config = IndexConfig(uri="x", factory="IVF32,Flat", rows_per_add=10_000_000, memory_budget_mb=16)
    with pytest.raises(SpecError, match=r"index\.memory_budget_mb is 16.*lower index\.rows_per_add"):
        check_size(config, 1_000_000, DIM, codec_at_hand("IVF32,Flat", products=1_000_000))
