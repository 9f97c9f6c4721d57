"""Searching a score's weights: NDCG against scikit-learn, a front that is one, the point that was preferred."""

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import ndcg_score

from recmtl.calibration import Calibrations, Platt, TargetCalibration
from recmtl.errors import UserError
from recmtl.evaluation import Scored
from recmtl.evaluation.calibrating import apply_to
from recmtl.evaluation.fusing import FusionConfig, fused_score, objective_values, search_fusion
from recmtl.fusion import Fusion
from recmtl.tasks import Observed, Task, Tasks

TASKS = Tasks(
    [
        Task(name="click", kind="binary", label="c"),
        Task(name="buy", kind="binary", label="b", parent="click"),
        Task(name="stars", kind="ordinal", label="s", levels=(1, 2, 4), observed=Observed(when="click")),
        Task(name="mood", kind="multiclass", label="m", classes=("up", "down")),
    ]
)


def made(rows: int = 4000, groups: int = 300, seed: int = 0) -> tuple[Scored, np.ndarray]:
    """What sells is what few look at: click and buy pull apart."""
    random = np.random.default_rng(seed)
    group = random.integers(0, groups, rows).astype(np.int32)
    look, want = random.normal(0, 1, (2, rows))
    p, q = expit(-1 + look), expit(-1 - 0.9 * look + want)
    click = random.random(rows) < p
    buy = click & (random.random(rows) < q)
    stars = np.clip(np.round(1 + 0.5 * want + random.normal(0, 0.5, rows)), 0, 2)
    scored = Scored(
        predictions={
            "click": p.astype(np.float32),
            "buy": (p * q).astype(np.float32),
            "buy_given_click": q.astype(np.float32),
            "stars": (2.3 + want).astype(np.float32),
            "mood_up": np.full(rows, 0.5, np.float32),
            "mood_down": np.full(rows, 0.5, np.float32),
        },
        labels={
            "click": click.astype(np.float32),
            "buy": buy.astype(np.float32),
            "stars": (stars * click).astype(np.float32),
            "mood": np.zeros(rows, np.float32),
        },
        observed={
            "click": np.ones(rows, bool),
            "buy": np.arange(rows) % 10 > 0,
            "stars": click,
            "mood": np.ones(rows, bool),
        },
        group=group.astype(np.int64),
        row=np.arange(rows),
    )
    return scored, group


QUICK = FusionConfig(trials=30)


# What is searched for


def test_ndcg_is_scikit_learns() -> None:
    scored, group = made(600, 60)
    score = np.round(scored.predictions["click"], 1)  # with ties
    found = objective_values(scored, group, TASKS, score, objectives=("click", "buy", "stars"), k=3)
    for name in ("click", "buy", "stars"):
        gain = scored.labels[name].astype(float)
        if name == "stars":
            gain = 2.0 ** np.array([1, 2, 4])[gain.astype(int)] - 1
        values = []
        for code in np.unique(group):
            rows = np.flatnonzero((group == code) & scored.observed[name])
            if rows.size >= 2 and gain[rows].sum() > 0:
                values.append(ndcg_score([gain[rows]], [score[rows]], k=3))
        assert len(values) > 20
        assert found[name] == pytest.approx(np.mean(values), rel=1e-9)


def test_groups_are_drawn_whole() -> None:
    scored, group = made(4000, 300)
    score = scored.predictions["buy"]
    few, again, other = (
        objective_values(scored, group, TASKS, score, objectives=("click",), k=5, max_rows=1000, seed=seed)
        for seed in (0, 0, 1)
    )
    everything = objective_values(scored, group, TASKS, score, objectives=("click",), k=5, max_rows=4000)
    assert everything == objective_values(scored, group, TASKS, score, objectives=("click",), k=5)
    assert few == again != other
    assert few["click"] == pytest.approx(everything["click"], abs=0.1)


def test_rows_in_no_group_and_objectives_without_gain() -> None:
    scored, group = made(200, 20)
    half = np.where(np.arange(200) < 100, group, -1).astype(np.int32)
    assert objective_values(scored, half, TASKS, scored.predictions["buy"], objectives=("click",), k=5) != (
        objective_values(scored, group, TASKS, scored.predictions["buy"], objectives=("click",), k=5)
    )
    nothing = {**scored.labels, "buy": np.zeros(200, np.float32)}
    none = Scored(scored.predictions, nothing, scored.observed, scored.group, scored.row)
    assert objective_values(none, group, TASKS, scored.predictions["buy"], objectives=("buy",), k=5) == {"buy": None}
    alone = np.arange(200, dtype=np.int32)
    assert objective_values(scored, alone, TASKS, scored.predictions["buy"], objectives=("click",), k=5) == {
        "click": None
    }


# The search


