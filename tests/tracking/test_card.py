"""The model card: what it says, and that it fits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recmtl.findings import Coherence, Drift, FeatureDrift, Guard, Report, SliceRow, Verdict
from recmtl.package import Contents, verify_package
from recmtl.tracking.card import LONGEST, model_card

Make = Callable[..., Report]
Row = Callable[..., Any]


@pytest.fixture
def contents(saved: Path) -> Contents:
    return verify_package(saved)


def test_what_a_card_says(figure_row: Row, make_report: Make, contents: Contents) -> None:
    headline = figure_row("click", "auc", 0.76, 0.75).model_copy(update={"headline": True})
    report = make_report(
        headline,
        figure_row("click", "ece", 0.01, 0.02),
        slices=(SliceRow(slice="country", value="DE", target="click", rows=3, small=True, systems={}),),
        coherence=(
            Coherence(kind="prediction", text="p(purchase) > p(click)", system="model", rows=1, of=200, share=0.005),
        ),
        guards=(Guard(name="overlap", status="allowed", text="times overlap", reason="a backfill"),),
        drift=(
            Drift(
                against="model",
                split="test",
                rows_before=1,
                rows_now=1,
                features=(FeatureDrift(feature="item", unseen_now=0.25),),
            ),
        ),
        notes=("No request column, so nothing is ranked by request.",),
    )
    verdict = Verdict(decision="promote", reasons=("Significantly better than the champion in click.auc.",))
    card = model_card(report.model_copy(update={"verdict": verdict}), contents)
    for line in (
        "# demo",
        "A multi-task ranker (mmoe tower) for click, purchase, watched, stars and mood, from 8 features.",
        "- `purchase`: probability, which cannot be without click",
        "- train: 8,000 rows, 2026-01-01 to 2026-01-07",
        "| figure | model | champion | rows |",
        "| click auc | 0.76 (0.758 to 0.762) | 0.75 | 1,000 |",
        "**promote**, judged against a champion.",
        "- Significantly better than the champion in click.auc.",
        "- Too few rows to say how good it is in country=DE.",
        "- p(purchase) > p(click) on 0.50% of the rows.",
        "- Guard overlap is allowed: a backfill",
        "- 25.0% of the values of item were never seen in training.",
        "- No request column, so nothing is ranked by request.",
        "recmtl predict --model models:/NAME/VERSION",
    ):
        assert line in card, card
    assert "ece" not in card, "headline figures alone"
    titles = [line for line in card.splitlines() if line.startswith("## ")]
    assert [title[3:] for title in titles] == [
        "Intended use",
        "Trained on",
        "Figures",
        "Verdict of the gate",
        "Limits",
        "Load",
    ]


def test_a_card_without_much_to_say(make_report: Make, contents: Contents) -> None:
    card = model_card(make_report(champion=False), contents)
    assert "No gate was configured: nothing was judged." in card
    assert "## Figures" not in card
    refused = make_report(champion=False, decision="refuse")
    assert "**refuse**, judged against absolute bounds alone" in model_card(refused, contents)


def test_a_card_fits_what_a_database_takes(figure_row: Row, make_report: Make, contents: Contents) -> None:
    rows = [figure_row(f"task_{i}", "auc", 0.7, 0.7) for i in range(200)]
    reasons = tuple(f"Reason {i}, which is a long sentence about some slice of the rows." for i in range(100))
    report = make_report(*rows, notes=("note " * 50,) * 40)
    card = model_card(report.model_copy(update={"verdict": Verdict(decision="refuse", reasons=reasons)}), contents)
    assert LONGEST * 0.5 < len(card) <= LONGEST
    assert card.count("… the rest is in report.json.") == 3
    assert card.rstrip().endswith("with a frame of raw columns.")
    assert "**refuse**" in card
    few = make_report(*rows[:90])
    card = model_card(few, contents)
    assert len(card) <= LONGEST
    assert len(card) > LONGEST - 400, "no more is cut than must be"


def test_a_card_holds_no_secret(make_report: Make, contents: Contents) -> None:
    card = model_card(make_report(notes=("read from https://ann:s3cret@host/x",)), contents)
    assert "s3cret" not in card
    assert "https://host/x" in card
