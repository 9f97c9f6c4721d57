"""Separate event logs: impressions on one side, clicks, purchases, ratings on the other, as a company keeps them.

In: CSV, JSON lines or Parquet files with any column names. Out: a :class:`~recmtl.etl.sources.base.LabelledLog` with
one row an impression: its keys as ``user_id``, ``item_id``, ``time`` and, where it has them, ``request_id`` and
``impression_id``; its other columns under their own names; those of the user and item tables (``user_NAME`` or
``item_NAME`` where another column is called NAME); and one label column an event, named after it.
"""

import json
import keyword
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, timedelta
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import Field, model_validator

from recmtl.errors import UserError
from recmtl.etl.condition import Where
from recmtl.etl.convert import Conventions
from recmtl.etl.files import find, header
from recmtl.etl.ingest import ROW, Ingested, distinct_names, ingest, join_table, one_type, unique_key
from recmtl.etl.label import IMPRESSION, Follows, Labels, label
from recmtl.etl.partition import BUCKET_BYTES, bucket_count
from recmtl.etl.sources.base import (
    Duration,
    Encoding,
    Instant,
    LabelledLog,
    Paths,
    TimeFormat,
    TimeZone,
    check_style,
)
from recmtl.etl.validate import ANY_USE, EARLIEST, ColumnType, Rules, TimeRule, TimeUnit, Uses
from recmtl.failures import writing
from recmtl.manifest import Columns
from recmtl.progress import Progress
from recmtl.reading import MISSING_TEXTS, CsvFormat, NumberStyle, Unread
from recmtl.settings import Name, Settings

__all__ = [
    "EventConfig",
    "EventLogConfig",
    "JoinedTableConfig",
    "LogConfig",
    "Reader",
    "chain",
    "condition_unread",
    "files_of",
    "inputs",
    "known_at",
    "maturity_of",
    "of_negatives",
    "one_item_a_request",
    "read",
    "unread_of",
    "with_label",
]

Canonical = Literal["user", "item", "time", "impression", "request", "value"]

DEFAULT_AFTER = {"click": IMPRESSION, "purchase": "click", "rating": "purchase"}
DEFAULT_VALUE = {"rating": "rating"}
DEFAULT_WINDOW = {"click": timedelta(minutes=30), "purchase": timedelta(days=7), "rating": timedelta(days=30)}

_NAMES = {
    "user": "user_id",
    "item": "item_id",
    "time": "time",
    "impression": "impression_id",
    "request": "request_id",
    "value": "value",
}
_KEYS: tuple[Canonical, ...] = ("user", "item", "time")
_IDS: tuple[Canonical, ...] = ("impression", "request")
DATE = "{date}"
"""In a path: a date such as 2024-01-31."""
_ANY_DATE = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]"
_RESERVED = {IMPRESSION, "impressions", "users", "items", ROW, *_NAMES.values()} - {"value"}


class LogConfig(Settings):
    """One log: its files and what its columns are called."""

    path: Paths
    """CSV, JSON lines or Parquet files: a path, a glob pattern, or a list of them; `{date}` stands for dates as in
    2024-01-31."""
    columns: dict[Canonical, str] = {}
    """What the file calls its key columns, where the name is not the usual one (user_id, item_id, time, impression_id,
    request_id) nor given by the source's `columns`. `value`: the column that holds a rating's stars, an order's sum."""
    drop: tuple[str, ...] = ()
    """Columns of the file to leave out."""
    types: dict[str, ColumnType] = {}
    """Types of columns, by the file's names, where the one seen in all rows is not the one meant (a numeric-looking
    code that is text). Values of another type are bad rows."""
    time_unit: TimeUnit | None = None
    """Overrides the source's `time_unit` for this log."""
    timezone: TimeZone | None = None
    """Overrides the source's `timezone` for this log."""
    where: Where | None = None
    """Only rows for which this condition over the file's columns is true are read; the others are counted. Such as
    `quantity > 0 and status not in ['returned', 'cancelled']`; see docs/conditions.md."""
    time_format: TimeFormat | None = None
    """Overrides the source's `time_format` for this log."""


