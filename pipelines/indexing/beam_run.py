"""A pipeline is run on whatever runner the options name: its errors are told in words, its metrics are read.

What a runner raises is written down whole in the run's folder; people get the first reason and how to go on.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions
from apache_beam.options.pipeline_options import PipelineOptions as BeamOptions
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner.worker_handlers import ControlConnection, SubprocessSdkWorkerHandler
from apache_beam.runners.runner import PipelineResult

from index_builder import storage
from index_builder.meter import Counts
from pipelines.config.exit_codes import NothingBegunError, RunFailedError, failures_of_work
from pipelines.config.stopping import at_stop
from pipelines.indexing.build_steps import EmptyCatalogError
from pipelines.indexing.metrics import for_beam, joined
from pipelines.indexing.run_record import STAGES, RunRecord
from pipelines.indexing.worker_probe import said_by_worker

_REASON_CHARACTERS = 400
_LOST_WORKER = (
    "Channel closed prematurely",  # Beam's own runners
    "closed by remote task manager",  # Flink
    "is no longer reachable",
    "ExecutorLostFailure",  # Spark
)
_CHANNEL_LOGS = (
    "apache_beam.runners.worker.data_plane",
    "apache_beam.runners.portability.fn_api_runner.worker_handlers",
)

log = logging.getLogger(__name__)


@contextmanager
def beam_run(options: BeamOptions, record: RunRecord) -> Iterator[beam.Pipeline]:
    """Yields a pipeline to put steps into; it runs when the block ends.

    Raises:
        NothingBegunError: A worker must not work for this run (see `worker_probe`), and none had begun.
        RunFailedError: A worker failed; what is complete stands, and a rerun continues from there.
    """
    filters = {"apache_beam.runners.common": _is_unexpected, "": _is_no_job_error}
    filters |= dict.fromkeys(_CHANNEL_LOGS, _has_no_traceback)
    for name, keeps in filters.items():
        logging.getLogger(name).addFilter(keeps)
    said_of_threads, threading.excepthook = threading.excepthook, partial(_say_of_thread, threading.excepthook)
    try:
        root = beam.Pipeline(options=options)
        with failures_of_work(), at_stop(partial(_cancel, root)), tasks_of_lost_workers_fail(), root:
            yield root
    except Exception as error:
        failures = record.failures()
        if not failures:
            raise as_told(error, record, options) from error
        first = failures[0]
        if first["kind"] == EmptyCatalogError.__name__:  # nothing broke, and another run comes to the same end
            raise RunFailedError(first["message"]) from error
        raise RunFailedError(
            f"stage {first['stage']} failed on unit {first['unit']}: {first['kind']}: {first['message']}\n"
            f"The traceback is in {storage.join(record.uri, 'failures')}. What is complete stands: "
            "run the same command again to continue."
        ) from error
    finally:
        threading.excepthook = said_of_threads
        for name, keeps in filters.items():
            logging.getLogger(name).removeFilter(keeps)


@contextmanager
def tasks_of_lost_workers_fail() -> Iterator[None]:
    """Within the block, what a worker process was asked for fails when that process is gone.

    Beam's own runner notices only by the channel of data, while it is open: for the rest of a worker that was killed as
    it started, between two tasks, or after it had handed over its data, it waits for ever.
    """
    read, push = ControlConnection._read, ControlConnection.push
    start_worker = SubprocessSdkWorkerHandler.start_worker
    lost = WeakSet[ControlConnection]()

    def lose(connection: ControlConnection) -> None:
        lost.add(connection)
        for name in list(connection._futures_by_id):
            if (waiting := connection._futures_by_id.pop(name, None)) is not None:
                said = f"{_LOST_WORKER[0]}: the worker is gone"
                waiting.set(beam_fn_api_pb2.InstructionResponse(instruction_id=name, error=said))

    def read_until_lost(connection: ControlConnection) -> None:
        try:
            read(connection)
        finally:
            lose(connection)

    def push_unless_lost(connection: ControlConnection, request: Any) -> Any:
        future = push(connection, request)
        if connection in lost:
            lose(connection)
        return future

    def start_and_watch(handler: SubprocessSdkWorkerHandler) -> None:
        def watch() -> None:
            handler.worker_thread.join()
            lose(handler.control_conn)

        start_worker(handler)
        threading.Thread(target=watch, name="worker-watch", daemon=True).start()

    with ExitStack() as patched:
        for kind, name, function in (
            (ControlConnection, "_read", read_until_lost),
            (ControlConnection, "push", push_unless_lost),
            (SubprocessSdkWorkerHandler, "start_worker", start_and_watch),
        ):
            patched.callback(setattr, kind, name, getattr(kind, name))
            setattr(kind, name, function)
        yield


def as_told(error: Exception, record: RunRecord, options: BeamOptions) -> Exception:
    """What a person is told of a run that no worker wrote a failure down for."""
    if not has_workers(options):
        return error
    reason = said_by_worker(str(error))
    if reason is not None and not any(record.reports(stage) for stage in ("embed", "import")):
        return NothingBegunError(reason)
    path = storage.join(record.uri, "runner.txt")
    storage.write_bytes_atomic(path, "".join(traceback.format_exception(error)).encode())
    reason = reason or _last_exception(str(error))
    if any(sign in str(error) for sign in _LOST_WORKER):
        reason = (
            f"a worker ended before its work did; it was killed, or its machine is gone or out of memory ({reason})"
        )
    if len(reason) > _REASON_CHARACTERS:
        reason = f"{reason[:_REASON_CHARACTERS]} ..."
    return RunFailedError(
        f"the runner ended the run: {reason}\nAll that it said is in {path}. "
        "What is complete stands: run the same command again to continue."
    )


def _last_exception(text: str) -> str:
    """The line that tracebacks come to; all words where there are none."""
    lines = [line for line in text.splitlines() if line.strip() and not line[0].isspace()]
    said = [line for line in lines if not line.startswith(("Traceback", "During handling", "The above exception"))]
    return said[-1].strip() if said and len(said) < len(lines) else " ".join(text.split())


def has_workers(options: BeamOptions) -> bool:
    """Whether the work is done by other processes than this one, here or on other machines."""
    return works_elsewhere(options) or options.view_as(DirectOptions).direct_running_mode == "multi_processing"


def works_elsewhere(options: BeamOptions) -> bool:
    """Whether other machines may do the work."""
    return str(options.view_as(StandardOptions).runner) not in StandardOptions.LOCAL_RUNNERS


def _is_no_job_error(line: logging.LogRecord) -> bool:
    """False for the traceback with which a job server says that a job failed: the run says why, and keeps it."""
    return line.module != "portable_runner" or line.levelno < logging.ERROR


def _is_unexpected(line: logging.LogRecord) -> bool:
    """False for Beam's own lines, with traceback, about errors that our rooms raise on purpose: the run says those."""
    kind = line.exc_info[0] if line.exc_info else None
    return kind is None or kind.__module__.partition(".")[0] not in ("pipelines", "index_builder", "encoders")


