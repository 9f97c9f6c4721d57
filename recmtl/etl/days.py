"""Event logs cut by day, and from the days the prepared dataset as of one of them.

In: the logs of an ``event_log`` (or ``synthetic``) source, of which new files and new rows arrive, some late. Out, in
two steps:

**The store of days** (:func:`update`). Every file is read once (again when its bytes change) and cut by the day of its
rows. A day is its impressions, trusted and in source order, and beside them what every event log says of them. What can
change a day is the day itself and the rows of the days within its attribution windows; only when one of those slices
has other content is the day attributed anew, and only when that gives other rows or labels does the day change. So a
late event changes the day of its impression, whichever file it came in. The store knows the hash of every file that it
holds of rows: what is read has it, or is made again from the logs::

    STORE/store.json                       what was read from which bytes; what every day is made of
    STORE/files/LOG/SHA256/DAY.parquet     a file's rows of one day; rejected*.parquet: those that cannot be used
    STORE/days/DAY/rows.parquet            a day's impressions
    STORE/days/DAY/labels/EVENT.parquet    which of them had the event: row, time, value

**The dataset as of a day D** (:func:`prepare_day`), an ordinary prepared dataset:

========== =============================================================================================================
train      rows of the ``history`` days before D, less the validation days; labels as known when D began
validation rows of the last ``validation`` days before D; labels as known when D began
test       rows of D; and of the users held out on earlier days, those of whose rows a label became known on D
========== =============================================================================================================

A test label counts for a task when it became known on D: then no model as of D or before was trained on it. Clicks are
known within minutes, so they are judged on the rows of D. A purchase that takes days is known of earlier rows, on whose
clicks models would have been trained by then; so a share of each day's users is held out: none of their rows of that
day is in train or validation before all their windows have closed. On their rows slow labels are judged, and a task
that no such row has a label for is not judged. Rows that a model as of D was trained on are never in test.

Nothing that happened after D is read into the dataset as of D, so a day that is built late is the day that was.
"""

import hashlib
import io
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
from pydantic import Field, model_validator

from recmtl import durable
from recmtl.bounded import parse_json, read_bytes
from recmtl.errors import RunError, UserError, unwritable
from recmtl.etl.encode import canonical, stable_hash
from recmtl.etl.ingest import ROW, Ingested, distinct_names, join_table, one_type
from recmtl.etl.label import IMPRESSION, Follows, label
from recmtl.etl.mask import LabelTimes, known_since
from recmtl.etl.partition import BUCKET_BYTES, bucket_count
from recmtl.etl.prepare import VERSION, DataConfig, Origin, Prepared, prepare_from, uses_of
from recmtl.etl.sources import LabelledLog
from recmtl.etl.sources.base import TimeZone
from recmtl.etl.sources.event_log import (
    EventLogConfig,
    Reader,
    chain,
    condition_unread,
    files_of,
    known_at,
    maturity_of,
    of_negatives,
    one_item_a_request,
    unread_of,
    with_label,
)
from recmtl.etl.sources.synthetic import SyntheticConfig, default_features, event_log_config, write_logs
from recmtl.etl.validate import TimeUnit, Uses
from recmtl.expansion import ExpandedPath
from recmtl.failures import writing
from recmtl.locks import held
from recmtl.manifest import Columns, Manifest, file_hash
from recmtl.progress import Progress
from recmtl.reading import Unread, add_unread
from recmtl.schema import Feature
from recmtl.settings import Settings
from recmtl.statistics import Statistics
from recmtl.tasks import Task, Tasks

__all__ = ["DailyConfig", "Updated", "bounds", "longest_window", "prepare_day", "store_of", "update"]

SPLIT_COLUMN = "split:day"
"""Which split a row is in."""

Date = date
"""A field called ``date`` hides the type."""

_FORMAT = 4
_DAY = timedelta(days=1)
_UTC = pl.Datetime("us", "UTC")
_ROW_GROUP = 1 << 17
_BESIDE = {"store", "moments", "champion_date", "keep", "warm_start", "fixed", "held_out_seconds", "held_out_since"}
"""Fields that do not shape a dataset, or whose content does."""


class DailyConfig(Settings):
    """The daily pipeline: what a day trains on, and what it is judged on."""

    history: int = Field(default=30, ge=2)
    """Days before it whose rows train and validate."""
    validation: int = Field(default=1, ge=1)
    """The last of these, which validate."""
    holdout: float = Field(default=0.1, ge=0, lt=1)
    """Share of users, drawn anew each day, on whose rows of that day nothing is trained until all their windows have
    closed: what slow labels (a purchase within a week) are judged on. At 0 such tasks are not judged."""
    seed: int = Field(default=0, ge=0)
    """Draws the held-out users."""
    timezone: TimeZone = "UTC"
    """Where a day begins and ends."""
    store: ExpandedPath | None = None
    """The folder of the days; by default data/days/NAME."""
    warm_start: bool = True
    """Whether training begins at the champion's values."""
    keep: int = Field(default=3, ge=0)
    """Of how many finished days the prepared rows and checkpoints stay; packages, reports and summaries always do."""
    champion_date: Date | None = None
    """As of which day the champion was trained, where its package does not say: the pipeline's own say it, of another
    one give the day after its last training rows."""
    date: Date | None = None
    """The day of evaluation; the pipeline sets it, and what follows."""
    fixed: bool = False
    """Whether the prepared rows that are there are the day's, whatever came to the logs since."""
    held_out_seconds: float | None = None
    """How long a held-out row is left alone: the longest window of any task's label."""
    held_out_since: Date | None = None
    """The first day of whose held-out rows, as this config draws them, neither this model nor any that it began at was
    trained on. An earlier one than the day where the champion's config held the same rows out."""
    judge_from: Date | None = None
    """The same with the champion's in sight: held-out rows of days before it are in no split."""
    moments: ExpandedPath | None = None
    """The statistics by whose means and deviations numbers are standardised, as long as they fit: the champion's, so
    that a warm start computes what the champion does."""

    @model_validator(mode="after")
    def _some_days_train(self) -> "DailyConfig":
        if self.validation >= self.history:
            raise ValueError("daily: `validation` days are among the `history` days and must leave some to train on")
        return self


