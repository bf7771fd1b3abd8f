"""What a run keeps: the best state, metrics, a plot; how it ends; and a stopped run that is resumed ends with the bytes
of one that was not.
"""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from encoders.errors import CheckpointError, EncoderConfigError, TrainingError
from encoders.losses import nt_xent
from encoders.training import module
from encoders.training.checkpoints import CheckpointFolder, join_metrics, read_checkpoint
from tests.encoders.training.runs import SMALL, Stopped, StopsAfter, assert_same_bytes, pairs_of, train

pytestmark = pytest.mark.usefixtures("nothing_is_kept")


def rows_of_table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    said: list[str] = []
    note = train(pairs_of(folder / "pairs"), folder / "out", epochs=6, plot=True, say=said.append)
    return folder, note, said


def test_the_folder_of_a_run(run):
    folder, *_ = run
    kept = folder / "out.checkpoints"
    assert sorted(path.name for path in kept.iterdir()) == [
        "best.ckpt", "last.ckpt", "logs", "metrics.csv", "run.json", "training.png",
    ]  # fmt: skip
    assert json.loads((kept / "run.json").read_text())["finished"]
    assert list((kept / "logs" / "tensorboard").rglob("events.out.tfevents.*"))


def test_the_metrics_as_a_table(run):
    folder, note, _ = run
    rows = rows_of_table(folder / "out.checkpoints" / "metrics.csv")
    steps = [int(row["step"]) for row in rows]
    assert steps == list(range(1, 37))
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    assert len(losses) == 36
    assert np.mean(losses[-6:]) == pytest.approx(note["loss"], abs=1e-3), "the last round's mean"
    assert sum(bool(row["validation_recall@100"]) for row in rows) == 6
    rates = [float(row["learning_rate"]) for row in rows if row["learning_rate"]]
    assert len(rates) == 36
    assert max(rates) == pytest.approx(5e-3)
    assert max(rates) > rates[0] > rates[-1]
    assert all(float(row["gradient_norm"]) > 0 for row in rows if row["gradient_norm"])


