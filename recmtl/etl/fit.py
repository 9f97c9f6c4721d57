"""What is learned from the training rows, and from no others.

In: the train rows' staged parts, still raw. Out: the feature half of :class:`~recmtl.statistics.Statistics` (labels are
counted by :mod:`recmtl.etl.mask`). Sums are taken part after part, so that the same rows give the same bits.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recmtl.etl.encode import bag_values, canonical, number, transformed, unreadable
from recmtl.schema import Feature, Schema
from recmtl.statistics import NumberStatistics, Vocabulary

__all__ = ["fit_numbers", "fit_tables"]

QUANTILES = 1001
"""Points of a rank transform: a step is a thousandth of the training rows."""


def fit_tables(parts: Sequence[Path], schema: Schema) -> dict[str, Vocabulary]:
    """Count the values of every table that keeps a vocabulary, over all features that share it.

    Args:
        parts: Parquet files of raw train rows.
        schema: the features.

    Raises:
        UserError: a column of a type that its feature cannot read, such as a struct.
    """
    frame = pl.scan_parquet(list(parts), glob=False)
    types = frame.collect_schema()
    found = {}
    for table in schema.tables.values():
        if table.hash_buckets is not None or table.managed is not None:
            continue
        values = [_values(frame, schema[name], types) for name in table.features]
        counts = pl.concat(values).drop_nulls().group_by("value").agg(count=pl.len())
        ordered = counts.sort(["count", "value"], descending=[True, False]).collect(engine="streaming")
        kept = ordered.filter(pl.col("count") >= table.min_count)
        found[table.name] = Vocabulary(
            tuple(kept["value"].to_list()), tuple(kept["count"].to_list()), ordered.height - kept.height
        )
    return found


def _values(frame: pl.LazyFrame, feature: Feature, types: pl.Schema) -> pl.LazyFrame:
    if feature.kind == "id":
        try:
            return frame.select(value=canonical(pl.col(feature.column), types[feature.column]))
        except TypeError as error:
            raise unreadable(feature, types[feature.column]) from error
    kept = bag_values(feature, types).list.drop_nulls()
    if feature.max_length is not None:
        kept = kept.list.head(feature.max_length)
    return frame.select(value=kept).explode("value", empty_as_null=False)


def fit_numbers(parts: Sequence[Path], schema: Schema) -> dict[str, NumberStatistics]:
    """Moments of every number after its transform, and the quantiles that a rank transform reads.

    Args:
        parts: Parquet files of raw train rows.
        schema: the features.

    Raises:
        UserError: as :func:`fit_tables`.
    """
    found = {}
    for feature in schema.of_kind("number"):
        fitted = None
        if feature.transform == "rank":
            fitted = NumberStatistics(0, 0, 0.0, 1.0, 0.0, 0.0, _quantiles(parts, feature))
        found[feature.name] = _moments(parts, feature, fitted)
    return found


def _quantiles(parts: Sequence[Path], feature: Feature) -> tuple[float, ...]:
    values = np.concatenate([_present(part, feature, _raw(part, feature)) for part in parts])
    if not len(values):
        return ()
    return tuple(np.quantile(values, np.linspace(0, 1, QUANTILES)).tolist())


def _moments(parts: Sequence[Path], feature: Feature, fitted: NumberStatistics | None) -> NumberStatistics:
    rows = count = 0
    mean = squares = 0.0
    low, high = np.inf, -np.inf
    for part in parts:
        values = _present(part, feature, transformed(feature, _raw(part, feature), fitted))
        rows += pl.scan_parquet(part, glob=False).select(pl.len()).collect().item()
        if not len(values):
            continue
        # Chan et al. 1979: joining two sets' moments loses no digits to a large mean.
        part_mean = float(values.mean())
        total = count + len(values)
        squares += float(np.square(values - part_mean).sum())
        squares += (part_mean - mean) ** 2 * count * len(values) / total
        mean += (part_mean - mean) * len(values) / total
        count = total
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    quantiles = () if fitted is None else fitted.quantiles
    if not count:
        return NumberStatistics(0, rows, 0.0, 1.0, 0.0, 0.0, quantiles)
    if low == high:
        return NumberStatistics(count, rows - count, low, 1.0, low, high, quantiles)
    return NumberStatistics(count, rows - count, mean, float(np.sqrt(squares / count)) or 1.0, low, high, quantiles)


def _raw(part: Path, feature: Feature) -> pl.Expr:
    types = pl.scan_parquet(part, glob=False).collect_schema()
    try:
        return number(pl.col(feature.column), types[feature.column])
    except TypeError as error:
        raise unreadable(feature, types[feature.column]) from error


def _present(part: Path, feature: Feature, value: pl.Expr) -> npt.NDArray[np.float64]:
    columns = pl.read_parquet(part, columns=[feature.column], glob=False)
    return columns.select(value=value)["value"].drop_nulls().to_numpy().astype(np.float64)
