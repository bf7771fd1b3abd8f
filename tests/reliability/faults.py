"""Planted faults of a catalog, each stopped by a gate or said on the report's first screen, and as many good
nights (1 to 5 % of the products added, removed and edited) of which nothing is said.

    python -m tests.reliability.faults --trials 100 --seed 17

Catalogs are drawn, and vectors are made of what a product shows without towers: a category's direction, its words' and
its picture's. Everything behind that is the product's own: the sample, the detectors, the gates.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from index_builder.embedding_shards import fixed_binary
from index_builder.manifest import CatalogSummary, CodecSummary
from pipelines.config.job import GatesConfig
from pipelines.indexing.gates import failed_gates
from pipelines.indexing.shard_files import Totals
from pipelines.report.contents import find_faults
from pipelines.report.night import Finding, Night, sample_schema, sampled_rows
from tests.reliability.trials import Outcomes, run_command

DIM = 32
PRODUCTS = 1500
GATES = GatesConfig()
KINDS = ("dress", "shirt", "shoe", "mug", "lamp", "chair", "bag", "watch", "sock", "hat")
BRANDS = ("Alder", "Birke", "Cedra", "Dorn", "Esche", "Fichte", "Ginster", "Hasel")
COLOURS = ("red", "blue", "green", "black", "white", "yellow", "striped", "dotted", "grey", "pink")
THINGS = ("cotton", "linen", "leather", "oak", "steel", "glass", "wool", "paper", "silk", "ceramic", "bamboo", "cork")
GERMAN = ("rotes", "blaues", "grünes", "Baumwolle", "Leinen", "Leder", "Eiche", "Stahl", "für", "mit", "und", "Kleid")
RUSSIAN = ("красное", "платье", "хлопок", "синяя", "кружка", "дуб", "лампа", "сталь", "кожа", "шерсть")

Product = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Rows as the shop exports them, and what a night makes of them that is not in a row.

    Attributes:
        encoder, seed_of_weights: The encoder's fingerprint and what its weights are drawn by.
        broken_vectors: Share of the products whose vectors are not numbers.
        types: Columns that are written as another type.
    """

    rows: list[Product]
    encoder: str = "e" * 16
    seed_of_weights: int = 0
    broken_vectors: float = 0.0
    zero_vectors: float = 0.0
    types: dict[str, pa.DataType] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    malformed: int = 0
    broken_images: float = 0.0
    own_title: float = 0.9


def product(number: int, random: Random) -> Product:
    """A product with a category, a brand, a price, a text and a picture of its own."""
    kind, brand = random.choice(KINDS), random.choice(BRANDS)
    words = [random.choice(COLOURS), *random.sample(THINGS, 2), kind, "by", brand]
    about = " ".join(random.choices(THINGS + COLOURS, k=random.randint(8, 20)))
    return {
        "product_id": f"sku-{number:06d}",
        "title": " ".join(words).capitalize(),
        "description": f"A {kind} made of {about}.",
        "kind": kind,
        "brand": brand,
        "price": round(random.lognormvariate(3.0, 0.8), 2),
        "stock": random.randint(0, 400),
        "on_sale": random.random() < 0.2,
        "image": f"image-{number}",
    }


def first_night(random: Random, products: int = PRODUCTS) -> Catalog:
    """A catalog; a few pictures are shared and a few values are missing, as in every shop."""
    rows = [product(number, random) for number in range(products)]
    for row in rows:
        if random.random() < 0.02:
            row["image"] = random.choice(rows)["image"]
        if random.random() < 0.05:
            row["brand"] = None
        if random.random() < 0.005:
            row["title"] = f"{row['title']} &amp; more"
    return Catalog(rows=rows)


