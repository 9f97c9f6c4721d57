"""MovieLens: every layout by hand, and 100K where it is there."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from recmtl.errors import UserError
from recmtl.etl.sources.movielens import MovieLensConfig, inputs, read
from recmtl.progress import Silent

REAL = Path("../shared/data/ml-100k")
WHEN = datetime(1997, 12, 4, 15, 55, 49, tzinfo=UTC)


def write(folder, texts):
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("utf8" if name.endswith("csv") else "latin-1"))
    return folder


def read_in(folder):
    work = folder / "work"
    work.mkdir()
    return read(MovieLensConfig(path=folder), work, Silent())


def test_the_layout_of_100k(tmp_path):
    flags = "|".join("1" if n in (3, 5) else "0" for n in range(19))
    none = "|".join("0" * 19)
    folder = write(
        tmp_path / "100k",
        {
            "u.data": "196\t242\t3\t881250949\n7\t1\t5\t881250950\n",
            "u.item": f'242|Léon "x" (1994)|24-Jan-1995||http://x|{flags}\n1|unknown||||{none}\n',
            "u.user": "196|49|M|writer|05105\n",
        },
    )
    log = read_in(folder)
    rows = log.frame.collect()
    assert rows.rows() == [
        (0, 196, 242, 3.0, WHEN, 'Léon "x" (1994)', 1995, ["Animation", "Comedy"], 49, "M", "writer", "05105"),
        (1, 7, 1, 5.0, WHEN.replace(second=50), "unknown", None, [], None, None, None, None),
    ]
    assert [f.name for f in log.default_features] == [
        *("user_id", "item_id", "genres", "year", "age", "gender", "occupation"),
    ]
    assert log.outcomes == {"rating"}


def test_the_layout_of_1m(tmp_path):
    folder = write(
        tmp_path / "1m",
        {
            "ratings.dat": "1::2::4::881250949\n1::9::4::881250949\nx\n",
            "movies.dat": "2::Léon: The Pro (1994)::Action|Children's\n",
            "users.dat": "1::F::25::4::48067-1234\n",
        },
    )
    log = read_in(folder)
    assert log.frame.collect().rows() == [
        (0, 1, 2, 4.0, WHEN, "Léon: The Pro (1994)", 1994, ["Action", "Children's"], "F", 25, "4", "48067-1234"),
        (1, 1, 9, 4.0, WHEN, None, None, None, "F", 25, "4", "48067-1234"),
    ]
    assert log.rejected["ratings"] == {"wrong number of fields": 1}


def test_the_layout_of_25m_and_latest(tmp_path):
    folder = write(
        tmp_path / "25m",
        {
            "ratings.csv": "userId,movieId,rating,timestamp\n1,2,3.5,881250949\n1,3,0.5,881250949\n",
            "movies.csv": 'movieId,title,genres\n2,"Léon, The Pro (1994)",Action\n3,Odd,(no genres listed)\n',
        },
    )
    log = read_in(folder)
    assert log.frame.collect().rows() == [
        (0, 1, 2, 3.5, WHEN, "Léon, The Pro (1994)", 1994, ["Action"]),
        (1, 1, 3, 0.5, WHEN, "Odd", None, []),
    ]
    assert [f.name for f in log.default_features] == ["user_id", "item_id", "genres", "year"]


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(UserError, match="holds no MovieLens ratings"):
        inputs(MovieLensConfig(path=tmp_path))
    (tmp_path / "u.data").write_text("")
    with pytest.raises(UserError, match=r"u.item is missing beside u.data; unpack the whole archive"):
        inputs(MovieLensConfig(path=tmp_path))


@pytest.mark.skipif(not REAL.is_dir(), reason=f"{REAL} is not there")
def test_the_real_100k(tmp_path):
    log = read(MovieLensConfig(path=REAL), tmp_path, Silent())
    rows = log.frame.collect()
    assert len(rows) == 100_000
    assert rows["user_id"].n_unique() == 943
    assert rows["item_id"].n_unique() == 1_682
    assert rows["rating"].mean() == pytest.approx(3.52986)
    assert not any(log.rejected.values())
    assert rows.null_count().sum_horizontal().item() == 9  # one film without a year
