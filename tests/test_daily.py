"""The daily pipeline on small logs and a real registry: promoted, refused, retried, overtaken, late; exit codes."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from recmtl.config import RunConfig, parse_config
from recmtl.errors import RunError, UserError
from recmtl.group import ONE
from recmtl.manifest import Manifest
from recmtl.model import build_model
from recmtl.package import Package, load_package
from recmtl.progress import Silent
from recmtl.stages import daily as module
from recmtl.stages.daily import DailyResult, backfill, daily
from recmtl.stages.promoting import promote
from recmtl.stages.warming import warm_start_job
from recmtl.statistics import Statistics
from recmtl.tracking.promotion import champion_of
from recmtl.training.checkpoint import Checkpoints

START = datetime(2026, 3, 1, tzinfo=UTC)
ROOT = Path(__file__).parents[1]


def day(number: int) -> date:
    return (START + timedelta(days=number)).date()


def write_logs(folder: Path, days: int, per_day: int = 250) -> None:
    """A shop where some items are liked; a file a log and day."""
    draw = np.random.default_rng(0)
    for number in range(days):
        shown, clicks, purchases = [], [], []
        for second in np.sort(draw.uniform(0, 86_400, per_day)):
            at = START + timedelta(days=number, seconds=second)
            user, item = draw.integers(30), draw.integers(12)
            shown.append(f"{at.isoformat()},u{user},i{item},{draw.uniform(1, 9):.3f}")
            if draw.random() < 0.1 + 0.06 * item:
                click = at + timedelta(seconds=30)
                clicks.append(f"{click.isoformat()},u{user},i{item}")
                if draw.random() < 0.5:
                    purchases.append(f"{(click + timedelta(hours=2)).isoformat()},u{user},i{item}")
        for log, header, lines in (
            ("impressions", ",price", shown),
            ("clicks", "", clicks),
            ("purchases", "", purchases),
        ):
            text = "\n".join([f"time,user_id,item_id{header}", *lines, ""])
            (folder / f"{log}-{day(number)}.csv").write_text(text)


def config_of(folder: Path, **changes: Any) -> RunConfig:
    # The pipeline is under test, not the model, which has seen too little to be good.
    gate: dict[str, Any] = {"compare": [{"metric": "click.auc", "permitted_loss": 1.0}], "at_least_one_better": "no"}
    gate |= {"baseline": False, "package": None}
    return parse_config(
        {
            "name": "shop",
            "output": str(folder / "run"),
            "data": {
                "source": {
                    "kind": "event_log",
                    "impressions": {"path": str(folder / "impressions-{date}.csv")},
                    "events": {
                        "click": {"path": str(folder / "clicks-{date}.csv")},
                        "purchase": {"path": str(folder / "purchases-{date}.csv"), "window": "6h"},
                    },
                }
            },
            "daily": {"history": 4, "holdout": 0.2, "store": str(folder / "store"), **changes.pop("daily", {})},
            "features": [
                {"name": "user_id", "kind": "id", "embedding_dim": 4},
                {"name": "item_id", "kind": "id", "embedding_dim": 4},
                {"name": "price", "kind": "number"},
            ],
            "tasks": [
                {"name": "click", "kind": "binary", "label": "click"},
                {"name": "purchase", "kind": "binary", "label": "purchase", "parent": "click"},
            ],
            "model": {"tower": {"kind": "shared_bottom", "widths": [8], "head_widths": [4]}},
            "training": {"epochs": 1, "batch_size": 64, "device": "cpu"},
            "evaluation": {
                "slices": None,
                "ranking": None,
                "calibration": None,
                "drift": None,
                "importance": {"enabled": False},
                "intervals": {"draws": 20},
            },
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db", "experiment": "shop"},
            "registry": {"model": "shop-ranker", "gate": {**gate, **changes.pop("gate", {})}},
            **changes,
        }
    )


def run_day(folder: Path, number: int, *, overwrite: bool = False, **changes: Any) -> DailyResult:
    return daily(config_of(folder, **changes), day(number), overwrite=overwrite, progress=Silent())


@pytest.fixture(scope="module")
def first_days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[DailyResult]]:
    """Two days that were run: without a champion, and against it. Not to be changed."""
    folder = tmp_path_factory.mktemp("daily")
    write_logs(folder, 8)
    return folder, list(backfill(config_of(folder), day(4), day(5), progress=Silent()))


@pytest.fixture
def shop(first_days: tuple[Path, list[DailyResult]], tmp_path: Path) -> Path:
    """A copy to go on from. Its registry says where its files are, which are still those of the fixture."""
    shutil.copytree(first_days[0], tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("day.json"):  # the same config, in another folder
        state = json.loads(path.read_text())
        state["config"] = config_of(tmp_path).fingerprint()
        path.write_text(json.dumps(state))
    return tmp_path


def test_with_no_champion_the_absolute_checks_decide(first_days: tuple[Path, list[DailyResult]]) -> None:
    _, (result, _) = first_days
    summary = result.summary
    assert (result.status, result.exit_code, summary["error"]) == ("promoted", 0, None)
    assert summary["champion"]["before"] is None
    assert summary["champion"]["after"]["version"] == summary["version"] == 1
    assert summary["verdict"]["decision"] == "promote"
    assert list(summary["stages"]) == list(module.STAGES)
    assert all(stage["status"] == "done" and stage["attempts"] == 1 for stage in summary["stages"].values())
    assert summary["judged"]["click"] > 200
    assert summary["judged"]["purchase"] > 100
    assert summary["days_rebuilt"] == [str(day(number)) for number in range(8)]
    assert Path(summary["report"]).is_file()
    assert json.loads((result.folder / "day.json").read_text()) == summary
    assert (result.folder / "prepared" / "manifest.json").is_file()


def test_the_next_day_begins_at_the_champion_and_is_judged_against_it(
    first_days: tuple[Path, list[DailyResult]],
) -> None:
    folder, (first, second) = first_days
    assert second.status == "promoted"
    assert second.summary["champion"]["before"]["version"] == 1
    assert second.summary["champion"]["before"]["date"] == str(day(4))
    assert second.summary["champion"]["after"]["version"] == 2
    assert second.summary["days_rebuilt"] == []
    champion = champion_of("shop-ranker", uri=config_of(folder).tracking.uri)
    assert champion is not None
    assert champion.version == 2
    report = json.loads((second.folder / "run" / "report.json").read_text())
    digest = load_package(first.folder / "run" / "package").contents.digest
    assert report["about"]["models"]["champion"] == digest
    config = (second.folder / "run" / "config.resolved.yaml").read_text()
    assert f"warm_start: {second.folder}/champion" in config
    assert f"date: '{day(5)}'" in config


def test_a_day_that_is_over_stays_as_it_is(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be done")

    for stage in ("update", "prepare", "train", "evaluate", "run", "promote"):
        monkeypatch.setattr(module, stage, refuse)
    before = (shop / "run" / "daily" / str(day(5)) / "day.json").read_bytes()
    again = run_day(shop, 5)
    assert again.status == "promoted"
    assert (shop / "run" / "daily" / str(day(5)) / "day.json").read_bytes() == before
    with pytest.raises(UserError, match="another config; --overwrite"):
        run_day(shop, 5, training={"epochs": 2, "batch_size": 64, "device": "cpu"})


def test_a_failed_stage_is_tried_again_from_where_it_stopped(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = module.evaluate

    def away(*_: Any, **__: Any) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr(module, "evaluate", away)
    failed = run_day(shop, 6)
    assert (failed.status, failed.exit_code, failed.summary["error"]) == ("failed", 1, "the disk is full")
    assert failed.summary["stages"]["train"]["status"] == "done"
    assert failed.summary["stages"]["evaluate"]["status"] == "failed"
    assert "register" not in failed.summary["stages"]
    # What comes to the logs meanwhile is for the next day: this one is prepared.
    (shop / f"clicks-{day(60)}.csv").write_text(f"time,user_id,item_id\n{START.isoformat()},u1,i1\n")
    monkeypatch.setattr(module, "evaluate", evaluate)
    done = run_day(shop, 6)
    assert done.status == "promoted"
    attempts = {name: stage["attempts"] for name, stage in done.summary["stages"].items()}
    assert attempts == {"champion": 1, "prepare": 1, "train": 1, "evaluate": 2, "register": 1, "promote": 1}


@pytest.mark.slow
def test_a_day_overtaken_by_another_champion_begins_anew(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = module.evaluate

    def away(*_: Any, **__: Any) -> None:
        raise RunError("away")

    monkeypatch.setattr(module, "evaluate", away)
    assert run_day(shop, 6).summary["champion"]["before"]["version"] == 2
    promote("shop-ranker", 1, override="version 2 sells nothing", tracking_uri=config_of(shop).tracking.uri)
    monkeypatch.setattr(module, "evaluate", evaluate)
    done = run_day(shop, 6)
    assert done.summary["champion"]["before"]["version"] == 1
    assert done.summary["stages"]["evaluate"]["attempts"] == 1
    assert done.status == "promoted"


def test_a_champion_that_moves_at_the_last_moment_is_no_refusal(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(*arguments: Any, **options: Any) -> Any:
        tracking = config_of(shop).tracking.uri
        promote("shop-ranker", 1, override="version 2 sells nothing", tracking_uri=tracking)
        return promote(*arguments, **options)

    monkeypatch.setattr(module, "promote", too_late)
    failed = run_day(shop, 6)
    assert (failed.status, failed.exit_code) == ("failed", 1)
    assert "the champion moved meanwhile (the champion is version 1 by now)" in failed.summary["error"]
    assert "run again" in failed.summary["error"]
    assert failed.summary["stages"]["promote"]["status"] == "failed"
    monkeypatch.setattr(module, "promote", promote)
    done = run_day(shop, 6)
    assert done.summary["champion"]["before"]["version"] == 1
    assert done.summary["stages"]["train"]["attempts"] == 1
    assert (done.status, done.exit_code) == ("promoted", 0)


def test_the_verdict_noted_is_that_of_the_version(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = module.run

    def judged_again(config: RunConfig, **options: Any) -> Any:
        found = run(config, **options)
        path = config.folder / "report.json"
        report = json.loads(path.read_text())
        report["verdict"]["reasons"] = ["judged again, by another gate"]
        path.write_text(json.dumps(report))
        return found

    monkeypatch.setattr(module, "run", judged_again)
    result = run_day(shop, 6)
    assert result.summary["verdict"] == {"decision": "promote", "reasons": ["judged again, by another gate"]}


def test_the_gate_refuses_and_the_champion_stays(shop: Path) -> None:
    refused = run_day(shop, 6, gate={"bounds": [{"metric": "click.auc", "at_least": 0.999}]})
    assert (refused.status, refused.exit_code) == ("refused", 3)
    assert "0.999" in refused.summary["error"]
    assert refused.summary["champion"]["after"]["version"] == 2
    champion = champion_of("shop-ranker", uri=config_of(shop).tracking.uri)
    assert champion is not None
    assert champion.version == 2


@pytest.mark.slow
def test_a_late_event_rebuilds_its_day_alone(shop: Path) -> None:
    line = (shop / f"impressions-{day(3)}.csv").read_text().splitlines()[120]
    at, user, item, _ = line.split(",")
    late = datetime.fromisoformat(at) + timedelta(seconds=1)
    with (shop / f"clicks-{day(6)}.csv").open("a") as file:
        file.write(f"{late.isoformat()},{user},{item}\n")
    result = run_day(shop, 6)
    assert result.summary["days_rebuilt"] == [str(day(3))]
    assert result.status == "promoted"


@pytest.mark.slow
def test_a_task_without_new_labels_is_not_judged(shop: Path) -> None:
    config = config_of(shop, daily={"holdout": 0.0}, output=str(shop / "other"), name="other")
    events = {**config.data.source.model_dump(mode="json")["events"]}  # type: ignore[attr-defined]
    events["purchase"]["window"] = "2d"
    source = type(config.data.source).model_validate({**config.data.source.model_dump(mode="json"), "events": events})
    slow = config.model_copy(
        update={
            "data": config.data.model_copy(update={"source": source}),
            "daily": config.daily and config.daily.model_copy(update={"store": shop / "store-2"}),
            "registry": config.registry and config.registry.model_copy(update={"model": "slow-ranker"}),
        }
    )
    result = daily(slow, day(5), progress=Silent())
    assert result.summary["judged"]["purchase"] == "not judged"
    assert result.summary["judged"]["click"] > 200
    assert result.status == "promoted", result.summary["error"]


def test_what_no_further_try_mends(shop: Path) -> None:
    before = run_day(shop, 3)
    assert (before.status, before.exit_code) == ("failed", 2)
    assert f"was trained as of {day(5)}" in before.summary["error"]
    missing = run_day(shop, 9)
    assert (missing.status, missing.exit_code) == ("failed", 1)  # the logs may come
    assert f"no impression of {day(9)} yet" in missing.summary["error"]
    config = config_of(shop)
    with pytest.raises(UserError, match="no `daily` section"):
        daily(config.model_copy(update={"daily": None}), day(6))
    with pytest.raises(UserError, match=r"registry\.gate"):
        daily(config.model_copy(update={"registry": None}), day(6))
    with pytest.raises(UserError, match="lies after"):
        list(backfill(config, day(6), day(5)))


@pytest.mark.slow
def test_a_champion_of_another_origin_is_judged_from_the_day_that_is_stated(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_daily_of", lambda _: {})
    unknown = run_day(shop, 6)
    assert (unknown.status, unknown.exit_code) == ("failed", 2)
    assert "daily.champion_date" in unknown.summary["error"]
    known = run_day(shop, 6, daily={"champion_date": str(day(5))})
    assert known.status == "promoted"
    # Nobody knows which rows it left alone, so those of earlier days are not judged.
    ours = json.loads((known.folder / "prepared" / "manifest.json").read_text())
    assert datetime.fromisoformat(ours["splits"]["test"]["time_range"][0]).date() == day(6)


def test_held_out_rows_are_judged_that_no_model_of_the_line_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section: dict[str, Any] = {}
    monkeypatch.setattr(module, "_daily_of", lambda _: section)
    monkeypatch.setattr(module._Day, "_moments", lambda *_: None)

    def held(number: int, *, champion: bool = True, window: str = "6h", **changes: Any) -> tuple[date, date]:
        """The day's `held_out_since` and `judge_from`; its model is the champion of the next one."""
        nonlocal section
        config = config_of(tmp_path, daily=changes)
        raw = config.data.source.model_dump(mode="json")
        raw["events"]["purchase"]["window"] = window
        source = type(config.data.source).model_validate(raw)
        config = config.model_copy(update={"data": config.data.model_copy(update={"source": source})})
        one = module._Day(config, day(number), tmp_path / str(number), Silent())
        if champion:
            one._state["champion"]["before"] = {"version": 1, "digest": None, "date": None}
        found = one.day_config().daily
        assert found is not None
        section = found.model_dump(mode="json")
        assert found.held_out_since is not None
        assert found.judge_from is not None
        return found.held_out_since, found.judge_from

    # With no champion, nothing that is read was ever trained on.
    assert held(10, champion=False) == (day(5), day(5))
    assert held(11) == (day(5), day(5))
    # Another seed: the champion trained on what is held out now; so did, a day later, what the champion began at.
    assert held(12, seed=1) == (day(12), day(12))
    assert held(13, seed=1) == (day(12), day(12))
    # A longer window holds rows out for longer; a shorter one none that were not.
    assert held(14, seed=1, window="2d") == (day(14), day(14))
    assert held(15, seed=1) == (day(14), day(14))
    assert held(16, seed=1, window="2d") == (day(16), day(16))
    # A model from scratch descends from nobody; the champion of its day does.
    assert held(17, seed=2, warm_start=False) == (day(12), day(17))
    assert held(18, seed=2) == (day(12), day(12))
    section = {key: value for key, value in section.items() if key != "held_out_since"}
    assert held(19, seed=2) == (day(19), day(19))


