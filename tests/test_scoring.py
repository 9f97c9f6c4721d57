"""Scoring files: parts, CSV as Parquet, mistakes named, nothing lost."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from recmtl.errors import UserError
from recmtl.package import Package, load_package
from recmtl.progress import Silent
from recmtl.scoring import predict_files

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


def test_parquet_in_parts(package: Package, tmp_path: Path) -> None:
    rows = pl.concat([ROWS] * 3)
    rows.head(8).write_parquet(tmp_path / "a.parquet")
    rows.tail(7).write_parquet(tmp_path / "b.parquet", row_group_size=2)
    done = predict_files(
        package, str(tmp_path / "*.parquet"), tmp_path / "out", batch_rows=3, rows_per_part=6, progress=Silent()
    )
    parts = sorted(done.folder.iterdir())
    assert [path.name for path in parts] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    frame = pl.concat([pl.read_parquet(path) for path in parts])
    assert done.rows == frame.height == 15
    assert done.columns == ("user_id", "item_id", "time", *package.prediction_columns)
    assert_frame_equal(frame.select("user_id", "item_id", "time"), rows.select("user_id", "item_id", "time"))
    np.testing.assert_allclose(
        frame.select(package.prediction_columns).to_numpy(), package.predict(rows).to_numpy(), rtol=1e-6, atol=1e-6
    )


def test_csv_gives_what_parquet_gives(package: Package, tmp_path: Path) -> None:
    rows = ROWS.drop("likes").with_columns(
        content=pl.Series(["[1.0, 2.0, 3.0]", None, "[0, 0, 1]", "[.5, .5, .5]", "[1, 1, 1]"])
    )
    rows.write_csv(tmp_path / "a.csv")
    # As pandas writes a column of whole numbers that has a gap.
    rows.with_columns(pl.col("user_id", "age").cast(pl.Float64)).write_csv(tmp_path / "b.csv")
    for name in ("a.csv", "b.csv"):
        done = predict_files(
            package, str(tmp_path / name), tmp_path / f"{name}.out", extra_keys=["unread"], progress=Silent()
        )
        frame = pl.read_parquet(done.folder / "*.parquet")
        np.testing.assert_allclose(
            frame.select(package.prediction_columns).to_numpy(),
            package.predict(ROWS.drop("likes")).to_numpy(),
            rtol=1e-6,
            atol=1e-6,
        )
        assert frame["unread"].to_list() == [1, 2, 3, 4, 5]
    assert pl.read_parquet(tmp_path / "a.csv.out" / "*.parquet")["user_id"].to_list() == [1, 2, 9, None, 3]
    assert pl.read_parquet(tmp_path / "b.csv.out" / "*.parquet")["user_id"].to_list() == [
        "1.0",
        "2.0",
        "9.0",
        None,
        "3.0",
    ]


def test_a_key_that_is_also_a_feature_reads_the_same_from_csv(package: Package, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("user_id,item_id\n1.0,a\nfoo,b\n,\n")
    done = predict_files(package, str(tmp_path / "a.csv"), tmp_path / "out", progress=Silent())
    frame = pl.read_parquet(done.folder / "*.parquet")
    expected = package.predict(pl.DataFrame({"user_id": [1, 777, None], "item_id": ["a", "b", None]}))
    np.testing.assert_allclose(frame["click"], expected["click"], rtol=1e-6)
    assert frame["user_id"].to_list() == ["1.0", "foo", None]


def test_an_input_without_rows(package: Package, tmp_path: Path) -> None:
    ROWS.clear().write_parquet(tmp_path / "a.parquet")
    done = predict_files(package, str(tmp_path / "a.parquet"), tmp_path / "out", progress=Silent())
    assert done.rows == 0
    assert pl.read_parquet(done.folder / "*.parquet").columns == list(done.columns)
    (tmp_path / "a.csv").write_text("user_id,item_id\n")
    assert predict_files(package, str(tmp_path / "a.csv"), tmp_path / "csv", progress=Silent()).rows == 0


def test_rows_without_keys(package: Package, tmp_path: Path) -> None:
    ROWS.select("age", "price").write_csv(tmp_path / "a.csv")
    done = predict_files(package, str(tmp_path / "a.csv"), tmp_path / "out", progress=Silent())
    assert done.columns == package.prediction_columns
    assert done.rows == pl.read_parquet(done.folder / "*.parquet").height == 5


def test_mistakes_about_files(package: Package, tmp_path: Path) -> None:
    source = tmp_path / "a.parquet"
    ROWS.write_parquet(source)
    out = tmp_path / "out"

    def predict(**arguments: Any) -> None:
        given = {"inputs": str(source), "output": out, "progress": Silent(), **arguments}
        predict_files(package, given.pop("inputs"), given.pop("output"), **given)

    with pytest.raises(UserError, match="there is no file"):
        predict(inputs=str(tmp_path / "*.csv"))
    with pytest.raises(UserError, match="there is no column nope to keep"):
        predict(extra_keys=["nope"])
    ROWS.with_columns(click=1).write_parquet(tmp_path / "clash.parquet")
    with pytest.raises(UserError, match="column click is called like a prediction"):
        predict(inputs=str(tmp_path / "clash.parquet"), extra_keys=["click"])
    pl.DataFrame({"other": [1]}).write_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match="none of the columns that the model reads"):
        predict(inputs=str(tmp_path / "other.parquet"))
    pl.DataFrame({"age": [[1]]}).write_parquet(tmp_path / "wrong.parquet")
    with pytest.raises(UserError, match=r"wrong\.parquet: features\.age"):
        predict(inputs=str(tmp_path / "wrong.parquet"))
    (tmp_path / "ragged.csv").write_text("user_id,age\n1,2\n1,2,3\n")
    with pytest.raises(UserError, match="1 lines do not have the header's fields"):
        predict(inputs=str(tmp_path / "ragged.csv"))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []


def test_what_is_there_is_not_lost(package: Package, tmp_path: Path) -> None:
    source, out = tmp_path / "a.parquet", tmp_path / "out"
    ROWS.write_parquet(source)
    predict_files(package, str(source), out, progress=Silent())
    with pytest.raises(UserError, match="not empty; name another, or --overwrite"):
        predict_files(package, str(source), out, progress=Silent())
    predict_files(package, str(source), out, overwrite=True, progress=Silent())
    assert [path.name for path in out.iterdir()] == ["part-00000.parquet"]
    with pytest.raises(UserError, match=r"the input .* lies in it"):
        predict_files(package, str(out / "part-00000.parquet"), out, overwrite=True, progress=Silent())
    (out / "thesis.doc").write_text("years of work")
    with pytest.raises(UserError, match=r"replaces predictions alone, but thesis\.doc lies there"):
        predict_files(package, str(source), out, overwrite=True, progress=Silent())