def bounds(day: date, timezone: str) -> tuple[datetime, datetime]:
    """Where a day begins and ends, in UTC; the end is the next day's beginning."""
    zone = ZoneInfo(timezone)
    begin, end = (datetime.combine(one, time(), zone).astimezone(UTC) for one in (day, day + _DAY))
    return begin, end


@dataclass(frozen=True)
class Updated:
    """What :func:`update` found and did."""

    days: tuple[date, ...]
    """Every day with impressions, rising."""
    rebuilt: tuple[date, ...]
    """Those that are new or whose rows or labels changed."""
    examined: tuple[date, ...]
    """Those that were attributed anew, because something within their windows changed."""
    files_read: int


def update(source: Settings, daily: DailyConfig, store: Path, progress: Progress, *, uses: Uses) -> Updated:
    """Bring the store of days up to the logs; what has not changed is neither read nor rebuilt.

    Args:
        source: the ``event_log`` or ``synthetic`` source.
        daily: where a day begins.
        store: the folder.
        progress: where to show it.
        uses: what the columns are used for.

    Raises:
        UserError: another source, or a log that cannot be read.
        RunError: a file changed while it was read.
    """
    with _held(store, progress):
        days = _Days(_event_log(source, progress), daily, store, progress, uses)
        return days.update()


def prepare_day(
    data: DataConfig,
    features: Sequence[Feature] | None,
    tasks: Sequence[Task],
    daily: DailyConfig,
    *,
    name: str,
    folder: Path | None = None,
    progress: Progress,
) -> Prepared:
    """The dataset as of ``daily.date``, built unless it is there; the store is brought up to the logs first.

    Args:
        data: the source and what to keep; its split is not read.
        features, tasks, name, folder, progress: as :func:`recmtl.etl.prepare.prepare` has them.
        daily: the day and what surrounds it.

    Raises:
        UserError: the config or the data are wrong; there are no rows to train or to validate on.
        RunError: the logs hold nothing of that day yet.
    """
    assert daily.date is not None
    if daily.fixed and (found := _as_it_is(data, features, tasks, name=name, folder=folder, progress=progress)):
        return found
    store = store_of(daily, name)
    uses = uses_of(features, tasks)
    numbers = {} if daily.moments is None else Statistics.load(daily.moments).numbers
    with _held(store, progress):

        def origin() -> Origin:
            days = _Days(_event_log(data.source, progress), daily, store, progress, uses)
            days.update()
            dataset = _Dataset(days, tasks, daily)
            described = {
                "version": VERSION,
                "data": data.model_dump(mode="json", exclude={"prepared", "split"}),
                "features": None if features is None else [feature.model_dump(mode="json") for feature in features],
                "tasks": [task.model_dump(mode="json") for task in tasks],
                "daily": daily.model_dump(mode="json", exclude=_BESIDE),
                "numbers": {feature: repr(moments) for feature, moments in numbers.items()},
                "inputs": dataset.hashes,
            }
            recommended = default_features(data.source) if isinstance(data.source, SyntheticConfig) else ()
            return Origin(
                fingerprint=hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(),
                hashes=dataset.hashes,
                read=lambda work: dataset.read(work, recommended),
                unchanged=days.unchanged,
                numbers=numbers,
            )

        return prepare_from(origin, data, features, tasks, name=name, folder=folder, progress=progress)


def store_of(daily: DailyConfig, name: str) -> Path:
    """The folder of the days."""
    return daily.store or Path("data") / "days" / name


def _as_it_is(
    data: DataConfig,
    features: Sequence[Feature] | None,
    tasks: Sequence[Task],
    *,
    name: str,
    folder: Path | None,
    progress: Progress,
) -> Prepared | None:
    """The dataset that is there, its files checked against its manifest; None where there is none."""
    place = folder or data.prepared or Path("data") / "prepared" / name
    durable.recover(place)
    if not (place / "manifest.json").is_file():
        return None
    try:
        fingerprint = Manifest.read_from(place).fingerprint
    except RunError as error:
        raise RunError(f"{error}; --overwrite begins the day anew") from error

    def damaged(_: Path) -> LabelledLog:
        raise RunError(f"{place}: the day's prepared rows are damaged; --overwrite begins the day anew")

    origin = Origin(fingerprint, {}, read=damaged, unchanged=lambda: True)
    return prepare_from(lambda: origin, data, features, tasks, name=name, folder=folder, progress=progress)


