"""How good the predictions are: calibration, ROC, precision and recall, lift, ranking, coverage, coherence."""

import math

from markupsafe import Markup

from recmtl.evaluation.html.blocks import Block, Cell, Charts, Column, Heading, Prose, Section, Table
from recmtl.evaluation.html.charts import Chart, Series, swatch, xy_chart
from recmtl.evaluation.html.sections.context import Context, number
from recmtl.evaluation.html.svg import join
from recmtl.evaluation.html.words import count, directed, metric_name, num, percent
from recmtl.findings import Curve, Report

__all__ = ["calibration", "coherence", "discrimination", "legend", "ranking"]

_SETTLED = 0.005
"""Share of the rows, or of the positives, from which precision and lift are drawn."""
_LOG_FROM = 30.0
"""Ratio of the largest to the smallest bin from which a reliability chart has logarithmic axes."""


def legend(context: Context, systems: list[str]) -> Prose:
    """The systems' lines and markers."""
    parts: list[object] = []
    for system in systems:
        parts += [
            Markup('<span class="key">'),
            swatch(context.style(system), context.name(system)),
            context.name(system),
        ]
        parts.append(Markup("</span> "))
    return Prose(join(parts))


def calibration(context: Context) -> Section:
    """Reliability curves, and what a fitted calibration would change."""
    curves = [curve for curve in context.report.curves if curve.kind == "calibration"]
    section = Section("calibration", "Calibration")
    if curves:
        section.lead = (
            "What was predicted against what happened, in bins of equally many rows. On the dashed line they agree; "
            f"below it the system promises too much. Bars are {context.confidence} intervals."
        )
        section.blocks.append(legend(context, context.present([[c.system for c in curves]])))
        charts = [_reliability(context, target, curves) for target in context.ordered(c.target for c in curves)]
        section.blocks.append(Charts([chart for chart in charts if chart]))
    fitted = context.report.calibration
    if fitted:
        section.blocks.append(Heading("Fitted calibrators", "calibrators"))
        rows = []
        for row in fitted:
            chosen = Cell("in use", sort=0, tone="good", mark="✓") if row.chosen else Cell("", sort=1)
            figures = [number(v) for v in (row.log_loss, row.ece, row.ratio)]
            method = "none (as predicted)" if row.method == "none" else row.method
            line = [Cell(row.target), Cell(method), chosen, *figures, number(row.rows, count), Cell(row.fitted_on)]
            rows.append(line)
        columns = [
            Column("Target"),
            Column("Method"),
            Column("Chosen"),
            Column(directed("Log loss", False), True),
            Column(directed("ECE", False), True),
        ]
        columns += [Column("Ratio (1 is right)", True), Column("Rows", True), Column("Fitted on")]
        section.blocks.append(Table("Calibrators on rows that they were not fitted on", columns, rows, heads=2))
    return section


def _reliability(context: Context, target: str, curves: list[Curve]) -> Chart | None:
    mine = sorted((c for c in curves if c.target == target), key=lambda c: context.style(c.system))
    values = [v for c in mine for v in (*c.x, *c.y)]
    log = min(values, default=0.0) > 0 and max(values) / min(values) >= _LOG_FROM
    series = []
    for curve in mine:
        notes = []
        for index, (x, y) in enumerate(zip(curve.x, curve.y, strict=True)):
            ends = f" ({num(curve.low[index])} to {num(curve.high[index])})" if curve.low and curve.high else ""
            rows = f", {count(curve.rows[index])} rows" if curve.rows else ""
            notes.append(f"{context.name(curve.system)}: predicted {num(x)}, observed {num(y)}{ends}{rows}")
        series.append(
            Series(
                context.name(curve.system),
                curve.x,
                curve.y,
                context.style(curve.system),
                curve.low or (),
                curve.high or (),
                notes,
                markers=True,
            )
        )
    facts = []
    for curve in mine:
        gaps = [(abs(y - x), x, y) for x, y in zip(curve.x, curve.y, strict=True)]
        if gaps:
            _, x, y = max(gaps)
            facts.append(
                f"{context.name(curve.system)}: {len(gaps)} bins, farthest off where {num(x)} is predicted and "
                f"{num(y)} observed"
            )
    return xy_chart(
        f"Reliability of {target}: predicted against observed",
        "; ".join(facts) + ". The dashed line is perfect calibration.",
        series,
        x_name="predicted, mean of the bin" + (" (log)" if log else ""),
        y_name="observed" + (" (log)" if log else ""),
        caption=target,
        log_x=log,
        log_y=log,
        y_from_x=True,
        diagonal="perfectly calibrated",
    )


def discrimination(context: Context) -> Section:
    """ROC, precision and recall, lift."""
    report = context.report
    kinds = {kind: [c for c in report.curves if c.kind == kind] for kind in ("roc", "pr", "lift")}
    shown = [curve for curves in kinds.values() for curve in curves]
    section = Section("curves", "ROC, precision and recall, lift", short="ROC, PR, lift")
    if not shown:
        return section
    section.lead = "How well positives are told from the rest, whatever the predictions' level."
    heads = {
        "roc": ("ROC", "Up and left is better; the dashed line is chance. The legend gives the area."),
        "pr": (
            "Precision and recall",
            "Of the rows ranked first, how many are positive, and how many of all positives are among them. The dashed "
            "line is the share of positives. The first half per cent, where a few rows decide, is left out.",
        ),
        "lift": (
            "Lift",
            "How many times more positives than on average are among the rows ranked first. The first half per cent, "
            "where a few rows decide, is left out.",
        ),
    }
    for kind, curves in kinds.items():
        if curves:
            title, text = heads[kind]
            section.blocks += [Heading(title, kind), Prose(text)]
            targets = context.ordered(c.target for c in curves)
            charts = [_curve(context, report, kind, target, curves) for target in targets]
            section.blocks.append(Charts([chart for chart in charts if chart]))
    return section


