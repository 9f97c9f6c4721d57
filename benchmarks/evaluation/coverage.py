"""Do the intervals hold the truth as often as they say? On a population whose truth is known.

    python benchmarks/evaluation/coverage.py [--repetitions 1000] [--users 1000] [--draws 200] [--output FOLDER]

A population of users: each has a taste, a bias that the model does not see, and a number of rows, so that a user's rows
are alike and intervals from independent rows would be too short. Three systems predict a frequent and a rare binary
task, a rating, a share and a class: ``model``; ``twin``, which errs as much as the model and independently (the true
difference is exactly 0); and ``worse``. The truth of every figure is its value on very large samples of the population.

Each repetition draws new users and measures them as an evaluation does (``recmtl.evaluation.figures``), by the Poisson
bootstrap and by influence functions, and, for comparison, by influence functions that take every row for its own
cluster. Counted are the 95 % intervals that hold the truth, for the model's figures and for its paired differences from
the worse system, and how often the twin is called different at 5 %.

Out: a table, one line of JSON, and with ``--output`` both as ``coverage.md`` and ``coverage.json``.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from recmtl.evaluation import intervals
from recmtl.evaluation.figures import measure_systems
from recmtl.evaluation.intervals import IntervalsConfig
from recmtl.evaluation.score import Scored
from recmtl.tasks import Task, Tasks

TASKS = Tasks(
    [
        Task(name="click", kind="binary", label="click"),
        Task(name="purchase", kind="binary", label="purchase"),
        Task(name="rating", kind="ordinal", label="rating", levels=(1, 2, 3, 4, 5)),
        Task(name="watched", kind="regression", label="watched"),
        Task(name="mood", kind="multiclass", label="mood", classes=("up", "down", "flat")),
    ]
)
BOUNDS = (0.93, 0.97)
METHODS = ("bootstrap", "influence", "rows alone")
ERROR = {"model": 0.5, "twin": 0.5, "worse": 0.8}
"""Standard deviation of each system's own error, on the scale of the log-odds."""
TRUTH_USERS = 2_000_000
TRUTH_PART = 50_000
ROWS_ALONE = 300
"""Repetitions in which intervals from independent rows are made as well: enough to see that they fail."""
_Key = tuple[str, str]


def population(users: int, seed: int | tuple[int, ...]) -> dict[str, Scored]:
    """Rows of so many users, as each system scores them."""
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), 1 + random.geometric(1 / 8, users))
    rows = user.size
    taste, hidden = random.normal(0, 0.8, users)[user], random.normal(0, 0.4, users)[user]
    context = random.normal(0, 1, rows)
    labels = {
        "click": random.random(rows) < _sigmoid(-1.2 + taste + hidden + context),
        "purchase": random.random(rows) < _sigmoid(-5 + taste + hidden + context),
        "rating": np.clip(np.round(2 + taste + hidden + 0.7 * context + random.normal(0, 0.8, rows)), 0, 4),
        "watched": taste + hidden + context + random.normal(0, 1, rows),
    }
    mood = np.stack([taste + hidden + context, context - hidden, np.zeros(rows)], axis=1)
    labels["mood"] = (mood + random.gumbel(size=(rows, 3))).argmax(axis=1)
    found = {}
    for system, error in ERROR.items():
        # Half of a system's error is the same on all rows of a user.
        wrong = error * (random.normal(0, 1, users)[user] + random.normal(0, 1, rows)) / np.sqrt(2)
        seen = taste + context + wrong
        classes = np.stack([seen, context - wrong, np.zeros(rows)], axis=1)
        classes = np.exp(classes - classes.max(axis=1, keepdims=True))
        classes /= classes.sum(axis=1, keepdims=True)
        predictions = {
            "click": _sigmoid(-1.2 + seen),
            "purchase": _sigmoid(-5 + seen),
            "rating": np.clip(3 + taste + 0.7 * context + wrong, 1, 5),
            "watched": seen,
            **{f"mood_{name}": classes[:, place] for place, name in enumerate(("up", "down", "flat"))},
        }
        found[system] = Scored(
            predictions={name: values.astype(np.float32) for name, values in predictions.items()},
            labels={name: values.astype(np.float32) for name, values in labels.items()},
            observed={name: np.ones(rows, bool) for name in TASKS},
            group=user,
            row=np.arange(rows),
        )
    return found


def _sigmoid(values: Any) -> Any:
    return 1 / (1 + np.exp(-values))


def _values(users: int, seed: tuple[int, ...]) -> dict[str, dict[_Key, float]]:
    measured = measure_systems(population(users, seed), TASKS, settings=IntervalsConfig(draws=0))
    return {
        system: {
            (target, metric): value
            for target, values in measured.values(system).items()
            for metric, value in values.items()
            if value is not None
        }
        for system in ERROR
    }


