"""The command line. Results go to standard output, everything else to standard error.

Exit codes: 0 done; 1 an error; 2 wrong input, nothing created; 3 no candidate meets the constraints; 4 registered
bytes do not show what their card claims; 130 interrupted, resumable.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from autocompress.errors import AutocompressError, ConfigError, InterruptedStudyError

app = typer.Typer(
    name="autocompress",
    help="Search sparsity, bits and width of a network together, on measured latency, and register the front.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of a study.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one value of the study file.")
]
OutputOption = Annotated[
    Path, typer.Option("--output", metavar="DIR", help="Where studies are kept, for the default store.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def main() -> None:
    """Entry point: run a command, turn errors into one message and an exit code."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        # Without its standalone mode click hands the code of `typer.Exit` back instead of raising it.
        code = app(standalone_mode=False)
    except AutocompressError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = InterruptedStudyError.exit_code
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors
            _fail(f"{error.format_message()}\nTry: autocompress --help", ConfigError.exit_code)
        raise
    if code == InterruptedStudyError.exit_code:  # typer makes this code of a KeyboardInterrupt, without a word
        _fail("interrupted; the same command continues the study", code)
    sys.exit(code if isinstance(code, int) else 0)


def _terminated(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"autocompress: {message}\n")
    sys.stderr.flush()
    sys.exit(code)


def _print_json(document: Any) -> None:
    import json

    sys.stdout.write(json.dumps(document, indent=2) + "\n")


@app.command()
def run(study: StudyArgument, changes: SetOption = None) -> None:
    """Run a study, or continue it, through the Prefect flow.

    Example: `autocompress run digits --set search.trials=48`
    """
    loaded = _load(study, changes)
    from autocompress.cli.listening import TerminalReporter
    from autocompress.cli.printing import print_outcome

    # The terminal has the progress and one message for an error; Prefect's own log goes to its server.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    with TerminalReporter() as progress:
        progress.stage("start", "starting Prefect")
        from autocompress.flows.compress import run as run_flow

        outcome = run_flow(loaded, listener=progress)
    print_outcome(outcome)


@app.command()
def validate(study: StudyArgument, changes: SetOption = None) -> None:
    """Check a study file without importing its task or creating anything.

    Example: `autocompress validate study.yaml`
    """
    loaded = _load(study, changes)
    sys.stdout.write(f"{study}: valid. {loaded.search.trials} trials of {loaded.task.factory}\n")


@app.command()
def status(study: StudyArgument, changes: SetOption = None, as_json: JsonOption = False) -> None:
    """Show how far a study is: trials by state, reasons of failures, the front so far.

    Example: `autocompress status digits`
    """
    from autocompress.cli.printing import print_status
    from autocompress.pipeline.views import study_status

    view = study_status(_load(study, changes))
    if as_json:
        _print_json(view.model_dump(mode="json"))
    else:
        print_status(view)


@app.command()
def front(study: StudyArgument, changes: SetOption = None, as_json: JsonOption = False) -> None:
    """Show the final front, or a search's so far: objectives with intervals, plan, registered version, sha256.

    Example: `autocompress front digits --json`
    """
    from autocompress.cli.printing import print_front
    from autocompress.pipeline.views import study_front

    view = study_front(_load(study, changes))
    if as_json:
        _print_json(view.model_dump(mode="json"))
    else:
        print_front(view)


@app.command()
def pick(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Name of the registered model.")],
    maximum: Annotated[
        list[str] | None, typer.Option("--max", metavar="OBJECTIVE=VALUE", help="Largest acceptable value.")
    ] = None,
    minimum: Annotated[
        list[str] | None, typer.Option("--min", metavar="OBJECTIVE=VALUE", help="Smallest acceptable value.")
    ] = None,
    prefer: Annotated[
        Literal["fastest", "knee", "smallest", "accurate"], typer.Option(help="Which of those that qualify.")
    ] = "knee",
    download: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the model and its card here.")] = None,
    output: OutputOption = Path("autocompress-runs"),
    as_json: JsonOption = False,
) -> None:
    """Pick one registered version by constraint.

    Example: `autocompress pick digits --max latency_ms=1.0 --min accuracy=0.95 --prefer fastest --download out`
    """
    from autocompress.cli.printing import print_pick
    from autocompress.pipeline.views import pick_version

    view = pick_version(
        model,
        minimum=_bounds("--min", minimum),
        maximum=_bounds("--max", maximum),
        prefer=prefer,
        download=download,
        output=output,
    )
    if as_json:
        _print_json(view.model_dump(mode="json"))
    else:
        print_pick(view)


