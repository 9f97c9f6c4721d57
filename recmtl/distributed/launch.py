"""Several ranks of the command line on this machine: torchrun's elastic launcher, started from within.

In: a command's arguments. Out: its exit code, once all ranks are through. A rank that was killed, or crashed, takes the
others with it, and all start again from the last checkpoint; one that ended with a word of ours (a wrong config, a loss
that is not finite) would only say it again, so its exit code is the job's.

Importing this file imports torch.distributed.elastic.
"""

import ctypes
import itertools
import logging
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from recmtl import children
from recmtl.errors import RunError
from recmtl.progress import Progress

__all__ = ["LAUNCHER", "follow_launcher", "launch"]

LAUNCHER = "RECMTL_LAUNCHER"
"""In a rank's environment: the process id of the launcher above, which tells the user what becomes of the job."""

_OURS = {1, 2, 3, 130}
"""Exit codes of a process that has said why it ends: it would end so again."""


def launch(arguments: Callable[[], Sequence[str]], *, ranks: int, max_restarts: int, progress: Progress) -> int:
    """Run ``recmtl ARGUMENTS`` as so many ranks, again after one was lost.

    Args:
        arguments: of the command; asked for before every start.
        ranks: how many processes.
        max_restarts: how often to start again.
        progress: is told why.

    Returns:
        The exit code: 0, or that of the rank that failed.

    Raises:
        RunError: ranks were lost more often than that.
        KeyboardInterrupt: Ctrl-C; the ranks have ended.
    """
    for attempt in itertools.count(1):
        codes = _run(arguments(), ranks)
        ours = [code for code in codes.values() if code in _OURS]
        if not codes or ours:
            return ours[0] if ours else 0
        lost = _describe(codes)
        if attempt > max_restarts:
            raise RunError(
                f"{lost}, for the {_ordinal(attempt)} time; the same command goes on from the last checkpoint (was "
                "memory short? `dmesg` says whether the kernel killed it)"
            )
        progress.warn(f"{lost}; all start again from the last checkpoint ({attempt} of {max_restarts} restarts)")
    raise AssertionError("unreachable")


def follow_launcher() -> None:
    """End with the launcher above, should it be killed: ranks without one would hold the run's folder for ever."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or platform.system() != "Linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    if os.getppid() != int(launcher):  # it was killed before that
        os.kill(os.getpid(), signal.SIGTERM)


def _run(arguments: Sequence[str], ranks: int) -> Mapping[int, int]:
    """One start of all ranks: rank to exit code (negative: a signal) of those that failed first; empty if none did."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,  # it would start again whatever the reason
    )
    with _environment(ranks), _without_logs():
        try:
            python, *rest = children.python("from recmtl.cli import main; main()", *arguments)
            elastic_launch(config, python)(*rest)
        except ChildFailedError as error:
            return {rank: failure.exitcode for rank, failure in error.failures.items()}
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from error
            sys.exit(128 + error.sigval)
    return {}


@contextmanager
def _environment(ranks: int) -> Iterator[None]:
    """What the ranks inherit: a share of the cores each, and, as none is elsewhere, the loopback device."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = {"OMP_NUM_THREADS": str(max(1, cores // ranks))}
    if platform.system() == "Linux":
        wanted["GLOO_SOCKET_IFNAME"] = "lo"
    before = dict(os.environ)
    os.environ.update(children.environment({**wanted, **before, LAUNCHER: str(os.getpid())}))
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _without_logs() -> Iterator[None]:
    """The launcher's own log of signals and tracebacks: :func:`launch` says what is to be said."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _describe(codes: Mapping[int, int]) -> str:
    killed = {rank: code for rank, code in codes.items() if code < 0}
    if not killed:
        return "a rank was lost"
    rank, code = next(iter(killed.items()))
    return f"rank {rank} was killed by {signal.Signals(-code).name}"


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
