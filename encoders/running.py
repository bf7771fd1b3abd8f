"""Towers run on their device: batches in, float32 vectors out, a product's bits the same in whatever company it comes.

A matrix product chooses its kernels, and so the order of its sums, by the shape of the whole batch and by how many
threads share it. On a CPU every batch of the product side therefore has a shape that depends on the item alone, is run
by one thread, and as many batches run side by side as the caller's torch has threads.

Legend: T texts, P images, S side of an image in pixels, L tokens of a text, D width of the tower's vectors.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import nn

from encoders.cuda_graph import GraphedImageTower
from encoders.errors import EncoderConfigError
from encoders.image_decoding import AnyImage, image_pixels
from encoders.image_tower import ClipTextTower, ImageTower
from encoders.preprocessing import ImagePreprocessing
from encoders.text_tower import TextTower
from encoders.tokenizers import TextTokenizer, TokenizedTexts

# Large enough that one thread computes as fast as it can, small enough that padding the last batch costs little
# (tests/benchmarks/batch_shapes.py, text_packing.py). Layers that are not prepacked lay their
# weights out anew for every batch in half precision, so it wants more.
IMAGES_PER_BATCH = {torch.float32: 8, torch.bfloat16: 16, torch.float16: 8}
TOKENS_PER_BATCH = {torch.float32: 128, torch.bfloat16: 512, torch.float16: 256}
TOKENS_PER_PACK = 512

_MKL_AVX2, _MKL_STRICT = 10, 0x10000  # MKL_CBWR_AVX2 and MKL_CBWR_STRICT of mkl_types.h
log = logging.getLogger(__name__)


def _keep_row_sums_in_order() -> bool:
    """Has MKL sum every row of a matrix product alike; whether it does. False: a product came before this call.

    On Intel CPUs with AVX2 at best MKL multiplies six rows at a time and sums the one to three that may be left over in
    another order, so that a row's bits depend on its place in the batch. Its strict mode (`MKL_CBWR=AVX2,STRICT`) does
    not, at the same speed. Kernels for AVX-512 and for other makers' CPUs are left as they are.
    """
    try:
        mkl = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))  # the copy that is loaded
        best = mkl.mkl_serv_cbwr_get_auto_branch()  # no instruction set on CPUs that are not Intel's
        if best != _MKL_AVX2:
            return True
        mkl.mkl_serv_cbwr_set(_MKL_AVX2 | _MKL_STRICT)
        return mkl.mkl_serv_cbwr_get(-1) == _MKL_AVX2 | _MKL_STRICT
    except (OSError, AttributeError):  # a torch without MKL, as on Arm
        return True


# As soon as torch is there: MKL takes the mode only before its first product.
_ROW_SUMS_IN_ORDER = _keep_row_sums_in_order()

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_Tower = TypeVar("_Tower", bound=nn.Module)


class Lanes:
    """Threads that run whole batches side by side, each with one thread inside an operation.

    torch's thread count belongs to each thread, with one number that threads start with which use torch later: that
    number is given back, so training, FAISS and the caller keep what they have. Several callers may share the lanes.

    Args:
        count: How many; None: as many as the calling thread's torch has.
    """

    def __init__(self, count: int | None = None) -> None:
        if not _ROW_SUMS_IN_ORDER:
            log.warning(
                "torch multiplied matrices before the encoders were imported: on this CPU a product's place in a batch "
                "may change the last digits of its vector; import encoders.running first, or set MKL_CBWR=AVX2,STRICT"
            )
        own = torch.get_num_threads()
        self.count = count or own
        self._pool = ThreadPoolExecutor(self.count, "encoder-lane", initializer=_run_single_threaded)
        started = threading.Barrier(self.count)
        list(self._pool.map(lambda _: started.wait(), range(self.count)))
        torch.set_num_threads(own)

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        """Results in the order of the items, computed in inference mode under the caller's context variables."""
        contexts = ((copy_context(), item) for item in items)  # torch keeps its compiler's settings there
        run = torch.inference_mode()(function)
        return list(self._pool.map(lambda pair: pair[0].run(run, pair[1]), contexts))


