"""Published versions: `python -m pipelines.versions list|show|diff|rollback|prune --index URI`.

    list                     all complete versions, the published one marked
    show [VERSION]           what a version is, how it was made and measured; --verify reads every file again
    diff [OLD] [NEW]         what changed; by default from the version before the published one to the published one
    rollback [VERSION]       publishes an older version; by default the one before the published one
    prune --keep N           removes all but the N newest versions, never the published one

Exit codes: 0 done, 1 `show --verify` found a damaged file, 2 there is no such version, or the address cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from index_builder import IndexReader, Manifest, VersionNotFoundError, publish
from index_builder.explain import serving_shards
from pipelines.catalog.previous_version import ExternalSort, keyed_records
from pipelines.config.command_line import run_command
from pipelines.images.product_images import id_digests

# ---- pipelines/version_diff.py ----
# What changed between two published versions: products that came, went or changed, and how the index was made.
#
# Ids are compared by digest in buckets on disk (`spill`), so memory does not grow with the catalog.


EXAMPLES = 5
IDS_PER_READ = 65_536
_OLD, _NEW = 0, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class VersionDiff:
    """Two versions compared.

    Attributes:
      old, new: their manifests.
      added, removed: products that only the new, only the old version has.
      kept: products of both.
      changed: kept products by display or filter column whose value differs; columns without a change are left out.
      columns_added, columns_removed: columns that only one of the versions has, or that changed their type.
      added_examples, removed_examples: the first few ids, in the order of their version.
    """

    old: Manifest
    new: Manifest
    added: int
    removed: int
    kept: int
    changed: dict[str, int]
    columns_added: tuple[str, ...]
    columns_removed: tuple[str, ...]
    added_examples: tuple[str, ...]
    removed_examples: tuple[str, ...]


def compare_versions(index_uri: str, old: str, new: str) -> VersionDiff:
    """Compares two versions of an index.

    Args:
      index_uri: where both are published.
      old, new: their ids.

    Raises:
      VersionNotFoundError: there is no such version.
    """
    readers = [IndexReader.open(index_uri, version) for version in (old, new)]
    tables = [reader.products for reader in readers]
    fields = [{(field.name, field.type) for field in table.schema if field.name != "product_id"} for table in tables]
    shared = sorted(name for name, _ in fields[_OLD] & fields[_NEW])
    kept, changed = 0, dict.fromkeys(shared, 0)
    singles: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    with ExternalSort(sum(table.num_rows for table in tables)) as spilled:
        for side, table in enumerate(tables):
            _note_ids(spilled, table.column("product_id"), side)
        for records in spilled.sorted_buckets():
            pairs, alone = _paired(records)
            kept += len(pairs[_OLD])
            for name in shared:
                changed[name] += _count_changed(tables, pairs, name)
            for side in (_OLD, _NEW):
                singles[side].append(alone[side])
    rows = [np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64) for parts in singles]
    examples = [_ids_at(table, found[:EXAMPLES]) for table, found in zip(tables, rows, strict=True)]
    return VersionDiff(
        old=readers[_OLD].manifest,
        new=readers[_NEW].manifest,
        added=len(rows[_NEW]),
        removed=len(rows[_OLD]),
        kept=kept,
        changed={name: count for name, count in changed.items() if count},
        columns_added=tuple(sorted(name for name, _ in fields[_NEW] - fields[_OLD])),
        columns_removed=tuple(sorted(name for name, _ in fields[_OLD] - fields[_NEW])),
        added_examples=examples[_NEW],
        removed_examples=examples[_OLD],
    )


def _note_ids(spilled: ExternalSort, ids: pa.ChunkedArray, side: int) -> None:
    for start in range(0, len(ids), IDS_PER_READ):
        digests = id_digests(ids.slice(start, IDS_PER_READ).to_pylist())
        spilled.add(keyed_records(digests, side, np.arange(start, start + len(digests))))


def _paired(records: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Rows (old, new) of products that both versions have, and the rows of those that one alone has, int64.

    An id occurs once in a version, and old sorts before new, so a product of both is two records side by side.
    """
    same = np.zeros(len(records), bool)
    same[:-1] = (records["key"][1:] == records["key"][:-1]) & (records["tail"][1:] == records["tail"][:-1])
    first = np.flatnonzero(same)
    alone = np.ones(len(records), bool)
    alone[first] = alone[first + 1] = False
    rows = records["row"].astype(np.int64)
    pairs = (rows[first], rows[first + 1])
    return pairs, (rows[alone & (records["shard"] == _OLD)], rows[alone & (records["shard"] == _NEW)])


