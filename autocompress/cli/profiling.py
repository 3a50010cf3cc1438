"""What `autocompress profile` is asked for, turned into files that are held against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.errors import ConfigError

if TYPE_CHECKING:
    from autocompress.pipeline.times import Profiled


def profile_named(
    what: Sequence[str],
    *,
    trials: Sequence[int],
    versions: Sequence[str],
    plans: Sequence[Path],
    folder: Path | None,
    threads: int | None,
    batch_size: int | None,
    changes: Sequence[str],
) -> Profiled:
    """Profile what a command line names.

    Args:
        what: a study and any number of ONNX files, or ONNX files alone.
        trials: numbers of the study's trials. Without any of these four, and without files, its final front.
        versions: addresses of registered versions.
        plans: files of plans, built unless they were before.
        folder: where the picture goes; the study's folder, or the working directory, if None.
        threads: of one inference, for files without a study; 1 if None.
        batch_size: examples of one inference, likewise.
        changes: of the study file.

    Raises:
        ConfigError: options that do not go together, or a name that is none.
        AutocompressError: the study is not there yet, or a file cannot be profiled.
    """
    names = [text for text in what if not text.endswith(".onnx")]
    paths = [Path(text) for text in what if text.endswith(".onnx")]
    if len(names) > 1:
        raise ConfigError(f"expected one study and ONNX files (ending in .onnx), got {' and '.join(map(repr, names))}")
    from autocompress.pipeline import times

    if not names:
        if trials or versions or plans or changes:
            raise ConfigError("--trial, --version, --plan and --set are of a study: expected its name before the files")
        return times.profile_files(paths, folder or Path(), threads=threads or 1, batch_size=batch_size or 1)
    if threads is not None or batch_size is not None:
        raise ConfigError(
            "--threads and --batch-size are for files without a study; a study's are its target's: "
            "--set target.threads=2"
        )
    from autocompress.config import find_study
    from autocompress.pipeline.run import StudyRun
    from autocompress.pipeline.single import default_epochs

    study = find_study(names[0], changes)
    files = {str(path): times.read_onnx(path) for path in paths}
    if plans:
        one = StudyRun(study)
        with one.opened():
            one.prepare()
            files |= dict(times.plan_file(one.bench, path, default_epochs(study)) for path in plans)
    bench = times.prepared_bench(study)
    files |= dict(times.trial_file(bench, number) for number in trials)
    files |= dict(times.version_file(study, uri) for uri in versions)
    return times.profile_study(bench, files or times.front_files(bench), folder or bench.folder.root)
