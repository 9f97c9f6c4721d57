"""The report: ``metrics.json`` and the manifest as a page of Markdown, and its head as a table for the terminal.

In: figures that are there already; nothing is computed anew. Out: ``report.md``, which says what was measured on what,
with an interval beside each figure and the baseline and, on synthetic logs, the optimum beside the model.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from recmtl import __version__, durable
from recmtl.evaluation.evaluate import Target, targets
from recmtl.findings import Report
from recmtl.manifest import Manifest
from recmtl.metrics import METRICS, metrics_for

__all__ = ["summary_table", "write_report"]

NOTHING = "–"
"""Stands where a figure is undefined."""
_OWN_SYSTEMS = ("model", "baseline", "optimum")
"""Those of ``metrics.json``."""
_SUMMARY = ("auc", "log_loss", "rmse", "accuracy")
_ARROWS = {True: " ↑", False: " ↓", None: ""}


def write_report(
    path: Path,
    *,
    name: str,
    manifest: Manifest,
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    commit: str | None = None,
) -> None:
    """Write ``report.md``, whole or not at all.

    Args:
        path: the file.
        name: the run's name.
        manifest: of the data that were evaluated.
        metrics: the content of ``metrics.json`` (:func:`recmtl.evaluation.evaluation_record`; also ``seconds`` by stage
            and ``history`` by epoch where they are there).
        config: the resolved config.
        commit: of the code, where it is known.
    """
    environment = Environment(  # noqa: S701 - Markdown, not HTML; texts from outside pass through `cell`
        loader=PackageLoader("recmtl.evaluation", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": _number, "ends": _ends, "cell": _cell, "percent": _percent, "count": _count}
    environment.filters |= {"reasons": _reasons, "instant": _instant}
    shown = [target for target in targets(manifest.tasks_) if _is_measured(metrics, target)]
    text = environment.get_template("report.md.j2").render(
        name=name,
        manifest=manifest,
        metrics=metrics,
        config=config,
        version=__version__,
        commit=commit,
        split=metrics.get("evaluated_on"),
        sections=[_section(metrics, target) for target in shown],
        validation=list(_validation(metrics, shown)),
        legend=[m for m in METRICS.values() if any(m in metrics_for(target.task.kind) for target in shown)],
        settings=list(_settings(config)),
        history=_history(metrics.get("history", ()), shown),
        nothing=NOTHING,
    )
    durable.write_file(path, re.sub(r"\n{3,}", "\n\n", text))


def summary_table(
    metrics: Mapping[str, Any], report: Report | None = None
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The main figures as text: a header, and a row per task and metric; both empty before anything was evaluated.

    Columns: the split's name, above the tasks; metric; model; its interval; with a report, the models beside it;
    baseline; and on synthetic logs optimum and the share of the attainable AUC. Without other models they fit a
    terminal of 80 characters.
    """
    split = metrics.get("evaluated_on")
    if split is None or split not in metrics:
        return (), ()
    beside = {(row.target, row.metric): row.systems for row in report.figures} if report is not None else {}
    others = [name for name in report.about.systems if name not in _OWN_SYSTEMS] if report is not None else []
    rows = []
    for key, values in metrics[split].items():
        for metric in _SUMMARY:
            if metric in values:
                theirs = beside.get((key, metric), {})
                cells = [_number(theirs[name].value) if name in theirs else NOTHING for name in others]
                rows.append(_summary_row(metrics, key, metric, values[metric], cells))
    header: tuple[str, ...] = (split, "metric", "model", _confidence(metrics), *others, "baseline")
    if metrics.get("optimum"):
        return (*header, "optimum", "share"), tuple(rows)
    return header, tuple(row[: len(header)] for row in rows)


def _summary_row(
    metrics: Mapping[str, Any], key: str, metric: str, value: float | None, others: Sequence[str]
) -> tuple[str, ...]:
    share = _look(metrics, "share_of_attainable", key) if metric == "auc" else None
    return (
        key,
        metric + _ARROWS[METRICS[metric].higher_is_better],
        _number(value),
        _short_ends(_look(metrics, "intervals", "model", key, metric)),
        *others,
        _number(_look(metrics, "baseline", key, metric)),
        _number(_look(metrics, "optimum", key, metric)),
        "" if share is None else _percent(share),
    )


@dataclass(frozen=True)
class _Line:
    """A metric of one target: model, baseline and optimum, each with its interval."""

    metric: str
    model: float | None
    model_ends: Sequence[float] | None
    baseline: float | None
    baseline_ends: Sequence[float] | None
    optimum: float | None
    optimum_ends: Sequence[float] | None
    difference_ends: Sequence[float] | None
    """Paired: model less optimum where there is one, else model less baseline."""


@dataclass(frozen=True)
class _Section:
    """A target's part of the report."""

    target: Target
    values: Mapping[str, Any]
    has_optimum: bool
    lines: Sequence[_Line]
    share: float | None
    share_ends: Sequence[float] | None
    main_effects: float | None
    """Share of the attainable AUC that the true main effects alone reach."""
    reliability: Sequence[Sequence[float]]


