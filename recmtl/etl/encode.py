"""Raw columns to table rows and dense numbers: the one way in, for training and for serving alike.

In: a frame of raw columns, the schema and the statistics fitted on train. Out: a frame with the feature columns of
:mod:`recmtl.manifest` and the rows as they stood. Every step is elementwise, so any slice of a frame encodes as the
whole does. An id is compared as text (:func:`canonical`), so that a column arriving as int64, as a float with NaN
(pandas) or as text names the same table row.
"""

import hashlib
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import polars as pl

from recmtl.errors import UserError
from recmtl.etl.listtext import is_bracketed, list_items
from recmtl.schema import MISSING, UNSEEN, Feature, Schema
from recmtl.statistics import NumberStatistics, Statistics

__all__ = [
    "LARGEST_NUMBER",
    "Encoder",
    "bag_values",
    "canonical",
    "encode",
    "number",
    "stable_hash",
    "transformed",
    "unreadable",
]

_RESERVED = 2
_KEPT = 16
"""Combinations of types that an encoder keeps its expressions for."""
_BAG = pl.List(pl.Int32)
_HASHED_BAG = pl.List(pl.Int64)
_WEIGHTS = pl.List(pl.Float32)
LARGEST_NUMBER = float(np.finfo(np.float32).max)
"""The largest number that can be encoded; one beyond it is unreadable."""


def encode(frame: pl.LazyFrame, schema: Schema, statistics: Statistics) -> pl.LazyFrame:
    """Encode raw rows.

    Args:
        frame: raw columns; one that is absent counts as missing in every row, one that no feature reads is ignored.
        schema: the features.
        statistics: fitted on train.

    Returns:
        ``id:``, ``bag:``, ``weights:`` and ``dense`` columns alone, as :mod:`recmtl.manifest` lists them, row for row.

    Raises:
        UserError: a column's type cannot be read as the feature's kind (text where lists are expected), a vector has
            the wrong length, or a bag's weights are not aligned with its values. Raised on collecting where it
            depends on the values.
    """
    return Encoder(schema, statistics)(frame)


