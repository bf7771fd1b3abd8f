"""One training step, as a Lightning module, computes the loss of a batch over the products of all devices.

Legend: B pairs and P products of a batch, D fused dimension.

`bibert`, `clip`, `3tmm` and `4tmm` have one term, the query against the product (and its second view, see
`dropped_weight`). `match3` and `match4` have image-text alignment terms on their towers' single vectors besides:
"Bringing Multimodality to Amazon Visual Search System"; which ones, and their weights, stand in `encoders/README.md`.

Every device computes the loss of the whole batch. The gradient of a gathered row is summed over the devices on its way
back, and data-parallel training takes the mean of the devices' gradients: what each weight gets is the gradient of the
whole batch's loss, as one device with the whole batch would compute it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from lightning import LightningModule
from torch import nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional

from encoders.architecture import EncoderArchitecture
from encoders.errors import EncoderConfigError, TrainingError
from encoders.losses import (
    alignment,
    distinct_products,
    margin_mse,
    nt_xent,
    shared_queries,
    strange_negatives,
)
from encoders.model import EncoderModel
from encoders.training.batches import PairBatch
from encoders.training.config import TrainingConfig
from encoders.training.frozen_towers import (
    ProductVectors,
    QueryVectors,
    encode_pairs,
    float32,
    freeze_all_but,
    parameter_groups,
)

Drop = tuple[torch.Tensor, torch.Tensor]  # products that lose their text, and their image: bool [P] each
Temperature = float | torch.Tensor
MATCH_TERMS = ("photo_picture", "picture_text", "photo_text", "query_text_picture", "query_text_text")
CLIP_GRADIENT_NORM = 1.0


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """`[N, ...]` of this device to `[N of all devices, ...]`, one device after the other.

    Floating-point rows carry gradients back to the device that they came from. All devices must call it in the same
    order; their numbers of rows may differ.
    """
    is_distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    world = torch.distributed.get_world_size() if is_distributed else 1
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


def term_weights(model: EncoderModel, config: TrainingConfig, *, taught: bool = False) -> dict[str, float]:
    """Weight of each term of the loss that counts for this model; `taught`: there are a teacher's scores."""
    weights, architecture = config.losses, model.architecture
    matches = architecture.model in ("match3", "match4")
    query_product = weights.query_product
    if query_product is None:
        # The head that fuses photo and text learns from this term alone.
        query_product = 0.0 if matches and architecture.fusion.method == "sum" else 1.0
    found = {"query_product": query_product}
    if query_product and config.dropped_weight and model.product_fusion is not None and not matches:
        found["dropped"] = query_product * config.dropped_weight
    if taught:
        found["distillation"] = weights.distillation
    if matches:
        terms = MATCH_TERMS if architecture.model == "match4" else MATCH_TERMS[:3]
        found |= {name: getattr(weights, name) for name in terms}
    return {name: weight for name, weight in found.items() if weight}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Gathered:
    """What the terms compare, of all devices: vectors, of P distinct products, and who may stand against whom."""

    queries: QueryVectors
    views: dict[str, torch.Tensor]  # of term: fused products, [P, D]
    texts: torch.Tensor  # [P, Dt], as `images` where match terms count, else empty
    images: torch.Tensor
    has: dict[str, torch.Tensor]  # words, photo: bool [B]; text, image: bool [P]
    positives: torch.Tensor  # int64 [B]
    negatives: torch.Tensor  # int64 [B, N], rows of the products, any where there is none
    margins: torch.Tensor | None  # float32 [B, N]
    weights: torch.Tensor | None  # float32 [B]
    not_negative: torch.Tensor  # bool [B, P]
    same_words: torch.Tensor  # bool [B, P]: products of an equal query text
    same_text: torch.Tensor  # bool [P, P]: products of equal text


