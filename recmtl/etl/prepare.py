"""Raw logs to a prepared dataset, whole or not at all.

In: a source, a split, features and tasks. Out: the folder that :mod:`recmtl.manifest` describes. It is written under a
temporary name beside its place and renamed when it is complete; what was there before is removed only then. When the
inputs' bytes and the config are those of the dataset that is there, and its own files are as they were written, nothing
is done. A damaged dataset is built again: the file ``.recmtl`` in it tells it from a folder of somebody else's.
"""

import difflib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Union

import polars as pl
from pydantic import Field

from recmtl import durable
from recmtl.bounded import parse_json, read_bytes
from recmtl.errors import RunError, UserError, unwritable
from recmtl.etl.convert import see_reading
from recmtl.etl.drift import fit_profiles
from recmtl.etl.encode import LARGEST_NUMBER, Encoder, canonical, number, stable_hash
from recmtl.etl.fit import fit_numbers, fit_tables
from recmtl.etl.infer import infer_features
from recmtl.etl.invalid import InvalidLabels
from recmtl.etl.listtext import is_bracketed, list_items
from recmtl.etl.mask import LabelCounts, LabelTimes, encode_labels, labels_as_of
from recmtl.etl.shards import StagedPart, load_part, stage_parts, write_shard
from recmtl.etl.sources import SOURCES, LabelledLog
from recmtl.etl.split import SplitConfig, SplitPlan, plan_split
from recmtl.etl.validate import Uses, number_text
from recmtl.expansion import ExpandedPath
from recmtl.failures import writing
from recmtl.locks import held
from recmtl.manifest import ROW, SPLITS, Manifest, Shard, SplitSummary, TaskSummary, file_hash
from recmtl.progress import Progress
from recmtl.reading import NumberStyle, Unread
from recmtl.schema import Feature, Schema
from recmtl.settings import Settings
from recmtl.statistics import NumberStatistics, Statistics
from recmtl.tasks import Task, Tasks

__all__ = ["DataConfig", "Origin", "Prepared", "prepare", "prepare_from", "uses_of"]

VERSION = 5
"""Raised with every change of what a prepared dataset holds, so that older ones are built anew."""

_SAMPLED_EVERY = 16
"""Of the rows of a part, those whose times tell where the middle half lies."""

_OURS = {"manifest.json", "statistics", "train", "validation", "test", "raw", "rejected"}
_MARK, _MARK_TEXT = ".recmtl", "A prepared dataset of recmtl's: replaced whole when it is prepared again.\n"
"""In every prepared dataset: by it a folder is known as recmtl's own though its manifest is damaged."""

if TYPE_CHECKING:
    AnySource = Settings
else:
    AnySource = Annotated[Union[tuple(kind.config for kind in SOURCES.values())], Field(discriminator="kind")]  # noqa: UP007


