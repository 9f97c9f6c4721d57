"""What each feature contributes: by permutation, and by integrated gradients.

In: a model and a split. Out: :class:`recmtl.findings.Importance`, a row per target and feature and method.

Permutation (Breiman 2001; Fisher, Rudin and Dominici 2019): a feature's values are shuffled over a sample of the rows
and the metric is taken again; what it loses is what the model owes to that feature. Everything that a feature puts into
the model moves together: an embedding, a bag's pooled one, a number with its indicator of being missing. It is done at
x_BD, the input of the tower, of which every feature has columns of its own that depend on that feature alone: the same
as shuffling the encoded feature, without looking anything up again. Two features that say the same hide each other.

Integrated gradients (Sundararajan, Taly and Yan 2017, eq. 3, by captum): a prediction's difference from that of a
baseline, divided over the columns of x_BD along the straight line between the two, and added up per feature. The
baseline is the mean row of the sample: zeros would be an id that nobody has ever met in every table at once, a row that
does not occur and that the model was never asked about.

Dimensions: N rows of the sample, D width of x_BD, F features.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from recmtl.evaluation.evaluate import Target, targets
from recmtl.evaluation.influence import spread
from recmtl.findings import Figure, Importance
from recmtl.loading import Loader
from recmtl.metrics import METRICS, Examples
from recmtl.model import Model
from recmtl.progress import Bar, Progress, Silent
from recmtl.settings import Settings
from recmtl.tasks import TaskKind, Tasks

__all__ = ["ImportanceConfig", "importance"]

Floats = NDArray[np.float64]

_METRIC: Mapping[TaskKind, str] = {"binary": "auc", "ordinal": "rmse", "regression": "rmse", "multiclass": "log_loss"}
_AT_ONCE = 8192
"""Rows scored at a time."""
_BATCHES = 128
"""Batches that the sample is taken from, evenly, where there are more: enough to be spread, few enough to embed."""
_FEWEST = 1000
"""Rows that permutation keeps however many features there are."""
_INCOMPLETE = 0.05
"""Share of the predictions' differences from the baseline that attributions may miss before it is said."""


class ImportanceConfig(Settings):
    """How what features contribute is measured."""

    enabled: bool = True
    """Whether it is."""
    rows: int = Field(default=20_000, ge=2)
    """Rows of the split, evenly taken, that permutation looks at."""
    repeats: int = Field(default=3, ge=1)
    """Shuffles of each feature."""
    max_scored: int = Field(default=1_500_000, ge=1)
    """Rows that permutation may score in all: with many features, fewer rows are looked at."""
    gradient_rows: int = Field(default=1000, ge=0)
    """Rows of these, evenly taken, for integrated gradients; 0: none."""
    gradient_steps: int = Field(default=32, ge=1)
    """Points between baseline and row at which gradients are taken."""
    seed: int = Field(default=0, ge=0)
    """Of the shuffles."""


@dataclass(frozen=True)
class _Sample:
    """Rows of a split as the tower reads them."""

    rows: Tensor
    """(N, D)"""
    labels: Mapping[str, NDArray[np.float32]]
    observed: Mapping[str, NDArray[np.bool_]]
    user: NDArray[np.intp]
    """(N,): from 0, equal for rows of one user."""

    def __len__(self) -> int:
        return len(self.user)


