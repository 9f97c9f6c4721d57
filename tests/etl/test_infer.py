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
