"""Types are seen in all rows, bad rows get their reason."""

from datetime import UTC, date, datetime
from decimal import Decimal

import polars as pl
import pytest

from recmtl.errors import UserError
from recmtl.etl.validate import REASON, Rules, TimeRule, Uses, number_text, see_types
from recmtl.reading import NumberStyle

NOON = datetime(2022, 4, 25, 12, 0, tzinfo=UTC)


def judged(frame, rules=None, *, text=True):
    typing = see_types(frame.lazy(), rules or Rules(), "here", text=text)
    rows = typing.judge(frame.lazy()).select(*typing.typed(), pl.col(REASON).alias("reason")).collect()
    return rows, typing.warnings


def unread(frame, rules=None, *, text=True):
    """Column → which of its values cannot be read."""
    typing = see_types(frame.lazy(), rules or Rules(), "here", text=text)
    found = typing.judge(frame.lazy()).select(test.alias(name) for name, test in typing.unread.items()).collect()
    return {name: frame[name].filter(found[name]).to_list() for name in found.columns if found[name].any()}


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


def test_a_few_values_that_are_no_number_are_missing_and_cost_no_row():
    rows = pl.DataFrame({"price": ["1"] * 95 + ["cheap"] * 5})
    frame, warnings = judged(rows)
    assert frame["price"].dtype == pl.Int64
    assert frame["price"].to_list() == [1] * 95 + [None] * 5
    assert frame["reason"].to_list() == [None] * 100
    assert unread(rows) == {"price": ["cheap"] * 5}
    assert warnings == ()
    frame, warnings = judged(pl.DataFrame({"price": ["1"] * 94 + ["cheap"] * 6}))
    assert frame["price"].dtype == pl.String
    assert warnings == ()


def test_named_types_hold():
    rules = Rules(types={"a": "string", "b": "float", "c": "bool"})
    frame, _ = judged(pl.DataFrame({"a": ["1", "2"], "b": ["1", "x"], "c": ["true", "true"]}), rules)
    assert frame.rows() == [("1", 1.0, True, None), ("2", None, True, None)]


def test_what_number_features_read_is_numbers_whatever_share_is_none():
    rows = pl.DataFrame({"x": ["1,5", "2", None, "two"], "y": ["true", "false", None, "true"]})
    rules = Rules(uses=Uses(ids=(), numbers=("x", "y")))
    frame, _ = judged(rows, rules)
    assert frame["x"].to_list() == [None, 2, None, None]
    assert frame["y"].to_list() == [True, False, None, True]
    assert unread(rows, rules) == {"x": ["1,5", "two"]}
    assert unread(rows, Rules(uses=rules.uses, style=NumberStyle(decimal=","))) == {"x": ["two"]}
    typed = pl.DataFrame({"x": ["1", "1.5"]})
    assert judged(typed, rules, text=False)[0]["x"].to_list() == [1.0, 1.5]


@pytest.mark.parametrize(
    ("text", "style", "value"),
    [
        ("1,234.50", {"thousands": ","}, 1234.5),
        ("1.234,50", {"decimal": ",", "thousands": "."}, 1234.5),
        ("1 234 567,5", {"decimal": ",", "thousands": " "}, 1234567.5),
        ("-12,5", {"decimal": ","}, -12.5),
        (",5", {"decimal": ","}, 0.5),
        ("1,5e3", {"decimal": ","}, 1500.0),
        ("12.5", {"decimal": ","}, None),
        ("1.23,5", {"decimal": ",", "thousands": "."}, None),
        ("1,23,456", {"thousands": ","}, None),
        ("12,5", {}, None),
        ("inf", {"decimal": ","}, None),
    ],
)
def test_how_numbers_are_written(text, style, value):
    found = pl.DataFrame({"x": [text]}).select(
        number_text(pl.col("x"), NumberStyle(**style)).cast(pl.Float64, strict=False)
    )
    assert found["x"].to_list() == [value]


def test_infinite_and_enormous_numbers_are_unreadable():
    rows = pl.DataFrame({"x": [1.0, float("inf"), float("nan"), None, 1.8e308, 3e38]})
    frame, _ = judged(rows, text=False)
    assert frame["x"].to_list() == [1.0, None, None, None, None, 3e38]
    assert unread(rows, text=False) == {"x": [float("inf"), 1.8e308]}
    assert unread(pl.DataFrame({"x": ["1"] * 30 + ["inf", "1e39"]}), Rules(uses=Uses(numbers=("x",)))) == {
        "x": ["inf", "1e39"]
    }


