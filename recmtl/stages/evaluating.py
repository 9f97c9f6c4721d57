"""A run's own model, or others, measured on the same rows: figures, report and verdict."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from recmtl import durable
from recmtl.config import RunConfig
from recmtl.errors import RunError, UserError, unwritable
from recmtl.evaluation import Scored, score, summary_table, write_report
from recmtl.evaluation.config import EvaluationConfig
from recmtl.evaluation.html import write_html, write_json
from recmtl.findings import Calibration, Cost, Fusion, Report
from recmtl.locks import held
from recmtl.manifest import Manifest, file_hash
from recmtl.metrics import metrics_for
from recmtl.package import load_package
from recmtl.progress import Progress, Silent
from recmtl.runs import holds_run
from recmtl.stages.job import Job, RunResult, commit, open_job, report_place, rows_of, untrained, write_up
from recmtl.stages.preparing import prepare
from recmtl.stages.registering import register_job
from recmtl.stages.reporting import CHAMPION, MODEL, Contender, Rows, Story, report_on
from recmtl.tasks import Tasks
from recmtl.tracking import RegistryConfig, redact, resolved, store_uri, verdict_tags
from recmtl.tracking.promotion import champion_of
from recmtl.training import resolve_device

__all__ = ["evaluate", "evaluate_job", "score_package"]

_SYSTEM = re.compile(r"([A-Za-z][\w-]*)=(.+)")
_TAKEN = (MODEL, CHAMPION, "baseline", "optimum")


def evaluate(
    config: RunConfig | None = None,
    *,
    model: str | Sequence[str] | None = None,
    data: Path | None = None,
    champion: str | None = None,
    tracking_uri: str | None = None,
    output: Path | None = None,
    progress: Progress | None = None,
) -> RunResult:
    """Evaluate on validation and test rows, and write the report.

    Args:
        config: the run, whose prepared rows are taken and whose settings hold.
        model: another model, as a package's folder or a registry URI: it encodes the raw rows with its own statistics.
            Of several, the report is about the first; the others stand beside it, each under the name that ``NAME=``
            before it gives. None evaluates this config's own run.
        data: a prepared dataset, in place of the config's.
        champion: the model to compare with, in place of ``evaluation.champion``.
        tracking_uri: the store of a URI.
        output: the run's folder; with ``model``, where its metrics and report go (by default the run's folder with
            ``-evaluated`` added).
        progress: where to show it; nowhere by default.

    Returns:
        With ``report``: its verdict says whether the gate, where there is one, lets the model through.

    Raises:
        UserError: nothing is trained here yet; a model has no task in common with the data; the champion cannot read
            them; no config where one is needed.
    """
    progress = progress or Silent()
    models = [model] if isinstance(model, str) else list(model or ())
    if models:
        return _evaluate_others(config, models, data, champion, tracking_uri, output, progress)
    if config is None:
        raise UserError("evaluate: give a config, or a model with --model and a prepared dataset with --data")
    if data is not None:
        raise UserError("evaluate: --data goes with --model; a config's own run is evaluated on its own data")
    path = output or config.folder
    if not holds_run(path):
        raise untrained(path)
    with open_job(config, output, False, progress) as job:
        if not job.folder.is_done("train"):
            raise untrained(path)
        if job.leads:
            finished = [stage for stage in ("register", "run") if job.folder.is_done(stage)]
            evaluate_job(job, champion=champion)
            if "register" in finished:
                register_job(job)
            if "run" in finished:
                job.deliver()
                job.folder.finish("run")
    return job.result()


def evaluate_job(job: Job, *, champion: str | None = None) -> None:
    """Measure the run's package on validation and test beside the champion, and write report and figures down."""
    config = job.config
    metrics = job.folder.read_metrics()
    with job.folder.timed("evaluate"), ExitStack() as stack:
        device = resolve_device(config.training.device)
        mine = Contender(
            MODEL, str(job.folder.package), load_package(job.folder.package, device=device), encoded=job.loader
        )
        uri = store_uri(config.tracking.uri) if config.tracking.enabled else None
        other, undecided = _champion(
            champion or config.evaluation.champion, config.registry, uri, stack, device, job.progress
        )
        other, undecided = _another(other, undecided, mine)
        story = Story(
            name=config.name,
            config=config.resolved(),
            commit=commit(),
            history=metrics.get("history", ()),
            calibration=[Calibration.model_validate(line) for line in metrics.get("calibration", ())],
            fusion=Fusion.model_validate(metrics["fusion"]) if metrics.get("fusion") else None,
            notes=tuple(_kept_epoch(config, metrics.get("history", ()))),
            undecided=undecided,
        )
        report, record = report_on(
            Rows(job.prepared.folder, job.manifest),
            [mine, *([] if other is None else [other])],
            config.evaluation,
            story,
            gate=config.registry.gate if config.registry is not None else None,
            validation="validation" not in metrics,  # training measured it, of this very package
            work=job.folder.path,
            progress=job.progress,
        )
    report = report.model_copy(update={"cost": _cost(job, str(device))})
    # A version's verdict is that of the last report: from here on a kill leaves both to the next `run`.
    job.folder.reopen("evaluate", "register", "run")
    job.folder.update_metrics({**record, "rows": rows_of(job.manifest)})
    _write(job.folder.path, report)
    for name in ("report.html", "report.json"):
        job.tracker.artifact(job.folder.path / name)
    steps = job.folder.detail("train")["steps"]
    job.tracker.metrics(dict(_figures(record, report)), step=steps)
    job.tracker.tags(verdict_tags(report))
    write_up(job)
    job.finish("evaluate", {**job.evaluated_how(), "report": file_hash(job.folder.path / "report.json")})


