"""The gate on reports made by hand: what passes, what does not, and what nobody can tell."""

import re
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from recmtl.errors import UserError
from recmtl.findings import (
    Calibration,
    Check,
    Coherence,
    Difference,
    Drift,
    FeatureDrift,
    Figure,
    Guard,
    LabelDrift,
    RankingRow,
    Report,
    SliceRow,
    Verdict,
)
from recmtl.tasks import Task, Tasks
from recmtl.tracking.gate import GateConfig, judge, verdict_tags

Row = Callable[..., Any]
Make = Callable[..., Report]

PACKAGE = (
    Check(name="package loads", group="package", passed=True, text="The package loads."),
    Check(name="latency of one row, p50", group="package", passed=None, text="A batch takes 1 ms; no bound is set."),
)
ALONE = {"at_least_one_better": "no", "guards": False, "package": None}
"""Leaves the other checks out."""


def only(verdict: Verdict, name: str) -> Check:
    (found,) = [check for check in verdict.checks if check.name == name]
    return found


def gate(**fields: Any) -> GateConfig:
    return GateConfig.model_validate({**ALONE, **fields})


# As it comes


def test_the_default_passes_a_better_model(figure_row: Row, make_report: Make) -> None:
    report = make_report(
        figure_row("click", "auc", 0.76, 0.75),
        figure_row("purchase", "auc", 0.80, 0.80),
        figure_row("stars", "rmse", 1.0, 1.001),
        guards=(Guard(name="leak", status="passed", text="none"),),
    )
    verdict = judge(report, GateConfig(), PACKAGE)
    assert verdict.decision == "promote", verdict.reasons
    assert verdict.reasons[0].startswith("Significantly better than the champion in click.auc (0.76 against")
    assert only(verdict, "click.auc vs champion").passed is True
    assert only(verdict, "stars.rmse vs champion").bound == pytest.approx(-0.01001)


def test_the_default_refuses_a_deliberately_worse_model(figure_row: Row, make_report: Make) -> None:
    report = make_report(figure_row("click", "auc", 0.60, 0.75), figure_row("stars", "rmse", 1.3, 1.0))
    verdict = judge(report, GateConfig(), PACKAGE)
    assert verdict.decision == "refuse"
    assert only(verdict, "click.auc vs champion").passed is False
    assert (
        only(verdict, "stars.rmse vs champion").text
        == "stars.rmse: 1.3 against the champion's 1, +0.3 (lower is better), 95% interval +0.298 to +0.302: worse "
        "than the permitted loss of 0.01."
    )
    assert "Not significantly better than the champion in click.auc and stars.rmse." in verdict.reasons


def test_one_task_worse_is_enough_to_refuse(figure_row: Row, make_report: Make) -> None:
    report = make_report(figure_row("click", "auc", 0.80, 0.75), figure_row("purchase", "auc", 0.78, 0.80))
    verdict = judge(report, GateConfig(), PACKAGE)
    assert verdict.decision == "refuse"
    assert [check.name for check in verdict.checks if check.passed is False] == ["purchase.auc vs champion"]


def test_an_equal_model_is_not_better(figure_row: Row, make_report: Make) -> None:
    report = make_report(figure_row("click", "auc", 0.75, 0.75))
    assert judge(report, GateConfig(), PACKAGE).decision == "refuse"
    assert judge(report, GateConfig(at_least_one_better="no"), PACKAGE).decision == "promote"
    slightly = make_report(figure_row("click", "auc", 0.751, 0.75))
    assert judge(slightly, GateConfig(), PACKAGE).decision == "refuse"
    assert judge(slightly, GateConfig(at_least_one_better="on average"), PACKAGE).decision == "promote"


