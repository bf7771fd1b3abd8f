"""What every test stands on: no network but loopback, no model hub, and the larger data where it is there."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

PROJECT_ROOT = Path(__file__).resolve().parent.parent

# Before any library reads them. Processes that tests start inherit them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_DISABLE_TELEMETRY="1",
    # Threads that wait sleep: spinning takes the cores from the tests beside them (three times the CPU time of some).
    OMP_WAIT_POLICY="PASSIVE",
)
# Tables are as wide as where output goes to no terminal, whatever a shell or pytest-xdist says.
os.environ.pop("COLUMNS", None)
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: a second thread of each would wait for the other worker's.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# On every CPU `encoder.precision: auto` is float32 here: the same vectors with bfloat16 in hardware and without.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")

# No deadline: a busy machine is no finding. Under CI the same examples each time: what fails there fails for everyone.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of quick tests come last: they fill the time in which another worker ends a long file."""
    items.sort(key=lambda item: "catalog" in item.path.parts)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes give a test no name, nor does their number: archives hold the time, and worker processes have to agree."""
    return f"{argname} of many bytes" if isinstance(val, bytes) and len(val) > 20 else None


@pytest.fixture(autouse=True)
def _no_name_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names do not resolve, as on a machine without a network; pytest-socket stops connections to addresses."""
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name in (None, "", "localhost", socket.gethostname()) or _is_address(name):
            return real(host, *args, **kwargs)
        raise socket.gaierror(socket.EAI_NONAME, f"tests resolve no names but localhost: {name}")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of larger public data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("SHELFMARK_SHARED_DATA", PROJECT_ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (SHELFMARK_SHARED_DATA names another place)")
    return folder


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the working directory during the test."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty bucket of moto's S3 server on loopback; clients find it by the environment, as they would a shop's."""
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    type(filesystem).clear_instance_cache()
    # moto's buckets live as long as this process, so each test has one of its own.
    name = re.sub("[^a-z0-9]+", "-", request.node.name.lower())[:60].strip("-")
    filesystem.mkdir(name)
    try:
        yield f"s3://{name}"
    finally:
        type(filesystem).clear_instance_cache()
        server.stop()
