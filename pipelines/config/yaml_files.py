"""Reading the YAML of a config file: plain data, with the line on which each key stands.

Beyond ``yaml.safe_load`` a key that occurs twice is an error (YAML itself would keep the last one and say nothing), and
dates stay text, because no key is a date.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from pipelines.config.errors import ConfigError
from pipelines.config.keys import did_you_mean

SHIPPED_CONFIGS = "run_configs"


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfigFile:
    """A config file as it was read.

    Attributes:
        name: How messages call the file.
        data: Its mapping.
        lines: Dotted key -> line, from 1.
    """

    name: str
    data: dict[str, Any]
    lines: dict[str, int]


def read_config_file(name: str) -> ConfigFile:
    """Read a config file by path, or a shipped one by name (``minilm``, ``run_configs/minilm.yaml``).

    A file that exists wins over a shipped config of the same name.

    Raises:
        ConfigError: No such file; not YAML; not a mapping; a key given twice.
    """
    path = Path(name)
    if path.is_dir():
        raise ConfigError(f"config {name}: expected a YAML file, found a folder")
    if path.is_file():
        try:
            return parse_config(path.read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"config {name}: cannot be read as UTF-8 text: {error}") from error
    shipped = _shipped_configs()
    stem = name.removeprefix(f"{SHIPPED_CONFIGS}/").removesuffix(".yaml")
    if stem not in shipped:
        hint = did_you_mean(stem, shipped, otherwise=f"Shipped are {', '.join(sorted(shipped))}.")
        told = "expected a YAML file or the name of a shipped config, found neither"
        raise ConfigError(f"config {name}: {told}. {hint}")
    return parse_config(shipped[stem].read_text(encoding="utf-8"), f"{SHIPPED_CONFIGS}/{stem}.yaml")


def parse_config(text: str, name: str) -> ConfigFile:
    """Parse the text of a config file; an empty one is an empty mapping.

    Raises:
        ConfigError: As `read_config_file`.
    """
    loader = _ConfigLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return ConfigFile(name=name, data={}, lines={})
        if not isinstance(node, yaml.MappingNode):
            kind = "list" if isinstance(node, yaml.SequenceNode) else "single value"
            raise ConfigError(f"{name}, line 1: expected a mapping of sections such as catalog:, found a {kind}")
        lines: dict[str, int] = {}
        problems: list[str] = []
        for key, line in _keys_with_lines(node):
            if key in lines:
                problems.append(f"{name}, line {line}: the key {key} stands already on line {lines[key]}; keep one")
            lines.setdefault(key, line)
        if problems:
            raise ConfigError(problems)
        return ConfigFile(name=name, data=loader.construct_document(node), lines=lines)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: is not valid YAML: {describe_yaml_error(error)}") from error
    finally:
        loader.dispose()


def parse_value(text: str) -> Any:
    """Parse one YAML value, as a command line gives it.

    Raises:
        yaml.YAMLError: It is none.
    """
    # A subclass of SafeLoader: it builds plain data only.
    return yaml.load(text, Loader=_ConfigLoader)  # noqa: S506


def describe_yaml_error(error: yaml.YAMLError) -> str:
    """One line for a YAML error, with its place where it has one."""
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {what}" if mark else what


class _ConfigLoader(yaml.SafeLoader):
    """The safe loader with dates left as text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _keys_with_lines(
    node: yaml.MappingNode, prefix: str = "", above: frozenset[int] = frozenset()
) -> Iterator[tuple[str, int]]:
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        yield key, key_node.start_mark.line + 1
        # An alias may lead back to a mapping that is being walked.
        if isinstance(value_node, yaml.MappingNode) and id(value_node) not in above | {id(node)}:
            yield from _keys_with_lines(value_node, f"{key}.", above | {id(node)})


def _shipped_configs() -> dict[str, Any]:
    """The shipped files by name; one in a folder has the folder's before it (`papers/grocery`)."""
    entries = {entry.name: entry for entry in resources.files(SHIPPED_CONFIGS).iterdir()}
    for name, folder in list(entries.items()):
        if folder.is_dir():
            entries |= {f"{name}/{entry.name}": entry for entry in folder.iterdir()}
    return {name.removesuffix(".yaml"): entry for name, entry in entries.items() if name.endswith(".yaml")}
