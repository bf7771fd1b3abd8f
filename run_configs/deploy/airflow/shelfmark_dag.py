"""The nightly run as an Airflow DAG: copy it into the dags folder. Airflow may have an environment of its own."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow import DAG

try:
    from airflow.providers.standard.operators.bash import BashOperator
except ImportError:  # Airflow 2
    from airflow.operators.bash import BashOperator

PYTHON = "/opt/shelfmark/.venv/bin/python"
CONFIG = "/etc/shelfmark/night.yaml"

# Refused (2), held back by a gate (3) or worked on elsewhere (4): a retry would end the same way.
NIGHT = f"""
{PYTHON} -m pipelines.embed_catalog --config {CONFIG}
code=$?
case $code in
  4) exit 99 ;;
  2|3) echo "exit code $code: this wants a person, not a retry"; exit 100 ;;
  5) exit 0 ;;
esac
exit $code
"""

with DAG(
    dag_id="shelfmark_night",
    description="Index the catalog and publish a version",
    schedule="30 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    dagrun_timeout=timedelta(hours=6),
) as dag:
    night = BashOperator(
        task_id="night",
        bash_command=NIGHT,
        skip_on_exit_code=99,
        retries=3,
        retry_delay=timedelta(minutes=10),
        execution_timeout=timedelta(hours=5),
        append_env=True,
    )
