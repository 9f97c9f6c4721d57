"""Heads: from a task's hidden vector to logits, and from logits to log probabilities and predictions.

In: h_BH per task. Out: logits per task in float32 (under autocast too), then what the losses and predictions read.
Every head starts at the training labels' base rates. A task with a parent has the conditional logit
log p / (1 - p) of p(task | parent); its probability is the entire-space product (Ma et al. 2018, "Entire Space
Multi-Task Model", eq. 1) over the whole chain of its parents::

    p(task) = p(parent) · p(task | parent)

computed in log space, so that p(task) ≤ p(parent) by construction and rare products do not vanish.

Dimensions: B batch, H hidden width, K levels or classes.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl.modules import ByName, generator, linear
from recmtl.statistics import LabelStatistics, Statistics
from recmtl.tasks import Task, Tasks

__all__ = ["BinaryHead", "CornHead", "CumulativeHead", "Head", "Heads", "MulticlassHead", "RegressionHead"]


class Head(Protocol):
    """What :class:`Heads` asks of a head; every head is also an ``nn.Module``."""

    def __call__(self, h_BH: Tensor) -> Tensor:
        """Logits in float32 from (B, H) float32."""
        ...

    def outcome(self, logits: Tensor) -> Tensor:
        """What the task's loss reads: (B, K) log probabilities, or a regression's (B,) standardised prediction."""
        ...

    def predict(self, logits: Tensor) -> Tensor:
        """The prediction: (B,) in label units, or (B, K) probabilities of a multi-class task."""
        ...


class BinaryHead(nn.Module):
    """One logit; starts at the positive rate."""

    def __init__(self, hidden_dim: int, labels: LabelStatistics, *, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = _linear(
            hidden_dim, [_logit(_shares((1 - (labels.mean or 0), labels.mean or 0), labels)[1])], generator
        )

    def forward(self, h_BH: Tensor) -> Tensor:
        """(B,) logit; with a parent, of the conditional probability."""
        logits_B1: Tensor = self.linear(h_BH)
        return logits_B1.squeeze(1)

    def outcome(self, logits: Tensor) -> Tensor:
        """(B, 2) log probabilities of 0 and 1."""
        return torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], dim=1)

    def predict(self, logits: Tensor) -> Tensor:
        """(B,) probability."""
        return torch.sigmoid(logits)


class RegressionHead(nn.Module):
    """One standardised value: prediction = mean + std · z. Clipped to the task's range in predictions alone."""

    mean: Tensor
    std: Tensor

    def __init__(self, hidden_dim: int, task: Task, labels: LabelStatistics, *, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = _linear(hidden_dim, [0.0], generator)
        self.register_buffer("mean", torch.tensor(labels.mean or 0.0))
        self.register_buffer("std", torch.tensor(labels.std or 1.0))
        self._range = task.range

    def forward(self, h_BH: Tensor) -> Tensor:
        """(B,) z."""
        z_B1: Tensor = self.linear(h_BH)
        return z_B1.squeeze(1)

    def outcome(self, logits: Tensor) -> Tensor:
        """(B,) z itself."""
        return logits

    def predict(self, logits: Tensor) -> Tensor:
        """(B,) in label units."""
        value = self.mean + self.std * logits
        return value if self._range is None else value.clamp(*self._range)


class CumulativeHead(nn.Module):
    """Ordinal, cumulative link (McCullagh 1980, the proportional odds model): P(y > level k) = σ(score - θ_k).

    θ_1 is free and the gaps between thresholds are softplus of a parameter, so θ rises strictly whatever is learned.
    """

    levels: Tensor

    MIN_GAP = 1e-4  # keeps every level's probability above zero in float32

    def __init__(self, hidden_dim: int, task: Task, labels: LabelStatistics, *, generator: torch.Generator) -> None:
        super().__init__()
        assert task.levels is not None
        self.register_buffer("levels", torch.tensor(task.levels))
        exceed = _exceed(_shares(labels.distribution or (1.0,) * len(task.levels), labels))
        thresholds = [-_logit(share) for share in exceed]
        gaps = [max(b - a - self.MIN_GAP, 1e-3) for a, b in itertools.pairwise(thresholds)]
        self.linear = _linear(hidden_dim, [0.0], generator)
        self.linear.register_parameter("bias", None)  # the first threshold is one
        self.first_threshold = nn.Parameter(torch.tensor(thresholds[:1]))
        self.gap = nn.Parameter(torch.tensor([math.log(math.expm1(gap)) for gap in gaps]))

    def gaps(self) -> Tensor:
        """(K - 2,) distances between thresholds, positive."""
        return F.softplus(self.gap) + self.MIN_GAP

    def thresholds(self) -> Tensor:
        """(K - 1,) θ, rising strictly."""
        return torch.cat([self.first_threshold, self.first_threshold + self.gaps().cumsum(0)])

    def forward(self, h_BH: Tensor) -> Tensor:
        """(B, K - 1) logits of P(y > level k)."""
        score_B1 = self.linear(h_BH)
        logits: Tensor = score_B1 - self.thresholds()
        return logits

    def outcome(self, logits: Tensor) -> Tensor:
        """(B, K) log probabilities of the levels.

        Between two thresholds: σ(a) - σ(b) = σ(a) · σ(-b) · (1 - e^(b - a)), where a - b is the gap itself.
        """
        exceed, not_exceed = F.logsigmoid(logits), F.logsigmoid(-logits)
        between = exceed[:, :-1] + not_exceed[:, 1:] + torch.log(-torch.expm1(-self.gaps()))
        return torch.cat([not_exceed[:, :1], between, exceed[:, -1:]], dim=1)

    def predict(self, logits: Tensor) -> Tensor:
        """(B,) expectation over the levels."""
        return self.outcome(logits).exp() @ self.levels


class CornHead(nn.Module):
    """Ordinal, CORN (Shi et al. 2021, "Deep Neural Networks for Rank-Consistent Ordinal Regression Based On
    Conditional Probabilities"): σ(logit k) = P(y > level k | y > level k - 1), each logit with weights of its own.

    The sum of the paper's binary losses over its conditional subsets (eq. 6) is the negative log likelihood of the
    level; where the paper divides by the subsets' sizes together, recmtl divides by the rows observed, as everywhere.
    """

    levels: Tensor

    def __init__(self, hidden_dim: int, task: Task, labels: LabelStatistics, *, generator: torch.Generator) -> None:
        super().__init__()
        assert task.levels is not None
        self.register_buffer("levels", torch.tensor(task.levels))
        exceed = [1.0, *_exceed(_shares(labels.distribution or (1.0,) * len(task.levels), labels))]
        conditional = [b / a for a, b in itertools.pairwise(exceed)]
        self.linear = _linear(hidden_dim, [_logit(share) for share in conditional], generator)

    def forward(self, h_BH: Tensor) -> Tensor:
        """(B, K - 1) logits of P(y > level k | y > level k - 1)."""
        logits: Tensor = self.linear(h_BH)
        return logits

    def outcome(self, logits: Tensor) -> Tensor:
        """(B, K) log probabilities of the levels: reach level k, and do not exceed it."""
        reach = F.pad(F.logsigmoid(logits).cumsum(dim=1), (1, 0))
        stay = F.pad(F.logsigmoid(-logits), (0, 1))
        return reach + stay

    def predict(self, logits: Tensor) -> Tensor:
        """(B,) expectation over the levels."""
        return self.outcome(logits).exp() @ self.levels


class MulticlassHead(nn.Module):
    """One logit per class, softmax; starts at the classes' shares."""

    def __init__(self, hidden_dim: int, task: Task, labels: LabelStatistics, *, generator: torch.Generator) -> None:
        super().__init__()
        assert task.classes is not None
        shares = _shares(labels.distribution or (1.0,) * len(task.classes), labels)
        self.linear = _linear(hidden_dim, [math.log(share) for share in shares], generator)

    def forward(self, h_BH: Tensor) -> Tensor:
        """(B, K) logits."""
        logits: Tensor = self.linear(h_BH)
        return logits

    def outcome(self, logits: Tensor) -> Tensor:
        """(B, K) log probabilities."""
        return F.log_softmax(logits, dim=1)

    def predict(self, logits: Tensor) -> Tensor:
        """(B, K) probabilities."""
        return torch.softmax(logits, dim=1)


class Heads(nn.Module):
    """A head per task, and the product over parents.

    Args:
        tasks: what is predicted.
        hidden_dim: H.
        statistics: of the training labels: where the heads start, and a regression's mean and standard deviation.
        seed: of the initial values.
    """

    def __init__(self, tasks: Tasks, hidden_dim: int, statistics: Statistics, *, seed: int) -> None:
        super().__init__()
        self._tasks = tasks
        self.by_task = ByName({task.name: _head(task, hidden_dim, statistics, seed) for task in tasks.values()})

    def forward(self, hidden: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Task name to logits, in float32 whatever the hidden vectors are and autocast says."""
        device = next(iter(hidden.values())).device.type
        with torch.autocast(device, enabled=False):
            return {task: head(hidden[task].float()) for task, head in self.by_task.items()}

    def outcomes(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Task name to what its loss reads.

        binary: (B, 2) log probabilities of 0 and 1, those of the product for a task with a parent; ordinal and
        multiclass: (B, K) log probabilities; regression: (B,) standardised prediction.
        """
        found: dict[str, Tensor] = {}
        for task in self._tasks.parents_first():
            outcome = self._head(task).outcome(logits[task.name])
            found[task.name] = outcome if task.parent is None else _product(found[task.parent], outcome)
        return {task: found[task] for task in self._tasks}

    def predictions(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Column name (``Tasks.prediction_columns``) to (B,) float32: probabilities, expectations, label units."""
        outcomes = self.outcomes(logits)
        found: dict[str, Tensor] = {}
        for task in self._tasks.values():
            own = self._head(task).predict(logits[task.name])
            if task.kind == "multiclass":
                values = own.unbind(dim=1)
            elif task.kind == "binary":  # from log space for parents too, so that rounding breaks no inequality
                values = (outcomes[task.name][:, 1].exp(), own)
            else:
                values = (own,)
            columns = self._tasks.prediction_columns(task.name)
            found.update(zip(columns, values[: len(columns)], strict=True))
        return found

    def _head(self, task: Task) -> Head:
        head: Head = self.by_task[task.name]  # type: ignore[assignment]
        return head


def _product(parent_B2: Tensor, conditional_B2: Tensor) -> Tensor:
    """Log probabilities of 0 and 1 of the product: 1 - p·q = (1 - p) + p·(1 - q), which never subtracts."""
    no, yes = parent_B2.unbind(dim=1)
    conditional_no, conditional_yes = conditional_B2.unbind(dim=1)
    return torch.stack([torch.logaddexp(no, yes + conditional_no), yes + conditional_yes], dim=1)


def _head(task: Task, hidden_dim: int, statistics: Statistics, seed: int) -> nn.Module:
    unknown = LabelStatistics(0, None, None)
    random = generator(seed, "heads", task.name)
    if task.parent is not None:
        return BinaryHead(hidden_dim, statistics.conditional_labels.get(task.name, unknown), generator=random)
    labels = statistics.labels.get(task.name, unknown)
    if task.kind == "binary":
        return BinaryHead(hidden_dim, labels, generator=random)
    if task.kind == "regression":
        return RegressionHead(hidden_dim, task, labels, generator=random)
    if task.kind == "multiclass":
        return MulticlassHead(hidden_dim, task, labels, generator=random)
    kind = CornHead if task.link == "corn" else CumulativeHead
    return kind(hidden_dim, task, labels, generator=random)


def _linear(hidden_dim: int, bias: list[float], generator: torch.Generator) -> nn.Linear:
    layer = linear(hidden_dim, len(bias), generator)
    layer.bias = nn.Parameter(torch.tensor(bias))
    return layer


def _shares(shares: tuple[float, ...], labels: LabelStatistics) -> list[float]:
    """The shares with half a row added to each (Krichevsky and Trofimov 1981): none is 0 or 1; equal without rows."""
    rows = labels.observed if labels.mean is not None or labels.distribution else 0
    total = rows + len(shares) / 2
    return [(rows * share + 0.5) / total for share in shares]


def _exceed(shares: list[float]) -> list[float]:
    """P(y > level k) for every level but the last."""
    return [sum(shares[k:]) for k in range(1, len(shares))]


def _logit(share: float) -> float:
    return math.log(share) - math.log1p(-share)
