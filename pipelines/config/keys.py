"""The keys of a config tree: dotted name, declared type, default and one line of help.

The help of a key is its entry in the ``Attributes:`` section of the docstring of the dataclass that owns it, so the
text that a reader of the code sees and the one that ``--help`` prints are the same.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import types
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_ATTRIBUTE = re.compile(r"^(\w+)(?: \([^)]*\))?:\s*(.*)$")
_SCALAR_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ConfigKey:
    """One leaf of a config tree.

    Attributes:
        name: Dotted name, such as ``index.serving_shards``.
        type: Declared type, resolved.
        default: Default value; ``dataclasses.MISSING`` for a key that must be given.
        help: One line for people; empty where the owner wrote none.
    """

    name: str
    type: Any
    default: Any
    help: str


def list_keys(config_type: type, *, prefix: str = "") -> tuple[ConfigKey, ...]:
    """List every leaf key below a config dataclass, in declaration order.

    A nested dataclass contributes its own keys; an optional one (``TowerSpec | None``) also stands for itself, because
    it can be set to null as a whole.
    """
    keys: list[ConfigKey] = []
    hints = get_type_hints(config_type)
    helps = attribute_helps(config_type)
    for field in dataclasses.fields(config_type):
        name, declared = prefix + field.name, hints[field.name]
        nested = nested_dataclass(declared)
        if nested is None or is_optional(declared):
            keys.append(ConfigKey(name=name, type=declared, default=_default_of(field), help=helps.get(field.name, "")))
        if nested is not None:
            keys.extend(list_keys(nested, prefix=f"{name}."))
    return tuple(keys)


def nested_dataclass(declared: Any) -> type | None:
    """The dataclass that a declared type holds, itself or in an optional; None where it holds none."""
    for option in union_options(declared):
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return option
    return None


def listed_dataclass(declared: Any) -> type | None:
    """The dataclass that a declared list (a tuple of any length) holds; None where it holds none."""
    for option in union_options(declared):
        if get_origin(option) is tuple:
            return nested_dataclass(get_args(option)[0])
    return None


def is_optional(declared: Any) -> bool:
    """Whether null is a value of the declared type."""
    return type(None) in union_options(declared)


def union_options(declared: Any) -> tuple[Any, ...]:
    """The members of a union; a type that is none stands alone."""
    if get_origin(declared) in (Union, types.UnionType):
        return get_args(declared)
    return (declared,)


def describe_type(declared: Any) -> str:
    """Say in words what a declared type accepts, such as ``text or a list of text``."""
    return " or ".join(_describe_option(option) for option in union_options(declared))


def attribute_helps(config_type: type) -> dict[str, str]:
    """First sentence of each entry in the ``Attributes:`` section of a class's docstring."""
    texts: dict[str, list[str]] = {}
    name = ""
    for line in _attribute_lines(inspect.getdoc(config_type) or ""):
        entry = _ATTRIBUTE.match(line)
        if entry:
            name = entry[1]
            texts[name] = [entry[2]]
        elif name:
            texts[name].append(line.strip())
    return {name: _first_sentence(" ".join(parts)) for name, parts in texts.items()}


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str = "--help lists what is known.") -> str:
    """A closing sentence that names the known name most like a wrong one; where none is like it, another sentence."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else otherwise


def _attribute_lines(doc: str) -> Iterator[str]:
    """The lines of the ``Attributes:`` section, taken out by its own indentation of four spaces."""
    inside = False
    for line in doc.splitlines():
        if line.strip() == "Attributes:" and not line.startswith(" "):
            inside = True
        elif inside and line and not line.startswith(" "):
            return
        elif inside:
            yield line[4:]


def _first_sentence(text: str) -> str:
    text = " ".join(text.split()).replace("`", "")
    return re.split(r"(?<=[a-z)\]0-9][.])\s+(?=[A-Z])", text, maxsplit=1)[0]


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _describe_option(option: Any) -> str:
    if option in _SCALAR_WORDS:
        return _SCALAR_WORDS[option]
    origin, arguments = get_origin(option), get_args(option)
    if origin is Literal:
        return "one of " + ", ".join(str(value) for value in arguments)
    if origin in (tuple, list):
        return f"a list of {_describe_option(arguments[0])}"
    if isinstance(option, type) and dataclasses.is_dataclass(option):
        return "a mapping with the keys " + ", ".join(field.name for field in dataclasses.fields(option))
    if origin is dict or option is dict:
        return "a mapping"
    return str(option)
