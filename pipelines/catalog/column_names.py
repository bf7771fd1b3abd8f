"""A column's name says what the column is, in the languages that shops write names in.

Of a path (`brand.name`) every step counts: the name within a brand is the brand, that within a seller is nothing of the
product.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache, lru_cache

# English, German, French, Spanish, Italian; without accents, spaces and signs. The likelier ones first.
_ROLE_NAMES = {
    "id": "productid id sku itemid articleid articlenumber itemnumber productnumber articleno itemno productcode "
    "itemcode itemsku variantsku code asin parentasin uniqid uuid guid artikelnummer artikelnr artnr artikelid "
    "produktid produktnummer bestellnummer reference ref refproduit identifiant idproduit codeproduit referencia "
    "codigo idproducto codice codiceprodotto idprodotto riferimento gtin ean upc mpn pid handle slug key nr nummer "
    "numero",
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
    "price": "price sellingprice saleprice regularprice currentprice unitprice listprice retailprice preis "
    "verkaufspreis vkpreis bruttopreis stueckpreis prix prixttc prixvente precio precioventa pvp prezzo prezzovendita",
}

# Objects whose parts are theirs, not the product's (the brand's picture, its id), but for those that tell the role; the
# likelier ones first.
_PARTS = {
    "brand": "name title label value displayname text",
    "category": "name title label value displayname text path fullpath breadcrumb",
    "image": "hires large big zoom full original main default url src href link path file filename medium",
    "price": "value amount gross brutto current final regular price",
    "title": "value text rendered plain html full long default main short",
    "description": "value text rendered plain html full long default main short",
}
_OWNERS = ("brand", "category", "image", "price")  # the words of the others name plain folders too: text.title
_OTHERS = (
    "seller shop merchant supplier lieferant haendler verkaeufer vendeur vendedor venditore fournisseur proveedor "
    "fornitore company user author customer reviewer review reviews bewertung bewertungen avis rating ratings comment "
    "comments related relatedproducts crosssell crosssells upsell upsells accessories zubehoer similar tax currency "
    "shipping versand delivery warehouse lager tag tags attribute attributes property properties eigenschaften "
    "merkmale option options feature features specs color colour farbe couleur size groesse taille material unit "
    "country language seo store"
)
_WORDS = {word: (role, at) for role, text in _ROLE_NAMES.items() for at, word in enumerate(text.split())}
_LOCALE_NAMES = ("locale", "language", "lang", "productlocale", "store", "storeview", "country", "sprache", "langue")
_LOCALE = re.compile(r"(?i:default|[a-z]{2}([-_][a-z]{2})?)")
_DOT = re.compile(r"\.(?=[\w$@])")  # not that of `Price incl. VAT`
_WORD = re.compile(r"[^\W\d_]+|\d+")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
# Of a compound such as `VK-Preis brutto` or `Titel (DE) 1`: what is said besides, and what makes another thing of it.
_BESIDES = (
    "de en fr es it nl deutsch german englisch english francais french espanol spanish italiano italian default 1 01"
)
_PRICES = "price prices preis preise prix precio precios prezzo prezzi pvp msrp rrp uvp"
_AMOUNTS = "vk brutto netto gross net eur euro usd gbp chf inkl exkl incl excl mwst ust vat ttc ht iva"
_NO_SALE = re.compile(
    r"ek$|einkauf|purchase|cost|kosten|achat|revient|compra|coste|costo|acquisto|grund|base$|unit|einheit|unitaire|"
    r"unidad|unita|unitario|kilo|liter|currency|waehrung|devise|moneda|valuta|group|gruppe|grupo|gruppo|rule|regel|type|"
    r"typ|tipo|list[ei]|staffel|rabatt|discount|remise|descuento|sconto|old|alt$|ancien|anterior|barre|streich|compare|"
    r"^(?:kg|g|l|ml|m2|qm)$|date|datum|fecha|data|gueltig|valid|versand|shipping|livraison|envio|spedizione|range|min|max"
)
_LESS = re.compile(r"net|uvp|rrp|msrp|ht$|hors|sin|senza|escl|excl")
COMPOUND = 50
"""From here on the second part of a rank is that of a name in which the word only stands."""

Rank = tuple[int, int, int]


@lru_cache(1 << 14)
def canonical(name: str) -> str:
    """A column's name without case, accents, spaces, signs and namespace: `g:Image Link` and `image_link` are one."""
    plain = unicodedata.normalize("NFKD", name.removeprefix("g:").casefold().replace("ß", "ss"))
    return re.sub(r"[^\w.$]|_", "", "".join(sign for sign in plain if not unicodedata.combining(sign))) or plain


