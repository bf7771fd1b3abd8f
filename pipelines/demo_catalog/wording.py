"""Titles and descriptions: varied, and silent about much of what the picture shows."""

from __future__ import annotations

import random

from pipelines.demo_catalog.attributes import Attributes
from pipelines.demo_catalog.vocabulary import COLOURS, KINDS, PATTERNS, USE_PHRASES

TOLD_SHARE = {"colour": 0.45, "pattern": 0.40, "shape": 0.45, "material": 0.97, "use": 0.92, "brand": 1.0}
"""How often an attribute is told in title or description."""
PLAIN_TOLD_SHARE = 0.25
"""A shop seldom says that a thing has no pattern."""

_OPENINGS = (
    "Made to be kept for years.", "The {noun} our customers ask for again and again.",
    "Simple, sturdy and good to look at.",
    "New in our range this season.", "A small luxury for every day.", "Designed in our own studio.",
    "An old favourite, made anew.", "All that you need, and nothing else.", "Thoughtfully made by {brand}.",
    "From the {brand} workshop.",
)  # fmt: skip
_MATERIALS = (
    "Made of {material}.", "Crafted from {material}.", "Quality {material}.", "In {material}, easy to care for.",
    "{Material} of the best quality.", "{Material} through and through.",
)  # fmt: skip
_USES = (
    "Made for {use_phrase}.", "Ideal for {use_phrase}.", "Just right for {use_phrase}.", "Great for {use_phrase}.",
    "Our pick for {use_phrase}.", "Also good for {use_phrase}.",
)  # fmt: skip
_COLOURS = ("Comes in {colour}.", "The colour is {colour}.", "In {colour}.", "Coloured {colour}.", "Colour: {colour}.")
_PATTERNS = ("With {pattern_noun}.", "The design: {pattern}.", "Decorated with {pattern_noun}.", "A {pattern} design.")
_SHAPES = ("{Shape} shape.", "The shape is {shape}.", "The {shape} version.", "Our {shape} model.")
_CLOSINGS = (
    "Ships within two days.", "Gift wrapping on request.", "Two years of warranty.", "Wipe clean with a damp cloth.",
    "Packed without plastic.", "Free returns.", "Limited stock.", "Tested by hand before it leaves us.",
)  # fmt: skip


def write_texts(attributes: Attributes, generator: random.Random) -> tuple[str, str]:
    """A product's title and description.

    What is told at all is drawn first (`TOLD_SHARE`), and then whether the title or the description tells it: an
    attribute that is not drawn stands in neither.
    """
    told = [field for field, share in TOLD_SHARE.items() if generator.random() < _share(field, attributes, share)]
    words = _words(attributes, generator)
    in_title = {field for field in told if generator.random() < (0.8 if field == "brand" else 0.5)}
    title = _title(words, in_title, generator)
    description = _description(words, [field for field in told if field not in in_title], generator)
    return title, description


def _share(field: str, attributes: Attributes, share: float) -> float:
    return PLAIN_TOLD_SHARE if field == "pattern" and attributes.pattern == "plain" else share


def _words(attributes: Attributes, generator: random.Random) -> dict[str, str]:
    pattern = PATTERNS[attributes.pattern]
    words = {
        "noun": _usually_first(KINDS[attributes.kind].nouns, generator),
        "colour": _usually_first(COLOURS[attributes.colour].words, generator),
        "pattern": _usually_first(pattern.adjectives, generator),
        "pattern_noun": generator.choice(pattern.nouns),
        "shape": attributes.shape,
        "material": attributes.material,
        "use": attributes.use,
        "use_phrase": USE_PHRASES.get(attributes.use, attributes.use),
        "brand": attributes.brand,
    }
    return words | {name.capitalize(): _capitalised(words[name]) for name in ("shape", "material", "noun")}


def _usually_first(options: tuple[str, ...], generator: random.Random) -> str:
    return options[0] if generator.random() < 0.65 else generator.choice(options)


def _title(words: dict[str, str], fields: set[str], generator: random.Random) -> str:
    style = generator.randrange(4)
    adjectives = [words[field] for field in ("shape", "colour", "pattern", "material") if field in fields]
    if style == 1:
        generator.shuffle(adjectives)
    use, brand = "use" in fields, "brand" in fields
    if style == 3:
        details = [*adjectives, *([f"for {words['use_phrase']}"] if use else [])]
        title = ", ".join([words["Noun"], *details])
        return f"{title} – {words['brand']}" if brand else title
    noun = " ".join([*adjectives, words["noun"]])
    if style == 2 and use:
        noun = " ".join([*adjectives, words["use"], words["noun"]])
    elif use:
        noun = f"{noun} for {words['use_phrase']}"
    if not brand:
        return _capitalised(noun)
    return f"{words['brand']} {noun}" if style in (0, 2) else f"{_capitalised(noun)} by {words['brand']}"


def _description(words: dict[str, str], fields: list[str], generator: random.Random) -> str:
    banks = {"material": _MATERIALS, "use": _USES, "colour": _COLOURS, "pattern": _PATTERNS, "shape": _SHAPES}
    sentences = [generator.choice(banks[field]) for field in fields if field in banks]
    generator.shuffle(sentences)
    if generator.random() < 0.6:
        openings = [text for text in _OPENINGS if "brand" in fields or "{brand}" not in text]
        sentences.insert(0, generator.choice(openings))
    if generator.random() < 0.5 or not sentences:
        sentences.append(generator.choice(_CLOSINGS))
    text = " ".join(sentence.format(**words) for sentence in sentences)
    if "brand" in fields and words["brand"] not in text:
        text = f"{text} Brand: {words['brand']}."
    return text


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
