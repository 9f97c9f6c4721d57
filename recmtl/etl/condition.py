"""Conditions on the rows of a log: what ``where:`` says.

In: an expression over a log's columns, such as ``quantity > 0 and status not in ['returned', 'cancelled']``. Out: a
Polars expression that is true for the rows to keep. The expression has column names, numbers, text in quotes, ``true``,
``false``, ``null``, comparisons, ``in [..]``, ``is null``, ``and``, ``or``, ``not``, ``+ - * / **`` and the functions
``abs``, ``exp``, ``log``, ``lower``, ``max``, ``min``; ``column("unit price")`` reads a column whose name is no word.
It is compiled by this list, never run as Python.

As in SQL, a comparison with a missing value is neither true nor false, and only rows for which the condition is true
are kept. Arithmetic is in Float64; a result that is not finite (a division by 0) is missing. A time is compared with
text in ISO 8601.
"""

import ast
import difflib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Any, NoReturn
from zoneinfo import ZoneInfo

import polars as pl
from pydantic import AfterValidator

from recmtl.errors import UserError
from recmtl.expressions import parse_expression

__all__ = ["Condition", "Where", "names_in"]

_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_HINT = '; write == for equal, != for different, `and`, `or`, `not`, text in quotes, and column("…") for other names'
_COMPARED: Mapping[type[ast.cmpop], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    ast.Eq: lambda one, other: one == other,
    ast.NotEq: lambda one, other: one != other,
    ast.Lt: lambda one, other: one < other,
    ast.LtE: lambda one, other: one <= other,
    ast.Gt: lambda one, other: one > other,
    ast.GtE: lambda one, other: one >= other,
}
_ARITHMETIC: Mapping[type[ast.operator], Callable[[pl.Expr, pl.Expr], pl.Expr]] = {
    ast.Add: lambda one, other: one + other,
    ast.Sub: lambda one, other: one - other,
    ast.Mult: lambda one, other: one * other,
    ast.Div: lambda one, other: one / other,
    ast.Pow: lambda one, other: one**other,
}


def _where_all_given(found: pl.Expr, values: Sequence[pl.Expr]) -> pl.Expr:
    return pl.when(pl.all_horizontal(value.is_not_null() for value in values)).then(found)


_OF_NUMBERS: Mapping[str, tuple[int, Callable[[Sequence[pl.Expr]], pl.Expr]]] = {
    "abs": (1, lambda values: values[0].abs()),
    "exp": (1, lambda values: values[0].exp()),
    "log": (1, lambda values: values[0].log()),
    "max": (2, lambda values: _where_all_given(pl.max_horizontal(*values), values)),
    "min": (2, lambda values: _where_all_given(pl.min_horizontal(*values), values)),
}
"""Function and how many values it takes (2: two and more)."""
_FUNCTIONS = ("column", "lower", *_OF_NUMBERS)
_INT64 = range(-(2**63), 2**63)
_LARGEST = sys.float_info.max


def _checked(text: str) -> str:
    names_in(text)
    return text


Where = Annotated[str, AfterValidator(_checked)]
"""A condition in a config."""


def names_in(text: str) -> tuple[str, ...]:
    """The columns that a condition reads, in order of appearance.

    Raises:
        UserError: it is no expression, or has something in it that conditions have not.
    """
    found = _Names(text)
    found.read(parse_expression(text, "where", _HINT))
    return tuple(found.names)


class _Names:
    """Checks what a tree is made of, before there are columns."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: dict[str, None] = {}

    def read(self, node: ast.expr) -> None:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return
            case ast.Name(id=name):
                if name in _FUNCTIONS:
                    self._refuse(f"{name} is a function; write {name}(…)")
                if name not in _WORDS:
                    self.names[name] = None
            case ast.Call(func=ast.Name(id="column"), args=[ast.Constant(value=str() as name)], keywords=[]):
                self.names[name] = None
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS and name != "column":
                few, wanted = len(args), _OF_NUMBERS.get(name, (1, None))[0]
                if few < wanted or (wanted == 1 and few > 1):
                    self._refuse(f"{name} takes {'one value' if wanted == 1 else 'two values or more'}")
                self._all(args)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not(), operand=operand):
                self.read(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                self._all([left, right])
            case ast.BoolOp(values=values):
                self._all(values)
            case ast.Compare(left=left, ops=ops, comparators=others):
                self._all([left])
                for compared, other in zip(ops, others, strict=True):
                    self._compared(compared, other)
            case _:
                self._refuse(
                    f"{ast.unparse(node)!r} is not allowed; a condition has columns, numbers, text in quotes, true, "
                    "false, null, == != < <= > >=, in [..], is null, and, or, not, + - * / **, "
                    f"{', '.join(_FUNCTIONS)}"
                )

    def _all(self, nodes: Sequence[ast.expr]) -> None:
        for node in nodes:
            self.read(node)

    def _compared(self, op: ast.cmpop, other: ast.expr) -> None:
        if isinstance(op, (ast.In, ast.NotIn)):
            if not isinstance(other, (ast.List, ast.Tuple)) or not other.elts:
                self._refuse("after `in` stands a list of values, such as ['a', 'b']")
            if any(_literal(value) is _NO_LITERAL or _literal(value) is None for value in other.elts):
                self._refuse("a list after `in` holds numbers and text alone; for missing values write `is null`")
        elif isinstance(op, (ast.Is, ast.IsNot)):
            if _literal(other) is not None:
                self._refuse("after `is` stands null, as in `quantity is null`; otherwise write == or !=")
        else:
            if _literal(other) is None:
                self._refuse("write `is null` or `is not null` to compare with a missing value")
            self.read(other)

    def _refuse(self, problem: str) -> NoReturn:
        raise UserError(f"where {self.text!r}: {problem}")


_NO_LITERAL: Any = object()


def _literal(node: ast.expr) -> Any:
    """The value of a literal; :data:`_NO_LITERAL` for any other expression."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Name(id=name) if name in _WORDS:
            return _WORDS[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)) if not isinstance(
            value, bool
        ):
            return -value
    return _NO_LITERAL


