"""Query encoders run on ONNX Runtime: what `onnx_export` wrote, on CPUs. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np
import onnxruntime

from encoders.checkpoint import local_folder, read_config
from encoders.errors import CheckpointError
from encoders.image_decoding import AnyImage, image_pixels
from encoders.preprocessing import ImagePreprocessing
from encoders.query_batches import BaseQueryEncoder
from encoders.tokenizers import FastTokenizer, TextTokenizer, clip_tokenizer

SCHEMA_VERSION = 1
CONFIG = "onnx.json"
Layout = Literal["files", "triton"]


def graph_path(folder: Path, name: str, layout: Layout) -> Path:
    """Where a graph lies in an export."""
    return folder / "models" / name / "1" / "model.onnx" if layout == "triton" else folder / f"{name}.onnx"


class OnnxQueryEncoder(BaseQueryEncoder):
    """The query side of exported graphs, in float32, `batch_size` texts or images a run. Threads may share it."""

    def __init__(self, folder: Path, *, threads: int | None = None, batch_size: int = 64) -> None:
        values = read_config(folder / CONFIG)
        if values.get("schema_version") != SCHEMA_VERSION:
            raise CheckpointError(
                f"{folder / CONFIG} has schema_version {values.get('schema_version')!r}: this Shelfmark reads "
                f"{SCHEMA_VERSION}; export the encoder again"
            )
        self.folder = folder
        self.model, self.dim, self.fingerprint = values["model"], values["dim"], values["fingerprint"]
        self.accepts_text, self.accepts_images = values["accepts_text"], values["accepts_images"]
        self.image_weight = values["image_weight"]
        preprocessing = values["preprocessing"]
        self.preprocessing = None if preprocessing is None else ImagePreprocessing.from_dict(preprocessing)
        self._batch_size = batch_size
        layout: Layout = "triton" if (folder / "models").is_dir() else "files"
        names = [path.stem for path in sorted(folder.glob("*.onnx"))]
        if layout == "triton":
            names = sorted(path.name for path in (folder / "models").iterdir())
        self._graphs = {name: _session(graph_path(folder, name, layout), threads) for name in names}
        wanted = {"fuse_text": self.accepts_text, "image": self.accepts_images, "fuse_photo": self.accepts_images}
        missing = [name for name, needed in wanted.items() if needed and name not in self._graphs]
        if missing:
            raise CheckpointError(f"no {missing[0]}.onnx in {folder}: the export is incomplete, export it again")
        self._tokenizers: dict[str, TextTokenizer] = {}
        if "query_text" in self._graphs:
            max_tokens = values["text_max_tokens"]
            self._tokenizers["query_text"] = FastTokenizer.load(folder / "text_tower", max_tokens=max_tokens)
        if "clip_text" in self._graphs:
            self._tokenizers["clip_text"] = _clip_tokenizer(folder / "clip_tokenizer", **values["clip_text"])

    def _encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self._run("fuse_text", *(self._run_texts(name, texts) for name in self._tokenizers))

    def _run_texts(self, name: str, texts: Sequence[str]) -> np.ndarray:
        batches = list(self._tokenizers[name].tokenize(texts).batches(self._batch_size))
        vectors = np.concatenate([self._run(name, ids, mask) for _, ids, mask in batches])
        return vectors[np.argsort(np.concatenate([rows for rows, _, _ in batches]))]

    def _encode_images(self, images: Sequence[AnyImage]) -> np.ndarray:
        preprocessing = cast(ImagePreprocessing, self.preprocessing)  # `encode` asks only where images are accepted
        vectors = []
        for start in range(0, len(images), self._batch_size):
            batch = images[start : start + self._batch_size]
            pixels = [image_pixels(image, preprocessing, library="numpy") for image in batch]
            vectors.append(self._run("image", np.stack(pixels)))
        return self._run("fuse_photo", np.concatenate(vectors))

    def _fuse_both(self, text: np.ndarray, image: np.ndarray, image_weight: float) -> np.ndarray:
        return self._run("fuse_both", text, image, np.float32(image_weight))

    def _run(self, name: str, *inputs: np.ndarray | np.float32) -> np.ndarray:
        session = self._graphs[name]
        # An input that the model makes no use of (CLIP's mask) is no input of the graph.
        given = {f"input_{number}": np.asarray(value) for number, value in enumerate(inputs)}
        (vectors,) = session.run(None, {node.name: given[node.name] for node in session.get_inputs()})
        return vectors


def load_onnx_query_encoder(uri: str, *, threads: int | None = None) -> OnnxQueryEncoder:
    """Loads what `export_onnx` wrote at a local path, `package://` or fsspec URI; CheckpointError where it cannot.

    `threads` are those of one graph's run; None lets ONNX Runtime take one a core.
    """
    return OnnxQueryEncoder(local_folder(uri), threads=threads)


def _session(path: Path, threads: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    # Threads that wait sleep: spinning costs a query of a few words as much again, and takes cores from other queries.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library raises classes of its C++ side, without a common root
        raise CheckpointError(f"{path} cannot be loaded by ONNX Runtime: {error}; export the encoder again") from error


def _clip_tokenizer(
    folder: Path, *, tokenizer: str, text_cfg: dict, cleaning: str = "lower", dropped_id: int | None = None
) -> TextTokenizer:
    if tokenizer == "open_clip":
        return clip_tokenizer(text_cfg, folder)
    max_tokens = int(text_cfg.get("context_length", 77)) if tokenizer == "bpe" else None
    return FastTokenizer.load(folder, max_tokens=max_tokens, cleaning=cleaning, dropped_id=dropped_id)
