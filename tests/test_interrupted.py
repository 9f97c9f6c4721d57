"""Runs that are killed on either side of each done-marker: the same call ends as an undisturbed run does."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import recmtl
from recmtl import durable
from recmtl.config import RunConfig, parse_config
from recmtl.package import verify_package
from recmtl.progress import Silent
from recmtl.stages.job import Job
from recmtl.tracking.journal import is_over, is_sent
from recmtl.tracking.mlflow_tracker import MlflowTracker

STAGES = ("train", "evaluate", "register", "run")


class Killed(BaseException):
    """The process ends here."""


class DyingAt(durable.Files):
    """Kills before or after the run's state says that a stage is done, and lets nothing through from then on."""

    def __init__(self, stage: str, *, after: bool) -> None:
        self.stage, self.after, self.dead = stage, after, False

    def rename(self, source: Path, target: Path) -> None:
        if self.dead:
            raise Killed
        marks = target.name == "run.json" and self.stage in json.loads(source.read_text())["done"]
        if not marks or self.after:
            super().rename(source, target)
        if marks:
            self.dead = True
            raise Killed

    def write(self, file: Any, data: bytes) -> None:
        if self.dead:
            raise Killed
        super().write(file, data)

    def unlink(self, path: Path) -> None:
        if self.dead:
            raise Killed
        super().unlink(path)


