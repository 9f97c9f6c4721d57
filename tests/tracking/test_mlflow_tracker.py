"""What reaches MLflow, through resumes, kills and servers that are away."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recmtl import durable
from recmtl.errors import NotRegisteredError, UserError
from recmtl.findings import Report
from recmtl.manifest import file_hash
from recmtl.package import verify_package
from recmtl.progress import Silent
from recmtl.tracking import NullTracker, RegisteredVersion, TrackingConfig, open_tracker, registry, resolved, sync
from recmtl.tracking.client import connect, quietly
from recmtl.tracking.mlflow_tracker import MlflowTracker

Make = Callable[..., MlflowTracker]


def steps(client: Any, tracker: MlflowTracker, key: str = "loss") -> list[int]:
    """The steps of a metric's points as the store has them, sorted."""
    with quietly():
        return sorted(point.step for point in client.get_metric_history(tracker.run_id, key))


def run_of(client: Any, tracker: MlflowTracker) -> Any:
    with quietly():
        return client.get_run(tracker.run_id)


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# All of it arrives


def test_a_whole_run(make_tracker: Make, client: Any, uri: str, tmp_path: Path) -> None:
    tracker = make_tracker(uri)
    tracker.params({"model": {"tower": {"kind": "mmoe"}}, **{f"p{i}": i for i in range(250)}})
    for step in range(1200):
        tracker.metrics({"loss": 1 / (step + 1), "odd näme (§)": step}, step)
    tracker.tags({"kind": "first"})
    tracker.tags({"kind": "second"})
    (tmp_path / "run" / "metrics.json").write_text("{}")
    tracker.artifact(tmp_path / "run" / "metrics.json")
    (tmp_path / "report.md").write_text("# far away")
    tracker.artifact(tmp_path / "report.md", "reports/last.md")
    tracker.dataset("demo", "ab" * 32, source="logs/*.csv", details={"rows": 7})
    tracker.finish()

    run = run_of(client, tracker)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    assert run.data.params["model.tower.kind"] == "mmoe"
    assert len(run.data.params) == 251
    assert steps(client, tracker) == list(range(1200))
    assert steps(client, tracker, "odd näme ___") == list(range(1200))
    assert run.data.metrics["loss"] == 1 / 1200
    assert run.data.tags["kind"] == "second"
    with quietly():
        files = {item.path for item in client.list_artifacts(run.info.run_id)}
        assert files == {"metrics.json", "reports"}
        assert [item.path for item in client.list_artifacts(run.info.run_id, "reports")] == ["reports/last.md"]
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == "ab" * 16
    assert json.loads(dataset.dataset.profile) == {"sha256": "ab" * 32, "rows": 7}
    assert tracker.delivered


def test_artifacts_lie_beside_the_database_wherever_one_stands(
    make_tracker: Make, client: Any, uri: str, tmp_path: Path
) -> None:
    tracker = make_tracker(uri, experiment="a b/ü")
    (tmp_path / "run" / "metrics.json").write_text("{}")
    tracker.artifact(tmp_path / "run" / "metrics.json")
    tracker.finish()
    assert len(list((tmp_path / "store" / "mlartifacts" / "a_b_ü").rglob("metrics.json"))) == 1
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_an_experiment_that_is_there_keeps_its_place(make_tracker: Make, client: Any, uri: str, tmp_path: Path) -> None:
    with quietly():
        client.create_experiment("theirs", artifact_location=(tmp_path / "theirs").as_uri())
    tracker = make_tracker(uri, experiment="theirs")
    (tmp_path / "run" / "x.txt").write_text("x")
    tracker.artifact(tmp_path / "run" / "x.txt")
    tracker.finish()
    assert len(list((tmp_path / "theirs").rglob("x.txt"))) == 1


def test_a_deleted_experiment_says_what_to_do(make_tracker: Make, client: Any, uri: str) -> None:
    with quietly():
        client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UserError, match=r"tracking\.experiment: 'gone' was deleted .* restore"):
        make_tracker(uri, experiment="gone")


def test_the_machine_is_sampled_and_its_steps_go_on(make_tracker: Make, client: Any, uri: str) -> None:
    for _ in range(2):
        tracker = make_tracker(uri, system_metrics_seconds=0.05)
        deadline = time.monotonic() + 20
        last = tracker._journal.last_step.get
        start = last("system/cpu_utilization_percentage", -1)
        while last("system/cpu_utilization_percentage", -1) < start + 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        tracker.finish()
    got = steps(client, tracker, "system/cpu_utilization_percentage")
    assert got == list(range(len(got)))
    assert len(got) >= 6


