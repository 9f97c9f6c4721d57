"""Will it fit, how does it shard, what does a step move: answered from a config, before anything is bought.

In: a run's config, and machines that need not exist. Out: :class:`Capacity`: bytes of every table and of everything
else on the fullest rank, TorchRec's sharding plan for such a machine, bytes and operations of a step, and, where the
machine's speeds are stated, the samples a second that it cannot exceed. ``docs/plan.md`` holds the formulae.

What can be counted is counted on the real thing: the dense part is built from the config (with tables of two rows) and
run on made-up batches, under torch's operation counter and a count of live storage.

Legend: W ranks, B rows of a step over all ranks, b = ceil(B / W) rows of a rank, P dense parameters.
"""

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from recmtl.balancing import BALANCERS
from recmtl.batch import Batch, SparseBatch
from recmtl.config import RunConfig
from recmtl.distributed.plan import (
    RESERVED_SHARE,
    ShardingConfig,
    TableSize,
    check_sharding,
    make_plan,
    optimizer_states,
    replicated_tables,
    stored_width,
)
from recmtl.errors import UserError
from recmtl.manifest import Manifest, inside
from recmtl.model import Model, build_model
from recmtl.schema import Feature, Schema, Table
from recmtl.statistics import LabelStatistics, NumberStatistics, Statistics, Vocabulary
from recmtl.tasks import Tasks
from recmtl.training.optimizers import (
    SPARSE_OPTIMIZERS,
    DenseOptimizerConfig,
    SparseOptimizerConfig,
    check_sparse_optimizer,
    fused_optimizer,
)

__all__ = ["Bytes", "Capacity", "Dense", "Machine", "Step", "TableCapacity", "plan", "summary"]

GIB = 1 << 30
_FLOAT, _HALF, _ID, _LENGTH = 4, 2, 8, 4
"""Bytes of a float32, a float16, an id on its way, and a row's number of values in one feature."""
_ID_MAP = 59
"""Bytes of a managed table's map and candidates, per row (:mod:`recmtl.features.managed`)."""
_CUDA_RESERVE = 0.1
"""Share of a GPU set aside for its context, the kernels' workspaces and what the allocator cannot use again."""
_CPU_RESERVE = GIB
"""Bytes of a process that holds Python, torch, TorchRec and FBGEMM, rounded up."""
_MOST_RANKS = 1024


@dataclass(frozen=True)
class Machine:
    """What the job would run on."""

    ranks: int
    """W: GPUs, or processes on CPUs."""
    memory: int
    """Bytes of each."""
    device: str = "cuda"
    """"cuda" or "cpu"."""
    host_memory: int | None = None
    """Bytes of host memory for each GPU; None: not looked at."""
    ranks_per_host: int = 8
    interconnect: float | None = None
    """Bytes a second that a rank can send, and receive, to and from the others."""
    memory_bandwidth: float | None = None
    """Bytes a second of a rank's memory."""
    flops: float | None = None
    """Floating-point operations a second that a rank's matrix products reach."""


@dataclass(frozen=True)
class TableCapacity:
    """One embedding table, over all ranks."""

    name: str
    rows: int
    rows_from: str
    """prepared data, hash_buckets, managed or --rows."""
    dim: int
    values_per_row: float
    """Values that an example has in the features that read the table, on average."""
    precision: str
    placement: str
    weight_bytes: int
    optimizer_bytes: int
    sharding: str
    """table_wise, column_wise, row_wise, …, data_parallel; replicated: a plain table; unplaced: there is no plan."""
    ranks: tuple[int, ...]
    """The ranks that hold a part of it."""
    distinct: float
    """Rows that a step updates: expected where the data's counts are known, else at most this many."""


@dataclass(frozen=True)
class Bytes:
    """What lies on the fullest rank."""

    tables: int
    table_optimizer: int
    lookups: int
    """Ids that arrived for its tables, what it pools for all ranks, and the gradient of that."""
    dense: int
    """Parameters, buffers and gradients."""
    dense_optimizer: int
    id_maps: int
    """Of managed tables: which id has which row, and the candidates."""
    exchange: int
    """The flat buffer in which dense gradients are summed over the ranks."""
    activations: int
    batch: int
    """Batches on the device, or waiting for it on a CPU."""
    loader: int
    """cpu: the loader's window, which is in the same memory."""
    reserve: int
    total: int
    host_tables: int
    """cuda: bytes of cached tables and their optimiser in the host's memory."""


@dataclass(frozen=True)
class Dense:
    """The model without its tables, as counted."""

    parameters: int
    forward_flops: int
    """Of matrix products, per example."""
    training_flops: int
    """The same, forward and every backward of the balancer."""
    activation_bytes: float
    """Bytes alive at once per example, forward and backward."""


