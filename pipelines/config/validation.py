"""Plain data becomes a checked config, or every mistake in it in one sentence each.

pydantic checks the standard-library dataclasses, strictly: text is no number, though a whole number is a number. What a
section demands of its values is checked by its own `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import re
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import pydantic

Config = TypeVar("Config")
_ATTRIBUTE = re.compile(r"^    (\w+)(?: \([^)]*\))?:(.*(?:\n {8}.*)*)", re.MULTILINE)
_LEADING_NAME = re.compile(r"^([a-z_][a-z0-9_.]*)\b")
_TYPE_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
_VALUE_WORDS = {str: "text", int: "a number", float: "a number", list: "a list", dict: "a mapping"}


class ConfigError(ValueError):
    """A configuration, or a command line, that stops a command before any work.

    Remedy: Correct the keys and options that are named, all at once; `--help` lists them, `--print-config` shows what
        is in force.

    Attributes:
        problems: One sentence for each thing that is wrong: the key, what was expected, what was found and where.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        return "\n  - ".join([f"{len(self.problems)} things are wrong with the configuration", *self.problems])


def build_config(
    config_type: type[Config], data: Mapping[str, Any], *, origins: Mapping[str, str], leave_out: Collection[str] = ()
) -> Config:
    """Build a config object from nested mappings.

    Args:
        data: What files and command line gave, nested.
        origins: Dotted key -> where it was given, for messages.
        leave_out: Top-level sections that belong to other commands.

    Raises:
        ConfigError: With every problem: unknown keys, missing keys, wrong types, values that a section refuses.
    """
    known = _as_meant({key: value for key, value in data.items() if key not in leave_out}, config_type)
    try:
        text = json.dumps(known)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"only text, numbers, true, false, null, lists and mappings: {error}") from error
    settings = pydantic.ConfigDict(extra="forbid", strict=True)
    # In strict JSON lists become tuples, but no scalar is converted. A dataclass takes settings only inside a union.
    checker = pydantic.TypeAdapter[Any](config_type | None, config=settings)  # type: ignore[arg-type]
    try:
        config = checker.validate_json(text)
    except pydantic.ValidationError as error:
        found = error.errors(include_url=False)
    else:
        if problems := list(_empty_addresses(config_type, config, origins)):
            raise ConfigError(problems)
        return config
    known = json.loads(text)
    unknown = [item["loc"] for item in found if item["type"] == "unexpected_keyword_argument"]
    if not unknown:
        raise ConfigError(list(dict.fromkeys(_describe(config_type, known, item, origins) for item in found)))
    problems = [_describe_unknown(config_type, known, location, origins) for location in unknown]
    for location in unknown:
        _locate(config_type, known, location[:-1])[2].pop(location[-1])
    try:  # a section says what it refuses only when it has no unknown key
        build_config(config_type, known, origins=origins)
    except ConfigError as error:
        problems += error.problems
    raise ConfigError(problems)


def _empty_addresses(config_type: type, config: Any, origins: Mapping[str, str]) -> Iterator[str]:
    """A problem for each address that is an empty text: as a path that would be the folder one is in."""
    for key in list_keys(config_type):
        if re.search(r"(^|[._])(uri|root|queries|judgments|purchases|encoder)$", key.name):
            value = config
            for step in key.name.split("."):
                value = getattr(value, step, None)
            if isinstance(value, str) and not value.strip():
                yield f"{_where(key.name, origins)}{key.name}: expected a path or URI, found an empty text"


def _as_meant(value: Any, declared: Any) -> Any:
    r"""Take what people write for what they mean.

    A bare word is a list of one where a list of text is wanted, a backslash and a t where text is are a tab, and an
    empty section has its defaults. Sections that must be there appear, so that their missing keys are named.
    """
    accepted = union_options(declared)
    nested = nested_dataclass(declared)
    if value is None and nested and type(None) not in accepted:
        value = {}
    if nested and isinstance(value, Mapping):
        hints = get_type_hints(nested)
        sections = {
            field.name: None
            for field in dataclasses.fields(nested)
            if dataclasses.is_dataclass(hints[field.name]) and _default_of(field) is dataclasses.MISSING
        }
        return {key: _as_meant(item, hints.get(key, Any)) for key, item in {**sections, **value}.items()}
    if isinstance(value, str) and str not in accepted and tuple[str, ...] in accepted:
        return [value]
    return "\t" if value == r"\t" and str in accepted else value


def _describe_unknown(root: type, data: Any, location: tuple[int | str, ...], origins: Mapping[str, str]) -> str:
    above, declared, _ = _locate(root, data, location[:-1])
    prefix = f"{above}." if above else ""
    nearby = {prefix + name for name in get_type_hints(nested_dataclass(declared) or root)}
    name = f"{prefix}{location[-1]}"
    hint = did_you_mean(name, nearby | {key.name for key in list_keys(root)})
    return f"{_where(name, origins)}unknown key {name}. {hint}"


