"""Encodings: marked, stated, or found on the whole file; what cannot be told is refused, and no row is lost alone."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.catalog import intake
from pipelines.catalog.config import CatalogConfig, CatalogConfigError, CatalogError
from pipelines.catalog.intake import look_at_head, take_in_all
from pipelines.catalog.listing import list_catalog
from pipelines.catalog.plan import plan_taken_in
from pipelines.catalog.text_encoding import OtherEncodingError, as_utf8, encoding_of_head, find_encoding
from tests.pipelines.catalog.catalogs import letters_of, pairs, read_plan, write

WESTERN = {
    "de": ["Größe L Herrenhemd", "Kaffeemühle für Espresso", "Türschild aus Messing", "Fußmatte grün 40×60 cm"],
    "fr": ["Théière émaillée", "Crème hydratante à l’aloès", "Chaussures d'été pour garçon", "Écharpe brodée à pois"],
    "es": ["Pantalón de niño", "Lámpara de mesita", "¿Cafetera eléctrica?", "Sofá cama tamaño único"],
    "sv": ["Blå skjorta för män", "Kök och hushåll", "Ärmlös klänning", "Rödgrön å"],
    "pt": ["Calção de banho", "Relógio de pulso", "Mochila não tóxica", "Pão de açúcar"],
    "da": ["Rød kjole på bøjle", "Æblegrød", "Små børn", "Køkkenø"],
    "en": ["Café table “Paris” – oak", "Levi’s® jeans", "Kettle 20°C – 40°C", "£5 gift card", "Nestlé chocolate"],
    "one": ["Café table"],
}
OTHERS = {
    ("cp1250", "cs"): ["Příliš žluťoučký kůň", "Dětská postýlka bílá", "Lžička nerezová", "Židle dřevěná"],
    ("iso8859_2", "cs"): ["Příliš žluťoučký kůň", "Dětská postýlka bílá", "Lžička těžká", "Židle dřevěná šedá"],
    ("cp852", "cs"): ["Příliš žluťoučký kůň", "Dětská postýlka bílá", "Lžička nerezová", "Židle dřevěná"],
    ("iso8859_5", "ru"): ["Кроссовки мужские черные", "Чашка для кофе белая", "Детская кроватка", "Свеча"],
    ("cp1251", "ru"): ["Кроссовки мужские черные", "Чашка для кофе белая", "Детская кроватка", "Свеча"],
    ("koi8_r", "ru"): ["Кроссовки мужские черные", "Чашка для кофе белая", "Детская кроватка", "Свеча"],
    ("cp932", "ja"): ["メンズシャツ 白 Lサイズ", "コーヒーカップ", "子供用ベッド 木製", "タオル 大判"],
    ("euc_jp", "ja"): ["メンズシャツ 白 Lサイズ", "コーヒーカップ", "子供用ベッド 木製", "タオル 大判"],
    ("gb18030", "zh"): ["男士衬衫 白色", "咖啡杯 陶瓷", "儿童床 实木", "毛巾 大号"],
    ("big5", "zh"): ["男士襯衫 白色", "咖啡杯 陶瓷", "兒童床 實木", "毛巾 大號"],
    ("cp949", "ko"): ["남성 셔츠 흰색", "커피 컵", "어린이 침대", "수건 대형"],
    ("cp1256", "ar"): ["قميص رجالي أبيض", "كوب قهوة", "سرير أطفال"],
    ("cp850", "de"): ["Größe L Herrenhemd schwarz", "Kaffeemühle für Espresso", "Fußmatte grün 40x60 cm"],
    ("cp1253", "el"): ["Ανδρικό πουκάμισο λευκό", "Κούπα για καφέ", "Παιδικό κρεβάτι"],
    ("cp874", "th"): ["เสื้อเชิ้ตผู้ชายสีขาว", "ถ้วยกาแฟ", "เตียงเด็ก"],
}
UNCLEAR = {
    ("cp1250", "hu"): ["könyv szék őszi fűszer", "tükör zöld kék tűz", "nagy bögre asztal"],
    ("cp1250", "pl"): ["Koszulka męska żółta", "Łóżko dziecięce białe", "Ręcznik kąpielowy duży", "Świeca"],
    ("cp1254", "tr"): ["Erkek gömlek beyaz", "Çocuk oyuncağı", "Kışlık ceket büyük beden", "Işıklı şapka"],
    ("cp1255", "he"): ["חולצת גברים לבנה", "כוס קפה", "מיטת ילדים"],
}


def csv_of(titles: list[str], count: int = 60) -> str:
    lines = [f"{number:05d},{titles[number % len(titles)]},{number}.50" for number in range(count)]
    return "\n".join(["product_id,title,price", *lines]) + "\n"


def read_all(uri: str, spool: Path, **options: Any) -> tuple[list[tuple[str, str | None]], list[str], str]:
    """(id, text) of all products, details of the letters, and the encoding that was found."""
    config = CatalogConfig(uri=uri, **options)
    taken = take_in_all(list_catalog(config.uris, config.format).files, config, str(spool))
    batches = read_plan(plan_taken_in(taken, config), config)
    assert taken[0].seen is not None
    found = [pair for batch in batches for pair in pairs(batch)]
    letters = [f"{letter.place}: {letter.detail}" for letter in letters_of(batches)]
    return found, letters, taken[0].seen.encoding


@pytest.mark.parametrize("language", WESTERN)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_a_western_export_is_read_with_all_rows(language: str, encoding: str, tmp_path: Path) -> None:
    text = csv_of([*WESTERN[language], *["plain"] * 5]).translate(str.maketrans("’“”–", '\'""-'))
    text = text if encoding == "latin-1" else csv_of([*WESTERN[language], *["plain"] * 5])
    text = text.replace('"', "")
    found, letters, name = read_all(write(tmp_path / "a.csv", text.encode(encoding)), tmp_path / "spool")
    assert name == "cp1252"
    assert [f"{product_id},{title}" for product_id, title in found] == [
        line.rpartition(",")[0] for line in text.splitlines()[1:]
    ]
    assert not letters


@pytest.mark.parametrize(
    "price",
    ["{},90 €", "€ {}.90", "€{}", "£{}", "ab {} €/m²", "Lego® set {} – new™", "n° {}", "½ × {}°"],
)
@pytest.mark.parametrize("language", [*WESTERN, "none"])
def test_western_prices_and_signs_are_in_no_other_encoding(language: str, price: str) -> None:
    titles = WESTERN.get(language, ["plain"])
    lines = [f"{number:05d};{titles[number % len(titles)]};{price.format(number)}\n" for number in range(60)]
    assert find_encoding([b"Nr;Titel;Preis\n", *(line.encode("cp1252") for line in lines)], "a.csv") == "cp1252"


@pytest.mark.parametrize(("encoding", "language"), OTHERS)
def test_another_encoding_is_read_where_it_is_clear(encoding: str, language: str) -> None:
    assert find_encoding([csv_of(OTHERS[encoding, language]).encode(encoding)], "a.csv") == encoding


@pytest.mark.parametrize(("encoding", "language"), UNCLEAR)
def test_an_encoding_that_is_not_clear_is_asked_for(encoding: str, language: str, tmp_path: Path) -> None:
    titles = UNCLEAR[encoding, language]
    uri = write(tmp_path / "a.csv", csv_of(titles).encode(encoding))
    with pytest.raises(CatalogError, match=rf"catalog\.encoding: expected UTF-8 in a\.csv, .*{encoding}: '0") as caught:
        read_all(uri, tmp_path / "spool")
    assert any(title in str(caught.value) for title in titles)
    found, letters, name = read_all(uri, tmp_path / "spool", encoding=encoding)
    assert (len(found), letters, name) == (60, [], encoding)
    assert found[0][1] == titles[0]


def test_cyrillic_is_not_read_as_japanese() -> None:
    # Each byte of it is a katakana of half the width in Shift-JIS.
    text = csv_of(["большая стол зелёный чашка", "тарелка стул лампа подушка", "стол синяя красная", "лампа"])
    with pytest.raises(CatalogError, match="koi8_r: '0"):
        find_encoding([text.encode("koi8_r")], "a.csv")


@pytest.mark.parametrize("title", ["thé à l'été", "Größe L", "Café table 5 €", "Piñata, 40×60"])
def test_one_western_line_of_a_plain_file_is_no_damage(title: str, tmp_path: Path) -> None:
    data = csv_of(["plain"], 300).replace("00250,plain", f'00250,"{title}"').encode("cp1252")
    found, letters, name = read_all(write(tmp_path / "a.csv", data), tmp_path / "spool")
    assert (len(found), letters, name) == (300, [], "cp1252")
    assert found[250][1] == title


@pytest.mark.parametrize("value", [b"Caf\xc3", b"a\xffb", b"\xca\xf0\xf3\xe6\xea\xe0"])
def test_one_line_that_is_no_western_text_is_damage(value: bytes, tmp_path: Path) -> None:
    data = csv_of(["plain"], 300).encode().replace(b"00250,plain", b"00250," + value)
    found, letters, name = read_all(write(tmp_path / "a.csv", data), tmp_path / "spool")
    assert (len(found), len(letters), name) == (299, 1, "utf-8")


def test_a_few_broken_bytes_leave_a_file_utf8(tmp_path: Path) -> None:
    lines = csv_of([*WESTERN["de"], "plain"]).encode().splitlines(keepends=True)
    lines[20] = b"x,caf\xe9 cr\xc3\xa8me,1\n"
    lines.insert(30, b"y,\xff\xfe\xfd,1\n")
    found, letters, name = read_all(write(tmp_path / "a.csv", b"".join(lines)), tmp_path / "spool")
    assert (len(found), len(letters), name) == (59, 2, "utf-8")
    assert "a.csv, line 21: expected UTF-8 in 'title', found the byte 0xe9" in letters[0]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_of_two_encodings_is_utf8_and_the_other_rows_are_letters(share: float, tmp_path: Path) -> None:
    lines = csv_of(WESTERN["fr"], 100).splitlines(keepends=True)
    data = b"".join(line.encode("cp1252" if number % 10 < share * 10 else "utf-8") for number, line in enumerate(lines))
    found, letters, name = read_all(write(tmp_path / "a.csv", data), tmp_path / "spool")
    assert name == "utf-8"
    assert len(found) + len(letters) == 100
    assert not any("Ã" in (title or "") for _, title in found)


@pytest.mark.parametrize("chance", ["plain", "CAFÉ©"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_what_only_the_end_of_a_file_shows_holds_for_all_of_it(
    chance: str, compression: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The head is ASCII, or UTF-8 by chance; what was read before the first byte that is not is read anew.
    monkeypatch.setattr(intake, "HEAD_BYTES", 1000)
    monkeypatch.setattr(intake, "BLOCK_BYTES", 2000)
    titles = [*["plain"] * 10, chance, *["plain"] * 389, *WESTERN["de"] * 100]
    data = csv_of(titles, 800).encode("cp1252")
    name = "a.csv" if compression is None else "a.csv.gz"
    uri = write(tmp_path / name, data if compression is None else gzip.compress(data))
    config = CatalogConfig(uri=uri)
    (file,) = list_catalog(config.uris, config.format).files
    assert look_at_head(file, config).encoding == "utf-8"
    found, letters, encoding = read_all(uri, tmp_path / "spool")
    assert ([title for _, title in found], letters, encoding) == (titles, [], "cp1252")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_unicode_by_its_mark_or_its_zeros(
    encoding: str, mark: str, format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "BLOCK_BYTES", 1001)  # cuts signs in two
    titles = ["Größe", "メンズシャツ 白", "𝔊oth", "日本", "plain"]
    text = csv_of(titles)
    if format == "jsonl":
        rows = [{"product_id": f"{number:05d}", "title": titles[number % 5]} for number in range(60)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    uri = write(tmp_path / f"a.{format}", (mark + text).encode(encoding))
    found, letters, name = read_all(uri, tmp_path / "spool")
    assert (name, letters) == (encoding, [])
    assert found == [(f"{number:05d}", titles[number % 5]) for number in range(60)]
    assert look_at_head(list_catalog((uri,), "auto").files[0], CatalogConfig(uri=uri)).encoding == encoding


@pytest.mark.parametrize("marks", [b"\xef\xbb\xbf" * 2, "\ufeff".encode().decode("latin-1").encode()])
def test_marks_of_careless_tools_are_no_part_of_the_first_name(marks: bytes, tmp_path: Path) -> None:
    found, letters, _ = read_all(write(tmp_path / "a.csv", marks + csv_of(["a"]).encode()), tmp_path / "spool")
    assert (len(found), letters) == (60, [])


@pytest.mark.parametrize("encoding", ["shift_jis", "cp1251", "iso2022_jp", "utf-7", "utf-16", "cp037"])
def test_a_stated_encoding_is_any_of_pythons(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "BLOCK_BYTES", 333)
    titles = {"cp1251": ["Чашка"], "cp037": ["Größe", "a"]}.get(encoding, ["コーヒーカップ", "plain"])
    uri = write(tmp_path / "a.csv", csv_of(titles).encode(encoding))
    found, letters, _ = read_all(uri, tmp_path / "spool", encoding=encoding)
    assert [title for _, title in found] == [titles[number % len(titles)] for number in range(60)]
    assert not letters


def test_a_mark_tells_more_than_what_is_stated() -> None:
    assert encoding_of_head(b"\xef\xbb\xbfid", "cp1252") == "utf-8"
    assert encoding_of_head(codecs.BOM_UTF32_LE + b"i\0\0\0", "auto") == "utf-32-le"
    assert encoding_of_head(b"id,title", "Latin1") == "iso8859-1"
    assert encoding_of_head(b"id,title", "auto") is None
    assert encoding_of_head(b"id,\0\0\0\0,a\n", "auto") is None


def test_bytes_that_are_none_of_a_stated_encoding_cost_their_rows(tmp_path: Path) -> None:
    lines = csv_of(["コーヒー"]).encode("shift_jis").splitlines(keepends=True)
    lines[7] = b"x,\x83\xff\xa0\xfd,1\n"
    found, letters, name = read_all(write(tmp_path / "a.csv", b"".join(lines)), tmp_path / "s", encoding="shift_jis")
    assert (len(found), len(letters), name) == (59, 1, "shift_jis")
    assert "a.csv, line 8: expected shift_jis in 'title'" in letters[0]
    # Bytes that Python's cp1252 lacks never become another sign, side by side as they may stand.
    text = csv_of(["plain"]).encode().replace(b"00009,plain", b"00009,\x81\x8d\xc3\x9d")
    found, letters, _ = read_all(write(tmp_path / "b.csv", text), tmp_path / "s", encoding="cp1252")
    assert (len(found), len(letters)) == (59, 1)


@pytest.mark.parametrize("encoding", ["cp12521", "hex", "rot13", "", "undefined"])
def test_a_codec_that_python_lacks_is_an_error_before_any_work(encoding: str) -> None:
    with pytest.raises(CatalogConfigError, match=r"catalog\.encoding: expected 'auto' or a Python codec"):
        CatalogConfig(uri="a.csv", encoding=encoding)


def not_called() -> str:
    raise AssertionError("the text is UTF-8")


@given(text=st.text(), encoding=st.sampled_from(["utf-8", "utf-16-le", "gb18030", None]), size=st.integers(1, 7))
def test_text_is_the_same_however_its_bytes_are_cut(text: str, encoding: str | None, size: int) -> None:
    data = text.encode(encoding or "utf-8")
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    found = b"".join(as_utf8(chunks, encoding, not_called)).decode()
    assert found == text or text.startswith(("\ufeff", "ï»¿"))


@given(data=st.binary(max_size=40), size=st.integers(1, 9))
def test_a_byte_that_is_no_utf8_is_seen_wherever_it_is_cut(data: bytes, size: int) -> None:
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    try:
        data.decode()
        assert b"".join(as_utf8(chunks, None, not_called)) in data
    except UnicodeDecodeError:
        assert b"".join(as_utf8(chunks, None, lambda: "utf-8")) in data
        with pytest.raises(OtherEncodingError):
            list(as_utf8(chunks, None, lambda: "cp1252"))


@given(data=st.binary(max_size=60), encoding=st.sampled_from(["cp1252", "shift_jis", "utf-16-le", "utf-7", "big5"]))
def test_what_cannot_be_decoded_is_no_utf8(data: bytes, encoding: str) -> None:
    found = b"".join(as_utf8([data], encoding, not_called))
    try:
        expected = data.decode(encoding).encode()
    except UnicodeError:
        with pytest.raises(UnicodeDecodeError):
            found.decode()
    else:
        assert found == expected or expected.startswith(("\ufeff".encode(), "ï»¿".encode()))


def test_pyarrow_tells_what_is_utf8() -> None:
    # What `as_utf8` relies on: validation looks at every byte.
    assert pa.array([b"a\xffb"]).view(pa.string()).validate() is None
    with pytest.raises(pa.ArrowInvalid):
        pa.array([b"a\xffb"]).view(pa.string()).validate(full=True)
