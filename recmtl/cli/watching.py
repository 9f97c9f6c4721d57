"""The heavy verbs in a process of their own, whose end a light one watches: what no exception tells is told here.

In: a command's arguments. Out: its exit code. A library that finds no memory ends its process at once (Polars aborts
with 134), and so does the kernel (137): whoever started the command would see a number. So the command's own process
starts another one that does the work, waits, and makes a sentence and exit code 1 of such an end.

To whoever uses it there is one process. Signals are passed on, and an end by one of them is this process's end too. The
other one is in a process group of its own, so that Ctrl-C reaches it once; it is killed when this one is. Standard
input, output and error are shared.

Watched are the verbs that read rows or load a model. The others start faster without. ``--nproc`` and torchrun have a
launcher, which watches their ranks; ``recmtl.run()`` in Python works in the process that calls it.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from recmtl.progress import Bar, Progress

__all__ = ["HEAVY", "doing", "follow", "is_watched", "noting", "remedy", "watch"]

HEAVY = ("run", "prepare", "train", "evaluate", "predict", "fuse", "export")
"""The verbs that are watched."""

_WATCHER = "RECMTL_WATCHER"
"""In the environment of the process that works: the process id of this one, and a file descriptor."""
_NOTE_BYTES = 256
_PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_CRASHES = {"SIGKILL", "SIGABRT", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE"}

_note: int | None = None
"""Where the process that works notes what it is doing."""


def is_watched(arguments: Sequence[str]) -> bool:
    """Whether a command is to be done in a process of its own."""
    verb = next((argument for argument in arguments if not argument.startswith("-")), None)
    many = "RANK" in os.environ or any(one == "--nproc" or one.startswith("--nproc=") for one in arguments)
    alone = threading.current_thread() is threading.main_thread()  # which alone hears of signals
    return os.name == "posix" and alone and verb in HEAVY and not many and "--help" not in arguments


def watch(arguments: Sequence[str]) -> int:
    """Do a command in a process of its own.

    Returns:
        Its exit code; 1 where it ended without one, which is told on standard error.
    """
    from recmtl import children

    killed = _killed_for_memory()
    with _unnamed_file() as note:
        # Until it can answer Ctrl-C with a sentence, the new process does not hear of it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = subprocess.Popen(  # noqa: S603 - this command, as it was given
                children.python("from recmtl.cli.base import watched; watched()", *arguments),
                env={**children.environment(), _WATCHER: f"{os.getpid()}:{note.fileno()}"},
                pass_fds=[note.fileno()],
                process_group=0,
            )
            with _passing_on(process):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
                code = process.wait()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        if code >= 0:
            return code
        name = signal.Signals(-code).name
        if name not in _CRASHES:
            _end_as(-code)
            return 128 - code
        sys.stdout.flush()
        during = _read(note.fileno())
    from recmtl.cli.base import complain

    memory = name == "SIGABRT" or (name == "SIGKILL" and _killed_for_memory() > killed)
    complain(_sentence(name, _verb(arguments), during, memory=memory))
    return 1


def _unnamed_file() -> IO[bytes]:
    """In memory where that can be had: a disk may be full."""
    return os.fdopen(os.memfd_create("recmtl"), "w+b") if sys.platform == "linux" else tempfile.TemporaryFile()


@contextmanager
def _passing_on(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Send the signals that this process gets to the other one; Ctrl-Z stops both."""

    def pass_on(number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(number)

    def stop(number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGSTOP)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, stop)  # from here on it goes on
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)

    before = {}
    for name in _PASSED_ON:
        number = getattr(signal, name)
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup: neither hears of it
            before[number] = signal.signal(number, pass_on)
    if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
        before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_as(number: int) -> None:
    """End by the signal that ended the other process, without a second core dump."""
    sys.stdout.flush()
    import resource

    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _verb(arguments: Sequence[str]) -> str:
    return next(argument for argument in arguments if not argument.startswith("-"))


