"""The names that people import are a promise: each room hands on these, and every one can be imported."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

PUBLIC_NAMES = {
    "encoders": {
        "CheckpointError", "EncoderConfig", "EncoderConfigError", "EncoderDescription", "EncoderError", "FusionSpec",
        "ImageDecodingError", "ImagePreprocessing", "OnnxQueryEncoder", "ProductEncoder", "QueryEncoder", "TowerSpec",
        "check_encoder", "decide_precision", "export_onnx", "image_pixels", "load_onnx_query_encoder",
        "load_product_encoder", "load_query_encoder", "save_encoder", "save_query_encoder",
    },
    "index_builder": {
        "CodecMismatchError", "EmbeddingShardError", "FilterError", "IndexBuilderError", "IndexConfig", "IndexReader",
        "IndexSpec", "Manifest", "ManifestError", "MissingFileError", "SearchResult", "SpecError", "StorageError",
        "TrainingError", "VerificationError", "VersionNotFoundError",
    },
    "pipelines.config": {"ConfigError", "run_command"},
}  # fmt: skip


@pytest.mark.parametrize("room", PUBLIC_NAMES)
def test_a_room_hands_on_exactly_these_names(room: str) -> None:
    module = importlib.import_module(room)
    assert set(module.__all__) == PUBLIC_NAMES[room]
    for name in PUBLIC_NAMES[room]:
        assert getattr(module, name) is not None


@pytest.mark.parametrize("room", PUBLIC_NAMES)
def test_a_name_that_is_not_there_is_an_attribute_error(room: str) -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        getattr(importlib.import_module(room), "Nonsense")  # noqa: B009


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("encoders", ["torch", "transformers", "open_clip", "faiss", "apache_beam"]),
        ("index_builder", ["torch", "faiss", "apache_beam"]),
        ("pipelines.config.command_line", ["torch", "faiss", "apache_beam"]),
    ],
)
def test_importing_a_room_is_cheap(module: str, heavy: list[str]) -> None:
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
