"""Parts of the rows: a table for each target that is a forest plot too, so that sorting it sorts the picture."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from recmtl.evaluation.html.blocks import Block, Cell, Column, Filters, Heading, Items, Prose, Section, Table
from recmtl.evaluation.html.charts import Row, interval_axis, interval_cell, interval_scale
from recmtl.evaluation.html.sections.context import TONES, Context, first, number, unique
from recmtl.evaluation.html.words import count, directed, interval, metric_name, num, percent, plain, plural, signed
from recmtl.findings import Difference, Figure, SliceRow

__all__ = ["CELLS", "slices"]

CELLS = 15_000
"""Of all targets' tables together, so that the page stays small; small parts give way first, and all are in
``report.json``."""
_NAMED = 8
"""Parts that are named above the tables."""

_Field = tuple[Column, Callable[[SliceRow], Cell]]
"""A column, and a part's cell in it."""


def slices(context: Context) -> Section:
    """Slices, target by target."""
    section = Section("slices", "Slices")
    rows = context.report.slices
    if not rows:
        return section
    targets = context.ordered(row.target for row in rows)
    small = sum(row.small for row in rows)
    parts, cuts = {(row.slice, row.value) for row in rows}, {row.slice for row in rows}
    section.lead = (
        f"{plural(len(parts), 'part')} of the rows, cut by {plural(len(cuts), 'property', 'properties')}. The dashed "
        f"line in each row is the figure on all rows, or no difference; bars are {context.confidence} intervals, not "
        "corrected for how many there are."
    )
    if small:
        section.blocks.append(
            Prose(
                f"{plural(small, 'row')} of the tables, marked “small”, have too few rows, positives or users for the "
                "figures to mean much."
            )
        )
    section.blocks += _compared(context, rows)
    section.blocks.append(Filters(targets, unique(row.slice for row in rows)))
    for target in targets:
        mine = [row for row in rows if row.target == target]
        metrics = len(unique(metric for row in mine for metric in row.systems.get("model", {})))
        width = 5 + metrics + 2 * len(unique(other for row in mine for other in row.differences))
        kept, more = first(
            sorted(mine, key=lambda row: row.small), CELLS // len(targets) // width, f"parts of {target}"
        )
        places = {id(row) for row in kept}
        shown = [row for row in mine if id(row) in places]
        section.blocks += [Heading(target, f"slices-{targets.index(target)}"), _table(context, target, shown), *more]
    return section


def _compared(context: Context, rows: Sequence[SliceRow]) -> Iterator[Block]:
    """How many parts are better and worse than another model, how many would be by chance, and which are worse."""
    for other in context.present(row.differences for row in rows):
        if other in ("baseline", "optimum"):
            continue
        said: dict[str, list[tuple[float, str]]] = {}
        for row in rows:
            metric = _main(context, row.target, [row])
            difference = row.differences.get(other, {}).get(metric)
            if difference is None or difference.value is None or row.small:
                continue
            outcome = context.judge(difference, context.direction(row.target, metric))
            ends = interval(difference, sign=True)
            part = f"{row.target}, {plain(row.slice).lower()} {row.value}"
            text = f"{part}: {metric_name(metric)} {signed(difference.value)}"
            if outcome:
                said.setdefault(outcome, []).append((abs(difference.value), f"{text} ({ends})" if ends else text))
        judged = sum(map(len, said.values()))
        if not judged:
            continue
        counts = ", ".join(f"{outcome} in {count(len(found))}" for outcome, found in said.items())
        chance = judged * (1 - context.report.about.confidence)
        yield Prose(
            f"Against {context.short(other)}, on each target's main metric and small parts aside: {counts}. If there "
            f"were no difference at all, about {chance:.0f} of these {count(judged)} would still look better or worse."
        )
        worse = sorted(said.get("worse", []), reverse=True)
        if worse:
            more = [f"and {count(len(worse) - _NAMED)} more"] if len(worse) > _NAMED else []
            yield Prose("Worse in:")
            yield Items([*(text for _, text in worse[:_NAMED]), *more])