def test_switched_off(tmp_path: Path) -> None:
    tracker = open_tracker(TrackingConfig(enabled=False), tmp_path / "tracking", name="x", progress=Silent())
    assert isinstance(tracker, NullTracker)
    assert not (tmp_path / "tracking").exists()


# Resumed and killed


def test_a_journal_that_lost_its_end_is_sent_from_its_beginning(
    make_tracker: Make, client: Any, uri: str, tmp_path: Path
) -> None:
    """A power loss may take what was appended last; the mark of the longer journal must not hide what comes next."""
    first = make_tracker(uri)
    for step in range(10):
        first.metrics({"loss": float(step)}, step)
    first.close()
    journal = tmp_path / "run" / "tracking" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-5]))
    second = make_tracker(uri)
    for step in range(5, 15):
        second.metrics({"loss": float(step)}, step)
    second.close()
    assert second.delivered
    assert steps(client, second) == list(range(15))


def test_what_a_store_acknowledged_is_on_the_disk_first(
    make_tracker: Make, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    class Noting(durable.Files):
        def fsync(self, path: Path) -> None:
            order.append(path.name)
            super().fsync(path)

        def rename(self, source: Path, target: Path) -> None:
            order.append(f"to {target.name}")
            super().rename(source, target)

    tracker = make_tracker(uri)
    monkeypatch.setattr(durable, "files", Noting())
    tracker.metrics({"loss": 1.0}, 0)
    tracker._send()
    assert order.index("journal.jsonl") < order.index("to sent.json")


def test_a_wish_to_register_counts_once_it_is_the_last_of_its_kind(
    make_tracker: Make, uri: str, saved: Path, tmp_path: Path
) -> None:
    """The package was made again after the first wish, which is void then: nothing is registered for it."""
    package = tmp_path / "run" / "package"
    shutil.copytree(saved, package)
    tracker = make_tracker(uri)
    tracker._journal.append({"kind": "register", "package": "package", "model": "ranker", "alias": None, "report": "x"})
    tracker.kill()
    again = make_tracker(uri)
    version = again.register(package, "ranker", None)
    assert version is not None
    assert version.version == 1
    again.close()
    assert again.delivered


def test_equal_wishes_to_register_make_one_version(
    make_tracker: Make, client: Any, uri: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that failed leaves its wish, the next one has the same; recmtl's files change meanwhile."""
    sources = iter(range(10))
    monkeypatch.setattr(registry, "_source_hashes", lambda: {"recmtl/__init__.py": str(next(sources))})
    package = tmp_path / "run" / "package"
    shutil.copytree(saved, package)
    tracker = make_tracker(uri)
    tracker._journal.append({"kind": "register", "package": "package", "model": "ranker", "alias": "challenger"})
    tracker.kill()
    again = make_tracker(uri)
    assert again.register(package, "ranker", "challenger") == RegisteredVersion("ranker", 1, "challenger")
    assert again.delivered
    assert [int(one.version) for one in client.search_model_versions("name = 'ranker'")] == [1]


@pytest.mark.parametrize("call", ["log_model_artifacts", "create_model_version", "set_registered_model_alias"])
def test_a_registration_that_a_full_disk_ends_is_made_up_for(
    make_tracker: Make, client: Any, uri: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The wish stays open, the rest reaches the store, and a sync registers one version."""
    from mlflow import MlflowClient

    package = tmp_path / "run" / "package"
    shutil.copytree(saved, package)
    tracker = make_tracker(uri)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, broken)
        with pytest.raises(NotRegisteredError, match=r"the disk is full.*recmtl tracking sync"):
            tracker.register(package, "ranker", "challenger")
        tracker.metrics({"loss": 0.5}, 3)
        tracker.finish()
    assert not tracker.delivered
    assert steps(client, tracker) == [3]
    assert run_of(client, tracker).info.status == "FINISHED"
    synced = sync(tmp_path / "run", uri=uri, progress=Silent())
    assert synced.registered == (RegisteredVersion("ranker", 1, "challenger"),)
    assert [int(one.version) for one in client.search_model_versions("name = 'ranker'")] == [1]
    assert steps(client, tracker) == [3]


def test_a_resumed_run_is_the_same_run_without_doubled_points(make_tracker: Make, client: Any, uri: str) -> None:
    first = make_tracker(uri)
    first.params({"seed": 1})
    for step in range(10):
        first.metrics({"loss": float(step)}, step)
    first.kill()
    second = make_tracker(uri)
    second.params({"seed": 1})
    for step in range(6, 15):  # from its checkpoint
        second.metrics({"loss": float(step)}, step)
    second.finish()
    assert steps(client, second) == list(range(15))
    with quietly():
        assert len(client.search_runs([run_of(client, second).info.experiment_id])) == 1


def test_killed_between_sending_and_noting_it(make_tracker: Make, client: Any, uri: str, tmp_path: Path) -> None:
    first = make_tracker(uri)
    for step in range(10):
        first.metrics({"loss": float(step)}, step)
    first.close()
    sent = tmp_path / "run" / "tracking" / "sent.json"
    state = json.loads(sent.read_text())
    for store in state["stores"].values():
        store["acknowledged"] = 0
    sent.write_text(json.dumps(state))
    second = make_tracker(uri)
    second.metrics({"loss": 10.0}, 10)
    second.finish()
    assert second.run_id == first.run_id
    assert steps(client, second) == list(range(11))


def test_killed_before_the_runs_id_was_noted(make_tracker: Make, client: Any, uri: str, tmp_path: Path) -> None:
    first = make_tracker(uri)
    first.metrics({"loss": 0.0}, 0)
    first.close()
    (tmp_path / "run" / "tracking" / "sent.json").unlink()
    second = make_tracker(uri)
    second.finish()
    assert second.run_id == first.run_id
    assert steps(client, second) == [0]


def test_a_journal_that_lost_its_end_does_not_double_what_was_sent(
    make_tracker: Make, client: Any, uri: str, tmp_path: Path
) -> None:
    first = make_tracker(uri)
    for step in range(10):
        first.metrics({"loss": float(step)}, step)
    first.close()
    path = tmp_path / "run" / "tracking" / "journal.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))  # a power cut
    second = make_tracker(uri)
    for step in range(12):
        second.metrics({"loss": float(step)}, step)
    second.finish()
    assert steps(client, second) == list(range(12))


KILLED = """
import sys
from pathlib import Path
from recmtl.progress import Silent
from recmtl.tracking.mlflow_tracker import MlflowTracker

tracker = MlflowTracker(Path(sys.argv[1]), uri=sys.argv[2], experiment="tests", name="run", progress=Silent())
tracker.start()
print("started", flush=True)
for step in range(10**9):
    tracker.metrics({"loss": float(step)}, step)
    if step % 50 == 0:
        tracker.flush()
"""


def test_sigkill_at_any_moment(make_tracker: Make, client: Any, uri: str, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "tracking"
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(folder), uri]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(1.0)
        process.send_signal(signal.SIGKILL)
    tracker = make_tracker(uri)
    last = tracker._journal.last_step["loss"]
    assert last > 50
    for step in range(last - 20, last + 5):
        tracker.metrics({"loss": float(step)}, step)
    tracker.finish()
    assert steps(client, tracker) == list(range(last + 5))


def test_a_finished_run_that_goes_on_is_running_again(make_tracker: Make, client: Any, uri: str) -> None:
    first = make_tracker(uri)
    first.finish("FAILED")
    assert run_of(client, first).info.status == "FAILED"
    second = make_tracker(uri)
    assert run_of(client, second).info.status == "RUNNING"
    second.finish()
    assert run_of(client, second).info.status == "FINISHED"


def test_a_stage_that_closes_leaves_the_run_running(make_tracker: Make, client: Any, uri: str) -> None:
    first = make_tracker(uri)
    first.metrics({"loss": 1.0}, 1)
    first.close()
    assert run_of(client, first).info.status == "RUNNING"
    assert steps(client, first) == [1]


def test_two_at_once_are_refused(make_tracker: Make, uri: str) -> None:
    make_tracker(uri)
    with pytest.raises(UserError, match="another process tracks this run"):
        make_tracker(uri)


def test_a_run_that_was_deleted_on_the_store_begins_anew(make_tracker: Make, client: Any, uri: str) -> None:
    first = make_tracker(uri)
    first.metrics({"loss": 0.0}, 0)
    first.close()
    with quietly():
        client.delete_run(first.run_id)
    second = make_tracker(uri)
    second.finish()
    assert second.run_id != first.run_id
    assert steps(client, second) == [0]


# A store that is away, or refuses


def test_a_server_that_is_away_costs_a_warning_and_no_point(
    make_tracker: Make, client: Any, uri: str, sample: Any, tmp_path: Path
) -> None:
    progress = Silent()
    package = sample.save(tmp_path / "run" / "package")
    away = make_tracker(f"http://127.0.0.1:{unused_port()}", progress=progress)
    for step in range(5):
        away.metrics({"loss": float(step)}, step)
        away.flush()
    with pytest.raises(NotRegisteredError, match=rf"recmtl tracking sync {tmp_path / 'run'}"):
        away.register(package, "ranker", "challenger")
    away.finish()
    assert next(warning.split(" (")[0] for warning in progress.warnings).startswith("the tracking store http://127")
    assert len(progress.warnings) == 1  # at the start; the error says the rest
    assert away.run_id is None

    with pytest.raises(NotRegisteredError, match="is still not sent"):
        sync(tmp_path / "run", progress=progress)
    synced = sync(tmp_path / "run", uri=uri, progress=progress)
    assert [version.uri for version in synced.registered] == ["models:/ranker@challenger"]
    assert steps(client, type("Run", (), {"run_id": synced.run_id})()) == list(range(5))
    with quietly():
        assert client.get_run(synced.run_id).info.status == "FINISHED"
    assert sync(tmp_path / "run", uri=uri, progress=progress) == synced


def test_a_run_that_ends_unsent_says_what_sends_it(make_tracker: Make, tmp_path: Path) -> None:
    progress = Silent()
    away = make_tracker(f"http://127.0.0.1:{unused_port()}", progress=progress)
    away.metrics({"loss": 1.0}, 1)
    away.finish()
    assert f"recmtl tracking sync {tmp_path / 'run'}" in progress.warnings[-1]


def test_a_store_that_comes_back_gets_everything(make_tracker: Make, client: Any, uri: str, tmp_path: Path) -> None:
    progress = Silent()
    tracker = make_tracker(uri, progress=progress)
    lock = sqlite3.connect(tmp_path / "store" / "mlflow.db", timeout=0)
    tracker._client.log_batch, real = broken, tracker._client.log_batch
    tracker.metrics({"loss": 0.0}, 0)
    tracker._send()
    assert not tracker.delivered
    tracker._client.log_batch = real
    lock.close()
    tracker.metrics({"loss": 1.0}, 1)
    tracker.finish()
    assert steps(client, tracker) == [0, 1]
    assert len(progress.warnings) == 1
    assert "the disk is full" in progress.warnings[0]


def test_registered_again_while_the_store_is_away(
    make_tracker: Make, uri: str, sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    package = sample.save(tmp_path / "run" / "package")
    tracker = make_tracker(uri)
    first = tracker.register(package, "ranker", "challenger")
    assert first is not None
    assert tracker.registered == (first,)
    type(sample)(seed=9).save(package)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_registered_model", broken)
        with pytest.raises(NotRegisteredError, match="the disk is full"):
            tracker.register(package, "ranker", "challenger")
    second = tracker.register(package, "ranker", "challenger")
    assert second is not None
    assert (first.version, second.version) == (1, 2)


def test_the_verdict_survives_a_server_that_is_away(
    make_tracker: Make, client: Any, uri: str, sample: Any, make_report: Callable[..., Report], tmp_path: Path
) -> None:
    package = sample.save(tmp_path / "run" / "package")
    path = tmp_path / "run" / "report.json"
    digest = verify_package(package).digest
    path.write_text(make_report(model=digest, champion=False, decision="refuse").model_dump_json())
    judged_by = file_hash(path)
    away = make_tracker(f"http://127.0.0.1:{unused_port()}")
    with pytest.raises(NotRegisteredError):
        away.register(package, "ranker", "challenger", path)
    away.finish()
    path.write_text("overwritten by a later evaluation")

    synced = sync(tmp_path / "run", uri=uri, progress=Silent())
    assert synced.registered == (RegisteredVersion("ranker", 1, None),), "refused, so no alias"
    with quietly():
        version = client.get_model_version("ranker", "1")
    assert version.tags["recmtl.gate.report"] == judged_by
    assert version.tags["recmtl.gate"] == "refuse"
    assert version.description.startswith("# demo")
    # Judged anew, it is registered anew under the same number, and has the alias.
    path.write_text(make_report(model=digest, champion=False, decision="promote").model_dump_json())
    tracker = make_tracker(uri)
    assert tracker.register(package, "ranker", "challenger", path) == RegisteredVersion("ranker", 1, "challenger")
    assert tracker.registered[-1] == RegisteredVersion("ranker", 1, "challenger")


def broken(*_: Any, **__: Any) -> None:
    raise OSError("the disk is full")


def test_one_bad_record_does_not_hold_up_the_rest(make_tracker: Make, client: Any, uri: str) -> None:
    progress = Silent()
    tracker = make_tracker(uri, progress=progress)
    with quietly():
        client.log_param(tracker.run_id, "seed", "another")
    tracker.params({"seed": 1, "other": 2})
    tracker.metrics({"loss": float("nan"), "gain": float("inf")}, 0)
    tracker.finish()
    data = run_of(client, tracker).data
    assert data.params == {"seed": "another", "other": "2"}
    assert set(data.metrics) == {"loss", "gain"}
    assert any("does not take 'seed'" in warning for warning in progress.warnings)
    assert tracker.delivered


def test_an_artifact_that_is_gone_is_named(make_tracker: Make, uri: str, tmp_path: Path) -> None:
    progress = Silent()
    tracker = make_tracker(uri, progress=progress)
    tracker._stop_thread()
    path = tmp_path / "run" / "x.txt"
    path.write_text("x")
    tracker.artifact(path)
    path.unlink()
    tracker.finish()
    assert any("x.txt is gone" in warning for warning in progress.warnings)
    assert tracker.delivered


def test_sync_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run was tracked in this folder"):
        sync(tmp_path, progress=Silent())


# Secrets


def test_a_password_is_written_nowhere(make_tracker: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    progress = Silent()
    address = f"http://ann:s3cret@127.0.0.1:{unused_port()}"
    tracker = make_tracker(address, progress=progress)
    tracker.params({"tracking": {"uri": address}})
    tracker.tags({"store": address})
    tracker.dataset("demo", "0" * 64, source="https://ann:s3cret@host/x.csv")
    with pytest.raises(NotRegisteredError) as raised:
        tracker.register(tmp_path / "run" / "package", "ranker", None)
    tracker.finish()
    said = [*progress.warnings, str(raised.value), *capfd.readouterr()]
    written = [path.read_text() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(written) >= 2
    assert not [text for text in (*said, *written) if "s3cret" in text or "ann" in text.split("://", 1)[-1][:4]]
    with pytest.raises(UserError, match="held a password, which recmtl does not keep"):
        sync(tmp_path / "run", progress=progress)


# A real server


@pytest.mark.slow
def test_a_server_that_comes_back(
    make_tracker: Make,
    serving: Any,
    sample: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    port = unused_port()
    address = f"http://ann:s3cret@127.0.0.1:{port}"
    package = sample.save(tmp_path / "run" / "package")
    (tmp_path / "run" / "metrics.json").write_text("{}")
    tracker = make_tracker(address)
    tracker.params({"a": 1})
    for step in range(1500):
        tracker.metrics({"loss": float(step)}, step)
    tracker.artifact(tmp_path / "run" / "metrics.json")
    tracker.dataset("demo", "0" * 64, source="logs")
    with pytest.raises(NotRegisteredError):
        tracker.register(package, "ranker", "challenger")
    tracker.finish()

    with serving(tmp_path / "server", port=port):
        synced = sync(tmp_path / "run", uri=address, progress=Silent())
        assert [version.uri for version in synced.registered] == ["models:/ranker@challenger"]
        client = connect(address)
        with quietly():
            run = client.get_run(synced.run_id)
            assert run.info.status == "FINISHED"
            assert run.data.params == {"a": "1"}
            assert [point.step for point in client.get_metric_history(synced.run_id, "loss")] == list(range(1500))
            assert [item.path for item in client.list_artifacts(synced.run_id)] == ["metrics.json"]
        with resolved("models:/ranker@challenger", address) as folder:
            assert (folder / "model.safetensors").read_bytes() == (package / "model.safetensors").read_bytes()
        # Resumed against the server: the same run, every point once.
        again = make_tracker(address)
        for step in range(1490, 1510):
            again.metrics({"loss": float(step)}, step)
        again.finish()
        assert again.run_id == synced.run_id
        with quietly():
            assert len(client.get_metric_history(synced.run_id, "loss")) == 1510
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert "s3cret" not in "".join(capfd.readouterr())
