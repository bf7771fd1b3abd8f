"""Holds the vocabulary of the demo catalog, chooses what a product is, and words its texts and queries.

Colour, pattern and shape are visible in the image and told only in a part of the texts; material, use and brand are
told in the text only. So neither the text nor the image alone knows everything about a product. Every choice comes
from a `random.Random` of its own, seeded by a string of stream, seed and product number: the same product comes out
whatever was drawn before it, in which process, and in which order. Test queries are worded as no training query is,
with the same words.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of product: what it is called, the shapes it is drawn in, what it may be made of and used for."""

    name: str
    nouns: tuple[str, ...]
    shapes: tuple[str, ...]
    materials: tuple[str, ...]
    uses: tuple[str, ...]
    price_range: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Colour:
    """A colour: its words, the first being the usual one, and its sRGB value."""

    words: tuple[str, ...]
    rgb: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pattern:
    """A pattern: words that stand before the noun, words that follow "with", and how often it is drawn."""

    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    weight: int


# Tables are easier to compare in columns of their own.
# fmt: off
_KINDS = (
    Kind(name="mug", nouns=("mug", "cup", "coffee mug"), shapes=("tall", "wide", "tapered"),
         materials=("ceramic", "stoneware", "porcelain", "enamel"), uses=("office", "camping", "breakfast", "travel"),
         price_range=(8, 26)),
    Kind(name="teapot", nouns=("teapot", "tea pot"), shapes=("round", "tall"),
         materials=("ceramic", "porcelain", "cast iron", "stoneware"),
         uses=("breakfast", "afternoon tea", "camping", "gift"), price_range=(22, 75)),
    Kind(name="bottle", nouns=("bottle", "water bottle", "drinking bottle"), shapes=("slim", "wide"),
         materials=("steel", "aluminium", "glass", "plastic"), uses=("hiking", "school", "gym", "cycling"),
         price_range=(9, 38)),
    Kind(name="vase", nouns=("vase", "flower vase"), shapes=("round", "slim", "flared"),
         materials=("ceramic", "porcelain", "glass", "terracotta"),
         uses=("living room", "wedding", "gift", "windowsill"), price_range=(14, 90)),
    Kind(name="lamp", nouns=("lamp", "table lamp"), shapes=("dome", "cone", "drum"),
         materials=("linen", "paper", "metal", "cotton"), uses=("bedside", "reading", "living room", "nursery"),
         price_range=(25, 140)),
    Kind(name="chair", nouns=("chair", "dining chair", "seat"), shapes=("high-back", "low-back", "round-back"),
         materials=("leather", "velvet", "wool", "linen"), uses=("dining room", "office", "nursery", "reading"),
         price_range=(60, 260)),
    Kind(name="sofa", nouns=("sofa", "couch", "settee"), shapes=("two-seat", "three-seat"),
         materials=("leather", "velvet", "linen", "corduroy"),
         uses=("living room", "office", "studio", "guest room"), price_range=(320, 1900)),
    Kind(name="cushion", nouns=("cushion", "pillow", "throw pillow"), shapes=("square", "round", "long"),
         materials=("cotton", "velvet", "wool", "linen"), uses=("bench", "garden", "bedroom", "yoga"),
         price_range=(12, 55)),
    Kind(name="t-shirt", nouns=("t-shirt", "tee", "shirt"), shapes=("short-sleeve", "long-sleeve", "sleeveless"),
         materials=("cotton", "linen", "bamboo", "merino"), uses=("running", "summer", "work", "yoga"),
         price_range=(12, 60)),
    Kind(name="dress", nouns=("dress", "gown"), shapes=("long", "short"),
         materials=("cotton", "silk", "linen", "viscose"), uses=("party", "summer", "wedding", "work"),
         price_range=(35, 220)),
    Kind(name="sneaker", nouns=("sneaker", "trainer", "shoe"), shapes=("low-top", "high-top", "slip-on"),
         materials=("leather", "canvas", "mesh", "suede"), uses=("running", "tennis", "walking", "gym"),
         price_range=(40, 180)),
    Kind(name="hat", nouns=("hat", "headwear"), shapes=("wide-brim", "bucket", "beanie"),
         materials=("wool", "cotton", "felt", "linen"), uses=("beach", "hiking", "winter", "fishing"),
         price_range=(14, 70)),
    Kind(name="sock", nouns=("sock", "socks", "pair of socks"), shapes=("ankle", "knee-high"),
         materials=("wool", "cotton", "bamboo", "merino"), uses=("hiking", "running", "winter", "work"),
         price_range=(5, 24)),
    Kind(name="backpack", nouns=("backpack", "rucksack", "daypack"), shapes=("rounded", "square"),
         materials=("canvas", "nylon", "leather", "polyester"), uses=("hiking", "school", "travel", "cycling"),
         price_range=(28, 170)),
    Kind(name="handbag", nouns=("handbag", "bag", "purse"), shapes=("tote", "round", "boxy"),
         materials=("leather", "canvas", "suede", "straw"), uses=("office", "party", "beach", "shopping"),
         price_range=(30, 290)),
    Kind(name="umbrella", nouns=("umbrella", "parasol", "brolly"), shapes=("domed", "wide"),
         materials=("nylon", "polyester", "cotton", "pongee"), uses=("travel", "golf", "garden", "city"),
         price_range=(12, 65)),
    Kind(name="headphones", nouns=("headphones", "headset"), shapes=("over-ear", "on-ear"),
         materials=("leather", "aluminium", "plastic", "walnut"), uses=("studio", "gaming", "travel", "office"),
         price_range=(35, 330)),
    Kind(name="watch", nouns=("watch", "wristwatch"), shapes=("round", "square"),
         materials=("leather", "silicone", "nylon", "steel"), uses=("diving", "office", "running", "gift"),
         price_range=(45, 420)),
    Kind(name="guitar", nouns=("guitar", "six-string guitar"), shapes=("acoustic", "electric"),
         materials=("maple", "mahogany", "spruce", "walnut"), uses=("studio", "stage", "school", "travel"),
         price_range=(120, 1500)),
)
KINDS: dict[str, Kind] = {kind.name: kind for kind in _KINDS}

