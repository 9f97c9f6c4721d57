"""The whole preparation on a small log: what is written, when it is built again, and what a kill leaves behind."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pytest

from recmtl import durable
from recmtl.errors import RunError, UserError
from recmtl.etl import prepare as module
from recmtl.etl.prepare import DataConfig, Prepared, prepare
from recmtl.etl.sources import LabelledLog, SourceKind
from recmtl.etl.split import SplitConfig
from recmtl.etl.validate import ANY_USE, Uses
from recmtl.manifest import SPLITS, Columns, Manifest, file_hash
from recmtl.progress import Bar, Progress, Silent
from recmtl.schema import Feature
from recmtl.settings import Settings
from recmtl.statistics import Statistics
from recmtl.tasks import Task

START = datetime(2024, 1, 1, tzinfo=UTC)
ROWS = 400

CLICK = Task(name="click", kind="binary", label="is_click")
PURCHASE = Task(name="purchase", kind="binary", label="bought", parent="click")
STARS = Task.model_validate({"name": "stars", "kind": "ordinal", "label": "stars", "levels": [1, 2, 3, 4, 5]})
TASKS = (CLICK, PURCHASE, STARS)

USER = Feature(name="user", kind="id")
ITEM = Feature(name="item", kind="id")
PRICE = Feature(name="price", kind="number")
TAGS = Feature(name="tags", kind="bag", separator=",")
FEATURES = (USER, ITEM, PRICE, TAGS)


class FakeConfig(Settings):
    """A source made by hand: a Parquet file of labelled rows."""

    kind: Literal["fake"] = "fake"
    path: str
    hours_observed: float | None = None
    """Since START."""
    window: bool = True
    split_column: str | None = None
    recommend: bool = False
    rejected: int = 0
    truth: str | None = None


class FakeData(DataConfig):
    source: FakeConfig


def read(config: FakeConfig, work: Path, progress: Progress, *, uses: Uses = ANY_USE) -> LabelledLog:
    frame = pl.read_parquet(config.path).with_row_index("recmtl:row").with_columns(pl.col("recmtl:row").cast(pl.Int64))
    frame.write_parquet(work / "staged.parquet")
    rejects = work / "rejects.parquet"
    pl.DataFrame({"source": ["log"], "reason": ["no user"], "row": ["{}"]}).write_parquet(rejects)
    week = {"is_click": timedelta(hours=1), "bought": timedelta(hours=24)}
    until = None if config.hours_observed is None else START + timedelta(hours=config.hours_observed)
    return LabelledLog(
        frame=pl.scan_parquet(work / "staged.parquet", glob=False),
        columns=Columns(user="user", item="item", time="time"),
        outcomes=frozenset({"is_click", "bought", "stars", "watched"}),
        maturity=week if config.window else {},
        known_at={"stars": "rated_at"} if config.window else {},
        observed_until=until,
        split_column=config.split_column,
        default_features=(*FEATURES, Feature(name="absent", kind="id")) if config.recommend else (),
        inputs={config.path: Path(config.path)},
        read={"log": frame.height + config.rejected},
        rejected={"log": {"no user": config.rejected, "bad time": 0}} if config.rejected else {},
        unattributed={"click": {"no impression": 3}},
        rejected_files=(rejects,) if config.rejected else (),
        truth=None if config.truth is None else Path(config.truth),
    )


FAKE = SourceKind(FakeConfig, read, lambda config: {config.path: Path(config.path)})


def rows(seed: int = 0) -> pl.DataFrame:
    """Hourly impressions; 24 h after a purchase-worthy impression its label is known."""
    rng = np.random.default_rng(seed)
    click = rng.integers(0, 2, ROWS)
    return pl.DataFrame(
        {
            "user": rng.integers(0, 30, ROWS),
            "item": [f"i{n}" for n in rng.integers(0, 50, ROWS)],
            "time": pl.Series([START + timedelta(hours=n) for n in range(ROWS)], dtype=pl.Datetime("us", "UTC")),
            "price": rng.lognormal(size=ROWS),
            "tags": rng.choice(["a,b", "b", ""], ROWS),
            "note": [f"n{n}" for n in range(ROWS)],
            "is_click": click,
            "bought": click * rng.integers(0, 2, ROWS),
            "stars": pl.Series(rng.integers(1, 6, ROWS).tolist(), dtype=pl.Int64),
            "watched": rng.random(ROWS),
            "rated_at": pl.Series(
                [START + timedelta(hours=n + 2) for n in range(ROWS)], dtype=pl.Datetime("us", "UTC")
            ),
            "weight": rng.random(ROWS),
        }
    )


class Spoken(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    @property
    def all(self) -> str:
        return "\n".join(self.said)


class Killed(Spoken):
    """Dies at a given piece of work, as near to a kill as an exception comes."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self._at = at

    def bar(self, title: str, total: int | None, unit: str = "rows", done: int = 0) -> AbstractContextManager[Bar]:
        if title == self._at:
            raise KeyboardInterrupt
        return super().bar(title, total, unit, done)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(module.SOURCES, "fake", FAKE)
    path = tmp_path / "log.parquet"
    rows().write_parquet(path)
    return path


