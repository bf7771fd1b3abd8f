"""Small catalogs as shop systems write them, drawn by hand, with what must come out of each."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq

Product = tuple[str, str | None, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export of one kind.

    Attributes:
        write: Writes it into a folder; gives its address.
        products: (id, text, pictures) of each product, in order.
        letters: Reasons of the rejected rows.
        kept_out: Rows that `where` keeps out.
        display: Of the first product, some display columns.
        recognised: Whether the shipped config is what recognition gives; its layout's name, or None.
    """

    write: Callable[[Path], str]
    products: Sequence[Product]
    letters: Sequence[str] = ()
    kept_out: int = 0
    display: dict[str, Any] = field(default_factory=dict)
    recognised: str | None = None


def table(rows: Sequence[Sequence[str]], delimiter: str = ",") -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue()


def in_file(name: str, content: str | bytes) -> Callable[[Path], str]:
    """What writes one file."""

    def write(folder: Path) -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def lines(*records: dict[str, Any]) -> str:
    """Records as JSON Lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


def _shopify() -> str:
    header = "Handle,Title,Body (HTML),Vendor,Type,Tags,Published,Option1 Name,Option1 Value,Variant SKU,Variant Price,"
    header += "Image Src,Image Position,Status"
    rows = [
        ["blue-mug", "Blue mug", "<p>Holds <b>tea</b></p>", "Tamsin", "Mugs", "", "true", "Size", "S", "M-S", "9.90",
         "https://cdn.shop.test/mug.jpg?v=1", "1", "active"],
        ["blue-mug", "", "", "", "", "", "", "", "L", "M-L", "12.90", "https://cdn.shop.test/mug-side.jpg", "2", ""],
        ["blue-mug", "", "", "", "", "", "", "", "", "", "", "https://cdn.shop.test/mug-top.jpg", "3", ""],
        ["red-scarf", "Red scarf", "", "Fell", "Scarves", "", "true", "Title", "Default Title", "S-1", "19.00", "", "",
         "active"],
        ["old-hat", "Old hat", "", "Fell", "Hats", "", "false", "Size", "M", "H-M", "5.00", "", "", "draft"],
        ["old-hat", "", "", "", "", "", "", "", "L", "H-L", "5.50", "", "", ""],
        ["", "Gift card", "", "Fell", "", "", "true", "", "", "", "", "", "", "active"],
    ]  # fmt: skip
    return table([header.split(","), *rows])


def _woocommerce() -> str:
    header = ["ID", "Type", "SKU", "Name", "Published", "Is featured?", "Visibility in catalog", "Short description",
              "Description", "In stock?", "Regular price", "Categories", "Tags", "Images", "Parent"]  # fmt: skip
    rows = [
        ["11", "simple", "MUG", "Mug", "1", "0", "visible", "For tea", "[gallery ids=\"1,2\"]<p>Stoneware</p>", "1",
         "19,90", "Home &gt; Mugs", "", "https://shop.test/a.jpg, https://shop.test/b.jpg", ""],
        ["12", "variable", "HAT", "Hat", "1", "0", "visible", "", "", "1", "", "Hats", "", "https://shop.test/hat.jpg",
         ""],
        ["13", "variation", "HAT-M", "Hat - M", "1", "0", "visible", "", "", "1", "25,00", "", "",
         "https://shop.test/hat-m.jpg", "id:12"],
        ["14", "simple", "BAG", "Bag", "-1", "0", "visible", "", "", "1", "5", "Bags", "", "", ""],
    ]  # fmt: skip
    return "\ufeff" + table([header, *rows])


def _magento() -> str:
    header = ["sku", "store_view_code", "attribute_set_code", "product_type", "categories", "product_websites", "name",
              "description", "short_description", "weight", "product_online", "visibility", "price", "url_key",
              "base_image", "additional_images"]  # fmt: skip
    seen = "Catalog, Search"
    rows = [
        ["MUG", "", "Default", "simple", "Default Category/Mugs", "base", "Mug", "<p>Stoneware</p>", "For tea", "1",
         "1", seen, "19.9000", "mug", "/m/u/mug.jpg", "/m/u/side.jpg,/m/u/top.jpg"],
        ["MUG", "de", "Default", "simple", "", "", "Becher", "", "", "", "", "", "", "", "", ""],
        ["HAT", "default", "Default", "configurable", "", "base", "Hat", "", "", "", "1", seen, "9", "hat", "", ""],
        ["HAT-M", "", "Default", "simple", "", "base", "Hat M", "", "", "", "1", "Not Visible Individually", "9", "",
         "", ""],
        ["OLD", "", "Default", "simple", "", "base", "Old", "", "", "", "2", seen, "9", "old", "", ""],
    ]  # fmt: skip
    return table([header, *rows])


_GOOGLE = (
    ("id", "title", "description", "link", "image_link", "additional_image_link", "availability", "price", "brand",
     "google_product_category", "product_type"),
    ("A1", 'The "Best" mug', "Holds tea", "https://shop.test/a1", "https://shop.test/a1.jpg",
     "https://shop.test/a1b.jpg,https://shop.test/a1c.jpg", "in_stock", "19.90 EUR", "Tamsin", "Home > Mugs", "Mugs"),
    ("A2", '"Quoted" from the start', "", "https://shop.test/a2", "", "", "out_of_stock", "5.00 EUR", "", "", ""),
    ("", "No id", "", "", "", "", "in_stock", "1 EUR", "", "", ""),
)  # fmt: skip


def _google_xml() -> str:
    items = [
        f"<item><g:id>{row[0]}</g:id><title>{row[1]}</title><description>{row[2]}</description><link>{row[3]}</link>"
        f"<g:image_link>{row[4]}</g:image_link><g:availability>{row[6]}</g:availability><g:price>{row[7]}</g:price>"
        f"<g:brand>{row[8]}</g:brand><g:product_type>{row[10]}</g:product_type></item>"
        for row in _GOOGLE[1:]
    ]
    space = 'xmlns:g="http://base.google.com/ns/1.0"'
    channel = f"<channel><title>Shop</title><link>https://shop.test</link>{''.join(items)}</channel>"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<rss version="2.0" {space}>{channel}</rss>\n'


def _amazon_flat_file() -> bytes:
    rows = [
        ["TemplateType=fptcustom", "Version=2023.1", "Only for Amazon", "", "", "", "", ""],
        ["Seller SKU", "Product Name", "Brand", "Bullet", "Bullet", "Description", "Main Image", "Price"],
        ["item_sku", "item_name", "brand_name", "bullet_point1", "bullet_point2", "product_description",
         "main_image_url", "standard_price"],
        ["007", "Becher, groß", "Tamsin", "Für Tee", "", "Steingut", "https://shop.test/7.jpg", "19,90"],
        ["008", '12" Teller', "Tamsin", "", "", "", "", "5"],
    ]  # fmt: skip
    return "".join("\t".join(row) + "\r\n" for row in rows).encode("cp1252")


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def _esci() -> bytes:
    names = ("product_id", "product_title", "product_description", "product_bullet_point", "product_brand",
             "product_color", "product_locale")  # fmt: skip
    rows = [
        ("B1", "Mug", None, "Holds tea", "Tamsin", "blue", "us"),
        ("B1", "Taza", None, None, "Tamsin", "azul", "es"),
        ("B2", "Hat", "<p>Warm</p>", None, None, None, "us"),
    ]
    return _parquet([dict(zip(names, row, strict=True)) for row in rows])


def _hm() -> str:
    header = ["article_id", "product_code", "prod_name", "product_type_name", "colour_group_name", "detail_desc"]
    rows = [
        ["0108775015", "0108775", "Strap top", "Vest top", "Black", "Jersey top, with narrow straps"],
        ["0110065001", "0110065", "OP T-shirt", "Bra", "Black", ""],
    ]
    return table([header, *rows])


def _flipkart() -> str:
    header = ["uniq_id", "crawl_timestamp", "product_url", "product_name", "product_category_tree", "pid",
              "retail_price", "discounted_price", "image", "description", "brand"]  # fmt: skip
    rows = [
        ["c2d766ca", "2016", "http://shop.test/1", "Cycling shorts", '["Clothing >> Shorts"]', "SRT1", "999", "379",
         '["http://img.test/1.jpeg", "http://img.test/2.jpeg"]', "Key features", "Alisha"],
        ["7f7036a6", "2016", "http://shop.test/2", "Sofa bed", '["Furniture"]', "SBE1", "32157", "22646",
         '["http://img.test/3.jpeg"]', "", ""],
    ]  # fmt: skip
    return table([header, *rows])


def _styles() -> str:
    header = "id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,productDisplayName"
    rows = [
        "15970,Men,Apparel,Topwear,Shirts,Navy Blue,Fall,2011,Casual,Turtle Check Men Navy Blue Shirt",
        "39386,Men,Apparel,Bottomwear,Jeans,Blue,Summer,2012,Casual,Peter England Men Party Blue Jeans",
        "59263,Women,Accessories,Watches,Watches,Silver,Winter,2016,Casual,Titan Women Silver, Watch",
    ]
    return "\n".join([header, *rows]) + "\n"


def _spark(folder: Path) -> str:
    header = "id,name,brand,description,image_url,price\n"
    write = in_file(
        "products/part-00000-1.csv", header + '1,"12\\" plate",Tamsin,"Round, white",http://i.test/1.jpg,5\n'
    )
    write(folder)
    in_file("products/part-00001-1.csv", header + '2,Mug,,"say \\"tea\\"",,9.5\n')(folder)
    in_file("products/_SUCCESS", "")(folder)
    return str(folder / "products")


def _excel(folder: Path) -> str:
    book = openpyxl.Workbook()
    sheet = book.active
    for row in (
        ["id", "name", "brand", "description", "image_url", "price"],
        ["00042", "Mug", "Tamsin", "Holds tea", "https://i.test/1.jpg", 19.9],
        [43, "Hat", None, None, None, 5],
        [None, "No id", None, None, None, 1],
    ):
        sheet.append(row)
    book.save(folder / "products.xlsx")
    return str(folder / "products.xlsx")


def _sqlite(folder: Path) -> str:
    with sqlite3.connect(folder / "shop.db") as database:
        database.execute(
            "create table products (id text, name text, brand text, description text, image_url text, price real, "
            "active integer)"
        )
        rows = [
            ("007", "Mug", "Tamsin", "<p>Holds tea</p>", "https://i.test/1.jpg", 19.9, 1),
            ("008", "Hat", None, None, None, 5.0, 1),
            ("009", "Old", None, None, None, 5.0, 0),
        ]
        database.executemany("insert into products values (?, ?, ?, ?, ?, ?, ?)", rows)
    database.close()
    return f"sqlite:///{folder}/shop.db"


_PAGE = [
    {"id": 632910392, "title": "Mug", "body_html": "<p>Holds <i>tea</i></p>", "vendor": "Tamsin", "handle": "mug",
     "product_type": "Mugs", "status": "active", "tags": "a, b",
     "variants": [{"id": 1, "sku": "M-S", "price": "9.90"}, {"id": 2, "sku": "M-L", "price": "12.90"}],
     "images": [{"id": 1, "src": "https://cdn.test/1.jpg"}, {"id": 2, "src": "https://cdn.test/2.jpg"}]},
    {"id": 921728736, "title": "Hat", "body_html": "", "vendor": "Fell", "handle": "hat", "product_type": "Hats",
     "status": "draft", "tags": "", "variants": [{"id": 3, "sku": "H", "price": "5.00"}], "images": []},
]  # fmt: skip

EXPORTS: dict[str, Export] = {
    "shopify": Export(
        write=in_file("products_export.csv", _shopify()),
        products=[
            ("blue-mug", "Blue mug Tamsin Mugs Holds tea",
             ("https://cdn.shop.test/mug.jpg?v=1", "https://cdn.shop.test/mug-side.jpg",
              "https://cdn.shop.test/mug-top.jpg")),
            ("red-scarf", "Red scarf Fell Scarves", ()),
        ],
        letters=["missing_id"],
        kept_out=2,  # a draft in two rows
        display={"Variant SKU": ["M-S", "M-L"], "Variant Price": [9.9, 12.9], "Title": "Blue mug"},
        recognised="shopify",
    ),
    "shopify_api": Export(
        write=in_file("page-1.json", json.dumps({"products": _PAGE}, indent=1)),
        products=[("632910392", "Mug Tamsin Mugs Holds tea", ("https://cdn.test/1.jpg", "https://cdn.test/2.jpg"))],
        kept_out=1,
        display={"handle": "mug", "variants.price": ["9.90", "12.90"]},
        recognised="shopify_api",
    ),
    "woocommerce": Export(
        write=in_file("wc-product-export.csv", _woocommerce()),
        products=[
            ("11", "Mug Home > Mugs For tea Stoneware", ("https://shop.test/a.jpg", "https://shop.test/b.jpg")),
            ("12", "Hat Hats", ("https://shop.test/hat.jpg",)),
        ],
        kept_out=2,
        display={"SKU": "MUG", "Regular price": 19.9},
        recognised="woocommerce",
    ),
    "magento": Export(
        write=in_file("export_catalog_product.csv", _magento()),
        products=[("MUG", "Mug For tea Stoneware", ("/m/u/mug.jpg",)), ("HAT", "Hat", ())],
        kept_out=3,
        display={"price": 19.9, "url_key": "mug"},
        recognised="magento",
    ),
    "google_merchant_tsv": Export(
        write=in_file("feed.tsv", "".join("\t".join(row) + "\n" for row in _GOOGLE)),
        products=[
            ("A1", 'The "Best" mug Tamsin Mugs Holds tea', ("https://shop.test/a1.jpg",)),
            ("A2", '"Quoted" from the start', ()),
        ],
        letters=["missing_id"],
        display={"price": 19.9, "availability": "in_stock"},
        recognised="google_merchant",
    ),
    "google_merchant_xml": Export(
        write=in_file("feed.xml", _google_xml()),
        products=[
            ("A1", 'The "Best" mug Tamsin Mugs Holds tea', ("https://shop.test/a1.jpg",)),
            ("A2", '"Quoted" from the start', ()),
        ],
        letters=["missing_id"],
        display={"g:price": 19.9, "g:availability": "in_stock"},
        recognised="google_merchant",
    ),
    "amazon_flat_file": Export(
        write=in_file("flat_file.txt", _amazon_flat_file()),
        products=[
            ("007", "Becher, groß Tamsin Für Tee Steingut", ("https://shop.test/7.jpg",)),
            ("008", '12" Teller Tamsin', ()),
        ],
        display={"standard_price": 19.9},
        recognised="amazon_flat_file",
    ),
    "amazon_reviews_2023": Export(
        write=in_file("meta_Home.jsonl", lines(
            {"main_category": "Home", "title": "Mug", "average_rating": 4.8, "rating_number": 10,
             "features": ["Holds tea", "Blue"], "description": ["Stoneware."], "price": 8.98,
             "images": [{"thumb": "https://m.test/t.jpg", "large": "https://m.test/l.jpg", "variant": "MAIN",
                         "hi_res": "https://m.test/h.jpg"},
                        {"thumb": "https://m.test/t2.jpg", "large": "https://m.test/l2.jpg", "variant": "PT01",
                         "hi_res": None}],
             "videos": [], "store": "Tamsin", "categories": ["Home", "Mugs"], "details": {"Color": "Blue"},
             "parent_asin": "B00X"},
            {"main_category": "Home", "title": "Hat", "average_rating": 4.0, "rating_number": 1, "features": [],
             "description": [], "price": None, "images": [], "videos": [], "store": None, "categories": [],
             "details": {}, "parent_asin": "0001"},
        )),
        products=[
            ("B00X", "Mug Tamsin Holds tea Blue Stoneware.", ("https://m.test/h.jpg", "https://m.test/l2.jpg")),
            ("0001", "Hat", ()),
        ],
        display={"price": 8.98, "store": "Tamsin"},
        recognised="amazon_reviews_2023",
    ),
    "esci": Export(
        write=in_file("products.parquet", _esci()),
        products=[
            ("B1:us", "Mug Tamsin blue Holds tea", ()),
            ("B1:es", "Taza Tamsin azul", ()),
            ("B2:us", "Hat", ()),
        ],
        display={"product_locale": "us"},
        recognised="esci",
    ),
    "hm": Export(
        write=in_file("articles.csv", _hm()),
        products=[
            ("0108775015", "Strap top Vest top Black Jersey top, with narrow straps", ("010/0108775015.jpg",)),
            ("0110065001", "OP T-shirt Bra Black", ("011/0110065001.jpg",)),
        ],
        recognised="hm",
    ),
    "flipkart": Export(
        write=in_file("flipkart.csv", _flipkart()),
        products=[
            ("c2d766ca", "Cycling shorts Alisha Key features", ("http://img.test/1.jpeg", "http://img.test/2.jpeg")),
            ("7f7036a6", "Sofa bed", ("http://img.test/3.jpeg",)),
        ],
        display={"discounted_price": 379.0},
        recognised="flipkart",
    ),
    "fashion_product_images": Export(
        write=in_file("styles.csv", _styles()),
        products=[
            ("15970", "Turtle Check Men Navy Blue Shirt Shirts Navy Blue", ("15970.jpg",)),
            ("39386", "Peter England Men Party Blue Jeans Jeans Blue", ("39386.jpg",)),
        ],
        letters=["malformed_record"],
        recognised="fashion_product_images",
    ),
    "mysql": Export(
        write=in_file(
            "products.csv",
            'id,name,brand,description,image_url,price\n'
            '007,"12\\" plate",\\N,"Round, white",http://i.test/1.jpg,5.00\n'
            "008,NULL,NULL,\\N,\\N,\\N\n"
            "009,Mug,Tamsin,NULL,,9.50\n",
        ),
        products=[("007", '12" plate Round, white', ("http://i.test/1.jpg",)), ("009", "Mug Tamsin", ())],
        letters=["empty_product"],
        display={"price": 5.0, "brand": None},
    ),
    "pandas": Export(
        write=in_file(
            "products.csv",
            ",id,name,brand,description,image_url,price\n0,12.0,Mug,nan,None,http://i.test/1.jpg,9.5\n1,,No id,,,,\n"
            "2,13.0,Hat,Fell,<NA>,,nan\n",
        ),
        products=[("12.0", "Mug", ("http://i.test/1.jpg",)), ("13.0", "Hat Fell", ())],
        letters=["missing_id"],
        display={"price": 9.5},
    ),
    "spark": Export(
        write=_spark,
        products=[("1", '12" plate Tamsin Round, white', ("http://i.test/1.jpg",)), ("2", 'Mug say "tea"', ())],
        display={"price": 5.0},
    ),
    "bigquery": Export(
        write=in_file("products-000000000000.json", lines(
            {"id": "9007199254740993", "name": "Mug", "brand": "Tamsin", "description": "Holds tea", "price": "9.90",
             "images": [{"url": "http://i.test/1.jpg"}, {"url": "http://i.test/2.jpg"}]},
            {"id": "8", "name": "Hat", "images": []},
        )),
        products=[
            ("9007199254740993", "Mug Tamsin Holds tea", ("http://i.test/1.jpg", "http://i.test/2.jpg")),
            ("8", "Hat", ()),
        ],
        display={"price": 9.9},
    ),
    "elasticsearch": Export(
        write=in_file("products.jsonl", lines(
            *({"_index": "shop", "_type": "_doc", "_id": number, "_score": 1, "_source": source} for number, source in (
                ("a1", {"title": "Mug", "brand": "Tamsin", "description": "Holds tea", "price": 9.9,
                        "image": "http://i.test/1.jpg"}),
                ("a2", {"title": "Hat", "brand": None, "price": 5.0}),
            ))
        )),
        products=[("a1", "Mug Tamsin Holds tea", ("http://i.test/1.jpg",)), ("a2", "Hat", ())],
        display={"_source.price": 9.9},
        recognised="elasticsearch",
    ),
    "mongodb": Export(
        write=in_file("products.jsonl", lines(
            {"_id": {"$oid": "652f1"}, "title": "Mug", "brand": "Tamsin", "description": "Holds tea", "price": 9.9,
             "image": "http://i.test/1.jpg", "added": {"$date": "2024-01-01T00:00:00Z"}},
            {"_id": {"$oid": "652f2"}, "title": "Hat", "price": 5.0},
        )),
        products=[("652f1", "Mug Tamsin Holds tea", ("http://i.test/1.jpg",)), ("652f2", "Hat", ())],
        display={"price": 9.9},
        recognised="mongodb",
    ),
    "excel": Export(
        write=_excel,
        products=[("00042", "Mug Tamsin Holds tea", ("https://i.test/1.jpg",)), ("43", "Hat", ())],
        letters=["missing_id"],
        display={"price": 19.9},
    ),
    "sql": Export(
        write=_sqlite,
        products=[("007", "Mug Tamsin Holds tea", ("https://i.test/1.jpg",)), ("008", "Hat", ())],
        display={"price": 19.9},
    ),
}  # fmt: skip
