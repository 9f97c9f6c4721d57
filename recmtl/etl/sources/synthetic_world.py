"""The made-up world behind the synthetic logs: who there is, what they are shown, and what they then do.

In: :class:`WorldConfig` and one generator. Out: plain arrays (:class:`World`, :class:`Shown`, :class:`Events`); nothing
here touches a file. Every task's logit of impression (user u, item j, position p) is::

    intercept + user·a_u + item·b_j + interaction·(P_u · Q_j)/√K − position·ln(1 + p)        (position: clicks alone)

with a, b and P_u · Q_j/√K standardised over what is shown, and centred so that the interaction has no part that a
user's or an item's own effect could take. Between tasks, a, b and P correlate by ``task_correlation``. Part of every
effect is written in the user and item tables (``explained``); the rest can only be learned from behaviour.

With :class:`DriftConfig` the world moves from day to day. Every effect and factor x takes an autoregressive step,
x ← √(1 − r)·x + √r·ε, which keeps its variance and, after d days, a correlation of (1 − r)^(d/2) with where it began;
of ε the share ``explained`` is common to a segment or category, as x is. What tables say stays as it was.

Legend: U users, I items, N impressions, K factors.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from scipy.special import expit, ndtr, ndtri

from recmtl.etl.sources.base import Duration, Instant
from recmtl.settings import Settings

__all__ = [
    "TASKS",
    "Delay",
    "Delays",
    "DriftConfig",
    "Events",
    "Rates",
    "Shown",
    "Strength",
    "Strengths",
    "World",
    "WorldConfig",
    "behave",
    "build_world",
    "show",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

TASKS = ("click", "purchase", "rating")
SECOND = 1_000_000
"""Microseconds: times are int64 microseconds since 1970, in UTC."""
DAY = 86_400 * SECOND

_SEGMENTS, _COUNTRIES, _CATEGORIES, _TAGS = 12, 8, 20, 40
_INTERESTS, _TAGS_PER_ITEM = 3, 3


class Delay(Settings):
    """How long an event waits for the next one: a log-normal time, cut off at the longest."""

    median: Duration
    """Half of the uncut delays are shorter."""
    spread: float = Field(gt=0, le=5)
    """Standard deviation of the delay's natural logarithm."""
    longest: Duration
    """Nobody waits longer than this."""

    @model_validator(mode="after")
    def _median_within(self) -> "Delay":
        if self.median >= self.longest:
            raise ValueError("delays: `median` must be shorter than `longest`")
        return self

    @property
    def _top(self) -> float:
        return float(ndtr(np.log(self.longest / self.median) / self.spread))

    def cdf(self, seconds: Floats) -> Floats:
        """Probability that the delay is at most so many seconds; 0 at and below 0."""
        seconds = np.clip(seconds, 0.0, self.longest.total_seconds())
        with np.errstate(divide="ignore"):
            score = (np.log(seconds) - np.log(self.median.total_seconds())) / self.spread
        return np.asarray(ndtr(score) / self._top)

    def quantile(self, share: Floats) -> Floats:
        """The delay in seconds below which that share (in [0, 1]) of the delays lies."""
        return np.asarray(self.median.total_seconds() * np.exp(self.spread * ndtri(share * self._top)))


class Delays(Settings):
    """How long each event waits. The tails beyond the attribution windows (30 minutes, 7 days, 30 days) are lost."""

    click: Delay = Delay(median=timedelta(seconds=40), spread=1.5, longest=timedelta(hours=2))
    """From the impression to the click."""
    purchase: Delay = Delay(median=timedelta(hours=8), spread=1.7, longest=timedelta(days=14))
    """From the click to the purchase."""
    rating: Delay = Delay(median=timedelta(days=2), spread=1.2, longest=timedelta(days=60))
    """From the purchase to the rating."""


class Strength(Settings):
    """Standard deviations of one task's effects: in logits for click and purchase, in unrounded stars for rating."""

    user: float = Field(ge=0, le=10)
    """The user's own effect, whatever the item."""
    item: float = Field(ge=0, le=10)
    """The item's own effect, whoever the user."""
    interaction: float = Field(ge=0, le=10)
    """This user with this item: a product of latent factors."""


