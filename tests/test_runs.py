"""A run's folder: one process at a time, one config and one data set, and nothing removed that a run did not write."""

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from recmtl import durable
from recmtl.errors import RunError, UserError
from recmtl.runs import RunFolder, open_run

CONFIG: dict[str, Any] = {"name": "a", "training": {"epochs": 5}, "tasks": [{"name": "click", "kind": "binary"}]}


def opened(path: Path, config: dict[str, Any] = CONFIG, *, overwrite: bool = False) -> Any:
    text = yaml.safe_dump(config)
    return open_run(path, config=config, config_yaml=text, fingerprint=text, overwrite=overwrite)


def test_the_same_config_finds_its_own_run(tmp_path: Path) -> None:
    with opened(tmp_path / "run") as run:
        run.bind_data("d1")
        run.finish("train", {"epoch": 3})
        identity = run.identity
    with opened(tmp_path / "run") as run:
        run.bind_data("d1")
        assert run.is_done("train")
        assert run.detail("train") == {"epoch": 3}
        assert not run.is_done("test")
        assert run.identity == identity


def test_another_config_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    other = CONFIG | {"training": {"epochs": 6}}
    with pytest.raises(UserError, match=r"training\.epochs was 5, is 6.*--overwrite"), opened(tmp_path, other):
        pass


def test_other_data_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.bind_data("d1")
    with opened(tmp_path) as run, pytest.raises(UserError, match="made from other data"):
        run.bind_data("d2")


def test_overwrite_removes_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.bind_data("d1")
        run.update_metrics({"validation": {}})
        run.checkpoints.mkdir()
        (run.checkpoints / "step").write_text("x")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.csv").write_text("x")
    other = CONFIG | {"name": "b"}
    with opened(tmp_path, other, overwrite=True) as run:
        run.bind_data("d2")
        assert run.read_metrics() == {}
        assert not run.checkpoints.exists()
    assert (tmp_path / "logs" / "mine.csv").read_text() == "x"


def _hold(path: Path, ready: Any, release: Any) -> None:
    with opened(path):
        ready.set()
        release.wait(30)


def test_a_second_process_is_refused_and_may_come_later(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, release))
    process.start()
    assert ready.wait(30)
    with pytest.raises(UserError, match="another recmtl process"), opened(tmp_path):
        pass
    release.set()
    process.join(30)
    with opened(tmp_path):
        pass


def test_metrics_are_replaced_part_by_part_and_never_hold_a_nan(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.update_metrics({"validation": {"click": {"auc": 0.7}}})
        run.update_metrics({"test": {"click": {"auc": None}}})
        assert json.loads((tmp_path / "metrics.json").read_text()) == {
            "validation": {"click": {"auc": 0.7}},
            "test": {"click": {"auc": None}},
        }
        with pytest.raises(ValueError, match="not JSON compliant"):
            run.update_metrics({"test": {"click": {"auc": float("nan")}}})
        assert run.read_metrics()["test"] == {"click": {"auc": None}}


def test_seconds_add_up_over_resumed_runs(tmp_path: Path) -> None:
    with opened(tmp_path) as run, run.timed("train"):
        pass
    first = run.seconds["train"]
    with opened(tmp_path) as run:
        run._state["seconds"]["train"] = first + 10
        with run.timed("train"):
            pass
        assert run.seconds["train"] >= first + 10


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\0" * 50,
        b'{"format": 2, "config": 3, "data": null, "done": {}, "seconds": {}}',
        b'{"format": 2, "config": "x", "data": null, "done": {"train": true}, "seconds": {}, "digest": "0"}',
    ],
)
def test_a_damaged_state_begins_its_stages_again(tmp_path: Path, content: bytes) -> None:
    with opened(tmp_path) as run:
        run.bind_data("d1")
        run.finish("train")
    (tmp_path / "run.json").write_bytes(content)
    with opened(tmp_path) as run:
        assert not run.is_done("train")
        run.bind_data("d1")


def test_a_run_of_an_older_recmtl_names_the_command_that_begins_it_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.bind_data("d1")
    state = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(state | {"format": 1}))
    with pytest.raises(UserError, match=r"older recmtl.*recmtl run CONFIG --output \S+ --overwrite"), opened(tmp_path):
        pass
    with opened(tmp_path, overwrite=True) as run:
        assert not run.is_done("train")


def test_a_damaged_state_of_another_config_is_named(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    (tmp_path / "run.json").write_text("{")
    with (
        pytest.raises(RunError, match=r"run\.json: damaged.*--overwrite"),
        opened(tmp_path, CONFIG | {"name": "b"}),
    ):
        pass
    with opened(tmp_path, CONFIG | {"name": "b"}, overwrite=True):
        pass


def test_what_killed_processes_left_goes_when_the_folder_is_held(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    (tmp_path / "package").mkdir()
    for name in (".scored-x1y2", ".package.0a1b2c3d.old", ".package.0a1b2c3d.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".run.json.4242.tmp").write_text("{")
    durable._named(tmp_path / "metrics.json", "tmp").write_text("{")
    (tmp_path / ".mine.tmp").write_text("somebody else's")
    with opened(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        ".mine.tmp",
        "config.resolved.yaml",
        "package",
        "run.json",
    ]


def test_litter_of_a_run_that_another_process_holds_stays(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, release))
    process.start()
    assert ready.wait(60)
    (tmp_path / ".run.json.4242.tmp").write_text("{")
    with pytest.raises(UserError, match="another recmtl process"), opened(tmp_path):
        pass
    assert (tmp_path / ".run.json.4242.tmp").exists()
    release.set()
    process.join(30)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\0" * 50, b'{"test": {"click": {"auc": 0.99}}}'])
def test_damaged_metrics_are_named_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    with opened(tmp_path) as run:
        run.update_metrics({"test": {}})
        (tmp_path / "metrics.json").write_bytes(content)
        with pytest.raises(RunError, match=r"metrics\.json: damaged.*`recmtl run`"):
            run.read_metrics()
        run.update_metrics({"test": {}}, anew=True)
        assert run.read_metrics() == {"test": {}}


def test_metrics_are_the_old_or_the_new_ones_after_any_kill(tmp_path: Path, kill_at_each: Callable[..., int]) -> None:
    with opened(tmp_path) as run:
        run.update_metrics({"test": {"a": 0}})
    seen = []

    def do() -> None:
        with opened(tmp_path) as run:
            run.update_metrics({"test": {"a": 1}})

    def look() -> None:
        with opened(tmp_path) as run:
            seen.append(run.read_metrics()["test"]["a"])
            run.update_metrics({"test": {"a": 0}})

    kill_at_each(do, look)
    assert set(seen) == {0, 1}


def test_a_run_of_an_earlier_recmtl_has_no_hashes_and_goes_on(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.update_metrics({"test": {}})
        run.finish("train")
    state = json.loads((tmp_path / "run.json").read_text())
    del state["digest"], state["metrics"]
    (tmp_path / "run.json").write_text(json.dumps(state))
    with opened(tmp_path) as run:
        assert run.is_done("train")
        assert run.read_metrics() == {"test": {}}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make this folder"), opened(tmp_path / "file" / "run"):
        pass


def test_a_folder_class_is_what_the_context_gives(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        assert isinstance(run, RunFolder)
