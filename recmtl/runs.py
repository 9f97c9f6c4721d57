"""A run's folder: who may write in it, what it already holds, and what of it belongs to which config and data.

In: a folder and a config. Out: :class:`RunFolder`, held under a lock, whose state file says which stages are done. The
same config and data find their own unfinished run here; another config or other data is refused.
"""

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from recmtl.errors import RunError, UserError
from recmtl.group import ONE, Group
from recmtl.locks import held

__all__ = ["RunFolder", "holds_run", "open_run", "write_atomically"]

_STATE = "run.json"
_FORMAT = 1
_OWN = (
    "run.json",
    "config.resolved.yaml",
    "sharding.json",
    "metrics.json",
    "report.md",
    "report.html",
    "report.json",
    "checkpoints",
    "package",
    "tracking",
)
"""All that a run writes here, and so all that ``--overwrite`` may remove; logs, prepared data and the tracking store
may lie in the same folder and stay."""


class RunFolder:
    """A run's folder, held by this process alone. Made by :func:`open_run`.

    Where several ranks train, rank 0 holds it and writes; the others keep what they note of it to themselves.
    """

    def __init__(self, path: Path, state: dict[str, Any], *, writes: bool = True) -> None:
        self.path = path
        self._state = state
        self._writes = writes

    @property
    def checkpoints(self) -> Path:
        """Where the trainer keeps its checkpoints."""
        return self.path / "checkpoints"

    @property
    def package(self) -> Path:
        """Where the model package lies."""
        return self.path / "package"

    @property
    def tracking(self) -> Path:
        """Where the tracker keeps its journal."""
        return self.path / "tracking"

    @property
    def identity(self) -> str:
        """What a checkpoint must have been made from to be resumed here: hex of config and data."""
        return f"{self._state['config']}-{self._state['data']}"

    def is_done(self, stage: str) -> bool:
        """Whether a stage was finished, here and with this config and data."""
        return stage in self._state["done"]

    def detail(self, stage: str) -> Any:
        """What :meth:`finish` was told about a finished stage; None for any other."""
        return self._state["done"].get(stage)

    def follow(self, group: Group) -> None:
        """Take up what rank 0 has noted; every rank calls this."""
        self._state = group.broadcast(self._state)

    def finish(self, stage: str, detail: Any = None) -> None:
        """Note that a stage is done, with what later callers need to know of it (plain data)."""
        self._state["done"][stage] = detail if detail is not None else True
        self._save()

    def reopen(self, *stages: str) -> None:
        """Note that stages are to be done again."""
        for stage in stages:
            self._state["done"].pop(stage, None)
        self._save()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to the stage's seconds, also over resumed runs, and note the highest memory."""
        start = time.monotonic()
        try:
            yield
        finally:
            seconds = self._state["seconds"]
            seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - start, 3)
            self._state["peak_memory_mb"] = max(self.peak_memory_mb or 0.0, _peak_memory_mb())
            self._save()

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per stage so far."""
        return dict(self._state["seconds"])

    @property
    def peak_memory_mb(self) -> float | None:
        """The highest resident memory of this process over its stages, in MiB; None before the first has ended."""
        peak: float | None = self._state.get("peak_memory_mb")
        return peak

    def bind_data(self, fingerprint: str) -> None:
        """Tie the run to its prepared data.

        Raises:
            UserError: the run here was made from other data.
        """
        before = self._state["data"]
        if before not in (None, fingerprint):
            raise UserError(
                f"{self.path}: the run in this folder was made from other data (its inputs or their preparation have "
                "changed since); give another --output, or --overwrite to begin anew"
            )
        self._state["data"] = fingerprint
        self._save()

    def read_metrics(self) -> dict[str, Any]:
        """``metrics.json``, or an empty record."""
        try:
            metrics = json.loads((self.path / "metrics.json").read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise RunError(
                f"{self.path / 'metrics.json'}: damaged ({error}); `recmtl evaluate` writes it anew"
            ) from error
        assert isinstance(metrics, dict)
        return metrics

    def update_metrics(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Replace these parts of ``metrics.json`` and write it whole; returns all of it."""
        metrics = self.read_metrics() | dict(parts)
        if self._writes:
            write_atomically(self.path / "metrics.json", json.dumps(metrics, indent=2, allow_nan=False) + "\n")
        return metrics

    def _save(self) -> None:
        if self._writes:
            write_atomically(self.path / _STATE, json.dumps(self._state, indent=2) + "\n")


