"""Each guard fails for real on prepared data, and is allowed with a reason; sound data pass all of them."""

import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from recmtl.errors import RunError, UserError
from recmtl.etl.fit import fit_tables
from recmtl.etl.guards import GUARDS, GuardsConfig, _ranks, _stem, check_guards, require
from recmtl.etl.prepare import DataConfig, Prepared, prepare
from recmtl.findings import Guard
from recmtl.manifest import Manifest
from recmtl.progress import Silent
from recmtl.schema import Feature
from recmtl.statistics import Statistics
from recmtl.tasks import Task

START = datetime(2024, 1, 1, tzinfo=UTC)
CLICK = Task(name="click", kind="binary", label="is_click")
STARS = Task.model_validate({"name": "stars", "kind": "ordinal", "label": "stars", "levels": [1, 2, 3, 4, 5]})
FEATURES = (
    Feature(name="user", kind="id", column="user_id", min_count=3),
    Feature(name="item", kind="id", column="item_id"),
    Feature(name="price", kind="number"),
    Feature(name="tags", kind="bag", separator=","),
    Feature(name="content", kind="vector", dim=3),
)


def rows(first: int, count: int, seed: int = 0) -> pl.DataFrame:
    """Impressions from hour ``first`` on; a click has a cause that no feature tells alone."""
    rng = np.random.default_rng((seed, first))
    price = rng.lognormal(size=count)
    click = rng.random(count) < 0.2 + 0.4 * (price > 1)
    return pl.DataFrame(
        {
            "request_id": [f"r{first + n}" for n in range(count)],
            "user_id": rng.integers(0, 200, count),
            "item_id": rng.integers(0, 50, count),
            "time": pl.Series(
                [START + timedelta(hours=first + n) for n in range(count)], dtype=pl.Datetime("us", "UTC")
            ),
            "price": pl.Series(price).set(pl.Series(rng.random(count) < 0.1), None),
            "tags": rng.choice(["a,b", "b", "", None], count).tolist(),
            "content": rng.normal(size=(count, 3)).tolist(),
            "is_click": click.astype(int),
            "stars": pl.Series(np.where(click, rng.integers(1, 6, count), 0)).replace(0, None),
        }
    )


def prepared(
    folder: Path,
    *splits: pl.DataFrame,
    features: Sequence[Feature] = FEATURES,
    tasks: Sequence[Task] = (CLICK, STARS),
    **fields: Any,
) -> Prepared:
    """A table, or train, validation and test as files of their own."""
    names = ("train", "validation", "test") if len(splits) == 3 else ("path",)
    for name, frame in zip(names, splits, strict=True):
        frame.write_parquet(folder / f"{name}.parquet")
    paths = {name: str(folder / f"{name}.parquet") for name in names}
    source = {"kind": "table", **({"paths": paths} if len(splits) == 3 else paths)}
    data = DataConfig.model_validate({"source": source, "rows_per_shard": 400, **fields})
    return prepare(data, features, tasks, name="shop", folder=folder / "prepared", progress=Silent())


def of(data: Prepared, name: str, **config: Any) -> Guard:
    (found,) = [
        guard for guard in check_guards(data.folder, data.manifest, GuardsConfig(**config)) if guard.name == name
    ]
    return found


def fails(data: Prepared, name: str, text: str) -> None:
    """This guard alone fails, stops the run with its sentence, and lets it pass where it is allowed with a reason."""
    guards = {guard.name: guard for guard in check_guards(data.folder, data.manifest)}
    assert [guard.name for guard in guards.values() if guard.status == "failed"] == [name]
    assert text in guards[name].text
    with pytest.raises(UserError, match=rf"^guard {name}: .*evaluation\.guards\.allow\.{name}$"):
        require(data.folder, data.manifest)
    config = GuardsConfig(allow={name: "we know, and why"})
    allowed = {guard.name: guard for guard in require(data.folder, data.manifest, config)}
    assert (allowed[name].status, allowed[name].reason) == ("allowed", "we know, and why")
    assert allowed[name].text == guards[name].text
    assert all(guard.reason is None for other, guard in allowed.items() if other != name)


SPLITS = (rows(0, 1000), rows(1000, 300), rows(1300, 310))


def test_sound_data_pass_every_guard(tmp_path: Path) -> None:
    data = prepared(tmp_path, *SPLITS)
    guards = require(data.folder, data.manifest)
    assert [guard.name for guard in guards] == list(GUARDS)
    unweighted = {"degenerate_weights": "not applicable"}
    assert {guard.name: guard.status for guard in guards} == {**dict.fromkeys(GUARDS, "passed"), **unweighted}


