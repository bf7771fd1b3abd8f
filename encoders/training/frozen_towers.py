"""Runs a batch through the towers, says which parts of them learn, and keeps the vectors of those that do not.

What is kept stands before a tower's projection, which is applied anew each time: it may learn alone.

A frozen tower runs without dropout and sees no augmentation, so it would give the same vectors in every epoch and at
every validation. What is left of a step that trains the fusion alone is then the fusion.

    OUT.checkpoints/frozen/NAME-DIGEST.npy    float32 [rows, width], NaN where there is nothing to encode

The digest is that of the tower's weights below its projection, and of the data: a resumed run reads what it finds. In
a folder of its own (`training.vectors`) the data are the texts and images themselves, so that other runs find them too:
a second model of the same towers starts at once.

They are computed as a night computes them (`encoders.tower_features`): packed texts, one thread a batch, side by side.
Threads that share the operations of a small network wait for each other longer than they compute.

Legend: B queries, P products, D fused dimension, Dt and Di widths of text and image vectors.

With `chunk_rows` a tower runs over so many texts or images at a time and keeps no activations; they are made anew when
the gradient comes back, chunk by chunk (torch's activation checkpoints, with the same dropout). The loss sees all
vectors of the batch: what is known as cached gradients (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup").
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.checkpoint import checkpoint

from encoders.encoder import prepack_tower
from encoders.errors import EncoderConfigError, TrainingError
from encoders.folded_norms import fold_norms
from encoders.image_tower import ClipTextTower, ImageTower
from encoders.model import EncoderModel
from encoders.precision import apply_precision
from encoders.preprocessing import ImagePreprocessing
from encoders.running import Lanes, Placement
from encoders.text_tower import TextTower
from encoders.tokenizers import TextTokenizer
from encoders.tower_features import TowerFeatures
from encoders.training.batches import InputMaker, ProductInputs, QueryInputs, StoredVectors
from encoders.training.config import Part, TrainingConfig
from encoders.training.images import EncodedImages
from encoders.training.pairs import TrainingPairs

_Tower = TextTower | ImageTower | ClipTextTower
_TEXTS_AT_A_TIME, _IMAGES_AT_A_TIME = 4096, 256
"""That a frozen tower is given together: tokens are small, pixels are not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryVectors:
    """Of B queries; float32.

    Attributes:
        fused: `[B, D]`, normalised: the query as it is served.
        text: `[B, D]`, normalised: by its text alone; zeros where no query of the batch has one.
        image: `[B, D]`, normalised: by its image alone; zeros likewise.
    """

    fused: torch.Tensor
    text: torch.Tensor
    image: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductVectors:
    """Of P products, before fusion; float32."""

    text: torch.Tensor  # [P, Dt]
    image: torch.Tensor  # [P, Di]


def encode_pairs(
    model: EncoderModel, queries: QueryInputs, products: ProductInputs, *, chunk_rows: int | None = None
) -> tuple[QueryVectors, ProductVectors]:
    """Queries and products of a batch; all images go through the tower together.

    Batch norms of a ResNet then see photos and packshots as one distribution, as they will when they are frozen.
    """
    photos, images = _encode_images(model, [queries, products], chunk_rows)
    return (
        encode_queries(model, queries, chunk_rows=chunk_rows, alone=photos),
        encode_products(model, products, chunk_rows=chunk_rows, image=images),
    )


