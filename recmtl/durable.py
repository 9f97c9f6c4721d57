"""Files and folders that survive a kill, a full disk or a power loss: whole, or as they were before.

In: bytes, or a folder that somebody has filled. Out: a file or a folder in its place, flushed to the disk. There are
three ways to write, and all output of recmtl's own goes through one of them:

- :func:`write_file` for content that is at hand: a temporary file, write, fsync, rename, fsync of the parent;
- :func:`replacing_file` for a file that a library writes (Polars, Arrow, safetensors): the same around its writer;
- :func:`replacing` for a folder: it is filled under a temporary name, then :func:`commit_folder` flushes every file
  and folder of it and renames it into place.

Temporary names say whose they are (host, process, its start), so that :func:`remove_litter` removes what a killed
process left and nothing that a living one is writing::

    .NAME.OWNER.tmp     unfinished: worthless once its owner is dead
    .NAME.OWNER.new     a complete folder on its way into place; recover() puts it there
    .NAME.OWNER.old     what was in the place before; recover() puts it back where there is no new one

**The seam for tests.** Every operation goes through the module's object :data:`files` (:class:`Files`: ``open``,
``write``, ``fsync``, ``rename``, ``link``, ``mkdir``, ``unlink``, ``rmdir``). A test that wants the n-th operation to
fail or to kill the process replaces it: ``monkeypatch.setattr(durable, "files", Failing())``, where ``Failing`` is a
subclass. Nothing keeps a reference to the object or to its methods.
"""

import errno
import hashlib
import itertools
import os
import platform
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, Literal, cast

import psutil

from recmtl.failures import writing

__all__ = [
    "Files",
    "commit_file",
    "commit_folder",
    "files",
    "flush_tree",
    "make_folder",
    "recover",
    "remove",
    "remove_litter",
    "replacing",
    "replacing_file",
    "scratch",
    "write_file",
]

_STRANGERS_DAYS = 7.0
"""Days without a change after which litter of another host counts as a dead process's: its processes cannot be seen."""
_LITTER = re.compile(
    r"\.(?P<name>.+)\.(?P<owner>(?P<host>[0-9a-f]{6})-(?P<pid>\d+)-(?P<start>\d+))-\d+\.(?P<kind>tmp|new|old)",
    re.DOTALL,
)
_numbers = itertools.count()


class Files:
    """The operations on the file system, one method each; tests replace :data:`files` by a subclass.

    All raise OSError with the path in ``filename``.
    """

    def open(self, path: Path, mode: Literal["wb", "ab", "rb+"]) -> BinaryIO:
        """Open a file to write in it, without a buffer: what fails to be written is not tried again later."""
        return cast(BinaryIO, path.open(mode, buffering=0))

    def write(self, file: BinaryIO, data: bytes | memoryview) -> None:
        """Write all of the data and hand it to the operating system: it outlives the process, not yet the machine."""
        with writing(Path(file.name)):
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]

    def fsync(self, path: Path) -> None:
        """Wait until a file's content, or a folder's list of names, is on the disk."""
        handle = os.open(path, os.O_RDONLY)
        try:
            with writing(path):
                os.fsync(handle)
        except OSError as error:
            # Some network file systems do not flush folders, and say that they cannot.
            if not (error.errno in (errno.EINVAL, errno.ENOTSUP) and stat.S_ISDIR(os.fstat(handle).st_mode)):
                raise
        finally:
            os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        """Rename; a file replaces a file that is there, a folder only an empty folder."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """A second name for a file."""
        target.hardlink_to(source)

    def mkdir(self, path: Path) -> None:
        """Make one folder, whose parent is there."""
        path.mkdir()

    def unlink(self, path: Path) -> None:
        """Remove a file or a link."""
        path.unlink()

    def rmdir(self, path: Path) -> None:
        """Remove an empty folder."""
        path.rmdir()


files = Files()
"""What every function here does its work with."""


# Files


def write_file(path: Path, content: bytes | memoryview | str) -> None:
    """Write a file so that a reader, a killed process and a machine without power leave the old one or the new one.

    Args:
        path: the file; its folder exists.
        content: a text is written as UTF-8.

    Raises:
        OSError: the disk refuses; what was there before is still there.
    """
    with replacing_file(path) as unfinished:
        file = files.open(unfinished, "wb")
        try:
            files.write(file, content.encode() if isinstance(content, str) else content)
        finally:
            file.close()


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, for a library to write to; it takes the place at the end.

    On an error it is removed, and what was there before is still there.

    Raises:
        OSError: the disk refuses.
    """
    unfinished = _named(path, "tmp")
    try:
        with writing(unfinished, reads=True):
            yield unfinished
        commit_file(unfinished, path)
    except BaseException:
        with suppress(OSError):
            files.unlink(unfinished)
        raise


def commit_file(unfinished: Path, path: Path) -> None:
    """Flush a file that is complete, and rename it to ``path`` in the same file system.

    Raises:
        OSError: the disk refuses; what was there before is still there.
    """
    files.fsync(unfinished)
    files.rename(unfinished, path)
    files.fsync(path.parent)


# Folders


def make_folder(path: Path) -> None:
    """Make a folder and the ones above it that are missing; one that is there, or made meanwhile, is taken as it is.

    Raises:
        OSError: the disk refuses, or a file has one of the names.
    """
    missing = []
    here = path.absolute()
    while not here.is_dir():
        missing.append(here)
        if here == here.parent:
            break
        here = here.parent
    for folder in reversed(missing):
        try:
            files.mkdir(folder)
        except FileExistsError:
            if not folder.is_dir():
                raise
        else:
            files.fsync(folder.parent)


