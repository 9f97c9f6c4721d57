"""The store of days against one reading of all logs, what late events rebuild, and what a day's dataset holds."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recmtl import durable
from recmtl.errors import RunError, UserError
from recmtl.etl.days import DailyConfig, Updated, bounds, longest_window, prepare_day, update
from recmtl.etl.prepare import DataConfig, Prepared
from recmtl.etl.sources.event_log import EventLogConfig, files_of, read
from recmtl.etl.validate import Uses
from recmtl.manifest import SPLITS, file_hash
from recmtl.progress import Silent
from recmtl.schema import Feature
from recmtl.statistics import NumberStatistics, Statistics
from recmtl.tasks import Task

START = datetime(2024, 3, 1, tzinfo=UTC)
LABELS = frozenset({"click", "purchase", "rating"})
TASKS = (
    Task(name="click", kind="binary", label="click"),
    Task(name="purchase", kind="binary", label="purchase", parent="click"),
    Task(name="rating", kind="ordinal", label="rating", levels=(1, 2, 3, 4, 5)),
)
FEATURES = (
    Feature(name="user", kind="id", column="user_id"),
    Feature(name="item", kind="id", column="item_id"),
    Feature(name="price", kind="number"),
)


def stamp(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def day(number: int) -> date:
    return (START + timedelta(days=number)).date()


def made_up_logs(days: int, per_day: int = 60, seed: int = 0) -> dict[str, list[tuple[float, str]]]:
    """Log → (second, line without time), few keys, so that impressions compete for events across midnight.

    A price is the impression's number, so that rows can be told apart.
    """
    draw = np.random.default_rng(seed)
    logs: dict[str, list[tuple[float, str]]] = {name: [] for name in ("impressions", "clicks", "purchases", "ratings")}
    for serial, second in enumerate(np.sort(draw.uniform(0, days * 86_400, days * per_day))):
        key = f"u{draw.integers(4)},{draw.integers(5)}"
        logs["impressions"].append((second, f"{key},{serial}"))
        if draw.random() < 0.5:
            clicked = second + draw.exponential(900)
            logs["clicks"].append((clicked, key))
            if draw.random() < 0.6:
                bought = clicked + draw.exponential(30_000)
                logs["purchases"].append((bought, key))
                if draw.random() < 0.7:
                    logs["ratings"].append((bought + draw.exponential(40_000), f"{key},{draw.integers(1, 6)}"))
    return {name: sorted(rows) for name, rows in logs.items()}


HEADERS = {"impressions": ",price", "clicks": "", "purchases": "", "ratings": ",rating"}


def write(folder: Path, logs: dict[str, list[tuple[float, str]]], until: float = np.inf) -> None:
    """A file a log and day, by the event's own time."""
    for name, rows in logs.items():
        by_day: dict[date, list[str]] = {}
        for second, line in rows:
            if second < until:
                by_day.setdefault(day(int(second // 86_400)), []).append(f"{stamp(second)},{line}\n")
        for one, lines in by_day.items():
            path = folder / f"{name}-{one}.csv"
            text = f"time,user_id,item_id{HEADERS[name]}\n{''.join(lines)}"
            if not path.exists() or path.read_text() != text:
                path.write_text(text)


def source(folder: Path, **changes: Any) -> EventLogConfig:
    config = {
        "impressions": {"path": str(folder / "impressions-{date}.csv")},
        "events": {
            "click": {"path": str(folder / "clicks-{date}.csv")},
            "purchase": {"path": str(folder / "purchases-{date}.csv"), "window": "1d"},
            "rating": {"path": str(folder / "ratings-{date}.csv"), "window": "1d"},
        },
    }
    return EventLogConfig.model_validate({**config, **changes})


def updated(folder: Path, config: EventLogConfig, **daily: Any) -> Updated:
    return update(config, DailyConfig(**daily), folder / "store", Silent(), uses=Uses(labels=LABELS))


def stored(folder: Path, days: tuple[date, ...]) -> pl.DataFrame:
    """The rows and labels of all days as one frame."""
    parts = []
    for one in days:
        rows = pl.read_parquet(folder / "store" / "days" / str(one) / "rows.parquet").with_row_index("recmtl:row")
        for name in ("click", "purchase", "rating"):
            found = pl.read_parquet(folder / "store" / "days" / str(one) / "labels" / f"{name}.parquet")
            value = pl.col("value") if name == "rating" else pl.lit(1)
            found = found.select(pl.col("recmtl:row").cast(pl.UInt32), value.cast(pl.Float64).alias(name))
            rows = rows.join(found, on="recmtl:row", how="left", maintain_order="left")
        parts.append(rows.drop("recmtl:row"))
    return pl.concat(parts)


def read_whole(folder: Path, config: EventLogConfig) -> pl.DataFrame:
    work = folder / "whole"
    work.mkdir()
    frame = read(config, work, Silent(), uses=Uses(labels=LABELS)).frame.collect()
    positive = [pl.when(pl.col(name) == 1).then(1.0).alias(name) for name in ("click", "purchase")]
    return frame.select("time", "user_id", "item_id", "price", *positive, pl.col("rating").cast(pl.Float64))


@pytest.mark.parametrize("join", ["time", "mixed"])
def test_the_days_are_what_one_reading_of_all_logs_gives(tmp_path: Path, join: str) -> None:
    logs = made_up_logs(9)
    write(tmp_path, logs)
    config = source(tmp_path)
    if join == "mixed":
        # Clicks name their impression, so that an earlier impression may be clicked after a later one, and be what a
        # purchase, which does not, follows.
        for path in tmp_path.glob("impressions-*.csv"):
            frame = pl.read_csv(path).with_columns(impression_id=pl.lit(path.stem) + pl.int_range(pl.len()).cast(str))
            frame.write_csv(path)
        every = pl.concat([pl.read_csv(path) for path in sorted(tmp_path.glob("impressions-*.csv"))])
        for path in tmp_path.glob("clicks-*.csv"):
            clicks = pl.read_csv(path)
            near = every.sample(clicks.height, seed=1, with_replacement=True)["impression_id"]
            clicks.with_columns(impression_id=near).write_csv(path)
        click = {"path": str(tmp_path / "clicks-{date}.csv"), "window": "3d"}
        config = source(tmp_path, events={**source(tmp_path).model_dump(mode="json")["events"], "click": click})
    last = [path for path in tmp_path.glob("*.csv") if path.stem[-10:] >= str(day(6))]
    for path in last:
        path.rename(path.with_suffix(".later"))
    updated(tmp_path, config)
    for path in last:
        path.with_suffix(".later").rename(path)
    found = updated(tmp_path, config)
    assert found.days == tuple(day(number) for number in range(9))
    assert 3 <= len(found.rebuilt) < 9
    whole = read_whole(tmp_path, config)
    assert whole["purchase"].sum() > 10
    assert stored(tmp_path, found.days).select(whole.columns).equals(whole)


def test_an_event_may_be_called_rows(tmp_path: Path) -> None:
    write(tmp_path, made_up_logs(3))
    events = source(tmp_path).model_dump(mode="json")["events"]
    plain = updated(tmp_path, source(tmp_path, events={"click": events["click"]}))
    before = [pl.read_parquet(tmp_path / "store" / "days" / str(one) / "rows.parquet") for one in plain.days]
    config = source(tmp_path, events={"rows": {**events["click"], "after": "impression", "window": "30m"}})
    days = update(config, DailyConfig(), tmp_path / "store-2", Silent(), uses=Uses(labels={"rows"})).days
    for one, rows in zip(days, before, strict=True):
        folder = tmp_path / "store-2" / "days" / str(one)
        assert pl.read_parquet(folder / "rows.parquet").equals(rows)
        clicks = pl.read_parquet(tmp_path / "store" / "days" / str(one) / "labels" / "click.parquet")
        assert pl.read_parquet(folder / "labels" / "rows.parquet").equals(clicks)
        assert clicks.height


def test_nothing_is_read_or_rebuilt_twice_and_growth_changes_what_it_can(tmp_path: Path) -> None:
    logs = made_up_logs(12)
    write(tmp_path, logs, until=8 * 86_400)
    first = updated(tmp_path, source(tmp_path))
    again = updated(tmp_path, source(tmp_path))
    assert (again.rebuilt, again.examined, again.files_read) == ((), (), 0)
    write(tmp_path, logs)
    grown = updated(tmp_path, source(tmp_path))
    assert set(grown.days) - set(first.days) == {day(number) for number in range(8, 12)}
    # Windows are open for 2 days and half an hour: no day before the 6th can have changed.
    assert set(grown.rebuilt) >= {day(number) for number in range(8, 12)}
    assert min(grown.rebuilt) >= day(5)
    new = [path for path in tmp_path.glob("*.csv") if path.stem[-10:] >= str(day(8))]
    assert grown.files_read == len(new) >= 4 * 4
    assert (
        stored(tmp_path, grown.days)
        .select("click", "purchase", "rating")
        .equals(read_whole(tmp_path, source(tmp_path)).select("click", "purchase", "rating"))
    )


def test_a_late_event_changes_the_day_of_its_impression_alone(tmp_path: Path) -> None:
    logs = made_up_logs(10)
    write(tmp_path, logs)
    updated(tmp_path, source(tmp_path))
    before = {path: path.read_bytes() for path in (tmp_path / "store" / "days").rglob("*.parquet")}
    second = next(s for s, line in logs["impressions"] if s > 4.2 * 86_400)
    key = next(line for s, line in logs["impressions"] if s == second).rsplit(",", 1)[0]
    # In a file of its own, delivered days later.
    (tmp_path / f"clicks-{day(20)}.csv").write_text(f"time,user_id,item_id\n{stamp(second + 1)},{key}\n")
    late = updated(tmp_path, source(tmp_path))
    assert late.rebuilt == (day(4),)
    assert late.files_read == 1
    changed = {path for path, was in before.items() if path.read_bytes() != was}
    assert {path.parents[1].name for path in changed} == {str(day(4))}
    # An event that no impression is near changes nothing, though days around it are looked at.
    (tmp_path / f"clicks-{day(21)}.csv").write_text(f"time,user_id,item_id\n{stamp(5 * 86_400)},nobody,1\n")
    idle = updated(tmp_path, source(tmp_path))
    assert idle.rebuilt == ()
    assert day(5) in idle.examined


def test_a_file_that_grows_is_cut_anew_but_unchanged_days_stay(tmp_path: Path) -> None:
    logs = made_up_logs(6)
    write(tmp_path, logs)
    one = tmp_path / "all"
    one.mkdir()

    def join(days: int) -> None:
        for name in logs:
            lines = [f"{stamp(s)},{line}\n" for s, line in logs[name] if s < days * 86_400]
            (one / f"{name}.csv").write_text(f"time,user_id,item_id{HEADERS[name]}\n{''.join(lines)}")

    join(5)
    paths = {"click": "clicks", "purchase": "purchases", "rating": "ratings"}
    events = {name: {"path": str(one / f"{log}.csv"), "window": "1d"} for name, log in paths.items()}
    config = source(one, impressions={"path": str(one / "impressions.csv")}, events=events)
    updated(tmp_path, config)
    join(6)
    grown = updated(tmp_path, config)
    assert grown.files_read == 4
    assert day(5) in grown.rebuilt
    assert day(0) not in grown.examined
    assert len(list((tmp_path / "store" / "files" / "impressions").iterdir())) == 1
    # The same event twice, in two files, is one.
    other = one / "more.csv"
    other.write_text((one / "clicks.csv").read_text())
    twice = events | {"click": {"path": [str(one / "clicks.csv"), str(other)], "window": "1d"}}
    assert updated(tmp_path, config.model_copy(update={"events": source(one, events=twice).events})).rebuilt == ()


def test_a_day_begins_where_the_zone_says() -> None:
    begin, end = bounds(date(2024, 3, 31), "Europe/Berlin")
    assert (begin, end) == (datetime(2024, 3, 30, 23, tzinfo=UTC), datetime(2024, 3, 31, 22, tzinfo=UTC))


def prepared(folder: Path, number: int, name: str = "data", **options: Any) -> Prepared:
    daily = {"date": day(number), "history": 5, "holdout": 0.3, "store": folder / "store", **options.pop("daily", {})}
    config = DataConfig(source=source(folder, **options.pop("source", {})), prepared=folder / name)
    given = {"name": "shop", "progress": Silent(), **options}
    return prepare_day(config, FEATURES, TASKS, DailyConfig.model_validate(daily), **given)


def rows_of(found: Prepared, split: str) -> pl.DataFrame:
    """Test and validation with their raw columns beside what is observed."""
    shards, raw = found.manifest.splits[split].shards, found.manifest.splits[split].raw_shards
    encoded = pl.concat([pl.read_parquet(found.folder / shard.path) for shard in shards])
    before = pl.concat([pl.read_parquet(found.folder / shard.path) for shard in raw])
    return pl.concat([encoded.drop("row", "dense"), before], how="horizontal")


def test_train_validation_and_test_of_a_day(tmp_path: Path) -> None:
    write(tmp_path, made_up_logs(10))
    found = prepared(tmp_path, 8)
    manifest = found.manifest
    begin, end = bounds(day(8), "UTC")
    assert manifest.labels_as_of == begin.isoformat()
    assert manifest.split_by == "day"
    assert manifest.observed_until is not None
    until = datetime.fromisoformat(manifest.observed_until)
    assert end - timedelta(hours=1) < until < end  # the day's last impression
    assert manifest.splits["train"].time_range is not None
    first, last = map(datetime.fromisoformat, manifest.splits["train"].time_range)
    assert begin - timedelta(days=5) <= first < last < begin - timedelta(days=1)
    validation = rows_of(found, "validation")
    assert validation["time"].is_between(begin - timedelta(days=1), begin, closed="left").all()
    test = rows_of(found, "test")
    on_the_day = test.filter(pl.col("time") >= begin)
    earlier = test.filter(pl.col("time") < begin)
    assert (
        0
        < earlier.height
        < on_the_day.height
        == pl.read_parquet(tmp_path / "store" / "days" / str(day(8)) / "rows.parquet").height
    )

    # Clicks are known after half an hour, purchases after a day more; a rating when it is given.
    click, purchase = timedelta(minutes=30), timedelta(days=1, minutes=30)
    known_now = {
        "click": ((pl.col("time") + click > begin) & (pl.col("time") + click <= until)),
        "purchase": ((pl.col("time") + purchase > begin) & (pl.col("time") + purchase <= until)),
    }
    test = test.with_columns(own=known_now["click"], purchase_now=known_now["purchase"])
    assert test.select((pl.col("observed:purchase") == pl.col("purchase_now")).all()).item()
    assert test.select((pl.col("observed:click") == (pl.col("own") | pl.col("purchase_now"))).all()).item()
    assert 5 < test["observed:purchase"].sum() < on_the_day.height
    assert test["observed:rating"].sum() > 0
    assert set(test.filter("observed:rating")["rating"].to_list()) <= {1, 2, 3, 4, 5}
    # Whatever is judged of earlier days lies with held-out users, of whose day no row trains or validates.
    held = set(earlier.select("user_id", pl.col("time").dt.date()).rows())
    assert held.isdisjoint(validation.select("user_id", pl.col("time").dt.date()).rows())
    train = pl.concat([pl.read_parquet(found.folder / shard.path) for shard in manifest.splits["train"].shards])
    assert train.height == manifest.splits["train"].rows
    everything = sum(
        pl.read_parquet(tmp_path / "store" / "days" / str(day(number)) / "rows.parquet").height
        for number in range(3, 9)
    )
    used = sum(manifest.splits[split].rows for split in SPLITS)
    assert used < everything  # held-out rows that wait


def trained_on(found: Prepared) -> set[int]:
    """The prices of the rows that train or validate."""
    price = Statistics.load(found.folder / "statistics").numbers["price"]
    shards = [shard for split in ("train", "validation") for shard in found.manifest.splits[split].shards]
    dense = np.concatenate([pl.read_parquet(found.folder / shard.path)["dense"].to_numpy() for shard in shards])
    return set(np.round(dense[:, 0] * price.std + price.mean).astype(int).tolist())


def test_no_row_is_judged_that_a_model_of_that_day_or_before_was_trained_on(tmp_path: Path) -> None:
    write(tmp_path, made_up_logs(12))
    seen: set[int] = set()
    judged: dict[int, set[int]] = {}
    for number in (6, 7, 8, 9, 10):
        found = prepared(tmp_path, number)
        seen |= trained_on(found)
        rows = rows_of(found, "test").filter(pl.any_horizontal("observed:click", "observed:purchase"))
        judged[number] = set(rows["price"].to_list())
        assert len(judged[number]) > 60
        assert judged[number].isdisjoint(seen)
    # Held-out rows train once they have been judged.
    assert len(judged[6] & trained_on(found)) > 50
    earlier = {price for price in judged[6] if price < 6 * 60}
    assert earlier
    assert earlier & set(range(5 * 60, 6 * 60)) <= trained_on(found)


def test_held_out_rows_of_days_before_a_change_are_in_no_split(tmp_path: Path) -> None:
    write(tmp_path, made_up_logs(10))
    every = prepared(tmp_path, 8)
    late = pl.col("time") >= bounds(day(8), "UTC")[0]
    on_the_day, earlier = (rows_of(every, "test").filter(where) for where in (late, ~late))
    assert set(earlier["time"].dt.date()) == {day(7)}
    from_the_7th = prepared(tmp_path, 8, "from-7", daily={"judge_from": day(7)})
    from_the_8th = prepared(tmp_path, 8, "from-8", daily={"judge_from": day(8)})
    assert rows_of(from_the_7th, "test")["price"].to_list() == [*earlier["price"], *on_the_day["price"]]
    assert rows_of(from_the_8th, "test")["price"].to_list() == on_the_day["price"].to_list()
    assert trained_on(every) == trained_on(from_the_8th)


def test_the_longest_window_is_that_of_a_chain_that_a_task_reads(tmp_path: Path) -> None:
    assert longest_window(source(tmp_path), TASKS) == timedelta(days=2, minutes=30)
    assert longest_window(source(tmp_path), TASKS[:2]) == timedelta(days=1, minutes=30)
    assert longest_window(source(tmp_path), TASKS[:1]) == timedelta(minutes=30)


def test_what_happened_later_is_not_in_the_day(tmp_path: Path) -> None:
    logs = made_up_logs(12)
    write(tmp_path, logs, until=9 * 86_400)
    then = prepared(tmp_path, 8, "then")
    write(tmp_path, logs)
    later = prepared(tmp_path, 8, "later")
    for split in SPLITS:
        ours, theirs = (one.manifest.splits[split] for one in (then, later))
        assert [shard.sha256 for shard in ours.shards] == [shard.sha256 for shard in theirs.shards]
        assert [shard.sha256 for shard in ours.raw_shards] == [shard.sha256 for shard in theirs.raw_shards]
    assert then.manifest.fingerprint == later.manifest.fingerprint


def test_a_day_is_built_once_and_again_after_a_late_event_of_its_own(tmp_path: Path) -> None:
    logs = made_up_logs(10)
    write(tmp_path, logs)
    assert prepared(tmp_path, 8).built
    assert not prepared(tmp_path, 8).built
    key = logs["impressions"][4 * 60][1].rsplit(",", 1)[0]
    late = tmp_path / f"clicks-{day(20)}.csv"
    late.write_text(f"time,user_id,item_id\n{stamp(9.9 * 86_400)},{key}\n")
    assert not prepared(tmp_path, 8).built  # the event came after the day
    late.write_text(f"time,user_id,item_id\n{stamp(logs['impressions'][4 * 60][0] + 1)},{key}\n")
    assert prepared(tmp_path, 8).built


def test_without_a_holdout_slow_labels_are_not_judged(tmp_path: Path) -> None:
    write(tmp_path, made_up_logs(10))
    for options in ({"holdout": 0.0}, {"judge_from": day(8)}):
        test = prepared(tmp_path, 8, daily=options).manifest.splits["test"]
        assert test.tasks["click"].observed > 0
        assert test.tasks["purchase"].observed == 0


def test_numbers_keep_the_champions_moments_while_they_fit(tmp_path: Path) -> None:
    write(tmp_path, made_up_logs(10))
    fitted_here = Statistics.load(prepared(tmp_path, 8).folder / "statistics")

    def fitted(mean: float) -> tuple[NumberStatistics, Prepared]:
        """When the champion's had this mean."""
        moments = tmp_path / "moments"
        numbers = {"price": replace(fitted_here.numbers["price"], mean=mean, std=90.0)}
        replace(fitted_here, numbers=numbers).save(moments)
        found = prepared(tmp_path, 8, daily={"moments": moments})
        return Statistics.load(found.folder / "statistics").numbers["price"], found

    kept, found = fitted(300.0)
    assert not any("features.price" in warning for warning in found.manifest.warnings)
    assert (kept.mean, kept.std) == (300.0, 90.0)
    assert kept.count > 100
    anew, found = fitted(4500.0)
    assert anew == fitted_here.numbers["price"]
    assert any("features.price" in warning for warning in found.manifest.warnings)


def test_users_and_items_are_those_of_the_day(tmp_path: Path) -> None:
    write(tmp_path, made_up_logs(10))
    for number in (7, 9):
        lines = [f"u{user},{number * 10 + user}" for user in range(4)]
        (tmp_path / f"users-{day(number)}.csv").write_text("user_id,age\n" + "\n".join(lines) + "\n")
    users = {"users": {"path": str(tmp_path / "users-{date}.csv")}}
    config = source(tmp_path, **users)
    assert [path.name for path in files_of(config, day(8))["users"].values()] == [f"users-{day(7)}.csv"]
    data = DataConfig(source=config, prepared=tmp_path / "data")
    daily = DailyConfig(date=day(8), history=5, store=tmp_path / "store")
    features = (*FEATURES, Feature(name="age", kind="number"))
    found = prepare_day(data, features, TASKS, daily, name="shop", progress=Silent())
    assert set(rows_of(found, "test")["age"]) == {70, 71, 72, 73}
    with pytest.raises(UserError, match="there is no file"):
        files_of(config, day(6))


def test_what_cannot_be(tmp_path: Path) -> None:
    write(tmp_path, made_up_logs(4))
    with pytest.raises(RunError, match=f"no impression of {day(8)} yet"):
        prepared(tmp_path, 8)
    with pytest.raises(UserError, match="no day to train on"):
        prepared(tmp_path, 1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(UserError, match=r"thesis\.txt"):
        prepared(tmp_path, 3, daily={"store": tmp_path / "other"})
    with pytest.raises(ValueError, match="validation"):
        DailyConfig(history=3, validation=3)


def test_conditions_and_negative_quantities_by_day(tmp_path: Path) -> None:
    logs = made_up_logs(4)
    write(tmp_path, logs)
    for path in tmp_path.glob("purchases-*.csv"):  # every other one is a return
        head, *lines = path.read_text().splitlines()
        text = [f"{line},{1 if number % 2 else -1}" for number, line in enumerate(lines)]
        path.write_text("\n".join([f"{head},quantity", *text]) + "\n")

    def days_dataset(**purchase: Any) -> Prepared:
        events = source(tmp_path).model_dump()["events"]
        events["purchase"] |= purchase
        data = DataConfig(source=source(tmp_path, events=events))
        daily = DailyConfig(history=3, date=day(3), store=tmp_path / "store")
        folder = tmp_path / f"data-{len(purchase)}"
        return prepare_day(data, FEATURES, TASKS, daily, name="x", folder=folder, progress=Silent())

    told = days_dataset().manifest
    (warning,) = [text for text in told.warnings if "negative" in text]
    assert "column 'quantity' are negative, such as -1, and their rows count as purchase" in warning
    assert told.filtered == {}
    found = days_dataset(where="quantity > 0").manifest
    assert not any("negative" in text for text in found.warnings)
    assert abs(found.filtered["purchase"]["where"] - found.read["purchase"] / 2) <= 4
    assert found.splits["train"].tasks["purchase"].positives < told.splits["train"].tasks["purchase"].positives


class Told(Silent):
    """Keeps what was warned of."""

    def __init__(self) -> None:
        super().__init__()
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_damaged_rows_and_labels_of_a_day_are_made_again(tmp_path: Path, damage: Any) -> None:
    write(tmp_path, made_up_logs(9))
    first = prepared(tmp_path, 6)
    days = tmp_path / "store" / "days"
    before = {path: file_hash(path) for path in sorted(days.rglob("*.parquet"))}
    damage(days / str(day(5)) / "rows.parquet")
    damage(days / str(day(4)) / "labels" / "purchase.parquet")
    told = Told()
    again = prepared(tmp_path, 6, name="again", progress=told)
    assert [text for text in told.warned if f"damaged, and made again: {day(4)}, {day(5)}" in text]
    assert {path: file_hash(path) for path in before} == before
    assert again.manifest.splits == first.manifest.splits


def test_a_damaged_file_of_a_log_is_read_again_before_a_day_is_made_of_it(tmp_path: Path) -> None:
    logs = made_up_logs(6)
    write(tmp_path, logs)
    updated(tmp_path, source(tmp_path))
    (cut,) = (tmp_path / "store" / "files" / "impressions").glob(f"*/{day(3)}.parquet")
    flip(cut)
    second, line = logs["impressions"][3 * 60 + 5]
    logs["clicks"].append((second + 60, line.rpartition(",")[0]))
    logs["clicks"].sort()
    write(tmp_path, logs)
    told = Told()
    found = update(source(tmp_path), DailyConfig(), tmp_path / "store", told, uses=Uses(labels=LABELS))
    assert any("what was read of impressions is damaged; reading it again" in text for text in told.warned)
    whole = read_whole(tmp_path, source(tmp_path))
    assert stored(tmp_path, found.days).select(whole.columns).equals(whole)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"recipe": "", "files": {}, "days": {}}'])
def test_a_damaged_store_is_read_anew(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, made_up_logs(4))
    first = updated(tmp_path, source(tmp_path))
    before = stored(tmp_path, first.days)
    (tmp_path / "store" / "store.json").write_bytes(content)
    told = Told()
    again = update(source(tmp_path), DailyConfig(), tmp_path / "store", told, uses=Uses(labels=LABELS))
    assert any("store.json: damaged" in text for text in told.warned)
    assert again.rebuilt == first.days
    assert stored(tmp_path, again.days).equals(before)


@pytest.mark.parametrize("every", [37, pytest.param(7, marks=pytest.mark.slow)])
def test_after_a_kill_at_any_operation_the_days_are_the_same(
    tmp_path: Path, kill_at_each: Callable[..., int], every: int
) -> None:
    write(tmp_path, made_up_logs(2, per_day=20))
    days = updated(tmp_path, source(tmp_path)).days
    whole = stored(tmp_path, days)
    durable.remove(tmp_path / "store")

    def look() -> None:
        assert updated(tmp_path, source(tmp_path)).days == days
        assert stored(tmp_path, days).equals(whole)
        hidden = [path.name for path in (tmp_path / "store").rglob(".*") if path.name != ".lock"]
        assert hidden == []
        durable.remove(tmp_path / "store")

    kill_at_each(lambda: updated(tmp_path, source(tmp_path)), look, every)
