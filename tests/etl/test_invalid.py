"""Labels that cannot be read: how many are too many, what is said of them, and which setting reads them."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from recmtl.errors import UserError
from recmtl.etl.invalid import setting
from recmtl.etl.prepare import DataConfig, Prepared, prepare
from recmtl.manifest import SPLITS
from recmtl.progress import Silent
from recmtl.schema import Feature
from recmtl.tasks import Task

ROWS = 200
BINARY = {"kind": "binary"}


def label_task(**fields: Any) -> Task:
    return Task.model_validate({"name": "click", "label": "click", **fields})


def prepared(folder: Path, values: list[object], max_invalid: float = 0.05, **task: Any) -> Prepared:
    """Rows of a table whose label column repeats these values."""
    column = [values[row % len(values)] for row in range(ROWS)]
    pl.DataFrame(
        {
            "user_id": [row % 7 for row in range(ROWS)],
            "item_id": [row % 5 for row in range(ROWS)],
            "time": [datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=row) for row in range(ROWS)],
            "click": pl.Series(column, strict=False),
        }
    ).write_parquet(folder / "rows.parquet")
    data = DataConfig.model_validate(
        {"source": {"kind": "table", "path": str(folder / "rows.parquet")}, "max_invalid": max_invalid}
    )
    features = (Feature(name="item_id", kind="id"),)
    return prepare(data, features, (label_task(**task),), name="x", folder=folder / "prepared", progress=Silent())


def positives(found: Prepared) -> tuple[int, int]:
    """Observed and positive rows over all splits."""
    tasks = [found.manifest.splits[split].tasks["click"] for split in SPLITS]
    return sum(task.observed for task in tasks), sum(task.positives or 0 for task in tasks)


@pytest.mark.parametrize(
    ("labels", "task", "told", "named", "right"),
    [
        ([1, 2], BINARY, "'2' (100)", "positive: [2]", (200, 100)),
        ([-1, 1], BINARY, "'-1' (100)", "positive: [1]", (200, 100)),
        ([-1, 0, 1, 1], BINARY, "'-1' (50)", 'positive: "> 0"', (200, 100)),
        ([0, 1, 2, 3, 0], BINARY, "'2' (40), '3' (40)", 'positive: "> 0"', (200, 120)),
        ([1, 2, 3, 4, 5], BINARY, "'2' (40), '3' (40), '4' (40), …", 'positive: ">= 3"', (200, 120)),
        (["no", "yes"], BINARY, "'no' (100), 'yes' (100)", 'labels: {"no": 0, "yes": 1}', (200, 100)),
        (["Yes", "No"], BINARY, "'No' (100), 'Yes' (100)", 'labels: {"No": 0, "Yes": 1}', (200, 100)),
    ],
)
def test_labels_that_are_not_0_1_stop_the_run_and_the_setting_that_is_named_reads_them(
    tmp_path: Path,
    labels: list[object],
    task: dict[str, Any],
    told: str,
    named: str,
    right: tuple[int, int],
) -> None:
    with pytest.raises(UserError) as caught:
        prepared(tmp_path, labels, **task)
    said = str(caught.value)
    assert said.startswith("tasks.click.label: ")
    assert "labels in column 'click'" in said
    assert "are not 0, 1, true or false" in said
    assert told in said
    assert f"tasks.click.{named}" in said
    assert "data.max_invalid" in said
    assert not (tmp_path / "prepared").exists()
    kept = pl.read_parquet(tmp_path / "prepared.rejected" / "labels.parquet")
    assert set(kept["column"]) == {"click"}
    found = prepared(tmp_path, labels, **task, **yaml.safe_load(named))
    assert positives(found) == right
    assert not (tmp_path / "prepared.rejected").exists()
    assert not (found.folder / "rejected").exists()


def test_half_stars_stop_the_run_until_levels_name_them(tmp_path: Path) -> None:
    ordinal = {"kind": "ordinal", "levels": [1, 2, 3, 4, 5]}
    with pytest.raises(UserError, match=r"not among its levels \[1, 2, 3, 4, 5\]: '0.5' \(20\).*levels: \[0.5, 1, 1.5"):
        prepared(tmp_path, [half / 2 for half in range(1, 11)], **ordinal)
    halves = {"kind": "ordinal", "levels": [half / 2 for half in range(1, 11)]}
    assert positives(prepared(tmp_path, [half / 2 for half in range(1, 11)], **halves))[0] == ROWS


def test_a_few_are_masked_warned_of_and_kept(tmp_path: Path) -> None:
    found = prepared(tmp_path, [0, 1] * 12 + [2], **BINARY)  # 4 %
    assert positives(found)[0] == 192
    warned = next(warning for warning in found.manifest.warnings if warning.startswith("tasks.click.label"))
    assert "8 of the 200 labels in column 'click' (4.00%) are not 0, 1, true or false: '2' (8); they are" in warned
    assert 'positive: "> 0"' in warned
    kept = pl.read_parquet(found.folder / "rejected" / "labels.parquet").sort("row")
    assert kept["row"].to_list() == list(range(24, 200, 25))
    assert kept["value"].to_list() == ["2"] * 8
    assert kept["task"].to_list() == ["click"] * 8
    assert '"user_id":3,"item_id":4' in kept["keys"][0]


def test_max_invalid_is_a_share_of_the_given_labels(tmp_path: Path) -> None:
    missing = [None] * 9
    with pytest.raises(UserError, match=r"20 of the 20 labels .* \(100.00%\)"):  # a tenth of the rows
        prepared(tmp_path, [*missing, 7], **BINARY)
    # 1 of 25 given is 4 %: beyond 3.9 %, within 4 %.
    labels = [0, 1] * 12 + [2] + [None] * 25
    with pytest.raises(UserError, match=r"data.max_invalid allows 3.90%"):
        prepared(tmp_path, labels, max_invalid=0.039, **BINARY)
    assert prepared(tmp_path, labels, max_invalid=0.04, **BINARY).built
    assert prepared(tmp_path, [0, 1, 2], max_invalid=1, **BINARY).built


def test_no_word_where_all_can_be_read(tmp_path: Path) -> None:
    assert not prepared(tmp_path, [0, 1, None], **BINARY).manifest.warnings


def counted(*values: str) -> pl.DataFrame:
    return pl.DataFrame({"value": values, "len": [1] * len(values)}, schema_overrides={"len": pl.UInt32})


@pytest.mark.parametrize(
    ("task", "values", "told"),
    [
        ({"kind": "binary"}, ("buy", "return", "look"), 'labels: {"buy": …, "look": …, "return": …}'),
        ({"kind": "binary"}, ("0.2", "0.7", "0.4"), 'positive: ">= 0.4"'),
        ({"kind": "binary", "labels": {"a": 1, "b": 0}}, ("c",), "name them in tasks.click.labels"),
        ({"kind": "multiclass", "classes": ["a", "b"]}, ("a", "c"), 'classes: ["a", "c"]'),
        ({"kind": "multiclass", "classes": ["a", "b"]}, ("1", "2"), 'classes: ["1", "2"]'),
        ({"kind": "ordinal", "levels": [1, 2]}, ("good", 'so "so"'), 'labels: {"good": …, "so \\"so\\"": …}'),
        ({"kind": "regression", "range": [0, 1]}, ("0.5", "30"), "range: [0.5, 30], or leave it out"),
        ({"kind": "ordinal", "levels": [1, 2]}, tuple(str(n) for n in range(500)), "kind: regression"),
    ],
)
def test_the_setting_that_is_suggested(task: dict[str, Any], values: tuple[str, ...], told: str) -> None:
    assert re.search(re.escape(told), setting(label_task(**task), counted(*values)))


def lists(folder: Path, texts: list[str | None], separator: str | None = None) -> Prepared:
    column = [texts[row % len(texts)] for row in range(ROWS)]
    rows = pl.DataFrame(
        {
            "item_id": [row % 5 for row in range(ROWS)],
            "user_id": [row % 7 for row in range(ROWS)],
            "click": [row % 2 for row in range(ROWS)],
            "tags": column,
        }
    )
    rows.write_parquet(folder / "rows.parquet")
    data = DataConfig.model_validate({"source": {"kind": "table", "path": str(folder / "rows.parquet")}})
    features = (Feature(name="labels", kind="bag", column="tags", separator=separator),)
    return prepare(
        data, features, (label_task(kind="binary"),), name="x", folder=folder / "prepared", progress=Silent()
    )


@pytest.mark.parametrize("separator", [None, ","])
def test_lists_that_cannot_be_read_are_counted_kept_and_stop_the_run_where_they_are_many(
    tmp_path: Path, separator: str | None
) -> None:
    found = lists(tmp_path, ["[1, 2]"] * 38 + ["[[1], 2]", None], separator)
    (warning,) = found.manifest.warnings
    assert warning.startswith("features.labels: 5 of 195 values of column 'tags' (2.56%) cannot be read as lists, ")
    assert "such as '[[1], 2]'" in warning
    kept = pl.read_parquet(found.folder / "rejected" / "lists-labels.parquet")
    assert kept["row"].to_list() == ['{"tags":"[[1], 2]"}'] * 5
    with pytest.raises(UserError, match=r"20 of 200 values of column 'tags' \(10.00%\) cannot be read as lists"):
        lists(tmp_path, ["[1, 2]"] * 9 + ["{'a': 1}"], separator)
    assert (tmp_path / "prepared.rejected" / "lists-labels.parquet").is_file()
    assert not lists(tmp_path, ["[1, 2]", "[]", None], separator).manifest.warnings
