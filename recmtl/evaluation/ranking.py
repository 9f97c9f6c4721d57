"""How well the rows of each request, or of each user, are ranked, and which items are ranked first.

In: what several systems predict for the same rows, each row's group, and possibly a fused score and the items. Out:
:class:`~recmtl.findings.RankingRow` and :class:`~recmtl.findings.Coverage`.

A list holds a group's rows on which the objective's label is observed (a condensed list: Sakai 2007, Alternatives to
Bpref); rows that are masked are neither hits nor misses. Metrics are means over the lists in which they are defined,
each list counting once, and are those of :mod:`recmtl.metrics.ranking`: expected values where scores are equal. The
gain of a row in NDCG is its label for binary and regression tasks (a negative one gains nothing), and 2^level − 1 for
ordinal ones (Burges et al. 2005); average precision, recall and reciprocal rank need hits: positive labels, and for
other kinds of task the labels from ``relevant_from`` on.

AUC within lists comes in two kinds: ``auc`` counts each list once, ``auc_by_rows`` by its rows.

The interval is that of a mean over lists clustered by user (:mod:`recmtl.evaluation.influence`). The rows are worked
through in blocks of whole users, whose sums are all that is kept: 50 million rows take a few bytes each.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recmtl.errors import UserError
from recmtl.etl.slicing import ItemCodes
from recmtl.evaluation.influence import Spread, difference_of, figure_of
from recmtl.evaluation.score import Scored
from recmtl.findings import Coverage, RankingRow
from recmtl.metrics import ranking as lists_of
from recmtl.metrics.base import FloatArray
from recmtl.metrics.ranking import Lists
from recmtl.settings import Settings
from recmtl.tasks import Task, Tasks

__all__ = ["AUC_BY_ROWS", "FUSED", "Ranking", "RankingConfig", "gains", "ranking"]

By = Literal["request", "user"]
_Metric = tuple[str, int | None]
"""Name and k."""

FUSED = "fused"
"""What the fused score is called in ``scored_by``."""

AUC_BY_ROWS = "auc_by_rows"
"""The mean of the lists' AUCs weighted by their rows (Zhu et al. 2017); ``auc`` counts each list once."""

_BLOCK = 2_000_000
"""Rows that are sorted together, but for a user who has more."""


class RankingConfig(Settings):
    """How ranked lists are judged."""

    by: Literal["auto", "request", "user"] = "auto"
    """What makes a list. auto: the request, where at least half of the rows share theirs with others; else the user."""
    ks: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(5, 10), min_length=1)
    """How many rows from the top count: NDCG@k, MAP@k, recall@k, and coverage."""
    score: str | None = None
    """The prediction column that sorts the rows for every objective. By default the fused score does, where the model
    has one, and beside it each task's own prediction sorts for that task."""
    smallest_list: int = Field(default=2, ge=2)
    """Lists of fewer rows say nothing of ranking and are left out."""
    relevant_from: dict[str, float] = {}
    """Ordinal or regression task to the smallest label that counts as a hit (4 of 5 stars); a task of these kinds that
    is not named has NDCG alone."""

    def check(self, tasks: Tasks) -> None:
        """Refuse names that these tasks do not have.

        Raises:
            UserError: ``score`` is no prediction column, or ``relevant_from`` names no ordinal or regression task.
        """
        columns = [column for name in tasks for column in tasks.prediction_columns(name)]
        if self.score is not None and self.score not in columns:
            raise UserError(f"evaluation.ranking.score: no prediction column {_called(self.score, columns)}")
        rated = [name for name, task in tasks.items() if task.kind in ("ordinal", "regression")]
        for name in self.relevant_from:
            if name not in rated:
                raise UserError(
                    f"evaluation.ranking.relevant_from: no ordinal or regression task {_called(name, rated)}"
                )


