from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from autocompress.config import Study, load_study
from autocompress.space.config import load_space


def test_task_may_be_a_function_of_a_module() -> None:
    study = Study(name="mine", task=load_study, objectives=["accuracy"], space="structured")
    assert study.task.factory == "autocompress.config.study:load_study"
    assert study.space == load_space("structured")


def test_task_that_no_other_process_can_import_is_refused() -> None:
    def nested() -> None: ...

    for function in (lambda: None, nested, Path.cwd):
        with pytest.raises(
            ValidationError, match="expected a function defined with 'def' at the top level of a module"
        ):
            Study(name="mine", task=function)


def test_task_of_the_running_script_becomes_its_file(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from autocompress.config import Study\ndef mine(): ...\nprint(Study(name='x', task=mine).task.factory)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{script}:mine"
    typed = subprocess.run(
        [sys.executable, "-c", script.read_text()], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "of an interactive session; save it in a .py file" in typed.stderr
