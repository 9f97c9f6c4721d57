"""JSON of bounded size and depth: read so, it cannot exhaust memory or the stack, whoever wrote it.

In: a file, or bytes. Out: its value, or one error that says what is wrong with it. Size and depth are checked on the
bytes, before anything is built of them. ``NaN``, ``Infinity`` and ``1e999``, which JSON does not have, are refused in
what recmtl itself wrote.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from recmtl.errors import RunError

__all__ = ["DEEPEST", "LARGEST", "depth_of", "parse_json", "read_bytes", "read_json", "read_model"]

LARGEST = 1 << 28
"""Bytes of a file of recmtl's own beyond which it is none; the largest are statistics and manifests of many columns."""
DEEPEST = 64
"""Lists and objects within each other. Those of recmtl's files are a dozen deep at most."""

# Strings whole, with their escapes, so that a bracket in one does not count; an unfinished one reaches to the end. The
# possessive quantifiers keep nothing to go back to: that would be a hundred bytes per character of a string.
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\Z)|[\[{]|[\]}]', re.DOTALL)
_DIGITS = 400
"""Digits of a whole number: Python's conversion takes the square of their number in time."""

_Model = TypeVar("_Model", bound=BaseModel)


def depth_of(content: bytes, limit: int) -> int:
    """How deep lists and objects lie within each other; ``limit + 1`` as soon as it is more than the limit.

    Args:
        content: JSON, whole or damaged.
        limit: where to stop.
    """
    depth = deepest = 0
    for match in _STRUCTURE.finditer(content):
        first = content[match.start()]
        if first in b"[{":
            depth += 1
            if depth > deepest:
                deepest = depth
                if deepest > limit:
                    break
        elif first in b"]}":
            depth -= 1
    return deepest


def parse_json(content: bytes, *, deepest: int = DEEPEST, finite: bool = True) -> Any:
    """The value of some JSON.

    Args:
        content: UTF-8.
        deepest: how deep lists and objects may lie within each other.
        finite: refuse ``NaN``, ``Infinity`` and numbers too large for a double.

    Raises:
        ValueError: it is no JSON, is nested deeper, or holds a number that is not finite; in one line.
    """
    if depth_of(content, deepest) > deepest:
        raise ValueError(f"lists and objects lie more than {deepest} deep within each other")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is no UTF-8") from error
    if not finite:
        return json.loads(text, parse_int=_whole)
    return json.loads(text, parse_constant=_no_number, parse_float=_real, parse_int=_whole)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a number of {len(text):,} digits is too long")
    return int(text)


def read_bytes(path: Path, *, largest: int = LARGEST) -> bytes:
    """A file's bytes.

    Raises:
        ValueError: there are more than ``largest``.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(largest + 1)  # not its stated size: a file may grow, and a device has none
    if len(content) > largest:
        raise ValueError(f"it is larger than {largest:,} bytes")
    return content


def read_json(path: Path, *, largest: int = LARGEST, deepest: int = DEEPEST) -> Any:
    """The value that a JSON file holds.

    Raises:
        RunError: it is too large, too deep or no JSON; in one sentence that names the file.
        OSError: it cannot be read.
    """
    try:
        return parse_json(read_bytes(path, largest=largest), deepest=deepest)
    except ValueError as error:
        raise RunError(f"{path}: this is no JSON that recmtl wrote: {_first_line(error)}") from error


def read_model(path: Path, kind: type[_Model], *, largest: int = LARGEST) -> _Model:
    """A JSON file as a settings class.

    Raises:
        RunError: as :func:`read_json`; it does not say what this class says.
        OSError: it cannot be read.
    """
    try:
        content = read_bytes(path, largest=largest)
        parse_json(content)
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunError(f"{path}: {f'{where}: ' if where else ''}{first['msg']}") from error
    except ValueError as error:
        raise RunError(f"{path}: this is no JSON that recmtl wrote: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
