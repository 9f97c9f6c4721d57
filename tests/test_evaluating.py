"""One evaluation from packages to a report: champion, gate, other models, and what a change of settings does again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import recmtl
from recmtl import stages
from recmtl.config import RunConfig, parse_config
from recmtl.errors import RefusedError
from recmtl.findings import Report, read_report
from recmtl.package import load_package
from recmtl.stages import evaluating
from recmtl.tracking import store_uri
from recmtl.tracking.client import connect
from recmtl.tracking.promotion import champion_of

STORE = "sqlite:///store/mlflow.db"


def write_rows(path: Path, rows: int = 3000) -> None:
    """Clicks that hang on the item: a model can learn them."""
    draw = np.random.default_rng(0)
    item = draw.integers(0, 20, rows)
    pl.DataFrame(
        {
            "user_id": draw.integers(0, 200, rows),
            "item_id": item,
            "country": draw.choice(["DE", "FR"], rows),
            "time": np.arange(rows) * 60 + 1_700_000_000,
            "click": (draw.random(rows) < 0.1 + 0.04 * item).astype(np.int64),
        }
    ).write_parquet(path)


def config_of(**changes: Any) -> RunConfig:
    training = {"epochs": 3, "batch_size": 64, "device": "cpu", "sparse": {"lr": 0.2}, **changes.pop("training", {})}
    return parse_config(
        {
            "name": "table",
            "data": {"source": {"kind": "table", "path": "rows.parquet"}, "prepared": "prepared"},
            "features": [
                {"name": "user_id", "kind": "id", "embedding_dim": 4},
                {"name": "item_id", "kind": "id", "embedding_dim": 4},
                {"name": "country", "kind": "id", "embedding_dim": 2},
            ],
            "tasks": [{"name": "click", "kind": "binary", "label": "click"}],
            "model": {"tower": {"kind": "shared_bottom", "widths": [8], "head_widths": [4]}},
            "training": training,
            "tracking": {"uri": STORE, "system_metrics_seconds": 0},
            "registry": {"model": "ranker", "gate": {"package": None}},
            "evaluation": {"intervals": {"draws": 200}, "importance": {"rows": 200, "repeats": 1, "gradient_rows": 20}},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a good model is the champion."""
    folder = tmp_path_factory.mktemp("evaluating")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_rows(folder / "rows.parquet")
        result = stages.run(config_of())
        assert report_of(result).verdict.decision == "promote", report_of(result).verdict.reasons
        assert stages.promote("ranker", tracking_uri=STORE) is not None
    return folder


@pytest.fixture(autouse=True)
def _in_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def report_of(result: stages.RunResult) -> Report:
    assert result.report is not None
    return result.report


def test_a_run_leaves_its_report_as_page_and_as_data(here: Path) -> None:
    run = here / "runs" / "table"
    report = read_report(run / "report.json")
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    metrics = json.loads((run / "metrics.json").read_text())
    (auc,) = [row for row in report.figures if row.metric == "auc"]
    assert auc.systems["model"].value == metrics["test"]["click"]["auc"]
    assert auc.systems["baseline"].value == 0.5
    assert report.about.split == "test"
    assert report.about.models == {"model": load_package(run / "package").contents.digest}
    assert {row.slice for row in report.slices} >= {"new_user", "country"}
    assert sum(row.rows for row in report.slices if row.slice == "country") == auc.rows
    assert all(guard.status in ("passed", "not applicable") for guard in report.guards)
    assert report.cost.steps
    assert report.cost.peak_memory_mb
    assert report.calibration, "fitted on validation"
    assert [drift.against for drift in report.drift] == ["model"], "there was no champion yet"
    assert not list(run.glob(".scored*")), "what was kept on disk meanwhile is gone"


def test_the_calibration_travels_in_the_package(here: Path) -> None:
    package = load_package(here / "runs" / "table" / "package")
    rows = pl.read_parquet(here / "prepared" / "raw" / "test" / "*.parquet")
    plain, calibrated = package.predict(rows), package.predict(rows, calibrated=True)
    calibration = package.contents.calibration
    assert calibration is not None
    expected = calibration.apply({"click": plain["click"].to_numpy()}, package.tasks)["click"]
    assert np.array_equal(calibrated["click"].to_numpy(), expected)


