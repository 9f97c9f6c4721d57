"""Rows that are joined already: one Parquet, CSV or JSON lines table with features and labels side by side.

In: files, and what their key columns are called. Out: a :class:`~recmtl.etl.sources.base.LabelledLog` with the columns
as they stand, the time in UTC and, where train, validation and test come as files of their own, which row is whose.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from recmtl.errors import UserError
from recmtl.etl.condition import Where
from recmtl.etl.convert import Conventions
from recmtl.etl.files import TAG, find, header
from recmtl.etl.ingest import ingest
from recmtl.etl.sources.base import Encoding, Instant, LabelledLog, Paths, TimeFormat, TimeZone, check_style
from recmtl.etl.validate import ANY_USE, EARLIEST, ColumnType, Rules, TimeRule, TimeUnit, Uses
from recmtl.manifest import Columns
from recmtl.progress import Progress
from recmtl.reading import MISSING_TEXTS, CsvFormat, NumberStyle
from recmtl.settings import Settings

__all__ = ["SPLIT_COLUMN", "GivenPaths", "TableConfig", "inputs", "read"]

SPLIT_COLUMN = "split:given"
"""The column that says which split a row was given for."""

_NAME = "table"
_WHERE = "data.source"
_USUAL = {"user": "user_id", "item": "item_id", "time": "time", "request": "request_id"}


class GivenPaths(Settings):
    """Train, validation and test as files of their own."""

    train: Paths
    """Files to fit on."""
    validation: Paths | None = None
    """Files to choose by; left out, validation is carved from train."""
    test: Paths
    """Files to report on."""


class TableConfig(Settings):
    """A table of rows that are joined and labelled already."""

    kind: Literal["table"] = "table"
    """This source."""
    path: Paths | None = None
    """CSV, JSON lines or Parquet files: a path, a glob pattern, or a list of them; to be split by `data.split`."""
    paths: GivenPaths | None = None
    """Instead of `path`: the splits as files of their own."""
    user: str | None = "user_id"
    """The column of users; null: there is none. The usual name may be absent, another not. So for the next three."""
    item: str | None = "item_id"
    """The column of items."""
    time: str | None = "time"
    """The column with the time of the row's impression."""
    request: str | None = "request_id"
    """The column that tells which rows were shown together."""
    outcomes: tuple[str, ...] = ()
    """Columns that are known only after the impression, beside the tasks' labels: never inferred, refused as
    features."""
    deduplicate: bool = False
    """Whether rows equal to an earlier one in all columns (and of the same split) are dropped."""
    drop: tuple[str, ...] = ()
    """Columns to leave out."""
    types: dict[str, ColumnType] = {}
    """Types of columns, where the one seen in all rows is not the one meant (a numeric-looking code that is text).
    Values of another type are bad rows."""
    where: Where | None = None
    """Only rows for which this condition over the file's columns is true are read; the others are counted. Such as
    `country == 'NO' and not is_bot`; see docs/conditions.md."""
    time_unit: TimeUnit = "auto"
    """How times are written."""
    timezone: TimeZone = "UTC"
    """Zone of times that are written without one."""
    time_format: TimeFormat | None = None
    """How times are written in text where it is not ISO 8601: as `strptime` has it (`%m/%d/%Y %H:%M`), or `excel` for a
    spreadsheet's days since 1899-12-30."""
    earliest: Instant = EARLIEST
    """A time before this is impossible, and its row is a bad one."""
    latest: Instant | None = None
    """A time after this is impossible, and its row is a bad one. By default a day after the moment of reading."""
    separator: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """CSV: between fields."""
    quote: Annotated[str, Field(min_length=1, max_length=1)] | None = '"'
    """CSV: the character that encloses fields; null: nothing does."""
    encoding: Encoding = "utf-8"
    """CSV and JSON lines: how the text is encoded."""
    missing: tuple[str, ...] = MISSING_TEXTS
    """CSV: texts that stand for a missing value."""
    decimal: Literal[".", ","] = "."
    """In text, the character before the fraction of a number: `12,50` needs `,`."""
    thousands: Literal["", ",", ".", " ", "'", "_"] = ""
    """In text, the character between groups of three digits of a number: `1,234.50` needs `,`."""

    @model_validator(mode="after")
    def _one_way_to_name_files(self) -> "TableConfig":
        check_style(self.decimal, self.thousands)
        if (self.path is None) == (self.paths is None):
            raise ValueError("a table needs `path`, or `paths` with train and test; one of the two")
        return self


