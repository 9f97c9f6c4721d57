"""Score fusion: one number to rank by, made of a model's predictions by a stated formula.

In: a formula over prediction columns and weights, such as ``click**a * (1 + purchase)**b``. Out: :class:`Fusion`, plain
data that travels in a package as ``fusion.json``, and the column ``score``. How the weights are found is
:mod:`recmtl.evaluation.fusing`'s business.

Two formulas have names: ``sum`` is Σ w_t · p_t, and ``product`` is Π p_t ** w_t, a weighted geometric mean, which ranks
the same whatever any of its factors is multiplied by. Any other is an expression of names, numbers, ``+ - * / **``,
``log``, ``exp``, ``min`` and ``max``: a name that is a prediction column is that prediction, any other is a weight. It
is parsed, never run as Python.

Every row has a score, finite in float32: ``log``, and ``**`` with an exponent that is not a whole number, read a value
below 1e-30 as 1e-30; a divisor nearer to 0 than that is moved there; ``exp`` and ``**`` end at e^80, and all else at
1e38.
"""

import ast
import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recmtl.errors import UserError
from recmtl.expressions import LONGEST, parse_expression
from recmtl.settings import Settings
from recmtl.tasks import Tasks

__all__ = ["NAMED", "SCORE", "Formula", "Fusion", "expanded", "parse_formula"]

SCORE = "score"
"""The fused score's column."""
NAMED = ("product", "sum")
"""Formulas that a word stands for."""

FloatArray: TypeAlias = NDArray[np.float64]
_Evaluate: TypeAlias = Callable[[Mapping[str, Any]], Any]

_LARGEST_EXPONENT = 16
"""Of a number that stands as an exponent."""
_TINY, _HUGE, _EXPONENT = 1e-30, 1e38, 80.0
_ALIKE = 0.85
"""Likeness to a column from which an unknown name is a slip of the pen rather than a weight."""


class Formula:
    """A parsed formula. Made by :func:`parse_formula`."""

    def __init__(self, text: str, columns: tuple[str, ...], weights: tuple[str, ...], evaluate: _Evaluate) -> None:
        self.text = text
        self.columns = columns
        """The prediction columns that it reads."""
        self.weights = weights
        """Its weights, in order of appearance."""
        self._evaluate = evaluate

    def __call__(
        self, predictions: Mapping[str, NDArray[np.floating[Any]]], weights: Mapping[str, float]
    ) -> FloatArray:
        """(N,) scores, finite.

        Args:
            predictions: column to (N,), finite; others than :attr:`columns` are not read.
            weights: every one of :attr:`weights`.
        """
        values: dict[str, Any] = {name: np.asarray(predictions[name], np.float64) for name in self.columns}
        rows = next(iter(values.values())).shape
        values |= {name: np.float64(weights[name]) for name in self.weights}
        with np.errstate(over="ignore"):  # every operation's result is brought back within bounds
            return np.broadcast_to(self._evaluate(values), rows)


class Fusion(Settings):
    """``fusion.json``: how a package's score is made."""

    formula: Annotated[str, Field(min_length=1, max_length=LONGEST)]
    """As an expression, or ``sum`` or ``product`` written out."""
    weights: dict[str, Annotated[float, Field(allow_inf_nan=False)]]
    calibrated: bool = False
    """Whether the formula reads the predictions as the package's calibration makes them."""
    chosen_on: str = ""
    """What the weights were chosen by, for a person."""

    def check(self, tasks: Tasks) -> None:
        """Refuse a formula that these tasks' predictions cannot fill.

        Raises:
            UserError: no formula; a weight that has no value, or a value that is no weight's; a prediction that is
                called ``score`` already.
        """
        formula = parse_formula(self.formula, _columns(tasks))
        if set(formula.weights) != set(self.weights):
            raise UserError(
                f"formula {self.formula!r} has the weights {', '.join(formula.weights) or 'none'}, but values were "
                f"given for {', '.join(self.weights) or 'none'}"
            )
        if SCORE in _columns(tasks):
            raise UserError(
                f"a prediction of this model is called {SCORE!r}, as the fused score would be: rename the task"
            )

    def apply(self, predictions: Mapping[str, NDArray[np.float32]], tasks: Tasks) -> NDArray[np.float32]:
        """(N,) scores of (N,) predictions, which are calibrated if :attr:`calibrated` says so."""
        return parse_formula(self.formula, _columns(tasks))(predictions, self.weights).astype(np.float32)


def expanded(formula: str, columns: Sequence[str]) -> str:
    """``sum`` and ``product`` written out over these columns; any other formula as it stands."""
    if formula == "sum":
        return " + ".join(f"w_{column} * {column}" for column in columns)
    if formula == "product":
        return " * ".join(f"{column} ** w_{column}" for column in columns)
    return formula


