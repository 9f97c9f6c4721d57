"""Managed ids: TorchRec's own module as the oracle, rules by hand, and what training and serving make of them."""

from typing import Any

import numpy as np
import pytest
import torch

from recmtl.batch import SparseBatch
from recmtl.features.managed import EMPTY, IdMap, IdMaps
from recmtl.schema import MISSING, UNSEEN, Eviction, Feature, Managed, Schema

POLICIES: tuple[Eviction, ...] = ("lru", "lfu", "distance_lfu")


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def rows_of(id_map: IdMap, *values: int) -> list[int]:
    found: list[int] = id_map(ids(*values)).tolist()
    return found


def test_the_most_frequent_get_rows_and_the_others_share_the_unseens() -> None:
    id_map = IdMap(2, "lfu", every=2)
    assert id_map.observe(ids(70, 70, 80, 90)) is None
    assert rows_of(id_map, 70, 80, 90) == [UNSEEN] * 3  # nothing is decided yet
    begun = id_map.observe(ids(80, 80, 100))
    assert begun is not None
    assert sorted(begun.tolist()) == [2, 3]  # 70 twice, 80 three times
    assert sorted(rows_of(id_map, 70, 80)) == [2, 3]
    assert rows_of(id_map, 90, 100, MISSING, UNSEEN) == [UNSEEN, UNSEEN, MISSING, UNSEEN]
    before = dict(zip((70, 80), rows_of(id_map, 70, 80), strict=True))
    id_map.observe(ids(100, 100, 100))
    begun = id_map.observe(ids(100, 70))
    assert begun is not None
    assert begun.tolist() == [before[80]] or begun.tolist() == [before[70]]
    # 70 and 80 have 3 each, 100 has 4: of equals the one with the larger id loses
    assert begun.tolist() == [before[80]]
    assert rows_of(id_map, 100, 70, 80) == [before[80], before[70], UNSEEN]


def test_lru_keeps_what_was_seen_last_and_distance_lfu_weighs_both() -> None:
    for policy, survivor in (("lru", 90), ("distance_lfu", 70)):
        id_map = IdMap(1, policy, every=1)  # type: ignore[arg-type]
        for _ in range(9):
            id_map.observe(ids(70))
        id_map.observe(ids(90))  # 70: 9 times, a step ago: 4.5; 90: once, now: 1
        assert rows_of(id_map, survivor) == [2], policy


def test_a_missing_id_is_no_id() -> None:
    id_map = IdMap(2, "lfu", every=1)
    assert id_map.observe(ids(MISSING, MISSING, MISSING)).numel() == 0  # type: ignore[union-attr]
    assert id_map.ids.tolist() == [EMPTY, EMPTY]
    assert id_map.observe(torch.empty(0, dtype=torch.int64)).numel() == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("policy", POLICIES)
def test_it_decides_as_torchrecs_module_does(policy: Eviction) -> None:
    import recmtl.features.fused  # noqa: F401, I001 - FBGEMM warns on import; this file keeps it quiet, so it is first
    from torchrec.modules import mc_modules as torchrec
    from torchrec.sparse.jagged_tensor import JaggedTensor

    policies = {
        "lru": torchrec.LRU_EvictionPolicy,
        "lfu": torchrec.LFU_EvictionPolicy,
        "distance_lfu": torchrec.DistanceLFU_EvictionPolicy,
    }
    size = 20
    theirs = torchrec.MCHManagedCollisionModule(
        zch_size=size + 1,  # its last row stands for ids without one
        device=torch.device("cpu"),
        eviction_policy=policies[policy](),
        eviction_interval=3,
        output_global_offset=2,
    )
    ours = IdMap(size, policy, every=3)
    draws = np.random.default_rng(3)
    evicted = 0
    for step in range(40):
        drift = 4 * step  # other ids become frequent as time goes by
        values = torch.from_numpy(10 + drift + draws.zipf(1.4, 16 if step else 30).clip(max=60))
        mapped = theirs({"t": JaggedTensor(values=values, lengths=torch.ones_like(values))})["t"].values()
        begun = ours.observe(values)
        expected = theirs.evict()
        assert (begun is None) == (expected is None)
        if begun is not None and expected is not None:
            assert sorted(begun.tolist()) == sorted(expected.tolist())
            evicted += len(begun)
        assert ours(values).tolist() == torch.where(mapped == size + 2, UNSEEN, mapped).tolist()
    assert evicted > 2 * size


