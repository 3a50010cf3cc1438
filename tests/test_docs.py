"""The documents are held to what the project does.

A fenced block's first line says what is checked: ```` ```python file=NAME ```` is written under that name beside the
other blocks of its document and executed; ```` ```yaml study ````, ```` ```yaml space ```` and ```` ```yaml plan ````
must validate there, the plan for the digits network.
"""

from __future__ import annotations

import ast
import functools
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from autocompress.compress.structure import find_structure
from autocompress.config import Study, load_study
from autocompress.errors import AutocompressError
from autocompress.records import Structure
from autocompress.space.config import load_space
from autocompress.space.plan_file import load_plan
from autocompress.tasks.digits import digits

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "infra" / "README.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(?P<language>\w*) *(?P<mark>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|[`$ ])autocompress ([a-z]+)([^`\n|#]*)", re.MULTILINE)


class Block(NamedTuple):
    document: Path
    language: str
    mark: str
    text: str


def blocks(document: Path, language: str) -> list[Block]:
    found = FENCE.finditer(document.read_text())
    return [Block(document, m["language"], m["mark"].strip(), m["text"]) for m in found if m["language"] == language]


def every(language: str) -> list[Block]:
    return [block for document in DOCUMENTS for block in blocks(document, language)]


def code_of(document: Path) -> str:
    """Fenced shell blocks and inline code: where commands are named."""
    text = document.read_text()
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    return "\n".join([block.text for block in blocks(document, "sh")] + inline)


def commands() -> list[tuple[str, str, str]]:
    return [
        (document.name, name, rest.strip())
        for document in DOCUMENTS
        for name, rest in COMMAND.findall(code_of(document))
    ]


@functools.cache
def help_of(command: str) -> str:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-c", "from autocompress.cli import main; main()", command, "--help"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, f"autocompress {command} --help: {done.stderr}"
    return done.stdout


@functools.cache
def digits_structure() -> Structure:
    """What the plans in the documents are for."""
    task = digits()
    return find_structure(task.build(), task.example_input())


def prepare(block: Block, folder: Path) -> None:
    """Write the document's example files where the block expects them."""
    for other in blocks(block.document, "python"):
        if other.mark.startswith("file="):
            (folder / other.mark.removeprefix("file=")).write_text(other.text)


def test_every_command_and_flag_in_the_documents_exists() -> None:
    found = commands()
    assert len({name for _, name, _ in found}) >= 8
    for document, name, rest in found:
        for flag in re.findall(r"--[a-z][a-z-]*", rest):
            assert flag in help_of(name), f"{document}: autocompress {name} {rest}"
        assert help_of(name)


def test_every_make_target_in_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in DOCUMENTS:
        named = re.findall(r"^\s*make ([a-z]+)", code_of(document), re.MULTILINE)
        assert set(named) <= targets, document.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", FENCE.sub("", document.read_text())):
        assert link.startswith("https://") or (document.parent / link).exists(), f"{document.name}: {link}"


@pytest.mark.parametrize("block", every("python"), ids=lambda b: f"{b.document.name}-{b.mark}")
def test_python_examples_parse_and_their_imports_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("autocompress"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name), f"{block.document.name}: {node.module}.{alias.name}"


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in every("python") if b.mark], ids=lambda b: f"{b.document.name}-{b.mark}")
def test_marked_python_examples_run(block: Block, tmp_path: Path) -> None:
    prepare(block, tmp_path)
    path = tmp_path / block.mark.removeprefix("file=")
    code = (
        "import sys\nfrom autocompress.task import load_task\n"
        "task = load_task(sys.argv[1])\n"
        "assert task.build()(task.example_input()).shape[0] == 1\n"
        "print(*(len(x) for x in (task.train, task.validation, task.selection, task.test)))"
    )
    name = next(n.name for n in ast.parse(block.text).body if isinstance(n, ast.FunctionDef))
    command = [sys.executable, "-c", code, f"{path}:{name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(int(size) > 0 for size in done.stdout.split())


@pytest.mark.parametrize("block", every("yaml"), ids=lambda b: f"{b.document.name}-{b.mark}")
def test_yaml_examples_validate(block: Block, tmp_path: Path) -> None:
    prepare(block, tmp_path)
    for other in blocks(block.document, "yaml"):
        if other.mark.startswith("space file="):
            (tmp_path / other.mark.removeprefix("space file=")).write_text(other.text)
    kind = block.mark.partition(" ")[0]
    if kind == "study":
        (tmp_path / "study.yaml").write_text(block.text)
        assert load_study(tmp_path / "study.yaml").name
    elif kind == "space":
        (tmp_path / "space.yaml").write_text(block.text)
        assert load_space("space.yaml", tmp_path)
    elif kind == "plan":
        (tmp_path / "plan.yaml").write_text(block.text)
        assert not load_plan(tmp_path / "plan.yaml", digits_structure()).is_dense
    else:
        assert yaml.safe_load(block.text), f"{block.document.name}: an empty yaml block"


def test_the_reference_names_every_key_of_a_study() -> None:
    schema = Study.model_json_schema()
    models = [schema, *schema.get("$defs", {}).values()]
    keys = {key for model in models for key in model.get("properties", {})}
    text = (ROOT / "docs" / "study-file.md").read_text()
    named = set(re.findall(r"[\w]+", " ".join(re.findall(r"`([^`\n]+)`", text))))
    assert not keys - named, f"docs/study-file.md does not name: {json.dumps(sorted(keys - named))}"


def test_the_reference_names_every_exit_code() -> None:
    def below(kind: type[AutocompressError]) -> set[int]:
        return {kind.exit_code}.union(*(below(child) for child in kind.__subclasses__()))

    text = (ROOT / "docs" / "getting-started.md").read_text()
    named = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert named == below(AutocompressError) | {0}