def _count_changed(tables: list[pa.Table], pairs: tuple[np.ndarray, np.ndarray], name: str) -> int:
    """Products of both versions whose value of a column differs; null and a value differ, null and null do not."""
    old, new = (
        table.column(name).take(pa.array(rows)).combine_chunks() for table, rows in zip(tables, pairs, strict=True)
    )
    if pa.types.is_nested(old.type):  # Arrow compares no nested values
        return sum(before != after for before, after in zip(old.to_pylist(), new.to_pylist(), strict=True))
    both = pc.fill_null(pc.not_equal(old, new), False)
    differs = pc.or_(both, pc.xor(pc.is_null(old), pc.is_null(new)))
    return int(pc.sum(differs).as_py() or 0)


def _ids_at(table: pa.Table, rows: np.ndarray) -> tuple[str, ...]:
    return tuple(table.column("product_id").take(pa.array(rows)).to_pylist())


EXIT_DAMAGED = 1
PIPE_WIDTH = 120


def main(argv: Sequence[str]) -> int:
    """Runs one of the subcommands; see the module for the exit codes."""
    arguments = _parser().parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    result: int = arguments.run(arguments, console)
    return result


def _list(arguments: argparse.Namespace, console: Console) -> int:
    manifests = [publish.read_manifest(arguments.index, version) for version in publish.list_versions(arguments.index)]
    current = _current(arguments.index)
    if arguments.json:
        _print_json([{"published": manifest.version == current, **_described(manifest)} for manifest in manifests])
        return 0
    table = Table(title=f"{len(manifests)} versions at {escape(arguments.index)}", title_justify="left")
    table.add_column("version", no_wrap=True)
    for name in ("products", "rejected", "recall", "size"):
        table.add_column(name, justify="right")
    table.add_column("index")
    table.add_column("state")
    for manifest in reversed(manifests):
        table.add_row(
            manifest.version,
            f"{manifest.catalog.products:,}",
            f"{manifest.catalog.rejected:,}",
            f"{manifest.recall.value:.4f}",
            decimal(_bytes(manifest)),
            manifest.index.factory,
            _state(manifest, current),
        )
    console.print(table)
    return 0


def _show(arguments: argparse.Namespace, console: Console) -> int:
    version = arguments.version or publish.read_current(arguments.index)
    manifest = publish.read_manifest(arguments.index, version)
    if arguments.json:
        sys.stdout.write(manifest.to_json())
    else:
        _print_manifest(manifest, _state(manifest, _current(arguments.index)), console)
    if not arguments.verify:
        return 0
    damaged = publish.damaged_files(arguments.index, version)
    for found in damaged:
        sys.stderr.write(f"error: {found}\n")
    if not damaged:
        sys.stderr.write(f"all {len(manifest.files)} files are as the manifest says\n")
    return EXIT_DAMAGED if damaged else 0


def _diff(arguments: argparse.Namespace, console: Console) -> int:
    new = arguments.new or publish.read_current(arguments.index)
    old = arguments.old or _version_before(arguments.index, new)
    diff = compare_versions(arguments.index, old, new)
    if arguments.json:
        _print_json({**asdict(diff), "old": _described(diff.old), "new": _described(diff.new)})
    else:
        _print_diff(diff, console)
    return 0


