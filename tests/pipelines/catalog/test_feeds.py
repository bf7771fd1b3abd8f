"""XML: feeds of any shape become objects of one shape; damaged and hostile files are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipelines.catalog import intake
from pipelines.catalog.config import CatalogConfig, CatalogError
from pipelines.catalog.feeds import Feed
from pipelines.catalog.plan import catalog_schema, plan_catalog
from tests.pipelines.catalog.catalogs import letters_of, pairs, products_of, read_plan, write

RSS = """<?xml version="1.0" encoding="UTF-8"?>
<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel><title>Shop</title><link>https://shop</link>
<item><g:id>007</g:id><title lang="en">Cup</title><g:image_link>a.jpg</g:image_link>
  <g:additional_image_link>b.jpg</g:additional_image_link><g:additional_image_link>c.jpg</g:additional_image_link>
  <g:price>19.90</g:price><g:shipping><g:country>DE</g:country><g:price>5</g:price></g:shipping>
  <description><![CDATA[<p>Fine & "good"</p>]]></description></item>
<!-- <item>not this</item> -->
<item><g:id>8</g:id><title>Mug &amp; lid</title><g:additional_image_link>d.jpg</g:additional_image_link>
  <g:price>7</g:price><description><p>Very <b>fine</b></p> indeed</description><g:brand/></item>
