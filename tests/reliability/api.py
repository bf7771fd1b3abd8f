"""Calls of the server's API that its own schema makes up, right and wrong ones, of which none is answered with 5xx.

    python -m tests.reliability.api --trials 10000

Schemathesis draws them from `/openapi.json`: valid values, values of other types, keys that are not there, bodies that
are none. Half of the calls are searches; into many of them go things that exist (products, columns, vectors as long as
the version's), so that they come as far as the index. Every answer must be what the schema says of its status.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import requests
import schemathesis
from hypothesis import strategies as st
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pipelines.server.config import ServerConfig, ServerJobConfig
from tests.pipelines.indexing.job import product, run_job, write_catalog
from tests.pipelines.server.on_thread import served
from tests.reliability.trials import Outcomes, run_command

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FILTERS = ("price < 9", "price >= 3", "title like '%mug%'", "not price = 1", "title in ('red', 'mug')", "price is null")
SEEN = {
    "text": st.sampled_from(["red mug", "blue", "\N{PILE OF POO}", "\0", "שלום", "mug " * 500]),
    "product_id": st.sampled_from(["p00003", "p00017", "p00059", "P00003"]),
    "filter": st.lists(st.sampled_from(FILTERS), min_size=1, max_size=3).map(" and ".join),
    "columns": st.lists(st.sampled_from(["title", "price", "image", "product_id"]), max_size=3),
    "group": st.sampled_from([True, False, "title"]),
    "k": st.integers(1, 200),
    "offset": st.integers(0, 80),
    "index": st.just("main"),
    "image_weight": st.floats(0, 1),
    "explain": st.booleans(),
}
SECONDS = 300.0
"""Longest time of a call: a busy machine is no finding."""
_OF_QUERIES = ("text", "product_id", "vector", "image", "image_url")


def searches(dim: int) -> st.SearchStrategy[dict[str, Any]]:
    """Keys of searches that mostly can be answered."""
    vectors = st.lists(st.floats(-1, 1, width=32), min_size=dim, max_size=dim)
    queries = {name: SEEN[name] for name in _OF_QUERIES if name in SEEN} | {"vector": vectors}
    query = st.one_of(*(st.fixed_dictionaries({name: values}) for name, values in queries.items()))
    others = {name: values for name, values in SEEN.items() if name not in queries}
    return st.tuples(query, st.fixed_dictionaries({}, optional=others)).map(lambda both: both[0] | both[1])


def call(url: str, trials: int, seed: int, dim: int) -> Outcomes:
    """Calls every operation of the server at an address; half of the calls are searches."""
    outcomes = Outcomes(frozenset({"2xx", "4xx"}))
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = sorted((found.ok() for found in schema.get_all_operations()), key=lambda each: each.path == "/search")
    for operation in operations[:-1]:  # those without parameters have few calls that differ
        _call(operation, max(1, trials // 2 // len(operations)), seed, outcomes, st.none())
    _call(operations[-1], trials - outcomes.trials, seed, outcomes, searches(dim))
    return outcomes


def _call(
    operation: APIOperation,
    calls: int,
    seed: int,
    outcomes: Outcomes,
    usual: st.SearchStrategy[dict[str, Any] | None],
) -> None:
    """Calls one operation so often, with bodies that the schema makes up or, where there are any, `usual` ones."""
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    drawn = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in modes))

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=calls,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(case=drawn, body=st.one_of(st.none(), usual))
    def ask(case: Case, body: dict[str, Any] | None) -> None:
        if body is not None:
            case.body, case.media_type = body, "application/json"
        outcomes.add(f"{operation.method.upper()} {operation.path}", case.as_curl_command(), _answered(case))

    ask()


def _answered(case: Case) -> str:
    try:
        answer = case.call(timeout=SECONDS)
    except requests.RequestException as error:
        return f"error: {error}"
    try:
        case.validate_response(answer, checks=CHECKS)
    except (Failure, FailureGroup) as fault:
        return f"not as the schema says: {answer.status_code} {answer.text[:200]}: {fault}"
    return f"{answer.status_code // 100}xx"


def run(trials: int, seed: int) -> Outcomes:
    """Over a server of 60 products."""
    with tempfile.TemporaryDirectory(prefix="shelfmark-api-") as name:
        write_catalog(Path(name) / "catalog", [product(number) for number in range(60)])
        run_job(Path(name), "--index.factory", "auto", "--catalog.group_field", "title")
        config = ServerConfig(indexes={"main": str(Path(name) / "index")}, timeout_seconds=SECONDS)
        with served(ServerJobConfig(server=config)) as url:
            return call(url, trials, seed, dim=16)


if __name__ == "__main__":
    run_command("Calls of the API", 10_000, run)