class Encoder:
    """:func:`encode` for many frames: the vocabularies are indexed once for all that have the same columns' types."""

    def __init__(self, schema: Schema, statistics: Statistics) -> None:
        self._schema = schema
        self._statistics = statistics
        self._lookups = {name: _lookup(schema, statistics, name) for name in schema.tables}
        self._made: dict[tuple[pl.DataType | None, ...], dict[str, pl.Expr]] = {}

    def __call__(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """Encode raw rows; see :func:`encode`."""
        types = frame.collect_schema()
        read = tuple(types.get(column) for column in self._schema.columns)
        columns = self._made.get(read)
        if columns is None:  # several threads may make the same
            if len(self._made) >= _KEPT:
                self._made.clear()
            columns = self._made[read] = self._columns(types)
        return frame.with_columns(**columns).select(*columns)

    def _columns(self, types: pl.Schema) -> dict[str, pl.Expr]:
        """What the columns become. Polars hashes a vocabulary when an expression on it is written, not when it is run:
        a third of a second for a million values, which a request of one row would otherwise wait for.
        """
        columns: dict[str, pl.Expr] = {}
        dense: list[pl.Expr] = []
        for feature in self._schema.values():
            if feature.kind == "id":
                columns[f"id:{feature.name}"] = self._id(feature, types)
            elif feature.kind == "bag":
                columns[f"bag:{feature.name}"] = self._bag(feature, types)
            elif feature.kind == "weighted_bag":
                columns[f"bag:{feature.name}"], columns[f"weights:{feature.name}"] = self._weighted_bag(feature, types)
            elif feature.kind == "number":
                dense += self._number(feature, types)
            else:
                dense.append(_vector(feature, types))
        if dense:
            columns["dense"] = pl.concat_arr(dense)
        return columns

    def rows(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Encode rows in memory; errors are one sentence, without the plan that Polars adds."""
        try:
            return self(frame.lazy()).collect()
        except UserError as error:
            raise UserError(str(error).split("\n\nThis error occurred", 1)[0]) from error.__cause__

    def _id(self, feature: Feature, types: pl.Schema) -> pl.Expr:
        assert feature.table is not None
        text = _canonical_column(feature, types)
        missing = pl.lit(MISSING, pl.Int32 if feature.managed is None else pl.Int64)
        return pl.when(text.is_null()).then(missing).otherwise(self._lookups[feature.table](text))

    def _bag(self, feature: Feature, types: pl.Schema) -> pl.Expr:
        assert feature.table is not None
        kept = bag_values(feature, types).list.drop_nulls()
        if feature.max_length is not None:
            kept = kept.list.head(feature.max_length)
        rows = kept.list.eval(self._lookups[feature.table](pl.element()))
        dtype = _bag_type(feature)
        return rows.fill_null(pl.lit([MISSING], dtype=dtype)).cast(dtype)

    def _weighted_bag(self, feature: Feature, types: pl.Schema) -> tuple[pl.Expr, pl.Expr]:
        assert feature.table is not None
        values = bag_values(feature, types)
        weights = _bag_weights(feature, types)
        kept = values.list.eval(pl.arg_where(pl.element().is_not_null()))
        if feature.max_length is not None:
            kept = kept.list.head(feature.max_length)
        rows = values.list.gather(kept).list.eval(self._lookups[feature.table](pl.element()))
        weights = weights.list.gather(kept)
        if feature.pooling == "mean":
            total = pl.element().abs().sum()
            weights = weights.list.eval(pl.element() / pl.when(total > 0).then(total).otherwise(1.0))
        dtype = _bag_type(feature)
        return (
            rows.fill_null(pl.lit([MISSING], dtype=dtype)).cast(dtype),
            weights.fill_null(pl.lit([1.0], dtype=pl.List(pl.Float64))).cast(_WEIGHTS),
        )

    def _number(self, feature: Feature, types: pl.Schema) -> list[pl.Expr]:
        fitted = self._statistics.numbers[feature.name]
        value = transformed(feature, _number_column(feature, types), fitted)
        standard = ((value - fitted.mean) / fitted.std).clip(-LARGEST_NUMBER, LARGEST_NUMBER)
        return [standard.fill_null(0.0).cast(pl.Float32), value.is_null().cast(pl.Float32)]


def canonical(expr: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """A value as text, the same whatever type it arrives in; null for null, NaN and the empty text.

    Integers ``7``; floats ``7`` where whole, else the shortest text that reads back the same; decimals exactly, without
    zeros at the end of the fraction; booleans ``true`` and ``false``; dates ISO 8601, an instant at midnight like the
    date (pandas knows no dates) and in UTC where it has a zone; bytes the text that they are in UTF-8, else ``0x`` and
    their hexadecimal digits; text as it is.

    Raises:
        TypeError: a list, array or struct has no such text.
    """
    if dtype == pl.String:
        text = expr
    elif dtype.is_decimal():
        # Without a point there is no fraction, and a zero at the end is part of the number.
        text = expr.cast(pl.String)
        if dtype.scale:  # type: ignore[attr-defined]
            text = text.str.replace(r"\.?0+$", "").str.replace(r"^-0$", "0")
    elif dtype == pl.Binary:
        text = expr.map_batches(_bytes_text, return_dtype=pl.String, is_elementwise=True)
    elif dtype.is_float():
        value = expr.fill_nan(None)
        whole = (value == value.floor()) & (value.abs() < 2.0**63)
        text = pl.when(whole).then(value.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(value.cast(pl.String))
    elif dtype == pl.Date:
        text = expr.dt.strftime("%Y-%m-%d")
    elif isinstance(dtype, pl.Datetime):
        instant = (expr if dtype.time_zone is None else expr.dt.convert_time_zone("UTC")).dt.cast_time_unit("us")
        midnight = instant.dt.time() == pl.time(0)
        text = (
            pl.when(midnight)
            .then(instant.dt.strftime("%Y-%m-%d"))
            .otherwise(instant.dt.strftime("%Y-%m-%dT%H:%M:%S%.6f"))
        )
    elif dtype == pl.Duration:
        text = expr.dt.total_microseconds().cast(pl.String)
    elif dtype == pl.Object:
        text = expr.map_batches(_object_text, return_dtype=pl.String, is_elementwise=True)
    elif dtype.is_nested():
        raise TypeError(f"{dtype} is no single value")
    else:
        text = expr.cast(pl.String, strict=False)
    return pl.when(text != "").then(text)


def number(expr: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """A value as a Float64 of at most :data:`LARGEST_NUMBER`; null for what is missing, unparseable or beyond that.

    Dates and instants are seconds since 1970, durations seconds, booleans 0 and 1.

    Raises:
        TypeError: a list, array or struct is no number.
    """
    if dtype.is_nested():
        raise TypeError(f"{dtype} is no single value")
    if dtype == pl.Date:
        value = expr.cast(pl.Datetime("us")).dt.epoch("us") / 1e6
    elif isinstance(dtype, pl.Datetime):
        value = expr.dt.epoch("us") / 1e6
    elif dtype == pl.Duration:
        value = expr.dt.total_microseconds() / 1e6
    elif dtype == pl.Time:
        value = expr.cast(pl.Int64) / 1e9
    elif dtype.is_numeric() or dtype == pl.Boolean:
        value = expr.cast(pl.Float64)
    else:
        value = canonical(expr, dtype).str.strip_chars().cast(pl.Float64, strict=False)
    return pl.when(value.is_finite() & (value.abs() <= LARGEST_NUMBER)).then(value)


def transformed(feature: Feature, value: pl.Expr, fitted: NumberStatistics | None = None) -> pl.Expr:
    """A number after the feature's transform; ``rank`` reads the quantiles in ``fitted``."""
    if feature.transform == "log1p":
        return value.sign() * value.abs().log1p()
    if feature.transform == "sqrt":
        return value.sign() * value.abs().sqrt()
    if feature.transform == "rank":
        assert fitted is not None
        quantiles = np.asarray(fitted.quantiles, dtype=np.float64)
        return value.map_batches(partial(_rank, quantiles=quantiles), return_dtype=pl.Float64, is_elementwise=True)
    return value


def bag_values(feature: Feature, types: pl.Schema) -> pl.Expr:
    """The values of a bag as List(String): a missing bag is null, a missing value within one is a null element.

    Raises:
        UserError: nested lists; on collecting, text that is no list where the feature has no separator. A list in text
            (``[5, 8]``, ``["a"]``) needs none; one that cannot be read, such as one that holds lists, is missing.
    """
    dtype = types.get(feature.column)
    if dtype is None:
        return pl.lit(None, pl.List(pl.String))
    column = pl.col(feature.column)
    try:
        if isinstance(dtype, (pl.List, pl.Array)):
            items = column if isinstance(dtype, pl.List) else column.arr.to_list()
            inner = dtype.inner
            assert isinstance(inner, pl.DataType)
            values = items.list.eval(canonical(pl.element(), inner))
        else:
            values = _split(feature, canonical(column, dtype), dtype)
    except TypeError as error:
        raise unreadable(feature, dtype) from error
    if feature.kind == "weighted_bag" and feature.weights is None:
        # The value is what stands before the last weight separator, or all of it where there is none.
        value = pl.element().str.extract(f"(?s)^(.*){re.escape(feature.weight_separator)}", 1).str.strip_chars()
        values = values.list.eval(pl.coalesce(value, pl.element())).list.eval(_filled(pl.element()))
    return values


def stable_hash(values: pl.Series, *, key: str = "") -> pl.Series:
    """A 64-bit hash of each text (BLAKE2b over its UTF-8 bytes), null for null; the same on every machine, for ever.

    Polars' own ``hash`` promises neither.
    """
    distinct = values.drop_nulls().unique()
    salt = hashlib.blake2b(key.encode(), digest_size=16).digest() if key else b""
    hashes = [
        int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8, key=salt).digest(), "little")
        for value in distinct.to_list()
    ]
    return values.replace_strict(distinct, pl.Series(hashes, dtype=pl.UInt64), default=None, return_dtype=pl.UInt64)


