"""Layouts are what shop systems write: which columns tell one, and which keys of the `catalog:` section read it.

A catalog of no known layout is read by what its columns are called and hold (see `guesses`). Either way the outcome is
an explicit `CatalogConfig`, in which nothing is left to recognise.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from pipelines.catalog.column_names import canonical
from pipelines.catalog.config import CatalogConfig, CatalogConfigError, CatalogError, nearest
from pipelines.catalog.guesses import ROLES, guess_columns, image_separator, is_headless, is_price_text
from pipelines.catalog.intake import objects_of, text_format
from pipelines.catalog.limits import check_archive, within_ratio
from pipelines.catalog.listing import list_catalog
from pipelines.catalog.samples import NoRowsError, Sample, TextOptions, read_sample, sample_objects
from pipelines.catalog.sheets import rows_above_header
from pipelines.catalog.shop_layouts import LAYOUTS, VECTORS, Layout
from pipelines.catalog.stores import iter_bytes

AUTO = "auto"
_PLAIN_TEXT = (".txt", ".tab", ".txt.gz", ".txt.zip")
"""Names that say no format: feeds of shop systems have them, but also notes that lie beside catalogs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recognised:
    """What a catalog was taken for.

    Attributes:
        layout: Its name in `LAYOUTS`; `generic` where the columns were guessed; empty where the config names them.
        title: The same in words.
        read_as: Format, encoding and dialect of the first file, in words.
        reasons: (column, config keys, why) for each column that is used; for expressions and templates these.
        note: What else a person has to know or set; may be empty.
        unused: Columns that no key names.
        config: With every field filled in, `layout` None.
    """

    layout: str
    title: str
    read_as: str
    reasons: tuple[tuple[str, str, str], ...]
    note: str
    config: CatalogConfig
    unused: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """One line that says what it is and what its fields are."""
        config = self.config
        image = config.image_template or config.image_field
        parts = [f"id {' + '.join(_names(config.id_field))}", f"text {', '.join(config.texts) or 'none'}"]
        parts += [f"pictures {image}"] if image else []
        parts += [f"where {config.where}"] if config.where else []
        return f"taken for {with_article(self.title)} ({self.read_as}): {'; '.join(parts)}"


def with_article(title: str) -> str:
    """The title of a layout with the article it takes."""
    if title.split()[0].endswith("s") or title.startswith(("metadata", "ESCI", "H&M", "Fashion", "Flipkart")):
        return title
    return f"an {title}" if title[0] in "AEIOaeio" else f"a {title}"


def set_keys(config: CatalogConfig) -> set[str]:
    """The keys of a section that have another value than their default: who built it has named them."""
    defaults = CatalogConfig(uri="x")
    return {each.name for each in fields(config) if getattr(config, each.name) != getattr(defaults, each.name)}


def resolved(config: CatalogConfig, named: Collection[str] | None = None) -> CatalogConfig:
    """The section with what `layout` stands for filled in; itself where it has no layout. Raises as `recognise`."""
    return config if config.layout is None else recognise(config, named).config


def recognise(config: CatalogConfig, named: Collection[str] | None = None) -> Recognised:
    """Recognises the layout that `config.layout` names, or that its columns tell.

    Args:
        named: Keys of the section that were given, which stay as they are; None: those that `set_keys` finds.

    Raises:
        CatalogError: no such layout, one that the columns are not of, or columns that tell nothing (the message lists
            them with values, and the keys to set).
    """
    if config.layout not in (None, AUTO, *LAYOUTS):
        expected = f"auto or a known layout; found {config.layout!r}"
        raise CatalogConfigError(f"catalog.layout: expected {expected}. {nearest(str(config.layout), LAYOUTS)}")
    named = set_keys(config) if named is None else named
    if config.format == "auto" and all(uri.lower().endswith(_PLAIN_TEXT) for uri in config.uris):
        config, named = replace(config, format="csv"), {*named, "format"}
    return recognise_sample(_sample_of(config), config, named)


def _sample_of(config: CatalogConfig) -> Sample:
    files = list_catalog(config.uris, config.format).files
    options = TextOptions(**{each.name: getattr(config, each.name) for each in fields(TextOptions)})
    for number, file in enumerate(files, 1):
        file = replace(file, format=text_format(file, config))
        above = 0
        if file.format == "xlsx" and not config.csv_skip_lines:
            content = within_ratio(iter_bytes(file.uri, file.compression), file, config.max_file_ratio)
            check_archive(data := b"".join(content), file, config.max_file_ratio)
            above = rows_above_header(data, file.name, config.sheet)
        objects = objects_of(file, replace(config, csv_skip_lines=above or config.csv_skip_lines))
        try:
            if objects is not None:
                return replace(sample_objects(file, objects), header_lines=above)
            sample = read_sample(file, options)
            return sample if len(files) == 1 else replace(sample, encoding=None)  # others may be written otherwise
        except NoRowsError:  # a page without products, a part whose rows were all filtered out
            if number in (len(files), 16):
                raise
    raise AssertionError


