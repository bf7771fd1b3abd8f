"""A small shop that is indexed twice by one encoder and once by another, its server, and Chromium to look at it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from index_builder import storage
from pipelines.config.command_line import load_job_config
from pipelines.demo_catalog import draw_named_catalog
from pipelines.indexing import build_steps, job
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.publish_step import RunResult
from pipelines.server.config import ServerConfig, ServerJobConfig
from tests.encoders.tiny import save_tiny_encoder
from tests.pipelines.server.on_thread import served

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PRODUCTS = 160
HOSTILE = '"><img src=x onerror="window.broken=1"><script>window.broken=1</script>{{ 7 * 7 }} mug'
SLOW = 60_000
"""Milliseconds that a page may take on a busy machine before a test gives up."""


@dataclass(frozen=True)
class Shop:
    """What is indexed: rows of the second night, and the versions of both."""

    folder: Path
    rows: list[dict]
    nights: tuple[RunResult, RunResult]

    @property
    def index(self) -> str:
        return str(self.folder / "index")

    def picture(self, row: int) -> dict:
        """A product's picture as a file that is uploaded."""
        return {"name": "picture.jpg", "mimeType": "image/jpeg", "buffer": self.rows[row]["image"]["bytes"]}


def night(folder: Path, rows: list[dict], index: str, *options: str) -> RunResult:
    """Writes the catalog and runs the job over it."""
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("product_id", "title", "description", "kind", "family")),
            ("price", pa.float64()),
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ]
    )
    (folder / "catalog").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "catalog" / "part.parquet")
    given = [f"--catalog.uri={folder / 'catalog'}", f"--work.uri={folder / index}-work", "--index.factory=Flat"]
    given += [f"--index.uri={folder / index}", "--index.thumbnails=64", "--catalog.group_field=family"]
    given += ["--catalog.display_fields=[title, kind, price, family]", *options]
    command = load_job_config(["--config", "demo", *given])
    return job.run_job(CatalogSource(command.config), command.pipeline_options)[0]


def serving(**settings) -> AbstractContextManager[str]:
    """A server with settings of its own; gives its address."""
    config = ServerConfig(**{"timeout_seconds": 300.0, "refresh_seconds": 0.1} | settings)
    return served(ServerJobConfig(server=config))


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium, while tests of this folder run: Playwright holds the thread's event loop, which others want then."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def shop(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Two nights of drawn products: in the second some are new, some gone, prices of a quarter missing, and texts are
    hostile. A third index holds them by another encoder.
    """
    folder = tmp_path_factory.mktemp("shop")
    drawn = pq.read_table(draw_named_catalog(f"demo://{PRODUCTS}", str(folder / "drawn"))).to_pylist()
    rows = [row | {"family": f"{row['kind']} {number // 3 % 9}"} for number, row in enumerate(drawn)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "_sync", lambda path: None)
        patch.setattr(build_steps, "measure_resident_bytes", lambda *arguments, **settings: 1)
        first = night(folder, rows[: PRODUCTS - 15], "index")
        for row in rows[40:80]:
            row["price"] = None
        rows = rows[8:]
        rows[0]["title"] = rows[0]["kind"] = HOSTILE
        second = night(folder, rows, "index")
        encoder = save_tiny_encoder(folder / "encoder", model="3tmm")
        night(folder, rows, "other", f"--encoder.uri={encoder.uri}")
    return Shop(folder, rows, (first, second))


@pytest.fixture(scope="package")
def address(shop: Shop) -> Iterator[str]:
    with serving(indexes={"main": shop.index, "other": str(shop.folder / "other")}) as url:
        yield url


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of its own for each test, of the settings that `@pytest.mark.parametrize("page", ..., indirect=True)`
    gives; an error of its script fails the test.
    """
    context = browser.new_context(**getattr(request, "param", {}))
    context.set_default_timeout(SLOW)
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    broken = page.evaluate("window.broken")
    context.close()
    assert not errors
    assert broken is None, "a text of the catalog was run as a script"


def serious_faults(page: Page) -> list[str]:
    """What axe-core finds on a page as it stands, of the impacts serious and critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {fault['help']}: {node['target']}: {node.get('failureSummary', '')}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]
