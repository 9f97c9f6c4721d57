"""Disturbs recmtl's own file operations, through the seam that :mod:`recmtl.durable` keeps for tests.

Unlike shim.c it needs no compiler, and it hits what recmtl does, call by call, rather than what libraries do meanwhile.
In: which operation fails or kills, in the process of the command. Out: a JSON file that says how many operations there
were, and which one was hit.
"""

import atexit
import json
import os
import signal
from pathlib import Path
from typing import Any

__all__ = ["disturb"]

OPERATIONS = ("open", "write", "fsync", "rename", "link", "mkdir", "unlink", "rmdir")


def disturb(asked: dict[str, Any]) -> None:
    """Have the n-th operation of this process go wrong.

    Args:
        asked: ``target``: which, from 1, 0 for none; ``error``: the errno that it raises, 0: SIGKILL instead;
            ``report``: the JSON file.
    """
    from recmtl import durable

    told: dict[str, Any] = {"counted": 0, "fired": False, "call": "", "path": "", "calls": []}

    def report() -> None:
        Path(asked["report"]).write_text(json.dumps(told))

    def before(name: str, arguments: tuple[Any, ...]) -> None:
        path = arguments[-1] if name == "rename" else arguments[0]
        path = str(getattr(path, "name", path)) if name == "write" else str(path)
        told["counted"] += 1
        told["calls"].append([name, os.path.abspath(path)])  # noqa: PTH100
        if told["counted"] != asked["target"]:
            return
        told.update(fired=True, call=name, path=os.path.abspath(path))  # noqa: PTH100
        report()
        if not asked["error"]:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(asked["error"], os.strerror(asked["error"]), path)

    inner = durable.files

    class Disturbed(type(inner)):  # type: ignore[misc]
        """The same operations, counted."""

    for name in OPERATIONS:

        def operation(self: object, *arguments: Any, _name: str = name, **named: Any) -> Any:
            before(_name, arguments)
            return getattr(inner, _name)(*arguments, **named)

        setattr(Disturbed, name, operation)
    durable.files = Disturbed()
    atexit.register(report)
