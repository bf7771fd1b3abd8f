"""Configuration is read from YAML and command lines into the sections of a job."""

from pipelines.config.command_line import run_command
from pipelines.config.validation import ConfigError

__all__ = ["ConfigError", "run_command"]
