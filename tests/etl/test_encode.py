"""Raw columns to table rows: worked by hand, then the same whatever type a column arrives in."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest

from recmtl.errors import UserError
from recmtl.etl.encode import Encoder, canonical, encode, number, stable_hash
from recmtl.schema import Feature, Schema
from recmtl.statistics import NumberStatistics, Statistics, Vocabulary


def encoder(feature: Feature, *, values: tuple[str, ...] = (), numbers: NumberStatistics | None = None) -> Encoder:
    tables = (
        {feature.table: Vocabulary(values, (1,) * len(values))} if feature.table and not feature.hash_buckets else {}
    )
    return Encoder(
        Schema([feature]), Statistics(tables=tables, numbers={feature.name: numbers} if numbers else {}, labels={})
    )


def ids(column: pl.Series, *values: str) -> list[int]:
    feature = Feature(name="x", kind="id")
    return encoder(feature, values=values).rows(column.alias("x").to_frame())["id:x"].to_list()


def texts(column: pl.Series) -> list[str | None]:
    return column.to_frame("x").select(canonical(pl.col("x"), column.dtype))["x"].to_list()


def floats(column: pl.Series) -> list[float | None]:
    return column.to_frame("x").select(number(pl.col("x"), column.dtype))["x"].to_list()


def test_canonical_text() -> None:
    assert texts(pl.Series([7, -1, None])) == ["7", "-1", None]
    assert texts(pl.Series([7.0, 0.1, -0.0, float("nan"), None, 1e20])) == ["7", "0.1", "0", None, None, "1e+20"]
    assert texts(pl.Series([True, False, None])) == ["true", "false", None]
    assert texts(pl.Series(["7", "", " a", None])) == ["7", None, " a", None]
    assert texts(pl.Series(["a", "b"], dtype=pl.Categorical)) == ["a", "b"]
    assert texts(pl.Series([Decimal("7.00"), Decimal("0.50")])) == ["7", "0.5"]
    assert texts(pl.Series([None], dtype=pl.Null)) == [None]
    assert texts(pl.Series([7, None, 2.0, float("nan"), True, "a"], dtype=pl.Object)) == [
        "7",
        None,
        "2",
        None,
        "true",
        "a",
    ]


def test_dates_and_instants_at_midnight_are_one() -> None:
    day = dt.date(2024, 2, 29)
    midnight = dt.datetime(2024, 2, 29)
    assert texts(pl.Series([day])) == texts(pl.Series([midnight], dtype=pl.Datetime("ns"))) == ["2024-02-29"]
    assert texts(pl.Series([midnight.replace(hour=1)], dtype=pl.Datetime("ms"))) == ["2024-02-29T01:00:00.000000"]
    zoned = pl.Series([midnight.replace(hour=9)]).dt.replace_time_zone("Asia/Tokyo")
    assert texts(zoned) == ["2024-02-29"]


def test_an_id_is_the_same_whatever_type_it_arrives_in() -> None:
    whole = [7, 8, 9]
    for column in (
        pl.Series(whole),
        pl.Series(whole, dtype=pl.Int8),
        pl.Series(whole, dtype=pl.UInt64),
        pl.Series([7.0, 8.0, 9.0]),
        pl.Series([7.0, 8.0, 9.0], dtype=pl.Float32),
        pl.Series(["7", "8", "9"]),
        pl.Series(["7", "8", "9"], dtype=pl.Categorical),
        pl.Series(whole, dtype=pl.Object),
        pl.from_pandas(pd.Series([7, 8, 9], dtype="Int64")),
        pl.from_pandas(pd.Series(["7", "8", "9"], dtype=object)),
    ):
        assert ids(column, "8", "7") == [3, 2, 1]


def test_missing_and_unseen_are_kept_apart() -> None:
    assert ids(pl.Series(["a", "z", None, ""]), "a") == [2, 1, 0, 0]
    assert ids(pl.from_pandas(pd.Series([7.0, np.nan])), "7") == [2, 0]
    assert ids(pl.Series(["a", None])) == [1, 0]  # a table without values


def test_an_absent_column_is_missing_in_every_row() -> None:
    schema = Schema(
        [
            Feature(name="a", kind="id"),
            Feature(name="b", kind="bag"),
            Feature(name="w", kind="weighted_bag", separator=","),
            Feature(name="n", kind="number"),
            Feature(name="v", kind="vector", dim=2),
        ]
    )
    empty = Vocabulary((), ())
    statistics = Statistics(
        tables={"a": empty, "b": empty, "w": empty}, numbers={"n": NumberStatistics(1, 0, 5.0, 2.0, 0, 9)}, labels={}
    )
    rows = encode(pl.DataFrame({"other": [1, 2]}).lazy(), schema, statistics).collect()
    assert rows.to_dicts() == 2 * [
        {"id:a": 0, "bag:b": [0], "bag:w": [0], "weights:w": [1.0], "dense": [0.0, 1.0, 0.0, 0.0, 1.0]}
    ]
    assert rows.schema == {
        "id:a": pl.Int32,
        "bag:b": pl.List(pl.Int32),
        "bag:w": pl.List(pl.Int32),
        "weights:w": pl.List(pl.Float32),
        "dense": pl.Array(pl.Float32, 5),
    }
    assert encode(pl.DataFrame({"a": []}).lazy(), schema, statistics).collect().height == 0


def test_hashing_is_the_same_for_ever() -> None:
    # Fixed numbers: a model's tables hang on them. BLAKE2b (RFC 7693) with an 8-byte digest, little-endian.
    assert stable_hash(pl.Series(["a", None, "ü", "a"])).to_list() == [
        0x2F42665B399EF840,
        None,
        0x372F39C1F59DF155,
        0x2F42665B399EF840,
    ]
    assert stable_hash(pl.Series(["a"]), key="1").to_list() != stable_hash(pl.Series(["a"]), key="2").to_list()
    feature = Feature(name="x", kind="id", hash_buckets=10)
    rows = encoder(feature).rows(pl.DataFrame({"x": ["a", "b", None, *map(str, range(500))]}))["id:x"]
    assert rows[2] == 0
    assert set(rows.to_list()) == {0, *range(2, 12)}


def test_bags() -> None:
    feature = Feature(name="x", kind="bag", separator="|", max_length=2)
    frame = pl.DataFrame({"x": ["a|b", " b | a ", "", None, "||", "z", "a||b|a"]})
    assert encoder(feature, values=("a", "b")).rows(frame)["bag:x"].to_list() == [
        [2, 3],
        [3, 2],
        [0],
        [0],
        [],
        [1],
        [2, 3],
    ]
    lists = Feature(name="x", kind="bag")
    for column in (
        [[7, 8], [], None, [None, 9]],
        [[7.0, 8.0], [], None, [float("nan"), 9.0]],
        [["7", "8"], [], None, ["", "9"]],
    ):
        rows = encoder(lists, values=("7", "8")).rows(pl.DataFrame({"x": column}))
        assert rows["bag:x"].to_list() == [[2, 3], [], [0], [1]]
    fixed = pl.DataFrame({"x": [[7, 8], None]}, schema={"x": pl.Array(pl.Int64, 2)})
    assert encoder(lists, values=("7", "8")).rows(fixed)["bag:x"].to_list() == [[2, 3], [0]]
    # One value in every row of a CSV: the column arrives as whole numbers.
    assert encoder(feature, values=("7",)).rows(pl.DataFrame({"x": [7, 9, None]}))["bag:x"].to_list() == [[2], [1], [0]]


def test_weighted_bags_in_text() -> None:
    feature = Feature(name="x", kind="weighted_bag", separator=",", max_length=3)
    frame = pl.DataFrame({"x": ["a:1,b:3", "a", "z:x,a:1", None, ",", "a:0", "b:-1,a:3"]})
    rows = encoder(feature, values=("a", "b")).rows(frame)
    assert rows["bag:x"].to_list() == [[2, 3], [2], [1, 2], [0], [], [2], [3, 2]]
    assert rows["weights:x"].to_list() == [[0.25, 0.75], [1.0], [0.5, 0.5], [1.0], [], [0.0], [-0.25, 0.75]]
    other = Feature(name="x", kind="weighted_bag", separator=" ", weight_separator="::", pooling="sum")
    rows = encoder(other, values=("a:b",)).rows(pl.DataFrame({"x": ["a:b::2.5"]}))
    assert rows.to_dicts() == [{"bag:x": [2], "weights:x": [2.5]}]


def test_weighted_bags_in_two_columns() -> None:
    feature = Feature(name="x", kind="weighted_bag", weights="w", pooling="sum", max_length=2)
    frame = pl.DataFrame({"x": [["a", None, "b", "a"], ["a"], [], None], "w": [[1.0, 9.0, None, 2.0], None, [], [1.0]]})
    rows = encoder(feature, values=("a", "b")).rows(frame)
    assert rows["bag:x"].to_list() == [[2, 3], [2], [], [0]]
    assert rows["weights:x"].to_list() == [[1.0, 1.0], [1.0], [], [1.0]]
    assert encoder(feature, values=("a",)).rows(frame.drop("w"))["weights:x"].to_list() == [
        [1.0, 1.0],
        [1.0],
        [],
        [1.0],
    ]
    text = Feature(name="x", kind="weighted_bag", weights="w", separator=",", pooling="sum")
    rows = encoder(text, values=("a", "b")).rows(pl.DataFrame({"x": ["a,b"], "w": ["2,3"]}))
    assert rows.to_dicts() == [{"bag:x": [2, 3], "weights:x": [2.0, 3.0]}]
    with pytest.raises(UserError, match=r"features\.x: 1 rows hold more or fewer weights.*2 for 1") as caught:
        encoder(feature, values=("a",)).rows(pl.DataFrame({"x": [["a"]], "w": [[1.0, 2.0]]}))
    assert "\n" not in str(caught.value)


def test_numbers() -> None:
    assert floats(pl.Series([1, None])) == [1.0, None]
    assert floats(pl.Series([1.5, float("nan"), float("inf")])) == [1.5, None, None]
    assert floats(pl.Series(["3", " 4.5 ", "x", "", "inf", "1e3"])) == [3.0, 4.5, None, None, None, 1000.0]
    assert floats(pl.Series([True, False])) == [1.0, 0.0]
    assert floats(pl.Series([dt.date(1970, 1, 2)])) == [86400.0]
    assert floats(pl.Series([dt.datetime(1970, 1, 1, 0, 1)])) == [60.0]
    assert floats(pl.Series([dt.timedelta(milliseconds=1500)])) == [1.5]
    assert floats(pl.Series([3, "4", None], dtype=pl.Object)) == [3.0, 4.0, None]


@pytest.mark.parametrize(
    ("transform", "raw", "expected"),
    [
        ("none", [5.0, 9.0, None], [0.0, 2.0, 0.0]),
        ("log1p", [np.e - 1, -(np.e - 1), None], [-2.0, -3.0, 0.0]),
        ("sqrt", [4.0, -4.0, None], [-1.5, -3.5, 0.0]),
    ],
)
def test_numbers_are_transformed_and_standardised(transform: str, raw: list[float], expected: list[float]) -> None:
    feature = Feature(name="x", kind="number", transform=transform)
    fitted = NumberStatistics(3, 0, 5.0, 2.0, 0.0, 9.0)
    dense = encoder(feature, numbers=fitted).rows(pl.DataFrame({"x": raw}))["dense"].to_numpy()
    assert dense.dtype == np.float32
    np.testing.assert_allclose(dense, np.stack([expected, [0, 0, 1]], axis=1), atol=1e-6)


def test_rank_is_the_position_among_the_training_quantiles() -> None:
    feature = Feature(name="x", kind="number", transform="rank")
    fitted = NumberStatistics(5, 0, 0.0, 1.0, 0.0, 1.0, (0.0, 0.0, 1.0, 2.0, 4.0))
    dense = (
        encoder(feature, numbers=fitted).rows(pl.DataFrame({"x": [-1.0, 0, 1, 1.5, 3, 4, 9, None]}))["dense"].to_numpy()
    )
    # 0 spans the first two of five quantiles: the middle of positions 0 and 1.
    np.testing.assert_allclose(dense[:, 0], [0, 0.125, 0.5, 0.625, 0.875, 1, 1, 0])
    assert dense[:, 1].tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    nothing = NumberStatistics(0, 5, 0.0, 1.0, 0.0, 0.0, ())
    dense = encoder(feature, numbers=nothing).rows(pl.DataFrame({"x": [1.0, None]}))["dense"].to_numpy()
    assert dense.tolist() == [[0, 0], [0, 1]]


def test_an_outlier_stays_finite() -> None:
    feature = Feature(name="x", kind="number")
    fitted = NumberStatistics(2, 0, 0.0, 1e-3, 0.0, 1.0)
    dense = encoder(feature, numbers=fitted).rows(pl.DataFrame({"x": [1e300, -1e300]}))["dense"].to_numpy()
    assert np.isfinite(dense).all()


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([[1.0, 2.0], None, [None, 1.0]]),
        pl.Series([[1, 2], None, [None, 1]]),
        pl.Series([[1.0, 2.0], None, [float("nan"), 1.0]], dtype=pl.Array(pl.Float32, 2)),
        pl.Series(["[1.0, 2.0]", None, "1 nan"]),
        pl.Series([["1", "2"], None, ["x", "1"]]),
    ],
)
def test_vectors(column: pl.Series) -> None:
    rows = encoder(Feature(name="x", kind="vector", dim=2)).rows(column.alias("x").to_frame())
    assert rows["dense"].to_list() == [[1.0, 2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_a_vector_of_the_wrong_length_is_an_error(engine: str) -> None:
    made = encoder(Feature(name="x", kind="vector", dim=3))
    frame = pl.DataFrame({"x": [[1.0, 2.0, 3.0], [1.0]]})
    with pytest.raises(
        UserError, match=r"features\.x: 1 rows of column 'x' are not vectors of `dim` 3, e\.g\. one of 1"
    ):
        made(frame.lazy()).collect(engine=engine)  # type: ignore[call-overload]
    with pytest.raises(UserError) as caught:
        made.rows(frame)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("feature", "column"),
    [
        (Feature(name="x", kind="id"), [[1]]),
        (Feature(name="x", kind="number"), [[1]]),
        (Feature(name="x", kind="bag"), [[[1]]]),
        (Feature(name="x", kind="vector", dim=1), [1.0]),
        (Feature(name="x", kind="vector", dim=1), [[[1.0]]]),
    ],
)
def test_a_type_that_cannot_be_read_is_an_error(feature: Feature, column: list[object]) -> None:
    with pytest.raises(UserError, match=r"features\.x: column 'x' is .*, which cannot be read as kind"):
        encoder(feature, numbers=NumberStatistics(1, 0, 0, 1, 0, 1)).rows(pl.DataFrame({"x": column}))


def test_a_bag_in_text_needs_a_separator() -> None:
    with pytest.raises(UserError, match=r"features\.x.*`separator`"):
        encoder(Feature(name="x", kind="bag")).rows(pl.DataFrame({"x": ["a,b"]}))


@pytest.mark.parametrize(
    "text", [["[5, 8]", "[]", None], ['["5","8"]', "[]", ""], ["['5', '8']", "()", " "], ["[5 8]", "set()", None]]
)
@pytest.mark.parametrize("separator", [None, ",", "|"])
def test_lists_in_text_are_what_lists_are(text: list[str | None], separator: str | None) -> None:
    statistics = ("5", "8")
    wanted = encoder(Feature(name="x", kind="bag"), values=statistics).rows(pl.DataFrame({"x": [[5, 8], [], None]}))
    for column in (pl.Series(text), pl.Series(text, dtype=pl.Categorical)):
        found = encoder(Feature(name="x", kind="bag", separator=separator), values=statistics).rows(
            pl.DataFrame({"x": column})
        )
        blank = [n for n, value in enumerate(text) if value == " "]  # a text of no values, where a separator splits it
        kept = [n for n in range(3) if separator is None or n not in blank]
        assert found["bag:x"].gather(kept).to_list() == wanted["bag:x"].gather(kept).to_list()


def test_weights_in_lists_in_text() -> None:
    statistics = ("a", "b")
    lists = pl.DataFrame({"x": ["['a', 'b']", '["b"]'], "w": ["[1.0, 3.0]", "[2]"]})
    for separator in (None, ","):
        beside = Feature(name="x", kind="weighted_bag", weights="w", separator=separator)
        found = encoder(beside, values=statistics).rows(lists)
        assert found["bag:x"].to_list() == [[2, 3], [3]]
        assert found["weights:x"].to_list() == [[0.25, 0.75], [1.0]]
    within = Feature(name="x", kind="weighted_bag", separator=",", pooling="sum")
    found = encoder(within, values=statistics).rows(pl.DataFrame({"x": ["['a:0.5', 'b:2']", "[b:4]"]}))
    assert found["bag:x"].to_list() == [[2, 3], [3]]
    assert found["weights:x"].to_list() == [[0.5, 2.0], [4.0]]


def test_features_share_a_table_and_slices_encode_as_the_whole() -> None:
    schema = Schema(
        [
            Feature(name="a", kind="id", table="t"),
            Feature(name="b", kind="bag", separator=",", table="t"),
            Feature(name="n", kind="number", transform="log1p"),
        ]
    )
    statistics = Statistics(
        tables={"t": Vocabulary(("1", "2"), (2, 1))}, numbers={"n": NumberStatistics(1, 0, 0.3, 0.7, 0, 1)}, labels={}
    )
    frame = pl.DataFrame({"a": [1, 2, 3, None], "b": ["2,1", "3", None, "1"], "n": [0.1, 0.2, None, 3.0]})
    whole = encode(frame.lazy(), schema, statistics).collect()
    assert whole["id:a"].to_list() == [2, 3, 1, 0]
    assert whole["bag:b"].to_list() == [[3, 2], [1], [0], [2]]
    parts = pl.concat([encode(frame[i : i + 1].lazy(), schema, statistics).collect() for i in range(4)])
    assert whole.equals(parts)
    assert whole.equals(encode(frame.lazy(), schema, statistics).collect(engine="streaming"))


def test_an_encoder_indexes_a_vocabulary_once_for_frames_of_the_same_types(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = encoder(Feature(name="item", kind="id"), values=("7", "8"))
    written = []
    columns = made._columns

    def noted(types: pl.Schema) -> dict[str, pl.Expr]:
        written.append(dict(types))
        return columns(types)

    monkeypatch.setattr(made, "_columns", noted)
    frames: list[dict[str, list[object]]] = [
        {"item": [7, 9]},
        {"item": [8, None]},
        {"item": ["8", ""]},
        {"other": [1, 2]},
        {"item": [8, 7]},
    ]
    rows = [made.rows(pl.DataFrame(frame))["id:item"].to_list() for frame in frames]
    assert rows == [[2, 1], [3, 0], [3, 0], [0, 0], [3, 2]]
    assert written == [{"item": pl.Int64}, {"item": pl.String}, {"other": pl.Int64}]
