from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.config.command_line import load_job_config
from pipelines.config.validation import ConfigError
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.forecast import Forecast, forecast_run, print_forecast
from pipelines.indexing.progress import summary_lines
from tests.pipelines.indexing.job import arguments, product, run_job, write_catalog


def forecast(folder: Path, *overrides: str) -> Forecast:
    command = load_job_config(arguments(folder, *overrides, "--plan"))
    assert command.flags.plan
    return forecast_run(CatalogSource(command.config, full=command.flags.full))


def test_the_forecast_is_what_the_run_then_does(tmp_path, caplog):
    rows = [product(number) for number in range(200)]
    write_catalog(tmp_path / "catalog", rows)
    first = forecast(tmp_path)
    assert (first.to_embed, first.carried_over, first.deleted, first.seconds) == (200, 0, 0, None)
    assert first.reason == "no version is published yet"
    assert not (tmp_path / "index" / "CURRENT").exists()
    run_job(tmp_path)

    rows[3]["title"] = "small wooden chair"
    rows[4]["product_id"] = None
    del rows[150]
    rows.append(product(901))
    write_catalog(tmp_path / "catalog", rows)
    second = forecast(tmp_path)
    # The nulled id and the removed row are deleted; the changed and the new product are embedded.
    assert (second.to_embed, second.deleted, second.rejected) == (2, 2, 1)
    assert second.products == 199
    assert second.seconds is not None
    assert second.seconds > 0
    result, _ = run_job(tmp_path, "--fetch.proxy", "http://user:S3cret@127.0.0.1:9")
    assert result.totals.embedded == second.to_embed
    assert result.totals.carried_over == second.carried_over + second.complete
    assert "S3cret" not in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"S3cret" in path.read_bytes()]
    full = forecast(tmp_path, "--full")
    assert (full.to_embed, full.reason) == (199, "--full was given")


def test_thumbnails_of_a_catalog_without_images_are_refused_by_the_plan_too(tmp_path):
    write_catalog(tmp_path / "catalog", [product(0)])
    with pytest.raises(ConfigError, match=r"index\.thumbnails: the catalog has no images"):
        forecast(tmp_path, "--index.thumbnails", "true", "--catalog.image_field", "null")


@pytest.mark.parametrize("key", ["gates.canaries", "gates.queries"])
def test_a_file_of_the_gates_that_is_not_there_is_refused_by_the_plan_too(tmp_path, key):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(100)])
    given = arguments(tmp_path, f"--{key}", str(tmp_path / "nothing.yaml"))
    with pytest.raises(ConfigError, match=rf"{key}: .*nothing\.yaml"):
        forecast_run(CatalogSource(load_job_config(given).config))


def test_rows_that_the_condition_leaves_out_are_counted(tmp_path, capsys):
    rows = [product(number) for number in range(120)]
    rows[3]["product_id"] = None
    write_catalog(tmp_path / "catalog", rows)
    where = ("--catalog.where", "price >= 2 and price < 100")
    planned = forecast(tmp_path, *where)
    assert (planned.products, planned.rejected, planned.left_out) == (97, 1, 22)
    result, record = run_job(tmp_path, *where)
    totals = result.totals
    assert (totals.rows_in, totals.products, totals.rejected, totals.left_out) == (120, 97, 1, 22)
    assert totals.rejected_share == 1 / 98
    assert ("left out by catalog.where", "22") in summary_lines(result, record)
    again = forecast(tmp_path, *where)
    assert (again.complete, again.rejected, again.left_out) == (97, 1, 22)
    print_forecast(again, console=Console(width=100, highlight=False))
    assert re.search(r"left out by catalog.where +22\b", capsys.readouterr().out)


def test_ids_that_occur_again_are_counted_as_the_run_counts_them(tmp_path, capsys):
    rows = [product(number) for number in range(118)] + [product(3), product(117)]
    write_catalog(tmp_path / "catalog", rows)
    for night in range(2):
        planned = forecast(tmp_path)
        assert (planned.rows_in, planned.products, planned.rejected, planned.deleted) == (120, 118, 2, 0)
        totals = run_job(tmp_path)[0].totals
        assert (totals.rows_in, totals.products, totals.rejected) == (120, 118, 2)
        assert totals.embedded == planned.to_embed == (0 if night else 118)
        assert totals.carried_over == planned.complete + planned.carried_over == (118 if night else 0)
    rows[118:] = [product(3), product(3), product(200)]
    write_catalog(tmp_path / "catalog", rows)
    planned = forecast(tmp_path)
    assert (planned.products, planned.rejected, planned.to_embed) == (119, 2, 1)
    totals = run_job(tmp_path)[0].totals
    assert (totals.embedded, totals.carried_over) == (1, 118)
    print_forecast(planned, console=Console(width=100, highlight=False))
    printed = capsys.readouterr().out
    assert re.search(r"rows in +121\b", printed)
    assert re.search(r"rejected +2\b", printed)


def test_ids_of_several_columns_by_the_command_line(tmp_path):
    write_catalog(tmp_path / "catalog", [product(1), product(1) | {"price": 2.0}, product(1)])
    planned = forecast(tmp_path, "--catalog.id_field", "[product_id, price]", "--index.factory", "Flat")
    assert (planned.products, planned.rejected) == (2, 1), "the third has the id of the first"
    command = load_job_config(arguments(tmp_path, "--catalog.id_field", "[product_id, price]"))
    assert command.config.catalog.id_fields == ("product_id", "price")


def test_the_forecast_is_printed_in_words(capsys):
    print_forecast(
        Forecast(
            shards=4, shards_complete=1, products=100, complete=20, carried_over=70, to_embed=10, deleted=3, rejected=2,
            seconds=12.4, reason="",
        ),
        console=Console(width=100, highlight=False),
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert re.search(r"to embed +10\b", printed)
    assert "about 12 s at the last run's rate" in printed
    assert "nothing was done" in printed
