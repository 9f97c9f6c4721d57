"""All of it: ``python -m tests.chaos [--seed N] [--share X] [--workers N] [--only WORD] [--output FILE]``.

Every command × kind of fault, every damaged file and every hostile case, drawn by a seed. Every wrong outcome is shown
as it comes, progress once per minute, and at the end a table and one line of JSON. The exit code is 1 where something
was wrong that tests/chaos/known.py does not list.
"""

import argparse
import json
import queue
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.damage import READERS, try_damage
from tests.chaos.damage import cases as damages
from tests.chaos.hostile import cases as hostilities
from tests.chaos.hostile import try_hostile
from tests.chaos.injector import build_shim
from tests.chaos.known import known
from tests.chaos.trials import ERRORS, FAULTS, KILLS, Laboratory, Trial
from tests.chaos.world import SCENARIOS, World
from tests.chaos.zygote import Zygote

TRIES = {
    "prepare": 20, "train": 24, "evaluate": 16, "register": 20, "run": 24, "promote": 12, "predict": 18,
    "predict-again": 18, "fuse": 14, "export": 14, "daily": 24, "predict-fused": 6, "predict-formats": 6,
    "evaluate-package": 10, "predict-registered": 10, "first-day": 10,
}  # fmt: skip
"""Tries of each kind of fault, per command: 1,200 kills and 1,000 errors in all."""
DAMAGES = 60
"""Damaged files per reader."""


def jobs(share: float, only: str, draw: random.Random) -> list[tuple[str, ...]]:
    """(kind, name, …) of every group of tries, in an order by chance, so that an early end has a bit of everything."""
    found = [
        ("fault", name, fault)
        for name in TRIES
        for fault in FAULTS
        for _ in range(max(1, round(TRIES[name] * share / 4)))
    ]
    found += [("damage", name, "") for name in READERS for _ in range(max(1, round(DAMAGES * share / 10)))]
    hostile = list(hostilities())
    found += [("hostile", *case) for case in draw.sample(hostile, max(1, round(len(hostile) * min(share, 1))))]
    found = [job for job in found if only in " ".join(job)]
    draw.shuffle(found)
    return found


def tries(laboratory: Laboratory, job: tuple[str, ...], draw: random.Random, share: float) -> Iterator[Trial]:
    """The tries of a group."""
    kind, name, more = job
    if kind == "hostile":
        yield try_hostile(laboratory, name, more)
    elif kind == "damage":
        reader = READERS[name]
        some = list(damages(laboratory, reader))
        for file, damage in draw.sample(some, min(10, max(1, round(DAMAGES * share)), len(some))):
            yield try_damage(laboratory, reader, file, damage, draw.randrange(2**32))
    else:
        for number in laboratory.plan(SCENARIOS[name], more, min(4, max(1, round(TRIES[name] * share))), draw):
            yield laboratory.try_(SCENARIOS[name], more, number)


def table(trials: Sequence[Trial]) -> list[list[str]]:
    """Command × kind of fault → tried, recovered, wrong."""
    rows = [["command", "fault", "tried", "recovered", "known", "wrong"]]
    groups: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for trial in trials:
        if trial.verdict != "missed":
            group = ("all", trial.command) if ":" in trial.command else (trial.fault, trial.command)
            groups[group].append(trial)
    for (fault, command), some in sorted(groups.items(), key=lambda item: (item[0][1], item[0][0])):
        wrong = [trial for trial in some if trial.wrong]
        new = sum(1 for trial in wrong if known(trial) is None)
        rows.append([command, fault, *map(str, (len(some), len(some) - len(wrong), len(wrong) - new, new))])
    sums = [str(sum(int(row[column]) for row in rows[1:])) for column in range(2, 6)]
    return [*rows, ["all", "", *sums]]


def summary(trials: Sequence[Trial], seed: int, seconds: float) -> dict[str, object]:
    """The figures as data."""
    tried = [trial for trial in trials if trial.verdict != "missed"]
    return {
        "seed": seed,
        "seconds": round(seconds),
        "tried": len(tried),
        "kills": sum(1 for trial in tried if trial.fault in KILLS and ":" not in trial.command),
        "errors": sum(1 for trial in tried if trial.fault in ERRORS and ":" not in trial.command),
        "damaged": sum(1 for trial in tried if trial.command.startswith("damage")),
        "hostile": sum(1 for trial in tried if trial.command.startswith("hostile")),
        "recovered": sum(1 for trial in tried if not trial.wrong),
        "known": sum(1 for trial in tried if trial.wrong and known(trial) is not None),
        "wrong": sum(1 for trial in tried if trial.wrong and known(trial) is None),
    }


