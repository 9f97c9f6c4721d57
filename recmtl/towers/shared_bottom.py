"""Shared bottom (Caruana 1997): one network that all tasks read, then a small one for each task.

In: x_BD. Out: h_BH per task. Dimensions: B batch, D input width, S width of the shared representation, H hidden width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from recmtl.modules import ByName
from recmtl.settings import Settings
from recmtl.towers.base import GatedLayer, TowerOutput
from recmtl.towers.blocks import MLP, NormKind, Width

__all__ = ["SharedBottom", "SharedBottomConfig", "build_shared_bottom"]


class SharedBottomConfig(Settings):
    """One shared network under small ones per task."""

    kind: Literal["shared_bottom"] = "shared_bottom"
    """Which tower this is."""
    widths: tuple[Width, ...] = Field(default=(256, 128), min_length=1)
    """Widths of the shared layers."""
    head_widths: tuple[Width, ...] = (64,)
    """Widths of each task's own layers; [] for none."""
    norm: NormKind = "none"
    """Normalisation before every ReLU: none, layer or batch."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of units dropped after every ReLU while training."""


class SharedBottom(nn.Module):
    """See the file's head."""

    def __init__(
        self, config: SharedBottomConfig, *, input_dim: int, tasks: Sequence[str], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.bottom = MLP(input_dim, config.widths, norm=config.norm, dropout=config.dropout, generator=generator)
        self.task_layers = ByName(
            {
                task: MLP(
                    self.bottom.output_dim,
                    config.head_widths,
                    norm=config.norm,
                    dropout=config.dropout,
                    generator=generator,
                )
                for task in tasks
            }
        )
        self.output_dim = (*config.widths, *config.head_widths)[-1]

    def forward(self, x_BD: Tensor) -> TowerOutput:
        """(B, D) to (B, H) per task."""
        s_BS = self.bottom(x_BD)
        return TowerOutput({task: layers(s_BS) for task, layers in self.task_layers.items()})

    def gated_layers(self, x_BD: Tensor) -> list[GatedLayer]:
        """There are no gates."""
        return []

    def shared_parameters(self) -> list[nn.Parameter]:
        """The bottom."""
        return list(self.bottom.parameters())

    def last_shared_parameters(self) -> list[nn.Parameter]:
        """The bottom's last layer."""
        return self.bottom.last_layer()


def build_shared_bottom(
    config: SharedBottomConfig, *, input_dim: int, tasks: Sequence[str], generator: torch.Generator
) -> SharedBottom:
    """The tower of ``config``."""
    return SharedBottom(config, input_dim=input_dim, tasks=tasks, generator=generator)
