"""From plain data to a checked config object: every mistake found, each said in one sentence.

Unknown keys are found here; types are checked by pydantic over the standard-library dataclasses, strictly (text is no
number, though a whole number is a number); what a section demands of its values is checked by its own `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

import pydantic

from pipelines.config.errors import ConfigError
from pipelines.config.keys import describe_type, did_you_mean, list_keys, listed_dataclass, nested_dataclass

Config = TypeVar("Config")
_LEADING_NAME = re.compile(r"^([a-z_][a-z0-9_.]*)\b")
_KINDS = {bool: "true or false", str: "text", int: "a number", float: "a number", list: "a list", dict: "a mapping"}


def build_config(
    config_type: type[Config],
    data: Mapping[str, Any],
    *,
    origins: Mapping[str, str],
    other_sections: Collection[str] = (),
) -> Config:
    """Build a config object from nested mappings.

    Args:
        config_type: A frozen dataclass of sections.
        data: What files and command line gave, nested.
        origins: Dotted key -> where it was given, for messages.
        other_sections: Top-level sections that belong to other commands; left out without a word.

    Raises:
        ConfigError: With every problem: unknown keys, missing keys, wrong types, values that a section refuses.
    """
    known = {key: value for key, value in data.items() if key not in other_sections}
    problems = list(_unknown_keys(config_type, known, origins))
    known = _with_required_sections(config_type, known)
    try:
        text = json.dumps(known)
    except (TypeError, ValueError) as error:
        raise ConfigError([*problems, f"only text, numbers, true, false, null, lists and mappings: {error}"]) from error
    try:
        # Strict JSON is what we want: lists become tuples, mappings become dataclasses, and no scalar is converted.
        config = pydantic.TypeAdapter(config_type).validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        problems += _describe_errors(config_type, known, error, origins)
        raise ConfigError(problems) from error
    if problems:
        raise ConfigError(problems)
    return config


def _unknown_keys(
    config_type: type, data: Mapping[Any, Any], origins: Mapping[str, str], prefix: str = "", root: type | None = None
) -> Iterator[str]:
    """One sentence for each key that no dataclass of the tree knows."""
    root = root or config_type
    hints = get_type_hints(config_type)
    for key, value in data.items():
        name = f"{prefix}{key}"
        if key not in hints:
            names = {prefix + sibling for sibling in hints} | {known.name for known in list_keys(root)}
            yield f"{_place(name, origins)}unknown key {name}. {did_you_mean(name, names)}"
            continue
        nested = nested_dataclass(hints[key])
        if nested is not None and isinstance(value, Mapping):
            yield from _unknown_keys(nested, value, origins, f"{name}.", root)
        listed = listed_dataclass(hints[key])
        if listed is not None and isinstance(value, Sequence):
            for place, item in enumerate(value):
                if isinstance(item, Mapping):
                    yield from _unknown_keys(listed, item, origins, f"{name}[{place}].", listed)


def _with_required_sections(config_type: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """Give every section that must be there an empty mapping, so that its missing keys are named one by one."""
    hints = get_type_hints(config_type)
    empty: dict[str, Any] = {
        field.name: {}
        for field in dataclasses.fields(config_type)
        if dataclasses.is_dataclass(hints[field.name])
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    }
    given = {key: value for key, value in data.items() if not (key in empty and value is None)}
    return {**empty, **given}


def _describe_errors(
    config_type: type, data: Mapping[str, Any], error: pydantic.ValidationError, origins: Mapping[str, str]
) -> list[str]:
    problems: dict[str, None] = {}
    for item in error.errors(include_url=False):
        name, declared = _locate(config_type, item["loc"])
        if item["type"] == "value_error":
            problems[_describe_refusal(name, declared, str(item["ctx"]["error"]), origins)] = None
        elif item["type"] == "missing":
            wanted = f"{name}: missing; expected {describe_type(declared)}; set it in the YAML or with --{name}"
            problems[wanted] = None
        else:
            found = _value_at(data, name)
            problems[
                f"{_place(name, origins)}{name}: expected {describe_type(declared)}, found {_describe_value(found)}"
                f"{_number_hint(found, declared)}"
            ] = None
    return list(problems)


def _locate(config_type: type, location: tuple[int | str, ...]) -> tuple[str, Any]:
    """Follow an error's location down the dataclasses: dotted key and its declared type."""
    names: list[str] = []
    declared: Any = config_type
    for part in location:
        listed = listed_dataclass(declared)
        if listed is not None and isinstance(part, int):
            names[-1] += f"[{part}]"
            declared = listed
            continue
        nested = nested_dataclass(declared)
        if nested is None:
            break
        hints = get_type_hints(nested)
        if part not in hints:
            continue  # pydantic names the branch of a union; the key is what people know
        declared = hints[str(part)]
        names.append(str(part))
    return ".".join(names), declared


def _describe_refusal(section: str, declared: Any, message: str, origins: Mapping[str, str]) -> str:
    """A section's own refusal, under the full name of the key that it speaks of, with that key's place.

    A section may call its keys by their bare name (``hidden``), or with some of the names above (``fusion.hidden``).
    """
    speaks_of = _LEADING_NAME.match(message)
    nested = nested_dataclass(declared)
    if speaks_of is None or nested is None:
        return f"{_place(section, origins)}{section}: {message}"
    name = speaks_of[1]
    above = section.split(".")
    for start in range(len(above)):
        name = name.removeprefix(".".join(above[start:]) + ".")
    if name.split(".")[0] not in get_type_hints(nested):
        return f"{_place(section, origins)}{section}: {message}"
    full_name = f"{section}.{name}" if section else name
    return f"{_place(full_name, origins)}{full_name}{message[speaks_of.end() :]}"


def _place(name: str, origins: Mapping[str, str]) -> str:
    """Where a key was given, or the nearest mapping above it that was given."""
    while name and name not in origins:
        name = name[: max(name.rfind("."), name.rfind("["), 0)]
    return f"{origins[name]}: " if name else ""


def _value_at(data: Any, name: str) -> Any:
    for part in re.findall(r"[^.\[\]]+", name):
        if isinstance(data, list):
            data = data[int(part)]
        else:
            data = data.get(part) if isinstance(data, Mapping) else None
    return data


def _describe_value(value: Any) -> str:
    if value is None:
        return "null"
    text = json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return text if isinstance(value, bool) else f"{text} ({_KINDS[type(value)]})"


def _number_hint(value: Any, declared: Any) -> str:
    """YAML reads 1e-3 as text; say so where that is what happened."""
    if "number" not in describe_type(declared) or not isinstance(value, str):
        return ""
    try:
        float(value)
    except ValueError:
        return ""
    return "; write numbers without quotes, and exponents with a point (1.0e-3)"
