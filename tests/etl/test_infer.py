"""What is taken for a feature, column by column."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from recmtl.errors import UserError
from recmtl.etl.infer import infer_features
from recmtl.manifest import Columns

ROWS = 400


def frame() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "user": [f"u{n}" for n in range(ROWS)],
            "item": rng.integers(0, 40, ROWS),
            "when": [datetime(2024, 1, 1) + timedelta(hours=n) for n in range(ROWS)],
            "released": [datetime(2020, 1, 1) + timedelta(days=n % 9) for n in range(ROWS)],
            "session": [f"s{n}" for n in range(ROWS)],
            "click": rng.integers(0, 2, ROWS),
            "seller_id": rng.integers(0, 100, ROWS),
            "impression_id": range(ROWS),
            "slot": rng.integers(0, 10, ROWS),
            "age": rng.integers(10, 90, ROWS),
            "price": rng.normal(10, 1, ROWS),
            "views": rng.lognormal(3, 3, ROWS).astype(int),
            "new": rng.integers(0, 2, ROWS).astype(bool),
            "city": [("oslo", "rome", None)[n % 3] for n in range(ROWS)],
            "genres": [("a|b", "b", "c|a", "b|c|d")[n % 4] for n in range(ROWS)],
            "title": [f"A tale, number {n % 150}" for n in range(ROWS)],
            "note": [f"note {n}" for n in range(ROWS)],
            "same": ["x"] * ROWS,
            "tags": [["a", "b"] if n % 2 else ["c"] for n in range(ROWS)],
            "content": [[float(n), 1.0, 2.0, 3.0] for n in range(ROWS)],
            "pairs": [[1.0] * (n % 3) for n in range(ROWS)],
            "nested": [{"a": 1}] * ROWS,
            "2nd slot": rng.integers(0, 10, ROWS),
        }
    )


def test_every_column_is_judged() -> None:
    columns = Columns(user="user", item="item", time="when", request="session")
    found = infer_features(frame().lazy(), columns, {"click"})
    taken = {feature.column: feature for feature in found.features}
    kinds = {column: feature.kind for column, feature in taken.items()}
    assert kinds == {
        "user": "id",
        "item": "id",
        "seller_id": "id",
        "slot": "id",
        "age": "number",
        "price": "number",
        "views": "number",
        "new": "id",
        "city": "id",
        "genres": "bag",
        "title": "id",
        "tags": "bag",
        "content": "vector",
        "2nd slot": "id",
    }
    assert taken["genres"].separator == "|"
    assert taken["content"].dim == 4
    assert (taken["views"].transform, taken["price"].transform) == ("log1p", "none")
    assert taken["2nd slot"].name == "_2nd_slot"
    # Every column that is not excluded has its sentence.
    said = {line.split(":")[0]: line for line in found.lines}
    assert set(said) == set(frame().columns) - {"click", "when", "session"}
    for column in ("released", "impression_id", "note", "same", "pairs", "nested"):
        assert "left out" in said[column]


def test_nothing_to_learn_from() -> None:
    with pytest.raises(UserError, match="none could be inferred"):
        infer_features(pl.LazyFrame({"click": [0, 1], "x": ["a", "a"]}), Columns(), {"click"})


def taken(**columns: object) -> tuple[dict[str, dict[str, object]], dict[str, str]]:
    """Column → kind and details of its feature, and column → the line on it, beside a column that is always taken."""
    frame = pl.DataFrame({"price": np.random.default_rng(0).normal(10, 1, ROWS), **columns})
    found = infer_features(frame.lazy(), Columns(), set())
    details = {f.column: {"kind": f.kind, "separator": f.separator, "dim": f.dim} for f in found.features}
    return details, {line.split(": left out")[0].split(":")[0]: line for line in found.lines}


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["[5, 8, 7]", "[]", "[1]"], {"kind": "bag", "separator": None, "dim": None}),
        (['["a", "b"]', '["c"]'], {"kind": "bag", "separator": None, "dim": None}),
        (["['a', 'b']", "['c']"], {"kind": "bag", "separator": None, "dim": None}),
        (["[5 8 7]", "[5 1]"], {"kind": "bag", "separator": None, "dim": None}),
        (["{a,b}", "{c}"], {"kind": "bag", "separator": None, "dim": None}),
        (["[0.25, 1.0, 2.5, 3.5]", "[1.0, 2.0, 3.0, 4.0]"], {"kind": "vector", "separator": None, "dim": 4}),
        (["[5, 8]"] * 39 + ["5"], {"kind": "bag", "separator": ",", "dim": None}),
    ],
)
def test_lists_in_text_are_bags_or_vectors(texts: list[str], expected: dict[str, object]) -> None:
    found, _ = taken(tags=[texts[n % len(texts)] for n in range(ROWS)])
    assert found["tags"] == expected


def test_numbers_with_a_decimal_comma_are_no_bag() -> None:
    found, lines = taken(cost=[f"{n % 90},{n % 10}0" for n in range(ROWS)])
    assert "cost" not in found
    assert "decimal comma" in lines["cost"]


@pytest.mark.parametrize("name", ["", " ", "Unnamed: 0", "Unnamed: 0_level_1", "__index_level_0__"])
def test_an_index_is_left_out_by_its_name(name: str) -> None:
    found, lines = taken(**{name: [n % 50 for n in range(ROWS)]})
    assert set(found) == {"price"}
    assert any("left out, an index that was written beside the data" in line for line in lines.values())


@pytest.mark.parametrize(
    "values",
    [
        pl.Series(range(ROWS)),
        pl.Series(range(5, 2 * ROWS + 5, 2), dtype=pl.UInt32),
        pl.Series(range(ROWS), dtype=pl.Float64),
    ],
)
def test_row_numbers_are_left_out(values: pl.Series) -> None:
    found, lines = taken(number=values)
    assert set(found) == {"price"}
    assert "left out, row numbers: it rises from row to row" in lines["number"]


def test_what_only_looks_like_row_numbers_is_kept() -> None:
    almost = list(range(ROWS))
    almost[7] = 6  # stands twice
    found, _ = taken(almost=almost, falling=list(range(ROWS, 0, -1)), rising=[n + 0.5 for n in range(ROWS)])
    assert set(found) == {"price", "almost", "falling", "rising"}
    few = pl.DataFrame({"n": range(20), "x": [n % 3 for n in range(20)]})
    assert {f.column for f in infer_features(few.lazy(), Columns(), set()).features} == {"n", "x"}
    # The key of the users stays, sorted or not.
    users = pl.DataFrame({"user": range(ROWS)})
    assert infer_features(users.lazy(), Columns(user="user"), set()).features[0].column == "user"
