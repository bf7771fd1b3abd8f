from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from encoders.errors import CheckpointError
from encoders.kept_vectors import KeptVectors
from encoders.training.batches import PairDataset
from encoders.training.config import PairsConfig, TrainingConfig
from encoders.training.frozen_towers import store_frozen
from encoders.training.images import decode_or_none
from encoders.training.module import EncoderTraining
from encoders.training.pairs import read_pairs
from tests.encoders.tiny import tiny_parts
from tests.encoders.training.pairs_files import photographed_rows, write_pairs
from tests.encoders.training.runs import SMALL, Stopped, StopsAfter, assert_same_bytes, pairs_of, train

ALL = {"product_text", "product_image", "query_text", "query_clip_text", "query_image"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Beside what `photographed_rows` lacks: product 7's picture is none, product 8 has no text."""
    rows = photographed_rows()
    rows[7]["image"] = {"bytes": b"no picture", "path": None}
    rows[8]["title"] = rows[8]["description"] = None
    data = PairsConfig(uri=write_pairs(tmp_path_factory.mktemp("pairs"), rows), query_image_field="photo")
    return read_pairs(data)


def module_and_data(pairs, folder, model, fusion, tuned, **changes):
    parts = tiny_parts(model, fusion=fusion)
    module = EncoderTraining(parts.model, TrainingConfig(tuned=tuned), steps=1)
    dataset = PairDataset(pairs, np.arange(12), parts)
    options = {"batch_size": 5, "device": torch.device("cpu"), "say": lambda line: None} | changes
    return module, dataset, lambda: store_frozen(KeptVectors(folder), parts, pairs, dataset.make, **options)


@pytest.mark.parametrize(
    ("model", "fusion", "tuned", "known"),
    [
        ("3tmm", None, ("fusion",), ALL - {"query_clip_text"}),
        ("3tmm", None, ("fusion", "text"), {"product_image", "query_image"}),
        ("3tmm", None, ("image",), {"product_text", "query_text"}),
        ("4tmm", "mlp", ("fusion",), ALL),
        ("4tmm", "mlp", ("fusion", "text"), ALL - {"product_text", "query_text"}),
        ("clip", None, ("clip_text",), {"product_image", "query_image"}),
        # What is kept stands before the projection, which may learn.
        ("match3", None, ("bert", "projection"), {"product_image", "query_image"}),
        ("match4", None, ("projection",), ALL - {"query_clip_text"}),
        ("match3", None, ("bert",), {"product_image", "query_image"}),
        ("match4", "mlp", ("fusion",), ALL - {"query_clip_text"}),
    ],
)
def test_stored_vectors_give_the_losses_that_the_towers_give(pairs, tmp_path, model, fusion, tuned, known):
    module, dataset, store = module_and_data(pairs, tmp_path, model, fusion, tuned)
    module.eval()
    indices = [11, 2, 7, 3, 4, 8, 0]
    with torch.no_grad():
        expected = module.terms(dataset[indices], drop=None)
        dataset.make.frozen = frozen = store()
        batch = dataset[indices]
        found = module.terms(batch, drop=None)
    assert frozen.keys() == known
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    if "product_image" in known:
        assert batch.products.pixels is None
        assert batch.products.has_image.sum() == len(batch.products.has_image) - 2, "none, and one that is no picture"
    if "query_text" in known:
        assert batch.queries.tokens is None


def test_each_picture_is_decoded_once_however_many_epochs(tmp_path):
    data, said, decoded = pairs_of(tmp_path / "pairs"), [], []

    def decode(encoded, preprocessing):
        decoded.append(encoded)
        return decode_or_none(encoded, preprocessing)

    train(data, tmp_path / "out", epochs=4, tuned=("fusion", "text"), decode=decode, say=said.append)
    assert len(decoded) == 3, "the 60 products have pictures of three colours"
    assert [line for line in said if "computed once" in line] == [
        "product image: 3 vectors computed once, their tower does not learn"
    ]
    assert not (tmp_path / "out.checkpoints" / "frozen").exists(), "they go with the run's end"


def test_a_run_that_goes_on_reads_the_vectors_that_are_there(tmp_path):
    data = pairs_of(tmp_path / "pairs")
    tuned = {"tuned": ("fusion",), "small": SMALL}
    train(data, tmp_path / "straight", **tuned)

    def stop_at_the_first_validation(line):
        if line.startswith("step"):
            raise Stopped

    with pytest.raises(Stopped):
        train(data, tmp_path / "out", say=stop_at_the_first_validation, checkpoint_steps=1, **tuned)
    stored = sorted(path.name for path in (tmp_path / "out.checkpoints" / "frozen").iterdir())
    assert [name.split("-")[0] for name in stored] == ["image", "text"], "both sides of 3tmm begin as one tower"
    said = []
    train(data, tmp_path / "out", decode=StopsAfter(0), say=said.append, checkpoint_steps=1, **tuned)
    assert "going on" in said[1]
    assert_same_bytes(tmp_path / "straight", tmp_path / "out")


def test_a_shared_folder_serves_another_model_of_the_same_towers(pairs, tmp_path):
    said: list[str] = []
    options = {"say": said.append}
    _, _, store = module_and_data(pairs, tmp_path, "match4", None, ("projection",), **options)
    store()
    assert len(said) == 4
    files = {path.name for path in tmp_path.rglob("*.npy")}
    module, dataset, again = module_and_data(pairs, tmp_path, "match3", None, ("projection",), **options)
    with torch.no_grad():
        module.model.image.projection.weight.add_(1.0)  # stands above what is kept
    found = again()
    assert len(said) == 4, "nothing is computed again"
    assert {path.name for path in tmp_path.rglob("*.npy")} == files
    dataset.make.frozen = {}
    module.eval()
    with torch.no_grad():
        expected = module.terms(dataset[[1, 4, 2]], drop=None)
        dataset.make.frozen = found
        assert torch.allclose(module.terms(dataset[[1, 4, 2]], drop=None)["picture_text"], expected["picture_text"])


def test_a_shared_folder_tells_towers_of_the_same_weights_apart(pairs, tmp_path):
    """Other pooling, or more of a network's maps, gives other vectors without a weight more."""
    module, _, store = module_and_data(pairs, tmp_path, "match4", None, ("projection",))
    store()
    first = {path.name for path in tmp_path.iterdir()}
    known = module.model.architecture
    changed = replace(known.clip, model_config=known.clip.model_config | {"stages": True})
    module.model.architecture = replace(known, text=replace(known.text, pooling="cls"), clip=changed)
    store()
    added = {path.name for path in tmp_path.iterdir()} - first
    assert sorted(name.split("-")[0] for name in added) == ["image", "text"]


def test_vectors_of_other_weights_are_not_taken(pairs, tmp_path):
    module, _, store = module_and_data(pairs, tmp_path, "3tmm", None, ("fusion",))
    store()
    first = {path.name for path in tmp_path.iterdir()}
    with torch.no_grad():
        next(iter(module.model.image.parameters())).add_(1.0)
    store()
    added = {path.name for path in tmp_path.iterdir()} - first
    assert [name.split("-")[0] for name in added] == ["image"]


def test_vectors_that_are_not_finite_are_refused(pairs, tmp_path):
    module, _, store = module_and_data(pairs, tmp_path, "3tmm", None, ("fusion",))
    with torch.no_grad():
        next(iter(module.model.image.parameters())).fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"image tower .* not finite"):
        store()
    assert not list(tmp_path.glob("image*/*"))


def test_no_tower_runs_over_texts_that_are_hidden(tmp_path):
    """A product's own title is the query: to its side's tower 512 empty texts a step would be most of the work."""
    data = PairsConfig(uri=write_pairs(tmp_path / "pairs", photographed_rows()), queries="titles")
    module, dataset, store = module_and_data(read_pairs(data), tmp_path, "match4", None, ("projection",))
    dataset.make.frozen = store()
    module.model.document_text.features = None  # nobody asks it
    batch = dataset[[0, 1, 2]]
    assert batch.products.tokens is None
    assert torch.isfinite(module.terms(batch, drop=None)["query_text_picture"])


def test_kept_vectors_of_photos_and_products_pass_a_projection_together(pairs, tmp_path):
    """Norms over a batch see one distribution, and no zeros in place of images that are missing."""
    module, dataset, store = module_and_data(pairs, tmp_path, "match4", None, ("projection",))
    dataset.make.frozen = store()
    seen: list[int] = []
    module.model.image.projection.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    batch = dataset[list(range(12))]
    module.terms(batch, drop=None)
    assert seen == [int(batch.queries.has_image.sum() + batch.products.has_image.sum())]