def test_one_process_at_a_time(shop: Path) -> None:
    from filelock import FileLock

    with FileLock(shop / "run" / "daily" / ".lock"), pytest.raises(RunError, match="another process"):
        run_day(shop, 6)


@pytest.mark.slow
def test_only_the_newest_days_keep_their_rows(shop: Path) -> None:
    run_day(shop, 6, daily={"keep": 1})
    folders = {number: shop / "run" / "daily" / str(day(number)) for number in (4, 5, 6)}
    assert [(folder / "prepared").exists() for folder in folders.values()] == [False, False, True]
    assert all((folder / "run" / "package").exists() and (folder / "day.json").exists() for folder in folders.values())


@pytest.mark.slow
def test_the_script_speaks_to_a_scheduler(shop: Path) -> None:
    config = shop / "shop.yaml"
    config.write_text(config_of(shop).to_yaml())

    def script(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, str(ROOT / "pipelines" / "batch_training.py"), str(config), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    done = script("--from", str(day(4)), "--to", str(day(5)))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["date"] for line in lines] == [str(day(4)), str(day(5))]
    assert [line["status"] for line in lines] == ["promoted", "promoted"]
    missing = script("--date", str(day(9)))
    assert missing.returncode == 1
    assert json.loads(missing.stdout)["status"] == "failed"
    assert "no impression of" in missing.stderr
    assert script("--from", str(day(4))).returncode == 2


