"""Runs a batch through the towers, says which parts of them learn, and keeps the vectors of those that do not.

What is kept stands before a tower's projection, which is applied anew each time: it may learn alone.

A frozen tower runs without dropout and sees no augmentation, so it would give the same vectors in every epoch and at
every validation. What is left of a step that trains the fusion alone is then the fusion.

They are kept by what the tower saw (`encoders.kept_vectors`), in the precision of the training, as the product side
computes them: a resumed run reads what it finds, in `OUT.checkpoints/frozen`, and in a folder of its own
(`training.vectors`) so do other runs, and evaluations.

Legend: B queries, P products, D fused dimension, Dt and Di widths of text and image vectors.

With `chunk_rows` a tower runs over so many texts or images at a time and keeps no activations; they are made anew when
the gradient comes back, chunk by chunk (torch's activation checkpoints, with the same dropout). The loss sees all
vectors of the batch: what is known as cached gradients (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup").
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.checkpoint import checkpoint

from encoders.config import Precision
from encoders.encoder import fold_towers, move_towers, prepack_towers
from encoders.errors import EncoderConfigError
from encoders.image_decoding import image_digest
from encoders.image_tower import ClipTextTower
from encoders.kept_vectors import KeptTower, KeptVectors
from encoders.model import EncoderModel, EncoderParts
from encoders.running import Lanes, Placement
from encoders.text_tower import TextTower
from encoders.tower_features import TowerFeatures, TowerPart
from encoders.training.batches import InputMaker, ProductInputs, QueryInputs, StoredVectors
from encoders.training.config import Part, TrainingConfig
from encoders.training.images import EncodedImages
from encoders.training.pairs import TrainingPairs

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
    """For each of the inputs `[., Di]`, zeros where an image is missing; None where there is none at all.

    Vectors that are known go through the tower's projection together, all others through the tower: norms over a batch
    see one distribution.
    """
    tower = model.image
    rows = [torch.nonzero(each.has_image).squeeze(1) for each in inputs]
    spread: list[torch.Tensor | None] = [None] * len(inputs)
    if tower is None:
        return spread
    for kind in ("pixels", "image_vectors"):
        given = [(place, getattr(each, kind)) for place, each in enumerate(inputs) if getattr(each, kind) is not None]
        if not given:
            continue
        there = torch.cat([images[rows[place]] for place, images in given])
        if not len(there):
            vectors = there.new_zeros((0, tower.dim)).float()
        else:
            vectors = (
                _projected(tower, there) if kind == "image_vectors" else run_tower(tower, chunk_rows, there).float()
            )
        for place, images in given:
            own, vectors = vectors[: len(rows[place])], vectors[len(rows[place]) :]
            spread[place] = own.new_zeros(len(images), tower.dim).index_copy(0, rows[place], own)
    return spread


def _projected(tower: nn.Module | None, vectors: torch.Tensor) -> torch.Tensor:
    """A tower's vectors from those before its projection, float32; towers of CLIP's texts have none of their own."""
    projection = getattr(tower, "projection", None)
    if projection is None:
        return vectors
    with float32(vectors.device):
        return projection(vectors)


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
    kept: KeptVectors,
    parts: EncoderParts,
    pairs: TrainingPairs,
    make: InputMaker,
    *,
    batch_size: int,
    device: torch.device,
    mixed: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = print,
) -> dict[str, StoredVectors]:
    """Runs the towers of which no weight learns over what they will be asked for, where that is not kept.

    Args:
        kept: With a folder.
        parts: With the gradients of what does not learn switched off; a copy of it is run.
        batch_size: On a GPU.
        mixed: In bfloat16, as the training.

    Returns:
        `product_text` by the products' `text_keys`, `product_image` by product row, `query_text` and `query_clip_text`
        by the pairs' `query_text_keys`, `query_image` by pair: what towers that do not learn give.

    Raises:
        CheckpointError: A tower gives a vector that is not finite.
    """
    stored: dict[str, StoredVectors] = {}
    asked = list(_asked(parts.model, pairs))
    if not asked:
        return stored
    precision: Precision = "bfloat16" if mixed else "float32"
    model = copy.deepcopy(parts.model)
    fold_towers(model, device)
    copied = replace(parts, model=move_towers(model, device, precision))
    prepack_towers(model, device)
    placement = Placement(device, batch_size, Lanes() if device.type == "cpu" else None)
    for name, part, count, inputs in asked:
        tower = kept.tower(TowerFeatures(copied, part, precision=precision, placement=placement))
        known, title, console = len(tower), name.replace("_", " "), Console(stderr=True)
        see = partial(_see_images, tower, inputs, make) if part == "image" else partial(_see_texts, tower, inputs)
        at_a_time = _IMAGES_AT_A_TIME if part == "image" else _TEXTS_AT_A_TIME
        starts = range(0, count, at_a_time)
        what = f"{title}: vectors of a tower that does not learn"
        hidden = not (progress and console.is_terminal)
        shown = track(starts, what, total=len(starts), console=console, transient=True, disable=hidden)
        rows = np.concatenate([see(slice(start, min(start + at_a_time, count))) for start in shown])
        kept.save()
        if (rows >= 0).any():
            stored[name] = StoredVectors(tower.paths, rows)
        if computed := len(tower) - known:
            say(f"{title}: {computed:,} vectors computed once, their tower does not learn")
    return stored


def _asked(model: EncoderModel, pairs: TrainingPairs) -> Iterator[tuple[str, TowerPart, int, Any]]:
    """Of each tower that does not learn: what its vectors are called, itself, how many inputs it has, and these."""
    products = pairs.products
    parts: tuple[tuple[str, TowerPart, Any, Any], ...] = (
        ("product_text", "document_text", products.texts, pairs.text_keys),
        ("query_text", "query_text", pairs.queries, pairs.query_text_keys),
        ("query_clip_text", "clip_text", pairs.queries, pairs.query_text_keys),
    )
    for name, part, texts, keys in parts:
        tower = getattr(model, part)
        if tower is None or _features_learn(tower) or (name == "product_text" and pairs.hides_texts):
            continue
        distinct, first = np.unique(keys, return_index=True)  # each text once, at the row of its key
        by_key: list[str | None] = [None] * (int(distinct[-1]) + 1 if len(distinct) else 0)
        for key, row in zip(distinct.tolist(), first.tolist(), strict=True):
            if key >= 0:
                by_key[key] = texts[row]
        if by_key:
            yield name, part, len(by_key), by_key
    if model.image is None or _features_learn(model.image):
        return
    for name, encoded in (("product_image", products.images), ("query_image", pairs.query_images)):
        if encoded is not None and encoded.present().any():
            yield name, "image", len(encoded), encoded


def _see_texts(tower: KeptTower, texts: Sequence[str | None], chosen: slice) -> np.ndarray:
    """Where the vectors of some texts stand, int64; -1 where there is none."""
    there = [text for text in texts[chosen] if text is not None]
    rows = np.full(chosen.stop - chosen.start, -1)
    if there:
        rows[[text is not None for text in texts[chosen]]] = tower.rows(tower.see_texts(there))
    return rows


def _see_images(tower: KeptTower, encoded: EncodedImages, make: InputMaker, chosen: slice) -> np.ndarray:
    """The same of images; -1 also of those that cannot be decoded."""
    wanted = np.arange(chosen.start, chosen.stop)
    keys = [image_digest(data) if data else b"" for data in encoded.take(wanted)]
    new = {key: place for place, key in enumerate(keys) if key and key not in tower}  # each distinct image once
    pixels, readable = make.pixels(encoded, wanted[list(new.values())], keep=False)  # nobody asks again
    seen = {key: image for key, image, there in zip(new, pixels.numpy(), readable.tolist(), strict=True) if there}
    tower.see_pixels(seen)
    return tower.rows(keys)


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
