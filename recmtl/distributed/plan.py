"""Which rank holds which part of which embedding table. In: the tables' sizes, the ranks, what the user asked for.

Out: a :class:`Plan`, plain data: rank 0 makes it with TorchRec's planner and every rank builds its shards from the same
JSON, the run's folder keeps that JSON, and :func:`describe_plan` shows it.

    table_wise       a table lies whole on one rank
    column_wise      its columns are dealt to the ranks
    row_wise         its rows are cut evenly over all ranks              (GPU)
    table_row_wise   its rows are cut over the ranks of one host         (GPU)
    grid             its columns are dealt to hosts, rows within a host  (GPU)
    data_parallel    every rank has all of it; its gradient is added up  (recmtl.features.replicated)

TorchRec has kernels for row_wise, table_row_wise and grid on GPUs alone (torchrec/distributed/embedding_types.py). Its
data-parallel tables get the dense kernel without a fused optimiser, so those are our own, with the same maths; every
step exchanges the whole table's gradient, so ``auto`` leaves them to who asks for them.

A row-wise optimiser keeps one number a row; of a table cut by columns, one a row *and cut*, which is another optimiser.
So ``auto`` never cuts its columns, and asking for it is a choice. On a CPU ``auto`` deals out whole tables as long as
they fit, since a second kind of sharding is a second exchange in every step, which the planner's model leaves out.
"""

import logging
import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch

from recmtl.errors import UserError
from recmtl.settings import Settings

__all__ = [
    "RESERVED_SHARE",
    "Plan",
    "PlanRow",
    "Shard",
    "Sharding",
    "ShardingConfig",
    "TablePlan",
    "TableSize",
    "check_sharding",
    "describe_plan",
    "format_plan",
    "make_plan",
    "optimizer_states",
    "parameter_shardings",
    "replicated_tables",
    "stored_width",
    "table_collection",
    "table_of",
]

Sharding = Literal["auto", "table_wise", "column_wise", "row_wise", "table_row_wise", "grid", "data_parallel"]
"""How a table is cut; auto: as TorchRec's planner finds cheapest."""

_ON_GPU_ONLY = ("row_wise", "table_row_wise", "grid")
_PREFIX = "table_"  # TorchRec keeps tables in an nn.ModuleDict, which refuses names such as `items` and `type`
RESERVED_SHARE = 0.15
"""What the planner sets aside of a GPU's memory, for the dense part and activations."""
_COLUMNS_STEP = 4  # FBGEMM's kernels want widths that are multiples of this
_STATES: dict[str, tuple[Literal["element", "row"], ...]] = {
    "SGD": (),
    "RowWiseAdagrad": ("row",),
    "Adagrad": ("element",),
    "Adam": ("element", "element"),
    "LAMB": ("element", "element"),
    "PartialRowWiseAdam": ("element", "row"),
    "PartialRowWiseLAMB": ("element", "row"),
}


