"""Adversarial shared–private (Liu et al. 2017, "Adversarial Multi-task Learning for Text Classification").

Each task reads a shared representation beside a private one. A discriminator tries to tell from the shared one which
task reads it; it sits behind gradient reversal (Ganin and Lempitsky 2015), so the shared part learns to give nothing
away and what is particular to a task goes to its private part. A penalty keeps the two orthogonal.

In the paper a sentence belongs to one task, and the discriminator guesses which. Here every row belongs to all tasks:
one vector per row would be the same whatever the task, and there would be nothing to guess. So the shared extractor is
a bank of experts that each task's gate mixes (as in MMoE), and the discriminator sees every row once for each task, as
that task's mixture. It wins where tasks use the shared experts differently, and the reversal draws them together.

The auxiliary losses, while training alone, over all rows of the batch whether or not a task's label is observed:

* adversarial: cross-entropy of the discriminator in nats (eq. 8), its gradient reversed below the discriminator;
* orthogonality: ‖S_tᵀ P_t / B‖²_F, mean over tasks (eq. 9), the rows of S and P scaled to length 1, so that it lies in
  [0, 1] whatever the batch.

Where ranks share a batch both are of all its rows, and each rank has its part of them, as of every loss.

In: x_BD. Out: h_BH per task. Dimensions: B batch, D input width, E shared experts, S width of the shared and of a
private representation, T tasks, H hidden width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl.group import ONE, AcrossRanks, Group
from recmtl.modules import ByName, linear
from recmtl.settings import Settings
from recmtl.towers.base import GatedLayer, GateShares, TowerOutput
from recmtl.towers.blocks import MLP, ExpertBank, Gate, NormKind, Width, reverse_gradient

__all__ = ["Adversarial", "AdversarialConfig", "build_adversarial"]


class AdversarialConfig(Settings):
    """A shared part that a discriminator cannot tell tasks from, beside a private part for each task."""

    kind: Literal["adversarial"] = "adversarial"
    """Which tower this is."""
    num_shared_experts: int = Field(default=4, ge=1)
    """Experts of the shared part; each task mixes them with a gate of its own."""
    expert_widths: tuple[Width, ...] = Field(default=(256, 128), min_length=1)
    """Widths of the layers of a shared expert and of each private part."""
    head_widths: tuple[Width, ...] = (64,)
    """Widths of each task's own layers over both parts side by side; [] for none."""
    discriminator_widths: tuple[Width, ...] = (64,)
    """Widths of the discriminator's hidden layers; [] for a linear one."""
    adversarial_weight: float = Field(default=0.05, ge=0.0)
    """Weight of the discriminator's loss."""
    reversal_strength: float = Field(default=1.0, ge=0.0)
    """The discriminator's gradient is multiplied by minus this on its way into the shared part."""
    orthogonality_weight: float = Field(default=0.01, ge=0.0)
    """Weight of the penalty on what shared and private parts have in common."""
    norm: NormKind = "none"
    """Normalisation before every ReLU: none, layer or batch."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of units dropped after every ReLU while training."""


class Adversarial(nn.Module, AcrossRanks):
    """See the file's head."""

    def __init__(
        self, config: AdversarialConfig, *, input_dim: int, tasks: Sequence[str], generator: torch.Generator
    ) -> None:
        super().__init__()
        self._config = config
        self.shared_experts, self.private_experts = (
            ExpertBank(
                number, input_dim, config.expert_widths, norm=config.norm, dropout=config.dropout, generator=generator
            )
            for number in (config.num_shared_experts, len(tasks))
        )
        self.gate = Gate(len(tasks), input_dim, config.num_shared_experts)
        width = config.expert_widths[-1]
        self.discriminator = MLP(width, config.discriminator_widths, norm="none", dropout=0.0, generator=generator)
        self.guess = linear(self.discriminator.output_dim, len(tasks), generator)
        self.task_layers = ByName(
            {
                task: MLP(2 * width, config.head_widths, norm=config.norm, dropout=config.dropout, generator=generator)
                for task in tasks
            }
        )
        self.output_dim = (2 * width, *config.head_widths)[-1]

    def forward(self, x_BD: Tensor) -> TowerOutput:
        """(B, D) to (B, H) per task; while training also ``adversarial`` and ``orthogonality``, weighted."""
        shared_TBS = torch.einsum("tbe,ebs->tbs", self.gate(x_BD), self.shared_experts(x_BD))
        private_TBS = self.private_experts(x_BD)
        both_TBS2 = torch.cat([shared_TBS, private_TBS], dim=-1)
        hidden = {
            task: layers(both_BS2) for (task, layers), both_BS2 in zip(self.task_layers.items(), both_TBS2, strict=True)
        }
        if not self.training:
            return TowerOutput(hidden)
        rows = self.group.sum(torch.tensor(len(x_BD), device=x_BD.device))
        return TowerOutput(
            hidden,
            {
                "adversarial": self._config.adversarial_weight * self._discriminate(shared_TBS, rows),
                "orthogonality": self._config.orthogonality_weight
                * _overlap(shared_TBS, private_TBS, rows, self.group),
            },
        )

    def gated_layers(self, x_BD: Tensor) -> list[GatedLayer]:
        """One, ``gate``: the shared experts, and each task's gate over them; private parts have no gate."""
        experts_EBS, shares_TBE = self.shared_experts(x_BD), self.gate(x_BD)
        names = tuple(f"shared {number}" for number in range(1, len(experts_EBS) + 1))
        gates = {
            task: GateShares(names, shares_BE)
            for (task, _), shares_BE in zip(self.task_layers.items(), shares_TBE, strict=True)
        }
        return [GatedLayer("gate", dict(zip(names, experts_EBS, strict=True)), gates)]

    def _discriminate(self, shared_TBS: Tensor, rows: Tensor) -> Tensor:
        """Cross-entropy, in nats, of guessing the task from its shared representation; ln T is chance."""
        tasks, batch, _ = shared_TBS.shape
        reversed_TBS = reverse_gradient(shared_TBS, self._config.reversal_strength)
        logits_NT = self.guess(self.discriminator(reversed_TBS.flatten(0, 1))).float()
        task_N = torch.arange(tasks, device=logits_NT.device).repeat_interleave(batch)
        return F.cross_entropy(logits_NT, task_N, reduction="sum") / (tasks * rows)

    def shared_parameters(self) -> list[nn.Parameter]:
        """The shared experts. (Each task reads a slice of its own of the gates and of the private experts.)"""
        return list(self.shared_experts.parameters())

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """The shared experts' last layer."""
        return self.shared_experts.last_layer()


def _overlap(shared_TBS: Tensor, private_TBS: Tensor, rows: Tensor | int, group: Group = ONE) -> Tensor:
    """‖Sᵀ P / B‖²_F with rows of length 1, mean over tasks: 0 when orthogonal, at most 1.

    It is no sum over rows, so the ranks sum SᵀP, and each has an equal share of what comes of it.
    """
    with torch.autocast(shared_TBS.device.type, enabled=False):
        shared = F.normalize(shared_TBS.float(), dim=-1)
        private = F.normalize(private_TBS.float(), dim=-1)
        common_TSS = group.sum_with_gradient(shared.transpose(1, 2) @ private) / rows
        return common_TSS.square().sum(dim=(1, 2)).mean() / group.size


def build_adversarial(
    config: AdversarialConfig, *, input_dim: int, tasks: Sequence[str], generator: torch.Generator
) -> Adversarial:
    """The tower of ``config``."""
    return Adversarial(config, input_dim=input_dim, tasks=tasks, generator=generator)
