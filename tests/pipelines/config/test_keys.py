from __future__ import annotations

from pipelines.config.keys import attribute_helps, describe_type, list_keys
from tests.pipelines.config.sections import Source, Tower, Tree


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
    helps = attribute_helps(Source)
    assert helps["uri"] == "One address, or a list of them."
    assert helps["share"] == "A share, 0 to 1."
    assert attribute_helps(Tower)["max_tokens"] == "Longer texts are cut (100 % of them)."


def test_defaults_are_those_of_the_dataclass() -> None:
    defaults = {key.name: key.default for key in list_keys(Tree)}
    assert defaults["output.shards"] == 1
    assert defaults["source.fields"] == ()
    assert defaults["extra"] == {}


def test_types_are_told_in_words() -> None:
    told = {key.name: describe_type(key.type) for key in list_keys(Tree)}
    assert told["source.uri"] == "text or a list of text"
    assert told["source.mode"] == "one of skip, stop"
    assert told["output.template"] == "text or null"
    assert told["source.tower"] == "a mapping with the keys checkpoint, max_tokens or null"
    assert told["output.overwrite"] == "true or false"
    assert told["extra"] == "a mapping"
