"""Prints published versions, what changed between two, their letters, and what a search found, as terminal tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from index_builder import Manifest, SearchResult, marks
from index_builder.explain import serving_shards
from index_builder.tuning import FilteredMeasurement
from pipelines.catalog.dead_letters import MAX_DETAIL_CHARACTERS, one_line
from pipelines.config.terminal import print_lines
from pipelines.published.letters import Letters
from pipelines.published.version_diff import VersionDiff

Decisions = Mapping[str, Mapping[str, str]]
SCORE_DIGITS = 4
LINES_SHOWN = 2
LIST_SHOWN = 3
LEAST_WIDTH = 12


def print_versions(
    manifests: Sequence[Manifest],
    index_uri: str,
    current: str,
    decisions: Decisions,
    console: Console,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Prints a line a version, newest first; `current` is the id of the published one, `tags` are ids by tag."""
    console.print(f"{len(manifests)} version{'s' * (len(manifests) != 1)} at {index_uri}", markup=False, soft_wrap=True)
    table = Table()
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
            decimal(total_bytes(manifest)),
            manifest.index.factory,
            ", ".join(filter(None, [state_of(manifest, current, decisions), tags_of(manifest.version, tags or {})])),
        )
    console.print(table)


def print_manifest(manifest: Manifest, state: str, console: Console) -> None:
    """Prints what a version is, how it was made and measured, and its files."""
    catalog, recall, spec = manifest.catalog, manifest.recall, manifest.index
    re_ranked = f"{spec.refine}, {spec.search.refine_factor} candidates re-ranked for each neighbour"
    refinement = [("refinement", re_ranked)] if spec.refine != "none" else []
    resident = f"; {decimal(manifest.resident_bytes)} in a fresh process that answered the held-out queries"
    trained = f"trained on {manifest.codec.training_rows:,} vectors" if manifest.codec.training_rows else "not trained"
    measured_memory = resident if manifest.resident_bytes else ""
    measured_over = "vectors of held-out products" if catalog.vectors else "held-out products"
    rows = [
        ("version", f"{manifest.version} ({state or 'not published'})"),
        ("created", manifest.created_utc),
        ("catalog", f"{catalog.uri}: {catalog.rows_in:,} rows"),
        ("products", f"{catalog.products:,}, {catalog.degraded:,} of them degraded; {catalog.rejected:,} rejected"),
        *([("vectors", f"{catalog.vectors:,}, one an image")] if catalog.vectors else []),
        *((f"  {reason}", f"{count:,}") for reason, count in catalog.by_reason.items()),
        ("encoder", f"{manifest.encoder.model or 'made elsewhere'} {manifest.encoder.fingerprint}"),
        ("codec", f"{manifest.codec.fingerprint}, {trained}"),
        ("index", f"{spec.factory}, {serving_shards(spec.serving_shards)}, nprobe {spec.search.nprobe}"),
        *refinement,
        (f"recall {recall.k}@{recall.k}", f"{recall.value:.4f} over {recall.queries:,} {measured_over}"),
        *((f"  {row.filter}", _under_filter(row)) for row in recall.filtered),
        *(("  more", f"{remedy.option} measures {remedy.recall:.4f}") for remedy in recall.remedies),
        ("memory", f"{decimal(manifest.loaded_bytes)} at most{measured_memory}"),
    ]
    print_lines(rows, console=console)
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
        console.print(f"gate failed: {failed}", markup=False, soft_wrap=True)


def _under_filter(row: FilteredMeasurement) -> str:
    return f"{row.recall:.4f} where a filter lets {row.pass_share:.2%} of the products pass, {row.latency_ms:.2f} ms"


def print_diff(diff: VersionDiff, console: Console) -> None:
    """Prints what changed from one version to another."""
    table = Table(title=f"{diff.old.version} → {diff.new.version}", title_justify="left")
    table.add_column("")
    table.add_column("old")
    table.add_column("new")
    for name, old, new in (
        ("products", *(f"{manifest.catalog.products:,}" for manifest in (diff.old, diff.new))),
        *_vectors_line(diff),
        ("rejected", *(f"{manifest.catalog.rejected:,}" for manifest in (diff.old, diff.new))),
        ("degraded", *(f"{manifest.catalog.degraded:,}" for manifest in (diff.old, diff.new))),
        ("encoder", diff.old.encoder.fingerprint, diff.new.encoder.fingerprint),
        ("codec", diff.old.codec.fingerprint, diff.new.codec.fingerprint),
        ("index", diff.old.index.factory, diff.new.index.factory),
        ("nprobe", *(str(manifest.index.search.nprobe) for manifest in (diff.old, diff.new))),
        ("refinement", *(manifest.index.refine for manifest in (diff.old, diff.new))),
        ("recall", *(f"{manifest.recall.value:.4f}" for manifest in (diff.old, diff.new))),
        ("size", *(decimal(total_bytes(manifest)) for manifest in (diff.old, diff.new))),
    ):
        table.add_row(name, old, "same" if old == new else f"[bold]{escape(new)}[/bold]")
    console.print(table)
    came, went = (diff.added, diff.added_examples), (diff.removed, diff.removed_examples)
    for said, (count, examples) in (("added", came), ("removed", went)):
        shown = f": {', '.join(examples)}{' …' if count > len(examples) else ''}" if count else ""
        console.print(f"{count:,} products {said}{shown}", markup=False)
    changed = ", ".join(f"{name} of {count:,}" for name, count in diff.changed.items())
    console.print(f"{diff.kept:,} products in both; changed: {changed or 'no display or filter value'}", markup=False)
    for said, names in (("new", diff.columns_added), ("gone", diff.columns_removed)):
        if names:
            console.print(f"columns {said}: {', '.join(names)}", markup=False)