def holds_run(path: Path) -> bool:
    """Whether a run, of whatever config and however far, is in this folder."""
    return (path / _STATE).is_file()


@contextmanager
def open_run(
    path: Path,
    *,
    config: Mapping[str, Any],
    config_yaml: str,
    fingerprint: str,
    overwrite: bool = False,
    group: Group = ONE,
) -> Iterator[RunFolder]:
    """Hold a run's folder, made where it does not exist.

    Args:
        path: the folder.
        config: the resolved config as plain data, to tell what differs from the run that is there.
        config_yaml: the same as YAML; written to ``config.resolved.yaml``.
        fingerprint: of the config; what decides whether the run in the folder is this one.
        overwrite: remove what a run left here, of whatever config, and begin anew.
        group: the ranks that train; rank 0 holds the folder for all.

    Raises:
        UserError: another process works in the folder; it holds a run of another config and ``overwrite`` is not set;
            it cannot be made.
    """
    if group.rank:
        yield RunFolder(path, group.broadcast({}), writes=False)
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {path}: cannot make this folder ({error.strerror})") from error
    try:  # before the lock, which takes a folder that refuses it for one that is held
        (path / ".lock").touch()
    except OSError as error:
        raise UserError(f"--output {path}: cannot write in this folder ({error.strerror})") from error

    def busy() -> None:
        raise UserError(f"{path}: another recmtl process works in this folder; wait for it, or give another --output")

    with held(path / ".lock", busy):
        state = None if overwrite else _read_state(path)
        if state is not None and state["config"] != fingerprint:
            raise UserError(
                f"{path}: this folder holds a run of another config ({_difference(path, config)}); give another "
                "--output, or --overwrite to begin anew"
            )
        if state is None:
            _clear(path)
            state = {"format": _FORMAT, "config": fingerprint, "data": None, "done": {}, "seconds": {}}
        folder = RunFolder(path, state)
        write_atomically(path / "config.resolved.yaml", config_yaml)
        folder._save()
        folder.follow(group)
        yield folder


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a killed process, sees the old one or the new one and no half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _peak_memory_mb() -> float:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kib / (1024 if sys.platform != "darwin" else 1024**2), 1)


def _read_state(path: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((path / _STATE).read_text())
        if state["format"] != _FORMAT:
            raise UserError(f"{path}: this run was made by a newer recmtl; give another --output, or --overwrite")
        assert {"config", "data", "done", "seconds"} <= set(state)
        return dict(state)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        if isinstance(error, UserError):
            raise
        raise RunError(f"{path / _STATE}: damaged ({error}); remove the folder, or give another --output") from error


def _clear(path: Path) -> None:
    # The state goes first: what a kill leaves behind is then no run at all, and is cleared by the next.
    for name in _OWN:
        target = path / name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def _difference(path: Path, config: Mapping[str, Any]) -> str:
    """The first few dotted keys in which the folder's config and this one differ."""
    try:
        before = yaml.safe_load((path / "config.resolved.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return "its config.resolved.yaml cannot be read"
    old, new = dict(_flat(before)), dict(_flat(config))
    keys = [key for key in dict.fromkeys([*new, *old]) if old.get(key) != new.get(key) and key != "output"]
    shown = [f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in keys[:3]]
    return "; ".join(shown) + (f"; and {len(keys) - 3} more" if len(keys) > 3 else "")


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            name = item.get("name", index) if isinstance(item, Mapping) else index
            yield from _flat(item, f"{prefix}.{name}")
    else:
        yield prefix, value
