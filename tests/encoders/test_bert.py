from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from encoders.bert import Bert, is_plain_bert
from encoders.config import TowerSpec
from encoders.errors import CheckpointError
from encoders.towers import find_text_checkpoint
from tests.encoders.tiny import save_tiny_bert, tiny_bert_config

CONFIG = {**tiny_bert_config(), "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
LENGTHS = (9, 9, 7, 4, 2)


@pytest.fixture(scope="module")
def pair() -> tuple[torch.nn.Module, Bert]:
    """transformers' model and ours, of the same weights."""
    torch.manual_seed(0)
    values = {key: value for key, value in CONFIG.items() if key != "model_type"}
    theirs = AutoModel.from_config(AutoConfig.for_model("bert", **values), add_pooling_layer=False).eval()
    ours = Bert(CONFIG).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(4, CONFIG["vocab_size"], (len(LENGTHS), max(LENGTHS)), generator=torch.manual_seed(0))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return ids * mask, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_states_are_those_of_transformers_bit_for_bit(pair, dtype):
    (theirs, ours), (ids, mask) = (model.to(dtype) for model in pair), texts()
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        assert torch.equal(ours(ids, mask)[mask], expected[mask])


def test_gradients_are_those_of_transformers(pair):
    (theirs, ours), (ids, mask) = (model.float() for model in pair), texts()
    theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask].pow(2).sum().backward()
    ours(ids, mask)[mask].pow(2).sum().backward()
    gradients = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        assert torch.allclose(weight.grad, gradients[name].grad, atol=1e-5), name


def test_packed_texts_have_the_states_of_padded_ones(pair):
    (ids, mask), ours = texts(), pair[1].float()
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    with torch.inference_mode():
        packed = ours.packed(ids[mask], positions, [(2, 9), (1, 7), (1, 4), (1, 2)])
        assert torch.allclose(packed, ours(ids, mask)[mask], atol=1e-5)


def test_first_weights_are_drawn_as_transformers_draws_them():
    torch.manual_seed(0)
    drawn = Bert({**CONFIG, "hidden_size": 256}).state_dict()
    assert float(drawn["embeddings.word_embeddings.weight"][1:].std()) == pytest.approx(0.02, rel=0.05)
    assert not drawn["embeddings.word_embeddings.weight"][CONFIG["pad_token_id"]].any()
    assert float(drawn["encoder.layer.0.intermediate.dense.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert not drawn["encoder.layer.0.output.dense.bias"].any()


@pytest.mark.parametrize(
    "other", [{"model_type": "roberta"}, {"hidden_act": "relu"}, {"position_embedding_type": "relative_key"},
              {"is_decoder": True}], ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_other_models_are_left_to_transformers(other):
    assert is_plain_bert(CONFIG)
    assert not is_plain_bert({**CONFIG, **other})


def test_checkpoints_with_a_head_and_old_names_are_read(tmp_path):
    folder = save_tiny_bert(tmp_path / "bert")
    spec = TowerSpec(library="transformers", checkpoint=str(folder), max_tokens=16)
    expected = find_text_checkpoint(spec).load().state_dict()
    old = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): each
        for name, each in load_file(str(folder / "model.safetensors")).items()
    }
    save_file({**old, "cls.predictions.bias": torch.zeros(3)}, str(folder / "model.safetensors"))
    found = find_text_checkpoint(spec).load().state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("change", [{"num_attention_heads": 3}, {"pad_token_id": 999}, {"vocab_size": "many"}], ids=str)
def test_a_config_of_no_bert_is_refused(tmp_path, change):
    folder = save_tiny_bert(tmp_path / "bert")
    (folder / "config.json").write_text(json.dumps({**tiny_bert_config(), **change}))
    checkpoint = find_text_checkpoint(TowerSpec(library="transformers", checkpoint=str(folder), max_tokens=16))
    with pytest.raises(CheckpointError, match=r"config\.json is of no BERT that can be built: "):
        checkpoint.load()


def test_weights_of_another_size_are_refused(tmp_path):
    folder = save_tiny_bert(tmp_path / "bert")
    (folder / "config.json").write_text(json.dumps({**tiny_bert_config(), "intermediate_size": 40}))
    checkpoint = find_text_checkpoint(TowerSpec(library="transformers", checkpoint=str(folder), max_tokens=16))
    with pytest.raises(CheckpointError, match=r"intermediate\.dense.*\[32.*config\.json says \[40"):
        checkpoint.load()