def _vectors_line(diff: VersionDiff) -> list[tuple[str, str, str]]:
    """How many vectors either version has, where one of them has several a product."""
    old, new = (manifest.catalog.vectors or manifest.catalog.products for manifest in (diff.old, diff.new))
    several = diff.old.catalog.vectors or diff.new.catalog.vectors
    return [("vectors", f"{old:,}", f"{new:,}")] if several else []


def print_letters(letters: Letters, version: str, console: Console) -> None:
    """Prints how many dead letters there are by reason, and those picked with their places."""
    if not letters.by_reason:
        console.print(f"{version}: no row was rejected, and no product degraded")
        return
    total = sum(letters.by_reason.values())
    console.print(f"[bold]{total:,} dead letter{'s' * (total != 1)} of {version}[/]")
    counts = Table("outcome", "reason")
    counts.add_column("letters", justify="right")
    for (outcome, reason), count in letters.by_reason.items():
        counts.add_row(outcome, reason, f"{count:,}")
    console.print(counts)
    rows = letters.picked.to_pylist()
    files = list(dict.fromkeys(row["file"] for row in rows))
    of_one = f" of {files[0]}" if len(files) == 1 and files[0] else ""
    shown = f"{len(rows):,} of {letters.matching:,}{of_one}" + (
        " (-n N shows more)" if len(rows) < letters.matching else ""
    )
    table = Table(title=escape(shown), title_justify="left", title_style="bold")
    if len(files) > 1:
        table.add_column("file", overflow="fold")
    for name in ("where", "id"):
        table.add_column(name, overflow="fold", min_width=8)
    for name in ("text", "reason", *(["picture"] if any(row["picture"] for row in rows) else []), "detail"):
        table.add_column(name, overflow="fold", min_width=12)
    for row in rows:
        reason = f"{row['outcome']}: {row['reason']}"
        where = "" if row["number"] is None else f"{row['unit']} {row['number']}"
        cells = {**row, "where": where, "id": row["product_id"], "text": row["title"], "reason": reason}
        table.add_row(*(escape(cells[str(column.header)] or "") for column in table.columns))
    if rows:
        console.print(table)


def print_result(result: SearchResult, *, title: str, console: Console, filtered: bool = False) -> None:
    """Prints the products found for the first query as a table: the id, whole, and the display columns that fit beside
    it, long texts cut after two lines.
    """
    found = found_products(result)
    cells = {"rank": [str(product["rank"]) for product in found]}
    cells["score"] = [f"{product['score']:.{SCORE_DIGITS}f}" for product in found]
    cells["product_id"] = [product["product_id"] for product in found]
    if result.members is not None and result.group_column != "product_id":
        cells["members"] = [f"{product['members']:,}" for product in found]
    for name in result.products.column_names:
        if name != "product_id":
            cells[name] = [_shown(product["columns"][name]) for product in found]
    widths = _column_widths({name: max(map(cell_len, [name, *texts])) for name, texts in cells.items()}, console.width)
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    for name, width in widths.items():
        justify: Literal["left", "right"] = "right" if name in ("rank", "score", "members") else "left"
        table.add_column(escape(name), justify=justify, width=width, overflow="fold")
    for row in range(len(found)):
        lines = {name: Text(cells[name][row]).wrap(console, width, overflow="fold") for name, width in widths.items()}
        table.add_row(*(_cut([*lines[name]], width, whole=name == "product_id") for name, width in widths.items()))
    console.print(table)
    if left_out := [name for name in cells if name not in widths]:
        more = "a wider terminal, or COLUMNS, shows more, --json all"
        console.print(f"no room for {', '.join(left_out)} ({more})", markup=False)
    all_there_are = "all there are" + (" that pass the filter" if filtered else "")
    if not found:
        none = "no product passes the filter"
        console.print(f"nothing behind the first {result.offset:,}" if result.offset else none)
    elif len(found) < result.scores.shape[1]:
        groups = "" if result.group_column in (None, "product_id") else " groups"
        console.print(f"{result.offset + len(found):,}{groups} found, {all_there_are}")


