"""Numbers and findings as a person reads them.

In: figures. Out: texts: a number with the decimals that its size asks for, an interval, a count, a share, and whether a
difference is better, worse or cannot be told.
"""

import math
from typing import Literal

from recmtl.findings import Difference, Figure

__all__ = [
    "NOTHING",
    "Outcome",
    "count",
    "directed",
    "instant",
    "interval",
    "lower",
    "metric_name",
    "num",
    "outcome",
    "p_value",
    "percent",
    "plain",
    "plural",
    "seconds",
    "signed",
    "signed_percent",
]

NOTHING = "–"
"""Stands where a figure is undefined."""

Outcome = Literal["better", "worse", "higher", "lower", "cannot tell", ""]

_NAMES = {
    "auc": "AUC",
    "pr_auc": "PR-AUC",
    "user_auc": "User AUC",
    "macro_auc": "Macro AUC",
    "auc_by_rows": "AUC by rows",
    "log_loss": "Log loss",
    "normalised_entropy": "Normalised entropy",
    "calibration": "Calibration ratio",
    "ece": "ECE",
    "rmse": "RMSE",
    "mae": "MAE",
    "spearman": "Spearman",
    "kappa": "Kappa",
    "accuracy": "Accuracy",
    "ndcg": "NDCG",
    "map": "MAP",
    "recall": "Recall",
    "mrr": "MRR",
}


def metric_name(metric: str, k: int | None = None) -> str:
    """``AUC`` of ``auc``, ``NDCG@10`` of ``ndcg``; a metric without a name of its own is spelt out."""
    name = _NAMES.get(metric) or plain(metric)
    return name if k is None else f"{name}@{k}"


def lower(name: str) -> str:
    """A name inside a sentence: an acronym stays as it is."""
    return name[:1].lower() + name[1:] if name[1:2].islower() else name


def plain(name: str) -> str:
    """A snake_case name as words."""
    words = name.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def directed(name: str, higher_is_better: bool | None) -> str:
    """A name with an arrow that says which way is better, never on a line of its own."""
    return name + {True: "\N{NO-BREAK SPACE}↑", False: "\N{NO-BREAK SPACE}↓", None: ""}[higher_is_better]


def num(value: float | None) -> str:
    """Four decimals, fewer for large values, scientific for small ones; whole counts as they are."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if isinstance(value, int):
        return count(value)
    size = abs(value)
    if size < 1e-9:
        text = "0.0000"
    elif size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        text = f"{mantissa}×10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    else:
        text = f"{value:.4f}" if size < 100 else f"{value:,.2f}" if size < 1e6 else f"{value:,.0f}"
    return text.replace("-", "−")


def signed(value: float | None) -> str:
    """A difference, with its sign, to four decimals wherever that shows something."""
    if value is None or not math.isfinite(value):
        return NOTHING
    text = f"{value:+.4f}" if abs(value) >= 5e-5 or abs(value) < 1e-9 else f"{value:+.1e}"
    return (f"{value:+,.2f}" if abs(value) >= 100 else text).replace("-", "−")


def interval(figure: Figure, *, sign: bool = False) -> str:
    """``0.7301 to 0.7349``; empty where there is none."""
    if figure.low is None or figure.high is None:
        return ""
    show = signed if sign else num
    return f"{show(figure.low)} to {show(figure.high)}"


def count(value: float | None) -> str:
    """A whole number with its thousands apart."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:,.0f}".replace("-", "−")


def percent(value: float | None, decimals: int = 1) -> str:
    """A share in hundredths."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if 0 < abs(value) < 0.5 * 10 ** -(decimals + 2):
        return (
            f"< {10**-decimals:.{decimals}f}\N{NO-BREAK SPACE}%"
            if value > 0
            else f"{value * 100:.1g}\N{NO-BREAK SPACE}%".replace("-", "−")
        )
    return f"{value * 100:.{decimals}f}\N{NO-BREAK SPACE}%".replace("-", "−")


def signed_percent(value: float | None) -> str:
    """A relative change in hundredths."""
    text = percent(value)
    return f"+{text}" if value is not None and value > 0 else text


def p_value(value: float | None) -> str:
    """Three decimals; what is below is said to be."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def seconds(value: float | None) -> str:
    """A duration as a person says it."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h"


def instant(text: str | None) -> str:
    """ISO 8601 to the minute; whatever else it is, as it is."""
    if not text:
        return NOTHING
    return text[:16].replace("T", "\N{NO-BREAK SPACE}") if len(text) >= 16 and text[10:11] in "T " else text


def plural(number: int, one: str, many: str | None = None) -> str:
    """``1 check``, ``12 checks``."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"


def outcome(difference: Difference, higher_is_better: bool | None, confidence: float) -> Outcome:
    """What a difference says of the model: the corrected p-value decides, else the p-value, else the interval.

    ``higher`` or ``lower`` where the metric has no better end; empty where nothing was measured.
    """
    value = difference.value
    if value is None or not math.isfinite(value):
        return ""
    p = difference.p_corrected if difference.p_corrected is not None else difference.p_value
    if p is not None:
        sure = p < 1 - confidence
    elif difference.low is not None and difference.high is not None:
        sure = difference.low > 0 or difference.high < 0
    else:
        return ""
    if not sure or value == 0:
        return "cannot tell"
    if higher_is_better is None:
        return "higher" if value > 0 else "lower"
    return "better" if (value > 0) == higher_is_better else "worse"