def _kept_epoch(config: RunConfig, history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """That an epoch before the last one was better on validation, where nothing keeps the best."""
    if config.training.early_stopping is not None or len(history) < 2:
        return
    task = Tasks(config.tasks)[config.tasks[0].name]
    metric = metrics_for(task.kind)[0]
    values = [epoch.get("validation", {}).get(task.name, {}).get(metric.name) for epoch in history]
    if any(value is None for value in values) or metric.higher_is_better is None:
        return
    best = values.index(max(values) if metric.higher_is_better else min(values))
    if best + 1 < len(values):
        yield (
            f"The last epoch, {len(values)}, was kept; {task.name}.{metric.name} was better on validation after epoch "
            f"{best + 1} ({values[best]:.4f} against {values[-1]:.4f}). `training.early_stopping` keeps the best one."
        )


def _another(
    champion: Contender | None, undecided: str | None, model: Contender
) -> tuple[Contender | None, str | None]:
    """The champion, unless it is the model itself: that would be worse than nobody, and decides nothing."""
    if champion is not None and champion.package.contents.digest == model.package.contents.digest:
        return None, "The champion is this very model, so there is nobody to compare it with."
    return champion, undecided


def _champion(
    wanted: str,
    registry: RegistryConfig | None,
    uri: str | None,
    stack: ExitStack,
    device: torch.device,
    progress: Progress,
) -> tuple[Contender | None, str | None]:
    """The model to beat, if there is one, and why the gate cannot be asked, if it cannot."""
    if wanted == "none":
        return None, None
    if wanted == "auto":
        if registry is None or uri is None:
            return None, None
        try:
            found = champion_of(registry.model, uri=uri)
        except RunError as error:
            progress.warn(f"no comparison with the champion: {error}")
            return None, f"The registry could not be asked for the champion, so nothing is decided: {error}"
        if found is None:
            return None, None
        wanted = found.uri(registry.model)
    folder = stack.enter_context(resolved(wanted, uri))
    return Contender(CHAMPION, redact(wanted), load_package(folder, device=device)), None


def _evaluate_others(
    config: RunConfig | None,
    models: Sequence[str],
    data: Path | None,
    champion: str | None,
    tracking_uri: str | None,
    output: Path | None,
    progress: Progress,
) -> RunResult:
    """Models on rows that they may never have seen, from their raw columns."""
    named = _named(models)
    if output is None and config is None:
        raise UserError("evaluate: --output is missing: the folder that figures and report go to")
    assert output is not None or config is not None
    path = output or config.folder.with_name(f"{config.folder.name}-evaluated")  # type: ignore[union-attr]
    if (path / "run.json").exists():
        raise UserError(f"--output {path}: this is a run's own folder; give another one for the figures of {models[0]}")
    with _held(path):
        return _evaluate_held(config, named, path, data, champion, tracking_uri, progress)


def _evaluate_held(
    config: RunConfig | None,
    named: Mapping[str, str],
    path: Path,
    data: Path | None,
    champion: str | None,
    tracking_uri: str | None,
    progress: Progress,
) -> RunResult:
    """The same, in a folder that no other process writes to."""
    models = list(named.values())
    folder, manifest = _prepared(config, data, progress)
    settings = EvaluationConfig() if config is None else config.evaluation
    registry = None if config is None else config.registry
    device = resolve_device("auto" if config is None else config.training.device)
    uri = tracking_uri
    if uri is None and config is not None and config.tracking.enabled:
        uri = config.tracking.uri
    with ExitStack() as stack:
        contenders = [
            Contender(name, redact(where), load_package(stack.enter_context(resolved(where, uri)), device=device))
            for name, where in named.items()
        ]
        store = store_uri(uri) if registry is not None and config is not None and config.tracking.enabled else uri
        other, undecided = _another(
            *_champion(champion or settings.champion, registry, store, stack, device, progress), contenders[0]
        )
        if other is not None:
            contenders.insert(1, other)
        name = manifest.name if config is None else config.name
        resolved_config = {} if config is None else config.resolved()
        report, record = report_on(
            Rows(folder, manifest),
            contenders,
            settings,
            Story(
                name=name,
                config=resolved_config,
                commit=commit(),
                notes=[f"{one.system}: {one.origin}" for one in contenders],
                undecided=undecided,
            ),
            gate=registry.gate if registry is not None else None,
            work=path,
            progress=progress,
        )
    metrics = {**record, "rows": rows_of(manifest), "model": redact(models[0])}
    durable.write_file(path / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    write_report(path / "report.md", name=name, manifest=manifest, metrics=metrics, config=resolved_config)
    _write(path, report)
    header, rows = summary_table(metrics, report)
    said = f"{', '.join(redact(where) for where in models)} on {folder}"
    return RunResult(path, metrics, manifest, None, (said,), header, rows, (report_place(path),), report)


def _named(models: Sequence[str]) -> dict[str, str]:
    """System to where its model is; the first one is the report's."""
    found: dict[str, str] = {}
    for number, text in enumerate(models):
        match = None if Path(text).exists() else _SYSTEM.fullmatch(text)
        name, where = match.groups() if match else (f"model_{number + 1}", text)
        name = MODEL if number == 0 else name
        if name in found or (number and name in _TAKEN):
            raise UserError(
                f"--model {text}: the name {name!r} is taken; give this model another with NAME=PATH_OR_URI"
            )
        found[name] = where
    return found


def _prepared(config: RunConfig | None, data: Path | None, progress: Progress) -> tuple[Path, Manifest]:
    if data is not None:
        durable.recover(data)
        if not (data / "manifest.json").is_file():
            raise UserError(
                f"--data {data}: no prepared dataset here (manifest.json is missing); `recmtl prepare` first"
            )
        return data, Manifest.opened(data)
    if config is None:
        raise UserError("evaluate: --data is missing: the prepared dataset to evaluate on (or give a config)")
    prepared = prepare(config, progress=progress)
    return prepared.folder, prepared.manifest


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Make the folder that figures and report go to, and hold it."""
    try:
        durable.make_folder(path)
        (path / ".lock").touch()
    except OSError as error:
        raise unwritable(f"--output {path}: cannot write in this folder", error) from error

    def busy() -> None:
        raise UserError(f"--output {path}: another recmtl process writes in this folder; wait for it")

    with held(path / ".lock", busy):
        durable.remove_litter(path, held=True)
        yield


def _write(path: Path, report: Report) -> None:
    write_json(path / "report.json", report)
    write_html(path / "report.html", report)


def _cost(job: Job, device: str) -> Cost:
    """What the run took so far."""
    done, seconds = job.folder.detail("train"), job.folder.seconds
    epochs, rows = done["epochs"], rows_of(job.manifest)
    package = sum(path.stat().st_size for path in job.folder.package.rglob("*") if path.is_file())
    trained = seconds.get("train")
    return Cost(
        seconds=seconds,
        rows_per_second={"train": round(rows["train"] * epochs / trained, 1)} if trained else {},
        peak_memory_mb=job.folder.peak_memory_mb,
        package_mb=round(package / 2**20, 2),
        device=device,
        cores=os.cpu_count(),
        steps=done["steps"],
        epochs=epochs,
    )


def score_package(job: Job, split: str, work: Path) -> Scored:
    """What the package, as it will serve, predicts for a split of its own prepared data.

    Args:
        job: the run.
        split: validation or test.
        work: a folder for the predictions where there are too many rows for memory; it must stay as long as they do.
    """
    package = load_package(job.folder.package, device=resolve_device(job.config.training.device))
    large = job.manifest.splits[split].rows > job.config.evaluation.intervals.memory_rows
    return score(
        package.model,
        job.loader(split),
        device=package.device,
        progress=job.progress,
        spill=work / split if large else None,
    )


def _figures(record: Mapping[str, Any], report: Report) -> Iterator[tuple[str, float]]:
    """``test/TASK/METRIC`` and so on, for the tracker; what is undefined is left out."""
    split = report.about.split
    for part in (split, "baseline", "optimum"):
        for task, values in record.get(part, {}).items():
            for metric, value in values.items():
                if value is not None:
                    yield f"{part if part == split else f'{split}_{part}'}/{task}/{metric}", float(value)
    for row in report.figures:
        for system, figure in row.systems.items():
            if system not in (MODEL, "baseline", "optimum") and figure.value is not None:
                yield f"{split}_{system}/{row.target}/{row.metric}", figure.value
    for line in report.ranking:
        value = line.systems[MODEL].value if MODEL in line.systems else None
        if value is not None:
            at = "" if line.k is None else f"_at_{line.k}"
            yield f"{split}/{line.objective}/{line.metric}{at}_by_{line.by}_of_{line.scored_by}", value
