"""Types, unreadable values and bad rows: what a raw column means, and which of its values and rows cannot be trusted.

In: a lazy frame of raw columns (CSV: text). Out: the same rows with typed columns and a ``reason``, null for good rows.
A row is bad only for what identifies it: its keys and its time. Any other value that cannot be read becomes missing and
is counted. Types are seen in all rows, never in a sample, so that the same files always give the same types.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Literal

import polars as pl

from recmtl.errors import UserError
from recmtl.etl.encode import LARGEST_NUMBER, canonical
from recmtl.reading import NumberStyle

__all__ = [
    "ANY_USE",
    "BAD_SHARE",
    "EXACT_FLOATS",
    "REASON",
    "WHOLE_NUMBER",
    "ColumnType",
    "Rules",
    "TimeRule",
    "TimeUnit",
    "Typing",
    "Uses",
    "epoch_time",
    "iso_time",
    "local_time",
    "number_text",
    "see_types",
    "time_expression",
]

_USUAL = NumberStyle()

ColumnType = Literal["int", "float", "bool", "string"]
"""Types that a user may name for a column."""

TimeUnit = Literal["auto", "iso", "s", "ms", "us", "ns"]
"""How times are written: ISO 8601 text, or a number since 1970 in a unit; auto: seen by form and magnitude."""

_TYPED = "typed:"

REASON = "bad:reason"
"""The column that says why a row is bad."""

BAD_SHARE = 0.05
"""A CSV column is numeric, with unreadable values, while no more than this share of its given values is no number."""

EXACT_FLOATS = 2.0**53
"""From here on floats skip whole numbers, so that different ids may have become the same float."""

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
WHOLE_NUMBER = r"^(?:0|-?[1-9]\d*)$"
"""A whole number as every program writes it."""
_POINT_ZERO = r"^(?:0|-?[1-9]\d{0,14})\.0$"
"""A whole number as a column of floats writes it; below 2^53."""
_EXPONENT = r"^[+-]?(?:\d+\.?\d*|\.\d+)[eE][+-]?\d+$"
_NAMED_ID = re.compile(r"(?i)(^|_)ids?$|(?-i:[a-z]Ids?$)")

EXCEL_EPOCH = datetime(1899, 12, 30)
"""Day 0 of a spreadsheet's dates (from 1900-03-01 on; the days before it are not told apart)."""
_CASTS: dict[ColumnType, pl.DataType] = {"int": pl.Int64(), "float": pl.Float64(), "bool": pl.Boolean()}


@dataclass(frozen=True)
class TimeRule:
    """How a column of times is written, and which times are possible."""

    unit: TimeUnit = "auto"
    timezone: str = "UTC"
    """Of times that are written without a zone."""
    format: str | None = None
    """How times are written in text, as ``strptime`` has it, or ``excel``: days since 1899-12-30. None: ISO 8601."""
    earliest: datetime = EARLIEST
    latest: datetime | None = None
    """None: a day after the moment of reading (clocks and zones differ; later is the future)."""


@dataclass(frozen=True)
class Uses:
    """What the columns are used for, which decides how text is read."""

    labels: Collection[str] = ()
    """Columns that hold labels. They stay text where a value is no number (or not of its named type):
    :mod:`recmtl.etl.mask` masks that value for its task alone."""
    ids: Collection[str] | None = None
    """Columns that id and bag features read: text stays as it is written, unless all of it is plain whole numbers.
    None: the features are inferred, and a column named ``…id`` is taken for one."""
    numbers: Collection[str] = ()
    """Columns that number features alone read: text is read as numbers, whatever share of it is none."""

    def under(self, names: Mapping[str, str], prefix: str = "") -> "Uses":
        """The same for columns under their names in a log: ``names`` maps a feature's or label's name to the log's.

        Args:
            names: name in the config → name in the log, where they differ.
            prefix: of a joined table's columns, where the config names them with it.
        """

        def renamed(columns: Collection[str]) -> frozenset[str]:
            found = {names.get(column, column) for column in columns}
            if prefix:
                found |= {column.removeprefix(f"{prefix}_") for column in columns}
            return frozenset(found)

        ids = None if self.ids is None else renamed(self.ids)
        return Uses(renamed(self.labels), ids, renamed(self.numbers) - (ids or frozenset()))


