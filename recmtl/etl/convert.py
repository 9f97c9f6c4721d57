"""Values that arrive in another form than training saw: converted where that is exact, else refused or counted.

In: rows as a file, a frame or a request brings them, and the :class:`~recmtl.reading.Reading` of the training data.
Out: the same rows with every column in the type that it had in training, and what could not be converted. Every step
is elementwise, so any slice of a frame converts as the whole does.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import numpy as np
import polars as pl

from recmtl.errors import UserError
from recmtl.etl.encode import LARGEST_NUMBER, Encoder, bag_values, canonical
from recmtl.etl.validate import (
    EXACT_FLOATS,
    WHOLE_NUMBER,
    TimeRule,
    epoch_time,
    iso_time,
    local_time,
    number_text,
    time_expression,
)
from recmtl.manifest import Columns
from recmtl.reading import ColumnReading, ColumnType, CsvFormat, NumberStyle, Reading, Unread, add_unread
from recmtl.schema import Schema
from recmtl.statistics import Statistics

__all__ = ["Conventions", "Converter", "RowEncoder", "column_type", "refuse", "see_reading"]

_LOOKS_LIKE_NUMBER = r"^\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*$"
_UNSIGNED = r"^(?:0|[1-9]\d*)$"
_POINT_ZEROS = r"\.0+$"
_CSV, _STYLE = CsvFormat(), NumberStyle()
_NUMBERS: tuple[ColumnType, ...] = ("integer", "float", "float32", "decimal")


@dataclass(frozen=True)
class Conventions:
    """How a source's raw values are written, beside what the types of the columns say."""

    source: str = ""
    """What the training log is: ``csv``, ``parquet``, ``jsonl``."""
    csv: CsvFormat = _CSV
    """How its CSV is written."""
    texts: frozenset[str] = frozenset()
    """Columns that come from CSV, in which :attr:`CsvFormat.missing` stands for a missing value."""
    style: NumberStyle = _STYLE
    """How numbers are written in text."""
    timezone: str = "UTC"
    """In which times without a zone are meant."""
    times: Mapping[str, TimeRule] = field(default_factory=dict)
    """Columns of times → how they are written; the unit is the one that was seen."""


def see_reading(schema: Schema, types: pl.Schema, train: Sequence[Path], keys: Columns, how: Conventions) -> Reading:
    """How the columns that the features read are to be read wherever rows are scored.

    Args:
        schema: the features.
        types: the columns' types after the ETL.
        train: Parquet files of raw train rows.
        keys: the key columns.
        how: what the source says.
    """
    identifying = {c for feature in schema.sparse for c in (feature.column,)}
    verbatim = _verbatim(schema, types, train)
    columns = {}
    for name in schema.columns:
        found = column_type(types[name])
        rule = how.times.get(name)
        missing = tuple(text for text in how.csv.missing if text) if name in how.texts else ()
        columns[name] = found.model_copy(
            update={
                "identifies": name in identifying,
                "key": name in (keys.user, keys.item, keys.request),
                "verbatim": name in verbatim,
                "missing": missing,
                "style": how.style,
                "epoch": rule.unit if rule is not None and rule.unit in ("s", "ms", "us", "ns") else None,
                "time_format": None if rule is None else rule.format,
                "local": how.timezone if rule is None else rule.timezone,
            }
        )
    return Reading(columns=columns, csv=how.csv, source=how.source)