def test_the_picture(run):
    with Image.open(run[0] / "out.checkpoints" / "training.png") as picture:
        assert picture.size == (1200, 480)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_what_is_saved_is_the_best_validation(run):
    folder, note, said = run
    rows = rows_of_table(folder / "out.checkpoints" / "metrics.csv")
    scores = [
        (*(float(row[f"validation_recall@{k}"]) for k in (100, 10, 1)), int(row["step"]))
        for row in rows
        if row["validation_recall@100"]
    ]
    assert note["step"] == max(scores)[-1], "the newest among equals"
    assert note["validation_recall@100"] == round(max(scores)[0], 4)
    best = torch.load(folder / "out.checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    saved = load_file(folder / "out" / "weights.safetensors")
    assert all(torch.equal(weight, best[f"model.{name}"]) for name, weight in saved.items())
    assert sum("best so far" in line for line in said) >= 1


def test_it_stops_early(tmp_path, monkeypatch):
    scores = iter([0.2, 0.5, 0.4, 0.5, 0.3, 0.9, 0.9])
    monkeypatch.setattr(
        "encoders.training.run.validate",
        lambda *_, **__: {f"recall@{k}": next(scores) if k == 100 else 0.1 for k in (1, 10, 100)},
    )
    said: list[str] = []
    data = pairs_of(tmp_path / "pairs")
    note = train(data, tmp_path / "out", epochs=7, patience=3, say=said.append)
    assert any("stopped early: 3 validations without a better one" in line for line in said)
    assert (note["validation_recall@100"], note["step"]) == (0.5, 4 * 6), "of two equal ones the newer"
    assert next(scores) == 0.9, "five validations"
    again = train(data, tmp_path / "out", epochs=7, patience=3, resume="last")
    assert again == note, "it does not go on past its end"


def test_the_best_may_be_that_of_the_first_result(tmp_path, monkeypatch):
    measured = iter([(0.9, 0.2), (0.8, 0.6), (0.7, 0.6), (1.0, 0.1)])

    def measures(*_, **__):
        wide, first = next(measured)
        return {"recall@1": first, "recall@10": wide, "recall@100": 1.0}

    monkeypatch.setattr("encoders.training.run.validate", measures)
    note = train(pairs_of(tmp_path / "pairs"), tmp_path / "out", epochs=4, best_by="recall@1")
    assert (note["validation_recall@1"], note["step"]) == (0.6, 3 * 6)


def test_nothing_held_out_saves_the_last_state(tmp_path):
    data = pairs_of(tmp_path / "pairs")
    note = train(type(data)(uri=data.uri, validation_share=0.0), tmp_path / "out", validate_steps=3)
    assert "validation_loss" not in note
    last = torch.load(tmp_path / "out.checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    saved = load_file(tmp_path / "out" / "weights.safetensors")
    assert all(torch.equal(weight, last[f"model.{name}"]) for name, weight in saved.items())
    assert not (tmp_path / "out.checkpoints" / "best.ckpt").exists()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_its_state(tmp_path, monkeypatch):
    data, out = pairs_of(tmp_path / "pairs"), tmp_path / "out"
    calls = 0

    def breaks(*args, **options):
        nonlocal calls
        calls += 1
        loss = nt_xent(*args, **options)
        return loss * float("nan") if calls > 8 else loss  # two views: in the fifth step

    monkeypatch.setattr(module, "nt_xent", breaks)
    with pytest.raises(TrainingError, match=r"the loss of batch 5 is nan, query_product nan.*learning_rate"):
        train(data, out)
    kept = torch.load(tmp_path / "out.checkpoints" / "last.ckpt", weights_only=True)
    assert kept["callbacks"]["shelfmark"]["batches"] == 4
    assert all(torch.isfinite(weight).all() for weight in kept["state_dict"].values())
    assert not out.exists()
    monkeypatch.undo()
    train(data, out)  # goes on
    assert out.is_dir()


def test_a_gradient_that_is_no_number_is_not_stepped_on(tmp_path, monkeypatch):
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("inf")

    calls = 0

    def breaks(*args, **options):
        nonlocal calls
        calls += 1
        loss = nt_xent(*args, **options)
        return Breaks.apply(loss) if calls > 8 else loss

    monkeypatch.setattr(module, "nt_xent", breaks)
    with pytest.raises(TrainingError, match=r"the gradient's norm of batch 5 is (nan|inf)"):
        train(pairs_of(tmp_path / "pairs"), tmp_path / "out")
    kept = torch.load(tmp_path / "out.checkpoints" / "last.ckpt", weights_only=True)
    assert kept["callbacks"]["shelfmark"]["batches"] == 4
    assert all(torch.isfinite(weight).all() for weight in kept["state_dict"].values())


def test_metrics_of_a_run_that_was_resumed_are_one_table(straight, tmp_path):
    data, whole = straight
    changes = {"learn_temperature": True, "checkpoint_steps": 4}
    with pytest.raises(Stopped):
        train(data, tmp_path / "out", decode=StopsAfter(70), **changes)
    train(data, tmp_path / "out", **changes)
    one, two = (rows_of_table(path / "metrics.csv") for path in (tmp_path / "out.checkpoints", checkpoints_of(whole)))
    assert one == two


def test_joining_drops_what_a_later_part_did_again(tmp_path):
    for version, lines in ((0, "1,0.9\n2,0.8\n3,0.7"), (1, "2,0.5\n5,0.4"), (10, "9,0.1")):
        (tmp_path / "csv" / f"version_{version}").mkdir(parents=True)
        (tmp_path / "csv" / f"version_{version}" / "metrics.csv").write_text(f"step,loss\n{lines}\n")
    joined = join_metrics(tmp_path, tmp_path / "metrics.csv")
    assert joined["loss"][0].tolist() == [2, 3, 6, 10], "from 1"
    assert joined["loss"][1].tolist() == [0.9, 0.5, 0.4, 0.1]
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 5


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Two epochs of six steps, with dropout, modality dropout and a learned temperature, without a stop."""
    folder = tmp_path_factory.mktemp("straight")
    data = pairs_of(folder / "pairs")
    train(data, folder / "out", learn_temperature=True)
    return data, folder / "out"


def checkpoints_of(out):
    return out.parent / f"{out.name}.checkpoints"


def position(out, name="last.ckpt"):
    return read_checkpoint(checkpoints_of(out) / name)["callbacks"]["shelfmark"]["batches"]


@pytest.mark.parametrize("decoded", [30, 70, 110])
def test_a_run_stopped_in_an_epoch_and_taken_up_ends_with_the_same_bytes(straight, tmp_path, decoded):
    data, whole = straight
    out, said = tmp_path / "out", []
    with pytest.raises(Stopped):
        train(data, out, learn_temperature=True, decode=StopsAfter(decoded))
    assert not out.exists()
    done, total = position(out), position(whole)
    assert 0 < done < total
    assert done % (total // 2), "in the middle of an epoch"
    train(data, out, learn_temperature=True, say=said.append)
    assert any("unfinished run" in line for line in said)
    assert position(out) == total
    assert_same_bytes(out, whole)
    one, two = (json.loads((folder / "encoder.json").read_text())["training"] for folder in (out, whole))
    assert one == two, "what was measured too"


def test_a_run_can_go_on_from_its_best_checkpoint(straight, tmp_path):
    data, whole = straight
    out, folder = tmp_path / "out", tmp_path / "out.checkpoints"
    shutil.copytree(checkpoints_of(whole), folder)
    (folder / "last.ckpt").unlink()
    train(data, out, learn_temperature=True, resume="best")
    if position(whole, "best.ckpt") == position(whole):
        assert (folder / "best.ckpt").is_file()
    else:
        assert_same_bytes(out, whole)
    assert (out / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


def test_with_accumulated_gradients_and_chunks_too(tmp_path):
    data = pairs_of(tmp_path / "pairs")
    changes = {"accumulate_batches": 2, "chunk_rows": 3, "batch_size": 6}
    train(data, tmp_path / "whole", **changes)
    with pytest.raises(Stopped):
        train(data, tmp_path / "out", decode=StopsAfter(50), **changes)
    assert position(tmp_path / "out") % 2 == 0, "never between the batches of one step"
    train(data, tmp_path / "out", **changes)
    assert_same_bytes(tmp_path / "out", tmp_path / "whole")


def test_a_finished_run_starts_anew_and_so_does_one_that_is_asked_to(straight, tmp_path):
    data, whole = straight
    out, said = tmp_path / "out", []
    shutil.copytree(checkpoints_of(whole), tmp_path / "out.checkpoints")
    for resume in ("auto", "never"):
        train(data, out, learn_temperature=True, resume=resume, say=said.append)
        assert_same_bytes(out, whole)
    assert not any("going on" in line for line in said)


def test_an_unfinished_run_of_other_settings_is_kept(straight, tmp_path):
    data, _ = straight
    out, said = tmp_path / "out", []
    with pytest.raises(Stopped):
        train(data, out, decode=StopsAfter(40))
    before = position(out)
    with pytest.raises(EncoderConfigError, match=r"training.learning_rate was 0.005, is 0.001.*--training.resume last"):
        train(data, out, learning_rate=1e-3)
    with pytest.raises(EncoderConfigError, match=r"pairs was '"):
        train(pairs_of(tmp_path / "pairs", 63).__class__(**{**_values(data), "max_pairs": 55}), out)
    with pytest.raises(EncoderConfigError, match=r"small.dim was 16, is 8"):
        train(data, out, small=replace(SMALL, dim=8))
    assert position(out) == before
    train(data, out, epochs=3, resume="last", say=said.append)
    assert any("training.epochs was 2, is 3" in line for line in said)
    assert position(out) > before


def test_checkpoints_that_are_not_there_or_are_none(straight, tmp_path):
    data, _ = straight
    with pytest.raises(CheckpointError, match=r"no checkpoint at .*last\.ckpt"):
        train(data, tmp_path / "out", resume="last")
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"broken.ckpt is not a checkpoint"):
        train(data, tmp_path / "out", resume=str(broken))
    torch.save({"weights": torch.zeros(1)}, broken)
    with pytest.raises(CheckpointError, match=r"broken.ckpt is not a checkpoint"):
        train(data, tmp_path / "other", resume=str(broken))


def test_a_folder_of_someone_elses_is_left_alone(straight, tmp_path):
    data, _ = straight
    (tmp_path / "out.checkpoints").mkdir()
    (tmp_path / "out.checkpoints" / "thesis.txt").write_text("mine")
    with pytest.raises(EncoderConfigError, match="no folder of checkpoints"):
        train(data, tmp_path / "out")
    assert (tmp_path / "out.checkpoints" / "thesis.txt").read_text() == "mine"


def _values(data):
    return {name: getattr(data, name) for name in type(data).__dataclass_fields__}


def test_two_runs_do_not_train_in_one_folder(tmp_path):
    first, second = CheckpointFolder(str(tmp_path / "out")), CheckpointFolder(str(tmp_path / "out"))
    with first.lease():
        with pytest.raises(EncoderConfigError, match=r"out\.checkpoints: another process trains there now"):
            with second.lease():
                pass
    with second.lease():
        assert not any(second.path.iterdir()), "nothing is left behind"
