from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from autocompress.measure.doctor import TargetReport, _nvidia_boards, boards, targets


@pytest.mark.slow
def test_the_doctor_tries_each_target() -> None:
    found = {report.name: report for report in targets()}
    assert list(found) == [
        *("onnxruntime-cpu", "openvino-cpu", "torch-cpu (eager)", "torch-cpu (inductor)", "executorch-xnnpack"),
        *("torch-cuda (eager)", "onnxruntime-cuda", "onnxruntime-tensorrt"),
    ]
    for name in ("onnxruntime-cpu", "openvino-cpu"):
        assert found[name].works, found[name].detail
        assert "8-bit integers" in found[name].detail
        assert found[name].computes == (32, 8)
    for name in ("torch-cpu (eager)", "torch-cpu (inductor)"):
        assert found[name].works, found[name].detail
        assert found[name].computes == (32,)
        assert 8 in found[name].bits
    if not boards():
        for name in ("torch-cuda (eager)", "onnxruntime-cuda", "onnxruntime-tensorrt"):
            assert (found[name].works, found[name].detail) == (False, "skipped: no NVIDIA GPU on this machine")
            assert found[name].install is None
    for report in found.values():
        assert report.works or report.detail
        assert TargetReport.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize(
    ("settings", "missing", "install"),
    [
        ("OnnxRuntimeCpu()", "onnxruntime", "pip install onnxruntime"),
        ("OpenVinoCpu()", "openvino", "pip install 'autocompress[openvino]'"),
        ("ExecuTorchXnnpack()", "executorch", "pip install 'autocompress[executorch]'"),
    ],
)
def test_a_target_that_is_not_installed_says_what_to_install(settings: str, missing: str, install: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from autocompress.measure.doctor import targets\n"
        "from autocompress.measure.targets import *\n"
        f"print(targets([{settings}])[0].model_dump_json())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    report = TargetReport.model_validate_json(done.stdout)
    assert not report.works
    assert f"expected the package {missing}, which failed to import" in report.detail
    assert install in report.detail


def test_boards_are_read_from_the_drivers_own_list(tmp_path: Path) -> None:
    folder = tmp_path / "0000:01:00.0"
    folder.mkdir()
    (folder / "information").write_text("Model: \t\t NVIDIA Example 1\nIRQ: 7\n")
    assert _nvidia_boards(tmp_path) == ["NVIDIA Example 1"]
    assert _nvidia_boards(tmp_path / "absent") == []