def column_type(dtype: pl.DataType) -> ColumnReading:
    """What a Polars type is called in :class:`ColumnReading`, with its unit, zone and items."""
    if isinstance(dtype, pl.Datetime):
        return ColumnReading(type="datetime", unit=dtype.time_unit, zone=dtype.time_zone)
    if isinstance(dtype, pl.Duration):
        return ColumnReading(type="duration", unit=dtype.time_unit)
    if isinstance(dtype, (pl.List, pl.Array)):
        assert isinstance(dtype.inner, pl.DataType)
        return ColumnReading(type="list", inner=column_type(dtype.inner))
    if dtype.is_decimal():
        return ColumnReading(type="decimal")
    if dtype.is_integer():
        return ColumnReading(type="integer")
    named: dict[object, ColumnType] = {
        pl.String: "text",
        pl.Categorical: "text",
        pl.Enum: "text",
        pl.Boolean: "boolean",
        pl.Float32: "float32",
        pl.Float64: "float",
        pl.Date: "date",
        pl.Time: "clock",
        pl.Binary: "binary",
    }
    return ColumnReading(type=next((name for kind, name in named.items() if dtype == kind), "other"))


def _verbatim(schema: Schema, types: pl.Schema, train: Sequence[Path]) -> set[str]:
    """Text columns in which some value of train is a number that is not written as a program writes whole numbers."""
    tests: dict[str, pl.Expr] = {}
    for feature in schema.sparse:
        dtype = types[feature.column]
        listed = isinstance(dtype, (pl.List, pl.Array)) and dtype.inner == pl.String
        if dtype != pl.String and not listed:
            continue
        value = pl.col(feature.column)
        if feature.kind == "id":
            odd = _written_oddly(value)
        else:
            odd = bag_values(feature, types).list.eval(_written_oddly(pl.element())).list.any()
        tests[feature.column] = tests.get(feature.column, pl.lit(False)) | odd.fill_null(False)
    if not tests:
        return set()
    frame = pl.scan_parquet(list(train), glob=False)
    found = frame.select(test.any().alias(name) for name, test in tests.items()).collect(engine="streaming")
    return {name for name in tests if found[name][0]}


def _written_oddly(text: pl.Expr) -> pl.Expr:
    return text.str.contains(_LOOKS_LIKE_NUMBER) & ~text.str.contains(_UNSIGNED)


class _Converted(NamedTuple):
    """One column's way from how it arrives to how it was in training."""

    value: pl.Expr
    failed: pl.Expr | None = None
    """Whether the value is given and cannot be converted; None: it always can."""
    why: str = ""


class Converter:
    """Rows as they arrive to rows as they were in training.

    Args:
        reading: of the training data.
        columns: those that the model reads.
    """

    def __init__(self, reading: Reading, columns: Collection[str]) -> None:
        self._columns = {name: reading.columns[name] for name in columns if name in reading.columns}

    def __call__(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Unread]]:
        """The rows, converted; and by column the values that are given and cannot be, which are null then."""
        problems: dict[str, Unread] = {}
        converted: dict[str, _Converted] = {}
        for name, how in self._columns.items():
            dtype = frame.schema.get(name)
            if dtype is None or dtype == pl.Null:
                continue
            if dtype == pl.Object:
                values, problem = _objects(frame[name], how)
                frame = frame.with_columns(values)
                if problem is not None:
                    problems[name] = problem
                continue
            found = _convert(name, pl.col(name), dtype, how)
            if found is not None:
                converted[name] = found
        if not converted:
            return frame, problems
        tested = {name: found.failed for name, found in converted.items() if found.failed is not None}
        out = frame.with_columns(found.value.alias(name) for name, found in converted.items())
        for name, test in tested.items():
            failed = frame.select(test.fill_null(False)).to_series()
            if failed.any():
                problems[name] = _unread(frame[name], failed, converted[name].why)
                out = out.with_columns(pl.when(~failed).then(pl.col(name)).alias(name))
        return out, problems


def _unread(values: pl.Series, failed: pl.Series, why: str) -> Unread:
    examples = values.filter(failed).head(1000).unique(maintain_order=True).head(3)
    return Unread(
        count=int(failed.sum()),
        given=len(values) - values.null_count(),
        examples=tuple(_shown(value) for value in examples.to_list()),
        why=why,
    )


