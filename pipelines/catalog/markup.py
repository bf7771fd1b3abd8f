"""Markup leaves texts: tags, scripts, styles, comments, entities, shortcodes and written line breaks; words stay.

Shops write descriptions as HTML, feeds escape it once more, WordPress adds shortcodes (`[gallery ids="1"]`), Magento
directives (`{{media url="a.jpg"}}`). `a < b`, `<3`, `[NEW]`, `AT&T` and `R&D;` are none of these.
"""

from __future__ import annotations

import html
import re
from html.entities import html5
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from selectolax.lexbor import LexborHTMLParser

from pipelines.catalog.text_scan import ByteSet, mask_of

# Tags that a browser shows as a break between words.
_BLOCKS = (
    "address article aside blockquote br button canvas caption center dd details dialog dir div dl dt fieldset "
    "figcaption figure footer form frame frameset h[1-6] header hgroup hr iframe img legend li main menu nav ol "
    "optgroup option p picture pre section select summary table tbody td tfoot th thead title tr ul video"
).replace(" ", "|")
_TAGS = (
    "a abbr acronym applet area audio b base basefont bdi bdo big body cite code col colgroup data datalist del dfn em "
    "embed font head html i input ins kbd label link map mark marquee meta meter nobr noframes noscript object output "
    "param progress q rp rt ruby s samp script search slot small source span strike strong style sub sup svg template "
    "textarea time track tt u var wbr xml"
).replace(" ", "|")
# Behind `<`: a tag of HTML or of a namespace (Word's <o:p>) that closes, or has an attribute where a text is cut off.
_NAME = rf"(?:{_BLOCKS}|{_TAGS}|[a-z][a-z0-9]*[:-][a-z][a-z0-9:-]*)"
_OTHER = r"!--|!\[(?:CDATA\[|if|endif)|!doctype|\?xml"
_BEHIND_OPEN = rf"(?:/?{_NAME}(?:\s[^<>]*)?/?>|{_NAME}\s+[a-z_:][\w:.-]*\s*=|{_OTHER})"
_TAG = re.compile(f"<{_BEHIND_OPEN}", re.IGNORECASE)
_NO_TAG = re.compile(rf"<(?!{_BEHIND_OPEN}|/?[a-z]*$)", re.IGNORECASE)
_BLOCK = re.compile(rf"</?(?:{_BLOCKS})(?=[\s/>])", re.IGNORECASE)
_ANY_TAG = re.compile(r"<[^<>]*>")
# What a browser shows only where it cannot show the thing itself, or never.
_UNSEEN = ("script", "style", "noscript", "template", "iframe", "object", "audio", "video", "canvas", "svg")
_HAS_UNSEEN = re.compile(f"<(?:{'|'.join(_UNSEEN)})", re.IGNORECASE)
# Without the semicolon `&copy=1` in an address would be one. Feeds encode the ampersand again and again.
_ENTITY = re.compile(r"&(?:amp;)*(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")
_SHORTCODE = re.compile(
    r"\[(img|embed|video|audio|youtube)\b[^\[\]]*\][^\[\]]*\[/\1\]"  # an address, no text
    r"|\[[a-z][a-z0-9_-]*(?:=|\s+[a-zA-Z_-][\w-]*\s*=)[^\[\]]*\]"  # with an attribute
    r"|\[[a-z][a-z0-9_-]*\s*/\]|\[[a-z]+[0-9]*(?:_[a-z0-9]+)+\]"  # [more /], [vc_row]
    r"|\{\{\s*[a-z]+\s[^{}]*\}\}"
)
_CLOSING_SHORTCODE = re.compile(r"\[/([a-zA-Z][a-zA-Z0-9_-]*)\]")
_ANY_SHORTCODE = re.compile(r"\[/?([a-zA-Z][a-zA-Z0-9_-]*)(?:[\s=][^\[\]]*)?\]")
# Finds every value that any of the above may change, and few others; RE2.
_SIGNS = ByteSet(b"<&[{")
_SUSPICIOUS = r"<[A-Za-z/!?]|&[#A-Za-z][0-9A-Za-z]+;|\[/?[a-z]|\{\{"
_ANY_SIGN = r"[<&]|\[/?[a-z]|\{\{"
# Breaks written as two characters, as WooCommerce does. A run without blanks that is a path of Windows or of a picture
# stays (the first group), and `\\times`, `\\rho`. RE2, which cannot look ahead: what follows is the second group.
_BACKSLASH = ByteSet(b"\\")
_WRITTEN_BREAK = r"\\[nrt]"
_FILE = r"\.(?:jpe?g|png|webp|avif|gif|bmp|tiff?|svg|pdf|docx?|xlsx?|txt|csv|zip|exe|dll|ini|html?|xml|json|mp4)\b"
_PATH = rf"(?:^|\s)(?:\S*[^\p{{L}}\p{{N}}\s])?[A-Za-z]:\\\S*|\\\\\S*|\S*\\[^nrt\"'\\/\s]\S*|[\w.\\-]+\\[\w-]+{_FILE}\S*"
_PATH_OR_BREAK = rf"({_PATH})|(?:\\r)?\\n|\\[rt]([^a-z]|$)"
# A feed escapes what an editor escaped before: HTML within HTML, hardly ever deeper.
_MAX_ROUNDS = 6
# The parser's time grows with the square of the depth.
_MAX_TAGS = 5000


