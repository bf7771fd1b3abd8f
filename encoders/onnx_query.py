"""Query encoders on ONNX Runtime: what `onnx_export` wrote, run on CPUs. Imports no torch.

Legend: B queries, D fused dimension.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from encoders.checkpoint import local_folder, read_config
from encoders.errors import CheckpointError
from encoders.preprocessing import ImagePreprocessing, resize_picture
from encoders.query_batches import encode_queries
from encoders.tokenizers import FastTokenizer, TextTokenizer, clip_tokenizer

SCHEMA_VERSION = 1
CONFIG = "onnx.json"


class OnnxQueryEncoder:
    """The query side, as `QueryEncoder` gives it, with its attributes, in float32. Threads may share it.

    Args:
        folder: Of exported graphs.
        threads: Threads of one graph's run; None lets ONNX Runtime take one a core.
        batch_size: Texts or images a run.
    """

    def __init__(self, folder: Path, *, threads: int | None = None, batch_size: int = 64) -> None:
        values = read_config(folder / CONFIG)
        if values.get("schema_version") != SCHEMA_VERSION:
            raise CheckpointError(
                f"{folder / CONFIG} has schema_version {values.get('schema_version')!r}: this Shelfmark reads "
                f"{SCHEMA_VERSION}; export the encoder again"
            )
        self.folder = folder
        self.model: str = values["model"]
        self.dim: int = values["dim"]
        self.fingerprint: str = values["fingerprint"]
        self.accepts_text: bool = values["accepts_text"]
        self.accepts_images: bool = values["accepts_images"]
        self.image_weight: float = values["image_weight"]
        self.preprocessing: ImagePreprocessing | None = None
        if values["preprocessing"] is not None:
            self.preprocessing = ImagePreprocessing.from_dict(values["preprocessing"])
        self._batch_size = batch_size
        self._graphs = {path.stem: _session(path, threads) for path in sorted(folder.glob("*.onnx"))}
        wanted = {"fuse_text": self.accepts_text, "image": self.accepts_images, "fuse_photo": self.accepts_images}
        missing = [name for name, needed in wanted.items() if needed and name not in self._graphs]
        if missing:
            raise CheckpointError(f"no {missing[0]}.onnx in {folder}: the export is incomplete, export it again")
        self._tokenizers: dict[str, TextTokenizer] = {}
        if "query_text" in self._graphs:
            tokenizer = FastTokenizer.load(folder / "text_tower", max_tokens=values["text_max_tokens"])
            self._tokenizers["query_text"] = tokenizer
        if "clip_text" in self._graphs:
            self._tokenizers["clip_text"] = _clip_tokenizer(folder / "clip_tokenizer", **values["clip_text"])

    def encode(
        self, texts: Sequence[str | None] | None = None, images: Sequence[Image.Image | None] | None = None
    ) -> np.ndarray:
        """Encodes B queries, as `QueryEncoder.encode` does: float32 `[B, D]`, L2-normalised.

        Raises:
            ValueError: Lengths differ, a query is empty, or it is of a kind that this encoder does not take.
        """
        return encode_queries(
            texts,
            images,
            dim=self.dim,
            encode_texts=self._encode_texts,
            encode_images=self._encode_images,
            fuse_both=self._fuse_both,
        )

    def _encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        if not self.accepts_text:
            raise ValueError(f"a {self.model} encoder takes no texts as queries: expected pictures only")
        return self._run("fuse_text", *(self._run_texts(name, texts) for name in self._tokenizers))

    def _run_texts(self, name: str, texts: Sequence[str]) -> np.ndarray:
        batches = [
            (rows, self._run(name, ids, mask))
            for rows, ids, mask in self._tokenizers[name].tokenize(texts).batches(self._batch_size)
        ]
        order = np.concatenate([rows for rows, _ in batches])
        return np.concatenate([vectors for _, vectors in batches])[np.argsort(order)]

    def _encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        preprocessing = self.preprocessing
        if not self.accepts_images or preprocessing is None:
            raise ValueError(f"a {self.model} encoder takes no pictures as queries: expected texts only")
        vectors = []
        for start in range(0, len(images), self._batch_size):
            batch = images[start : start + self._batch_size]
            vectors.append(self._run("image", np.stack([resize_picture(image, preprocessing) for image in batch])))
        return self._run("fuse_photo", np.concatenate(vectors))

    def _fuse_both(self, text: np.ndarray, image: np.ndarray) -> np.ndarray:
        return self._run("fuse_both", text, image, np.float32(self.image_weight))

    def _run(self, name: str, *inputs: np.ndarray | np.float32) -> np.ndarray:
        session = self._graphs[name]
        # An input that the model makes no use of (CLIP's mask) is no input of the graph.
        given = {f"input_{number}": np.asarray(value) for number, value in enumerate(inputs)}
        (vectors,) = session.run(None, {node.name: given[node.name] for node in session.get_inputs()})
        return vectors


def load_onnx_query_encoder(uri: str, *, threads: int | None = None) -> OnnxQueryEncoder:
    """Loads what `export_onnx` wrote.

    Args:
        uri: The folder: local path, `package://` or fsspec URI.
        threads: Threads of one graph's run; None: one a core.

    Raises:
        CheckpointError: No export there, an incomplete one, or one of another schema version.
    """
    return OnnxQueryEncoder(local_folder(uri), threads=threads)


def _session(path: Path, threads: int | None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library raises classes of its C++ side, without a common root
        raise CheckpointError(f"{path} cannot be loaded by ONNX Runtime: {error}; export the encoder again") from error


def _clip_tokenizer(
    folder: Path, *, tokenizer: str, text_cfg: dict, cleaning: str = "lower", dropped_id: int | None = None
) -> TextTokenizer:
    if tokenizer == "bpe":
        return FastTokenizer.load(folder, max_tokens=int(text_cfg.get("context_length", 77)), cleaning=cleaning)
    if tokenizer == "padded":
        return FastTokenizer.load(folder, max_tokens=None, cleaning=cleaning, dropped_id=dropped_id)
    return clip_tokenizer(text_cfg, folder)
