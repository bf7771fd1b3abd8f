from __future__ import annotations

import csv
import io
import json
import lzma
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.layouts import LAYOUTS, recognise, recognise_sample, resolved, set_keys
from pipelines.catalog.listing import list_catalog
from pipelines.catalog.plan import catalog_schema, plan_catalog
from pipelines.catalog.samples import Sample, TextOptions, flattened, read_sample
from pipelines.config.command_line import load_job_config
from pipelines.config.yaml_files import shipped_configs
from tests.pipelines.catalog.catalogs import read_plan
from tests.pipelines.catalog.exports import EXPORTS, Export
from tests.pipelines.catalog.test_sheets import sheet

SHIPPED = sorted(name.removeprefix("catalogs/") for name in shipped_configs() if name.startswith("catalogs/"))
RECOGNISED = {name: export.recognised for name, export in EXPORTS.items() if export.recognised}


def shipped(name: str, uri: str) -> CatalogConfig:
    return load_job_config(["--config", f"catalogs/{name}", "--catalog.uri", uri]).config.catalog


def test_each_shipped_config_has_an_example_and_each_layout_a_shipped_config() -> None:
    assert sorted(EXPORTS) == SHIPPED
    assert set(RECOGNISED.values()) == set(LAYOUTS)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_reads_what_its_shop_system_writes(name: str, tmp_path: Path) -> None:
    export: Export = EXPORTS[name]
    config = replace(shipped(name, export.write(tmp_path)), images_per_product=5)
    catalog_schema(config)
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    found = [
        product
        for batch in batches
        for product in zip(batch.product_ids.to_pylist(), batch.texts.to_pylist(), batch.images, strict=True)
    ]
    assert found == list(export.products)
    letters = [letter for batch in batches for letter in batch.dead_letters]
    assert [letter.reason.value for letter in letters] == list(export.letters), letters
    assert not [letter for batch in batches for letter in batch.notes]
    assert sum(batch.left_out for batch in batches) == export.kept_out
    first = next(batch for batch in batches if batch.columns.num_rows).columns.slice(0, 1).to_pylist()[0]
    assert {column: first[column] for column in export.display} == export.display


@pytest.mark.parametrize("name", sorted(RECOGNISED))
def test_the_shipped_config_is_what_its_example_is_taken_for(name: str, tmp_path: Path) -> None:
    export = EXPORTS[name]
    uri = export.write(tmp_path)
    recognised = recognise(CatalogConfig(uri=uri, layout="auto"))
    assert recognised.layout == export.recognised
    expected = replace(shipped(name, uri), image_root=None)
    told = {"encoding": "cp1252"} if "CP1252" in recognised.read_as else {}  # of this one file; a config reads any
    assert replace(recognised.config, image_root=None) == replace(expected, **told)
    named = recognise(CatalogConfig(uri=uri, layout=export.recognised))
    assert named.config == recognised.config
    assert all(why for _, _, why in recognised.reasons)


