"""Inside the model: how it learned, which experts each task takes, which features it needs, how the tasks pull."""

from collections.abc import Sequence

from recmtl.evaluation.html.blocks import Block, Cell, Charts, Column, Fold, Heading, Section, Table
from recmtl.evaluation.html.charts import Chart, Row, Series, bars, heat_map, xy_chart
from recmtl.evaluation.html.sections.context import Context, first, number, unique
from recmtl.evaluation.html.words import count, directed, interval, lower, metric_name, num, percent, plain
from recmtl.findings import Conflict, Epoch, Expert, Gate, Importance

__all__ = ["conflicts", "gates", "importance", "training"]

_TOP = 12
"""Features of a chart; a table under it has all."""
_PARTS = 60
"""Parts of the rows in one heat map."""
_FIGURES = 1200
"""Rows of the table of importances."""
_LINES = 6
"""Pairs of tasks in one chart."""


def training(context: Context) -> Section:
    """Training curves, a chart for each task's loss and each target's metric."""
    history = context.report.history
    section = Section("training", "Training curves", short="Training")
    if not history:
        return section
    by_epoch = all(point.epoch is not None for point in history) and len({p.epoch for p in history}) == len(history)
    x = [float(point.epoch if by_epoch and point.epoch is not None else point.step) for point in history]
    x_name = "epoch" if by_epoch else "step"
    task_of = {row.target: row.task for row in context.report.figures}
    targets = context.ordered(name for point in history for name in point.validation)
    tasks = unique([*(name for point in history for name in point.train), *(task_of.get(t, t) for t in targets)])
    charts: dict[str, list[Chart | None]] = {task: [] for task in tasks}
    for task in tasks:
        y = [point.train.get(task) for point in history]
        charts[task].append(_line(task, "training loss", "mean loss", x, y, x_name, 7))
    for target in targets:
        for metric in _watched(context, history, target):
            y = [point.validation.get(target, {}).get(metric) for point in history]
            task = task_of.get(target, target)
            caption = f"validation {directed(lower(metric_name(metric)), context.direction(target, metric))}"
            caption = caption if target == task else f"{target}: {caption}"
            charts[task].append(_line(target, caption, metric_name(metric), x, y, x_name, 0))
    section.lead = (
        "What training lowered, task by task, and what validation saw of it: a validation curve that turns while the "
        "loss still falls is overfitting."
    )
    for task, drawn in charts.items():
        if any(drawn):
            section.blocks += [Heading(task), Charts([chart for chart in drawn if chart])]
    return section


def _watched(context: Context, history: Sequence[Epoch], target: str) -> list[str]:
    """The target's first two headline metrics that the history has, or its first."""
    known = unique(m for p in history for m, v in p.validation.get(target, {}).items() if v is not None)
    headline = [row.metric for row in context.report.figures if row.target == target and row.headline]
    return [metric for metric in headline if metric in known][:2] or known[:1]


def _line(
    target: str, caption: str, y_name: str, x: Sequence[float], y: Sequence[float | None], x_name: str, style: int
) -> Chart | None:
    known = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
    if not known:
        return None
    (x0, first), (x1, last) = known[0], known[-1]
    low, high = min(known, key=lambda p: p[1]), max(known, key=lambda p: p[1])
    said = (
        f"From {num(first)} at {x_name} {x0:g} to {num(last)} at {x_name} {x1:g}; "
        f"lowest {num(low[1])} at {x_name} {low[0]:g}, highest {num(high[1])} at {x_name} {high[0]:g}."
    )
    notes = [f"{x_name} {a:g}: {num(b)}" for a, b in zip(x, y, strict=True)]
    series = Series(caption, x, y, style, notes=notes, markers=len(known) <= 40)
    title = caption if caption.startswith(target) else f"{target}: {caption}"
    return xy_chart(title, said, [series], x_name=x_name, y_name=y_name, caption=caption, x_whole=True, height=206)