class EventConfig(LogConfig):
    """A log of events that may follow an impression; gives a label column named after the event.

    With `columns.value` the label is the first event's value, null where there is none; otherwise it is 1 or 0.
    """

    after: Name | None = None
    """The event that must come before, or `impression`. By default click follows the impression, purchase the click,
    rating the purchase; any other event the impression."""
    window: Duration | None = None
    """How long after it this event may come, its end included: 30m, 7d. By default 30 minutes for click, 7 days for
    purchase, 30 days for rating."""
    join: Literal["auto", "impression", "request", "time"] = "auto"
    """How an event finds its impression: by impression id, by request id (and item), or by user, item and time. auto:
    by the first of the two ids that both logs have, else by time. The window holds in every case."""


class JoinedTableConfig(Settings):
    """A table of users or items, joined to the impressions by key."""

    path: Paths
    """CSV, JSON lines or Parquet files: a path, a glob pattern, or a list of them; with `{date}`, the last
    date's."""
    key: str | None = None
    """The key's column in the file, where it is neither user_id (item_id) nor what the source's `columns` says."""
    drop: tuple[str, ...] = ()
    """Columns of the file to leave out."""
    types: dict[str, ColumnType] = {}
    """Types of columns, as for a log."""


class EventLogConfig(Settings):
    """Separate logs of impressions and events, with optional tables of users and items."""

    kind: Literal["event_log"] = "event_log"
    """This source."""
    impressions: LogConfig
    """What was shown: one row an item shown to a user."""
    events: Annotated[dict[Name, EventConfig], Field(min_length=1)]
    """What the users did, one log an event; the names are yours (click, purchase, rating have usual windows)."""
    users: JoinedTableConfig | None = None
    """A row a user; a key that comes twice is an error, one that is absent gives missing values."""
    items: JoinedTableConfig | None = None
    """A row an item, likewise."""
    columns: dict[Canonical, str] = {}
    """What every log and table that has such a column calls its user, item, time, impression or request."""
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
    observed_until: Instant | None = None
    """The instant up to which events were recorded. By default the latest valid impression time."""
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
    def _events_form_chains(self) -> "EventLogConfig":
        chain(self)
        check_style(self.decimal, self.thousands)
        if "value" in self.impressions.columns or "value" in self.columns:
            raise ValueError("columns.value belongs to one event: events.NAME.columns.value")
        return self


def chain(config: EventLogConfig) -> dict[str, tuple[str, timedelta]]:
    """Event → (what it follows, window), with the defaults filled in, every event after the one that it follows.

    Raises:
        ValueError: an event follows an unknown one or itself, or has no window.
    """
    follows: dict[str, tuple[str, timedelta]] = {}
    for name, event in config.events.items():
        if name in _RESERVED:
            raise ValueError(f"events.{name}: this name is taken by a column of recmtl's; give the event another")
        after = event.after or DEFAULT_AFTER.get(name, IMPRESSION)
        window = event.window or DEFAULT_WINDOW.get(name)
        if after != IMPRESSION and after not in config.events:
            names = ", ".join((*config.events, IMPRESSION))
            raise ValueError(f"events.{name}.after: there is no event {after!r}; name one of {names}")
        if window is None:
            raise ValueError(f"events.{name}.window: say how long after {after} it may come, e.g. 7d")
        follows[name] = (after, window)
    ordered: dict[str, tuple[str, timedelta]] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ValueError(f"events: {' → '.join((*path, name))} is a circle; mend `after`")
        after = follows[name][0]
        if after != IMPRESSION:
            visit(after, (*path, name))
        ordered.setdefault(name, follows[name])

    for name in follows:
        visit(name, ())
    return ordered


def inputs(config: EventLogConfig) -> dict[str, Path]:
    """The files of all logs and tables."""
    return {text: path for files in files_of(config).values() for text, path in files.items()}


def files_of(config: EventLogConfig, day: date | None = None) -> dict[str, dict[str, Path]]:
    """The files of all logs and tables: log → what the user wrote → path.

    Args:
        config: the source's own; ``{date}`` in a path stands for any date. Of a log all dates are meant, of a table of
            users or items the last one.
        day: of a table, the last one up to this day.

    Raises:
        UserError: a file that is not there.
    """
    found = {"impressions": find(_any_date(config.impressions.path), "data.source.impressions.path")}
    for name, event in config.events.items():
        found[name] = find(_any_date(event.path), f"data.source.events.{name}.path")
    for table, joined in (("users", config.users), ("items", config.items)):
        if joined is not None:
            found[table] = _last(joined.path, day, f"data.source.{table}.path")
    return found