def longest_window(source: Settings, tasks: Iterable[Task]) -> timedelta:
    """From a row's impression until no label of any task can change.

    Raises:
        UserError: the source is no event log.
    """
    windows = _windows(_described(source))
    return max((windows.get(task.label, timedelta(0)) for task in tasks), default=timedelta(0))


def _windows(config: EventLogConfig) -> dict[str, timedelta]:
    """Event → the longest time from the impression."""
    windows = {IMPRESSION: timedelta(0)}
    for name, (after, window) in chain(config).items():
        windows[name] = windows[after] + window
    return windows


def _event_log(source: Settings, progress: Progress) -> EventLogConfig:
    if isinstance(source, SyntheticConfig):
        write_logs(source, progress)
    return _described(source)


def _described(source: Settings) -> EventLogConfig:
    if isinstance(source, EventLogConfig):
        return source
    if isinstance(source, SyntheticConfig):
        return event_log_config(source)
    kind = getattr(source, "kind", type(source).__name__)
    raise UserError(f"data.source.kind: {kind}, but the daily pipeline reads event logs; describe yours as event_log")


@contextmanager
def _held(store: Path, progress: Progress) -> Iterator[None]:
    try:
        durable.make_folder(store)
        (store / ".lock").touch()
    except OSError as error:
        raise unwritable(f"daily.store: cannot write in {store}", error) from error
    with held(store / ".lock", lambda: progress.say(f"{store}: another process is at the days; waiting")):
        yield


# The store.


class _DamagedError(Exception):
    """What was read of a file of a log is not as it was written."""

    def __init__(self, log: str, sha256: str) -> None:
        super().__init__(log, sha256)
        self.log, self.sha256 = log, sha256


