"""Features seen from the columns, for those who name none.

In: the train rows, and what is known of the columns. Out: features, and a line for every column on what was taken and
what was left. Outcomes and labels never come into question; a column is judged on the first train rows alone.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from recmtl.errors import UserError
from recmtl.etl.listtext import is_bracketed, is_list_text, list_items
from recmtl.manifest import Columns
from recmtl.schema import Feature

__all__ = ["Inferred", "infer_features"]

SAMPLE_ROWS = 100_000
FEW = 32
"""A whole number with at most this many values is a code, not a quantity."""
SEPARATORS = ("|", ";", ",")
MIN_VECTOR = 4
"""Lists of floats of one length are a vector from this length on; shorter ones are refused rather than guessed."""


LISTS = 0.95
"""Share of a text column's values that must be lists for it to be a bag."""
_NAMELESS = "(a column without a name)"
_INDEX = re.compile(r"Unnamed: \d+(_level_\d+)?|__index_level_\d+__")
"""What pandas calls an index that was written without a name."""
_DECIMAL_COMMA = r"^\s*[+-]?(?:\d+|\d{1,3}(?:[. ]\d{3})+),\d+\s*$"


@dataclass(frozen=True)
class Inferred:
    """What was taken for features."""

    features: tuple[Feature, ...]
    lines: tuple[str, ...]
    """One sentence a column: as what it was taken, or why it was left."""


def infer_features(train: pl.LazyFrame, columns: Columns, excluded: Collection[str]) -> Inferred:
    """Judge every column by its type, its name and its values.

    The user and item keys and other text, booleans, whole numbers named `…id` or with few values become ids; lists and
    text with a common separator bags; lists of floats of one length vectors, in text (``[5, 8]``) too; other numbers
    numbers (log1p where they are counts with a long tail). Times, free text, columns with one value, identifiers of
    single rows, and an index that was written beside the data (without a name, named as pandas names it, or rising from
    row to row) are left out.

    Args:
        train: raw train rows.
        columns: the key columns.
        excluded: columns that are no features: outcomes, labels, weights, bookkeeping.

    Raises:
        UserError: nothing is left to learn from.
    """
    keys = {columns.user, columns.item}
    never = {*excluded, columns.time, columns.request}
    sample = (
        train.select(pl.exclude(sorted(name for name in never if name))).head(SAMPLE_ROWS).collect(engine="streaming")
    )
    features: list[Feature] = []
    lines: list[str] = []
    for column in sample.columns:
        is_key = column in keys
        found = (None if is_key else _index(sample[column])) or _judge(sample[column], is_key=is_key)
        if isinstance(found, str):
            lines.append(f"{column or _NAMELESS}: left out, {found}")
            continue
        feature = Feature(name=_name(column, features), column=column, **found)  # type: ignore[arg-type]
        features.append(feature)
        details = [f"{key} {value!r}" for key, value in found.items() if key != "kind"]
        lines.append(f"{column}: {', '.join([feature.kind, *details])}")
    if not features:
        raise UserError("features: none could be inferred from the columns; name them")
    return Inferred(tuple(features), tuple(lines))


def _index(values: pl.Series) -> str | None:
    """Why a column is an index and no feature, where it is one."""
    if not values.name.strip() or _INDEX.fullmatch(values.name):
        return "an index that was written beside the data"
    rows = len(values)
    if not values.dtype.is_numeric() or values.null_count() or rows <= FEW:
        return None
    if not (values.is_finite().all() and (values == values.floor()).all()):
        return None
    # Compared rather than subtracted, as unsigned numbers have no negative difference.
    rises = bool((values.slice(1) > values.head(rows - 1)).all())
    return "row numbers: it rises from row to row (name it as a feature to use it)" if rises else None


