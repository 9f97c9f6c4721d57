"""Tracks a run in MLflow by way of the run's own journal.

In: what :class:`~recmtl.tracking.base.Tracker` is told. Out: the journal in the run's folder, at once, and an MLflow
run that follows it from a background thread, which also samples the machine. A server that is away costs one warning;
what it missed is sent when it is back, at the end, or by :func:`sync`.
"""

import hashlib
import json
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recmtl import durable
from recmtl.errors import NotRegisteredError, RecmtlError, UserError
from recmtl.manifest import file_hash
from recmtl.progress import Progress
from recmtl.tracking import registry
from recmtl.tracking.base import (
    _NONE,
    NullTracker,
    RegisteredVersion,
    Status,
    Tracker,
    TrackingConfig,
    flatten,
    redact,
    store_uri,
)
from recmtl.tracking.client import connect, experiment_id, explain, patiently, quietly
from recmtl.tracking.journal import Journal, Sent, is_over, is_sent, now, wish_key
from recmtl.uris import shown_uri

__all__ = ["MlflowTracker", "Synced", "deliver", "open_tracker", "sync"]

_SEND_EVERY = 5.0
"""Seconds between sends."""
_RETRY_EVERY = 60.0
"""Seconds before a store that was away is tried again while the run goes on."""
_LIMITS = {"metrics": 1000, "params": 100, "tags": 100}
"""What MLflow takes in one request."""
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS")
"""MLflow's words for a record that it will never take; everything else is tried again."""


def open_tracker(config: TrackingConfig, folder: Path, *, name: str, progress: Progress) -> Tracker:
    """The tracker that a config asks for.

    Args:
        config: where to track.
        folder: where the journal lies (``tracking/`` in the run's folder); the folder above is the run's.
        name: the run's name in MLflow.
        progress: hears the one warning when the store cannot be reached.

    Raises:
        UserError: the URI names no MLflow store, the experiment was deleted there, or another process tracks this run.
    """
    if not config.enabled:
        return NullTracker()
    tracker = MlflowTracker(
        folder,
        uri=store_uri(config.uri),
        experiment=config.experiment,
        name=name,
        progress=progress,
        system_metrics_seconds=config.system_metrics_seconds,
    )
    tracker.start()
    return tracker


def deliver(config: TrackingConfig, folder: Path, *, name: str, progress: Progress, over: bool = True) -> None:
    """Send what a run's store does not have yet; where it has all, nothing is opened.

    What a kill left unsent is sent by the next command on the run, which also removes the temporary files that the kill
    left beside the journal. A store that is away is warned of.

    Args:
        config, folder, name, progress: as for :func:`open_tracker`.
        over: also say that the run is over, and register what was wished for. Otherwise its status stays as it is, and
            an open wish to register waits, with all that was told after it.
    """
    if not config.enabled or not (folder / "journal.jsonl").is_file():
        return
    for place in (folder, folder / "reports"):
        durable.remove_litter(place)
    if is_over(folder) if over else is_sent(folder):
        return
    tracker = MlflowTracker(
        folder, uri=store_uri(config.uri), experiment=config.experiment, name=name, progress=progress
    )
    if over:
        tracker.finish("FINISHED")
    else:
        tracker.close(registering=False)


@dataclass
class _Batch:
    """Records that go in one request, and the byte of the journal behind them."""

    end: int
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    """(name, value, milliseconds since 1970, step)."""
    params: list[tuple[str, str]] = field(default_factory=list)
    tags: list[tuple[str, str]] = field(default_factory=list)
    other: dict[str, Any] | None = None
    """A record of another kind, alone in its batch."""


