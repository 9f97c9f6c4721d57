"""What goes wrong today and is not mended yet: a pattern per kind, so that anything new is seen."""

import re
from typing import NamedTuple

from tests.chaos.trials import Trial

__all__ = ["KNOWN", "Known", "known"]


class Known(NamedTuple):
    """A fault that is open."""

    where: str
    """Command, kind of fault, call and path: a regular expression."""
    wrong: str
    """What every line of what is wrong matches."""
    why: str


KNOWN: tuple[Known, ...] = ()
"""Mend one, and take it out of here."""


def known(trial: Trial) -> Known | None:
    """The open fault that a wrong outcome is one of; None: a new one, or none."""
    where = f"{trial.command}, {trial.fault}, {trial.call} {trial.path}"
    for fault in KNOWN:
        if trial.wrong and re.search(fault.where, where) and all(re.search(fault.wrong, line) for line in trial.wrong):
            return fault
    return None
