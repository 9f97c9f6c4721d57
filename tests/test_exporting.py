"""Exports: every tower and kind of feature predicts the same there; smaller tables say what they cost."""

import errno
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

import recmtl
from recmtl import durable, exporting
from recmtl.cli.base import main
from recmtl.cli.exporting import export as _registered  # noqa: F401 - the verb
from recmtl.config import parse_config
from recmtl.errors import RunError, UserError
from recmtl.exporting import (
    ABSOLUTE,
    RELATIVE,
    EncodedModel,
    check_compiled,
    check_onnx,
    check_torch,
    compile_torch,
    described,
    export_onnx,
    export_torch,
    inputs,
    made_up,
    quantised,
)
from recmtl.loading import to_batch
from recmtl.model import ModelConfig, build_model
from recmtl.package import Package, load_package
from recmtl.progress import Silent
from recmtl.schema import Feature, Managed, Schema
from recmtl.stages.exporting import export
from recmtl.towers import TOWERS

ROWS = pl.DataFrame(
    {
        "user_id": [1, 2, 9, None, 3],
        "item_id": ["a", None, "b", "a", "never seen"],
        "tag": ["x,y", None, "", "y", "z"],
        "genre": ["p:0.5,q:0.5", "p", None, "q:2", "r:1"],
        "likes": [[7], [8, 7], None, [], [99]],
        "price": [1.0, None, 3.5, 0.0, -2.0],
        "age": [20, 30, None, 41, 5],
        "content": [[1.0, 2.0, 3.0], None, [0.0, 0.0, 1.0], [0.5, 0.5, 0.5], [1.0, 1.0, 1.0]],
    }
)

ONNX = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are not installed",
)


@pytest.fixture(scope="module")
def package(saved: Path) -> Package:
    return load_package(saved)


def with_tower(sample: Any, package: Package, **tower: Any) -> Package:
    """The sample with another tower, whose untrained weights are as good as any."""
    config = ModelConfig.model_validate({"tower": tower})
    model = build_model(config, sample.schema, sample.tasks, sample.statistics, seed=1)
    return Package(package.contents, package.statistics, model)


def rows_of(package: Package) -> list[dict[str, torch.Tensor]]:
    real = inputs(to_batch(package.encode(ROWS), package.schema, None), package.schema)
    return [real, made_up(package, 1), made_up(package, 300)]