def truth(users: int = TRUTH_USERS, each: Callable[..., Iterable[Any]] = map) -> dict[str, dict[_Key, float]]:
    """System to (target, metric) to its value on a very large sample: a mean of parts, each itself large.

    Args:
        users: of all parts together.
        each: ``map``, or that of an executor.
    """
    size = min(users, TRUTH_PART)
    parts = list(each(_values, *zip(*[(size, (2, part)) for part in range(users // size)], strict=True)))
    return {
        system: {key: float(np.mean([part[system][key] for part in parts])) for key in parts[0][system]}
        for system in ERROR
    }


def repetition(number: int, users: int, draws: int, seed: int = 1) -> dict[str, list[tuple[_Key, str, Any, Any]]]:
    """The ends of every interval of one sample, by each method."""
    intervals.MAX_THREADS = 1  # the repetitions are what runs side by side
    scored = population(users, (seed, number))
    found = {}
    for method in METHODS if number < ROWS_ALONE else METHODS[:2]:
        settings = IntervalsConfig(draws=draws, seed=number, bootstrap_rows=10**9 if method == "bootstrap" else 0)
        rows = scored
        if method == "rows alone":
            rows = {system: replace(one, group=None) for system, one in scored.items()}
        found[method] = [
            (
                (row.target, row.metric),
                row.headline,
                (row.systems["model"].value, row.systems["model"].low, row.systems["model"].high),
                {other: (one.low, one.high, one.p_value) for other, one in row.differences.items()},
            )
            for row in measure_systems(rows, TASKS, settings=settings).figures()
            if row.method != "none"
        ]
    return found


def main() -> None:
    """Count, and print."""
    options = _options()
    started = time.time()
    counts: dict[str, dict[_Key, dict[str, list[float]]]] = {method: {} for method in METHODS}
    headline: dict[_Key, bool] = {}
    with ProcessPoolExecutor(options.processes) as processes:
        jobs = [
            processes.submit(repetition, number, options.users, options.draws, options.seed)
            for number in range(options.repetitions)
        ]
        true = truth(options.truth_users, processes.map)
        for job in jobs:
            for method, lines in job.result().items():
                for key, shown, (value, low, high), differences in lines:
                    headline[key] = shown
                    count = counts[method].setdefault(
                        key, {name: [] for name in ("own", "worse", "twin", "below", "value")}
                    )
                    if low is not None:
                        count["own"].append(low <= true["model"][key] <= high)
                        count["below"].append(high < true["model"][key])
                        count["value"].append(value)
                    if "worse" in differences and differences["worse"][0] is not None:
                        apart = true["model"][key] - true["worse"][key]
                        count["worse"].append(differences["worse"][0] <= apart <= differences["worse"][1])
                        count["twin"].append(differences["twin"][2] < 0.05)
    lines = [_line(key, headline[key], true, counts) for key in headline]
    result = {
        "benchmark": "coverage",
        "repetitions": options.repetitions,
        "users": options.users,
        "rows": round(options.users * 9),
        "draws": options.draws,
        "seed": options.seed,
        "truth_users": options.truth_users,
        "seconds": round(time.time() - started, 1),
        "missed": [
            f"{line['target']}.{line['metric']} {method}: {line['coverage'][method]:.3f}"
            for line in lines
            for method in METHODS[:2]
            if not BOUNDS[0] <= (line["coverage"][method] or 0) <= BOUNDS[1]
        ],
        "figures": lines,
    }
    table = _table(result)
    print(table)
    print(json.dumps(result))
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "coverage.md").write_text(table + "\n")
        (options.output / "coverage.json").write_text(json.dumps(result, indent=2) + "\n")


def _line(
    key: _Key, headline: bool, true: Mapping[str, Mapping[_Key, float]], counts: Mapping[str, Any]
) -> dict[str, Any]:
    def share(name: str) -> dict[str, float | None]:
        return {
            method: round(float(np.mean(counts[method][key][name])), 4)
            if counts[method].get(key, {}).get(name)
            else None
            for method in METHODS
        }

    value = counts["influence"][key]["value"]
    return {
        "target": key[0],
        "metric": key[1],
        "headline": headline,
        "truth": true["model"][key],
        "bias_in_deviations": round(float((np.mean(value) - true["model"][key]) / np.std(value)), 3),
        "coverage": share("own"),
        "too_low": share("below"),
        "coverage_of_difference": share("worse"),
        "false_rejections": share("twin"),
    }


def _table(result: Mapping[str, Any]) -> str:
    def cell(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f}"

    lines = [
        f"{result['repetitions']} samples of {result['users']} users with about {result['rows']} rows; bootstrap of "
        f"{result['draws']} draws; truth from {result['truth_users']} users. Per cent of 95 % intervals that hold it:",
        "",
        "| target | metric | truth | bootstrap | influence | rows alone | difference: bootstrap | influence "
        "| equal called different at 5 %: bootstrap | influence |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in result["figures"]:
        own, apart, twin = one["coverage"], one["coverage_of_difference"], one["false_rejections"]
        cells = [own[method] for method in METHODS] + [apart[m] for m in METHODS[:2]] + [twin[m] for m in METHODS[:2]]
        lines.append(
            f"| {one['target']} | {one['metric']} | {one['truth']:.4f} | " + " | ".join(map(cell, cells)) + " |"
        )
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--users", type=int, default=1000, help="of each sample; nine rows each on average")
    parser.add_argument("--draws", type=int, default=200, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=1, help="of the samples; the truth has its own")
    parser.add_argument("--truth-users", type=int, default=TRUTH_USERS)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, help="a folder for coverage.md and coverage.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