def in_csv(folder: Path, rows: list[dict[str, object]], delimiter: str = ",", encoding: str = "utf-8") -> str:
    path = folder / "export.csv"
    with path.open("w", newline="", encoding=encoding) as sink:
        writer = csv.DictWriter(sink, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.mark.parametrize("change", [str.lower, str.upper, lambda name: name.replace(" ", "_")])
def test_a_layout_is_known_whatever_the_case_and_signs_of_its_columns(change, tmp_path: Path) -> None:
    header, _, rest = (Path(EXPORTS["shopify"].write(tmp_path)).read_text()).partition("\n")
    (tmp_path / "export.csv").write_text(f"{change(header)}\n{rest}")
    found = recognise(CatalogConfig(uri=str(tmp_path / "export.csv"), layout="auto"))
    assert found.layout == "shopify"
    assert (found.config.id_field, found.config.group_by) == (change("Handle"), change("Handle"))
    assert f'"{change("Status")}" is null' in (found.config.where or "")


def test_a_shop_in_another_language_is_known(tmp_path: Path) -> None:
    row = {"ID": 1, "Typ": "simple", "Artikelnummer": "M", "Name": "Becher", "Veröffentlicht": 1, "Bilder": "",
           "Beschreibung": "x", "Regulärer Preis": "1"}  # fmt: skip
    found = recognise(CatalogConfig(uri=in_csv(tmp_path, [row]), layout="auto"))
    assert found.layout == "woocommerce"
    assert found.config.where == '"Typ" not like \'variation%\' and "Veröffentlicht" = 1'
    assert found.config.text_fields == ("Name", "Beschreibung")


def test_columns_that_an_export_lacks_are_left_out(tmp_path: Path) -> None:
    rows = [{"Handle": "a", "Title": "Mug", "Variant Price": "9"}]
    config = recognise(CatalogConfig(uri=in_csv(tmp_path, rows), layout="auto")).config
    assert (config.text_fields, config.image_field, config.where) == (("Title",), None, None)
    assert config.display_fields == ("Title", "Variant Price")
    assert config.group_lists == ("Variant Price",)


WORDS = ["a", "round", "cup", "for", "tea", "and", "coffee", "that", "stays", "warm", "for", "long"] * 3


def products(**columns) -> list[dict[str, object]]:
    return [{name: make(number) for name, make in columns.items()} for number in range(40)]


@pytest.mark.parametrize(
    ("columns", "roles"),
    [
        (
            {"Artikelnummer": lambda n: f"{n:05d}", "Bezeichnung": lambda n: f"Becher Nr {n}",
             "Hersteller": lambda n: "Tamsin", "Preis": lambda n: "19,90", "Bild": lambda n: f"bilder/{n}.jpg"},
            ("Artikelnummer", ("Bezeichnung", "Hersteller"), "Bild"),
        ),
        (
            {"référence": lambda n: n, "désignation": lambda n: f"Tasse {n}", "marque": lambda n: "T",
             "prix": lambda n: "5", "url_image": lambda n: f"https://i.test/{n}"},
            ("référence", ("désignation", "marque"), "url_image"),
        ),
        (
            {"código": lambda n: n, "nombre": lambda n: f"Taza {n}", "precio": lambda n: "5"},
            ("código", ("nombre",), None),
        ),
        (
            {"codice": lambda n: n, "titolo": lambda n: f"Tazza {n}", "descrizione": lambda n: f"Per il tè {n}"},
            ("codice", ("titolo", "descrizione"), None),
        ),
        # Names that say nothing: what stands in the columns tells.
        (
            {"c1": lambda n: "x", "c2": lambda n: f"K{n}", "c3": lambda n: f"Round cup {n}",
             "c4": lambda n: " ".join(WORDS[n % 7:] + WORDS) + f" {n}", "c5": lambda n: f"a/b/{n}.webp"},
            ("c2", ("c3", "c4"), "c5"),
        ),
        # A name alone does not make an id of what repeats, nor a picture of a word.
        (
            {"id": lambda n: n % 3, "sku": lambda n: f"S{n}", "name": lambda n: f"Cup {n}", "image": lambda n: "yes"},
            ("sku", ("name",), None),
        ),
        (
            {"id": lambda n: n // 2, "locale": lambda n: "de" if n % 2 else "en", "title": lambda n: f"Cup {n}"},
            (("id", "locale"), ("title",), None),
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_columns_of_no_known_layout_are_guessed(columns, roles, delimiter: str, tmp_path: Path) -> None:
    found = recognise(CatalogConfig(uri=in_csv(tmp_path, products(**columns), delimiter), layout="auto"))
    assert (found.config.id_field, found.config.text_fields, found.config.image_field) == roles
    assert found.layout == "generic"
    assert found.config.csv_delimiter == (None if delimiter == "," else delimiter)
    assert all(why for _, _, why in found.reasons)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_the_encoding_is_no_obstacle(encoding: str, tmp_path: Path) -> None:
    columns = {"référence": lambda n: n, "désignation": lambda n: f"Thé n° {n}"}
    found = recognise(CatalogConfig(uri=in_csv(tmp_path, products(**columns), ";", encoding), layout="auto"))
    assert (found.config.id_field, found.config.text_fields) == ("référence", ("désignation",))
    assert encoding.removesuffix("-sig").upper() in found.read_as


def test_several_pictures_in_a_value_are_told_from_their_separator(tmp_path: Path) -> None:
    columns = {"id": lambda n: n, "name": lambda n: f"Cup {n}", "images": lambda n: f"{n}.jpg|{n}b.jpg"}
    assert (
        recognise(CatalogConfig(uri=in_csv(tmp_path, products(**columns)), layout="auto")).config.image_separator == "|"
    )


def test_amounts_with_commas_and_currencies_become_numbers(tmp_path: Path) -> None:
    columns = {"id": lambda n: n, "name": lambda n: f"Cup {n}", "price": lambda n: f"{n},90 EUR"}
    config = recognise(CatalogConfig(uri=in_csv(tmp_path, products(**columns)), layout="auto")).config
    assert config.column_types == {"price": "float64"}


def test_nested_records_are_guessed_by_their_paths(tmp_path: Path) -> None:
    rows = [{"product": {"sku": f"s{n}", "name": {"en": f"Cup {n}"}}, "media": [{"url": f"http://i/{n}.jpg"}]}
            for n in range(9)]  # fmt: skip
    (tmp_path / "export.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = recognise(CatalogConfig(uri=str(tmp_path / "export.jsonl"), layout="auto")).config
    assert (config.id_field, config.text_fields) == ("product.sku", ("product.name.en",))
    assert config.image_field == "media.url"


def test_what_was_named_stays_and_the_rest_is_recognised(tmp_path: Path) -> None:
    uri = EXPORTS["google_merchant_tsv"].write(tmp_path)
    config = CatalogConfig(uri=uri, layout="auto", text_fields=("title",), display_fields=("brand",))
    found = recognise(config).config
    assert (found.display_fields, found.id_field) == (("brand",), "id")
    assert found.text_fields == ("title", "brand", "product_type", "description")  # title is what it is by default
    found = recognise(config, {"uri", "layout", "text_fields", "display_fields"}).config
    assert (found.text_fields, found.display_fields, found.image_field) == (("title",), ("brand",), "image_link")
    assert found.column_types == {}
    assert set_keys(config) == {"uri", "layout", "display_fields"}


def test_variants_can_be_products(tmp_path: Path) -> None:
    uri = EXPORTS["shopify"].write(tmp_path)
    config = CatalogConfig(uri=uri, layout="shopify", id_field="Variant SKU", group_by=None)
    found = recognise(config, {"id_field", "group_by"}).config
    assert (found.id_field, found.group_by, found.group_lists) == ("Variant SKU", None, ())


def test_what_is_resolved_has_nothing_left_to_recognise(tmp_path: Path) -> None:
    config = CatalogConfig(uri=EXPORTS["hm"].write(tmp_path), layout="auto")
    explicit = resolved(config)
    assert explicit.layout is None
    assert resolved(explicit) is explicit
    assert resolved(replace(explicit, layout="auto"), {"layout"}) == explicit


KNOWN = sorted({name for layout in LAYOUTS.values() for name in (*layout.tells, *layout.one_of, *layout.where)})
NAMES = st.sampled_from([*KNOWN, "sku", "titel", "Bild", "preis", "locale", "description"]) | st.text(
    min_size=1, max_size=9
)
TEXTS = st.text(max_size=30) | st.sampled_from(
    ["a.jpg", "https://i.test/1.png, b.png", "19,90 EUR", "de", "x y z " * 30]
)
VALUES = (
    *(st.none(), TEXTS, st.integers(), st.floats(), st.binary(max_size=99), st.lists(TEXTS, max_size=2)),
    *(st.dictionaries(TEXTS, TEXTS, max_size=2), st.lists(st.dictionaries(TEXTS, TEXTS, max_size=2), max_size=2)),
)


@given(
    st.lists(NAMES, min_size=1, max_size=7, unique=True).flatmap(
        lambda names: st.lists(st.fixed_dictionaries(dict.fromkeys(names, st.one_of(VALUES))), min_size=1, max_size=6)
    )
)
@settings(max_examples=150, deadline=None)
def test_whatever_stands_in_a_catalog_is_recognised_or_refused_with_its_columns(rows: list[dict[str, object]]) -> None:
    flat = tuple(map(flattened, rows))
    names = tuple(dict.fromkeys(name for row in flat for name in row))
    sample = Sample(format="jsonl", read_as="JSON Lines", columns=names, rows=flat)
    config = CatalogConfig(uri="x", layout="auto")
    try:
        found = recognise_sample(sample, config, set_keys(config))
    except CatalogError as error:
        said = str(error)
        assert "catalog.id_field" in said or "build_index" in said
        return
    used = set(found.config.texts) | set(found.config.carried_fields) | {found.config.group_by or names[0]}
    used |= {found.config.id_field} if isinstance(found.config.id_field, str) else set(found.config.id_field)
    assert used <= set(names)
    assert "taken for" in found.sentence


def test_a_sample_of_large_pictures_stays_small(tmp_path: Path) -> None:
    rows = [{"sku": f"s{n}", "name": f"Cup {n}", "photo": bytes(1 << 20)} for n in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "big.parquet")
    (file,) = list_catalog([str(tmp_path / "big.parquet")], "auto").files
    assert 10 <= len(read_sample(file, TextOptions()).rows) <= 17
    found = recognise(CatalogConfig(uri=str(tmp_path / "big.parquet"), layout="auto")).config
    assert (found.id_field, found.text_fields, found.image_field) == ("sku", ("name",), "photo")


def test_columns_that_tell_nothing_are_listed_with_values(tmp_path: Path) -> None:
    uri = in_csv(tmp_path, [{"a": "x", "b": "1", "empty": ""}] * 5)
    with pytest.raises(CatalogError) as caught:
        recognise(CatalogConfig(uri=uri, layout="auto"))
    said = str(caught.value)
    for part in ("catalog.id_field", "catalog.text_fields", "a (x)", "b (1)", "empty (empty)", "product ids"):
        assert part in said
    uri = in_csv(tmp_path, [{"id": n, "stock": n % 2} for n in range(5)])
    with pytest.raises(CatalogError, match="titles or pictures"):
        recognise(CatalogConfig(uri=uri, layout="auto"))


def test_a_layout_that_is_not_there_is_told(tmp_path: Path) -> None:
    uri = in_csv(tmp_path, [{"id": 1, "title": "Cup"}])
    with pytest.raises(CatalogError, match=r"catalog\.layout: expected a Shopify .* no column 'Handle'; .* id \(1\)"):
        recognise(CatalogConfig(uri=uri, layout="shopify"))
    with pytest.raises(CatalogError, match=r"catalog\.layout: expected auto or .*'shopfy'.*'shopify'"):
        recognise(CatalogConfig(uri=uri, layout="shopfy"))


def test_metadata_of_vectors_is_no_catalog(tmp_path: Path) -> None:
    uri = in_csv(tmp_path, [{"image_path": "0.jpg", "caption": "A cup", "NSFW": "no", "key": 1}])
    with pytest.raises(CatalogError, match=r"clip-retrieval.*pipelines\.build_index --embeddings\.uri"):
        recognise(CatalogConfig(uri=uri, layout="auto"))


def test_documents_sheets_databases_and_archives_are_recognised_too(tmp_path: Path) -> None:
    source = {"title": "Cup", "brand": "Tamsin", "sku": "s1"}
    answer = {"took": 1, "hits": {"total": 1, "hits": [{"_index": "shop", "_id": "a1", "_source": source}]}}
    (tmp_path / "answer.json").write_text(json.dumps(answer, indent=1))
    (tmp_path / "array.json").write_text(json.dumps([source, source | {"sku": "s2"}]))
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.writestr("export.csv", "Handle,Title,Variant Price\na,Cup,5\n")
    (tmp_path / "items.jsonl.xz").write_bytes(
        lzma.compress(b'{"article_id": "01", "prod_name": "Cup", "detail_desc": "x"}\n')
    )

    def found(uri: str, **keys: str) -> tuple[str, object, tuple[str, ...], str]:
        recognised = recognise(CatalogConfig(uri=uri, layout="auto", **keys))
        config = recognised.config
        return recognised.layout, config.id_field, config.text_fields, recognised.read_as.partition(",")[0]

    texts = ("_source.title", "_source.brand")
    assert found(str(tmp_path / "answer.json")) == ("elasticsearch", "_id", texts, "JSON document")
    assert found(str(tmp_path / "array.json")) == ("generic", "sku", ("title", "brand"), "JSON document")
    assert found(str(tmp_path / "export.zip")) == ("shopify", "Handle", ("Title",), "CSV")
    assert found(str(tmp_path / "items.jsonl.xz")) == ("hm", "article_id", ("prod_name", "detail_desc"), "JSON Lines")
    names = ("name", "brand", "description")
    assert found(EXPORTS["excel"].write(tmp_path)) == ("generic", "id", names, "Excel sheet")
    query = "select * from products order by id"
    assert found(EXPORTS["sql"].write(tmp_path), query=query) == ("generic", "id", names, "query of a database")


def test_rows_of_one_handle_that_are_several_products_are_no_shopify_export(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"Handle": f"h{row % 3}", "Title": f"Mug number {row}", "Price": row, "sku": f"s{row}"} for row in range(12)
    ]
    found = recognise(CatalogConfig(uri=in_csv(tmp_path, rows), layout="auto"))
    assert (found.layout, found.config.group_by, found.config.id_field) == ("generic", None, "sku")
    for row in rows:  # the same with variants of one product each
        row["Title"] = f"Mug {row['Handle']}" if row["Price"] else ""
    assert recognise(CatalogConfig(uri=in_csv(tmp_path, rows), layout="auto")).layout == "shopify"


HEADLESS = (
    [[str(row), f"Red mug {row}", f"{row}.99"] for row in range(1, 30)],
    [[f"sku-{row:04}", f"Red mug in size {'SML'[row % 3]}", "Acme"] for row in range(30)],
    [["abc"[row % 3] * (row + 1), "Red mug", f"https://shop.example/{row}"] for row in range(30)],
    [[f"{'abcdefghij'[row % 10]}{'klm'[row // 10]}", "Brand", f"Red {row}"] for row in range(30)],
)


@pytest.mark.parametrize("lines", HEADLESS)
def test_a_table_without_a_line_of_names_is_refused(lines: list[list[str]], tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text("".join(",".join(line) + "\n" for line in lines))
    with pytest.raises(CatalogError, match=r"expected a first line of column names.*write a line of names above it"):
        recognise(CatalogConfig(uri=str(path), layout="auto"))
    named = CatalogConfig(uri=str(path), layout="auto", id_field=lines[0][0], text_fields=(lines[0][1],))
    assert recognise(named).config.id_field == lines[0][0]


@pytest.mark.parametrize("names", ["a,b", "id,38", "codice,2024", "Code,Name", "x1,x2", "ID,0"])
def test_names_that_are_names_are_taken(names: str, tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text(names + "\n" + "".join(f"{row},Red mug {row}\n" for row in range(30)))
    first, second = names.split(",")
    found = recognise(CatalogConfig(uri=str(path), layout="auto")).config
    assert (found.id_field, found.text_fields) in ((first, (second,)), (first, ()))


def test_files_without_rows_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"products": []}')
    (tmp_path / "b.json").write_text('{"products": [{"id": 1, "title": "Red mug"}]}')
    assert recognise(CatalogConfig(uri=str(tmp_path), layout="auto")).config.id_field == "id"
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(CatalogError, match=r"expected products in b\.json, found no row"):
        recognise(CatalogConfig(uri=str(tmp_path), layout="auto"))


def test_a_part_of_names_alone_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "part-0.csv").write_text("id,title\n")
    (tmp_path / "part-1.csv").write_text("id,title\n1,Red mug\n")
    assert recognise(CatalogConfig(uri=str(tmp_path), layout="auto")).config.text_fields == ("title",)


def test_excels_line_of_the_delimiter_is_no_header(tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text("sep=;\nid;title\n" + "".join(f"{row};Red mug {row}\n" for row in range(9)))
    config = recognise(CatalogConfig(uri=str(path), layout="auto")).config
    assert (config.id_field, config.csv_skip_lines, config.csv_delimiter) == ("id", 1, ";")


@pytest.mark.parametrize("first", ["Export of 2024-05-01", "id,title"])
def test_a_first_line_that_rows_do_not_fit_is_named(first: str, tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    path.write_text(first + "\n" + "".join(f"{row},Red mug {row},3\n" for row in range(9)))
    with pytest.raises(CatalogError, match=r"the rows below it have 3 values; set catalog\.csv_skip_lines"):
        recognise(CatalogConfig(uri=str(path), layout="auto"))


@pytest.mark.parametrize("rows", [8, 300])
def test_the_plan_names_the_encoding_that_the_run_reads(rows: int, tmp_path: Path) -> None:
    path = tmp_path / "export.csv"
    lines = (f"{row:06};Tasse grün {row};{row},90 €\n" for row in range(rows))
    path.write_bytes(("Artikelnummer;Bezeichnung;Preis\n" + "".join(lines)).encode("cp1252"))
    found = recognise(CatalogConfig(uri=str(path), layout="auto"))
    assert found.read_as == "CSV, CP1252, semicolons between values"
    plan = plan_catalog(found.config, spool_uri=str(tmp_path / "spool"))
    texts = [text for batch in read_plan(plan, found.config) for text in batch.texts.to_pylist()]
    assert texts == [f"Tasse grün {row}" for row in range(rows)]


def test_drafts_and_variations_are_known_however_they_are_spelled(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"Handle": f"h{number}", "Title": f"Mug {number}", "Status": status, "Variant SKU": number}
        for number, status in enumerate(["active", "Active", "ACTIVE", "", "draft", "Draft", "ARCHIVED"])
    ]
    types = ["simple", "simple, virtual", "variable", "variation", "variation, virtual", "variation, downloadable"]
    of_woo: list[dict[str, object]] = [
        {"ID": number, "Type": kind, "SKU": f"s{number}", "Name": f"Mug {number}", "Published": 1}
        for number, kind in enumerate(types)
    ]
    for table, kept in ((rows, 4), (of_woo, 3)):
        config = recognise(CatalogConfig(uri=in_csv(tmp_path, table), layout="auto")).config
        batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
        assert sum(len(batch.product_ids) for batch in batches) == kept


ARTICLES = [["Artikelnummer", "Bezeichnung", "VK-Preis", "Bild"]]
ARTICLES += [[f"{n:05d}", f"Tasse, rot {n}", f"{n},90", f"bilder/{n}.jpg" if n % 3 else ""] for n in range(12)]
TITLES = [
    [["Artikelliste Stand 26.11.2026"]],
    [["Artikelliste"], [], ["Stand", "26.11.2026"], []],
    [["Artikelliste, Stand 26.11.2026; alle Preise in EUR"], []],
]


@pytest.mark.parametrize("above", TITLES)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "xlsx"])
def test_lines_above_the_column_names_are_skipped(above: list[list[str]], delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.xlsx" if delimiter == "xlsx" else "a.csv")
    if delimiter == "xlsx":
        path.write_bytes(sheet(*above, *ARTICLES))
    else:
        text = io.StringIO()
        for line in above:  # as people type it; Excel fills the line up with delimiters
            text.write(delimiter.join(line) + delimiter * (3 if len(above) > 1 else 0) + "\n")
        csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(ARTICLES)
        path.write_text(text.getvalue())
    config = recognise(CatalogConfig(uri=str(path), layout="auto")).config
    assert (config.id_field, config.text_fields, config.image_field) == ("Artikelnummer", ("Bezeichnung",), "Bild")
    assert 0 < config.csv_skip_lines <= len(above)
    batches = read_plan(plan_catalog(config, spool_uri=str(tmp_path / "spool")), config)
    assert sum(len(batch.product_ids) for batch in batches) == 12
    assert not [letter for batch in batches for letter in batch.dead_letters]


@pytest.mark.parametrize(
    "rows", [ARTICLES, [["id", "name", "", ""], *ARTICLES[1:]], [["id", "name"], ["1", "Red cup"]]]
)
@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_names_in_the_first_line_are_not_skipped(rows: list[list[str]], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "xlsx":
        path.write_bytes(sheet(*rows))
    else:
        path.write_text("".join(",".join(f'"{value}"' for value in row) + "\n" for row in rows))
    assert recognise(CatalogConfig(uri=str(path), layout="auto")).config.csv_skip_lines == 0
