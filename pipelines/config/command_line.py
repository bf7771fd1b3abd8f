"""The command line of a Beam job: config keys, a few flags, and Beam's own options, all checked before any work."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipelines.config.beam_options import check_beam_options, to_pipeline_options
from pipelines.config.errors import ConfigError
from pipelines.config.job import IndexJobConfig, JobConfig, to_yaml
from pipelines.config.parser import parse_arguments

if TYPE_CHECKING:
    # At run time `beam_options` is the first to import Beam, quietly.
    from apache_beam.options.pipeline_options import PipelineOptions

_BEAM_EPILOG = (
    "Every other option is handed to Apache Beam: --runner, --direct_num_workers, --direct_running_mode and whatever "
    "the chosen runner documents. An option that neither of us knows is an error."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedIndexCommand:
    """The command line of `pipelines.build_index`, read and checked; see `ParsedCommand`."""

    config: IndexJobConfig
    pipeline_options: PipelineOptions
    plan: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedCommand:
    """The command line of a job, read and checked.

    Attributes:
        config: The whole configuration.
        beam_args: The arguments that are Beam's, as they stood.
        pipeline_options: Those and the `beam:` section as Beam takes them.
        full: Embed every product again (`--full`).
        plan: Say what a run would do, and stop (`--plan`).
    """

    config: JobConfig
    beam_args: list[str]
    pipeline_options: PipelineOptions
    full: bool
    plan: bool


def load_job_config(
    argv: Sequence[str],
    *,
    default_config: str = "demo.yaml",
    prog: str = "python -m pipelines.embed_catalog",
    description: str = "Embed a product catalog, build its index and publish a version of it.",
) -> ParsedCommand:
    """Read a job's command line.

    `--help` and `--print-config` print and raise `SystemExit(0)`.

    Args:
        argv: Arguments without the program's name.
        default_config: File or shipped name that is read where no `--config` is given.
        prog: How the command is called, for `--help`.
        description: What it does, for `--help`.

    Raises:
        ConfigError: Naming every problem of the file, the command line and Beam's options.
    """
    parsed = parse_arguments(
        argv,
        JobConfig,
        default_config=default_config,
        description=description,
        prog=prog,
        add_options=_add_job_flags,
        epilog=_BEAM_EPILOG,
        check_rest=_problems_of_beam_options,
    )
    if parsed.flags.print_config:
        sys.stdout.write(to_yaml(parsed.config))
        raise SystemExit(0)
    return ParsedCommand(
        config=parsed.config,
        beam_args=parsed.rest,
        pipeline_options=to_pipeline_options(parsed.config.beam, parsed.rest),
        full=parsed.flags.full,
        plan=parsed.flags.plan,
    )


def load_index_job_config(argv: Sequence[str]) -> ParsedIndexCommand:
    """Read the command line of `pipelines.build_index`; as `load_job_config`.

    Raises:
        ConfigError: Naming every problem of the file, the command line and Beam's options.
    """
    parsed = parse_arguments(
        argv,
        IndexJobConfig,
        default_config="build_index.yaml",
        description="Build an index from vectors that stand, and publish a version of it.",
        prog="python -m pipelines.build_index",
        add_options=_add_build_flags,
        epilog=_BEAM_EPILOG,
        other_sections=("catalog", "fetch", "decode", "encoder"),
        check_rest=_problems_of_beam_options,
    )
    if parsed.flags.print_config:
        sys.stdout.write(to_yaml(parsed.config))
        raise SystemExit(0)
    return ParsedIndexCommand(
        config=parsed.config,
        pipeline_options=to_pipeline_options(parsed.config.beam, parsed.rest),
        plan=parsed.flags.plan,
    )


def _problems_of_beam_options(
    arguments: Sequence[str], data: Mapping[str, Any], option_names: Collection[str]
) -> Sequence[str]:
    section = data.get("beam")
    try:
        check_beam_options(section if isinstance(section, dict) else {}, arguments, option_names=option_names)
    except ConfigError as error:
        return error.problems
    return ()


def _add_build_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", action="store_true", help="print what index would be built, and why, and stop")


def _add_job_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--full", action="store_true", help="embed every product again, carry nothing over")
    parser.add_argument("--plan", action="store_true", help="print what a run would embed and carry over, and stop")


__all__ = ["ConfigError", "ParsedCommand", "ParsedIndexCommand", "load_index_job_config", "load_job_config"]
