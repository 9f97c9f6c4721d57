"""Tiny logs as someone who has only the README would write them, through the whole preparation."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recmtl.errors import UserError
from recmtl.etl.prepare import DataConfig, Prepared, prepare
from recmtl.manifest import SPLITS
from recmtl.progress import Silent
from recmtl.schema import Feature
from recmtl.tasks import Task

START = datetime(2024, 3, 1, tzinfo=UTC)
CLICK = Task(name="click", kind="binary", label="click")
STARS = Task(name="stars", kind="ordinal", label="rating", levels=(1, 2, 3, 4, 5))


def iso(minutes: float) -> str:
    return f"{START + timedelta(minutes=minutes):%Y-%m-%dT%H:%M:%SZ}"


def csv(path: Path, header: str, rows: list[tuple[object, ...]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def prepared(
    tmp_path: Path, source: dict[str, Any], *tasks: Task, features: list[Feature] | None = None, **data: Any
) -> Prepared:
    config = DataConfig.model_validate({"source": source, "prepared": tmp_path / "prepared", **data})
    return prepare(config, features, tasks or (CLICK,), name="by_hand", progress=Silent())


def encoded(done: Prepared) -> pl.DataFrame:
    """The rows of all splits in source order."""
    shards = [shard.path for split in SPLITS for shard in done.manifest.splits[split].shards]
    frames = [pl.read_parquet(done.folder / path, glob=False) for path in shards]
    return pl.concat(frame.select("row", pl.selectors.starts_with("label:", "observed:")) for frame in frames).sort(
        "row"
    )


def labels(done: Prepared, task: str) -> list[float | None]:
    frame = encoded(done)
    return frame.select(pl.when(f"observed:{task}").then(f"label:{task}"))[f"label:{task}"].to_list()


def masked(done: Prepared, task: str) -> dict[str, int]:
    total: dict[str, int] = {}
    for split in SPLITS:
        for reason, count in done.manifest.splits[split].tasks[task].masked.items():
            total[reason] = total.get(reason, 0) + count
    return total


def joined_rows() -> list[tuple[object, ...]]:
    return [(f"u{n % 7}", f"i{n % 5}", iso(n), n, n % 2, n % 5 + 1) for n in range(100)]


HEADER = "user_id,item_id,time,x,click,rating"


@pytest.mark.parametrize("types", [{}, {"click": "int", "rating": "float"}])
def test_an_unreadable_label_is_masked_for_its_task_alone(tmp_path: Path, types: dict[str, str]) -> None:
    rows = joined_rows()
    rows[3] = (*rows[3][:4], "x", 3)
    rows[5] = (*rows[5][:5], "abc")
    rows[7] = (*rows[7][:5], 9)
    rows[8] = (*rows[8][:4], 2, 2)
    rows[9] = (*rows[9][:4], "", 2)
    source = {"kind": "table", "path": csv(tmp_path / "t.csv", HEADER, rows), "types": types}
    done = prepared(tmp_path, source, CLICK, STARS, features=[Feature(name="x", kind="number")])
    assert not done.manifest.rejected.get("table")
    assert [labels(done, "click")[row] for row in (3, 5, 7, 8, 9)] == [None, 1, 1, None, None]
    assert [labels(done, "stars")[row] for row in (3, 5, 7, 8, 9)] == [2, None, None, 1, 1]
    assert masked(done, "click") == {"invalid": 2, "missing": 1}
    assert masked(done, "stars") == {"invalid": 2}
    click, stars = done.manifest.warnings
    assert click.startswith("tasks.click.label: 2 of the 99 labels in column 'click' (2.02%) are not 0, 1")
    assert stars.startswith("tasks.stars.label: 2 of the 100 labels in column 'rating' (2.00%) are not among")


def test_classes_are_found_beside_a_label_that_is_none(tmp_path: Path) -> None:
    rows = [(*row[:5], f"{n % 2}.0" if n else "abc") for n, row in enumerate(joined_rows())]
    source = {"kind": "table", "path": csv(tmp_path / "t.csv", HEADER, rows)}
    kind = Task(name="kind", kind="multiclass", label="rating", classes=("0", "1"))
    done = prepared(tmp_path, source, kind, features=[Feature(name="x", kind="number")])
    assert labels(done, "kind") == [None, *[n % 2 for n in range(1, 100)]]
    assert masked(done, "kind") == {"invalid": 1}


def test_an_event_without_a_readable_value_gives_an_invalid_label(tmp_path: Path) -> None:
    shown = [("u", f"i{n}", iso(n)) for n in range(40)]
    rated = [("u", f"i{n}", iso(n + 1), "many" if n == 4 else n % 5 + 1) for n in range(30)]
    source = {
        "kind": "event_log",
        "impressions": {"path": csv(tmp_path / "i.csv", "user_id,item_id,time", shown)},
        "events": {
            "rating": {
                "path": csv(tmp_path / "r.csv", "user_id,item_id,time,rating", rated),
                "after": "impression",
            }
        },
    }
    done = prepared(tmp_path, source, STARS, split={"labels_as_of": "log_end"})
    assert labels(done, "stars") == [None if n == 4 or n >= 30 else n % 5 for n in range(40)]
    assert masked(done, "stars") == {"invalid": 1, "missing": 10}
    assert not done.manifest.rejected["rating"]


def test_a_pattern_inside_a_folder_whose_name_looks_like_one(tmp_path: Path) -> None:
    folder = tmp_path / "logs [2024] *"
    csv(folder / "a1.csv", HEADER, joined_rows()[:60])
    csv(folder / "a2.csv", HEADER, joined_rows()[60:])
    done = prepared(tmp_path, {"kind": "table", "path": str(folder / "a*.csv")})
    assert encoded(done).height == 100
    assert sorted(done.manifest.inputs) == [str(folder / "a1.csv"), str(folder / "a2.csv")]


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = csv(tmp_path / "t.csv", HEADER, joined_rows())
    monkeypatch.chdir(tmp_path)
    done = prepared(tmp_path, {"kind": "table", "path": ["t.csv", "./t.csv", path, "*.csv"]})
    assert encoded(done).height == 100
    assert list(done.manifest.inputs) == ["t.csv"]


def test_a_shared_column_name_that_no_file_has_is_a_mistake(tmp_path: Path) -> None:
    shown = csv(tmp_path / "i.csv", "user_id,item_id,time", [("u", f"i{n}", iso(n)) for n in range(9)])
    events = {"click": {"path": csv(tmp_path / "c.csv", "user_id,item_id,time", [])}}
    source = {"kind": "event_log", "impressions": {"path": shown}, "events": events, "columns": {"user": "usr"}}
    with pytest.raises(UserError, match=r"data.source.columns.user: none of the files has a column 'usr'"):
        prepared(tmp_path, source)


def test_a_column_of_two_types_is_named(tmp_path: Path) -> None:
    rows = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "time": [START], "click": [1]})
    rows.write_parquet(tmp_path / "a.parquet")
    rows.with_columns(pl.col("time").dt.replace_time_zone(None)).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(
        UserError, match=r"column 'time' is Datetime\(.*UTC.*\) in .*a.parquet and Datetime\(.*b.parquet"
    ):
        prepared(tmp_path, {"kind": "table", "path": str(tmp_path / "*.parquet")})
