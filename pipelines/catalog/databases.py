"""SQL: the rows of a query become objects, a value of each kind in its way.

Any database that SQLAlchemy has a dialect for (extra `sql`, and the database's driver); the result is streamed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator
from datetime import date, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

from pipelines.catalog.config import CatalogError, without_login

if TYPE_CHECKING:
    import sqlalchemy

ROWS_AT_ONCE = 1000

_PACKAGES = {  # of modules that are called otherwise
    "MySQLdb": "mysqlclient",
    "psycopg2": "psycopg2-binary",
}
_OTHER_DRIVERS = {
    "postgres": "postgresql+psycopg://",
    "postgresql": "postgresql+psycopg://",
    "mysql": "mysql+pymysql://",
    "oracle": "oracle+oracledb://",
}


def iter_query(url: str, query: str, *, wanted: Collection[str], image_field: str | None) -> Iterator[bytes]:
    """Each row of a query as a line of JSON.

    Whole numbers stay whole, decimals become numbers, days, times and UUIDs text, JSON and arrays lists and objects,
    and bytes base64 text in the image column, text elsewhere.

    Args:
        url: SQLAlchemy's, such as `postgresql+psycopg://USER:PASSWORD@HOST/DATABASE`.
        query: SQL in the database's own words.
        wanted: Columns that must not be there twice.
        image_field: Column of pictures, if there is one.

    Raises:
        CatalogError: no such database, driver, table or column, a query without rows, or a wanted column twice. No
            message holds the password.
    """
    with _one_line_errors(url), _connect(url) as connection:
        # The driver's own SQL as it stands: no `:name` or `%` in it is a parameter.
        result = connection.exec_driver_sql(query)
        if not result.returns_rows:
            raise CatalogError("catalog.query: expected SQL that gives rows, such as SELECT; found one that gives none")
        names = [str(name) for name in result.keys()]  # noqa: SIM118 - no dict
        for each in wanted:
            if names.count(each) > 1:
                raise CatalogError(
                    f"catalog.query: expected one column {each!r}, found {names.count(each)}; name one AS another"
                )
        images = [name in (image_field or "").split("|") for name in names]
        for rows in result.partitions(ROWS_AT_ONCE):
            for row in rows:
                values = map(_as_json, row, images)
                yield json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False, default=_inside).encode(
                    "utf-8", "surrogatepass"
                )


@contextlib.contextmanager
def _connect(url: str) -> Iterator[sqlalchemy.Connection]:
    import sqlalchemy

    address = sqlalchemy.make_url(url)
    file = address.database
    is_file = address.get_backend_name() == "sqlite" and file and not file.startswith((":memory:", "file:"))
    if is_file and not os.path.isfile(str(file)):  # SQLite would make it
        raise CatalogError(f"catalog.uri: expected a SQLite database at {file}, found nothing there")
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)
    try:
        with engine.connect() as connection:
            yield connection.execution_options(stream_results=True, max_row_buffer=ROWS_AT_ONCE, no_parameters=True)
    finally:
        engine.dispose()


@contextlib.contextmanager
def _one_line_errors(url: str) -> Iterator[None]:
    """Turns the errors of the library and of the drivers into a `CatalogError`."""
    shown = without_login(url)
    try:
        import sqlalchemy.exc as errors
    except ImportError as error:
        raise CatalogError(
            f"catalog.query: a database needs the extra `sql`; in the clone: pip install -e '.[sql]' ({error})"
        ) from error
    try:
        yield
    except errors.NoSuchModuleError as error:
        raise CatalogError(
            f"catalog.uri: expected a database that SQLAlchemy knows, found {shown}. {_other_driver(url)}"
            "Its page on dialects names the package for each other database."
        ) from error
    except errors.ArgumentError as error:
        raise CatalogError(
            f"catalog.uri: expected an SQLAlchemy URL such as postgresql+psycopg://USER@HOST/DATABASE, found {shown}"
        ) from error
    except ImportError as error:
        module = (error.name or "").partition(".")[0]
        package = _PACKAGES.get(module, module) if module else "psycopg[binary]"
        raise CatalogError(
            f"catalog.uri: {shown} needs its driver: pip install {package} ({_first_line(error, url)}). "
            f"{_other_driver(url)}"
        ) from error
    except (errors.SQLAlchemyError, OSError, ValueError) as error:
        cause = getattr(error, "orig", None) or error
        raise CatalogError(
            f"catalog.query: the database at {shown} says: {type(cause).__name__}: {_first_line(cause, url)}"
        ) from None


def _other_driver(url: str) -> str:
    other = _OTHER_DRIVERS.get(url.partition("://")[0])
    return f"Or write {other} for another driver. " if other else ""


def _first_line(error: BaseException, url: str) -> str:
    """An error in one line, without the password, in whichever way it is written there."""
    text = " ".join(str(error).split())
    found = re.match(r"[^:]+://[^:/?#@]*:(.*)@", url)
    for secret in {found[1], unquote_plus(found[1])} if found and found[1] else ():
        text = text.replace(secret, "***")
    return text.replace(url, without_login(url))


def _inside(value: Any) -> Any:
    """A value that JSON does not have, also inside a list or an object."""
    converted = _as_json(value, is_image=False)
    return str(value) if converted is value else converted


def _as_json(value: Any, is_image: bool) -> Any:
    """A value as JSON has it, or itself."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            return None
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        if is_image:
            return base64.b64encode(data).decode()
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return data.hex()
    return value
