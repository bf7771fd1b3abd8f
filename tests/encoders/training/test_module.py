"""The loss of a step and what learns by it; the terms of match3 and match4 against NumPy in float64; training on two
devices equals training on one with the whole batch (real processes, gloo on loopback).
"""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import multiprocessing

from encoders.errors import EncoderConfigError, TrainingError
from encoders.training.batches import PairDataset
from encoders.training.config import LossWeights, PairsConfig, PartRates, TrainingConfig
from encoders.training.frozen_towers import part_of
from encoders.training.module import EncoderTraining, gather_rows
from encoders.training.pairs import read_pairs
from tests.encoders.test_losses import reference
from tests.encoders.tiny import tiny_parts
from tests.encoders.training.pairs_files import coloured_rows, photographed_rows, picture_bytes, write_pairs

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


def test_nothing_to_learn(pairs):
    with pytest.raises(EncoderConfigError, match=r"nothing of this bibert encoder would learn.*bert, projection"):
        module_and_batch(pairs, "bibert", tuned=("image", "fusion"))
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


TEMPERATURE = 0.2
WEIGHTS = LossWeights(
    photo_picture=1.0, picture_text=0.7, photo_text=0.3, query_text_picture=0.2, query_text_text=0.1, query_product=0.4
)


@pytest.fixture(scope="module")
def twelve(tmp_path_factory):
    """Twelve products of eight texts; product 2 lacks its picture, pair 3 its photo, pair 4 its text."""
    folder = tmp_path_factory.mktemp("pairs")
    data = PairsConfig(uri=write_pairs(folder, photographed_rows()), query_image_field="photo")
    return read_pairs(data)


def terms_of(twelve, model, **options):
    parts = tiny_parts(model)
    module = EncoderTraining(parts.model, TrainingConfig(temperature=TEMPERATURE, losses=WEIGHTS, **options), steps=1)
    module.eval()
    batch = PairDataset(twelve, np.arange(12), parts)[list(range(12))]
    with torch.no_grad():
        return module, batch, {name: float(term) for name, term in module.terms(batch, drop=None).items()}


def term(rows, columns, positives, has_row, has_column, not_negative) -> float:
    kept = has_row & has_column[positives]
    column = np.cumsum(has_column) - 1
    return reference(
        rows[kept], columns[has_column], column[positives[kept]], TEMPERATURE, not_negative[kept][:, has_column], True
    )


@pytest.mark.parametrize("model", ["match3", "match4"])
def test_every_term_equals_its_formula(twelve, model):
    module, batch, found = terms_of(twelve, model)
    encoder = module.model
    with torch.no_grad():
        photo = encoder.encode_query_image(batch.queries.pixels).numpy()
        picture = encoder.encode_product_image(batch.products.pixels).numpy()
        text = encoder.encode_product_text(*batch.products.tokens).numpy()
    own = batch.positives.numpy()
    has_photo, has_words = batch.queries.has_image.numpy(), batch.queries.has_text.numpy()
    has_picture, has_text = batch.products.has_image.numpy(), batch.products.has_text.numpy()
    products = batch.product_keys.numpy()
    assert (len(own), has_photo.sum(), has_picture.sum()) == ((11, 11, 10) if model == "match3" else (12, 11, 11))

    def equal(keys):
        return keys[:, None] == keys[None, :]

    same_text = equal(np.array([twelve.products.texts[row] for row in products]))
    nothing = np.eye(len(products), dtype=bool)[own]
    expected = {
        "photo_picture": term(photo, picture, own, has_photo, has_picture, nothing),
        "picture_text": term(picture, text, np.arange(len(products)), has_picture, has_text, same_text),
        "photo_text": term(photo, text, own, has_photo, has_text, same_text[own]),
    }
    if model == "match4":
        with torch.no_grad():
            words = encoder.encode_query_text(*batch.queries.tokens).numpy()
        same_words = equal(np.array([query or "" for query in twelve.queries]))
        expected |= {
            "query_text_picture": term(words, picture, own, has_words, has_picture, same_words),
            "query_text_text": term(words, text, own, has_words, has_text, same_words | same_text[own]),
        }
    assert found.keys() == expected.keys() | {"query_product"}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("model", ["match3", "match4"])
