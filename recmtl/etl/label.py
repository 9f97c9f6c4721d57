"""Attribution: which impression an event belongs to, and the label that it gives.

In: impressions and event logs. Out: for every event log the impressions that got one, with its time and value, and how
many events belong to none, by reason.

An event goes to the latest candidate (an impression, or an impression that had the event's predecessor, at its first
time) of the same key at or before it, if that lies within the window. The key is a shared impression or request id,
else the user and item. Of candidates at the same time the later row in input order counts. Several events on one
impression make one label: the first in time, of equals the later row; its time starts the next window.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import polars as pl

from recmtl.etl.ingest import ROW
from recmtl.etl.partition import partition
from recmtl.failures import writing

__all__ = ["IMPRESSION", "Attributed", "Follows", "Labels", "attribute", "label"]

IMPRESSION = "impression"
"""What an event follows when it follows the impression itself."""

_START, _ORDER, _EVENT_TIME, _EVENT_ROW, _VALUE = "__start", "__order", "__event_time", "__event_row", "__value"


class Follows(NamedTuple):
    """How one kind of event finds its impression."""

    after: str
    """The event that must have come before, or :data:`IMPRESSION`."""
    window: timedelta
    """How long after it this one may come; the end belongs to the window."""
    by: tuple[str, ...]
    """The columns that join the event with its impression."""
    value: str | None
    """The event's column whose value is the label."""


class Attributed(NamedTuple):
    """Events of one kind, as far as they belong to an impression."""

    first: pl.DataFrame
    """A row an impression that got one: :data:`ROW`, the impression's keys, the first event's ``__start`` (time),
    ``__order`` (its row among the events) and, with a value, ``__value``."""
    unattributed: dict[str, int]
    """Reason → events."""


def attribute(
    candidates: pl.DataFrame, events: pl.DataFrame, by: Sequence[str], after: str, window: timedelta
) -> Attributed:
    """Give each event to its candidate and keep each candidate's first.

    Args:
        candidates: the impression's row and keys, ``__start`` and ``__order``.
        events: the columns ``by``, ``__event_time``, ``__event_row`` and possibly ``__value``.
        by: the columns that join them, without nulls.
        after: the candidates' event, for the reasons.
        window: from ``__start`` on, both ends included.
    """
    starts = candidates.sort(_START, _ORDER).unique([*by, _START], keep="last", maintain_order=True)
    matched = (
        events.join(candidates.select(by).unique().with_columns(known=pl.lit(True)), on=list(by), how="left")
        .sort(_EVENT_TIME, _EVENT_ROW)
        .join_asof(
            starts,
            left_on=_EVENT_TIME,
            right_on=_START,
            by=list(by),
            strategy="backward",
            coalesce=False,
            check_sortedness=False,  # It cannot be checked within groups; sorted just above.
        )
        .with_columns(
            reason=pl.when(pl.col("known").is_null())
            .then(pl.lit(f"no {after} of its key"))
            .when(pl.col(ROW).is_null())
            .then(pl.lit(f"before any {after} of its key"))
            .when(pl.col(_EVENT_TIME) - pl.col(_START) > window)
            .then(pl.lit(f"outside the window after the {after}"))
        )
    )
    counts = matched.filter(pl.col("reason").is_not_null()).group_by("reason").len()
    keys = [c for c in candidates.columns if c not in (_START, _ORDER)]
    first = (
        matched.filter(pl.col("reason").is_null())
        .sort(_EVENT_TIME, _EVENT_ROW, descending=[False, True])
        .unique(ROW, keep="first", maintain_order=True)
        .sort(ROW)
        .select(
            *keys,
            pl.col(_EVENT_TIME).alias(_START),
            pl.col(_EVENT_ROW).alias(_ORDER),
            *([_VALUE] if _VALUE in matched.columns else []),
        )
    )
    return Attributed(first, dict(counts.iter_rows()))


@dataclass(frozen=True)
class Labels:
    """What :func:`label` found for one kind of event."""

    frame: pl.LazyFrame
    """:data:`ROW` of the impressions that got one, ``time`` of the first, and ``value`` where the event has one."""
    unattributed: Mapping[str, int]


def label(
    impressions: pl.LazyFrame,
    events: Mapping[str, pl.LazyFrame],
    follows: Mapping[str, Follows],
    keys: Sequence[str],
    work: Path,
    buckets: int,
) -> dict[str, Labels]:
    """Attribute every event log, one bucket of keys at a time.

    Args:
        impressions: :data:`ROW`, ``time`` and the columns ``keys``.
        events: by name: :data:`ROW`, ``time``, the columns to join by, the value.
        follows: by name, an event after the one that it follows.
        keys: every column that some event joins by.
        work: a folder of its own.
        buckets: how many, for every log.
    """
    start = impressions.select(ROW, *keys, pl.col("time").alias(_START), pl.col(ROW).alias(_ORDER))
    firsts: dict[str, pl.LazyFrame] = {IMPRESSION: start}
    cut: dict[tuple[str, tuple[str, ...]], list[pl.LazyFrame]] = {}
    labels: dict[str, Labels] = {}
    for name, (after, window, by, value) in follows.items():
        if (after, by) not in cut:
            folder = work / f"{after}-by-{'-'.join(by)}"
            candidates = firsts[after].drop(_VALUE, strict=False).drop_nulls(list(by))
            cut[after, by] = partition(candidates, by, buckets, folder)
        log = events[name].select(
            *by,
            pl.col("time").alias(_EVENT_TIME),
            pl.col(ROW).alias(_EVENT_ROW),
            *([pl.col(value).alias(_VALUE)] if value is not None else []),
        )
        given = log.drop_nulls(list(by))
        unattributed: Counter[str] = Counter()
        every, joinable = pl.collect_all([log.select(pl.len()), given.select(pl.len())], engine="streaming")
        if every.item() > joinable.item():
            unattributed[f"without {' or '.join(by)}"] = every.item() - joinable.item()
        folder = work / name
        folder.mkdir(parents=True)
        pairs = zip(cut[after, by], partition(given, by, buckets, folder / "events"), strict=True)
        parts = []
        for number, (candidates, bucket) in enumerate(pairs):
            found = attribute(
                candidates.collect(engine="streaming"), bucket.collect(engine="streaming"), by, after, window
            )
            unattributed.update(found.unattributed)
            parts.append(folder / f"first-{number:05}.parquet")
            with writing(parts[-1]):
                found.first.write_parquet(parts[-1], compression="lz4")
        firsts[name] = pl.scan_parquet(parts, glob=False)
        columns = {_START: "time", _VALUE: "value"} if value is not None else {_START: "time"}
        labels[name] = Labels(firsts[name].select(ROW, *columns).rename(columns), dict(sorted(unattributed.items())))
    return labels