def _section(metrics: Mapping[str, Any], target: Target) -> _Section:
    key, values = target.key, metrics[metrics["evaluated_on"]][target.key]
    other = "optimum" if _look(metrics, "optimum", key) is not None else "baseline"
    lines = [
        _Line(
            metric=metric.name + _ARROWS[metric.higher_is_better],
            model=values.get(metric.name),
            model_ends=_look(metrics, "intervals", "model", key, metric.name),
            baseline=_look(metrics, "baseline", key, metric.name),
            baseline_ends=_look(metrics, "intervals", "baseline", key, metric.name),
            optimum=_look(metrics, "optimum", key, metric.name),
            optimum_ends=_look(metrics, "intervals", "optimum", key, metric.name),
            difference_ends=_look(metrics, "intervals", f"model_minus_{other}", key, metric.name),
        )
        for metric in metrics_for(target.task.kind)
    ]
    best, main = _look(metrics, "optimum", key, "auc"), _look(metrics, "main_effects", key, "auc")
    return _Section(
        target=target,
        values=values,
        has_optimum=other == "optimum",
        lines=lines,
        share=_look(metrics, "share_of_attainable", key),
        share_ends=_look(metrics, "intervals", "share_of_attainable", key),
        main_effects=None if main is None or best is None or best <= 0.5 else (main - 0.5) / (best - 0.5),
        reliability=_look(metrics, "reliability", key) or (),
    )


def _validation(metrics: Mapping[str, Any], shown: Sequence[Target]) -> Iterator[tuple[str, ...]]:
    """Rows of the validation table: task, metric, model, baseline, optimum."""
    if metrics.get("evaluated_on") == "validation":
        return
    for target in shown:
        for metric in metrics_for(target.task.kind):
            systems = ("validation", "validation_baseline", "validation_optimum")
            figures = (_number(_look(metrics, system, target.key, metric.name)) for system in systems)
            if _look(metrics, "validation", target.key) is not None:
                yield (target.key, metric.name + _ARROWS[metric.higher_is_better], *figures)


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The settings that tell runs apart at a glance, as far as the config has them."""
    paths = (
        "model.tower.kind",
        "balancing.kind",
        "training.epochs",
        "training.batch_size",
        "training.sparse.optimizer",
        "training.sparse.lr",
        "training.dense.optimizer",
        "training.dense.lr",
        "training.seed",
    )
    for path in paths:
        value = _look(config, *path.split("."))
        if value is not None:
            yield path, str(value)


def _history(history: Sequence[Mapping[str, Any]], shown: Sequence[Target]) -> list[list[str]]:
    """A table with its header: epoch, step, each task's training loss, each target's first metric on validation."""
    if not history:
        return []
    losses = list(dict.fromkeys(name for epoch in history for name in epoch.get("train", {})))
    watched = [(target.key, metrics_for(target.task.kind)[0].name) for target in shown]
    watched = [(key, name) for key, name in watched if any(_look(e, "validation", key, name) for e in history)]
    header = ["epoch", "step", *(f"{name}: loss" for name in losses), *(f"{key}: {name}" for key, name in watched)]
    return [
        header,
        *(
            [
                _count(epoch.get("epoch")),
                _count(epoch.get("step")),
                *(_number(_look(epoch, "train", name)) for name in losses),
                *(_number(_look(epoch, "validation", key, name)) for key, name in watched),
            ]
            for epoch in history
        ),
    ]


def _is_measured(metrics: Mapping[str, Any], target: Target) -> bool:
    return _look(metrics, metrics.get("evaluated_on") or "", target.key) is not None


def _look(values: Any, *path: str) -> Any:
    """What lies at the end of a path of keys; None where it ends early."""
    for key in path:
        if not isinstance(values, Mapping):
            return None
        values = values.get(key)
    return values


def _confidence(metrics: Mapping[str, Any]) -> str:
    confidence = _look(metrics, "bootstrap", "confidence")
    return "interval" if confidence is None else f"{confidence * 100:g} %"


def _number(value: float | None) -> str:
    """Four decimals, fewer for large values, scientific for small ones; whole counts as they are."""
    if value is None:
        return NOTHING
    if isinstance(value, int):
        return _count(value)
    size = abs(value)
    if size < 1e-9:
        return "0.0000"
    if size < 1e-3:
        return f"{value:.1e}"
    return f"{value:.4f}" if size < 100 else f"{value:,.2f}"


def _ends(interval: Sequence[float] | None) -> str:
    return NOTHING if interval is None else f"{_number(interval[0])} to {_number(interval[1])}"


def _short_ends(interval: Sequence[float] | None) -> str:
    if interval is None:
        return NOTHING
    return "–".join(f"{end:.3f}" if abs(end) < 100 else _number(end) for end in interval)


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value * 100:.1f} %"


def _count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _instant(text: str) -> str:
    """ISO 8601 in UTC, to the second."""
    return text[:19].replace("T", " ")


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{_cell(reason)}: {_count(count)}" for reason, count in counts.items() if count) or "none"


def _cell(text: Any) -> str:
    """Text from outside, so that it neither ends its table cell nor becomes markup."""
    plain = " ".join(str(text).split())
    for mark in ("\\", "|", "`", "*", "[", "]"):
        plain = plain.replace(mark, f"\\{mark}")
    return plain.replace("&", "&amp;").replace("<", "&lt;")
