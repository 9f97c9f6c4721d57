"""The charts: inline SVG, made here, so that the page needs no library and no network.

In: series of numbers. Out: :class:`Chart`, an SVG whose colours come from the page's style sheet by class (``l0`` a
line, ``m0`` a marker, ``b0`` a bar, ``h3`` a shade), with a title and a description for those who do not see it, and a
native tooltip on each mark. A chart is drawn about as large as a phone shows it, so that its texts stay legible there.

Styles: a system keeps its style, a number, through the whole report; colour, dash and marker differ together.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from recmtl.evaluation.html.palette import HEAT_STEPS, SERIES
from recmtl.evaluation.html.scales import Scale, finite, linear, logarithmic, nice_ticks, tick_texts
from recmtl.evaluation.html.svg import clip_text, element, path, text_width

__all__ = [
    "Chart",
    "Row",
    "Series",
    "bars",
    "forest",
    "heat_map",
    "interval_axis",
    "interval_cell",
    "interval_scale",
    "swatch",
    "xy_chart",
]

SIZE = 12.0
"""Of a chart's texts, in pixels."""
_WIDTH, _HEIGHT = 348.0, 260.0
CELL = 140.0
"""Width of an interval in a table's cell."""
_CELL_HEIGHT = 22.0


@dataclass(frozen=True)
class Chart:
    """A picture with the sentence under it."""

    svg: Markup
    caption: str = ""
    wide: bool = False
    """Keeps its size, and scrolls in a box of its own where the page is narrower."""


@dataclass(frozen=True)
class Series:
    """Points of one system."""

    name: str
    x: Sequence[float | None]
    y: Sequence[float | None]
    style: int = 0
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    notes: Sequence[str] = ()
    """A tooltip for each point."""
    line: bool = True
    markers: bool = False
    legend: str | None = None
    """What the legend says; by default the name. Empty: not in the legend."""

    def points(self) -> Iterator[tuple[int, float, float]]:
        """(index, x, y) of the points that are numbers."""
        for index, (x, y) in enumerate(zip(self.x, self.y, strict=True)):
            if x is not None and y is not None and math.isfinite(x) and math.isfinite(y):
                yield index, x, y

    def ends(self, index: int) -> tuple[float, float] | None:
        """The interval of a point."""
        if index >= len(self.low) or index >= len(self.high):
            return None
        low, high = self.low[index], self.high[index]
        return None if low is None or high is None or not math.isfinite(low + high) else (low, high)


