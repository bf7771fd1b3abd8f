"""A worker process that is gone ends the run: Beam's runner alone would wait for it."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability import local_job_service
from apache_beam.runners.portability.fn_api_runner.worker_handlers import ControlConnection, SubprocessSdkWorkerHandler

from pipelines.indexing.beam_run import tasks_of_lost_workers_fail

SECONDS = 30.0


@pytest.fixture
def killed() -> threading.Event:
    return threading.Event()


@pytest.fixture
def connection(killed: threading.Event):
    """A connection to a worker that answers one request, and is then killed."""

    def answers():
        yield beam_fn_api_pb2.InstructionResponse(instruction_id="first")
        assert killed.wait(SECONDS)

    with tasks_of_lost_workers_fail():
        made = ControlConnection()
        made.first = made.push(beam_fn_api_pb2.InstructionRequest(instruction_id="first"))
        made.set_input(answers())
        yield made


def test_what_a_killed_worker_was_asked_for_fails(connection, killed):
    waiting = connection.push(beam_fn_api_pb2.InstructionRequest(instruction_id="second"))
    assert not connection.first.get(SECONDS).error
    killed.set()
    assert "Channel closed prematurely" in waiting.get(SECONDS).error


def test_what_a_killed_worker_is_asked_for_later_fails(connection, killed):
    killed.set()
    connection._read_thread.join(SECONDS)
    assert connection.push(beam_fn_api_pb2.InstructionRequest()).get(SECONDS).error
    connection.close()


def test_what_is_asked_of_a_worker_that_ended_before_it_came_fails(monkeypatch, killed):
    class Worker:
        def __init__(self, *_):
            pass

        def run(self):
            assert killed.wait(SECONDS)

    monkeypatch.setattr(local_job_service, "SubprocessSdkWorker", Worker)
    monkeypatch.setattr(SubprocessSdkWorkerHandler, "__init__", lambda handler: None)
    handler = SubprocessSdkWorkerHandler()
    vars(handler).update(_worker_command_line=b"", control_address="", provision_info=None, worker_id="w")
    before = SimpleNamespace(**vars(ControlConnection))
    with tasks_of_lost_workers_fail():
        handler.control_conn = ControlConnection()
        waiting = handler.control_conn.push(beam_fn_api_pb2.InstructionRequest())
        handler.start_worker()
        killed.set()
        assert waiting.get(SECONDS).error
    assert (ControlConnection._read, ControlConnection.push) == (before._read, before.push)
