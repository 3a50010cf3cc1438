from __future__ import annotations

import ast
import doctest
import importlib
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def folder_of(package: str) -> Path:
    mapped = SETUPTOOLS["package-dir"].get(package)
    return ROOT / (mapped or package.replace(".", "/"))


def modules() -> list[str]:
    names = [
        f"{package}.{path.stem}" if path.stem != "__init__" else package
        for package in SETUPTOOLS["packages"]
        for path in folder_of(package).glob("*.py")
    ]
    return sorted(n for n in names if not n.endswith(".__main__"))


def test_every_folder_with_code_is_a_listed_package() -> None:
    top = {folder_of(package) for package in SETUPTOOLS["packages"]}
    found = {
        path.parent for place in ("autocompress", "flows", "search_spaces") for path in (ROOT / place).rglob("*.py")
    }
    assert found == top


def test_every_locked_version_is_exact_and_the_lock_names_what_pip_cannot_guess() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all("==" in pin and "+" not in pin for pin in pins)
    locked = dict(pin.split("==") for pin in pins)
    assert locked["torch"] == "2.13.0"
    assert (0, 139) <= tuple(int(x) for x in locked["fastapi"].split(".")[:2]) < (0, 151)


@pytest.mark.slow
def test_the_wheel_holds_every_module_space_and_study(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"{package.replace('.', '/')}/{path.name}"
        for package in SETUPTOOLS["packages"]
        for pattern in ("*.py", "*.yaml", "py.typed")
        for path in folder_of(package).glob(pattern)
    }
    assert {"autocompress/studies/digits.yaml", "autocompress/search_spaces/joint.yaml"} <= expected
    assert expected <= held


@pytest.mark.parametrize("name", modules())
def test_module_imports_and_its_doctests_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_no_module_inside_imports_names_that_the_package_offers_to_users() -> None:
    # They lead to the top layer, and import-linter is told not to follow them.
    for package in SETUPTOOLS["packages"]:
        for path in folder_of(package).glob("*.py"):
            named = [n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
            assert "autocompress" not in named, path


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    return set(done.stdout.split())


HEAVY = {"torch", "ray", "mlflow", "optuna", "prefect", "onnxruntime"}


@pytest.mark.parametrize("module", ["autocompress.cli", "autocompress.config", "autocompress.records"])
def test_checking_a_study_file_loads_no_heavy_library(module: str) -> None:
    assert not HEAVY & loaded_by(f"import {module}")


@pytest.mark.parametrize("package", ["space", "front", "registry", "search", "report", "cluster"])
def test_packages_that_never_train_do_not_load_torch(package: str) -> None:
    names = [m for m in modules() if m.startswith(f"autocompress.{package}") and not m.endswith("worker")]
    assert names
    assert "torch" not in loaded_by("import " + ", ".join(names))