@pytest.mark.parametrize("formula", ["product", "sum", "click**a * (1 + buy_given_click)**b * stars**c"])
def test_the_figures_are_those_of_the_weights(formula: str) -> None:
    scored, group = made()
    found = search_fusion(scored, group, "user", TASKS, QUICK.model_copy(update={"formula": formula}), seed=0)
    assert (found.finding.split, found.finding.by, found.finding.k) == ("validation", "user", 10)
    assert found.finding.weights == found.fusion.weights
    for point in found.finding.points[:5]:
        fusion = Fusion(formula=found.fusion.formula, weights=point.weights)
        score = fused_score(scored, fusion, TASKS, None)
        again = objective_values(scored, group, TASKS, score, objectives=tuple(point.objectives), k=10)
        assert again == pytest.approx(point.objectives, rel=1e-9)
    found.fusion.check(TASKS)


def test_the_front_is_one_by_a_plain_loop() -> None:
    scored, group = made()
    points = search_fusion(scored, group, "user", TASKS, QUICK, seed=0).finding.points
    values = [list(point.objectives.values()) for point in points]
    for mine, point in zip(values, points, strict=True):
        beaten = any(
            all(a >= b for a, b in zip(other, mine, strict=True))
            and any(a > b for a, b in zip(other, mine, strict=True))
            for other in values
        )
        assert point.on_front == (not beaten)
    assert 2 <= sum(point.on_front for point in points) < len(points)
    [chosen] = [point for point in points if point.chosen]
    assert chosen.on_front