def test_a_worse_model_is_refused_and_a_better_one_passes(here: Path) -> None:
    worse = stages.run(config_of(training={"epochs": 1, "sparse": {"lr": 0.0001}}), output=here / "runs" / "worse")
    verdict = report_of(worse).verdict
    assert verdict.decision == "refuse"
    (check,) = [check for check in verdict.checks if check.name == "click.auc vs champion"]
    assert check.passed is False
    assert report_of(worse).about.systems[:2] == ("model", "champion")
    assert report_of(worse).about.models["champion"] == load_package(here / "runs/table/package").contents.digest
    assert worse.registered is not None
    assert worse.registered.alias is None, "the gate did not let it through"
    with pytest.raises(RefusedError):
        stages.promote("ranker", worse.registered.version, tracking_uri=STORE)
    stages.promote("ranker", worse.registered.version, override="to have somebody to beat", tracking_uri=STORE)

    before = stages.run(config_of()).registered
    assert before is not None
    again = stages.evaluate(config_of())
    assert report_of(again).verdict.decision == "promote", report_of(again).verdict.reasons
    assert again.registered is not None
    move = stages.promote("ranker", again.registered.version, tracking_uri=STORE)
    assert move is not None
    assert move.kind == "gate"
    champion = champion_of("ranker", uri=STORE)
    assert champion is not None
    assert champion.version == again.registered.version


def test_the_champion_beside_itself_decides_nothing() -> None:
    report = report_of(stages.evaluate(config_of(), champion="runs/table"))
    assert report.verdict.decision == "not judged"
    assert "this very model" in report.verdict.reasons[0]


