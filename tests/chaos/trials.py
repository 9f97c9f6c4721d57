"""One try: the disturbed command, the same command again, and whether the end is that of an undisturbed one.

In: a scenario, a kind of fault and the call that it hits. Out: a :class:`Trial` with its verdict: recovered, or what is
wrong. The rules:

- killed, or without power: the same command ends well, and everything is as if nothing had happened;
- a call that failed: exit code 1 (3 where it was the tracking store, away as a server may be) and one sentence that
  names the path, or exit code 0 and nothing lost; then the same command again, as above;
- never a traceback, never "a fault of recmtl's".
"""

import errno
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.injector import Disturbance, Fired, State, lose_power
from tests.chaos.state import differences, end_state
from tests.chaos.world import Scenario, World
from tests.chaos.zygote import Done

__all__ = ["ERRORS", "FAULTS", "KILLS", "Laboratory", "Site", "Trial", "error_of", "names_path", "table", "unseemly"]

FAULTS = {
    "kill": Disturbance("kill"),
    "torn": Disturbance("torn", classes=("write",)),
    "power-contents": Disturbance("kill"),
    "power-names": Disturbance("kill"),
    "ENOSPC": Disturbance("error", error=errno.ENOSPC),
    "EIO": Disturbance("error", error=errno.EIO),
    "full": Disturbance("full", error=errno.ENOSPC),
    "own kill": Disturbance("kill"),
    "own EIO": Disturbance("error", error=errno.EIO),
}
"""kill: SIGKILL in place of a call; torn: in the middle of a write; power-contents: then what was not flushed of the
contents is gone; power-names: and the names too; ENOSPC, EIO: one call fails; full: it and all later ones. own: of the
operations of :mod:`recmtl.durable` alone (:mod:`tests.chaos.own`)."""
KILLS = ("kill", "torn", "power-contents", "power-names", "own kill")
ERRORS = ("ENOSPC", "EIO", "full", "own EIO")


@dataclass(frozen=True)
class Site:
    """Calls that do the same thing."""

    call: str
    path: str
    """Without what differs from run to run."""
    numbers: tuple[int, ...]
    """Which of the counted calls."""


@dataclass
class Trial:
    """A try and its verdict."""

    command: str
    fault: str
    number: int
    """Which call; one more than there are: after the end."""
    call: str = ""
    path: str = ""
    code: int | None = None
    """Exit code of the disturbed command."""
    said: str = ""
    """Its error."""
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def verdict(self) -> str:
        """recovered, wrong, or missed: the call did not come."""
        return "wrong" if self.wrong else "recovered" if self.call or self.fault.startswith("power") else "missed"

    def plain(self) -> dict[str, Any]:
        """As data."""
        return asdict(self) | {"verdict": self.verdict}


