"""The truth about the synthetic labels: the chance of each label as recmtl attributes it, not of the act behind it.

In: the impressions with the chances of click and purchase, the delays and the attribution windows. Out: per impression
the probability of its click label, of its purchase label given its click label, and the mean of its rating.

An act and its label differ where a delay outlasts its window (the label is lost), and where the same item is shown to
the same user again: a late click goes to the later impression, and a purchase to the latest click before it.

- **click**: exact. Acts are independent, so with window [t_k, w_k) of impression k (up to the next impression of the
  pair, 30 minutes at most) it is 1 − Π_i (1 − c_i P(t_k ≤ t_i + delay < w_k)) over the pair's impressions i ≤ k.
- **purchase given click**: exact, q·P(delay ≤ 7 days), where no other impression of the pair is near enough to matter.
  Elsewhere the clicks of all impressions near enough are drawn conditionally on k's label being 1, and given the
  clicks the purchase's probability is exact (Rao–Blackwell); the draws are a randomly shifted rank-1 lattice
  (Cranley & Patterson 1976; Korobov 1959) of :data:`DRAWS` points. A test measures the error against many more draws.
- **rating**: exact. Stars depend on user and item alone, so whichever purchase a rating followed, its mean is the same.

Legend: N impressions, B impressions at once, n impressions of a pair that bear on one, R draws.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from recmtl.etl.sources.synthetic_world import SECOND, Delays, Shown

__all__ = ["DRAWS", "Truth", "label_truth"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DRAWS = 127
"""R; prime, so that every lattice generator other than 0 visits every stratum once."""
_KOROBOV = 29
"""The lattice's generators are its powers modulo DRAWS; a primitive root, so that 126 dimensions differ."""
_CELLS = 2_000_000
"""Random numbers held at once: bounds memory (some 16 bytes each, a few times over)."""


@dataclass(frozen=True)
class Truth:
    """What can be known about the labels of N impressions; all (N,)."""

    click: Floats
    """P(click label = 1)."""
    purchase_given_click: Floats
    """P(purchase label = 1 | click label = 1)."""
    rating: Floats
    """Mean of the rating label in stars, given that there is one."""
    coupled: int
    """Impressions whose purchase was integrated by the lattice; the others are exact."""


def label_truth(
    shown: Shown,
    delays: Delays,
    *,
    rating_noise: float,
    click_window: timedelta,
    purchase_window: timedelta,
    by_request: bool,
    generator: np.random.Generator,
    draws: int = DRAWS,
) -> Truth:
    """State the truth per impression.

    Args:
        by_request: the logs share a request id, which is then the join: an event belongs to its own impression, and
            other impressions of the pair do not matter.
        generator: for the lattice's random shifts.
        draws: R, a prime.
    """
    stars = _rating_mean(shown.stars, rating_noise)
    pair = np.arange(shown.time.size) if by_request else _codes(shown.user, shown.item)
    order = np.lexsort((np.arange(pair.size), shown.time, pair))
    pair, c, q = pair[order], shown.click[order], shown.purchase[order]
    t = (shown.time[order] - shown.time.min()) / SECOND
    last_of_pair = np.append(pair[1:] != pair[:-1], True)
    end = np.where(last_of_pair, np.inf, np.append(t[1:], np.inf))
    end = np.minimum(end, t + click_window.total_seconds())

    click = _click(pair, t, end, c, delays)
    given = q * delays.purchase.cdf(np.full(q.size, purchase_window.total_seconds()))
    back = (delays.purchase.longest + delays.click.longest).total_seconds()
    ahead = (purchase_window + click_window).total_seconds()
    first, last = _reach(pair, t, back, ahead)
    coupled = np.flatnonzero((last > first) & (click > 0))
    for rows, n in _chunks(coupled, (last - first + 1)[coupled], draws):
        index = first[rows, None] + np.arange(n)
        given[rows] = _purchase_given_click(
            index - rows[:, None],
            t[index] - t[rows, None],
            end[index] - t[rows, None],
            c[index],
            q[index],
            delays,
            purchase_window.total_seconds(),
            generator,
            draws,
        )
    inverse = np.empty_like(order)
    inverse[order] = np.arange(order.size)
    return Truth(click[inverse], given[inverse], stars, coupled.size)


def _rating_mean(centre: Floats, noise: float) -> Floats:
    """Mean of round(centre + noise·ε) clipped to 1…5: 1 and the chance of each half star passed."""
    return np.asarray(1.0 + sum(ndtr((centre - edge) / noise) for edge in (1.5, 2.5, 3.5, 4.5)))


def _codes(user: Ints, item: Ints) -> Ints:
    return np.unique(user * (item.max() + 1) + item, return_inverse=True)[1].reshape(-1)


def _reach(pair: Ints, t: Floats, back: float, ahead: float) -> tuple[Ints, Ints]:
    """First and last row of a pair within ``back`` seconds before and ``ahead`` after; rows sorted by pair, time."""

    def walk(step: int, limit: float) -> Ints:
        reached = np.arange(t.size)
        active = reached
        while active.size:
            other = reached[active] + step
            inside = (other >= 0) & (other < t.size)
            active, other = active[inside], other[inside]
            near = (pair[other] == pair[active]) & (np.abs(t[other] - t[active]) <= limit)
            active = active[near]
            reached[active] = other[near]
        return reached

    return walk(-1, back), walk(1, ahead)


