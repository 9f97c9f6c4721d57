"""Types are seen in all rows, bad rows get their reason."""

from datetime import UTC, date, datetime

import polars as pl
import pytest

from recmtl.errors import UserError
from recmtl.etl.validate import REASON, Rules, TimeRule, see_types

NOON = datetime(2022, 4, 25, 12, 0, tzinfo=UTC)


def judged(frame, rules=None, *, text=True):
    typing = see_types(frame.lazy(), rules or Rules(), "here", text=text)
    rows = typing.judge(frame.lazy()).select(*typing.typed(), pl.col(REASON).alias("reason")).collect()
    return rows, typing.warnings


def seen(values):
    frame, _ = judged(pl.DataFrame({"x": values}, schema={"x": pl.String}))
    return frame["x"].dtype, frame["x"].to_list()


def times(values, dtype=pl.String, **rule):
    frame, _ = judged(pl.DataFrame({"t": values}, schema={"t": dtype}), Rules(times={"t": TimeRule(**rule)}))
    return frame["t"].to_list(), frame["reason"].to_list()


@pytest.mark.parametrize(
    ("values", "dtype", "typed"),
    [
        (["1", " 2 ", None, "-3"], pl.Int64, [1, 2, None, -3]),
        (["1", "2.5", "1e3"], pl.Float64, [1.0, 2.5, 1000.0]),
        (["true", "False", None], pl.Boolean, [True, False, None]),
        (["a", "1"], pl.String, ["a", "1"]),
        (["007", "8"], pl.String, ["007", "8"]),
        (["0", "0.5"], pl.Float64, [0.0, 0.5]),
        (["9223372036854775808", "1"], pl.String, ["9223372036854775808", "1"]),
        (["inf", "1"], pl.String, ["inf", "1"]),
        ([None, None], pl.String, [None, None]),
    ],
)
def test_types_of_text(values, dtype, typed):
    assert seen(values) == (dtype, typed)


def test_a_type_seen_late_counts_as_much_as_one_seen_early():
    assert seen(["1"] * 5000 + ["x"] * 5000)[0] == pl.String
    assert seen(["1"] * 5000 + ["0.5"])[0] == pl.Float64


def test_a_few_values_that_are_no_number_make_bad_rows_and_a_warning():
    frame, warnings = judged(pl.DataFrame({"price": ["1"] * 95 + ["cheap"] * 5}))
    assert frame["price"].dtype == pl.Int64
    assert frame["reason"].to_list() == [None] * 95 + ["price is not a number"] * 5
    assert "types: {price: string}" in warnings[0]
    frame, warnings = judged(pl.DataFrame({"price": ["1"] * 94 + ["cheap"] * 6}))
    assert frame["price"].dtype == pl.String
    assert warnings == ()


def test_named_types_hold():
    rules = Rules(types={"a": "string", "b": "float", "c": "bool"})
    frame, _ = judged(pl.DataFrame({"a": ["1", "2"], "b": ["1", "x"], "c": ["true", "true"]}), rules)
    assert frame.rows() == [("1", 1.0, True, None), ("2", None, True, "b is not of type float")]


def test_whole_number_keys_are_the_same_however_they_are_written():
    for values, dtype in (
        (["7", "8"], pl.String),
        (["7.0", "8.0"], pl.String),
        ([7.0, 8.0], pl.Float64),
        ([7, 8], pl.UInt8),
    ):
        frame, _ = judged(pl.DataFrame({"k": values}, schema={"k": dtype}), Rules(keys=("k",)))
        assert frame["k"].dtype == pl.Int64
        assert frame["k"].to_list() == [7, 8]


def test_keys_stay_text_where_one_is():
    frame, _ = judged(pl.DataFrame({"k": ["7", "07", "u"]}), Rules(keys=("k",)))
    assert frame["k"].to_list() == ["7", "07", "u"]


