"""Input files to pieces of work: runs of Parquet row groups, the same for the same files whoever scores them.

In: paths as the user named them. Out: :class:`Source` per file and :class:`Piece`, each one part of the output. CSV and
JSON lines are first staged as Parquet in the job's working folder, on disk beside the output. A CSV's columns are text
there; a column's type as a key (Int64 where all of a file's values are whole numbers) is decided over the whole file.
The columns of folders (``dt=2024-01-01/``) have one type over all files.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.errors import RunError, UserError
from recmtl.etl.encode import canonical
from recmtl.etl.files import Partition, kind_of, partitions, scan, undecodable_error, uuid_columns, uuid_text
from recmtl.etl.validate import time_expression
from recmtl.package import Package
from recmtl.progress import Progress
from recmtl.reading import CsvFormat
from recmtl.settings import Settings

__all__ = ["Piece", "Source", "Span", "csv_format", "cut", "frames", "look_at"]


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
        csv: how CSV is written; None: as the training data's.

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


def _plain(
    package: Package,
    name: str,
    path: Path,
    keep: Sequence[str],
    taken: Sequence[str],
    constants: tuple[Constant, ...],
) -> Source:
    try:
        present = pl.scan_parquet(path, glob=False, hive_partitioning=False).collect_schema().names()
        uuids = tuple(uuid_columns(path))
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
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
    if (folder / "source.json").is_file():
        return Source.model_validate_json((folder / "source.json").read_text())
    progress.say(f"{name}: reading {kind_of(path, '--input')}")
    unfinished = folder.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    raw = scan(
        {name: path},
        "--input",
        unfinished,
        separator=csv.separator,
        encoding=csv.encoding,
        missing=csv.missing,
        quote=csv.quote,
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
    (unfinished / "source.json").write_text(source.model_dump_json())
    unfinished.rename(folder)
    return source


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
            features = [_typed(column, types.get(column, "String")) for column in source.read]
        for one in source.constants:
            keys = [
                one.expression(one.dtype) if name == one.name else key
                for name, key in zip(source.copied, keys, strict=True)
            ]
            constant = _constant(package, one)
            features = [
                constant if name == one.name else read for name, read in zip(source.read, features, strict=True)
            ]
        given = {one.name for one in source.constants}
        columns = [name for name in dict.fromkeys([*source.copied, *source.read]) if name not in given]
        uuids = [uuid_text(name) for name in source.uuids if name in columns]
        try:
            with pq.ParquetFile(source.path) as file:
                if span.first == span.stop:
                    empty = _from_arrow(file.schema_arrow.empty_table().select(columns)).with_columns(uuids)
                    yield source.name, empty.select(keys), empty.select(features)
                    continue
                for batch in file.iter_batches(
                    batch_size=batch_rows, row_groups=range(span.first, span.stop), columns=columns, use_threads=False
                ):
                    frame = _from_arrow(batch).with_columns(uuids)
                    yield source.name, frame.select(keys), frame.select(features)
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{source.name}: cannot be read ({str(error).splitlines()[0]})") from error


def _constant(package: Package, one: Constant) -> pl.Expr:
    """A folder's column, as text where the package knows how to read that."""
    if package.reading is not None:
        return pl.lit(one.text, pl.String).alias(one.name)
    trained = package.statistics.columns.get(one.name, "String")
    constant = one.expression(trained)
    return constant if trained == one.dtype else _typed(one.name, trained, constant)


def _constant(package: Package, one: Constant) -> pl.Expr:
    """A folder's column, as text where the package knows how to read that."""
    if package.reading is not None:
        return pl.lit(one.text, pl.String).alias(one.name)
    trained = package.statistics.columns.get(one.name, "String")
    constant = one.expression(trained)
    return constant if trained == one.dtype else _typed(one.name, trained, constant)


def _from_arrow(batch: pa.RecordBatch | pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _typed(name: str, dtype: str, text: pl.Expr | None = None) -> pl.Expr:
    """A CSV's text as what the training data had, for a package of format 1, which does not record how they were read.

    Args:
        name: the column.
        text: its text, where that is not the column as it stands.
        dtype: its type in training, as Polars writes it. A value that is no number in a column of numbers stays text:
            an unseen id, or a missing number.
    """
    text = pl.col(name) if text is None else text
    if dtype.startswith(("Int", "UInt", "Float", "Decimal")):
        value = text.str.strip_chars()
        as_float = canonical(value.cast(pl.Float64, strict=False), pl.Float64())
        return pl.coalesce(value.cast(pl.Int64, strict=False).cast(pl.String), as_float, text).alias(name)
    if dtype == "Boolean":
        lower = text.str.strip_chars().str.to_lowercase()
        return pl.when(lower.is_in(["true", "false"])).then(lower).otherwise(text).alias(name)
    if dtype == "Date" or dtype.startswith("Datetime"):
        return time_expression(text, pl.String(), "iso", "UTC", f"column {name}").alias(name)
    return text
