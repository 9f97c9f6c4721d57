"""Which ends of a rank start the job again, and which are the job's own end. No process is started here."""

import os
import signal

import pytest
import yaml

from recmtl.cli import main
from recmtl.distributed import launch as module
from recmtl.distributed.launch import LAUNCHER, launch
from recmtl.errors import RunError
from recmtl.progress import Silent


@pytest.fixture
def ends(monkeypatch):
    """The exit codes of the ranks that failed, start after start; and what each start was given."""
    given, planned = [], []

    def run(arguments, ranks):
        given.append((list(arguments), ranks))
        return planned[len(given) - 1]

    monkeypatch.setattr(module, "_run", run)
    return planned, given


def test_a_killed_rank_starts_all_again_and_the_user_is_told(ends):
    planned, given = ends
    planned += [{1: -signal.SIGKILL, 0: 75}, {0: 75}, {0: -signal.SIGSEGV}, {}]
    said = Silent()
    starts = iter("abcd")
    assert launch(lambda: [next(starts)], ranks=2, max_restarts=3, progress=said) == 0
    assert given == [(["a"], 2), (["b"], 2), (["c"], 2), (["d"], 2)]
    assert [line.partition(";")[0] for line in said.warnings] == [
        "rank 1 was killed by SIGKILL",
        "a rank was lost",
        "rank 0 was killed by SIGSEGV",
    ]


@pytest.mark.parametrize(("codes", "expected"), [({1: 2, 0: 2}, 2), ({0: 75, 1: 1}, 1), ({0: 3, 1: -15}, 3)])
def test_a_rank_that_ended_with_a_word_ends_the_job_with_its_code(ends, codes, expected):
    planned, given = ends
    planned.append(codes)
    assert launch(list, ranks=2, max_restarts=3, progress=Silent()) == expected
    assert len(given) == 1


def test_ranks_that_are_lost_again_and_again_are_given_up(ends):
    planned, given = ends
    planned += [{0: -9}] * 3
    with pytest.raises(RunError, match="rank 0 was killed by SIGKILL, for the third time"):
        launch(list, ranks=1, max_restarts=2, progress=Silent())
    assert len(given) == 3


def test_the_ranks_share_the_cores_and_what_the_user_has_set_stands(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(7))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with module._environment(3):
        assert os.environ["OMP_NUM_THREADS"] == "2"
        assert os.environ[LAUNCHER] == str(os.getpid())
    assert LAUNCHER not in os.environ
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with module._environment(3):
        assert os.environ["OMP_NUM_THREADS"] == "5"
    assert os.environ["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize("verb", ["prepare", "evaluate", "predict"])
def test_what_one_process_does_is_refused_under_torchrun(monkeypatch, capsys, verb):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as ended:
        main([verb, "absent.yaml"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"error: {verb}: one process does this; start it without torchrun (`train` and `run` take many)\n"
    )


def test_nproc_under_torchrun_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as ended:
        main(["train", "absent.yaml", "--nproc", "2"])
    assert ended.value.code == 2
    assert "leave --nproc out" in capsys.readouterr().err


def test_what_was_overwritten_is_not_overwritten_again(monkeypatch, tmp_path):
    write_config(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text("of another run")
    starts = []

    def launched(arguments, *, ranks, max_restarts, progress):
        starts.append(arguments())
        starts.append(arguments())  # killed before it came to that
        os.utime(folder / "run.json", ns=(0, 1))
        starts.append(arguments())
        assert (ranks, max_restarts) == (2, 5)
        return 0

    monkeypatch.setattr(module, "launch", launched)
    given = ["train", str(tmp_path / "c.yaml"), "--output", str(folder), "--set", "training.epochs=3", "--overwrite"]
    with pytest.raises(SystemExit) as ended:
        main([*given, "--nproc", "2", "--max-restarts", "5"])
    assert ended.value.code == 0
    rest = [str(tmp_path / "c.yaml"), "--set", "training.epochs=3", "--output", str(folder)]
    assert starts == [["train", *rest, "--overwrite"], ["train", *rest, "--overwrite"], ["train", *rest]]


def write_config(folder):
    data = {
        "name": "c",
        "data": {"source": {"kind": "synthetic", "path": "logs", "users": 99, "items": 99, "impressions": 999}},
        "tasks": [{"name": "click", "kind": "binary", "label": "click"}],
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(data))
