"""Drift through prepared data: counted by hand, against scikit-learn-free formulas, nothing where nothing changed."""

import json
import math
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recmtl.errors import RunError
from recmtl.etl.drift import TOP_VALUES, fit_profiles, look_again
from recmtl.etl.prepare import DataConfig, Prepared, prepare
from recmtl.evaluation.drift import DriftConfig, data_card, drift, drift_note, stability
from recmtl.findings import Drift, FeatureDrift
from recmtl.progress import Silent
from recmtl.schema import Feature, Managed
from recmtl.statistics import Profile, Statistics
from recmtl.tasks import Task, Tasks

START = datetime(2024, 1, 1, tzinfo=UTC)
TASKS = (
    Task(name="click", kind="binary", label="click"),
    Task(name="buy", kind="binary", label="buy", parent="click"),
    Task.model_validate({"name": "stars", "kind": "ordinal", "label": "stars", "levels": [1, 2, 3]}),
)
FEATURES = (
    Feature(name="user", kind="id", min_count=2),
    Feature(name="hashed", kind="id", column="item", hash_buckets=50),
    Feature(name="managed", kind="id", column="item", managed=Managed(rows=10)),
    Feature(name="tags", kind="bag", separator=",", max_length=2),
    Feature(name="genres", kind="weighted_bag", column="tags", separator=","),
    Feature(name="price", kind="number", transform="log1p"),
    Feature(name="rank", kind="number", column="price", transform="rank"),
    Feature(name="level", kind="number"),
    Feature(name="content", kind="vector", dim=2),
)


def rows(count: int, seed: int, *, dear: float = 0.0, users: int = 40) -> pl.DataFrame:
    draws = np.random.default_rng(seed)
    click = draws.integers(0, 2, count)
    return pl.DataFrame(
        {
            "time": pl.Series(
                [START + timedelta(hours=1000 * seed + n) for n in range(count)], dtype=pl.Datetime("us", "UTC")
            ),
            "user": [f"u{n}" for n in np.minimum(draws.geometric(0.08, count), users)],
            "item": draws.integers(0, 12, count),
            "tags": draws.choice(["a,b,c", "b", ",", None], count).tolist(),
            "price": pl.Series(draws.lognormal(dear, 1, count)).set(pl.Series(draws.random(count) < 0.2), None),
            "level": draws.integers(0, 3, count),
            "content": [[float(x), float(y)] if x > -1 else None for x, y in draws.normal(size=(count, 2))],
            "click": click,
            "buy": click * draws.integers(0, 2, count),
            "stars": draws.integers(1, 4, count),
        }
    )


def prepared(folder: Path, *splits: pl.DataFrame, features: Any = FEATURES, **fields: Any) -> Prepared:
    names = ("train", "validation", "test")
    folder.mkdir(exist_ok=True)
    for name, frame in zip(names, splits, strict=True):
        frame.write_parquet(folder / f"{name}.parquet")
    source = {"kind": "table", "paths": {name: str(folder / f"{name}.parquet") for name in names}, "user": "user"}
    data = DataConfig.model_validate({"source": source, "rows_per_shard": 150, **fields})
    return prepare(data, features, TASKS, name="shop", folder=folder / "prepared", progress=Silent())


def statistics(data: Prepared) -> Statistics:
    return Statistics.load(data.folder / "statistics")


def drifted(data: Prepared, champion: Prepared, split: str = "test", **config: Any) -> Drift:
    return drift(
        data.folder,
        data.manifest,
        split,
        champion.manifest.schema_,
        statistics(champion),
        champion.manifest.tasks_,
        against="champion",
        config=DriftConfig(**config),
    )


def by_feature(found: Drift) -> dict[str, FeatureDrift]:
    return {row.feature: row for row in found.features}


