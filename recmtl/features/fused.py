"""Embedding tables whose optimiser steps inside ``backward``, cut up over the ranks: TorchRec's sharded collection.

In: a :class:`recmtl.batch.SparseBatch` of this rank's rows, as a KeyedJaggedTensor. Out: as
:class:`recmtl.features.tables.Tables` says, for those rows. Which rank holds what is a :class:`recmtl.distributed.plan
.Plan`; one rank that holds everything is the same path, measured level with FBGEMM's operator by itself.

A second ``backward`` is a second step, so one step of training makes exactly one. With several ranks every rank makes
the same number of forwards and backwards, also one whose batch has no rows: they exchange ids and embeddings. Gradients
are summed over the ranks, since the losses are already means over the rows of all of them.

This file imports TorchRec and FBGEMM; import it only where they are wanted (training).

Dimensions: B batch, V rows of a table, W width of a table.
"""

import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist

from recmtl.batch import SparseBatch
from recmtl.distributed import ensure_process_group
from recmtl.distributed.plan import (
    Plan,
    Shard,
    ShardingConfig,
    TableSize,
    make_plan,
    optimizer_states,
    parameter_shardings,
    replicated_tables,
    stored_width,
    table_collection,
    table_of,
)
from recmtl.errors import RunError, UserError
from recmtl.features.replicated import MixedTables, ReplicatedTables
from recmtl.features.tables import InMemory, Piece, Pieces, Stored, TableShape, check_weights, pieces_of
from recmtl.group import ONE, Group

with warnings.catch_warnings():  # FBGEMM's CPU build warns on import that it lacks its kernels for SSDs
    warnings.simplefilter("ignore")
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode
    from torchrec.distributed import comm_ops
    from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
    from torchrec.distributed.types import ShardingEnv
    from torchrec.distributed.utils import optimizer_type_to_emb_opt_type

__all__ = ["FusedTables", "sharded_tables"]

# The first KeyedJaggedTensor makes torch warn of a function that torch itself calls: nothing that a user can mend.
logging.getLogger("torch.fx._symbolic_trace").addFilter(
    lambda record: not record.getMessage().startswith("is_fx_tracing will return true")
)


