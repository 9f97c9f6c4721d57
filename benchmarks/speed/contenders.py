"""The other ends of the pipes: processes that are started, given turns, and ended; and races between them."""

import json
import os
import random
import selectors
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure

HERE = Path(__file__).parent


class ContenderError(Exception):
    """A contender that failed, died or did not answer."""


@dataclass(frozen=True)
class Spec:
    """How a contender is started."""

    name: str
    command: tuple[str, ...]
    kind: str = "recmtl"
    """recmtl, plain, peer or ceiling."""


class Contender:
    """A process that waits for turns.

    Args:
        spec: how it is started.
        threads: what OpenMP and MKL are told.
        log: where its standard error goes.
    """

    def __init__(self, spec: Spec, threads: int, log: Path) -> None:
        self.spec, self.log = spec, log
        self.peak: int | None = None
        self.versions: dict[str, str] = {}
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                spec.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, cwd=HERE
            )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.process.stdout, selectors.EVENT_READ)
        self._heard = b""

    def ready(self, timeout: float = 600) -> None:
        """Wait until it is built.

        Raises:
            ContenderError: it will not be.
        """
        if not self.versions:
            self.versions = self._hear(timeout)["versions"]

    def turn(self, timeout: float = 600, **command: Any) -> dict[str, Any]:
        """Give it a turn and wait for its answer.

        Raises:
            ContenderError: see there.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write((json.dumps(command) + "\n").encode())
            self.process.stdin.flush()
        except OSError as error:
            raise ContenderError(f"{self.spec.name} is gone ({self._last_words()})") from error
        return self._hear(timeout)

    def close(self) -> None:
        """End it, gently if it listens."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()
            self.process.wait(5)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self._selector.close()
        self.process.stdout.close()

    def _hear(self, timeout: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        until = time.monotonic() + timeout
        while True:
            line, end, rest = self._heard.partition(b"\n")
            if end:
                self._heard = rest
                if line.startswith(b"{"):
                    break
                continue  # what a library had to say while it was imported
            left = until - time.monotonic()
            if left <= 0 or not self._selector.select(left):
                self.process.kill()
                raise ContenderError(f"{self.spec.name} did not answer for {timeout:.0f} s")
            more = self.process.stdout.read()
            if more == b"":
                self.process.wait()
                raise ContenderError(f"{self.spec.name} ended with {self.process.returncode} ({self._last_words()})")
            self._heard += more or b""
        reply: dict[str, Any] = json.loads(line)
        self.peak = reply.get("peak_bytes", self.peak)
        if "error" in reply:
            raise ContenderError(f"{self.spec.name}: {reply['error']}")
        return reply

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"


@dataclass
class Race:
    """What came of one."""

    rounds: list[dict[str, Any]] = field(default_factory=list)
    """Each: ``turns`` (contender to its answer), ``order``, ``host`` (what else the machine did)."""
    errors: dict[str, str] = field(default_factory=dict)
    """Contender to what went wrong; it took no turn after that."""
    peaks: dict[str, int] = field(default_factory=dict)
    """Contender to the most memory its process ever had, in bytes."""
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        return {"rounds": self.rounds, "errors": self.errors, "peak_bytes": self.peaks, "versions": self.versions}


@contextmanager
def field_of(
    specs: Sequence[Spec], threads: int, logs: Path, errors: dict[str, str], *, one_by_one: bool = False
) -> Iterator[dict[str, Contender]]:
    """Contenders that are ready, by name; those that cannot be are in ``errors``. All are ended afterwards.

    Args:
        specs: how they are started: together, or ``one_by_one``, each when the one before is ready.
        threads, logs: as :class:`Contender` has them.
        errors: is added to.
    """
    started: dict[str, Contender] = {}
    try:
        for spec in specs:
            try:
                started[spec.name] = Contender(spec, threads, logs / f"{spec.name.replace(' ', '-')}.log")
            except OSError as error:
                errors[spec.name] = f"cannot be started: {error}"
            if one_by_one:
                _await(started, errors)
        _await(started, errors)
        yield started
    finally:
        for contender in started.values():
            contender.close()


def _await(started: dict[str, Contender], errors: dict[str, str]) -> None:
    for name, contender in list(started.items()):
        try:
            contender.ready()
        except ContenderError as error:
            errors[name] = str(error)
            started.pop(name).close()


def race(
    contenders: Mapping[str, Contender],
    commands: Mapping[str, Mapping[str, Any]],
    *,
    rounds: int,
    seed: int,
    timeout: float = 600,
) -> Race:
    """Every contender its turn, one at a time, in another order every round.

    Args:
        contenders: by name, ready.
        commands: contender to its command; who has none sits it out.
        rounds: how many.
        seed: of the orders.
        timeout: seconds that an answer may take.
    """
    found = Race()
    order = random.Random(seed)
    taking_part = [name for name in contenders if name in commands]
    for _ in range(rounds):
        turns: dict[str, Any] = {}
        names = order.sample(taking_part, len(taking_part))
        before = measure.host([contender.process.pid for contender in contenders.values()])
        for name in names:
            try:
                turns[name] = contenders[name].turn(timeout, **commands[name])
            except ContenderError as error:
                found.errors[name] = str(error)
                taking_part.remove(name)
        after = measure.host([contender.process.pid for contender in contenders.values()])
        found.rounds.append({"order": names, "turns": turns, "host": measure.between(before, after)})
    for name, contender in contenders.items():
        if contender.peak is not None:
            found.peaks[name] = contender.peak
        found.versions[name] = contender.versions
    return found