class _Days:
    """The store, held."""

    def __init__(self, config: EventLogConfig, daily: DailyConfig, store: Path, progress: Progress, uses: Uses) -> None:
        self.config, self.store, self.progress = config, store, progress
        self.timezone = daily.timezone
        self.files = files_of(config, daily.date)
        self.logs = {name: paths for name, paths in self.files.items() if name not in ("users", "items")}
        self.uses = uses
        first = {name: dict([next(iter(paths.items()))]) for name, paths in self.files.items()}
        self._first = first
        self.reader = Reader(config, first, store, progress)
        self.joins = {name: self.reader.join_columns(name) for name in config.events}
        self.ids = {column for by in self.joins.values() for column in by if column in ("impression_id", "request_id")}
        self.follows = {
            name: Follows(after, window, self.joins[name], self.reader.value(name))
            for name, (after, window) in chain(config).items()
        }
        self.windows = _windows(config)
        self._seen: set[Path] = set()
        self._state = self._read_state()

    # What was read from which bytes.

    def _recipe(self) -> str:
        """What shapes a day beside the bytes of the logs."""
        config = self.config.model_dump(mode="json", exclude={"users", "items", "observed_until"})
        for log in (config["impressions"], *config["events"].values()):
            del log["path"]
        described = [_FORMAT, VERSION, pl.__version__, config, self.timezone, self._described_uses()]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def _described_uses(self) -> list[list[str] | None]:
        uses = self.uses
        return [sorted(uses.labels), None if uses.ids is None else sorted(uses.ids), sorted(uses.numbers)]

    def _read_state(self) -> dict[str, Any]:
        fresh: dict[str, Any] = {"recipe": self._recipe(), "files": {}, "days": {}}
        path = self.store / "store.json"
        try:
            state = parse_json(read_bytes(path), finite=False)
            if state.pop("digest", None) != _digest_of(state):
                raise ValueError("it does not have the hash that it states")
        except FileNotFoundError:
            there = {child.name for child in self.store.iterdir() if not child.name.startswith(".")}
            # Nothing but what a kill left that came before the first day was noted.
            other = sorted(there - {"files", "days"}) if self._only_unfinished() else sorted(there)
            if other:
                raise UserError(
                    f"daily.store: {self.store} holds {other[0]!r} and no days; name a folder of its own"
                ) from None
            return fresh
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            self.progress.warn(f"{path}: damaged ({error}); reading the days anew")
            self._remove_all()
            return fresh
        if state.get("recipe") != fresh["recipe"]:
            self.progress.say(f"{self.store}: the logs are described otherwise than before; reading the days anew")
            self._remove_all()
            return fresh
        assert isinstance(state, dict)
        return state

    def _only_unfinished(self) -> bool:
        """Whether ``files/`` and ``days/`` hold what this module writes before it notes anything, and nothing else."""
        logs, days = self.store / "files", self.store / "days"
        if any(folder.exists() and not folder.is_dir() for folder in (logs, days)):
            return False
        known = all(log.is_dir() and log.name in self.logs for log in logs.iterdir()) if logs.exists() else True
        return known and not (days.exists() and any(not day.name.startswith(".") for day in days.iterdir()))

    def _remove_all(self) -> None:
        for name in ("files", "days"):
            durable.remove(self.store / name)

    def _save(self) -> None:
        whole = {"digest": _digest_of(self._state), **self._state}
        durable.write_file(self.store / "store.json", json.dumps(whole, indent=1) + "\n")

    def unchanged(self) -> bool:
        """Whether the logs are as they were when they were read."""
        return all(
            path.is_file() and _stamp(path) == self._state["files"][log][str(path)]["stamp"]
            for log, paths in self.logs.items()
            for path in paths.values()
        )

    def update(self) -> Updated:
        """See :func:`update`."""
        durable.remove_litter(self.store, held=True)
        read = 0
        while True:
            read += sum(self._take_in(log, paths) for log, paths in self.logs.items())
            try:
                return self._bring_up(read)
            except _DamagedError as damage:
                self.progress.warn(f"{self.store}: what was read of {damage.log} is damaged; reading it again")
                known = self._state["files"][damage.log]
                self._state["files"][damage.log] = {
                    path: entry for path, entry in known.items() if entry["sha256"] != damage.sha256
                }

    def _bring_up(self, read: int) -> Updated:
        """Attribute what changed, from files that are taken in."""
        days = self.days()
        wanted = {day: self._depends(day) for day in days}
        known = self._state["days"]
        dirty = [day for day in days if known.get(day.isoformat(), {}).get("depends") != wanted[day]]
        rebuilt: list[date] = []
        for cluster in self._clusters(dirty):
            rebuilt += self._attribute(cluster, wanted)
        for gone in [day for day in known if date.fromisoformat(day) not in wanted]:
            del known[gone]
            durable.remove(self.store / "days" / gone)
        self._save()
        self._forget()
        if rebuilt:
            self.progress.say(f"{self.store}: {len(rebuilt)} of {len(days)} days new or changed: {_told(rebuilt)}")
        return Updated(days, tuple(rebuilt), tuple(dirty), read)

    def _take_in(self, log: str, paths: Mapping[str, Path]) -> int:
        """Read the files of a log that are new or changed; returns how many that were."""
        known: dict[str, Any] = self._state["files"].get(log, {})
        by_hash = {entry["sha256"]: entry for entry in known.values()}
        found: dict[str, Any] = {}
        read = 0
        for path in paths.values():
            stamp = _stamp(path)
            entry = known.get(str(path))
            if entry is None or entry["stamp"] != stamp:
                sha256 = file_hash(path)
                entry = by_hash.get(sha256)
                if entry is None:
                    entry = self._cut(log, path, sha256)
                    by_hash[sha256] = entry
                    read += 1
                if _stamp(path) != stamp:
                    raise RunError(f"{path}: this file changed while it was read; run again")
                entry = {**entry, "stamp": stamp}
            found[str(path)] = entry
        self._state["files"][log] = found
        if read:
            self._save()
        return read

    def _cut(self, log: str, path: Path, sha256: str) -> dict[str, Any]:
        """Read one file and write its rows by day."""
        folder = self.store / "files" / log / sha256
        fresh = folder.with_name(f".{sha256}.reading")
        for stale in (fresh, folder):
            durable.remove(stale)
        durable.make_folder(fresh)
        work = fresh / "work"
        reader = Reader(self.config, {**self._first, log: {str(path): path}}, work, self.progress)
        if log == "impressions":
            ingested = reader.impressions(self.ids, self.uses)
        else:
            ingested = reader.event(log, self.joins[log])
        day = pl.col("time").dt.convert_time_zone(self.timezone).dt.date()
        counts = ingested.frame.group_by(day.alias("day")).len().sort("day").collect(engine="streaming")
        days = {}
        for one, rows in counts.iter_rows():
            begin, end = bounds(one, self.timezone)
            target = fresh / f"{one}.parquet"
            # By instants, so that of a log in order only the day's row groups are read.
            inside = (pl.col("time") >= pl.lit(begin, _UTC)) & (pl.col("time") < pl.lit(end, _UTC))
            with writing(target):
                ingested.frame.filter(inside).drop(ROW).sink_parquet(target, row_group_size=_ROW_GROUP)
            days[one.isoformat()] = {"rows": rows, "hash": file_hash(target)}
        for number, rejects in enumerate(ingested.rejected_files):
            shutil.copyfile(rejects, fresh / f"rejected-{number}.parquet")
        durable.remove(work)
        durable.commit_folder(fresh, folder)
        return {
            "sha256": sha256,
            "read": ingested.read,
            "duplicates": ingested.duplicates,
            "rejected": dict(ingested.rejected),
            "warnings": list(ingested.warnings),
            "unread": _dumped(ingested.unread),
            "units": dict(ingested.units),
            "kind": ingested.kind,
            "filtered": ingested.filtered,
            "condition_unread": _dumped(ingested.condition_unread),
            "negatives": _dumped(ingested.negatives),
            "days": days,
        }

    def _forget(self) -> None:
        """Remove what was read from bytes that are no more."""
        for log in (self.store / "files").glob("*"):
            current = {entry["sha256"] for entry in self._state["files"].get(log.name, {}).values()}
            for folder in log.iterdir():
                if folder.name not in current:
                    durable.remove(folder)

    # A day of a log.

    def entries(self, log: str) -> list[dict[str, Any]]:
        """What is known of each of a log's files, once for each content."""
        return list({entry["sha256"]: entry for entry in self._state["files"][log].values()}.values())

    def days(self) -> tuple[date, ...]:
        """Every day that has impressions."""
        entries = self.entries("impressions")
        return tuple(sorted({date.fromisoformat(day) for entry in entries for day in entry["days"]}))

    def slice_hash(self, log: str, day: date) -> str:
        """Of a log's rows of a day: of those files alone that have some."""
        key = day.isoformat()
        return "+".join(entry["days"][key]["hash"] for entry in self.entries(log) if key in entry["days"])

    def slice(self, log: str, day: date) -> pl.LazyFrame | None:
        """A log's rows of a day, exact duplicates from other files dropped; None where there are none."""
        parts = [
            pl.scan_parquet(self._verified(log, entry, day), glob=False)
            for entry in self.entries(log)
            if day.isoformat() in entry["days"]
        ]
        if len(parts) < 2:
            return parts[0] if parts else None
        return together(parts, f"data.source: {log} of {day}").unique(keep="first", maintain_order=True)

    def _verified(self, log: str, entry: Mapping[str, Any], day: date) -> Path:
        """A file's rows of a day, with the bytes that were written.

        Raises:
            _DamagedError: they are others, or gone.
        """
        sha256: str = entry["sha256"]
        path = self.store / "files" / log / sha256 / f"{day}.parquet"
        if path not in self._seen:
            if _hash_of(path) != entry["days"][day.isoformat()]["hash"]:
                raise _DamagedError(log, sha256)
            self._seen.add(path)
        return path

    # A day.

    def mend(self, days: Iterable[date]) -> None:
        """Make again those of the days whose rows or labels are not as they were written."""
        damaged = [day for day in days if not self._is_whole(day)]
        if not damaged:
            return
        self.progress.warn(f"{self.store}: damaged, and made again: {_told(damaged)}")
        for day in damaged:
            del self._state["days"][day.isoformat()]
        self.update()

    def _is_whole(self, day: date) -> bool:
        rows, labels = self.known(day)["content"]
        if _hash_of(self.folder(day) / "rows.parquet") != rows:
            return False
        return all(_hash_of(self.labels(day, name)) == digest for name, digest in labels.items())

    def reach(self) -> tuple[int, int]:
        """How many days before and after a day can change its labels.

        After: while a window is open. Before: an earlier impression's event may come later than this day's and be what
        a further event follows.
        """
        followed = {event.after for event in self.follows.values()}
        hour = timedelta(hours=2)  # a day is not always 24 hours long
        before = max((math.ceil((self.windows[name] + hour) / _DAY) for name in followed - {IMPRESSION}), default=0)
        after = math.ceil((max(self.windows.values()) + hour) / _DAY)
        return before, after

    def _depends(self, day: date) -> str:
        before, after = self.reach()
        around = [day + _DAY * offset for offset in range(-before, after + 1)]
        # Other days' impressions compete for events; with ids of their own they cannot.
        hashes = [[log, [self.slice_hash(log, one) for one in around]] for log in self.logs]
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()

    def _clusters(self, dirty: Sequence[date]) -> Iterator[list[date]]:
        """Days that are attributed together, because their surroundings overlap."""
        before, after = self.reach()
        cluster: list[date] = []
        for day in dirty:
            if cluster and day - cluster[-1] > _DAY * (before + after + 1):
                yield cluster
                cluster = []
            cluster.append(day)
        if cluster:
            yield cluster

    def folder(self, day: date) -> Path:
        """Where a day lies."""
        return self.store / "days" / day.isoformat()

    def labels(self, day: date, event: str) -> Path:
        """The file of which of a day's rows had an event; apart from the rows, as an event may have any name."""
        return self.folder(day) / "labels" / f"{event}.parquet"

    def known(self, day: date) -> dict[str, Any]:
        """What is known of a day."""
        found = self._state["days"][day.isoformat()]
        assert isinstance(found, dict)
        return found

    def _attribute(self, dirty: Sequence[date], wanted: Mapping[date, str]) -> list[date]:
        """Label some days anew; returns those that changed."""
        before, after = self.reach()
        around = [dirty[0] + _DAY * n for n in range(-before, (dirty[-1] - dirty[0]).days + after + 1)]
        rows = {day: self._materialise(day) for day in around if self.slice("impressions", day) is not None}
        where = "data.source: impressions"
        impressions = together([rows[day] for day in rows], where).with_row_index(ROW).with_columns(_whole(ROW))
        events = {}
        for name in self.follows:
            parts = [part for day in around if (part := self.slice(name, day)) is not None]
            frame = together(parts, f"data.source.events.{name}") if parts else self._empty(name)
            events[name] = frame.with_row_index(ROW).with_columns(_whole(ROW))
        frames = {"impressions": impressions, **events}
        for key in ("user_id", "item_id", "request_id", "impression_id"):
            frames = one_type(frames, key)
        for name, by in self.joins.items():
            if by == ("request_id",):
                one_item_a_request(frames["impressions"], name)
        columns = frames["impressions"].collect_schema().names()
        keys = [column for column in ("user_id", "item_id", *sorted(self.ids)) if column in columns]
        self.progress.say(f"attributing {', '.join(events)} to {_told(list(dirty))}")
        work = self.store / ".work"
        durable.remove(work)
        work.mkdir()
        sizes = (self.folder(day) / "rows.parquet" for day in rows)
        found = label(
            frames["impressions"],
            {name: frames[name] for name in events},
            self.follows,
            keys,
            work,
            bucket_count(sizes, BUCKET_BYTES),
        )
        lengths = {day: _height(self.folder(day) / "rows.parquet") for day in rows}
        changed, start = [], 0
        for day, length in lengths.items():
            if day in wanted and day in dirty:
                inside = pl.col(ROW).is_between(start, start + length, closed="left")
                labelled = {
                    name: one.frame.filter(inside).with_columns(pl.col(ROW) - start) for name, one in found.items()
                }
                if self._keep(day, labelled, wanted[day]):
                    changed.append(day)
            start += length
        durable.remove(work)
        self._save()
        return changed

    def _materialise(self, day: date) -> pl.LazyFrame:
        """A day's impressions as one file."""
        path = self.folder(day) / "rows.parquet"
        stated = self._state["days"].setdefault(day.isoformat(), {})
        made_of = self.slice_hash("impressions", day)
        if stated.get("slices") != made_of or _hash_of(path) != stated["rows"]:
            durable.make_folder(path.parent)
            rows = self.slice("impressions", day)
            assert rows is not None
            with durable.replacing_file(path) as unfinished, writing(unfinished):
                rows.sink_parquet(unfinished, row_group_size=_ROW_GROUP)
            stated.update(slices=made_of, rows=file_hash(path))
        return pl.scan_parquet(path, glob=False)

    def _empty(self, name: str) -> pl.LazyFrame:
        """An event log of no rows, with the columns that attribution reads."""
        value = self.follows[name].value
        types: dict[str, Any] = {**dict.fromkeys(self.joins[name], pl.String), "time": _UTC}
        return pl.LazyFrame(schema={**types, **({value: pl.Float64} if value is not None else {})})

    def _keep(self, day: date, labelled: Mapping[str, pl.LazyFrame], depends: str) -> bool:
        """Write a day's labels; returns whether the day is another than before."""
        stated = self._state["days"][day.isoformat()]
        labels = {}
        for name, frame in labelled.items():
            path = self.labels(day, name)
            durable.make_folder(path.parent)
            with durable.replacing_file(path) as unfinished:
                rows = frame.sort(ROW).collect(engine="streaming")
                with writing(unfinished):
                    rows.write_parquet(unfinished)
                labels[name] = file_hash(unfinished)
        for place in (self.folder(day), self.folder(day) / "labels"):
            durable.remove_litter(place, held=True)
        content = [stated["rows"], labels]
        changed = stated.get("content") != content
        stated.update(content=content, depends=depends)
        return bool(changed)


