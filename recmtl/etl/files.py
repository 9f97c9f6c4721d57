"""Find a source's files and read their raw columns, before anything is judged.

In: paths and glob patterns as the user wrote them. Out: a lazy frame in source order. CSV columns come as text, so that
a bad field is a value to quarantine and never a crash; lines that are no rows are kept aside. Parquet and JSON lines
(:mod:`recmtl.etl.json_lines`) have types of their own. Folders called ``COLUMN=VALUE`` add their columns
(:mod:`recmtl.etl.partitions`).
"""

import functools
import glob
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from recmtl.errors import RunError, UserError
from recmtl.etl import json_lines
from recmtl.etl.json_lines import Malformed
from recmtl.etl.partitions import Partition, partitions
from recmtl.etl.streams import REPLACEMENT, FileKind, TextStream, Undecodable, encoding_setting, is_parquet, kind_of
from recmtl.failures import ends_no_reading, writing
from recmtl.reading import MISSING_TEXTS

__all__ = [
    "FILE",
    "FILE_ROW",
    "MALFORMED",
    "TAG",
    "FileKind",
    "Malformed",
    "Partition",
    "Raw",
    "Undecodable",
    "find",
    "header",
    "is_parquet",
    "kind_of",
    "naming_damage",
    "partitions",
    "scan",
    "undecodable_error",
    "uuid_columns",
    "uuid_text",
]

_DEEPEST = 64
"""Levels of nesting of a Parquet column as the format counts them: a list is two, a struct is one."""

MALFORMED = "wrong number of fields"
"""Reason of a CSV line that has more or fewer fields than its header."""

TAG = "file:tag"
"""The column that :func:`scan` fills with a file's tag."""
FILE = "file:name"
"""The column that :func:`scan` fills with the file's name, as the user wrote it."""
FILE_ROW = "file:row"
"""The column that :func:`scan` fills with the row's number within its file, from 1; a CSV's header is not counted."""

_BLOCK_BYTES = 1 << 24
_SHOWN = 1000
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Raw:
    """A log's raw rows."""

    kind: FileKind
    """What the files are."""
    frame: pl.LazyFrame
    """The files one after the other in their order, all columns, those of CSV as text; empty texts are null there."""
    text: bool
    """Whether the columns are text whose types are yet to be seen (CSV). Those of folders have a type all the same."""
    undecodable: tuple[Undecodable, ...]
    """Per file with bytes that are not in its encoding, where they are. In a CSV they stand as U+FFFD; a line of JSON
    with such bytes is malformed."""
    malformed: tuple[Malformed, ...]
    """The lines that are no rows: of CSV those that could not be split into the header's fields."""


def find(paths: str | Sequence[str], where: str) -> dict[str, Path]:
    """The files that ``paths`` name: as the user wrote it (or as the pattern matched it) → path, in order, once each.

    Folders may have ``*``, ``?`` or ``[`` in their names, before a pattern too: what is there under its very name is
    no pattern. A pattern leaves out files and folders whose name begins with ``.`` or ``_`` (``_SUCCESS``,
    ``_temporary/``, ``.part.crc``), unless it writes that character itself; a path names any file.

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
        kept = [match for match in matches if not _hidden(match, text)]
        if matches and not kept:
            raise UserError(
                f"{where}: {text} matches only files whose name, or whose folder's, begins with _ or . (such as "
                f"{matches[0]}); patterns leave those out, so name them in full"
            )
        if not kept:
            raise UserError(f"{where}: there is no file {text} (looked from {Path.cwd()})")
        for match in kept:
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
    return sorted(m for m in glob.glob(_escaped(pattern), recursive=True) if Path(m).is_file())  # noqa: PTH207


def _escaped(pattern: str) -> str:
    """The pattern with the leading folders that are there under their very names escaped."""
    place, parts, literal = Path(), [], True
    for part in Path(pattern).parts:
        place /= part
        literal = literal and place.exists()
        parts.append(glob.escape(part) if literal else part)
    return str(Path(*parts))


def _hidden(match: str, pattern: str) -> bool:
    """Whether a file or folder below the pattern's literal folders is one that patterns leave out."""
    wanted = [part for part in Path(_escaped(pattern)).parts if part.startswith(("_", "."))]
    return any(
        part.startswith(("_", ".")) and "=" not in part and not any(fnmatchcase(part, one) for one in wanted)
        for part in Path(match).parts
        if part not in (".", "..")
    )


