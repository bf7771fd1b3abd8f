from __future__ import annotations

import pytest
import torch
from torch import nn

from encoders.errors import EncoderConfigError
from encoders.saved_encoder import read_saved
from encoders.text_tower import TextTower, build_backbone, check_max_tokens, tie_document_and_query
from tests.encoders.tiny import TEXT_DIM, save_tiny_encoder, tiny_bert_config

IDS = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
MASK = IDS != 0


@pytest.fixture
def tower() -> TextTower:
    torch.manual_seed(0)
    return TextTower(build_backbone(tiny_bert_config()), pooling="mean", projection_dim=12).eval()


def test_shapes(tower):
    assert tower(IDS, MASK).shape == (2, 12)
    plain = TextTower(tower.backbone, pooling="cls")
    assert plain(IDS, MASK).shape == (2, TEXT_DIM)
    assert plain.dim == TEXT_DIM


@pytest.mark.parametrize("pooling", ["mean", "cls", "eos"])
def test_padding_changes_nothing(tower, pooling):
    tower.pooling = pooling
    alone = tower(IDS[1:, :3], MASK[1:, :3])
    assert torch.allclose(tower(IDS, MASK)[1:], alone, atol=1e-6)


def test_mean_pooling_is_the_mean_of_real_tokens(tower):
    states = tower.backbone(IDS, MASK)
    expected = tower.projection(torch.stack([states[0].mean(0), states[1, :3].mean(0)]))
    assert torch.allclose(tower(IDS, MASK), expected, atol=1e-6)


def test_cls_and_eos_pooling_take_the_first_and_the_last_token(tower):
    states = tower.backbone(IDS, MASK)
    tower.pooling = "cls"
    assert torch.allclose(tower(IDS, MASK), tower.projection(states[:, 0]), atol=1e-6)
    tower.pooling = "eos"
    expected = tower.projection(torch.stack([states[0, 3], states[1, 2]]))
    assert torch.allclose(tower(IDS, MASK), expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "cls", "eos"])
def test_texts_end_to_end_give_the_same_vectors(tower, pooling):
    tower.pooling = pooling
    ids, positions = torch.tensor([2, 5, 6, 3, 2, 7, 3, 9]), torch.tensor([0, 1, 2, 3, 0, 1, 2, 0])
    packed = tower.packed(ids, positions, torch.tensor([[1, 4], [1, 3]]))
    assert torch.allclose(packed, tower(IDS, MASK), atol=1e-6)


def test_tied_towers_share_all_but_layer_norms_and_projection(tower):
    query = tie_document_and_query(tower)
    assert torch.equal(query(IDS, MASK), tower(IDS, MASK))
    own = {name for name, weight in query.named_parameters() if weight is not dict(tower.named_parameters())[name]}
    norms = {name for name, module in query.named_modules() if isinstance(module, nn.LayerNorm)}
    assert own == {f"{norm}.{part}" for norm in norms for part in ("weight", "bias")} | {"projection.weight"}
    assert len(norms) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bibert_towers_share_storage_but_for_layer_norms_and_projection(tmp_path, dtype):
    """By storage, of a whole encoder that was saved and loaded: what the README says of bibert, parameter by
    parameter.
    """
    save_tiny_encoder(tmp_path, model="bibert")
    model = read_saved(tmp_path).load().model.to(dtype)
    document, query = dict(model.document_text.named_parameters()), dict(model.query_text.named_parameters())
    assert document.keys() == query.keys()
    shared = {
        name
        for name in document
        if document[name].untyped_storage().data_ptr() == query[name].untyped_storage().data_ptr()
    }
    assert {name for name in document if "LayerNorm" in name or name.startswith("projection")} == (
        document.keys() - shared
    )
    kinds = ("word_embeddings", "position_embeddings", "query", "key", "value", "intermediate", "output.dense")
    assert all(any(kind in name for name in shared) for kind in kinds)


def test_an_update_of_one_side_is_an_update_of_both(tower):
    query = tie_document_and_query(tower)
    optimizer = torch.optim.SGD([*query.parameters()], lr=0.1)
    before = tower(IDS, MASK).detach().clone()
    query(IDS, MASK).pow(2).sum().backward()
    optimizer.step()
    assert not torch.allclose(tower(IDS, MASK), before)
    assert not torch.equal(query.projection.weight, tower.projection.weight)


def test_ties_survive_a_change_of_precision(tower):
    query = tie_document_and_query(tower)
    pair = nn.ModuleList([tower, query]).to(torch.bfloat16)
    name = "backbone.embeddings.word_embeddings.weight"
    assert dict(pair[0].named_parameters())[name] is dict(pair[1].named_parameters())[name]


def test_token_limit_above_the_positions():
    check_max_tokens(32, tiny_bert_config())
    with pytest.raises(EncoderConfigError, match=r"33.*32"):
        check_max_tokens(33, tiny_bert_config())
    with pytest.raises(EncoderConfigError, match="512 tokens"):
        check_max_tokens(514, {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1})
