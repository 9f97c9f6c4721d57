"""Separate event logs: impressions on one side, clicks, purchases, ratings on the other, as a company keeps them.

In: CSV or Parquet files with any column names. Out: a :class:`~recmtl.etl.sources.base.LabelledLog` with one row an
impression, one label column an event, the columns of the user and item tables beside them, the keys renamed to
``user_id``, ``item_id``, ``time``, ``request_id`` and ``impression_id``.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field, model_validator

from recmtl.etl.sources.base import Duration, Instant, Paths, TimeUnit, TimeZone
from recmtl.settings import Name, Settings

__all__ = ["EventConfig", "EventLogConfig", "JoinedTableConfig", "LogConfig"]

Canonical = Literal["user", "item", "time", "impression", "request", "value"]
ColumnType = Literal["int", "float", "bool", "string", "list"]

DEFAULT_AFTER = {"click": "impression", "purchase": "click", "rating": "purchase"}
DEFAULT_WINDOW = {"click": timedelta(minutes=30), "purchase": timedelta(days=7), "rating": timedelta(days=30)}


class LogConfig(Settings):
    """One log: its files and what its columns are called."""

    path: Paths
    """CSV or Parquet files: a path, a glob pattern, or a list of them."""
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


class JoinedTableConfig(Settings):
    """A table of users or items, joined to the impressions by key."""

    path: Paths
    """CSV or Parquet files: a path, a glob pattern, or a list of them."""
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
    """Column names that hold for every log and table that has such a column."""
    time_unit: TimeUnit = "auto"
    """How times are written."""
    timezone: TimeZone = "UTC"
    """Zone of times that are written without one."""
    earliest: Instant = datetime(1990, 1, 1, tzinfo=UTC)
    """A time before this is impossible, and its row is a bad one."""
    latest: Instant | None = None
    """A time after this is impossible, and its row is a bad one. By default a day after the moment of reading."""
    observed_until: Instant | None = None
    """The instant up to which events were recorded. By default the latest valid impression time."""
    separator: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """CSV: between fields."""
    missing: tuple[str, ...] = ("", "null", "NULL", "nan", "NaN", "None", "\\N")
    """CSV: texts that stand for a missing value."""

    @model_validator(mode="after")
    def _events_form_chains(self) -> "EventLogConfig":
        chain(self)
        return self


def chain(config: EventLogConfig) -> dict[str, tuple[str, timedelta]]:
    """Event → (what it follows, window), with the defaults filled in, every event after the one that it follows.

    Raises:
        ValueError: an event follows an unknown one or itself, or has no window.
    """
    follows: dict[str, tuple[str, timedelta]] = {}
    for name, event in config.events.items():
        if name == "impression":
            raise ValueError("events: `impression` is taken by the impressions; give the event another name")
        usual = DEFAULT_AFTER.get(name, "impression")
        after = event.after or usual
        window = event.window or DEFAULT_WINDOW.get(name)
        if after != "impression" and after not in config.events:
            raise ValueError(
                f"events.{name}.after: there is no event {after!r}; name one of {', '.join(config.events)} or impression"
            )
        if window is None:
            raise ValueError(f"events.{name}.window: say how long after {after} it may come, e.g. 7d")
        follows[name] = (after, window)
    ordered: dict[str, tuple[str, timedelta]] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise ValueError(f"events: {' → '.join((*path, name))} is a circle; mend `after`")
        after = follows[name][0]
        if after != "impression":
            visit(after, (*path, name))
        ordered.setdefault(name, follows[name])

    for name in follows:
        visit(name, ())
    return ordered
