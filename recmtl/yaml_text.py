"""YAML and JSON as plain data, within bounds that are seen before anything is built.

In: a file or a text. Out: mappings, lists and plain values, or one :class:`~recmtl.errors.UserError` that names the
file and the line. Anchors, aliases and merge keys (``<<: *anchor``) work. Refused are a key that stands twice, a key
that is a list or a mapping, an anchor within itself, and what is larger, deeper or expands to more values than the
bounds say.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from recmtl.errors import UserError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_VALUES", "parse_yaml", "read_yaml"]

MAX_BYTES = 1 << 20
"""Of a file."""
MAX_DEPTH = 50
"""Mappings and lists within each other."""
MAX_VALUES = 200_000
"""Keys and values, those that aliases repeat counted every time."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SURROGATES = re.compile(r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_MERGE = "tag:yaml.org,2002:merge"


class _RefusedError(ValueError):
    """Why a text is not read, and on which line (from 0)."""

    def __init__(self, problem: str, mark: Any = None) -> None:
        super().__init__(problem)
        self.line: int | None = None if mark is None else mark.line


def read_yaml(path: Path) -> Any:
    """A file's data; None of an empty file.

    Raises:
        UserError: the file cannot be read, is no UTF-8 text, no YAML and no JSON, or beyond the bounds.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"{path}: this file is larger than {MAX_BYTES >> 20} MiB, which is no config")
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{path}: cannot read this config: {reason}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """A text's data; None of an empty text.

    Args:
        text: YAML or JSON.
        source: where it is from, for errors.

    Raises:
        UserError: it is neither, or beyond the bounds.
    """
    is_json = text.lstrip().startswith("{") and _is_json(text)
    try:
        # YAML reads JSON, but for tabs between values and characters beyond 16 bits in two escapes; it says the line.
        data = _parse(_SURROGATES.sub(_one_character, text.replace("\t", " ")) if is_json else text)
        # JSON's own reader knows numbers such as 1e-3.
        return json.loads(text) if is_json else data
    except _RefusedError as error:
        where = source if error.line is None else f"{source}, line {error.line + 1}"
        raise UserError(f"{where}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark is not None else source
        problem = str(getattr(error, "problem", None) or error).partition("\n")[0]
        raise UserError(f"{where}: this is not YAML: {problem}") from error


def _one_character(escapes: re.Match[str]) -> str:
    high, low = (int(digits, 16) for digits in escapes.groups())
    return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _parse(text: str) -> Any:
    _within_bounds(text)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(loader, node)
        try:
            return loader.construct_document(node)
        except yaml.YAMLError:
            raise
        except (ValueError, OverflowError, TypeError, AttributeError, KeyError) as error:  # 2024-13-45, !!int x
            raise _RefusedError(f"a value cannot be read: {str(error).partition(chr(10))[0]}") from error
    finally:
        loader.dispose()


def _within_bounds(text: str) -> None:
    """Go over the text's events, which takes no recursion, and refuse what would be too large to build."""
    sizes: dict[str, int] = {}
    # Per open mapping or list: its anchor and where the count stood when it began.
    open_nodes: list[tuple[str | None, int]] = []
    count = 0
    for event in yaml.parse(text, Loader=_Loader):
        match event:
            case yaml.AliasEvent():
                if any(anchor == event.anchor for anchor, _ in open_nodes):
                    raise _RefusedError(f"the alias *{event.anchor} stands within its own anchor", event.start_mark)
                count += sizes.get(event.anchor or "", 1)
            case yaml.ScalarEvent():
                count += 1
                if event.anchor:
                    sizes[event.anchor] = 1
            case yaml.CollectionStartEvent():
                open_nodes.append((event.anchor, count))
                count += 1
                if len(open_nodes) > MAX_DEPTH:
                    raise _RefusedError(f"this is nested more than {MAX_DEPTH} deep", event.start_mark)
            case yaml.CollectionEndEvent():
                anchor, began = open_nodes.pop()
                if anchor:
                    sizes[anchor] = count - began
        if count > MAX_VALUES:
            raise _RefusedError(
                f"this holds more than {MAX_VALUES:,} values, aliases counted every time", event.start_mark
            )


def _check_keys(loader: Any, root: Any) -> None:
    """Refuse keys that stand twice in a mapping, which YAML would resolve to the last, and keys that are no names."""
    for node in _mappings(root):
        seen: dict[Any, Any] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _RefusedError("a key is a list or a mapping; a key is a name", key_node.start_mark)
            try:
                key = key_node.tag if key_node.tag == _MERGE else loader.construct_object(key_node)
            except ValueError as error:
                raise _RefusedError(f"a key cannot be read: {error}", key_node.start_mark) from error
            shown = key_node.value
            if key in seen:
                line = seen[key].line + 1
                raise _RefusedError(f"the key {shown!r} stands twice, first on line {line}", key_node.start_mark)
            seen[key] = key_node.start_mark


def _mappings(root: Any) -> Iterator[Any]:
    """All mappings below a node, each once."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            waiting += [value for _, value in node.value]
        else:
            waiting += node.value
