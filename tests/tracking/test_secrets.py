"""Of an address only scheme, host, port and path are shown or stored: every byte that is written is searched."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from recmtl.errors import NotRegisteredError, RecmtlError, RunError
from recmtl.package import save_package
from recmtl.progress import Lines
from recmtl.tracking import TrackingConfig, open_tracker, promote, register, resolved, sync
from recmtl.tracking.promotion import champion_of

SECRETS = ("sesame", "hushhush", "carol", "t0ken")
URIS = [
    "http://carol:open'sesame@127.0.0.1:9/base",
    'http://carol:open"sesame@127.0.0.1:9',
    "http://carol:open@sesame@127.0.0.1:9",
    "http://carol:open#sesame@127.0.0.1:9",
    "http://carol:open%23sesame@127.0.0.1:9",
    "http://127.0.0.1:9/base?access=t0ken-of-hers&other=hushhush",
    "postgresql://carol:open'se/sesame@127.0.0.1:9/mlflow?sslpassword=hushhush",
    "postgresql+none://carol:opensesame@127.0.0.1:9/mlflow",
    "mysql://carol:open sesame@127.0.0.1:9/mlflow",
    "mssql+pyodbc://carol:opensesame@127.0.0.1:9/mlflow?driver=hushhush",
]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    # What MLflow's loggers would print goes to standard error, which is searched.
    monkeypatch.setattr(logging, "raiseExceptions", True)


def assert_silent(folder: Path, *shown: str) -> None:
    """No secret in any file or file name under a folder, or in any of the texts."""
    for path in folder.rglob("*"):
        held = str(path.relative_to(folder)).encode() + (path.read_bytes() if path.is_file() else b"")
        assert not [secret for secret in SECRETS if secret.encode() in held], path
    for text in shown:
        assert not [secret for secret in SECRETS if secret in text], text


@pytest.mark.parametrize("uri", URIS)
def test_a_tracked_run(uri: str, saved: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The journal, what is kept to be sent, and all that is said, of a store that cannot be reached."""
    run = tmp_path / "run"
    tracker = open_tracker(TrackingConfig(uri=uri), run / "tracking", name="shop", progress=Lines())
    tracker.params({"tracking": {"uri": uri}, "list": [uri]})
    tracker.tags({"store": uri})
    tracker.dataset("logs", "0" * 64, source=uri)
    errors = [raised(lambda: tracker.register(run / "package", "ranker", "challenger"))]
    tracker.close()
    errors.append(raised(lambda: sync(run, progress=Lines())))
    errors.append(raised(lambda: sync(run, uri=uri, progress=Lines())))
    captured = capfd.readouterr()
    assert "cannot be used" in captured.err
    assert all(len(line) < 1000 for line in captured.err.splitlines())
    assert len(captured.err.splitlines()) < 10, "a traceback of MLflow's"
    assert_silent(tmp_path, captured.out, captured.err, *errors)


@pytest.mark.parametrize("uri", [URIS[0], URIS[5], URIS[6], URIS[7]])
def test_the_registry(uri: str, saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotRegisteredError) as not_registered:
        register(saved, "ranker", None, uri=uri)
    errors = [str(not_registered.value)]
    for act in (lambda: promote("ranker", uri=uri), lambda: champion_of("ranker", uri=uri), lambda: fetch(uri)):
        with pytest.raises(RunError) as caught:
            act()
        errors.append(str(caught.value))
    captured = capfd.readouterr()
    assert captured.err == ""
    assert_silent(Path("/nowhere"), captured.out, *errors)
    assert all("\n" not in error and len(error) < 500 for error in errors)


def fetch(uri: str) -> None:
    with resolved("models:/ranker@champion", uri):
        pass


def raised(act: Callable[[], Any]) -> str:
    try:
        act()
    except RecmtlError as error:
        return str(error)
    raise AssertionError("nothing was raised")


def test_a_package_has_no_tracking(sample: Any, tmp_path: Path) -> None:
    config = {**sample.config, "tracking": {"uri": URIS[0], "experiment": "ours"}}
    contents = save_package(
        tmp_path / "package",
        sample.model,
        schema=sample.schema,
        tasks=sample.tasks,
        statistics=sample.statistics,
        columns=sample.columns,
        config=config,
        data="",
    )
    kept = yaml.safe_load((contents.folder / "config.resolved.yaml").read_text())
    assert kept == sample.config
    assert_silent(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("debug", [False, True])
def test_a_whole_run(debug: bool, tmp_path: Path) -> None:
    """Run folder, report, package, prepared rows and all that is printed."""
    config = {
        "name": "tiny",
        "data": {
            "source": {"kind": "synthetic", "path": "logs", "users": 60, "items": 30, "impressions": 1500},
            "prepared": "prepared",
            "split": {"by": "time", "validation": 0.15, "test": 0.15},
        },
        "features": [{"name": "user_id", "kind": "id"}, {"name": "item_id", "kind": "id"}],
        "tasks": [{"name": "click", "kind": "binary", "label": "click"}],
        "model": {"tower": {"kind": "shared_bottom"}},
        "training": {"epochs": 1, "batch_size": 256, "device": "cpu"},
        "tracking": {"uri": "sqlite:///none.db", "system_metrics_seconds": 0},
        "registry": {"model": "tiny", "alias": "challenger", "gate": {}},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config))
    arguments = ["run", "tiny.yaml", "--set", f"tracking.uri={URIS[6]}", *(["--debug"] if debug else [])]
    command = [sys.executable, "-c", "from recmtl.cli import main; main()", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert (tmp_path / "runs" / "tiny" / "report.html").is_file()
    assert_silent(tmp_path, done.stdout, done.stderr)
