"""Schedules by hand."""

import math

import pytest
from pydantic import ValidationError

from recmtl.training.schedules import SCHEDULES, ScheduleConfig, factor


def factors(steps, **config):
    return [factor(ScheduleConfig(**config), step, steps) for step in range(steps)]


def test_constant_stays_after_its_warm_up():
    assert factors(3) == [1.0, 1.0, 1.0]
    assert factors(6, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_falls_to_its_end_at_the_last_step():
    assert factors(5, kind="linear") == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert factors(5, kind="linear", final=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert factors(7, kind="linear", warmup_steps=2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_cosine_is_half_a_wave():
    assert factors(5, kind="cosine") == pytest.approx(
        [1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0]
    )
    assert factors(3, kind="cosine", final=0.5) == pytest.approx([1.0, 0.75, 0.5])


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("warmup_steps", [0, 1, 5, 9])
def test_a_factor_lies_between_0_and_1_however_short_the_run(kind, steps, warmup_steps):
    found = factors(steps, kind=kind, warmup_steps=warmup_steps)
    assert all(0 <= value <= 1 for value in found)
    assert found[0] > 0


def test_an_end_is_no_part_of_a_constant():
    with pytest.raises(ValidationError, match="`final` belongs to kind linear or cosine"):
        ScheduleConfig(kind="constant", final=0.5)
