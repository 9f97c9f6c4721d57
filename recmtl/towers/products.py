"""The first matrix products of a tower, as the processor likes them.

In: x_BD and the banks that read it: experts, gates. Out: what each makes of it. Three things are done to the plain
``einsum`` per bank, none of which changes what is computed (benchmarks/NOTES.md has what each brought):

- Banks that read the same input are one product, over their joined columns: x is read once forwards and its gradient is
  written once, not once a bank and added up.
- ReLU happens in the product's own memory, and its gradient is written where the backward product reads it.
- On a CPU the products are oneDNN's, which torch carries for what its compiler generates. MKL, which ``torch.mm``
  calls, loses a third of its speed where it writes rows that do not begin at multiples of 64 bytes (429 columns, say).

On a GPU, under autocast and for a compiler these are plain operations, with the input padded by zeros to a multiple of
16 columns on a GPU: tensor cores want whole tiles.

Dimensions: B batch, D width of the input, G members of a bank, N width of one member's output.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Bank", "read_together"]

STEP = 16
"""Columns that a GPU's input is padded to a multiple of: 32 bytes of bf16."""


class Bank(NamedTuple):
    """One weight that reads x_BD for G members at once."""

    weight: Tensor
    """(G, D, N)"""
    bias: Tensor
    """(G, 1, N)"""
    relu: bool
    """Whether ReLU follows at once."""


def read_together(x_BD: Tensor, banks: Sequence[Bank]) -> list[Tensor]:
    """What every bank makes of x: (G, B, N) each, views of one product.

    The backward pass has no backward of its own on a CPU (nothing here asks for second derivatives).
    """
    columns_DN = torch.cat([bank.weight.permute(1, 0, 2).flatten(1) for bank in banks], dim=1)
    biases_N = torch.cat([bank.bias.flatten() for bank in banks])
    shapes = tuple((bank.weight.shape[0], bank.weight.shape[2], bank.relu) for bank in banks)
    if x_BD.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling():
        return list(_Product.apply(x_BD, columns_DN, biases_N, shapes))  # type: ignore[no-untyped-call]
    if x_BD.device.type != "cpu":
        x_BD, columns_DN, biases_N = _padded(x_BD, columns_DN, biases_N)
    y_BN = torch.addmm(biases_N, x_BD, columns_DN)
    return [F.relu(part) if relu else part for part, (_, _, relu) in zip(_parts(y_BN, shapes), shapes, strict=True)]


def _parts(y_BN: Tensor, shapes: Sequence[tuple[int, int, bool]]) -> list[Tensor]:
    """Views (G, B, N) of the joined columns, bank after bank."""
    widths = [members * width for members, width, _ in shapes]
    split = torch.split(y_BN[:, : sum(widths)], widths, dim=1)
    return [
        part.view(-1, members, width).transpose(0, 1) for part, (members, width, _) in zip(split, shapes, strict=True)
    ]


def _padded(x_BD: Tensor, columns_DN: Tensor, biases_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    deep, wide = -columns_DN.shape[0] % STEP, -columns_DN.shape[1] % STEP
    return F.pad(x_BD, (0, deep)), F.pad(columns_DN, (0, wide, 0, deep)), F.pad(biases_N, (0, wide))


def _multiply(x_BK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """(B, N): x·Wᵀ + b, in any memory layout of the three."""
    if _ONEDNN is None or x_BK.dtype != torch.float32 or x_BK.numel() == 0:
        return F.linear(x_BK, weight_NK, bias_N)
    product: Tensor = _ONEDNN(x_BK, weight_NK, bias_N, "none", [], "")
    return product


_HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if _HAS_ONEDNN else None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_BD: Tensor, columns_DN: Tensor, biases_N: Tensor, shapes: Sequence[tuple[int, int, bool]]
    ) -> tuple[Tensor, ...]:
        y_BN = _multiply(x_BD, columns_DN.t(), biases_N)
        parts = _parts(y_BN, shapes)
        for part, (_, _, relu) in zip(parts, shapes, strict=True):
            if relu:
                part.relu_()
        ctx.shapes = shapes
        ctx.save_for_backward(x_BD, columns_DN, y_BN)
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x_BD, columns_DN, y_BN = ctx.saved_tensors
        g_BN = torch.empty_like(y_BN)
        parts = zip(gradients, _parts(y_BN, ctx.shapes), _parts(g_BN, ctx.shapes), ctx.shapes, strict=True)
        for gradient, part, into, (_, _, relu) in parts:
            if relu:
                torch.ops.aten.threshold_backward.grad_input(gradient, part, 0, grad_input=into)
            else:
                into.copy_(gradient)
        x_gradient_BD = _multiply(g_BN, columns_DN) if ctx.needs_input_grad[0] else None
        return x_gradient_BD, _multiply(x_BD.t(), g_BN.t()), g_BN.sum(0), None
