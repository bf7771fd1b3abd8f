"""The sections of a training run: `data:` (which pairs), `small:` (an encoder put together), `training:` (how)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal, get_args, get_type_hints

from encoders.config import FUSIONS_OF_MODEL, FusionMethod, ModelName
from encoders.errors import EncoderConfigError

Part = Literal["bert", "projection", "clip_image", "clip_text", "fusion"]
TunedPart = Literal["bert", "projection", "clip_image", "clip_text", "fusion", "text", "image"]

PART_GROUPS: dict[str, tuple[Part, ...]] = {"text": ("bert", "projection"), "image": ("clip_image", "clip_text")}


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsConfig:
    """The `data:` section: Parquet files with one row for each pair of a query and a product bought or clicked for it.

    The products are those of the catalog, where the run has a `catalog:` section; else they stand in the same rows.

    Attributes:
        uri: A Parquet file or a folder of them, or a file of JSON Lines, local or fsspec; null with `queries: titles`
            or `pictures` takes the whole catalog.
        query_field: Column of the query text; null where queries are pictures alone.
        query_image_field: Column of the query picture: struct of bytes and path, binary, or a path; null for none.
        image_root: What relative paths of pictures in these files are relative to, a folder or a URI.
        id_field: Column of the product id; rows of one id are taken as one product.
        text_fields: Columns of the product's text, joined by single spaces; not looked at with a catalog.
        image_field: Column of the product's picture, as `query_image_field`; null for none; not looked at with a
            catalog.
        negatives_field: Column of seen negatives, a list of product ids of the catalog (of the data without one).
        label_field: Column of the pair's label, which `training.label_weights` weighs; null for pairs of one kind.
        teacher_uri: File of a teacher's scores (Parquet or JSON Lines) with columns query, positive, negative,
            positive_score and negative_score: of a pair of the data, and of another product for its query.
        queries: `pairs` takes the queries of the data; `titles` takes the text of each product as the query for its
            own picture, as CLIP is trained, `pictures` its picture as the query for its own text (match3, whose queries
            are pictures): one pair a product that has both.
        show_texts: With `queries: titles`, products are seen with their texts too, for a fusion of the two to learn;
            `training.drop_text` hides those of a share, which are then to be found by their pictures.
        unknown_products: What happens where a product id is not in the catalog: `error`, or `drop` the pair.
        max_pairs: Take the first this many rows; null for all.
        validation_share: Share of the products, chosen by hash of the id, whose pairs are held out for validation.
        validation_uri: Pairs to validate with, of the same columns; `validation_share` is then not looked at.
    """

    uri: str | None = None
    query_field: str | None = "query"
    query_image_field: str | None = None
    image_root: str | None = None
    id_field: str = "product_id"
    text_fields: tuple[str, ...] = ("title", "description")
    image_field: str | None = "image"
    negatives_field: str | None = None
    label_field: str | None = None
    teacher_uri: str | None = None
    queries: Literal["pairs", "titles", "pictures"] = "pairs"
    show_texts: bool = False
    unknown_products: Literal["error", "drop"] = "error"
    max_pairs: int | None = None
    validation_share: float = 0.02
    validation_uri: str | None = None

    def __post_init__(self) -> None:
        if not self.uri and (self.uri is not None or self.queries == "pairs"):
            raise EncoderConfigError(
                f"data.uri is {self.uri!r}: expected a Parquet file or a folder of them (or, to train on the products' "
                "own texts and pictures, data.queries: titles or pictures)"
            )
        if not self.text_fields and self.image_field is None:
            raise EncoderConfigError("data.text_fields is empty: expected at least one column, or an image_field")
        if self.queries == "pairs" and self.query_field is None and self.query_image_field is None:
            message = "data.query_field and query_image_field are both null: expected at least one of the two"
            raise EncoderConfigError(message)
        _check_choices("data", self, "queries", "unknown_products")
        for key in ("negatives_field", "label_field", "teacher_uri", "validation_uri"):
            if self.queries != "pairs" and (value := getattr(self, key)) is not None:
                message = f"data.{key} is {value!r}: data.queries {self.queries} makes its own pairs, remove it"
                raise EncoderConfigError(message)
        if self.show_texts and self.queries != "titles":
            message = f"data.show_texts is true: expected data.queries titles, found {self.queries}"
            raise EncoderConfigError(message)
        if self.teacher_uri is not None and self.query_field is None:
            message = f"data.teacher_uri is {self.teacher_uri!r}: its queries are texts, and data.query_field is null"
            raise EncoderConfigError(message)
        if self.max_pairs is not None and self.max_pairs < 2:
            raise EncoderConfigError(f"data.max_pairs is {self.max_pairs}: expected 2 or more")
        if not 0.0 <= self.validation_share < 1.0:
            message = f"data.validation_share is {self.validation_share}: expected a number from 0 up to 1"
            raise EncoderConfigError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallEncoderConfig:
    """The `small:` section: an encoder put together, where none is given whole to start from.

    Its towers are small and made from nothing (a BERT of a few layers with a WordPiece vocabulary learned from the
    training texts, a small ResNet or ViT, a small CLIP text tower), unless `text_from` or `clip_from` names them.

    Attributes:
        model: bibert, clip, 3tmm, 4tmm, match3 or match4.
        fusion: concat, alpha or mlp for 4tmm (null: concat), sum or mlp for match4 (null: sum); the other models have
            one each.
        alpha: Weight of the text half in fusion alpha.
        product_text_weight: Weight of the text in the product vectors of match3 and match4.
        text_from: A saved encoder whose BERT towers are taken, or a transformers checkpoint (folder, hub name,
            package://); null makes small ones.
        clip_from: A saved encoder whose picture tower (and CLIP text tower) is taken, or an open_clip checkpoint; null
            makes small ones.
        vocabulary: Most word pieces.
        max_tokens: Token limit of texts.
        text_width: Hidden width of the BERT.
        text_layers: Its layers.
        text_heads: Its attention heads.
        dim: Width of the vectors: the projection of both text towers (match3, match4: `image_dim`).
        image_size: Side of the picture in pixels.
        image_layers: Four numbers: blocks in each stage of a ResNet as CLIP has it, quick to learn from few pictures.
            One number: layers of a ViT.
        image_width: Width of the picture tower: of the ResNet's first stage, or of the ViT.
        patch_size: Side of a ViT's patch in pixels.
        image_dim: Width of the picture's vector.
        clip_text_width: Hidden width of the CLIP text tower (clip, 4tmm).
        clip_text_layers: Its layers.
        clip_text_heads: Its attention heads.
        clip_text_tokens: Its token limit.
        fusion_hidden: Hidden width of the fusion.
    """

    model: ModelName = "3tmm"
    fusion: FusionMethod | None = None
    alpha: float = 0.5
    product_text_weight: float = 0.3
    text_from: str | None = None
    clip_from: str | None = None
    vocabulary: int = 2500
    max_tokens: int = 64
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    dim: int = 128
    image_size: int = 64
    image_layers: tuple[int, ...] = (1, 1, 1, 1)
    image_width: int = 12
    patch_size: int = 8
    image_dim: int = 128
    clip_text_width: int = 128
    clip_text_layers: int = 2
    clip_text_heads: int = 4
    clip_text_tokens: int = 32
    fusion_hidden: int = 256

    def __post_init__(self) -> None:
        if self.model not in get_args(ModelName):
            raise EncoderConfigError(f"small.model is {self.model!r}: expected one of {', '.join(get_args(ModelName))}")
        if self.fusion is not None and self.fusion not in FUSIONS_OF_MODEL[self.model]:
            expected = " or ".join(FUSIONS_OF_MODEL[self.model])
            raise EncoderConfigError(f"small.fusion is {self.fusion!r}: small.model {self.model} expects {expected}")
        if not 0.0 < self.alpha < 1.0 or not 0.0 <= self.product_text_weight < 1.0:
            raise EncoderConfigError(
                f"small.alpha is {self.alpha}, small.product_text_weight {self.product_text_weight}: expected numbers "
                "between 0 and 1 (the second may be 0)"
            )
        if self.text_from is not None and self.model == "clip":
            raise EncoderConfigError(f"small.text_from is {self.text_from!r}: a clip has no BERT towers, remove it")
        if self.clip_from is not None and self.model == "bibert":
            raise EncoderConfigError(f"small.clip_from is {self.clip_from!r}: a bibert has no CLIP towers, remove it")
        if self.vocabulary < 256:
            message = f"small.vocabulary is {self.vocabulary}: expected 256 or more, letters take their share"
            raise EncoderConfigError(message)
        for width, heads in (("text_width", "text_heads"), ("clip_text_width", "clip_text_heads")):
            value, divisor = getattr(self, width), getattr(self, heads)
            if value % divisor:
                raise EncoderConfigError(f"small.{width} is {value}: expected a multiple of {heads} {divisor}")
        if len(self.image_layers) not in (1, 4) or min(self.image_layers) < 1:
            raise EncoderConfigError(
                f"small.image_layers is {list(self.image_layers)}: expected four numbers (ResNet) or one (ViT), each 1 "
                "or more"
            )
        is_vit = len(self.image_layers) == 1
        side, step = (self.patch_size, 32) if is_vit else (32, 1)  # a ResNet halves the side five times
        if self.image_size % side or self.image_width % step:
            raise EncoderConfigError(
                f"small.image_size is {self.image_size}, image_width {self.image_width}: expected multiples of {side} "
                f"and {step} for a {'ViT' if is_vit else 'ResNet'}"
            )

    @property
    def fusion_method(self) -> FusionMethod:
        """`fusion`, or the model's first."""
        return self.fusion or FUSIONS_OF_MODEL[self.model][0]


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
        distillation: Where `data.teacher_uri` is given: the squared difference between the margin of positive and
            negative here, of cosines, and the teacher's.
    """

    query_product: float | None = None
    photo_picture: float = 1.0
    picture_text: float = 0.5
    photo_text: float = 0.5
    query_text_picture: float = 0.5
    query_text_text: float = 0.5
    distillation: float = 1.0

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
        drop_image: Probability that a product is seen without its picture in the first view too, if it has a text.
        drop_text: The same of its text, if it has a picture.
        losses: Weights of the loss's terms.
        matryoshka: Dimensions of which the first so many are trained to stand alone, beside all of them; the mean of
            the losses counts. `encoder.dim` of the indexing job picks one.
        label_weights: Weight of a pair by its label (`data.label_field`), such as {Exact: 1, Substitute: 0.1,
            Irrelevant: 0}. For one query a product of a smaller weight is a negative of those of a larger one; weight 0
            makes a product a negative of its query and no pair.
        negatives: Whose negatives the seen, mined, teacher's and weightless products are: of the whole `batch`, or of
            their `own` query alone.
        mine_from: A published index, or INDEX@VERSION, that is searched for each query of the training pairs: what it
            finds and nobody chose are further negatives. Needs a catalog.
        mine_negatives: So many a pair, the best found ones.
        mine_depth: Results of a query that are looked at.
        mine_margin: A result is no negative unless its score is less than that of the pair's own product by so much:
            nearer ones are likely to be right.
        teacher_scale: The teacher's scores are multiplied by it, to be compared with cosines.
        tuned: What is trained, some of bert, projection, clip_image, clip_text, fusion, or text (the first two) and
            image (the next two); the rest keeps its weights.
        seed: Of weights, order and dropout.
        device: auto, cpu, cuda or cuda:N.
        devices: Devices (CPU: processes) that train together; products of all of them are negatives for each.
        precision: float32, bfloat16 for mixed precision, or auto: the latter where the device multiplies it natively.
        workers: Processes that read and decode ahead; 0 does it between steps.
        progress: Show a progress bar.
        validate_steps: Steps from one validation to the next; null: once an epoch.
        validation_candidates: Products that validation searches: those of its pairs, or all.
        best_by: Which recall makes a validation the best; among equals that at the next smaller number decides, then
            the newer. recall@1 or recall@10 where few products are searched.
        patience: Validations without a better one after which training stops; null: never.
        vectors: A local folder that keeps the vectors of towers that do not learn, by tower and by what it saw, for
            other runs and for evaluations; default: `vectors` below a local work.uri, and without any they are kept
            while this run lasts.
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
    drop_image: float = 0.0
    drop_text: float = 0.0
    losses: LossWeights = field(default_factory=LossWeights)
    matryoshka: tuple[int, ...] = ()
    label_weights: dict[str, float] = field(default_factory=dict)
    negatives: Literal["batch", "own"] = "batch"
    mine_from: str | None = None
    mine_negatives: int = 4
    mine_depth: int = 100
    mine_margin: float = 0.05
    teacher_scale: float = 1.0
    tuned: tuple[TunedPart, ...] = ("fusion", "text")
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    workers: int = 0
    progress: bool = True
    validate_steps: int | None = None
    validation_candidates: Literal["validation", "all"] = "validation"
    best_by: Literal["recall@100", "recall@10", "recall@1"] = "recall@100"
    patience: int | None = None
    vectors: str | None = None
    checkpoint_steps: int = 1000
    resume: str = "auto"

    def __post_init__(self) -> None:
        for key, least in _LEAST.items():
            value = getattr(self, key)
            if value is not None and value < least:
                why = ": one pair has no negatives to be told apart from" if key == "batch_size" else ""
                raise EncoderConfigError(f"training.{key} is {value}: expected {least} or more{why}")
        for key in ("learning_rate", "temperature"):
            if not getattr(self, key) > 0:
                raise EncoderConfigError(f"training.{key} is {getattr(self, key)}: expected a positive number")
        if self.dropped_weight < 0 or not 0 <= self.warmup_share < 1:
            raise EncoderConfigError(
                f"training.dropped_weight is {self.dropped_weight}, expected 0 or more; "
                f"training.warmup_share is {self.warmup_share}, expected 0 up to 1"
            )
        if min(self.drop_image, self.drop_text) < 0 or self.drop_image + self.drop_text > 1:
            raise EncoderConfigError(
                f"training.drop_image is {self.drop_image}, training.drop_text {self.drop_text}: expected "
                "probabilities of a sum of 1 at most, for no product loses both"
            )
        if any(dim < 1 for dim in self.matryoshka) or list(self.matryoshka) != sorted(set(self.matryoshka)):
            raise EncoderConfigError(
                f"training.matryoshka is {list(self.matryoshka)}: expected numbers of dimensions, each larger than the "
                "one before"
            )
        if any(not weight >= 0 for weight in self.label_weights.values()) or (
            self.label_weights and not any(self.label_weights.values())
        ):
            raise EncoderConfigError(
                f"training.label_weights is {self.label_weights}: expected weights of 0 or more, and one above 0"
            )
        if not self.teacher_scale > 0:
            raise EncoderConfigError(f"training.teacher_scale is {self.teacher_scale}: expected a positive number")
        low, high = self.temperature_range
        if not 0 < low < high or (self.learn_temperature and not low <= self.temperature <= high):
            raise EncoderConfigError(
                f"training.temperature_range is {list(self.temperature_range)}, temperature {self.temperature}: "
                "expected two positive numbers, the smaller first, and a learned temperature between them"
            )
        _check_choices("training", self, "precision", "validation_candidates", "best_by", "negatives")
        if not self.tuned or set(self.tuned) - set(get_args(TunedPart)):
            message = f"training.tuned is {list(self.tuned)}: expected some of {', '.join(get_args(TunedPart))}"
            raise EncoderConfigError(message)
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


_LEAST = {"epochs": 0, "workers": 0, "batch_size": 2}
_LEAST |= dict.fromkeys(("group_pairs", "accumulate_batches", "chunk_rows", "devices", "validate_steps"), 1)
_LEAST |= dict.fromkeys(("patience", "checkpoint_steps", "mine_negatives", "mine_depth"), 1)


def check_together(data: PairsConfig, training: TrainingConfig) -> None:
    """Raises EncoderConfigError where one section asks for what the other does not give."""
    if bool(training.label_weights) != (data.label_field is not None):
        raise EncoderConfigError(
            f"data.label_field is {data.label_field!r}, training.label_weights {training.label_weights or None}: "
            "expected both (the column of the labels, and what each label weighs) or neither"
        )
    if data.show_texts and not training.drop_text:
        raise EncoderConfigError(
            "data.show_texts is true and training.drop_text 0: every title would find its product by its own words; "
            "expected training.drop_text above 0, such as 0.5"
        )
    if training.mine_from is not None and (data.queries != "pairs" or data.query_field is None):
        raise EncoderConfigError(
            f"training.mine_from is {training.mine_from!r}: it searches query texts, so expected data.queries pairs "
            "and a data.query_field"
        )


def _check_choices(section: str, config: object, *keys: str) -> None:
    """Raises EncoderConfigError for a value that is none of its key's literals."""
    hints = get_type_hints(type(config))
    for key in keys:
        value, choices = getattr(config, key), get_args(hints[key])
        if value not in choices:
            raise EncoderConfigError(f"{section}.{key} is {value!r}: expected {' or '.join(choices)}")
