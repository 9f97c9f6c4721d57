"""Guards: what makes offline figures lie, looked for before a model is trained or judged.

In: a prepared dataset. Out: a :class:`recmtl.findings.Guard` each, with one sentence of what was found; and, from
:func:`require`, one error that stops the run where a guard failed and the config does not allow it with a reason.

A row is known by its source row (``row``) and, where the log has request ids, by its request and item. Its content says
nothing: a user may be shown the same thing twice.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from recmtl.errors import RunError, UserError
from recmtl.findings import Guard
from recmtl.manifest import SPLITS, Manifest, TaskSummary, inside
from recmtl.schema import MISSING, UNSEEN, Feature, Schema
from recmtl.settings import Settings
from recmtl.statistics import Statistics
from recmtl.tasks import Task

__all__ = ["GUARDS", "GuardsConfig", "check_guards", "require"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ordered = Callable[[Bools, Floats], tuple[Ints, Floats]]
"""(rows observed, labels) → (rows judged, their scores); what is fitted is fitted on other rows."""


class GuardsConfig(Settings):
    """What stops a run because its figures would lie, and what is allowed all the same."""

    level: float = Field(default=0.95, gt=0.5, le=1)
    """A feature that tells a label by itself this well leaks it: AUC, in either direction, for binary and multiclass
    labels; absolute rank correlation for the others."""
    rows: int = Field(default=100_000, ge=1)
    """Train rows, an even sample, on which that is measured."""
    allow: dict[str, str] = {}
    """Guard to the reason why it may fail here; the report shows it."""

    @field_validator("allow")
    @classmethod
    def _known_and_reasoned(cls, allow: dict[str, str]) -> dict[str, str]:
        for name, reason in allow.items():
            if name not in GUARDS:
                near = difflib.get_close_matches(name, GUARDS, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(GUARDS)}"
                raise ValueError(f"guards.allow.{name}: there is no guard of that name; {hint}")
            if not reason.strip():
                raise ValueError(f"guards.allow.{name}: say why, in words; the report shows it")
        return allow


@dataclass(frozen=True)
class _Data:
    """What the guards look at."""

    folder: Path
    manifest: Manifest
    config: GuardsConfig

    @property
    def schema(self) -> Schema:
        return self.manifest.schema_

    def frames(self, split: str, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """A split's encoded rows, shard by shard; columns that it lacks are left out."""
        for shard in self.manifest.splits[split].shards:
            path = inside(self.folder, shard.path)
            try:
                there = pq.read_schema(path).names
                yield pl.read_parquet(path, columns=[name for name in columns if name in there], glob=False)
            except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
                raise RunError(f"{path}: this shard cannot be read ({error}); prepare again") from error


@dataclass(frozen=True)
class _Finding:
    """What one guard says."""

    status: Literal["passed", "failed", "not applicable"]
    text: str
    remedy: str = ""
    """What to do, for the error."""


def check_guards(folder: Path, manifest: Manifest, config: GuardsConfig | None = None) -> tuple[Guard, ...]:
    """Look at a prepared dataset.

    Args:
        folder: its folder.
        manifest: its manifest, whose features and tasks are judged.
        config: what is measured, and what is allowed.

    Raises:
        RunError: a shard cannot be read.
    """
    return tuple(guard for guard, _ in _checked(folder, manifest, config or GuardsConfig()))


def require(folder: Path, manifest: Manifest, config: GuardsConfig | None = None) -> tuple[Guard, ...]:
    """The same, and stop where one failed.

    Raises:
        UserError: a guard failed and is not allowed.
        RunError: a shard cannot be read.
    """
    checked = _checked(folder, manifest, config or GuardsConfig())
    failed = [(guard, remedy) for guard, remedy in checked if guard.status == "failed"]
    if failed:
        (guard, remedy), more = failed[0], [guard.name for guard, _ in failed[1:]]
        others = f" (failed too: {', '.join(more)})" if more else ""
        raise UserError(
            f"guard {guard.name}: {guard.text}; {remedy}, or allow it with a reason by "
            f"evaluation.guards.allow.{guard.name}{others}"
        )
    return tuple(guard for guard, _ in checked)


