"""KuaiRand (Gao et al., CIKM 2022): short videos shown and watched, in its published layout, whole or sliced.

In: a folder with log_standard*.csv (and log_random*.csv), user_features*.csv and video_features_basic*.csv. Out: a
:class:`~recmtl.etl.sources.base.LabelledLog`, a row an impression, with the user's and the video's columns beside it.

Derived columns: ``time`` (UTC) from time_ms; ``hour`` and ``weekday`` (1 Monday) of Beijing; ``share_watched``, which
is play_time_ms / duration_ms clipped to [0, 1] and null where the duration is 0.
"""

import glob
from dataclasses import replace
from pathlib import Path
from typing import Literal

import polars as pl

from recmtl.errors import UserError
from recmtl.etl.convert import Conventions
from recmtl.etl.files import find, header
from recmtl.etl.ingest import Ingested, distinct_names, ingest, join_table, one_type, unique_key
from recmtl.etl.sources.base import LabelledLog, Paths
from recmtl.etl.validate import ANY_USE, ColumnType, Rules, TimeRule, Uses
from recmtl.expansion import ExpandedPath
from recmtl.failures import writing
from recmtl.manifest import Columns
from recmtl.progress import Progress
from recmtl.schema import Feature
from recmtl.settings import Settings

__all__ = ["OUTCOMES", "KuaiRandConfig", "inputs", "read"]

OUTCOMES = (
    "is_click",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "long_view",
    "play_time_ms",
    "profile_stay_time",
    "comment_stay_time",
    "is_profile_enter",
    "share_watched",
)
"""What is known only after the video was shown. The duration and the tab are known before."""

_WHERE = "data.source.path"
_TIME = "time"
_BEIJING = "Asia/Shanghai"
_NEEDED = ("user_id", "video_id", "time_ms", "is_click", "play_time_ms", "duration_ms")
_TEXT = (
    "user_active_degree",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    "video_type",
    "upload_dt",
    "upload_type",
    "tag",
)
_HELP = (
    "it must hold log_standard*.csv, user_features*.csv and video_features_basic*.csv as KuaiRand publishes them "
    "(https://kuairand.com)"
)
_DERIVED = (_TIME, "hour", "weekday", "share_watched")


class KuaiRandConfig(Settings):
    """KuaiRand-Pure, -1K or -27K, or a slice in their layout."""

    kind: Literal["kuairand"] = "kuairand"
    """This source."""
    path: ExpandedPath
    """The folder with the CSV files, or the one above its `data/`."""
    logs: Paths = "log_standard*.csv"
    """Which logs to read, as patterns inside the folder: log_random*.csv holds what was shown at random, log_*.csv is
    both."""
    video_statistics: bool = False
    """Whether to join video_features_statistic*.csv. Its counts run over the whole period, the days to predict
    included, so a model that uses them is told the future: its test figures are too good."""


def inputs(config: KuaiRandConfig) -> dict[str, Path]:
    """The logs and tables."""
    return {text: path for files in _files(config).values() for text, path in files.items()}


def _files(config: KuaiRandConfig) -> dict[str, dict[str, Path]]:
    folder = config.path if list(config.path.glob("user_features*.csv")) else config.path / "data"
    patterns: dict[str, Paths] = {
        "log": config.logs,
        "users": "user_features*.csv",
        "videos": "video_features_basic*.csv",
    }
    if config.video_statistics:
        patterns["statistics"] = "video_features_statistic*.csv"
    if not config.path.is_dir():
        raise UserError(f"{_WHERE}: there is no folder {config.path}; {_HELP}")
    found = {}
    for name, pattern in patterns.items():
        inside = Path(glob.escape(str(folder)))
        paths = [str(inside / p) for p in ([pattern] if isinstance(pattern, str) else pattern)]
        try:
            found[name] = find(paths, _WHERE)
        except UserError as error:
            raise UserError(f"{_WHERE}: there is no {Path(paths[0]).name} in {config.path}; {_HELP}") from error
    return found


