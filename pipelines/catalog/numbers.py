"""Numbers as people and shops spell them become numbers as programs do: `1.299,00 €` is 1299.00.

A currency may stand before or behind: a symbol, a code of ISO 4217, or a word such as `kr`. Units (`12 kg`) may not: a
column of kg and g would be wrong without a word. What a single mark before three digits means, a value alone does not
say: `12,000`. Then the column's other values decide (`DecimalMark`). Where they do not either, three digits behind a
mark are thousands, but for a plain `1.299` without a currency, which is what programs write.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

DecimalMark = Literal[".", ","]

DECISIVE_SHARE = 0.95
"""Of the values that show their decimal mark, so many must have one for it to be the column's."""

_ISO_4217 = (
    "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF "
    "CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HRK "
    "HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL "
    "MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RMB "
    "RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS "
    "UAH UGX USD UYU UZS VED VES VND VUV WST XAF XCD XOF XPF YER ZAR ZMW ZWG"
).replace(" ", "|")
_WORDS = r"euros?|kr\.?|zł|zl|kč|kc|ft|лв\.?|руб\.?|р\.|грн\.?|s?fr\.|rs\.?|rm|rp\.?|tl|lei|din\.?|s/\.?|元|円|원"
# Arrow's NFKC leaves signs taken apart: a `č` is a c with a mark behind it.
_WORDS = f"{_WORDS}|{unicodedata.normalize('NFKD', _WORDS)}"
_CURRENCY = rf"(?i:(?:[a-z]{{1,3}})?\p{{Sc}}|{_ISO_4217}|{_WORDS})"
# The sign may stand before or behind the currency, or behind the number (SAP). `19,-` has no cents.
_SPELLED = (
    rf"^(?P<first>[+-]?) ?(?P<before>(?:{_CURRENCY})?) ?(?P<second>[+-]?) ?(?P<digits>[.,]?[0-9](?:[0-9., ']*[0-9])?)"
    rf"(?:[.,](?:--?)?)? ?(?P<after>(?:{_CURRENCY})?) ?(?P<last>-?)$"
)
_UNSEEN = r"[\x{AD}\x{200B}-\x{200F}\x{202A}-\x{202E}\x{2060}-\x{206F}\x{FEFF}]"


def _reading(decimal: str, group: str) -> str:
    """A number with this decimal mark; thousands by the other mark, by blanks or apostrophes, or Indian lakhs."""
    thousands = "|".join(rf"[1-9][0-9]{{0,2}}(?:{mark}[0-9]{{3}})+" for mark in (group, " ", "'"))
    lakhs = rf"[1-9][0-9]?(?:{group}[0-9]{{2}})+{group}[0-9]{{3}}"
    return rf"^(?:(?:[0-9]+|{thousands}|{lakhs})(?:{decimal}[0-9]+)?|{decimal}[0-9]+)$"


_WITH_POINT, _WITH_COMMA = _reading(r"\.", ","), _reading(",", r"\.")


def plain_numbers(texts: pa.StringArray, decimal_mark: DecimalMark | None, *, whole: bool = False) -> pa.StringArray:
    """Spelled numbers as Arrow casts them (`-1299.00`); texts that spell none stay as they are.

    Args:
        texts: Trimmed.
        decimal_mark: That of the column, where known.
        whole: Zeros behind the decimal mark are left out.
    """
    parts, with_point, with_comma = _read(texts)
    if decimal_mark is None:
        # Both are possible: `12,000` is read with a point, `1.299 €` with a comma, `1.299` as programs do.
        has_currency = pc.greater(pc.add(pc.binary_length(parts["before"]), pc.binary_length(parts["after"])), 0)
        points = pc.match_substring(parts["digits"], ".")
        prefers_comma = pc.and_(points, has_currency)
    else:
        prefers_comma = pa.scalar(decimal_mark == ",")
    by_comma = pc.and_(with_comma, pc.or_(pc.invert(with_point), prefers_comma))
    as_point = pc.replace_substring_regex(parts["digits"], "[, ']", "")
    as_comma = pc.replace_substring(pc.replace_substring_regex(parts["digits"], "[. ']", ""), ",", ".")
    numbers = pc.if_else(by_comma, as_comma, as_point)
    if whole:
        numbers = pc.replace_substring_regex(numbers, r"\.0*$", "")
    signs = pc.binary_join_element_wise(parts["first"], parts["second"], parts["last"], "")
    numbers = pc.binary_join_element_wise(pc.if_else(pc.match_substring(signs, "-"), "-", ""), numbers, "")
    is_number = pc.and_(pc.or_(with_point, with_comma), pc.less_equal(pc.binary_length(signs), 1))
    return pc.if_else(pc.fill_null(is_number, False), numbers, texts)


def shown_marks(texts: pa.StringArray) -> Counter[str]:
    """How many of the texts show which decimal mark they have: `19,90` a comma, `1,299.00` a point, `12,000` none."""
    parts, with_point, with_comma = _read(texts)
    points = pc.and_(pc.and_not(with_point, with_comma), pc.match_substring(parts["digits"], "."))
    commas = pc.and_(pc.and_not(with_comma, with_point), pc.match_substring(parts["digits"], ","))
    return +Counter({".": pc.sum(points).as_py() or 0, ",": pc.sum(commas).as_py() or 0})


def column_mark(shown: Counter[str]) -> DecimalMark | None:
    """The mark of nearly all values that show one, if any do."""
    marks: tuple[DecimalMark, ...] = (".", ",")
    return next((mark for mark in marks if shown[mark] and shown[mark] >= DECISIVE_SHARE * shown.total()), None)


def _read(texts: pa.StringArray) -> tuple[dict[str, pa.Array], pa.BooleanArray, pa.BooleanArray]:
    """The parts of each spelled number, and whether it can be read with a decimal point, and with a comma."""
    texts = pc.utf8_normalize(texts, form="NFKC")  # narrow and fixed blanks, digits of full width
    texts = pc.replace_substring_regex(texts, r"[\x{2018}\x{2019}\x{2BC}`\x{B4}]", "'")
    texts = pc.replace_substring_regex(texts, r"[\x{2212}\x{2013}\x{2014}]", "-")
    texts = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, _UNSEEN, ""))
    found = pc.extract_regex(texts, _SPELLED)
    names = [field.name for field in found.type]
    parts = dict(zip(names, found.flatten(), strict=True))
    matched = [pc.match_substring_regex(parts["digits"], pattern) for pattern in (_WITH_POINT, _WITH_COMMA)]
    with_point, with_comma = (pc.fill_null(each, False) for each in matched)
    return parts, with_point, with_comma
