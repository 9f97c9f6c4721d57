"""What a run tells about itself: the :class:`Tracker` protocol, its null and in-memory objects, its config.

In: parameters, metrics, tags, files, datasets. Out: what the tracker makes of them. A tracker never stops a run: what
it cannot deliver it keeps (:mod:`recmtl.tracking.journal`). Secrets in a tracking URI end here
(:mod:`recmtl.uris`).
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

from pydantic import Field, field_validator

from recmtl.errors import UserError
from recmtl.expansion import StoreAddress
from recmtl.settings import Settings
from recmtl.uris import keep_secret, redact, shown_uri

__all__ = [
    "DEFAULT_URI",
    "InMemoryTracker",
    "NullTracker",
    "RegisteredVersion",
    "Status",
    "Tracker",
    "TrackingConfig",
    "flatten",
    "redact",
    "store_uri",
]

Status = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended, in MLflow's words."""

DEFAULT_URI = "sqlite:///mlflow.db"
"""The store when neither the config nor MLFLOW_TRACKING_URI names one."""

_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
_NONE: Mapping[str, Any] = MappingProxyType({})


class TrackingConfig(Settings):
    """Where the run is tracked."""

    uri: StoreAddress | None = None
    """An MLflow store: sqlite:///PATH (relative to the working directory), a server's http(s):// address, or another
    database. Left out: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db. Give a password by MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD, or as ${NAME} from the environment; one in the address works. Of an address only scheme,
    host, port and path are shown and stored."""
    experiment: str = Field(default="recmtl", min_length=1, max_length=500)
    """The MLflow experiment; made when it does not exist."""
    enabled: bool = True
    """False: nothing is tracked, and nothing can be registered."""
    system_metrics_seconds: float = Field(default=10.0, ge=0.0)
    """Processor, memory, disk, network and GPU are sampled this often, in seconds; 0 turns it off."""

    @field_validator("uri")
    @classmethod
    def _a_store(cls, uri: str | None) -> str | None:
        if uri is not None:
            _check_scheme(uri)
        return uri


def store_uri(uri: str | None = None) -> str:
    """The store to use, a relative SQLite path made absolute.

    Args:
        uri: as configured; None takes MLFLOW_TRACKING_URI, else :data:`DEFAULT_URI`.

    Raises:
        UserError: it is not the address of an MLflow store (a folder is none: MLflow's file store is retired), or a
            SQLite file that MLflow cannot open.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    try:
        _check_scheme(uri)
    except ValueError as error:
        raise UserError(str(error)) from None
    if uri.startswith("sqlite:"):
        path, question, query = uri.removeprefix("sqlite:///").partition("?")
        database = Path(path).expanduser().absolute()
        if any(letter in str(database) for letter in "%#?"):
            # Escaped for SQLAlchemy, the path is another one for MLflow, which would make that one's folders.
            raise UserError(
                f"tracking.uri: MLflow cannot open the SQLite store {database}, because its path holds %, # or ?; name "
                "a file in another folder (tracking.uri, --tracking-uri or MLFLOW_TRACKING_URI), or set "
                "tracking.enabled: false"
            )
        return f"sqlite:///{database}{question}{query}"
    keep_secret(uri)
    return uri


def _check_scheme(uri: str) -> None:
    scheme = uri.partition(":")[0].partition("+")[0].lower()
    if scheme not in _SCHEMES or (scheme != "databricks" and "://" not in uri):
        raise ValueError(
            f"tracking URI {shown_uri(uri)!r}: expected sqlite:///PATH, http(s)://HOST, or a database's address; "
            "MLflow no longer writes to a plain folder"
        )
    if scheme == "sqlite" and not re.match(r"sqlite:///[^?]", uri):
        raise ValueError(f"tracking URI {shown_uri(uri)!r}: expected sqlite:///PATH, the path of a database file")


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model."""

    name: str
    version: int
    alias: str | None = None
    """The alias that was set to it; None for none."""

    @property
    def uri(self) -> str:
        """``models:/NAME@ALIAS`` where it has an alias, else ``models:/NAME/VERSION``."""
        return f"models:/{self.name}@{self.alias}" if self.alias else f"models:/{self.name}/{self.version}"


