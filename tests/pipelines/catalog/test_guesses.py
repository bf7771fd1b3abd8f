"""What the columns of an unknown catalog are taken for: by their names, nested ones too, and by what they hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from pipelines.catalog.guesses import guess_columns
from pipelines.catalog.samples import SAMPLE_COLUMNS, Sample, flattened, sample_objects
from pipelines.catalog.stores import CatalogFile


def roles_of(record: Callable[[int], Mapping[str, Any]], rows: int = 40) -> dict[str, str]:
    guesses = guess_columns(sample_of(record, rows))
    return {role: " + ".join(guess.columns) for role, guess in guesses.items()}


def sample_of(record: Callable[[int], Mapping[str, Any]], rows: int = 40) -> Sample:
    flat = tuple(flattened(record(number)) for number in range(rows))
    columns = tuple(dict.fromkeys(name for row in flat for name in row))
    return Sample(format="jsonl", read_as="JSON Lines", columns=columns, rows=flat)


@pytest.mark.parametrize(
    ("record", "roles"),
    [
        (
            lambda n: {"nr": f"A{n}", "titel": f"Tasse rot {n}", "marke": {"name": "Björk"}},
            {"id": "nr", "title": "titel", "brand": "marke.name"},
        ),
        (
            lambda n: {"brand": {"name": "Björk", "id": n, "logo": f"{n}.png"},
                       "product": {"id": n, "title": f"C {n}"}},
            {"id": "product.id", "title": "product.title", "brand": "brand.name"},
        ),
        (
            lambda n: {"category": {"id": n, "title": f"Category {n}"}, "seller": {"name": f"Shop {n}", "sku": n},
                       "item": {"sku": n, "label": f"Cup {n}"}},
            {"id": "item.sku", "title": "item.label", "category": "category.title"},
        ),
        (
            lambda n: {"id": n, "seller": {"title": f"Shop {n}"}, "image": {"name": "a cup", "url": f"i/{n}.jpg"},
                       "reviews": [{"title": "So good", "text": "I like it"}], "name": {"de": f"Tasse {n}"}},
            {"id": "id", "title": "name.de", "image": "image.url"},
        ),
        # A name of its own comes before one within an object, however plain the latter is.
        (
            lambda n: {"variant": {"id": n, "name": f"S {n}"}, "artikelnummer": n, "bezeichnung": f"Tasse {n}"},
            {"id": "artikelnummer", "title": "bezeichnung"},
        ),
        (
            lambda n: {"id": n, "title": {"rendered": f"Cup {n}"}, "text": {"description": f"For tea {n}"}},
            {"id": "id", "title": "title.rendered", "description": "text.description"},
        ),
        (
            lambda n: {"productNumber": f"SW{n}", "manufacturer": {"id": f"m{n}", "name": "T"}, "name": f"Cup {n}",
                       "cover": {"media": {"url": f"https://i.test/{n}.jpg"}}, "price": [{"gross": 9.9, "net": 8.3}],
                       "categories": [{"id": n, "name": "Cups"}], "seo": {"title": f"Buy cup {n}"}},
            {"id": "productNumber", "title": "name", "brand": "manufacturer.name", "category": "categories.name",
             "image": "cover.media", "price": "price.gross"},
        ),
        (
            lambda n: {"masterData": {"current": {"name": {"en-US": f"Cup {n}", "de": f"Tasse {n}"}}}, "key": f"k-{n}"},
            {"id": "key", "title": "masterData.current.name.en-US"},
        ),
        (
            lambda n: {"nr": n, "Hersteller Name": "T", "category_path": "A > B", "titel": f"T {n}"},
            {"id": "nr", "title": "titel", "brand": "Hersteller Name", "category": "category_path"},
        ),
        (
            lambda n: {"Art.-Nr.": n, "Titel (DE)": f"Tasse {n}", "Bild 1": f"{n}.jpg"},
            {"id": "Art.-Nr.", "title": "Titel (DE)", "image": "Bild 1"},
        ),
    ],
)  # fmt: skip
def test_whose_a_name_is_tells_what_it_names(record, roles: dict[str, str]) -> None:
    assert roles_of(record) == roles


@pytest.mark.parametrize(
    "name",
    [
        *("VK-Preis brutto", "Verkaufspreis", "Preis (EUR)", "Preis in €", "VK brutto", "vkPreisBrutto"),
        *("Price (USD)", "Price incl. VAT", "Selling price", "price_eur"),
        *("Prix de vente TTC", "Prix (€)", "Precio de venta (€)", "Precio con IVA"),
        *("Prezzo di vendita", "Prezzo IVA inclusa"),
    ],
)
def test_a_price_is_one_whatever_else_its_name_says(name: str) -> None:
    columns = roles_of(lambda n: {"id": n, "name": f"Cup {n}", "EK-Preis": "1,00", name: f"{n},90 €"})
    assert columns["price"] == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("EK-Preis", "9,90"), ("Grundpreis", "9,90"), ("Prix d'achat", "9.90"), ("Purchase price", 9.9)),
        *(("Precio unitario kg", "9"), ("Preisgruppe", "3"), ("Price currency", "EUR"), ("VK-Menge", 3)),
        ("Preis (Hinweis)", "inkl. MwSt"),
    ],
)
def test_other_amounts_are_no_price(name: str, value: object) -> None:
    assert "price" not in roles_of(lambda n: {"id": n, "name": f"Cup {n}", name: value})


def test_of_prices_the_one_that_is_paid() -> None:
    record = {"Preis netto (EUR)": "8,30", "Preis brutto (EUR)": "9,90", "UVP brutto Preis": "12,00"}
    assert roles_of(lambda n: {"id": n, "name": f"Cup {n}", **record})["price"] == "Preis brutto (EUR)"


@pytest.mark.parametrize(("repeated", "expected"), [(0, "Artikelnummer"), (1, "Artikelnummer"), (5, "Artikelnummer"),
                                                    (6, "EAN"), (100, "EAN")])  # fmt: skip
def test_a_few_doubled_numbers_do_not_make_another_column_the_id(repeated: int, expected: str) -> None:
    def record(n: int) -> dict[str, object]:
        return {"Artikelnummer": f"{max(0, n - repeated) if n <= repeated else n:05d}", "EAN": 4012345000000 + n}

    guess = guess_columns(sample_of(record, 250))["id"]
    assert guess.columns == (expected,)
    if repeated:
        assert f"{repeated} of 250 rows" in guess.why
    assert ("not Artikelnummer" in guess.why) == (expected == "EAN")


def test_a_column_that_is_not_named_as_an_id_is_one_only_without_any_doubled_value() -> None:
    assert roles_of(lambda n: {"c": f"K{max(1, n)}", "d": f"K{n}", "name": f"Cup {n}"})["id"] == "d"
    assert "id" not in roles_of(lambda n: {"c": f"K{max(1, n)}", "name": f"Cup {n}"})


def test_a_better_name_that_was_passed_over_is_told_with_why() -> None:
    why = guess_columns(sample_of(lambda n: {"sku": n if n % 4 else None, "ean": n, "name": f"Cup {n}"}))["id"].why
    assert why.endswith("not sku: 10 of 40 rows have none")


def test_of_very_many_columns_those_of_the_most_rows_are_looked_at():
    rows = [{"sku": f"A{number}", "titel": f"Tasse rot {number}"} for number in range(40)]
    rows[0] = {"stock": {f"shop-{number}": number for number in range(2 * SAMPLE_COLUMNS)}} | rows[0]
    file = CatalogFile(uri="c.json", name="c.json", size=1, version="1", format="json", compression=None)
    sample = sample_objects(file, (json.dumps(row).encode() for row in rows))
    assert len(sample.columns) == SAMPLE_COLUMNS
    assert sample.columns[0] == "stock.shop-0" and sample.columns[-2:] == ("sku", "titel"), "in the order of the file"
    assert {role: guess.columns[0] for role, guess in guess_columns(sample).items()} == {"id": "sku", "title": "titel"}
