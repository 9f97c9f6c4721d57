"""Slices by hand: a log whose cuts can be read off, prepared for real."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recmtl.errors import UserError
from recmtl.etl.prepare import DataConfig, Prepared, prepare
from recmtl.etl.slicing import (
    MISSING_VALUE,
    OTHER_VALUES,
    SliceColumn,
    SlicesConfig,
    item_codes,
    key_codes,
    ranking_groups,
    slice_columns,
)
from recmtl.progress import Silent
from recmtl.schema import Feature
from recmtl.statistics import Statistics
from recmtl.tasks import Task

START = datetime(2024, 1, 1, tzinfo=UTC)
ROWS, TRAIN = 240, 200

CLICK = Task(name="click", kind="binary", label="label")
FEATURES = (
    # A vocabulary that keeps next to nobody: it must not decide who is new.
    Feature(name="user", kind="id", column="user_id", min_count=50),
    Feature(name="item", kind="id", column="item_id", min_count=50),
    Feature(name="country", kind="id"),
    Feature(name="price", kind="number"),
    Feature(name="ranked", kind="number", transform="rank"),
    Feature(name="tags", kind="bag"),
)


def rows() -> pl.DataFrame:
    """Hourly rows, five a request; the last ones hold two new users and a new item."""
    random = np.random.default_rng(0)
    number = np.arange(ROWS)
    user = [f"u{n % 7}" for n in number]
    item = [f"i{(n * n) % 11}" for n in number]
    for n in (205, 206, 231):
        user[n] = "newcomer"
    user[239], item[220] = "latecomer", "novelty"
    price = random.integers(0, 1000, ROWS).astype(float)
    return pl.DataFrame(
        {
            "request_id": [f"r{n // 5}" for n in number],
            "user_id": user,
            "item_id": item,
            "time": [START + timedelta(hours=int(n)) for n in number],
            "country": [None if n % 40 == 3 else ("se", "fr", "fr", "it")[n % 4] for n in number],
            "price": [None if n % 50 == 7 else price[n] for n in number],
            "ranked": number.astype(float),
            "stock": [None if n % 50 == 7 else price[n] for n in number],
            "tags": [["a"] * (n % 3) for n in number],
            "note": [f"n{n % 3}" for n in number],
            "level": [n % 5 for n in number],
            "label": (number % 3 == 0).astype(int),
        }
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return build(tmp_path_factory.mktemp("log"), rows())


def build(
    folder: Path, log: pl.DataFrame, keep: tuple[str, ...] = ("note", "level", "stock"), **source: object
) -> Prepared:
    log.write_parquet(folder / "log.parquet")
    data = DataConfig.model_validate(
        {
            "source": {"kind": "table", "path": str(folder / "log.parquet"), **source},
            "split": {"by": "time", "validation": 0.05, "test": 0.11666},
            "keep": keep,
            "rows_per_shard": 9,
        }
    )
    features = [feature for feature in FEATURES if feature.column in log.columns]
    return prepare(data, features, [CLICK], name="cut", folder=folder / "prepared", progress=Silent())


def cut(prepared: Prepared, split: str = "test", **settings: object) -> dict[str, SliceColumn]:
    config = SlicesConfig.model_validate(settings)
    statistics = Statistics.load(prepared.folder / "statistics")
    found = slice_columns(prepared.folder, prepared.manifest, split, config, statistics)
    return {column.name: column for column in found}


def named(column: SliceColumn) -> list[str | None]:
    return [None if code < 0 else column.labels[code] for code in column.codes]


def kept_rows(prepared: Prepared, split: str = "test") -> pl.DataFrame:
    """The split's rows of the log, in order."""
    shards = prepared.manifest.splits[split].raw_shards
    assert len(shards) > 1
    number = pl.concat(pl.read_parquet(prepared.folder / shard.path, columns=["recmtl:row"]) for shard in shards)[
        "recmtl:row"
    ]
    return rows()[number.to_list()]


def test_who_is_new_is_what_train_rows_say_however_rare(prepared: Prepared) -> None:
    there = kept_rows(prepared)
    train = kept_train(prepared)
    found = cut(prepared, columns=[])
    assert named(found["new_user"]) == ["returning" if user in train["user_id"] else "new" for user in there["user_id"]]
    assert {"newcomer", "latecomer"} & set(there["user_id"])
    assert named(found["new_item"]).count("new") == (there["item_id"] == "novelty").sum() == 1
    assert Statistics.load(prepared.folder / "statistics").tables["user"].values == ()


def kept_train(prepared: Prepared) -> pl.DataFrame:
    shards = prepared.manifest.splits["train"].shards
    number = pl.concat(pl.read_parquet(prepared.folder / shard.path, columns=["row"]) for shard in shards)["row"]
    return rows()[number.sort().to_list()]


