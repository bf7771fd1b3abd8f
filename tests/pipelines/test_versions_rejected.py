"""A person sees what was rejected: in the summary of the run, and by `python -m pipelines.versions rejected`."""

from __future__ import annotations

import codecs
import csv
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder import publish
from pipelines import versions
from pipelines.config.command_line import run_command
from pipelines.indexing.progress import summary_lines
from pipelines.indexing.publish_step import RunResult
from pipelines.indexing.run_record import RunRecord
from pipelines.published.letters import without_formulas
from tests.pipelines.indexing.job import product, run_job, write_catalog

OPEN = ["--gates.max_rejected_share", "1", "--gates.max_degraded_share", "null"]


@pytest.fixture(scope="module")
def dirty(tmp_path_factory) -> tuple[Path, RunResult, RunRecord]:
    """A CSV catalog with 40 good rows and some of each kind of bad one, its pictures by name."""
    folder = tmp_path_factory.mktemp("dirty")
    (folder / "pictures").mkdir()
    rows = []
    for number in range(40):
        good = product(number)
        (folder / "pictures" / f"{number}.png").write_bytes(good["image"]["bytes"])
        rows.append([good["product_id"], good["title"], f"{number}.png", str(good["price"])])
    (folder / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    rows[3:3] = [["", "no id here", "1.png", "1"]]  # line 5
    rows[10:10] = [["empty", "", "", "1"]]  # line 12
    rows += [
        ["=cmd()", "red wooden chair", "gone.png", "1"],  # line 44
        ["broken", "blue metal lamp", "broken.png", "1"],  # line 45
        ["dear", "small glass table", "2.png", "dear"],  # line 46
        ["p00001", "the same id again", "1.png", "1"],  # line 47
    ]
    lines = ["product_id,title,image,price", *(",".join(row) for row in rows)]
    (folder / "shop.csv").write_text("\n".join(lines) + "\n")
    result, record = run_job(
        folder,
        *("--catalog.uri", str(folder / "shop.csv"), "--catalog.image_root", str(folder / "pictures")),
        *("--catalog.display_fields", "[price]", "--catalog.column_types", "{price: float64}", *OPEN),
    )
    return folder, result, record


def rejected(dirty, *arguments: str) -> int:
    return run_command(versions.main, ["rejected", "--index", str(dirty[0] / "index"), *arguments])


def test_every_letter_has_place_id_title_reason_and_picture(dirty, capsys):
    assert rejected(dirty, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    seen = {
        (row["file"], row["unit"], row["number"], row["product_id"], row["title"], row["reason"], row["picture"])
        for row in found["letters"]
    }
    assert seen == {
        ("shop.csv", "line", 5, "", "no id here", "missing_id", None),
        ("shop.csv", "line", 12, "empty", None, "empty_product", None),
        ("shop.csv", "line", 44, "=cmd()", "red wooden chair", "picture_missing", "gone.png"),
        ("shop.csv", "line", 45, "broken", "blue metal lamp", found["letters"][3]["reason"], "broken.png"),
        ("shop.csv", "line", 46, "dear", "small glass table", "field_type_mismatch", None),
        ("shop.csv", "line", 47, "p00001", "the same id again", "duplicate_id", None),
    }
    assert sum(found["by_reason"].values()) == 6
    assert [row["number"] for row in found["letters"]] == [5, 12, 44, 45, 46, 47], "in the order of the file"
    (again,) = [row for row in found["letters"] if row["reason"] == "duplicate_id"]
    assert again["detail"] == "shop.csv, line 3 has the same id; that one is indexed"


def test_the_table_counts_by_reason_and_shows_some(dirty, capsys):
    assert rejected(dirty) == 0
    printed = capsys.readouterr().out
    assert f"6 dead letters of {dirty[1].version}" in printed
    assert "6 of 6 of shop.csv" in printed
    for said in ("line 44", "=cmd()", "red wooden chair", "picture_missing", "gone.png", "no file at"):
        assert said in printed
    assert rejected(dirty, "-n", "1", "--outcome", "degraded") == 0
    printed = capsys.readouterr().out
    assert "1 of 3 of shop.csv (-n N shows more)" in printed
    assert rejected(dirty, dirty[1].version, "--reason", "missing_id") == 0
    printed = capsys.readouterr().out
    assert "1 of 1 of shop.csv" in printed
    assert "empty_product" in printed, "the counts are of all"
    assert "line 12" not in printed


def test_a_spreadsheet_gets_all_columns_and_runs_no_formula(dirty, capsysbinary):
    assert rejected(dirty, "--csv") == 0
    printed = capsysbinary.readouterr().out
    assert printed.startswith(codecs.BOM_UTF8)
    rows = list(csv.DictReader(io.StringIO(printed.decode("utf-8-sig"))))
    assert len(rows) == 6
    assert {row["product_id"] for row in rows} == {"", "empty", "'=cmd()", "broken", "dear", "p00001"}
    assert {row["number"] for row in rows} == {"5", "12", "44", "45", "46", "47"}
    assert rejected(dirty, "--csv", "--reason", "missing_id", "-n", "9") == 0
    assert len(capsysbinary.readouterr().out.splitlines()) == 2


def test_what_a_spreadsheet_would_run_gets_an_apostrophe():
    texts = ["=1", "+1", "-1", "@a", "\t=1", "\r=1", "＝1", "a=1", "", None, "'=1", " =1"]
    table = pa.table({"text": pa.array(texts, pa.string()), "number": pa.array(range(len(texts)), pa.int64())})
    safe = without_formulas(table)
    assert safe["text"].to_pylist() == [*(f"'{text}" for text in texts[:7]), *texts[7:]]
    assert safe["number"].equals(table["number"])


def test_an_unknown_reason_is_refused_with_the_known_ones(dirty, capsys):
    assert rejected(dirty, "--reason", "picture_mising") == 2
    said = capsys.readouterr().err
    assert "Did you mean 'picture_missing'?" in said
    assert "'duplicate_id'" in said
    assert rejected(dirty, "--reason", "host_not_allowed") == 0, "known, though no letter has it"
    with pytest.raises(SystemExit):
        versions.main(["rejected", "--index", "x", "-n", "-1"])


def test_versions_without_letters_say_so(dirty, tmp_path, capsys):
    index = Path(shutil.copytree(dirty[0] / "index", tmp_path / "index"))
    (version,) = publish.list_versions(str(index))
    manifest = index / "versions" / version / "manifest.json"
    values = json.loads(manifest.read_text())
    del values["manifest_sha256"]  # nor had the manifests of then such a hash
    values["files"] = [entry for entry in values["files"] if entry["path"] != "rejected.parquet"]
    manifest.write_text(json.dumps(values))
    assert run_command(versions.main, ["rejected", "--index", str(index)]) == 0
    assert "has no rejected.parquet" in capsys.readouterr().err
    golden = Path(__file__).parent.parent / "index_builder" / "golden" / "version_1" / "index"
    assert run_command(versions.main, ["rejected", "--index", str(golden)]) == 0
    assert "has no rejected.parquet" in capsys.readouterr().err


def test_letters_of_an_older_shelfmark_are_shown(dirty, tmp_path, capsys):
    """They had five columns, with the place in the detail."""
    index = Path(shutil.copytree(dirty[0] / "index", tmp_path / "index"))
    (version,) = publish.list_versions(str(index))
    path = index / "versions" / version / "rejected.parquet"
    pq.write_table(pq.read_table(path).select(["product_id", "outcome", "stage", "reason", "detail"]), path)
    assert run_command(versions.main, ["rejected", "--index", str(index)]) == 0
    printed = capsys.readouterr().out
    assert "6 of 6" in printed
    assert "picture_missing" in printed


def test_the_summary_names_the_file_an_example_of_each_reason_and_the_command(dirty):
    folder, result, record = dirty
    lines = summary_lines(result, record)
    said = dict(lines)
    assert said["rejected: missing_id"] == "1, such as shop.csv, line 5: 'no id here': no id"
    assert said["degraded: picture_missing"].startswith(
        "1, such as shop.csv, line 44: =cmd() 'red wooden chair': gone.png: no file at"
    )
    assert said["dead letters"] == f"{folder}/index/versions/{result.version}/rejected.parquet"
    command = lines[[name for name, _ in lines].index("dead letters") + 1][1]
    assert command == f"python -m pipelines.versions rejected --index {folder}/index"
    assert run_command(versions.main, command.split()[3:]) == 0


def test_a_clean_run_names_no_letters(tmp_path, capsys):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(120)])
    result, record = run_job(tmp_path)
    assert "dead letters" not in dict(summary_lines(result, record))
    assert run_command(versions.main, ["rejected", "--index", str(tmp_path / "index")]) == 0
    assert "no row was rejected, and no product degraded" in capsys.readouterr().out
