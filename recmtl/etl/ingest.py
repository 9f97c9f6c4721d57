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
from recmtl.etl.condition import Condition, names_in
from recmtl.etl.names import refuse_reserved
from recmtl.etl.validate import REASON, Rules, TimeUnit, Typing, number_text, see_types
from recmtl.failures import writing
from recmtl.manifest import ROW
from recmtl.reading import MISSING_TEXTS, Unread

__all__ = ["ROW", "Ingested", "distinct_names", "ingest", "join_table", "one_type", "unique_key"]

_DROPPED = "dropped:"
_ORIGIN = (raw_files.FILE, raw_files.FILE_ROW)
_ABOUT = ("source", "file", "file_row")
"""What a quarantined row or value comes with: the log, the file as the user wrote it, and its row there, from 1."""
_VALUE = "value:"
_KEPT = "where:kept"
"""Whether a row satisfies the log's condition."""
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
    filtered: int = 0
    """Rows that the log's condition leaves out; they are neither kept nor rejected."""
    condition_unread: Mapping[str, Unread] = field(default_factory=dict)
    """Column that the condition reads, under the file's name → its values that cannot be read."""
    negatives: Mapping[str, Unread] = field(default_factory=dict)
    """Column of ``amounts``, under the file's name → its negative values."""

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
    missing: Sequence[str] = MISSING_TEXTS,
    names: Sequence[str] | None = None,
    quote: str | bool = True,
    tags: Mapping[str, str] | None = None,
    condition: str | None = None,
    amounts: Sequence[str] = (),
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
        condition: only rows that satisfy it are kept (:mod:`recmtl.etl.condition`); in the file's names. It may read
            columns of ``drop``, which are typed for it.
        amounts: columns of the files whose negative values are counted.

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
        provenance=True,
    )
    reads = () if condition is None else names_in(condition)
    unread_types = [column for column in drop if column not in reads]
    types = {column: dtype for column, dtype in rules.types.items() if column not in unread_types}
    rules = replace(
        rules, types={f"{_DROPPED}{name}" if name in drop else name: dtype for name, dtype in types.items()}
    )
    rename = {**(rename or {}), **{column: f"{_DROPPED}{column}" for column in drop}}
    frame = _renamed(raw.frame, rename, rules, where, own=(*_ORIGIN, *([] if tags is None else [raw_files.TAG])))
    dropped = [f"{_DROPPED}{column}" for column in drop]
    unjudged = [f"{_DROPPED}{column}" for column in unread_types]
    unjudged += [raw_files.TAG] if tags is not None else []
    as_written = {new: old for old, new in rename.items()}
    described = frame.drop(_ORIGIN)
    typing = see_types(
        described, rules, where, text=raw.text, undecodable=bool(raw.undecodable), unjudged=unjudged, names=as_written
    )
    source = pl.lit(name).alias("source")
    text = pl.struct(pl.col(c).alias(as_written.get(c, c)) for c in described.collect_schema().names())
    origin = [pl.col(raw_files.FILE).alias("file"), pl.col(raw_files.FILE_ROW).alias("file_row")]
    judged = typing.judge(frame)
    trusted = judged.filter(pl.col(REASON).is_null())
    kept_rows = trusted
    if condition is not None:
        keeps = _condition(condition, reads, judged, typing, rules, as_written, where, text=raw.text)
        kept_rows = trusted.with_columns(keeps.alias(_KEPT)).filter(pl.col(_KEPT)).drop(_KEPT)
    negatives = _negatives(kept_rows, [c for c in amounts if c not in reads], rename, rules)
    good, bad, lines = work / "good.parquet", work / "rejected.parquet", work / "rejected-lines.parquet"
    values = work / "values.parquet"
    with writing(work):
        pl.collect_all(
            [
                trusted.select(source, *origin, *_unread_values(typing.unread, as_written))
                .filter(pl.any_horizontal(pl.exclude(_ABOUT).is_not_null()))
                .sink_parquet(values, lazy=True),
                kept_rows.select(typing.typed())
                .with_row_index(ROW)
                .with_columns(pl.col(ROW).cast(pl.Int64))
                .sink_parquet(good, row_group_size=_ROW_GROUP, lazy=True),
                judged.filter(pl.col(REASON).is_not_null())
                .select(source, *origin, pl.col(REASON).alias("reason"), text.struct.json_encode().alias("row"))
                .sink_parquet(bad, lazy=True),
            ],
            engine="streaming",
        )
    rejected = dict(pl.scan_parquet(bad, glob=False).group_by("reason").len().sort("reason").collect().iter_rows())
    rejected_files = [bad] if rejected else []
    if raw.malformed:
        rejected |= Counter(line.reason for line in raw.malformed)
        malformed = pl.DataFrame(
            [(line.file, line.row, line.reason, line.text) for line in raw.malformed],
            schema={"file": pl.String, "file_row": pl.Int64, "reason": pl.String, "row": pl.String},
            orient="row",
        )
        with writing(lines):
            malformed.select(source, pl.all()).write_parquet(lines)
        rejected_files.append(lines)
    # Without a condition the good rows are those, and need not be read once more.
    rows = pl.scan_parquet(good, glob=False) if condition is None else trusted.select(typing.typed())
    unread = _count_unread(values, rows, typing.unread, as_written)
    if unread:
        rejected_files.append(_long(values, work / "rejected-values.parquet"))
    values.unlink()
    kept = _rows(good)
    filtered = 0
    if condition is not None:
        filtered = trusted.select(pl.len()).collect(engine="streaming").item() - kept
    shutil.rmtree(work / "text", ignore_errors=True)
    warnings = typing.warnings
    if filtered and not kept:
        warnings = (*warnings, f"{where}.where {condition!r} leaves out all of the {filtered:,} rows")
    log = Ingested(
        name,
        pl.scan_parquet(good, glob=False),
        kept,
        kept + filtered + sum(rejected.values()),
        0,
        rejected,
        tuple(rejected_files),
        warnings,
        {column: values for column, values in unread.items() if column not in dropped},
        typing.units,
        {"CSV": "csv", "Parquet": "parquet", "JSON lines": "jsonl"}[raw.kind],
        filtered,
        {column: unread[new] for column in reads if (new := rename.get(column, column)) in unread},
        negatives,
    )
    log = _without_duplicates(log, good) if deduplicate else log
    return replace(log, frame=log.frame.drop(dropped))


