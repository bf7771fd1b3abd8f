"""The command line reads a YAML file, dotted options over it and Beam's options, and gives errors and exit codes.

    --config FILE             the YAML file, or the name of a shipped one
    --index.serving_shards 2  one key; the value is YAML
    --print-config            the effective config in full, and nothing else is done

Unknown keys and options are errors that name the nearest known one, and all mistakes of file and command line are
reported at once. Beam is imported only where a job's command line is read: other commands start without it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NoReturn, get_origin

import yaml

from pipelines.config import own_catalog
from pipelines.config.exit_codes import EXPECTED_ERRORS, FAILED, INTERRUPTED, REFUSED, RunFailedError
from pipelines.config.gpu import GpuRequest
from pipelines.config.job import IndexJobConfig, JobConfig, to_yaml
from pipelines.config.log_lines import say_error
from pipelines.config.stopping import wait_if_stopping
from pipelines.config.validation import (
    Config,
    ConfigError,
    ConfigKey,
    build_config,
    describe_type,
    did_you_mean,
    list_keys,
    union_options,
)
from pipelines.config.yaml_files import ConfigFile, describe_yaml_error, parse_value, read_config_file
from pipelines.images.config import hide_login

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

# With this option the direct runner works in process. Without it, it first looks for Prism, a runner that it downloads.
DIRECT_RUNNER_COMPATIBILITY = "2.77.0"

log = logging.getLogger(__name__)
_KEY = "key."  # before a key's name in argparse's namespace: apart from a command's own options


def run_command(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command's main function over arguments, by default those of the process, and give the exit code.

    It is what `main` gave; 2 after an error that our rooms raise on purpose, 1 where work had begun
    (`exit_codes.failures_of_work`), its message on stderr; 130 after Ctrl-C (the long jobs hear it by
    `stopping.end_on_signals`, and SIGTERM too: 143).
    """
    try:
        return main(sys.argv[1:] if argv is None else argv) or 0
    except SystemExit as stop:  # --help and --print-config
        return int(stop.code or 0)
    except (*EXPECTED_ERRORS, RunFailedError) as error:
        say_error(str(error))
        return FAILED if isinstance(error, RunFailedError) else REFUSED
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: run the same command again to continue from what is complete\n")
        return INTERRUPTED
    finally:
        wait_if_stopping()


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedCommand(Generic[Config]):
    """A command line, read and checked.

    Attributes:
        flags: The values of the command's own options, such as `--plan`.
        pipeline_options: Those of the `beam:` section and the command line; None for a command without Beam.
        given: Dotted keys that stand in the file or on the command line, defaults left out.
    """

    config: Config
    flags: argparse.Namespace
    pipeline_options: PipelineOptions
    given: frozenset[str] = frozenset()


