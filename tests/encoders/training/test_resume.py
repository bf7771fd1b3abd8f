"""A run that is stopped and taken up again ends with the bytes of one that was not."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from encoders.errors import CheckpointError, EncoderConfigError
from encoders.training.checkpoints import read_checkpoint
from tests.encoders.training.runs import SMALL, Stopped, StopsAfter, assert_same_bytes, pairs_of, train

pytestmark = pytest.mark.usefixtures("nothing_is_kept")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Two epochs of six steps, with dropout, modality dropout and a learned temperature, without a stop."""
    folder = tmp_path_factory.mktemp("straight")
    data = pairs_of(folder / "pairs")
    train(data, folder / "out", learn_temperature=True)
    return data, folder / "out"


def position(out, name="last.ckpt"):
    kept = read_checkpoint(out.parent / f"{out.name}.checkpoints" / name)
    return kept["callbacks"]["shelfmark"]["batches"]


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
    out = tmp_path / "out"
    train(data, out, learn_temperature=True)
    folder = tmp_path / "out.checkpoints"
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


def test_a_finished_run_starts_anew_and_so_does_one_that_is_told_to(straight, tmp_path):
    data, whole = straight
    out, said = tmp_path / "out", []
    for resume in ("auto", "auto", "never"):
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
