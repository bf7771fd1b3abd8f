"""Configuration: the typed tree of sections, the YAML files and command lines that it is read from, exit codes.

    schema         the sections of a job, as one frozen dataclass each
    yaml_files     reading a file, with the line of every key
    validation     plain data -> checked config, every mistake named
    parser         command lines made from the tree
    command_line   a Beam job's command line (imports Beam)
    beam_options   Beam's own options, checked (imports Beam)
    commands       exit codes and messages of every command

This listing hands on what needs no Beam: a search starts without loading it. Jobs import
`pipelines.config.command_line.load_job_config`.
"""

from pipelines.config.commands import run_command
from pipelines.config.errors import ConfigError

__all__ = ["ConfigError", "run_command"]