ANY_USE = Uses()
"""Nothing is known of how the columns are used."""


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
    """Types that the user named; a value of another type is unreadable."""
    uses: Uses = ANY_USE
    """What the columns are used for."""
    style: NumberStyle = _USUAL
    """How numbers are written in text."""


@dataclass(frozen=True)
class Typing:
    """How to turn raw columns into typed ones, and bad rows into reasons."""

    columns: Mapping[str, pl.Expr]
    """Every column, typed; times are Datetime us UTC, whole-number keys Int64, other keys text."""
    reason: pl.Expr
    """Why the row is bad (the first reason that holds), null for a good row; reads what :meth:`judge` adds."""
    warnings: tuple[str, ...]
    """What a person should know, each naming the setting that says otherwise."""
    unread: Mapping[str, pl.Expr]
    """Column → whether its value is given and cannot be read, of columns that have such values; reads what
    :meth:`judge` adds."""
    units: Mapping[str, TimeUnit]
    """Column of times → how they are written."""

    def judge(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """The raw rows with :data:`REASON` and, under names that :meth:`typed` takes off again, the typed columns."""
        # In two steps, so that no value is parsed twice.
        return frame.with_columns(
            column.alias(f"{_TYPED}{name}") for name, column in self.columns.items()
        ).with_columns(self.reason.alias(REASON))

    def of(self, name: str) -> pl.Expr:
        """A typed column of a judged frame."""
        return pl.col(f"{_TYPED}{name}")

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
    unread: dict[str, pl.Expr] = {}
    units: dict[str, TimeUnit] = {}
    twice: dict[str, pl.Expr] = {}
    broken: list[tuple[pl.Expr, str]] = []
    warnings: list[str] = []
    for name, dtype in schema.items():
        raw, done = pl.col(name), pl.col(f"{_TYPED}{name}")
        shown = (names or {}).get(name, name)
        if name in unjudged:
            columns[name] = raw
            continue
        failed: pl.Expr | None = None
        if name in rules.times:
            rule = rules.times[name]
            units[name] = rule.unit if rule.unit != "auto" else _unit_seen(seen, name)
            typed = time_expression(
                raw, dtype, units[name], rule.timezone, f"{where}: column {shown}", time_format=rule.format
            )
            broken += _time_reasons(shown, raw, dtype, done, rule)
            local = _as_written(raw, dtype, units[name], rule)
            if local is not None:
                skipped = local.is_not_null() & local_time(local, rule.timezone).is_null()
                broken.insert(-3, (skipped, f"{shown} does not exist in {rule.timezone}, whose clocks skip it"))
                twice[name] = _named_twice(local, rule.timezone)
        elif name in rules.types:
            typed = _cast(raw, dtype, rules.types[name], rules.style)
            if name not in rules.uses.labels:
                failed = raw.is_not_null() & done.is_null()
            elif seen[f"{name}/failed"]:
                typed = _plain(raw, dtype)
        elif name in keys:
            typed = _key(raw, dtype, seen, name, f"{where}: column {shown}")
            if seen.get(f"{name}/exponents"):
                warnings.append(_of_exponents(seen, name, shown, where))
        elif name in rules.uses.labels:
            typed = _see_label(raw, seen, name, rules.style) if text and dtype == pl.String else _plain(raw, dtype)
        elif dtype == pl.String and name in rules.uses.numbers:
            if seen[f"{name}/given"] and seen[f"{name}/bools"] == seen[f"{name}/given"]:
                typed = _truth(raw)
            else:
                typed = _whole(raw, rules.style) if _all_whole(seen, name) else _number(raw, rules.style)
                failed = raw.is_not_null() & done.is_null()
        elif _is_id(name, rules):
            if f"{name}/largest" in seen:
                _refuse_merged(seen, name, f"{where}: column {shown}")
            if dtype == pl.String and text:
                given = seen[f"{name}/given"]
                typed = _truth(raw) if given and seen[f"{name}/bools"] == given else _id_text(raw, seen, name)
            else:
                typed = _plain(raw, dtype)
        elif text and dtype == pl.String:  # a folder's column has its type already
            typed, failing = _see_text(raw, seen, name, rules.style)
            failed = raw.is_not_null() & done.is_null() if failing else None
        else:
            typed = _plain(raw, dtype)
            if dtype.is_float():
                typed = pl.when(_readable(raw)).then(raw)
                failed = raw.is_not_null() & raw.is_not_nan() & done.is_null()
        if undecodable and dtype == pl.String:
            garbled = raw.str.contains("\N{REPLACEMENT CHARACTER}", literal=True)
            if name in keys or name in rules.times:
                broken.append((garbled, f"{shown} is not in the file's encoding"))
            else:
                typed = pl.when(~garbled).then(typed)
                failed = garbled if failed is None else failed | garbled
        if name in rules.keys or name in rules.required:
            absent = done.is_null() if name in keys else raw.is_null()
            broken.insert(0, (absent, f"{shown} is missing"))
        columns[name] = typed
        if failed is not None:
            unread[name] = failed
    warnings += _of_times_named_twice(frame, twice, rules, where, names or {})
    nothing = pl.lit(None, pl.String)
    reasons = [pl.when(condition).then(pl.lit(reason)) for condition, reason in broken]
    reason = pl.coalesce(*reasons, nothing) if reasons else nothing
    return Typing(columns, reason, tuple(warnings), unread, units)


def _as_written(raw: pl.Expr, dtype: pl.DataType, unit: TimeUnit, rule: TimeRule) -> pl.Expr | None:
    """Times that are written without a zone, as they are written; None where a zone without clock changes is meant, or
    none is."""
    if rule.timezone == "UTC":
        return None
    if dtype == pl.Date:
        return raw.cast(pl.Datetime("us"))
    if isinstance(dtype, pl.Datetime):
        return raw if dtype.time_zone is None else None
    if dtype == pl.String and rule.format is None and unit in ("iso", "auto"):
        # In UTC, what has no zone keeps its digits.
        zoned = _extended(raw).str.extract(_ISO, 3).is_not_null()
        return pl.when(~zoned).then(iso_time(raw, "UTC").dt.replace_time_zone(None))
    return None


def _named_twice(local: pl.Expr, timezone: str) -> pl.Expr:
    """Whether a time names two instants, in the hour that a clock change repeats."""
    first, second = (
        local.dt.replace_time_zone(timezone, ambiguous=which, non_existent="null") for which in ("earliest", "latest")
    )
    return first != second


def _of_times_named_twice(
    frame: pl.LazyFrame, twice: Mapping[str, pl.Expr], rules: Rules, where: str, names: Mapping[str, str]
) -> list[str]:
    if not twice:
        return []
    counts = frame.select(test.sum().alias(name) for name, test in twice.items()).collect(engine="streaming")
    return [
        f"{where}: column {names.get(name, name)}: {counts[name][0]:,} times lie in an hour that the clocks of "
        f"{rules.times[name].timezone} repeat, and are taken as the first of the two; write times with their zone"
        for name in twice
        if counts[name][0]
    ]


def _is_id(name: str, rules: Rules) -> bool:
    return bool(_NAMED_ID.search(name)) if rules.uses.ids is None else name in rules.uses.ids


def _of_exponents(seen: Mapping[str, Any], name: str, shown: str, where: str) -> str:
    examples = ", ".join(map(repr, seen[f"{name}/exponent_examples"]))
    return (
        f"{where}: column {shown} holds {seen[f'{name}/exponents']:,} numbers written with an exponent, such as "
        f"{examples}; ids that a spreadsheet has rounded so are merged and cannot be told apart: export the column as "
        "text"
    )


def _refuse_merged(seen: Mapping[str, Any], name: str, where: str) -> None:
    largest = seen.get(f"{name}/largest")
    if largest is not None and largest >= EXACT_FLOATS:
        raise UserError(
            f"{where} holds ids as floats, up to {largest:.17g}; from 2^53 on floats skip whole numbers, so different "
            "ids have become one; write the column as integers or text"
        )


def _stripped(raw: pl.Expr) -> pl.Expr:
    return raw.str.strip_chars()


def number_text(raw: pl.Expr, style: NumberStyle) -> pl.Expr:
    """Text of numbers in ``style`` as programs write them: stripped, with a decimal point, without thousands.

    A text that is no number in this style is null.
    """
    text = _stripped(raw)
    if style.usual:
        return text
    decimal, thousands = re.escape(style.decimal), re.escape(style.thousands)
    groups = r"\d+" if not thousands else rf"(?:\d+|\d{{1,3}}(?:{thousands}\d{{3}})+)"
    shape = rf"^[+-]?(?:{groups}(?:{decimal}\d*)?|{decimal}\d+)(?:[eE][+-]?\d+)?$"
    plain = text if not thousands else text.str.replace_all(style.thousands, "", literal=True)
    return pl.when(text.str.contains(shape)).then(plain.str.replace_all(style.decimal, ".", literal=True))


def _readable(value: pl.Expr) -> pl.Expr:
    return value.is_finite() & (value.abs() <= LARGEST_NUMBER)


def _number(raw: pl.Expr, style: NumberStyle = _USUAL) -> pl.Expr:
    value = number_text(raw, style).cast(pl.Float64, strict=False)
    return pl.when(_readable(value)).then(value)


def _whole(raw: pl.Expr, style: NumberStyle = _USUAL) -> pl.Expr:
    return number_text(raw, style).cast(pl.Int64, strict=False)


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
        elif dtype == pl.String and (text or name in keys or name in rules.uses.numbers) and name not in rules.types:
            number = _number(raw, rules.style)
            stripped = _stripped(raw)
            found += [
                raw.is_not_null().sum().alias(f"{name}/given"),
                number.is_not_null().sum().alias(f"{name}/numbers"),
                _whole(raw, rules.style).is_not_null().sum().alias(f"{name}/ints"),
                _truth(raw).is_not_null().sum().alias(f"{name}/bools"),
                stripped.str.contains(_LEADING_ZERO).sum().alias(f"{name}/zeros"),
                number_text(raw, rules.style).str.contains(_DIGITS).sum().alias(f"{name}/digits"),
            ]
            if name in keys or _is_id(name, rules):
                exponent = stripped.str.contains(_EXPONENT)
                found += [
                    (stripped.str.contains(WHOLE_NUMBER) & stripped.cast(pl.Int64, strict=False).is_not_null())
                    .sum()
                    .alias(f"{name}/plain"),
                    stripped.str.contains(_POINT_ZERO).sum().alias(f"{name}/point_zero"),
                    exponent.sum().alias(f"{name}/exponents"),
                    stripped.filter(exponent).head(3).implode().alias(f"{name}/exponent_examples"),
                ]
        elif name in rules.types and name in rules.uses.labels:
            failed = raw.is_not_null() & _cast(raw, dtype, rules.types[name], rules.style).is_null()
            found.append(failed.sum().alias(f"{name}/failed"))
        elif (name in keys or _is_id(name, rules)) and dtype.is_float():
            given = raw.is_finite()
            found.append((given & (raw != raw.round())).sum().alias(f"{name}/fractions"))
            found.append(raw.filter(given).abs().max().cast(pl.Float64).alias(f"{name}/largest"))
        elif _is_id(name, rules) and isinstance(dtype, (pl.List, pl.Array)) and _floats(dtype):
            items = raw if isinstance(dtype, pl.List) else raw.arr.to_list()
            finite = items.list.eval(pl.element().filter(pl.element().is_finite()).abs())
            found.append(finite.list.max().max().cast(pl.Float64).alias(f"{name}/largest"))
        elif name in keys and dtype.is_decimal():
            found.append((raw != raw.floor()).sum().alias(f"{name}/fractions"))
            found.append(raw.abs().max().cast(pl.Float64).alias(f"{name}/largest"))
    return found


def _floats(dtype: pl.List | pl.Array) -> bool:
    return isinstance(dtype.inner, pl.DataType) and dtype.inner.is_float()


def _units(number: pl.Expr, name: str) -> list[pl.Expr]:
    low, high = _SECONDS
    return [
        number.is_between(low * per_second, high * per_second).sum().alias(f"{name}/{unit}")
        for unit, per_second in _PER_SECOND.items()
    ]


def _unit_seen(seen: Mapping[str, int], name: str) -> TimeUnit:
    votes: dict[TimeUnit, int] = {unit: seen.get(f"{name}/{unit}") or 0 for unit in ("iso", "s", "ms", "us", "ns")}
    return max(votes, key=lambda unit: votes[unit])


def time_expression(
    raw: pl.Expr, dtype: pl.DataType, unit: TimeUnit, timezone: str, where: str, *, time_format: str | None = None
) -> pl.Expr:
    """The column as Datetime us UTC; null where it is no time.

    ``unit`` and ``time_format`` matter for text and numbers alone.

    Raises:
        UserError: the column's type cannot be a time.
    """
    if time_format == "excel" and (dtype == pl.String or dtype.is_numeric()):
        days = _number(raw) if dtype == pl.String else raw.cast(pl.Float64)
        return _excel(days, timezone)
    if dtype == pl.String:
        if time_format is not None:
            return _formatted(raw, time_format, timezone)
        return iso_time(raw, timezone) if unit in ("iso", "auto") else _epoch_text(raw, unit)
    if dtype.is_numeric():
        if unit in ("iso", "auto"):
            unit = "s"
        return epoch_time(raw, dtype, unit)
    if isinstance(dtype, pl.Datetime):
        zoned = raw if dtype.time_zone is not None else local_time(raw, timezone)
        return zoned.dt.convert_time_zone("UTC").cast(_UTC)
    if dtype == pl.Date:
        return local_time(raw.cast(pl.Datetime("us")), timezone).dt.convert_time_zone("UTC")
    if dtype == pl.Null:
        return raw.cast(_UTC)
    raise UserError(f"{where} holds {dtype}, which is no time; name the column with the times under `columns`")


def local_time(naive: pl.Expr, timezone: str) -> pl.Expr:
    """Times without a zone as times of ``timezone``: the earlier instant where a clock change names two, null where it
    names none."""
    return naive.dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null")


def _extended(raw: pl.Expr) -> pl.Expr:
    day_and_minute = "${1}-${2}-${3}T${4}:${5}"
    return raw.str.replace(_BASIC + r"(\d{2})", day_and_minute + ":${6}").str.replace(_BASIC, day_and_minute)


def _excel(days: pl.Expr, timezone: str) -> pl.Expr:
    # Days up to the year 9999, as spreadsheets have them; a serial is a local time, rounded to the millisecond.
    possible = pl.when(days.is_between(61, 2_958_466)).then(days)
    after = pl.duration(milliseconds=(possible * 86_400_000).round().cast(pl.Int64))
    return local_time(
        (pl.lit(EXCEL_EPOCH, pl.Datetime("us")) + after).cast(pl.Datetime("us")), timezone
    ).dt.convert_time_zone("UTC")


def _formatted(raw: pl.Expr, time_format: str, timezone: str) -> pl.Expr:
    found = _stripped(raw).str.to_datetime(time_format, strict=False, time_unit="us")
    if "%z" in time_format or "%:z" in time_format or "%#z" in time_format:
        return found.dt.convert_time_zone("UTC")
    return local_time(found, timezone).dt.convert_time_zone("UTC")


def iso_time(raw: pl.Expr, timezone: str) -> pl.Expr:
    """ISO 8601 text as Datetime us UTC, in ``timezone`` where it names no zone; null where it is none."""
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
    local = local_time(naive, timezone).dt.convert_time_zone("UTC")
    shifted = naive.dt.replace_time_zone("UTC") - pl.col("ahead")
    return parts.select(pl.when(pl.col("offset").is_null()).then(local).otherwise(shifted).alias(raw.name))[raw.name]


def _epoch_text(raw: pl.Expr, unit: str) -> pl.Expr:
    whole = epoch_time(_whole(raw), pl.Int64(), unit)
    return pl.coalesce(whole, epoch_time(_number(raw), pl.Float64(), unit))


def epoch_time(raw: pl.Expr, dtype: pl.DataType, unit: str) -> pl.Expr:
    """Numbers since 1970 in ``unit`` as Datetime us UTC; null where that is no possible time."""
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


def _cast(raw: pl.Expr, dtype: pl.DataType, asked: ColumnType, style: NumberStyle) -> pl.Expr:
    if asked == "string":
        return raw if dtype == pl.String else canonical(raw, dtype)
    if dtype == pl.String:
        if asked == "bool":
            return _truth(raw)
        return _whole(raw, style) if asked == "int" else _number(raw, style)
    return raw.cast(_CASTS[asked], strict=False)


def _key(raw: pl.Expr, dtype: pl.DataType, seen: Mapping[str, Any], name: str, where: str) -> pl.Expr:
    """A key: Int64 where all of it is whole numbers within 64 bits, else the exact text."""
    if dtype == pl.String:
        return _id_text(raw, seen, name)
    if dtype.is_float():
        _refuse_merged(seen, name, where)
        if seen[f"{name}/fractions"]:
            return canonical(raw, dtype)
        return pl.when(raw.is_finite()).then(raw).cast(pl.Int64)
    if dtype.is_decimal() and not seen[f"{name}/fractions"] and (seen[f"{name}/largest"] or 0) < 2.0**62:
        return raw.cast(pl.Int64)
    if dtype.is_integer() and dtype not in (pl.UInt64, pl.Int128, pl.UInt128):
        return raw.cast(pl.Int64)
    try:
        return canonical(raw, dtype)
    except TypeError:
        raise UserError(f"{where} holds {dtype}, which cannot identify anything; it must be text or whole") from None


def _id_text(raw: pl.Expr, seen: Mapping[str, Any], name: str) -> pl.Expr:
    """Text that identifies: whole numbers where all of it is, as ``7`` or throughout as ``7.0``; else as it is written.

    ``7.0`` is what a column of floats makes of whole numbers, which pandas has where one is missing.
    """
    given = seen[f"{name}/given"]
    if given and seen[f"{name}/plain"] == given:
        return _whole(raw)
    if given and seen[f"{name}/point_zero"] == given:
        return _number(raw).cast(pl.Int64, strict=False)
    return pl.when(raw != "").then(raw)


def _all_whole(seen: Mapping[str, Any], name: str) -> bool:
    return bool(seen[f"{name}/ints"] == seen[f"{name}/numbers"])


def _see_text(raw: pl.Expr, seen: Mapping[str, Any], name: str, style: NumberStyle) -> tuple[pl.Expr, bool]:
    """A column of text by what most of it is, and whether some of it is unreadable then."""
    given, numbers = seen[f"{name}/given"], seen[f"{name}/numbers"]
    ints, digits = seen[f"{name}/ints"], seen[f"{name}/digits"]
    if given == 0 or seen[f"{name}/zeros"] or ints < digits:
        return raw, False
    if seen[f"{name}/bools"] == given:
        return _truth(raw), False
    if numbers < given * (1 - BAD_SHARE):
        return raw, False
    return _whole(raw, style) if ints == numbers else _number(raw, style), numbers < given


def _see_label(raw: pl.Expr, seen: Mapping[str, Any], name: str, style: NumberStyle) -> pl.Expr:
    typed, failing = _see_text(raw, seen, name, style)
    # Where some of it is no number it stays text, of which labels are read with a decimal point.
    return (raw if style.usual else pl.coalesce(number_text(raw, style), raw)) if failing else typed


def _plain(raw: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    return raw.cast(pl.String) if dtype in (pl.Categorical, pl.Enum) else raw