@dataclass(frozen=True)
class Ranking:
    """What was found."""

    rows: tuple[RankingRow, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    notes: tuple[str, ...] = ()
    """One sentence an objective: how many lists were left out, and why."""


def ranking(
    systems: Mapping[str, Scored],
    tasks: Tasks,
    groups: NDArray[np.int32],
    by: By,
    config: RankingConfig,
    *,
    fused: Mapping[str, NDArray[np.floating]] | None = None,
    items: ItemCodes | None = None,
    confidence: float = 0.95,
    block: int = _BLOCK,
) -> Ranking:
    """Judge the lists of every system.

    Args:
        systems: name to the same N rows as it predicts them; the first one is compared with each other.
        tasks: the objectives; multiclass ones have no order and are left out.
        groups: (N,) each row's list, from 0; −1: in none (:func:`recmtl.etl.slicing.ranking_groups`).
        by: what the groups are.
        config: ks and the rest.
        fused: system to its fused score (N,).
        items: the rows' items, for coverage; None: there is none of that.
        confidence: of the intervals.
        block: rows that are in memory together.

    Raises:
        UserError: ``config.score`` is no prediction column.
    """
    fused = fused or {}
    scorings = _scorings(tasks, config, systems, fused)
    objectives = {name: task for name, task in tasks.items() if task.kind != "multiclass"}
    some = next(iter(systems.values()))
    assert len(groups) == len(some), "a group for every row"
    tallies: dict[tuple[str, str], _Tally] = {
        (scoring.name, objective): _Tally(_metrics(objectives[objective], config), list(scoring.systems))
        for scoring in scorings
        for objective in scoring.objectives
    }
    shown = [scoring for scoring in scorings if scoring.name == FUSED] or scorings
    first = {
        (scoring.name, system, k): _First(items, k)
        for scoring in shown
        for system in scoring.systems
        for k in config.ks
        if items is not None
    }
    for rows, code, cluster in _blocks(groups, some.group, block):
        for scoring in scorings:
            ranked: dict[str, tuple[NDArray[np.intp], Lists]] = {}
            for system, score in scoring.systems.items():
                order, lists = lists_of.ranked(code, score[rows])
                ranked[system] = rows[order], lists
                for k in config.ks:
                    if (scoring.name, system, k) in first:
                        first[scoring.name, system, k].add(*_long_enough(lists, rows[order], config.smallest_list))
            for objective in scoring.objectives:
                tally = tallies[scoring.name, objective]
                _judge(objectives[objective], some, ranked, code, cluster, config, tally)
    return Ranking(
        tuple(
            row
            for (scored_by, objective), tally in tallies.items()
            for row in tally.rows(by, scored_by, objective, confidence)
        ),
        tuple(of.found(system, by, scored_by) for (scored_by, system, _), of in first.items()),
        _notes(tallies, by, config),
    )


def gains(task: Task, label: NDArray[np.floating]) -> FloatArray:
    """(N,) what a row is worth in NDCG, at least 0.

    Args:
        task: binary, ordinal or regression.
        label: (N,) as :class:`~recmtl.evaluation.Scored` holds it: of an ordinal task the index of the level.
    """
    label = label.astype(np.float64)
    if task.kind == "ordinal":
        assert task.levels is not None
        return np.asarray(np.maximum(np.exp2(np.array(task.levels)) - 1, 0)[label.astype(np.intp)], np.float64)
    return np.asarray(np.maximum(label, 0), np.float64)


def _called(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    told = f"did you mean {near[0]!r}?" if near else f"there is {', '.join(known) or 'none'}"
    return f"is called {name!r}; {told}"


class _Scoring(NamedTuple):
    """One way to sort the rows."""

    name: str
    systems: dict[str, NDArray[np.floating]]
    """The systems that know it, and their scores (N,)."""
    objectives: tuple[str, ...]


def _scorings(
    tasks: Tasks, config: RankingConfig, systems: Mapping[str, Scored], fused: Mapping[str, NDArray[np.floating]]
) -> list[_Scoring]:
    objectives = tuple(name for name, task in tasks.items() if task.kind != "multiclass")

    def predicted(column: str) -> dict[str, NDArray[np.floating]]:
        return {system: rows.predictions[column] for system, rows in systems.items() if column in rows.predictions}

    if config.score is not None:
        found = [_Scoring(config.score, predicted(config.score), objectives)]
        if not found[0].systems:
            known = list(next(iter(systems.values())).predictions)
            raise UserError(f"evaluation.ranking.score: no prediction column {_called(config.score, known)}")
    else:
        found = [_Scoring(FUSED, {system: fused[system] for system in systems if system in fused}, objectives)]
        found += [_Scoring(name, predicted(tasks.prediction_columns(name)[0]), (name,)) for name in objectives]
    return [scoring for scoring in found if scoring.systems]


def _metrics(task: Task, config: RankingConfig) -> list[_Metric]:
    found: list[_Metric] = [("ndcg", k) for k in config.ks]
    if task.kind == "binary" or task.name in config.relevant_from:
        found += [(name, k) for name in ("map", "recall") for k in config.ks]
        found += [("mrr", None), ("auc", None), (AUC_BY_ROWS, None)]
    return found


def _blocks(
    groups: NDArray[np.int32], users: NDArray[np.int64] | None, size: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]]:
    """Blocks of whole users: the rows (R,), each row's list (R,) from 0, and each list's user, from 0."""
    count = int(groups.max(initial=-1)) + 1
    if not count:
        return
    place: NDArray[np.intp] = np.arange(count)  # where each list comes
    owner_of: NDArray[np.intp] = place
    if users is not None:
        owner = np.zeros(count, np.int64)
        for start in range(0, len(groups), size):
            there = groups[start : start + size]
            owner[there[there >= 0]] = users[start : start + size][there >= 0]
        by_owner = np.argsort(owner, kind="stable")
        place = np.empty(count, np.intp)
        place[by_owner] = np.arange(count)
        owner_of = np.cumsum(np.append(0, np.diff(owner[by_owner]) != 0))
    lengths = np.zeros(count, np.int64)
    for start in range(0, len(groups), size):
        there = groups[start : start + size]
        lengths += np.bincount(place[there[there >= 0]], minlength=count)
    edges = np.append(0, np.cumsum(lengths))
    # Where a user's lists begin, and of these, where a block does: each holds the users that fit, at least one.
    begins = np.append(np.flatnonzero(np.diff(owner_of, prepend=-1)), count)
    if edges[-1] <= size:
        listed = np.flatnonzero(groups >= 0)
        order: NDArray[Any] = listed[np.argsort(place[groups[listed]], kind="stable")]
    else:
        order = _counted(groups, place, edges, size)
    at = 0
    while at < begins.size - 1:
        end = max(int(np.searchsorted(edges[begins], edges[begins[at]] + size, side="right")) - 1, at + 1)
        low, high = begins[at], begins[end]
        rows = order[edges[low] : edges[high]].astype(np.intp)
        code = np.repeat(np.arange(high - low), lengths[low:high])
        yield rows, code, owner_of[low:high] - owner_of[low]
        at = end


def _counted(groups: NDArray[np.int32], place: NDArray[np.intp], edges: NDArray[np.int64], size: int) -> NDArray[Any]:
    """The rows by their list's place: a counting sort, a part of the rows at a time."""
    order = np.empty(int(edges[-1]), np.int32 if len(groups) < 2**31 else np.int64)
    free = edges[:-1].copy()
    for start in range(0, len(groups), size):
        there = groups[start : start + size]
        rows = np.flatnonzero(there >= 0)
        code = place[there[rows]]
        sort = np.argsort(code, kind="stable")
        code = code[sort]
        begin = np.flatnonzero(np.diff(code, prepend=-1))
        length = np.diff(begin, append=code.size)
        inside = np.arange(code.size) - np.repeat(begin, length)
        order[free[code] + inside] = start + rows[sort]
        free[code[begin]] += length
    return order


def _long_enough(lists: Lists, rows: NDArray[Any], least: int) -> tuple[Lists, NDArray[Any], int]:
    """The lists of so many rows, their rows, and how many are left out."""
    long = lists.lengths >= least
    short = int(np.count_nonzero(~long))
    if not short:
        return lists, rows, 0
    kept = np.repeat(long, lists.lengths)
    return lists.keep(kept), rows[kept], short


def _judge(
    task: Task,
    scored: Scored,
    ranked: Mapping[str, tuple[NDArray[np.intp], Lists]],
    code: NDArray[np.intp],
    cluster: NDArray[np.intp],
    config: RankingConfig,
    tally: "_Tally",
) -> None:
    """Add a block's lists of one objective."""
    label, observed = scored.labels[task.name], scored.observed[task.name]
    least = config.relevant_from.get(task.name)
    values: dict[str, dict[_Metric, FloatArray]] = {}
    ideal: dict[int | None, FloatArray] = {}
    for number, (system, (rows, lists)) in enumerate(ranked.items()):
        counted = np.asarray(observed[rows])
        mine, whole = rows[counted], lists.keep(counted)
        list_of = code[counted][whole.start]  # the codes rise, so that sorting within lists leaves them as they are
        long = whole.lengths >= config.smallest_list
        kept, mine, short = _long_enough(whole, mine, config.smallest_list)
        of_rows = np.asarray(label[mine])
        gain = gains(task, of_rows)
        if task.kind == "binary":
            hit = of_rows == 1
        else:
            levels = of_rows if task.levels is None else np.array(task.levels)[of_rows.astype(np.intp)]
            hit = levels >= (np.inf if least is None else least)
        if number == 0:  # the best order is every system's
            ideal = {at: lists_of.ideal_gain(kept, gain, at) for at in config.ks}
        values[system] = {}
        for name, k in tally.metrics:
            if name == "ndcg":
                found = lists_of.ndcg(kept, gain, ideal[k], k)
            elif name == "map":
                found = lists_of.average_precision(kept, hit, k)
            elif name == "recall":
                assert k is not None
                found = lists_of.recall(kept, hit, k)
            elif name == "mrr":
                found = lists_of.reciprocal_rank(kept, hit)
            else:
                found = lists_of.list_auc(kept, hit)
            values[system][name, k] = found
        if number == 0:
            users, sizes = cluster[list_of[long]], kept.lengths
            tally.short += short + int(cluster.size - list_of.size)
            tally.lists += kept.start.size
            tally.barren += int(np.count_nonzero(~(ideal[config.ks[0]] > 0)))
    tally.add(values, users, sizes)


class _Tally:
    """Sums over the users of what their lists are worth, for every system and for the first one less each other."""

    def __init__(self, metrics: Sequence[_Metric], systems: Sequence[str]) -> None:
        self.metrics, self.systems = metrics, systems
        self.lists = 0
        """Lists that are long enough."""
        self.short = 0
        """Lists that are not."""
        self.barren = 0
        """Long lists in which nothing is worth anything."""
        others = systems[1:]
        self._moments = {
            (metric, key): _Moments() for metric in metrics for key in [*systems, *((systems[0], o) for o in others)]
        }

    def add(
        self, values: Mapping[str, Mapping[_Metric, FloatArray]], users: NDArray[np.intp], sizes: NDArray[np.int64]
    ) -> None:
        """Add a block's lists.

        Args:
            values: system → metric → (G,), NaN where undefined.
            users: (G,) each list's user, who is in no other block.
            sizes: (G,) rows of each list.
        """
        first = values[self.systems[0]]
        for metric in self.metrics:
            defined = np.isfinite(first[metric])  # which lists those are hangs on the labels alone
            owners = users[defined]
            if not owners.size:
                continue
            mine = first[metric][defined]
            weight = sizes[defined].astype(np.float64) if metric[0] == AUC_BY_ROWS else np.ones(owners.size)
            for system in self.systems:
                theirs = values[system][metric][defined]
                self._moments[metric, system].add(theirs, owners, weight)
                if system != self.systems[0]:
                    self._moments[metric, (self.systems[0], system)].add(mine - theirs, owners, weight)

    def rows(self, by: By, scored_by: str, objective: str, confidence: float) -> Iterator[RankingRow]:
        """A row a metric."""
        for name, k in self.metrics:
            of = {key: self._moments[(name, k), key] for key in self.systems}
            pairs = {o: self._moments[(name, k), (self.systems[0], o)] for o in self.systems[1:]}
            yield RankingRow(
                by=by,
                scored_by=scored_by,
                objective=objective,
                metric=name,
                k=k,
                groups=next(iter(of.values())).lists,
                systems={s: figure_of(m.mean, m.spread, "logit", confidence) for s, m in of.items()},
                differences={o: difference_of(m.mean, m.spread, confidence) for o, m in pairs.items()},
            )


@dataclass
class _Moments:
    """What the weighted mean over lists and its spread over users need.

    A user whose lists have weight n and value S, weighted, pulls at the mean by D = (S − n · mean) / weight of all. The
    sums over users of S^a n^b, a + b = 2 and 4, give Σ D² and Σ D⁴ whatever the mean turns out to be; S is of values
    less a first guess at the mean, so that nothing is lost to cancellation.
    """

    lists: int = 0
    weight: float = 0.0
    users: int = 0
    guess: float | None = None
    total: float = 0.0
    squares: FloatArray = field(default_factory=lambda: np.zeros(3))
    fourths: FloatArray = field(default_factory=lambda: np.zeros(5))

    def add(self, values: FloatArray, users: NDArray[np.intp], weight: FloatArray) -> None:
        """Lists (G,), G ≥ 1, of users who are in no other call."""
        if self.guess is None:
            self.guess = float(values.mean())
        worth = np.bincount(users, weight * (values - self.guess))
        count = np.asarray(np.bincount(users, weight), np.float64)
        worth, count = worth[count > 0], count[count > 0]
        self.lists += values.size
        self.weight += float(weight.sum())
        self.users += count.size
        self.total += float(worth.sum())
        self.squares += [(worth ** (2 - b) * count**b).sum() for b in range(3)]
        self.fourths += [(worth ** (4 - b) * count**b).sum() for b in range(5)]

    @property
    def mean(self) -> float | None:
        return None if self.guess is None else self.guess + self.total / self.weight

    @property
    def spread(self) -> Spread | None:
        if self.guess is None:
            return None
        off = -self.total / self.weight  # D · weight = (S of guess) + n · off
        squares = float((self.squares * [1, 2 * off, off**2]).sum())
        fourths = float((self.fourths * [1, 4 * off, 6 * off**2, 4 * off**3, off**4]).sum())
        if squares <= 1e-24 * self.weight:  # equal values leave rounding alone
            return Spread(self.users, 0.0, 0.0)
        return Spread(self.users, squares / self.weight**2, max(fourths, 0.0) / self.weight**4)


class _First:
    """The items among the first k of the lists."""

    def __init__(self, items: ItemCodes, k: int) -> None:
        self._items, self._k = items, k
        self._shown = np.zeros(items.counts.size)
        """How often each item is expected there."""
        self._log_never = np.zeros(items.counts.size)
        """The logarithm of the chance that ties keep it out everywhere."""
        self._there = np.zeros(items.counts.size, np.bool_)

    def add(self, lists: Lists, rows: NDArray[Any], short: int) -> None:
        """Add a block's lists that are long enough."""
        item = np.asarray(self._items.codes[rows])
        chance = lists_of.expected_places(lists, self._k)
        known = item >= 0
        self._there[item[known]] = True
        known &= chance > 0
        item, chance = item[known], chance[known]
        self._shown += np.bincount(item, chance, minlength=self._shown.size)
        with np.errstate(divide="ignore"):
            self._log_never += np.bincount(item, np.log1p(-chance), minlength=self._shown.size)

    def found(self, system: str, by: By, scored_by: str) -> Coverage:
        """What of it is reported."""
        total = float(self._shown.sum())
        train = self._items.train
        popularity = None
        if total > 0 and train.size:
            share = np.searchsorted(train, self._items.counts, side="right") / train.size
            popularity = float((self._shown * share).sum() / total)
        return Coverage(
            system=system,
            by=by,
            scored_by=scored_by,
            k=self._k,
            items=round(float(-np.expm1(self._log_never).sum())),
            catalogue=int(np.count_nonzero(self._there)),
            gini=lists_of.gini(self._shown[self._there]),
            popularity=popularity,
        )


def _notes(tallies: Mapping[tuple[str, str], _Tally], by: By, config: RankingConfig) -> tuple[str, ...]:
    found = {}
    for (_, objective), tally in tallies.items():
        found[objective] = (
            f"Ranking of {objective} by {by}: {tally.lists - tally.barren:,} lists; left out are {tally.short:,} with "
            f"fewer than {config.smallest_list} observed rows and {tally.barren:,} in which nothing is gained."
        )
    return tuple(found.values())