class FusedTables(nn.Module):
    """Tables that step inside ``backward``.

    They are no ``nn.Parameter`` of this module and not in its ``state_dict``: nothing but their own optimiser may step
    them, ``model.parameters()`` is exactly what the dense optimiser holds, and ``.to(device)`` does not move them (the
    device is chosen here). :meth:`pieces` and :meth:`optimizer_pieces` are what a checkpoint saves.

    A width that is no multiple of 4 is padded with columns of zeros that are never seen outside. Row-wise Adagrad
    averages a row's squared gradient over the padded width, so there it steps a little further than over plain tables.

    A row-wise optimiser keeps one number a row of every cut of columns. Where such a table is loaded under another cut,
    each new cut takes the mean of the old ones, weighted by the columns they share: joining cuts is exact (the mean
    square over a row is that mean of the mean squares over its parts), dividing them assumes that the parts were alike.

    Args:
        shapes: table name to shape.
        optimizer_type: ``torchrec.optim.RowWiseAdagrad``, or torch's ``SGD``, ``Adagrad`` or (on a GPU only) ``Adam``.
        optimizer_kwargs: ``lr`` and what else FBGEMM's operator takes: ``eps``, ``beta1``, ``weight_decay``, …
        device: where the tables live.
        sharding: how they are cut.
        precision: of the weights; the optimiser's state and what comes out are float32. Under float16 a GPU's kernels
            round stochastically, so that small steps are not lost in the mean; a CPU's round to nearest.
        cached: tables that lie in host memory, behind a cache on the GPU (FBGEMM's managed caching; on a GPU only).
        cache_load_factor: the share of their rows that the GPU caches.
        batch_size: rows a step over all ranks, which the planner reckons with.
        group: the ranks, each of which makes these tables.

    Raises:
        UserError: FBGEMM has no such optimiser, or not on this device; tables that cannot be cut that way.
    """

    def __init__(
        self,
        shapes: Mapping[str, TableShape],
        *,
        optimizer_type: type[torch.optim.Optimizer],
        optimizer_kwargs: Mapping[str, Any],
        device: torch.device | str = "cpu",
        sharding: ShardingConfig | None = None,
        precision: Literal["float32", "float16"] = "float32",
        cached: Collection[str] = (),
        cache_load_factor: float = 0.2,
        batch_size: int = 4096,
        group: Group = ONE,
    ) -> None:
        super().__init__()
        device = torch.device(device)
        self._shapes = dict(shapes)
        self.features = frozenset(feature for shape in shapes.values() for feature in shape.features)
        """The features that read these tables."""
        self._group = group
        self._process_group = ensure_process_group()
        assert self._process_group.size() == group.size, "every rank of the job makes these tables"
        self._states = optimizer_states(optimizer_type)
        self._device = device
        self._steps = 0
        self._precision = torch.float16 if precision == "float16" else torch.float32
        sizes = {
            name: replace(
                _size(shape),
                dtype=precision,
                kernel="fused_uvm_caching" if name in cached else "fused",
                cache_load_factor=cache_load_factor if name in cached else None,
            )
            for name, shape in shapes.items()
        }
        self.plan = _same_plan(
            group,
            lambda: make_plan(
                sizes,
                sharding or ShardingConfig(),
                optimizer_type=optimizer_type,
                ranks=group.size,
                device=device.type,
                batch_size=batch_size,
            ),
        )
        """Which rank holds what; the same on every rank."""
        arguments = dict(optimizer_kwargs)
        fused = {
            "optimizer": optimizer_type_to_emb_opt_type(optimizer_type),
            "learning_rate": arguments.pop("lr"),
            **arguments,
            # an id out of bounds stops the run: FBGEMM's default clamps it silently (FBGEMM issue 6215)
            "bounds_check_mode": BoundsCheckMode.FATAL,
            "stochastic_rounding": precision == "float16",
            **({"cache_load_factor": cache_load_factor} if cached else {}),
        }
        comm_ops.set_gradient_division(False)  # TorchRec would divide by the number of ranks; before it builds
        try:
            collection = ShardedEmbeddingBagCollection(
                table_collection(sizes),
                parameter_shardings(self.plan),
                ShardingEnv.from_process_group(self._process_group),
                fused_params=fused,
                device=device,
            )
        except (AssertionError, ValueError) as error:
            raise UserError(
                f"FBGEMM has no fused {optimizer_type.__name__} with {dict(optimizer_kwargs)} on {device} ({error}); "
                "row-wise Adagrad, Adagrad and SGD work on every device"
            ) from error
        self._collection = (collection,)  # in a tuple, so that it is no child of this module: see above
        self._kernels = [kernel for lookup in collection._lookups for kernel in lookup._emb_modules]

    def forward(self, sparse: SparseBatch) -> dict[str, Tensor]:
        """See :class:`recmtl.features.tables.Tables`.

        Raises:
            RuntimeError: a table row out of bounds (on a GPU the device's assertion fails instead).
        """
        if not sparse.keys:
            return {}
        pooled: dict[str, Tensor] = self._pooled(sparse).to_dict()
        return {
            feature: pooled[feature][:, : shape.dim] for shape in self._shapes.values() for feature in shape.features
        }

    def joined(self, sparse: SparseBatch, features: Sequence[str]) -> Tensor:
        """See :class:`recmtl.features.tables.Tables`."""
        pooled = self._pooled(sparse)
        dims = {feature: shape.dim for shape in self._shapes.values() for feature in shape.features}
        if pooled.keys() == list(features) and pooled.length_per_key() == [dims[feature] for feature in features]:
            together: Tensor = pooled.values()
            return together
        found: dict[str, Tensor] = pooled.to_dict()
        return torch.cat([found[feature][:, : dims[feature]] for feature in features], dim=1)

    def _pooled(self, sparse: SparseBatch) -> Any:
        """TorchRec's KeyedTensor, its keys in the order of the plan."""
        pooled = self._collection[0](sparse.to_kjt()).wait()
        if torch.is_grad_enabled():
            self._steps += 1
        else:  # FBGEMM counts a step at every forward; scoring is none
            self._set_steps(self._steps)
        return pooled

    def weights(self) -> dict[str, Tensor]:
        """See :class:`recmtl.features.tables.Tables`."""
        return self._whole(self._weight_parts())

    def pieces(self) -> dict[str, Tensor | Pieces]:
        """See :class:`recmtl.features.tables.Tables`."""
        return {**self._weight_pieces()}

    def load_pieces(self, read: Callable[[Mapping[str, Tensor | Pieces]], None]) -> None:
        """See :class:`recmtl.features.tables.Tables`."""
        read(self.pieces())

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """See :class:`recmtl.features.tables.Tables`."""
        have = self._weight_pieces()
        check_weights({name: pieces.shape for name, pieces in have.items()}, weights)
        for name, weight in weights.items():
            pieces_of(weight, have[name])

    def load_blocks(self, table: str, blocks: Iterable[Tensor]) -> None:
        """See :class:`recmtl.features.tables.Tables`."""
        held = self._weight_pieces()[table].held
        if not held:
            return
        row = 0
        for block in blocks:
            for (first, column), tensor in held:
                low, high = max(row, first), min(row + len(block), first + len(tensor))
                if low < high:
                    part = block[low - row : high - row, column : column + tensor.shape[1]]
                    tensor[low - first : high - first] = part.to(tensor.device)
            row += len(block)

    def reset_rows(self, table: str, rows: Tensor) -> None:
        """Make these rows of a table, and their optimiser's state, zeros: they are another id's from now on.

        Args:
            table: its name.
            rows: (n,) int64, of the whole table; every rank calls it with the same.
        """
        for (name, shard), tensors in self._held().items():
            if name == table:
                here = rows[(rows >= shard.row) & (rows < shard.row + shard.rows)] - shard.row
                for tensor in tensors:
                    tensor[here.to(tensor.device)] = 0.0

    def set_learning_rate(self, lr: float) -> None:
        """The learning rate of the next ``backward``."""
        for kernel in self._kernels:
            kernel.emb_module.set_learning_rate(lr)

    def optimizer_pieces(self) -> dict[str, Tensor | Pieces]:
        """This rank's part of the optimiser's state by name, live: ``TABLE.momentum_1``, … and ``iter`` (steps so far).

        (V, W) or, row-wise, (V,); a row-wise state of a table cut by columns is named for its columns:
        ``TABLE.momentum_1[0:8]``, ``TABLE.momentum_1[8:16]``. Every rank has the same names.
        """
        return {**self._state_pieces(), "iter": torch.tensor([self._steps])}

    def load_optimizer_pieces(self, stored: Stored) -> None:
        """Read what :meth:`optimizer_pieces` saved, perhaps on other ranks and cut in another way.

        Raises:
            RunError: it is the state of another optimiser or of other tables.
        """
        wanted, there = self._state_pieces(), stored.shapes()
        fitting = {name: pieces for name, pieces in wanted.items() if there.get(name) == pieces.shape}
        mended = {
            name: _overlapping(name, self._width(name), there)
            for name in wanted.keys() - fitting.keys()
            if len(wanted[name].shape) == 1
        }
        used = fitting.keys() | {old for parts in mended.values() for old in parts} | {"iter"}
        short = wanted.keys() - fitting.keys() - {name for name, parts in mended.items() if parts}
        if short or used != there.keys():
            raise RunError(
                f"the saved state of the tables' optimiser ({', '.join(sorted(there))}) does not fit this one "
                f"({', '.join(sorted(wanted))}, iter): it is of another optimiser or other data"
            )
        steps = torch.zeros(1, dtype=torch.int64)
        stored.read({**fitting, "iter": steps})
        for name, parts in sorted(mended.items()):
            for _, tensor in wanted[name].held:
                tensor.zero_()
            for old, share in parts.items():
                held = tuple(Piece(start, torch.empty_like(tensor)) for start, tensor in wanted[name].held)
                stored.read({old: Pieces(wanted[name].shape, wanted[name].dtype, held)})
                for mine, theirs in zip(wanted[name].held, held, strict=True):
                    mine.tensor.add_(theirs.tensor, alpha=share)
        self._steps = int(steps)
        self._set_steps(self._steps)

    def optimizer_state(self) -> dict[str, Tensor]:
        """:meth:`optimizer_pieces` as whole tensors: live views on one rank; of several all call, and rank 0 has it."""
        return {
            **self._whole(self._state_parts()),
            "iter": torch.tensor([self._steps]),
        }

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what :meth:`optimizer_state` gave.

        Raises:
            RunError: it is the state of another optimiser or of other tables.
        """
        self.load_optimizer_pieces(InMemory(state))

    def _set_steps(self, steps: int) -> None:
        for kernel in self._kernels:
            kernel.emb_module.iter.fill_(steps)
            kernel.emb_module.iter_cpu.fill_(steps)  # FBGEMM counts a second time, on the host

    # Who holds what

    def _weight_pieces(self) -> dict[str, Pieces]:
        return self._pieces(self._weight_parts())

    def _state_pieces(self) -> dict[str, Pieces]:
        return self._pieces(self._state_parts())

    def _weight_parts(self) -> "dict[str, _Parts]":
        """Where every rank's blocks of the weights lie, without the padding."""
        parts = {}
        for table in self.plan.tables:
            dim = self._shapes[table.table].dim
            blocks = [
                _Block(shard, 0, (shard.row, shard.column), (shard.rows, min(shard.columns, dim - shard.column)))
                for shard in table.shards
            ]
            parts[table.table] = _Parts(table.table, (table.rows, dim), blocks)
        return parts

    def _state_parts(self) -> "dict[str, _Parts]":
        """The same of the optimiser's state."""
        parts: dict[str, _Parts] = {}
        for table in self.plan.tables:
            for number, kind in enumerate(self._states, 1):
                for shard in table.shards:
                    if kind == "element":
                        name = _state_name(table.table, number, (0, table.width), table.width)
                        block = _Block(shard, number, (shard.row, shard.column), (shard.rows, shard.columns))
                        shape: tuple[int, ...] = (table.rows, table.width)
                    else:
                        cut = (shard.column, shard.column + shard.columns)
                        name = _state_name(table.table, number, cut, table.width)
                        block, shape = _Block(shard, number, (shard.row,), (shard.rows,)), (table.rows,)
                    parts.setdefault(name, _Parts(table.table, shape, [])).blocks.append(block)
        return parts

    def _pieces(self, parts: "Mapping[str, _Parts]") -> dict[str, Pieces]:
        """This rank's part, live."""
        held = self._held()
        return {
            name: Pieces(
                shape,
                self._precision if all(block.number == 0 for block in blocks) else torch.float32,
                tuple(Piece(block.start, block.of(held[table, block.shard])) for block in blocks if self._mine(block)),
            )
            for name, (table, shape, blocks) in parts.items()
        }

    def _mine(self, block: "_Block") -> bool:
        return block.shard.rank == self._group.rank

    def _held(self) -> "dict[tuple[str, Shard], tuple[Tensor, ...]]":
        """This rank's shards as FBGEMM's operators hold them: weights, then the optimiser's states."""
        shards = {
            (table.table, shard.row, shard.column): shard
            for table in self.plan.tables
            for shard in table.shards
            if shard.rank == self._group.rank
        }
        held = {}
        for kernel in self._kernels:
            # A cache's rows go back to the table that it caches, and it is empty: what is handed out may be written to.
            kernel.flush()
            kernel.emb_module.reset_cache_states()
            operator, tables = kernel.emb_module, kernel.config.embedding_tables
            states = operator.split_optimizer_states() if self._states else [()] * len(tables)
            for table, weight, state in zip(tables, operator.split_embedding_weights(), states, strict=True):
                name = table_of(table.name)
                shard = shards[name, *table.local_metadata.shard_offsets]
                held[name, shard] = (weight.detach(), *state)
        return held

    def _width(self, state: str) -> int:
        """Stored columns of the table that a state is of."""
        return _size(self._shapes[state.rpartition(".")[0]]).width

    def _whole(self, parts: "Mapping[str, _Parts]") -> dict[str, Tensor]:
        """Whole tensors: live views where this rank is alone, else sent to rank 0, in main memory; none elsewhere."""
        mine = self._pieces(parts)
        if self._group.size == 1:
            return {name: pieces.held[0].tensor for name, pieces in mine.items()}
        if self._group.rank == 0:
            return {name: self._gather(mine[name], parts[name].blocks) for name in parts}
        for pieces in mine.values():
            for _, tensor in pieces.held:
                if tensor.numel():  # of few rows the last ranks may have none
                    dist.send(tensor.contiguous(), 0, group=self._process_group)
        return {}

    def _gather(self, mine: Pieces, blocks: "list[_Block]") -> Tensor:
        whole = torch.empty(mine.shape, dtype=mine.dtype)
        held = iter(mine.held)
        for block in blocks:
            if self._mine(block):
                tensor = next(held).tensor
            else:
                tensor = torch.empty(block.shape, dtype=mine.dtype, device=self._device)
                if tensor.numel():
                    dist.recv(tensor, block.shard.rank, group=self._process_group)
            whole[block.slices()] = tensor.cpu()
        return whole


