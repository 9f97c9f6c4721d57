"""Splits: what each rule promises, and that rows decide for themselves."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from pydantic import ValidationError

from recmtl.errors import UserError
from recmtl.etl.split import SplitConfig, SplitPlan, mixed, plan_split
from recmtl.manifest import Columns

START = datetime(2024, 1, 1, tzinfo=UTC)
COLUMNS = Columns(user="user", time="time")


def log(minutes: list[int], **columns: list[object]) -> pl.LazyFrame:
    times = pl.Series([START + timedelta(minutes=m) for m in minutes], dtype=pl.Datetime("us", "UTC"))
    rows = pl.Series(range(len(minutes)), dtype=pl.Int64)
    return pl.LazyFrame({"recmtl:row": rows, "time": times, **columns})


def at(minute: int) -> datetime:
    return START + timedelta(minutes=minute)


def splits(frame: pl.LazyFrame, plan: SplitPlan) -> list[str]:
    return frame.select(plan.split.alias("split")).collect()["split"].to_list()


def test_time_cuts_at_the_instants_nearest_to_the_shares() -> None:
    frame = log([9, 0, 1, 2, 3, 4, 5, 6, 7, 8])
    plan = plan_split(frame, COLUMNS, SplitConfig(by="time", validation=0.2, test=0.2))
    assert splits(frame, plan) == ["test", *["train"] * 6, "validation", "validation", "test"]
    assert plan.validation_start == at(6)


def test_time_leaves_no_instant_in_two_splits() -> None:
    minutes = [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3]
    frame = log(minutes)
    plan = plan_split(frame, COLUMNS, SplitConfig(by="time", validation=0.25, test=0.2))
    found = splits(frame, plan)
    assert len({(minute, split) for minute, split in zip(minutes, found, strict=True)}) == 4
    # 12 rows: validation should begin after 6.6 of them and test after 9.6; instants begin after 0, 3, 8 and 11.
    assert found == ["train"] * 8 + ["validation"] * 3 + ["test"]


def test_time_fills_every_split_whatever_the_shares() -> None:
    frame = log([0, 1, 2])
    for validation, test in ((0.01, 0.01), (0.9, 0.05), (0.05, 0.9)):
        plan = plan_split(frame, COLUMNS, SplitConfig(by="time", validation=validation, test=test))
        assert splits(frame, plan) == ["train", "validation", "test"]


def test_time_needs_three_instants_and_a_time_column() -> None:
    with pytest.raises(UserError, match="only 2 different instants"):
        plan_split(log([0, 1, 1]), COLUMNS, SplitConfig(by="time"))
    with pytest.raises(UserError, match="names no time column"):
        plan_split(log([0, 1, 2]), Columns(), SplitConfig(by="time"))


def test_a_user_is_in_one_split_and_neither_order_nor_type_matters() -> None:
    users = [n % 400 for n in range(2000)]
    frame = log([0] * 2000, user=users)
    config = SplitConfig(by="user", validation=0.2, test=0.3)
    plan = plan_split(frame, COLUMNS, config)
    found = splits(frame, plan)
    by_user = dict(zip(users, found, strict=True))
    assert found == [by_user[user] for user in users]
    counts = pl.Series(list(by_user.values())).value_counts()
    share = {split: count / 400 for split, count in counts.iter_rows()}
    assert share["test"] == pytest.approx(0.3, abs=0.08)
    assert share["validation"] == pytest.approx(0.2, abs=0.08)
    backwards = log([0] * 2000, user=[str(user) for user in users[::-1]])
    assert splits(backwards, plan_split(backwards, COLUMNS, config)) == found[::-1]
    other = plan_split(frame, COLUMNS, config.model_copy(update={"seed": 1}))
    assert splits(frame, other) != found
    assert plan.validation_start is None
    with pytest.raises(UserError, match="names no user column"):
        plan_split(frame, Columns(), config)


def test_random_goes_by_row_and_seed() -> None:
    frame = log([0] * 4000)
    config = SplitConfig(by="random", validation=0.1, test=0.2)
    plan = plan_split(frame, COLUMNS, config)
    found = splits(frame, plan)
    assert found.count("test") / 4000 == pytest.approx(0.2, abs=0.03)
    assert found.count("validation") / 4000 == pytest.approx(0.1, abs=0.03)
    shuffled = frame.collect().sample(fraction=1, shuffle=True, seed=1)
    by_row = dict(zip(shuffled["recmtl:row"].to_list(), splits(shuffled.lazy(), plan), strict=True))
    assert [by_row[row] for row in range(4000)] == found
    assert plan.validation_start is None


@pytest.mark.parametrize("by", ["random", "user"])
def test_small_logs_are_split_by_the_shares_asked_for(by: str) -> None:
    for seed in range(20):
        for rows, validation, test, wanted in (
            (3, 0.1, 0.1, [1, 1, 1]),
            (20, 0.2, 0.3, [10, 4, 6]),
            (10, 0.9, 0.05, [1, 8, 1]),
        ):
            frame = log([0] * rows, user=[f"u{row}" for row in range(rows)])
            config = SplitConfig.model_validate({"by": by, "validation": validation, "test": test, "seed": seed})
            found = splits(frame, plan_split(frame, COLUMNS, config))
            assert [found.count(split) for split in ("train", "validation", "test")] == wanted


def test_mixed_rows_are_distinct_and_their_streams_unrelated() -> None:
    rows = pl.DataFrame({"row": range(10_000)})
    one, two = (rows.select(mixed(pl.col("row"), 7, stream))["row"] for stream in (0, 1))
    assert one.n_unique() == two.n_unique() == 10_000
    assert abs(pl.DataFrame({"a": one, "b": two}).cast(pl.Float64).corr()["a"][1]) < 0.05


def test_given() -> None:
    frame = log([0, 1, 2, 3], part=["train", " Train", "validation", "TEST"])
    plan = plan_split(frame, COLUMNS, SplitConfig(column="part"))
    assert splits(frame, plan) == ["train", "train", "validation", "test"]
    assert (plan.by, plan.validation_start, plan.warnings) == ("given", at(2), ())
    assert splits(frame, plan_split(frame, COLUMNS, SplitConfig(), split_column="part"))[3] == "test"
    assert plan_split(frame, Columns(), SplitConfig(column="part")).validation_start is None


def test_given_that_overlaps_in_time_looks_at_labels_when_the_log_ends() -> None:
    frame = log([0, 3, 2, 4], part=["train", "train", "validation", "test"])
    plan = plan_split(frame, COLUMNS, SplitConfig(column="part"))
    assert plan.validation_start is None
    assert len(plan.warnings) == 1
    assert "data.split.labels_as_of: log_end" in plan.warnings[0]
    assert not plan_split(frame, COLUMNS, SplitConfig(column="part", labels_as_of="log_end")).warnings


def test_given_without_validation_carves_it_from_train_by_time() -> None:
    frame = log([5, 1, 2, 3, 4, 9], part=["train"] * 5 + ["test"])
    plan = plan_split(frame, COLUMNS, SplitConfig(column="part", validation=0.4))
    assert splits(frame, plan) == ["validation", "train", "train", "train", "validation", "test"]
    assert plan.validation_start == at(4)


def test_given_without_validation_and_time_carves_it_at_random() -> None:
    frame = log([0] * 2000, part=["train"] * 1800 + ["test"] * 200)
    for columns in (COLUMNS, Columns()):  # one instant is no time to cut at
        plan = plan_split(frame, columns, SplitConfig(column="part", validation=0.25))
        found = splits(frame, plan)
        assert found[1800:] == ["test"] * 200
        assert found.count("validation") / 1800 == pytest.approx(0.25, abs=0.04)
        assert plan.validation_start is None


def test_given_with_other_words_is_refused() -> None:
    frame = log([0, 1], part=["train", "valid"])
    with pytest.raises(UserError, match="holds 'valid'"):
        plan_split(frame, COLUMNS, SplitConfig(column="part"))
    with pytest.raises(UserError, match="no column 'absent'"):
        plan_split(frame, COLUMNS, SplitConfig(column="absent"))
    with pytest.raises(UserError, match="neither"):
        plan_split(frame, COLUMNS, SplitConfig(by="given"))
    with pytest.raises(UserError, match="files give the split"):
        plan_split(frame, COLUMNS, SplitConfig(by="time"), split_column="part")


def test_auto() -> None:
    frame = log([0, 1, 2], part=["train", "validation", "test"])
    assert plan_split(frame, COLUMNS, SplitConfig(), split_column="part").by == "given"
    assert plan_split(frame, COLUMNS, SplitConfig()).by == "time"
    assert plan_split(frame, Columns(), SplitConfig()).by == "random"


def test_impossible_configs() -> None:
    with pytest.raises(ValidationError, match="leave no rows to train on"):
        SplitConfig(validation=0.5, test=0.5)
    with pytest.raises(ValidationError, match="belongs to `by: given`"):
        SplitConfig(by="time", column="part")
