import subprocess
import sys

import pytest

from autocompress.errors import AutocompressError, StudyLockedError
from autocompress.pipeline.folder import StudyFolder, read_record, write_record
from autocompress.records import Estimate, Fidelity


def test_an_artifact_is_kept_under_its_hash_and_read_back(tmp_path):
    folder = StudyFolder(tmp_path)
    sha256 = folder.write_artifact(b"model")
    assert folder.artifact(sha256).name == f"{sha256}.onnx"
    assert folder.read_artifact(sha256) == b"model"


def test_a_changed_artifact_is_refused_by_name(tmp_path):
    folder = StudyFolder(tmp_path)
    sha256 = folder.write_artifact(b"model")
    folder.artifact(sha256).write_bytes(b"other")
    with pytest.raises(AutocompressError, match=f"expected sha256 {sha256}, got .*changed after it was measured"):
        folder.read_artifact(sha256)


def test_a_missing_artifact_is_named(tmp_path):
    with pytest.raises(AutocompressError, match=r"abc\.onnx is missing"):
        StudyFolder(tmp_path).read_artifact("abc")


def test_records_come_back_equal_and_absent_ones_as_none(tmp_path):
    record = Estimate(value=0.5, low=0.25, high=0.75)
    write_record(tmp_path / "r.json", record)
    assert read_record(tmp_path / "r.json", Estimate) == record
    assert read_record(tmp_path / "none.json", Estimate) is None


def test_a_damaged_record_is_refused_by_name(tmp_path):
    (tmp_path / "r.json").write_text('{"value": 1')
    with pytest.raises(AutocompressError, match=r"r\.json: expected a Fidelity record"):
        read_record(tmp_path / "r.json", Fidelity)


HOLD = """
import sys
from pathlib import Path
from autocompress.pipeline.folder import StudyFolder
with StudyFolder(Path(sys.argv[1])).driving():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_driver_is_refused_until_the_first_is_gone(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "held\n"
        assert StudyFolder(tmp_path).is_driven()
        with (
            pytest.raises(StudyLockedError, match="another process is running this study"),
            StudyFolder(tmp_path).driving(),
        ):
            pass
        first.kill()  # the kernel lets go of a killed driver's lock
        first.wait(20)
        with StudyFolder(tmp_path).driving():
            assert StudyFolder(tmp_path).is_driven()
        assert not StudyFolder(tmp_path).is_driven()
    finally:
        first.kill()
        first.communicate()
