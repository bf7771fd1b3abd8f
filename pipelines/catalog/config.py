"""The `catalog:` section of a job says where the products are, and which fields make an id, a text and an image.

    CatalogError                    something about the catalog that stops the run before any work
    └── CatalogConfigError          a key of the section has a value that cannot be used (also a ValueError)

A single dirty row or image never raises one of these: it becomes a `DeadLetter`, and its neighbours go on.
"""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from string import Formatter
from typing import Any, Literal, get_args

import pyarrow as pa

from index_builder.errors import FilterError
from index_builder.filters import Condition, parse_condition
from pipelines.catalog.dead_letters import one_line

CatalogFormat = Literal["auto", "parquet", "csv", "jsonl", "json", "xml", "xlsx", "arrow", "delta", "iceberg", "sql"]

FORMATS: tuple[str, ...] = get_args(CatalogFormat)

NULL_VALUES = ("NULL", "Null", "null", "\\N", "NaN", "nan", "None", "none", "N/A", "n/a", "NA", "#N/A", "<NA>", "nil")
"""What exports write for nothing, beside the empty value: MySQL, pandas, Python, spreadsheets."""


USUAL_RECORD_BYTES = 64 << 20
"""`catalog.max_record_bytes` where it is not given; a product's texts and pictures together."""
USUAL_FILE_RATIO = 500.0
"""`catalog.max_file_ratio` where it is not given."""

USUAL_SHARD_ROWS = 4096
"""Rows of a shard where `catalog.shard_rows` is `auto` and nobody has worked out a size."""

LISTED_NAMES = 12
"""So many known names a message lists."""

_DATABASES = r"(sqlite|postgres(ql)?|mysql|mariadb|oracle|mssql)(\+\w+)?:"
_TEMPLATE_FIELD = re.compile(r"(?P<name>[^\[\]]+)(?:\[(?P<start>-?[0-9]+)?:(?P<stop>-?[0-9]+)?\])?")


class CatalogError(Exception):
    """The catalog cannot be read as the config asks; the message names what was expected, what was found and where.

    Remedy: `--plan` shows what the catalog is taken for, before anything is done. Correct the file, or the key that the
        message names.
    """


def damaged_file(uri: str, expected: str, found: str, error: object = "") -> CatalogError:
    """The refusal of a file that cannot be read: what a library says of it becomes one line that can be printed."""
    why = f" ({one_line(str(error), 300)})" if error else ""
    return CatalogError(f"{uri}: expected {expected}, found {found}{why}; export or copy it again")


