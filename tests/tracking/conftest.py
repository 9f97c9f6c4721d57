"""A store made once and copied: MLflow takes seconds to make its tables."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recmtl.progress import Silent
from recmtl.tracking.base import store_uri
from recmtl.tracking.client import connect, quietly
from recmtl.tracking.mlflow_tracker import MlflowTracker


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with quietly():
        connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty SQLite store of the test's own, in ``tmp_path/store``; the working directory is another folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "store").mkdir()
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(empty_store, tmp_path / "store" / "mlflow.db")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return store_uri(f"sqlite:///{tmp_path}/store/mlflow.db")


@pytest.fixture
def client(uri: str) -> Any:
    return connect(uri)


@pytest.fixture
def make_tracker(tmp_path: Path) -> Iterator[Callable[..., MlflowTracker]]:
    """Makes started trackers of the run in ``tmp_path/run``."""
    made: list[MlflowTracker] = []

    def make(uri: str, **arguments: Any) -> MlflowTracker:
        given = {"experiment": "tests", "name": "run", "progress": Silent(), **arguments}
        tracker = MlflowTracker(tmp_path / "run" / "tracking", uri=uri, **given)
        made.append(tracker)
        tracker.start()
        return tracker

    yield make
    for tracker in made:
        tracker.kill()
