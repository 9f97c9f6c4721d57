"""Packages made to do harm, consistent in their hashes: none runs code, and each is refused in one sentence."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recmtl.errors import RunError, UserError
from recmtl.package import load_package, verify_package
from recmtl.tracking.gate import PackageChecks
from recmtl.tracking.registry import resolved
from recmtl.tracking.trial import trial


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "package")


def listed(folder: Path) -> Path:
    """The package with hashes that agree with its files, whatever they are."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "hashes.json")
    hashes = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (folder / "hashes.json").write_text(json.dumps({"format": 1, "files": hashes}))
    return folder


# Content that would be run


MLMODEL = """
flavors:
  python_function:
    loader_module: planted
    code: code
    data: data
    python_version: 3.11.0
"""


@pytest.fixture
def attack(copy: Path, tmp_path: Path) -> Path:
    """A package that is also an MLflow model whose code notes that it was run."""
    (copy / "MLmodel").write_text(MLMODEL)
    (copy / "code").mkdir()
    (copy / "data").mkdir()
    (copy / "data" / "nothing").write_text("")
    (copy / "code" / "planted.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w').close()\n")
    return listed(copy)


def test_a_package_that_is_an_mlflow_model_too_is_refused(attack: Path) -> None:
    with pytest.raises(RunError, match="'MLmodel' is no name of a file in this package"):
        verify_package(attack)
    with pytest.raises(RunError, match="'MLmodel' is no name of a file in this package"), resolved(str(attack)):
        pass


def test_the_trial_runs_no_code_of_a_package(attack: Path, tmp_path: Path) -> None:
    rows = pl.DataFrame({"user_id": [1]})
    (check,) = trial(attack, rows, pl.DataFrame({"click": [0.5]}), PackageChecks(latency=None))
    assert check.passed is False
    assert "'MLmodel' is no name of a file in this package" in check.text
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    "name",
    [
        "MLmodel",
        "code/planted.py",
        "python_model.pkl",
        "statistics/vocabulary/__init__.py",
        "statistics/vocabulary/user.parquet.so",
        "statistics/vocabulary/../user.parquet",
        "statistics/vocabulary/user id.parquet",
        "statistics/vocabulary/user\n.parquet",
        "Model.safetensors",
        "model.safetensors/",
        ".env",
        "polars.py",
    ],
)
def test_a_package_is_a_closed_list_of_names(copy: Path, name: str) -> None:
    listing = json.loads((copy / "hashes.json").read_text())
    listing["files"][name] = hashlib.sha256(b"").hexdigest()
    (copy / "hashes.json").write_text(json.dumps(listing))
    with pytest.raises(RunError, match="is no name of a file in this package"):
        load_package(copy)


# JSON that would exhaust memory or the stack


@pytest.mark.parametrize("name", ["package.json", "statistics/statistics.json", "calibration.json", "fusion.json"])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 100_000, "more than 64 deep"),
        (b'{"a":' * 100_000, "more than 64 deep"),
        (b"\xff\xfe", "no UTF-8"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "5,000 digits"),
        (b'{"a": ', "Expecting value"),
        (b"", "Expecting value"),
    ],
    ids=["lists", "objects", "bytes", "nan", "huge", "digits", "cut", "empty"],
)
def test_json_that_is_none_is_one_sentence(copy: Path, name: str, content: bytes, why: str) -> None:
    (copy / name).write_bytes(content)
    with pytest.raises(RunError) as caught:
        load_package(listed(copy))
    assert why in str(caught.value)
    assert Path(name).name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"format": 1, "files": ' + b"[" * 1000, b"\xff", b"NaN"])
def test_a_listing_that_is_none_is_one_sentence(copy: Path, content: bytes) -> None:
    (copy / "hashes.json").write_bytes(content)
    with pytest.raises(RunError, match=r"hashes\.json: this is no list of hashes"):
        load_package(copy)


def test_a_file_too_large_is_not_read(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recmtl.package._LARGEST_PART", 100)
    with pytest.raises(RunError, match=r"package\.json.*larger than 100 bytes"):
        load_package(copy)


def edited(folder: Path, name: str, change: Any) -> Path:
    """The package with a JSON file changed in place by a function, and hashes that agree."""
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))
    return listed(folder)


# Numbers that are none


def put(value: Any, *keys: Any) -> Any:
    """A function that sets what lies under the keys."""

    def change(whole: Any) -> None:
        for key in keys[:-1]:
            whole = whole[key]
        whole[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (put(0.0, "numbers", "price", "std"), "features.price: the standard deviation is 0.0, not above 0"),
        (put(-1.0, "numbers", "price", "std"), "features.price: the standard deviation is -1.0, not above 0"),
        (put(None, "numbers", "price", "mean"), "features.price: mean is None, no finite number"),
        (put("1", "numbers", "price", "mean"), "features.price: mean is '1', no finite number"),
        (put(float("nan"), "numbers", "age", "std"), "NaN is no number in JSON"),
        (put(float("-inf"), "numbers", "age", "minimum"), "-Infinity is no number in JSON"),
        (put([0.0, 2.0, 1.0], "numbers", "price", "quantiles"), "features.price.quantiles: the values do not rise"),
        (put(-3, "numbers", "price", "count"), "features.price: count is -3, no count"),
        (put(-0.5, "labels", "watched", "std"), "tasks.watched: the standard deviation is -0.5, below 0"),
        (put("x", "labels", "click", "mean"), "tasks.click: mean is 'x', no finite number"),
        (put([-0.5, 1.5], "labels", "mood", "distribution"), "tasks.mood: a share of the distribution is below 0"),
        (put({"values": [], "edges": [2, 1], "counts": []}, "profiles", "age"), "profiles.age.edges: the values do not"),
        (put([], "numbers"), "statistics.json: these are not statistics"),
    ],
)
def test_statistics_that_are_none_are_refused(copy: Path, change: Any, why: str) -> None:
    with pytest.raises(RunError) as caught:
        load_package(edited(copy, "statistics/statistics.json", change))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_statistics_that_are_not_finite_are_not_written(sample: Any, tmp_path: Path) -> None:
    """Values near the end of a double have an infinite deviation: the mistake is in the data."""
    number = dataclasses.replace(sample.statistics.numbers["price"], std=float("inf"))
    broken = dataclasses.replace(sample.statistics, numbers={"price": number})
    with pytest.raises(UserError, match=r"features\.price: std is inf, no finite number: its values in train are too"):
        broken.save(tmp_path)
    assert not (tmp_path / "statistics.json").exists()
