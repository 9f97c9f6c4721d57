"""Names that recmtl gives to columns of its own, beside those of a source.

Raw rows keep the source's names, and what recmtl adds to them has a name that no log is expected to have: a prefix with
a colon. A source's column with such a name is refused, so that none is overwritten or taken for the other. Every other
name is the source's, ``row``, ``group``, ``item``, ``request`` and ``dense`` among them.
"""

from collections.abc import Iterable

from recmtl.errors import UserError

__all__ = ["PREFIXES", "refuse_reserved"]

PREFIXES = (
    "bad:",
    "bag:",
    "dropped:",
    "encoded:",
    "file:",
    "id:",
    "label:",
    "masked:",
    "observed:",
    "recmtl:",
    "split:",
    "typed:",
    "weight:",
    "weights:",
    "where:",
)
"""How names of recmtl's own begin."""


def refuse_reserved(columns: Iterable[str], where: str) -> None:
    """See that no column of a source is called like one of recmtl's own.

    Args:
        columns: the source's columns.
        where: the setting's name, for the error.

    Raises:
        UserError: one is; names it.
    """
    for column in columns:
        prefix = next((prefix for prefix in PREFIXES if column.startswith(prefix)), None)
        if prefix is not None:
            raise UserError(
                f"{where}: column {column!r} is called like one of recmtl's own, which begin with {prefix!r}; rename "
                "it, or leave it out with `drop`"
            )
