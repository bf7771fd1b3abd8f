"""The job that Dataflow would get, from the shipped config: graph, image, accelerators, staged files."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from apache_beam.portability.api import beam_runner_api_pb2

from pipelines.config.command_line import load_job_config
from tests.conftest import PROJECT_ROOT
from tests.engines.processes import JARS
from tests.pipelines.indexing.job import arguments, product, write_catalog

pytestmark = pytest.mark.timeout(600)
IMAGE = "europe-west4-docker.pkg.dev/my-project/shelfmark/worker:gpu"


@pytest.fixture
def python() -> Path:
    """An interpreter that has Google's packages beside ours."""
    folder = JARS / "dataflow"
    if not (folder / ".complete").exists():
        pytest.skip(f"no Google packages in {folder}: `make dataflow-test` installs them")
    return folder / "bin" / "python"


def test_the_job_comes_whole_to_the_door(tmp_path, python):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(200)])
    shipped = load_job_config(["--config", "dataflow_gpu"]).config.beam
    given = [f"--beam.{name}={json.dumps(value)}" for name, value in shipped.items()] + ["--encoder.device=cuda"]
    command = [python, "-m", "tests.engines.dataflow_job", tmp_path, *arguments(tmp_path, *given)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT), "NO_GCE_CHECK": "true"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=PROJECT_ROOT, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "the runner ended the run: this is where Dataflow takes over" in ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr

    job = json.loads((tmp_path / "job.json").read_text())
    assert job["type"] == "JOB_TYPE_BATCH"
    options = job["environment"]["sdkPipelineOptions"]["options"]
    assert options["number_of_worker_harness_threads"] == 1
    assert "no_use_multiple_sdk_containers" in job["environment"]["experiments"]
    (pool,) = job["environment"]["workerPools"]
    assert pool["machineType"] == "e2-standard-8"
    assert pool["diskSizeGb"] == 100
    assert [image["containerImage"] for image in pool["sdkHarnessContainerImages"]] == [IMAGE]

    (path,) = (tmp_path / "staged").rglob("pipeline.pb")
    data = path.read_bytes()
    assert len(data) < 1_000_000
    graph = beam_runner_api_pb2.Pipeline.FromString(data)
    names = {transform.unique_name for transform in graph.components.transforms.values()}
    steps = ("AskWorkers", "MeetWorkers", "AwaitWorkers", "MakeShard", "NumberProducts", "TrainCodec", "PublishVersion")
    assert not [step for step in steps if not any(name.startswith(step) for name in names)]
    assert {each.urn for each in graph.components.environments.values()} == {"beam:env:docker:v1"}
    hints = [dict(each.resource_hints) for each in graph.components.environments.values()]
    accelerator = b"type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver"
    assert {"beam:resources:accelerator:v1": accelerator} in hints
    assert not list((tmp_path / "work" / "embeddings").glob("*"))
