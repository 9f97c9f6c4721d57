"""The sample report as a page, and a browser to open it in."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # sample.py is also there to make a page to look at

from browser import CHROMIUM, Browser, browser
from sample import sample_report

from recmtl.evaluation.html import render, write_html
from recmtl.findings import About, DataCard, Report, Verdict


@pytest.fixture(scope="session")
def full() -> Report:
    """Every section filled."""
    return sample_report()


@pytest.fixture(scope="session")
def bare(full: Report) -> Report:
    """Only what a report must have."""
    return Report(
        about=About(name="bare", created="2026-01-02T03:04:05+00:00", version="1", split="test", systems=("model",)),
        verdict=Verdict(decision="not judged"),
        figures=(),
        data=DataCard(name="d", source="table", fingerprint="f", statistics="s", splits={}),
    )


@pytest.fixture(scope="session")
def page(full: Report) -> str:
    """The full report's HTML."""
    return render(full)


@pytest.fixture(scope="session")
def file(full: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full report as a file."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html(path, full)
    return path


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests that need one."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the page is not opened")
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
