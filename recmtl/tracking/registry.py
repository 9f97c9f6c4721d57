"""The registry: a package becomes a version of a registered model, and a model's URI becomes a package again.

In: a model package (:mod:`recmtl.package`). Out: an MLflow pyfunc from code that carries the package, recmtl's own
source and pinned requirements, so that an environment made from them loads and serves it. No pickle on the way. Coming
back, only the package is fetched: recmtl runs no code that came from a registry.
"""

import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

import recmtl
from recmtl.answering import Params
from recmtl.errors import NotRegisteredError, RecmtlError, RunError, UserError
from recmtl.findings import Report, read_report
from recmtl.locks import held
from recmtl.manifest import file_hash
from recmtl.package import Contents, recover_package, verify_package
from recmtl.settings import Settings
from recmtl.tracking.base import RegisteredVersion, redact, store_uri
from recmtl.tracking.card import model_card
from recmtl.tracking.client import connect, experiment_id, explain, globally, is_ours, patiently, quietly
from recmtl.tracking.gate import GateConfig, verdict_tags
from recmtl.tracking.promotion import CHAMPION, LEDGER, REPORTS, announce, has_ledger

__all__ = ["RegistryConfig", "register", "requirements", "resolve", "resolved"]

_SERVING = ("mlflow", "torch", "numpy", "pandas", "polars", "pyarrow", "pydantic", "safetensors", "pyyaml")
"""What loading and predicting imports; what these require is pinned with them."""
_TORCHS_OWN = re.compile(r"^(nvidia-|cuda-|triton$)")
"""torch pins the CUDA build's parts itself, for the build that a machine gets."""
_READY_SECONDS = 300.0
_DUPLICATE = "recmtl.duplicate_of"
"""Tag of a version that was made while another made the same, and could not be removed: the number of the other."""


class RegistryConfig(Settings):
    """What the trained model is registered as."""

    model: str = Field(min_length=1, max_length=200)
    """The registered model's name; made when it does not exist."""
    alias: str | None = "challenger"
    """Points at the newest version that a run registered, with a gate the newest that it lets through; null sets
    none."""
    gate: GateConfig | None = None
    """What a model must pass to become @champion by `recmtl promote`; left out: nothing is judged."""

    @field_validator("model")
    @classmethod
    def _a_model_name(cls, name: str) -> str:
        if re.search(r"[/:@\s]", name) or name in (".", ".."):
            raise ValueError(f"{name!r} must hold no slash, colon, at sign or blank: it is named in models:/NAME@ALIAS")
        if name.endswith(LEDGER):
            raise ValueError(
                f"{name!r} must not end in {LEDGER}: the moves of a model's aliases are kept under that name"
            )
        return name

    @field_validator("alias")
    @classmethod
    def _an_alias(cls, alias: str | None) -> str | None:
        if alias is None:
            return None
        if not re.fullmatch(r"[\w-]{1,255}", alias) or re.fullmatch(r"(?i)v?\d+|latest", alias):
            raise ValueError(
                f"{alias!r} must be letters, digits, underscores and hyphens, and not a version's number or `latest`"
            )
        return alias

    @model_validator(mode="after")
    def _the_gate_moves_the_champion(self) -> "RegistryConfig":
        if self.gate is not None and self.alias == CHAMPION:
            raise ValueError("alias: with a gate, `recmtl promote` alone moves @champion; leave it at challenger")
        return self


def register(
    package: Path,
    model: str,
    alias: str | None,
    *,
    uri: str,
    run_id: str | None = None,
    experiment: str = "recmtl",
    report: Path | None = None,
) -> RegisteredVersion:
    """Make a package a version of a registered model; the same package by the same recmtl is the same version.

    That holds however many register it at once: on a local store they take turns, on a server the version with the
    lowest number wins, and whoever made another one removes it again.

    The alias is moved when the version is ready and not before, and only if the gate (where there is one) lets the
    version through. Without a gate, whoever asks last has the alias.

    Args:
        package: a package's folder.
        model: the registered model; made when it does not exist.
        alias: what to point at the version; None for nothing.
        uri: the store.
        run_id: the MLflow run that trained it.
        experiment: where the model is filed when there is no run.
        report: the ``report.json`` of its evaluation: kept with the version, which gets a model card for description
            and the verdict as tags (``recmtl.gate…``). A later report of the same package replaces both.

    Returns:
        The version, with the alias that it got.

    Raises:
        RunError: the package is damaged, the report is about another, or the registry made nothing of it.
        UserError: the registry refuses the name; the alias is @champion, which only ``recmtl promote`` moves by now.
        NotRegisteredError: the store cannot be reached.
    """
    contents = verify_package(package)
    judged = None if report is None else _judged(report, contents)
    from mlflow.exceptions import MlflowException

    uri = store_uri(uri)
    try:
        client = connect(uri)
        with quietly(), patiently(), globally(uri):
            return _register(
                client, contents, model, alias, uri=uri, run_id=run_id, experiment=experiment, judged=judged
            )
    except RecmtlError:
        raise
    except MlflowException as error:
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise UserError(f"registry.model {model!r}: {redact(uri)} refuses it: {explain(error)}") from error
        raise NotRegisteredError(f"cannot register on {redact(uri)}: {explain(error)}") from error
    except Exception as error:
        if is_ours(error):
            raise
        raise NotRegisteredError(f"cannot register on {redact(uri)}: {explain(error)}") from error


