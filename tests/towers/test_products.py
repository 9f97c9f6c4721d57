"""One product for all that read the same input: the same numbers and gradients as one einsum a bank."""

import pytest
import torch
from torch.nn import functional as F

from recmtl.towers.products import Bank, read_together


def banks(width, *, seed=3):
    draw = torch.Generator().manual_seed(seed)
    shapes = [(4, 6, True), (3, 4, False), (2, 5, True)]
    return [
        Bank(
            torch.randn(members, width, columns, generator=draw, requires_grad=True),
            torch.randn(members, 1, columns, generator=draw, requires_grad=True),
            relu,
        )
        for members, columns, relu in shapes
    ]


def by_einsum(x_BD, given):
    found = [torch.einsum("bd,gdn->gbn", x_BD, bank.weight) + bank.bias for bank in given]
    return [F.relu(part) if bank.relu else part for part, bank in zip(found, given, strict=True)]


def gradients(parts, x_BD, given):
    loss = sum((part * torch.linspace(-1, 1, part.numel()).view(part.shape)).sum() for part in parts)
    return torch.autograd.grad(loss, [x_BD, *(b.weight for b in given), *(b.bias for b in given)])


@pytest.mark.parametrize("width", [1, 13, 16, 29])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_values_and_gradients_are_those_of_one_einsum_a_bank(width, rows):
    x_BD = torch.randn(rows, width, generator=torch.Generator().manual_seed(1), requires_grad=True)
    given = banks(width)
    ours, plain = read_together(x_BD, given), by_einsum(x_BD, given)
    assert [tuple(part.shape) for part in ours] == [(4, rows, 6), (3, rows, 4), (2, rows, 5)]
    for mine, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, other)
    for mine, other in zip(gradients(ours, x_BD, given), gradients(plain, x_BD, given), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_graph_can_be_walked_more_than_once():
    x_BD = torch.randn(5, 9, generator=torch.Generator().manual_seed(1), requires_grad=True)
    parts = read_together(x_BD, banks(9))
    first, second = (torch.autograd.grad(parts[0].sum(), x_BD, retain_graph=True)[0] for _ in range(2))
    other = torch.autograd.grad(parts[1].sum(), x_BD)[0]
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_an_input_without_a_gradient_is_given_none():
    given = banks(9)
    parts = read_together(torch.ones(5, 9), given)
    (weight,) = torch.autograd.grad(parts[1].sum(), [given[1].weight])
    assert torch.equal(weight, torch.full((3, 9, 4), 5.0))


def test_under_autocast_it_is_the_same_in_bf16():
    x_BD = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    given = banks(20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = read_together(x_BD, given)
    assert {part.dtype for part in parts} == {torch.bfloat16}
    for mine, other in zip(parts, by_einsum(x_BD, given), strict=True):
        torch.testing.assert_close(mine.float(), other, rtol=0.05, atol=0.2)


@pytest.mark.gpu
def test_on_a_gpu_the_padding_changes_nothing():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; torch sees none here")
    x_BD = torch.randn(7, 29, generator=torch.Generator().manual_seed(1), requires_grad=True)
    given = banks(29)
    on_gpu = [
        Bank(*(tensor.detach().cuda().requires_grad_() for tensor in (bank.weight, bank.bias)), bank.relu)
        for bank in given
    ]
    x_gpu = x_BD.detach().cuda().requires_grad_()
    ours, plain = read_together(x_gpu, on_gpu), by_einsum(x_BD, given)
    for mine, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine.cpu(), other, rtol=1e-3, atol=1e-3)
    moved = [part.cpu() for part in ours]
    for mine, other in zip(gradients(moved, x_gpu, on_gpu), gradients(plain, x_BD, given), strict=True):
        torch.testing.assert_close(mine.cpu(), other, rtol=1e-3, atol=1e-3)


def test_without_onednn_it_is_the_same(monkeypatch):
    x_BD = torch.randn(7, 29, generator=torch.Generator().manual_seed(1), requires_grad=True)
    given = banks(29)
    ours = read_together(x_BD, given)
    mine = gradients(ours, x_BD, given)
    monkeypatch.setattr("recmtl.towers.products._ONEDNN", None)
    plain = read_together(x_BD, given)
    for one, other in zip((*ours, *mine), (*plain, *gradients(plain, x_BD, given)), strict=True):
        torch.testing.assert_close(one, other)
