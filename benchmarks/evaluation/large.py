"""Evaluating more rows than memory holds: seconds, memory, and what was found.

    python benchmarks/evaluation/large.py [--rows 50000000] [--users 2000000] [--folder FOLDER] [--output FOLDER]

Two systems and the baseline on a click, a rare purchase (one row in a thousand) and a rating that is observed on clicks
alone. Predictions and labels are made piece by piece and written straight to columns on disk, as
``recmtl.evaluation.score(spill=…)`` writes them; then another process, so that its memory is its own, measures every
metric of every system with intervals and paired differences (:func:`recmtl.evaluation.figures.measure_systems`).
With ``--check`` the rows are measured in memory too, and the figures compared (for numbers of rows that fit).

Out: a table, one line of JSON, and with ``--output`` both as ``large.md`` and ``large.json``. Peak memory is the
highest resident set of the process that measures; the folder needs some 80 bytes a row.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from recmtl.evaluation.figures import measure_systems
from recmtl.evaluation.intervals import IntervalsConfig
from recmtl.evaluation.score import Scored
from recmtl.evaluation.spill import Spill, pieces
from recmtl.findings import FigureRow
from recmtl.statistics import LabelStatistics, Statistics
from recmtl.tasks import Observed, Task, Tasks

TASKS = Tasks(
    [
        Task(name="click", kind="binary", label="click"),
        Task(name="purchase", kind="binary", label="purchase"),
        Task(name="rating", kind="ordinal", label="rating", levels=(1, 2, 3, 4, 5), observed=Observed(when="click")),
    ]
)
STATISTICS = Statistics(
    tables={},
    numbers={},
    labels={
        "click": LabelStatistics(1000, 0.2, 0.4),
        "purchase": LabelStatistics(1000, 0.001, 0.03),
        "rating": LabelStatistics(1000, 3.0, 1.0, (0.1, 0.2, 0.4, 0.2, 0.1)),
    },
)
SYSTEMS = {"model": 0.5, "champion": 0.55}
"""System to the standard deviation of its error."""


def write(folder: Path, rows: int, users: int, seed: int) -> None:
    """The columns of every system, piece by piece; labels and users once."""
    taste = np.random.default_rng((seed, 0)).normal(0, 0.8, users).astype(np.float32)
    with Spill(folder) as spill:
        for number, (start, stop) in enumerate(pieces(rows)):
            random = np.random.default_rng((seed, 1, number))
            user = random.integers(0, users, stop - start)
            context = random.normal(0, 1, user.size)
            score = taste[user] + context
            click = random.random(user.size) < _sigmoid(-1.8 + score)
            spill.append("group", user * 7919 + 10**12)  # users are hashes: neither small nor close together
            spill.append("row", np.arange(start, stop))
            spill.append("labels:click", click.astype(np.float32))
            bought = random.random(user.size) < _sigmoid(-8 + score)
            spill.append("labels:purchase", bought.astype(np.float32))
            rating = np.clip(np.round(2 + 0.6 * score + random.normal(0, 0.8, user.size)), 0, 4)
            spill.append("labels:rating", rating.astype(np.float32))
            spill.append("observed:all", np.ones(user.size, bool))
            spill.append("observed:rating", click)
            for system, error in SYSTEMS.items():
                seen = score + random.normal(0, error, user.size)
                spill.append(f"{system}:click", _sigmoid(-1.8 + seen).astype(np.float32))
                spill.append(f"{system}:purchase", _sigmoid(-8 + seen).astype(np.float32))
                spill.append(f"{system}:rating", np.clip(3 + 0.6 * seen, 1, 5).astype(np.float32))
        columns = spill.columns
    (folder / "columns.json").write_text(json.dumps(columns))


def scored(folder: Path, in_memory: bool = False) -> dict[str, Scored]:
    """The systems' rows as memory maps of the written columns, or copied to memory."""
    names = json.loads((folder / "columns.json").read_text())

    def column(name: str, dtype: str) -> Any:
        values = np.memmap(folder / f"{names.index(name)}.bin", dtype, mode="r")
        return np.array(values) if in_memory else values

    labels = {name: column(f"labels:{name}", "float32") for name in TASKS}
    observed = {name: column("observed:rating" if name == "rating" else "observed:all", "bool") for name in TASKS}
    group, row = column("group", "int64"), column("row", "int64")
    return {
        system: Scored({name: column(f"{system}:{name}", "float32") for name in TASKS}, labels, observed, group, row)
        for system in SYSTEMS
    }


