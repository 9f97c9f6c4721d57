"""Lists that a column holds as text: what stands between their brackets, without brackets and quotes.

In: text such as ``[5, 8, 7]``, ``["a", "b"]`` (JSON), ``['a', 'b']`` (Python), ``[5 8 7]`` (NumPy), ``('a', 'b')``,
``{5, 8}``, ``{a,b}`` (PostgreSQL). Out: the values as text. Regular expressions in linear time read the text, and no
parser recurses: a list within a list is no value, at any depth.

A value between quotes is the text between them. Any other is text as it is written, save that ``5.0`` is ``5`` (as a
list of floats would give it), ``True`` is ``true``, and ``None``, ``null`` and ``nan`` are missing. No number passes
through a float.
"""

import re
from functools import partial

import polars as pl

__all__ = ["is_bracketed", "is_list_text", "list_items"]

_QUOTED = r"""(?:[uU]?"(?:[^"\\]|\\.)*"|[uU]?'(?:[^'\\]|\\.)*')"""
_NUMBER = r"(?:[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf|NaN|Infinity))"
_WORD = r"(?:True|False|true|false|None|null|NULL)"
# Words as they stand; brackets in them come in pairs: Drama (US).
_BARE = r"""(?:[^\s,\[\](){}"'](?:[^,\[\](){}]|\([^,\[\](){}]*\))*)"""
_STRICT = rf"(?:{_QUOTED}|{_NUMBER}|{_WORD})"
_LOOSE = rf"(?:{_QUOTED}|{_BARE})"
_NO_COLON = rf"""(?:{_QUOTED}|[^\s,:\[\](){{}}"'][^,:\[\](){{}}"']*)"""


def _commas(item: str) -> str:
    return rf"[\s,]*(?:{item}\s*(?:,[\s,]*{item}\s*)*[\s,]*)?"


_SPACED = rf"\s*(?:{_QUOTED}|{_NUMBER})(?:\s+(?:{_QUOTED}|{_NUMBER}))*\s*"
"""NumPy's form: numbers and quoted texts alone, without commas."""
_ELIDED = r"(?:^|[\s,\[({])\.\.\.(?:[\s,\])}]|$)"
"""NumPy leaves out the middle of a long array: what is left is not the list."""
_TUPLE = rf"\(\s*(?:{_STRICT}\s*(?:,\s*{_STRICT}\s*)+,?|{_STRICT}\s*,)?\s*\)"
_LIST = rf"(?s)^(?:\[{_commas(_LOOSE)}\]|\[{_SPACED}\]|{_TUPLE}|\{{{_commas(_NO_COLON)}\}})$"
_IS_SPACED = rf"(?s)^\[{_SPACED}\]$"
_COMMA_ITEM = rf"(?s){_LOOSE}"
_SPACED_ITEM = rf"(?s){_QUOTED}|{_NUMBER}"
_BRACKETED = r"(?s)^(?:\[.*\]|\(.*\)|\{.*\})$"
_NESTED = r"(?s)^[\[({]\s*(?:[\[({]|.*,\s*[\[({])"
_FLAT = r"(?s)^(?:\[[^\[\]]*\]|\{[^{}]*\}|\{.*[\"']\s*:.*\})$"
"""One pair of brackets, or an object of JSON: never text to be split, even where it is no list."""
_PAIR = r"(?s)^(?:\[[^\[\](){}\"']*\]|\([^\[\](){}\"']*\)|\{[^\[\](){}\"']*\})$"
"""One pair of brackets around text without brackets and quotes."""
_WRAPPED = r"(?s)^(?:set|frozenset|array|tuple|list)\(\s*(.*?)\s*(?:,\s*dtype=[^,()\[\]]*)?\)$"
_SCALAR = r"\bnp\.\w+\(([^()]*)\)"
"""A NumPy scalar as NumPy 2 writes it: np.int64(5)."""
_STRING = rf"(?s)^{_QUOTED}$"
_WHOLE = r"^([+-]?\d+)\.0*$"
_PERHAPS = r"^\s*(?:[\[({]|(?:set|frozenset|array|tuple|list)\()"
"""How a list begins: text that begins otherwise is none."""
_INTEGERS = r"^\[(?:-?[1-9]\d*|0)(?: ?, ?(?:-?[1-9]\d*|0))*\]$"
_MISSING = ("None", "null", "NULL", "nan", "NaN", "")


_ITEMS = pl.List(pl.String)


def _quoted_words(quote: str) -> str:
    """A list of quoted texts without quotes, escapes, and blanks at their ends."""
    inside = r"""[^\s"'\\](?:[^"'\\]*[^\s"'\\])?"""
    return rf"^\[{quote}{inside}{quote}(?:, ?{quote}{inside}{quote})*\]$"


def _plain(text: pl.Expr) -> pl.Expr:
    """The text with its outer brackets first and last, without what NumPy and Python write around them."""
    text = text.str.strip_chars()
    inner = text.str.extract(_WRAPPED, 1)
    wrapped = inner.str.contains(_BRACKETED) | (inner == "")
    text = pl.when(wrapped.fill_null(False)).then(inner.str.replace("^$", "[]")).otherwise(text)
    return pl.when(text.str.contains(r"^[\[({]\s*np\.")).then(text.str.replace_all(_SCALAR, "$1")).otherwise(text)


def is_bracketed(text: pl.Expr) -> pl.Expr:
    """Whether the text begins and ends with brackets, readable as a list or not."""
    return text.str.contains(_PERHAPS) & text.str.contains(r"[\])}]\s*$")


def is_list_text(text: pl.Expr) -> pl.Expr:
    """Whether the text is a list of single values; null for null."""
    plain = _plain(text)
    return plain.str.contains(_LIST) & ~plain.str.contains(_ELIDED)


