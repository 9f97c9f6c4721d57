"""What cuts a split's rows into slices, and what groups them for ranking: codes, row for row.

In: a prepared dataset. Out: :class:`SliceColumn` objects and arrays of codes in the order of the split's rows, which is
that of its scored rows. Raw columns are read part by part, a few at a time; what is kept is four bytes a row and cut,
in files where a folder for them is given.

Who is new is read from train's own rows, whose ``group`` and ``item`` are numbers of the keys themselves: a vocabulary
drops who is rare, and a rare user is not a new one.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from recmtl.errors import RunError, UserError
from recmtl.etl.encode import canonical, number
from recmtl.manifest import ROW, Manifest, Shard, inside
from recmtl.schema import Feature
from recmtl.settings import Settings
from recmtl.statistics import Statistics

__all__ = [
    "MISSING_VALUE",
    "OTHER_VALUES",
    "ItemCodes",
    "SliceBy",
    "SliceColumn",
    "SlicesConfig",
    "item_codes",
    "key_codes",
    "ranking_groups",
    "slice_columns",
]

Codes = NDArray[np.int32]
Key = Literal["user", "item", "request"]

MISSING_VALUE = "(missing)"
"""The slice of rows whose value is missing, where there are any."""
OTHER_VALUES = "(other)"
"""The slice of all values that are not kept, where there are any."""

_AUTOMATIC_DAYS = 14
"""Up to so many days, time is cut by day."""
_AUTOMATIC_VALUES = 100
"""Up to so many values in train's vocabulary, an id feature cuts the rows unasked."""
_SKETCH = 65_536
"""Order statistics kept of a part, for the quantiles of a split: exact for parts that hold no more values; else a cut
is off by less than 1 / 65,536 of the rows."""
_COLUMNS_AT_ONCE = 8
"""Cuts that are made in one reading of the parts."""


class SliceBy(Settings):
    """A raw column, and how its values cut the rows."""

    column: str
    """The column's name in the source."""
    by: Literal["auto", "values", "quantiles"] = "auto"
    """values: a slice for each of the most frequent ones; quantiles: parts of equal size of a number; auto: quantiles
    for a number that takes more values than are kept, else values. A list is cut by how many values it holds."""
    quantiles: int | None = Field(default=None, ge=2, le=100)
    """In place of ``slices.quantiles``."""
    most_values: int | None = Field(default=None, ge=1, le=1000)
    """In place of ``slices.most_values``."""


class SlicesConfig(Settings):
    """Which parts of the rows are judged by themselves."""

    columns: Literal["auto"] | tuple[str | SliceBy, ...] = "auto"
    """Raw columns that cut the rows: names, or a mapping with `column` and how. auto: those of ``data.keep``, then the
    numbers and the id features with few values in the order of the config, up to ``most_cuts``."""
    most_cuts: int = Field(default=12, ge=0, le=100)
    """auto: with the cuts below, at most so many."""
    quantiles: int = Field(default=4, ge=2, le=100)
    """Parts into which a number is cut: at train's quantiles for a feature, else at those of the evaluated rows."""
    most_values: int = Field(default=12, ge=1, le=1000)
    """Values of a column that have a slice each, the most frequent ones; all others share one."""
    new_users: bool = True
    """Cut by whether train has rows of the user; left out where the data name no users."""
    new_items: bool = True
    """Cut by whether train has rows of the item; left out where the data name no items."""
    popularity: int = Field(default=3, ge=0, le=100)
    """Bands of the item's rows in train, each with about the same share of train's rows; 0: no such cut."""
    time: Literal["auto", "day", "parts", "none"] = "auto"
    """day: by day, in UTC; parts: the rows' time span in parts of the same length; auto: by day up to two weeks."""
    time_parts: int = Field(default=4, ge=2, le=100)
    """How many parts."""
    small_rows: int = Field(default=500, ge=1)
    """A slice with fewer rows on which a target is observed is marked small."""
    small_users: int = Field(default=30, ge=1)
    """With fewer users likewise."""
    small_positives: int = Field(default=20, ge=1)
    """With fewer positive, or fewer negative, rows of a binary target likewise."""
    sample_rows: int = Field(default=1_000_000, ge=1000)
    """Splits that are too large for memory: a slice of more rows is judged on about so many, those of a sample of its
    users; rows, users and positives are those of all of it."""