class DataConfig(Settings):
    """Where rows come from and how they become a prepared dataset."""

    source: AnySource
    """The raw data: event_log, table, kuairand, movielens or synthetic."""
    prepared: ExpandedPath | None = None
    """The prepared dataset's folder; by default data/prepared/NAME. It is replaced when anything changes, so it holds
    nothing else."""
    split: SplitConfig = SplitConfig()
    """How rows are divided."""
    keep: tuple[str, ...] = ()
    """Raw columns to keep with validation and test rows though no feature reads them: for slices, or another model."""
    max_rejected: float = Field(default=0.05, ge=0, le=1)
    """Share of an input's rows that may be quarantined; more stops the run."""
    max_invalid: float = Field(default=0.05, ge=0, le=1)
    """Share of a column's given values that may be invalid, for every column that a task or a feature reads; more stops
    the run. Below it each such value is missing (of a label: masked), counted, and kept in ``rejected/``."""
    rows_per_shard: int = Field(default=500_000, ge=1)
    """Rows of a shard, which are in memory at once."""


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset."""

    folder: Path
    manifest: Manifest
    built: bool
    """False when it was there already."""


@dataclass(frozen=True)
class Origin:
    """What a dataset is to be made from."""

    fingerprint: str
    """Of all that shapes it: a dataset with this fingerprint need not be built."""
    hashes: Mapping[str, str]
    """Input, as the user knows it, to its SHA-256."""
    read: Callable[[Path], LabelledLog]
    """Stages the rows under an empty folder."""
    unchanged: Callable[[], bool]
    """Whether the inputs are still those of the fingerprint."""
    numbers: Mapping[str, NumberStatistics] = field(default_factory=dict)
    """Feature to the moments by which it is to be standardised, instead of those of its own train rows."""


def prepare(
    data: DataConfig,
    features: Sequence[Feature] | None,
    tasks: Sequence[Task],
    *,
    name: str,
    folder: Path | None = None,
    progress: Progress,
) -> Prepared:
    """Build a prepared dataset, unless it is there.

    Args:
        data: source, split and what to keep.
        features: what the model sees; None: what the source recommends, else what can be inferred.
        tasks: what it predicts.
        name: the run's name.
        folder: where to, instead of ``data.prepared``.
        progress: where to show it.

    Raises:
        UserError: the config or the data are wrong, or the folder holds something else.
        RunError: an input changed while it was read.
    """
    uses = uses_of(features, tasks)

    def origin() -> Origin:
        kind = SOURCES[data.source.kind]  # type: ignore[attr-defined]
        inputs = dict(kind.inputs(data.source))
        before = _stamps(inputs)
        hashes = _hashed(inputs, progress)
        return Origin(
            fingerprint=_fingerprint(data, features, tasks, hashes),
            hashes=hashes,
            read=lambda work: kind.read(data.source, work, progress, uses=uses),
            unchanged=lambda: _stamps(inputs) == before,
        )

    return prepare_from(origin, data, features, tasks, name=name, folder=folder, progress=progress)


def uses_of(features: Sequence[Feature] | None, tasks: Sequence[Task]) -> Uses:
    """What the config says that the columns are used for."""
    labels = frozenset(task.label for task in tasks)
    if features is None:
        return Uses(labels=labels)
    ids = {feature.column for feature in features if feature.sparse}
    others = {column for feature in features if feature.kind != "number" for column in feature.columns}
    numbers = {feature.column for feature in features if feature.kind == "number"} - others
    return Uses(labels, frozenset(ids), frozenset(numbers))


def prepare_from(
    origin: Callable[[], Origin],
    data: DataConfig,
    features: Sequence[Feature] | None,
    tasks: Sequence[Task],
    *,
    name: str,
    folder: Path | None = None,
    progress: Progress,
) -> Prepared:
    """:func:`prepare` from what ``origin`` finds, which is asked once the folder is held."""
    folder = folder or data.prepared or Path("data") / "prepared" / name
    place = folder.resolve()
    checked = Tasks(tasks)
    if features is not None:
        Schema(features)
    _refuse_foreign(place, folder)
    try:  # before the lock, which takes a folder that refuses it for one that is held
        durable.make_folder(place.parent)
        _beside(place, "lock").touch()
    except OSError as error:
        raise unwritable(f"data.prepared: cannot write beside {folder}", error) from error
    with _locked(place, folder, progress):
        _recover(place)
        found = origin()
        manifest = _existing(place, found.fingerprint, folder, progress)
        if manifest is not None:
            progress.say(f"{folder}: prepared already from the same inputs and config, nothing rebuilt")
            return Prepared(folder, manifest.model_copy(update={"name": name}), built=False)
        building = _beside(place, "building")
        try:
            work = building / ".work"
            (work / "source").mkdir(parents=True)
            log = found.read(work / "source")
            _refuse_rejects(log, data.max_rejected, place, folder)
            build = _Build(data, features, checked, name, found, log, folder, building, progress)
            manifest = build.run()
            if not found.unchanged():
                raise RunError(f"{folder}: an input file changed while it was read; prepare again")
            durable.remove(work)
            (building / _MARK).write_text(_MARK_TEXT)
            manifest.write(building)
            _refuse_foreign(place, folder)
            durable.commit_folder(building, place)
        finally:
            with suppress(OSError):
                durable.remove(building)
        _remove_rejects(place)
        for warning in manifest.warnings:
            progress.warn(warning)
        progress.say(f"{folder}: " + ", ".join(f"{split} {manifest.splits[split].rows:,} rows" for split in SPLITS))
        return Prepared(folder, manifest, built=True)


class _Build:
    """One building of a dataset, in the order of :meth:`run`."""

    def __init__(
        self,
        data: DataConfig,
        features: Sequence[Feature] | None,
        tasks: Tasks,
        name: str,
        origin: Origin,
        log: LabelledLog,
        folder: Path,
        building: Path,
        progress: Progress,
    ) -> None:
        self._data = data.model_copy(update={"keep": tuple(log.aliases.get(name, name) for name in data.keep)})
        self._features = None if features is None else [_by_own_name(feature, log.aliases) for feature in features]
        self._tasks = tasks
        self._name = name
        self._origin = origin
        self._log = log
        self._folder = folder
        self._building = building
        self._work = building / ".work"
        self._progress = progress
        self._types = log.frame.collect_schema()
        self._warnings = list(log.warnings)
        self._rejected_files = log.rejected_files

    def run(self) -> Manifest:
        """Split, stage, label, fit, encode; return the manifest of what was written."""
        log, data = self._log, self._data
        if log.frame.select(pl.len()).collect(engine="streaming").item() == 0:
            without = f" ({sum(log.filtered.values()):,} rows do not satisfy `where`)" if log.filtered else ""
            raise UserError(f"data.source: there is no usable row in {', '.join(log.inputs) or 'its files'}{without}")
        self._check_columns()
        plan = plan_split(log.frame, log.columns, data.split, split_column=log.split_column)
        schema = self._choose_features(plan)
        self._check_unread(schema)
        staged = stage_parts(
            log.frame,
            plan.split,
            self._staged_columns(schema),
            seed=data.split.seed,
            rows_per_part=data.rows_per_shard,
            folder=self._work / "parts",
        )
        self._check_sizes(staged, plan)
        times, as_of = self._label_times(plan)
        labelled, counts, invalid = self._label(staged, times)
        self._judge_labels(invalid, labelled)
        self._progress.say("fitting vocabularies and moments on train")
        parts = labelled["train"]
        reading = see_reading(schema, self._types, parts, log.columns, log.conventions)
        statistics = Statistics(
            reading=reading,
            tables=fit_tables(parts, schema),
            numbers=self._numbers(parts, schema),
            labels=counts["train"].statistics(),
            conditional_labels=counts["train"].conditional_statistics(),
            columns={column: str(self._types[column]) for column in schema.columns},
            train_rows=counts["train"].rows,
        )
        self._warn_of_features(schema, statistics)
        splits = self._write(labelled, counts, schema, statistics)
        train = [self._building / shard.path for shard in splits["train"].shards]
        statistics = replace(statistics, profiles=fit_profiles(train, schema))
        statistics.save(self._building / "statistics")
        self._warn_of_labels(splits, plan, as_of)
        self._publish_rejects()
        return Manifest(
            name=self._name,
            source=data.source.kind,  # type: ignore[attr-defined]
            fingerprint=self._origin.fingerprint,
            statistics=statistics.fingerprint(),
            features=tuple(schema.values()),
            tasks=tuple(self._tasks.values()),
            columns=log.columns,
            splits=splits,
            split_by=plan.by if log.day is None else "day",
            outcomes=tuple(sorted(log.outcomes)),
            inputs=dict(self._origin.hashes),
            read=dict(log.read),
            duplicates=dict(log.duplicates),
            rejected={name: dict(reasons) for name, reasons in log.rejected.items()},
            filtered={name: {"where": count} for name, count in log.filtered.items()},
            unattributed={name: dict(reasons) for name, reasons in log.unattributed.items()},
            observed_until=_iso(log.observed_until),
            labels_as_of=_iso(as_of),
            warnings=tuple(dict.fromkeys(self._warnings)),
            truth=None if log.truth is None else str(log.truth.resolve()),
            versions={"etl": str(VERSION), "polars": pl.__version__},
        )

    # The columns: what is asked for must be there, and must have been known at the impression.

    def _check_columns(self) -> None:
        for task in self._tasks.values():
            self._require(task.label, f"tasks.{task.name}.label")
            if task.weight_column is not None:
                self._require(task.weight_column, f"tasks.{task.name}.weight_column")
        for column in self._data.keep:
            self._require(column, "data.keep")
        for feature in self._features or ():
            self._check_feature(feature)

    def _check_feature(self, feature: Feature) -> None:
        for column in feature.columns:
            self._require(column, f"features.{feature.name}")
            labels = [task.name for task in self._tasks.values() if task.label == column]
            reason = None
            if labels:
                reason = f"the label of task {labels[0]}"
            elif column in self._log.outcomes or column in self._log.known_at.values():
                reason = "an outcome, known only after the impression"
            elif column in (ROW, self._log.split_column, self._data.split.column):
                reason = "bookkeeping, not a property of the impression"
            if reason is not None:
                raise UserError(f"features.{feature.name}: column {column!r} is {reason}; remove this feature")

    def _require(self, column: str, where: str) -> None:
        if column in self._types:
            return
        near = difflib.get_close_matches(column, self._types.names(), n=3, cutoff=0.5)
        known = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {', '.join(self._types.names())}"
        raise UserError(f"{where}: the source has no column {column!r}; {known}")

    def _choose_features(self, plan: SplitPlan) -> Schema:
        log = self._log
        if self._features is not None:
            return Schema(self._features)
        if log.default_features:
            there = [feature for feature in log.default_features if set(feature.columns) <= set(self._types)]
            absent = [feature.name for feature in log.default_features if feature not in there]
            for feature in there:
                self._check_feature(feature)
            self._progress.say(f"features, as the source recommends: {', '.join(feature.name for feature in there)}")
            if absent:
                self._progress.say(f"left out, for want of their columns: {', '.join(absent)}")
            return Schema(there)
        excluded = {*log.outcomes, *log.known_at.values(), ROW}
        excluded |= {task.label for task in self._tasks.values()}
        excluded |= {task.weight_column for task in self._tasks.values() if task.weight_column is not None}
        excluded |= {name for name in (log.split_column, self._data.split.column) if name is not None}
        inferred = infer_features(log.frame.filter(plan.split == "train"), log.columns, excluded)
        self._progress.say("features, as inferred from the train rows:")
        for line in inferred.lines:
            self._progress.say(f"  {line}")
        hidden = sorted(excluded & set(self._types) - {ROW})
        self._progress.say(f"  never considered (outcomes, labels, weights, splits): {', '.join(hidden)}")
        return Schema(inferred.features)

    def _check_unread(self, schema: Schema) -> None:
        """Warn of values that cannot be read in columns that a feature reads; stop where they are too many."""
        for feature in schema.values():
            for column in feature.columns:
                unread = self._log.unread.get(column)
                if unread is None and feature.kind == "number" and self._types[column] == pl.String:
                    unread = self._no_numbers(column)
                if unread is not None:
                    of = "numbers" if feature.kind == "number" else "what the others are"
                    self._judge_unread(f"features.{feature.name}", column, unread, of)
            if feature.kind in ("bag", "weighted_bag") and self._types[feature.column] == pl.String:
                self._check_lists(feature)
        for (where, column), unread in self._log.condition_unread.items():
            self._judge_unread(where, column, unread, "what the others are")

    def _check_lists(self, feature: Feature) -> None:
        """Judge, and keep, the texts in brackets that are no lists of single values."""
        text = pl.col(feature.column)
        given = self._log.frame.filter(text.str.strip_chars() != "")
        wrong = given.filter(is_bracketed(text)).filter(list_items(text, feature.separator).is_null())
        file = self._work / f"lists-{feature.name}.parquet"
        rows = wrong.select(
            pl.lit(self._data.source.kind).alias("source"),  # type: ignore[attr-defined]
            pl.lit(f"{feature.column} is no list of single values").alias("reason"),
            pl.struct(text).struct.json_encode().alias("row"),
            text.alias("value"),
        )
        with writing(file):
            rows.sink_parquet(file)
        kept = pl.scan_parquet(file, glob=False)
        count = kept.select(pl.len()).collect().item()
        if not count:
            return
        commonest = kept.group_by("value").len().sort(["len", "value"], descending=[True, False]).head(3)
        unread = Unread(
            count=count,
            given=given.select(pl.len()).collect(engine="streaming").item(),
            examples=tuple(f"{value:.60}" for value in commonest.collect(engine="streaming")["value"]),
        )
        try:
            advice = "write one list of single values per row, such as [5, 8]"
            self._judge_unread(f"features.{feature.name}", feature.column, unread, "lists", advice)
        except UserError:
            _keep_rejects([file], self._folder.resolve())
            raise
        self._rejected_files += (file,)

    def _no_numbers(self, column: str) -> Unread | None:
        """The values of a text column, which an id reads too, that are no numbers."""
        text = pl.col(column)
        given = self._log.frame.filter(text.is_not_null() & (text != ""))
        wrong = given.filter(number(text, pl.String()).is_null())
        total, count = (frame.select(pl.len()).collect(engine="streaming").item() for frame in (given, wrong))
        if not count:
            return None
        commonest = wrong.group_by(column).len().sort(["len", column], descending=[True, False]).head(3)
        examples = tuple(commonest.collect(engine="streaming")[column])
        return Unread(count=count, given=total, examples=examples)

    def _judge_unread(self, where: str, column: str, unread: Unread, of: str, advice: str | None = None) -> None:
        what = (
            f"{where}: {unread.count:,} of {unread.given:,} values of column {column!r} ({unread.share:.2%}) cannot be "
            f"read as {of}, such as {', '.join(map(repr, unread.examples))}"
        )
        advice = _advice_on_numbers(unread.examples) if advice is None else advice
        advice = advice[:1].upper() + advice[1:]
        if unread.share > self._data.max_invalid:
            raise UserError(f"{what}; data.max_invalid allows {self._data.max_invalid:.0%}. {advice}")
        self._warnings.append(f"{what}; they count as missing and are kept in rejected/. {advice}")

    def _raw_columns(self, schema: Schema) -> list[str]:
        """What validation and test keep of a row as it came."""
        keys = self._log.columns
        names = [name for name in (keys.user, keys.item, keys.time, keys.request) if name is not None]
        for task in self._tasks.values():
            names += [task.label] if task.weight_column is None else [task.label, task.weight_column]
        return list(dict.fromkeys([*names, *schema.columns, *self._data.keep, ROW]))

    def _staged_columns(self, schema: Schema) -> list[str]:
        known = [self._log.known_at[task.label] for task in self._tasks.values() if task.label in self._log.known_at]
        return list(dict.fromkeys([*self._raw_columns(schema), *known]))

    def _numbers(self, parts: Sequence[Path], schema: Schema) -> dict[str, NumberStatistics]:
        """Of the train rows; standardised as the origin says, where that still fits them."""
        fitted = fit_numbers(parts, schema)
        for name, before in self._origin.numbers.items():
            now = fitted.get(name)
            if now is None or not now.count or not before.count:
                continue
            # What is standardised by these is within a standard deviation of what it should be, to a factor of two.
            if bool(before.quantiles) == bool(now.quantiles) and (
                abs(now.mean - before.mean) <= before.std and 0.5 <= now.std / before.std <= 2
            ):
                fitted[name] = replace(now, mean=before.mean, std=before.std, quantiles=before.quantiles)
            else:
                self._warnings.append(
                    f"features.{name}: its mean and deviation moved from {before.mean:.4g} and {before.std:.4g} to "
                    f"{now.mean:.4g} and {now.std:.4g}, so it is standardised anew and a warm start knows it less well"
                )
        return fitted

    # The labels: parsed and masked, part by part.

    def _check_sizes(self, staged: Mapping[str, list[StagedPart]], plan: SplitPlan) -> None:
        sizes = {split: sum(part.rows for part in staged[split]) for split in SPLITS}
        for split, rows in sizes.items():
            if not rows:
                raise UserError(
                    f"data.split: by {plan.by} gives {split} no row out of {sum(sizes.values())}; "
                    f"change `data.split` or bring more rows"
                )
        self._progress.say(f"split by {plan.by}: " + ", ".join(f"{split} {rows:,}" for split, rows in sizes.items()))

    def _label_times(self, plan: SplitPlan) -> tuple[dict[str, LabelTimes], datetime | None]:
        """When each split's labels are looked at, and the instant for train, where it masks anything."""
        log = self._log
        times = LabelTimes(log.columns.time, log.maturity, log.known_at, log.observed_until)
        if log.day is not None:
            begin, end = log.day
            before = labels_as_of(times, begin)
            test = replace(labels_as_of(times, end), unknown_at=begin)
            return {"train": before, "validation": before, "test": test}, begin
        timed = any(task.label in log.maturity or task.label in log.known_at for task in self._tasks.values())
        as_of = plan.validation_start if timed and self._data.split.labels_as_of == "validation_start" else None
        if timed:
            self._warnings += plan.warnings
        train = labels_as_of(times, as_of)
        return {"train": train, "validation": times, "test": times}, as_of

    def _label(
        self, staged: Mapping[str, list[StagedPart]], times: Mapping[str, LabelTimes]
    ) -> tuple[dict[str, list[Path]], dict[str, LabelCounts], InvalidLabels]:
        labelled: dict[str, list[Path]] = {}
        invalid = InvalidLabels(self._tasks, self._log.columns, self._work / "invalid")
        counts: dict[str, LabelCounts] = {}
        folder = self._work / "labelled"
        folder.mkdir()
        total = sum(part.rows for parts in staged.values() for part in parts)
        with self._progress.bar("labels and masks", total) as bar:
            for split, parts in staged.items():
                labelled[split], counts[split] = [], LabelCounts(self._tasks)
                for part in parts:
                    frame = load_part(part, seed=self._data.split.seed)
                    invalid.add(frame)
                    frame = encode_labels(frame.lazy(), self._tasks, times[split]).collect()
                    counts[split].add(frame)
                    path = folder / f"{split}-{part.number:05}.parquet"
                    with writing(path):
                        frame.write_parquet(path, compression="lz4")
                    for file in part.files:
                        file.unlink()
                    labelled[split].append(path)
                    bar.advance(part.rows)
        return labelled, counts, invalid

    def _judge_labels(self, invalid: InvalidLabels, labelled: Mapping[str, Sequence[Path]]) -> None:
        """Keep the labels that cannot be read; warn of a few, stop at more than ``data.max_invalid``."""
        file = self._work / "labels.parquet"
        if not invalid.write(file):
            return
        rows = [path for paths in labelled.values() for path in paths]
        kept = self._folder / "rejected" / file.name
        refused = self._folder.with_name(f"{self._folder.name}.rejected") / file.name
        try:
            self._warnings += invalid.judge(self._data.max_invalid, rows, kept=kept, refused=refused)
        except UserError:
            _keep_rejects([file], self._folder.resolve())
            raise
        self._rejected_files += (file,)

    # The shards: encoded rows, and beside validation and test their raw twins.

    def _write(
        self,
        labelled: Mapping[str, list[Path]],
        counts: Mapping[str, LabelCounts],
        schema: Schema,
        statistics: Statistics,
    ) -> dict[str, SplitSummary]:
        encoder = Encoder(schema, statistics)
        splits = {}
        with self._progress.bar("encoding", sum(split.rows for split in counts.values())) as bar:
            for split, paths in labelled.items():
                shards: list[Shard] = []
                raw_shards: list[Shard] = []
                instants: list[datetime] = []
                sampled: list[pl.Series] = []
                for number, path in enumerate(paths):
                    frame = pl.read_parquet(path, glob=False)
                    part = f"{split}/part-{number:05}.parquet"
                    shards.append(write_shard(self._encoded(frame, encoder), self._building, part))
                    if split != "train":
                        raw = frame.select(self._raw_columns(schema))
                        raw_shards.append(write_shard(raw, self._building, f"raw/{part}"))
                    if self._log.columns.time is not None:
                        times = frame[self._log.columns.time].drop_nulls()
                        instants += [t for t in (times.min(), times.max()) if isinstance(t, datetime)]
                        sampled.append(times.gather_every(_SAMPLED_EVERY))
                    path.unlink()
                    bar.advance(frame.height)
                splits[split] = SplitSummary(
                    rows=counts[split].rows,
                    shards=tuple(shards),
                    raw_shards=tuple(raw_shards),
                    tasks=counts[split].summaries(),
                    time_range=(_iso_in_utc(min(instants)), _iso_in_utc(max(instants))) if instants else None,
                    middle_half=_middle_half(sampled) if instants else None,
                )
        return splits

    def _encoded(self, frame: pl.DataFrame, encoder: Encoder) -> pl.DataFrame:
        labels = [f"{kind}:{name}" for name in self._tasks for kind in ("label", "observed")]
        labels += [f"weight:{name}" for name, task in self._tasks.items() if task.weight_column is not None]
        keys = self._log.columns
        numbered = [*self._numbered(frame, "item", keys.item), *self._numbered(frame, "request", keys.request)]
        rest = frame.select(*labels, self._group(frame), *numbered, pl.col(ROW).alias("row"))
        return pl.concat((encoder.rows(frame), rest), how="horizontal")

    def _group(self, frame: pl.DataFrame) -> pl.Series:
        """The user as a number; a row without a user is alone in its group."""
        alone = -1 - frame[ROW]
        user = self._log.columns.user
        if user is None:
            return alone.alias("group")
        users = _number_of(frame, user)
        return users.zip_with(users.is_not_null(), alone).alias("group")

    @staticmethod
    def _numbered(frame: pl.DataFrame, name: str, column: str | None) -> list[pl.Series]:
        """A key as a number, whatever vocabulary the features keep of it; nothing where the log has no such key."""
        return [] if column is None else [_number_of(frame, column).fill_null(-1).alias(name)]

    # What a person should know.

    def _warn_of_features(self, schema: Schema, statistics: Statistics) -> None:
        for name, moments in statistics.numbers.items():
            if not moments.count:
                self._warnings.append(f"features.{name}: column {schema[name].column!r} is missing in every train row")
        for name, vocabulary in statistics.tables.items():
            if not vocabulary.values:
                rare = f", {vocabulary.dropped} being rarer than `min_count`" if vocabulary.dropped else ""
                self._warnings.append(
                    f"features.{schema.tables[name].features[0]}: table {name!r} keeps no value{rare}"
                )

    def _warn_of_labels(self, splits: Mapping[str, SplitSummary], plan: SplitPlan, as_of: datetime | None) -> None:
        for split, summary in splits.items():
            for name, counted in summary.tasks.items():
                if not counted.observed:
                    if split == "test" and self._log.day is not None:
                        self._progress.say(f"task {name} is not judged: no label of it became known on the day")
                        continue
                    advice = self._advice(self._tasks[name], counted, split, as_of)
                    self._warnings.append(f"task {name} has no observed row in {split}: {advice}")
                elif split == "train" and counted.positives in (0, counted.observed):
                    named = "negative" if counted.positives else "positive"
                    self._warnings.append(f"task {name} has no {named} row in train: check tasks.{name}.label")

    def _advice(self, task: Task, counted: TaskSummary, split: str, as_of: datetime | None) -> str:
        """Why a task is masked throughout, and the setting to change."""
        reason = max(counted.masked, key=lambda reason: counted.masked[reason], default="missing")
        rows = f"{counted.masked.get(reason, 0):,} rows are {reason.replace('_', ' ')}"
        if reason == "immature" and self._log.day is not None:
            return (
                f"{rows} as of {_iso(as_of)}; raise daily.{'history' if split == 'train' else 'validation'} so that "
                "rows whose windows had closed by then belong to it, or shorten the windows in data.source"
            )
        if reason == "immature" and split == "train" and as_of is not None:
            return (
                f"{rows} as of the beginning of validation at {_iso(as_of)}; set data.split.labels_as_of: log_end, "
                "shorten the windows in data.source, or bring a longer log"
            )
        if reason == "immature":
            return (
                f"{rows}, their windows closing after observed_until ({_iso(self._log.observed_until)}); set a later "
                "observed_until in data.source if events were recorded longer, shorten the windows, or raise data.split"
                f".{'validation' if split == 'train' else split} so that earlier rows belong to it"
            )
        if reason == "invalid":
            field = {"ordinal": "levels", "multiclass": "classes", "regression": "range"}.get(task.kind, "positive")
            return f"{rows} (column {task.label!r}); check tasks.{task.name}.{field}"
        if reason == "not_applicable":
            other = task.parent or (task.observed.when if task.observed else "")
            field = "parent" if task.parent else "observed.when"
            return f"{rows}, for {other} is nowhere observed{'' if task.parent else ' and positive'}; check {field}"
        if reason == "contradiction":
            return f"{rows}: positive where {task.parent} is 0; check tasks.{task.name}.parent"
        return f"{rows} (column {task.label!r}); check tasks.{task.name}.label"

    def _publish_rejects(self) -> None:
        for path, name in _rejected_names(self._rejected_files):
            (self._building / "rejected").mkdir(exist_ok=True)
            shutil.copyfile(path, self._building / "rejected" / name)
        for source, reasons in self._log.rejected.items():
            if sum(reasons.values()):
                told = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.items() if count)
                share = f"{sum(reasons.values()):,} of {self._log.read.get(source, 0):,} rows"
                self._progress.say(f"{source}: {share} set aside in {self._folder / 'rejected'}: {told}")
        for source, count in self._log.duplicates.items():
            if count:
                self._progress.say(f"{source}: exact duplicates dropped: {count:,}")
        for source, count in self._log.filtered.items():
            self._progress.say(f"{source}: {count:,} of {self._log.read.get(source, 0):,} rows left out by `where`")
        for event, missed in self._log.unattributed.items():
            if sum(missed.values()):
                told = ", ".join(f"{reason} ({count:,})" for reason, count in missed.items() if count)
                self._progress.say(f"{event}: {sum(missed.values()):,} events belong to no impression: {told}")