class CatalogConfigError(CatalogError, ValueError):
    """A value in the `catalog:` section is not usable; the message names key, value and what is expected.

    Remedy: Set the key that the message names to what it expects.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """A closing sentence that names the known name most like `name`, if any is, and the first few known ones.

    A path counts as like a name that is its last step. Of many names those of whole objects are left out, and those
    listed first that share a step with the name, then those of the fewest steps.
    """
    names = sorted(known)
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.7)
    if not close:
        by_last = {candidate.rpartition(".")[2].lower(): candidate for candidate in reversed(names)}
        found = difflib.get_close_matches(name.rpartition(".")[2].lower(), list(by_last), n=1, cutoff=0.7)
        close = [by_last[last].lower() for last in found]
    question = f"Did you mean '{by_lower[close[0]]}'? " if close else ""
    if len(names) > LISTED_NAMES:
        steps = set(name.lower().split("."))
        objects = {".".join(each.split(".")[:depth]) for each in names for depth in range(1, each.count(".") + 1)}
        names = [each for each in names if each not in objects]
        names.sort(key=lambda candidate: (steps.isdisjoint(candidate.lower().split(".")), candidate.count(".")))
    listed = ", ".join(f"'{candidate}'" for candidate in names[:LISTED_NAMES])
    more = f" and {len(names) - LISTED_NAMES:,} more" if len(names) > LISTED_NAMES else ""
    return f"{question}Known: {listed}{more}."


def without_login(address: str) -> str:
    """An address as it may be printed: `***` for its login, and nothing of what a database's has behind a `?`."""
    scheme, mark, rest = address.partition("://")
    if not mark:
        return address
    found = None if scheme in ("http", "https") else re.search(r"\?.*=", rest)
    rest, end = (rest, "") if found is None else (rest[: found.start()], "?***")
    authority = rest.partition("/")[0]
    # A password may hold a slash: what follows a colon is a port only if it is a number.
    if "@" in authority or ("@" in rest and re.search(r":(?!\d*$)", authority)):
        rest = "***@" + rest.rpartition("@")[2]
    return f"{scheme}://{rest}{end}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogConfig:
    """Where the catalog is and how its rows become products.

    Attributes:
        uri: One file, a folder (read with its subfolders), a glob, or a list of those; local paths or fsspec URIs. With
            `query`, the SQLAlchemy URL of a database.
        format: `auto` goes by the file names and, where they say nothing, by the first bytes. `jsonl` is one object a
            line, `json` documents that hold a list of them, `xml` a feed of repeated elements. `delta` and `iceberg`
            read a table's current snapshot; `xlsx` a sheet (extras `delta`, `iceberg`, `excel`, `sql`).
        layout: The shop system that wrote the catalog (see `layouts`), whose columns then stand for every field that is
            not named here. `auto` recognises it. None: the fields are those named here.
        encoding: Of text files: a Python codec such as cp1252, or `auto`: UTF-8, UTF-16 or UTF-32 by their marks, else
            decided on the whole file.
        records: Where a JSON document has its products (`hits.hits`), or the name of the XML element that is one.
            None: the first list of objects, of those least deep in it, or the element that repeats.
        sheet: Name of the sheet of an Excel file. None: the first.
        query: SQL that gives the products, one a row, of the database at `uri`. With an ORDER BY, so that rows that did
            not change are found again where they were.
        id_field: The product id: text, or whole numbers (which become decimal text). Trimmed; unique. Several columns
            are joined by a colon: `[product_id, locale]`. Any field of this section may be a path into nested values:
            `_source.title`, `title.en`, `images.hi_res|large` (the first that is there, in lists item by item); see
            `paths`.
        where: An expression over columns, in SQL's words; rows for which it is not true stay out, and are counted:
            `status = 'active' and price > 0`. Names that are no plain words stand in double quotes. With `group_by` it
            looks at rows before they are grouped; a value that is blank in a row is there the first of its product.
        group_by: A column; the rows of a file that have the same value there make one product of their first values
            that are not blank, of all their images (each once), and of `group_lists`. They need not stand together.
            Rows without a value stand alone. The same value in another file makes another product, which is a dead
            letter if its id is the same; an export in parts must keep the rows of a product in one of them.
        group_lists: Display and filter columns that keep the values of all rows of a product, as lists of one length
            in the order of the rows, null where a row has none. A row that has none in any of them (Shopify's rows of
            further images) adds nothing. `column_types` then names the type of an item.
        null_values: Values that mean nothing, beside the empty one, in every column: a value is one of them as a whole,
            between blanks, in just these letters. YAML takes NULL without quotes for nothing. May be empty.
        strip_html: Takes tags, scripts, styles, entities and shortcodes out of texts; display columns stay as they are.
            `auto`: where HTML's own tags and entities stand, so that `a < b`, `<3` and `[NEW]` stay; `always`: every
            text is HTML, as a browser reads it.
        text_fields: The fields that make the text, joined by one space. May be empty.
        text_template: Joins them in another way, for example `"{title}. {brand}"`; a field that is missing in a row
            leaves together with the words before it. Names its fields itself, so `text_fields` is not looked at.
        image_field: The picture(s): bytes, base64 text, `struct<bytes, path>` as Hugging Face writes it, a path, a URI,
            or a list of any of these. None: the catalog has no pictures.
        image_separator: What separates the pictures of one value, such as a comma. Inside an address it separates only
            where a blank, a scheme or `//` follows, or the name of a picture is complete before it. None: a value is
            one picture, or a list of them as JSON or Python writes it.
        image_template: The picture's address by other columns, `"{article_id[:3]}/{article_id}.jpg"`, in place of
            `image_field`. `{article_id:010}` fills up with zeros in front, before a slice is taken. A product that has
            nothing in one of the columns has no picture.
        image_root: What relative paths of pictures are relative to. None: they are read as they stand.
        images_per_product: How many pictures of a list are used, the first one being the primary.
        on_bad_image: `degrade` indexes a product with a broken picture by its text; `reject` leaves it out.
        display_fields: Columns carried to the published `products.arrow`, with their types.
        filter_fields: The same, for search filters.
        group_field: A column carried likewise, whose values say which products are variants of one: a parent id, a
            handle. They stay products of their own, and a search can answer with the best of each group (`--group`).
            Products without a value stand alone. To fold the rows of a product into one, there is `group_by`.
        column_types: Arrow types (`"float64"`, `"decimal128(10, 2)"`, `"date32"`) of display and filter columns, and
            those of `where`, in CSV and JSON Lines, where the values decide otherwise. Also makes known a column that
            the first records do not have. Numbers may be spelled as in `1.299,00 €` (see `numbers`).
        csv_delimiter: One character. None: a tab for `.tsv` files, else what the first lines show.
        csv_quote: The character around values; "" where there is none and quotes belong to the values. None: what the
            file shows.
        csv_escape: The character before a quote inside a value, such as Spark's backslash; "" where a quote is doubled.
            None: what the file shows.
        csv_skip_lines: Lines before the one with the column names.
        csv_newlines_in_values: Whether quoted CSV values may hold line breaks. If not, a stray quote reaches no further
            than the end of its line.
        shard_rows: Rows of a catalog shard, the unit of work and of resume. `auto`: as many as one worker embeds in a
            minute, 256 to 65,536 (with images 16,384), by what the last run took, or at first by the encoder's size.
            A row group of a Parquet file (a record batch of an Arrow file) is cut into at most 16 shards, so those of
            large row groups have more rows.
        shard_bytes: Bytes of a catalog shard, where that is the tighter limit.
        max_record_bytes: A record of more bytes, of all fields that are read, becomes a letter; it is never held whole.
        max_file_ratio: A file (gzip, zstd, zip, xlsx, Parquet, Arrow, ...) that holds more than 64 MiB and more than so
            many times its own size (of one that does not say it: 64 MiB), its dictionaries written out, is refused:
            exports stay below a tenth of that, and what does not was made to fill memory or disk.
    """

    uri: str | tuple[str, ...] = field(repr=False)
    format: CatalogFormat = "auto"
    layout: str | None = None
    encoding: str = "auto"
    records: str | None = None
    sheet: str | None = None
    query: str | None = None
    id_field: str | tuple[str, ...] = "product_id"
    where: str | None = None
    group_by: str | None = None
    group_lists: tuple[str, ...] = ()
    null_values: tuple[str, ...] = NULL_VALUES
    text_fields: tuple[str, ...] = ("title",)
    text_template: str | None = None
    strip_html: Literal["auto", "always", "never"] = "auto"
    image_field: str | None = None
    image_separator: str | None = None
    image_template: str | None = None
    image_root: str | None = None
    images_per_product: int = 1
    on_bad_image: Literal["degrade", "reject"] = "degrade"
    display_fields: tuple[str, ...] = ()
    filter_fields: tuple[str, ...] = ()
    group_field: str | None = None
    column_types: dict[str, str] = field(default_factory=dict)
    csv_delimiter: str | None = None
    csv_quote: str | None = None
    csv_escape: str | None = None
    csv_skip_lines: int = 0
    csv_newlines_in_values: bool = True
    shard_rows: int | Literal["auto"] = "auto"
    shard_bytes: int = 64 << 20
    max_record_bytes: int = USUAL_RECORD_BYTES
    max_file_ratio: float = USUAL_FILE_RATIO

    def __post_init__(self) -> None:
        uris = self.uris
        _require(bool(uris) and all(uris), "uri", self.uri, "a path or URI, or a list of them")
        _require(self.format in FORMATS, "format", self.format, f"one of {', '.join(FORMATS)}")
        if self.query is not None:
            _require(self.format in ("auto", "sql"), "format", self.format, "'sql', or none, beside catalog.query")
            _require(len(uris) == 1 and "://" in uris[0], "uri", self.shown_uri, "the SQLAlchemy URL of one database")
            object.__setattr__(self, "format", "sql")
        lacks_query = self.query is None and len(uris) == 1 and re.match(_DATABASES, uris[0])
        _require(not lacks_query, "query", None, f"SQL, for the database {self.shown_uri}")
        _require(self.format != "sql" or self.query is not None, "query", self.query, "SQL, for catalog.format sql")
        ids = self.id_fields
        _require(bool(ids) and all(ids), "id_field", self.id_field, "the name of a column, or a list of them")
        _require(len(set(ids)) == len(ids), "id_field", self.id_field, "each name once")
        if self.where is not None:
            try:
                parse_condition(self.where)
            except FilterError as error:
                raise CatalogConfigError(f"catalog.where: {error}") from error
        if self.text_template is not None:
            template_parts(self.text_template)
        if self.image_template is not None:
            image_template_parts(self.image_template)
            alone = self.image_field is None
            _require(alone, "image_template", self.image_template, f"none beside image_field {self.image_field!r}")
        _require(self.image_separator != "", "image_separator", "", "a character such as ',', or null")
        has_content = bool(self.texts) or self.has_images
        _require(has_content, "text_fields", self.text_fields, "at least one field, or an image_field")
        known = ("auto", "always", "never")
        _require(self.strip_html in known, "strip_html", self.strip_html, "'auto', 'always' or 'never'")
        _require(not isinstance(self.null_values, str), "null_values", self.null_values, "a list of values")
        _require(self.max_file_ratio >= 1, "max_file_ratio", self.max_file_ratio, "a number of at least 1")
        auto = "'auto' or a whole number of at least 1"
        _require(self.rows_per_shard >= 1, "shard_rows", self.shard_rows, auto)
        for key in ("images_per_product", "shard_bytes", "max_record_bytes"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "a whole number of at least 1")
        _require(self.on_bad_image in ("degrade", "reject"), "on_bad_image", self.on_bad_image, "'degrade' or 'reject'")
        for key in ("text_fields", "display_fields", "filter_fields"):
            names = getattr(self, key)
            _require(not isinstance(names, str) and all(names), key, names, "a list of column names")
            _require(len(set(names)) == len(names), key, names, "each name once")
        single = self.group_field != "" and self.group_field not in self.group_lists
        _require(single, "group_field", self.group_field, "a column, and none of group_lists")
        if self.group_lists:
            _require(self.group_by is not None, "group_lists", self.group_lists, "a group_by beside it")
            plain = set(self.group_lists) <= set(self.carried_fields) - {*self.id_fields, self.group_by}
            expected = "names of display or filter fields, not the id and not group_by"
            _require(plain, "group_lists", self.group_lists, expected)
        for name, alias in self.column_types.items():
            typed = (*self.carried_fields, *(self.condition.columns if self.condition is not None else ()))
            _require(name in typed, "column_types", name, "names of display or filter fields, or of catalog.where")
            try:
                arrow_type(alias)
            except ValueError:
                raise _unusable(f"column_types.{name}", alias, "an Arrow type such as 'float64' or 'date32'") from None
        _require(_is_codec(self.encoding), "encoding", self.encoding, "'auto' or a Python codec, such as cp1252")
        _require(self.csv_skip_lines >= 0, "csv_skip_lines", self.csv_skip_lines, "a whole number of at least 0")
        for key in ("csv_quote", "csv_escape"):
            sign = getattr(self, key)
            good = not sign or (len(sign.encode()) == 1 and sign not in "\r\n\0" and sign != self.csv_delimiter)
            _require(good, key, sign, "one ASCII sign, or '' for none, not the delimiter")
        if self.csv_delimiter is not None:
            good = len(self.csv_delimiter.encode()) == 1 and self.csv_delimiter not in '"\r\n\0'
            _require(good, "csv_delimiter", self.csv_delimiter, "one ASCII character, such as ';' or a tab")

    @property
    def uris(self) -> tuple[str, ...]:
        """`uri`, always as a tuple."""
        return (self.uri,) if isinstance(self.uri, str) else tuple(self.uri)

    @property
    def shown_uri(self) -> str:
        """`uri` as it may be printed, without logins."""
        return ", ".join(map(without_login, self.uris))

    @property
    def id_fields(self) -> tuple[str, ...]:
        """The columns that make the id, always as a tuple."""
        return (self.id_field,) if isinstance(self.id_field, str) else tuple(self.id_field)

    @property
    def condition(self) -> Condition | None:
        """`where`, parsed."""
        return None if self.where is None else parse_condition(self.where)

    @property
    def texts(self) -> tuple[str, ...]:
        """The fields that make the text, whichever way they are named."""
        if self.text_template is None:
            return self.text_fields
        return tuple(dict.fromkeys(name for _, name in template_parts(self.text_template) if name is not None))

    @property
    def rows_per_shard(self) -> int:
        """Rows that a shard is cut to; where nobody has worked out what `auto` comes to, the usual ones."""
        return USUAL_SHARD_ROWS if self.shard_rows == "auto" else self.shard_rows

    @property
    def has_images(self) -> bool:
        """Whether products may have pictures."""
        return self.image_field is not None or self.image_template is not None

    @property
    def image_template_fields(self) -> tuple[str, ...]:
        """The fields of `image_template`, each once."""
        if self.image_template is None:
            return ()
        parts = image_template_parts(self.image_template)
        return tuple(dict.fromkeys(part.name for _, part in parts if part is not None))

    @property
    def carried_fields(self) -> tuple[str, ...]:
        """Display and filter columns and that of the groups, each once, in this order."""
        group = () if self.group_field is None else (self.group_field,)
        return tuple(dict.fromkeys((*self.display_fields, *self.filter_fields, *group)))

    @property
    def shaping(self) -> dict[str, Any]:
        """What of the config shapes the products that come out of the same bytes, by field.

        A `group_field` among the display or filter columns is carried without it as well: it changes nothing of them.
        """
        values = asdict(self)
        if self.group_field in (*self.display_fields, *self.filter_fields):
            values["group_field"] = None
        return values

    @property
    def stated_types(self) -> dict[str, pa.DataType]:
        """`column_types` as Arrow types."""
        return {name: arrow_type(alias) for name, alias in self.column_types.items()}

    @property
    def number_fields(self) -> tuple[str, ...]:
        """The columns that `column_types` makes numbers."""
        return tuple(name for name, data_type in self.stated_types.items() if is_number(data_type))

    @property
    def fields(self) -> dict[str, str]:
        """Every column the catalog must have, with the config key that asks for it."""
        wanted = {
            "id_field": self.id_fields,
            "text_fields" if self.text_template is None else "text_template": self.texts,
            "image_field": () if self.image_field is None else (self.image_field,),
            "image_template": self.image_template_fields,
            "display_fields": self.display_fields,
            "filter_fields": self.filter_fields,
            "group_by": () if self.group_by is None else (self.group_by,),
            "group_field": () if self.group_field is None else (self.group_field,),
            "where": () if self.condition is None else self.condition.columns,
        }
        keys: dict[str, str] = {}
        for key, names in wanted.items():
            for name in names:
                keys.setdefault(name, f"catalog.{key}")
        return keys


