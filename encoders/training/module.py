"""One training step, as a Lightning module.

Legend: B pairs of a batch, P products of the batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import nn

from encoders.errors import TrainingError
from encoders.model import EncoderModel
from encoders.training.batches import PairBatch
from encoders.training.config import TrainingConfig
from encoders.training.objective import Drop, batch_losses, term_weights
from encoders.training.parts import freeze_all_but, parameter_groups

CLIP_GRADIENT_NORM = 1.0


class EncoderTraining(LightningModule):
    """Trains an `EncoderModel` on batches of pairs.

    Dropout of a step is seeded by the run's seed, the step's number and the device: a run that is taken up again in the
    middle draws what it would have drawn.

    Args:
        model: Both sides.
        config: How.
        steps: Number of steps of the whole run, for the learning rate's schedule.
    """

    def __init__(self, model: EncoderModel, config: TrainingConfig, *, steps: int) -> None:
        super().__init__()
        self.model = model
        self.log_temperature: nn.Parameter | None = None
        if config.learn_temperature:
            self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))
        self._config = config
        self._steps = steps
        self._frozen = freeze_all_but(model, config)
        self._weights = term_weights(model, config)
        if not self._weights:
            raise TrainingError(
                "training.losses: every weight that counts for this model is 0, so there is nothing to learn from"
            )
        self.train()  # encoders come in evaluation mode, and Lightning keeps the mode that it finds

    @property
    def temperature(self) -> float | torch.Tensor:
        """The temperature, as it stands now; a tensor with gradient where it learns."""
        return self._config.temperature if self.log_temperature is None else self.log_temperature.exp()

    def on_train_batch_start(self, batch: PairBatch, batch_idx: int) -> None:
        """Seeds this step's dropout."""
        words = np.random.SeedSequence((self._config.seed, batch_idx, self.global_rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(words[0] >> 1))

    def training_step(self, batch: PairBatch, batch_idx: int) -> torch.Tensor:
        """Loss of the batch as it is, plus that of the view in which each product loses its text or its picture.

        Raises:
            TrainingError: The loss is not a finite number.
        """
        terms = self.terms(batch, drop=self._drops(batch))
        loss = self.weighted(terms)
        self._check_finite("the loss", loss, batch_idx, terms)
        count = len(batch.query_keys)
        self.log("loss", loss, batch_size=count)
        if len(terms) > 1:
            self.log_dict({f"loss_{name}": term for name, term in terms.items()}, batch_size=count)
        if self.log_temperature is not None:
            self.log("temperature", self.log_temperature.exp(), batch_size=count)
        return loss

    def losses(self, batch: PairBatch, *, drop: Drop | None) -> torch.Tensor:
        """The loss of a batch; `drop` gives the products that lose text and picture in the second view (bool `[P]`)."""
        return self.weighted(self.terms(batch, drop=drop))

    def terms(self, batch: PairBatch, *, drop: Drop | None) -> dict[str, torch.Tensor]:
        """The terms of a batch's loss, unweighted."""
        return batch_losses(self.model, batch, self._config, temperature=self.temperature, drop=drop)

    def weighted(self, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum of terms."""
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
        """Which products lose text and picture: of those that have both, half the one and half the other."""
        if "dropped" not in self._weights:
            return None
        products = batch.products
        coin = (torch.rand(len(products.has_text)) < 0.5).to(products.has_text.device)
        both = products.has_text & products.has_image
        return both & coin, both & ~coin

    def _check_finite(self, what: str, value: torch.Tensor, batch_idx: int, terms: dict[str, torch.Tensor]) -> None:
        if not torch.isfinite(value):
            told = "".join(f", {name} {float(term.detach()):.4g}" for name, term in terms.items())
            raise TrainingError(
                f"{what} of batch {batch_idx + 1} is {float(value.detach())}{told}: expected a finite number. The last "
                "checkpoint is from before; try a lower training.learning_rate, a higher temperature, or precision "
                "float32, and look for vectors of zeros in the encoder that training started from"
            )
