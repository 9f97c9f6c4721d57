"""Joined tables: keys, outcomes, given splits."""

from datetime import UTC, datetime

import polars as pl
import pytest
from pydantic import ValidationError

from recmtl.errors import UserError
from recmtl.etl.sources.table import SPLIT_COLUMN, TableConfig, read
from recmtl.progress import Silent

ROWS = "user_id,item_id,time,x,play,label\n1,5,2024-01-01,0.5,10,1\n1,5,2024-01-01,0.5,10,1\n2,,2024-01-02,1,3,0\n"


def read_in(tmp_path, **config):
    work = tmp_path / f"work-{len(list(tmp_path.iterdir()))}"
    work.mkdir()
    return read(TableConfig.model_validate(config), work, Silent())


@pytest.fixture
def path(tmp_path):
    (tmp_path / "t.csv").write_text(ROWS)
    return str(tmp_path / "t.csv")


def test_rows_as_they_stand(tmp_path, path):
    log = read_in(tmp_path, path=path, outcomes=["play"])
    rows = log.frame.collect()
    assert rows.columns == ["recmtl:row", "user_id", "item_id", "time", "x", "play", "label"]
    assert rows["time"].to_list() == [datetime(2024, 1, 1, tzinfo=UTC)] * 2
    assert log.outcomes == {"play"}
    assert log.columns.model_dump() == {"user": "user_id", "item": "item_id", "time": "time", "request": None}
    assert log.rejected == {"table": {"item_id is missing": 1}}
    assert (log.read, log.duplicates, log.split_column) == ({"table": 3}, {}, None)


def test_duplicates_stay_unless_asked(tmp_path, path):
    log = read_in(tmp_path, path=path, deduplicate=True)
    assert log.frame.collect()["recmtl:row"].to_list() == [0]
    assert log.duplicates == {"table": 1}


def test_keys_by_other_names_or_not_at_all(tmp_path, path):
    log = read_in(tmp_path, path=path, user="x", item=None, time=None, drop=["play"])
    assert log.columns.model_dump() == {"user": "x", "item": None, "time": None, "request": None}
    rows = log.frame.collect()
    assert len(rows) == 3
    assert rows["x"].dtype == pl.String
    assert rows["time"].to_list()[0] == "2024-01-01"
    with pytest.raises(UserError, match=r"data.source.user: there is no column 'buyer'; there is user_id"):
        read_in(tmp_path, path=path, user="buyer")


def test_splits_that_are_given(tmp_path, path):
    (tmp_path / "test.csv").write_text("label,user_id,item_id,time,x,play\nyes,3,4,2024-02-01,2.5,1\n")
    log = read_in(tmp_path, paths={"train": path, "test": str(tmp_path / "test.csv")})
    rows = log.frame.collect()
    assert log.split_column == SPLIT_COLUMN
    assert rows[SPLIT_COLUMN].to_list() == ["train", "train", "test"]
    assert rows["label"].to_list() == ["1", "1", "yes"]
    assert SPLIT_COLUMN in log.outcomes


def test_a_row_in_two_splits_is_no_duplicate(tmp_path, path):
    (tmp_path / "test.csv").write_text(ROWS)
    log = read_in(tmp_path, paths={"train": path, "test": str(tmp_path / "test.csv")}, deduplicate=True)
    assert log.frame.collect()[SPLIT_COLUMN].to_list() == ["train", "test"]


def test_lists_in_parquet_survive(tmp_path):
    frame = pl.DataFrame({"user_id": ["a", "a"], "tags": [["x", "y"], []], "v": [[0.5, 1.0], None]})
    frame.write_parquet(tmp_path / "t.parquet")
    log = read_in(tmp_path, path=str(tmp_path / "t.parquet"), deduplicate=True)
    assert log.frame.drop("recmtl:row").collect().equals(frame)


def test_mistakes(tmp_path, path):
    with pytest.raises(UserError, match=r"data.source.outcomes: there is no column 'plays'"):
        read_in(tmp_path, path=path, outcomes=["plays"])
    with pytest.raises(UserError, match="named for train and for test"):
        read_in(tmp_path, paths={"train": path, "test": path})
    (tmp_path / "u.csv").write_text(ROWS.replace("label", "label,y", 1).replace(",1\n", ",1,1\n"))
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"do not share the column.s. y"):
        read_in(tmp_path, path=[path, str(tmp_path / "u.csv")])
    with pytest.raises(UserError, match="mixed"):
        read_in(tmp_path, path=[path, str(tmp_path / "p.parquet")])
    with pytest.raises(ValidationError, match="one of the two"):
        TableConfig.model_validate({"path": path, "paths": {"train": path, "test": path}})
    with pytest.raises(ValidationError, match="one of the two"):
        TableConfig.model_validate({})


def test_a_damaged_file_is_said(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match="damaged Parquet"):
        read_in(tmp_path, path=str(tmp_path / "t.parquet"))


def test_where_leaves_rows_out(tmp_path, path):
    log = read_in(tmp_path, path=path, where="x < 0.7 and time < '2024-01-02'", drop=["x"])
    rows = log.frame.collect()
    assert rows["user_id"].to_list() == [1, 1]
    assert "x" not in rows.columns
    # The row without an item is a bad row, condition or not.
    assert (log.filtered, log.rejected) == ({}, {"table": {"item_id is missing": 1}})
    log = read_in(tmp_path, path=path, where="play > 10", item=None)
    assert (log.frame.collect()["label"].to_list(), log.filtered, log.read) == ([], {"table": 3}, {"table": 3})
    with pytest.raises(UserError, match=r"data.source.where .*no column 'plays'; did you mean 'play'"):
        read_in(tmp_path, path=path, where="plays > 10")
    with pytest.raises(ValidationError, match="is not allowed"):
        read_in(tmp_path, path=path, where="print(1)")
