"""Multi-gate mixture of experts (Ma et al. 2018, "Modeling Task Relationships in Multi-task Learning with MMoE").

f^t(x) = Σ_e g^t(x)_e · f_e(x) with g^t(x) = softmax(W_t x) (eq. 6 and 7); then a small network per task.

In: x_BD. Out: h_BH per task. Dimensions: B batch, D input width, E experts, S width of an expert's output, T tasks,
H hidden width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from recmtl.modules import ByName
from recmtl.settings import Settings
from recmtl.towers.base import GatedLayer, GateShares, TowerOutput
from recmtl.towers.blocks import MLP, ExpertBank, Gate, NormKind, Width

__all__ = ["MMoE", "MMoEConfig", "build_mmoe"]


class MMoEConfig(Settings):
    """Experts that all tasks share, mixed anew by each task's gate."""

    kind: Literal["mmoe"] = "mmoe"
    """Which tower this is."""
    num_experts: int = Field(default=8, ge=1)
    """How many experts."""
    expert_widths: tuple[Width, ...] = Field(default=(256, 128), min_length=1)
    """Widths of an expert's layers."""
    head_widths: tuple[Width, ...] = (64,)
    """Widths of each task's own layers; [] for none."""
    norm: NormKind = "none"
    """Normalisation before every ReLU: none, layer or batch."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of units dropped after every ReLU while training."""


class MMoE(nn.Module):
    """See the file's head."""

    def __init__(self, config: MMoEConfig, *, input_dim: int, tasks: Sequence[str], generator: torch.Generator) -> None:
        super().__init__()
        self.experts = ExpertBank(
            config.num_experts,
            input_dim,
            config.expert_widths,
            norm=config.norm,
            dropout=config.dropout,
            generator=generator,
        )
        self.gate = Gate(len(tasks), input_dim, config.num_experts)
        self.task_layers = ByName(
            {
                task: MLP(
                    self.experts.output_dim,
                    config.head_widths,
                    norm=config.norm,
                    dropout=config.dropout,
                    generator=generator,
                )
                for task in tasks
            }
        )
        self.output_dim = (*config.expert_widths, *config.head_widths)[-1]

    def forward(self, x_BD: Tensor) -> TowerOutput:
        """(B, D) to (B, H) per task."""
        experts_EBS, shares_TBE = self.experts.with_gate(x_BD, self.gate)
        mixed_TBS = torch.einsum("tbe,ebs->tbs", shares_TBE, experts_EBS)
        return TowerOutput(
            {
                task: layers(mixed_BS)
                for (task, layers), mixed_BS in zip(self.task_layers.items(), mixed_TBS, strict=True)
            }
        )

    def gated_layers(self, x_BD: Tensor) -> list[GatedLayer]:
        """One, ``gate``: all experts, and each task's gate over them."""
        experts_EBS, shares_TBE = self.experts.with_gate(x_BD, self.gate)
        names = tuple(f"expert {number}" for number in range(1, len(experts_EBS) + 1))
        gates = {
            task: GateShares(names, shares_BE)
            for (task, _), shares_BE in zip(self.task_layers.items(), shares_TBE, strict=True)
        }
        return [GatedLayer("gate", dict(zip(names, experts_EBS, strict=True)), gates)]

    def shared_parameters(self) -> list[nn.Parameter]:
        """The experts. (The gates are one tensor of which each task reads a slice of its own.)"""
        return list(self.experts.parameters())

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """The experts' last layer."""
        return self.experts.last_layer()


def build_mmoe(config: MMoEConfig, *, input_dim: int, tasks: Sequence[str], generator: torch.Generator) -> MMoE:
    """The tower of ``config``."""
    return MMoE(config, input_dim=input_dim, tasks=tasks, generator=generator)