def together(frames: Sequence[pl.LazyFrame], where: str) -> pl.LazyFrame:
    """Frames of the same columns end to end; where a column's types differ, numbers as the wider one, others as text.

    Raises:
        UserError: the frames have other columns, or a column that has no common type.
    """
    schemas = [frame.collect_schema() for frame in frames]
    names = schemas[0].names()
    for schema in schemas[1:]:
        if set(schema.names()) != set(names):
            different = sorted(set(schema.names()) ^ set(names))
            raise UserError(f"{where}: the column(s) {', '.join(different)} are in some files and not in others")
    casts: dict[str, bool] = {}
    for name in names:
        types = {schema[name] for schema in schemas}
        casts[name] = len(types) > 1 and not all(dtype.is_numeric() or dtype == pl.Null for dtype in types)
        if casts[name] and any(dtype.is_nested() for dtype in types):
            told = " and ".join(sorted(map(str, types)))
            raise UserError(f"{where}: column {name!r} is {told} in different files; write it with one type")
    ordered = [
        frame.select(
            canonical(pl.col(name), schema[name]).alias(name) if casts[name] else pl.col(name) for name in names
        )
        for frame, schema in zip(frames, schemas, strict=True)
    ]
    return pl.concat(ordered, how="vertical_relaxed", rechunk=False)


