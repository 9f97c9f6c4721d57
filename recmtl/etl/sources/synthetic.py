"""Made-up event logs with known truth, read like a company's.

In: :class:`SyntheticConfig`. Out: a folder with logs, which the ``event_log`` source reads as it reads any logs::

    PATH/logs/impressions, clicks, purchases, ratings, users, items   .parquet or .csv, unusable rows and all
    PATH/truth.parquet     what no log holds: the chances of each impression's labels (read by recmtl.etl.truth)
    PATH/synthetic.json    the parameters, and the instant up to which events were recorded

``truth.parquet`` has a row an impression: ``request_id``, ``user_id``, ``item_id``, ``label:click`` and
``label:purchase`` (probability that the label is 1), ``given:purchase`` (that it is 1, given a click label of 1),
``label:rating`` (its mean in stars, given that there is one) and ``main:click`` (a score from the true effects of user,
item and position alone). The folder is written under a temporary name and renamed whole; the same parameters are not
written again.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from filelock import FileLock
from pydantic import Field, model_validator

from recmtl import durable
from recmtl.errors import UserError
from recmtl.etl.sources import event_log
from recmtl.etl.sources.base import Instant, LabelledLog
from recmtl.etl.sources.event_log import DEFAULT_WINDOW, EventConfig, EventLogConfig, JoinedTableConfig, LogConfig
from recmtl.etl.sources.synthetic_truth import label_truth
from recmtl.etl.sources.synthetic_world import (
    SECOND,
    Events,
    Ints,
    Shown,
    World,
    WorldConfig,
    behave,
    build_world,
    show,
)
from recmtl.etl.validate import ANY_USE, Uses
from recmtl.expansion import ExpandedPath
from recmtl.progress import Progress, Silent
from recmtl.schema import Feature
from recmtl.settings import Settings

__all__ = ["Noise", "SyntheticConfig", "event_log_config", "inputs", "read", "write_logs"]

VERSION = 2
"""Of what is generated: raise it whenever the same parameters would give other bytes."""

_LOGS = ("impressions", "clicks", "purchases", "ratings", "users", "items")
_TIMES = {"impressions": "shown_at", "clicks": "clicked_at", "purchases": "bought_at", "ratings": "rated_at"}
_LOG_OF = {"click": "clicks", "purchase": "purchases", "rating": "ratings"}


class Noise(Settings):
    """What is wrong with the logs, as shares of their rows."""

    duplicates: float = Field(default=0.005, ge=0, le=0.5)
    """Rows of each log that are written twice."""
    bad_rows: float = Field(default=0.002, ge=0, le=0.5)
    """Unusable rows put among those of each log: a time that cannot be read or be true, or no user or item. They are
    damaged copies, so that no true row is lost."""
    missing: float = Field(default=0.02, ge=0, le=1)
    """Cells of the user and item tables that are empty."""
    absent: float = Field(default=0.005, ge=0, le=1)
    """Users and items whose row is not in its table."""


class SyntheticConfig(WorldConfig):
    """Event logs drawn from a made-up world whose truth is known."""

    kind: Literal["synthetic"] = "synthetic"
    """This source."""
    path: ExpandedPath
    """The folder for the logs and the truth beside them; it is written if it does not hold these parameters' logs."""
    format: Literal["parquet", "csv"] = "parquet"
    """How the logs are written."""
    request_ids: bool = False
    """Whether the event logs carry the request's id, which is then the join; else events are attributed by time."""
    noise: Noise = Noise()
    """What is wrong with the logs."""
    observed_until: Instant | None = None
    """Reads the logs as if events had been recorded up to this instant only, which masks what was then unknown. By
    default events are recorded until every window has closed."""

    @model_validator(mode="after")
    def _csv_holds_no_vector(self) -> "SyntheticConfig":
        if self.format == "csv" and self.content_dim:
            raise ValueError("content_dim: CSV holds no vectors; set content_dim: 0, or format: parquet")
        return self

    def parameters(self) -> dict[str, Any]:
        """What shapes the bytes that are written."""
        beside = {"kind", "path", "observed_until"}
        if not self.drift.moves:  # so that logs from before there was drift are still those of their parameters
            beside.add("drift")
        return {"version": VERSION, **self.model_dump(mode="json", exclude=beside)}


