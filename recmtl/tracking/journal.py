"""The run's own copy of all it tracked: what a server that is away, or a kill, cannot lose.

In: records (plain data). Out: ``journal.jsonl``, one JSON object a line, appended before anything is sent, and
``sent.json``: per store, its run id and how many bytes of the journal it acknowledged. What lies behind that mark is
sent again; the sender asks the store what it already has, so no point is doubled.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from recmtl import durable
from recmtl.errors import RunError

__all__ = ["Journal", "Sent", "is_over", "is_sent", "last_status", "wish_key"]


class Journal:
    """Records in the order in which they were told; safe to append to from several threads of one process.

    The first line is the run's own record: an id that outlives MLflow's, and when it began (milliseconds since 1970).
    A half-written last line, from a kill or a full disk, is cut off.
    """

    def __init__(self, folder: Path) -> None:
        durable.make_folder(folder)
        self.folder = folder
        self.path = folder / "journal.jsonl"
        self.last_step: dict[str, int] = {}
        """Metric to the step of its last point."""
        self.params: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.artifacts: dict[str, str] = {}
        """Artifact to the hash of the file when it was last told."""
        self.datasets: dict[str, str] = {}
        self.wishes: dict[tuple[str, str, str | None], int] = {}
        """What was wished to be registered to the byte behind the last wish for it: the ones before it are void."""
        self.status = "RUNNING"
        self._lock = threading.Lock()
        self._repair()
        self.run: dict[str, Any] = {}
        for end, record in self.records() if self.path.exists() else ():
            self.run = self.run or record
            self._remember(record, end)
        self._file = durable.files.open(self.path, "ab")
        durable.files.fsync(folder)
        if not self.run:
            self.run = {"kind": "run", "id": uuid.uuid4().hex, "time": now()}
            self.append(self.run)

    def append(self, record: Mapping[str, Any]) -> int:
        """Add a record; it survives this process from here on (and the machine after :meth:`sync`).

        Returns:
            The byte behind it.
        """
        with self._lock:
            start = self._file.seek(0, os.SEEK_END)
            try:
                # In one write to the operating system, so that a kill leaves whole lines.
                durable.files.write(self._file, json.dumps(record, ensure_ascii=False).encode() + b"\n")
            except OSError:
                self._file.truncate(start)  # or the next record would follow on half of this one
                raise
            end = self._file.tell()
            self._remember(record, end)
            return end

    def sync(self) -> None:
        """Wait until everything is on the disk."""
        with self._lock:
            durable.files.fsync(self.path)

    def records(self, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
        """The records from byte ``start`` on, each with the byte behind it.

        Raises:
            RunError: a line is damaged.
        """
        with self.path.open("rb") as file:
            file.seek(start)
            for number, line in enumerate(file):
                if not line.endswith(b"\n"):  # being appended at this moment
                    return
                start += len(line)
                try:
                    record = json.loads(line)
                    assert isinstance(record, dict)
                    assert "kind" in record
                except (ValueError, AssertionError, RecursionError) as error:
                    raise RunError(
                        f"{self.path}: damaged at record {number}; remove the folder to track anew"
                    ) from error
                yield start, record

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size

    def close(self) -> None:
        """Close the file; the journal takes no more records."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def _repair(self) -> None:
        if not self.path.exists():
            return
        with durable.files.open(self.path, "rb+") as file:
            end = file.seek(0, os.SEEK_END)
            position, tail = end, b""
            while position and b"\n" not in tail:
                position = max(position - 65536, 0)
                file.seek(position)
                tail = file.read(end - position)
            file.truncate(position + tail.rfind(b"\n") + 1)

    def _remember(self, record: Mapping[str, Any], end: int) -> None:
        match record["kind"]:
            case "metrics":
                for name in record["values"]:
                    self.last_step[name] = record["step"]
            case "params":
                self.params |= record["values"]
            case "tags":
                self.tags |= record["values"]
            case "artifact":
                self.artifacts[record["name"]] = record["sha256"]
            case "dataset":
                self.datasets[record["name"]] = record["digest"]
            case "register":
                self.wishes[wish_key(record)] = end
            case "status":
                self.status = record["status"]


