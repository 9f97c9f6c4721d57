"""A problem small enough to write down: a table, one shared linear layer, a linear head per task."""

import pytest
import torch
from torch import nn

from recmtl.balancing import Cut


class Toy:
    """Four rows read a table of width 3; tasks a, b, c have squared errors of their own targets."""

    def __init__(self, seed: int = 0, scales=(1.0, 3.0, 0.5), last_shared: bool = True) -> None:
        random = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(5, 3, generator=random))
        self.shared = nn.Parameter(torch.randn(3, 2, generator=random))
        self.heads = {task: nn.Parameter(torch.randn(2, generator=random)) for task in "abc"}
        self.targets = torch.randn(3, 4, generator=random) * torch.tensor(scales)[:, None]
        self.index = torch.tensor([0, 1, 1, 4])
        self.backwards = 0
        self.last_shared = (self.shared,) if last_shared else ()

    def step(self, balancer, absent=(), auxiliary=None, learned_dim=None):
        """One balancer step; the gradients stay in ``.grad``. Returns weights, and the losses as numbers."""
        for parameter in self.parameters():
            parameter.grad = None
        pooled = self.table[self.index]
        pooled.register_hook(self._count)
        leaf = pooled.detach().requires_grad_() if balancer.at_cut else pooled
        losses = self.losses(leaf, absent)
        extra = {} if auxiliary is None else {"own": auxiliary * (leaf @ self.shared).square().sum()}
        cut = Cut(pooled, leaf, (self.shared,), tuple(self.heads.values()), self.last_shared, learned_dim)
        weights = balancer.backward(losses, extra, cut)
        return weights, {task: loss.item() for task, loss in losses.items()}

    def losses(self, x, absent=()):
        hidden = x @ self.shared
        losses = {}
        for number, (task, head) in enumerate(self.heads.items()):
            error = (hidden @ head - self.targets[number]).square()
            observed = torch.zeros(4, dtype=torch.bool) if task in absent else torch.ones(4, dtype=torch.bool)
            losses[task] = torch.where(observed, error, 0.0).sum() / observed.sum().clamp(min=1)
        return losses

    def gradients(self):
        return {name: None if p.grad is None else p.grad.clone() for name, p in self.named()}

    def plain(self, weights, auxiliary=0.0, absent=()):
        """What plain backward gives for Σ weight · loss, a gradient by name."""
        pooled = self.table[self.index]
        total = sum(weights[task] * loss for task, loss in self.losses(pooled, absent).items())
        total = total + auxiliary * (pooled @ self.shared).square().sum()
        names, parameters = zip(*self.named(), strict=True)
        return dict(zip(names, torch.autograd.grad(total, parameters), strict=True))

    def named(self):
        return [("table", self.table), ("shared", self.shared), *self.heads.items()]

    def parameters(self):
        return [parameter for _, parameter in self.named()]

    def task_rows(self, importance=(1.0, 1.0, 1.0)):
        """(3, 4·3 + 3·2): each task's gradient at the pooled embeddings and the shared layer, flat."""
        pooled = self.table[self.index].detach().requires_grad_()
        rows = []
        for weight, loss in zip(importance, self.losses(pooled).values(), strict=True):
            gradients = torch.autograd.grad(weight * loss, (pooled, self.shared), retain_graph=True)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        return torch.stack(rows)

    def _count(self, gradient):
        self.backwards += 1


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def make_toy():
    return Toy
