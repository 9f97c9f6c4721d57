"""Which labels count: parsed labels, and for each a mask with its reason.

In: raw rows of one split. Out: the same rows with ``label:TASK``, ``observed:TASK``, ``weight:TASK`` and
``masked:TASK``, the first of these reasons that holds (null where the label counts):

================== =====================================================================================================
``immature``       the impression is so late that the label's window had not closed, whatever happened in it; or, for a
                   label that is given, the value became known only after the labels were looked at
``missing``        there is no label
``invalid``        not 0, 1, true or false, or what ``positive`` and ``labels`` of the task say instead; not one of the
                   levels or classes; not a number that is finite as Float32; outside the range
``not_applicable`` the task in ``observed.when`` is not observed or not positive there, or the parent is not observed
``contradiction``  positive under a negative parent
``known_before``   the day of evaluation alone: the label was known before that day, so it judges nothing new
================== =====================================================================================================
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from recmtl.errors import UserError
from recmtl.etl.encode import canonical, number
from recmtl.manifest import TaskSummary
from recmtl.statistics import LabelStatistics
from recmtl.tasks import Task, Tasks, text_of

__all__ = ["REASONS", "LabelCounts", "LabelTimes", "encode_labels", "known_since", "labels_as_of", "read_label"]

REASONS = ("immature", "missing", "invalid", "not_applicable", "contradiction", "known_before")
_REASON = pl.Enum(REASONS)
_LARGEST = float(np.finfo(np.float32).max)
_EXACT = 2**53
"""Whole numbers below it are exact as Float64."""
_SPELLINGS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}
"""Of YAML's booleans, in lower case."""


@dataclass(frozen=True)
class LabelTimes:
    """When labels become known, and when they are looked at, for the rows of one split."""

    time: str | None = None
    """The impression time's column."""
    maturity: Mapping[str, timedelta] = field(default_factory=dict)
    """Label column → time from the impression until the label is known; none needed where absent."""
    known_at: Mapping[str, str] = field(default_factory=dict)
    """Label column → column with the instant at which a given value became known."""
    observed_until: datetime | None = None
    """Windows must have closed by then; None: they all have."""
    known_by: datetime | None = None
    """Given values must have been known by then; None: they all were."""
    unknown_at: datetime | None = None
    """Labels that were known by then already do not count; None: they do."""


def labels_as_of(times: LabelTimes, validation_start: datetime | None) -> LabelTimes:
    """The same for train rows, whose labels are looked at when validation begins (None: when the log ends)."""
    if validation_start is None:
        return times
    until = validation_start if times.observed_until is None else min(times.observed_until, validation_start)
    return LabelTimes(times.time, times.maturity, times.known_at, until, validation_start)


def encode_labels(frame: pl.LazyFrame, tasks: Tasks, times: LabelTimes) -> pl.LazyFrame:
    """Add the label, mask, reason and weight columns.

    Args:
        frame: raw rows of one split, with the label columns of all tasks.
        tasks: the tasks.
        times: when labels become known and are looked at.

    Raises:
        UserError: a label column that can hold no label (lists); on collecting, a weight that is negative or no number.
    """
    types = frame.collect_schema()
    for task in tasks.parents_first():
        value, missing = read_label(task, types[task.label])
        rules = [(_immature(task, times), "immature"), (missing, "missing"), (value.is_null(), "invalid")]
        if task.observed is not None:
            other = task.observed.when
            applies = pl.col(f"observed:{other}") & (pl.col(f"label:{other}") == 1)
            rules.append((~applies, "not_applicable"))
        if task.parent is not None:
            rules.append((~pl.col(f"observed:{task.parent}"), "not_applicable"))
            rules.append(((pl.col(f"label:{task.parent}") == 0) & (value == 1), "contradiction"))
        reason = pl.coalesce(*(pl.when(rule).then(pl.lit(name, _REASON)) for rule, name in rules))
        frame = frame.with_columns(reason.alias(f"masked:{task.name}"))
        observed = pl.col(f"masked:{task.name}").is_null()
        label = pl.when(observed).then(value).otherwise(0.0).cast(pl.Float32)
        frame = frame.with_columns(label.alias(f"label:{task.name}"), observed.alias(f"observed:{task.name}"))
    if times.unknown_at is not None:
        frame = _only_new(frame, tasks, times)
    return frame.with_columns(*(_weight(task, types) for task in tasks.values() if task.weight_column is not None))


