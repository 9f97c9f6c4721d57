"""Values that cannot be read: missing, counted, kept with their file and row, and too many of them stop the run."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recmtl.errors import UserError
from recmtl.etl.prepare import DataConfig, Prepared, prepare
from recmtl.progress import Silent
from recmtl.schema import Feature
from recmtl.statistics import Statistics
from recmtl.tasks import Task

ROWS = 300
TASKS = [Task(name="click", kind="binary", label="click")]
USER = {"name": "user_id", "kind": "id"}
PRICE = {"name": "price", "kind": "number"}


def frame(**columns: list[Any]) -> pl.DataFrame:
    time = [datetime(2024, 1, 1) + timedelta(minutes=row) for row in range(ROWS)]
    return pl.DataFrame(
        {
            "user_id": [row % 17 for row in range(ROWS)],
            "time": time,
            "click": [row % 3 == 0 for row in range(ROWS)],
            **columns,
        }
    )


def prepared(path: Path, *features: dict[str, Any], data: dict[str, Any] | None = None, **source: Any) -> Prepared:
    config = {
        "source": {"kind": "table", "path": str(path), "item": None, **source},
        "prepared": str(path.parent / "prepared"),
        **(data or {}),
    }
    return prepare(
        DataConfig.model_validate(config),
        [Feature.model_validate(one) for one in features] if features else None,
        TASKS,
        name="x",
        progress=Silent(),
    )


def written(tmp_path: Path, price: list[Any], **rest: list[Any]) -> Path:
    frame(price=price, **rest).write_csv(tmp_path / "rows.csv", separator=";")
    return tmp_path / "rows.csv"


@pytest.mark.parametrize(
    ("form", "advice"),
    [
        ("{:,.2f}", 'data.source.thousands: ","'),
        ("{},50", 'data.source.decimal: ","'),
        ("{} EUR", "without its unit"),
        ("EUR {}", "without its unit"),
        ("n/a", 'data.source.missing: ["n/a"]'),
        ("inf", "a number beyond ±3.4e+38 is no quantity"),
        ("1e300", "a number beyond ±3.4e+38 is no quantity"),
        ("1_2_{}", "as numbers, or read the column as text"),
    ],
)
def test_too_many_stop_the_run_and_the_sentence_names_the_setting(tmp_path: Path, form: str, advice: str) -> None:
    values = [form.format(1000 + row) for row in range(ROWS)]
    with pytest.raises(UserError) as caught:
        prepared(written(tmp_path, values), USER, PRICE, separator=";")
    said = str(caught.value)
    assert f"{ROWS} of {ROWS} values of column 'price' (100.00%) cannot be read as numbers" in said
    assert repr(values[0]) in said
    assert advice.lower() in said.lower()
    assert "data.max_invalid allows 5%" in said
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(
    ("values", "style"),
    [
        (["1,234.50", "12.5"], {"thousands": ","}),
        (["1234,50", "12,5"], {"decimal": ","}),
        (["1.234,50", "12,5"], {"decimal": ",", "thousands": "."}),
    ],
)
def test_the_named_setting_reads_them(tmp_path: Path, values: list[str], style: dict[str, str]) -> None:
    path = written(tmp_path, values * (ROWS // 2))
    found = Statistics.load(prepared(path, USER, PRICE, separator=";", **style).folder / "statistics")
    assert found.numbers["price"].missing == 0
    assert (found.numbers["price"].minimum, found.numbers["price"].maximum) == (12.5, 1234.5)
    assert found.reading is not None
    assert found.reading.columns["price"].style.model_dump(exclude_defaults=True) == style


@pytest.mark.parametrize("text", ["NA", "inf", "cheap"])
def test_a_few_cost_no_row_and_are_kept_with_their_file_and_row(tmp_path: Path, text: str) -> None:
    values = [text if row % 50 == 7 else f"{row}.5" for row in range(ROWS)]
    made = prepared(written(tmp_path, values), USER, PRICE, separator=";")
    assert sum(split.rows for split in made.manifest.splits.values()) == ROWS
    (warning,) = [text for text in made.manifest.warnings if "price" in text]
    assert f"6 of {ROWS} values of column 'price' (2.00%) cannot be read as numbers, such as '{text}'" in warning
    kept = pl.concat([pl.read_parquet(path) for path in (made.folder / "rejected").glob("*.parquet")])
    assert kept["file"].unique().to_list() == [str(tmp_path / "rows.csv")]
    assert kept["file_row"].to_list() == [8 + 50 * place for place in range(6)]
    assert [json.loads(row) for row in kept["row"]] == [{"price": text}] * 6
    assert kept["reason"].unique().to_list() == ["price cannot be read"]


def test_parquet_and_csv_are_judged_alike(tmp_path: Path) -> None:
    values = [float("inf") if row % 50 == 7 else row + 0.5 for row in range(ROWS)]
    frame(price=values).write_parquet(tmp_path / "rows.parquet")
    typed = prepared(tmp_path / "rows.parquet", USER, PRICE)
    (tmp_path / "csv").mkdir()
    text = prepared(written(tmp_path / "csv", values), USER, PRICE, separator=";")
    assert [w for w in typed.manifest.warnings if "price" in w] == [w for w in text.manifest.warnings if "price" in w]
    read = [Statistics.load(made.folder / "statistics").numbers["price"] for made in (typed, text)]
    assert read[0] == read[1]
    assert read[0].missing > 0


def test_a_column_that_nobody_reads_is_not_judged(tmp_path: Path) -> None:
    note = ["see mail" if row % 25 == 0 else "12" for row in range(ROWS)]
    made = prepared(written(tmp_path, [1.5] * ROWS, note=note), USER, PRICE, separator=";")
    assert made.manifest.rejected == {"table": {}}
    assert not any("note" in warning for warning in made.manifest.warnings)
    with pytest.raises(UserError, match=r"features\.note: 12 of 300 values of column 'note'"):
        prepared(
            written(tmp_path, [1.5] * ROWS, note=note),
            USER,
            {"name": "note", "kind": "number"},
            separator=";",
            data={"max_invalid": 0.03},
        )


def test_a_text_column_that_an_id_reads_too_is_judged_as_numbers(tmp_path: Path) -> None:
    code = [f"0{row % 9}" if row % 10 else "x" for row in range(ROWS)]
    both = [{"name": "code", "kind": "id"}, {"name": "size", "kind": "number", "column": "code"}]
    with pytest.raises(UserError, match=r"features\.size: 30 of 300 values of column 'code' \(10\.00%\)"):
        prepared(written(tmp_path, [1] * ROWS, code=code), *both, separator=";")


def test_the_reading_says_how_text_is_written(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        [1.5] * ROWS,
        sku=[f"{row % 20:04d}" for row in range(ROWS)],
        city=["Basel", "none"] * (ROWS // 2),
        signed=["+5", "x"] * (ROWS // 2),
        tags=["1|02"] * ROWS,
    )
    features = [{"name": name, "kind": "id"} for name in ("sku", "city", "signed")]
    made = prepared(
        path, USER, PRICE, *features, {"name": "tags", "kind": "bag", "separator": "|"}, separator=";", missing=["none"]
    )
    reading = Statistics.load(made.folder / "statistics").reading
    assert reading is not None
    assert (reading.source, reading.csv.separator, reading.csv.missing) == ("csv", ";", ("none",))
    assert {name for name, how in reading.columns.items() if how.verbatim} == {"sku", "signed", "tags"}
    assert {name for name, how in reading.columns.items() if how.identifies} == {
        "user_id",
        *(["sku", "city", "signed", "tags"]),
    }
    assert [name for name, how in reading.columns.items() if how.key] == ["user_id"]
    assert reading.columns["city"].missing == ("none",)
    assert reading.columns["price"].type == "float"


def test_the_reading_of_an_event_log_covers_its_tables(tmp_path: Path) -> None:
    shown = frame().drop("click").with_columns(item_id=pl.col("user_id") % 5, slot=pl.lit("01"))
    shown = shown.rename({"user_id": "customer", "time": "shown"})
    shown.with_columns(pl.col("shown").dt.epoch("ms")).write_csv(tmp_path / "views.csv")
    shown.gather_every(4).select("customer", "item_id", time=pl.col("shown") + timedelta(seconds=5)).write_csv(
        tmp_path / "clicks.csv"
    )
    pl.DataFrame({"item_id": range(5), "price": ["1,5", "2", "3,25", "4", "5"], "slot": range(5)}).write_csv(
        tmp_path / "items.csv"
    )
    source = {
        "kind": "event_log",
        "columns": {"user": "customer"},
        "impressions": {"path": str(tmp_path / "views.csv"), "columns": {"time": "shown"}},
        "events": {"click": {"path": str(tmp_path / "clicks.csv")}},
        "items": {"path": str(tmp_path / "items.csv")},
        "decimal": ",",
        "timezone": "Europe/Berlin",
    }
    features = [
        {"name": "user_id", "kind": "id"},
        {"name": "slot", "kind": "id"},
        {"name": "price", "kind": "number"},
        {"name": "item_slot", "kind": "number"},
        {"name": "hour", "kind": "number", "column": "shown"},
    ]
    config = DataConfig.model_validate({"source": source, "prepared": str(tmp_path / "prepared")})
    made = prepare(config, [Feature.model_validate(one) for one in features], TASKS, name="x", progress=Silent())
    found = Statistics.load(made.folder / "statistics")
    assert found.numbers["price"].missing == 0
    assert found.numbers["price"].maximum == 5.0
    assert found.reading is not None
    columns = found.reading.columns
    assert set(columns) == {"customer", "slot", "price", "item_slot", "shown"}
    assert columns["slot"].verbatim
    assert (columns["shown"].epoch, columns["shown"].zone, columns["shown"].local) == ("ms", "UTC", "Europe/Berlin")
    assert columns["item_slot"].type == "integer"
