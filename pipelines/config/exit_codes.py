"""Exit codes tell what became of a command, so that a scheduler can act on them.

An error that our rooms raise on purpose is a refusal until work begins, and a failure from then on: `failures_of_work`
stands around the work of every command. What each command gives: guides/errors.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from encoders.errors import EncoderError
from index_builder.errors import IndexBuilderError
from pipelines.catalog.config import CatalogError
from pipelines.config.validation import ConfigError

DONE = 0
"""A version is published, or nothing has changed, or another run has published a newer version meanwhile.

Remedy: None is needed.
"""
FAILED = 1
"""The run failed in its work; the published version stays.

Remedy: Run again: it goes on from what is complete. Read the last line of its log if it fails twice.
"""
REFUSED = 2
"""The config, or what it names, is not usable; nothing was done.

Remedy: Mend the key, the address or the right that the message names.
"""
HELD = 3
"""A gate held the version back, or it waits for approval (`index.publish: ask`); the published one stays.

Remedy: Read its `report.html`, then `python -m pipelines.versions approve`, `hold`, or mend the catalog.
"""
BUSY = 4
"""Another run works on this `work.uri`, or took it over from this one, which stopped there.

Remedy: None is needed: that one publishes.
"""
NOT_CLEANED = 5
"""A version is published, or nothing has changed, but what is no longer needed could not be removed.

Remedy: Free what the message names; the version is good.
"""
INTERRUPTED = 130
"""Stopped by Ctrl-C, or by SIGTERM (143); the lease is given back.

Remedy: Run again: it goes on from what is complete.
"""

# What our rooms raise on purpose, with messages written for people. Anything else keeps its traceback.
EXPECTED_ERRORS = (ConfigError, CatalogError, EncoderError, IndexBuilderError)


class NothingBegunError(ConfigError):
    """A refusal by a worker or an encoder that was asked before the work; none of it has begun.

    Remedy: Give the worker that is named what the submitting machine has: the same folder, packages, encoder or device;
        ask an encoder that is named for what it reads.
    """


class RunFailedError(Exception):
    """Work failed after it had begun; what is complete stands, and the same command continues.

    Remedy: Mend what the message names, and give the same command again: it continues from what is complete.
    """


CONTINUES = "Run the same command again to continue from what is complete."


@contextmanager
def failures_of_work(*kinds: type[Exception], remedy: str = CONTINUES) -> Iterator[None]:
    """Makes RunFailedError of errors within the block that would otherwise be taken for refusals.

    Args:
        kinds: Which; by default all that our rooms raise on purpose.
        remedy: What to do, behind the error's own message; "" for a command that keeps nothing of what it did.
    """
    taken = kinds or EXPECTED_ERRORS
    try:
        yield
    except NothingBegunError:
        raise
    except taken as error:
        raise RunFailedError(f"{error}\n{remedy}".rstrip()) from error
