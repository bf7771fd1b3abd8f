"""Other people's checkpoints of towers are read: what their folders say is checked before any weight is loaded.

transformers folders hold `config.json`, `*.safetensors` and a tokenizer; open_clip folders hold `open_clip_config.json`
and `open_clip_model.safetensors`, as open_clip's push to a hub writes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from encoders.architecture import ClipArchitecture, TextArchitecture
from encoders.bert import Bert, is_plain_bert
from encoders.checkpoint import CONVERT_PICKLE, file_sha256, hub_folder, local_folder, read_config, safetensors_files
from encoders.config import Pooling, TowerSpec
from encoders.errors import CheckpointError, EncoderConfigError
from encoders.image_tower import build_clip
from encoders.preprocessing import ImagePreprocessing
from encoders.text_tower import check_max_tokens, quiet_transformers
from encoders.tokenizers import FastTokenizer, TextTokenizer, clip_tokenizer

if TYPE_CHECKING:  # the libraries of towers take seconds to load: each where a tower is of it
    import open_clip

    from encoders.image_backbones import ImageCheckpoint

_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
_POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "eos"}  # sentence-transformers' names
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer_config.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextCheckpoint:
    """A transformers checkpoint on this machine."""

    folder: Path
    architecture: TextArchitecture
    weight_files: tuple[Path, ...]

    def identity(self) -> dict[str, str]:
        """Hash of every file that decides the vectors, by role."""
        files = [*self.weight_files, *(self.folder / name for name in _TOKENIZER_FILES)]
        return {f"text/{path.name}": file_sha256(path) for path in files if path.is_file()}

    def load(self) -> nn.Module:
        """Loads the backbone in float32."""
        if is_plain_bert(self.architecture.config):
            return self._load_bert()
        from transformers import AutoModel

        options = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
        try:
            with quiet_transformers():
                model, info = AutoModel.from_pretrained(str(self.folder), output_loading_info=True, **options)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder} cannot be loaded by transformers: {error}") from error
        missing = sorted(key for key in info["missing_keys"] if "pooler" not in key)
        if missing:
            raise CheckpointError(
                f"{self.folder}: the weights lack {len(missing)} tensors (first: {missing[0]}): "
                "they are not those of the model in config.json"
            )
        return model

    def _load_bert(self) -> Bert:
        found: dict[str, torch.Tensor] = {}
        try:
            for path in self.weight_files:
                found |= load_file(str(path))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder}: its weights cannot be read: {error}") from error
        try:
            with torch.device("meta"):  # no weights are drawn that these replace
                model = Bert(self.architecture.config)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise CheckpointError(f"{self.folder}/config.json is of no BERT that can be built: {error}") from error
        expected = model.state_dict()
        # With a head names begin with `bert.`; the first BERTs call a LayerNorm's weights otherwise.
        named = {
            name.removeprefix("bert.")
            .replace("LayerNorm.gamma", "LayerNorm.weight")
            .replace("LayerNorm.beta", "LayerNorm.bias"): tensor
            for name, tensor in found.items()
        }
        missing = sorted(expected.keys() - named.keys())
        if missing:
            raise CheckpointError(
                f"{self.folder}: the weights lack {len(missing)} tensors (first: {missing[0]}): "
                "they are not those of the model in config.json"
            )
        for name, tensor in expected.items():
            if named[name].shape != tensor.shape:
                raise CheckpointError(
                    f"{self.folder}: tensor {name} has shape {list(named[name].shape)}, and config.json says "
                    f"{list(tensor.shape)}: they are not those of one model"
                )
        model.load_state_dict({name: named[name].float() for name in expected}, assign=True)
        return model.eval()

    def tokenizer(self) -> FastTokenizer:
        """Loads the tokenizer; a slow one (vocab.txt alone) is converted by transformers."""
        max_tokens = self.architecture.max_tokens
        if (self.folder / "tokenizer.json").is_file():
            return FastTokenizer.load(self.folder, max_tokens=max_tokens)
        from transformers import AutoTokenizer

        try:
            with quiet_transformers():
                loaded = AutoTokenizer.from_pretrained(str(self.folder), local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise CheckpointError(f"no tokenizer in {self.folder} that transformers can load: {error}") from error
        if not loaded.is_fast:
            raise CheckpointError(f"{self.folder}: its tokenizer has no fast version: expected a tokenizer.json")
        return FastTokenizer(loaded.backend_tokenizer, max_tokens=max_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipCheckpoint:
    """An open_clip checkpoint on this machine, or weights drawn from a seed (for benchmarks)."""

    name: str
    architecture: ClipArchitecture
    weights: Path | None
    seed: int = 0
    tokenizer_folder: Path | None = None

    def identity(self) -> dict[str, str]:
        """Hash of every file that decides the vectors, by role."""
        if self.weights is None:
            return {"clip/random": f"seed {self.seed}, torch {torch.__version__}"}
        found = {"clip/weights": file_sha256(self.weights)}
        if self.tokenizer_folder is not None:
            names = [self.tokenizer_folder / name for name in _TOKENIZER_FILES]
            found |= {f"clip/{path.name}": file_sha256(path) for path in names if path.is_file()}
        return found

    def load(self, *, with_text: bool) -> open_clip.CustomTextCLIP:
        """Loads the model in float32; without text, its text tower is a placeholder."""
        if self.weights is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                return build_clip(self.architecture.model_config, with_text=with_text)
        text_config = self.architecture.model_config.get("text_cfg")
        plain_text = text_config is not None and not text_config.get("hf_model_name")
        # The library checks and converts whole checkpoints, so the text tower is built even where it is not wanted.
        # One of a hub's own models cannot be built without the hub, and an image tower alone has none: then the image
        # tower's tensors are taken by name.
        model = build_clip(self.architecture.model_config, with_text=with_text or plain_text)
        try:
            if plain_text:
                import open_clip

                open_clip.load_checkpoint(model, str(self.weights))
            else:
                named = load_file(str(self.weights)).items()
                own = {name.removeprefix("visual."): tensor for name, tensor in named if name.startswith("visual.")}
                model.visual.load_state_dict(own or dict(named))
        except (OSError, RuntimeError, ValueError, KeyError, AssertionError, SafetensorError) as error:
            raise CheckpointError(f"{self.weights} does not fit the open_clip model {self.name}: {error}") from error
        return model

    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the text tower."""
        return clip_tokenizer(self.architecture.model_config["text_cfg"], self.tokenizer_folder)


