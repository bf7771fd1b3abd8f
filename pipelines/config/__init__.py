"""Configuration is read from YAML and command lines into the sections of a job."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.config.command_line import run_command
    from pipelines.config.validation import ConfigError

__all__ = ["ConfigError", "run_command"]


def __getattr__(name: str) -> Any:
    """Loads what is handed on when it is asked for: `stopping` is to be at work before what takes long to load."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipelines.config import command_line

    return getattr(command_line, name)
