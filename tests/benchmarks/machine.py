"""The line that every benchmark prints first: on what it ran, and with what."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path


def machine_line(*packages: str) -> str:
    """Processor, cores, memory, Python and the versions of the packages that matter for a figure."""
    with open("/proc/cpuinfo") as file:
        models = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    named = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{models[0] if models else platform.processor()}, {len(os.sched_getaffinity(0))} cores, "
        f"{memory_gib:.0f} GiB, Python {platform.python_version()}, {named}"
    )


def peak_bytes() -> int:
    """The most memory that this process has had; unlike `ru_maxrss` without that of the process which started it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def command_line() -> str:
    """The command as it was given, so that a figure can be made again."""
    module = sys.modules["__main__"].__spec__
    return f"python -m {module.name if module else sys.argv[0]} {' '.join(sys.argv[1:])}".strip()
