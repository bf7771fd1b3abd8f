"""A small config tree for the tests of what reads config trees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Tower:
    """One tower.

    Attributes:
        checkpoint: Where the weights are.
        max_tokens: Longer texts are cut (100 % of them).
    """

    checkpoint: str
    max_tokens: int = 64

    def __post_init__(self) -> None:
        if self.max_tokens < 3:
            raise ValueError(f"max_tokens is {self.max_tokens}: expected 3 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """The `source:` section.

    Attributes:
        uri: One address, or a list
            of them. A second sentence that no help shows.
        mode: What to do with a bad one.
        fields: Names.
        share: A share, 0 to 1.
        tower: Another part, or none.
    """

    uri: str | tuple[str, ...]
    mode: Literal["skip", "stop"] = "skip"
    fields: tuple[str, ...] = ()
    share: float = 0.5
    tower: Tower | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"source.share: expected a number from 0 to 1; found {self.share}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """The `output:` section.

    Attributes:
        uri: Where to write.
        shards: How many files.
        template: A text with fields, or none.
        overwrite: Whether what stands may go.
    """

    uri: str
    shards: int = 1
    template: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """Sections.

    Attributes:
        source: What is read.
        output: What is written.
        extra: Anything.
    """

    source: Source
    output: Output = field(default_factory=lambda: Output(uri="out"))
    extra: dict[str, Any] = field(default_factory=dict)
