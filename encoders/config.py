"""The `encoder:` section of a job says which encoder runs, on which device, in which precision.

An encoder is named by `uri`, the address of a saved one (a folder with an `encoder.json`), or by `model` and its
towers, each by library and checkpoint. It is plain data: it pickles, compares by value, is checked when it is built.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from encoders.errors import EncoderConfigError

ModelName = Literal["bibert", "clip", "3tmm", "4tmm", "match3", "match4"]
FusionMethod = Literal["none", "concat", "alpha", "mlp", "sum"]
Pooling = Literal["mean", "cls", "eos"]
TowerLibrary = Literal["transformers", "open_clip", "timm"]
ResizeMode = Literal["shortest", "longest", "squash"]
Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Vectors = Literal["per_product", "per_image"]

FUSIONS_OF_MODEL: dict[str, tuple[FusionMethod, ...]] = {
    "bibert": ("none",),
    "clip": ("none",),
    "3tmm": ("mlp",),
    "4tmm": ("concat", "alpha", "mlp"),
    "match3": ("sum",),
    "match4": ("sum", "mlp"),
}
MATCH_MODELS = ("match3", "match4")
NEEDS_TEXT_TOWER = ("bibert", "3tmm", "4tmm", *MATCH_MODELS)
NEEDS_CLIP_TOWER = ("clip", "3tmm", "4tmm", *MATCH_MODELS)
USES_CLIP_TEXT = ("clip", "4tmm")


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerSpec:
    """One tower, named by its library and checkpoint.

    Attributes:
        library: `transformers` for a BERT-like text tower; for an image tower `open_clip` (CLIP, SigLIP, an image tower
            of its own), `timm` (any image backbone) or `transformers` (SigLIP, DINOv2).
        checkpoint: A hub name (`sentence-transformers/all-MiniLM-L6-v2`; `ViT-B-32/laion2b_s34b_b79k` or
            `hf-hub:org/name` for open_clip; `timm/NAME`), a local folder, `package://NAME/path`, or any fsspec folder.
            `random:ViT-B-32?seed=0` (open_clip only) draws weights from a seed: for benchmarks, never for search.
        pooling: How token vectors become one text vector (transformers only): their `mean`, the first (`cls`) or the
            last (`eos`). Null: as the checkpoint states in `1_Pooling/config.json`, mean where it states nothing.
        max_tokens: Longer texts are cut to this many tokens, special tokens included (transformers only: open_clip
            text towers bring their own context length).
        image_size: Side of the image tower's square input in pixels; null: as the checkpoint states. Another one for
            convolutional networks of timm and for DINOv2: fewer pixels, less time.
        resize_mode: How an image fills that square: `shortest` crops its long side, `longest` pads, `squash` shows all
            of it, out of proportion. Null: as the checkpoint states.
        stages: Of timm's image towers whose layers give maps: also the means of every stage's map, beside the last
            vector; `alone`: in its place. Early layers know colours and patterns that a classifier forgets; they cost
            nothing, for they run.
    """

    library: TowerLibrary
    checkpoint: str
    pooling: Pooling | None = None
    max_tokens: int = 64
    image_size: int | None = None
    resize_mode: ResizeMode | None = None
    stages: bool | Literal["alone"] = False

    def __post_init__(self) -> None:
        _check_choice("library", self.library, get_args(TowerLibrary))
        if self.resize_mode is not None:
            _check_choice("resize_mode", self.resize_mode, get_args(ResizeMode))
        if self.stages and self.library != "timm":
            raise EncoderConfigError(f"stages is {self.stages}: expected library 'timm', found {self.library!r}")
        if self.image_size is not None and self.image_size < 1:
            raise EncoderConfigError(f"image_size is {self.image_size}: expected 1 or more pixels")
        if self.pooling is not None:
            _check_choice("pooling", self.pooling, get_args(Pooling))
        if not self.checkpoint:
            raise EncoderConfigError("checkpoint is empty: expected a hub name, a folder or a URI")
        if self.max_tokens < 3:
            raise EncoderConfigError(f"max_tokens is {self.max_tokens}: expected 3 or more, two are special tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class FusionSpec:
    """How a text vector and an image vector become one.

    Attributes:
        method: `none` for models of one tower a side, `concat`, `alpha` (weighted concatenation) or `mlp` for a
            product's text and image. `sum` for match3 and match4, where a product is always the weighted sum of its
            two vectors; a query of photo and text is one too, or in match4 the sum and what a trained `mlp` adds.
        alpha: Weight of the text half in `alpha`; the image half gets `1 - alpha`.
        hidden: Width of the hidden layer of `mlp`.
        dim: Width of the space that the towers of match3 and match4 share; null for that of the image tower.
        product_text_weight: Weight of the text in a product's sum (match3, match4), 0 up to 1; the image gets the rest.
            0 indexes images alone: the text is read of products without one.
        image_hidden: Width of a hidden layer in the projection of images (match3, match4), which first brings each of
            the tower's numbers to one scale; null: the projection is linear. For a frozen tower with `stages`.
    """

    method: FusionMethod = "none"
    alpha: float = 0.5
    hidden: int = 512
    dim: int | None = None
    product_text_weight: float = 0.3
    image_hidden: int | None = None

    def __post_init__(self) -> None:
        _check_choice("fusion.method", self.method, get_args(FusionMethod))
        if not 0.0 < self.alpha < 1.0:
            raise EncoderConfigError(f"fusion.alpha is {self.alpha}: expected a number between 0 and 1, both excluded")
        if self.hidden < 1:
            raise EncoderConfigError(f"fusion.hidden is {self.hidden}: expected 1 or more")
        for key, value in (("dim", self.dim), ("image_hidden", self.image_hidden)):
            if value is not None and value < 1:
                raise EncoderConfigError(f"fusion.{key} is {value}: expected 1 or more")
        if not 0.0 <= self.product_text_weight < 1.0:
            raise EncoderConfigError(
                f"fusion.product_text_weight is {self.product_text_weight}: expected a number from 0 up to 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """The `encoder:` section. Exactly one of `uri` and `model` is given.

    Attributes:
        uri: A saved encoder folder: local path, `package://NAME/path`, or fsspec URI.
        model: `bibert`, `clip`, `3tmm`, `4tmm`, `match3` or `match4`, together with its towers below.
        text_tower: The BERT tower (all but clip; match3 without one has images alone).
        clip_tower: The image tower (all but bibert), of open_clip, timm or transformers; clip and 4tmm also use the
            text tower that belongs to it, so there it is an open_clip model.
        fusion: How text and image become one vector (3tmm: mlp; 4tmm: concat, alpha or mlp; match3: sum; match4: sum or
            mlp).
        dim: Cut the vectors to their first so many dimensions, of length 1 again, on both sides: for encoders trained
            for it (`training.matryoshka`). Null: all of them.
        image_weight: Query of image and text: weight of the image's vector, 0 to 1. None: what the saved encoder says,
            else 0.5.
        batch_size: Texts or images per forward pass on a GPU, and of queries: memory of the device against speed. On a
            CPU products run in batches of a fixed shape.
        device: `auto` (a GPU where there is one), `cpu`, `cuda` or `cuda:N`.
        precision: Number format of the towers' weights and activations; vectors are float32 whatever it is. `auto`:
            bfloat16 where the device multiplies it natively (CPUs with AVX-512 BF16 or AMX, GPUs from sm_80), float16
            on older GPUs, else float32; but what the published version's vectors have, where the device gains by that
            too, so that they can be carried over. `int8` (CPUs): the linear layers in 8-bit integers.
        compile: Run the product side's towers through torch.compile: a minute more at the start of each process, faster
            batches on a GPU. Vectors differ in the last digits.
        vectors: Of a product with several images (`catalog.images_per_product`): `per_product` makes one vector of all,
            `per_image` one of each image, with its text where the model fuses both; a search still finds each product
            once, by its best image, and says which. The index grows by as much as products have images.
    """

    uri: str | None = None
    model: ModelName | None = None
    text_tower: TowerSpec | None = None
    clip_tower: TowerSpec | None = None
    fusion: FusionSpec = field(default_factory=FusionSpec)
    dim: int | None = None
    image_weight: float | None = None
    batch_size: int = 64
    device: str = "auto"
    precision: Precision = "auto"
    compile: bool = False
    vectors: Vectors = "per_product"

    def __post_init__(self) -> None:
        if (self.uri is None) == (self.model is None):
            found = "neither" if self.uri is None else "both"
            raise EncoderConfigError(
                f"encoder.uri and encoder.model: found {found}, expected exactly one of the two "
                "(a saved encoder folder, or a model with its towers)"
            )
        if self.uri is not None and (self.text_tower or self.clip_tower or self.fusion != FusionSpec()):
            raise EncoderConfigError(
                f"encoder.uri is {self.uri!r}: a saved encoder brings its own towers and fusion; "
                "remove encoder.text_tower, encoder.clip_tower and encoder.fusion"
            )
        if self.model is not None:
            _check_towers(self, self.model)
        if self.image_weight is not None and not 0.0 <= self.image_weight <= 1.0:
            raise EncoderConfigError(f"encoder.image_weight is {self.image_weight}: expected a number from 0 to 1")
        if self.dim is not None and self.dim < 1:
            raise EncoderConfigError(f"encoder.dim is {self.dim}: expected 1 or more")
        if self.batch_size < 1:
            raise EncoderConfigError(f"encoder.batch_size is {self.batch_size}: expected 1 or more")
        _check_choice("encoder.precision", self.precision, get_args(Precision))
        _check_choice("encoder.vectors", self.vectors, get_args(Vectors))
        kind, _, number = self.device.partition(":")
        if kind not in ("auto", "cpu", "cuda") or (number and (kind != "cuda" or not number.isdigit())):
            raise EncoderConfigError(f"encoder.device is {self.device!r}: expected auto, cpu, cuda or cuda:N")


def _check_towers(config: EncoderConfig, model: ModelName) -> None:
    """Raises unless exactly the towers and the fusion that the model needs are there."""
    _check_choice("encoder.model", model, get_args(ModelName))
    for key, tower, users, libraries in (
        ("encoder.text_tower", config.text_tower, NEEDS_TEXT_TOWER, ("transformers",)),
        ("encoder.clip_tower", config.clip_tower, NEEDS_CLIP_TOWER, ("open_clip", "timm", "transformers")),
    ):
        if model in users and tower is None and not (model == "match3" and users is NEEDS_TEXT_TOWER):
            library = " or ".join(libraries)
            raise EncoderConfigError(f"{key} is missing: encoder.model {model} needs one from {library}")
        if model not in users and tower is not None:
            raise EncoderConfigError(
                f"{key} is {tower.checkpoint!r}: encoder.model {model} has no such tower, remove it"
            )
        if tower is not None and tower.library not in libraries:
            expected = " or ".join(map(repr, libraries))
            raise EncoderConfigError(f"{key}.library is {tower.library!r}: expected {expected}")
        if tower is not None and users is NEEDS_TEXT_TOWER and (tower.image_size or tower.resize_mode):
            raise EncoderConfigError(f"{key} has image_size or resize_mode: they are settings of encoder.clip_tower")
    allowed = FUSIONS_OF_MODEL[model]
    if config.fusion.method not in allowed:
        raise EncoderConfigError(
            f"encoder.fusion.method is {config.fusion.method!r}: encoder.model {model} expects {' or '.join(allowed)}"
        )
    plain = FusionSpec()
    for key in ("dim", "product_text_weight", "image_hidden"):
        value = getattr(config.fusion, key)
        if model not in MATCH_MODELS and value != getattr(plain, key):
            raise EncoderConfigError(
                f"encoder.fusion.{key} is {value}: it is a setting of {' and '.join(MATCH_MODELS)}, and encoder.model "
                f"is {model}; remove it"
            )


def _check_choice(key: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise EncoderConfigError(f"{key} is {value!r}: expected one of {', '.join(choices)}")
