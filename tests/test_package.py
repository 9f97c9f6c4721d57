"""The model package: what it holds, what it refuses, and that a row's prediction depends on that row alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.torch import load_file

from recmtl.errors import RunError, UserError
from recmtl.manifest import file_hash
from recmtl.package import Package, load_package, save_package, verify_package

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
        "time": ["2024-01-01"] * 5,
        "unread": [1, 2, 3, 4, 5],
    }
)


@pytest.fixture(scope="module")
def package(saved: Path) -> Package:
    return load_package(saved)


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "package"))


def as_numpy(frame: pl.DataFrame) -> Any:
    return frame.to_numpy()


# Saving and loading


def test_the_tensors_come_back_as_they_were(sample: Any, saved: Path, package: Package) -> None:
    stored = load_file(str(saved / "model.safetensors"))
    for name, tensor in sample.model.tensors().items():
        assert torch.equal(stored[name], tensor)
        assert torch.equal(package.model.tensors()[name], tensor)


def test_it_says_what_it_is(sample: Any, package: Package) -> None:
    contents = package.contents
    assert dict(contents.schema) == dict(sample.schema)
    assert dict(contents.tasks) == dict(sample.tasks)
    assert contents.columns == sample.columns
    assert contents.data == "0" * 64
    assert contents.prediction_columns == (
        "click",
        "purchase",
        "purchase_given_click",
        "watched",
        "stars",
        "mood_up",
        "mood_down",
    )
    assert package.statistics.fingerprint() == sample.statistics.fingerprint()


def test_the_same_model_makes_the_same_package(sample: Any, saved: Path, tmp_path: Path) -> None:
    assert verify_package(sample.save(tmp_path / "again")).digest == verify_package(saved).digest


def test_a_package_is_replaced_whole(sample: Any, saved: Path, tmp_path: Path) -> None:
    folder = sample.save(tmp_path / "package")
    (folder / "stray").write_text("left by an older one")
    sample.save(folder)
    assert verify_package(folder).digest == verify_package(saved).digest
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


def test_what_a_kill_left_is_removed(sample: Any, tmp_path: Path) -> None:
    for name in (".package.0a1b2c3d.tmp", ".package.0a1b2c3d.old", ".package.mine"):
        (tmp_path / name).mkdir()
    sample.save(tmp_path / "package")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".package.mine", "package"]


def test_a_save_that_fails_leaves_the_old_one(sample: Any, tmp_path: Path) -> None:
    folder = sample.save(tmp_path / "package")
    before = verify_package(folder).digest
    with pytest.raises(RuntimeError, match="no tensors today"):
        save_package(
            folder,
            Broken(),
            schema=sample.schema,
            tasks=sample.tasks,
            statistics=sample.statistics,
            columns=sample.columns,
            config=sample.config,
            data="",
        )
    assert verify_package(folder).digest == before
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


class Broken(dict[str, torch.Tensor]):
    def items(self):
        raise RuntimeError("no tensors today")


# What is refused


@pytest.mark.parametrize(
    "name", ["model.safetensors", "package.json", "config.resolved.yaml", "statistics/vocabulary/user.parquet"]
)
def test_a_changed_byte_is_refused(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(RunError, match=f"{name} is not what was packaged"):
        load_package(copy)


def test_a_missing_file_is_refused(copy: Path) -> None:
    (copy / "statistics" / "statistics.json").unlink()
    with pytest.raises(RunError, match=r"lacks statistics/statistics\.json"):
        load_package(copy)


def test_a_file_too_many_is_refused(copy: Path) -> None:
    (copy / "statistics" / "sitecustomize.py").write_text("print('run me')")
    with pytest.raises(RunError, match=r"files that it does not list: statistics/sitecustomize\.py"):
        load_package(copy)


def test_a_link_out_of_the_folder_is_refused(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.safetensors"
    shutil.move(copy / "model.safetensors", outside)
    (copy / "model.safetensors").symlink_to(outside)
    with pytest.raises(RunError, match="leads out of"):
        load_package(copy)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "statistics/../../secret",
        "/etc/passwd",
        "..\\secret",
        "C:/secret",
        "./model.safetensors",
        "",
        "a//b",
    ],
)
def test_a_name_that_leaves_the_folder_is_refused(copy: Path, name: str) -> None:
    (copy.parent / "secret").write_text("secret")
    listing = json.loads((copy / "hashes.json").read_text())
    listing["files"][name] = "0" * 64
    (copy / "hashes.json").write_text(json.dumps(listing))
    with pytest.raises(RunError, match="is no name of a file in this package"):
        load_package(copy)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 1, "files": []}', '{"format": 1, "files": {"a": 1}}', '{"format": 1, "files": {}}'],
)
def test_a_listing_that_is_none_is_refused(copy: Path, text: str) -> None:
    (copy / "hashes.json").write_text(text)
    with pytest.raises(RunError):
        load_package(copy)


def test_a_newer_format_says_so(copy: Path) -> None:
    listing = json.loads((copy / "hashes.json").read_text())
    (copy / "hashes.json").write_text(json.dumps({**listing, "format": 3}))
    with pytest.raises(RunError, match="format 3 of packages is not known"):
        load_package(copy)


def test_a_newer_format_in_the_description_says_so_too(copy: Path) -> None:
    about = json.loads((copy / "package.json").read_text())
    (copy / "package.json").write_text(json.dumps(about | {"format": 10**9}))
    listing = json.loads((copy / "hashes.json").read_text())
    listing["files"]["package.json"] = file_hash(copy / "package.json")
    (copy / "hashes.json").write_text(json.dumps(listing))
    with pytest.raises(RunError, match="format 1000000000 of packages is not known"):
        load_package(copy)


def test_no_package_at_all_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hashes\.json is missing"):
        load_package(tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        load_package(tmp_path / "nowhere")


# Predicting


def test_probabilities_are_coherent(package: Package) -> None:
    frame = package.predict(ROWS)
    assert set(frame.dtypes) == {pl.Float32}
    np.testing.assert_allclose(frame["purchase"], frame["click"] * frame["purchase_given_click"], rtol=1e-6)
    np.testing.assert_allclose(frame["mood_up"] + frame["mood_down"], 1, rtol=1e-6)
    assert frame["stars"].is_between(1, 3).all()


def test_order_and_batches_change_nothing(package: Package) -> None:
    rows = pl.concat([ROWS] * 20).sample(fraction=1, shuffle=True, seed=1).with_row_index()
    whole = as_numpy(package.predict(rows))
    one_by_one = np.concatenate([as_numpy(package.predict(rows[i])) for i in range(rows.height)])
    np.testing.assert_allclose(one_by_one, whole, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(as_numpy(package.predict(rows, batch_rows=7)), whole, rtol=1e-6, atol=1e-6)
    order = np.random.default_rng(2).permutation(rows.height)
    np.testing.assert_allclose(as_numpy(package.predict(rows[order])), whole[order], rtol=1e-6, atol=1e-6)


def test_a_column_that_is_missing_is_missing_in_every_row(package: Package) -> None:
    for column in package.schema.columns:
        empty = ROWS.with_columns(pl.lit(None).alias(column))
        np.testing.assert_array_equal(as_numpy(package.predict(ROWS.drop(column))), as_numpy(package.predict(empty)))


@pytest.mark.parametrize("dtype", [pl.Null, pl.String, pl.Float64, pl.Boolean])
def test_a_column_without_values_may_have_any_type(package: Package, dtype: Any) -> None:
    expected = as_numpy(package.predict(ROWS.select("unread")))
    empty = ROWS.select(pl.lit(None, dtype).repeat_by(1).explode().alias(column) for column in package.schema.columns)
    np.testing.assert_allclose(as_numpy(package.predict(empty.head(1))), expected[:1], rtol=1e-6)


def test_no_column_at_all_still_has_rows(package: Package) -> None:
    frame = package.predict(ROWS.select("unread"))
    assert frame.height == 5
    assert frame.unique().height == 1


def test_unseen_ids_are_kept_apart_from_missing_ones(package: Package) -> None:
    frame = package.predict(pl.DataFrame({"item_id": ["new", "newer", None, ""]}))
    values = frame["click"].to_list()
    assert values[0] == values[1] != values[2] == values[3]


def test_other_columns_are_ignored(package: Package) -> None:
    assert_frame_equal(package.predict(ROWS), package.predict(ROWS.drop("unread", "time")))


def test_no_rows_give_no_rows(package: Package) -> None:
    frame = package.predict(ROWS.clear())
    assert frame.schema == dict.fromkeys(package.prediction_columns, pl.Float32)
    assert frame.height == 0


def test_a_column_that_cannot_be_read_is_named(package: Package) -> None:
    with pytest.raises(UserError, match=r"features\.content: .*'content'.* `dim` 3"):
        package.predict(pl.DataFrame({"content": [[1.0, 2.0]]}))
    with pytest.raises(UserError, match=r"features\.age: column 'age' is List\(Int64\).*number"):
        package.predict(pl.DataFrame({"age": [[1]]}))
    with pytest.raises(UserError, match=r"features\.user: column 'user_id' is Struct.* id"):
        package.predict(pl.DataFrame({"user_id": [{"a": 1}]}))


def test_it_predicts_what_the_model_did(sample: Any, package: Package) -> None:
    from recmtl.loading import to_batch

    sample.model.eval()
    with torch.no_grad():
        batch = to_batch(package.encode(ROWS), sample.schema, None)
        expected = sample.model.predictions(sample.model(batch))
    for name, column in expected.items():
        np.testing.assert_array_equal(package.predict(ROWS)[name].to_numpy(), column.numpy())


# From pandas, in whatever types the values come


def test_pandas_types_change_nothing(package: Package) -> None:
    expected = as_numpy(package.predict(ROWS))
    frame = ROWS.to_pandas()
    assert frame["user_id"].dtype == np.float64  # whole numbers with a gap
    variants = {
        "as it comes": frame,
        "nullable integers": frame.astype({"user_id": "Int64", "age": "Int64"}),
        "objects": frame.astype(object),
        "text for numbers": frame.assign(user_id=["1", "2", "9", None, "3"], age=["20", "30.0", "", "41", "5"]),
        "categories": frame.assign(item_id=frame["item_id"].astype("category")),
        "float32 and arrays": frame.assign(
            price=frame["price"].astype("float32"),
            content=[None if c is None else np.asarray(c, np.float32) for c in frame["content"]],
        ),
        "tuples": frame.assign(
            likes=[None if v is None else tuple(v) for v in ROWS["likes"].to_list()],
            content=[float("nan") if v is None else tuple(v) for v in ROWS["content"].to_list()],
        ),
        "mixed ids": frame.assign(user_id=pd.Series([1, "2", 9.0, None, "3"], dtype=object)),
        "arrow": ROWS.to_pandas(use_pyarrow_extension_array=True),
    }
    for what, variant in variants.items():
        got = package.predict_pandas(variant)
        np.testing.assert_allclose(got.to_numpy(), expected, rtol=1e-6, atol=1e-6, err_msg=what)


def test_pandas_keeps_its_index(package: Package) -> None:
    frame = ROWS.to_pandas().set_index(pd.Index(["e", "d", "c", "b", "a"]))
    assert list(package.predict_pandas(frame).index) == ["e", "d", "c", "b", "a"]
    assert set(map(str, package.predict_pandas(frame).dtypes)) == {"float32"}
    assert package.predict_pandas(frame[["unread"]]).shape == (5, 7)
    assert package.predict_pandas(frame.head(0)).shape == (0, 7)


def test_pandas_mistakes_are_named(package: Package) -> None:
    twice = pd.DataFrame([[1, 2]], columns=["user_id", "user_id"])
    with pytest.raises(UserError, match="'user_id' stands 2 times"):
        package.predict_pandas(twice)
    with pytest.raises(UserError, match="'likes' mixes lists with other values"):
        package.predict_pandas(pd.DataFrame({"likes": [[1], 2]}))
    with pytest.raises(UserError, match="expected rows as a pandas frame, not list"):
        package.predict_pandas([1])  # type: ignore[arg-type]


# Alone


def test_serving_needs_neither_torchrec_nor_mlflow(saved: Path, tmp_path: Path) -> None:
    code = (
        "import sys, polars as pl\n"
        "from pathlib import Path\n"
        "from recmtl.package import load_package\n"
        f"frame = load_package(Path({str(saved)!r})).predict(pl.DataFrame({{'user_id': [1]}}))\n"
        "assert frame.shape == (1, 7)\n"
        "others = ('torchrec', 'fbgemm_gpu', 'mlflow', 'torchjd', 'sklearn')\n"
        "print([name for name in sys.modules if name.split('.')[0] in others])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