def gates(context: Context) -> Section:
    """Mean gates as heat maps, and experts that deserve a word."""
    section = Section("gates", "Experts and gates")
    rows = context.report.gates
    if rows:
        section.lead = (
            "How much of each expert a task takes, on average; a row sums to 1. Entropy is 0 where one expert does it "
            "alone and 1 where all are taken alike."
        )
    for layer in unique(row.layer for row in rows):
        mine = [row for row in rows if row.layer == layer]
        top = max(0.5, *(weight for row in mine for weight in row.mean))
        whole = [row for row in mine if row.slice is None]
        charts: list[Block] = [Charts([_gate_map(whole, f"{plain(layer)}: all rows", top)])] if whole else []
        parts: list[Block] = []
        for task in unique(row.task for row in mine if row.slice is not None):
            of_task = [row for row in mine if row.slice is not None and row.task == task]
            shown, more = first(of_task, _PARTS, f"parts of {task}")
            parts += [Charts([_gate_map(shown, f"{plain(layer)}: {task} by slice", top)]), *more]
        section.blocks += charts
        if parts:
            section.blocks.append(Fold(f"{plain(layer)} by slice", parts))
    if context.report.experts:
        section.blocks += [Heading("Experts that deserve a word", "experts"), _experts(context.report.experts)]
    return section


def _gate_map(rows: Sequence[Gate], caption: str, top: float) -> Chart:
    names = unique(expert for row in rows for expert in row.experts)
    short = [name.removeprefix("expert ").removeprefix("expert_") for name in names]
    columns = [f"E{name}" if name.isdigit() else name for name in short]
    values = []
    for row in rows:
        weights = dict(zip(row.experts, row.mean, strict=True))
        values.append([weights.get(name) for name in names])
    labels = [row.task if row.slice is None else f"{plain(row.slice)}: {row.value}" for row in rows]
    facts = []
    for row in rows:
        weight, expert = max(zip(row.mean, row.experts, strict=True))
        part = "" if row.slice is None else f" where {plain(row.slice).lower()} is {row.value}"
        facts.append(f"{row.task}{part} takes most of {expert} ({weight:.2f}), entropy {row.entropy:.2f}")
    return heat_map(
        f"Mean gate weight of each expert, {caption}",
        "; ".join(facts) + ".",
        labels,
        columns,
        values,
        top=top,
        row_notes=[f"entropy {row.entropy:.2f}" for row in rows],
        caption=caption,
    )


def _experts(experts: Sequence[Expert]) -> Table:
    lines = []
    for expert in experts:
        said = []
        if expert.dead:
            said.append("dead: no task gives it more than a tenth of an even share")
        if expert.duplicate_of is not None:
            said.append(f"says nearly what {expert.duplicate_of} says (CKA {num(expert.similarity)})")
        if expert.units_dead is not None:
            said.append(f"{percent(expert.units_dead)} of its outputs are zero on every row")
        word, mark = ("dead", "✕") if expert.dead else ("duplicate", "!") if expert.duplicate_of else ("", "")
        finding = Cell(word, tone="warn" if word else "", mark=mark)
        lines.append([Cell(expert.expert), Cell(expert.layer), finding, Cell("; ".join(said))])
    columns = [Column("Expert"), Column("Layer"), Column("Finding"), Column("What was seen", sorts=False)]
    return Table("Dead and duplicate experts", columns, lines, quiet=True, kind="stack")


def conflicts(context: Context) -> Section:
    """Cosines of the tasks' gradients."""
    section = Section("conflicts", "Gradient conflicts")
    pairs = context.report.conflicts
    if not pairs:
        return section
    section.lead = (
        "The cosine between two tasks' gradients on the shared parameters: below 0, a step that helps one harms the "
        "other."
    )
    charts = [_cosines(pairs[start : start + _LINES]) for start in range(0, len(pairs), _LINES)]
    lines = []
    for pair in pairs:
        last = pair.cosine[-1] if pair.cosine else None
        mean = sum(pair.cosine) / len(pair.cosine) if pair.cosine else None
        figures = [number(v) for v in (mean, last)]
        share = number(pair.negative, percent)
        lines.append([Cell(f"{pair.one} × {pair.other}"), *figures, share])
    columns = [Column("Pair"), Column("Mean cosine", True), Column("Last", True), Column("Steps below 0", True)]
    section.blocks += [
        Charts([chart for chart in charts if chart]),
        Table("Gradient cosines by pair of tasks", columns, lines),
    ]
    return section


