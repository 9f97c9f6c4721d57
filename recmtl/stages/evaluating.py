"""A run's own model, or another, measured on validation and test."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recmtl.config import RunConfig
from recmtl.errors import UserError
from recmtl.etl.truth import read_truth
from recmtl.evaluation import Scored, evaluation_record, score, summary_table, write_report
from recmtl.package import load_package
from recmtl.progress import Progress, Silent
from recmtl.runs import holds_run, write_atomically
from recmtl.stages.job import Job, Place, RunResult, open_job, quoted, rows_of, truth_of, untrained, write_up
from recmtl.stages.preparing import prepare
from recmtl.statistics import Statistics
from recmtl.tracking import redact, resolved
from recmtl.training import resolve_device

__all__ = ["evaluate", "evaluate_job", "score_package"]


def evaluate(
    config: RunConfig,
    *,
    model: str | None = None,
    tracking_uri: str | None = None,
    output: Path | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Evaluate on the config's validation and test rows.

    Args:
        config: the run.
        model: another model, as a package's folder or a registry URI: it encodes the raw rows with its own statistics.
            None evaluates this config's own run.
        tracking_uri: the store of a URI.
        output: the run's folder; with ``model``, where its metrics and report go (by default the run's folder with
            ``-evaluated`` added).
        progress: where to show it; nowhere by default.

    Raises:
        UserError: nothing is trained here yet, or the model has no task in common with the config.
    """
    progress = progress or Silent()
    if model is not None:
        return _evaluate_other(config, model, tracking_uri, output, progress)
    path = output or config.folder
    if not holds_run(path):
        raise untrained(path)
    with open_job(config, output, False, progress) as job:
        if not job.folder.is_done("train"):
            raise untrained(path)
        if job.leads:
            evaluate_job(job)
    return job.result()


def evaluate_job(job: Job) -> None:
    """Measure the run's package on validation and test, and write the figures down."""
    splits = ("validation", "test")
    with job.folder.timed("evaluate"):
        record = evaluation_record(
            score_package(job, *splits), job.manifest.tasks_, job.statistics, truth_of(job, *splits)
        )
    job.folder.update_metrics({**record, "rows": rows_of(job.manifest)})
    steps = job.folder.detail("train")["steps"]
    job.tracker.metrics(dict(_figures(record, "test")), step=steps)
    job.folder.finish("evaluate")
    write_up(job)


def _evaluate_other(
    config: RunConfig, model: str, tracking_uri: str | None, output: Path | None, progress: Progress
) -> RunResult:
    """Another model on this config's validation and test rows, from their raw columns."""
    path = output or config.folder.with_name(f"{config.folder.name}-evaluated")
    if (path / "run.json").exists():
        raise UserError(f"--output {path}: this is a run's own folder; give another one for the figures of {model}")
    prepared = prepare(config, progress=progress)
    manifest, splits = prepared.manifest, ("validation", "test")
    statistics = Statistics.load(prepared.folder / "statistics")
    with resolved(model, tracking_uri) as folder:
        package = load_package(folder, device=resolve_device(config.training.device))
        scored = {
            split: score(
                package.model,
                package.loader(prepared.folder, manifest, split),
                device=package.device,
                progress=progress,
            )
            for split in splits
        }
        truth = {split: read_truth(prepared.folder, manifest, split) for split in splits} if manifest.truth else None
        record = evaluation_record(scored, package.tasks, statistics, truth)
        metrics = {**record, "rows": rows_of(manifest), "model": redact(model)}
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {path}: cannot make this folder ({error.strerror})") from error
        write_atomically(path / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
        write_report(path / "report.md", name=config.name, manifest=manifest, metrics=metrics, config=config.resolved())
    header, rows = summary_table(metrics)
    places = (Place("report", str(path / "report.md"), f"less {quoted((path / 'report.md').absolute())}"),)
    return RunResult(path, metrics, manifest, None, (f"{redact(model)} on {prepared.folder}",), header, rows, places)


def score_package(job: Job, *splits: str) -> dict[str, Scored]:
    """What the package, as it will serve, predicts for splits of its own prepared data."""
    package = load_package(job.folder.package, device=resolve_device(job.config.training.device))
    return {
        split: score(package.model, job.loader(split), device=package.device, progress=job.progress) for split in splits
    }


def _figures(record: Mapping[str, Any], split: str) -> Iterator[tuple[str, float]]:
    """``test/TASK/METRIC`` and so on, for the tracker; what is undefined is left out."""
    for part in (split, "baseline", "optimum"):
        for task, values in record.get(part, {}).items():
            for metric, value in values.items():
                if value is not None:
                    yield f"{part if part == split else f'{split}_{part}'}/{task}/{metric}", float(value)
