"""Progressive layered extraction (Tang et al. 2020, "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning
Model for Personalized Recommendations").

Every level has experts of each task's own and experts that all share. A task's gate mixes its own and the shared ones
(eq. 1 to 4 of the paper); the shared gate, on every level but the last, mixes all experts of the level (eq. 5 and 6).
What comes out of a level's gates goes into the next level's experts and gates. With one level it is the paper's CGC.

In: x_BD. Out: h_BH per task. Dimensions: B batch, D width of a level's input, S width of an expert's output, T tasks,
P experts of one task's own, C experts in common, A = T·P + C all experts of a level, H hidden width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from recmtl.modules import ByName
from recmtl.settings import Settings
from recmtl.towers.base import SHARED_GATE, GatedLayer, GateShares, TowerOutput
from recmtl.towers.blocks import MLP, ExpertBank, Gate, NormKind, Width

__all__ = ["PLE", "PLEConfig", "build_ple"]


class PLEConfig(Settings):
    """Levels of experts, some of each task's own and some shared."""

    kind: Literal["ple"] = "ple"
    """Which tower this is."""
    num_levels: int = Field(default=2, ge=1, le=64)
    """How many levels; 1 is customised gate control (CGC)."""
    num_task_experts: int = Field(default=2, ge=1)
    """Experts of each task's own, on every level."""
    num_shared_experts: int = Field(default=2, ge=1)
    """Experts that all tasks share, on every level."""
    expert_widths: tuple[Width, ...] = Field(default=(128,), min_length=1)
    """Widths of an expert's layers, on every level."""
    head_widths: tuple[Width, ...] = (64,)
    """Widths of each task's own layers after the last level; [] for none."""
    norm: NormKind = "none"
    """Normalisation before every ReLU: none, layer or batch."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of units dropped after every ReLU while training."""


class PLE(nn.Module):
    """See the file's head."""

    def __init__(self, config: PLEConfig, *, input_dim: int, tasks: Sequence[str], generator: torch.Generator) -> None:
        super().__init__()
        inputs = [input_dim, *[config.expert_widths[-1]] * (config.num_levels - 1)]
        self.levels = nn.ModuleList(
            _Level(config, input_dim=width, num_tasks=len(tasks), last=number == config.num_levels, generator=generator)
            for number, width in enumerate(inputs, 1)
        )
        self.task_layers = ByName(
            {
                task: MLP(
                    config.expert_widths[-1],
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
        tasks, shared_BD = x_BD, x_BD
        for level in self.levels:
            tasks, shared_BD = level(tasks, shared_BD)
        return TowerOutput(
            {task: layers(mixed_BS) for (task, layers), mixed_BS in zip(self.task_layers.items(), tasks, strict=True)}
        )

    def gated_layers(self, x_BD: Tensor) -> list[GatedLayer]:
        """One a level, ``level 1`` and so on: a task's gate over its own experts and the shared ones; below the last
        level also the shared gate, over all."""
        names = [task for task, _ in self.task_layers.items()]
        found: list[GatedLayer] = []
        tasks, shared_BD = x_BD, x_BD
        for number, level in enumerate(self.levels, 1):
            assert isinstance(level, _Level)
            found.append(level.gated(f"level {number}", names, tasks, shared_BD))
            tasks, shared_BD = level(tasks, shared_BD)
        return found

    def shared_parameters(self) -> list[nn.Parameter]:
        """The shared experts, and below the last level what reaches another task through the shared gate above."""
        found: list[nn.Parameter] = []
        above = len(self.levels)
        for level in self.levels:
            assert isinstance(level, _Level)
            above -= 1
            found += level.shared_experts.parameters()
            if level.shared_gate is not None:
                found += [*level.task_experts.parameters(), *level.shared_gate.parameters()]
            if above >= 2:  # a task's mixture feeds its own experts one level up, which the shared gate there reads
                found += level.task_gate.parameters()
        return found

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """The last layer of the last level's shared experts."""
        level = self.levels[-1]
        assert isinstance(level, _Level)
        return level.shared_experts.last_layer()


class _Level(nn.Module):
    """One level: a bank of the tasks' own experts, a bank of the shared ones, and the gates over both."""

    def __init__(
        self, config: PLEConfig, *, input_dim: int, num_tasks: int, last: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        own, common = config.num_task_experts, config.num_shared_experts
        self.task_experts, self.shared_experts = (
            ExpertBank(
                number,
                input_dim,
                config.expert_widths,
                norm=config.norm,
                dropout=config.dropout,
                generator=generator,
            )
            for number in (num_tasks * own, common)
        )
        self.task_gate = Gate(num_tasks, input_dim, own + common)
        self.shared_gate = None if last else Gate(1, input_dim, num_tasks * own + common)
        self._own = own
        self._num_tasks = num_tasks

    def forward(self, tasks: Tensor, shared_BD: Tensor) -> tuple[Tensor, Tensor]:
        """From the level below (or x_BD for both) to (T, B, S) for the tasks and (B, S) in common.

        Args:
            tasks: (T, B, D), or (B, D) for all of them.
            shared_BD: (B, D).
        """
        own_EBS = self._own_outputs(tasks)
        common_CBS = self.shared_experts(shared_BD)

        shares_TBE = self.task_gate(tasks)
        own_TPBS = own_EBS.unflatten(0, (self._num_tasks, self._own))  # type: ignore[no-untyped-call]
        mixed_TBS = torch.einsum("tbp,tpbs->tbs", shares_TBE[..., : self._own], own_TPBS) + torch.einsum(
            "tbc,cbs->tbs", shares_TBE[..., self._own :], common_CBS
        )
        if self.shared_gate is None:
            return mixed_TBS, shared_BD
        shares_BA = self.shared_gate(shared_BD).squeeze(0)
        mixed_BS = torch.einsum("ba,abs->bs", shares_BA, torch.cat([own_EBS, common_CBS]))
        return mixed_TBS, mixed_BS

    def _own_outputs(self, tasks: Tensor) -> Tensor:
        """(T·P, B, S): the tasks' own experts, each on its task's input."""
        own_inputs = tasks if tasks.dim() == 2 else tasks.repeat_interleave(self._own, dim=0)
        own_EBS: Tensor = self.task_experts(own_inputs)
        return own_EBS

    def gated(self, name: str, tasks: Sequence[str], inputs: Tensor, shared_BD: Tensor) -> GatedLayer:
        """The level's experts and gates on what :meth:`forward` is given, under the tasks' names."""
        own = {task: tuple(f"{task} {number}" for number in range(1, self._own + 1)) for task in tasks}
        common_CBS = self.shared_experts(shared_BD)
        common = tuple(f"shared expert {number}" for number in range(1, len(common_CBS) + 1))
        every = (*(expert for experts in own.values() for expert in experts), *common)
        outputs_ABS = torch.cat([self._own_outputs(inputs), common_CBS])
        gates = {
            task: GateShares((*experts, *common), shares_BE)
            for (task, experts), shares_BE in zip(own.items(), self.task_gate(inputs), strict=True)
        }
        if self.shared_gate is not None:
            gates[SHARED_GATE] = GateShares(every, self.shared_gate(shared_BD).squeeze(0))
        return GatedLayer(name, dict(zip(every, outputs_ABS, strict=True)), gates)


def build_ple(config: PLEConfig, *, input_dim: int, tasks: Sequence[str], generator: torch.Generator) -> PLE:
    """The tower of ``config``."""
    return PLE(config, input_dim=input_dim, tasks=tasks, generator=generator)