def good_night(before: Catalog, random: Random) -> Catalog:
    """1 to 5 % of the products are removed, added and edited; stock moves everywhere."""
    share = random.uniform(0.01, 0.05)
    rows = [dict(row) for row in before.rows if random.random() > share * random.random()]
    for row in rows:
        row["stock"] = max(0, row["stock"] + random.randint(-9, 9)) if row["stock"] is not None else None
        if random.random() < share:
            changed = product(0, random)
            for name in random.sample(
                ["title", "description", "price", "brand", "on_sale", "image"], random.randint(1, 3)
            ):
                row[name] = changed[name]
            if row["image"] == "image-0":
                row["image"] = f"image-{random.randrange(10**9)}"
    start = int(max(row["product_id"] for row in rows)[4:]) + 1
    rows += [product(start + number, random) for number in range(int(share * random.random() * len(before.rows)))]
    return replace(before, rows=rows, own_title=before.own_title + random.uniform(-0.02, 0.02))


def _direction(key: str, cache: dict[str, np.ndarray]) -> np.ndarray:
    if key not in cache:
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
        cache[key] = np.random.default_rng(seed).normal(size=DIM)
    return cache[key]


_directions: dict[str, np.ndarray] = {}


def text_of(row: Product) -> str:
    return " ".join(str(row[name]) for name in ("title", "description") if row.get(name))


def _vector(row: Product, weights: int) -> np.ndarray:
    words = text_of(row).casefold().replace(".", "").split()
    found = (
        sum((_direction(f"{weights} {word}", _directions) for word in words), np.zeros(DIM)) / max(1, len(words)) ** 0.5
    )
    if row.get("image"):
        found = found + _direction(f"{weights} {row['image']}", _directions)
    length = np.linalg.norm(found)
    return found / length if length else found


def night_of(catalog: Catalog, random: Random) -> tuple[Night, Totals]:
    """What the job makes of a catalog: duplicates and empty rows are rejected, broken pictures degrade."""
    seen: set[str] = set()
    rows, reasons = [], Counter({"rejected: malformed_record": catalog.malformed} if catalog.malformed else {})
    for row in catalog.rows:
        row = dict(row)
        if row.get("image") and random.random() < catalog.broken_images:
            row["image"] = None
            reasons["degraded: picture_unreadable"] += 1
        if not row["product_id"]:
            reasons["rejected: missing_id"] += 1
        elif row["product_id"] in seen:
            reasons["rejected: duplicate_id"] += 1
        elif not text_of(row) and not row.get("image"):
            reasons["rejected: empty_product"] += 1
        else:
            seen.add(row["product_id"])
            rows.append(row)
    shown = [name for name in ("title", "kind", "brand", "price", "stock", "on_sale") if name not in catalog.dropped]
    columns: dict[str, pa.Array] = {"product_id": pa.array([row["product_id"] for row in rows], pa.string())}
    for name in shown:
        column = pa.array([row.get(name) for row in rows])
        columns[name] = column.cast(catalog.types[name]) if name in catalog.types else column
    products = pa.table(columns)
    picked = sampled_rows(products)
    vectors = np.stack([_vector(rows[row], catalog.seed_of_weights) for row in picked.tolist()])
    for share, value in ((catalog.broken_vectors, np.nan), (catalog.zero_vectors, 0.0)):
        vectors[np.array([random.random() < share for _ in picked], bool)] = value
    digests = [_digest(row) for row in rows]
    sample = pa.table(
        [
            products["product_id"].take(pa.array(picked)),
            pa.array(picked),
            pa.array([text_of(rows[row])[:121] or None for row in picked.tolist()], pa.string()),
            pa.array([digests[row] for row in picked.tolist()], pa.binary(16)),
            fixed_binary(vectors.astype(np.float16)),
        ],
        schema=sample_schema(DIM),
    )
    rejected = sum(count for reason, count in reasons.items() if reason.startswith("rejected"))
    degraded = reasons["degraded: picture_unreadable"]
    images = Counter(row["image"] for row in rows if row.get("image"))
    counted = Counter(digests)
    figures = {
        "own_title": catalog.own_title,
        "repeated_content": sum(count for count in counted.values() if count > 1) / max(1, len(rows)),
        "repeated_image": images.most_common(1)[0][1] / len(rows) if images else 0.0,
        "without_image": sum(not row.get("image") for row in rows) / max(1, len(rows)),
    }
    rows_in = len(catalog.rows) + catalog.malformed
    summary = CatalogSummary(
        uri="catalog",
        rows_in=rows_in,
        products=len(rows),
        rejected=rejected,
        degraded=degraded,
        by_reason=dict(reasons),
    )
    totals = Totals(
        rows_in=rows_in, products=len(rows), embedded=0, carried_over=len(rows), degraded=degraded, rejected=rejected,
        images_unchanged=0, texts_cut=0, by_reason=dict(reasons), shards=1,
    )  # fmt: skip
    codec = CodecSummary(fingerprint="c", quantization_error=0.1, list_imbalance=1.2)
    night = Night(
        products=products,
        rows=picked,
        sample=sample,
        catalog=summary,
        codec=codec,
        encoder=catalog.encoder,
        figures=figures,
    )
    return night, totals