def _condition(
    condition: str,
    reads: Sequence[str],
    judged: pl.LazyFrame,
    typing: Typing,
    rules: Rules,
    as_written: Mapping[str, str],
    where: str,
    *,
    text: bool,
) -> pl.Expr:
    """Whether a judged row satisfies the condition, read over the typed columns under the file's names."""
    typed = dict(zip(typing.columns, typing.typed(), strict=True))
    new_names = {as_written.get(new, new): new for new in typed if new != raw_files.TAG}
    schema = judged.select(list(typed.values())).collect_schema()
    types = {name: schema[new] for name, new in new_names.items()}
    doubtful = [name for name in reads if text and types.get(name) == pl.String]
    if doubtful:  # a CSV column without values is text, and fits any type
        given = judged.select(typed[new_names[name]].is_not_null().any().alias(name) for name in doubtful)
        found = given.collect(engine="streaming").row(0, named=True)
        types |= {name: pl.Null() for name in doubtful if not found[name]}
    zones = [rule.timezone for rule in rules.times.values()]
    return Condition(
        condition,
        types,
        f"{where}.where",
        column=lambda name: typing.of(new_names[name]),
        timezone=zones[0] if zones else "UTC",
    ).expr


def _negatives(
    rows: pl.LazyFrame, amounts: Sequence[str], rename: Mapping[str, str], rules: Rules
) -> dict[str, Unread]:
    """Column → its negative values, for columns that have some; text that is no number is none."""
    schema = rows.collect_schema()
    numbers = {}
    for name in amounts:
        new = rename.get(name, name)
        dtype, raw = schema[new], pl.col(new)
        if dtype == pl.String:
            numbers[name] = number_text(raw, rules.style).cast(pl.Float64, strict=False)
        elif dtype.is_numeric():
            numbers[name] = raw.cast(pl.Float64)
    if not numbers:
        return {}
    counted = rows.select(
        part.alias(f"{what}:{name}")
        for name, number in numbers.items()
        for what, part in (("below", (number < 0).sum()), ("given", number.is_not_null().sum()))
    )
    counts = counted.collect(engine="streaming").row(0, named=True)
    found = {}
    for name, number in numbers.items():
        if not counts[f"below:{name}"]:
            continue
        values = rows.select(value=number).filter(pl.col("value") < 0).group_by("value").len()
        commonest = values.sort(["len", "value"], descending=[True, False]).head(3).collect(engine="streaming")
        found[name] = Unread(
            count=counts[f"below:{name}"],
            given=counts[f"given:{name}"],
            examples=tuple(f"{value:g}" for value in commonest["value"]),
        )
    return found