def test_a_table_split_by_recmtl_passes_every_guard(tmp_path: Path) -> None:
    for by in ("time", "random", "user"):
        data = prepared(tmp_path, rows(0, 2000), split={"by": by})
        statuses = {guard.name: guard.status for guard in require(data.folder, data.manifest)}
        expected = "passed" if by == "time" else "not applicable"
        assert statuses == {
            **dict.fromkeys(GUARDS, "passed"),
            "overlapping_times": expected,
            "degenerate_weights": "not applicable",
        }


@pytest.mark.parametrize("column", ["click", "isClick", "click_time", "CLICK_AT", "has_click_flag"])
def test_a_name_that_only_says_how_a_click_is_told(column: str) -> None:
    assert _stem(column) == _stem("is_click") == "click"


@pytest.mark.parametrize(
    "column", ["clicks_last_week", "user_click_rate", "time", "island", "clickbait", "click_count"]
)
def test_a_name_that_speaks_of_something_else(column: str) -> None:
    assert _stem(column) not in ("click", "stars", "is")


def test_a_feature_called_like_a_label(tmp_path: Path) -> None:
    noise = pl.Series("click_time", np.random.default_rng(1).random(1610))
    starts = (0, 1000, 1300)
    splits = [frame.with_columns(noise[at : at + len(frame)]) for frame, at in zip(SPLITS, starts, strict=True)]
    leaky = Feature(name="x", kind="number", column="click_time")
    data = prepared(tmp_path, *splits, features=(*FEATURES, leaky))
    fails(data, "label_among_features", "feature 'x' reads column 'click_time', called like")


def test_a_feature_called_like_an_outcome_of_the_source(tmp_path: Path) -> None:
    splits = [
        frame.with_columns(pl.col("price").alias("dwell"), pl.col("price").alias("dwell_time")) for frame in SPLITS
    ]
    for name, frame in zip(("train", "validation", "test"), splits, strict=True):
        frame.write_parquet(tmp_path / f"{name}.parquet")
    paths = {name: str(tmp_path / f"{name}.parquet") for name in ("train", "validation", "test")}
    data = DataConfig.model_validate({"source": {"kind": "table", "paths": paths, "outcomes": ["dwell"]}})
    features = (*FEATURES, Feature(name="dwell_time", kind="number"))
    made = prepare(data, features, (CLICK,), name="shop", folder=tmp_path / "prepared", progress=Silent())
    assert "called like outcome 'dwell'" in of(made, "label_among_features").text


def leaks(kind: str) -> tuple[pl.Expr, Feature]:
    """A column that gives a click away in one way or another, with a little noise."""
    noisy = pl.col("is_click") + pl.int_range(pl.len()) % 7 / 10
    return {
        "number": (noisy, Feature(name="x", kind="number")),
        "backwards": (-noisy, Feature(name="x", kind="number")),
        "id": (pl.format("{}-{}", pl.col("is_click"), pl.int_range(pl.len()) % 9), Feature(name="x", kind="id")),
        "missing number": (pl.when(pl.col("is_click") == 1).then(pl.col("item_id")), Feature(name="x", kind="number")),
        "missing id": (pl.when(pl.col("is_click") == 1).then(pl.lit("a")), Feature(name="x", kind="id")),
        "bag": (
            pl.when(pl.col("is_click") == 1).then(pl.lit("a,p")).otherwise(pl.lit("a,q")),
            Feature(name="x", kind="bag", separator=","),
        ),
        "bag size": (
            pl.when(pl.col("is_click") == 1)
            .then(pl.format("{},{}", pl.int_range(pl.len()), pl.int_range(pl.len()) + 10_000))
            .otherwise(pl.int_range(pl.len()).cast(pl.String)),
            Feature(name="x", kind="bag", separator=","),
        ),
        "vector": (
            pl.concat_list(pl.col("price").fill_null(0.0), noisy * 1e-3, pl.lit(5.0)),
            Feature(name="x", kind="vector", dim=3),
        ),
    }[kind]


