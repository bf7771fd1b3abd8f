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
from typing import Any

from pipelines.catalog.errors import nearest
from pipelines.config.errors import ConfigError
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

# Short names that Beam takes too.
_RUNNER_ALIASES = {
    "direct": "DirectRunner",
    "portable": "PortableRunner",
    "flink": "FlinkRunner",
    "spark": "SparkRunner",
}


def to_pipeline_options(
    section: Mapping[str, Any], arguments: Sequence[str] = (), *, option_names: Collection[str] = ()
) -> PipelineOptions:
    """Merge the `beam:` section with Beam's options of the command line, which win, and check both.

    Args:
        section: Option name -> value; false and null mean that the option is not given.
        arguments: Command-line arguments that are no config keys.
        option_names: Our own options, so that a mistyped one of these is recognised.

    Raises:
        ConfigError: An option that Beam does not know, a value that it refuses, a runner that cannot run this job.
    """
    with _root_logger_untouched():
        return _checked_options(section, list(arguments), option_names)


def _checked_options(
    section: Mapping[str, Any], arguments: list[str], option_names: Collection[str]
) -> PipelineOptions:
    parser = _beam_parser()
    actions = {name: action for action in parser._actions for name in action.option_strings}
    given = {actions[name].dest for name in option_names_in(arguments) if name in actions}
    section_arguments = [
        argument
        for name, value in section.items()
        if _destination(name, actions) not in given
        for argument in _as_arguments(name, value, actions)
    ]
    arguments = section_arguments + arguments

    known, unknown = _parse(parser, arguments)
    runner = _check_runner(known.runner)
    if unknown:
        _refuse_or_warn(unknown, runner, section, actions, option_names)

    options = PipelineOptions(arguments)
    options.view_as(StandardOptions).runner = runner
    if runner == "DirectRunner" and known.update_compatibility_version is None:
        options.view_as(StreamingOptions).update_compatibility_version = DIRECT_RUNNER_COMPATIBILITY
    if known.save_main_session is None:
        # Everything that runs on a worker lives in a module; Beam would pickle the main one on some runners.
        options.view_as(SetupOptions).save_main_session = False
    return options


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


def _check_runner(name: str | None) -> str:
    """The runner's full name.

    Raises:
        ConfigError: No such runner; or Dask's, which loses what a bundle gives back at its end.
    """
    name = name or StandardOptions.DEFAULT_RUNNER
    if "dask" in name.lower():
        raise ConfigError(
            f"runner {name}: loses data without a word (what a bundle gives back at its end); use another"
        )
    if "." in name:  # a class by its full path
        return name
    by_lower = {known.lower(): known for known in StandardOptions.KNOWN_RUNNER_NAMES}
    found = _RUNNER_ALIASES.get(name.lower()) or by_lower.get(name.lower())
    if found is None:
        raise ConfigError(f"unknown runner {name}. {nearest(name, StandardOptions.KNOWN_RUNNER_NAMES)}")
    return found


def _refuse_or_warn(
    unknown: Sequence[str],
    runner: str,
    section: Mapping[str, Any],
    actions: Mapping[str, argparse.Action],
    option_names: Collection[str],
) -> None:
    names = option_names_in(unknown)
    if not names:
        raise ConfigError(f"command line: expected options only, found {' '.join(unknown)!r}")
    if runner not in StandardOptions.LOCAL_RUNNERS:
        _LOGGER.warning("Handed to %s as they are, Beam itself does not know them: %s", runner, " ".join(names))
        return
    known = [*actions, *option_names]
    bare_names = [action_name.removeprefix("--") for action_name in actions]
    raise ConfigError(
        [
            f"beam: section: unknown option {name.removeprefix('--')}. {nearest(name.removeprefix('--'), bare_names)}"
            if name.removeprefix("--") in section
            else f"command line: unknown option {name}. {nearest(name, known)}"
            for name in names
        ]
    )


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
