"""A run's folder: who may write in it, what it already holds, and what of it belongs to which config and data.

In: a folder and a config. Out: :class:`RunFolder`, held under a lock, whose state file says which stages are done. The
same config and data find their own unfinished run here; another config or other data is refused.

A stage is noted as done when all that it leaves is on the disk and with the tracker, and not before: a stage that a
kill cut short is done again, and every stage may be done twice.
"""

import hashlib
import json
import re
import resource
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recmtl import durable
from recmtl.bounded import parse_json, read_bytes
from recmtl.errors import RunError, UserError, unwritable
from recmtl.group import ONE, Group
from recmtl.locks import held
from recmtl.progress import Progress, Silent
from recmtl.yaml_text import read_yaml

__all__ = ["RunFolder", "holds_run", "open_run"]

_STATE = "run.json"
_FORMAT = 2
"""Raised when a run of an older recmtl cannot go on: those of format 2 record how values are read."""
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
_OLDER_LITTER = re.compile(
    rf"\.({'|'.join(re.escape(name) for name in _OWN)})\.\d+\.tmp|\.package\.[0-9a-f]{{8}}\.(tmp|old)|\.scored-\w+"
)
"""Temporary names of recmtl 0.1, which did not note whose they are."""


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
        """Note that a stage is done, with what later callers need to know of it (plain data).

        Call it last: whatever the stage leaves must be on the disk by then, for nobody does it after a kill.
        """
        self._state["done"][stage] = detail if detail is not None else True
        self._save()

    def reopen(self, *stages: str) -> None:
        """Note that stages are to be done again, those of them that were done."""
        done = [stage for stage in stages if stage in self._state["done"]]
        for stage in done:
            del self._state["done"][stage]
        if done:
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
        """``metrics.json``, or an empty record.

        Raises:
            RunError: it is not as it was written.
        """
        try:
            content = read_bytes(self.path / "metrics.json")
            noted = self._state.get("metrics")  # none in a run of recmtl 0.1
            if self._writes and noted is not None and _hash(content) not in noted:
                raise ValueError("it is not as it was written")
            metrics = parse_json(content, finite=False)
            if not isinstance(metrics, dict):
                raise ValueError("it holds no JSON object")
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError) as error:
            raise RunError(f"{self.path / 'metrics.json'}: damaged ({error}); `recmtl run` writes it anew") from error
        return metrics

    def update_metrics(self, parts: Mapping[str, Any], *, anew: bool = False) -> dict[str, Any]:
        """Replace these parts of ``metrics.json``, with ``anew`` all of it, and write it whole; returns all of it."""
        metrics = dict(parts) if anew else self.read_metrics() | dict(parts)
        if self._writes:
            path = self.path / "metrics.json"
            content = (json.dumps(metrics, indent=2, allow_nan=False) + "\n").encode()
            # Both are right until the next time: a kill leaves the old one, or the new one.
            self._state["metrics"] = [*([_hash(path.read_bytes())] if path.is_file() else []), _hash(content)]
            self._save()
            durable.write_file(path, content)
        return metrics

    def _save(self) -> None:
        if self._writes:
            state = {**self._state, "digest": _digest(self._state)}
            durable.write_file(self.path / _STATE, json.dumps(state, indent=2) + "\n")


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
    progress: Progress | None = None,
) -> Iterator[RunFolder]:
    """Hold a run's folder, made where it does not exist.

    Args:
        path: the folder.
        config: the resolved config as plain data, to tell what differs from the run that is there.
        config_yaml: the same as YAML; written to ``config.resolved.yaml``.
        fingerprint: of the config; what decides whether the run in the folder is this one.
        overwrite: remove what a run left here, of whatever config, and begin anew.
        group: the ranks that train; rank 0 holds the folder for all.
        progress: is told where the state is damaged, and the run goes on from what else is there.

    Raises:
        UserError: another process works in the folder; it holds a run of another config and ``overwrite`` is not set;
            it cannot be made.
    """
    if group.rank:
        yield RunFolder(path, group.broadcast({}), writes=False)
        return
    try:
        durable.make_folder(path)
    except OSError as error:
        raise unwritable(f"--output {path}: cannot make this folder", error) from error
    try:  # before the lock, which takes a folder that refuses it for one that is held
        (path / ".lock").touch()
    except OSError as error:
        raise unwritable(f"--output {path}: cannot write in this folder", error) from error

    def busy() -> None:
        raise UserError(f"{path}: another recmtl process works in this folder; wait for it, or give another --output")

    with held(path / ".lock", busy):
        _tidy(path)
        state = None if overwrite else _read_state(path, config_yaml, fingerprint, progress or Silent())
        if state is not None and state["config"] != fingerprint:
            raise UserError(
                f"{path}: this folder holds a run of another config ({_difference(path, config)}); give another "
                "--output, or --overwrite to begin anew"
            )
        if state is None:
            _clear(path)
            state = _fresh(fingerprint)
        folder = RunFolder(path, state)
        durable.write_file(path / "config.resolved.yaml", config_yaml)
        folder._save()
        folder.follow(group)
        yield folder