def test_better_is_corrected_for_the_number_of_tasks(figure_row: Row, make_report: Make) -> None:
    """An interval that just misses 0 is significant alone, and not as the best of two."""
    click = figure_row("click", "auc", 0.7522, 0.75)  # 0.0022 ± 0.002; z of two is 1.144 times as wide: ± 0.00229
    stars = figure_row("stars", "rmse", 1.0, 1.0)
    assert judge(make_report(click), GateConfig(), PACKAGE).decision == "promote"
    assert judge(make_report(click, stars), GateConfig(), PACKAGE).decision == "refuse"

    def told(row: Any, p_value: float) -> Any:
        difference = row.differences["champion"].model_copy(update={"p_value": p_value, "p_corrected": p_value})
        return row.model_copy(update={"differences": {"champion": difference}})

    # Holm over what is compared, auc and rmse together; the report's own correction is within each metric.
    assert judge(make_report(told(click, 0.04), told(stars, 0.9)), GateConfig(), PACKAGE).decision == "refuse"
    assert judge(make_report(told(click, 0.02), told(stars, 0.9)), GateConfig(), PACKAGE).decision == "promote"


@pytest.mark.parametrize(
    ("low", "high", "passed", "decision"),
    [
        (0.01, 0.03, True, "promote"),
        (-0.03, -0.01, False, "refuse"),
        (-0.01, 0.03, None, "refuse"),  # nobody can tell, and there is no other task that would be better
    ],
)
def test_a_model_must_be_worth_more_than_the_means(
    figure_row: Row, make_report: Make, low: float, high: float, passed: bool | None, decision: str
) -> None:
    click = figure_row("click", "auc", 0.51)
    beside = {
        "systems": {**click.systems, "baseline": Figure(value=0.5)},
        "differences": {"baseline": Difference(value=(low + high) / 2, low=low, high=high)},
    }
    report = make_report(click.model_copy(update=beside), champion=False)
    verdict = judge(report, GateConfig(), PACKAGE)
    assert verdict.decision == decision
    assert only(verdict, "click.auc vs baseline").passed is passed
    assert any(check.name == "anything vs baseline" for check in verdict.checks) is (passed is not True)
    assert judge(report, GateConfig(baseline=False), PACKAGE).decision == "promote"


def test_an_error_worth_less_than_the_means_is_higher(figure_row: Row, make_report: Make) -> None:
    stars = figure_row("stars", "rmse", 1.1)
    beside = {
        "systems": {**stars.systems, "baseline": Figure(value=1.0)},
        "differences": {"baseline": Difference(value=0.1, low=0.05, high=0.15)},
    }
    verdict = judge(make_report(stars.model_copy(update=beside), champion=False), GateConfig(), PACKAGE)
    assert only(verdict, "stars.rmse vs baseline").passed is False


def test_without_a_champion_the_absolute_checks_alone_decide(figure_row: Row, make_report: Make) -> None:
    report = make_report(figure_row("click", "auc", 0.72), champion=False)
    verdict = judge(report, GateConfig(), PACKAGE)
    assert verdict.decision == "promote"
    assert only(verdict, "click.auc vs champion").passed is None
    assert "no champion to compare with" in only(verdict, "click.auc vs champion").text
    assert verdict.reasons == (
        "There is no champion to compare with, so the absolute checks alone decide.",
        "1 check passed and none failed.",
        "Not judged: guards.",
    )
    floor = GateConfig.model_validate({"bounds": [{"metric": "click.auc", "at_least": 0.73}]})
    assert judge(report, floor, PACKAGE).decision == "refuse"
    required = gate(compare=[{"metric": "click.auc", "margin": 0, "required": True}])
    assert judge(report, required).decision == "promote"


def test_a_champion_with_whom_nothing_can_be_compared(figure_row: Row, make_report: Make) -> None:
    report = make_report(figure_row("click", "auc", 0.72), figure_row("stars", "rmse", None, 1.0))
    verdict = judge(report, GateConfig(), PACKAGE)
    assert verdict.decision == "refuse"
    assert verdict.reasons == (
        "Nothing could be compared with the champion, so nobody can tell whether the model is better.",
    )


def test_a_task_without_evidence_stops_nothing_unless_required(figure_row: Row, make_report: Make) -> None:
    report = make_report(figure_row("click", "auc", 0.76, 0.75), figure_row("purchase", "auc", None, 0.8))
    verdict = judge(report, GateConfig(), PACKAGE)
    assert verdict.decision == "promote"
    assert only(verdict, "purchase.auc vs champion").passed is None
    assert any(reason.startswith("Not judged:") and "purchase.auc" in reason for reason in verdict.reasons)
    rule = {"metric": "purchase.auc", "permitted_loss": 0.01, "required": True}
    assert judge(report, gate(compare=[rule])).decision == "refuse"
    # No mature row at all: the task has no figure, and is not unknown.
    click = make_report(figure_row("click", "auc", 0.76, 0.75))
    rules = [{"metric": "click.auc", "margin": 0}, {"metric": "purchase.auc", "permitted_loss": 0.01}]
    verdict = judge(click, gate(compare=rules))
    assert verdict.decision == "promote"
    assert "no evidence" in only(verdict, "purchase.auc vs champion").text


