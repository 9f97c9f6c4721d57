"""Lists in text, form by form, and the values that stand in them."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recmtl.etl.listtext import is_bracketed, is_list_text, list_items


def items(text: str | None, separator: str | None = None) -> list[str | None] | None:
    found = pl.DataFrame({"text": [text]}, schema={"text": pl.String}).select(list_items(pl.col("text"), separator))
    value = found.item()
    return None if value is None else list(value)


@pytest.mark.parametrize("separator", [None, ",", "|", " "])
@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[5, 8, 7]", ["5", "8", "7"]),
        ("[5,8 , 7]", ["5", "8", "7"]),
        ('["a","b"]', ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ("['sci fi', 'drama']", ["sci fi", "drama"]),
        ("[5 8 7]", ["5", "8", "7"]),
        ("[5\n 8\n  7]", ["5", "8", "7"]),
        ("['a' 'b']", ["a", "b"]),
        ("('a', 'b')", ["a", "b"]),
        ("{5, 8}", ["5", "8"]),
        ('{"a","sci fi"}', ["a", "sci fi"]),
        ("[]", []),
        ("()", []),
        ("set()", []),
        ("frozenset({'x', 'y'})", ["x", "y"]),
        ("array([1., 2.], dtype=float32)", ["1", "2"]),
        ("[np.int64(5), np.str_('q')]", ["5", "q"]),
        ("  ['a', 'b']\n", ["a", "b"]),
        ("[1.0, 2., -0.0, 3.50]", ["1", "2", "0", "3.50"]),
        ("[True, False, None, 'None', nan, '']", ["true", "false", None, "None", None, None]),
        ("[007, 1E5, 9007199254740993]", ["007", "1E5", "9007199254740993"]),
        ('["it\'s", \'say "x"\']', ["it's", 'say "x"']),
        (r"""['it\'s', "a\u00e9\ud83d\ude00", 'tab\there', 'back\\slash', '\d']""", None),
        ("['a, b', 'c']", ["a, b", "c"]),
        ("['a|b', '[c]', '(d)']", ["a|b", "[c]", "(d)"]),
        (r'["\ud800", "b"]', [None, "b"]),
    ],
)
def test_the_values_of_a_list(text: str, values: list[str | None] | None, separator: str | None) -> None:
    if values is None:
        values = ["it's", "aé😀", "tab\there", "back\\slash", "\\d"]
    assert items(text, separator) == values


@pytest.mark.parametrize("separator", [None, ",", "|"])
@pytest.mark.parametrize(
    "text",
    [
        "[[1, 2], [3]]",
        "[(1, 2)]",
        "[1, [2]]",
        "[1 2 ... 9]",
        "['a', 'b]",
        "{'a': 1}",
        '{"a": [1]}',
        "[" * 900 + "]" * 900,
    ],
)
def test_what_is_no_list_of_single_values_is_unreadable(text: str, separator: str | None) -> None:
    assert items(text, separator) is None


@pytest.mark.parametrize(
    ("text", "separator", "values"),
    [
        ("a|b", "|", ["a", "b"]),
        ("[a|b]", "|", ["a", "b"]),
        ("[a b]", " ", ["a", "b"]),
        ("(a, b)", ",", ["a", "b"]),
        ("[sci fi, drama]", ",", ["sci fi", "drama"]),
        ("[Drama (US), it's]", ",", ["Drama (US)", "it's"]),
        # Titles in brackets are no lists.
        ("(500) Days of Summer|Up (2009)", "|", ["(500) Days of Summer", "Up (2009)"]),
        ("(2019)", "|", ["(2019)"]),
        ("a,,b", ",", ["a", None, "b"]),
        ("", ",", [None]),
        ("plain", None, None),
        (None, ",", None),
    ],
)
def test_separators(text: str | None, separator: str | None, values: list[str | None] | None) -> None:
    assert items(text, separator) == values


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, max_size=4), st.sampled_from([None, ",", "|"]), st.booleans())
def test_what_json_and_python_write_is_read_back(words: list[str], separator: str | None, ascii_only: bool) -> None:
    wanted = [word or None for word in words]
    assert items(json.dumps(words, ensure_ascii=ascii_only), separator) == wanted
    assert items(str(words), separator) == wanted
    assert items(str(tuple(words)), separator) == wanted


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4))
def test_whole_numbers_are_exact(numbers: list[int]) -> None:
    wanted = [str(number) for number in numbers]
    for text in (json.dumps(numbers), str(tuple(numbers)), str(np.array(numbers, dtype=np.int64))):
        assert items(text) == wanted


def test_a_slice_reads_as_the_whole_does() -> None:
    texts = ["[5, 8]", None, '["a"]', "a|b", "[[1]]", "['b', 'c']", "", "[7 8]"]
    whole = pl.DataFrame({"t": texts}).select(list_items(pl.col("t"), "|"))["t"].to_list()
    assert whole == [items(text, "|") for text in texts]


def test_what_looks_like_a_list() -> None:
    frame = pl.DataFrame({"t": ["[1, 2]", "[[1]]", "(500) Days", "x", None]})
    assert frame.select(is_list_text(pl.col("t")))["t"].to_list() == [True, False, False, False, None]
    assert frame.select(is_bracketed(pl.col("t")))["t"].to_list() == [True, True, False, False, None]