def encode_queries(
    model: EncoderModel, queries: QueryInputs, *, chunk_rows: int | None = None, alone: torch.Tensor | None = None
) -> QueryVectors:
    """Queries as `QueryEncoder` encodes them, with gradients; `alone`: vectors of their images, where known."""
    text, image, by_text = None, None, []
    for tower, tokens, known in (
        (model.query_text, queries.tokens, queries.text_vectors),
        (model.clip_text, queries.clip_tokens, queries.clip_text_vectors),
    ):
        if known is not None:
            by_text.append(_projected(tower, known))
        elif tower is not None and tokens is not None:
            by_text.append(run_tower(tower, chunk_rows, *tokens))
    if by_text:
        with float32(queries.has_text.device):
            text = model.fuse_query(*(vectors.float() for vectors in by_text))
    if alone is None:
        (alone,) = _encode_images(model, [queries], chunk_rows)
    if alone is not None:
        there, no_text = torch.ones_like(queries.has_image), alone.new_zeros(len(alone), _document_tower(model).dim)
        with float32(queries.has_text.device):
            image = model.fuse_product(no_text, ~there, alone, there)
    if text is None and image is None:
        neither = f"a {model.architecture.model} encoder reads neither the text nor the picture of these queries"
        raise EncoderConfigError(neither)
    text = torch.zeros_like(image) if text is None else text  # type: ignore[arg-type]
    image = torch.zeros_like(text) if image is None else image
    fused = torch.where(queries.has_text.unsqueeze(-1), text, image)
    both = queries.has_text & queries.has_image
    if both.any():
        with float32(queries.has_text.device):
            fused = torch.where(both.unsqueeze(-1), model.fuse_photo_text(text, image), fused)
    return QueryVectors(fused=fused, text=text, image=image)


def encode_products(
    model: EncoderModel, products: ProductInputs, *, chunk_rows: int | None = None, image: torch.Tensor | None = None
) -> ProductVectors:
    """Both halves of products, with gradients; `image`: their images' vectors, where they are known."""
    document = _document_tower(model)
    is_fallback = model.architecture.model == "clip"  # the text matters only where the image is missing
    if products.text_vectors is not None:
        text = _projected(document, products.text_vectors)
    elif products.tokens is None or (is_fallback and bool(products.has_image.all())):
        text = torch.zeros(len(products.has_text), document.dim, device=products.has_text.device)
    else:
        text = run_tower(document, chunk_rows, *products.tokens).float()
    if image is None:
        (image,) = _encode_images(model, [products], chunk_rows)
    return ProductVectors(text=text, image=torch.zeros_like(text) if image is None else image)


def _encode_images(
    model: EncoderModel, inputs: Sequence[QueryInputs | ProductInputs], chunk_rows: int | None
) -> list[torch.Tensor | None]:
    """For each of the inputs `[., Di]`, zeros where an image is missing; None where there is none at all."""
    tower = model.image
    rows = [torch.nonzero(each.has_image).squeeze(1) for each in inputs]
    there = [each.pixels[row] for each, row in zip(inputs, rows, strict=True) if each.pixels is not None]
    if tower is None or not there:
        return [_projected_images(tower, each) for each in inputs]
    pixels = torch.cat(there)
    vectors = run_tower(tower, chunk_rows, pixels).float() if len(pixels) else pixels.new_zeros((0, tower.dim)).float()
    spread: list[torch.Tensor | None] = []
    for each, row in zip(inputs, rows, strict=True):
        if each.pixels is None:
            spread.append(_projected_images(tower, each))
            continue
        own, vectors = vectors[: len(row)], vectors[len(row) :]
        spread.append(own.new_zeros(len(each.has_image), tower.dim).index_copy(0, row, own))
    return spread


def _projected(tower: nn.Module | None, vectors: torch.Tensor) -> torch.Tensor:
    """A tower's vectors from those before its projection, float32; towers of CLIP's texts have none of their own."""
    projection = getattr(tower, "projection", None)
    if projection is None:
        return vectors
    with float32(vectors.device):
        return projection(vectors)


def _projected_images(tower: nn.Module | None, inputs: QueryInputs | ProductInputs) -> torch.Tensor | None:
    return None if inputs.image_vectors is None else _projected(tower, inputs.image_vectors)


def run_tower(tower: nn.Module, chunk_rows: int | None, *inputs: torch.Tensor) -> torch.Tensor:
    """A tower over a batch, whole or chunk by chunk."""
    rows = len(inputs[0])
    if chunk_rows is None or rows <= chunk_rows:
        return tower(*inputs)
    chunks = [[rows[start : start + chunk_rows] for rows in inputs] for start in range(0, rows, chunk_rows)]
    if not (torch.is_grad_enabled() and learns(tower)):
        return torch.cat([tower(*chunk) for chunk in chunks])
    return torch.cat([checkpoint(tower, *chunk, use_reentrant=False) for chunk in chunks])


