"""The lines of the report's charts: calibration with intervals, ROC, precision and recall, lift.

In: the rows as each system scored them. Out: :class:`~recmtl.findings.Curve`, of few points each.

A calibration curve has bins of equal mass, ties together, as the calibration error has (:mod:`recmtl.metrics.ece`);
of each the mean prediction, and the mean label with its interval, which is that of a ratio of sums over users
(:mod:`recmtl.evaluation.influence`, on the log-odds for a binary task). Where all labels of a bin are equal that says
nothing, and the interval is the exact binomial one of as many draws as the bin has users (Clopper and Pearson 1934).

The other curves have a vertex at every distinct prediction. They are thinned by leaving out, again and again, the
vertex that spans the smallest triangle with its neighbours (Visvalingam and Whyatt 1993), which keeps corners and
area. Above ``most_rows`` rows, vertices are at some ten thousand quantiles of the predictions, finer at both ends:
counts are exact at each, and a line is drawn between them.
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recmtl.evaluation.evaluate import Target, examples, predictions, targets
from recmtl.evaluation.external import WITHOUT_USERS
from recmtl.evaluation.influence import Spread, figure_of
from recmtl.evaluation.intervals import clusters_of
from recmtl.evaluation.score import Scored
from recmtl.evaluation.spill import pieces, read
from recmtl.findings import Curve
from recmtl.metrics import Examples
from recmtl.metrics.base import FloatArray, run_ends
from recmtl.tasks import Tasks

__all__ = ["BINS", "POINTS", "curves", "thinned"]

BINS = 10
"""Of a calibration curve."""
POINTS = 200
"""Of any other curve, at most."""
MOST_ROWS = 5_000_000
"""Rows that are sorted in memory."""

_CANDIDATES = 4096
"""Vertices that are chosen evenly along a curve before it is thinned: their area is off by a ten thousandth."""
_SAMPLE = 1 << 20
"""Predictions of which the quantiles are taken."""
_QUANTILES = 8192


def curves(
    systems: Mapping[str, Scored],
    tasks: Tasks,
    *,
    bins: int = BINS,
    points: int = POINTS,
    confidence: float = 0.95,
    most_rows: int = MOST_ROWS,
) -> tuple[Curve, ...]:
    """Every curve of every target and system: calibration but for multiclass tasks, and the others of binary ones.

    Args:
        systems: name to the same N rows as it predicts them; the first one's labels count. Others may lack tasks.
        tasks: what is judged.
        bins: of a calibration curve, some of which may be empty and are then left out.
        points: of the other curves, at most.
        confidence: of the intervals of the calibration curves.
        most_rows: rows that are sorted in memory.
    """
    model = next(iter(systems.values()))
    found: list[Curve] = []
    users = _Users(model, most_rows)
    for target in targets(tasks):
        if target.task.kind == "multiclass":
            continue
        for system, scored in systems.items():
            if not set(target.columns) <= scored.predictions.keys():
                continue
            rows = _Rows(model, scored, target, users, most_rows)
            steps = rows.steps()
            if not steps.rows.size:
                continue
            found.append(_calibration(rows, steps, target, system, bins, confidence))
            if target.task.kind == "binary":
                found += _lines(steps, target, system, points)
    return tuple(found)


class _Users:
    """The rows' users, numbered; four bytes a row."""

    def __init__(self, model: Scored, most_rows: int) -> None:
        self._cluster: NDArray[np.integer] | None = None
        self.count = min(len(model), WITHOUT_USERS)
        if model.group is not None and len(model) <= most_rows:
            self._cluster, self.count = clusters_of(model.group, len(model))
        elif model.group is not None:
            known = _distinct(model.group)
            self._cluster, self.count = np.empty(len(model), np.int32), known.size
            for start, stop in pieces(len(model)):
                there, place = np.unique(read(model.group, start, stop), return_inverse=True)
                self._cluster[start:stop] = np.searchsorted(known, there)[place]

    def of(self, start: int, stop: int) -> NDArray[np.integer]:
        """(stop − start,) from 0; without users, rows, in groups where they are very many."""
        return np.arange(start, stop) % WITHOUT_USERS if self._cluster is None else self._cluster[start:stop]


def _distinct(group: NDArray[np.int64]) -> NDArray[np.int64]:
    known, fresh = np.empty(0, np.int64), [np.empty(0, np.int64)]
    for start, stop in pieces(len(group)):
        fresh.append(np.unique(read(group, start, stop)))
        if sum(map(len, fresh)) > known.size:
            known, fresh = np.unique(np.concatenate([known, *fresh])), []
    return np.unique(np.concatenate([known, *fresh]))


