"""Ranking metrics: against scikit-learn, against all orders of the ties, and by hand."""

import math
from itertools import pairwise, permutations

import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from recmtl.metrics.ranking import (
    average_precision,
    expected_places,
    gini,
    ideal_gain,
    list_auc,
    ndcg,
    ranked,
    recall,
    reciprocal_rank,
)

KS = (1, 2, 3, 10)


def by_hand(order, gain, k):
    """NDCG, AP, recall and reciprocal rank of one order of one list, as the definitions have them."""
    sorted_gain, best = [gain[row] for row in order], sorted(gain, reverse=True)
    positives = sum(value > 0 for value in gain)

    def dcg(values):
        return sum(value / math.log2(2 + place) for place, value in enumerate(values[:k]))

    hits, precision, first = 0, 0.0, None
    for place, value in enumerate(sorted_gain, 1):
        if value > 0:
            hits += 1
            first = first or place
            precision += hits / place if place <= k else 0
    inside = sum(value > 0 for value in sorted_gain[:k])
    return dcg(sorted_gain) / dcg(best), precision / min(positives, k), inside / positives, 1 / first


def over_all_orders(score, gain, k):
    """Their means over all orders by falling score."""
    rows = range(len(score))
    orders = [order for order in permutations(rows) if all(score[a] >= score[b] for a, b in pairwise(order))]
    return np.mean([by_hand(order, gain, k) for order in orders], axis=0)


def measured(group, score, gain, k):
    """(G, 4) the same, by the functions."""
    order, lists = ranked(group, score)
    gain = gain[order]
    ideal = ideal_gain(lists, gain, k)
    return np.stack(
        [
            ndcg(lists, gain, ideal, k),
            average_precision(lists, gain > 0, k),
            recall(lists, gain > 0, k),
            reciprocal_rank(lists, gain > 0),
        ],
        axis=1,
    )


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("graded", [False, True])
def test_ties_count_as_the_mean_over_their_orders(k, graded):
    random = np.random.default_rng(k)
    sizes = random.integers(1, 7, 40)
    group = np.repeat(np.arange(40), sizes)
    score = random.integers(0, 3, group.size) / 2
    gain = random.integers(0, 4 if graded else 2, group.size).astype(float)
    shuffled = random.permutation(group.size)
    found = measured(group[shuffled], score[shuffled], gain[shuffled], k)
    for number in range(40):
        mine = gain[group == number]
        if mine.any():
            assert found[number] == pytest.approx(over_all_orders(score[group == number], mine, k))
        else:
            assert np.isnan(found[number]).all()


@pytest.mark.parametrize("k", [1, 3, 5, None])
def test_ndcg_is_scikit_learns_ties_included(k):
    random = np.random.default_rng(5)
    gain = random.integers(0, 5, (30, 8)).astype(float)
    score = np.round(random.random((30, 8)), 1)
    order, lists = ranked(np.repeat(np.arange(30), 8), score.ravel())
    sorted_gain = gain.ravel()[order]
    found = ndcg(lists, sorted_gain, ideal_gain(lists, sorted_gain, k), k)
    assert found.mean() == pytest.approx(ndcg_score(gain, score, k=k))


def test_by_hand():
    # Scores fall as given; positives at places 2 and 4.
    found = measured(np.zeros(5, int), np.array([5.0, 4, 3, 2, 1]), np.array([0.0, 1, 0, 1, 0]), 3)[0]
    ideal = 1 + 1 / math.log2(3)
    assert found == pytest.approx([1 / math.log2(3) / ideal, 1 / 2 / 2, 1 / 2, 1 / 2])
    assert measured(np.zeros(5, int), np.arange(5.0), np.array([0.0, 0, 0, 1, 1]), 2)[0] == pytest.approx([1] * 4)


def test_a_constant_score_is_a_random_order():
    """One positive among five: each place is as likely."""
    found = measured(np.zeros(5, int), np.zeros(5), np.array([0.0, 0, 1, 0, 0]), 2)[0]
    places = np.arange(1, 6)
    dcg = (1 / np.log2(1 + places[:2])).sum() / 5
    assert found == pytest.approx([dcg, (1 + 1 / 2) / 5, 2 / 5, (1 / places).mean()])