def test_the_package_must_have_been_tried(figure_row: Row, make_report: Make) -> None:
    report = make_report(figure_row("click", "auc", 0.76, 0.75))
    assert judge(report, GateConfig()).decision == "refuse"
    assert judge(report, GateConfig(package=None)).decision == "promote"
    failed = (*PACKAGE, Check(name="package predicts the same", group="package", passed=False, text="It does not."))
    verdict = judge(report, GateConfig(), failed)
    assert (verdict.decision, verdict.reasons) == ("refuse", ("It does not.",))


# Margins and losses


@pytest.mark.parametrize(
    ("value", "half", "loss", "passed"),
    [
        (0.750, 0.004, 0.005, True),  # -0.004 to 0.004
        (0.750, 0.005, 0.005, True),  # its end on the bound
        (0.750, 0.006, 0.005, False),  # wide: nobody can tell
        (0.742, 0.001, 0.005, False),  # worse for sure
        (0.747, 0.001, 0.005, True),  # a little worse, permitted
    ],
)
def test_a_permitted_loss(
    figure_row: Row, make_report: Make, value: float, half: float, loss: float, passed: bool
) -> None:
    report = make_report(figure_row("click", "auc", value, 0.75, half))
    verdict = judge(report, gate(compare=[{"metric": "click.auc", "permitted_loss": loss + 1e-12}]))
    assert only(verdict, "click.auc vs champion").passed is passed
    unsure = judge(report, gate(compare=[{"metric": "click.auc", "permitted_loss": loss + 1e-12, "unsure": "pass"}]))
    assert (unsure.decision == "promote") is (value > 0.745)
    # The same where lower is better.
    mirrored = make_report(figure_row("stars", "rmse", 1.5 - value, 0.75, half))
    rule = {"metric": "stars.rmse", "permitted_loss": loss + 1e-12}
    assert only(judge(mirrored, gate(compare=[rule])), "stars.rmse vs champion").passed is passed


def test_cannot_tell_says_so(figure_row: Row, make_report: Make) -> None:
    report = make_report(figure_row("click", "auc", 0.75, 0.75, 0.03))
    verdict = judge(report, gate(compare=[{"metric": "click.auc", "permitted_loss": 0.01}]))
    assert verdict.reasons[0].endswith(
        "nobody can tell whether it is within the permitted loss of 0.01: it may be worse by 0.03; "
        "more rows would tell."
    )


@pytest.mark.parametrize(
    ("value", "margin", "passed"), [(0.753, 0, True), (0.751, 0, False), (0.763, 0.01, True), (0.761, 0.01, False)]
)
def test_a_required_margin(figure_row: Row, make_report: Make, value: float, margin: float, passed: bool) -> None:
    report = make_report(figure_row("click", "auc", value, 0.75))
    verdict = judge(report, gate(compare=[{"metric": "click.auc", "margin": margin}]))
    assert only(verdict, "click.auc better than champion").passed is passed
    assert (verdict.decision == "promote") is passed


# Slices


def sliced(value: str, gain: float | None, half: float = 0.02, small: bool = False) -> SliceRow:
    systems = {"model": {"auc": Figure(value=0.7 + (gain or 0))}, "champion": {"auc": Figure(value=0.7)}}
    difference = Difference() if gain is None else Difference(value=gain, low=gain - half, high=gain + half)
    return SliceRow(
        slice="country",
        value=value,
        target="click",
        rows=50,
        small=small,
        systems=systems,
        differences={"champion": {"auc": difference}},
    )