def find_text_checkpoint(spec: TowerSpec) -> TextCheckpoint:
    """Resolves a transformers tower and checks config, pooling, token limit and that safetensors are there."""
    folder = local_folder(spec.checkpoint, hub=True)
    config = read_config(folder / "config.json")
    if "model_type" not in config or "hidden_size" not in config:
        raise CheckpointError(f"{folder}/config.json names no model_type and hidden_size: expected a BERT-like encoder")
    check_max_tokens(spec.max_tokens, config)
    architecture = TextArchitecture(config=config, pooling=_pooling(folder, spec), max_tokens=spec.max_tokens)
    return TextCheckpoint(folder=folder, architecture=architecture, weight_files=tuple(safetensors_files(folder)))


def find_clip_checkpoint(spec: TowerSpec, *, with_text: bool) -> ClipCheckpoint | ImageCheckpoint:
    """Resolves an image tower, and the text tower that belongs to it; of open_clip by `random:NAME?seed=N`, `NAME/TAG`,
    `hf-hub:org/name`, or a folder; of others as `find_image_checkpoint`.
    """
    if spec.library != "open_clip":
        from encoders.image_backbones import find_image_checkpoint

        return find_image_checkpoint(spec, with_text=with_text)
    found = _find_open_clip(spec, with_text=with_text)
    if spec.image_size not in (None, found.architecture.preprocessing.size):
        raise EncoderConfigError(
            f"clip_tower.image_size is {spec.image_size}: this open_clip model reads "
            f"{found.architecture.preprocessing.size} pixels; leave it out"
        )
    if spec.resize_mode is not None:
        preprocessing = replace(found.architecture.preprocessing, resize_mode=spec.resize_mode)
        found = replace(found, architecture=replace(found.architecture, preprocessing=preprocessing))
    return found


def _find_open_clip(spec: TowerSpec, *, with_text: bool) -> ClipCheckpoint:
    import open_clip

    name = spec.checkpoint
    if name.startswith("random:"):
        model_name, _, query = name.removeprefix("random:").partition("?")
        seed = parse_qs(query).get("seed", ["0"])[0]
        if not seed.isdigit():
            raise EncoderConfigError(f"clip_tower.checkpoint is {name!r}: expected random:NAME?seed=NUMBER")
        config = _builtin_config(model_name)
        return ClipCheckpoint(name=name, architecture=_clip_architecture(config, {}), weights=None, seed=int(seed))
    model_name, _, tag = name.partition("/")
    if model_name in open_clip.list_models() and not Path(name).is_dir():
        return _builtin_checkpoint(model_name, tag, with_text=with_text)
    folder = local_folder(name, hub=name.startswith("hf-hub:"))
    values = read_config(folder / "open_clip_config.json")
    if "model_cfg" not in values:
        raise CheckpointError(
            f"{folder}/open_clip_config.json has no model_cfg: expected the config that open_clip writes"
        )
    architecture = _clip_architecture(values["model_cfg"], values.get("preprocess_cfg", {}))
    text_config = values["model_cfg"].get("text_cfg")
    if with_text and text_config is None:
        raise CheckpointError(
            f"{folder} is an image tower alone (its open_clip_config.json has no text_cfg): expected one with a text "
            "tower for encoder.model clip and 4tmm; 3tmm, match3 and match4 take it as it is"
        )
    return ClipCheckpoint(
        name=name,
        architecture=architecture,
        weights=safetensors_files(folder, _CLIP_WEIGHTS)[0],
        tokenizer_folder=folder if text_config and text_config.get("hf_tokenizer_name") else None,
    )


