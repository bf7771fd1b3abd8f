"""The words and values of the demo catalog: kinds of product, colours, patterns, brands."""

from __future__ import annotations

from dataclasses import dataclass


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


def _kinds(*kinds: Kind) -> dict[str, Kind]:
    return {kind.name: kind for kind in kinds}


# Tables are easier to compare in columns of their own.
# fmt: off
KINDS: dict[str, Kind] = _kinds(
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
