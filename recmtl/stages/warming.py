"""A model begins at another one's values, where its config asks for it."""

import tempfile
from pathlib import Path

from recmtl.errors import RunError, UserError
from recmtl.model import Model
from recmtl.package import load_package
from recmtl.progress import Silent
from recmtl.stages.job import Job
from recmtl.tracking import redact
from recmtl.tracking.promotion import champion_of
from recmtl.tracking.registry import resolve
from recmtl.training.checkpoint import Checkpoints
from recmtl.training.warm import warm_start

__all__ = ["warm_start_job"]

_CHAMPION = "champion"


def warm_start_job(job: Job, model: Model) -> None:
    """Give the model that is about to be trained the values of ``training.warm_start``; every rank calls it.

    A model that a checkpoint is about to overwrite is left alone: then the other one may be gone by now. Rank 0 says
    which package it is, and the others must find the same one.

    Raises:
        UserError: there is no such model, or the checkpoints that are there are of another config or other data.
        RunError: it cannot be fetched, is damaged, or is another one on another rank.
    """
    config, group = job.config, job.group
    wanted = config.training.warm_start
    if wanted is None or _resumes(job):
        return
    if wanted == _CHAMPION:
        wanted = group.broadcast(_champion(job) if job.leads else "")
    with tempfile.TemporaryDirectory(prefix="recmtl-") as temporary:
        before = load_package(resolve(wanted, config.tracking.uri, folder=Path(temporary)))
        digest = before.contents.digest
        if (leading := group.broadcast(digest)) != digest:
            raise RunError(
                f"training.warm_start: {redact(wanted)} is {digest[:12]} on rank {group.rank} and {leading[:12]} on "
                "rank 0, so the ranks would begin at different values; run again, or name one package for all"
            )
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
        f"begins at {redact(wanted)} ({digest[:12]}): {found.ids:,} ids carried, {found.new_ids:,} new,"
        f" {found.forgotten_ids:,} forgotten; {found.tensors} dense tensors carried, {len(found.fresh)} fresh"
    )
    job.tracker.tags({"recmtl.warm_start": digest})


def _champion(job: Job) -> str:
    """The champion as the URI of its version: the alias may move while the ranks fetch it."""
    registry = job.config.registry
    if registry is None:
        raise UserError("training.warm_start: champion, but the config has no `registry` that would know one")
    champion = champion_of(registry.model, uri=job.config.tracking.uri)
    if champion is None:
        raise UserError(
            f"training.warm_start: {registry.model} has no champion to begin at; promote a version, or name a package"
        )
    return champion.uri(registry.model)


def _resumes(job: Job) -> bool:
    """Whether training goes on at a checkpoint: what a killed process left unfinished is none."""
    if not job.group.broadcast(job.folder.checkpoints.is_dir()):
        return False
    keep = job.config.training.checkpoint.keep
    # Silent, as training looks again and warns.
    place = Checkpoints(
        job.folder.checkpoints, keep=keep, identity=job.folder.identity, progress=Silent(), group=job.group
    )
    return place.newest() is not None