def test_slices_refuse_only_what_is_shown_to_be_worse(figure_row: Row, make_report: Make) -> None:
    parts = (sliced("AT", -0.01), sliced("CH", -0.05), sliced("DE", 0.3, small=True), sliced("FR", None))
    report = make_report(figure_row("click", "auc", 0.76, 0.75), slices=parts)
    rule = {"metric": "click.auc", "slice": "country", "permitted_loss": 0.01}
    verdict = judge(report, gate(compare=[rule]))
    assert {check.name: check.passed for check in verdict.checks} == {
        "click.auc in country=AT vs champion": True,
        "click.auc in country=CH vs champion": False,  # at best −0.05 + 0.0229, its interval widened for two parts
        "click.auc in country=DE vs champion": None,
        "click.auc in country=FR vs champion": None,
    }
    assert "the slice is too small (50 rows)" in only(verdict, "click.auc in country=DE vs champion").text
    strict = judge(report, gate(compare=[{**rule, "unsure": "refuse"}]))
    assert only(strict, "click.auc in country=AT vs champion").passed is False
    one = judge(report, gate(compare=[{**rule, "value": "AT"}]))
    assert one.decision == "promote"
    gone = judge(report, gate(compare=[{**rule, "value": "IT"}, {"metric": "click.auc", "margin": 0}]))
    assert only(gone, "click.auc in country=IT vs champion").passed is None


def test_slices_intervals_are_widened_for_their_number(figure_row: Row, make_report: Make) -> None:
    """Of 100 equal slices, 2 or 3 lie beyond by chance at 95 %; Bonferroni widens by z(0.99975) / z(0.975)."""
    wider = NormalDist().inv_cdf(1 - 0.025 / 100) / NormalDist().inv_cdf(0.975)
    assert wider == pytest.approx(3.4808 / 1.95996, abs=1e-4)  # a table of the normal distribution
    rule = {"metric": "click.auc", "slice": "country", "permitted_loss": 0.0}
    for gain, passed in ((-0.02 * wider + 1e-6, True), (-0.02 * wider - 1e-6, False)):
        parts = (sliced("X", gain), *(sliced(str(i), 0.0) for i in range(99)))
        report = make_report(figure_row("click", "auc", 0.76, 0.75), slices=parts)
        assert only(judge(report, gate(compare=[rule])), "click.auc in country=X vs champion").passed is passed
        alone = make_report(figure_row("click", "auc", 0.76, 0.75), slices=parts[:1])
        assert only(judge(alone, gate(compare=[rule])), "click.auc in country=X vs champion").passed is False


# Rankings


def test_rankings(figure_row: Row, make_report: Make) -> None:
    def ranked(by: str, k: int, gain: float) -> RankingRow:
        return RankingRow(
            by=by,  # type: ignore[arg-type]
            scored_by="fused",
            objective="click",
            metric="ndcg",
            k=k,
            groups=100,
            systems={"model": Figure(value=0.5 + gain), "champion": Figure(value=0.5)},
            differences={"champion": Difference(value=gain, low=gain - 0.01, high=gain + 0.01)},
        )

    rows = (ranked("request", 10, 0.05), ranked("user", 10, -0.05), ranked("request", 5, 0.0))
    report = make_report(figure_row("click", "auc", 0.76, 0.75), ranking=rows)
    verdict = judge(report, gate(compare=[{"metric": "click.ndcg@10", "margin": 0}]))
    assert {check.name: check.passed for check in verdict.checks} == {
        "click.ndcg@10 of fused by request better than champion": True,
        "click.ndcg@10 of fused by user better than champion": False,
    }
    assert (
        judge(report, gate(compare=[{"metric": "click.ndcg@10", "margin": 0, "by": "request"}])).decision == "promote"
    )
    with pytest.raises(UserError, match=r"no ranking 'click\.ndcg@11'; did you mean 'click\.ndcg@10'"):
        judge(report, gate(compare=[{"metric": "click.ndcg@11", "margin": 0}]))


# Absolute


