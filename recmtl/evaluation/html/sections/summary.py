"""The top of the page: the verdict with its checks, the headline figures, what a reader must know."""

from typing import Literal

from recmtl.evaluation.html.blocks import (
    Banner,
    Block,
    Cell,
    Chip,
    Column,
    Fold,
    Items,
    Prose,
    Section,
    Table,
    Tile,
    Tiles,
    Tone,
)
from recmtl.evaluation.html.charts import Row, forest
from recmtl.evaluation.html.sections.context import Context, number, unique
from recmtl.evaluation.html.words import (
    count,
    directed,
    interval,
    metric_name,
    num,
    percent,
    plain,
    plural,
)
from recmtl.findings import Check, FigureRow

__all__ = ["headline", "know", "verdict"]

_DECISIONS: dict[str, tuple[str, Tone, str]] = {
    "promote": ("Promote this model", "good", "✓"),
    "refuse": ("Do not promote this model", "bad", "✕"),
    "not judged": ("Not judged", "warn", "?"),
}
_State = Literal["failed", "not judged", "passed", "told"]
_RESULTS: dict[_State, tuple[Tone, str]] = {
    "failed": ("bad", "✕"),
    "not judged": ("warn", "?"),
    "passed": ("good", "✓"),
    "told": ("muted", "·"),
}
"""In the order in which they are shown; told: a figure without a bound, which asks for no judgement."""
_MANY = 14
"""Passed checks beyond which they are folded away."""


def verdict(context: Context) -> Section:
    """What follows from all this, why, and the gate's checks."""
    found = context.report.verdict
    title, tone, mark = _DECISIONS[found.decision]
    counts = []
    by_state = {state: [check for check in found.checks if _state(check) == state] for state in _RESULTS}
    for state, checks in by_state.items():
        if checks and state != "told":
            counts.append(Chip(f"{plural(len(checks), 'check')} {state}", *_RESULTS[state]))
    reasons = found.reasons
    if not reasons and found.decision == "not judged":
        reasons = (
            "No gate is configured, so nothing decides for or against this model; the config's registry.gate sets one.",
        )
    blocks: list[Block] = [Banner(title, tone, mark, counts, reasons, found.overridden)]
    open_, passed = [*by_state["failed"], *by_state["not judged"]], by_state["passed"]
    if len(passed) <= _MANY:
        open_, passed = [*open_, *passed], []
    open_ += by_state["told"]
    if open_:
        blocks.append(_checks("The gate's checks", open_))
    if passed:
        blocks.append(Fold(f"{plural(len(passed), 'check')} passed", [_checks("Checks that passed", passed)]))
    return Section("verdict", "Verdict", blocks=blocks)


def _state(check: Check) -> _State:
    if check.passed is None:
        unbounded = check.group == "package" and check.value is not None and check.bound is None
        return "told" if unbounded else "not judged"
    return "passed" if check.passed else "failed"


def _checks(caption: str, checks: list[Check]) -> Table:
    rows = []
    for check in checks:
        state = _state(check)
        tone, mark = _RESULTS[state]
        rows.append(
            [
                Cell(check.name),
                Cell(state, sort=list(_RESULTS).index(state), tone=tone, mark=mark),
                Cell(check.text),
                Cell(plain(check.group), tone="muted"),
            ]
        )
    columns = [Column("Check"), Column("Result"), Column("What was found", sorts=False), Column("Kind")]
    return Table(caption, columns, rows, kind="stack")


