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


KNOWN: tuple[Known, ...] = (
    Known(
        r"mkdir|open|write|fsync|unlink|rename|rmdir",
        r"exit code 2: .*(cannot (write|make)).*(No space left on device|Input/output error)",
        "a folder that cannot be made because the disk is full or fails ends with exit code 2 instead of 1",
    ),
    Known(
        r"(ENOSPC|EIO|full), ",
        r"the path is not named: error: (logs/|runs/shop/package:|more/)",
        "the sentence names the file that was being read, not the one that could not be written",
    ),
    Known(
        r"^promote, (kill|torn|power|own kill)",
        r"tags of versions: differs: .*(overridden|gate\.reasons)",
        "`promote --override` killed after the move does not note the override on the version",
    ),
    Known(
        r"^first-day, (kill|torn|power|own kill).* days/files/.*",
        r"daily.store: days holds|at the end",
        "the first day's store, killed while it reads the first log, is taken for a foreign folder",
    ),
    Known(
        r"^daily, .*\.champion\.",
        r"\.champion\..*: left over",
        "the champion's temporary folder stays after a kill",
    ),
)
"""Mend one, and take it out of here."""


def known(trial: Trial) -> Known | None:
    """The open fault that a wrong outcome is one of; None: a new one, or none."""
    where = f"{trial.command}, {trial.fault}, {trial.call} {trial.path}"
    for fault in KNOWN:
        if trial.wrong and re.search(fault.where, where) and all(re.search(fault.wrong, line) for line in trial.wrong):
            return fault
    return None