@dataclass(frozen=True)
class _JudgedBy:
    """A report as a file."""

    report: Report
    path: Path
    digest: str
    """SHA-256 of the file."""

    @property
    def gated(self) -> bool:
        """Whether the run's config has a gate. Its verdict may be missing all the same: the registry was away and could
        not be asked for the champion."""
        registry = self.report.config.get("registry") or {}
        return self.report.verdict.decision != "not judged" or registry.get("gate") is not None

    @property
    def lets_through(self) -> bool:
        """Whether the gate says yes, or there is none."""
        return self.report.verdict.decision == "promote" or not self.gated


def _judged(path: Path, contents: Contents) -> _JudgedBy:
    try:
        report = read_report(path)
    except (OSError, ValidationError) as error:
        raise RunError(
            f"{path}: this is no report of recmtl's ({str(error).splitlines()[0]}); evaluate again"
        ) from error
    about = report.about.models.get("model")
    if about != contents.digest:
        raise RunError(
            f"{path}: this report is about the model {about}, and the package is {contents.digest}; evaluate again"
        )
    return _JudgedBy(report, path, file_hash(path))


def _register(
    client: Any,
    contents: Contents,
    model: str,
    alias: str | None,
    *,
    uri: str,
    run_id: str | None,
    experiment: str,
    judged: _JudgedBy | None,
) -> RegisteredVersion:
    from mlflow.exceptions import MlflowException

    source = _source_hashes()
    tags = {
        "recmtl.package": contents.digest,
        "recmtl.source": _digest(source),
        "recmtl.version": recmtl.__version__,
        "recmtl.data": contents.data,
    }
    try:
        client.create_registered_model(model)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with _in_turn(uri):
        version = _same(client, model, tags)
        if version is None:
            filed = client.get_run(run_id).info.experiment_id if run_id else experiment_id(client, uri, experiment)
            logged = _log(client, contents, filed, tags, source, run_id)
            made = client.create_model_version(
                model,
                f"models:/{logged.model_id}",
                run_id=run_id,
                tags=tags,
                model_id=logged.model_id,
                await_creation_for=0,
            )
            version = _first(client, made, tags)
    deadline = time.monotonic() + _READY_SECONDS
    while version.status == "PENDING_REGISTRATION" and time.monotonic() < deadline:
        time.sleep(0.5)
        version = client.get_model_version(model, version.version)
    if version.status != "READY":
        raise RunError(f"models:/{model}/{version.version} is {version.status}, not READY: {version.status_message}")
    number = int(version.version)
    if judged is not None:
        _attach(client, contents, version, judged)
    if alias is None or (judged is not None and not judged.lets_through):
        return RegisteredVersion(model, number)
    if judged is not None and judged.gated:
        announce(client, model, alias, number, judged.digest)
    else:
        if alias == CHAMPION and has_ledger(client, model):
            raise UserError(
                f"registry.alias: @champion of {model} is moved by `recmtl promote`, on record in {model}{LEDGER}; "
                "leave the alias at challenger"
            )
        client.set_registered_model_alias(model, alias, version.version)
    return RegisteredVersion(model, number, alias)


def _attach(client: Any, contents: Contents, version: Any, judged: _JudgedBy) -> None:
    """Leave the report, the card and the verdict with a version; the tag that makes the verdict count comes last."""
    with tempfile.TemporaryDirectory() as temporary:
        named = Path(shutil.copyfile(judged.path, Path(temporary) / f"{judged.digest}.json"))
        client.log_model_artifact(version.source.removeprefix("models:/"), str(named), REPORTS)
    client.update_model_version(version.name, version.version, model_card(judged.report, contents))
    tags = {
        **verdict_tags(judged.report),
        "recmtl.gate.against": judged.report.about.models.get(CHAMPION, "none"),
        "recmtl.gate.report": judged.digest,
    }
    for stale in version.tags:
        if stale.startswith("recmtl.gate.failed.") and stale not in tags:
            client.delete_model_version_tag(version.name, version.version, stale)
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, key, redact(value))