def config(log: Path, *, source: Mapping[str, Any] = {}, **fields: Any) -> FakeData:
    return FakeData.model_validate({"source": {"path": str(log), **source}, "rows_per_shard": 64, **fields})


def built(
    log: Path,
    progress: Progress | None = None,
    *,
    tasks: tuple[Task, ...] = TASKS,
    features: Any = FEATURES,
    **fields: Any,
) -> Prepared:
    return prepare(
        config(log, **fields),
        features,
        tasks,
        name="demo",
        folder=log.parent / "prepared",
        progress=progress or Silent(),
    )


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_hash(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def encoded(prepared: Prepared, split: str) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(prepared.folder / shard.path) for shard in prepared.manifest.splits[split].shards)


def raw(prepared: Prepared, split: str) -> pl.DataFrame:
    return pl.concat(
        pl.read_parquet(prepared.folder / shard.path) for shard in prepared.manifest.splits[split].raw_shards
    )


def test_what_is_written(log: Path) -> None:
    prepared = built(log, keep=["note"], source={"hours_observed": 1000})
    manifest = Manifest.read_from(prepared.folder)
    assert prepared.built
    assert manifest == prepared.manifest
    sizes = {split: manifest.splits[split].rows for split in SPLITS}
    assert sizes == {"train": 280, "validation": 60, "test": 60}
    assert manifest.inputs == {str(log): file_hash(log)}
    assert manifest.unattributed == {"click": {"no impression": 3}}
    assert manifest.statistics == Statistics.load(prepared.folder / "statistics").fingerprint()
    listed = {"manifest.json", ".recmtl"}
    for split in SPLITS:
        summary = manifest.splits[split]
        listed |= {shard.path for shard in (*summary.shards, *summary.raw_shards)}
        assert sum(shard.rows for shard in summary.shards) == summary.rows
        for shard in (*summary.shards, *summary.raw_shards):
            assert file_hash(prepared.folder / shard.path) == shard.sha256
            assert pl.read_parquet(prepared.folder / shard.path).height == shard.rows
        frame = encoded(prepared, split)
        assert frame.columns[:4] == ["id:user", "id:item", "bag:tags", "dense"]
        labels = [f"{kind}:{task.name}" for task in TASKS for kind in ("label", "observed")]
        assert frame.columns[4:] == [*labels, "group", "item", "row"]
        for task in TASKS:
            counted = summary.tasks[task.name]
            assert counted.observed == frame[f"observed:{task.name}"].sum()
            assert counted.observed + sum(counted.masked.values()) == summary.rows
    assert set(tree(prepared.folder)) == listed | {
        "statistics/statistics.json",
        "statistics/reading.json",
        *(f"statistics/vocabulary/{table}.parquet" for table in ("user", "item", "tags")),
    }
    assert manifest.splits["validation"].time_range == ("2024-01-12T16:00:00+00:00", "2024-01-15T03:00:00+00:00")


