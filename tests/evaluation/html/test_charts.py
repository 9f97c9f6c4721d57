"""Charts: where the marks lie, what they say to those who do not see them, and that nothing breaks them."""

import itertools
import math
import re
from xml.etree import ElementTree

import pytest

from recmtl.evaluation.html.charts import (
    Chart,
    Row,
    Series,
    bars,
    forest,
    heat_map,
    interval_axis,
    interval_cell,
    interval_scale,
    swatch,
    xy_chart,
)
from recmtl.evaluation.html.svg import clip_text, element, path, text_width


def drawn(chart: Chart | None) -> ElementTree.Element:
    assert chart is not None
    return ElementTree.fromstring(str(chart.svg))


def line(name: str = "model", *, x=(0.0, 1.0), y=(0.0, 1.0), **more) -> Series:
    return Series(name, x, y, **more)


def test_elements_escape_what_they_hold() -> None:
    found = str(element("text", '<b>&"', data_x='"<', hidden=None, x=1.25))
    assert found == '<text data-x="&#34;&lt;" x="1.2">&lt;b&gt;&amp;&#34;</text>'
    assert str(element("path", d="M0 0")) == '<path d="M0 0"/>'


def test_a_path_leaves_out_what_would_not_be_seen() -> None:
    assert path([(0, 0), (10, 5)]) == "M0 0L10 5"
    dense = path([(index / 100, 0.0) for index in range(1001)])
    assert dense.count("L") < 15
    assert dense.endswith("L10 0")


def test_texts_are_cut_in_their_middle() -> None:
    text = "a_feature_with_a_rather_long_name_v2"
    short = clip_text(text, 120, 12)
    assert text_width(short, 12) <= 120
    assert short.startswith("a_f")
    assert short.endswith("v2")
    assert clip_text("click", 120, 12) == "click"


def test_lines_lie_where_the_axes_say() -> None:
    root = drawn(xy_chart("T", "D", [line(y=(0.0, 0.5))], x_name="x", y_name="y", y_include=(1.0,)))
    d = next(p.get("d") for p in root.iter("path") if p.get("class") == "l l0")
    (x0, y0), (x1, y1) = ([float(v) for v in pair.split()] for pair in d[1:].split("L"))
    grid = {text.text: float(text.get("y")) - 4 for text in root.iter("text") if text.get("class") == "tick e"}
    assert y0 == pytest.approx(grid["0"], abs=0.1)
    assert y1 == pytest.approx((grid["0"] + grid["1.0"]) / 2, abs=0.11)
    assert x1 > x0


def test_every_chart_says_what_is_seen() -> None:
    charts = [
        xy_chart("T", "D", [line(), line("champion", style=1)], x_name="x", y_name="y"),
        forest("T", "D", [Row("a", 1.0, 0.5, 1.5, text="1")]),
        bars("T", "D", [Row("a", 1.0, text="1")]),
        heat_map("T", "D", ["a"], ["b"], [[0.5]]),
    ]
    for chart in charts:
        root = drawn(chart)
        assert root.get("role") == "img"
        assert [child.tag for child in root][:2] == ["title", "desc"]
        assert (root[0].text, root[1].text) == ("T", "D")


def test_error_bars_and_tooltips() -> None:
    one = line(low=(None, 0.8), high=(0.1, 1.2), notes=("first", "second"), markers=True)
    root = drawn(xy_chart("T", "D", [one], x_name="x", y_name="y"))
    assert len([p for p in root.iter("path") if p.get("class") == "err e0"]) == 1
    assert [c.find("title").text for c in root.iter("circle")] == ["first", "second"]


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_points_that_are_no_numbers_are_left_out(bad: float | None) -> None:
    root = drawn(xy_chart("T", "D", [line(x=(0.0, 1.0, 2.0), y=(0.0, bad, 1.0), markers=True)], x_name="x", y_name="y"))
    assert len(list(root.iter("circle"))) == 2
    assert "nan" not in ElementTree.tostring(root, "unicode")
    assert xy_chart("T", "D", [line(x=(0.0,), y=(bad,))], x_name="x", y_name="y") is None
    assert forest("T", "D", [Row("a", bad)]) is None
    assert bars("T", "D", [Row("a", bad)]) is None
    assert interval_scale([Row("a", bad)]) is None


@pytest.mark.parametrize("log", [False, True])
def test_one_point_zeros_and_constants_are_drawn(log: bool) -> None:
    for y in ((0.0,), (0.5, 0.5), (0.0, 0.0), (1e-7, 0.3), (-1.0, -2.0)):
        one = Series("m", tuple(range(len(y))), y, markers=True)
        text = str(xy_chart("T", "D", [one], x_name="x", y_name="y", log_y=log).svg)
        assert not re.search("nan|inf", text)


