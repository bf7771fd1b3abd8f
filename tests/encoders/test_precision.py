from __future__ import annotations

import builtins
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from encoders import EncoderConfig, EncoderConfigError, check_encoder, decide_precision, load_product_encoder
from encoders.precision import Int8Linear, apply_precision, check_precision, is_native, native_precision
from tests.encoders.tiny import random_picture, save_tiny_encoder

TEXTS = ["red dress", "wooden chair for small mug", None]
IMAGES = [random_picture(1), None, random_picture(2)]


def machine(
    monkeypatch,
    *,
    capability: str = "AVX512",
    flags: str = "fpu avx2",
    isa: str = "DEFAULT",
    sm: tuple[int, int] | None = None,
):
    """Makes this machine look like another one."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sm is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: sm)
    real = builtins.open
    info = f"processor\t: 0\nflags\t\t: {flags}\n"
    fake = lambda path, *args, **options: (  # noqa: E731
        io.StringIO(info) if path == "/proc/cpuinfo" else real(path, *args, **options)
    )
    monkeypatch.setattr(builtins, "open", fake)


@pytest.mark.parametrize(
    ("device", "shape", "expected"),
    [
        ("cpu", {"flags": "avx512f avx512_bf16"}, "bfloat16"),
        ("cpu", {"flags": "avx512f avx512_bf16 amx_bf16"}, "bfloat16"),
        ("cpu", {"flags": "avx512f avx512_vnni"}, "float32"),
        ("cpu", {"flags": "avx2 avx512_bf16", "capability": "AVX2"}, "float32"),
        ("cpu", {"flags": "avx512_bf16 amx_bf16", "isa": "AVX512_CORE_VNNI"}, "float32"),
        ("cpu", {"flags": "avx512_bf16 amx_bf16", "isa": "AVX512_CORE_BF16"}, "bfloat16"),
        ("auto", {"flags": "avx2", "capability": "AVX2"}, "float32"),
        ("auto", {"sm": (8, 0)}, "bfloat16"),
        ("cuda:0", {"sm": (9, 0)}, "bfloat16"),
        ("cuda", {"sm": (7, 5)}, "float16"),
        ("cpu", {"sm": (9, 0), "flags": "avx2"}, "float32"),
        ("cuda", {}, "bfloat16"),
    ],
)
def test_auto_is_what_the_device_multiplies(monkeypatch, device, shape, expected):
    machine(monkeypatch, **shape)
    assert native_precision(device) == expected
    assert is_native(expected, device)
    assert is_native("float32", device)


def test_a_gpu_has_no_8_bit_towers(monkeypatch):
    machine(monkeypatch, sm=(9, 0))
    for device in ("cuda", "auto"):
        with pytest.raises(EncoderConfigError, match="8-bit towers run on CPUs only"):
            check_precision("int8", device)
    check_precision("int8", "cpu")


def test_the_decision_is_in_the_fingerprint_and_float32_keeps_its_own(tmp_path, monkeypatch):
    exact = save_tiny_encoder(tmp_path / "encoder")
    auto = replace(exact, precision="auto")
    machine(monkeypatch, flags="avx2", capability="AVX2")
    assert check_encoder(auto).fingerprint == check_encoder(exact).fingerprint
    assert check_encoder(auto).precision == "float32"
    machine(monkeypatch, flags="avx512_bf16")
    assert check_encoder(auto).precision == "bfloat16"
    assert check_encoder(auto).fingerprint == check_encoder(replace(exact, precision="bfloat16")).fingerprint
    assert len({check_encoder(replace(exact, precision=name)).fingerprint for name in ("float32", "int8", "auto")}) == 3


def test_a_published_versions_precision_is_kept_where_the_device_gains_by_it(tmp_path, monkeypatch):
    exact = save_tiny_encoder(tmp_path / "encoder")
    auto = replace(exact, precision="auto")
    fingerprints = {name: check_encoder(replace(exact, precision=name)).fingerprint for name in ("float32", "bfloat16")}
    machine(monkeypatch, flags="avx512_bf16")
    for name, fingerprint in fingerprints.items():
        assert decide_precision(auto, published=fingerprint).precision == name
    assert decide_precision(auto, published="0" * 16).precision == "bfloat16"
    assert decide_precision(auto).precision == "bfloat16"
    machine(monkeypatch, flags="avx2", capability="AVX2")
    assert decide_precision(auto, published=fingerprints["bfloat16"]).precision == "float32"
    assert decide_precision(exact, published=fingerprints["bfloat16"]) is exact


@pytest.mark.parametrize(("model", "fusion"), [("3tmm", None), ("clip", None), ("4tmm", "mlp"), ("match4", "mlp")])
@pytest.mark.parametrize("number_format", ["bfloat16", "int8"])
def test_vectors_are_close_to_float32(tmp_path, model, fusion, number_format):
    exact = save_tiny_encoder(tmp_path / "encoder", model=model, fusion=fusion)
    narrow = load_product_encoder(replace(exact, precision=number_format))
    expected, found = narrow.load_exact().encode(TEXTS, IMAGES), narrow.encode(TEXTS, IMAGES)
    assert (expected * found).sum(1).min() > 0.98  # towers 8 wide
    assert not np.array_equal(expected, found)
    assert load_product_encoder(exact).load_exact is None


def test_a_linear_layer_in_8_bits():
    torch.manual_seed(0)
    linear = nn.Linear(48, 20)
    inputs = torch.randn(5, 7, 48)
    expected, layer = linear(inputs), Int8Linear(linear)
    found = layer(inputs)
    assert torch.nn.functional.cosine_similarity(found, expected, dim=-1).min() > 0.999
    assert torch.equal(layer(inputs[3:4]), found[3:4]), "a row is its own, whatever stands beside it"
    assert layer(torch.zeros(2, 48)).isfinite().all()
    tower = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    apply_precision(tower, "int8")
    assert isinstance(tower[0], Int8Linear)
    assert type(tower[1].out_proj) is not Int8Linear, "its weights are read by the attention"


def test_an_unknown_precision():
    with pytest.raises(EncoderConfigError, match="expected one of auto, float32, bfloat16, float16, int8"):
        EncoderConfig(uri="somewhere", precision="half")