def _any_date(paths: Paths) -> Paths:
    if isinstance(paths, str):
        return paths.replace(DATE, _ANY_DATE)
    return tuple(path.replace(DATE, _ANY_DATE) for path in paths)


def _last(paths: Paths, day: date | None, where: str) -> dict[str, Path]:
    """The files of a table, of which a pattern with a date names one."""
    found: dict[str, Path] = {}
    for text in [paths] if isinstance(paths, str) else paths:
        if DATE not in text:
            found |= find(text, where)
            continue
        before, _, after = text.partition(DATE)
        dated = {}
        for name, path in find(f"{before}{_ANY_DATE}{after}", where).items():
            with suppress(ValueError):
                dated[date.fromisoformat(name[len(before) : len(before) + len("2024-01-31")])] = (name, path)
        known = [one for one in dated if day is None or one <= day]
        if not known:
            raise UserError(f"{where}: there is no file {text} of {day} or before")
        name, path = dated[max(known)]
        found[name] = path
    return found


def read(
    config: EventLogConfig,
    work: Path,
    progress: Progress,
    *,
    uses: Uses = ANY_USE,
    bucket_bytes: int = BUCKET_BYTES,
) -> LabelledLog:
    """Read, validate, attribute and join the logs.

    Args:
        config, work, progress, uses: as :class:`~recmtl.etl.sources.base.Read` has them.
        bucket_bytes: size of the buckets that are attributed at a time.

    Raises:
        UserError: files or columns that are not there, a key that comes twice in a table, names that clash.
    """
    files = files_of(config)
    reader = Reader(config, files, work, progress)
    joins = {name: reader.join_columns(name) for name in config.events}
    ids = {column for by in joins.values() for column in by if column in ("impression_id", "request_id")}
    impressions = reader.impressions(ids, uses)
    events = {name: reader.event(name, joins[name]) for name in config.events}
    tables: dict[str, Ingested] = {name: reader.table(name, uses) for name in ("users", "items") if name in files}
    logs: dict[str, Ingested] = {"impressions": impressions, **events, **tables}

    frames: dict[str, pl.LazyFrame] = {name: log.frame for name, log in logs.items()}
    for key in ("user_id", "item_id", "request_id", "impression_id"):
        frames = one_type(frames, key)
    for name, by in joins.items():
        if by == ("request_id",):
            one_item_a_request(frames["impressions"], name)

    follows = {
        name: Follows(after, window, joins[name], reader.value(name)) for name, (after, window) in chain(config).items()
    }
    progress.say(f"attributing {', '.join(follows)} to {impressions.rows:,} impressions")
    count = bucket_count((path for paths in files.values() for path in paths.values()), bucket_bytes)
    keys = [column for column in ("user_id", "item_id", *sorted(ids)) if column in impressions.columns]
    found = label(frames["impressions"], {n: frames[n] for n in events}, follows, keys, work / "labels", count)
    renames = _table_names(impressions, tables, found)
    rows = _assemble(
        {name: frames[name] for name in ("impressions", *tables)}, impressions, found, follows, renames, work, count
    )
    own = reader.own_names(rows.collect_schema().names())
    rows = rows.rename(own)
    given_at = {name: known_at(name) for name, event in follows.items() if event.value is not None}
    latest = frames["impressions"].select(pl.col("time").max()).collect(engine="streaming").item()
    return LabelledLog(
        frame=rows,
        columns=Columns(
            user=own.get("user_id", "user_id"),
            item=own.get("item_id", "item_id"),
            time=own.get("time", "time"),
            request=own.get("request_id", "request_id") if "request_id" in impressions.columns else None,
        ),
        aliases=own,
        outcomes=frozenset(follows) | frozenset(given_at.values()),
        maturity=maturity_of(follows),
        known_at=given_at,
        observed_until=config.observed_until or (latest and latest.astimezone(UTC)),
        inputs=inputs(config),
        read={name: log.read for name, log in logs.items()},
        duplicates={name: log.duplicates for name, log in logs.items() if name not in tables},
        rejected={name: dict(log.rejected) for name, log in logs.items()},
        unattributed={name: dict(labelled.unattributed) for name, labelled in found.items()},
        rejected_files=tuple(path for log in logs.values() for path in log.rejected_files),
        warnings=(
            *(warning for log in logs.values() for warning in log.warnings),
            *(text for name in found if (text := _lost(name, events[name], found[name]))),
            *(text for name, event in events.items() for text in of_negatives(name, event.negatives)),
        ),
        filtered={name: log.filtered for name, log in logs.items() if log.filtered},
        condition_unread=condition_unread({name: log.condition_unread for name, log in logs.items()}),
        unread=unread_of(impressions, tables, renames, own),
        conventions=reader.conventions(impressions, tables, renames, own),
    )


