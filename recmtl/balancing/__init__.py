"""Balancers: how the losses, or the gradients, of several tasks become one step.

Adding one is a file here and a line in :data:`BALANCERS`; ``tests/contracts/test_balancers.py`` then walks it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Union

from pydantic import Field

from recmtl.balancing.base import Balancer, BalancerKind
from recmtl.balancing.cut import Cut, task_cosines
from recmtl.balancing.dwa import DynamicWeightAverage, DynamicWeightAverageConfig
from recmtl.balancing.fixed import Fixed, FixedConfig
from recmtl.balancing.gradnorm import GradNorm, GradNormConfig
from recmtl.balancing.torchjd_pcgrad import PCGrad, PCGradConfig
from recmtl.balancing.torchjd_upgrad import UPGrad, UPGradConfig
from recmtl.balancing.uncertainty import Uncertainty, UncertaintyConfig
from recmtl.settings import Settings

__all__ = ["BALANCERS", "AnyBalancer", "Balancer", "BalancerKind", "Cut", "build_balancer", "task_cosines"]

BALANCERS: dict[str, BalancerKind] = {
    "fixed": BalancerKind(FixedConfig, Fixed),
    "uncertainty": BalancerKind(UncertaintyConfig, Uncertainty),
    "dwa": BalancerKind(DynamicWeightAverageConfig, DynamicWeightAverage),
    "gradnorm": BalancerKind(GradNormConfig, GradNorm),
    "pcgrad": BalancerKind(PCGradConfig, PCGrad),
    "upgrad": BalancerKind(UPGradConfig, UPGrad),
}
"""``kind`` in the config to its config class and its builder."""

if TYPE_CHECKING:
    AnyBalancer = Settings
else:
    AnyBalancer = Annotated[Union[tuple(kind.config for kind in BALANCERS.values())], Field(discriminator="kind")]  # noqa: UP007
"""The config of any balancer, told apart by ``kind``."""


def build_balancer(config: Settings, *, tasks: Sequence[str], seed: int) -> Balancer:
    """The balancer that a config describes.

    Args:
        config: one of the config classes of :data:`BALANCERS`.
        tasks: task names, in order.
        seed: for the balancers that draw.

    Raises:
        UserError: the config names an unknown task.
    """
    kind: str = config.kind  # type: ignore[attr-defined]
    balancer: Balancer = BALANCERS[kind].build(config, tasks=tasks, seed=seed)
    return balancer
