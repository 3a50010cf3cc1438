"""A small study, and the folder that it lies in."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from study_files import GOOD, SPACE, TASK


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "study.yaml").write_text(GOOD)
    (tmp_path / "space.yaml").write_text(SPACE)
    (tmp_path / "task.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    return tmp_path
