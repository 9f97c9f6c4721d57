"""What of an address may be shown or stored: scheme, host, port and path, never user info, query or fragment.

In: a URI, or any text with URIs in it. Out: the same without its secrets. Everything that recmtl prints, logs, writes
to a file or sends to a server passes through :func:`shown_uri` or :func:`redact`.
"""

import re
from threading import Lock
from urllib.parse import parse_qsl, unquote

__all__ = ["keep_secret", "redact", "shown_uri"]

HIDDEN = "***"
"""What stands for an address that cannot be told apart from its secrets, and for a secret in a text."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(?=://)")
_LOCAL = ("sqlite", "file")
# Addresses of a network whose // somebody forgot; any other text without // is a path or names a model.
_WITHOUT_SLASHES = re.compile(
    r"(?i)((?:https?|postgres(?:ql)?|mysql|mssql|s3|gs|ftps?|sftp|redis)(?:\+\w+)?:).*[@?#]", re.DOTALL
)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s\[\]/?#@:&='\"<>\\]*)(?::\d*)?")
_REFERENCE = r"\$\{[^{}]*\}"
_HOST_OR_REFERENCE = re.compile(rf"(?:{_REFERENCE}|[^\s\[\]/?#@:&='\"<>\\])*(?::(?:\d|{_REFERENCE})*)?")
_ONLY_REFERENCES = re.compile(rf"(?:{_REFERENCE}|:)+")
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://\S*")
# What ends a sentence, a quotation or a list around an address rather than the address.
_BEHIND = re.compile(r"[\s'\"`<>()\[\]{}|\\.,;:!?…]*$")
_SHORTEST = 4
_SHORTEST_PARAMETER = 8

_secrets: set[str] = set()
_lock = Lock()


def shown_uri(uri: str, *, references: bool = False) -> str:
    """The part of an address that may be shown and stored: scheme, host, port and path.

    A local path, ``file:`` and ``sqlite:`` are shown whole (the parameters of ``sqlite:`` are left out), and so are
    addresses without ``//`` (``models:/NAME@ALIAS``), which hold no user info. An address in which a password cannot be
    told from a host, because it holds ``?`` or ``#`` unescaped, becomes ``SCHEME://***``.

    Args:
        uri: one address or path, whole.
        references: whether ``${NAME}`` is a reference to the environment that is not expanded yet. User info made of
            references alone (``${USER}:${PASSWORD}@``) is then kept, because it says no secret.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None:
        unfinished = _WITHOUT_SLASHES.match(uri)
        return uri if unfinished is None else f"{unfinished.group(1)}{HIDDEN}"
    rest = uri[scheme.end() + 3 :]
    name = scheme.group()
    if name.lower().partition("+")[0] in _LOCAL:
        return uri.partition("?")[0] if name.lower().startswith("sqlite") else uri
    head = re.split(r"[?#]", rest, maxsplit=1)[0]
    if "@" in rest[len(head) :]:
        return f"{name}://{HIDDEN}"
    # Up to the last @: an unescaped password may hold @ and /.
    user, at, place = head.rpartition("@")
    authority, slash, path = place.partition("/")
    if not (_HOST_OR_REFERENCE if references else _HOST).fullmatch(authority):
        return f"{name}://{HIDDEN}"
    kept = user + at if references and at and _ONLY_REFERENCES.fullmatch(user) else ""
    return f"{name}://{kept}{authority}{slash}{path}"


def keep_secret(uri: str) -> None:
    """Have :func:`redact` hide this address's password and parameters from now on, wherever they stand in a text.

    Libraries quote parts of an address in their errors (a password without the rest, say), which no pattern finds.
    Secrets shorter than four characters, parameters shorter than eight, and plain words (``mlflow``) are left: hiding
    them would spoil paths and sentences.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None or scheme.group().lower().partition("+")[0] in _LOCAL:
        return
    rest = uri[scheme.end() + 3 :]
    found: set[str] = set()
    user, at, _ = rest.rpartition("@")
    if at:
        name, colon, password = user.partition(":")
        # User info without a colon is a token.
        found.update(one for one in (password if colon else name, user) if len(one) >= _SHORTEST)
    _, _, query = rest.partition("?")
    found.update(value for _, value in parse_qsl(query) if len(value) >= _SHORTEST_PARAMETER)
    found.update([unquote(one) for one in found])
    found = {one for one in found if not one.isalpha()}
    with _lock:
        _secrets.update(found)


def redact(text: str) -> str:
    """A text in which every address is as :func:`shown_uri` shows it, and what :func:`keep_secret` knows is hidden."""
    with _lock:
        known = sorted(_secrets, key=len, reverse=True)
    for secret in known:  # first: a password with a blank in it reaches beyond what looks like an address
        text = text.replace(secret, HIDDEN)
    return _IN_TEXT.sub(_shown_in_text, text)


def _shown_in_text(match: re.Match[str]) -> str:
    found = match.group()
    behind = _BEHIND.search(found)
    assert behind is not None
    uri, rest = found[: behind.start()], found[behind.start() :]
    if _SCHEME.match(uri) is None:  # "https://" alone
        return found
    return shown_uri(uri) + rest
