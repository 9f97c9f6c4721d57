"""One rank goes wrong: all end, soon, with the same exit code, and one sentence says why."""

import signal
from pathlib import Path

import pytest
from ranks import start

HOW = ("error", "kill", "loss")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """How to (exit codes, what was said) of the two ranks."""
    script = Path(__file__).parent / "failing.py"
    jobs = {how: start(script, 2, [how, tmp_path_factory.mktemp(how)]) for how in HOW}
    said = {how: [rank.communicate(timeout=120)[1] for rank in ranks] for how, ranks in jobs.items()}
    return {how: ([rank.returncode for rank in ranks], said[how]) for how, ranks in jobs.items()}


def test_an_error_of_one_rank_is_told_once_and_ends_all(ended):
    codes, said = ended["error"]
    assert codes == [2, 2]
    assert said == ["", "error: this column is not there\n"]


def test_a_rank_that_is_killed_ends_the_others(ended):
    codes, said = ended["kill"]
    assert codes == [75, -signal.SIGKILL]
    assert said[0].startswith("error: another rank of this job was lost")
    assert said[0].count("\n") == 1


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_at_the_same_place(ended):
    codes, said = ended["loss"]
    assert codes == [1, 1]
    (told,) = [text for text in said if text]
    assert told.startswith("error: training: the loss of click, buy is not finite at step 2 (epoch 1, batch 2,")
    assert told.count("\n") == 1
