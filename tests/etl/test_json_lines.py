"""JSON lines: every value as it is written, one type per column over all files, what is no object set aside."""

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recmtl.errors import UserError
from recmtl.etl import json_lines
from recmtl.etl.files import Raw, find, header, kind_of, scan
from recmtl.etl.json_lines import MAX_DEPTH


def _raw(tmp_path: Path, *texts: str, name: str = "a.jsonl", **options: Any) -> Raw:
    files = {}
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}-{name}"
        path.write_text(text)
        files[path.name] = path
    return scan(files, "x", tmp_path / "work", **options)


def _column(tmp_path: Path, *tokens: str) -> pl.Series:
    return _raw(tmp_path, "".join(f'{{"v": {token}}}\n' for token in tokens)).frame.collect()["v"]


@pytest.mark.parametrize(
    ("tokens", "dtype", "values"),
    [
        (
            ["1", "-0", "null", "9223372036854775807", "-9223372036854775808"],
            pl.Int64,
            [1, 0, None, 2**63 - 1, -(2**63)],
        ),
        (["1", "9223372036854775808"], pl.String, ["1", "9223372036854775808"]),
        (["1", "9" * 5000], pl.String, ["1", "9" * 5000]),
        (["1", "2.5", "1E5", "-1e-3"], pl.Float64, [1.0, 2.5, 1e5, -1e-3]),
        (["9007199254740992", "0.5"], pl.Float64, [2.0**53, 0.5]),
        (["9007199254740993", "0.50", "1E5"], pl.String, ["9007199254740993", "0.50", "1E5"]),
        (["1e999", "1.0", "NaN", "-Infinity"], pl.Float64, [float("inf"), 1.0, None, float("-inf")]),
        (['"007"', '""', "null", '"Zü\\u00df\\ud83d\\ude00"'], pl.String, ["007", "", None, "Züß😀"]),
        (["true", "null", "false"], pl.Boolean, [True, None, False]),
        (
            ["true", "1", '"x"', "1.50", "[1.0, 2]", '{"b": 1e2}'],
            pl.String,
            ["true", "1", "x", "1.50", "[1.0, 2]", '{"b": 1e2}'],
        ),
        (["[1, 2]", "[]", "null", "[null]"], pl.List(pl.Int64), [[1, 2], [], None, [None]]),
        (["[1, 2.5]", "[3]"], pl.List(pl.Float64), [[1.0, 2.5], [3.0]]),
        (["[9007199254740993]", "[0.5]"], pl.List(pl.String), [["9007199254740993"], ["0.5"]]),
        (['["a, b", "c\\"d"]', "[null]"], pl.List(pl.String), [["a, b", 'c"d'], [None]]),
        (["[true, false]"], pl.List(pl.Boolean), [[True, False]]),
        (['[1, "a", true]'], pl.List(pl.String), [["1", "a", "true"]]),
        (["[]"], pl.List(pl.String), [[]]),
        (["null"], pl.String, [None]),
        (
            ['{"os": "ios", "v": 1.50}', "null"],
            pl.Struct({"json": pl.String}),
            [{"json": '{"os": "ios", "v": 1.50}'}, None],
        ),
        (["[[1], [2]]"], pl.List(pl.Struct({"json": pl.String})), [[{"json": "[1]"}, {"json": "[2]"}]]),
    ],
)
def test_a_column_has_the_type_of_all_its_values(
    tmp_path: Path, tokens: list[str], dtype: Any, values: list[Any]
) -> None:
    found = _column(tmp_path, *tokens)
    assert found.dtype == dtype
    assert found.to_list() == values


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.dictionaries(
            st.sampled_from(["a", "b", "c", ""]),
            st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")) | st.lists(st.integers()),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_what_is_written_is_what_is_read(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    if not any(rows):
        return
    text = "".join(json.dumps(row) + "\n" for row in rows)
    frame = _raw(tmp_path, text).frame.collect()
    assert len(frame) == len(rows)
    for name in {key for row in rows for key in row}:
        for value, row in zip(frame[name].to_list(), rows, strict=True):
            wanted = row.get(name)
            if isinstance(value, str) and not isinstance(wanted, str):
                wanted = json.dumps(wanted)
            elif isinstance(value, list):
                wanted = [str(item) if isinstance(got, str) else item for item, got in zip(wanted, value, strict=True)]
            assert value == wanted
            assert type(value) is type(wanted)


def test_types_and_columns_are_those_of_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "_BLOCK_ROWS", 3)
    monkeypatch.setattr(json_lines, "_GROUP_ROWS", 5)
    first = "".join(f'{{"a": {n}, "b": {n}}}\n' for n in range(10))
    raw = _raw(tmp_path, first, '{"a": "x"}\n{"c": [true]}\n{}\n')
    frame = raw.frame.collect()
    assert not raw.text
    assert frame.schema == {"a": pl.String, "b": pl.Int64, "c": pl.List(pl.Boolean)}
    assert frame["a"].to_list() == [*map(str, range(10)), "x", None, None]
    assert frame["b"].to_list() == [*range(10), None, None, None]
    assert frame["c"].to_list() == [None] * 11 + [[True], None]
    assert [path.name for path in (tmp_path / "work").iterdir() if path.suffix != ".parquet"] == []


