"""The blocks that towers are made of: MLP, ExpertBank (all experts as one batched tensor), Gate, GradientReversal.

Every initial value comes from the generator that is handed in. Dropout draws from torch's global generator of the
device: the trainer seeds it anew at every step from the run's seed and the step, so that a resumed run drops the same
units.

Dimensions: B batch, D width of an input, H width of an output, E experts, G gates (one per task, or one shared).
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from recmtl.group import AcrossRanks
from recmtl.modules import linear, uniform
from recmtl.towers.products import Bank, read_together

__all__ = ["MLP", "BatchNorm", "ExpertBank", "Gate", "LayerNorm", "NormKind", "Width", "make_norm", "reverse_gradient"]

_EPS = 1e-5  # as torch's batch normalisation has it

NormKind = Literal["none", "layer", "batch"]
Width = Annotated[int, Field(ge=1)]


class MLP(nn.Module):
    """Linear → normalisation → ReLU → dropout, once per width; the identity when there is no width.

    Args:
        input_dim: D.
        widths: of every layer in turn; the last one is H.
    """

    def __init__(
        self, input_dim: int, widths: Sequence[int], *, norm: NormKind, dropout: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        inputs = (input_dim, *widths)
        self.output_dim = inputs[-1]
        self.layers = nn.ModuleList(linear(i, o, generator) for i, o in zip(inputs, widths, strict=False))
        self.norms = nn.ModuleList(make_norm(norm, width) for width in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BD: Tensor) -> Tensor:
        """(B, D) to (B, H)."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x_BD = self.dropout(F.relu(norm(layer(x_BD)), inplace=True))
        return x_BD

    def last_layer(self) -> list[nn.Parameter]:
        """Weight and bias of the last linear layer; empty when there is none."""
        return list(self.layers[-1].parameters()) if self.layers else []