def float32(device: torch.device) -> torch.autocast:
    """Fusions and losses compute in float32 whatever the towers' precision: cosines are divided by the temperature."""
    return torch.autocast(device.type, enabled=False)


def _document_tower(model: EncoderModel) -> TextTower | ClipTextTower:
    tower = model.document_text if model.document_text is not None else model.clip_text
    if tower is None:
        raise EncoderConfigError("an encoder without a text tower cannot be trained")
    return tower


def store_frozen(
    folder: Path,
    model: EncoderModel,
    pairs: TrainingPairs,
    make: InputMaker,
    *,
    batch_size: int,
    device: torch.device,
    shared: bool = False,
    mixed: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, StoredVectors]:
    """Runs the towers of `model` of which no weight learns over what they will be asked for, into files of `folder`.

    Args:
        model: With the gradients of what does not learn switched off.
        batch_size: Of what a GPU is given; on CPUs batches are a night's.
        shared: Whether other runs read the folder too.
        mixed: In bfloat16, as the training.

    Returns:
        `product_text` by the products' `text_keys`, `product_image` by product row, `query_text` and `query_clip_text`
        by the pairs' `query_text_keys`, `query_image` by pair: what towers that do not learn give.

    Raises:
        TrainingError: A tower gives a vector that is not finite.
    """
    stored, precision = {}, "bfloat16" if mixed else "float32"
    data, placement = f"{pairs.digest()}, {precision}", Placement(device, batch_size)
    for work in _work(model, pairs, make):
        if shared:
            data = f"{_content(work.name, pairs)}, {_shape(work.name, model)}, {precision}"
        known_as = "image" if shared and "image" in work.name else work.name
        path = folder / f"{known_as}-{_digest(work.tower, data)}.npy"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            if device.type == "cpu" and placement.lanes is None:
                placement = placement._replace(lanes=Lanes())
            tower = copy.deepcopy(work.tower).eval().to(device)
            if device.type == "cpu":
                fold_norms(tower)
            prepack_tower(apply_precision(tower, precision), device)
            features = TowerFeatures(tower, "", placement, reads=work.reads)
            title, console = work.name.replace("_", " "), Console(stderr=True)
            hidden = not (progress and console.is_terminal)
            what = f"{title}: vectors of a tower that does not learn"
            shown = track(work.blocks, what, total=work.total, console=console, transient=True, disable=hidden)
            _write(path, features, work.rows, shown)
            say(f"{title}: {work.count:,} vectors computed once, their tower does not learn")
        stored[work.name] = StoredVectors(path)
    return stored


class _Work(NamedTuple):
    """A tower that does not learn, and what it is asked for.

    `rows` of its file, `count` of which it computes, in `total` blocks: the rows, and their texts or pixels.
    """

    name: str
    tower: _Tower
    reads: TextTokenizer | ImagePreprocessing | None
    rows: int
    count: int
    total: int
    blocks: Iterator[tuple[np.ndarray, list[str] | np.ndarray]]