class Strengths(Settings):
    """How strongly each task depends on whom it is about."""

    click: Strength = Strength(user=0.73, item=0.63, interaction=0.88)
    """Given the impression."""
    purchase: Strength = Strength(user=0.5, item=0.5, interaction=0.6)
    """Given the click."""
    rating: Strength = Strength(user=0.4, item=0.5, interaction=0.5)
    """The stars, given the rating."""
    rating_noise: float = Field(default=0.7, gt=0, le=10)
    """Standard deviation of what else moves the stars."""


class Rates(Settings):
    """How often things happen, before any window cuts a label off."""

    click: float = Field(default=0.18, gt=0, lt=1)
    """Mean probability of a click, given the impression."""
    purchase: float = Field(default=0.18, gt=0, lt=1)
    """Mean probability of a purchase, given the click, over all impressions."""
    rating: float = Field(default=0.5, gt=0, lt=1)
    """Probability of a rating, given the purchase."""
    stars: float = Field(default=3.6, ge=1.5, le=4.5)
    """Centre of the stars before rounding to 1, 2, 3, 4, 5."""


class DriftConfig(Settings):
    """How the world moves from day to day. At 0 throughout it stands still."""

    tastes: float = Field(default=0.0, ge=0, le=1)
    """Share of the variance of every effect and factor that is drawn anew each day (r above)."""
    popularity: float = Field(default=0.0, ge=0, le=1)
    """The same of the logarithm of what share of the requests an item is shown in."""
    new_users: float = Field(default=0.0, ge=0, le=1)
    """Share of all users who come first on each day after the first."""
    new_items: float = Field(default=0.0, ge=0, le=1)
    """Share of all items that are shown first on each day after the first."""

    @property
    def moves(self) -> bool:
        """Whether anything does."""
        return any((self.tastes, self.popularity, self.new_users, self.new_items))


class WorldConfig(Settings):
    """Size and character of the made-up world."""

    users: int = Field(default=10_000, ge=1)
    """How many users there are."""
    items: int = Field(default=2_000, ge=1)
    """How many items there are."""
    impressions: int = Field(default=500_000, ge=1)
    """How many impressions are logged."""
    days: int = Field(default=60, ge=1)
    """Over how many days; purchases want more than their window of 7."""
    start: Instant = datetime(2025, 1, 6, tzinfo=UTC)
    """The first day."""
    seed: int = Field(default=1, ge=0)
    """Everything random hangs on this: the same parameters and seed give the same bytes."""
    request_sizes: tuple[int, int] = (4, 12)
    """Fewest and most items that one request shows, at positions 0, 1, 2, …; no item twice."""
    zipf: float = Field(default=0.8, ge=0, le=3)
    """An item of popularity rank r is shown in proportion to r to the minus this."""
    activity: float = Field(default=0.8, ge=0, le=3)
    """How unequally users visit: standard deviation of the logarithm of their share of the requests."""
    factors: int = Field(default=4, ge=1, le=64)
    """K, the rank of the interaction."""
    explained: float = Field(default=0.9, ge=0, le=1)
    """Share of the variance of users' and items' effects and factors that follows from what their tables say."""
    content_dim: int = Field(default=16, ge=0, le=1024)
    """Length of the items' content vector, a noisy image of their factors; 0 leaves it out (CSV holds no vectors)."""
    strengths: Strengths = Strengths()
    """How strongly each task depends on user, item and both."""
    position: float = Field(default=0.4, ge=0, le=10)
    """Position bias: a click's logit falls by this times ln(1 + position)."""
    task_correlation: float = Field(default=0.4, ge=-0.5, le=1)
    """Correlation between any two tasks' effects (users', items', interaction); below 0 they pull apart."""
    rates: Rates = Rates()
    """How often things happen."""
    delays: Delays = Delays()
    """How long they take."""
    drift: DriftConfig = DriftConfig()
    """How all this moves from day to day."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> "WorldConfig":
        fewest, most = self.request_sizes
        if not 1 <= fewest <= most:
            raise ValueError("request_sizes: write [fewest, most], both at least 1")
        if most > self.items:
            raise ValueError(f"request_sizes: a request cannot show {most} different items out of {self.items}")
        for name, count in (("new_users", self.users), ("new_items", self.items)):
            later = round(getattr(self.drift, name) * count) * (self.days - 1)
            least = most if name == "new_items" else 1
            if count - later < least:
                raise ValueError(
                    f"drift.{name}: {later} of {count} come after the first of {self.days} days, which leaves too few "
                    "for it; lower it"
                )
        return self


@dataclass(frozen=True)
class World:
    """Users, items and their effects. Task-wise arrays are in the order of :data:`TASKS`."""

    visits: Floats
    """(U,) each user's share of the requests."""
    popularity: Floats
    """(I,) each item's share of what is shown, before requests exclude repeats."""
    user_effect: Floats
    """(3, U) in units of ``strengths``: mean 0 and variance 1 over what is shown."""
    item_effect: Floats
    """(3, I) likewise."""
    taste: Floats
    """(3, U, K) users' factors, one set a task; taste · trait / √K has mean 0 and variance 1 over what is shown."""
    trait: Floats
    """(I, K) items' factors."""
    segment: Ints
    """(U,) what the user table says, as codes."""
    country: Ints
    interests: Ints
    """(U, 3) categories that the user says they like."""
    age: Floats
    visits_per_week: Floats
    category: Ints
    """(I,) what the item table says, as codes."""
    tags: Ints
    """(I, 3)"""
    price: Floats
    quality: Floats
    content: Floats
    """(I, content_dim)"""


