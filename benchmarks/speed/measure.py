"""The pure part of measuring: what else the machine did, medians and quartiles, ratios within a round."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Rounds = Sequence[Mapping[str, Any]]


def rates(rounds: Rounds, name: str, value: Callable[[Mapping[str, Any]], float] | None = None) -> dict[int, float]:
    """Round to a contender's rate in it: rows per second, or what ``value`` makes of its answer."""
    value = value or rows_per_second
    return {i: value(each["turns"][name]) for i, each in enumerate(rounds) if name in each["turns"]}


def rows_per_second(answer: Mapping[str, Any]) -> float:
    rows, seconds = answer["rows"], answer["seconds"]
    return float(rows / seconds)


def ratios(mine: Mapping[int, float], others: Mapping[int, float]) -> list[float]:
    """One per round that both have."""
    return [rate / others[i] for i, rate in mine.items() if i in others]


def fastest(every: Iterable[Mapping[int, float]]) -> dict[int, float]:
    """The highest rate of each round."""
    best: dict[int, float] = {}
    for each in every:
        for i, rate in each.items():
            best[i] = max(best.get(i, rate), rate)
    return best


def quartiles(values: Iterable[float]) -> list[float] | None:
    """Lower quartile, median, upper quartile (of one value, three times itself); None of none."""
    found = sorted(values)
    if not found:
        return None
    if len(found) == 1:
        return found * 3
    return statistics.quantiles(found, n=4, method="inclusive")


def median(values: Iterable[float]) -> float | None:
    """None of none."""
    found = quartiles(values)
    return None if found is None else found[1]


# What else the machine does


def host(ours: Iterable[int] = ()) -> dict[str, Any]:
    """Load, and clock ticks of all cores so far: in all, idle, stolen by the host, and in our processes."""
    reading: dict[str, Any] = {"time": time.time()}
    try:
        load = Path("/proc/loadavg").read_text().split()
        ticks = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except OSError:
        return reading
    reading |= {
        "load": float(load[0]),
        "running": int(load[3].split("/")[0]),
        "ticks": sum(ticks[:8]),
        "idle": ticks[3] + ticks[4],
        "stolen": ticks[7],
        "ours": sum(_ticks(pid) for pid in ours),
    }
    return reading


def between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Shares of all cores' time: what others took, what the host stole; and the load at both ends."""
    found: dict[str, Any] = {"seconds": after["time"] - before["time"]}
    if "ticks" not in before or "ticks" not in after:
        return found
    ticks = max(after["ticks"] - before["ticks"], 1)
    idle, stolen, ours = (after[name] - before[name] for name in ("idle", "stolen", "ours"))
    return {
        **found,
        "load": [before["load"], after["load"]],
        "stolen": stolen / ticks,
        "others": max(ticks - idle - stolen - ours, 0) / ticks,
    }


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def machine() -> dict[str, Any]:
    """Processor, cores, memory, kernel."""
    cpu, memory, flags = platform.processor(), None, ""
    if Path("/proc/cpuinfo").exists():
        lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
        named = {key.strip(): value.strip() for key, value in reversed(lines)}
        cpu = named.get("model name", cpu)
        flags = " ".join(flag for flag in ("avx2", "avx512f", "amx_tile") if flag in named.get("flags", "").split())
    if Path("/proc/meminfo").exists():
        memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    return {
        "cpu": cpu,
        "flags": flags,
        "cores": os.cpu_count(),
        "memory_bytes": memory,
        "system": platform.platform(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
    }


def commit(folder: Path) -> str | None:
    """The commit that is measured, with ``+`` where files differ from it."""
    try:
        head = _git(folder, "rev-parse", "--short=10", "HEAD")
        return head + ("+" if _git(folder, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