def _rollback(arguments: argparse.Namespace, console: Console) -> int:
    current = publish.read_current(arguments.index)
    version = arguments.version or _version_before(arguments.index, current)
    publish.set_current(arguments.index, version)
    console.print(f"published: {version} (before: {current}). The next night publishes a new version on top of it.")
    return 0


def _prune(arguments: argparse.Namespace, console: Console) -> int:
    removed = publish.prune(arguments.index, arguments.keep)
    left = publish.list_versions(arguments.index)
    console.print(f"removed {len(removed)} versions, {len(left)} left" + "".join(f"\n  {name}" for name in removed))
    return 0


def _print_manifest(manifest: Manifest, state: str, console: Console) -> None:
    catalog, recall, spec = manifest.catalog, manifest.recall, manifest.index
    rows = [
        ("version", f"{manifest.version} ({state})"),
        ("created", manifest.created_utc),
        ("catalog", f"{catalog.uri}: {catalog.rows_in:,} rows"),
        ("products", f"{catalog.products:,}, {catalog.degraded:,} of them degraded; {catalog.rejected:,} rejected"),
        *((f"  {reason}", f"{count:,}") for reason, count in catalog.by_reason.items()),
        ("encoder", f"{manifest.encoder.model or 'made elsewhere'} {manifest.encoder.fingerprint}"),
        ("codec", f"{manifest.codec.fingerprint}, trained on {manifest.codec.training_rows:,} vectors"),
        ("index", f"{spec.factory}, {serving_shards(spec.serving_shards)}, nprobe {spec.search.nprobe}"),
        *_refinement(manifest),
        (f"recall {recall.k}@{recall.k}", f"{recall.value:.4f} over {recall.queries:,} held-out products"),
        ("memory", f"{decimal(manifest.loaded_bytes)} at most{_measured_memory(manifest)}"),
    ]
    summary = Table(show_header=False, box=None, pad_edge=False)
    summary.add_column(style="dim", no_wrap=True)
    summary.add_column()
    for name, value in rows:
        summary.add_row(name, escape(value))
    console.print(summary)
    measured = Table(title="measured", title_justify="left")
    for name in ("nprobe", "refine factor", "recall", "ms a query"):
        measured.add_column(name, justify="right")
    for row in recall.table:
        measured.add_row(str(row.nprobe), str(row.refine_factor or "–"), f"{row.recall:.4f}", f"{row.latency_ms:.3f}")
    files = Table(title="files", title_justify="left")
    files.add_column("path")
    files.add_column("bytes", justify="right")
    files.add_column("sha256", no_wrap=True)
    for entry in manifest.files:
        files.add_row(entry.path, f"{entry.bytes:,}", f"{entry.sha256[:16]}…")
    console.print(measured, files)
    for failed in manifest.gates.get("failed", ()):
        console.print(f"gate failed: {failed}", markup=False)


def _refinement(manifest: Manifest) -> list[tuple[str, str]]:
    if manifest.index.refine == "none":
        return []
    factor = manifest.index.search.refine_factor
    return [("refinement", f"{manifest.index.refine}, {factor} candidates re-ranked for each neighbour")]


def _measured_memory(manifest: Manifest) -> str:
    if not manifest.resident_bytes:
        return ""
    return f"; {decimal(manifest.resident_bytes)} in a fresh process that answered the held-out queries"


