"""Which rows train, which validate, which test: decided before anything is fitted.

In: the labelled log's rows. Out: a :class:`SplitPlan`, whose expression names the split of any row by itself, so that
neither the order nor the partitioning of the rows matters.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, model_validator

from recmtl.errors import UserError
from recmtl.etl.encode import canonical, stable_hash
from recmtl.manifest import ROW, SPLITS, Columns
from recmtl.settings import Settings

__all__ = ["SPLIT_TYPE", "SplitConfig", "SplitPlan", "mixed", "plan_split"]

SPLIT_TYPE = pl.Enum(SPLITS)

_MANY = 1_000_000
"""From so many rows or users on, hashes alone keep the shares, to about a thousandth."""


class SplitConfig(Settings):
    """How rows are divided into train, validation and test."""

    by: Literal["auto", "time", "user", "random", "given"] = "auto"
    """time: the last instants test, those before them validate, and no instant is cut in two; user: every user's rows
    are in one split; random: row by row; given: the source says (`paths`), or `column` does. auto: given where the
    source says, else time where there is a time column, else random."""
    validation: float = Field(default=0.15, gt=0, lt=1)
    """Share of the rows (user: of the users; given files without validation: of the train rows) that validate."""
    test: float = Field(default=0.15, gt=0, lt=1)
    """Share of the rows (user: of the users) that test; not read when the split is given."""
    seed: int = Field(default=0, ge=0)
    """Seed of user and random splits, and of the order of the train rows on disk."""
    column: str | None = None
    """given: a column of the source that holds train, validation or test."""
    labels_as_of: Literal["validation_start", "log_end"] = "validation_start"
    """When train labels are looked at. validation_start: as they were known at the instant at which validation begins,
    which is what one would have had (where train and validation overlap in time, as by user and at random, there is
    no such instant and it is log_end); log_end: as known at the end of the log."""

    @model_validator(mode="after")
    def _shares_leave_some(self) -> "SplitConfig":
        if self.validation + self.test >= 1:
            raise ValueError("split: `validation` and `test` together leave no rows to train on; lower one")
        if self.column is not None and self.by not in ("auto", "given"):
            raise ValueError(f"split.column belongs to `by: given`, not {self.by}")
        return self


@dataclass(frozen=True)
class SplitPlan:
    """A decided split."""

    by: str
    """time, user, random or given."""
    split: pl.Expr
    """The row's split, as :data:`SPLIT_TYPE`; reads the raw columns and :data:`~recmtl.manifest.ROW`."""
    validation_start: datetime | None
    """The instant (UTC) before which every train row lies and from which on validation lies; None where they overlap or
    there is no time."""
    warnings: tuple[str, ...] = field(default=())


def plan_split(
    frame: pl.LazyFrame, columns: Columns, config: SplitConfig, *, split_column: str | None = None
) -> SplitPlan:
    """Decide the split.

    Args:
        frame: the labelled log's rows.
        columns: its key columns.
        config: how to split.
        split_column: the source's own column with train, validation and test, if it has one.

    Raises:
        UserError: the split asks for a column that is not there, or would leave a split without rows.
    """
    types = frame.collect_schema()
    given = config.column or split_column
    by = config.by
    if by == "auto":
        by = "given" if given is not None else "time" if columns.time is not None else "random"
    if by != "given" and split_column is not None:
        raise UserError(
            f"data.split.by: {by}, but the source's files give the split; set `by: given`, or name one `path`"
        )
    if by == "time":
        return _by_time(frame, columns, config)
    if by == "user":
        return _by_user(frame, types, columns, config)
    if by == "random":
        share = _row_share(config.seed)
        ends = _cuts(frame.select(share), config.test, config.validation)
        return SplitPlan("random", _by_share(share, *ends), None)
    if given is None:
        raise UserError("data.split.by: given, but neither the source's `paths` nor `data.split.column` gives a split")
    if given not in types:
        raise UserError(f"data.split.column: the source has no column {given!r}")
    return _given(frame, columns, config, given)


def mixed(row: pl.Expr, seed: int, stream: int) -> pl.Expr:
    """A row number scrambled into a uniform UInt64 (SplitMix64, Steele et al. 2014); distinct for distinct rows.

    Streams of one seed are independent of each other: one divides the rows, another orders them.
    """
    function = partial(_mixed, seed=seed, stream=stream)
    return row.map_batches(function, return_dtype=pl.UInt64, is_elementwise=True)


def _mixed(row: pl.Series, seed: int, stream: int) -> pl.Series:
    golden = np.uint64(0x9E3779B97F4A7C15)
    # Polars hands in nulls for rows that a `when` around this does not ask for.
    with np.errstate(over="ignore"):
        start = _finalised(_finalised(np.asarray([seed], np.uint64) + golden) + np.uint64(stream))
        z = _finalised(row.fill_null(0).to_numpy().astype(np.uint64) * golden + start)
    return pl.Series(row.name, z, dtype=pl.UInt64)