@pytest.mark.parametrize(
    ("bound", "passed"),
    [
        ({"at_least": 0.7}, True),
        ({"at_least": 0.71}, True),
        ({"at_least": 0.7101}, False),
        ({"at_least": 0.709, "judged_on": "interval"}, False),
        ({"at_least": 0.708, "judged_on": "interval"}, True),
        ({"at_most": 0.711, "judged_on": "interval"}, False),
        ({"at_most": 0.712, "judged_on": "interval"}, True),
    ],
)
def test_floors_and_ceilings(figure_row: Row, make_report: Make, bound: dict[str, Any], passed: bool) -> None:
    report = make_report(figure_row("click", "auc", 0.71), champion=False)
    verdict = judge(report, gate(compare=[], bounds=[{"metric": "click.auc", **bound}]))
    (check,) = verdict.checks
    assert (check.passed, check.group, check.value) == (passed, "floor", 0.71)
    assert (verdict.decision == "promote") is passed
    (word,) = {"at_least", "at_most"} & bound.keys()
    assert check.bound == bound[word]


def test_calibration(figure_row: Row, make_report: Make) -> None:
    report = make_report(
        figure_row("click", "calibration", 1.05, half=0.04),
        figure_row("click", "ece", 0.03),
        figure_row("purchase", "calibration", 0.85),
        figure_row("stars", "rmse", 1.0),
        champion=False,
    )
    verdict = judge(report, gate(compare=[], calibration={"ece": 0.02}))
    assert {check.name: check.passed for check in verdict.checks} == {
        "calibration of click": True,
        "click.ece": False,
        "calibration of purchase": False,
        "purchase.ece": None,
    }
    assert only(verdict, "calibration of purchase").bound == 0.9
    assert judge(report, gate(compare=[], calibration={"targets": ["click"]})).decision == "promote"
    narrow = gate(compare=[], calibration={"targets": ["click"], "ratio": [0.95, 1.08], "judged_on": "interval"})
    assert judge(report, narrow).decision == "refuse"
    missing = gate(compare=[], calibration={"targets": ["stars"], "required": True})
    assert judge(report, missing).decision == "refuse"


def test_calibration_as_the_package_changes_it(figure_row: Row, make_report: Make) -> None:
    """Raw figures are bad and the calibrated ones on test good; lines of the folds, and of what was not chosen, are
    neither."""
    line = Calibration(target="click", method="platt", rows=9, fitted_on="validation")
    report = make_report(
        figure_row("click", "calibration", 1.5),
        figure_row("click", "ece", 0.3),
        champion=False,
        calibration=(
            line.model_copy(update={"chosen": True, "ratio": 9.0, "ece": 0.9}),
            line.model_copy(update={"method": "none", "ratio": 1.5, "ece": 0.3, "split": "test"}),
            line.model_copy(update={"chosen": True, "ratio": 1.02, "ece": 0.01, "split": "test"}),
        ),
    )

    def passed(**bounds: Any) -> dict[str, bool | None]:
        return {c.name: c.passed for c in judge(report, gate(compare=[], calibration={"ece": 0.02, **bounds})).checks}

    raw = {"calibration of click": False, "click.ece": False}
    calibrated = {"calibration of click, calibrated": True, "click.ece, calibrated": True}
    assert passed() == passed(of="raw") == raw
    assert passed(of="calibrated") == calibrated
    assert passed(of="both") == raw | calibrated
    assert passed(of="calibrated", ece=0.005)["click.ece, calibrated"] is False
    verdict = judge(report, gate(compare=[], calibration={"of": "both"}))
    assert only(verdict, "calibration of click").text.startswith(
        "calibration of click: mean prediction over mean label, raw predictions, 1.5"
    )
    assert only(verdict, "calibration of click, calibrated").text == (
        "calibration of click, calibrated: mean prediction over mean label, calibrated predictions, 1.02: within 0.9 "
        "to 1.1."
    )


def test_a_package_without_calibration_has_no_calibrated_figure(figure_row: Row, make_report: Make) -> None:
    report = make_report(figure_row("click", "calibration", 1.0), champion=False)
    verdict = judge(report, gate(compare=[], calibration={"of": "calibrated"}))
    assert verdict.checks[0].passed is None
    assert "no figure of the calibrated predictions" in verdict.checks[0].text
    required = gate(compare=[], calibration={"of": "calibrated", "required": True})
    assert judge(report, required).decision == "refuse"
    with pytest.raises(ValidationError, match="calibrated figures have no interval"):
        gate(calibration={"of": "both", "judged_on": "interval"})


