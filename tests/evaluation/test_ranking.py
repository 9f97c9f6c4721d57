"""Ranked lists of requests and users: against plain loops, the bootstrap, and by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from recmtl.errors import UserError
from recmtl.etl.slicing import ItemCodes
from recmtl.evaluation import Scored
from recmtl.evaluation.influence import clustered, clustered_difference
from recmtl.evaluation.ranking import FUSED, RankingConfig, gains, ranking
from recmtl.metrics import METRICS, Examples
from recmtl.tasks import Observed, Task, Tasks

CLICK = Task(name="click", kind="binary", label="click")
STARS = Task(name="stars", kind="ordinal", label="stars", levels=(1, 2, 5), observed=Observed(when="click"))
TASKS = Tasks([CLICK, Task(name="buy", kind="binary", label="buy", parent="click"), STARS])


def split(seed=0, rows=400, requests=90, users=25):
    """Requests of users, some rows masked."""
    random = np.random.default_rng(seed)
    request = random.integers(0, requests, rows)
    user = (random.integers(0, users, requests) * 7 - 30)[request]
    click = random.random(rows) < 0.4
    buy = click & (random.random(rows) < 0.5)
    level = random.integers(0, 3, rows)
    known = random.random(rows) < 0.8

    def predicted():
        p = np.round(random.random(rows), 1)
        return {"click": p, "buy": p * 0.5, "buy_given_click": np.full(rows, 0.5), "stars": 1 + 4 * random.random(rows)}

    def scored():
        return Scored(
            predictions={name: values.astype(np.float32) for name, values in predicted().items()},
            labels={
                "click": click.astype(np.float32),
                "buy": (buy & known).astype(np.float32),
                "stars": (level * click).astype(np.float32),
            },
            observed={"click": np.ones(rows, bool), "buy": known, "stars": click},
            group=user,
            row=np.arange(rows),
        )

    return {"model": scored(), "champion": scored()}, request.astype(np.int32)


def by_loop(scored, name, score, groups, k):
    """List → (NDCG, recall) at k and its user, scores without ties, by the definitions."""
    found = {}
    for group in np.unique(groups[groups >= 0]):
        rows = np.flatnonzero((groups == group) & scored.observed[name])
        gain = gains(TASKS[name], scored.labels[name][rows])
        if rows.size < 2 or not gain.sum() > 0:
            continue
        order = np.argsort(-score[rows])
        discount = 1 / np.log2(2 + np.arange(rows.size))
        dcg = (gain[order] * discount)[:k].sum() / (np.sort(gain)[::-1] * discount)[:k].sum()
        found[group] = dcg, (gain[order][:k] > 0).sum() / (gain > 0).sum(), scored.group[rows[0]]
    return found


def only(found, **wanted):
    (row,) = [row for row in found.rows if all(getattr(row, name) == value for name, value in wanted.items())]
    return row


def defined(figure):
    return {name: value for name, value in figure.model_dump().items() if value is not None}


@pytest.mark.parametrize("block", [17, 1000])
@pytest.mark.parametrize("name", ["click", "buy", "stars"])
def test_means_over_lists_are_those_of_plain_loops(name, block):
    systems, request = split()
    random = np.random.default_rng(1)
    fused = {system: random.random(len(request)) for system in systems}
    found = ranking(systems, TASKS, request, "request", RankingConfig(ks=(2, 3)), fused=fused, block=block)
    for k in (2, 3):
        loops = {system: by_loop(systems[system], name, fused[system], request, k) for system in systems}
        row = only(found, scored_by=FUSED, objective=name, metric="ndcg", k=k)
        assert row.by == "request"
        assert row.groups == len(loops["model"])
        values = {system: np.array([value[0] for value in loop.values()]) for system, loop in loops.items()}
        for system, expected in values.items():
            assert row.systems[system].value == pytest.approx(expected.mean())
        assert row.differences["champion"].value == pytest.approx((values["model"] - values["champion"]).mean())
        if name != "stars":
            recall = only(found, scored_by=FUSED, objective=name, metric="recall", k=k)
            assert recall.systems["model"].value == pytest.approx(
                np.mean([value[1] for value in loops["model"].values()])
            )


def test_the_order_of_the_rows_and_the_size_of_the_blocks_change_nothing():
    systems, request = split(3)
    config = RankingConfig(relevant_from={"stars": 2})
    expected = ranking(systems, TASKS, request, "request", config)
    order = np.random.default_rng(0).permutation(len(request))
    shuffled = {
        name: Scored(
            {column: values[order] for column, values in scored.predictions.items()},
            {task: values[order] for task, values in scored.labels.items()},
            {task: values[order] for task, values in scored.observed.items()},
            scored.group[order],
            scored.row[order],
        )
        for name, scored in systems.items()
    }
    found = ranking(shuffled, TASKS, request[order], "request", config, block=11)
    assert found.notes == expected.notes
    assert len(found.rows) == len(expected.rows) == 9 * 3
    for one, other in zip(found.rows, expected.rows, strict=True):
        assert (one.metric, one.k, one.objective, one.groups) == (other.metric, other.k, other.objective, other.groups)
        for a, b in [(one.systems, other.systems), (one.differences, other.differences)]:
            for system in a:
                assert defined(a[system]) == pytest.approx(defined(b[system]), rel=1e-9)


def test_the_interval_is_that_of_a_mean_over_lists_clustered_by_user():
    """Against the formula in a plain loop, and about as wide as 2,000 draws of users say."""
    systems, request = split(5, rows=3000, requests=900, users=200)
    random = np.random.default_rng(2)
    fused = {system: random.random(len(request)) for system in systems}
    config = RankingConfig(ks=(3,))
    row = only(
        ranking(systems, TASKS, request, "request", config, fused=fused),
        scored_by=FUSED, objective="click", metric="ndcg", k=3,
    )  # fmt: skip
    loop = by_loop(systems["model"], "click", fused["model"], request, 3)
    value = np.array([entry[0] for entry in loop.values()])
    users, owner = np.unique([entry[2] for entry in loop.values()], return_inverse=True)
    pull = np.bincount(owner, value - value.mean()) / value.size
    variance = (pull**2).sum() * users.size / (users.size - 1)
    mean = value.mean()
    slope = 1 / (mean * (1 - mean))
    half = math.log(mean / (1 - mean)) - math.log(row.systems["model"].low / (1 - row.systems["model"].low))
    assert half / (slope * math.sqrt(variance)) == pytest.approx(1.97, abs=0.03)
    weights = random.poisson(1, (2000, users.size))[:, owner]
    draws = (weights * value).sum(axis=1) / weights.sum(axis=1)
    assert math.sqrt(variance) == pytest.approx(draws.std(), rel=0.07)
    other = np.array(
        [entry[0] for entry in by_loop(systems["champion"], "click", fused["champion"], request, 3).values()]
    )
    pull = np.bincount(owner, value - other - (value - other).mean()) / value.size
    deviation = math.sqrt((pull**2).sum() * users.size / (users.size - 1))
    difference = row.differences["champion"]
    assert (difference.high - difference.low) / 2 / deviation == pytest.approx(1.97, abs=0.03)
    assert 0 < difference.p_value <= 1


def test_each_tasks_own_prediction_sorts_for_it():
    systems, request = split()
    found = ranking(systems, TASKS, request, "request", RankingConfig(ks=(2,)))
    assert {(row.scored_by, row.objective) for row in found.rows} == {(name, name) for name in TASKS}
    fused = {"model": systems["model"].predictions["buy"]}
    both = ranking(systems, TASKS, request, "request", RankingConfig(ks=(2,)), fused=fused)
    assert only(both, scored_by=FUSED, objective="buy", metric="mrr").systems["model"] == pytest.approx(
        only(found, scored_by="buy", objective="buy", metric="mrr").systems["model"]
    )
    assert list(only(both, scored_by=FUSED, objective="click", metric="mrr").systems) == ["model"]
    one = ranking(systems, TASKS, request, "request", RankingConfig(ks=(2,), score="buy"))
    assert {(row.scored_by, row.objective) for row in one.rows} == {("buy", name) for name in TASKS}
    with pytest.raises(UserError, match=r"evaluation\.ranking\.score: no prediction column is called 'byu'"):
        ranking(systems, TASKS, request, "request", RankingConfig(score="byu"))


def test_ratings_have_hits_where_the_config_says_what_one_is():
    systems, request = split()
    found = ranking(systems, TASKS, request, "user", RankingConfig())
    assert {row.metric for row in found.rows if row.objective == "stars"} == {"ndcg"}
    found = ranking(systems, TASKS, request, "user", RankingConfig(relevant_from={"stars": 5}))
    assert {row.metric for row in found.rows if row.objective == "stars"} == {
        "ndcg", "map", "recall", "mrr", "auc", "auc_by_rows",
    }  # fmt: skip
    assert gains(STARS, np.array([0.0, 1, 2])).tolist() == [1, 3, 31]


def test_lists_without_a_hit_are_left_out_and_counted():
    label = np.array([1, 0, 0, 0, 0, 1, 1], np.float32)
    score = np.array([0.9, 0.1, 0.5, 0.4, 0.3, 0.2, 0.7], np.float32)
    groups = np.array([0, 0, 1, 1, 2, 2, 3], np.int32)
    tasks = Tasks([CLICK])
    scored = Scored({"click": score}, {"click": label}, {"click": np.ones(7, bool)}, None, np.arange(7))
    found = ranking({"model": scored}, tasks, groups, "request", RankingConfig(ks=(1,)))
    row = only(found, metric="mrr")
    assert row.groups == 2
    assert row.systems["model"].value == pytest.approx((1 + 1 / 2) / 2)
    assert found.notes == (
        "Ranking of click by request: 2 lists; left out are 1 with fewer than 2 observed rows and 1 in which nothing "
        "is gained.",
    )
    some = ranking(
        {"model": scored}, tasks, np.where(groups == 2, -1, groups).astype(np.int32), "request", RankingConfig()
    )
    assert only(some, metric="mrr").groups == 1
    assert only(some, metric="mrr").systems["model"].low is None


def test_nothing_to_rank():
    systems, request = split()
    nothing = ranking(systems, TASKS, np.full(len(request), -1, np.int32), "user", RankingConfig())
    assert all(row.groups == 0 and row.systems["model"].value is None for row in nothing.rows)
    masked = {
        name: replace(scored, observed={task: np.zeros(len(request), bool) for task in TASKS})
        for name, scored in systems.items()
    }
    assert all(row.groups == 0 for row in ranking(masked, TASKS, request, "user", RankingConfig()).rows)


def test_a_constant_prediction_is_worth_a_random_order():
    systems, request = split(1)
    flat = replace(systems["model"], predictions={"click": np.full(len(request), 0.3, np.float32)})
    random = np.random.default_rng(0)
    tasks = Tasks([CLICK])
    found = ranking({"model": flat}, tasks, request, "request", RankingConfig(ks=(3,)))
    for metric in ("ndcg", "map", "recall", "mrr"):
        draws = []
        for _ in range(60):
            shuffled = replace(flat, predictions={"click": random.random(len(request)).astype(np.float32)})
            other = ranking({"model": shuffled}, tasks, request, "request", RankingConfig(ks=(3,)))
            draws.append(only(other, metric=metric).systems["model"].value)
        assert only(found, metric=metric).systems["model"].value == pytest.approx(
            np.mean(draws), abs=4 * np.std(draws) / math.sqrt(60)
        )


def test_coverage_by_hand():
    """Two users with three items each; the first of each list is item 0, then a tie between 1 and 2."""
    item = np.array([0, 1, 2, 0, 1, 3], np.int32)
    items = ItemCodes(item, counts=np.array([50, 10, 10, 0]), train=np.array([1, 10, 10, 50]))
    score = np.array([0.9, 0.5, 0.5, 0.9, 0.5, 0.1])
    scored = Scored(
        {"click": np.zeros(6, np.float32)},
        {"click": np.zeros(6, np.float32)},
        {"click": np.zeros(6, bool)},
        None,
        np.arange(6),
    )
    groups = np.array([0, 0, 0, 1, 1, 1], np.int32)
    found = ranking(
        {"model": scored}, Tasks([CLICK]), groups, "user", RankingConfig(ks=(1, 2)), fused={"model": score}, items=items
    )
    one, two = found.coverage
    assert (one.k, one.scored_by, one.items, one.catalogue) == (1, FUSED, 1, 4)
    assert one.gini == pytest.approx(3 / 4)
    assert one.popularity == pytest.approx(1)
    # At 2, item 1 is there half the time for one user and always for the other, item 2 half the time.
    assert two.items == round(1 + 1 + 0.5)
    assert two.popularity == pytest.approx((2 * 1 + 1.5 * 0.75 + 0.5 * 0.75) / 4)
    assert two.gini == pytest.approx(np.abs(np.subtract.outer([2, 1.5, 0.5, 0], [2, 1.5, 0.5, 0])).mean() / 2)


def test_users_aucs_weighted_by_rows_are_the_metric_user_auc():
    systems, _ = split(6, rows=2000, users=80)
    model = systems["model"]
    users, codes = np.unique(model.group, return_inverse=True)
    found = ranking(systems, Tasks([CLICK]), codes.astype(np.int32), "user", RankingConfig(), block=300)
    rows = {
        name: Examples(scored.predictions["click"], scored.labels["click"], scored.group)
        for name, scored in systems.items()
    }
    row = only(found, metric="auc_by_rows")
    for name in systems:
        assert defined(row.systems[name]) == pytest.approx(defined(clustered(rows[name], "user_auc", codes)))
    difference = clustered_difference(rows["model"], rows["champion"], "user_auc", codes)
    assert defined(row.differences["champion"]) == pytest.approx(defined(difference))
    each = [METRICS["auc"].compute(some_of(rows["model"], codes == user)) for user in range(users.size)]
    each = [value for value in each if value is not None]
    assert only(found, metric="auc").systems["model"].value == pytest.approx(np.mean(each))


def some_of(rows, kept):
    return Examples(rows.prediction[kept], rows.label[kept])


def test_names_are_checked_against_the_tasks():
    RankingConfig(score="buy_given_click", relevant_from={"stars": 4}).check(TASKS)
    with pytest.raises(UserError, match=r"score: no prediction column is called 'clicks'; did you mean 'click'"):
        RankingConfig(score="clicks").check(TASKS)
    with pytest.raises(UserError, match=r"no ordinal or regression task is called 'buy'; there is stars"):
        RankingConfig(relevant_from={"buy": 1}).check(TASKS)
    with pytest.raises(ValidationError):
        RankingConfig(ks=(0,))
