"""A product's values as JSON can say them: for a server's answers, and for engines that take JSON."""

from __future__ import annotations

import decimal
import math
from typing import Any

import pyarrow as pa


def plain_rows(products: pa.Table) -> list[dict[str, Any]]:
    """Rows of a table as plain values."""
    return [{name: plain_value(value) for name, value in row.items()} for row in products.to_pylist()]


def plain_value(value: Any) -> Any:
    """A value of an Arrow column as JSON has it: decimals as numbers, dates and times as texts; what is neither finite
    nor a text, such as bytes, as null.
    """
    if value is None or isinstance(value, str):  # most are
        return value
    if isinstance(value, decimal.Decimal):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value
    if isinstance(value, list):
        return [plain_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain_value(item) for key, item in value.items()}
    return None if isinstance(value, bytes) else str(value)