@pytest.fixture(scope="module")
def champion(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepared(tmp_path_factory.mktemp("champion") / "data", rows(600, 0), rows(200, 1), rows(210, 2))


def test_a_profile_is_what_a_loop_over_the_train_rows_counts(champion: Prepared) -> None:
    train = rows(600, 0)
    profiles = statistics(champion).profiles
    assert list(profiles) == [feature.name for feature in FEATURES]
    users = Counter(train["user"].to_list())
    kept = {user: count for user, count in users.items() if count >= 2}
    top = sorted(kept.items(), key=lambda pair: (-pair[1], pair[0]))[:TOP_VALUES]
    user = profiles["user"]
    assert user.values == tuple(range(2, 2 + TOP_VALUES)), "the table's rows, by falling count"
    assert user.counts == (*(count for _, count in top), sum(kept.values()) - sum(count for _, count in top))
    assert user.unseen == sum(users.values()) - sum(kept.values())
    assert user.missing == 0

    tags = profiles["tags"]  # two of a,b,c are kept; a lone separator is an empty bag
    values = Counter(
        value
        for text in train["tags"]
        if text is not None
        for value in (text.split(",")[:2] if text != "," else [None])
    )
    by_row = {"a": values["a"], "b": values["b"], "empty": values[None]}
    assert sorted(count for count in tags.counts if count) == sorted(by_row.values())
    assert -1 in tags.values, "the empty bag"
    assert tags.missing == train["tags"].null_count()

    level = profiles["level"]
    assert len(level.edges) == 4, "below, and one for each of the three levels"
    assert level.counts == (0, *(int((train["level"] == n).sum()) for n in range(3)), 0)

    present = train["price"].drop_nulls().len()
    for name in ("price", "rank"):
        assert profiles[name].missing == 600 - present
        assert sum(profiles[name].counts) == present
        inside = profiles[name].counts[1:-1]
        assert len(inside) == 10
        assert max(inside) - min(inside) <= 2, "deciles"
    assert profiles["content"].missing == train["content"].null_count()
    assert sum(profiles["hashed"].counts) == sum(profiles["managed"].counts) == 600
    assert profiles["hashed"].unseen == profiles["managed"].unseen == 0


def test_the_number_of_parts_changes_no_profile(champion: Prepared, tmp_path: Path) -> None:
    one = prepared(tmp_path / "one", rows(600, 0), rows(200, 1), rows(210, 2), rows_per_shard=10_000)
    assert statistics(one).profiles == statistics(champion).profiles
    parts = [champion.folder / shard.path for shard in champion.manifest.splits["train"].shards]
    assert len(parts) == 4
    assert fit_profiles(parts[::-1], champion.manifest.schema_) == statistics(champion).profiles


def test_the_same_rows_have_not_drifted(champion: Prepared, tmp_path: Path) -> None:
    data = prepared(tmp_path / "same", rows(50, 8), rows(50, 9), rows(600, 0))
    found = drifted(data, champion)
    assert (found.rows_before, found.rows_now, found.split, found.against) == (600, 600, "test", "champion")
    for row in found.features:
        assert row.psi == 0.0, row.feature
        assert row.missing_now == row.missing_before
        assert row.unseen_now == row.unseen_before
    assert {row.feature for row in found.features if row.unseen_before is None} == {"price", "rank", "level", "content"}
    assert by_feature(found)["user"].unseen_before == pytest.approx(statistics(champion).profiles["user"].unseen / 600)
    for label in found.labels:
        assert label.before == pytest.approx(label.now)


def test_psi_by_hand() -> None:
    before = Profile(values=(2, 3), counts=(60, 30, 0), unseen=5, missing=5)
    now = Profile(values=(2, 3), counts=(20, 20, 0), unseen=10, missing=0)
    p = [60.5 / 102.5, 30.5 / 102.5, 0.5 / 102.5, 5.5 / 102.5, 5.5 / 102.5]
    q = [20.5 / 52.5, 20.5 / 52.5, 0.5 / 52.5, 10.5 / 52.5, 0.5 / 52.5]
    expected = sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))
    assert stability(before, now) == pytest.approx(expected)
    assert stability(before, before) == 0
    assert stability(before, replace(now, counts=(0, 0, 0), unseen=0)) is None


def test_dearer_prices_new_users_and_missing_tags_are_seen_where_they_are(champion: Prepared, tmp_path: Path) -> None:
    later = rows(600, 3, dear=2.0).with_columns(
        user=pl.when(pl.int_range(pl.len()) < 300).then(pl.lit("stranger")).otherwise("user"),
        tags=pl.when(pl.int_range(pl.len()) < 400).then(None).otherwise("tags"),
        buy=pl.lit(0),
    )
    found = drifted(prepared(tmp_path / "later", rows(50, 8), rows(50, 9), later), champion)
    row = by_feature(found)
    for name in ("price", "rank", "user", "tags", "genres"):
        assert row[name].psi > 0.25, name
    for name in ("hashed", "managed", "level", "content"):
        assert row[name].psi < 0.1, name
    assert row["user"].unseen_now == pytest.approx(0.5, abs=0.05)
    assert row["tags"].missing_now == pytest.approx(later["tags"].null_count() / 600)
    labels = {label.target: label for label in found.labels}
    assert list(labels) == ["click", "buy", "buy_given_click", "stars"]
    assert (labels["buy"].now, labels["buy_given_click"].now) == (0.0, 0.0)
    assert labels["buy_given_click"].observed_now == later["click"].sum()
    train = rows(600, 0)
    assert labels["buy_given_click"].before == pytest.approx(train["buy"].sum() / train["click"].sum())
    assert labels["stars"].now == pytest.approx(later["stars"].mean())


def test_a_constant_that_moves_is_seen_on_either_side(tmp_path: Path) -> None:
    def constant(value: float) -> Prepared:
        frames = [rows(100, seed).with_columns(level=pl.lit(value)) for seed in range(3)]
        return prepared(tmp_path / str(value), *frames, features=(Feature(name="level", kind="number"),))

    one = constant(1.0)
    assert drifted(one, one).features[0].psi == 0
    for other in (0.999, 1.001):
        assert drifted(constant(other), one).features[0].psi > 1


