"""People and catalogs of data hear how a run ended: a webhook, a command such as `mail`, OpenLineage.

A notice is the first lines of the version's report where there is one, else what the run came to, in words.
"""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from subprocess import DEVNULL, PIPE
from typing import Any

import httpx2
import tenacity

from index_builder import storage
from pipelines.config import exit_codes
from pipelines.config.job import NotifyConfig
from pipelines.config.validation import ConfigError
from pipelines.indexing.publish_step import RunResult

REPORT_FILE = "report.md"
LINES = 12
MOST_CHARACTERS = 3000
"""Slack and Teams cut longer texts."""
ATTEMPTS = 3
WEBHOOK_SECONDS = 10.0
COMMAND_SECONDS = 30.0
WEBHOOK_VARIABLE = "SHELFMARK_WEBHOOK"
ENDS = {
    exit_codes.FAILED: "failed",
    exit_codes.REFUSED: "refused",
    exit_codes.HELD: "held",
    exit_codes.BUSY: "busy",
    exit_codes.NOT_CLEANED: "not_cleaned",
}
PRODUCER = "urn:shelfmark"


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """How a run ended, for people: `status` is one of `notify.on`, `text` has at most `LINES` lines."""

    status: str
    text: str
    facts: Mapping[str, Any]


def notice_of(values: Mapping[str, Any], result: RunResult | None) -> Notice:
    """The notice of a run that ended.

    Args:
        values: What `metrics.json` holds.
        result: What the run came to; None where it was not that far.
    """
    status = ENDS.get(values["exit_code"]) or str(values.get("status", "published"))
    if result is not None and result.status == "waiting":
        status = "waiting"
    heading = f"Shelfmark: {status}"
    lines = [str(values["error"])] if values["error"] else []
    if result is not None:
        heading += f", {result.version}"
        gave_way = "Not published: another run has published a newer version meanwhile."
        lines += [gave_way] if result.status == "superseded" else []
        lines += [*result.failed_gates, *_report_lines(result)]
        if not lines:
            rejected = f"{values['rows_rejected']:,} rows rejected"
            lines = [f"{values['products']:,} products, {rejected}, recall {result.recall:.4f}"]
    text = "\n".join([heading, *"\n".join(lines).splitlines()][:LINES])
    text = text.encode(errors="backslashreplace").decode()  # file names may hold what no UTF-8 has
    names = ("exit_code", "status", "version", "products", "rows_rejected", "recall", "duration_seconds")
    facts = {name: values[name] for name in names if name in values}
    return Notice(status=status, text=text[:MOST_CHARACTERS], facts=facts)


def _report_lines(result: RunResult) -> list[str]:
    uri = storage.join(result.uri, REPORT_FILE)
    if result.status == "unchanged" or not storage.exists(uri):
        return []
    return [line for line in storage.read_bytes(uri).decode().splitlines() if line.strip()]


def check_notify(config: NotifyConfig) -> None:
    """ConfigError where the `notify:` section cannot be followed; before any work."""
    if config.lineage_namespace is not None and find_spec("openlineage") is None:
        raise ConfigError(
            "notify.lineage_namespace is set, which needs an extra; in the clone: pip install -e '.[openlineage]'"
        )


def is_heard(config: NotifyConfig) -> bool:
    """Whether a webhook or a command hears of any end."""
    return bool(_webhook(config) or config.command)


def _webhook(config: NotifyConfig) -> str:
    # A secret that was mounted as a file, or pasted, often ends in a line break.
    return config.webhook or os.environ.get(WEBHOOK_VARIABLE, "").strip()


def send_webhook(config: NotifyConfig, notice: Notice) -> None:
    """POSTs a notice as JSON, `text` as Slack, Mattermost and Teams take it; tried three times. Raises what it met."""
    url = _webhook(config)
    if not url or notice.status not in config.on:
        return
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(ATTEMPTS), wait=tenacity.wait_exponential(max=4), reraise=True
    )
    body = {"text": notice.text, **notice.facts, "status": notice.status}

    def post() -> None:
        # Of the answer only the status is read, whatever its body has.
        with httpx2.stream("POST", url, json=body, timeout=WEBHOOK_SECONDS) as answer:
            if not answer.is_success:  # httpx's own error tells the address, which often is the secret
                raise OSError(f"it answered {answer.status_code} {answer.reason_phrase}")

    retrying(post)