def list_items(text: pl.Expr, separator: str | None = None) -> pl.Expr:
    """The values of lists in text, and of separated text.

    Args:
        text: a column of text.
        separator: what separates the values of a text without brackets, and of one in brackets that holds it and has
            no quotes; None: there is no such text.

    Returns:
        List(String), null elements for missing values; null for null, for a list that cannot be read (one that holds
        lists, one that NumPy shortened), and, without a separator, for text that is no list.
    """
    return text.map_batches(partial(_items, separator=separator), return_dtype=_ITEMS, is_elementwise=True)


def _items(texts: pl.Series, separator: str | None) -> pl.Series:
    """:func:`list_items`, the common forms first, because the general one takes thirty times as long."""
    name, texts = texts.name, texts.cast(pl.String)
    forms: list[tuple[pl.Expr, pl.Expr]] = []
    text = pl.col("text")
    if separator is not None:
        split = text.str.split(separator).list.eval(_filled(pl.element().str.strip_chars()))
        forms.append((~text.str.contains(_PERHAPS), split))
    inner = text.str.slice(1, text.str.len_chars() - 2)
    if separator in (None, ","):
        forms.append((text.str.contains(_INTEGERS), inner.str.replace_all(" ", "", literal=True).str.split(",")))
        for quote in ('"', "'"):
            unquoted = inner.str.slice(1, inner.str.len_chars() - 2)
            parts = unquoted.str.replace_all(f"{quote}, {quote}", f"{quote},{quote}", literal=True)
            forms.append((text.str.contains(_quoted_words(quote)), parts.str.split(f"{quote},{quote}")))
    forms.append((text.is_not_null(), _general(text, separator)))
    left = pl.DataFrame({"text": texts}).with_row_index("at").drop_nulls("text")
    found = [pl.DataFrame(schema={"at": left.schema["at"], "items": _ITEMS})]
    for applies, items in forms:
        if not left.height:
            break
        ours = left.select(applies.alias("ours"))["ours"]
        found.append(left.filter(ours).select("at", items=items.cast(_ITEMS)))
        left = left.filter(~ours)
    rows = pl.DataFrame({"at": pl.int_range(len(texts), dtype=pl.UInt32, eager=True)})
    return rows.join(pl.concat(found), on="at", how="left", maintain_order="left")["items"].alias(name)


def _general(text: pl.Expr, separator: str | None) -> pl.Expr:
    plain = _plain(text)
    inner = plain.str.slice(1, plain.str.len_chars() - 2)
    tokens = (
        pl.when(plain.str.contains(_IS_SPACED))
        .then(inner.str.extract_all(_SPACED_ITEM))
        .otherwise(inner.str.extract_all(_COMMA_ITEM))
    )
    listed = pl.when(is_list_text(text)).then(tokens.list.eval(_value(pl.element())))
    if separator is None:
        return listed
    split = text.str.split(separator).list.eval(_filled(pl.element().str.strip_chars()))
    within = inner.str.split(separator).list.eval(_value(pl.element().str.strip_chars()))
    unreadable = plain.str.contains(_FLAT) | (
        plain.str.contains(_BRACKETED) & (plain.str.contains(_NESTED) | plain.str.contains(_ELIDED))
    )
    in_brackets = plain.str.contains(_PAIR) & inner.str.contains(separator, literal=True)
    if separator.isspace():  # which may also stand beside a comma
        in_brackets &= ~inner.str.contains(",", literal=True) & ~plain.str.contains(_IS_SPACED)
    return pl.when(in_brackets).then(within).when(is_list_text(text)).then(listed).when(~unreadable).then(split)


def _filled(text: pl.Expr) -> pl.Expr:
    return pl.when(text != "").then(text)


def _value(token: pl.Expr) -> pl.Expr:
    """What a token of a list means."""
    token = token.str.strip_chars()
    quoted = token.str.contains(_STRING)
    text = token.str.replace(r"(?s)^[uU]?[\"'](.*)[\"']$", "$1")
    escaped = quoted & text.str.contains("\\", literal=True)
    read = text.map_batches(_unescaped, return_dtype=pl.String, is_elementwise=True)
    text = pl.when(escaped).then(read).otherwise(text)
    bare = token.str.replace(_WHOLE, "$1")
    bare = pl.when(bare == "-0").then(pl.lit("0")).otherwise(bare)
    bare = pl.when(bare.is_in(["True", "False"])).then(bare.str.to_lowercase()).otherwise(bare)
    bare = pl.when(~bare.is_in(_MISSING)).then(bare)
    return pl.when(quoted).then(_filled(text)).otherwise(bare)


_ESCAPE = re.compile(r"\\(u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|x[0-9A-Fa-f]{2}|.)", re.DOTALL)
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "a": "\a", "v": "\v", "0": "\0", "\n": ""}


def _unescaped(texts: pl.Series) -> pl.Series:
    """Text between quotes with the escapes of JSON and Python read; null where they are no text."""
    escaped = texts.str.contains("\\", literal=True).fill_null(False)
    if not escaped.any():
        return texts
    read = [_one(text) if has else text for text, has in zip(texts.to_list(), escaped.to_list(), strict=True)]
    return pl.Series(texts.name, read, dtype=pl.String)


def _one(text: str) -> str | None:
    def read(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) > 1:
            number = int(code[1:], 16)
            return chr(number) if number < 0x110000 else "\N{REPLACEMENT CHARACTER}"
        return _SIMPLE.get(code, code if code in "\\'\"/" else match[0])

    found = _ESCAPE.sub(read, text)
    try:  # JSON writes a character beyond the first 65,536 as two halves
        return found.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        return None