def test_each_prediction_alone_and_even_weights_are_tried() -> None:
    scored, group = made()
    points = search_fusion(scored, group, "user", TASKS, FusionConfig(trials=4), seed=0).finding.points
    third = 0.333333
    assert [tuple(point.weights.values()) for point in points] == [(third,) * 3, (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    alone = objective_values(scored, group, TASKS, scored.predictions["buy"], objectives=("buy",), k=10)
    assert points[2].objectives["buy"] == pytest.approx(alone["buy"], rel=1e-4)


def test_the_choice_follows_the_preference() -> None:
    scored, group = made()
    chosen = {}
    for prefer in ({}, {"click": 1.0}, {"buy": 1.0}, {"click": 1.0, "buy": 5.0}):
        config = FusionConfig(trials=60, prefer=prefer)
        found = search_fusion(scored, group, "user", TASKS, config, seed=0)
        points = found.finding.points
        [chosen[tuple(prefer)]] = [point.objectives for point in points if point.chosen]
        best = {name: max(point.objectives[name] for point in points) for name in points[0].objectives}
        worth = [
            sum(value / best[name] * (prefer.get(name, 0) if prefer else 1) for name, value in point.objectives.items())
            for point in points
            if point.on_front
        ]
        mine = sum(
            value / best[name] * (prefer.get(name, 0) if prefer else 1) for name, value in chosen[tuple(prefer)].items()
        )
        assert mine == pytest.approx(max(worth))
        for name in prefer if len(prefer) == 1 else ():
            assert chosen[tuple(prefer)][name] == best[name]
    assert chosen[("click",)]["click"] > chosen[("buy",)]["click"]
    assert chosen[("buy",)]["buy"] > chosen[("click",)]["buy"]


def test_the_chosen_score_holds_up_on_other_rows() -> None:
    """Where objectives pull apart, the fused score is near each one's own best: better than any prediction alone."""
    scored, group = made(20_000, 1500)
    fusion = search_fusion(scored, group, "user", TASKS, FusionConfig(trials=60), seed=0).fusion
    test, groups = made(20_000, 1500, seed=1)
    names = ("click", "buy", "stars")
    judged = {
        name: objective_values(test, groups, TASKS, score, objectives=names, k=10)
        for name, score in [("score", fused_score(test, fusion, TASKS, None))]
        + [(name, test.predictions[name]) for name in names]
    }
    best = {name: max(values[name] for values in judged.values()) for name in names}
    worth = {by: sum(values[name] / best[name] for name in names) for by, values in judged.items()}
    assert max(worth, key=worth.__getitem__) == "score"


def test_the_same_seed_finds_the_same() -> None:
    scored, group = made()
    config = FusionConfig(trials=60, max_rows=1000)
    one, same, other = (search_fusion(scored, group, "user", TASKS, config, seed=seed) for seed in (3, 3, 4))
    assert one == same
    assert one.finding.points != other.finding.points


def test_weights_that_somebody_chose() -> None:
    scored, group = made()
    choose = {"w_click": 0.25, "w_buy": 0.5, "w_stars": 0.25}
    found = search_fusion(scored, group, "user", TASKS, FusionConfig(trials=5, choose=choose), seed=0)
    assert found.fusion.weights == choose
    [point] = [point for point in found.finding.points if point.chosen]
    assert point.weights == choose


def test_a_formula_without_weights() -> None:
    scored, group = made()
    found = search_fusion(scored, group, "request", TASKS, FusionConfig(formula="click * stars"), seed=0)
    assert found.fusion.weights == {}
    assert [point.chosen for point in found.finding.points] == [True]
    assert "by request" in found.fusion.chosen_on


def test_ranges_hold() -> None:
    scored, group = made()
    config = FusionConfig(formula="click**a * buy**b", ranges={"a": (2.0, 2.5)}, trials=20)
    points = search_fusion(scored, group, "user", TASKS, config, seed=0).finding.points
    assert all(2 <= point.weights["a"] <= 2.5 and 0 <= point.weights["b"] <= 3 for point in points)
    assert points[0].weights == {"a": 2.0, "b": 1.0}


def test_calibrated_predictions_are_read_where_there_are_some() -> None:
    scored, group = made()
    calibration = Calibrations(
        targets={"click": TargetCalibration(curve=Platt(slope=0.3, intercept=1.0))}, fitted_on="validation"
    )
    config = FusionConfig(formula="click + a * stars", trials=5)
    found = search_fusion(scored, group, "user", TASKS, config, seed=0, calibration=calibration)
    assert found.fusion.calibrated
    own = fused_score(scored, found.fusion, TASKS, calibration)
    right = apply_to(scored, calibration, TASKS).predictions
    np.testing.assert_array_equal(own, found.fusion.apply(right, TASKS))
    [chosen] = [point for point in found.finding.points if point.chosen]
    names = tuple(chosen.objectives)
    assert objective_values(scored, group, TASKS, own, objectives=names, k=10) == pytest.approx(chosen.objectives)
    without = config.model_copy(update={"calibrated": False})
    assert not search_fusion(scored, group, "user", TASKS, without, seed=0, calibration=calibration).fusion.calibrated
    with pytest.raises(UserError, match="this package has no calibration"):
        search_fusion(scored, group, "user", TASKS, config.model_copy(update={"calibrated": True}), seed=0)


# Edges and mistakes


def test_objectives_that_few_groups_can_judge_are_left_out() -> None:
    scored, group = made(200, 150)
    found = search_fusion(scored, group, "user", TASKS, FusionConfig(trials=5), seed=0)
    assert any("stars is no objective, as it can be judged in" in note for note in found.notes)
    assert "w_stars" not in found.fusion.weights
    assert "click" in found.finding.points[0].objectives


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"objectives": ["mood"]}, "'mood' is no objective; known are click, buy, stars"),
        ({"prefer": {"clik": 1}}, "'clik' is no objective"),
        ({"prefer": {"click": 0}}, "at least one objective must count more than 0"),
        ({"formula": "clik ** a"}, "did you mean 'click'"),
        ({"formula": "click ** a", "ranges": {"b": [0, 1]}}, "ranges: the formula has no weight 'b'; it has a"),
        ({"formula": "click ** a", "choose": {"w": 1}}, "choose: the formula has no weight 'w'"),
        ({"formula": "click ** a * buy ** b", "choose": {"a": 1}}, "choose: no value for b"),
    ],
)
def test_mistakes_are_named(config: dict[str, object], message: str) -> None:
    settings = FusionConfig.model_validate(config)
    scored, group = made(300, 20)
    with pytest.raises(UserError, match=message):
        settings.check(TASKS)
    with pytest.raises(UserError, match=message):
        search_fusion(scored, group, "user", TASKS, settings, seed=0)


@pytest.mark.parametrize("config", [{"ranges": {"a": [1, 1]}, "formula": "click**a"}, {"ranges": {"a": [0, 1]}}])
def test_ranges_that_cannot_be(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="ranges"):
        FusionConfig.model_validate(config)


def test_nothing_to_rank() -> None:
    scored, _ = made(100, 10)
    for groups in (np.full(100, -1, np.int32), np.arange(100, dtype=np.int32)):
        with pytest.raises(UserError, match="no objective can be judged"):
            search_fusion(scored, groups, "user", TASKS, QUICK, seed=0)
        with pytest.raises(UserError, match="no group has two rows on which click is observed"):
            search_fusion(scored, groups, "user", TASKS, FusionConfig(objectives=("click",)), seed=0)


def test_a_task_called_score() -> None:
    tasks = Tasks([Task(name="score", kind="binary", label="s")])
    for formula in ("product", "score ** a"):
        scored, group = made(100, 10)
        ones = {"score": np.ones(100, np.float32)}
        named = Scored(
            ones, {"score": scored.labels["click"]}, {"score": scored.observed["click"]}, scored.group, scored.row
        )
        with pytest.raises(UserError, match="called 'score', as the fused score would be: rename the task"):
            search_fusion(named, group, "user", tasks, FusionConfig(formula=formula, objectives=("score",)), seed=0)