@lru_cache(maxsize=64)
def parse_formula(text: str, columns: tuple[str, ...]) -> Formula:
    """Parse an expression of prediction columns and weights.

    Args:
        text: the expression.
        columns: every column that there is.

    Raises:
        UserError: it is no expression, or has something in it that formulas have not; it reads no prediction; a name is
            so like a column's that it is a slip.
    """
    compiler = _Compiler(text, columns)
    evaluate = compiler.compile(parse_expression(text, "formula"))
    if not compiler.read:
        raise UserError(f"formula {text!r} reads no prediction; there are {', '.join(columns)}")
    return Formula(text, tuple(compiler.read), tuple(compiler.weights), evaluate)


class _Compiler:
    """A syntax tree to a function, by a list of what is allowed: anything else is refused."""

    def __init__(self, text: str, columns: tuple[str, ...]) -> None:
        self._text, self._columns = text, columns
        self.read: dict[str, None] = {}
        self.weights: dict[str, None] = {}

    def compile(self, node: ast.expr) -> _Evaluate:
        match node:
            case ast.Constant(value=value):
                return self._number(value)
            case ast.Name(id=name):
                return self._name(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                inner = self.compile(operand)
                return lambda values: -inner(values)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.compile(operand)
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                return self._power(left, right)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                one, other, apply = self.compile(left), self.compile(right), _OPERATORS[type(op)]
                return lambda values: _tame(apply(one(values), other(values)))
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
                return self._call(name, args)
        raise UserError(
            f"formula {self._text!r}: {ast.unparse(node)!r} is not allowed; a formula has names, numbers, + - * / **, "
            "log, exp, min and max"
        )

    def _number(self, value: object) -> _Evaluate:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _HUGE:
            raise UserError(f"formula {self._text!r}: {value!r} is not allowed; numbers are real, and at most 1e38")
        number = np.float64(value)
        return lambda values: number

    def _name(self, name: str) -> _Evaluate:
        if name in self._columns:
            self.read[name] = None
            return lambda values: values[name]
        if name in _FUNCTIONS:
            raise UserError(f"formula {self._text!r}: {name} is a function; write {name}(…)")
        near = difflib.get_close_matches(name, self._columns, n=1, cutoff=_ALIKE)
        if near and not name.startswith("w_"):
            raise UserError(
                f"formula {self._text!r}: there is no prediction {name!r}; did you mean {near[0]!r}? (a weight needs a "
                "name less like it)"
            )
        self.weights[name] = None
        return lambda values: values[name]

    def _power(self, left: ast.expr, right: ast.expr) -> _Evaluate:
        base, exponent = self.compile(left), self.compile(right)
        if not any(isinstance(node, ast.Name) for node in ast.walk(right)):
            with np.errstate(over="ignore"):
                number = float(exponent({}))
            if abs(number) > _LARGEST_EXPONENT:
                raise UserError(f"formula {self._text!r}: the exponent {number:g} is beyond ±{_LARGEST_EXPONENT}")
            if number >= 0 and number.is_integer():
                return lambda values: _tame(base(values) ** int(number))
        return lambda values: _exp(exponent(values) * _log(base(values)))

    def _call(self, name: str, args: list[ast.expr]) -> _Evaluate:
        function, wanted = _FUNCTIONS[name]
        right = len(args) == 1 if wanted == 1 else len(args) >= wanted
        if not right or any(isinstance(arg, ast.Starred) for arg in args):
            raise UserError(
                f"formula {self._text!r}: {name} takes {'one value' if wanted == 1 else 'two values or more'}"
            )
        parts = [self.compile(arg) for arg in args]
        return lambda values: function(*(part(values) for part in parts))


def _tame(x: Any) -> Any:
    return np.clip(x, -_HUGE, _HUGE)


def _exp(x: Any) -> Any:
    return np.exp(np.clip(x, -_EXPONENT, _EXPONENT))


def _log(x: Any) -> Any:
    return np.log(np.maximum(x, _TINY))


def _over(one: Any, other: Any) -> Any:
    return one / np.where(np.abs(other) < _TINY, np.where(np.signbit(other), -_TINY, _TINY), other)


def _least(*values: Any) -> Any:
    return np.minimum.reduce(np.broadcast_arrays(*values))


def _greatest(*values: Any) -> Any:
    return np.maximum.reduce(np.broadcast_arrays(*values))


_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: _over,
}
_FUNCTIONS: Mapping[str, tuple[Callable[..., Any], int]] = {
    "log": (_log, 1),
    "exp": (_exp, 1),
    "min": (_least, 2),
    "max": (_greatest, 2),
}
"""Function and how many values it takes: exactly one, or two and more."""


def _columns(tasks: Tasks) -> tuple[str, ...]:
    return tuple(column for name in tasks for column in tasks.prediction_columns(name))