@cache
def role_of(path: str) -> tuple[str, Rank] | None:
    """The role that a column's name tells, and a rank among the columns of that role, the lowest being the likeliest.

    A plain name comes before a nested one, a name that is the word for it before one in which the word stands.
    """
    steps = _steps(path)
    whole = canonical(path).replace(".", "")
    if whole in _WORDS:  # `Art.-Nr.` is no path
        role, at = _WORDS[whole]
        return role, (len(steps) - 1, 0, at)
    names = [canonical(step) for step in steps]
    last = names[-1]
    owner, depth = _owner(names)
    if owner in _PARTS:
        parts = _PARTS[owner].split()
        if last in parts or _is_word(last, owner):
            return owner, (depth, 1, parts.index(last) if last in parts else 0)
        return (owner, (depth, 2, 0)) if owner == "image" else None
    if owner is not None:
        return None
    for at in range(len(names) - 1):
        for role in ("title", "description"):
            if _is_word(names[at], role) and last in _PARTS[role].split() and names[at] != "text":
                return role, (at, 1, _PARTS[role].split().index(last))
    depth = len(names) - 1
    if last in _WORDS:
        role, at = _WORDS[last]
        return role, (depth, 0, at)
    return _compound(steps[-1], depth)


@cache
def owner_of(path: str) -> str | None:
    """Whose a nested column is, where it is not the product's own: a role, or "other"."""
    return _owner([canonical(step) for step in _steps(path)])[0]


def is_locale_name(path: str) -> bool:
    """Whether a column holds the language or the store view that a row is for."""
    return canonical(_steps(path)[-1]) in _LOCALE_NAMES


def _steps(path: str) -> list[str]:
    """The telling steps of a path: without languages (`title.en`) and types (`_id.$oid`); one at least."""
    steps = [step for step in _DOT.split(path) if canonical(step)] or [path]
    told: list[str] = []
    for step in steps:
        name = canonical(step)
        in_text = bool(told) and any(_is_word(canonical(told[-1]), role) for role in ("title", "description"))
        is_language = _LOCALE.fullmatch(step) and (in_text or name not in _WORDS)
        if not told or not (name.startswith("$") or is_language):
            told.append(step)
    if len(told) > 1 and _LOCALE.fullmatch(told[0]) and canonical(told[0]) not in _WORDS:
        told = told[1:]
    return told


def _is_word(name: str, role: str) -> bool:
    return name in _WORDS and _WORDS[name][0] == role


def _owner(names: list[str]) -> tuple[str | None, int]:
    for depth, name in enumerate(names[:-1]):
        if name in _OTHERS.split():
            return "other", depth
        if name in _WORDS and _WORDS[name][0] in _OWNERS:
            return _WORDS[name][0], depth
    return None, 0


def _compound(name: str, depth: int) -> tuple[str, Rank] | None:
    spaced = _HUMP.sub(" ", name.removeprefix("g:"))
    words = [canonical(word) for word in _WORD.findall(unicodedata.normalize("NFC", spaced))]
    plain = "".join(word for word in words if word not in _BESIDES.split())
    if plain in _WORDS:
        role, at = _WORDS[plain]
        return role, (depth, COMPOUND, at)
    role = _WORDS.get(words[0], ("", 0))[0] if len(words) > 1 else ""
    if role in _OWNERS and "".join(words[1:]) in _PARTS[role].split():  # `Hersteller Name`
        return role, (depth, COMPOUND, 0)
    is_price = any(word in _PRICES.split() or word.endswith(("preis", "price")) for word in words)
    is_price = is_price or ("vk" in words and set(_AMOUNTS.split()).issuperset(words))  # not VK-Menge
    if is_price and not any(map(_NO_SALE.search, words)):
        return "price", (depth, COMPOUND + 1, sum(1 for word in words if _LESS.match(word)))
    return None
