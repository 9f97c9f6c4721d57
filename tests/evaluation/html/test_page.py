"""The page without a browser: that it is well made, safe, small, and says what the report says."""
# ruff: noqa: E501 - rows of data, one a line

import itertools
import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from sample import sample_report
from structure import Structure

from recmtl.evaluation.html import read_report, render, write_html, write_json
from recmtl.evaluation.html.sections import sections
from recmtl.findings import (
    Check,
    Coherence,
    Curve,
    DataCard,
    Difference,
    Figure,
    FigureRow,
    Guard,
    Importance,
    Report,
    SliceRow,
    Verdict,
    schema,
)

HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(2)>"'&{{ 12345679*9 }}"""
ALL = [
    "verdict", "headline", "notes", "training", "calibration", "curves", "ranking", "slices", "gates", "conflicts",
    "importance", "fusion", "coherence", "drift", "guards", "data", "cost", "config", "glossary",
]  # fmt: skip


@pytest.fixture(scope="module")
def read(page: str) -> Structure:
    return Structure(page)


def test_every_section_is_there_in_order(full: Report, page: str) -> None:
    assert [section.id for section in sections(full)] == ALL
    assert re.findall(r'<section id="([\w-]+)"', page) == ALL


def test_elements_close_and_ids_are_there_once(read: Structure) -> None:
    assert read.wrong == []
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"] for a in read.all("a") if (a.get("href") or "").startswith("#")]
    assert len(targets) == len(ALL) + 1
    assert {target[1:] for target in targets if target} <= set(ids)
    for _, attributes in read.elements:
        for name in ("aria-labelledby", "aria-describedby", "for"):
            assert attributes.get(name) is None or attributes[name] in ids