def test_a_column_that_is_gone_is_missing_everywhere(champion: Prepared, tmp_path: Path) -> None:
    without = [rows(100, seed).drop("price") for seed in range(3)]
    fewer = tuple(feature for feature in FEATURES if feature.column != "price")
    found = drifted(prepared(tmp_path / "gone", *without, features=fewer), champion)
    assert by_feature(found)["price"].missing_now == 1.0
    assert by_feature(found)["price"].psi > 1


def test_a_number_that_was_always_missing_is_known_by_that(tmp_path: Path) -> None:
    features = (Feature(name="level", kind="number"), Feature(name="user", kind="id"))
    nothing = [rows(100, seed).with_columns(level=pl.lit(None, pl.Int64)) for seed in range(3)]
    before = prepared(tmp_path / "nothing", *nothing, features=features)
    assert drifted(before, before).features[0].psi == 0
    now = prepared(tmp_path / "now", *[rows(100, seed) for seed in range(3)], features=features)
    assert drifted(now, before).features[0].psi > 1


def test_many_rows_are_looked_at_evenly(champion: Prepared) -> None:
    seen = look_again(
        champion.folder,
        champion.manifest,
        "test",
        champion.manifest.schema_,
        statistics(champion),
        max_rows=100,
    )
    assert (seen.rows, seen.looked_at) == (210, 70)
    assert sum(seen.profiles["hashed"].counts) == 70
    assert drifted(champion, champion, max_rows=100).rows_now == 210


def test_a_package_of_before_has_labels_alone(champion: Prepared) -> None:
    old = replace(statistics(champion), profiles={})
    found = drift(
        champion.folder,
        champion.manifest,
        "test",
        champion.manifest.schema_,
        old,
        champion.manifest.tasks_,
        against="champion",
    )
    assert [row.psi for row in found.features] == [None] * len(FEATURES)
    assert by_feature(found)["price"].missing_before is None
    assert by_feature(found)["price"].missing_now == pytest.approx(0.2, abs=0.1)
    assert by_feature(found)["user"].unseen_now is not None
    assert len(found.labels) == 4
    assert "champion's package holds no profile" in (drift_note(old, "champion") or "")
    assert drift_note(statistics(champion), "champion") is None


def test_statistics_keep_profiles_and_old_ones_their_fingerprint(champion: Prepared, tmp_path: Path) -> None:
    now = statistics(champion)
    now.save(tmp_path)
    assert Statistics.load(tmp_path) == now
    assert Statistics.load(tmp_path).fingerprint() == now.fingerprint() == champion.manifest.statistics
    written = json.loads((tmp_path / "statistics.json").read_text())
    del written["profiles"]  # as it was written before
    (tmp_path / "statistics.json").write_text(json.dumps(written))
    old = Statistics.load(tmp_path)
    assert old == replace(now, profiles={})
    assert old.fingerprint() == replace(now, profiles={}).fingerprint() != now.fingerprint()


def test_a_task_that_these_data_lack_is_left_out(champion: Prepared) -> None:
    tasks = Tasks([*TASKS, Task(name="share", kind="binary", label="share")])
    found = drift(
        champion.folder,
        champion.manifest,
        "test",
        champion.manifest.schema_,
        statistics(champion),
        tasks,
        against="model",
    )
    assert [label.target for label in found.labels] == ["click", "buy", "buy_given_click", "stars"]


def test_a_damaged_shard_is_said(tmp_path: Path) -> None:
    data = prepared(tmp_path / "data", rows(60, 0), rows(50, 1), rows(50, 2))
    (data.folder / data.manifest.splits["test"].raw_shards[0].path).write_bytes(b"no Parquet")
    with pytest.raises(RunError, match="this shard cannot be read"):
        drifted(data, data)


def test_train_keeps_no_raw_rows(champion: Prepared) -> None:
    with pytest.raises(RunError, match="train keeps no raw rows"):
        drifted(champion, champion, split="train")


def test_the_data_card_is_the_manifest_in_few_words(champion: Prepared) -> None:
    card = data_card(champion.manifest)
    assert (card.name, card.source, card.fingerprint) == ("shop", "table", champion.manifest.fingerprint)
    assert {name: split["rows"] for name, split in card.splits.items()} == {
        "train": 600,
        "validation": 200,
        "test": 210,
    }
    train = rows(600, 0)
    assert card.splits["train"]["tasks"]["click"]["positives"] == train["click"].sum()
    assert card.splits["train"]["time_range"][0] == "2024-01-01T00:00:00+00:00"
    assert card.inputs == champion.manifest.inputs
    assert type(card).model_validate_json(card.model_dump_json()) == card
