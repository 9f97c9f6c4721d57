from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recmtl.errors import RunError
from recmtl.etl.truth import read_truth
from recmtl.manifest import Columns, Manifest, Shard, SplitSummary
from recmtl.schema import Feature
from recmtl.tasks import Task

TRUTH = pl.DataFrame(
    {
        "request_id": ["r1", "r1", "r2", "r2"],
        "user_id": ["u1", "u1", "u2", "u2"],
        "item_id": ["i1", "i2", "i1", "i3"],
        "label:click": [0.1, 0.2, 0.3, 0.4],
        "main:click": [0.15, 0.25, 0.35, 0.45],
    }
)


def prepared(
    folder: Path,
    parts: list[pl.DataFrame],
    *,
    rows: int | None = None,
    columns: Columns | None = None,
    raw: bool = True,
) -> Manifest:
    """A manifest whose test split has these raw rows, in shards that the truth's file lies beside."""
    shards = []
    for number, part in enumerate(parts):
        path = folder / f"raw/test/part-{number:05}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_parquet(path)
        shards.append(Shard(path=str(path.relative_to(folder)), rows=part.height, sha256=""))
    TRUTH.write_parquet(folder / "truth.parquet")
    count = sum(part.height for part in parts) if rows is None else rows
    return Manifest(
        name="shop",
        source="synthetic",
        fingerprint="",
        statistics="",
        features=(Feature(name="item", kind="id"),),
        tasks=(Task(name="click", kind="binary", label="click"),),
        columns=columns or Columns(user="who", item="what", time="time", request="visit"),
        splits={"test": SplitSummary(rows=count, shards=(), raw_shards=tuple(shards) if raw else (), tasks={})},
        truth=str(folder / "truth.parquet"),
    )


def rows(*keys: tuple[str, str, str]) -> pl.DataFrame:
    return pl.DataFrame(list(keys), schema=["visit", "who", "what"], orient="row")


def test_rows_in_the_shards_order(tmp_path: Path) -> None:
    parts = [rows(("r2", "u2", "i3"), ("r1", "u1", "i1")), rows(("r1", "u1", "i2"))]
    truth = read_truth(tmp_path, prepared(tmp_path, parts), "test")
    assert set(truth) == {"label:click", "main:click"}
    np.testing.assert_array_equal(truth["label:click"], [0.4, 0.1, 0.2])
    np.testing.assert_array_equal(truth["main:click"], [0.45, 0.15, 0.25])
    assert truth["label:click"].dtype == np.float64


def test_a_folder_with_a_pattern_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "demo [1]"
    truth = read_truth(folder, prepared(folder, [rows(("r2", "u2", "i3"))]), "test")
    np.testing.assert_array_equal(truth["label:click"], [0.4])


def test_without_a_user_column(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, [rows(("r2", "u2", "i1"))], columns=Columns(item="what", request="visit"))
    np.testing.assert_array_equal(read_truth(tmp_path, manifest, "test")["label:click"], [0.3])


def test_another_source_has_none(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, [rows(("r2", "u2", "i1"))]).model_copy(update={"truth": None})
    assert read_truth(tmp_path, manifest, "test") == {}


def test_empty_split(tmp_path: Path) -> None:
    truth = read_truth(tmp_path, prepared(tmp_path, []), "test")
    assert {name: values.size for name, values in truth.items()} == {"label:click": 0, "main:click": 0}


def test_row_without_truth(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, [rows(("r2", "u2", "i1"), ("r2", "u2", "i2"))])
    with pytest.raises(RunError, match=r"1 of the 2 rows of test have no truth"):
        read_truth(tmp_path, manifest, "test")


def test_fewer_raw_rows_than_the_manifest_says(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="prepare again"):
        read_truth(tmp_path, prepared(tmp_path, [rows(("r2", "u2", "i1"))], rows=2), "test")


def test_split_without_raw_rows(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, [rows(("r2", "u2", "i1"))], raw=False)
    with pytest.raises(RunError, match="keeps no raw rows"):
        read_truth(tmp_path, manifest, "test")
    with pytest.raises(RunError, match="no split 'train'"):
        read_truth(tmp_path, manifest, "train")


def test_no_request_column(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, [rows(("r2", "u2", "i1"))], columns=Columns(user="who", item="what"))
    with pytest.raises(RunError, match="request and item"):
        read_truth(tmp_path, manifest, "test")


def test_truth_is_gone_or_damaged(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, [rows(("r2", "u2", "i1"))])
    (tmp_path / "truth.parquet").write_text("no Parquet")
    with pytest.raises(RunError, match="not the truth"):
        read_truth(tmp_path, manifest, "test")
    (tmp_path / "truth.parquet").unlink()
    with pytest.raises(RunError, match="is gone"):
        read_truth(tmp_path, manifest, "test")


def test_ambiguous_truth(tmp_path: Path) -> None:
    manifest = prepared(tmp_path, [rows(("r2", "u2", "i1"))])
    pl.concat([TRUTH, TRUTH[:1]]).write_parquet(tmp_path / "truth.parquet")
    with pytest.raises(RunError, match="ambiguous"):
        read_truth(tmp_path, manifest, "test")
