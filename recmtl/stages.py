"""The only wiring of the rooms: config in; prepare, train, evaluate, register, predict out.

The command line, the Python API and the pipelines are thin callers of these functions. Each stage notes in the run's
folder that it is done, so that the same call after a kill goes on where the last one was.

Where torchrun has started several ranks, each makes the same call: they train together, and what one process can do
rank 0 does while the others wait. Rank 0 alone holds the run's folder, speaks to the user and to the tracker.
"""

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recmtl.balancing import build_balancer
from recmtl.config import RunConfig, load_config
from recmtl.distributed import check_device, joined
from recmtl.distributed.plan import Plan, format_plan
from recmtl.doctor import require_trio
from recmtl.errors import NotRegisteredError, UserError
from recmtl.etl.files import find, header
from recmtl.etl.prepare import Prepared
from recmtl.etl.prepare import prepare as prepare_data
from recmtl.etl.sources import SOURCES
from recmtl.etl.truth import read_truth
from recmtl.evaluation import Scored, evaluation_record, score, summary_table, write_report
from recmtl.evaluation import evaluate as measure
from recmtl.group import ONE, Group
from recmtl.loading import Loader
from recmtl.manifest import Manifest
from recmtl.model import Model, build_model
from recmtl.package import Predictions, load_package, save_package
from recmtl.progress import Progress, Silent
from recmtl.runs import RunFolder, holds_run, open_run, write_atomically
from recmtl.statistics import Statistics
from recmtl.tracking import NullTracker, RegisteredVersion, Tracker, open_tracker, redact, resolved, store_uri
from recmtl.tracking import sync as sync_tracking
from recmtl.tracking.base import Status
from recmtl.training import make_tables, resolve_device
from recmtl.training import train as train_model

__all__ = [
    "Place",
    "Predictions",
    "RunResult",
    "evaluate",
    "missing_input",
    "predict",
    "prepare",
    "run",
    "sync",
    "train",
]


@dataclass(frozen=True)
class Place:
    """Something a run left behind."""

    what: str
    where: str
    command: str
    """What opens it, from any folder."""


@dataclass(frozen=True)
class RunResult:
    """What a stage left in a run's folder."""

    folder: Path
    metrics: Mapping[str, Any]
    """``metrics.json``: validation, test, baseline, optimum, intervals, rows, seconds; what there is so far."""
    manifest: Manifest | None = None
    registered: RegisteredVersion | None = None
    notes: tuple[str, ...] = ()
    """Sentences for a person."""
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    """The figures as a table of text."""
    places: tuple[Place, ...] = ()
    """Where the model, the report and the tracking store are."""


def missing_input(config: RunConfig) -> str | None:
    """What to do about the first of the config's files that is not there, or None; nothing is read."""
    try:
        SOURCES[config.data.source.kind].inputs(config.data.source)  # type: ignore[attr-defined]
    except UserError as error:
        return str(error)
    return None


def prepare(config: RunConfig, *, output: Path | None = None, progress: Progress | None = None) -> Prepared:
    """Turn raw logs into a prepared dataset; what is prepared already is left as it is.

    Args:
        config: the run.
        output: where to, instead of ``data.prepared``.
        progress: where to show it; nowhere by default.

    Raises:
        UserError: the logs, or their description in the config, are wrong.
    """
    return prepare_data(
        config.data,
        config.explicit_features,
        config.tasks,
        name=config.name,
        folder=output,
        progress=progress or Silent(),
    )


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
    with _job(config, output, overwrite, progress or Silent()) as job:
        if job.folder.is_done("train"):
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
    with _job(config, output, overwrite, progress or Silent()) as job:
        if job.folder.is_done("run"):
            job.say(f"{job.folder.path}: finished already, nothing to do; --overwrite begins anew")
        else:
            if not job.folder.is_done("train"):
                _train(job)
            if job.leads and not job.folder.is_done("evaluate"):
                _evaluate(job)
            if job.leads:
                _register(job)
            job.folder.finish("run")
    return job.result()


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
        raise _untrained(path)
    with _job(config, output, False, progress) as job:
        if not job.folder.is_done("train"):
            raise _untrained(path)
        if job.leads:
            _evaluate(job)
    return job.result()