def _run_single_threaded() -> None:
    torch.get_num_threads()  # a thread's first look takes over the common number; later ones leave it alone
    torch.set_num_threads(1)


def run_batches(lanes: Lanes | None, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Results in the order of the items, computed in inference mode by the lanes, or here without any."""
    if lanes is not None:
        return lanes.map(function, items)
    with torch.inference_mode():
        return [function(item) for item in items]


def fixed_rows(rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cuts rows `[N]` into batches of one size; yields (rows, rows filled up to `size` with the last one)."""
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        yield batch, np.pad(batch, (0, size - len(batch)), mode="edge")


def compile_tower(tower: _Tower, *example: torch.Tensor) -> _Tower:
    """Compiles a tower for batches of any size and texts of any length; only a batch of one item is compiled again.

    It runs once, on an example of at least two items, so that what cannot be compiled is known when the encoder is
    loaded: EncoderConfigError where no compiler works, or torch cannot compile this tower.
    """
    from torch._dynamo.exc import TorchDynamoException  # the compiler takes seconds to load

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


class Placement(NamedTuple):
    """Where and how towers run: in lanes by batches of fixed shape, without by batches of up to `batch_size`.

    `graphed`: image towers run as a CUDA graph over batches of exactly `batch_size`, the last one filled up.
    """

    device: torch.device
    batch_size: int
    lanes: Lanes | None = None
    graphed: bool = False


class _Runner:
    """A tower, on its device already, with its placement."""

    def __init__(self, tower: TextTower | ClipTextTower | ImageTower, placement: Placement) -> None:
        self.dim = tower.dim
        self._tower = tower
        self._device, self._batch_size, self._lanes, self._graphed = placement

    def _compile(self, *example: torch.Tensor) -> None:
        # In a lane, where the generated code is made for one thread.
        (self._tower,) = run_batches(self._lanes, lambda tower: compile_tower(tower, *example), [self._tower])

    def _run(
        self,
        count: int,
        batches: Iterable[tuple[np.ndarray, tuple[np.ndarray, ...]]],
        encode: Callable[..., torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Runs (rows, inputs) batches; inputs may have more rows than there are. Float32 `[count, D]`.

        `encode` takes the inputs, else the tower does.
        """
        encode = encode or self._tower
        vectors = torch.empty((count, self.dim), dtype=torch.float32, device=self._device)

        def run_batch(batch: tuple[np.ndarray, tuple[np.ndarray, ...]]) -> None:
            rows, inputs = batch
            tensors = (torch.from_numpy(values).to(self._device, non_blocking=True) for values in inputs)
            vectors[torch.from_numpy(rows).to(self._device)] = encode(*tensors)[: len(rows)].float()

        run_batches(self._lanes, run_batch, batches)
        return vectors


class TextRunner(_Runner):
    """A text tower with its own tokenizer."""

    def __init__(self, tower: TextTower | ClipTextTower, tokenizer: TextTokenizer, placement: Placement) -> None:
        super().__init__(tower, placement)
        self.max_tokens = tokenizer.max_tokens
        self.tokenize = tokenizer.tokenize
        self._tokens_per_batch = TOKENS_PER_BATCH[next(tower.parameters()).dtype]
        # A pack takes the longest text, too; its size belongs to the encoder, so that it shapes all vectors alike.
        self.tokens_per_pack = max(TOKENS_PER_PACK, self.max_tokens)
        self._encode_pack: Callable[..., torch.Tensor] | None = None
        if getattr(tower, "packs", False):
            self._encode_pack = cast(TextTower, tower).packed

    def compile(self) -> None:
        """Compiles the tower; raises EncoderConfigError where that cannot be done."""
        self._encode_pack = None
        ids = torch.zeros((2, 3), dtype=torch.int64, device=self._device)
        self._compile(ids, torch.ones_like(ids, dtype=torch.bool))

    def run(self, texts: Sequence[str] | TokenizedTexts) -> torch.Tensor:
        """Encodes T texts in batches of like length; float32 `[T, D]` on the device, in the order given."""
        tokens = texts if isinstance(texts, TokenizedTexts) else self.tokenize(texts)
        if self._lanes is not None and self._encode_pack is not None:
            return self._run(len(tokens), self._packs(tokens), self._encode_pack)
        if self._lanes is not None:
            return self._run(len(tokens), self._fixed_batches(tokens))
        batches = ((rows, (ids, mask)) for rows, ids, mask in tokens.batches(self._batch_size))
        return self._run(len(tokens), batches)

    def _fixed_batches(self, tokens: TokenizedTexts) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
        # Texts of exactly one length share a batch, the longest first: no padding, and so no mask that a library skips
        # or applies depending on the neighbours.
        lengths = np.diff(tokens.offsets)
        for length in np.unique(lengths)[::-1]:
            size = max(1, self._tokens_per_batch // max(1, int(length)))
            for rows, filled in fixed_rows(np.flatnonzero(lengths == length), size):
                yield rows, tokens.padded(filled)

    def _packs(self, tokens: TokenizedTexts) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
        # Texts end to end, the longest first, in packs of one number of tokens: nothing is padded but the end of each
        # pack, however few texts of a length there are.
        lengths = np.diff(tokens.offsets)
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            ends = np.cumsum(lengths[order[start : start + self.tokens_per_pack]])
            count = int(np.searchsorted(ends, self.tokens_per_pack, side="right"))
            rows = order[start : start + count]
            start += count
            own, used = lengths[rows], int(ends[count - 1])
            inside = np.arange(used) - np.repeat(ends[:count] - own, own)
            places = np.repeat(tokens.offsets[rows], own) + inside
            ids, positions = np.zeros((2, self.tokens_per_pack), np.int64)
            ids[:used], positions[:used] = tokens.ids[places], inside
            sizes, texts = np.unique(own, return_counts=True)
            yield rows, (ids, positions, np.stack([texts, sizes], axis=1)[::-1].copy())


class ImageRunner(_Runner):
    """An image tower with its preprocessing."""

    def __init__(self, tower: ImageTower, preprocessing: ImagePreprocessing, placement: Placement) -> None:
        super().__init__(tower, placement)
        self.preprocessing = preprocessing
        self._dtype = tower.mean.dtype
        self._graph: GraphedImageTower | None = None
        self._making_graph = threading.Lock()

    def compile(self) -> None:
        """Compiles the tower; raises EncoderConfigError where that cannot be done."""
        size = self.preprocessing.size
        self._compile(torch.zeros((2, 3, size, size), dtype=torch.uint8, device=self._device))

    def run(self, pixels: np.ndarray) -> torch.Tensor:
        """Encodes pixels uint8 `[P, 3, S, S]`; float32 `[P, D]` on the device. Raises ValueError on another shape."""
        expected = (3, self.preprocessing.size, self.preprocessing.size)
        if pixels.dtype != np.uint8 or pixels.shape[1:] != expected:
            raise ValueError(
                f"pixels are {pixels.dtype} {list(pixels.shape)}: expected uint8 [P, {', '.join(map(str, expected))}]"
            )
        if self._graphed and len(pixels):
            with self._making_graph:  # when the first pictures come, so that an encoder of texts alone holds no memory
                if self._graph is None:
                    self._graph = GraphedImageTower(
                        self._tower, self._batch_size, self.preprocessing.size, self._device
                    )
            return self._graph.run(pixels)
        rows = np.arange(len(pixels))
        if self._lanes is not None:
            size = IMAGES_PER_BATCH[self._dtype]
            batches = ((own, (pixels[filled],)) for own, filled in fixed_rows(rows, size))
        else:
            parts = (slice(start, start + self._batch_size) for start in range(0, len(pixels), self._batch_size))
            batches = ((rows[part], (np.ascontiguousarray(pixels[part]),)) for part in parts)
        return self._run(len(pixels), batches)

    def run_images(self, images: Sequence[AnyImage]) -> torch.Tensor:
        """Decodes, resizes and encodes P images, at least one."""
        return self.run(np.stack([image_pixels(image, self.preprocessing) for image in images]))