def read(config: SyntheticConfig, work: Path, progress: Progress, *, uses: Uses = ANY_USE) -> LabelledLog:
    """Write the logs where they are not there yet, and read them as event logs.

    Args:
        config, work, progress, uses: as :class:`~recmtl.etl.sources.base.Read` has them.

    Raises:
        UserError: the folder holds something else.
    """
    write_logs(config, progress)
    log = event_log.read(event_log_config(config), work, progress, uses=uses)
    return replace(log, truth=config.path / "truth.parquet", default_features=default_features(config))


def inputs(config: SyntheticConfig) -> dict[str, Path]:
    """The files of the logs, which are written first where they are not there yet."""
    write_logs(config, Silent())
    return event_log.inputs(event_log_config(config))


def event_log_config(config: SyntheticConfig) -> EventLogConfig:
    """How the logs of this config are read; they must have been written."""

    def path(name: str) -> str:
        return str(config.path / _log_name(config, name))

    def event(name: str) -> EventConfig:
        log = _LOG_OF[name]
        return EventConfig(path=path(log), columns={"time": _TIMES[log]}, window=DEFAULT_WINDOW[name])

    recorded = json.loads((config.path / "synthetic.json").read_text())["observed_until"]
    return EventLogConfig(
        impressions=LogConfig(path=path("impressions"), columns={"time": _TIMES["impressions"]}),
        events={name: event(name) for name in _LOG_OF},
        users=JoinedTableConfig(path=path("users")),
        items=JoinedTableConfig(path=path("items")),
        observed_until=config.observed_until or datetime.fromisoformat(recorded),
    )


def default_features(config: SyntheticConfig) -> tuple[Feature, ...]:
    """Everything that the logs and tables say before the outcome.

    Users get a row of their own where they have the impressions to learn it from. With a row for all, a model learns
    the others' few clicks by heart, and ranks new impressions worse than by what the user table says of them.
    """
    content = (Feature(name="content", kind="vector", dim=config.content_dim),) if config.content_dim else ()
    return (
        Feature(name="user_id", kind="id", embedding_dim=16, min_count=60),
        Feature(name="item_id", kind="id", embedding_dim=16),
        Feature(name="position", kind="id", embedding_dim=4),
        Feature(name="segment", kind="id", embedding_dim=8),
        Feature(name="country", kind="id", embedding_dim=4),
        Feature(name="interests", kind="bag", separator="|", embedding_dim=8),
        Feature(name="age", kind="number"),
        Feature(name="visits_per_week", kind="number", transform="log1p"),
        Feature(name="category", kind="id", embedding_dim=8),
        Feature(name="tags", kind="bag", separator="|", embedding_dim=8),
        Feature(name="price", kind="number", transform="log1p"),
        Feature(name="quality", kind="number"),
        *content,
    )


def _log_name(config: SyntheticConfig, name: str) -> str:
    return f"logs/{name}.{config.format}"


def write_logs(config: SyntheticConfig, progress: Progress) -> bool:
    """Write the folder unless it holds the logs of these parameters already; returns whether it was written.

    Raises:
        UserError: the folder holds something that recmtl did not generate.
    """
    folder = config.path
    durable.make_folder(folder.parent)
    with FileLock(folder.parent / f".{folder.name}.lock"):
        durable.recover(folder)
        if _is_there(config):
            return False
        if (
            folder.exists()
            and not (folder / "synthetic.json").is_file()
            and (folder.is_file() or any(folder.iterdir()))
        ):
            raise UserError(
                f"data.source.path: {folder} holds something other than synthetic logs; name a new or an empty folder"
            )
        progress.say(f"writing {config.impressions:,} made-up impressions to {folder}")
        durable.remove_litter(folder.absolute().parent, folder.name, held=True)
        for word in ("writing", "stale"):  # of recmtl 0.1
            durable.remove(folder.parent / f".{folder.name}.{word}")
        with durable.replacing(folder) as building:
            _generate(config, building)
        return True


