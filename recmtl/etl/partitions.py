"""Columns that stand in the folders' names (``dt=2024-01-01/part-0.parquet``), as Hive and Spark write them.

In: files as the user wrote them. Out: per column one type over all files, and a value per file.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import PurePath
from urllib.parse import unquote

import polars as pl

from recmtl.errors import UserError

__all__ = ["Partition", "partitions"]

_FOLDER = re.compile(r"([^=]+)=(.*)", re.DOTALL)
_MISSING = ("", "__HIVE_DEFAULT_PARTITION__")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_WHOLE = re.compile(r"-?(?:0|[1-9]\d{0,18})")


@dataclass(frozen=True)
class Partition:
    """One column of the folders' names."""

    dtype: pl.DataType
    """Date where all values are dates, Int64 where all are whole numbers without leading zeros, else String."""
    texts: Mapping[str, str | None]
    """File → its value as text, None where it is missing; a file without such a folder is absent."""

    def expression(self, name: str, file: str) -> pl.Expr:
        """The file's value as a column called ``name``."""
        text = self.texts.get(file)
        value: object = text
        if text is not None and self.dtype == pl.Date:
            value = date.fromisoformat(text)
        elif text is not None and self.dtype == pl.Int64:
            value = int(text)
        return pl.lit(value, self.dtype).alias(name)


def partitions(files: Collection[str], where: str) -> dict[str, Partition]:
    """The columns that the folders' names hold, in the order of the folders.

    A folder counts when its name is ``COLUMN=VALUE`` and stands in the path as the user wrote it, or as a pattern
    matched it. Both may be URL-encoded. ``__HIVE_DEFAULT_PARTITION__`` is a missing value.

    Args:
        files: the files, as :func:`recmtl.etl.files.find` names them.
        where: the setting's name, for errors.

    Raises:
        UserError: a name that is not URL-encoded UTF-8, or a path with one column twice.
    """
    found: dict[str, dict[str, str | None]] = {}
    for file in files:
        for folder in PurePath(file).parts[:-1]:
            match = _FOLDER.fullmatch(folder)
            if match is None:
                continue
            try:
                name, value = (unquote(part, errors="strict") for part in match.groups())
            except UnicodeDecodeError:
                raise UserError(f"{where}: {file}: the folder {folder!r} is not URL-encoded UTF-8; rename it") from None
            texts = found.setdefault(name, {})
            if file in texts:
                raise UserError(f"{where}: {file}: two folders give the column {name!r}; rename one")
            texts[file] = None if value in _MISSING else value
    return {name: Partition(_type(texts.values()), texts) for name, texts in found.items()}


def _type(texts: Collection[str | None]) -> pl.DataType:
    given = [text for text in texts if text is not None]
    if given and all(map(_is_date, given)):
        return pl.Date()
    if given and all(_WHOLE.fullmatch(text) and -(2**63) <= int(text) < 2**63 for text in given):
        return pl.Int64()
    return pl.String()


def _is_date(text: str) -> bool:
    try:
        return _DATE.fullmatch(text) is not None and date.fromisoformat(text) is not None
    except ValueError:
        return False