def header(
    path: Path | Mapping[str, Path],
    where: str,
    *,
    separator: str = ",",
    encoding: str = "utf8",
    quote: str | bool = True,
) -> list[str]:
    """The columns' names of a file, or of a log's files, those of their folders included.

    Of CSV and Parquet files, which share their columns, the first one says them; of JSON lines all are read.

    Raises:
        UserError: the file is empty, damaged, or names a column twice.
        RunError: the file cannot be read.
    """
    files = {str(path): path} if isinstance(path, Path) else path
    name, first = next(iter(files.items()))
    kind = kind_of(first, where)
    if kind == "Parquet":
        names = _scan_parquet(first, where).collect_schema().names()
    elif kind == "CSV":
        names = _header_of(first, name, where, separator, encoding, _quote(quote))
    else:
        names = json_lines.column_names(files, where, encoding)
    added = list(partitions(files, where))
    _refuse_clash(names, added, name, where)
    return [*names, *added]


def _quote(quote: str | bool) -> str | None:
    return ('"' if quote else None) if isinstance(quote, bool) else quote


def _refuse_clash(names: Sequence[str], added: Sequence[str], file: str, where: str) -> None:
    twice = next((name for name in added if name in names), None)
    if twice is not None:
        raise UserError(
            f"{where}: {file} has a column {twice!r}, and its folder gives one too; rename the folder, or the column"
        )


def scan(
    files: Mapping[str, Path],
    where: str,
    work: Path,
    *,
    separator: str = ",",
    encoding: str = "utf8",
    missing: Sequence[str] = MISSING_TEXTS,
    names: Sequence[str] | None = None,
    quote: str | bool = True,
    tags: Mapping[str, str] | None = None,
    provenance: bool = False,
) -> Raw:
    """The raw rows of a log.

    Args:
        files: all CSV, all JSON lines or all Parquet, with the same columns in any order; an object of JSON lines may
            lack keys. CSV and JSON lines may be compressed (gzip, bz2, zstd, xz, lz4, seen by the first bytes).
        where: the setting's name, for errors.
        work: a folder of its own, where CSV is staged as Parquet of text, and JSON lines as Parquet.
        separator: of the CSV, between fields.
        quote: of the CSV, the character that encloses fields; True: double quotes do; False: nothing does.
        encoding: how CSV and JSON lines are encoded.
        missing: texts that stand for a missing value in CSV.
        names: the columns' names, for CSV files without a header line.
        tags: file → a text that stands in every one of its rows, in the column :data:`TAG`.
        provenance: whether to add the columns :data:`FILE` and :data:`FILE_ROW`.

    Raises:
        UserError: an empty or damaged file, files of different kinds or columns, a folder's column that the files have.
        RunError: a file cannot be read.
    """
    kinds = {name: kind_of(path, where) for name, path in files.items()}
    first = next(iter(files))
    other = next((name for name in files if kinds[name] != kinds[first]), None)
    if other is not None:
        raise UserError(
            f"{where}: files of different kinds are mixed: {first} is {kinds[first]} and {other} is {kinds[other]}; "
            "name files of one kind"
        )
    work.mkdir(parents=True, exist_ok=True)
    staged = {name: work / f"text-{number:05}.parquet" for number, name in enumerate(files)}
    malformed: list[Malformed] = []
    undecodable: list[Undecodable] = []
    row_column = FILE_ROW if provenance else None
    quoted = _quote(quote)
    if kinds[first] == "Parquet":
        frames = {name: _scan_parquet(path, where, row_column) for name, path in files.items()}
    elif kinds[first] == "CSV":
        for name, path in files.items():
            undecodable += _stage_text(
                path, name, staged[name], where, separator, encoding, missing, names, quoted, malformed, row_column
            )
        frames = {name: pl.scan_parquet(out, glob=False) for name, out in staged.items()}
    else:
        malformed, undecodable = json_lines.stage(files, list(staged.values()), where, encoding, row_column)
        frames = {name: pl.scan_parquet(out, glob=False) for name, out in staged.items()}
    frames = _with_constants(frames, where, tags, provenance)
    columns = frames[first].collect_schema().names()
    for name, frame in frames.items():
        others = frame.collect_schema().names()
        if set(others) != set(columns):
            different = sorted(set(others) ^ set(columns))
            raise UserError(f"{where}: {first} and {name} do not share the column(s) {', '.join(different)}")
    try:
        ordered = [frame.select(columns) for frame in frames.values()]
        frame = pl.concat(ordered, how="vertical_relaxed", rechunk=False)
        frame.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{where}: {_clash(frames)}; write it with one type") from error
    return Raw(kinds[first], frame, kinds[first] == "CSV", tuple(undecodable), tuple(malformed))


