"""Tiny encoders with seeded random weights, one of each model, for the tests of all rooms. Nothing is fetched.

config = save_tiny_encoder(tmp_path / "encoder", model="3tmm")     # EncoderConfig(uri=...)
save_tiny_bert(folder)                                             # a transformers checkpoint of its own
save_tiny_clip(folder)                                             # an open_clip checkpoint folder
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from encoders import preprocessing
from encoders.architecture import ClipArchitecture, EncoderArchitecture, TextArchitecture
from encoders.config import EncoderConfig, FusionSpec
from encoders.image_tower import build_clip
from encoders.model import EncoderModel, EncoderParts
from encoders.preprocessing import ImagePreprocessing
from encoders.saved_encoder import save_encoder
from encoders.text_tower import build_backbone
from encoders.tokenizers import FastTokenizer, clip_tokenizer

WORDS = (
    "red",
    "blue",
    "green",
    "dress",
    "shoe",
    "lamp",
    "cotton",
    "wooden",
    "chair",
    "mug",
    "small",
    "large",
    "for",
    "with",
)
TEXT_DIM, IMAGE_DIM, IMAGE_SIZE, MAX_TOKENS = 16, 8, 16, 12

CLIP_MODEL_CONFIG = {
    "embed_dim": IMAGE_DIM,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}
PREPROCESSING = ImagePreprocessing(size=IMAGE_SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))

# Every model, with each fusion that makes another one of it.
MODELS = [
    ("bibert", None),
    ("clip", None),
    ("3tmm", None),
    ("4tmm", "concat"),
    ("4tmm", "mlp"),
    ("match3", None),
    ("match4", None),
    ("match4", "mlp"),
]


def tiny_tokenizer() -> Tokenizer:
    """A WordPiece tokenizer of a few words, with single letters and digits for all others."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,-"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({token: row for row, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def save_tiny_siglip_tokenizer(folder: Path, *, pad_token: str = "</s>") -> Path:
    """Saves a Hugging Face tokenizer made as SigLIP's is: T5's word pieces, an end token that fills up too."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,-'éüß手"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS] + [(letter, -6.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokens = {"pad_token": pad_token, "eos_token": "</s>", "sep_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens).save_pretrained(str(folder))
    return folder


def tiny_bert_config() -> dict:
    """config.json values of a BERT with one layer."""
    return {
        "model_type": "bert",
        "vocab_size": tiny_tokenizer().get_vocab_size(),
        "hidden_size": TEXT_DIM,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "pad_token_id": 0,
    }


def tiny_parts(model: str, *, fusion: str | None = None, seed: int = 0) -> EncoderParts:
    """An encoder in memory; LayerNorms of query and document towers differ, as after training."""
    methods = {"bibert": "none", "clip": "none", "3tmm": "mlp", "4tmm": "concat", "match3": "sum", "match4": "sum"}
    match_dim = {"dim": 12, "product_text_weight": 0.3} if model in ("match3", "match4") else {}
    architecture = EncoderArchitecture(
        model=model,
        text=None
        if model == "clip"
        else TextArchitecture(config=tiny_bert_config(), pooling="mean", max_tokens=MAX_TOKENS, projection_dim=12),
        clip=None
        if model == "bibert"
        else ClipArchitecture(model_config=CLIP_MODEL_CONFIG, preprocessing=PREPROCESSING),
        fusion=FusionSpec(method=fusion or methods[model], hidden=24, alpha=0.7, **match_dim),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = EncoderModel(architecture)
        with torch.no_grad():
            for name, weight in encoder.named_parameters():
                if "LayerNorm" in name or "photo_text_fusion" in name:
                    weight.add_(0.2 * torch.randn_like(weight))
    return EncoderParts(
        model=encoder,
        tokenizer=FastTokenizer(tiny_tokenizer(), max_tokens=MAX_TOKENS) if architecture.text else None,
        clip_tokenizer=clip_tokenizer(CLIP_MODEL_CONFIG["text_cfg"]) if architecture.uses_clip_text else None,
    )


def save_tiny_encoder(folder: Path, *, model: str = "3tmm", fusion: str | None = None, seed: int = 0) -> EncoderConfig:
    """Saves a tiny encoder at `folder` and returns the config that names it, in one precision on every machine."""
    save_encoder(tiny_parts(model, fusion=fusion, seed=seed), str(folder))
    return EncoderConfig(uri=str(folder), batch_size=4, device="cpu", precision="float32")


def save_tiny_bert(folder: Path, *, seed: int = 0) -> Path:
    """Saves a transformers checkpoint: config.json, model.safetensors, tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = build_backbone(tiny_bert_config())
    (folder / "config.json").write_text(json.dumps({**tiny_bert_config(), "architectures": ["BertModel"]}))
    save_file(backbone.state_dict(), str(folder / "model.safetensors"), metadata={"format": "pt"})
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def save_tiny_clip(folder: Path, *, seed: int = 0) -> Path:
    """Saves an open_clip checkpoint folder: open_clip_config.json, open_clip_model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = build_clip(CLIP_MODEL_CONFIG, with_text=True)
    preprocess = {"mean": list(PREPROCESSING.mean), "std": list(PREPROCESSING.std)}
    config = {"model_cfg": {**CLIP_MODEL_CONFIG, "custom_text": True}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(clip.state_dict(), str(folder / "open_clip_model.safetensors"), metadata={"format": "pt"})
    return folder


def pillow_pixels(image: Image.Image, wishes: ImagePreprocessing) -> np.ndarray:
    """Resized by Pillow, as open_clip does, and cut as ours; uint8 `[3, S, S]`."""
    resampling = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[wishes.interpolation]
    image = image.resize(preprocessing._resized_size(*image.size, wishes), resampling).convert("RGB")
    return preprocessing._centre_crop_or_pad(np.asarray(image).transpose(2, 0, 1), wishes)


def random_picture(seed: int, size: tuple[int, int] = (20, 17)) -> Image.Image:
    """A picture of noise, width and height as given."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)
