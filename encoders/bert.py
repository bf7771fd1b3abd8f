"""BERT in plain torch: the modules, names and sums of transformers' `BertModel`, and over packed texts.

Importing transformers' models brings the compiler, distributed tensors and more: 4 CPU seconds a process. And texts run
there as a padded matrix. Here texts may also lie end to end: all of a layer that looks at one token at a time runs over
so many tokens at once, whatever texts they are of, and only attention is told where each text begins.

Legend: T texts, L tokens of the longest text of the batch, N tokens of a pack, H width, A attention heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
"""What a `config.json` may leave out, as transformers' `BertConfig` fills it in."""


def is_plain_bert(config: Mapping[str, Any]) -> bool:
    """Whether a transformers `config.json` is of a model that `Bert` computes."""
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
        and not config.get("add_cross_attention")
        and not config.get("embedding_size")
    )


def spans(groups: Sequence[tuple[int, int]]) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Where each group of a pack lies, and the group itself: (number of texts, tokens of each)."""
    start = 0
    for texts, length in groups:
        stop = start + texts * length
        yield slice(start, stop), (texts, length)
        start = stop


class Bert(nn.Module):
    """A BERT encoder without its pooler, with random weights.

    Args:
        config: The values of a transformers `config.json` that `is_plain_bert`.

    Raises:
        ValueError: The attention heads do not share the width evenly.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = values = SimpleNamespace(**{key: config.get(key, _DEFAULTS[key]) for key in _DEFAULTS})
        heads = values.num_attention_heads
        if heads < 1 or values.hidden_size % heads:
            raise ValueError(f"hidden_size is {values.hidden_size}, num_attention_heads {heads}: expected a divisor")
        self.embeddings = _Embeddings(values)
        self.encoder = _Layers(values)
        self.apply(self._draw)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """States `[T, L, H]` of token ids int64 `[T, L]` with mask bool `[T, L]`, which is False at padding."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        states = self.embeddings(ids, positions)
        seen = mask[:, None, None]
        for layer in self.encoder.layer:
            states = layer(states, seen)
        return states

    def packed(self, ids: Tensor, positions: Tensor, groups: Sequence[tuple[int, int]]) -> Tensor:
        """States `[N, H]` of N tokens that lie end to end: row by row the same sums, whatever texts lie beside.

        Args:
            ids: int64 `[N]`; behind the last text there may be others, of no text, whose states mean nothing.
            positions: int64 `[N]`, of each token in its text.
            groups: (number of texts, tokens of each) of neighbours of equal length, in their order.
        """
        states = self.embeddings(ids, positions)
        for layer in self.encoder.layer:
            states = cast(_Layer, layer).packed(states, groups)
        return states

    def _draw(self, module: nn.Module) -> None:
        """As transformers draws BERT's first weights."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])


class _Embeddings(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        width = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        states = self.word_embeddings(ids) + self.token_type_embeddings.weight[0] + self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(states))


class _Attention(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.dropped = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, states: Tensor, seen: Tensor | None) -> Tensor:
        """`[T, L, H]` to the same, of states that all see each other where `seen` does not say otherwise."""
        return self._mixed(self.query(states), self.key(states), self.value(states), seen)

    def packed(self, states: Tensor, groups: Sequence[tuple[int, int]]) -> Tensor:
        """`[N, H]` to the same, of texts that lie end to end."""
        query, key, value = self.query(states), self.key(states), self.value(states)
        mixed = torch.zeros_like(query)
        for place, group in spans(groups):
            own = [part[place].unflatten(0, group) for part in (query, key, value)]
            mixed[place] = self._mixed(own[0], own[1], own[2], None).flatten(0, 1)
        return mixed

    def _mixed(self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value))
        dropped = self.dropped if self.training else 0.0
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropped)
        return found.transpose(1, 2).flatten(2)


class _AddAndNorm(nn.Module):
    def __init__(self, config: SimpleNamespace, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, found: Tensor, states: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(found)) + states)


class _AttentionAndNorm(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.self, self.output = _Attention(config), _AddAndNorm(config, config.hidden_size)


class _Intermediate(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)


class _Layer(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.attention, self.intermediate = _AttentionAndNorm(config), _Intermediate(config)
        self.output = _AddAndNorm(config, config.intermediate_size)

    def forward(self, states: Tensor, seen: Tensor | None) -> Tensor:
        return self._beside(states, self.attention.self(states, seen))

    def packed(self, states: Tensor, groups: Sequence[tuple[int, int]]) -> Tensor:
        return self._beside(states, self.attention.self.packed(states, groups))

    def _beside(self, states: Tensor, mixed: Tensor) -> Tensor:
        states = self.attention.output(mixed, states)
        return self.output(functional.gelu(self.intermediate.dense(states)), states)


class _Layers(nn.Module):
    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))
