"""A catalog of one's own, as a newcomer gives it: `--catalog.uri X`, and nothing else about its fields."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow.ipc as ipc
import pytest
import yaml

from pipelines import embed_catalog, search
from pipelines.config.command_line import load_job_config, run_command
from tests.encoders.tiny import WORDS, save_tiny_encoder
from tests.pipelines.catalog.exports import EXPORTS


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_tiny_encoder(tmp_path / "encoder", model="3tmm")
    rows = [f"{number:04d};{WORDS[number % 14]} {WORDS[number // 14]} [{number}];{number},50" for number in range(60)]
    Path("Tassen.csv").write_text("\n".join(["Artikelnummer;Bezeichnung;Preis", *rows]) + "\n")
    return tmp_path


def embed(*argv: str) -> int:
    return run_command(embed_catalog.main, ["--encoder.uri", "encoder", *argv])


def yaml_in(printed: str) -> str:
    return printed[printed.index("# Keep this") :]


def test_the_plan_says_what_a_catalog_is_taken_for_and_what_to_keep(shop: Path, capsys, caplog) -> None:
    caplog.set_level(logging.INFO)
    assert embed("--catalog.uri", "Tassen.csv", "--plan") == 0
    printed = capsys.readouterr().out
    for pattern in (
        r"taken for +catalog of no known layout: 60 products in 60 rows",
        r"read as +CSV, UTF-8, semicolons between values",
        r"Artikelnummer +│ id_field +│ id: named so, and different in each of 60 rows",
        r"Bezeichnung +│ text_fields, display_fields +│ title: named so",
        r"0000 +│ \w+ \w+ \[0\] +│ \(none\)",
        r"0002 +│",
        r"index\.uri shelfmark-tassen/index",
    ):
        assert re.search(pattern, printed), pattern
    assert "0003" not in printed
    assert not (shop / "shelfmark-tassen" / "index" / "versions").exists()
    assert "taken for" not in caplog.text, "the plan says it"

    kept = yaml_in(printed)
    assert re.search(r"# +python -m pipelines\.embed_catalog --config tassen\.yaml", kept)
    (shop / "tassen.yaml").write_text(kept)
    catalog = load_job_config(["--config", "tassen.yaml"]).config.catalog
    assert (catalog.uri, catalog.id_field, catalog.layout) == ("Tassen.csv", "Artikelnummer", None)
    assert yaml.safe_load(kept)["index"]["uri"] == "shelfmark-tassen/index"


def test_rows_of_one_product_are_counted_apart_from_products(shop: Path, capsys) -> None:
    uri = EXPORTS["shopify"].write(shop)
    assert embed("--catalog.uri", uri, "--plan") == 0
    printed = capsys.readouterr().out
    assert re.search(r"taken for +Shopify product export: 2 products in 7 rows", printed)
    assert re.search(r"Handle +│ id_field, group_by +│ as a Shopify product export has it", printed)


def test_from_an_export_to_a_searched_index_in_two_commands(shop: Path, capsys, caplog) -> None:
    caplog.set_level(logging.INFO)
    assert embed("--catalog.uri", "Tassen.csv") == 0
    assert "taken for a catalog of no known layout" in caplog.text
    assert "the index goes to shelfmark-tassen/index" in caplog.text
    assert "(published)" in capsys.readouterr().out
    assert run_command(search.main, ["--index", "shelfmark-tassen/index", "-k", "3", WORDS[0]]) == 0
    assert len(re.findall(r"│ 0\d{3} ", capsys.readouterr().out)) == 3
    # What is kept goes on where the first run stopped: no shard is read again, no product embedded.
    assert embed("--catalog.uri", "Tassen.csv", "--plan") == 0
    (shop / "tassen.yaml").write_text(yaml_in(capsys.readouterr().out))
    assert run_command(embed_catalog.main, ["--config", "tassen.yaml"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"catalog shards +1, of which 1 stood complete", printed)
    assert "nothing changed: stays published" in printed


def test_a_catalog_that_tells_nothing_stops_before_any_work(shop: Path, capsys) -> None:
    Path("numbers.csv").write_text("a,b\n1,1\n1,2\n1,1\n")
    for more in ([], ["--plan"]):
        assert embed("--catalog.uri", "numbers.csv", *more) == 2
        said = capsys.readouterr().err
        assert re.search(
            r"^error: catalog\.layout: no column .*catalog\.id_field.*a \(1\), b \(1\)", said, re.MULTILINE
        )
    assert not (shop / "shelfmark-numbers" / "work" / "spool").exists()


def test_an_encoder_of_texts_says_that_it_reads_no_pictures(shop: Path, capsys) -> None:
    save_tiny_encoder(shop / "texts", model="bibert")
    Path("cups.csv").write_text(
        "sku,name,image\n" + "".join(f"s{n},{WORDS[n]},http://i.test/{n}.jpg\n" for n in range(9))
    )
    assert run_command(embed_catalog.main, ["--catalog.uri", "cups.csv", "--encoder.uri", "texts", "--plan"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "which reads texts only (with pictures: --config clip_vit_b32 --catalog.layout auto)" in printed


def test_pictures_alone_are_nothing_for_an_encoder_of_texts(shop: Path, capsys) -> None:
    save_tiny_encoder(shop / "texts", model="bibert")
    Path("photos.csv").write_text("sku,photo\n" + "".join(f"s{number},{number}.jpg\n" for number in range(9)))
    assert run_command(embed_catalog.main, ["--catalog.uri", "photos.csv", "--encoder.uri", "texts"]) == 2
    assert re.search(r"text none; pictures photo.*reads texts only.*--config clip_vit_b32", capsys.readouterr().err)
    assert embed("--catalog.uri", "photos.csv", "--plan") == 0


def test_prices_with_decimal_commas_are_shown_as_numbers(shop: Path) -> None:
    assert embed("--catalog.uri", "Tassen.csv") == 0
    (products,) = Path("shelfmark-tassen/index/versions").glob("*/products.arrow")
    table = ipc.open_file(str(products)).read_all()
    assert sorted(table.column("Preis").to_pylist())[:2] == [0.5, 1.5]


def write_cups(path: str, separator: str = ",") -> str:
    Path(path).parent.mkdir(exist_ok=True)
    rows = [f"{path}{number}{separator}{WORDS[number]}" for number in range(9)]
    Path(path).write_text("\n".join([f"sku{separator}name", *rows, ""]))
    return path


@pytest.fixture(scope="module")
def published_cups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three catalogs of the same name, the first of which is published."""
    folder = tmp_path_factory.mktemp("cups")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_tiny_encoder(folder / "encoder", model="3tmm")
        write_cups("feed.csv")
        write_cups("b/feed.csv")
        write_cups("feed.tsv", "\t")
        assert embed("--catalog.uri", "feed.csv") == 0
    return folder