def _finalised(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _row_share(seed: int) -> pl.Expr:
    return mixed(pl.col(ROW), seed, 0).cast(pl.Float64) / 2.0**64


def _by_share(share: pl.Expr, test: float, rest: float) -> pl.Expr:
    return _named(share < test, share < rest)


def _cuts(shares: pl.LazyFrame, *parts: float) -> list[float]:
    """Below which of the different shares each part ends, one part after the other.

    The parts hold the numbers asked for, rounded, but at least one each, and leave one.
    """
    ordered = shares.head(_MANY).collect(engine="streaming").to_series().sort()
    if not len(parts) < len(ordered) < _MANY:
        return [sum(parts[: number + 1]) for number in range(len(parts))]
    ends, end = [], 0
    for number, part in enumerate(parts):
        end += min(max(round(part * len(ordered)), 1), len(ordered) - end - (len(parts) - number))
        ends.append(float(ordered[end]))
    return ends


def _named(is_test: pl.Expr, is_validation: pl.Expr) -> pl.Expr:
    return pl.when(is_test).then(_name("test")).when(is_validation).then(_name("validation")).otherwise(_name("train"))


def _name(split: str) -> pl.Expr:
    return pl.lit(split, SPLIT_TYPE)


def _by_user(frame: pl.LazyFrame, types: pl.Schema, columns: Columns, config: SplitConfig) -> SplitPlan:
    if columns.user is None:
        raise UserError("data.split.by: user, but the source names no user column")
    text = canonical(pl.col(columns.user), types[columns.user])
    function = partial(stable_hash, key=f"recmtl.split.{config.seed}")
    share = text.map_batches(function, return_dtype=pl.UInt64, is_elementwise=True).cast(pl.Float64) / 2.0**64
    # A row without a user is a user of its own.
    share = pl.coalesce(share, _row_share(config.seed))
    ends = _cuts(frame.select(share).unique(), config.test, config.validation)
    return SplitPlan("user", _by_share(share, *ends), None)


def _by_time(frame: pl.LazyFrame, columns: Columns, config: SplitConfig) -> SplitPlan:
    if columns.time is None:
        raise UserError("data.split.by: time, but the source names no time column; name it, or split by user or random")
    instants, before = _instants(frame, columns.time)
    if len(instants) < 3:
        raise UserError(
            f"data.split.by: time, but column {columns.time!r} holds only {len(instants)} different instants and three "
            "splits need three; split by user or random"
        )
    total = before[-1]
    first = _nearest(before, (1 - config.validation - config.test) * total, 1, len(instants) - 1)
    second = _nearest(before, (1 - config.test) * total, first + 1, len(instants))
    start = _in_utc(instants[first])
    time = pl.col(columns.time)
    split = _named(time >= _instant(_in_utc(instants[second])), time >= _instant(start))
    return SplitPlan("time", split, start)


def _given(frame: pl.LazyFrame, columns: Columns, config: SplitConfig, column: str) -> SplitPlan:
    text = pl.col(column).cast(pl.String).str.strip_chars().str.to_lowercase()
    found = frame.group_by(text.alias("split")).len().collect(engine="streaming")
    names = set(found["split"].to_list())
    other = sorted(str(name) for name in names - set(SPLITS))
    if other:
        raise UserError(
            f"data.split: column {column!r} must hold train, validation or test in every row, but holds {other[0]!r}"
        )
    split = text.cast(SPLIT_TYPE)
    is_train = text == "train"
    if "validation" not in names and "train" in names:
        return _carved(frame.filter(is_train), columns, config, split, is_train)
    if columns.time is None:
        return SplitPlan("given", split, None)
    time = pl.col(columns.time)
    begin = frame.select(train=time.filter(is_train).max(), validation=time.filter(text == "validation").min()).collect(
        engine="streaming"
    )
    last, start = begin["train"][0], begin["validation"][0]
    if last is None or start is None:
        return SplitPlan("given", split, None)
    if last <= start:
        return SplitPlan("given", split, _in_utc(start))
    warning = (
        f"the given train rows go on until {last}, past the beginning of validation at {start}, so train labels are "
        "taken as known at the end of the log (data.split.labels_as_of: log_end)"
    )
    return SplitPlan("given", split, None, (warning,) if config.labels_as_of == "validation_start" else ())


def _carved(train: pl.LazyFrame, columns: Columns, config: SplitConfig, split: pl.Expr, is_train: pl.Expr) -> SplitPlan:
    """Validation out of the given train rows: their last instants, or random rows where there is no time."""
    if columns.time is not None:
        instants, before = _instants(train, columns.time)
        if len(instants) >= 2:
            cut = _in_utc(instants[_nearest(before, (1 - config.validation) * before[-1], 1, len(instants))])
            carved = is_train & (pl.col(columns.time) >= _instant(cut))
            return SplitPlan("given", pl.when(carved).then(_name("validation")).otherwise(split), cut)
    share = _row_share(config.seed)
    carved = is_train & (share < _cuts(train.select(share), config.validation)[0])
    return SplitPlan("given", pl.when(carved).then(_name("validation")).otherwise(split), None)


def _instants(frame: pl.LazyFrame, time: str) -> tuple[pl.Series, npt.NDArray[np.int64]]:
    """The different instants, rising, and how many rows lie before each (with one entry more: all rows)."""
    counts = frame.group_by(pl.col(time).alias("time")).len().sort("time").collect(engine="streaming")
    if counts["time"].null_count():
        raise UserError(f"data.split.by: time, but column {time!r} is missing in some rows; split by user or random")
    return counts["time"], np.concatenate([[0], np.cumsum(counts["len"].to_numpy(), dtype=np.int64)])


def _nearest(before: npt.NDArray[np.int64], target: float, low: int, high: int) -> int:
    """The instant in [low, high) whose beginning cuts the rows nearest to ``target``."""
    return low + int(np.argmin(np.abs(before[low:high] - target)))


def _instant(value: datetime) -> pl.Expr:
    return pl.lit(value, pl.Datetime("us", "UTC"))


def _in_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
