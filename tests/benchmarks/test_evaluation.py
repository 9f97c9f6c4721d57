"""The benchmarks of evaluation at small size: the population's truth, what is counted, files beside memory."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

EVALUATION = Path(__file__).parents[2] / "benchmarks" / "evaluation"


@pytest.fixture
def module(monkeypatch):
    """A script of the benchmark by name; ``coverage`` is a package's name too, which stays as it was."""

    def load(name):
        specification = importlib.util.spec_from_file_location(f"benchmark_{name}", EVALUATION / f"{name}.py")
        loaded = importlib.util.module_from_spec(specification)
        monkeypatch.setitem(sys.modules, specification.name, loaded)
        specification.loader.exec_module(loaded)
        return loaded

    return load


def test_the_twin_is_the_models_equal_and_the_worse_is_worse(module):
    true = module("coverage").truth(16_000)
    for key, value in true["model"].items():
        target, metric = key
        if target == "click" and metric in ("auc", "user_auc", "pr_auc"):
            assert true["twin"][key] == pytest.approx(value, abs=0.006)
            assert true["worse"][key] < value - 0.01


def test_a_repetition_gives_the_ends_of_every_interval(module):
    coverage = module("coverage")
    found = coverage.repetition(0, users=120, draws=40)
    assert list(found) == ["bootstrap", "influence", "rows alone"]
    for lines in found.values():
        for key, _, (value, low, high), differences in lines:
            if low is not None:
                assert low <= value <= high, key
            assert set(differences) in (set(), {"twin", "worse"})
    width = {
        method: next(high - low for key, _, (_, low, high), _ in lines if key == ("rating", "rmse"))
        for method, lines in found.items()
    }
    assert width["rows alone"] < 0.9 * min(width["bootstrap"], width["influence"])


def test_files_give_what_memory_gives(module, tmp_path):
    large = module("large")
    large.write(tmp_path, rows=20_000, users=800, seed=1)
    scored = large.scored(tmp_path)
    assert scored["model"].spilled
    assert len(scored["champion"]) == 20_000
    assert np.unique(scored["model"].group).size == 800
    found, in_memory = large.measured(tmp_path), large.measured(tmp_path, in_memory=True)
    large._compare(found, in_memory)
    assert found["clusters"] == 800
    json.dumps(found)
    in_memory["figures"][0]["systems"]["model"]["value"] += 1e-6
    with pytest.raises(AssertionError):
        large._compare(found, in_memory)
