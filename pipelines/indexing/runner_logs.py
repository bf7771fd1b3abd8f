"""What a runner says of a failure is left out of the log where the run says it once, in words."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

_CHANNEL_LOGS = (
    "apache_beam.runners.worker.data_plane",
    "apache_beam.runners.portability.fn_api_runner.worker_handlers",
)


@contextmanager
def quiet_runner() -> Iterator[None]:
    """Leaves out, while the block runs, tracebacks of Beam that tell nothing more than the run does."""
    filters = {"apache_beam.runners.common": _is_unexpected, "": _is_no_job_error}
    filters |= dict.fromkeys(_CHANNEL_LOGS, _has_no_traceback)
    for name, keeps in filters.items():
        logging.getLogger(name).addFilter(keeps)
    said_of_threads, threading.excepthook = threading.excepthook, partial(_say_of_thread, threading.excepthook)
    try:
        yield
    finally:
        threading.excepthook = said_of_threads
        for name, keeps in filters.items():
            logging.getLogger(name).removeFilter(keeps)


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
