"""One log from its files to trusted rows on disk: read, typed, bad rows quarantined, exact duplicates dropped.

In: files and :class:`~recmtl.etl.validate.Rules`. Out: an :class:`Ingested` log whose rows are numbered in source
order. Memory is bounded by what Polars streams at a time, beside the suspects among the duplicates.
"""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl

from recmtl.errors import UserError
from recmtl.etl import files as raw_files
from recmtl.etl.validate import REASON, Rules, TimeUnit, see_types
from recmtl.reading import Unread

__all__ = ["ROW", "Ingested", "distinct_names", "ingest", "join_table", "one_type", "unique_key"]

ROW = "row"
"""The column with a row's number: 0, 1, 2, … in source order."""

_DROPPED = "dropped:"
_ROW_GROUP = 1 << 17
_HASH_ROWS = 1 << 25


@dataclass(frozen=True)
class Ingested:
    """A log's good rows, and what became of the others."""

    name: str
    frame: pl.LazyFrame
    """Typed columns and :data:`ROW`, in source order."""
    rows: int
    read: int
    """Rows in the files, bad ones and duplicates included."""
    duplicates: int
    rejected: Mapping[str, int]
    """Reason → rows."""
    rejected_files: tuple[Path, ...]
    warnings: tuple[str, ...]
    unread: Mapping[str, Unread] = field(default_factory=dict)
    """Column → its values that are given and cannot be read, and so are missing."""
    units: Mapping[str, TimeUnit] = field(default_factory=dict)
    """Column of times → how they are written."""
    kind: str = "parquet"
    """What the files are: csv, parquet or jsonl."""

    @property
    def columns(self) -> list[str]:
        """The columns' names without :data:`ROW`."""
        return [name for name in self.frame.collect_schema().names() if name != ROW]


@raw_files.naming_damage
def ingest(
    name: str,
    files: Mapping[str, Path],
    where: str,
    work: Path,
    *,
    rules: Rules,
    rename: Mapping[str, str] | None = None,
    drop: Sequence[str] = (),
    deduplicate: bool,
    separator: str = ",",
    encoding: str = "utf8",
    missing: Sequence[str] = raw_files.MISSING_TEXTS,
    names: Sequence[str] | None = None,
    quote: str | bool = True,
    tags: Mapping[str, str] | None = None,
) -> Ingested:
    """Read a log, keep its good rows under ``work``, and count the rest.

    Args:
        name: the log's name in counts and in the quarantine.
        files: as :func:`recmtl.etl.files.find` gives them.
        where: the setting's name, for errors.
        work: a folder of its own.
        rules: what a good row is; in the names after ``rename``.
        rename: the file's column names → new ones.
        drop: columns of the files to leave out; they count when duplicates are told, and are not judged.
        deduplicate: whether rows equal to an earlier one in all columns are dropped.
        separator, encoding, missing, names, quote, tags: as in :func:`recmtl.etl.files.scan`; tags stay text.

    Raises:
        UserError: unreadable files, a column that the rules need and the files lack, a name that clashes.
    """
    raw = raw_files.scan(
        files,
        where,
        work / "text",
        separator=separator,
        encoding=encoding,
        missing=missing,
        names=names,
        quote=quote,
        tags=tags,
    )
    rules = replace(rules, types={column: dtype for column, dtype in rules.types.items() if column not in drop})
    rename = {**(rename or {}), **{column: f"{_DROPPED}{column}" for column in drop}}
    frame = _renamed(raw.frame, rename, rules, where)
    dropped = [f"{_DROPPED}{column}" for column in drop]
    unjudged = [*dropped, raw_files.TAG] if tags is not None else dropped
    as_written = {new: old for old, new in rename.items()}
    typing = see_types(
        frame, rules, where, text=raw.text, undecodable=bool(raw.undecodable), unjudged=unjudged, names=as_written
    )
    source = pl.lit(name).alias("source")
    text = pl.struct(pl.col(c).alias(as_written.get(c, c)) for c in frame.collect_schema().names())
    judged = typing.judge(frame)
    good, bad, lines = work / "good.parquet", work / "rejected.parquet", work / "rejected-lines.parquet"
    values = work / "values.parquet"
    pl.collect_all(
        [
            judged.filter(pl.col(REASON).is_null())
            .select(_unread_values(typing.unread, source, as_written))
            .filter(pl.any_horizontal(pl.exclude("source").is_not_null()))
            .sink_parquet(values, lazy=True),
            judged.filter(pl.col(REASON).is_null())
            .select(typing.typed())
            .with_row_index(ROW)
            .with_columns(pl.col(ROW).cast(pl.Int64))
            .sink_parquet(good, row_group_size=_ROW_GROUP, lazy=True),
            judged.filter(pl.col(REASON).is_not_null())
            .select(source, pl.col(REASON).alias("reason"), text.struct.json_encode().alias(ROW))
            .sink_parquet(bad, lazy=True),
        ],
        engine="streaming",
    )
    rejected = dict(pl.scan_parquet(bad, glob=False).group_by("reason").len().sort("reason").collect().iter_rows())
    rejected_files = [bad] if rejected else []
    if raw.malformed:
        rejected |= Counter(line.reason for line in raw.malformed)
        malformed = pl.DataFrame(
            {"reason": [line.reason for line in raw.malformed], ROW: [line.text for line in raw.malformed]},
            schema={"reason": pl.String, ROW: pl.String},
        )
        malformed.select(source, "reason", ROW).write_parquet(lines)
        rejected_files.append(lines)
    unread = _count_unread(values, good, typing.unread, as_written)
    if unread:
        rejected_files.append(_long(values, work / "rejected-values.parquet"))
    values.unlink()
    shutil.rmtree(work / "text", ignore_errors=True)
    kept = _rows(good)
    log = Ingested(
        name,
        pl.scan_parquet(good, glob=False),
        kept,
        kept + sum(rejected.values()),
        0,
        rejected,
        tuple(rejected_files),
        typing.warnings,
        unread,
        typing.units,
        {"CSV": "csv", "Parquet": "parquet", "JSON lines": "jsonl"}[raw.kind],
    )
    log = _without_duplicates(log, good) if deduplicate else log
    return replace(log, frame=log.frame.drop(dropped))


