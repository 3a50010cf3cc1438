from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from study_files import GOOD, SPACE

from autocompress.config import Study, diff, find_study, load_study, packaged_studies, read_identity
from autocompress.errors import ConfigError
from autocompress.records import Bound
from autocompress.search.samplers import NSGA2, TPE
from autocompress.space.config import SpaceConfig, load_space


def make_task() -> None:
    """A task function for the tests below; never called."""


def test_good_study_is_read_without_importing_its_task(folder: Path) -> None:
    study = load_study("study.yaml")
    assert study.search.sampler == NSGA2(population_size=12)
    assert study.search.recovery_epochs == 0.1
    assert study.space == load_space("space.yaml")
    assert study.task.factory == f"{folder}/task.py:make"
    assert study.folder == folder / "autocompress-runs" / "mine"
    assert study.bounds == (Bound(objective="accuracy", min=0.8), Bound(objective="size_bytes", max=100000))
    assert study.model_name == "mine"


BAD_STUDIES = [
    # what is replaced, by what, the whole message
    (
        "seed: 3",
        "name: again",
        "study.yaml:2: name: expected each key once, got a duplicate of line 1; remove one of them",
    ),
    ("trials: 24", "trials: many", "study.yaml:11: search.trials: expected an integer >= 1, got 'many'"),
    ("trials: 24", "trials: 0", "study.yaml:11: search.trials: expected an integer >= 1, got 0"),
    ("trials: 24", "trials: 2.5", "study.yaml:11: search.trials: expected an integer >= 1, got 2.5"),
    ("trials: 24", "trials: '24'", "study.yaml:11: search.trials: expected an integer >= 1, got '24'"),
    ("trials: 24", "trials: true", "study.yaml:11: search.trials: expected an integer >= 1, got true"),
    ("trials: 24", "trials: 1e3", "study.yaml:11: search.trials: expected an integer >= 1, got 1000.0"),
    (
        "  trials: 24",
        "  trails: 24",
        "study.yaml:11: search.trails: expected one of the keys trials, time_s, workers,",
    ),
    ("  trials: 24", "  trails: 24", "(did you mean 'trials'?), got 'trails'"),
    (
        "recovery_epochs: 1e-1",
        "recovery_epochs: -1",
        "study.yaml:13: search.recovery_epochs: expected a finite number >= 0.0, got -1",
    ),
    (
        "recovery_epochs: 1e-1",
        "recovery_epochs: .nan",
        "study.yaml:13: search.recovery_epochs: expected a finite number >= 0.0, got nan",
    ),
    (
        "recovery_epochs: 1e-1",
        "max_failures: 1.5",
        "study.yaml:13: search.max_failures: expected a finite number > 0.0 and <= 1.0, got 1.5",
    ),
    (
        "recovery_epochs: 1e-1",
        "time_s: 0",
        "study.yaml:13: search.time_s: expected a finite number > 0.0 or null, got 0",
    ),
    ("recovery_epochs: 1e-1", "storage: user:pass@host", "study.yaml:13: search.storage: expected null or an address"),
    (
        "kind: nsga2",
        "kind: nsga",
        "study.yaml:12: search.sampler.kind: expected 'nsga2' or 'nsga3' or 'tpe' or 'gp' or 'random' or",
    ),
    (
        "kind: nsga2, ",
        "",
        "'nsga2', 'nsga3', 'tpe', 'gp', 'random', 'surrogate' or 'auto', got nothing",
    ),
    (
        "population_size: 12",
        "population: 12",
        "study.yaml:12: search.sampler.population: expected one of the keys kind, population_size",
    ),
    (
        "population_size: 12",
        "population_size: 1",
        "study.yaml:12: search.sampler.population_size: expected an integer >= 2, got 1",
    ),
    (
        "[accuracy, latency_ms]",
        "[accuracy, latency]",
        "study.yaml:8: objectives[1]: expected 'accuracy', 'latency_ms', 'size_bytes', 'packed_bytes', "
        "'macs', 'parameters', 'worst_class_drop', 'peak_memory_bytes' or 'energy_mj' "
        "(did you mean 'latency_ms'?), got 'latency'",
    ),
    (
        "[accuracy, latency_ms]",
        "[accuracy, accuracy]",
        "study.yaml:8: objectives: expected distinct objectives, got ['accuracy', 'accuracy']",
    ),
    (
        "[accuracy, latency_ms]",
        "[]",
        "study.yaml:8: objectives: expected a list of at least 1, each 'accuracy', 'latency_ms'",
    ),
    ("[accuracy, latency_ms]", "accuracy", "study.yaml:8: objectives: expected a list of at least 1, each 'accuracy'"),
    (
        "{accuracy: {min: 0.8}",
        "{acuracy: {min: 0.8}",
        "study.yaml:9: constraints.acuracy: expected 'accuracy', 'latency_ms'",
    ),
    (
        "{accuracy: {min: 0.8}",
        "{accuracy: {min: 80}",
        "study.yaml:9: constraints: expected an accuracy from 0 to 1, got 80.0",
    ),
    (
        "{accuracy: {min: 0.8}",
        "{accuracy: {}",
        "study.yaml:9: constraints.accuracy: expected min, max or both, got neither",
    ),
    (
        "{accuracy: {min: 0.8}",
        "{accuracy: {min: 0.9, max: 0.8}",
        "study.yaml:9: constraints.accuracy: expected min <= max, got min 0.9 and max 0.8",
    ),
    (
        "{max: 100000}",
        "{max: 0}",
        "study.yaml:9: constraints: expected size_bytes.max > 0, as size_bytes never is 0, got 0",
    ),
    (
        "size_bytes: {max: 100000}",
        "worst_class_drop: {max: -2}",
        "study.yaml:9: constraints: expected worst_class_drop.max >= -1, the best that there is, got -2.0",
    ),
    (
        "kind: onnxruntime-cpu",
        "kind: tensorrt",
        "study.yaml:7: target.kind: expected 'onnxruntime-cpu' or 'openvino-cpu' or 'torch-cpu' or "
        "'executorch-xnnpack' or 'torch-cuda' or 'onnxruntime-cuda' or 'onnxruntime-tensorrt', got 'tensorrt'",
    ),
    ("threads: 2", "threads: 0", "study.yaml:7: target.threads: expected an integer >= 1, got 0"),
    ("name: mine", "name: ../escape", "study.yaml:1: name: expected 1 to 100 letters, digits, '-' and '_'"),
    ("name: mine\n", "", "study.yaml:1: name: expected text, got nothing; the key is required"),
    ("seed: 3", "seed: -1", "study.yaml:2: seed: expected an integer >= 0 and < 2147483648, got -1"),
    ("  factory: task.py:make\n", "", "study.yaml:3: task.factory: expected text, got nothing; the key is required"),
    ("task.py:make", "tusk.py:make", "study.yaml:4: task.factory: expected an existing file, got "),
    ("task.py:make", "task.py:maik", "got 'maik', which it does not define (did you mean 'make'?)"),
    (
        "task.py:make",
        "no_such_package.task:make",
        "study.yaml:4: task.factory: expected a module that can be imported, got 'no_such_package.task': "
        "there is no 'no_such_package'",
    ),
    ("task.py:make", "autocompress.tasks.digitz:make", "there is no 'autocompress.tasks.digitz'"),
    (
        "task.py:make",
        "task.py",
        "study.yaml:4: task.factory: expected 'package.module:function' or 'file.py:function', got 'task.py'",
    ),
    (
        "task.py:make",
        "!!python/object/apply:os.system ['touch pwned']",
        "study.yaml:4: expected YAML, got tag 'tag:yaml.org,2002:python/object/apply:os.system'",
    ),
    (
        "{depth: 8}",
        "{depth: .inf}",
        "study.yaml:5: task.arguments: expected finite numbers in arguments, got inf for 'depth'",
    ),
    ("{depth: 8}", "{8: depth}", "study.yaml:5: task.arguments: expected a key that is text, got 8"),
    ("{depth: 8}", "{depth: 8", "study.yaml:6: expected YAML, got "),
    ("{depth: 8}", "&a {depth: *a}", "study.yaml:5: expected YAML, got alias '*a'; aliases are not accepted"),
    (
        "space: space.yaml",
        "space: jiont",
        "study.yaml:6: space: expected a packaged space (depth, global, joint, lowrank, nas, quantization, "
        "sharing, structured, transformer, unstructured) or "
        "the path of a .yaml file, got 'jiont' (did you mean 'joint'?)",
    ),
    (
        "space: space.yaml",
        "space: missing.yaml",
        "study.yaml:6: space: missing.yaml: expected a readable YAML file, got No such file or directory",
    ),
    (GOOD, "", "study.yaml:1: expected a mapping of keys to values, got an empty file"),
    (GOOD, "- a\n", "study.yaml:1: expected a mapping of keys to values, got a list"),
    (GOOD, GOOD + "---\nname: two\n", "study.yaml:15: expected YAML, got but found another document"),
    (GOOD, "[" * 5000, "study.yaml: expected YAML, got values nested too deeply"),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD_STUDIES)
