"""Command lines made from a config tree: every key is an option, on top of a YAML file.

    --config FILE            the YAML file, or the name of a shipped one
    --index.serving_shards 2 one key; the value is YAML
    --print-config           the effective config in full, and nothing else is done

Apache Beam is not imported here, so that commands without it start fast.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, NoReturn, TypeVar

import yaml

from pipelines.config.errors import ConfigError
from pipelines.config.keys import ConfigKey, describe_type, did_you_mean, is_optional, list_keys, union_options
from pipelines.config.validation import build_config
from pipelines.config.yaml_files import describe_yaml_error, parse_value, read_config_file

Config = TypeVar("Config")

# Takes the arguments that are left, the plain data of the config, and our own options; gives what is wrong.
CheckRest = Callable[[Sequence[str], Mapping[str, Any], Collection[str]], Sequence[str]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ParsedArguments(Generic[Config]):
    """A command line, read.

    Attributes:
        config: The checked config.
        flags: The values of the command's own options, and of `--config` and `--print-config`.
        rest: Arguments that are no option of ours, as they stood.
        option_names: Every option that we know, for messages about the rest.
    """

    config: Config
    flags: argparse.Namespace
    rest: list[str]
    option_names: tuple[str, ...]


def parse_arguments(
    argv: Sequence[str],
    config_type: type[Config],
    *,
    default_config: str,
    description: str,
    prog: str | None = None,
    add_options: Callable[[argparse.ArgumentParser], None] | None = None,
    other_sections: Collection[str] = (),
    epilog: str | None = None,
    check_rest: CheckRest | None = None,
) -> ParsedArguments[Config]:
    """Read a command line on top of a config file.

    Args:
        argv: Arguments without the program's name.
        config_type: A frozen dataclass of sections; its keys become the options.
        default_config: File or shipped name that is read where no `--config` is given.
        description: What the command does, for `--help`.
        prog: How the command is called, for `--help`.
        add_options: Adds options that are no config keys, such as `--full`.
        other_sections: Sections of the file that this command has no use for.
        epilog: Closing text of `--help`.
        check_rest: Hand back unknown arguments instead of refusing them, if this finds no problem with them. A dotted
            one is a mistyped key, and refused.

    Raises:
        ConfigError: With every problem found in the file and on the command line.
    """
    keys = list_keys(config_type)
    parser = _Parser(
        prog=prog,
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
        usage="%(prog)s [--config FILE] [--KEY VALUE ...]" + (" [Beam options]" if check_rest else ""),
    )
    _add_general_options(parser, default_config)
    if add_options is not None:
        add_options(parser)
    _add_key_options(parser, keys)
    option_names = tuple(name for action in parser._actions for name in action.option_strings)

    flags, rest = parser.parse_known_args(list(argv))
    file = read_config_file(flags.config)
    data = copy.deepcopy(file.data)
    origins = {name: f"{file.name}, line {line}" for name, line in file.lines.items()}

    problems: list[str] = []
    for key in keys:
        text = getattr(flags, _destination(key.name), None)
        if text is not None:
            try:
                _set_value(data, key.name, _command_line_value(text, key.type))
            except yaml.YAMLError as error:
                told = f"expected {describe_type(key.type)} as YAML, found {text!r}: {describe_yaml_error(error)}"
                problems.append(f"command line: {key.name}: {told}")
            origins[key.name] = "command line"
    rest, dotted = _take_dotted_options(rest)
    mappings = tuple(f"{key.name}." for key in keys if dict in _plain_types(key.type))
    for name, text in dotted:
        if name.startswith(mappings):
            _set_value(data, name, True if text is None else _yaml_or_text(text))
            origins[name] = "command line"

    unknown = [f"--{name}" for name, _ in dotted if not name.startswith(mappings)]
    unknown += option_names_in(rest) if check_rest is None else []
    problems += [f"command line: unknown option {name}. {did_you_mean(name, option_names)}" for name in unknown]
    if check_rest is not None:
        problems += check_rest(rest, data, option_names)
    elif rest and not unknown:
        problems.append(f"command line: expected options only, found {' '.join(rest)!r}")
    try:
        config = build_config(config_type, data, origins=origins, other_sections=other_sections)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    if problems:
        raise ConfigError(problems)
    return ParsedArguments(config=config, flags=flags, rest=rest, option_names=option_names)


def option_names_in(arguments: Sequence[str]) -> list[str]:
    """The option names among command-line arguments, without their values."""
    return [argument.split("=", 1)[0] for argument in arguments if argument.startswith("-") and len(argument) > 1]


class _Parser(argparse.ArgumentParser):
    """argparse with its complaints as ConfigError, without pages of usage before them."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}")


