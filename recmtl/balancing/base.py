"""What a balancer is: it turns the tasks' losses into one backward. The trainer never asks which one it has."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from recmtl.balancing.cut import Cut
from recmtl.errors import UserError
from recmtl.settings import Settings

__all__ = ["Balancer", "BalancerKind", "complete_weights"]


class Balancer(Protocol):
    """Turns the tasks' losses into one backward; an ``nn.Module`` whose state dict is all that resuming needs."""

    at_cut: bool
    """Whether the tower must read a detached leaf, so that each task's gradient can be taken at it."""
    lr: float | None
    """Learning rate of the balancer's own parameters, if it has any; None: that of the dense parameters."""

    def backward(self, losses: Mapping[str, Tensor], auxiliary: Mapping[str, Tensor], cut: Cut) -> dict[str, Tensor]:
        """The step's backward, exactly one through the tables.

        Args:
            losses: task to scalar mean loss over its observed rows; 0, with a gradient of 0, where it has none. Where
                ranks share the batch, this rank's part of it: the mean is the sum over ``cut.group``.
            auxiliary: name to scalar loss, already weighted; added unbalanced. This rank's part, likewise.
            cut: where gradients are taken.

        Returns:
            Task to the weight that its loss or its shared gradient had, detached, for the log.
        """

    def end_epoch(self, mean_losses: Mapping[str, float]) -> None:
        """Told once an epoch: task to mean training loss over the epoch's observed rows; NaN where it had none."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Learned with the dense parameters (from ``nn.Module``)."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The same by name (from ``nn.Module``)."""

    def state_dict(self) -> dict[str, Any]:
        """Name to tensor: parameters and buffers (from ``nn.Module``)."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """Take up the state of another process (from ``nn.Module``)."""

    def to(self, device: Any) -> Any:
        """Move to a device (from ``nn.Module``)."""


class BalancerKind(NamedTuple):
    """One row of :data:`recmtl.balancing.BALANCERS`."""

    config: type[Settings]
    """The config class, with a literal ``kind``."""
    build: Callable[..., Any]
    """``build(config, *, tasks, seed)`` → :class:`Balancer`."""


def complete_weights(weights: Mapping[str, float], tasks: Sequence[str], field: str) -> dict[str, float]:
    """A weight for every task, 1 where none is given.

    Raises:
        UserError: a name that is no task, or a negative weight; ``field`` is where it stands in the config.
    """
    for name, weight in weights.items():
        if name not in tasks:
            near = get_close_matches(name, tasks, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; the tasks are {', '.join(tasks)}"
            raise UserError(f"{field}.{name}: there is no task named {name!r}{hint}")
        if not 0 <= weight < float("inf"):
            raise UserError(f"{field}.{name}: {weight} is no weight; it must be 0 or more")
    return {task: float(weights.get(task, 1.0)) for task in tasks}