def stored_width(dim: int) -> int:
    """Columns that a table of this width has in FBGEMM's memory: the next multiple of 4."""
    return -(-dim // _COLUMNS_STEP) * _COLUMNS_STEP


def optimizer_states(optimizer_type: type[torch.optim.Optimizer]) -> tuple[Literal["element", "row"], ...]:
    """What a fused optimiser keeps beside the weights, in FBGEMM's order: a float32 an element, or one a row."""
    return _STATES[optimizer_type.__name__]


class ShardingConfig(Settings):
    """How the embedding tables are cut over the ranks; with one rank it changes nothing."""

    default: Sharding = "auto"
    """Of every table that `tables` does not name: auto (TorchRec's planner decides), table_wise, column_wise,
    data_parallel (whole on every rank, for small tables), and on GPUs row_wise, table_row_wise or grid."""
    tables: dict[str, Sharding] = {}
    """Table name to its own."""

    def of(self, table: str) -> Sharding:
        """What is asked of one table."""
        return self.tables.get(table, self.default)

    @property
    def replicates(self) -> bool:
        """Whether it asks for data-parallel tables."""
        return "data_parallel" in (self.default, *self.tables.values())


def check_sharding(config: ShardingConfig, device: str) -> None:
    """Refuse what the device has no kernels for.

    Args:
        config: what is asked for.
        device: "cpu" or "cuda".

    Raises:
        UserError: names the field.
    """
    asked = {"training.sharding.default": config.default}
    asked.update({f"training.sharding.tables.{name}": kind for name, kind in config.tables.items()})
    for field, kind in asked.items():
        if device != "cuda" and kind in _ON_GPU_ONLY:
            raise UserError(
                f"{field}: TorchRec shards {kind} on GPUs only, and this run is on {device}; "
                "use table_wise, column_wise or auto"
            )


@dataclass(frozen=True)
class TableSize:
    """What the planner is told of a table."""

    rows: int
    width: int
    """Columns as stored: a multiple of 4."""
    features: tuple[str, ...]
    weighted: bool = False
    dtype: Literal["float32", "float16"] = "float32"
    """Of the weights; optimiser state is float32."""
    kernel: str = "fused"
    """TorchRec's compute kernel: fused, or fused_uvm_caching for weights in host memory behind a cache on the GPU."""
    cache_load_factor: float | None = None
    """fused_uvm_caching: the share of the rows that the GPU caches."""

    @property
    def element_bytes(self) -> int:
        """Of a weight."""
        return 2 if self.dtype == "float16" else 4


class Shard(NamedTuple):
    """One rank's part of a table."""

    rank: int
    row: int
    """First row."""
    rows: int
    column: int
    """First column."""
    columns: int


@dataclass(frozen=True)
class TablePlan:
    """How one table is cut."""

    table: str
    rows: int
    width: int
    """Columns as stored: a multiple of 4."""
    sharding: str
    kernel: str
    shards: tuple[Shard, ...]
    bytes: int
    """Weights and optimiser state, over all ranks."""


@dataclass(frozen=True)
class Plan:
    """How all tables are cut."""

    ranks: int
    device: str
    """"cpu" or "cuda"."""
    tables: tuple[TablePlan, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Plan":
        """What :meth:`to_json` gave, also after a passage through JSON text."""
        tables = [
            TablePlan(**{**table, "shards": tuple(Shard(*shard) for shard in table["shards"])})
            for table in data["tables"]
        ]
        return Plan(data["ranks"], data["device"], tuple(tables))

    def bytes_of(self, rank: int) -> int:
        """Bytes of weights and optimiser state on one rank."""
        total = 0
        for table in self.tables:
            cells = {shard: shard.rows * shard.columns for shard in table.shards}
            mine = sum(count for shard, count in cells.items() if shard.rank == rank)
            total += table.bytes * mine // sum(cells.values())
        return total


class PlanRow(NamedTuple):
    """One line of a plan as it is shown."""

    table: str
    rows: int
    dim: int
    sharding: str
    ranks: str
    """"0", or "0, 1" with one entry a shard."""
    bytes: int


def replicated_tables(config: ShardingConfig, tables: Collection[str]) -> tuple[str, ...]:
    """Which of these tables every rank shall hold whole.

    Raises:
        UserError: the config names a table that is not among them.
    """
    for name in config.tables:
        if name not in tables:
            raise UserError(f"training.sharding.tables: there is no table {name!r}; the tables are {', '.join(tables)}")
    return tuple(name for name in tables if config.of(name) == "data_parallel")


def describe_plan(plan: Plan) -> list[PlanRow]:
    """A line a table, in the schema's order."""
    return [
        PlanRow(
            table.table,
            table.rows,
            table.width,
            table.sharding,
            ", ".join(str(shard.rank) for shard in table.shards),
            table.bytes,
        )
        for table in plan.tables
    ]


def format_plan(plan: Plan) -> str:
    """The plan as text: a line a table, and what each rank holds."""
    lines = [list(PlanRow._fields), *([str(value) for value in row] for row in describe_plan(plan))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(PlanRow._fields))]
    text = ["  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    held = ", ".join(f"rank {rank} {plan.bytes_of(rank) / 1e6:,.1f} MB" for rank in range(plan.ranks))
    return "\n".join([*text, f"held: {held}"])


def make_plan(
    sizes: Mapping[str, TableSize],
    config: ShardingConfig,
    *,
    optimizer_type: type[torch.optim.Optimizer],
    ranks: int,
    device: str,
    batch_size: int = 4096,
    ranks_per_host: int | None = None,
    memory: int | None = None,
) -> Plan:
    """Plan with TorchRec's planner; no process group and no GPU is needed.

    Args:
        sizes: table name to size.
        config: what the user asks of which table.
        optimizer_type: the tables' optimiser: its state takes memory, and a row-wise one is spared column cuts.
        ranks: how many share the tables.
        device: "cpu" or "cuda": of the ranks, not of the machine that plans.
        batch_size: rows a step over all ranks.
        ranks_per_host: by default what the launcher says (``LOCAL_WORLD_SIZE``), or all of them.
        memory: bytes a rank has for its part: of the GPU, or of main memory; by default this machine's.

    Raises:
        UserError: a table that does not exist, an impossible sharding, or tables that do not fit.
    """
    check_sharding(config, device)
    everywhere = replicated_tables(config, sizes)
    dealt = {name: size for name, size in sizes.items() if name not in everywhere}
    per_host = ranks_per_host or int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    memory = memory or _memory(device, per_host)
    with _quiet():
        for kinds in _kinds_to_try(config, dealt, device, ranks, per_host, optimizer_type):
            options = _torchrec_plan(dealt, kinds, optimizer_type, ranks, per_host, device, batch_size, memory)
            if options is not None:
                break
        else:
            needed = sum(size.rows * size.width * size.element_bytes for size in sizes.values())
            raise UserError(
                f"training.sharding: the tables ({needed / 1e9:,.2f} GB of weights, and their optimiser's state) do "
                f"not fit {ranks} rank(s) of {memory / 1e9:,.2f} GB each that way; use more ranks, narrower tables, or "
                "sharding: auto"
            )
    states = optimizer_states(optimizer_type)
    tables = []
    for name, size in sizes.items():
        if name in everywhere:
            kind, kernel = "data_parallel", size.kernel
            shards = tuple(Shard(rank, 0, size.rows, 0, size.width) for rank in range(ranks))
        else:
            kind, kernel, shards = _understood(options[_PREFIX + name])
        total = sum(_shard_bytes(shard, size, states) for shard in shards)
        tables.append(TablePlan(name, size.rows, size.width, kind, kernel, shards, total))
    return Plan(ranks, device, tuple(tables))


def _shard_bytes(shard: Shard, size: TableSize, states: Collection[str]) -> int:
    """Of weights and optimiser state."""
    state = sum(4 * (shard.columns if kind == "element" else 1) for kind in states)
    return shard.rows * (shard.columns * size.element_bytes + state)


def _understood(option: Any) -> tuple[str, str, tuple[Shard, ...]]:
    """TorchRec's ParameterSharding as sharding, kernel and shards."""
    shards = tuple(
        Shard(rank, offsets[0], counts[0], offsets[1], counts[1])
        for rank, offsets, counts in (
            (part.placement.rank(), part.shard_offsets, part.shard_sizes) for part in option.sharding_spec.shards
        )
    )
    kind = "grid" if option.sharding_type == "grid_shard" else str(option.sharding_type)
    if kind == "column_wise" and len(shards) == 1:  # the same, and exchanged together with the whole ones
        kind = "table_wise"
    return kind, str(option.compute_kernel), shards


def _torchrec_plan(
    sizes: Mapping[str, TableSize],
    kinds: Mapping[str, list[str]],
    optimizer_type: type[torch.optim.Optimizer],
    ranks: int,
    per_host: int,
    device: str,
    batch_size: int,
    memory: int,
) -> dict[str, Any] | None:
    """Table name, prefixed, to TorchRec's ParameterSharding; None if they do not fit."""
    if not sizes:
        return {}
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import ParameterConstraints, PlannerError
    from torchrec.distributed.types import CacheParams

    collection = table_collection(sizes)
    for bag in collection.embedding_bags.values():
        bag.weight._optimizer_classes = [optimizer_type]  # whose state the planner counts
    constraints = {
        _PREFIX + name: ParameterConstraints(
            sharding_types=kinds[name],
            compute_kernels=[size.kernel],
            min_partition=_columns(size.width, -(-ranks // per_host) if kinds[name] == ["grid_shard"] else ranks),
            pooling_factors=[1.0] * len(size.features),
            num_poolings=[1.0] * len(size.features),
            batch_sizes=[-(-batch_size // ranks)] * len(size.features),
            is_weighted=size.weighted,
            feature_names=list(size.features),
            cache_params=None if size.cache_load_factor is None else CacheParams(load_factor=size.cache_load_factor),
        )
        for name, size in sizes.items()
    }
    here = {"hbm_cap": memory} if device == "cuda" else {"ddr_cap": memory}
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=ranks, local_world_size=min(per_host, ranks), compute_device=device, **here),
        batch_size=-(-batch_size // ranks),
        constraints=constraints,
        storage_reservation=FixedPercentageStorageReservation(RESERVED_SHARE),
        stats=[],
        debug=False,
    )
    try:
        plan = planner.plan(collection, [EmbeddingBagCollectionSharder()])
    except PlannerError:
        return None
    (tables,) = plan.plan.values()
    return dict(tables)


def table_collection(sizes: Mapping[str, TableSize]) -> Any:
    """TorchRec's EmbeddingBagCollection of such tables, without storage: what is planned for, and sharded."""
    from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    return EmbeddingBagCollection(
        [
            EmbeddingBagConfig(
                name=_PREFIX + name,
                num_embeddings=size.rows,
                embedding_dim=size.width,
                feature_names=list(size.features),
                pooling=PoolingType.SUM,
                data_type=DataType.FP16 if size.dtype == "float16" else DataType.FP32,
                weight_init_min=0.0,  # initial values are loaded; see recmtl.features.inputs.initial_blocks
                weight_init_max=0.0,
            )
            for name, size in sizes.items()
        ],
        is_weighted=any(size.weighted for size in sizes.values()),
        device=torch.device("meta"),
    )


def parameter_shardings(plan: Plan) -> Any:
    """The plan in TorchRec's own class, for its ShardedEmbeddingBagCollection."""
    from torch.distributed._shard.metadata import ShardMetadata
    from torch.distributed._shard.sharding_spec import EnumerableShardingSpec  # type: ignore[attr-defined]
    from torchrec.distributed.planner.utils import placement
    from torchrec.distributed.types import EmbeddingModuleShardingPlan, ParameterSharding

    per_host = int(os.environ.get("LOCAL_WORLD_SIZE", plan.ranks))
    return EmbeddingModuleShardingPlan(
        {
            _PREFIX + table.table: ParameterSharding(
                sharding_type="grid_shard" if table.sharding == "grid" else table.sharding,
                compute_kernel=table.kernel,
                ranks=[shard.rank for shard in table.shards],
                sharding_spec=EnumerableShardingSpec(
                    [
                        ShardMetadata(
                            shard_offsets=[shard.row, shard.column],
                            shard_sizes=[shard.rows, shard.columns],
                            placement=placement(plan.device, shard.rank, per_host),
                        )
                        for shard in table.shards
                    ]
                ),
            )
            for table in plan.tables
        }
    )


def table_of(module: str) -> str:
    """The table's own name, from that of TorchRec's module."""
    return module.removeprefix(_PREFIX)


def _kinds_to_try(
    config: ShardingConfig,
    sizes: Mapping[str, TableSize],
    device: str,
    ranks: int,
    per_host: int,
    optimizer_type: type[torch.optim.Optimizer],
) -> list[dict[str, list[str]]]:
    """Table name to what the planner may choose from; a later entry is for when the one before does not fit."""
    whole = ["table_wise"]
    columns = [] if "row" in optimizer_states(optimizer_type) else ["column_wise"]
    if ranks == 1:
        rounds = [whole]
    elif device == "cuda":
        rounds = [[*whole, *columns, "row_wise", *(["table_row_wise"] if per_host < ranks else [])]]
    else:
        rounds = [whole, [*whole, *columns]] if columns else [whole]
    asked = {name: "grid_shard" if config.of(name) == "grid" else config.of(name) for name in sizes}
    return [{name: auto if kind == "auto" else [kind] for name, kind in asked.items()} for auto in rounds]


def _columns(width: int, parts: int) -> int:
    """Columns of one cut: the widest that gives `parts` cuts, or the narrowest there is."""
    cuts = [columns for columns in range(_COLUMNS_STEP, width + 1, _COLUMNS_STEP) if width % columns == 0]
    return max((columns for columns in cuts if width // columns >= parts), default=cuts[0])


def _memory(device: str, per_host: int) -> int:
    if device == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    if device == "cuda":
        return 32 * 1024**3
    import psutil

    return int(psutil.virtual_memory().total // per_host)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without TorchRec's advice for jobs inside of Meta, and without what FBGEMM's CPU build warns of on import."""
    logger = logging.getLogger("torchrec.distributed.planner")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
