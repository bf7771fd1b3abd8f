"""Log lines go to standard error, for people or as JSON objects, with no login in them.

A JSON line has `time` (UTC), `level`, `logger`, `message` and `host`; `run`, `stage` and `shard` where it comes from
the thread that does a task; `exception` where there is one.
"""

from __future__ import annotations

import logging
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from pipelines.catalog.config import without_login
from pipelines.config.job import LogConfig

ROOMS = ("pipelines", "encoders", "index_builder")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")
_QUERY = re.compile(r"\?.*")

_context: ContextVar[dict[str, str]] = ContextVar("log_context", default={})  # noqa: B039  # never changed in place


@contextmanager
def log_context(**fields: str) -> Iterator[None]:
    """Puts fields (`run`, `stage`, `shard`) into the JSON lines that this thread logs within the block."""
    token = _context.set(_context.get() | fields)
    try:
        yield
    finally:
        _context.reset(token)


def show_log_lines(config: LogConfig | None = None) -> None:
    """Writes what our rooms say about their work to stderr, and of libraries only warnings."""
    handler = logging.StreamHandler(sys.stderr)
    if config is not None and config.format == "json":
        handler.setFormatter(_json_formatter())
    else:
        handler.setFormatter(_PlainFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for room in ROOMS:
        logging.getLogger(room).setLevel(logging.INFO)


def say_error(message: str) -> None:
    """Says on standard error why a command ends: `error: ...`, or a JSON line where the log consists of them."""
    if any(getattr(handler.formatter, "is_json", False) for handler in logging.getLogger().handlers):
        logging.getLogger(__name__).error("%s", message)
    else:
        sys.stderr.write(f"error: {message}\n")


def without_secrets(text: str) -> str:
    """A text whose addresses have neither login nor query."""
    return _ADDRESS.sub(lambda found: _QUERY.sub("?...", without_login(found[0])), text)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter  # only where JSON is asked for

    class Formatter(JsonFormatter):
        is_json = True

        def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
            texts = {name: without_secrets(value) for name, value in log_data.items() if isinstance(value, str)}
            return super().process_log_record(log_data | texts)

        def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
            time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            log_data |= {"time": time, "level": record.levelname, "logger": record.name, "host": socket.gethostname()}
            log_data |= _context.get()
            super().add_fields(log_data, record, message_dict)

    return Formatter("%(message)s", rename_fields={"exc_info": "exception"}, rename_fields_keep_missing=False)
