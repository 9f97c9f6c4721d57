"""SIGKILL at any moment, and the same command again: the same final weights, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "small_run.py"


def run(folder, balancer, optimizer, kills, seed):
    """Names that lay in the checkpoints' folder at each kill."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), balancer, optimizer, str(kills), str(seed)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "alone" / "weights").read_bytes() == (folder / "killed" / "weights").read_bytes()
    alone, killed = ((folder / which / "history.json").read_text() for which in ("alone", "killed"))
    assert alone == killed
    return json.loads(done.stdout)


def test_a_killed_run_ends_where_one_left_alone_does(tmp_path):
    run(tmp_path, "uncertainty", "rowwise_adagrad", 4, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("balancer", "optimizer"),
    [
        ("fixed", "rowwise_adagrad"),
        ("dwa", "adagrad"),
        ("gradnorm", "sgd"),
        ("pcgrad", "exact_adam"),
        ("upgrad", "adagrad"),
    ],
)
def test_a_run_killed_many_times_ends_where_one_left_alone_does(tmp_path, balancer, optimizer, seed):
    for attempt in range(4):  # on a busy machine the kills of one run may all miss the moments of saving
        folder = tmp_path / str(attempt)
        folder.mkdir()
        caught = run(folder, balancer, optimizer, 12, seed + 10 * attempt)
        if any(name.startswith(".unfinished") for names in caught for name in names):
            return
    pytest.fail("none of the kills came while it was saving")
