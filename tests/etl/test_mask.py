"""Masks, sentence by sentence, each worked by hand."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from pydantic import ValidationError

from recmtl.errors import UserError
from recmtl.etl.mask import LabelCounts, LabelTimes, encode_labels, labels_as_of
from recmtl.manifest import TaskSummary
from recmtl.tasks import Task, Tasks

START = datetime(2024, 1, 1, tzinfo=UTC)
CLICK = Task(name="click", kind="binary", label="is_click")
PURCHASE = Task(name="purchase", kind="binary", label="bought", parent="click")


def at(*hours: float | None) -> pl.Series:
    instants = [None if hour is None else START + timedelta(hours=hour) for hour in hours]
    return pl.Series(instants, dtype=pl.Datetime("us", "UTC"))


def mask(tasks: list[Task], times: LabelTimes | None = None, **columns: object) -> pl.DataFrame:
    return encode_labels(pl.LazyFrame(columns), Tasks(tasks), times or LabelTimes()).collect()


def one(task: Task, column: pl.Series | list[object]) -> tuple[list[float], list[str | None]]:
    """Labels and reasons of a task alone."""
    found = mask([task], **{task.label: column})
    name = task.name
    assert found[f"observed:{name}"].to_list() == [reason is None for reason in found[f"masked:{name}"].to_list()]
    assert found[f"label:{name}"].dtype == pl.Float32
    return found[f"label:{name}"].to_list(), found[f"masked:{name}"].to_list()


@pytest.mark.parametrize(
    ("column", "labels", "reasons"),
    [
        ([0, 1, None, 2, -1], [0, 1, 0, 0, 0], [None, None, "missing", "invalid", "invalid"]),
        ([0.0, 1.0, float("nan"), 0.5], [0, 1, 0, 0], [None, None, "missing", "invalid"]),
        ([float("inf"), 1.0], [0, 1], ["invalid", None]),
        ([True, False, None], [1, 0, 0], [None, None, "missing"]),
        (["0", "1", "1.0", "true", "FALSE", " 1 "], [0, 1, 1, 1, 0, 1], [None] * 6),
        (["", "  ", "yes", None], [0, 0, 0, 0], ["missing", "missing", "invalid", "missing"]),
    ],
)
def test_binary_labels_are_0_1_true_or_false(
    column: list[object], labels: list[float], reasons: list[str | None]
) -> None:
    assert one(CLICK, column) == (labels, reasons)


def test_ordinal_labels_are_levels_and_become_their_index() -> None:
    task = Task(name="stars", kind="ordinal", label="stars", levels=(0.5, 1, 3.1))
    expected = ([0, 1, 2, 0, 0], [None, None, None, "invalid", "missing"])
    assert one(task, [0.5, 1.0, 3.1, 2.0, None]) == expected
    assert one(task, pl.Series([0.5, 1.0, 3.1, 2.0, None], dtype=pl.Float32)) == expected
    assert one(task, ["0.5", "1", "3.1", "two", ""]) == expected


def test_multiclass_labels_are_classes_and_become_their_index() -> None:
    task = Task(name="mood", kind="multiclass", label="mood", classes=("up", "7"))
    assert one(task, ["up", "7", "down", ""]) == ([0, 1, 0, 0], [None, None, "invalid", "missing"])
    assert one(task, [7, 8]) == ([1, 0], [None, "invalid"])
    assert one(task, [7.0, float("nan")]) == ([1, 0], [None, "missing"])


def test_regression_labels_are_finite_and_in_range() -> None:
    task = Task(name="share", kind="regression", label="share", range=(0, 1))
    column = [0.0, 1.0, 0.25, 1.5, -0.1, float("inf"), float("nan"), None]
    labels, reasons = one(task, column)
    assert labels == [0, 1, 0.25, 0, 0, 0, 0, 0]
    assert reasons == [None, None, None, "invalid", "invalid", "invalid", "missing", "missing"]
    assert one(Task(name="n", kind="regression", label="n"), ["1e3", "much"]) == ([1000, 0], [None, "invalid"])


def test_a_label_counts_once_its_window_has_closed_whatever_happened() -> None:
    times = LabelTimes("time", {"is_click": timedelta(hours=1)}, {}, START + timedelta(hours=10))
    # 9:00 + 1 h = 10:00 has closed; 9:06 has not, positive or negative.
    found = mask([CLICK], times, time=at(0, 9, 9.1, 9.1), is_click=[0, 1, 1, 0])
    assert found["masked:click"].to_list() == [None, None, "immature", "immature"]
    assert found["label:click"].to_list() == [0, 1, 0, 0]


def test_immature_rows_are_counted_by_time_alone() -> None:
    times = LabelTimes("time", {"is_click": timedelta(hours=1)}, {}, START + timedelta(hours=10))
    counted = {
        tuple(mask([CLICK], times, time=at(1, 9.5, 9.5), is_click=labels)["masked:click"].to_list())
        for labels in ([0, 0, 1], [1, 1, 0], [1, None, 7])
    }
    assert counted == {(None, "immature", "immature")}


def test_train_labels_are_as_of_the_beginning_of_validation() -> None:
    times = LabelTimes("time", {"is_click": timedelta(hours=1)}, {"stars": "rated"}, START + timedelta(hours=10))
    train = labels_as_of(times, START + timedelta(hours=5))
    stars = Task(name="stars", kind="ordinal", label="stars", levels=(1, 2))
    rows = {
        "time": at(3, 4, 4.5, 4.5),
        "is_click": [1, 1, 1, 0],
        "stars": [1, 2, 2, None],
        "rated": at(4, 5, 5.1, None),
    }
    found = mask([CLICK, stars], train, **rows)
    assert found["masked:click"].to_list() == [None, None, "immature", "immature"]
    # A given rating has no window, but is masked where it was given only later; that it is missing is known.
    assert found["masked:stars"].to_list() == [None, None, "immature", "missing"]
    found = mask([CLICK, stars], times, **rows)
    assert found["masked:click"].to_list() == [None] * 4
    assert found["masked:stars"].to_list() == [None, None, None, "missing"]
    assert labels_as_of(times, None) == times


def test_train_is_never_looked_at_later_than_the_log_ends() -> None:
    times = LabelTimes("time", {}, {}, START)
    assert labels_as_of(times, START + timedelta(hours=5)).observed_until == START
    assert labels_as_of(LabelTimes(), START).observed_until == START


def test_observed_when() -> None:
    share = Task.model_validate(
        {"name": "share", "kind": "regression", "label": "share", "observed": {"when": "click"}}
    )
    found = mask([share, CLICK], is_click=[1, 0, None, 1, 1], share=[0.5, 0.5, 0.5, None, float("inf")])
    assert found["masked:share"].to_list() == [None, "not_applicable", "not_applicable", "missing", "invalid"]
    assert found["label:share"].to_list() == [0.5, 0, 0, 0, 0]


def test_a_child_counts_where_all_labels_of_its_chain_do() -> None:
    returned = Task(name="returned", kind="binary", label="returned", parent="purchase")
    found = mask(
        [returned, PURCHASE, CLICK],
        is_click=[1, 1, 0, 0, None, 1, 0],
        bought=[1, 0, 0, 1, 1, None, None],
        returned=[1, 0, 0, 1, 1, 0, 0],
    )
    assert found["masked:click"].to_list() == [None, None, None, None, "missing", None, None]
    assert found["masked:purchase"].to_list() == [
        None,
        None,
        None,
        "contradiction",
        "not_applicable",
        "missing",
        "missing",
    ]
    assert found["masked:returned"].to_list() == [None, None, None, *["not_applicable"] * 4]
    assert found["label:purchase"].to_list() == [1, 0, 0, 0, 0, 0, 0]


def test_a_contradiction_masks_the_child_alone() -> None:
    found = mask([CLICK, PURCHASE], is_click=[0], bought=[1])
    assert found.select("observed:click", "observed:purchase").to_dicts() == [
        {"observed:click": True, "observed:purchase": False}
    ]


def test_weights() -> None:
    task = CLICK.model_copy(update={"weight_column": "w"})
    found = mask([task], is_click=[1, 1, 1, 1], w=[0.5, None, float("nan"), 0.0])
    assert found["weight:click"].to_list() == [0.5, 1, 1, 0]
    assert "weight:click" not in mask([CLICK], is_click=[1]).columns
    for wrong in ([-1.0], ["much"], [float("inf")]):
        with pytest.raises(UserError, match=r"tasks\.click\.weight_column: 'w' must hold numbers of at least 0"):
            LabelCounts(Tasks([task])).add(mask([task], is_click=[1], w=wrong))


def test_a_list_holds_no_label() -> None:
    with pytest.raises(UserError, match=r"tasks\.click\.label: column 'is_click' is List"):
        mask([CLICK], is_click=[[1]])


def test_every_row_is_counted_once_and_parts_add_up() -> None:
    stars = Task(name="stars", kind="ordinal", label="stars", levels=(1, 3, 5))
    tasks = [CLICK, PURCHASE, stars]
    frame = mask(
        tasks,
        is_click=[1, 1, 0, 0, None, 1, 9],
        bought=[1, 0, 0, 1, 1, None, 0],
        stars=[1, 5, 5, None, 2, 3, None],
    )
    whole, parts = LabelCounts(Tasks(tasks)), LabelCounts(Tasks(tasks))
    whole.add(frame)
    for start in range(0, 9, 2):
        parts.add(frame.slice(start, 2))
    summaries = whole.summaries()
    for name, summary in parts.summaries().items():
        assert (summary.observed, summary.masked) == (summaries[name].observed, summaries[name].masked)
    assert summaries["click"] == TaskSummary(observed=5, positives=3, mean=0.6, masked={"missing": 1, "invalid": 1})
    assert summaries["purchase"].masked == {"missing": 1, "not_applicable": 2, "contradiction": 1}
    assert summaries["stars"].mean == 3.5
    assert all(task.observed + sum(task.masked.values()) == 7 for task in summaries.values())
    statistics = whole.statistics()
    assert statistics["purchase"].observed == 3
    assert statistics["purchase"].mean == pytest.approx(1 / 3)
    assert statistics["stars"].distribution == (0.25, 0.25, 0.5)
    assert statistics["stars"].std == pytest.approx(pl.Series([1, 3, 5, 5]).std(ddof=0))
    # Given a click, among rows where both labels count: bought 1 and 0.
    assert whole.conditional_statistics()["purchase"].mean == 0.5
    assert set(whole.conditional_statistics()) == {"purchase"}
    for name, label in parts.statistics().items():
        assert label.mean == pytest.approx(statistics[name].mean)
        assert label.std == pytest.approx(statistics[name].std)


def test_nothing_observed() -> None:
    mood = Task(name="mood", kind="multiclass", label="mood", classes=("a", "b"))
    counts = LabelCounts(Tasks([CLICK, mood]))
    counts.add(mask([CLICK, mood], is_click=[None, 5], mood=["c", None]))
    assert counts.summaries()["click"] == TaskSummary(observed=0, positives=0, masked={"missing": 1, "invalid": 1})
    assert counts.statistics()["mood"].mean is None
    assert counts.statistics()["mood"].observed == 0


def test_on_the_day_of_evaluation_a_label_counts_that_was_not_known_before_it() -> None:
    stars = Task(name="stars", kind="ordinal", label="stars", levels=(1, 2, 3))
    # The day is hours 24 to 48; clicks are known after an hour, purchases after a day and one.
    times = LabelTimes(
        "time",
        {"is_click": timedelta(hours=1), "bought": timedelta(hours=25)},
        {"stars": "rated"},
        START + timedelta(hours=48),
        START + timedelta(hours=48),
        START + timedelta(hours=24),
    )
    found = mask(
        [CLICK, PURCHASE, stars],
        times,
        time=at(-2, 0, 22, 23, 23.5, 30, 47.5),
        is_click=[1, 1, 1, 0, 1, 1, 1],
        bought=[1, 1, 0, 0, 0, 0, 0],
        stars=[3, 1, None, None, 2, 3, 3],
        rated=at(23, 24.5, None, None, 40, 48, 48.5),
    )
    # -2 h: all was known on the day before. 0 h to 23 h: the purchase became known on the day, and the click, which was
    # known, stays for its sake. 23.5 h: purchase later than the day, click within. 47.5 h: neither is known yet.
    before, late, absent = "known_before", "immature", "missing"
    assert found["masked:purchase"].to_list() == [before, None, None, None, late, late, late]
    assert found["masked:click"].to_list() == [before, None, None, None, None, None, late]
    assert found["masked:stars"].to_list() == [before, None, absent, absent, None, None, late]
    assert found["label:click"].to_list() == [0, 1, 1, 0, 1, 1, 0]
    assert found["observed:purchase"].to_list() == [False, True, True, True, False, False, False]
    counts = LabelCounts(Tasks([CLICK, PURCHASE, stars]))
    counts.add(found)
    assert counts.summaries()["click"].masked == {"immature": 1, "known_before": 1}


@pytest.mark.parametrize(
    ("positive", "column", "labels", "reasons"),
    [
        ([2], [1, 2, None], [0, 1, 0], [None, None, "missing"]),
        (2, [1.0, 2.0, float("nan")], [0, 1, 0], [None, None, "missing"]),
        ([1], [-1, 1], [0, 1], [None, None]),
        ([2], ["1", " 2 ", "2.0", "x", ""], [0, 1, 1, 0, 0], [None, None, None, "invalid", "missing"]),
        (["yes"], ["yes", "no", "Yes", None], [1, 0, 0, 0], [None, None, None, "missing"]),
        ([True], ["Yes", "on", "TRUE", "no"], [1, 1, 1, 0], [None] * 4),
        ([True], [True, False], [1, 0], [None, None]),
        ([0.1], pl.Series([0.1, 0.2], dtype=pl.Float32), [1, 0], [None, None]),
        ("> 0", [0, 1, 3, -1, None], [0, 1, 1, 0, 0], [None, None, None, None, "missing"]),
        (">=4", ["3.5", "4", "five"], [0, 1, 0], [None, None, "invalid"]),
        ("!= 0", [0.0, 2.0, float("inf")], [0, 1, 0], [None, None, "invalid"]),
        ("== 0.1", pl.Series([0.1, 0.2], dtype=pl.Float32), [1, 0], [None, None]),
    ],
)
def test_positive_says_which_values_count_as_1(
    positive: object, column: list[object], labels: list[float], reasons: list[str | None]
) -> None:
    task = Task.model_validate({"name": "click", "kind": "binary", "label": "is_click", "positive": positive})
    assert one(task, column) == (labels, reasons)
    assert Task.model_validate_json(task.model_dump_json()) == task


def test_labels_map_what_the_column_holds() -> None:
    def read(column: object, **fields: object) -> tuple[list[float], list[str | None]]:
        return one(Task.model_validate({"name": "t", "label": "t", **fields}), column)  # type: ignore[arg-type]

    yes_no = {"kind": "binary", "labels": {"yes": 1, "no": 0, "unknown": None}}
    expected = ([1, 0, 0, 0, 0], [None, None, "missing", "invalid", "missing"])
    assert read(["yes", "no ", "unknown", "maybe", None], **yes_no) == expected
    assert read([1, 2, 3], kind="binary", labels={1: 0, 2: 1}) == ([0, 1, 0], [None, None, "invalid"])
    assert read([1.0, 2.0], kind="binary", labels={1: 0, 2: 1}) == ([0, 1], [None, None])
    # YAML reads yes and no without quotes as booleans.
    assert read(["yes", "NO", "off"], kind="binary", labels={True: 1, False: 0}) == ([1, 0, 0], [None] * 3)
    stars = {"kind": "ordinal", "levels": [1, 3, 5], "labels": {"bad": 1, "fair": 3, "good": 5}}
    assert read(["good", "bad", "5"], **stars) == ([2, 0, 0], [None, None, "invalid"])
    moods = {"kind": "multiclass", "classes": ["up", "7"], "labels": {"u": "up", "seven": 7}}
    assert read(["seven", "u", "up"], **moods) == ([1, 0, 0], [None, None, "invalid"])
    assert read(["low", "high"], kind="regression", labels={"low": 0.5, "high": 9}) == ([0.5, 9], [None, None])
    # Identifiers beyond what a float holds stay apart.
    large = {"kind": "binary", "labels": {2**53: 0, 2**53 + 1: 1}}
    assert read([2**53, 2**53 + 1, 2**53 + 2], **large) == ([0, 1, 0], [None, None, "invalid"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positive": "yes"}, "must be a list of values"),
        ({"positive": "> many"}, "must be a list of values"),
        ({"positive": "> inf"}, "must be a list of values"),
        ({"positive": []}, "at least 1"),
        ({"positive": [1], "labels": {"a": 1, "b": 0}}, "exclude each other"),
        ({"labels": {"a": 2, "b": 0}}, "maps 'a' to 2.0, which is neither 0 nor 1"),
        ({"labels": {"a": 1, "b": None}}, "at least two different labels"),
        ({"labels": {1: 1, "1": 0}}, "names the value '1' twice"),
        ({"kind": "regression", "positive": [2]}, "`positive` belongs to kind binary"),
        ({"kind": "regression", "labels": {"a": "x", "b": 0}}, "no number"),
        ({"kind": "regression", "range": [0, 1], "labels": {"a": 2, "b": 0}}, "outside `range`"),
        ({"kind": "ordinal", "levels": [1, 2], "labels": {"a": 1, "b": 3}}, "none of `levels`"),
        ({"kind": "multiclass", "classes": ["x", "y"], "labels": {"a": "x", "b": "z"}}, "none of `classes`"),
    ],
)
def test_positive_and_labels_fit_the_task(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Task.model_validate({"name": "t", "kind": "binary", "label": "t", **fields})


def test_a_number_that_float32_cannot_hold_is_invalid() -> None:
    task = Task(name="n", kind="regression", label="n")
    assert one(task, [1.0, 1e300]) == ([1, 0], [None, "invalid"])
    ranged = Task(name="n", kind="regression", label="n", range=(0, 1e308))
    assert one(ranged, [1.0, 1e300]) == ([1, 0], [None, "invalid"])
    weighted = Task(name="click", kind="binary", label="is_click", weight_column="w")
    with pytest.raises(UserError, match="at least 0, but 1 rows"):
        LabelCounts(Tasks([weighted])).add(mask([weighted], is_click=[0, 1], w=[1.0, 1e300]))