def _unread_values(unread: Mapping[str, pl.Expr], source: pl.Expr, as_written: Mapping[str, str]) -> list[pl.Expr]:
    """The log's name, and every column's values that cannot be read, as text; null where a value can be read."""
    return [
        source,
        pl.lit(None, pl.String).alias("\0"),  # so that there is one where nothing is unreadable
        *(
            pl.when(failed).then(pl.col(name).cast(pl.String)).alias(as_written.get(name, name))
            for name, failed in unread.items()
        ),
    ]


def _count_unread(
    values: Path, good: Path, unread: Mapping[str, pl.Expr], as_written: Mapping[str, str]
) -> dict[str, Unread]:
    """Column → its unreadable values; columns without any are left out."""
    if not unread:
        return {}
    found = pl.scan_parquet(values, glob=False)
    shown = {name: as_written.get(name, name) for name in unread}
    counts = (
        found.select(pl.col(list(shown.values())).is_not_null().sum()).collect(engine="streaming").row(0, named=True)
    )
    bad = [name for name in unread if counts[shown[name]]]
    if not bad:
        return {}
    read = pl.scan_parquet(good, glob=False).select(pl.col(bad).is_not_null().sum()).collect(engine="streaming")
    counted = {}
    for name in bad:
        commonest = (
            found.select(value=shown[name])
            .drop_nulls()
            .group_by("value")
            .len()
            .sort(["len", "value"], descending=[True, False])
            .head(3)
            .collect(engine="streaming")
        )
        count = counts[shown[name]]
        counted[name] = Unread(count=count, given=count + int(read[name][0]), examples=tuple(commonest["value"]))
    return counted


def _long(values: Path, out: Path) -> Path:
    """The unreadable values as rows of source, reason and the value with its column."""
    wide = pl.scan_parquet(values, glob=False)
    columns = [name for name in wide.collect_schema().names() if name not in ("source", "\0")]
    parts = [
        wide.filter(pl.col(name).is_not_null()).select(
            "source",
            pl.lit(f"{name} cannot be read").alias("reason"),
            pl.struct(pl.col(name)).struct.json_encode().alias(ROW),
        )
        for name in columns
    ]
    pl.concat(parts).sink_parquet(out)
    return out


def _rows(path: Path) -> int:
    return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())


