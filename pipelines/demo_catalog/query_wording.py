"""How a shopper words a query: a noun with adjectives before it and phrases after it.

Test queries are worded as no training query is, with the same words.
"""

from __future__ import annotations

import random

from pipelines.demo_catalog.vocabulary import COLOURS, KINDS, PATTERNS, USE_PHRASES

_USUAL_ORDER = ("brand", "shape", "colour", "pattern", "material", "use")


def training_wording(kind: str, wanted: dict[str, str], generator: random.Random) -> str:
    """A query for a kind with attributes (field to value): some before the noun, some after it."""
    order = [field for field in _USUAL_ORDER if field in wanted]
    if generator.random() < 0.4:
        generator.shuffle(order)
    before, after = [], []
    for field in order:
        follows = field != "shape" and generator.random() < (0.6 if field == "use" else 0.35)
        if follows:
            after.append(_phrase(field, wanted[field], generator))
        else:
            before.append(_adjective(field, wanted[field], generator))
    text = " ".join([*before, _noun(kind, generator), *after])
    return text if generator.random() < 0.15 else text.lower()


def held_out_wording(kind: str, wanted: dict[str, str], generator: random.Random) -> str:
    """The noun first and all else bare after it, or an attribute set off by a comma at the end."""
    words = [_adjective(field, value, generator) for field, value in wanted.items()]
    generator.shuffle(words)
    noun = _noun(kind, generator)
    if generator.random() < 0.5:
        return " ".join([noun, *words]).lower()
    return f"{' '.join([*words[:-1], noun])}, {words[-1]}".lower()


def _noun(kind: str, generator: random.Random) -> str:
    return _usually_first(KINDS[kind].nouns, 0.75, generator)


def _adjective(field: str, value: str, generator: random.Random) -> str:
    """An attribute as it stands before the noun."""
    if field == "colour":
        return _usually_first(COLOURS[value].words, 0.7, generator)
    if field == "pattern":
        return _usually_first(PATTERNS[value].adjectives, 0.7, generator)
    return value


def _phrase(field: str, value: str, generator: random.Random) -> str:
    """An attribute as it stands after the noun."""
    if field == "colour":
        return f"in {_adjective(field, value, generator)}"
    if field == "pattern":
        return f"with {generator.choice(PATTERNS[value].nouns)}"
    if field == "material":
        return f"{generator.choice(('made of', 'in'))} {value}"
    if field == "use":
        return f"for {generator.choice((value, USE_PHRASES.get(value, value)))}"
    return f"by {value}"


def _usually_first(options: tuple[str, ...], share: float, generator: random.Random) -> str:
    return options[0] if generator.random() < share else generator.choice(options)