def predict(
    config: RunConfig | None = None,
    *,
    model: str | None = None,
    inputs: Sequence[str] = (),
    output: Path | None = None,
    keep: Sequence[str] = (),
    overwrite: bool = False,
    tracking_uri: str | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Score raw rows in batches.

    Args:
        config: take its own run's model, and by default its test rows.
        model: a package's folder or a registry URI, instead.
        inputs: Parquet or CSV files, or glob patterns.
        output: where the predictions go; by default ``predictions/`` in the config's run folder.
        keep: columns to copy beside the predictions and the keys.
        overwrite: replace predictions that are there.
        tracking_uri: the store of a URI.
        progress: where to show it; nowhere by default.

    Raises:
        UserError: no such model or input, or a column that cannot be what the model's schema says.
    """
    progress = progress or Silent()
    if config is None:
        if model is None:
            raise UserError("predict: give a config or a model")
        if not inputs:
            raise UserError("predict: --input is missing: the Parquet or CSV files to score")
        if output is None:
            raise UserError("predict: --output is missing: the folder that the predictions go to")
    else:
        model = str(config.folder / "package")
        if not (config.folder / "package").is_dir():
            raise _untrained(config.folder, " (of a run with --output DIR, say so with --set output=DIR)")
        inputs = inputs or [str(prepare(config, progress=progress).folder / "raw" / "test" / "*.parquet")]
        output = output or config.folder / "predictions"
    assert model is not None
    files = find(inputs, "--input")
    _require_place(output)
    with resolved(model, tracking_uri) as folder:
        package = load_package(folder)
        for name, file in files.items():
            columns = header(file, "--input")
            absent = [column for column in package.schema.columns if column not in columns]
            if 0 < len(absent) < len(package.schema.columns):  # of all, the package says that itself
                progress.warn(f"{name}: it has no column {', '.join(absent)}; scored as missing in every row")
        return package.predict_files(
            list(files), output, extra_keys=tuple(keep), overwrite=overwrite, progress=progress
        )


def _untrained(path: Path, hint: str = "") -> UserError:
    return UserError(f"{path}: nothing is trained here yet; `recmtl train` this config first{hint}")


def _require_place(output: Path) -> None:
    """Refuse an output that nothing can be written to, before anything is scored."""
    place = output.absolute().parent
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place, prefix="."):
            pass
    except OSError as error:
        raise UserError(f"--output {output}: cannot write in {place} ({error.strerror})") from error


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
        synced = sync_tracking(run_folder, uri=tracking_uri, progress=progress)
        registered = synced.registered[-1] if synced.registered else None
        if folder.is_done("evaluate") and not folder.is_done("run"):
            folder.finish("run")
        if registered is not None:
            folder.finish("register", {**_version_data(registered), "uri": redact(synced.uri)})
        progress.say(f"{run_folder}: sent to {synced.uri}, run {synced.run_id}")
        return _result(config, folder, None, (), uri=synced.uri)


class _Job:
    """A run under way: its folder, its prepared data, its tracker."""

    def __init__(
        self, config: RunConfig, folder: RunFolder, prepared: Prepared, progress: Progress, group: Group
    ) -> None:
        self.group = group
        self.leads = group.rank == 0
        """Whether this process does what takes one."""
        self.config = config
        self.folder = folder
        self.prepared = prepared
        self.manifest = prepared.manifest
        self.progress = progress
        self.statistics = Statistics.load(prepared.folder / "statistics")
        self._notes: list[str] = []
        self._tracker: Tracker | None = None

    @property
    def tracker(self) -> Tracker:
        """The run's tracker, opened when first asked for: a finished run is not opened again to say that it is."""
        if self._tracker is None:
            self._tracker = (
                open_tracker(self.config.tracking, self.folder.tracking, name=self.config.name, progress=self.progress)
                if self.leads
                else NullTracker()
            )
        return self._tracker

    def leave(self, status: Status | None) -> None:
        """The stage is over: with a status, so is the run."""
        if self._tracker is None:
            return
        if status is None:
            self._tracker.close()
        else:
            self._tracker.finish(status)

    def say(self, text: str) -> None:
        """A sentence that also stands in the result."""
        self._notes.append(text)

    def loader(self, split: str, group: Group = ONE, *, shuffle_seed: int | None = None) -> Loader:
        """Batches of one split, or this rank's part of each; validation and test in source order."""
        training = self.config.training
        return Loader(
            self.prepared.folder,
            self.manifest,
            split,
            batch_size=training.batch_size,
            shuffle_seed=shuffle_seed,
            window_rows=training.window_rows,
            prefetch=training.prefetch,
            rank=group.rank,
            world_size=group.size,
            pin_memory=resolve_device(training.device).type == "cuda",
        )

    def result(self) -> RunResult:
        """What there is by now."""
        return _result(self.config, self.folder, self.manifest, tuple(self._notes))


@contextmanager
def _job(config: RunConfig, output: Path | None, overwrite: bool, progress: Progress) -> Iterator[_Job]:
    """Hold the run's folder, bind it to its prepared data, and open its tracker; a failure is told to the tracker."""
    path = output or config.folder
    with (
        joined() as group,
        open_run(
            path,
            config=config.resolved(),
            config_yaml=config.to_yaml(),
            fingerprint=config.fingerprint(),
            overwrite=overwrite,
            group=group,
        ) as folder,
    ):
        progress = progress if group.rank == 0 else Silent()
        # Once trained, looking whether the data are still the same is no part of the run.
        with nullcontext() if folder.is_done("train") else folder.timed("prepare"):
            prepared = _prepare_once(config, progress, group)
        folder.bind_data(prepared.manifest.fingerprint)
        job = _Job(config, folder, prepared, progress, group)
        try:
            yield job
        except KeyboardInterrupt:
            job.leave("KILLED")
            raise
        except NotRegisteredError as error:
            job.leave("FINISHED")
            error.result = job.result()
            raise
        except BaseException:
            job.leave("FAILED")
            raise
        with group.rank_0_first():
            job.leave("FINISHED" if folder.is_done("run") else None)
        folder.follow(group)


def _prepare_once(config: RunConfig, progress: Progress, group: Group) -> Prepared:
    """Rank 0 prepares; the others read what is there then."""
    prepared = None
    with group.rank_0_first():
        if group.rank == 0:
            prepared = prepare(config, progress=progress)
    folder = Path(group.broadcast(str(prepared.folder.absolute() if prepared else "")))
    return prepared or Prepared(folder, Manifest.read_from(folder), built=False)


def _train(job: _Job) -> None:
    require_trio()
    config, manifest = job.config, job.manifest
    schema, tasks = manifest.schema_, manifest.tasks_
    seed = config.training.seed
    training, group = config.training, job.group
    device = resolve_device(training.device)
    check_device(device)
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
    with job.folder.timed("evaluate"):
        # Intervals are for the final figures: test's, which `run` and `evaluate` add.
        scored, truth = _score_package(job, "validation"), _truth(job, "validation")
        record = evaluation_record(scored, tasks, job.statistics, truth, replicates=0)
    job.folder.finish("train", {"epochs": trained.epochs, "best_epoch": trained.best_epoch, "steps": trained.steps})
    job.folder.update_metrics({**record, "rows": _rows(manifest), "history": trained.history})
    _write_up(job)


def _evaluate(job: _Job) -> None:
    splits = ("validation", "test")
    with job.folder.timed("evaluate"):
        record = evaluation_record(
            _score_package(job, *splits), job.manifest.tasks_, job.statistics, _truth(job, *splits)
        )
    job.folder.update_metrics({**record, "rows": _rows(job.manifest)})
    steps = job.folder.detail("train")["steps"]
    job.tracker.metrics(dict(_figures(record, "test")), step=steps)
    job.folder.finish("evaluate")
    _write_up(job)


def _register(job: _Job) -> None:
    registry = job.config.registry
    if registry is None or job.folder.is_done("register"):
        return
    with job.folder.timed("register"):
        version = job.tracker.register(job.folder.package, registry.model, registry.alias)
    if version is None:
        job.say(f"not registered as {registry.model}: tracking.enabled is false")
        return
    job.folder.finish("register", _version_data(version))
    job.folder.update_metrics({"seconds": job.folder.seconds})


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
        metrics = {**record, "rows": _rows(manifest), "model": redact(model)}
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {path}: cannot make this folder ({error.strerror})") from error
        write_atomically(path / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
        write_report(path / "report.md", name=config.name, manifest=manifest, metrics=metrics, config=config.resolved())
    header, rows = summary_table(metrics)
    places = (Place("report", str(path / "report.md"), f"less {_quoted((path / 'report.md').absolute())}"),)
    return RunResult(path, metrics, manifest, None, (f"{redact(model)} on {prepared.folder}",), header, rows, places)


def _score_package(job: _Job, *splits: str) -> dict[str, Scored]:
    """What the package, as it will serve, predicts for splits of its own prepared data."""
    package = load_package(job.folder.package, device=resolve_device(job.config.training.device))
    return {
        split: score(package.model, job.loader(split), device=package.device, progress=job.progress) for split in splits
    }


def _truth(job: _Job, *splits: str) -> dict[str, Mapping[str, Any]] | None:
    if job.manifest.truth is None:
        return None
    return {split: read_truth(job.prepared.folder, job.manifest, split) for split in splits}


def _rows(manifest: Manifest) -> dict[str, int]:
    return {name: split.rows for name, split in manifest.splits.items()}


def _describe(job: _Job) -> None:
    """Tell the tracker what is run, on what data."""
    config, manifest = job.config, job.manifest
    job.tracker.params(config.resolved())
    job.tracker.tags({"recmtl.data": manifest.fingerprint, "recmtl.folder": str(job.folder.path.absolute())})
    job.tracker.dataset(
        manifest.name, manifest.fingerprint, source=str(job.prepared.folder.absolute()), details=_rows(manifest)
    )
    job.tracker.artifact(job.folder.path / "config.resolved.yaml")


def _tell_plan(job: _Job, plan: Plan | None) -> None:
    """Which rank holds what of the tables, for the user, the run's folder and the tracker; plain tables have none."""
    if plan is None or not job.leads:
        return
    if plan.ranks > 1:
        for line in format_plan(plan).splitlines():
            job.progress.say(line)
    write_atomically(job.folder.path / "sharding.json", json.dumps(plan.to_json(), indent=1) + "\n")
    job.tracker.artifact(job.folder.path / "sharding.json")


def _write_up(job: _Job) -> None:
    """Report and metrics as files of the run, here and in the tracking store."""
    path = job.folder.path
    metrics = job.folder.update_metrics({"seconds": job.folder.seconds})
    write_report(
        path / "report.md",
        name=job.config.name,
        manifest=job.manifest,
        metrics=metrics,
        config=job.config.resolved(),
        commit=_commit(),
    )
    job.tracker.artifact(path / "metrics.json")
    job.tracker.artifact(path / "report.md")


def _figures(record: Mapping[str, Any], split: str) -> Iterator[tuple[str, float]]:
    """``test/TASK/METRIC`` and so on, for the tracker; what is undefined is left out."""
    for part in (split, "baseline", "optimum"):
        for task, values in record.get(part, {}).items():
            for metric, value in values.items():
                if value is not None:
                    yield f"{part if part == split else f'{split}_{part}'}/{task}/{metric}", float(value)


def _result(
    config: RunConfig, folder: RunFolder, manifest: Manifest | None, notes: tuple[str, ...], uri: str | None = None
) -> RunResult:
    metrics = folder.read_metrics()
    header, rows = summary_table(metrics)
    version = dict(folder.detail("register") or {})
    # `tracking sync` may have sent the run elsewhere than its config says.
    sent_to = version.pop("uri", None)
    uri = uri or sent_to or _store(config)
    registered = RegisteredVersion(**version) if version else None
    places = tuple(_places(config, folder, registered, uri))
    return RunResult(folder.path, metrics, manifest, registered, notes, header, rows, places)


def _store(config: RunConfig) -> str | None:
    return store_uri(config.tracking.uri) if config.tracking.enabled else None


def _places(
    config: RunConfig, folder: RunFolder, registered: RegisteredVersion | None, uri: str | None
) -> Iterator[Place]:
    """Where things are, and the command that opens each; absolute, so that it works from any folder."""
    scripts = Path(sys.executable).parent
    recmtl, path = _quoted(scripts / "recmtl"), folder.path.absolute()
    if folder.is_done("train"):
        prepared = (config.data.prepared or Path("data/prepared") / config.name).absolute()
        model, store = str(path / "package"), ""
        if registered is not None and uri is not None:
            model, store = registered.uri, f" --tracking-uri {_quoted(redact(uri))}"
        inputs = _quoted(f"{prepared}/raw/test/*.parquet")
        to = f"--input {inputs} --output {_quoted(path / 'predictions')} --overwrite"
        yield Place("model", model, f"{recmtl} predict --model {_quoted(model)}{store} {to}")
        yield Place("report", str(path / "report.md"), f"less {_quoted(path / 'report.md')}")
    if uri is not None and uri.startswith("http"):
        yield Place("tracking", redact(uri), f"{_quoted(sys.executable)} -m webbrowser {_quoted(redact(uri))}")
    elif uri is not None:
        shown = redact(uri)
        yield Place("tracking", shown, f"{_quoted(scripts / 'mlflow')} server --backend-store-uri {_quoted(shown)}")


def _commit() -> str | None:
    """The commit of recmtl's own source where it is run from a checkout, with ``+`` when that has changes."""
    git = shutil.which("git")
    home = Path(__file__).parent.parent
    if git is None or not (home / ".git").exists():
        return None

    def ask(*words: str) -> str | None:
        done = subprocess.run(  # noqa: S603 - git, on our own folder
            [git, "-C", str(home), *words], capture_output=True, text=True, check=False, timeout=30
        )
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "--short=12", "HEAD")
    return commit and commit + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")


def _quoted(text: object) -> str:
    return shlex.quote(str(text))


def _version_data(version: RegisteredVersion) -> dict[str, Any]:
    return {"name": version.name, "version": version.version, "alias": version.alias}
