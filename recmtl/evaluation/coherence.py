"""What cannot be, and how often it is: predictions that contradict each other, labels that do.

In: the rows as each system scored them, and the manifest's counts of masked labels. Out:
:class:`~recmtl.findings.Coherence`, one for each rule of each system and for each kind of bad label.

A task with a parent cannot be positive where its parent is not, so p(task) ≤ p(parent) on every row. A model whose
head multiplies (entire-space heads) keeps that by construction; models that were trained apart, or a calibration of
each task by itself, need not. A task with ``observed.when`` is no such case: its label has no meaning where the other
task is negative, and its prediction may be anything there.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from recmtl.evaluation.score import Scored
from recmtl.evaluation.spill import pieces, read
from recmtl.findings import Coherence
from recmtl.manifest import Manifest
from recmtl.tasks import Task, Tasks

__all__ = ["TOLERANCE", "coherence", "event_audits", "label_audits", "prediction_audits"]

TOLERANCE = 1e-6
"""By so much predictions in float32 may pass a bound before it counts, per unit of the bound's range."""


def coherence(systems: Mapping[str, Scored], tasks: Tasks, manifest: Manifest, split: str) -> tuple[Coherence, ...]:
    """All audits: predictions on the scored rows, labels of that split and of train.

    Args:
        systems: name to the split's rows as it predicts them.
        tasks: the tasks.
        manifest: the prepared dataset's.
        split: which split the rows are.
    """
    found = list(prediction_audits(systems, tasks))
    for name in dict.fromkeys((split, "train")):
        found += label_audits(manifest, name)
    found += event_audits(manifest)
    return tuple(found)


def prediction_audits(systems: Mapping[str, Scored], tasks: Tasks) -> Iterator[Coherence]:
    """Every rule for every system that predicts what it is about; on all rows, observed or not."""
    for system, scored in systems.items():
        for task in tasks.values():
            columns = tasks.prediction_columns(task.name) if task.kind == "multiclass" else (task.name,)
            if not set(columns) <= scored.predictions.keys():
                continue
            if task.parent is not None and task.parent in scored.predictions:
                text = f"p({task.name}) > p({task.parent})"
                names = (task.name, task.parent)
                yield _counted(system, text, scored, names, lambda p: p[0] > p[1] + TOLERANCE)
            yield from _ranges(system, scored, task, columns)


def _ranges(system: str, scored: Scored, task: Task, columns: tuple[str, ...]) -> Iterator[Coherence]:
    """Predictions that no label can have, or that are no probabilities."""
    bounds: tuple[float, float] | None = None
    if task.kind == "binary":
        bounds = 0.0, 1.0
    elif task.kind == "ordinal":
        assert task.levels is not None
        bounds = task.levels[0], task.levels[-1]
    elif task.kind == "regression":
        bounds = task.range
    if task.kind == "multiclass":
        text = f"the probabilities of {task.name} do not sum to 1"
        wide = TOLERANCE * 100  # a sum of float32
        yield _counted(system, text, scored, columns, lambda p: np.abs(p.sum(axis=0) - 1) > wide)
    elif bounds is not None:
        low, high = bounds
        slack = TOLERANCE * (high - low)
        text = f"a prediction of {task.name} outside {low:g} to {high:g}"
        yield _counted(system, text, scored, columns, lambda p: (p[0] < low - slack) | (p[0] > high + slack))


def _counted(
    system: str,
    text: str,
    scored: Scored,
    columns: tuple[str, ...],
    is_wrong: Callable[[NDArray[np.float64]], NDArray[np.bool_]],
) -> Coherence:
    wrong = 0
    for start, stop in pieces(len(scored)):
        predicted = np.stack([read(scored.predictions[name], start, stop).astype(np.float64) for name in columns])
        wrong += int(np.count_nonzero(is_wrong(predicted)))
    return _found("prediction", text, system, wrong, len(scored))


def label_audits(manifest: Manifest, split: str) -> Iterator[Coherence]:
    """A split's labels that were masked because they cannot be; of all rows whose label was given and mature.

    Positive under a negative parent (a purchase without a click: an event that was logged and its predecessor not), and
    values that are no label of the task.
    """
    summary = manifest.splits.get(split)
    if summary is None:
        return
    for task in manifest.tasks:
        counted = summary.tasks.get(task.name)
        if counted is None:
            continue
        contradictions, invalid = (counted.masked.get(reason, 0) for reason in ("contradiction", "invalid"))
        if task.parent is not None:
            text = f"{_with_article(task.name)} without {_with_article(task.parent)} ({split})"
            yield _found("label", text, None, contradictions, counted.observed + contradictions)
        if invalid:
            given = counted.observed + sum(
                counted.masked.get(reason, 0) for reason in ("contradiction", "invalid", "not_applicable")
            )
            yield _found("label", f"a label of {task.name} that is none of its values ({split})", None, invalid, given)


def event_audits(manifest: Manifest) -> Iterator[Coherence]:
    """Event logs: the events of the whole log that belong to none before them, by reason; they make no label.

    Those that came after their window had closed are late and no contradiction.
    """
    for event, reasons in manifest.unattributed.items():
        for reason, count in reasons.items():
            if count and not reason.startswith("outside the window"):
                yield _found("label", f"{event} events: {reason}", None, count, manifest.read.get(event, 0))


def _with_article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeio' else 'a'} {name}"


def _found(kind: str, text: str, system: str | None, rows: int, of: int) -> Coherence:
    return Coherence.model_validate(
        {"kind": kind, "text": text, "system": system, "rows": rows, "of": of, "share": rows / of if of else None}
    )