def _with_constants(
    frames: Mapping[str, pl.LazyFrame], where: str, tags: Mapping[str, str] | None, provenance: bool
) -> dict[str, pl.LazyFrame]:
    """The frames with what is one value in a whole file: its folders' columns, its tag and its name."""
    added = partitions(frames, where)
    own = [*([TAG] if tags is not None else []), *([FILE] if provenance else [])]
    found = {}
    for name, frame in frames.items():
        present = frame.collect_schema().names()
        given = [column for column, partition in added.items() if name in partition.texts]
        _refuse_clash(present, given, name, where)
        _refuse_reserved([*present, *given], own, name, where)
        constants = [added[column].expression(column, name) for column in given]
        constants += [] if tags is None else [pl.lit(tags[name]).alias(TAG)]
        constants += [pl.lit(name).alias(FILE)] if provenance else []
        found[name] = frame.with_columns(constants)
    return found


def _refuse_reserved(present: Sequence[str], own: Sequence[str], file: str, where: str) -> None:
    taken = next((name for name in own if name in present), None)
    if taken is not None:
        raise UserError(f"{where}: {file} has a column {taken!r}, which recmtl uses itself; rename it")


def _clash(frames: Mapping[str, pl.LazyFrame]) -> str:
    """Which column has types that no type holds both of."""
    names = list(frames)
    schemas = [frame.collect_schema() for frame in frames.values()]
    for schema, name in zip(schemas[1:], names[1:], strict=True):
        for column, dtype in schemas[0].items():
            pair = [pl.LazyFrame(schema={column: one}) for one in (dtype, schema[column])]
            try:
                pl.concat(pair, how="vertical_relaxed").collect_schema()
            except pl.exceptions.PolarsError:
                return f"column {column!r} is {dtype} in {names[0]} and {schema[column]} in {name}"
    return "a column's type differs between the files"


def _scan_parquet(path: Path, where: str, row_column: str | None = None) -> pl.LazyFrame:
    try:
        uuids = uuid_columns(path)  # first: it also sees that Polars can read the types
        frame = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        names = frame.collect_schema().names()
    except (pl.exceptions.PolarsError, pa.ArrowException) as error:
        raise UserError(f"{where}: {path} is a damaged Parquet file: {_first_line(error)}") from error
    except OSError as error:
        if error.errno is None:  # Arrow's, about the content
            raise UserError(f"{where}: {path} is a damaged Parquet file: {_first_line(error)}") from error
        raise RunError(f"{where}: {path} cannot be read: {error.strerror or _first_line(error)}") from error
    if row_column is not None:
        _refuse_reserved(names, [row_column], str(path), where)
        frame = frame.with_row_index(row_column, 1).with_columns(pl.col(row_column).cast(pl.Int64))
        frame = frame.select([*names, row_column])
    return frame.with_columns([uuid_text(name) for name in uuids])


