from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning import Trainer

from encoders.errors import EncoderConfigError, TrainingError
from encoders.training.batches import PairDataset
from encoders.training.config import LossWeights, PairsConfig, PartRates, TrainingConfig
from encoders.training.module import EncoderTraining
from encoders.training.pairs import read_pairs
from encoders.training.tuned_parts import part_of
from tests.encoders.tiny import tiny_parts
from tests.encoders.training.pairs_files import coloured_rows, picture_bytes, write_pairs

ALL = ("text", "image", "fusion")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return read_pairs(PairsConfig(uri=write_pairs(tmp_path_factory.mktemp("pairs"), coloured_rows(24))))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The same with a photo beside each query's text."""
    rows = coloured_rows(24)
    for number, row in enumerate(rows):
        row["photo"] = picture_bytes(row["query"].split()[0], 10 + number)
    data = PairsConfig(uri=write_pairs(tmp_path_factory.mktemp("pairs"), rows), query_image_field="photo")
    return read_pairs(data)


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
        ("match3", None, {"document_text", "image"}),
        ("match4", None, {"document_text", "image"}),
        ("match4", "mlp", {"document_text", "image", "photo_text_fusion"}),
    ],
)
def test_every_part_of_every_model_learns(pairs, photos, model, fusion, trained):
    module, batch = module_and_batch(photos if model.startswith("match") else pairs, model, fusion)
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


@pytest.mark.parametrize(
    ("tuned", "learns"),
    [
        (("bert",), {"bert"}),
        (("projection",), {"projection"}),
        (("clip_image", "fusion"), {"clip_image", "fusion"}),
        (("clip_text",), {"clip_text"}),
        (("text", "image"), {"bert", "projection", "clip_image", "clip_text"}),
    ],
)
def test_each_part_learns_alone(pairs, tuned, learns):
    module, batch = module_and_batch(pairs, "4tmm", "mlp", tuned=tuned)
    step(module, batch)
    assert {part_of(name) for name, weight in module.model.named_parameters() if weight.grad is not None} == learns
    assert {part_of(name) for name, weight in module.model.named_parameters() if weight.requires_grad} == learns


def test_a_tower_of_which_only_the_projection_learns_has_no_dropout(pairs):
    module, _ = module_and_batch(pairs, "4tmm", "mlp", tuned=("projection",))
    assert not module.model.document_text.backbone.training
    assert module.model.document_text.projection.training
    module, _ = module_and_batch(pairs, "4tmm", "mlp", tuned=("bert",))
    assert module.model.document_text.backbone.training


def test_each_part_has_its_learning_rate(pairs):
    rates = PartRates(bert=1e-5, fusion=1e-2, temperature=1.0)
    module, _ = module_and_batch(pairs, "4tmm", "mlp", learning_rate=1e-3, rates=rates, learn_temperature=True)
    names = {id(weight): name for name, weight in module.named_parameters()}
    found: dict[str, set[float]] = {}
    for group in module.configure_optimizers()["optimizer"].param_groups:
        for weight in group["params"]:
            name = names[id(weight)]
            part = "temperature" if name == "log_temperature" else part_of(name.removeprefix("model."))
            found.setdefault(part, set()).add(group["initial_lr"])
    assert found == {
        "bert": {1e-5}, "projection": {1e-3}, "clip_image": {1e-3}, "clip_text": {1e-3}, "fusion": {1e-2},
        "temperature": {1.0},
    }  # fmt: skip


