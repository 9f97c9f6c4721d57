"""Requests: the same rows in every form give the package's own predictions; what is malformed is refused and named."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from recmtl.answering import _as_in_training, answer, predictions, read
from recmtl.errors import UserError
from recmtl.manifest import Columns
from recmtl.package import Package, load_package
from recmtl.schema import Feature, Schema

ROWS = [
    {"user_id": 1, "item_id": "a", "likes": [7], "age": 20},
    {"user_id": 2, "age": None, "genre": "p:0.5", "content": [1.0, 0.0, 2.0]},
    {"item_id": "b", "user_id": 9_007_199_254_740_993},
]


@pytest.fixture(scope="module")
def package(saved: Path) -> Package:
    return load_package(saved)


def asked(package: Package, **request: Any) -> pd.DataFrame:
    return answer(package, json.dumps(request).encode(), "application/json")


def expected(package: Package) -> Any:
    names = dict.fromkeys(name for row in ROWS for name in row)
    return package.predict(pl.DataFrame({name: [row.get(name) for row in ROWS] for name in names})).to_numpy()


@pytest.mark.parametrize("form", ["dataframe_records", "instances", "inputs", "columns", "dataframe_split"])
def test_every_form_gives_the_packages_predictions(package: Package, form: str) -> None:
    names = list(dict.fromkeys(name for row in ROWS for name in row))
    request: dict[str, Any] = {form: ROWS}
    if form == "columns":
        request = {"inputs": {name: [row.get(name) for row in ROWS] for name in names}}
    elif form == "dataframe_split":
        request = {form: {"columns": names, "data": [[row.get(name) for name in names] for row in ROWS]}}
    found = asked(package, **request)
    np.testing.assert_allclose(found.to_numpy(), expected(package), rtol=1e-6, atol=1e-7)
    assert list(found.columns) == list(package.prediction_columns)


def test_what_a_row_does_not_name_is_missing_in_that_row_alone(package: Package) -> None:
    both = asked(package, instances=[{"user_id": 1}, {"item_id": "a"}])
    alone = [asked(package, instances=[row]) for row in ({"user_id": 1}, {"item_id": "a"})]
    np.testing.assert_allclose(both.to_numpy(), pd.concat(alone).to_numpy(), rtol=1e-6)


def test_large_ids_keep_their_digits() -> None:
    frame, _ = read(json.dumps({"instances": ROWS}), None)
    assert frame["user_id"].tolist() == [1, 2, 9_007_199_254_740_993]


def test_the_best_rows(package: Package) -> None:
    everything = asked(package, instances=ROWS)
    best = asked(package, instances=ROWS, params={"top_k": 2, "score": "stars"})
    order = np.argsort(-everything["stars"].to_numpy(), kind="stable")[:2]
    assert best["row"].tolist() == order.tolist()
    assert best["rank"].tolist() == [1, 2]
    np.testing.assert_array_equal(best["click"], everything["click"].iloc[order])
    assert len(asked(package, instances=ROWS, params={"top_k": 9, "score": "stars"})) == 3
    tied = asked(package, instances=[ROWS[1]] * 3, params={"top_k": 2, "score": "stars"})
    assert tied["row"].tolist() == [0, 1]


def test_an_id_beyond_64_bits_is_an_id_that_training_has_not_seen(package: Package) -> None:
    pd.testing.assert_frame_equal(
        asked(package, instances=[{"user_id": 10**30}]), asked(package, instances=[{"user_id": 77}])
    )


MALFORMED: list[tuple[Any, str]] = [
    ("{not", "no JSON"),
    (b"\xff\xfe", "no JSON"),
    ("", "no JSON"),
    ("[" * 200_000, "no JSON"),
    ("[1]", "not a list"),
    ("null", "not null"),
    ({}, "this one holds none"),
    ({"rows": []}, "not 'rows'"),
    ({"instances": ROWS, "inputs": ROWS}, "holds instances and inputs"),
    ({"instances": []}, "no rows"),
    ({"instances": [{}]}, "no rows of any column"),
    ({"inputs": {}}, "no rows"),
    ({"dataframe_split": {"columns": ["age"], "data": []}}, "no rows"),
    ({"instances": 5}, "instances: a list of rows is expected, not a number"),
    ({"instances": [ROWS[0], 7]}, r"instances\[1\]: a row is an object of columns and values, not a number"),
    ({"inputs": {"age": 5}}, r"inputs\.age: a list of the rows' values"),
    ({"inputs": {"age": [5], "user_id": [1, 2]}}, "column 'age' has 1 values and 'user_id' 2"),
    ({"dataframe_split": {"columns": ["age"]}}, "an object of `columns` and `data`"),
    ({"dataframe_split": {"columns": "age", "data": []}}, "columns: a list of names"),
    ({"dataframe_split": {"columns": ["age", "age"], "data": [[1, 2]]}}, "'age' stands there twice"),
    ({"dataframe_split": {"columns": ["age"], "data": 3}}, "data: a list of rows is expected, not a number"),
    ({"dataframe_split": {"columns": ["age"], "data": [[1], 2]}}, r"data\[1\]: a row is a list"),
    ({"dataframe_split": {"columns": ["age"], "data": [[1], [1, 2]]}}, r"data\[1\]: 2 values for 1 columns"),
    ({"dataframe_split": {"columns": ["age"], "data": [[1]], "index": [1, 2]}}, "index: a list as long as data"),
    ({"instances": [{"other": 1}]}, "none of the columns that the model reads .* but other"),
    ({"instances": [{"age": [1]}]}, r"features\.age: column 'age'"),
    ({"instances": [{"age": {"a": 1}}]}, r"features\.age: column 'age'"),
    ({"instances": [{"content": [1.0]}]}, r"features\.content: .* not vectors of `dim` 3"),
    ({"instances": [{"likes": [1]}, {"likes": 2}]}, "'likes' mixes lists with other values"),
    ({"instances": ROWS, "params": 7}, "params: an object"),
    ({"instances": ROWS, "params": {"k": 7}}, r"params\.k: there is no such parameter"),
    ({"instances": ROWS, "params": {"top_k": "7"}}, r"params\.top_k: a whole number is expected, not a text"),
    ({"instances": ROWS, "params": {"top_k": True}}, r"params\.top_k: a whole number is expected, not true or false"),
    ({"instances": ROWS, "params": {"top_k": -1}}, r"params\.top_k: 1 or more"),
    ({"instances": ROWS, "params": {"top_k": 1}}, "no fused score"),
    ({"instances": ROWS, "params": {"top_k": 1, "score": "x"}}, "no score 'x'; it predicts click"),
    ({"instances": ROWS, "params": {"calibrated": True}}, "has no calibration"),
]


@pytest.mark.parametrize(("request_", "match"), MALFORMED)
def test_what_is_malformed_is_refused_in_one_sentence(package: Package, request_: Any, match: str) -> None:
    body = request_ if isinstance(request_, (str, bytes)) else json.dumps(request_)
    with pytest.raises(UserError, match=match) as caught:
        answer(package, body, "application/json; charset=utf-8")
    assert "\n" not in str(caught.value)


def test_other_bodies_are_refused(package: Package) -> None:
    with pytest.raises(UserError, match="as application/json, not text/csv"):
        answer(package, b"user_id\n1\n", "text/csv")


def test_a_frame_from_mlflow_keeps_its_index(package: Package) -> None:
    frame = pd.DataFrame({"user_id": [1, 2]}, index=["x", "y"])
    assert predictions(package, frame).index.tolist() == ["x", "y"]
    assert predictions(package, frame, {"calibrated": False, "top_k": 0, "score": ""}).shape == (2, 7)


def test_a_request_may_call_user_and_item_as_recmtl_does(package: Package) -> None:
    """Where the training logs had names of their own; else an id under the wrong name would be scored as missing."""
    renamed = replace(package.contents, columns=Columns(user="customer", item="sku"))
    schema = Schema(
        [
            Feature.model_validate({"name": "customer", "kind": "id"}),
            Feature.model_validate({"name": "sku", "kind": "id"}),
        ]
    )
    asked = SimpleNamespace(contents=renamed, schema=schema)
    frame = pd.DataFrame({"user_id": ["a"], "item_id": ["b"], "price": [1.0]})
    assert list(_as_in_training(asked, frame).columns) == ["customer", "sku", "price"]
    both = frame.assign(customer="c")
    assert list(_as_in_training(asked, both).columns) == ["user_id", "sku", "price", "customer"]


# Requests made to do harm: size, depth and number are bounded before anything is built


def nested(depth: int) -> str:
    return "[" * depth + "1" + "]" * depth


@pytest.mark.parametrize("depth", [4, 8, 30, 500, 900, 100_000, 1_000_000])
@pytest.mark.parametrize("column", ["age", "likes", "content", "user_id", "other"])
def test_a_value_nested_deep_is_one_sentence(package: Package, column: str, depth: int) -> None:
    """A list nested 900 deep overflowed the stack inside Polars and ended the server."""
    for body in (
        f'{{"instances": [{{"{column}": {nested(depth)}, "tag": "x"}}]}}',
        f'{{"inputs": {{"{column}": [{nested(depth)}]}}}}',
        f'{{"dataframe_split": {{"columns": ["{column}"], "data": [[{nested(depth)}]]}}}}',
    ):
        if column == "other" and depth < 5 and "instances" in body:
            continue  # a column that the model does not read is ignored
        with pytest.raises(UserError) as caught:
            answer(package, body, None)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


def test_depth_inside_texts_does_not_count(package: Package) -> None:
    text = '[[[[[[[[[[{{{{{{{{{{\\"'
    assert len(asked(package, instances=[{"item_id": text, "likes": [7]}])) == 1


def test_a_large_body_is_refused_before_it_is_read(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_it(*_: Any, **__: Any) -> None:
        raise AssertionError("a body that is too large was parsed")

    monkeypatch.setattr("recmtl.answering.parse_json", read_it)
    with pytest.raises(UserError, match="this request is 300,000,000 bytes long; one request holds 67,108,864 at most"):
        answer(package, bytes(300_000_000), None)


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        ({"instances": [{}] * (2**20 + 1)}, r"instances: 1,048,577 rows; one request holds 1,048,576 at most"),
        ({"instances": [{f"c{n}": 1 for n in range(5000)}]}, r"instances: 5,000 columns; .* 4,096 at most"),
        ({"instances": [{f"c{n % 4000}": 1} for n in range(5000)]}, r"instances: 20,000,000 values; .* 16,777,216"),
        ({"inputs": {f"c{n}": [1] for n in range(5000)}}, r"inputs: 5,000 columns"),
        ({"dataframe_split": {"columns": [f"c{n}" for n in range(5000)], "data": []}}, r"dataframe_split: 5,000 col"),
        ({"instances": [{"likes": [1] * 70_000}]}, "column 'likes', row 0: 70,000 values in one list; 65,536 at most"),
        ({"instances": [{}, {"tag": "x" * 2_000_000}]}, "column 'tag', row 1: a text of 2,000,000 characters"),
        ({"instances": [{"likes": ["x" * 2_000_000]}]}, "column 'likes', row 0: a text of 2,000,000 characters"),
    ],
)
def test_too_much_is_refused(package: Package, request_: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        answer(package, json.dumps(request_), None)


@pytest.mark.parametrize(
    "value",
    [
        [[1]],
        [1, [2]],
        [{"a": 1}],
        {"a": [1]},
        [np.array([1.0])],
        np.array([[1.0]]),
        ([1],),
        [[[[[1]]]]],
    ],
)
def test_nested_objects_of_a_pandas_frame_are_refused(package: Package, value: Any) -> None:
    """The pyfunc's door: rows that no request was read from."""
    frame = pd.DataFrame({"likes": pd.Series([[7], value], dtype=object)})
    with pytest.raises(UserError, match="column 'likes', row 1: a list within a list"):
        predictions(package, frame)