def _match_losses(
    batch: _Gathered, cut: Callable[[torch.Tensor], torch.Tensor], wanted: Collection[str], temperature: Temperature
) -> dict[str, torch.Tensor]:
    """The alignment terms; every vector lies in one space."""
    photos, words, has, own = cut(batch.queries.image), cut(batch.queries.text), batch.has, batch.positives
    images, texts = cut(batch.images), cut(batch.texts)
    own_text = batch.same_text[own]  # products whose text is that of the pair's own
    each = torch.arange(len(images), device=images.device)
    terms = {
        "photo_picture": (photos, images, own, has["photo"], has["image"], batch.not_negative),
        "picture_text": (images, texts, each, has["image"], has["text"], batch.same_text),
        "photo_text": (photos, texts, own, has["photo"], has["text"], batch.not_negative | own_text),
        "query_text_picture": (words, images, own, has["words"], has["image"], batch.same_words),
        "query_text_text": (words, texts, own, has["words"], has["text"], batch.same_words | own_text),
    }
    names = ("rows", "columns", "positives", "has_row", "has_column", "not_negative")
    return {
        name: alignment(**dict(zip(names, inputs, strict=True)), temperature=temperature)
        for name, inputs in terms.items()
        if name in wanted
    }


def check_matryoshka(architecture: EncoderArchitecture, dims: Sequence[int]) -> None:
    """Raises EncoderConfigError where the first dimensions cannot stand alone, or there are not so many."""
    if dims and (reason := architecture.whole_because):
        raise EncoderConfigError(f"training.matryoshka is {list(dims)}: {reason}; remove it")
    if dims and dims[-1] > architecture.dim:
        raise EncoderConfigError(
            f"training.matryoshka is {list(dims)}: the vectors of this {architecture.model} encoder have "
            f"{architecture.dim} dimensions, expected no more than these"
        )


