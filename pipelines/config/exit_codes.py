"""Exit codes tell what became of a command, so that a scheduler can act on them.

    0    published, or nothing changed        3    a gate held the version back, or it waits for approval
    1    failed in work: run again            4    another run works here
    2    refused before any work              5    published, but cleaning up failed
    130, 143: stopped by Ctrl-C or SIGTERM (see `stopping`)

An error that our rooms raise on purpose is a refusal until work begins, and a failure from then on: `failures_of_work`
stands around the work of every command. What each command gives: run_configs/deploy/README.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from encoders.errors import EncoderError
from index_builder.errors import IndexBuilderError
from pipelines.catalog.config import CatalogError
from pipelines.config.validation import ConfigError

DONE = 0
FAILED = 1
REFUSED = 2
HELD = 3
BUSY = 4
NOT_CLEANED = 5

# What our rooms raise on purpose, with messages written for people. Anything else keeps its traceback.
EXPECTED_ERRORS = (ConfigError, CatalogError, EncoderError, IndexBuilderError)


class NothingBegunError(ConfigError):
    """A refusal that comes from the workers: they were asked before the work, and none of it has begun."""


class RunFailedError(Exception):
    """Work failed after it had begun; what is complete stands, and the same command continues."""


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
