"""The two things that every module of the model needs: initial values drawn from a generator, and children by name.

In: a :class:`torch.Generator` made from the run's seed. Out: layers whose initial values depend on nothing else (never
on torch's global generator), and :class:`ByName`, a ModuleDict that accepts any name.
"""

import hashlib
import math
from collections.abc import ItemsView, Mapping
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

__all__ = ["ByName", "generator", "linear", "uniform"]

M = TypeVar("M", bound=nn.Module)


def generator(seed: int, *names: str) -> torch.Generator:
    """A CPU generator for one component of a run.

    Args:
        seed: the run's seed.
        names: what it is for, e.g. ("tables", "item_id"): other names give an independent stream, so that adding a
            feature or a task leaves every other component's initial values as they were.
    """
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def uniform(shape: tuple[int, ...], bound: float, generator: torch.Generator) -> nn.Parameter:
    """A float32 parameter drawn uniformly from [-bound, bound)."""
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))


def linear(inputs: int, outputs: int, generator: torch.Generator, *, bias: bool = True) -> nn.Linear:
    """``nn.Linear`` with torch's own initial distribution (uniform in ±1/√inputs), drawn from ``generator``."""
    layer = nn.Linear(inputs, outputs, bias, device="meta")  # which draws nothing
    bound = 1 / math.sqrt(inputs) if inputs else 0.0
    layer.weight = uniform((outputs, inputs), bound, generator)
    if bias:
        layer.bias = uniform((outputs,), bound, generator)
    return layer


class ByName(nn.Module, Generic[M]):
    """Modules keyed by the name of a task or feature.

    ``nn.ModuleDict`` refuses every name that is also one of its attributes, among them `type`, `pop`, `train` and
    `float`; a feature may well be called `type`.
    """

    def __init__(self, modules: Mapping[str, M]) -> None:
        super().__init__()
        self._modules.update(modules)

    def __getitem__(self, name: str) -> M:
        return cast(M, self._modules[name])

    def __len__(self) -> int:
        return len(self._modules)

    def items(self) -> ItemsView[str, M]:
        """Names and modules, in the order in which they were given."""
        return cast(ItemsView[str, M], self._modules.items())

    def forward(self, *arguments: Tensor) -> Tensor:
        """Not callable: it only holds its children."""
        raise NotImplementedError("ByName only holds modules")
