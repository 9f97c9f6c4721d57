"""Input files to pieces of work: runs of Parquet row groups, the same for the same files whoever scores them.

In: paths as the user named them. Out: :class:`Source` per file and :class:`Piece`, each one part of the output. CSV and
JSON lines are first staged as Parquet in the job's working folder, on disk beside the output. A CSV's columns are text
there; a column's type as a key (Int64 where all of a file's values are whole numbers) is decided over the whole file.
The columns of folders (``dt=2024-01-01/``) have one type over all files.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl import durable
from recmtl.errors import RunError, UserError
from recmtl.etl.encode import canonical
from recmtl.etl.files import FileKind, Partition, kind_of, partitions, scan, undecodable_error, uuid_columns, uuid_text
from recmtl.etl.validate import time_expression
from recmtl.manifest import file_hash
from recmtl.package import Package
from recmtl.progress import Progress
from recmtl.reading import CsvFormat
from recmtl.settings import Settings

__all__ = ["Piece", "Source", "Span", "csv_format", "cut", "encoding_of", "frames", "look_at"]

_STAGED = "staged.json"
"""Beside a CSV's staged text: the :class:`Source`, and the hash of the text."""


class Constant(Settings):
    """A column that a folder's name gives."""

    name: str
    text: str | None
    """Its value; None: missing."""
    dtype: Literal["Date", "Int64", "String"]
    """Its type over all input files."""

    def expression(self, dtype: str) -> pl.Expr:
        """The column as the training data had it, where it can be.

        Args:
            dtype: its type in training, as Polars writes it.
        """
        types: dict[str, pl.DataType] = {"Date": pl.Date(), "Int64": pl.Int64(), "String": pl.String()}
        text = dtype != self.dtype
        partition = Partition(types["String" if text else self.dtype], {"": self.text})
        return partition.expression(self.name, "")


class Source(Settings):
    """One input file, as it is read."""

    name: str
    """As the user wrote it."""
    path: Path
    """Parquet; of a CSV or JSON lines what was staged."""
    text: bool
    """Whether it was a CSV."""
    copied: tuple[str, ...]
    """Keys and kept columns, in the output's order."""
    whole: tuple[str, ...] = ()
    """Those of them that are text made of whole numbers alone."""
    read: tuple[str, ...]
    """The columns that the model reads."""
    constants: tuple[Constant, ...] = ()
    """The columns that its folders give; they are not in the file."""
    uuids: tuple[str, ...] = ()
    """The columns of a Parquet file that are UUIDs."""


class Span(Settings):
    """Consecutive row groups of one source."""

    source: int
    first: int
    stop: int
    """One past the last."""


class Piece(Settings):
    """One part of the output."""

    number: int
    spans: tuple[Span, ...]
    """Several where files or row groups are small."""
    rows: int


def look_at(
    package: Package,
    files: Mapping[str, Path],
    keep: Sequence[str],
    taken: Sequence[str],
    work: Path,
    progress: Progress,
    *,
    csv: CsvFormat | None = None,
) -> list[Source]:
    """What of each file is copied and what is read; CSV and JSON lines are staged, once, in ``work``.

    Args:
        package: whose columns are read.
        files: name to path.
        keep: columns to copy beside the keys.
        taken: names that the output uses itself.
        work: a folder that a resumed job finds again.
        progress: is told of files that are staged, which takes a while.
        csv: how CSV is written; None: as the training data's. JSON lines are UTF-8, unless its encoding is another one
            than the training data's, or these were JSON lines too.

    Raises:
        UserError: a column to keep that a file lacks or that is called like one of the output's; a file with none of
            the columns that the model reads; lines that are no rows, or not in the file's encoding.
    """
    csv = csv or csv_format(package)
    given = partitions(files, "--input")
    found = []
    for number, (name, path) in enumerate(files.items()):
        constants = tuple(
            Constant(name=column, text=one.texts[name], dtype=str(one.dtype))  # type: ignore[arg-type]
            for column, one in given.items()
            if name in one.texts
        )
        if kind_of(path, "--input") == "Parquet":
            found.append(_plain(package, name, path, keep, taken, constants))
        else:
            folder = work / f"{number:05}"
            found.append(_staged(package, name, path, keep, taken, folder, csv, progress, constants))
    return found


def csv_format(package: Package) -> CsvFormat:
    """How CSV is written unless the user says otherwise: as the training data's."""
    return CsvFormat() if package.reading is None else package.reading.csv


def encoding_of(package: Package, kind: FileKind, csv: CsvFormat) -> str:
    """How a file's text is encoded.

    JSON lines are UTF-8, whatever the training data's CSV was, unless the training data were JSON lines too or the user
    gives another encoding than theirs.
    """
    theirs = package.reading is not None and package.reading.source == "jsonl"
    given = csv.encoding != csv_format(package).encoding
    return csv.encoding if kind == "CSV" or theirs or given else "utf-8"


