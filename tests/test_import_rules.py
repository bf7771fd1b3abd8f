"""Who may import whom: the rooms, the order inside `pipelines`, and third-party libraries kept inside one room.

The rules are read from the source with `ast`, so an import inside a function or under TYPE_CHECKING counts too.
"""

from __future__ import annotations

import ast
import graphlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.benchmarks.house import (
    CONFIG_TYPES,
    SHARD_TYPES,
    circles,
    file_imports,
    folder_imports,
    read_house,
    way_of,
)

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("encoders", "index_builder", "pipelines")

# The folders from the lowest to the highest: code imports from its own folder and from those that stand before it.
# `pipelines` itself holds the commands.
ORDER = (
    *("encoders", "encoders.training", "index_builder"),
    *("pipelines.catalog", "pipelines.images", "pipelines.config", "pipelines.demo_catalog"),
    *("pipelines.published", "pipelines.report"),
    *("pipelines.indexing", "pipelines.evaluation", "pipelines.training"),
    *("pipelines.exporting", "pipelines.server", "pipelines"),
)
# (the modules that the rule is about, what they must not import)
FORBIDDEN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("encoders", ("index_builder", "pipelines", "run_configs", "tests", "faiss", "apache_beam")),
    (
        "index_builder",
        ("encoders", "pipelines", "run_configs", "tests", "torch", "transformers", "open_clip", "apache_beam"),
    ),
    ("pipelines", ("tests", "faiss", "torch", "torchvision", "transformers", "open_clip", "tokenizers", "safetensors")),
    ("pipelines", ("lightning", "onnx", "onnxruntime")),
    ("index_builder", ("lightning", "onnx", "onnxruntime", "safetensors", "tokenizers", "torchvision")),
    # Reading a catalog and its images is plain functions: testable, and usable on any machine that has no Beam.
    ("pipelines.catalog", ("apache_beam",)),
    ("pipelines.images", ("apache_beam",)),
    ("pipelines.demo_catalog", ("apache_beam", "pipelines.catalog")),
    # A server has neither Beam nor the job's steps.
    ("pipelines.server", ("apache_beam", "pipelines.indexing")),
)
# Only a job's command line may need Beam, inside a function and when it is read: other commands start without it.
BEAM_IN_CONFIG = "pipelines.config.command_line"
# A command is what a person starts; nothing is built upon it.
COMMANDS = ("embed_catalog", "build_index", "train_encoder", "evaluate", "search", "serve", "versions", "export")


@dataclass(frozen=True)
class Import:
    """One import statement's target: a dotted module name as far as the statement gives it."""

    module: str
    place: str


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports_of(path: Path, *, top_level_only: bool = False) -> Iterator[Import]:
    return imports_in(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)), top_level_only=top_level_only)


def imports_in(source: str, name: str, *, top_level_only: bool = False) -> Iterator[Import]:
    tree = ast.parse(source, filename=name)
    for node in tree.body if top_level_only else ast.walk(tree):
        place = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, place)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place}: relative import; name the module in full"
            # `from package import module` imports the module; for a plain name the longer form matches no rule.
            for alias in node.names:
                yield Import(f"{node.module}.{alias.name}", place)


def is_inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_there_is_something_to_check() -> None:
    names = {module_name(path) for path in source_files()}
    assert {"encoders.config", "index_builder.spec", "pipelines.config.job"} <= names


@pytest.mark.parametrize(("package", "forbidden"), FORBIDDEN, ids=lambda value: value if isinstance(value, str) else "")
def test_a_room_keeps_to_its_imports(package: str, forbidden: tuple[str, ...]) -> None:
    broken = [
        f"{found.place}: {package} must not import {found.module}"
        for path in source_files()
        if is_inside(module_name(path), package)
        for found in imports_of(path)
        if any(is_inside(found.module, name) for name in forbidden)
    ]
    assert not broken, "\n".join(broken)


