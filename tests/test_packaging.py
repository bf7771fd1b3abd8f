"""The wheel holds every package and every data file that stands in the rooms, and names what it needs."""

from __future__ import annotations

import email
import email.message
import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import PROJECT_ROOT
from tests.test_import_rules import imports_of, source_files

INSTALLED = ("encoders", "index_builder", "pipelines", "run_configs")


def files_of_rooms() -> set[str]:
    """Every file of the installed folders, by its path in the project."""
    return {
        path.relative_to(PROJECT_ROOT).as_posix()
        for room in INSTALLED
        for path in (PROJECT_ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    # A copy, so that no build folder of the checkout gets in, and none is left there.
    source = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(PROJECT_ROOT / name, source)
    for room in INSTALLED:
        shutil.copytree(PROJECT_ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*command, "--wheel-dir", target, source], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = target.glob("shelfmark-*.whl")
    return zipfile.ZipFile(path)


def test_every_folder_with_code_is_a_package() -> None:
    without = {
        path.parent.relative_to(PROJECT_ROOT).as_posix()
        for room in INSTALLED
        for path in (PROJECT_ROOT / room).rglob("*.py")
        if not (path.parent / "__init__.py").is_file()
        and "deploy" not in path.parts  # what other systems load from folders of theirs
    }
    assert not without, f"folders with Python files and no __init__.py: {sorted(without)}"


def test_the_wheel_holds_every_file_of_the_rooms_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == files_of_rooms()


def test_the_wheel_names_its_extras_and_its_license(wheel: zipfile.ZipFile) -> None:
    metadata = metadata_of(wheel)
    assert metadata["Name"] == "shelfmark"
    assert set(metadata.get_all("Provides-Extra") or ()) >= {"gpu", "train", "serve", "test", "dev"}
    assert "LICENSE" in {Path(name).name for name in wheel.namelist() if ".dist-info/" in name}


def test_every_library_that_is_imported_is_asked_for_and_the_other_way_round(wheel: zipfile.ZipFile) -> None:
    wanted = requirements_of(wheel)
    asked_for = {canonicalize_name(requirement.name) for requirement in wanted}
    providers = importlib.metadata.packages_distributions()
    imported = {found.module.partition(".")[0]: found.place for path in source_files() for found in imports_of(path)}
    used: set[str] = set()
    missing = []
    for module, place in imported.items():
        if module in sys.stdlib_module_names or module in INSTALLED:
            continue
        names = {canonicalize_name(name) for name in providers.get(module, [module])}
        used |= names
        if not names & asked_for:
            missing.append(f"{place}: imports {module} ({', '.join(names)}), which setup.py does not name")
    assert not missing, "\n".join(missing)
    base = {canonicalize_name(requirement.name) for requirement in wanted if requirement.marker is None}
    assert base <= used, f"in setup.py, and imported nowhere: {sorted(base - used)}"


def test_the_tested_set_meets_what_the_code_asks_for(wheel: zipfile.ZipFile) -> None:
    """Each requirement has a pinned version in constraints.txt that satisfies it; extras for other machines aside."""
    pinned = pins()
    for requirement in requirements_of(wheel):
        base_or_dev = requirement.marker is None or requirement.marker.evaluate({"extra": "dev"})
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None or not base_or_dev, f"constraints.txt does not pin {requirement.name}"
        assert version is None or requirement.specifier.contains(version), f"{requirement} excludes {version}"


def test_constraints_are_plain_pins() -> None:
    for line in (PROJECT_ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        assert not line or line.startswith("#") or line.count("==") == 1, f"not a pin: {line}"
        assert "file:" not in line
        assert " @ " not in line


def metadata_of(wheel: zipfile.ZipFile) -> email.message.Message:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def requirements_of(wheel: zipfile.ZipFile) -> list[Requirement]:
    return [Requirement(text) for text in metadata_of(wheel).get_all("Requires-Dist") or ()]


def pins() -> dict[str, str]:
    lines = (PROJECT_ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    split = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in split}
