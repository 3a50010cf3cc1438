"""The whole thing through the command line: real Prefect server, Ray session, MLflow store, ONNX Runtime."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autocompress.config import load_study
from autocompress.pipeline.trials import load_trials
from autocompress.registry.store import Store
from autocompress.search.ledger import ENDED

pytestmark = [pytest.mark.integration, pytest.mark.slow]

HERE = Path(__file__).resolve().parent
STUDY = """\
name: tiny
task: {{factory: "{tiny}:tiny", arguments: {{delay: {delay}}}}}
space: joint
constraints: {{accuracy: {{min: 0.5}}}}
measure: {{latency_model: "{model}"}}
search:
  trials: {trials}
  workers: 2
  recovery_epochs: 0.5
  timeout_s: 120
  sampler: {{kind: nsga2, population_size: 6}}
finalists: {{count: 3, recovery_epochs: 2}}
"""


def environment(**extra):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "RAY_"))}
    return {**kept, **extra}


def write_study(folder, *, trials=6, delay=0.0, model="off"):
    text = STUDY.format(tiny=HERE / "tiny.py", trials=trials, delay=delay, model=model)
    (folder / "study.yaml").write_text(text)


def start(*arguments, cwd, env=None):
    return subprocess.Popen(
        [sys.executable, "-m", "autocompress.cli", *arguments],
        cwd=cwd,
        env=env or environment(PREFECT_HOME=str(cwd / "prefect")),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(*arguments, cwd, env=None, code=0):
    process = start(*arguments, cwd=cwd, env=env)
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
    return out, err


def status(folder):
    return json.loads(call("status", "study.yaml", "--json", cwd=folder)[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    write_study(folder, model="sketch")
    out, err = call("run", "study.yaml", cwd=folder)
    return folder, out, err


def test_a_run_ends_with_the_front_the_report_and_the_versions(finished):
    folder, out, err = finished
    assert "final front" in out
    assert str(folder / "autocompress-runs" / "tiny" / "report.html") in out
    assert "autocompress pick tiny" in out
    assert "Traceback" not in err
    found = status(folder)
    assert (found["state"], found["done"], found["total"]) == ("finished", 6, 6)
    assert set(found["counts"]) <= {"complete", "stopped", "failed"}


def test_the_front_is_what_the_registry_holds(finished):
    folder, _, _ = finished
    view = json.loads(call("front", "study.yaml", "--json", cwd=folder)[0])
    assert view["stage"] == "final"
    versions = Store(None, folder / "autocompress-runs").versions("tiny")
    assert {v.sha256 for v in versions} == {r["sha256"] for r in view["rows"]}
    assert {a for v in versions for a in v.aliases} == {"fastest", "knee", "most-accurate", "smallest", "champion"}
    for row in view["rows"]:
        assert row["role"] == "selection"
        assert row["test"] is not None


def test_a_picked_version_verifies_from_its_bytes(finished):
    folder, _, _ = finished
    out, _ = call(
        "pick", "tiny", "--min", "accuracy=0.5", "--prefer", "smallest", "--download", "picked", "--json", cwd=folder
    )
    picked = json.loads(out)
    assert sorted(p.name for p in (folder / "picked").iterdir()) == ["card.json", "card.md", "model.onnx"]
    out, _ = call("verify", picked["uri"], "--json", cwd=folder)
    checks = {c["name"]: c["outcome"] for c in json.loads(out)["checks"]}
    assert checks["sha256"] == checks["accuracy (test)"] == checks["accuracy (selection)"] == "holds"
    assert "latency" in checks


def test_an_impossible_pick_names_the_nearest(finished):
    folder, _, _ = finished
    _, err = call("pick", "tiny", "--max", "latency_ms=0.000001", cwd=folder, code=3)
    assert "nearest" in err.lower()


def test_the_page_needs_no_network(finished):
    folder, _, _ = finished
    page = (folder / "autocompress-runs" / "tiny" / "report.html").read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']https?:", page)


def test_running_again_runs_and_registers_nothing_twice(finished):
    folder, _, _ = finished
    before = Store(None, folder / "autocompress-runs").versions("tiny")
    began = time.monotonic()
    call("run", "study.yaml", cwd=folder)
    assert Store(None, folder / "autocompress-runs").versions("tiny") == before
    assert status(folder)["done"] == 6
    assert time.monotonic() - began < 90


def test_a_changed_study_is_refused_with_the_difference(finished):
    folder, _, _ = finished
    _, err = call("run", "study.yaml", "--set", "search.recovery_epochs=1.0", cwd=folder, code=2)
    assert "search.recovery_epochs: 0.5 -> 1.0" in err


def test_constraints_that_nothing_meets_end_with_3_and_the_nearest(finished):
    folder, _, _ = finished
    _, err = call(
        "run", "study.yaml", "--set", "name=impossible", "--set", "search.trials=2",
        "--set", "constraints.latency_ms={max: 0.0001}", cwd=folder, code=3,
    )  # fmt: skip
    assert "nearest" in err.lower()
    assert not (folder / "autocompress-runs" / "impossible" / "registered.json").exists()


def test_a_model_with_a_fixed_batch_is_refused_by_name(tmp_path):
    write_study(tmp_path)
    _, err = call("run", "study.yaml", "--set", f"task={HERE / 'tiny.py'}:unprunable", cwd=tmp_path, code=1)
    assert "Fixed does not run on an input of shape (2, 1, 8, 8)" in err
    assert "it must take any batch size" in err


def children_of(folder):
    """Processes that hold anything of this study open, by command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and "autocompress" in line:
            found.append(line)
    return found


