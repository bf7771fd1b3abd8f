"""The frame around a command: exit codes, and one clear message instead of a traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence

from encoders.errors import EncoderError
from index_builder.errors import IndexBuilderError
from pipelines.catalog.config import CatalogError
from pipelines.config.errors import ConfigError

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

# The errors that our rooms raise on purpose, with messages written for people. Anything else is a bug or a machine's
# failure, and keeps its traceback.
EXPECTED_ERRORS: tuple[type[Exception], ...] = (ConfigError, CatalogError, EncoderError, IndexBuilderError)

_ROOMS = ("pipelines", "encoders", "index_builder")


def show_log_lines() -> None:
    """Writes what our rooms say about their work to stderr, and of libraries only warnings.

    A command calls it before it imports Beam, which sets the log up in its own way where nobody has.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for room in _ROOMS:
        logging.getLogger(room).setLevel(logging.INFO)


def run_command(
    main: Callable[[Sequence[str]], int | None],
    argv: Sequence[str] | None = None,
    *,
    exit_codes: Mapping[type[Exception], int] | None = None,
) -> int:
    """Run a command's main function and turn its errors into an exit code.

    Use it as ``if __name__ == "__main__": sys.exit(run_command(main))``.

    Args:
        main: Takes the arguments without the program's name; gives the exit code, None for 0.
        argv: The arguments; those of the process by default.
        exit_codes: Further errors whose message is enough, and their exit codes.

    Returns:
        What `main` gave; 2 after an error that our rooms raise on purpose, its message on stderr; 130 after Ctrl-C.
    """
    codes = {**dict.fromkeys(EXPECTED_ERRORS, EXIT_USAGE), **(exit_codes or {})}
    try:
        return main(sys.argv[1:] if argv is None else argv) or 0
    except tuple(codes) as error:
        sys.stderr.write(f"error: {error}\n")
        # The error's own class first, then the nearest one above it.
        return next(codes[kind] for kind in type(error).__mro__ if kind in codes)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from what is complete\n")
        return EXIT_INTERRUPTED
