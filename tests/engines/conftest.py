"""The catalog and the bytes that every engine is measured by."""

from __future__ import annotations

import pytest

from pipelines.demo_catalog import draw_named_catalog
from tests.engines.jobs import PRODUCTS, start_night


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A drawn catalog that the engines share."""
    return draw_named_catalog(f"demo://{PRODUCTS}", str(tmp_path_factory.mktemp("drawn")))


@pytest.fixture(scope="session")
def direct_files(tmp_path_factory: pytest.TempPathFactory, catalog: str) -> dict[str, str]:
    """The sha256 of the version's files, as the direct runner makes them."""
    night = start_night(tmp_path_factory.mktemp("direct") / "night", catalog, ["--runner=DirectRunner"])
    night.finish()
    return night.files()
