"""Where gradients are taken. In: the graph of one step. Out: one backward through it, however the tasks are weighed.

TorchRec's fused optimisers update the tables inside ``backward``, so a second backward is a second step. Balancers that
need each task's own gradient therefore work at a cut: the pooled embeddings are detached into a leaf, every task's
gradient is taken for the leaf and the shared dense parameters, and what the balancer makes of them goes once through
the embeddings. Balancers that only weigh losses take the plain path at no extra cost.

Where ranks share a batch, a rank's losses are its parts of the means over all rows, so gradients are summed over the
ranks: here where a balancer looks at them, and at the end by the trainer, which sums every dense ``.grad``. What a
balancer knows alike on all ranks it therefore enters divided by their number. The rows of the leaf are each rank's own.

Legend: B batch, D width of the pooled embeddings, T tasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recmtl.group import ONE, Group

__all__ = ["Cut", "TaskGradients", "task_cosines", "weighted_backward"]


@dataclass(frozen=True)
class Cut:
    """The tensors of one step at which gradients are taken."""

    pooled: Tensor
    """(B, D): what the tower reads, attached to the embedding tables."""
    leaf: Tensor
    """(B, D): what the tower did read: ``pooled`` itself, or a detached leaf of it."""
    shared: tuple[nn.Parameter, ...]
    """Dense parameters that more than one task reads."""
    specific: tuple[nn.Parameter, ...]
    """All other dense parameters: heads, gates, towers of one task."""
    last_shared: tuple[nn.Parameter, ...]
    """The last shared layer; empty for a tower without one."""
    learned_dim: int | None = None
    """How many leading columns depend on parameters; the rest are inputs, whose gradient trains nothing and so has no
    say in a conflict between tasks. None: all D."""
    group: Group = ONE
    """The ranks that share the batch."""

    def through_the_tables(self, gradient_BD: Tensor | None) -> None:
        """Send the gradient of ``leaf`` on through the tables: the step's only backward there.

        Nothing happens where the tower read ``pooled`` itself (the gradient went through already) or no table is read.
        """
        if self.leaf is not self.pooled and self.pooled.requires_grad and gradient_BD is not None:
            self.pooled.backward(gradient_BD)  # type: ignore[no-untyped-call]


def weighted_backward(
    losses: Mapping[str, Tensor], weights: Mapping[str, Tensor | float], auxiliary: Mapping[str, Tensor], cut: Cut
) -> None:
    """Backward of Σ weight·loss + Σ auxiliary, through the cut if there is one; ``.grad`` is added to.

    Args:
        losses: task to scalar loss.
        weights: task to weight, a number or a detached scalar; one for every loss.
        auxiliary: name to scalar loss, weighted already.
        cut: the step.
    """
    total = torch.stack([weights[task] * loss for task, loss in losses.items()] + list(auxiliary.values())).sum()
    total.backward()  # type: ignore[no-untyped-call]
    if cut.leaf is not cut.pooled:
        cut.through_the_tables(cut.leaf.grad)


class TaskGradients:
    """Every task's own gradient at the cut: T backwards through tower and heads, none through the tables.

    What is held is this rank's part; the Gramian is of the whole.

    Args:
        losses: task to scalar loss, each the loss as it shall enter (importance weights multiplied in). A task whose
            loss reaches nothing has a gradient of zeros.
        cut: the step; its leaf is detached.
    """

    def __init__(self, losses: Mapping[str, Tensor], cut: Cut) -> None:
        self._cut = cut
        self._shared = (cut.leaf, *cut.shared)
        self._sums: list[Tensor | None] = [None] * len(cut.specific)
        rows: list[list[Tensor]] = [[] for _ in self._shared]
        for loss in losses.values():
            gradients = _gradients(loss, (*self._shared, *cut.specific))
            for row, parameter, gradient in zip(rows, self._shared, gradients, strict=False):
                row.append(torch.zeros_like(parameter) if gradient is None else gradient)
            for position, gradient in enumerate(gradients[len(self._shared) :]):
                self._sums[position] = _sum(self._sums[position], gradient)
        self.per_task = [torch.stack(row) for row in rows]
        """(T, B, D) at the leaf, then (T, …) for each shared parameter."""

    def gramian(self) -> Tensor:
        """(T, T) float64: inner products of the tasks' gradients over the leaf's learned columns and what is shared."""
        leaf_TBD, *shared = self.per_task
        group = self._cut.group
        own_TT = _products(leaf_TBD[..., : self._cut.learned_dim])
        return torch.stack([group.sum(own_TT), *map(_products, group.sums(shared))]).sum(0)

    def backward(self, weights_T: Tensor, auxiliary: Mapping[str, Tensor]) -> None:
        """Set ``.grad`` and step the fused tables.

        The leaf and the shared parameters get Σ weight·gradient, parameters of one task the plain sum of the tasks'
        gradients; auxiliary losses are added to both, unbalanced.

        Args:
            weights_T: (T,) in the order of the losses.
            auxiliary: name to scalar loss.
        """
        targets = (*self._shared, *self._cut.specific)
        combined: list[Tensor | None] = [
            torch.tensordot(weights_T.to(rows.dtype), rows, dims=1) for rows in self.per_task
        ] + self._sums
        if auxiliary:
            extra = _gradients(torch.stack(list(auxiliary.values())).sum(), targets)
            combined = [_sum(gradient, more) for gradient, more in zip(combined, extra, strict=True)]
        for parameter, gradient in zip(targets[1:], combined[1:], strict=True):
            parameter.grad = _sum(parameter.grad, gradient)
        self._cut.through_the_tables(combined[0])


def task_cosines(losses: Mapping[str, Tensor], cut: Cut) -> Tensor:
    """How the tasks' gradients lie to each other over the leaf's learned columns and the shared dense parameters.

    T backwards down to the cut; no ``.grad`` is touched, nothing goes through the tables, and the graph stays for the
    step's own backward. Every rank calls it at the same step.

    Args:
        losses: task to scalar loss.
        cut: the step; its leaf may be ``pooled`` itself.

    Returns:
        (T, T) float64 cosines; NaN where a task's gradient is 0: it has no observed row in the batch, or reaches
        nothing that is shared.
    """
    targets = tuple(tensor for tensor in (cut.leaf, *cut.shared) if tensor.requires_grad)
    if not targets:
        return torch.full((len(losses), len(losses)), torch.nan, dtype=torch.float64)
    has_leaf = targets[0] is cut.leaf
    rows: list[list[Tensor]] = [[] for _ in targets]
    for loss in losses.values():
        for row, target, gradient in zip(rows, targets, _gradients(loss, targets), strict=True):
            row.append(torch.zeros_like(target) if gradient is None else gradient)
    gramian_TT = torch.zeros(len(losses), len(losses), dtype=torch.float64, device=cut.leaf.device)
    stacked = [torch.stack(row) for row in rows]
    if has_leaf:
        gramian_TT += _products(stacked[0][..., : cut.learned_dim])
    gramian_TT = cut.group.sum(gramian_TT)
    for shared in cut.group.sums(stacked[has_leaf:]):
        gramian_TT = gramian_TT + _products(shared)
    norms_T = gramian_TT.diagonal().sqrt()
    norms_T = torch.where(norms_T > 0, norms_T, torch.nan)
    return gramian_TT / norms_T.outer(norms_T)


def _products(gradient: Tensor) -> Tensor:
    rows = gradient.flatten(1)
    return (rows @ rows.T).double()


def _gradients(loss: Tensor, targets: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    if not loss.requires_grad:
        return (None,) * len(targets)
    return torch.autograd.grad(loss, targets, retain_graph=True, allow_unused=True)


def _sum(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if total is None or more is None:
        return more if total is None else total
    return total + more