def test_the_served_query_is_compared_with_the_indexed_product(twelve, model):
    module, batch, found = terms_of(twelve, model)
    encoder = module.model
    keep = np.arange(12) if model == "match4" else np.delete(np.arange(12), 3)  # match3 reads no text
    with torch.no_grad():
        photo = encoder.encode_query_image(batch.queries.pixels).double().numpy()
        picture = encoder.encode_product_image(batch.products.pixels).double().numpy()
        text = encoder.encode_product_text(*batch.products.tokens).double().numpy()
        words = photo
        if model == "match4":
            words = encoder.encode_query_text(*batch.queries.tokens).double().numpy()
    has_photo, has_words = batch.queries.has_image.numpy(), batch.queries.has_text.numpy()
    both = (has_photo & has_words)[:, None]
    queries = np.where(both, 0.5 * photo + 0.5 * words, np.where(has_words[:, None], words, photo))
    has_picture = batch.products.has_image.numpy()[:, None]
    products = np.where(has_picture, 0.3 * text + 0.7 * picture, text)
    queries, products = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (queries, products))
    assert len(queries) == len(keep)
    keys = twelve.query_keys[keep]
    expected = reference(
        queries, products, batch.positives.numpy(), TEMPERATURE, _chosen(keys, batch.positives.numpy()), False
    )
    assert found["query_product"] == pytest.approx(expected, rel=1e-4)


def _chosen(keys, own):
    mask = np.zeros((len(own), own.max() + 1), bool)
    for row, key in enumerate(keys):
        mask[row, own[keys == key]] = True
    return mask


def test_the_loss_is_the_weighted_sum(twelve):
    module, batch, found = terms_of(twelve, "match4")
    weights = {name: getattr(WEIGHTS, name) for name in found}
    assert module.losses(batch, drop=None).item() == pytest.approx(
        sum(weights[name] * value for name, value in found.items()), rel=1e-5
    )


def test_terms_of_weight_zero_are_not_computed(twelve):
    parts = tiny_parts("match4")
    module = EncoderTraining(parts.model, TrainingConfig(losses=LossWeights(photo_text=0, picture_text=0)), steps=1)
    batch = PairDataset(twelve, np.arange(12), parts)[list(range(12))]
    assert module.terms(batch, drop=None).keys() == {"photo_picture", "query_text_picture", "query_text_text"}


PAIRS = 12
MODELS = [("bibert", None), ("3tmm", "mlp"), ("4tmm", "mlp"), ("match4", "mlp")]


def make_pairs(folder: Path) -> None:
    """Products and queries repeat, also from one half to the other; some photos and texts are missing."""
    rows = coloured_rows(PAIRS)
    for number, row in enumerate(rows):
        row["photo"] = picture_bytes("red" if number % 2 else "blue", 12 + number) if number % 3 else None
        row["seen"] = [f"p{(number + 3) % PAIRS}"] if number in (0, 4, 8) else None
    for twin, of in ((10, 1), (8, 6)):  # across the halves, and within one
        rows[twin] = {**rows[of], "query": rows[twin]["query"]}
    rows[11]["query"] = rows[0]["query"]
    write_pairs(folder, rows)


def loss_and_gradients(folder: Path, model: str, fusion: str | None, rows: np.ndarray):
    data = PairsConfig(uri=str(folder), query_image_field="photo", negatives_field="seen")
    parts = tiny_parts(model, fusion=fusion)
    config = TrainingConfig(
        tuned=("text", "image", "fusion"), symmetric=True, learn_temperature=True, temperature=0.1, dropped_weight=0.5
    )
    module = EncoderTraining(parts.model, config, steps=1)
    module.eval()  # without dropout both see the same
    pairs = read_pairs(data)
    batch = PairDataset(pairs, np.arange(PAIRS), parts)[list(rows)]
    dropped = batch.product_keys % 2 == 0  # the same products, whichever device has them
    loss = module.losses(batch, drop=(dropped, ~dropped))
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in module.named_parameters()}