def test_the_rows_of_every_split_are_there_once_in_their_order(log: Path) -> None:
    prepared = built(log, source={"window": False})
    train = encoded(prepared, "train")["row"].to_list()
    assert sorted(train) == list(range(280))
    assert train != sorted(train)
    assert len(prepared.manifest.splits["train"].shards) == 5
    assert encoded(prepared, "validation")["row"].to_list() == list(range(280, 340))
    assert encoded(prepared, "test")["row"].to_list() == list(range(340, 400))
    # Scattered well: neighbours on disk are far apart in the log.
    assert np.abs(np.diff(train)).mean() > 60


def test_raw_twins_are_row_for_row_what_was_encoded(log: Path) -> None:
    prepared = built(log, keep=["note"], rows_per_shard=13)
    source = rows()
    for split in ("validation", "test"):
        summary = prepared.manifest.splits[split]
        assert (
            [shard.rows for shard in summary.shards] == [shard.rows for shard in summary.raw_shards] == [13] * 4 + [8]
        )
        twin, frame = raw(prepared, split), encoded(prepared, split)
        assert twin["recmtl:row"].equals(frame["row"])
        wanted = ["user", "item", "time", "is_click", "bought", "stars", "price", "tags", "note", "recmtl:row"]
        assert twin.columns == wanted
        assert twin.drop("recmtl:row").equals(source[twin["recmtl:row"].to_list()].select(wanted[:-1]))
        assert twin["user"].n_unique() == frame["group"].n_unique() == frame.select("id:user", "group").n_unique()
    assert not prepared.manifest.splits["train"].raw_shards


def test_groups_are_equal_for_equal_users_across_splits(log: Path) -> None:
    prepared = built(log)
    frame = pl.concat([encoded(prepared, split) for split in SPLITS]).sort("row")
    users = frame.select("group").with_columns(user=rows()["user"])
    assert users.n_unique() == users["user"].n_unique() == users["group"].n_unique()
    assert frame["group"].min() >= 0  # type: ignore[operator]


def test_items_are_numbered_alike_across_splits_however_rare_they_are(log: Path) -> None:
    source = rows().with_columns(item=pl.when(pl.col("price") < 0.2).then(None).otherwise("item"))
    source.write_parquet(log)
    rare = Feature(name="item", kind="id", min_count=10)
    prepared = built(log, features=(USER, rare, PRICE))
    frame = pl.concat([encoded(prepared, split) for split in SPLITS]).sort("row")
    items = frame.select("item").with_columns(key=source["item"])
    assert items.n_unique() == items["key"].n_unique() == items["item"].n_unique()
    assert items.filter(pl.col("key").is_null())["item"].unique().to_list() == [-1]
    assert items.drop_nulls("key")["item"].min() >= 0  # type: ignore[operator]


def test_train_labels_are_as_of_the_beginning_of_validation(log: Path) -> None:
    prepared = built(log, source={"hours_observed": 400})
    # Validation begins at hour 280: clicks are known after an hour, purchases after a day, ratings when they are given.
    assert prepared.manifest.labels_as_of == "2024-01-12T16:00:00+00:00"
    train = encoded(prepared, "train").sort("row")
    assert train["observed:click"].to_list() == [n + 1 <= 280 for n in range(280)]
    assert train["observed:purchase"].to_list() == [n + 24 <= 280 for n in range(280)]
    assert train["observed:stars"].to_list() == [n + 2 <= 280 for n in range(280)]
    assert prepared.manifest.splits["train"].tasks["purchase"].masked == {"immature": 23}
    test = encoded(prepared, "test")
    assert test["observed:click"].to_list() == [n + 1 <= 400 for n in range(340, 400)]
    assert test["observed:purchase"].sum() == 37
    assert test["observed:stars"].all()
    late = built(log, source={"hours_observed": 400}, split={"labels_as_of": "log_end"})
    assert late.manifest.labels_as_of is None
    assert all(encoded(late, "train")[f"observed:{task.name}"].all() for task in TASKS)