def _checked(folder: Path, manifest: Manifest, config: GuardsConfig) -> list[tuple[Guard, str]]:
    data = _Data(folder, manifest, config)
    found = []
    for name, look in GUARDS.items():
        finding = look(data)
        reason = config.allow.get(name) if finding.status == "failed" else None
        status = "allowed" if reason is not None else finding.status
        found.append((Guard(name=name, status=status, text=finding.text, reason=reason), finding.remedy))
    return found


# A label, or what follows from it, among the features.

_AFFIXES = re.compile(r"^(is|has|did|was)_|_(time|at|ts|timestamp|date|datetime|flag|label|event)$")


def _stem(name: str) -> str:
    """A column's name without what only says how it is told: ``is_click``, ``click_time`` and ``Click`` are click."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    before = None
    while before != name:
        before, name = name, _AFFIXES.sub("", name)
    return name


def _by_name(data: _Data) -> _Finding:
    known_after = {_stem(column): f"outcome {column!r}" for column in data.manifest.outcomes}
    for task in data.manifest.tasks:
        known_after[_stem(task.name)] = f"task {task.name}"
        known_after[_stem(task.label)] = f"the label {task.label!r} of task {task.name}"
    guilty = [
        f"feature {feature.name!r} reads column {column!r}, called like {known_after[_stem(column)]}"
        for feature in data.manifest.features
        for column in feature.columns
        if _stem(column) in known_after
    ]
    if guilty:
        return _Finding("failed", _listed(guilty), "remove the feature")
    columns = len({column for feature in data.manifest.features for column in feature.columns})
    return _Finding("passed", f"none of the {columns} columns of the features is called like a label or an outcome")


@dataclass(frozen=True)
class _Score:
    """Something of a feature that orders rows, on a sample of the train rows."""

    what: str
    values: Ordered


def _by_value(data: _Data) -> _Finding:
    sample = _sampled(data)
    judged, highest, guilty = 0, (0.0, ""), []
    scores = [score for feature in data.schema.values() for score in _scores(feature, data.schema, sample)]
    for task in data.manifest.tasks:
        observed = sample[f"observed:{task.name}"].to_numpy()
        for aspect, labels in _aspects(task, sample[f"label:{task.name}"].to_numpy().astype(np.float64)):
            for score in scores:
                strength = _strength(score, observed, labels, binary=task.kind in ("binary", "multiclass"))
                if strength is None:
                    continue
                judged += 1
                measure = "AUC" if task.kind in ("binary", "multiclass") else "rank correlation"
                said = f"{score.what} tells {aspect} with {measure} {strength:.3f}"
                highest = max(highest, (strength, said))
                if strength >= data.config.level:
                    guilty.append(said)
    if guilty:
        return _Finding(
            "failed",
            f"on {sample.height:,} train rows {_listed(guilty)}, at or above the level of {data.config.level:g}",
            "find out whether it is known before the impression, and remove it if not",
        )
    if not judged:
        return _Finding("not applicable", f"no task has enough labels of two kinds among {sample.height:,} train rows")
    return _Finding(
        "passed",
        f"on {sample.height:,} train rows no feature tells a label with an AUC or rank correlation of "
        f"{data.config.level:g}; the highest of {judged}: {highest[1]}",
    )


_ENOUGH = 20
"""Rows of either class, or in all, on which a strength is measured: fewer reach the level by chance."""

_VALUES = 16_000_000
"""Dense values of a sample, at most: wide vectors mean fewer rows."""


def _sampled(data: _Data) -> pl.DataFrame:
    labels = [f"{kind}:{task.name}" for task in data.manifest.tasks for kind in ("label", "observed")]
    sparse = [f"{'id' if feature.kind == 'id' else 'bag'}:{feature.name}" for feature in data.schema.sparse]
    columns = [*sparse, *(["dense"] if data.schema.dense else []), *labels]
    rows = min(data.config.rows, max(1000, _VALUES // max(1, data.schema.dense_width)))
    step = max(1, -(-data.manifest.splits["train"].rows // rows))
    return pl.concat([frame.gather_every(step) for frame in data.frames("train", columns)])


def _aspects(task: Task, labels: Floats) -> list[tuple[str, Floats]]:
    """What there is to tell about a task: its label, or each of its classes."""
    if task.kind != "multiclass":
        return [(task.name, labels)]
    assert task.classes is not None
    return [(f"{task.name} = {name}", (labels == code).astype(np.float64)) for code, name in enumerate(task.classes)]


def _scores(feature: Feature, schema: Schema, sample: pl.DataFrame) -> list[_Score]:
    rows = np.arange(sample.height)
    if feature.kind == "id":
        codes = np.unique(sample[f"id:{feature.name}"].to_numpy(), return_inverse=True)[1]
        return [_Score(f"feature {feature.name!r}", _by_mean_label(codes, rows, sample.height))]
    if feature.sparse:
        bags = sample[f"bag:{feature.name}"]
        lengths = bags.list.len().to_numpy().astype(np.int64)
        values = bags.explode(keep_nulls=True, empty_as_null=False).drop_nulls().to_numpy()
        codes = np.unique(values, return_inverse=True)[1]
        missing = (bags.list.first() == MISSING).fill_null(False).to_numpy()
        return [
            _Score(f"feature {feature.name!r}", _by_mean_label(codes, np.repeat(rows, lengths), sample.height)),
            _Score(f"the size of {feature.name!r}", _as_it_is(lengths.astype(np.float64))),
            _Score(f"that {feature.name!r} is missing", _as_it_is(missing.astype(np.float64))),
        ]
    block = _dense(feature, schema, sample)
    missing = block[:, -1] != 0
    name = f"feature {feature.name!r}"
    value = _as_it_is(block[:, 0], ~missing) if feature.kind == "number" else _along_the_labels(block[:, :-1], ~missing)
    return [_Score(name, value), _Score(f"that {feature.name!r} is missing", _as_it_is(missing.astype(np.float64)))]


def _dense(feature: Feature, schema: Schema, sample: pl.DataFrame) -> Floats:
    start = 0
    for other in schema.dense:
        width = 2 if other.kind == "number" else (other.dim or 0) + 1
        if other.name == feature.name:
            break
        start += width
    whole = sample["dense"].to_numpy().reshape(sample.height, -1)
    return whole[:, start : start + width].astype(np.float64)


def _as_it_is(values: Floats, present: Bools | None = None) -> Ordered:
    """A number orders rows by itself, where it is present."""

    def score(observed: Bools, labels: Floats) -> tuple[Ints, Floats]:
        rows = np.flatnonzero(observed if present is None else observed & present)
        return rows, values[rows]

    return score


def _by_mean_label(codes: Ints, rows: Ints, size: int) -> Ordered:
    """Ids order rows by the mean label of their id on the other half of the rows; a bag by the mean over its ids."""

    def score(observed: Bools, labels: Floats) -> tuple[Ints, Floats]:
        fits = observed[rows] & (rows % 2 == 0)
        count = np.bincount(codes[fits], minlength=int(codes.max(initial=0)) + 1)
        total = np.bincount(codes[fits], labels[rows[fits]], len(count))
        overall = total.sum() / max(count.sum(), 1)
        mean = (total + overall) / (count + 1)  # an id seen once says little more than all do together
        judged = np.flatnonzero(observed & (np.arange(size) % 2 == 1))
        held = np.bincount(rows, minlength=size)
        of_row = np.bincount(rows, mean[codes], size) / np.maximum(held, 1)
        return judged, np.where(held > 0, of_row, overall)[judged]

    return score


def _along_the_labels(vectors: Floats, present: Bools) -> Ordered:
    """A vector orders rows along the direction of its covariance with the label on the other half of the rows."""

    def score(observed: Bools, labels: Floats) -> tuple[Ints, Floats]:
        rows = np.flatnonzero(observed & present)
        fits, judged = rows[rows % 2 == 0], rows[rows % 2 == 1]
        if not len(fits):
            return judged, np.zeros(len(judged))
        scale = vectors[fits].std(axis=0)
        direction = vectors[fits].T @ (labels[fits] - labels[fits].mean()) / np.where(scale > 0, scale, np.inf) ** 2
        return judged, vectors[judged] @ direction

    return score


def _strength(score: _Score, observed: Bools, labels: Floats, *, binary: bool) -> float | None:
    """AUC or rank correlation, whichever way round; None where there is too little to measure."""
    rows, values = score.values(observed, labels)
    judged = labels[rows]
    if binary:
        positives = int((judged == 1).sum())
        if min(positives, len(judged) - positives) < _ENOUGH:
            return None
        ranks = _ranks(values)
        area = (ranks[judged == 1].sum() - positives * (positives - 1) / 2) / (positives * (len(judged) - positives))
        return float(max(area, 1 - area))
    if len(judged) < _ENOUGH or np.ptp(judged) == 0 or np.ptp(values) == 0:
        return None
    return float(abs(np.corrcoef(_ranks(values), _ranks(judged))[0, 1]))


def _ranks(values: Floats) -> Floats:
    """From 0, ties at their mean."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[place]