def wait_for(condition, seconds):
    ended = time.monotonic() + seconds
    while time.monotonic() < ended:
        if condition():
            return True
        time.sleep(0.3)
    return False


def done_so_far(folder):
    """Read in this process: a command each time would take half of the time that it looks at."""
    study = load_study(str(folder / "study.yaml"))
    trials = load_trials(study.model_copy(update={"output": folder / "autocompress-runs"}))
    return sum(t.state in (*ENDED, "paused") for t in trials)


def test_a_killed_driver_is_continued_to_exactly_n_trials_none_twice(tmp_path):
    write_study(tmp_path, trials=10, delay=0.05)
    process = start("run", "study.yaml", cwd=tmp_path)
    try:
        assert wait_for(lambda: done_so_far(tmp_path) >= 3, 150)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert wait_for(lambda: not children_of(tmp_path), 40), children_of(tmp_path)
    stopped = status(tmp_path)
    assert stopped["state"] == "stopped"
    assert 3 <= stopped["done"] < 10
    call("run", "study.yaml", cwd=tmp_path)
    ended = status(tmp_path)
    assert (ended["state"], ended["done"]) == ("finished", 10)
    assert sum(ended["counts"].values()) == 10
    assert set(ended["counts"]) <= {"complete", "stopped", "failed"}


def test_an_interrupt_stops_resumable_and_registers_nothing(tmp_path):
    write_study(tmp_path, trials=10, delay=0.05)
    process = start("run", "study.yaml", cwd=tmp_path)
    try:
        assert wait_for(lambda: done_so_far(tmp_path) >= 2, 150)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    stopped = status(tmp_path)
    assert stopped["state"] == "stopped"
    assert stopped["done"] < 10
    assert not (tmp_path / "autocompress-runs" / "tiny" / "registered.json").exists()


def test_a_run_on_a_server_is_recorded_there(tmp_path):
    write_study(tmp_path, trials=3)
    port = 4290 + os.getpid() % 500
    env = environment(PREFECT_HOME=str(tmp_path / "prefect"), PREFECT_SERVER_ANALYTICS_ENABLED="false")
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        import httpx

        api = f"http://127.0.0.1:{port}/api"

        def healthy():
            try:
                return httpx.get(f"{api}/health", timeout=2).status_code == 200
            except httpx.HTTPError:
                return False

        assert wait_for(healthy, 90)
        call("run", "study.yaml", cwd=tmp_path, env={**env, "PREFECT_API_URL": api})
        runs = httpx.post(f"{api}/flow_runs/filter", json={}, timeout=10).json()
        assert [r["state_type"] for r in runs] == ["COMPLETED"]
        tasks = httpx.post(f"{api}/task_runs/filter", json={}, timeout=10).json()
        assert {t["name"].rsplit("-", 1)[0] for t in tasks} == {
            "prepare",
            "profile",
            "search",
            "finalists",
            "register",
            "report",
        }
        artifacts = {a["type"] for a in httpx.post(f"{api}/artifacts/filter", json={}, timeout=10).json()}
        assert {"table", "markdown", "progress"} <= artifacts
    finally:
        server.terminate()
        server.wait(30)