def read(config: KuaiRandConfig, work: Path, progress: Progress, *, uses: Uses = ANY_USE) -> LabelledLog:
    """Read, validate and join; exact duplicates of the log are dropped and counted.

    Args:
        config, work, progress, uses: as :class:`~recmtl.etl.sources.base.Read` has them.

    Raises:
        UserError: a folder, file or column of the layout is not there, or a user or video comes twice in its table.
    """
    files = _files(config)
    keys = {"log": "user_id", "users": "user_id", "videos": "video_id", "statistics": "video_id"}
    read_in: dict[str, Ingested] = {}
    for name, named in files.items():
        columns = header(next(iter(named.values())), _WHERE)
        absent = [column for column in (_NEEDED if name == "log" else (keys[name],)) if column not in columns]
        if absent:
            raise UserError(f"{_WHERE}: {next(iter(named))} has no column {absent[0]!r}; {_HELP}")
        taken = [column for column in columns if column in _DERIVED]
        if taken:
            raise UserError(f"{_WHERE}: {next(iter(named))} has a column {taken[0]!r}, which is derived here; {_HELP}")
        progress.say(f"reading {', '.join(named)}")
        types: dict[str, ColumnType] = {column: "string" for column in columns if column in _TEXT}
        if name == "log":
            types |= {column: "int" for column in columns if column in OUTCOMES or column == "duration_ms"}
        read_in[name] = ingest(
            name,
            named,
            _WHERE,
            work / name,
            rules=Rules(
                keys=("user_id", "video_id") if name == "log" else (keys[name],),
                times={_TIME: TimeRule("ms")} if name == "log" else {},
                types=types,
                # The share watched is derived from the play time, so a play time that is no number costs it alone.
                uses=replace(uses, labels={*uses.labels, "play_time_ms"}) if "share_watched" in uses.labels else uses,
            ),
            rename={"time_ms": _TIME} if name == "log" else {},
            deduplicate=name == "log",
        )
    tables = {name: log for name, log in read_in.items() if name != "log"}
    frames = {name: log.frame for name, log in read_in.items()}
    for key in ("user_id", "video_id"):
        frames = one_type(frames, key)
    prefixes = {"users": "user", "videos": "video", "statistics": "statistics"}
    added = {prefixes[name]: [c for c in table.columns if c != keys[name]] for name, table in tables.items()}
    renames = distinct_names([*read_in["log"].columns, *_DERIVED], added, _WHERE)
    rows = _derived(frames["log"])
    for name, table in tables.items():
        unique_key(table, keys[name], f"{_WHERE}: {next(iter(files[name]))}")
        rows = join_table(rows, frames[name], keys[name], renames[prefixes[name]])
    out = work / "rows.parquet"
    with writing(out):
        rows.sink_parquet(out, row_group_size=1 << 17)
    frame = pl.scan_parquet(out, glob=False)
    names = frame.collect_schema().names()
    return LabelledLog(
        frame=frame,
        columns=Columns(user="user_id", item="video_id", time=_TIME),
        outcomes=frozenset(name for name in OUTCOMES if name in names),
        default_features=_features(names),
        inputs=inputs(config),
        read={name: log.read for name, log in read_in.items()},
        duplicates={"log": read_in["log"].duplicates},
        rejected={name: dict(log.rejected) for name, log in read_in.items()},
        rejected_files=tuple(path for log in read_in.values() for path in log.rejected_files),
        warnings=tuple(warning for log in read_in.values() for warning in log.warnings),
        unread={
            renames[prefixes[name]].get(column, column) if name in tables else column: unread
            for name, log in read_in.items()
            for column, unread in log.unread.items()
        },
        conventions=Conventions(
            source=read_in["log"].kind,
            texts=frozenset(names) if read_in["log"].kind == "csv" else frozenset(),
            times={_TIME: TimeRule("ms")},
        ),
    )


def _derived(log: pl.LazyFrame) -> pl.LazyFrame:
    local = pl.col(_TIME).dt.convert_time_zone(_BEIJING)
    # As text where a value is no number and the column holds a label; not a number is then no share.
    played, duration = (pl.col(name).cast(pl.Float64, strict=False) for name in ("play_time_ms", "duration_ms"))
    return log.with_columns(
        hour=local.dt.hour(),
        weekday=local.dt.weekday(),
        share_watched=pl.when(duration > 0).then((played / duration).clip(0, 1)),
    )


def _features(columns: list[str]) -> tuple[Feature, ...]:
    ids = {
        "user_id": 16,
        "video_id": 16,
        "author_id": 16,
        "music_id": 8,
        "music_type": 4,
        "video_type": 4,
        "upload_type": 4,
        "tab": 4,
        "hour": 4,
        "weekday": 4,
        "user_active_degree": 4,
        "is_lowactive_period": 4,
        "is_live_streamer": 4,
        "is_video_author": 4,
        "follow_user_num_range": 4,
        "fans_user_num_range": 4,
        "friend_user_num_range": 4,
        "register_days_range": 4,
        **{f"onehot_feat{number}": 4 for number in range(18)},
    }
    features = [
        Feature(name=name, kind="id", embedding_dim=dim, min_count=2 if dim > 4 else 1)
        for name, dim in ids.items()
        if name in columns
    ]
    if "tag" in columns:
        features.append(Feature(name="tag", kind="bag", separator=",", embedding_dim=8))
    features.append(Feature(name="duration_ms", kind="number", transform="log1p"))
    return tuple(features)