def _sentence(name: str, verb: str, doing: str, *, memory: bool) -> str:
    """What an end by this signal means, and what to do."""
    import resource

    during = f" while it was busy with {doing!r}" if doing else ""
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # GiB, of KiB
    used = used if sys.platform == "linux" else used / 2**10
    held = f"it held {used:.1f} GiB" if used >= 0.1 else f"it held {1024 * used:.0f} MiB"
    if memory:
        why = "the kernel killed it" if name == "SIGKILL" else "a library found none and gave up"
        return f"recmtl {verb} ran out of memory{during} ({held} when {why}); {remedy(verb, doing)}"
    if name == "SIGKILL":
        return (
            f"recmtl {verb} was killed{during} ({held}); if nobody did that, memory was short (`dmesg` says whether "
            f"the kernel killed it): {remedy(verb, doing)}"
        )
    return (
        f"recmtl {verb} crashed in a library{during} ({name}; {held}); perhaps memory was short: "
        f"{remedy(verb, doing)}. If it was not, an input file may be damaged, and `recmtl doctor` says whether the "
        "installed libraries fit together"
    )


def remedy(verb: str, doing: str) -> str:
    """What takes less memory: the settings that bound it in what was being done.

    Args:
        verb: of the command.
        doing: the title of the bar that was shown, or empty.
    """
    if verb == "predict":
        less = "give fewer --workers, or fewer input files at a time"
    elif doing.startswith("epoch"):
        less = "lower training.batch_size or training.window_rows, the tables' embedding_dim, or raise their min_count"
    elif verb in ("evaluate", "fuse", "export") or doing.startswith(("scoring", "gates", "what features", "fusing")):
        less = "lower evaluation.intervals.memory_rows or training.batch_size"
    elif verb == "prepare" or doing:
        less = "lower data.rows_per_shard, or prepare fewer rows at a time"
    else:
        less = "lower data.rows_per_shard, training.window_rows or training.batch_size"
    return f"{less}; the same command goes on from here"


def _killed_for_memory() -> int:
    """How many processes the kernel has killed for want of memory, in this container or on this machine."""
    for path, key in (("/sys/fs/cgroup/memory.events", "oom_kill"), ("/proc/vmstat", "oom_kill")):
        with suppress(OSError, ValueError), Path(path).open() as file:
            for line in file:
                found, _, number = line.partition(" ")
                if found == key:
                    return int(number)
    return 0


# The side of the process that works


def follow() -> None:
    """Make this the process that works for the one above: killed with it, stopped by no terminal, noting its work."""
    global _note
    watcher, _, descriptor = os.environ.pop(_WATCHER, "").partition(":")
    if not watcher:
        return
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # of a terminal that lets the group in front alone write
    _note = int(descriptor)
    os.set_inheritable(_note, False)
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != int(watcher):  # it was killed before that
            os.kill(os.getpid(), signal.SIGKILL)


def noting(progress: "Progress") -> "Progress":
    """The same progress, which also notes what is under way for the process above."""
    return progress if _note is None else _Noting(progress, _note)


def doing() -> str:
    """What was noted last; empty where nothing is."""
    return "" if _note is None else _read(_note)


def _read(note: int) -> str:
    return os.pread(note, _NOTE_BYTES, 0).rstrip(b"\0").decode(errors="replace")


class _Noting:
    """A Progress that writes the titles of its bars to a file descriptor."""

    def __init__(self, inner: "Progress", note: int) -> None:
        self._inner, self._note = inner, note
        self._open: list[str] = []

    def say(self, text: str) -> None:
        self._inner.say(text)

    def warn(self, text: str) -> None:
        self._inner.warn(text)

    @contextmanager
    def bar(self, title: str, total: int | None, unit: str = "rows", done: int = 0) -> "Iterator[Bar]":
        self._open.append(title)
        self._write()
        with self._inner.bar(title, total, unit, done) as bar:
            yield bar
        self._open.pop()  # not after an error: then it is told what was under way
        self._write()

    def _write(self) -> None:
        text = (self._open[-1] if self._open else "").encode()[:_NOTE_BYTES]
        with suppress(OSError):  # a full disk: then it is not said what was under way
            os.pwrite(self._note, text.ljust(_NOTE_BYTES, b"\0"), 0)