def test_headings_nest(read: Structure) -> None:
    levels = [int(tag[1]) for tag, _ in read.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_picture_has_a_title_and_every_chart_a_description(read: Structure) -> None:
    pictures = [number for number, (tag, _) in enumerate(read.elements) if tag == "svg"]
    assert len(pictures) > 300
    for number in pictures:
        _tag, attributes = read.elements[number]
        children = [read.elements[child][0] for child in read.children[number]]
        assert attributes["role"] == "img"
        assert children[0] == "title"
        if "figure" in read.inside[number] or "article" in read.inside[number]:
            assert children[1] == "desc"


def test_tables_have_captions_and_scopes(read: Structure) -> None:
    tables = [number for number, (tag, _) in enumerate(read.elements) if tag == "table"]
    assert len(tables) > 20
    for number in tables:
        assert read.elements[read.children[number][0]][0] == "caption"
    heads = read.all("th")
    assert {head["scope"] for head in heads} == {"col", "row"}
    for tag, attributes in read.elements:  # what scrolls can be reached by keyboard, and says what it is
        if tag == "div" and "scroll" in (attributes.get("class") or "").split():
            assert attributes["tabindex"] == "0"
            assert attributes["role"] == "region"
            assert attributes["aria-label"]


def test_rows_are_as_long_as_their_heads(page: str) -> None:
    for table in re.findall(r"<table.*?</table>", page, re.S):
        rows = [len(re.findall(r"<t[hd][ >]", row)) for row in re.findall(r"<tr.*?</tr>", table, re.S)]
        assert len(set(rows)) == 1, table[:200]


def test_nothing_is_asked_of_the_network(page: str, read: Structure) -> None:
    assert not re.search(r"(?:https?:)?//[\w-]+\.", page)
    for tag, attributes in read.elements:
        assert tag not in ("img", "iframe", "object", "embed", "base"), tag
        assert "src" not in attributes
        assert "style" not in attributes  # the policy would refuse it
        assert not [name for name in attributes if name.startswith("on")]
    assert [link["href"] for link in read.all("link")] == ["data:,"]
    policy = next(m["content"] for m in read.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "@import" not in page
    assert "url(" not in page


def test_the_page_is_small(page: str) -> None:
    assert len(page.encode()) < 1_000_000


def test_the_page_stays_small_on_much_more(full: Report) -> None:
    extra = {f"metric_{n}": Figure(value=0.5, low=0.4, high=0.6) for n in range(8)}
    slices = tuple(
        row.model_copy(update={"slice": f"{row.slice}_{n}", "systems": {s: v | extra for s, v in row.systems.items()}})
        for n in range(8)
        for row in full.slices
    )
    line = tuple(n / 5000 for n in range(5001))
    curves = tuple(
        curve.model_copy(update={"x": line, "y": line}) if curve.kind != "calibration" else curve
        for curve in full.curves
    )
    update: dict[str, Any] = {
        "slices": slices,
        "curves": curves,
        "importance": tuple(
            row.model_copy(update={"feature": f"{row.feature}_{n}"}) for n in range(15) for row in full.importance
        ),
        "gates": full.gates
        + tuple(g.model_copy(update={"slice": "s", "value": str(n)}) for n in range(100) for g in full.gates[:3]),
        "fusion": full.fusion.model_copy(update={"points": full.fusion.points * 15}) if full.fusion else None,
    }
    text = render(full.model_copy(update=update))
    assert len(text.encode()) < 5_000_000
    assert re.search(r"[\d,]+ more parts of click are in report.json", text)
    assert "more figures are in report.json" in text


def test_small_parts_give_way_first(full: Report) -> None:
    row = full.slices[0]
    many = [row.model_copy(update={"value": f"v{n}", "small": n < 900}) for n in range(2500)]
    text = render(full.model_copy(update={"slices": tuple(many), "curves": (), "importance": ()}))
    shown = re.findall(r'<th scope="row">v(\d+)</th>', text)
    assert 900 < len(shown) < 1600
    assert all(int(number) >= 900 for number in shown), "small ones are shown when all the others are"
    assert "more parts of click are in report.json" in text


def test_what_a_report_must_have_is_enough(bare: Report) -> None:
    text = render(bare)
    assert Structure(text).wrong == []
    assert re.findall(r'<section id="([\w-]+)"', text) == ["verdict", "notes", "data", "glossary"]
    assert "Not judged" in text
    assert "No gate is configured" in text
    assert "Not in this report, because there is nothing to show: Headline figures, Training curves" in text
    assert "None" not in text.replace("default-src &#39;none&#39;", "")


def test_every_section_can_be_missing_alone(full: Report) -> None:
    empty: dict[str, Any] = dict.fromkeys(("history", "curves", "calibration", "slices", "ranking", "coverage", "gates", "experts", "importance", "conflicts", "coherence", "drift", "guards", "notes"), ())  # fmt: skip
    empty |= {"fusion": None, "config": {}, "legend": {}, "figures": ()}
    kept = {"slices": 3, "curves": 4, "figures": 3, "importance": 4, "ranking": 2, "gates": 4, "calibration": 2}
    short = full.model_copy(update={name: getattr(full, name)[:number] for name, number in kept.items()})
    for name, nothing in empty.items():
        assert Structure(render(short.model_copy(update={name: nothing}))).wrong == [], name


def test_systems_have_one_style_all_through(full: Report) -> None:
    """Models under names of their own, in whatever order, never take the champion's line."""
    rows = tuple(
        row.model_copy(update={"systems": {**row.systems, "wide_and_deep": row.systems["model"]}})
        for row in full.figures
    )
    curve = next(c for c in full.curves if c.kind == "roc")
    text = render(full.model_copy(update={"figures": rows, "curves": (curve.model_copy(update={"system": "wide_and_deep"}),)}))  # fmt: skip
    roc = re.search(r"<title>ROC of.*?</svg>", text, re.S)
    assert roc is not None
    assert "l l4" in roc[0]
    assert "wide_and_deep" in text


def test_texts_from_outside_are_only_texts(full: Report) -> None:
    """In every place where somebody else's words can stand."""
    figure = Figure(value=0.5, low=0.4, high=0.6)
    difference = Difference(value=0.1, low=0.05, high=0.15, p_value=0.001)
    h = HOSTILE
    evil = full.model_copy(
        update={
            "about": full.about.model_copy(
                update={"name": h, "commit": h, "split": h, "version": h, "created": h, "models": {h: h}, "systems": ("model", h)}
            ),
            "verdict": Verdict(decision="refuse", reasons=(h,), overridden=h, checks=(Check(name=h, group="slice", passed=False, text=h, slice=h),)),
            "figures": (FigureRow(target=h, task=h, metric=h, higher_is_better=True, headline=True, rows=1, systems={"model": figure, h: figure}, differences={h: difference}, method=h), *full.figures),
            "legend": {h: h},
            "slices": (SliceRow(slice=h, value=h, target=h, rows=5, systems={"model": {h: figure}, h: {h: figure}}, differences={h: {h: difference}}),),
            "curves": tuple(Curve(kind=k, target=h, system=h, x=(0.0, 1.0), y=(0.0, 1.0)) for k in ("roc", "pr", "lift", "calibration")),
            "calibration": tuple(c.model_copy(update={"target": h, "fitted_on": h}) for c in full.calibration[:1]),
            "ranking": tuple(r.model_copy(update={"objective": h, "scored_by": h, "metric": h}) for r in full.ranking[:1]),
            "coverage": tuple(c.model_copy(update={"system": h, "scored_by": h}) for c in full.coverage[:1]),
            "gates": tuple(g.model_copy(update={"layer": h, "task": h, "slice": s, "value": h, "experts": (h, *g.experts[1:])}) for g in full.gates[:1] for s in (None, h)),
            "experts": tuple(e.model_copy(update={"layer": h, "expert": h, "duplicate_of": h}) for e in full.experts),
            "importance": (Importance(target=h, feature=h, method="permutation", figure=figure, metric=h),),
            "conflicts": tuple(c.model_copy(update={"one": h, "other": h}) for c in full.conflicts[:1]),
            "coherence": (Coherence(kind="label", text=h, system=h, rows=1, of=2, share=0.5),),
            "fusion": full.fusion and full.fusion.model_copy(update={"formula": h, "split": h, "weights": {h: 1.0}}),
            "drift": tuple(d.model_copy(update={"against": h, "split": h, "features": (d.features[0].model_copy(update={"feature": h}),)}) for d in full.drift),
            "guards": (Guard(name=h, status="allowed", text=h, reason=h),),
            "data": DataCard(name=h, source=h, fingerprint=h, statistics=h, splits={h: {"rows": 1, "time_range": [h, h], "tasks": {h: {"observed": 1, "masked": {h: 1}}}}}, inputs={h: h}, read={h: 1}, rejected={h: {h: 1}}, unattributed={h: {h: 1}}, observed_until=h, labels_as_of=h, warnings=(h,)),
            "config": {h: h, "a": [h]},
            "cost": full.cost.model_copy(update={"seconds": {h: 1.0, "b": 2.0}, "rows_per_second": {h: 1.0}, "device": h}),
            "notes": (h,),
        }
    )  # fmt: skip
    text = render(evil)
    found = Structure(text)
    assert found.wrong == []
    assert text.count("<script>") == 1
    assert "<img" not in text
    assert "onerror" not in {name for _, attributes in found.elements for name in attributes}
    assert "111111111" not in text
    assert "".join(found.texts).count("alert(1)") > 60
    plain = re.findall(r'<section id="([\w-]+)"', text)
    assert plain == ALL


def test_the_words_of_the_verdict(full: Report, page: str) -> None:
    assert "Do not promote this model" in page
    assert "1 check failed" in page
    assert "1 check not judged" in page
    assert "10 checks passed" in page
    assert page.index("purchase.auc in country=PL") < page.index("click.auc vs champion"), "what failed comes first"
    short = full.model_copy(update={"slices": (), "curves": (), "importance": ()})
    told = Check(name="latency of one row, p50", group="package", passed=None, text="A batch takes 5 ms.", value=5.0)
    only = render(short.model_copy(update={"verdict": Verdict(decision="promote", checks=(told,))}))
    assert "latency of one row, p50" in only
    assert "check not judged" not in only, "a figure without a bound asks for no judgement"
    good = render(
        short.model_copy(update={"verdict": Verdict(decision="promote", checks=full.verdict.checks[:2] * 10)})
    )
    assert "Promote this model" in good
    assert "<summary>20 checks passed</summary>" in good
    forced = render(
        full.model_copy(update={"verdict": full.verdict.model_copy(update={"overridden": "the fair is on"})})
    )
    assert "the fair is on" in forced


def test_code_in_sentences_and_long_hashes(full: Report) -> None:
    origin = "0123456789abcdef" * 4
    about = full.about.model_copy(update={"models": {"model": origin}})
    verdict = Verdict(decision="refuse", reasons=("set `a.b<c` and `d`",))
    text = render(full.model_copy(update={"about": about, "verdict": verdict, "slices": (), "curves": ()}))
    assert "set <code>a.b&lt;c</code> and <code>d</code>" in text
    assert f'<code title="{origin}">0123456789ab</code>' in text


def test_curves_begin_where_they_have_settled(full: Report) -> None:
    """The first rows throw precision from 0 to 1: they are not drawn."""
    x = (0.0, 0.001, 0.002, 0.2, 0.6, 1.0)
    curves = tuple(
        Curve(kind=k, target="click", system="model", x=x, y=(0.0, 25.0, 9.0, 3.0, 2.0, 1.0)) for k in ("pr", "lift")
    )
    text = render(full.model_copy(update={"curves": curves, "slices": ()}))
    for title in ("Precision and recall of click", "Lift of click"):
        svg = re.search(rf"<title>{title}</title>.*?</svg>", text, re.S)
        assert svg is not None
        line = re.search(r'class="l l0" d="([^"]+)"', svg[0])
        assert line is not None
        assert line[1].count("L") == 2


def test_the_glossary_explains_what_is_ranked(full: Report, bare: Report) -> None:
    assert "Mean, over lists, of one over the place of the first positive." in render(full)
    assert "over lists" not in render(bare)


def test_figures_on_validation_are_said_to_flatter(full: Report, page: str) -> None:
    about = full.about.model_copy(update={"split": "validation"})
    text = render(full.model_copy(update={"about": about, "slices": (), "curves": (), "importance": ()}))
    assert "the split that the epoch was chosen on, so they flatter" in text
    assert "flatter" not in page


def test_the_headline_compares(page: str) -> None:
    table = re.search(r"<caption>Headline figures.*?</table>", page, re.S)
    assert table is not None
    first = re.search(r"<tbody>.*?</tr>", table[0], re.S)
    assert first is not None
    words = unescape(re.sub(r"<[^>]+>", " ", first[0]))
    for said in (
        "click",
        "AUC",
        "0.7421",
        "0.7382 to 0.7460",
        "0.7368",
        "0.5000",
        "0.7713",
        "+0.0053 better",
        "p < 0.001",
    ):
        assert said in words, said
    assert "better than the champion" in page
    assert "cannot tell from the champion" in page
    assert "89.2\u00a0% of the way from chance to the optimum" in page


def test_the_slices_count_what_chance_would_make() -> None:
    report = sample_report()
    text = render(report)
    judged = [row for row in report.slices if not row.small]
    found = re.search(
        r"small parts aside: (.*?)\. If there were no difference at all, about (\d+) of these (\d+) ", text
    )
    assert found is not None
    assert int(found[3]) == len(judged)
    assert int(found[2]) == round(0.05 * len(judged))
    assert sum(int(n) for n in re.findall(r"in (\d+)", found[1])) == len(judged)
    assert "purchase, country PL: AUC −0.0211" in text


def test_json_is_strict_and_reads_back(full: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, full)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read_report(path) == full
    assert list(tmp_path.iterdir()) == [path]


def test_an_undefined_number_where_one_must_be_is_refused(full: Report, tmp_path: Path) -> None:
    curve = full.curves[0].model_copy(update={"x": (float("nan"), 1.0), "y": (0.0, 1.0)})
    with pytest.raises(ValueError, match="valid number"):
        write_json(tmp_path / "report.json", full.model_copy(update={"curves": (curve,)}))
    assert not list(tmp_path.iterdir())


def test_an_undefined_figure_is_null_and_a_dash(full: Report, tmp_path: Path) -> None:
    row = full.figures[0].model_copy(update={"systems": {"model": Figure(value=float("nan"))}, "differences": {}})
    report = full.model_copy(update={"figures": (row,)})
    write_json(tmp_path / "report.json", report)
    assert read_report(tmp_path / "report.json").figures[0].systems["model"].value is None
    assert not re.search(r"[\s\">(]nan\b", render(report))


def test_files_are_written_whole(full: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("the old one")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_html(path, full)
    assert path.read_text() == "the old one"


def test_the_same_report_is_the_same_page(full: Report, page: str) -> None:
    assert render(sample_report()) == page


def test_the_published_schema_is_the_one_of_the_classes() -> None:
    """When this fails: recmtl report schema > docs/report.schema.json."""
    published = Path(__file__).parents[3] / "docs" / "report.schema.json"
    assert json.loads(published.read_text()) == json.loads(json.dumps(schema()))