def test_a_killed_evaluation_does_not_leave_the_old_verdict_in_force(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between report and registration: the next `run` registers the report that is there."""
    assert stages.run(config_of()).registered is not None

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    floor = {"package": None, "bounds": [{"metric": "click.auc", "at_least": 0.99}]}
    stricter = config_of(registry={"model": "ranker", "gate": floor})
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "register_job", killed)
        with pytest.raises(KeyboardInterrupt):
            stages.evaluate(stricter, champion="none")
    again = stages.run(stricter)
    assert "finished already" not in " ".join(again.notes)
    assert again.registered is not None
    version = connect(store_uri(STORE)).get_model_version("ranker", str(again.registered.version))
    assert version.tags["recmtl.gate"] == "refuse"
    stages.run(config_of())  # as it was, for the other tests


def test_rows_that_a_model_may_have_seen_are_spoken_of(here: Path) -> None:
    other = config_of(name="other", data={**config_of().model_dump(mode="json")["data"], "prepared": "other"})
    changed = other.model_copy(
        update={"data": other.data.model_copy(update={"split": other.data.split.model_copy(update={"test": 0.2})})}
    )
    result = stages.evaluate(changed, model="runs/table", champion="none", output=here / "stranger")
    assert any("trained on another prepared dataset" in note for note in report_of(result).notes)
    own = stages.evaluate(config_of(), model="runs/table", champion="none", output=here / "own")
    assert not any("another prepared dataset" in note for note in report_of(own).notes)


def test_the_best_epoch_is_spoken_of_where_nothing_keeps_it() -> None:
    history = [{"step": n, "validation": {"click": {"auc": auc}}} for n, auc in enumerate((0.7, 0.75, 0.72))]
    (note,) = evaluating._kept_epoch(config_of(), history)
    assert "epoch, 3, was kept; click.auc was better on validation after epoch 2 (0.7500 against 0.7200)" in note
    assert list(evaluating._kept_epoch(config_of(), history[:2])) == [], "the last one is the best"
    stopping = config_of(training={"early_stopping": {"monitor": {"click.auc": 1.0}, "patience": 1}})
    assert list(evaluating._kept_epoch(stopping, history)) == []


def test_several_models_stand_beside_each_other(here: Path) -> None:
    result = stages.evaluate(
        model=["runs/table", "again=runs/table/package"],
        data=here / "prepared",
        champion="none",
        output=here / "compared",
    )
    report = report_of(result)
    assert report.about.systems == ("model", "again", "baseline")
    assert result.header == ("test", "metric", "model", "95 %", "again", "baseline")
    assert all(row[2] == row[4] for row in result.rows), "the same model under two names"
    (auc,) = [row for row in report.figures if row.metric == "auc"]
    assert auc.systems["model"] == auc.systems["again"]
    assert auc.differences["again"].value == 0
    assert auc.differences["again"].p_value == 1
    own = json.loads((here / "runs" / "table" / "metrics.json").read_text())
    assert result.metrics["test"]["click"]["auc"] == pytest.approx(own["test"]["click"]["auc"], abs=1e-6)
    assert {path.name for path in (here / "compared").iterdir() if path.name != ".lock"} == {
        "metrics.json",
        "report.html",
        "report.json",
        "report.md",
    }


def test_a_champion_with_a_task_that_is_no_more_is_compared_on_the_others(here: Path) -> None:
    rows = pl.read_parquet(here / "rows.parquet").with_columns(liked=(pl.col("item_id") % 2))
    rows.write_parquet(here / "two.parquet")
    data = {"source": {"kind": "table", "path": "two.parquet"}, "prepared": "two"}
    tasks = [{"name": name, "kind": "binary", "label": name} for name in ("click", "liked")]
    quick = {
        "champion": "none",
        "importance": {"enabled": False},
        "guards": {"allow": {"feature_tells_label": "a test"}},
    }
    two = config_of(name="two", data=data, tasks=tasks, evaluation=quick, training={"epochs": 1})
    stages.train(two)
    result = stages.evaluate(config_of(), model="runs/table", champion="runs/two", output=here / "fewer")
    report = report_of(result)
    (auc,) = [row for row in report.figures if row.metric == "auc"]
    assert auc.systems["champion"].value is not None
    assert any(note.startswith("champion: ") and "liked" in note for note in report.notes)


def test_a_large_split_goes_by_way_of_files(here: Path) -> None:
    small = stages.evaluate(model="runs/table", data=here / "prepared", output=here / "in_memory")
    config = config_of(
        evaluation={
            "champion": "none",
            "intervals": {"draws": 200, "bootstrap_rows": 0, "memory_rows": 100},
            "importance": {"enabled": False},
        }
    )
    large = stages.evaluate(config, model="runs/table", output=here / "on_disk")
    for one, other in zip(report_of(small).figures, report_of(large).figures, strict=True):
        assert (one.target, one.metric) == (other.target, other.metric)
        assert one.systems["model"].value == pytest.approx(other.systems["model"].value, rel=1e-9)
    assert not list((here / "on_disk").glob(".scored*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"model": ["runs/table", "champion=runs/table"]}, "the name 'champion' is taken"),
        ({"model": ["runs/table", "a=runs/table", "a=runs/table"]}, "the name 'a' is taken"),
        ({"model": "nowhere"}, "--model nowhere: no such folder"),
        ({"model": "runs/table", "data": Path("nowhere")}, "--data nowhere: no prepared dataset here"),
        ({"data": Path("prepared")}, "give a config, or a model"),
    ],
)
def test_what_cannot_be_evaluated_is_named(here: Path, arguments: dict[str, Any], said: str) -> None:
    given = {"data": here / "prepared", "output": here / "never", **arguments}
    with pytest.raises(recmtl.UserError, match=said):
        stages.evaluate(**given)
    assert not (here / "never" / "report.json").exists()


def test_other_settings_of_the_evaluation_train_nothing_anew(here: Path) -> None:
    before = (here / "runs" / "table" / "package" / "model.safetensors").stat().st_mtime_ns
    changed = config_of(evaluation={"slices": None, "importance": {"enabled": False}, "champion": "none"})
    result = stages.run(changed)
    assert report_of(result).slices == ()
    assert (here / "runs" / "table" / "package" / "model.safetensors").stat().st_mtime_ns == before
    assert "finished already" in " ".join(stages.run(changed).notes)


def test_a_label_among_the_features_stops_the_run_before_it_trains(here: Path) -> None:
    rows = pl.read_parquet(here / "rows.parquet").with_columns(pl.col("click").alias("seen_later"))
    rows.write_parquet(here / "leaky.parquet")
    leaky = config_of(
        name="leaky",
        data={"source": {"kind": "table", "path": "leaky.parquet"}, "prepared": "leaky"},
        features=[
            {"name": "item_id", "kind": "id", "embedding_dim": 4},
            {"name": "seen_later", "kind": "number"},
        ],
    )
    with pytest.raises(recmtl.UserError, match=r"guard feature_tells_label: .*'seen_later'"):
        stages.run(leaky)
    assert not (here / "runs" / "leaky" / "package").exists()
    allowed = leaky.model_copy(
        update={
            "evaluation": config_of(
                evaluation={
                    "guards": {"allow": {"feature_tells_label": "a rehearsal"}},
                    "importance": {"enabled": False},
                    "champion": "none",
                }
            ).evaluation
        }
    )
    report = report_of(stages.run(allowed, overwrite=True))
    (guard,) = [guard for guard in report.guards if guard.name == "feature_tells_label"]
    assert (guard.status, guard.reason) == ("allowed", "a rehearsal")


def test_a_fused_score_is_chosen_in_the_run_and_ranks_in_the_report(here: Path) -> None:
    config = config_of(
        name="fused",
        evaluation={
            "champion": "none",
            "importance": {"enabled": False},
            "fusion": {"formula": "sum", "trials": 5, "by": "user"},
        },
    )
    report = report_of(stages.run(config))
    assert report.fusion is not None
    assert any(point.chosen for point in report.fusion.points)
    assert any(row.scored_by == "fused" for row in report.ranking)
    assert load_package(here / "runs" / "fused" / "package").prediction_columns[-1] == "score"