@dataclass(frozen=True)
class Step:
    """What one step moves and computes."""

    read: float
    """Bytes of table rows read in forward, over all ranks."""
    updated: float
    """Bytes of gradients, rows and optimiser state read and written in backward, over all ranks."""
    sent: float
    """Bytes that the busiest rank sends or receives for lookups, whichever is more: ids, embeddings, gradients."""
    reduced: float
    """Bytes that each rank sends in the ring that sums the dense gradients."""
    memory: float
    """Bytes that the busiest rank reads and writes in its memory, at least."""
    flops: float
    """Of matrix products, per rank."""


@dataclass(frozen=True)
class Capacity:
    """The answer."""

    fits: bool
    verdict: str
    """One sentence."""
    advice: tuple[str, ...]
    """What would change a no, each tried."""
    notes: tuple[str, ...]
    """What was assumed."""
    machine: Machine
    batch_size: int
    rows_per_rank: int
    tables: tuple[TableCapacity, ...]
    rank: Bytes
    dense: Dense
    step: Step
    bounds: Mapping[str, float]
    """compute, memory, interconnect: samples a second over all ranks that it cannot exceed, where the speed is known;
    ``samples_per_second``: the least of them."""

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def plan(
    config: RunConfig,
    machine: Machine,
    *,
    batch_size: int | None = None,
    rows: Mapping[str, int] | None = None,
    lengths: Mapping[str, float] | None = None,
) -> Capacity:
    """Work out whether a run fits a machine.

    Args:
        config: the run; prepared data are read where they are there and of this config.
        machine: what it would run on.
        batch_size: B, instead of the config's.
        rows: table name to its rows, for tables that nothing else says the size of (and instead of what does).
        lengths: feature name to the mean number of values of a row, for bags likewise.

    Raises:
        UserError: the size of a table or the length of a bag is not known, or is given for one that is not there; the
            machine's device has no kernels for what the config asks.
    """
    check_sharding(config.training.sharding, machine.device)
    check_sparse_optimizer(config.training.sparse, machine.device)
    facts = _Facts.of(config, rows or {}, lengths or {})
    replicated_tables(config.training.sharding, facts.schema.tables)  # refuses a name that is no table's
    tables = _tables(config.training.sparse, config.training.sharding, facts)
    dense = _measure(config, facts, machine)
    size = batch_size or config.training.batch_size
    return _Calculation(config, facts, tables, dense, machine, size).result()


def summary(capacity: Capacity) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """The answer as tables of text: (header, rows) each, for a terminal."""
    rank, step, machine = capacity.rank, capacity.step, capacity.machine
    tables = [
        (
            table.name,
            f"{table.rows:,}",
            str(table.dim),
            f"{table.values_per_row:g}",
            f"{table.precision}{'' if table.placement == 'device' else ', cached'}",
            _size(table.weight_bytes),
            _size(table.optimizer_bytes),
            table.sharding,
            _span(table.ranks),
        )
        for table in capacity.tables
    ]
    fullest = [
        (name, _size(size))
        for name, size in (
            ("tables", rank.tables),
            ("their optimiser", rank.table_optimizer),
            ("lookups for all ranks", rank.lookups),
            (f"dense: {capacity.dense.parameters:,} parameters, gradients", rank.dense),
            ("dense optimiser", rank.dense_optimizer),
            ("managed tables' maps", rank.id_maps),
            ("exchange of gradients", rank.exchange),
            (f"activations of {capacity.rows_per_rank:,} rows", rank.activations),
            ("batches", rank.batch),
            ("loader's window", rank.loader),
            ("set aside", rank.reserve),
            (f"in all, of {machine.memory / GIB:g} GiB", rank.total),
            ("host memory: cached tables", rank.host_tables),
        )
        if size
    ]
    moved = [
        ("table rows read, all ranks", _size(step.read)),
        ("rows, state and gradients updated, all ranks", _size(step.updated)),
        ("memory read and written, busiest rank", _size(step.memory)),
        ("lookups exchanged, busiest rank", _size(step.sent)),
        ("dense gradients exchanged, each rank", _size(step.reduced)),
        ("matrix products, each rank", f"{step.flops / 1e9:,.2f} GFLOP"),
        (
            "an example: forward, trained",
            f"{capacity.dense.forward_flops / 1e6:.3f}, {capacity.dense.training_flops / 1e6:.3f} MFLOP",
        ),
    ]
    bounds = [(name, f"{value:,.0f}") for name, value in capacity.bounds.items() if name != "samples_per_second"]
    parts: list[tuple[tuple[str, ...], list[tuple[str, ...]]]] = [
        (("table", "rows", "width", "values", "precision", "weights", "optimiser", "sharding", "ranks"), list(tables)),
        (("the fullest rank", ""), list(fullest)),
        ((f"a step of {capacity.batch_size:,} rows", ""), list(moved)),
    ]
    return [*parts, (("samples a second, at most, by", ""), list(bounds))] if bounds else parts


def _size(count: float) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,.0f} B"