@dataclass(frozen=True)
class Row:
    """A line of a forest plot or a bar."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    style: int = 0
    text: str = ""
    """The value as it is written beside it."""
    note: str = ""
    """The tooltip."""


_Pixel = tuple[float, float]
_KeyRow = list[tuple[Series, str, float]]
"""Of a legend: series, text, left end."""


@dataclass
class _Plot:
    """The ground that a chart is drawn on."""

    width: float
    height: float
    x: Scale
    y: Scale
    parts: list[Markup] = field(default_factory=list)


def xy_chart(
    title: str,
    description: str,
    series: Sequence[Series],
    *,
    x_name: str,
    y_name: str,
    caption: str = "",
    log_x: bool = False,
    log_y: bool = False,
    x_include: Sequence[float] = (),
    y_include: Sequence[float] = (),
    x_whole: bool = False,
    y_from_x: bool = False,
    diagonal: str | None = None,
    horizontals: Mapping[str, float] | None = None,
    end_labels: bool = False,
    width: float = _WIDTH,
    height: float = _HEIGHT,
    legend_above: bool = False,
) -> Chart | None:
    """Lines or points over two axes; None where there is not a point to show.

    Args:
        title, description: say what is seen, for those who do not see it.
        series: lines, with markers and error bars where they have them.
        x_name, y_name: of the axes, with units.
        caption: the sentence under the picture.
        log_x, log_y: logarithmic axes; points that are not above zero stand at the lower end.
        x_include, y_include: values that the axes must hold.
        x_whole: ticks of x at whole numbers.
        y_from_x: both axes have the same ends.
        diagonal: a name for the line y = x.
        horizontals: name → a line across at that y.
        end_labels: each line's name stands at its end; otherwise a legend in the emptiest corner.
        width, height: in pixels.
        legend_above: the legend stands above the picture, which grows by it; so it does wherever it would hide
            something inside.
    """
    shown = [one for one in series if next(one.points(), None)]
    if not shown:
        return None
    points = [(x, y, one.ends(index) or ()) for one in shown for index, x, y in one.points()]
    xs, ys = [x for x, _, _ in points], [value for _, y, ends in points for value in (y, *ends)]
    levels = {name: level for name, level in (horizontals or {}).items() if math.isfinite(level)}
    if log_y:  # an interval down to nothing must not stretch the axis by decades
        floor = min((y for _, y, _ in points if y > 0), default=1e-6) / 3
        ys = [y for y in ys if y >= floor]
    if y_from_x:
        xs = ys = [*xs, *ys]
    labels = [clip_text(one.legend or one.name, 118, SIZE) for one in shown]
    right = 14.0 + (max(text_width(label, SIZE) for label in labels) if end_labels else 0.0)
    named = [one for one in shown if one.legend != ""] if len(shown) > 1 and not end_labels else []

    def draw(above: Sequence[_KeyRow]) -> Chart | None:
        """With these rows of a legend above; without any, and no room for a legend inside, None."""
        whole = height + 17 * len(above)
        down = (whole - 42, 30.0 + 17 * len(above))
        y = (
            logarithmic([*ys, *y_include], *down)
            if log_y
            else linear(ys, *down, include=[*y_include, *levels.values()])
        )
        left = max(30.0, 13 + max(text_width(text, SIZE) for text in y.texts or ("",)))
        fit = 5 if width - right - left > 220 else 4
        if log_x:
            x = logarithmic([*xs, *x_include], left, width - right)
        else:
            x = linear(
                xs,
                left,
                width - right,
                count=fit + 1 if x_whole else fit,
                include=x_include,
                whole=x_whole,
                nice=not x_whole,
            )
        plot = _Plot(width, whole, x, y)
        dots = [dot for one in shown for dot in _along(plot, one)]
        plot.parts += _axes(plot, x_name, y_name)
        if diagonal is not None:
            plot.parts.append(_diagonal(plot, diagonal))
        for name, level in levels.items():
            plot.parts += _across(plot, name, level, dots)
        for one in shown:
            plot.parts += _series(plot, one)
        if end_labels:
            plot.parts += _end_labels(plot, shown, labels)
        elif above:
            plot.parts += _legend_above(above)
        elif named:
            legend = _legend(plot, named, dots)
            if legend is None:
                return None
            plot.parts += legend
        return Chart(_svg(title, description, width, whole, plot.parts), caption)

    rows = _rows_of(named, width)
    return draw(rows) if legend_above else draw(()) or draw(rows)


def _axes(plot: _Plot, x_name: str, y_name: str) -> Iterator[Markup]:
    x, y = plot.x, plot.y
    bottom = y.start
    for tick, text in zip(y.ticks, y.texts, strict=True):
        yield element("path", class_="grid", d=f"M{x.start:.1f} {y(tick):.1f}H{x.end:.1f}")
        yield _text(text, x.start - 7, y(tick) + 4, "tick e")
    taken = -math.inf
    for tick, text in zip(x.ticks, x.texts, strict=True):
        yield element("path", class_="axis", d=f"M{x(tick):.1f} {bottom:.1f}v4")
        half = text_width(text, SIZE) / 2
        if x(tick) - half > taken + 6:
            yield _text(text, min(x(tick), plot.width - half - 1), bottom + 17, "tick c")
            taken = x(tick) + half
    yield element("path", class_="axis", d=f"M{x.start:.1f} {bottom:.1f}H{x.end:.1f}")
    yield _text(y_name, 2.0, y.end - 16, "name")
    yield _text(x_name, (x.start + x.end) / 2, plot.height - 7, "name c")


def _diagonal(plot: _Plot, name: str) -> Markup:
    low, high = max(plot.x.low, plot.y.low), min(plot.x.high, plot.y.high)
    d = f"M{plot.x(low):.1f} {plot.y(low):.1f}L{plot.x(high):.1f} {plot.y(high):.1f}"
    return element("path", element("title", name), class_="guide", d=d)


def _across(plot: _Plot, name: str, level: float, dots: Sequence[_Pixel]) -> Iterator[Markup]:
    """A line across, with its name where it hides no point; where there is no such place, as a tooltip alone."""
    x, at = plot.x, plot.y(level)
    title = element("title", name) if name else None
    yield element("path", title, class_="guide", d=f"M{x.start:.1f} {at:.1f}H{x.end:.1f}")
    if name:
        width = text_width(name, 11)
        tops = [at - 16] + ([at + 3] if at + 18 < plot.y.start else [])
        room = x.end - width - 2
        places = [(max(x.start + 4, room - step * (room - x.start) / 8), top) for step in range(9) for top in tops]
        left, top = min(places, key=lambda place: _crowd(dots, place[0] - 2, place[1], width + 4, 14))
        if not _crowd(dots, left, top + 2, width, 10):
            yield _text(name, left, top + 11, "small halo")


def _crowd(dots: Sequence[_Pixel], left: float, top: float, width: float, height: float) -> int:
    """How many points lie in a box."""
    return sum(left <= x <= left + width and top <= y <= top + height for x, y in dots)


def _series(plot: _Plot, one: Series) -> Iterator[Markup]:
    style = one.style % SERIES
    pixels = [(index, plot.x(x), plot.y(y)) for index, x, y in one.points()]
    if one.line and len(pixels) > 1:
        name = element("title", one.name)
        yield element("path", name, class_=f"l l{style}", d=path([(x, y) for _, x, y in pixels]))
    for index, x, _ in pixels:
        ends = one.ends(index)
        if ends is not None:
            low, high = plot.y(ends[0]), plot.y(ends[1])
            d = f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 3:.1f} {low:.1f}h6M{x - 3:.1f} {high:.1f}h6"
            yield element("path", class_=f"err e{style}", d=d)
    if one.markers or len(pixels) == 1:
        for index, x, y in pixels:
            note = one.notes[index] if index < len(one.notes) else one.name
            yield _marker(style, x, y, note)


def _marker(style: int, x: float, y: float, note: str = "", size: float = 4.0) -> Markup:
    """Circle, triangle, square, diamond, triangle on its head, two crosses: a shape for each style but the last."""
    title = element("title", note) if note else None
    names = {"class_": f"m m{style}"}
    if style in (0, 7):
        return element("circle", title, cx=x, cy=y, r=size, **names)
    s, d = size, 1.4 * size
    shapes = {
        1: f"M{x:.1f} {y - 1.25 * s:.1f}l{1.25 * s:.1f} {2.2 * s:.1f}h{-2.5 * s:.1f}z",
        2: f"M{x - s:.1f} {y - s:.1f}h{2 * s:.1f}v{2 * s:.1f}h{-2 * s:.1f}z",
        3: f"M{x:.1f} {y - d:.1f}l{d:.1f} {d:.1f}l{-d:.1f} {d:.1f}l{-d:.1f} {-d:.1f}z",
        4: f"M{x:.1f} {y + 1.25 * s:.1f}l{1.25 * s:.1f} {-2.2 * s:.1f}h{-2.5 * s:.1f}z",
        5: f"M{x - s:.1f} {y - s:.1f}l{2 * s:.1f} {2 * s:.1f}m0 {-2 * s:.1f}l{-2 * s:.1f} {2 * s:.1f}",
        6: f"M{x - s:.1f} {y:.1f}h{2 * s:.1f}M{x:.1f} {y - s:.1f}v{2 * s:.1f}",
    }
    return element("path", title, d=shapes[style], **names)


def _legend(plot: _Plot, shown: Sequence[Series], dots: Sequence[_Pixel]) -> list[Markup] | None:
    """In the corner where the fewest points lie; None where it would hide some everywhere."""
    x, y = plot.x, plot.y
    texts = [clip_text(one.legend or one.name, 0.62 * (x.end - x.start), SIZE) for one in shown]
    width, height = 38 + max(text_width(text, SIZE) for text in texts), 17.0 * len(texts) + 6
    corners = [
        (left, top)
        for left in (x.end - width - 4, x.start + 6)
        for top in (y.end + 2, y.start - height - 4, (y.start + y.end - height) / 2)
    ]
    left, top = min(corners, key=lambda at: _crowd(dots, at[0] - 3, at[1] - 3, width + 6, height + 6))
    if _crowd(dots, left, top, width, height):
        return None
    parts = [element("rect", class_="plate", x=left, y=top, width=width, height=height, rx=3)]
    for number, (one, text) in enumerate(zip(shown, texts, strict=True)):
        parts += _key(one, text, left + 5, top + 11.5 + 17 * number)
    return parts


def _rows_of(shown: Sequence[Series], width: float) -> list[_KeyRow]:
    """The keys of a legend above the picture, as many a line as fit, each with its place."""
    rows: list[_KeyRow] = []
    at = width
    for one in shown:
        text = clip_text(one.legend or one.name, width - 60, SIZE)
        room = 44 + text_width(text, SIZE)
        if at + room - 10 > width:
            rows.append([])
            at = 2.0
        rows[-1].append((one, text, at))
        at += room
    return rows


def _legend_above(rows: Sequence[_KeyRow]) -> Iterator[Markup]:
    for number, row in enumerate(rows):
        for one, text, left in row:
            yield from _key(one, text, left, 9.0 + 17 * number)


def _key(one: Series, text: str, left: float, middle: float) -> Iterator[Markup]:
    style = one.style % SERIES
    if one.line:
        yield element("path", class_=f"l l{style}", d=f"M{left:.1f} {middle:.1f}h22")
    if one.markers or not one.line:
        yield _marker(style, left + 11, middle)
    yield _text(text, left + 28, middle + 4, "tick i")


def _along(plot: _Plot, one: Series) -> Iterator[tuple[float, float]]:
    """Pixels along a line, and at the ends of its intervals."""
    last: tuple[float, float] | None = None
    for index, x, y in one.points():
        point = plot.x(x), plot.y(y)
        steps = 1 if last is None or not one.line else max(1, int(math.dist(last, point) // 6))
        start = last or point
        for step in range(1, steps + 1):
            share = step / steps
            yield start[0] + share * (point[0] - start[0]), start[1] + share * (point[1] - start[1])
        for end in one.ends(index) or ():
            yield point[0], plot.y(end)
        last = point


def _end_labels(plot: _Plot, shown: Sequence[Series], labels: Sequence[str]) -> Iterator[Markup]:
    """Each name at the end of its line, moved apart where they would overlap."""
    places = sorted((plot.y(list(one.points())[-1][2]), label) for one, label in zip(shown, labels, strict=True))
    at = [y for y, _ in places]
    for index in range(1, len(at)):
        at[index] = max(at[index], at[index - 1] + 15)
    excess = max(0.0, at[-1] - plot.y.start)
    at[-1] -= excess
    for index in range(len(at) - 2, -1, -1):
        at[index] = min(at[index], at[index + 1] - 15)
    for y, (_, label) in zip(at, places, strict=True):
        yield _text(label, plot.x.end + 8, y + 4, "tick i")


def forest(
    title: str, description: str, rows: Sequence[Row], *, name_width: float = 84.0, width: float = 304.0
) -> Chart | None:
    """A line a row: a name, an interval with its point, the number; over one axis.

    A row so far off that the others would fall into a point is drawn as an arrow at its end of the axis.
    """
    known = _close(rows)
    if not known:
        return None
    text_room = max(text_width(row.text, SIZE) for row in rows) + 8
    step = 24.0
    bottom = 6 + step * len(rows)
    height = bottom + 22
    x = linear(known, name_width, width - text_room - 8, count=3, nice=False)
    parts = []
    for tick, text in zip(x.ticks, x.texts, strict=True):
        parts.append(element("path", class_="grid", d=f"M{x(tick):.1f} 4V{bottom:.1f}"))
        parts.append(_text(text, x(tick), bottom + 15, "tick c"))
    for number, row in enumerate(rows):
        middle = 6 + step * (number + 0.5)
        parts.append(_text(clip_text(row.name, name_width - 10, SIZE), 0.0, middle + 4, "tick i", row.name))
        if row.value is not None and math.isfinite(row.value):
            parts += _interval(x, row, middle)
        parts.append(_text(row.text, width, middle + 4, "tick e i"))
    return Chart(_svg(title, description, width, height, parts))


def interval_scale(rows: Sequence[Row], include: Sequence[float] = ()) -> Scale | None:
    """The axis that the intervals of a table's cells share; None without any."""
    known = finite(end for row in rows for end in (row.value, row.low, row.high))
    if not known:
        return None
    return linear(known, 7.0, CELL - 7.0, count=2, include=include, nice=False)