@dataclass(frozen=True)
class _Part:
    """A part of a condition."""

    expr: pl.Expr
    kind: str
    """number, text, truth, time, nothing (all missing), or the name of a type that can only be compared with null."""
    text: str
    """As the person wrote it."""
    dtype: pl.DataType | None = None
    """Of a column."""
    literal: Any = _NO_LITERAL


class Condition:
    """A condition over columns of known types.

    Args:
        text: the expression.
        types: column, under the file's name → its type once it is typed; Null where it holds no value.
        where: the setting's name, for errors.
        column: column → the expression that reads it; by default the column of that name.
        timezone: of times in text that are written without a zone.

    Raises:
        UserError: a column that is not there, or types that do not fit together.
    """

    def __init__(
        self,
        text: str,
        types: Mapping[str, pl.DataType],
        where: str,
        *,
        column: Callable[[str], pl.Expr] = pl.col,
        timezone: str = "UTC",
    ) -> None:
        self._text, self._types, self._where = text, types, where
        self._column, self._zone = column, ZoneInfo(timezone)
        self.columns = names_in(text)
        """The columns that it reads."""
        for name in self.columns:
            if name not in types:
                near = difflib.get_close_matches(name, types, n=1, cutoff=0.6)
                known = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(types)}"
                self._refuse(f"the file has no column {name!r}; {known}")
        part = self._compile(parse_expression(text, "where"))
        if part.kind not in ("truth", "nothing"):
            self._refuse(f"this is {_called(part)}, not a condition such as quantity > 0")
        self.expr = part.expr.cast(pl.Boolean).fill_null(False)
        """True for the rows to keep, else false."""

    def _refuse(self, problem: str) -> NoReturn:
        raise UserError(f"{self._where} {self._text!r}: {problem}")

    def _compile(self, node: ast.expr) -> _Part:
        text = ast.unparse(node)
        value = _literal(node)
        if value is not _NO_LITERAL:
            return self._constant(value, text)
        match node:
            case ast.Name(id=name) | ast.Call(func=ast.Name(id="column"), args=[ast.Constant(value=str() as name)]):
                return self._read(name, text)
            case ast.Call(func=ast.Name(id="lower"), args=[arg]):
                part = self._needed(arg, "text")
                return _Part(part.expr.str.to_lowercase(), part.kind, text)
            case ast.Call(func=ast.Name(id=name), args=args):
                parts = [self._needed(arg, "number") for arg in args]
                return self._number(_OF_NUMBERS[name][1]([_float(part) for part in parts]), parts, text)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                part = self._needed(operand, "truth")
                return _Part(~part.expr.cast(pl.Boolean), "truth", text)
            case ast.UnaryOp(op=op, operand=operand):
                part = self._needed(operand, "number")
                return self._number(-_float(part) if isinstance(op, ast.USub) else _float(part), [part], text)
            case ast.BinOp(left=left, op=op, right=right):
                parts = [self._needed(side, "number") for side in (left, right)]
                return self._number(_ARITHMETIC[type(op)](*map(_float, parts)), parts, text)
            case ast.BoolOp(op=op, values=values):
                truths = [self._needed(value, "truth").expr.cast(pl.Boolean) for value in values]
                joined = pl.all_horizontal(truths) if isinstance(op, ast.And) else pl.any_horizontal(truths)
                return _Part(joined, "truth", text)
            case ast.Compare(left=left, ops=ops, comparators=others):
                found, one = [], left
                for compared, other in zip(ops, others, strict=True):
                    found.append(self._compare(self._compile(one), compared, other))
                    one = other
                return _Part(pl.all_horizontal(found), "truth", text)
        raise AssertionError(text)  # names_in refuses anything else

    def _constant(self, value: Any, text: str) -> _Part:
        if value is None:
            return _Part(pl.lit(None), "nothing", text)
        if isinstance(value, bool):
            return _Part(pl.lit(value), "truth", text, literal=value)
        if isinstance(value, str):
            return _Part(pl.lit(value), "text", text, literal=value)
        if isinstance(value, int) and value in _INT64:
            return _Part(pl.lit(value), "number", text, literal=value)
        if not abs(value) <= _LARGEST:
            self._refuse(f"{text[:40]} is beyond the largest number, 1.8e308")
        return _Part(pl.lit(float(value)), "number", text, literal=value)

    def _read(self, name: str, text: str) -> _Part:
        dtype, expr = self._types[name], self._column(name)
        if dtype == pl.Null:
            return _Part(pl.lit(None), "nothing", text)
        if dtype.is_float():
            return _Part(expr.fill_nan(None), "number", text, dtype)
        if dtype.is_decimal():
            return _Part(expr.cast(pl.Float64), "number", text, dtype)
        if dtype.is_integer():
            narrow = dtype not in (pl.UInt64, pl.Int128, pl.UInt128)
            return _Part(expr if narrow else expr.cast(pl.Int128), "number", text, dtype)
        if dtype in (pl.String, pl.Categorical, pl.Enum):
            return _Part(expr.cast(pl.String), "text", text, dtype)
        if dtype == pl.Boolean:
            return _Part(expr, "truth", text, dtype)
        if dtype == pl.Date or isinstance(dtype, pl.Datetime):
            return _Part(expr, "time", text, dtype)
        return _Part(expr, f"of type {dtype}", text, dtype)

    def _needed(self, node: ast.expr, kind: str) -> _Part:
        part = self._compile(node)
        if part.kind not in (kind, "nothing"):
            wanted = {"number": "a number", "text": "text", "truth": "true or false"}[kind]
            self._refuse(f"{part.text} is {_called(part)}, where {wanted} is needed")
        return part

    def _number(self, expr: pl.Expr, parts: Sequence[_Part], text: str) -> _Part:
        if any(part.kind == "nothing" for part in parts):
            return _Part(pl.lit(None), "nothing", text)
        return _Part(pl.when(expr.is_finite()).then(expr), "number", text)

    def _compare(self, one: _Part, op: ast.cmpop, other: ast.expr) -> pl.Expr:
        if isinstance(op, ast.Is):
            return one.expr.is_null()
        if isinstance(op, ast.IsNot):
            return one.expr.is_not_null()
        if isinstance(op, (ast.In, ast.NotIn)):
            assert isinstance(other, (ast.List, ast.Tuple))
            found = pl.any_horizontal([self._pair(one, ast.Eq(), self._compile(value)) for value in other.elts])
            return found if isinstance(op, ast.In) else ~found
        return self._pair(one, op, self._compile(other))

    def _pair(self, one: _Part, op: ast.cmpop, other: _Part) -> pl.Expr:
        if "nothing" in (one.kind, other.kind):
            return pl.lit(None, pl.Boolean)
        one, other = self._as_time(one, other), self._as_time(other, one)
        if one.kind != other.kind or one.kind not in ("number", "text", "truth", "time"):
            self._refuse(f"{one.text} is {_called(one)} and {other.text} is {_called(other)}, which do not compare")
        if one.kind == "truth" and not isinstance(op, (ast.Eq, ast.NotEq)):
            self._refuse(f"{one.text} is true or false, which have no order")
        # A literal as the column's own kind of float, so that 0.1 is found in a Float32 column.
        pair = [_as_float32(part, beside) for part, beside in ((one, other), (other, one))]
        return _COMPARED[type(op)](*pair)

    def _as_time(self, part: _Part, beside: _Part) -> _Part:
        """Text in ISO 8601 as a time, where it is compared with one."""
        if beside.kind != "time" or not isinstance(part.literal, str):
            return part
        try:
            instant = datetime.fromisoformat(part.literal)
        except ValueError:
            self._refuse(f"{part.text} is no time in ISO 8601, such as '2024-01-31' or '2024-01-31T08:00:00Z'")
        dtype = beside.dtype
        if dtype == pl.Date:
            if len(part.literal) > len("2024-01-31"):
                self._refuse(f"{beside.text} is a date, to be compared with one such as '2024-01-31'")
            return _Part(pl.lit(date.fromisoformat(instant.date().isoformat())), "time", part.text)
        zoned = isinstance(dtype, pl.Datetime) and dtype.time_zone is not None
        if zoned and instant.tzinfo is None:
            instant = instant.replace(tzinfo=self._zone)
        if not zoned and instant.tzinfo is not None:
            self._refuse(f"{beside.text} has no time zone; write {part.text} without one")
        return _Part(pl.lit(instant.astimezone(UTC) if zoned else instant), "time", part.text)


def _float(part: _Part) -> pl.Expr:
    return part.expr.cast(pl.Float64)


def _as_float32(part: _Part, beside: _Part) -> pl.Expr:
    if beside.dtype == pl.Float32 and isinstance(part.literal, float):
        return pl.lit(part.literal, pl.Float32)
    return part.expr


def _called(part: _Part) -> str:
    names = {"number": "a number", "truth": "true or false", "time": "a time", "nothing": "missing in every row"}
    return names.get(part.kind, part.kind)
