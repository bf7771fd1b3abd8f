"""An image tower on a GPU runs as one CUDA graph: a batch is one launch, however many decoding threads want the lock.

Every operation that Python launches gives the interpreter's lock away and waits for it again, some hundred times a
batch. A graph (https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs) is launched once. Its batches have one
shape, so a picture's neighbours do not choose the kernels of its matrix products either.

Legend: P images, S side of an image in pixels, D width of the tower's vectors.
"""

from __future__ import annotations

import threading
from itertools import cycle

import numpy as np
import torch
from torch import nn

_WARM_UP_RUNS = 3  # as PyTorch's documentation advises before a capture


class GraphedImageTower:
    """Batches of one size, staged in pinned memory: one is copied to the device while the one before is computed.

    Threads may share it; one runs at a time.
    """

    def __init__(self, tower: nn.Module, batch_size: int, side: int, device: torch.device) -> None:
        shape = (batch_size, 3, side, side)
        self._lock = threading.Lock()
        self._staged = [torch.empty(shape, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._pixels = [torch.zeros(shape, dtype=torch.uint8, device=device) for _ in range(2)]
        self._copying = torch.cuda.Stream(device)
        self._computing = torch.cuda.Stream(device)
        self._turns = cycle((0, 1))
        self._copied = [torch.cuda.Event() for _ in range(2)]
        self._computed = [torch.cuda.Event() for _ in range(2)]
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._vectors: list[torch.Tensor] = []
        # Our own streams wait for what was begun before, such as moving the weights.
        self._computing.wait_stream(torch.cuda.current_stream(device))
        with torch.inference_mode(), torch.cuda.stream(self._computing):
            for _ in range(_WARM_UP_RUNS):
                tower(self._pixels[0])
            for pixels in self._pixels:
                graph = torch.cuda.CUDAGraph()
                pool = self._graphs[0].pool() if self._graphs else None
                with torch.cuda.graph(graph, pool, self._computing, capture_error_mode="thread_local"):
                    vectors = tower(pixels).float()
                self._graphs.append(graph)
                self._vectors.append(vectors)

    def run(self, pixels: np.ndarray) -> torch.Tensor:
        """Encodes uint8 `[P, 3, S, S]`; float32 `[P, D]` on the device, ready for the calling thread's stream."""
        size = len(self._staged[0])
        device = self._pixels[0].device
        found = torch.empty((len(pixels), self._vectors[0].shape[1]), dtype=torch.float32, device=device)
        with self._lock, torch.inference_mode():
            self._computing.wait_stream(torch.cuda.current_stream(device))
            for start in range(0, len(pixels), size):
                turn, batch = next(self._turns), pixels[start : start + size]
                self._copied[turn].synchronize()  # its staging memory is free again
                staged = self._staged[turn].numpy()
                staged[: len(batch)] = batch
                staged[len(batch) :] = batch[-1]
                with torch.cuda.stream(self._copying):
                    self._copying.wait_event(self._computed[turn])  # its pixels on the device are read
                    self._pixels[turn].copy_(self._staged[turn], non_blocking=True)
                    self._copied[turn].record(self._copying)
                with torch.cuda.stream(self._computing):
                    self._computing.wait_event(self._copied[turn])
                    self._graphs[turn].replay()
                    self._computed[turn].record(self._computing)
                    found[start : start + size] = self._vectors[turn][: len(batch)]
            torch.cuda.current_stream(device).wait_stream(self._computing)
        return found