def _shown(value: object) -> str:
    text = repr(value) if not isinstance(value, (datetime, date, time, Decimal)) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def refuse(problems: Mapping[str, Unread]) -> None:
    """Refuse rows in which a value cannot be converted.

    Raises:
        UserError: names the first column, the values and what to do.
    """
    for name, problem in problems.items():
        which = ", ".join(problem.examples)
        raise UserError(
            f"column {name!r}: {problem.count:,} of {problem.given:,} values cannot be read as in training "
            f"({which}): {problem.why}"
        )


def _convert(name: str, raw: pl.Expr, dtype: pl.DataType, how: ColumnReading) -> _Converted | None:
    """How a column of type ``dtype`` becomes what it was in training; None: it is that already, or is left to the
    encoding."""
    if not _known(dtype):
        return _never(raw, f"this is {dtype}; pass text, numbers, booleans or times")
    if isinstance(dtype, (pl.Categorical, pl.Enum)):
        raw, dtype = raw.cast(pl.String), pl.String()
        return _convert(name, raw, dtype, how) or _Converted(raw)
    if dtype == pl.Binary and how.type != "binary":
        raw, dtype = canonical(raw, dtype), pl.String()
        return _convert(name, raw, dtype, how) or _Converted(raw)
    if dtype == pl.String and how.missing:
        raw = pl.when(~raw.is_in(list(how.missing))).then(raw)
    by_type: Callable[[str, pl.Expr, pl.DataType, ColumnReading], _Converted | None] | None
    if how.type in _NUMBERS:
        by_type = _identifier if how.identifies else _quantity
    else:
        by_type = {
            "text": _text,
            "boolean": _truth,
            "datetime": _datetime,
            "date": _date,
            "duration": _duration,
            "clock": _clock,
            "binary": _binary,
            "list": _list,
        }.get(how.type)
    found = by_type(name, raw, dtype, how) if by_type is not None else None
    if found is None and dtype == pl.String and how.missing:
        return _Converted(raw)
    return found


def _known(dtype: pl.DataType) -> bool:
    """Whether values of this type are such as a log holds; pandas' periods and intervals are not."""
    single = dtype.is_numeric() or dtype.is_temporal() or dtype.is_nested()
    return single or dtype in (pl.String, pl.Boolean, pl.Binary, pl.Categorical, pl.Enum)


def _never(raw: pl.Expr, why: str) -> _Converted:
    """A type that cannot mean what training saw."""
    return _Converted(pl.lit(None), raw.is_not_null(), why)


def _as_text(name: str, what: str) -> str:
    return (
        f"training read this column as text{what}; pass it as text, in pandas pd.read_csv(…, dtype={{{name!r}: str}})"
    )


def _text(name: str, raw: pl.Expr, dtype: pl.DataType, how: ColumnReading) -> _Converted | None:
    if dtype.is_numeric():
        if how.verbatim:
            why = _as_text(
                name,
                ", and some of its values have leading zeros, a sign, a decimal point or an exponent, which a number "
                "does not keep",
            )
            return _Converted(pl.lit(None, pl.String), _given(raw, dtype), why)
        if dtype.is_float():
            large = _too_large(raw)
            return _Converted(canonical(raw, dtype), large, _as_text(name, _FLOATS))
        return _Converted(canonical(raw, dtype))
    if dtype == pl.Boolean or dtype.is_temporal():
        return _Converted(pl.lit(None, pl.String), raw.is_not_null(), _as_text(name, f", and this is {dtype}"))
    if isinstance(dtype, (pl.List, pl.Array)):
        return _list_of_text(name, raw, dtype, how)
    return None


_FLOATS = ", and from 2^53 on floats skip whole numbers"