def interval_axis(scale: Scale, name: str) -> Markup:
    """The head of a column of intervals: its ticks."""
    parts = [element("path", class_="axis", d=f"M{scale.start:.1f} 20.5H{scale.end:.1f}")]
    taken = -math.inf
    for tick, text in zip(scale.ticks, scale.texts, strict=True):
        half = text_width(text, 11) / 2
        at = min(max(scale(tick), half), CELL - half)
        parts.append(element("path", class_="axis", d=f"M{scale(tick):.1f} 16.5v4"))
        if at - half > taken + 4:
            parts.append(_text(text, at, 12.0, "small c"))
            taken = at + half
    return _svg(
        name, f"from {tick_texts((scale.low,))[0]} to {tick_texts((scale.high,))[0]}", CELL, _CELL_HEIGHT, parts
    )


def interval_cell(scale: Scale, row: Row, reference: float | None = None) -> Markup:
    """An interval with its point, on the column's axis, and a line where all rows together are."""
    parts: list[Markup] = []
    if reference is not None:
        parts.append(element("path", class_="guide", d=f"M{scale(reference):.1f} 0V{_CELL_HEIGHT:.0f}"))
    if row.value is not None and math.isfinite(row.value):
        parts += _interval(scale, row, _CELL_HEIGHT / 2, 3.6)
    return _svg(row.note or row.text, None, CELL, _CELL_HEIGHT, parts)