@pytest.mark.parametrize(
    "kind", ["number", "backwards", "id", "missing number", "missing id", "bag", "bag size", "vector"]
)
def test_a_feature_that_tells_a_label(tmp_path: Path, kind: str) -> None:
    column, feature = leaks(kind)
    splits = [frame.with_columns(column.alias("x")) for frame in SPLITS]
    data = prepared(tmp_path, *splits, features=(*FEATURES, feature))
    fails(data, "feature_tells_label", "'x'")
    assert re.search(r"tells click with AUC (1\.000|0\.99)", of(data, "feature_tells_label").text)


def test_a_rating_is_told_by_rank_and_the_level_decides(tmp_path: Path) -> None:
    column = pl.col("stars").cast(pl.Float64).exp() + pl.int_range(pl.len()) % 2 * 0.1
    splits = [frame.with_columns(column.alias("x")) for frame in SPLITS]
    features = (FEATURES[0], Feature(name="x", kind="number"))
    data = prepared(tmp_path, *splits, features=features)
    found = of(data, "feature_tells_label")
    assert "feature 'x' tells stars with rank correlation 0.9" in found.text
    assert "that 'x' is missing tells click with AUC 1.000" in found.text
    alone = Manifest.model_validate({**data.manifest.model_dump(), "tasks": (STARS,)})
    (kept,) = [
        g for g in check_guards(data.folder, alone, GuardsConfig(level=0.9999)) if g.name == "feature_tells_label"
    ]
    assert kept.status == "passed"


def test_the_strength_is_the_auc(tmp_path: Path) -> None:
    data = prepared(tmp_path, *SPLITS, features=(Feature(name="price", kind="number"),))
    train = SPLITS[0].drop_nulls("price")
    area = roc_auc_score(train["is_click"], train["price"])
    assert f"feature 'price' tells click with AUC {max(area, 1 - area):.3f}" in of(data, "feature_tells_label").text


def test_ids_that_are_seen_once_tell_nothing_on_rows_that_they_were_not_fitted_on(tmp_path: Path) -> None:
    splits = [frame.with_columns(x=pl.col("request_id")) for frame in SPLITS]
    data = prepared(tmp_path, *splits, features=(Feature(name="x", kind="id"),))
    assert "feature 'x' tells click with AUC 0.500" in of(data, "feature_tells_label").text


def test_too_few_labels_are_not_judged(tmp_path: Path) -> None:
    few = [frame.with_columns(is_click=(pl.int_range(pl.len()) < 5).cast(pl.Int64), stars=None) for frame in SPLITS]
    few = [frame.with_columns(x=pl.col("is_click")) for frame in few]
    data = prepared(tmp_path, *few, features=(Feature(name="x", kind="number"),))
    assert of(data, "feature_tells_label").status == "not applicable"


def test_ranks_are_scipys_less_one() -> None:
    from scipy.stats import rankdata

    values = np.random.default_rng(0).integers(0, 9, 100).astype(float)
    np.testing.assert_array_equal(_ranks(values), rankdata(values) - 1)


def test_a_vocabulary_that_was_fitted_on_validation_too(tmp_path: Path) -> None:
    data = prepared(tmp_path, *SPLITS)
    fitted = Statistics.load(data.folder / "statistics")
    every = [tmp_path / f"{name}.parquet" for name in ("train", "validation")]
    replace(fitted, tables=fit_tables(every, data.manifest.schema_)).save(data.folder / "statistics")
    fails(data, "vocabulary_beyond_train", "values in the vocabulary of table 'user' do not stand in train as often")


def test_a_vocabulary_without_a_value_of_train(tmp_path: Path) -> None:
    data = prepared(tmp_path, *SPLITS)
    fitted = Statistics.load(data.folder / "statistics")
    user = replace(fitted.tables["user"], dropped=0)
    replace(fitted, tables={**fitted.tables, "user": user}).save(data.folder / "statistics")
    fails(data, "vocabulary_beyond_train", "are unseen by the vocabulary of table 'user'")


def test_statistics_of_other_rows(tmp_path: Path) -> None:
    data = prepared(tmp_path, *SPLITS)
    fitted = Statistics.load(data.folder / "statistics")
    replace(fitted, train_rows=1300).save(data.folder / "statistics")
    fails(data, "vocabulary_beyond_train", "the statistics are of 1,300 rows, but train has 1,000")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_rows_of_another_split_in_train_are_known_by_their_request(tmp_path: Path, split: str) -> None:
    train, validation, test = SPLITS
    taken = (validation if split == "validation" else test).head(7)
    # Moved in time, so that nothing but the request gives them away.
    taken = taken.with_columns(time=pl.lit(START), price=pl.lit(0.0))
    data = prepared(tmp_path, pl.concat([train, taken.select(train.columns)]), validation, test)
    fails(
        data,
        f"{split}_rows_in_train",
        f"7 of {len(validation if split == 'validation' else test)} {split} rows are in train",
    )


