"""JSON lines as typed Parquet: one object per line, every number exact.

In: files with one JSON object per line. Out: Parquet files whose columns are the objects' keys, with one type per
column over all files. A line that is no object is set aside.

Numbers are never read through a float: a column becomes Int64 where all of its values are whole and within 64 bits,
Float64 where all are numbers and none is a whole number beyond 2^53, else text with the numbers as they are written.
Text stays String and booleans Boolean. A list becomes a list of one of these types. An object, and a list or an object
within a list, becomes a struct with its JSON text, which no feature reads. A column of several kinds becomes text.

Memory is bounded: lines are read and written some megabytes at a time, first as tokens and then, when the types of all
files are known, as values.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recmtl.errors import UserError
from recmtl.etl.streams import TextStream, Undecodable
from recmtl.failures import writing

__all__ = ["MAX_COLUMNS", "MAX_DEPTH", "MAX_LINE", "Malformed", "column_names", "stage"]

MAX_LINE = 1 << 24
"""Bytes in a line; a longer one is malformed."""
MAX_DEPTH = 32
"""Lists and objects within each other, the line's own object included; a deeper line is malformed."""
MAX_COLUMNS = 10_000
"""Different keys in all files together."""

_BLOCK_BYTES = 1 << 23
_BLOCK_ROWS = 1 << 14
_GROUP_ROWS = 1 << 17
_GROUP_BYTES = 1 << 26
_SHOWN = 1000
_EXACT = 2**53
_NESTED = pa.struct([("json", pa.string())])
# A string up to its end, or up to the line's where it has none; else a bracket.
_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|([\[{])|([\]}])', re.DOTALL)


class Malformed(NamedTuple):
    """A line of a file that cannot be a row."""

    file: str
    """The file, as the user wrote it."""
    row: int
    """Which row of the file it is, from 1; a header line and empty lines are not counted."""
    text: str
    """The line, at most 1,000 characters of it."""
    reason: str
    """Why it is no row."""


class _Int(str):
    __slots__ = ()


class _Float(str):
    __slots__ = ()


@dataclass
class _Kinds:
    """What kinds of values a column (or the lists in it) holds."""

    whole: bool = False
    inexact: bool = False
    """A whole number beyond 2^53."""
    huge: bool = False
    """A whole number beyond 64 bits."""
    fraction: bool = False
    text: bool = False
    truth: bool = False
    nested: bool = False
    lists: bool = False
    items: "_Kinds | None" = None

    def see(self, values: Sequence[Any]) -> None:
        """Take note of values; None is none."""
        types = set(map(type, values))
        self.text |= str in types
        self.truth |= bool in types
        self.fraction |= _Float in types
        self.nested |= dict in types
        if _Int in types:
            self.whole = True
            for value in values:
                if type(value) is _Int and len(value) > 15:
                    # Python refuses to read numbers of thousands of digits.
                    number = int(value) if len(value) <= 20 else 2**64
                    self.inexact |= abs(number) > _EXACT
                    self.huge |= not -(2**63) <= number < 2**63
        if list in types and self.items is None:
            self.nested = True
        elif list in types:
            assert self.items is not None
            self.lists = True
            self.items.see([item for value in values if type(value) is list for item in value])

    def dtype(self) -> pa.DataType:
        """The type that holds all of the values as they are."""
        if sum((self.whole or self.fraction, self.text, self.truth, self.nested, self.lists)) != 1:
            return pa.string()
        if self.lists:
            assert self.items is not None
            return pa.list_(self.items.dtype())
        if self.nested:
            return _NESTED
        if self.truth:
            return pa.bool_()
        if self.text or self.huge or (self.fraction and self.inexact):
            return pa.string()
        return pa.float64() if self.fraction else pa.int64()


_WRITTEN = {str, _Int, _Float, type(None)}


def _check_columns(names: Collection[str], name: str, where: str) -> None:
    if len(names) > MAX_COLUMNS:
        raise UserError(
            f"{where}: the objects of {name} have more than {MAX_COLUMNS:,} different keys; keys that are data belong "
            "into values"
        )


