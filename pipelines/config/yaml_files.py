"""YAML files of configs: the shipped ones by name, the line of each key, no key twice.

A text that stands for more than a config can be is refused: a few lines of aliases may stand for gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipelines.config.validation import ConfigError, did_you_mean

MOST_VALUES = 100_000


class ConfigFile(NamedTuple):
    """A config file: how messages call it, its mapping, and the line (from 1) of every dotted key."""

    name: str
    data: dict[str, Any]
    lines: dict[str, int]


def read_config_file(name: str) -> ConfigFile:
    """Read a config file by path, or a shipped one by name (`minilm`, `run_configs/minilm.yaml`).

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
    shipped = shipped_configs()
    stem = name.removeprefix("run_configs/").removesuffix(".yaml")
    if stem not in shipped:
        hint = did_you_mean(stem, shipped, otherwise=f"Shipped are {', '.join(sorted(shipped))}.")
        raise ConfigError(f"config {name}: expected a YAML file or the name of a shipped config, found neither. {hint}")
    return parse_config(shipped[stem].read_text(encoding="utf-8"), f"run_configs/{stem}.yaml")


def shipped_configs() -> dict[str, Any]:
    """The shipped files by name; one in a folder has the folder's before it (`papers/grocery`)."""
    entries = {entry.name: entry for entry in resources.files("run_configs").iterdir()}
    for name, folder in list(entries.items()):
        if folder.is_dir():
            entries |= {f"{name}/{entry.name}": entry for entry in folder.iterdir()}
    return {name.removesuffix(".yaml"): entry for name, entry in entries.items() if name.endswith(".yaml")}


def parse_config(text: str, name: str) -> ConfigFile:
    """Parse the text of a config file; raises as `read_config_file`.

    Beyond `yaml.safe_load` every key has its line, and a key that occurs twice is an error: YAML would keep the last.
    """
    try:
        loader = _ConfigLoader(text)
        node = loader.get_single_node()
        if node is None:
            return ConfigFile(name=name, data={}, lines={})
        check_size(node)
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
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name}: is not valid YAML: {describe_yaml_error(error)}") from error


class _ConfigLoader(yaml.SafeLoader):
    """The safe loader with dates left as text, for no key is a date, and keys too: `on` (of `notify:`) is no truth."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the safe loader, of keys as they are written."""
        for key, _ in node.value:
            key.tag = key.tag.replace("2002:bool", "2002:str")
        return super().construct_mapping(node, deep)


def parse_value(text: str) -> Any:
    """A value as YAML has it, None of an empty text; YAMLError where it is none."""
    loader = _ConfigLoader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    check_size(node)
    return loader.construct_document(node)


def _keys_with_lines(
    node: yaml.MappingNode, prefix: str = "", above: frozenset[int] = frozenset()
) -> Iterator[tuple[str, int]]:
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        yield key, key_node.start_mark.line + 1
        # An alias may lead back to a mapping that is being walked.
        if isinstance(value_node, yaml.MappingNode) and id(value_node) not in above | {id(node)}:
            yield from _keys_with_lines(value_node, f"{key}.", above | {id(node)})


def describe_yaml_error(error: Exception) -> str:
    """Line, column and what is wrong there, where the parser says so."""
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {what}" if mark else what


def check_size(node: yaml.Node) -> None:
    """Raises YAMLError where the text has more values than `MOST_VALUES`, each alias written out."""
    sizes: dict[int, int] = {}
    stack: list[tuple[yaml.Node, bool]] = [(node, False)]
    open_nodes: set[int] = set()
    while stack:
        each, is_done = stack.pop()
        inner = _inner(each)
        if is_done:
            open_nodes.discard(id(each))
            sizes[id(each)] = 1 + sum(sizes.get(id(child), 1) for child in inner)  # 1: one that it stands in itself
            if sizes[id(each)] > MOST_VALUES:
                problem = f"expected at most {MOST_VALUES:,} values, found more once aliases are written out"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=each.start_mark)
        elif id(each) not in open_nodes and id(each) not in sizes:
            open_nodes.add(id(each))
            stack.append((each, True))
            stack += [(child, False) for child in inner]


def _inner(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
