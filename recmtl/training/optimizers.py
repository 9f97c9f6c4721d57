"""Optimisers: one for the embedding tables, one for everything else.

Tables either step inside ``backward`` (fused, FBGEMM) or are ordinary parameters under an exact torch optimiser. Both
look the same from outside: :class:`SparseOptimizer`. The dense optimiser is torch's own, with names to its state.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from recmtl.distributed.plan import ShardingConfig, check_sharding
from recmtl.errors import RunError, UserError
from recmtl.features import MakeTables, Pieces, PlainTables, Stored
from recmtl.group import ONE, Group
from recmtl.settings import Settings
from recmtl.training.schedules import ScheduleConfig

__all__ = [
    "SPARSE_OPTIMIZERS",
    "DenseOptimizer",
    "DenseOptimizerConfig",
    "SparseOptimizer",
    "SparseOptimizerConfig",
    "check_sparse_optimizer",
    "make_tables",
    "sparse_optimizer",
]

Betas = tuple[float, float]
Placement = Literal["device", "managed_caching"]


class SparseOptimizerConfig(Settings):
    """The optimiser of the embedding tables."""

    optimizer: Literal[
        "rowwise_adagrad",
        "adagrad",
        "sgd",
        "adam",
        "partial_rowwise_adam",
        "lamb",
        "partial_rowwise_lamb",
        "exact_adam",
        "exact_adamw",
    ] = "rowwise_adagrad"
    """rowwise_adagrad, adagrad, sgd: fused, they step inside backward and touch the rows of the batch alone. adam,
    partial_rowwise_adam (one second moment a row), lamb, partial_rowwise_lamb: fused as well, on a GPU only (FBGEMM has
    no CPU kernel for them). exact_adam, exact_adamw: torch's own over plain tables, on any device; every row moves at
    every step, which costs time and memory with the size of the tables."""
    lr: float = Field(default=0.02, gt=0)
    """Learning rate."""
    eps: float | None = Field(default=None, gt=0)
    """Added to the denominator; by default 1e-8. Not for sgd."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty (exact_adamw: decoupled). Of the fused ones sgd and adagrad do not have it, and none on a CPU."""
    betas: Betas | None = None
    """The adams and lambs: decay of the two moments; by default 0.9 and 0.999."""
    schedule: ScheduleConfig | None = None
    """How the rate changes; by default as training.schedule says."""
    precision: Literal["float32", "float16"] = "float32"
    """Of the tables' weights. float16 halves them, with stochastic rounding so that small steps are not lost in the
    mean; on a GPU only, for a fused optimiser. The optimiser's state, the embeddings that come out and data_parallel
    tables are float32."""
    placement: Placement | dict[str, Placement] = "device"
    """Where the tables lie, all of them or by name (those not named: on the device). managed_caching: in host memory,
    behind a cache on the GPU, for tables larger than its memory; for a fused optimiser. data_parallel tables are on
    the device always."""
    cache_load_factor: float = Field(default=0.2, gt=0, le=1)
    """managed_caching: the share of a table's rows that the GPU caches."""

    @property
    def is_cached(self) -> bool:
        """Whether a table may be cached."""
        placed = self.placement.values() if isinstance(self.placement, dict) else (self.placement,)
        return "managed_caching" in placed

    def cached(self, tables: Collection[str]) -> tuple[str, ...]:
        """Which of these tables lie in host memory.

        Raises:
            UserError: a placement is of a table that is not there.
        """
        if not isinstance(self.placement, dict):
            return tuple(tables) if self.placement == "managed_caching" else ()
        for name in self.placement:
            if name not in tables:
                raise UserError(
                    f"training.sparse.placement.{name}: there is no table of this name; there are {', '.join(tables)}"
                )
        return tuple(name for name in tables if self.placement.get(name) == "managed_caching")

    @model_validator(mode="after")
    def _fields_fit_the_optimizer(self) -> "SparseOptimizerConfig":
        if not SPARSE_OPTIMIZERS[self.optimizer].fused:
            for field, unusual in (("precision", self.precision == "float16"), ("placement", self.is_cached)):
                if unusual:
                    raise ValueError(
                        f"sparse.{field}: {self.optimizer} has plain float32 tables on the device; use a fused "
                        "optimiser, such as rowwise_adagrad"
                    )
        if self.betas is not None and not _has_moments(self.optimizer):
            raise ValueError(f"sparse.betas belongs to the adams and lambs, not {self.optimizer}")
        if self.eps is not None and self.optimizer == "sgd":
            raise ValueError("sparse.eps does not belong to sgd")
        return self


