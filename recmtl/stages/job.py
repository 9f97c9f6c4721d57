"""A run under way, held under its folder's lock, and what it leaves behind."""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recmtl import durable
from recmtl.config import RunConfig
from recmtl.distributed import joined
from recmtl.errors import NotRegisteredError, RunError, UserError
from recmtl.etl.prepare import Prepared
from recmtl.etl.truth import read_truth
from recmtl.evaluation import summary_table, write_report
from recmtl.findings import Report, read_report
from recmtl.group import ONE, Group
from recmtl.loading import Loader
from recmtl.manifest import Manifest, file_hash
from recmtl.package import verify_package
from recmtl.progress import Progress, Silent
from recmtl.runs import RunFolder, open_run
from recmtl.stages.preparing import prepare
from recmtl.statistics import Statistics
from recmtl.tracking import NullTracker, RegisteredVersion, Tracker, deliver, open_tracker, redact, store_uri
from recmtl.tracking.base import Status
from recmtl.training import resolve_device

__all__ = [
    "Job",
    "Place",
    "RunResult",
    "commit",
    "open_job",
    "quoted",
    "report_place",
    "result_of",
    "rows_of",
    "truth_of",
    "untrained",
    "version_data",
    "write_up",
]


_REPORTS = ("report.md", "report.html", "report.json")
"""What an evaluation on test leaves beside its figures."""


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
    report: Report | None = None
    """``report.json``: figures beside the champion's, slices, verdict; None before anything was evaluated on test."""


class Job:
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

    def finish(self, stage: str, detail: Any = None) -> None:
        """Note that a stage is done, once what it told the tracker is on the disk too."""
        if self._tracker is not None:
            self._tracker.flush()
        self.folder.finish(stage, detail)

    def deliver(self, *, over: bool = True) -> None:
        """Send all that the tracking store does not have yet; of a run that is delivered, nothing is opened.

        Args:
            over: the run is over: say so, and track no more here. Otherwise its status stays as it is, and nothing is
                registered.
        """
        if not self.leads:
            return
        if self._tracker is None:
            tracking = self.config.tracking
            deliver(tracking, self.folder.tracking, name=self.config.name, progress=self.progress, over=over)
        elif over:
            self._tracker.finish("FINISHED")
            self._tracker = None

    def mend(self) -> None:
        """See that what is noted as done is there as it was left; what is damaged is done again.

        Raises:
            RunError: it cannot be made again, as the checkpoints are gone.
        """
        folder = self.folder
        if not folder.is_done("train"):
            return
        problem = self._damage()
        if problem is None:
            wrong = list(self._wrong_in_evaluation()) if folder.is_done("evaluate") else []
            if wrong:
                self.progress.warn(f"{folder.path}: {', '.join(wrong)}; evaluating again")
                folder.reopen("evaluate", "register", "run")
            return
        if not any(folder.checkpoints.glob("step-*")):
            raise RunError(
                f"{problem}, and the checkpoints that it could be made from are gone; --overwrite trains anew"
            )
        self.progress.warn(f"{problem}; training goes on at its last checkpoint and makes it again")
        folder.reopen("train", "evaluate", "register", "run")
        for name in _REPORTS:  # they may be about a package that is no more
            durable.remove(folder.path / name)

    def _damage(self) -> str | None:
        """What of the trained run is not as it was left, in words."""
        try:
            verify_package(self.folder.package)
            if "history" not in self.folder.read_metrics():
                return f"{self.folder.path / 'metrics.json'}: it lacks what training left"
        except (RunError, UserError) as error:
            return str(error)
        return None

    def _wrong_in_evaluation(self) -> Iterator[str]:
        """What the evaluation on test left and is not as it was left, in words."""
        path = self.folder.path
        yield from (f"{name} is missing" for name in _REPORTS if not (path / name).is_file())
        if self.folder.read_metrics().get("evaluated_on") == "validation":
            yield "the test figures of metrics.json are missing"
        noted = self.folder.detail("evaluate").get("report")  # none in a run of recmtl 0.1
        if noted is not None and (path / "report.json").is_file() and file_hash(path / "report.json") != noted:
            yield "report.json is damaged"

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

    def evaluated_how(self) -> dict[str, str]:
        """What shapes an evaluation and no training: noted with the stage, so that a change does it again."""
        registry = self.config.registry
        gate = None if registry is None or registry.gate is None else registry.gate.model_dump(mode="json")
        shaped = [self.config.evaluation.model_dump(mode="json"), gate]
        return {"settings": hashlib.sha256(json.dumps(shaped, sort_keys=True).encode()).hexdigest()}

    def is_evaluated(self) -> bool:
        """Whether test was evaluated, as the config asks now."""
        detail = self.folder.detail("evaluate") or {}
        return bool(detail.get("settings") == self.evaluated_how()["settings"])

    def result(self) -> RunResult:
        """What there is by now."""
        return result_of(self.config, self.folder, self.manifest, tuple(self._notes))


