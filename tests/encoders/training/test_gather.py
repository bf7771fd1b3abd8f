"""Training on two devices equals training on one with the whole batch: two real processes, gloo on loopback."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import multiprocessing

from encoders.training.batches import PairDataset
from encoders.training.config import PairsConfig, TrainingConfig
from encoders.training.module import EncoderTraining, gather_rows
from encoders.training.pairs import read_pairs
from tests.encoders.tiny import tiny_parts
from tests.encoders.training.pairs_files import coloured_rows, picture_bytes, write_pairs

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
    multiprocessing.spawn(one_device, (port, str(folder / "pairs"), str(folder)), nprocs=2)
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
