"""Publishes one version in a process of its own, which stops for good before its n-th move of a file into place.

usage: python -m tests.index_builder.publish_once INDEX STAGED MANIFEST N
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from index_builder.manifest import Manifest
from index_builder.publish import publish_version


def main(index: str, staged: str, manifest: str, stop_at: int) -> None:
    real = os.replace
    moves = 0

    def replace(source: Any, target: Any) -> None:
        nonlocal moves
        moves += 1
        if moves == stop_at:
            print(f"stopped before {target}", flush=True)
            time.sleep(600)
        real(source, target)

    os.replace = replace
    print(publish_version(index, staged, Manifest.from_json(Path(manifest).read_text())), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