def _span(ranks: Sequence[int]) -> str:
    if len(ranks) > 2 and ranks == tuple(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ", ".join(map(str, ranks))


# What is known


@dataclass(frozen=True)
class _Facts:
    schema: Schema
    tasks: Tasks
    statistics: Statistics
    rows: Mapping[str, tuple[int, str]]
    """Table to its rows and who says so."""
    lengths: Mapping[str, float]
    """Sparse feature to its mean number of values."""
    counts: Mapping[str, "np.ndarray[Any, Any]"]
    """Table to its rows' training counts, where they are known."""
    notes: tuple[str, ...]

    @classmethod
    def of(cls, config: RunConfig, rows: Mapping[str, int], lengths: Mapping[str, float]) -> "_Facts":
        folder = config.data.prepared or Path("data") / "prepared" / config.name
        manifest, notes = _manifest(config, folder)
        features = config.explicit_features or (None if manifest is None else manifest.features)
        if features is None:
            raise UserError(
                f"features: auto takes them from the data, and {folder} holds none prepared yet; "
                "`recmtl prepare` this config first, or list the features"
            )
        schema, tasks = Schema(features), Tasks(config.tasks)
        _known("--rows", rows, schema.tables, "table")
        _known("--length", lengths, {feature.name: feature for feature in schema.sparse}, "id or bag feature")
        statistics = None if manifest is None else Statistics.load(folder / "statistics")
        sizes = {name: _table_rows(schema, statistics, rows, name) for name in schema.tables}
        measured = {} if manifest is None else _bag_lengths(folder, manifest)
        values = {feature.name: _length(feature, lengths, measured) for feature in schema.sparse}
        counts: dict[str, np.ndarray[Any, Any]] = {}
        for name, (_, origin) in sizes.items():
            if statistics is not None and origin == "prepared data":
                counts[name] = np.asarray(statistics.tables[name].counts, np.float64)
        return cls(schema, tasks, statistics or _no_statistics(schema, tasks), sizes, values, counts, notes)


def _manifest(config: RunConfig, folder: Path) -> tuple[Manifest | None, tuple[str, ...]]:
    if not (folder / "manifest.json").is_file():
        return None, (f"{folder} holds no prepared data: rows and lengths are as stated",)
    manifest = Manifest.read_from(folder)
    wanted = config.explicit_features
    if (wanted is not None and tuple(wanted) != manifest.features) or tuple(config.tasks) != manifest.tasks:
        return None, (f"{folder} was prepared with other features or tasks and is not used; prepare again to use it",)
    return manifest, (f"rows, lengths and counts are those of {folder}",)


def _known(option: str, given: Iterable[str], there: Mapping[str, Any], what: str) -> None:
    for name in given:
        if name not in there:
            raise UserError(f"{option} {name}: there is no {what} of this name; there are {', '.join(there) or 'none'}")


def _table_rows(schema: Schema, statistics: Statistics | None, given: Mapping[str, int], name: str) -> tuple[int, str]:
    table = schema.tables[name]
    if name in given:
        if given[name] < 1:
            raise UserError(f"--rows {name}={given[name]}: a table has at least one row")
        return given[name], "--rows"
    if table.stated_rows is not None:
        return table.stated_rows, "hash_buckets" if table.managed is None else "managed"
    if statistics is not None:
        return statistics.tables[name].rows, "prepared data"
    raise UserError(
        f"features: how many rows table {name!r} will have is not known before the data are prepared; state it "
        f"(--rows {name}=1000000), or `recmtl prepare` this config first"
    )


def _length(feature: Feature, given: Mapping[str, float], measured: Mapping[str, float]) -> float:
    if feature.name in given:
        if not 0 < given[feature.name] < math.inf:
            raise UserError(f"--length {feature.name}={given[feature.name]:g}: a mean number of values is above 0")
        return given[feature.name]
    if feature.kind == "id":
        return 1.0
    if feature.name in measured:
        return measured[feature.name]
    if feature.max_length is not None:
        return float(feature.max_length)
    raise UserError(
        f"features.{feature.name}: how many values a row has is not known before the data are prepared; state it "
        f"(--length {feature.name}=5), or set its max_length, or `recmtl prepare` this config first"
    )


def _bag_lengths(folder: Path, manifest: Manifest) -> dict[str, float]:
    """Mean number of values per training row, from Parquet's own counts: nothing is read but metadata.

    An empty bag counts as one value there, so this is a little too high where many are empty.
    """
    values: dict[str, int] = {}
    rows = 0
    for shard in manifest.splits["train"].shards:
        metadata = pq.read_metadata(inside(folder, shard.path))
        rows += metadata.num_rows
        for group in range(metadata.num_row_groups):
            for column in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(column)
                if chunk.path_in_schema.startswith("bag:"):
                    name = chunk.path_in_schema.removeprefix("bag:").partition(".")[0]
                    values[name] = values.get(name, 0) + chunk.num_values
    return {name: count / rows for name, count in values.items() if rows}


def _no_statistics(schema: Schema, tasks: Tasks) -> Statistics:
    """Enough to build the dense part, whose shapes depend on none of it."""
    labels = {name: LabelStatistics(0, None, None) for name in tasks}
    return Statistics(
        tables={},
        numbers={feature.name: NumberStatistics(0, 0, 0.0, 1.0, 0.0, 0.0) for feature in schema.of_kind("number")},
        labels=labels,
        conditional_labels={name: labels[name] for name, task in tasks.items() if task.parent is not None},
    )


# Tables


@dataclass(frozen=True)
class _Table:
    """One table as it will be made."""

    name: str
    rows: int
    rows_from: str
    dim: int
    columns: int
    """What is stored of a row: the width, padded where the kernels ask for it."""
    lengths: tuple[float, ...]
    element: int
    """Bytes of a weight."""
    moments: tuple[int, int]
    fused: bool
    cache_load_factor: float | None
    distinct: float = 0.0

    @property
    def values(self) -> float:
        return sum(self.lengths)

    def weights(self, rows: int, columns: int) -> int:
        return rows * columns * self.element

    def state(self, rows: int, columns: int, *, whole_gradient: bool = False) -> int:
        """Bytes of the optimiser's state of a shard, and of its gradient where there is one of the whole table."""
        whole, per_row = self.moments
        return _FLOAT * ((whole + whole_gradient) * rows * columns + per_row * rows)


def _tables(sparse: SparseOptimizerConfig, sharding: ShardingConfig, facts: _Facts) -> tuple[_Table, ...]:
    fused = SPARSE_OPTIMIZERS[sparse.optimizer].fused
    moments = _moments(sparse)
    made = []
    cached = sparse.cached(facts.schema.tables)
    for name, table in facts.schema.tables.items():
        rows, origin = facts.rows[name]
        plain = not fused or sharding.of(name) == "data_parallel"
        made.append(
            _Table(
                name=name,
                rows=rows,
                rows_from=origin,
                dim=table.embedding_dim,
                columns=table.embedding_dim if plain else stored_width(table.embedding_dim),
                lengths=tuple(facts.lengths[feature] for feature in table.features),
                element=_HALF if sparse.precision == "float16" and not plain else _FLOAT,
                moments=moments,
                fused=fused,
                cache_load_factor=sparse.cache_load_factor if name in cached and not plain else None,
            )
        )
    return tuple(made)


def _moments(sparse: SparseOptimizerConfig) -> tuple[int, int]:
    """The sparse optimiser's float32 state: tensors as large as the table, tensors of one number a row."""
    if not SPARSE_OPTIMIZERS[sparse.optimizer].fused:
        return 2, 0  # torch's Adam and AdamW
    import recmtl.features.fused  # noqa: F401 - FBGEMM warns on import, and this file knows how to keep it quiet

    kinds = optimizer_states(fused_optimizer(sparse)[0])
    return kinds.count("element"), kinds.count("row")


def _distinct(rows: int, draws: float, counts: "np.ndarray[Any, Any] | None") -> float:
    """Expected number of different rows among independent draws; at most so many where no counts are known."""
    if counts is None or counts.sum() == 0:
        return min(float(rows), draws)
    shares = counts / counts.sum()
    return float(-np.expm1(draws * np.log1p(-np.minimum(shares, 1 - 1e-12))).sum())


# The dense part, counted


def _measure(config: RunConfig, facts: _Facts, machine: Machine) -> Dense:
    model = _tiny(config, facts)
    at_cut = any(
        isinstance(config.balancing, kind.config) and kind.build.at_cut
        for kind in BALANCERS.values()
        if hasattr(kind.build, "at_cut")
    )
    half = config.training.precision == "bf16" or (config.training.precision == "auto" and machine.device == "cuda")
    parameters = sum(parameter.numel() for parameter in model.dense_parameters().values())
    forward, training = _count_flops(model, facts, at_cut)
    small, large = 256, 512  # the slope between them is an example's own: what does not grow with the batch drops out
    peaks = [_peak(model, facts, size, half=half, at_cut=at_cut) for size in (small, large)]
    return Dense(parameters, forward, training, max(0.0, (peaks[1] - peaks[0]) / (large - small)))


def _tiny(config: RunConfig, facts: _Facts) -> Model:
    """The model itself but for the number of its tables' rows, which no dense shape depends on."""
    features = [
        feature.model_copy(update={"hash_buckets": None, "managed": None}) if feature.sparse else feature
        for feature in facts.schema.values()
    ]
    statistics = replace(facts.statistics, tables={name: Vocabulary((), ()) for name in facts.schema.tables})
    return build_model(config.model, Schema(features), facts.tasks, statistics, seed=0).train()


def _batch(facts: _Facts, size: int) -> Batch:
    keys = tuple(feature.name for feature in facts.schema.sparse)
    weighted = bool(facts.schema.of_kind("weighted_bag"))
    values = torch.zeros(len(keys) * size, dtype=torch.int64)
    return Batch(
        size=size,
        sparse=SparseBatch(
            keys=keys,
            values=values,
            lengths=torch.ones(len(keys) * size, dtype=torch.int32),
            weights=torch.ones(len(keys) * size) if weighted else None,
        ),
        dense=torch.zeros(size, facts.schema.dense_width),
        labels={},
        observed={},
        weights={},
        group=torch.zeros(size, dtype=torch.int64),
        row=torch.zeros(size, dtype=torch.int64),
    )


def _step(model: Model, batch: Batch, *, at_cut: bool) -> None:
    """Forward and backward as a step does them, over the logits' sums in place of the losses."""
    x_BD = model.embed(batch)
    leaf_BD = x_BD.detach().requires_grad_() if at_cut else x_BD
    output = model.decide(leaf_BD)
    sums = [logits.float().sum() for logits in output.logits.values()]
    extra = list(output.auxiliary.values())
    if not at_cut:
        torch.stack([*sums, *extra]).sum().backward()  # type: ignore[no-untyped-call]
        return
    targets = (leaf_BD, *model.shared_parameters())
    for task_sum in sums:  # not autograd.grad: torch's operation counter watches modules by hooks that refuse it
        task_sum.backward(retain_graph=True, inputs=targets)  # type: ignore[no-untyped-call]
    torch.stack([*sums, *extra]).sum().backward()  # type: ignore[no-untyped-call]
    x_BD.backward(leaf_BD.grad)  # type: ignore[no-untyped-call]


def _linear_flops(x_shape: Any, weight_shape: Any, *_: Any, **__: Any) -> int:
    """Of (…, K) by (N, K)."""
    return int(2 * math.prod(x_shape) * weight_shape[0])


_ONEDNN_FLOPS = (
    {torch.ops.mkldnn._linear_pointwise: _linear_flops} if hasattr(torch.ops.mkldnn, "_linear_pointwise") else {}
)
"""What torch's counter does not know of :mod:`recmtl.towers.products`."""


def _count_flops(model: Model, facts: _Facts, at_cut: bool) -> tuple[int, int]:
    """(forward, whole step), per example."""
    size = 8
    batch = _batch(facts, size)
    with torch.random.fork_rng(devices=[]):
        with FlopCounterMode(display=False, custom_mapping=_ONEDNN_FLOPS) as counter, torch.no_grad():
            model(batch)
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False, custom_mapping=_ONEDNN_FLOPS) as counter:
            _step(model, batch, at_cut=at_cut)
        return forward // size, counter.get_total_flops() // size


