"""A guess says which columns of an unknown catalog are the id, the title, the picture and so on, and why.

First by the columns' names in the languages that shops write them in, then by what stands in them; a name alone does
not make an id of values that repeat, or a picture of words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from pipelines.catalog.samples import Sample
from pipelines.catalog.schemas import IMAGE_KEYS

ROLES = ("id", "title", "brand", "category", "description", "image", "price")

# English, German, French, Spanish, Italian; without accents, spaces and signs. The likelier ones first.
_NAMES = {
    "id": "productid id sku itemid articleid articlenumber itemnumber productnumber articleno itemno productcode "
    "itemcode itemsku variantsku code asin parentasin uniqid uuid guid artikelnummer artikelnr artnr artikelid "
    "produktid produktnummer bestellnummer reference ref refproduit identifiant idproduit codeproduit referencia "
    "codigo idproducto codice codiceprodotto idprodotto riferimento gtin ean upc mpn pid handle slug key",
    "title": "title name producttitle productname productdisplayname prodname itemname itemtitle displayname titel "
    "produktname produkttitel artikelname artikelbezeichnung bezeichnung produktbezeichnung nom nomproduit "
    "nomduproduit titre libelle designation nombre nombreproducto titulo titolo nome nomeprodotto denominazione "
    "headline label caption",
    "brand": "brand brandname manufacturer vendor maker marke hersteller marque fabricant marca fabricante produttore "
    "store",
    "category": "category categories categoryname productcategory maincategory producttype googleproductcategory "
    "articletype kategorie kategorien produktkategorie warengruppe produktgruppe categorie rayon rubrique categoria "
    "categorias reparto department",
    "description": "description productdescription longdescription bodyhtml body desc detaildesc shortdescription "
    "details summary beschreibung produktbeschreibung langbeschreibung langtext kurzbeschreibung kurztext descriptif "
    "descripcion descripcionlarga descrizione descrizioneprodotto text",
    "image": "image imageurl imageurls images imagelink imagesrc imagepath img imgurl picture pictures pictureurl "
    "photo photos photourl mainimage mainimageurl primaryimage baseimage bild bilder bildurl bildlink hauptbild "
    "produktbild photoproduit urlphoto urlimage imageprincipale foto fotos imagen imagenes urlimagen immagine immagini "
    "urlimmagine thumbnail",
    "price": "price saleprice regularprice currentprice unitprice listprice retailprice preis verkaufspreis vkpreis "
    "bruttopreis stueckpreis prix prixttc prixvente precio precioventa pvp prezzo prezzovendita",
}
_WORDS = {role: text.split() for role, text in _NAMES.items()}
_LOCALE_NAMES = ("locale", "language", "lang", "productlocale", "store", "storeview", "country", "sprache", "langue")
_LOCALE = re.compile(r"(?i:default|[a-z]{2}([-_][a-z]{2})?)")
_IMAGE_TEXT = re.compile(
    r"(?i)data:image/|(https?:|s3:|gs:)?//|\S*[^.\s/]\.(jpe?g|png|webp|avif|gif|bmp|tiff?)([?#]|$)"
)
_BASE64_IMAGE = re.compile(r"/9j/|iVBORw0KGgo|R0lGOD|UklGR")
_PRICE = re.compile(r"[^\d]{0,4}\d[\d.,' ]*[^\d]{0,4}")
_SHORT, _LONG = 64, 120  # characters of an id, and from where on a text is a description
_DISTINCT = 0.98


@dataclass(frozen=True, slots=True)
class Guess:
    """A column and why it is taken for what it is; an id may be of several columns."""

    columns: tuple[str, ...]
    why: str


def canonical(name: str) -> str:
    """A column's name without case, accents, spaces, signs and namespace: `g:Image Link` and `image_link` are one."""
    plain = unicodedata.normalize("NFKD", name.removeprefix("g:").casefold().replace("ß", "ss"))
    return re.sub(r"[^\w.$]|_", "", "".join(sign for sign in plain if not unicodedata.combining(sign))) or plain


