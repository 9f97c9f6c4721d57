"""The verb that makes a model smaller, or a file of another runtime: export."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from recmtl.cli.base import TrackingUri, alone, app, escape, progress

__all__ = ["export"]


class _Format(StrEnum):
    INT8 = "int8"
    FP16 = "fp16"
    TORCH = "torch"
    ONNX = "onnx"


@app.command()
def export(
    model: Annotated[
        str, typer.Option("--model", metavar="PATH_OR_URI", help="A run's or a package's folder, or a registry URI.")
    ],
    format_: Annotated[
        _Format, typer.Option("--format", help="A package with smaller tables (int8, fp16), or torch.export, or ONNX.")
    ],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Where it goes.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="PREPARED", help="Prepared data: what is lost, on its validation rows."),
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="With torch: machine code too (AOTInductor).")
    ] = True,
    tracking_uri: TrackingUri = None,
) -> None:
    """Make a model smaller, or a file for another runtime; it must predict what the model does."""
    alone("export")
    from recmtl.stages.exporting import export as make

    done = make(
        model,
        format_.value,
        output,
        data=data,
        compiled=compiled,
        tracking_uri=tracking_uri,
        progress=progress(),
    )
    out = Console(soft_wrap=True, highlight=False)
    if done.before:
        table = Table("validation", "metric", "before", "after", "change", box=None, pad_edge=False)
        for task, values in done.before.items():
            for name, was in values.items():
                now = done.after[task][name]
                if was is None or now is None or name in ("rows", "positives", "user_auc_users"):
                    continue
                table.add_row(task, name, f"{was:.5f}", f"{now:.5f}", f"{now - was:+.1e}")
        out.print(table)
    for name, check in done.checks.items():
        out.print(f"{name}: {check.rows:,} rows compared, largest difference {check.largest_difference:.1e}")
    share = done.bytes_after / max(done.bytes_before, 1)
    out.print(f"{done.bytes_before:,} bytes of weights, {done.bytes_after:,} now ({share:.0%}): {escape(str(output))}")
