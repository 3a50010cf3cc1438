"""The local Ray session: closed to others, quiet, and gone when it should be."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

DRIVER = """
import os, sys, time
before = dict(os.environ)
from autocompress.cluster.session import ray_session
with ray_session(2) as workers:
    import ray
    print(workers, ray.get_runtime_context().gcs_address, flush=True)
    with ray_session(1) as inner:
        pass
    print(inner, ray.is_initialized(), flush=True)
    sys.stdin.readline()
changed = {k for k in set(before) ^ set(os.environ) if k.startswith(("RAY_AUTH", "TUNE"))}
print(ray.is_initialized(), changed, flush=True)
sys.stdin.readline()
"""


def start(home: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def driver(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = start(home)
    assert process.stdout is not None
    workers, address = process.stdout.readline().split()
    assert workers == "2"
    yield process, address
    process.kill()
    process.wait()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def test_every_socket_is_bound_to_loopback(driver: tuple[subprocess.Popen[str], str]) -> None:
    listening = [
        connection.laddr.ip
        for process in [psutil.Process(driver[0].pid), *family(driver[0])]
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 3
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


def test_the_token_is_for_this_user_only(driver: tuple[subprocess.Popen[str], str], home: Path) -> None:
    token = home / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64


def test_a_client_without_the_token_is_refused(driver: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    code = (
        "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1]); print('connected', flush=True)"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", code, driver[1]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"},
    )
    assert client.stdout is not None
    first = client.stdout.readline()
    client.kill()
    client.wait()
    assert "InvalidAuthToken" in first


def test_a_session_inside_a_session_is_the_same_one_and_ends_with_the_outer(
    driver: tuple[subprocess.Popen[str], str],
) -> None:
    process = driver[0]
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "1 True\n"
    running = family(process)
    folders = {argument.partition("=")[2] for p in running for argument in p.cmdline() if "--temp" in argument}
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "False set()\n"
    _, alive = psutil.wait_procs(running, timeout=5)
    assert alive == []
    assert not any(Path(folder).exists() for folder in folders if folder)


@pytest.mark.parametrize("after_s", [1.0, 2.5, 4.0])
def test_a_driver_killed_while_ray_starts_leaves_nothing(home: Path, after_s: float) -> None:
    process = start(home)
    time.sleep(after_s)
    running = family(process)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(running, timeout=8)
    assert [p.name() for p in alive] == []
