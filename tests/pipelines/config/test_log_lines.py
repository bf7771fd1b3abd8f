from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import pytest

from pipelines.config.job import LogConfig
from pipelines.config.log_lines import log_context, say_error, show_log_lines, without_secrets


@contextmanager
def fresh_logging() -> Iterator[None]:
    """The root logger as a fresh process has it, and afterwards as pytest had it."""
    root = logging.getLogger()
    (kept, root.handlers), level = (root.handlers, []), root.level
    try:
        yield
    finally:
        root.handlers = kept
        root.setLevel(level)


def test_json_lines_have_their_fields(capsys):
    with fresh_logging():
        show_log_lines(LogConfig(format="json"))
        log = logging.getLogger("pipelines.somewhere")
        with log_context(run="20261126T000000Z", stage="embed", shard="000012"):
            log.info("took %d rows\nof s3://key:secret@bucket/x?X-Amz-Signature=abc", 7)
        try:
            raise ValueError("from https://me:secret@host/a")
        except ValueError:
            log.exception("it broke")
        logging.getLogger("a_library").info("chatter")
        say_error("stage embed failed")
    first, second, third = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "INFO",
        "logger": "pipelines.somewhere",
        "message": "took 7 rows\nof s3://***@bucket/x?...",
        "host": socket.gethostname(),
        "run": "20261126T000000Z",
        "stage": "embed",
        "shard": "000012",
    }
    assert second.keys() == {"time", "level", "logger", "message", "host", "exception"}
    assert "ValueError: from https://***@host/a" in second["exception"]
    assert datetime.fromisoformat(second["time"]).tzinfo is not None
    assert (third["level"], third["message"]) == ("ERROR", "stage embed failed")


def test_plain_lines_stay_plain(capsys):
    with fresh_logging():
        show_log_lines()
        logging.getLogger("pipelines.somewhere").info("reading https://me:secret@host/a")
        say_error("no such file")
    line, error = capsys.readouterr().err.splitlines()
    assert line.endswith(" INFO reading https://***@host/a")
    assert error == "error: no such file"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://cdn.example.com/mug@2x.png is gone", "https://cdn.example.com/mug@2x.png is gone"),
        ("postgresql://u:p@db/shop?password=x", "postgresql://***@db/shop?..."),
        ("('https://u:p@h/a', 'b@c')", "('https://***@h/a', 'b@c')"),
        ("mail me@example.com, nothing to hide", "mail me@example.com, nothing to hide"),
    ],
)
def test_addresses_lose_login_and_query(text, shown):
    assert without_secrets(text) == shown
