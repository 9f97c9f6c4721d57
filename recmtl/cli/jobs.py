"""The verbs that work on rows: run, prepare, train, evaluate, predict."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from recmtl.cli.base import (
    Config,
    MaxRestarts,
    Model,
    OptionalConfig,
    Output,
    Overrides,
    Overwrite,
    Ranks,
    TrackingUri,
    alone,
    among_many,
    app,
    load,
    print_run,
    progress,
)
from recmtl.errors import NotRegisteredError, UserError

__all__ = ["evaluate", "predict", "prepare", "run", "train"]


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
            result = stages.run(load(config, set_), output=output, overwrite=overwrite, progress=progress())
        except NotRegisteredError as error:
            if error.result is not None and leads:
                print_run(error.result)
            raise
        if leads:
            print_run(result)


@app.command()
def prepare(
    config: Config,
    set_: Overrides = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Where the prepared rows go, for data.prepared.")
    ] = None,
) -> None:
    """Turn raw logs into prepared rows: validate, label, split, fit on train, encode."""
    alone("prepare")
    from recmtl import stages

    prepared = stages.prepare(load(config, set_), output=output, progress=progress())
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

        result = stages.train(load(config, set_), output=output, overwrite=overwrite, progress=progress())
        if leads:
            print_run(result)


@app.command()
def evaluate(
    config: OptionalConfig = None,
    set_: Overrides = None,
    output: Output = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="[NAME=]PATH_OR_URI",
            help="A run's or a package's folder, or models:/NAME@ALIAS, models:/NAME/3. Of several, the report is "
            "about the first, and the others stand beside it under their names.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="PREPARED", help="With --model: a prepared dataset, for CONFIG's own."),
    ] = None,
    champion: Annotated[
        str | None,
        typer.Option(
            "--champion",
            metavar="PATH_OR_URI",
            help="The model to beat; by default @champion of registry.model, where there is one; none: nobody.",
        ),
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Evaluate this config's own run on its test rows, or, with --model, other models on the same rows."""
    alone("evaluate")
    from recmtl import stages

    result = stages.evaluate(
        None if config is None else load(config, set_),
        model=model,
        data=data,
        champion=champion,
        tracking_uri=tracking_uri,
        output=output,
        progress=progress(),
    )
    print_run(result)


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
            help="Parquet, CSV or JSON lines: a path or a glob; may be given several times. By default CONFIG's test "
            "rows.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="DIR", help="Where the predictions go, as Parquet.")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="COLUMN", help="Copy this column beside the predictions.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="NAME", help="Write this prediction alone; may be given several times."),
    ] = None,
    calibrated: Annotated[bool, typer.Option("--calibrated", help="Apply the calibration in the package.")] = False,
    top_k: Annotated[
        int | None, typer.Option("--top-k", metavar="K", help="Keep the K best rows of each group, with their rank.")
    ] = None,
    by: Annotated[
        str, typer.Option("--by", metavar="KEY", help="With --top-k: user, request or a column; a group's key.")
    ] = "user",
    score: Annotated[
        str | None,
        typer.Option("--score", metavar="NAME", help="With --top-k: the prediction to sort by, else the fused score."),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", help="Score in N processes; each holds the model.")
    ] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace predictions that are there.")] = False,
    separator: Annotated[
        str | None, typer.Option("--separator", metavar="CHARACTER", help="Of CSV; by default the training log's.")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option("--encoding", metavar="NAME", help="Of CSV; by default the training log's.")
    ] = None,
    missing: Annotated[
        list[str] | None,
        typer.Option(
            "--missing",
            metavar="TEXT",
            help="Of CSV: a text that stands for a missing value; may be given several times. By default the training "
            "log's.",
        ),
    ] = None,
    decimal: Annotated[
        str | None, typer.Option("--decimal", metavar="CHARACTER", help="Of numbers in text; by default as trained.")
    ] = None,
    thousands: Annotated[
        str | None, typer.Option("--thousands", metavar="CHARACTER", help="Of numbers in text; by default as trained.")
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Score rows with a model: one column per task, beside the rows' keys. Killed, the same command goes on."""
    alone("predict")
    from recmtl import stages

    if (config is None) == (model is None):
        raise UserError("predict: give either CONFIG, for its own run's model, or --model PATH_OR_URI")
    scored = stages.predict(
        None if config is None else load(config, set_),
        model=model,
        inputs=inputs or (),
        output=output,
        keep=keep or (),
        columns=columns or (),
        calibrated=calibrated,
        top_k=top_k,
        by=by,
        score=score,
        workers=workers,
        overwrite=overwrite,
        separator=separator,
        encoding=encoding,
        missing=missing,
        decimal=decimal,
        thousands=thousands,
        tracking_uri=tracking_uri,
        progress=progress(),
    )
    kept = "" if top_k is None else f", the best {scored.kept:,} kept"
    Console(soft_wrap=True, highlight=False).print(f"{scored.rows:,} rows scored{kept}: {scored.folder}")


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
    if among_many():
        raise UserError(f"{verb}: torchrun has started the processes already (RANK is set); leave --nproc out")
    loaded = load(config, overrides)  # what is wrong with it is said before anything starts
    folder = output or loaded.folder
    before = _made_at(folder)
    given = [str(config), *(part for override in overrides or () for part in ("--set", override))]
    given += [] if output is None else ["--output", str(output)]
    given += ["--debug"] if "--debug" in sys.argv else []

    def arguments() -> list[str]:
        begun = _made_at(folder) != before  # what is there to overwrite has been: go on with what came since
        return [verb, *given, *(["--overwrite"] if overwrite and not begun else [])]

    from recmtl.distributed.launch import launch

    code = launch(arguments, ranks=ranks, max_restarts=max_restarts, progress=progress())
    if code:
        raise typer.Exit(code)


def _made_at(folder: Path) -> int | None:
    """When the state of the run in a folder was last written; None where there is no run."""
    try:
        return (folder / "run.json").stat().st_mtime_ns
    except OSError:
        return None


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