def test_equal_contents_are_repeated_impressions(tmp_path: Path) -> None:
    train, validation, test = SPLITS
    again = validation.with_columns(pl.format("again{}", pl.int_range(pl.len())).alias("request_id"))
    data = prepared(tmp_path, pl.concat([train, again.with_columns(time=pl.lit(START))]), validation, test)
    statuses = {guard.name: guard.status for guard in check_guards(data.folder, data.manifest)}
    assert statuses == {**dict.fromkeys(GUARDS, "passed"), "degenerate_weights": "not applicable"}
    without = [frame.drop("request_id") for frame in (pl.concat([train, again]), validation, test)]
    data = prepared(tmp_path, *without, features=FEATURES)
    assert of(data, "validation_rows_in_train").status == "passed"
    assert "the log has no request ids" in of(data, "validation_rows_in_train").text


def test_requests_that_repeat_tell_no_rows_apart(tmp_path: Path) -> None:
    # A session's id: the same item is shown in it again and again, on either side of a random split.
    sessions = rows(0, 2000).with_columns(request_id=pl.col("user_id") % 3, item_id=pl.lit("i"))
    data = prepared(tmp_path, sessions, split={"by": "random"})
    found = of(data, "validation_rows_in_train")
    assert found.status == "passed"
    assert "they tell none apart" in found.text


def test_a_row_in_both_whose_labels_count_in_one_alone_is_told_and_passes(tmp_path: Path) -> None:
    train, validation, test = SPLITS
    taken = validation.head(5).with_columns(is_click=None, stars=None, time=pl.lit(START)).select(train.columns)
    data = prepared(tmp_path, pl.concat([train, taken], how="vertical_relaxed"), validation, test)
    found = of(data, "validation_rows_in_train")
    assert found.status == "passed"
    assert "5 are, with labels for other tasks" in found.text


def test_source_rows_in_two_splits(tmp_path: Path) -> None:
    data = prepared(tmp_path, *[frame.drop("request_id") for frame in SPLITS])
    shard = data.folder / data.manifest.splits["train"].shards[0].path
    frame = pl.read_parquet(shard)
    frame.with_columns(
        row=pl.when(pl.int_range(pl.len()) < 3).then(pl.int_range(pl.len()) + 1000).otherwise("row")
    ).write_parquet(shard)
    fails(data, "validation_rows_in_train", "3 of 300 validation rows are in train too, known by their row number")


def test_validation_that_is_test(tmp_path: Path) -> None:
    train, validation, _ = SPLITS
    shuffled = validation.sample(fraction=1.0, shuffle=True, seed=1)
    # Requests are numbered anew, as an export does, and the times are none that a split could be by.
    splits = [frame.drop("time") for frame in (train, validation, shuffled)]
    splits[2] = splits[2].with_columns(pl.format("t{}", pl.int_range(pl.len())).alias("request_id"))
    fails(prepared(tmp_path, *splits), "validation_equals_test", "validation and test are the same 300 rows")


def test_validation_of_tests_size_is_another(tmp_path: Path) -> None:
    data = prepared(tmp_path, SPLITS[0], SPLITS[1], rows(1300, 300))
    assert of(data, "validation_equals_test").text == "validation and test have 300 rows each, which differ"
    same = pl.concat([rows(2000, 1)] * 30)
    few = prepared(tmp_path, SPLITS[0], same, same, features=FEATURES)
    assert of(few, "validation_equals_test").status == "not applicable"


def test_times_that_overlap_where_the_split_is_by_time(tmp_path: Path) -> None:
    train, validation, test = SPLITS
    stray = rows(5000, 2).with_columns(time=pl.lit(START + timedelta(hours=1250)))
    fails(
        prepared(tmp_path, pl.concat([train, stray]), validation, test),
        "overlapping_times",
        "train goes on until 2024-02-22T02",
    )
    early = rows(5000, 1).with_columns(time=pl.lit(START + timedelta(hours=3)))
    data = prepared(tmp_path, train, validation, pl.concat([test, early]))
    assert "past the beginning of test" in of(data, "overlapping_times").text
    late = rows(5000, 1).with_columns(time=pl.lit(START + timedelta(hours=1305)))
    data = prepared(tmp_path, train, pl.concat([validation, late]), test)
    assert "validation goes on until" in of(data, "overlapping_times").text


