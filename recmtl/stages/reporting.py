"""One evaluation, from packages to a report: every model scores the same rows, every section is asked of its room.

In: prepared data and the packages that are judged on it, the one that the report is about first. Out: the content of
``metrics.json``, and a :class:`~recmtl.findings.Report`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recmtl import __version__, durable
from recmtl.etl.guards import check_guards
from recmtl.etl.slicing import SliceColumn, SlicesConfig, item_codes, ranking_groups, slice_columns
from recmtl.etl.truth import read_truth
from recmtl.evaluation import Scored, evaluation_record, score
from recmtl.evaluation.calibrating import CalibrationConfig, apply_to, calibration_figures, drawn
from recmtl.evaluation.coherence import coherence
from recmtl.evaluation.config import EvaluationConfig
from recmtl.evaluation.conflicts import conflicts
from recmtl.evaluation.curves import curves
from recmtl.evaluation.drift import data_card, drift, drift_note
from recmtl.evaluation.evaluate import targets
from recmtl.evaluation.figures import Measurements, measure_systems
from recmtl.evaluation.fusing import fused_score
from recmtl.evaluation.gates import gates
from recmtl.evaluation.importance import importance
from recmtl.evaluation.ranking import ranking
from recmtl.evaluation.slices import slice_rows
from recmtl.findings import About, Calibration, Check, Curve, Drift, Epoch, Fusion, Guard, Report, Verdict
from recmtl.loading import Loader
from recmtl.manifest import Manifest, inside
from recmtl.metrics import METRICS
from recmtl.package import Package, common_tasks
from recmtl.progress import Progress, Silent
from recmtl.statistics import Statistics
from recmtl.tracking.gate import GateConfig, judge
from recmtl.tracking.trial import trial

__all__ = ["CHAMPION", "MODEL", "Contender", "Rows", "Story", "report_on"]

MODEL, CHAMPION = "model", "champion"
"""The system that a report is about, and the one to beat."""
CALIBRATED = "calibrated"
"""The model with its package's calibration, in the curves of calibration."""


@dataclass(frozen=True)
class Contender:
    """A model that is judged."""

    system: str
    origin: str
    """Where it is from, without secrets."""
    package: Package
    encoded: Callable[[str], Loader] | None = None
    """Split to its rows as they were encoded for this model; None: it encodes the raw ones."""

    def loader(self, rows: "Rows", split: str) -> Loader:
        """A split's rows as this model reads them, in the split's order."""
        if self.encoded is not None:
            return self.encoded(split)
        tasks = None if self.system == MODEL else common_tasks(self.package, rows.manifest)[0]
        return self.package.loader(rows.folder, rows.manifest, split, tasks=tasks)


@dataclass(frozen=True)
class Rows:
    """What the models are judged on."""

    folder: Path
    manifest: Manifest
    split: str = "test"

    @cached_property
    def statistics(self) -> Statistics:
        """Fitted on these data's train rows."""
        return Statistics.load(self.folder / "statistics")

    def truth(self, split: str) -> Mapping[str, NDArray[np.floating]] | None:
        """Of a synthetic log."""
        return None if self.manifest.truth is None else read_truth(self.folder, self.manifest, split)

    def raw(self, rows: int) -> pl.DataFrame:
        """The first rows of the split as they were before encoding."""
        frames, had = [], 0
        for shard in self.manifest.splits[self.split].raw_shards:
            if had >= rows:
                break
            frames.append(pl.scan_parquet(inside(self.folder, shard.path), glob=False).head(rows - had).collect())
            had += frames[-1].height
        return pl.concat(frames) if frames else pl.DataFrame()


@dataclass(frozen=True)
class Story:
    """What is known of the model beside its predictions."""

    name: str
    config: Mapping[str, Any]
    commit: str | None = None
    history: Sequence[Mapping[str, Any]] = ()
    """Epoch by epoch, as ``metrics.json`` has it."""
    calibration: Sequence[Calibration] = ()
    """How the package's calibration was chosen."""
    fusion: Fusion | None = None
    """How its fused score was."""
    notes: Sequence[str] = ()
    undecided: str | None = None
    """Why the gate is not asked, where it is not."""