def _builtin_config(name: str) -> dict[str, Any]:
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        raise EncoderConfigError(f"open_clip knows no model {name!r}: see open_clip.list_models() for the names")
    return config


def _builtin_checkpoint(name: str, tag: str, *, with_text: bool) -> ClipCheckpoint:
    import open_clip

    tag_config = open_clip.get_pretrained_cfg(name, tag)
    if not tag_config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise EncoderConfigError(
            f"open_clip model {name} has no weights tagged {tag!r}: expected NAME/TAG with a tag of: {known}"
        )
    # "org/name/" or "org/name/file.bin"; the safetensors beside it are what is wanted, whatever file is named.
    repository = "/".join(tag_config.get("hf_hub", "").split("/")[:2])
    if not repository:
        raise CheckpointError(
            f"open_clip offers {name}/{tag} as a pickle only: expected safetensors. {CONVERT_PICKLE}; give the folder "
            "with it and an open_clip_config.json as the checkpoint"
        )
    named = Path(tag_config["hf_hub"]).stem if not tag_config["hf_hub"].endswith("/") else ""
    wanted = [*_CLIP_WEIGHTS, *([f"{named}.safetensors"] if named else [])]
    folder = hub_folder(repository, wanted)
    config = _builtin_config(name)
    config["quick_gelu"] = bool(tag_config.get("quick_gelu", config.get("quick_gelu", False)))
    tokenizer_name = config["text_cfg"].get("hf_tokenizer_name")
    return ClipCheckpoint(
        name=f"{name}/{tag}",
        architecture=_clip_architecture(config, tag_config),
        weights=safetensors_files(folder, wanted)[0],
        tokenizer_folder=hub_folder(tokenizer_name) if tokenizer_name and with_text else None,
    )


def _clip_architecture(model_config: dict[str, Any], preprocess: dict[str, Any]) -> ClipArchitecture:
    from open_clip.transform import PreprocessCfg

    # The preprocessing that the checkpoint names, on top of open_clip's defaults.
    try:
        known = {field.name for field in fields(PreprocessCfg)} & preprocess.keys()
        wanted = PreprocessCfg(**{key: preprocess[key] for key in known if preprocess[key] is not None})
        size = model_config["vision_cfg"].get("image_size", wanted.size)
    except (KeyError, TypeError, AttributeError) as error:
        message = f"open_clip config cannot be read: {error!r}; expected model_cfg with a vision_cfg"
        raise CheckpointError(message) from error
    sides = set(size) if isinstance(size, (list, tuple)) else {size}
    if len(sides) != 1:
        raise CheckpointError(f"open_clip model of input size {list(size)}: expected a square picture tower")
    preprocessing = ImagePreprocessing(
        size=int(sides.pop()),
        mean=tuple(wanted.mean),
        std=tuple(wanted.std),
        interpolation="bilinear" if wanted.interpolation == "bilinear" else "bicubic",
        resize_mode=wanted.resize_mode,
        fill_color=wanted.fill_color,
    )
    plain = json.loads(json.dumps({key: value for key, value in model_config.items() if key != "custom_text"}))
    return ClipArchitecture(model_config=plain, preprocessing=preprocessing)


def _pooling(folder: Path, spec: TowerSpec) -> Pooling:
    """A sentence-transformers folder says how its vectors are made: raises where the tower would make others."""
    if any(path.name.endswith("_Dense") for path in folder.iterdir()):
        raise CheckpointError(f"{folder} ends in a Dense layer, which is not supported: expected pooling alone")
    if not (folder / "1_Pooling" / "config.json").is_file():
        return spec.pooling or "mean"
    values = read_config(folder / "1_Pooling" / "config.json")
    # One key names the mode, or a switch for each mode stands on or off, in folders of older releases.
    modes = values.get("pooling_mode") or [key for key, on in values.items() if key.startswith("pooling_mode_") and on]
    modes = [modes] if isinstance(modes, str) else modes
    names = [mode.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for mode in modes]
    stated = _POOLINGS.get(names[0]) if len(names) == 1 else None
    if stated is None:
        raise CheckpointError(
            f"{folder} pools its tokens by {' and '.join(modes) or 'nothing'}: expected one of mean, cls and "
            "lasttoken; this checkpoint cannot be used"
        )
    if spec.pooling not in (None, stated):
        raise EncoderConfigError(
            f"text_tower.pooling is {spec.pooling!r}, but {folder} was trained with another: set text_tower.pooling: "
            f"{stated}, or leave it out"
        )
    return stated
