"""Where the engines' jars lie, and the catalog and the bytes that every engine is measured by."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.demo_catalog import draw_named_catalog
from tests.engines.jobs import PRODUCTS, start_night
from tests.engines.processes import PROJECT_ROOT


@pytest.fixture(scope="session")
def jars() -> Callable[..., Path]:
    """Gives the folder that holds the engines' jars, by the names of its folders; skips where one is missing."""
    folder = Path(os.environ.get("SHELFMARK_ENGINES", PROJECT_ROOT / ".engines"))

    def found(*names: str) -> Path:
        if shutil.which("java") is None:
            pytest.skip("no Java on this machine: the engines' tests need 17 or newer")
        missing = [name for name in names if not (folder / name / ".complete").exists()]
        if missing:
            pytest.skip(f"no {' and '.join(missing)} in {folder}: `make engines` fetches the jars")
        return folder

    return found


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A drawn catalog that the engines share."""
    return draw_named_catalog(f"demo://{PRODUCTS}", str(tmp_path_factory.mktemp("drawn")))


@pytest.fixture(scope="session")
def direct_files(tmp_path_factory: pytest.TempPathFactory, catalog: str) -> dict[str, str]:
    """The sha256 of the version's files, as the direct runner makes them. Ask for the engine first: it may skip."""
    night = start_night(tmp_path_factory.mktemp("direct") / "night", catalog, ["--runner=DirectRunner"])
    night.finish()
    return night.files()