def _interval(scale: Scale, row: Row, middle: float, size: float = 4.4) -> Iterator[Markup]:
    assert row.value is not None
    style = row.style % SERIES
    if row.low is not None and row.high is not None and math.isfinite(row.low + row.high):
        low, high = scale(row.low), scale(row.high)
        yield element("path", class_=f"bar e{style}", d=f"M{low:.1f} {middle:.1f}H{high:.1f}")
        if row.low < scale.low:
            yield element("path", class_=f"bar e{style}", d=f"M{low + 4:.1f} {middle - 4:.1f}l-4 4l4 4")
        if row.high > scale.high:
            yield element("path", class_=f"bar e{style}", d=f"M{high - 4:.1f} {middle - 4:.1f}l4 4l-4 4")
    if scale.low <= row.value <= scale.high:
        yield _marker(style, scale(row.value), middle, row.note, size)
    elif row.low is None:
        at, way = scale(row.value), 5 if row.value < scale.low else -5
        title = element("title", row.note) if row.note else None
        d = f"M{at + way:.1f} {middle - 4.5:.1f}l{-way} 4.5l{way} 4.5M{at:.1f} {middle:.1f}h{2 * way}"
        yield element("path", title, class_=f"bar e{style}", d=d)


def _close(rows: Sequence[Row]) -> list[float]:
    """The ends of the rows that an axis should hold: without one that alone takes up more than two thirds of it."""
    of_each = [finite((row.value, row.low, row.high)) for row in rows]
    every = [end for ends in of_each for end in ends]
    if len([ends for ends in of_each if ends]) < 3:
        return every
    for index in range(len(rows)):
        rest = [end for other, ends in enumerate(of_each) if other != index for end in ends]
        if of_each[index] and rest and max(rest) > min(rest):
            gap = max(min(rest) - max(of_each[index]), min(of_each[index]) - max(rest))
            if gap > 2 * (max(rest) - min(rest)):
                return rest
    return every


