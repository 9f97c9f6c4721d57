"""Train, and the main job: prepare, train, evaluate on test, register."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recmtl import durable
from recmtl.balancing import build_balancer
from recmtl.config import RunConfig
from recmtl.distributed import check_device
from recmtl.distributed.plan import Plan, format_plan
from recmtl.doctor import require_trio
from recmtl.errors import UserError
from recmtl.etl.guards import require
from recmtl.etl.slicing import ranking_groups
from recmtl.evaluation import Scored, evaluation_record, score
from recmtl.evaluation import evaluate as measure
from recmtl.evaluation.calibrating import fit_calibration
from recmtl.model import Model, build_model
from recmtl.package import save_package, with_calibration
from recmtl.progress import Progress, Silent
from recmtl.stages.evaluating import evaluate_job, score_package
from recmtl.stages.fusing import fuse_package
from recmtl.stages.job import Job, RunResult, open_job, rows_of, truth_of, write_up
from recmtl.stages.registering import register_job
from recmtl.stages.warming import warm_start_job
from recmtl.training import make_tables, resolve_device
from recmtl.training import train as train_model

__all__ = ["run", "train"]


def train(
    config: RunConfig, *, output: Path | None = None, overwrite: bool = False, progress: Progress | None = None
) -> RunResult:
    """Prepare what is not prepared, train, write the package and the validation metrics.

    Args:
        config: the run.
        output: the run's folder; by default the config's.
        overwrite: remove the run that is in the folder first.
        progress: where to show it; nowhere by default.

    Raises:
        UserError: the config, its data, or the folder (it holds another run) is wrong.
        RunError: the run failed; the same call goes on from its last checkpoint.
    """
    with open_job(config, output, overwrite, progress or Silent()) as job:
        if job.folder.is_done("train"):
            job.deliver(over=False)  # what a kill after the marker left unsent
            job.say(f"{job.folder.path}: trained already, nothing to do; --overwrite trains anew")
        else:
            _train(job)
    return job.result()


def run(
    config: RunConfig, *, output: Path | None = None, overwrite: bool = False, progress: Progress | None = None
) -> RunResult:
    """The main job: prepare, train, evaluate on test, register. Arguments and errors as for :func:`train`.

    Raises:
        NotRegisteredError: trained and kept, but the tracking server was away.
    """
    with open_job(config, output, overwrite, progress or Silent()) as job:
        if job.folder.is_done("run") and job.is_evaluated():
            job.deliver()
            job.say(f"{job.folder.path}: finished already, nothing to do; --overwrite begins anew")
        else:
            if not job.folder.is_done("train"):
                _train(job)
            if job.leads and not job.is_evaluated():
                evaluate_job(job)
            if job.leads:
                register_job(job)
            job.deliver()
            job.folder.finish("run")
    return job.result()


def _train(job: Job) -> None:
    require_trio()
    config, manifest = job.config, job.manifest
    schema, tasks = manifest.schema_, manifest.tasks_
    seed = config.training.seed
    training, group = config.training, job.group
    device = resolve_device(training.device)
    check_device(device)
    with group.rank_0_first():
        if job.leads:
            _guard(job)
    with job.folder.timed("train"):
        ranks = f" with {group.size} ranks" if group.size > 1 else ""
        tower = config.resolved()["model"]["tower"]["kind"]
        job.progress.say(f"training {tower} on {device}{ranks} into {job.folder.path}")
        _describe(job)
        tables = make_tables(
            training.sparse, device, sharding=training.sharding, batch_size=training.batch_size, group=group
        )
        model = build_model(config.model, schema, tasks, job.statistics, seed=seed, tables=tables).to(device)
        _tell_plan(job, getattr(model.tables, "plan", None))
        warm_start_job(job, model)
        validation = job.loader("validation", group)

        def validate(current: Model) -> Mapping[str, Mapping[str, float | None]]:
            scored = score(current, validation, device=device, group=group)
            return group.broadcast(measure(scored, tasks) if job.leads else {})

        trained = train_model(
            model,
            build_balancer(config.balancing, tasks=tuple(tasks), seed=seed),
            job.loader("train", group, shuffle_seed=seed),
            training,
            folder=job.folder.checkpoints,
            tracker=job.tracker,
            validate=validate,
            progress=job.progress,
            identity=job.folder.identity,
            group=group,
        )
        tensors = trained.model.tensors()  # of all ranks, at rank 0
        if not job.leads:
            return
        save_package(
            job.folder.package,
            tensors,
            schema=schema,
            tasks=tasks,
            statistics=job.statistics,
            columns=manifest.columns,
            config=config.resolved(),
            data=manifest.fingerprint,
        )
    with job.folder.timed("evaluate"), durable.scratch(job.folder.path, "scored") as work:
        scored = score_package(job, "validation", work)
        record = evaluation_record(
            {"validation": scored},
            tasks,
            job.statistics,
            truth_of(job, "validation"),
            replicates=0,  # intervals are for the final figures: test's, which `run` and `evaluate` add
            folder=work,
        )
        shipped = _complete(job, scored)
    figures = {**record, "rows": rows_of(manifest), "history": trained.history, **shipped}
    job.folder.update_metrics(figures, anew=True)
    write_up(job)
    job.finish("train", {"epochs": trained.epochs, "best_epoch": trained.best_epoch, "steps": trained.steps})


def _guard(job: Job) -> None:
    """Stop before anything is trained on data whose figures would lie."""
    for guard in require(job.prepared.folder, job.manifest, job.config.evaluation.guards):
        if guard.status == "allowed":
            job.progress.warn(f"guard {guard.name} is allowed to fail ({guard.reason}): {guard.text}")
    fusion = job.config.evaluation.fusion
    if fusion is not None and ranking_groups(job.prepared.folder, job.manifest, "validation", fusion.by) is None:
        raise UserError(
            "evaluation.fusion: the data name neither requests nor users, so there is nothing to rank within"
        )


def _complete(job: Job, validation: Scored) -> dict[str, Any]:
    """Put into the package what is fitted on validation, and say how it was chosen."""
    config, tasks = job.config, job.manifest.tasks_
    found: dict[str, Any] = {}
    seed = config.training.seed
    if config.evaluation.calibration is not None:
        job.progress.say("fitting the calibration on validation")
        calibrations, lines = fit_calibration(validation, tasks, config.evaluation.calibration, seed=seed)
        with_calibration(job.folder.package, calibrations)
        found["calibration"] = [line.model_dump(mode="json") for line in lines]
    if config.evaluation.fusion is not None:
        _, search = fuse_package(
            job.folder.package,
            job.prepared.folder,
            job.manifest,
            validation,
            config.evaluation.fusion,
            seed=seed,
            progress=job.progress,
        )
        found["fusion"] = search.finding.model_dump(mode="json")
        for note in search.notes:
            job.say(note)
    return found


def _describe(job: Job) -> None:
    """Tell the tracker what is run, on what data."""
    config, manifest = job.config, job.manifest
    job.tracker.params(config.resolved())
    job.tracker.tags({"recmtl.data": manifest.fingerprint, "recmtl.folder": str(job.folder.path.absolute())})
    job.tracker.dataset(
        manifest.name, manifest.fingerprint, source=str(job.prepared.folder.absolute()), details=rows_of(manifest)
    )
    job.tracker.artifact(job.folder.path / "config.resolved.yaml")


def _tell_plan(job: Job, plan: Plan | None) -> None:
    """Which rank holds what of the tables, for the user, the run's folder and the tracker; plain tables have none."""
    if plan is None or not job.leads:
        return
    if plan.ranks > 1:
        for line in format_plan(plan).splitlines():
            job.progress.say(line)
    durable.write_file(job.folder.path / "sharding.json", json.dumps(plan.to_json(), indent=1) + "\n")
    job.tracker.artifact(job.folder.path / "sharding.json")