def _lookup(schema: Schema, statistics: Statistics, table: str) -> Callable[[pl.Expr], pl.Expr]:
    """Canonical text to table row, or to the hash that a managed table knows it by, for text that is not null."""
    if schema.tables[table].managed is not None:
        return lambda text: text.map_batches(_hashed, return_dtype=pl.Int64, is_elementwise=True)
    buckets = schema.tables[table].hash_buckets
    if buckets is not None:
        function = partial(_bucket, buckets=buckets)
        return lambda text: text.map_batches(function, return_dtype=pl.Int32, is_elementwise=True)
    values = statistics.tables[table].values
    if not values:
        return lambda text: pl.when(text.is_not_null()).then(pl.lit(UNSEEN, pl.Int32))
    # An Enum's physical code is the value's position: one hash table for all rows and calls.
    kept = pl.Enum(pl.Series(values, dtype=pl.String))
    return lambda text: (text.cast(kept, strict=False).to_physical().cast(pl.Int32) + _RESERVED).fill_null(UNSEEN)


def _bucket(text: pl.Series, buckets: int) -> pl.Series:
    return (stable_hash(text) % buckets).cast(pl.Int32) + _RESERVED


def _hashed(text: pl.Series) -> pl.Series:
    """Above the reserved rows and below 2^63 - 1, which stands for no id (:data:`recmtl.features.managed.EMPTY`)."""
    return (stable_hash(text) % (2**63 - 1 - _RESERVED)).cast(pl.Int64) + _RESERVED