class EncoderTraining(LightningModule):
    """Trains an `EncoderModel` on batches of pairs; `steps`, those of the whole run, are for the rate's schedule.

    Dropout of a step is seeded by the run's seed, the step's number and the device: a run that is resumed in the middle
    draws what it would have drawn.
    """

    def __init__(self, model: EncoderModel, config: TrainingConfig, *, steps: int, taught: bool = False) -> None:
        super().__init__()
        check_matryoshka(model.architecture, config.matryoshka)
        self.model = model
        self.log_temperature: nn.Parameter | None = None
        if config.learn_temperature:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))
        self._config, self._steps = config, steps
        self._frozen = freeze_all_but(model, config)
        self._weights = term_weights(model, config, taught=taught)
        self._dims = sorted({*config.matryoshka, model.architecture.dim})
        if not self._weights:
            raise TrainingError(
                "training.losses: every weight that counts for this model is 0, so there is nothing to learn from"
            )
        self.train()  # encoders come in evaluation mode, and Lightning keeps the mode that it finds

    @property
    def temperature(self) -> Temperature:
        """The temperature, as it stands now; a tensor with gradient where it learns."""
        return self._config.temperature if self.log_temperature is None else self.log_temperature.exp()

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        """Seeds this step's dropout."""
        words = np.random.SeedSequence((self._config.seed, batch_idx, self.global_rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0] >> 1))

    def training_step(self, batch: PairBatch, batch_idx: int) -> torch.Tensor:
        """Loss of the batch as it is, plus that of the view in which each product loses its text or its image.

        Raises:
            TrainingError: The loss is not a finite number.
        """
        terms = self.terms(batch, drop=self._drops(batch), lost=self._lost(batch))
        loss = self._weighted(terms)
        self._check_finite("the loss", loss, batch_idx, terms)
        count = len(batch.query_keys)
        self.log("loss", loss, batch_size=count, prog_bar=True)
        if len(terms) > 1:
            self.log_dict({f"loss_{name}": term for name, term in terms.items()}, batch_size=count)
        if self.log_temperature is not None:
            self.log("temperature", self.log_temperature.exp(), batch_size=count)
        return loss

    def losses(self, batch: PairBatch, *, drop: Drop | None) -> torch.Tensor:
        """The loss of a batch; `drop` gives the products that lose text and image in the second view (bool `[P]`)."""
        return self._weighted(self.terms(batch, drop=drop))

    def terms(self, batch: PairBatch, *, drop: Drop | None, lost: Drop | None = None) -> dict[str, torch.Tensor]:
        """The terms of the loss of this device's pairs against the products of all, unweighted.

        Products lose what `lost` says in the first view, and what `drop` says in the second.
        """
        queries, products = encode_pairs(self.model, batch.queries, batch.products, chunk_rows=self._config.chunk_rows)
        with float32(batch.positives.device):
            # All towers first, then all that is gathered: devices meet each other in the same order, back as forth.
            gathered = self._gather(batch, queries, products, self._views(batch, products, drop, lost))
            sums: dict[str, torch.Tensor] = {}
            for dim in self._dims:
                for name, term in self._terms_of(gathered, dim).items():
                    sums[name] = sums[name] + term if name in sums else term
        return {name: total / len(self._dims) for name, total in sums.items()}

    def _views(
        self, batch: PairBatch, products: ProductVectors, drop: Drop | None, lost: Drop | None
    ) -> dict[str, torch.Tensor]:
        """Fused products by the term that compares them with queries; of the distillation, those of the first."""

        def fused(missing: Drop | None) -> torch.Tensor:
            has_text, has_image = batch.products.has_text, batch.products.has_image
            if missing is not None:
                has_text, has_image = has_text & ~missing[0], has_image & ~missing[1]
            return self.model.fuse_product(products.text, has_text, products.image, has_image)

        views: dict[str, torch.Tensor] = {}
        if self._weights.keys() & {"query_product", "distillation"}:
            views["query_product"] = fused(lost)
        if drop is not None and "dropped" in self._weights:
            views["dropped"] = fused(drop)
        return views

    def _gather(
        self, batch: PairBatch, queries: QueryVectors, products: ProductVectors, views: dict[str, torch.Tensor]
    ) -> _Gathered:
        # Rows among those gathered that stand for one product each, the pairs' products among them, and what is no
        # negative: products chosen for the same query by another pair.
        keys = gather_rows(batch.product_keys)
        columns, positives = distinct_products(keys, gather_rows(batch.product_keys[batch.positives]))
        weights = None if batch.weights is None else gather_rows(batch.weights)
        not_negative = shared_queries(gather_rows(batch.query_keys), positives, len(columns), weights)
        negatives = gather_rows(batch.negatives)
        if self._config.negatives == "own":
            not_negative |= strange_negatives(negatives, keys[columns], positives)
        words = gather_rows(batch.query_text_keys)
        same_words, same_text = not_negative, not_negative
        texts = images = products.text[:0]
        fused = gather_rows(queries.fused) if views else queries.fused
        own = {"text": queries.text, "image": queries.image}
        has: dict[str, torch.Tensor] = {}
        found = {name: gather_rows(view)[columns] for name, view in views.items()}
        if self._weights.keys() & set(MATCH_TERMS) or len(self._dims) > 1:
            own["image"], has["photo"] = gather_rows(queries.image), gather_rows(batch.queries.has_image)
            own["text"], has["words"] = gather_rows(queries.text), gather_rows(batch.queries.has_text)
        if self._weights.keys() & set(MATCH_TERMS):
            images = gather_rows(functional.normalize(products.image, dim=-1))[columns]
            has["image"] = gather_rows(batch.products.has_image)[columns]
            texts = gather_rows(functional.normalize(products.text, dim=-1))[columns]
            has["text"] = gather_rows(batch.products.has_text)[columns]
            text_keys = gather_rows(batch.text_keys)[columns]
            same_text = text_keys[:, None] == text_keys[None, :]
            same_words = shared_queries(words, positives, len(columns))
        return _Gathered(
            queries=QueryVectors(fused=fused, **own),
            views=found,
            texts=texts,
            images=images,
            has=has,
            positives=positives,
            negatives=torch.searchsorted(keys[columns], negatives.clamp(min=0)),
            margins=None if batch.margins is None else gather_rows(batch.margins),
            weights=weights,
            not_negative=not_negative,
            same_words=same_words,
            same_text=same_text,
        )

    def _terms_of(self, batch: _Gathered, dim: int) -> dict[str, torch.Tensor]:
        """The terms by the first `dim` dimensions of the vectors, which are then of length 1 by themselves."""
        temperature = self.temperature

        def cut(vectors: torch.Tensor) -> torch.Tensor:
            return vectors if dim == self._dims[-1] else functional.normalize(vectors[:, :dim], dim=-1)

        losses: dict[str, torch.Tensor] = {}
        fused = cut(batch.queries.fused)
        if dim != self._dims[-1] and (both := batch.has["words"] & batch.has["photo"]).any():
            # As a server adds them: each of length 1 by itself.
            added = self.model.fuse_photo_text(cut(batch.queries.text), cut(batch.queries.image))
            fused = torch.where(both.unsqueeze(-1), added, fused)
        settings: dict[str, Any] = {"temperature": temperature, "symmetric": self._config.symmetric}
        settings |= {"not_negative": batch.not_negative, "weights": batch.weights}
        for name, view in batch.views.items():
            if name in self._weights:
                losses[name] = nt_xent(fused, cut(view), batch.positives, **settings)
        if "distillation" in self._weights and batch.margins is not None:
            view = cut(batch.views["query_product"])
            losses["distillation"] = margin_mse(fused, view, batch.positives, batch.negatives, batch.margins)
        if self._weights.keys() & set(MATCH_TERMS):
            losses |= _match_losses(batch, cut, self._weights.keys(), temperature)
        return losses

    def _weighted(self, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([self._weights[name] * term for name, term in terms.items()]).sum()

    def configure_optimizers(self) -> Any:
        """AdamW with a linear warm-up and a cosine to zero, from the peak rate of each part."""
        optimizer = torch.optim.AdamW(parameter_groups(self.model, self._config, self.log_temperature))
        warmup = max(1, round(self._steps * self._config.warmup_share))

        def share(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, self._steps - warmup))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clips the gradients' norm; a step with one that is not finite is not taken, so no checkpoint ever has it."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(weights, CLIP_GRADIENT_NORM)
        self._check_finite("the gradient's norm", norm, self.trainer.fit_loop.epoch_loop.batch_idx, {})
        self.log("gradient_norm", norm)
        self.log("learning_rate", optimizer.param_groups[0]["lr"])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step; a temperature that learns is then brought back into its range."""
        super().optimizer_step(*args, **kwargs)
        if self.log_temperature is not None:
            low, high = self._config.temperature_range
            with torch.no_grad():
                self.log_temperature.clamp_(math.log(low), math.log(high))

    def train(self, mode: bool = True) -> EncoderTraining:
        """As any module; parts that are not tuned stay without dropout."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def _drops(self, batch: PairBatch) -> Drop | None:
        """Which products lose text and image: of those that have both, half the one and half the other."""
        if "dropped" not in self._weights:
            return None
        products = batch.products
        coin = (torch.rand(len(products.has_text)) < 0.5).to(products.has_text.device)
        both = products.has_text & products.has_image
        return both & coin, both & ~coin

    def _lost(self, batch: PairBatch) -> Drop | None:
        """Which products lose text and image in the first view, of those that have both."""
        config, products = self._config, batch.products
        if not (config.drop_image or config.drop_text):
            return None
        drawn = torch.rand(len(products.has_text)).to(products.has_text.device)
        both = products.has_text & products.has_image
        return both & (drawn >= 1 - config.drop_text), both & (drawn < config.drop_image)

    def _check_finite(self, what: str, value: torch.Tensor, batch_idx: int, terms: dict[str, torch.Tensor]) -> None:
        if not torch.isfinite(value):
            figures = "".join(f", {name} {float(term.detach()):.4g}" for name, term in terms.items())
            raise TrainingError(
                f"{what} of batch {batch_idx + 1} is {float(value.detach())}{figures}: expected a finite number. The "
                "last checkpoint is from before; try a lower training.learning_rate, a higher temperature, or "
                "precision float32, and look for vectors of zeros in the encoder that training started from"
            )
