"""What a tower is: input x_BD, shared by all tasks, to one hidden vector per task.

A tower is a final class that fits :class:`Tower`; to change one, wrap it. Its config class, with a ``kind`` literal,
lives in its file; ``TOWERS`` in :mod:`recmtl.towers` names it.

Dimensions: B batch, D width of the input, H width of a task's hidden vector.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from recmtl.settings import Settings

__all__ = ["SHARED_GATE", "GateShares", "GatedLayer", "Tower", "TowerKind", "TowerOutput"]


@dataclass(frozen=True)
class TowerOutput:
    """What a tower makes of a batch."""

    hidden: dict[str, Tensor]
    """Task name to (B, H): what the task's head reads."""
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    """Name to a scalar loss of the tower's own, already weighted; empty for most towers, and when not training."""


SHARED_GATE = "(shared)"
"""Stands in place of a task for a gate whose mixture all tasks read. No task can be called so."""


class GateShares(NamedTuple):
    """How one gate mixes experts, row by row."""

    experts: tuple[str, ...]
    """The K experts that it can take."""
    shares: Tensor
    """(B, K) float32, summing to 1 over K."""


@dataclass(frozen=True)
class GatedLayer:
    """A layer of experts with the gates over them, on a batch: what a tower shows of itself for a report."""

    name: str
    outputs: dict[str, Tensor]
    """Expert to its output, (B, S)."""
    gates: dict[str, GateShares]
    """Task, or :data:`SHARED_GATE`, to its gate."""


class Tower(Protocol):
    """What the model asks of a tower; every tower is also an ``nn.Module``."""

    output_dim: int
    """H, the same for every task."""

    def __call__(self, x_BD: Tensor) -> TowerOutput:
        """Hidden vectors for every task, from (B, D) float."""
        ...

    def gated_layers(self, x_BD: Tensor) -> list[GatedLayer]:
        """The layers of gated experts, from the input up, on the same (B, D); empty for a tower without any.

        Never called while training: ``forward`` neither knows nor pays for it.
        """
        ...

    def shared_parameters(self) -> list[nn.Parameter]:
        """The parameters of which some entry is read by more than one task: where tasks can conflict."""
        ...

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """Those of the last layer that all tasks share (GradNorm weighs gradients there)."""
        ...


class TowerKind(NamedTuple):
    """An entry of ``TOWERS``."""

    config: type[Settings]
    build: Callable[..., Tower]
    """``build(config, *, input_dim: int, tasks: Sequence[str], generator: torch.Generator)``: the module that
    ``config`` describes, every initial value drawn from ``generator``."""