class Tracker(Protocol):
    """Where a run writes down what it did. No method but ``register`` raises for want of a server."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Parameters: nested mappings and lists become dotted names (:func:`flatten`). Each is written once."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """One point per metric. A metric's steps rise; a point at or before its last step (a resumed run does the
        steps since its checkpoint again) is dropped."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags; the last value of a name stands."""

    def artifact(self, path: Path, name: str | None = None) -> None:
        """A file of the run, shown as ``name`` (by default its own). The last of a name stands."""

    def dataset(
        self,
        name: str,
        digest: str,
        *,
        source: str,
        context: str = "training",
        details: Mapping[str, Any] = _NONE,
    ) -> None:
        """A dataset that the run read: its hash, where it is from, what it was used for, its rows or other facts."""

    def register(
        self, package: Path, model: str, alias: str | None, report: Path | None = None
    ) -> RegisteredVersion | None:
        """Make the package a version of a registered model and point the alias at it; the same package again is the
        same version. With a report (``report.json``), the version gets its model card and its verdict, and the alias
        only if that lets it through. None from a tracker without a registry.

        Raises:
            NotRegisteredError: the server is away; the wish is kept and ``recmtl tracking sync`` fulfils it.
        """

    def flush(self) -> None:
        """Make all that was told so far survive a kill, and send it if the server is there."""

    def close(self) -> None:
        """Flush and stop, without saying that the run is over: a later stage goes on with it."""

    def finish(self, status: Status = "FINISHED") -> None:
        """The run is over: say how it ended, and close."""


class NullTracker:
    """Forgets everything."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Forget."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Forget."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Forget."""

    def artifact(self, path: Path, name: str | None = None) -> None:
        """Forget."""

    def dataset(
        self,
        name: str,
        digest: str,
        *,
        source: str,
        context: str = "training",
        details: Mapping[str, Any] = _NONE,
    ) -> None:
        """Forget."""

    def register(
        self, package: Path, model: str, alias: str | None, report: Path | None = None
    ) -> RegisteredVersion | None:
        """Register nothing."""
        return None

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def finish(self, status: Status = "FINISHED") -> None:
        """Do nothing."""


@dataclass
class InMemoryTracker:
    """Keeps everything in plain attributes: for tests and notebooks."""

    parameters: dict[str, str] = field(default_factory=dict)
    points: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Metric to its (step, value) points."""
    labels: dict[str, str] = field(default_factory=dict)
    """Tags."""
    artifacts: dict[str, Path] = field(default_factory=dict)
    datasets: dict[str, str] = field(default_factory=dict)
    """Dataset to its digest."""
    registered: list[tuple[Path, str, str | None]] = field(default_factory=list)
    flushes: int = 0
    status: Status | None = None

    def params(self, values: Mapping[str, Any]) -> None:
        """Keep."""
        for name, value in flatten(values):
            self.parameters.setdefault(name, value)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Keep, unless the metric has a point at this step or later."""
        for name, value in values.items():
            points = self.points.setdefault(name, [])
            if not points or points[-1][0] < step:
                points.append((step, float(value)))

    def tags(self, values: Mapping[str, str]) -> None:
        """Keep."""
        self.labels.update(values)

    def artifact(self, path: Path, name: str | None = None) -> None:
        """Keep the path."""
        self.artifacts[name or path.name] = path

    def dataset(
        self,
        name: str,
        digest: str,
        *,
        source: str,
        context: str = "training",
        details: Mapping[str, Any] = _NONE,
    ) -> None:
        """Keep the digest."""
        self.datasets[name] = digest

    def register(
        self, package: Path, model: str, alias: str | None, report: Path | None = None
    ) -> RegisteredVersion | None:
        """Note the wish and count versions from 1."""
        self.registered.append((package, model, alias))
        return RegisteredVersion(model, sum(1 for _, name, _ in self.registered if name == model), alias)

    def flush(self) -> None:
        """Count."""
        self.flushes += 1

    def close(self) -> None:
        """Do nothing."""

    def finish(self, status: Status = "FINISHED") -> None:
        """Keep the status."""
        self.status = status


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested config data as dotted names and texts, secrets left out.

    A list of mappings goes by their ``name`` where they have one, else by position; a list of plain values is one text.
    """
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            parts = {
                str(item.get("name", index) if isinstance(item, Mapping) else index): item
                for index, item in enumerate(value)
            }
            yield from flatten(parts, f"{name}.")
        else:
            yield name, redact(str(value))
