"""Apache Beam's options: from the `beam:` section and the command line to one checked `PipelineOptions`.

Beam itself drops an option that it does not know with a line in the log; a mistyped worker count is then found the next
morning. Here it is an error that names the nearest option, on every runner whose options the package knows in full.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.config.errors import ConfigError
from pipelines.config.keys import did_you_mean
from pipelines.config.parser import option_names_in


@contextmanager
def _root_logger_untouched() -> Iterator[None]:
    """Keep Beam from setting up the root logger, which is the command's to set up.

    Beam does so in passing, by `logging.basicConfig()` and by a warning on import about Google clients that nobody
    asked for. A root logger that has a handler is left alone.
    """
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


with _root_logger_untouched():
    from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, StandardOptions, StreamingOptions

_LOGGER = logging.getLogger(__name__)

# With this option the direct runner works in process. Without it, it first looks for Prism, a runner that it downloads.
DIRECT_RUNNER_COMPATIBILITY = "2.77.0"


def to_pipeline_options(section: Mapping[str, Any], arguments: Sequence[str] = ()) -> PipelineOptions:
    """Merge the `beam:` section with Beam's options of the command line, which win, and check both.

    Args:
        section: Option name -> value; false and null mean that the option is not given.
        arguments: Command-line arguments that are no config keys.

    Raises:
        ConfigError: As `check_beam_options`.
    """
    checked = check_beam_options(section, arguments)
    with _root_logger_untouched():
        options = PipelineOptions(checked.arguments)
        options.view_as(StandardOptions).runner = checked.runner
        if checked.runner == "DirectRunner" and checked.known.update_compatibility_version is None:
            options.view_as(StreamingOptions).update_compatibility_version = DIRECT_RUNNER_COMPATIBILITY
        if checked.known.save_main_session is None:
            # Everything that runs on a worker lives in a module; Beam would pickle the main one on some runners.
            options.view_as(SetupOptions).save_main_session = False
    if checked.handed_on:
        names = " ".join(checked.handed_on)
        _LOGGER.warning(
            "handed to %s as they are, because Beam's package does not know them: %s", checked.runner, names
        )
    return options


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedOptions:
    """Beam options that were found usable.

    Attributes:
        arguments: Section and command line, as one list of arguments.
        known: The values of the options that Beam knows.
        runner: The runner's full name.
        handed_on: Names of options that only the runner's own job server can know.
    """

    arguments: list[str]
    known: argparse.Namespace
    runner: str
    handed_on: list[str]


def check_beam_options(
    section: Mapping[str, Any], arguments: Sequence[str], *, option_names: Collection[str] = ()
) -> CheckedOptions:
    """Check Beam's options without making anything of them.

    Args:
        section: As for `to_pipeline_options`.
        arguments: The same.
        option_names: Our own options, so that a mistyped one of these is recognised.

    Raises:
        ConfigError: An option that Beam does not know, a value that it refuses, a runner that cannot run this job.
    """
    with _root_logger_untouched():
        parser = _beam_parser()
    actions = {name: action for action in parser._actions for name in action.option_strings}
    given = {actions[name].dest for name in option_names_in(arguments) if name in actions}
    section_arguments = [
        argument
        for name, value in section.items()
        if _destination(name, actions) not in given
        for argument in _as_arguments(name, value, actions)
    ]
    merged = section_arguments + list(arguments)
    known, unknown = _parse(parser, merged)
    runner = _full_runner_name(known.runner)
    names = option_names_in(unknown)
    if unknown and not names:
        raise ConfigError(f"command line: expected options only, found {' '.join(unknown)!r}")
    if names and runner in StandardOptions.LOCAL_RUNNERS:
        raise ConfigError([_describe_unknown(name, section, actions, option_names) for name in names])
    return CheckedOptions(arguments=merged, known=known, runner=runner, handed_on=names)


def _beam_parser() -> argparse.ArgumentParser:
    """The parser with the options of every `PipelineOptions` class that Beam knows."""
    found: list[argparse.ArgumentParser] = []
    PipelineOptions([]).get_all_options(add_extra_args_fn=found.append)
    parser = found[0]
    parser.exit_on_error = False
    return parser


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    try:
        return parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ConfigError(f"Beam option {error}") from error
    except (ValueError, AssertionError) as error:  # Beam's own checks of JSON values
        raise ConfigError(f"Beam options {' '.join(arguments)}: {error}") from error


def _full_runner_name(name: str | None) -> str:
    """The name that Beam lists a runner under; a class by its full path stands as it is.

    Raises:
        ConfigError: No such runner; or Dask's, which loses what a bundle gives back at its end.
    """
    name = name or StandardOptions.DEFAULT_RUNNER
    if "dask" in name.lower():
        raise ConfigError(f"runner {name}: loses what a bundle gives back at its end, without a word; use another one")
    if "." in name:
        return name
    by_lower = {known.lower(): known for known in StandardOptions.KNOWN_RUNNER_NAMES}
    found = by_lower.get(name.lower()) or by_lower.get(f"{name.lower()}runner")
    if found is None:
        raise ConfigError(f"unknown runner {name}. {did_you_mean(name, StandardOptions.KNOWN_RUNNER_NAMES)}")
    return found


def _describe_unknown(
    name: str, section: Mapping[str, Any], actions: Mapping[str, argparse.Action], option_names: Collection[str]
) -> str:
    bare = name.removeprefix("--")
    if bare in section:
        hint = did_you_mean(bare, [known.removeprefix("--") for known in actions])
        return f"beam: section: unknown option {bare}. {hint}"
    return f"command line: unknown option {name}. {did_you_mean(name, [*actions, *option_names])}"


def _as_arguments(name: str, value: Any, actions: Mapping[str, argparse.Action]) -> list[str]:
    """One entry of the `beam:` section as command-line arguments."""
    action = actions.get(f"--{name}")
    takes_no_value = action is not None and action.nargs == 0
    if value is None or (value is False and (action is None or takes_no_value)):
        return []
    if value is True and (action is None or takes_no_value):
        return [f"--{name}"]
    if isinstance(value, list):
        return [f"--{name}={item}" for item in value]
    if isinstance(value, dict):
        return [f"--{name}={json.dumps(value)}"]
    return [f"--{name}={value}"]


def _destination(name: str, actions: Mapping[str, argparse.Action]) -> str:
    action = actions.get(f"--{name}")
    return action.dest if action is not None else name
