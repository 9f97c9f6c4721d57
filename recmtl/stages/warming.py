"""A model begins at another one's values, where its config asks for it."""

import tempfile
from pathlib import Path

from recmtl.errors import UserError
from recmtl.model import Model
from recmtl.package import load_package
from recmtl.stages.job import Job
from recmtl.tracking import redact
from recmtl.tracking.registry import resolve
from recmtl.training.warm import warm_start

__all__ = ["warm_start_job"]

_CHAMPION = "champion"


def warm_start_job(job: Job, model: Model) -> None:
    """Give the model that is about to be trained the values of ``training.warm_start``; every rank calls it.

    A model that a checkpoint is about to overwrite is left alone: then the other one may be gone by now.

    Raises:
        UserError: there is no such model.
        RunError: it cannot be fetched, or is damaged.
    """
    config = job.config
    wanted = config.training.warm_start
    if wanted is None or job.group.broadcast(_resumes(job) if job.leads else None):
        return
    if wanted == _CHAMPION:
        if config.registry is None:
            raise UserError("training.warm_start: champion, but the config has no `registry` that would know one")
        wanted = f"models:/{config.registry.model}@{_CHAMPION}"
    with tempfile.TemporaryDirectory(prefix="recmtl-") as temporary:
        folder = resolve(wanted, config.tracking.uri, folder=Path(temporary))
        before = load_package(folder)
        found = warm_start(
            model,
            before,
            config=config.model,
            schema=job.manifest.schema_,
            tasks=job.manifest.tasks_,
            statistics=job.statistics,
            seed=config.training.seed,
        )
    for warning in found.warnings:
        job.progress.warn(warning)
    job.progress.say(
        f"begins at {redact(wanted)} ({before.contents.digest[:12]}): {found.ids:,} ids carried, {found.new_ids:,} new,"
        f" {found.forgotten_ids:,} forgotten; {found.tensors} dense tensors carried, {len(found.fresh)} fresh"
    )
    job.tracker.tags({"recmtl.warm_start": before.contents.digest})


def _resumes(job: Job) -> bool:
    return job.folder.checkpoints.is_dir() and any(job.folder.checkpoints.iterdir())