@contextmanager
def open_job(config: RunConfig, output: Path | None, overwrite: bool, progress: Progress) -> Iterator[Job]:
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
            progress=progress,
        ) as folder,
    ):
        progress = progress if group.rank == 0 else Silent()
        # Once trained, looking whether the data are still the same is no part of the run.
        with nullcontext() if folder.is_done("train") else folder.timed("prepare"):
            prepared = _prepare_once(config, progress, group)
        folder.bind_data(prepared.manifest.fingerprint)
        job = Job(config, folder, prepared, progress, group)
        try:
            with group.rank_0_first():
                if job.leads:
                    job.mend()
            folder.follow(group)
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


def untrained(path: Path, hint: str = "") -> UserError:
    """The error of a folder in which no model is."""
    return UserError(f"{path}: nothing is trained here yet; `recmtl train` this config first{hint}")


def truth_of(job: Job, *splits: str) -> dict[str, Mapping[str, Any]] | None:
    """Split to truth, of a synthetic log; None of any other."""
    if job.manifest.truth is None:
        return None
    return {split: read_truth(job.prepared.folder, job.manifest, split) for split in splits}


def rows_of(manifest: Manifest) -> dict[str, int]:
    """Split to its rows."""
    return {name: split.rows for name, split in manifest.splits.items()}


def write_up(job: Job) -> None:
    """Report and metrics as files of the run, here and in the tracking store."""
    path = job.folder.path
    metrics = job.folder.update_metrics({"seconds": job.folder.seconds})
    write_report(
        path / "report.md",
        name=job.config.name,
        manifest=job.manifest,
        metrics=metrics,
        config=job.config.resolved(),
        commit=commit(),
    )
    job.tracker.artifact(path / "metrics.json")
    job.tracker.artifact(path / "report.md")


def result_of(
    config: RunConfig, folder: RunFolder, manifest: Manifest | None, notes: tuple[str, ...], uri: str | None = None
) -> RunResult:
    """What is in a run's folder by now; ``uri``: where it was sent, if elsewhere than its config says."""
    metrics = folder.read_metrics()
    version = dict(folder.detail("register") or {})
    # `tracking sync` may have sent the run elsewhere than its config says.
    sent_to = version.pop("uri", None)
    uri = uri or sent_to or store_of(config)
    registered = RegisteredVersion(**version) if version else None
    places = tuple(_places(config, folder, registered, uri))
    path = folder.path / "report.json"
    report = read_report(path) if folder.is_done("evaluate") and path.is_file() else None
    header, rows = summary_table(metrics, report)
    return RunResult(folder.path, metrics, manifest, registered, notes, header, rows, places, report)


def store_of(config: RunConfig) -> str | None:
    return store_uri(config.tracking.uri) if config.tracking.enabled else None


def _places(
    config: RunConfig, folder: RunFolder, registered: RegisteredVersion | None, uri: str | None
) -> Iterator[Place]:
    """Where things are, and the command that opens each; absolute, so that it works from any folder."""
    scripts = Path(sys.executable).parent
    recmtl, path = quoted(scripts / "recmtl"), folder.path.absolute()
    if folder.is_done("train"):
        prepared = (config.data.prepared or Path("data/prepared") / config.name).absolute()
        model, store = str(path / "package"), ""
        if registered is not None and uri is not None:
            model, store = registered.uri, f" --tracking-uri {quoted(redact(uri))}"
        inputs = quoted(f"{prepared}/raw/test/*.parquet")
        to = f"--input {inputs} --output {quoted(path / 'predictions')} --overwrite"
        yield Place("model", model, f"{recmtl} predict --model {quoted(model)}{store} {to}")
        yield report_place(path)
    if uri is not None and uri.startswith("http"):
        yield Place("tracking", redact(uri), f"{quoted(sys.executable)} -P -m webbrowser {quoted(redact(uri))}")
    elif uri is not None:
        shown = redact(uri)
        yield Place("tracking", shown, f"{quoted(scripts / 'mlflow')} server --backend-store-uri {quoted(shown)}")


def report_place(path: Path) -> Place:
    """The report in a folder: the page, or before test was evaluated the text."""
    page, text = (path / name for name in ("report.html", "report.md"))
    if page.is_file():
        return Place(
            "report", str(page), f"{quoted(sys.executable)} -P -m webbrowser {quoted(page.absolute().as_uri())}"
        )
    return Place("report", str(text), f"less {quoted(text.absolute())}")


def commit() -> str | None:
    """The commit of recmtl's own source where it is run from a checkout, with ``+`` when that has changes."""
    git = shutil.which("git")
    home = Path(__file__).parents[2]
    if git is None or not (home / ".git").exists():
        return None

    def ask(*words: str) -> str | None:
        done = subprocess.run(  # noqa: S603 - git, on our own folder
            [git, "-C", str(home), *words], capture_output=True, text=True, check=False, timeout=30
        )
        return done.stdout.strip() if done.returncode == 0 else None

    commit = ask("rev-parse", "--short=12", "HEAD")
    return commit and commit + ("+" if ask("status", "--porcelain", "--untracked-files=no") else "")


def quoted(text: object) -> str:
    """Text as a shell reads it back."""
    return shlex.quote(str(text))


def version_data(version: RegisteredVersion) -> dict[str, Any]:
    """A version as plain data, for the run's state."""
    return {"name": version.name, "version": version.version, "alias": version.alias}