def test_popularity_bands_hold_like_shares_of_trains_rows(prepared: Prepared) -> None:
    there, train = kept_rows(prepared), kept_train(prepared)
    counts = dict(train["item_id"].value_counts().iter_rows())
    column = cut(prepared, columns=[], popularity=2)["item_popularity"]
    assert column.labels[0] == "0 rows in train"
    assert column.labels[-1] == MISSING_VALUE
    by_band: dict[int, set[int]] = {}
    for item, code in zip(there["item_id"], column.codes, strict=True):
        by_band.setdefault(int(code), set()).add(counts.get(item, 0))
    assert by_band[0] == {0}
    assert max(by_band[1]) < min(by_band[2])
    low = sum(count for count in counts.values() if count <= max(by_band[1]))
    below = sum(count for count in counts.values() if count < max(by_band[1]))
    assert below < sum(counts.values()) / 2 <= low


def test_time_by_day_or_in_equal_parts(prepared: Prepared) -> None:
    there = kept_rows(prepared)
    days = named(cut(prepared, columns=[])["time"])
    assert days == [time.strftime("%Y-%m-%d") for time in there["time"]]
    assert len(set(days)) == 2
    parts = cut(prepared, columns=[], time="parts", time_parts=3)["time"]
    span = (there["time"][-1] - there["time"][0]).total_seconds() + 1e-6
    expected = [int((time - there["time"][0]).total_seconds() / span * 3) for time in there["time"]]
    assert parts.codes.tolist() == expected
    assert parts.labels[0].startswith(there["time"][0].strftime("%Y-%m-%d %H:%M to "))
    assert "time" not in cut(prepared, columns=[], time="none")


def test_values_the_most_frequent_first_then_others_then_missing(prepared: Prepared) -> None:
    there = kept_rows(prepared)
    column = cut(prepared, columns=[{"column": "country", "most_values": 1}])["country"]
    assert column.labels == ("fr", OTHER_VALUES, MISSING_VALUE)
    expected = ["fr" if c == "fr" else MISSING_VALUE if c is None else OTHER_VALUES for c in there["country"]]
    assert named(column) == expected
    whole = cut(prepared, columns=["country"])["country"]
    assert named(whole) == [MISSING_VALUE if value is None else value for value in there["country"]]


def test_whole_numbers_are_in_their_order(prepared: Prepared) -> None:
    column = cut(prepared, columns=[{"column": "level", "by": "values", "most_values": 3}])["level"]
    there = kept_rows(prepared)["level"].value_counts().sort(["count", "level"], descending=[True, False])
    assert column.labels == (*(str(level) for level in sorted(there["level"][:3])), OTHER_VALUES, MISSING_VALUE)
    assert named(column) == [str(v) if str(v) in column.labels else OTHER_VALUES for v in kept_rows(prepared)["level"]]


def test_a_number_with_few_values_has_a_slice_for_each(prepared: Prepared) -> None:
    there = kept_rows(prepared)
    found = cut(prepared, columns=["level", "tags"])
    assert found["level"].labels == ("0", "1", "2", "3", "4", MISSING_VALUE)
    assert named(found["level"]) == [str(level) for level in there["level"]]
    assert named(found["tags"]) == [str(len(tags)) for tags in there["tags"]]


def test_a_number_is_cut_at_this_splits_quantiles_where_trains_are_unknown(prepared: Prepared) -> None:
    there = kept_rows(prepared)
    column = cut(prepared, columns=[{"column": "stock", "quantiles": 4}])["stock"]
    price = there["stock"]
    assert np.array_equal(np.array(named(column)) == MISSING_VALUE, price.is_null().to_numpy())
    sizes = np.bincount(column.codes[price.is_not_null().to_numpy()])
    assert len(sizes) == 4
    assert sizes.max() - sizes.min() <= 1
    for code in range(3):
        assert price.filter(column.codes == code).max() < price.filter(column.codes == code + 1).min()  # type: ignore[operator]
    assert column.labels[0].startswith("< ")
    assert column.labels[3].startswith("≥ ")


def test_a_number_is_cut_at_trains_quantiles_where_they_are_known(prepared: Prepared) -> None:
    train = kept_train(prepared)["ranked"]
    column = cut(prepared, columns=["ranked"])["ranked"]
    assert column.labels[1] == f"{train.quantile(0.25, 'linear'):.3g} to {train.quantile(0.5, 'linear'):.3g}"
    # It is the row's number: all rows of test lie above those of train.
    assert set(named(column)) == {column.labels[3]}


def test_a_number_of_a_feature_is_cut_between_the_deciles_of_its_profile(prepared: Prepared) -> None:
    train = kept_train(prepared)["price"].drop_nulls()
    halves = cut(prepared, columns=[{"column": "price", "quantiles": 2}])["price"]
    middle = float(halves.labels[0].removeprefix("< "))
    assert (train < middle).mean() == pytest.approx(0.5, abs=0.01)
    price = kept_rows(prepared)["price"]
    assert [code == 0 for code in halves.codes] == [p is not None and p < middle for p in price]