@dataclass(frozen=True)
class SliceColumn:
    """What cuts N rows."""

    name: str
    labels: tuple[str, ...]
    """What the slices are called, in the order in which they are shown; one may have no row."""
    codes: Codes
    """(N,): position of the row's slice in ``labels``; -1: in no slice."""


@dataclass(frozen=True)
class ItemCodes:
    """The items of N rows, and how often train shows them."""

    codes: Codes
    """(N,): from 0; -1 where the item is missing."""
    counts: NDArray[np.int64]
    """(items of these rows,): train's rows of each; 0 for a new one."""
    train: NDArray[np.int64]
    """(items of train,): train's rows of each, rising."""


def slice_columns(
    folder: Path,
    manifest: Manifest,
    split: str,
    config: SlicesConfig,
    statistics: Statistics,
    *,
    work: Path | None = None,
) -> tuple[SliceColumn, ...]:
    """The cuts of a split.

    Args:
        folder: the prepared dataset's.
        manifest: the prepared dataset's.
        split: validation or test, whose raw rows are kept.
        config: which.
        statistics: fitted on this dataset's train.
        work: a folder for the codes, which are then mapped from files there; None: in memory.

    Raises:
        UserError: a column that the split does not keep, or that holds no single values.
        RunError: a shard cannot be read.
    """
    rows = _Rows(folder, manifest, split)
    cuts = [*_key_cuts(rows, config), *_time_cut(rows, config)]
    taken = {cut.name for cut in cuts}
    chosen = _chosen(rows, config, statistics, len(cuts))
    for by in chosen:
        name = by.column if by.column not in taken else f"column {by.column}"
        cuts.append(_column_cut(rows, name, by, config, statistics))
    arrays = [_codes(rows.rows, work, f"slice-{number}") for number in range(len(cuts))]
    for first in range(0, len(cuts), _COLUMNS_AT_ONCE):
        together = list(zip(cuts, arrays, strict=True))[first : first + _COLUMNS_AT_ONCE]
        needed = list(dict.fromkeys(column for cut, _ in together for column in cut.needs))
        for start, frame in rows.parts(needed):
            for cut, codes in together:
                codes[start : start + frame.height] = cut.codes(frame)
    return tuple(SliceColumn(cut.name, cut.labels, codes) for cut, codes in zip(cuts, arrays, strict=True))


def key_codes(folder: Path, manifest: Manifest, split: str, which: Key, *, work: Path | None = None) -> Codes:
    """(N,) the rows' users, items or requests as numbers from 0, in the order of the split; -1 where missing.

    Args:
        folder: the prepared dataset's.
        manifest: the prepared dataset's.
        split: validation or test.
        which: the key.
        work: as in :func:`slice_columns`.

    Raises:
        UserError: the data name no such key.
    """
    rows = _Rows(folder, manifest, split)
    return _numbered(rows, which, work)[0]


def item_codes(folder: Path, manifest: Manifest, split: str, *, work: Path | None = None) -> ItemCodes | None:
    """The rows' items and train's counts of them, for coverage and popularity; None where the data name no items."""
    rows = _Rows(folder, manifest, split)
    if not rows.knows("item"):
        return None
    codes, items = _numbered(rows, "item", work)
    known, counts = rows.train_counts("item")
    return ItemCodes(codes, _looked_up(items, known, counts), np.sort(counts))


def ranking_groups(
    folder: Path,
    manifest: Manifest,
    split: str,
    by: Literal["auto", "request", "user"] = "auto",
    *,
    work: Path | None = None,
) -> tuple[Literal["request", "user"], Codes] | None:
    """What the rows are ranked within, and which group each row is in (:func:`key_codes`).

    auto: the request, where at least half of the rows share theirs with another row; else the user; None where the data
    name neither.

    Raises:
        UserError: ``by`` names a key that the data do not have.
    """
    rows = _Rows(folder, manifest, split)
    if by == "request" or (by == "auto" and rows.knows("request")):
        codes, keys = _numbered(rows, "request", work)
        if by == "request" or _share_in_company(codes, keys.size) >= 0.5:
            return "request", codes
    if by == "user" or rows.knows("user"):
        return "user", _numbered(rows, "user", work)[0]
    return None


