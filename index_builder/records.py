"""Records are small JSON files that one run leaves to the next; one that is damaged counts as absent, with a word.

A result may need longer without them, and is the same.
"""

from __future__ import annotations

import json
import logging
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from index_builder import storage
from index_builder.errors import MissingFileError

log = logging.getLogger(__name__)

Record = TypeVar("Record")


def read_record(uri: str, kind: type[Record]) -> Record | None:
    """The record at `uri` as a dataclass or dict type; None where none stands, or, with a warning, a damaged one.

    Fields that the type does not know are left out: a newer program wrote them.

    Raises:
        StorageError: the place cannot be read.
    """
    try:
        values = json.loads(storage.read_bytes(uri))
    except MissingFileError:
        return None
    except (ValueError, RecursionError) as error:
        log.warning("%s: expected JSON, found %s; it is taken as absent", uri, error)
        return None
    return as_record(values, kind, uri)


def as_record(values: Any, kind: type[Record], where: str) -> Record | None:
    """Plain JSON values as a record, as `read_record`."""
    try:
        record: Record = _adapter(kind).validate_python(values)  # type: ignore[arg-type]  # a class is hashable
        return record
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole"
        log.warning("%s: %s: %s; it is taken as absent", where, key, first["msg"])
        return None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