class _DuplicateKeyError(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _DuplicateKeyError(f"the key {twice[:100]!r} stands twice in one object")
    return found


def _constant(name: str) -> _Float | None:
    return None if name == "NaN" else _Float(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_Int, parse_float=_Float, parse_constant=_constant)


def _depth(line: bytes) -> int:
    """How deeply lists and objects are nested, without following them."""
    if line.count(b"[") + line.count(b"{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for match in _BRACKETS.finditer(line):
        depth += (match.group(1) is not None) - (match.group(2) is not None)
        deepest = max(deepest, depth)
    return deepest


def _row(line: bytes) -> dict[str, Any]:
    """A line's object.

    Raises:
        ValueError: it is none; the message is the reason.
    """
    if len(line) > MAX_LINE:
        raise ValueError(f"the line is longer than {MAX_LINE >> 20} MiB")
    if _depth(line) > MAX_DEPTH:
        raise ValueError(f"its values are nested more than {MAX_DEPTH} deep")
    try:
        value = _DECODER.decode(line.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error.msg.lower()} at character {error.pos + 1}") from None
    if type(value) is not dict:
        raise ValueError("it is no JSON object")
    if b"\\u" in line:  # an escape can say half of a character, which no text may hold
        try:
            _token(value).encode()
        except UnicodeEncodeError:
            raise ValueError("it holds half of a surrogate pair, which is no text") from None
    return value


def _token(value: Any) -> str:
    """A value as text: numbers as they are written, nested values as JSON."""
    if isinstance(value, str):
        return value
    if value is True:
        return "true"
    if value is False:
        return "false"
    return _json(value)


def _json(value: Any) -> str:
    if isinstance(value, _Int | _Float):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_json, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key, ensure_ascii=False)}: {_json(one)}' for key, one in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)