def template_parts(template: str) -> list[tuple[str, str | None]]:
    """A text template as (literal, field after it) pairs; the last pair has no field where the template ends in words.

    Raises:
        CatalogConfigError: unbalanced braces, a format such as `{price:.2f}`, or no field at all.
    """
    parts: list[tuple[str, str | None]] = []
    for literal, name, spec in _parsed_template("text_template", template, "'{title}. {brand}'"):
        _require(not spec, "text_template", template, "plain field names in braces, without a format or '!'")
        parts.append((literal, name))
    return parts


@dataclass(frozen=True, slots=True)
class TemplateField:
    """A field of an image template: its value, filled up with zeros in front to `width`, from `start` to `stop`."""

    name: str
    start: int = 0
    stop: int | None = None
    width: int = 0


def image_template_parts(template: str) -> list[tuple[str, TemplateField | None]]:
    """An image template as `template_parts` gives a text template.

    Raises:
        CatalogConfigError: unbalanced braces, another format than `{id:010}`, another index than `{id[:3]}`, or no
            field at all.
    """
    parts: list[tuple[str, TemplateField | None]] = []
    for literal, name, spec in _parsed_template("image_template", template, "'{id[:3]}/{id}.jpg'"):
        if name is None:
            parts.append((literal, None))
            continue
        found = _TEMPLATE_FIELD.fullmatch(name)
        width = re.fullmatch(r"0([0-9]{1,3})|", spec)
        if found is None or width is None:
            expected = "fields in braces, perhaps with a slice or filled up with zeros, such as {id[:3]} and {id:010}"
            raise _unusable("image_template", template, expected)
        start, stop = found["start"], found["stop"]
        parts.append(
            (literal, TemplateField(found["name"], int(start or 0), int(stop) if stop else None, int(width[1] or 0)))
        )
    return parts


