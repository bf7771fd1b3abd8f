"""Every command of every page runs: in a scratch folder with the files that the pages speak of, as they stand there.

Long ones are made short by options that are documented (`SMALLER`). What cannot run here is in `NOT_HERE`, with the
reason; of these, and of commands that are named within a text, the options have to be those of the program.
"""

from __future__ import annotations

import gzip
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import uvicorn
import yaml
from starlette.testclient import TestClient

from index_builder import publish
from pipelines import embed_catalog
from pipelines.config.command_line import run_command
from tests.conftest import PROJECT_ROOT
from tests.page_commands import Command, blocks, fenced_commands, named_commands, pages
from tests.pipelines.catalog.exports import EXPORTS

PAGES = pages(PROJECT_ROOT, ("encoders", "guides", "index_builder", "pipelines", "run_configs", "tests"))
DRAWN = "demo://300"
JOBS = ("pipelines.embed_catalog", "pipelines.build_index", "pipelines.train_encoder", "pipelines.evaluate")

NOT_HERE = {
    r"^(source|pip|git|make|python3 -m venv|\.venv/bin/pre-commit)\b": "installs, or starts the commands below by make",
    r"^docker ": "there is no docker here",
    r"^java ": "a cluster: tests/engines",
    r"--config (flink|spark|dataflow_gpu)\b": "a cluster: tests/engines",
    r"--config clip_vit_b32\b": "weights of a model hub",
    r"--config starter\b": "weights of the extra `starter`: tests/encoders/test_starter_weights.py",
    r"--to pgvector\b": "a PostgreSQL server: tests/pipelines/exporting",
    r"gs://bucket/": "a bucket at Google",
    r"--out onnx_encoder$": "the same runs in tests/pipelines/test_export_onnx.py; the other layout runs here",
    r"tests\.benchmarks\.": "hours of training, or a quiet machine",
    r"--out encoders/pretrained/demo$": "trains the committed encoder anew",
    r"--out (bibert|clip|4tmm_cat|4tmm_mlp|3tmm_joint)\b": "five trainings: tests/encoders/training makes each model",
}  # fmt: skip
SMALLER = {
    r"pipelines\.embed_catalog$": f"--catalog.uri {DRAWN} --index.factory auto",
    r"pipelines\.evaluate --systems in_use=demo": f"--catalog.uri {DRAWN}",
    r"--config train_catalog_pairs": "--training.epochs 1 --training.batch_size 64 --data.validation_share 0.2",
    r"--pairs 60000": "--pairs 40",
    r"--config catalogs/|--encoder.vectors per_image": "--plan",
    r"--index\.uri index\b": "--gates.max_row_change null",  # the index is that of another catalog here
    r"pipelines\.serve": "--server.port 0",
}
"""What makes a long command short: a pattern -> options behind it, each one of the program's own."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages speak of, the demo's index and that of `shop.yaml`."""
    folder = tmp_path_factory.mktemp("stage")
    demo = folder / "shelfmark-demo"
    given = ["--catalog.uri", DRAWN, "--work.uri", f"{demo}/work", "--index.uri", f"{demo}/index"]
    assert run_command(embed_catalog.main, [*given, "--index.factory", "auto"]) == 0
    drawn = demo / "work" / DRAWN.replace("demo://", "demo_catalog_")
    shutil.copytree(drawn / "query_pictures", demo / "work" / "demo_catalog" / "query_pictures")
    write_shop(folder, drawn)
    assert run_command(embed_catalog.main, in_folder(folder, "--config", f"{folder}/shop.yaml")) == 0
    return folder


