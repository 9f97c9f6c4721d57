"""Freed memory stays with the process while it trains, so that a step does not fetch its activations page by page.

A step allocates and frees tensors of tens of megabytes. glibc hands such blocks back to the kernel at once, and the
next step pays a page fault for every 4 KiB of them: a tenth of a step on a CPU (benchmarks/NOTES.md). What training
needs at most is the same either way; it is only not given back in between.
"""

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed; whether it agreed.

    Nothing is changed where the C library is another one, or where the environment has its own wishes
    (``MALLOC_…``, ``GLIBC_TUNABLES``).
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