def without_written_breaks(texts: pa.StringArray) -> pa.StringArray:
    """The texts with a blank for each line break or tab that is written as a backslash and a letter.

    Where there is none these are the same object.
    """
    rows = _BACKSLASH.rows_with(texts)
    if not len(rows):
        return texts
    some = texts.take(pa.array(rows))
    rows = rows[pc.fill_null(pc.match_substring_regex(some, _WRITTEN_BREAK), False).to_numpy(zero_copy_only=False)]
    if not len(rows):
        return texts
    broken = pc.replace_substring_regex(texts.take(pa.array(rows)), _PATH_OR_BREAK, r"\1 \2")
    return pc.replace_with_mask(texts, mask_of(rows, len(texts)), broken)


def without_markup(texts: pa.StringArray, strip_html: Literal["auto", "always", "never"]) -> pa.StringArray:
    """The texts as a person reads them, null where they are null; see `catalog.strip_html`. Blanks are not collapsed.

    Where nothing changes these are the same object.
    """
    if strip_html == "never":
        return texts
    always = strip_html == "always"
    signed = _SIGNS.rows_with(texts)
    if not len(signed):
        return texts
    suspicious = pc.match_substring_regex(texts.take(pa.array(signed)), _ANY_SIGN if always else _SUSPICIOUS)
    rows = signed[pc.fill_null(suspicious, False).to_numpy(zero_copy_only=False)]
    marked = texts.take(pa.array(rows)).to_pylist()
    plain = [plain_text(text, always) for text in marked]
    if plain == marked:
        return texts
    return pc.replace_with_mask(texts, mask_of(rows, len(texts)), pa.array(plain, pa.string()))


def plain_text(text: str, always: bool = False) -> str:
    """One text without its markup; `always` takes any tag for one, as a browser does."""
    for _ in range(_MAX_ROUNDS):
        before = text
        text = _without_shortcodes(text)
        if always or _TAG.search(text):
            text = _without_tags(text, always)
        text = _ENTITY.sub(_decoded, text)
        if text == before:
            break
    return text


def _without_shortcodes(text: str) -> str:
    if "[" not in text and "{{" not in text:
        return text
    text = _SHORTCODE.sub(" ", text)
    closed = set(_CLOSING_SHORTCODE.findall(text))
    if not closed:
        return text
    return _ANY_SHORTCODE.sub(lambda found: " " if found[1] in closed else found[0], text)


def _without_tags(text: str, always: bool) -> str:
    # HTML knows no CDATA and would drop it as a comment; feeds put the whole text in there.
    text = text.replace("<![CDATA[", " ").replace("]]>", " ")
    if not always:
        text = _NO_TAG.sub("&lt;", text)
    text = _BLOCK.sub(r" \g<0>", text)
    if text.count("<") > _MAX_TAGS:
        return _ANY_TAG.sub("", text)
    tree = LexborHTMLParser(text)
    if _HAS_UNSEEN.search(text):
        tree.strip_tags(list(_UNSEEN))
    return "" if tree.root is None else tree.root.text()


def _decoded(entity: re.Match[str]) -> str:
    name = f"{entity[1]};"
    return entity[0] if name[0] != "#" and name not in html5 else html.unescape(f"&{name}")