def run_command(config: NotifyConfig, notice: Notice) -> None:
    """Runs `notify.command` with the notice on its standard input, and its facts as SHELFMARK_STATUS and so on.

    What it prints is dropped, for standard output has the run's summary; its errors go where the run's go.

    Raises:
        OSError: it cannot be started, takes too long, or says that it failed. Its arguments, often secrets, are not
            told.
    """
    if not config.command or notice.status not in config.on:
        return
    facts = {f"SHELFMARK_{name.upper()}": str(value) for name, value in notice.facts.items()}
    environment = os.environ | facts | {"SHELFMARK_STATUS": notice.status}
    program, *words = (word.replace("{status}", notice.status) for word in config.command)
    # A session of its own: what it started goes with it, where it takes too long.
    with subprocess.Popen(
        [program, *words], stdin=PIPE, stdout=DEVNULL, env=environment, start_new_session=True
    ) as process:
        try:
            process.communicate(notice.text.encode(), timeout=COMMAND_SECONDS)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise OSError(f"{program} took longer than {COMMAND_SECONDS:g} s") from None
            raise
    if process.returncode:
        raise OSError(f"{program} ended with exit code {process.returncode}")


class Lineage:
    """The run as an OpenLineage job of `namespace`; where events go, its client's own config or OPENLINEAGE_URL says.

    https://openlineage.io/docs/client/python
    """

    def __init__(self, namespace: str, inputs: str, outputs: str, client: Any = None) -> None:
        from openlineage.client import OpenLineageClient
        from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run

        self._client = client or OpenLineageClient()
        self._run = Run(runId=str(uuid.uuid4()))
        self._job = Job(namespace=namespace, name=f"index {outputs}")
        self._inputs = [InputDataset(*_dataset_name(inputs))]
        self._outputs = OutputDataset, _dataset_name(outputs)

    def begin(self) -> None:
        """Says that the run has begun."""
        self._emit("START", [])

    def end(self, values: Mapping[str, Any]) -> None:
        """Says how it ended: COMPLETE for a version that is good or held, else FAIL; with rows and the version."""
        from openlineage.client.facet_v2 import (
            dataset_version_dataset,
            error_message_run,
            output_statistics_output_dataset,
        )

        kind, name = self._outputs
        outputs, good = [], values["exit_code"] in (exit_codes.DONE, exit_codes.NOT_CLEANED, exit_codes.HELD)
        if "version" in values:
            statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
                rowCount=values["products"], size=values["index_bytes"]
            )
            of_version = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=values["version"])
            outputs = [kind(*name, facets={"version": of_version}, outputFacets={"outputStatistics": statistics})]
        if not good:
            fault = error_message_run.ErrorMessageRunFacet(message=values["error"], programmingLanguage="python")
            self._run.facets = {"errorMessage": fault}
        self._emit("COMPLETE" if good else "FAIL", outputs)
        self._client.close(timeout=WEBHOOK_SECONDS)

    def _emit(self, state: str, outputs: list[Any]) -> None:
        from openlineage.client.event_v2 import RunEvent, RunState

        self._client.emit(
            RunEvent(
                eventType=RunState[state],
                eventTime=datetime.now(UTC).isoformat(),
                run=self._run,
                job=self._job,
                producer=PRODUCER,
                inputs=self._inputs,
                outputs=outputs,
            )
        )


def _dataset_name(uri: str) -> tuple[str, str]:
    """Namespace and name of a dataset, as OpenLineage names files: `s3://bucket` and `path`; `file` and a path."""
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return "file", uri
    host, _, path = rest.partition("/")
    return f"{scheme}://{host}", path or "/"