# What was fitted on more than train.


def _vocabulary(data: _Data) -> _Finding:
    statistics = Statistics.load(data.folder / "statistics")
    train = data.manifest.splits["train"].rows
    remedy = f"remove {data.folder} and prepare again"
    if statistics.train_rows != train:
        text = f"the statistics are of {statistics.train_rows:,} rows, but train has {train:,}"
        return _Finding("failed", text, remedy)
    counts = _counted(data, statistics)
    for table, found in counts.items():
        stated = np.asarray(statistics.tables[table].counts, np.int64)
        wrong = np.flatnonzero(found[2:] != stated)
        if len(wrong):
            value, at = statistics.tables[table].values[wrong[0]], wrong[0]
            text = (
                f"{len(wrong):,} of the {len(stated):,} values in the vocabulary of table {table!r} do not stand in "
                f"train as often as it says, such as {value!r}: {stated[at]:,} by the vocabulary, "
                f"{found[2 + at]:,} in train"
            )
            return _Finding("failed", text, remedy)
        dropped, unseen = statistics.tables[table].dropped, int(found[UNSEEN])
        if bool(dropped) != bool(unseen):
            text = (
                f"{unseen:,} values in train are unseen by the vocabulary of table {table!r}, which says that it left "
                f"out {dropped:,}"
            )
            return _Finding("failed", text, remedy)
    numbers = [name for name, number in statistics.numbers.items() if number.count + number.missing != train]
    if numbers:
        text = f"the moments of {_listed(map(repr, numbers))} are of another number of rows than train's {train:,}"
        return _Finding("failed", text, remedy)
    if not counts and not statistics.numbers:
        return _Finding("not applicable", "no feature has a vocabulary or moments")
    values = sum(len(table.values) for table in statistics.tables.values())
    return _Finding(
        "passed",
        f"the counts of all {values:,} values in {len(counts)} vocabularies, and the rows behind "
        f"{len(statistics.numbers)} means, are those of the {train:,} train rows",
    )