def _parsed_template(key: str, template: str, example: str) -> list[tuple[str, str | None, str]]:
    """(literal, field after it, its format) of a template; the last one without a field where it ends in words."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise _unusable(key, template, f"fields in braces, such as {example} ({error})") from error
    # Formatter gives literals around an escaped brace apart, without a field: join them to the next one.
    parts: list[tuple[str, str | None, str]] = []
    pending = ""
    for literal, name, spec, conversion in parsed:
        pending += literal
        if name is not None:
            plain = bool(name) and conversion is None
            _require(plain, key, template, "plain field names in braces, without a format or '!'")
            parts.append((pending, name, spec or ""))
            pending = ""
    _require(bool(parts), key, template, f"at least one field, such as {example}")
    return [*parts, (pending, None, "")] if pending else parts


def arrow_type(alias: str) -> pa.DataType:
    """The Arrow type of this name, `decimal128(10, 2)` among them; ValueError where there is none."""
    decimal = re.fullmatch(r"decimal128\((\d+), ?(\d+)\)", alias)
    return pa.type_for_alias(alias) if decimal is None else pa.decimal128(int(decimal[1]), int(decimal[2]))


def is_number(data_type: pa.DataType) -> bool:
    """Whole numbers, floating ones and decimals."""
    return pa.types.is_integer(data_type) or pa.types.is_floating(data_type) or pa.types.is_decimal(data_type)


def _is_codec(name: str) -> bool:
    """Whether text can be decoded by this name, a piece at a time."""
    try:
        return name == "auto" or ("a".encode(name), codecs.getincrementaldecoder(name)) is not None
    except (LookupError, UnicodeError):
        return False


def _require(holds: bool, key: str, value: Any, expected: str) -> None:
    if not holds:
        raise _unusable(key, value, expected)


def _unusable(key: str, value: Any, expected: str) -> CatalogConfigError:
    return CatalogConfigError(f"catalog.{key}: expected {expected}; found {value!r}")
