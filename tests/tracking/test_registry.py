"""From a package to a registered version and back, and what MLflow serves of it in a process of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recmtl.errors import NotRegisteredError, RefusedError, RunError, UserError
from recmtl.findings import Check, Report, Verdict
from recmtl.manifest import file_hash
from recmtl.package import load_package, verify_package
from recmtl.tracking import RegisteredVersion, register, registry, resolve, resolved
from recmtl.tracking.client import quietly
from recmtl.tracking.promotion import history, promote
from recmtl.tracking.registry import requirements

ROOT = Path(__file__).parents[2]


@pytest.fixture
def registered(uri: str, saved: Path) -> RegisteredVersion:
    return register(saved, "ranker", "challenger", uri=uri)


def model_folder(tmp_path: Path) -> Path:
    """Where the store keeps the one registered model."""
    (found,) = (tmp_path / "store" / "mlartifacts").rglob("MLmodel")
    return found.parent


# Registering


def test_a_version_with_its_alias_and_hashes(
    registered: RegisteredVersion, client: Any, saved: Path, tmp_path: Path
) -> None:
    assert registered == RegisteredVersion("ranker", 1, "challenger")
    with quietly():
        version = client.get_model_version_by_alias("ranker", "challenger")
    assert version.version in (1, "1")
    assert version.status == "READY"
    assert version.tags["recmtl.package"] == verify_package(saved).digest
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert not [path for path in model_folder(tmp_path).rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]


def test_the_same_package_is_the_same_version(
    registered: RegisteredVersion, uri: str, saved: Path, client: Any
) -> None:
    assert register(saved, "ranker", "champion", uri=uri) == RegisteredVersion("ranker", 1, "champion")
    with quietly():
        assert client.get_model_version_by_alias("ranker", "challenger").version in (1, "1")


REGISTER = """
import sys
from pathlib import Path
from recmtl.tracking import register
print(register(Path(sys.argv[1]), "ranker", "challenger", uri=sys.argv[2], experiment="tests").version)
"""


@pytest.mark.slow
def test_many_that_register_one_package_at_once_make_one_version(uri: str, saved: Path, client: Any) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", REGISTER, str(saved), uri], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = [process.communicate(timeout=300)[0].strip() for process in processes]
    assert said == ["1", "1", "1"]
    assert [int(one.version) for one in client.search_model_versions("name = 'ranker'")] == [1]


@pytest.mark.parametrize("may_delete", [True, False])
def test_on_a_server_the_first_of_two_versions_of_one_package_wins(
    uri: str, saved: Path, client: Any, monkeypatch: pytest.MonkeyPatch, may_delete: bool
) -> None:
    """The other one registers after this one has looked and before it has made its own."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    look, looked = registry._same, []

    def late(*arguments: Any) -> Any:
        looked.append(None)
        if len(looked) == 1:
            assert look(*arguments) is None
            register(saved, "ranker", None, uri=uri, experiment="tests")
            return None
        return look(*arguments)

    def refuse(*_: Any) -> None:
        raise MlflowException("permission denied")

    monkeypatch.setattr(registry, "_in_turn", lambda _: nullcontext())
    monkeypatch.setattr(registry, "_same", late)
    if not may_delete:
        monkeypatch.setattr(MlflowClient, "delete_model_version", refuse)
    assert register(saved, "ranker", "challenger", uri=uri, experiment="tests").version == 1
    versions = {int(one.version): one for one in client.search_model_versions("name = 'ranker'")}
    assert sorted(versions) == ([1] if may_delete else [1, 2])
    if not may_delete:
        assert versions[2].tags["recmtl.duplicate_of"] == "1"
    assert int(client.get_model_version_by_alias("ranker", "challenger").version) == 1
    assert register(saved, "ranker", "challenger", uri=uri, experiment="tests").version == 1


def test_another_package_is_the_next_version(
    registered: RegisteredVersion, uri: str, sample: Any, client: Any, tmp_path: Path
) -> None:
    other = type(sample)(seed=9).save(tmp_path / "other")
    assert register(other, "ranker", "challenger", uri=uri) == RegisteredVersion("ranker", 2, "challenger")
    with quietly():
        assert client.get_model_version_by_alias("ranker", "challenger").version in (2, "2")
    assert register(other, "second", None, uri=uri) == RegisteredVersion("second", 1, None)