class Told(Silent):
    """Keeps warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)


def config_of(**evaluation: Any) -> RunConfig:
    return parse_config(
        {
            "name": "table",
            "data": {"source": {"kind": "table", "path": "rows.parquet"}, "prepared": "prepared"},
            "features": [
                {"name": "user_id", "kind": "id", "embedding_dim": 4},
                {"name": "item_id", "kind": "id", "embedding_dim": 4},
            ],
            "tasks": [{"name": "click", "kind": "binary", "label": "click"}],
            "model": {"tower": {"kind": "shared_bottom", "widths": [8], "head_widths": [4]}},
            "training": {"epochs": 1, "batch_size": 64, "device": "cpu"},
            "evaluation": {"calibration": {}, **evaluation},
            "tracking": {"uri": "sqlite:///store/mlflow.db", "system_metrics_seconds": 0},
            "registry": {"model": "table-ranker"},
        }
    )


def end_state(here: Path) -> dict[str, Any]:
    """All that a finished run leaves, without what differs from run to run: times."""
    run = here / "runs" / "table"
    metrics = json.loads((run / "metrics.json").read_text())
    seconds = metrics.pop("seconds")
    assert {"prepare", "train", "evaluate", "register"} <= seconds.keys()
    for epoch in metrics["history"]:
        epoch.pop("rows_per_second", None)
        epoch.pop("seconds", None)
    with sqlite3.connect(here / "store" / "mlflow.db") as store:
        runs = store.execute("SELECT status FROM runs").fetchall()
        versions = store.execute("SELECT version FROM model_versions").fetchall()
        points = store.execute("SELECT key, step, value FROM metrics ORDER BY key, step").fetchall()
    assert "AUC" in (run / "report.md").read_text()
    return {
        "package": verify_package(run / "package").digest,
        "metrics": metrics,
        "report": json.loads((run / "report.json").read_text())["figures"],
        "done": sorted(json.loads((run / "run.json").read_text())["done"]),
        "runs": runs,
        "versions": versions,
        "points": [point for point in points if "per_second" not in point[0]],
        "test figures in report.md": "test" in (run / "report.md").read_text(),
        "litter": [path.name for path in run.iterdir() if path.name.endswith((".tmp", ".old", ".new"))],
        "over": is_over(run / "tracking"),
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("undisturbed")
    draw = np.random.default_rng(0)
    rows = 600
    pl.DataFrame(
        {
            "user_id": draw.integers(0, 40, rows),
            "item_id": draw.integers(0, 20, rows),
            "time": np.arange(rows) * 60 + 1_700_000_000,
            "click": draw.integers(0, 2, rows),
        }
    ).write_parquet(here / "rows.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        recmtl.run(config_of())
    return here


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object], durable.Files], None]:
    """Do something under file operations that kill it; its tracker is dead with it."""
    leave = Job.leave

    def dead(job: Job, status: Any) -> None:
        if not getattr(durable.files, "dead", False):
            leave(job, status)
        elif job._tracker is not None:
            job._tracker.kill()  # type: ignore[attr-defined]

    def kill(do: Callable[[], object], files: durable.Files) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(durable, "files", files)
            patch.setattr(Job, "leave", dead)
            with pytest.raises(Killed):
                do()

    return kill


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the dead process's threads
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=() if stage == "train" else pytest.mark.slow) for stage in STAGES]
)
def test_a_kill_on_either_side_of_a_marker_changes_nothing(
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: Callable[[Callable[[], object], durable.Files], None],
    stage: str,
    after: bool,
) -> None:
    shutil.copy(undisturbed / "rows.parquet", tmp_path)
    shutil.copytree(undisturbed / "prepared", tmp_path / "prepared")
    monkeypatch.chdir(tmp_path)
    killed(lambda: recmtl.run(config_of()), DyingAt(stage, after=after))
    recmtl.run(config_of())
    assert end_state(tmp_path) == end_state(undisturbed)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_sync_of_a_killed_run_leaves_the_rest_to_the_run(
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: Callable[[Callable[[], object], durable.Files], None],
) -> None:
    """Nothing was registered when the kill came, and nobody has wished for it: the run is not over."""
    shutil.copy(undisturbed / "rows.parquet", tmp_path)
    shutil.copytree(undisturbed / "prepared", tmp_path / "prepared")
    monkeypatch.chdir(tmp_path)
    killed(lambda: recmtl.run(config_of()), DyingAt("evaluate", after=True))
    recmtl.stages.sync(tmp_path / "runs" / "table")
    done = json.loads((tmp_path / "runs" / "table" / "run.json").read_text())["done"]
    assert sorted(done) == ["evaluate", "train"]
    recmtl.run(config_of())
    assert end_state(tmp_path) == end_state(undisturbed)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_training_that_is_done_is_delivered_and_not_said_to_be_over(
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed: Callable[[Callable[[], object], durable.Files], None],
) -> None:
    """The kill comes right after the marker, before the store has the report."""
    shutil.copy(undisturbed / "rows.parquet", tmp_path)
    shutil.copytree(undisturbed / "prepared", tmp_path / "prepared")
    monkeypatch.chdir(tmp_path)
    killed(lambda: recmtl.train(config_of()), DyingAt("train", after=True))
    tracking = tmp_path / "runs" / "table" / "tracking"
    litter = tracking / ".sent.json.000000-1-1-0.tmp"
    litter.touch()
    assert not is_sent(tracking)
    recmtl.train(config_of())
    assert is_sent(tracking)
    assert not litter.exists()
    (report,) = (tmp_path / "store").rglob("report.md")
    assert report.read_bytes() == (tmp_path / "runs" / "table" / "report.md").read_bytes()
    with sqlite3.connect(tmp_path / "store" / "mlflow.db") as store:
        assert store.execute("SELECT status FROM runs").fetchall() == [("RUNNING",)]

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("there is nothing to deliver")

    monkeypatch.setattr(MlflowTracker, "__init__", opened)
    recmtl.train(config_of())


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run's folder, tracked nowhere."""
    shutil.copy(undisturbed / "rows.parquet", tmp_path)
    for name in ("prepared", "runs", "store"):
        shutil.copytree(undisturbed / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "table"


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def flip(path: Path) -> None:
    path.write_bytes(flipped(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "damage", "word"),
    [
        ("package/model.safetensors", flip, "model.safetensors"),
        ("package/hashes.json", Path.unlink, "hashes.json"),
        ("metrics.json", lambda path: path.write_bytes(b""), "metrics.json"),
        ("run.json", lambda path: path.write_bytes(b""), "run.json"),
        ("report.md", Path.unlink, "report.md"),
        ("report.json", flip, "report.json"),
        ("report.json", lambda path: path.write_bytes(b""), "report.json"),
    ],
)
def test_a_finished_runs_damaged_output_is_made_again(
    undisturbed: Path, finished: Path, name: str, damage: Callable[[Path], object], word: str
) -> None:
    before = end_state(undisturbed)
    damage(finished / name)
    told = Told()
    recmtl.run(config_of(), progress=told)
    assert any(word in text for text in told.warned), told.warned
    after = end_state(finished.parents[1])
    for what in ("package", "metrics", "report", "done", "versions"):
        assert after[what] == before[what], what


def test_what_cannot_be_made_again_is_said_with_the_way_out(finished: Path) -> None:
    flip(finished / "package" / "model.safetensors")
    shutil.rmtree(finished / "checkpoints")
    with pytest.raises(recmtl.errors.RunError, match=r"model\.safetensors.*checkpoints.*gone; --overwrite"):
        recmtl.run(config_of())


def test_a_damaged_state_of_another_config_is_not_taken_for_this_ones(finished: Path) -> None:
    (finished / "run.json").write_text("{")
    with pytest.raises(recmtl.errors.RunError, match=r"run\.json: damaged.*--overwrite"):
        recmtl.run(config_of(intervals={"confidence": 0.9}), output=finished)


def test_a_finished_run_says_so_to_a_store_that_does_not_know(finished: Path) -> None:
    """A kill of an earlier recmtl, between the marker and the last word to MLflow."""
    here = finished.parents[1]
    recmtl.run(config_of())  # in its new place, to its new store
    journal = finished / "tracking" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if b'"FINISHED"' not in line]
    assert len(kept) < len(lines)
    journal.write_bytes(b"".join(kept))
    sent = json.loads((finished / "tracking" / "sent.json").read_text())
    for store in sent["stores"].values():
        store["acknowledged"] = min(store["acknowledged"], journal.stat().st_size)
    (finished / "tracking" / "sent.json").write_text(json.dumps(sent))
    with sqlite3.connect(here / "store" / "mlflow.db") as database:
        database.execute("UPDATE runs SET status = 'RUNNING'")
    recmtl.run(config_of())
    assert end_state(here)["runs"][-1] == ("FINISHED",)


@pytest.mark.parametrize("name", ["raw/test/part-00000.parquet", "statistics/statistics.json", "manifest.json"])
def test_damaged_rows_are_scored_by_no_verb(finished: Path, name: str) -> None:
    data = finished.parents[1] / "prepared"
    content = (data / name).read_bytes()
    (data / name).write_bytes(content.replace(b"1", b"2", 1) if name.endswith("json") else flipped(content))
    model = str(finished)
    for verb in (
        lambda: recmtl.evaluate(model=model, data=data, output=Path("evaluated")),
        lambda: recmtl.stages.fuse(model=model, data=data, output=Path("fused")),
        lambda: recmtl.stages.export(model, "int8", Path("exported"), data=data),
    ):
        with pytest.raises(recmtl.errors.RunError, match="`recmtl prepare`"):
            verb()
    assert not Path("fused").exists()
    assert not Path("exported").exists()
