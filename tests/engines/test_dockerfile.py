"""The Dockerfile, as far as it can be tried without a Docker engine: what it copies is there, and installs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import apache_beam
import pytest

from tests.conftest import PROJECT_ROOT

TEXT = (PROJECT_ROOT / "Dockerfile").read_text(encoding="utf-8")


def copied() -> dict[str, str]:
    """Sources of the project, and where they are put."""
    pairs: dict[str, str] = {}
    for line in re.findall(r"^COPY (?!--from)(.+)$", TEXT, re.MULTILINE):
        *sources, target = line.split()
        pairs |= dict.fromkeys(sources, target)
    return pairs


def test_everything_that_is_copied_is_there_and_sent_to_the_builder() -> None:
    sent = {line.removeprefix("!") for line in (PROJECT_ROOT / ".dockerignore").read_text().splitlines() if "!" in line}
    assert set(copied()) == sent
    assert [name for name in sent if not (PROJECT_ROOT / name).exists()] == []


def test_the_image_has_the_beam_that_was_tested() -> None:
    (pinned,) = re.findall(r"^ARG BEAM=(.+)$", TEXT, re.MULTILINE)
    assert f"apache-beam=={pinned}" in (PROJECT_ROOT / "constraints.txt").read_text().splitlines()
    assert pinned == apache_beam.__version__


@pytest.mark.timeout(300)
def test_its_steps_install_and_import_in_a_fresh_environment(tmp_path: Path) -> None:
    """The dependencies are those of this environment: a gate brings no gigabytes."""
    for source, target in copied().items():
        place = tmp_path / "opt" / target
        if (PROJECT_ROOT / source).is_dir():
            shutil.copytree(PROJECT_ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT_ROOT / source, place)
    (step,) = re.findall(
        r"^RUN pip install --constraint constraints\.txt '\.\[.+\]' \\\n && (python -c \".+\")$", TEXT, re.M
    )
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    packages = next((venv / "lib").glob("python*/site-packages"))
    (packages / "tested.pth").write_text(f"{next(path for path in sys.path if path.endswith('site-packages'))}\n")
    install = [venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, "--no-index", "--force-reinstall", tmp_path / "opt"], check=True)
    command = f"cd / && PATH={venv / 'bin'}:$PATH {step.replace('python -c', 'python -I -c')}"
    subprocess.run(["bash", "-ec", command], check=True)
    assert (packages / "pipelines" / "embed_catalog.py").exists()