@dataclass(frozen=True)
class Shown:
    """The impressions, in order of time, and the chances of what follows each; all of length N."""

    request: Ints
    user: Ints
    item: Ints
    position: Ints
    time: Ints
    """Microseconds since 1970; the same for all of a request."""
    click: Floats
    """Probability that this impression is clicked at all."""
    purchase: Floats
    """Probability that such a click is followed by a purchase at all; depends on user and item alone."""
    stars: Floats
    """Mean of the stars before rounding; depends on user and item alone, so delays cannot move a rating's mean."""
    main_click: Floats
    """Probability of a click with the interaction at its mean, 0: user, item and position alone."""


@dataclass(frozen=True)
class Events:
    """Events of one kind."""

    impression: Ints
    """Which impression each came from: a row of :class:`Shown`."""
    time: Ints
    """Microseconds since 1970."""
    value: Ints | None = None
    """rating: the stars, 1 to 5."""


def _standard(values: Floats, weight: Floats) -> Floats:
    """Values with weighted mean 0 and variance 1 along the last axis; constants become 0."""
    centred = values - (values * weight).sum(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2 * weight).sum(axis=-1, keepdims=True))
    return np.asarray(centred / np.where(deviation > 0, deviation, 1.0))


def _correlated(drawn: Floats, weight: Floats, correlation: float) -> Floats:
    """Three sets of effects (3, …, size) → three that correlate pairwise as asked, over what is shown.

    What the draws correlate by chance is taken out first, by the inverse root of their covariance; where they are too
    few to be told apart (less than three users), what is left correlates as it must.
    """
    flat = (drawn * np.sqrt(weight)).reshape(3, -1)
    spread, axes = np.linalg.eigh(flat @ flat.T)
    kept = spread > 1e-9 * max(spread.max(), 1e-300)
    apart = axes[:, kept] @ np.diag(spread[kept] ** -0.5) @ axes[:, kept].T
    own = np.sqrt(max(1 - correlation, 0.0))
    common = (np.sqrt(max(1 + 2 * correlation, 0.0)) - own) / 3
    return np.asarray(np.tensordot((own * np.eye(3) + common) @ apart, drawn, axes=1))


