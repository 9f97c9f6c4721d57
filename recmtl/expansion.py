"""Paths and addresses in a config: ``~`` is the home folder, ``${NAME}`` a variable of the environment.

In: a field's text. Out: the text with both expanded. Only fields of the types below are expanded; any other text stays
as it is written. ``$$`` stands for one ``$``, and a ``$`` before anything else but ``{`` and ``$`` for itself.

A path is stored expanded. An address (:class:`Address`) is stored as it was written, so that a password that comes from
the environment is never stored.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, WithJsonSchema

from recmtl.uris import shown_uri

__all__ = ["Address", "ExpandedPath", "ExpandedText", "ExpandedTexts", "StoreAddress", "expand", "literal"]

_DOLLAR = re.compile(r"\$(?:\$|\{([^{}]*)\}|(?=\{))")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def expand(text: str, *, home: bool = True) -> str:
    """The text with ``${NAME}`` and, at its beginning, ``~`` expanded.

    Args:
        text: as the user wrote it.
        home: whether a ``~`` is the home folder.

    Raises:
        ValueError: a variable that is not set, a reference that names none, a user without a home folder. The message
            names the variable, never a value.
    """
    if home and text.startswith("~"):
        expanded = os.path.expanduser(text)  # noqa: PTH111 - of text, which may be a pattern or hold {date}
        if expanded == text:
            user = text.partition("/")[0]
            raise ValueError(f"{text!r}: there is no home folder of {user}; write ./{text} for a file of that name")
        # A home folder is no text of the user's: a $ in it is one.
        text = literal(expanded[: len(expanded) - len(text.partition("/")[2])]) + text.partition("/")[2]
    return _DOLLAR.sub(_value, text)


def _value(match: re.Match[str]) -> str:
    if match.group() == "$$":
        return "$"
    name = match.group(1)
    if name is None or not _NAME.fullmatch(name):
        raise ValueError(
            f"{match.string[match.start() :][:40]!r} is no reference to the environment: write ${{NAME}}, or $$ for a $"
        )
    value = os.environ.get(name)
    if value is None:
        raise ValueError(
            f"the environment variable {name} is not set; set it, or write $${{{name}}} for that very text"
        )
    return value


def literal(text: str) -> str:
    """The text that :func:`expand` turns into ``text``."""
    text = re.sub(r"\$(?=[${])", "$$", text)
    return f"./{text}" if text.startswith("~") else text


def _expanded(value: Any) -> Any:
    return expand(value) if isinstance(value, str) else value


def _written(value: Path | str) -> str:
    return literal(str(value))


ExpandedPath = Annotated[
    Path,
    BeforeValidator(_expanded),
    PlainSerializer(_written, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "path"}),
]
"""A file or folder."""


def _all_expanded(value: Any) -> Any:
    return [_expanded(one) for one in value] if isinstance(value, list | tuple) else _expanded(value)


def _all_written(value: str | tuple[str, ...]) -> str | list[str]:
    return _written(value) if isinstance(value, str) else [_written(one) for one in value]


ExpandedTexts = Annotated[
    str | tuple[str, ...],
    BeforeValidator(_all_expanded),
    PlainSerializer(_all_written, return_type=str | list[str], when_used="json"),
]
"""A path or pattern as text, or a list of them."""

ExpandedText = Annotated[str, BeforeValidator(_expanded), PlainSerializer(_written, return_type=str, when_used="json")]
"""A path or pattern as text, or the name of a model."""


class Address(str):
    """An address with its references expanded, which knows how it was written."""

    written: str
    """With its references."""

    def __new__(cls, value: str, written: str | None = None) -> "Address":
        """The address ``value``, which was written as ``written``."""
        made = super().__new__(cls, value)
        made.written = literal(value) if written is None else written
        return made

    @property
    def refers(self) -> bool:
        """Whether some of it comes from the environment."""
        return self.written != literal(self)

    def __reduce__(self) -> tuple[type["Address"], tuple[str, str]]:
        """For copies and other processes."""
        return Address, (str(self), self.written)


def _address(text: str) -> Address:
    return text if isinstance(text, Address) else Address(expand(text, home=False), text)


def _stored(address: str) -> str:
    return shown_uri(address.written if isinstance(address, Address) else literal(address), references=True)


StoreAddress = Annotated[
    str,
    AfterValidator(_address),
    PlainSerializer(_stored, return_type=str, when_used="json"),
]
"""The address of a store: an :class:`Address`, stored without user info, parameters and what the environment said."""
