"""`recmtl fuse`, from a trained run to the column `score`: by the API and by the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.special import expit

import recmtl
from recmtl import cli
from recmtl.calibration import Calibrations, Platt, TargetCalibration
from recmtl.cli import fusing as _verb  # noqa: F401 - registers the verb
from recmtl.config import RunConfig, parse_config
from recmtl.errors import UserError
from recmtl.evaluation import score
from recmtl.evaluation.fusing import FusionConfig, fused_score
from recmtl.findings import Fusion as Finding
from recmtl.locks import held
from recmtl.manifest import Manifest
from recmtl.package import load_package, verify_package, with_calibration
from recmtl.stages.fusing import fuse


def write_rows(path: Path, rows: int = 3000) -> None:
    draw = np.random.default_rng(0)
    user, item = draw.integers(0, 60, rows), draw.integers(0, 30, rows)
    click = draw.random(rows) < expit(draw.normal(0, 1, 30)[item])
    pl.DataFrame(
        {
            "user_id": user,
            "item_id": item,
            "request_id": np.arange(rows) // 10,
            "time": np.arange(rows) * 60 + 1_700_000_000,
            "click": click.astype(int),
            "buy": (click & (draw.random(rows) < expit(draw.normal(0, 1.5, 30)[item]))).astype(int),
        }
    ).write_parquet(path)


def config_of(**evaluation: Any) -> RunConfig:
    return parse_config(
        {
            "name": "table",
            "data": {
                "source": {"kind": "table", "path": "rows.parquet", "request": "request_id"},
                "prepared": "prepared",
            },
            "features": [
                {"name": "user_id", "kind": "id", "embedding_dim": 4},
                {"name": "item_id", "kind": "id", "embedding_dim": 4},
            ],
            "tasks": [
                {"name": "click", "kind": "binary", "label": "click"},
                {"name": "buy", "kind": "binary", "label": "buy", "parent": "click"},
            ],
            "model": {"tower": {"kind": "shared_bottom", "widths": [8], "head_widths": [4]}},
            "training": {"epochs": 2, "batch_size": 64, "device": "cpu"},
            "tracking": {"enabled": False},
            "evaluation": evaluation,
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run and its prepared rows; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_rows(folder / "rows.parquet")
        config = config_of(calibration=None)
        (folder / "table.yaml").write_text(config.to_yaml())
        recmtl.train(config)
    return folder


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(trained, tmp_path / "here"))
    monkeypatch.chdir(folder)
    return folder


PACKAGE = "runs/table/package"


def run_cli(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def test_a_run_is_given_its_score(here: Path) -> None:
    config = config_of(calibration=None)
    before = verify_package(Path(PACKAGE))
    found = fuse(config, settings=FusionConfig(trials=12))
    contents = verify_package(Path(PACKAGE))
    assert found.package == Path(PACKAGE)
    assert contents.fusion == found.search.fusion
    assert contents.digest != before.digest
    assert found.search.finding.by == "request"
    assert list(found.held_out) == ["score", "click", "buy"]
    assert all(0 < value <= 1 for values in found.held_out.values() for value in values.values())
    scored = recmtl.predict(config)
    assert scored.columns[-1] == "score"
    again = fuse(config, settings=FusionConfig(trials=12))
    assert again.search == found.search
    assert verify_package(Path(PACKAGE)).digest == contents.digest


def test_the_run_knows_of_it(here: Path) -> None:
    """A run that was finished measures the new package, and tells what was searched; once."""
    config = config_of(calibration=None)
    first = recmtl.run(config)
    assert first.report is not None
    assert first.report.fusion is None
    found = fuse(config, settings=FusionConfig(trials=6))
    digest = verify_package(Path(PACKAGE)).digest
    assert digest != first.report.about.models["model"]
    state = json.loads(Path("runs/table/run.json").read_text())["done"]
    assert set(state) == {"train"}
    again = recmtl.run(config)
    assert again.report is not None
    assert again.report.about.models["model"] == digest
    assert again.report.fusion == found.search.finding
    assert again.metrics["fusion"] == found.search.finding.model_dump(mode="json")
    assert {row.scored_by for row in again.report.ranking} >= {"fused"}
    assert again.metrics["history"] == first.metrics["history"]  # what training left stays
    fuse(config, settings=FusionConfig(trials=6))  # the same: there is nothing to do again
    assert json.loads(Path("runs/table/run.json").read_text())["done"].keys() >= {"train", "evaluate", "run"}


def test_a_kill_before_the_package_is_saved_loses_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(calibration=None)
    recmtl.run(config)
    before = verify_package(Path(PACKAGE)).digest

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("recmtl.stages.fusing.with_fusion", killed)
        with pytest.raises(KeyboardInterrupt):
            fuse(config, settings=FusionConfig(trials=6))
    assert verify_package(Path(PACKAGE)).digest == before
    assert set(json.loads(Path("runs/table/run.json").read_text())["done"]) == {"train"}
    Path(PACKAGE).rename("runs/table/.package.0a1b2c3d.old")  # and killed again, a moment later
    fuse(config, settings=FusionConfig(trials=6))
    assert verify_package(Path(PACKAGE)).fusion is not None


def test_a_run_that_is_worked_in_is_left_alone(here: Path) -> None:
    before = verify_package(Path(PACKAGE)).digest
    with held(Path("runs/table/.lock"), lambda: None), pytest.raises(UserError, match="another recmtl process works"):
        fuse(config_of(calibration=None), settings=FusionConfig(trials=2))
    assert verify_package(Path(PACKAGE)).digest == before


def test_apart_from_a_config_leaves_its_run_as_it_was(here: Path) -> None:
    config = config_of(calibration=None)
    before = {path: path.read_bytes() for path in Path("runs/table").rglob("*") if path.is_file()}
    found = fuse(config, settings=FusionConfig(trials=2), output=Path("fused"))
    assert found.package == Path("fused")
    assert {path: path.read_bytes() for path in Path("runs/table").rglob("*") if path.is_file()} == before


def test_a_runs_own_package_is_fused_on_its_own_rows(here: Path) -> None:
    with pytest.raises(UserError, match="--data goes with --model or --output"):
        fuse(config_of(calibration=None), data=Path("prepared"))


def test_served_equals_offline(here: Path) -> None:
    """The score of test's raw rows, through the package and by evaluation's function, with a calibration between."""
    calibration = Calibrations(
        targets={
            "click": TargetCalibration(curve=Platt(slope=0.7, intercept=0.2)),
            "buy_given_click": TargetCalibration(curve=Platt(slope=1.4, intercept=-0.2), shift=0.05),
        },
        fitted_on="validation",
    )
    with_calibration(Path(PACKAGE), calibration)
    found = fuse(model=PACKAGE, data=Path("prepared"), settings=FusionConfig(formula="sum", trials=8))
    assert found.search.fusion.calibrated
    package, manifest = load_package(Path(PACKAGE)), Manifest.read_from(Path("prepared"))
    raw = pl.concat(pl.read_parquet(path) for path in sorted(Path("prepared/raw/test").glob("*.parquet")))
    served = package.predict(raw)
    scored = score(package.model, package.loader(Path("prepared"), manifest, "test"))
    offline = fused_score(scored, found.search.fusion, package.tasks, calibration)
    np.testing.assert_allclose(served["score"].to_numpy(), offline, rtol=1e-6)
    np.testing.assert_allclose(served["click"].to_numpy(), scored.predictions["click"], rtol=1e-6)


def test_apart_leaves_the_model_as_it_was(here: Path) -> None:
    before = verify_package(Path(PACKAGE)).digest
    found = fuse(model="runs/table", data=Path("prepared"), settings=FusionConfig(trials=4), output=Path("fused"))
    assert verify_package(Path(PACKAGE)).digest == before
    assert verify_package(found.package).fusion is not None
    assert found.package == Path("fused")


def test_the_command_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_cli(
        *("fuse", "--model", PACKAGE, "--data", "prepared", "--formula", "click**a * (1 + buy_given_click)**b"),
        *("--by", "user", "--k", 5, "--trials", 15, "--prefer", "click=1,buy=2", "--range", "a=0:2"),
        *("--output", "fused", "--points", "points.json"),
        capsys=capsys,
    )
    assert code == 0
    assert "15 choices of weights tried on validation, by user" in out
    assert "by user; NDCG@5 of the" in out
    assert "buy is judged in" in out
    assert "on test, NDCG@5 when sorted by:" in out
    assert "score = click**a * (1 + buy_given_click)**b, a=" in out
    finding = Finding.model_validate_json(Path("points.json").read_text())
    assert len(finding.points) == 15
    [chosen] = [point for point in finding.points if point.chosen]
    assert "→" in out
    assert verify_package(Path("fused")).fusion.weights == chosen.weights
    weights = ",".join(f"{name}={value}" for name, value in finding.points[1].weights.items())
    code, out, _ = run_cli(
        *("fuse", "--model", "fused", "--data", "prepared", "--formula", finding.formula, "--choose", weights),
        *("--trials", 1),
        capsys=capsys,
    )
    assert code == 0
    assert verify_package(Path("fused")).fusion.weights == finding.points[1].weights


def test_the_config_says_how(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(calibration=None, fusion={"formula": "click + w * buy", "trials": 6, "k": 3})
    Path("table.yaml").write_text(config.to_yaml())
    code, out, _ = run_cli("fuse", "table.yaml", capsys=capsys)
    assert code == 0
    assert "NDCG@3 of the" in out
    assert verify_package(Path(PACKAGE)).fusion.formula == "click + w * buy"
    code, out, _ = run_cli("fuse", "table.yaml", "--formula", "product", "--trials", 3, capsys=capsys)
    assert code == 0
    assert verify_package(Path(PACKAGE)).fusion.formula == "click ** w_click * buy ** w_buy"
    assert recmtl.run(config_of(calibration=None)).report.fusion.formula == "click ** w_click * buy ** w_buy"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give CONFIG, for its own run's model and data, or --model and --data"),
        (["--model", PACKAGE], "or --model and --data"),
        (["--model", "nowhere", "--data", "prepared"], "nowhere"),
        (["--model", PACKAGE, "--data", "nowhere"], "nowhere"),
        (["--model", PACKAGE, "--data", "prepared", "--formula", "__import__('os')"], "is not allowed"),
        (["--model", PACKAGE, "--data", "prepared", "--formula", "clik*a"], "did you mean 'click'"),
        (["--model", PACKAGE, "--data", "prepared", "--objective", "sold"], "'sold' is no objective"),
        (["--model", PACKAGE, "--data", "prepared", "--prefer", "click"], "--prefer click: expected NAME=NUMBER"),
        (["--model", PACKAGE, "--data", "prepared", "--prefer", "click=much"], "--prefer click=much: expected"),
        (["--model", PACKAGE, "--data", "prepared", "--prefer", "click=-1"], "--prefer input should be greater than"),
        (["--model", PACKAGE, "--data", "prepared", "--range", "a=1"], "--range a=1: expected WEIGHT=LOW:HIGH"),
        (["--model", PACKAGE, "--data", "prepared", "--range", "a=2:1", "--formula", "click**a"], "ranges.a: expected"),
        (["--model", PACKAGE, "--data", "prepared", "--by", "day"], "--by"),
        (["--model", PACKAGE, "--data", "prepared", "--calibrated"], "this package has no calibration"),
        (["--model", PACKAGE, "--data", "prepared", "--output", "prepared"], "holds something that is no package"),
        (["--model", "models:/m@champion", "--data", "prepared"], "--output names the new package's folder"),
    ],
)
def test_mistakes_are_one_line_and_change_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = verify_package(Path(PACKAGE)).digest
    code, _, err = run_cli("fuse", *arguments, *(["--trials", 2] if arguments else []), capsys=capsys)
    assert code in (1, 2)
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message.lower() in lines[0].lower()
    assert verify_package(Path(PACKAGE)).digest == before
    assert Path("prepared/manifest.json").is_file()


def test_an_untrained_run(here: Path) -> None:
    with pytest.raises(UserError, match="nothing is trained here yet"):
        fuse(config_of().model_copy(update={"name": "other"}))


def test_data_without_requests_or_users(here: Path) -> None:
    manifest = Manifest.read_from(Path("prepared"))
    columns = manifest.columns.model_copy(update={"request": None, "user": None})
    manifest.model_copy(update={"columns": columns}).write(Path("prepared"))
    with pytest.raises(UserError, match="name neither requests nor users, so there is nothing to rank within"):
        fuse(model=PACKAGE, data=Path("prepared"), settings=FusionConfig(trials=2))
