"""The package tried as whoever serves it has it: in a process that has nothing else.

In: a package's folder (or an MLflow model with one in it, if the caller says that it is one), some raw rows, and what
the evaluation predicted for them. Nothing in the folder decides whether code from it is run. Out: checks for the gate:
it loads without what only training needs, predicts the same, and how long that takes. The process runs Python isolated
(``-I``: no PYTHON… variables, no folder of the caller's on the path) from an empty folder.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

from recmtl import children
from recmtl.findings import Check
from recmtl.tracking.gate import PackageChecks

__all__ = ["trial"]

_TRAINING_ONLY = ("torchrec", "fbgemm_gpu", "torchjd", "captum")
_REPEATS, _CALLS = 5, 40
"""Percentiles are of so many calls, and of so many such percentiles the median: a machine that is busy elsewhere for a
moment decides nothing."""
_BATCHES = {"one_row": 1, "hundred_rows": 100}

_CHILD = """
import json, sys, time

wish = json.loads(sys.argv[1])
from pathlib import Path

began = time.perf_counter()
import polars as pl

if wish["mlflow"]:
    import warnings

    warnings.simplefilter("ignore")
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(wish["folder"])  # with the recmtl that the model brings along
    predict = lambda rows: pl.from_pandas(model.predict(rows.to_pandas(use_pyarrow_extension_array=True)))
else:
    exec(wish["bootstrap"])
    from recmtl.package import load_package

    predict = load_package(Path(wish["folder"])).predict
said = {"seconds": time.perf_counter() - began}
rows = pl.read_parquet(wish["rows"])
predict(rows).write_parquet(wish["predictions"])
said["modules"] = sorted({name.partition(".")[0] for name in sys.modules} & set(wish["unwanted"]))
said["latency"] = {}
for name, size in wish["batches"].items():
    batches = [rows.slice(start % max(rows.height - size + 1, 1), size) for start in range(wish["calls"])]
    for batch in batches[:5]:
        predict(batch)
    rounds = []
    for _ in range(wish["repeats"]):
        taken = []
        for batch in batches:
            start = time.perf_counter()
            predict(batch)
            taken.append(1000 * (time.perf_counter() - start))
        rounds.append(taken)
    said["latency"][name] = rounds
