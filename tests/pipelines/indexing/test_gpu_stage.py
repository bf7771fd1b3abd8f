"""Which steps of the graph ask for a GPU, read from what an engine would get."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import pytest

from pipelines.config.command_line import load_job_config
from pipelines.config.exit_codes import RunFailedError
from pipelines.config.validation import ConfigError
from pipelines.indexing import job
from pipelines.indexing.catalog_source import CatalogSource
from tests.pipelines.indexing.job import arguments, product, write_catalog

ACCELERATOR = "beam:resources:accelerator:v1"


class SubmittedError(Exception):
    """The job has come as far as its engine."""


def hints_of_steps(folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, str]:
    """The accelerator that each step of the submitted graph asks for."""
    graphs = []

    def submit(root: beam.Pipeline) -> None:
        graphs.append(root.to_runner_api())
        raise SubmittedError

    monkeypatch.setattr(beam.Pipeline, "run", submit)
    write_catalog(folder / "catalog", [product(number) for number in range(80)])
    engine = ("--runner=PortableRunner", "--job_endpoint=localhost:1", "--environment_type=LOOPBACK")
    parsed = load_job_config(arguments(folder, *engine, *options))
    with pytest.raises(RunFailedError):
        job.run_job(CatalogSource(parsed.config), parsed.pipeline_options)
    (graph,) = graphs
    found = {}
    for transform in graph.components.transforms.values():
        environment = graph.components.environments.get(transform.environment_id)
        if environment is not None and ACCELERATOR in environment.resource_hints:
            found[transform.unique_name] = environment.resource_hints[ACCELERATOR].decode()
    return found


def test_the_towers_and_who_asks_their_workers_alone_want_a_gpu(tmp_path, monkeypatch) -> None:
    found = hints_of_steps(tmp_path, monkeypatch, "--beam.gpu", "nvidia-l4:2", "--encoder.device", "cuda")
    assert {name.split("/")[0] for name in found} == {"AskWorkers", "MakeShard"}
    assert set(found.values()) == {"type:nvidia-l4;count:2;install-nvidia-driver"}


def test_without_the_key_no_step_asks(tmp_path, monkeypatch) -> None:
    assert hints_of_steps(tmp_path, monkeypatch) == {}


def test_a_device_that_a_worker_could_do_without_is_refused(tmp_path) -> None:
    engine = ("--runner=PortableRunner", "--job_endpoint=localhost:1")
    parsed = load_job_config(arguments(tmp_path, *engine, "--beam.gpu=nvidia-l4:1"))
    with pytest.raises(ConfigError, match=r"workers with 1 nvidia-l4, but encoder\.device is 'auto'; expected cuda"):
        CatalogSource(parsed.config).check()