class MlflowTracker:
    """A run's tracker. Made by :func:`open_tracker`; ``system_metrics_seconds`` 0 samples nothing."""

    def __init__(
        self,
        folder: Path,
        *,
        uri: str,
        experiment: str,
        name: str,
        progress: Progress,
        system_metrics_seconds: float = 0.0,
    ) -> None:
        self.folder = folder
        self.uri = shown_uri(uri)
        """The store's address, without secrets."""
        self.experiment = experiment
        self._store = uri
        self._name = name
        self._progress = progress
        self._every = system_metrics_seconds
        durable.make_folder(folder)
        self._in_use = FileLock(folder / ".lock")
        try:
            self._in_use.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{folder.parent}: another process tracks this run; wait until it is done") from None
        try:
            durable.remove_litter(folder, held=True)
            durable.remove_litter(folder / "reports", held=True)
            self._journal = Journal(folder)
            self._sent = Sent(folder)
            if self._sent.get(self.uri, self.experiment)["acknowledged"] > self._journal.size:
                # The mark of a longer journal, part of which is lost: the store is asked what it has of this one.
                self._sent.put(self.uri, self.experiment, acknowledged=0)
            self._sent.aim(uri=self.uri, experiment=experiment, name=name, secrets=self.uri != uri)
        except BaseException:
            self._in_use.release()
            raise
        self._client: Any = None
        self._verified = False
        self._server_steps: dict[str, int] = {}
        self._sending = threading.RLock()
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._warned = False
        self._told = False
        self._failure: str | None = None

    # What a run tells

    def params(self, values: Mapping[str, Any]) -> None:
        """Parameters, flattened; one that was told before keeps its first value, as MLflow has it."""
        new = {_key(key): value for key, value in flatten(values)}
        new = {key: value for key, value in new.items() if key not in self._journal.params}
        if new:
            self._journal.append({"kind": "params", "values": new})

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """One point per metric, unless it has one at this step or later."""
        last = self._journal.last_step
        new = {_key(key): float(value) for key, value in values.items()}
        new = {key: value for key, value in new.items() if step > last.get(key, step - 1)}
        if new:
            self._journal.append({"kind": "metrics", "step": int(step), "time": now(), "values": new})

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags; the last value stands."""
        new = {_key(key): redact(str(value)) for key, value in values.items()}
        new = {key: value for key, value in new.items() if self._journal.tags.get(key) != value}
        if new:
            self._journal.append({"kind": "tags", "values": new})

    def artifact(self, path: Path, name: str | None = None) -> None:
        """A file; one outside of the run's folder is copied beside the journal, so that it can be sent later."""
        name = name or path.name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"artifact {name!r}: its name must be relative")
        digest = file_hash(path)
        if self._journal.artifacts.get(name) == digest:
            return
        run = self.folder.parent.resolve()
        path = path.resolve()
        if not path.is_relative_to(run):
            kept = self.folder / "artifacts" / name
            durable.make_folder(kept.parent)
            with durable.replacing_file(kept) as unfinished:
                shutil.copyfile(path, unfinished)
            path = kept.resolve()
        record = {"kind": "artifact", "path": str(path.relative_to(run)), "name": name, "sha256": digest}
        self._journal.append(record)

    def dataset(
        self, name: str, digest: str, *, source: str, context: str = "training", details: Mapping[str, Any] = _NONE
    ) -> None:
        """A dataset. MLflow shows the first 32 digits of the digest; its profile holds all of it."""
        if self._journal.datasets.get(name) == digest:
            return
        record = {"kind": "dataset", "name": name, "digest": digest, "source": redact(source), "context": context}
        self._journal.append(record | {"details": dict(details)})

    def register(
        self, package: Path, model: str, alias: str | None, report: Path | None = None
    ) -> RegisteredVersion | None:
        """Register a package that lies in the run's folder; everything told before is sent first.

        A report is copied beside the journal, so that what :func:`sync` registers later is judged by the same one.

        Raises:
            NotRegisteredError: the store is away; what to do is in the message.
            UserError, RunError: the package is damaged, or the registry refuses its name.
        """
        path = package.resolve().relative_to(self.folder.parent.resolve())
        record = {"kind": "register", "package": str(path), "model": model, "alias": alias}
        if report is not None:
            record["report"] = self._kept(report)
        end = self._journal.append(record)
        self._journal.sync()
        self._send(surface=True)
        state = self._sent.get(self.uri, self.experiment)
        if state["acknowledged"] < end:
            self._told = True
            raise NotRegisteredError(
                f"the model is trained but not registered: {self._failure}; everything is kept in "
                f"{self.folder.parent}, and `recmtl tracking sync {self.folder.parent}` sends and registers it once "
                "the store is there"
            )
        done = state["registered"][_wish(record)]
        return RegisteredVersion(model, done["version"], done["alias"])

    def _kept(self, report: Path) -> str:
        """A copy under the name of its hash, which later evaluations leave alone; its path in the run's folder."""
        digest = file_hash(report)
        kept = self.folder / "reports" / f"{digest}.json"
        if not (kept.is_file() and file_hash(kept) == digest):
            durable.make_folder(kept.parent)
            with durable.replacing_file(kept) as unfinished:
                shutil.copyfile(report, unfinished)
        return str(kept.resolve().relative_to(self.folder.parent.resolve()))

    def flush(self) -> None:
        """Put the journal on the disk and have the thread send it."""
        self._journal.sync()
        self._wake.set()

    def finish(self, status: Status = "FINISHED") -> None:
        """Say how the run ended, send what is left, stop."""
        self._stop_thread()
        if self._journal.status != status:
            self._journal.append({"kind": "status", "status": status, "time": now()})
        self.close()

    # Where it stands

    @property
    def delivered(self) -> bool:
        """Whether the store has everything."""
        return bool(self._sent.get(self.uri, self.experiment)["acknowledged"] >= self._journal.size)

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None while the store has not been reached."""
        run_id: str | None = self._sent.get(self.uri, self.experiment)["run_id"]
        return run_id

    @property
    def registered(self) -> tuple[RegisteredVersion, ...]:
        """The versions that this run made on this store."""
        done = self._sent.get(self.uri, self.experiment)["registered"].values()
        return tuple(RegisteredVersion(one["model"], one["version"], one["alias"]) for one in done)

    def start(self) -> None:
        """Find or make the MLflow run, and follow the journal from a thread."""
        if self._journal.status != "RUNNING":
            self._journal.append({"kind": "status", "status": "RUNNING", "time": now()})
        try:
            # A wish to register that is still open waits: the package may be about to be made again.
            self._send(surface=True, registering=False)
        except BaseException:
            self.kill()
            raise
        self._thread = threading.Thread(target=self._follow, name="recmtl-tracking", daemon=True)
        self._thread.start()

    def close(self, *, registering: bool = True) -> None:
        """Send what is left and stop, without saying that the run is over: a later stage goes on with it.

        Args:
            registering: False: an open wish to register waits, with all that was told after it.
        """
        self._stop_thread()
        self._journal.sync()
        self._send(registering=registering)
        if not self.delivered and self._failure is not None and not self._told:
            self._progress.warn(
                f"the run is tracked in {self.folder} alone, because {self._failure}; "
                f"`recmtl tracking sync {self.folder.parent}` sends it later"
            )
        self.kill()

    def kill(self) -> None:
        """Stop without another word to the store, as a kill would; a no-op after :meth:`close`."""
        self._stop_thread()
        self._journal.close()
        self._in_use.release()

    def _stop_thread(self) -> None:
        if self._thread is not None:
            self._stop.set()
            self._wake.set()
            self._thread.join()
            self._thread = None

    # The thread

    def _follow(self) -> None:
        machine = _Machine.available() if self._every else None
        sample_at = time.monotonic()
        retry_at = 0.0
        while not self._stop.is_set():
            if machine is not None and time.monotonic() >= sample_at:
                sample_at = time.monotonic() + self._every
                values = machine.sample()
                last = max((self._journal.last_step.get(_key(key), -1) for key in values), default=-1)
                self.metrics(values, last + 1)
            if time.monotonic() >= retry_at:
                self._send(registering=False)
                retry_at = time.monotonic() + (_RETRY_EVERY if self._failure else 0.0)
            self._wake.wait(min(_SEND_EVERY, self._every or _SEND_EVERY))
            self._wake.clear()

    # Sending

    def _send(self, *, surface: bool = False, registering: bool = True) -> None:
        """Send what the store has not acknowledged; a store that is away is warned of once.

        Args:
            surface: raise a user's mistake (a deleted experiment, a damaged package) instead of warning of it.
            registering: go on past a wish to register; the thread leaves that to :meth:`register`, which waits for it.
        """
        with self._sending:
            try:
                refused: str | None = None
                with quietly():
                    self._verify()
                    for batch in self._pending():
                        if not registering and self._is_open_wish(batch):
                            break
                        try:
                            self._deliver(batch)
                        except NotRegisteredError as error:
                            # The wish stays open. What was told after it is sent now, and once more when it is tried
                            # again: the store has one run of it all the same.
                            refused = str(error)
                        except RecmtlError:
                            # Not the store's fault, so it would fail again: told once, and the rest goes on next time.
                            if refused is None:
                                self._acknowledge(batch.end)
                            raise
                        if refused is None:
                            self._acknowledge(batch.end)
                self._failure = None
                if refused is not None:
                    self._failed(refused)
            except RecmtlError as error:
                if surface:
                    raise
                self._failed(str(error))
            except Exception as error:
                # Whatever MLflow, its database or the network came up with: the journal has it all, the run goes on.
                self._failed(f"the tracking store {self.uri} cannot be used ({explain(error)})")

    def _is_open_wish(self, batch: _Batch) -> bool:
        """Whether it is the last wish to register something; the ones before it are void, also those equal to it."""
        wish = batch.other
        return wish is not None and wish["kind"] == "register" and self._journal.wishes[wish_key(wish)] == batch.end

    def _acknowledge(self, end: int) -> None:
        """Note how far the store follows, once the journal is on the disk that far: a power loss shortens neither."""
        self._journal.sync()
        self._sent.put(self.uri, self.experiment, acknowledged=end)

    def _failed(self, why: str) -> None:
        self._verified = False  # what was under way may have arrived
        self._failure = why
        if not self._warned:
            self._warned = True
            self._progress.warn(f"{why}; the run goes on and is kept in {self.folder}")

    def _verify(self) -> None:
        """Find the run on the store, or make it; learn which points it already has."""
        if self._verified:
            return
        if self._client is None:
            self._client = connect(self._store)
        state = self._sent.get(self.uri, self.experiment)
        run = self._find(state["run_id"])
        if run is None:
            experiment = experiment_id(self._client, self._store, self.experiment)
            tag = f"tags.`recmtl.run` = '{self._journal.run['id']}'"
            found = self._client.search_runs([experiment], tag, max_results=1)
            run = (
                self._client.get_run(found[0].info.run_id)
                if found
                else self._client.create_run(
                    experiment,
                    start_time=self._journal.run["time"],
                    run_name=self._name,
                    tags={"recmtl.run": self._journal.run["id"]},
                )
            )
            # A run that was deleted on the store, or a store made anew, starts from nothing.
            self._sent.put(self.uri, self.experiment, run_id=run.info.run_id, acknowledged=0, registered={})
        self._server_steps = {}
        for point in run.data._metric_objs:  # the last point of every metric; `data.metrics` has no steps
            self._server_steps[point.key] = point.step
        self._verified = True

    def _find(self, run_id: str | None) -> Any:
        if run_id is None:
            return None
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _pending(self) -> Iterator[_Batch]:
        """What lies behind the acknowledged mark, in requests as large as MLflow takes."""
        batch: _Batch | None = None
        for end, record in self._journal.records(self._sent.get(self.uri, self.experiment)["acknowledged"]):
            kind = record["kind"]
            size = len(record.get("values", ()))
            full = batch is not None and (
                batch.other is not None
                or kind not in _LIMITS
                or len(getattr(batch, kind)) + size > _LIMITS[kind]
                or len(batch.metrics) + len(batch.params) + len(batch.tags) + size > _LIMITS["metrics"]
            )
            if batch is not None and full:
                yield batch
                batch = None
            batch = batch or _Batch(end)
            batch.end = end
            if kind == "metrics":
                batch.metrics += [
                    (name, value, record["time"], record["step"]) for name, value in record["values"].items()
                ]
            elif kind in ("params", "tags"):
                getattr(batch, kind).extend(record["values"].items())
            else:
                batch.other = record
        if batch is not None:
            yield batch

    def _deliver(self, batch: _Batch) -> None:
        if batch.other is not None:
            if batch.other["kind"] != "register" or self._is_open_wish(batch):
                self._deliver_other(batch.other)
            return
        from mlflow.exceptions import MlflowException

        steps = self._server_steps
        metrics = [point for point in batch.metrics if point[3] > steps.get(point[0], point[3] - 1)]
        try:
            self._log(metrics, batch.params, batch.tags)
        except MlflowException as error:
            if error.error_code not in _REFUSALS:
                raise
            # One bad record must not hold up the rest: each alone, and the bad one is named.
            singles: Sequence[tuple[str, dict[str, Any]]] = (
                *((point[0], {"metrics": [point]}) for point in metrics),
                *((pair[0], {"params": [pair]}) for pair in batch.params),
                *((pair[0], {"tags": [pair]}) for pair in batch.tags),
            )
            for name, single in singles:
                try:
                    self._log(**single)
                except MlflowException as refused:
                    if refused.error_code not in _REFUSALS:
                        raise
                    self._progress.warn(f"{self.uri} does not take {name!r}: {explain(refused)}")

    def _log(
        self,
        metrics: Sequence[tuple[str, float, int, int]] = (),
        params: Sequence[tuple[str, str]] = (),
        tags: Sequence[tuple[str, str]] = (),
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        # A record may hold more than a request takes (a config of many features).
        width = _LIMITS["params"]
        for start in range(0, max(len(params), len(tags), 1), width):
            self._client.log_batch(
                self.run_id,
                metrics=[Metric(*point) for point in metrics] if start == 0 else [],
                params=[Param(name, value[:6000]) for name, value in params[start : start + width]],
                tags=[RunTag(name, value[:5000]) for name, value in tags[start : start + width]],
            )

    def _deliver_other(self, record: dict[str, Any]) -> None:
        match record["kind"]:
            case "artifact":
                self._upload(record)
            case "dataset":
                self._log_dataset(record)
            case "register":
                with patiently():
                    version = registry.register(
                        self.folder.parent / record["package"],
                        record["model"],
                        record["alias"],
                        uri=self._store,
                        run_id=self.run_id,
                        report=self.folder.parent / record["report"] if "report" in record else None,
                    )
                done = self._sent.get(self.uri, self.experiment)["registered"]
                done[_wish(record)] = {"model": version.name, "version": version.version, "alias": version.alias}
                self._sent.put(self.uri, self.experiment, registered=done)
            case "status" if record["status"] == "RUNNING":
                self._client.update_run(self.run_id, status="RUNNING")
            case "status":
                self._client.set_terminated(self.run_id, status=record["status"], end_time=record["time"])

    def _upload(self, record: dict[str, Any]) -> None:
        path, name = self.folder.parent / record["path"], Path(record["name"])
        if not path.is_file():
            self._progress.warn(f"{path} is gone, so it is not sent to {self.uri}")
            return
        with patiently(), tempfile.TemporaryDirectory() as temporary:
            if path.name != name.name:
                path = Path(shutil.copyfile(path, Path(temporary) / name.name))
            folder = None if name.parent == Path() else name.parent.as_posix()
            self._client.log_artifact(self.run_id, str(path), folder)

    def _log_dataset(self, record: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=record["name"],
            digest=record["digest"][:32],
            source_type="local",
            source=json.dumps({"uri": record["source"]}),
            profile=json.dumps({"sha256": record["digest"], **record["details"]}),
        )
        tags = [InputTag(key="mlflow.data.context", value=record["context"])]
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])


class _Machine:
    """Samples the machine with MLflow's own monitors, so that its page shows the charts under their usual names."""

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        try:
            from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

            self._monitors.append(GPUMonitor())
        except Exception:  # noqa: S110 - no NVIDIA GPU, or no driver, or no nvidia-ml-py: nothing to sample
            pass

    @classmethod
    def available(cls) -> "_Machine | None":
        """The monitors, or None where they cannot work."""
        try:
            machine = cls()
            machine.sample()
        except Exception:
            return None
        return machine

    def sample(self) -> dict[str, float]:
        """What each monitor reads now, under ``system/…``."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values


@dataclass(frozen=True)
class Synced:
    """What :func:`sync` did."""

    uri: str
    """The store, without secrets."""
    run_id: str
    registered: tuple[RegisteredVersion, ...]
    """Every version that the run has on this store, those of earlier times included."""
    finished: bool = False
    """Whether the run had come to its end, so that nothing is left to do but what was sent."""


def sync(run: Path, *, uri: str | None = None, progress: Progress) -> Synced:
    """Send a run that was kept locally, and register its package if that was asked for.

    Args:
        run: the run's folder.
        uri: the store; by default the one the run was to be tracked in.
        progress: hears what is not taken.

    Raises:
        UserError: nothing was tracked here, another process tracks it, or the store's password is needed again.
        NotRegisteredError: the store still cannot be reached.
    """
    folder = run / "tracking"
    if not (folder / "journal.jsonl").is_file():
        raise UserError(f"{run}: no run was tracked in this folder (tracking/journal.jsonl is missing)")
    latest = Sent(folder).latest
    if latest is None:
        raise UserError(f"{run}: this run was never to be tracked; give the store with --tracking-uri")
    if uri is None and latest["secrets"]:
        raise UserError(
            f"{run}: the address of {latest['uri']} held a password, which recmtl does not keep; "
            "give it with --tracking-uri"
        )
    tracker = MlflowTracker(
        folder,
        uri=store_uri(uri or latest["uri"]),
        experiment=latest["experiment"],
        name=latest["name"],
        progress=progress,
    )
    try:
        tracker._warned = True  # the error below says it
        tracker._send(surface=True)
        if not tracker.delivered or tracker.run_id is None:
            raise NotRegisteredError(f"{run} is still not sent: {tracker._failure}")
        return Synced(tracker.uri, tracker.run_id, tracker.registered, tracker._journal.status == "FINISHED")
    finally:
        tracker.kill()


def _key(name: str) -> str:
    """A name that MLflow takes: other characters become underscores, and at most 250."""
    return re.sub(r"[^\w.\- :/]", "_", name)[:250]


def _wish(record: Mapping[str, Any]) -> str:
    """One registration, to recognise it again."""
    wish = [record["package"], record["model"], record["alias"], *filter(None, [record.get("report")])]
    return hashlib.sha256(json.dumps(wish).encode()).hexdigest()[:16]