def headline(context: Context) -> Section:
    """The figures that matter most, each beside what it should be measured against."""
    shown = [row for row in context.report.figures if row.headline] or list(context.report.figures)
    section = Section("headline", "Headline figures")
    if not shown:
        return section
    split = context.report.about.split
    flatters = ", the split that the epoch was chosen on, so they flatter" if split == "validation" else ""
    section.lead = (
        f"On the {split} rows{flatters}. Each number stands over its {context.confidence} interval; two "
        "systems are compared on the same rows, and “cannot tell” means that chance alone may have made the difference."
    )
    tiles = [tile for tile in (_tile(context, target) for target in unique(row.target for row in shown)) if tile]
    section.blocks += [Tiles(tiles), _table(context, "Headline figures by target and metric", shown)]
    if len(shown) < len(context.report.figures):
        rows = list(context.report.figures)
        everything = _table(context, "Every metric of every target", rows, whole=True)
        summary = f"All {len(rows)} metrics, with how intervals were made"
        section.blocks.append(Fold(summary, [Items(_methods(rows)), everything]))
    return section


def _tile(context: Context, target: str) -> Tile | None:
    row = context.lead_metric(target)
    if row is None:
        return None
    model = row.systems.get("model") or next(iter(row.systems.values()))
    chips = []
    for other, difference in row.differences.items():
        chip = context.chip(difference, row.higher_is_better, other) if other not in ("baseline", "optimum") else None
        chips += [chip] if chip else []
    baseline = row.differences.get("baseline")
    if baseline is not None and not chips:
        chip = context.chip(baseline, row.higher_is_better, "baseline")
        chips += [chip] if chip else []
    share = row.share_of_attainable
    note = (
        "" if share is None or share.value is None else f"{percent(share.value)} of the way from chance to the optimum"
    )
    lines = [
        Row(
            context.name(system),
            row.systems[system].value,
            row.systems[system].low,
            row.systems[system].high,
            context.style(system),
            num(row.systems[system].value),
            f"{context.name(system)}: {num(row.systems[system].value)} {interval(row.systems[system])}".rstrip(),
        )
        for system in context.present([row.systems])
    ]
    metric = metric_name(row.metric)
    said = "; ".join(line.note for line in lines)
    chart = forest(f"{metric} of {target} by system", said, lines) if len(lines) > 1 else None
    name = directed(metric, row.higher_is_better)
    return Tile(target, name, num(model.value), interval(model), chips, chart, note)


def _table(context: Context, caption: str, rows: list[FigureRow], *, whole: bool = False) -> Table:
    systems = context.present(row.systems for row in rows)
    known = context.present(row.differences for row in rows)
    compared = known if whole else [other for other in known if other not in ("baseline", "optimum")] or known[:1]
    columns = [Column("Target"), Column("Metric"), *context.figure_columns(systems, compared)]
    if whole:
        columns.append(Column("Rows", number=True))
    lines = []
    for row in rows:
        line = [
            Cell(row.target, note="" if whole else f"{count(row.rows)} rows"),
            Cell(directed(metric_name(row.metric), row.higher_is_better), sort=row.metric),
            *context.figure_cells(row.systems, row.differences, row.higher_is_better, systems, compared),
        ]
        if whole:
            parts = ((row.positives, "positive"), (row.users, "clusters"))
            note = ", ".join(f"{count(n)} {name}" for n, name in parts if n is not None)
            line.append(number(row.rows, count, note=note))
        lines.append(line)
    return Table(caption, columns, lines, heads=2)


def _methods(rows: list[FigureRow]) -> list[str]:
    """What made the intervals of which metrics."""
    metrics: dict[str, list[str]] = {}
    for row in rows:
        metrics.setdefault(row.method, []).append(metric_name(row.metric))
    return [f"{method}: {', '.join(unique(names))}" for method, names in metrics.items()]


def know(context: Context, left_out: list[str]) -> Section:
    """What a reader must know, and what is not here."""
    section = Section("notes", "What to know")
    notes = [*context.report.notes, *(f"Data: {warning}" for warning in context.report.data.warnings)]
    if notes:
        section.blocks.append(Items(notes))
    if left_out:
        names = ", ".join(left_out)
        section.blocks.append(Prose(f"Not in this report, because there is nothing to show: {names}.", "muted"))
    return section