def _renamed(frame: pl.LazyFrame, rename: Mapping[str, str], rules: Rules, where: str) -> pl.LazyFrame:
    columns = frame.collect_schema().names()
    has = f"the file has {', '.join(columns)}"
    for old, new in rename.items():
        if old not in columns:
            raise UserError(f"{where}: there is no column {old!r}; {has}")
        if new != old and new in columns and new not in rename:
            raise UserError(
                f"{where}: column {old!r} is to be called {new!r}, but there is another column of that name; drop one"
            )
    renamed = frame.rename(dict(rename))
    columns = renamed.collect_schema().names()
    for needed in (*rules.keys, *rules.required, *rules.times, *rules.types):
        if needed not in columns:
            raise UserError(f"{where}: there is no column {needed!r}; say what the file calls it ({has})")
    if ROW in columns:
        raise UserError(f"{where}: the column name {ROW!r} is taken by recmtl; rename or leave out that column")
    return renamed


def _without_duplicates(log: Ingested, good: Path) -> Ingested:
    doomed = _duplicates(log)
    if doomed.is_empty():
        return log
    unique = good.with_name("unique.parquet")
    (
        log.frame.join(doomed.lazy(), on=ROW, how="anti", maintain_order="left")
        .drop(ROW)
        .with_row_index(ROW)
        .with_columns(pl.col(ROW).cast(pl.Int64))
        .sink_parquet(unique, row_group_size=_ROW_GROUP)
    )
    good.unlink()
    return replace(log, frame=pl.scan_parquet(unique, glob=False), rows=log.rows - len(doomed), duplicates=len(doomed))


def _duplicates(log: Ingested) -> pl.DataFrame:
    """The numbers of the rows that equal an earlier one: suspects by hash, some at a time, then compared in full."""
    columns = log.columns
    passes = 1 + log.rows // _HASH_ROWS
    doomed = []
    for number in range(passes):
        hashes = log.frame.select(ROW, pl.struct(columns).hash().alias("hash"))
        if passes > 1:
            hashes = hashes.filter(pl.col("hash") % passes == number)
        suspects = hashes.collect(engine="streaming").filter(pl.col("hash").is_duplicated()).select(ROW)
        if suspects.is_empty():
            continue
        full = log.frame.join(suspects.lazy(), on=ROW, how="semi").collect(engine="streaming").sort(ROW)
        doomed.append(full.filter(~pl.struct(columns).is_first_distinct()).select(ROW))
    return pl.concat(doomed) if doomed else pl.DataFrame(schema={ROW: pl.Int64})


def one_type(frames: Mapping[str, pl.LazyFrame], column: str) -> dict[str, pl.LazyFrame]:
    """Give a key the same type in all frames that have it: whole numbers where all are, else text (7 is "7")."""
    types = {name: frame.collect_schema().get(column) for name, frame in frames.items()}
    if all(dtype in (None, pl.Int64) for dtype in types.values()):
        return dict(frames)
    return {
        name: frame if types[name] is None else frame.with_columns(pl.col(column).cast(pl.String))
        for name, frame in frames.items()
    }


def unique_key(table: Ingested, key: str, where: str) -> None:
    """See that no key comes twice in a user or item table.

    Raises:
        UserError: one does; names it.
    """
    twice = (
        table.frame.group_by(key)
        .agg(pl.len().alias("times"))
        .filter(pl.col("times") > 1)
        .sort(key)
        .collect(engine="streaming")
    )
    if not twice.is_empty():
        value, times = twice.row(0)
        raise UserError(
            f"{where}: {key} {value!r} comes {times} times ({len(twice)} such keys); it must come once, so keep the "
            "row that holds"
        )


def distinct_names(taken: Sequence[str], tables: Mapping[str, Sequence[str]], where: str) -> dict[str, dict[str, str]]:
    """New names for the columns of joined tables that would clash: prefix (user, item) → {column: PREFIX_column}.

    A column is renamed when the log or another table has one of its name.

    Raises:
        UserError: the new name is taken as well.
    """
    renames: dict[str, dict[str, str]] = {}
    for prefix, columns in tables.items():
        others = {*taken, *(c for other, names in tables.items() if other != prefix for c in names)}
        renames[prefix] = {c: f"{prefix}_{c}" for c in columns if c in others}
        for old, new in renames[prefix].items():
            if new in others or new in columns:
                raise UserError(
                    f"{where}: column {old!r} of the {prefix} table clashes with another, and so does {new!r}; drop one"
                )
    return renames


def join_table(rows: pl.LazyFrame, table: pl.LazyFrame, key: str, rename: Mapping[str, str]) -> pl.LazyFrame:
    """The rows in their order with the table's columns; missing values where the table lacks the key."""
    return rows.join(table.drop(ROW, strict=False).rename(dict(rename)), on=key, how="left", maintain_order="left")
