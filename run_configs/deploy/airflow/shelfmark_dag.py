"""The nightly run as an Airflow DAG: copy it into the dags folder. Airflow may have an environment of its own."""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta

from airflow import DAG
from airflow.exceptions import AirflowException, AirflowFailException, AirflowSkipException

try:
    from airflow.providers.standard.operators.python import PythonOperator
except ImportError:  # Airflow 2
    from airflow.operators.python import PythonOperator

PYTHON = "/opt/shelfmark/.venv/bin/python"
CONFIG = "/etc/shelfmark/night.yaml"
WANTS_A_PERSON = {2: "refused before any work", 3: "held back by a gate"}


def run_night() -> None:
    """Runs the night; what would end the same way again is not retried."""
    # timeout: SIGTERM after five hours, so that the night ends in order; Airflow's own limit would kill it.
    night = ["timeout", "5h", PYTHON, "-m", "pipelines.embed_catalog", "--config", CONFIG]
    with subprocess.Popen(night) as running:
        try:
            code = running.wait()
        except BaseException:  # the task is stopped from outside
            running.terminate()
            raise
    if code == 4:
        raise AirflowSkipException("another run works here, and publishes")
    if code in WANTS_A_PERSON:
        raise AirflowFailException(f"exit code {code}, {WANTS_A_PERSON[code]}: this wants a person, not a retry")
    if code not in (0, 5):
        raise AirflowException(f"failed at work with exit code {code}; it goes on when it is run again")


with DAG(
    dag_id="shelfmark_night",
    description="Index the catalog and publish a version",
    schedule="30 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=6),
) as dag:
    night = PythonOperator(task_id="night", python_callable=run_night, retries=3, retry_delay=timedelta(minutes=10))