# The split's rows, part by part.

_NUMBERS: Mapping[Key, str] = {"user": "encoded:group", "item": "encoded:item", "request": "encoded:request"}
"""The keys' numbers: columns of the encoded shards, beside raw ones."""


class _Rows:
    """A split of a prepared dataset: its raw columns and its keys' numbers."""

    def __init__(self, folder: Path, manifest: Manifest, split: str) -> None:
        summary = manifest.splits.get(split)
        if summary is None:
            raise RunError(f"{folder}: there is no split {split!r}")
        if summary.rows and len(summary.raw_shards) != len(summary.shards):
            raise RunError(f"{folder}: the split {split!r} keeps no raw rows, which slices are cut by")
        self.folder, self.manifest, self.split = folder, manifest, split
        self.rows = summary.rows
        self.shards, self.raw_shards = summary.shards, summary.raw_shards
        self.types = self._types(self.raw_shards)
        self._encoded = self._types(self.shards).names()
        self._counted: dict[Key, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def knows(self, which: Key) -> bool:
        """Whether the rows have such a key."""
        # A dataset of an earlier version has numbers of its users alone.
        named = getattr(self.manifest.columns, which) is not None
        return named and _NUMBERS[which].removeprefix("encoded:") in self._encoded

    def parts(self, columns: Sequence[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """First row and rows of each part, with these raw columns, or those of :data:`_NUMBERS`."""
        encoded = [column.removeprefix("encoded:") for column in columns if column.startswith("encoded:")]
        raw = [column for column in columns if not column.startswith("encoded:")]
        start = 0
        for shard, raw_shard in zip(self.shards, self.raw_shards, strict=True):
            frames = [self._read(raw_shard, raw)] if raw else []
            if encoded:
                numbers = self._read(shard, encoded)
                frames.append(numbers.rename({column: f"encoded:{column}" for column in encoded}))
            frame = pl.concat(frames, how="horizontal")
            if frame.height != shard.rows:
                raise RunError(f"{self.folder / raw_shard.path}: not row for row the encoded shard's; prepare again")
            yield start, frame
            start += frame.height

    def scan(self, column: str) -> pl.LazyFrame:
        """A raw column of all rows."""
        if not self.raw_shards:
            return pl.LazyFrame({column: []})
        paths = [inside(self.folder, shard.path) for shard in self.raw_shards]
        return pl.scan_parquet(paths, glob=False).select(column)

    def collected(self, frame: pl.LazyFrame) -> pl.DataFrame:
        """What a query over the shards gives."""
        try:
            return frame.collect(engine="streaming")
        except (OSError, pl.exceptions.PolarsError) as error:
            raise RunError(f"{self.folder}: a shard cannot be read ({error}); prepare again") from error

    def train_counts(self, which: Key) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The users or items of train's rows by their numbers, rising, and the rows of each."""
        if which not in self._counted:
            column = _NUMBERS[which].removeprefix("encoded:")
            paths = [inside(self.folder, shard.path) for shard in self.manifest.splits["train"].shards]
            if paths:
                keys = pl.scan_parquet(paths, glob=False).select(column).filter(pl.col(column) >= 0)
                found = self.collected(keys.group_by(column).len()).sort(column)
                counts = found[column].to_numpy(), found["len"].to_numpy().astype(np.int64)
            else:
                counts = np.empty(0, np.int64), np.empty(0, np.int64)
            self._counted[which] = counts
        return self._counted[which]

    def _types(self, shards: Sequence[Shard]) -> pl.Schema:
        if not shards:
            return pl.Schema()
        try:
            return pl.scan_parquet(inside(self.folder, shards[0].path), glob=False).collect_schema()
        except (OSError, pl.exceptions.PolarsError) as error:
            raise RunError(f"{self.folder / shards[0].path}: cannot be read ({error}); prepare again") from error

    def _read(self, shard: Shard, columns: Sequence[str]) -> pl.DataFrame:
        try:
            return pl.read_parquet(inside(self.folder, shard.path), columns=list(columns), glob=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise RunError(f"{self.folder / shard.path}: cannot be read ({error}); prepare again") from error


def _codes(rows: int, work: Path | None, name: str) -> Codes:
    if work is None or not rows:
        return np.empty(rows, np.int32)
    work.mkdir(parents=True, exist_ok=True)
    return np.memmap(work / f"{name}.codes", np.int32, "w+", shape=(rows,))


# The cuts.


class _Cut(NamedTuple):
    """One cut, decided."""

    name: str
    labels: tuple[str, ...]
    needs: tuple[str, ...]
    """Columns that it reads."""
    codes: Callable[[pl.DataFrame], NDArray[np.integer]]
    """A part's rows → their codes."""


def _key_cuts(rows: _Rows, config: SlicesConfig) -> Iterator[_Cut]:
    wanted: dict[Key, bool] = {"user": config.new_users, "item": config.new_items}
    for which, asked in wanted.items():
        if asked and rows.knows(which):
            yield _new_cut(which, rows.train_counts(which)[0])
    if config.popularity and rows.knows("item"):
        yield _popularity_cut(*rows.train_counts("item"), config.popularity)


def _new_cut(which: Key, known: NDArray[np.int64]) -> _Cut:
    """Returning, new, missing."""
    column = _NUMBERS[which]

    def codes(frame: pl.DataFrame) -> NDArray[np.integer]:
        keys = frame[column].to_numpy()
        return np.where(keys < 0, 2, np.where(_positions(keys, known) >= 0, 0, 1))

    return _Cut(f"new_{which}", ("returning", "new", MISSING_VALUE), (column,), codes)


def _popularity_cut(known: NDArray[np.int64], counts: NDArray[np.int64], bands: int) -> _Cut:
    """Items new to train, then bands of rising count; items with the same count are in the same band."""
    sizes, items = np.unique(counts, return_counts=True)
    share = np.cumsum(sizes * items) / max(int(counts.sum()), 1)
    last = np.searchsorted(share, np.arange(1, bands) / bands)  # a band's highest count
    tops = np.unique(np.append(sizes[last], sizes[-1])) if sizes.size else np.empty(0, np.int64)
    labels, bottom = ["0 rows in train"], 1
    for top in tops.tolist():
        between = f"{bottom:,} to {top:,}" if bottom < top else f"{top:,}"
        labels.append(f"{bottom:,} or more rows" if top == tops[-1] and bottom > 1 else f"{between} rows")
        bottom = top + 1

    def codes(frame: pl.DataFrame) -> NDArray[np.integer]:
        keys = frame[_NUMBERS["item"]].to_numpy()
        count = _looked_up(keys, known, counts)
        band = np.where(count > 0, 1 + np.searchsorted(tops, count), 0)
        return np.where(keys < 0, len(labels), band)

    return _Cut("item_popularity", (*labels, MISSING_VALUE), (_NUMBERS["item"],), codes)


def _time_cut(rows: _Rows, config: SlicesConfig) -> Iterator[_Cut]:
    column = rows.manifest.columns.time
    if config.time == "none" or column is None or not isinstance(rows.types.get(column), pl.Datetime):
        return
    instant = pl.col(column).dt.epoch("us")
    ends = rows.collected(rows.scan(column).select(low=instant.min(), high=instant.max())).row(0)
    if ends[0] is None:
        return
    low, high = map(int, ends)
    day = 24 * 3600 * 1_000_000
    days = high // day - low // day + 1
    if config.time == "day" or (config.time == "auto" and days <= _AUTOMATIC_DAYS):
        starts = [(low // day + number) * day for number in range(days)]
        labels = [_instant(start).strftime("%Y-%m-%d") for start in starts]
    else:
        parts = min(config.time_parts, high - low + 1)
        starts = [low - (-(high + 1 - low) * number // parts) for number in range(parts)]
        pattern = "%Y-%m-%d %H:%M" if (high - low) / parts > 60e6 else "%Y-%m-%d %H:%M:%S.%f"
        ends_of = [*starts[1:], high]
        labels = [
            f"{_instant(start).strftime(pattern)} to {_instant(end).strftime(pattern)}"
            for start, end in zip(starts, ends_of, strict=True)
        ]
    first = np.array(starts[1:], np.int64)

    def codes(frame: pl.DataFrame) -> NDArray[np.integer]:
        time = frame.select(instant.alias("time"))["time"]
        part = np.searchsorted(first, time.fill_null(0).to_numpy(), side="right")
        return np.where(time.is_null().to_numpy(), len(labels), part)

    yield _Cut("time", (*labels, MISSING_VALUE), (column,), codes)


def _instant(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)


# Which columns, and how.


def _chosen(rows: _Rows, config: SlicesConfig, statistics: Statistics, others: int) -> list[SliceBy]:
    if config.columns != "auto":
        asked = [by if isinstance(by, SliceBy) else SliceBy(column=by) for by in config.columns]
        for by in asked:
            _require(rows, by.column)
        return asked
    manifest = rows.manifest
    keys = manifest.columns
    used = {keys.user, keys.item, keys.time, keys.request, ROW}
    used |= {task.label for task in manifest.tasks} | {task.weight_column for task in manifest.tasks}
    of_features = {column for feature in manifest.features for column in feature.columns}
    kept = [name for name in rows.types.names() if name not in of_features]
    sizes = {name: len(vocabulary.values) for name, vocabulary in statistics.tables.items()}
    few = {name for name, size in sizes.items() if 1 < size <= _AUTOMATIC_VALUES}
    features = [f.column for f in manifest.features if f.kind == "number" or (f.kind == "id" and f.table in few)]
    candidates = [name for name in dict.fromkeys([*kept, *features]) if name not in used and name in rows.types]
    return [SliceBy(column=name) for name in candidates[: max(config.most_cuts - others, 0)]]


def _require(rows: _Rows, column: str) -> None:
    if column in rows.types or not rows.types:
        return
    near = difflib.get_close_matches(column, rows.types.names(), n=1, cutoff=0.5)
    known = f"did you mean {near[0]!r}?" if near else f"they keep {', '.join(rows.types.names())}"
    raise UserError(
        f"evaluation.slices.columns: the {rows.split} rows keep no column {column!r}; {known} (`data.keep` keeps "
        "columns that no feature reads)"
    )


def _column_cut(rows: _Rows, name: str, by: SliceBy, config: SlicesConfig, statistics: Statistics) -> _Cut:
    dtype = rows.types.get(by.column, pl.Null())
    features = [feature for feature in rows.manifest.features if feature.column == by.column]
    most, parts = by.most_values or config.most_values, by.quantiles or config.quantiles
    try:
        value = _number_in(by, dtype, features)
        if value is not None:
            found = _cut_by_number(rows, name, by, value, most, parts, features, statistics)
            if found is not None:
                return found
        return _cut_by_value(rows, name, by, canonical(_single(by.column, dtype), _single_type(dtype)), most)
    except TypeError as error:
        raise UserError(
            f"evaluation.slices.columns: column {by.column!r} is {dtype}, which holds no single value; leave it out"
        ) from error


def _number_in(by: SliceBy, dtype: pl.DataType, features: Sequence[Feature]) -> pl.Expr | None:
    """The column as a number, where it is to be read as one."""
    kinds = {feature.kind for feature in features}
    is_number = dtype.is_numeric() or dtype.is_temporal() or isinstance(dtype, (pl.List, pl.Array))
    if by.by == "quantiles" or "number" in kinds or (is_number and not kinds & {"id"}):
        return number(_single(by.column, dtype), _single_type(dtype))
    return None


def _single(column: str, dtype: pl.DataType) -> pl.Expr:
    """The column; of a list, how many values it holds."""
    if isinstance(dtype, pl.Array):
        return pl.col(column).arr.to_list().list.len()
    return pl.col(column).list.len() if isinstance(dtype, pl.List) else pl.col(column)


def _single_type(dtype: pl.DataType) -> pl.DataType:
    return pl.UInt32() if isinstance(dtype, (pl.List, pl.Array)) else dtype


def _cut_by_number(
    rows: _Rows,
    name: str,
    by: SliceBy,
    value: pl.Expr,
    most: int,
    parts: int,
    features: Sequence[Feature],
    statistics: Statistics,
) -> _Cut | None:
    """Quantiles; None where the number takes so few values that each has a slice."""
    column = by.column
    if by.by == "values":
        return None
    if by.by == "auto":
        few = rows.scan(column).select(value.alias("value")).drop_nulls().unique().limit(most + 1)
        if rows.collected(few).height <= most:
            return _cut_by_few_numbers(rows, name, column, value)
    edges = next((found for f in features if (found := _trained(f, statistics, parts)) is not None), None)
    if edges is None:
        edges = _quantiles(rows, column, value, parts)
    labels = _between(edges, rows.types[column])

    def codes(frame: pl.DataFrame) -> NDArray[np.integer]:
        numbers = frame.select(value.alias("value"))["value"]
        part = np.searchsorted(edges, numbers.fill_null(0.0).to_numpy(), side="right")
        return np.where(numbers.is_null().to_numpy(), len(labels), part)

    return _Cut(name, (*labels, MISSING_VALUE), (column,), codes)


def _trained(feature: Feature, statistics: Statistics, parts: int) -> NDArray[np.float64] | None:
    """Where the rows of train are cut, as raw values: by quantiles, else between the deciles of the profile."""
    fitted, profile = statistics.numbers.get(feature.name), statistics.profiles.get(feature.name)
    if feature.kind != "number" or fitted is None:
        return None
    steps = np.arange(1, parts) / parts
    if len(fitted.quantiles) > 1:
        quantiles = np.asarray(fitted.quantiles, np.float64)
        return np.unique(np.interp(steps, np.linspace(0, 1, quantiles.size), quantiles))
    if feature.transform == "rank" or profile is None or len(profile.edges) < 2:
        return None
    counts = np.asarray(profile.counts[: len(profile.edges)], np.float64)
    if not counts.sum() > 0:
        return None
    encoded = np.interp(steps, np.cumsum(counts) / counts.sum(), np.asarray(profile.edges))
    value = encoded * fitted.std + fitted.mean
    if feature.transform == "log1p":
        value = np.sign(value) * np.expm1(np.abs(value))
    elif feature.transform == "sqrt":
        value = np.sign(value) * value**2
    return np.unique(value)


def _quantiles(rows: _Rows, column: str, value: pl.Expr, parts: int) -> NDArray[np.float64]:
    """Where a split's number is cut, so that the parts are as even as its ties allow and none is empty."""
    values, weights = [], []
    for _, frame in rows.parts([column]):
        present = np.sort(frame.select(value.alias("value"))["value"].drop_nulls().to_numpy())
        if present.size > _SKETCH:
            kept = present[((np.arange(_SKETCH) + 0.5) * present.size / _SKETCH).astype(np.intp)]
        else:
            kept = present
        values.append(kept)
        weights.append(np.full(kept.size, present.size / max(kept.size, 1)))
    value_of, weight_of = np.concatenate([np.empty(0), *values]), np.concatenate([np.empty(0), *weights])
    if not value_of.size:
        return np.empty(0)
    order = np.argsort(value_of, kind="stable")
    reached = np.cumsum(weight_of[order])
    # The value of the first row beyond each share of the rows.
    first = np.searchsorted(reached, np.arange(1, parts) / parts * reached[-1] * (1 + 1e-12), side="right")
    edges = np.unique(value_of[order][np.minimum(first, order.size - 1)])
    return np.asarray(edges[edges > value_of[order[0]]], np.float64)


def _between(edges: NDArray[np.float64], dtype: pl.DataType) -> list[str]:
    texts = _distinct_texts(edges, dtype)
    if not texts:
        return ["all"]
    return [f"< {texts[0]}", *(f"{a} to {b}" for a, b in pairwise(texts)), f"≥ {texts[-1]}"]


def _distinct_texts(values: NDArray[np.float64], dtype: pl.DataType) -> list[str]:
    """As few digits as tell the values apart, at least three."""
    if isinstance(dtype, (pl.Date, pl.Datetime)):
        return [
            _instant(round(value * 1e6)).strftime("%Y-%m-%d %H:%M:%S").removesuffix(" 00:00:00") for value in values
        ]
    for digits in range(3, 18):
        texts = [f"{v:,.0f}" if v == np.floor(v) and abs(v) < 1e15 else f"{v:.{digits}g}" for v in values.tolist()]
        if len(set(texts)) == len(texts):
            break
    return texts if len(values) else []


def _cut_by_few_numbers(rows: _Rows, name: str, column: str, value: pl.Expr) -> _Cut:
    """A slice for every value, rising."""
    found = rows.collected(rows.scan(column).select(value.alias("value")).unique())["value"]
    values = found.drop_nulls().sort().to_numpy()
    labels = _distinct_texts(values, rows.types[column])

    def codes(frame: pl.DataFrame) -> NDArray[np.integer]:
        numbers = frame.select(value.alias("value"))["value"]
        position = np.searchsorted(values, numbers.fill_null(0.0).to_numpy())
        return np.where(numbers.is_null().to_numpy(), len(labels), position)

    return _Cut(name, (*labels, MISSING_VALUE), (column,), codes)


def _cut_by_value(rows: _Rows, name: str, by: SliceBy, text: pl.Expr, most: int) -> _Cut:
    """The most frequent values, whole numbers rising, others the most frequent first; all others; what is missing."""
    counts = (
        rows.scan(by.column).select(text.alias("value")).group_by("value").len().filter(pl.col("value").is_not_null())
    )
    kept = rows.collected(counts.sort(["len", "value"], descending=[True, False]).head(most))["value"].cast(pl.String)
    if kept.str.contains(r"^-?\d{1,18}$").all():
        kept = kept.gather(kept.cast(pl.Int64).arg_sort())
    places = pl.Series(range(len(kept)), dtype=pl.Int32)

    def codes(frame: pl.DataFrame) -> NDArray[np.integer]:
        values = frame.select(text.alias("value"))["value"].cast(pl.String)
        place = values.replace_strict(kept, places, default=len(kept), return_dtype=pl.Int32)
        return np.where(values.is_null().to_numpy(), len(kept) + 1, place.fill_null(0).to_numpy())

    return _Cut(name, (*kept.to_list(), OTHER_VALUES, MISSING_VALUE), (by.column,), codes)


# Keys as numbers.


def _numbered(rows: _Rows, which: Key, work: Path | None) -> tuple[Codes, NDArray[np.int64]]:
    """(N,) codes, and the key's number that each stands for, rising."""
    if not rows.knows(which):
        raise UserError(f"evaluation.ranking: the data name no {which}; set data.source's columns, or group otherwise")
    column = _NUMBERS[which]
    seen, fresh = np.empty(0, np.int64), [np.empty(0, np.int64)]
    for _, frame in rows.parts([column]):
        keys = frame[column].to_numpy()
        fresh.append(np.unique(keys[keys >= 0]))
        if sum(map(len, fresh)) > seen.size:  # merged seldom: the whole is sorted anew each time
            seen, fresh = np.unique(np.concatenate([seen, *fresh])), []
    seen = np.unique(np.concatenate([seen, *fresh]))
    codes = _codes(rows.rows, work, which)
    for start, frame in rows.parts([column]):
        # A part has few different keys: those are looked up, in rising order, and not every row.
        distinct, place = np.unique(frame[column].to_numpy(), return_inverse=True)
        codes[start : start + frame.height] = _positions(distinct, seen)[place]
    return codes, seen


def _positions(keys: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.intp]:
    """Where each key is among known ones, which rise; -1 where it is not."""
    if not known.size:
        return np.full(keys.size, -1)
    place = np.minimum(np.searchsorted(known, keys), known.size - 1)
    return np.where(known[place] == keys, place, -1)


def _looked_up(keys: NDArray[np.int64], known: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The count of each key; 0 where it is not known."""
    if not known.size:
        return np.zeros(keys.size, np.int64)
    place = _positions(keys, known)
    return np.where(place >= 0, counts[place], 0)


def _share_in_company(codes: Codes, groups: int) -> float:
    """Share of the rows whose group holds another row too."""
    if not len(codes):
        return 0.0
    sizes = np.zeros(groups, np.int64)
    for start in range(0, len(codes), 1_000_000):
        part = codes[start : start + 1_000_000]
        sizes += np.bincount(part[part >= 0], minlength=groups)
    return float(sizes[sizes > 1].sum() / len(codes))