def address(text: str) -> str:
    """An option's path or URI, for argparse: not an empty text, as an unset variable of a shell gives it."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a path or URI, found {text!r}")
    return text


def load_job_config(argv: Sequence[str]) -> ParsedCommand[JobConfig]:
    """Read the command line of `pipelines.embed_catalog`; as `parse_arguments`."""

    def add_options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--full", action="store_true", help="embed every product again, carry nothing over")
        text = "print what the catalog is taken for, what a run would embed and carry over, and its bill, and stop"
        parser.add_argument("--plan", action="store_true", help=text)

    return parse_arguments(
        argv,
        JobConfig,
        default_config="demo.yaml",
        prog="python -m pipelines.embed_catalog",
        description="Embed a product catalog, build its index and publish a version of it.",
        add_options=add_options,
        with_beam=True,
        read_file=_read_job_file,
    )


def _read_job_file(name: str | None, given: Mapping[str, Any]) -> ConfigFile:
    """The demo's file, or that for a catalog of one's own where the command line names one and no file."""
    is_own = name is None and own_catalog.is_own_catalog(given)
    file = read_config_file(name or (own_catalog.OWN_CATALOG if is_own else "demo.yaml"))
    lines = file.lines
    if is_own:
        own_catalog.fill_in(file.data, given)
        lines = {key: line for key, line in lines.items() if key not in ("work.uri", "index.uri")}  # nobody named them
    if given.get("catalog.layout") not in (None, "null", "~") and isinstance(file.data.get("catalog"), dict):
        dropped = own_catalog.drop_fields(file.data["catalog"])
        lines = {key: line for key, line in lines.items() if key not in dropped}
    return file._replace(lines=lines)


def load_index_job_config(argv: Sequence[str]) -> ParsedCommand[IndexJobConfig]:
    """Read the command line of `pipelines.build_index`; as `parse_arguments`."""
    text = "print what index would be built, and why, and stop"
    return parse_arguments(
        argv,
        IndexJobConfig,
        default_config="build_index.yaml",
        prog="python -m pipelines.build_index",
        description="Build an index from vectors that stand, and publish a version of it.",
        add_options=lambda parser: parser.add_argument("--plan", action="store_true", help=text),
        other_sections=("catalog", "fetch", "decode", "encoder", "plan"),
        with_beam=True,
    )


def parse_arguments(
    argv: Sequence[str],
    config_type: type[Config],
    *,
    default_config: str,
    description: str,
    prog: str | None = None,
    add_options: Callable[[argparse.ArgumentParser], object] | None = None,
    other_sections: Collection[str] = (),
    with_beam: bool = False,
    read_file: Callable[[str | None, Mapping[str, Any]], ConfigFile] | None = None,
) -> ParsedCommand[Config]:
    """Read a command line on top of a config file; every key of the config is an option.

    `--help` and `--print-config` print and raise `SystemExit(0)`.

    Args:
        argv: Arguments without the program's name.
        add_options: Adds options that are no config keys, such as `--full`; one with a `dest` of `key.index.k` is a
            second name of `--index.k`.
        other_sections: Sections of the file that this command has no use for.
        with_beam: Options that are not ours, and the `beam:` section, are Beam's. A dotted option is always ours.
        read_file: Reads the file that `--config` names (None: it is not given), given the command line's values by
            dotted key; by default that file, or `default_config`.

    Raises:
        ConfigError: With every problem found in the file, on the command line and in Beam's options.
    """
    keys = list(list_keys(config_type))
    parser = _Parser(prog=prog, description=description, with_beam=with_beam)
    of_config = f"YAML file, or the name of a shipped config (default: {default_config})"
    parser.add_argument("--config", type=address, metavar="FILE", help=of_config)
    parser.add_argument("--print-config", action="store_true", help="print the effective config as YAML, and stop")
    if add_options is not None:
        add_options(parser)
    _add_key_options(parser, keys)
    option_names = tuple(parser._option_string_actions)
    for argument in argv:  # entries of mappings, such as --beam.NAME, and mistyped keys
        option = argument.partition("=")[0]
        if option.startswith("--") and "." in option and option not in parser._option_string_actions:
            parser.add_argument(option, dest=_KEY + option[2:], nargs="?", const="true", help=argparse.SUPPRESS)
    flags, rest = parser.parse_known_args(list(argv))
    set_flags = {name: text for name, text in vars(flags).items() if text is not None}
    given = {name.removeprefix(_KEY): text for name, text in set_flags.items() if name.startswith(_KEY)}

    file = read_file(flags.config, given) if read_file else read_config_file(flags.config or default_config)
    data = file.data
    origins = {name: f"{file.name}, line {line}" for name, line in file.lines.items()}
    origins |= dict.fromkeys(given, "command line")
    unknown, problems = _set_given(data, given, {key.name: key.type for key in keys})
    if not with_beam:
        unknown += option_names_in(rest)
        problems += [_no_option(rest)] if rest and not unknown else []
    problems += [_unknown_option(option, option_names) for option in unknown]
    pipeline_options: Any = None
    if with_beam:
        section = data["beam"] if isinstance(data.get("beam"), dict) else {}
        try:
            pipeline_options = to_pipeline_options(section, rest, option_names=option_names)
        except ConfigError as error:
            problems += error.problems
    try:
        config = build_config(config_type, data, origins=origins, leave_out=other_sections)
    except ConfigError as error:
        raise ConfigError([*problems, *error.problems]) from error
    if problems:
        raise ConfigError(problems)
    if flags.print_config:
        sys.stdout.write(to_yaml(config))
        raise SystemExit(0)
    named = frozenset((*file.lines, *given))
    return ParsedCommand(config=config, flags=flags, pipeline_options=pipeline_options, given=named)


class _Parser(argparse.ArgumentParser):
    """argparse with its complaints as ConfigError, without pages of usage before them."""

    def __init__(self, *, with_beam: bool, **settings: Any) -> None:
        of_beam = (
            "Every other option is handed to Apache Beam: --runner, --direct_num_workers, --direct_running_mode and "
            "whatever the chosen runner documents. An option that neither of us knows is an error."
        )
        super().__init__(
            epilog=of_beam if with_beam else None,
            allow_abbrev=False,
            # One line for each key, whatever the width of the terminal.
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=44, width=1000),
            usage="%(prog)s [--config FILE] [--KEY VALUE ...]" + (" [Beam options]" if with_beam else ""),
            **settings,
        )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {message}")


def _add_key_options(parser: argparse.ArgumentParser, keys: Iterable[ConfigKey]) -> None:
    groups: dict[str, Any] = {}
    for key in keys:
        section, text = key.name.partition(".")[0], key.help
        group = groups.get(section) or groups.setdefault(section, parser.add_argument_group(f"{section} (YAML values)"))
        if key.default is not dataclasses.MISSING:
            # JSON is YAML: what stands here can be given back on the command line.
            default = key.default if isinstance(key.default, str) else json.dumps(key.default, default=str)
            text += f" (default: {default})"
        group.add_argument(f"--{key.name}", dest=_KEY + key.name, metavar="VALUE", help=text.replace("%", "%%"))


def _set_given(
    data: dict[str, Any], given: Mapping[str, str | list[str]], types: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Set keys, and entries of mappings; gives the options that are neither, and what is wrong with others' values."""
    mappings = tuple(f"{name}." for name, declared in types.items() if get_origin(declared) is dict)
    unknown: list[str] = []
    problems: list[str] = []
    for name, text in given.items():
        declared = types.get(name, Any)
        if name not in types and not name.startswith(mappings):
            unknown.append(f"--{name}")
            continue
        try:
            value = text if isinstance(text, list) else _command_line_value(text, declared)
        except (yaml.YAMLError, RecursionError) as error:
            what = f"expected {describe_type(declared)} as YAML, found {text!r}: {describe_yaml_error(error)}"
            problems.append(f"command line: {name}: {what}")
            continue
        *sections, leaf = name.split(".")
        inner = data
        for section in sections:  # those that are missing or null appear
            inner[section] = inner[section] if isinstance(inner.get(section), dict) else {}
            inner = inner[section]
        inner[leaf] = value
    return unknown, problems