def test_folders_import_only_what_stands_before_them() -> None:
    """Every import counts, also those inside functions and under TYPE_CHECKING."""
    packages = {module_name(path) for path in source_files() if path.name == "__init__.py"}
    assert packages == set(ORDER)
    broken = []
    for path in source_files():
        name = module_name(path)
        here = name if name in packages else name.rpartition(".")[0]
        for found in imports_of(path):
            target = found.module
            while target and target not in packages:
                target = target.rpartition(".")[0]
            if target and ORDER.index(target) > ORDER.index(here):
                broken.append(f"{found.place}: {here} must not import from {target}, which is built upon it")
    assert not broken, "\n".join(broken)


def test_the_house_stays_small_enough_to_know() -> None:
    """The figures of `tests.benchmarks.house`, so that a file or a way that grows too long is seen when it does."""
    house = read_house(ROOT)
    assert max(house.lines.values()) <= 500, max(house.lines.items(), key=lambda item: item[1])
    assert 150 <= statistics.median(house.lines.values()) <= 260
    assert circles(file_imports(house)) == circles(folder_imports(house)) == []
    assert len(way_of(CONFIG_TYPES, house)) <= 21
    assert len(way_of(SHARD_TYPES, house)) <= 7


def test_config_needs_no_beam_but_for_a_jobs_command_line() -> None:
    broken = [
        f"{found.place}: imports {found.module}"
        for path in source_files()
        if is_inside(module_name(path), "pipelines.config")
        for found in imports_of(path, top_level_only=module_name(path) == BEAM_IN_CONFIG)
        if is_inside(found.module, "apache_beam")
    ]
    assert not broken, "\n".join(broken)


def test_all_the_beam_of_a_job_stands_in_two_files() -> None:
    """The wiring, and what runs it."""
    beam = ("pipelines.indexing.transforms", "pipelines.indexing.beam_run")
    broken = [
        f"{found.place}: imports {found.module}"
        for path in source_files()
        if is_inside(module_name(path), "pipelines.indexing") and module_name(path) not in beam
        for found in imports_of(path)
        if is_inside(found.module, "apache_beam")
    ]
    assert not broken, "\n".join(broken)


def test_nothing_is_built_upon_a_command() -> None:
    commands = [f"pipelines.{name}" for name in COMMANDS]
    broken = [
        f"{found.place}: {found.module} is a command, nothing imports it"
        for path in source_files()
        for found in imports_of(path)
        if any(is_inside(found.module, name) for name in commands) and not is_inside(module_name(path), found.module)
    ]
    assert not broken, "\n".join(broken)


def test_modules_import_only_what_lies_before_them() -> None:
    """The graph of imports at module level has no cycle.

    A package's `__init__` hands on names of its modules; who imports a module does not depend on that listing.
    """
    known = {module_name(path): path for path in source_files()}
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        if path.name == "__init__.py":
            continue
        targets = set()
        for found in imports_of(path, top_level_only=True):
            for candidate in (found.module, found.module.rpartition(".")[0]):
                if candidate in known and candidate != name and known[candidate].name != "__init__.py":
                    targets.add(candidate)
                    break
        graph[name] = targets
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail("import cycle: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import faiss", ["faiss"]),
        ("def f():\n    from torch import nn", ["torch.nn"]),
        ("if TYPE_CHECKING:\n    import apache_beam as beam", ["apache_beam"]),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, modules: list[str]) -> None:
    assert [found.module for found in imports_in(source, "somewhere.py")] == modules


@pytest.mark.parametrize(
    "module", ["pipelines.indexing.job", "pipelines.indexing.import_vectors", "pipelines.versions"]
)
def test_the_index_is_built_without_loading_torch(module):
    """It takes half a gigabyte and two seconds, and an index of vectors that stand needs none of it."""
    code = (
        f"import sys, {module}; sys.exit(', '.join({{'torch', 'transformers', 'open_clip'}} & set(sys.modules)) or 0)"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr
