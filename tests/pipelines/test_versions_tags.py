"""A version is rehearsed on a channel, compared with the published one by queries, promoted and taken back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from index_builder import IndexReader, publish, storage, tags
from pipelines import versions
from pipelines.config.command_line import run_command
from pipelines.indexing.publish_step import _move_channel
from pipelines.server.config import ServerConfig
from pipelines.server.served import ServedIndex
from tests.encoders.tiny import WORDS, save_tiny_encoder
from tests.pipelines.indexing.job import product, run_job, write_catalog


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A published version, and two of another encoder on the channel shadow, the first of which has gone by now."""
    folder = tmp_path_factory.mktemp("channel")
    rows = [product(number) for number in range(120)]
    write_catalog(folder / "catalog", rows)
    names = [run_job(folder)[0].version]
    other = save_tiny_encoder(folder / "other", seed=1)
    shadow = ["--encoder.uri", str(other.uri), "--index.channel", "shadow", "--work.uri", str(folder / "work_shadow")]
    for price in (1.0, 2.0):
        rows[3]["price"] = price
        write_catalog(folder / "catalog", rows)
        result, _ = run_job(folder, *shadow)
        assert (result.status, result.channel) == ("published", "shadow")
        names.append(result.version)
    assert result.totals.carried_over >= 110, "the night before on the channel left its vectors"
    again, _ = run_job(folder, *shadow)
    assert (again.status, again.version) == ("unchanged", names[-1])
    return folder / "index", names


def run(index: Path, *arguments: str) -> int:
    return run_command(versions.main, [*arguments, "--index", str(index)])


def test_a_channel_stands_beside_what_is_published(rehearsed, capsys):
    index, names = rehearsed
    assert publish.read_current(str(index)) == names[0]
    assert publish.list_versions(str(index)) == (names[0], names[2]), "the one that had the tag has gone"
    reader = IndexReader.open(str(index), "shadow")
    assert reader.manifest.version == names[2]
    assert reader.manifest.encoder.fingerprint != publish.read_manifest(str(index)).encoder.fingerprint
    assert run(index, "list") == 0
    assert "tag shadow" in capsys.readouterr().out
    assert run(index, "show", "shadow") == 0
    assert names[2] in capsys.readouterr().out


def test_compare_asks_each_version_by_its_own_encoder(rehearsed, tmp_path, capsys):
    index, names = rehearsed
    queries = tmp_path / "queries.txt"
    queries.write_text("\n".join(f"{WORDS[n]} {WORDS[n + 1]}" for n in range(8)))
    asked = ["compare", names[0], "shadow", "--queries", str(queries)]
    assert run(index, *asked, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["old"], said["new"], len(said["queries"])) == (names[0], names[2], 8)
    overlaps = [query["overlap"] for query in said["queries"]]
    assert overlaps == sorted(overlaps)
    assert said["overlap_at_10"] == pytest.approx(sum(overlaps) / 8)
    assert overlaps[0] < 1.0
    move = said["queries"][0]["moves"][0]
    assert (move["old"] is None) or (move["new"] is None) or move["old"] != move["new"]
    assert run(index, *asked, "-n", "2") == 0
    printed = capsys.readouterr().out
    assert "overlap@10" in printed
    assert run(index, "compare", names[0], names[0], "--queries", str(queries), "--json") == 0
    assert json.loads(capsys.readouterr().out)["overlap_at_10"] == 1.0


def test_a_server_follows_the_channel_and_each_version_has_its_own_encoder(rehearsed):
    index, names = rehearsed
    config = ServerConfig(indexes={"live": str(index), "next": f"{index}#shadow"})
    live, following = ServedIndex("live", config), ServedIndex("next", config)
    assert (live.current.version, following.current.version) == (names[0], names[2])
    for served in (live.current, following.current):
        assert served.encoder is not None
        assert served.encoder.fingerprint == served.reader.manifest.encoder.fingerprint
    assert live.version("shadow") is live.version("shadow") is live.version(names[2]), "opened once"
    assert following.version("shadow") is following.current
    publish.set_tag(str(index), "shadow", names[0])
    try:
        assert following.refresh()
        assert following.current.version == names[0]
    finally:
        publish.set_tag(str(index), "shadow", names[2])


def test_a_rehearsal_is_never_gone_back_to_nor_taken_for_one_that_was_published(rehearsed, tmp_path, capsys):
    index, names = shutil.copytree(rehearsed[0], tmp_path / "index"), rehearsed[1]
    manifest = publish.read_manifest(str(index))
    folder = publish.version_uri(str(index), manifest.version)
    staged = {e.path: storage.join(folder, e.path) for e in manifest.files if e.path != "checksums.json"}
    newer = publish.publish_version(str(index), staged, manifest)
    assert names[0] < names[2] < newer
    assert run(index, "rollback") == 0
    assert publish.read_current(str(index)) == names[0], "the rehearsal stands between, and was never published"
    assert run(index, "hold", "shadow", "--reason", "blue is red", "--by", "ann") == 0
    assert run(index, "promote") == 0
    assert f"note: ann had held {names[2]}: blue is red" in capsys.readouterr().err
    assert run(index, "rollback", names[0]) == 0
    for published in (names[0], newer):  # by hand: what was published to all is not the channel's to remove
        publish.set_tag(str(index), "shadow", published)
        _move_channel(str(index), "shadow", names[2])
        assert published in publish.list_versions(str(index))


def test_what_was_promoted_stays_when_the_channel_moves_on(rehearsed, tmp_path):
    index, names = shutil.copytree(rehearsed[0], tmp_path / "index"), rehearsed[1]
    assert run(index, "promote") == 0
    publish.set_current(str(index), names[0])
    _move_channel(str(index), "shadow", names[0])
    assert names[2] in publish.list_versions(str(index))


def test_promoted_pinned_and_taken_back(rehearsed, capsys):
    index, names = rehearsed
    assert run(index, "promote") == 0
    assert publish.read_current(str(index)) == names[2]
    assert run(index, "tag", "before-change", names[0]) == 0
    assert run(index, "prune", "--keep", "1", "--dry-run") == 0
    assert "would remove 0 versions" in capsys.readouterr().out
    assert run(index, "rollback", "before-change") == 0
    assert publish.read_current(str(index)) == names[0]
    assert run(index, "untag", "before-change") == 0
    assert tags.read_tags(str(index)) == {"shadow": names[2]}
    assert run(index, "untag", "before-change") == 2
    assert "no version has the tag 'before-change'; tags: shadow" in capsys.readouterr().err
