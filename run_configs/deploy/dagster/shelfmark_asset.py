"""The published index as a Dagster asset, made every night: `dagster dev -f shelfmark_asset.py`."""

import json
import subprocess

from dagster import (
    AssetExecutionContext,
    Backoff,
    DefaultScheduleStatus,
    Definitions,
    Failure,
    MaterializeResult,
    RetryPolicy,
    ScheduleDefinition,
    asset,
    define_asset_job,
)

PYTHON = "/opt/shelfmark/.venv/bin/python"
CONFIG = "/etc/shelfmark/night.yaml"
INDEX = "/var/lib/shelfmark/index"
WANTS_A_PERSON = {2: "refused before any work", 3: "held back by a gate", 4: "another run works here"}


@asset(retry_policy=RetryPolicy(max_retries=3, delay=600, backoff=Backoff.LINEAR))
def product_index(context: AssetExecutionContext) -> MaterializeResult:
    """The published version of the catalog's index."""
    night = subprocess.run([PYTHON, "-m", "pipelines.embed_catalog", "--config", CONFIG], check=False)
    if night.returncode in WANTS_A_PERSON:
        raise Failure(WANTS_A_PERSON[night.returncode], allow_retries=False)
    if night.returncode not in (0, 5):
        raise Failure(f"failed at work with exit code {night.returncode}; it goes on when it is run again")
    listing = [PYTHON, "-m", "pipelines.versions", "list", "--index", INDEX, "--json"]
    versions = json.loads(subprocess.run(listing, check=True, capture_output=True, text=True).stdout)
    context.log.info("%d versions stand at %s", len(versions), INDEX)
    return MaterializeResult(metadata={"versions": len(versions), "index": INDEX})


job = define_asset_job("night", selection=[product_index])
defs = Definitions(
    assets=[product_index],
    jobs=[job],
    schedules=[ScheduleDefinition(job=job, cron_schedule="30 2 * * *", default_status=DefaultScheduleStatus.RUNNING)],
)
