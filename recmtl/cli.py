"""The command line: one function a verb, each a thin caller of :mod:`recmtl.stages`.

Results go to standard output, progress and warnings to standard error. Exit codes: 0 done; 1 the run failed; 2 the
user's config, arguments or data; 3 trained but not registered, or, of ``plan``, it does not fit.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recmtl import __version__
from recmtl.errors import NotRegisteredError, OtherRankError, RankLostError, RecmtlError, UserError

if TYPE_CHECKING:
    from recmtl.config import RunConfig
    from recmtl.stages import RunResult

__all__ = ["app", "exit_code_of", "main"]

# Typer carries a click of its own; this is that one's base class of wrong arguments.
_UsageError: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

_INTERRUPTED = 130
"""What shells make of Ctrl-C."""

app = typer.Typer(
    name="recmtl",
    help="Train one recommender for several objectives at once: event logs in, a registered model out.",
    epilog="Exit codes: 0 done, 1 the run failed, 2 config, arguments or data, 3 trained but not registered "
    "(plan: does not fit). --debug, anywhere, shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
tracking_app = typer.Typer(no_args_is_help=True, help="The tracking store.")
config_app = typer.Typer(no_args_is_help=True, help="Configs: check one, or print their JSON schema for an editor.")
app.add_typer(tracking_app, name="tracking")
app.add_typer(config_app, name="config")

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run's YAML.")]
OptionalConfig = Annotated[
    Path | None, typer.Argument(metavar="CONFIG", help="The run's YAML: its own model, instead of --model.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B.C=VALUE", help="Replace one field of the config; may be given several times."),
]
Output = Annotated[Path | None, typer.Option("--output", metavar="DIR", help="The run's folder; by default runs/NAME.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove the run that is in the folder, and begin anew.")]
Ranks = Annotated[
    int | None,
    typer.Option(
        "--nproc",
        metavar="N",
        min=1,
        help="Train with N processes on this machine, one a GPU where there are GPUs; the batch is shared by all. "
        "Across machines start this command under torchrun instead.",
    ),
]
MaxRestarts = Annotated[
    int,
    typer.Option(
        "--max-restarts", metavar="K", min=0, help="With --nproc: how often to start again after a process was lost."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="PATH_OR_URI", help="A run's or a package's folder, or models:/NAME@ALIAS, models:/NAME/3."
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        help="Where --model's URI is looked up; by default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.",
    ),
]


@app.command()
def run(
    config: Config,
    set_: Overrides = None,
    output: Output = None,
    overwrite: Overwrite = False,
    nproc: Ranks = None,
    max_restarts: MaxRestarts = 3,
) -> None:
    """Prepare, train, evaluate and register: the main job."""
    if nproc is not None:
        _launch("run", config, set_, output, overwrite, nproc, max_restarts)
        return
    with _among_ranks() as leads:
        from recmtl import stages

        try:
            result = stages.run(_load(config, set_), output=output, overwrite=overwrite, progress=_progress())
        except NotRegisteredError as error:
            if error.result is not None and leads:
                _print_run(error.result)
            raise
        if leads:
            _print_run(result)


@app.command()
def prepare(
    config: Config,
    set_: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Where the prepared rows go, for data.prepared.")
    ] = None,
) -> None:
    """Turn raw logs into prepared rows: validate, label, split, fit on train, encode."""
    _alone("prepare")
    from recmtl import stages

    prepared = stages.prepare(_load(config, set_), output=output, progress=_progress())
    manifest = prepared.manifest
    out = Console(soft_wrap=True, highlight=False)
    out.print(f"{'prepared' if prepared.built else 'already prepared, nothing rebuilt'}: {prepared.folder}")
    table = Table("split", "rows", *manifest.tasks_, box=None, pad_edge=False)
    for name, split in manifest.splits.items():
        labels = [
            f"{task.observed:,} observed" + ("" if task.mean is None else f", mean {task.mean:.4g}")
            for task in split.tasks.values()
        ]
        table.add_row(name, f"{split.rows:,}", *labels)
    out.print(table)


@app.command()
def train(
    config: Config,
    set_: Overrides = None,
    output: Output = None,
    overwrite: Overwrite = False,
    nproc: Ranks = None,
    max_restarts: MaxRestarts = 3,
) -> None:
    """Prepare what is not prepared, train, and evaluate on validation; nothing is tested or registered."""
    if nproc is not None:
        _launch("train", config, set_, output, overwrite, nproc, max_restarts)
        return
    with _among_ranks() as leads:
        from recmtl import stages

        result = stages.train(_load(config, set_), output=output, overwrite=overwrite, progress=_progress())
        if leads:
            _print_run(result)


@app.command()
def evaluate(
    config: Config,
    set_: Overrides = None,
    output: Output = None,
    model: Model = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Evaluate this config's own run on its test rows, or, with --model, another model on the same rows."""
    _alone("evaluate")
    from recmtl import stages

    loaded = _load(config, set_)
    result = stages.evaluate(loaded, model=model, tracking_uri=tracking_uri, output=output, progress=_progress())
    _print_run(result)


