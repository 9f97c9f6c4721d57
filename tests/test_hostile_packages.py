"""Packages made to do harm, consistent in their hashes: none runs code, and each is refused in one sentence."""

import dataclasses
import hashlib
import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from recmtl.errors import RunError, UserError
from recmtl.features.quantised import Quantised, quantise
from recmtl.package import load_package, save_package, verify_package, with_quantised
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
        (
            put({"values": [], "edges": [2, 1], "counts": []}, "profiles", "age"),
            "profiles.age.edges: the values do not",
        ),
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


def put_tensor(folder: Path, name: str, change: Any) -> Path:
    tensors = load_file(str(folder / "model.safetensors"))
    tensors[name] = change(tensors[name])
    save_file(tensors, str(folder / "model.safetensors"))
    return listed(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["tables.user", "tower.experts.weights.0", "heads.by_task.watched.std"])
def test_weights_that_are_not_finite_are_refused(copy: Path, name: str, value: float) -> None:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor.view(-1)[0] = value
        return tensor

    with pytest.raises(RunError, match=rf"{name} holds 1 values of \d+ that are not finite"):
        load_package(put_tensor(copy, name, spoil))


@pytest.mark.parametrize("precision", ["int8", "float16"])
def test_quantised_weights_that_are_not_finite_are_refused(saved: Path, tmp_path: Path, precision: str) -> None:
    tensors = load_file(str(saved / "model.safetensors"))
    stored = {
        name: quantise(tensor, precision) if name.startswith("tables.") else tensor for name, tensor in tensors.items()
    }
    quantised = Quantised(precision=precision, source="x", bytes_before=2, bytes_after=1)  # type: ignore[arg-type]
    place = with_quantised(saved, quantised, stored, output=tmp_path / "small").folder
    assert load_package(place).predict(pl.DataFrame({"user_id": [1]})).height == 1

    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        halves = tensor[:, :4].contiguous().view(torch.float16) if precision == "int8" else tensor
        halves[0, 0] = float("nan")
        if precision == "int8":
            tensor[:, :4] = halves.view(torch.uint8)
        return tensor

    with pytest.raises(RunError, match=r"tables\.user holds 1 values"):
        load_package(put_tensor(place, "tables.user", spoil))
    stored["tables.user"] = spoil(stored["tables.user"])
    with pytest.raises(RunError, match=r"tables\.user holds 1 values"):
        with_quantised(saved, quantised, stored, output=tmp_path / "smaller")
    assert not (tmp_path / "smaller").exists()


def test_a_package_with_weights_that_are_not_finite_is_not_written(sample: Any, tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in sample.model.tensors().items()}
    tensors["tables.item"][1, 2] = float("nan")
    with pytest.raises(RunError, match=r"tables\.item holds 1 values of 16 that are not finite"):
        save_package(
            tmp_path / "package",
            tensors,
            schema=sample.schema,
            tasks=sample.tasks,
            statistics=sample.statistics,
            columns=sample.columns,
            config=sample.config,
            data="",
        )
    assert not list(tmp_path.iterdir())


def test_finite_weights_that_overflow_predict_nothing(copy: Path) -> None:
    """Values of 1e38 are finite, but what comes of them is not: an error that names the column, no NaN."""
    package = load_package(put_tensor(copy, "heads.by_task.watched.linear.weight", lambda tensor: tensor.fill_(3e38)))
    rows = pl.DataFrame({"user_id": [1, 2, 3], "price": [1.0, 1e6, 5.0]})
    with pytest.raises(RunError, match=r"'watched' is not finite \(NaN or infinite\) for \d of 3 rows"):
        package.predict(rows)