def _command_line_value(text: str, declared: Any) -> Any:
    """The value that a key's text stands for: YAML, but a bare value as it stands where text or a list of it is taken.

    Globs, templates and names such as `*.parquet`, `{title}` or `2026` mean something else in YAML. A text that is none
    raises YAMLError for a key that does not take text.
    """
    accepted = union_options(declared)
    takes_list = tuple[str, ...] in accepted
    if declared is not Any and str not in accepted:
        value = parse_value(text.strip())
        return text if takes_list and isinstance(value, (int, float)) else value
    if type(None) in accepted and text in ("null", "~"):
        return None
    if declared is Any or text.startswith(("'", '"')) or (takes_list and text.startswith("[")):
        try:
            value = parse_value(text)
        except yaml.YAMLError:
            return text
        return value if declared is Any or isinstance(value, (str, list)) else text
    return text


def option_names_in(arguments: Iterable[str]) -> list[str]:
    """The option names among command-line arguments, without their values."""
    return [argument.partition("=")[0] for argument in arguments if argument.startswith("-") and len(argument) > 1]


def _no_option(arguments: Iterable[str]) -> str:
    return f"command line: expected options only, found {hide_login(' '.join(arguments))!r}"


def _unknown_option(option: str, known: Iterable[str]) -> str:
    return f"command line: unknown option {option}. {did_you_mean(option, known)}"


