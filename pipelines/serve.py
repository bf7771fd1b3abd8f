"""Serves published versions over HTTP, with a search page: `python -m pipelines.serve --index URI`.

Exit codes: 0 ended by a signal, 1 the application did not start, 2 the configuration, an address or the port cannot be
used.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from pipelines.config.command_line import address, parse_arguments, run_command
from pipelines.config.log_lines import show_log_lines
from pipelines.config.validation import ConfigError
from pipelines.server.config import ServerJobConfig


def main(argv: Sequence[str]) -> int:
    """Opens every index, then listens until it is told to end."""
    parsed = parse_arguments(
        argv,
        ServerJobConfig,
        default_config="serve.yaml",
        prog="python -m pipelines.serve",
        description="Serve published versions over HTTP, with a search page.",
        add_options=lambda parser: parser.add_argument(
            "--index",
            dest="key.server.indexes.main",
            type=address,
            metavar="URI",
            help="where versions are published; short for --server.indexes.main",
        ),
    )
    config = parsed.config
    indexes = config.server.indexes
    if vars(parsed.flags).get("key.server.indexes.main") is not None:  # what the command line names is the default
        first = {"main": indexes["main"]} | indexes
        config = dataclasses.replace(config, server=dataclasses.replace(config.server, indexes=first))
    if not config.server.indexes:
        raise ConfigError("nothing to serve: expected --index URI, or server.indexes in the config")
    try:
        from pipelines.server.run import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "starlette", "prometheus_client", "multipart", "python_multipart"):
            raise
        raise ConfigError("the server needs the extra `serve`: pip install -e '.[serve]'") from error
    show_log_lines()
    return serve(config)


if __name__ == "__main__":
    sys.exit(run_command(main))