def one_device(rank: int, port: int, folder: str, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    halves = (np.arange(5), np.arange(5, PAIRS))  # of unequal size
    found = {}
    for model, fusion in MODELS:
        loss, gradients = loss_and_gradients(Path(folder), model, fusion, halves[rank])
        for name, gradient in gradients.items():
            if gradient is not None:
                torch.distributed.all_reduce(gradient)  # as data-parallel training: the mean of the devices
                gradients[name] = gradient / 2
        found[model] = (loss, gradients)
    rows = torch.arange(3 + rank)
    found["rows"] = (gather_rows(rows), gather_rows(rows > 0))
    torch.save(found, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gathered")
    make_pairs(folder / "pairs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Libraries are imported once, by the server that forks both.
    context = "forkserver"
    multiprocessing.get_context(context).set_forkserver_preload([__name__])
    arguments = (port, str(folder / "pairs"), str(folder))
    multiprocessing.start_processes(one_device, arguments, nprocs=2, start_method=context)
    return folder / "pairs", [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(("model", "fusion"), MODELS)
def test_loss_and_gradients_of_two_devices_are_those_of_one(two_devices, model, fusion):
    folder, found = two_devices
    loss, gradients = loss_and_gradients(folder, model, fusion, np.arange(PAIRS))
    assert loss > 0
    for device in found:
        its_loss, its_gradients = device[model]
        torch.testing.assert_close(its_loss, loss, rtol=1e-5, atol=1e-6)
        assert its_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert (gradient is None) == (its_gradients[name] is None), name
            if gradient is not None:
                torch.testing.assert_close(its_gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    assert any(gradient is not None and gradient.any() for gradient in gradients.values())


def test_rows_of_unequal_number_stand_in_the_order_of_the_devices(two_devices):
    for rows, flags in (device["rows"] for device in two_devices[1]):
        assert rows.tolist() == [0, 1, 2, 0, 1, 2, 3]
        assert flags.tolist() == [False, True, True, False, True, True, True]
        assert flags.dtype == torch.bool


def test_on_one_device_rows_are_themselves():
    rows = torch.ones(2, 3, requires_grad=True)
    assert gather_rows(rows) is rows


@pytest.mark.parametrize("model", ["3tmm", "match4"])
def test_a_prefix_is_trained_as_it_is_served(pairs, photos, model):
    """The mean of two losses: of all 12 dimensions, and of an encoder whose vectors are cut to 4."""
    options = {"losses": LossWeights(query_product=1.0), "dropped_weight": 0.0}
    module, batch = module_and_batch(photos if model == "match4" else pairs, model, matryoshka=(4,), **options)
    module.eval()
    with torch.no_grad():
        both = module.terms(batch, drop=None)
        module._dims = [12]
        whole = module.terms(batch, drop=None)
        module.model.architecture = replace(module.model.architecture, prefix=4)
        module._dims, module._weights = [4], {"query_product": 1.0}
        cut = float(module.terms(batch, drop=None)["query_product"])
    assert 2 * float(both["query_product"]) - float(whole["query_product"]) == pytest.approx(cut, rel=1e-5)
    assert both.keys() == whole.keys()
    for name, term in both.items():  # of match4 every single vector is cut too
        assert torch.isfinite(term) and float(term) != pytest.approx(float(whole[name]), rel=1e-4), name


@pytest.mark.parametrize(
    ("model", "fusion", "dims", "words"),
    [
        ("3tmm", None, (8, 16), "have 12 dimensions"),
        ("4tmm", "concat", (4,), "those of the text alone"),
        ("match4", "mlp", (4,), "reads all dimensions"),
    ],
)
def test_dimensions_that_cannot_be_nested(pairs, model, fusion, dims, words):
    with pytest.raises(EncoderConfigError, match=words):
        module_and_batch(pairs, model, fusion, matryoshka=dims)


def test_products_lose_a_half_in_the_first_view_as_often_as_told(pairs):
    module, batch = module_and_batch(pairs, drop_image=0.25, drop_text=0.5)
    lost = torch.zeros(2)
    for _ in range(200):
        without_text, without_image = module._lost(batch)
        assert not (without_text & without_image).any()
        lost += torch.tensor([without_text.sum(), without_image.sum()])
    shares = lost / (200 * len(batch.product_keys))
    assert shares.tolist() == pytest.approx([0.5, 0.25], abs=0.04)
    module, batch = module_and_batch(pairs)
    assert module._lost(batch) is None, "nothing is drawn, so that runs of before keep their dropout"
