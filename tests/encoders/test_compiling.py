from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders import EncoderConfigError, load_product_encoder
from tests.encoders.tiny import random_picture, save_tiny_encoder

TEXTS = ["red dress", "small wooden lamp with cotton for large shoe", "mug", "green chair", "x"]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")


def test_compiled_towers_give_the_same_vectors_for_texts_and_batches_of_any_size(tmp_path):
    config = replace(save_tiny_encoder(tmp_path, model="match3"), batch_size=8)
    plain, compiled = load_product_encoder(config), load_product_encoder(replace(config, compile=True))
    assert compiled.fingerprint == plain.fingerprint
    pictures = [random_picture(seed) for seed in range(5)]
    for count in (2, 5, 3):
        found = compiled.encode(TEXTS[:count], pictures[:count])
        assert np.allclose(found, plain.encode(TEXTS[:count], pictures[:count]), atol=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"):
        found = compiled.encode(TEXTS[1:], pictures[1:])
    assert np.array_equal(found, compiled.encode(TEXTS, pictures)[1:]), "company changes a compiled tower's vectors"


@pytest.mark.filterwarnings("ignore:dynamo_pgo")
def test_a_machine_without_a_compiler(tmp_path, monkeypatch):
    config = save_tiny_encoder(tmp_path, model="bibert")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "/no/such/g++"))
    torch.compiler.reset()  # what was compiled before would be found
    with (
        torch._inductor.config.patch(force_disable_caches=True),
        pytest.raises(EncoderConfigError, match=r"encoder\.compile is true.*C\+\+ compiler.*encoder\.compile: false"),
    ):
        load_product_encoder(replace(config, compile=True))