def bars(
    title: str,
    description: str,
    rows: Sequence[Row],
    *,
    caption: str = "",
    name_width: float = 116.0,
    width: float = _WIDTH,
    marks: Mapping[str, float] | None = None,
    x_name: str = "",
) -> Chart | None:
    """Horizontal bars from zero, a number at the end of each, whiskers where there are intervals.

    Args:
        title, description: for those who do not see it.
        rows: from the top down.
        caption: the sentence under it.
        name_width: room for the names, in pixels.
        width: in pixels.
        marks: name → a vertical line at that value.
        x_name: of the axis, with its unit.
    """
    known = finite(end for row in rows for end in (row.value, row.low, row.high))
    if not known:
        return None
    levels = dict(marks or {})
    text_room = max(text_width(row.text, SIZE) for row in rows) + 6
    top, step = (20.0 if levels else 4.0), 23.0
    bottom = top + step * len(rows) + 2
    height = bottom + (36 if x_name else 22)
    ends = [value for value in known if value > 0] or [0.0]
    included = [0.0, *(level for level in levels.values() if level <= 2.5 * max(ends))]
    x = linear(known, name_width, width - 12, count=4, include=included, nice=False)
    low = 0.0 if min(known) >= 0 else x.low
    reach = width - 12 - (text_room if max(known) > 0 else 0)
    high = max([*known, *included, 1e-12])
    ticks = nice_ticks(low, high, 3)
    x = Scale(low, high, name_width, reach, tuple(ticks), tick_texts(ticks))
    parts = []
    taken = -math.inf
    for tick, text in zip(x.ticks, x.texts, strict=True):
        parts.append(element("path", class_="grid", d=f"M{x(tick):.1f} {top:.1f}V{bottom:.1f}"))
        half = text_width(text, SIZE) / 2
        if x(tick) - half > taken + 6:
            parts.append(_text(text, x(tick), bottom + 15, "tick c"))
            taken = x(tick) + half
    for name, level in levels.items():
        if level <= x.high:
            parts.append(element("path", class_="guide", d=f"M{x(level):.1f} {top - 2:.1f}V{bottom:.1f}"))
            half = text_width(name, 11) / 2
            parts.append(_text(name, min(x(level), width - half), 12.0, "small c"))
    zero = x(0.0)
    for number, row in enumerate(rows):
        middle = top + step * (number + 0.5) + 1
        parts.append(_text(clip_text(row.name, name_width - 8, SIZE), 0.0, middle + 4, "tick i", row.name))
        if row.value is None or not math.isfinite(row.value):
            parts.append(_text(row.text, zero + 5, middle + 4, "tick"))
            continue
        at, style = x(row.value), row.style % SERIES
        title_ = element("title", row.note) if row.note else None
        thickness = 12.0
        start, length = min(zero, at), max(abs(at - zero), 1.0)
        parts.append(
            element(
                "rect",
                title_,
                class_=f"b b{style}",
                x=start,
                y=middle - thickness / 2,
                width=length,
                height=thickness,
                rx=1.5,
            )
        )
        edge = max(at, zero)
        if row.low is not None and row.high is not None and math.isfinite(row.low + row.high):
            first, last = x(row.low), x(row.high)
            edge = max(edge, last)
            d = f"M{first:.1f} {middle:.1f}H{last:.1f}M{first:.1f} {middle - 3:.1f}v6M{last:.1f} {middle - 3:.1f}v6"
            parts.append(element("path", class_="whisker", d=d))
        parts.append(_text(row.text, edge + 5, middle + 4, "tick i"))
    parts.append(element("path", class_="axis", d=f"M{zero:.1f} {top:.1f}V{bottom:.1f}"))
    if x_name:
        parts.append(_text(x_name, (name_width + reach) / 2, height - 4, "name c"))
    return Chart(_svg(title, description, width, height, parts), caption)