def _cosines(pairs: Sequence[Conflict]) -> Chart | None:
    series, facts = [], []
    for style, pair in enumerate(pairs):
        name = f"{pair.one} × {pair.other}"
        notes = [f"{name}, step {s}: {c:.3f}" for s, c in zip(pair.steps, pair.cosine, strict=True)]
        shown = style if style < 2 else style + 1  # grey is the baseline's
        series.append(Series(name, pair.steps, pair.cosine, shown, notes=notes, markers=len(notes) <= 25))
        if pair.cosine:
            facts.append(f"{name}: from {pair.cosine[0]:.2f} to {pair.cosine[-1]:.2f}")
    return xy_chart(
        "Cosine of the tasks' gradients while training",
        "; ".join(facts) + ".",
        series,
        x_name="step",
        y_name="cosine",
        caption="Cosine of the tasks' gradients",
        horizontals={"": 0.0},
        x_whole=True,
        end_labels=True,
    )


def importance(context: Context) -> Section:
    """What each feature contributes, by both methods."""
    section = Section("importance", "Feature importance", short="Importance")
    rows = context.report.importance
    if not rows:
        return section
    section.lead = (
        "Permutation: what the metric loses when a feature's values are shuffled over the rows. Integrated gradients: "
        "a feature's share of the mean absolute attribution. They answer different questions, and may disagree."
    )
    for method, title in (("permutation", "By permutation"), ("integrated_gradients", "By integrated gradients")):
        targets = context.ordered(row.target for row in rows if row.method == method)
        charts = [_bars(t, method, [row for row in rows if row.target == t and row.method == method]) for t in targets]
        if any(charts):
            section.blocks += [Heading(title), Charts([chart for chart in charts if chart])]
    shown, more = first(rows, _FIGURES, "figures")
    lines = [
        [
            Cell(row.feature),
            Cell(row.target),
            Cell(row.method.replace("_", " "), note=row.metric),
            Cell(
                num(row.figure.value),
                sort=row.figure.value if row.figure.value is not None else "",
                note=interval(row.figure),
            ),
        ]
        for row in shown
    ]
    columns = [Column("Feature"), Column("Target"), Column("Method"), Column("Importance", True)]
    table = Table("Importance of every feature", columns, lines, quiet=True)
    section.blocks.append(Fold(f"All {count(len(rows))} figures as a table", [table, *more]))
    return section


def _bars(target: str, method: str, rows: Sequence[Importance]) -> Chart | None:
    ranked = sorted(rows, key=lambda row: -(row.figure.value if row.figure.value is not None else -1e9))
    shown = [
        Row(
            row.feature,
            row.figure.value,
            row.figure.low,
            row.figure.high,
            0 if method == "permutation" else 4,
            num(row.figure.value) if method == "permutation" else percent(row.figure.value),
            f"{row.feature}: {num(row.figure.value)} {interval(row.figure)}".rstrip(),
        )
        for row in ranked[:_TOP]
    ]
    what = f"loss of {metric_name(rows[0].metric)}" if method == "permutation" else "share of attribution"
    way = "permutation" if method == "permutation" else "integrated gradients"
    more = f", first {_TOP} of {len(ranked)}" if len(ranked) > _TOP else ""
    said = ", ".join(f"{row.name} {row.text}" for row in shown[:5])
    return bars(
        f"Importance of features for {target} by {way}",
        f"Largest: {said}. {count(len(ranked))} features in all.",
        shown,
        caption=f"{target}{more}",
        x_name=what,
    )