def test_a_legend_never_hides_a_point() -> None:
    """Points all over the picture: the legend moves above it, and the picture grows."""
    everywhere = [(x / 20, y / 20) for x in range(21) for y in range(21)]
    x, y = zip(*everywhere, strict=True)
    crowded = [Series("one", x, y, 0, line=False, markers=True), Series("other", (0.0,), (0.0,), 1, line=False)]
    tall = drawn(xy_chart("T", "D", crowded, x_name="x", y_name="y"))
    free = drawn(xy_chart("T", "D", [line(), line("other", style=1)], x_name="x", y_name="y"))
    assert not [r for r in tall.iter("rect") if r.get("class") == "plate"]
    assert [r for r in free.iter("rect") if r.get("class") == "plate"]
    assert float(tall.get("height")) == float(free.get("height")) + 17
    labels = [t for t in tall.iter("text") if t.text in ("one", "other")]
    assert all(float(t.get("y")) < 20 for t in labels)


def test_labels_at_the_ends_move_apart() -> None:
    series = [line(f"line {n}", y=(0.0, 1.0 + n / 1000), style=n) for n in range(5)]
    root = drawn(xy_chart("T", "D", series, x_name="x", y_name="y", end_labels=True))
    heights = sorted(float(t.get("y")) for t in root.iter("text") if (t.text or "").startswith("line "))
    assert all(b - a >= 14.9 for a, b in itertools.pairwise(heights))
    assert heights[-1] < float(root.get("height"))


def test_a_row_far_off_is_an_arrow_and_the_others_keep_their_room() -> None:
    rows = [Row("m", 0.742, 0.738, 0.746), Row("c", 0.737, 0.733, 0.741), Row("o", 0.77, 0.766, 0.774), Row("b", 0.5)]
    near = drawn(forest("T", "D", rows))
    ends = [p.get("d") for p in near.iter("path") if (p.get("class") or "").startswith("bar")]
    model = re.fullmatch(r"M([\d.]+) [\d.]+H([\d.]+)", ends[0])
    assert model is not None
    assert float(model[2]) - float(model[1]) > 15  # of about 150 pixels; 4 with the baseline on the axis
    assert len(ends) == 4  # three intervals and the arrow


def test_bars_begin_at_zero_and_grow_with_the_value() -> None:
    root = drawn(bars("T", "D", [Row("a", 2.0, text="2"), Row("b", 1.0, text="1"), Row("c", None, text="–")]))
    two, one = [float(r.get("width")) for r in root.iter("rect")]
    assert two == pytest.approx(2 * one, abs=0.11)
    assert len({r.get("x") for r in root.iter("rect")}) == 1


def test_negative_bars_go_left() -> None:
    root = drawn(bars("T", "D", [Row("a", 1.0, text="1"), Row("b", -1.0, text="−1")]))
    right, left = root.iter("rect")
    assert float(left.get("x")) + float(left.get("width")) == pytest.approx(float(right.get("x")), abs=0.11)


def test_the_marks_of_a_bar_chart_are_shown_where_they_are_near() -> None:
    def guides(value: float) -> int:
        root = drawn(bars("T", "D", [Row("a", value, text="x")], marks={"0.1": 0.1, "0.25": 0.25}))
        return len([p for p in root.iter("path") if p.get("class") == "guide"])

    assert guides(0.3) == 2
    assert guides(0.05) == 1
    assert guides(0.001) == 0


def test_shades_follow_the_values() -> None:
    root = drawn(heat_map("T", "D", ["a"], ["x", "y", "z"], [[0.0, 0.5, None]], top=0.5))
    assert [r.get("class") for r in root.iter("rect")] == ["h0", "h10"]
    assert [t.text for t in root.iter("text") if "cell" in t.get("class")] == ["0.00", "0.50"]


def test_an_interval_in_a_cell_lies_on_its_axis() -> None:
    rows = [Row("a", 0.5, 0.4, 0.6, text="0.5"), Row("b", 0.9, 0.8, 1.0)]
    scale = interval_scale(rows, [0.7])
    assert scale is not None
    cell = ElementTree.fromstring(str(interval_cell(scale, rows[0], reference=0.7)))
    assert cell[0].text == "0.5"
    assert float(next(cell.iter("circle")).get("cx")) == pytest.approx(scale(0.5), abs=0.06)
    wide = Row("c", 0.5, -9.0, 9.0)
    assert str(interval_cell(scale, wide)).count("<path") == 3  # the line and an arrow at each end
    assert "from" in str(interval_axis(scale, "Axis"))
    assert "circle" not in str(interval_cell(scale, Row("d", None, text="–")))
    assert "Champion" in str(swatch(1, "Champion"))
