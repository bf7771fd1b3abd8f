"""The number format of the towers: which one a device multiplies natively, and linear layers in 8-bit integers.

Legend: B rows of a batch (tokens or items), K and N widths of a layer's inputs and outputs.
"""

from __future__ import annotations

import os
import socket

import torch
from torch import Tensor, nn

from encoders.config import Precision
from encoders.errors import EncoderConfigError

FLOATING_POINT: tuple[Precision, ...] = ("bfloat16", "float16", "float32")
"""The narrowest first."""
_TOWER_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_NATIVE_FLAGS = ("avx512_bf16", "amx_bf16")


def native_precision(device: str) -> Precision:
    """The narrowest floating-point format that a device multiplies at a gain, which is what `auto` stands for.

    Args:
        device: As `EncoderConfig.device`. A GPU that this process does not see, but its workers may, counts as one of
            today's (`check_native` asks them).
    """
    kind = device.partition(":")[0]
    if kind == "cuda" or (kind == "auto" and torch.cuda.is_available()):
        if not torch.cuda.is_available():
            return "bfloat16"
        capability = torch.cuda.get_device_capability(None if kind == "auto" else device)
        return "bfloat16" if capability >= (8, 0) else "float16"
    return "bfloat16" if _cpu_multiplies_bfloat16() else "float32"


def is_native(precision: Precision, device: str) -> bool:
    """Whether a device gains by a precision; float32 always does, int8 on CPUs."""
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if precision in ("float32", "int8"):
        return precision == "float32" or not on_gpu
    return precision == native_precision(device) or (on_gpu and precision == "float16")


def gaining_precisions(device: str) -> tuple[Precision, ...]:
    """The floating-point formats that a device multiplies at no loss of time, the narrowest first."""
    return tuple(precision for precision in FLOATING_POINT if is_native(precision, device))


def check_precision(precision: Precision, device: str) -> None:
    """Raises EncoderConfigError where a device cannot run towers in a precision at all."""
    if precision == "int8" and (device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())):
        raise EncoderConfigError(
            f"encoder.precision is 'int8' and encoder.device {device!r}: 8-bit towers run on CPUs only; expected auto, "
            "bfloat16, float16 or float32 on a GPU, or encoder.device: cpu"
        )


def check_worker(precision: Precision, device: str) -> None:
    """Raises EncoderConfigError, which names this host, where a run's `encoder.precision: auto` chose what it lacks."""
    if not is_native(precision, device):
        own = native_precision(device)
        raise EncoderConfigError(
            f"encoder.precision is auto, and this run's vectors are made in {precision}; the worker "
            f"{socket.gethostname()} multiplies {own} at best: give all workers one kind of processor, or set "
            f"encoder.precision: {own}, which all of them have"
        )


def apply_precision(tower: nn.Module, precision: Precision) -> nn.Module:
    """Gives a tower's weights and activations the precision, in place; `int8` only to its linear layers.

    The attention of open_clip's own blocks keeps its weights in one matrix that is no layer: it stays in float32.
    """
    if precision != "int8":
        return tower.to(_TOWER_DTYPES.get(precision, torch.float32))
    tower.to(torch.float32)
    for module in list(tower.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:  # subclasses are layers whose weights others read
                setattr(module, name, Int8Linear(child))
    return tower


class Int8Linear(nn.Module):
    """A linear layer whose weights have a scale for each output, and its inputs one for each row, as they come.

    A row's result depends on the row alone: sums of integers have no rounding. (torch's own dynamic quantization scales
    the whole batch, so company would change a vector.)
    """

    weight: Tensor  # int8 [N, K]
    weight_scale: Tensor  # float32 [N]
    int8_original_dtype = torch.float32  # where open_clip looks for the type of a block's activations

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(1) / 127.0).clamp_min(1e-12)
        self.register_buffer("weight", (weight / scale[:, None]).round_().to(torch.int8).contiguous())
        self.register_buffer("weight_scale", scale)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """`[..., K]` to `[..., N]`, float32."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        scale = (rows.abs().amax(1, keepdim=True) / 127.0).clamp_min(1e-12)
        sums = torch._int_mm((rows / scale).round_().to(torch.int8), self.weight.t())
        found = sums.float().mul_(scale).mul_(self.weight_scale)
        found = found if self.bias is None else found.add_(self.bias)
        return found.reshape(*inputs.shape[:-1], -1)


def _cpu_multiplies_bfloat16() -> bool:
    # What torch and oneDNN were told to use counts too: with fewer instructions bfloat16 is emulated, at twenty times
    # the time.
    allowed = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    if allowed not in ("DEFAULT", "ALL") and not any(name in allowed for name in ("BF16", "FP16", "AMX", "AVX10")):
        return False
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as info:
            flags = next((line for line in info if line.startswith("flags")), "").split()
    except OSError:
        return False
    return any(flag in flags for flag in _NATIVE_FLAGS)
