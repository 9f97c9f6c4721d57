"""The package tried in a process of its own."""

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recmtl.package import load_package
from recmtl.tracking.gate import LatencyBounds, PackageChecks
from recmtl.tracking.registry import register
from recmtl.tracking.trial import trial

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
    off = expected.with_columns(pl.col("purchase") + pl.when(pl.int_range(pl.len()) == 70).then(1e-3).otherwise(0))
    (loads, same) = trial(saved, rows, off, QUIET)
    assert loads.passed is True
    assert same.passed is False
    assert same.value == pytest.approx(1e-3, rel=1e-3)
    assert "most so in 'purchase'" in same.text


@pytest.mark.parametrize("config", [PackageChecks(latency=None, rows=50)])
def test_only_so_many_rows(saved: Path, rows: pl.DataFrame, expected: pl.DataFrame, config: PackageChecks) -> None:
    off = expected.with_columns(pl.col("click") + pl.when(pl.int_range(pl.len()) >= 50).then(1.0).otherwise(0))
    undefined = expected.select("click").with_columns(pl.when(pl.int_range(pl.len()) != 3).then("click").alias("click"))
    (_, same) = trial(saved, rows, off, config)
    assert same.passed is True
    (_, same) = trial(saved, rows, undefined, config)
    assert (same.passed, same.value) == (False, float("inf"))


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
    (loads, same) = trial(model.parent, rows, expected, QUIET)
    assert loads.passed is True, loads.text
    assert same.passed is True, same.text