def report_on(
    rows: Rows,
    contenders: Sequence[Contender],
    settings: EvaluationConfig,
    story: Story,
    *,
    gate: GateConfig | None = None,
    validation: bool = True,
    work: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Report, dict[str, Any]]:
    """Judge models on the same rows.

    Args:
        rows: the data and the split.
        contenders: the model that the report is about, then those beside it.
        settings: what is measured.
        story: what else the report tells of the model.
        gate: what the model must pass; None: the verdict is open.
        validation: whether ``metrics.json`` has validation's figures too.
        work: a folder for what is too large for memory; by default a temporary one.
        progress: shows it.

    Returns:
        The report, and what belongs into ``metrics.json``.

    Raises:
        UserError: a model cannot read these data or has no task in common with them; the gate names what cannot be.
    """
    progress = progress or Silent()
    with _working(work) as folder:
        return _Evaluation(rows, contenders, settings, story, folder, progress).run(gate, validation=validation)


@contextmanager
def _working(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with TemporaryDirectory(prefix="recmtl-") as temporary:
            yield Path(temporary)
        return
    durable.make_folder(folder)
    with durable.scratch(folder, "scored") as work:
        yield work


class _Evaluation:
    """One call of :func:`report_on`."""

    def __init__(
        self,
        rows: Rows,
        contenders: Sequence[Contender],
        settings: EvaluationConfig,
        story: Story,
        work: Path,
        progress: Progress,
    ) -> None:
        self.rows, self.settings, self.story, self.progress = rows, settings, story, progress
        self.contenders = {one.system: one for one in contenders}
        self.model = contenders[0]
        self.package = self.model.package
        self.tasks = self.package.tasks
        self.folder, self.manifest, self.split = rows.folder, rows.manifest, rows.split
        most = max(self.manifest.splits[one].rows for one in {self.split, "validation"} & self.manifest.splits.keys())
        self.large = most > settings.intervals.memory_rows
        self._work = work
        self.notes = [*story.notes, *self._strangers(), *self._immature()]

    def work(self, name: str) -> Path | None:
        """A folder for what a step keeps on disk; None where the rows fit into memory."""
        if not self.large:
            return None
        folder = self._work / name
        folder.mkdir(exist_ok=True)
        return folder

    def run(self, gate: GateConfig | None, *, validation: bool) -> tuple[Report, dict[str, Any]]:
        """Score, measure, judge."""
        whole = {system: self._score(one, self.split) for system, one in self.contenders.items()}
        fused = {name: score for name, rows in whole.items() if (score := self._fused(name, rows)) is not None}
        scored = {system: self._common(system, rows) for system, rows in whole.items()}
        mine = scored[MODEL]
        truth = self.rows.truth(self.split)
        measured = measure_systems(
            scored, self.tasks, self.rows.statistics, truth, self.settings.intervals, folder=self.work("sorted")
        )
        by_split = {self.split: mine}
        truths = {self.split: truth} if truth is not None else {}
        if validation and self.split != "validation":
            by_split = {"validation": self._score(self.model, "validation"), **by_split}
            known = self.rows.truth("validation")
            truths |= {"validation": known} if known is not None else {}
        record = evaluation_record(
            by_split,
            self.tasks,
            self.rows.statistics,
            truths or None,
            measured={self.split: measured},
            folder=self.work("sorted"),
        )
        columns = self._columns()
        report = self._report(scored, fused, measured, columns)
        if gate is not None and self.story.undecided is None:
            verdict = judge(report, gate, self._trial(gate, mine))
            report = report.model_copy(update={"verdict": verdict})
        return report, record

    def _common(self, system: str, scored: Scored) -> Scored:
        """A system's predictions for the tasks that mean the same in these data; of the others there are no labels."""
        if system == MODEL:
            return scored
        package = self.contenders[system].package
        names, differences = common_tasks(package, self.manifest)
        self.notes += [f"{system}: {sentence}." for sentence in differences]
        kept = {column for name in names for column in package.tasks.prediction_columns(name)}
        return replace(
            scored, predictions={column: values for column, values in scored.predictions.items() if column in kept}
        )

    def _score(self, contender: Contender, split: str) -> Scored:
        name = split if contender.system == MODEL else f"{split} by {contender.system}"
        self.progress.say(f"scoring {name}")
        loader = contender.loader(self.rows, split)
        scored = score(
            contender.package.model,
            loader,
            device=contender.package.device,
            progress=self.progress,
            spill=self.work(f"scored-{contender.system}-{split}"),
        )
        for column, unread in loader.unread.items():
            sentence = (
                f"{name}: {unread.count:,} of {unread.given:,} values of column {column!r} cannot be read as in this "
                f"model's training and count as missing (such as {', '.join(unread.examples)}): {unread.why}"
            )
            self.progress.warn(sentence)
            self.notes.append(f"{sentence}.")
        return scored

    def _columns(self) -> tuple[SliceColumn, ...]:
        if self.settings.slices is None:
            return ()
        return slice_columns(
            self.folder,
            self.manifest,
            self.split,
            self.settings.slices,
            self.rows.statistics,
            work=self.work("slices"),
        )

    def _report(
        self,
        scored: Mapping[str, Scored],
        fused: Mapping[str, NDArray[np.float32]],
        measured: Measurements,
        columns: Sequence[SliceColumn],
    ) -> Report:
        settings, model = self.settings, self.package
        mine = scored[MODEL]
        figures = measured.figures()
        sliced = slice_rows(
            scored,
            self.tasks,
            columns,
            settings.slices or SlicesConfig(),
            confidence=settings.intervals.confidence,
            folder=self.work("sliced"),
        )
        self.notes += sliced.notes
        ranked, coverage = self._ranking(scored, fused)
        gate_rows, experts = gates(
            model.model,
            self.model.loader(self.rows, self.split),
            columns,
            config=settings.gates,
            device=model.device,
            progress=self.progress,
        )
        important, said = importance(
            model.model,
            self.model.loader(self.rows, self.split),
            self.tasks,
            config=settings.importance,
            confidence=settings.intervals.confidence,
            device=model.device,
            progress=self.progress,
        )
        self.notes += said
        return Report(
            about=self._about(figures),
            verdict=Verdict(
                decision="not judged",
                reasons=(self.story.undecided or "No gate is configured (`registry.gate`), so nothing is decided.",),
            ),
            figures=figures,
            legend={row.metric: METRICS[row.metric].meaning for row in figures},
            history=tuple(_epochs(self.story.history)),
            curves=self._curves(scored),
            calibration=(*self.story.calibration, *self._calibrated(mine)),
            slices=sliced.rows,
            ranking=ranked,
            coverage=coverage,
            gates=gate_rows,
            experts=experts,
            importance=important,
            conflicts=conflicts(self.story.history),
            coherence=coherence(scored, self.tasks, self.manifest, self.split),
            fusion=self.story.fusion,
            drift=self._drift(),
            guards=self._guards(),
            data=data_card(self.manifest),
            config=dict(self.story.config),
            notes=tuple(self.notes),
        )

    def _strangers(self) -> Iterator[str]:
        """Models of other data, which may have trained on these rows: nothing here can tell. The daily pipeline can."""
        if self.manifest.split_by == "day":
            return
        for system, one in self.contenders.items():
            if one.package.contents.data != self.manifest.fingerprint:
                yield (
                    f"The {system} was trained on another prepared dataset than this one. If any of these rows was "
                    "among its training rows, its figures flatter it."
                )

    def _immature(self) -> Iterator[str]:
        """Tasks of which most labels of the split are not known yet: their figures rest on few rows."""
        if self.manifest.split_by == "day":
            return
        summary = self.manifest.splits[self.split]
        for name in self.tasks:
            counted = summary.tasks[name]
            waiting = counted.masked.get("immature", 0)
            if waiting > counted.observed:
                yield (
                    f"{name}: only {counted.observed:,} of {summary.rows:,} {self.split} rows count; the windows of "
                    f"{waiting:,} had not closed when the logs end. A longer {self.split} split, logs that go on for "
                    "longer (`observed_until`) or a shorter window would tell more."
                )

    def _about(self, figures: Sequence[Any]) -> About:
        shown = [*self.contenders, *(name for row in figures for name in row.systems)]
        return About(
            name=self.story.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            version=__version__,
            commit=self.story.commit,
            split=self.split,
            models={name: one.package.contents.digest for name, one in self.contenders.items()},
            systems=tuple(dict.fromkeys(shown)),
            confidence=self.settings.intervals.confidence,
        )

    def _ranking(self, scored: Mapping[str, Scored], fused: Mapping[str, NDArray[np.float32]]) -> tuple[Any, Any]:
        config = self.settings.ranking
        if config is None:
            return (), ()
        groups = ranking_groups(self.folder, self.manifest, self.split, config.by, work=self.work("groups"))
        if groups is None:
            self.notes.append("Ranking is not measured: the data name neither users nor requests.")
            return (), ()
        by, group = groups
        found = ranking(
            scored,
            self.tasks,
            group,
            by,
            config,
            fused=fused,
            items=item_codes(self.folder, self.manifest, self.split, work=self.work("items")),
            confidence=self.settings.intervals.confidence,
        )
        self.notes += found.notes
        return found.rows, found.coverage

    def _fused(self, system: str, rows: Scored) -> NDArray[np.float32] | None:
        """(N,) the score that a system's package makes of its predictions; None for one without."""
        package = self.contenders[system].package
        if package.contents.fusion is None:
            return None
        return fused_score(rows, package.contents.fusion, package.tasks, package.contents.calibration)

    def _curves(self, scored: Mapping[str, Scored]) -> tuple[Curve, ...]:
        """Every system's, and how the model's own lies once it is calibrated."""
        confidence, calibrations = self.settings.intervals.confidence, self.package.contents.calibration
        found = curves(scored, self.tasks, confidence=confidence)
        if calibrations is None or self.split == "validation":
            return found
        some = drawn(scored[MODEL], (self.settings.calibration or CalibrationConfig()).max_rows, seed=0)
        adjusted = apply_to(some, calibrations, self.tasks)
        probabilities = {target.key for target in targets(self.tasks) if target.task.kind == "binary"}
        changed = curves({CALIBRATED: adjusted}, self.tasks, confidence=confidence)
        return (*found, *(one for one in changed if one.kind == "calibration" and one.target in probabilities))

    def _calibrated(self, mine: Scored) -> tuple[Calibration, ...]:
        """What the package's calibration does on these rows, which it was not fitted on."""
        calibrations = self.package.contents.calibration
        if calibrations is None or self.split == "validation":
            return ()
        return calibration_figures(mine, self.tasks, calibrations, split=self.split)

    def _drift(self) -> tuple[Drift, ...]:
        config = self.settings.drift
        if config is None or not config.enabled:
            return ()
        found = []
        for system in (CHAMPION, MODEL):
            if system in self.contenders:
                package = self.contenders[system].package
                found.append(
                    drift(
                        self.folder,
                        self.manifest,
                        self.split,
                        package.schema,
                        package.statistics,
                        self.tasks,
                        against=system,
                        config=config,
                    )
                )
                note = drift_note(package.statistics, system)
                self.notes += [] if note is None else [note]
        return tuple(found)

    def _guards(self) -> tuple[Guard, ...]:
        return check_guards(self.folder, self.manifest, self.settings.guards)

    def _trial(self, gate: GateConfig, mine: Scored) -> tuple[Check, ...]:
        """The package in a process of its own."""
        if gate.package is None:
            return ()
        self.progress.say("trying the package in a fresh process")
        raw = self.rows.raw(gate.package.rows)
        expected = pl.DataFrame(
            {name: np.array(values[: raw.height]) for name, values in mine.predictions.items()},
            schema=dict.fromkeys(mine.predictions, pl.Float32),
        )
        return trial(self.package.contents.folder, raw, expected, gate.package)


def _epochs(history: Sequence[Mapping[str, Any]]) -> Iterator[Epoch]:
    for one in history:
        yield Epoch(
            epoch=one.get("epoch"),
            step=one["step"],
            train=dict(one.get("train", {})),
            validation={target: dict(values) for target, values in one.get("validation", {}).items()},
        )