def inputs(config: TableConfig) -> dict[str, Path]:
    """The table's files."""
    return {text: path for files in _files(config).values() for text, path in files.items()}


def _files(config: TableConfig) -> dict[str, dict[str, Path]]:
    if config.path is not None:
        return {"": find(config.path, f"{_WHERE}.path")}
    assert config.paths is not None
    found: dict[str, dict[str, Path]] = {}
    for split in ("train", "validation", "test"):
        paths: Paths | None = getattr(config.paths, split)
        if paths is None:
            continue
        found[split] = find(paths, f"{_WHERE}.paths.{split}")
        for other in found:
            shared = {p.resolve() for p in found[split].values()} & {p.resolve() for p in found[other].values()}
            if other != split and shared:
                raise UserError(f"{_WHERE}.paths: {shared.pop()} is named for {other} and for {split}; name it once")
    return found


def read(config: TableConfig, work: Path, progress: Progress, *, uses: Uses = ANY_USE) -> LabelledLog:
    """Read and validate the table.

    Args:
        config, work, progress, uses: as :class:`~recmtl.etl.sources.base.Read` has them.

    Raises:
        UserError: files or columns that are not there.
    """
    files = _files(config)
    every = {text: path for named in files.values() for text, path in named.items()}
    columns = header(every, _WHERE, separator=config.separator, encoding=config.encoding, quote=config.quote or False)
    keys = _keys(config, columns)
    for setting, names in (("outcomes", config.outcomes), ("drop", config.drop), ("types", config.types)):
        unknown = [name for name in names if name not in columns]
        if unknown:
            raise UserError(f"{_WHERE}.{setting}: there is no column {unknown[0]!r}; there is {', '.join(columns)}")
    time = TimeRule(config.time_unit, config.timezone, config.time_format, config.earliest, config.latest)
    style = NumberStyle(decimal=config.decimal, thousands=config.thousands)
    progress.say(f"reading {', '.join(every) if len(every) < 4 else f'{len(every)} files'}")
    log = ingest(
        _NAME,
        every,
        _WHERE,
        work / "log",
        rules=Rules(
            keys=[keys[key] for key in ("user", "item") if key in keys],
            optional_keys=[keys[key] for key in ("request",) if key in keys],
            times={keys["time"]: time} if "time" in keys else {},
            types=config.types,
            uses=uses,
            style=style,
        ),
        drop=config.drop,
        deduplicate=config.deduplicate,
        separator=config.separator,
        encoding=config.encoding,
        quote=config.quote or False,
        missing=config.missing,
        tags=_tags(files) if config.paths is not None else None,
        condition=config.where,
    )
    given = config.paths is not None
    return LabelledLog(
        frame=log.frame.rename({TAG: SPLIT_COLUMN}) if given else log.frame,
        columns=Columns(**keys),
        outcomes=frozenset(config.outcomes) | ({SPLIT_COLUMN} if given else frozenset()),
        split_column=SPLIT_COLUMN if given else None,
        inputs=every,
        read={_NAME: log.read},
        duplicates={_NAME: log.duplicates} if config.deduplicate else {},
        rejected={_NAME: dict(log.rejected)},
        rejected_files=log.rejected_files,
        warnings=log.warnings,
        unread=log.unread,
        filtered={_NAME: log.filtered} if log.filtered else {},
        condition_unread={(f"{_WHERE}.where", name): found for name, found in log.condition_unread.items()},
        conventions=Conventions(
            source=log.kind,
            csv=CsvFormat(
                separator=config.separator, encoding=config.encoding, quote=config.quote, missing=config.missing
            ),
            texts=frozenset(log.columns if log.kind == "csv" else ()),
            style=style,
            timezone=config.timezone,
            times={name: replace(time, unit=unit) for name, unit in log.units.items()},
        ),
    )


def _tags(files: Mapping[str, Mapping[str, Path]]) -> dict[str, str]:
    return {text: split for split, named in files.items() for text in named}


def _keys(config: TableConfig, columns: list[str]) -> dict[str, str]:
    found = {}
    for key, usual in _USUAL.items():
        name: str | None = getattr(config, key)
        if name is None or (name == usual and name not in columns):
            continue
        if name not in columns:
            raise UserError(f"{_WHERE}.{key}: there is no column {name!r}; there is {', '.join(columns)}")
        if name in config.drop:
            raise UserError(f"{_WHERE}.drop: {name!r} is the {key}; set `{key}: null` to do without")
        found[key] = name
    return found
