"""Who serves: promote a version, put an earlier one back, and say who moved what."""

from recmtl.tracking.promotion import CHALLENGER, History, Move
from recmtl.tracking.promotion import history as _history
from recmtl.tracking.promotion import promote as _promote
from recmtl.tracking.promotion import rollback as _rollback

__all__ = ["history", "promote", "rollback"]


def promote(
    model: str,
    version: int | str = CHALLENGER,
    *,
    override: str | None = None,
    tracking_uri: str | None = None,
) -> Move | None:
    """Make a version @champion, by the verdict that is stored with it or by a stated reason.

    Args:
        model: the registered model's name.
        version: its number, or an alias.
        override: why, whatever the gate says.
        tracking_uri: the store; None: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.

    Returns:
        The move; None where the version is the champion already.

    Raises:
        RefusedError: the gate does not let it through, or another was first.
        UserError: no such model or version; no reason.
        RunError: the store cannot be reached.
    """
    return _promote(model, version, override=override, uri=tracking_uri)


def rollback(model: str, to: int | None = None, *, reason: str, tracking_uri: str | None = None) -> Move:
    """Put an earlier champion back, by default the one before the present one.

    Raises:
        UserError: it never was the champion; there is none before; no reason.
        RefusedError: another was first.
        RunError: the store cannot be reached.
    """
    return _rollback(model, to, reason=reason, uri=tracking_uri)


def history(model: str, *, tracking_uri: str | None = None) -> History:
    """Every move of a model's aliases, where they are now, and what was found amiss.

    Raises:
        UserError: no such model.
        RunError: the store cannot be reached.
    """
    return _history(model, uri=tracking_uri)
