"""JSON that is checked before it is built."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recmtl.bounded import depth_of, parse_json, read_json, read_model
from recmtl.errors import RunError
from recmtl.settings import Settings


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


TEXTS = st.text(alphabet='[]{}"\\,: aé\n', max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=20,
)


@given(VALUES, st.booleans())
def test_depth_is_that_of_the_parsed_value(value: object, escaped: bool) -> None:
    """An independent count over what json.loads builds; brackets in strings, keys and behind escapes do not count."""
    content = json.dumps(value, ensure_ascii=escaped).encode()
    assert depth_of(content, 100) == depth(value)
    assert parse_json(content, deepest=100) == value


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"]":'])
def test_depth_stops_at_the_limit(opening: bytes) -> None:
    with pytest.raises(ValueError, match="more than 20 deep"):
        parse_json(opening * 1_000_000, deepest=20)


def test_a_string_that_does_not_end_hides_nothing_before_it() -> None:
    assert depth_of(b'[[["[[[[', 100) == 3
    assert depth_of(b"[[[]]]]]]][[[[[[", 100) == 3


class About(Settings):
    count: int


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "about.json"
    path.write_text('{"count": "many"}')
    with pytest.raises(RunError, match=r"about\.json: count: Input should be a valid integer"):
        read_model(path, About)
    path.write_text("[1, 2")
    with pytest.raises(RunError, match=r"about\.json: this is no JSON that recmtl wrote: Expecting"):
        read_json(path)
    path.write_text('{"count": 12345}')
    with pytest.raises(RunError, match="larger than 8 bytes"):
        read_json(path, largest=8)
    assert read_model(path, About).count == 12345
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent.json")


def test_a_long_string_takes_no_memory_of_its_own() -> None:
    script = """
import resource
from recmtl.bounded import depth_of
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
assert depth_of(b'[' + b'"' + b'x' * 30_000_000 + b'"]', 64) == 1
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
