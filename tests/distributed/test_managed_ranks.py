"""Managed tables on two ranks keep the map that one keeps, and their checkpoints load at another number of ranks."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))  # its scripts are run as such
from managed_ranks import run
from ranks import finish, start

SCRIPT = Path(__file__).parent / "managed_ranks.py"
STEPS = 4
"""One step after a decision: candidates are being counted."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, never stopped."""
    return run(tmp_path_factory.mktemp("alone"))


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if tensor.dtype == torch.int64:  # maps, counts, candidates
            assert torch.equal(found[name], tensor), name
        else:
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_two_ranks_are_one_and_one_rank_goes_on_from_their_checkpoint(tmp_path, alone):
    finish(start(SCRIPT, 2, [tmp_path, STEPS]))
    assert not (tmp_path / "ended").exists()
    assert_same(run(tmp_path), alone)


def test_two_ranks_go_on_from_the_checkpoint_of_one(tmp_path, alone):
    assert run(tmp_path, steps=STEPS) is None
    finish(start(SCRIPT, 2, [tmp_path, 0]))
    assert_same(load_file(tmp_path / "ended"), alone)
