"""Ten days of the daily pipeline on a world that moves: does a model that follows it beat the one of the first day?

    python pipelines/simulation.py [CONFIG] [--days 10] [--still] [--set a.b.c=value ...]

A synthetic world with drift writes its logs (recmtl.etl.sources.synthetic); they are delivered day by day as a shop's
would be, some clicks days late. Each day runs as a scheduler would run it. The first day's model is frozen, and each
later day's model is compared with it on the rows that the day is judged on, by the report's paired differences. The
table is printed and written to OUTPUT/simulation.md, the figures to OUTPUT/simulation.json; the reports lie beside.

A model that goes on from day to day has also seen more rows than the frozen one. How much of the difference that
alone makes is seen with ``--still``, in a world that does not move.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from recmtl import durable, load_config
from recmtl.cli import exit_code_of
from recmtl.config import RunConfig
from recmtl.etl.sources.synthetic import SyntheticConfig, write_logs
from recmtl.etl.sources.synthetic_world import DriftConfig
from recmtl.findings import Report, read_report
from recmtl.progress import Progress, for_stream
from recmtl.stages import evaluate
from recmtl.stages.daily import DailyResult, daily

CONFIG = Path(__file__).parent / "configs" / "simulation.yaml"
START = datetime(2026, 11, 1, tzinfo=UTC)
TIMES = {"impressions": "shown_at", "clicks": "clicked_at", "purchases": "bought_at"}
HISTORY = 5
"""Days of logs before the first day that runs."""
LATE_ON, LATE_BY, LATE_SHARE = 3, 2, 0.05
"""Of the clicks of this day that runs, this share comes this many days late."""


@dataclass(frozen=True)
class Shop:
    """The world's logs, delivered a day at a time."""

    world: Path
    logs: Path
    seed: int = 0

    def open(self, config: SyntheticConfig, progress: Progress) -> None:
        """Write the world's logs, and deliver its tables."""
        write_logs(config, progress)
        durable.make_folder(self.logs)
        for table in ("users", "items"):
            with durable.replacing_file(self.logs / f"{table}.parquet") as unfinished:
                shutil.copyfile(self.world / "logs" / f"{table}.parquet", unfinished)

    def deliver(self, day: date, late: Mapping[date, date]) -> int:
        """What arrives on a day: its own events, but for those that are late, and those that were; returns how many."""
        delivered = 0
        for log, time in TIMES.items():
            rows = pl.read_parquet(self.world / "logs" / f"{log}.parquet").with_row_index("number")
            # A row whose time cannot be read lies between others, and arrives with them.
            stamp = pl.col(time).str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", strict=False)
            happened = pl.when(stamp.dt.year() > 2000).then(stamp.dt.date()).forward_fill().backward_fill()
            waits = pl.lit(log == "clicks") & (pl.col("number").hash(self.seed) % 1000 < 1000 * LATE_SHARE)
            arrives = pl.when(waits).then(happened.replace(late)).otherwise(happened)
            today = rows.filter(arrives == day).drop("number")
            with durable.replacing_file(self.logs / f"{log}-{day}.parquet") as unfinished:
                today.write_parquet(unfinished)
            delivered += today.height
        return delivered


