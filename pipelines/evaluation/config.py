"""Holds what an evaluation is asked: which systems, which queries, what is right, and how it is counted.

Systems are named in short on the command line, `--systems NAME=WHAT ...`:

    in_use=nightly.yaml                                   the encoder of a job's YAML file, or of a shipped config
    new=trained/encoder                                   a saved encoder
    new=trained/seed0,trained/seed1                       the same encoder trained from two seeds
    live=s3://shop/index                                  the published version of an index, searched as it serves
    old=s3://shop/index@20261120T031500Z-54ecf43a0d36     another version of it
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from encoders import EncoderConfig
from index_builder import storage
from pipelines.catalog.config import CatalogConfig
from pipelines.config.job import WorkConfig
from pipelines.config.validation import ConfigError
from pipelines.config.yaml_files import read_config_file
from pipelines.images.config import DecodeConfig, FetchConfig

OPTION = "--systems"
_VERSION = re.compile(r"^(.+)@(\d{8}T\d{6}Z-[0-9a-f]{12})$")


def expand_systems(argv: Sequence[str]) -> list[str]:
    """Arguments with `--systems NAME=WHAT ...` written out as the YAML list that `systems` is.

    A list given as YAML stays as it is.

    Raises:
        ConfigError: A system has no name, or what it names is neither a config, a saved encoder nor an index.
    """
    expanded: list[str] = []
    rest = deque(argv)
    while rest:
        argument = rest.popleft()
        if argument != OPTION and not argument.startswith(f"{OPTION}="):
            expanded.append(argument)
            continue
        given = [argument.partition("=")[2]] if "=" in argument else []
        while rest and not rest[0].startswith("--"):
            given.append(rest.popleft())
        is_yaml = len(given) == 1 and given[0].lstrip().startswith("[")
        expanded += [OPTION, given[0] if is_yaml else json.dumps([_system(text) for text in given])]
    return expanded


def _system(text: str) -> dict[str, Any]:
    name, equals, what = text.partition("=")
    if not equals or not name or not what:
        raise ConfigError(
            f"{OPTION}: found {text!r}, expected NAME=WHAT, where WHAT is a job's config, a saved encoder or an index"
        )
    address, version = split_version(what)
    if version:
        return {"name": name, "index": address, "version": version}
    encoders = [_encoder(name, one) for one in what.split(",")]
    if len(encoders) > 1:
        if None in encoders:
            raise ConfigError(f"{OPTION} {name}: found an index among several, expected encoders of one kind")
        return {"name": name, "encoders": encoders}
    return {"name": name, "index": what} if encoders[0] is None else {"name": name, "encoder": encoders[0]}


def split_version(what: str) -> tuple[str, str | None]:
    """The address of an index and the version in INDEX@VERSION; None for the published one."""
    found = _VERSION.match(what)
    return (found[1], found[2]) if found else (what, None)


def _encoder(name: str, what: str) -> dict[str, Any] | None:
    """The `encoder:` section that a name stands for; None for an index."""
    if what.endswith((".yaml", ".yml")):
        return _section(name, what)
    # What lies in a package is looked for with the other encoders' files, before any work.
    if what.startswith("package://") or _exists(storage.join(what, "encoder.json")):
        return {"uri": what}
    if _exists(storage.join(what, "CURRENT")):
        return None
    try:
        return _section(name, what)
    except ConfigError as error:
        raise ConfigError(
            f"{OPTION} {name}={what}: found neither a saved encoder (encoder.json) nor an index (CURRENT) nor a config "
            f"there. {error}"
        ) from error


def _section(name: str, config: str) -> dict[str, Any]:
    section = read_config_file(config).data.get("encoder")
    if not isinstance(section, dict):
        raise ConfigError(f"{OPTION} {name}={config}: the config has no section encoder")
    return section


def _exists(uri: str) -> bool:
    try:
        return storage.exists(uri)
    except storage.StorageError as error:
        raise ConfigError(f"{OPTION}: {error}") from error


LEAVE_OUT = "leave-out"

ProductPart = Literal["fused", "text", "picture"]
QueryPart = Literal["all", "text", "picture"]
TwoLabels = Literal["refuse", "best", "leave-out"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemConfig:
    """One system of a comparison: an encoder, searched exactly, or a published index version, searched as it serves.

    Attributes:
        name: How the tables call it.
        encoder: The encoder.
        encoders: Instead of one: the same encoder trained from several seeds; the mean and the spread are told.
        index: Instead of an encoder: where versions are published.
        version: Version of the index; null for the published one.
        products: What of a product its vector is made of: fused, text or picture.
        queries: What of a query is used: all that the encoder reads, text or picture.
    """

    name: str
    encoder: EncoderConfig | None = None
    encoders: tuple[EncoderConfig, ...] = ()
    index: str | None = None
    version: str | None = None
    products: ProductPart = "fused"
    queries: QueryPart = "all"

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError(f"name is {self.name!r}: expected a name for the tables")
        given = (self.encoder is not None) + bool(self.encoders) + (self.index is not None)
        if given != 1:
            raise ValueError(
                f"system {self.name!r}: expected one of encoder, encoders and index, found {given} of them"
            )
        if self.version is not None and self.index is None:
            raise ValueError(
                f"version is {self.version!r}: expected together with index, system {self.name!r} has none"
            )
        if self.index is not None and self.products != "fused":
            raise ValueError(f"products is {self.products!r}: an index holds the vectors that it holds; remove it")

    @property
    def runs(self) -> tuple[EncoderConfig, ...]:
        """The encoders, one a seed; none for an index."""
        return self.encoders or (() if self.encoder is None else (self.encoder,))


def exact_name(system: SystemConfig) -> str:
    """What the tables call an index's vectors when they are searched exactly."""
    return f"{system.name}, exact"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """The `evaluation:` section.

    Attributes:
        queries: File of the queries: Parquet, CSV, TSV or JSON Lines, anywhere that fsspec reads; null where judgments
            or purchases hold the queries' texts.
        judgments: File of query, product and label: E/S/C/I, the words Exact, Substitute, Complement, Irrelevant, or
            numbers.
        purchases: File of query and product bought for it; recall is then that of the purchases.
        split: Only the queries of this split (column split).
        only: Only rows with these values, such as {product_locale: us}, in those of the files that have the columns.
        query_id_field: Column of the query's id, in all three files; of a file without one the query's text is its id.
        query_field: Column of the query's text; null where queries are pictures only.
        query_image_field: Column of the query's picture: path, URI or bytes; null for none.
        query_image_root: What relative paths of query pictures are relative to.
        product_id_field: Column of the product's id.
        label_field: Column of the label.
        relevant: Labels that mean relevant (default: numbers above 0, or Exact).
        grades: Grade of each label for nDCG, such as {Exact: 3, Substitute: 2}; default: numbers as they are, or 1 for
            what is relevant.
        unlabelled: What counts for a pair without a label: leave-out, or the label that it then has.
        two_labels: A pair that the judgments give two labels: refuse the file, take the best of them, or leave-out.
        annotator: Labels pairs that no file labels: a Python function as module:function.
        annotations: File that keeps the annotator's labels for the next run (default: below work.uri).
        annotator_batch: Pairs that the annotator gets at a time.
        vectors: A local folder that keeps the vectors of towers, by tower and by what it saw, for the next evaluation
            or training; default: `vectors` below a local work.uri.
        k: Results of a query that recall, label precision, overlap and net figures look at.
        measures: Further measures as ir-measures names them.
        by: Column of the products (of the catalog; of the index's products where indexes alone are compared): recall is
            told for each of its values too.
        segments: So many of these values, those that the most products are wanted of.
        resamples: Bootstrap samples of the queries.
        confidence: Of the intervals, between 0 and 1.
        seed: Of the bootstrap.
    """

    queries: str | None = None
    judgments: str | None = None
    purchases: str | None = None
    split: str | None = None
    only: dict[str, str | int | float] = field(default_factory=dict)
    query_id_field: str = "query_id"
    query_field: str | None = "query"
    query_image_field: str | None = None
    query_image_root: str | None = None
    product_id_field: str = "product_id"
    label_field: str = "label"
    relevant: tuple[str, ...] = ()
    grades: dict[str, int] = field(default_factory=dict)
    unlabelled: str = LEAVE_OUT
    two_labels: TwoLabels = "refuse"
    annotator: str | None = None
    annotations: str | None = None
    annotator_batch: int = 64
    vectors: str | None = None
    k: int = 100
    measures: tuple[str, ...] = ()
    by: str | None = None
    segments: int = 20
    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("annotator_batch", "k", "segments", "resamples"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}: expected 1 or more")
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence is {self.confidence}: expected a number between 0 and 1, both excluded")
        if self.query_field is None and self.query_image_field is None:
            raise ValueError("query_field and query_image_field are null: expected at least one of the two")
        if any(grade < 0 for grade in self.grades.values()):
            raise ValueError(f"grades is {self.grades}: expected whole numbers of 0 or more")
        if self.annotator is not None and not all(part.strip() for part in self.annotator.partition(":")):
            raise ValueError(f"annotator is {self.annotator!r}: expected module:function")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateJob:
    """The sections of a job's configuration that decide what an encoder finds, and how it is measured.

    Attributes:
        catalog: Where the products come from and which fields mean what.
        fetch: How pictures are fetched.
        decode: How pictures are decoded.
        encoder: What is evaluated where no systems are named.
        work: Where the demo catalog is drawn, compressed catalogs are unpacked, and labels are kept.
        evaluation: Queries, judgments, and how it is counted.
        systems: What is compared: a YAML list, or NAME=WHAT for each, where WHAT is a saved encoder, a job's YAML file
            or an index.
        baseline: The system that the others are compared with, by name.
        out: Folder for the tables as Markdown and CSV and the plot as PNG and SVG; null to print only.
    """

    catalog: CatalogConfig
    fetch: FetchConfig = field(default_factory=FetchConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    encoder: EncoderConfig | None = None
    work: WorkConfig
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    systems: tuple[SystemConfig, ...] = ()
    baseline: str | None = None
    out: str | None = None

    def __post_init__(self) -> None:
        names = [system.name for system in self.systems]
        names += [exact_name(system) for system in self.systems if system.index is not None]
        problems = [
            f"systems: the name {name!r} stands more than once; expected each once"
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        if self.baseline is not None and self.baseline not in names:
            known = ", ".join(map(repr, names)) or "none"
            problems.append(
                f"baseline is {self.baseline!r}: expected the name of one of the systems, which are {known}"
            )
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def vectors(self) -> str | None:
        """Local folder that keeps the vectors of towers; None, where work.uri is no folder of this machine that can be
        written, keeps them while the evaluation lasts.
        """
        if self.evaluation.vectors is not None or self.work.vectors is None:
            return self.evaluation.vectors
        try:
            storage.check_writable(self.work.vectors)
        except storage.StorageError:
            return None
        return self.work.vectors

    @property
    def spool_uri(self) -> str:
        """Folder for plain copies of compressed catalog files."""
        return storage.join(self.work.uri, "spool")
