"""The package tried in a process of its own."""

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recmtl.package import load_package
from recmtl.tracking.gate import LatencyBounds, PackageChecks
from recmtl.tracking.registry import register
from recmtl.tracking.trial import _same, trial

QUIET = PackageChecks(latency=None)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user_id": [1, 2, 9, None, 3] * 30,
            "item_id": ["a", None, "b", "a", "never seen"] * 30,
            "tag": ["x,y", None, "", "y", "z"] * 30,
            "genre": ["p:0.5,q:0.5", "p", None, "q:2", "r:1"] * 30,
            "likes": [[7], [8, 7], None, [], [99]] * 30,
            "price": [1.0, None, 3.5, 0.0, -2.0] * 30,
            "age": [20, 30, None, 41, 5] * 30,
            "content": [[1.0, 2.0, 3.0], None, [0.0, 0.0, 1.0], [0.5, 0.5, 0.5], [1.0, 1.0, 1.0]] * 30,
        }
    )


@pytest.fixture(scope="module")
def expected(saved: Path, rows: pl.DataFrame) -> pl.DataFrame:
    return load_package(saved).predict(rows)


def test_a_good_package(saved: Path, rows: pl.DataFrame, expected: pl.DataFrame, monkeypatch: Any) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    bounds = LatencyBounds(one_row_p50=60_000, hundred_rows_p99=1e-6)
    found = trial(saved, rows, expected, PackageChecks(latency=bounds))
    assert {check.name: check.passed for check in found} == {
        "package loads": True,
        "package predicts the same": True,
        "latency of one row, p50": True,
        "latency of one row, p99": None,
        "latency of hundred rows, p50": None,
        "latency of hundred rows, p99": False,
    }
    by_name = {check.name: check for check in found}
    assert by_name["package predicts the same"].text.startswith("The package predicts 150 rows as in the evaluation")
    median, tail = by_name["latency of one row, p50"].value, by_name["latency of one row, p99"].value
    assert median is not None
    assert tail is not None
    assert 0 < median <= tail
    assert by_name["latency of one row, p99"].text.endswith("no bound is set.")
    assert all(check.group == "package" for check in found)


def test_other_predictions_are_noticed(saved: Path, rows: pl.DataFrame, expected: pl.DataFrame) -> None:
    """In row 40; what is off in rows 50 and later is not among those that are tried."""
    row = pl.int_range(pl.len())
    off = expected.with_columns(
        pl.col("purchase") + pl.when(row == 40).then(1e-3).otherwise(0),
        pl.col("click") + pl.when(row >= 50).then(1.0).otherwise(0),
    )
    (loads, same) = trial(saved, rows, off, PackageChecks(latency=None, rows=50))
    assert loads.passed is True
    assert same.passed is False
    assert same.value == pytest.approx(1e-3, rel=1e-3)
    assert "predicts 50 rows unlike the evaluation, most so in 'purchase'" in same.text


@pytest.mark.parametrize(
    ("ours", "theirs", "passed", "value"),
    [
        ([0.5, 0.1], [0.5, 0.10005], True, 5e-5),
        ([0.5, 0.1], [0.5, 0.1002], False, 2e-4),
        ([1000.0, 0.1], [1000.05, 0.1], True, 5e-5),  # relative, where predictions are large
        ([0.5, 0.1], [None, 0.1], False, float("inf")),
        ([0.5, float("nan")], [0.5, 0.1], False, float("inf")),
        ([0.5], [0.5, 0.1], False, None),
        ([], [], None, None),
    ],
)
def test_the_same(ours: list[float], theirs: list[float | None], passed: bool | None, value: float | None) -> None:
    frames = [pl.DataFrame({"click": column}, schema={"click": pl.Float64}) for column in (ours, theirs)]
    check = _same(*frames, QUIET)
    assert check.passed is passed
    assert check.value == (None if value is None else pytest.approx(value, rel=0.01))


def test_a_package_that_does_not_load(saved: Path, rows: pl.DataFrame, expected: pl.DataFrame, tmp_path: Path) -> None:
    copy = shutil.copytree(saved, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"")
    (check,) = trial(copy, rows, expected, QUIET)
    assert check.passed is False
    assert "model.safetensors is not what was packaged" in check.text
    (check,) = trial(saved, rows, expected, PackageChecks(seconds=0.05))
    assert check.text == "The package does not work in a fresh process: it took more than 0.05 s."


def test_the_mlflow_model(uri: str, saved: Path, rows: pl.DataFrame, expected: pl.DataFrame, tmp_path: Path) -> None:
    register(saved, "ranker", None, uri=uri)
    (model,) = (tmp_path / "store" / "mlartifacts").rglob("MLmodel")
    (loads, same) = trial(model.parent, rows, expected, QUIET, mlflow=True)
    assert loads.passed is True, loads.text
    assert same.passed is True, same.text