@dataclass
class _Whole:
    """What all workers share."""

    given: argparse.Namespace
    place: Path
    shim: Path
    start: float
    groups: int = 0
    work: "queue.Queue[tuple[str, ...]]" = field(default_factory=queue.Queue)
    done: list[Trial] = field(default_factory=list)


class _Worker(threading.Thread):
    """Takes groups of tries, one after the other, in a world of its own."""

    def __init__(self, number: int, whole: _Whole) -> None:
        super().__init__(daemon=True)
        self._number, self._whole = number, whole
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Work until nothing is left, or the time is up."""
        whole, given = self._whole, self._whole.given
        place = whole.place / f"worker-{self._number}"
        zygote = Zygote(whole.shim, place / "zygote")
        try:
            laboratory = Laboratory(World(place / "world", zygote))
            draw = random.Random(f"{given.seed} {self._number}")
            while time.monotonic() < whole.start + 60 * given.minutes:
                try:
                    job = whole.work.get_nowait()
                except queue.Empty:
                    return
                for trial in tries(laboratory, job, draw, given.share):
                    whole.done.append(trial)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            zygote.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for, by default those of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--share", type=float, default=1.0, help="of the tries: 0.1 for a tenth")
    parser.add_argument("--workers", type=int, default=2, help="tries at a time")
    parser.add_argument("--minutes", type=float, default=600, help="begin no further group of tries after so long")
    parser.add_argument("--only", default="", help="groups whose name holds this, such as 'damage' or 'predict'")
    parser.add_argument("--output", type=Path, default=None, help="a file for a line of JSON per try")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; by default in memory")
    given = parser.parse_args(arguments)
    memory = Path("/dev/shm")
    home = given.folder or (memory if memory.is_dir() else None)
    place = Path(tempfile.mkdtemp(prefix="recmtl-chaos-", dir=home)).resolve()
    start = time.monotonic()
    try:
        shim = build_shim(place)
        if shim is None:
            print("chaos: no C compiler, or no Linux: nothing can be disturbed", file=sys.stderr)
            return 2
        whole = _Whole(given, place, shim, start)
        for group in jobs(given.share, given.only, random.Random(given.seed)):
            whole.work.put(group)
            whole.groups += 1
        workers = [_Worker(number, whole) for number in range(given.workers)]
        for worker in workers:
            worker.start()
        _follow(workers, whole)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    _print(table(whole.done))
    found = summary(whole.done, given.seed, time.monotonic() - start)
    print(json.dumps(found))
    return 1 if found["wrong"] or any(worker.failure for worker in workers) else 0


def _print(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(w) if n < 2 else cell.rjust(w) for n, (cell, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells))


def _follow(workers: Sequence[_Worker], whole: _Whole) -> None:
    """Tell of every try while the workers work."""
    shown, spoken, alive = 0, whole.start, True
    output = whole.given.output.open("w") if whole.given.output else None
    while alive:
        alive = any(worker.is_alive() for worker in workers)
        while shown < len(whole.done):
            trial, shown = whole.done[shown], shown + 1
            if output:
                print(json.dumps(trial.plain()), file=output, flush=True)
            if trial.wrong and known(trial) is None:
                where = f"{trial.call} {trial.path}" if ":" not in trial.command else trial.path
                told = f"WRONG {trial.command}, {trial.fault}, {where} ({trial.number}): exit code {trial.code}"
                print("\n      ".join([told, *(line[:300] for line in trial.wrong[:5])]), file=sys.stderr, flush=True)
        if time.monotonic() - spoken > 60:
            spoken = time.monotonic()
            wrong = sum(1 for trial in whole.done if trial.wrong)
            told = f"{whole.groups - whole.work.qsize()} of {whole.groups} groups, {shown} tries, {wrong} wrong"
            print(f"{(spoken - whole.start) / 60:.0f} min: {told}", file=sys.stderr, flush=True)
        time.sleep(0.5)
    if output:
        output.close()


if __name__ == "__main__":
    sys.exit(main())
