"""Types and bad rows: what a raw column means, and which rows cannot be trusted.

In: a lazy frame of raw columns (CSV: text). Out: the same rows with typed columns and a ``reason``, null for good rows.
Types are seen in all rows, never in a sample, so that the same files always give the same types.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

import polars as pl

from recmtl.errors import UserError

__all__ = [
    "BAD_SHARE",
    "REASON",
    "ColumnType",
    "Rules",
    "TimeRule",
    "TimeUnit",
    "Typing",
    "see_types",
    "time_expression",
]

ColumnType = Literal["int", "float", "bool", "string"]
"""Types that a user may name for a column."""

TimeUnit = Literal["auto", "iso", "s", "ms", "us", "ns"]
"""How times are written: ISO 8601 text, or a number since 1970 in a unit; auto: seen by form and magnitude."""

_TYPED = "typed:"

REASON = "bad:reason"
"""The column that says why a row is bad."""

BAD_SHARE = 0.05
"""A CSV column is numeric, with bad rows, while no more than this share of its given values is not a number."""

EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
"""Times before this are impossible: there were no such logs, and clocks that were never set say 1970."""

_UTC = pl.Datetime("us", "UTC")
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_SECONDS = (600_000_000, 4_200_000_000)
"""1989 to 2103 in seconds: in each unit a range of its own, which is how the unit is seen."""
_LIMIT_SECONDS = 200_000_000_000
"""The year 8307: beyond it a number is no time at all, and its microseconds would not fit."""
_ISO = (
    r"^\s*(\d{4}[-/]\d{2}[-/]\d{2})"
    r"(?:[Tt ](\d{2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?)\s*(Z|z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?)?\s*$"
)
_BASIC = r"^\s*(\d{4})(\d{2})(\d{2})[Tt](\d{2})(\d{2})"
"""ISO 8601 without separators, 20240301T101500Z: put into the other form before it is read."""
_LEADING_ZERO = r"^[+-]?0\d"
_DIGITS = r"^[+-]?\d+$"
_CASTS: dict[ColumnType, pl.DataType] = {"int": pl.Int64(), "float": pl.Float64(), "bool": pl.Boolean()}


@dataclass(frozen=True)
class TimeRule:
    """How a column of times is written, and which times are possible."""

    unit: TimeUnit = "auto"
    timezone: str = "UTC"
    """Of times that are written without a zone."""
    earliest: datetime = EARLIEST
    latest: datetime | None = None
    """None: a day after the moment of reading (clocks and zones differ; later is the future)."""


@dataclass(frozen=True)
class Rules:
    """What must hold for a row to be good."""

    keys: Sequence[str] = ()
    """Columns that identify something and must be given: whole numbers or text."""
    optional_keys: Sequence[str] = ()
    """Columns that identify something and may be missing."""
    required: Sequence[str] = ()
    """Other columns that must be given."""
    times: Mapping[str, TimeRule] = field(default_factory=dict)
    """Columns of times, which must be given."""
    types: Mapping[str, ColumnType] = field(default_factory=dict)
    """Types that the user named; a value of another type is bad."""
    labels: Collection[str] = ()
    """Columns that hold labels. One that is no number (or not of its named type) is no reason to lose the row: the
    column stays text, and :mod:`recmtl.etl.mask` masks that value for its task alone."""


@dataclass(frozen=True)
class Typing:
    """How to turn raw columns into typed ones, and bad rows into reasons."""

    columns: Mapping[str, pl.Expr]
    """Every column, typed; times are Datetime us UTC, whole-number keys Int64, other keys text."""
    reason: pl.Expr
    """Why the row is bad (the first reason that holds), null for a good row; reads what :meth:`judge` adds."""
    warnings: tuple[str, ...]
    """Columns that are numeric but for a few values, each with the setting that says otherwise."""

    def judge(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """The raw rows with :data:`REASON` and, under names that :meth:`typed` takes off again, the typed columns."""
        # In two steps, so that no value is parsed twice.
        return frame.with_columns(
            column.alias(f"{_TYPED}{name}") for name, column in self.columns.items()
        ).with_columns(self.reason.alias(REASON))

    def typed(self) -> list[pl.Expr]:
        """The typed columns of a judged frame under their own names."""
        return [pl.col(f"{_TYPED}{name}").alias(name) for name in self.columns]


def see_types(
    frame: pl.LazyFrame,
    rules: Rules,
    where: str,
    *,
    text: bool,
    undecodable: bool = False,
    unjudged: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
) -> Typing:
    """See the type of every column in all its rows.

    Text (CSV) becomes Boolean, Int64, Float64 or stays String; digits with a leading zero or beyond 64 bits stay text.
    Typed columns (Parquet) keep their type, save keys, times, decimals (Float64) and categories (String).

    Args:
        frame: raw columns.
        rules: what must hold.
        where: the setting's name, for errors and warnings.
        text: whether the columns are text.
        undecodable: whether U+FFFD stands for bytes that are not in the file's encoding.
        unjudged: columns to leave as they are.
        names: what the file calls a column, where it is another name: for reasons, warnings and errors.

    Raises:
        UserError: a column of a type that cannot be a time or a key.
    """
    schema = frame.collect_schema()
    keys = (*rules.keys, *rules.optional_keys)
    judged = {name: dtype for name, dtype in schema.items() if name not in unjudged}
    seen = frame.select(_evidence(judged, rules, keys, text)).collect(engine="streaming").row(0, named=True)
    columns: dict[str, pl.Expr] = {}
    broken: list[tuple[pl.Expr, str]] = []
    warnings: list[str] = []
    for name, dtype in schema.items():
        raw, done = pl.col(name), pl.col(f"{_TYPED}{name}")
        shown = (names or {}).get(name, name)
        if name in unjudged:
            columns[name] = raw
            continue
        if name in rules.times:
            rule = rules.times[name]
            unit = rule.unit if rule.unit != "auto" else _unit_seen(seen, name)
            typed = time_expression(raw, dtype, unit, rule.timezone, f"{where}: column {shown}")
            broken += _time_reasons(shown, raw, dtype, done, rule)
        elif name in rules.types:
            typed = _cast(raw, dtype, rules.types[name])
            if name not in rules.labels:
                broken.append((raw.is_not_null() & done.is_null(), f"{shown} is not of type {rules.types[name]}"))
            elif seen[f"{name}/failed"]:
                typed = _plain(raw, dtype)
        elif name in keys:
            typed = _key(raw, dtype, seen, name, f"{where}: column {shown}")
        elif text and dtype == pl.String:  # a folder's column has its type already
            typed, share = _see_text(raw, seen, name)
            if share is not None and name in rules.labels:
                typed = raw
            elif share is not None:
                broken.append((raw.is_not_null() & done.is_null(), f"{shown} is not a number"))
                warnings.append(
                    f"{where}: column {shown} is taken as numeric, and {share:.2%} of its values, which are no number, "
                    f"as bad rows; if it is meant as text, say so under types: {{{shown}: string}}"
                )
        else:
            typed = _plain(raw, dtype)
        if undecodable and dtype == pl.String:
            garbled = raw.str.contains("\N{REPLACEMENT CHARACTER}", literal=True)
            broken.append((garbled, f"{shown} is not in the file's encoding"))
        if name in rules.keys or name in rules.required:
            absent = done.is_null() if name in keys else raw.is_null()
            broken.insert(0, (absent, f"{shown} is missing"))
        columns[name] = typed
    nothing = pl.lit(None, pl.String)
    reasons = [pl.when(condition).then(pl.lit(reason)) for condition, reason in broken]
    reason = pl.coalesce(*reasons, nothing) if reasons else nothing
    return Typing(columns, reason, tuple(warnings))


def _stripped(raw: pl.Expr) -> pl.Expr:
    return raw.str.strip_chars()


def _number(raw: pl.Expr) -> pl.Expr:
    value = _stripped(raw).cast(pl.Float64, strict=False)
    return pl.when(value.is_finite()).then(value)


def _whole(raw: pl.Expr) -> pl.Expr:
    return _stripped(raw).cast(pl.Int64, strict=False)


def _truth(raw: pl.Expr) -> pl.Expr:
    lower = _stripped(raw).str.to_lowercase()
    return pl.when(lower.is_in(["true", "false"])).then(lower == "true")


def _evidence(schema: Mapping[str, pl.DataType], rules: Rules, keys: Sequence[str], text: bool) -> list[pl.Expr]:
    found = [pl.len().alias("rows")]
    for name, dtype in schema.items():
        raw = pl.col(name)
        if name in rules.times:
            if dtype == pl.String:
                found.append(_extended(raw).str.contains(_ISO).sum().alias(f"{name}/iso"))
                found += _units(_number(raw), name)
            elif dtype.is_numeric():
                found += _units(raw.cast(pl.Float64), name)
        elif dtype == pl.String and (text or name in keys) and name not in rules.types:
            number = _number(raw)
            found += [
                raw.is_not_null().sum().alias(f"{name}/given"),
                number.is_not_null().sum().alias(f"{name}/numbers"),
                (number == number.round()).sum().alias(f"{name}/whole"),
                _whole(raw).is_not_null().sum().alias(f"{name}/ints"),
                _truth(raw).is_not_null().sum().alias(f"{name}/bools"),
                _stripped(raw).str.contains(_LEADING_ZERO).sum().alias(f"{name}/zeros"),
                _stripped(raw).str.contains(_DIGITS).sum().alias(f"{name}/digits"),
            ]
        elif name in rules.types and name in rules.labels:
            failed = raw.is_not_null() & _cast(raw, dtype, rules.types[name]).is_null()
            found.append(failed.sum().alias(f"{name}/failed"))
        elif name in keys and dtype.is_float():
            given = raw.is_finite()
            found.append((given & (raw != raw.round())).sum().alias(f"{name}/fractions"))
    return found


def _units(number: pl.Expr, name: str) -> list[pl.Expr]:
    low, high = _SECONDS
    return [
        number.is_between(low * per_second, high * per_second).sum().alias(f"{name}/{unit}")
        for unit, per_second in _PER_SECOND.items()
    ]


def _unit_seen(seen: Mapping[str, int], name: str) -> TimeUnit:
    votes: dict[TimeUnit, int] = {unit: seen.get(f"{name}/{unit}") or 0 for unit in ("iso", "s", "ms", "us", "ns")}
    return max(votes, key=lambda unit: votes[unit])


def time_expression(raw: pl.Expr, dtype: pl.DataType, unit: TimeUnit, timezone: str, where: str) -> pl.Expr:
    """The column as Datetime us UTC; null where it is no time. ``unit`` matters for text and numbers alone.

    Raises:
        UserError: the column's type cannot be a time.
    """
    if dtype == pl.String:
        return _iso(raw, timezone) if unit in ("iso", "auto") else _epoch_text(raw, unit)
    if dtype.is_numeric():
        if unit in ("iso", "auto"):
            unit = "s"
        return _epoch(raw, dtype, unit)
    if isinstance(dtype, pl.Datetime):
        zoned = raw if dtype.time_zone is not None else _local(raw, timezone)
        return zoned.dt.convert_time_zone("UTC").cast(_UTC)
    if dtype == pl.Date:
        return _local(raw.cast(pl.Datetime("us")), timezone).dt.convert_time_zone("UTC")
    if dtype == pl.Null:
        return raw.cast(_UTC)
    raise UserError(f"{where} holds {dtype}, which is no time; name the column with the times under `columns`")


def _local(naive: pl.Expr, timezone: str) -> pl.Expr:
    return naive.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null")


def _extended(raw: pl.Expr) -> pl.Expr:
    day_and_minute = "${1}-${2}-${3}T${4}:${5}"
    return raw.str.replace(_BASIC + r"(\d{2})", day_and_minute + ":${6}").str.replace(_BASIC, day_and_minute)


def _iso(raw: pl.Expr, timezone: str) -> pl.Expr:
    return raw.map_batches(partial(_iso_times, timezone=timezone), return_dtype=_UTC, is_elementwise=True)


def _iso_times(raw: pl.Series, timezone: str) -> pl.Series:
    # Step by step rather than as one expression, which would do the matching again for every place that it is used.
    found = raw.to_frame("raw").select(_extended(pl.col("raw")).str.extract_groups(_ISO).alias("groups"))
    found = found.unnest("groups").select(day="1", clock="2", offset="3")
    day = pl.col("day").str.replace_all("/", "-", literal=True)
    clock = pl.col("clock").str.replace(",", ".", literal=True)
    seconds = pl.when(clock.str.len_bytes() == 5).then(clock + ":00").otherwise(clock).fill_null("00:00:00")
    digits = pl.col("offset").str.replace_all(r"[+:-]", "")
    hours = digits.str.slice(0, 2).cast(pl.Int64, strict=False).fill_null(0)
    minutes = digits.str.slice(2, 2).cast(pl.Int64, strict=False).fill_null(0)
    sign = pl.when(pl.col("offset").str.starts_with("-")).then(-1).otherwise(1)
    parts = found.select(
        "offset",
        naive=(day + " " + seconds).str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False, time_unit="us"),
        ahead=pl.duration(minutes=sign * (hours * 60 + minutes)),
    )
    naive = pl.col("naive")
    local = _local(naive, timezone).dt.convert_time_zone("UTC")
    shifted = naive.dt.replace_time_zone("UTC") - pl.col("ahead")
    return parts.select(pl.when(pl.col("offset").is_null()).then(local).otherwise(shifted).alias(raw.name))[raw.name]


def _epoch_text(raw: pl.Expr, unit: str) -> pl.Expr:
    whole = _epoch(_whole(raw), pl.Int64(), unit)
    return pl.coalesce(whole, _epoch(_number(raw), pl.Float64(), unit))


def _epoch(raw: pl.Expr, dtype: pl.DataType, unit: str) -> pl.Expr:
    per_second = _PER_SECOND[unit]
    limit = min(_LIMIT_SECONDS * per_second, 2**63 - 1)
    possible = pl.when(raw.is_between(-limit, limit)).then(raw)
    if dtype.is_float() or dtype.is_decimal():
        micros = (possible.cast(pl.Float64) * (1_000_000 / per_second)).round().cast(pl.Int64, strict=False)
    elif per_second > 1_000_000:
        micros = possible.cast(pl.Int64, strict=False) // (per_second // 1_000_000)
    else:
        micros = possible.cast(pl.Int64, strict=False) * (1_000_000 // per_second)
    return micros.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _time_reasons(
    name: str, raw: pl.Expr, dtype: pl.DataType, typed: pl.Expr, rule: TimeRule
) -> list[tuple[pl.Expr, str]]:
    latest = rule.latest or datetime.now(UTC) + timedelta(days=1)
    missing = raw.is_null() | raw.is_nan() if dtype.is_float() else raw.is_null()
    after = f"after {rule.latest:%Y-%m-%d %H:%M:%S} UTC" if rule.latest else "in the future"
    return [
        (missing, f"{name} is missing"),
        (typed.is_null(), f"{name} is not a time"),
        (typed < pl.lit(rule.earliest), f"{name} is impossible: before {rule.earliest:%Y-%m-%d}"),
        (typed > pl.lit(latest), f"{name} is impossible: {after}"),
    ]


def _cast(raw: pl.Expr, dtype: pl.DataType, asked: ColumnType) -> pl.Expr:
    if asked == "string":
        return raw if dtype == pl.String else raw.cast(pl.String)
    if dtype == pl.String:
        return {"int": _whole, "float": _number, "bool": _truth}[asked](raw)
    return raw.cast(_CASTS[asked], strict=False)


def _key(raw: pl.Expr, dtype: pl.DataType, seen: Mapping[str, int], name: str, where: str) -> pl.Expr:
    if dtype == pl.String:
        given = seen[f"{name}/given"]
        plain = seen[f"{name}/zeros"] == 0 and seen[f"{name}/ints"] == seen[f"{name}/digits"]
        if plain and seen[f"{name}/whole"] == given:  # 7, or 7.0 as pandas writes whole numbers beside missing ones
            return pl.coalesce(_whole(raw), _number(raw).cast(pl.Int64, strict=False))
        return pl.when(raw != "").then(raw)
    if dtype.is_float():
        if seen[f"{name}/fractions"]:
            return pl.when(raw.is_finite()).then(raw.cast(pl.String))
        return pl.when(raw.is_finite()).then(raw).cast(pl.Int64)
    if dtype.is_integer() and dtype not in (pl.UInt64, pl.Int128, pl.UInt128):
        return raw.cast(pl.Int64)
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        raise UserError(f"{where} holds {dtype}, which cannot identify anything; it must be text or whole")
    return raw.cast(pl.String)


def _see_text(raw: pl.Expr, seen: Mapping[str, int], name: str) -> tuple[pl.Expr, float | None]:
    given, numbers = seen[f"{name}/given"], seen[f"{name}/numbers"]
    ints, digits = seen[f"{name}/ints"], seen[f"{name}/digits"]
    if given == 0 or seen[f"{name}/zeros"] or ints < digits:
        return raw, None
    if seen[f"{name}/bools"] == given:
        return _truth(raw), None
    if numbers < given * (1 - BAD_SHARE):
        return raw, None
    typed = _whole(raw) if ints == numbers else _number(raw)
    return typed, None if numbers == given else 1 - numbers / given


def _plain(raw: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype.is_decimal():
        return raw.cast(pl.Float64)
    if dtype in (pl.Categorical, pl.Enum):
        return raw.cast(pl.String)
    return raw
