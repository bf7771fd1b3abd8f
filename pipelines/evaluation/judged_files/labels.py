"""Relevance labels: words or numbers, the order in which tables show them, and which of them mean relevant."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pipelines.config.errors import ConfigError

ESCI = ("Exact", "Substitute", "Complement", "Irrelevant")
"""The labels of paper A and of the ESCI data, best first."""
MOST_LABELS = 12
"""More different labels are no categories."""
_BY_LETTER = {label[0]: label for label in ESCI}
_BY_LOWER = {label.lower(): label for label in ESCI}


def normal_labels(found: Sequence[str]) -> dict[str, str]:
    """Each label as the tables show it.

    E, S, C, I and the four words in any case become the words, if no other label is among them; whole numbers lose
    their decimal point (1.0 is 1). Others stay as they are.
    """
    if all(label in _BY_LETTER or label.lower() in _BY_LOWER for label in found):
        return {label: _BY_LETTER.get(label) or _BY_LOWER[label.lower()] for label in found}
    if all(_number(label) is not None for label in found):
        return {label: f"{float(label):g}" for label in found}
    return {label: label for label in found}


def ordered_labels(labels: Collection[str]) -> tuple[str, ...]:
    """Best first: Exact to Irrelevant, numbers from high to low, then other words by name."""

    def place(label: str) -> tuple[int, float, str]:
        if label in ESCI:
            return 0, ESCI.index(label), label
        number = _number(label)
        return (1, -number, label) if number is not None else (2, 0.0, label)

    return tuple(sorted(set(labels), key=place))


def short_name(label: str) -> str:
    """E, S, C, I for the four words; others as they are."""
    return label[0] if label in ESCI else label


def relevant_labels(labels: Collection[str], asked: Collection[str]) -> frozenset[str]:
    """Which of the labels mean relevant: those asked for, else numbers above 0, else Exact."""
    if asked:
        wanted = set(asked) | set(normal_labels(list(asked)).values())
        return frozenset(wanted & set(labels))
    numbers = {label: _number(label) for label in labels}
    if labels and all(number is not None for number in numbers.values()):
        return frozenset(label for label, number in numbers.items() if number is not None and number > 0)
    return frozenset({ESCI[0]} & set(labels))


def label_grades(labels: Sequence[str], relevant: Collection[str], asked: Mapping[str, int]) -> list[int]:
    """Grade of each label for nDCG: what is asked for, else the number that the label is, else 1 for relevant ones.

    Raises:
        ConfigError: A grade is asked for a label that does not occur, or numbers are not whole.
    """
    if asked:
        normal = normal_labels(list(asked))
        grades = {normal[label]: grade for label, grade in asked.items()}
        unknown = sorted(set(grades) - set(labels) - set(ESCI))
        if unknown:
            raise ConfigError(
                f"evaluation.grades: {unknown[0]!r} is no label of the judgments, which are {list(labels)}"
            )
        return [grades.get(label, 0) for label in labels]
    numbers = [_number(label) for label in labels]
    if any(number is None for number in numbers):
        return [int(label in relevant) for label in labels]
    whole = [int(number) for number in numbers if number is not None and number == int(number)]
    if len(whole) < len(numbers):
        return [int(label in relevant) for label in labels]
    return [max(0, number) for number in whole]


def is_number(label: str) -> bool:
    """Whether a label is a number."""
    return _number(label) is not None


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None
