"""One process at a time: a lock file, and what to do while another holds it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["held"]


@contextmanager
def held(lock: Path, busy: Callable[[], object]) -> Iterator[None]:
    """Hold a lock file, which ends with the process however that ends.

    Args:
        lock: the file, in a folder that can be written to.
        busy: called when another process holds it; where it raises nothing, the lock is waited for.
    """
    file = FileLock(lock)
    try:
        file.acquire(timeout=0)
    except Timeout:
        busy()
        file.acquire()
    try:
        yield
    finally:
        file.release()
