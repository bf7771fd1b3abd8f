from __future__ import annotations

import pickle

from pipelines.config.errors import ConfigError


def test_one_problem_is_the_message_and_more_are_a_list() -> None:
    assert str(ConfigError("a: wrong")) == "a: wrong"
    assert str(ConfigError(["a: wrong", "b: too"])) == (
        "2 things are wrong with the configuration\n  - a: wrong\n  - b: too"
    )
    assert isinstance(ConfigError("x"), ValueError)


def test_it_survives_a_pickle() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(["a", "b"])))
    assert error.problems == ("a", "b")