@app.command()
def predict(
    config: OptionalConfig = None,
    set_: Overrides = None,
    model: Model = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="Parquet or CSV: a path or a glob; may be given several times. By default CONFIG's test rows.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Where the predictions go, as Parquet.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="COLUMN", help="Copy this column beside the predictions.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace predictions that are there.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Score rows with a model, in batches: one column per task, beside the rows' keys."""
    _alone("predict")
    from recmtl import stages

    if (config is None) == (model is None):
        raise UserError("predict: give either CONFIG, for its own run's model, or --model PATH_OR_URI")
    scored = stages.predict(
        None if config is None else _load(config, set_),
        model=model,
        inputs=inputs or (),
        output=output,
        keep=keep or (),
        overwrite=overwrite,
        tracking_uri=tracking_uri,
        progress=_progress(),
    )
    Console(soft_wrap=True, highlight=False).print(f"{scored.rows:,} rows scored: {scored.folder}")


@app.command()
def doctor() -> None:
    """Check torch, torchrec, FBGEMM, the device and MLflow, and say what to install where they do not match."""
    from recmtl.doctor import diagnose

    out = Console(soft_wrap=True, highlight=False)
    checks = diagnose()
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[red]wrong[/]"}
    table = Table("", "", "", box=None, show_header=False, pad_edge=False)
    for check in checks:
        table.add_row(marks[check.verdict], check.name, check.found)
        if check.remedy:
            table.add_row("", "", f"→ {check.remedy}")
    out.print(table)
    wrong = [check.name for check in checks if check.verdict == "wrong"]
    if wrong:
        raise UserError(f"not ready to train: {', '.join(wrong)}; what to do stands above")
    out.print("ready to train")


@app.command()
def plan(
    config: Config,
    set_: Overrides = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", metavar="N", min=1, help="How many GPUs there would be.")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option("--ranks", metavar="N", min=1, help="How many processes; as --gpus, or on CPUs.")
    ] = None,
    memory: Annotated[
        float, typer.Option("--memory", metavar="GIB", min=0.0, help="GiB of each GPU, or of each rank's host memory.")
    ] = 80.0,
    device: Annotated[
        str | None, typer.Option("--device", metavar="cpu|cuda", help="By default cuda, or cpu with --ranks alone.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", metavar="B", min=1, help="Rows of a step over all ranks; by default the config's."
        ),
    ] = None,
    host_memory: Annotated[
        float | None, typer.Option("--host-memory", metavar="GIB", help="GiB of host memory for each GPU.")
    ] = None,
    ranks_per_host: Annotated[int, typer.Option("--ranks-per-host", metavar="N", min=1, help="Ranks on a host.")] = 8,
    bandwidth: Annotated[
        float | None, typer.Option("--bandwidth", metavar="GB/S", help="GB a second that a rank sends to the others.")
    ] = None,
    memory_bandwidth: Annotated[
        float | None, typer.Option("--memory-bandwidth", metavar="GB/S", help="GB a second of a rank's memory.")
    ] = None,
    gflops: Annotated[
        float | None, typer.Option("--gflops", metavar="G", help="GFLOP a second that a rank's matrix products reach.")
    ] = None,
    rows: Annotated[
        list[str] | None,
        typer.Option("--rows", metavar="TABLE=N", help="Rows of a table, where no prepared data say it."),
    ] = None,
    length: Annotated[
        list[str] | None,
        typer.Option("--length", metavar="FEATURE=N", help="Mean number of values of a bag, likewise."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Will it fit, how does it shard, what does a step move: worked out before anything is bought.

    Exit code 0 where it fits, 3 where it does not.
    """
    from recmtl.capacity import Machine, summary
    from recmtl.capacity import plan as work_out

    if gpus is not None and ranks is not None and gpus != ranks:
        raise UserError(f"--gpus {gpus} and --ranks {ranks}: one rank drives one GPU, so give one of them")
    device = device or ("cuda" if gpus is not None or ranks is None else "cpu")
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device}: cpu or cuda")
    if device == "cpu" and gpus is not None:
        raise UserError("--gpus goes with --device cuda; on CPUs say --ranks")
    found = work_out(
        _load(config, [*(set_ or ()), f"training.device={device}"]),  # the machine in question, not this one
        Machine(
            ranks=ranks or gpus or 1,
            memory=_gib(memory),
            device=device,
            host_memory=None if host_memory is None else _gib(host_memory),
            ranks_per_host=ranks_per_host,
            interconnect=bandwidth and bandwidth * 1e9,
            memory_bandwidth=memory_bandwidth and memory_bandwidth * 1e9,
            flops=gflops and gflops * 1e9,
        ),
        batch_size=batch_size,
        rows={name: int(count) for name, count in _sizes("--rows", rows).items()},
        lengths=_sizes("--length", length),
    )
    if json_:
        print(json.dumps(found.to_json(), indent=2))
    else:
        out = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
        for header, lines in summary(found):
            table = Table(box=None, pad_edge=False)
            for column in header:
                table.add_column(column, overflow="fold")
            for cells in lines:
                table.add_row(*cells)
            out.print(table)
            out.print()
        for line in (found.verdict, *(f"→ {advice}" for advice in found.advice), *found.notes):
            out.print(_escape(line))
    if not found.fits:
        raise typer.Exit(3)


def _gib(count: float) -> int:
    return int(count * 2**30)


def _sizes(option: str, given: Sequence[str] | None) -> dict[str, float]:
    sizes = {}
    for text in given or ():
        name, equals, number = text.partition("=")
        try:
            sizes[name] = float(number.replace("_", ""))
        except ValueError:
            equals = ""
        if not equals or not name:
            raise UserError(f"{option} {text}: expected NAME=NUMBER, as in {option} item_id=1000000")
    return sizes


@tracking_app.command("sync")
def tracking_sync(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, such as runs/demo.")],
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", metavar="URI", help="Send it there instead of the config's store.")
    ] = None,
) -> None:
    """Send a run that was kept locally to its tracking server, and register its model."""
    from recmtl import stages

    _print_run(stages.sync(run_folder, tracking_uri=tracking_uri, progress=_progress()))


@config_app.command("check")
def config_check(config: Config, set_: Overrides = None) -> None:
    """Read a config, and say what is wrong with it; files that are not there yet are warned of."""
    from recmtl import stages

    loaded = _load(config, set_)
    missing = stages.missing_input(loaded)
    if missing is not None:
        _progress().warn(missing)
    tasks = f"{len(loaded.tasks)} task{'s' if len(loaded.tasks) > 1 else ''}"
    print(f"{config}: good; {tasks}, run folder {loaded.folder}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of configs."""
    from recmtl.config import json_schema

    print(json.dumps(json_schema(), indent=2))


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code; an error is one line, with ``--debug`` a traceback too."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    sys.exit(_run(given, debug=debug))


def _run(arguments: list[str], *, debug: bool) -> int:
    try:
        with exit_code_of(debug=debug):
            code = app(args=arguments, prog_name="recmtl", standalone_mode=False)
            if code == _INTERRUPTED:
                raise KeyboardInterrupt  # Typer makes a code of it, and a user hears nothing
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1


@contextmanager
def exit_code_of(*, debug: bool = False) -> Iterator[None]:
    """Turn what goes wrong inside into one line on standard error and the exit code that belongs to it.

    Raises:
        SystemExit: with that code.
    """
    try:
        yield
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except _UsageError as error:
        _complain_of_usage(error, debug)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort) as error:
        if not _told_already(error):
            _complain("interrupted; the same command goes on from here", debug)
        sys.exit(_INTERRUPTED)
    except BrokenPipeError:
        # The reader of a pipe has gone, as `| head` does: there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except RecmtlError as error:
        if not _told_already(error):
            _complain(str(error), debug)
        sys.exit(error.exit_code)
    except OSError as error:
        _complain(f"{error.filename or 'input or output'}: {error.strerror or error}", debug)
        sys.exit(1)
    except Exception as error:
        _complain(f"unexpected {type(error).__name__}: {error} (a fault of recmtl's; --debug shows where)", debug)
        sys.exit(1)


def _told_already(error: BaseException) -> bool:
    """Whether another process of the job tells the user of this: the rank that failed, or the launcher."""
    if isinstance(error, OtherRankError):
        return True
    if "RANK" not in os.environ or not isinstance(error, (RankLostError, KeyboardInterrupt, typer.Abort)):
        return False
    from recmtl.distributed.launch import LAUNCHER

    return LAUNCHER in os.environ


def _complain(text: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[red]error:[/] {_escape(text)}")


def _complain_of_usage(error: Any, debug: bool) -> None:
    text: str = error.format_message()
    if "\n" in text.strip():  # a command without any argument: its help
        error.show()
        return
    context = getattr(error, "ctx", None)
    command = "recmtl" if context is None else context.command_path
    _complain(f"{command}: {text[:1].lower()}{text[1:].rstrip('.')}; `{command} --help` says more", debug)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _launch(
    verb: str,
    config: Path,
    overrides: Sequence[str] | None,
    output: Path | None,
    overwrite: bool,
    ranks: int,
    max_restarts: int,
) -> None:
    """The same command as several ranks, and its exit code."""
    if _among_many():
        raise UserError(f"{verb}: torchrun has started the processes already (RANK is set); leave --nproc out")
    loaded = _load(config, overrides)  # what is wrong with it is said before anything starts
    folder = output or loaded.folder
    before = _made_at(folder)
    given = [str(config), *(part for override in overrides or () for part in ("--set", override))]
    given += [] if output is None else ["--output", str(output)]
    given += ["--debug"] if "--debug" in sys.argv else []

    def arguments() -> list[str]:
        begun = _made_at(folder) != before  # what is there to overwrite has been: go on with what came since
        return [verb, *given, *(["--overwrite"] if overwrite and not begun else [])]

    from recmtl.distributed.launch import launch

    code = launch(arguments, ranks=ranks, max_restarts=max_restarts, progress=_progress())
    if code:
        raise typer.Exit(code)


def _made_at(folder: Path) -> int | None:
    """When the state of the run in a folder was last written; None where there is no run."""
    try:
        return (folder / "run.json").stat().st_mtime_ns
    except OSError:
        return None


def _among_many() -> bool:
    """Whether torchrun, or the like of it, has started this process as one of several."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


def _alone(verb: str) -> None:
    """Refuse to do as many processes what one does."""
    if _among_many():
        raise UserError(f"{verb}: one process does this; start it without torchrun (`train` and `run` take many)")


@contextmanager
def _among_ranks() -> Iterator[bool]:
    """Join the ranks that torchrun has started, if it has; whether this is the one that speaks."""
    if "RANK" not in os.environ:
        yield True
        return
    from recmtl.distributed import joined
    from recmtl.distributed.launch import follow_launcher

    follow_launcher()
    with joined() as group:
        yield group.rank == 0


def _load(path: Path, overrides: Sequence[str] | None) -> "RunConfig":
    from recmtl.config import load_config

    return load_config(path, overrides or ())


def _progress() -> "Progress":
    from recmtl.progress import for_stream

    return for_stream()


def _print_run(result: "RunResult") -> None:
    """A run's figures as a table, then where everything is and the command that opens each."""
    out = Console(soft_wrap=True, highlight=False)
    for line in result.notes:
        out.print(_escape(line))
    if result.rows:
        table = Table(*result.header, box=None, pad_edge=False)
        for row in result.rows:
            table.add_row(*row)
        out.print(table)
    if result.places:
        out.print()
    for place in result.places:
        out.print(f"[bold]{place.what:<9}[/] {_escape(place.where)}")
        out.print(f"          {_escape(place.command)}")


if TYPE_CHECKING:
    from recmtl.progress import Progress