@pytest.fixture
def cups(published_cups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as working directory; files keep their times, by which a run knows them again."""
    folder = Path(shutil.copytree(published_cups, tmp_path / "cups"))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("other", "folder"),
    [("feed.tsv", "feed-tsv"), ("b/feed.csv", "b-feed-csv"), ("[feed.csv, b/feed.csv]", "feed-csv")],
)
def test_another_catalog_of_the_same_name_is_refused_before_it_takes_the_place(
    cups: Path, capsys: pytest.CaptureFixture[str], other: str, folder: str
) -> None:
    before = sorted(cups.rglob("*"))
    for more in ([], ["--plan"]):
        assert embed("--catalog.uri", other, *more) == 2
        said = capsys.readouterr().err
        assert re.search(r"index\.uri: shelfmark-feed/index holds another catalog, feed\.csv; this one is", said)
        own = f"--work.uri shelfmark-{folder}/work --index.uri shelfmark-{folder}/index"
        assert own in said
    assert sorted(cups.rglob("*")) == before
    assert embed("--catalog.uri", other, *own.split()) == 0
    same = ["--work.uri", "shelfmark-feed/work", "--index.uri", "shelfmark-feed/index"]
    assert embed("--catalog.uri", other, *same, "--gates.max_row_change", "null") == 0
    assert embed("--catalog.uri", other) == 0


@pytest.mark.parametrize("spelled", ["./feed.csv", "{folder}/feed.csv"])
def test_the_same_catalog_spelled_otherwise_keeps_its_place(cups: Path, spelled: str) -> None:
    assert embed("--catalog.uri", spelled.format(folder=cups)) == 0


def test_another_query_of_a_database_is_another_catalog(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(sqlite3.connect("shop.db")) as database, database:
        database.execute("create table product (id integer, name text, kind text)")
        database.executemany("insert into product values (?, ?, ?)", [(n, WORDS[n], "ab"[n % 2]) for n in range(12)])
    mugs = "select id, name from product where kind = 'a' order by id"
    cups = mugs.replace("'a'", "'b'")
    assert embed("--catalog.uri", "sqlite:///shop.db", "--catalog.query", mugs) == 0
    assert embed("--catalog.uri", "sqlite:///shop.db", "--catalog.query", cups) == 2
    assert re.search(
        r"holds another catalog, .*'a'.*this one is .*'b'.*shelfmark-shop-2/index", capsys.readouterr().err
    )
    assert embed("--catalog.uri", "sqlite:///shop.db", "--catalog.query", f"  {mugs} ") == 0


def test_a_folder_in_which_nothing_is_published_is_free(shop: Path) -> None:
    write_cups("feed.csv")
    write_cups("feed.tsv", "\t")
    assert embed("--catalog.uri", "feed.csv", "--gates.min_recall", "1.0", "--index.factory", "nonsense") != 0
    assert embed("--catalog.uri", "feed.tsv") == 0


def test_an_index_of_an_older_version_is_told_by_what_was_published(shop: Path) -> None:
    write_cups("feed.csv")
    write_cups("feed.tsv", "\t")
    assert embed("--catalog.uri", "feed.csv") == 0
    noted = shop / "shelfmark-feed/work/indexes.json"
    noted.write_text(json.dumps({"uris": json.loads(noted.read_text())["uris"]}))
    assert embed("--catalog.uri", "feed.tsv") == 2
    assert embed("--catalog.uri", "feed.csv") == 0


def test_the_plan_of_any_config_shows_columns_products_and_folders(
    shop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = EXPORTS["shopify"].write(shop)
    no_tower = ("--encoder.text_tower", "null", "--encoder.model", "null")  # but that of the saved encoder
    assert embed("--config", "catalogs/shopify", "--catalog.uri", uri, *no_tower, "--plan") == 0
    printed = capsys.readouterr().out
    for pattern in (
        r"holds +2 products in 7 rows",
        r"Handle +│ id_field, group_by +│ as the config says",
        r"Variant Price +│ display_fields, group_lists +│",
        r"\"Status\" is null",
        r"The first products, as they would be embedded",
        r"work\.uri shelfmark-shopify/work, index\.uri shelfmark-shopify/index",
    ):
        assert re.search(pattern, printed), pattern
    assert "# Keep this" not in printed  # it is one already


@pytest.mark.parametrize(
    ("name", "glob"),
    [
        ("wc-product-export-26-11-2026.csv", "wc-product-export-*.csv"),
        ("out/export_2026-11-26.csv", "out/export_*.csv"),
        ("20261126.csv", "*.csv"),
        ("export-123456789012.csv", None),
    ],
)
def test_a_name_with_a_date_is_kept_as_a_glob(shop: Path, capsys, name: str, glob: str | None) -> None:
    assert embed("--catalog.uri", write_cups(name), "--plan") == 0
    kept = yaml_in(capsys.readouterr().out)
    assert yaml.safe_load(kept)["catalog"]["uri"] == name
    assert (f"uri: '{glob}'" in kept) == (glob is not None)
    assert ("has a date" in kept) == (glob is not None)


def test_an_encoding_that_no_mark_tells_is_kept(shop: Path, capsys) -> None:
    text = "nr;titel\n" + "".join(f"{n};Gie\u00dfkanne gr\u00fcn {n}\n" for n in range(20))
    for encoding, kept in (("cp1252", "cp1252"), ("utf-8", None), ("utf-16", None)):
        Path("kannen.csv").write_bytes(text.encode(encoding))
        assert embed("--catalog.uri", "kannen.csv", "--plan") == 0
        assert yaml.safe_load(yaml_in(capsys.readouterr().out))["catalog"].get("encoding") == kept
