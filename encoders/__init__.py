"""Towers and fusion, and the product and query encoders made of them, turn texts and images into vectors.

    config = EncoderConfig(uri="package://encoders/pretrained/demo")
    description = check_encoder(config)              # before any work: dim, fingerprint, what it reads
    products = load_product_encoder(config)          # ProductEncoder: texts and images -> vectors
    save_query_encoder(config, "query_encoder")      # what a server needs
    queries = load_query_encoder("query_encoder")    # QueryEncoder: encode(texts=None, images=None) -> [B, D]
    export_onnx("query_encoder", "onnx_encoder")     # the same as graphs, for CPU servers; needs the extra `onnx`
    queries = load_onnx_query_encoder("onnx_encoder")    # OnnxQueryEncoder: the same encode(), without torch

Naming an encoder and describing its images needs no torch; the names that do are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from encoders.config import EncoderConfig, FusionSpec, TowerSpec
from encoders.errors import CheckpointError, EncoderConfigError, EncoderError, ImageDecodingError
from encoders.image_decoding import image_pixels
from encoders.preprocessing import ImagePreprocessing

if TYPE_CHECKING:
    from encoders.encoder import ProductEncoder, QueryEncoder
    from encoders.onnx_export import export_onnx
    from encoders.onnx_query import OnnxQueryEncoder, load_onnx_query_encoder
    from encoders.saved_encoder import (
        EncoderDescription,
        check_encoder,
        decide_precision,
        load_product_encoder,
        load_query_encoder,
        save_encoder,
        save_query_encoder,
    )

_LOADED_ON_FIRST_USE = {
    **dict.fromkeys(("ProductEncoder", "QueryEncoder"), "encoders.encoder"),
    **dict.fromkeys(("EncoderDescription", "check_encoder", "save_encoder"), "encoders.saved_encoder"),
    "decide_precision": "encoders.saved_encoder",
    **dict.fromkeys(("load_product_encoder", "load_query_encoder", "save_query_encoder"), "encoders.saved_encoder"),
    **dict.fromkeys(("OnnxQueryEncoder", "load_onnx_query_encoder"), "encoders.onnx_query"),
    "export_onnx": "encoders.onnx_export",
}

__all__ = [
    "CheckpointError", "EncoderConfig", "EncoderConfigError", "EncoderDescription", "EncoderError", "FusionSpec",
    "ImageDecodingError", "ImagePreprocessing", "OnnxQueryEncoder", "ProductEncoder", "QueryEncoder", "TowerSpec",
    "check_encoder", "decide_precision", "export_onnx", "image_pixels", "load_onnx_query_encoder",
    "load_product_encoder", "load_query_encoder", "save_encoder", "save_query_encoder",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LOADED_ON_FIRST_USE:
        return getattr(import_module(_LOADED_ON_FIRST_USE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
