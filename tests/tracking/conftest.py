"""A store made once and copied: MLflow takes seconds to make its tables. And reports made by hand."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from recmtl.findings import About, DataCard, Difference, Figure, FigureRow, Report, Verdict
from recmtl.metrics import METRICS
from recmtl.progress import Silent
from recmtl.tracking.base import store_uri
from recmtl.tracking.client import connect, globally, quietly
from recmtl.tracking.gate import verdict_tags
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


TASKS = [
    {"name": "click", "kind": "binary", "label": "click"},
    {"name": "purchase", "kind": "binary", "label": "purchase", "parent": "click"},
    {"name": "stars", "kind": "ordinal", "label": "stars", "levels": [1, 2, 3]},
]


def row(target: str, metric: str, value: float | None, champion: float | None = None, half: float = 0.002) -> FigureRow:
    """A metric of the model and, where there is one, the champion; intervals of the figure and of the difference are
    ``half`` to either side."""

    def figure(kind: type[Figure], at: float | None) -> Any:
        return kind() if at is None else kind(value=at, low=at - half, high=at + half)

    there = champion is not None and value is not None
    return FigureRow(
        target=target,
        task=target.partition("_given_")[0],
        metric=metric,
        higher_is_better=METRICS[metric].higher_is_better,
        rows=1000,
        systems={"model": figure(Figure, value), **({"champion": figure(Figure, champion)} if there else {})},
        differences={"champion": figure(Difference, value - champion)} if there else {},  # type: ignore[operator]
        method="by hand",
    )


def report_of(
    *figures: FigureRow,
    champion: bool | str = True,
    model: str = "a" * 64,
    decision: Any = "not judged",
    **sections: Any,
) -> Report:
    """A report; ``champion``: whether one was compared with, or the hash of its package."""
    models = {"model": model, **({"champion": champion if isinstance(champion, str) else "c" * 64} if champion else {})}
    reasons = {"promote": ("Better than the champion.",), "refuse": ("Worse than the champion.",)}.get(decision, ())
    return Report(
        about=About(
            name="demo",
            created="2026-01-02T03:04:05+00:00",
            version="0.1.0",
            split="test",
            models=models,
            systems=tuple(models),
        ),
        verdict=Verdict(decision=decision, reasons=reasons),
        figures=figures,
        data=DataCard(
            name="demo",
            source="synthetic",
            fingerprint="f" * 64,
            statistics="s" * 64,
            splits={"train": {"rows": 8000, "time_range": ["2026-01-01", "2026-01-07"]}, "test": {"rows": 1000}},
        ),
        config={"tasks": TASKS},
        **sections,
    )


@pytest.fixture(scope="session")
def figure_row() -> Callable[..., FigureRow]:
    return row


@pytest.fixture(scope="session")
def make_report() -> Callable[..., Report]:
    return report_of


def publish(uri: str, name: str, report: Report | None, folder: Path) -> int:
    """A version with a verdict but without a package, which moving aliases does not need."""
    client = connect(uri)
    digest = "a" * 64 if report is None else report.about.models["model"]
    tags = {"recmtl.package": digest}
    with quietly(), globally(uri):
        found = client.get_experiment_by_name("judged")
        artifacts = None if uri.startswith("http") else (folder / "artifacts").as_uri()
        experiment = found.experiment_id if found else client.create_experiment("judged", artifact_location=artifacts)
        logged = client.create_logged_model(experiment, name="model", tags=tags)
        if report is not None:
            data = json.dumps(report.model_dump(mode="json")).encode()
            hash_ = hashlib.sha256(data).hexdigest()
            path = folder / f"{hash_}.json"
            path.write_bytes(data)
            client.log_model_artifact(logged.model_id, str(path), "reports")
            tags |= verdict_tags(report) | {"recmtl.gate.report": hash_}
        client.finalize_logged_model(logged.model_id, "READY")
        if name not in [one.name for one in client.search_registered_models()]:
            client.create_registered_model(name)
        source = f"models:/{logged.model_id}"
        return int(client.create_model_version(name, source, tags=tags, model_id=logged.model_id).version)


@pytest.fixture(scope="session")
def publisher() -> Callable[..., int]:
    return publish


@pytest.fixture
def aliases(client: Any) -> Callable[..., Mapping[str, int]]:
    """Where MLflow has a model's aliases."""

    def of(name: str = "ranker") -> dict[str, int]:
        with quietly():
            return {alias: int(at) for alias, at in client.get_registered_model(name).aliases.items()}

    return of


@contextmanager
def _serving(folder: Path, *, port: int | None = None, store: str | None = None, workers: int = 1) -> Iterator[str]:
    """`mlflow server` on this machine, on a SQLite database unless another store is given."""
    folder.mkdir()
    if port is None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = int(listener.getsockname()[1])
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", str(workers), "--backend-store-uri", store or f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@pytest.fixture(scope="session")
def serving() -> Callable[..., AbstractContextManager[str]]:
    return _serving