def test_held_out_rows_of_a_days_dataset_may_be_earlier(tmp_path: Path) -> None:
    early = rows(5000, 1).with_columns(time=pl.lit(START + timedelta(hours=3)))
    data = prepared(tmp_path, *SPLITS[:2], pl.concat([SPLITS[2], early]))
    assert of(data, "overlapping_times").status == "failed"
    held_out = replace(data, manifest=data.manifest.model_copy(update={"split_by": "day"}))
    assert of(held_out, "overlapping_times").status == "passed"


def test_a_train_set_from_after_validation_overlaps(tmp_path: Path) -> None:
    data = prepared(tmp_path, rows(3000, 1000), *SPLITS[1:])
    assert of(data, "overlapping_times").status == "failed"


def test_given_splits_that_are_not_by_time_may_overlap(tmp_path: Path) -> None:
    whole = rows(0, 1610).sample(fraction=1.0, shuffle=True, seed=2)
    data = prepared(tmp_path, whole[:1000], whole[1000:1300], whole[1300:])
    assert of(data, "overlapping_times").status == "not applicable"
    data = prepared(tmp_path, *[frame.drop("time") for frame in SPLITS])
    assert of(data, "overlapping_times").text == "the log has no times"


@pytest.mark.parametrize("split", [0, 1, 2])
def test_a_split_without_positives(tmp_path: Path, split: int) -> None:
    splits = list(SPLITS)
    splits[split] = splits[split].with_columns(is_click=pl.lit(0))
    name = ("train", "validation", "test")[split]
    text = f"click has no positive among {len(splits[split]):,} observed rows in {name}"
    fails(prepared(tmp_path, *splits), "task_without_positives", text)


@pytest.mark.parametrize("split", [0, 1, 2])
def test_a_split_without_negatives(tmp_path: Path, split: int) -> None:
    splits = list(SPLITS)
    splits[split] = splits[split].with_columns(is_click=pl.lit(1))
    name = ("train", "validation", "test")[split]
    text = f"click has no negative among {len(splits[split]):,} observed rows in {name}"
    fails(prepared(tmp_path, *splits), "task_without_negatives", text)


def test_a_task_that_always_follows_its_parent(tmp_path: Path) -> None:
    bought = Task(name="purchase", kind="binary", label="bought", parent="click")
    splits = [frame.with_columns(bought=pl.col("is_click")) for frame in SPLITS]
    clicks = splits[0]["is_click"].sum()
    text = f"purchase is 1 on each of the {clicks} train rows on which click is"
    fails(prepared(tmp_path, *splits, tasks=(CLICK, bought)), "task_without_negatives", text)


SHARE = Task(name="share", kind="regression", label="share")
MOOD = Task.model_validate({"name": "mood", "kind": "multiclass", "label": "mood", "classes": ["up", "down"]})


@pytest.mark.parametrize(
    ("task", "value", "told"),
    [
        (SHARE, 0.1, "share has one value, 0.1, on all 1,000 observed train rows"),
        (MOOD, "down", "mood has one value, 'down', on all 1,000 observed train rows"),
        (STARS, 4, "stars has one value, 4, on all 1,000 observed train rows"),
    ],
)
def test_a_constant_label(tmp_path: Path, task: Task, value: object, told: str) -> None:
    splits = [SPLITS[0].with_columns(pl.lit(value).alias(task.label)), *SPLITS[1:]]
    splits[1:] = [frame.with_columns(pl.lit(value).alias(task.label)) for frame in splits[1:]]
    fails(prepared(tmp_path, *splits, tasks=(CLICK, task)), "constant_label", told)


def test_a_regression_label_whose_deviation_float32_cannot_hold(tmp_path: Path) -> None:
    tiny = pl.Series("share", np.where(np.arange(1000) % 2, 1e-45, 0.0))
    splits = [SPLITS[0].with_columns(tiny), *(frame.with_columns(share=pl.lit(0.5)) for frame in SPLITS[1:])]
    data = prepared(tmp_path, *splits, tasks=(CLICK, SHARE))
    fails(data, "constant_label", "share has a standard deviation of 7")