def _bag_type(feature: Feature) -> pl.List:
    return _BAG if feature.managed is None else _HASHED_BAG


def _canonical_column(feature: Feature, types: pl.Schema) -> pl.Expr:
    dtype = types.get(feature.column)
    if dtype is None:
        return pl.lit(None, pl.String)
    try:
        return canonical(pl.col(feature.column), dtype)
    except TypeError as error:
        raise unreadable(feature, dtype) from error


def _number_column(feature: Feature, types: pl.Schema) -> pl.Expr:
    dtype = types.get(feature.column)
    if dtype is None:
        return pl.lit(None, pl.Float64)
    try:
        return number(pl.col(feature.column), dtype)
    except TypeError as error:
        raise unreadable(feature, dtype) from error


def _split(feature: Feature, text: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if feature.separator is None:
        if dtype in (pl.String, pl.Categorical, pl.Enum):
            checked = text.map_batches(
                partial(_only_lists, feature=feature), return_dtype=pl.String, is_elementwise=True
            )
            return list_items(checked)
        return pl.when(text.is_not_null()).then(pl.concat_list(text))
    return list_items(text, feature.separator)


def _only_lists(texts: pl.Series, feature: Feature) -> pl.Series:
    """The texts, all of them in brackets; blank ones become null."""
    texts = texts.set(texts.str.strip_chars() == "", None)
    others = texts.filter(~pl.select(is_bracketed(pl.lit(texts))).to_series()) if len(texts) else texts
    if len(others):
        raise UserError(
            f"features.{feature.name}: column {feature.column!r} holds text such as {str(others[0])[:40]!r}, so "
            "`separator` must say what splits it into values (a list column, and lists as text such as [5, 8], need "
            "none)"
        )
    return texts


def _filled(text: pl.Expr) -> pl.Expr:
    return pl.when(text != "").then(text)


def _bag_weights(feature: Feature, types: pl.Schema) -> pl.Expr:
    """The weights aligned with :func:`bag_values`, as List(Float64) without nulls; null where the bag is missing."""
    values = bag_values(feature, types)
    if feature.weights is None:
        raw = feature.model_copy(update={"kind": "bag"})
        stated = pl.element().str.extract(f"(?s)^.*{re.escape(feature.weight_separator)}(.*)$", 1)
        return bag_values(raw, types).list.eval(number(stated, pl.String()).fill_null(1.0))
    ones = values.list.eval(pl.element().is_null().cast(pl.Float64) * 0.0 + 1.0)
    dtype = types.get(feature.weights)
    if dtype is None:
        return ones
    column = pl.col(feature.weights)
    try:
        if isinstance(dtype, (pl.List, pl.Array)):
            items = column if isinstance(dtype, pl.List) else column.arr.to_list()
            inner = dtype.inner
            assert isinstance(inner, pl.DataType)
            weights = items.list.eval(number(pl.element(), inner))
        elif feature.separator is None:
            weights = pl.concat_list(number(column, dtype))
            if dtype == pl.String:
                listed = list_items(canonical(column, dtype)).list.eval(number(pl.element(), pl.String()))
                weights = pl.coalesce(listed, weights)
        else:
            texts = list_items(canonical(column, dtype), feature.separator)
            weights = texts.list.eval(number(pl.element(), pl.String()))
    except TypeError as error:
        raise unreadable(feature, dtype) from error
    aligned = pl.struct(values=values, weights=weights.list.eval(pl.element().fill_null(1.0))).map_batches(
        partial(_aligned, feature=feature), return_dtype=pl.List(pl.Float64), is_elementwise=True
    )
    return pl.when(values.is_not_null()).then(pl.coalesce(aligned, ones))


def _aligned(pairs: pl.Series, feature: Feature) -> pl.Series:
    values, weights = pairs.struct.field("values"), pairs.struct.field("weights")
    wrong = (values.list.len() != weights.list.len()).fill_null(False)
    if wrong.any():
        row = wrong.arg_max()
        assert row is not None
        raise UserError(
            f"features.{feature.name}: {wrong.sum()} rows hold more or fewer weights in {feature.weights!r} than "
            f"values in {feature.column!r}, e.g. {weights.list.len()[row]} for {values.list.len()[row]}; "
            "align the two columns"
        )
    return weights


def _vector(feature: Feature, types: pl.Schema) -> pl.Expr:
    """A vector and its missing indicator, as Array(Float32, dim + 1)."""
    assert feature.dim is not None
    dtype = types.get(feature.column)
    out = pl.Array(pl.Float32, feature.dim + 1)
    if dtype is None or dtype == pl.Null:
        return pl.lit([0.0] * feature.dim + [1.0], dtype=out)
    column = pl.col(feature.column)
    if isinstance(dtype, (pl.List, pl.Array)):
        items = column if isinstance(dtype, pl.List) else column.arr.to_list()
        inner = dtype.inner
        assert isinstance(inner, pl.DataType)
        if inner.is_nested():
            raise unreadable(feature, dtype)
        items = items.list.eval(number(pl.element(), inner))
    elif dtype == pl.String:
        # As CSV files and JSON write it: [0.1, 0.2], or the numbers alone.
        texts = canonical(column, pl.String()).str.extract_all(r"[^\s,;\[\]()]+")
        items = texts.list.eval(number(pl.element(), pl.String()))
    else:
        raise unreadable(feature, dtype)
    return items.map_batches(partial(_vector_rows, feature=feature), return_dtype=out, is_elementwise=True)


def _vector_rows(items: pl.Series, feature: Feature) -> pl.Series:
    assert feature.dim is not None
    wrong = (items.list.len() != feature.dim).fill_null(False)
    if wrong.any():
        row = wrong.arg_max()
        assert row is not None
        raise UserError(
            f"features.{feature.name}: {wrong.sum()} rows of column {feature.column!r} are not vectors of `dim` "
            f"{feature.dim}, e.g. one of {items.list.len()[row]}"
        )
    rows = np.zeros((len(items), feature.dim + 1), np.float32)
    present = items.is_not_null().to_numpy()
    with np.errstate(over="ignore"):
        values = items.drop_nulls().explode(empty_as_null=False).to_numpy().astype(np.float32)
    values = values.reshape(-1, feature.dim)
    # A vector with a hole in it is a missing vector.
    whole: np.ndarray = np.asarray(np.isfinite(values).all(axis=1))
    rows[present, : feature.dim] = np.where(whole[:, None], values, 0)
    rows[:, feature.dim] = 1
    rows[present, feature.dim] = ~whole
    return pl.Series(items.name, rows, dtype=pl.Array(pl.Float32, feature.dim + 1))


def _rank(values: pl.Series, quantiles: np.ndarray) -> pl.Series:
    """Position among the training quantiles, in [0, 1]; the middle of the stretch for a value that spans several."""
    x = values.to_numpy().astype(np.float64)
    if len(quantiles) < 2:
        return pl.Series(values.name, x * 0.0, dtype=pl.Float64).fill_nan(None)
    left = np.searchsorted(quantiles, x, side="left")
    right = np.searchsorted(quantiles, x, side="right")
    last = len(quantiles) - 1
    below = np.clip(left - 1, 0, last)
    above = np.clip(left, 0, last)
    gap = quantiles[above] - quantiles[below]
    between = below + np.where(gap > 0, (x - quantiles[below]) / np.where(gap > 0, gap, 1.0), 0.0)
    position = np.where(right > left, (left + right - 1) / 2, between)
    rank = np.where(np.isnan(x), np.nan, np.clip(position, 0, last) / last)
    return pl.Series(values.name, rank, dtype=pl.Float64).fill_nan(None)


def _bytes_text(values: pl.Series) -> pl.Series:
    """Bytes as text."""

    def text(value: bytes) -> str:
        try:
            return value.decode()
        except UnicodeDecodeError:
            return f"0x{value.hex()}"

    return pl.Series(values.name, [None if v is None else text(v) for v in values.to_list()], dtype=pl.String)


def _object_text(values: pl.Series) -> pl.Series:
    """Canonical text of Python objects."""

    def text(value: object) -> str | None:
        if value is None or value != value:
            return None
        if isinstance(value, (bool, np.bool_)):
            return str(bool(value)).lower()
        if isinstance(value, (float, np.floating)) and float(value).is_integer():
            return str(int(value))
        return str(value)

    return pl.Series(values.name, [text(value) for value in values.to_list()], dtype=pl.String)


def unreadable(feature: Feature, dtype: pl.DataType) -> UserError:
    """The refusal of a column whose type the feature's kind cannot read."""
    return UserError(
        f"features.{feature.name}: column {feature.column!r} is {dtype}, which cannot be read as kind {feature.kind}"
    )