class Laboratory:
    """A world with what it takes to disturb it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.state = State(world.place / "state", world.root)
        self._sites: dict[str, list[Site]] = {}
        self._own: dict[str, list[Site]] = {}
        self._ends: dict[str, dict[str, str]] = {}

    def end(self, scenario: Scenario) -> dict[str, str]:
        """The end of the undisturbed command."""
        if scenario.name not in self._ends:
            kept = self.world.end(scenario.name)
            self.world.put(scenario.name)  # the store knows its files by this place
            self._ends[scenario.name] = end_state(self.world.root)
            assert kept.is_dir()
        return self._ends[scenario.name]

    def sites(self, scenario: Scenario) -> list[Site]:
        """What the undisturbed command does to files."""
        if scenario.name not in self._sites:
            self.world.begin(scenario)
            self.state.arm(Disturbance(), trace=True)
            self.world.run(scenario, state=self.state.path)
            found: dict[tuple[str, str], list[int]] = defaultdict(list)
            for number, (call, path) in enumerate(self.state.calls(), 1):
                found[call, _alike(path, self.world.root)].append(number)
            self._sites[scenario.name] = [Site(*key, tuple(numbers)) for key, numbers in found.items()]
        return self._sites[scenario.name]

    def own_calls(self, scenario: Scenario) -> list[Site]:
        """What the undisturbed command does through :mod:`recmtl.durable`."""
        if scenario.name not in self._own:
            self.world.begin(scenario)
            report = self.world.place / "own.json"
            self.world.run(scenario, own={"target": 0, "error": 0, "report": str(report)})
            found: dict[tuple[str, str], list[int]] = defaultdict(list)
            for number, (call, path) in enumerate(json.loads(report.read_text())["calls"], 1):
                found[call, _alike(path, self.world.root)].append(number)
            self._own[scenario.name] = [Site(*key, tuple(numbers)) for key, numbers in found.items()]
        return self._own[scenario.name]

    def plan(self, scenario: Scenario, fault: str, tries: int, draw: random.Random) -> Iterator[int]:
        """Numbers of calls: every site's before a second of any, each at random among its calls."""
        if fault.startswith("own"):
            sites = self.own_calls(scenario)
        else:
            sites = [site for site in self.sites(scenario) if site.call in FAULTS[fault].classes]
        numbers: list[int] = []
        if fault.startswith("power"):
            numbers.append(1 + max(max(site.numbers) for site in sites))
        while sites and len(numbers) < tries:
            draw.shuffle(sites)
            numbers.extend(draw.choice(site.numbers) for site in sites)
        return iter(numbers[:tries])

    def number(self, scenario: Scenario, fault: str, number: int) -> int:
        """The number of a call among those of the classes that a fault counts."""
        calls = FAULTS[fault].classes
        return sum(1 for site in self.sites(scenario) if site.call in calls for each in site.numbers if each <= number)

    def try_(self, scenario: Scenario, fault: str, number: int) -> Trial:
        """Disturb the command at a call (numbered as :meth:`plan` does), and run it again."""
        world, state = self.world, self.state
        self.end(scenario)  # before the folder is put to its beginning
        how = FAULTS[fault]
        trial = Trial(scenario.name, fault, number)
        if fault.startswith("own"):
            world.begin(scenario)
            report = world.place / "own.json"
            report.unlink(missing_ok=True)
            done = world.run(scenario, own={"target": number, "error": how.error, "report": str(report)})
            told = json.loads(report.read_text()) if report.exists() else {"counted": 0, "fired": False}
            fired = Fired(told["counted"], told["fired"], told.get("call", ""), told.get("path", ""))
            return self._finish(trial, done, fired, scenario)
        target = self.number(scenario, fault, number) + (number > max(max(s.numbers) for s in self.sites(scenario)))
        world.begin(scenario)
        power = fault.startswith("power")
        state.arm(Disturbance(how.kind, target, how.error, how.classes), trace=power)
        done = world.run(scenario, state=state.path)
        state.stop()
        if power:
            lose_power(state, names=fault == "power-names")
        return self._finish(trial, done, state.read(), scenario)

    def _finish(self, trial: Trial, done: Done, fired: Fired, scenario: Scenario) -> Trial:
        """Judge the disturbed command, run it again, judge the end."""
        world, expected = self.world, self.end(scenario)
        if fired.fired:
            trial.call, trial.path = fired.call, _alike(fired.path, world.root)
        trial.code, trial.said, trial.seconds = done.code, error_of(done), done.seconds
        trial.wrong += self._judge(trial, done, fired, expected, scenario)
        again = world.run(scenario)
        trial.seconds += again.seconds
        trial.wrong += [f"again: {line}" for line in unseemly(again)]
        if again.code != scenario.said:
            trial.wrong.append(f"again: exit code {again.code}: {error_of(again)}")
        trial.wrong += [f"at the end: {line}" for line in differences(end_state(world.root), expected)]
        return trial

    def _judge(
        self, trial: Trial, done: Done, fired: Fired, expected: dict[str, str], scenario: Scenario
    ) -> Iterator[str]:
        """What is wrong with how the disturbed command ended."""
        yield from unseemly(done)
        if not fired.fired or trial.fault in KILLS:
            expects = -9 if fired.fired else scenario.said
            if done.code != expects:
                yield f"exit code {done.code}: {error_of(done)}"
            return
        # What the store has is then not noted, and the next command asks it.
        tracked = trial.path.startswith("store") or "/tracking/.sent" in trial.path
        if done.code == scenario.said:
            for line in differences(end_state(self.world.root), expected):
                told = "warning" in done.err or "error" in done.err
                if "left over" not in line and not (tracked and told and ("mlflow" in line or "sent.json" in line)):
                    yield f"exit code {done.code}, but {line}"
        elif done.code == 1 or (tracked and done.code == 3):
            # On a full disk, what comes after the first failure fails, too, and may be what is told.
            if not names_path(error_of(done), trial.path or self.world.root.name, anything=trial.fault == "full"):
                yield f"the path is not named: {error_of(done)}"
        else:
            yield f"exit code {done.code}: {error_of(done)}"


