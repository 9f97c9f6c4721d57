"""From data to pixels: scales, their round ticks, and the ticks' texts.

In: the ends of the data. Out: a :class:`Scale`, a function of a value, with ticks at numbers that a person would choose
(1, 2, 2.5 or 5 times a power of ten).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Scale", "finite", "linear", "logarithmic", "nice_ticks", "tick_texts"]


@dataclass(frozen=True)
class Scale:
    """A monotone map from values to pixels."""

    low: float
    high: float
    """The values at the two ends."""
    start: float
    end: float
    """The pixels at the two ends; ``end`` may be the smaller one."""
    ticks: tuple[float, ...]
    texts: tuple[str, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of a value; a value beyond an end stands at that end."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        if self.log:
            value = math.log(value) if value > 0 else low
        share = (value - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def linear(
    values: Iterable[float | None],
    start: float,
    end: float,
    *,
    count: int = 5,
    include: Sequence[float] = (),
    nice: bool = True,
    whole: bool = False,
) -> Scale:
    """A scale over the values.

    Args:
        values: whose ends it must hold; undefined ones are left out.
        start, end: pixels.
        count: about how many ticks.
        include: values that it must hold too.
        nice: let the ends be ticks; False: the ends of the values, with a little room.
        whole: ticks at whole numbers only.
    """
    known = [*finite(values), *include] or [0.0, 1.0]
    low, high = min(known), max(known)
    if high - low <= 1e-12 * max(1.0, abs(low), abs(high)):
        room = abs(low) * 0.1 or 0.5
        low, high = low - room, high + room
    ticks = nice_ticks(low, high, count, whole=whole)
    if nice:
        step = ticks[1] - ticks[0] if len(ticks) > 1 else high - low
        first, last = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        ticks = [first + index * step for index in range(round((last - first) / step) + 1)]
        low, high = ticks[0], ticks[-1]
    else:
        low, high = low - 0.03 * (high - low), high + 0.03 * (high - low)
        while len(ticks := nice_ticks(low, high, count, whole=whole)) < 2 and count < 12:
            count += 1
    return Scale(low, high, start, end, tuple(ticks), tick_texts(ticks))


def logarithmic(values: Iterable[float | None], start: float, end: float) -> Scale:
    """A logarithmic scale over the values above zero, of at least one decade's ticks."""
    known = [value for value in finite(values) if value > 0] or [0.1, 1.0]
    low, high = min(known) / 1.15, max(known) * 1.15
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    texts = tuple(f"{tick:.0e}".replace("e-0", "e-") if tick < 1e-4 else f"{tick:.10g}" for tick in ticks)
    return Scale(low, high, start, end, tuple(ticks), tuple(text.replace("-", "−") for text in texts), log=True)


def nice_ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them, evenly apart."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.9999)
    if whole:
        step = max(1.0, step if step != 2.5 else 3.0)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_texts(ticks: Sequence[float]) -> tuple[str, ...]:
    """The ticks with as many decimals as their step needs; thousands as k, millions as M."""
    if not ticks:
        return ()
    step = min((b - a for a, b in pairwise(ticks)), default=abs(ticks[0]) or 1.0)
    largest = max(abs(tick) for tick in ticks)
    unit, suffix = next(((u, s) for u, s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= 10 * u), (1.0, ""))
    decimals = 0
    while decimals < 8 and abs(round(step / unit, decimals) - step / unit) > 1e-6 * step / unit:
        decimals += 1
    texts = []
    for tick in ticks:
        text = f"{tick / unit:.{decimals}f}"
        zero = float(text) == 0
        texts.append(("0" if zero else f"{text}{suffix}").replace("-", "−"))
    return tuple(texts)


def finite(values: Iterable[float | None]) -> list[float]:
    """The values that are numbers."""
    return [value for value in values if value is not None and math.isfinite(value)]