@dataclass(frozen=True)
class _Steps:
    """Rows by rising prediction, counted between S values of it."""

    low: FloatArray
    """(S,) the lowest prediction that belongs to each step."""
    rows: FloatArray
    """(S,)."""
    predicted: FloatArray
    """(S,) sums."""
    observed: FloatArray
    """(S,) sums."""


class _Rows:
    """What one system says of a target's rows."""

    def __init__(self, model: Scored, scored: Scored, target: Target, users: _Users, most_rows: int) -> None:
        self._model, self._scored, self._target = model, scored, target
        self.users = users
        self._whole: tuple[Examples, NDArray[np.integer]] | None = None
        if len(model) <= most_rows:
            self._whole = next(self._parts(len(model)), None)

    def parts(self) -> Iterator[tuple[Examples, NDArray[np.integer]]]:
        """The rows and their users, piece by piece."""
        return iter([self._whole]) if self._whole is not None else self._parts(1 << 20)

    def _parts(self, size: int) -> Iterator[tuple[Examples, NDArray[np.integer]]]:
        for start, stop in pieces(len(self._model), max(size, 1)):
            shown = predictions(self._scored, self._target, start, stop)
            rows = examples(self._model, self._target, shown, start=start, stop=stop)
            yield rows, self.users.of(start, stop)[self._target.rows(self._model, start, stop)]

    def steps(self) -> _Steps:
        """A step for every distinct prediction; for each of some thousand quantiles, where the rows are too many."""
        if self._whole is not None or not len(self._model):
            rows = self._whole[0] if self._whole is not None else None
            if rows is None or not len(rows):
                return _Steps(*(np.empty(0) for _ in range(4)))
            order = np.argsort(rows.prediction, kind="stable")
            value, label = rows.prediction[order], rows.label[order]
            start = np.append(0, run_ends(value)[:-1] + 1)
            size = np.diff(start, append=value.size).astype(np.float64)
            return _Steps(value[start], size, np.add.reduceat(value, start), np.add.reduceat(label, start))
        edges = self._edges()
        sums = np.zeros((3, edges.size))
        for rows, _ in self.parts():
            at = np.maximum(np.searchsorted(edges, rows.prediction, side="right") - 1, 0)
            sums[0] += np.bincount(at, minlength=edges.size)
            sums[1] += np.bincount(at, rows.prediction, edges.size)
            sums[2] += np.bincount(at, rows.label, edges.size)
        there = sums[0] > 0
        return _Steps(edges[there], *(row[there] for row in sums))

    def _edges(self) -> FloatArray:
        stride = -(-len(self._model) // _SAMPLE)
        sample = np.sort(np.concatenate([rows.prediction[::stride] for rows, _ in self.parts()]))
        if not sample.size:
            return np.zeros(1)
        ends = np.unique(np.geomspace(1, max(sample.size // 2, 1), _QUANTILES // 4).astype(np.intp)) - 1
        ranks = np.linspace(0, sample.size - 1, _QUANTILES).astype(np.intp)
        return np.unique(sample[np.concatenate([ranks, ends, sample.size - 1 - ends])])


def _calibration(rows: _Rows, steps: _Steps, target: Target, system: str, bins: int, confidence: float) -> Curve:
    above = np.cumsum(steps.rows)
    middle = above - steps.rows / 2
    bin_of_step = np.minimum((middle * (bins / above[-1])).astype(np.intp), bins - 1)
    first = np.append(True, np.diff(bin_of_step) > 0)  # bins that no step is in are left out
    bin_of_step = np.cumsum(first) - 1
    count = np.bincount(bin_of_step, steps.rows)
    predicted, observed = (np.bincount(bin_of_step, sums) / count for sums in (steps.predicted, steps.observed))
    pulls = np.zeros(rows.users.count * count.size)
    there = np.zeros(pulls.size, np.bool_)
    low_label, high_label = np.inf, -np.inf
    for part, user in rows.parts():
        if not len(part):
            continue
        at = np.maximum(np.searchsorted(steps.low[first], part.prediction, side="right") - 1, 0)
        pair, place = np.unique(user.astype(np.intp) * count.size + at, return_inverse=True)
        pulls[pair] += np.bincount(place, (part.label - observed[at]) / count[at])
        there[pair] = True
        low_label, high_label = min(low_label, part.label.min()), max(high_label, part.label.max())
    of_bin, present = pulls.reshape(-1, count.size), there.reshape(-1, count.size)
    is_rate = target.task.kind == "binary"
    ends = []
    for number, value in enumerate(observed.tolist()):
        squared = of_bin[:, number] ** 2
        users = int(np.count_nonzero(present[:, number]))
        spread = Spread(users, float(squared.sum()), float((squared**2).sum()))
        figure = figure_of(value, spread, "logit" if is_rate else "linear", confidence)
        if figure.low is not None and figure.high is not None:
            ends.append((figure.low, figure.high))
        elif is_rate and value in (0.0, 1.0):
            reach = 1 - ((1 - confidence) / 2) ** (1 / users)
            ends.append((0.0, reach) if value == 0 else (1 - reach, 1.0))
        else:  # one user alone: whatever can be
            ends.append((0.0, 1.0) if is_rate else (float(low_label), float(high_label)))
    return Curve(
        kind="calibration",
        target=target.key,
        system=system,
        x=_short(predicted),
        y=_short(observed),
        low=_short(np.array([low for low, _ in ends])),
        high=_short(np.array([high for _, high in ends])),
        rows=tuple(round(size) for size in count.tolist()),
    )


def _lines(steps: _Steps, target: Target, system: str, points: int) -> Iterator[Curve]:
    """ROC where both classes are there; precision and recall, and lift, where there is a positive."""
    hits = np.append(0.0, np.cumsum(steps.observed[::-1]))
    taken = np.append(0.0, np.cumsum(steps.rows[::-1]))
    positives, rows = hits[-1], taken[-1]

    def line(kind: str, x: FloatArray, y: FloatArray) -> Curve:
        x, y = thinned(x, y, points)
        found: dict[str, object] = {"kind": kind, "target": target.key, "system": system}
        return Curve.model_validate(found | {"x": _short(x), "y": _short(y)})

    if 0 < positives < rows:
        yield line("roc", (taken - hits) / (rows - positives), hits / positives)
    if positives > 0:
        precision = hits[1:] / taken[1:]
        precision = np.append(precision[0], precision)  # where nothing is taken, that of the first rows
        yield line("pr", hits / positives, precision)
        yield line("lift", taken / rows, precision / (positives / rows))


def _short(values: FloatArray) -> tuple[float, ...]:
    """Six digits, which is more than a chart shows: the report holds thousands of them."""
    return tuple(float(f"{value:.6g}") for value in values.tolist())


def thinned(x: FloatArray, y: FloatArray, points: int = POINTS) -> tuple[FloatArray, FloatArray]:
    """At most so many vertices of a line, its ends among them, by the smallest loss of area.

    Args:
        x: (N,) not falling.
        y: (N,).
        points: at least 2.
    """
    across, up = (np.ptp(values) or 1.0 for values in (x, y))
    if x.size > _CANDIDATES:
        along = np.append(0.0, np.cumsum(np.abs(np.diff(x)) / across + np.abs(np.diff(y)) / up))
        kept = np.searchsorted(along, np.linspace(0, along[-1], _CANDIDATES)).clip(1, x.size - 1)
        kept = np.union1d(np.append(kept - 1, x.size - 1), kept)  # both ends of a jump
        x, y = x[kept], y[kept]
    if x.size <= points:
        return x, y
    a: list[float] = (x / across).tolist()
    b: list[float] = (y / up).tolist()
    before, after = list(range(-1, x.size - 1)), list(range(1, x.size + 1))

    def area(i: int) -> float:
        p, n = before[i], after[i]
        return 0.5 * abs((a[n] - a[p]) * (b[i] - b[p]) - (a[i] - a[p]) * (b[n] - b[p]))

    areas = {i: area(i) for i in range(1, x.size - 1)}
    heap = [(size, i) for i, size in areas.items()]
    heapq.heapify(heap)
    left = x.size
    while left > points:
        size, i = heapq.heappop(heap)
        if areas.get(i) != size:
            continue  # its neighbours have changed since
        del areas[i]
        p, n = before[i], after[i]
        after[p], before[n] = n, p
        left -= 1
        for other in (p, n):
            if other in areas:
                areas[other] = max(area(other), size)  # so that a corner does not go before the bends that make it
                heapq.heappush(heap, (areas[other], other))
    kept = np.array([0, *sorted(areas), x.size - 1])
    return x[kept], y[kept]
