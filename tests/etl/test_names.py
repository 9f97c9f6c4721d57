"""A source's columns keep their names and values; a name that recmtl cannot keep apart from its own is refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import polars as pl
import pytest

from recmtl.answering import predictions
from recmtl.errors import UserError
from recmtl.etl.drift import look_again
from recmtl.etl.guards import check_guards
from recmtl.etl.names import PREFIXES
from recmtl.etl.prepare import DataConfig, Prepared, prepare
from recmtl.etl.slicing import SlicesConfig, slice_columns
from recmtl.manifest import SPLITS, Columns
from recmtl.progress import Silent
from recmtl.schema import Feature
from recmtl.scoring.files import _top
from recmtl.statistics import Statistics
from recmtl.tasks import Task, Tasks

ROWS = 120
START = datetime(2024, 1, 1, tzinfo=UTC)
CLICK = Task(name="click", kind="binary", label="click")
COMMON = (
    *("row", "group", "item", "request", "dense", "value", "label", "weight", "score", "rank", "source", "reason"),
    *("file", "file_row", "hash", "known", "day", "split", "user", "bag", "id", "len", "text", "impression", "invalid"),
    *("given", "read", "index", "recmtl_split", "recmtl_part", "__start", "__order", "literal", "ours", "at", "items"),
)
"""Names of real logs, and names that recmtl uses within a query."""


def frame(**columns: Any) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user_id": [row % 7 for row in range(ROWS)],
            "item_id": [row % 5 for row in range(ROWS)],
            "time": [START + timedelta(minutes=row) for row in range(ROWS)],
            "click": [row % 3 % 2 for row in range(ROWS)],
            **columns,
        }
    )


def marked(number: int) -> list[int]:
    """Values that tell a column from every other, and from any row number."""
    return [1000 * (number + 1) + row % 11 for row in range(ROWS)]


def table(folder: Path, rows: pl.DataFrame, features: tuple[Feature, ...], form: str = "parquet") -> Prepared:
    path = folder / f"rows.{form}"
    rows.write_parquet(path) if form == "parquet" else rows.write_csv(path)
    data = DataConfig.model_validate({"source": {"kind": "table", "path": str(path)}})
    return prepare(data, features, (CLICK,), name="x", folder=folder / "prepared", progress=Silent())


def values_of(found: Prepared, feature: str) -> set[str]:
    return set(Statistics.load(found.folder / "statistics").tables[feature].values)


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_common_names_are_columns_like_others(tmp_path: Path, form: str) -> None:
    columns = {name: marked(number) for number, name in enumerate(COMMON)}
    features = tuple(Feature(name=f"f{number}", kind="id", column=name) for number, name in enumerate(COMMON))
    found = table(tmp_path, frame(**columns), features, form)
    for feature in features:
        assert values_of(found, feature.name) <= {str(value) for value in columns[feature.column]}, feature.column
    raw = pl.concat(pl.read_parquet(found.folder / shard.path) for shard in found.manifest.splits["test"].raw_shards)
    encoded = pl.concat(pl.read_parquet(found.folder / shard.path) for shard in found.manifest.splits["test"].shards)
    assert raw["recmtl:row"].to_list() == encoded["row"].to_list() == list(range(102, 120))
    for name, values in columns.items():
        assert raw[name].to_list() == values[102:], name
    assert encoded["group"].n_unique() == 7
    assert encoded["label:click"].to_list() == frame()["click"][102:].to_list()
    # What else reads these rows.
    assert not [guard.text for guard in check_guards(found.folder, found.manifest) if guard.status == "failed"]
    statistics = Statistics.load(found.folder / "statistics")
    assert look_again(found.folder, found.manifest, "test", found.manifest.schema_, statistics).rows == 18


def test_slices_by_a_column_called_row(tmp_path: Path) -> None:
    found = table(tmp_path, frame(row=marked(0), group=marked(1)), (Feature(name="row", kind="id"),))
    assert found.manifest.splits["train"].rows == 84
    statistics = Statistics.load(found.folder / "statistics")
    cuts = slice_columns(found.folder, found.manifest, "test", SlicesConfig(columns=("row",)), statistics)
    assert any("row" in cut.name for cut in cuts)


USED = ("bad:reason", "file:tag", "file:name", "file:row", "split:given", "split:day", "where:kept", "recmtl:row")


@pytest.mark.parametrize("name", [*USED, *(f"{prefix}click" for prefix in PREFIXES)])
@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_a_name_of_recmtls_own_is_refused_or_left_out(tmp_path: Path, name: str, form: str) -> None:
    rows = frame(**{name: marked(0)})
    features = (Feature(name="item_id", kind="id"),)
    with pytest.raises(UserError, match=rf"column '{name}'.*(called like one of recmtl's own|recmtl uses itself)"):
        table(tmp_path, rows, features, form)
    if name in ("file:name", "file:row"):
        return  # where it comes from is noted before columns are left out
    path = tmp_path / f"rows.{form}"
    data = DataConfig.model_validate({"source": {"kind": "table", "path": str(path), "drop": [name]}})
    found = prepare(data, features, (CLICK,), name="x", folder=tmp_path / "prepared", progress=Silent())
    assert sum(found.manifest.splits[split].rows for split in SPLITS) == ROWS


def test_an_event_log_with_common_names(tmp_path: Path) -> None:
    names = ("row", "group", "item", "request", "dense", "value", "reason", "source")
    columns = {name: marked(number) for number, name in enumerate(names)}
    frame(**columns).drop("click").write_csv(tmp_path / "shown.csv")
    clicked = frame(**columns).filter(pl.col("click") == 1).drop("click")
    clicked.with_columns(pl.col("time") + timedelta(seconds=1)).write_csv(tmp_path / "clicks.csv")
    rated = clicked.with_columns(pl.col("time") + timedelta(seconds=2), stars=pl.lit(4))
    rated.write_csv(tmp_path / "stars.csv")
    items = pl.DataFrame({"item_id": range(5), "row": range(50, 55), "kind": list("abcde")})
    items.write_csv(tmp_path / "items.csv")
    events: dict[str, Any] = {
        "click": {"path": str(tmp_path / "clicks.csv")},
        "rating": {"path": str(tmp_path / "stars.csv"), "after": "click", "columns": {"value": "stars"}},
    }
    source = {
        "kind": "event_log",
        "impressions": {"path": str(tmp_path / "shown.csv")},
        "events": events,
        "items": {"path": str(tmp_path / "items.csv")},
        "observed_until": "2024-01-02",
    }
    features = [Feature(name=f"f{number}", kind="id", column=name) for number, name in enumerate(names)]
    features.append(Feature(name="of_item", kind="id", column="item_row"))
    tasks = (CLICK, Task(name="rating", kind="regression", label="rating"))
    data = DataConfig.model_validate({"source": source, "split": {"labels_as_of": "log_end"}})
    found = prepare(data, features, tasks, name="x", folder=tmp_path / "prepared", progress=Silent())
    for feature, values in zip(features, columns.values(), strict=False):
        assert values_of(found, feature.name) <= {str(value) for value in values}, feature.column
    assert values_of(found, "of_item") == {"50", "51", "52", "53", "54"}
    positives = sum(found.manifest.splits[split].tasks["click"].positives or 0 for split in SPLITS)
    assert positives == frame()["click"].sum()
    assert sum(found.manifest.splits[split].tasks["rating"].observed for split in SPLITS) == positives
    # The instant at which a rating became known has a name of its own.
    frame(**{"rating:time": marked(0)}).drop("click").write_csv(tmp_path / "shown.csv")
    with pytest.raises(UserError, match="column 'rating:time' has the name of the times of event rating"):
        prepare(data, features, tasks, name="x", folder=tmp_path / "prepared", progress=Silent())


def test_unreadable_values_of_columns_called_like_the_quarantines(tmp_path: Path) -> None:
    odd = ["x" if row == 7 else str(row % 9) for row in range(ROWS)]
    rows = frame(source=odd, file=odd, file_row=odd, reason=odd, row=odd)
    names = ("source", "file", "file_row", "reason", "row")
    features = tuple(Feature(name=f"f{number}", kind="number", column=name) for number, name in enumerate(names))
    found = table(tmp_path, rows, features, "csv")
    kept = pl.concat(pl.read_parquet(path) for path in (found.folder / "rejected").glob("*.parquet"))
    assert sorted(kept["reason"]) == sorted(f"{name} cannot be read" for name in names)
    assert sorted(kept["row"]) == sorted(f'{{"{name}":"x"}}' for name in names)
    assert set(kept["file_row"]) == {8}


def test_two_predictions_of_one_name_are_refused() -> None:
    mood = Task.model_validate({"name": "mood", "kind": "multiclass", "label": "m", "classes": ["up", "down"]})
    with pytest.raises(UserError, match="mood and mood_up would both write predictions called 'mood_up'"):
        Tasks([mood, Task(name="mood_up", kind="binary", label="u")])
    bought = Task(name="buy", kind="binary", label="b", parent="click")
    with pytest.raises(UserError, match="'buy_given_click'"):
        Tasks([CLICK, bought, Task(name="buy_given_click", kind="binary", label="u")])


def test_predictions_called_like_what_a_top_k_adds() -> None:
    contents = SimpleNamespace(columns=Columns(user="user_id"))
    ranked = SimpleNamespace(contents=contents, predict=lambda *_, **__: pl.DataFrame({"rank": [], "click": []}))
    with pytest.raises(UserError, match="--top-k: a prediction of this model is called 'rank'"):
        _top(ranked, 3, "user", "click", False)  # type: ignore[arg-type]
    for name in ("row", "rank"):
        model = SimpleNamespace(
            contents=contents,
            schema=SimpleNamespace(columns=("a",)),
            predict_pandas=lambda *_, name=name, **__: pd.DataFrame({name: [0.5], "click": [0.5]}),
        )
        with pytest.raises(UserError, match=f"params.top_k: a prediction of the model is called '{name}'"):
            predictions(model, pd.DataFrame({"a": [1]}), {"top_k": 1, "score": "click"})  # type: ignore[arg-type]
