"""The whole configuration of a job: one frozen dataclass for each section, owned by the room that uses it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import yaml

from encoders.spec import EncoderConfig
from index_builder.spec import IndexConfig
from pipelines.catalog.config import CatalogConfig
from pipelines.catalog.pictures.decode_config import DecodeConfig
from pipelines.catalog.pictures.fetch_config import FetchConfig
from pipelines.external_vectors.config import EmbeddingsConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkConfig:
    """The `work:` section.

    Attributes:
        uri: Folder for what a run leaves to the next one: embedding shards, plans, the codec; local or fsspec.
    """

    uri: str

    def __post_init__(self) -> None:
        if not self.uri.strip():
            raise ValueError(f"uri is {self.uri!r}: expected a folder, local or fsspec")


@dataclass(frozen=True, kw_only=True, slots=True)
class GatesConfig:
    """The `gates:` section: limits past which a version is kept but not published, and the run exits non-zero.

    The first version at an index address has nothing to be compared with: `max_row_change` is then not applied; the
    others always are.

    Attributes:
        min_recall: Smallest measured recall against exact search, 0 to 1; null to publish whatever it is.
        max_rejected_share: Largest share of the catalog's rows that may be rejected, 0 to 1.
        max_degraded_share: Largest share of the products that may be indexed without a picture or value that could not
            be used, 0 to 1: a picture host that is down for a night must not turn an index into one of texts. null for
            no limit.
        max_row_change: Largest change of the number of products from the published version, as a share of it (0.2: a
            fifth more or fewer); null for no limit.
    """

    min_recall: float | None = None
    max_rejected_share: float = 0.05
    max_degraded_share: float | None = None
    max_row_change: float | None = None

    def __post_init__(self) -> None:
        for key in ("min_recall", "max_rejected_share", "max_degraded_share"):
            value = getattr(self, key)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{key} is {value}: expected a number from 0 to 1")
        if self.max_row_change is not None and not self.max_row_change >= 0.0:
            raise ValueError(f"max_row_change is {self.max_row_change}: expected a number of 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class JobConfig:
    """Everything that decides what a nightly run makes.

    Attributes:
        catalog: Where the products come from and which fields mean what.
        fetch: How pictures are fetched.
        decode: How pictures are decoded.
        encoder: What turns products into vectors.
        work: Where a run keeps what the next one uses again.
        index: What is built, and where it is published.
        gates: What stops a version from being published.
        beam: Apache Beam's own options by name, such as {direct_num_workers: 4}; the command line wins over them.
    """

    catalog: CatalogConfig
    fetch: FetchConfig = field(default_factory=FetchConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    encoder: EncoderConfig
    work: WorkConfig
    index: IndexConfig
    gates: GatesConfig = field(default_factory=GatesConfig)
    beam: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexJobConfig:
    """Everything that decides what `pipelines.build_index` makes.

    Attributes:
        embeddings: Which vectors.
        work: Where a run keeps what the next one uses again.
        index: What is built, and where it is published.
        gates: What stops a version from being published.
        beam: Apache Beam's own options by name; the command line wins over them.
    """

    embeddings: EmbeddingsConfig = field(default_factory=EmbeddingsConfig)
    work: WorkConfig
    index: IndexConfig
    gates: GatesConfig = field(default_factory=GatesConfig)
    beam: dict[str, Any] = field(default_factory=dict)


def to_yaml(config: Any) -> str:
    """A config object in full as YAML, defaults included; read again it gives an equal object."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