def test_rates_and_parts_that_do_not_fit(pairs):
    with pytest.raises(
        EncoderConfigError, match=r"training.rates.bert is 0.1, but training.tuned is \['fusion'\]: add"
    ):
        TrainingConfig(tuned=("fusion",), rates=PartRates(bert=0.1))
    with pytest.raises(EncoderConfigError, match="expected some of bert, projection, clip_image, clip_text, fusion"):
        TrainingConfig(tuned=("towers",))
    with pytest.raises(EncoderConfigError, match=r"rates.fusion is 0: expected a positive number"):
        PartRates(fusion=0)
    with pytest.raises(EncoderConfigError, match=r"nothing of this bibert encoder would learn.*bert, projection"):
        module_and_batch(pairs, "bibert", tuned=("image", "fusion"))
    with pytest.raises(EncoderConfigError, match=r"training.losses.photo_text is -1"):
        LossWeights(photo_text=-1)
    with pytest.raises(TrainingError, match="every weight that counts for this model is 0"):
        module_and_batch(pairs, losses=LossWeights(query_product=0))


def test_a_learned_temperature_learns_within_its_range(pairs):
    module, batch = module_and_batch(pairs, temperature=0.1, learn_temperature=True, temperature_range=(0.09, 0.2))
    assert module.temperature.item() == pytest.approx(0.1)
    step(module, batch)
    assert module.log_temperature.grad.abs() > 0
    with torch.no_grad():
        module.log_temperature.fill_(-9.0)
    module.trainer = Trainer(logger=False, enable_checkpointing=False)
    module.optimizer_step(0, 0, module.configure_optimizers()["optimizer"])
    assert module.temperature.item() == pytest.approx(0.09)
    fixed, _ = module_and_batch(pairs, temperature=0.1)
    assert fixed.temperature == 0.1
    assert "log_temperature" not in dict(fixed.named_parameters())
    with pytest.raises(EncoderConfigError, match="temperature_range"):
        TrainingConfig(temperature=0.001, learn_temperature=True)


@pytest.mark.parametrize(("model", "fusion"), [("3tmm", None), ("4tmm", "mlp"), ("match4", "mlp")])
def test_in_chunks_loss_and_gradients_are_those_of_the_whole_batch(photos, model, fusion):
    found = []
    for chunk_rows in (None, 5):
        module, batch = module_and_batch(photos, model, fusion, chunk_rows=chunk_rows, dropped_weight=0.0)
        module.eval()  # dropout is drawn chunk by chunk
        found.append((step(module, batch), {name: weight.grad for name, weight in module.named_parameters()}))
    (one, gradients), (other, in_chunks) = found
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        if gradient is not None:
            torch.testing.assert_close(in_chunks[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_chunks_keep_no_activations(pairs):
    kept = []
    for chunk_rows in (None, 3):
        module, batch = module_and_batch(pairs, chunk_rows=chunk_rows, dropped_weight=0.0)
        held = 0

        def pack(tensor):
            nonlocal held
            held += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module.losses(batch, drop=None)
        kept.append(held)
    assert kept[1] < kept[0] / 2


def test_dropout_of_a_step_depends_on_its_number_alone(pairs):
    module, batch = module_and_batch(pairs)
    found = []
    for number in (3, 4, 3):
        module.on_train_batch_start(batch, number)
        found.append(module.losses(batch, drop=module._drops(batch)).item())
    assert found[0] == found[2] != found[1]


def test_mixed_precision_computes_the_loss_in_float32(pairs):
    module, batch = module_and_batch(pairs)
    module.eval()
    plain = module.losses(batch, drop=None)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module.losses(batch, drop=None)
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(plain.item(), rel=0.02)
    assert mixed.item() != plain.item(), "the towers do compute in bfloat16"


def test_photos_and_packshots_are_one_distribution_to_batch_norms(photos):
    """In training, as in service: one pass of all pictures, without the blank ones that stand for missing pictures."""
    parts = tiny_parts("match4")
    seen = []
    parts.model.image.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module = EncoderTraining(parts.model, TrainingConfig(tuned=ALL), steps=1)
    rows = [0, 1, 2, 3]
    batch = PairDataset(photos, np.arange(24), parts)[rows]
    missing = replace(batch.products, has_image=torch.tensor([True, False, True, True]))
    module.losses(replace(batch, products=missing), drop=None)
    assert len(seen) == 1
    assert torch.equal(seen[0], torch.cat([batch.queries.pixels, batch.products.pixels[[0, 2, 3]]]))
