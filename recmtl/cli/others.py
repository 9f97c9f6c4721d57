"""The verbs that look rather than work: doctor, plan, tracking, config, version."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from recmtl import __version__
from recmtl.cli.base import (
    Config,
    Overrides,
    app,
    config_app,
    escape,
    load,
    print_run,
    progress,
    tracking_app,
)
from recmtl.errors import UserError

__all__ = ["config_check", "config_schema", "doctor", "plan", "tracking_sync", "version"]


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
        load(config, [*(set_ or ()), f"training.device={device}"]),  # the machine in question, not this one
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
            out.print(escape(line))
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

    print_run(stages.sync(run_folder, tracking_uri=tracking_uri, progress=progress()))


@config_app.command("check")
def config_check(config: Config, set_: Overrides = None) -> None:
    """Read a config, and say what is wrong with it; files that are not there yet are warned of."""
    from recmtl import stages
    from recmtl.stages.job import store_of

    loaded = load(config, set_)
    store_of(loaded)
    missing = stages.missing_input(loaded)
    if missing is not None:
        progress().warn(missing)
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