def test_ids_stay_as_they_are_written_unless_all_are_plain_whole_numbers():
    rules = Rules(uses=Uses(ids=("x",)))
    for values in (["1E5", "10E4", "100000"], ["7", "7.0"], ["+7", "8"], ["-0", "1"], ["1.50", "1.5"]):
        frame, _ = judged(pl.DataFrame({"x": values}), rules)
        assert frame["x"].to_list() == values
    assert judged(pl.DataFrame({"x": ["7", "-8"]}), rules)[0]["x"].to_list() == [7, -8]
    # As pandas writes whole numbers beside a missing one.
    assert judged(pl.DataFrame({"x": ["7.0", None]}), rules)[0]["x"].to_list() == [7, None]
    # A name says it where no feature does.
    assert judged(pl.DataFrame({"campaign_id": ["1E5", "10E4"]}))[0]["campaign_id"].to_list() == ["1E5", "10E4"]
    assert judged(pl.DataFrame({"paid": ["1E5", "10E4"]}))[0]["paid"].to_list() == [1e5, 1e5]


def test_keys_that_floats_have_merged_stop_the_run():
    for values in ([1.2e19], [2.0**53], [-(2.0**60)]):
        with pytest.raises(UserError, match=r"column k holds ids as floats.*integers or text"):
            judged(pl.DataFrame({"k": values}), Rules(keys=("k",)), text=False)
        with pytest.raises(UserError, match="column k holds ids as floats"):
            judged(pl.DataFrame({"k": values}), Rules(uses=Uses(ids=("k",))), text=False)
    lists = pl.DataFrame({"k": [[1.0, 2.0**53], []]})
    with pytest.raises(UserError, match="column k holds ids as floats"):
        judged(lists, Rules(uses=Uses(ids=("k",))), text=False)
    assert judged(lists, Rules(uses=Uses(ids=())), text=False)[0].height == 2
    frame, warnings = judged(pl.DataFrame({"k": ["8.80123E+15", "u"]}), Rules(keys=("k",)))
    assert frame["k"].to_list() == ["8.80123E+15", "u"]
    assert "1 numbers written with an exponent, such as '8.80123E+15'" in warnings[0]


def test_integer_and_decimal_keys_of_any_size_are_exact_and_silent():
    big = 12345678901234567890
    for series in (
        pl.Series([big, 7], dtype=pl.UInt64),
        pl.Series([big * 10**9, 7], dtype=pl.Int128),
        pl.Series([Decimal(big), Decimal(7)], dtype=pl.Decimal(38, 0)),
        pl.Series([Decimal(big), Decimal(7)], dtype=pl.Decimal(38, 2)),
    ):
        frame, warnings = judged(pl.DataFrame({"k": series}), Rules(keys=("k",)), text=False)
        assert frame["k"].to_list() == [str(int(series[0])), "7"]
        assert warnings == ()
    small = pl.Series([Decimal("7.00"), Decimal("8")], dtype=pl.Decimal(38, 2))
    assert judged(pl.DataFrame({"k": small}), Rules(keys=("k",)), text=False)[0]["k"].to_list() == [7, 8]
    half = pl.Series([Decimal("7.50"), Decimal("8")], dtype=pl.Decimal(38, 2))
    assert judged(pl.DataFrame({"k": half}), Rules(keys=("k",)), text=False)[0]["k"].to_list() == ["7.5", "8"]


@pytest.mark.parametrize(
    ("text", "time_format", "time"),
    [
        ("04/25/2022 12:00", "%m/%d/%Y %H:%M", NOON),
        ("4/25/2022 8:00 PM", "%m/%d/%Y %I:%M %p", NOON.replace(hour=20)),
        ("25.04.2022", "%d.%m.%Y", NOON.replace(hour=0)),
        ("2022-04-25 14:00 +0200", "%Y-%m-%d %H:%M %z", NOON),
        ("44676.5", "excel", NOON),
        (" 44676.5 ", "excel", NOON),
        ("2022-04-25", "%m/%d/%Y", None),
    ],
)
def test_times_in_other_forms(text, time_format, time):
    assert times([text], format=time_format)[0] == [time]
    if time_format == "excel":
        assert times([44676.5], pl.Float64, format="excel")[0] == [NOON]
        assert times([1.0], pl.Float64, format="excel")[0] == [None]


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
    reason = "t does not exist in Europe/Berlin, whose clocks skip it"
    assert times(["2022-03-27 02:30"], timezone="Europe/Berlin") == ([None], [reason])
    assert times([datetime(2022, 3, 27, 2, 30)], pl.Datetime("us"), timezone="Europe/Berlin") == ([None], [reason])
    assert times(["2022-03-27 02:30Z"], timezone="Europe/Berlin")[1] == [None]


def test_times_that_name_two_instants_are_the_first_and_counted():
    for values, dtype in (
        (["2022-10-30 02:30", "2022-10-30 02:30Z", "x"], pl.String),
        ([datetime(2022, 10, 30, 2, 30)], pl.Datetime("us")),
    ):
        frame = pl.DataFrame({"t": values}, schema={"t": dtype})
        rules = Rules(times={"t": TimeRule(timezone="Europe/Berlin")})
        rows, warnings = judged(frame, rules)
        assert rows["t"][0] == datetime(2022, 10, 30, 0, 30, tzinfo=UTC)
        assert "column t: 1 times lie in an hour that the clocks of Europe/Berlin repeat" in warnings[0]


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
