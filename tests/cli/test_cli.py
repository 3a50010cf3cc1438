import json
import signal
import subprocess
import sys
import time

import pytest

from autocompress import cli
from autocompress.errors import MeasurementError
from autocompress.pipeline import verify


def autocompress(*arguments, cwd, timeout=60):
    return subprocess.run(
        [sys.executable, "-m", "autocompress.cli", *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout
    )


DIGITS = "task: {factory: 'autocompress.tasks.digits:digits'}\n"
COMMANDS = ("run", "validate", "status", "front", "pick", "verify", "profile", "sensitivity", "doctor")


def test_every_command_has_help_with_an_example(tmp_path):
    overview = autocompress("--help", cwd=tmp_path)
    assert overview.returncode == 0
    for command in COMMANDS:
        assert command in overview.stdout
        shown = autocompress(command, "--help", cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert f"autocompress {command}" in shown.stdout, f"{command} --help shows no example"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"name: a\n{DIGITS}search: {{trials: many}}\n", "study.yaml:3: search.trials: expected"),
        ("name: a\ntask: {factory: 'no_such_package_here.x:y'}\n", "no_such_package_here"),
        ("name: a\nname: b\n", "study.yaml:2"),
        ("name: [\n", "study.yaml:"),
    ],
)
def test_a_wrong_study_file_ends_with_2_in_under_5_seconds_and_creates_nothing(tmp_path, text, expected):
    (tmp_path / "study.yaml").write_text(text)
    for command in ("validate", "run"):
        started = time.monotonic()
        done = autocompress(command, "study.yaml", cwd=tmp_path)
        seconds = time.monotonic() - started
        assert done.returncode == 2, done.stderr
        assert expected in done.stderr
        assert done.stdout == ""
        assert seconds < 5, f"{command} took {seconds:.1f} s"
    assert [p.name for p in tmp_path.iterdir()] == ["study.yaml"]


def test_validate_does_not_import_the_task(tmp_path):
    (tmp_path / "mine.py").write_text("def task(): ...\nraise SystemExit('imported')\n")
    (tmp_path / "study.yaml").write_text("name: a\ntask: mine.py:task\n")
    done = autocompress("validate", "study.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "valid" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("def task():\n    raise RuntimeError('no disk')\n", "raised RuntimeError: no disk"),
        ("def task():\n    return 3\n", "expected it to return an autocompress.Task, got int"),
        ("import sys\ndef task():\n    sys.exit(0)\n", "raised SystemExit"),
    ],
)
def test_a_wrong_task_names_the_function_and_creates_nothing(tmp_path, body, expected):
    (tmp_path / "mine.py").write_text(body)
    (tmp_path / "study.yaml").write_text("name: a\ntask: mine.py:task\n")
    done = autocompress("sensitivity", "study.yaml", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert expected in done.stderr
    assert "mine.py" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["mine.py", "study.yaml"]


def test_a_study_that_was_never_run_has_a_status_and_no_front(tmp_path):
    status = autocompress("status", "digits", "--json", cwd=tmp_path)
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["state"] == "not started"
    front = autocompress("front", "digits", "--json", cwd=tmp_path)
    assert json.loads(front.stdout)["stage"] == "none"
    assert list(tmp_path.iterdir()) == []


def test_pick_refuses_what_cannot_be_an_objective_with_2(tmp_path):
    """Whether a word is a metric of the model, only its versions can tell: that is checked where they are known."""
    done = autocompress("pick", "digits", "--max", "speed-up=1", cwd=tmp_path)
    assert done.returncode == 2
    assert "expected OBJECTIVE=VALUE with one of accuracy" in done.stderr


def test_pick_refuses_a_bound_that_is_no_number_with_2(tmp_path):
    done = autocompress("pick", "digits", "--max", "latency_ms=nan", cwd=tmp_path)
    assert done.returncode == 2
    assert "expected a finite number" in done.stderr


@pytest.mark.parametrize(("outcome", "code"), [("differs", 4), ("holds", 0)])
def test_a_card_that_does_not_hold_ends_with_4(monkeypatch, capsys, outcome, code):
    check = verify.Check(name="accuracy (test)", claimed="0.9", found="0.8", outcome=outcome)
    view = verify.Verification(uri="models:/m/1", checks=(check,))
    monkeypatch.setattr(verify, "verify_version", lambda uri, output, trusted: view)
    monkeypatch.setattr(sys, "argv", ["autocompress", "verify", "models:/m/1"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert "accuracy (test)" in capsys.readouterr().out


def test_an_unknown_option_ends_with_2(tmp_path):
    done = autocompress("run", "digits", "--no-such-option", cwd=tmp_path)
    assert done.returncode == 2
    assert "no-such-option" in done.stderr


def test_a_function_that_the_file_does_not_define_is_wrong_input(tmp_path):
    (tmp_path / "mine.py").write_text("def other():\n    pass\n")
    (tmp_path / "study.yaml").write_text("name: a\ntask: mine.py:task\n")
    done = autocompress("run", "study.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "got 'task', which it does not define" in done.stderr


@pytest.mark.slow
def test_a_target_that_is_not_here_is_told_before_anything_is_made(tmp_path):
    (tmp_path / "study.yaml").write_text(f"name: a\n{DIGITS}target: {{kind: onnxruntime-tensorrt}}\n")
    done = autocompress("run", "study.yaml", cwd=tmp_path)
    assert done.returncode == MeasurementError.exit_code
    assert "expected a build of onnxruntime with TensorrtExecutionProvider" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.slow
def test_doctor_prints_one_json_document(tmp_path):
    done = autocompress("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["healthy"] is True
    assert {t["name"] for t in document["targets"] if t["works"]} >= {"onnxruntime-cpu", "torch-cpu (eager)"}


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_search_ends_with_130_and_a_word(tmp_path, number):
    (tmp_path / "study.yaml").write_text(f"name: a\n{DIGITS}")
    command = [sys.executable, "-m", "autocompress.cli", "run", "study.yaml"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    told = [next(line for line in process.stderr if line.startswith("prepare"))]
    process.send_signal(number)
    told += process.communicate(timeout=60)[1].splitlines()
    assert process.returncode == 130, told
    assert "autocompress: interrupted; the same command continues the study" in told
    assert not (tmp_path / "autocompress-runs" / "a" / "registered.json").exists()
