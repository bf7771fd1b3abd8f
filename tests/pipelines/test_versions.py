from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from index_builder import IndexReader, StorageError, publish, storage
from pipelines import versions
from pipelines.config.command_line import run_command
from pipelines.indexing import product_groups
from pipelines.published.version_diff import compare_versions
from tests.pipelines.indexing.job import product, run_job, write_catalog


@pytest.fixture(scope="module")
def three_nights(tmp_path_factory) -> tuple[Path, list[str]]:
    """An index with two good versions, the products of the first in parts as those of a large catalog are, and one that
    a gate holds back; tests that change it take a copy.
    """
    folder = tmp_path_factory.mktemp("versions")
    rows = [product(number) for number in range(120)]
    write_catalog(folder / "catalog", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product_groups, "SHARDS_OF_GROUP", 1)
        names = [run_job(folder)[0].version]
    rows[4]["price"] = 999.0
    rows[5]["title"] = None
    rows[6]["price"] = None
    del rows[100:103]
    rows += [product(900), product(901)]
    write_catalog(folder / "catalog", rows)
    names.append(run_job(folder)[0].version)
    write_catalog(folder / "catalog", rows[:60])
    held, _ = run_job(folder, "--gates.max_row_change", "0.2")
    assert held.status == "held"
    return folder / "index", [*names, held.version]


@pytest.fixture
def index(three_nights, tmp_path) -> Path:
    return Path(shutil.copytree(three_nights[0], tmp_path / "index"))


def run(index: Path, *arguments: str) -> int:
    return run_command(versions.main, [*arguments, "--index", str(index)])


def test_the_list_marks_the_published_and_the_held(three_nights, capsys):
    index, names = three_nights
    assert run(index, "list") == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if "Z-" in line]
    assert [name in line for name, line in zip(names[::-1], printed, strict=True)] == [True] * 3
    assert ["published" in line for line in printed] == [False, True, False]
    assert "held by a gate" in printed[0]
    assert run(index, "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(entry["version"], entry["products"], entry["published"]) for entry in listed] == [
        (names[0], 120, False),
        (names[1], 119, True),
        (names[2], 60, False),
    ]
    assert listed[2]["failed_gates"][0].startswith("gates.max_row_change")


def test_show_tells_what_a_version_is(three_nights, capsys):
    index, names = three_nights
    assert run(index, "show") == 0
    printed, noted = capsys.readouterr()
    assert f"{names[1]} (published)" in printed
    assert noted == f"note: {names[2]} is newer (held by a gate): name it to see it\n"
    assert "products.arrow" in printed
    assert run(index, "show", names[2]) == 0
    assert "gate failed: gates.max_row_change" in capsys.readouterr().out
    assert run(index, "show", names[0], "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["version"], shown["schema_version"]) == (names[0], 4)
    assert [file["path"] for file in shown["files"] if "products" in file["path"]] == [
        f"products-0000{number}-of-00004.arrow" for number in range(4)
    ]
    products = IndexReader.open(str(index), names[0], verify="full").products
    assert products["product_id"].to_pylist() == [f"p{number:05d}" for number in range(120)]


def test_show_verify_finds_a_damaged_and_a_missing_file(index, three_nights, capsys):
    assert run(index, "show", "--verify") == 0
    folder = index / "versions" / three_nights[1][1]
    damaged = bytearray((folder / "products.arrow").read_bytes())
    damaged[-20] ^= 1
    (folder / "products.arrow").write_bytes(damaged)
    (folder / "rejected.parquet").unlink()
    capsys.readouterr()
    assert run(index, "show", "--verify") == 1
    said = capsys.readouterr().err
    assert "products.arrow: expected" in said
    assert "rejected.parquet: expected" in said
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 2


def test_the_diff_counts_products_and_values(three_nights, capsys):
    index, names = three_nights
    diff = compare_versions(str(index), names[0], names[1])
    assert (diff.added, diff.removed, diff.kept) == (2, 3, 117)
    assert diff.added_examples == ("p00900", "p00901")
    assert diff.removed_examples == ("p00100", "p00101", "p00102")
    assert diff.changed == {"price": 2, "title": 1}
    assert (diff.columns_added, diff.columns_removed) == ((), ())
    assert run(index, "diff") == 0
    printed = capsys.readouterr().out
    assert "2 products added: p00900, p00901" in printed
    assert "3 products removed: p00100, p00101, p00102" in printed
    assert "price of 2, title of 1" in printed
    assert run(index, "diff", names[1], names[0], "--json") == 0
    back = json.loads(capsys.readouterr().out)
    assert (back["added"], back["removed"], back["old"]["version"]) == (3, 2, names[1])


def test_a_version_does_not_differ_from_itself(three_nights, capsys):
    index, names = three_nights
    diff = compare_versions(str(index), names[1], names[1])
    assert (diff.added, diff.removed, diff.kept, diff.changed) == (0, 0, 119, {})


def test_a_column_that_comes_or_goes_is_named(tmp_path):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(80)])
    first, _ = run_job(tmp_path)
    second, _ = run_job(tmp_path, "--catalog.display_fields", "[title]", "--catalog.filter_fields", "[]")
    diff = compare_versions(str(tmp_path / "index"), first.version, second.version)
    assert (diff.columns_added, diff.columns_removed, diff.changed) == ((), ("price",), {})