def test_killed_between_upload_and_version(
    uri: str, saved: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def killed(*_: Any, **__: Any) -> None:
        raise ConnectionError("the server went away")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", killed)
        with pytest.raises(NotRegisteredError, match="the server went away"):
            register(saved, "ranker", "challenger", uri=uri)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifacts", killed)
        assert register(saved, "ranker", "challenger", uri=uri).version == 1  # nothing is uploaded twice
    assert model_folder(tmp_path).is_dir()


def test_killed_while_uploading(uri: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    upload = MlflowClient.log_model_artifacts

    def half(self: Any, model_id: str, local_dir: str) -> None:
        shutil.rmtree(Path(local_dir) / "artifacts")
        upload(self, model_id, local_dir)
        raise ConnectionError("the server went away")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifacts", half)
        with pytest.raises(NotRegisteredError):
            register(saved, "ranker", "challenger", uri=uri)
    version = register(saved, "ranker", "challenger", uri=uri)
    with resolved(version.uri, uri) as folder:
        assert verify_package(folder).digest == verify_package(saved).digest
    assert model_folder(tmp_path).is_dir()  # the first one's folder, completed


def test_a_damaged_package_is_not_registered(uri: str, saved: Path, tmp_path: Path, client: Any) -> None:
    copy = shutil.copytree(saved, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="is not what was packaged"):
        register(copy, "ranker", "challenger", uri=uri)
    with quietly():
        assert client.search_registered_models() == []


def test_the_users_own_store_is_left_set(uri: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://theirs")
    register(saved, "ranker", None, uri=uri)
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://theirs"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    register(saved, "ranker", None, uri=uri)
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_requirements_are_the_locks_pins_without_what_trains() -> None:
    pins = dict(line.split("==") for line in requirements())
    lock = "".join((ROOT / "requirements" / f"{name}.txt").read_text() for name in ("cpu", "torch-cuda"))
    locked = set(re.findall(r"^([a-z0-9.-]+==\S+)", lock, re.MULTILINE))
    assert not set(pins) & {"torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "torchjd", "typer", "recmtl"}
    assert {"torch", "mlflow", "polars", "pyarrow", "numpy", "pandas", "pydantic", "safetensors", "pyyaml"} <= set(pins)
    assert "+" not in pins["torch"]
    assert {f"{name}=={version}" for name, version in pins.items()} <= locked


# With the report of its evaluation


@pytest.fixture
def judged(make_report: Callable[..., Report], saved: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the report of a package (by default the sample's), judged as is said."""

    def write(decision: str, package: Path = saved, checks: tuple[Check, ...] = (), **about: Any) -> Path:
        report = make_report(model=verify_package(package).digest, champion=False, decision=decision, **about)
        verdict = report.verdict.model_copy(update={"checks": checks})
        path = tmp_path / "report.json"
        path.write_text(report.model_copy(update={"verdict": verdict}).model_dump_json())
        return path

    return write


def test_card_verdict_and_report_stay_with_the_version(
    uri: str, saved: Path, client: Any, judged: Callable[..., Path], tmp_path: Path
) -> None:
    failed = Check(name="click.auc vs champion", group="metric", passed=False, text="worse, see https://a:s3cret@host")
    path = judged("refuse", checks=(failed,))
    assert register(saved, "ranker", "challenger", uri=uri, report=path) == RegisteredVersion("ranker", 1, None)
    with quietly():
        version = client.get_model_version("ranker", "1")
        assert client.get_registered_model("ranker").aliases == {}
    assert version.description.startswith("# demo")
    assert "**refuse**" in version.description
    assert version.tags["recmtl.gate"] == "refuse"
    assert version.tags["recmtl.gate.against"] == "none"
    assert version.tags["recmtl.gate.failed.click.auc vs champion"] == "worse, see https://host"
    assert version.tags["recmtl.gate.report"] == file_hash(path)
    (stored,) = model_folder(tmp_path).glob("reports/*.json")
    assert stored.read_bytes() == path.read_bytes()
    # Judged anew, as against another champion: the same version, and nothing of the old verdict stays.
    path = judged("promote")
    assert register(saved, "ranker", "challenger", uri=uri, report=path) == RegisteredVersion("ranker", 1, "challenger")
    with quietly():
        version = client.get_model_version("ranker", "1")
    assert version.tags["recmtl.gate"] == "promote"
    assert not [key for key in version.tags if "failed" in key]
    assert len(list(model_folder(tmp_path).glob("reports/*.json"))) == 2
    assert promote("ranker", uri=uri) is not None
    with resolved("models:/ranker@champion", uri) as folder:
        assert verify_package(folder).digest == verify_package(saved).digest


def test_the_challenger_is_the_newest_that_the_gate_lets_through(
    uri: str,
    saved: Path,
    sample: Any,
    judged: Callable[..., Path],
    aliases: Callable[..., Mapping[str, int]],
    tmp_path: Path,
) -> None:
    register(saved, "ranker", "challenger", uri=uri, report=judged("promote"))
    worse = type(sample)(seed=9).save(tmp_path / "worse")
    version = register(worse, "ranker", "challenger", uri=uri, report=judged("refuse", worse))
    assert version == RegisteredVersion("ranker", 2, None)
    assert aliases() == {"challenger": 1}
    (move,) = history("ranker", uri=uri).moves
    assert (move.alias, move.kind, move.after) == ("challenger", "candidate", 1)
    with pytest.raises(RefusedError, match="Worse than the champion"):
        promote("ranker", 2, uri=uri)


def test_without_a_gate_the_alias_goes_as_ever(
    uri: str, saved: Path, judged: Callable[..., Path], aliases: Callable[..., Mapping[str, int]], tmp_path: Path
) -> None:
    assert register(saved, "ranker", "challenger", uri=uri, report=judged("not judged")).alias == "challenger"
    assert aliases() == {"challenger": 1}
    assert history("ranker", uri=uri).moves == ()
    # With a gate that could not be asked, the version waits.
    path = judged("not judged")
    report = Report.model_validate_json(path.read_text())
    gated = {**report.config, "registry": {"model": "second", "gate": {}}}
    verdict = Verdict(decision="not judged", reasons=("The registry was away.",))
    path.write_text(report.model_copy(update={"config": gated, "verdict": verdict}).model_dump_json())
    assert register(saved, "second", "challenger", uri=uri, report=path) == RegisteredVersion("second", 1, None)
    with pytest.raises(RefusedError, match=r"The registry was away\. Evaluate it again"):
        promote("second", 1, uri=uri)


def test_the_champion_is_moved_on_record_alone(
    uri: str, saved: Path, judged: Callable[..., Path], aliases: Callable[..., Mapping[str, int]]
) -> None:
    register(saved, "ranker", "champion", uri=uri)  # nothing is on record yet
    promote("ranker", 1, override="taken up", uri=uri)
    with pytest.raises(UserError, match=r"@champion of ranker is moved by `recmtl promote`"):
        register(saved, "ranker", "champion", uri=uri)


def test_a_report_about_something_else(uri: str, saved: Path, judged: Callable[..., Path], sample: Any) -> None:
    path = judged("promote")
    other = Report.model_validate_json(path.read_text())
    about = other.about.model_copy(update={"models": {"model": "b" * 64}})
    path.write_text(other.model_copy(update={"about": about}).model_dump_json())
    with pytest.raises(RunError, match="this report is about the model b"):
        register(saved, "ranker", None, uri=uri, report=path)
    path.write_text("{}")
    with pytest.raises(RunError, match="this is no report of recmtl's"):
        register(saved, "ranker", None, uri=uri, report=path)


# Coming back


def test_every_way_to_name_a_model(
    registered: RegisteredVersion, uri: str, client: Any, saved: Path, tmp_path: Path
) -> None:
    with quietly():
        (logged,) = client.search_logged_models(["1"])
    names = ["models:/ranker@challenger", "models:/ranker/1", f"models:/{logged.model_id}"]
    for number, name in enumerate([*names, str(saved), str(model_folder(tmp_path))]):
        folder = resolve(name, uri, folder=tmp_path / f"got{number}")
        assert verify_package(folder).digest == verify_package(saved).digest, name
    run = tmp_path / "run"
    shutil.copytree(saved, run / "package")
    assert resolve(str(run), folder=tmp_path) == run / "package"


def test_a_runs_model(uri: str, client: Any, saved: Path, tmp_path: Path) -> None:
    with quietly():
        run = client.create_run(client.create_experiment("x", artifact_location=(tmp_path / "x").as_uri()))
    register(saved, "ranker", None, uri=uri, run_id=run.info.run_id)
    with resolved(f"runs:/{run.info.run_id}/model", uri) as folder:
        assert verify_package(folder).digest == verify_package(saved).digest
    with pytest.raises(UserError, match="has no model of this name"), resolved(f"runs:/{run.info.run_id}/other", uri):
        pass


def test_the_default_store_is_the_environments(
    registered: RegisteredVersion, uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="there is no tracking store at"), resolved("models:/ranker@challenger"):
        pass
    assert list((tmp_path / "elsewhere").iterdir()) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with resolved("models:/ranker@challenger") as folder:
        assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "model", ["models:/ranker@nobody", "models:/nobody@challenger", "models:/ranker/7", "models:/m-0123456789abcdef"]
)
def test_what_is_not_there_is_the_users_mistake(registered: RegisteredVersion, uri: str, model: str) -> None:
    with pytest.raises(UserError, match=rf"{model}: not found on sqlite"), resolved(model, uri):
        pass


def test_names_that_are_none(registered: RegisteredVersion, uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected models:/NAME@ALIAS"), resolved("models:/ranker", uri):
        pass
    with pytest.raises(UserError, match="no such folder"), resolved("nowhere"):
        pass
    with pytest.raises(UserError, match=r"hashes\.json is missing"), resolved(str(tmp_path)):
        pass


def test_a_model_of_somebody_else(uri: str, client: Any, tmp_path: Path) -> None:
    with quietly():
        client.create_registered_model("other")
        client.create_model_version("other", (tmp_path / "other").as_uri(), run_id="0" * 32)
    with pytest.raises(UserError, match="was not registered by recmtl"), resolved("models:/other/1", uri):
        pass


def test_a_package_that_was_tampered_with_is_refused(registered: RegisteredVersion, uri: str, tmp_path: Path) -> None:
    package = model_folder(tmp_path) / "artifacts" / "package"
    about = package / "package.json"
    about.write_text(about.read_text().replace('"click"', '"klick"'))
    with pytest.raises(RunError, match=r"package\.json is not what was packaged"), resolved(registered.uri, uri):
        pass
    # With its hashes made to fit, the registry's own record still tells.
    listing = json.loads((package / "hashes.json").read_text())
    listing["files"]["package.json"] = file_hash(about)
    (package / "hashes.json").write_text(json.dumps(listing))
    assert verify_package(package).digest
    with pytest.raises(RunError, match="is not the one that was registered"), resolved(registered.uri, uri):
        pass


def test_no_code_of_the_registry_is_run(registered: RegisteredVersion, uri: str, tmp_path: Path) -> None:
    (model_folder(tmp_path) / "serving.py").write_text("raise SystemExit('run')")
    (model_folder(tmp_path) / "code" / "recmtl" / "__init__.py").write_text("raise SystemExit('run')")
    with resolved(registered.uri, uri) as folder:
        assert load_package(folder).predict(pl.DataFrame({"user_id": [1]})).height == 1


def test_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        pytest.raises(RunError, match=r"cannot fetch it from http://127"),
        resolved("models:/a@b", "http://ann:s3cret@127.0.0.1:9"),
    ):
        pass


# Served by MLflow

SERVE = """
import json, sys
import mlflow, numpy as np, pandas as pd
model = mlflow.pyfunc.load_model("models:/ranker@challenger")
import recmtl
none = float("nan")
whole = {
    "user_id": [1, 2, 9, none, 3],
    "item_id": ["a", None, "b", "a", "never seen"],
    "tag": ["x,y", None, "", "y", "z"],
    "genre": ["p:0.5,q:0.5", "p", None, "q:2", "r:1"],
    "likes": [[7], [8, 7], None, [], [99]],
    "price": [1.0, None, 3.5, 0.0, -2.0],
    "age": [20, 30, None, 41, 5],
    "content": [[1.0, 2.0, 3.0], None, [0.0, 0.0, 1.0], [0.5, 0.5, 0.5], [1.0, 1.0, 1.0]],
}
frame = pd.DataFrame(whole)
variants = {
    "floats with gaps": frame,
    "nullable": frame.astype({"user_id": "Int64", "age": "Int64"}),
    "objects": frame.astype(object),
    "text": frame.assign(user_id=["1", "2", "9", None, "3"]),
    "integers for reals": frame.assign(price=pd.array([1, None, 3.5, 0, -2], dtype="Float64")),
    "float64 arrays": frame.assign(content=[None if c is None else np.asarray(c) for c in whole["content"]]),
    "float32 arrays": frame.assign(content=[None if c is None else np.float32(c) for c in whole["content"]]),
    "a column too many": frame.assign(other="x"),
    "one by one": None,
}
got = {}
for name, variant in variants.items():
    if variant is None:
        got[name] = pd.concat([model.predict(frame.iloc[[i]]) for i in range(5)]).to_numpy().tolist()
    else:
        got[name] = model.predict(variant).to_numpy().tolist()
got["without"] = model.predict(frame.drop(columns=["user_id", "content"])).to_numpy().tolist()
got["one column"] = model.predict(frame[["age"]]).to_numpy().tolist()
try:
    model.predict(pd.DataFrame({"content": [[1.0]]}))
except Exception as error:
    got["error"] = str(error)
got["columns"] = list(model.predict(frame).columns)
got["home"] = recmtl.__file__
got["modules"] = [n for n in sys.modules if n.split(".")[0] in ("torchrec", "fbgemm_gpu", "torchjd")]
print(json.dumps(got))
"""


def serve(uri: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-W", "ignore", "-c", SERVE]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def test_a_fresh_process_predicts_what_the_trainer_did(
    registered: RegisteredVersion, uri: str, saved: Path, tmp_path: Path
) -> None:
    done = serve(uri, tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    rows = pl.DataFrame(
        {
            "user_id": [1, 2, 9, None, 3],
            "item_id": ["a", None, "b", "a", "never seen"],
            "tag": ["x,y", None, "", "y", "z"],
            "genre": ["p:0.5,q:0.5", "p", None, "q:2", "r:1"],
            "likes": [[7], [8, 7], None, [], [99]],
            "price": [1.0, None, 3.5, 0.0, -2.0],
            "age": [20, 30, None, 41, 5],
            "content": [[1.0, 2.0, 3.0], None, [0.0, 0.0, 1.0], [0.5, 0.5, 0.5], [1.0, 1.0, 1.0]],
        }
    )
    package = load_package(saved)
    expected = package.predict(rows).to_numpy()
    for name in list(got)[:9]:
        np.testing.assert_allclose(got[name], expected, rtol=1e-6, atol=1e-6, err_msg=name)
    without = package.predict(rows.drop("user_id", "content")).to_numpy()
    np.testing.assert_allclose(got["without"], without, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got["one column"], package.predict(rows.select("age")).to_numpy(), rtol=1e-6, atol=1e-6)
    assert got["columns"] == list(package.prediction_columns)
    assert re.match(r"features\.content: 1 rows of column 'content' are not vectors", got["error"])
    assert "\n" not in got["error"]
    assert got["modules"] == []
    assert Path(got["home"]).is_relative_to(model_folder(tmp_path)), "recmtl came from elsewhere"


def test_source_that_was_changed_is_not_imported(registered: RegisteredVersion, uri: str, tmp_path: Path) -> None:
    source = model_folder(tmp_path) / "code" / "recmtl" / "heads.py"
    source.write_text(source.read_text() + "\nprint('changed')\n")
    done = serve(uri, tmp_path / "elsewhere")
    assert done.returncode != 0
    assert "recmtl's source is not what was registered: recmtl/heads.py" in done.stderr
    assert "changed" not in done.stdout
