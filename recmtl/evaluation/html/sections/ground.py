"""What stands under the figures: fusion, drift, guards, the data, the cost, the config, and what the words mean."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import yaml
from markupsafe import Markup

from recmtl.evaluation.html.blocks import (
    Block,
    Cell,
    Charts,
    Code,
    Column,
    Facts,
    Fold,
    Heading,
    Items,
    Prose,
    Section,
    Table,
    Tone,
)
from recmtl.evaluation.html.charts import Chart, Row, Series, bars, xy_chart
from recmtl.evaluation.html.sections.context import Context, first, number, unique
from recmtl.evaluation.html.svg import element
from recmtl.evaluation.html.words import (
    NOTHING,
    count,
    instant,
    metric_name,
    num,
    percent,
    plain,
    plural,
    seconds,
    signed,
    signed_percent,
)
from recmtl.findings import Drift, FeatureDrift, Fusion, FusionPoint

__all__ = ["config", "cost", "data", "drift", "fusion", "glossary", "guards"]

_LITTLE, _MUCH = 0.1, 0.25
"""Of the population stability index: what :class:`recmtl.findings.FeatureDrift` says of it."""
_RANKED = {
    "ndcg": "Gains of the first k rows of a list, each divided by the logarithm of its place, over the highest "
    "possible (Järvelin and Kekäläinen 2002); 1 is the best order.",
    "map": "Mean, over lists, of the precision at each positive among the first k rows; 1 is the best order.",
    "recall": "Share of a list's positives that are among its first k rows.",
    "mrr": "Mean, over lists, of one over the place of the first positive.",
    "auc_by_rows": "AUC within each list, averaged with the lists' rows as weights.",
}
_BARS = 15
"""Features of a chart."""
_CHOICES = 300
"""Points of a kind in a chart, and rows of its table."""
_ROWS = 1000
"""Of the tables of features and of files."""


def fusion(context: Context) -> Section:
    """The weights of the fused score, and what they were chosen from."""
    section = Section("fusion", "Score fusion")
    found = context.report.fusion
    if found is None:
        return section
    section.lead = (
        f"{plural(len(found.points), 'choice')} of weights tried on {found.split}. One is on the Pareto front when no "
        "other is better for one task and no worse for the rest. In the pictures, up and right is better."
    )
    facts = [("Formula", found.formula), ("Judged by", f"NDCG@{found.k} per {found.by}")]
    facts += [(f"Weight {name}", num(weight)) for name, weight in found.weights.items()]
    section.blocks.append(Facts(facts))
    tasks = unique(task for point in found.points for task in point.objectives)
    charts = [_pareto(found, one, other) for one, other in list(combinations(tasks, 2))[:6]]
    section.blocks.append(Charts([chart for chart in charts if chart]))
    every = [point for point in found.points if point.on_front or point.chosen]
    front, more = first(every, _CHOICES, "choices on the front")
    if front:
        names = unique(name for point in front for name in point.weights)
        columns = [Column("Choice"), *(Column(f"Weight {name}", True) for name in names)]
        columns += [Column(f"{task} NDCG@{found.k} ↑", True) for task in tasks]
        rows = []
        for index, point in enumerate(front):
            said = Cell(f"{index + 1}", sort=index)
            if point.chosen:
                said = Cell("chosen", sort=-1, tone="good", mark="✓")
            values = [point.weights.get(name) for name in names] + [point.objectives.get(task) for task in tasks]
            rows.append([said, *(number(v) for v in values)])
        table = Table("Choices of weights on the Pareto front", columns, rows, quiet=True)
        section.blocks.append(Fold(f"The front as a table ({len(every)})", [table, *more]))
    return section


def _pareto(found: Fusion, one: str, other: str) -> Chart | None:
    groups: list[tuple[str, list[FusionPoint], int]] = [
        ("another choice", [p for p in found.points if not p.on_front and not p.chosen][:_CHOICES], 2),
        ("on the front", [p for p in found.points if p.on_front and not p.chosen][:_CHOICES], 0),
        ("chosen", [p for p in found.points if p.chosen], 1),
    ]
    series = []
    for name, points, style in groups:
        series.append(
            Series(
                name,
                [p.objectives.get(one) for p in points],
                [p.objectives.get(other) for p in points],
                style,
                notes=[", ".join(f"{k} {num(v)}" for k, v in {**p.weights, **p.objectives}.items()) for p in points],
                line=False,
                markers=True,
            )
        )
    chosen = groups[2][1]
    said = f"{sum(p.on_front or p.chosen for p in found.points)} of {len(found.points)} choices are on the front"
    if chosen:
        values = [chosen[0].objectives.get(task) for task in (one, other)]
        said += f"; the chosen one reaches {num(values[0])} for {one} and {num(values[1])} for {other}"
    return xy_chart(
        f"NDCG@{found.k} of {other} against that of {one}",
        f"{said}.",
        series,
        x_name=f"NDCG@{found.k} of {one}",
        y_name=f"NDCG@{found.k} of {other}",
        caption=f"{one} and {other}",
        legend_above=True,
    )


def drift(context: Context) -> Section:
    """The evaluated rows against what a model was trained on."""
    section = Section("drift", "Drift")
    for index, found in enumerate(context.report.drift):
        title = f"{plain(found.split)} against the {found.against}'s training data"
        section.blocks.append(Heading(title, f"drift-{index}"))
        section.blocks.append(
            Prose(f"{plural(found.rows_now, 'row')} now, {plural(found.rows_before, 'row')} in training.")
        )
        section.blocks += _drift(found, title)
    if context.report.drift:
        section.lead = (
            "Whether the rows still look like those that the model learned from. The population stability index (PSI) "
            f"is small below {_LITTLE} and large above {_MUCH}."
        )
    return section


def _drift(found: Drift, title: str) -> Iterator[Block]:
    ranked = sorted(found.features, key=lambda f: -(f.psi if f.psi is not None else -1.0))
    rows = [
        Row(
            f.feature,
            f.psi,
            style=_psi(f)[3],
            text=_psi_text(f.psi),
            note=f"{f.feature}: PSI {num(f.psi)} {_psi(f)[0]}",
        )
        for f in ranked
        if f.psi is not None
    ]
    if rows:
        large = sum(_psi(f)[0] == "much" for f in ranked)
        chart = bars(
            "Population stability index of each feature",
            f"{plural(large, 'feature')} above {_MUCH}. Largest: "
            + ", ".join(f"{r.name} {r.text}" for r in rows[:3])
            + ".",
            rows[:_BARS],
            caption=f"PSI by feature{f', first {_BARS} of {len(rows)}' if len(rows) > _BARS else ''}",
            marks={f"{_LITTLE}": _LITTLE, f"{_MUCH}": _MUCH},
            x_name="population stability index",
        )
        yield Charts([chart] if chart else [])
    if found.labels:
        lines = []
        for label in found.labels:
            change = None if label.before is None or label.now is None else label.now - label.before
            relative = None if change is None or not label.before else change / label.before
            lines.append(
                [
                    Cell(label.target),
                    *(number(v) for v in (label.before, label.now)),
                    Cell(
                        signed(change),
                        sort=change if change is not None else "",
                        note="" if relative is None else f"{signed_percent(relative)} of what it was",
                    ),
                    *(number(v, count) for v in (label.observed_before, label.observed_now)),
                ]
            )
        columns = [Column("Target"), Column("Mean label before", True), Column("Now", True), Column("Change", True)]
        columns += [Column("Observed before", True), Column("Observed now", True)]
        yield Table("Labels before and now", columns, lines)
    if ranked:
        lines = []
        shown, more = first(ranked, _ROWS, "features")
        for f in shown:
            word, tone, mark, _ = _psi(f)
            shares = (f.unseen_before, f.unseen_now, f.missing_before, f.missing_now)
            lines.append(
                [
                    Cell(f.feature),
                    Cell(f"{num(f.psi)} {word}".rstrip(), sort="" if f.psi is None else f.psi, tone=tone, mark=mark),
                    *(number(v, percent) for v in shares),
                ]
            )
        columns = [Column("Feature"), Column("PSI", True), Column("Unseen before", True), Column("Unseen now", True)]
        columns += [Column("Missing before", True), Column("Missing now", True)]
        yield Fold(
            f"All {len(ranked)} features", [Table(f"Drift of features: {title}", columns, lines, quiet=True), *more]
        )


def _psi_text(psi: float) -> str:
    text = "< 0.001" if psi < 0.0005 else f"{psi:.3f}"
    return text if psi < _LITTLE else f"{text} {'some' if psi <= _MUCH else 'much'}"


def _psi(feature: FeatureDrift) -> tuple[str, Tone, str, int]:
    if feature.psi is None:
        return "", "", "", 2
    if feature.psi < _LITTLE:
        return "little", "", "", 2
    return ("some", "warn", "!", 5) if feature.psi <= _MUCH else ("much", "bad", "✕", 1)


def guards(context: Context) -> Section:
    """The checks of the protocol."""
    section = Section("guards", "Guards")
    if not context.report.guards:
        return section
    section.lead = "What was looked at so that the figures above mean what they say."
    looks: dict[str, tuple[Tone, str, int]] = {
        "failed": ("bad", "✕", 0),
        "allowed": ("warn", "!", 1),
        "passed": ("good", "✓", 2),
        "not applicable": ("muted", "–", 3),
    }
    lines = []
    for guard in sorted(context.report.guards, key=lambda guard: looks[guard.status][2]):
        tone, mark, rank = looks[guard.status]
        reason = f"Allowed because: {guard.reason}" if guard.reason else ""
        state = Cell(guard.status, sort=rank, tone=tone, mark=mark)
        lines.append([Cell(plain(guard.name)), state, Cell(guard.text, note=reason)])
    columns = [Column("Guard"), Column("Result"), Column("What was found", sorts=False)]
    section.blocks.append(Table("Guards of the protocol", columns, lines, quiet=True, kind="stack"))
    return section


def data(context: Context) -> Section:
    """The data card."""
    card = context.report.data
    section = Section("data", "Data card")
    facts: list[tuple[str, str | Markup]] = [("Data set", card.name), ("Source", card.source)]
    if card.observed_until:
        facts.append(("Events recorded until", instant(card.observed_until)))
    if card.labels_as_of:
        facts.append(("Train labels as known at", instant(card.labels_as_of)))
    facts += [("Fingerprint", element("code", card.fingerprint)), ("Statistics", element("code", card.statistics))]
    section.blocks.append(Facts(facts))
    columns = [Column("Split"), Column("Rows", True), Column("From", True), Column("To", True)]
    rows = []
    for name, split in card.splits.items():
        begin, end = (split.get("time_range") or (None, None))[:2]
        rows.append([Cell(plain(name)), number(split.get("rows"), count), Cell(instant(begin)), Cell(instant(end))])
    if rows:
        section.blocks.append(Table("Splits", columns, rows, sortable=False))
    labels = list(_labels(card.splits))
    if labels:
        columns = [Column("Split"), Column("Task"), Column("Observed", True), Column("Positives", True)]
        columns += [Column("Mean label", True), Column("Does not count")]
        section.blocks.append(Table("Labels: maturity and what does not count", columns, labels, heads=2))
    lost = list(_lost(context))
    if lost:
        columns = [Column("Input"), Column("Read", True), Column("Duplicates", True), Column("Rejected rows")]
        columns += [Column("Left out"), Column("Events of no impression")]
        section.blocks.append(Table("What was read, and what was not used", columns, lost))
    if card.inputs:
        shown, more = first(list(card.inputs.items()), _ROWS, "files")
        files = [[Cell(name), Cell(digest, sub=True)] for name, digest in shown]
        columns = [Column("File"), Column("SHA-256")]
        table = Table("Input files and their SHA-256", columns, files, quiet=True, kind="stack")
        section.blocks.append(Fold(f"{plural(len(card.inputs), 'input file')} with hashes", [table, *more]))
    if card.warnings:
        section.blocks += [Heading("Warnings", "data-warnings"), Items(card.warnings)]
    return section


def _labels(splits: Mapping[str, Mapping[str, Any]]) -> Iterator[list[Cell]]:
    for name, split in splits.items():
        for task, found in (split.get("tasks") or {}).items():
            observed, positives, mean = found.get("observed"), found.get("positives"), found.get("mean")
            masked = _reasons(found.get("masked") or {})
            rate = percent(positives / observed) if positives is not None and observed else ""
            yield [
                Cell(plain(name)),
                Cell(task),
                number(observed, count),
                number(positives, count, note=rate),
                number(mean),
                Cell(masked),
            ]


def _lost(context: Context) -> Iterator[list[Cell]]:
    card = context.report.data
    for name in unique([*card.read, *card.duplicates, *card.rejected, *card.filtered, *card.unattributed]):
        read, twice = card.read.get(name), card.duplicates.get(name, 0)
        yield [
            Cell(name),
            number(read, count),
            number(twice, count),
            Cell(_reasons(card.rejected.get(name, {}))),
            Cell(_reasons(card.filtered.get(name, {}))),
            Cell(_reasons(card.unattributed.get(name, {}))),
        ]


def _reasons(counts: Mapping[str, int]) -> str:
    return "; ".join(f"{reason.replace('_', ' ')} {count(rows)}" for reason, rows in counts.items() if rows) or "none"


def cost(context: Context) -> Section:
    """Time, rate, memory."""
    found = context.report.cost
    section = Section("cost", "Cost")
    facts = []
    if found.seconds:
        facts.append(("Time, all stages", seconds(sum(found.seconds.values()))))
    facts += [(f"Rows a second, {stage}", count(rate)) for stage, rate in found.rows_per_second.items()]
    if found.peak_memory_mb is not None:
        facts.append(("Peak memory", f"{count(found.peak_memory_mb)} MiB"))
    if found.package_mb is not None:
        facts.append(("Package", f"{found.package_mb:,.1f} MiB"))
    if found.steps is not None:
        facts.append(("Steps", count(found.steps)))
    if found.epochs is not None:
        facts.append(("Epochs", count(found.epochs)))
    if found.device is not None:
        cores = "" if found.cores is None else f", {plural(found.cores, 'core')}"
        facts.append(("Device", f"{found.device}{cores}"))
    if facts:
        section.blocks.append(Facts(facts, large=True))
    if len(found.seconds) > 1:
        rows = [
            Row(stage, value, text=seconds(value), note=f"{stage}: {value:.1f} s")
            for stage, value in found.seconds.items()
        ]
        said = ", ".join(f"{row.name} {row.text}" for row in rows)
        chart = bars("Seconds of each stage", f"{said}.", rows, caption="Time of each stage", x_name="seconds")
        section.blocks += [Charts([chart])] if chart else []
    return section


def config(context: Context) -> Section:
    """The resolved config, to open."""
    section = Section("config", "Config")
    if context.report.config:
        text = yaml.safe_dump(context.report.config, sort_keys=False, allow_unicode=True, width=100)
        section.blocks.append(Fold("The config with every setting", [Code(text, "Resolved config as YAML")]))
    return section


def glossary(context: Context) -> Section:
    """What the words mean."""
    report = context.report
    section = Section("glossary", "Glossary")
    facts = [(metric_name(metric), f"{meaning[:1].upper()}{meaning[1:]}.") for metric, meaning in report.legend.items()]
    ranked = unique(row.metric for row in report.ranking if row.metric not in report.legend)
    facts += [(metric_name(metric), _RANKED[metric]) for metric in ranked if metric in _RANKED]
    known = {
        "baseline": "Predicts the training mean for every row.",
        "optimum": "The truth of the synthetic log, on the same rows: what no model can beat but by luck.",
        "champion": "The model that serves now.",
    }
    facts += [(context.name(system), text) for system, text in known.items() if system in context.systems]
    facts += [
        (
            "Interval",
            f"Holds the true figure in {context.confidence} of repetitions with other users from the same source; it "
            "says nothing of another seed or another week.",
        ),
        ("Difference", "This model less the other one on the same rows, so that what is common to both drops out."),
        (
            "p",
            "How often chance alone would make a difference this large where there is none. In the headline table it "
            "is corrected over the tasks (Holm 1979); in slices it is not.",
        ),
        (
            "Cannot tell",
            f"The difference is within what chance makes at {context.confidence} confidence: not the same as equal.",
        ),
        ("Small", "Too few rows, positives or users for the figures to mean much."),
        ("↑ ↓", "More is better; less is better."),
        (NOTHING, "Undefined on these rows, or not measured."),
    ]
    section.blocks.append(Facts(facts))
    return section
