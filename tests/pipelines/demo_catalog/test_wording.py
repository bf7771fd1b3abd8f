from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from pipelines.demo_catalog.words import (
    COLOURS,
    KINDS,
    PATTERNS,
    PLAIN_TOLD_SHARE,
    TOLD_SHARE,
    Attributes,
    choose_attributes,
    product_random,
    write_texts,
)


def contains(text: str, words: tuple[str, ...]) -> bool:
    return any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in words)


@pytest.fixture(scope="module")
def listed() -> list[tuple[Attributes, str]]:
    products = [choose_attributes("demo", 1, number) for number in range(1500)]
    return [
        (product, " ".join(write_texts(product, product_random("demo", 1, number, "text"))))
        for number, product in enumerate(products)
    ]


def share(told: list[bool]) -> float:
    return sum(told) / len(told)


def test_colour_and_pattern_are_often_left_to_the_picture(listed):
    colour = share([contains(text, COLOURS[product.colour].words) for product, text in listed])
    assert colour == pytest.approx(TOLD_SHARE["colour"], abs=0.04)
    patterned = [(product, text) for product, text in listed if product.pattern != "plain"]
    words = {name: (*pattern.adjectives, *pattern.nouns) for name, pattern in PATTERNS.items()}
    pattern = share([contains(text, words[product.pattern]) for product, text in patterned])
    assert pattern == pytest.approx(TOLD_SHARE["pattern"], abs=0.04)
    plain = share([contains(text, words["plain"]) for product, text in listed if product.pattern == "plain"])
    assert plain == pytest.approx(PLAIN_TOLD_SHARE, abs=0.06)


def test_material_use_and_brand_are_told(listed):
    assert share([contains(text, (product.material,)) for product, text in listed]) > 0.95
    assert share([contains(text, (product.use,)) for product, text in listed]) > 0.9
    assert share([product.brand in text for product, text in listed]) == 1.0


def test_no_text_tells_a_wrong_colour_or_pattern(listed):
    for product, text in listed:
        text = text.replace(product.brand, "")
        for name, colour in COLOURS.items():
            assert name == product.colour or not contains(text, colour.words), (product, text)
        for name, pattern in PATTERNS.items():
            assert name == product.pattern or not contains(text, pattern.adjectives), (product, text)


def test_texts_name_the_kind_and_are_clean(listed):
    for number, (product, text) in enumerate(listed):
        title, description = write_texts(product, product_random("demo", 1, number, "text"))
        assert f"{title} {description}" == text
        assert contains(title, KINDS[product.kind].nouns), title
        assert title[0].isupper() or title[0].isdigit()
        assert description.endswith(".")
        assert not re.search(r"[{}]|  | ,|\.\.|\ba [aeio]", text), text


def test_wording_varies():
    product = choose_attributes("demo", 1, 0)
    texts = Counter(write_texts(product, random.Random(seed)) for seed in range(300))
    assert len(texts) > 270