def recognise_sample(sample: Sample, config: CatalogConfig, named: Collection[str]) -> Recognised:
    """`recognise`, of a sample that was read."""
    columns = _Columns(sample)
    if columns.has(VECTORS):
        raise CatalogError(
            f"catalog.uri: {config.shown_uri} is {VECTORS.title}, which belongs to vectors; give the folder "
            "that holds it to python -m pipelines.build_index --embeddings.uri FOLDER"
        )
    if "id_field" not in named and is_headless(sample):
        found = ", ".join(sample.columns[:4])
        raise CatalogError(
            f"catalog.uri: expected a first line of column names in {config.shown_uri}, found {found!r}, which reads "
            "like a product; write a line of names above it, such as 'id,title,price'"
        )
    told = (name for name, each in LAYOUTS.items() if columns.has(each) and columns.is_grouped_as(each))
    name = config.layout if config.layout in LAYOUTS else next(told, None)
    layout = LAYOUTS.get(name or "")
    if layout is not None and not columns.has(layout):
        missing = [each for each in layout.tells if columns.find(each, layout) is None] or layout.one_of
        raise CatalogError(
            f"catalog.layout: expected {with_article(layout.title)}, found no column {missing[0]!r}; "
            f"{_shown_columns(sample)}"
        )
    keys: dict[str, Any] = {} if layout is None else columns.keys_of(layout)
    reasons: dict[str, str] = {}
    if layout is None or layout.guessed_below is not None:
        roles = [role for role in ROLES if role != "id" or "id_field" not in keys]
        guessed, reasons = _guessed_keys(sample, "" if layout is None else layout.guessed_below or "", roles)
        keys = guessed | keys
    if sample.header_lines:
        keys["csv_skip_lines"] = sample.header_lines
    if sample.delimiter is not None:
        keys["csv_delimiter"] = sample.delimiter
    if sample.encoding is not None:
        keys["encoding"] = sample.encoding
    config = _filled(sample, config, keys, named)
    as_layout = "" if layout is None else f"as {with_article(layout.title)} has it"
    return Recognised(
        layout=name or "generic",
        title=layout.title if layout is not None else "catalog of no known layout",
        read_as=sample.read_as,
        reasons=tuple(_reasons(config, named, reasons, as_layout)),
        note="" if layout is None else layout.note,
        config=config,
        unused=_unused(config, sample.columns),
    )


def as_configured(config: CatalogConfig) -> Recognised:
    """The same for a section that names its columns itself: nothing was read to recognise it."""
    keys = {each.name for each in fields(config)}
    reasons = tuple(_reasons(config, keys, {}, ""))
    return Recognised(layout="", title="", read_as="", reasons=reasons, note="", config=config)


def _unused(config: CatalogConfig, columns: Sequence[str]) -> tuple[str, ...]:
    used = [f"{name.split('|')[0]}." for name in config.fields]
    paths = ((name, f"{name}.") for name in columns)
    return tuple(name for name, path in paths if not any(path.startswith(e) or e.startswith(path) for e in used))


def _reasons(
    config: CatalogConfig, named: Collection[str], guessed: Mapping[str, str], otherwise: str
) -> Iterator[tuple[str, str, str]]:
    """(column, the keys that use it, why), in the order of the keys; `guessed` by column."""
    keys_of: dict[str, list[str]] = {}
    for key in ("id_field", "group_by", "text_template", "text_fields", "image_field", "display_fields"):
        if not (key == "text_fields" and config.text_template):
            for name in _names(getattr(config, key)):
                keys_of.setdefault(name, []).append(key)
    for key in ("image_template", "filter_fields", "group_lists", "group_field", "where"):
        for name in _names(getattr(config, key)):
            keys_of.setdefault(name, []).append(key)
    for name, keys in keys_of.items():
        why = "as the config says" if keys[0] in named else guessed.get(name, otherwise)
        yield name, ", ".join(keys), why