def _given(raw: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    return raw.is_not_null() & raw.is_not_nan() if dtype.is_float() else raw.is_not_null()


def _too_large(raw: pl.Expr) -> pl.Expr:
    return raw.is_not_nan() & (raw.abs() >= EXACT_FLOATS)


def _list_of_text(name: str, raw: pl.Expr, dtype: pl.List | pl.Array, how: ColumnReading) -> _Converted | None:
    inner = dtype.inner
    assert isinstance(inner, pl.DataType)
    items = raw if isinstance(dtype, pl.List) else raw.arr.to_list()
    if inner.is_numeric() and how.verbatim:
        why = (
            "training read its values as text, and some have leading zeros, a sign, a decimal point or an exponent, "
            "which a number does not keep; pass lists of text"
        )
        return _Converted(pl.lit(None, pl.List(pl.String)), items.list.len() > 0, why)
    if inner.is_float():
        large = items.list.eval(_too_large(pl.element())).list.any()
        return _Converted(items, large, f"its values identify something{_FLOATS}; pass lists of text or integers")
    if inner == pl.String and how.missing:
        kept = pl.when(~pl.element().is_in(list(how.missing))).then(pl.element())
        return _Converted(items.list.eval(kept))
    return None


def _list(name: str, raw: pl.Expr, dtype: pl.DataType, how: ColumnReading) -> _Converted | None:
    if not isinstance(dtype, (pl.List, pl.Array)) or how.inner is None or not how.identifies:
        return None
    return _list_of_text(name, raw, dtype, how)


def _identifier(name: str, raw: pl.Expr, dtype: pl.DataType, how: ColumnReading) -> _Converted | None:
    """A column of numbers that identify something: exact, as numbers or as their text."""
    if dtype.is_float():
        why = (
            "training read exact numbers, and from 2^53 on floats skip whole numbers; pass integers or text, in pandas "
            f"pd.read_csv(…, dtype={{{name!r}: str}})"
        )
        value = raw.cast(pl.Float32) if how.type == "float32" else raw
        return _Converted(value, _too_large(raw), why)
    if dtype.is_numeric():
        return None
    if dtype == pl.Boolean:
        return _Converted(raw.cast(pl.Int64))
    if dtype == pl.String:
        return _Converted(_number_as_text(raw, how))
    if dtype.is_temporal():
        return _never(raw, f"training read numbers, and this is {dtype}")
    return None


def _number_as_text(raw: pl.Expr, how: ColumnReading) -> pl.Expr:
    """Text that identifies, as the number's own text; what is no such number stays as it is, an id never seen."""
    plain = number_text(raw, how.style)
    if how.type in ("float", "float32"):
        dtype = pl.Float32() if how.type == "float32" else pl.Float64()
        return pl.coalesce(canonical(plain.cast(dtype, strict=False), dtype), raw)
    if how.type == "decimal":
        # 12.50 is the same decimal as 12.5.
        plain = pl.when(plain.str.contains(r"^-?\d+\.\d*$")).then(plain.str.replace(r"\.?0+$", "")).otherwise(plain)
        return pl.coalesce(plain.str.replace(r"^-0$", "0"), raw)
    whole = plain.str.replace(_POINT_ZEROS, "")
    return pl.when(whole.str.contains(WHOLE_NUMBER)).then(whole).otherwise(raw)


def _quantity(name: str, raw: pl.Expr, dtype: pl.DataType, how: ColumnReading) -> _Converted | None:
    """A column of numbers that are quantities."""
    target = pl.Float32() if how.type == "float32" else pl.Float64()
    if dtype.is_float():
        beyond = raw.is_not_nan() & ~(raw.abs() <= LARGEST_NUMBER)
        value = raw if dtype == target else raw.cast(target)
        return _Converted(value, beyond, f"a number lies within ±{LARGEST_NUMBER:.3g}")
    if dtype.is_numeric():
        return _Converted(raw.cast(target)) if how.type == "float32" else None
    if dtype == pl.Boolean:
        return _Converted(raw.cast(target))
    if dtype == pl.String:
        value = number_text(raw, how.style).cast(target, strict=False)
        value = pl.when(value.abs() <= LARGEST_NUMBER).then(value)
        written = "" if how.style.usual else f" written with the decimal {how.style.decimal!r}"
        return _Converted(value, raw.is_not_null() & (raw != "") & value.is_null(), f"training read numbers{written}")
    if dtype.is_temporal():
        return _never(raw, f"training read numbers, and this is {dtype}")
    return None


def _truth(name: str, raw: pl.Expr, dtype: pl.DataType, how: ColumnReading) -> _Converted | None:
    why = "training read true and false"
    if dtype == pl.Boolean:
        return None
    if dtype == pl.String:
        lower = raw.str.strip_chars().str.to_lowercase()
        value = lower.replace_strict(
            {"true": True, "false": False, "1": True, "0": False}, default=None, return_dtype=pl.Boolean
        )
        return _Converted(value, raw.is_not_null() & (raw != "") & value.is_null(), why)
    if dtype.is_numeric():
        value = pl.when(raw == 1).then(True).when(raw == 0).then(False)
        return _Converted(value, _given(raw, dtype) & value.is_null(), why)
    return _never(raw, f"{why}, and this is {dtype}")


def _datetime(name: str, raw: pl.Expr, dtype: pl.DataType, how: ColumnReading) -> _Converted | None:
    target = pl.Datetime(how.unit, how.zone)
    if dtype == target:
        return None
    if isinstance(dtype, pl.Datetime):
        return _Converted(_placed(raw, dtype.time_zone is not None, how))
    if dtype == pl.Date:
        return _Converted(_placed(raw.cast(pl.Datetime("us")), False, how))
    if dtype == pl.String:
        return _datetime_text(raw, how)
    if dtype.is_numeric() and how.time_format == "excel":
        days = time_expression(raw, dtype, "iso", how.local, name, time_format="excel")
        return _Converted(
            _placed(days, True, how), _given(raw, dtype) & days.is_null(), "training read spreadsheet days"
        )
    if dtype.is_numeric() and how.epoch is not None:
        instant = epoch_time(raw, dtype, how.epoch)
        why = f"training read times as numbers since 1970 in {how.epoch}"
        return _Converted(_placed(instant, True, how), _given(raw, dtype) & instant.is_null(), why)
    return _never(
        raw, f"training read times, and {dtype} does not say in which unit since when; pass times as ISO 8601 text"
    )


def _datetime_text(raw: pl.Expr, how: ColumnReading) -> _Converted:
    found: list[pl.Expr] = []
    written = "ISO 8601"
    if how.time_format is not None:
        found.append(time_expression(raw, pl.String(), "iso", how.local, "", time_format=how.time_format))
        written = f"as {how.time_format}, or ISO 8601"
    elif how.epoch is not None:
        found.append(time_expression(raw, pl.String(), how.epoch, how.local, ""))
        written = f"as numbers since 1970 in {how.epoch}, or ISO 8601"
    found.append(iso_time(raw, how.local))
    instant = pl.coalesce(found)
    failed = raw.is_not_null() & (raw != "") & instant.is_null()
    return _Converted(_placed(instant, True, how), failed, f"times are written {written}")


def _placed(raw: pl.Expr, zoned: bool, how: ColumnReading) -> pl.Expr:
    """Times in the zone and the unit that they had in training; those without a zone are meant in ``how.local``."""
    if how.zone is not None:
        raw = (raw if zoned else local_time(raw, how.local)).dt.convert_time_zone(how.zone)
    elif zoned:
        raw = raw.dt.convert_time_zone(how.local).dt.replace_time_zone(None)
    return raw.dt.cast_time_unit(how.unit)


def _date(name: str, raw: pl.Expr, dtype: pl.DataType, how: ColumnReading) -> _Converted | None:
    why = "training read dates, without a time of day; pass them as ISO 8601 text"
    if dtype == pl.Date:
        return None
    if isinstance(dtype, pl.Datetime):
        midnight = raw.dt.time() == pl.time(0)
        return _Converted(pl.when(midnight).then(raw.dt.date()), raw.is_not_null() & ~midnight, why)
    if dtype == pl.String:
        instant = iso_time(raw, "UTC")
        value = pl.when(instant.dt.time() == pl.time(0)).then(instant.dt.date())
        return _Converted(value, raw.is_not_null() & (raw != "") & value.is_null(), why)
    return _never(raw, why)


def _duration(name: str, raw: pl.Expr, dtype: pl.DataType, how: ColumnReading) -> _Converted | None:
    if isinstance(dtype, pl.Duration):
        return None if dtype.time_unit == how.unit else _Converted(raw.dt.cast_time_unit(how.unit))
    return _never(raw, f"training read durations, and this is {dtype}")


def _clock(name: str, raw: pl.Expr, dtype: pl.DataType, how: ColumnReading) -> _Converted | None:
    if dtype == pl.Time:
        return None
    why = "training read times of day; pass them as text such as 12:30:00"
    if dtype == pl.String:
        text = raw.str.strip_chars()
        whole = pl.when(text.str.len_bytes() == 5).then(text + ":00").otherwise(text)
        value = whole.str.to_time("%H:%M:%S%.f", strict=False)
        return _Converted(value, raw.is_not_null() & (raw != "") & value.is_null(), why)
    return _never(raw, why)


def _binary(name: str, raw: pl.Expr, dtype: pl.DataType, how: ColumnReading) -> _Converted | None:
    if dtype in (pl.Binary, pl.String):
        return None
    return _never(raw, f"training read bytes, and this is {dtype}; pass bytes or their text")


# Columns of Python objects: what pandas and requests make of a column of mixed kinds. Each kind is converted by itself.


def _objects(values: pl.Series, how: ColumnReading) -> tuple[pl.Series, Unread | None]:
    """A column of Python objects, converted kind by kind; the result is text where the kinds' types differ."""
    items = [None if _absent(value) else value for value in values.to_list()]
    kinds: dict[str, list[int]] = {}
    for place, value in enumerate(items):
        if value is not None:
            kinds.setdefault(_kind(value), []).append(place)
    parts: list[tuple[list[int], pl.Series]] = []
    problem: Unread | None = None
    for kind, places in kinds.items():
        if kind == "other":
            strange = [items[place] for place in places]
            one = Unread(
                count=len(places),
                given=len(places),
                examples=tuple(dict.fromkeys(_shown(value) for value in strange[:3])),
                why=f"a {type(strange[0]).__name__} is no value of a column; pass text, numbers, booleans or times",
            )
            problem = one if problem is None else problem.joined(one)
            continue
        part = _series(values.name, kind, [items[place] for place in places])
        found = _convert(values.name, pl.col(values.name), part.dtype, how)
        frame = part.to_frame()
        if found is not None:
            if found.failed is not None:
                failed = frame.select(found.failed.fill_null(False)).to_series()
                if failed.any():
                    one = _unread(part, failed, found.why)
                    problem = one if problem is None else problem.joined(one)
            frame = frame.select(found.value.alias(values.name))
            if found.failed is not None and frame.height == len(part):
                frame = frame.with_columns(pl.when(~failed).then(pl.col(values.name)).alias(values.name))
        converted = frame.to_series()
        if len(converted) != len(part):  # a literal for all
            converted = pl.Series(values.name, [None] * len(part), dtype=converted.dtype)
        parts.append((places, converted))
    if problem is not None:
        problem = problem.model_copy(update={"given": sum(map(len, kinds.values()))})
    return _joined(values.name, len(items), parts), problem


def _joined(name: str, rows: int, parts: Sequence[tuple[list[int], pl.Series]]) -> pl.Series:
    """The parts at their places; as text where their types differ."""
    types = {str(part.dtype) for _, part in parts if part.null_count() < len(part)}
    dtype = next((part.dtype for _, part in parts if part.null_count() < len(part)), pl.String())
    if len(types) > 1:
        if any(part.dtype.is_nested() for _, part in parts):
            raise UserError(f"column {name!r} mixes lists with other values; make it one kind")
        parts = [
            (places, part.to_frame().select(canonical(pl.col(name), part.dtype).alias(name)).to_series())
            for places, part in parts
        ]
        dtype = pl.String()
    out: list[object] = [None] * rows
    for places, part in parts:
        for place, value in zip(places, part.to_list(), strict=True):
            out[place] = value
    return pl.Series(name, out, dtype=dtype)


def _absent(value: object) -> bool:
    """None, NaN, and pandas' NA and NaT."""
    if value is None:
        return True
    if isinstance(value, (float, np.floating)):
        return bool(np.isnan(value))
    return type(value).__name__ in ("NAType", "NaTType")


def _kind(value: object) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "boolean"
    if isinstance(value, (int, np.integer)):
        return "integer"
    if isinstance(value, (float, np.floating)):
        return "float"
    if isinstance(value, Decimal):
        return "decimal"
    if isinstance(value, datetime):
        return "datetime" if value.tzinfo is None else "zoned"
    if isinstance(value, date):
        return "date"
    if isinstance(value, time):
        return "clock"
    if isinstance(value, timedelta):
        return "duration"
    if isinstance(value, (bytes, bytearray)):
        return "binary"
    if isinstance(value, (list, tuple, set, frozenset, np.ndarray)):
        return "list"
    return "text" if isinstance(value, (str, UUID)) else "other"


def _series(name: str, kind: str, values: list[object]) -> pl.Series:
    """Values of one kind as Polars has them; whole numbers beyond 64 bits and decimals as their exact text."""
    if kind == "integer":
        numbers = [int(value) for value in values]  # type: ignore[call-overload]
        if all(-(2**63) <= value < 2**63 for value in numbers):
            return pl.Series(name, numbers, dtype=pl.Int64)
        return (
            pl.Series(name, numbers, dtype=pl.Int128)
            if all(abs(v) < 2**126 for v in numbers)
            else pl.Series(name, [str(value) for value in numbers])
        )
    if kind == "float":
        return pl.Series(name, [float(value) for value in values], dtype=pl.Float64)  # type: ignore[arg-type]
    if kind == "list":
        return pl.Series(name, [list(value) for value in values], strict=False)  # type: ignore[call-overload]
    if kind == "text":
        return pl.Series(name, [str(value) for value in values], dtype=pl.String)
    if kind == "zoned":
        instants = [value.astimezone(UTC) for value in values]  # type: ignore[attr-defined]
        return pl.Series(name, instants, dtype=pl.Datetime("us", "UTC"))
    if kind == "datetime":
        return pl.Series(name, values, dtype=pl.Datetime("us"))
    return pl.Series(name, values)


class RowEncoder:
    """Raw rows from any door to table rows and dense numbers: converted as :class:`Converter` does, then encoded.

    Args:
        schema: the features.
        statistics: fitted on train, with the reading of the training data; without one (a package of format 1) rows are
            encoded as they arrive.
    """

    def __init__(self, schema: Schema, statistics: Statistics) -> None:
        reading = statistics.reading
        self._convert = None if reading is None else Converter(reading, schema.columns)
        self._encoder = Encoder(schema, statistics)

    def converted(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Unread]]:
        """The rows as they were in training, and what of them cannot be."""
        return (frame, {}) if self._convert is None else self._convert(frame)

    def rows(self, frame: pl.DataFrame, unread: dict[str, Unread] | None = None) -> pl.DataFrame:
        """Encode rows in memory.

        Args:
            frame: raw columns.
            unread: is added what could not be read, by column; None: such rows are refused.

        Raises:
            UserError: as :func:`recmtl.etl.encode.encode`; a value cannot be read as in training, and ``unread`` is
                None.
        """
        frame, problems = self.converted(frame)
        if unread is None:
            refuse(problems)
        else:
            add_unread(unread, problems)
        return self._encoder.rows(frame)
