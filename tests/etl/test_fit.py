"""What is fitted, against counts and moments taken another way."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recmtl.errors import UserError
from recmtl.etl.encode import encode
from recmtl.etl.fit import QUANTILES, fit_numbers, fit_tables
from recmtl.schema import Feature, Schema
from recmtl.statistics import NumberStatistics, Statistics, Vocabulary


def parts(tmp_path: Path, *frames: pl.DataFrame) -> list[Path]:
    paths = [tmp_path / f"part-{number}.parquet" for number in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        frame.write_parquet(path)
    return paths


@pytest.mark.parametrize("kind", ["id", "bag", "number"])
def test_a_column_that_no_feature_reads_is_refused(tmp_path: Path, kind: str) -> None:
    feature = Feature(name="device", kind=kind, column="d", **({"separator": ","} if kind == "bag" else {}))  # type: ignore[arg-type]
    files = parts(tmp_path, pl.DataFrame({"d": [{"os": "ios", "v": 3}]}))
    with pytest.raises(UserError, match=rf"features\.device: column 'd' is Struct.* cannot be read as kind {kind}"):
        (fit_numbers if kind == "number" else fit_tables)(files, Schema([feature]))


def test_a_vocabulary_counts_over_all_features_that_share_the_table(tmp_path: Path) -> None:
    schema = Schema(
        [
            Feature(name="liked", kind="id", table="item", min_count=2),
            Feature(name="seen", kind="bag", separator=",", table="item", min_count=2, max_length=2),
            Feature(name="huge", kind="id", hash_buckets=10),
        ]
    )
    found = fit_tables(
        parts(
            tmp_path,
            pl.DataFrame({"liked": [1, 2, None], "seen": ["2,3", "", None], "huge": [1, 2, 3]}),
            pl.DataFrame({"liked": [2, 7, 3], "seen": ["3", "7,,9,9,9", ","], "huge": [1, 2, 3]}),
        ),
        schema,
    )
    # 2 and 3 three times each, 7 twice; 1 and 9 once (the last two nines are past max_length).
    assert found == {"item": Vocabulary(("2", "3", "7"), (3, 3, 2), dropped=2)}


def test_moments_are_of_the_present_values_after_the_transform(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(10, 2, 1000)
    values[::10] = np.nan
    frame = pl.DataFrame({"x": values}).with_columns(y=pl.col("x"), one=pl.lit(0.1))
    paths = parts(tmp_path, frame[:300], frame[300:301], frame[301:])
    schema = Schema(
        [
            Feature(name="x", kind="number"),
            Feature(name="y", kind="number", transform="log1p"),
            Feature(name="one", kind="number"),
        ]
    )
    found = fit_numbers(paths, schema)
    present = values[~np.isnan(values)]
    for name, expected in (("x", present), ("y", np.log1p(present))):
        number = found[name]
        assert (number.count, number.missing) == (900, 100)
        np.testing.assert_allclose(
            [number.mean, number.std, number.minimum, number.maximum],
            [expected.mean(), expected.std(), expected.min(), expected.max()],
            rtol=1e-12,
        )
    assert found["one"] == NumberStatistics(1000, 0, 0.1, 1.0, 0.1, 0.1)


def test_a_large_mean_costs_no_digits(tmp_path: Path) -> None:
    values = 1e9 + np.random.default_rng(0).normal(size=1000)
    frame = pl.DataFrame({"x": values})
    found = fit_numbers(parts(tmp_path, frame[:500], frame[500:]), Schema([Feature(name="x", kind="number")]))["x"]
    assert found.std == pytest.approx(values.std(), rel=1e-6)


def test_rank_standardises_the_quantile(tmp_path: Path) -> None:
    values = np.random.default_rng(0).lognormal(size=5000)
    frame = pl.DataFrame({"x": values})
    schema = Schema([Feature(name="x", kind="number", transform="rank")])
    found = fit_numbers(parts(tmp_path, frame[:2000], frame[2000:]), schema)
    number = found["x"]
    assert len(number.quantiles) == QUANTILES
    assert (number.quantiles[0], number.quantiles[-1]) == (values.min(), values.max())
    assert number.mean == pytest.approx(0.5, abs=1e-3)
    assert number.std == pytest.approx(np.sqrt(1 / 12), abs=1e-3)
    rows = encode(frame.lazy(), schema, Statistics(tables={}, numbers=found, labels={})).collect()["dense"].to_numpy()
    assert np.corrcoef(rows[:, 0], np.argsort(np.argsort(values)))[0, 1] > 0.99999


def test_a_number_that_is_always_missing(tmp_path: Path) -> None:
    frame = pl.DataFrame({"x": ["n/a", None]})
    schema = Schema([Feature(name="x", kind="number"), Feature(name="r", column="x", kind="number", transform="rank")])
    assert fit_numbers(parts(tmp_path, frame), schema)["x"] == NumberStatistics(0, 2, 0.0, 1.0, 0.0, 0.0)
    assert fit_numbers(parts(tmp_path, frame), schema)["r"] == NumberStatistics(0, 2, 0.0, 1.0, 0.0, 0.0)
