"""Query encoders are written as ONNX graphs, for servers that search on CPUs without torch.

A folder of them (schema version 1):

    onnx.json            model, dim, fingerprint of the products' encoder, preprocessing, what can be a query
    query_text.onnx      ids int64 [B, L], mask bool [B, L] -> BERT's vector
    clip_text.onnx       ids int64 [B, L], mask bool [B, L] -> CLIP's text vector
    image.onnx           pixels uint8 [B, 3, S, S] -> the image's vector
    fuse_text.onnx       the text towers' vectors -> query vector [B, D] of a text
    fuse_photo.onnx      the image's vector -> query vector of a photo
    fuse_both.onnx       both query vectors and image_weight float32 [] -> query vector of a photo and a text
    text_tower/, clip_tokenizer/    tokenizers

With `layout="triton"` the graphs lie as NVIDIA Triton and OpenVINO Model Server take them, `models/NAME/1/model.onnx`,
each with Triton's `config.pbtxt`; `ovms.json` lists them for the other. Tokenizers and `onnx.json` stay for the caller,
who makes ids and pixels.

Graphs that the model has no use for are left out. Needs the extra `onnx`; `onnx_query` runs what this writes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from encoders.checkpoint import local_folder, replaced_folder, write_config
from encoders.errors import CheckpointError
from encoders.model import EncoderModel, EncoderParts
from encoders.onnx_query import CONFIG, SCHEMA_VERSION, Layout, graph_path
from encoders.saved_encoder import load_query_parts
from encoders.tokenizers import FastTokenizer

# Above this a graph's weights stand in a file beside it: one protobuf message ends at 2 GB.
_LARGEST_FILE = 1_500_000_000
_LARGEST_DIFFERENCE = 1e-3
_MOST_AT_ONCE = 64
"""Requests of one shape that Triton puts into one run."""
_BATCH, _TOKENS = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC


class _Call(nn.Module):
    """A function of a model's parts as a module, which is what can be exported."""

    def __init__(self, model: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model  # its weights become the graph's
        self._function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._function(*inputs)


def export_onnx(
    uri: str,
    out: str,
    *,
    image_weight: float | None = None,
    layout: Layout = "files",
    working: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> dict[str, Any]:
    """Writes the query side of a saved encoder, or of a published version's `query_encoder/`, as ONNX graphs.

    Each graph is run and compared with the tower it was made of.

    `uri` is a local path, `package://` or fsspec URI; `out` a local folder, in which an earlier export is replaced;
    `image_weight` that of the image in a query of both, 0 to 1 (None: what the encoder says); `layout` is `triton` for
    a model repository (see the module); `working` is entered once the encoder is loaded and `out` looked at.

    Returns what `onnx.json` holds. Raises CheckpointError where no saved encoder is at `uri`, something else is at
    `out`, or a graph differs from its tower.
    """
    parts, fingerprint = load_query_parts(local_folder(uri))
    with replaced_folder(Path(out), marker=CONFIG, kind="exported encoder") as staged, working():
        names = []
        for name, (module, inputs, shapes) in _graphs(parts.model).items():
            names.append(name)
            path = graph_path(staged, name, layout)
            path.parent.mkdir(parents=True, exist_ok=True)
            _export(module, inputs, shapes, path)
            if layout == "triton":
                config = _triton_config(name, path, batched=all(0 in dimensions for dimensions in shapes))
                (path.parent.parent / "config.pbtxt").write_text(config, encoding="utf-8")
        if layout == "triton":
            served = [{"config": {"name": name, "base_path": f"/models/{name}"}} for name in names]
            write_config(staged / "ovms.json", {"model_config_list": served})
        values = {**_description(parts, fingerprint), "clip_text": _save_tokenizers(parts, staged)}
        values |= {"image_weight": image_weight} if image_weight is not None else {}
        write_config(staged / CONFIG, values)
    return values


_TRITON_TYPES = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
}

_Graph = tuple[nn.Module, tuple[Tensor, ...], tuple[dict[int, Any], ...]]


def _graphs(model: EncoderModel) -> dict[str, _Graph]:
    """Every graph of the query side: module, example inputs, and which of their dimensions may change."""
    architecture, batch = model.architecture, {0: _BATCH}
    graphs: dict[str, _Graph] = {}
    text_dims = []
    for name, tower in (("query_text", model.query_text), ("clip_text", model.clip_text)):
        if tower is not None:
            ids = torch.arange(2 * 5).reshape(2, 5) % 3
            graphs[name] = (tower, (ids, torch.ones_like(ids, dtype=torch.bool)), ({0: _BATCH, 1: _TOKENS},) * 2)
            text_dims.append(tower.dim)
    if text_dims:
        vectors = tuple(torch.randn(2, dim) for dim in text_dims)
        graphs["fuse_text"] = (_Call(model, model.fuse_query), vectors, (batch,) * len(text_dims))
    if model.image is not None and architecture.clip is not None:
        size = architecture.clip.preprocessing.size
        pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
        graphs["image"] = (model.image, (pixels,), (batch,))
        graphs["fuse_photo"] = (_Call(model, model.fuse_photo), (torch.randn(2, model.image.dim),), (batch,))
    if text_dims and model.image is not None:
        halves = nn.functional.normalize(torch.randn(2, 2, architecture.dim), dim=-1)
        both = _Call(model, lambda text, image, weight: model.fuse_photo_text(text, image, image_weight=weight))
        graphs["fuse_both"] = (both, (halves[0], halves[1], torch.tensor(0.5)), (batch, batch, {}))
    return graphs


def _export(module: nn.Module, inputs: tuple[Tensor, ...], shapes: tuple[dict[int, Any], ...], to: Path) -> None:
    options: dict[str, Any] = {
        "input_names": [f"input_{number}" for number in range(len(inputs))],
        "output_names": ["vectors"],
        "dynamic_shapes": (shapes,) if isinstance(module, _Call) else shapes,
        "external_data": sum(weight.nbytes for weight in module.parameters()) > _LARGEST_FILE,
    }
    with _quiet_export(), torch.no_grad():
        torch.onnx.export(module.eval(), inputs, str(to), dynamo=True, verbose=False, **options)
    onnx.checker.check_model(str(to))
    _compare(module, inputs, shapes, to)


def _triton_config(name: str, graph: Path, *, batched: bool) -> str:
    """A model's configuration for Triton, in protobuf's text form, from the inputs and outputs that the graph has.

    https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/model_configuration.html
    """
    read = onnx.load(str(graph), load_external_data=False).graph
    lines = [f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {_MOST_AT_ONCE if batched else 0}"]
    for kind, values in (("input", read.input), ("output", read.output)):
        for value in values:
            # A dimension with a name is one of any size. The first one, the batch, is not said where it is known.
            sizes = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim][1 if batched else 0 :]
            of_type = _TRITON_TYPES[value.type.tensor_type.elem_type]
            shape = f"dims: [ {', '.join(map(str, sizes))} ]" if sizes else "dims: [ 1 ] reshape: { shape: [ ] }"
            lines.append(f'{kind} [ {{ name: "{value.name}" data_type: {of_type} {shape} }} ]')
    return "\n".join([*lines, *(["dynamic_batching { }"] if batched else [])]) + "\n"


def _compare(module: nn.Module, inputs: tuple[Tensor, ...], shapes: tuple[dict[int, Any], ...], graph: Path) -> None:
    """Runs graph and tower on inputs of another size than the graph was traced with; raises where they differ."""
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    for grow in (1, 2):
        # The first batch item alone, then three of them, and texts twice as long.
        tried = []
        for tensor, dimensions in zip(inputs, shapes, strict=True):
            tensor = tensor[:1].repeat(*[2 * grow - 1] + [1] * (tensor.ndim - 1)) if 0 in dimensions else tensor
            tried.append(tensor.repeat(1, grow) if 1 in dimensions else tensor)
        with torch.inference_mode():
            expected = module(*tried)
        (found,) = session.run(None, {f"input_{number}": tensor.numpy() for number, tensor in enumerate(tried)})
        difference = float((torch.from_numpy(found) - expected).abs().max() / expected.abs().max())
        if not difference < _LARGEST_DIFFERENCE:
            raise CheckpointError(
                f"{graph.name} differs from its tower by {difference:.1e} of the largest value, expected less than "
                f"{_LARGEST_DIFFERENCE:.0e}: this tower cannot be exported; please report it with its checkpoint"
            )


def _description(parts: EncoderParts, fingerprint: str) -> dict[str, Any]:
    model, architecture = parts.model, parts.model.architecture
    clip = architecture.clip
    return {
        "schema_version": SCHEMA_VERSION,
        "model": architecture.model,
        "dim": architecture.dim,
        "fingerprint": fingerprint,
        "image_weight": architecture.image_weight,
        "accepts_text": architecture.query_takes_text,
        "accepts_images": model.image is not None,
        "text_max_tokens": architecture.text.max_tokens if architecture.text and model.query_text is not None else None,
        "preprocessing": asdict(clip.preprocessing) if clip is not None else None,
        "made_with": {"torch": torch.__version__, "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__},
    }


def _save_tokenizers(parts: EncoderParts, folder: Path) -> dict[str, Any] | None:
    """Writes the tokenizers of the query side; returns how that of the CLIP text tower is loaded, None without one."""
    if parts.tokenizer is not None and parts.model.query_text is not None:
        (folder / "text_tower").mkdir()
        parts.tokenizer.save(folder / "text_tower")
    tokenizer, clip = parts.clip_tokenizer, parts.model.architecture.clip
    if tokenizer is None or clip is None:
        return None
    (folder / "clip_tokenizer").mkdir()
    tokenizer.save(folder / "clip_tokenizer")
    described: dict[str, Any] = {"tokenizer": "open_clip", "text_cfg": clip.model_config["text_cfg"]}
    if isinstance(tokenizer, FastTokenizer):
        described |= {"tokenizer": "padded" if tokenizer.pads else "bpe", "cleaning": tokenizer.cleaning}
        if tokenizer.pads:
            described["dropped_id"] = tokenizer.dropped_id
    return described


@contextmanager
def _quiet_export() -> Iterator[None]:
    """Keeps the exporter's advice off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
