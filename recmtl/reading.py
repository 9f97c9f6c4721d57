"""How raw values were read in training, so that they are read alike wherever rows are scored.

In: what the source's config says and what the ETL saw. Out: :class:`Reading`, a small JSON file (``reading.json``)
beside the statistics, in a prepared dataset and in every package. :mod:`recmtl.etl.convert` applies it to rows of an
evaluation, of ``recmtl predict``, of a request and of MLflow's model alike.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from recmtl.settings import Settings

__all__ = [
    "MISSING_TEXTS",
    "ColumnReading",
    "ColumnType",
    "CsvFormat",
    "NumberStyle",
    "Reading",
    "Unread",
    "add_unread",
]

MISSING_TEXTS = ("", "null", "NULL", "nan", "NaN", "None", "\\N")
"""Texts that stand for a missing value in CSV, unless the source says otherwise."""

ColumnType = Literal[
    "text",
    "integer",
    "float",
    "float32",
    "decimal",
    "boolean",
    "datetime",
    "date",
    "duration",
    "clock",
    "binary",
    "list",
    "other",
]
"""Types of a column after the ETL: ``clock`` is a time of day; ``other`` is read as it arrives."""


class Unread(Settings):
    """Values of one column that are given and cannot be read; they count as missing."""

    count: int
    """How many."""
    given: int
    """How many values the column has, these included."""
    examples: tuple[str, ...] = ()
    """Up to three of them, the commonest first."""
    why: str = ""
    """What keeps them from being read, and what to do about it."""

    @property
    def share(self) -> float:
        """Of the given values."""
        return self.count / self.given if self.given else 0.0

    def joined(self, other: "Unread") -> "Unread":
        """Both together."""
        return Unread(
            count=self.count + other.count,
            given=self.given + other.given,
            examples=tuple(dict.fromkeys([*self.examples, *other.examples]))[:3],
            why=self.why or other.why,
        )


def add_unread(total: dict[str, Unread], found: Mapping[str, Unread]) -> None:
    """Add the unreadable values of more rows to ``total``, column by column."""
    for name, unread in found.items():
        total[name] = unread.joined(total[name]) if name in total else unread


class NumberStyle(Settings):
    """How numbers are written in text."""

    decimal: Literal[".", ","] = "."
    """The character before the fraction."""
    thousands: Literal["", ",", ".", " ", "'", "_"] = ""
    """The character between groups of three digits; empty: there is none."""

    @property
    def usual(self) -> bool:
        """Whether numbers are written as in most programming languages."""
        return self.decimal == "." and not self.thousands


class CsvFormat(Settings):
    """How a CSV file is written."""

    separator: str = Field(default=",", min_length=1, max_length=1)
    """Between fields."""
    encoding: str = "utf-8"
    """Of the text."""
    quote: str | None = '"'
    """The character that encloses fields; None: there is none."""
    missing: tuple[str, ...] = MISSING_TEXTS
    """Texts that stand for a missing value."""


class ColumnReading(Settings):
    """How one column was read in training."""

    type: ColumnType
    """The column's type after the ETL."""
    identifies: bool = False
    """Whether an id or bag feature reads it, so that its exact text matters."""
    key: bool = False
    """Whether it identifies the user, the item or the request."""
    verbatim: bool = False
    """Text: some value of train is written as a number with leading zeros, a sign, a decimal point or an exponent. The
    text of a number that arrives is then not the text that training saw."""
    missing: tuple[str, ...] = ()
    """Texts that stand for a missing value in this column."""
    style: NumberStyle = NumberStyle()
    """How numbers are written in text."""
    epoch: Literal["s", "ms", "us", "ns"] | None = None
    """Datetime: the unit, since 1970, of times that arrive as numbers; None: a number is no time here."""
    time_format: str | None = None
    """Datetime: how times are written in text, as ``strptime`` has it, or ``excel``: days since 1899-12-30; None: ISO
    8601."""
    unit: Literal["ms", "us", "ns"] = "us"
    """Datetime, duration: the resolution."""
    zone: str | None = None
    """Datetime: the zone of the column; None: its times have none."""
    local: str = "UTC"
    """Datetime: the zone in which a time without a zone is meant."""
    inner: "ColumnReading | None" = None
    """List: its items."""


class Reading(Settings):
    """How the columns that a model reads were read in training."""

    format: Literal[1] = 1
    """Version of ``reading.json``."""
    columns: dict[str, ColumnReading]
    """By the column's name in the training data."""
    csv: CsvFormat = CsvFormat()
    """How the training log's CSV is written; the usual way where the log was none."""
    source: str = ""
    """What the training log was: ``csv``, ``parquet``, ``jsonl``; empty: unknown."""
