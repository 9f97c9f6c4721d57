"""What a command may import before it does anything: each of torch, Polars, pydantic and MLflow takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

import recmtl.cli

VERBS = [path for path in Path(recmtl.cli.__file__).parent.glob("*.py") if path.stem != "__init__"]
COMMAND_LINE = {"annotated_doc", "attr", "click", "markdown_it", "mdurl", "pygments", "rich", "shellingham", "typer"}


@pytest.mark.parametrize(
    ("code", "allowed", "own"),
    [
        ("import recmtl", set(), {"recmtl", "recmtl.errors"}),
        (
            "import sys, recmtl.cli; sys.argv = ['recmtl', '--help']; recmtl.cli.main()",
            COMMAND_LINE,
            {"recmtl", "recmtl.errors", "recmtl.cli", *(f"recmtl.cli.{path.stem}" for path in VERBS)},
        ),
    ],
    ids=["import recmtl", "recmtl --help"],
)
def test_start_up_imports_nothing_heavy(code: str, allowed: set[str], own: set[str]) -> None:
    report = "import atexit, sys; had = set(sys.modules); atexit.register(lambda: print(*set(sys.modules) - had))\n"
    done = subprocess.run([sys.executable, "-c", report + code], capture_output=True, text=True, check=True)
    modules = done.stdout.splitlines()[-1].split()
    assert {name for name in modules if name.partition(".")[0] == "recmtl"} == own
    foreign = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names - {"recmtl"}
    assert foreign <= allowed
