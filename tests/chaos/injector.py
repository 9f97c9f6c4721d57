"""Disturbs a command's changes to files, by the preloaded library shim.c, and works out what a loss of power leaves.

In: a folder, and which call of which kind is to go wrong. Out: after the command, which call it was.
:func:`lose_power` replays the log of changes: what was not flushed is gone.
"""

import ctypes
import mmap
import os
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["CLASSES", "KINDS", "Disturbance", "Fired", "State", "build_shim", "lose_power"]

CLASSES = ("open", "write", "fsync", "rename", "mkdir", "unlink")
"""In the order of shim.c."""
KINDS = ("count", "error", "full", "kill", "torn")
"""count: disturb nothing. error: one call fails. full: it and all later ones but removals fail. kill: SIGKILL in place
of the call. torn: SIGKILL in the middle of it."""


class _Layout(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("target", ctypes.c_int64),
        ("counted", ctypes.c_int64),
        ("classes", ctypes.c_int32),
        ("fired", ctypes.c_int32),
        ("fired_class", ctypes.c_int32),
        ("dead", ctypes.c_int32),
        ("trace", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("sequence", ctypes.c_int64),
        ("root", ctypes.c_char * 512),
        ("log", ctypes.c_char * 512),
        ("shadow", ctypes.c_char * 512),
        ("path", ctypes.c_char * 1024),
    ]


@dataclass(frozen=True)
class Disturbance:
    """What goes wrong: the ``target``-th call (from 1; 0: none) of some classes, in one of the ``KINDS``."""

    kind: str = "count"
    target: int = 0
    error: int = 0
    """errno of kinds error and full."""
    classes: tuple[str, ...] = CLASSES


@dataclass(frozen=True)
class Fired:
    """What became of it."""

    counted: int
    """Counted calls, until the end or the kill."""
    fired: bool
    call: str
    path: str


class State:
    """The memory that harness and command share, and the folders for the log beside it.

    Args:
        place: a folder outside of ``root``, on the same file system, for this object alone.
        root: calls on what lies under it count.
    """

    def __init__(self, place: Path, root: Path) -> None:
        self.place, self.root = place, root
        self.path, self.log, self.shadow = place / "state", place / "log", place / "shadow"

    def arm(self, disturbance: Disturbance, *, trace: bool = False) -> None:
        """Begin anew; ``trace``: keep what :func:`lose_power` needs."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.shadow.mkdir(parents=True)
        layout = _Layout(
            kind=KINDS.index(disturbance.kind),
            error=disturbance.error,
            target=disturbance.target,
            classes=sum(1 << CLASSES.index(name) for name in disturbance.classes),
            trace=trace,
            root=os.fsencode(self.root),
            log=os.fsencode(self.log),
            shadow=os.fsencode(self.shadow),
        )
        self.path.write_bytes(bytes(layout))

    def read(self) -> Fired:
        """What happened so far."""
        layout = _Layout.from_buffer_copy(self.path.read_bytes())
        call = CLASSES[layout.fired_class] if layout.fired else ""
        return Fired(layout.counted, bool(layout.fired), call, os.fsdecode(layout.path))

    def calls(self) -> list[tuple[str, str]]:
        """Class and path of every counted call, where it was armed to count, with ``trace``."""
        lines = (line.split("\t") for line in self.log.read_text().splitlines() if line.startswith("#"))
        return [(CLASSES[int(number)], path) for _, number, path in lines]

    def stop(self) -> None:
        """Have every process that is left of the command killed at its next call."""
        with self.path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            _Layout.from_buffer(memory).dead = 1


def build_shim(folder: Path) -> Path | None:
    """The compiled library in ``folder``; None where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or os.uname().sysname != "Linux":
        return None
    made = folder / "shim.so"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(made), str(Path(__file__).parent / "shim.c"), "-ldl"]
    subprocess.run(command, check=True)
    return made


@dataclass
class _Log:
    entries: list[tuple[str, ...]]
    durable: set[int] = field(default_factory=set)
    """Entries whose folder was flushed afterwards."""
    files: dict[int, bytes] = field(default_factory=dict)
    """Inode to the content that was flushed last."""


def lose_power(state: State, *, names: bool, spared: str = "store") -> None:
    """Leave of the folder what a loss of power would, after the command has ended.

    File contents go back to what they were when they were last flushed; of new files that never were, nothing stays.

    Args:
        state: as it was armed with ``trace``.
        names: also take back, last first, every making, renaming and removing of a name whose folder was not flushed
            afterwards. A file system may do either: a journal keeps names and loses contents, and promises neither.
        spared: a folder in it that loses nothing: the tracking store stands for a server, and MLflow writes it.
    """
    log = _read(state)
    kept = state.root / spared
    safe = {str(path.lstat().st_ino) for path in (kept, *_walk(kept)) if path.exists()}
    again: dict[str, str] = {}  # folders that were removed and are back, with another number
    if names:
        for number in reversed(range(len(log.entries))):
            if number not in log.durable and log.entries[number][1] not in safe:
                _take_back(log.entries[number], state, again)
    done: set[int] = set()
    for path in _walk(state.root):
        inode = path.lstat().st_ino
        if inode in log.files and inode not in done and str(inode) not in safe and not path.is_symlink():
            done.add(inode)
            if path.read_bytes() != log.files[inode]:
                path.write_bytes(log.files[inode])


def _read(state: State) -> _Log:
    lines = state.log.read_text().splitlines() if state.log.exists() else []
    entries = [tuple(line.split("\t")) for line in lines]
    log = _Log(entries)
    waiting: dict[str, list[int]] = defaultdict(list)
    for number, (what, *rest) in enumerate(entries):
        match what:
            case "C":
                log.files[int(rest[2])] = b""
            case "O":
                if int(rest[0]) not in log.files:
                    log.files[int(rest[0])] = (state.shadow / rest[1]).read_bytes()
            case "F":
                log.files[int(rest[0])] = (state.shadow / rest[1]).read_bytes()
            case "Y":
                log.durable.update(waiting.pop(rest[0], ()))
            case "M":
                waiting.pop(rest[2], None)  # the number of a folder that has gone may be given again
        if what in "CMUDL":
            waiting[rest[0]].append(number)
        elif what in "RX":
            waiting[rest[2]].append(number)
        else:
            log.durable.add(number)
    return log


def _take_back(entry: Sequence[str], state: State, again: dict[str, str]) -> None:
    what, *rest = entry
    there = {str(path.lstat().st_ino): path for path in (state.root, *_walk(state.root)) if path.is_dir()}
    folders = there | {before: there[now] for before, now in again.items() if now in there}
    if rest[0] not in folders or (what in "RX" and rest[2] not in folders):
        return  # the folder itself has gone
    path = folders[rest[0]] / rest[1]
    match what:
        case "C" | "L":
            path.unlink(missing_ok=True)
        case "M":
            shutil.rmtree(path, ignore_errors=True)
        case "U":
            if rest[2] != "0" and not os.path.lexists(path):
                os.link(state.shadow / rest[2], path, follow_symlinks=False)
        case "D":
            path.mkdir(exist_ok=True)
            again[rest[2]] = str(path.lstat().st_ino)
        case "R":
            new = folders[rest[2]] / rest[3]
            if os.path.lexists(new) and not os.path.lexists(path):
                new.rename(path)
                if rest[4] != "0":
                    os.link(state.shadow / rest[4], new, follow_symlinks=False)


def _walk(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        for name in (*names, *files):
            yield Path(folder) / name
