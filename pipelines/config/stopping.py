"""Ctrl-C and SIGTERM end a command at once, whatever it is doing: what must be left in order is, then the process ends.

Beam's runners hold the main thread for hours, and an exception raised there waits for every thread below it, or becomes
a failure of the shard under way. So no exception is raised: a thread hears the signal, stops the process's children,
calls what is registered by `at_stop`, and ends the process. Work that was begun is lost, as by a kill; what is complete
stands. The module is light, so that a command can be stopped while it loads the rest.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

EXIT_BY_SIGNAL = 128
"""Plus the number of the signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""

_SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_SETTLE_SECONDS = 0.5
_LONGEST_SECONDS = 20.0  # an orchestrator kills after 30

_at_stop: list[Callable[[], None]] = []
_stopping = threading.Event()


@contextmanager
def at_stop(callback: Callable[[], None]) -> Iterator[None]:
    """Has a function called if the process is stopped within the block; those of inner blocks come first."""
    _at_stop.append(callback)
    try:
        yield
    finally:
        _at_stop.remove(callback)


def end_on_signals() -> None:
    """Hears SIGINT and SIGTERM from now on, for the rest of the process; called on the main thread, once.

    Processes started from now on are deaf to SIGINT: a terminal sends it to all of them, and each would say so at
    length. They end with this one.
    """
    heard = [number for number in _SAID if signal.getsignal(number) != signal.SIG_IGN]  # ignored by nohup and the like
    threading.excepthook = partial(_fail, threading.excepthook)
    if sys.platform == "linux" and signal.SIGINT in heard:
        # Blocked in every thread from here on, and so kept for `sigwait` although ignored; what this process starts
        # inherits that it is ignored, through a shell as well, which lifts the block.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_wait_for_interrupt, name="interrupts", daemon=True).start()
        heard.remove(signal.SIGINT)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in heard:
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_listen, args=(reading, frozenset(heard)), name="signals", daemon=True).start()


def _fail(said: Callable[[threading.ExceptHookArgs], object], failure: threading.ExceptHookArgs) -> None:
    """Of a thread that failed: what is about to be stopped, with its workers, fails first."""
    if not _stopping.wait(_SETTLE_SECONDS):
        said(failure)


def wait_if_stopping() -> None:
    """Keeps the main thread from ending a process that is being stopped: that its work then fails is no news."""
    if _stopping.is_set():
        time.sleep(2 * _LONGEST_SECONDS)


def _wait_for_interrupt() -> None:
    while True:
        _heard(signal.sigwait({signal.SIGINT}))


def _listen(reading: int, numbers: frozenset[int]) -> None:
    while True:
        number = os.read(reading, 1)[0]
        if number in numbers:
            _heard(number)


def _heard(number: int) -> None:
    """Stops the process, or ends it at once if it is being stopped already."""
    if _stopping.is_set():
        _end(number)
    _stopping.set()
    threading.Thread(target=_stop, args=(number,), name="stop", daemon=True).start()
    timer = threading.Timer(_LONGEST_SECONDS, _end, args=(number,))
    timer.daemon = True
    timer.start()


def _stop(number: int) -> None:
    import io
    import logging

    logging.disable()
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()  # threads that fail now write here
    kill_children()
    for callback in reversed(_at_stop):
        with suppress(Exception):
            callback()
    for stream in streams:
        with suppress(Exception):
            stream.flush()
    with suppress(OSError):
        text = f"{_SAID[signal.Signals(number)]}: run the same command again to continue from what is complete\n"
        os.write(2, text.encode())
    _end(number)


def _end(number: int) -> None:
    kill_children()
    os._exit(EXIT_BY_SIGNAL + number)


def kill_children() -> None:
    """Kills the processes that this one started, and theirs; where `/proc` tells them."""
    children = _descendants(os.getpid())
    for number in (signal.SIGSTOP, signal.SIGKILL):  # all are still before the first is gone, and none says so
        for child in children:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, number)


def _descendants(pid: int) -> list[int]:
    """The children of a process and all below them, parents first."""
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as listing:
                found += [int(child) for child in listing.read().split()]
    return [*found, *(below for child in found for below in _descendants(child))]