@contextmanager
def _in_turn(uri: str) -> Iterator[None]:
    """Hold the right to register on a store that is a file of this machine; on a server its version numbers decide."""
    if not uri.startswith("sqlite:"):
        yield
        return
    database = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    with held(database.with_name(f".{database.name}.registering.lock"), lambda: None):
        yield


def _same(client: Any, model: str, tags: dict[str, str]) -> Any:
    """The first version that was made from the same package and source, and was not given up; None for none."""
    keys = ("recmtl.package", "recmtl.source")
    # By the tag, as a store gives no more than so many versions at once.
    found = client.search_model_versions(
        f"name = '{model}' and tags.`recmtl.package` = '{tags['recmtl.package']}'", max_results=1000
    )
    same = [
        one
        for one in found
        if all(one.tags.get(key) == tags[key] for key in keys)
        and not str(one.status).startswith("FAILED")
        and _DUPLICATE not in one.tags
    ]
    return min(same, key=lambda one: int(one.version), default=None)


def _first(client: Any, made: Any, tags: dict[str, str]) -> Any:
    """The version that stands for a package: the first, where others made some at the same time; ours goes then."""
    from mlflow.exceptions import MlflowException

    first = _same(client, made.name, tags)
    if first is None or int(first.version) >= int(made.version):
        return made
    try:
        client.delete_model_version(made.name, made.version)
    except MlflowException:  # not allowed here: it stays, and says what it is
        client.set_model_version_tag(made.name, made.version, _DUPLICATE, first.version)
    return first


def _log(
    client: Any, contents: Contents, experiment: str, tags: dict[str, str], source: dict[str, str], run_id: str | None
) -> Any:
    """Upload the model as MLflow files it; what a killed upload left is finished rather than left lying."""
    from mlflow.entities import LoggedModelOutput

    found = client.search_logged_models([experiment], f"tags.`recmtl.package` = '{contents.digest}'")
    logged = next((one for one in found if one.tags.get("recmtl.source") == tags["recmtl.source"]), None)
    if logged is None:
        logged = client.create_logged_model(
            experiment, name="model", source_run_id=run_id, tags=tags, model_type="recmtl"
        )
        if run_id:
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    if str(logged.status) != "READY":
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            save_pyfunc(folder, contents, source, tags=tags, logged=logged, run_id=run_id)
            client.log_model_artifacts(logged.model_id, str(folder))
        logged = client.finalize_logged_model(logged.model_id, "READY")
    return logged


def save_pyfunc(
    folder: Path,
    contents: Contents,
    source: dict[str, str],
    *,
    tags: dict[str, str],
    logged: Any = None,
    run_id: str | None = None,
) -> None:
    """Write the MLflow model: MLmodel, the package and recmtl's source as files, the environment, the code that serves.

    The signature takes raw rows: every column optional and of any type, because MLflow's own checks refuse a null among
    whole numbers, a whole number among reals, and float64 among float32. The package's schema does the checking.
    """
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    inputs = Schema([ColSpec(AnyType(), column, required=False) for column in contents.schema.columns])
    kinds = {bool: DataType.boolean, int: DataType.long, str: DataType.string}
    params = ParamSchema([ParamSpec(name, kinds[type(value)], value) for name, value in Params().model_dump().items()])
    outputs = Schema([ColSpec(DataType.float, column) for column in contents.prediction_columns])
    described = Model(run_id=run_id, metadata=dict(tags))
    if logged is not None:
        described = Model(
            artifact_path=logged.artifact_location,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
            run_id=run_id,
            metadata=dict(tags),
        )
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary)
        shutil.copytree(contents.folder, staged / "package")
        (staged / "source.json").write_text(json.dumps(source, indent=2, sort_keys=True) + "\n")
        root = Path(recmtl.__file__).parent
        for name in source:
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root.parent / name, staged / name)
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={"package": str(staged / "package"), "source": str(staged / "source.json")},
            code_paths=[str(staged / "recmtl")],
            signature=ModelSignature(inputs=inputs, outputs=outputs, params=params),
            pip_requirements=requirements(),
            mlflow_model=described,
        )
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)


