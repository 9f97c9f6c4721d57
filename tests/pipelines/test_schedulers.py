"""The schedulers' examples: cron's script and Dagster run for real, Airflow's DAG with stand-ins for Airflow itself."""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCHEDULERS = ROOT / "pipelines" / "schedulers"
DAGSTER = "1.13.29"


def shop_of(folder: Path) -> ModuleType:
    """The small shop of the daily pipeline's tests, its logs and config in a folder."""
    spec = importlib.util.spec_from_file_location("small_shop", ROOT / "tests" / "test_daily.py")
    assert spec is not None
    assert spec.loader is not None
    shop = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(shop)
    shop.write_logs(folder, 6)
    (folder / "shop.yaml").write_text(shop.config_of(folder).to_yaml())
    return shop


def environment(folder: Path) -> dict[str, str]:
    """What the examples read."""
    return {
        **os.environ,
        "RECMTL_HOME": str(ROOT),
        "RECMTL_PYTHON": sys.executable,
        "RECMTL_CONFIG": str(folder / "shop.yaml"),
        "RECMTL_FIRST_DAY": "2026-03-01",
        "RECMTL_LOGS": str(folder / "logs"),
        "RECMTL_WAIT": "0",
    }


@pytest.mark.slow
def test_cron_tries_again_what_may_mend_and_runs_one_at_a_time(tmp_path: Path) -> None:
    shop_of(tmp_path)
    script, variables = SCHEDULERS / "cron.sh", {"RECMTL_TRIES": "2"}

    def cron(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(  # the script under test
            [str(script), *arguments],
            env={**environment(tmp_path), **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    missing = cron(str(tmp_path / "shop.yaml"), "2026-03-10")
    assert missing.returncode == 1
    assert "2026-03-10 failed with exit code 1" in missing.stderr
    assert "no impression of 2026-03-10 yet" in missing.stderr
    tried = [json.loads(line) for line in (tmp_path / "logs" / "shop.jsonl").read_text().splitlines()]
    assert [line["stages"]["prepare"]["attempts"] for line in tried] == [1, 2]
    (tmp_path / "broken.yaml").write_text("name: broken\n")
    wrong = cron(str(tmp_path / "broken.yaml"), "2026-03-05")
    assert wrong.returncode == 2
    lock = tmp_path / "logs" / "shop.lock"
    with subprocess.Popen(["/usr/bin/flock", str(lock), "sleep", "30"]) as holder:
        while subprocess.run(["/usr/bin/flock", "--nonblock", str(lock), "true"], check=False).returncode == 0:
            pass
        held = cron(str(tmp_path / "shop.yaml"), "2026-03-05")
        holder.kill()
    assert held.returncode == 1
    assert "still at an earlier run" in held.stderr


def dagster_python() -> Path:
    """Python of an environment with Dagster alone, made once: its pins need not agree with ours."""
    place = ROOT / "runs" / f".dagster-{DAGSTER}"
    python = place / "bin" / "python"
    if (place / "made").is_file():
        return python
    venv.create(place, with_pip=True, clear=True)
    made = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", f"dagster=={DAGSTER}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    if made.returncode:
        pytest.skip(f"no environment with dagster {DAGSTER}: {made.stderr.strip().splitlines()[-1]}")
    (place / "made").touch()
    return python


MATERIALISE = """
import json, sys
import dagster
sys.path.insert(0, sys.argv[2])
import dagster_definitions as example

dagster.Definitions.validate_loadable(example.defs)
with dagster.DagsterInstance.ephemeral() as instance:
    result = dagster.materialize(
        [example.champion], partition_key=sys.argv[1], instance=instance, raise_on_error=False
    )
    if not result.success:
        tries = sum(event.is_step_start or event.event_type_value == "STEP_RESTARTED" for event in result.all_events)
        print(json.dumps({"success": False, "tries": tries}))
    else:
        (event,) = result.asset_materializations_for_node("champion")
        print(json.dumps({"success": True, **{key: value.value for key, value in event.metadata.items()}}, default=str))
print(json.dumps(example.days.get_partition_keys()[:2]))
"""


@pytest.mark.slow
def test_dagster_runs_a_partition(tmp_path: Path) -> None:
    shop_of(tmp_path)
    python = dagster_python()

    def materialise(day: str, **variables: str) -> tuple[dict[str, Any], list[str]]:
        done = subprocess.run(
            [str(python), "-c", MATERIALISE, day, str(SCHEDULERS)],
            cwd=tmp_path,
            env={**environment(tmp_path), "DAGSTER_DISABLE_TELEMETRY": "1", **variables},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        *_, result, keys = done.stdout.splitlines()
        return json.loads(result), json.loads(keys)

    found, keys = materialise("2026-03-05")
    assert found["success"]
    assert (found["status"], found["champion"]) == ("promoted", 1)
    assert found["judged"]["click"] > 200
    assert found["summary"]["date"] == "2026-03-05"
    assert keys == ["2026-03-01", "2026-03-02"]
    # How often something is tried that ends with these codes in place of the pipeline.
    for code, tries in ((1, 4), (2, 1)):
        home = tmp_path / f"ends with {code}"
        (home / "pipelines").mkdir(parents=True)
        (home / "pipelines" / "batch_training.py").write_text(f"import sys\nsys.exit({code})\n")
        found, _ = materialise("2026-03-05", RECMTL_HOME=str(home))
        assert found == {"success": False, "tries": tries}


class FailError(Exception):
    """Airflow's own of this kind is not tried again."""


class SkipError(Exception):
    """Airflow's own of this kind marks the task skipped."""


@pytest.mark.parametrize(("code", "error"), [(0, None), (1, RuntimeError), (2, FailError), (3, SkipError)])
def test_airflow_maps_the_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, error: type[Exception] | None
) -> None:
    tasks: dict[str, Any] = {}
    options: dict[str, Any] = {}

    def task(function: Any) -> Any:
        tasks[function.__name__] = function
        return lambda: None

    def dag(**given: Any) -> Any:
        options.update(given)
        return lambda function: function

    stand_ins = {
        "airflow": ModuleType("airflow"),
        "airflow.sdk": SimpleNamespace(dag=dag, task=task),
        "airflow.sdk.exceptions": SimpleNamespace(AirflowFailException=FailError, AirflowSkipException=SkipError),
    }
    for name, module in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    # In place of the pipeline, something that ends with this code.
    pipeline = tmp_path / "pipelines" / "batch_training.py"
    pipeline.parent.mkdir()
    pipeline.write_text(f"import sys\nprint('{{\"error\": \"' + sys.argv[3] + '\"}}')\nsys.exit({code})\n")
    monkeypatch.setenv("RECMTL_HOME", str(tmp_path))
    monkeypatch.setenv("RECMTL_PYTHON", sys.executable)
    runpy.run_path(str(SCHEDULERS / "airflow_dag.py"))
    assert options["max_active_runs"] == 1
    run = tasks["train_judge_promote"]
    if error is None:
        assert run(ds="2026-11-23") == {"error": "2026-11-23"}
    else:
        with pytest.raises(error):
            run(ds="2026-11-23")
