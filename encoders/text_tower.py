"""BERT text towers read texts, alone and as the query and document pair of a bi-encoder.

Legend: T texts, L tokens of the longest text of the batch, H width of the backbone, D width of the tower's vectors.

The two towers of a pair share all parameters except LayerNorms and the projection ("Multimodal semantic retrieval for
product search", BiBERT), so an update of one side is an update of both.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from encoders.bert import Bert, is_plain_bert, spans
from encoders.config import Pooling
from encoders.errors import EncoderConfigError

ROWS_PROJECTED_AT_A_TIME = 64
"""Of vectors whose number varies: a product of one shape sums each row alike."""


class TextTower(nn.Module):
    """A BERT-like encoder without its pooler, pooled to one vector a text, with an optional projection.

    BERT itself is `encoders.bert.Bert`; other architectures are modules of transformers.

    Args:
        pooling: `mean` over the text's tokens, `cls`: the first token, `eos`: the last.
        projection_dim: Width D of the linear projection; None leaves the pooled vector as it is (D = H).
    """

    def __init__(self, backbone: Any, *, pooling: Pooling, projection_dim: int | None = None) -> None:
        super().__init__()
        if getattr(backbone, "pooler", None) is not None:
            setattr(backbone, "pooler", None)  # noqa: B010  a module by the class's own account
        self.backbone = backbone
        self.pooling = pooling
        hidden = int(backbone.config.hidden_size)
        self.projection = nn.Linear(hidden, projection_dim, bias=False) if projection_dim else nn.Identity()
        self.feature_dim, self.dim = hidden, projection_dim or hidden

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encodes token ids int64 `[T, L]` with mask bool `[T, L]` to `[T, D]`, not normalised."""
        return self.projection(self.features(ids, mask))

    def features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What the projection gets: `[T, H]`."""
        if isinstance(self.backbone, Bert):
            states = self.backbone(ids, mask)
        else:
            states = self.backbone(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        if self.pooling == "cls":
            pooled = states[:, 0]
        elif self.pooling == "eos":
            pooled = states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
        else:
            # Summed in float32: half precision loses digits over long texts.
            weights = mask.unsqueeze(-1).float()
            pooled = ((states.float() * weights).sum(1) / weights.sum(1)).to(states.dtype)
        return pooled

    @property
    def packs(self) -> bool:
        """Whether texts may lie end to end (`packed`)."""
        return isinstance(self.backbone, Bert)

    def packed(self, ids: Tensor, positions: Tensor, groups: Tensor) -> Tensor:
        """Encodes texts that lie end to end to `[T, D]`; arguments as `Bert.packed` has them, groups int64 `[., 2]`."""
        pooled = self.features_packed(ids, positions, groups)
        return pooled if isinstance(self.projection, nn.Identity) else in_equal_parts(self.projection, pooled)

    def features_packed(self, ids: Tensor, positions: Tensor, groups: Tensor) -> Tensor:
        """What the projection gets: `[T, H]`."""
        sizes: list[tuple[int, int]] = [(texts, length) for texts, length in groups.tolist()]
        states = self.backbone.packed(ids, positions, sizes)
        pooled = []
        for place, group in spans(sizes):
            own = states[place].unflatten(0, group)
            if self.pooling == "mean":
                pooled.append((own.float().sum(1) / group[1]).to(states.dtype))
            else:
                pooled.append(own[:, 0] if self.pooling == "cls" else own[:, -1])
        return torch.cat(pooled)


def in_equal_parts(layer: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """What a layer makes of each of n rows, `[n, D]`, a fixed number of them at a time."""
    filled = functional.pad(rows, (0, 0, 0, -len(rows) % ROWS_PROJECTED_AT_A_TIME))
    return torch.cat([layer(part) for part in filled.split(ROWS_PROJECTED_AT_A_TIME)])[: len(rows)]


def build_backbone(config: dict[str, Any]) -> nn.Module:
    """Builds a text encoder with random weights from its `config.json` values."""
    if is_plain_bert(config):
        return Bert(config)
    from transformers import AutoConfig, AutoModel  # takes seconds, which BERT does without

    values = {key: value for key, value in config.items() if key != "model_type"}
    return AutoModel.from_config(AutoConfig.for_model(config["model_type"], **values))


def check_max_tokens(max_tokens: int, config: dict[str, Any]) -> None:
    """Raises EncoderConfigError when the token limit is above what the backbone has positions for."""
    positions = config.get("max_position_embeddings")
    # RoBERTa counts its positions from pad_token_id + 1.
    offset = int(config.get("pad_token_id") or 0) + 1 if config.get("model_type") in ("roberta", "xlm-roberta") else 0
    if positions is not None and max_tokens > positions - offset:
        raise EncoderConfigError(
            f"text_tower.max_tokens is {max_tokens}: the checkpoint has positions for {positions - offset} tokens"
        )


def tie_document_and_query(document: TextTower) -> TextTower:
    """Makes a query tower, equal at first: LayerNorms and projection of its own, all else the same parameters."""
    query = copy.deepcopy(document)
    document_modules = dict(document.backbone.named_modules())
    for name, module in query.backbone.named_modules():
        if isinstance(module, nn.LayerNorm):
            continue
        for key, parameter in list(document_modules[name].named_parameters(recurse=False)):
            setattr(module, key, parameter)
    return query


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps the library's progress bars and advice off the terminal while it loads."""
    from transformers.utils import logging as transformers_logging

    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
