"""Shards to batches: worked by hand, then every order, position and end that an epoch can have."""

import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from recmtl.batch import Batch
from recmtl.errors import RunError, UserError
from recmtl.etl.encode import encode
from recmtl.loading import Loader, raw_frames, to_batch
from recmtl.manifest import Columns, Manifest, Shard, SplitSummary, file_hash
from recmtl.schema import Feature, Schema
from recmtl.statistics import NumberStatistics, Statistics, Vocabulary
from recmtl.tasks import Task, Tasks

FEATURES = (
    Feature(name="user", kind="id"),
    Feature(name="tags", kind="bag"),
    Feature(name="item", kind="id"),
    Feature(name="genres", kind="weighted_bag", separator=","),
    Feature(name="price", kind="number"),
)
TASKS = (
    Task(name="click", kind="binary", label="click", weight_column="w"),
    Task(name="stars", kind="regression", label="stars"),
)
ROWS = 103


def encoded(rows: int = ROWS, start: int = 0) -> pl.DataFrame:
    """Rows whose every entry tells their number."""
    number = range(start, start + rows)
    data = {
        "id:user": pl.Series(number, dtype=pl.Int32),
        "bag:tags": pl.Series([[n, n + 1, n + 2][: n % 4] for n in number], dtype=pl.List(pl.Int32)),
        "id:item": pl.Series([2 * n for n in number], dtype=pl.Int32),
        "bag:genres": pl.Series([[n] * (n % 3) for n in number], dtype=pl.List(pl.Int32)),
        "weights:genres": pl.Series([[n / 8] * (n % 3) for n in number], dtype=pl.List(pl.Float32)),
        "dense": pl.Series([[n / 4, float(n % 2)] for n in number], dtype=pl.Array(pl.Float32, 2)),
        "label:click": pl.Series([n % 2 for n in number], dtype=pl.Float32),
        "observed:click": pl.Series([n % 5 > 0 for n in number], dtype=pl.Boolean),
        "weight:click": pl.Series([n / 2 for n in number], dtype=pl.Float32),
        "label:stars": pl.Series([n / 3 for n in number], dtype=pl.Float32),
        "observed:stars": pl.Series([True for n in number], dtype=pl.Boolean),
        "group": pl.Series([n // 3 for n in number], dtype=pl.Int64),
        "row": pl.Series(number, dtype=pl.Int64),
    }
    return pl.DataFrame(data)


def write(folder: Path, sizes: tuple[int, ...] = (40, 0, 33, 30), *, group: int = 8, raw: bool = False) -> Manifest:
    (folder / "train").mkdir(parents=True)
    (folder / "raw" / "train").mkdir(parents=True)
    shards, raw_shards, start = [], [], 0
    for index, size in enumerate(sizes):
        name = f"train/part-{index:05}.parquet"
        encoded(size, start).write_parquet(folder / name, row_group_size=group)
        shards.append(Shard(path=name, rows=size, sha256=file_hash(folder / name)))
        twin = pl.DataFrame({"colour": [("red", "blue", "")[n % 3] for n in range(start, start + size)]})
        twin.write_parquet(folder / "raw" / name, row_group_size=group)
        raw_shards.append(Shard(path=f"raw/{name}", rows=size, sha256=file_hash(folder / "raw" / name)))
        start += size
    summary = SplitSummary(rows=start, shards=tuple(shards), raw_shards=tuple(raw_shards) if raw else (), tasks={})
    manifest = Manifest(
        name="n",
        source="table",
        fingerprint="f",
        statistics="s",
        features=FEATURES,
        tasks=TASKS,
        columns=Columns(),
        splits={"train": summary},
    )
    manifest.write(folder)
    return manifest


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    return folder, write(folder)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("recmtl-loader")]


def loader(
    prepared: tuple[Path, Manifest],
    *,
    batch_size: int = 10,
    shuffle_seed: int | None = 1,
    window_rows: int = 30,
    prefetch: int = 2,
    verify: bool = False,
) -> Loader:
    return Loader(
        *prepared,
        "train",
        batch_size=batch_size,
        shuffle_seed=shuffle_seed,
        window_rows=window_rows,
        prefetch=prefetch,
        verify=verify,
    )


def tensors(batch: Batch) -> dict[str, Tensor]:
    found = {"values": batch.sparse.values, "lengths": batch.sparse.lengths, "dense": batch.dense}
    assert batch.sparse.weights is not None
    found["weights"] = batch.sparse.weights
    found |= {"group": batch.group, "row": batch.row}
    for field in ("labels", "observed", "weights"):
        found |= {f"{field}.{name}": tensor for name, tensor in getattr(batch, field).items()}
    return found


def same(one: Batch, other: Batch) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def rows_of(batches: Iterator[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.row.tolist()]


def test_a_batch_by_hand() -> None:
    batch = to_batch(encoded(5), Schema(FEATURES), Tasks(TASKS))
    assert batch.size == batch.sparse.batch_size == 5
    assert batch.sparse.keys == ("user", "tags", "item", "genres")
    lengths = batch.sparse.lengths.reshape(4, 5).tolist()
    assert lengths == [[1] * 5, [0, 1, 2, 3, 0], [1] * 5, [0, 1, 2, 0, 1]]
    user, tags = [0, 1, 2, 3, 4], [1, 2, 3, 3, 4, 5]
    assert batch.sparse.values.tolist() == [*user, *tags, 0, 2, 4, 6, 8, 1, 2, 2, 4]
    assert batch.sparse.weights is not None
    assert batch.sparse.weights.tolist() == [1.0] * 16 + [0.125, 0.25, 0.25, 0.5]
    assert batch.dense.tolist() == [[n / 4, n % 2] for n in range(5)]
    assert batch.labels["click"].tolist() == [0, 1, 0, 1, 0]
    assert batch.observed["click"].tolist() == [False, True, True, True, True]
    assert batch.weights["click"].tolist() == [0, 0.5, 1, 1.5, 2]
    assert set(batch.weights) == {"click"}
    assert batch.sparse.sizes == (5, 6, 5, 4)
    assert (batch.group.tolist(), batch.row.tolist()) == ([0, 0, 0, 1, 1], [0, 1, 2, 3, 4])
    types = {name: tensor.dtype for name, tensor in tensors(batch).items()}
    assert types["values"] == types["group"] == types["row"] == torch.int64
    assert types["lengths"] == torch.int32
    assert types["dense"] == types["weights"] == types["labels.click"] == types["weights.click"] == torch.float32
    assert types["observed.click"] == torch.bool


def test_scoring_needs_no_labels_and_no_row_numbers() -> None:
    schema = Schema([Feature(name="user", kind="id")])
    batch = to_batch(encoded(3).select("id:user"), schema, None)
    assert batch.sparse.weights is None
    assert batch.sparse.sizes == (3,)
    assert batch.dense.shape == (3, 0)
    assert (batch.labels, batch.observed, batch.weights) == ({}, {}, {})
    assert batch.row.tolist() == batch.group.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("rows", [0, 1])
def test_an_empty_batch_and_a_batch_of_one(rows: int) -> None:
    batch = to_batch(encoded(rows), Schema(FEATURES), Tasks(TASKS))
    assert batch.size == rows
    assert batch.dense.shape == (rows, 2)
    assert batch.sparse.lengths.shape == (4 * rows,)
    dense_alone = to_batch(encoded(rows), Schema(FEATURES[-1:]), None)
    assert dense_alone.sparse.values.shape == (0,)
    assert dense_alone.sparse.keys == ()


@pytest.mark.parametrize("prefetch", [0, 3])
def test_source_order(prepared: tuple[Path, Manifest], prefetch: int) -> None:
    made = loader(prepared, shuffle_seed=None, prefetch=prefetch)
    assert (made.rows, made.batches) == (ROWS, 11)
    batches = list(made.epoch(0))
    assert [batch.size for batch in batches] == [10] * 10 + [3]
    whole = encoded()
    for index, batch in enumerate(batches):
        assert same(batch, to_batch(whole.slice(10 * index, 10), made.schema, made.tasks))


@pytest.mark.parametrize("window_rows", [1, 8, 30, 1000])
def test_an_epoch_holds_every_row_once_in_an_order_of_its_own(
    prepared: tuple[Path, Manifest], window_rows: int
) -> None:
    made = loader(prepared, window_rows=window_rows)
    first, again, second = (rows_of(made.epoch(number)) for number in (0, 0, 1))
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first == again
    assert len({tuple(order) for order in (first, second, range(ROWS))}) == 3
    assert rows_of(loader(prepared, shuffle_seed=2, window_rows=window_rows).epoch(0)) != first


def test_the_order_is_what_it_was(prepared: tuple[Path, Manifest]) -> None:
    # A run resumed under a later version, and every figure ever published, rests on it.
    def order(seed: int, epoch: int) -> list[int]:
        return rows_of(loader(prepared, shuffle_seed=seed).epoch(epoch))[:12]

    assert order(1, 0) == [14, 11, 22, 13, 49, 8, 51, 53, 72, 52, 54, 10]
    assert order(1, 1) == [62, 6, 5, 72, 61, 56, 69, 58, 67, 0, 66, 59]
    assert order(7, 3) == [97, 5, 89, 90, 31, 98, 29, 25, 26, 24, 30, 100]


def test_every_column_follows_its_row(prepared: tuple[Path, Manifest]) -> None:
    made = loader(prepared)
    for batch in made.epoch(3):
        frame = pl.concat([encoded(1, row) for row in batch.row.tolist()])
        assert same(batch, to_batch(frame, made.schema, made.tasks))
        counted = batch.sparse.lengths.view(4, batch.size).sum(1)
        assert batch.sparse.sizes == tuple(counted.tolist())


def test_rows_are_shuffled_within_windows_of_whole_row_groups(prepared: tuple[Path, Manifest]) -> None:
    # 14 row groups of at most 8 rows: windows of 30 hold three or four of them.
    order = rows_of(loader(prepared, window_rows=30).epoch(0))
    starts = [0, *np.cumsum([40, 33])]
    group = [
        max(k for k, start in enumerate(starts) if start <= row) * 100 + _within(row, starts) // 8 for row in order
    ]
    first_window = group[:24]
    assert len(set(first_window)) <= 4
    assert any(a != b for a, b in pairwise(first_window))
    assert len(set(group)) == 5 + 5 + 4


def _within(row: int, starts: list[int]) -> int:
    return row - max(start for start in starts if start <= row)


@pytest.mark.parametrize("batch_size", [1, 7, 10, 64, 103, 500])
@pytest.mark.parametrize("seed", [1, None])
def test_resumed_at_any_batch_it_goes_on_bit_for_bit(
    prepared: tuple[Path, Manifest], batch_size: int, seed: int | None
) -> None:
    made = loader(prepared, batch_size=batch_size, shuffle_seed=seed, prefetch=0)
    whole = list(made.epoch(2))
    assert len(whole) == made.batches
    for start in range(0, made.batches + 1, 5 if batch_size == 1 else 1):
        rest = list(made.epoch(2, start))
        assert len(rest) == made.batches - start
        assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_what_is_skipped_is_not_read(prepared: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    made = loader(prepared, prefetch=0)
    read: list[int] = []
    group = made._read_group
    monkeypatch.setattr(made, "_read_group", lambda *args: _counted(read, group(*args)))
    list(made.epoch(0))
    assert sum(read) == ROWS
    read.clear()
    list(made.epoch(0, made.batches - 1))
    assert sum(read) <= 30  # one window


def _counted(read: list[int], table: pa.Table) -> pa.Table:
    read.append(table.num_rows)
    return table


def test_closing_early_ends_the_thread(prepared: tuple[Path, Manifest]) -> None:
    made = loader(prepared, batch_size=1, prefetch=1)
    batches = made.epoch(0)
    next(batches)
    assert [thread for thread in threading.enumerate() if thread.name.startswith("recmtl-loader")]
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("recmtl-loader")]
    made.epoch(0)  # never begun
    for _ in made.epoch(1):
        break


@pytest.mark.parametrize("seed", [1, None])
def test_a_batch_is_the_consumers_own(prepared: tuple[Path, Manifest], seed: int | None) -> None:
    made = loader(prepared, shuffle_seed=seed)
    kept = list(made.epoch(0))  # windows are read over each other
    for batch, again in zip(kept, made.epoch(0), strict=True):
        assert same(batch, again)
        for tensor in tensors(again).values():
            tensor.zero_()


def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    def peak(shards: int) -> int:
        made = loader(
            (tmp_path / str(shards), write(tmp_path / str(shards), (2000,) * shards, group=500)),
            batch_size=100,
            window_rows=2000,
        )
        tracemalloc.start()
        try:
            rows = sum(batch.size for batch in made.epoch(0))
            found = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert rows == made.rows == 2000 * shards
        return found

    assert peak(8) < 1.3 * peak(2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_in_page_locked_memory(prepared: tuple[Path, Manifest]) -> None:
    plain = loader(prepared)
    pinned = Loader(*prepared, "train", batch_size=10, shuffle_seed=1, window_rows=30, pin_memory=True)
    for batch, expected in zip(pinned.epoch(0), plain.epoch(0), strict=True):
        assert all(tensor.is_pinned() for tensor in tensors(batch).values())
        assert same(batch, expected)


def test_what_goes_wrong_in_the_background_is_raised_here(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    manifest = write(folder)
    made = loader((folder, manifest), shuffle_seed=None)
    shard = folder / manifest.splits["train"].shards[-1].path
    data = bytearray(shard.read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    shard.write_bytes(data)
    batches = made.epoch(0)
    with pytest.raises(RunError, match=r"part-00003\.parquet"):
        list(batches)
    with pytest.raises(RunError, match=r"part-00003\.parquet: damaged, its hash"):
        loader((folder, manifest), verify=True)
    shard.unlink()
    with pytest.raises(RunError, match=r"part-00003\.parquet: cannot be read"):
        loader((folder, manifest))


def test_a_sound_dataset_verifies(prepared: tuple[Path, Manifest]) -> None:
    assert loader(prepared, verify=True).rows == ROWS


def test_a_shard_with_other_rows_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    manifest = write(folder)
    encoded(3).write_parquet(folder / "train/part-00000.parquet")
    with pytest.raises(RunError, match="3 rows where the manifest says 40"):
        loader((folder, manifest))


def test_a_dataset_that_was_replaced_is_not_read_on(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    manifest = write(folder)
    made = loader((folder, manifest))
    manifest.model_copy(update={"fingerprint": "other"}).write(folder)
    with pytest.raises(RunError, match="prepared anew"):
        made.epoch(0)


def test_an_empty_split(tmp_path: Path) -> None:
    made = loader((tmp_path / "data", write(tmp_path / "data", (0,))))
    assert (made.rows, made.batches, list(made.epoch(0))) == (0, 0, [])


def test_a_batch_has_a_row(prepared: tuple[Path, Manifest]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        loader(prepared, batch_size=0)


def test_another_model_scores_the_raw_rows(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    manifest = write(folder, raw=True)
    schema = Schema([Feature(name="colour", kind="id"), Feature(name="size", kind="number")])
    numbers = {"size": NumberStatistics(1, 0, 0.0, 1.0, 0.0, 1.0)}
    statistics = Statistics(tables={"colour": Vocabulary(("blue",), (1,))}, numbers=numbers, labels={})
    other = Loader(
        folder,
        manifest,
        "train",
        batch_size=10,
        shuffle_seed=None,
        window_rows=30,
        encoder=(schema, statistics),
        verify=True,
    )
    batches, own = list(other.epoch(0)), list(loader((folder, manifest), shuffle_seed=None).epoch(0))
    frames = pl.concat(raw_frames(folder, manifest, "train"))
    expected = to_batch(encode(frames.lazy(), schema, statistics).collect(), schema, None)
    assert torch.equal(torch.cat([batch.sparse.values for batch in batches]), expected.sparse.values)
    assert torch.equal(torch.cat([batch.dense for batch in batches]), expected.dense)
    for batch, mine in zip(batches, own, strict=True):
        for field in fields(Batch):
            if field.name in ("labels", "observed", "weights"):
                left, right = getattr(batch, field.name), getattr(mine, field.name)
                assert left.keys() == right.keys()
                assert all(torch.equal(left[name], right[name]) for name in left)
        assert torch.equal(batch.row, mine.row)
    bare = write(tmp_path / "bare")
    with pytest.raises(RunError, match="keeps no raw rows"):
        Loader(tmp_path / "bare", bare, "train", batch_size=1, shuffle_seed=None, encoder=(schema, statistics))
    wrong = Schema([Feature(name="colour", kind="bag")])
    failing = Loader(
        folder, manifest, "train", batch_size=10, shuffle_seed=None, encoder=(wrong, replace(statistics, numbers={}))
    )
    with pytest.raises(UserError, match="separator"):
        list(failing.epoch(0))


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 10), (3, 10), (4, 51)])
def test_the_ranks_share_every_batch_and_the_order_stays(
    prepared: tuple[Path, Manifest], world_size: int, batch_size: int
) -> None:
    def rows(rank: int, world_size: int, start: int) -> list[list[int]]:
        part = Loader(
            *prepared,
            "train",
            batch_size=batch_size,
            shuffle_seed=1,
            window_rows=30,
            rank=rank,
            world_size=world_size,
        )
        batches = list(part.epoch(0, start))
        assert all(batch.size == len(batch.row) for batch in batches)
        return [batch.row.tolist() for batch in batches]

    for start in (0, 2):
        whole = rows(0, 1, start)
        parts = [rows(rank, world_size, start) for rank in range(world_size)]
        assert len(whole[-1]) == ROWS % batch_size
        for number, batch in enumerate(whole):
            expected = [part.tolist() for part in np.array_split(batch, world_size)]
            assert [part[number] for part in parts] == expected