def guess_columns(sample: Sample, below: str = "", roles: Sequence[str] = ROLES) -> dict[str, Guess]:
    """The columns by role; a role for which no column is fit is absent.

    Args:
        below: Only columns whose path begins so (`_source.`) are looked at.
        roles: Those of `ROLES` that are wanted.
    """
    values = {name: sample.values(name) for name in sample.columns if name.startswith(below)}
    names = {name: _name_of(name.removeprefix(below)) for name in values}
    rows = len(sample.rows)
    found: dict[str, Guess] = {}
    for by_name in (True, False):  # what a name says of any column comes before what values say
        for role in roles:
            taken = {column for guess in found.values() for column in guess.columns}
            if role not in found:
                guess = _by_name(role, names, values, rows, taken) if by_name else _by_values(role, values, rows, taken)
                found |= {} if guess is None else {role: guess}
    return {role: found[role] for role in roles if role in found}


def is_headless(sample: Sample) -> bool:
    """Whether the names of a table look like its values: its first line is a product, not the columns' names.

    They do where none is a word for a column, and one is a number above numbers, an address, spelled as most values
    below it are (`sku-0007` above `sku-0008`), or comes again below.
    """
    if sample.format not in ("csv", "xlsx"):
        return False
    values = {name: list(map(str, sample.values(name))) for name in sample.columns}
    again = {name for name, given in values.items() if given.count(name) >= max(2, len(given) * 0.1)}
    words = {word for each in _WORDS.values() for word in each}
    if any(_name_of(name) in words for name in values if name not in again):
        return False
    return bool(again) or any(_is_like_values(name, given) for name, given in values.items())


def _is_like_values(name: str, given: Sequence[str]) -> bool:
    if re.match(r"(?i)(https?:)?//", name):
        return True
    spelled = _spelling(name)
    return "0" in spelled and _share(given, lambda value: _spelling(value) == spelled) >= 0.8


def _spelling(text: str) -> str:
    """A text with one sign for all its numbers: `12.5` and `3` are spelled alike."""
    return re.sub(r"\d+([.,]\d+)*", "0", text.strip())


def _name_of(path: str) -> str:
    """The telling part of a path: `title.en` is a title, `product.name` a name, `_id.$oid` an id."""
    steps = [canonical(step) for step in path.split(".")]
    plain = [step for step in steps if not step.startswith("$") and not _LOCALE.fullmatch(step)]
    return plain[-1] if plain else steps[0]


def _by_name(
    role: str, names: dict[str, str], values: dict[str, list[Any]], rows: int, taken: set[str]
) -> Guess | None:
    fallback: Guess | None = None
    for word in _WORDS[role]:
        for name in [name for name, known in names.items() if known == word and name not in taken]:
            given = values[name]
            if role == "id":
                if _is_id(given, rows):
                    return Guess((name,), f"named so, and different in each of {rows:,} rows looked at")
                locale = next((each for each in names if names[each] in _LOCALE_NAMES and each != name), None)
                if locale is not None and _are_ids_together(name, locale, values, rows):
                    return Guess((name, locale), f"named so; {name} repeats, with {locale} it is different in each row")
                if fallback is None and given and all(_is_short(value) for value in given):
                    fallback = Guess(
                        (name,),
                        f"named so, but only {len(set(map(str, given))):,} of {rows:,} rows "
                        "looked at have one of their own: the others will be rejected",
                    )
            elif role == "image":
                if given and _share(given, _is_image) >= 0.5:
                    return Guess((name,), f"named so, and holds pictures or their addresses ({_shown(given[0])})")
            elif given and not all(_is_image(value) for value in given):
                return Guess((name,), "named so")
    return fallback


