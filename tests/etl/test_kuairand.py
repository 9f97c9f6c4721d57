"""KuaiRand: a made-up slice by hand, and the real one where it is there."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from recmtl.errors import UserError
from recmtl.etl.sources.kuairand import OUTCOMES, KuaiRandConfig, inputs, read
from recmtl.etl.validate import Uses
from recmtl.progress import Silent
from recmtl.reading import Unread

REAL = Path("../shared/data/kuairand_pure")
LOG = """\
user_id,video_id,date,hourmin,time_ms,is_click,is_like,long_view,play_time_ms,duration_ms,is_rand,tab
7,1,20220425,0,1650812741436,1,0,1,500,1000,0,1
7,1,20220425,0,1650812741436,1,0,1,500,1000,0,1
8,2,20220425,0,1650812741437,0,0,0,5,0,0,1
8,9,20220425,0,1650812741438,0,0,0,3000,1000,0,4
8,9,20220425,0,,0,0,0,3000,1000,0,4
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "log_standard_x.csv").write_text(LOG)
    (tmp_path / "log_random_x.csv").write_text(LOG.replace("7,1,", "7,2,"))
    (tmp_path / "user_features_x.csv").write_text("user_id,user_active_degree,onehot_feat4\n7,full_active,1.0\n")
    (tmp_path / "video_features_basic_x.csv").write_text("video_id,author_id,tab,tag\n1,70,a,39\n2,71,b,\n")
    (tmp_path / "video_features_statistic_x.csv").write_text("video_id,show_cnt\n1,99\n")
    return tmp_path


def read_in(folder, **config):
    work = folder / f"work-{len(list(folder.iterdir()))}"
    work.mkdir()
    return read(KuaiRandConfig(path=folder, **config), work, Silent())


def test_a_slice_by_hand(folder):
    log = read_in(folder)
    rows = log.frame.collect()
    assert rows.select("recmtl:row", "user_id", "video_id", "share_watched", "hour", "weekday").rows() == [
        (0, 7, 1, 0.5, 23, 7),
        (1, 8, 2, None, 23, 7),
        (2, 8, 9, 1.0, 23, 7),
    ]
    assert rows["time"].to_list()[0] == datetime(2022, 4, 24, 15, 5, 41, 436000, tzinfo=UTC)
    assert rows.select("user_active_degree", "author_id", "tag", "tab", "video_tab").rows() == [
        ("full_active", 70, "39", 1, "a"),
        (None, 71, None, 1, "b"),
        (None, None, None, 4, None),
    ]
    assert log.duplicates == {"log": 1}
    assert log.rejected["log"] == {"time_ms is missing": 1}
    assert log.outcomes == {"is_click", "is_like", "long_view", "play_time_ms", "share_watched"}
    assert not {f.column for f in log.default_features} & set(OUTCOMES)
    assert {f.column for f in log.default_features} <= set(rows.columns)


def test_other_logs_and_the_statistics_on_request(folder):
    assert len(inputs(KuaiRandConfig(path=folder))) == 3
    log = read_in(folder, logs="log_*.csv", video_statistics=True)
    assert log.read["log"] == 10
    assert log.duplicates == {"log": 4}  # Across logs as within one.
    assert log.frame.collect()["show_cnt"].to_list() == [None, None, None, 99]


def test_the_folder_above_data_will_do(folder):
    (folder / "data").mkdir()
    for path in folder.glob("*.csv"):
        path.rename(folder / "data" / path.name)
    assert len(read_in(folder).frame.collect()) == 3


def test_what_is_missing_is_said_with_where_to_get_it(folder):
    with pytest.raises(UserError, match=r"there is no folder nowhere; it must hold log_standard.*kuairand.com"):
        inputs(KuaiRandConfig(path=Path("nowhere")))
    (folder / "log_standard_x.csv").write_text("user_id,video_id\n")
    with pytest.raises(UserError, match="has no column 'time_ms'; it must hold"):
        read_in(folder)
    (folder / "video_features_basic_x.csv").unlink()
    with pytest.raises(UserError, match=r"there is no video_features_basic\*.csv in"):
        inputs(KuaiRandConfig(path=folder))


def test_a_video_that_comes_twice_is_an_error(folder):
    (folder / "video_features_basic_x.csv").write_text("video_id,author_id\n1,70\n1,71\n")
    with pytest.raises(UserError, match="video_id 1 comes 2 times"):
        read_in(folder)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")
def test_the_real_slice(tmp_path):
    log = read(KuaiRandConfig(path=REAL), tmp_path, Silent())
    assert log.read["log"] == 228_329
    assert log.duplicates == {"log": 5_460}
    assert not any(log.rejected.values())
    assert log.warnings == ()
    rows = log.frame.select(
        "recmtl:row", "is_click", "long_view", "share_watched", "duration_ms", "time", "tag"
    ).collect()
    assert rows["recmtl:row"].to_list() == list(range(222_869))
    assert (rows["share_watched"].is_null() == (rows["duration_ms"] == 0)).all()
    assert rows["share_watched"].is_between(0, 1).sum() == rows["share_watched"].count()
    assert rows["tag"].dtype == pl.String
    assert len(rows.filter(pl.col("long_view") == 1, pl.col("is_click") == 0)) <= 250
    names = log.frame.collect_schema().names()
    assert {c for f in log.default_features for c in f.columns} <= set(names)
    assert set(OUTCOMES) == log.outcomes


def test_an_unreadable_label_costs_its_task_alone(folder):
    rows = "".join(f"7,1,20220424,0,{1650812741436 + n},{n % 2},0,0,500,1000,0,1\n" for n in range(100))
    rows = rows.replace("436,0,0,0,500,", "436,x,0,0,many,", 1)
    (folder / "log_standard_x.csv").write_text(LOG.splitlines()[0] + "\n" + rows)
    work = folder / "work"
    log = read(KuaiRandConfig(path=folder), work, Silent(), uses=Uses(labels={"is_click", "share_watched"}))
    found = log.frame.collect()
    assert found["is_click"].to_list() == ["x", *[str(n % 2) for n in range(1, 100)]]
    assert found["share_watched"].to_list() == [None, *[0.5] * 99]
    strict = read(KuaiRandConfig(path=folder), folder / "strict", Silent())
    assert strict.rejected["log"] == {}
    assert strict.unread["is_click"] == Unread(count=1, given=100, examples=("x",))
    assert strict.frame.collect().height == 100
