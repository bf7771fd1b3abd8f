from __future__ import annotations

from dataclasses import replace

import pytest

from encoders import EncoderConfig, check_encoder
from pipelines.catalog.config import USUAL_SHARD_ROWS, CatalogConfig, CatalogConfigError
from pipelines.config.command_line import load_job_config
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.shard_files import FinishedRun
from pipelines.indexing.shard_size import (
    LEAST_ROWS,
    MOST_ROWS,
    MOST_ROWS_WITH_IMAGES,
    LastSize,
    choose_size,
    first_guess,
    read_last_size,
)
from tests.pipelines.indexing.job import arguments, product, run_job, write_catalog


@pytest.mark.parametrize(
    ("seconds", "rows"), [(0.1, 512), (0.058, 1024), (0.004, 8192), (1e-6, MOST_ROWS), (5.0, LEAST_ROWS)]
)
def test_a_shard_is_at_most_a_minute_of_work_within_bounds(seconds, rows):
    assert choose_size(seconds, None, with_images=False) == rows
    assert choose_size(seconds, None, with_images=True) == min(rows, MOST_ROWS_WITH_IMAGES)


def test_measured_seconds_go_before_a_guess_and_a_size_stays_until_it_is_far_off():
    guess = 0.1
    for seconds, rows in ((0.005, 4096), (0.05, 4096), (0.004, 4096), (0.06, 512), (0.0009, 65_536)):
        assert choose_size(guess, LastSize(rows=4096, seconds=seconds), with_images=False) == rows
    # A night in which nothing was embedded says nothing of the towers.
    assert choose_size(guess, LastSize(rows=8192, seconds=None), with_images=False) == 8192
    assert choose_size(guess, LastSize(rows=30, seconds=None), with_images=False) == LEAST_ROWS, "set by hand before"


def test_the_last_size_is_that_of_the_finished_run_and_its_faster_shards(tmp_path):
    record = RunRecord(uri=str(tmp_path / "runs" / "one"))
    run = FinishedRun(name="one", shards=(), encoder="e")
    assert read_last_size(str(tmp_path), run, "e") is None, "its record is gone"
    record.report("plan", "all", shard_rows=1024)
    carried = {"skipped": False, "products": 100, "embedded": 1, "seconds": 0.1}
    record.report("embed", "000000", **carried)
    assert read_last_size(str(tmp_path), run, "e") == LastSize(rows=1024, seconds=None)
    for number, seconds in enumerate((8.0, 1.0, 1.0, 9.0, 30.0), start=1):
        record.report("embed", f"{number:06d}", skipped=False, products=100, embedded=100, seconds=seconds)
    assert read_last_size(str(tmp_path), run, "e") == LastSize(rows=1024, seconds=0.01)
    assert read_last_size(str(tmp_path), run, "another") is None
    assert read_last_size(str(tmp_path), None, "e") is None


def test_the_first_guess_goes_by_the_encoder():
    demo = EncoderConfig(uri="package://encoders/pretrained/demo")
    encoder = check_encoder(demo)
    texts = first_guess(demo, encoder, images_per_product=1, has_images=False)
    images = first_guess(demo, encoder, images_per_product=1, has_images=True)
    assert 1e-4 < texts < images < 0.02  # measured: 0.0025 CPU seconds
    assert first_guess(demo, replace(encoder, precision="bfloat16"), images_per_product=1, has_images=True) < images


def test_a_size_is_auto_or_a_number():
    assert CatalogConfig(uri="a").rows_per_shard == USUAL_SHARD_ROWS
    assert CatalogConfig(uri="a", shard_rows=7).rows_per_shard == 7
    with pytest.raises(CatalogConfigError, match="shard_rows: expected 'auto' or a whole number"):
        CatalogConfig(uri="a", shard_rows=0)


def test_another_size_embeds_nothing_again_and_auto_keeps_the_names_of_shards(tmp_path):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(120)])
    first, _ = run_job(tmp_path, "--catalog.shard_rows", "auto")
    assert first.totals.shards == 1, "120 products are far less than a minute"
    cut, _ = run_job(tmp_path, "--catalog.shard_rows", "30")
    assert (cut.totals.shards, cut.totals.embedded, cut.totals.carried_over) == (4, 0, 120)

    def keys(rows: str) -> list[str]:
        source = CatalogSource(load_job_config(arguments(tmp_path, "--catalog.shard_rows", rows)).config, full=True)
        source.check()
        return [task.files.key for task in source.plan().tasks]

    # Whatever it comes to: the same rows in a shard have the same name, which is that of the usual size.
    assert keys("auto") == keys(str(USUAL_SHARD_ROWS))