def simulate(
    config: RunConfig,
    days: int = 10,
    *,
    users: int = 10_000,
    items: int = 2_000,
    per_day: int = 20_000,
    drift: DriftConfig | None = None,
    seed: int = 1,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the days and compare each with the first.

    Args:
        config: with event logs under ``OUTPUT/logs``.
        days: that run, after five that are history alone.
        users, items, per_day: size of the world.
        drift: how it moves.
        seed: of the world.
        progress: where to show it.

    Returns:
        The content of ``simulation.json``.
    """
    progress = progress or for_stream()
    output = config.folder
    shop = Shop(output / "world", output / "logs")
    world = SyntheticConfig(
        path=output / "world",
        users=users,
        items=items,
        impressions=per_day * (HISTORY + days),
        days=HISTORY + days,
        start=START,
        seed=seed,
        content_dim=0,
        drift=drift or DriftConfig(tastes=0.15, popularity=0.1, new_users=0.01, new_items=0.01),
    )
    shop.open(world, progress)
    first = START.date() + timedelta(days=HISTORY)
    late = {first + timedelta(days=LATE_ON): first + timedelta(days=LATE_ON + LATE_BY)}
    for number in range(HISTORY):
        shop.deliver(START.date() + timedelta(days=number), late)
    told = []
    for number in range(days):
        day = first + timedelta(days=number)
        shop.deliver(day, late)
        result = daily(config, day, progress=progress)
        if result.status == "failed":
            raise SystemExit(f"{day}: {result.summary['error']}")
        if number == 0:
            shutil.copytree(result.folder / "run" / "package", output / "frozen", dirs_exist_ok=True)
        told.append(_told(config, result, output, first_day=number == 0, progress=progress))
        write(output, told, {str(one): str(other) for one, other in late.items()})
    return write(output, told, {str(one): str(other) for one, other in late.items()})


def _told(
    config: RunConfig, result: DailyResult, output: Path, *, first_day: bool, progress: Progress
) -> dict[str, Any]:
    """A day's line: what the pipeline says of it, and the day's model beside the frozen one."""
    summary = result.summary
    line = {
        "date": summary["date"],
        "status": summary["status"],
        "champion": summary["champion"]["after"] and summary["champion"]["after"]["version"],
        "judged": summary["judged"],
        "days_rebuilt": summary["days_rebuilt"],
        "seconds": round(sum(stage["seconds"] for stage in summary["stages"].values()), 1),
        "report": summary["report"],
        "tasks": {},
    }
    if first_day:
        return line
    place = output / "compared" / summary["date"]
    evaluate(
        config,
        model=str(result.folder / "run" / "package"),
        data=result.folder / "prepared",
        champion=str(output / "frozen"),
        output=place,
        progress=progress,
    )
    line["compared"] = str(place / "report.html")
    line["tasks"] = dict(_differences(read_report(place / "report.json")))
    return line


def _differences(report: Report) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in report.figures:
        if row.metric == "auc" and row.target == row.task and "champion" in row.differences:
            difference = row.differences["champion"]
            yield (
                row.task,
                {
                    "rows": row.rows,
                    "daily": row.systems["model"].value,
                    "frozen": row.systems["champion"].value,
                    "difference": difference.value,
                    "low": difference.low,
                    "high": difference.high,
                    "p_value": difference.p_value,
                },
            )


def write(output: Path, days: Sequence[Mapping[str, Any]], late: Mapping[str, str]) -> dict[str, Any]:
    """Write what is known so far, as JSON and as a page; returns it."""
    tasks = list(dict.fromkeys(task for day in days for task in day["tasks"]))
    means = {
        task: sum(found) / len(found)
        for task in tasks
        if (found := [day["tasks"][task]["difference"] for day in days if task in day["tasks"]])
    }
    better = {task: sum(day["tasks"].get(task, {}).get("low", 0) > 0 for day in days) for task in tasks}
    content = {
        "days": list(days),
        "late": dict(late),
        "mean_difference_in_auc": means,
        "days_significantly_better": better,
        "days_compared": {task: sum(task in day["tasks"] for day in days) for task in tasks},
    }
    durable.write_file(output / "simulation.json", json.dumps(content, indent=2) + "\n")
    durable.write_file(output / "simulation.md", page(content))
    return content


def page(content: Mapping[str, Any]) -> str:
    """The days as a table of Markdown."""
    tasks = list(content["mean_difference_in_auc"])
    header = ["day", "verdict", "champion", "days rebuilt"]
    header += [f"{task}: {what}" for task in tasks for what in ("rows", "daily", "frozen", "difference [95 %]")]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for day in content["days"]:
        cells = [day["date"], day["status"], str(day["champion"] or "none"), str(len(day["days_rebuilt"]))]
        for task in tasks:
            found = day["tasks"].get(task)
            if found is None:
                rows = day["judged"].get(task)
                cells += [f"{rows:,}" if isinstance(rows, int) else str(rows), "", "", ""]
                continue
            cells += [f"{found['rows']:,}", f"{found['daily']:.4f}", f"{found['frozen']:.4f}"]
            cells.append(f"{found['difference']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]")
        lines.append(f"| {' | '.join(cells)} |")
    told = [
        f"- {task}: AUC {mean:+.4f} on average over {content['days_compared'][task]} days, significantly better on "
        f"{content['days_significantly_better'][task]}."
        for task, mean in content["mean_difference_in_auc"].items()
    ]
    return "\n".join(["# The daily model against the first day's", "", *lines, "", *told, ""])


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=CONFIG)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--per-day", type=int, default=20_000, help="impressions")
    parser.add_argument("--still", action="store_true", help="a world without drift")
    parser.add_argument("--set", action="append", default=[], metavar="a.b.c=value", dest="overrides")
    given = parser.parse_args()
    config = load_config(given.config, given.overrides)
    drift = DriftConfig() if given.still else None
    print(page(simulate(config, given.days, per_day=given.per_day, drift=drift)))
    print(config.folder / "simulation.md", file=sys.stderr)


if __name__ == "__main__":
    with exit_code_of():
        _main()