class _SparseKind(NamedTuple):
    """What FBGEMM or torch can do; measured with fbgemm 1.8 (tests/training/test_optimizers.py tries it again)."""

    fused: bool
    devices: tuple[str, ...] = ("cpu", "cuda")
    decays_on: tuple[str, ...] = ()
    """Where ``weight_decay`` has an effect: FBGEMM's CPU kernels take it and ignore it."""


SPARSE_OPTIMIZERS: dict[str, _SparseKind] = {
    "rowwise_adagrad": _SparseKind(fused=True, decays_on=("cuda",)),
    "adagrad": _SparseKind(fused=True),
    "sgd": _SparseKind(fused=True),
    "adam": _SparseKind(fused=True, devices=("cuda",), decays_on=("cuda",)),
    "partial_rowwise_adam": _SparseKind(fused=True, devices=("cuda",), decays_on=("cuda",)),
    "lamb": _SparseKind(fused=True, devices=("cuda",), decays_on=("cuda",)),
    "partial_rowwise_lamb": _SparseKind(fused=True, devices=("cuda",), decays_on=("cuda",)),
    "exact_adam": _SparseKind(fused=False, decays_on=("cpu", "cuda")),
    "exact_adamw": _SparseKind(fused=False, decays_on=("cpu", "cuda")),
}
"""``optimizer`` in the config to what it can do where."""


def _has_moments(optimizer: str) -> bool:
    return "adam" in optimizer or "lamb" in optimizer


def check_sparse_optimizer(config: SparseOptimizerConfig, device: str) -> None:
    """Refuse what the device's kernels cannot do.

    Args:
        config: the optimiser.
        device: "cpu" or "cuda".

    Raises:
        UserError: no such optimiser, weight decay, float16 or cache on this device; the alternatives are named.
    """
    kind = SPARSE_OPTIMIZERS[config.optimizer]
    if config.precision == "float16" and device != "cuda":
        raise UserError(
            "training.sparse.precision: float16 needs a GPU: FBGEMM's CPU kernels round to the nearest number even "
            "when asked to round stochastically, which loses every small step; use float32"
        )
    if config.is_cached and device != "cuda":
        raise UserError(
            "training.sparse.placement: managed_caching keeps tables in host memory behind a cache on a GPU, and there "
            f"is none on {device}: the tables are in host memory already; use device"
        )
    if device not in kind.devices:
        here = [name for name, other in SPARSE_OPTIMIZERS.items() if device in other.devices]
        raise UserError(
            f"training.sparse.optimizer: FBGEMM has no {config.optimizer} on {device}; "
            f"use {', '.join(here[:-1])} or {here[-1]}"
        )
    if config.weight_decay and device not in kind.decays_on:
        here = [name for name, other in SPARSE_OPTIMIZERS.items() if device in other.decays_on]
        raise UserError(
            f"training.sparse.weight_decay: {config.optimizer} ignores it on {device}; leave it at 0 or use "
            f"{' or '.join(here)}"
        )


def make_tables(
    config: SparseOptimizerConfig,
    device: torch.device | str,
    *,
    sharding: ShardingConfig | None = None,
    batch_size: int = 4096,
    group: Group = ONE,
) -> MakeTables:
    """What :func:`recmtl.model.build_model` makes its tables with, so that this optimiser can step them.

    Args:
        config: the optimiser.
        device: where the tables will train.
        sharding: how fused tables are cut over the ranks; plain ones are whole on every rank.
        batch_size: rows a step over all ranks.
        group: the ranks.

    Raises:
        UserError: the device's kernels cannot do this.
    """
    device = torch.device(device)
    check_sparse_optimizer(config, device.type)
    check_sharding(sharding or ShardingConfig(), device.type)
    if not SPARSE_OPTIMIZERS[config.optimizer].fused:
        return PlainTables

    def fused(shapes: Mapping[str, Any]) -> Any:
        if not shapes:
            return PlainTables(shapes)
        from recmtl.features.fused import sharded_tables

        optimizer_type, extra = fused_optimizer(config)
        return sharded_tables(
            shapes,
            optimizer_type=optimizer_type,
            optimizer_kwargs={"lr": config.lr, **extra},
            device=device,
            sharding=sharding,
            precision=config.precision,
            cached=config.cached(shapes),
            cache_load_factor=config.cache_load_factor,
            batch_size=batch_size,
            group=group,
        )

    return fused