def _print_diff(diff: VersionDiff, console: Console) -> None:
    table = Table(title=f"{diff.old.version} → {diff.new.version}", title_justify="left")
    table.add_column("")
    table.add_column("old")
    table.add_column("new")
    for name, old, new in (
        ("products", *(f"{manifest.catalog.products:,}" for manifest in (diff.old, diff.new))),
        ("rejected", *(f"{manifest.catalog.rejected:,}" for manifest in (diff.old, diff.new))),
        ("degraded", *(f"{manifest.catalog.degraded:,}" for manifest in (diff.old, diff.new))),
        ("encoder", diff.old.encoder.fingerprint, diff.new.encoder.fingerprint),
        ("codec", diff.old.codec.fingerprint, diff.new.codec.fingerprint),
        ("index", diff.old.index.factory, diff.new.index.factory),
        ("nprobe", *(str(manifest.index.search.nprobe) for manifest in (diff.old, diff.new))),
        ("refinement", *(manifest.index.refine for manifest in (diff.old, diff.new))),
        ("recall", *(f"{manifest.recall.value:.4f}" for manifest in (diff.old, diff.new))),
        ("size", *(decimal(_bytes(manifest)) for manifest in (diff.old, diff.new))),
    ):
        table.add_row(name, old, "same" if old == new else f"[bold]{escape(new)}[/bold]")
    console.print(table)
    for said, count, examples in (
        ("added", diff.added, diff.added_examples),
        ("removed", diff.removed, diff.removed_examples),
    ):
        shown = f": {', '.join(examples)}{' …' if count > len(examples) else ''}" if count else ""
        console.print(f"{count:,} products {said}{shown}", markup=False)
    changed = ", ".join(f"{name} of {count:,}" for name, count in diff.changed.items())
    console.print(f"{diff.kept:,} products in both; changed: {changed or 'no display or filter value'}", markup=False)
    for said, names in (("new", diff.columns_added), ("gone", diff.columns_removed)):
        if names:
            console.print(f"columns {said}: {', '.join(names)}", markup=False)


def _version_before(index_uri: str, version: str) -> str:
    """The newest complete version before this one whose gates all held."""
    earlier = [name for name in publish.list_versions(index_uri) if name < version]
    for name in reversed(earlier):
        if not publish.read_manifest(index_uri, name).gates.get("failed"):
            return name
    raise VersionNotFoundError(f"{index_uri}: no version before {version} that passed its gates")


def _current(index_uri: str) -> str:
    try:
        return publish.read_current(index_uri)
    except VersionNotFoundError:
        return ""


def _state(manifest: Manifest, current: str) -> str:
    if manifest.version == current:
        return "published"
    return "held by a gate" if manifest.gates.get("failed") else ""


def _described(manifest: Manifest) -> dict[str, object]:
    """What scripts want to know of a version."""
    return {
        "version": manifest.version,
        "created_utc": manifest.created_utc,
        "products": manifest.catalog.products,
        "rejected": manifest.catalog.rejected,
        "degraded": manifest.catalog.degraded,
        "encoder": manifest.encoder.fingerprint,
        "codec": manifest.codec.fingerprint,
        "factory": manifest.index.factory,
        "nprobe": manifest.index.search.nprobe,
        "recall": manifest.recall.value,
        "bytes": _bytes(manifest),
        "failed_gates": manifest.gates.get("failed", []),
    }


def _bytes(manifest: Manifest) -> int:
    return sum(entry.bytes for entry in manifest.files)


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.versions", description="Published versions of an index.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, help: str, *, json_output: bool = False) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help)
        made.add_argument("--index", required=True, metavar="URI", help="where versions are published (index.uri)")
        if json_output:
            made.add_argument("--json", action="store_true", help="for scripts")
        made.set_defaults(run=run)
        return made

    command("list", _list, "all complete versions, newest first", json_output=True)
    show = command("show", _show, "what a version is, how it was made and measured", json_output=True)
    show.add_argument("version", nargs="?", help="default: the published one")
    show.add_argument("--verify", action="store_true", help="read every file and compare its sha256")
    diff = command("diff", _diff, "what changed between two versions", json_output=True)
    diff.add_argument("old", nargs="?", help="default: the one before the new one")
    diff.add_argument("new", nargs="?", help="default: the published one")
    rollback = command("rollback", _rollback, "publish an older version")
    rollback.add_argument("version", nargs="?", help="default: the one before the published one")
    prune = command("prune", _prune, "remove old versions, never the published one")
    prune.add_argument("--keep", type=int, required=True, metavar="N", help="the newest N stay")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