@dataclass
class OtherRank:
    """Rank 1 of two, where rank 0 said what is given: the packages' digest last."""

    said: list[Any]
    rank: int = 1
    size: int = 2

    def broadcast(self, _: Any) -> Any:
        return self.said.pop(0)


def job_of(config: RunConfig, folder: Path, group: Any = ONE) -> tuple[Any, Any]:
    """A job on a finished day's rows, about to train, and its model."""
    prepared = folder / "run" / "daily" / str(day(5)) / "prepared"
    manifest = Manifest.read_from(prepared)
    statistics = Statistics.load(prepared / "statistics")
    model = build_model(config.model, manifest.schema_, manifest.tasks_, statistics, seed=1)
    job = SimpleNamespace(
        config=config,
        group=group,
        leads=group.rank == 0,
        folder=SimpleNamespace(checkpoints=folder / "checkpoints", identity="mine"),
        manifest=manifest,
        statistics=statistics,
        progress=Silent(),
        tracker=SimpleNamespace(tags=lambda _: None),
    )
    return job, model


def warm(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"training": config.training.model_copy(update={"warm_start": "champion"})})


def champions_package(first_days: tuple[Path, list[DailyResult]]) -> Package:
    return load_package(first_days[1][1].folder / "run" / "package")


def test_what_a_kill_left_unfinished_is_no_checkpoint_to_go_on_at(
    first_days: tuple[Path, list[DailyResult]], tmp_path: Path
) -> None:
    shutil.copytree(first_days[0], tmp_path, dirs_exist_ok=True)
    config = warm(config_of(tmp_path))
    theirs = champions_package(first_days).model.tensors()
    for remains in (".unfinished-step-000000010-00", "best-000000010-0123456789ab"):
        (tmp_path / "checkpoints" / remains).mkdir(parents=True)
        job, model = job_of(config, tmp_path)
        warm_start_job(job, model)
        own = model.tensors()
        heads = [name for name in own if name.startswith("heads.")]
        assert heads
        assert all(torch.equal(own[name], theirs[name]) for name in heads)
    # With a checkpoint that is whole training goes on, and the model is left as it is.
    place = Checkpoints(tmp_path / "checkpoints", keep=1, identity="mine", progress=Silent())
    place.save(10, {"weight": torch.ones(1)}, {})
    job, model = job_of(config, tmp_path)
    before = {name: tensor.clone() for name, tensor in model.tensors().items()}
    warm_start_job(job, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tensors().items())


def test_all_ranks_begin_at_the_package_that_rank_0_found(
    first_days: tuple[Path, list[DailyResult]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recmtl.stages import warming

    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("rank 0 alone asks who the champion is")

    config, digest = warm(config_of(first_days[0])), champions_package(first_days).contents.digest
    job, model = job_of(config, first_days[0])
    assert warming._champion(job) == "models:/shop-ranker/2"
    monkeypatch.setattr(warming, "champion_of", asked)
    monkeypatch.setattr(warming, "_resumes", lambda _: False)
    job, model = job_of(config, first_days[0], OtherRank(["models:/shop-ranker/2", digest]))
    warm_start_job(job, model)
    job, model = job_of(config, first_days[0], OtherRank(["models:/shop-ranker/1", digest]))
    with pytest.raises(RunError, match=f"on rank 1 and {digest[:12]} on rank 0"):
        warm_start_job(job, model)
