"""The ranks that train together, as everything else sees them; one process is the normal case.

In: tensors and small data of one rank. Out: the same of all ranks together. :data:`ONE` is the group of a single
process: its sums are what they are given and it waits for nobody, so no caller asks whether there are others. The kind
over several processes is :class:`recmtl.distributed.Ranks`.

Every method is collective: each rank calls it, in the same order.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["ONE", "AcrossRanks", "Group", "OneProcess", "join"]

Data = TypeVar("Data")


class Group(Protocol):
    """The ranks of one job."""

    @property
    def rank(self) -> int:
        """This process's number, from 0. Rank 0 alone writes the run's folder and speaks to the user."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Elementwise sum over the ranks: same shape, dtype and device, detached; the argument stays as it is."""

    def sums(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The same of several tensors, in one exchange for each dtype."""

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in one exchange for each dtype."""

    def sum_with_gradient(self, tensor: Tensor) -> Tensor:
        """The sum within autograd: the gradients that the ranks have of it are summed on the way back."""

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows (N, …) of every rank, those of rank 0 first, on every rank: (ΣN, …). One dtype on all ranks."""

    def broadcast(self, data: Data) -> Data:
        """Rank 0's data, which must be JSON, on every rank; what the others give is ignored."""

    def barrier(self) -> None:
        """Wait until all ranks are here."""

    def rank_0_first(self) -> AbstractContextManager[None]:
        """Rank 0 goes through the context alone, the others once it is out, however long that takes."""


class OneProcess:
    """The group of a single process."""

    rank = 0
    size = 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The tensor itself, detached."""
        return tensor.detach()

    def sums(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors themselves, detached."""
        return [tensor.detach() for tensor in tensors]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Nothing: they are the sums."""

    def sum_with_gradient(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def gather(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The rows themselves."""
        return rows

    def broadcast(self, data: Data) -> Data:
        """The data itself."""
        return data

    def barrier(self) -> None:
        """Nobody is waited for."""

    @contextmanager
    def rank_0_first(self) -> Iterator[None]:
        """Nobody waits."""
        yield


ONE: Group = OneProcess()
"""The group of a single process."""


class AcrossRanks:
    """A module whose ``forward``, in training, depends on the rows of all ranks; :func:`join` tells it of them."""

    group: Group = ONE


def join(model: nn.Module, group: Group) -> None:
    """Tell every module that asks (:class:`AcrossRanks`) with whom it trains."""
    for module in model.modules():
        if isinstance(module, AcrossRanks):
            module.group = group
