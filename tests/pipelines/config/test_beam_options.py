from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import (
    DebugOptions,
    DirectOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    StreamingOptions,
)

from pipelines.config import ConfigError
from pipelines.config.command_line import to_pipeline_options


def problems_of(section: dict[str, object], *arguments: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        to_pipeline_options(section, arguments, option_names=("--config", "--catalog.uri"))
    return list(caught.value.problems)


def direct(options: PipelineOptions) -> DirectOptions:
    return options.view_as(DirectOptions)


def test_by_default_one_worker_of_the_direct_runner_in_this_process() -> None:
    options = to_pipeline_options({})
    assert options.view_as(StandardOptions).runner == "DirectRunner"
    assert options.view_as(StreamingOptions).update_compatibility_version == "2.77.0"
    assert direct(options).direct_running_mode == "in_memory"
    assert direct(options).direct_num_workers == 1
    assert options.view_as(SetupOptions).save_main_session is False


def test_the_command_line_wins_over_the_section() -> None:
    section = {"direct_num_workers": 4, "direct_running_mode": "multi_processing"}
    options = to_pipeline_options(section, ["--direct_num_workers", "2"])
    assert direct(options).direct_num_workers == 2
    assert direct(options).direct_running_mode == "multi_processing"


def test_what_the_user_says_stands() -> None:
    options = to_pipeline_options({"save_main_session": True}, ["--update_compatibility_version=2.70.0"])
    assert options.view_as(StreamingOptions).update_compatibility_version == "2.70.0"
    assert options.view_as(SetupOptions).save_main_session is True


def test_lists_and_flags_of_the_section() -> None:
    options = to_pipeline_options({"experiments": ["a", "b"], "no_pipeline_type_check": False, "job_name": None})
    assert options.view_as(DebugOptions).experiments == ["a", "b"]
    assert to_pipeline_options({}, ["--experiments=c"]).view_as(DebugOptions).experiments == ["c"]


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("--direct_num_worker=2", "--direct_num_workers"),
        ("--confg", "--config"),
        ("--runer=DirectRunner", "--runner"),
    ],
)
def test_a_mistyped_option_is_an_error_with_the_nearest_one(argument: str, nearest: str) -> None:
    (problem,) = problems_of({}, argument)
    name = argument.split("=")[0]
    assert problem == f"command line: unknown option {name}. Did you mean '{nearest}'?"


def test_a_mistyped_option_of_the_section_too() -> None:
    (problem,) = problems_of({"direct_num_worker": 2})
    assert problem == "beam: section: unknown option direct_num_worker. Did you mean 'direct_num_workers'?"


def test_several_at_once_and_words_without_an_option() -> None:
    assert len(problems_of({"directt": 1}, "--runer=x", "--confg=y")) == 3
    assert problems_of({}, "catalog.csv") == ["command line: expected options only, found 'catalog.csv'"]


def test_values_that_beam_refuses() -> None:
    (problem,) = problems_of({}, "--direct_num_workers=many")
    assert "direct_num_workers" in problem
    assert "many" in problem
    (problem,) = problems_of({"direct_running_mode": "fast"})
    assert "multi_processing" in problem


def test_runners_are_known_by_their_names() -> None:
    assert to_pipeline_options({}, ["--runner=direct"]).view_as(StandardOptions).runner == "DirectRunner"
    assert problems_of({"runner": "DirctRunner"}) == ["unknown runner DirctRunner. Did you mean 'DirectRunner'?"]
    (problem,) = problems_of({"runner": "apache_beam.runners.dask.dask_runner.DaskRunner"})
    assert "loses what a bundle gives back" in problem


def test_job_servers_bring_options_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        options = to_pipeline_options({"runner": "FlinkRunner", "fasterCopy": True}, ["--parallelism_of_ours=3"])
    assert options.view_as(StandardOptions).runner == "FlinkRunner"
    assert options.view_as(StreamingOptions).update_compatibility_version is None
    given = options.get_all_options(retain_unknown_options=True)
    assert given["parallelism_of_ours"] == "3"
    assert given["fasterCopy"] is True
    assert "--parallelism_of_ours" in caplog.text


def test_a_pipeline_runs_with_them_and_asks_the_network_for_nothing() -> None:
    with beam.Pipeline(options=to_pipeline_options({})) as root:
        _ = root | beam.Create([1, 2, 3]) | beam.CombineGlobally(sum) | beam.Map(_check_sum)


def test_the_root_logger_is_left_to_the_command() -> None:
    code = """
import logging
from pipelines.config.command_line import load_job_config
load_job_config(["--runner=DirectRunner"])
print(logging.getLogger().handlers)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr == ""


def test_worker_processes_do_the_work(tmp_path: Path) -> None:
    """In a process of its own: the direct runner starts its workers with this interpreter's command line."""
    code = """
import os, pathlib, sys
import apache_beam as beam
from pipelines.config.command_line import to_pipeline_options

def leave_a_mark(number):
    import os, pathlib
    pathlib.Path(os.environ["MARKS"], f"{number}-{os.getpid()}").touch()

options = to_pipeline_options({"direct_running_mode": "multi_processing", "direct_num_workers": 2})
with beam.Pipeline(options=options) as root:
    root | beam.Create(range(8)) | beam.Reshuffle() | beam.Map(leave_a_mark)
print(os.getpid())
"""
    environment = {**os.environ, "MARKS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    numbers, processes = zip(*(path.name.split("-") for path in tmp_path.iterdir()), strict=True)
    assert sorted(numbers) == [str(number) for number in range(8)]
    assert done.stdout.strip() not in processes


def _check_sum(found: int) -> None:
    if found != 6:
        raise ValueError(found)