def test_bad_study_names_place_key_expected_and_got(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "study.yaml").write_text(GOOD.replace(old, new))
    before = sorted(folder.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        load_study("study.yaml")
    assert message in str(caught.value)
    assert caught.value.exit_code == 2
    assert sorted(folder.rglob("*")) == before


BAD_SPACES = [
    (
        "high: 0.9",
        "high: 1.0",
        "space.yaml:3: groups.sparsity.high: expected a finite number >= 0.0 and < 1.0, got 1.0",
    ),
    (
        "high: 0.9",
        "high: 0.95",
        "space.yaml:3: groups.sparsity: expected a whole number of steps from low 0.0 to high 0.95, "
        "got step 0.1; high could be 0.9",
    ),
    ("low: 0.0", "low: 0.95", "space.yaml:3: groups.sparsity: expected low <= high, got low 0.95 and high 0.9"),
    ("step: 0.1", "step: 0", "space.yaml:3: groups.sparsity.step: expected a finite number > 0.0 and < 1.0, got 0"),
    (
        "step: 0.1",
        "step: 1e-9",
        "space.yaml:3: groups.sparsity: expected a step that gives at most 10000 values, got 1e-09",
    ),
    ("[32, 8]", "[32, 1]", "space.yaml:5: layers.bits.choices[1]: expected 32, 16, 8, 7, 6, 5, 4, 3 or 2, got 1"),
    ("[32, 8]", "[8, 8]", "space.yaml:5: layers.bits.choices: expected distinct choices, got [8, 8]"),
    ("[32, 8]", "[]", "layers.bits.choices: expected a list of at least 1, each 32, 16, 8, 7, 6, 5, 4, 3 or 2, got []"),
    ("per: layer", "per: layers", "expected 'layer', 'group' or 'model' (did you mean 'layer'?), got 'layers'"),
    (
        "[structured, none]",
        "[structural, none]",
        "space.yaml:2: groups.strategy[0]: expected 'structured', 'unstructured' or 'none' "
        "(did you mean 'structured'?), got 'structural'",
    ),
    ("  sparsity: {low: 0.0, high: 0.9, step: 0.1}\n", "", "space.yaml:1: groups: expected the key sparsity"),
    ("layers:", "layer:", "space.yaml:4: layer: expected one of the keys width, groups, allocation, layers"),
    (
        "layers:",
        "include: []\nlayers:",
        "space.yaml:4: include: expected a list of at least 1, each text of at least 1, got []",
    ),
    (
        "layers:",
        "overrides: [{match: a}]\nlayers:",
        "space.yaml:4: overrides[0]: expected strategy, criterion, reduction, pattern, sparsity, bits, weights, "
        "rank, clusters or block for 'a', got none of them",
    ),
    (
        SPACE,
        "groups: {strategy: [none]}\n",
        "space.yaml:1: expected a choice of width, groups.strategy, allocation, blocks",
    ),
    (
        SPACE,
        "width: {low: 0.5, high: 1.5, step: 0.5}\n",
        "space.yaml:1: width.high: expected a finite number > 0.0 and <= 1.0, got 1.5",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), BAD_SPACES)
def test_bad_space_is_told_with_its_own_file_and_line(folder: Path, old: str, new: str, message: str) -> None:
    (folder / "space.yaml").write_text(SPACE.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_study("study.yaml")
    assert message in str(caught.value)


def test_all_problems_of_study_and_space_are_told_at_once(folder: Path) -> None:
    (folder / "study.yaml").write_text(GOOD.replace("24", "0").replace("threads: 2", "threads: 0"))
    (folder / "space.yaml").write_text(SPACE.replace("[32, 8]", "[1]"))
    with pytest.raises(ConfigError) as caught:
        load_study("study.yaml")
    assert [line.split(" expected")[0] for line in str(caught.value).splitlines()] == [
        "space.yaml:5: layers.bits.choices[0]:",
        "study.yaml:7: target.threads:",
        "study.yaml:11: search.trials:",
    ]


def test_overrides_replace_values_and_are_named_in_errors(folder: Path) -> None:
    study = load_study(
        "study.yaml", ["search.trials=3", "search.sampler={kind: tpe}", "finalists.count = 2", "space=joint"]
    )
    assert (study.search.trials, study.search.sampler, study.finalists.count) == (3, TPE(), 2)
    assert study.space == load_space("joint")
    with pytest.raises(ConfigError, match=r"^override: search\.trials: expected an integer >= 1, got 'many'$"):
        load_study("study.yaml", ["search.trials=many"])
    with pytest.raises(ConfigError, match=r"override: expected key\.path=value, got 'search.trials'"):
        load_study("study.yaml", ["search.trials"])
    with pytest.raises(ConfigError, match=r"override space\.width: expected a mapping at space, got str"):
        load_study("study.yaml", ["space.width=1"])


def test_address_of_the_ledger_is_never_shown_or_kept(folder: Path) -> None:
    study = load_study("study.yaml", ["search.storage=postgresql://me:hunter2@host/db"])
    assert study.search.storage is not None
    assert study.search.storage.get_secret_value() == "postgresql://me:hunter2@host/db"
    kept = study.model_dump_json()
    assert "hunter2" not in kept + repr(study) + str(study.identity())
    assert Study.model_validate_json(kept).search.needs_storage
    with pytest.raises(ConfigError) as caught:
        load_study("study.yaml", ["search.storage=me:hunter2@host"])
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ValidationError) as refused:
        Study(name="x", task=make_task, search={"storage": ["hunter2"]})
    assert "hunter2" not in str(refused.value)


def test_kept_study_is_found_by_name_and_asks_for_its_database_again(folder: Path) -> None:
    study = load_study("study.yaml", ["search.storage=postgresql://me:hunter2@host/db"])
    study.folder.mkdir(parents=True)
    (study.folder / "study.json").write_text(study.model_dump_json())
    with pytest.raises(
        ConfigError, match=r"search\.storage: expected the address of the study's database, got the mask"
    ):
        find_study("mine")
    assert find_study("mine", ["search.storage=postgresql://me:hunter2@host/db"]) == study
    assert read_identity(study.folder / "study.json") == study.identity()
    (study.folder / "study.json").write_text("{")
    with pytest.raises(ConfigError, match="expected a study kept as JSON"):
        find_study("mine")


def test_identity_leaves_out_what_does_not_change_values(folder: Path) -> None:
    old = load_study("study.yaml")
    budget = ["trials=1", "time_s=9.0", "workers=2", "timeout_s=1", "memory_gb=1", "reduction=4", "bands=2"]
    begin = ["seeds.budgets=3", "seeds.warm_start=other"]
    same = load_study("study.yaml", ["output=elsewhere", *(f"search.{setting}" for setting in [*budget, *begin])])
    assert diff(old.identity(), same.identity()) == ""
    new = load_study("study.yaml", ["search.recovery_epochs=1.0", "objectives=[accuracy]"])
    assert diff(old.identity(), new.identity()) == (
        "objectives: ['accuracy', 'latency_ms'] -> ['accuracy']\nsearch.recovery_epochs: 0.1 -> 1.0"
    )


def test_files_of_seeds_start_from_the_study_files_folder(folder: Path) -> None:
    study = load_study("study.yaml", ["search.seeds={plans: [plans/a.yaml, /b.yaml], warm_start: ../runs/old}"])
    assert study.search.seeds.plans == (str(folder / "plans" / "a.yaml"), "/b.yaml")
    assert Path(str(study.search.seeds.warm_start)).resolve() == folder.resolve().parent / "runs" / "old"
    assert load_study("study.yaml", ["search.seeds.warm_start=old"]).search.seeds.warm_start == "old"
    with pytest.raises(ConfigError, match=r"search\.seeds\.budgets: expected .* 200.*, got 201"):
        load_study("study.yaml", ["search.seeds.budgets=201"])


@pytest.mark.parametrize("most", ["0", "-0.1"])
def test_no_class_may_lose_and_all_may_have_to_gain(folder: Path, most: str) -> None:
    text = GOOD.replace("size_bytes: {max: 100000}", f"worst_class_drop: {{max: {most}}}")
    (folder / "study.yaml").write_text(text)
    assert load_study("study.yaml").bounds[1] == Bound(objective="worst_class_drop", max=float(most))


def test_identity_sees_a_change_inside_the_space_file(folder: Path) -> None:
    old = load_study("study.yaml").identity()
    (folder / "space.yaml").write_text(SPACE.replace("high: 0.9", "high: 0.8"))
    assert diff(old, load_study("study.yaml").identity()) == "space.groups.sparsity.high: 0.9 -> 0.8"


def test_packaged_studies_load_and_survive_json() -> None:
    assert packaged_studies()
    for name in packaged_studies():
        study = Study.from_packaged(name)
        assert Study.model_validate_json(study.model_dump_json()) == study
    with pytest.raises(ConfigError, match=r"expected a packaged study .*, got 'digitz' \(did you mean 'digits'\?\)"):
        Study.from_packaged("digitz")
    with pytest.raises(ConfigError, match="expected a study file"):
        find_study("digitz")


def test_study_is_frozen_and_space_may_be_given_itself() -> None:
    space = SpaceConfig.model_validate({"layers": {"bits": {"choices": [32, 8]}}})
    study = Study(name="mine", task="task.py:make", space=space)
    assert study.space == space
    with pytest.raises(ValidationError, match="frozen"):
        study.seed = 1  # type: ignore[misc]


def test_checking_a_study_is_quick_and_loads_nothing_heavy(folder: Path) -> None:
    code = (
        "import sys; from autocompress.config import load_study; load_study('study.yaml');"
        "print(*({'torch', 'ray', 'mlflow', 'optuna', 'prefect', 'onnxruntime'} & set(sys.modules)))"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    assert time.monotonic() - started < 5
