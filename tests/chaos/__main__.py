"""All of it: ``python -m tests.chaos [--seed N] [--share X] [--workers N] [--only WORD] [--output FILE]``.

Every command × kind of fault, every damaged file and every hostile case, drawn by a seed; a line per wrong outcome as it
comes, a line of progress a minute, and at the end a table and one line of JSON. Exit code 1 where anything was wrong that
tests/chaos/known.py does not list.
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
    "prepare": 20, "train": 24, "evaluate": 16, "register": 20, "run": 24, "promote": 12, "predict": 18, "predict-again": 18,
    "fuse": 14, "export": 14, "daily": 24, "predict-fused": 6, "predict-formats": 6, "evaluate-package": 10, "predict-registered": 10,
    "first-day": 10,
}  # fmt: skip
"""Tries of each kind of fault, per command: 1,200 kills and 1,000 errors in all."""
DAMAGES = 60
"""Damaged files per reader."""
Job = tuple[str, str, int | str]


def jobs(share: float, only: str, draw: random.Random) -> list[tuple[str, ...]]:
    """(kind, name, …) of every group of tries, in an order by chance, so that an early end has a bit of everything."""
    found = [("fault", name, fault) for name in TRIES for fault in FAULTS for _ in range(max(1, round(TRIES[name] * share / 4)))]
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


class _Worker(threading.Thread):
    """Does jobs in a world of its own."""

    def __init__(self, number: int, place: Path, shim: Path, work: "queue.Queue[tuple[str, ...]]", given: argparse.Namespace, done: list[Trial]) -> None:  # fmt: skip
        super().__init__(daemon=True)
        self._number, self._place, self._shim, self._work, self._given, self._done = number, place, shim, work, given, done
        self.failure: BaseException | None = None

    def run(self) -> None:
        place = self._place / f"worker-{self._number}"
        zygote = Zygote(self._shim, place / "zygote")
        try:
            laboratory = Laboratory(World(place / "world", zygote))
            draw = random.Random(f"{self._given.seed} {self._number}")
            while time.monotonic() < self._given.until:
                try:
                    job = self._work.get_nowait()
                except queue.Empty:
                    return
                for trial in tries(laboratory, job, draw, self._given.share):
                    self._done.append(trial)
        except BaseException as error:
            self.failure = error
            raise
        finally:
            zygote.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    parser.add_argument("--share", type=float, default=1.0, help="of the tries: 0.1 for a tenth")
    parser.add_argument("--workers", type=int, default=2, help="tries at a time")
    parser.add_argument("--minutes", type=float, default=600, help="begin no further group of tries after so long")
    parser.add_argument("--only", default="", help="groups whose name holds this, such as 'damage' or 'predict'")
    parser.add_argument("--output", type=Path, default=None, help="a file for a line of JSON per try")
    parser.add_argument("--folder", type=Path, default=None, help="where to work; by default in memory")
    given = parser.parse_args()
    start = time.monotonic()
    given.until = start + 60 * given.minutes
    home = given.folder or (Path("/dev/shm") if Path("/dev/shm").is_dir() else None)
    place = Path(tempfile.mkdtemp(prefix="recmtl-chaos-", dir=home)).resolve()
    done: list[Trial] = []
    try:
        shim = build_shim(place)
        if shim is None:
            print("chaos: there is no C compiler here, so nothing can be disturbed", file=sys.stderr)
            return 2
        groups = jobs(given.share, given.only, random.Random(given.seed))
        work: queue.Queue[tuple[str, ...]] = queue.Queue()
        for group in groups:
            work.put(group)
        workers = [_Worker(number, place, shim, work, given, done) for number in range(given.workers)]
        for worker in workers:
            worker.start()
        _follow(workers, done, work, len(groups), given, start)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    rows = table(done)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))))
    found = summary(done, given.seed, time.monotonic() - start)
    print(json.dumps(found))
    return 1 if found["wrong"] or any(worker.failure for worker in workers) else 0


def _follow(workers: Sequence[_Worker], done: list[Trial], work: "queue.Queue[tuple[str, ...]]", groups: int, given: argparse.Namespace, start: float) -> None:  # fmt: skip
    shown, spoken = 0, start
    output = given.output.open("w") if given.output else None
    alive = True
    while alive:
        alive = any(worker.is_alive() for worker in workers)
        while shown < len(done):
            trial, shown = done[shown], shown + 1
            if output:
                print(json.dumps(trial.plain()), file=output, flush=True)
            if trial.wrong and known(trial) is None:
                where = f"{trial.call} {trial.path}" if ":" not in trial.command else trial.path
                print(f"WRONG {trial.command}, {trial.fault}, {where} ({trial.number}): exit code {trial.code}", file=sys.stderr)
                for line in trial.wrong[:5]:
                    print(f"      {line[:300]}", file=sys.stderr)
        if time.monotonic() - spoken > 60:
            spoken = time.monotonic()
            wrong = sum(1 for trial in done if trial.wrong)
            print(f"{(spoken - start) / 60:.0f} min: {groups - work.qsize()} of {groups} groups, {len(done)} tries, {wrong} wrong", file=sys.stderr, flush=True)
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