def weighted(weight: pl.Expr, *splits: pl.DataFrame) -> list[pl.DataFrame]:
    return [splits[0].with_columns(w=weight), *(frame.with_columns(w=pl.lit(1.0)) for frame in splits[1:])]


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        (pl.lit(0.0), "column 'w', the weights of click, is 0 on the 1,000 observed rows of train"),
        (pl.lit(3e38), "adds up to 3e+41 on the 1,000 observed rows of train, beyond Float32"),
        (pl.col("is_click").cast(pl.Float64), "is 0 on all 608 negative rows of train"),
        (1.0 - pl.col("is_click"), "is 0 on all 392 positive rows of train"),
    ],
)
def test_weights_that_leave_nothing_to_learn(tmp_path: Path, weight: pl.Expr, told: str) -> None:
    click = CLICK.model_copy(update={"weight_column": "w"})
    fails(prepared(tmp_path, *weighted(weight, *SPLITS), tasks=(click,)), "degenerate_weights", told)


def test_weights_of_another_split_and_sound_ones(tmp_path: Path) -> None:
    click = CLICK.model_copy(update={"weight_column": "w"})
    splits = weighted(pl.col("price").fill_null(0.0), *SPLITS)
    assert of(prepared(tmp_path, *splits, tasks=(click,)), "degenerate_weights").status == "passed"
    splits[2] = splits[2].with_columns(w=pl.lit(0))
    fails(prepared(tmp_path, *splits, tasks=(click,)), "degenerate_weights", "is 0 on the 310 observed rows of test")


def test_labels_that_are_invalid_in_one_split(tmp_path: Path) -> None:
    """A twentieth of the test labels is unreadable and none before: the column means something else by then."""

    def spoilt(frame: pl.DataFrame, every: int, value: int = 7) -> pl.DataFrame:
        return frame.with_columns(
            is_click=pl.when(pl.int_range(pl.len()) % every == 0).then(value).otherwise(pl.col("is_click"))
        )

    data = prepared(tmp_path, *SPLITS[:2], spoilt(SPLITS[2], 20))
    told = "0.00% of the 1,000 labels of click are invalid in train and 5.16% of 310 in test (Fisher's exact test, p = "
    fails(data, "invalid_labels_differ", told)
    # As often everywhere, too few to tell, or missing rather than invalid.
    for splits in (
        [spoilt(frame, 25) for frame in SPLITS],
        [*SPLITS[:2], spoilt(SPLITS[2], 200)],
        [*SPLITS[:2], SPLITS[2].with_columns(is_click=pl.when(pl.col("price") > 1).then("is_click"))],
    ):
        assert of(prepared(tmp_path, *splits), "invalid_labels_differ").status == "passed"


def test_a_task_that_nothing_is_known_of_cannot_be_trained_but_is_only_not_judged(tmp_path: Path) -> None:
    unknown = pl.lit(None, pl.Int64).alias("stars")
    data = prepared(tmp_path, SPLITS[0], SPLITS[1], SPLITS[2].with_columns(unknown))
    found = of(data, "task_without_positives")
    assert found.status == "passed"
    assert "stars has no observed row in test: not judged there" in found.text
    fails(
        prepared(tmp_path, SPLITS[0].with_columns(unknown), *SPLITS[1:]),
        "task_without_positives",
        "stars has no observed",
    )


def test_several_failures_are_told_in_one_error(tmp_path: Path) -> None:
    splits = [frame.with_columns(is_click=pl.lit(0)) for frame in SPLITS]
    splits[0] = pl.concat([splits[0], splits[1].head(3).with_columns(time=pl.lit(START))])
    data = prepared(tmp_path, *splits)
    with pytest.raises(UserError, match=r"^guard validation_rows_in_train: .*\(failed too: task_without_positives\)$"):
        require(data.folder, data.manifest)


def test_a_damaged_shard_is_said(tmp_path: Path) -> None:
    data = prepared(tmp_path, *SPLITS)
    (data.folder / data.manifest.splits["train"].shards[0].path).write_bytes(b"no Parquet")
    with pytest.raises(RunError, match="this shard cannot be read"):
        check_guards(data.folder, data.manifest)


def test_what_is_allowed_is_known_and_has_a_reason() -> None:
    with pytest.raises(ValidationError, match=r"did you mean 'overlapping_times'\?"):
        GuardsConfig(allow={"overlaping_time": "why"})
    with pytest.raises(ValidationError, match="say why"):
        GuardsConfig(allow={"overlapping_times": "  "})
    assert all(field.description for field in GuardsConfig.model_fields.values())