def _curve(context: Context, report: Report, kind: str, target: str, curves: list[Curve]) -> Chart | None:
    mine = sorted((c for c in curves if c.target == target), key=lambda c: context.style(c.system))
    metric = {"roc": "auc", "pr": "pr_auc"}.get(kind)
    series, facts = [], []
    for curve in mine:
        name = context.name(curve.system)
        value = None if metric is None else context.overall(target, metric, curve.system)
        text = name if value is None else f"{name} {num(value)}"
        x, y = (curve.x, curve.y) if kind == "roc" else _settled(curve)
        series.append(Series(name, x, y, context.style(curve.system), legend=text))
        if value is not None:
            facts.append(f"{name}: {metric_name(metric or '')} {num(value)}")
        elif curve.x:
            at = min(range(len(curve.x)), key=lambda i, c=curve: abs(c.x[i] - 0.1))  # type: ignore[misc]
            facts.append(f"{name}: lift {curve.y[at]:.2f} at {percent(curve.x[at], 0)} of the rows")
    rows = next((row for row in report.figures if row.target == target and row.positives is not None), None)
    rate = None if rows is None or not rows.rows or rows.positives is None else rows.positives / rows.rows
    said = "; ".join(facts) + "."
    if kind == "roc":
        return xy_chart(
            f"ROC of {target}",
            said,
            series,
            x_name="false positive rate",
            y_name="true positive rate",
            caption=target,
            x_include=(0.0, 1.0),
            y_include=(0.0, 1.0),
            diagonal="chance",
        )
    if kind == "pr":
        guide = {} if rate is None else {f"share of positives {num(rate)}": rate}
        return xy_chart(
            f"Precision and recall of {target}",
            said,
            series,
            x_name="recall",
            y_name="precision",
            caption=target,
            x_include=(0.0, 1.0),
            y_include=(0.0,),
            horizontals=guide,
        )
    return xy_chart(
        f"Lift of {target}",
        said,
        series,
        x_name="share of rows, from the top",
        y_name="lift over all rows",
        caption=target,
        x_include=(0.0, 1.0),
        y_include=(0.0,),
        horizontals={"all rows": 1.0},
    )


def _settled(curve: Curve) -> tuple[list[float], list[float]]:
    """The line without its very start, where a few rows throw it up and down."""
    points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if x >= _SETTLED]
    if len(points) < 2:
        points = list(zip(curve.x, curve.y, strict=True))
    return [x for x, _ in points], [y for _, y in points]


def ranking(context: Context) -> Section:
    """NDCG and the like, and what stands first."""
    section = Section("ranking", "Ranking")
    rows = context.report.ranking
    if rows:
        section.lead = (
            "How well each request's, or user's, rows are ordered by a score, for one objective at a time; more is "
            "better."
        )
        systems = context.present(row.systems for row in rows)
        compared = context.present(row.differences for row in rows)
        columns = [
            Column("Objective"),
            Column("Metric"),
            *context.figure_columns(systems, compared),
        ]
        columns.append(Column("Groups", number=True, help="groups in which the metric is defined"))
        lines = [
            [
                Cell(row.objective),
                Cell(directed(metric_name(row.metric, row.k), True), note=f"per {row.by}, sorted by {row.scored_by}"),
                *context.figure_cells(row.systems, row.differences, True, systems, compared),
                number(row.groups, count),
            ]
            for row in rows
        ]
        section.blocks.append(Table("Ranking by objective and metric", columns, lines, heads=2))
    if context.report.coverage:
        section.blocks += [Heading("What is ranked first", "coverage"), _coverage(context)]
    return section


def _coverage(context: Context) -> Block:
    lines = []
    for row in context.report.coverage:
        share = row.items / row.catalogue if row.catalogue else None
        lines.append(
            [
                Cell(context.name(row.system)),
                Cell(f"first {row.k} per {row.by}", note=f"by {row.scored_by}"),
                number(row.items, count, note=f"of {count(row.catalogue)}, {percent(share)}"),
                number(row.gini),
                number(row.popularity),
            ]
        )
    columns = [
        Column("System"),
        Column("Taken"),
        Column("Different items", True),
        Column("Gini", True, help="0: all items alike, 1: one item alone"),
        Column("Popularity", True, help="mean share of train's items that are no more popular; 1 is the most popular"),
    ]
    return Table("Coverage and popularity of what is ranked first", columns, lines, quiet=True)


def coherence(context: Context) -> Section:
    """What cannot be, and how often it is."""
    section = Section("coherence", "Coherence")
    rows = context.report.coherence
    if not rows:
        return section
    section.lead = "Things that cannot be true together, and on how many rows they are all the same."
    lines = []
    for row in sorted(rows, key=lambda row: row.rows == 0):
        never = row.rows == 0
        state = (
            Cell("never", sort=0, tone="good", mark="✓") if never else Cell("happens", sort=1, tone="warn", mark="!")
        )
        share = row.share if row.share is None or math.isfinite(row.share) else None
        lines.append(
            [
                Cell(row.text),
                Cell("predictions" if row.kind == "prediction" else "labels"),
                Cell("" if row.system is None else context.name(row.system)),
                state,
                number(row.rows, count, note=f"of {count(row.of)}"),
                Cell(percent(share, 3), sort=share if share is not None else ""),
            ]
        )
    columns = [Column("What cannot be"), Column("In"), Column("Of"), Column("Found")]
    columns += [Column("Rows", True), Column("Share", True)]
    section.blocks.append(Table("Incoherent predictions and labels", columns, lines))
    return section