def _lines(stream: TextStream) -> Iterator[bytes]:
    """The lines that are not empty; of one that is too long the beginning, which is longer than :data:`MAX_LINE`."""
    with BufferedReader(stream, 1 << 20) as reader:
        while line := reader.readline(MAX_LINE + 2):
            if not line.endswith(b"\n"):
                while (rest := reader.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
            line = line.strip(b" \t\r\n")
            if line:
                yield line


def _blocks(stream: TextStream, name: str, malformed: list[Malformed]) -> Iterator[tuple[list[int], list[Any]]]:
    """The file's objects with their rows' numbers, some megabytes at a time; empty at the file's end."""
    numbers: list[int] = []
    rows: list[Any] = []
    size = 0
    for number, line in enumerate(_lines(stream), 1):
        try:
            if stream.undecodable is not None and "\N{REPLACEMENT CHARACTER}".encode() in line:
                raise ValueError(f"it is not in the file's encoding ({stream.undecodable.encoding})")
            rows.append(_row(line))
        except ValueError as error:
            text = line[: _SHOWN * 4].decode(errors="ignore")[:_SHOWN]
            malformed.append(Malformed(name, number, text, str(error)))
            continue
        numbers.append(number)
        size += len(line)
        if size >= _BLOCK_BYTES or len(rows) == _BLOCK_ROWS:
            yield numbers, rows
            numbers, rows, size = [], [], 0
    yield numbers, rows


def stage(
    files: Mapping[str, Path],
    targets: Sequence[Path],
    where: str,
    encoding: str,
    row_column: str | None,
) -> tuple[list[Malformed], list[Undecodable]]:
    """Write each file's rows as Parquet, all files with the same columns and types.

    Args:
        files: as the user wrote it → path.
        targets: per file, the Parquet file to write.
        where: the setting's name, for errors.
        encoding: the files' encoding.
        row_column: a column for the row's number within its file, from 1; None: none.

    Returns:
        The lines that are no rows, and per file what could not be decoded (those lines are among them).

    Raises:
        UserError: a damaged file, files without a single object, more than :data:`MAX_COLUMNS` keys.
        RunError: a file cannot be read.
    """
    kinds: dict[str, _Kinds] = {}
    malformed: list[Malformed] = []
    undecodable: list[Undecodable] = []
    staged: list[list[Path]] = []
    for (name, path), target in zip(files.items(), targets, strict=True):
        parts: list[Path] = []
        with TextStream(path, name, where, encoding) as stream:
            for numbers, rows in _blocks(stream, name, malformed):
                if rows:
                    part = target.with_name(f"{target.stem}-{len(parts):05}.tokens")
                    _write_tokens(numbers, rows, kinds, part, name, where, row_column)
                    parts.append(part)
            undecodable += [stream.undecodable] if stream.undecodable is not None else []
        staged.append(parts)
    if not kinds:
        raise _nothing(files, malformed, where)
    schema = pa.schema([(key, found.dtype()) for key, found in kinds.items()])
    if row_column is not None:
        schema = schema.append(pa.field(row_column, pa.int64()))
    for parts, target in zip(staged, targets, strict=True):
        with writing(target), pq.ParquetWriter(target, schema, compression="lz4") as writer:
            for group in _groups(parts, schema):
                writer.write_table(group)
    return malformed, undecodable


def _nothing(files: Mapping[str, Path], malformed: Sequence[Malformed], where: str) -> UserError:
    name = next(iter(files))
    if not malformed:
        return UserError(f"{where}: {name} is empty or holds only empty objects; write one JSON object per line")
    first = malformed[0]
    array = " (a JSON array?)" if first.text.startswith("[") else ""
    return UserError(
        f"{where}: no line of {name} is a JSON object{array}, {first.reason}; write one JSON object per line"
    )


def _write_tokens(
    numbers: Sequence[int],
    rows: Sequence[dict[str, Any]],
    kinds: dict[str, _Kinds],
    part: Path,
    name: str,
    where: str,
    row_column: str | None,
) -> None:
    keys: dict[str, None] = {}
    for row in rows:
        if len(row) != len(keys) or row.keys() != keys.keys():
            keys |= dict.fromkeys(row)
    kinds |= {key: _Kinds(items=_Kinds()) for key in keys if key not in kinds}
    _check_columns(kinds, name, where)
    arrays = {}
    for key in keys:
        values = [row.get(key) for row in rows]
        kinds[key].see(values)
        if not set(map(type, values)) <= _WRITTEN:
            values = [None if value is None else _token(value) for value in values]
        arrays[key] = pa.array(values, pa.string())
    if row_column is not None:
        if row_column in kinds:
            raise UserError(f"{where}: {name} has a key {row_column!r}, which recmtl uses itself; rename it")
        arrays[row_column] = pa.array(numbers, pa.int64())
    if not arrays:  # empty objects alone
        arrays[""] = pa.nulls(len(rows), pa.string())
    with writing(part):
        pq.write_table(pa.table(arrays), part, compression="lz4")


def _groups(parts: Sequence[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """The values of the parts, which are removed, in tables of a good size for a row group."""
    tables: list[pa.Table] = []
    for number, part in enumerate(parts, 1):
        tables.append(_values(pq.read_table(part), schema))
        part.unlink()
        rows, size = sum(table.num_rows for table in tables), sum(table.nbytes for table in tables)
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES or number == len(parts):
            yield pa.concat_tables(tables)
            tables = []


def _values(tokens: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = []
    for one in schema:
        if one.name not in tokens.column_names:
            columns.append(pa.nulls(tokens.num_rows, one.type))
            continue
        columns.append(_typed(tokens.column(one.name).combine_chunks(), one.type))
    return pa.table(columns, schema=schema)


def _typed(tokens: Any, dtype: pa.DataType) -> Any:
    if tokens.type == dtype:
        return tokens
    if pa.types.is_int64(dtype):
        return pc.cast(tokens, dtype)
    if pa.types.is_float64(dtype):
        try:
            return pc.cast(tokens, dtype)
        except pa.ArrowInvalid:  # 1e999, Infinity
            return pa.array([None if one is None else float(one) for one in tokens.to_pylist()], dtype)
    if pa.types.is_boolean(dtype):
        return pc.equal(tokens, "true")
    if pa.types.is_list(dtype):
        lists = [None if one is None else _DECODER.decode(one) for one in tokens.to_pylist()]
        inner = dtype.value_type
        make = _maker(inner)
        return pa.array([None if one is None else [make(item) for item in one] for one in lists], dtype)
    return pa.StructArray.from_arrays([tokens], fields=list(_NESTED), mask=pc.is_null(tokens))


def _maker(dtype: pa.DataType) -> Callable[[Any], Any]:
    def make(item: Any) -> Any:
        if item is None:
            return None
        if pa.types.is_int64(dtype):
            return int(item)
        if pa.types.is_float64(dtype):
            return float(item)
        if pa.types.is_boolean(dtype):
            return item
        return _token(item) if pa.types.is_string(dtype) else {"json": _token(item)}

    return make


def column_names(files: Mapping[str, Path], where: str, encoding: str) -> list[str]:
    """The keys of all objects in the files, in the order in which they come first.

    All of the files are read, because a key may come first in the last line.

    Raises:
        UserError: as :func:`stage`.
        RunError: a file cannot be read.
    """
    names: dict[str, None] = {}
    malformed: list[Malformed] = []
    for name, path in files.items():
        stat = path.stat()
        state = (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
        found, faults = _names_in(path, name, where, encoding, state)
        names |= dict.fromkeys(found)
        malformed += faults
    if not names:
        raise _nothing(files, malformed, where)
    return list(names)


@lru_cache(maxsize=1024)
def _names_in(
    path: Path, name: str, where: str, encoding: str, state: tuple[str, int, int]
) -> tuple[tuple[str, ...], tuple[Malformed, ...]]:
    """The keys of a file; remembered for as long as its size and time of change are the same."""
    names: dict[str, None] = {}
    malformed: list[Malformed] = []
    with TextStream(path, name, where, encoding) as stream:
        for _, rows in _blocks(stream, name, malformed):
            for row in rows:
                if len(row) != len(names) or row.keys() != names.keys():
                    names |= dict.fromkeys(row)
            _check_columns(names, name, where)
    return tuple(names), tuple(malformed[:1])
