"""Configuration: the sections of a job, the YAML files and command lines that they are read from, exit codes."""

from pipelines.config.command_line import run_command
from pipelines.config.validation import ConfigError

__all__ = ["ConfigError", "run_command"]