def _peak(model: Model, facts: _Facts, size: int, *, half: bool, at_cut: bool) -> int:
    """Bytes of storage alive at once that a step makes, over what was there before it."""
    batch = _batch(facts, size)
    model.zero_grad()
    live = _LiveStorage()
    with torch.random.fork_rng(devices=[]), live, torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        _step(model, batch, at_cut=at_cut)
    return live.peak


class _LiveStorage(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storage that operations make and that is alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(storage) for storage in _storages((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if id(storage) not in before and id(storage) not in self._seen:
                self._add(storage)
        return out

    def _add(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()

        def gone() -> None:
            self._seen.pop(key, None)
            self.now -= size

        self._seen[key] = weakref.finalize(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _storages(tree: Any) -> list[Any]:
    return [leaf.untyped_storage() for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _dense_moments(dense: DenseOptimizerConfig) -> int:
    """Its state: tensors as large as the parameters."""
    return {"adam": 2, "adamw": 2, "adagrad": 1}.get(dense.optimizer, 1 if dense.momentum else 0)


# The calculation


class _Calculation:
    """One machine, one set of tables; :meth:`result` tries others for its advice."""

    def __init__(
        self,
        config: RunConfig,
        facts: _Facts,
        tables: Sequence[_Table],
        dense: Dense,
        machine: Machine,
        batch_size: int,
        sparse: SparseOptimizerConfig | None = None,
    ) -> None:
        self.config, self.facts, self.dense, self.machine = config, facts, dense, machine
        self.sparse = sparse or config.training.sparse
        self.batch_size = batch_size
        self.rows_per_rank = -(-batch_size // machine.ranks)
        self.tables = [
            replace(table, distinct=_distinct(table.rows, batch_size * table.values, facts.counts.get(table.name)))
            for table in tables
        ]
        self._sharding = config.training.sharding.default
        everywhere = replicated_tables(config.training.sharding, facts.schema.tables)
        self._replicated = {table.name for table in tables if not table.fused or table.name in everywhere}
        """Tables that every rank has whole, and whose whole gradient is summed over the ranks."""
        self.fixed = self._fixed()
        self.shards = self._place()

    # One rank's memory

    def _fixed(self) -> Bytes:
        """All but the tables, which is the same on every rank."""
        machine, training = self.machine, self.config.training
        parameters = _FLOAT * self.dense.parameters
        moments = _dense_moments(training.dense)
        cuda = machine.device == "cuda"
        batch = self._batch_bytes() * (2 if cuda else training.prefetch + 1)
        parts = {
            "dense": 2 * parameters,
            "dense_optimizer": moments * parameters,
            "id_maps": sum(
                _ID_MAP * table.managed.rows for table in self._schema_tables() if table.managed is not None
            ),
            "exchange": parameters + self._replicated_bytes() if machine.ranks > 1 else 0,
            "activations": math.ceil(self.dense.activation_bytes * self.rows_per_rank),
            "batch": batch,
            "loader": 0 if cuda else self._window_bytes(),
            "reserve": math.ceil(_CUDA_RESERVE * machine.memory) if cuda else _CPU_RESERVE,
        }
        return Bytes(tables=0, table_optimizer=0, lookups=0, total=sum(parts.values()), host_tables=0, **parts)

    def _replicated_bytes(self) -> int:
        return sum(t.weights(t.rows, t.columns) for t in self.tables if t.name in self._replicated)

    def _schema_tables(self) -> Iterable[Table]:
        return self.facts.schema.tables.values()

    def _batch_bytes(self) -> int:
        """One rank's batch as tensors: ids, lengths, weights, dense columns, labels with their masks, group, row."""
        schema = self.facts.schema
        values = sum(self.facts.lengths.values())
        weights = _FLOAT * values if schema.of_kind("weighted_bag") else 0
        row = _ID * values + weights + _LENGTH * len(schema.sparse) + _FLOAT * schema.dense_width
        return math.ceil(self.rows_per_rank * (row + (_FLOAT + 1) * len(self.facts.tasks) + 16))

    def _window_bytes(self) -> int:
        """The loader's window: int32 ids and lists' int64 offsets, dense columns, labels; twice, as it is converted."""
        schema = self.facts.schema
        bags = len(schema.of_kind("bag", "weighted_bag"))
        row = 4 * sum(self.facts.lengths.values()) + 8 * bags + _FLOAT * schema.dense_width
        row += (_FLOAT + 1) * len(self.facts.tasks) + 16
        return math.ceil(2 * self.config.training.window_rows * row)

    # Where the tables go

    def _place(self) -> dict[str, tuple[str, tuple[tuple[int, int, int], ...]]] | None:
        """Table to its sharding and (rank, rows, columns) of every shard."""
        ranks = self.machine.ranks
        if not self.tables:
            return {}
        if not self.tables[0].fused:  # ordinary parameters: every rank has them all
            return {t.name: ("replicated", tuple((r, t.rows, t.columns) for r in range(ranks))) for t in self.tables}
        free = self.machine.memory - self.fixed.total
        for table in self.tables:
            if table.name in self._replicated:  # the planner deals out the others
                shape = (table.rows, table.columns)
                free -= table.weights(*shape) + table.state(*shape, whole_gradient=True)
        if free <= 0:
            return None
        machine = self.machine
        sharding = self.config.training.sharding
        sizes = {
            table.name: TableSize(
                rows=table.rows,
                width=table.columns,
                features=self.facts.schema.tables[table.name].features,
                dtype="float16" if table.element == 2 else "float32",
                kernel="fused" if table.cache_load_factor is None else "fused_uvm_caching",
                cache_load_factor=table.cache_load_factor,
            )
            for table in self.tables
        }
        # On GPUs the planner sets a share aside itself; here all that is to be set aside is counted.
        memory = math.floor(free / (1 - RESERVED_SHARE)) if machine.device == "cuda" else free
        try:
            plan = make_plan(
                sizes,
                sharding,
                optimizer_type=fused_optimizer(self.sparse)[0],
                ranks=ranks,
                device=machine.device,
                batch_size=self.batch_size,
                ranks_per_host=machine.ranks_per_host,
                memory=memory,
            )
        except UserError:  # they do not fit
            return None
        return {
            table.table: (table.sharding, tuple((shard.rank, shard.rows, shard.columns) for shard in table.shards))
            for table in plan.tables
        }

    def bytes(self) -> Bytes:
        """The fullest rank."""
        each = [self._rank_bytes(rank) for rank in range(self.machine.ranks)]
        return max(each, key=lambda found: (found.total, found.host_tables))

    def _rank_bytes(self, rank: int) -> Bytes:
        weights = state = host = 0
        lookups = 0.0
        for table, _, shard_rows, columns in self._shards_of(rank):
            replicated = table.name in self._replicated
            whole = table.weights(shard_rows, columns)
            moments = table.state(shard_rows, columns, whole_gradient=replicated)
            if table.cache_load_factor is None:
                weights, state = weights + whole, state + moments
            else:
                host += whole + moments
                # FBGEMM's cache: the rows, an int32 a row of the table, two int64 a cached row
                weights += math.ceil(table.cache_load_factor * (whole + 16 * shard_rows) + 4 * shard_rows)
            if self.machine.ranks > 1 and not replicated:
                ids = self.batch_size * table.values * shard_rows / table.rows
                lookups += 2 * _ID * ids + 2 * self.batch_size * len(table.lengths) * columns * _FLOAT
        total = self.fixed.total + weights + state + math.ceil(lookups)
        return replace(
            self.fixed,
            tables=weights,
            table_optimizer=state,
            lookups=math.ceil(lookups),
            total=total,
            host_tables=host,
        )

    def _shards_of(self, rank: int) -> Iterable[tuple[_Table, str, int, int]]:
        if self.shards is None:  # an even split: what the planner could not reach
            for table in self.tables:
                yield table, "unplaced", -(-table.rows // self.machine.ranks), table.columns
            return
        for table in self.tables:
            sharding, shards = self.shards[table.name]
            for where, shard_rows, columns in shards:
                if where == rank:
                    yield table, sharding, shard_rows, columns

    # One step

    def step(self) -> Step:
        """Bytes and operations."""
        ranks, b = self.machine.ranks, self.rows_per_rank
        parameters = _FLOAT * self.dense.parameters
        moments = _dense_moments(self.config.training.dense)
        sent, received = [0.0] * ranks, [0.0] * ranks
        memory = [(6 + 2 * moments) * parameters + 2 * self.dense.activation_bytes * b] * ranks
        read = updated = 0.0
        for rank in range(ranks):
            for table, _, shard_rows, columns in self._shards_of(rank):
                replicated = table.name in self._replicated
                share = 1 / ranks if replicated else shard_rows / table.rows
                values = self.batch_size * table.values * share
                looked_up = values * columns * table.element
                if replicated:  # every row is read and written: gradient, moments and weights
                    moved = table.state(shard_rows, columns, whole_gradient=True)
                    changed = 2.0 * (table.weights(shard_rows, columns) + moved)
                else:
                    rows = table.distinct * share
                    changed = 2 * (rows * columns * table.element + table.state(1, columns) * rows)
                changed += values * columns * _FLOAT
                read, updated = read + looked_up, updated + changed
                memory[rank] += looked_up + changed
                if replicated:
                    continue
                ids = b * (table.values * share * _ID + len(table.lengths) * _LENGTH)
                pooled = b * len(table.lengths) * columns * _FLOAT
                for other in range(ranks):
                    if other != rank:
                        sent[other] += ids + pooled
                        received[rank] += ids + pooled
                        sent[rank] += pooled
                        received[other] += pooled
        reduced = 2 * (ranks - 1) / ranks * (parameters + self._replicated_bytes())
        return Step(
            read=read,
            updated=updated,
            sent=max(max(sent), max(received)),
            reduced=reduced,
            memory=max(memory),
            flops=self.dense.training_flops * b,
        )

    # The answer

    def fits(self) -> bool:
        """Whether the fullest rank has room."""
        rank, machine = self.bytes(), self.machine
        hosted = machine.host_memory is None or rank.host_tables <= machine.host_memory
        return self.shards is not None and rank.total <= machine.memory and hosted

    def result(self) -> Capacity:
        """The answer, with advice where it is no."""
        fits, rank, step = self.fits(), self.bytes(), self.step()
        return Capacity(
            fits=fits,
            verdict=self._verdict(fits, rank),
            advice=() if fits else tuple(self._advice()),
            notes=self._notes(),
            machine=self.machine,
            batch_size=self.batch_size,
            rows_per_rank=self.rows_per_rank,
            tables=tuple(self._table(table) for table in self.tables),
            rank=rank,
            dense=self.dense,
            step=step,
            bounds=self._bounds(step),
        )

    def _table(self, table: _Table) -> TableCapacity:
        sharding, shards = ("unplaced", ()) if self.shards is None else self.shards[table.name]
        shapes = [(rows, columns) for _, rows, columns in shards] or [(table.rows, table.columns)]
        replicated = table.name in self._replicated
        if replicated:
            shapes = shapes[:1]
        return TableCapacity(
            name=table.name,
            rows=table.rows,
            rows_from=table.rows_from,
            dim=table.dim,
            values_per_row=table.values,
            precision="float16" if table.element == 2 else "float32",
            placement="device" if table.cache_load_factor is None else "managed_caching",
            weight_bytes=sum(table.weights(*shape) for shape in shapes),
            optimizer_bytes=sum(table.state(*shape, whole_gradient=replicated) for shape in shapes),
            sharding=sharding,
            ranks=tuple(sorted({where for where, _, _ in shards})),
            distinct=table.distinct,
        )

    def _verdict(self, fits: bool, rank: Bytes) -> str:
        machine = self.machine
        where = f"{machine.ranks} × {machine.memory / GIB:g} GiB"
        if fits:
            return f"fits: the fullest of {where} holds {rank.total / GIB:.2f} GiB"
        if machine.host_memory is not None and rank.host_tables > machine.host_memory and rank.total <= machine.memory:
            return (
                f"does not fit: {rank.host_tables / GIB:.2f} GiB of cached tables a rank, in "
                f"{machine.host_memory / GIB:g} GiB of host memory"
            )
        return f"does not fit {where}: needs at least {self._least() / GIB:.2f} GiB on each"

    def _least(self) -> int:
        """Bytes that the fullest rank has at the very least, however the planner may split the tables."""
        sizes = [
            table.weights(table.rows, table.columns)
            + table.state(table.rows, table.columns, whole_gradient=table.name in self._replicated)
            for table in self.tables
            if table.cache_load_factor is None
        ]
        if self.tables and not self.tables[0].fused:
            least = self.fixed.total + sum(sizes)
        else:
            whole = max(sizes, default=0) if self._kept_whole() else 0
            least = self.fixed.total + max(whole, -(-sum(sizes) // self.machine.ranks))
        return least if self.shards is None else max(least, self.bytes().total)

    def _kept_whole(self) -> bool:
        """Whether no table is split: on CPUs only columns can be, and a row-wise optimiser is spared that."""
        return self.machine.device == "cpu" and self._sharding == "auto" and _moments(self.sparse)[1] > 0

    def _advice(self) -> Iterable[str]:
        """What would make it fit, each worked out anew."""
        cuda, fused = self.machine.device == "cuda", bool(self.tables) and self.tables[0].fused
        if not fused and self.tables:
            fused_one = self._with(SparseOptimizerConfig())
            yield from self._try("a fused optimiser (training.sparse.optimizer: rowwise_adagrad)", fused_one)
        if cuda and fused and self.sparse.precision == "float32":
            half = self._with(self.sparse.model_copy(update={"precision": "float16"}))
            yield from self._try("half the weights (training.sparse.precision: float16)", half)
        if cuda and fused and len(self.sparse.cached(self.facts.schema.tables)) < len(self.tables):
            cached = self._with(self.sparse.model_copy(update={"placement": "managed_caching"}))
            hosted = f"{cached.bytes().host_tables / GIB:.2f} GiB of host memory a GPU"
            yield from self._try(f"tables in {hosted} (training.sparse.placement: managed_caching)", cached)
        if self.batch_size > self.machine.ranks and self.fixed.activations + self.fixed.batch > 0.1 * self.fixed.total:
            size = -(-self.batch_size // 2)
            smaller = _Calculation(self.config, self.facts, self.tables, self.dense, self.machine, size, self.sparse)
            yield from self._try(f"half the batch (training.batch_size: {size})", smaller)
        yield from self._more_ranks(cuda)

    def _try(self, what: str, other: "_Calculation") -> Iterable[str]:
        if other.fits():
            yield f"{what}: fits, {other.bytes().total / GIB:.2f} GiB on the fullest"
        else:
            yield f"{what}: not enough by itself, at least {other._least() / GIB:.2f} GiB on each"

    def _with(self, sparse: SparseOptimizerConfig) -> "_Calculation":
        tables = _tables(sparse, self.config.training.sharding, self.facts)
        return _Calculation(self.config, self.facts, tables, self.dense, self.machine, self.batch_size, sparse)

    def _more_ranks(self, cuda: bool) -> Iterable[str]:
        what = "GPUs" if cuda else "ranks"
        ranks = self.machine.ranks
        while (ranks := 2 * ranks) <= _MOST_RANKS:
            other = self._on(replace(self.machine, ranks=ranks))
            if other.fits():
                yield f"{ranks} {what}: fits, {other.bytes().total / GIB:.2f} GiB on the fullest"
                return
        why = "what every rank holds alike is too large"
        if not cuda and self.machine.memory > self.fixed.total:
            why = "on CPUs a table is split by columns alone, and the largest does not fit so"
            if self._kept_whole():
                why = (
                    "on CPUs a table is split by columns alone, which training.sharding.default: auto spares one with "
                    "a row-wise optimiser"
                )
        yield f"more {what}: not enough, up to {_MOST_RANKS}; {why}"

    def _on(self, machine: Machine) -> "_Calculation":
        return _Calculation(self.config, self.facts, self.tables, self.dense, machine, self.batch_size, self.sparse)

    def _notes(self) -> tuple[str, ...]:
        notes = list(self.facts.notes)
        if any(table.name not in self.facts.counts for table in self.tables):
            notes.append("where counts are not known, every value of a step is taken for another row")
        return tuple(notes)

    def _bounds(self, step: Step) -> dict[str, float]:
        machine = self.machine
        bounds: dict[str, float] = {}
        if machine.flops:
            bounds["compute"] = self.batch_size * machine.flops / max(step.flops, 1)
        if machine.memory_bandwidth:
            bounds["memory"] = self.batch_size * machine.memory_bandwidth / step.memory
        if machine.interconnect and machine.ranks > 1:
            bounds["interconnect"] = self.batch_size * machine.interconnect / max(step.sent + step.reduced, 1)
        return {**bounds, "samples_per_second": min(bounds.values())} if bounds else {}
