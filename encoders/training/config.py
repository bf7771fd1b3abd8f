"""The `training:` section: how an encoder is trained."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from encoders.errors import EncoderConfigError

Part = Literal["bert", "projection", "clip_image", "clip_text", "fusion"]
TunedPart = Literal["bert", "projection", "clip_image", "clip_text", "fusion", "text", "image"]

PART_GROUPS: dict[str, tuple[Part, ...]] = {"text": ("bert", "projection"), "image": ("clip_image", "clip_text")}


@dataclass(frozen=True, kw_only=True, slots=True)
class PartRates:
    """The `training.rates:` section: learning rates of parts that have one of their own; null: `learning_rate`.

    Attributes:
        bert: BERT towers without their projections.
        projection: Projections after the towers.
        clip_image: Picture tower.
        clip_text: CLIP's text tower.
        fusion: Fusions, and the vectors that stand for what is missing.
        temperature: The temperature, where it learns.
    """

    bert: float | None = None
    projection: float | None = None
    clip_image: float | None = None
    clip_text: float | None = None
    fusion: float | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        for rate in fields(self):
            value = getattr(self, rate.name)
            if value is not None and not value > 0:
                raise EncoderConfigError(
                    f"training.rates.{rate.name} is {value}: expected a positive number; a part that is not to learn "
                    "is left out of training.tuned"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """The `training.losses:` section: weight of each term (the terms but the first are those of match3 and match4).

    Attributes:
        query_product: The query as it is served against the product as it is indexed, NT-Xent; null: 1, but 0 for
            match3 and for match4 with fusion sum.
        photo_picture: Query picture against product picture, the main term of image matching.
        picture_text: Product picture against product text.
        photo_text: Query picture against product text.
        query_text_picture: Short query text against product picture (match4).
        query_text_text: Short query text against product text (match4).
    """

    query_product: float | None = None
    photo_picture: float = 1.0
    picture_text: float = 0.5
    photo_text: float = 0.5
    query_text_picture: float = 0.5
    query_text_text: float = 0.5

    def __post_init__(self) -> None:
        for weight in fields(self):
            value = getattr(self, weight.name)
            if value is not None and not value >= 0:
                raise EncoderConfigError(f"training.losses.{weight.name} is {value}: expected 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """The `training:` section.

    Attributes:
        epochs: Passes over the pairs; 0 saves the encoder as it is put together.
        batch_size: Pairs a step on each device; every other product of the batch is a negative, so more is harder and
            better.
        group_pairs: How many pairs of one product come in the same batch, which encodes it once; null: all. 1 where
            products have many pairs each (photos), so that a batch holds many products.
        accumulate_batches: Batches whose gradients are added up to one step; negatives are those of each batch alone.
        chunk_rows: Texts or pictures that a tower keeps in memory at a time; null: the whole batch. With fewer, each
            tower runs twice and the batch, with all its negatives, may be as large as its pixels and vectors allow.
        learning_rate: Peak of the schedule (linear warm-up, then a cosine to zero) of parts without a rate of their
            own.
        rates: Learning rates of single parts.
        weight_decay: AdamW's, on matrices only.
        warmup_share: Share of the steps that the warm-up takes.
        temperature: Of the loss; where it learns, what it starts from.
        learn_temperature: Whether the temperature learns, on a logarithmic scale.
        temperature_range: What a learned temperature is kept within.
        symmetric: Also tell queries apart by their products (the paper's loss only tells products apart by queries).
        dropped_weight: Weight of the loss on a second view of the batch in which each product loses its text or its
            picture at random (modality dropout): it trains the vectors that stand for what is missing, and search by
            picture.
        losses: Weights of the loss's terms.
        tuned: What is trained, some of bert, projection, clip_image, clip_text, fusion, or text (the first two) and
            image (the next two); the rest keeps its weights.
        seed: Of weights, order and dropout.
        device: auto, cpu, cuda or cuda:N.
        devices: Devices (CPU: processes) that train together; products of all of them are negatives for each.
        precision: float32, or bfloat16 for mixed precision.
        workers: Processes that read and decode ahead; 0 does it between steps.
        progress: Show a progress bar.
        validate_steps: Steps from one validation to the next; null: once an epoch.
        validation_candidates: Products that validation searches: those of its pairs, or all.
        best_by: Which recall makes a validation the best; among equals that at the next smaller number decides, then
            the newer. recall@1 or recall@10 where few products are searched.
        patience: Validations without a better one after which training stops; null: never.
        checkpoint_steps: Steps from one checkpoint to the next; there is one after each validation besides.
        resume: auto goes on with an unfinished run of the same settings; never starts anew; or a checkpoint to go on
            from: last, best or a file.
    """

    epochs: int = 3
    batch_size: int = 256
    group_pairs: int | None = None
    accumulate_batches: int = 1
    chunk_rows: int | None = None
    learning_rate: float = 5e-4
    rates: PartRates = field(default_factory=PartRates)
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    temperature: float = 0.05
    learn_temperature: bool = False
    temperature_range: tuple[float, float] = (0.01, 1.0)
    symmetric: bool = False
    dropped_weight: float = 0.5
    losses: LossWeights = field(default_factory=LossWeights)
    tuned: tuple[TunedPart, ...] = ("fusion", "text")
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    workers: int = 0
    progress: bool = True
    validate_steps: int | None = None
    validation_candidates: Literal["validation", "all"] = "validation"
    best_by: Literal["recall@100", "recall@10", "recall@1"] = "recall@100"
    patience: int | None = None
    checkpoint_steps: int = 1000
    resume: str = "auto"

    def __post_init__(self) -> None:
        for key, least in _LEAST.items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise EncoderConfigError(f"training.{key} is {value}: expected {least} or more{_WHY.get(key, '')}")
        for key in ("learning_rate", "temperature"):
            if not getattr(self, key) > 0:
                raise EncoderConfigError(f"training.{key} is {getattr(self, key)}: expected a positive number")
        if self.dropped_weight < 0 or not 0 <= self.warmup_share < 1:
            raise EncoderConfigError(
                f"training.dropped_weight is {self.dropped_weight}, expected 0 or more; "
                f"training.warmup_share is {self.warmup_share}, expected 0 up to 1"
            )
        low, high = self.temperature_range
        if not 0 < low < high or (self.learn_temperature and not low <= self.temperature <= high):
            raise EncoderConfigError(
                f"training.temperature_range is {list(self.temperature_range)}, temperature {self.temperature}: "
                "expected two positive numbers, the smaller first, and a learned temperature between them"
            )
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise EncoderConfigError(f"training.{key} is {getattr(self, key)!r}: expected {' or '.join(choices)}")
        if not self.tuned or set(self.tuned) - set(get_args(TunedPart)):
            raise EncoderConfigError(
                f"training.tuned is {list(self.tuned)}: expected some of {', '.join(get_args(TunedPart))}"
            )
        for part in get_args(Part):
            if getattr(self.rates, part) is not None and part not in self.tuned_parts:
                raise EncoderConfigError(
                    f"training.rates.{part} is {getattr(self.rates, part)}, but training.tuned is {list(self.tuned)}: "
                    f"add {part} to training.tuned, or remove its rate"
                )

    @property
    def tuned_parts(self) -> frozenset[Part]:
        """`tuned`, groups taken apart."""
        return frozenset(part for name in self.tuned for part in PART_GROUPS.get(name, (name,)))  # type: ignore[misc]

    def rate(self, part: str) -> float:
        """Peak learning rate of a part, or of the temperature."""
        own: float | None = getattr(self.rates, part)
        return self.learning_rate if own is None else own


_CHOICES = {
    "precision": ("float32", "bfloat16"),
    "validation_candidates": ("validation", "all"),
    "best_by": ("recall@100", "recall@10", "recall@1"),
}
_LEAST = {
    "epochs": 0,
    "batch_size": 2,
    "group_pairs": 1,
    "accumulate_batches": 1,
    "chunk_rows": 1,
    "devices": 1,
    "workers": 0,
    "validate_steps": 1,
    "patience": 1,
    "checkpoint_steps": 1,
}
_WHY = {"batch_size": ": one pair has no negatives to be told apart from"}