def importance(
    model: Model,
    loader: Loader,
    tasks: Tasks,
    *,
    config: ImportanceConfig | None = None,
    confidence: float = 0.95,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> tuple[tuple[Importance, ...], tuple[str, ...]]:
    """What every feature contributes to every target, on a sample of a split.

    Args:
        model: on ``device``; scored in evaluation mode and left in the mode in which it was.
        loader: the split.
        tasks: the model's.
        config: how many rows, shuffles and steps.
        confidence: of the intervals. Of a permutation it spans users and shuffles, of a share of attribution users.
        device: where the model is.
        progress: shows the rows scored.

    Returns:
        The rows, a target's features in schema order; and notes: targets left out, attributions that do not add up.
    """
    config = config or ImportanceConfig()
    if not config.enabled or not loader.rows:
        return (), ()
    features = list(model.features.columns)
    rows = min(config.rows, max(_FEWEST, config.max_scored // (config.repeats * len(features))))
    was_training = model.training
    model.eval()
    kind = torch.device(device).type
    try:
        with torch.autocast(kind, enabled=False):
            sample = _sampled(model, loader, rows, device)
            moved = len(sample) * len(features) * config.repeats
            with (progress or Silent()).bar(f"what features contribute on {loader.split}", total=moved) as bar:
                found, notes = _by_permutation(model, sample, tasks, config, confidence, bar)
            if config.gradient_rows:
                more, incomplete = _by_gradients(model, sample, tasks, config, confidence)
                found, notes = [*found, *more], [*notes, *incomplete]
    finally:
        model.train(was_training)
    return tuple(found), tuple(notes)


def _sampled(model: Model, loader: Loader, rows: int, device: torch.device | str) -> _Sample:
    """About ``rows`` rows, evenly out of up to :data:`_BATCHES` batches."""
    every = max(1, loader.batches // _BATCHES)
    step = max(1, -(-min(loader.rows, -(-loader.batches // every) * loader.batch_size) // rows))
    x: list[Tensor] = []
    columns: dict[str, list[NDArray[np.generic]]] = {}
    seen = 0
    with torch.no_grad():
        for number, batch in enumerate(loader.epoch(0)):
            if number % every:
                continue
            here = slice(-seen % step, None, step)
            seen += batch.size
            x.append(model.embed(batch.to(device))[here])
            for role in ("labels", "observed"):
                for name, values in getattr(batch, role).items():
                    columns.setdefault(f"{role}:{name}", []).append(values[here].numpy())
            columns.setdefault("group", []).append(batch.group[here].numpy())
    whole = {name: np.concatenate(parts) for name, parts in columns.items()}
    return _Sample(
        rows=torch.cat(x),
        labels={name.removeprefix("labels:"): v for name, v in whole.items() if name.startswith("labels:")},
        observed={name.removeprefix("observed:"): v for name, v in whole.items() if name.startswith("observed:")},
        user=np.unique(whole["group"], return_inverse=True)[1],
    )


def _predictions(model: Model, parts: Iterator[Tensor]) -> dict[str, NDArray[np.float32]]:
    columns: dict[str, list[NDArray[np.float32]]] = {}
    with torch.no_grad():
        for x_BD in parts:
            for name, values in model.predictions(model.decide(x_BD)).items():
                columns.setdefault(name, []).append(values.float().cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _rows_of(sample: _Sample, target: Target) -> NDArray[np.intp]:
    """The rows on which a target is judged, as :meth:`Target.rows` has them."""
    observed = sample.observed[target.task.name]
    if target.given is not None:
        observed = observed & sample.observed[target.given] & (sample.labels[target.given] == 1)
    return np.flatnonzero(observed)


def _examples(
    sample: _Sample, target: Target, rows: NDArray[np.intp], predictions: Mapping[str, NDArray[np.float32]]
) -> Examples:
    prediction = np.stack([predictions[name][rows].astype(np.float64) for name in target.columns], axis=1)
    label = sample.labels[target.task.name][rows].astype(np.float64)
    levels = None if target.task.levels is None else np.array(target.task.levels)
    if levels is not None:
        label = levels[label.astype(np.intp)]
    return Examples(
        prediction if target.task.kind == "multiclass" else prediction[:, 0],
        label,
        sample.user[rows].astype(np.int64),
        levels=levels,
    )


# By permutation.


def _by_permutation(
    model: Model, sample: _Sample, tasks: Tasks, config: ImportanceConfig, confidence: float, bar: Bar
) -> tuple[list[Importance], list[str]]:
    whole = _predictions(model, iter(torch.split(sample.rows, _AT_ONCE)))
    before: dict[str, tuple[Target, NDArray[np.intp], float, Floats]] = {}
    notes = []
    for target in targets(tasks):
        rows = _rows_of(sample, target)
        value, pulls = _measured(_examples(sample, target, rows, whole), target)
        if value is None:
            notes.append(
                f"what features contribute to {target.key} is not known: its metric is undefined on the sample"
            )
        else:
            before[target.key] = target, rows, value, pulls
    losses: dict[tuple[str, str], list[tuple[float, Floats]]] = {}
    for feature, columns in model.features.columns.items():
        for repeat in range(config.repeats):
            draw = np.random.default_rng((config.seed, repeat, *feature.encode()))
            order = torch.from_numpy(draw.permutation(len(sample)))
            shuffled = _predictions(model, _moved(sample.rows, columns, order))
            for key, (target, rows, value, pulls) in before.items():
                after, own = _measured(_examples(sample, target, rows, shuffled), target)
                sign = 1 if METRICS[_METRIC[target.task.kind]].higher_is_better else -1
                if after is not None:
                    losses.setdefault((key, feature), []).append((sign * (value - after), sign * (pulls - own)))
            bar.advance(len(sample))
    found = []
    for key, (target, rows, _, _) in before.items():
        for feature in model.features.columns:
            figure = _lost(losses.get((key, feature), []), sample.user[rows], confidence)
            found.append(
                Importance(
                    target=key,
                    feature=feature,
                    method="permutation",
                    figure=figure,
                    metric=_METRIC[target.task.kind],
                )
            )
    return found, notes


def _moved(x_ND: Tensor, columns: slice, order: Tensor) -> Iterator[Tensor]:
    """The rows in parts, with some columns taken from other rows."""
    order = order.to(x_ND.device)
    for start in range(0, len(x_ND), _AT_ONCE):
        part = x_ND[start : start + _AT_ONCE].clone()
        part[:, columns] = x_ND[order[start : start + _AT_ONCE], columns]
        yield part


def _measured(examples: Examples, target: Target) -> tuple[float | None, Floats]:
    """The target's metric and each row's influence on it (zeros where there is no telling)."""
    metric = METRICS[_METRIC[target.task.kind]]
    value = metric.compute(examples)
    pulls = None if value is None else metric.influences(examples)
    return value, np.zeros(len(examples)) if pulls is None else np.asarray(pulls, np.float64)


def _lost(losses: Sequence[tuple[float, Floats]], user: NDArray[np.intp], confidence: float) -> Figure:
    """The mean loss over the shuffles. Its error: over users, of that mean; and over shuffles, that of their mean."""
    if not losses:
        return Figure()
    values = np.array([value for value, _ in losses])
    pulls = np.mean([pull for _, pull in losses], axis=0)
    of_user = np.bincount(np.unique(user, return_inverse=True)[1], pulls).astype(np.float64)
    shuffles = float(values.var(ddof=1) / len(values)) if len(values) > 1 else 0.0
    return _figure(float(values.mean()), of_user, shuffles, confidence)


def _figure(value: float, of_user: Floats, more: float, confidence: float) -> Figure:
    """A value with the interval of its users' pulls and another source of variance."""
    from scipy.special import stdtrit

    error = spread(of_user)
    if error.variance is None:
        return Figure(value=value)
    half = float(stdtrit(error.freedom, (1 + confidence) / 2)) * (error.variance + more) ** 0.5
    return Figure(value=value, low=value - half, high=value + half)


# By integrated gradients.


def _by_gradients(
    model: Model, sample: _Sample, tasks: Tasks, config: ImportanceConfig, confidence: float
) -> tuple[list[Importance], list[str]]:
    from captum.attr import IntegratedGradients  # takes two seconds to import

    step = max(1, -(-len(sample) // config.gradient_rows))
    x_ND, user = sample.rows[::step], sample.user[::step]
    baseline_1D = sample.rows.mean(dim=0, keepdim=True)
    found, notes = [], []
    for target in targets(tasks):

        def predicted(x_BD: Tensor, target: Target = target) -> Tensor:
            predictions = model.predictions(model.decide(x_BD))
            return torch.stack([predictions[name] for name in target.columns], dim=1)

        with torch.no_grad():
            ends_NC = torch.cat([predicted(part) for part in torch.split(x_ND, _AT_ONCE)])
            ends, chosen = ends_NC.max(dim=1)  # of several classes the likeliest
            moved = (ends - predicted(baseline_1D)[0, chosen]).abs().mean()
        attributed, missed = IntegratedGradients(predicted).attribute(
            x_ND,
            baselines=baseline_1D,
            target=chosen,
            n_steps=config.gradient_steps,
            internal_batch_size=max(_AT_ONCE, 2 * config.gradient_steps),
            return_convergence_delta=True,
        )
        gap = float(missed.abs().mean() / moved) if float(moved) else 0.0
        if gap > _INCOMPLETE:
            notes.append(
                f"the integrated gradients of {target.key} miss {gap:.0%} of what they should add up to; raise "
                "evaluation.importance.gradient_steps"
            )
        found += _shares(model, target, attributed.double().cpu().numpy(), user, confidence)
    return found, notes


def _shares(
    model: Model, target: Target, attributed_ND: Floats, user: NDArray[np.intp], confidence: float
) -> list[Importance]:
    """Each feature's share of the mean absolute attribution; a feature's columns are added up first."""
    sizes = {name: np.abs(attributed_ND[:, columns].sum(axis=1)) for name, columns in model.features.columns.items()}
    whole = np.sum(list(sizes.values()), axis=0)
    total = float(whole.sum())
    place = np.unique(user, return_inverse=True)[1]
    found = []
    for name, size in sizes.items():
        figure = Figure()
        if total > 0:
            share = float(size.sum() / total)
            of_user = np.bincount(place, (size - share * whole) / total).astype(np.float64)
            figure = _figure(share, of_user, 0.0, confidence)
        found.append(
            Importance(
                target=target.key,
                feature=name,
                method="integrated_gradients",
                figure=figure,
                metric="attribution",
            )
        )
    return found
