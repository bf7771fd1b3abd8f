"""Rows of all devices side by side, so that each device's products are negatives for all.

Every device computes the loss of the whole batch. The gradient of a gathered row is summed over the devices on its way
back, and data-parallel training takes the mean of the devices' gradients: what each weight gets is the gradient of the
whole batch's loss, as one device with the whole batch would compute it.
"""

from __future__ import annotations

import torch
import torch.distributed
from torch.distributed.nn.functional import all_gather
from torch.nn import functional


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows of every device, one device after the other; on a single device the rows themselves.

    Floating-point rows carry gradients back to the device that they came from. All devices must call it in the same
    order; their numbers of rows may differ.

    Args:
        rows: `[N, ...]` of this device.

    Returns:
        `[N of all devices, ...]`.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    world = torch.distributed.get_world_size()
    if world == 1:
        return rows
    sizes = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world)]
    torch.distributed.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
    counts = [int(size) for size in sizes]
    missing = max(counts) - len(rows)
    padded = functional.pad(rows, [0, 0] * (rows.ndim - 1) + [0, missing])
    if rows.is_floating_point() and torch.is_grad_enabled():
        # Also a device whose rows need no gradient takes part in the way back: the others wait for it there.
        gathered = all_gather(padded if padded.requires_grad else padded.requires_grad_())
    else:
        plain = padded.to(torch.uint8) if rows.dtype == torch.bool else padded
        gathered = [torch.empty_like(plain) for _ in range(world)]
        torch.distributed.all_gather(gathered, plain.contiguous())
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)]).to(rows.dtype)
