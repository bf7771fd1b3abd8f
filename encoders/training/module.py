"""One training step, as a Lightning module.

Legend: B pairs of a batch, P products of the batch, D fused dimension.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning import LightningModule
from torch import nn

from encoders.losses import nt_xent, shared_queries
from encoders.model import EncoderModel
from encoders.training.batches import PairBatch
from encoders.training.config import TrainingConfig


class EncoderTraining(LightningModule):
    """Trains an `EncoderModel` with NT-Xent over batches of pairs.

    Args:
        model: Both sides.
        config: How.
        steps: Number of steps of the whole run, for the learning rate's schedule.
    """

    def __init__(self, model: EncoderModel, config: TrainingConfig, *, steps: int) -> None:
        super().__init__()
        self.model = model
        self._config = config
        self._steps = steps
        self._frozen = _freeze_all_but(model, config)
        self._drop_generator = torch.Generator().manual_seed(config.seed)
        self.train()  # encoders come in evaluation mode, and Lightning keeps the mode that it finds

    def training_step(self, batch: PairBatch, batch_index: int) -> torch.Tensor:
        """Loss of the batch as it is, plus that of the view in which each product loses its text or its picture."""
        loss = self.losses(batch, drop=self._drops(batch))
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=len(batch.query_keys))
        return loss

    def validation_step(self, batch: PairBatch, batch_index: int) -> None:
        """Loss on products that are not trained on, nothing dropped."""
        loss = self.losses(batch, drop=None)
        self.log("validation_loss", loss, prog_bar=True, batch_size=len(batch.query_keys))

    def losses(self, batch: PairBatch, *, drop: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """The loss of a batch; `drop` gives the products that lose text and picture in the second view (bool `[P]`)."""
        model, config = self.model, self._config
        document = model.document_text if model.document_text is not None else model.clip_text
        if document is None:
            raise ValueError("an encoder without a text tower cannot be trained")
        queries, text = self._queries(batch), document(*batch.text_tokens)
        image = torch.zeros_like(text)
        if model.image is not None and batch.pixels is not None:
            image = model.image(batch.pixels)
        not_negative = shared_queries(batch.query_keys, batch.positives, len(text))

        def view_loss(has_text: torch.Tensor, has_image: torch.Tensor) -> torch.Tensor:
            return nt_xent(
                queries,
                model.fuse_product(text, has_text, image, has_image),
                batch.positives,
                temperature=config.temperature,
                not_negative=not_negative,
                symmetric=config.symmetric,
            )

        loss = view_loss(batch.has_text, batch.has_image)
        if drop is not None:
            without_text, without_image = drop
            dropped = view_loss(batch.has_text & ~without_text, batch.has_image & ~without_image)
            loss = loss + config.dropped_weight * dropped
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with a linear warm-up and a cosine to zero; biases, norms and single vectors do not decay."""
        trained = [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(
            [
                {
                    "params": [weight for _, weight in trained if weight.ndim >= 2],
                    "weight_decay": self._config.weight_decay,
                },
                {"params": [weight for _, weight in trained if weight.ndim < 2], "weight_decay": 0.0},
            ],
            lr=self._config.learning_rate,
        )
        warmup = max(1, round(self._steps * self._config.warmup_share))

        def share(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, self._steps - warmup))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train(self, mode: bool = True) -> EncoderTraining:
        """As any module; parts that are not tuned stay without dropout."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def _queries(self, batch: PairBatch) -> torch.Tensor:
        model, vectors = self.model, []
        if model.query_text is not None and batch.query_tokens is not None:
            vectors.append(model.query_text(*batch.query_tokens))
        if model.clip_text is not None and batch.query_clip_tokens is not None:
            vectors.append(model.clip_text(*batch.query_clip_tokens))
        return model.fuse_query(*vectors)

    def _drops(self, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Which products lose text and picture: of those that have both, half the one and half the other."""
        if self._config.dropped_weight == 0 or self.model.product_fusion is None:
            return None
        count = len(batch.has_text)
        coin = (torch.rand(count, generator=self._drop_generator) < 0.5).to(batch.has_text.device)
        both = batch.has_text & batch.has_image
        return both & coin, both & ~coin


def _freeze_all_but(model: EncoderModel, config: TrainingConfig) -> list[nn.Module]:
    """Takes the gradient from all parts that are not tuned and returns them."""
    parts = {
        "text": (model.document_text, model.query_text),
        "image": (model.image, model.clip_text),
        "fusion": (model.product_fusion, model.query_fusion),
    }
    frozen: list[nn.Module] = [
        part for name, group in parts.items() if name not in config.tuned for part in group if part is not None
    ]
    for part in frozen:
        part.requires_grad_(False)
    return frozen
