"""Raw files scored by a package, a batch at a time, into a folder of Parquet that is made whole or not at all.

In: a :class:`recmtl.package.Package`, and Parquet or CSV files. Out: their keys and predictions, row for row.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.errors import UserError
from recmtl.etl.encode import canonical
from recmtl.etl.files import find, is_parquet, scan
from recmtl.etl.validate import time_expression
from recmtl.package import Package, replacing
from recmtl.progress import Progress

__all__ = ["Predictions", "predict_files"]


@dataclass(frozen=True)
class Predictions:
    """What :func:`predict_files` wrote."""

    folder: Path
    rows: int
    columns: tuple[str, ...]
    """Of the first part: keys, kept columns, predictions."""


def predict_files(
    package: Package,
    inputs: str | Sequence[str],
    output: Path,
    *,
    extra_keys: Sequence[str] = (),
    overwrite: bool = False,
    batch_rows: int = 65536,
    rows_per_part: int = 1_000_000,
    progress: Progress,
) -> Predictions:
    """Score Parquet or CSV files, a batch at a time, into ``output/part-00000.parquet`` and so on.

    Each part holds, row for row and in the order of the inputs, the key columns that the input has (user, item,
    time and request as the training data called them), the columns in ``extra_keys``, and the predictions. Keys of
    a CSV are Int64 where all of a file's are whole numbers, else text as it stands.

    Args:
        package: the model.
        inputs: paths and glob patterns.
        output: a folder; made whole or not at all.
        extra_keys: more columns to copy.
        overwrite: replace predictions that are there.
        batch_rows: rows in memory at a time.
        rows_per_part: rows after which a new part begins.
        progress: shows rows.

    Raises:
        UserError: no such input; a column in ``extra_keys`` that an input lacks, or that is called like a
            prediction; rows that cannot be what the schema says (with the file); an output that is not empty.
    """
    files = find(inputs, "--input")
    _check_output(output, files, overwrite)
    rows = 0
    # CSV is staged beside the output, where there is room for what is about to be written, not in /tmp.
    with replacing(output) as temporary, tempfile.TemporaryDirectory(dir=temporary.parent, prefix=".") as work:
        parts = _Parts(temporary, rows_per_part)
        total = _rows_of(files)
        with progress.bar("predicting", total, "rows") as bar:
            for number, (name, path) in enumerate(files.items()):
                for copied, frame in _raw_batches(
                    package, name, path, Path(work) / str(number), extra_keys, batch_rows
                ):
                    try:
                        predictions = package.predict(frame)
                    except UserError as error:
                        raise UserError(f"{name}: {error}") from error
                    parts.write(copied.hstack(predictions) if copied.width else predictions)
                    rows += frame.height
                    bar.advance(frame.height)
                shutil.rmtree(Path(work) / str(number))
        columns = parts.close()
    return Predictions(output, rows, columns)


def _copied(package: Package, name: str, columns: Sequence[str], extra_keys: Sequence[str]) -> list[str]:
    keys = package.contents.columns
    copied = [key for key in (keys.request, keys.user, keys.item, keys.time) if key is not None and key in columns]
    lacking = [column for column in extra_keys if column not in columns]
    if lacking:
        raise UserError(f"{name}: there is no column {', '.join(lacking)} to keep; it has {', '.join(columns)}")
    copied = list(dict.fromkeys([*copied, *extra_keys]))
    clash = [column for column in copied if column in package.prediction_columns]
    if clash:
        raise UserError(f"{name}: column {', '.join(clash)} is called like a prediction; rename it in the input")
    return copied


def _raw_batches(
    package: Package, name: str, path: Path, work: Path, extra_keys: Sequence[str], batch_rows: int
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """One file's rows, as (columns to copy, columns that the model reads); at least once, perhaps without rows."""
    raw = scan({name: path}, "--input", work)
    if raw.malformed:
        raise UserError(
            f"{name}: {len(raw.malformed)} lines do not have the header's fields, the first is {raw.malformed[0]!r}"
        )
    present = raw.frame.collect_schema().names()
    copied = _copied(package, name, present, extra_keys)
    read = [column for column in package.schema.columns if column in present]
    if not read:
        raise UserError(
            f"{name}: it has none of the columns that the model reads ({', '.join(package.schema.columns[:5])}, …), "
            f"but {', '.join(present[:5])}"
        )
    keys, features = [pl.col(column) for column in copied], [pl.col(column) for column in read]
    source = path
    if raw.text:
        source = next(work.glob("*.parquet"))
        keys = _typed_keys(raw.frame, copied)
        features = [_typed(column, package.statistics.columns.get(column, "String")) for column in read]
    empty = True
    with pq.ParquetFile(source) as file:
        for batch in file.iter_batches(batch_size=batch_rows, columns=list(dict.fromkeys([*copied, *read]))):
            frame = _from_arrow(batch)
            yield frame.select(keys), frame.select(features)
            empty = False
    if empty:
        frame = raw.frame.clear().collect()
        yield frame.select(keys), frame.select(features)