def requirements() -> list[str]:
    """``NAME==VERSION`` of what serving needs, and of what that needs in turn, as installed here from the lock.

    TorchRec, FBGEMM and TorchJD train; serving does without.
    """
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins: dict[str, str] = {}
    waiting = [Requirement(name) for name in _SERVING]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in pins or _TORCHS_OWN.match(name):
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue  # required on other platforms, or an alternative that is not installed
        # 2.13.0+cpu is the index's name of one build of 2.13.0.
        pins[name] = found.version.partition("+")[0]
        for text in found.requires or ():
            needed = Requirement(text)
            extras = wanted.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return [f"{name}=={pins[name]}" for name in sorted(pins)]


def _source_hashes() -> dict[str, str]:
    """Every file of recmtl itself, ``recmtl/…`` to its SHA-256."""
    root = Path(recmtl.__file__).parent
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix in (".py", ".j2", ".typed")]
    return {path.relative_to(root.parent).as_posix(): file_hash(path) for path in files}


def _digest(hashes: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


@contextmanager
def resolved(model: str, tracking_uri: str | None = None) -> Iterator[Path]:
    """:func:`resolve` into a folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="recmtl-") as temporary:
        yield resolve(model, tracking_uri, folder=Path(temporary))


def resolve(model: str, tracking_uri: str | None = None, *, folder: Path) -> Path:
    """The verified package of a model.

    Args:
        model: a package's or a run's folder, or ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``models:/m-ID``,
            ``runs:/RUN_ID/model``.
        tracking_uri: the store of a URI; None as in :func:`recmtl.tracking.base.store_uri`.
        folder: where to put what is downloaded; a local package stays where it is.

    Raises:
        UserError: nothing there under this name, or it is not recmtl's.
        RunError: the store cannot be reached; the package's hashes do not match.
    """
    if not model.startswith(("models:/", "runs:/")):
        return _local(model)
    uri = store_uri(tracking_uri)
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///").partition("?")[0]).is_file():
        raise UserError(
            f"{model}: there is no tracking store at {uri}; name it with --tracking-uri or MLFLOW_TRACKING_URI"
        )
    from mlflow.exceptions import MlflowException

    try:
        with quietly(), patiently():
            client = connect(uri)
            location, expected = _locate(client, model)
            if expected is None:
                raise UserError(f"{model}: this model was not registered by recmtl (it has no tag recmtl.package)")
            import mlflow.artifacts

            path = Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{location.rstrip('/')}/artifacts/package", dst_path=str(folder), tracking_uri=uri
                )
            )
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise UserError(f"{model}: not found on {redact(uri)}: {explain(error)}") from error
        raise RunError(f"{model}: cannot fetch it from {redact(uri)}: {explain(error)}") from error
    except RecmtlError:
        raise
    except Exception as error:
        if is_ours(error):
            raise
        raise RunError(f"{model}: cannot fetch it from {redact(uri)}: {explain(error)}") from error
    contents = verify_package(path)
    if contents.digest != expected:
        raise RunError(
            f"{model}: the package that {redact(uri)} holds is not the one that was registered: its hash is "
            f"{contents.digest[:12]}, registered was {expected[:12]}"
        )
    return path


def _locate(client: Any, model: str) -> tuple[str, str | None]:
    """Where the MLflow model's files are, and the package's hash as the registry has it."""
    scheme, _, rest = model.partition(":/")
    rest = rest.strip("/")
    if scheme == "runs":
        run_id, _, name = rest.partition("/")
        outputs = client.get_run(run_id).outputs
        logged = [client.get_logged_model(one.model_id) for one in (outputs.model_outputs if outputs else ())]
        logged = [one for one in logged if one.name == (name or "model") and str(one.status) == "READY"]
        if not logged:
            raise UserError(f"{model}: this run has no model of this name")
        newest = max(logged, key=lambda one: one.creation_timestamp)
        return newest.artifact_location, newest.tags.get("recmtl.package")
    if re.fullmatch(r"m-[0-9a-f]+", rest):
        one = client.get_logged_model(rest)
        return one.artifact_location, one.tags.get("recmtl.package")
    name, at, alias = rest.partition("@")
    if at:
        version = client.get_model_version_by_alias(name, alias)
    else:
        name, _, number = rest.partition("/")
        if not number.isdecimal():
            raise UserError(f"{model}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
        version = client.get_model_version(name, number)
    return client.get_model_version_download_uri(name, version.version), version.tags.get("recmtl.package")


def _local(model: str) -> Path:
    folder = Path(model).expanduser()
    for candidate in (folder, folder / "package", folder / "artifacts" / "package"):
        recover_package(candidate)
        if (candidate / "hashes.json").is_file():
            verify_package(candidate)
            return candidate
    what = "no model package here (hashes.json is missing)" if folder.is_dir() else "no such folder"
    raise UserError(f"--model {model}: {what}; give a package's or a run's folder, or models:/NAME@ALIAS")
