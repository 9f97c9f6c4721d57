"""A contender's side of the benchmark: it waits for a turn, works while the others wait, and says how fast it was.

In: one JSON object a line on standard input, ``{"do": NAME, ...}``. Out: one a line on standard output; what anything
else prints goes to standard error. It needs the standard library alone, so that every environment has it.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Handler = Callable[..., Mapping[str, Any]]


class Turns:
    """The two pipes."""

    def __init__(self) -> None:
        self._replies = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        sys.stdout = sys.stderr

    def say(self, **reply: Any) -> None:
        """Answer, with the memory that this process took at most and takes now."""
        self._replies.write(json.dumps({**reply, **memory()}) + "\n")
        self._replies.flush()

    def next(self) -> dict[str, Any]:
        """Wait for the next command; ends the process when there is none left."""
        line = sys.stdin.readline()
        command = json.loads(line) if line.strip() else {"do": "quit"}
        if command["do"] == "quit":
            self._replies.close()
            sys.stderr.flush()
            os._exit(0)  # whatever the libraries have still to tidy up
        return command

    def serve(self, **handlers: Handler) -> None:
        """Answer commands until there are no more; a command that fails is answered with its error."""
        self.say(ready=sorted(handlers), versions=versions())
        while True:
            command = self.next()
            try:
                self.say(**handlers[command.pop("do")](**command))
            except Exception as error:
                traceback.print_exc()
                self.say(error=f"{type(error).__name__}: {error}")


class Stopwatch:
    """Times whole steps until enough time is over.

    Args:
        seconds: how long.
        synchronize: waits until the device has done its work; None on a CPU.
        every: steps between two looks at the clock (on a GPU a look is a wait).
    """

    def __init__(self, seconds: float, synchronize: Callable[[], None] | None = None, every: int = 1) -> None:
        self._seconds, self._synchronize, self._every = seconds, synchronize, every if synchronize else 1
        self.steps = self.rows = 0
        self.elapsed = 0.0
        if synchronize:
            synchronize()
        self._began = time.perf_counter()

    def over(self, rows: int) -> bool:
        """One more step of ``rows`` rows is done: is the turn over?"""
        self.steps += 1
        self.rows += rows
        return not self.steps % self._every and self.look() >= self._seconds

    def look(self) -> float:
        """Seconds until what was counted so far was done."""
        if self._synchronize:
            self._synchronize()
        self.elapsed = time.perf_counter() - self._began
        return self.elapsed

    @property
    def result(self) -> dict[str, Any]:
        return {"steps": self.steps, "rows": self.rows, "seconds": self.elapsed}


class Timed:
    """Batches from memory for another's training loop, until the time is over; the first one is to warm up.

    Args:
        batches: whose last member has as many entries as the batch has rows.
        seconds: how long.
        clock: the stopwatch's arguments.
    """

    def __init__(self, batches: Sequence[Any], seconds: float, clock: Mapping[str, Any]) -> None:
        self._batches, self._seconds, self._clock = batches, seconds, clock
        self.result: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Any]:
        yield self._batches[0]
        watch = Stopwatch(self._seconds, **self._clock)
        number = 1
        while True:
            batch = self._batches[number % len(self._batches)]
            yield batch
            number += 1
            if watch.over(len(batch[-1])):
                break
        self.result = watch.result


def arguments(description: str | None, *precisions: str) -> argparse.ArgumentParser:
    """What every contender that trains is told."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=4096, help="of the first step, and of epochs")
    parser.add_argument("--pool", type=int, default=1 << 17, help="rows in memory")
    parser.add_argument("--times", type=int, default=1, help="tables so many times as long")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--precision", choices=precisions, default="fp32")
    return parser


def repeat(step: Callable[[int], int], seconds: float, **clock: Any) -> dict[str, Any]:
    """Call ``step(number)``, which returns its rows: once to warm up, then until the time is over."""
    step(0)
    watch = Stopwatch(seconds, **clock)
    number = 1
    while not watch.over(step(number)):
        number += 1
    return watch.result


def memory() -> dict[str, int]:
    """Bytes of memory: the most so far, and now. (Linux alone says so.)"""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return {}
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmHWM", "VmRSS"))}
    return {"peak_bytes": found["VmHWM"], "resident_bytes": found["VmRSS"]}


def forget_peak() -> None:
    """Let the most memory be counted from here on, where the kernel can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def versions() -> dict[str, str]:
    """Of what is imported and matters."""
    names = ("torch", "recmtl", "torchrec", "fbgemm_gpu", "deepctr_torch", "torch_rechub", "numpy", "pandas", "polars")
    found = {name: str(getattr(sys.modules[name], "__version__", "?")) for name in names if name in sys.modules}
    return {"python": sys.version.split()[0], **found}