def test_plain_tensors_give_the_packages_predictions(package: Package) -> None:
    given = rows_of(package)[0]
    assert list(given) == [each.name for each in described(package.schema)]
    assert [str(tensor.dtype).removeprefix("torch.") for tensor in given.values()] == [
        each.dtype for each in described(package.schema)
    ]
    module = EncodedModel(package.model, package.schema, package.prediction_columns)
    found = torch.stack(module(*given.values()), dim=1)
    np.testing.assert_allclose(found.detach(), package.predict(ROWS).to_numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_bags_pool_as_the_schema_says(sample: Any, package: Package, pooling: Any) -> None:
    features = [
        each.model_copy(update={"pooling": pooling}) if each.kind == "bag" else each for each in sample.schema.values()
    ]
    schema = Schema(features)
    model = build_model(ModelConfig(), schema, sample.tasks, sample.statistics, seed=2)
    batch = to_batch(package.encode(ROWS), schema, None)
    module = EncodedModel(model.eval(), schema, package.prediction_columns)
    with torch.no_grad():
        expected = model.predictions(model(batch))
        found = module(*inputs(batch, schema).values())
    for column, values in zip(package.prediction_columns, found, strict=True):
        torch.testing.assert_close(values, expected[column], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("tower", "norm"), [*((tower, "none") for tower in TOWERS), ("mmoe", "batch")])
def test_torch_export_of_every_tower(sample: Any, package: Package, tmp_path: Path, tower: str, norm: str) -> None:
    made = with_tower(sample, package, kind=tower, norm=norm)
    export_torch(made, tmp_path / "model.pt2")
    check = check_torch(made, tmp_path / "model.pt2", rows_of(made))
    assert check.rows == 306
    assert check.largest_difference < 1e-5


@pytest.mark.slow
@ONNX
@pytest.mark.parametrize("tower", TOWERS)
def test_onnx_of_every_tower(sample: Any, package: Package, tmp_path: Path, tower: str) -> None:
    made = with_tower(sample, package, kind=tower, norm="layer")
    export_onnx(made, tmp_path / "model.onnx")
    check = check_onnx(made, tmp_path / "model.onnx", rows_of(made))
    assert check.rows == 306
    assert check.largest_difference < 1e-5


@pytest.mark.slow
def test_compiled(package: Package, tmp_path: Path) -> None:
    program = export_torch(package, tmp_path / "model.pt2")
    compile_torch(program, tmp_path / "compiled.pt2")
    check = check_compiled(package, tmp_path / "compiled.pt2", rows_of(package))
    assert check.rows == 306
    assert check.largest_difference < 1e-5


def test_a_managed_table_exports_to_torch_and_not_to_onnx(sample: Any, package: Package, tmp_path: Path) -> None:
    managed = Feature(name="user", kind="id", column="user_id", embedding_dim=4, managed=Managed(rows=5))
    schema = Schema([managed, sample.schema["age"]])
    model = build_model(ModelConfig(), schema, sample.tasks, sample.statistics, seed=2)
    maps = dict(model.features.id_maps.maps.items())["user"]
    maps.ids[:3] = torch.tensor([11, 222, 3333])
    contents = package.contents.__class__(**{**package.contents.__dict__, "schema": schema})
    made = Package(contents, package.statistics, model)
    export_torch(made, tmp_path / "model.pt2")
    given = {"user.ids": torch.tensor([0, 11, 12, 3333]), "dense": torch.zeros(4, 2)}
    assert check_torch(made, tmp_path / "model.pt2", [given, made_up(made, 50)]).largest_difference < 1e-6
    with pytest.raises(UserError, match="table user is managed"):
        export_onnx(made, tmp_path / "model.onnx")


def test_an_export_that_predicts_something_else_is_refused(
    package: Package, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = EncodedModel.forward

    def wrong(self: EncodedModel, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(value * (1 + 3 * RELATIVE) + 3 * ABSOLUTE for value in plain(self, *tensors))

    with monkeypatch.context() as patch:
        patch.setattr(EncodedModel, "forward", wrong)
        export_torch(package, tmp_path / "model.pt2")
    with pytest.raises(RunError, match=r"model\.pt2: predicts \w+ .* away from the package"):
        check_torch(package, tmp_path / "model.pt2", rows_of(package))

    def other(package: Package, path: Path) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(EncodedModel, "forward", wrong)
            return export_torch(package, path)

    monkeypatch.setattr("recmtl.stages.exporting.export_torch", other)
    with pytest.raises(RunError, match="away from the package"):
        export(str(saved), "torch", tmp_path / "out", compiled=False)
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_is_named(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        exporting.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name)
    )
    with pytest.raises(UserError, match=r"onnxscript is not installed; pip install 'recmtl\[onnx\]'"):
        export_onnx(package, tmp_path / "model.onnx")


@pytest.mark.parametrize(("format_", "precision", "off"), [("int8", "int8", 0.02), ("fp16", "float16", 2e-3)])
def test_a_smaller_package_is_a_package(
    package: Package, saved: Path, tmp_path: Path, format_: Any, precision: str, off: float
) -> None:
    done = export(str(saved), format_, tmp_path / "small", progress=Silent())
    small = load_package(tmp_path / "small")
    about = small.contents.quantised
    assert about is not None
    assert (about.precision, about.source, about.before) == (precision, package.contents.digest, {})
    assert done.bytes_after < done.bytes_before
    found, expected = small.predict(ROWS).to_numpy(), package.predict(ROWS).to_numpy()
    np.testing.assert_allclose(found, expected, rtol=off, atol=off)
    assert not np.array_equal(found, expected)
    in_memory, _ = quantised(package, about.precision)
    np.testing.assert_array_equal(found, in_memory.predict(ROWS).to_numpy())
    with pytest.raises(UserError, match="already"):
        export(str(tmp_path / "small"), "int8", tmp_path / "smaller")
    with pytest.raises(UserError, match="its tables are quantised"):
        export(str(tmp_path / "small"), "torch", tmp_path / "smaller")
    export(str(saved), format_, tmp_path / "small")  # over an earlier one
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("years of work")
    with pytest.raises(UserError, match="this holds something else"):
        export(str(saved), format_, tmp_path / "full")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    draw = np.random.default_rng(0)
    user, item = draw.integers(0, 40, 900), draw.integers(0, 20, 900)
    pl.DataFrame(
        {
            "user_id": user,
            "item_id": item,
            "time": np.arange(900) * 60 + 1_700_000_000,
            "click": (draw.random(900) < np.where(user % 2 == item % 2, 0.8, 0.2)).astype(int),
        }
    ).write_parquet(folder / "rows.parquet")
    config = parse_config(
        {
            "name": "table",
            "output": str(folder / "run"),
            "data": {
                "source": {"kind": "table", "path": str(folder / "rows.parquet")},
                "prepared": str(folder / "prepared"),
            },
            "features": [
                {"name": "user_id", "kind": "id", "embedding_dim": 16},
                {"name": "item_id", "kind": "id", "embedding_dim": 16},
            ],
            "tasks": [{"name": "click", "kind": "binary", "label": "click"}],
            "model": {"tower": {"kind": "shared_bottom", "widths": [8], "head_widths": [4]}},
            "training": {"epochs": 1, "batch_size": 64, "device": "cpu"},
            "tracking": {"enabled": False},
        }
    )
    recmtl.train(config, progress=Silent())
    return folder


def test_the_loss_is_stated_on_validation(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["export", "--model", str(trained / "run"), "--output", "small", "--format", "int8"]
    with pytest.raises(SystemExit) as exit_:
        main([*given, "--data", str(trained / "prepared")])
    said = capsys.readouterr()
    assert exit_.value.code == 0, said.err
    assert "click       auc" in said.out
    about = json.loads((tmp_path / "small" / "quantised.json").read_text())
    metrics = json.loads((trained / "run" / "metrics.json").read_text())
    assert about["before"]["click"]["auc"] == pytest.approx(metrics["validation"]["click"]["auc"])
    assert about["rows"] == about["before"]["click"]["rows"] > 0
    assert about["after"]["click"]["auc"] == pytest.approx(about["before"]["click"]["auc"], abs=0.02)
    assert about["after"] != about["before"]


def test_files_are_compared_on_real_rows_too(trained: Path, tmp_path: Path) -> None:
    done = export(str(trained / "run"), "torch", tmp_path / "out", data=trained / "prepared", compiled=False)
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["validation_rows"] > 0
    assert about["files"]["model.pt2"]["rows"] == done.checks["model.pt2"].rows == 257 + about["validation_rows"]
    assert [each["name"] for each in about["inputs"]] == ["user_id.ids", "item_id.ids"]
    assert about["outputs"] == ["click"]


# What cannot be written


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_package_that_cannot_be_copied_names_the_copy(
    saved: Path,
    tmp_path: Path,
    number: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(source: str, target: str, **_: object) -> None:
        raise OSError(number, os.strerror(number), source, None, target)

    monkeypatch.setattr(shutil, "copy2", fail)
    with pytest.raises(SystemExit) as exit_:
        main(["export", "--model", str(saved), "--output", str(tmp_path / "small"), "--format", "int8"])
    said = capsys.readouterr().err
    assert exit_.value.code == 1
    assert f"{tmp_path}/.small." in said
    assert os.strerror(number) in said
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_weights_that_cannot_be_written_are_named(
    saved: Path, tmp_path: Path, number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def fail(*_: object, **__: object) -> None:
        raise SafetensorError(f"Error while serializing: I/O error: x (os error {number})")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(SystemExit) as exit_:
        main(["export", "--model", str(saved), "--output", str(tmp_path / "small"), "--format", "int8"])
    said = capsys.readouterr().err
    assert exit_.value.code == 1
    assert said.startswith(f"error: {tmp_path}/.small.")
    assert f"model.safetensors: {os.strerror(number)}; " in said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_program_that_cannot_be_written_is_named(
    package: Package, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(durable.Files):
        def write(self, file: Any, data: bytes | memoryview) -> None:
            raise OSError(number, os.strerror(number), file.name)

    monkeypatch.setattr(durable, "files", Full())
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        export_torch(package, tmp_path / "model.pt2")
    assert raised.value.filename.startswith(f"{tmp_path}/.model.pt2.")
    assert list(tmp_path.iterdir()) == []


@ONNX
def test_an_onnx_file_that_cannot_be_written_is_named(package: Package, tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    path = tmp_path / "model.onnx"
    path.symlink_to(full)
    with pytest.raises(OSError, match="No space left") as raised:
        export_onnx(package, path)
    assert raised.value.filename == str(path)