def test_a_missing_key_is_a_reason_in_text_and_in_typed_columns():
    frame, _ = judged(pl.DataFrame({"k": ["u", None]}), Rules(keys=("k",)))
    assert frame["reason"].to_list() == [None, "k is missing"]
    frame, _ = judged(pl.DataFrame({"k": [1.0, float("nan"), None]}), Rules(keys=("k",)), text=False)
    assert frame["reason"].to_list() == [None, "k is missing", "k is missing"]
    frame, _ = judged(pl.DataFrame({"k": ["u", ""]}), Rules(keys=("k",)), text=False)
    assert frame["reason"].to_list() == [None, "k is missing"]
    frame, _ = judged(pl.DataFrame({"k": ["u", None]}), Rules(optional_keys=("k",)))
    assert frame["reason"].to_list() == [None, None]


@pytest.mark.parametrize(
    "text",
    [
        "2022-04-25T12:00:00Z",
        "2022-04-25 12:00",
        "2022-04-25T14:00:00+02:00",
        "2022-04-25T06:30:00.000-0530",
        "2022/04/25 12:00:00,000 UTC",
        "2022-04-25T12:00:00.000000000Z",
        " 2022-04-25T13:00+01 ",
        "2022-04-25t12:00:00z",
        "20220425T120000Z",
        "20220425T1400+0200",
        "20220425T120000.000",
    ],
)
def test_iso_times(text):
    assert times([text]) == ([NOON], [None])


def test_a_column_without_a_type_holds_no_times():
    assert times([None], pl.Null) == ([None], ["t is missing"])


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)])
def test_epoch_units_are_seen_by_magnitude(unit, factor):
    stamp = int(NOON.timestamp()) * factor
    assert times([str(stamp)])[0] == [NOON]
    assert times([stamp], pl.Int64)[0] == [NOON]
    assert times([stamp], pl.Int64, unit=unit)[0] == [NOON]
    assert times([float(stamp)], pl.Float64)[0] == [NOON]


def test_fractions_of_a_second_count():
    assert times(["1650888000.25"])[0] == [NOON.replace(microsecond=250_000)]
    assert times([1650888000_250_999], pl.Int64, unit="us")[0] == [NOON.replace(microsecond=250_999)]


def test_times_without_a_zone_are_in_the_stated_one():
    assert times(["2022-04-25 20:00"], timezone="Asia/Shanghai")[0] == [NOON]
    assert times([datetime(2022, 4, 25, 20)], pl.Datetime("ms"), timezone="Asia/Shanghai")[0] == [NOON]
    assert times([date(2022, 4, 25)], pl.Date)[0] == [NOON.replace(hour=0)]


def test_a_time_that_a_clock_change_skips_is_no_time():
    assert times(["2022-03-27 02:30"], timezone="Europe/Berlin") == ([None], ["t is not a time"])


def test_bad_times_have_their_reason():
    values = ["2022-04-25", None, "yesterday", "2022-13-01", "1970-01-01", "2999-01-01"]
    assert times(values)[1] == [
        None,
        "t is missing",
        "t is not a time",
        "t is not a time",
        "t is impossible: before 1990-01-01",
        "t is impossible: in the future",
    ]
    latest = datetime(2022, 1, 1, tzinfo=UTC)
    assert times(["2022-04-25"], latest=latest)[1] == ["t is impossible: after 2022-01-01 00:00:00 UTC"]


def test_numbers_too_large_for_any_time_do_not_wrap():
    for unit in ("s", "ms", "us", "ns"):
        values, reasons = times([2**62, -(2**62), 0], pl.Int64, unit=unit)
        assert all(reasons)
        assert values[2] == datetime(1970, 1, 1, tzinfo=UTC)


def test_a_column_that_cannot_be_a_time_or_a_key_is_the_users_mistake():
    with pytest.raises(UserError, match="column t holds Boolean, which is no time"):
        times([True], pl.Boolean)
    with pytest.raises(UserError, match="cannot identify anything"):
        judged(pl.DataFrame({"k": [[1]]}), Rules(keys=("k",)), text=False)