def _advice_on_numbers(examples: Sequence[str]) -> str:
    """The setting that would read these texts as numbers."""
    stripped = [text.strip() for text in examples]
    numbers = pl.Series(stripped, dtype=pl.String).cast(pl.Float64, strict=False)
    if len(numbers) and numbers.null_count() == 0:
        return f"a number beyond ±{LARGEST_NUMBER:.2g} is no quantity; write the value as missing"
    for style in (
        NumberStyle(decimal=","),
        NumberStyle(thousands=","),
        NumberStyle(decimal=",", thousands="."),
        NumberStyle(thousands=" "),
        NumberStyle(decimal=",", thousands=" "),
        NumberStyle(thousands="'"),
        NumberStyle(thousands="_"),
    ):
        texts = pl.DataFrame({"text": stripped}, schema={"text": pl.String})
        read = texts.select(number_text(pl.col("text"), style).cast(pl.Float64, strict=False)).to_series()
        if len(read) and read.null_count() == 0:
            settings = [f'data.source.decimal: "{style.decimal}"'] if style.decimal != "." else []
            settings += [f'data.source.thousands: "{style.thousands}"'] if style.thousands else []
            return f"set {' and '.join(settings)} to read them"
    words = [text for text in stripped if not any(character.isdigit() for character in text)]
    if words and len(words) == len(stripped):
        listed = ", ".join(f'"{word}"' for word in words)
        return f"if they stand for a missing value, add them to data.source.missing: [{listed}]"
    if any(re.search(r"\d\s*[^\d\s.,]+$|^[^\d\s+.,-]+\s*\d", text) for text in stripped):
        return "write the column without its unit"
    return "write the values as numbers, or read the column as text with data.source.types"