@contextmanager
def replacing(place: Path) -> Iterator[Path]:
    """An empty folder beside ``place`` that takes its place at the end (:func:`commit_folder`); removed on an error.

    Raises:
        OSError: the disk refuses; what was there before is still there.
    """
    place = place.absolute()
    make_folder(place.parent)
    recover(place)
    remove_litter(place.parent, place.name)
    building = _named(place, "tmp")
    files.mkdir(building)
    try:
        with writing(building, reads=True):
            yield building
        commit_folder(building, place)
    finally:
        with suppress(OSError):
            remove(building)


def commit_folder(building: Path, place: Path) -> None:
    """Flush a complete folder, rename it to ``place``, and remove what was there before.

    Killed at any point, the old folder or the new one is in the place, or :func:`recover` puts the new one there. A
    reader that finds none in the moment between two renames may call :func:`recover` itself.

    Args:
        building: in the same folder as ``place``; whole.
        place: a folder, or nothing.

    Raises:
        OSError: the disk refuses; what was there before is still there.
    """
    place = place.absolute()
    flush_tree(building)
    new, old = _named(place, "new"), _named(place, "old")
    files.rename(building, new)
    files.fsync(place.parent)  # from here on a power loss leaves the new one under a name that recover() knows
    aside = False
    try:
        if place.exists():
            files.rename(place, old)
            aside = True
        files.rename(new, place)
    except OSError:
        if new.exists() or not place.exists():  # else a reader has put the new one into place: recover()
            with suppress(OSError):
                if aside and not place.exists():
                    files.rename(old, place)
            with suppress(OSError):
                files.rename(new, building)
            raise
    files.fsync(place.parent)
    if aside:
        with suppress(OSError):  # else it is litter, which the next command removes
            remove(old)


def recover(place: Path) -> None:
    """Finish what a kill inside :func:`commit_folder` left undone; nothing where the place is there or never was.

    Several processes may call it at once, also while the one that commits is alive.
    """
    if place.exists():
        return
    place = place.absolute()
    found: dict[str, list[Path]] = {"new": [], "old": []}
    for path, match in _litter(place.parent, place.name):
        if match["kind"] in found and path.is_dir():
            found[match["kind"]].append(path)
    for kind in ("new", "old"):
        for path in sorted(found[kind], key=_changed, reverse=True):
            with suppress(OSError):  # put there by another process
                files.rename(path, place)
                files.fsync(place.parent)
            if place.exists():
                return


def flush_tree(folder: Path) -> None:
    """Flush every file of a folder, then the folders, the deepest first."""
    for here, _, names in os.walk(folder, topdown=False):
        for name in names:
            if not (Path(here) / name).is_symlink():
                files.fsync(Path(here) / name)
        files.fsync(Path(here))


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it; nothing where there is none.

    Raises:
        OSError: the disk refuses.
    """
    if path.is_symlink() or path.is_file():
        with suppress(FileNotFoundError):
            files.unlink(path)
        return
    for here, folders, names in os.walk(path, topdown=False):
        for name in [*names, *(one for one in folders if (Path(here) / one).is_symlink())]:
            with suppress(FileNotFoundError):
                files.unlink(Path(here) / name)
        with suppress(FileNotFoundError):
            files.rmdir(Path(here))


@contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """An empty folder in ``folder`` for what is too large for memory, removed at the end.

    What a kill leaves of it, :func:`remove_litter` removes.
    """
    work = _named(folder.absolute() / name, "tmp")
    files.mkdir(work)
    try:
        with writing(work, reads=True):
            yield work
    finally:
        with suppress(OSError):
            remove(work)


# Litter


def remove_litter(folder: Path, name: str | None = None, *, held: bool = False) -> None:
    """Remove what killed processes left in a folder under temporary names; what has to be recovered stays.

    Args:
        folder: where to look; not below it. Where it does not exist, nothing is done.
        name: only what stands for this name; None: for any.
        held: the caller holds the lock under which alone these names are written, and writes none at this moment: no
            owner is asked for.
    """
    for path, match in _litter(folder, name):
        if match["kind"] != "tmp" and not (folder / match["name"]).exists():
            continue
        if not (held or _is_dead(match, path)):
            continue
        with suppress(OSError):  # another process removes it too
            remove(path)


def _litter(folder: Path, name: str | None) -> list[tuple[Path, re.Match[str]]]:
    try:
        there = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [(path, match) for path in there if (match := _LITTER.fullmatch(path.name)) is not None]
    return [(path, match) for path, match in found if name is None or match["name"] == name]


def _named(path: Path, kind: Literal["tmp", "new", "old"]) -> Path:
    return path.with_name(f".{path.name}.{_owner()}-{next(_numbers)}.{kind}")


def _owner() -> str:
    pid = os.getpid()  # not cached: a forked child is another process
    return f"{_host()}-{pid}-{_start_of(pid)}"


@cache
def _host() -> str:
    """Where a process number means this process: the machine, and the container in it."""
    try:
        container = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        container = ""
    return hashlib.sha256(f"{platform.node()} {container}".encode()).hexdigest()[:6]


def _start_of(pid: int) -> int | None:
    """When a process began, in a unit that no change of the clock moves where the system has one; None: it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])  # killed, and not waited for yet
    except (OSError, IndexError, ValueError):
        try:
            return int(psutil.Process(pid).create_time())
        except psutil.Error:
            return None


def _is_dead(match: re.Match[str], path: Path) -> bool:
    if match["host"] != _host():
        return time.time() - _changed(path) > _STRANGERS_DAYS * 86400
    return _start_of(int(match["pid"])) != int(match["start"])


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return time.time()