def _plain(
    package: Package,
    name: str,
    path: Path,
    keep: Sequence[str],
    taken: Sequence[str],
    constants: tuple[Constant, ...],
) -> Source:
    try:
        uuids = tuple(uuid_columns(path))  # first: it also sees that Polars can read the types
        present = pl.scan_parquet(path, glob=False, hive_partitioning=False).collect_schema().names()
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{name}: this is a damaged Parquet file ({str(error).splitlines()[0]})") from error
    clash = next((one.name for one in constants if one.name in present), None)
    if clash is not None:
        raise UserError(f"{name}: it has a column {clash!r}, and its folder gives one too; rename the folder")
    copied, read = _chosen(package, name, [*present, *(one.name for one in constants)], keep, taken)
    return Source(
        name=name, path=path.absolute(), text=False, copied=copied, read=read, constants=constants, uuids=uuids
    )


def _staged(
    package: Package,
    name: str,
    path: Path,
    keep: Sequence[str],
    taken: Sequence[str],
    folder: Path,
    csv: CsvFormat,
    progress: Progress,
    constants: tuple[Constant, ...],
) -> Source:
    if (folder / _STAGED).exists():
        before = _staged_before(folder)
        if before is not None:
            return before
        progress.warn(f"{name}: what was read of it before is damaged; reading it again")
    durable.remove(folder)
    kind = kind_of(path, "--input")
    progress.say(f"{name}: reading {kind}")
    unfinished = folder.with_suffix(".tmp")
    durable.remove(unfinished)
    raw = scan(
        {name: path},
        "--input",
        unfinished,
        separator=csv.separator,
        encoding=encoding_of(package, kind, csv),
        missing=csv.missing,
        quote=csv.quote or False,
    )
    if raw.malformed:
        first = raw.malformed[0]
        raise UserError(
            f"{name}: {len(raw.malformed):,} lines cannot be scored; the first is row {first.row} ({first.reason}): "
            f"{first.text[:200]!r}"
        )
    if raw.undecodable:
        raise undecodable_error(raw.undecodable[0], "--input")
    copied, read = _chosen(package, name, raw.frame.collect_schema().names(), keep, taken)
    staged = next(unfinished.glob("*.parquet")).name
    given = {one.name for one in constants}
    source = Source(
        name=name,
        path=folder.absolute() / staged,
        text=raw.text,
        copied=copied,
        whole=_whole(raw.frame, [column for column in copied if column not in given]) if raw.text else (),
        read=read,
        constants=constants,
    )
    about = {"source": source.model_dump(mode="json"), "sha256": file_hash(unfinished / staged)}
    durable.write_file(unfinished / _STAGED, json.dumps(about))
    durable.commit_folder(unfinished, folder)
    return source


