"""The daily job: logs in, a registered challenger out. For any scheduler: a function to call, or a script to run.

    python pipelines/batch_training.py CONFIG [a.b.c=value ...]
    python pipelines/batch_training.py CONFIG --date 2026-11-23 [a.b.c=value ...]
    python pipelines/batch_training.py CONFIG --from 2026-11-01 --to 2026-11-23 [a.b.c=value ...]

Without a date it prepares, trains, evaluates and registers what the config describes. With one, the day of evaluation,
it trains on what was known before that day, beginning at the champion, judges both on the labels that became known on
the day, and promotes by the registry's gate (docs/daily.md); the summary of each day is one line of JSON on standard
output.

Run again after a crash or a kill, it goes on where it was; run again after it finished, it says so.

Exit codes with a date: 0 promoted; 1 failed, worth another try; 2 wrong config, arguments or data: do not try again;
3 refused by the gate, or no task could be judged. Of several days: of the one that failed, else of the last.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from recmtl import RunResult, load_config, run
from recmtl.cli import exit_code_of
from recmtl.cli.base import alone
from recmtl.progress import for_stream

if TYPE_CHECKING:
    from recmtl.stages.daily import DailyResult


def batch_training(config: Path | str, overrides: Sequence[str] = (), output: Path | None = None) -> RunResult:
    """Prepare, train, evaluate and register what a config describes.

    Raises:
        recmtl.UserError: the config, its arguments or the data are wrong.
        recmtl.RunError: the run failed.
        recmtl.NotRegisteredError: trained and kept, but the registry was away.
    """
    return run(load_config(config, overrides), output=output, progress=for_stream())


def daily_training(
    config: Path | str, first: date, last: date | None = None, overrides: Sequence[str] = (), *, overwrite: bool = False
) -> "Iterator[DailyResult]":
    """Run one day, or several one after the other; what fails is in the day's result.

    Raises:
        recmtl.UserError: the config cannot run days.
        recmtl.RunError: another process works at these days.
    """
    from recmtl.stages.daily import backfill

    loaded = load_config(config, overrides)
    return backfill(loaded, first, last or first, overwrite=overwrite, progress=for_stream())


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="a.b.c=value")
    days = parser.add_mutually_exclusive_group()
    days.add_argument("--date", type=date.fromisoformat, metavar="DAY", help="the day of evaluation, as 2026-11-23")
    days.add_argument("--from", type=date.fromisoformat, metavar="DAY", dest="first", help="with --to: the first day")
    parser.add_argument("--to", type=date.fromisoformat, metavar="DAY", dest="last", help="the last day")
    parser.add_argument("--overwrite", action="store_true", help="run days anew that are begun or over")
    given = parser.parse_intermixed_args()
    if (given.first is None) != (given.last is None):
        parser.error("--from and --to belong together")
    first = given.date or given.first
    if first is None:
        if given.overwrite:
            parser.error("--overwrite belongs to --date, or to --from and --to")
        print(batch_training(given.config, given.overrides).folder)
        return 0
    alone("--date")
    code = 0
    for result in daily_training(given.config, first, given.last, given.overrides, overwrite=given.overwrite):
        print(json.dumps(result.summary), flush=True)
        if result.summary["error"] is not None:
            print(f"{result.summary['date']}: {result.status}: {result.summary['error']}", file=sys.stderr)
        code = result.exit_code
    return code


if __name__ == "__main__":
    with exit_code_of():
        sys.exit(_main())
