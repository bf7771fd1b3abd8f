"""Configuration: the sections of a job, the YAML files and command lines that they are read from, exit codes.

job          the sections, one frozen dataclass each
validation   plain data -> checked config, every mistake named
command_line YAML, dotted options, Beam's options, exit codes
"""

from pipelines.config.command_line import run_command
from pipelines.config.validation import ConfigError

__all__ = ["ConfigError", "run_command"]
