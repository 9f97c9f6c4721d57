"""Which ends of a rank start the job again, and which are the job's own end. No process is started here."""

import os
import signal

import pytest

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