def test_a_pandas_value_nested_900_deep_is_refused(package: Package) -> None:
    value: list[Any] = [1]
    for _ in range(900):
        value = [value]
    with pytest.raises(UserError, match="a list within a list"):
        package.predict_pandas(pd.DataFrame({"likes": pd.Series([value], dtype=object)}))


LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    "request_",
    [
        {LONG: 1},
        {"\ud800": 1},
        {"instances": [{LONG: 1}]},
        {"instances": [{"\ud800\n": 1}]},
        {"instances": [{"user_id": "\ud800"}]},
        {"instances": [{"likes": ["\ud800"]}]},
        {"inputs": {LONG: 5}},
        {"inputs": {LONG: [5], "b": []}},
        {"dataframe_split": {"columns": [LONG, LONG], "data": []}},
        {"instances": ROWS, "params": {LONG: 1}},
        {"instances": ROWS, "params": {"top_k": 1, "score": LONG}},
        {"instances": [{"age": LONG}, {"age": {}}]},
    ],
)
def test_an_answer_repeats_little_of_a_request(package: Package, request_: Any) -> None:
    """And nothing that cannot be written: a lone surrogate ended the answer to the refusal."""
    with pytest.raises(UserError) as caught:
        answer(package, json.dumps(request_), None)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_a_panic_of_polars_is_a_refusal(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(*_: Any, **__: Any) -> None:
        raise pl.exceptions.PanicException("index out of bounds\nbacktrace")

    monkeypatch.setattr(Package, "predict", panic)
    with pytest.raises(UserError, match=r"these rows cannot be read: index out of bounds$"):
        asked(package, instances=ROWS)