def fused_optimizer(config: SparseOptimizerConfig) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
    """TorchRec's name for an optimiser that steps inside backward, and FBGEMM's arguments but for the rate."""
    import torchrec.optim

    types: dict[str, type[torch.optim.Optimizer]] = {
        "rowwise_adagrad": torchrec.optim.RowWiseAdagrad,
        "adagrad": torch.optim.Adagrad,
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "partial_rowwise_adam": torchrec.optim.PartialRowWiseAdam,
        "lamb": torchrec.optim.LAMB,
        "partial_rowwise_lamb": torchrec.optim.PartialRowWiseLAMB,
    }
    extra: dict[str, Any] = {}
    if config.optimizer != "sgd":
        extra["eps"] = config.eps or 1e-8
    if _has_moments(config.optimizer):
        extra["beta1"], extra["beta2"] = config.betas or (0.9, 0.999)
    if config.weight_decay:
        extra["weight_decay"] = config.weight_decay
        if config.optimizer == "rowwise_adagrad":  # its default mode is to ignore the weight decay
            from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode

            extra["weight_decay_mode"] = WeightDecayMode.L2
    return types[config.optimizer], extra


class SparseOptimizer(Protocol):
    """The tables' optimiser as the trainer sees it."""

    def set_lr(self, lr: float) -> None:
        """The learning rate of the next step."""

    def zero_grad(self) -> None:
        """Forget gradients (a fused optimiser has none)."""

    def step(self) -> None:
        """Step, after ``backward`` (a fused optimiser has stepped already)."""

    def state(self) -> dict[str, Tensor | Pieces]:
        """State by name: all that the next step depends on, but for the learning rate. Live; this rank's part of it."""

    def reset_rows(self, table: str, rows: Tensor) -> None:
        """Make these rows of a table, and their state, zeros; every rank calls it with the same (n,) int64 rows."""

    def load_state(self, stored: Stored) -> None:
        """Read what :meth:`state` was when it was saved, perhaps by another number of ranks.

        Raises:
            RunError: it is of another optimiser or other tables.
        """


def sparse_optimizer(config: SparseOptimizerConfig, tables: Any) -> SparseOptimizer:
    """The optimiser of tables that :func:`make_tables` made from the same config."""
    if hasattr(tables, "load_optimizer_pieces"):
        return _Fused(tables)
    return _Exact(config, tables)


class _Fused:
    """FBGEMM steps inside backward: only the learning rate is left to set, and state to save."""

    def __init__(self, tables: Any) -> None:
        self._tables = tables

    def set_lr(self, lr: float) -> None:
        self._tables.set_learning_rate(lr)

    def zero_grad(self) -> None: ...

    def step(self) -> None: ...

    def state(self) -> dict[str, Tensor | Pieces]:
        state: dict[str, Tensor | Pieces] = self._tables.optimizer_pieces()
        return state

    def reset_rows(self, table: str, rows: Tensor) -> None:
        self._tables.reset_rows(table, rows)

    def load_state(self, stored: Stored) -> None:
        self._tables.load_optimizer_pieces(stored)


class _Exact:
    """A torch optimiser over plain tables."""

    def __init__(self, config: SparseOptimizerConfig, tables: nn.Module) -> None:
        named = list(tables.named_parameters())
        self._by_name = dict(named)
        arguments: dict[str, Any] = {
            "lr": config.lr,
            "betas": config.betas or (0.9, 0.999),
            "eps": config.eps or 1e-8,
            "weight_decay": config.weight_decay,
        }
        kind = torch.optim.AdamW if config.optimizer == "exact_adamw" else torch.optim.Adam
        self._names = [name for name, _ in named]
        self._optimizer = kind([p for _, p in named], **arguments, fused=True) if named else None

    def set_lr(self, lr: float) -> None:
        if self._optimizer is not None:
            for group in self._optimizer.param_groups:
                group["lr"] = lr

    def zero_grad(self) -> None:
        if self._optimizer is not None:
            self._optimizer.zero_grad()

    def step(self) -> None:
        if self._optimizer is not None:
            self._optimizer.step()

    def state(self) -> dict[str, Tensor | Pieces]:
        return {} if self._optimizer is None else {**_named_state(self._optimizer, self._names)}

    def reset_rows(self, table: str, rows: Tensor) -> None:
        assert self._optimizer is not None
        weight = self._by_name[table]
        weight.detach()[rows] = 0.0
        for value in self._optimizer.state[weight].values():
            if value.shape == weight.shape:
                value[rows] = 0.0

    def load_state(self, stored: Stored) -> None:
        if self._optimizer is not None:
            _load_named_state(self._optimizer, self._names, stored.whole())