def _staged_before(folder: Path) -> Source | None:
    """What an interrupted job staged; None where it is not as it was written."""
    try:
        about = json.loads((folder / _STAGED).read_bytes())
        source = Source.model_validate(about["source"])
        return source if file_hash(source.path) == about["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _chosen(
    package: Package, name: str, present: Sequence[str], keep: Sequence[str], taken: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns to copy and those that the model reads."""
    keys = package.contents.columns
    copied = [key for key in (keys.request, keys.user, keys.item, keys.time) if key is not None and key in present]
    lacking = [column for column in keep if column not in present]
    if lacking:
        raise UserError(f"{name}: there is no column {', '.join(lacking)} to keep; it has {', '.join(present)}")
    copied = list(dict.fromkeys([*copied, *keep]))
    clash = [column for column in copied if column in taken]
    if clash:
        raise UserError(f"{name}: column {', '.join(clash)} is called like a prediction; rename it in the input")
    read = tuple(column for column in package.schema.columns if column in present)
    if not read:
        raise UserError(
            f"{name}: it has none of the columns that the model reads ({', '.join(package.schema.columns[:5])}, …), "
            f"but {', '.join(present[:5])}"
        )
    return tuple(copied), read


def _whole(text: pl.LazyFrame, names: Sequence[str]) -> tuple[str, ...]:
    """The columns of text whose values are all whole numbers."""
    if not names:
        return ()
    tests = [pl.col(name).str.contains(r"^-?(0|[1-9]\d{0,17})$").all().alias(name) for name in names]
    found = text.select(tests).collect(engine="streaming").row(0, named=True)
    return tuple(name for name in names if found[name])


def cut(sources: Sequence[Source], rows_per_piece: int) -> list[Piece]:
    """All rows as pieces: whole row groups, as many as it takes to reach ``rows_per_piece``.

    A piece may go over several files where what is copied has the same columns and types in them. Without any row
    there is one piece, of no row groups, so that the output has its columns.
    """
    pieces: list[Piece] = []
    spans: list[Span] = []
    rows, kind = 0, None

    def end() -> None:
        nonlocal rows
        if spans:
            pieces.append(Piece(number=len(pieces), spans=tuple(spans), rows=rows))
            spans.clear()
            rows = 0

    for number, source in enumerate(sources):
        metadata = pq.read_metadata(source.path)
        theirs = _kind(source)
        if theirs != kind:
            end()
            kind = theirs
        for group in range(metadata.num_row_groups):
            if metadata.row_group(group).num_rows == 0:
                continue
            if spans and spans[-1].source == number and spans[-1].stop == group:
                spans[-1] = Span(source=number, first=spans[-1].first, stop=group + 1)
            else:
                spans.append(Span(source=number, first=group, stop=group + 1))
            rows += metadata.row_group(group).num_rows
            if rows >= rows_per_piece:
                end()
    end()
    return pieces or [Piece(number=0, spans=(Span(source=0, first=0, stop=0),), rows=0)]


def _kind(source: Source) -> tuple[tuple[str, str], ...]:
    """Name and type of what is copied."""
    schema = pq.read_schema(source.path)
    types = {name: str(schema.field(name).type) for name in schema.names}
    types |= {one.name: one.dtype for one in source.constants}
    types |= {**dict.fromkeys(source.whole, "int64"), **dict.fromkeys(source.uuids, "string")}
    return tuple((name, types[name]) for name in source.copied)


def frames(
    package: Package, sources: Sequence[Source], piece: Piece, batch_rows: int
) -> Iterator[tuple[str, pl.DataFrame, pl.DataFrame]]:
    """A piece's rows, as (file, columns to copy, columns that the model reads); at least once, perhaps without rows.

    Raises:
        RunError: a file has gone or is damaged.
    """
    for span in piece.spans:
        source = sources[span.source]
        types = package.statistics.columns
        keys, features = [pl.col(column) for column in source.copied], [pl.col(column) for column in source.read]
        if source.text:
            keys = [pl.col(name).cast(pl.Int64) if name in source.whole else pl.col(name) for name in source.copied]
        if source.text and package.reading is None:
            features = [_typed(pl.col(column), types.get(column, "String")).alias(column) for column in source.read]
        given = {one.name: one for one in source.constants}
        keys = [_constant(name, "key") if name in given else key for name, key in zip(source.copied, keys, strict=True)]
        features = [
            _constant(name, "read") if name in given else read for name, read in zip(source.read, features, strict=True)
        ]
        added = [uuid_text(name) for name in source.uuids if name in (*source.copied, *source.read)]
        for one in source.constants:
            trained = types.get(one.name, "String")
            value = one.expression(trained)
            if trained != one.dtype and package.reading is None:
                value = _typed(value, trained)
            added += [one.expression(one.dtype).alias(f"key:{one.name}"), value.alias(f"read:{one.name}")]
        columns = [name for name in dict.fromkeys([*source.copied, *source.read]) if name not in given]
        columns = columns or pq.read_schema(source.path).names[:1]  # which says how many rows there are
        try:
            with pq.ParquetFile(source.path) as file:
                if span.first == span.stop:
                    empty = _from_arrow(file.schema_arrow.empty_table().select(columns)).with_columns(added)
                    yield source.name, empty.select(keys), empty.select(features)
                    continue
                for batch in file.iter_batches(
                    batch_size=batch_rows, row_groups=range(span.first, span.stop), columns=columns, use_threads=False
                ):
                    frame = _from_arrow(batch).with_columns(added)
                    yield source.name, frame.select(keys), frame.select(features)
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{source.name}: cannot be read ({str(error).splitlines()[0]})") from error


def _from_arrow(batch: pa.RecordBatch | pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _constant(name: str, use: str) -> pl.Expr:
    return pl.col(f"{use}:{name}").alias(name)


def _typed(text: pl.Expr, dtype: str) -> pl.Expr:
    """A CSV's text as what the training data had, for a package of format 1, which does not record how they were read.

    Args:
        text: the column.
        dtype: its type in training, as Polars writes it. A value that is no number in a column of numbers stays text:
            an unseen id, or a missing number.
    """
    if dtype.startswith(("Int", "UInt", "Float", "Decimal")):
        value = text.str.strip_chars()
        as_float = canonical(value.cast(pl.Float64, strict=False), pl.Float64())
        return pl.coalesce(value.cast(pl.Int64, strict=False).cast(pl.String), as_float, text)
    if dtype == "Boolean":
        lower = text.str.strip_chars().str.to_lowercase()
        return pl.when(lower.is_in(["true", "false"])).then(lower).otherwise(text)
    if dtype == "Date" or dtype.startswith("Datetime"):
        return time_expression(text, pl.String(), "iso", "UTC", "a column")
    return text
