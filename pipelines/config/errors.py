"""The error of a configuration that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(ValueError):
    """A configuration, or a command line, that stops a command before any work.

    Attributes:
        problems: One sentence for each thing that is wrong: the key, what was expected, what was found and where.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        lines = [f"{len(self.problems)} things are wrong with the configuration"]
        lines += [f"  - {problem}" for problem in self.problems]
        return "\n".join(lines)