def _describe(root: type, data: Any, item: Any, origins: Mapping[str, str]) -> str:
    """One of pydantic's errors in our words."""
    name, declared, found = _locate(root, data, item["loc"])
    expected = describe_type(declared)
    if item["type"] == "value_error":
        return _describe_refusal(name, declared, str(item["ctx"]["error"]), origins)
    if item["type"] == "missing":
        return f"{name}: missing; expected {expected}; set it in the YAML or with --{name}"
    if any(key.secret and f"{key.name}.".startswith(f"{name}.") for key in list_keys(root)):
        return f"{_where(name, origins)}{name}: expected {expected}, found something else (it is not shown)"
    text = json.dumps(found, ensure_ascii=False)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    text += f" ({_VALUE_WORDS[type(found)]})" if type(found) in _VALUE_WORDS else ""
    if isinstance(found, str) and "number" in expected and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", found.lower()):
        text += "; write numbers without quotes, and exponents with a point (1.0e-3)"
    return f"{_where(name, origins)}{name}: expected {expected}, found {text}"


def _locate(declared: Any, value: Any, location: tuple[int | str, ...]) -> tuple[str, Any, Any]:
    """Follow an error's location down the dataclasses: dotted key, its declared type, and the value there."""
    name = ""
    for step in location:
        nested, listed = nested_dataclass(declared), listed_dataclass(declared)
        if listed and isinstance(step, int):
            name, declared, value = f"{name}[{step}]", listed, value[step]
        elif nested and step in (hints := get_type_hints(nested)):
            name, declared = f"{name}.{step}".lstrip("."), hints[str(step)]
            value = value.get(step) if isinstance(value, Mapping) else None
        # Other steps are the branches of a union, or items of a list: the key is what people know.
    return name, declared, value


def _describe_refusal(section: str, declared: Any, message: str, origins: Mapping[str, str]) -> str:
    """A section's own refusal, under the full name of the key that it speaks of, with where that key was given.

    A section may call its keys by their bare name (`hidden`), or with some of the names above (`fusion.hidden`).
    """
    speaks_of, nested = _LEADING_NAME.match(message), nested_dataclass(declared)
    if speaks_of and nested:
        name, above = speaks_of[1], section.split(".")
        for start in range(len(above)):
            name = name.removeprefix(".".join(above[start:]) + ".")
        if name.split(".")[0] in get_type_hints(nested):
            name = f"{section}.{name}".lstrip(".")
            return f"{_where(name, origins)}{name}{message[speaks_of.end() :]}"
    return f"{_where(section, origins)}{section}: {message}"


def _where(name: str, origins: Mapping[str, str]) -> str:
    """Where a key was given, or the nearest mapping above it that was given."""
    while name and name not in origins:
        name = name[: max(name.rfind("."), name.rfind("["), 0)]
    return f"{origins[name]}: " if name else ""


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str = "--help lists what is known.") -> str:
    """A closing sentence that names the known name most like a wrong one; where none is like it, another sentence."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else otherwise


class ConfigKey(NamedTuple):
    """One leaf of a config tree.

    Attributes:
        name: Dotted, such as `index.serving_shards`.
        default: `dataclasses.MISSING` for a key that must be given.
        help: First sentence of the key's entry under `Attributes:` in the docstring of its dataclass.
        secret: Whether the value may hold a password (its dataclass keeps it out of its `repr` too).
    """

    name: str
    type: Any
    default: Any
    help: str
    secret: bool


def list_keys(config_type: type, *, prefix: str = "") -> Iterator[ConfigKey]:
    """List every leaf key below a config dataclass, in declaration order.

    An optional nested one (`TowerSpec | None`) also stands for itself, because it can be set to null as a whole.
    """
    hints = get_type_hints(config_type)
    texts = dict(_ATTRIBUTE.findall(inspect.getdoc(config_type) or ""))
    for field in dataclasses.fields(config_type):
        name, declared = prefix + field.name, hints[field.name]
        nested = nested_dataclass(declared)
        if nested is None or type(None) in union_options(declared):
            text = " ".join(texts.get(field.name, "").split()).replace("`", "")
            first_sentence = re.split(r"(?<=[a-z)\]0-9][.])\s+(?=[A-Z])", text, maxsplit=1)[0]
            yield ConfigKey(name, declared, _default_of(field), first_sentence, not field.repr)
        if nested is not None:
            yield from list_keys(nested, prefix=f"{name}.")


def _default_of(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def nested_dataclass(declared: Any) -> type | None:
    """The dataclass that a declared type holds, itself or in an optional; None where it holds none."""
    for option in union_options(declared):
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            return option
    return None


def listed_dataclass(declared: Any) -> type | None:
    """The dataclass that a declared list (a tuple of any length) holds; None where it holds none."""
    lists = [option for option in union_options(declared) if get_origin(option) is tuple]
    return nested_dataclass(get_args(lists[0])[0]) if lists else None


def union_options(declared: Any) -> tuple[Any, ...]:
    """The members of a union; a type that is none stands alone."""
    return get_args(declared) if get_origin(declared) in (Union, types.UnionType) else (declared,)


def describe_type(declared: Any) -> str:
    """Say in words what a declared type accepts, such as `text or a list of text`."""
    words = []
    for option in union_options(declared):
        origin, arguments = get_origin(option), get_args(option)
        if origin is Literal:
            words.append("one of " + ", ".join(map(str, arguments)))
        elif origin is tuple:
            words.append(f"a list of {describe_type(arguments[0])}")
        elif dataclasses.is_dataclass(option):
            words.append("a mapping with the keys " + ", ".join(field.name for field in dataclasses.fields(option)))
        else:
            words.append("a mapping" if origin is dict else _TYPE_WORDS.get(option, str(option)))
    return " or ".join(words)