def test_the_header_is_that_of_all_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "_BLOCK_ROWS", 2)
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_text('{"a": 1}\n' * 5 + '{"z": 1, "a": 2}\n')
    b.write_text('{"y": 1}\n')
    assert header(a, "x") == ["a", "z"]
    assert header({"a": a, "b": b}, "x") == ["a", "z", "y"]
    a.write_text('{"other": 1}\n')
    assert header(a, "x") == ["other"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL.gz", "a.json", "a.txt", "a", "a.csv"])
def test_the_kind_is_seen_by_the_suffix_or_the_first_byte(tmp_path: Path, name: str) -> None:
    text = b' {"id": 12345678901234567890}\n'
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert kind_of(tmp_path / name, "x") == "JSON lines"
    found = find(str(tmp_path / name), "x")
    assert scan(found, "x", tmp_path / "work").frame.collect().rows() == [("12345678901234567890",)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("no", "it is no JSON: expecting value at character 1"),
        ('{"a": 1', "it is no JSON"),
        ('{"a": 01}', "it is no JSON"),
        ('{"a": 1} {"a": 2}', "it is no JSON: extra data"),
        ('{"a": "line\tbreak"}', "it is no JSON: invalid control character"),
        ("[1]", "it is no JSON object"),
        ("7", "it is no JSON object"),
        ('{"a": 1, "a": 1}', "the key 'a' stands twice in one object"),
        ('{"b": {"a": 1, "a": 1}}', "the key 'a' stands twice in one object"),
        ('{"a": "\\ud800"}', "it holds half of a surrogate pair, which is no text"),
        ('{"a": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}", "its values are nested more than 32 deep"),
        ('{"a": ' + "[" * 1_000_000, "its values are nested more than 32 deep"),
        ('{"a": ' * 100_000, "its values are nested more than 32 deep"),
        (
            '{"a": "\\"' + "[" * 100 + '", "b": ' + '{"x":' * 40 + "1" + "}" * 41,
            "its values are nested more than 32 deep",
        ),
    ],
)
def test_a_line_that_is_no_object_is_set_aside(tmp_path: Path, line: str, reason: str) -> None:
    raw = _raw(tmp_path, f'{{"a": 1}}\n\n{line}\n{{"a": 2}}\n', provenance=True)
    assert raw.frame.collect().rows() == [(1, 1, "0-a.jsonl"), (2, 3, "0-a.jsonl")]
    [malformed] = raw.malformed
    assert (malformed.file, malformed.row, malformed.text) == ("0-a.jsonl", 2, line[:1000])
    assert malformed.reason.startswith(reason)


def test_brackets_in_texts_do_not_nest(tmp_path: Path) -> None:
    text = "[{" * 100 + '\\"' + "]"
    deep = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    raw = _raw(tmp_path, f'{{"a": "{text}", "b": {deep}}}\n')
    assert raw.malformed == ()
    assert raw.frame.collect()["a"].to_list() == [text.replace('\\"', '"')]


def test_a_line_that_is_too_long_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE", 100)
    fits = f'{{"a": "{"x" * 91}"}}'
    raw = _raw(tmp_path, f'{fits}\n{{"a": "{"x" * 5000}"}}\n{{"a": "{"y" * 92}"}}\n{{"a": "z"}}')
    assert raw.frame.collect()["a"].to_list() == ["x" * 91, "z"]
    assert [line.row for line in raw.malformed] == [2, 3]


def test_a_line_that_is_not_in_the_encoding_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"a": "ü"}\n'.encode() + '{"a": "ö"}\n'.encode("cp1252") + b'{"a": "o"}\n')
    raw = scan({"a": path}, "x", tmp_path / "work")
    assert raw.frame.collect()["a"].to_list() == ["ü", "o"]
    assert (raw.malformed[0].row, raw.malformed[0].reason) == (2, "it is not in the file's encoding (utf-8)")
    assert (raw.undecodable[0].line, raw.undecodable[0].advice) == (2, "cp1252")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            '[{"a": 1}, {"a": 2}]',
            r"no line of \S+ is a JSON object \(a JSON array\?\), it is no JSON object; write one",
        ),
        (
            '{\n  "a": 1\n}\n',
            r"no line of \S+ is a JSON object, it is no JSON: .* at character 2; write one JSON object",
        ),
        ("", "is empty or holds only empty objects"),
        ("{}\n{}\n", "is empty or holds only empty objects"),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        _raw(tmp_path, text)
    with pytest.raises(UserError, match=match):
        header(tmp_path / "0-a.jsonl", "x")


def test_keys_that_are_data_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MAX_COLUMNS", 20)
    with pytest.raises(UserError, match="more than 20 different keys; keys that are data belong into values"):
        _raw(tmp_path, "".join(f'{{"user-{n}": 1}}\n' for n in range(30)))