def _counted(data: _Data, statistics: Statistics) -> dict[str, Ints]:
    """Table to how often each of its rows stands in train."""
    tables = {name: table for name, table in data.schema.tables.items() if name in statistics.tables}
    counts = {name: np.zeros(statistics.tables[name].rows, np.int64) for name in tables}
    columns = {
        f"{'id' if data.schema[feature].kind == 'id' else 'bag'}:{feature}": name
        for name, table in tables.items()
        for feature in table.features
    }
    for frame in data.frames("train", list(columns)) if columns else ():
        for column, table in columns.items():
            values = frame[column]
            if values.dtype != pl.Int32:
                values = values.explode(keep_nulls=True, empty_as_null=False).drop_nulls()
            counts[table] += np.bincount(values.to_numpy(), minlength=len(counts[table]))
    return counts


# Rows that are in two splits.


def _not_in_train(split: str) -> Callable[[_Data], _Finding]:
    def look(data: _Data) -> _Finding:
        tasks = [task.name for task in data.manifest.tasks]
        wanted = ["row", "request", "item", *(f"observed:{task}" for task in tasks)]
        rows = pl.concat(list(data.frames(split, wanted)))
        by_row = _Overlap(rows["row"].to_numpy(), rows, tasks)
        by_key = _Overlap(_key(rows), rows, tasks)
        repeats = _Repeats(data.manifest.splits["train"].rows)
        for frame in data.frames("train", wanted):
            by_row.see(frame["row"].to_numpy(), frame)
            key = _key(frame)
            by_key.see(key, frame)
            repeats.see(key)
        requests = repeats.tell_rows_apart
        for overlap, what in ((by_row, "row number"), *(((by_key, "request and item"),) if requests else ())):
            if overlap.rows:
                text = (
                    f"{overlap.rows:,} of {rows.height:,} {split} rows are in train too, known by their {what}, with "
                    f"the label of {_listed(overlap.tasks)}"
                )
                return _Finding("failed", text, "take them out of one of the two files, or let recmtl split the rows")
        if requests:
            known = "row number or by request and item"
        elif repeats.seen:
            known = "row number (request and item are the same on several train rows, so they tell none apart)"
        else:
            known = "row number (the log has no request ids)"
        apart = by_row.without_label + (by_key.without_label if requests else 0)
        told = f"; {apart:,} are, with labels for other tasks" if apart else ""
        return _Finding(
            "passed", f"none of {rows.height:,} {split} rows is in train with the same label, by {known}{told}"
        )

    return look


