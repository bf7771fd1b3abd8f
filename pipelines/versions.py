"""Lists, compares and takes back published versions: `python -m pipelines.versions COMMAND --index URI`.

    list, show, diff     which versions there are, what one is, what changed from one to another
    compare              what the same queries find in two of them, each asked by its own encoder
    rejected             the rows and pictures that could not be used, each with its place, reason and detail
    approve, hold        publish one that waits for a person (`index.publish: ask`), or say that it is not to be
    tag, untag, promote  name a version, which is then never removed; publish the one with a tag (`index.channel`)
    rollback, prune      publish an older one, and mark the one gone back from; remove old ones

A tag may stand wherever a version is named.

Exit codes: 0 done, 1 `show --verify` found a damaged file, or what was begun failed, 2 there is no such version or
reason, or the address cannot be used, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import codecs
import getpass
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import get_args

import pyarrow.csv

from index_builder import StorageError, VerificationError, VersionNotFoundError, approval, marks, publish, tags
from pipelines.catalog.dead_letters import MAX_DETAIL_CHARACTERS, Outcome, one_line
from pipelines.config.canaries import load_queries
from pipelines.config.command_line import address, run_command
from pipelines.config.exit_codes import failures_of_work
from pipelines.config.terminal import table_console
from pipelines.published.letters import read_letters, without_formulas
from pipelines.published.tables import (
    described,
    print_diff,
    print_json,
    print_letters,
    print_manifest,
    print_versions,
    state_of,
)
from pipelines.published.version_diff import (
    compare_versions,
    complete_versions,
    newest_version,
    version_before,
)
from pipelines.report.comparison import as_plain, compare_by_queries, print_comparison

LETTERS_SHOWN = 20


def _working() -> AbstractContextManager[None]:
    """Around what changes an index, or reads all of a version: once it has begun, a failure is none of the request."""
    return failures_of_work(StorageError, VerificationError, remedy="")


def main(argv: Sequence[str]) -> int:
    """Runs one of the subcommands; see the module for the exit codes."""
    arguments = _parser().parse_args(argv)
    if getattr(arguments, "version", None) is not None:
        arguments.version = tags.resolved(arguments.index, arguments.version)
    return arguments.run(arguments) or 0


def _list(arguments: argparse.Namespace) -> None:
    manifests = [publish.read_manifest(arguments.index, version) for version in complete_versions(arguments.index)]
    current, decisions = publish.published_version(arguments.index), marks.read_decisions(arguments.index)
    by_tag = tags.read_tags(arguments.index)
    if arguments.json:
        states = [
            {
                "published": each.version == current,
                "rolled_back": "rolled_back_utc" in decisions.get(each.version, {}),
                "state": state_of(each, current, decisions),
                "tags": sorted(tag for tag, version in by_tag.items() if version == each.version),
            }
            for each in manifests
        ]
        print_json([state | described(manifest) for state, manifest in zip(states, manifests, strict=True)])
    else:
        print_versions(manifests, arguments.index, current, decisions, table_console(), by_tag)


def _show(arguments: argparse.Namespace) -> int:
    newest, current = newest_version(arguments.index), publish.published_version(arguments.index)
    decisions = marks.read_decisions(arguments.index)
    version = arguments.version or current or newest
    manifest = publish.read_manifest(arguments.index, version)
    if arguments.json:
        sys.stdout.write(manifest.to_json())
    else:
        print_manifest(manifest, state_of(manifest, current, decisions), table_console())
    if arguments.version is None and version != newest:
        state = state_of(publish.read_manifest(arguments.index, newest), current, decisions) or "not published"
        sys.stderr.write(f"note: {newest} is newer ({state}): name it to see it\n")
    damaged = publish.damaged_files(arguments.index, version) if arguments.verify else []
    for found in damaged:
        sys.stderr.write(f"error: {found}\n")
    if arguments.verify and not damaged:
        sys.stderr.write(f"all {len(manifest.files)} files are as the manifest says\n")
    return 1 if damaged else 0


def _diff(arguments: argparse.Namespace) -> None:
    new = arguments.new or publish.read_current(arguments.index)
    old = arguments.old or version_before(arguments.index, new)
    with _working():
        diff = compare_versions(arguments.index, old, new)
    if arguments.json:
        print_json({**asdict(diff), "old": described(diff.old), "new": described(diff.new)})
    else:
        print_diff(diff, table_console())


def _compare(arguments: argparse.Namespace) -> None:
    new = arguments.new or publish.read_current(arguments.index)
    old = arguments.old or version_before(arguments.index, publish.read_manifest(arguments.index, new).version)
    texts = load_queries(arguments.queries, "--queries")
    with _working():
        comparison = compare_by_queries(arguments.index, old, new, texts)
    if arguments.json:
        print_json(as_plain(comparison))
    else:
        print_comparison(comparison, arguments.n, table_console())


def _rejected(arguments: argparse.Namespace) -> None:
    version = arguments.version or newest_version(arguments.index)
    manifest, decisions = publish.read_manifest(arguments.index, version), marks.read_decisions(arguments.index)
    state = state_of(manifest, publish.published_version(arguments.index), decisions) or "not published"
    whole = arguments.csv or arguments.json
    limit = arguments.n if arguments.n is not None or whole else LETTERS_SHOWN
    with _working():
        letters = read_letters(
            arguments.index, version, reason=arguments.reason, outcome=arguments.outcome, limit=limit
        )
    if letters is None:
        sys.stderr.write(f"version {version} has no rejected.parquet: it was made without dead letters\n")
    elif arguments.csv:
        sys.stdout.flush()
        sys.stdout.buffer.write(codecs.BOM_UTF8)  # without it Excel reads another encoding
        pyarrow.csv.write_csv(without_formulas(letters.picked), sys.stdout.buffer)
    elif arguments.json:
        by_reason = {f"{outcome}: {reason}": count for (outcome, reason), count in letters.by_reason.items()}
        letters_json = letters.picked.to_pylist()
        print_json({"version": version, "state": state, "by_reason": by_reason, "letters": letters_json})
    else:
        print_letters(letters, f"{version} ({state})", table_console(140))


def _approve(arguments: argparse.Namespace) -> None:
    version = arguments.version or _waiting(arguments.index)
    _note_faults(arguments.index, version)
    with _working():
        before = approval.approve(arguments.index, version, by=arguments.by)
    sys.stdout.write(f"published: {version}, approved by {arguments.by} (before: {before or 'none'})\n")


def _note_faults(index_uri: str, version: str) -> None:
    """Says what a gate, or a person, had against a version that is about to be published."""
    for failed in publish.read_manifest(index_uri, version).gates.get("failed", ()):
        sys.stderr.write(f"note: a gate had held {version}: {failed}\n")
    mark = marks.read_decisions(index_uri).get(version, {})
    if "held_utc" in mark:
        sys.stderr.write(f"note: {mark['by']} had held {version}: {mark['reason']}\n")


def _hold(arguments: argparse.Namespace) -> None:
    version = arguments.version or _waiting(arguments.index)
    with _working():
        approval.hold(arguments.index, version, by=arguments.by, reason=arguments.reason)
    current = publish.published_version(arguments.index)
    sys.stdout.write(f"held: {version}, by {arguments.by}; published stays {current or 'none'}\n")


def _waiting(index_uri: str) -> str:
    """The version that waits for approval; VersionNotFoundError where none does."""
    complete_versions(index_uri)
    manifest = publish.newest_waiting(index_uri)
    if manifest is None:
        raise VersionNotFoundError(
            f"{index_uri}: no version waits for approval; name one (python -m pipelines.versions list shows them)"
        )
    return manifest.version


def _tag(arguments: argparse.Namespace) -> None:
    version = publish.read_manifest(arguments.index, arguments.version).version
    tags.check_tag(arguments.tag)
    with _working():
        before = publish.set_tag(arguments.index, arguments.tag, version)
    moved = f" (before: {before})" if before and before != version else ""
    sys.stdout.write(f"{arguments.tag}: {version}{moved}\n")


def _untag(arguments: argparse.Namespace) -> None:
    tags.read_tag(arguments.index, arguments.tag)
    with _working():
        version = tags.remove_tag(arguments.index, arguments.tag)
    sys.stdout.write(f"{version} has not the tag {arguments.tag} any more\n")


def _promote(arguments: argparse.Namespace) -> None:
    version = tags.read_tag(arguments.index, arguments.tag)
    _note_faults(arguments.index, version)
    with _working():
        before = approval.approve(arguments.index, version, by=_user())
    sys.stdout.write(f"published: {version}, as {arguments.tag} names it (before: {before or 'none'})\n")


def _rollback(arguments: argparse.Namespace) -> None:
    # Nothing may be published: a first version that is held by a gate is published by name.
    version = arguments.version or version_before(arguments.index, publish.read_current(arguments.index))
    with _working():
        current = publish.roll_back(arguments.index, version)
    next_run = "The next night publishes a new version on top of it."
    sys.stdout.write(f"published: {version} (before: {current or 'none'}). {next_run}\n")


def _prune(arguments: argparse.Namespace) -> None:
    complete_versions(arguments.index)  # else a mistyped address would look like a tidy one
    gone = publish.to_prune(arguments.index, arguments.keep)
    if arguments.dry_run:
        sys.stdout.write("\n  ".join([f"would remove {len(gone)} version{'s' * (len(gone) != 1)}", *gone]) + "\n")
        return
    with _working():
        removed = publish.prune(arguments.index, arguments.keep)
    left = len(publish.list_versions(arguments.index))
    count = f"removed {len(removed)} version{'s' * (len(removed) != 1)}, {left} left"
    sys.stdout.write("\n  ".join([count, *removed]) + "\n")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, found {text!r}")
    return int(text)


def _said(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected words, found {text!r}")
    return one_line(text, MAX_DETAIL_CHARACTERS)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines.versions", description="Published versions of an index.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, help: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help)
        of_index = "where versions are published (index.uri)"
        made.add_argument("--index", type=address, required=True, metavar="URI", help=of_index)
        if run in (_list, _show, _diff, _compare, _rejected):
            made.add_argument("--json", action="store_true", help="for scripts")
        made.set_defaults(run=run)
        return made

    command("list", _list, "all complete versions, newest first")
    show = command("show", _show, "what a version is, how it was made and measured")
    show.add_argument("version", nargs="?", help="default: the published one, else the newest that is held")
    show.add_argument("--verify", action="store_true", help="read every file and compare its sha256")
    diff = command("diff", _diff, "what changed between two versions")
    diff.add_argument("old", nargs="?", help="default: the one before the new one")
    diff.add_argument("new", nargs="?", help="default: the published one")
    compare = command("compare", _compare, "what the same queries find in two versions, the worst-moved first")
    compare.add_argument("old", nargs="?", help="default: the one before the new one")
    compare.add_argument("new", nargs="?", help="default: the published one")
    compare.add_argument("--queries", type=address, required=True, metavar="FILE", help="texts, one a line")
    compare.add_argument("-n", type=_count, default=20, metavar="N", help="queries to show (default 20)")
    rejected = command("rejected", _rejected, "rows and pictures that could not be used, and why")
    rejected.add_argument("version", nargs="?", help="default: the newest, published or held")
    rejected.add_argument("--reason", help="only letters of this reason, such as missing_id")
    rejected.add_argument(
        "--outcome", choices=get_args(Outcome), help="only rows left out, or products that lost a part"
    )
    csv_help = "all columns for a spreadsheet; a ' stands before a text that it would run as a formula (= + - @)"
    rejected.add_argument("--csv", action="store_true", help=csv_help)
    rejected.add_argument(
        "-n", type=_count, metavar="N", help=f"at most N letters (the table shows {LETTERS_SHOWN}, the others all)"
    )
    of_waiting = "default: the newest that waits for approval"
    approve = command("approve", _approve, "publish a version that waits for a person, or that a gate held")
    approve.add_argument("version", nargs="?", help=of_waiting)
    hold = command("hold", _hold, "say that a version is not to be published, and why")
    hold.add_argument("version", nargs="?", help=of_waiting)
    hold.add_argument("--reason", type=_said, required=True, metavar="TEXT", help="why, for those who come after")
    for made in (approve, hold):
        by = "who says so (default: the user of this process)"
        made.add_argument("--by", type=_said, default=_user(), metavar="NAME", help=by)
    tag = command("tag", _tag, "name a version; one with a tag is never removed")
    tag.add_argument("tag", help="such as black-friday: small letters, digits, _ and -")
    tag.add_argument("version", help="its id, or another tag of it")
    untag = command("untag", _untag, "take a tag away; the version stays until it is pruned")
    untag.add_argument("tag")
    promote = command("promote", _promote, "publish the version with a tag, such as what index.channel rehearsed")
    promote.add_argument("tag", nargs="?", default="shadow", help="default: shadow")
    rollback = command("rollback", _rollback, "publish an older version; the one gone back from is marked")
    rollback.add_argument("version", nargs="?", help="default: the one before the published one")
    prune = command("prune", _prune, "remove old versions, never the published one")
    prune.add_argument("--keep", type=int, required=True, metavar="N", help="the newest N stay, and one to go back to")
    prune.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    return parser


if __name__ == "__main__":
    sys.exit(run_command(main))