def heat_map(
    title: str,
    description: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    top: float = 1.0,
    row_notes: Sequence[str] = (),
    caption: str = "",
) -> Chart:
    """A table of shades with the number in each cell.

    Args:
        title, description: for those who do not see it.
        rows, columns: names.
        values: of each row, as long as ``columns``; 0 to ``top``.
        top: the value of the deepest shade.
        row_notes: a short text at the right of each row.
        caption: the sentence under it.
    """
    left = min(190.0, max(text_width(name, SIZE) for name in rows) + 12)
    cell = max(46.0, min(68.0, max(text_width(name, SIZE) for name in columns) + 10))
    height, head = 27.0, 22.0
    note_room = max((text_width(note, SIZE) for note in row_notes), default=-10.0) + 10
    width = left + cell * len(columns) + note_room
    parts = []
    for index, name in enumerate(columns):
        middle = left + cell * (index + 0.5)
        parts.append(_text(clip_text(name, cell - 4, SIZE), middle, 14.0, "tick c", name))
    for number, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = head + height * number
        parts.append(_text(clip_text(name, left - 8, SIZE), 0.0, y + height / 2 + 4, "tick i", name))
        for index, value in enumerate(line):
            x = left + cell * index
            if value is None or not math.isfinite(value):
                parts.append(_text("–", x + cell / 2, y + height / 2 + 4, "tick c"))
                continue
            step = round(min(max(value / top, 0.0), 1.0) * (HEAT_STEPS - 1))
            note = element("title", f"{name}, {columns[index]}: {value:.3f}")
            parts.append(
                element("rect", note, class_=f"h{step}", x=x + 1, y=y + 1, width=cell - 2, height=height - 2, rx=3)
            )
            parts.append(_text(f"{value:.2f}", x + cell / 2, y + height / 2 + 4, f"cell c i{step}"))
        if number < len(row_notes):
            x = left + cell * len(columns) + 10
            parts.append(_text(row_notes[number], x, y + height / 2 + 4, "tick"))
    return Chart(_svg(title, description, width, head + height * len(rows) + 2, parts, fixed=True), caption, wide=True)


def swatch(style: int, name: str) -> Markup:
    """A system's line and marker, for legends in the text."""
    parts = [element("path", class_=f"l l{style % SERIES}", d="M1 8h28"), _marker(style % SERIES, 15.0, 8.0)]
    return _svg(f"Line and marker of {name}", None, 30.0, 16.0, parts, fixed=True)


def _svg(
    title: str,
    description: str | None,
    width: float,
    height: float,
    parts: Sequence[Markup],
    *,
    fixed: bool = False,
) -> Markup:
    return element(
        "svg",
        element("title", title),
        element("desc", description) if description else None,
        *parts,
        role="img",
        class_="fixed" if fixed else None,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=f"{width:.0f}",
        height=f"{height:.0f}",
    )


def _text(text: str, x: float, y: float, classes: str, whole: str | None = None) -> Markup:
    """``c`` is centred at x, ``e`` ends there; a clipped text has the whole one as its tooltip."""
    title = element("title", whole) if whole is not None and whole != text else None
    return element("text", title, text, class_=classes, x=x, y=y)
