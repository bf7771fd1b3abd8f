from __future__ import annotations

import numpy as np
import pytest
import torch

from encoders.training.batches import PairDataset
from encoders.training.config import TrainingConfig
from encoders.training.module import EncoderTraining
from encoders.training.pairs import read_pairs
from encoders.training.pairs_config import PairsConfig
from tests.encoders.tiny import tiny_parts
from tests.encoders.training.pairs_files import coloured_rows, write_pairs

ALL = ("text", "image", "fusion")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return read_pairs(PairsConfig(uri=write_pairs(tmp_path_factory.mktemp("pairs"), coloured_rows(24))))


def module_and_batch(pairs, model="3tmm", fusion=None, **options):
    parts = tiny_parts(model, fusion=fusion)
    module = EncoderTraining(parts.model, TrainingConfig(**{"tuned": ALL, **options}), steps=10)
    return module, PairDataset(pairs, np.arange(24), parts)[list(range(12))]


def step(module, batch, **drop):
    loss = module.losses(batch, drop=drop.get("drop", module._drops(batch)))
    loss.backward()
    return loss


def with_gradient(module):
    return {
        name.split(".")[0]
        for name, weight in module.model.named_parameters()
        if weight.grad is not None and weight.grad.any()
    }


@pytest.mark.parametrize(
    ("model", "fusion", "trained"),
    [
        ("bibert", None, {"document_text", "query_text"}),
        ("clip", None, {"image", "clip_text"}),
        ("3tmm", None, {"document_text", "query_text", "image", "product_fusion"}),
        ("4tmm", "concat", {"document_text", "query_text", "image", "clip_text"}),
        ("4tmm", "mlp", {"document_text", "query_text", "image", "clip_text", "product_fusion", "query_fusion"}),
    ],
)
def test_every_part_of_every_model_learns(pairs, model, fusion, trained):
    module, batch = module_and_batch(pairs, model, fusion)
    assert torch.isfinite(step(module, batch))
    assert with_gradient(module) == trained


def test_the_vectors_of_what_is_missing_learn_from_modality_dropout(pairs):
    module, batch = module_and_batch(pairs)
    step(module, batch)
    fusion = module.model.product_fusion
    assert fusion.missing_text.grad.any()
    assert fusion.missing_image.grad.any()
    module, batch = module_and_batch(pairs, dropped_weight=0.0)
    step(module, batch)
    fusion = module.model.product_fusion
    assert not fusion.missing_text.grad.any()
    assert not fusion.missing_image.grad.any()


def test_no_product_loses_both_halves(pairs):
    module, batch = module_and_batch(pairs)
    seen = torch.zeros(2)
    for _ in range(20):
        without_text, without_image = module._drops(batch)
        assert not (without_text & without_image).any()
        assert ((without_text | without_image) == (batch.products.has_text & batch.products.has_image)).all()
        seen += torch.tensor([without_text.sum(), without_image.sum()])
    assert (seen > 60).all(), "about half of 240 each"


def test_what_is_tuned_is_in_training_mode(pairs):
    """Lightning leaves modes as it finds them: a model left in evaluation mode never moves its batch norms' means."""
    module, _ = module_and_batch(pairs, tuned=("fusion", "image"))
    assert module.model.image.training
    assert module.model.image.visual.training
    assert not module.model.document_text.training


def test_parts_that_are_not_tuned_stay_as_they_are(pairs):
    module, batch = module_and_batch(pairs, tuned=("fusion",))
    step(module, batch)
    assert with_gradient(module) == {"product_fusion"}
    assert not module.model.document_text.training
    assert module.model.product_fusion.training
    trained = module.configure_optimizers()["optimizer"].param_groups
    count = sum(weight.numel() for group in trained for weight in group["params"])
    assert count == sum(weight.numel() for weight in module.model.product_fusion.parameters())


def test_learning_rate_warms_up_and_falls_to_zero(pairs):
    parts = tiny_parts("bibert")
    module = EncoderTraining(parts.model, TrainingConfig(learning_rate=1.0, warmup_share=0.2), steps=20)
    made = module.configure_optimizers()
    rates = []
    for _ in range(20):
        rates.append(made["optimizer"].param_groups[0]["lr"])
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert made["optimizer"].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_only_matrices_decay(pairs):
    module, _ = module_and_batch(pairs, weight_decay=0.3)
    decayed, plain = module.configure_optimizers()["optimizer"].param_groups
    assert decayed["weight_decay"] == 0.3
    assert plain["weight_decay"] == 0
    assert all(weight.ndim >= 2 for weight in decayed["params"])
    assert all(weight.ndim < 2 for weight in plain["params"])
