"""Reads the queries of a config that stand in files of their own: canaries and queries to compare by."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from index_builder import storage
from index_builder.errors import IndexBuilderError
from pipelines.config.job import Canary
from pipelines.config.validation import ConfigError, build_config
from pipelines.config.yaml_files import check_size

MOST_QUERIES = 1000
"""They are searched for each night, in both versions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _CanaryFile:
    canaries: tuple[Canary, ...]


def load_canaries(given: str | tuple[Canary, ...]) -> tuple[Canary, ...]:
    """The canaries of `gates.canaries`; ConfigError where its file cannot be read, or there are too many."""
    canaries = given if not isinstance(given, str) else _read_canaries(given)
    _check_number("gates.canaries", len(canaries))
    return canaries


def _read_canaries(uri: str) -> tuple[Canary, ...]:
    text = _read("gates.canaries", uri)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            check_size(node)
        data = loader.construct_document(node) if node is not None else []
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"gates.canaries: {uri} is not valid YAML: {error}") from error
    if not isinstance(data, list) or not data:
        raise ConfigError(f"gates.canaries: {uri}: expected a list of {{query, ids, k}}, found {type(data).__name__}")
    try:
        return build_config(_CanaryFile, {"canaries": data}, origins={}).canaries
    except ConfigError as error:
        problems = (problem.partition("; set it in the YAML")[0] for problem in error.problems)
        raise ConfigError([f"gates.canaries: {uri}: {problem}" for problem in problems]) from error


def load_queries(given: str | tuple[str, ...] | None, key: str = "gates.queries") -> tuple[str, ...]:
    """The queries of `gates.queries`, or of the option `key`, each once.

    ConfigError where the file cannot be read, or there are too many.
    """
    if given is None:
        return ()
    lines = _read(key, given).splitlines() if isinstance(given, str) else given
    queries = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not queries:
        raise ConfigError(f"{key}: expected texts, one a line, found none in {given!r}")
    _check_number(key, len(queries))
    return queries


def _check_number(key: str, found: int) -> None:
    if found > MOST_QUERIES:
        raise ConfigError(f"{key}: expected at most {MOST_QUERIES:,}, found {found:,}: all are asked each night")


def _read(key: str, uri: str) -> str:
    try:
        return storage.read_bytes(uri).decode()
    except FileNotFoundError as error:
        raise ConfigError(f"{key}: {uri}: expected a file, found none") from error
    except (IndexBuilderError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: {uri} cannot be read as UTF-8 text: {error}") from error