def to_pipeline_options(
    section: Mapping[str, Any], arguments: Sequence[str] = (), *, option_names: Iterable[str] = ()
) -> PipelineOptions:
    """Merge the `beam:` section with Beam's options of the command line, which win, and check both.

    Beam itself drops an option that it does not know with a line in the log. Here it is an error, on every runner
    whose options the package knows in full.

    Args:
        section: Option name -> value; false and null mean that the option is not given. `gpu` is ours.
        option_names: Our own options, so that a mistyped one of these is recognised.

    Raises:
        ConfigError: An option that Beam does not know, a value that it refuses, a runner that cannot run this job.
    """
    gpu, section = GpuRequest.of(section), {name: value for name, value in section.items() if name != "gpu"}
    with ExitStack() as stack:
        # Keeps Beam from setting up the root logger, which is the command's: one that has a handler it leaves alone.
        logging.getLogger().addHandler(handler := logging.NullHandler())
        stack.callback(logging.getLogger().removeHandler, handler)
        from apache_beam.options import pipeline_options as beam

        found: list[argparse.ArgumentParser] = []  # the parser with the options of every class that Beam knows
        beam.PipelineOptions([]).get_all_options(add_extra_args_fn=found.append)
        parser = found[0]
        parser.exit_on_error = False
        actions = parser._option_string_actions
        over = {actions[name].dest for name in option_names_in(arguments) if name in actions}
        dests = {name: getattr(actions.get(f"--{name}"), "dest", name) for name in section}
        under = {name: value for name, value in section.items() if value is not None and dests[name] not in over}
        merged = [*beam.PipelineOptions.from_dictionary(under)._flags, *arguments]
        try:
            known, rest = parser.parse_known_args(merged)
        except argparse.ArgumentError as error:
            raise ConfigError(f"Beam option {error}") from error
        except (ValueError, AssertionError) as error:  # Beam's own checks of JSON values
            raise ConfigError(f"Beam options {hide_login(' '.join(merged))}: {error}") from error
        runner = _full_runner_name(known.runner or beam.StandardOptions.DEFAULT_RUNNER, beam.StandardOptions)
        unknown = option_names_in(rest)
        if rest and not unknown:
            raise ConfigError(_no_option(rest))
        if gpu is not None and runner in beam.StandardOptions.LOCAL_RUNNERS:
            raise ConfigError(f"beam.gpu asks an engine for machines, and {runner} has this one; leave it out")
        if unknown and runner in beam.StandardOptions.LOCAL_RUNNERS:
            beam_names = [name[2:] for name in actions]
            raise ConfigError(
                [
                    f"beam: section: unknown option {name[2:]}. {did_you_mean(name[2:], beam_names)}"
                    if name[2:] in section
                    else _unknown_option(name, [*actions, *option_names])
                    for name in unknown
                ]
            )
        options = beam.PipelineOptions(merged)
        options.view_as(beam.StandardOptions).runner = runner
        if runner == "DirectRunner" and known.update_compatibility_version is None:
            options.view_as(beam.StreamingOptions).update_compatibility_version = DIRECT_RUNNER_COMPATIBILITY
        if known.save_main_session is None:
            # Everything that runs on a worker lives in a module; Beam would pickle the main one on some runners.
            options.view_as(beam.SetupOptions).save_main_session = False
    if unknown:
        message = "handed to %s as they are, because Beam's package does not know them: %s"
        log.warning(message, runner, " ".join(unknown))
    return options


def _full_runner_name(name: str, standard_options: Any) -> str:
    """The name that Beam lists a runner under; a class by its full path stands as it is."""
    if "dask" in name.lower():
        raise ConfigError(f"runner {name}: loses what a bundle gives back at its end, without a word; use another one")
    by_lower = {known.lower(): known for known in standard_options.KNOWN_RUNNER_NAMES}
    found = by_lower.get(name.lower()) or by_lower.get(f"{name.lower()}runner")
    if found is None and "." not in name:
        raise ConfigError(f"unknown runner {name}. {did_you_mean(name, by_lower.values())}")
    return found or name
