"""The parts of an encoder that train or do not, and how fast each learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from encoders.errors import EncoderConfigError
from encoders.model import EncoderModel
from encoders.training.config import Part, TrainingConfig


def part_of(name: str) -> Part:
    """The part that a parameter of an `EncoderModel` belongs to, by its name."""
    tower, _, rest = name.partition(".")
    if rest.startswith("projection."):
        return "projection"
    if tower in ("document_text", "query_text"):
        return "bert"
    if tower == "image":
        return "clip_image"
    return "clip_text" if tower == "clip_text" else "fusion"


def freeze_all_but(model: EncoderModel, config: TrainingConfig) -> list[nn.Module]:
    """Takes the gradient from all parts that are not tuned.

    Returns:
        The modules of which nothing is tuned: they stay in evaluation mode, without dropout.

    Raises:
        EncoderConfigError: The model has none of the tuned parts.
    """
    there = set()
    for name, weight in model.named_parameters():
        part = part_of(name)
        there.add(part)
        weight.requires_grad_(part in config.tuned_parts)
    if not there & config.tuned_parts:
        raise EncoderConfigError(
            f"training.tuned is {list(config.tuned)}: nothing of this {model.architecture.model} encoder would learn, "
            f"expected some of {', '.join(sorted(there))}"
        )
    frozen: list[nn.Module] = []
    for tower in model.children():
        modules = [tower] if not learns(tower) else list(tower.children())
        frozen += [module for module in modules if not learns(module)]
    return frozen


def parameter_groups(
    model: EncoderModel, config: TrainingConfig, temperature: nn.Parameter | None
) -> list[dict[str, Any]]:
    """AdamW's groups, one for each learning rate; biases, norms and single vectors have groups without weight decay."""
    decayed: dict[float, list[torch.Tensor]] = {}
    plain: dict[float, list[torch.Tensor]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            groups = decayed if weight.ndim >= 2 else plain
            groups.setdefault(config.rate(part_of(name)), []).append(weight)
    if temperature is not None:
        plain.setdefault(config.rate("temperature"), []).append(temperature)
    return [
        {"params": weights, "lr": rate, "weight_decay": decay}
        for groups, decay in ((decayed, config.weight_decay), (plain, 0.0))
        for rate, weights in groups.items()
    ]


def learns(module: nn.Module) -> bool:
    """Whether any of its weights is to learn."""
    return any(weight.requires_grad for weight in module.parameters())
