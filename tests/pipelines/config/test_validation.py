from __future__ import annotations

import pickle
from typing import Any

import pytest

from pipelines.config.validation import ConfigError, build_config, describe_type, list_keys
from tests.pipelines.config.sections import Output, Source, Tower, Tree

ORIGINS = {"source": "x.yaml, line 1", "source.share": "x.yaml, line 3", "output": "command line"}


def problems_of(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_config(Tree, data, origins=ORIGINS)
    return list(caught.value.problems)


def test_good_data_becomes_the_tree() -> None:
    tree = build_config(
        Tree,
        {
            "source": {"uri": ["a", "b"], "fields": ["x"], "share": 1, "tower": {"checkpoint": "c"}},
            "output": {"uri": "o", "template": None},
            "extra": {"n": [1, {"m": None}]},
        },
        origins={},
    )
    assert tree == Tree(
        source=Source(uri=("a", "b"), fields=("x",), share=1.0, tower=Tower(checkpoint="c")),
        output=Output(uri="o"),
        extra={"n": [1, {"m": None}]},
    )
    assert isinstance(tree.source.share, float)


def test_missing_keys_are_named_even_where_the_whole_section_is_missing() -> None:
    expected = "source.uri: missing; expected text or a list of text; set it in the YAML or with --source.uri"
    assert problems_of({}) == [expected]
    assert problems_of({"source": None}) == [expected]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("shards", "2", 'expected a whole number, found "2" (text); write numbers without quotes'),
        ("shards", 2.5, "expected a whole number, found 2.5 (a number)"),
        ("shards", True, "expected a whole number, found true"),
        ("shards", None, "expected a whole number, found null"),
        ("overwrite", "yes", 'expected true or false, found "yes" (text)'),
        ("uri", 7, "expected text, found 7 (a number)"),
        ("template", ["a"], 'expected text or null, found ["a"] (a list)'),
    ],
)
def test_types_are_strict(key: str, value: Any, message: str) -> None:
    (problem,) = problems_of({"source": {"uri": "a"}, "output": {"uri": "o", key: value}})
    assert problem.startswith(f"command line: output.{key}: {message}")


def test_a_number_that_yaml_took_for_text_gets_a_hint() -> None:
    (problem,) = problems_of({"source": {"uri": "a", "share": "1e-3"}})
    assert problem.startswith('x.yaml, line 3: source.share: expected a number, found "1e-3" (text)')
    assert problem.endswith("(1.0e-3)")


def test_unknown_keys_name_the_nearest_known_one_wherever_it_lives() -> None:
    assert problems_of({"source": {"uri": "a", "shar": 1}, "outputs": {"uri": "b"}}) == [
        "x.yaml, line 1: unknown key source.shar. Did you mean 'source.share'?",
        "unknown key outputs. Did you mean 'output'?",
    ]
    (problem,) = problems_of({"source": {"uri": "a", "overwrite": True}})
    assert problem.endswith("Did you mean 'output.overwrite'?")


def test_a_sections_own_refusal_carries_the_full_key_and_its_place() -> None:
    assert problems_of({"source": {"uri": "a", "share": 2}}) == [
        "x.yaml, line 3: source.share: expected a number from 0 to 1; found 2.0"
    ]
    assert problems_of({"source": {"uri": "a", "tower": {"checkpoint": "c", "max_tokens": 1}}}) == [
        "x.yaml, line 1: source.tower.max_tokens is 1: expected 3 or more"
    ]


def test_every_problem_is_reported_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(
            Tree,
            {"source": {"mode": "skp", "fields": 3, "share": "x"}, "output": 3, "extra": [], "soruce": {}},
            origins={},
        )
    assert len(caught.value.problems) == 7
    text = str(caught.value)
    assert text.startswith("7 things are wrong with the configuration\n  - unknown key soruce")
    assert 'source.mode: expected one of skip, stop, found "skp" (text)' in text
    assert "source.fields: expected a list of text, found 3 (a number)" in text
    assert "output: expected a mapping with the keys uri, shards, template, overwrite, found 3 (a number)" in text