def _digest(row: Product) -> bytes:
    return hashlib.blake2b(f"{text_of(row)}\0{row.get('image')}".encode(errors="replace"), digest_size=16).digest()


def judged(first: Catalog, second: Catalog, third: Catalog, random: Random) -> tuple[list[str], list[Finding]]:
    """The gates that the third of three nights fails, and what the report's first screen says of it."""
    old, _ = night_of(first, random)
    middle, _ = night_of(second, random)
    _, edited = find_faults(old, middle)  # what changes every night is known from the night before
    middle = replace(middle, edited=edited)
    new, totals = night_of(third, random)
    findings, _ = find_faults(middle, new)
    previous: Any = type("Previous", (), {"catalog": middle.catalog})()
    return failed_gates(GATES, totals, 0.95, previous), findings


# Faults: each changes the rows of a good night.
Fault = Callable[[Catalog, Random], Catalog]
FAULTS: dict[str, Fault] = {}


def fault(name: str) -> Callable[[Fault], Fault]:
    def add(function: Fault) -> Fault:
        FAULTS[name] = function
        return function

    return add


def of_rows(name: str, change: Callable[[Product, Random], Any], share: float = 1.0) -> None:
    """A fault that changes each row, or a share of them, by itself."""

    def apply(catalog: Catalog, random: Random) -> Catalog:
        rows = [dict(row) for row in catalog.rows]
        for row in rows:
            if random.random() < share:
                change(row, random)
        return replace(catalog, rows=rows)

    FAULTS[name] = apply


def _set(name: str, value: Callable[[Product, Random], Any]) -> Callable[[Product, Random], None]:
    def change(row: Product, random: Random) -> None:
        row[name] = value(row, random)

    return change


def _mojibake(text: str | None) -> str | None:
    return text and text.replace("a", "ä").replace("o", "ö").encode().decode("latin-1")


def _both(*changes: Callable[[Product, Random], Any]) -> Callable[[Product, Random], None]:
    def change(row: Product, random: Random) -> None:
        for each in changes:
            each(row, random)

    return change


def _words(words: tuple[str, ...]) -> Callable[[Product, Random], str]:
    return lambda row, random: " ".join(random.choices(words, k=6))


def _swap_texts(row: Product, _: Random) -> None:
    row["title"], row["description"] = row["description"], row["title"]


def _mixed_up(name: str, share: float = 1.0) -> Fault:
    """The values of a column go to other products: all distributions stay as they are."""

    def apply(catalog: Catalog, random: Random) -> Catalog:
        rows = [dict(row) for row in catalog.rows]
        chosen = [row for row in rows if random.random() < share]
        values = [row[name] for row in chosen]
        random.shuffle(values)
        for row, value in zip(chosen, values, strict=True):
            row[name] = value
        return replace(catalog, rows=rows)

    return apply


