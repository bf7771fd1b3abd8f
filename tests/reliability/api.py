"""Calls of the server's API that its own schema makes up, right and wrong ones, of which none is answered with 5xx.

    python -m tests.reliability.api --trials 10000

Schemathesis draws them from `/openapi.json`: valid values, values of other types, keys that are not there, bodies that
are none. Half of the calls are searches. Into two of three go things that exist: products, rows, versions, columns,
vectors as long as the version's, pictures of some formats whole and damaged; so that they come as far as the index.
Every answer must be what the schema says of its status, and a route that never answers 2xx is a loss.
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import requests
import schemathesis
from hypothesis import strategies as st
from PIL import Image
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from index_builder import IndexReader
from pipelines.server.config import ServerConfig, ServerJobConfig
from tests.pipelines.indexing.job import SCHEMA, product, run_job
from tests.pipelines.server.on_thread import served
from tests.reliability.trials import Outcomes, run_command

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FILTERS = ("price < 9", "price >= 3", "title like '%mug%'", "not price = 1", "title in ('red', 'mug')", "price is null")
SEEN = {
    "text": st.sampled_from(["red mug", "blue", "\N{PILE OF POO}", "\0", "שלום", "mug " * 500]),
    "product_id": st.sampled_from(["p00003", "p00017", "p00059", "P00003"]),
    "filter": st.lists(st.sampled_from(FILTERS), min_size=1, max_size=3).map(" and ".join),
    "columns": st.lists(st.sampled_from(["title", "price", "photo", "product_id"]), max_size=3),
    "group": st.sampled_from([True, False, "title"]),
    "k": st.integers(1, 200),
    "offset": st.integers(0, 80),
    "index": st.just("main"),
    "image_weight": st.floats(0, 1),
    "explain": st.booleans(),
}
PRODUCTS = 60
SECONDS = 300.0
"""Longest time of a call: a busy machine is no finding."""
_OF_QUERIES = ("text", "product_id", "vector", "image", "image_url")


def searches(dim: int) -> st.SearchStrategy[dict[str, Any]]:
    """Keys of searches that mostly can be answered."""
    vectors = st.lists(st.floats(-1, 1, width=32), min_size=dim, max_size=dim)
    queries = {name: SEEN[name] for name in _OF_QUERIES if name in SEEN} | {"vector": vectors}
    query = st.one_of(*(st.fixed_dictionaries({name: values}) for name, values in queries.items()))
    return st.tuples(query, _OTHERS).map(lambda both: both[0] | both[1])


_OTHERS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {}, optional={name: values for name, values in SEEN.items() if name not in _OF_QUERIES}
)


def picture(kind: str, width: int, height: int, colour: tuple[int, int, int], damage: int) -> bytes:
    """A picture file; of a `damage` of 1 to 9 its last tenths are missing."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, kind)
    return file.getvalue()[: len(file.getvalue()) * (10 - damage) // 10]


PICTURES = st.builds(
    picture,
    st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]),
    st.integers(1, 300),
    st.integers(1, 300),
    st.tuples(*[st.integers(0, 255)] * 3),
    st.sampled_from([0, 0, 0, 0, 0, 0, 1, 5]),
)


def usual(dim: int, versions: list[str]) -> dict[str, st.SearchStrategy[dict[str, Any]]]:
    """By path, parts of calls that mostly can be answered."""
    where = {"index": st.just("main"), "version": st.sampled_from(versions)}
    rows = st.fixed_dictionaries({"path_parameters": st.fixed_dictionaries(where | {"row": st.integers(0, PRODUCTS)})})
    asked = st.fixed_dictionaries({"query": st.fixed_dictionaries({}, optional=where)})
    upload = st.fixed_dictionaries({"image": PICTURES}, optional={"query": _OTHERS.map(json.dumps)})
    of_id = st.fixed_dictionaries({"product_id": SEEN["product_id"]})
    return {
        "/search": _with_body(searches(dim), "application/json"),
        "/search/upload": _with_body(upload, "multipart/form-data"),
        "/pictures/{index}/{version}/{row}": rows,
        "/thumbnails/{index}/{version}/{row}": rows,
        "/thumbnail/{product_id}": st.tuples(asked, of_id).map(lambda both: both[0] | {"path_parameters": both[1]}),
        "/facets": asked,
        "/versions": asked.map(lambda parts: {"query": {"index": "main"} if parts["query"] else {}}),
    }


def _with_body(bodies: st.SearchStrategy[dict[str, Any]], media_type: str) -> st.SearchStrategy[dict[str, Any]]:
    return bodies.map(lambda body: {"body": body, "media_type": media_type})


def call(url: str, trials: int, seed: int, dim: int) -> Outcomes:
    """Calls every operation of the server at an address; half of the calls are searches."""
    outcomes = Outcomes(frozenset({"2xx", "4xx"}))
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    parts = usual(dim, [each["version"] for each in requests.get(f"{url}/versions", timeout=SECONDS).json()])
    operations = sorted((found.ok() for found in schema.get_all_operations()), key=lambda each: each.path == "/search")
    others = max(1, trials // 2 // len(operations))
    for number, operation in enumerate(operations, start=1):
        calls = others if number < len(operations) else trials - outcomes.trials
        _call(operation, calls, seed, outcomes, parts.get(operation.path, st.just({})))
    for name, counts in outcomes.counts.items():
        if not counts["2xx"]:
            outcomes.losses.append((name, "all", "never answered 2xx"))
    return outcomes


def _call(
    operation: APIOperation,
    calls: int,
    seed: int,
    outcomes: Outcomes,
    usual: st.SearchStrategy[dict[str, Any]],
) -> None:
    """Calls one operation so often, as the schema makes it up or with `usual` parts in place of drawn ones."""
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    drawn = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in modes))

    # Operations without parameters have few calls that differ: they are asked again, until there are so many.
    before = -1
    while calls > 0 and before != calls:
        before = calls

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=calls,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=drawn, parts=st.one_of(st.just({}), usual, usual.map(dict)))
        def ask(case: Case, parts: dict[str, Any]) -> None:
            nonlocal calls
            for name, value in parts.items():
                setattr(case, name, value)
            outcomes.add(f"{operation.method.upper()} {operation.path}", case.as_curl_command(), _answered(case))
            calls -= 1

        ask()
        seed += 1


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
    """Over a server of 60 products in two versions, with thumbnails and with pictures of its own."""
    with tempfile.TemporaryDirectory(prefix="shelfmark-api-") as name:
        folder = Path(name)
        options = ["--index.factory=auto", "--catalog.group_field=title", "--index.thumbnails=32"]
        options += ["--catalog.display_fields=[title, price, photo]"]
        (folder / "photos").mkdir()
        rows = [product(number) | {"photo": f"{number}.png"} for number in range(PRODUCTS)]
        for row in rows:
            (folder / "photos" / row["photo"]).write_bytes(row["image"]["bytes"])
        for own in (rows[:-5], rows):
            (folder / "catalog").mkdir(exist_ok=True)
            table = pa.Table.from_pylist(own, schema=SCHEMA.append(pa.field("photo", pa.string())))
            pq.write_table(table, folder / "catalog" / "part.parquet")
            run_job(folder, *options)
        config = ServerConfig(
            indexes={"main": str(folder / "index")}, timeout_seconds=SECONDS, image_root=str(folder / "photos")
        )
        with served(ServerJobConfig(server=config)) as url:
            return call(url, trials, seed, IndexReader.open(str(folder / "index")).manifest.index.spec.dim)


if __name__ == "__main__":
    run_command("Calls of the API", 10_000, run)
