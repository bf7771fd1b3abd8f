"""Image backbones of timm and transformers become image towers, without a CLIP around them.

A timm folder holds `config.json` (architecture, pretrained_cfg, model_args) and `model.safetensors`, as timm's push to
a hub writes them; a transformers folder `config.json`, `preprocessor_config.json` and `*.safetensors`, of a vision
model (DINOv2, ViT) or of a dual one (SigLIP, CLIP), whose vision half is taken.

Legend: P images, S side of an image in pixels, D width of the backbone's vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from encoders.architecture import ClipArchitecture
from encoders.checkpoint import file_sha256, local_folder, read_config, safetensors_files
from encoders.config import TowerSpec
from encoders.errors import CheckpointError, EncoderConfigError
from encoders.preprocessing import ImagePreprocessing
from encoders.starter_weights import LITE0, lite0_folder
from encoders.text_tower import quiet_transformers

_BILINEAR = 2  # as Pillow numbers them
_KEPT_OF_TIMM = ("architecture", "num_features", "model_args", "fixed_input_size", "stages")


class TransformersVision(nn.Module):
    """A vision model of transformers as an image tower: its pooled output, or its class token."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        """Encodes normalised pixels `[P, 3, S, S]` to `[P, D]`."""
        found = self.backbone(pixel_values=pixels)
        pooled = getattr(found, "pooler_output", None)
        return found.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


class StagePooled(nn.Module):
    """A timm backbone that gives its own vector, unless `alone`, and after it the mean of every stage's map.

    Each part has length sqrt(its width), so that a projection of them all starts from numbers of one scale.
    """

    def __init__(self, backbone: Any, *, alone: bool = False) -> None:
        super().__init__()
        self.backbone, self._alone = backbone, alone

    def forward(self, pixels: Tensor) -> Tensor:
        """Encodes normalised pixels `[P, 3, S, S]` to `[P, D]`."""
        last, maps = self.backbone.forward_intermediates(pixels)
        pooled = [each.mean((2, 3)) for each in maps]
        if not self._alone:
            pooled.insert(0, self.backbone.forward_head(last, pre_logits=True))
        return torch.cat([functional.normalize(part, dim=-1) * part.shape[-1] ** 0.5 for part in pooled], dim=-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageCheckpoint:
    """A timm or transformers image backbone on this machine."""

    folder: Path
    architecture: ClipArchitecture
    weight_files: tuple[Path, ...]

    def identity(self) -> dict[str, str]:
        """Hash of every file that decides the vectors, by role."""
        return {f"image/{path.name}": file_sha256(path) for path in self.weight_files}

    def load(self, *, with_text: bool = False) -> ImageModel:
        """Builds the backbone with its weights, in float32; CheckpointError where they do not fit the config."""
        return ImageModel(
            visual=self._load_timm() if self.architecture.library == "timm" else self._load_transformers()
        )

    def _load_timm(self) -> nn.Module:
        visual = build_backbone(self.architecture).visual
        try:
            tensors = {name: tensor for path in self.weight_files for name, tensor in load_file(str(path)).items()}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder}: its weights cannot be read: {error}") from error
        backbone = visual.backbone if isinstance(visual, StagePooled) else visual
        expected, heads = backbone.state_dict(), _timm_heads(backbone)
        misfits = {
            "missing": sorted(expected.keys() - tensors.keys()),
            "not known": sorted(name for name in tensors.keys() - expected.keys() if not name.startswith(heads)),
            "of another shape": sorted(
                n for n in expected.keys() & tensors.keys() if expected[n].shape != tensors[n].shape
            ),
        }
        self._check(misfits)
        backbone.load_state_dict({name: tensors[name].float() for name in expected})
        return visual

    def _load_transformers(self) -> nn.Module:
        from transformers import AutoModel  # takes seconds, which a tower of timm does without

        options = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
        try:
            with quiet_transformers():
                model, info = AutoModel.from_pretrained(str(self.folder), output_loading_info=True, **options)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder} cannot be loaded by transformers: {error}") from error
        self._check({"missing": sorted(info["missing_keys"])})
        return TransformersVision(getattr(model, "vision_model", model))  # of a dual model its vision half

    def _check(self, misfits: dict[str, list[str]]) -> None:
        found = [f"{len(names)} {what} (first: {names[0]})" for what, names in misfits.items() if names]
        if found:
            raise CheckpointError(
                f"{self.folder}: the weights do not fit the {self.architecture.library} model of config.json, tensors "
                f"are {', '.join(found)}: expected those of {self.architecture.name}"
            )

    def tokenizer(self) -> Any:
        """There is none: an image backbone reads no texts."""
        raise CheckpointError(f"{self.folder} holds an image tower alone: it has no text tower and no tokenizer")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageModel:
    """An image tower where open_clip has two towers."""

    visual: Any
    text: None = None


def find_image_checkpoint(spec: TowerSpec, *, with_text: bool) -> ImageCheckpoint:
    """Resolves an image backbone of timm or transformers by hub name or folder, and checks its configs.

    Raises:
        CheckpointError: Files are missing, pickled or of another kind, or the model needs a text tower.
        EncoderConfigError: The input size cannot be had of this backbone.
    """
    if with_text:
        raise EncoderConfigError(
            f"clip_tower.library is {spec.library!r}, and encoder.model needs the text tower that belongs to the image "
            "tower (clip, 4tmm): expected an open_clip model; with an image tower alone take 3tmm, match3 or match4, "
            "whose projections are trained (python -m pipelines.train_encoder)"
        )
    if spec.checkpoint == LITE0 and spec.library == "timm":
        folder = lite0_folder()
    else:
        folder = local_folder(spec.checkpoint.removeprefix("hf-hub:"), hub=True)
    values = read_config(folder / "config.json")
    find = _find_timm if spec.library == "timm" else _find_transformers
    architecture = find(folder, values, spec)
    if spec.resize_mode is not None:
        preprocessing = replace(architecture.preprocessing, resize_mode=spec.resize_mode)
        architecture = replace(architecture, preprocessing=preprocessing)
    return ImageCheckpoint(folder=folder, architecture=architecture, weight_files=tuple(safetensors_files(folder)))


def build_backbone(architecture: ClipArchitecture) -> ImageModel:
    """Builds a backbone of timm or transformers with random weights; CheckpointError where the library cannot."""
    values, size = architecture.model_config, architecture.preprocessing.size
    try:
        if architecture.library == "timm":
            options = dict(values.get("model_args", {}))
            if values.get("fixed_input_size"):
                options["img_size"] = size
            visual = timm.create_model(values["architecture"], pretrained=False, num_classes=0, **options)
            if not values.get("fixed_input_size"):
                visual = visual.to(memory_format=torch.channels_last)  # convolutions run a fifth faster so
            stages = values.get("stages")
            return ImageModel(visual=StagePooled(visual, alone=stages == "alone") if stages else visual)
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.for_model(values["model_type"], **{k: v for k, v in values.items() if k != "model_type"})
        return ImageModel(visual=TransformersVision(AutoModel.from_config(config)))
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        name = f"{architecture.library} model {architecture.name}"
        raise CheckpointError(f"the {name} cannot be built: {type(error).__name__}: {error}") from error


def timm_preprocessing(pretrained: dict[str, Any], *, size: int | None, where: object) -> ImagePreprocessing:
    """What a timm `pretrained_cfg` says of its input. The whole image is shown, without timm's margin (`crop_pct`)."""
    try:
        sides = set(pretrained["input_size"][1:])
        if size is None and len(sides) != 1:
            raise CheckpointError(f"{where}: input size {pretrained['input_size']}: expected a square image tower")
        return ImagePreprocessing(
            size=size or int(sides.pop()),
            mean=tuple(pretrained["mean"]),
            std=tuple(pretrained["std"]),
            interpolation="bilinear" if pretrained.get("interpolation") == "bilinear" else "bicubic",
            resize_mode="squash" if pretrained.get("crop_mode") == "squash" else "shortest",
        )
    except (KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{where} has no pretrained_cfg with input_size, mean and std: {error!r}") from error


def _find_timm(folder: Path, values: dict[str, Any], spec: TowerSpec) -> ClipArchitecture:
    name = values.get("architecture")
    if not isinstance(name, str) or not timm.is_model(name):
        raise CheckpointError(
            f"{folder}/config.json names architecture {name!r}, which timm has not: expected a folder as timm writes it"
            + (" (this one is of transformers: clip_tower.library)" if "model_type" in values else "")
        )
    pretrained = values.get("pretrained_cfg") or {}
    preprocessing = timm_preprocessing(pretrained, size=spec.image_size, where=f"{folder}/config.json")
    with torch.device("meta"):
        model: Any = timm.create_model(name, pretrained=False, num_classes=0, **values.get("model_args", {}))
    fixed = bool(pretrained.get("fixed_input_size", model.pretrained_cfg.get("fixed_input_size", False)))
    if fixed and spec.image_size not in (None, pretrained["input_size"][1]):
        raise _fixed_size(spec, name, pretrained["input_size"][1])
    config = {**values, "num_features": int(getattr(model, "head_hidden_size", model.num_features))}
    config["fixed_input_size"] = fixed
    if spec.stages:
        own = 0 if spec.stages == "alone" else config["num_features"]
        config |= {"stages": spec.stages, "num_features": own + _stage_widths(model, name)}
    kept = {key: config[key] for key in _KEPT_OF_TIMM if key in config}
    return ClipArchitecture(library="timm", model_config=kept, preprocessing=preprocessing)


def _stage_widths(model: Any, name: str) -> int:
    """Of all stages together; raises EncoderConfigError for a backbone whose stages are no maps."""
    widths = [int(stage["num_chs"]) for stage in getattr(model, "feature_info", ())]
    if not widths or not hasattr(model, "forward_intermediates") or hasattr(model, "patch_embed"):
        raise EncoderConfigError(
            f"clip_tower.stages: timm's {name} has no stages that give maps; expected a convolutional network, or "
            "leave it out"
        )
    return sum(widths)


def _find_transformers(folder: Path, values: dict[str, Any], spec: TowerSpec) -> ClipArchitecture:
    config = values.get("vision_config", values)
    if "vision_config" in values and "model_type" not in config:
        config = {**config, "model_type": f"{values.get('model_type')}_vision_model"}
    from transformers import AutoConfig

    if "model_type" not in config:
        raise CheckpointError(f"{folder}/config.json names no model_type: expected a vision model of transformers")
    try:  # with the defaults that the folder leaves out
        filled = AutoConfig.for_model(config["model_type"], **{k: v for k, v in config.items() if k != "model_type"})
        width, patches = int(filled.hidden_size), int(filled.image_size)
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{folder}/config.json is no vision model that transformers knows ({error}): expected one with hidden_size "
            "and image_size"
        ) from error
    said = read_config(folder / "preprocessor_config.json")
    size = said.get("crop_size") if said.get("do_center_crop") else said.get("size")
    size = size or said.get("size") or patches
    squashes = isinstance(size, dict) and "height" in size and not said.get("do_center_crop")
    if isinstance(size, dict):
        if size.get("height", 0) != size.get("width", 0):
            raise CheckpointError(f"{folder}/preprocessor_config.json asks for {size}: expected a square image tower")
        size = size.get("height") or size.get("shortest_edge") or patches
    interpolates = str(config["model_type"]).startswith("dino")
    if not interpolates and spec.image_size not in (None, patches):
        raise _fixed_size(spec, str(config["model_type"]), patches)
    preprocessing = ImagePreprocessing(
        size=int(spec.image_size or (size if interpolates else patches)),
        mean=tuple(said.get("image_mean") or (0.5, 0.5, 0.5)),
        std=tuple(said.get("image_std") or (0.5, 0.5, 0.5)),
        interpolation="bilinear" if said.get("resample") == _BILINEAR else "bicubic",
        resize_mode="squash" if squashes else "shortest",
    )
    kept = {key: value for key, value in config.items() if key not in ("torch_dtype", "dtype", "transformers_version")}
    kept["hidden_size"] = width
    return ClipArchitecture(library="transformers", model_config=kept, preprocessing=preprocessing)


def _fixed_size(spec: TowerSpec, name: str, size: int) -> EncoderConfigError:
    return EncoderConfigError(
        f"clip_tower.image_size is {spec.image_size}: {name} has positions for {size} pixels alone; leave it out"
    )


def _timm_heads(visual: Any) -> tuple[str, ...]:
    """Prefixes of the tensors of a classifier, which a tower has not."""
    classifier = visual.pretrained_cfg.get("classifier") or ()
    return (classifier,) if isinstance(classifier, str) else tuple(classifier)
