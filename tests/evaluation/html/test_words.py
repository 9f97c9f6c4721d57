"""Numbers and findings in words, by hand."""

import math

import pytest

from recmtl.evaluation.html.words import (
    count,
    directed,
    instant,
    interval,
    lower,
    metric_name,
    num,
    outcome,
    p_value,
    percent,
    plural,
    seconds,
    signed,
    signed_percent,
)
from recmtl.findings import Difference, Figure


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.74214, "0.7421"),
        (-0.5, "−0.5000"),
        (0.0, "0.0000"),
        (1e-12, "0.0000"),
        (0.00012, "1.2×10⁻⁴"),
        (-0.00012, "−1.2×10⁻⁴"),
        (123.456, "123.46"),
        (7, "7"),
        (12345, "12,345"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert num(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0211, "+0.0211"),
        (-0.0211, "−0.0211"),
        (0.0, "+0.0000"),
        (0.00003, "+3.0e−05"),
        (250.0, "+250.00"),
        (None, "–"),
    ],
)
def test_differences_have_their_sign(value: float | None, text: str) -> None:
    assert signed(value) == text


def test_small_words() -> None:
    assert interval(Figure(value=1.0, low=0.5, high=1.5)) == "0.5000 to 1.5000"
    assert interval(Figure(value=1.0, low=0.5)) == ""
    assert count(412332) == "412,332"
    assert percent(0.1234) == "12.3\u00a0%"
    assert percent(0.0001) == "< 0.1\u00a0%"
    assert percent(0.0) == "0.0\u00a0%"
    assert percent(None) == "–"
    assert signed_percent(0.015) == "+1.5\u00a0%"
    assert signed_percent(-0.06) == "−6.0\u00a0%"
    assert p_value(0.0004) == "< 0.001"
    assert p_value(0.25) == "0.250"
    assert [seconds(s) for s in (3.21, 61.0, 1284.0, 9000.0, None)] == ["3.2 s", "61 s", "21 min", "2.5 h", "–"]
    assert plural(1, "check") == "1 check"
    assert plural(2, "property", "properties") == "2 properties"
    assert instant("2026-11-16T04:12:09+00:00") == "2026-11-16\u00a004:12"
    assert instant("yesterday") == "yesterday"
    assert instant(None) == "–"
    assert metric_name("ndcg", 10) == "NDCG@10"
    assert metric_name("watch_time") == "Watch time"
    assert directed("AUC", True) == "AUC\u00a0↑"
    assert directed("Calibration ratio", None) == "Calibration ratio"
    assert lower("Log loss") == "log loss"
    assert lower("AUC") == "AUC"


@pytest.mark.parametrize(
    ("difference", "higher_is_better", "said"),
    [
        (Difference(value=0.01, p_value=0.001, p_corrected=0.004), True, "better"),
        (Difference(value=0.01, p_value=0.001, p_corrected=0.004), False, "worse"),
        (Difference(value=-0.01, p_value=0.001), False, "better"),
        (Difference(value=0.01, p_value=0.03, p_corrected=0.12), True, "cannot tell"),  # the corrected one decides
        (Difference(value=0.01, low=0.002, high=0.018), True, "better"),
        (Difference(value=0.01, low=-0.002, high=0.022), True, "cannot tell"),
        (Difference(value=0.01, p_value=0.001), None, "higher"),
        (Difference(value=-0.01, p_value=0.001), None, "lower"),
        (Difference(value=0.01), True, ""),  # nothing says how sure that is
        (Difference(), True, ""),
        (Difference(value=math.nan, p_value=0.01), True, ""),
        (Difference(value=0.0, p_value=0.0), True, "cannot tell"),
    ],
)
def test_what_a_difference_says(difference: Difference, higher_is_better: bool | None, said: str) -> None:
    assert outcome(difference, higher_is_better, 0.95) == said


def test_the_confidence_decides_what_is_sure() -> None:
    difference = Difference(value=0.01, p_value=0.03)
    assert outcome(difference, True, 0.95) == "better"
    assert outcome(difference, True, 0.99) == "cannot tell"