class _HelpFormatter(argparse.HelpFormatter):
    """One line for each key: no wrapping, whatever the width of the terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=44, width=1000)


def _add_general_options(parser: argparse.ArgumentParser, default_config: str) -> None:
    parser.add_argument(
        "--config",
        default=default_config,
        metavar="FILE",
        help=f"YAML file, or the name of a shipped config (default: {default_config})",
    )
    parser.add_argument("--print-config", action="store_true", help="print the effective config as YAML, and stop")


def _add_key_options(parser: argparse.ArgumentParser, keys: Sequence[ConfigKey]) -> None:
    groups: dict[str, Any] = {}
    for key in keys:
        section = key.name.split(".")[0]
        group = groups.get(section) or groups.setdefault(section, parser.add_argument_group(f"{section} (YAML values)"))
        default = "" if key.default is dataclasses.MISSING else f" (default: {_describe_default(key.default)})"
        group.add_argument(
            f"--{key.name}",
            dest=_destination(key.name),
            metavar="VALUE",
            help=(key.help + default).replace("%", "%%"),
        )


def _describe_default(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return "the section's own"
    # JSON is YAML: what stands here can be given back on the command line.
    return value if isinstance(value, str) else json.dumps(value)


def _destination(name: str) -> str:
    """Where argparse keeps a key's text; the dot keeps it apart from a command's own options."""
    return f"key.{name}"


def _plain_types(declared: Any) -> tuple[Any, ...]:
    return tuple(getattr(option, "__origin__", option) for option in union_options(declared))


def _command_line_value(text: str, declared: Any) -> Any:
    """The value that a key's text stands for.

    Text is YAML, with one exception for keys that take text: there a bare value is taken as it stands, because globs,
    templates and names such as `*.parquet`, `{title}` or `2026` mean something else in YAML.

    Raises:
        yaml.YAMLError: The text is no YAML, for a key that does not take text.
    """
    types = _plain_types(declared)
    if str not in types:
        return parse_value(text)
    if is_optional(declared) and text in ("null", "~"):
        return None
    looks_like_yaml = text[:1] in ("'", '"') or (tuple in types and text[:1] == "[")
    value = _yaml_or_text(text) if looks_like_yaml else text
    return value if isinstance(value, (str, list)) else text


def _yaml_or_text(text: str) -> Any:
    try:
        return parse_value(text)
    except yaml.YAMLError:
        return text


def _set_value(data: dict[str, Any], name: str, value: Any) -> None:
    """Set a dotted key in nested mappings; sections on the way that are missing or null appear."""
    *sections, leaf = name.split(".")
    for section in sections:
        if not isinstance(data.get(section), dict):
            data[section] = {}
        data = data[section]
    data[leaf] = value


def _take_dotted_options(rest: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Take what looks like a key out of the unknown arguments: entries of mappings (`--beam.NAME VALUE`), and mistakes.

    Returns:
        What is left, and (dotted name, text) pairs; text is None for an option that stands alone.
    """
    left: list[str] = []
    dotted: list[tuple[str, str | None]] = []
    position = 0
    while position < len(rest):
        argument = rest[position]
        name, equals, text = argument.removeprefix("--").partition("=")
        position += 1
        if not argument.startswith("--") or "." not in name:
            left.append(argument)
        elif equals:
            dotted.append((name, text))
        elif position < len(rest) and not rest[position].startswith("--"):
            dotted.append((name, rest[position]))
            position += 1
        else:
            dotted.append((name, None))
    return left, dotted
