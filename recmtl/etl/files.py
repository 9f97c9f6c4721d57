"""Find a source's files and read their raw columns, before anything is judged.

In: paths and glob patterns as the user wrote them. Out: a lazy frame in source order. CSV columns come as text, so that
a bad field is a value to quarantine and never a crash; lines that do not have the header's fields are kept aside.
"""

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from recmtl.errors import UserError

__all__ = ["MALFORMED", "MISSING_TEXTS", "TAG", "Raw", "find", "header", "is_parquet", "scan"]

MALFORMED = "wrong number of fields"
"""Reason of a CSV line that has more or fewer fields than its header."""

TAG = "file:tag"
"""The column that :func:`scan` fills with a file's tag."""

MISSING_TEXTS = ("", "null", "NULL", "nan", "NaN", "None", "\\N")
"""Texts that stand for a missing value in CSV, unless the source says otherwise."""

_BLOCK_BYTES = 1 << 24
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Raw:
    """A log's raw rows."""

    frame: pl.LazyFrame
    """The files one after the other in their order, all columns, those of CSV as text; empty texts are null there."""
    text: bool
    """Whether the columns are text whose types are yet to be seen (CSV)."""
    undecodable: bool
    """Whether some CSV bytes are not in the file's encoding; they stand as U+FFFD."""
    malformed: tuple[str, ...]
    """The CSV lines that could not be split into the header's fields, as they stand in the file."""


def find(paths: str | Sequence[str], where: str) -> dict[str, Path]:
    """The files that ``paths`` name: as the user wrote it (or as the pattern matched it) → path, in order, once each.

    Folders may have ``*``, ``?`` or ``[`` in their names, before a pattern too: what is there under its very name is
    no pattern.

    Raises:
        UserError: a file that does not exist, a pattern that matches none; ``where`` is the setting's name.
    """
    found: dict[str, Path] = {}
    taken: set[Path] = set()
    for text in [paths] if isinstance(paths, str) else paths:
        if Path(text).is_file():
            _take(text, found, taken)
            continue
        if Path(text).is_dir():
            raise UserError(f"{where}: {text} is a folder; name its files, e.g. {Path(text) / '*.parquet'}")
        matches = [] if not _GLOB.search(text) else _matching(text)
        if not matches:
            raise UserError(f"{where}: there is no file {text} (looked from {Path.cwd()})")
        for match in matches:
            _take(match, found, taken)
    if not found:
        raise UserError(f"{where}: name at least one file")
    return found


def _take(name: str, found: dict[str, Path], taken: set[Path]) -> None:
    """Add the file, unless it is there already under another spelling."""
    path = Path(name)
    if path.resolve() not in taken:
        taken.add(path.resolve())
        found[name] = path


def _matching(pattern: str) -> list[str]:
    place, parts, literal = Path(), [], True
    for part in Path(pattern).parts:
        place /= part
        literal = literal and place.exists()
        parts.append(glob.escape(part) if literal else part)
    return sorted(m for m in glob.glob(str(Path(*parts)), recursive=True) if Path(m).is_file())  # noqa: PTH207


def is_parquet(path: Path) -> bool:
    """Whether the file is Parquet, by its first bytes."""
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def header(path: Path, where: str, *, separator: str = ",", encoding: str = "utf8") -> list[str]:
    """The file's column names.

    Raises:
        UserError: the file is empty, damaged, or names a column twice.
    """
    if is_parquet(path):
        return _scan_parquet(path, where).collect_schema().names()
    return _header_of(path, where, separator, encoding, quote=True)


def scan(
    files: Mapping[str, Path],
    where: str,
    work: Path,
    *,
    separator: str = ",",
    encoding: str = "utf8",
    missing: Sequence[str] = MISSING_TEXTS,
    names: Sequence[str] | None = None,
    quote: bool = True,
    tags: Mapping[str, str] | None = None,
) -> Raw:
    """The raw rows of a log.

    Args:
        files: all CSV (compressed too, seen by the suffix) or all Parquet, with the same columns in any order.
        where: the setting's name, for errors.
        work: a folder of its own, where CSV is staged as Parquet of text.
        separator, encoding, quote: how the CSV is written; ``quote``: whether double quotes enclose fields.
        missing: texts that stand for a missing value in CSV.
        names: the columns' names, for CSV files without a header line.
        tags: file → a text that stands in every one of its rows, in the column :data:`TAG`.

    Raises:
        UserError: an empty or damaged file, files of different kinds or columns.
    """
    kinds = {is_parquet(path) for path in files.values()}
    if len(kinds) == 2:
        raise UserError(f"{where}: CSV and Parquet files are mixed; name files of one kind")
    work.mkdir(parents=True, exist_ok=True)
    malformed: list[str] = []
    undecodable = False
    if kinds == {True}:
        frames = [_scan_parquet(path, where) for path in files.values()]
    else:
        staged = [work / f"text-{number:05}.parquet" for number in range(len(files))]
        for path, out in zip(files.values(), staged, strict=True):
            undecodable |= _stage_text(path, out, where, separator, encoding, missing, names, quote, malformed)
        frames = [pl.scan_parquet(out, glob=False) for out in staged]
    columns = frames[0].collect_schema().names()
    for frame, name in zip(frames[1:], list(files)[1:], strict=True):
        others = frame.collect_schema().names()
        if set(others) != set(columns):
            different = sorted(set(others) ^ set(columns))
            raise UserError(
                f"{where}: {next(iter(files))} and {name} do not share the column(s) {', '.join(different)}"
            )
    try:
        ordered = [frame.select(columns) for frame in frames]
        if tags is not None:
            ordered = [
                frame.with_columns(pl.lit(tags[name]).alias(TAG)) for frame, name in zip(ordered, files, strict=True)
            ]
        frame = pl.concat(ordered, how="vertical_relaxed", rechunk=False)
        frame.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{where}: {_clash(frames, list(files))}; write it with one type") from error
    return Raw(frame, kinds != {True}, undecodable, tuple(malformed))


