"""What a run came to is told truly: by its exit code, and by the first error that it met."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from encoders.errors import EncoderError
from index_builder import IndexReader, publish, storage
from index_builder.errors import StorageError
from pipelines.config.command_line import load_job_config, run_command
from pipelines.indexing import build_steps, catalog_source, job, publish_step, transforms, work_folder
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.shard_files import read_finished_run
from pipelines.indexing.work_folder import WorkLease
from tests.pipelines.indexing.job import arguments, product, write_catalog

FULL = "cannot write /work/x: the disk is full (10 bytes wanted, 0 bytes free); free some space there"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exit-codes")
    write_catalog(folder / "catalog", [product(number) for number in range(120)])
    assert run(folder) == 0
    return folder


def run(folder: Path, *options: str) -> int:
    def main(argv: list[str]) -> int:
        command = load_job_config(arguments(folder, *argv))
        return job.run_and_report(CatalogSource(command.config), command.pipeline_options)

    return run_command(main, options)  # type: ignore[arg-type]


def fail(*args: object, **kwargs: object) -> None:
    raise StorageError(FULL)


STEPS = [
    (catalog_source, "check_encoder", 2),  # before the lease
    (catalog_source, "note_index", 1),  # with the lease, by the main process
    (job, "stage_query_encoder", 1),
    (build_steps, "train", 1),  # by a worker
    (transforms, "publish_build", 1),
    (publish, "prune", 5),  # published by then
    (work_folder, "_remove_outputs", 5),
]


@pytest.mark.parametrize("number", range(len(STEPS)), ids=lambda number: STEPS[number][1])
def test_a_full_disk_is_a_refusal_before_work_and_a_failure_in_it_and_neither_after(shop, monkeypatch, capsys, number):
    room, step, code = STEPS[number]
    options = [
        "--index.seed",
        str(number),
        "--index.reuse_codec",
        "false",
        "--index.keep_versions",
        "9",
    ]  # another index
    before = publish.read_current(str(shop / "index"))
    with monkeypatch.context() as patch:
        patch.setattr(room, step, fail)
        assert run(shop, *options) == code
    said = capsys.readouterr().err
    assert FULL in said
    assert "Traceback" not in said
    assert said.count("error: ") == 1
    assert ("un the same command again to continue" in said) == (code == 1)
    assert (publish.read_current(str(shop / "index")) == before) == (code != 5)
    with WorkLease(str(shop / "work")):  # given back
        pass


def test_the_first_error_is_told_where_it_cannot_be_noted(shop, monkeypatch, capsys):
    def fail_with(*args, **kwargs):
        monkeypatch.setattr(storage, "write_json_atomic", fail)
        raise StorageError("the first thing that went wrong")

    monkeypatch.setattr(build_steps, "train", fail_with)
    assert run(shop, "--index.k", "7") == 1
    storage.remove_tree(str(shop / "work" / "lease"))  # which could not be given back
    assert "error: the first thing that went wrong" in capsys.readouterr().err


def test_a_lost_lease_does_not_hide_what_went_wrong_before_it(shop, monkeypatch, capsys):
    def fail_and_lose(*args, **kwargs):
        storage.remove_tree(str(shop / "work" / "lease"))
        raise StorageError("the first thing that went wrong")

    monkeypatch.setattr(build_steps, "train", fail_and_lose)
    assert run(shop, "--index.k", "8") == 4
    said = capsys.readouterr().err
    assert "its file was removed" in said and "the first thing that went wrong" in said


DAMAGED = [b"", b"{", b"[]", b"null", b"{}", b'{"shards": 5}', b"\xff\xfe", b"[" * 50_000, b'{"name": null, "x": 1}']


RECORDS = ["finished_run.json", "indexes.json", "unused_copies.json", "fit.json", "codec.json", "measured.json"]


def test_damaged_records_never_stop_a_run(shop, caplog):
    first = 1
    for number, name in enumerate(RECORDS):
        for found in (shop / "work").rglob(name):
            found.write_bytes(DAMAGED[(3 * number + first) % len(DAMAGED)])
    for found in (shop / "work" / "embeddings").rglob("*.json"):
        found.write_bytes(DAMAGED[first])
    assert run(shop, "--index.k", "9") == 0
    assert "taken as absent" in caplog.text


def test_fields_that_a_later_program_added_are_left_out(shop):
    for name in ("finished_run.json", "indexes.json", "unused_copies.json", "fit.json"):
        for found in (shop / "work").rglob(name):
            found.write_text(json.dumps(json.loads(found.read_text()) | {"added later": [1]}))
    assert run(shop, "--index.k", "9") == 0
    finished = read_finished_run(str(shop / "work"))
    assert finished is not None and len(finished.shards) == 4


@pytest.mark.parametrize("name", ["merged/00000.faiss", "products.arrow", "weights.safetensors"])
def test_what_was_damaged_after_it_was_made_is_not_published_and_made_again(shop, monkeypatch, capsys, name):
    """By a disk, between the step that made it and the publishing of it."""
    options = ["--index.seed", str(50 + len(name)), "--index.reuse_codec", "false"]
    real = transforms.begin_publishing

    def damage_first(run, build):
        folder = run.query_encoder_uri if name.startswith("weights") else run.path()
        path = next(path for path in Path(folder).rglob(name.rpartition("/")[2]))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return real(run, build)

    before = publish.read_current(str(shop / "index"))
    with monkeypatch.context() as patch:
        patch.setattr(transforms, "begin_publishing", damage_first)
        assert run(shop, *options) == 1
    assert "was damaged after it was made, so nothing is published" in capsys.readouterr().err
    assert publish.read_current(str(shop / "index")) == before
    assert run(shop, *options) == 0
    reader = IndexReader.open(str(shop / "index"), verify="full")
    assert reader.manifest.version != before
    assert publish.damaged_files(str(shop / "index"), reader.manifest.version) == []


def test_a_query_encoder_that_does_not_run_is_not_published(shop, monkeypatch, capsys):
    def broken(uri):
        raise EncoderError("weights.safetensors: expected other shapes")

    monkeypatch.setattr(publish_step.encoders, "load_query_encoder", broken)
    before = publish.read_current(str(shop / "index"))
    assert run(shop, "--index.seed", "77", "--index.reuse_codec", "false") == 1
    assert "expected other shapes" in capsys.readouterr().err
    assert publish.read_current(str(shop / "index")) == before