def sharded_tables(
    shapes: Mapping[str, TableShape], *, sharding: ShardingConfig | None = None, **arguments: Any
) -> "FusedTables | ReplicatedTables | MixedTables":
    """:class:`FusedTables`, but for the tables of which ``sharding`` says that every rank holds them whole.

    Args:
        shapes: table name to shape.
        sharding: how they are cut.
        arguments: the others of FusedTables.

    Raises:
        UserError: as FusedTables.
    """
    config = sharding or ShardingConfig()
    everywhere = replicated_tables(config, shapes)
    if not everywhere:
        return FusedTables(shapes, sharding=config, **arguments)
    group = arguments.get("group", ONE)
    own = make_plan(
        {name: _size(shapes[name]) for name in everywhere},
        ShardingConfig(default="data_parallel"),
        optimizer_type=arguments["optimizer_type"],
        ranks=group.size,
        device=torch.device(arguments.get("device", "cpu")).type,
    )
    kept = ("optimizer_type", "optimizer_kwargs", "device", "group")
    replicated = ReplicatedTables(
        {name: shapes[name] for name in everywhere},
        **{name: arguments[name] for name in kept if name in arguments},
        plan=own,
    )
    dealt = {name: shape for name, shape in shapes.items() if name not in everywhere}
    if not dealt:
        return replicated
    rest = ShardingConfig(tables={name: config.of(name) for name in dealt})
    sharded = FusedTables(dealt, sharding=rest, **arguments)
    tables = {table.table: table for table in (*sharded.plan.tables, *own.tables)}
    return MixedTables(sharded, replicated, Plan(own.ranks, own.device, tuple(tables[name] for name in shapes)))