def test_an_element_of_a_list_of_the_wrong_type_names_the_key_once() -> None:
    (problem,) = problems_of({"source": {"uri": "a", "fields": ["x", 2, 3]}})
    assert problem == 'x.yaml, line 1: source.fields: expected a list of text, found ["x", 2, 3] (a list)'


def test_sections_of_other_commands_are_left_out() -> None:
    data = {"source": {"uri": "a"}, "beam": {"runner": "x"}}
    assert build_config(Tree, data, origins={}, leave_out=("beam",)).source.uri == "a"
    assert problems_of(data) == ["unknown key beam. " + problems_of(data)[0].partition(". ")[2]]


def test_every_leaf_is_listed_once_and_optional_parts_themselves() -> None:
    names = [key.name for key in list_keys(Tree)]
    assert names == [
        "source.uri",
        "source.mode",
        "source.fields",
        "source.share",
        "source.tower",
        "source.tower.checkpoint",
        "source.tower.max_tokens",
        "output.uri",
        "output.shards",
        "output.template",
        "output.overwrite",
        "extra",
    ]


def test_help_is_the_first_sentence_of_the_docstrings_entry() -> None:
    helps = {key.name: key.help for key in list_keys(Tree)}
    assert helps["source.uri"] == "One address, or a list of them."
    assert helps["source.share"] == "A share, 0 to 1."
    assert helps["source.tower.max_tokens"] == "Longer texts are cut (100 % of them)."


def test_defaults_are_those_of_the_dataclass() -> None:
    defaults = {key.name: key.default for key in list_keys(Tree)}
    assert defaults["output.shards"] == 1
    assert defaults["source.fields"] == ()
    assert defaults["extra"] == {}


def test_types_are_told_in_words() -> None:
    words = {key.name: describe_type(key.type) for key in list_keys(Tree)}
    assert words["source.uri"] == "text or a list of text"
    assert words["source.mode"] == "one of skip, stop"
    assert words["output.template"] == "text or null"
    assert words["source.tower"] == "a mapping with the keys checkpoint, max_tokens or null"
    assert words["output.overwrite"] == "true or false"
    assert words["extra"] == "a mapping"


def test_one_problem_is_the_message_and_more_are_a_list() -> None:
    assert str(ConfigError("a: wrong")) == "a: wrong"
    assert str(ConfigError(["a: wrong", "b: too"])) == (
        "2 things are wrong with the configuration\n  - a: wrong\n  - b: too"
    )
    assert isinstance(ConfigError("x"), ValueError)


def test_it_survives_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(["a", "b"])))
    assert error.problems == ("a", "b")


def test_a_bare_word_is_a_list_where_only_a_list_is_meant() -> None:
    source = build_config(Source, {"uri": "a", "fields": "title"}, origins={})
    assert (source.fields, source.uri) == (("title",), "a")


def test_a_backslash_and_a_t_are_a_tab_where_they_are_the_whole_text() -> None:
    assert build_config(Output, {"uri": "o", "template": r"\t"}, origins={}).template == "\t"
    assert build_config(Output, {"uri": "o", "template": r"\title"}, origins={}).template == r"\title"


def test_a_section_without_keys_has_its_defaults() -> None:
    assert build_config(Tree, {"source": {"uri": "a"}, "extra": {}}, origins={}).output == Output(uri="out")
    assert problems_of({"source": {"uri": "a"}, "output": None}) == [
        "output.uri: missing; expected text; set it in the YAML or with --output.uri"
    ]


def test_what_a_section_refuses_is_told_beside_its_unknown_keys() -> None:
    assert problems_of({"source": {"uri": "a", "shar": 1, "share": 2}}) == [
        "x.yaml, line 1: unknown key source.shar. Did you mean 'source.share'?",
        "x.yaml, line 3: source.share: expected a number from 0 to 1; found 2.0",
    ]