# Descriptions of models larger than their weights


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    """Refuse allocations that a package of a few kilobytes has no use for: 2 GiB more than there is now."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


HUGE = [
    (put([10**7, 10**7], "model", "tower", "expert_widths"), "these weights are of another model"),
    (put([10**19], "model", "tower", "expert_widths"), "no model can be built"),
    (put(10**9, "model", "tower", "num_experts"), "tower.experts.weights.0 is F32 of shape (1000000000, 43, 8)"),
    (put([8] * 10**5, "model", "tower", "head_widths"), "makes more than"),
    (put(5, "features", 0, "embedding_dim"), "these weights are of another model"),
    (put(10**9, "features", 0, "embedding_dim"), "features.0.embedding_dim: Input should be less than"),
    (put(10**9, "features", 0, "hash_buckets"), "vocabularies of user, item"),
    (put({"rows": 10**9}, "features", 0, "managed"), "vocabularies of user, item"),
    (put(65536, "features", 7, "dim"), "these weights are of another model"),
    (put({"kind": "ple", "num_levels": 64, "expert_widths": [8] * 10**5}, "model", "tower"), "makes more than"),
    (put({"kind": "ple", "num_levels": 10**9}, "model", "tower"), "num_levels: Input should be less than or equal"),
]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize(("change", "why"), HUGE)
def test_a_description_larger_than_the_weights_is_refused(
    copy: Path, change: Any, why: str, bounded_memory: None
) -> None:
    with pytest.raises(RunError) as caught:
        load_package(edited(copy, "package.json", change))
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_very_many_features_are_refused(copy: Path, bounded_memory: None) -> None:
    def multiply(about: Any) -> None:
        one = about["features"][6]
        about["features"] += [{**one, "name": f"more{number}", "column": one["name"]} for number in range(20_000)]

    with pytest.raises(RunError):
        load_package(edited(copy, "package.json", multiply))


@pytest.mark.parametrize(
    ("values", "counts", "why"),
    [
        (["1", "2"], [3, 2], "holds 2 values, and the table has 3"),
        (["1", "2", "3", "4"], [3, 2, 1, 1], "holds 4 values, and the table has 3"),
        (["1", "1", "1"], [3, 2, 1], "holds a value twice"),
        (["1", "2", None], [3, 2, 1], "holds values that are no texts"),
        ([1, 2, 3], [3, 2, 1], "holds values that are no texts"),
        (["1", "2", "3"], ["a", "b", "c"], "holds no texts with a count each"),
        (["1", "2", "3"], [3, 2, None], "holds a value without a count"),
    ],
)
def test_a_vocabulary_that_disagrees_with_the_weights_is_refused(
    copy: Path, values: list[Any], counts: list[Any], why: str
) -> None:
    pq.write_table(pa.table({"value": values, "count": counts}), copy / "statistics/vocabulary/user.parquet")
    with pytest.raises(RunError, match=why):
        load_package(listed(copy))


def test_a_vocabulary_that_unpacks_to_gigabytes_is_not_unpacked(copy: Path, bounded_memory: None) -> None:
    """300,000 times one text of 100 kB, a few kilobytes on disk and 30 GB in memory; the weights claim as many rows."""
    text, rows = "x" * 100_000, 300_000
    value = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
    pq.write_table(
        pa.table({"value": value, "count": pa.array([1] * rows, pa.int64())}),
        copy / "statistics/vocabulary/user.parquet",
    )
    put_tensor(copy, "tables.user", lambda tensor: torch.zeros(rows + 2, 4))
    assert (copy / "statistics/vocabulary/user.parquet").stat().st_size < 100_000
    with pytest.raises(RunError, match=r"holds a value twice|no texts"):
        load_package(copy)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"\xff\xff\xff\x7fPAR1"])
def test_a_vocabulary_that_is_no_parquet_is_refused(copy: Path, content: bytes) -> None:
    (copy / "statistics/vocabulary/user.parquet").write_bytes(content)
    with pytest.raises(RunError, match="these are not statistics that recmtl wrote") as caught:
        load_package(listed(copy))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 8, (10**12).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"{}", b"\x02" + b"\0" * 7 + b"[["],
)
def test_weights_that_are_none_are_refused(copy: Path, content: bytes) -> None:
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(RunError, match=r"model\.safetensors"):
        load_package(listed(copy))
