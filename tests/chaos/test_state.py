"""The comparison of two ends: times do not count, everything else does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.known import Known, known
from tests.chaos.state import differences, end_state
from tests.chaos.trials import Trial, error_of, names_path, unseemly
from tests.chaos.zygote import Done


def write_run(root: Path, seconds: float = 1.0) -> Path:
    run = root / "runs" / "shop"
    (run / "tracking").mkdir(parents=True)
    (run / "metrics.json").write_text(json.dumps({"test": {"auc": 0.7}, "seconds": {"train": seconds}}))
    (run / "report.md").write_text(f"# shop\n\nauc 0.7\n\n## Seconds\n\n| train | {seconds} |\n\n## Config\n\nname\n")
    (run / "model.safetensors").write_bytes(b"weights")
    (run / ".lock").touch()
    points = [{"kind": "metrics", "step": 1, "values": {"auc": 0.7, "rows_per_second": seconds}}]
    (run / "tracking" / "journal.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    return run


def test_two_ends_that_took_other_times_are_equal(tmp_path: Path) -> None:
    write_run(tmp_path / "one", 1.0)
    write_run(tmp_path / "other", 2.0)
    assert differences(end_state(tmp_path / "one"), end_state(tmp_path / "other")) == []


def _rewrite(name: str, text: str) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_rewrite("model.safetensors", "weightz"), "model.safetensors: differs"),
        (lambda run: (run / "model.safetensors").unlink(), "model.safetensors: lost"),
        (_rewrite("metrics.json", '{"test": {"auc": 0.6}}'), "metrics.json: differs"),
        (_rewrite("metrics.json", '{"test"'), "metrics.json: differs"),
        (_rewrite("report.md", "# shop\n\nauc 0.6\n\n## Config\n\nname\n"), "report.md: differs"),
        (_rewrite(".run.json.1-2-3.tmp", ""), ".run.json.1-2-3.tmp: left over"),
        (lambda run: (run / ".package.old").mkdir(), ".package.old/: left over"),
        (_rewrite("tracking/journal.jsonl", ""), "journal.jsonl: differs"),
    ],
)
def test_whatever_else_is_other_is_told(tmp_path: Path, change: Callable[[Path], object], told: str) -> None:
    write_run(tmp_path / "expected")
    change(write_run(tmp_path / "mine"))
    (found,) = differences(end_state(tmp_path / "mine"), end_state(tmp_path / "expected"))
    assert told in found


def test_what_a_command_may_not_print_is_told() -> None:
    def wrong(err: str) -> list[str]:
        return list(unseemly(Done(1, "", err, 0.0)))

    assert wrong("reading\nerror: runs/shop: No space left on device\n") == []
    assert wrong("Traceback (most recent call last):\n  x\nKeyError: 3\n")
    assert wrong("error: unexpected KeyError: 3 (a fault of recmtl's; --debug shows where)\n")
    assert wrong("error: one\nerror: two\n")
    assert error_of(Done(1, "", "a line\nerror: the reason\nanother\n", 0.0)) == "error: the reason"


def test_a_sentence_names_a_path_or_a_folder_that_it_lies_in() -> None:
    assert names_path("error: runs/shop/metrics.json: damaged", "runs/shop/metrics.json")
    assert names_path("error: prepared: cannot write", "prepared/train/part-00000.parquet")
    assert not names_path("error: input or output: No space left on device", "runs/shop/metrics.json")


def test_a_known_fault_covers_all_that_is_wrong_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.chaos.known.KNOWN", (Known("^train, kill", "lost$", "why"),))
    assert known(Trial("train", "kill", 1, wrong=["a: lost", "b: lost"])) is not None
    assert known(Trial("train", "kill", 1, wrong=["a: lost", "b: differs"])) is None
    assert known(Trial("run", "kill", 1, wrong=["a: lost"])) is None
    assert known(Trial("train", "kill", 1)) is None