def _names(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value or ()


class _Columns:
    """The columns of a sample, found by the letters and digits of their names."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self._names: dict[str, str] = {}
        for name in sample.columns:
            self._names.setdefault(canonical(name), name)

    def find(self, name: str, layout: Layout) -> str | None:
        """The column as the file writes it. Of a path with choices (`images.hi_res|large`) one must be there."""
        if "|" in name:
            above, _, last = name.rpartition(".")
            found = [self._names.get(canonical(f"{above}.{choice}")) for choice in last.split("|")]
            return name if any(found) else None
        called = (name, *layout.also_called.get(name, ()))
        return next((self._names[canonical(each)] for each in called if canonical(each) in self._names), None)

    def has(self, layout: Layout) -> bool:
        """Whether the columns tell this layout."""
        one_of = not layout.one_of or any(self.find(name, layout) for name in layout.one_of)
        return one_of and all(self.find(name, layout) for name in layout.tells)

    def is_grouped_as(self, layout: Layout) -> bool:
        """Whether rows of one group are of one product: what else tells the layout has one value in nearly each."""
        group = self.find(layout.keys.get("group_by", ""), layout)
        if group is None:
            return True
        told = (self.find(each, layout) for each in layout.tells)
        return self._sample.mixed_groups(group, [name for name in told if name not in (None, group)]) <= 0.1

    def keys_of(self, layout: Layout) -> dict[str, Any]:
        """The layout's keys with the columns as this file writes them."""
        keys: dict[str, Any] = {}
        for key, value in layout.keys.items():
            if key == "image_template":
                keys[key] = re.sub(r"{(\w+)", lambda match: "{" + (self.find(match[1], layout) or match[1]), value)
            elif key == "column_types":
                keys[key] = {found: kind for name, kind in value.items() if (found := self.find(name, layout))}
            elif key == "image_separator":
                keys[key] = value
            elif isinstance(value, tuple):
                keys[key] = tuple(found for name in value if (found := self.find(name, layout)))
            elif (column := self.find(value, layout)) is not None:
                keys[key] = column
        found_where = {name: found for name in layout.where if (found := self.find(name, layout))}
        conditions = [_renamed(layout.where[name], name, found) for name, found in found_where.items()]
        if conditions:
            conditions = [f"({each})" if " or " in each and len(conditions) > 1 else each for each in conditions]
            keys["where"] = " and ".join(conditions)
        return {key: value for key, value in keys.items() if value}


def _renamed(condition: str, name: str, found: str) -> str:
    """A layout's condition about a column, with the name that the file has for it."""
    is_plain = name == found and f'"{name}"' not in condition
    written = found if is_plain else '"{}"'.format(found.replace('"', '""'))
    return re.sub(rf'"{re.escape(name)}"|\b{re.escape(name)}\b', lambda _: written, condition)


def _guessed_keys(sample: Sample, below: str, roles: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    guesses = guess_columns(sample, below, roles)
    keys: dict[str, Any] = {}
    for key, role in (("id_field", "id"), ("image_field", "image")):
        if role in guesses:
            columns = guesses[role].columns
            keys[key] = columns if len(columns) > 1 else columns[0]
    if "image" in guesses and (separator := image_separator(sample.values(guesses["image"].columns[0]))):
        keys["image_separator"] = separator
    for key, shown in (
        ("text_fields", ("title", "brand", "category", "description")),
        ("display_fields", ("title", "brand", "category", "price")),
    ):
        keys[key] = tuple(guesses[role].columns[0] for role in shown if role in guesses)
    reasons = {name: f"{role}: {guess.why}" for role, guess in guesses.items() for name in guess.columns}
    if "price" in guesses:
        price = guesses["price"].columns[0]
        values = sample.values(price)
        if all(map(is_price_text, values)):
            keys["column_types"] = {price: "float64"}
    return keys, reasons


def _filled(sample: Sample, config: CatalogConfig, keys: Mapping[str, Any], named: Collection[str]) -> CatalogConfig:
    """The section with the keys that were not named; CatalogError where no id, or nothing to embed, is among them."""
    filled = {key: value for key, value in keys.items() if key not in named}
    has_text = {"text_fields", "text_template"} & set(named) or filled.get("text_fields")
    has_image = {"image_field", "image_template"} & {*named, *filled}
    if "id_field" not in {*named, *filled} or not (has_text or has_image):
        lacks = "product ids" if "id_field" not in {*named, *filled} else "titles or pictures"
        raise CatalogError(
            f"catalog.layout: no column of {config.shown_uri} was recognised as that of {lacks}; set "
            "catalog.id_field, and catalog.text_fields or catalog.image_field. " + _shown_columns(sample)
        )
    if not has_text:
        filled["text_fields"] = ()
    if {"image_field", "image_template"} & set(named):
        filled = {key: value for key, value in filled.items() if key not in ("image_field", "image_template")}
    carried = {*filled.get("display_fields", config.display_fields), *filled.get("filter_fields", config.filter_fields)}
    if "column_types" in filled:
        filled["column_types"] = {name: kind for name, kind in filled["column_types"].items() if name in carried}
    if "group_lists" in filled:
        filled["group_lists"] = tuple(name for name in filled["group_lists"] if name in carried)
    if "group_by" in named and not config.group_by:
        filled.pop("group_lists", None)
    return replace(config, layout=None, **filled)


def _shown_columns(sample: Sample) -> str:
    """The columns with a value of each, for a person who has to choose."""

    def shown(name: str) -> str:
        value = next(iter(sample.values(name)), None)
        text = f"{len(value):,} bytes" if isinstance(value, bytes) else " ".join(str(value).split())
        return f"{name} ({text[:40]}{'...' if len(text) > 40 else ''})" if value is not None else f"{name} (empty)"

    more = f", and {len(sample.columns) - 20} more" if len(sample.columns) > 20 else ""
    return f"The columns, with a value of each: {', '.join(map(shown, sample.columns[:20]))}{more}"