def test_splits_that_overlap_in_time_look_at_labels_when_the_log_ends(log: Path) -> None:
    prepared = built(log, split={"by": "random"}, source={"hours_observed": 400})
    assert prepared.manifest.labels_as_of is None
    masked = prepared.manifest.splits["train"].tasks["purchase"].masked
    assert sum(masked.values()) == sum(row + 24 > 400 for row in encoded(prepared, "train")["row"])


def test_statistics_know_nothing_of_validation_and_test(log: Path) -> None:
    before = built(log).manifest
    source = rows()
    later = pl.int_range(pl.len()) >= 280
    source.with_columns(
        item=pl.when(later).then(pl.lit("other")).otherwise("item"),
        price=pl.when(later).then(1e9).otherwise("price"),
        tags=pl.when(later).then(pl.lit("x,y")).otherwise("tags"),
        stars=pl.when(later).then(1).otherwise("stars"),
    ).write_parquet(log)
    after = built(log).manifest
    assert after.fingerprint != before.fingerprint
    assert after.statistics == before.statistics
    assert after.splits["train"] == before.splits["train"]
    assert after.splits["test"] != before.splits["test"]


def test_label_statistics_are_those_of_the_observed_train_labels(log: Path) -> None:
    prepared = built(log, source={"hours_observed": 400})
    statistics = Statistics.load(prepared.folder / "statistics")
    train = encoded(prepared, "train").filter("observed:purchase")
    assert statistics.labels["purchase"].mean == pytest.approx(train["label:purchase"].mean())
    clicked = train.filter(pl.col("label:click") == 1)
    assert statistics.conditional_labels["purchase"].mean == pytest.approx(clicked["label:purchase"].mean())
    assert statistics.train_rows == 280
    assert statistics.columns == {"user": "Int64", "item": "String", "price": "Float64", "tags": "String"}


def test_the_same_again_is_not_built_again(log: Path) -> None:
    first = built(log)
    stamp = (first.folder / "manifest.json").stat().st_mtime_ns
    progress = Spoken()
    again = built(log, progress)
    assert not again.built
    assert again.manifest == first.manifest
    assert (first.folder / "manifest.json").stat().st_mtime_ns == stamp
    assert "nothing rebuilt" in progress.all
    # Touched or copied, the bytes are the same.
    log.touch()
    assert not built(log).built


