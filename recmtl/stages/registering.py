"""A run's model to the registry, now or once the server is back."""

from pathlib import Path

from recmtl.config import load_config
from recmtl.errors import UserError
from recmtl.expansion import Address
from recmtl.progress import Progress, Silent
from recmtl.runs import open_run
from recmtl.stages.job import Job, RunResult, result_of, version_data
from recmtl.tracking import redact
from recmtl.tracking import sync as sync_tracking

__all__ = ["register_job", "sync"]


def sync(run_folder: Path, *, tracking_uri: str | None = None, progress: Progress | None = None) -> RunResult:
    """Send a run that was kept locally to its tracking server, and register its model if that was asked for.

    Raises:
        UserError: there is no such run.
        NotRegisteredError: the server is still away.
    """
    progress = progress or Silent()
    if not (run_folder / "config.resolved.yaml").is_file():
        raise UserError(f"{run_folder}: this is no run's folder (config.resolved.yaml is missing)")
    config = load_config(run_folder / "config.resolved.yaml")
    fingerprint = config.fingerprint()
    with open_run(
        run_folder, config=config.resolved(), config_yaml=config.to_yaml(), fingerprint=fingerprint
    ) as folder:
        given = config.tracking.uri
        if tracking_uri is None and isinstance(given, Address) and given.refers:
            tracking_uri = given  # the run keeps the address as it is shown, and the config what it refers to
        synced = sync_tracking(run_folder, uri=tracking_uri, progress=progress)
        registered = synced.registered[-1] if synced.registered else None
        if registered is not None:
            folder.finish("register", {**version_data(registered), "uri": redact(synced.uri)})
        whole = folder.is_done("evaluate") and (config.registry is None or registered is not None)
        if whole and synced.finished and not folder.is_done("run"):
            folder.finish("run")  # else `recmtl run` has something left to do
        progress.say(f"{run_folder}: sent to {synced.uri}, run {synced.run_id}")
        return result_of(config, folder, None, (), uri=synced.uri)


def register_job(job: Job) -> None:
    """Make the run's package a version of the registered model that its config names, once."""
    registry = job.config.registry
    if registry is None or job.folder.is_done("register"):
        return
    with job.folder.timed("register"):
        report = job.folder.path / "report.json"
        version = job.tracker.register(
            job.folder.package, registry.model, registry.alias, report if report.is_file() else None
        )
    if version is None:
        job.say(f"not registered as {registry.model}: tracking.enabled is false")
        return
    job.folder.update_metrics({"seconds": job.folder.seconds})
    job.finish("register", version_data(version))
