"""The main job as a person runs it: event logs in, a registered model out, in processes of their own.

Killed at any moment, the same command ends with the same weights, bit for bit, in the same MLflow run and without a
point told twice; and what the registry serves is what was trained.
"""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import polars as pl
import pytest
import yaml

from recmtl.manifest import file_hash

REPOSITORY = Path(__file__).parents[2]
FEATURES = [
    {"name": "user_id", "kind": "id", "embedding_dim": 8, "min_count": 3},
    {"name": "item_id", "kind": "id", "embedding_dim": 8},
    {"name": "position", "kind": "id", "embedding_dim": 4},
    {"name": "interests", "kind": "bag", "separator": "|", "embedding_dim": 4},
    {"name": "price", "kind": "number", "transform": "log1p"},
    {"name": "content", "kind": "vector", "dim": 16},
]


def config(**training: Any) -> dict[str, Any]:
    return {
        "name": "small",
        "data": {
            "source": {"kind": "synthetic", "path": "logs", "users": 300, "items": 100, "impressions": 12_000},
            "prepared": "prepared",
            "split": {"by": "time", "validation": 0.15, "test": 0.15},
        },
        "features": FEATURES,
        "tasks": [
            {"name": "click", "kind": "binary", "label": "click"},
            {"name": "purchase", "kind": "binary", "label": "purchase", "parent": "click"},
            {"name": "rating", "kind": "ordinal", "label": "rating", "levels": [1, 2, 3, 4, 5]},
        ],
        "model": {
            "tower": {"kind": "mmoe", "num_experts": 2, "expert_widths": [16], "head_widths": [8], "dropout": 0.1}
        },
        "training": {
            "epochs": 3,
            "batch_size": 256,
            "log_every": 5,
            "device": "cpu",
            "checkpoint": {"every_steps": 3},
            "early_stopping": {"monitor": {"click.auc": 1.0, "rating.rmse": 0.1}, "patience": 5},
        }
        | training,
        "tracking": {"uri": "sqlite:///store/mlflow.db", "experiment": "small", "system_metrics_seconds": 0},
        "registry": {"model": "small-ranker", "alias": "challenger"},
    }


def recmtl(folder: Path, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True, **options)


def process_of(*arguments: str, at: Path, to: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command(*arguments), cwd=at, env=environment(), stdout=subprocess.DEVNULL, stderr=to)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from recmtl.cli import main; main()", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole job was run once, without interruption."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.yaml").write_text(yaml.safe_dump(config()))
    started = time.monotonic()
    done = recmtl(folder, "run", "small.yaml")
    assert done.returncode == 0, done.stderr
    (folder / "seconds").write_text(str(time.monotonic() - started))
    (folder / "stdout").write_text(done.stdout)
    return folder


def test_everything_that_a_run_leaves_is_there(finished: Path) -> None:
    run = finished / "runs" / "small"
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"validation", "test", "baseline", "optimum", "rows", "seconds", "intervals"} <= metrics.keys()
    assert set(metrics["test"]) == {"click", "purchase", "purchase_given_click", "rating"}
    assert metrics["rows"]["train"] > metrics["rows"]["test"] > 0
    assert metrics["test"]["click"]["log_loss"] < metrics["baseline"]["click"]["log_loss"]
    assert 0.5 < metrics["test"]["click"]["auc"] <= metrics["optimum"]["click"]["auc"] + 0.05
    for name in (
        "config.resolved.yaml",
        "report.md",
        "report.html",
        "report.json",
        "checkpoints",
        "package/model.safetensors",
    ):
        assert (run / name).exists(), name
    assert not [path for path in run.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]


