"""What an encoder's towers cost, by the operations that PyTorch counts in them."""

from __future__ import annotations

from encoders import EncoderConfig, EncoderDescription
from encoders.flops import count_flops
from pipelines.indexing.stage_costs import UNKNOWN_TOWER_OPERATIONS, Towers

CHARACTERS_PER_TOKEN = 4.5
"""Of product titles, in BERT's and CLIP's vocabularies."""
_SPECIAL_TOKENS = 2


def towers_of(
    config: EncoderConfig, description: EncoderDescription, text_characters: float, with_images: bool
) -> Towers:
    """The towers of the product side for texts of so many characters on average, and images where there are any."""
    tokens = min(description.max_tokens, round(_SPECIAL_TOKENS + text_characters / CHARACTERS_PER_TOKEN))
    counted = count_flops(config, tokens=max(1, tokens))
    reads_text = description.uses_text and not (description.text_is_fallback and with_images)
    unknown = UNKNOWN_TOWER_OPERATIONS
    return Towers(
        text=(unknown if counted is None else counted.text) if reads_text else 0.0,
        image=(unknown if counted is None else counted.image) if with_images else 0.0,
        weights=0 if counted is None else counted.weights,
        precision=description.precision,
        on_gpu=not description.batch_invariant,
    )
