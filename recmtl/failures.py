"""What an error of the operating system or of a library means, in one sentence: which file, what to do.

In: any exception. Out: a sentence, where the exception is input or output that failed or memory that was short, else
None: then it is a fault of recmtl's. Polars, Arrow, safetensors and SQLite each wrap errors of the operating system in
a class of their own, mostly without the file's name: it is looked for where they were called.

Importing this imports none of them.
"""

import errno
import io
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from types import TracebackType

__all__ = ["advice", "ends_no_reading", "input_or_output", "out_of_memory", "writing"]

_IN_TEXT = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
_PATH_IN_TEXT = re.compile(r"\(os error \d+\): ([^\n]+)|at path \"([^\"\n]+)\"|local file '([^'\n]+)'")
"""How Polars, safetensors and Arrow name the file that they could not open."""
_OF_WRITING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""Errors that no reading ends with."""
_FOREIGN = {
    ("polars", "ComputeError"),
    ("pyarrow", "ArrowInvalid"),
    ("pyarrow", "ArrowIOError"),
    ("safetensors", "SafetensorError"),
    ("sqlite3", "Error"),
    ("zlib", "error"),
    ("lzma", "LZMAError"),
    ("gzip", "BadGzipFile"),
}
"""Libraries' errors about the content of a file: package and class, or a class above it."""
_DAMAGED = ("parquet", "ipc", "magic", "thrift", "page", "snappy", "zstd", "gzip", "header", "corrupt", "malformed")
"""Words of such errors that are about a file rather than about a calculation."""
_ADVICE = {
    errno.ENOSPC: "make room on this disk, then run the same command again",
    errno.EDQUOT: "the quota is used up: make room, then run the same command again",
    errno.EIO: "the disk, or the network behind it, failed: run the same command again when it works",
    errno.ESTALE: "the network file system lost it: run the same command again",
    errno.ETIMEDOUT: "the network file system does not answer: run the same command again when it does",
    errno.EACCES: "whoever runs this must be permitted to read or write here",
    errno.EPERM: "whoever runs this must be permitted to read or write here",
    errno.EROFS: "this disk cannot be written to: choose another folder",
    errno.EMFILE: "too many files are open in this process: raise the limit (`ulimit -n 65536`)",
    errno.ENFILE: "too many files are open on this machine: raise the limit, or close other programs",
    errno.ENOENT: "was it removed or moved meanwhile?",
    errno.ENOMEM: "memory is short",
}
_MEMORY = re.compile(
    r"can't allocate memory|not enough memory|cannot allocate memory|out of memory|failed to allocate|alloc\w* of "
    r"(?:size )?\d+ (?:bytes )?failed|std::bad_alloc|memory allocation",
    re.IGNORECASE,
)


def out_of_memory(error: BaseException) -> str | None:
    """What was short of memory: ``memory``, or ``memory of the GPU``; None where the error is another.

    Args:
        error: MemoryError, torch's or Arrow's likes of it, or an error that says so in words.
    """
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return "memory"
    names = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    text = str(error)
    if ("torch", "OutOfMemoryError") in names or (isinstance(error, RuntimeError) and "CUDA out of memory" in text):
        return "memory of the GPU"
    if isinstance(error, MemoryError) or (isinstance(error, ImportError) and "failed to map segment" in text):
        return "memory"
    native = isinstance(error, RuntimeError) or names & {("polars", "PolarsError"), ("pyo3_runtime", "PanicException")}
    return "memory" if native and _MEMORY.search(text) else None


@contextmanager
def writing(path: PurePath, *, reads: bool = False) -> Iterator[None]:
    """Errors of the operating system inside of the block are about ``path``, unless they name a file themselves.

    Libraries raise their errors without the name of the file. Where what is written is read from another file, the
    name of that one would be reported instead.

    Args:
        path: the file that the block writes, or the folder of several.
        reads: the block also reads files with functions that do not name them: only errors that no reading ends with
            (a full disk, a used-up quota) are then about ``path``.

    Raises:
        OSError: in place of an error that names no file, with its number and ``path`` as ``filename``.
    """
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number is None or _names(error) or (reads and not ends_no_reading(error)):
            raise
        found = _path(error)
        inside = found is not None and PurePath(found).is_relative_to(path)
        raise OSError(number, os.strerror(number), found if inside else str(path)) from error