def condition_unread(logs: Mapping[str, Mapping[str, Unread]]) -> dict[tuple[str, str], Unread]:
    """What conditions read and could not: the condition's setting and the column → its unreadable values.

    Args:
        logs: log → column → its unreadable values.
    """
    return {
        (f"data.source.{'' if name == 'impressions' else 'events.'}{name}.where", column): unread
        for name, columns in logs.items()
        for column, unread in columns.items()
    }


_AMOUNTS = {"quantity", "qty", "amount", "amt", "units", "price", "value", "total"}


def _is_amount(column: str) -> bool:
    """Whether a column is called like a quantity or a sum of money."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column).lower()
    parts = [part for part in re.split(r"[^a-z]+", words) if part]
    return bool(parts) and (parts[-1] in _AMOUNTS or parts[0] in {"quantity", "qty"})


def of_negatives(event: str, negatives: Mapping[str, Unread]) -> list[str]:
    """A warning for each column of an event's log that holds negative quantities.

    Args:
        event: its name.
        negatives: column → its negative values.
    """
    return [
        f"data.source.events.{event}: {found.count:,} of the {found.given:,} values of column {column!r} are negative, "
        f"such as {', '.join(found.examples)}, and their rows count as {event}; if they are returns or cancellations, "
        f"leave them out by data.source.events.{event}.where: {_reference(column)} > 0"
        for column, found in negatives.items()
    ]


def _reference(column: str) -> str:
    """The column as a condition reads it."""
    plain = column.isidentifier() and not keyword.iskeyword(column)
    return column if plain else f"column({json.dumps(column, ensure_ascii=False)})"


def unread_of(
    impressions: Ingested,
    tables: Mapping[str, Ingested],
    renames: Mapping[str, Mapping[str, str]],
    own: Mapping[str, str],
) -> dict[str, Unread]:
    """Column of the assembled rows → its unreadable values.

    Args:
        impressions, tables: as they were ingested.
        renames: table → new names of its columns.
        own: canonical key column → what the rows call it.
    """
    found = {own.get(name, name): unread for name, unread in impressions.unread.items()}
    for table, log in tables.items():
        found |= {renames[table].get(name, name): unread for name, unread in log.unread.items()}
    return found


def known_at(name: str) -> str:
    """The column with the instant at which an event's value became known."""
    return f"{name}:time"


def _lost(name: str, log: Ingested, labels: Labels) -> str:
    """A warning where more than half of a kind's events belong to no impression, else nothing."""
    lost = sum(labels.unattributed.values())
    if 2 * lost <= log.rows:
        return ""
    reason = max(labels.unattributed, key=lambda reason: labels.unattributed[reason])
    return (
        f"data.source.events.{name}: {lost:,} of {log.rows:,} events belong to no impression, most of them because: "
        f"{reason}; check its columns, time zone, `after`, `window` and `join`"
    )


def maturity_of(follows: Mapping[str, Follows]) -> dict[str, timedelta]:
    """The windows up to each event added up; an event with a value needs none, because only given values count."""
    total = {IMPRESSION: timedelta(0)}
    for name, event in follows.items():
        total[name] = total[event.after] + event.window
    return {name: total[name] for name, event in follows.items() if event.value is None}


def one_item_a_request(impressions: pl.LazyFrame, event: str) -> None:
    """See that a request is enough to find the impression.

    Raises:
        UserError: it is not.
    """
    several = (
        impressions.group_by("request_id")
        .agg(pl.col("item_id").n_unique().alias("items"))
        .filter(pl.col("items") > 1)
        .select(pl.len())
        .collect(engine="streaming")
        .item()
    )
    if several:
        raise UserError(
            f"data.source.events.{event}: {several:,} requests show several items, so its log needs the item beside "
            f"the request (events.{event}.columns.item), or `join: time`"
        )