def test_anything_changed_is_built_again(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(log)
    for fields in (
        {"keep": ["note"]},
        {"split": {"seed": 1}},
        {"split": {"test": 0.2}},
        {"rows_per_shard": 100},
        {"source": {"hours_observed": 400}},
        {"features": FEATURES[:2]},
        {"tasks": TASKS[:1]},
    ):
        assert built(log, **fields).built, fields  # type: ignore[arg-type]
        assert not built(log, **fields).built, fields  # type: ignore[arg-type]
    rows(seed=1).write_parquet(log)
    assert built(log).built
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert built(log).built
    assert not built(log).built


def test_a_damaged_dataset_is_built_again(log: Path) -> None:
    first = built(log)
    before = tree(first.folder)
    for damage in ("train/part-00001.parquet", "raw/test/part-00000.parquet", "statistics/statistics.json"):
        (first.folder / damage).unlink()
        progress = Silent()
        assert built(log, progress).built
        assert "damaged" in progress.warnings[0]
        assert tree(first.folder) == before


def test_a_byte_that_changed_is_noticed(log: Path) -> None:
    first = built(log)
    before = tree(first.folder)
    path = first.folder / "train/part-00000.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert built(log).built
    assert tree(first.folder) == before


def test_building_twice_gives_the_same_bytes(log: Path) -> None:
    first = tree(built(log).folder)
    for path in (log.parent / "prepared").rglob("*.parquet"):
        path.unlink()
    assert built(log).built
    assert tree(log.parent / "prepared") == first


@pytest.mark.parametrize("at", ["labels and masks", "encoding", "hashing inputs"])
def test_killed_midway_it_leaves_what_was_there(log: Path, at: str) -> None:
    first = built(log)
    before = tree(first.folder)
    with pytest.raises(KeyboardInterrupt):
        built(log, Killed(at), keep=["note"])
    assert tree(first.folder) == before
    assert not built(log).built
    assert built(log, keep=["note"]).built
    assert sorted(path.name for path in log.parent.iterdir()) == [".prepared.lock", "log.parquet", "prepared"]


@pytest.mark.parametrize(("there", "every"), [(True, 13), pytest.param(True, 3, marks=pytest.mark.slow), (False, 11)])
def test_after_a_kill_at_any_operation_the_same_call_ends_with_the_same_bytes(
    log: Path, kill_at_each: Callable[..., int], there: bool, every: int
) -> None:
    whole = tree(built(log, keep=["note"]).folder)
    durable.remove(log.parent / "prepared")
    before = tree(built(log).folder) if there else None
    seen = set()

    def look() -> None:
        seen.add((log.parent / "prepared").exists())
        built(log, keep=["note"])
        assert tree(log.parent / "prepared") == whole
        assert sorted(path.name for path in log.parent.iterdir()) == [".prepared.lock", "log.parquet", "prepared"]
        durable.remove(log.parent / "prepared")
        if there:
            assert tree(built(log).folder) == before

    kill_at_each(lambda: built(log, keep=["note"]), look, every)
    assert not there or True in seen  # killed while the old one was in the place, or the new one already


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\0" * 100, b"[" * 100_000])
def test_a_damaged_manifest_is_built_again(log: Path, content: bytes) -> None:
    first = built(log)
    before = tree(first.folder)
    (first.folder / "manifest.json").write_bytes(content)
    progress = Silent()
    assert built(log, progress).built
    assert "damaged" in progress.warnings[0]
    assert tree(first.folder) == before


def test_a_manifest_that_says_something_else_is_damaged(log: Path) -> None:
    first = built(log)
    path = first.folder / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"rows": ', '"rows": 1', 1))
    assert path.read_text() != text
    with pytest.raises(RunError, match=r"manifest\.json: damaged"):
        Manifest.read_from(first.folder)
    assert built(log).built
    assert path.read_text() == text


@pytest.mark.parametrize(
    "damage", ["train/part-00001.parquet", "raw/test/part-00000.parquet", "statistics/statistics.json"]
)
def test_prepared_data_are_verified_when_they_are_opened(log: Path, damage: str) -> None:
    first = built(log)
    assert Manifest.opened(first.folder) == first.manifest
    path = first.folder / damage
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(RunError, match=rf"{path.name if 'part' in damage else 'statistics'}.*`recmtl prepare`"):
        Manifest.opened(first.folder)
    path.unlink()
    with pytest.raises(RunError, match="`recmtl prepare`"):
        Manifest.opened(first.folder)


def test_killed_without_a_chance_to_clear_up(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(durable, "remove", lambda *args, **kwargs: None)
        with pytest.raises(KeyboardInterrupt):
            built(log, Killed("encoding"))
    assert (log.parent / ".prepared.building").is_dir()
    assert not (log.parent / "prepared").exists()
    assert built(log).built
    assert not (log.parent / ".prepared.building").exists()


def test_killed_between_the_two_renames_the_old_one_comes_back(log: Path) -> None:
    first = built(log)
    before = tree(first.folder)
    first.folder.rename(log.parent / ".prepared.old")
    assert not built(log).built
    assert tree(first.folder) == before
    assert not (log.parent / ".prepared.old").exists()


def test_a_rename_that_fails_leaves_the_old_one(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = built(log)
    before = tree(first.folder)

    class Failing(durable.Files):
        def rename(self, source: Path, target: Path) -> None:
            if source.name == ".prepared.building":
                raise OSError("no")
            super().rename(source, target)

    monkeypatch.setattr(durable, "files", Failing())
    with pytest.raises(OSError, match="no"):
        built(log, keep=["note"])
    assert tree(first.folder) == before


def test_a_folder_with_something_else_is_never_touched(log: Path) -> None:
    folder = log.parent / "prepared"
    folder.write_text("a file")
    with pytest.raises(UserError, match="is a file"):
        built(log)
    folder.unlink()
    folder.mkdir()
    assert built(log).built  # empty
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'notes\.txt'"):
        built(log)
    (folder / "manifest.json").write_text(json.dumps({"name": "another program's"}))
    (folder / ".recmtl").unlink()
    with pytest.raises(UserError, match="holds no prepared dataset"):
        built(log)
    assert (folder / "notes.txt").read_text() == "mine"


def test_two_processes_take_turns(log: Path) -> None:
    prepared: list[Prepared] = []
    threads = [threading.Thread(target=lambda: prepared.append(built(log))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.built for one in prepared) == [False, True]
    assert prepared[0].manifest == prepared[1].manifest


def test_a_folder_with_a_pattern_in_its_name(log: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a [1] *"
    prepared = prepare(config(log), FEATURES, TASKS, name="demo", folder=folder, progress=Silent())
    assert prepared.manifest.splits["train"].rows == 280


def test_the_default_folder_and_the_name(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(log.parent)
    prepared = prepare(config(log), FEATURES, TASKS, name="demo", progress=Silent())
    assert prepared.folder == Path("data/prepared/demo")
    data = config(log, prepared="data/prepared/demo")
    assert prepare(data, FEATURES, TASKS, name="renamed", progress=Silent()).manifest.name == "renamed"


@pytest.mark.parametrize("column", ["is_click", "watched", "stars", "rated_at", "recmtl:row"])
def test_an_outcome_is_no_feature(log: Path, column: str) -> None:
    with pytest.raises(UserError, match=rf"features\.leak: column {column!r} is"):
        built(log, features=(USER, Feature(name="leak", kind="number", column=column)))
    assert not (log.parent / "prepared").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"features": (Feature(name="prise", kind="number"),)},
            r"features\.prise: .*no column 'prise'; did you mean 'price'",
        ),
        ({"tasks": (CLICK.model_copy(update={"label": "click"}),)}, r"tasks\.click\.label: .*did you mean 'is_click'"),
        ({"tasks": (CLICK.model_copy(update={"weight_column": "w"}),)}, r"tasks\.click\.weight_column: .*'w'"),
        ({"keep": ["notes"]}, r"data\.keep: .*did you mean 'note'"),
    ],
)
def test_columns_that_are_not_there(log: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(log, **fields)


def test_features_are_inferred_from_train_and_said(log: Path) -> None:
    progress = Spoken()
    prepared = built(log, progress, features=None, tasks=(CLICK.model_copy(update={"weight_column": "weight"}),))
    names = {feature.name: feature.kind for feature in prepared.manifest.features}
    assert names == {"user": "id", "item": "id", "price": "number", "tags": "bag"}
    assert "tags: bag, separator ','" in progress.all
    assert "note: left out" in progress.all
    assert "bought, is_click, rated_at, stars, watched, weight" in progress.all
    assert "weight:click" in encoded(prepared, "train").columns


def test_features_that_the_source_recommends(log: Path) -> None:
    progress = Spoken()
    prepared = built(log, progress, features=None, source={"recommend": True})
    assert [feature.name for feature in prepared.manifest.features] == ["user", "item", "price", "tags"]
    assert "for want of their columns: absent" in progress.all


def test_bad_rows_within_the_share_are_published(log: Path) -> None:
    progress = Spoken()
    prepared = built(log, progress, source={"rejected": 4})
    assert f"log: 4 of 404 rows set aside in {prepared.folder / 'rejected'}: no user (4)" in progress.said
    assert prepared.manifest.rejected == {"log": {"no user": 4, "bad time": 0}}
    assert pl.read_parquet(prepared.folder / "rejected" / "*.parquet")["reason"].to_list() == ["no user"]


def test_a_place_that_takes_no_file_is_refused_and_not_waited_for(log: Path) -> None:
    (log.parent / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.prepared: cannot write beside .*file/prepared"):
        prepare(config(log), FEATURES, TASKS, name="demo", folder=log.parent / "file" / "prepared", progress=Silent())


def test_a_log_without_rows_is_refused(log: Path) -> None:
    rows().clear().write_parquet(log)
    with pytest.raises(UserError, match=r"data\.source: there is no usable row in .*log\.parquet"):
        built(log)


def test_bad_rows_beyond_the_share_stop_the_run(log: Path) -> None:
    with pytest.raises(
        UserError, match=r"log: 100 of 500 rows \(20\.0%\).*'no user'.*max_rejected.*prepared\.rejected"
    ):
        built(log, source={"rejected": 100})
    assert (log.parent / "prepared.rejected" / "rejects.parquet").is_file()
    assert not (log.parent / "prepared").exists()
    assert built(log, source={"rejected": 100}, max_rejected=0.3).built
    assert not (log.parent / "prepared.rejected").exists()


def test_a_task_without_an_observed_row_is_warned_of(log: Path) -> None:
    progress = Silent()
    never = CLICK.model_copy(update={"name": "never", "label": "nothing"})
    rows().with_columns(nothing=pl.lit(None, pl.Int64), zero=pl.lit(0)).write_parquet(log)
    zero = CLICK.model_copy(update={"name": "zero", "label": "zero"})
    of_zero = Task.model_validate({**STARS.model_dump(), "name": "of_zero", "observed": {"when": "zero"}})
    prepared = built(log, progress, tasks=(*TASKS, never, zero, of_zero), source={"hours_observed": 300})
    warnings = "\n".join(prepared.manifest.warnings)
    assert tuple(progress.warnings) == prepared.manifest.warnings
    assert "task purchase has no observed row in test: 60 rows are immature" in warnings
    assert "later observed_until" in warnings
    for split in SPLITS:
        assert f"task never has no observed row in {split}" in warnings
    assert "check tasks.never.label" in warnings
    assert "task zero has no positive row in train" in warnings
    assert "zero is nowhere observed and positive" in warnings


def test_train_that_is_immature_throughout_names_labels_as_of(log: Path) -> None:
    progress = Silent()
    built(log, progress, source={"hours_observed": 1000}, split={"validation": 0.49, "test": 0.49})
    assert any("data.split.labels_as_of: log_end" in text and "purchase" in text for text in progress.warnings)


def test_given_splits(log: Path) -> None:
    part = ["train"] * 300 + ["test"] * 100
    rows().with_columns(pl.Series("part", part)).write_parquet(log)
    prepared = built(log, source={"split_column": "part"}, split={"validation": 0.1})
    assert {split: prepared.manifest.splits[split].rows for split in SPLITS} == {
        "train": 270,
        "validation": 30,
        "test": 100,
    }
    assert prepared.manifest.labels_as_of == "2024-01-12T06:00:00+00:00"
    with pytest.raises(UserError, match="bookkeeping"):
        built(log, source={"split_column": "part"}, features=(Feature(name="part", kind="id"),))


def test_an_empty_split_is_refused(log: Path) -> None:
    part = ["train"] * 300 + ["validation"] * 100
    rows().with_columns(pl.Series("part", part)).write_parquet(log)
    with pytest.raises(UserError, match="gives test no row"):
        built(log, source={"split_column": "part"})


def test_an_input_that_changes_while_it_is_read(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changing(config: FakeConfig, work: Path, progress: Progress, *, uses: Uses) -> LabelledLog:
        found = read(config, work, progress, uses=uses)
        rows(seed=1).head(300).write_parquet(config.path)
        return found

    monkeypatch.setitem(module.SOURCES, "fake", FAKE._replace(read=changing))
    with pytest.raises(RunError, match="changed while it was read"):
        built(log)
    assert not (log.parent / "prepared").exists()


def test_the_truth_is_named_absolutely(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(log.parent)
    assert built(log, source={"truth": "truth.parquet"}).manifest.truth == str(log.parent / "truth.parquet")


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("recmtl")]


def test_split_config_is_part_of_data() -> None:
    assert DataConfig.model_fields["split"].annotation is SplitConfig


def test_a_bag_of_text_without_separator_is_one_sentence(log: Path) -> None:
    features = (USER, Feature(name="tags", kind="bag"))
    with pytest.raises(UserError, match=r"^features\.tags: column 'tags' holds text such as .*`separator` must say"):
        built(log, features=features)
