"""The known layouts: what shop systems, marketplaces and published data sets write, one entry each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A known export.

    Columns are written as the system does; found are those of the same letters and digits, whatever their case,
    spaces and signs. What names a column that a file lacks is left out.

    Attributes:
        title: What it is, in words.
        tells: Columns that all must be there; of `one_of` one must.
        keys: Keys of the `catalog:` section.
        where: Conditions by the column they are about; those of the columns that are there must all hold.
        also_called: Columns as other versions or languages of the system call them.
        guessed_below: Beside `keys`, columns with this beginning are guessed (see `guesses`); None: no others are.
        note: What else a person has to know or set.
    """

    title: str
    tells: tuple[str, ...]
    one_of: tuple[str, ...] = ()
    keys: Mapping[str, Any]
    where: Mapping[str, str] = field(default_factory=dict)
    also_called: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    guessed_below: str | None = None
    note: str = ""


LAYOUTS: dict[str, Layout] = {
    "shopify_api": Layout(
        title="Shopify API page",
        tells=("id", "title", "body_html"),
        one_of=("variants.id", "variants.sku", "variants.price", "images.src", "image.src", "variants"),
        keys={
            "id_field": "id",
            "text_fields": ("title", "vendor", "product_type", "body_html"),
            "image_field": "images.src",
            "display_fields": ("title", "vendor", "product_type", "handle", "variants.price"),
        },
        where={"status": "status is null or status in ('active', 'ACTIVE')"},
        note="drafts and archived products stay out",
    ),
    "shopify": Layout(
        title="Shopify product export",
        tells=("Handle", "Title"),
        one_of=("Variant SKU", "Variant Price", "Image Src", "Body (HTML)"),
        keys={
            "id_field": "Handle",
            "group_by": "Handle",
            "text_fields": ("Title", "Vendor", "Type", "Body (HTML)"),
            "image_field": "Image Src",
            "display_fields": ("Title", "Vendor", "Type", "Variant SKU", "Variant Price", "Option1 Value"),
            "group_lists": ("Variant SKU", "Variant Price", "Option1 Value"),
        },
        where={"Status": "\"Status\" is null or \"Status\" in ('', 'active', 'Active', 'ACTIVE')"},
        also_called={
            "Handle": ("URL handle",),
            "Variant SKU": ("SKU",),
            "Variant Price": ("Price",),
            "Image Src": ("Product image URL",),
            "Body (HTML)": ("Description",),
            "Option1 Value": ("Option1 value",),
        },
        note="rows of one handle are one product; drafts and archived products stay out",
    ),
    "woocommerce": Layout(
        title="WooCommerce product export",
        tells=("ID", "Type", "SKU", "Name"),
        one_of=("Images", "Regular price", "Published", "Parent"),
        keys={
            "id_field": "ID",
            "text_fields": ("Name", "Categories", "Short description", "Description"),
            "image_field": "Images",
            "image_separator": ",",
            "display_fields": ("SKU", "Name", "Categories", "Regular price"),
            "column_types": {"Regular price": "float64"},
        },
        where={"Type": "\"Type\" not like 'variation%'", "Published": "\"Published\" = 1"},
        also_called={
            "Type": ("Typ", "Tipo"),
            "SKU": ("Artikelnummer", "UGS", "Código de artículo"),
            "Name": ("Nom", "Nombre", "Nome"),
            "Published": ("Veröffentlicht", "Publié", "Publicado", "Pubblicato"),
            "Images": ("Bilder", "Imágenes", "Immagini"),
            "Categories": ("Kategorien", "Catégories", "Categorías", "Categorie"),
            "Short description": ("Kurzbeschreibung", "Description courte", "Descripción corta", "Breve descrizione"),
            "Description": ("Beschreibung", "Descripción", "Descrizione"),
            "Regular price": ("Regulärer Preis", "Tarif régulier", "Precio normal", "Prezzo di listino"),
        },
        note="variations and unpublished products stay out",
    ),
    "magento": Layout(
        title="Magento 2 product export",
        tells=("sku", "name"),
        one_of=("store_view_code", "attribute_set_code"),
        keys={
            "id_field": "sku",
            "text_fields": ("name", "short_description", "description"),
            "image_field": "base_image",
            "display_fields": ("name", "price", "url_key"),
            "column_types": {"price": "float64"},
        },
        where={
            "store_view_code": "store_view_code is null or store_view_code in ('', 'default')",
            "product_online": "product_online = 1",
            "visibility": "visibility is null or visibility <> 'Not Visible Individually'",
        },
        note="other store views, disabled products and those not visible on their own stay out; "
        "set catalog.image_root to .../media/catalog/product",
    ),
    "google_merchant": Layout(
        title="Google Merchant feed",
        tells=("id", "title"),
        one_of=("image_link", "google_product_category", "availability"),
        keys={
            "id_field": "id",
            "text_fields": ("title", "brand", "product_type", "description"),
            "image_field": "image_link",
            "display_fields": ("title", "brand", "price", "link"),
            "filter_fields": ("availability",),
            "column_types": {"price": "float64"},
        },
    ),
    "amazon_flat_file": Layout(
        title="Amazon flat file",
        tells=("item_sku", "item_name"),
        keys={
            "id_field": "item_sku",
            "text_fields": ("item_name", "brand_name", "bullet_point1", "bullet_point2", "product_description"),
            "image_field": "main_image_url",
            "display_fields": ("item_name", "brand_name", "standard_price"),
            "column_types": {"standard_price": "float64"},
        },
    ),
    "amazon_reviews_2023": Layout(
        title="metadata of Amazon Reviews 2023",
        tells=("parent_asin", "title"),
        keys={
            "id_field": "parent_asin",
            "text_fields": ("title", "store", "features", "description"),
            "image_field": "images.hi_res|large",
            "display_fields": ("title", "store", "main_category", "price", "average_rating"),
            "column_types": {"price": "float64"},
        },
    ),
    "esci": Layout(
        title="ESCI products (Shopping Queries)",
        tells=("product_id", "product_title", "product_locale"),
        keys={
            "id_field": ("product_id", "product_locale"),
            "text_fields": ("product_title", "product_brand", "product_color", "product_bullet_point"),
            "display_fields": ("product_title", "product_brand", "product_locale"),
        },
        note='one locale alone: catalog.where "product_locale = \'us\'"',
    ),
    "hm": Layout(
        title="H&M articles",
        tells=("article_id", "prod_name", "detail_desc"),
        keys={
            "id_field": "article_id",
            "text_fields": ("prod_name", "product_type_name", "colour_group_name", "detail_desc"),
            "image_template": "{article_id[:3]}/{article_id}.jpg",
            "display_fields": ("prod_name", "product_type_name", "colour_group_name"),
        },
        note="set catalog.image_root to the folder images",
    ),
    "flipkart": Layout(
        title="Flipkart products",
        tells=("uniq_id", "product_name"),
        one_of=("product_category_tree", "image"),
        keys={
            "id_field": "uniq_id",
            "text_fields": ("product_name", "brand", "description"),
            "image_field": "image",
            "display_fields": ("product_name", "brand", "discounted_price"),
            "column_types": {"discounted_price": "float64"},
        },
    ),
    "fashion_product_images": Layout(
        title="Fashion Product Images",
        tells=("id", "productDisplayName"),
        keys={
            "id_field": "id",
            "text_fields": ("productDisplayName", "articleType", "baseColour"),
            "image_template": "{id}.jpg",
            "display_fields": ("productDisplayName", "masterCategory", "articleType", "baseColour"),
        },
        note="set catalog.image_root to the folder images",
    ),
    "elasticsearch": Layout(
        title="Elasticsearch dump",
        tells=("_index", "_id"),
        keys={"id_field": "_id"},
        guessed_below="_source.",
    ),
    "mongodb": Layout(
        title="MongoDB export",
        tells=("_id.$oid",),
        keys={"id_field": "_id.$oid"},
        guessed_below="",
    ),
}  # fmt: skip

VECTORS = Layout(
    title="clip-retrieval metadata",
    tells=("image_path",),
    one_of=("caption", "similarity", "NSFW"),
    keys={},
)
