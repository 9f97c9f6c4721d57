"""Holm's correction: by hand, and what it promises."""

import numpy as np
import pytest

from recmtl.comparing import holm


def test_by_hand():
    # 0.01 · 3; 0.02 · 2; 0.04 · 1, raised to the one before it.
    assert holm({"a": 0.04, "b": 0.01, "c": 0.02}) == pytest.approx({"a": 0.04, "b": 0.03, "c": 0.04})
    assert holm({"a": 0.03, "b": 0.025}) == pytest.approx({"a": 0.05, "b": 0.05})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_what_is_unknown_is_no_comparison():
    assert holm({"a": 0.02, "b": None}) == {"a": 0.02, "b": None}
    assert holm({}) == {}
    assert list(holm({"z": 0.5, "a": 0.1})) == ["z", "a"]


def test_equal_models_are_seldom_called_different():
    random = np.random.default_rng(0)
    some = sum(min(holm(dict(enumerate(random.random(5)))).values()) < 0.05 for _ in range(4000))
    assert some / 4000 == pytest.approx(0.05, abs=0.012)