</channel></rss>"""


def feed(text: str | bytes, *, chunk: int = 50, records: str | None = None, encoding: str = "auto") -> Feed:
    data = text if isinstance(text, bytes) else text.encode()
    return Feed(
        lambda: (data[start : start + chunk] for start in range(0, len(data), chunk)),
        "a.xml",
        encoding=encoding,
        records=records,
        max_record_bytes=1 << 20,
    )


def objects(text: str | bytes, **options: Any) -> list[dict[str, Any]]:
    read = feed(text, **options)
    found = [json.loads(line) for line in read]
    return [json.loads(line) for line in read] if read.has_new_shapes else found


def test_a_google_feed_gives_its_columns_in_one_shape() -> None:
    assert objects(RSS) == [
        {
            "g:id": "007",
            "title": "Cup",
            "title@lang": "en",
            "g:image_link": "a.jpg",
            "g:additional_image_link": ["b.jpg", "c.jpg"],
            "g:price": "19.90",
            "g:shipping": {"g:country": "DE", "g:price": "5"},
            "description": '<p>Fine & "good"</p>',
        },
        {
            "g:id": "8",
            "title": "Mug & lid",
            "g:additional_image_link": ["d.jpg"],
            "g:price": "7",
            "description": "<p>Very <b>fine</b></p> indeed",
            "g:brand": None,
        },
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '<feed xmlns="http://www.w3.org/2005/Atom" xmlns:x="http://base.google.com/ns/1.0"><link rel="a"/>'
            '<link rel="b"/><entry><x:id>1</x:id><title>t</title></entry></feed>',
            [{"g:id": "1", "title": "t"}],
        ),
        (
            '<shop><product id="1"><name>a</name></product><product id="2"><name>b</name></product></shop>',
            [{"@id": "1", "name": "a"}, {"@id": "2", "name": "b"}],
        ),
        (
            '<c><category n="x"><product><id>1</id></product></category><category n="y"><product><id>2</id></product>'
            "</category></c>",
            [{"id": "1"}, {"id": "2"}],
        ),
        (
            '<yml_catalog><shop><categories><category id="1">A</category><category id="2">B</category></categories>'
            '<offers><offer id="7"><name>x</name></offer></offers></shop></yml_catalog>',
            [{"@id": "7", "name": "x"}],
        ),
        ("<artikelliste><artikel><nr>1</nr><t>a</t></artikel></artikelliste>", [{"nr": "1", "t": "a"}]),
        ('<rows><row id="1" t="a"/><row id="2" t="b"/></rows>', [{"@id": "1", "@t": "a"}, {"@id": "2", "@t": "b"}]),
        (
            "<p><product><id>1</id><related><product><id>9</id></product></related></product>"
            "<product><id>2</id></product></p>",
            [{"id": "1", "related": {"product": {"id": "9"}}}, {"id": "2"}],
        ),
        (
            '<p><product><im kind="m">a</im><im>b</im><im kind="x">c</im></product><product><im>d</im></product></p>',
            [{"im": ["a", "b", "c"], "im@kind": ["m", None, "x"]}, {"im": ["d"]}],
        ),
        (
            "<p><product><size>M</size></product><product><size unit='cm'><w>1</w></size></product></p>",
            [{"size": {"#text": "M"}}, {"size": {"@unit": "cm", "w": "1"}}],
        ),
    ],
)
def test_other_feeds(text: str, expected: list[dict[str, Any]]) -> None:
    for chunk in (1, 30, 1 << 20):
        assert objects(text, chunk=chunk) == expected


def test_records_names_the_element() -> None:
    text = "<a><b><x>1</x></b><b><x>2</x></b><c><x>3</x></c></a>"
    assert objects(text) == [{"x": "1"}, {"x": "2"}]
    assert objects(text, records="c") == [{"x": "3"}]
    assert len(objects(RSS, records="item")) == 2
    with pytest.raises(
        CatalogError, match=r"catalog\.records: .*found 'itme', which a\.xml does not have\. Did you mea"
    ):
        objects(RSS, records="itme")


def test_what_is_repeated_late_in_a_file_is_a_list_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.catalog.feeds.HEAD_BYTES", 1000)
    monkeypatch.setattr(intake, "BLOCK_BYTES", 1000)
    items = [f"<product><id>{n}</id><title>t</title><tag>a</tag><s>1</s></product>" for n in range(300)]
    items[250] = "<product><id>250</id><title>t</title><tag>a</tag><tag>b</tag><s><w>2</w></s></product>"
    uri = write(tmp_path / "a.xml", f"<r>{''.join(items)}</r>".encode())
    config = CatalogConfig(uri=uri, id_field="id", display_fields=("tag", "s"))
    plan = plan_catalog(config, spool_uri=str(tmp_path / "work"))
    assert plan.schema.field("tag").type == pa.list_(pa.string())
    batches = read_plan(plan, config)
    found = [row for batch in batches for row in batch.columns.to_pylist()]
    assert [row["tag"] for row in found] == [["a", "b"] if n == 250 else ["a"] for n in range(300)]
    assert found[0]["s"]["#text"] == "1"
    assert found[250]["s"]["w"] == "2"
    assert not letters_of(batches)


def test_numbers_are_numbers_as_in_csv_and_ids_stay_texts(tmp_path: Path) -> None:
    write(tmp_path / "a.xml", RSS.encode())
    config = CatalogConfig(
        uri=str(tmp_path), id_field="g:id", filter_fields=("g:price", "title"), image_field="g:additional_image_link"
    )
    assert catalog_schema(config).format == "xml"
    assert "g:brand" in catalog_schema(config).columns
    plan = plan_catalog(config, spool_uri=str(tmp_path / "work"))
    assert plan.schema.field("g:price").type == pa.float64()
    assert plan.shards[0].ranges[0].file.unit == "record"
    (batch,) = read_plan(plan, config)
    assert pairs(batch) == [("007", "Cup"), ("8", "Mug & lid")]
    assert batch.columns.column("g:price").to_pylist() == [19.9, 7.0]


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16", "windows-1252", "ISO-8859-1", "Shift_JIS"])
def test_an_encoding_is_what_xml_declares(encoding: str) -> None:
    title = "カップ" if encoding == "Shift_JIS" else "Tässchen"
    text = f'<?xml version="1.0" encoding="{encoding}"?><r><item><t>{title}</t></item></r>'
    assert objects(text.encode(encoding)) == [{"t": title}]


def test_an_encoding_of_the_config_counts_more() -> None:
    data = '<?xml version="1.0" encoding="UTF-8"?><r><item><t>é€</t></item></r>'.encode("cp1252")
    with pytest.raises(CatalogError, match=r"a\.xml: expected a whole XML file, found: .*encoding, line 1"):
        objects(data)
    assert objects(data, encoding="cp1252") == [{"t": "é€"}]


LAUGHS = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))


@pytest.mark.parametrize("chunk", [1, 60, 1 << 20])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (RSS[:-17], r"Premature end of data in tag channel line 2, line \d+"),
        (RSS.replace("</item>", "</itm>", 1), r"tag mismatch: item line 3 and itm, line 6"),
        (RSS.replace("&amp;", "&"), "line 8"),
        (RSS.replace("&amp;", "&shop;"), "Entity 'shop' not defined, line 8"),
        (
            RSS.replace(' xmlns:g="http://base.google.com/ns/1.0"', ""),
            "Namespace prefix g on id is not defined, line 3",
        ),
        ("product_id,title\n1,a\n", "Start tag expected"),
        ("", "no element found"),
        ("<a>text</a>", "an element for each product, found none that repeats"),
        (f'<!DOCTYPE r [<!ENTITY a0 "lollollol">{LAUGHS}]><r><item><t>&a9;</t></item></r>', "amplification"),
    ],
)
def test_a_damaged_or_hostile_file_is_refused_by_name(text: str, message: str, chunk: int) -> None:
    with pytest.raises(CatalogError, match=rf"^a\.xml: expected .*{message}"):
        objects(text, chunk=chunk)


def test_nothing_outside_the_file_is_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("S3cret")
    (tmp_path / "x.dtd").write_text('<!ENTITY e "S3cret">')
    for declared in (f'[<!ENTITY e SYSTEM "file://{secret}">]', f'SYSTEM "{tmp_path}/x.dtd"'):
        with pytest.raises(CatalogError, match="Entity 'e' not defined"):
            objects(f"<!DOCTYPE r {declared}><r><item><t>x&e;y</t></item></r>")
    assert objects('<!DOCTYPE r [<!ENTITY e "own">]><r><item><t>x&e;y</t></item></r>') == [{"t": "xowny"}]


def test_memory_holds_a_part_of_the_file_only() -> None:
    code = """if True:
        import resource
        from pipelines.catalog.feeds import Feed
        item = b"<item><id>1</id><t>" + b"word " * 40 + b"</t></item>"
        def chunks():
            yield b"<r><head>"
            for part in (b"<other><a>1</a><b>2</b></other>", item, b"<last><a>1</a></last>"):
                yield from [part * 1000] * (8_000 // len(part))
            yield b"</head></r>"
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        feed = Feed(chunks, "a.xml", encoding="auto", records="item", max_record_bytes=1 << 30)
        before = peak()
        count = sum(1 for _ in feed)
        print(count, peak() - before)
    """
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, mebibytes = map(int, found.stdout.split())
    assert count == 34_000
    assert mebibytes < 40, "MiB more, where the tree of all of it takes gigabytes"


def test_a_record_without_end_is_refused() -> None:
    text = "<r><item><t>a</t></item><item>" + "<t>b</t>" * 200_000
    with pytest.raises(CatalogError, match="of a size that fits memory"):
        objects(text, chunk=1 << 16)


def test_an_xml_file_in_any_compression_and_without_a_name(tmp_path: Path) -> None:
    import lzma

    for name, data in (("a.xml.xz", lzma.compress(RSS.encode())), ("part-0", RSS.encode()), ("a.rss", RSS.encode())):
        config = CatalogConfig(uri=write(tmp_path / name, data), id_field="g:id")
        assert [pair[0] for pair in products_of(config, tmp_path / "work")] == ["007", "8"]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_entities_of_html_are_signs_but_in_cdata(chunk: int) -> None:
    text = (
        "<r>"
        + "<p><t>a&nbsp;b &uuml;&amp;&lt;</t><u><![CDATA[x &nbsp; ]] <b>&uuml;</b>]]>&eacute;</u></p>" * 3
        + "</r>"
    )
    assert objects(text, chunk=chunk) == [{"t": "a\xa0b ü&<", "u": "x &nbsp; ]] <b>&uuml;</b>é"}] * 3
    own = f'<!DOCTYPE r [<!ENTITY uuml "own">]>{text.replace("nbsp", "uuml").replace("eacute", "uuml")}'
    assert objects(own, chunk=chunk) == [{"t": "aownb own&<", "u": "x &uuml; ]] <b>&uuml;</b>own"}] * 3