def _dumped(unread: Mapping[str, Unread]) -> dict[str, Any]:
    return {name: values.model_dump(mode="json") for name, values in unread.items()}


def _digest_of(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _hash_of(path: Path) -> str | None:
    """A file's hash; None where there is none, or it cannot be read."""
    try:
        return file_hash(path)
    except OSError:
        return None


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _whole(name: str) -> pl.Expr:
    return pl.col(name).cast(pl.Int64)


def _height(path: Path) -> int:
    return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())


def _told(days: Sequence[date]) -> str:
    if len(days) < 4:
        return ", ".join(map(str, days))
    return f"{days[0]} … {days[-1]}"


# The dataset as of a day.


class _Dataset:
    """The rows of a day's dataset, from the store."""

    def __init__(self, days: _Days, tasks: Sequence[Task], daily: DailyConfig) -> None:
        assert daily.date is not None
        self._days, self._daily, self._day = days, daily, daily.date
        self._tasks = Tasks(tasks)
        self._begin, self._end = bounds(daily.date, daily.timezone)
        self._known_at = {name: known_at(name) for name, event in days.follows.items() if event.value is not None}
        self._maturity = maturity_of(days.follows)
        self._longest = longest_window(days.config, tasks)
        self._renames: dict[str, dict[str, str]] = {}
        """Table → new names of its columns, once the rows were joined."""
        back = max(daily.history, math.ceil(self._longest / _DAY) + 1)
        there = days.days()
        self._used = [day for day in there if self._day - _DAY * back <= day <= self._day]
        self._check(there)
        days.mend(self._used)
        tables = {name: paths for name, paths in days.files.items() if name in ("users", "items")}
        self._tables = {name: tables[name] for name in tables}
        self.hashes = {f"day {day}": self._hash(day) for day in self._used}
        self.hashes |= {text: file_hash(path) for paths in tables.values() for text, path in paths.items()}

    def _check(self, there: Sequence[date]) -> None:
        daily, day = self._daily, self._day
        if day not in there:
            known = f"they hold {there[0]} to {there[-1]}" if there else "they hold no impression"
            raise RunError(f"the logs hold no impression of {day} yet ({known}); run again when they do")
        first = day - _DAY * daily.history
        if not any(first <= one < day - _DAY * daily.validation for one in there):
            raise UserError(
                f"daily: the logs begin on {there[0]}, which leaves no day to train on before the {daily.validation} "
                f"day(s) that validate as of {day}; begin with a later date"
            )
        if not any(day - _DAY * daily.validation <= one < day for one in there):
            raise UserError(
                f"daily.validation: the logs hold nothing of the {daily.validation} day(s) before {day}; raise it"
            )

    def _labels(self, day: date, event: str) -> pl.LazyFrame:
        """What happened until the end of the day of evaluation."""
        frame = pl.scan_parquet(self._days.labels(day, event), glob=False)
        return frame.filter(pl.col("time") < pl.lit(self._end, _UTC))

    def _hash(self, day: date) -> str:
        """Of a day's rows, and of their labels as far as they were known."""
        digest = hashlib.sha256(self._days.known(day)["rows"].encode())
        for event in self._days.follows:
            known = self._labels(day, event).collect()
            bytes_of = io.BytesIO()
            known.rechunk().write_ipc(bytes_of, compression="uncompressed")
            digest.update(event.encode() + bytes_of.getvalue())
        return digest.hexdigest()

    def read(self, work: Path, recommended: tuple[Feature, ...]) -> LabelledLog:
        """Stage the rows of all splits."""
        days = self._days
        tables = self._read_tables(work)
        parts, offset = [], 0
        for day in self._used:
            path = work / f"day-{day}.parquet"
            rows = self._split(day, self._labelled(day))
            rows = self._joined(rows, tables).with_row_index(ROW, offset).with_columns(_whole(ROW))
            with writing(path):
                rows.sink_parquet(path, row_group_size=_ROW_GROUP)
            offset += _height(path)
            parts.append(pl.scan_parquet(path, glob=False))
        frame = together(parts, "data.source")
        own = days.reader.own_names(frame.collect_schema().names())
        frame = frame.rename(own)
        columns = frame.collect_schema().names()
        request = own.get("request_id", "request_id")
        impressions = self._impressions(columns)
        return LabelledLog(
            frame=frame,
            columns=Columns(
                user=own.get("user_id", "user_id"),
                item=own.get("item_id", "item_id"),
                time=own.get("time", "time"),
                request=request if request in columns else None,
            ),
            aliases=own,
            outcomes=frozenset(days.follows) | frozenset(self._known_at.values()) | {SPLIT_COLUMN},
            maturity=self._maturity,
            known_at=self._known_at,
            observed_until=self._observed_until(),
            day=(self._begin, self._end),
            split_column=SPLIT_COLUMN,
            default_features=recommended,
            inputs={text: path for paths in days.files.values() for text, path in paths.items()},
            read={**self._count("read"), **{name: table.read for name, table in tables.items()}},
            duplicates=self._count("duplicates"),
            rejected={**self._rejected(), **{name: dict(table.rejected) for name, table in tables.items()}},
            rejected_files=(*self._rejected_files(), *(p for table in tables.values() for p in table.rejected_files)),
            warnings=tuple(
                dict.fromkeys(
                    text
                    for texts in (
                        *(entry["warnings"] for log in days.logs for entry in self._entries(log)),
                        *(table.warnings for table in tables.values()),
                        *(of_negatives(name, self._summed(name, "negatives")) for name in days.follows),
                    )
                    for text in texts
                )
            ),
            unread=unread_of(impressions, tables, self._renames, own),
            filtered={log: count for log, count in self._count("filtered").items() if count},
            condition_unread=condition_unread({log: self._summed(log, "condition_unread") for log in days.logs}),
            conventions=days.reader.conventions(impressions, tables, self._renames, own),
        )

    def _impressions(self, columns: Sequence[str]) -> Ingested:
        """What is known of how the impressions of these days were read, as of one log."""
        units: dict[str, TimeUnit] = {}
        kind = "parquet"
        for entry in self._entries("impressions"):
            units |= entry["units"]
            kind = entry["kind"]
        joined = {new for names in self._renames.values() for new in names.values()}
        own = pl.LazyFrame(schema=[name for name in columns if name not in joined])
        return Ingested("impressions", own, 0, 0, 0, {}, (), (), self._summed("impressions", "unread"), units, kind)

    def _summed(self, log: str, what: str) -> dict[str, Unread]:
        """Column → some of its values, over the files of a log."""
        found: dict[str, Unread] = {}
        for entry in self._entries(log):
            add_unread(found, {name: Unread.model_validate(stated) for name, stated in entry[what].items()})
        return found

    def _labelled(self, day: date) -> pl.LazyFrame:
        rows = pl.scan_parquet(self._days.folder(day) / "rows.parquet", glob=False)
        rows = rows.with_row_index(ROW).with_columns(_whole(ROW))
        for event, follows in self._days.follows.items():
            rows = with_label(rows, event, self._labels(day, event), follows)
        return rows

    def _split(self, day: date, rows: pl.LazyFrame) -> pl.LazyFrame:
        """The rows of a day that are in some split, each with its name."""
        column = SPLIT_COLUMN
        if day == self._day:
            return rows.with_columns(pl.lit("test").alias(column)).drop(ROW)
        split = "validation" if day >= self._day - _DAY * self._daily.validation else "train"
        named = pl.lit(split if day >= self._day - _DAY * self._daily.history else None, pl.String)
        held_out = self._held_out(day, rows)
        if held_out is not None:
            # Held out until the last window has closed; then rows like others.
            still = held_out & (pl.col("time") + self._longest > pl.lit(self._begin, _UTC))
            first = self._daily.judge_from
            judged = pl.lit("test" if first is None or day >= first else None, pl.String)
            named = pl.when(~still).then(named).when(self._became_known()).then(judged)
        return rows.with_columns(named.alias(column)).filter(pl.col(column).is_not_null()).drop(ROW)

    def _held_out(self, day: date, rows: pl.LazyFrame) -> pl.Expr | None:
        """Whether a row's user is held out on its day."""
        share = self._daily.holdout
        if not share:
            return None
        users = rows.select(user=canonical(pl.col("user_id"), rows.collect_schema()["user_id"])).unique()
        texts = users.collect(engine="streaming")["user"].drop_nulls().sort()
        drawn = stable_hash(texts, key=f"recmtl.holdout.{self._daily.seed}.{day}").cast(pl.Float64) / 2.0**64
        chosen = texts.filter(drawn < share)
        return canonical(pl.col("user_id"), rows.collect_schema()["user_id"]).is_in(chosen.implode())

    def _became_known(self) -> pl.Expr:
        """Whether a label of the row became known on the day of evaluation."""
        times = {
            unknown_at: LabelTimes("time", self._maturity, self._known_at, unknown_at=unknown_at)
            for unknown_at in (self._begin, self._end)
        }
        return pl.any_horizontal(
            known_since(task, times[self._begin]) & ~known_since(task, times[self._end])
            for task in self._tasks.values()
            if task.label in self._maturity or task.label in self._known_at
        )

    def _observed_until(self) -> datetime:
        """Where the source does not say, events are taken to be recorded until the day's last impression, also when
        the next day is there already: a day is the same whenever it is built."""
        configured = self._days.config.observed_until
        if configured is None:
            rows = pl.scan_parquet(self._days.folder(self._day) / "rows.parquet", glob=False)
            configured = rows.select(pl.col("time").max()).collect().item().astimezone(UTC)
        return min(configured, self._end)

    # Users and items, as their tables are.

    def _read_tables(self, work: Path) -> dict[str, Ingested]:
        days = self._days
        reader = Reader(days.config, {**days._first, **self._tables}, work, days.progress)
        return {name: reader.table(name, days.uses) for name in self._tables}

    def _joined(self, rows: pl.LazyFrame, tables: Mapping[str, Ingested]) -> pl.LazyFrame:
        keys = {"users": "user_id", "items": "item_id"}
        added = {
            name.removesuffix("s"): [c for c in table.columns if c != keys[name]] for name, table in tables.items()
        }
        renames = distinct_names(rows.collect_schema().names(), added, "data.source")
        self._renames = {name: renames[name.removesuffix("s")] for name in tables}
        for name, table in tables.items():
            key = keys[name]
            both = one_type({"rows": rows, "table": table.frame}, key)
            needed = both["table"].join(both["rows"].select(key).unique(), on=key, how="semi")
            rows = join_table(both["rows"], needed, key, self._renames[name])
        return rows

    # What was read and what was set aside: of the files that have rows of these days, or none at all.

    def _entries(self, log: str) -> Iterable[dict[str, Any]]:
        used = {day.isoformat() for day in self._used}
        return (entry for entry in self._days.entries(log) if not entry["days"] or used & entry["days"].keys())

    def _count(self, what: str) -> dict[str, int]:
        return {log: sum(entry[what] for entry in self._entries(log)) for log in self._days.logs}

    def _rejected(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for log in self._days.logs:
            total: Counter[str] = Counter()
            for entry in self._entries(log):
                total.update(entry["rejected"])
            found[log] = dict(sorted(total.items()))
        return found

    def _rejected_files(self) -> Iterator[Path]:
        for log in self._days.logs:
            for entry in self._entries(log):
                yield from sorted((self._days.store / "files" / log / entry["sha256"]).glob("rejected-*.parquet"))
