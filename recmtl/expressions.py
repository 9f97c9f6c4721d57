"""A small, safe expression language: the syntax of score formulas and of conditions on logs.

In: text that a person wrote. Out: a syntax tree of bounded size and depth, to be compiled by a list of what is allowed.
The text is parsed and never run as Python.
"""

import ast

from recmtl.errors import UserError

__all__ = ["LONGEST", "parse_expression"]

LONGEST = 1000
"""Characters of an expression."""
_DEEPEST = 50
"""Levels of its syntax tree, below the first."""


def parse_expression(text: str, what: str, hint: str = "") -> ast.expr:
    """The syntax tree of an expression.

    Args:
        text: the expression.
        what: what it is, for errors: ``formula``.
        hint: what an error of syntax adds, for a person who writes another language.

    Raises:
        UserError: it is too long, nested too deeply, or no expression.
    """
    if len(text) > LONGEST:
        raise UserError(f"{what}: {len(text)} characters are too many; {LONGEST} are allowed")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{what} {text!r} is no expression ({getattr(error, 'msg', None) or error}){hint}") from error
    level = [tree]
    for _ in range(_DEEPEST + 1):
        level = [child for node in level for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        if not level:
            return tree
    raise UserError(f"{what} {text!r} is nested too deeply")
