"""Towers through torch.compile, for `encoder.compile`."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from encoders.errors import EncoderConfigError

_Tower = TypeVar("_Tower", bound=nn.Module)


def compile_tower(tower: _Tower, *example: torch.Tensor) -> _Tower:
    """Compiles a tower for batches of any size and texts of any length, and runs it once.

    Shapes are dynamic: a batch of another length runs the same code; only a batch of one item is compiled again. The
    run happens here, so that what cannot be compiled is known when the encoder is loaded.

    Args:
        tower: On its device, in its precision.
        example: What it is called with, at least two items a batch.

    Raises:
        EncoderConfigError: There is no compiler that works, or torch cannot compile this tower.
    """
    compiled = torch.compile(tower, dynamic=True)
    try:
        with torch.inference_mode():
            compiled(*example)
    except TorchDynamoException as error:
        device = example[0].device.type
        wanted = "a C++ compiler (g++, or the one that CXX names)" if device == "cpu" else "Triton and a C compiler"
        cause = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise EncoderConfigError(
            f"encoder.compile is true: torch.compile fails on the {type(tower).__name__} ({cause}); on {device} it "
            f"needs {wanted}: install it, or set encoder.compile: false"
        ) from error
    return compiled  # type: ignore[return-value]  # behaves as the tower, attributes included