class _Block(NamedTuple):
    """Where one shard's weights or state lie in the whole."""

    shard: Shard
    number: int
    """0: weights; else which state."""
    start: tuple[int, ...]
    shape: tuple[int, ...]

    def of(self, held: tuple[Tensor, ...]) -> Tensor:
        """The view of it, without padding, in what its rank holds of the shard."""
        return held[self.number][tuple(slice(0, size) for size in self.shape)]

    def slices(self) -> tuple[slice, ...]:
        """It in the whole."""
        return tuple(slice(at, at + size) for at, size in zip(self.start, self.shape, strict=True))


class _Parts(NamedTuple):
    """How one tensor is spread over the ranks."""

    table: str
    shape: tuple[int, ...]
    blocks: list[_Block]


def _same_plan(group: Group, make: Callable[[], Plan]) -> Plan:
    """Rank 0's plan on every rank: another rank's machine may have less memory, and so another plan."""
    said: dict[str, Any] = {}
    if group.rank == 0:
        try:
            said = {"plan": make().to_json()}
        except UserError as error:
            said = {"error": str(error)}
    said = group.broadcast(said)
    if "error" in said:
        raise UserError(said["error"])
    return Plan.from_json(said["plan"])


def _size(shape: TableShape) -> TableSize:
    return TableSize(shape.rows, stored_width(shape.dim), shape.features, shape.weighted)


def _state_name(table: str, number: int, cut: tuple[int, int], width: int) -> str:
    columns = "" if cut == (0, width) else f"[{cut[0]}:{cut[1]}]"
    return f"{table}.momentum_{number}{columns}"


_STATE = re.compile(r"(?P<base>.*\.momentum_\d+)(\[(?P<low>\d+):(?P<high>\d+)\])?")


def _cut_of(name: str, width: int) -> tuple[str, int, int]:
    """A state's name to its name without columns, and its columns."""
    match = _STATE.fullmatch(name)
    if match is None:
        return name, 0, 0
    return match["base"], int(match["low"] or 0), int(match["high"] or width)


def _overlapping(wanted: str, width: int, there: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """Names of the saved row-wise states that share columns with the wanted one, to the share of its columns."""
    base, low, high = _cut_of(wanted, width)
    shares: dict[str, float] = {}
    for name in there:
        other, start, end = _cut_of(name, width)
        common = min(high, end) - max(low, start)
        if other == base and common > 0:
            shares[name] = common / (high - low)
    return shares if abs(sum(shares.values()) - 1) < 1e-9 else {}
