"""The job's configuration joins one frozen dataclass for each section, owned by the room that uses it.

A key belongs to the component that it configures; here stand the sections of the job itself, and what joins them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from encoders.config import EncoderConfig
from index_builder import storage
from index_builder.spec import IndexConfig
from pipelines.catalog.config import CatalogConfig, without_login
from pipelines.config.validation import list_keys
from pipelines.images.config import DecodeConfig, FetchConfig

RATED_STAGES = ("embed", "carry", "number", "sample", "train", "refine", "add", "merge", "verify", "publish")
"""What `plan.rates` may name: stages, and `carry`, the part of `embed` that takes over what is unchanged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddingsConfig:
    """The `embeddings:` section of `pipelines.build_index`.

    Attributes:
        uri: One file, a folder, a glob, or a list of those; among them the output folder of clip-retrieval. null: the
            embedding shards of the last run on `work.uri`.
        format: auto goes by the file names.
        emb_folder: Which vectors of clip-retrieval's folder, `img_emb` or `text_emb`. null: the former where there are
            some. Ids and columns are those of its `metadata`, row by row.
        id_field: Column of the ids, text or whole numbers; null numbers the vectors by row. In clip-retrieval's folders
            `image_path` stands for a `product_id` that is not there.
        vector_field: Column of the vectors.
        display_fields: Columns carried to the published products.arrow (Parquet, and clip-retrieval's metadata).
        normalize: Bring every vector to length 1, so that scores are cosines. false leaves lengths as they are; scores
            are then inner products. Values are kept as float16: vectors of which that would lose more than one part in
            256, or that are beyond 65,504, are refused.
        encoder: Folder of the saved encoder that made the vectors; its query side is published with the index. null:
            the version is searched by vector only.
        shard_rows: Vectors of a unit of work and of resume.
    """

    uri: str | tuple[str, ...] | None = None
    format: Literal["auto", "parquet", "npy"] = "auto"
    emb_folder: Literal["img_emb", "text_emb"] | None = None
    id_field: str | None = "product_id"
    vector_field: str = "vector"
    display_fields: tuple[str, ...] = ()
    normalize: bool = True
    encoder: str | None = None
    shard_rows: int = 65_536

    def __post_init__(self) -> None:
        if self.shard_rows < 1:
            raise ValueError(f"shard_rows is {self.shard_rows}: expected 1 or more")
        if self.vector_field in (*self.display_fields, self.id_field):
            raise ValueError(f"vector_field is {self.vector_field!r}, which is the id or a display field too")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkConfig:
    """The `work:` section.

    Attributes:
        uri: Folder for what a run leaves to the next one: embedding shards, plans, the codec; local or fsspec.
        takeover_seconds: A run that gives no sign of life for so long is taken for dead, and the next one goes on in
            its place. One that lives gives one every 10 seconds. A dead process of this very machine is seen at once.
    """

    uri: str
    takeover_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not 30.0 <= self.takeover_seconds <= 3600.0:
            raise ValueError(f"takeover_seconds is {self.takeover_seconds}: expected seconds from 30 to 3600")
        if not self.uri.strip():
            raise ValueError(f"uri is {self.uri!r}: expected a folder, local or fsspec")

    @property
    def vectors(self) -> str | None:
        """Where training and evaluation keep the vectors of towers; None in an object store, which cannot be mapped."""
        return storage.local_path(storage.join(self.uri, "vectors")) if storage.is_local(self.uri) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Canary:
    """A query of `gates.canaries` and what it must find.

    Attributes:
        query: Its words.
        ids: Product ids that must all be among the first `k`.
    """

    query: str
    ids: tuple[str, ...]
    k: int = 10

    def __post_init__(self) -> None:
        if not self.query.strip():
            raise ValueError(f"query is {self.query!r}: expected words")
        if not self.ids:
            raise ValueError(f"ids of the query {self.query!r}: expected at least one product id, found none")
        if self.k < len(self.ids):
            raise ValueError(f"k is {self.k}: expected at least {len(self.ids)}, as many as there are ids")

    @property
    def digest(self) -> str:
        """By which a version knows whether it was asked this one."""
        return storage.digest([self.query, sorted(self.ids), self.k])


