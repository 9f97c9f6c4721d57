"""A small problem for the trainer: five kinds of features and tasks less most of them, made from a seed."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # small_run.py is also run as a script

from small_run import SmallRun


@pytest.fixture
def small() -> SmallRun:
    return SmallRun()
