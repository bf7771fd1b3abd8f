"""The night that every engine runs: a small drawn catalog, in shards enough that a kill falls between them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from index_builder import publish
from tests.engines.processes import PROJECT_ROOT

PRODUCTS, SHARD_ROWS = 480, 30
SETTINGS = (
    *("--config", "demo", "--catalog.shard_rows", str(SHARD_ROWS), "--index.factory", "IVF4,PQ32x4"),
    *("--index.rows_per_add", "200", "--index.verify_queries", "50", "--gates.min_recall", "0"),
)


def whole_catalog(text_field: str) -> tuple[str, ...]:
    """Settings for a catalog of pictures and one text field, its shards and index as the defaults make them."""
    fields = f"[{text_field}]"
    return (
        *("--config", "demo", "--gates.min_recall", "0"),
        *("--catalog.text_fields", fields, "--catalog.display_fields", fields),
    )


class Night(NamedTuple):
    """One run of the job in a folder of its own, as a process."""

    folder: Path
    process: subprocess.Popen[bytes]

    def finish(self, seconds: float = 900.0) -> str:
        """Waits for the end; the output, of a run that must have published."""
        code = self.process.wait(seconds)
        output = (self.folder / "output.txt").read_text(errors="replace")
        assert code == 0, f"exit code {code}\n{output}"
        return output

    def files(self) -> dict[str, str]:
        """sha256 of every file of the published version but those that tell when a night was."""
        index = str(self.folder / "index")
        root = Path(publish.version_uri(index, publish.read_current(index)))
        told = ("manifest.json", "report.html", "report.md", "report.json")
        files = sorted(path for path in root.rglob("*") if path.is_file() and path.name not in told)
        return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def complete_shards(self) -> int:
        return len(list((self.folder / "work" / "embeddings").glob("*/*.json")))

    def wait_for(self, what: str, holds: Callable[[], bool], seconds: float = 900.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, f"ended before {what}: {self.finish()}"
            assert time.monotonic() < deadline, what
            time.sleep(0.05)


def start_night(folder: Path, catalog: str, options: Sequence[str], settings: Sequence[str] = SETTINGS) -> Night:
    """Starts the job over a catalog; work and index lie in `folder`."""
    folder.mkdir(parents=True)
    places = ("--catalog.uri", catalog, "--work.uri", folder / "work", "--index.uri", folder / "index")
    command = [sys.executable, "-m", "pipelines.embed_catalog", *settings, *places, *options]
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=PROJECT_ROOT,
            env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)},
        )
    return Night(folder, process)