def ends_no_reading(error: BaseException) -> bool:
    """Whether an error can come from writing alone: the disk is full, the quota is used up."""
    return _number(error) in _OF_WRITING


def input_or_output(error: BaseException) -> str | None:
    """The file, what is the matter with it, and what to do; None where the error is no input or output.

    Args:
        error: an OSError, or an error of a library about a file.
    """
    number = _number(error)
    if number is None and not isinstance(error, OSError) and not _is_about_a_file(error):
        return None
    path = _path(error)
    if number is not None:
        reason = os.strerror(number)
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
    what = advice(number) if number is not None else _advice_of(error, reason)
    return f"{path or 'input or output'}: {reason}" + (f"; {what}" if what else "")


def advice(number: int) -> str:
    """What to do about an error of the operating system, by its number; empty where nothing can be said."""
    return _ADVICE.get(number, "")


def _number(error: BaseException) -> int | None:
    """The operating system's number of an error, in whatever it is wrapped."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, OSError) or _package(error) in {package for package, _ in _FOREIGN}:
        found = _IN_TEXT.search(str(error))
        if found is not None:
            return int(found.group(1) or found.group(2))
        if "database or disk is full" in str(error):
            return errno.ENOSPC
        if "disk I/O error" in str(error):
            return errno.EIO
    return None


def _package(error: BaseException) -> str:
    module = type(error).__module__.partition(".")[0]
    return "safetensors" if type(error).__name__ == "SafetensorError" else module


def _is_about_a_file(error: BaseException) -> bool:
    names = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    names.add((_package(error), type(error).__name__))
    if not names & _FOREIGN:
        return False
    package = _package(error)
    return package not in ("polars", "pyarrow") or any(word in str(error).lower() for word in _DAMAGED)


def _advice_of(error: BaseException, reason: str) -> str:
    if "locked" in reason:
        return "another process holds it: run the same command again when that is done"
    if _package(error) == "sqlite3" and "unable to open" in reason:
        return "the folder must be there, and whoever runs this permitted to write in it"
    return "" if isinstance(error, OSError) else "is the file damaged? Make or fetch it anew, then run the same command"


def _path(error: BaseException) -> str | None:
    """The file that an error is about: as it says itself, else what the code that called the library held."""
    names = _names(error)
    if names:
        return names[-1] if _number(error) in _OF_WRITING else " → ".join(names)
    frames = [frame.tb_frame for frame in _frames(error.__traceback__)]
    for frame in reversed(frames):
        values = list(frame.f_locals.values())
        opened = [value for value in values if isinstance(value, io.IOBase) and hasattr(value, "name")]
        if ends_no_reading(error):
            opened = [value for value in opened if not isinstance(value, io.BufferedReader)]
        files = [value.name for value in opened]
        paths = [value for value in values if isinstance(value, PurePath)]
        for found in (*files, *paths):
            if isinstance(found, str | PurePath):
                return str(found)
    return None


def _names(error: BaseException) -> list[str]:
    """The files that an error names itself; of a copy the one that is read, then the one that is written."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list) and error.args[0]:
        # Of a copied folder: source, target and reason of each file; the first is told.
        return [str(name) for name in error.args[0][0][:2]]
    given = (getattr(error, "filename", None), getattr(error, "filename2", None))
    names = [os.fsdecode(name) for name in given if isinstance(name, str | bytes | os.PathLike)]
    if names or _number(error) is None:
        return names
    found = _PATH_IN_TEXT.search(str(error))
    return [] if found is None else [next(name for name in found.groups() if name is not None)]


def _frames(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next