def _peak_memory_mb() -> float:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kib / (1024 if sys.platform != "darwin" else 1024**2), 1)


def _fresh(fingerprint: str) -> dict[str, Any]:
    return {"format": _FORMAT, "config": fingerprint, "data": None, "done": {}, "seconds": {}}


def _read_state(path: Path, config_yaml: str, fingerprint: str, progress: Progress) -> dict[str, Any] | None:
    """The state of the run that is here; None for none. A damaged one is made anew where the config is this one's."""
    try:
        state = parse_json(read_bytes(path / _STATE), finite=False)
        if state["format"] in range(1, _FORMAT):
            raise UserError(
                f"{path}: the run in this folder was begun by an older recmtl, and this one cannot go on from its "
                f"checkpoints; `recmtl run CONFIG --output {shlex.quote(str(path))} --overwrite` begins it "
                "anew, and its package still serves until then"
            )
        if state["format"] != _FORMAT:
            raise UserError(f"{path}: this run was made by a newer recmtl; give another --output, or --overwrite")
        _check_state(state)
        return {key: value for key, value in state.items() if key != "digest"}
    except FileNotFoundError:
        return None
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if _text_of(path / "config.resolved.yaml") != config_yaml:
            raise RunError(
                f"{path / _STATE}: damaged ({error}), and nothing says that the run in this folder is of this config; "
                "give another --output, or --overwrite to begin anew"
            ) from error
        # Its checkpoints say themselves of which config and data they are, and all stages may be done twice.
        progress.warn(f"{path / _STATE}: damaged ({error}); the run goes on at its last checkpoint")
        return _fresh(fingerprint)


def _check_state(state: Any) -> None:
    """Raise ValueError, KeyError or TypeError where this is no state, or not as it was written."""
    digest = state.get("digest")  # none in a run of recmtl 0.1
    if digest is not None and digest != _digest({key: value for key, value in state.items() if key != "digest"}):
        raise ValueError("it does not have the hash that it states")
    if not (isinstance(state["config"], str) and isinstance(state["data"], str | None)):
        raise TypeError("config and data must be texts")
    if not (isinstance(state["done"], dict) and isinstance(state["seconds"], dict)):
        raise TypeError("done and seconds must be objects")
    if not all(isinstance(seconds, int | float) for seconds in state["seconds"].values()):
        raise TypeError("seconds must be numbers")


def _digest(state: Mapping[str, Any]) -> str:
    return _hash(json.dumps(state, sort_keys=True).encode())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _clear(path: Path) -> None:
    # The state goes first: what a kill leaves behind is then no run at all, and is cleared by the next.
    for name in _OWN:
        durable.remove(path / name)


def _tidy(path: Path) -> None:
    """Remove what killed processes left here; the run's lock is held, so none is at work."""
    durable.recover(path / "package")
    durable.remove_litter(path, held=True)
    for litter in [found for found in path.iterdir() if _OLDER_LITTER.fullmatch(found.name)]:
        if litter.suffix != ".old" or (path / "package").exists():
            durable.remove(litter)


def _difference(path: Path, config: Mapping[str, Any]) -> str:
    """The first few dotted keys in which the folder's config and this one differ."""
    try:
        before = read_yaml(path / "config.resolved.yaml")
    except UserError:
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