@dataclass(frozen=True, kw_only=True, slots=True)
class GatesConfig:
    """The `gates:` section: limits past which a version is kept but not published, and the run exits non-zero.

    The defaults stop what is broken, whatever the shop. A held version says which value would have let it pass. The
    first version at an index address has nothing to be compared with: `max_row_change` is then not applied; the others
    always are.

    Attributes:
        min_precision_cosine: Smallest cosine to float32, 0 to 1, that the 1st percentile of the measured products may
            have where the towers run in another precision (`encoder.precision`); null for no limit. By default what
            only towers fall below that lose more than neighbours are apart; the manifest has what yours lose.
            Remedy: `encoder.precision: float32`, or `bfloat16` instead of `int8`.
        min_recall: Smallest measured recall against exact search, 0 to 1, of all products and under the filters that
            it is measured with (the least counts); null to publish whatever it is. By default
            what only a broken index falls below: one whose codes or ids are wrong finds k of all products by chance,
            under 0.01 from 1,000 products on. Codes of 64 bytes alone measure 0.9 on titles, 0.53
            where each product has 20 near copies, and 0.07 with 200. Set it closer to what your own versions measure.
            Remedy: The message says which option measures more (`--index.refine sq8`); of a codec that no longer fits,
            more `index.bytes_per_vector`.
        max_rejected_share: Largest share of the catalog's rows that may be rejected, 0 to 1. Exports have a few broken
            rows in a thousand; more than one in twenty is a wrong separator, column or encoding.
            Remedy: The message names the most frequent reason and its key; `python -m pipelines.versions rejected`
            lists the rows.
        max_degraded_share: Largest share of the products that may be indexed without a picture or value that could not
            be used, 0 to 1: a picture host that is down for a night must not turn an index into one of texts. null for
            no limit.
            Remedy: Run again when the host is back: only what failed is fetched.
        max_row_change: Largest change of the number of products from the published version, as a share of it (0.2: a
            fifth more or fewer); null for no limit. By default 0.3: the loss of one of three files of an export is
            held back, a season's assortment is not.
            Remedy: Is the export whole? Where the change is meant, the option that the message names lets it pass.
        canaries: Queries that must find certain products, a list of {query, ids, k} or a YAML file with such a list: a
            version in which one of them misses an id among its first k is held back. They are few, the searches that
            a shop would be called about, and are asked of the new version before it is published.
            Remedy: `python -m pipelines.search --version ID --why-not PRODUCT` says what keeps the product out.
        queries: Texts whose first ten answers are compared with those of the version before, in the report: a list, or
            a file with one a line. null: titles of the catalog are drawn.
    """

    min_recall: float | None = 0.05
    max_rejected_share: float = 0.05
    max_degraded_share: float | None = 0.1
    max_row_change: float | None = 0.3
    min_precision_cosine: float | None = 0.95
    canaries: str | tuple[Canary, ...] = ()
    queries: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for key in ("min_recall", "max_rejected_share", "max_degraded_share", "min_precision_cosine"):
            value = getattr(self, key)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"{key} is {value}: expected a number from 0 to 1")
        if self.max_row_change is not None and not self.max_row_change >= 0.0:
            raise ValueError(f"max_row_change is {self.max_row_change}: expected a number of 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsConfig:
    """The `metrics:` section: where a run says what it did, however it ends. They shape nothing that is published.

    Attributes:
        textfile: File for the textfile collector of Prometheus' node exporter, such as
            /var/lib/node_exporter/textfile/shelfmark.prom; a local path that ends with .prom. null: none.
        pushgateway: Address of a Prometheus push gateway, such as http://pushgateway:9091. One that is down costs a
            warning. null: none.
        job: Name under which the push gateway keeps the figures, and the label `job` there; one for each catalog.
        traces: Whether spans of the run, its stages and its tasks go to an OpenTelemetry collector, as the standard
            OTEL_* environment variables say (extra `tracing`).
    """

    textfile: str | None = None
    pushgateway: str | None = field(default=None, repr=False)
    job: str = "shelfmark"
    traces: bool = False

    def __post_init__(self) -> None:
        if self.textfile is not None and ("://" in self.textfile or not self.textfile.endswith(".prom")):
            raise ValueError(
                f"textfile is {self.textfile!r}: expected a local path that ends with .prom, which is what the node "
                "exporter reads"
            )
        address = r"https?://(?!\*\*\*@)[^\s/?#]+(/[^\s?#]*)?"  # `***@` is how a printed config hides a login
        if self.pushgateway is not None and re.fullmatch(address, self.pushgateway) is None:
            raise ValueError("pushgateway: expected an address such as http://pushgateway:9091; found another text")
        if not self.job.strip():
            raise ValueError(f"job is {self.job!r}: expected a name")


End = Literal["published", "unchanged", "held", "waiting", "superseded", "failed", "refused", "busy", "not_cleaned"]


@dataclass(frozen=True, kw_only=True, slots=True)
class NotifyConfig:
    """The `notify:` section: who hears how a run ended. They shape nothing that is published, and cannot fail a run.

    Attributes:
        webhook: Address that gets a POST of JSON: `text` with the first lines of the version's report (Slack,
            Mattermost and Teams show it), `status`, `version`, `products`, `recall`, `exit_code` and the like. null:
            what the environment variable SHELFMARK_WEBHOOK says, for addresses that are a secret.
        command: A program and its arguments that gets the same text on standard input, such as [mail, -s, "Shelfmark:
            {status}", search@shop.example]; the rest as SHELFMARK_STATUS, SHELFMARK_VERSION and so on.
        on: Of which ends they hear.
        lineage_namespace: Namespace of OpenLineage events, one at the beginning and one at the end of each run; where
            they go, the client's own config says (OPENLINEAGE_URL; extra `openlineage`). null: none are sent.
    """

    webhook: str | None = field(default=None, repr=False)
    command: tuple[str, ...] = ()
    on: tuple[End, ...] = ("held", "waiting", "failed", "refused", "not_cleaned")
    lineage_namespace: str | None = None

    def __post_init__(self) -> None:
        if self.webhook is not None and re.fullmatch(r"https?://[^\s/?#]+([/?]\S*)?", self.webhook) is None:
            raise ValueError("webhook: expected an address such as https://hooks.example.com/abc; found another text")
        if self.lineage_namespace is not None and not self.lineage_namespace.strip():
            raise ValueError(f"lineage_namespace is {self.lineage_namespace!r}: expected a name, or null")


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """The `log:` section.

    Attributes:
        format: text for people, or json: one object a line, with time, level, logger, message, run, stage, shard and
            host.
    """

    format: Literal["text", "json"] = "text"


GPU_STAGES = ("embed", "carry", "load")
"""Whose workers have the GPU, where the towers run on one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PricesConfig:
    """The `plan.prices:` section, in whatever money: what is null costs nothing, and with none there is no column.

    A night's report tells by the same prices what the last nights cost.

    Attributes:
        worker_hour: An hour of one worker.
        gpu_hour: An hour of the GPU of a worker, beside `worker_hour`, while it embeds.
        gb_month: A gigabyte (10^9 bytes) kept for a month.
        thousand_requests: A thousand requests to the store.
        gb_read: A gigabyte read from the store, where that is another region or the net.
    """

    worker_hour: float | None = None
    gpu_hour: float | None = None
    gb_month: float | None = None
    thousand_requests: float | None = None
    gb_read: float | None = None

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if value is not None and not 0.0 <= value < float("inf"):
                raise ValueError(f"prices.{each.name} is {value}: expected a number of at least 0, or null")

    def of_stage(self, stage: str, busy_seconds: float, requests: float, read_bytes: float, *, on_gpu: bool) -> float:
        """What a stage's workers, its requests to the store and what it read cost; without what is kept there.

        Args:
            on_gpu: Whether the towers run on one.
        """
        hour = (self.worker_hour or 0.0) + (self.gpu_hour or 0.0) * (on_gpu and stage in GPU_STAGES)
        of_store = requests / 1000 * (self.thousand_requests or 0.0) + read_bytes / 1e9 * (self.gb_read or 0.0)
        return busy_seconds / 3600 * hour + of_store

    @property
    def prices_work(self) -> bool:
        """Whether `of_stage` has anything to reckon with."""
        work = (self.worker_hour, self.gpu_hour, self.thousand_requests, self.gb_read)
        return any(price is not None for price in work)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanConfig:
    """The `plan:` section: what `--plan` reckons the bill of a run with. Of a run only its report looks at the prices.

    Attributes:
        rows: Rows of a catalog to reckon with, such as 1e9, in the shares that this one shows; null: as many as it has.
        workers: Worker processes that work side by side, each as fast as the one that was measured.
        sample_rows: Rows that a plan reads, spread over the catalog; of a larger one the counts are estimates.
        image_bytes: Bytes of a picture that lies outside the catalog, which no plan reads; null: 100,000.
        request_ms: Milliseconds of a request to the store, where no run has been measured there; null: 30, or 0 of a
            local folder.
        rates: CPU seconds a row by stage, such as {embed: 0.004}, in place of what was measured or is guessed.
        prices: What a bill is written in money with.
    """

    rows: int | float | str | None = None
    workers: int = 1
    sample_rows: int = 1_000_000
    image_bytes: int | None = None
    request_ms: float | None = None
    rates: dict[str, float] = field(default_factory=dict)
    prices: PricesConfig = field(default_factory=PricesConfig)

    def __post_init__(self) -> None:
        if self.rows is not None:
            try:
                rows = float(self.rows)  # YAML takes 1e9 for text
            except ValueError:
                raise ValueError(f"rows is {self.rows!r}: expected a number such as 1e9, or null") from None
            if not 1 <= rows < 1e13:
                raise ValueError(f"rows is {self.rows}: expected a number from 1 to 1e13, or null")
            object.__setattr__(self, "rows", int(rows))
        for key in ("workers", "sample_rows"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}: expected 1 or more")
        for key in ("image_bytes", "request_ms"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{key} is {value}: expected 0 or more, or null")
        for stage, rate in self.rates.items():
            if stage not in RATED_STAGES:
                raise ValueError(f"rates.{stage} is not known: expected one of {', '.join(RATED_STAGES)}")
            if not 0 <= rate < float("inf"):
                raise ValueError(f"rates.{stage} is {rate}: expected CPU seconds a row, 0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class JobConfig:
    """Everything that decides what a nightly run makes.

    Attributes:
        beam: Apache Beam's own options by name, such as {runner: PortableRunner}; the command line wins over them. And
            `gpu`, such as `nvidia-l4:1`: workers with GPUs for the towers alone, where the engine hires machines.
    """

    catalog: CatalogConfig
    fetch: FetchConfig = field(default_factory=FetchConfig)
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    encoder: EncoderConfig
    work: WorkConfig
    index: IndexConfig
    gates: GatesConfig = field(default_factory=GatesConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    log: LogConfig = field(default_factory=LogConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    beam: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexJobConfig:
    """Everything that decides what `pipelines.build_index` makes.

    Attributes:
        beam: Apache Beam's own options by name; the command line wins over them.
    """

    embeddings: EmbeddingsConfig = field(default_factory=EmbeddingsConfig)
    work: WorkConfig
    index: IndexConfig
    gates: GatesConfig = field(default_factory=GatesConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    log: LogConfig = field(default_factory=LogConfig)
    beam: dict[str, Any] = field(default_factory=dict)


def to_yaml(config: Any) -> str:
    """A config object in full as YAML, defaults included; read again it gives an equal object, but for logins."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True, width=120)


def to_short_yaml(config: Any) -> str:
    """The same with those keys only that are not at their defaults: a file for people to keep and to change."""
    return yaml.dump(
        _changed(_plain(config), config), Dumper=_ListsInLine, sort_keys=False, allow_unicode=True, width=120
    )


def _plain(config: Any) -> dict[str, Any]:
    """As nested mappings, without logins."""
    data = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples become lists
    for key in list_keys(type(config)):
        if key.secret:
            *sections, leaf = key.name.split(".")
            inner = functools.reduce(lambda values, section: values[section] or {}, sections, data)
            value = inner.get(leaf)
            shown = list(map(without_login, value)) if isinstance(value, list) else without_login(value or "")
            inner |= {leaf: shown} if value else {}
    return data


def _changed(data: dict[str, Any], config: Any) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        default = each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        if value != default:
            inner = data[each.name]
            changed[each.name] = _changed(inner, value) if dataclasses.is_dataclass(value) else inner
    return changed


class _ListsInLine(yaml.SafeDumper):
    """Writes `[title, brand]`, not a line for each."""


_ListsInLine.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