def _by_values(role: str, values: dict[str, list[Any]], rows: int, taken: set[str]) -> Guess | None:
    free = {name: given for name, given in values.items() if given and name not in taken}
    if role == "id":
        fit = [name for name, given in free.items() if _is_id(given, rows) and not any(map(_is_image, given))]
        # Whole numbers and codes before words: a title may be different in each row too.
        fit.sort(key=lambda name: _share(free[name], _has_space))
        if fit and not _share(free[fit[0]], _has_space):
            return Guess((fit[0],), f"short, and different in each of {rows:,} rows looked at")
    if role == "image":
        fit = [name for name, given in free.items() if _share(given, _is_picture_address) >= 0.8]
        if fit:
            return Guess((fit[0],), f"holds pictures or their addresses ({_shown(free[fit[0]][0])})")
    if role in ("title", "description"):
        texts = {name: given for name, given in free.items() if _share(given, _is_words) >= 0.5}
        texts = {name: given for name, given in texts.items() if len(set(map(str, given))) >= len(given) * 0.5}
        lengths = {name: mean(len(str(value)) for value in given) for name, given in texts.items()}
        of_role = [name for name in texts if (lengths[name] > _LONG) == (role == "description")]
        if of_role:
            distinct = {name: len(set(map(str, texts[name]))) for name in of_role}
            best = max(of_role, key=lambda name: lengths[name] if role == "description" else distinct[name])
            return Guess((best,), f"words, {lengths[best]:.0f} characters on average, mostly different")
    return None


def _is_id(given: Sequence[Any], rows: int) -> bool:
    """Whether nearly every row has a value, and no two the same."""
    distinct = len(set(map(str, given)))
    return len(given) >= rows * _DISTINCT > 0 and distinct == len(given) and all(_is_short(value) for value in given)


def _is_short(value: Any) -> bool:
    return isinstance(value, str | int | bytes) and not isinstance(value, bool) and len(str(value).strip()) <= _SHORT


def _are_ids_together(name: str, locale: str, values: dict[str, list[Any]], rows: int) -> bool:
    if len(values[name]) != rows or len(values[locale]) != rows:
        return False
    return len(set(zip(map(str, values[name]), map(str, values[locale]), strict=True))) == rows


def _is_image(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_image, value))
    if isinstance(value, dict):
        return any(value.get(key) for key in IMAGE_KEYS)
    if isinstance(value, bytes):
        return len(value) > _SHORT
    text = value.strip().lstrip("[\"' ") if isinstance(value, str) else ""
    return bool(_IMAGE_TEXT.match(text) or _BASE64_IMAGE.match(text))


def _is_picture_address(value: Any) -> bool:
    """As `_is_image`, but an address must end as a picture's does: a product's page is an address too."""
    if isinstance(value, str):
        text = value.strip().lower()
        return bool(_BASE64_IMAGE.match(value) or re.search(r"\.(jpe?g|png|webp|avif|gif)\W*([?#].*)?$", text))
    return isinstance(value, bytes | list | dict) and _is_image(value)


def _is_words(value: Any) -> bool:
    return isinstance(value, str) and any(map(str.isalpha, value)) and not _is_image(value) and _has_space(value)


def _has_space(value: Any) -> bool:
    return " " in str(value).strip()


def image_separator(values: Sequence[Any]) -> str | None:
    """What stands between the pictures of one value, where some values hold several; None where none does."""
    texts = [value for value in values if isinstance(value, str) and not value.lstrip().startswith(("[", "data:"))]
    for separator in (",", "|", ";"):
        split = [text.split(separator) for text in texts if separator in text]
        if split and all(all(map(_is_picture_address, parts)) for parts in split):
            return separator
    return None


def is_price_text(value: Any) -> bool:
    """Whether a text spells an amount, with a currency or not: `19,90`, `EUR 1.299,00`, `$5`."""
    return isinstance(value, str) and _PRICE.fullmatch(value.strip()) is not None


def _share(given: Sequence[Any], holds: Any) -> float:
    return sum(1 for value in given if holds(value)) / len(given) if given else 0.0


def _shown(value: Any) -> str:
    text = f"{len(value):,} bytes" if isinstance(value, bytes) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