def _rows(select: Callable[[list[Product], Random], list[Product]]) -> Fault:
    return lambda catalog, random: replace(catalog, rows=select(list(catalog.rows), random))


of_rows("texts in German", _both(_set("title", _words(GERMAN)), _set("description", _words(GERMAN))))
of_rows(
    "a third of the texts in German", _both(_set("title", _words(GERMAN)), _set("description", _words(GERMAN))), 0.33
)
of_rows("texts in Russian", _both(_set("title", _words(RUSSIAN)), _set("description", _words(RUSSIAN))))
of_rows("titles decoded wrongly", _set("title", lambda row, _: _mojibake(row["title"])))
of_rows("a tenth of the titles decoded wrongly", _set("title", lambda row, _: _mojibake(row["title"])), 0.1)
of_rows("markup in titles", _set("title", lambda row, _: f"<b>{row['title']}</b>"))
of_rows("entities in a tenth of the titles", _set("title", lambda row, _: f"{row['title']}&nbsp;&trade;"), 0.1)
of_rows("titles empty", _set("title", lambda row, _: None))
of_rows("a tenth of the titles empty", _set("title", lambda row, _: None), 0.1)
of_rows("all texts empty", _both(_set("title", lambda row, _: None), _set("description", lambda row, _: None)))
of_rows("title and description swapped", _swap_texts)
of_rows("descriptions gone", _set("description", lambda row, _: None))
of_rows("titles upper case", _set("title", lambda row, _: (row["title"] or "").upper()))
of_rows("titles cut at ten characters", _set("title", lambda row, _: (row["title"] or "")[:10]))
of_rows("one title for all", _set("title", lambda row, _: "Product"))
of_rows("titles are ids", _set("title", lambda row, _: row["product_id"]))
of_rows("a notice before each title", _set("title", lambda row, _: f"SALE only today: {row['title']}"))
of_rows("prices null", _set("price", lambda row, _: None))
of_rows("a tenth of the prices null", _set("price", lambda row, _: None), 0.1)
of_rows("prices zero", _set("price", lambda row, _: 0.0))
of_rows("another currency", _set("price", lambda row, _: round(row["price"] * 1.08, 2)))
of_rows("prices in cents", _set("price", lambda row, _: row["price"] * 100))
of_rows("prices negative", _set("price", lambda row, _: -row["price"]))
of_rows("a quarter of the prices of another currency", _set("price", lambda row, _: round(row["price"] * 24.6)), 0.25)
of_rows("stock zero", _set("stock", lambda row, _: 0))
of_rows("stock null", _set("stock", lambda row, _: None))
of_rows("everything on sale", _set("on_sale", lambda row, _: True))
of_rows("brands one brand", _set("brand", lambda row, _: "Default"))
of_rows("brands null", _set("brand", lambda row, _: None))
of_rows("categories renamed", _set("kind", lambda row, _: f"{row['kind']}s"))
of_rows("categories one category", _set("kind", lambda row, _: "other"))
of_rows("one placeholder picture", _set("image", lambda row, _: "placeholder"))
of_rows("a tenth of the pictures a placeholder", _set("image", lambda row, _: "placeholder"), 0.1)
of_rows("pictures gone", _set("image", lambda row, _: None))
of_rows("a tenth of the pictures gone", _set("image", lambda row, _: None), 0.1)
of_rows("ids of another form", _set("product_id", lambda row, _: row["product_id"].replace("sku-", "SKU")))
of_rows("ids missing", _set("product_id", lambda row, _: None), 0.2)
FAULTS["pictures swapped"] = _mixed_up("image")
FAULTS["half of the pictures swapped"] = _mixed_up("image", 0.5)
FAULTS["titles swapped"] = _mixed_up("title")
FAULTS["descriptions swapped"] = _mixed_up("description")
FAULTS["prices swapped"] = _mixed_up("price")
FAULTS["ids swapped"] = _mixed_up("product_id")
FAULTS["feed truncated"] = _rows(lambda rows, random: rows[: int(0.6 * len(rows))])
FAULTS["an eighth of the feed is missing"] = _rows(lambda rows, random: rows[: int(0.875 * len(rows))])
FAULTS["one category gone"] = _rows(lambda rows, random: [row for row in rows if row["kind"] != "dress"])
FAULTS["three quarters of a category gone"] = _rows(
    lambda rows, random: [row for row in rows if row["kind"] != "shoe" or random.random() < 0.25]
)
FAULTS["ids doubled"] = _rows(lambda rows, random: [*rows, *rows])
FAULTS["a tenth of the products again under other ids"] = _rows(
    lambda rows, random: [
        *rows,
        *(row | {"product_id": f"x{row['product_id']}"} for row in rows if random.random() < 0.1),
    ]
)
FAULTS["one product a hundred times"] = _rows(
    lambda rows, random: [*rows, *(rows[0] | {"product_id": f"sku-9{number:05d}"} for number in range(100))]
)
FAULTS["a test feed beside the true one"] = _rows(
    lambda rows, random: [*rows, *(product(10**5 + n, random) | {"title": "test"} for n in range(len(rows) // 4))]
)


@fault("a tenth of the vectors NaN")
def _nan(catalog: Catalog, random: Random) -> Catalog:
    return replace(catalog, broken_vectors=0.1)


@fault("a hundredth of the vectors zero")
def _zero(catalog: Catalog, random: Random) -> Catalog:
    return replace(catalog, zero_vectors=0.01)


@fault("a stale encoder under another fingerprint")
def _stale(catalog: Catalog, random: Random) -> Catalog:
    return replace(catalog, encoder="f" * 16, seed_of_weights=1)


@fault("other weights under the same fingerprint")
def _other_weights(catalog: Catalog, random: Random) -> Catalog:
    return replace(catalog, seed_of_weights=1)


@fault("a query encoder of another night")
def _mismatched(catalog: Catalog, random: Random) -> Catalog:
    return replace(catalog, own_title=0.05)


@fault("a filter column of another type")
def _other_type(catalog: Catalog, random: Random) -> Catalog:
    return replace(catalog, types={"price": pa.string()})


@fault("whole numbers became fractions")
def _fractions(catalog: Catalog, random: Random) -> Catalog:
    return replace(catalog, types={"stock": pa.float64()})


@fault("a column gone")
def _gone(catalog: Catalog, random: Random) -> Catalog:
    return replace(catalog, dropped=("brand",))


@fault("two rows in a hundred malformed")
def _malformed(catalog: Catalog, random: Random) -> Catalog:
    return replace(catalog, malformed=len(catalog.rows) // 50)


@fault("a picture host down")
def _host_down(catalog: Catalog, random: Random) -> Catalog:
    return replace(catalog, broken_images=0.5)


def run(trials: int, seed: int) -> Outcomes:
    """Half faults, each in turn, half good nights."""
    outcomes = Outcomes(frozenset({"stopped", "flagged", "quiet"}))
    names = list(FAULTS)
    for number in range(trials):
        random = Random(f"{seed} {number}")
        first = first_night(random)
        second = good_night(first, random)
        third = good_night(second, random)
        name = names[number // 2 % len(names)] if number % 2 == 0 else ""
        gates, findings = judged(first, second, FAULTS[name](third, random) if name else third, random)
        said = "; ".join(f"{each.what}: {each.found}" for each in findings)
        if name:
            outcome = "stopped" if gates else "flagged" if findings else "missed"
        else:
            outcome = f"false alarm: {gates} {said}" if gates or findings else "quiet"
        outcomes.add(name or "good night", number, outcome)
    return outcomes


if __name__ == "__main__":
    run_command("Planted faults and good nights", 100, run)