@app.command()
def verify(
    model_uri: Annotated[str, typer.Argument(metavar="MODEL_URI", help="models:/NAME/VERSION or models:/NAME@ALIAS")],
    output: OutputOption = Path("autocompress-runs"),
    task: Annotated[
        str | None, typer.Option(metavar="FACTORY", help="Trust this task function, if it is the card's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute, from the registered bytes alone, what a version's card claims. Exit code 4 if it does not hold.

    Example: `autocompress verify models:/digits@knee`
    """
    from autocompress.cli.printing import print_verification
    from autocompress.pipeline.verify import verify_version

    view = verify_version(model_uri, output=output, trusted=task)
    if as_json:
        _print_json(view.model_dump(mode="json"))
    else:
        print_verification(view)
    if not view.holds:
        raise typer.Exit(4)


@app.command()
def profile(
    what: Annotated[list[str], typer.Argument(metavar="STUDY|FILE.onnx...", help="A study, ONNX files, or both.")],
    trial: Annotated[list[int] | None, typer.Option(metavar="N", help="A trial of the study; may be repeated.")] = None,
    version: Annotated[list[str] | None, typer.Option(metavar="MODEL_URI", help="A registered version.")] = None,
    plan: Annotated[list[Path] | None, typer.Option(metavar="PLAN", help="A plan, built unless it was before.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Where the picture goes; the study's folder, or here.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of an inference, for files without a study.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Examples of an inference, likewise.")] = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where the time of an inference goes, layer by layer, dense against compressed, and write a picture.

    Without trials, versions, plans or files, the members of the study's final front are held against its dense model.

    Example: `autocompress profile digits --trial 3`, `autocompress profile dense.onnx small.onnx`
    """
    from autocompress.cli.listening import TerminalReporter
    from autocompress.cli.printing_times import print_profiled
    from autocompress.cli.profiling import profile_named
    from autocompress.pipeline.progress import reporting_to

    with TerminalReporter() as progress, reporting_to(progress):
        found = profile_named(
            what,
            trials=trial or (),
            versions=version or (),
            plans=plan or (),
            folder=folder,
            threads=threads,
            batch_size=batch_size,
            changes=changes or (),
        )
    if as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        print_profiled(found)


@app.command()
def sensitivity(study: StudyArgument, changes: SetOption = None, as_json: JsonOption = False) -> None:
    """Show what can be compressed and what each part is worth: groups, blocks and layers, each changed alone.

    Example: `autocompress sensitivity digits`
    """
    loaded = _load(study, changes)
    from autocompress.cli.listening import TerminalReporter
    from autocompress.cli.printing import print_profile
    from autocompress.pipeline.progress import reporting_to
    from autocompress.pipeline.run import StudyRun

    one = StudyRun(loaded)
    with TerminalReporter() as progress, reporting_to(progress), one.opened():
        one.prepare()
        found = one.profile()
    if as_json:
        _print_json(found.model_dump(mode="json"))
    else:
        print_profile(found)


@app.command()
def compress(
    study: StudyArgument,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan, a YAML file.")],
    folder: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where the model goes.")] = Path("compressed"),
    epochs: Annotated[
        float | None, typer.Option(min=0.0, help="Passes over the training split; as a finalist's if absent.")
    ] = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compress the study's model by one plan, without a search, and measure it beside the dense model.

    Example: `autocompress compress digits plan.yaml --to out`
    """
    loaded = _load(study, changes)
    from autocompress.cli.listening import TerminalReporter
    from autocompress.cli.printing import print_built
    from autocompress.pipeline.progress import reporting_to
    from autocompress.pipeline.run import StudyRun
    from autocompress.pipeline.single import compress_one, default_epochs

    one = StudyRun(loaded)
    with TerminalReporter() as progress, reporting_to(progress), one.opened():
        one.prepare()
        built = compress_one(one.bench, plan, folder, epochs=default_epochs(loaded) if epochs is None else epochs)
    if as_json:
        _print_json(built.model_dump(mode="json"))
    else:
        print_built(built)


@app.command()
def pack(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An ONNX file.")],
    packed: Annotated[Path, typer.Argument(metavar="FILE", help="Where the packed form goes.")],
) -> None:
    """Pack an ONNX file; `unpack` gives the same bytes back.

    Example: `autocompress pack model.onnx model.packed`
    """
    from autocompress.pipeline.single import pack_file

    before, after = pack_file(model, packed)
    sys.stdout.write(f"{packed}: {after} bytes, {before / after:.1f} times smaller than {model} ({before} bytes)\n")


@app.command()
def unpack(
    packed: Annotated[Path, typer.Argument(metavar="FILE", help="A packed file.")],
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Where the ONNX file goes.")],
) -> None:
    """Unpack a file that `pack` or `compress` wrote, and check its content hash.

    Example: `autocompress unpack model.packed model.onnx`
    """
    from autocompress.pipeline.single import unpack_file

    _, size = unpack_file(packed, model)
    sys.stdout.write(f"{model}: {size} bytes, as they were packed\n")


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Show versions, runtimes and this host: what works here and what does not.

    Example: `autocompress doctor`
    """
    from autocompress.cli.printing import print_doctor
    from autocompress.pipeline.doctor import examine

    view = examine()
    if as_json:
        _print_json(view.model_dump(mode="json"))
    else:
        print_doctor(view)
    if not view.healthy:
        raise typer.Exit(1)


def _load(study: str, changes: list[str] | None = None) -> Any:
    """The study in a file, or the one that a name stands for: run here before, or packaged."""
    from autocompress.config import find_study

    return find_study(study, changes or ())


def _bounds(option: str, texts: list[str] | None) -> dict[str, float]:
    from autocompress.records import FIXED

    bounds: dict[str, float] = {}
    for text in texts or ():
        name, _, value = text.partition("=")
        # Whether a model has a metric of that name, only its versions can tell.
        if not name.isidentifier():
            known = ", ".join(FIXED)
            raise ConfigError(f"{option}: expected OBJECTIVE=VALUE with one of {known}, or a metric, got {text!r}")
        try:
            bounds[name] = float(value)
        except ValueError:
            raise ConfigError(f"{option}: expected a number after '=', got {text!r}") from None
        if not math.isfinite(bounds[name]):
            raise ConfigError(f"{option}: expected a finite number after '=', got {text!r}")
    return bounds
