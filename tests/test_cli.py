"""The command line: every verb, its exit code, errors of one line; on a made-up shop with column names of its own."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import yaml

from recmtl import __version__, cli
from recmtl.manifest import file_hash

AWAY = "http://127.0.0.1:9"


def shop(**changes: Any) -> dict[str, Any]:
    """The README's shop, small; not tracked unless a test asks for it."""
    return {
        "name": "shop",
        "data": {
            "source": {
                "kind": "event_log",
                "columns": {"user": "customer", "item": "sku", "time": "when"},
                "impressions": {"path": "views.csv", "columns": {"time": "shown"}},
                "events": {"click": {"path": "clicks.csv"}},
            },
            "prepared": "prepared",
        },
        "features": [
            {"name": "user_id", "kind": "id", "embedding_dim": 4},
            {"name": "item_id", "kind": "id", "embedding_dim": 4},
            {"name": "price", "kind": "number"},
        ],
        "tasks": [{"name": "click", "kind": "binary", "label": "click"}],
        "model": {"tower": {"kind": "shared_bottom", "widths": [8], "head_widths": [4]}},
        "training": {"epochs": 1, "batch_size": 128, "device": "cpu"},
        "tracking": {"enabled": False},
    } | changes


def write_logs(folder: Path) -> None:
    """700 views a quarter of an hour apart, and a click on a third of them."""
    draw = np.random.default_rng(0)
    views, clicks = ["shown,customer,sku,price"], ["when,customer,sku"]
    for number in range(700):
        day, quarter = divmod(number, 96)
        hour, minute = divmod(15 * quarter, 60)
        date = f"2026-03-{day + 1:02}T{hour:02}:{minute:02}"
        who, what = f"c{draw.integers(40)}", f"s{draw.integers(20)}"
        views.append(f"{date}:00Z,{who},{what},{draw.integers(1, 9)}")
        if draw.random() < 0.33:
            clicks.append(f"{date}:30Z,{who},{what}")
    (folder / "views.csv").write_text("\n".join([*views, "yesterday,c1,s1,2", ""]))
    (folder / "clicks.csv").write_text("\n".join([*clicks, ""]))
    (folder / "tomorrow.csv").write_text("campaign,sku,customer\nspring,s1,c1\nspring,s1,nobody\n")


def write_config(folder: Path, name: str = "shop.yaml", **changes: Any) -> None:
    (folder / name).write_text(yaml.safe_dump(shop(**changes)))