def _main(context: Context, target: str, rows: Sequence[SliceRow]) -> str:
    """The metric that the pictures show: the target's headline metric, or whatever the slices have."""
    lead = context.lead_metric(target)
    metrics = unique(metric for row in rows for values in row.systems.values() for metric in values)
    if lead is not None and lead.metric in metrics:
        return lead.metric
    return metrics[0] if metrics else ""


def _table(context: Context, target: str, rows: list[SliceRow]) -> Table:
    main = _main(context, target, rows)
    direction = context.direction(target, main)
    others = context.present(row.differences for row in rows)
    compared = [other for other in others if other not in ("baseline", "optimum")] or others[:1]
    fields: list[_Field] = [
        (Column("Slice"), lambda row: Cell(plain(row.slice))),
        (Column("Part"), _part),
        (Column(directed(metric_name(main), direction), True), partial(_figure_cell, main)),
        *_picture(metric_name(main), rows, partial(_figure_row, main), context.overall(target, main)),
    ]
    for other in compared:
        name = f"Model − {other}"
        column = Column(name, True, help="paired, on the same rows, with its interval and p-value")
        fields.append((column, partial(_gap_cell, context, main, other)))
        fields += _picture(name, rows, partial(_gap_row, context, main, other), 0.0)
    fields.append((Column("Rows", True), lambda row: number(row.rows, count)))
    if any(row.positives is not None for row in rows):
        fields.append((Column("Positives", True), _positives))
    for metric in unique(metric for row in rows for metric in row.systems.get("model", {})):
        if metric != main:
            column = Column(directed(metric_name(metric), context.direction(target, metric)), True)
            fields.append((column, partial(_figure_cell, metric)))
    return Table(
        f"{target} by slice: {metric_name(main)} of this model" + "".join(f", against {other}" for other in compared),
        [column for column, _ in fields],
        [[cell(row) for _, cell in fields] for row in rows],
        [{"slice": row.slice, "small": "1" if row.small else ""} for row in rows],
        heads=2,
        kind="forest",
    )


def _picture(
    name: str, rows: Sequence[SliceRow], row_of: Callable[[SliceRow], Row], reference: float | None
) -> Iterator[_Field]:
    """A column of intervals on one axis, which is made for the parts that are not small."""
    clear = [row_of(row) for row in rows if not row.small] or [row_of(row) for row in rows]
    scale = interval_scale(clear, [] if reference is None else [reference])
    if scale is not None:
        column = Column(f"{name}, interval", picture=interval_axis(scale, f"Axis of {name}"), sorts=False)
        yield column, lambda row: Cell(interval_cell(scale, row_of(row), reference))


def _part(row: SliceRow) -> Cell:
    return Cell(row.value, note="! small" if row.small else "")


def _positives(row: SliceRow) -> Cell:
    rate = percent(row.positives / row.rows) if row.positives is not None and row.rows else ""
    return number(row.positives, count, note=rate)


def _figure_cell(metric: str, row: SliceRow) -> Cell:
    figure = row.systems.get("model", {}).get(metric, Figure())
    return number(figure.value, note=interval(figure))


def _gap_cell(context: Context, metric: str, other: str, row: SliceRow) -> Cell:
    difference = row.differences.get(other, {}).get(metric, Difference())
    return context.difference_cell(difference, context.direction(row.target, metric))


def _figure_row(metric: str, row: SliceRow) -> Row:
    figure = row.systems.get("model", {}).get(metric, Figure())
    text = f"{num(figure.value)} ({interval(figure)})" if interval(figure) else num(figure.value)
    style, note = 2 if row.small else 0, f"{metric_name(metric)} {text}"
    return Row(row.value, figure.value, figure.low, figure.high, style, text, note)


def _gap_row(context: Context, metric: str, other: str, row: SliceRow) -> Row:
    difference = row.differences.get(other, {}).get(metric, Difference())
    said = context.judge(difference, context.direction(row.target, metric))
    style = 2 if row.small else {"good": 3, "bad": 1}.get(TONES[said], 7)
    ends = interval(difference, sign=True)
    text = (f"{signed(difference.value)} ({ends}) {said}" if ends else f"{signed(difference.value)} {said}").rstrip()
    note = f"Model − {other}: {text}"
    return Row(row.value, difference.value, difference.low, difference.high, style, text, note)