def test_the_last_lines_say_what_opens_each_from_any_folder(finished: Path, tmp_path: Path) -> None:
    lines = (finished / "stdout").read_text().splitlines()
    commands = [line.strip() for line in lines if line.startswith("   ")][-3:]
    predict, look, server = commands
    done = subprocess.run(predict, shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rows scored" in done.stdout
    assert "-m webbrowser" in look
    assert Path(unquote(urlsplit(look.split()[-1]).path)).read_text().startswith("<!doctype html>")
    assert "mlflow" in server
    assert f"sqlite:///{finished}/store/mlflow.db" in server
    # Artifacts lie beside the database, and nothing in the working directory.
    assert not (finished / "mlruns").exists()
    assert not (finished / "mlartifacts").exists()


def test_a_finished_run_says_so_and_changes_nothing(finished: Path) -> None:
    run = finished / "runs" / "small"
    before = {path: file_hash(path) for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    again = recmtl(finished, "run", "small.yaml")
    assert again.returncode == 0, again.stderr
    assert "finished already" in again.stdout
    assert {path: file_hash(path) for path in before} == before


def test_the_registry_serves_the_trainers_own_test_predictions(finished: Path, tmp_path: Path) -> None:
    scored = recmtl(finished, "predict", "small.yaml", "--output", str(tmp_path / "own"))
    assert scored.returncode == 0, scored.stderr
    script = """
import sys, mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/small-ranker@challenger")
frame = pd.concat([pd.read_parquet(path) for path in sorted(sys.argv[3:])])
model.predict(frame).to_parquet(sys.argv[2])
assert "torchrec" not in sys.modules and "fbgemm_gpu" not in sys.modules
"""
    raw = sorted(str(path) for path in (finished / "prepared" / "raw" / "test").glob("*.parquet"))
    served = subprocess.run(
        [sys.executable, "-c", script, f"sqlite:///{finished}/store/mlflow.db", str(tmp_path / "served.parquet"), *raw],
        cwd=tmp_path,
        env={**environment(), "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
    )
    assert served.returncode == 0, served.stderr
    own = pl.read_parquet(tmp_path / "own" / "*.parquet")
    other = pl.read_parquet(tmp_path / "served.parquet")
    assert own.height == other.height > 0
    for column in ("click", "purchase", "purchase_given_click", "rating"):
        assert float((own[column] - other[column]).abs().max()) <= 1e-6, column  # type: ignore[arg-type]


def test_the_pipelines_do_the_same_for_a_scheduler(finished: Path, tmp_path: Path) -> None:
    def pipeline(name: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        script = str(REPOSITORY / "pipelines" / f"{name}.py")
        return subprocess.run(
            [sys.executable, script, *arguments], cwd=finished, env=environment(), capture_output=True, text=True
        )

    trained = pipeline("batch_training", "small.yaml")
    assert (trained.returncode, trained.stdout.strip()) == (0, "runs/small"), trained.stderr
    package = str(finished / "runs" / "small" / "package")
    evaluated = pipeline("offline_evaluation", "small.yaml", "--model", package)
    assert evaluated.returncode == 0, evaluated.stderr
    own, again = (
        json.loads((finished / "runs" / name / "metrics.json").read_text())["test"]
        for name in ("small", "small-evaluated")
    )
    assert own["click"] == pytest.approx(again["click"], abs=1e-6)
    raw = sorted(str(path) for path in (finished / "prepared" / "raw" / "test").glob("*.parquet"))
    scored = pipeline("batch_scoring", package, str(tmp_path / "scored"), *raw)
    assert scored.returncode == 0, scored.stderr
    assert pl.read_parquet(tmp_path / "scored" / "*.parquet").height == own["click"]["rows"]
    missing = pipeline("batch_training", "nowhere.yaml")
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: nowhere.yaml")


def points(folder: Path) -> list[tuple[str, int, float]]:
    """(metric, step, value) of the folder's only run, and proof that none was told twice."""
    with sqlite3.connect(folder / "store" / "mlflow.db") as store:
        runs = store.execute("SELECT run_uuid FROM runs").fetchall()
        rows = store.execute("SELECT key, step, value FROM metrics ORDER BY key, step").fetchall()
    assert len(runs) == 1, "an unfinished run goes on in the same MLflow run"
    assert len({(key, step) for key, step, _ in rows}) == len(rows), "a point was told twice"
    return [row for row in rows if "rows_per_second" not in row[0]]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_it_ends_the_same(finished: Path, tmp_path: Path, seed: int) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config()))
    moments = random.Random(seed)
    whole = float((finished / "seconds").read_text())
    killed = 0
    for attempt in range(7):
        # A killed attempt goes on where the last one was, so the later ones die in what comes after training.
        patience = moments.uniform(0.15, 0.6) * whole if attempt < 6 else None
        with (tmp_path / "stderr").open("w") as stderr, process_of("run", "small.yaml", at=tmp_path, to=stderr) as job:
            try:
                job.wait(timeout=patience)
            except subprocess.TimeoutExpired:
                job.send_signal(signal.SIGKILL)
                killed += 1
        if job.returncode != -signal.SIGKILL:
            assert job.returncode == 0, (tmp_path / "stderr").read_text()
            break
    assert killed >= 1
    weights = "runs/small/package/model.safetensors"
    assert file_hash(tmp_path / weights) == file_hash(finished / weights)
    mine, theirs = (
        json.loads((folder / "runs" / "small" / "metrics.json").read_text()) for folder in (tmp_path, finished)
    )
    assert mine["test"] == theirs["test"]
    assert points(tmp_path) == points(finished)
