"""The annotator: a function of the user's that labels pairs which no file labels.

    # my_shop/relevance.py
    def annotate(pairs):  # a list of (query, product)
        return ["Exact" if query.text in product["text"] else "Irrelevant" for query, product in pairs]

    python -m pipelines.evaluate ... --evaluation.annotator my_shop.relevance:annotate

`query` is an `AnnotatedQuery`. `product` is a dict: `product_id`, `text` (what the text tower reads), `picture` (path,
URI, bytes or None), and the catalog's display and filter fields. The function returns one label a pair: E, S, C, I,
words, or numbers; None for a pair that it cannot judge. It may call a model or a service; what it raises ends the run,
and what was labelled until then is kept.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.config.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedQuery:
    """A query as an annotator sees it.

    Attributes:
        query_id: Its id.
        text: Its text, None for a query that is a picture only.
        picture: Its picture: path or URI as the queries file has it, bytes, or None.
    """

    query_id: str
    text: str | None
    picture: str | bytes | None


ProductRecord = dict[str, Any]
Annotator = Callable[[Sequence[tuple[AnnotatedQuery, ProductRecord]]], Sequence[Any]]


def load_annotator(name: str) -> Annotator:
    """The function behind `module:function`; the module may stand in the working folder.

    Raises:
        ConfigError: There is no such module or function.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"evaluation.annotator is {name!r}: no module {error.name!r}; expected module:function, the module "
            "installed or in the working folder"
        ) from error
    function = getattr(found, attribute, None)
    if not callable(function):
        raise ConfigError(f"evaluation.annotator is {name!r}: module {module_name!r} has no function {attribute!r}")
    return function


def annotate_batch(
    annotator: Annotator, name: str, pairs: Sequence[tuple[AnnotatedQuery, ProductRecord]]
) -> list[str | None]:
    """One label a pair, as text; None where the annotator gives none.

    Raises:
        ConfigError: It gives another number of labels, or something that is no label.
    """
    given = annotator(pairs)
    try:
        labels = [given] if isinstance(given, str) else list(given)
    except TypeError as error:
        raise ConfigError(
            f"evaluation.annotator {name}: expected a list of {len(pairs)} labels, found {type(given).__name__}"
        ) from error
    if len(labels) != len(pairs):
        raise ConfigError(
            f"evaluation.annotator {name}: expected {len(pairs)} labels for a batch of {len(pairs)} pairs, found "
            f"{len(labels)}"
        )
    return [_label_text(label, name) for label in labels]


def _label_text(label: Any, name: str) -> str | None:
    if label is None or (isinstance(label, str) and label.strip()):
        return label
    if isinstance(label, (int, float)) and not isinstance(label, bool) and label == label:
        return f"{label:g}"
    raise ConfigError(f"evaluation.annotator {name}: expected a label that is text, a number or None, found {label!r}")
