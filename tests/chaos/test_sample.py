"""A sample of `make chaos`, drawn by a fixed seed: what fails here fails there in many more ways."""

import random

import pytest

from tests.chaos.damage import DAMAGES, READERS, try_damage
from tests.chaos.damage import cases as damages
from tests.chaos.hostile import try_hostile
from tests.chaos.known import known
from tests.chaos.trials import FAULTS, Laboratory, Trial
from tests.chaos.world import SCENARIOS

SAMPLE = [
    ("prepare", "power-contents"),
    ("prepare", "EIO"),
    ("train", "kill"),
    ("train", "own EIO"),
    ("evaluate", "torn"),
    ("register", "kill"),
    ("promote", "kill"),
    ("predict", "power-names"),
    ("predict", "full"),
    ("fuse", "own kill"),
    ("export", "ENOSPC"),
]
DAMAGED = ["prepare", "train", "evaluate-package", "predict", "predict-on", "fuse", "config"]
HOSTILE = [
    ("package", "MLmodel and code, listed"),
    ("package", "a name that leads out"),
    ("package", "layers 10^7 wide"),
    ("package", "NaN weights"),
    ("config", "billion laughs as the whole"),
    ("config", "a key that is a list"),
    ("config", "Python's objects"),
    ("request", "nested 100,000 deep"),
    ("request", "price: NaN"),
    ("request", "user_id: a deep list"),
]


def judge(trial: Trial) -> None:
    open_fault = known(trial)
    if open_fault is not None:
        pytest.xfail(open_fault.why)
    assert not trial.wrong, f"{trial.command}, {trial.fault}, {trial.call} {trial.path}:\n" + "\n".join(trial.wrong)


@pytest.mark.parametrize(("command", "fault"), SAMPLE)
def test_a_disturbed_command_ends_as_an_undisturbed_one(laboratory: Laboratory, command: str, fault: str) -> None:
    draw = random.Random(f"{command} {fault}")
    number = next(laboratory.plan(SCENARIOS[command], fault, 1, draw))
    judge(laboratory.try_(SCENARIOS[command], fault, number))


@pytest.mark.parametrize("reader", DAMAGED)
def test_a_damaged_file_gives_the_right_end_or_a_sentence(laboratory: Laboratory, reader: str) -> None:
    some = list(damages(laboratory, READERS[reader]))
    assert {damage for _, damage in some} <= DAMAGES.keys()
    draw = random.Random(reader)
    file, damage = draw.choice(some)
    judge(try_damage(laboratory, READERS[reader], file, damage, 0))


@pytest.mark.parametrize(("kind", "name"), HOSTILE)
def test_what_is_hostile_is_refused_in_a_sentence(laboratory: Laboratory, kind: str, name: str) -> None:
    judge(try_hostile(laboratory, kind, name))


def test_every_kind_of_fault_is_in_the_sample() -> None:
    assert {fault for _, fault in SAMPLE} == FAULTS.keys()


@pytest.mark.chaos
def test_all_of_it() -> None:
    """The same as `make chaos`, for those who run pytest alone."""
    from tests.chaos.__main__ import main

    assert main([]) == 0
