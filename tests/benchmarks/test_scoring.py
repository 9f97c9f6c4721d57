"""The benchmark of scoring, in small: every job runs and the line of JSON says what it must."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "benchmarks" / "scoring" / "run.py"


@pytest.mark.slow
def test_it_prints_its_figures(tmp_path: Path) -> None:
    sizes = ["--rows", "3000", "--users", "50", "--items", "20", "--rounds", "1", "--requests", "3"]
    command = [sys.executable, str(RUN), *sizes, "--output", str(tmp_path / "out" / "scoring.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said == json.loads((tmp_path / "out" / "scoring.json").read_text())
    assert all(rate > 0 for rate in said["rows_per_second"].values())
    assert said["share_of_ceiling"].keys() < said["rows_per_second"].keys()
    assert said["weights_bytes"]["int8"] < said["weights_bytes"]["package"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scoring.json"]
