"""Markup leaves texts, and what a person reads stays: the kinds of both."""

from __future__ import annotations

import time

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.catalog.markup import plain_text, without_markup, without_written_breaks
from pipelines.catalog.values import text_column


def words(text: str, **options: bool) -> str:
    return " ".join(plain_text(text, **options).split())


@pytest.mark.parametrize(
    "text",
    [
        *("a < b", "a<b", "<3", "I <3 you", "5 > 3", "x <- y -> z", "<", ">", "<>", "< b >", "a <= b", "<<new>>"),
        *("AT&T", "R&D;", "R&D; more", "Q&A", "&", "&;", "&#;", "&copy=1", "a&b;c", "Black&White;"),
        *("[NEW]", "[1]", "[Set of 2]", "[sic]", "[new]", "[]", "a[0]", "[S/M/L]", "[50%]", "{x}", "{{", "{{x}}"),
        *("<unknown>", "std::vector<int>", "<max@shop.example>", "<https://shop.example/a>", "width <a few cm", "a <b"),
        *("</3", "<!>", "<?>", "100% <cotton", "\u00e4 < \u00f6"),
    ],
)
def test_what_is_no_markup_stays(text: str) -> None:
    assert plain_text(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>One</p><p>two</p>", "One two"),
        ("one<br>two<BR/>three<br />four", "one two three four"),
        ("<b>S</b>hoe", "Shoe"),
        ("<ul><li>one<li>two</ul>", "one two"),
        ("<table><tr><td>Size</td><td>42</td></tr></table>", "Size 42"),
        ("super<wbr>long", "superlong"),
        ("<script>var a = '<p>';</script>Shoe<style>p {x: y}</style>", "Shoe"),
        ("<SCRIPT type='x'>a</SCRIPT>Shoe", "Shoe"),
        ("<iframe src='x'>no frames</iframe><video>no video</video>Shoe", "Shoe"),
        ("Shoe<!-- a <b>comment</b> -->s", "Shoes"),
        ("<!--[if gte mso 9]><xml>junk</xml><![endif]-->Shoe", "Shoe"),
        ("<![if !mso]>Shoe<![endif]>", "Shoe"),
        ("<p class=MsoNormal><o:p></o:p>Shoe</p>", "Shoe"),
        ("<![CDATA[Nice <b>shoe</b> & more]]>", "Nice shoe & more"),
        ("<!DOCTYPE html><html><head><title>T</title></head><body>Shoe</body></html>", "T Shoe"),
        ('Shoe <a href="https://shop.exam', "Shoe"),
        ("<p>Shoe <b", "Shoe"),
        ('<img alt="a > b" src="x.jpg">Shoe', "Shoe"),
        ("I <3 <b>you</b>, a < b & c", "I <3 you, a < b & c"),
        ("<p>std::vector<T></p>", "std::vector<T>"),
        ("Black &amp; White", "Black & White"),
        ("5 &lt; 6, &quot;x&quot; &#39;y&#x27;", "5 < 6, \"x\" 'y'"),
        ("a&nbsp;b &euro;5 &Auml;", "a b \u20ac5 \u00c4"),
        ("&amp;nbsp;a&amp;amp;amp;b", "a&b"),
        ("&lt;p&gt;Nice&lt;/p&gt;&lt;br&gt;shoe", "Nice shoe"),
        ("&amp;lt;p&amp;gt;Nice&amp;lt;/p&amp;gt;", "Nice"),
        ('[gallery ids="1,2"]Shoe', "Shoe"),
        ("[vc_row][vc_column width=\u201d1/2\u2033]Shoe[/vc_column][/vc_row]", "Shoe"),
        ("[caption id=x]Shoe[/caption] [more /]", "Shoe"),
        ("[b]Bold[/b] [url=https://x]link[/url] [NEW]", "Bold link [NEW]"),
        ("[embed]https://x/y[/embed]Shoe", "Shoe"),
        ('{{media url="a.jpg"}}Shoe{{widget type="x" id="1"}}', "Shoe"),
        ("<p></p><br>", ""),
        ("<frameset><frame></frameset>", ""),
    ],
)
def test_kinds_of_markup(text: str, expected: str) -> None:
    assert words(text) == expected
    assert words(words(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<unknown>x</unknown>", "x"), ("std::vector<T>", "std::vector"), ("a < b", "a < b"), ("&copy 1", "\u00a9 1")],
)
def test_always_reads_as_a_browser_does(text: str, expected: str) -> None:
    assert words(text, always=True) == expected


def test_columns_keep_their_nulls_and_clean_ones_are_not_copied() -> None:
    texts = pa.array([None, "<b>a</b>", "b", "", "AT&T <3"])
    assert without_markup(texts, "auto").to_pylist() == [None, "a", "b", "", "AT&T <3"]
    assert without_markup(texts.slice(1), "auto").to_pylist() == ["a", "b", "", "AT&T <3"]
    clean = texts.slice(2)
    assert without_markup(clean, "auto") is clean
    assert without_markup(texts, "never") is texts


@pytest.mark.parametrize(
    "text",
    [
        *("<div>" * 100_000, "<a " * 50_000, "<" * 100_000, "&amp;" * 100_000, "[" * 100_000, "[a " * 50_000),
        *("{{a " * 50_000, "[img]" * 30_000, "<a x" * 30_000, "<p" + " " * 100_000, "<!--" * 30_000, "[/a]" * 30_000),
        *("<a-" * 30_000, "<" + "a-" * 50_000, "[a" + " a" * 50_000, "<b><i>" * 2400, "<table>" * 4900, "<p" * 50_000),
        *("".join(f"[/a{number}]" for number in range(20_000)), "<a href=" * 20_000, "[a " + "x_" * 50_000),
    ],
    ids=lambda text: text[:8],
)
def test_hostile_texts_cost_no_time(text: str) -> None:
    start = time.process_time()
    plain_text(text)
    plain_text(text, always=True)
    assert time.process_time() - start < 5


@given(st.text(st.sampled_from("<>&;[]/{}!-=\"' abp#x1\0\u00e9\u200b"), max_size=40))
def test_any_text_comes_out_and_never_longer(text: str) -> None:
    for always in (False, True):
        found = plain_text(text, always)
        assert len(found) <= len(text)
        found.encode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"A \n B", "A B"),
        (r"one\ntwo\r\nthree", "one two three"),
        (
            r"Keramik.</p>\n<ul>\n\t<li>Gr\u00f6\u00dfe</li>\n</ul>".replace(r"\u00f6\u00df", "\u00f6\u00df"),
            "Keramik. Gr\u00f6\u00dfe",
        ),
        (r"\nfirst\n\n\nlast\n", "first last"),
        (r"Width:\t12 cm\r", "Width: 12 cm"),
        (r"a \"big\" mug\nfor tea", r"a \"big\" mug for tea"),
        ("Gr\u00f6\u00dfe:\\n12 cm", "Gr\u00f6\u00dfe: 12 cm"),
        (r"besuchen Sie\nwww.shop.de", "besuchen Sie www.shop.de"),
    ],
)
def test_written_line_breaks_are_blanks_in_texts(text: str, expected: str) -> None:
    assert text_column(pa.array([text, None, "plain"])).to_pylist() == [expected, None, "plain"]


@pytest.mark.parametrize(
    "text",
    [
        *(r"C:\new\table", r"see (C:\new) there", r"\\server\new", r"images\new.jpg", r"img\red\tea.png, or"),
        *(r"3 \times 4", r"\rho", r"a\b", "\\", r"100 \% cotton", r"Users\max\notes"),
    ],
)
def test_other_backslashes_stay(text: str) -> None:
    assert text_column(pa.array([text])).to_pylist() == [text]


def test_texts_without_written_breaks_are_the_same_object() -> None:
    for texts in (pa.array(["a", None, "b"]), pa.array([r"a\b", "c"])):
        assert without_written_breaks(texts) is texts