class _Parts:
    """Writes frames one after the other into Parquet parts; a new one when rows or columns change."""

    def __init__(self, folder: Path, rows_per_part: int) -> None:
        self._folder, self._limit = folder, rows_per_part
        self._writer: pq.ParquetWriter | None = None
        self._schema: pa.Schema | None = None
        self._number = self._rows = 0
        self._columns: tuple[str, ...] = ()

    def write(self, frame: pl.DataFrame) -> None:
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
        self._columns = self._columns or tuple(frame.columns)
        if self._writer is None or table.schema != self._schema or (frame.height and self._rows >= self._limit):
            self._end()
            self._schema = table.schema
            self._writer = pq.ParquetWriter(self._folder / f"part-{self._number:05}.parquet", table.schema)
            self._number += 1
        self._writer.write_table(table)
        self._rows += frame.height

    def close(self) -> tuple[str, ...]:
        self._end()
        return self._columns

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._rows = None, 0


def _from_arrow(batch: pa.RecordBatch) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _typed_keys(text: pl.LazyFrame, names: Sequence[str]) -> list[pl.Expr]:
    """A CSV's columns as they are copied: Int64 where all values are whole numbers, else the text."""
    whole = [pl.col(name).str.contains(r"^-?(0|[1-9]\d{0,17})$").all().alias(name) for name in names]
    numeric = text.select(whole).collect(engine="streaming").row(0, named=True) if whole else {}
    return [pl.col(name).cast(pl.Int64) if numeric[name] else pl.col(name) for name in names]


def _typed(name: str, dtype: str) -> pl.Expr:
    """A CSV's text as what the training data had: the same value, so the same id or number.

    Args:
        name: the column.
        dtype: its type in training, as Polars writes it. A value that is no number in a column of numbers stays text:
            an unseen id, or a missing number.
    """
    text = pl.col(name)
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


def _rows_of(files: Mapping[str, Path]) -> int | None:
    """Rows in all, or None where a file does not say (CSV)."""
    if not all(is_parquet(path) for path in files.values()):
        return None
    return sum(int(pq.read_metadata(path).num_rows) for path in files.values())


def _check_output(output: Path, files: Mapping[str, Path], overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: this is a file; name a folder")
    there = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if there and not overwrite:
        raise UserError(f"--output {output}: this folder is not empty; name another, or --overwrite to replace it")
    # An input among what --overwrite removes would be lost before it is read.
    foreign = [name for name in there if not re.fullmatch(r"part-\d{5,}\.parquet", name)]
    if foreign:
        raise UserError(
            f"--output {output}: --overwrite replaces predictions alone, but {foreign[0]} lies there; "
            "name another folder"
        )
    for name, path in files.items():
        if path.resolve().is_relative_to(output.resolve()):
            raise UserError(f"--output {output}: the input {name} lies in it; name another folder")
