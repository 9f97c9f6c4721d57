"""MLflow, quietly: its client for a store, without its chatter, its telemetry, or minutes spent on a dead server.

In: a store's address. Out: an ``MlflowClient`` and few words about what goes wrong with it. MLflow is imported here,
when first used.

This is also the boundary around MLflow. Whatever MLflow, SQLAlchemy, a database's driver or the network raise
(:func:`is_ours` tells it from a fault of recmtl's), whoever uses the client makes one sentence of it by
:func:`explain`, and none of their loggers writes anything: they print tracebacks of thousands of lines, and addresses
with their passwords.
"""

import glob
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

import recmtl
from recmtl import durable
from recmtl.errors import UserError
from recmtl.tracking.base import redact

__all__ = ["connect", "experiment_id", "explain", "globally", "is_ours", "patiently", "quietly"]

# What the user has set stands. A dead server then costs a few seconds a try instead of MLflow's several minutes.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "300", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
_RECMTL = Path(recmtl.__file__).parent
_set_here: dict[str, str] = {}
_patience_lock = threading.RLock()


def connect(uri: str) -> Any:
    """An ``MlflowClient`` of the store, for runs and the registry alike; the folder of a SQLite file is made.

    Args:
        uri: from :func:`recmtl.tracking.base.store_uri`.
    """
    for name, value in _ENVIRONMENT.items():
        if name not in os.environ:
            os.environ[name] = _set_here[name] = value
    with quietly():
        from mlflow import MlflowClient

        if "MLFLOW_LOGGING_LEVEL" not in os.environ:
            # "Retrying (Retry(total=0, …" for a server that is away, tracebacks of a database that is full, and so on:
            # our own warning or error says it once, in words and without secrets.
            for logger in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
                logging.getLogger(logger).setLevel(logging.CRITICAL + 1)
        if not uri.startswith(("http", "databricks")):
            _give_up_sooner()
        if uri.startswith("sqlite:"):
            _make_database(_database(uri))
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _give_up_sooner() -> None:
    """Have MLflow try a database three times instead of ten, each time after twice as long: that took five minutes."""
    from mlflow.store.db import utils

    if hasattr(utils, "MAX_RETRY_COUNT"):
        utils.MAX_RETRY_COUNT = min(utils.MAX_RETRY_COUNT, 3)


def _make_database(path: Path) -> None:
    """Make a SQLite store where there is none, whole or not at all.

    MLflow builds its tables step by step, in many transactions; killed in between, it leaves a file that no later start
    accepts ("table … already exists"). So they are built in a file of another name, which is renamed into place.
    """
    from mlflow import MlflowClient

    if path.exists():
        return
    durable.make_folder(path.parent)
    with FileLock(path.parent / f".{path.name}.lock"):
        if path.exists():
            return
        unfinished = path.parent / f".{path.name}.making"
        for leftover in path.parent.glob(f"{glob.escape(unfinished.name)}*"):
            durable.remove(leftover)
        client = MlflowClient(tracking_uri=f"sqlite:///{unfinished}", registry_uri=f"sqlite:///{unfinished}")
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
        for holder in (client._tracking_client, client._get_registry_client()):
            holder.store.engine.dispose()
        durable.commit_file(unfinished, path)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings that MLflow's dependencies raise about each other (SQLAlchemy's about ``noload``, say).

    Python's warning filters belong to the whole process, so a background thread leaves them alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def globally(uri: str) -> Iterator[None]:
    """With the store as MLflow's own: its database registry looks logged models up there, not in the client's store."""
    if uri.startswith("http"):
        yield
        return
    from mlflow.tracking._tracking_service.utils import _use_tracking_uri

    before = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        with _use_tracking_uri(uri):
            yield
    finally:
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


@contextmanager
def patiently() -> Iterator[None]:
    """With time enough for large files, unless the user has set MLflow's limits."""
    with _patience_lock:
        ours = {name: value for name, value in _PATIENCE.items() if os.environ.get(name) == _set_here.get(name, "")}
        os.environ.update(ours)
        try:
            yield
        finally:
            os.environ.update({name: _set_here[name] for name in ours})


def is_ours(error: BaseException) -> bool:
    """Whether an error was raised by recmtl's own code, and not by what it called."""
    frame = error.__traceback__
    if frame is None:
        return False
    while frame.tb_next is not None:
        frame = frame.tb_next
    return Path(frame.tb_frame.f_code.co_filename).is_relative_to(_RECMTL)


def explain(error: BaseException) -> str:
    """One line about an error of MLflow's, without secrets."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = redact(lines[0])
    if isinstance(error, ImportError):
        text = f"a package is missing here: {text}"
    elif isinstance(error, KeyError | TypeError | AttributeError | IndexError):  # of what the store answered
        text = f"{type(error).__name__}: {text}"
    if "Max retries exceeded" in text or "Connection refused" in text:
        reasons = ("Connection refused", "Name or service not known", "timed out", "too many 5", "too many 4")
        text = next((reason for reason in reasons if reason in text), "no connection").replace("too many 5", "error 5")
    return text if len(text) <= 300 else text[:297] + "..."


def experiment_id(client: Any, uri: str, name: str) -> str:
    """The id of the experiment, made where it does not exist.

    A SQLite store's experiment keeps its artifacts beside the database; left to itself, MLflow puts them into whatever
    folder the process was started in.

    Raises:
        UserError: the experiment was deleted on the store.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None
        if uri.startswith("sqlite:"):
            database = _database(uri)
            folder = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
            location = (database.parent / "mlartifacts" / (folder.lstrip(".") or "_")).as_uri()
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except Exception:
            # Made by another process in between; anything else fails here again, with its own error.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise UserError(
            f"tracking.experiment: {name!r} was deleted on {redact(uri)}; restore it there "
            f"(mlflow experiments restore --experiment-id {found.experiment_id}), or give another name"
        )
    return str(found.experiment_id)


def _database(uri: str) -> Path:
    """The file of a SQLite store."""
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])
