from __future__ import annotations

import itertools
import re

import pytest

from pipelines.demo_catalog.products import (
    RELEVANT_PRODUCTS,
    TEST_SUBSETS,
    HeldOutQuery,
    held_out_queries,
    is_held_out,
    training_queries,
)
from pipelines.demo_catalog.words import COLOURS, KINDS, PATTERNS, choose_attributes, product_random

DEMO = [choose_attributes("demo", 1, number) for number in range(3000)]


@pytest.fixture(scope="module")
def held_out() -> list[HeldOutQuery]:
    return held_out_queries(DEMO, 350, seed=1)


@pytest.fixture(scope="module")
def training() -> list[tuple[str, list[str]]]:
    """(kind, queries) of training products."""
    products = [choose_attributes("training", 1, number) for number in range(2500)]
    return [
        (product.kind, training_queries(product, 3, product_random("training", 1, number, "queries")))
        for number, product in enumerate(products)
    ]


def words_of(field: str, value: str) -> tuple[str, ...]:
    if field == "colour":
        return COLOURS[value].words
    if field == "pattern":
        return (*PATTERNS[value].adjectives, *PATTERNS[value].nouns)
    return (value,)


def contains(text: str, words: tuple[str, ...]) -> bool:
    return any(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text, re.IGNORECASE) for word in words)


def test_relevant_products_are_all_that_have_the_attributes(held_out):
    for query in held_out:
        fitting = {
            number
            for number, product in enumerate(DEMO)
            if product.kind == query.kind and all(getattr(product, field) == value for field, value in query.wanted)
        }
        assert set(query.products) == fitting
        assert RELEVANT_PRODUCTS[0] <= len(fitting) <= RELEVANT_PRODUCTS[1]


def test_queries_ask_in_words_for_what_they_want(held_out):
    for query in held_out:
        assert contains(query.query, KINDS[query.kind].nouns)
        for field, value in query.wanted:
            assert contains(query.query, words_of(field, value)), query


def test_queries_are_many_different_and_of_every_sort(held_out):
    assert len(held_out) == 350
    assert len({(query.kind, query.wanted) for query in held_out}) == 350
    sorts = [tuple(field for field, _ in query.wanted) for query in held_out]
    for fields in TEST_SUBSETS:
        assert sorts.count(fields) >= 20, fields


def test_the_same_seed_gives_the_same_queries(held_out):
    assert held_out_queries(DEMO, 350, seed=1) == held_out
    assert held_out_queries(DEMO, 350, seed=2) != held_out


def test_a_small_catalog_has_few_queries_or_none():
    assert held_out_queries(DEMO[:30], 350, seed=1) == []
    assert held_out_queries([], 350, seed=1) == []


def test_no_training_query_asks_for_what_a_test_query_asks_for(held_out, training):
    by_kind: dict[str, list[str]] = {}
    for kind, queries in training:
        by_kind.setdefault(kind, []).extend(queries)
    for query in held_out:
        (field, value), (other_field, other_value) = query.wanted
        for text in by_kind[query.kind]:
            both = contains(text, words_of(field, value)) and contains(text, words_of(other_field, other_value))
            assert not both, (query, text)


def test_no_training_query_has_the_words_of_a_test_query(held_out, training):
    texts = {query.lower() for _, queries in training for query in queries}
    assert not texts & {query.query for query in held_out}


def test_training_queries_differ_and_fit_their_product(training):
    for kind, queries in training:
        assert len(set(queries)) == 3
        for query in queries:
            assert contains(query, KINDS[kind].nouns)
    singles = [query for _, queries in training for query in queries]
    assert len(set(singles)) > 0.6 * len(singles)


def test_held_out_is_about_a_fifth_and_knows_no_order():
    combinations = [
        (kind.name, ("colour", colour), ("use", use))
        for kind, colour in itertools.product(KINDS.values(), COLOURS)
        for use in kind.uses
    ]
    kept_out = [is_held_out(*combination) for combination in combinations]
    assert sum(kept_out) / len(kept_out) == pytest.approx(0.2, abs=0.04)
    assert kept_out == [is_held_out(kind, second, first) for kind, first, second in combinations]