def uuid_columns(path: Path) -> list[str]:
    """The columns of a Parquet file whose logical type is UUID, which Polars reads as Binary.

    Raises:
        pyarrow.ArrowException, OSError: the file is damaged, or cannot be read.
        UserError: lists or structs lie too deep within each other: Polars overflows the stack when it reads them.
    """
    schema = pq.read_metadata(path).schema
    for number in range(len(schema)):
        column = schema.column(number)
        if column.max_definition_level > _DEEPEST:
            raise UserError(
                f"{path}: column {column.path.partition('.')[0]!r} holds lists or structs more than {_DEEPEST // 2} "
                "deep within each other; leave it out of the file"
            )
    leaves = [schema.column(number) for number in range(len(schema.names))]
    return [leaf.path for leaf in leaves if leaf.logical_type.type == "UUID" and leaf.max_repetition_level == 0]


def uuid_text(name: str) -> pl.Expr:
    """A column of UUIDs in 16 bytes as text in the usual form, lower case with dashes."""
    digits = pl.col(name).bin.encode("hex")
    cuts = ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))
    return pl.concat_str([digits.str.slice(start, length) for start, length in cuts], separator="-").alias(name)


_P = ParamSpec("_P")
_T = TypeVar("_T")


def naming_damage(
    function: Callable[Concatenate[str, Mapping[str, Path], str, _P], _T],
) -> Callable[Concatenate[str, Mapping[str, Path], str, _P], _T]:
    """Have a function that reads a log (its name, its files, the setting's name) say which file is damaged.

    Polars reads Parquet lazily and from several files at once, and its errors name none of them.
    """

    @functools.wraps(function)
    def reading(name: str, files: Mapping[str, Path], where: str, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(name, files, where, *args, **kwargs)
        except (pl.exceptions.PolarsError, OSError) as error:
            if ends_no_reading(error):
                raise
            for file, path in files.items():
                _require_readable(file, path, where)
            raise

    return reading


def _require_readable(file: str, path: Path, where: str) -> None:
    """Read a whole Parquet file, a row group at a time."""
    if not is_parquet(path):
        return
    try:
        with pq.ParquetFile(path) as parquet:
            for group in range(parquet.num_row_groups):
                for _ in parquet.iter_batches(row_groups=[group], use_threads=False):
                    pass
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise RunError(f"{where}: {file} cannot be read: {error.strerror}") from error
        raise UserError(f"{where}: {file} is a damaged Parquet file: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def undecodable_error(found: Undecodable, where: str) -> UserError:
    """The refusal of a file with bytes that are not in its encoding, for a place where no row may be left out."""
    others = f", and {found.places - 1:,} more places are not" if found.places > 1 else ""
    return UserError(
        f"{where}: {found.file}, line {found.line}: this is not {found.encoding} text{others}; "
        f"try {encoding_setting(where, found.advice)}"
    )


def _header_of(path: Path, file: str, where: str, separator: str, encoding: str, quote: str | None) -> list[str]:
    with TextStream(path, file, where, encoding) as stream:
        names = [str(name) for name in _open(stream, file, where, separator, quote, columns=None).schema.names]
        undecodable = stream.undecodable
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{where}: {file} names the column(s) {', '.join(twice)} twice in its header")
    if undecodable is not None and any(REPLACEMENT in name for name in names):
        raise UserError(
            f"{where}: the header of {file} is not {undecodable.encoding} text; "
            f"try {encoding_setting(where, undecodable.advice)}"
        )
    return names


def _open(
    stream: TextStream,
    file: str,
    where: str,
    separator: str,
    quote: str | None,
    *,
    columns: Sequence[str] | None,
    missing: Sequence[str] = (),
    headless: bool = False,
    malformed: list[Malformed] | None = None,
) -> Any:
    def set_aside(row: Any) -> str:
        if malformed is not None:
            malformed.append(Malformed(file, row.number - (not headless), row.text[:_SHOWN], MALFORMED))
        return "skip"

    try:
        return pyarrow.csv.open_csv(
            pa.PythonFile(stream, mode="r"),
            # One thread: rows come in order, and the memory is one block's.
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=_BLOCK_BYTES,
                column_names=list(columns or ()) if headless else None,
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=separator,
                quote_char=quote or False,
                double_quote=quote is not None,
                newlines_in_values=quote is not None,
                invalid_row_handler=set_aside,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                check_utf8=False,  # the stream is UTF-8 by its making
                column_types=dict.fromkeys(columns or (), pa.string()),
                null_values=list(missing),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        raise _no_csv(error, file, where) from error


def _stage_text(
    path: Path,
    file: str,
    out: Path,
    where: str,
    separator: str,
    encoding: str,
    missing: Sequence[str],
    names: Sequence[str] | None,
    quote: str | None,
    malformed: list[Malformed],
    row_column: str | None,
) -> list[Undecodable]:
    columns = list(names) if names is not None else _header_of(path, file, where, separator, encoding, quote)
    schema = pa.schema([(name, pa.string()) for name in columns])
    if row_column is not None:
        _refuse_reserved(columns, [row_column], file, where)
        schema = schema.append(pa.field(row_column, pa.int64()))
    aside: list[Malformed] = []
    numbers = _Numbers(aside)
    rows, last = 0, ""
    with TextStream(path, file, where, encoding) as stream:
        reader = _open(
            stream,
            file,
            where,
            separator,
            quote,
            columns=columns,
            missing=missing,
            headless=names is not None,
            malformed=aside,
        )
        # What fails to be read is named already, by the stream.
        with writing(out), pq.ParquetWriter(out, schema, compression="lz4") as writer:
            for batch in _batches(reader, file, where):
                rows += batch.num_rows
                if batch.num_rows:
                    last = batch.columns[-1][-1].as_py() or ""
                arrays = list(batch.columns)
                if row_column is not None:
                    arrays.append(pa.array(numbers.take(batch.num_rows), pa.int64()))
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        undecodable, ends_quoted = stream.undecodable, stream.last == (quote or "").encode()
    if aside and aside[-1].row == rows + len(aside):
        last = aside[-1].text
    if quote is not None and "\n" in last and not ends_quoted:
        raise UserError(
            f"{where}: {file}, row {rows + len(aside)}: a quote is opened and never closed, so the rest of the file is "
            f"one row; close it, or double a {quote} that is part of a text"
        )
    malformed += aside
    return [] if undecodable is None else [undecodable]


class _Numbers:
    """The numbers of the rows that were not set aside."""

    def __init__(self, aside: Sequence[Malformed]) -> None:
        self._aside, self._passed, self._next = aside, 0, 1

    def take(self, count: int) -> list[int]:
        """The numbers of the next ``count`` rows; those set aside before them are known by now."""
        taken: list[int] = []
        while len(taken) < count:
            stop = self._next + count - len(taken)
            if self._passed < len(self._aside) and self._aside[self._passed].row < stop:
                stop = self._aside[self._passed].row
                taken.extend(range(self._next, stop))
                self._passed += 1
                self._next = stop + 1
            else:
                taken.extend(range(self._next, stop))
                self._next = stop
        return taken


def _batches(reader: Any, file: str, where: str) -> Iterator[Any]:
    try:
        yield from reader
    except pa.ArrowInvalid as error:
        raise _no_csv(error, file, where) from error


def _no_csv(error: pa.ArrowInvalid, file: str, where: str) -> UserError:
    if "straddling" in str(error):
        return UserError(
            f"{where}: {file} cannot be read as CSV: a row is longer than {_BLOCK_BYTES >> 20} MiB; is there a quote "
            "that is never closed?"
        )
    return UserError(f"{where}: {file} cannot be read as CSV: {_first_line(error)}")
