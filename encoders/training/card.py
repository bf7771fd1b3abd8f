"""The model card of a trained encoder: `README.md` in its folder, as model hubs show one.

The front matter is Hugging Face's (https://huggingface.co/docs/hub/model-cards). What only its owner can say, such as
the licence of the data, is left to add.
"""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from encoders.architecture import EncoderArchitecture
from encoders.config import EncoderConfig
from encoders.training.config import SmallEncoderConfig

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_MEASURED = re.compile(r"validation_(recall@\d+)")
_SHOWN = (
    "epochs", "batch_size", "learning_rate", "temperature", "tuned", "negatives", "mine_from", "label_weights",
    "matryoshka", "dropped_weight", "drop_image", "drop_text", "seed",
)  # fmt: skip


def model_card(
    name: str,
    architecture: EncoderArchitecture,
    note: dict[str, Any],
    *,
    data: str,
    start: EncoderConfig | None,
    small: SmallEncoderConfig,
) -> str:
    """The card as Markdown; equal arguments give equal text.

    Args:
        name: Of the encoder's folder.
        note: The training note that stands in `encoder.json`.
        data: Where the pairs came from.
        start: What training started from; None: an encoder put together as `small` says.
    """
    measured = {found[1]: value for key, value in note.items() if (found := _MEASURED.fullmatch(key))}
    results = [
        EvalResult(
            task_type="text-retrieval",
            task_name="Product search",
            dataset_type=data,
            dataset_name="held-out pairs",
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in measured.items()
    ]
    bases = _bases(start, small)
    front = ModelCardData(
        library_name="shelfmark",
        pipeline_tag="image-feature-extraction" if architecture.model == "match3" else "feature-extraction",
        tags=["product-search", "retrieval", *(["multimodal"] if architecture.uses_images else []), architecture.model],
        base_model=[base for base in bases if _HUB_NAME.fullmatch(base)] or None,
        model_name=name if results else None,
        eval_results=results or None,
        ignore_metadata_errors=False,
    )
    pictures = architecture.uses_images
    reads = ["texts"] * architecture.uses_text + ["pictures"] * pictures
    asked = ["a text"] * architecture.query_takes_text + ["a picture"] * pictures
    call = 'encode(["red dress"])' if architecture.query_takes_text else 'encode(images=["photo.jpg"])'
    settings = note["settings"]
    shown = {key: settings[key] for key in _SHOWN if settings.get(key) not in (None, [], {}, 0.0)}
    rows = "\n".join(f"| {key} | `{value}` |" for key, value in shown.items())
    figures = "\n".join(f"| {metric} | {100 * value:.1f} % |" for metric, value in measured.items())
    blocks = [
        f"---\n{front.to_yaml()}\n---",
        f"# {name}",
        f"A Shelfmark `{architecture.model}` encoder: products ({' and '.join(reads)}) and queries "
        f"({' or '.join(asked)}) become vectors of {architecture.dim} dimensions, whose inner product is the score.",
        "## Use",
        "```yaml\n# in the config of pipelines.embed_catalog\nencoder:\n  uri: PATH_OF_THIS_FOLDER\n```",
        "```python\nfrom encoders import load_query_encoder\n\n"
        f'vectors = load_query_encoder("PATH_OF_THIS_FOLDER").{call}\n```',
        f"A product that lacks a half: {architecture.missing_rule}.",
    ]
    if settings.get("matryoshka"):
        dims = ", ".join(map(str, settings["matryoshka"]))
        blocks.append(f"The first {dims} dimensions stand alone too (`encoder.dim`).")
    blocks += [
        "## Training",
        f"{note['pairs']:,} pairs of a query and a product, {note['products']:,} products, out of `{data}`; started "
        f"from {', '.join(f'`{base}`' for base in bases) or 'nothing'}.",
        f"| setting | value |\n|---|---|\n{rows}",
    ]
    blocks += [f"```\n{note['command']}\n```"] if note.get("command") else []
    blocks.append("## Evaluation")
    if measured:
        blocks += [
            "Held-out pairs, by exact search over "
            + ("the whole catalog" if settings["validation_candidates"] == "all" else "the held-out products")
            + f"; they chose step {note['step']:,} of the training, so a test set would find somewhat less:",
            f"| | |\n|---|---|\n{figures}",
        ]
    else:
        blocks.append("Nothing was held out, so nothing was measured: `python -m pipelines.evaluate`.")
    blocks += [
        "## Limits",
        "It knows the products and queries that it was trained on, their language and their kinds. Licence and origin "
        "of the training data are not stated here: add them before you share it.",
    ]
    return "\n\n".join(blocks) + "\n"


def _bases(start: EncoderConfig | None, small: SmallEncoderConfig) -> list[str]:
    if start is None:
        return [base for base in (small.text_from, small.clip_from) if base is not None]
    if start.uri is not None:
        return [start.uri]
    return [tower.checkpoint.removeprefix("hf-hub:") for tower in (start.text_tower, start.clip_tower) if tower]
