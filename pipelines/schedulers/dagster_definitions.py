"""The daily pipeline as a Dagster asset partitioned by day.

In: RECMTL_HOME (the checkout), RECMTL_PYTHON, RECMTL_CONFIG, RECMTL_FIRST_DAY, RECMTL_WAIT (seconds before another
try). Out: ``defs``; look at them with ``dagster dev -f pipelines/schedulers/dagster_definitions.py``. Partition D runs
day D; the schedule runs each day after it is over, and a backfill of partitions fills in days. Exit code 1 is tried
again, 2 fails at once; 3 (refused by the gate) is no failure: the materialisation says so in its metadata.
"""

import json
import os
import subprocess
from typing import Any

import dagster

HOME = os.environ.get("RECMTL_HOME", "/opt/recmtl")
PYTHON = os.environ.get("RECMTL_PYTHON", f"{HOME}/.venv/bin/python")
CONFIG = os.environ.get("RECMTL_CONFIG", f"{HOME}/shop.yaml")
WRONG, REFUSED = 2, 3

days = dagster.DailyPartitionsDefinition(start_date=os.environ.get("RECMTL_FIRST_DAY", "2026-11-01"))


@dagster.asset(
    partitions_def=days,
    retry_policy=dagster.RetryPolicy(max_retries=3, delay=float(os.environ.get("RECMTL_WAIT", "900"))),
    # Each day begins at the champion that the day before left.
    backfill_policy=dagster.BackfillPolicy.multi_run(max_partitions_per_run=1),
    op_tags={"dagster/concurrency_key": "recmtl_daily"},
)
def champion(context: dagster.AssetExecutionContext) -> dagster.MaterializeResult:
    """The model that serves after this day."""
    command = [PYTHON, "pipelines/batch_training.py", CONFIG, "--date", context.partition_key]
    context.log.info(" ".join(command))
    done = subprocess.run(command, cwd=HOME, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if done.returncode not in (0, REFUSED):
        raise dagster.Failure(
            f"the day failed with exit code {done.returncode}", allow_retries=done.returncode != WRONG
        )
    return dagster.MaterializeResult(metadata=metadata(json.loads(done.stdout.splitlines()[-1])))


def metadata(summary: dict[str, Any]) -> dict[str, Any]:
    """What Dagster shows of a day's summary."""
    after = summary["champion"]["after"]
    return {
        "status": summary["status"],
        "champion": after["version"] if after else "none",
        "judged": dagster.MetadataValue.json(summary["judged"]),
        "seconds": sum(stage["seconds"] for stage in summary["stages"].values()),
        "report": dagster.MetadataValue.path(summary["report"] or ""),
        "summary": dagster.MetadataValue.json(summary),
    }


every_day = dagster.build_schedule_from_partitioned_job(
    dagster.define_asset_job("recmtl_daily", selection=[champion]), hour_of_day=4, minute_of_hour=30
)

defs = dagster.Definitions(assets=[champion], schedules=[every_day])
