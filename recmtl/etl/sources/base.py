"""What every source is: a config class, a function that lists its files, and one that reads them into a LabelledLog."""

import codecs
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol

import polars as pl
from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

from recmtl.etl.convert import Conventions
from recmtl.etl.validate import ANY_USE, Uses
from recmtl.expansion import ExpandedTexts
from recmtl.manifest import Columns
from recmtl.progress import Progress
from recmtl.reading import Unread
from recmtl.schema import Feature
from recmtl.settings import Settings

__all__ = [
    "Duration",
    "Encoding",
    "Instant",
    "LabelledLog",
    "Paths",
    "Read",
    "SourceKind",
    "TimeFormat",
    "TimeZone",
    "check_style",
    "duration_text",
]

_UNITS = {"ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000, "w": 604_800_000_000}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")


def _parse_duration(value: Any) -> Any:
    if isinstance(value, timedelta):
        return _positive(value)
    text = str(value).strip()
    if not re.fullmatch(rf"(?:{_DURATION.pattern}\s*)+", text):
        raise ValueError(f"{value!r} is not a length of time: write a number and a unit, such as 30m, 12h or 7d")
    return _positive(timedelta(microseconds=round(sum(float(n) * _UNITS[u] for n, u in _DURATION.findall(text)))))


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("a length of time must be more than 0")
    return value