Path(wish["said"]).write_text(json.dumps(said))
"""


def trial(
    package: Path, rows: pl.DataFrame, expected: pl.DataFrame, config: PackageChecks, *, mlflow: bool = False
) -> tuple[Check, ...]:
    """Try a package in a process of its own.

    Args:
        package: its folder, or with ``mlflow`` that of an MLflow model.
        rows: raw columns, as the package takes them; the first ``config.rows`` are used.
        expected: what the evaluation predicted for the same rows in the same order: columns of the package's
            predictions, all or some. Other columns are not looked at.
        config: tolerance, time and bounds of the latency.
        mlflow: the folder is an MLflow model of this process's own making, to be loaded as MLflow serves it, which runs
            the code in it.

    Returns:
        ``package loads`` and, where it did, ``package predicts the same`` and a check per latency (not judged, but with
        its figure, where no bound is set).
    """
    rows, expected = rows.head(config.rows), expected.head(config.rows)
    with tempfile.TemporaryDirectory(prefix="recmtl-") as temporary:
        folder = Path(temporary)
        rows.write_parquet(folder / "rows.parquet")
        began = time.perf_counter()
        said = _run(package, folder, config, mlflow)
        if isinstance(said, str):
            return (_check("package loads", False, f"The package does not work in a fresh process: {said}."),)
        predictions = pl.read_parquet(folder / "predictions.parquet")
        took = time.perf_counter() - began
    unwanted = said["modules"]
    text = f"The package loads in a fresh process in {said['seconds']:.1f} s"
    text += f", but brings {', '.join(unwanted)} with it." if unwanted else ", without what only training needs."
    checks = [
        _check("package loads", not unwanted, f"{text[:-1]} ({took:.1f} s with all trials).", said["seconds"]),
        _same(predictions, expected, config),
    ]
    bounds = config.latency
    for name, rounds in said["latency"].items():
        for percentile in (50, 99):
            assert bounds is not None
            bound = getattr(bounds, f"{name}_p{percentile}")
            checks.append(_latency(name, percentile, rounds, bound))
    return tuple(checks)


def _run(package: Path, folder: Path, config: PackageChecks, mlflow: bool) -> dict[str, Any] | str:
    """What the process measured, or in words why it did not."""
    wish = {
        "folder": str(package.absolute()),
        "mlflow": mlflow,
        "bootstrap": children.bootstrap(),
        "rows": str(folder / "rows.parquet"),
        "predictions": str(folder / "predictions.parquet"),
        "said": str(folder / "said.json"),
        "unwanted": _TRAINING_ONLY,
        "batches": _BATCHES if config.latency is not None else {},
        "repeats": _REPEATS,
        "calls": _CALLS,
    }
    (folder / "trial.py").write_text(_CHILD)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW_"))}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    command = [sys.executable, "-I", "-W", "ignore", str(folder / "trial.py"), json.dumps(wish)]
    (folder / "cwd").mkdir()
    try:
        done = subprocess.run(  # noqa: S603 - this Python, on a script of our own
            command,
            capture_output=True,
            text=True,
            cwd=folder / "cwd",
            env=environment,
            timeout=config.seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {config.seconds:g} s"
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return (lines[-1] if lines else f"exit code {done.returncode}").rstrip(".")[:500]
    said: dict[str, Any] = json.loads((folder / "said.json").read_text())
    return said


def _same(predictions: pl.DataFrame, expected: pl.DataFrame, config: PackageChecks) -> Check:
    name = "package predicts the same"
    columns = [column for column in predictions.columns if column in expected.columns]
    if not columns or not predictions.height:
        return _check(name, None, "There was no prediction of the evaluation's to compare the package's with.")
    if predictions.height != expected.height:
        text = f"The package predicts {predictions.height:,} rows where the evaluation predicted {expected.height:,}."
        return _check(name, False, text)
    worst, where = 0.0, columns[0]
    for column in columns:
        ours, theirs = predictions[column].cast(pl.Float64), expected[column].cast(pl.Float64)
        scale = pl.select(pl.max_horizontal(pl.lit(1.0), theirs.abs())).to_series()
        # What is no number on one side alone is no less than infinitely far off.
        off = ((ours - theirs).abs() / scale).fill_nan(None).fill_null(float("inf")).max()
        assert isinstance(off, float)
        if off > worst:
            worst, where = off, column
    end = "as in the evaluation" if worst <= config.tolerance else f"unlike the evaluation, most so in {where!r}"
    text = (
        f"The package predicts {predictions.height:,} rows {end}: largest difference {worst:.2g}, permitted "
        f"{config.tolerance:.2g}."
    )
    return _check(name, worst <= config.tolerance, text, worst, config.tolerance)


def _latency(name: str, percentile: int, rounds: list[list[float]], bound: float | None) -> Check:
    found = sorted(_percentile(sorted(taken), percentile) for taken in rounds)[len(rounds) // 2]
    what = "A batch of one row" if name == "one_row" else "A batch of a hundred rows"
    middle = "half of the time" if percentile == 50 else "99 times of 100"
    text = f"{what} takes at most {found:.2f} ms {middle}, median of {len(rounds)} rounds"
    text += "; no bound is set." if bound is None else f"; {bound:g} ms are permitted."
    passed = None if bound is None else found <= bound
    return _check(f"latency of {name.replace('_', ' ')}, p{percentile}", passed, text, found, bound)


def _percentile(values: list[float], percentile: int) -> float:
    """The smallest value that so many per cent do not exceed."""
    return values[max(-(-len(values) * percentile // 100) - 1, 0)]


def _check(name: str, passed: bool | None, text: str, value: float | None = None, bound: float | None = None) -> Check:
    return Check(name=name, group="package", passed=passed, text=text, value=value, bound=bound)