def build_world(config: WorldConfig, generator: np.random.Generator) -> World:
    """Draw users and items."""
    told, own = np.sqrt(config.explained), np.sqrt(1 - config.explained)
    count_u, count_i, rank = config.users, config.items, config.factors

    log_visits = config.activity * generator.standard_normal(count_u)
    visits = np.exp(log_visits)
    visits /= visits.sum()
    popularity = generator.permutation((1.0 + np.arange(count_i)) ** -config.zipf)
    popularity /= popularity.sum()

    segment = generator.integers(_SEGMENTS, size=count_u)
    country = generator.integers(_COUNTRIES, size=count_u)
    age = generator.standard_normal(count_u)
    frequency = log_visits + 0.3 * generator.standard_normal(count_u)
    category = generator.integers(_CATEGORIES, size=count_i)
    price: Floats = generator.standard_normal(count_i)
    quality = generator.standard_normal(count_i)

    def blended(said: Floats, untold: Floats, weight: Floats) -> Floats:
        parts = (_correlated(_standard(part, weight), weight, config.task_correlation) for part in (said, untold))
        return _standard(told * _standard(next(parts), weight) + own * _standard(next(parts), weight), weight)

    def effects(groups: list[tuple[Ints, int]], numbers: list[Floats], weight: Floats) -> Floats:
        size = weight.size
        said = np.zeros((3, size))
        for codes, kinds in groups:
            said += generator.standard_normal((3, kinds))[:, codes]
        for number in numbers:
            said += generator.choice([-1.0, 1.0], size=(3, 1)) * _standard(number, weight)
        return blended(said, generator.standard_normal((3, size)), weight)

    user_effect = effects([(segment, _SEGMENTS), (country, _COUNTRIES)], [age, frequency], visits)
    item_effect = effects([(category, _CATEGORIES)], [price, quality], popularity)

    segment_taste = generator.standard_normal((3, rank, _SEGMENTS))
    tastes = blended(segment_taste[:, :, segment], generator.standard_normal((3, rank, count_u)), visits)
    category_trait = generator.standard_normal((rank, _CATEGORIES))
    traits = told * category_trait[:, category] + own * generator.standard_normal((rank, count_i))
    traits = _standard(traits, popularity)
    # With few users or items the factors are not quite uncorrelated: bring the products' variance to exactly 1.
    taste_moment = np.einsum("tku,u,tlu->tkl", tastes, visits, tastes, optimize=True)
    trait_moment = np.einsum("ki,i,li->kl", traits, popularity, traits, optimize=True)
    product_variance = np.einsum("tkl,kl->t", taste_moment, trait_moment) / rank
    tastes /= np.sqrt(np.where(product_variance > 0, product_variance, 1.0))[:, None, None]

    liking = np.einsum("ku,kc->uc", tastes[0], category_trait) / np.sqrt(rank)
    liking += 0.3 * generator.standard_normal(liking.shape)
    interests = np.argsort(-liking, axis=1, kind="stable")[:, :_INTERESTS]
    fitting = traits.T @ generator.standard_normal((rank, _TAGS)) / np.sqrt(rank)
    fitting += 0.3 * generator.standard_normal(fitting.shape)
    tags = np.argsort(-fitting, axis=1, kind="stable")[:, :_TAGS_PER_ITEM]
    content = traits.T @ generator.standard_normal((rank, config.content_dim)) / np.sqrt(rank)
    content += 0.3 * generator.standard_normal(content.shape)

    return World(
        visits=visits,
        popularity=popularity,
        user_effect=user_effect,
        item_effect=item_effect,
        taste=np.ascontiguousarray(tastes.transpose(0, 2, 1)),
        trait=np.ascontiguousarray(traits.T),
        segment=segment,
        country=country,
        interests=interests,
        age=np.clip(np.round(40 + 12 * age), 16, 90),
        visits_per_week=np.round(3 * np.exp(frequency), 2),
        category=category,
        tags=tags,
        price=np.round(np.exp(3.0 + 0.8 * price), 2).astype(np.float64),
        quality=np.round(quality, 3),
        content=content,
    )