def _has_no_traceback(line: logging.LogRecord) -> bool:
    """False for what a channel says when the worker at its other end is gone."""
    return line.exc_info is None


def _say_of_thread(say: Callable[[threading.ExceptHookArgs], object], failure: threading.ExceptHookArgs) -> None:
    """Leaves out Beam's own threads, which fail one by one when a worker is gone: the run says that once."""
    frames = traceback.extract_tb(failure.exc_traceback)
    if not any("apache_beam" in frame.filename for frame in frames):
        say(failure)


def _cancel(root: beam.Pipeline) -> None:
    """Ends a pipeline that runs elsewhere; the direct runner's is over with this process."""
    result = getattr(root, "result", None)
    if result is not None:
        result.cancel()


def count_in_beam(stage: str, counts: Counts) -> None:
    """Adds a task's counts to Beam's, in the stage's namespace; outside of a bundle nothing happens."""
    for kind, name, value in for_beam(counts):
        if kind == "distribution":
            Metrics.distribution(stage, name).update(value)
        else:
            Metrics.counter(stage, name).inc(value)


def counted_by_runner(result: PipelineResult | None) -> dict[str, Counts]:
    """What the runner counted, by stage; empty where it gives no metrics."""
    try:
        found = result.metrics().query() if result is not None else {}
    except Exception as error:  # noqa: BLE001  # each runner raises its own; the run record has the same numbers
        log.warning("the runner gives no metrics: %s", error)
        return {}
    sums: dict[str, Counts] = {}
    for each in [*found.get("counters", ()), *found.get("distributions", ())]:
        name, value = each.key.metric, each.result
        if name.namespace not in STAGES or value is None:
            continue
        is_counter = isinstance(value, int)
        short = value if is_counter else {part: getattr(value, part) for part in ("count", "sum", "min", "max")}
        of_stage = sums.setdefault(name.namespace, {})
        if (before := of_stage.get(name.name)) is not None:  # of another step of the same stage
            short = before + short if is_counter else joined(before, short)
        of_stage[name.name] = short
    return sums
