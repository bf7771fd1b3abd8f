from __future__ import annotations

import pytest

from pipelines.config.command_line import to_pipeline_options
from pipelines.config.gpu import GpuRequest
from pipelines.config.validation import ConfigError


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("nvidia-l4", "type:nvidia-l4;count:1;install-nvidia-driver"),
        ("nvidia-tesla-t4:4", "type:nvidia-tesla-t4;count:4;install-nvidia-driver"),
        ("nvidia-l4:1:g2-standard-8", "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver"),
    ],
)
def test_a_kind_and_a_number_become_the_hint(given: str, hint: str) -> None:
    request = GpuRequest.of({"runner": "DataflowRunner", "gpu": given})
    assert request is not None
    assert request.hint == hint


def test_nothing_is_asked_for_by_default() -> None:
    assert GpuRequest.of({"runner": "DataflowRunner"}) is None
    assert GpuRequest.of({"gpu": None}) is None


@pytest.mark.parametrize("given", [1, True, "", "nvidia-l4:0", "nvidia-l4:many:x", "2 x L4", ["nvidia-l4"]])
def test_what_cannot_be_read_is_shown_with_what_can(given: object) -> None:
    with pytest.raises(ConfigError, match=r"beam\.gpu: expected .* such as nvidia-l4:1, .*; found "):
        GpuRequest.of({"gpu": given})


def test_the_service_option_for_all_workers_excludes_it() -> None:
    options = ["worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"]
    with pytest.raises(ConfigError, match="leave the option out"):
        GpuRequest.of({"gpu": "nvidia-l4:1", "dataflow_service_options": options})


def test_a_runner_that_hires_no_machines_refuses_it() -> None:
    with pytest.raises(ConfigError, match=r"beam\.gpu asks an engine for machines, and DirectRunner has this one"):
        to_pipeline_options({"gpu": "nvidia-l4:1"})


def test_beam_does_not_get_it_as_an_option() -> None:
    options = to_pipeline_options({"runner": "PortableRunner", "job_endpoint": "localhost:1", "gpu": "nvidia-l4:1"})
    assert "gpu" not in options.get_all_options()