def known_since(task: Task, times: LabelTimes) -> pl.Expr:
    """Whether the row's label became known only after ``times.unknown_at``, whatever it is.

    A label that is given became known at its instant, one that a window closes when that closed, any other with the
    impression.
    """
    assert times.unknown_at is not None
    assert times.time is not None
    since = pl.lit(times.unknown_at, pl.Datetime("us", "UTC"))
    if task.label in times.known_at:
        return (pl.col(times.known_at[task.label]) > since).fill_null(False)
    if task.label in times.maturity:
        return pl.col(times.time) + pl.lit(times.maturity[task.label], pl.Duration("us")) > since
    return pl.col(times.time) >= since


def _only_new(frame: pl.LazyFrame, tasks: Tasks, times: LabelTimes) -> pl.LazyFrame:
    """Mask what was known before. A parent stays where a child of it counts: the child's figures given it need both."""
    counts = {task.name: known_since(task, times) for task in tasks.values()}
    for task in reversed(list(tasks.parents_first())):
        if task.parent is not None:
            counts[task.parent] = counts[task.parent] | counts[task.name]
    for name, counted in counts.items():
        known = pl.col(f"observed:{name}") & ~counted
        frame = frame.with_columns(
            pl.when(known)
            .then(pl.lit("known_before", _REASON))
            .otherwise(pl.col(f"masked:{name}"))
            .alias(f"masked:{name}"),
            (pl.col(f"observed:{name}") & counted).alias(f"observed:{name}"),
            pl.when(known).then(0.0).otherwise(pl.col(f"label:{name}")).cast(pl.Float32).alias(f"label:{name}"),
        )
    return frame


def _immature(task: Task, times: LabelTimes) -> pl.Expr:
    immature = pl.lit(False)
    if task.label in times.maturity and times.time is not None and times.observed_until is not None:
        closed = pl.col(times.time) + pl.lit(times.maturity[task.label], pl.Duration("us"))
        immature = immature | (closed > pl.lit(times.observed_until, pl.Datetime("us", "UTC")))
    if task.label in times.known_at and times.known_by is not None:
        known = pl.col(times.known_at[task.label])
        immature = immature | (known > pl.lit(times.known_by, pl.Datetime("us", "UTC"))).fill_null(False)
    return immature


def read_label(task: Task, dtype: pl.DataType) -> tuple[pl.Expr, pl.Expr]:
    """How a task reads its label's column.

    Args:
        task: the task.
        dtype: the column's type.

    Returns:
        The label as :class:`recmtl.batch.Batch` has it, null where the value is missing or invalid; and whether the
        value is missing: null, NaN, blank text, or a value that ``labels`` maps to null.

    Raises:
        UserError: a type that holds no labels, such as lists.
    """
    column = pl.col(task.label)
    try:
        text = canonical(column, dtype)
        value = number(column, dtype)
    except TypeError as error:
        raise UserError(f"tasks.{task.name}.label: column {task.label!r} is {dtype}, which holds no label") from error
    if dtype == pl.String:
        text = pl.when(text.str.strip_chars() != "").then(text.str.strip_chars())
    missing = text.is_null()
    if task.labels is not None:
        # NaN stands for the missing label while the values are looked up.
        named = {name: np.nan if label is None else _label(task, label) for name, label in task.labels.items()}
        found = _named(named, text, value, dtype)
        return found.fill_nan(None), missing | found.is_nan().fill_null(False)
    if task.positive is not None:
        return _positive(task, text, value, dtype), missing
    if task.kind == "binary":
        words = {"true": 1.0, "false": 0.0}
        word = text.str.to_lowercase().replace_strict(words, default=None, return_dtype=pl.Float64)
        value = pl.when(value.is_in([0.0, 1.0])).then(value).otherwise(word)
    elif task.kind == "regression":
        low, high = task.range or (-_LARGEST, _LARGEST)
        value = pl.when(value.is_between(max(low, -_LARGEST), min(high, _LARGEST))).then(value)
    elif task.kind == "ordinal":
        assert task.levels is not None
        # Compared as float32, so that a level like 0.1 is found in a float32 column.
        levels = pl.Series(task.levels, dtype=pl.Float32)
        index = pl.Series(range(len(levels)), dtype=pl.Float64)
        value = value.cast(pl.Float32).replace_strict(levels, index, default=None, return_dtype=pl.Float64)
    else:
        assert task.classes is not None
        classes = dict(zip(task.classes, map(float, range(len(task.classes))), strict=True))
        # Text that is a number counts as that number too: a column of 1.0 and 2.0 is text where one value is no number.
        names = (text, canonical(value, pl.Float64())) if dtype == pl.String else (text,)
        value = pl.coalesce(name.replace_strict(classes, default=None, return_dtype=pl.Float64) for name in names)
    return value, missing