def measured(folder: Path, in_memory: bool = False) -> dict[str, Any]:
    """Measure what was written; figures, seconds and peak memory."""
    before, started = _peak(), time.time()
    settings = IntervalsConfig(bootstrap_rows=0, memory_rows=10**12 if in_memory else 1)
    found = measure_systems(scored(folder, in_memory), TASKS, STATISTICS, settings=settings, folder=folder)
    return {
        "seconds": round(time.time() - started, 1),
        "memory_before_mb": before,
        "peak_memory_mb": _peak(),
        "clusters": found.clusters,
        "figures": [row.model_dump() for row in found.figures()],
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _sigmoid(values: Any) -> Any:
    return 1 / (1 + np.exp(-values))


def main() -> None:
    """Write, measure in a process of its own, print."""
    options = _options()
    if options.measure is not None:
        print(json.dumps(measured(options.measure, options.in_memory)))
        return
    with tempfile.TemporaryDirectory(prefix="recmtl-large-", dir=options.folder) as place:
        folder, started = Path(place), time.time()
        write(folder, options.rows, options.users, options.seed)
        written = round(time.time() - started, 1)
        size = sum(path.stat().st_size for path in folder.iterdir())
        found = _apart(folder)
        if options.check:
            _compare(found, _apart(folder, "--in-memory"))
    rows = [FigureRow.model_validate(row) for row in found.pop("figures")]
    result = {
        "benchmark": "large",
        "rows": options.rows,
        "users": options.users,
        "systems": [*SYSTEMS, "baseline"],
        "targets": list(TASKS),
        "columns_mb": size // 2**20,
        "seconds_writing": written,
        **found,
        "rows_per_second": round(options.rows / found["seconds"]),
        "cores": os.cpu_count(),
        "figures": {
            f"{row.target}.{row.metric}": [
                row.systems["model"].value,
                row.systems["model"].low,
                row.systems["model"].high,
            ]
            for row in rows
        },
    }
    table = _table(result, rows)
    print(table)
    print(json.dumps(result))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "large.md").write_text(table + "\n")
        (options.output / "large.json").write_text(json.dumps(result, indent=2) + "\n")


def _apart(folder: Path, *flags: str) -> Any:
    command = [sys.executable, __file__, "--measure", str(folder), *flags]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _compare(found: Any, in_memory: Any) -> None:
    """Raise unless two measurements agree to 1e-9."""
    for one, other in zip(found["figures"], in_memory["figures"], strict=True):
        for kind in ("systems", "differences"):
            for system, figure in one[kind].items():
                for name, value in figure.items():
                    expected = other[kind][system][name]
                    same = value == expected or abs(value - expected) <= 1e-9 * max(1, abs(expected))
                    assert same, (one["target"], one["metric"], system, name, value, expected)


def _table(result: dict[str, Any], rows: list[FigureRow]) -> str:
    lines = [
        f"{result['rows']:,} rows of {result['clusters']:,} users, {len(TASKS)} tasks, {len(SYSTEMS)} systems and the "
        f"baseline: {result['seconds']} s, peak memory {result['peak_memory_mb']} MiB (columns on disk: "
        f"{result['columns_mb']} MiB).",
        "",
        "| target | metric | model | 95 % interval | less champion | p |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        own, apart = row.systems["model"], row.differences.get("champion")
        ends = "–" if own.low is None else f"{own.low:.6f} to {own.high:.6f}"
        less = "–" if apart is None or apart.value is None else f"{apart.value:+.6f}"
        p_value = "–" if apart is None or apart.p_value is None else f"{apart.p_value:.2g}"
        value = "–" if own.value is None else f"{own.value:.6f}"
        lines.append(f"| {row.target} | {row.metric} | {value} | {ends} | {less} | {p_value} |")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--users", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where columns and sorted files are, for a while")
    parser.add_argument("--output", type=Path, help="a folder for large.md and large.json")
    parser.add_argument("--check", action="store_true", help="measure in memory too, and compare")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--in-memory", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
