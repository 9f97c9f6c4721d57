"""What can go wrong, by whose hand: the exit codes of the command line hang on these classes.

Raise :class:`UserError` with one sentence that says what was expected, what came, where (field, column, file, row)
and what to do. Everything else that recmtl raises on purpose is a :class:`RunError`.
"""

import errno
from typing import Any

__all__ = [
    "NotRegisteredError",
    "OtherRankError",
    "RankLostError",
    "RecmtlError",
    "RefusedError",
    "RunError",
    "UserError",
    "unwritable",
]

_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE}
"""Errors that pass: the same command works once the disk does."""


class RecmtlError(Exception):
    """An error that recmtl raises on purpose; its message is meant for the user."""

    exit_code = 1


class RunError(RecmtlError):
    """The run itself failed: a non-finite loss, a disk that is full, a damaged checkpoint. Exit code 1."""

    exit_code = 1


class UserError(RecmtlError, ValueError):
    """The user's config, arguments or data are wrong. Exit code 2."""

    exit_code = 2


def unwritable(message: str, error: OSError) -> RecmtlError:
    """The error of a place that nothing can be written to: the user's mistake, unless the disk is full or fails.

    Args:
        message: which setting and place, and what cannot be done.
        error: the operating system's.
    """
    kind = RunError if error.errno in _OF_THE_DISK else UserError
    return kind(f"{message} ({error.strerror or error})")


class NotRegisteredError(RecmtlError):
    """Trained and kept, but the registry could not be reached. Exit code 3."""

    exit_code = 3
    result: Any = None
    """What the run left, a :class:`recmtl.stages.RunResult`; None where no run was under way."""


class RefusedError(RecmtlError):
    """The registry does not let this model through, or somebody else was first. Exit code 3.

    Args:
        message: what was refused.
        reasons: why, a sentence each.
    """

    exit_code = 3

    def __init__(self, message: str, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(": ".join([message, " ".join(reasons)]) if reasons else message)
        self.reasons = reasons


class RankLostError(RunError):
    """A process of a job of many was lost without a word, and so the job. Exit code 75 (try again)."""

    exit_code = 75


class OtherRankError(RecmtlError):
    """Another process of the job failed and has told the user why: this one ends as it did, and says nothing.

    Args:
        exit_code: of the process that failed; None: not known yet.
    """

    def __init__(self, exit_code: int | None = None) -> None:
        super().__init__("another rank of this job failed")
        if exit_code is not None:
            self.exit_code = exit_code