def _label(task: Task, label: float | str) -> float:
    """A label that ``labels`` maps to, as a batch has it."""
    if task.kind == "multiclass":
        assert task.classes is not None
        return float(task.classes.index(text_of(label)))
    number = float(label)
    return float(task.levels.index(number)) if task.levels is not None else number


def _positive(task: Task, text: pl.Expr, value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """1 for the values that ``positive`` means, 0 for every other valid one."""
    if task.comparison is not None:
        operator, bound = task.comparison
        other = pl.lit(bound, pl.Float32 if dtype == pl.Float32 else pl.Float64)
        mine = value.cast(pl.Float32) if dtype == pl.Float32 else value
        holds = {
            ">": mine > other,
            ">=": mine >= other,
            "<": mine < other,
            "<=": mine <= other,
            "==": mine == other,
            "!=": mine != other,
        }
        return holds[operator].cast(pl.Float64)
    assert isinstance(task.positive, tuple)
    hit = _named(dict.fromkeys(task.positive, 1.0), text, value, dtype)
    valid = value if all(_as_number(name) is not None for name in task.positive) else text
    return pl.when(hit.is_not_null() | valid.is_not_null()).then(hit.fill_null(0.0))


def _named(labels: Mapping[str, float], text: pl.Expr, value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """The label of each value that is named, null for others: by its text, as a number, or as a boolean of YAML."""

    def looked_up(by: pl.Expr, table: Mapping[Any, float], kind: pl.DataType) -> pl.Expr:
        names = pl.Series(list(table), dtype=kind)
        codes = pl.Series(list(table.values()), dtype=pl.Float64)
        return by.replace_strict(names, codes, default=None, return_dtype=pl.Float64)

    found = [looked_up(text, labels, pl.String())]
    numbers: dict[float, float] = {}
    for name, label in labels.items():
        as_number = _as_number(name)
        if as_number is not None and abs(as_number) < _EXACT:
            if dtype == pl.Float32:
                as_number = float(np.float32(as_number))
            numbers.setdefault(as_number, label)
    if numbers:
        kind = pl.Float32() if dtype == pl.Float32 else pl.Float64()
        found.append(looked_up(value.cast(kind), numbers, kind))
    words = {word: labels[name] for word, name in _SPELLINGS.items() if name in labels}
    if words:
        found.append(looked_up(text.str.to_lowercase(), words, pl.String()))
    return pl.coalesce(found)


def _as_number(name: str) -> float | None:
    try:
        found = float(name)
    except ValueError:
        return None
    return found if np.isfinite(found) else None


def _weight(task: Task, types: pl.Schema) -> pl.Expr:
    assert task.weight_column is not None
    dtype = types[task.weight_column]
    column = pl.col(task.weight_column)
    try:
        value, text = number(column, dtype), canonical(column, dtype)
    except TypeError as error:
        raise UserError(f"tasks.{task.name}.weight_column: {task.weight_column!r} is {dtype}, no number") from error
    # What is stated and is no weight becomes -1, which the counting refuses.
    stated = (
        pl.when(value.is_between(0, _LARGEST)).then(value).otherwise(pl.when(text.is_null()).then(1.0).otherwise(-1.0))
    )
    return stated.cast(pl.Float32).alias(f"weight:{task.name}")


class LabelCounts:
    """Label statistics of one split, summed over its parts in order: the same, bit for bit, each time."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self.rows = 0
        self._masked: dict[str, dict[str, int]] = {name: {} for name in tasks}
        self._all = {name: _LabelSums(task) for name, task in tasks.items()}
        self._conditional = {name: _LabelSums(task) for name, task in tasks.items() if task.parent is not None}

    def add(self, frame: pl.DataFrame) -> None:
        """Add the rows of a part, as :func:`encode_labels` made them.

        Raises:
            UserError: a weight that is negative or no number.
        """
        self.rows += frame.height
        for name, task in self._tasks.items():
            if task.weight_column is not None and (frame[f"weight:{name}"] < 0).any():
                wrong = frame.filter(pl.col(f"weight:{name}") < 0)
                raise UserError(
                    f"tasks.{name}.weight_column: {task.weight_column!r} must hold numbers of at least 0, but "
                    f"{wrong.height} rows hold others, such as {wrong[task.weight_column][0]!r}"
                )
            for reason, count in frame[f"masked:{name}"].drop_nulls().value_counts().iter_rows():
                self._masked[name][reason] = self._masked[name].get(reason, 0) + count
            observed = frame.filter(pl.col(f"observed:{name}"))
            self._all[name].add(observed[f"label:{name}"].to_numpy())
            if task.parent is not None:
                given = observed.filter(pl.col(f"label:{task.parent}") == 1)
                self._conditional[name].add(given[f"label:{name}"].to_numpy())

    def summaries(self) -> dict[str, TaskSummary]:
        """What the manifest says of every task."""
        found = {}
        for name, task in self._tasks.items():
            sums = self._all[name]
            found[name] = TaskSummary(
                observed=sums.count,
                positives=round(sums.mean * sums.count) if task.kind == "binary" else None,
                mean=None if task.kind == "multiclass" else sums.statistics().mean,
                masked={reason: self._masked[name][reason] for reason in REASONS if reason in self._masked[name]},
            )
        return found

    def statistics(self) -> dict[str, LabelStatistics]:
        """Over the observed rows of every task."""
        return {name: sums.statistics() for name, sums in self._all.items()}

    def conditional_statistics(self) -> dict[str, LabelStatistics]:
        """Over the observed rows with a positive parent, of the tasks with a parent."""
        return {name: sums.statistics() for name, sums in self._conditional.items()}


class _LabelSums:
    def __init__(self, task: Task) -> None:
        self._kind = task.kind
        self._levels = None if task.levels is None else np.asarray(task.levels, np.float64)
        choices = task.levels or task.classes or ()
        self._chosen = np.zeros(len(choices), np.int64)
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0

    def add(self, labels: np.ndarray) -> None:
        """Fold in a part's labels: count, mean and squared deviations (Chan et al. 1979)."""
        if not len(labels):
            return
        values = labels.astype(np.float64)
        if len(self._chosen):
            self._chosen += np.bincount(labels.astype(np.int64), minlength=len(self._chosen))
        if self._levels is not None:
            values = self._levels[labels.astype(np.int64)]
        mean = float(values.mean())
        squares = float(np.square(values - mean).sum())
        total = self.count + len(values)
        self._squares += squares + (mean - self.mean) ** 2 * self.count * len(values) / total
        self.mean += (mean - self.mean) * len(values) / total
        self.count = total

    def statistics(self) -> LabelStatistics:
        """The sums as statistics; a multiclass label has no mean."""
        if not self.count:
            return LabelStatistics(0, None, None, ())
        distribution = tuple((self._chosen / self.count).tolist())
        if self._kind == "multiclass":
            return LabelStatistics(self.count, None, None, distribution)
        return LabelStatistics(self.count, self.mean, float(np.sqrt(self._squares / self.count)), distribution)