def test_coherence(make_report: Make) -> None:
    rows = (
        Coherence(kind="prediction", text="p(purchase) > p(click)", system="model", rows=5, of=1000, share=0.005),
        Coherence(kind="prediction", text="p(purchase) > p(click)", system="champion", rows=900, of=1000, share=0.9),
        Coherence(kind="label", text="a purchase without a click", rows=20, of=1000, share=0.02),
    )
    report = make_report(champion=False, coherence=rows)
    assert judge(report, gate(compare=[], coherence={})).decision == "promote"
    verdict = judge(report, gate(compare=[], coherence={"predictions": 0.004, "labels": 0.02}))
    assert {check.name: check.passed for check in verdict.checks} == {
        "p(purchase) > p(click)": False,
        "a purchase without a click": True,
    }
    (nothing,) = judge(make_report(champion=False), gate(compare=[], coherence={})).checks
    assert nothing.passed is None


def test_drift(make_report: Make) -> None:
    drift = Drift(
        against="champion",
        split="test",
        rows_before=10,
        rows_now=10,
        features=(
            FeatureDrift(feature="country", psi=0.31, unseen_now=0.1),
            FeatureDrift(feature="item", psi=0.1, unseen_now=0.4),
            FeatureDrift(feature="age"),
        ),
        labels=(LabelDrift(target="click", before=0.2, now=0.1, observed_before=10, observed_now=10),),
    )
    report = make_report(champion=False, drift=(drift, drift.model_copy(update={"against": "model", "features": ()})))
    verdict = judge(report, gate(compare=[], drift={"unseen": 0.5, "label_change": 0.5}))
    assert [check.passed for check in verdict.checks] == [False, True, True]
    assert verdict.reasons[0].endswith("champion: above the permitted 0.25 in country 0.31.")
    assert judge(report, gate(compare=[], drift={"psi": 0.32, "unseen": 0.39})).decision == "refuse"
    assert judge(report, gate(compare=[], drift={"psi": 0.32, "label_change": 0.49})).decision == "refuse"


def test_guards(make_report: Make) -> None:
    allowed = Guard(name="overlap", status="allowed", text="times overlap", reason="backfill")
    failed = Guard(name="leak", status="failed", text="`purchase_price` tells the label.")
    fine = judge(make_report(champion=False, guards=(allowed,)), gate(compare=[], guards=True))
    assert fine.checks[0].text == "None of 1 guard failed; allowed by the config: overlap (backfill)."
    verdict = judge(make_report(champion=False, guards=(allowed, failed)), gate(compare=[], guards=True))
    assert verdict.reasons == ("Guard leak failed: `purchase_price` tells the label.",)


# What the config says


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"compare": [{"metric": "auc", "margin": 0}]}, "expected TARGET.METRIC"),
        ({"compare": [{"metric": "click.acu", "margin": 0}]}, "no metric 'acu'; did you mean 'auc'"),
        ({"compare": [{"metric": "click.ndcg@x", "margin": 0}]}, "expected ndcg@K"),
        ({"compare": [{"metric": "click.auc@5", "margin": 0}]}, "no metric 'auc@5'"),
        ({"compare": [{"metric": "click.auc"}]}, "give `margin`"),
        ({"compare": [{"metric": "click.auc", "permitted_loss": 0, "relative_loss": 0}]}, "not both"),
        ({"compare": [{"metric": "click.auc", "margin": 0, "value": "DE"}]}, "say which with `slice`"),
        ({"compare": [{"metric": "click.auc", "margin": 0, "by": "user"}]}, "belong to rankings"),
        ({"compare": [{"metric": "click.calibration", "margin": 0}]}, "bound it instead"),
        ({"compare": [{"metric": "click.mrr", "margin": 0, "slice": "x"}]}, "not measured in slices"),
        ({"bounds": [{"metric": "click.auc"}]}, "give `at_least` or `at_most`"),
        ({"bounds": [{"metric": "click.auc", "at_least": 1, "at_most": 0}]}, "nothing passes"),
    ],
)
def test_what_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GateConfig.model_validate(fields)


