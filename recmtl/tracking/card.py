"""The model card: what a registered version was made from, for what, how good it is and where not to trust it.

In: the report of its evaluation and what its package says. Out: Markdown, the version's description, in the order of
Mitchell et al. 2019 (https://arxiv.org/abs/1810.03993). MLflow keeps 5,000 characters of it in a database, so the least
needed is cut first and the cut is said; report.json, which lies with the version, has everything.
"""

from collections.abc import Sequence
from typing import Any

from recmtl.findings import Figure, FigureRow, Report
from recmtl.package import Contents
from recmtl.tracking.base import redact

__all__ = ["LONGEST", "model_card"]

LONGEST = 5000
"""Characters of a version's description that every database of MLflow's takes."""
_KINDS = {
    "binary": "probability",
    "regression": "expected value",
    "ordinal": "expected value",
    "multiclass": "probabilities of its classes",
}


def model_card(report: Report, contents: Contents) -> str:
    """The card of a version, at most :data:`LONGEST` characters, secrets left out.

    Args:
        report: of the evaluation of this package, judged.
        contents: of the package.
    """
    sections = [
        ("", _head(report, contents)),
        ("## Intended use", _use(contents)),
        ("## Trained on", _data(report, contents)),
        ("## Figures", _figures(report)),
        ("## Verdict of the gate", _verdict(report)),
        ("## Limits", _limits(report)),
        ("## Load", _load()),
    ]
    # What goes first when it is too long: the ends of figures, limits, verdict and data.
    for shorten in ("## Figures", "## Limits", "## Verdict of the gate", "## Trained on", ""):
        text = _joined(sections)
        if len(text) <= LONGEST:
            break
        sections = [
            (title, _shorter(lines, len(text) - LONGEST) if title == shorten else lines) for title, lines in sections
        ]
    return _joined(sections)[:LONGEST]


def _joined(sections: Sequence[tuple[str, Sequence[str]]]) -> str:
    parts = ["\n".join([title, "", *lines] if title else lines) for title, lines in sections if lines]
    return redact("\n\n".join(parts) + "\n")


def _shorter(lines: Sequence[str], by: int) -> list[str]:
    """Lines without as many of the last ones as it takes to be shorter by so many characters; three always stay."""
    kept = list(lines)
    told = "… the rest is in report.json."
    by += len(told) + 1
    while by > 0 and len(kept) > 3:
        by -= len(kept.pop()) + 1
    return kept if len(kept) == len(lines) else [*kept, "", told]


def _head(report: Report, contents: Contents) -> list[str]:
    about = report.about
    tower = contents.model.get("tower", {})
    kind = f" ({tower['kind']} tower)" if isinstance(tower, dict) and "kind" in tower else ""
    return [
        f"# {about.name}",
        "",
        f"A multi-task ranker{kind} for {_listed(list(contents.tasks))}, from {len(contents.schema)} features. "
        f"Made by recmtl {contents.versions.get('recmtl', about.version)}"
        f"{f' at commit {about.commit}' if about.commit else ''}; evaluated {about.created[:16]} on the {about.split} "
        f"rows. Package {contents.digest[:12]}.",
    ]


def _use(contents: Contents) -> list[str]:
    lines = ["Scores rows of a user and an item for ranking. It predicts, for each row:", ""]
    for name, task in contents.tasks.items():
        given = f", which cannot be without {task.parent}" if task.parent else ""
        when = f", meant for rows with {task.observed.when}" if task.observed else ""
        lines.append(f"- `{name}`: {_KINDS[task.kind]}{given}{when}")
    lines += ["", "Not for decisions about a single person, nor for rows unlike the data below."]
    return lines


def _data(report: Report, contents: Contents) -> list[str]:
    data = report.data
    lines = [f"{data.name} (source {data.source}), data {contents.data[:12]}."]
    for split, facts in data.splits.items():
        rows, period = facts.get("rows"), facts.get("time_range")
        said = f"- {split}: {rows:,} rows" if isinstance(rows, int) else f"- {split}"
        if period:
            said += f", {period[0]} to {period[1]}"
        lines.append(said)
    if data.observed_until:
        lines.append(f"- labels observed until {data.observed_until}")
    rejected = sum(sum(reasons.values()) for reasons in data.rejected.values())
    if rejected:
        lines.append(f"- {rejected:,} rows of the logs were rejected")
    return lines


def _figures(report: Report) -> list[str]:
    rows = [row for row in report.figures if row.headline] or list(report.figures)
    if not rows:
        return []
    others = [name for name in report.about.systems if name != "model" and any(name in row.systems for row in rows)]
    lines = [
        f"On the {report.about.split} rows, with {report.about.confidence:.0%} intervals.",
        "",
        f"| figure | model | {' | '.join([*others, 'rows'])} |",
        f"|---|---|{'---|' * (len(others) + 1)}",
    ]
    for row in rows:
        cells = [_figure(row.systems.get("model")), *(_value(row, name) for name in others), f"{row.rows:,}"]
        lines.append(f"| {row.target} {row.metric} | {' | '.join(cells)} |")
    return lines


def _verdict(report: Report) -> list[str]:
    verdict = report.verdict
    if verdict.decision == "not judged":
        return ["No gate was configured: nothing was judged."]
    against = "a champion" if "champion" in report.about.systems else "absolute bounds alone, there being no champion"
    lines = [f"**{verdict.decision}**, judged against {against}.", ""]
    return [*lines, *(f"- {reason}" for reason in verdict.reasons)]


def _limits(report: Report) -> list[str]:
    lines = []
    small = sorted({f"{row.slice}={row.value}" for row in report.slices if row.small})
    if small:
        lines.append(f"- Too few rows to say how good it is in {_listed(small, 5)}.")
    lines += [
        f"- {row.text} on {row.share:.2%} of the rows."
        for row in report.coherence
        if row.share and row.system in (None, "model")
    ]
    lines += [
        f"- Guard {guard.name} is allowed: {guard.reason or guard.text}"
        for guard in report.guards
        if guard.status == "allowed"
    ]
    unseen = [
        (feature.unseen_now, feature.feature)
        for drift in report.drift
        if drift.against == "model"
        for feature in drift.features
        if feature.unseen_now
    ]
    lines += [f"- {share:.1%} of the values of {name} were never seen in training." for share, name in _most(unseen)]
    lines += [f"- {note}" for note in (*report.data.warnings, *report.notes)]
    return lines or ["- None were found beyond the evaluation's own: what is not in its rows was not measured."]


def _load() -> list[str]:
    return [
        "`recmtl predict --model models:/NAME/VERSION --input ROWS.parquet --output DIR`, or "
        '`mlflow.pyfunc.load_model("models:/NAME/VERSION").predict(frame)` with a frame of raw columns.'
    ]


def _value(row: FigureRow, system: str) -> str:
    figure = row.systems.get(system)
    return "" if figure is None or figure.value is None else f"{figure.value:.4g}"


def _figure(figure: Figure | None) -> str:
    if figure is None or figure.value is None:
        return "undefined"
    if figure.low is None or figure.high is None:
        return f"{figure.value:.4g}"
    return f"{figure.value:.4g} ({figure.low:.4g} to {figure.high:.4g})"


def _most(pairs: Sequence[tuple[Any, str]]) -> list[tuple[Any, str]]:
    return sorted(pairs, reverse=True)[:3]


def _listed(items: Sequence[str], most: int = 8) -> str:
    shown = [*items[:most], *([f"{len(items) - most} more"] if len(items) > most else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
