"""Processes that recmtl starts of its own Python: what they import, and from where.

In: a program, as text. Out: the command that runs it, and the environment to start it with.
The process imports this very recmtl, wherever it lies. It never searches its working directory: a file ``polars.py``
there, perhaps of somebody else, would run in place of Polars. PYTHONPATH is searched as ever.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["bootstrap", "environment", "python"]


def bootstrap() -> str:
    """Python code that imports this recmtl without putting the folder that it lies in on ``sys.path``."""
    home = Path(__file__).parent
    return (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('recmtl', {str(home / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(home)!r}])\n"
        "sys.modules['recmtl'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(sys.modules['recmtl'])\n"
    )


def python(program: str, *arguments: str) -> list[str]:
    """The command that runs a program which imports recmtl.

    Args:
        program: Python code.
        arguments: its ``sys.argv[1:]``.
    """
    return [sys.executable, "-P", "-c", bootstrap() + program, *arguments]


def environment(given: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of such a process; what it starts in turn does not search the working directory either.

    An empty entry of PYTHONPATH, as ``PYTHONPATH=$PYTHONPATH:/opt/lib`` makes where it was not set, stands for the
    working directory: it is dropped, and the other entries stay.

    Args:
        given: to begin with; None: this process's.
    """
    found = dict(os.environ if given is None else given)
    found["PYTHONSAFEPATH"] = "1"
    if "PYTHONPATH" in found:
        found["PYTHONPATH"] = os.pathsep.join(part for part in found["PYTHONPATH"].split(os.pathsep) if part)
    return found
