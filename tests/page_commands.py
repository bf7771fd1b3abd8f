"""Finds the commands on the pages: those of fenced blocks, to be run in their order, and those named within a text.

A fenced block without a language (or `console`) holds commands where a line begins with `$ `, or with the name of a
program; what stands below a `$ ` line is its output. Lines that end with a backslash go on, `# ...` is a comment.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("python", "python3", "make", "pip", "docker", "java", "curl", "source", "git", ".venv/bin/pre-commit")
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_VARIABLE = re.compile(r"^(\w+)=(.+)$")


@dataclass(frozen=True)
class Command:
    """A command of a page.

    Attributes:
        text: As it stands there, in one line.
        words: What a shell makes of it, variables that the block sets before put in.
    """

    text: str
    words: tuple[str, ...]

    @property
    def module(self) -> str:
        """The module that `python -m` runs; "" for another program."""
        words = self.words
        return words[2] if words[0].endswith(("python", "python3")) and words[1:2] == ("-m",) else ""

    @property
    def arguments(self) -> list[str]:
        """What stands behind the module's name."""
        return list(self.words[3:])


def blocks(page: str, *languages: str) -> list[str]:
    """The page's fenced blocks of these languages."""
    return [text for language, text in _FENCE.findall(page) if language in languages]


def fenced_commands(page: str) -> list[Command]:
    """The commands of a page's blocks, in their order."""
    return [command for block in blocks(page, "", "console", "sh") for command in _commands(block)]


def named_commands(page: str) -> list[Command]:
    """The commands that are named in the text, such as in a table; words in capitals and `...` stand for others."""
    named = re.findall(r"`((?:\.venv/bin/)?python -m [^`]+)`", _FENCE.sub("", page))
    return [Command(" ".join(text.split()), tuple(shlex.split(text))) for text in named]


def _commands(block: str) -> Iterator[Command]:
    lines = re.sub(r"\\\n\s*", "", block).split("\n")
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    variables: dict[str, str] = {}
    for line in lines:
        if setting := _VARIABLE.match(line):
            variables[setting[1]] = shlex.split(setting[2])[0]
            if " " not in re.sub(r"\"[^\"]*\"", "", line):
                continue
        for name, value in variables.items():
            line = line.replace(f"${name}", value)
        for part in line.split(" && "):
            words = shlex.split(part, comments=True) if part.split(" ")[0] in PROGRAMS else []
            if words:
                yield Command(part, tuple(words))


def pages(root: Path, folders: tuple[str, ...]) -> list[Path]:
    """Every page of the project."""
    return sorted([*root.glob("*.md"), *(page for folder in folders for page in (root / folder).rglob("*.md"))])