def _number_of(frame: pl.DataFrame, column: str) -> pl.Series:
    """A key as Int64, at least 0 and equal for equal keys on every machine; null where it is missing."""
    texts = frame.select(canonical(pl.col(column), frame.schema[column]))[column]
    return (stable_hash(texts) // 2).cast(pl.Int64)  # 63 of the hash's bits, so that the number is not negative


def _middle_half(times: Sequence[pl.Series]) -> tuple[str, str]:
    """The first and third quartile, ISO 8601 in UTC."""
    ordered = pl.concat(times).sort()
    last = len(ordered) - 1
    return _iso_in_utc(ordered[last // 4]), _iso_in_utc(ordered[last - last // 4])


def _by_own_name(feature: Feature, aliases: Mapping[str, str]) -> Feature:
    """The feature with its columns as the source's rows call them; its own name stays."""
    columns = {"column": aliases.get(feature.column, feature.column)}
    if feature.weights is not None:
        columns["weights"] = aliases.get(feature.weights, feature.weights)
    return feature.model_copy(update=columns)


# Whether to build.


def _hashed(inputs: Mapping[str, Path], progress: Progress) -> dict[str, str]:
    total = sum(path.stat().st_size for path in inputs.values()) if inputs else 0
    found = {}
    with progress.bar("hashing inputs", total // 1_000_000, unit="MB") as bar:
        for name, path in sorted(inputs.items()):
            found[name] = file_hash(path)
            bar.advance(path.stat().st_size // 1_000_000)
    return found


def _stamps(inputs: Mapping[str, Path]) -> dict[str, tuple[int, int]]:
    return {name: (path.stat().st_size, path.stat().st_mtime_ns) for name, path in inputs.items()}


def _fingerprint(
    data: DataConfig, features: Sequence[Feature] | None, tasks: Sequence[Task], hashes: Mapping[str, str]
) -> str:
    described = {
        "version": VERSION,
        "data": data.model_dump(mode="json", exclude={"prepared"}),
        "features": None if features is None else [feature.model_dump(mode="json") for feature in features],
        "tasks": [task.model_dump(mode="json") for task in tasks],
        "inputs": dict(hashes),
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _existing(place: Path, fingerprint: str, folder: Path, progress: Progress) -> Manifest | None:
    """The dataset that is there, if it is the one asked for and every file of it is as it was written."""
    if not (place / "manifest.json").exists():
        return None
    try:
        manifest = Manifest.read_from(place)
        if manifest.versions.get("etl") != str(VERSION):
            progress.say(f"{folder}: prepared by another version of recmtl; preparing again")
            return None
        if manifest.fingerprint != fingerprint:
            progress.say(f"{folder}: the inputs or the config changed since it was prepared; preparing again")
            return None
        manifest.verify(place)
    except (RunError, OSError) as error:
        progress.warn(f"{folder}: damaged ({error}); preparing again")
        return None
    return manifest


# The folder: whole or not at all.


def _refuse_foreign(place: Path, folder: Path) -> None:
    """Nothing that recmtl did not write is ever removed."""
    if not place.exists():
        return
    if not place.is_dir():
        raise UserError(f"data.prepared: {folder} is a file; name a folder of its own for the prepared dataset")
    found = {path.name for path in place.iterdir()}
    if found and not _is_dataset(place):
        raise UserError(
            f"data.prepared: {folder} is not empty and holds no prepared dataset; name another folder, or empty it"
        )
    other = sorted(name for name in found - _OURS if not name.startswith("."))
    if other:
        raise UserError(
            f"data.prepared: {folder} holds {other[0]!r} beside a prepared dataset, and would be replaced whole; "
            "move it elsewhere"
        )


def _is_dataset(place: Path) -> bool:
    if (place / _MARK).is_file():  # whatever became of the rest
        return True
    try:
        found = parse_json(read_bytes(place / "manifest.json"), finite=False)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"fingerprint", "splits", "statistics"} <= set(found)


def _beside(place: Path, what: str) -> Path:
    return place.with_name(f".{place.name}.{what}")


@contextmanager
def _locked(place: Path, folder: Path, progress: Progress) -> Iterator[None]:
    with held(_beside(place, "lock"), lambda: progress.say(f"{folder}: another process is preparing it; waiting")):
        yield


def _recover(place: Path) -> None:
    """Clear up after a killed run; the lock is ours, so no other is at work."""
    old = _beside(place, "old")
    durable.recover(place)
    if old.exists() and not place.exists():
        durable.files.rename(old, place)  # of recmtl 0.1, killed between its two renames
    for litter in (old, _beside(place, "building")):
        with suppress(OSError):
            durable.remove(litter)
    durable.remove_litter(place.parent, place.name, held=True)


# Quarantine.


def _refuse_rejects(log: LabelledLog, most: float, place: Path, folder: Path) -> None:
    for name, reasons in log.rejected.items():
        count, read = sum(reasons.values()), log.read.get(name, 0)
        if count <= most * read:
            continue
        _keep_rejects(log.rejected_files, place)
        reason = max(reasons, key=lambda reason: reasons[reason])
        raise UserError(
            f"{name}: {count:,} of {read:,} rows ({count / max(read, 1):.1%}) are unusable, mostly {reason!r} "
            f"({reasons[reason]:,}), and data.max_rejected allows {most:.1%}; they are in "
            f"{folder.with_name(f'{folder.name}.rejected')}; mend the input or the source's settings, or raise it"
        )


def _keep_rejects(files: Iterable[Path], place: Path) -> None:
    """Copy what a refused run could not read beside the dataset's place, for a person to look at."""
    kept = place.with_name(f"{place.name}.rejected")
    kept.mkdir(exist_ok=True)
    for path, file in _rejected_names(files):
        shutil.copyfile(path, kept / file)


def _rejected_names(files: Iterable[Path]) -> Iterator[tuple[Path, str]]:
    """The files with names of their own: two may be called the same in different folders."""
    taken: set[str] = set()
    for path in files:
        name, number = path.name, 1
        while name in taken:
            number += 1
            name = f"{path.stem}-{number}{path.suffix}"
        taken.add(name)
        yield path, name


def _remove_rejects(place: Path) -> None:
    """Remove what an earlier refused run quarantined."""
    kept = place.with_name(f"{place.name}.rejected")
    if kept.is_dir():
        for path in kept.glob("*.parquet"):
            path.unlink()
        if not any(kept.iterdir()):
            kept.rmdir()


def _iso(value: datetime | None) -> str | None:
    return None if value is None else _iso_in_utc(value)


def _iso_in_utc(value: datetime) -> str:
    value = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value.isoformat()