USE_PHRASES: dict[str, str] = {
    "office": "the office", "gift": "a gift", "living room": "the living room", "windowsill": "the windowsill",
    "wedding": "a wedding", "bedside": "the bedside", "nursery": "the nursery", "dining room": "the dining room",
    "studio": "the studio", "guest room": "the guest room", "bench": "a bench", "garden": "the garden",
    "bedroom": "the bedroom", "party": "a party", "gym": "the gym", "beach": "the beach", "city": "the city",
    "stage": "the stage",
}
"""How a use stands after "for", where it needs an article."""

COLOURS: dict[str, Colour] = {
    "red": Colour(words=("red", "crimson", "scarlet"), rgb=(206, 44, 46)),
    "orange": Colour(words=("orange", "tangerine"), rgb=(243, 132, 36)),
    "yellow": Colour(words=("yellow", "lemon"), rgb=(247, 205, 54)),
    "green": Colour(words=("green", "emerald"), rgb=(58, 148, 78)),
    "blue": Colour(words=("blue", "cobalt", "azure"), rgb=(46, 104, 196)),
    "purple": Colour(words=("purple", "violet"), rgb=(120, 70, 170)),
    "pink": Colour(words=("pink", "rose"), rgb=(242, 140, 176)),
    "brown": Colour(words=("brown", "chestnut"), rgb=(128, 82, 50)),
    "black": Colour(words=("black", "jet black"), rgb=(44, 44, 50)),
    "white": Colour(words=("white", "ivory"), rgb=(247, 246, 242)),
}

PATTERNS: dict[str, Pattern] = {
    "plain": Pattern(adjectives=("plain", "solid"), nouns=("no print", "a plain finish"), weight=28),
    "striped": Pattern(adjectives=("striped", "stripy"), nouns=("stripes", "bold stripes"), weight=15),
    "dotted": Pattern(adjectives=("dotted", "polka dot", "spotted"), nouns=("dots", "polka dots"), weight=15),
    "checked": Pattern(adjectives=("checked", "gingham", "plaid"), nouns=("checks", "a check pattern"), weight=14),
    "zigzag": Pattern(adjectives=("zigzag", "chevron"), nouns=("zigzags", "a zigzag print"), weight=14),
    "floral": Pattern(adjectives=("floral", "flowered"), nouns=("flowers", "a flower print"), weight=14),
}