class DenseOptimizerConfig(Settings):
    """The optimiser of everything but the embedding tables."""

    optimizer: Literal["adam", "adamw", "sgd", "adagrad"] = "adamw"
    """Which one: torch's own."""
    lr: float = Field(default=0.001, gt=0)
    """Learning rate."""
    weight_decay: float = Field(default=0.0, ge=0)
    """adamw: decoupled; else an L2 penalty. Never on biases and normalisation."""
    betas: Betas | None = None
    """adam, adamw: decay of the two moments; by default 0.9 and 0.999."""
    eps: float | None = Field(default=None, gt=0)
    """adam, adamw, adagrad: added to the denominator; by default torch's value."""
    momentum: float | None = Field(default=None, ge=0, lt=1)
    """sgd: share of the last step that is kept; by default 0."""
    schedule: ScheduleConfig | None = None
    """How the rate changes; by default as training.schedule says."""

    @model_validator(mode="after")
    def _fields_fit_the_optimizer(self) -> "DenseOptimizerConfig":
        for field, kinds in (
            ("betas", ("adam", "adamw")),
            ("eps", ("adam", "adamw", "adagrad")),
            ("momentum", ("sgd",)),
        ):
            if getattr(self, field) is not None and self.optimizer not in kinds:
                raise ValueError(f"dense.{field} belongs to {' or '.join(kinds)}, not {self.optimizer}")
        return self


_DENSE: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
}


class DenseOptimizer:
    """A torch optimiser over named parameters, and over a balancer's own at their own rate.

    Args:
        config: which, and how fast.
        parameters: names and parameters of the model, tables left out.
        balancing: names and parameters of the balancer; no weight decay, no clipping.
        balancing_lr: their base learning rate; None: the config's.
    """

    def __init__(
        self,
        config: DenseOptimizerConfig,
        parameters: Iterable[tuple[str, nn.Parameter]],
        balancing: Iterable[tuple[str, nn.Parameter]] = (),
        balancing_lr: float | None = None,
    ) -> None:
        named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        decayed = [(name, parameter) for name, parameter in named if _decays(name, parameter)]
        plain = [(name, parameter) for name, parameter in named if not _decays(name, parameter)]
        own = [(f"balancer.{name}", parameter) for name, parameter in balancing]
        groups = [
            (decayed, {"weight_decay": config.weight_decay, "lr": config.lr}),
            (plain, {"weight_decay": 0.0, "lr": config.lr}),
            (own, {"weight_decay": 0.0, "lr": balancing_lr or config.lr}),
        ]
        given = {"betas": config.betas, "eps": config.eps, "momentum": config.momentum}
        self.clipped = [parameter for _, parameter in named]
        """The model's own parameters, whose gradient is clipped and logged."""
        self._names = [name for members, _ in groups for name, _ in members]
        self._base = [options["lr"] for members, options in groups if members]
        self._optimizer = _DENSE[config.optimizer](
            [{"params": [p for _, p in members], **options} for members, options in groups if members],
            **{name: value for name, value in given.items() if value is not None},
            fused=_has_fused(config.optimizer, (p for _, p in named)),
        )

    def set_factor(self, factor: float) -> None:
        """The next step's learning rates, as a factor on their base."""
        for group, base in zip(self._optimizer.param_groups, self._base, strict=True):
            group["lr"] = base * factor

    def zero_grad(self) -> None:
        """Forget gradients."""
        self._optimizer.zero_grad()

    def step(self) -> None:
        """Step every parameter that has a gradient."""
        self._optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """State by name (``heads.click.weight/exp_avg``); parameters that never had a gradient have none."""
        return _named_state(self._optimizer, self._names)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave.

        Raises:
            RunError: a name that this optimiser does not have.
        """
        _load_named_state(self._optimizer, self._names, state)


def _has_fused(optimizer: str, parameters: Iterable[nn.Parameter]) -> bool | None:
    """Whether to step all the small tensors in one call; None: torch's own choice, which on a CPU is a Python loop."""
    return None if optimizer == "adagrad" and any(p.is_cuda for p in parameters) else True


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is for it: weights, but not biases (a bank of experts has matrices of them) and norms."""
    return parameter.ndim > 1 and not {"bias", "biases", "norm", "norms"} & set(name.split("."))


def _named_state(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{names[index]}/{key}": tensor for index, entry in state.items() for key, tensor in entry.items()}


def _load_named_state(optimizer: torch.optim.Optimizer, names: list[str], state: Mapping[str, Tensor]) -> None:
    index = {name: position for position, name in enumerate(names)}
    entries: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name, _, field = key.rpartition("/")
        if name not in index:
            raise RunError(f"the checkpoint's optimiser has state for {name!r}, which this model does not have")
        entries.setdefault(index[name], {})[field] = tensor
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