def test_tasks_are_known_when_the_config_is_read() -> None:
    tasks = Tasks(
        [
            Task(name="click", kind="binary", label="c"),
            Task(name="purchase", kind="binary", label="p", parent="click"),
            Task(name="stars", kind="ordinal", label="s", levels=(1, 2)),
        ]
    )
    for metric in ("click.auc", "purchase_given_click.auc", "stars.rmse", "*.auc", "stars.main", "click.ndcg@5"):
        gate(compare=[{"metric": metric, "margin": 0}]).check(tasks)
    with pytest.raises(ValueError, match=r"registry\.gate\.compare\.0\.metric: clik\.auc: .* did you mean 'click'"):
        gate(compare=[{"metric": "clik.auc", "margin": 0}]).check(tasks)
    with pytest.raises(ValueError, match=r"bounds\.0\.metric: stars\.auc: a task of kind ordinal has no auc"):
        gate(bounds=[{"metric": "stars.auc", "at_least": 0}]).check(tasks)
    with pytest.raises(ValueError, match=r"calibration\.targets: there is no task 'clicks'; did you mean 'click'"):
        gate(calibration={"targets": ["clicks"]}).check(tasks)


def test_what_the_report_cannot_have_is_said_with_the_nearest(figure_row: Row, make_report: Make) -> None:
    report = make_report(figure_row("click", "auc", 0.76, 0.75), slices=(sliced("DE", 0.0),))
    with pytest.raises(UserError, match=r"no target 'clik' in the report; did you mean 'click'"):
        judge(report, gate(compare=[{"metric": "clik.auc", "margin": 0}]))
    with pytest.raises(UserError, match=r"bounds\.0\.metric: click has no metric 'rmse'"):
        judge(report, gate(bounds=[{"metric": "click.rmse", "at_most": 1}]))
    with pytest.raises(UserError, match=r"no slice 'contry'; did you mean 'country'"):
        judge(report, gate(compare=[{"metric": "click.auc", "slice": "contry", "margin": 0}]))
    with pytest.raises(UserError, match="no slice 'x'; the evaluation cut none"):
        judge(
            make_report(figure_row("click", "auc", 1)), gate(bounds=[{"metric": "*.auc", "slice": "x", "at_least": 0}])
        )


# As tags


def test_every_check_is_in_the_tags_with_its_figures(figure_row: Row, make_report: Make) -> None:
    report = make_report(figure_row("click", "auc", 0.60, 0.75), figure_row("stars", "rmse", 1.0, 1.0))
    verdict = judge(report, GateConfig(), PACKAGE)
    tags = verdict_tags(report.model_copy(update={"verdict": verdict}))
    assert tags["recmtl.gate"] == "refuse"
    lines = tags["recmtl.gate.checks"].splitlines()
    assert len(lines) == len(verdict.checks)
    assert lines[0].startswith("failed · click.auc vs champion · click.auc: 0.6 against the champion's 0.75, -0.15")
    assert any(line.startswith("passed · stars.rmse vs champion") for line in lines)
    assert set(tags) == {
        "recmtl.gate",
        "recmtl.gate.reasons",
        "recmtl.gate.checks",
        "recmtl.gate.failed.click.auc vs champion",
        "recmtl.gate.failed.better than champion",
    }


def test_tags_are_as_long_as_mlflow_takes(make_report: Make) -> None:
    checks = tuple(
        Check(name=f"click.auc in country={i:03} vs champion", group="slice", passed=i % 2 == 0, text="x" * 90)
        for i in range(200)
    )
    verdict = Verdict(decision="refuse", reasons=("y" * 400,) * 50, checks=checks)
    tags = verdict_tags(make_report().model_copy(update={"verdict": verdict}))
    assert max(map(len, tags.values())) <= 5000
    lines = tags["recmtl.gate.checks"].splitlines()
    assert lines[-1] == f"and {201 - len(lines)} more checks in report.json"
    assert len([key for key in tags if key.startswith("recmtl.gate.failed.")]) == 30
    assert not any(letter in key for key in tags for letter in "=@,")


def test_the_documented_gate_is_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "registry.md").read_text()
    (documented,) = [part for part in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if part.startswith("gate:")]
    config = GateConfig.model_validate(yaml.safe_load(documented)["gate"])
    assert {rule.metric for rule in config.compare} == {"click.auc", "click.ndcg@10"}
    assert config.drift is not None
    assert set(GateConfig.model_fields) == config.model_fields_set, "every field is shown"