def _click(pair: Ints, t: Floats, end: Floats, c: Floats, delays: Delays) -> Floats:
    """P(click label = 1), exactly; rows sorted by pair and time."""
    delay = delays.click
    log_none = np.log1p(-c * delay.cdf(end - t))
    rows = np.arange(t.size)
    distance = 0
    while rows.size:
        distance += 1
        rows = rows[rows >= distance]
        earlier = rows - distance
        near = (pair[earlier] == pair[rows]) & (t[rows] - t[earlier] < delay.longest.total_seconds())
        rows, earlier = rows[near], earlier[near]
        lands = delay.cdf(end[rows] - t[earlier]) - delay.cdf(t[rows] - t[earlier])
        log_none[rows] += np.log1p(-c[earlier] * lands)
    return np.asarray(-np.expm1(log_none))


def _chunks(rows: Ints, widths: Ints, draws: int) -> Iterator[tuple[Ints, int]]:
    """Rows of equal width, no more at once than memory allows."""
    for n in np.unique(widths):
        same = rows[widths == n]
        at_once = max(1, _CELLS // (int(n) * draws))
        for begin in range(0, same.size, at_once):
            yield same[begin : begin + at_once], int(n)


def _lattice(size: int, dimensions: int, draws: int, generator: np.random.Generator) -> Floats:
    """(B, dimensions, R) points in [0, 1), each row and dimension shifted at random; every one is stratified."""
    generators = np.array([pow(_KOROBOV, power, draws) for power in range(dimensions)])
    points = (np.outer(generators, np.arange(draws)) % draws) / draws
    points_BnR = points + generator.random((size, dimensions, 1))
    points_BnR -= points_BnR >= 1.0
    return points_BnR


def _purchase_given_click(
    offset_Bn: Ints,
    t_Bn: Floats,
    end_Bn: Floats,
    c_Bn: Floats,
    q_Bn: Floats,
    delays: Delays,
    window: float,
    generator: np.random.Generator,
    draws: int,
) -> Floats:
    """P(purchase label = 1 | click label = 1) of B impressions, each among n of its pair.

    Args:
        offset_Bn: place relative to the impression in question, which is 0.
        t_Bn, end_Bn: begin and end of each one's click window, in seconds after the impression in question.
        c_Bn, q_Bn: probability of the click, and of the purchase given the click.
        window: of the purchase, in seconds.
    """
    size, n = t_Bn.shape
    delay = delays.click
    target = -offset_Bn[:, 0]
    close = end_Bn[np.arange(size), target]

    # An impression's click is one number v in [0, 1): none if v ≥ c, else its delay is the v/c quantile. It lands in
    # the window in question where v lies in [low, high).
    low_Bn = c_Bn * delay.cdf(-t_Bn)
    lands_Bn = np.maximum(c_Bn * delay.cdf(close[:, None] - t_Bn) - low_Bn, 0.0)
    # At least one lands: draw which is the first to do so, then condition the ones before it and it.
    misses_before_Bn = np.cumprod(np.concatenate([np.ones((size, 1)), 1 - lands_Bn[:, :-1]], axis=1), axis=1)
    ladder_Bn = np.cumsum(lands_Bn * misses_before_Bn, axis=1)
    points_BnR = _lattice(size, n + 1, draws, generator)
    chosen_BR = (points_BnR[:, :1, :] * ladder_Bn[:, -1:, None] >= ladder_Bn[:, :, None]).sum(axis=1)
    chosen_BR = np.minimum(chosen_BR, target[:, None])
    v_BnR = points_BnR[:, 1:, :]
    place_n1 = np.arange(n)[:, None]
    before_BnR = place_n1 < chosen_BR[:, None, :]
    is_chosen_BnR = place_n1 == chosen_BR[:, None, :]
    missed_BnR = v_BnR * (1 - lands_Bn)[:, :, None]
    missed_BnR += lands_Bn[:, :, None] * (missed_BnR >= low_Bn[:, :, None])
    landed_BnR = low_Bn[:, :, None] + v_BnR * lands_Bn[:, :, None]
    v_BnR = np.where(is_chosen_BnR, landed_BnR, np.where(before_BnR, missed_BnR, v_BnR))

    # From here on one entry a click: (row, impression, draw) and its time.
    row, act, draw = np.nonzero((v_BnR < c_Bn[:, :, None]) | is_chosen_BnR)
    share = np.clip(v_BnR[row, act, draw] / c_Bn[row, act], 0.0, 1.0)
    time = t_Bn[row, act] + delay.quantile(share)
    forced = is_chosen_BnR[row, act, draw]
    time = np.where(forced, np.clip(time, 0.0, np.nextafter(close[row], -np.inf)), time)

    goes_to = (t_Bn[row] <= time[:, None]).sum(axis=1) - 1
    goes_to = np.where(forced, target[row], goes_to)
    counts = time < end_Bn[row, goes_to]
    first_BRn = np.full((size, draws, n), np.inf)
    np.minimum.at(first_BRn, (row[counts], draw[counts], goes_to[counts]), time[counts])
    opens_BR = np.take_along_axis(first_BRn, target[:, None, None], axis=2)[:, :, 0]
    later_BRn = np.where(offset_Bn[:, None, :] > 0, first_BRn, np.inf)
    closes_BR = np.minimum(opens_BR + window, later_BRn.min(axis=2))

    bought = delays.purchase
    chance = q_Bn[row, act] * np.maximum(
        bought.cdf(closes_BR[row, draw] - time) - bought.cdf(opens_BR[row, draw] - time), 0.0
    )
    log_none = np.bincount(row * draws + draw, weights=np.log1p(-chance), minlength=size * draws)
    return np.asarray(-np.expm1(log_none).reshape(size, draws).mean(axis=1))
