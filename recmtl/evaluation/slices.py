"""Every target on every slice of the rows: the same metrics as for all rows, with intervals clustered by user.

In: the rows as each system scored them, and the cuts (:class:`recmtl.etl.slicing.SliceColumn`). Out:
:class:`~recmtl.findings.SliceRow`. The intervals and paired differences come from influence functions
(:mod:`recmtl.evaluation.influence`): a slice is often small, and a bootstrap for each would take hours. p-values are
those of each slice alone: of a hundred slices, five differ at the level of 0.05 by chance.

Rows of a target are put in order once per cut. Where the split has more than ``memory_rows``, the slices of a cut are
gathered from it piece by piece, as many together as fit, and a slice of more than ``slices.sample_rows`` is judged on
about so many rows, those of a sample of its users, which the notes say; rows, users and positives are counted on all of
it. (A million rows tell an AUC to the third digit; cutting fifty million rows in twelve ways would take an hour.)
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recmtl.etl.slicing import SliceColumn, SlicesConfig
from recmtl.evaluation.evaluate import Target, examples, predictions, targets
from recmtl.evaluation.external import cluster_numbers
from recmtl.evaluation.influence import Part, by_part
from recmtl.evaluation.intervals import clusters_of
from recmtl.evaluation.score import Scored
from recmtl.evaluation.spill import Spill, pieces, read
from recmtl.findings import SliceRow
from recmtl.metrics import Examples, metrics_for
from recmtl.tasks import Tasks

__all__ = ["MEMORY_ROWS", "Slices", "slice_rows"]

MEMORY_ROWS = 5_000_000
"""Rows of a target that are in memory together: about 1.5 GB with two systems."""


@dataclass(frozen=True)
class Slices:
    """What was found."""

    rows: tuple[SliceRow, ...] = ()
    """In order of target, cut and slice; a slice without any row of the split has no line."""
    notes: tuple[str, ...] = ()
    """Slices that were judged on a sample of their users."""


def slice_rows(
    systems: Mapping[str, Scored],
    tasks: Tasks,
    columns: Sequence[SliceColumn],
    config: SlicesConfig,
    *,
    confidence: float = 0.95,
    memory_rows: int = MEMORY_ROWS,
    folder: Path | None = None,
) -> Slices:
    """Judge every system on every slice.

    Args:
        systems: name to the same N rows as it predicts them; the first one's labels count, and it is compared with each
            other. Others may lack tasks.
        tasks: what is judged.
        columns: the cuts, aligned with the rows.
        config: what makes a slice small, or too large to be judged whole.
        confidence: of the intervals.
        memory_rows: rows of a target that are in memory together.
        folder: where the clusters' numbers are kept when the rows are more than that; by default the system's folder
            for temporary files.
    """
    model = next(iter(systems.values()))
    assert all(len(column.codes) == len(model) for column in columns), "a code for every row"
    rows: list[SliceRow] = []
    notes: list[str] = []
    if len(model) <= memory_rows:
        _judge_all(systems, tasks, columns, config, confidence, clusters_of(model.group, len(model)), rows)
    else:
        with tempfile.TemporaryDirectory(prefix="recmtl-slices-", dir=folder) as place, Spill(Path(place)) as spill:
            numbered = cluster_numbers(model.group, len(model), spill)
            for target in targets(tasks):
                for column in columns:
                    cut = _Cut(systems, target, column, numbered, config.sample_rows, memory_rows)
                    parts = cut.parts(confidence)
                    rows += _lines(column, target, parts, cut.there, config, model.group is not None)
                    notes += cut.notes
    return Slices(tuple(rows), tuple(notes))


def _judge_all(
    systems: Mapping[str, Scored],
    tasks: Tasks,
    columns: Sequence[SliceColumn],
    config: SlicesConfig,
    confidence: float,
    numbered: tuple[NDArray[np.intp], int],
    found: list[SliceRow],
) -> None:
    """All in memory."""
    model = next(iter(systems.values()))
    there = [np.bincount(column.codes + 1, minlength=len(column.labels) + 1)[1:] > 0 for column in columns]
    for target in targets(tasks):
        counted = target.rows(model)
        cluster = numbered[0][counted]
        judged = {
            system: examples(model, target, predictions(scored, target, 0, len(model)))
            for system, scored in systems.items()
            if set(target.columns) <= scored.predictions.keys()
        }
        if not judged:
            continue
        names = [metric.name for metric in metrics_for(target.task.kind)]
        for column, known in zip(columns, there, strict=True):
            parts = by_part(
                judged,
                names,
                cluster,
                np.asarray(column.codes[counted]),
                len(column.labels),
                confidence=confidence,
                binary=target.task.kind == "binary",
            )
            found += _lines(column, target, parts, known, config, model.group is not None)


def _lines(
    column: SliceColumn,
    target: Target,
    parts: Sequence[Part],
    there: NDArray[np.bool_],
    config: SlicesConfig,
    by_user: bool,
) -> Iterator[SliceRow]:
    for label, part, known in zip(column.labels, parts, there.tolist(), strict=True):
        if known and part.systems:
            yield SliceRow(
                slice=column.name,
                value=label,
                target=target.key,
                rows=part.rows,
                users=part.clusters if by_user else None,
                positives=part.positives,
                small=_is_small(part, config, by_user),
                systems=part.systems,
                differences=part.differences,
            )


def _is_small(part: Part, config: SlicesConfig, by_user: bool) -> bool:
    if part.rows < config.small_rows or (by_user and part.clusters < config.small_users):
        return True
    if part.positives is None:
        return False
    return min(part.positives, part.rows - part.positives) < config.small_positives


class _Cut:
    """A target's rows under one cut, too many for memory."""

    def __init__(
        self,
        systems: Mapping[str, Scored],
        target: Target,
        column: SliceColumn,
        numbered: tuple[NDArray[np.int32], int],
        sample_rows: int,
        memory_rows: int,
    ) -> None:
        self._systems = {
            name: scored for name, scored in systems.items() if set(target.columns) <= scored.predictions.keys()
        }
        self._model = next(iter(systems.values()))
        self._target, self._column = target, column
        self._sample_rows, self._memory_rows = min(sample_rows, memory_rows), memory_rows
        self._cluster, clusters = numbered
        self._binary = target.task.kind == "binary"
        slices = len(column.labels)
        self._rows, self._positives = np.zeros(slices, np.int64), np.zeros(slices, np.int64)
        self.there: NDArray[np.bool_] = np.zeros(slices, np.bool_)
        """(slices,) whether the split has any row there."""
        users = np.zeros((slices, clusters), np.bool_)
        for start, stop in pieces(len(self._model)):
            codes, counted = read(column.codes, start, stop), target.rows(self._model, start, stop)
            self.there |= np.bincount(codes + 1, minlength=slices + 1)[1:] > 0
            counted = counted & (codes >= 0)
            code, cluster = codes[counted], read(self._cluster, start, stop)[counted]
            self._rows += np.bincount(code, minlength=slices)
            if self._binary:
                label = read(self._model.labels[target.task.name], start, stop)[counted]
                self._positives += np.bincount(code[label == 1], minlength=slices)
            users[code, cluster] = True
        self._users = users.sum(axis=1).tolist()
        share = np.minimum(self._sample_rows / np.maximum(self._rows, 1), 1.0)
        self._share = np.where(share < 1, share, np.inf)
        """(slices,) of the users; infinite: all."""
        self.notes: list[str] = []

    def parts(self, confidence: float) -> list[Part]:
        """(slices,) the figures."""
        found: list[Part] = []
        slices = len(self._column.labels)
        sizes = np.minimum(self._rows, self._sample_rows)
        first = 0
        while first < slices:
            # As many slices together as fit, one at least.
            end = first + max(int(np.searchsorted(np.cumsum(sizes[first:]), self._memory_rows, side="right")), 1)
            judged, cluster, codes = self._gathered(first, end)
            found += by_part(
                judged,
                [metric.name for metric in metrics_for(self._target.task.kind)],
                cluster,
                codes,
                end - first,
                confidence=confidence,
                binary=self._binary,
            )
            first = end
        for number, part in enumerate(found):
            if np.isfinite(self._share[number]):
                self.notes.append(
                    f"Slice {self._column.name} = {self._column.labels[number]}, {self._target.key}: judged on "
                    f"{part.rows:,} of its {self._rows[number]:,} rows, those of a sample of its users."
                )
        return [
            replace(
                part,
                rows=int(self._rows[number]),
                clusters=self._users[number],
                positives=int(self._positives[number]) if self._binary else None,
            )
            for number, part in enumerate(found)
        ]

    def _gathered(self, first: int, end: int) -> tuple[dict[str, Examples], NDArray[np.int32], NDArray[np.int32]]:
        """The rows of slices from ``first`` up to ``end``, each system's, with their clusters and codes from 0."""
        model, target = self._model, self._target
        parts: dict[str, list[Examples]] = {name: [] for name in self._systems}
        clusters, codes = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
        for start, stop in pieces(len(model)):
            code, cluster = read(self._column.codes, start, stop), read(self._cluster, start, stop)
            wanted = (code >= first) & (code < end)
            wanted[wanted] = _chance(cluster[wanted]) < self._share[code[wanted]]
            counted = target.rows(model, start, stop)
            kept = wanted[counted]
            clusters.append(cluster[counted][kept])
            codes.append(code[counted][kept] - np.int32(first))
            for name, scored in self._systems.items():
                piece = examples(model, target, predictions(scored, target, start, stop), start=start, stop=stop)
                group = None if piece.group is None else piece.group[kept]
                parts[name].append(Examples(piece.prediction[kept], piece.label[kept], group, levels=piece.levels))
        return {name: _joined(of) for name, of in parts.items()}, np.concatenate(clusters), np.concatenate(codes)


def _joined(parts: Sequence[Examples]) -> Examples:
    groups = [part.group for part in parts if part.group is not None]
    return Examples(
        np.concatenate([part.prediction for part in parts]),
        np.concatenate([part.label for part in parts]),
        np.concatenate(groups) if groups else None,
        levels=parts[0].levels,
    )


def _chance(cluster: NDArray[np.int32]) -> NDArray[np.float64]:
    """A number in [0, 1) for each cluster, as if drawn at random (SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = (cluster.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray((z ^ (z >> np.uint64(31))) / 2.0**64, np.float64)