def write_shop(folder: Path, drawn: Path) -> None:
    """A shop's files: catalog, config, judged queries, vectors and an encoder of its own."""
    table = pa.concat_tables(pq.read_table(path) for path in sorted((drawn / "catalog").glob("*.parquet"))).slice(0, 80)
    images = pa.array([[each, each] for each in table["image"].to_pylist()])
    columns = {"sku": table["product_id"], "photo": table["image"], "images": images}
    for name, column in columns.items():
        table = table.append_column(name, column)
    (folder / "catalog").mkdir()
    pq.write_table(table, folder / "catalog" / "part.parquet")
    (folder / "pictures").mkdir()
    catalog = {
        "uri": "catalog",
        "id_field": "product_id",
        "text_fields": ["title"],
        "display_fields": ["title", "kind", "brand", "price"],
    }
    text_job = {"catalog": catalog, "encoder": {"uri": "package://encoders/pretrained/demo"}, "work": {"uri": "work"},
                "index": {"uri": "index"}}  # fmt: skip
    (folder / "my_job.yaml").write_text(yaml.safe_dump(text_job))
    (folder / "shop.yaml").write_text(yaml.safe_dump(text_job | {"catalog": catalog | {"image_field": "image"}}))
    (folder / "queries.txt").write_text("blue mug\nred dress\n")

    ids, queries = table["product_id"], pq.read_table(drawn / "queries.parquet")
    judgments = pq.read_table(drawn / "judgments.parquet")
    judgments = judgments.filter(pc.is_in(judgments["product_id"], ids.combine_chunks()))
    queries = queries.filter(pc.is_in(queries["query_id"], judgments["query_id"].combine_chunks()))
    queries = queries.drop_columns("split").append_column("split", pa.array(["eval"] * queries.num_rows))
    pq.write_table(queries, folder / "queries.parquet")
    pq.write_table(judgments, folder / "judgments.parquet")
    pq.write_table(judgments.select(["query_id", "product_id"]), folder / "purchases.parquet")
    pq.write_table(pa.table({"query": table["title"], "product_id": ids}), folder / "pairs.parquet")
    (folder / "my_relevance.py").write_text(blocks(page_text("pipelines/evaluation/README.md"), "python")[0])

    own = shutil.copytree(PROJECT_ROOT / "encoders" / "pretrained" / "demo", folder / "my_encoder")
    weights = safetensors.numpy.load_file(own / "weights.safetensors")
    name = sorted(weights)[0]  # one more tensor of another value: another encoder
    safetensors.numpy.save_file(weights | {name: weights[name] * np.float32(1.01)}, own / "weights.safetensors")
    for number in range(2):
        shutil.copytree(own, folder / "trained" / f"seed{number}")
    (folder / "vectors").mkdir()
    vectors = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    np.save(folder / "vectors" / "part.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def in_folder(folder: Path, *given: str) -> list[str]:
    """The arguments with the shop's addresses below a folder, for a command that is run from elsewhere."""
    uris = {"catalog": "catalog", "work": "work", "index": "index"}
    return [*given, *(word for key, name in uris.items() for word in (f"--{key}.uri", f"{folder / name}"))]


def page_text(name: str) -> str:
    return (PROJECT_ROOT / name).read_text(encoding="utf-8")


def reason_against(command: Command) -> str | None:
    return next((reason for pattern, reason in NOT_HERE.items() if re.search(pattern, shlex_text(command))), None)


def shlex_text(command: Command) -> str:
    return " ".join(command.words)


PAGES_TO_RUN = [page for page in PAGES if any(not reason_against(each) for each in fenced_commands(page.read_text()))]


@pytest.fixture
def scratch(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stage to work in."""
    folder = shutil.copytree(stage, tmp_path / "scratch")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.parametrize("page", PAGES_TO_RUN, ids=lambda page: page.relative_to(PROJECT_ROOT).as_posix())
def test_the_commands_of_a_page_run(page, scratch, capsys, monkeypatch):
    write_exports(page, scratch)
    served: list[Any] = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: served.append(server.config.app))
    failed = []
    for command in fenced_commands(page.read_text(encoding="utf-8")):
        if reason_against(command):
            continue
        more = [option for pattern, options in SMALLER.items() if re.search(pattern, shlex_text(command))
                for option in shlex.split(options)]  # fmt: skip
        if command.module == "pipelines.versions" and command.arguments[0] in ("hold", "approve"):
            more.append(waiting_version(scratch))
        if command.words[0] == "curl":
            code = 0 if ask(served[-1], command) else 1
        else:
            code = run_command(main_of(command.module), [*command.arguments, *more])
        said = capsys.readouterr()
        if code != 0:
            failed.append(f"{command.text}\nexit code {code}\n{said.out[-1500:]}\n{said.err[-1500:]}")
    assert failed == []


def main_of(module: str) -> Any:
    """The main function of a command."""
    found = import_module(module)
    return found.main if hasattr(found, "main") else import_module(f"{module}.__main__").main


def write_exports(page: Path, folder: Path) -> None:
    """The exports that the page's commands read, under the names that they have there."""
    write_csv(folder)
    for command in fenced_commands(page.read_text(encoding="utf-8")):
        found = re.search(r"--config catalogs/(\w+) --catalog.uri (\S+)", shlex_text(command))
        if not found or reason_against(command):
            continue
        place = folder / "exports" / found[1]
        place.mkdir(parents=True)
        drawn = Path(EXPORTS[found[1]].write(place).removeprefix("sqlite:///"))
        target = folder / found[2].removeprefix("sqlite:///").replace("*", "1").rstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if drawn.is_dir():
            shutil.copytree(drawn, target, dirs_exist_ok=True)
        else:
            target.write_bytes(gzip.compress(drawn.read_bytes()) if target.suffix == ".gz" else drawn.read_bytes())


def write_csv(folder: Path) -> None:
    """A Shopify export of 40 products and a line that is none; and products as JSON Lines."""
    drawn = pq.read_table(folder / "catalog" / "part.parquet").slice(0, 40).to_pylist()
    header = "Handle,Title,Body (HTML),Vendor,Type,Tags,Published,Variant SKU,Variant Price,Image Src,Status\n"
    rows = [f'{row["sku"]},"{row["title"]}",,{row["brand"]},,,true,,{row["price"]},,active\n' for row in drawn]
    (folder / "products_export.csv").write_text(header + "".join(rows) + "a,b,c,d,e,f,g,h,i,j,k,l,m,n\n")
    rows = [f'{{"id": "{row["sku"]}", "title": "{row["title"]}", "brand": "{row["brand"]}"}}\n' for row in drawn]
    (folder / "products.jsonl.gz").write_bytes(gzip.compress("".join(rows).encode()))
    (folder / "my_export.csv").write_text("ean,Name\n" + "".join(f'{row["sku"]},"{row["title"]}"\n' for row in drawn))
    ids = [row["sku"] for row in drawn]
    examples = {"query_id": [1, 1, 2], "query": ["mug", "mug", "dress"], "product_id": ids[:3],
                "product_locale": ["us"] * 3, "esci_label": ["E", "S", "E"], "small_version": [1] * 3,
                "split": ["test"] * 3}  # fmt: skip
    pq.write_table(pa.table(examples), folder / "shopping_queries_dataset_examples.parquet")
    products = {"product_id": ids, "product_title": [row["title"] for row in drawn],
                "product_brand": [row["brand"] for row in drawn], "product_locale": ["us"] * 40}  # fmt: skip
    products |= {"title": products["product_title"]}
    products |= {name: [row[name] for row in drawn] for name in ("kind", "brand", "price")}
    pq.write_table(pa.table(products), folder / "shopping_queries_dataset_products.parquet")


def waiting_version(folder: Path) -> str:
    """The version that waits for a person: of a night with one product fewer, the first time that it is asked for."""
    if len(publish.list_versions(str(folder / "index"))) == 1:
        file = folder / "catalog" / "part.parquet"
        table = pq.read_table(file)
        pq.write_table(table.slice(0, table.num_rows - 1), file)
        assert run_command(embed_catalog.main, ["--config", "shop.yaml", "--index.publish", "ask"]) == 3
    return max(publish.list_versions(str(folder / "index")))


def ask(app: Any, command: Command) -> bool:
    """Sends what curl would send to the server that the page started; whether it answers with hits."""
    body = command.words[command.words.index("-d") + 1]
    path = next(word for word in command.words if word.startswith("localhost")).partition("/")[2]
    with TestClient(app) as client:
        answer = client.post(f"/{path}", content=body, headers={"Content-Type": "application/json"})
    return answer.status_code == 200 and len(answer.json()["hits"]) == 3


@pytest.mark.parametrize("name", ["guides/serving.md", "guides/format.md"])
def test_the_python_of_a_guide_runs(name, scratch, capsys):
    for block in blocks(page_text(name), "python"):
        exec(compile(block, name, "exec"), {})
    assert "demo-0" in capsys.readouterr().out or name == "guides/serving.md"


def test_what_cannot_run_here_is_still_on_a_page():
    every = [shlex_text(each) for page in PAGES for each in fenced_commands(page.read_text(encoding="utf-8"))]
    assert [pattern for pattern in (*NOT_HERE, *SMALLER) if not any(re.search(pattern, text) for text in every)] == []


@cache
def help_of(module: str, *subcommand: str) -> str:
    """What a program prints for --help."""
    said: list[str] = []
    before = sys.argv, sys.stdout
    sys.argv = [module, *subcommand, "--help"]
    sys.stdout = SimpleNamespace(write=said.append, flush=lambda: None, isatty=lambda: False)  # type: ignore[assignment]
    try:
        if module.startswith("pipelines."):
            run_command(main_of(module), [*subcommand, "--help"])
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=False)
    except SystemExit:
        pass
    finally:
        sys.argv, sys.stdout = before
    return "".join(said)


def commands_not_run() -> Iterator[tuple[str, Command]]:
    """Those of `NOT_HERE`, and those that are named within a text, of programs that tell their options."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for command in (*(each for each in fenced_commands(text) if reason_against(each)), *named_commands(text)):
            if command.module.startswith(("pipelines.", "tests.")) and not command.module.rpartition(".")[2].isupper():
                yield page.relative_to(PROJECT_ROOT).as_posix(), command


def test_options_of_what_does_not_run_here_are_those_of_the_program():
    wrong = []
    for page, command in dict.fromkeys(commands_not_run()):
        subcommand = command.arguments[:1] if command.module == "pipelines.versions" else []
        known = help_of(command.module, *subcommand)
        options = {word.strip("[]").partition("=")[0] for word in command.arguments if re.match(r"\[?--?[a-z]", word)}
        strange = [option for option in options if not re.search(rf"(?<![\w-]){re.escape(option)}\b", known)]
        if [option for option in strange if not option.startswith("--beam.")]:
            wrong.append(f"{page}: {command.text}: {strange}")
    assert wrong == []


def test_jobs_that_need_what_is_not_here_have_configs_that_read(scratch, capsys):
    refused = []
    for page, command in commands_not_run():
        fenced = reason_against(command) and "WORK" not in command.text
        if fenced and command.module in JOBS:
            code = run_command(import_module(command.module).main, [*command.arguments, "--print-config"])
            if code != 0:
                refused.append(f"{page}: {command.text}: {capsys.readouterr().err}")
    assert refused == []