def unseemly(done: Done) -> Iterator[str]:
    """What no command may print, whatever went wrong."""
    for text in (done.out, done.err):
        if "Traceback (most recent call last)" in text:
            yield f"a traceback: {text[text.index('Traceback') :].strip().splitlines()[-1][:200]}"
        if "fault of recmtl" in text:
            yield f"called a fault of recmtl's: {error_of(done)}"
    if len([line for line in done.err.splitlines() if line.startswith("error: ")]) > 1:
        yield "more than one error"


def error_of(done: Done) -> str:
    """The sentence in which a command says what went wrong, else its last line."""
    lines = done.err.strip().splitlines()
    told = [line for line in lines if line.startswith("error: ") or ": failed: " in line]
    return (told or lines or [""])[-1][:400]


def names_path(said: str, path: str, *, anything: bool = False) -> bool:
    """Whether a sentence names a path, or a folder that it lies in; with ``anything``, whether it names any file."""
    if anything and re.search(r"[\w.-]+/[\w.-]+", said):
        return True
    names = (re.escape(part).replace(r"\*", r"[\w.-]*") for part in Path(path).parts if part.strip("*"))
    return any(re.search(name, said) for name in names)


def _alike(path: str, root: Path) -> str:
    """A path without what differs from run to run."""
    name = path.removeprefix(str(root)).lstrip("/")
    name = re.sub(r"\bm-[0-9a-f]{32}|[0-9a-f]{32,64}", "*", name)
    name = re.sub(r"\.[0-9a-f]{6}-\d+-\d+-\d+\.(tmp|new|old)", r".*.\1", name)
    name = re.sub(r"\.\d+\.tmp", ".*.tmp", name)
    name = re.sub(r"\.[0-9a-f]{8}\.", ".*.", name)
    name = re.sub(r"(artifacts/code)/.*", r"\1/*", name)
    name = re.sub(r"(\.|/)tmp\w{8}", r"\1tmp*", name)
    name = re.sub(r"step-\d+-\d+", "step-*", name)
    name = re.sub(r"(files/\w+|days)/\d{4}-\d\d-\d\d", r"\1/*", name)
    return re.sub(r"\d{4}-\d\d-\d\d\.parquet", "*.parquet", name)


def table(trials: Sequence[Trial]) -> list[list[str]]:
    """Command × kind of fault → tried, recovered, wrong."""
    rows = [["command", "fault", "tried", "recovered", "wrong"]]
    groups: dict[tuple[str, str], list[Trial]] = defaultdict(list)
    for trial in trials:
        if trial.verdict != "missed":
            groups[trial.command, trial.fault].append(trial)
    for (command, fault), some in groups.items():
        wrong = sum(1 for trial in some if trial.wrong)
        rows.append([command, fault, str(len(some)), str(len(some) - wrong), str(wrong)])
    return rows
