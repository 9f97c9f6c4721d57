"""Drawing as text: SVG elements from Python values, with everything from outside escaped.

In: names, numbers, texts. Out: :class:`markupsafe.Markup`, which the template takes as it is.
"""

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

__all__ = ["clip_text", "element", "join", "number", "path", "text_width"]

_NARROW, _WIDE = frozenset("iljtfrI.,:;'|!()[] "), frozenset("mwMW@%—…×")


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """``<name …>children</name>``: ``class_`` is class, ``x_y`` is x-y; None is left out, coordinates are to 0.1."""
    pairs = []
    for key, value in attributes.items():
        if value is not None:
            shown = number(value) if isinstance(value, float) else escape(str(value))
            pairs.append(f' {key.rstrip("_").replace("_", "-")}="{shown}"')
    inside = join(children)
    opened = f"<{name}{''.join(pairs)}"
    return Markup(f"{opened}>{inside}</{name}>" if inside else f"{opened}/>")  # noqa: S704 - every part is escaped


def join(parts: Sequence[object]) -> Markup:
    """The parts one after another, each escaped unless it is markup; None is nothing."""
    return Markup("").join(escape(part) for part in parts if part is not None)


def number(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def path(points: Sequence[tuple[float, float]]) -> str:
    """The ``d`` of a line through pixels; those that would not be seen to move it are left out."""
    kept: list[tuple[float, float]] = []
    for index, point in enumerate(points):
        if index in (0, len(points) - 1) or math.dist(point, kept[-1]) >= 0.8:
            kept.append(point)
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in kept)


def text_width(text: str, size: float) -> float:
    """About how many pixels a text is wide in a sans serif of ``size`` pixels; rather too many than too few."""
    return sum(0.41 if c in _NARROW else 0.98 if c in _WIDE else 0.72 if c.isupper() else 0.63 for c in text) * size


def clip_text(text: str, width: float, size: float) -> str:
    """The text, or its start and end with an ellipsis between them, within ``width`` pixels."""
    short, kept = text, len(text)
    while kept > 1 and text_width(short, size) > width:
        kept -= 1
        tail = kept // 3
        short = f"{text[: kept - tail].rstrip()}…{text[len(text) - tail :] if tail else ''}"
    return short