BRANDS: tuple[str, ...] = (
    "Norvik", "Alderby", "Casa Lune", "Brightwater", "Tamsin & Fell", "Oakhollow", "Pellandra", "Quillon", "Marenko",
    "Sundrift", "Velmora", "Harrowgate Row", "Inkberry", "Lumenor", "Kestrelle", "Fjordwell", "Ostara", "Bramblewick",
    "Zephyrine", "Copperlane", "Mistral Yard", "Juniper Post", "Calderstone", "Orrery", "Plumfield", "Wexcombe",
    "Tidewright", "Saffronelle", "Greymont", "Aurelio Vane", "Birchline", "Dovetail Road",
)
# fmt: on


Stream = Literal["demo", "training"]
"""Which products: those of the demo catalog, or those that the demo encoder is trained on. They share no product."""

FIELDS = ("colour", "pattern", "shape", "material", "use", "brand")
"""What a product has besides its kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attributes:
    """What a product is; its title, description and picture are made from this."""

    kind: str
    colour: str
    pattern: str
    shape: str
    material: str
    use: str
    brand: str


def product_random(stream: str, seed: int, number: int, purpose: str) -> random.Random:
    """A generator for one purpose ("attributes", "picture", "text", ...) of one product."""
    return random.Random(f"{stream}/{seed}/{number}/{purpose}")


def stable_share(*parts: str) -> float:
    """A number in [0, 1) that depends on the words alone: the same on every machine and in every process."""
    return zlib.crc32("|".join(parts).encode()) / 2**32


def stream_of(attributes: Attributes) -> Stream:
    """The one stream in which a combination of all attributes may occur.

    Half of all combinations belong to each stream, so that no training product is also a demo product, whatever the
    seeds and the sizes of the two.
    """
    values = (getattr(attributes, field) for field in FIELDS)
    return "demo" if stable_share("stream", attributes.kind, *values) < 0.5 else "training"


def choose_attributes(stream: Stream, seed: int, number: int) -> Attributes:
    """The attributes of product `number` of a stream. Kinds take turns, so each is equally frequent."""
    generator = product_random(stream, seed, number, "attributes")
    kind = KINDS[list(KINDS)[number % len(KINDS)]]
    while True:
        attributes = Attributes(
            kind=kind.name,
            colour=generator.choice(list(COLOURS)),
            pattern=generator.choices(list(PATTERNS), weights=[word.weight for word in PATTERNS.values()])[0],
            shape=generator.choice(kind.shapes),
            material=generator.choice(kind.materials),
            use=generator.choice(kind.uses),
            brand=generator.choice(BRANDS),
        )
        if stream_of(attributes) == stream:
            return attributes


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
    shares = TOLD_SHARE | ({"pattern": PLAIN_TOLD_SHARE} if attributes.pattern == "plain" else {})
    told = [field for field, share in shares.items() if generator.random() < share]
    words = _words(attributes, generator)
    in_title = {field for field in told if generator.random() < (0.8 if field == "brand" else 0.5)}
    title = _title(words, in_title, generator)
    description = _description(words, [field for field in told if field not in in_title], generator)
    return title, description


def _words(attributes: Attributes, generator: random.Random) -> dict[str, str]:
    pattern = PATTERNS[attributes.pattern]
    words = {
        "noun": _usually_first(KINDS[attributes.kind].nouns, 0.65, generator),
        "colour": _usually_first(COLOURS[attributes.colour].words, 0.65, generator),
        "pattern": _usually_first(pattern.adjectives, 0.65, generator),
        "pattern_noun": generator.choice(pattern.nouns),
        "shape": attributes.shape,
        "material": attributes.material,
        "use": attributes.use,
        "use_phrase": USE_PHRASES.get(attributes.use, attributes.use),
        "brand": attributes.brand,
    }
    return words | {name.capitalize(): _capitalised(words[name]) for name in ("shape", "material", "noun")}


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