def _request_sizes(config: WorldConfig, generator: np.random.Generator) -> Ints:
    """Sizes of the requests, adding up to the impressions exactly; the last one may be cut short."""
    fewest, most = config.request_sizes
    sizes = generator.integers(fewest, most, endpoint=True, size=config.impressions // fewest + 1)
    ends = np.cumsum(sizes)
    last = int(np.searchsorted(ends, config.impressions))
    sizes = sizes[: last + 1]
    sizes[last] -= ends[last] - config.impressions
    return sizes


def _request_times(config: WorldConfig, count: int, generator: np.random.Generator) -> Ints:
    """Rising times over the days: nights are quiet, evenings are busy."""
    hour = np.linspace(0.0, 24.0, 97)
    busy = np.cumsum(1.0 + 0.8 * np.sin((hour - 10.0) / 24.0 * 2 * np.pi))
    busy = (busy - busy[0]) / (busy[-1] - busy[0])
    day = generator.integers(config.days, size=count)
    within = np.interp(generator.random(count), busy, hour / 24.0)
    begin = int(config.start.timestamp()) * SECOND
    return np.sort(begin + day * DAY + (within * DAY).astype(np.int64))


def _draw_items(request: Ints, popularity: Floats, generator: np.random.Generator) -> Ints:
    """Items by popularity, no item twice in a request."""
    ladder = np.cumsum(popularity)
    ladder /= ladder[-1]
    items = np.searchsorted(ladder, generator.random(request.size), side="right")

    def repeats() -> Ints:
        key = request * popularity.size + items
        order = np.argsort(key, kind="stable")
        again = np.flatnonzero(key[order[1:]] == key[order[:-1]]) + 1
        return np.sort(order[again])

    # Redrawing repeats settles nearly all in a few rounds; requests nearly as long as the catalogue are drawn whole.
    for _ in range(30):
        again = repeats()
        if again.size == 0:
            return items
        items[again] = np.searchsorted(ladder, generator.random(again.size), side="right")
    for stuck in np.unique(request[repeats()]):
        rows = np.flatnonzero(request == stuck)
        keys = np.log(popularity) + generator.gumbel(size=popularity.size)
        items[rows] = np.argsort(-keys, kind="stable")[: rows.size]
    return items


def _intercept(logit: Floats, rate: float) -> float:
    """What to add to the logits so that their mean probability is the rate."""
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(logit + middle).mean() < rate else (low, middle)
    return (low + high) / 2


def show(
    config: WorldConfig, world: World, generator: np.random.Generator, drift: np.random.Generator | None = None
) -> Shown:
    """Draw the impressions and state the chances of what follows each.

    Args:
        config, world: what there is.
        generator: what is shown hangs on it.
        drift: how the world moves hangs on it; needed where it does.
    """
    sizes = _request_sizes(config, generator)
    times = _request_times(config, sizes.size, generator)
    request = np.repeat(np.arange(sizes.size), sizes)
    position = np.arange(request.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    if config.drift.moves:
        assert drift is not None
        user, item, parts = _drawn_day_by_day(config, world, request, times, generator, drift)
    else:
        visitors = generator.choice(config.users, size=sizes.size, p=world.visits)
        user = visitors[request]
        item = _draw_items(request, world.popularity, generator)
        parts = np.stack([_parts(config, world, task, user, item) for task in range(3)])

    main, both = parts[0]
    main = main - config.position * np.log1p(position)
    main = main + _intercept(main + both, config.rates.click)
    bought = parts[1].sum(axis=0)
    return Shown(
        request=request,
        user=user,
        item=item,
        position=position,
        time=times[request],
        click=expit(main + both),
        purchase=expit(bought + _intercept(bought, config.rates.purchase)),
        stars=config.rates.stars + parts[2].sum(axis=0),
        main_click=expit(main),
    )


def _parts(config: WorldConfig, world: World, task: int, user: Ints, item: Ints) -> Floats:
    """(2, N): users' and items' own effects, and the interaction, in units of the task."""
    strength = (config.strengths.click, config.strengths.purchase, config.strengths.rating)[task]
    main = strength.user * world.user_effect[task][user] + strength.item * world.item_effect[task][item]
    both = np.einsum("nk,nk->n", world.taste[task][user], world.trait[item]) / np.sqrt(config.factors)
    return np.stack([main, strength.interaction * both])


def _drawn_day_by_day(
    config: WorldConfig,
    world: World,
    request: Ints,
    times: Ints,
    generator: np.random.Generator,
    drift: np.random.Generator,
) -> tuple[Ints, Ints, Floats]:
    """Users, items and (3, 2, N) parts of the impressions, each day's from the world as it is by then."""
    first_user = _first_days(config.users, config.drift.new_users, config.days, drift)
    first_item = _first_days(config.items, config.drift.new_items, config.days, drift)
    day = (times - int(config.start.timestamp()) * SECOND) // DAY
    user, item = np.empty(request.size, np.int64), np.empty(request.size, np.int64)
    parts = np.empty((3, 2, request.size))
    for today in range(config.days):
        if today:
            world = _moved(config, world, drift)
        rows = np.flatnonzero(day[request] == today)
        if not rows.size:
            continue
        visits = np.where(first_user <= today, world.visits, 0.0)
        popularity = np.where(first_item <= today, world.popularity, 0.0)
        first = request[rows[0]]
        visitors = generator.choice(config.users, size=request[rows[-1]] - first + 1, p=visits / visits.sum())
        user[rows] = visitors[request[rows] - first]
        there = np.flatnonzero(popularity)
        item[rows] = there[_draw_items(request[rows], popularity[there], generator)]
        for task in range(3):
            parts[task][:, rows] = _parts(config, world, task, user[rows], item[rows])
    return user, item, parts


def _first_days(count: int, share: float, days: int, generator: np.random.Generator) -> Ints:
    """On which day each of ``count`` comes first: as many on every day after the first."""
    first = np.zeros(count, np.int64)
    new = round(share * count)
    order = generator.permutation(count)
    for today in range(1, days):
        first[order[(today - 1) * new : today * new]] = today
    return first


def _moved(config: WorldConfig, world: World, generator: np.random.Generator) -> World:
    """The world a day later."""
    told, own = np.sqrt(config.explained), np.sqrt(1 - config.explained)

    def stepped(values: Floats, groups: Ints, kinds: int, share: float, weight: Floats) -> Floats:
        """Values whose last axis is users or items."""
        shape = values.shape[:-1]
        fresh = told * generator.standard_normal((*shape, kinds))[..., groups]
        fresh = _standard(fresh + own * generator.standard_normal(values.shape), weight)
        return np.asarray(np.sqrt(1 - share) * values + np.sqrt(share) * fresh)

    share, drift = config.drift.tastes, config.drift.popularity
    taste = stepped(world.taste.transpose(0, 2, 1), world.segment, _SEGMENTS, share, world.visits)
    trait = stepped(world.trait.T, world.category, _CATEGORIES, share, world.popularity)
    shown = np.log(world.popularity)
    shown = np.sqrt(1 - drift) * (shown - shown.mean()) + np.sqrt(drift) * generator.permutation(shown - shown.mean())
    popularity = np.exp(shown)
    return replace(
        world,
        popularity=popularity / popularity.sum(),
        user_effect=stepped(world.user_effect, world.segment, _SEGMENTS, share, world.visits),
        item_effect=stepped(world.item_effect, world.category, _CATEGORIES, share, world.popularity),
        taste=np.ascontiguousarray(taste.transpose(0, 2, 1)),
        trait=np.ascontiguousarray(trait.T),
    )


def behave(config: WorldConfig, shown: Shown, generator: np.random.Generator) -> dict[str, Events]:
    """Draw what the users do, task → events in the order of :class:`Shown`; all of it, recorded or not."""

    def after(cause: Events, chance: Floats, delay: Delay) -> Events:
        happens = generator.random(chance.size) < chance
        waited = delay.quantile(generator.random(int(happens.sum())))
        return Events(cause.impression[happens], cause.time[happens] + (waited * SECOND).astype(np.int64))

    everything = Events(np.arange(shown.time.size), shown.time)
    clicks = after(everything, shown.click, config.delays.click)
    purchases = after(clicks, shown.purchase[clicks.impression], config.delays.purchase)
    ratings = after(purchases, np.full(purchases.time.size, config.rates.rating), config.delays.rating)
    noise = config.strengths.rating_noise * generator.standard_normal(ratings.time.size)
    stars = np.clip(np.round(shown.stars[ratings.impression] + noise), 1, 5).astype(np.int64)
    return {"click": clicks, "purchase": purchases, "rating": Events(ratings.impression, ratings.time, stars)}
