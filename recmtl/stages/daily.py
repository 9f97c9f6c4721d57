"""The daily pipeline: one day's data, a model that begins at the champion, a verdict, a promotion.

In: a run's config with ``daily`` and ``registry.gate``, and a day D. Out: in ``runs/NAME/daily/D/``::

    day.json         where the day stands: stages, seconds, champion, verdict; the machine-readable summary
    champion/        the package to beat, as it was when the day began
    prepared/        the dataset as of D (recmtl.etl.days)
    run/             an ordinary run's folder: package, report, checkpoints

The stages are ``champion``, ``prepare``, ``train``, ``evaluate``, ``register``, ``promote``. Each is noted when it is
done; called again, the day goes on at the first that is not, and training at its last checkpoint. A day that is over is
left alone. If another model became the champion meanwhile, what was begun is judged against the wrong one and begins
anew. One process works at a config's days at a time.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

from recmtl import durable
from recmtl.bounded import parse_json, read_bytes
from recmtl.config import RunConfig
from recmtl.errors import RecmtlError, RefusedError, RunError, UserError, unwritable
from recmtl.etl.days import DailyConfig, longest_window, store_of, update
from recmtl.etl.prepare import uses_of
from recmtl.findings import Report, read_report
from recmtl.locks import held
from recmtl.manifest import Manifest
from recmtl.package import verify_package
from recmtl.progress import Progress, Silent
from recmtl.stages.evaluating import evaluate
from recmtl.stages.preparing import prepare
from recmtl.stages.promoting import promote
from recmtl.stages.training import run, train
from recmtl.statistics import Statistics
from recmtl.tracking.promotion import champion_of
from recmtl.tracking.registry import resolve
from recmtl.yaml_text import read_yaml

__all__ = ["STAGES", "DailyResult", "backfill", "daily"]

STAGES = ("champion", "prepare", "train", "evaluate", "register", "promote")
NOT_JUDGED = "not judged"

Status = Literal["promoted", "refused", "not judged", "failed"]
_OVER: tuple[Status, ...] = ("promoted", "refused", "not judged")
_EXIT_CODES: Mapping[Status, int] = {"promoted": 0, "refused": 3, "not judged": 3}
_FORMAT = 1


@dataclass(frozen=True)
class DailyResult:
    """What became of a day."""

    folder: Path
    summary: Mapping[str, Any]
    """``day.json``: plain data, as docs/daily.md describes it."""

    @property
    def status(self) -> Status:
        """How the day ended."""
        status: Status = self.summary["status"]
        return status

    @property
    def exit_code(self) -> int:
        """0 promoted; 1 failed, and worth another try; 2 wrong config or data; 3 refused, or nothing was judged."""
        code: int = self.summary["exit_code"]
        return code


def daily(config: RunConfig, day: date, *, overwrite: bool = False, progress: Progress | None = None) -> DailyResult:
    """Run a day, or the rest of it.

    An error of recmtl's is no exception here: it is in the result, and in ``day.json``.

    Args:
        config: with ``daily`` and ``registry.gate``.
        day: the day of evaluation.
        overwrite: remove what is there of the day and begin anew.
        progress: where to show it; nowhere by default.

    Raises:
        UserError: the config cannot run days, or the day is over and was run with another config.
        RunError: another process works at these days.
    """
    _check(config)
    progress = progress or Silent()
    root = config.folder / "daily"
    with _alone(root):
        pipeline = _Day(config, day, root / day.isoformat(), progress)
        if overwrite:
            pipeline.begin_anew("--overwrite")
        result = pipeline.go()
        assert config.daily is not None
        _tidy(root, config.daily.keep)
    return result


def backfill(
    config: RunConfig, first: date, last: date, *, overwrite: bool = False, progress: Progress | None = None
) -> Iterator[DailyResult]:
    """Run days one after the other, each against the champion that the one before left; ends after one that failed.

    Args:
        config, overwrite, progress: as for :func:`daily`.
        first, last: both are run.
    """
    if first > last:
        raise UserError(f"--from {first} --to {last}: the first day lies after the last one")
    for number in range((last - first).days + 1):
        result = daily(config, first + timedelta(days=number), overwrite=overwrite, progress=progress)
        yield result
        if result.status == "failed":
            return


def _check(config: RunConfig) -> None:
    if config.daily is None:
        raise UserError("daily: this config has no `daily` section, so a date means nothing to it (docs/daily.md)")
    if config.registry is None or config.registry.gate is None:
        raise UserError("registry.gate: the daily pipeline promotes by the gate alone; add `registry: {gate: {}}`")
    if not config.tracking.enabled:
        raise UserError("tracking.enabled: the daily pipeline needs the registry; set it to true")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    try:
        durable.make_folder(root)
        (root / ".lock").touch()
    except OSError as error:
        raise unwritable(f"{root}: cannot write in this folder", error) from error

    def busy() -> None:
        raise RunError(f"{root}: another process works at these days; run again when it is done")

    with held(root / ".lock", busy):
        yield


class _Day:
    """One day, in the order of :meth:`go`."""

    def __init__(self, config: RunConfig, day: date, folder: Path, progress: Progress) -> None:
        assert config.daily is not None
        assert config.registry is not None
        self.config, self.day, self.folder, self.progress = config, day, folder, progress
        self.daily: DailyConfig = config.daily
        self.model = config.registry.model
        self.uri = config.tracking.uri
        self._fingerprint = config.fingerprint()
        self._state = self._read()

    # The state

    def _read(self) -> dict[str, Any]:
        try:
            state = parse_json(read_bytes(self.folder / "day.json"), finite=False)
        except FileNotFoundError:
            return self._fresh()
        except ValueError as error:
            raise RunError(f"{self.folder / 'day.json'}: damaged ({error}); --overwrite begins the day anew") from error
        assert isinstance(state, dict)
        return state

    def _fresh(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "date": self.day.isoformat(),
            "name": self.config.name,
            "status": "failed",
            "exit_code": 1,
            "error": "it has not come to its end",
            "config": self._fingerprint,
            "champion": {"before": None, "after": None},
            "version": None,
            "judged": {},
            "verdict": None,
            "report": None,
            "days_rebuilt": [],
            "stages": {},
        }

    def _save(self) -> None:
        durable.make_folder(self.folder)
        durable.write_file(self.folder / "day.json", json.dumps(self._state, indent=2) + "\n")

    def begin_anew(self, why: str) -> None:
        """Forget what was done of the day."""
        if self.folder.exists():
            self.progress.say(f"{self.folder}: the day begins anew ({why})")
            # The state goes first: what a kill leaves is then no day at all, and begins anew.
            durable.remove(self.folder / "day.json")
            durable.remove(self.folder)
        self._state = self._fresh()

    def _result(self) -> DailyResult:
        return DailyResult(self.folder, self._state)

    # The stages

    def go(self) -> DailyResult:
        """The rest of the day."""
        durable.remove_litter(self.folder, held=True)
        state = self._state
        if state["config"] != self._fingerprint:
            if state["status"] in _OVER:
                raise UserError(
                    f"{self.folder}: this day was run with another config; --overwrite runs it anew with this one"
                )
            self.begin_anew("the config changed")
        elif state["status"] in _OVER:
            self.progress.say(f"{self.folder}: {state['status']} already, nothing to do; --overwrite runs it anew")
            return self._result()
        self._state.update({field: self._fresh()[field] for field in ("status", "exit_code", "error")})
        try:
            self._begin_anew_if_overtaken()
            self._stage("champion", self._fetch)
            config = self.day_config()
            self._stage("prepare", lambda: self._prepare(config))
            config = _with_daily(config, fixed=True)
            self._stage("train", lambda: train(config, progress=self.progress))
            self._stage("evaluate", lambda: self._evaluate(config))
            self._stage("register", lambda: self._register(config))
            self._end(*self._promoted())
        except RecmtlError as error:
            # A registry that is away is worth another try, unlike a version that it refuses.
            code = 2 if isinstance(error, UserError) else 1
            self._end("failed", str(error), code)
        return self._result()

    def _end(self, status: Status, error: str | None = None, code: int | None = None) -> None:
        self._state.update(status=status, error=error, exit_code=_EXIT_CODES.get(status, 1) if code is None else code)
        self._save()

    def _stage(self, name: str, do: Callable[[], object]) -> None:
        """Do what is not done yet, and note it."""
        stages = self._state["stages"]
        noted = stages.setdefault(name, {"status": "open", "seconds": 0.0, "attempts": 0})
        if noted["status"] == "done":
            return
        noted.update(status="running", attempts=noted["attempts"] + 1)
        self._save()
        start = time.monotonic()
        try:
            do()
            noted["status"] = "done"
        except BaseException as error:
            noted.update(status="failed", error=str(error) or type(error).__name__)
            raise
        finally:
            noted["seconds"] = round(noted["seconds"] + time.monotonic() - start, 3)
            self._save()
        noted.pop("error", None)

    def _begin_anew_if_overtaken(self) -> None:
        """What was begun against a champion that is none any more is of no use."""
        if self._state["stages"].get("champion", {}).get("status") != "done":
            return
        if overtaken := self._overtaken():
            self.begin_anew(overtaken)

    def _overtaken(self) -> str | None:
        """That another model became the champion since the day began, in words; None where none did."""
        now = champion_of(self.model, uri=self.uri)
        version = None if now is None else now.version
        before = self._state["champion"]["before"]
        mine = self._state["version"]
        if version == (before and before["version"]) or (mine is not None and version == mine):
            return None
        return f"the champion is {'none' if version is None else f'version {version}'} by now"

    def _fetch(self) -> None:
        """Pin the champion, and what it knows."""
        champion = champion_of(self.model, uri=self.uri)
        place = self.folder / "champion"
        durable.remove(place)
        if champion is None:
            self.progress.say(f"{self.model} has no champion yet: the absolute checks alone decide")
            self._state["champion"] = {"before": None, "after": None}
            return
        with durable.scratch(self.folder, "champion") as temporary, durable.replacing(place) as building:
            found = resolve(champion.uri(self.model), self.uri, folder=temporary)
            shutil.copytree(found, building, dirs_exist_ok=True)
        trained = self._trained_as_of(place)
        if trained > self.day:
            raise UserError(
                f"{self.day}: the champion, version {champion.version} of {self.model}, was trained as of {trained}, "
                "so nothing of this day is new to it; run later days, or `recmtl rollback` first"
            )
        known = {"version": champion.version, "digest": champion.digest, "date": trained.isoformat()}
        self._state["champion"] = {"before": known, "after": known}

    def _trained_as_of(self, package: Path) -> date:
        its = _daily_of(package).get("date") or self.daily.champion_date
        if its is None:
            raise UserError(
                "daily.champion_date: the champion was not trained by the daily pipeline, so nobody knows on which "
                "rows it may be judged; say as of which day it was trained (the day after its last training rows)"
            )
        return date.fromisoformat(str(its))

    def day_config(self) -> RunConfig:
        """The config of the day's run: an ordinary one, whose data are the dataset as of the day."""
        longest = longest_window(self.config.data.source, self.config.tasks)
        changes: dict[str, Any] = {"date": self.day, "store": store_of(self.daily, self.config.name)}
        changes["held_out_seconds"] = longest.total_seconds()
        training, evaluation = self.config.training, self.config.evaluation.model_copy(update={"champion": "none"})
        since: date | None = None
        if self._state["champion"]["before"] is not None:
            package = self.folder / "champion"
            since = self._left_alone_since(_daily_of(package), longest)
            changes["moments"] = self._moments(package)
            evaluation = evaluation.model_copy(update={"champion": str(package)})
            if self.daily.warm_start:
                training = training.model_copy(update={"warm_start": str(package)})
        elif training.warm_start == "champion":
            training = training.model_copy(update={"warm_start": None})
        own = self.day  # of a model of another origin nobody knows
        if training.warm_start is None:
            own = self.day - timedelta(days=self.daily.history + 1) - longest  # before anything that is read
        elif since is not None and self.daily.warm_start:
            own = since
        changes["held_out_since"] = own
        changes["judge_from"] = own if since is None else max(own, since)
        return self.config.model_copy(
            update={
                "output": self.folder / "run",
                "data": self.config.data.model_copy(update={"prepared": self.folder / "prepared"}),
                "daily": self.daily.model_copy(update=changes),
                "training": training,
                "evaluation": evaluation,
            }
        )

    def _left_alone_since(self, its: Mapping[str, Any], longest: timedelta) -> date:
        """From which day on the champion, and all that it descends from, held out every row that this config does.

        Args:
            its: the ``daily`` section of its config.
            longest: this config's longest window.
        """
        ours = self.daily.model_dump(mode="json")
        same = all(its.get(key) == ours[key] for key in ("holdout", "seed", "timezone"))
        seconds, since = its.get("held_out_seconds"), its.get("held_out_since")
        if same and since is not None and seconds is not None and seconds >= longest.total_seconds():
            return date.fromisoformat(str(since))
        return self.day

    def _moments(self, package: Path) -> Path:
        """The champion's means and deviations of the numbers that it transforms as this config does."""
        place = self.folder / "moments"
        if not (place / "statistics.json").is_file():
            theirs = verify_package(package).schema
            ours = {} if self.config.features == "auto" else {one.name: one.transform for one in self.config.features}
            statistics = Statistics.load(package / "statistics")
            numbers = {
                name: moments
                for name, moments in statistics.numbers.items()
                if ours.get(name, theirs[name].transform) == theirs[name].transform
            }
            with durable.replacing(place) as building:
                replace(statistics, tables={}, numbers=numbers).save(building)
        return place

    def _prepare(self, config: RunConfig) -> None:
        assert config.daily is not None
        assert config.daily.store is not None
        uses = uses_of(config.explicit_features, config.tasks)
        updated = update(config.data.source, config.daily, config.daily.store, self.progress, uses=uses)
        self._state["days_rebuilt"] = [day.isoformat() for day in updated.rebuilt]
        self._judged(prepare(config, progress=self.progress).manifest)

    def _judged(self, manifest: Manifest) -> None:
        """On how many rows each task is judged."""
        tasks = manifest.splits["test"].tasks
        self._state["judged"] = {name: tasks[name].observed or NOT_JUDGED for name in manifest.tasks_}

    def _evaluate(self, config: RunConfig) -> None:
        evaluate(config, progress=self.progress)
        self._note_verdict(config)

    def _note_verdict(self, config: RunConfig) -> None:
        report = self._report(config)
        self._state["report"] = str(config.folder / "report.html")
        self._state["verdict"] = {"decision": report.verdict.decision, "reasons": list(report.verdict.reasons)}

    def _report(self, config: RunConfig) -> Report:
        path = config.folder / "report.json"
        if not path.is_file():
            raise RunError(f"{path}: the evaluation left no report")
        return read_report(path)

    def _register(self, config: RunConfig) -> None:
        registered = run(config, progress=self.progress).registered
        self._note_verdict(config)  # a gate that changed since has had it judged again
        if registered is None:
            raise RunError(f"{config.folder}: nothing was registered as {self.model}")
        self._state["version"] = registered.version

    def _promoted(self) -> tuple[Status, str | None]:
        """Ask for the promotion that the gate allows."""
        if all(rows == NOT_JUDGED for rows in self._state["judged"].values()):
            return "not judged", "no task has a label that became known on this day, on rows that no model trained on"
        try:
            self._stage("promote", lambda: promote(self.model, self._state["version"], tracking_uri=self.uri))
        except RefusedError as error:
            if overtaken := self._overtaken():
                # No verdict on this model: it was judged against one that is the champion no more.
                raise RunError(
                    f"the champion moved meanwhile ({overtaken}): version {self._state['version']} was not promoted; "
                    "run again, and the day begins anew against it"
                ) from error
            self._state["stages"]["promote"].update(status="refused")
            return "refused", str(error)
        self._state["champion"]["after"] = {
            "version": self._state["version"],
            "digest": verify_package(self.folder / "run" / "package").digest,
            "date": self.day.isoformat(),
        }
        return "promoted", None


def _with_daily(config: RunConfig, **changes: Any) -> RunConfig:
    assert config.daily is not None
    return config.model_copy(update={"daily": config.daily.model_copy(update=changes)})


def _daily_of(package: Path) -> Mapping[str, Any]:
    """The ``daily`` section of the config that a package was trained with; empty where it had none."""
    try:
        found = read_yaml(package / "config.resolved.yaml")
    except UserError:  # a package may hold any YAML
        return {}
    section = found.get("daily") if isinstance(found, dict) else None
    return section if isinstance(section, dict) else {}


def _tidy(root: Path, keep: int) -> None:
    """Remove the prepared rows and checkpoints of all but the newest days that are over."""
    over = []
    for folder in sorted(root.glob("????-??-??")):
        try:
            status = parse_json(read_bytes(folder / "day.json"), finite=False)["status"]
        except (OSError, ValueError, KeyError):
            continue
        if status in _OVER:
            over.append(folder)
    for folder in over[: max(len(over) - keep, 0)]:
        for name in ("prepared", "champion", "run/checkpoints"):
            with suppress(OSError):
                durable.remove(folder / name)