def duration_text(value: timedelta) -> str:
    """A length of time as text that a config reads back: 30m, 7d, 1d12h; finer than a millisecond is rounded away."""
    rest = value // timedelta(microseconds=1)
    parts = []
    for unit in ("d", "h", "m", "s", "ms"):
        count, rest = divmod(rest, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


Duration = Annotated[
    timedelta,
    BeforeValidator(_parse_duration),
    PlainSerializer(duration_text, return_type=str),
    WithJsonSchema({"type": "string", "examples": ["30m", "7d"]}),
]
"""A length of time in text: a number and a unit out of ms, s, m, h, d, w."""


def _in_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


Instant = Annotated[datetime, AfterValidator(_in_utc)]
"""A date or time, ISO 8601; without a zone it is in UTC."""


def _check_zone(name: str) -> str:
    try:  # Polars' own list of zones: the system's may be missing.
        pl.select(pl.lit(datetime(2000, 1, 1)).dt.replace_time_zone(name))
    except pl.exceptions.PolarsError:
        raise ValueError(
            f"{name!r} is not a time zone: write a name such as UTC, Europe/Berlin or Asia/Shanghai"
        ) from None
    return name


TimeZone = Annotated[str, AfterValidator(_check_zone)]
"""A time zone by its IANA name."""


def _check_time_format(text: str) -> str:
    if text == "excel":
        return text
    try:
        tried = pl.Series(["2024-01-02"]).str.to_datetime(text, strict=False)
    except pl.exceptions.PolarsError as error:
        raise ValueError(
            f"{text!r} is no format of times ({str(error).splitlines()[0]}): write it as strptime has it, such as "
            "%m/%d/%Y %H:%M, or excel"
        ) from None
    if "%" not in text or tried.dtype.base_type() != pl.Datetime:
        raise ValueError(
            f"{text!r} is no format of times: write it as strptime has it, such as %m/%d/%Y %H:%M, or excel"
        )
    return text


TimeFormat = Annotated[str, AfterValidator(_check_time_format)]
"""How times are written: a format of ``strptime``, or ``excel``."""


def check_style(decimal: str, thousands: str) -> None:
    """See that numbers can be told apart.

    Raises:
        ValueError: both characters are the same.
    """
    if decimal == thousands:
        raise ValueError(f"decimal and thousands: {decimal!r} cannot stand for both; change one of them")


def _check_encoding(name: str) -> str:
    try:
        codec = codecs.lookup(name)
        # Some codecs make no text (hex, zip), or none that a file is written in.
        if not getattr(codec, "_is_text_encoding", True) or codec.name in ("idna", "punycode", "undefined"):
            raise LookupError(name)
        return codec.name
    except LookupError:
        raise ValueError(f"{name!r} is not a text encoding: write a name such as utf-8, cp1252 or latin-1") from None


Encoding = Annotated[str, AfterValidator(_check_encoding)]
"""A text encoding by its usual name."""

Paths = ExpandedTexts
"""A file, a glob pattern, or a list of them; relative to the working directory. ``~`` and ``${NAME}`` are expanded."""


@dataclass(frozen=True)
class LabelledLog:
    """What a source hands to the rest of the ETL: rows that are staged on disk, validated, joined and labelled."""

    frame: pl.LazyFrame
    """A lazy scan of Parquet files staged under ``work``, in source order: the raw columns, the label columns (null
    where there is no label), and :data:`~recmtl.manifest.ROW` (Int64, 0, 1, 2, … in source order, after rejects and
    dropped duplicates)."""
    columns: Columns
    """The key columns' names in ``frame``. The time column is Datetime("us", "UTC") and never null."""
    outcomes: frozenset[str]
    """Columns that are known only after the impression, labels included: never inferred, refused as features."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names by which features may call a column of ``frame``: user_id → customer. What serves reads the
    column's own name, that of the logs."""
    maturity: Mapping[str, timedelta] = field(default_factory=dict)
    """Label column → time from the impression until its label is known; a label that is absent here needs none."""
    known_at: Mapping[str, str] = field(default_factory=dict)
    """Label column → column with the instant at which a given label became known (Datetime us UTC, else null)."""
    observed_until: datetime | None = None
    """Event logs: events were recorded up to this instant, in UTC."""
    day: tuple[datetime, datetime] | None = None
    """Daily: where the day of evaluation begins and ends. Labels of train and validation rows are looked at when it
    begins, those of test rows when it ends, and of these only the ones that were not known when it began count."""
    split_column: str | None = None
    """For splits that are given: the column that holds train, validation or test."""
    default_features: tuple[Feature, ...] = ()
    """What the source recommends when the config names no features; empty: to be inferred."""
    inputs: Mapping[str, Path] = field(default_factory=dict)
    """Every file that was read: as the user wrote it → its path."""
    read: Mapping[str, int] = field(default_factory=dict)
    """Rows read per input."""
    duplicates: Mapping[str, int] = field(default_factory=dict)
    """Exact duplicates dropped per input."""
    rejected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Input → reason → rows quarantined."""
    unattributed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Event → reason → events that belong to no impression."""
    rejected_files: tuple[Path, ...] = ()
    """Parquet files of the quarantined rows: source, reason, row (as JSON text)."""
    truth: Path | None = None
    """synthetic: the file with the true probabilities."""
    warnings: tuple[str, ...] = ()
    """What a person should know, each naming the setting to change."""
    unread: Mapping[str, Unread] = field(default_factory=dict)
    """Column of the frame → its values that are given and cannot be read; they are missing in the frame."""
    filtered: Mapping[str, int] = field(default_factory=dict)
    """Input → rows that its ``where`` leaves out; neither kept nor rejected."""
    condition_unread: Mapping[tuple[str, str], Unread] = field(default_factory=dict)
    """What a ``where`` reads and could not: its setting and the column → the column's unreadable values."""
    conventions: Conventions = field(default_factory=Conventions)
    """How the raw values are written."""


class Read(Protocol):
    """Reads a source."""

    def __call__(self, config: Any, work: Path, progress: Progress, *, uses: Uses = ANY_USE) -> LabelledLog:
        """Stage the rows under ``work``, an empty folder.

        Args:
            config: the source's own.
            work: where to.
            progress: where to say what is being read.
            uses: what the columns are used for.
        """


class SourceKind(NamedTuple):
    """A line of the table of sources."""

    config: type[Settings]
    """Its config class, told apart by the field ``kind``."""
    read: Read
    """Reads it into a LabelledLog."""
    inputs: Callable[[Any], Mapping[str, Path]]
    """config → the files that ``read`` will read, without reading them: what the user wrote → path."""
