from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from study_files import GOOD

from autocompress.config import load_study
from autocompress.errors import ConfigError
from autocompress.records import Bound

MEASURED = """\
measure:
  metrics:
    - f1_macro
    - neg_log_loss
    - {kind: scikit-learn, scorer: top_k_accuracy, name: top3, arguments: {k: 3}}
    - {kind: function, name: margin, function: task.py:make, maximize: true}
"""


def test_metrics_become_objectives_and_bounds_in_their_natural_sign(folder: Path) -> None:
    text = GOOD.replace("[accuracy, latency_ms]", "[f1_macro, log_loss, latency_ms]")
    (folder / "study.yaml").write_text(text.replace("{accuracy: {min: 0.8}", "{margin: {min: -2.5}") + MEASURED)
    study = load_study("study.yaml")
    assert study.objectives == ("f1_macro", "log_loss", "latency_ms")
    assert [(m.name, m.maximize) for m in study.metrics] == [
        ("f1_macro", True),
        ("log_loss", False),
        ("top3", True),
        ("margin", True),
    ]
    assert study.metrics[3].source == f"{folder / 'task.py'}:make"
    assert study.bounds[0] == Bound(objective="margin", min=-2.5)
    assert study.identity()["measure"]["metrics"][1]["scorer"] == "neg_log_loss"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("latency_ms]", "f1_makro]", "study.yaml:8: objectives[1]: expected 'accuracy', "),
        ("latency_ms]", "f1_makro]", " or 'margin' (did you mean 'f1_macro'?), got 'f1_makro'"),
        ("latency_ms]", "neg_log_loss]", "(did you mean 'log_loss'?), got 'neg_log_loss'"),
        ("{accuracy: {min: 0.8}", "{log_los: {max: 1}", "study.yaml:9: constraints.log_los: expected 'accuracy', "),
        ("size_bytes: {max: 100000}", "size_bytes: {max: -1}", "expected size_bytes.max >= 0, as size_bytes is never"),
        ("{accuracy: {min: 0.8}", "{f1_macro: {min: 80}", "expected f1_macro.min <= 1, the best f1_macro that there"),
        ("{accuracy: {min: 0.8}", "{log_loss: {max: -1}", "expected log_loss.max >= 0, the best log_loss that there"),
        ("- f1_macro", "- f1_makro", "study.yaml:17: measure.metrics[0].scorer: expected a scorer of scikit-learn"),
        ("- f1_macro", "- f1_makro", "(did you mean 'f1_macro'?), got 'f1_makro'"),
        ("- f1_macro", "- neg_log_loss", "measure.metrics: expected metrics of distinct names, got log_loss, log_loss"),
        ("name: top3", "name: accuracy", "expected another name, as 'accuracy' is the task's own metric"),
        ("task.py:make, maximize", "gone.py:make, maximize", "study.yaml:20: measure.metrics[3].function: expected an"),
        ("kind: function", "kind: functoin", "measure.metrics[3].kind: expected 'scikit-learn' or 'function'"),
        (", maximize: true", "", "study.yaml:20: measure.metrics[3].maximize: expected true or false, got nothing"),
    ],
)
def test_a_wrong_metric_is_named_with_its_place(folder: Path, old: str, new: str, message: str) -> None:
    text = GOOD + MEASURED
    assert old in text
    (folder / "study.yaml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_study("study.yaml")
    assert message in str(caught.value)


def test_a_study_with_metrics_is_checked_without_torch_and_scikit_learn(folder: Path) -> None:
    (folder / "study.yaml").write_text(GOOD.replace("latency_ms]", "f1_makro]") + MEASURED)
    code = (
        "import sys\nfrom autocompress.config import load_study\nfrom autocompress.errors import ConfigError\n"
        "try:\n    load_study('study.yaml')\nexcept ConfigError as error:\n    print(error)\n"
        "print([name for name in ('torch', 'sklearn', 'task') if name in sys.modules])"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert time.monotonic() - started < 5
    assert "(did you mean 'f1_macro'?)" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
