"""The architecture is an encoder's shape without its weights: what `encoder.json` holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from encoders.config import (
    FUSIONS_OF_MODEL,
    MATCH_MODELS,
    NEEDS_CLIP_TOWER,
    NEEDS_TEXT_TOWER,
    USES_CLIP_TEXT,
    FusionSpec,
    ModelName,
    Pooling,
)
from encoders.errors import EncoderConfigError
from encoders.preprocessing import ImagePreprocessing

MISSING_RULES: dict[str, str] = {
    "bibert": "pictures are not used; a product without text cannot be encoded",
    "clip": "the picture's vector; a product without a picture takes the vector of the CLIP text tower",
    "mlp": "a missing text or picture is replaced by a vector learned by modality dropout",
    "concat": "the missing half is zeros, so that all weight lies on the other half",
    "alpha": "the missing half is zeros, so that all weight lies on the other half",
    "images": "texts are not used; a product without a picture cannot be encoded",
    "match": "the vector of what is there, text or picture, takes all weight",
}
_WIDTH_KEYS = {"open_clip": "embed_dim", "timm": "num_features", "transformers": "hidden_size"}
_TEXT_SETTINGS = ("pooling", "max_tokens", "projection_dim")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextArchitecture:
    """A BERT tower: the backbone's transformers config, pooling, token limit, width of its projection, if any."""

    config: dict[str, Any]
    pooling: Pooling
    max_tokens: int
    projection_dim: int | None = None

    @property
    def dim(self) -> int:
        """Width of the tower's vectors."""
        return self.projection_dim or int(self.config["hidden_size"])


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipArchitecture:
    """An image tower, with the text tower that belongs to it or without: what its library says of it, and what it
    wants to see.

    `model_config` is open_clip's `model_cfg`; of timm architecture, num_features and model_args; of transformers the
    vision model's config.
    """

    model_config: dict[str, Any]
    preprocessing: ImagePreprocessing
    library: Literal["open_clip", "timm", "transformers"] = "open_clip"

    @property
    def dim(self) -> int:
        """Width of the tower's vectors: of open_clip the joint space of images and texts."""
        return int(self.model_config[_WIDTH_KEYS[self.library]])

    @property
    def name(self) -> str:
        """What its library calls it, for messages."""
        return str(self.model_config.get("architecture") or self.model_config.get("model_type") or "open_clip")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderArchitecture:
    """A whole encoder, query and product side; `prefix`: its vectors are cut to so many dimensions (None: whole)."""

    model: ModelName
    text: TextArchitecture | None = None
    clip: ClipArchitecture | None = None
    fusion: FusionSpec = field(default_factory=FusionSpec)
    image_weight: float = 0.5
    prefix: int | None = None

    def __post_init__(self) -> None:
        if self.prefix is not None and self.whole_because:
            raise EncoderConfigError(f"encoder.dim is {self.prefix}: {self.whole_because}; remove it")
        if self.prefix is not None and not 1 <= self.prefix <= self.whole_dim:
            raise EncoderConfigError(
                f"encoder.dim is {self.prefix}: expected 1 to {self.whole_dim}, the dimensions of this {self.model} "
                "encoder"
            )
        towers = ("BERT tower", self.text, NEEDS_TEXT_TOWER), ("CLIP towers", self.clip, NEEDS_CLIP_TOWER)
        for name, part, users in towers:
            if part is None and users is NEEDS_TEXT_TOWER and self.model == "match3":
                continue  # images alone
            if (part is not None) != (self.model in users):
                found = "none" if part is None else "one"
                raise EncoderConfigError(
                    f"an encoder of model {self.model!r} and {found} of the {name}: they do not fit"
                )
        if self.fusion.method not in FUSIONS_OF_MODEL[self.model]:
            raise EncoderConfigError(
                f"fusion.method is {self.fusion.method!r}: an encoder of model {self.model!r} expects "
                f"{' or '.join(FUSIONS_OF_MODEL[self.model])}"
            )
        if self.is_match and self.text is not None and self.text.dim != self.whole_dim:
            raise EncoderConfigError(
                f"an encoder of model {self.model!r} whose texts have width {self.text.dim} and pictures "
                f"{self.whole_dim}: expected one width, give the text tower a projection to that of the pictures, "
                "or fusion.dim"
            )

    @property
    def dim(self) -> int:
        """Width D of the vectors of both sides, as they are served."""
        return self.prefix or self.whole_dim

    @property
    def whole_dim(self) -> int:
        """Width of the vectors before they are cut."""
        if self.is_match and self.clip is not None:
            return self.fusion.dim or self.clip.dim
        widths = [part.dim for part in (self.text, self.clip) if part is not None]
        return sum(widths) if self.fusion.method in ("concat", "alpha") else widths[0]

    @property
    def whole_because(self) -> str | None:
        """Why the first dimensions of the vectors cannot stand for all of them; None where they can."""
        if self.fusion.method in ("concat", "alpha"):
            return f"the first dimensions of fusion {self.fusion.method} are those of the text alone"
        if self.is_match and self.fusion.method == "mlp":
            return f"the head of {self.model} with fusion mlp reads all dimensions"
        return None

    @property
    def parts(self) -> dict[str, slice]:
        """The dimensions of the vectors of both sides that are of text and image alone; empty where they are mixed."""
        if self.fusion.method not in ("concat", "alpha") or self.text is None:
            return {}
        return {"text": slice(self.text.dim), "image": slice(self.text.dim, self.whole_dim)}

    @property
    def is_match(self) -> bool:
        """Whether photos are matched with products in one space (match3, match4)."""
        return self.model in MATCH_MODELS

    @property
    def image_projection_dim(self) -> int | None:
        """Width of the projection after the image tower; None where the tower's own last layer serves."""
        dim = self.whole_dim
        if not self.is_match or self.clip is None:
            return None
        return dim if self.clip.dim != dim or self.fusion.image_hidden else None

    @property
    def query_takes_text(self) -> bool:
        """Whether a text can be a query (match3: photos only)."""
        return self.model != "match3"

    @property
    def uses_text(self) -> bool:
        """Whether the product side reads texts."""
        return self.text is not None or self.uses_clip_text

    @property
    def text_is_fallback(self) -> bool:
        """Whether the product side needs the text only of products without an image."""
        return self.model == "clip" or (self.is_match and self.fusion.product_text_weight == 0)

    @property
    def uses_images(self) -> bool:
        """Whether the product side reads images."""
        return self.model != "bibert"

    @property
    def uses_clip_text(self) -> bool:
        """Whether either side needs CLIP's text tower."""
        return self.model in USES_CLIP_TEXT

    @property
    def max_tokens(self) -> int:
        """Token limit of the product side's texts."""
        if self.text is not None:
            return self.text.max_tokens
        if self.clip is None or not self.uses_clip_text:
            return 0
        return int(self.clip.model_config.get("text_cfg", {}).get("context_length", 77))

    @property
    def missing_rule(self) -> str:
        """What happens to a product without text or image, in words."""
        if not self.uses_text:
            return MISSING_RULES["images"]
        method = self.model if self.fusion.method == "none" else self.fusion.method
        return MISSING_RULES["match" if self.is_match else method]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the backbone's config is left out, it stands in `text_tower/config.json`."""
        text = {key: getattr(self.text, key) for key in _TEXT_SETTINGS} if self.text else {}
        values: dict[str, Any] = {"model": self.model, "dim": self.dim, "image_weight": self.image_weight}
        values |= {"missing": self.missing_rule, "fusion": asdict(self.fusion)}
        values["text_tower"] = {"library": "transformers", **text} if self.text else None
        clip = self.clip
        values["clip_tower"] = {"library": clip.library, "model_config": clip.model_config} if clip else None
        values["preprocessing"] = asdict(self.clip.preprocessing) if self.clip else None
        values |= {} if self.prefix is None else {"prefix": self.prefix}
        # Left out of the models that have no such settings: their folders, and so their fingerprints, are older.
        for key in () if self.is_match else ("dim", "product_text_weight"):
            del values["fusion"][key]
        if self.fusion.image_hidden is None:
            del values["fusion"]["image_hidden"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, text_config: dict[str, Any] | None) -> EncoderArchitecture:
        """The inverse of `to_dict`; raises KeyError or TypeError on values of another shape."""
        text = clip = None
        if values["text_tower"] is not None:
            settings = {key: values["text_tower"][key] for key in _TEXT_SETTINGS}
            text = TextArchitecture(config=text_config or {}, **settings)
        if values["clip_tower"] is not None:
            preprocessing = ImagePreprocessing.from_dict(values["preprocessing"])
            library, config = values["clip_tower"]["library"], values["clip_tower"]["model_config"]
            if library not in _WIDTH_KEYS:
                message = f"clip_tower.library is {library!r}: expected one of {', '.join(_WIDTH_KEYS)}"
                raise EncoderConfigError(message)
            clip = ClipArchitecture(model_config=config, preprocessing=preprocessing, library=library)
        fusion = FusionSpec(**values["fusion"])
        cut = {"image_weight": values["image_weight"], "prefix": values.get("prefix")}
        return cls(model=values["model"], text=text, clip=clip, fusion=fusion, **cut)
