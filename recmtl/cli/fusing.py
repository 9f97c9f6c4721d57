"""The verb that makes one score of a model's predictions: fuse."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recmtl.cli.base import Model, OptionalConfig, Overrides, TrackingUri, alone, app, escape, load, progress
from recmtl.errors import UserError

if TYPE_CHECKING:
    from recmtl.evaluation.fusing import FusionConfig
    from recmtl.findings import FusionPoint
    from recmtl.stages.fusing import Fused

__all__ = ["fuse"]

_SHOWN = 12
"""Points of the front that are printed; --points writes all."""


@app.command()
def fuse(
    config: OptionalConfig = None,
    set_: Overrides = None,
    model: Model = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="PREPARED", help="The prepared dataset whose validation rows decide."),
    ] = None,
    formula: Annotated[
        str | None,
        typer.Option(
            "--formula",
            metavar="product|sum|EXPR",
            help="product: Π p ** w; sum: Σ w·p, both over the objectives; or an expression of predictions and "
            "weights, such as 'click**a * (1 + purchase)**b'. By default product.",
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option("--objective", metavar="TASK", help="Several times; by default all tasks but multiclass ones."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="auto|request|user", help="What makes a ranked list; by default auto."),
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", metavar="K", min=1, help="NDCG of the first K; by default 10.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", metavar="N", min=1, help="Choices of weights to try; by default 200.")
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option("--prefer", metavar="TASK=X,…", help="How much each objective counts; by default all alike."),
    ] = None,
    ranges: Annotated[
        str | None,
        typer.Option("--range", metavar="WEIGHT=LOW:HIGH,…", help="Where an expression's weights are looked for."),
    ] = None,
    choose: Annotated[
        str | None,
        typer.Option("--choose", metavar="WEIGHT=X,…", help="Take these weights, of a point that was shown before."),
    ] = None,
    calibrated: Annotated[
        bool | None,
        typer.Option(
            "--calibrated/--uncalibrated",
            help="What the formula reads; by default calibrated predictions where the package has a calibration.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="S", help="Of the search.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="DIR", help="Write the package with its score here; by default it is replaced in place."
        ),
    ] = None,
    points: Annotated[
        Path | None, typer.Option("--points", metavar="FILE", help="Write every point that was tried, as JSON.")
    ] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Search the weights of one score over all objectives, show what can be had, and save the choice in the package.

    Scoring then writes the column `score`.
    """
    alone("fuse")
    if config is None and (model is None or data is None):
        raise UserError("fuse: give CONFIG, for its own run's model and data, or --model and --data")
    from recmtl.stages.fusing import fuse as search

    loaded = None if config is None else load(config, set_)
    given = {
        "formula": formula,
        "objectives": None if objective is None else tuple(objective),
        "by": by,
        "k": k,
        "trials": trials,
        "prefer": None if prefer is None else _numbers("--prefer", prefer),
        "ranges": None if ranges is None else _ranges(ranges),
        "choose": None if choose is None else _numbers("--choose", choose),
        "calibrated": calibrated,
    }
    base = None if loaded is None else loaded.evaluation.fusion
    fused = search(
        loaded,
        settings=_settings(base, {name: value for name, value in given.items() if value is not None}),
        model=model,
        data=data,
        output=output,
        tracking_uri=tracking_uri,
        seed=seed,
        progress=progress(),
    )
    if points is not None:
        from recmtl import durable

        durable.write_file(points, fused.search.finding.model_dump_json(indent=2) + "\n")
    _show(fused)


def _settings(base: "FusionConfig | None", given: dict[str, Any]) -> "FusionConfig":
    from pydantic import ValidationError

    from recmtl.evaluation.fusing import FusionConfig

    settings = (base or FusionConfig()).model_dump()
    if "formula" in given and given["formula"] != settings["formula"]:  # its ranges and weights were another formula's
        settings |= {"ranges": {}, "choose": None}
    try:
        return FusionConfig.model_validate({**settings, **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"--{part} " for part in first["loc"][:1])
        raise UserError(f"fuse: {where}{first['msg'].removeprefix('Value error, ')}") from error


def _pairs(option: str, text: str, example: str) -> dict[str, str]:
    found = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UserError(f"{option} {text}: expected {example}")
        found[name.strip()] = value.strip()
    return found


def _numbers(option: str, text: str) -> dict[str, float]:
    pairs = _pairs(option, text, "NAME=NUMBER,NAME=NUMBER")
    try:
        return {name: float(value) for name, value in pairs.items()}
    except ValueError as error:
        raise UserError(f"{option} {text}: expected NAME=NUMBER,NAME=NUMBER") from error


def _ranges(text: str) -> dict[str, tuple[float, float]]:
    found = {}
    for name, value in _pairs("--range", text, "WEIGHT=LOW:HIGH,WEIGHT=LOW:HIGH").items():
        low, _, high = value.partition(":")
        try:
            found[name] = (float(low), float(high))
        except ValueError as error:
            raise UserError(f"--range {text}: expected WEIGHT=LOW:HIGH,WEIGHT=LOW:HIGH") from error
    return found


def _show(fused: "Fused") -> None:
    out = Console(soft_wrap=True, highlight=False)
    finding, fusion = fused.search.finding, fused.search.fusion
    for note in fused.search.notes:
        out.print(escape(note))
    objectives, front = list(finding.points[0].objectives), _spread([p for p in finding.points if p.on_front])
    total = sum(point.on_front for point in finding.points)
    shown = "" if len(front) == total else f" ({len(front)} of them)"
    out.print(
        f"{len(finding.points)} choices of weights tried on {finding.split}, by {finding.by}; NDCG@{finding.k} of the "
        f"{total} on the Pareto front{shown}:"
    )
    table = Table("", *finding.weights, *objectives, box=None, pad_edge=False)
    for point in front:
        weights = [f"{value:.4g}" for value in point.weights.values()]
        values = [f"{point.objectives[name]:.4f}" for name in objectives]
        table.add_row("→" if point.chosen else "", *weights, *values, style="bold" if point.chosen else None)
    out.print(table)
    if fused.held_out:
        out.print(f"\non test, NDCG@{finding.k} when sorted by:")
        table = Table("", *objectives, box=None, pad_edge=False)
        for name, reached in fused.held_out.items():
            cells = ["-" if reached[objective] is None else f"{reached[objective]:.4f}" for objective in objectives]
            table.add_row(name, *cells, style="bold" if name == "score" else None)
        out.print(table)
    read = " of calibrated predictions" if fusion.calibrated else ""
    chosen = ", ".join(f"{name}={value:g}" for name, value in fusion.weights.items())
    out.print(f"\n[bold]score[/] = {escape(fusion.formula)}{read}" + (f", {chosen}" if chosen else ""))
    out.print(f"saved in  {escape(str(fused.package))}; `recmtl predict` writes the column score")


def _spread(front: "Sequence[FusionPoint]") -> "list[FusionPoint]":
    """Some points of the front, by its first objective: evenly spaced, with both ends and the one that was chosen."""
    ordered = sorted(front, key=lambda point: tuple(point.objectives.values()), reverse=True)
    chosen = [at for at, point in enumerate(ordered) if point.chosen]
    if len(ordered) <= _SHOWN:
        return ordered
    step = (len(ordered) - 1) / (_SHOWN - 2)
    return [ordered[at] for at in sorted({*(round(place * step) for place in range(_SHOWN - 1)), *chosen})]
