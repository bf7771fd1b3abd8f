"""The `decode:` section of a job: how many pictures are decoded at a time, and how large one may be."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pipelines.catalog.errors import CatalogConfigError

DECODING_RULES = 1
"""Raised whenever the same bytes would give other pixels, so that what was embedded under older rules can be told
apart.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """Limits of decoding.

    Attributes:
        threads: Pictures decoded at a time. 0: one for each core this process may use.
        max_pixels: Largest picture, width times height, as its header has it. A larger one is not decoded.
        pending_images: Pictures of one worker that are fetched or decoded ahead of the model (see `prefetch`).
    """

    threads: int = 0
    max_pixels: int = 64_000_000
    pending_images: int = 512

    def __post_init__(self) -> None:
        for key, least in (("threads", 0), ("max_pixels", 1), ("pending_images", 2)):
            value = getattr(self, key)
            if value < least:
                raise CatalogConfigError(f"decode.{key}: expected a whole number of at least {least}; found {value!r}")

    @property
    def thread_count(self) -> int:
        """`threads`, or the cores this process may use."""
        return self.threads or len(os.sched_getaffinity(0))
