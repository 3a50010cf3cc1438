from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from autocompress.cli.printing import command, front_table
from autocompress.pipeline.views import FrontRow, FrontView
from autocompress.records import Estimate, Plan


def row(trial: int, **changes: object) -> FrontRow:
    values = {
        "trial": trial,
        "role": "selection",
        "epochs": 1.0,
        "values": {
            "accuracy": Estimate(value=0.92, low=0.91, high=0.928),
            "latency_ms": Estimate(value=0.412, low=0.4, high=0.42),
            "size_bytes": Estimate.exact(1_080_000),
        },
        "ratio": Estimate(value=0.31, low=0.30, high=0.315),
        "test": Estimate(value=0.915, low=0.91, high=0.92),
        "plan": Plan(),
        "summary": "all 12 groups cut to 25–88% of channels (magnitude); 20 of 22 layers at 8 bits",
        "sha256": "ab" * 32,
        "uri": f"models:/cifar10/{trial}",
        "aliases": ("champion", "fastest"),
    }
    return FrontRow.model_validate({**values, **changes})


def rendered(view: FrontView, width: int, *, hashes: bool = False) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(front_table(view, hashes=hashes))
    return file.getvalue()


def view(*rows: FrontRow, stage: str = "final") -> FrontView:
    return FrontView.model_validate(
        {"study": "s", "stage": stage, "objectives": ("accuracy", "latency_ms"), "rows": rows}
    )


@pytest.mark.parametrize("stage", ["final", "search"])
def test_the_table_fits_a_narrow_terminal(stage: str) -> None:
    text = rendered(view(row(1), row(2, aliases=()), stage=stage), 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text


def test_values_have_units_and_the_wider_side_of_their_interval() -> None:
    text = rendered(view(row(7)), 160)
    for part in (
        "trial 7",
        "92.00% ±1.0",
        "91.50% ±0.5",
        "0.412 ms",
        "31.0% ±1.0",
        "1.08 MB",
        "cifar10 v7 champion fastest",
    ):
        assert part in text, f"{part!r} is not in\n{text}"


def test_noise_and_a_missing_registration_are_said() -> None:
    assert "noisy latency" in rendered(view(row(1, noisy=True)), 160)
    assert "not registered" in rendered(view(row(1, uri=None)), 160)


def test_hashes_are_whole_and_on_request() -> None:
    assert "ab" * 32 in rendered(view(row(1)), 160, hashes=True)
    assert "ab" * 32 not in rendered(view(row(1)), 160)


def test_names_with_brackets_stay_as_they_are() -> None:
    assert "[bold]x[/bold] v1" in rendered(view(row(1, uri="models:/[bold]x[/bold]/1")), 160)


def test_the_next_command_can_be_called_as_it_is_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / ".venv" / "bin" / "autocompress"
    own.parent.mkdir(parents=True)
    own.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(own.with_name("python")))
    monkeypatch.setenv("PATH", "/nowhere")
    assert command() == str(own)
    monkeypatch.chdir(tmp_path)
    assert command() == ".venv/bin/autocompress"
    monkeypatch.setenv("PATH", str(own.parent))
    assert command() == "autocompress"
