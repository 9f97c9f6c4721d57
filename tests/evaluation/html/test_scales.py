"""Round ticks and where values lie between the pixels, by hand."""

import math

import pytest

from recmtl.evaluation.html.scales import finite, linear, logarithmic, nice_ticks, tick_texts


@pytest.mark.parametrize(
    ("low", "high", "count", "ticks"),
    [
        (0.0, 1.0, 5, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.3, 9.7, 5, [2.0, 4.0, 6.0, 8.0]),
        (-0.012, 0.013, 4, [-0.01, 0.0, 0.01]),
        (1.0, 6.0, 5, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
        (0.0, 1e7, 4, [0.0, 2.5e6, 5e6, 7.5e6, 1e7]),
    ],
)
def test_ticks_are_round(low: float, high: float, count: int, ticks: list[float]) -> None:
    assert nice_ticks(low, high, count) == pytest.approx(ticks)


def test_ticks_at_whole_numbers() -> None:
    assert nice_ticks(1, 3, 5, whole=True) == [1, 2, 3]
    assert all(tick == int(tick) for tick in nice_ticks(1, 12, 5, whole=True))


def test_texts_have_the_decimals_of_their_step() -> None:
    assert tick_texts([0.0, 0.25, 0.5]) == ("0", "0.25", "0.50")
    assert tick_texts([-0.01, 0.0, 0.01]) == ("−0.01", "0", "0.01")
    assert tick_texts([0, 5e5, 1e6]) == ("0", "500k", "1000k")
    assert tick_texts([0, 1e7, 2e7]) == ("0", "10M", "20M")
    assert tick_texts([]) == ()


def test_a_scale_holds_its_values_and_clamps_the_rest() -> None:
    scale = linear([0.12, 0.47, None, math.nan], 100, 0)
    assert (scale.low, scale.high) == pytest.approx((0.1, 0.5))
    assert scale(0.1) == pytest.approx(100)
    assert scale(0.3) == pytest.approx(50)
    assert scale(99) == pytest.approx(0)
    assert linear([3.0, 4.0], 0, 10, include=[0.0])(0.0) == 0


@pytest.mark.parametrize("values", [[], [None], [5.0], [0.0, 0.0], [1e-9], [-3.0, -3.0]])
def test_a_scale_of_nothing_or_of_one_value_is_a_scale(values: list[float | None]) -> None:
    scale = linear(values, 0, 100)
    assert scale.high > scale.low
    assert len(scale.ticks) == len(scale.texts) >= 2
    assert all(0 <= scale(value) <= 100 for value in finite(values))


def test_every_scale_has_at_least_two_ticks() -> None:
    for low, high in [(0.953, 1.032), (0.7312, 0.7749), (1e-5, 3e-5), (123.0, 124.5)]:
        assert len(linear([low, high], 0, 100, count=2, nice=False).ticks) >= 2


def test_a_logarithmic_scale() -> None:
    scale = logarithmic([0.001, 0.1], 0, 100)
    assert scale.ticks == pytest.approx((0.001, 0.01, 0.1))
    assert logarithmic([0.004, 0.05], 0, 100).ticks == pytest.approx((0.005, 0.01, 0.02, 0.05))
    assert scale(0.01) == pytest.approx(50)
    assert scale(0.0) == 0  # below everything
    assert scale.texts[0] == "0.001"
    assert len(logarithmic([0.2, 0.3], 0, 100).ticks) >= 1
    assert len(logarithmic([], 0, 100).ticks) >= 1
