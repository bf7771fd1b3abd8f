"""What `run_configs/deploy` hands to schedulers: files that read, start Python in our image and know the exit codes."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from pipelines.config.command_line import load_job_config, run_command

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "run_configs" / "deploy"


def test_containers_start_python_as_the_image_would_start_a_worker():
    image = (ROOT / "Dockerfile").read_text()
    assert re.search(r"\.\[[^]]*\bserve\b[^]]*\]", image), "the image serves too"
    services = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())["services"]
    assert [service["entrypoint"] for service in services.values()] == [["python"]] * 2
    assert services["night"]["build"]["target"] == "cpu"
    *_, job = yaml.safe_load_all((DEPLOY / "kubernetes" / "cronjob.yaml").read_text())
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["python"]
    for name in ("night", "server"):
        assert "command: [python]" in (DEPLOY / "helm" / "shelfmark" / "templates" / f"{name}.yaml").read_text()


def test_the_configs_that_are_handed_out_are_accepted(tmp_path, capsys):
    values = yaml.safe_load((DEPLOY / "helm" / "shelfmark" / "values.yaml").read_text())
    first, *_ = yaml.safe_load_all((DEPLOY / "kubernetes" / "cronjob.yaml").read_text())
    for text in (yaml.safe_dump(values["config"]), first["data"]["night.yaml"]):
        (tmp_path / "night.yaml").write_text(text)
        options = ["--config", str(tmp_path / "night.yaml"), "--print-config"]
        assert run_command(load_job_config, options) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "raised"),
    [(0, None), (5, None), (4, "AirflowSkipException"), (2, "AirflowFailException"), (3, "AirflowFailException"),
     (1, "AirflowException"), (143, "AirflowException"), (124, "AirflowException")],
)  # fmt: skip
def test_airflow_tries_again_only_what_failed_at_work(monkeypatch, code, raised):
    airflow, exceptions, operators = ModuleType("airflow"), ModuleType("airflow.exceptions"), ModuleType("operators")
    base = type("AirflowException", (Exception,), {})
    exceptions.AirflowException = base
    for name in ("AirflowFailException", "AirflowSkipException"):
        setattr(exceptions, name, type(name, (base,), {}))
    airflow.DAG = lambda **_: nullcontext()
    operators.PythonOperator = lambda **settings: SimpleNamespace(**settings)
    monkeypatch.setitem(sys.modules, "airflow", airflow)
    monkeypatch.setitem(sys.modules, "airflow.exceptions", exceptions)
    monkeypatch.setitem(sys.modules, "airflow.providers.standard.operators.python", operators)
    for parent in ("airflow.providers", "airflow.providers.standard", "airflow.providers.standard.operators"):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setattr(subprocess, "Popen", lambda _: nullcontext(SimpleNamespace(wait=lambda: code)))
    night = runpy.run_path(str(DEPLOY / "airflow" / "shelfmark_dag.py"))["night"]
    if raised is None:
        night.python_callable()
        return
    with pytest.raises(base) as error:
        night.python_callable()
    assert type(error.value).__name__ == raised
