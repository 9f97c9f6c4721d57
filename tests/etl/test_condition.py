"""Conditions on rows, case by case."""

from datetime import UTC, date, datetime

import polars as pl
import pytest

from recmtl.errors import UserError
from recmtl.etl.condition import Condition, names_in

FRAME = pl.DataFrame(
    {
        "quantity": [1, -1, None, 3],
        "price": [1.5, float("nan"), 0.0, 2.0],
        "status": ["ok", "returned", None, "OK"],
        "ok": [True, False, None, True],
        "at": [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4)],
        "day": [date(2024, 1, day) for day in (1, 2, 3, 4)],
        "local": [datetime(2024, 1, day) for day in (1, 2, 3, 4)],
        "unit price": [1, 2, 3, 4],
        "empty": pl.Series([None] * 4),
        "tags": [[1]] * 4,
        "share": pl.Series([0.1, 0.2, 0.3, None], dtype=pl.Float32),
        "large": pl.Series([1, 2**63, 3, 4], dtype=pl.UInt64),
        "kind": pl.Series(["a", "b", "a", None], dtype=pl.Categorical),
        "sum": pl.Series([1, 2, 3, 4]).cast(pl.Decimal(10, 2)),
    }
)


def kept(text: str, timezone: str = "UTC") -> list[int]:
    """The rows, from 0, for which the condition is true."""
    condition = Condition(text, dict(FRAME.schema), "data.source.where", timezone=timezone)
    return FRAME.with_row_index("at row").filter(condition.expr)["at row"].to_list()


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("quantity > 0", [0, 3]),
        ("quantity is null or quantity > 0", [0, 2, 3]),
        ("quantity is not null", [0, 1, 3]),
        ("not (quantity > 0)", [1]),
        ("quantity != 1", [1, 3]),
        ("0 < quantity <= 3 and price >= 2", [3]),
        ("quantity in [-1, 3]", [1, 3]),
        ("quantity not in [-1, 3]", [0]),
        ("price is null", [1]),
        ("price > 0", [0, 3]),
        ("status != 'returned'", [0, 3]),
        ('status in ["ok", "returned"]', [0, 1]),
        ("status not in ('ok',)", [1, 3]),
        ("lower(status) == 'ok'", [0, 3]),
        ("status > 'a'", [0, 1]),
        ("ok", [0, 3]),
        ("not ok", [1]),
        ("ok == false", [1]),
        ("ok != False", [0, 3]),
        ("price * quantity > 1", [0, 3]),
        ("quantity / price > 0", [0, 3]),
        ("quantity / price is null", [1, 2]),
        ("-quantity > 0", [1]),
        ("abs(quantity) == 1", [0, 1]),
        ("max(quantity, price) >= 2", [3]),
        ("min(quantity, price, 5) == 1", [0]),
        ("2 ** quantity == 8", [3]),
        ("log(exp(quantity)) > 2.5", [3]),
        ("at >= '2024-01-03'", [2, 3]),
        ("at >= '2024-01-01T23:30:00-01:00'", [2, 3]),
        ("day > '2024-01-02'", [2, 3]),
        ("local < '2024-01-02T12:00:00'", [0, 1]),
        ("at > '2024-01-02' and at < '2024-01-04'", [2]),
        ('column("unit price") > 2', [2, 3]),
        ("empty > 3", []),
        ("empty is null", [0, 1, 2, 3]),
        ("empty + 1 > 3 or quantity == 1", [0]),
        ("tags is not null", [0, 1, 2, 3]),
        ("share == 0.1", [0]),
        ("share in [0.1, 0.2]", [0, 1]),
        ("large > -1", [0, 1, 2, 3]),
        ("large == 9223372036854775808", [1]),
        ("kind == 'a'", [0, 2]),
        ("sum > 2.5", [2, 3]),
        ("true", [0, 1, 2, 3]),
        ("false", []),
    ],
)
def test_rows_that_are_kept(text: str, rows: list[int]) -> None:
    assert kept(text) == rows


def test_a_time_without_a_zone_is_in_the_logs() -> None:
    assert kept("at > '2024-01-02'") == [2, 3]
    assert kept("at > '2024-01-02'", "Asia/Shanghai") == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantty > 0", "the file has no column 'quantty'; did you mean 'quantity'"),
        ("nowhere > 0", "the file has no column 'nowhere'; it has quantity, price"),
        ("quantity > 'a'", "quantity is a number and 'a' is text, which do not compare"),
        ("status > 1", "status is text and 1 is a number"),
        ("ok > 1", "ok is true or false and 1 is a number"),
        ("ok > false", "true or false, which have no order"),
        ("tags == 1", r"tags is of type List\(Int64\)"),
        ("quantity + status > 1", "status is text, where a number is needed"),
        ("lower(quantity) == 'a'", "quantity is a number, where text is needed"),
        ("quantity and ok", "quantity is a number, where true or false is needed"),
        ("quantity", "this is a number, not a condition"),
        ("at > 'yesterday'", "'yesterday' is no time in ISO 8601"),
        ("at > 5", "at is a time and 5 is a number"),
        ("day > '2024-01-02T00:00:00'", "day is a date"),
        ("local > '2024-01-02T00:00:00Z'", "local has no time zone"),
        ("quantity > 1" + "0" * 400, "beyond the largest number"),
    ],
)
def test_what_does_not_fit_the_columns(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^data.source.where .*{message}"):
        kept(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no expression"),
        ("quantity = 1", "is no expression .*write == for equal"),
        ("quantity <> 1", "is no expression"),
        ("quantity > 0 AND ok", "is no expression"),
        ("status == null", "write `is null`"),
        ("status in ['a', null]", "for missing values write `is null`"),
        ("status in []", "a list of values"),
        ("status in status", "a list of values"),
        ("status in [lower('A')]", "holds numbers and text alone"),
        ("quantity is 1", "after `is` stands null"),
        ("abs(quantity, 1) > 0", "abs takes one value"),
        ("max(quantity) > 0", "max takes two values or more"),
        ("abs > 0", r"abs is a function; write abs\("),
        ("__import__('os').system('true')", "is not allowed"),
        ("status.__class__ == 1", "is not allowed"),
        ("status[0] == 'a'", "is not allowed"),
        ("[x for x in y]", "is not allowed"),
        ("lambda: 1", "is not allowed"),
        ("f'{status}' == 'a'", "is not allowed"),
        ("(x := 1) > 0", "is not allowed"),
        ("quantity > 1j", "is not allowed"),
        ("status == b'a'", "is not allowed"),
        ("... == 1", "is not allowed"),
        ("quantity // 2 > 1", "is not allowed"),
        ("column(quantity) > 1", "is not allowed"),
        ("open('x') == 1", "is not allowed"),
        ("x" * 1001, "1001 characters are too many"),
        ("(" * 300 + "1" + ")" * 300, "is no expression"),
        ("-" * 900 + "1 > 0", "(nested too deeply|is no expression)"),
        ("not " * 60 + "ok", "nested too deeply"),
        ("quantity" + " + 1" * 60 + " > 0", "nested too deeply"),
    ],
)
def test_what_is_no_condition(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        names_in(text)


def test_the_columns_that_it_reads() -> None:
    text = "b > 0 and (column('a b') is null or lower(c) in ['x']) and not b == 2"
    assert names_in(text) == ("b", "a b", "c")