class ExpertBank(nn.Module):
    """E multi-layer perceptrons of one shape, each layer one weight (E, in, out) and one batched product.

    Every expert is drawn by itself: equal experts would receive equal gradients and stay equal for ever.

    Args:
        num_experts: E.
        input_dim: D.
        widths: of every layer in turn, at least one; the last one is H.
    """

    def __init__(
        self,
        num_experts: int,
        input_dim: int,
        widths: Sequence[int],
        *,
        norm: NormKind,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        assert widths, "an expert has at least one layer"
        inputs = (input_dim, *widths[:-1])
        bounds = [1 / math.sqrt(width) for width in inputs]
        self.num_experts = num_experts
        self.output_dim = widths[-1]
        self.weights = nn.ParameterList(
            uniform((num_experts, i, o), b, generator) for i, o, b in zip(inputs, widths, bounds, strict=True)
        )
        self.biases = nn.ParameterList(
            uniform((num_experts, 1, o), b, generator) for o, b in zip(widths, bounds, strict=True)
        )
        self.norms = nn.ModuleList(make_norm(norm, width, num_experts) for width in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D), read by every expert, or (E, B, D), an input for each, to (E, B, H)."""
        if x.dim() == 2:
            first = self._first()
            (h_EBH,) = read_together(x, [first])
            return self._from_first(h_EBH, activated=first.relu)
        return self._from_first(torch.baddbmm(self.biases[0], x, self.weights[0]), activated=False)

    def with_gate(self, x_BD: Tensor, gate: "Gate") -> tuple[Tensor, Tensor]:
        """(E, B, H) and the gate's shares (G, B, E), from one product of what both read."""
        first = self._first()
        h_EBH, logits_GBE = read_together(x_BD, [first, Bank(gate.weight, gate.bias, relu=False)])
        return self._from_first(h_EBH, activated=first.relu), gate.shares(logits_GBE)

    def _first(self) -> Bank:
        return Bank(self.weights[0], self.biases[0], relu=isinstance(self.norms[0], nn.Identity))

    def _from_first(self, h_EBH: Tensor, *, activated: bool) -> Tensor:
        """From the first layer's product, its ReLU done already (``activated``) or not, to (E, B, H)."""
        for layer, norm in enumerate(self.norms):
            if layer:
                h_EBH = torch.baddbmm(self.biases[layer], h_EBH, self.weights[layer])
            if layer or not activated:
                h_EBH = F.relu(norm(h_EBH), inplace=True)
            h_EBH = self.dropout(h_EBH)
        return h_EBH

    def last_layer(self) -> list[nn.Parameter]:
        """Weight and bias of every expert's last layer."""
        return [self.weights[-1], self.biases[-1]]


class Gate(nn.Module):
    """G softmax gates over the same number of experts: one weight (G, D, E), one batched product.

    They start at zero, that is at the plain mean of the experts. Computed in float32 under autocast too.
    """

    def __init__(self, num_gates: int, input_dim: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_gates, input_dim, num_experts))
        self.bias = nn.Parameter(torch.zeros(num_gates, 1, num_experts))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D), read by every gate, or (G, B, D), an input for each, to shares (G, B, E) that sum to 1 over E."""
        if x.dim() == 2:
            (logits_GBE,) = read_together(x, [Bank(self.weight, self.bias, relu=False)])
        else:
            logits_GBE = torch.baddbmm(self.bias, x, self.weight)
        return self.shares(logits_GBE)

    @staticmethod
    def shares(logits_GBE: Tensor) -> Tensor:
        """Softmax over the experts, in float32 under autocast too."""
        return torch.softmax(logits_GBE, dim=-1, dtype=torch.float32)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) of the last dimension, with a scale and shift per expert."""

    def __init__(self, width: int, num_experts: int | None = None) -> None:
        super().__init__()
        shape = (width,) if num_experts is None else (num_experts, 1, width)
        self.scale = nn.Parameter(torch.ones(shape))
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) to the same shape."""
        return F.layer_norm(x, x.shape[-1:]) * self.scale + self.shift


class BatchNorm(nn.Module, AcrossRanks):
    """Batch normalisation (Ioffe and Szegedy 2015) per unit, and per expert where there are experts.

    A batch of one has no variance: it is normalised by the running statistics and leaves them as they are. Where ranks
    share a batch, the statistics are those of all its rows.
    """

    running_mean: Tensor
    running_variance: Tensor

    MOMENTUM = 0.1

    def __init__(self, width: int, num_experts: int | None = None) -> None:
        super().__init__()
        units = width * (num_experts or 1)
        self.scale = nn.Parameter(torch.ones(units))
        self.shift = nn.Parameter(torch.zeros(units))
        self.register_buffer("running_mean", torch.zeros(units))
        self.register_buffer("running_variance", torch.ones(units))

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) or (E, B, width) to the same shape."""
        if x.dim() == 2:
            return self._normalise(x)
        experts, batch, width = x.shape
        x_BU = x.transpose(0, 1).reshape(batch, experts * width)
        return self._normalise(x_BU).reshape(batch, experts, width).transpose(0, 1)

    def _normalise(self, x_BU: Tensor) -> Tensor:
        if self.training and self.group.size > 1:
            return self._normalise_together(x_BU)
        learn = self.training and x_BU.shape[0] > 1
        return F.batch_norm(
            x_BU, self.running_mean, self.running_variance, self.scale, self.shift, learn, self.MOMENTUM
        )

    def _normalise_together(self, x_BU: Tensor) -> Tensor:
        x = x_BU.float()
        sums = self.group.sum_with_gradient(torch.cat([x.sum(0), x.new_tensor([float(len(x))])]))
        rows, mean_U = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        variance_U = self.group.sum_with_gradient((x - mean_U).square().sum(0)) / rows
        with torch.no_grad():  # a batch of one row in all leaves the running statistics as they are
            learns = self.MOMENTUM * (rows > 1)
            self.running_mean += learns * (mean_U - self.running_mean)
            unbiased_U = variance_U * rows / (rows - 1).clamp(min=1)
            self.running_variance += learns * (unbiased_U - self.running_variance)
            alone = rows <= 1
        mean_U = torch.where(alone, self.running_mean, mean_U)
        variance_U = torch.where(alone, self.running_variance, variance_U)
        return (x - mean_U) * torch.rsqrt(variance_U + _EPS) * self.scale + self.shift


def make_norm(kind: NormKind, width: int, num_experts: int | None = None) -> nn.Module:
    """The normalisation of one layer; the identity for "none"."""
    if kind == "layer":
        return LayerNorm(width, num_experts)
    if kind == "batch":
        return BatchNorm(width, num_experts)
    return nn.Identity()


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """``x`` itself; on the way back its gradient times -``strength`` (Ganin and Lempitsky 2015, eq. 4 to 6)."""
    reversed_x: Tensor = _ReverseGradient.apply(x, strength)  # type: ignore[no-untyped-call]
    return reversed_x
