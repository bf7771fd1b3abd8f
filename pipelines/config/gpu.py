"""`beam.gpu` asks an engine for workers with GPUs: `nvidia-l4:1`, or `nvidia-l4:1:g2-standard-8`.

It goes to the engine as Beam's own resource hint, of the stage that runs the towers and of no other: the index is built
on machines without a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.config.validation import ConfigError

_REQUEST = re.compile(r"([a-z][a-z0-9-]*)(?::([1-9][0-9]?))?(?::([a-z][a-z0-9-]*))?")
_INSTEAD_OF_HINTS = "worker_accelerator"


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuRequest:
    """The GPUs of a worker that runs towers.

    Attributes:
        kind: As the engine calls it, such as `nvidia-l4`.
        count: GPUs of a machine.
        machine_type: Of Google's machines: how many cores decode ahead of them; None: the engine chooses.
    """

    kind: str
    count: int = 1
    machine_type: str | None = None

    @classmethod
    def of(cls, beam: Mapping[str, Any]) -> GpuRequest | None:
        """What a `beam:` section asks for, None without `gpu`; ConfigError where that cannot be read."""
        given = beam.get("gpu")
        if given is None:
            return None
        found = _REQUEST.fullmatch(given) if isinstance(given, str) else None
        if found is None:
            raise ConfigError(
                f"beam.gpu: expected a kind and a number such as nvidia-l4:1, and a machine type behind them if it "
                f"matters (nvidia-l4:1:g2-standard-8); found {given!r}"
            )
        if any(_INSTEAD_OF_HINTS in str(option) for option in _listed(beam.get("dataflow_service_options"))):
            raise ConfigError(
                f"beam.gpu is {given}, and beam.dataflow_service_options has {_INSTEAD_OF_HINTS}, which gives every "
                "worker a GPU: Dataflow takes one or the other; leave the option out"
            )
        return cls(kind=found[1], count=int(found[2] or 1), machine_type=found[3])

    @property
    def hint(self) -> str:
        """The value of the hint `accelerator`, in Google's words: the one engine that reads it."""
        machine = f"machine_type:{self.machine_type};" if self.machine_type else ""
        return f"type:{self.kind};count:{self.count};{machine}install-nvidia-driver"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