def _clash(frames: Sequence[pl.LazyFrame], names: Sequence[str]) -> str:
    """Which column has types that no type holds both of."""
    schemas = [frame.collect_schema() for frame in frames]
    for schema, name in zip(schemas[1:], names[1:], strict=True):
        for column, dtype in schemas[0].items():
            pair = [pl.LazyFrame(schema={column: one}) for one in (dtype, schema[column])]
            try:
                pl.concat(pair, how="vertical_relaxed").collect_schema()
            except pl.exceptions.PolarsError:
                return f"column {column!r} is {dtype} in {names[0]} and {schema[column]} in {name}"
    return "a column's type differs between the files"


def _scan_parquet(path: Path, where: str) -> pl.LazyFrame:
    try:
        frame = pl.scan_parquet(path, glob=False)
        frame.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{where}: {path} is a damaged Parquet file: {_first_line(error)}") from error
    return frame


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _header_of(path: Path, where: str, separator: str, encoding: str, quote: bool) -> list[str]:
    names = _open(path, where, separator, encoding, quote, columns=None).schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: {path} names the column(s) {', '.join(twice)} twice in its header")
    return [str(name) for name in names]


def _open(
    path: Path,
    where: str,
    separator: str,
    encoding: str,
    quote: bool,
    *,
    columns: Sequence[str] | None,
    missing: Sequence[str] = (),
    headless: bool = False,
    malformed: list[str] | None = None,
) -> Any:
    def set_aside(row: Any) -> str:
        if malformed is not None:
            malformed.append(row.text)
        return "skip"

    try:
        return pyarrow.csv.open_csv(
            path,
            # One thread: rows come in order, and the memory is one block's.
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=_BLOCK_BYTES,
                encoding=encoding,
                column_names=list(columns or ()) if headless else None,
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=separator,
                quote_char='"' if quote else False,
                double_quote=quote,
                newlines_in_values=quote,
                invalid_row_handler=set_aside,
            ),
            # Binary, because text that is not UTF-8 would be an error of the whole file.
            convert_options=pyarrow.csv.ConvertOptions(
                check_utf8=False,
                column_types=dict.fromkeys(columns or (), pa.binary()),
                null_values=list(missing),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
    except (pa.ArrowInvalid, LookupError) as error:
        raise UserError(f"{where}: {path} cannot be read as CSV: {_first_line(error)}") from error


def _stage_text(
    path: Path,
    out: Path,
    where: str,
    separator: str,
    encoding: str,
    missing: Sequence[str],
    names: Sequence[str] | None,
    quote: bool,
    malformed: list[str],
) -> bool:
    columns = list(names) if names is not None else _header_of(path, where, separator, encoding, quote)
    reader = _open(
        path,
        where,
        separator,
        encoding,
        quote,
        columns=columns,
        missing=missing,
        headless=names is not None,
        malformed=malformed,
    )
    schema = pa.schema([(name, pa.string()) for name in columns])
    undecodable = False
    with pyarrow.parquet.ParquetWriter(out, schema, compression="lz4") as writer:
        for batch in _batches(reader, path, where):
            texts = [_decode(column) for column in batch.columns]
            undecodable |= any(bad for _, bad in texts)
            writer.write_batch(pa.record_batch([text for text, _ in texts], schema=schema))
    return undecodable


def _batches(reader: Any, path: Path, where: str) -> Iterator[Any]:
    try:
        yield from reader
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{where}: {path} cannot be read as CSV (a quote that is never closed?): {_first_line(error)}"
        ) from error


def _decode(column: Any) -> tuple[Any, bool]:
    try:
        return column.cast(pa.string()), False
    except pa.ArrowInvalid:
        texts = [None if value is None else value.decode("utf-8", errors="replace") for value in column.to_pylist()]
        return pa.array(texts, pa.string()), True