def test_ties_make_fewer_parts_and_none_is_empty(tmp_path: Path) -> None:
    log = rows().with_columns(stock=pl.when(pl.int_range(pl.len()) % 4 > 0).then(0.0).otherwise(pl.int_range(pl.len())))
    prepared = build(tmp_path, log.with_columns(pl.col("stock").cast(pl.Float64)))
    column = cut(prepared, columns=[{"column": "stock", "by": "quantiles"}])["stock"]
    assert len(column.labels) == 3  # below a number, from it on, missing
    assert np.bincount(column.codes).min() > 0


def test_what_is_cut_unasked(prepared: Prepared) -> None:
    found = cut(prepared)
    assert list(found) == [
        "new_user", "new_item", "item_popularity", "time", "note", "level", "stock", "country", "price", "ranked",
    ]  # fmt: skip
    assert list(cut(prepared, most_cuts=6)) == ["new_user", "new_item", "item_popularity", "time", "note", "level"]
    for column in found.values():
        assert column.codes.dtype == np.int32
        assert column.codes.shape == (prepared.manifest.splits["test"].rows,)
        assert len(set(column.labels)) == len(column.labels)
        assert column.codes.min() >= 0
        assert column.codes.max() < len(column.labels)


def test_a_wrong_column_names_the_nearest(prepared: Prepared) -> None:
    with pytest.raises(UserError, match=r"evaluation.slices.columns: the test rows keep no column 'contry'; did you"):
        cut(prepared, columns=["contry"])


def test_a_column_called_like_another_cut_is_told_apart(prepared: Prepared) -> None:
    found = cut(prepared, columns=["time"])
    assert list(found)[-2:] == ["time", "column time"]
    assert found["column time"].labels[0].startswith("< 2024-01-")


def test_codes_in_files_are_the_same(prepared: Prepared, tmp_path: Path) -> None:
    statistics = Statistics.load(prepared.folder / "statistics")
    inside = slice_columns(prepared.folder, prepared.manifest, "test", SlicesConfig(), statistics)
    mapped = slice_columns(prepared.folder, prepared.manifest, "test", SlicesConfig(), statistics, work=tmp_path / "w")
    for one, other in zip(inside, mapped, strict=True):
        assert isinstance(other.codes, np.memmap)
        assert one.labels == other.labels
        assert np.array_equal(one.codes, other.codes)


def test_keys_are_equal_where_the_raw_keys_are(prepared: Prepared, tmp_path: Path) -> None:
    there = kept_rows(prepared)
    for which in ("user", "item", "request"):
        codes = key_codes(prepared.folder, prepared.manifest, "test", which)  # type: ignore[arg-type]
        raw = there[f"{which}_id"]
        assert sorted(set(codes.tolist())) == list(range(raw.n_unique()))
        assert len(set(zip(codes.tolist(), raw, strict=True))) == raw.n_unique()
    mapped = key_codes(prepared.folder, prepared.manifest, "test", "request", work=tmp_path)
    assert np.array_equal(mapped, codes)


def test_items_come_with_trains_counts(prepared: Prepared) -> None:
    there, train = kept_rows(prepared), kept_train(prepared)
    items = item_codes(prepared.folder, prepared.manifest, "test")
    assert items is not None
    counts = dict(train["item_id"].value_counts().iter_rows())
    assert items.counts[items.codes].tolist() == [counts.get(item, 0) for item in there["item_id"]]
    assert items.train.tolist() == sorted(counts.values())


def test_rows_are_grouped_by_request_where_requests_hold_several(prepared: Prepared, tmp_path: Path) -> None:
    found = ranking_groups(prepared.folder, prepared.manifest, "test")
    assert found is not None
    assert found[0] == "request"
    assert np.bincount(found[1]).max() == 5
    single = build(tmp_path, rows().with_columns(request_id=pl.int_range(pl.len())))
    alone = ranking_groups(single.folder, single.manifest, "test")
    assert alone is not None
    assert alone[0] == "user"
    assert np.array_equal(alone[1], key_codes(single.folder, single.manifest, "test", "user"))
    asked = ranking_groups(single.folder, single.manifest, "test", "request")
    assert asked is not None
    assert np.bincount(asked[1]).max() == 1


def test_data_without_keys_have_fewer_cuts(tmp_path: Path) -> None:
    log = rows().drop("request_id", "user_id", "item_id")
    bare = build(tmp_path, log, user=None, item=None, request=None)
    assert list(cut(bare, columns=[])) == ["time"]
    assert ranking_groups(bare.folder, bare.manifest, "test") is None
    assert item_codes(bare.folder, bare.manifest, "test") is None
    with pytest.raises(UserError, match="the data name no user"):
        ranking_groups(bare.folder, bare.manifest, "test", "user")
