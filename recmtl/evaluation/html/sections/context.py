"""What every section needs of the report: the systems in their order, their names and styles, and tables of figures."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from recmtl.evaluation.html.blocks import Block, Cell, Chip, Column, Prose, Tone
from recmtl.evaluation.html.words import NOTHING, Outcome, count, interval, num, outcome, p_value, signed
from recmtl.findings import Difference, Figure, FigureRow, Report

__all__ = ["MARKS", "TONES", "Context", "first", "number", "unique"]

_NAMES = {
    "model": "This model",
    "champion": "Champion",
    "baseline": "Baseline",
    "optimum": "Optimum",
    "calibrated": "This model, calibrated",
}
_STYLES = {"model": 0, "champion": 1, "baseline": 2, "optimum": 3, "calibrated": 7}

TONES: dict[Outcome, Tone] = {
    "better": "good",
    "worse": "bad",
    "cannot tell": "muted",
    "higher": "",
    "lower": "",
    "": "",
}
MARKS: dict[Outcome, str] = {"better": "▲", "worse": "▼", "cannot tell": "≈", "higher": "↑", "lower": "↓", "": ""}


_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Context:
    """A report, and how its systems are shown."""

    report: Report

    @cached_property
    def systems(self) -> tuple[str, ...]:
        """In the order of the report; any that it does not list come last."""
        report = self.report
        named = [system for row in report.figures for system in row.systems]
        named += [system for ranked in report.ranking for system in ranked.systems]
        named += [curve.system for curve in report.curves]
        return tuple(unique([*self.report.about.systems, *named]))

    @cached_property
    def styles(self) -> Mapping[str, int]:
        """System → the style of its lines."""
        others = [system for system in self.systems if system not in _STYLES]
        return _STYLES | {system: 4 + index % 3 for index, system in enumerate(others)}

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """In the order of the figures."""
        return tuple(unique(row.target for row in self.report.figures))

    @property
    def confidence(self) -> str:
        """``95 %``."""
        return f"{self.report.about.confidence * 100:g}\N{NO-BREAK SPACE}%"

    def name(self, system: str) -> str:
        """A system as a heading says it."""
        return _NAMES.get(system, system)

    def short(self, system: str) -> str:
        """A system as a sentence says it."""
        known = {
            "model": "this model",
            "champion": "the champion",
            "baseline": "the baseline",
            "optimum": "the optimum",
        }
        return known.get(system, system)

    def style(self, system: str) -> int:
        """Of its lines and markers."""
        return self.styles.get(system, 7)

    def present(self, groups: Iterable[Iterable[str]]) -> list[str]:
        """The systems that any of the groups names, in order."""
        named = {system for group in groups for system in group}
        return [system for system in self.systems if system in named] + sorted(named - set(self.systems))

    def ordered(self, targets: Iterable[str]) -> list[str]:
        """Targets, those of the figures first and in their order."""
        given = unique(targets)
        return [t for t in self.targets if t in given] + [t for t in given if t not in self.targets]

    def lead_metric(self, target: str) -> FigureRow | None:
        """The target's first headline figure, or its first."""
        rows = [row for row in self.report.figures if row.target == target]
        return next((row for row in rows if row.headline), rows[0] if rows else None)

    def direction(self, target: str, metric: str) -> bool | None:
        """Whether more is better, as the figures say; by the metric's name where they have none of it."""
        for row in self.report.figures:
            if row.target == target and row.metric == metric:
                return row.higher_is_better
        for row in self.report.figures:
            if row.metric == metric:
                return row.higher_is_better
        if metric in ("calibration",):
            return None
        return not any(part in metric for part in ("loss", "rmse", "mae", "ece", "error", "entropy"))

    def overall(self, target: str, metric: str, system: str = "model") -> float | None:
        """The figure on all rows."""
        for row in self.report.figures:
            if row.target == target and row.metric == metric and system in row.systems:
                return row.systems[system].value
        return None

    def judge(self, difference: Difference, higher_is_better: bool | None) -> Outcome:
        """What a difference says, at the report's confidence."""
        return outcome(difference, higher_is_better, self.report.about.confidence)

    def chip(self, difference: Difference, higher_is_better: bool | None, other: str) -> Chip | None:
        """A difference in words."""
        said = self.judge(difference, higher_is_better)
        if not said:
            return None
        text = f"cannot tell from {self.short(other)}" if said == "cannot tell" else f"{said} than {self.short(other)}"
        return Chip(text, TONES[said], MARKS[said])

    def figure_columns(self, systems: Sequence[str], compared: Sequence[str]) -> list[Column]:
        """Heads for :meth:`figure_cells`."""
        columns = [Column(self.name(system), number=True) for system in systems]
        columns += [
            Column(f"Model − {other}", number=True, help="paired, on the same rows, with its interval and p-value")
            for other in compared
        ]
        return columns

    def figure_cells(
        self,
        figures: Mapping[str, Figure],
        differences: Mapping[str, Difference],
        higher_is_better: bool | None,
        systems: Sequence[str],
        compared: Sequence[str],
    ) -> list[Cell]:
        """A figure with its interval for each system, then the difference to each other one, in words too."""
        cells = [self.figure_cell(figures.get(system, Figure())) for system in systems]
        for other in compared:
            cell = self.difference_cell(differences.get(other, Difference()), higher_is_better)
            cells.append(replace(cell, tone="muted") if other == "optimum" else cell)  # nobody can be better
        return cells

    def figure_cell(self, figure: Figure) -> Cell:
        """A number over its interval."""
        return number(figure.value, note=interval(figure))

    def difference_cell(self, difference: Difference, higher_is_better: bool | None) -> Cell:
        """A difference with what it says, its interval and its p-value."""
        if difference.value is None:
            return Cell(NOTHING, sort="")
        said = self.judge(difference, higher_is_better)
        ends = interval(difference, sign=True)
        p = difference.p_corrected if difference.p_corrected is not None else difference.p_value
        probability = "" if p is None else f"p {p_value(p)}".replace("p 0", "p = 0").replace("p 1", "p = 1")
        note = ", ".join(part for part in (ends, probability) if part)
        text = f"{signed(difference.value)} {said}".rstrip()
        return Cell(text, sort=difference.value, note=note, tone=TONES[said], mark=MARKS[said])


def first(rows: Sequence[_Row], limit: int, what: str) -> tuple[Sequence[_Row], list[Block]]:
    """As many rows as a page should hold, and where the others are: the page must stay small on any data."""
    if len(rows) <= limit:
        return rows, []
    return rows[:limit], [Prose(f"{count(len(rows) - limit)} more {what} are in report.json.", "muted")]


def number(value: float | None, show: Callable[[float | None], str] = num, *, note: str = "") -> Cell:
    """A cell of a number, sorted by its value; an undefined one comes last."""
    return Cell(show(value), sort="" if value is None or not math.isfinite(value) else value, note=note)


def unique(names: Iterable[str]) -> list[str]:
    """Each name once, in the order of first sight."""
    return list(dict.fromkeys(names))