def test_candidates_are_bounded_and_the_worst_are_forgotten() -> None:
    id_map = IdMap(2, "lfu", every=100)
    room = len(id_map.candidate_ids)
    for first in range(10, 10 + 3 * room, room // 2):  # ids that are seen once
        id_map.observe(torch.cat([torch.arange(first, first + room // 2), ids(5, 7, 7)]))
    held = id_map.candidate_ids[id_map.candidate_ids != EMPTY]
    assert len(held) <= room == len(id_map.candidate_ids)
    together = {id_: int(id_map.candidate_counts[id_map.candidate_ids == id_].sum()) for id_ in (5, 7)}
    steps = int(id_map.steps)
    assert together == {5: steps, 7: 2 * steps}  # what is frequent is not forgotten
    assert 10 not in held.tolist()


class Part:
    """One of two ranks, whose gather joins what both would send."""

    size = 2

    def __init__(self) -> None:
        self.all: list[np.ndarray[Any, Any]] = []

    def gather(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.concatenate(self.all)


@pytest.mark.parametrize("policy", POLICIES)
def test_two_ranks_keep_the_map_that_one_keeps(policy: Eviction) -> None:
    alone, first, second = (IdMap(8, policy, every=2) for _ in range(3))
    group = Part()
    first.group = second.group = group  # type: ignore[assignment]
    draws = np.random.default_rng(0)
    for _ in range(10):
        values = torch.from_numpy(draws.integers(10, 40, 24))
        parts = values[:9], values[9:]
        group.all = [np.stack(np.unique(part.numpy(), return_counts=True), axis=1) for part in parts]
        begun = [m.observe(part) for m, part in ((alone, values), (first, parts[0]), (second, parts[1]))]
        assert [None if rows is None else rows.tolist() for rows in begun] == [
            None if begun[0] is None else begun[0].tolist()
        ] * 3
    for name, buffer in alone.named_buffers():
        assert torch.equal(buffer, first.get_buffer(name)), name
        assert torch.equal(buffer, second.get_buffer(name)), name


def schema() -> Schema:
    return Schema(
        [
            Feature(name="user", kind="id", managed=Managed(rows=4, eviction="lfu", every=1)),
            Feature(name="country", kind="id"),
            Feature(name="friends", kind="bag", table="user", managed=Managed(rows=4, eviction="lfu", every=1)),
        ]
    )


def test_features_that_share_a_table_share_its_map_and_others_are_left_alone() -> None:
    maps = IdMaps(schema())
    sparse = SparseBatch(
        keys=("user", "country", "friends"),
        values=ids(50, 60, 7, 9, 50, 50, 70),
        lengths=torch.tensor([1, 1, 1, 1, 3, 0], dtype=torch.int32),
    )
    begun = maps.observe(sparse)
    assert len(set(begun["user"].tolist())) == 3
    assert set(begun["user"].tolist()) <= {2, 3, 4, 5}
    mapped = maps(sparse).values.tolist()
    assert mapped[2:4] == [7, 9]
    assert mapped[0] == mapped[4] == mapped[5]
    assert len({mapped[0], mapped[1], mapped[6]}) == 3
    other = IdMaps(schema())
    other.load_state_dict(maps.state_dict())
    other.load_state(maps.state())
    assert set(maps.state_dict()) == {"maps.user.ids", "maps.user.rows"}
    assert other(sparse).values.tolist() == mapped
    assert other.observe(sparse) == maps.observe(sparse) == {}


def test_without_managed_tables_nothing_happens() -> None:
    maps = IdMaps(Schema([Feature(name="user", kind="id")]))
    sparse = SparseBatch(keys=("user",), values=ids(3), lengths=torch.ones(1, dtype=torch.int32))
    assert maps(sparse) is sparse
    assert maps.observe(sparse) == {}
    assert maps.state() == {}
    assert not list(maps.buffers())
