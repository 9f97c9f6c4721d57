"""The daily pipeline as an Airflow DAG: one run a day, one at a time, in order, each after its day is over.

In: RECMTL_HOME (the checkout), RECMTL_PYTHON, RECMTL_CONFIG. The run of the interval that begins on day D runs D, so
``airflow dags backfill`` (3: ``airflow backfill create``) fills in days. Exit code 1 is tried again, 2 fails at once, 3
(refused by the gate) skips the task: nothing is broken, the champion stays.
"""

import json
import os
import subprocess
from datetime import datetime, timedelta, timezone

try:  # Airflow 3
    from airflow.sdk import dag, task
    from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException
except ImportError:  # Airflow 2, and the first of 3
    from airflow.decorators import dag, task
    from airflow.exceptions import AirflowFailException, AirflowSkipException

HOME = os.environ.get("RECMTL_HOME", "/opt/recmtl")
PYTHON = os.environ.get("RECMTL_PYTHON", f"{HOME}/.venv/bin/python")
CONFIG = os.environ.get("RECMTL_CONFIG", f"{HOME}/shop.yaml")
WRONG, REFUSED = 2, 3


@dag(
    dag_id="recmtl_daily",
    schedule="30 4 * * *",
    start_date=datetime(2026, 11, 1, tzinfo=timezone.utc),  # noqa: UP017 - Airflow 2 runs on Pythons before 3.11
    catchup=True,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=15), "depends_on_past": False},
    doc_md=__doc__,
)
def recmtl_daily() -> None:
    """One task; the pipeline itself goes on where it stopped."""

    @task
    def train_judge_promote(ds: str | None = None) -> dict:
        """Run the day; the summary is the task's XCom."""
        command = [PYTHON, "pipelines/batch_training.py", CONFIG, "--date", str(ds)]
        done = subprocess.run(command, cwd=HOME, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
        if done.returncode == WRONG:
            raise AirflowFailException("wrong config or data: mend it, then clear this task")
        if done.returncode == REFUSED:
            raise AirflowSkipException(json.loads(done.stdout.splitlines()[-1])["error"])
        if done.returncode:
            raise RuntimeError(f"the day failed with exit code {done.returncode}; the next try goes on from there")
        return json.loads(done.stdout.splitlines()[-1])

    train_judge_promote()


recmtl_daily()
