"""The search command: groups, pages, explanations and why a product is not found, for people and for scripts."""

from __future__ import annotations

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder import IndexReader, VerificationError
from index_builder.explanation import WhyNot
from pipelines import build_index, embed_catalog, search
from pipelines.config.command_line import run_command
from pipelines.published.answers import print_why_not
from tests.encoders.tiny import save_tiny_encoder
from tests.pipelines.indexing.job import SCHEMA, arguments, product

ROWS = 60


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Products in families of four; one lost its picture, two rows were rejected. The encoder concatenates."""
    folder = tmp_path_factory.mktemp("published")
    rows = [product(number) | {"parent": f"family {number // 4}", "size": number % 4} for number in range(ROWS)]
    rows[59]["parent"] = None
    rows[7]["image"] = {"bytes": b"no picture", "path": None}
    rows.append(rows[5] | {"title": "the same id again"})
    rows.append(product(99, title=None, image=None) | {"parent": None, "size": 0})
    schema = pa.schema([*SCHEMA, ("parent", pa.string()), ("size", pa.int64())])
    (folder / "catalog").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "catalog" / "all.parquet")
    given = arguments(folder)
    encoder = save_tiny_encoder(folder / "concat", model="4tmm", fusion="alpha")
    limits = ["--gates.max_rejected_share", "0.5", "--gates.max_degraded_share", "0.5"]
    named = ["--encoder.uri", str(encoder.uri), "--catalog.group_field", "parent", "--catalog.filter_fields", "[size]"]
    assert run_command(embed_catalog.main, [*given, *named, *limits, "--index.factory", "auto"]) == 0
    return folder


@pytest.fixture
def ask(published, capsys):
    def asked(*options: str, code: int = 0) -> str:
        assert run_command(search.main, ["--index", str(published / "index"), "red dress", *options]) == code
        captured = capsys.readouterr()
        return captured.out if code == 0 else captured.err

    return asked


def test_groups_are_one_answer_each(ask) -> None:
    found = json.loads(ask("--group", "--json", "-k", "100"))
    groups = [each["group"] for each in found]
    assert len(groups) == 15 + 1, "the product without a family stands alone"
    assert len({group for group in groups if group}) == 15
    members = {each["group"]: each["members"] for each in found}
    assert members["family 3"] == 4
    assert members["family 14"] == 3
    assert members[None] == 1
    assert [each["score"] for each in found] == sorted((each["score"] for each in found), reverse=True)
    filtered = json.loads(ask("--group", "--json", "-k", "100", "--filter", "size >= 2"))
    assert {each["group"]: each["members"] for each in filtered}["family 3"] == 2
    text = ask("--group", "-k", "100")
    assert "members" in text
    assert "16 groups found, all there are" in text


def test_groups_by_another_column(ask) -> None:
    found = json.loads(ask("--group-by", "size", "--json"))
    assert sorted(each["group"] for each in found) == [0, 1, 2, 3]
    assert [each["members"] for each in found] == [15] * 4
    error = ask("--group-by", "sise", code=2)
    assert error.startswith("error: group: expected the name of a column, found 'sise'. Did you mean 'size'? Known: ")
    assert "parent" in error


def test_pages_are_one_list(ask) -> None:
    for options in (("--group",), ("--filter", "size = 1")):
        whole = json.loads(ask("--json", "-k", "100", *options))
        pages = []
        for offset in range(0, len(whole), 7):
            pages += json.loads(ask("--json", "-k", "7", "--offset", str(offset), *options))
        assert [each["rank"] for each in pages] == list(range(1, len(whole) + 1))
        assert sorted(each["product_id"] for each in pages) == sorted(each["product_id"] for each in whole)
    assert json.loads(ask("--json", "--offset", "60")) == []
    assert "nothing behind the first 60" in ask("--offset", "60")
    assert "60 found, all there are" in ask("--offset", "55")
    assert "--offset is -1: expected 0 or more" in ask("--offset", "-1", code=2)


def test_scores_are_explained(ask) -> None:
    found = json.loads(ask("--explain", "--json", "-k", "4"))
    for each in found:
        of = each["explanation"]
        assert of["parts"]["text"] + of["parts"]["image"] == pytest.approx(each["score"], abs=1e-5)
        assert of["score"] == each["score"]
        assert (of["list_number"], of["list_rank"], of["probed"]) == (0, 1, 1)
    text = ask("--explain", "-k", "4")
    assert "what the scores are made of" in text
    for heading in ("by codes", "text", "image", "list's rank"):
        assert heading in text
    assert f"{found[0]['explanation']['parts']['image']:.4f}" in text


def test_why_a_product_is_not_found(ask) -> None:
    def why(product_id: str, *options: str) -> dict:
        return json.loads(ask("--why-not", product_id, "--json", *options))

    order = [each["product_id"] for each in json.loads(ask("--json", "-k", "60"))]
    assert (why(order[2])["status"], why(order[2])["rank"]) == ("found", 3)
    assert (why(order[40])["status"], why(order[40])["rank"]) == ("below_k", 41)
    assert why(order[40], "--offset", "50")["status"] == "earlier_page"
    kept_out = why("p00004", "--filter", "size > 0 and price < 100")
    assert kept_out["status"] == "filtered_out"
    assert kept_out["failed"] == ["size > 0 (size is 0)"]
    rejected = why("p00099")
    assert rejected["status"] == "rejected"
    assert rejected["letters"][0]["outcome"] == "rejected"
    assert why("p77777")["status"] == "not_in_version"
    degraded = why("p00007")
    assert degraded["status"] in ("found", "below_k")
    assert [letter["outcome"] for letter in degraded["letters"]] == ["degraded"]
    assert [letter["reason"] for letter in why("p00005")["letters"]] == ["duplicate_id"]


def test_why_in_words(ask) -> None:
    assert re.search(r"answer +it was rejected, and is not in 2", ask("--why-not", "p00099"))
    assert re.search(r"rejected +at \w+: \w+", ask("--why-not", "p00099"))
    assert "there is no such product" in ask("--why-not", "p77777")
    degraded = ask("--why-not", "p00007", "-k", "60")
    assert re.search(r"degraded +at decode: ", degraded)
    assert re.search(r"answer +found, rank \d+", degraded)
    assert re.search(r"filter +not size > 0 \(size is 0\)", ask("--why-not", "p00004", "--filter", "size > 0"))
    order = [each["product_id"] for each in json.loads(ask("--json", "-k", "60"))]
    assert re.search(r"rank 41, behind the last answer: -k is\s+10", ask("--why-not", order[40]))
    group = json.loads(ask("--json", "--group"))[0]
    others = [name for name in order if int(name[1:]) // 4 == int(group["product_id"][1:]) // 4]
    assert f"by {others[0]}, which scores more" in ask("--why-not", others[-1], "--group")


def test_a_remedy_that_finds_better_products_too_is_not_said_to_find_the_product(capsys) -> None:
    for rank, said in ((12, "--nprobe 6 finds it, at rank 12"), (13, "--nprobe 6 gives it rank 13, behind the last")):
        why = WhyNot(product_id="p1", status="list_not_probed", needed=6, needed_rank=rank)
        print_why_not(why, None, version="v", asked={"k": 10, "offset": 2})
        assert said in " ".join(capsys.readouterr().out.split())


def test_output_to_a_pipe_is_plain(ask) -> None:
    for options in (("--explain", "--group"), ("--why-not", "p00001")):
        assert "\x1b" not in ask(*options)


def test_an_index_of_the_same_vectors_has_the_same_groups(published, tmp_path, capsys) -> None:
    index = str(tmp_path / "index")
    given = ["--work.uri", str(published / "work"), "--index.uri", index, "--index.factory", "Flat"]
    assert run_command(build_index.main, [*given, "--gates.max_rejected_share", "0.5"]) in (0, 1)
    assert IndexReader.open(index).manifest.catalog.group_field == "parent"
    capsys.readouterr()


def test_a_group_field_that_cannot_be_one(published, capsys) -> None:
    for name, message in (
        ("image", "catalog.group_field: expected a column of text or numbers"),
        ("parrent", "parent"),
    ):
        given = [*arguments(published), "--catalog.group_field", name]
        assert run_command(embed_catalog.main, given) == 2
        assert message in capsys.readouterr().err


def test_damage_that_the_search_meets_ends_with_1(ask, monkeypatch) -> None:
    """The address is good, and so is the query. A small version's columns are checked whole when it is opened."""

    def damaged(*others: object, **named: object) -> None:
        raise VerificationError("products.arrow: column 'title' is damaged")

    assert "siz" in ask("--filter", "siz = 1", code=2)
    monkeypatch.setattr(IndexReader, "search", damaged)
    assert ask(code=1) == "error: products.arrow: column 'title' is damaged\n"