class Said(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error, which must be the last line, and one line."""
        lines = self.err.strip().splitlines()
        assert [line for line in lines if line.startswith("error:")] == [lines[-1]], self.err
        assert "Traceback" not in self.err
        return lines[-1].removeprefix("error: ")


Run = Callable[..., Said]


@pytest.fixture
def recmtl(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def call(*arguments: str) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        out, err = capsys.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with logs, a config and its finished run; copied, never written to."""
    folder = tmp_path_factory.mktemp("trained")
    write_logs(folder)
    write_config(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.base._run(["run", "shop.yaml"], debug=True) == 0
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own copy of it, as the working directory."""
    folder = tmp_path / "here"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    return folder


def tree(folder: Path) -> dict[str, str]:
    return {str(path): file_hash(path) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


# What works


def test_run_leaves_a_report_and_a_finished_run_says_so(here: Path, recmtl: Run) -> None:
    before = tree(here / "runs")
    said = recmtl("run", "shop.yaml")
    assert said.code == 0
    assert "runs/shop: finished already, nothing to do; --overwrite begins anew" in said.out
    assert "click" in said.out
    assert str(here / "runs" / "shop" / "report.html") in said.out
    assert tree(here / "runs") == before


def test_a_run_keeps_the_plan_of_its_tables(here: Path) -> None:
    plan = json.loads((here / "runs" / "shop" / "sharding.json").read_text())
    assert plan["ranks"] == 1
    tables = {table["table"]: table for table in plan["tables"]}
    assert tables["user_id"]["sharding"] == "table_wise"
    assert tables["user_id"]["shards"] == [[0, 0, tables["user_id"]["rows"], 0, tables["user_id"]["width"]]]


def test_overwrite_begins_anew_with_another_config(here: Path, recmtl: Run) -> None:
    said = recmtl("train", "shop.yaml", "--set", "training.seed=5", "--overwrite")
    assert said.code == 0, said.err
    assert "epoch 1 of 1" in said.err
    metrics = json.loads((here / "runs" / "shop" / "metrics.json").read_text())
    assert "validation" in metrics
    assert "test" not in metrics, "train evaluates on validation alone"


def test_set_and_output_reach_the_run(here: Path, recmtl: Run) -> None:
    said = recmtl("train", "shop.yaml", "--set", "features.user_id.embedding_dim=8", "--output", "elsewhere")
    assert said.code == 0, said.err
    resolved = yaml.safe_load((here / "elsewhere" / "config.resolved.yaml").read_text())
    assert resolved["features"][0]["embedding_dim"] == 8


def test_prepare_says_what_was_left_out_and_where_it_lies(here: Path, recmtl: Run) -> None:
    said = recmtl("prepare", "shop.yaml", "--output", "other/place")
    assert said.code == 0
    assert "prepared: other/place" in said.out
    assert "impressions: 1 of 701 rows set aside in other/place/rejected: shown is not a time (1)" in said.err
    assert (here / "other" / "place" / "rejected").is_dir()
    again = recmtl("prepare", "shop.yaml", "--output", "other/place")
    assert "already prepared, nothing rebuilt: other/place" in again.out


def test_evaluate_its_own_run_and_another_model_on_the_same_rows(here: Path, recmtl: Run) -> None:
    assert recmtl("evaluate", "shop.yaml").code == 0
    own = json.loads((here / "runs" / "shop" / "metrics.json").read_text())
    said = recmtl("evaluate", "shop.yaml", "--set", "training.seed=9", "--model", "runs/shop", "--output", "compared")
    assert said.code == 0, said.err
    other = json.loads((here / "compared" / "metrics.json").read_text())
    assert other["test"]["click"]["log_loss"] == pytest.approx(own["test"]["click"]["log_loss"], abs=1e-6)
    refused = recmtl("evaluate", "shop.yaml", "--model", "runs/shop", "--output", "runs/shop")
    assert refused.code == 2
    assert "a run's own folder" in refused.error


def test_predict_takes_rows_as_the_shop_calls_their_columns(here: Path, recmtl: Run) -> None:
    said = recmtl("predict", "--model", "runs/shop/package", "--input", "tomorrow.csv", "--output", "scores")
    assert said.code == 0, said.err
    assert "2 rows scored: scores" in said.out
    assert "warning: tomorrow.csv: it has no column price; scored as missing in every row" in said.err
    scores = pl.read_parquet(here / "scores" / "*.parquet")
    assert scores.columns == ["customer", "sku", "click"]
    assert scores["customer"].to_list() == ["c1", "nobody"]
    assert scores["click"][0] != scores["click"][1], "a known user is not scored as an unseen one"
    again = recmtl("predict", "--model", "runs/shop", "--input", "tomorrow.csv", "--output", "scores")
    assert again.code == 0
    assert "scored already by the same model from the same inputs, nothing to do" in again.err
    other = recmtl(
        "predict", "--model", "runs/shop", "--input", "tomorrow.csv", "--output", "scores", "--keep", "campaign"
    )
    assert other.code == 2
    assert "not empty" in other.error
    kept = ("--keep", "campaign", "--overwrite")
    assert recmtl("predict", "--model", "runs/shop", "--input", "tomorrow.csv", "--output", "scores", *kept).code == 0
    assert "campaign" in pl.read_parquet(here / "scores" / "*.parquet").columns
    best = ("--top-k", "1", "--score", "click", "--by", "campaign", "--columns", "click", "--overwrite")
    said = recmtl("predict", "--model", "runs/shop", "--input", "tomorrow.csv", "--output", "scores", *best)
    assert said.code == 0, said.err
    best_rows = pl.read_parquet(here / "scores" / "*.parquet")
    assert f"2 rows scored, the best {best_rows.height} kept: scores" in said.out
    assert best_rows["rank"].to_list() == [1] * best_rows["campaign"].n_unique()
    said = recmtl("predict", "--model", "runs/shop", "--input", "tomorrow.csv", "--output", "p", "--top-k", "1")
    assert said.code == 2
    assert "no fused score" in said.error


def test_predict_with_a_config_scores_its_test_rows(here: Path, recmtl: Run) -> None:
    said = recmtl("predict", "shop.yaml")
    assert said.code == 0, said.err
    rows = json.loads((here / "runs" / "shop" / "metrics.json").read_text())["rows"]["test"]
    assert f"{rows} rows scored: runs/shop/predictions" in said.out


def test_config_check_and_schema(here: Path, recmtl: Run) -> None:
    said = recmtl("config", "check", "shop.yaml")
    assert said == (0, "shop.yaml: good; 1 task, run folder runs/shop\n", "")
    (here / "views.csv").unlink()
    said = recmtl("config", "check", "shop.yaml")
    assert said.code == 0
    assert "warning: data.source.impressions.path: there is no file views.csv" in said.err
    assert json.loads(recmtl("config", "schema").out)["title"] == "RunConfig"


def test_help_and_version_need_none_of_the_heavy_imports(recmtl: Run) -> None:
    assert "Exit codes" in recmtl("--help").out
    code = "import sys, recmtl.cli; print({'torch', 'polars', 'mlflow', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert recmtl("version").out.strip() == __version__
    assert {verb.name or verb.callback.__name__ for verb in cli.app.registered_commands if verb.callback} == {
        "run",
        "prepare",
        "train",
        "evaluate",
        "predict",
        "fuse",
        "export",
        "promote",
        "rollback",
        "history",
        "plan",
        "doctor",
        "version",
    }


def test_doctor(recmtl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from recmtl import doctor

    good = doctor.Check("torch", "ok", "2.13.0")
    monkeypatch.setattr(doctor, "diagnose", lambda: [good])
    assert recmtl("doctor").code == 0
    monkeypatch.setattr(doctor, "diagnose", lambda: [good, doctor.Check("mlflow", "wrong", "absent", "Install it.")])
    said = recmtl("doctor")
    assert said.code == 2
    assert "Install it." in said.out
    assert "mlflow" in said.error


# Mistakes: exit code 2, one line, nothing written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.yaml"], "nowhere.yaml: cannot read this config: No such file or directory"),
        (["run", "."], "cannot read this config: Is a directory"),
        (["run", "views.csv"], "views.csv: a config is a mapping that begins with `name:`"),
        (["run", "shop.yaml", "--set", "training.epoch=2"], "training.epoch: unknown field; did you mean 'epochs'?"),
        (["run", "shop.yaml", "--set", "data.source.events.click.windw=1d"], "windw: unknown field; did you mean"),
        (["run", "shop.yaml", "--set", "training"], "--set training: expected a.b.c=value"),
        (["run", "shop.yaml", "--set", "features.user.kind=id"], "has no item 'user'; did you mean 'user_id'?"),
        (["run", "shop.yaml", "--set", "training.epochs=2"], "another config (training.epochs was 1, is 2)"),
        (["run", "shop.yaml", "--output", "views.csv"], "--output views.csv: cannot make this folder"),
        (["run", "shop.yaml", "--output", "views.csv/run"], "--output views.csv/run: cannot make this folder"),
        (["prepare", "shop.yaml", "--output", "runs"], "data.prepared: runs is not empty"),
        (["prepare", "shop.yaml", "--output", "views.csv/x"], "data.prepared: cannot write beside views.csv/x"),
        (["evaluate", "shop.yaml", "--output", "nothing"], "nothing: nothing is trained here yet; `recmtl train`"),
        (["predict"], "give either CONFIG, for its own run's model, or --model PATH_OR_URI"),
        (["predict", "shop.yaml", "--set", "output=nothing"], "nothing: nothing is trained here yet"),
        (["predict", "--model", "runs/shop"], "--input is missing"),
        (["predict", "--model", "runs/shop", "--input", "tomorrow.csv"], "--output is missing"),
        (
            ["predict", "--model", "runs/shop", "--input", ".", "--output", "p"],
            "--input: . is a folder; name its",
        ),
        (["predict", "--model", "runs/shop", "--input", "no.csv", "--output", "p"], "--input: there is no file no.csv"),
        (["predict", "--model", "no", "--input", "tomorrow.csv", "--output", "p"], "--model no: no such folder"),
        (
            ["predict", "--model", "runs/shop", "--input", "tomorrow.csv", "--output", "views.csv/p"],
            "--output views.csv/p: cannot write in",
        ),
        (
            ["predict", "--model", "models:/a@b", "--input", "tomorrow.csv", "--output", "p"],
            "models:/a@b: there is no tracking store at",
        ),
        (["tracking", "sync", "nothing"], "nothing: this is no run's folder (config.resolved.yaml is missing)"),
        (["run"], "recmtl run: missing argument 'CONFIG'; `recmtl run --help` says more"),
        (["runn"], "recmtl: no such command 'runn'. Did you mean 'run'"),
        (["run", "shop.yaml", "--st", "x"], "recmtl run: no such option: --st"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    here: Path, recmtl: Run, arguments: list[str], message: str
) -> None:
    before = tree(here)
    said = recmtl(*arguments)
    assert said.code == 2, said.err
    assert message in said.error
    assert tree(here) == before
    assert not (here / "nothing").exists()
    assert not (here / "p").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.source.impressions.path=no.csv", "data.source.impressions.path: there is no file no.csv"),
        ("data.source.columns.user=client", "data.source.columns.user"),
        ("data.source.impressions.columns.time=seen", "columns.time: the file has no column 'seen'; it has shown"),
        ("features.price.column=prize", "features.price: the source has no column 'prize'; did you mean 'price'?"),
        ("features.price.column=click", "features.price: column 'click' is the label of task click"),
        ("tasks.click.label=buy", "tasks.click.label: the source has no column 'buy'"),
        ("data.max_rejected=0", "impressions: 1 of 701 rows (0.1%) are unusable, mostly 'shown is not a time'"),
    ],
)
def test_logs_that_are_not_what_the_config_says(here: Path, recmtl: Run, change: str, message: str) -> None:
    before = tree(here / "prepared")
    said = recmtl("prepare", "shop.yaml", "--set", change)
    assert said.code == 2
    assert message in said.error
    assert tree(here / "prepared") == before


def test_other_data_in_the_same_folder_are_refused(here: Path, recmtl: Run) -> None:
    with (here / "views.csv").open("a") as views:
        views.write("2026-03-08T12:00:00Z,c1,s1,3\n")
    said = recmtl("run", "shop.yaml")
    assert said.code == 2
    assert "runs/shop: the run in this folder was made from other data" in said.error
    assert "--overwrite" in said.error


def test_debug_shows_the_traceback(here: Path, recmtl: Run) -> None:
    said = recmtl("run", "nowhere.yaml", "--debug")
    assert said.code == 2
    assert "Traceback" in said.err
    assert said.err.strip().splitlines()[-1].startswith("error: nowhere.yaml")


# The run's own failures: exit code 1; and 130 for Ctrl-C


def test_a_fault_is_one_line_too(here: Path, recmtl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: BaseException) -> Callable[..., Any]:
        def stage(*arguments: Any, **options: Any) -> Any:
            raise error

        return stage

    from recmtl import stages

    monkeypatch.setattr(stages, "run", fail(ZeroDivisionError("oh")))
    said = recmtl("run", "shop.yaml")
    assert said.code == 1
    assert said.error == "unexpected ZeroDivisionError: oh (a fault of recmtl's; --debug shows where)"
    monkeypatch.setattr(stages, "run", fail(OSError(28, "No space left on device", "runs/x")))
    said = recmtl("run", "shop.yaml")
    assert said.code == 1
    assert said.error == "runs/x: No space left on device; make room on this disk, then run the same command again"
    monkeypatch.setattr(stages, "run", fail(KeyboardInterrupt()))
    said = recmtl("run", "shop.yaml")
    assert (said.code, said.error) == (130, "interrupted; the same command goes on from here")


def test_a_damaged_package_is_the_runs_failure(here: Path, recmtl: Run) -> None:
    with (here / "runs" / "shop" / "package" / "model.safetensors").open("ab") as file:
        file.write(b"x")
    said = recmtl("predict", "--model", "runs/shop", "--input", "tomorrow.csv", "--output", "p")
    assert said.code == 1
    assert "model.safetensors is not what was packaged" in said.error


# The server is away


def test_trained_but_not_registered_and_sent_later(here: Path, recmtl: Run) -> None:
    registered = {"registry": {"model": "shop-ranker", "alias": "challenger"}}
    write_config(here, "away.yaml", tracking={"uri": AWAY, "system_metrics_seconds": 0}, **registered)
    said = recmtl("run", "away.yaml", "--output", "away")
    assert said.code == 3
    assert "recmtl tracking sync away" in said.error
    assert "click" in said.out, "the figures are there all the same"
    assert (here / "away" / "report.md").is_file()
    still = recmtl("tracking", "sync", "away")
    assert still.code == 3
    assert AWAY in still.error

    store = ("--tracking-uri", "sqlite:///store/mlflow.db")
    sent = recmtl("tracking", "sync", "away", *store)
    assert sent.code == 0, sent.err
    assert "models:/shop-ranker@challenger" in sent.out
    again = recmtl("run", "away.yaml", "--output", "away")
    assert again.code == 0
    assert "finished already" in again.out
    assert "store/mlflow.db" in again.out, "where it was sent, not where it was to be"

    scored = ("--input", "tomorrow.csv", "--output", "scores")
    assert recmtl("predict", "--model", "models:/shop-ranker@challenger", *store, *scored).code == 0
    wrong = recmtl("predict", "--model", "models:/shop-ranker@champion", *store, *scored, "--overwrite")
    assert wrong.code == 2
    assert "champion" in wrong.error