def test_rollback_publishes_the_version_before_and_readers_follow(index, three_nights, capsys):
    first, second, held = three_nights[1]
    reader = IndexReader.open(str(index))
    assert run(index, "rollback") == 0
    assert first in capsys.readouterr().out
    assert publish.read_current(str(index)) == first
    assert run(index, "list") == 0
    listed = {name: line for line in capsys.readouterr().out.splitlines() for name in (first, second) if name in line}
    assert ("published" in listed[first], "rolled back" in listed[second]) == (True, True)
    assert run(index, "show", second) == 0
    assert f"{second} (rolled back)" in capsys.readouterr().out
    assert run(index, "list", "--json") == 0
    assert [entry["rolled_back"] for entry in json.loads(capsys.readouterr().out)] == [False, True, False]
    assert reader.refresh()
    assert reader.products.num_rows == 120
    assert run(index, "rollback", second) == 0
    assert publish.read_current(str(index)) == second
    assert run(index, "rollback", "20200101T000000Z-000000000000") == 2
    assert "no complete version" in capsys.readouterr().err
    assert publish.read_current(str(index)) == second
    assert run(index, "rollback", held) == 0, "who names a held version means it"


def test_there_is_nothing_before_the_first(index, three_nights, capsys):
    assert run(index, "rollback", three_nights[1][0]) == 0
    assert run(index, "rollback") == 2
    assert "no version before" in capsys.readouterr().err


def test_prune_keeps_the_published_one(index, three_nights, capsys):
    first, second, held = three_nights[1]
    assert run(index, "prune", "--keep", "0") == 2
    assert run(index, "prune", "--keep", "1") == 0
    assert publish.list_versions(str(index)) == (second, held)
    assert f"removed 1 version, 2 left\n  {first}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command", [["list"], ["show"], ["diff"], ["rejected"], ["rollback"], ["prune", "--keep", "1"]]
)
def test_an_address_without_versions_is_told(tmp_path, capsys, command):
    assert run(tmp_path / "nothing", *command) == 2
    printed, said = capsys.readouterr()
    assert "nothing: expected" in said
    assert len(said.splitlines()) == 1
    assert not printed


@pytest.mark.parametrize("address", ["", "  "])
def test_an_empty_address_is_named(capsys, address):
    with pytest.raises(SystemExit) as stopped:
        versions.main(["list", "--index", address])
    assert stopped.value.code == 2
    assert "argument --index: expected a path or URI, found " in capsys.readouterr().err


def test_before_anything_is_published_the_held_version_is_shown(index, three_nights, capsys):
    """A first run that a gate holds back is the one whose letters are wanted."""
    (index / "CURRENT").unlink()
    held = three_nights[1][2]
    assert run(index, "show") == 0
    printed = capsys.readouterr()
    assert f"{held} (held by a gate)" in printed.out
    assert not printed.err
    assert run(index, "rejected") == 0
    assert f"{held} (held by a gate)" in capsys.readouterr().out
    assert run(index, "rollback") == 2
    assert f"{held} is there, but was not published" in capsys.readouterr().err
    assert run(index, "rollback", held) == 0
    assert f"published: {held} (before: none)" in capsys.readouterr().out
    assert publish.read_current(str(index)) == held


def test_the_letters_are_those_of_the_newest_version(index, three_nights, capsys):
    first, second, held = three_nights[1]
    assert run(index, "rejected") == 0
    assert f"{held} (held by a gate)" in capsys.readouterr().out
    assert run(index, "rejected", "--json", second) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["version"], found["state"]) == (second, "published")
    assert run(index, "rejected", first) == 0
    assert f"{first} (not published)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "broken"),
    [
        (["rollback"], "write_bytes_atomic"),
        (["approve", "HELD"], "write_bytes_atomic"),
        (["hold", "HELD", "--reason", "no"], "write_bytes_atomic"),
        (["tag", "spring"], "write_bytes_atomic"),
        (["prune", "--keep", "1"], "remove_file"),
    ],
)
def test_what_fails_once_it_has_begun_ends_with_1(index, three_nights, capsys, monkeypatch, arguments, broken):
    def full(uri: str, *others: object) -> None:
        raise StorageError(f"{uri}: cannot be written: No space left on device")

    _, second, held = three_nights[1]
    monkeypatch.setattr(storage, broken, full)
    given = [held if each == "HELD" else each for each in arguments]
    assert run(index, *given, *([second] if arguments[0] == "tag" else [])) == 1
    said = capsys.readouterr().err
    assert "error: " in said
    assert said.endswith("No space left on device\n")


@pytest.mark.parametrize("arguments", [["tag", "No Tag"], ["prune", "--keep", "0"], ["untag", "spring"]])
def test_what_is_refused_ends_with_2(index, three_nights, capsys, arguments):
    assert run(index, *arguments, *([three_nights[1][0]] if arguments[0] == "tag" else [])) == 2
    assert "expected" in (said := capsys.readouterr().err) or "no version has the tag" in said
