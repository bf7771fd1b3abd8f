"""Lists, compares and takes back published versions.

    python -m pipelines.versions list|show|diff|rollback|prune --index URI

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
from dataclasses import asdict

from rich.console import Console

from index_builder import publish
from pipelines.config.command_line import run_command
from pipelines.config.terminal import table_console
from pipelines.published.tables import described, print_diff, print_manifest, print_versions, state_of
from pipelines.published.version_diff import compare_versions, current_version, version_before

EXIT_DAMAGED = 1


def main(argv: Sequence[str]) -> int:
    """Runs one of the subcommands; see the module for the exit codes."""
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments, table_console())


def _list(arguments: argparse.Namespace, console: Console) -> int:
    manifests = [publish.read_manifest(arguments.index, version) for version in publish.list_versions(arguments.index)]
    current = current_version(arguments.index)
    if arguments.json:
        _print_json([{"published": manifest.version == current, **described(manifest)} for manifest in manifests])
        return 0
    print_versions(manifests, arguments.index, current, console)
    return 0


def _show(arguments: argparse.Namespace, console: Console) -> int:
    version = arguments.version or publish.read_current(arguments.index)
    manifest = publish.read_manifest(arguments.index, version)
    if arguments.json:
        sys.stdout.write(manifest.to_json())
    else:
        print_manifest(manifest, state_of(manifest, current_version(arguments.index)), console)
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
    old = arguments.old or version_before(arguments.index, new)
    diff = compare_versions(arguments.index, old, new)
    if arguments.json:
        _print_json({**asdict(diff), "old": described(diff.old), "new": described(diff.new)})
    else:
        print_diff(diff, console)
    return 0


def _rollback(arguments: argparse.Namespace, console: Console) -> int:
    current = publish.read_current(arguments.index)
    version = arguments.version or version_before(arguments.index, current)
    publish.set_current(arguments.index, version)
    console.print(f"published: {version} (before: {current}). The next night publishes a new version on top of it.")
    return 0


def _prune(arguments: argparse.Namespace, console: Console) -> int:
    removed = publish.prune(arguments.index, arguments.keep)
    left = publish.list_versions(arguments.index)
    console.print(f"removed {len(removed)} versions, {len(left)} left" + "".join(f"\n  {name}" for name in removed))
    return 0


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
