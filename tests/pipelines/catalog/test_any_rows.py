"""Rows of any schema and any values: each is a product or a letter, or the file is refused by name; in every format."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.reliability.rows import ALLOWED, FORMATS, Rows, any_rows, outcome


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=17, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(rows=any_rows())
def test_every_row_of_any_schema_counts_once(format: str, rows: Rows) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = outcome(rows, format, Path(folder))
    assert found.partition(":")[0] in ALLOWED, found