def _shown(value: Any) -> str:
    """A value in one line: of a list its distinct values, or two of them and how many more; nothing for null."""
    if isinstance(value, list):
        texts = list(dict.fromkeys(_shown(each) for each in value if each is not None))
        if len(texts) > LIST_SHOWN:
            texts[LIST_SHOWN - 1 :] = [f"+{len(texts) + 1 - LIST_SHOWN}"]
        return ", ".join(texts)
    return "" if value is None else one_line(str(value), MAX_DETAIL_CHARACTERS)


def _column_widths(wanted: dict[str, int], console_width: int) -> dict[str, int]:
    """Widths of the columns that fit into a table, by name: rank, score, id, and as many of the others, in their order.

    Those that want little get it; the others share what is left evenly.
    """
    wanted = wanted | {"product_id": min(wanted["product_id"], max(LEAST_WIDTH, console_width // 5))}
    room, chosen = console_width - 1, {}
    for number, (name, width) in enumerate(wanted.items()):
        least = width if number < 3 else min(width, LEAST_WIDTH)
        if number > 3 and room < least + 3:  # a border and a space on each side
            break
        chosen[name] = least
        room -= least + 3
    narrow = [name for name in chosen if chosen[name] < wanted[name]]
    while narrow and room > 0:
        each = max(1, room // len(narrow))
        for name in narrow:
            more = min(each, wanted[name] - chosen[name], room)
            chosen[name] += more
            room -= more
        narrow = [name for name in narrow if chosen[name] < wanted[name]]
    return chosen


def _cut(lines: Sequence[Text], width: int, *, whole: bool) -> Text:
    """Lines of a cell as one text, those behind the second replaced by an ellipsis."""
    if len(lines) > LINES_SHOWN and not whole:
        last = lines[LINES_SHOWN - 1]
        last.truncate(width - 1)
        last.rstrip()
        lines = [*lines[: LINES_SHOWN - 1], last + "…"]
    return Text("\n").join(lines)


def found_products(result: SearchResult, query: int = 0) -> list[dict[str, Any]]:
    """What one query found, best first: rank from 1, score, product id, and the columns by name; of groups also how
    many members match.
    """
    columns = [name for name in result.products.column_names if name != "product_id"]
    values = result.columns(columns, query).to_pylist() if columns else [{}] * len(result.product_ids[query])
    each = zip(result.scores[query].tolist(), result.product_ids[query], values, strict=False)
    found = [
        {"rank": rank, "score": score, "product_id": product_id, "columns": shown}
        for rank, (score, product_id, shown) in enumerate(each, start=1 + result.offset)
    ]
    if result.members is not None and result.group_column is not None:
        groups = result.columns([result.group_column], query).column(0).to_pylist()
        for product, group, members in zip(found, groups, result.members[query].tolist(), strict=False):
            product |= {"group": group, "members": members}
    return found


def print_json(value: object) -> None:
    """Prints plain values to standard output, for scripts."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def described(manifest: Manifest) -> dict[str, object]:
    """What scripts want to know of a version."""
    return {
        "version": manifest.version,
        "created_utc": manifest.created_utc,
        "products": manifest.catalog.products,
        "vectors": manifest.catalog.vectors or manifest.catalog.products,
        "rejected": manifest.catalog.rejected,
        "degraded": manifest.catalog.degraded,
        "encoder": manifest.encoder.fingerprint,
        "codec": manifest.codec.fingerprint,
        "factory": manifest.index.factory,
        "nprobe": manifest.index.search.nprobe,
        "recall": manifest.recall.value,
        "bytes": total_bytes(manifest),
        "failed_gates": manifest.gates.get("failed", []),
    }


def tags_of(version: str, tags: Mapping[str, str]) -> str:
    """The tags of a version in words; "" for none."""
    names = sorted(tag for tag, tagged in tags.items() if tagged == version)
    return f"tag{'s' * (len(names) > 1)} {', '.join(names)}" if names else ""


def state_of(manifest: Manifest, current: str, decisions: Decisions) -> str:
    """Whether a version is published, rolled back, held or waiting, in words; "" for none of them.

    Args:
        decisions: What people said of versions (`marks.read_decisions`).
    """
    mark = decisions.get(manifest.version, {})
    if manifest.version == current:
        return f"published, approved by {mark['by']}" if "approved_utc" in mark else "published"
    if "held_utc" in mark:
        return f"held by {mark['by']}: {mark['reason']}"
    if "rolled_back_utc" in mark:
        return "rolled back"
    if marks.waits_for_approval(manifest, decisions):
        return "waits for approval" if manifest.version > current else "was not approved"
    return "held by a gate" if manifest.gates.get("failed") and not mark else ""


def total_bytes(manifest: Manifest) -> int:
    """Bytes of all files of a version."""
    return sum(entry.bytes for entry in manifest.files)