def _is_there(config: SyntheticConfig) -> bool:
    """Whether the folder holds the logs of these parameters, each of the size that it was written with."""
    try:
        found = json.loads((config.path / "synthetic.json").read_text())
        return bool(found["parameters"] == config.parameters()) and all(
            (config.path / name).stat().st_size == size for name, size in found["bytes"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _generate(config: SyntheticConfig, folder: Path) -> None:
    # One stream of randomness for each step, so that a change to one leaves the others' draws alone.
    *seeds, of_drift = np.random.SeedSequence(config.seed).spawn(6)
    streams, drift = (np.random.default_rng(seed) for seed in seeds), np.random.default_rng(of_drift)
    world = build_world(config, next(streams))
    shown = show(config, world, next(streams), drift)
    events = behave(config, shown, next(streams))
    truth = label_truth(
        shown,
        config.delays,
        rating_noise=config.strengths.rating_noise,
        click_window=DEFAULT_WINDOW["click"],
        purchase_window=DEFAULT_WINDOW["purchase"],
        by_request=config.request_ids,
        generator=next(streams),
    )
    noise = next(streams)

    windows = sum((DEFAULT_WINDOW[name] for name in _LOG_OF), timedelta())
    observed_until = int(shown.time.max()) + windows // timedelta(microseconds=1)
    keys = _keys(config, shown)
    frames = {"impressions": _with_time(keys.with_columns(position=pl.Series(shown.position)), shown.time)}
    for name, log in _LOG_OF.items():
        frames[log] = _event_rows(config, keys, events[name], observed_until)
    for log, time in _TIMES.items():
        frames[log] = _spoiled(frames[log], config.noise, noise).rename({"time": time})
    frames["users"] = _with_gaps(_user_table(world), config.noise, noise)
    frames["items"] = _with_gaps(_item_table(config, world), config.noise, noise)

    (folder / "logs").mkdir(parents=True)
    for log in _LOGS:
        path = folder / _log_name(config, log)
        if config.format == "csv":
            frames[log].write_csv(path)
        else:
            frames[log].write_parquet(path)
    keys.with_columns(
        pl.Series("label:click", truth.click),
        pl.Series("label:purchase", truth.click * truth.purchase_given_click),
        pl.Series("given:purchase", truth.purchase_given_click),
        pl.Series("label:rating", truth.rating),
        pl.Series("main:click", shown.main_click),
    ).write_parquet(folder / "truth.parquet")
    names = [*(_log_name(config, log) for log in _LOGS), "truth.parquet"]
    parameters = config.parameters()
    record = {
        "fingerprint": hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest(),
        "parameters": parameters,
        "observed_until": datetime.fromtimestamp(observed_until // SECOND + 1, UTC).isoformat(),
        "rows": {log: frame.height for log, frame in frames.items()},
        "bytes": {name: (folder / name).stat().st_size for name in names},
    }
    (folder / "synthetic.json").write_text(json.dumps(record, indent=2) + "\n")


def _names(prefix: str, codes: Ints, count: int) -> pl.Series:
    """Codes as text of one width: u00042."""
    every = pl.Series([f"{prefix}{code:0{len(str(max(count - 1, 0)))}}" for code in range(count)], dtype=pl.String)
    return every.gather(codes)


def _keys(config: SyntheticConfig, shown: Shown) -> pl.DataFrame:
    """request_id, user_id, item_id of every impression."""
    return pl.DataFrame(
        {
            "request_id": _names("r", shown.request, int(shown.request.max()) + 1),
            "user_id": _names("u", shown.user, config.users),
            "item_id": _names("i", shown.item, config.items),
        }
    )


def _with_time(frame: pl.DataFrame, time: Ints) -> pl.DataFrame:
    """Adds ``time`` as ISO 8601 text in UTC, to the microsecond: text, because a log can then hold unreadable times."""
    column = pl.Series("time", time).cast(pl.Datetime("us")).dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
    return frame.with_columns(column)


def _event_rows(config: SyntheticConfig, keys: pl.DataFrame, events: Events, observed_until: int) -> pl.DataFrame:
    """One kind's log: what happened until the recording ended, in order of time."""
    order = np.lexsort((events.impression, events.time))
    order = order[events.time[order] <= observed_until]
    rows = keys[events.impression[order]]
    if not config.request_ids:
        rows = rows.drop("request_id")
    if events.value is not None:
        rows = rows.with_columns(pl.Series("rating", events.value[order]))
    return _with_time(rows, events.time[order])


def _spoiled(frame: pl.DataFrame, noise: Noise, generator: np.random.Generator) -> pl.DataFrame:
    """Puts exact duplicates and unusable copies among the rows, each somewhere after its original."""
    again = np.flatnonzero(generator.random(frame.height) < noise.duplicates)
    spoilt = np.flatnonzero(generator.random(frame.height) < noise.bad_rows)
    kind = generator.integers(5, size=spoilt.size)
    bad = frame[spoilt].with_columns(pl.Series("kind", kind))
    what = pl.col("kind")
    bad = bad.with_columns(
        time=pl.when(what == 0)
        .then(pl.lit("yesterday"))
        .when(what == 1)
        .then(pl.lit("0001-01-01T00:00:00.000000Z"))
        .when(what == 2)
        .then(pl.lit(None, pl.String))
        .otherwise("time"),
        user_id=pl.when(what == 3).then(pl.lit(None, pl.String)).otherwise("user_id"),
        item_id=pl.when(what == 4).then(pl.lit(None, pl.String)).otherwise("item_id"),
    ).drop("kind")
    place = np.concatenate([np.arange(frame.height), again, spoilt]).astype(np.float64)
    place[frame.height :] += generator.integers(1, 50, size=again.size + spoilt.size) + 0.5
    return pl.concat([frame, frame[again], bad])[np.argsort(place, kind="stable")]


def _joined(codes: Ints, prefix: str) -> Sequence[str]:
    return ["|".join(f"{prefix}{code:02}" for code in row) for row in codes]


def _user_table(world: World) -> pl.DataFrame:
    users = world.visits.size
    return pl.DataFrame(
        {
            "user_id": _names("u", np.arange(users), users),
            "segment": [f"segment_{code:02}" for code in world.segment],
            "country": [f"country_{code}" for code in world.country],
            "interests": _joined(world.interests, "category_"),
            "age": world.age.astype(np.int64),
            "visits_per_week": world.visits_per_week,
        }
    )


def _item_table(config: SyntheticConfig, world: World) -> pl.DataFrame:
    items = world.popularity.size
    table = pl.DataFrame(
        {
            "item_id": _names("i", np.arange(items), items),
            "category": [f"category_{code:02}" for code in world.category],
            "tags": _joined(world.tags, "tag_"),
            "price": world.price,
            "quality": world.quality,
        }
    )
    if config.content_dim == 0:
        return table
    content = pl.Series("content", world.content.astype(np.float32), dtype=pl.Array(pl.Float32, config.content_dim))
    return table.with_columns(content.arr.to_list())


def _with_gaps(table: pl.DataFrame, noise: Noise, generator: np.random.Generator) -> pl.DataFrame:
    """Empties cells other than the key, and drops rows."""
    key, *others = table.columns
    gaps = [pl.Series(name, generator.random(table.height) < noise.missing) for name in others]
    present = generator.random(table.height) >= noise.absent
    return table.with_columns(
        pl.when(pl.lit(gap)).then(None).otherwise(pl.col(gap.name)).alias(gap.name) for gap in gaps
    ).filter(pl.Series(key, present))
