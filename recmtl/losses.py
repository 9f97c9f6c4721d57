"""Losses per task over the rows where its label is observed.

In: what the heads give (log probabilities, standardised predictions) and a batch's labels, masks and row weights. Out:
one scalar per task, Σ w·l / rows observed: the weights are importances and do not enter the divisor. Where no row is
observed the loss is 0, finite, and has a gradient of zeros. What stands in a masked label is never read.

Where several ranks share a batch, the divisor counts the rows of all of them: a rank's loss is its part of the mean,
and the sum of the parts, as of their gradients, is that of the whole batch.

binary, ordinal, multiclass: the label's negative log likelihood in nats (for a task with a parent, of the product);
regression: the squared error in units of the training labels' variance, so that predicting their mean costs about 1.

Dimensions: B batch, K levels or classes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from recmtl.batch import Batch
from recmtl.tasks import Tasks

__all__ = ["masked_mean", "negative_log_likelihood", "squared_error", "task_losses"]


def task_losses(
    outcomes: Mapping[str, Tensor],
    batch: Batch,
    tasks: Tasks,
    scales: Mapping[str, tuple[Tensor, Tensor]],
    rows: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Task name to its loss on this batch.

    Args:
        outcomes: as ``Heads.outcomes`` gives them.
        batch: with labels, masks and weights for every task.
        tasks: what is predicted.
        scales: the mean and standard deviation of every regression task, in label units.
        rows: task to the number of rows observed, a scalar, where it is not this batch's own: that of all ranks.
    """
    losses: dict[str, Tensor] = {}
    for name, task in tasks.items():
        observed_B = batch.observed[name]
        label_B = torch.where(observed_B, batch.labels[name], 0.0)
        if task.kind == "regression":
            row_loss_B = squared_error(outcomes[name], label_B, *scales[name])
        else:
            row_loss_B = negative_log_likelihood(outcomes[name], label_B)
        count = None if rows is None else rows[name]
        losses[name] = masked_mean(row_loss_B, observed_B, batch.weights.get(name), count)
    return losses


def negative_log_likelihood(log_probabilities_BK: Tensor, label_B: Tensor) -> Tensor:
    """(B,) nats, for (B,) labels that are the index of the outcome, as floats."""
    return -log_probabilities_BK.gather(1, label_B.long().unsqueeze(1)).squeeze(1)


def squared_error(z_B: Tensor, label_B: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B,) squared error of the standardised label."""
    return (z_B - (label_B - mean) / std).square()


def masked_mean(row_loss_B: Tensor, observed_B: Tensor, weight_B: Tensor | None, rows: Tensor | None = None) -> Tensor:
    """Σ weight · loss over the observed rows, divided by their number, or by ``rows``; 0 when there is none."""
    weighted_B = row_loss_B if weight_B is None else row_loss_B * torch.where(observed_B, weight_B, 0.0)
    return torch.where(observed_B, weighted_B, 0.0).sum() / (observed_B.sum() if rows is None else rows).clamp(min=1)
