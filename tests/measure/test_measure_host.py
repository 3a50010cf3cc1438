from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.measure.host import _board, fingerprint, governor, host_of
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.records import Host

HOST = Host(cpu="x", cores=2, flags=("avx2",), memory_gb=8, system="Linux", runtime="onnxruntime 1", threads=1)


def governed(folder: Path, *values: str) -> Path:
    for core, value in enumerate(values):
        place = folder / f"cpu{core}" / "cpufreq"
        place.mkdir(parents=True)
        (place / "scaling_governor").write_text(value + "\n")
    return folder


@pytest.mark.parametrize(
    ("values", "expected"),
    [((), None), (("performance",) * 4, "performance"), (("schedutil", "performance"), "performance,schedutil")],
)
def test_the_governor_is_read_where_the_system_has_one(
    tmp_path: Path, values: tuple[str, ...], expected: str | None
) -> None:
    assert governor(governed(tmp_path, *values)) == expected


def test_a_board_without_a_named_processor_is_named_by_its_device_tree(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    assert _board(tmp_path / "model") == "Raspberry Pi 5 Model B Rev 1.0"
    assert _board(tmp_path / "absent") == ""


def test_whatever_decides_a_latency_makes_another_key() -> None:
    changes = (
        {"cpu": "y"}, {"cores": 4}, {"flags": ()}, {"memory_gb": 16}, {"system": "Linux 6"}, {"runtime": "tvm"},
        {"threads": 2}, {"governor": "powersave"}, {"device": "GPU, driver 1"}, {"node": "device=rpi5"},
    )  # fmt: skip
    assert len({HOST.key, *(HOST.model_copy(update=change).key for change in changes)}) == len(changes) + 1


def test_what_a_host_does_not_have_leaves_its_key_alone() -> None:
    known = HOST.model_dump(exclude_none=True)
    assert "governor" not in known
    assert Host(**known).key == HOST.key


def test_a_targets_device_and_the_node_are_in_the_fingerprint() -> None:
    class WithDevice:
        runtime, threads, device = "onnxruntime 1", 1, "NVIDIA H100, driver 550.54"

    found = host_of(WithDevice(), "device=gpu")  # type: ignore[arg-type]
    assert (found.device, found.node) == ("NVIDIA H100, driver 550.54", "device=gpu")
    here = host_of(OnnxRuntimeCpu(threads=2).build())
    assert (here.device, here.node, here.threads) == (None, None, 2)
    assert here == fingerprint(OnnxRuntimeCpu().build().runtime, 2)