def _work(model: EncoderModel, pairs: TrainingPairs, make: InputMaker) -> Iterator[_Work]:
    def of_texts(texts: list[str | None], distinct: np.ndarray, first: np.ndarray) -> Iterator[Any]:
        for start in range(0, len(distinct), _TEXTS_AT_A_TIME):
            chosen = slice(start, start + _TEXTS_AT_A_TIME)
            yield distinct[chosen], [texts[row] or "" for row in first[chosen]]

    def of_images(encoded: EncodedImages, present: np.ndarray) -> Iterator[Any]:
        for start in range(0, len(present), _IMAGES_AT_A_TIME):
            rows = present[start : start + _IMAGES_AT_A_TIME]
            pixels, readable = make.pixels(encoded, rows, keep=False)  # nobody asks again
            yield rows[readable.numpy()], pixels[readable].numpy()

    products = pairs.products
    document = None if pairs.hides_texts else model.document_text
    for name, tower, texts, keys in (
        ("product_text", document, products.texts, pairs.text_keys),
        ("query_text", model.query_text, pairs.queries, pairs.query_text_keys),
        ("query_clip_text", model.clip_text, pairs.queries, pairs.query_text_keys),
    ):
        distinct, first = np.unique(keys, return_index=True)  # each text once, at the row of its key
        first, distinct = first[distinct >= 0], distinct[distinct >= 0]
        if tower is not None and not _features_learn(tower) and len(distinct):
            total, blocks = -(-len(distinct) // _TEXTS_AT_A_TIME), of_texts(texts, distinct, first)
            yield _Work(name, tower, make.tokenizer(name), int(distinct[-1]) + 1, len(distinct), total, blocks)
    if model.image is None or model.architecture.clip is None or _features_learn(model.image):
        return
    reads = model.architecture.clip.preprocessing
    for name, encoded in (("product_image", products.images), ("query_image", pairs.query_images)):
        if encoded is not None and (present := np.flatnonzero(encoded.present())).size:
            total, blocks = -(-len(present) // _IMAGES_AT_A_TIME), of_images(encoded, present)
            yield _Work(name, model.image, reads, len(encoded), len(present), total, blocks)


def _write(path: Path, features: TowerFeatures, rows: int, blocks: Iterable[Any]) -> None:
    """Writes under another name and moves into place."""
    staged = path.with_suffix(".part")
    vectors = np.lib.format.open_memmap(staged, mode="w+", dtype=np.float32, shape=(rows, features.dim))
    vectors[:] = np.nan
    for chosen, items in blocks:
        if not len(chosen):
            continue
        found = features.run(items)
        if not np.isfinite(found).all():
            raise TrainingError(
                f"the tower of {path.name} gives vectors that are not finite: expected numbers; look at the "
                "encoder that training started from"
            )
        vectors[chosen] = found
    vectors.flush()
    staged.replace(path)


def _digest(tower: _Tower, data: str) -> str:
    digest = hashlib.sha256(data.encode())
    for name, weight in tower.state_dict().items():
        if not name.startswith("projection."):
            digest.update(weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _shape(name: str, model: EncoderModel) -> str:
    """What a tower's vectors depend on beside its weights and inputs."""
    text, clip = model.architecture.text, model.architecture.clip
    if "image" in name and clip is not None:
        return f"{clip.model_config}, {clip.preprocessing}"
    if "clip" in name or text is None:
        return "" if clip is None else str(clip.model_config)
    return f"{text.pooling}, {text.max_tokens}"


def _content(name: str, pairs: TrainingPairs) -> str:
    """A digest of what a tower reads, row by row."""
    digest, products = hashlib.sha256(), pairs.products
    images = {"product_image": products.images, "query_image": pairs.query_images}.get(name)
    if images is not None:
        for row in range(len(images)):
            (image,) = images.take([row])
            digest.update(hashlib.sha256(image or b"").digest())
        return digest.hexdigest()
    texts, keys = (
        (products.texts, pairs.text_keys) if name == "product_text" else (pairs.queries, pairs.query_text_keys)
    )
    distinct, first = np.unique(keys, return_index=True)
    for key, row in zip(distinct.tolist(), first.tolist(), strict=True):
        digest.update(f"{key}:{texts[row] or ''}\0".encode(errors="surrogatepass"))
    return digest.hexdigest()


def _features_learn(tower: nn.Module) -> bool:
    """Whether anything below a tower's projection is to learn."""
    return any(weight.requires_grad for name, weight in tower.named_parameters() if not name.startswith("projection."))


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
    """Takes the gradient from all parts that are not tuned; raises EncoderConfigError where the model has none that is.

    Returns the modules of which nothing is tuned: they stay in evaluation mode, without dropout.
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
