"""The Python API, as the README shows it: stages that go on from one another, and folders that keep to one run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import recmtl
from recmtl import stages
from recmtl.config import RunConfig, parse_config
from recmtl.manifest import file_hash
from recmtl.progress import Silent


class Spoken(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def write_rows(path: Path, rows: int = 600, seed: int = 0) -> None:
    draw = np.random.default_rng(seed)
    pl.DataFrame(
        {
            "user_id": draw.integers(0, 40, rows),
            "item_id": draw.integers(0, 20, rows),
            "time": np.arange(rows) * 60 + 1_700_000_000,
            "click": draw.integers(0, 2, rows),
        }
    ).write_parquet(path)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A table of random rows beside a config that nothing has been done with yet."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.parquet")
    return config_of()


def config_of(**training: Any) -> RunConfig:
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
            "training": {"epochs": 1, "batch_size": 64, "device": "cpu", **training},
            "tracking": {"enabled": False},
            "registry": {"model": "table-ranker"},
        }
    )


def weights(folder: Path) -> str:
    return file_hash(folder / "package" / "model.safetensors")


def test_the_api_as_the_readme_shows_it(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "table.yaml").write_text(config.to_yaml())
    loaded = recmtl.load_config("table.yaml", ["training.epochs=2", "output=two_epochs"])
    result = recmtl.run(loaded, progress=Silent())
    assert set(result.metrics["test"]["click"]) >= {"auc", "log_loss"}
    assert result.registered is None
    assert any("not registered as table-ranker" in note for note in result.notes)
    scored = recmtl.predict(loaded)
    assert scored.folder == Path("two_epochs/predictions")
    assert scored.rows == result.metrics["rows"]["test"]
    assert pl.read_parquet(tmp_path / scored.folder / "*.parquet").columns == ["user_id", "item_id", "time", "click"]


def test_train_then_run_goes_on_and_does_nothing_twice(config: RunConfig, tmp_path: Path) -> None:
    trained = recmtl.train(config)
    assert {"validation", "rows", "history", "seconds"} <= trained.metrics.keys()
    assert "test" not in trained.metrics
    before = weights(tmp_path / "runs" / "table")
    again = recmtl.train(config)
    assert any("trained already" in note for note in again.notes)
    progress = Spoken()
    ran = recmtl.run(config, progress=progress)
    assert ran.metrics["validation"] == trained.metrics["validation"]
    assert "test" in ran.metrics
    assert not [line for line in progress.said if line.startswith(("epoch", "training"))]
    assert weights(tmp_path / "runs" / "table") == before
    assert any("finished already" in note for note in recmtl.run(config).notes)
    assert recmtl.evaluate(config).metrics["test"] == ran.metrics["test"]


def test_prepared_rows_are_used_again_by_other_runs(config: RunConfig, tmp_path: Path) -> None:
    assert recmtl.prepare(config).built
    assert not recmtl.prepare(config).built
    manifest = file_hash(tmp_path / "prepared" / "manifest.json")
    progress = Spoken()
    recmtl.train(config_of(seed=2), output=tmp_path / "second", progress=progress)
    assert any("nothing rebuilt" in line for line in progress.said)
    assert file_hash(tmp_path / "prepared" / "manifest.json") == manifest


def test_what_belongs_to_another_config_or_other_data_is_refused(config: RunConfig, tmp_path: Path) -> None:
    recmtl.train(config)
    before = weights(tmp_path / "runs" / "table")
    with pytest.raises(recmtl.UserError, match=r"training\.seed was \d+, is 7.*--overwrite"):
        recmtl.train(config_of(seed=7))
    write_rows(tmp_path / "rows.parquet", seed=1)
    with pytest.raises(recmtl.UserError, match="made from other data"):
        recmtl.run(config)
    assert weights(tmp_path / "runs" / "table") == before
    (tmp_path / "runs" / "table" / "mine.txt").write_text("kept")
    recmtl.train(config, overwrite=True)
    assert weights(tmp_path / "runs" / "table") != before
    assert (tmp_path / "runs" / "table" / "mine.txt").read_text() == "kept"


def test_nothing_is_made_where_nothing_is_trained(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(recmtl.UserError, match="nothing is trained here yet"):
        recmtl.evaluate(config)
    with pytest.raises(recmtl.UserError, match="nothing is trained here yet"):
        recmtl.predict(config)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(recmtl.UserError, match="give a config or a model"):
        recmtl.predict()


def test_a_run_that_was_interrupted_goes_on_from_its_checkpoint(config: RunConfig, tmp_path: Path) -> None:
    class Interrupted(Spoken):
        def say(self, text: str) -> None:
            super().say(text)
            if text.startswith("epoch 2 of 3"):
                raise KeyboardInterrupt

    three = config_of(epochs=3)
    with pytest.raises(KeyboardInterrupt):
        recmtl.train(three, output=tmp_path / "broken", progress=Interrupted())
    progress = Spoken()
    recmtl.train(three, output=tmp_path / "broken", progress=progress)
    assert any(line.startswith("resuming at step") for line in progress.said)
    recmtl.train(three, output=tmp_path / "whole")
    assert weights(tmp_path / "broken") == weights(tmp_path / "whole")


def test_another_model_is_measured_on_the_same_rows(config: RunConfig, tmp_path: Path) -> None:
    own = recmtl.run(config)
    result = stages.evaluate(config_of(seed=4), model="runs/table", output=tmp_path / "compared")
    assert result.metrics["test"]["click"]["auc"] == pytest.approx(own.metrics["test"]["click"]["auc"], abs=1e-6)
    assert json.loads((tmp_path / "compared" / "metrics.json").read_text())["model"] == "runs/table"
    assert (tmp_path / "compared" / "report.md").is_file()


def test_input_that_is_not_there_yet_is_named(config: RunConfig, tmp_path: Path) -> None:
    assert stages.missing_input(config) is None
    (tmp_path / "rows.parquet").unlink()
    assert "there is no file rows.parquet" in (stages.missing_input(config) or "")
