"""Learning rates over time. In: a config, a step and the steps in all. Out: the factor on the base learning rate.

A factor is a pure function of the step, so a schedule has no state to checkpoint.
"""

import math
from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator

from recmtl.settings import Settings

__all__ = ["SCHEDULES", "ScheduleConfig", "factor"]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda share: 1.0,
    "linear": lambda share: 1.0 - share,
    "cosine": lambda share: (1.0 + math.cos(math.pi * share)) / 2,
}
"""Name to a curve from 1 down to 0 over the share of the steps after warm-up that are done, 0 to 1."""


class ScheduleConfig(Settings):
    """How a learning rate changes from step to step."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay, fall in a straight line, or fall along half a cosine."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the rate rises in a straight line from near 0 to its base."""
    final: float = Field(default=0.0, ge=0, le=1)
    """linear, cosine: where the rate ends, as a share of its base."""

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> "ScheduleConfig":
        if self.kind == "constant" and "final" in self.model_fields_set and self.final != 0:
            raise ValueError("schedule: `final` belongs to kind linear or cosine, not constant")
        return self


def factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """The factor for step ``step`` (from 0) of ``steps``.

    With W warm-up steps, step s < W has (s + 1) / W; after them the curve starts at 1 and reaches ``final`` at the last
    step. A run no longer than its warm-up never leaves it.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(steps - 1 - config.warmup_steps, 1)
    return config.final + (1.0 - config.final) * SCHEDULES[config.kind](min(share, 1.0))