class Sent:
    """``sent.json``: how far each store follows the journal, by its address without secrets.

    A damaged one is as none: the whole journal is sent again, and the stores are asked what they have of it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "sent.json"
        try:
            self._state: dict[str, Any] = _checked(json.loads(self.path.read_bytes()))
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            self._state = {"latest": None, "stores": {}}

    @property
    def latest(self) -> dict[str, Any] | None:
        """Where the run was last tracked: uri (without secrets), experiment, name; None before the first time."""
        latest: dict[str, Any] | None = self._state["latest"]
        return latest

    def aim(self, *, uri: str, experiment: str, name: str, secrets: bool) -> None:
        """Note where the run is tracked; ``secrets``: the address that was given holds more than ``uri`` says."""
        latest = {"uri": uri, "experiment": experiment, "name": name, "secrets": secrets}
        if latest != self.latest:
            self._state["latest"] = latest
            self._save()

    def get(self, uri: str, experiment: str) -> dict[str, Any]:
        """run_id (None before the run was made there), acknowledged bytes, registered versions."""
        fresh: dict[str, Any] = {"run_id": None, "acknowledged": 0, "registered": {}}
        fresh.update(self._state["stores"].get(f"{uri} {experiment}", {}))
        return fresh

    @property
    def farthest(self) -> int:
        """The bytes of the journal that the store which has most of it has acknowledged; 0 without any store."""
        return max((store["acknowledged"] for store in self._state["stores"].values()), default=0)

    def follows(self, size: int) -> bool:
        """Whether any store has acknowledged a journal of so many bytes."""
        return bool(self._state["stores"]) and self.farthest >= size

    def put(self, uri: str, experiment: str, **values: Any) -> None:
        """Change some of what :meth:`get` returns."""
        self._state["stores"][f"{uri} {experiment}"] = self.get(uri, experiment) | values
        self._save()

    def _save(self) -> None:
        durable.write_file(self.path, json.dumps(self._state, indent=2) + "\n")


def is_over(folder: Path) -> bool:
    """Whether a journal's run has come to its end and a store has all of it; nothing is opened to write.

    Raises:
        OSError: there is none.
    """
    path = folder / "journal.jsonl"
    return Sent(folder).follows(path.stat().st_size) and last_status(path) == "FINISHED"


def is_sent(folder: Path) -> bool:
    """Whether a store has all of a journal up to the first open wish to register; nothing is opened to write.

    An open wish is the last one of its kind that no store has acknowledged.

    Returns:
        False also where the journal ends in half a line, or is shorter than what was acknowledged.

    Raises:
        OSError: there is no journal.
    """
    path = folder / "journal.jsonl"
    size, start = path.stat().st_size, Sent(folder).farthest
    if start >= size:
        return start == size
    records: list[dict[str, Any]] = []
    with path.open("rb") as lines:
        lines.seek(start)
        for line in lines:
            try:
                records.append(json.loads(line if line.endswith(b"\n") else b""))
            except (ValueError, RecursionError):
                return False
    try:
        last = {wish_key(record): number for number, record in enumerate(records) if record["kind"] == "register"}
        for number, record in enumerate(records):
            if record["kind"] != "register":
                return False
            if last[wish_key(record)] == number:
                return True
    except (KeyError, TypeError):
        return False
    return False


def last_status(path: Path) -> str | None:
    """How the run of a journal ended, or RUNNING; None where it does not say."""
    found = None
    with path.open("rb") as lines:
        for line in lines:
            if b'"status"' in line:
                with suppress(ValueError, TypeError, AttributeError, RecursionError):
                    record = json.loads(line)
                    found = record["status"] if record.get("kind") == "status" else found
    return found


def wish_key(record: Mapping[str, Any]) -> tuple[str, str, str | None]:
    """Package, model and alias of a wish to register."""
    return record["package"], record["model"], record["alias"]


def _checked(state: Any) -> dict[str, Any]:
    """The state; ValueError, KeyError or TypeError where it is none."""
    latest = state["latest"]
    if latest is not None:
        wrong = [key for key in ("uri", "experiment", "name") if not isinstance(latest[key], str)]
        if wrong or not isinstance(latest["secrets"], bool):
            raise TypeError("latest")
    for store in state["stores"].values():
        if not isinstance(store["acknowledged"], int) or not isinstance(store.get("registered", {}), dict):
            raise TypeError("stores")
    return dict(state)


def now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)
