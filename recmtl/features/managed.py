"""Ids without bound in a table with a bound: which ids have a row of their own, decided while training.

In: a batch whose managed features hold hashed ids (:mod:`recmtl.etl.encode`) instead of table rows. Out: the same with
table rows. An id that has no row reads the row of unseen ids, in training too: that row is what a rare id looks like.

The algorithm is TorchRec's managed collision (MCHManagedCollisionModule, ``torchrec/modules/mc_modules.py``), and a
test holds it against that one. Ids that have no row are counted as candidates; every so many steps they and the ids
that have rows are ranked together by the eviction policy, and the best keep or get rows. A row that changes hands
begins anew at zeros, its optimiser state too. Scores, of an id seen last at step s and counted n times, at step t:

    lru            -(t - s + 1)
    lfu            n
    distance_lfu   n / (t - s + 1)

What is of its own here, and why. TorchRec runs its sharded kind on row-wise tables alone, which do not exist on CPUs
(``ManagedCollisionEmbeddingBagCollectionSharder.sharding_types("cpu")`` is empty), and leaves candidates out of its
state, so that a resumed run forgets them. Here every rank keeps the same whole map and learns of all ranks' ids, so it
fits tables that are cut in any way, is the same on any number of ranks, and nothing of it is lost in a checkpoint; the
price is 59 bytes a row on every rank. Candidates are bounded: where there are more than rows and no room is left, the
worst are forgotten. Serving needs the map alone, 16 bytes a row, and neither TorchRec nor FBGEMM.

Dimensions: N ids, K rows that ids can have, U distinct ids.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from recmtl.batch import SparseBatch
from recmtl.group import AcrossRanks
from recmtl.modules import ByName
from recmtl.schema import MISSING, UNSEEN, Eviction, Schema

__all__ = ["EMPTY", "IdMap", "IdMaps"]

EMPTY = torch.iinfo(torch.int64).max
"""Stands where there is no id; no hash is as large."""
_RESERVED = 2
_LEAST_ROOM = 1024


class IdMap(nn.Module, AcrossRanks):
    """The map of one table.

    Its buffers ``ids`` and ``rows`` are the map, and belong to the model; the others are what training decides by, and
    are saved by :meth:`IdMaps.state`.

    Args:
        rows: K.
        eviction: which ids keep their rows.
        every: steps between two decisions.
    """

    ids: Tensor
    rows: Tensor
    counts: Tensor
    seen: Tensor
    candidate_ids: Tensor
    candidate_counts: Tensor
    candidate_seen: Tensor
    steps: Tensor

    def __init__(self, rows: int, eviction: Eviction, every: int) -> None:
        super().__init__()
        self._eviction, self._every = eviction, every
        self.register_buffer("ids", torch.full((rows,), EMPTY))  # rising
        self.register_buffer("rows", torch.arange(_RESERVED, rows + _RESERVED))  # of the id at the same place
        room = rows + max(rows // 8, _LEAST_ROOM)  # more than can get rows, so that sorting them out is seldom
        self.register_buffer("candidate_ids", torch.full((room,), EMPTY), persistent=False)
        for name, size in (("counts", rows), ("seen", rows), ("candidate_counts", room), ("candidate_seen", room)):
            self.register_buffer(name, torch.zeros(size, dtype=torch.int64), persistent=False)
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64), persistent=False)
        self._held = 0
        """Candidates noted so far; they fill their buffers from the front, and one may stand there several times."""

    def forward(self, ids_N: Tensor) -> Tensor:
        """(N,) int64 hashed ids to (N,) table rows; a missing id keeps its row, one without a row has the unseen's."""
        places_N, known_N = self._places(ids_N)
        rows_N = torch.where(known_N, self.rows[places_N], UNSEEN)
        return torch.where(ids_N == MISSING, MISSING, rows_N)

    @torch.no_grad()
    def observe(self, ids_N: Tensor) -> Tensor | None:
        """Learn of one step's ids, this rank's (N,); every rank calls it once a step.

        Returns:
            At the steps that decide, the table rows that changed hands and must begin anew, the same on every rank;
            else None.
        """
        ids_U, counts_U = self._of_all_ranks(ids_N[ids_N >= _RESERVED])
        self.steps += 1
        places_U, known_U = self._places(ids_U)
        self.counts.index_add_(0, places_U[known_U], counts_U[known_U])
        self.seen[places_U[known_U]] = self.steps
        self._add_candidates(ids_U[~known_U], counts_U[~known_U])
        return self._decide() if int(self.steps) % self._every == 0 else None

    def count_candidates(self) -> None:
        """Call it when the buffers were loaded."""
        self._held = int((self.candidate_ids != EMPTY).sum())

    def _places(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Where each id stands in the map, and whether it does."""
        places = torch.searchsorted(self.ids, ids).clamp_(max=len(self.ids) - 1)
        return places, self.ids[places] == ids

    def _of_all_ranks(self, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        """Distinct ids of all ranks, rising, and how often each occurs."""
        ids_U, counts_U = torch.unique(ids_N, return_counts=True)
        if self.group.size == 1:
            return ids_U, counts_U
        pairs = self.group.gather(torch.stack([ids_U, counts_U], dim=1).cpu().numpy())
        ids, counts = torch.from_numpy(pairs).to(ids_N.device).unbind(dim=1)
        return _summed(ids, counts)

    def _add_candidates(self, ids: Tensor, counts: Tensor) -> None:
        """Note them behind those that are there; put equal ones together only when the room is used up."""
        seen = self.steps.expand(len(ids))
        if self._held + len(ids) > len(self.candidate_ids):
            ids, counts, seen = self._together(ids, counts, seen)
            self._forget_candidates()
        if len(ids) > len(self.candidate_ids):
            order = _best_first(self._scores(counts, seen), counts)
            kept = order[: len(self.ids)].sort().values  # no more of them can get rows
            ids, counts, seen = ids[kept], counts[kept], seen[kept]
        place = slice(self._held, self._held + len(ids))
        self.candidate_ids[place], self.candidate_counts[place], self.candidate_seen[place] = ids, counts, seen
        self._held += len(ids)

    def _together(self, *more: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, rising and each once, counts and last steps of the candidates that are there and of some more."""
        there = slice(0, self._held)
        buffers = (self.candidate_ids, self.candidate_counts, self.candidate_seen)
        parts = [[buffer[there]] for buffer in buffers]
        for part, each in zip(parts, more, strict=False):
            part.append(each)
        every_id, every_count, every_step = (torch.cat(part) for part in parts)
        ids, inverse = torch.unique(every_id, return_inverse=True)
        counts = torch.zeros_like(ids).index_add_(0, inverse, every_count)
        return ids, counts, torch.zeros_like(ids).scatter_reduce_(0, inverse, every_step, "amax")

    def _forget_candidates(self) -> None:
        there = slice(0, self._held)
        self.candidate_ids[there], self.candidate_counts[there], self.candidate_seen[there] = EMPTY, 0, 0
        self._held = 0

    def _decide(self) -> Tensor:
        """Rank ids and candidates together, give the best the rows, forget the other candidates."""
        ids, counts, seen = self._together()
        self._forget_candidates()
        often_first = torch.argsort(counts, descending=True, stable=True)
        ids, counts, seen = ids[often_first], counts[often_first], seen[often_first]
        size = len(self.ids)
        old_scores, new_scores = self._scores(self.counts, self.seen), self._scores(counts, seen)
        best = _largest(torch.cat([old_scores, new_scores]), size)  # of equals, the one that has a row keeps it
        gone, chosen = (~best[:size]).nonzero().squeeze(1), best[size:].nonzero().squeeze(1)
        gone = gone[torch.argsort(old_scores[gone], descending=True, stable=True)]
        chosen = chosen[torch.argsort(new_scores[chosen], descending=True, stable=True)]
        begun = self.rows[gone]
        self._replace(gone, ids[chosen], begun, counts[chosen], seen[chosen])
        return begun

    def _replace(self, gone: Tensor, ids: Tensor, rows: Tensor, counts: Tensor, seen: Tensor) -> None:
        """Take entries out and put others in, so that ids still rise; nothing is sorted but what is put in."""
        stays = torch.ones(len(self.ids), dtype=torch.bool, device=self.ids.device)
        stays[gone] = False
        by_id = torch.argsort(ids)
        places = torch.searchsorted(self.ids[stays], ids[by_id]) + torch.arange(len(ids), device=ids.device)
        is_new = torch.zeros_like(stays)
        is_new[places] = True
        for buffer, values in ((self.ids, ids), (self.rows, rows), (self.counts, counts), (self.seen, seen)):
            stayed = buffer[stays]
            buffer[is_new] = values[by_id]
            buffer[~is_new] = stayed

    def _scores(self, counts: Tensor, seen: Tensor) -> Tensor:
        """float64, higher is kept; a row without an id has the lowest there is."""
        age = (self.steps - seen + 1).double()
        if self._eviction == "lru":
            return -age
        return counts.double() if self._eviction == "lfu" else counts.double() / age


class IdMaps(nn.Module):
    """The maps of all managed tables; with none of them, nothing happens anywhere.

    Args:
        schema: the features.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        managed = {name: table.managed for name, table in schema.tables.items() if table.managed is not None}
        self.maps = ByName({name: IdMap(each.rows, each.eviction, each.every) for name, each in managed.items()})
        self._table_of = {name: table for table in managed for name in schema.tables[table].features}

    def forward(self, sparse: SparseBatch) -> SparseBatch:
        """The batch with table rows in place of hashed ids."""
        if not self._table_of:
            return sparse
        maps = dict(self.maps.items())
        parts = [
            maps[self._table_of[key]](values_N) if key in self._table_of else values_N
            for key, values_N in zip(sparse.keys, self._split(sparse), strict=True)
        ]
        return replace(sparse, values=torch.cat(parts))

    def observe(self, sparse: SparseBatch) -> dict[str, Tensor]:
        """Learn of one training step's ids, before its forward; every rank calls it once a step.

        Returns:
            Table name to the rows that changed hands: their weights and optimiser state must be made zeros.
        """
        if not self._table_of:
            return {}
        by_table: dict[str, list[Tensor]] = {table: [] for table in self._table_of.values()}
        for key, values_N in zip(sparse.keys, self._split(sparse), strict=True):
            if key in self._table_of:
                by_table[self._table_of[key]].append(values_N)
        begun = {table: id_map.observe(torch.cat(by_table[table])) for table, id_map in self.maps.items()}
        return {table: rows for table, rows in begun.items() if rows is not None and len(rows)}

    def state(self) -> dict[str, Tensor]:
        """What training decides by, beside the maps themselves: live tensors by name, the same on every rank."""
        return {
            f"{table}.{name}": buffer
            for table, id_map in self.maps.items()
            for name, buffer in id_map.named_buffers()
            if name not in ("ids", "rows")
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what :meth:`state` gave."""
        for name, buffer in self.state().items():
            buffer.copy_(state[name])
        for _, id_map in self.maps.items():
            id_map.count_candidates()

    @staticmethod
    def _split(sparse: SparseBatch) -> tuple[Tensor, ...]:
        """The values of each feature."""
        return torch.split(sparse.values, sparse.feature_sizes())


def _summed(ids: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    distinct, inverse = torch.unique(ids, return_inverse=True)
    return distinct, torch.zeros_like(distinct).index_add_(0, inverse, counts)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Which are the ``count`` largest, as booleans; of equals the first. Linear in their number."""
    least = torch.kthvalue(scores, len(scores) - count + 1).values
    best = scores > least
    equal = (scores == least).nonzero().squeeze(1)
    best[equal[: count - int(best.sum())]] = True
    return best


def _best_first(scores: Tensor, counts: Tensor) -> Tensor:
    """Places by falling score, among equals by falling count, among those as they stand."""
    often_first = torch.argsort(counts, descending=True, stable=True)
    return often_first[torch.argsort(scores[often_first], descending=True, stable=True)]
