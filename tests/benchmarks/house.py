"""Prints the size and shape of the program: its modules, the circles in its imports, and how far two things travel.

What `tests/test_import_rules.py` holds as rules stands here as figures, so that two checkouts can be set side by side:

    python -m tests.benchmarks.house [CHECKOUT ...]

Everything is read from the source with `ast`; nothing of a checkout is run. Tests, and code that is made by tools, are
left out. Imports inside functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import argparse
import ast
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOMS = ("encoders", "index_builder", "pipelines")
CONFIG_TYPES = frozenset(
    {
        *("JobConfig", "IndexJobConfig", "CatalogConfig", "FetchConfig"),
        *("DecodeConfig", "WorkConfig", "GatesConfig", "EmbeddingsConfig"),
    }
)
"""What carries the configuration of the indexing job: the whole, and its sections."""
SHARD_TYPES = frozenset(
    {
        *("CatalogShard", "CatalogPlan", "Piece", "PlainFile", "RowRange", "FileRange"),
        *("Stretch", "RawBatch", "RawRows", "ProductBatch", "Products", "PreparedProducts"),
    }
)
"""What carries a catalog shard, or its rows, on the way from the plan to the towers."""


@dataclass(frozen=True, kw_only=True)
class House:
    """The modules of one checkout, by dotted name.

    Attributes:
        lines: lines of each module, blank ones and comments included.
        imports: module -> the modules it imports.
        names: module -> the names it imports or defines at its top level.
    """

    lines: dict[str, int]
    imports: dict[str, set[str]]
    names: dict[str, set[str]]


def read_house(root: Path) -> House:
    """Reads every module of the rooms under `root`."""
    paths = {_module_name(path, root): path for room in ROOMS for path in sorted((root / room).rglob("*.py"))}
    lines, imports, names = {}, {}, {}
    for module, path in paths.items():
        source = path.read_text(encoding="utf-8")
        lines[module] = source.count("\n")
        imports[module], names[module] = _imports(ast.parse(source), module, paths)
    return House(lines=lines, imports=imports, names=names)


def _module_name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _imports(tree: ast.Module, module: str, paths: dict[str, Path]) -> tuple[set[str], set[str]]:
    found: set[str] = set()
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in paths}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.name for alias in node.names}
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found |= {full} if full in paths else {node.module} & paths.keys()
    return found - {module}, names


def folder_of(module: str, house: House) -> str:
    """The folder that a module stands in; a package's `__init__` stands in the package."""
    is_package = any(other.startswith(f"{module}.") for other in house.lines)
    return module if is_package else module.rpartition(".")[0]


def circles(edges: dict[str, set[str]]) -> list[str]:
    """The nodes that stand in circles, or on a way from one circle to another; none where there is no circle."""
    left = {start: set(stops) for start, stops in edges.items()}
    while True:
        reached = set().union(*left.values()) if left else set()
        kept = {start: stops & left.keys() for start, stops in left.items() if stops & left.keys() and start in reached}
        if kept == left:
            return sorted(kept)
        left = kept


def folder_imports(house: House) -> dict[str, set[str]]:
    """Folder -> the folders that its modules import from."""
    edges: dict[str, set[str]] = defaultdict(set)
    for module, targets in house.imports.items():
        here = folder_of(module, house)
        edges[here] |= {folder_of(target, house) for target in targets} - {here}
    return dict(edges)


def file_imports(house: House) -> dict[str, set[str]]:
    """Module -> modules, without the packages' `__init__`, which only hand names on."""
    packages = {module for module in house.lines if folder_of(module, house) == module}
    return {module: targets - packages for module, targets in house.imports.items() if module not in packages}


def way_of(types: Iterable[str], house: House) -> list[str]:
    """The modules of the indexing job that define or import one of these types, without the packages' `__init__`.

    Evaluation and training read catalogs too, and the server fetches pictures, with configurations of their own.
    """
    wanted = set(types)
    others = ("pipelines.evaluation", "pipelines.evaluate", "pipelines.train", "pipelines.serve")
    return [
        module
        for module, names in house.names.items()
        if names & wanted and folder_of(module, house) != module and not module.startswith(others)
    ]


def report(root: Path, house: House) -> str:
    """The figures of one checkout, in words."""
    sizes = sorted(((count, module) for module, count in house.lines.items()), reverse=True)
    config, shard = way_of(CONFIG_TYPES, house), way_of(SHARD_TYPES, house)
    found = {"files": circles(file_imports(house)), "folders": circles(folder_imports(house))}
    rows = [
        ("modules", f"{len(sizes)}"),
        ("lines", f"{sum(house.lines.values()):,}"),
        ("median lines of a module", f"{statistics.median(house.lines.values()):.0f} (150 to 260)"),
        ("largest module", f"{sizes[0][0]} lines, {sizes[0][1]} (at most 500)"),
        *((f"circles between {kind}", ", ".join(all_) or "none") for kind, all_ in found.items()),
        ("files that the config enters", f"{len(config)} (at most 21)"),
        ("files that a catalog shard enters", f"{len(shard)} (at most 7): {', '.join(shard)}"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join([str(root), *(f"  {name:{width}}  {value}" for name, value in rows)])


def main() -> None:
    """Prints the figures of each checkout that is named; of this one where none is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path(__file__).resolve().parents[2]])
    for root in parser.parse_args().checkouts:
        print(report(root, read_house(root)))


if __name__ == "__main__":
    main()
