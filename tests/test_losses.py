"""Losses: worked by hand, against torch's own, and where nothing is observed."""

import math

import pytest
import torch
from torch.nn import functional as F

from recmtl.batch import Batch, SparseBatch
from recmtl.losses import masked_mean, task_losses
from recmtl.modules import generator
from recmtl.tasks import Task, Tasks

B = 6
NAN = float("nan")


def batch(labels, observed, weights=None):
    empty = SparseBatch((), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int32))
    row = torch.arange(B)
    return Batch(B, empty, torch.zeros(B, 0), labels, observed, weights or {}, row, row)


def one(task, outcome, label, observed=None, weights=None, scale=(0.0, 1.0)):
    observed = torch.ones(B, dtype=torch.bool) if observed is None else torch.tensor(observed)
    rows = batch({"t": torch.tensor(label)}, {"t": observed}, {"t": torch.tensor(weights)} if weights else None)
    scales = {"t": (torch.tensor(scale[0]), torch.tensor(scale[1]))}
    return task_losses({"t": outcome}, rows, Tasks([task]), scales)["t"]


BINARY = Task(name="t", kind="binary", label="l")
REGRESSION = Task(name="t", kind="regression", label="l")
MULTICLASS = Task(name="t", kind="multiclass", label="l", classes=("a", "b", "c"))
LABEL = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]
OBSERVED = [True, True, False, True, False, False]


def logits(*shape):
    return torch.randn(*shape, generator=generator(1)).requires_grad_()


def binary(z):
    return torch.stack([F.logsigmoid(-z), F.logsigmoid(z)], 1)


def test_binary_is_torchs_cross_entropy():
    z = logits(B)
    expected = F.binary_cross_entropy_with_logits(z, torch.tensor(LABEL))
    torch.testing.assert_close(one(BINARY, binary(z), LABEL), expected)


def test_multiclass_is_torchs_cross_entropy():
    z = logits(B, 3)
    label = [0.0, 2.0, 1.0, 2.0, 0.0, 1.0]
    torch.testing.assert_close(
        one(MULTICLASS, F.log_softmax(z, 1), label), F.cross_entropy(z, torch.tensor(label).long())
    )


def test_regression_by_hand_in_units_of_the_labels_variance():
    # labels 1 and 5 with mean 3 and std 2 are -1 and 1; predicted 0 and 0.5: (1 + 0.25) / 2
    loss = one(REGRESSION, torch.tensor([0.0, 0.5] * 3), [1.0, 5.0] * 3, scale=(3.0, 2.0))
    assert loss.item() == pytest.approx(0.625)


def test_weights_count_in_the_sum_and_not_in_the_divisor():
    # -log 0.5 = log 2 per row; weights 1, 3, 0 on the three observed rows
    loss = one(BINARY, binary(torch.zeros(B)), LABEL, OBSERVED, [1.0, 3.0, 9.0, 0.0, NAN, 9.0])
    assert loss.item() == pytest.approx(4 * math.log(2) / 3)


@pytest.mark.parametrize(("task", "shape"), [(BINARY, (B,)), (REGRESSION, (B,)), (MULTICLASS, (B, 3))])
def test_what_stands_in_a_masked_label_never_counts(task, shape):
    outcome = {"binary": binary, "regression": lambda z: z, "multiclass": lambda z: F.log_softmax(z, 1)}[task.kind]
    found = []
    for junk in (0.0, 1e30, NAN, -7.0):
        z = logits(*shape)
        label = [value if seen else junk for value, seen in zip(LABEL, OBSERVED, strict=True)]
        loss = one(task, outcome(z), label, OBSERVED)
        loss.backward()
        assert (z.grad[~torch.tensor(OBSERVED)] == 0).all()
        assert (z.grad[torch.tensor(OBSERVED)] != 0).all()
        found.append((loss.item(), z.grad.tolist()))
    assert all(each == found[0] for each in found)
    kept = logits(*shape)
    three = [i for i, seen in enumerate(OBSERVED) if seen]
    expected = masked_mean(
        torch.stack([one(task, outcome(kept[[i] * B]), [LABEL[i]] * B) for i in three]), torch.ones(3).bool(), None
    )
    assert found[0][0] == pytest.approx(expected.item())


@pytest.mark.parametrize(("task", "shape"), [(BINARY, (B,)), (REGRESSION, (B,)), (MULTICLASS, (B, 3))])
def test_no_row_observed_is_zero_with_a_gradient_of_zeros(task, shape):
    z = logits(*shape)
    outcome = {"binary": binary, "regression": lambda z: z, "multiclass": lambda z: F.log_softmax(z, 1)}[task.kind]
    loss = one(task, outcome(z), [NAN] * B, [False] * B, [NAN] * B)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(z.grad, torch.zeros(shape))


def test_shuffled_rows_change_nothing():
    z, order = logits(B), torch.tensor([3, 1, 5, 0, 2, 4])
    label, observed = torch.tensor(LABEL), torch.tensor(OBSERVED)
    straight = one(BINARY, binary(z), LABEL, OBSERVED)
    shuffled = one(BINARY, binary(z[order]), label[order].tolist(), observed[order].tolist())
    torch.testing.assert_close(straight, shuffled)
