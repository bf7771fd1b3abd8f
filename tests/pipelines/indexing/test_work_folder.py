from __future__ import annotations

import gzip
import json
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from index_builder import publish, storage
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.plan import plan_catalog
from pipelines.config.command_line import load_job_config
from pipelines.indexing import job, numbering_steps, publish_step, work_folder
from pipelines.indexing.catalog_source import CatalogSource
from pipelines.indexing.run_record import RunRecord
from pipelines.indexing.work_folder import (
    RUNS_KEPT,
    HeldLease,
    LeaseHeldError,
    LeaseLostError,
    LeaseRecord,
    WorkLease,
    clean_work,
    note_index,
    noted_indexes,
)
from tests.index_builder.builds import published
from tests.pipelines.indexing.job import arguments, product, run_job, write_catalog

ELSEWHERE = LeaseRecord(
    token="t", host="elsewhere", pid=1, user="someone", machine="m", namespace="n", process_started="5", beats=7
)
"""What a run on another machine writes."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds instead of minutes."""
    monkeypatch.setattr(work_folder, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(work_folder, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(work_folder, "SILENT_SECONDS", 0.6)
    monkeypatch.setattr(work_folder, "CONTAINER_SILENT_SECONDS", 0.3)
    monkeypatch.setattr(work_folder, "SETTLE_SECONDS", 0.0)


@contextmanager
def patient() -> Iterator[None]:
    """As long as a holder gets outside tests: what lives has the time to show it, however busy this machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work_folder, "SILENT_SECONDS", 120.0)
        patch.setattr(work_folder, "CONTAINER_SILENT_SECONDS", 120.0)
        yield


@contextmanager
def beating(work: Path | str, record: LeaseRecord, number: int = 1) -> Iterator[None]:
    """Lets the lease of a run that cannot be seen from here grow for the length of a block."""
    stop = threading.Event()

    def beat() -> None:
        beats = 0
        while not stop.wait(0.05):
            beats += 1
            write_lease(work, replace(record, beats=beats, uptime_seconds=time.monotonic()), number)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with patient():
            yield
    finally:
        stop.set()
        thread.join()


def write_lease(work: Path | str, record: LeaseRecord, number: int = 1) -> None:
    storage.write_json_atomic(storage.join(str(work), "lease", f"{number:08d}.json"), asdict(record))


def read_leases(work: Path) -> dict[str, LeaseRecord]:
    return {path.name: LeaseRecord(**json.loads(path.read_text())) for path in (work / "lease").iterdir()}


def most_beats(work: Path) -> int:
    return max(record.beats for record in read_leases(work).values())


def own_record(work: Path) -> LeaseRecord:
    with WorkLease(str(work)):
        return max(read_leases(work).values(), key=lambda record: record.uptime_seconds)


def in_child(deed: Callable[[], int]) -> int:
    """Runs a deed in a process of its own, that ends with what it returns."""
    child = os.fork()
    if not child:
        code = 99
        try:
            code = deed()
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def try_to_hold(work: Path | str, until: Callable[[], object] = lambda: None) -> int:
    """0: held the lease; 1: another run did."""
    try:
        with WorkLease(str(work)):
            until()
            return 0
    except LeaseHeldError:
        return 1


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_the_second_run_refuses_and_names_the_holder(tmp_path):
    held = pytest.raises(LeaseHeldError, match=rf"process {os.getpid()} of .* on .*, running for \d+ s, last seen 0 s")
    with WorkLease(str(tmp_path)), held, WorkLease(str(tmp_path)):
        pass
    with WorkLease(str(tmp_path)):
        pass


def test_a_run_leaves_one_small_file(tmp_path):
    for _ in range(3):
        with WorkLease(str(tmp_path)) as held:
            held.check()
    ((name, record),) = read_leases(tmp_path).items()
    assert name == "00000003.json"
    assert record.released
    with pytest.raises(LeaseLostError), WorkLease(str(tmp_path)):
        held.check()


def test_a_killed_holder_is_taken_over_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(work_folder, "SILENT_SECONDS", 1000.0)
    child = in_child(lambda: try_to_hold(tmp_path, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    assert exit_code(child) == -signal.SIGKILL
    (record,) = read_leases(tmp_path).values()
    assert record.pid == child
    assert not record.released
    started = time.monotonic()
    assert own_record(tmp_path).pid == os.getpid()
    assert time.monotonic() - started < 500


def test_a_process_with_the_pid_of_the_dead_holder_is_another_one(tmp_path, monkeypatch):
    monkeypatch.setattr(work_folder, "SILENT_SECONDS", 1000.0)
    write_lease(tmp_path, replace(own_record(tmp_path), process_started="1"), 2)
    with WorkLease(str(tmp_path)):
        pass


@pytest.mark.parametrize("silent_seconds", [0.0, 0.2, 1000.0])
def test_a_restarted_container_takes_over_soon_and_a_live_neighbour_does_not(tmp_path, silent_seconds):
    """Same host name, same pid, same running system: whether the other container lives shows only in its beats."""
    record = own_record(tmp_path)
    record = replace(record, namespace="pid:[1]", uptime_seconds=time.monotonic() - silent_seconds)
    write_lease(tmp_path, record, 2)
    started = time.monotonic()
    with WorkLease(str(tmp_path)):
        assert time.monotonic() - started >= work_folder.CONTAINER_SILENT_SECONDS - silent_seconds
    write_lease(tmp_path, replace(record, uptime_seconds=time.monotonic()), 4)
    with beating(tmp_path, record, 4), pytest.raises(LeaseHeldError), WorkLease(str(tmp_path)):
        pass


@pytest.mark.parametrize("skew_seconds", [-180.0, 0.0, 180.0])
def test_liveness_is_what_changes_and_no_clock_of_another_machine(tmp_path, monkeypatch, skew_seconds):
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + skew_seconds)
    write_lease(tmp_path, replace(ELSEWHERE, uptime_seconds=time.monotonic() + skew_seconds))
    held = pytest.raises(LeaseHeldError, match="process 1 of someone on elsewhere")
    with beating(tmp_path, ELSEWHERE), held, WorkLease(str(tmp_path)):
        pass
    started = time.monotonic()
    with WorkLease(str(tmp_path)):
        assert work_folder.SILENT_SECONDS <= time.monotonic() - started < 150


def test_a_host_of_the_same_name_is_not_this_one(tmp_path, dead_pid):
    """Its process cannot be asked for here: another machine, or this one before it was started again."""
    write_lease(tmp_path, replace(own_record(tmp_path), machine="another", pid=dead_pid), 2)
    with beating(tmp_path, replace(ELSEWHERE, host=socket.gethostname(), pid=dead_pid), 2):
        assert try_to_hold(tmp_path) == 1


def test_a_record_cut_off_by_a_kill_is_watched_and_taken_over(tmp_path):
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "00000001.json").write_bytes(b"")
    started = time.monotonic()
    with WorkLease(str(tmp_path)):
        assert time.monotonic() - started >= work_folder.SILENT_SECONDS


def test_of_many_runs_at_once_one_works(tmp_path):
    """Processes that come and go: at no time do two of them hold the lease."""

    def work() -> int:
        worked = 0
        until = time.monotonic() + 3
        while time.monotonic() < until:
            worked += try_to_hold(tmp_path, alone) == 0
        return min(worked, 98)

    def alone() -> None:
        os.close(os.open(tmp_path / "alone", os.O_CREAT | os.O_EXCL))
        time.sleep(0.002)
        os.unlink(tmp_path / "alone")

    with patient():
        codes = [exit_code(child) for child in [in_child(work) for _ in range(4)]]
    assert 99 not in codes
    assert sum(codes) > 20


@pytest.mark.parametrize("round_number", range(15))
def test_of_many_that_take_over_a_dead_lease_at_once_one_wins(tmp_path, dead_pid, round_number):
    write_lease(tmp_path, replace(own_record(tmp_path), pid=dead_pid, process_started="1"), 2)
    gate, tried = os.pipe(), os.pipe()

    def take_over() -> int:
        os.close(gate[1])
        os.read(gate[0], 1)
        try:
            return try_to_hold(tmp_path, wait_for_the_others)
        finally:
            os.write(tried[1], b".")

    def wait_for_the_others() -> None:
        seen = b""
        while len(seen) < 3:
            seen += os.read(tried[0], 3)

    with patient():
        children = [in_child(take_over) for _ in range(4)]
    os.close(gate[0])
    os.close(gate[1])
    assert sorted(map(exit_code, children)) == [0, 1, 1, 1]
    assert list(read_leases(tmp_path)) == ["00000003.json"]


def test_one_that_looked_too_long_does_not_take_over_a_later_run(tmp_path, monkeypatch):
    """Between its look at a dead lease and its own file, two other runs came: one has ended, one works."""
    write_lease(tmp_path, ELSEWHERE)
    lease, real = WorkLease(str(tmp_path)), storage.create_file
    others: list[HeldLease] = []

    def create_late(uri: str, data: bytes) -> bool:
        monkeypatch.setattr(storage, "create_file", real)
        with WorkLease(str(tmp_path)):
            pass
        others.append(stack.enter_context(WorkLease(str(tmp_path))))
        return storage.create_file(uri, data)

    monkeypatch.setattr(storage, "create_file", create_late)
    with ExitStack() as stack, pytest.raises(LeaseHeldError), lease:
        pass
    assert len(others) == 1
    assert list(read_leases(tmp_path)) == ["00000003.json"]


def paused_holder(work: Path, published: Path) -> Iterator[int]:
    """A run that is paused while it holds the lease, and publishes when it goes on."""
    ready, go = os.pipe(), os.pipe()

    def run() -> int:
        try:
            with WorkLease(str(work)) as held:
                os.write(ready[1], b".")
                os.read(go[0], 1)
                held.check()
                published.write_text("")
                return 0
        except LeaseLostError:
            return 6

    child = in_child(run)
    os.read(ready[0], 1)
    os.kill(child, signal.SIGSTOP)
    yield child
    os.write(go[1], b".")
    os.kill(child, signal.SIGCONT)
    yield exit_code(child)


def test_a_paused_holder_that_was_taken_over_does_not_publish(tmp_path):
    steps = paused_holder(tmp_path, tmp_path / "published")
    next(steps)
    with patient():
        assert try_to_hold(tmp_path) == 1  # it may only be slow
    time.sleep(work_folder.SILENT_SECONDS)
    with WorkLease(str(tmp_path)) as held:
        assert next(steps) == 6
        held.check()
    assert not (tmp_path / "published").exists()


def test_a_paused_holder_that_was_not_taken_over_goes_on(tmp_path):
    steps = paused_holder(tmp_path, tmp_path / "published")
    next(steps)
    time.sleep(work_folder.SILENT_SECONDS)
    assert next(steps) == 0
    assert (tmp_path / "published").exists()


def test_a_lease_given_back_early_lets_nothing_be_published_any_more(tmp_path):
    """A run that is stopped gives it back while its own threads still work."""
    lease = WorkLease(str(tmp_path))
    held = lease.__enter__()
    held.check()
    lease.release()
    with pytest.raises(LeaseLostError, match="it was given back when this run was stopped"):
        held.check()
    with WorkLease(str(tmp_path)):
        pass
    with pytest.raises(LeaseLostError):
        lease.__exit__(None, None, None)


@pytest.mark.parametrize("moment", ["create_file", "read_bytes", "list_names"])
def test_a_run_stopped_while_it_acquires_the_lease_leaves_none(tmp_path, monkeypatch, moment):
    lease, real = WorkLease(str(tmp_path)), getattr(storage, moment)
    stopping = threading.Thread(target=lease.release)

    def stopped_before(*given: object) -> object:
        if not stopping.ident:
            stopping.start()
            stopping.join(0.1)
        return real(*given)

    monkeypatch.setattr(storage, moment, stopped_before)
    (tmp_path / "lease").mkdir()
    with suppress(LeaseLostError):
        lease.__enter__()
    stopping.join()
    assert all(record.released for record in read_leases(tmp_path).values())
    with pytest.raises(LeaseLostError):
        lease.__enter__()


def test_a_lease_that_somebody_removed_is_lost(tmp_path):
    def run() -> None:
        with WorkLease(str(tmp_path)):
            storage.remove_tree(str(tmp_path / "lease"))
            raise RuntimeError("a file is gone")

    with pytest.raises(LeaseLostError, match="its file was removed") as lost:
        run()
    assert isinstance(lost.value.__cause__, RuntimeError)


def test_a_run_that_ends_well_without_its_lease_does_not_end_well(tmp_path):
    with pytest.raises(LeaseLostError, match="and has stopped; what it completed before stands"):
        with WorkLease(str(tmp_path)):
            write_lease(tmp_path, ELSEWHERE, 2)
    assert read_leases(tmp_path)["00000002.json"] == ELSEWHERE


def test_the_failure_of_a_run_that_holds_its_lease_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="broken"), WorkLease(str(tmp_path)):
        raise RuntimeError("broken")


def test_a_store_out_of_reach_for_a_while_does_not_lose_the_lease(tmp_path, monkeypatch):
    with WorkLease(str(tmp_path)) as held:
        with monkeypatch.context() as patch:
            patch.setattr(storage, "write_json_atomic", lambda *_: storage.read_bytes(str(tmp_path)))
            time.sleep(3 * work_folder.BEAT_SECONDS)
        before = most_beats(tmp_path)
        while most_beats(tmp_path) == before:
            held.check()
            time.sleep(work_folder.BEAT_SECONDS)
        held.check()


def test_a_run_whose_lease_was_taken_over_does_not_publish(tmp_path, monkeypatch):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(120)])
    real = numbering_steps.number

    def number(run, summaries):
        write_lease(tmp_path / "work", ELSEWHERE, 2)
        return real(run, summaries)

    monkeypatch.setattr(numbering_steps, "number", number)
    with pytest.raises(LeaseLostError, match="process 1 of someone on elsewhere"):
        run_job(tmp_path)
    assert not (tmp_path / "index" / "CURRENT").exists()
    assert not (tmp_path / "work" / "finished_run.json").exists()


@pytest.mark.parametrize(("room", "step"), [(publish_step, "_published"), (job, "run_pipeline"), (job, "clean_work")])
def test_a_run_that_is_taken_over_after_it_published_leaves_the_rest_to_the_winner(
    tmp_path, monkeypatch, capsys, room, step
):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(120)])
    finished, real = tmp_path / "work" / "finished_run.json", getattr(room, step)

    def then_taken_over(*args, **kwargs):
        result = real(*args, **kwargs)
        write_lease(tmp_path / "work", ELSEWHERE, 2)
        finished.write_text("the winner's")
        return result

    monkeypatch.setattr(room, step, then_taken_over)
    command = load_job_config(arguments(tmp_path))
    assert job.run_and_report(CatalogSource(command.config), command.pipeline_options) == 4
    assert "held by process 1 of someone on elsewhere" in capsys.readouterr().err
    assert finished.read_text() == "the winner's"
    assert (tmp_path / "index" / "CURRENT").exists()


@pytest.mark.parametrize("store", ["memory", "bucket"])
def test_on_an_object_store_one_of_many_takes_over(request, store):
    work = "memory://lease-test" if store == "memory" else request.getfixturevalue("bucket")
    write_lease(work, ELSEWHERE)
    tried, gate = threading.Barrier(4), threading.Barrier(4)

    def take_over(_: int) -> int:
        gate.wait()
        try:
            with WorkLease(work) as held:
                tried.wait()
                held.check()
                return 0
        except LeaseHeldError:
            tried.wait()
            return 1

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(take_over, range(4))) == [0, 1, 1, 1]
    assert storage.list_names(storage.join(work, "lease")) == ["00000002.json"]
    with WorkLease(work), pytest.raises(LeaseHeldError), WorkLease(work):
        pass
    storage.remove_tree(storage.join(work, "lease"))


def test_on_a_store_without_a_conditional_write_the_last_writer_wins(tmp_path, monkeypatch):
    """Such a store answers yes to several; each reads back, after a while, what stands."""
    work = "memory://lease-without-condition"
    real = storage.create_file

    def create(uri: str, data: bytes) -> bool:
        storage.write_bytes_atomic(uri, data)
        monkeypatch.setattr(storage, "create_file", real)
        storage.write_bytes_atomic(uri, json.dumps(asdict(ELSEWHERE)).encode())
        return True

    monkeypatch.setattr(storage, "create_file", create)
    with beating(work, ELSEWHERE), pytest.raises(LeaseHeldError, match="elsewhere"), WorkLease(work):
        pass
    storage.remove_tree(work)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def standing_shards(folder: Path) -> set[str]:
    return {path.name.removesuffix(".parquet") for path in folder.rglob("*.parquet") if ".rejected" not in path.name}


def shards_of(index: Path) -> set[str]:
    manifests = [publish.read_manifest(str(index), version) for version in publish.list_versions(str(index))]
    return {Path(uri).stem for manifest in manifests for uri in manifest.embedding_shards}


def test_only_what_a_version_or_the_next_run_needs_stays(tmp_path):
    rows = [product(number) for number in range(200)]
    write_catalog(tmp_path / "catalog", rows)
    work, keep_one = tmp_path / "work", ["--index.keep_versions", "1"]
    first, _ = run_job(tmp_path, *keep_one)
    before = standing_shards(work / "embeddings")
    for number in (5, 6):
        rows[number]["title"] = f"large {rows[number]['title']}"
        write_catalog(tmp_path / "catalog", rows)
        last, _ = run_job(tmp_path, *keep_one)
        assert last.totals.embedded == 1
    left = standing_shards(work / "embeddings")
    assert left == shards_of(tmp_path / "index")
    assert len(left) == 4
    assert len(left & before) == 2, "the file that did not change"
    assert names(tmp_path / "index" / "versions") == {last.version}
    assert len(names(work / "builds")) == 1
    assert len(names(work / "query_encoders")) == 1
    assert names(work / "carry_over") <= {last.version}
    unchanged, record = run_job(tmp_path, *keep_one)
    assert unchanged.status == "unchanged"
    assert all(report["skipped"] for report in record.reports("embed").values())
    assert first.version != last.version


def test_two_indexes_fed_from_one_work_folder_keep_their_vectors(tmp_path):
    for index in ("index", "other-index"):
        write_catalog(tmp_path / "catalog", [product(number + 1000 * len(index)) for number in range(120)])
        run_job(tmp_path, "--index.uri", str(tmp_path / index))
    left = standing_shards(tmp_path / "work" / "embeddings")
    assert left == shards_of(tmp_path / "index") | shards_of(tmp_path / "other-index")
    assert noted_indexes(str(tmp_path / "work")) == [str(tmp_path / "index"), str(tmp_path / "other-index")]


def clean(work: Path, *catalog_files: str) -> None:
    with WorkLease(str(work)) as held:
        clean_work(str(work), held=held, encoder="e", shard_keys=[], build="b", catalog_files=catalog_files)


def test_an_intake_copy_stays_for_one_run_more_than_it_is_needed(tmp_path):
    spool = tmp_path / "spool"
    for name in ("one.jsonl", "two.json", "two/rows-0.parquet", "two/rows-1.parquet", "three.json", "three.parquet"):
        storage.write_bytes_atomic(str(spool / name), b"")
    clean(tmp_path, str(spool / "two" / "rows-1.parquet"), str(tmp_path / "catalog" / "one.jsonl"))
    assert names(spool) == {"one.jsonl", "two.json", "two", "three.json", "three.parquet"}
    clean(tmp_path, str(spool / "one.jsonl"))
    assert names(spool) == {"one.jsonl", "two.json", "two"}
    clean(tmp_path, str(spool / "one.jsonl"))
    clean(tmp_path, str(spool / "one.jsonl"))
    assert storage.list_names(str(spool)) == ["one.jsonl"]


def test_the_lookups_of_whatever_a_run_may_follow_stay(tmp_path):
    for seed in range(3):
        index = published(str(tmp_path), 50, 16, seed=seed, factory="Flat")
    first, second, last = publish.list_versions(index)
    publish.set_tag(index, "shadow", first)
    note_index(str(tmp_path / "work"), index)
    for version in (first, second, last):
        storage.write_bytes_atomic(str(tmp_path / "work" / "carry_over" / version / "vectors.json"), b"")
    clean(tmp_path / "work")
    assert names(tmp_path / "work" / "carry_over") == {first, last}


def test_planning_removes_nothing_and_a_run_then_finds_its_copies(tmp_path):
    """`--plan` for another catalog on the same work folder, while a run that planned its own has not read it yet."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl.gz").write_bytes(gzip.compress(b'{"product_id": "p", "title": "chair"}'))
    one, two = (CatalogConfig(uri=str(tmp_path / name), image_field=None) for name in ("one", "two"))
    planned = plan_catalog(one, spool_uri=str(tmp_path / "spool"))
    plan_catalog(two, spool_uri=str(tmp_path / "spool"))
    assert [part.path for shard in planned.shards for part in shard.ranges if not os.path.exists(part.path)] == []


def test_a_run_that_lost_its_lease_cleans_nothing(tmp_path):
    for name in ("builds/a/x", "embeddings/e/k.parquet", "query_encoders/q/x", "spool/a.jsonl"):
        storage.write_bytes_atomic(str(tmp_path / name), b"")
    before = storage.list_names(str(tmp_path))
    with WorkLease(str(tmp_path)) as held:
        pass
    write_lease(tmp_path, ELSEWHERE, 2)
    with pytest.raises(LeaseLostError):
        clean_work(str(tmp_path), held=held, encoder="e", shard_keys=[], build="b", catalog_files=[])
    assert set(before) <= set(storage.list_names(str(tmp_path)))


def test_old_run_records_go(tmp_path):
    for number in range(RUNS_KEPT + 5):
        RunRecord(uri=f"{tmp_path}/runs/2026{number:04d}").report("embed", "0", seconds=1.0)
    clean(tmp_path)
    assert sorted(names(tmp_path / "runs")) == [f"2026{number:04d}" for number in range(5, RUNS_KEPT + 5)]


def test_an_index_that_cannot_be_read_stops_the_cleaning(tmp_path, caplog):
    write_catalog(tmp_path / "catalog", [product(number) for number in range(100)])
    run_job(tmp_path)
    before = standing_shards(tmp_path / "work" / "embeddings")
    (manifest,) = (tmp_path / "index" / "versions").glob("*/manifest.json")
    manifest.write_text("{ not json")
    with caplog.at_level(logging.WARNING):
        clean(tmp_path / "work")
    assert "was not cleaned" in caplog.text
    assert standing_shards(tmp_path / "work" / "embeddings") == before


def test_an_index_is_noted_once(tmp_path):
    assert noted_indexes(str(tmp_path)) == []
    for uri in ("b", "a", "b"):
        note_index(str(tmp_path), uri)
    assert noted_indexes(str(tmp_path)) == ["a", "b"]
