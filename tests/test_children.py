"""No process that recmtl starts runs a file of the working directory in place of a library."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from recmtl import children
from recmtl.distributed.launch import launch
from recmtl.doctor import _python_says
from recmtl.package import load_package
from recmtl.progress import Silent
from recmtl.scoring import predict_files
from recmtl.tracking.gate import PackageChecks
from recmtl.tracking.trial import trial

STRAY = ("polars", "torch", "numpy", "pyarrow", "pydantic", "recmtl", "typer", "mlflow", "json", "sitecustomize")
"""What recmtl or the start of Python itself imports; the last two are found before site-packages are."""


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a file for each module that notes that it was run, and fails. PYTHONPATH has an
    empty entry, which stands for the working directory."""
    here = tmp_path / "working"
    here.mkdir()
    for name in STRAY:
        (here / f"{name}.py").write_text(
            f"open({str(tmp_path / 'was_run')!r}, 'a').write({name!r})\nraise ImportError('stray')\n"
        )
    monkeypatch.setenv("PYTHONPATH", os.pathsep + os.environ.get("PYTHONPATH", ""))
    monkeypatch.chdir(here)
    return here


def was_run(planted: Path) -> bool:
    return (planted.parent / "was_run").exists()


def test_the_plant_works(planted: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import polars"], capture_output=True, check=False)
    assert done.returncode != 0
    assert was_run(planted)


def test_workers(planted: Path, saved: Path, tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("one.parquet", "two.parquet")]
    for file in files:
        pl.DataFrame({"user_id": [1, 2, 3], "item_id": ["a", "b", "a"]}).write_parquet(file)
    done = predict_files(load_package(saved), files, tmp_path / "out", workers=2, progress=Silent())
    assert done.rows == 6
    assert not was_run(planted)


def test_ranks(planted: Path) -> None:
    assert launch(lambda: ["version"], ranks=1, max_restarts=0, progress=Silent()) == 0
    assert not was_run(planted)


def test_the_trial(planted: Path, saved: Path) -> None:
    rows = pl.DataFrame({"user_id": [1, 2], "item_id": ["a", "b"]})
    expected = load_package(saved).predict(rows)
    (loads, same) = trial(saved, rows, expected, PackageChecks(latency=None))
    assert loads.passed, loads.text
    assert same.passed
    assert not was_run(planted)


def test_doctor(planted: Path) -> None:
    assert _python_says("import numpy; print(7)") == (True, "7")
    assert not was_run(planted)


def test_a_process_imports_this_recmtl_and_keeps_pythonpath(
    planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another recmtl that PYTHONPATH has is not taken, but its other modules are."""
    other = tmp_path / "other"
    (other / "recmtl").mkdir(parents=True)
    (other / "recmtl" / "__init__.py").write_text("raise ImportError('another recmtl')")
    (other / "theirs.py").write_text("value = 5")
    monkeypatch.setenv("PYTHONPATH", f"{other}{os.pathsep}")
    program = (
        "import recmtl.errors, sys, json, theirs; print(json.dumps([recmtl.__file__, theirs.value, sys.argv[1:]]))"
    )
    done = subprocess.run(
        children.python(program, "a", "b"), env=children.environment(), capture_output=True, text=True, check=True
    )
    import recmtl

    assert json.loads(done.stdout) == [recmtl.__file__, 5, ["a", "b"]]
    assert not was_run(planted)


def test_what_such_a_process_starts_does_not_search_the_working_directory(planted: Path) -> None:
    program = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', 'import numpy']).returncode)"
    assert subprocess.run(children.python(program), env=children.environment(), check=False).returncode == 0
    assert not was_run(planted)


def test_python_m_recmtl(planted: Path) -> None:
    """Python puts the working directory first. A stray recmtl there is the user's choice; a stray library is not."""
    (planted / "recmtl.py").unlink()
    (planted / "json.py").unlink()
    (planted / "sitecustomize.py").unlink()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONPATH"] = str(Path(children.__file__).parents[1])
    command = [sys.executable, "-m", "recmtl", "config", "schema"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not was_run(planted)