def _unread_values(unread: Mapping[str, pl.Expr], as_written: Mapping[str, str]) -> list[pl.Expr]:
    """Every column's values that cannot be read, as text under ``value:COLUMN``; null where a value can be read."""
    return [
        pl.lit(None, pl.String).alias("\0"),  # so that there is one where nothing is unreadable
        *(
            pl.when(failed).then(pl.col(name).cast(pl.String)).alias(f"{_VALUE}{as_written.get(name, name)}")
            for name, failed in unread.items()
        ),
    ]


def _count_unread(
    values: Path, rows: pl.LazyFrame, unread: Mapping[str, pl.Expr], as_written: Mapping[str, str]
) -> dict[str, Unread]:
    """Column → its unreadable values; columns without any are left out. ``rows`` are those that gave the values."""
    if not unread:
        return {}
    found = pl.scan_parquet(values, glob=False)
    shown = {name: f"{_VALUE}{as_written.get(name, name)}" for name in unread}
    counts = (
        found.select(pl.col(list(shown.values())).is_not_null().sum()).collect(engine="streaming").row(0, named=True)
    )
    bad = [name for name in unread if counts[shown[name]]]
    if not bad:
        return {}
    read = rows.select(pl.col(bad).is_not_null().sum()).collect(engine="streaming")
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
    """The unreadable values as rows of source, file, its row, reason and the value with its column."""
    wide = pl.scan_parquet(values, glob=False)
    columns = [name for name in wide.collect_schema().names() if name not in (*_ABOUT, "\0")]
    parts = [
        wide.filter(pl.col(name).is_not_null()).select(
            *_ABOUT,
            pl.lit(f"{name.removeprefix(_VALUE)} cannot be read").alias("reason"),
            pl.struct(pl.col(name).alias(name.removeprefix(_VALUE))).struct.json_encode().alias("row"),
        )
        for name in columns
    ]
    with writing(out):
        pl.concat(parts).sink_parquet(out)
    return out


def _rows(path: Path) -> int:
    return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())


def _renamed(
    frame: pl.LazyFrame, rename: Mapping[str, str], rules: Rules, where: str, own: Sequence[str]
) -> pl.LazyFrame:
    """The frame with its columns renamed; ``own`` are those that recmtl added."""
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
    added = {*own, *rename.values()}
    refuse_reserved((column for column in columns if column not in added), where)
    return renamed


def _without_duplicates(log: Ingested, good: Path) -> Ingested:
    doomed = _duplicates(log)
    if doomed.is_empty():
        return log
    unique = good.with_name("unique.parquet")
    kept = (
        log.frame.join(doomed.lazy(), on=ROW, how="anti", maintain_order="left")
        .drop(ROW)
        .with_row_index(ROW)
        .with_columns(pl.col(ROW).cast(pl.Int64))
    )
    with writing(unique):
        kept.sink_parquet(unique, row_group_size=_ROW_GROUP)
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
