"""The towers' work is counted without running them: floating-point operations of one text and of one image.

PyTorch counts them itself, over modules whose tensors have shapes and no values (the `meta` device), so no weights are
read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from encoders.architecture import EncoderArchitecture
from encoders.bert import Bert
from encoders.config import EncoderConfig
from encoders.model import EncoderModel
from encoders.saved_encoder import resolve_encoder

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerFlops:
    """Operations (a multiplication and an addition are two) of the product side, and what its weights take.

    Attributes:
        text: Of a text of so many `tokens`; 0 where texts are not read.
        tokens: At most the tower's own limit.
        image: Of one image; 0 where images are not used.
        weights: Numbers in both towers.
    """

    text: int
    tokens: int
    image: int
    weights: int


def count_flops(config: EncoderConfig, *, tokens: int) -> TowerFlops | None:
    """Counts what the product side of an encoder does for one text of `tokens` tokens and for one image; None for
    towers whose code asks its tensors for values.

    Raises:
        CheckpointError, EncoderConfigError: as `check_encoder`.
    """
    architecture = resolve_encoder(config).architecture
    try:
        return _count(architecture, tokens)
    except (RuntimeError, NotImplementedError) as error:
        log.info("the operations of the towers cannot be counted: %s", error)
        return None


def _count(architecture: EncoderArchitecture, tokens: int) -> TowerFlops:
    with torch.device("meta"), torch.no_grad():
        # Without gradients, also for parts that a library has made: the counter's hooks would ask for them.
        model = EncoderModel(architecture).keep_side("product").requires_grad_(False)
        tokens = max(1, min(tokens, architecture.max_tokens)) if architecture.uses_text else 0
        ids = torch.ones((1, tokens), dtype=torch.long)
        mask = torch.ones((1, tokens), dtype=torch.bool)
        text = image = 0
        if model.document_text is not None:
            # Without a mask, whose values the backbone would look at; the projection is less than a hundredth.
            backbone = model.document_text.backbone
            if not isinstance(backbone, Bert):
                backbone.set_attn_implementation("eager")
            with FlopCounterMode(display=False) as counter:
                backbone(ids, mask) if isinstance(backbone, Bert) else backbone(input_ids=ids)
            text = counter.get_total_flops()
        elif model.clip_text is not None:
            with FlopCounterMode(display=False) as counter:
                model.clip_text(ids, mask)
            text = counter.get_total_flops()
        if model.image is not None and architecture.clip is not None:
            side = architecture.clip.preprocessing.size
            with FlopCounterMode(display=False) as counter:
                model.image(torch.zeros((1, 3, side, side), dtype=torch.uint8))
            image = counter.get_total_flops()
        weights = sum(weight.numel() for weight in model.parameters())
    return TowerFlops(text=text, tokens=tokens, image=image, weights=weights)