def test_long_runs_of_ties_stay_exact():
    """The first of 40 positives among 4,000 rows that are all level, against a sum of its own."""
    gain = np.zeros(4000)
    gain[:40] = 1
    order, lists = ranked(np.zeros(4000, int), np.zeros(4000))
    chance, left, expected = 1.0, 4000, 0.0
    for place in range(1, 3962):
        expected += chance * 40 / left / place
        chance *= (left - 40) / left
        left -= 1
    assert reciprocal_rank(lists, gain[order] > 0)[0] == pytest.approx(expected, rel=1e-9)


def test_lists_without_some_rows_are_the_lists_of_the_others():
    random = np.random.default_rng(2)
    group = random.integers(0, 20, 120)
    score = random.integers(0, 4, 120) / 3
    gain = random.integers(0, 2, 120).astype(float)
    kept = random.random(120) < 0.4
    order, lists = ranked(group, score)
    fewer, mine = lists.keep(kept[order]), gain[order][kept[order]]
    expected = measured(group[kept], score[kept], gain[kept], 3)
    found = np.stack(
        [
            ndcg(fewer, mine, ideal_gain(fewer, mine, 3), 3),
            average_precision(fewer, mine > 0, 3),
            recall(fewer, mine > 0, 3),
            reciprocal_rank(fewer, mine > 0),
        ],
        axis=1,
    )
    assert np.array_equal(found, expected, equal_nan=True)
    nothing = lists.keep(np.zeros(120, bool))
    assert nothing.start.size == nothing.size == 0
    assert reciprocal_rank(nothing, np.empty(0, bool)).size == 0


def test_places_are_probabilities_that_fill_the_first_k():
    order, lists = ranked(np.array([0, 0, 0, 1]), np.array([1.0, 1.0, 0.5, 2.0]))
    places = np.empty(4)
    places[order] = expected_places(lists, 1)
    assert places.tolist() == [0.5, 0.5, 0, 1]
    assert expected_places(lists, 3).tolist() == [1, 1, 1, 1]


def test_no_rows():
    order, lists = ranked(np.empty(0, int), np.empty(0))
    assert order.size == lists.start.size == 0
    assert measured(np.empty(0, int), np.empty(0), np.empty(0), 3).shape == (0, 4)


def test_gini():
    assert gini(np.ones(7)) == pytest.approx(0)
    assert gini(np.array([0.0, 0, 0, 4])) == pytest.approx(1 - 1 / 4)
    values = np.array([3.0, 1, 4, 1, 5])
    mean_difference = np.abs(values[:, None] - values).mean()
    assert gini(values) == pytest.approx(mean_difference / 2 / values.mean())
    assert gini(np.zeros(3)) is None


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_rows_are_sorted_by_group_and_falling_score(kind):
    random = np.random.default_rng(9)
    group = random.integers(0, 9, 500)
    score = np.concatenate([random.normal(0, 1e3, 248), random.normal(0, 1e-30, 248), [0.0, -0.0, 1e-45, -1e-45]])
    score = random.permutation(score).astype(kind)
    order, lists = ranked(group, score)
    assert sorted(order.tolist()) == list(range(500))
    expected = np.lexsort((-score, group))
    assert np.array_equal(group[order], group[expected])
    assert np.array_equal(score[order], score[expected])
    assert lists.start.tolist() == [np.flatnonzero(group[order] == number)[0] for number in range(9)]
    zeros = np.flatnonzero(score[order] == 0)
    assert (np.diff(lists.run_start) > 0).all()
    assert set(zeros.tolist()) >= {int(row) for row in lists.run_start if score[order][row] == 0}


def test_auc_within_lists_is_scikit_learns():
    random = np.random.default_rng(4)
    group = random.integers(0, 25, 200)
    score, positive = random.integers(0, 6, 200) / 7, random.random(200) < 0.3
    order, lists = ranked(group, score)
    found = list_auc(lists, positive[order])
    for number in range(25):
        mine = group == number
        if len(set(positive[mine])) == 2:
            assert found[number] == pytest.approx(roc_auc_score(positive[mine], score[mine]))
        else:
            assert np.isnan(found[number])