class Reader:
    """Reads one log after the other as the config says."""

    def __init__(
        self, config: EventLogConfig, files: Mapping[str, Mapping[str, Path]], work: Path, progress: Progress
    ) -> None:
        self._config, self._files, self._work, self._progress = config, files, work, progress
        self._headers = {
            name: header(
                paths,
                self._where(name),
                separator=config.separator,
                encoding=config.encoding,
                quote=config.quote or False,
            )
            for name, paths in files.items()
        }
        for key, column in config.columns.items():
            if not any(column in names for names in self._headers.values()):
                raise UserError(
                    f"data.source.columns.{key}: none of the files has a column {column!r}; the impressions have "
                    f"{', '.join(self._headers['impressions'])}"
                )

    def _where(self, name: str) -> str:
        return f"data.source.{'events.' if name in self._config.events else ''}{name}"

    def _log(self, name: str) -> LogConfig:
        return self._config.impressions if name == "impressions" else self._config.events[name]

    def _own_name(self, name: str, key: Canonical) -> str | None:
        """What the log's file calls a key column; None where it has none."""
        columns, shared = self._log(name).columns, self._config.columns
        if key in columns:
            if columns[key] not in self._headers[name]:
                raise UserError(
                    f"{self._where(name)}.columns.{key}: the file has no column {columns[key]!r}; it has "
                    f"{', '.join(self._headers[name])}"
                )
            return columns[key]
        candidates = [shared[key]] if key in shared else []
        if key != "value":
            candidates.append(_NAMES[key])
        elif name in DEFAULT_VALUE:
            candidates.append(DEFAULT_VALUE[name])
        return next((column for column in candidates if column in self._headers[name]), None)

    def _needed(self, name: str, key: Canonical) -> str:
        column = self._own_name(name, key)
        if column is None:
            shared = self._config.columns.get(key)
            other = f" (there is none named {shared!r}, as data.source.columns.{key} says)" if shared else ""
            raise UserError(
                f"{self._where(name)}.columns.{key}: say which column holds the {key}{other}; the file has "
                f"{', '.join(self._headers[name])}"
            )
        return column

    def own_names(self, columns: Collection[str]) -> dict[str, str]:
        """Canonical key column → what the impressions' file calls it, where that is another name and is free.

        The rows go on under the logs' own names, because those are what rows to score will come with.
        """
        found = {_NAMES[key]: self._own_name("impressions", key) for key in (*_KEYS, *_IDS)}
        return {
            canonical: own
            for canonical, own in found.items()
            if canonical in columns and own is not None and own not in columns
        }

    def join_columns(self, name: str) -> tuple[str, ...]:
        """The canonical columns that join an event with its impression."""
        join = self._config.events[name].join
        for key in _IDS:
            if join == key:
                self._needed("impressions", key)
                self._needed(name, key)
            both = self._own_name("impressions", key) is not None and self._own_name(name, key) is not None
            if join == key or (join == "auto" and both):
                if key == "impression":
                    return ("impression_id",)
                return ("request_id",) if self._own_name(name, "item") is None else ("request_id", "item_id")
        return ("user_id", "item_id")

    def value(self, name: str) -> str | None:
        """The event's column whose value is the label, in the ingested log."""
        if self._own_name(name, "value") is not None:
            return "value"
        if name in DEFAULT_VALUE:
            self._needed(name, "value")
        return None

    def _ingest(
        self,
        name: str,
        rename: Mapping[str, str],
        rules: Rules,
        *,
        drop: Sequence[str],
        deduplicate: bool,
        condition: str | None = None,
        amounts: Sequence[str] = (),
    ) -> Ingested:
        files = self._files[name]
        for column in drop:
            if column in rename or column not in self._headers[name]:
                why = "it is one of the keys" if column in rename else f"it has {', '.join(self._headers[name])}"
                raise UserError(f"{self._where(name)}.drop: cannot leave {column!r} out of the file: {why}")
        self._progress.say(f"reading {name}: {', '.join(files) if len(files) < 4 else f'{len(files)} files'}")
        return ingest(
            name,
            files,
            self._where(name),
            self._work / f"log-{name}",
            rules=rules,
            rename=rename,
            drop=drop,
            deduplicate=deduplicate,
            separator=self._config.separator,
            encoding=self._config.encoding,
            quote=self._config.quote or False,
            missing=self._config.missing,
            condition=condition,
            amounts=amounts,
        )

    def _times(self, name: str) -> dict[str, TimeRule]:
        config, log = self._config, self._log(name)
        rule = TimeRule(
            log.time_unit or config.time_unit,
            log.timezone or config.timezone,
            log.time_format or config.time_format,
            config.earliest,
            config.latest,
        )
        return {"time": rule}

    def _types(self, name: str, types: Mapping[str, ColumnType], rename: Mapping[str, str]) -> dict[str, ColumnType]:
        unknown = sorted(set(types) - set(self._headers[name]))
        if unknown:
            raise UserError(
                f"{self._where(name)}.types: the file has no column {unknown[0]!r}; it has "
                f"{', '.join(self._headers[name])}"
            )
        return {rename.get(column, column): dtype for column, dtype in types.items()}

    @property
    def style(self) -> NumberStyle:
        """How numbers are written in text."""
        return NumberStyle(decimal=self._config.decimal, thousands=self._config.thousands)

    def conventions(
        self,
        impressions: Ingested,
        tables: Mapping[str, Ingested],
        renames: Mapping[str, Mapping[str, str]],
        own: Mapping[str, str],
    ) -> Conventions:
        """How the values of the assembled rows are written; arguments as for :func:`unread_of`."""
        config = self._config
        texts = {own.get(c, c) for c in impressions.columns} if impressions.kind == "csv" else set()
        for table, log in tables.items():
            if log.kind == "csv":
                texts |= {renames[table].get(c, c) for c in log.columns}
        rule = self._times("impressions")["time"]
        return Conventions(
            source=impressions.kind,
            csv=CsvFormat(
                separator=config.separator, encoding=config.encoding, quote=config.quote, missing=config.missing
            ),
            texts=frozenset(texts),
            style=self.style,
            timezone=rule.timezone,
            times={own.get("time", "time"): replace(rule, unit=impressions.units.get("time", rule.unit))},
        )

    def impressions(self, ids: set[str], uses: Uses) -> Ingested:
        """The impressions, less the columns to drop; ``ids``: the id columns that events join by."""
        name = "impressions"
        rename: dict[str, str] = {self._needed(name, key): _NAMES[key] for key in _KEYS}
        for key in _IDS:
            column = self._own_name(name, key)
            if column is not None:
                rename[column] = _NAMES[key]
        rules = Rules(
            keys=("user_id", "item_id", *sorted(ids)),
            optional_keys=tuple(c for c in ("impression_id", "request_id") if c in rename.values() and c not in ids),
            times=self._times(name),
            types=self._types(name, self._config.impressions.types, rename),
            uses=uses.under(rename),
            style=self.style,
        )
        drop = self._config.impressions.drop
        events = self._config.events
        labels = dict.fromkeys(events, "the name of an event")
        labels |= {known_at(event): f"the name of the times of event {event}" for event in events}
        clash = next((c for c in self._headers[name] if c in labels and c not in (*drop, *rename)), None)
        if clash is not None:
            raise UserError(
                f"data.source.impressions: its column {clash!r} has {labels[clash]}; give the event another name, "
                f"or leave the column out with impressions.drop: [{clash!r}]"
            )
        return self._ingest(name, rename, rules, drop=drop, deduplicate=True, condition=self._config.impressions.where)

    def event(self, name: str, by: Sequence[str]) -> Ingested:
        """An event log: only what joins it, its time, its value and what its condition reads matter."""
        rename = {self._needed(name, "time"): "time"}
        for key in ("user", "item", *_IDS):
            column = self._needed(name, key) if _NAMES[key] in by else self._own_name(name, key)
            if column is not None:
                rename[column] = _NAMES[key]
        value = self._own_name(name, "value") if self.value(name) is not None else None
        if value is not None:
            rename[value] = "value"
        ids = ("impression_id", "request_id")
        rules = Rules(
            keys=tuple(column for column in by if column not in ids),
            # An event without an id is no bad row: it did not come from an impression.
            optional_keys=tuple(c for c in rename.values() if c.endswith("_id") and (c in ids or c not in by)),
            required=("value",) if value is not None else (),
            times=self._times(name),
            types=self._types(name, self._config.events[name].types, rename),
            uses=Uses(labels=("value",), ids=()),
            style=self.style,
        )
        others = [c for c in self._headers[name] if c not in rename]
        amounts = [c for c in self._headers[name] if c == value or (c in others and _is_amount(c))]
        return self._ingest(
            name,
            rename,
            rules,
            drop=others,
            deduplicate=True,
            condition=self._config.events[name].where,
            amounts=amounts,
        )

    def table(self, name: str, uses: Uses) -> Ingested:
        """A table of users or items, its key checked."""
        config = self._config.users if name == "users" else self._config.items
        assert config is not None
        key: Canonical = "user" if name == "users" else "item"
        named = [config.key] if config.key is not None else [self._config.columns.get(key), _NAMES[key]]
        column = next((c for c in named if c in self._headers[name]), None)
        if column is None:
            raise UserError(
                f"data.source.{name}.key: say which column holds the {key}; the file has "
                f"{', '.join(self._headers[name])}"
            )
        rename = {column: _NAMES[key]}
        rules = Rules(
            keys=(_NAMES[key],),
            types=self._types(name, config.types, rename),
            uses=replace(uses.under(rename, name.removesuffix("s")), labels=()),
            style=self.style,
        )
        table = self._ingest(name, rename, rules, drop=config.drop, deduplicate=False)
        unique_key(table, _NAMES[key], f"data.source.{name}")
        return table