def _judge(values: pl.Series, *, is_key: bool) -> dict[str, object] | str:
    """A feature's fields, or the reason why the column is none."""
    dtype = values.dtype
    present = values.drop_nulls()
    if isinstance(dtype, (pl.List, pl.Array)):
        return _judge_list(present, dtype)
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        return f"its type {dtype} is no feature's"
    if is_key:
        return {"kind": "id"}
    if dtype.is_temporal():
        return "a time (name it as a number to use it)"
    distinct = present.n_unique()
    if distinct < 2:
        return "it has one value at most"
    if dtype == pl.Boolean:
        return {"kind": "id"}
    alone = distinct > 0.9 * len(values) and len(values) > FEW
    if dtype.is_numeric():
        present = present.cast(pl.Float64)
        present = present.filter(present.is_finite())
        whole = bool((present == present.floor()).all())
        named = re.search(r"(?i)(^|_)ids?$|[a-z]Id$", values.name) is not None
        if whole and named:
            return "a different value in almost every row" if alone else {"kind": "id"}
        if whole and distinct <= FEW and dtype.is_integer():
            return {"kind": "id"}
        return {"kind": "number", "transform": "log1p"} if _long_tailed(present) else {"kind": "number"}
    texts = present.cast(pl.String)
    if (texts.str.contains(_DECIMAL_COMMA)).mean() >= LISTS:  # type: ignore[operator]
        return "numbers with a decimal comma (set `decimal` in data.source)"
    listed = _judge_list_text(texts)
    if listed is not None:
        return listed
    separator = _separator(texts)
    if separator is not None:
        return {"kind": "bag", "separator": separator}
    return "a different text in almost every row" if alone else {"kind": "id"}


def _judge_list(present: pl.Series, dtype: pl.List | pl.Array) -> dict[str, object] | str:
    inner = dtype.inner
    assert isinstance(inner, pl.DataType)
    if inner.is_nested():
        return f"its type {dtype} is no feature's"
    items = present if isinstance(dtype, pl.List) else present.arr.to_list()
    if items.list.len().sum() == 0:
        return "its lists are empty"
    if inner.is_float():
        lengths = items.list.len().unique()
        if len(lengths) == 1 and int(lengths[0]) >= MIN_VECTOR:
            return {"kind": "vector", "dim": int(lengths[0])}
        return "lists of floats of different or small lengths (name it as a vector or a weighted bag)"
    return {"kind": "bag"}


def _judge_list_text(texts: pl.Series) -> dict[str, object] | str | None:
    """The same for lists in text; None where the texts are no lists."""
    texts = texts.filter(texts.str.strip_chars() != "")
    found = texts.to_frame("text").select(
        listed=is_list_text(pl.col("text")), bracketed=is_bracketed(pl.col("text")), items=list_items(pl.col("text"))
    )
    if not len(found) or found["listed"].mean() < LISTS:  # type: ignore[operator]
        return None
    items = found["items"].drop_nulls()
    values = items.explode(empty_as_null=False)
    numbers = values.cast(pl.Float64, strict=False)
    if len(values) and numbers.null_count() == values.null_count() and not (numbers == numbers.floor()).all():
        items = items.cast(pl.List(pl.Float64))
    judged = _judge_list(items, items.dtype)  # type: ignore[arg-type]
    if isinstance(judged, dict) and judged["kind"] == "bag" and not found["bracketed"].all():
        judged["separator"] = ","  # of the few texts that are no lists
    return judged


def _long_tailed(present: pl.Series) -> bool:
    """Not negative, and the largest value far beyond the typical one."""
    low, middle, high = present.min(), present.median(), present.max()
    return low is not None and float(low) >= 0 and float(high) > 50 * max(float(middle), 1.0)  # type: ignore[arg-type]


def _separator(texts: pl.Series) -> str | None:
    """The character that joins several values out of a smaller set, if there is one."""
    for separator in SEPARATORS:
        joined = texts.filter(texts.str.contains(separator, literal=True))
        if len(joined) < 0.05 * len(texts):
            continue
        distinct = texts.filter(texts != "").unique()
        words = distinct.str.split(separator).explode(empty_as_null=False).str.strip_chars()
        words = words.filter(words != "").unique()
        # Tags return in other texts, so there are no more of them than of texts; the parts of a title hardly do.
        if len(words) <= len(distinct):
            return separator
    return None


def _name(column: str, taken: list[Feature]) -> str:
    """The column's name as a :data:`~recmtl.settings.Name`, not used by another feature."""
    name = re.sub(r"[^A-Za-z0-9_]", "_", column)
    if not re.match(r"[A-Za-z_]", name):
        name = f"_{name}"
    names = {feature.name for feature in taken}
    while name in names:
        name += "_"
    return name