def _key(frame: pl.DataFrame) -> Ints:
    """Request and item in one number; -1 where there is no request."""
    request = frame["request"].to_numpy() if "request" in frame.columns else np.full(frame.height, -1)
    item = frame["item"].to_numpy() if "item" in frame.columns else np.zeros(frame.height, np.int64)
    with np.errstate(over="ignore"):  # both are hashes, so this is one too
        key = (request.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ item.astype(np.uint64)) >> np.uint64(1)
    return np.where(request < 0, -1, key.astype(np.int64))


class _Repeats:
    """Whether a key stands on one train row each, told by those keys that a remainder picks."""

    def __init__(self, rows: int) -> None:
        self._every = max(1, rows // _KEYS)
        self._keys: list[Ints] = []
        self.seen = False

    def see(self, keys: Ints) -> None:
        """Keys of train rows, -1 where there is none."""
        self.seen = self.seen or bool((keys >= 0).any())
        self._keys.append(keys[(keys >= 0) & (keys % self._every == 0)])

    @property
    def tell_rows_apart(self) -> bool:
        """Whether at most one row in a thousand shares its key with another."""
        keys = np.concatenate([np.empty(0, np.int64), *self._keys])
        return self.seen and len(np.unique(keys)) >= 0.999 * len(keys)


_KEYS = 500_000
"""Keys that are held to find out whether they repeat."""


class _Overlap:
    """Rows of a split that turn up in train, with the same task observed in both.

    A key that several rows of the split share tells no row from another, so it is left out.
    """

    def __init__(self, keys: Ints, rows: pl.DataFrame, tasks: Sequence[str]) -> None:
        values, first, counts = np.unique(keys, return_index=True, return_counts=True)
        alone = (counts == 1) & (values >= 0)
        self._keys, at = values[alone], first[alone]
        self._observed = {task: rows[f"observed:{task}"].to_numpy()[at] for task in tasks}
        self._hit = np.zeros(len(at), bool)
        self._met = np.zeros(len(at), bool)
        self.tasks: list[str] = []

    def see(self, keys: Ints, frame: pl.DataFrame) -> None:
        """Rows of train."""
        if not len(self._keys):
            return
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found = self._keys[place] == keys
        self._met[place[found]] = True
        for task, observed in self._observed.items():
            same = found & frame[f"observed:{task}"].to_numpy() & observed[place]
            if same.any():
                self._hit[place[same]] = True
                self.tasks = list(dict.fromkeys([*self.tasks, task]))

    @property
    def rows(self) -> int:
        """Rows of the split whose label train has too."""
        return int(self._hit.sum())

    @property
    def without_label(self) -> int:
        """Rows that train has, but not with a label that they are judged by."""
        return int((self._met & ~self._hit).sum())


def _validation_is_test(data: _Data) -> _Finding:
    sizes = {split: data.manifest.splits[split].rows for split in ("validation", "test")}
    if sizes["validation"] != sizes["test"]:
        return _Finding("passed", f"validation has {sizes['validation']:,} rows, test {sizes['test']:,}")
    drop = {"row", "request"}
    columns = list(pq.read_schema(inside(data.folder, data.manifest.splits["test"].shards[0].path)).names)
    kept = [name for name in columns if name not in drop]
    validation, test = (
        np.sort(np.concatenate([frame.hash_rows(seed=0).to_numpy() for frame in data.frames(split, kept)]))
        for split in ("validation", "test")
    )
    different = len(np.unique(test))
    if different < _ENOUGH:
        return _Finding("not applicable", f"test has only {different} different rows, too few to tell it by")
    if np.array_equal(validation, test):
        return _Finding(
            "failed",
            f"validation and test are the same {sizes['test']:,} rows, so that a choice is judged by what made it",
            "name other files for one of them, or let recmtl split the rows",
        )
    return _Finding("passed", f"validation and test have {sizes['test']:,} rows each, which differ")


# Times.


def _times(data: _Data) -> _Finding:
    splits = data.manifest.splits
    ranges = {name: _instants(splits[name].time_range) for name in SPLITS}
    train, validation, test = (ranges[name] for name in SPLITS)
    if train is None or validation is None or test is None:
        return _Finding("not applicable", "the log has no times")
    by = data.manifest.split_by
    halves = {name: _instants(splits[name].middle_half) for name in SPLITS}
    if by in ("user", "random"):
        return _Finding("not applicable", f"the split is by {by}, not by time")
    apart = all(
        one is not None and other is not None and (one[1] < other[0] or other[1] < one[0])
        for one, other in ((halves["train"], halves["validation"]), (halves["train"], halves["test"]))
    )
    if by not in ("time", "day") and not apart:
        return _Finding(
            "not applicable",
            "the given split is not by time: the middle halves of train's times and of validation's or test's overlap",
        )
    # Of the day on which a daily pipeline judges, test also holds earlier rows whose labels became known on it alone.
    held_out = by == "day"
    pairs = [("train", train, "validation", validation)]
    if not held_out:
        pairs += [("train", train, "test", test), ("validation", validation, "test", test)]
    for one, early, other, late in pairs:
        if early[1] > late[0]:
            return _Finding(
                "failed",
                f"{one} goes on until {early[1].isoformat()}, past the beginning of {other} at {late[0].isoformat()}",
                f"give {one} only what lies before {other}",
            )
    if held_out:
        return _Finding(
            "passed",
            f"train ends at {train[1].isoformat()}, validation begins at {validation[0].isoformat()}, and test is "
            "judged by labels that became known only afterwards",
        )
    return _Finding(
        "passed",
        f"train ends at {train[1].isoformat()} before validation begins at {validation[0].isoformat()}, and that ends "
        f"before test begins at {test[0].isoformat()}",
    )


def _instants(texts: tuple[str, str] | None) -> tuple[datetime, datetime] | None:
    return None if texts is None else (datetime.fromisoformat(texts[0]), datetime.fromisoformat(texts[1]))


# Labels.


def _positives(data: _Data) -> _Finding:
    return _one_class(data, 1, "positive")


def _negatives(data: _Data) -> _Finding:
    given = Statistics.load(data.folder / "statistics").conditional_labels
    always = [
        f"{task.name} is 1 on each of the {given[task.name].observed:,} train rows on which {task.parent} is"
        for task in data.manifest.tasks
        if task.parent is not None and given[task.name].observed and given[task.name].mean == 1
    ]
    return _one_class(data, 0, "negative", always)


def _one_class(data: _Data, label: int, named: str, more: Sequence[str] = ()) -> _Finding:
    """Whether every binary task has rows of a label in every split, and every task an observed row in train."""
    lacking: list[str] = []
    unobserved: list[str] = []
    for task in data.manifest.tasks:
        for split in SPLITS:
            summary = data.manifest.splits[split].tasks[task.name]
            rows = (summary.positives or 0) if label else summary.observed - (summary.positives or 0)
            if not summary.observed:
                (lacking if split == "train" else unobserved).append(f"{task.name} has no observed row in {split}")
            elif task.kind == "binary" and not rows:
                lacking.append(f"{task.name} has no {named} among {summary.observed:,} observed rows in {split}")
    if not label:  # that nothing is observed is told once, by the other guard
        lacking = [text for text in lacking if "no observed row" not in text]
    lacking += more
    if lacking:
        remedy = "bring more rows, change `data.split`, or remove the task"
        if not label:
            remedy = "check how its label is made (`positive`, `labels`, the event log), bring more rows, or remove it"
        return _Finding("failed", _listed(lacking), remedy)
    told = f" ({_listed(unobserved)}: not judged there)" if unobserved else ""
    return _Finding("passed", f"every binary task has {named}s in every split where it is observed{told}")


_SMALLEST = float(np.finfo(np.float32).tiny)
_LARGEST = float(np.finfo(np.float32).max)


def _constant(data: _Data) -> _Finding:
    """A label with one value, or a regression's whose deviation training cannot divide by."""
    tasks = [task for task in data.manifest.tasks if task.kind != "binary"]
    if not tasks:
        return _Finding("not applicable", "every task is binary")
    low = dict.fromkeys((task.name for task in tasks), np.inf)
    high = dict.fromkeys(low, -np.inf)
    rows = dict.fromkeys(low, 0)
    for frame in data.frames("train", [f"{kind}:{name}" for name in low for kind in ("label", "observed")]):
        for name in low:
            labels = frame.filter(pl.col(f"observed:{name}"))[f"label:{name}"].to_numpy()
            if len(labels):
                low[name], high[name] = min(low[name], float(labels.min())), max(high[name], float(labels.max()))
                rows[name] += len(labels)
    spread = Statistics.load(data.folder / "statistics").labels
    guilty = []
    for task in tasks:
        name = task.name
        if rows[name] and low[name] == high[name]:
            guilty.append(f"{name} has one value, {_shown(task, low[name])}, on all {rows[name]:,} observed train rows")
        elif rows[name] and task.kind == "regression" and not _SMALLEST <= (spread[name].std or 0) <= _LARGEST:
            guilty.append(f"{name} has a standard deviation of {spread[name].std or 0:g} in train, beyond Float32")
    if guilty:
        remedy = "check the label's column and how it is read, bring other rows, or remove the task"
        return _Finding("failed", _listed(guilty), remedy)
    return _Finding("passed", f"the labels of {_listed(low)} have different values in train")


def _shown(task: Task, label: float) -> str:
    """A label as the source has it."""
    if task.classes is not None:
        return repr(task.classes[int(label)])
    return f"{label if task.levels is None else task.levels[int(label)]:g}"


def _weights(data: _Data) -> _Finding:
    """Row weights that add up to nothing, or beyond what Float32 holds."""
    weighted = [task for task in data.manifest.tasks if task.weight_column is not None]
    if not weighted:
        return _Finding("not applicable", "no task has a weight column")
    guilty = []
    for split in SPLITS:
        total = {task.name: np.zeros(2) for task in weighted}
        columns = [f"{kind}:{task.name}" for task in weighted for kind in ("label", "observed", "weight")]
        for frame in data.frames(split, columns):
            for name, sums in total.items():
                rows = frame.filter(pl.col(f"observed:{name}"))
                weight, positive = rows[f"weight:{name}"].to_numpy().astype(np.float64), rows[f"label:{name}"] == 1
                sums += weight[~positive.to_numpy()].sum(), weight[positive.to_numpy()].sum()
        for task in weighted:
            summary, sums = data.manifest.splits[split].tasks[task.name], total[task.name]
            where = f"on the {summary.observed:,} observed rows of {split}"
            column = f"column {task.weight_column!r}, the weights of {task.name},"
            if not summary.observed:
                continue
            if not sums.sum():
                guilty.append(f"{column} is 0 {where}")
            elif not sums.sum() <= _LARGEST:
                guilty.append(f"{column} adds up to {sums.sum():g} {where}, beyond Float32")
            elif task.kind == "binary" and split == "train":
                positives = summary.positives or 0
                for count, weight, named in (
                    (summary.observed - positives, sums[0], "negative"),
                    (positives, sums[1], "positive"),
                ):
                    if count and not weight:
                        guilty.append(f"{column} is 0 on all {count:,} {named} rows of train")
    if guilty:
        return _Finding("failed", _listed(guilty), "mend the column, or leave `weight_column` out")
    names = _listed(task.name for task in weighted)
    return _Finding("passed", f"the weights of {names} add up to a finite, positive sum in every split")


_SIGNIFICANT = 0.001
_NOTEWORTHY = 0.01


def _invalid(data: _Data) -> _Finding:
    """A label that is unreadable more often in one split than in another: it is another label there."""
    judged, guilty = 0, []
    for task in data.manifest.tasks:
        counts = {split: _given(data.manifest.splits[split].tasks[task.name]) for split in SPLITS}
        for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
            (bad, given), (bad_there, given_there) = counts[one], counts[other]
            if not (bad or bad_there) or not given or not given_there:
                continue
            judged += 1
            shares = bad / given, bad_there / given_there
            if abs(shares[0] - shares[1]) < _NOTEWORTHY:
                continue
            p = _fisher(bad, given, bad_there, given_there)
            if p < _SIGNIFICANT:
                guilty.append(
                    f"{shares[0]:.2%} of the {given:,} labels of {task.name} are invalid in {one} and "
                    f"{shares[1]:.2%} of {given_there:,} in {other} (Fisher's exact test, p = {p:.1g})"
                )
    if guilty:
        return _Finding(
            "failed",
            _listed(guilty),
            "find out what changed in the label's column, and read it alike throughout (`positive`, `labels`)",
        )
    if not judged:
        return _Finding("passed", "no label is invalid in any split")
    return _Finding("passed", "no task's labels are invalid noticeably more often in one split than in another")


def _given(summary: TaskSummary) -> tuple[int, int]:
    """Labels that are invalid, and labels that are given and mature."""
    masked = {reason: count for reason, count in summary.masked.items() if reason not in ("missing", "immature")}
    return masked.get("invalid", 0), summary.observed + sum(masked.values())


def _fisher(bad: int, given: int, bad_there: int, given_there: int) -> float:
    from scipy.stats import fisher_exact  # takes half a second to import, and is rarely needed

    table = np.array([[bad, given - bad], [bad_there, given_there - bad_there]])
    return float(fisher_exact(table).pvalue)


def _listed(parts: Iterable[str]) -> str:
    """At most three of them."""
    every = list(parts)
    return "; ".join(every[:3]) + (f" and {len(every) - 3} more" if len(every) > 3 else "")


GUARDS: Mapping[str, Callable[[_Data], _Finding]] = {
    "label_among_features": _by_name,
    "feature_tells_label": _by_value,
    "vocabulary_beyond_train": _vocabulary,
    "validation_rows_in_train": _not_in_train("validation"),
    "test_rows_in_train": _not_in_train("test"),
    "validation_equals_test": _validation_is_test,
    "overlapping_times": _times,
    "task_without_positives": _positives,
    "task_without_negatives": _negatives,
    "constant_label": _constant,
    "degenerate_weights": _weights,
    "invalid_labels_differ": _invalid,
}
"""Name to what it looks at, in the order in which they are told."""