def _table_names(
    impressions: Ingested, tables: Mapping[str, Ingested], labels: Collection[str]
) -> dict[str, dict[str, str]]:
    """Table → new names of its columns, where theirs are taken."""
    keys = {"users": "user_id", "items": "item_id"}
    added = {name.removesuffix("s"): [c for c in log.columns if c != keys[name]] for name, log in tables.items()}
    taken = [*impressions.columns, *labels, *(known_at(name) for name in labels)]
    found = distinct_names(taken, added, "data.source")
    return {name: found[name.removesuffix("s")] for name in tables}


def _assemble(
    frames: Mapping[str, pl.LazyFrame],
    impressions: Ingested,
    labels: Mapping[str, Labels],
    follows: Mapping[str, Follows],
    renames: Mapping[str, Mapping[str, str]],
    work: Path,
    blocks: int,
) -> pl.LazyFrame:
    """Labels and tables beside the impressions, a block of rows at a time, in source order."""
    keys = {"users": "user_id", "items": "item_id"}
    joined = {name: frame for name, frame in frames.items() if name in keys}
    folder = work / "rows"
    folder.mkdir()
    parts = []
    size = -(-max(impressions.rows, 1) // blocks)
    for number in range(blocks):
        inside = pl.col(ROW).is_between(number * size, (number + 1) * size, closed="left")
        block = frames["impressions"].filter(inside)
        for name, found in labels.items():
            block = with_label(block, name, found.frame.filter(inside), follows[name])
        for name, table in joined.items():
            key = keys[name]
            needed = table.join(frames["impressions"].filter(inside).select(key).unique(), on=key, how="semi")
            block = join_table(block, needed, key, renames[name])
        parts.append(folder / f"part-{number:05}.parquet")
        with writing(parts[-1]):
            block.sink_parquet(parts[-1], row_group_size=1 << 17)
    return pl.scan_parquet(parts, glob=False)


def with_label(rows: pl.LazyFrame, name: str, found: pl.LazyFrame, event: Follows) -> pl.LazyFrame:
    """The rows with an event's label: its value and when it became known, or 1 where it happened and 0 elsewhere."""
    if event.value is None:
        given = found.select(ROW, pl.lit(1, pl.Int8).alias(name))
        joined = rows.join(given, on=ROW, how="left", maintain_order="left")
        return joined.with_columns(pl.col(name).fill_null(0))
    given = found.select(ROW, pl.col("value").alias(name), pl.col("time").alias(known_at(name)))
    return rows.join(given, on=ROW, how="left", maintain_order="left")
