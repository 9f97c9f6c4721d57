"""The whole run in one YAML: read, overridden, checked, written back resolved.

In: a YAML file and ``a.b.c=value`` overrides. Out: a frozen :class:`RunConfig` made of the small config classes that
live beside their owners, or one :class:`~recmtl.errors.UserError` that names the field and what to do. The JSON schema
of the same classes serves editors.
"""

import difflib
import hashlib
import json
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from recmtl.balancing import BALANCERS, AnyBalancer
from recmtl.errors import UserError
from recmtl.etl.days import DailyConfig
from recmtl.etl.prepare import DataConfig
from recmtl.evaluation.config import EvaluationConfig
from recmtl.expansion import ExpandedPath
from recmtl.model import ModelConfig
from recmtl.schema import Feature, Schema
from recmtl.settings import Name, Settings
from recmtl.tasks import Task, Tasks
from recmtl.tracking.base import TrackingConfig
from recmtl.tracking.registry import RegistryConfig
from recmtl.training import TrainingConfig
from recmtl.uris import redact
from recmtl.yaml_text import parse_yaml, read_yaml

__all__ = ["RunConfig", "json_schema", "load_config", "parse_config"]

Balancing = AnyBalancer


class RunConfig(Settings):
    """One run, from logs to a registered model."""

    name: Name
    """What the run is called: its default folder is runs/NAME."""
    output: ExpandedPath | None = None
    """The run's folder; `--output` replaces it. By default runs/NAME."""
    data: DataConfig
    """Where the logs are, how they are split, where the prepared rows go."""
    features: tuple[Feature, ...] | Literal["auto"] = "auto"
    """What the model sees of a row; auto: what the source recommends, or what can be inferred from its columns."""
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    """What the model predicts."""
    model: ModelConfig = ModelConfig()
    """Tower, heads and embedding tables."""
    balancing: Balancing = BALANCERS["fixed"].config()
    """How the tasks' losses, or their gradients, become one step."""
    training: TrainingConfig = TrainingConfig()
    """Optimisers, epochs, device, early stopping, checkpoints."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Intervals, slices, rankings, calibration, drift, guards, and the champion to compare with."""
    daily: DailyConfig | None = None
    """The daily pipeline: what a day trains on and what it is judged on; null: the config runs no days."""
    tracking: TrackingConfig = TrackingConfig()
    """The MLflow store and experiment."""
    registry: RegistryConfig | None = None
    """The registered model's name and alias; left out: nothing is registered."""

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "RunConfig":
        tasks = Tasks(self.tasks)
        if self.features != "auto":
            Schema(self.features)
        _known_tasks("balancing.weights", getattr(self.balancing, "weights", None) or {}, tasks)
        if self.training.early_stopping is not None:
            monitored = {key.rsplit(".", 1)[0]: None for key in self.training.early_stopping.monitor}
            conditional = {f"{t.name}_given_{t.parent}" for t in self.tasks if t.parent is not None}
            names = {name: None for name in monitored if name not in conditional}
            _known_tasks("training.early_stopping.monitor", names, tasks)
        if self.evaluation.calibration is not None:
            self.evaluation.calibration.check(tasks)
        if self.evaluation.ranking is not None:
            self.evaluation.ranking.check(tasks)
        if self.evaluation.fusion is not None:
            self.evaluation.fusion.check(tasks)
        if self.registry is not None and self.registry.gate is not None:
            self.registry.gate.check(tasks)
        return self

    @property
    def folder(self) -> Path:
        """Where the run's output goes."""
        return self.output if self.output is not None else Path("runs") / self.name

    @property
    def explicit_features(self) -> tuple[Feature, ...] | None:
        """The features, or None when they are to be recommended or inferred."""
        return None if self.features == "auto" else self.features

    def resolved(self) -> dict[str, Any]:
        """Every field with its value, as plain data."""
        return self.model_dump(mode="json")

    def fingerprint(self) -> str:
        """SHA-256 over all that shapes the trained model, as hex.

        Left out are the folder that the run is written to, and what can be done anew without training anew: how the
        model is evaluated (but for what of it travels in the package), and what it must pass to be promoted.
        """
        resolved = self.resolved()
        del resolved["output"]
        resolved["evaluation"] = {part: resolved["evaluation"].get(part) for part in ("calibration", "fusion")}
        if resolved["registry"] is not None:
            resolved["registry"].pop("gate", None)
        return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()

    def to_yaml(self) -> str:
        """The resolved config as YAML that :func:`load_config` reads back to an equal one."""
        return yaml.safe_dump(self.resolved(), sort_keys=False, allow_unicode=True, width=120)


def _known_tasks(where: str, names: Mapping[str, object], tasks: Tasks) -> None:
    for name in names:
        if name not in tasks:
            raise ValueError(f"{where}: there is no task named {name!r}{_nearest(name, tasks)}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's YAML, or JSON.

    Args:
        path: the file.
        overrides: ``a.b.c=value`` each, the value in YAML; an item of a list is named by its ``name`` or its position
            from 0 (``features.user_id.embedding_dim=32``).

    Raises:
        UserError: no such file, no YAML (:mod:`recmtl.yaml_text` says what is read), an unknown or wrong field (with
            the nearest known name).
    """
    path = Path(path)
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: a config is a mapping that begins with `name:`; this file holds none")
    for override in overrides:
        _override(data, override)
    return parse_config(data, source=str(path))


def parse_config(data: Mapping[str, Any], *, source: str = "config") -> RunConfig:
    """Check a config given as plain data.

    Raises:
        UserError: an unknown or wrong field; ``source`` says where it came from.
    """
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{source}: {_explain(error, data)}") from error


def json_schema() -> dict[str, Any]:
    """The JSON schema of the YAML, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RunConfig.model_json_schema()}


def _override(data: dict[str, Any], override: str) -> None:
    """Set one dotted path in plain config data, in place."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: expected a.b.c=value")
    value = parse_yaml(text, f"--set {dotted.strip()}")
    here: Any = data
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(here, list):
            index = _item(here, key, override)
            if last:
                here[index] = value
            else:
                here = here[index]
        elif isinstance(here, dict):
            if last:
                here[key] = value
            else:
                if here.get(key) is None:
                    here[key] = {}
                here = here[key]
        else:
            raise UserError(f"--set {override}: {'.'.join(keys[:depth])} is a value, it has no fields")


def _item(items: list[Any], key: str, override: str) -> int:
    named = {item["name"]: index for index, item in enumerate(items) if isinstance(item, dict) and "name" in item}
    if key in named:
        return int(named[key])
    if key.isdigit() and int(key) < len(items):
        return int(key)
    raise UserError(f"--set {override}: the list has no item {key!r}{_nearest(key, named)}")


def _nearest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    if found:
        return f"; did you mean {found[0]!r}?"
    return f"; known are {', '.join(map(str, known))}" if known else ""


def _explain(error: ValidationError, data: Any) -> str:
    """One line about the first thing that is wrong, unknown keys first: they often cause the others."""
    problems = error.errors(include_url=False)
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    path = _path(first["loc"], data)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        return f"{path}: unknown field{_nearest(str(first['loc'][-1]), known)}{more}"
    if first["type"] == "missing":
        return f"{path}: this field is required{more}"
    if first["type"] == "union_tag_invalid":
        context = first.get("ctx", {})
        tag, tags = str(context.get("tag")), [t.strip(" '") for t in str(context.get("expected_tags")).split(",")]
        return f"{path}.kind: unknown kind {tag!r}{_nearest(tag, tags)}{more}"
    if first["type"] == "union_tag_not_found":
        return f"{path}.kind: this field is required{more}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{_placed(message, path)}{more}"
    return f"{path}: {message[0].lower()}{message[1:]}, got {_short(first.get('input'))}{more}"


def _placed(message: str, path: str) -> str:
    """The message with its whole path in front, however much of the path it names itself."""
    parts = path.split(".") if path else []
    for start in range(len(parts)):
        if message.startswith(".".join(parts[start:])):
            return ".".join([*parts[:start], message])
    return f"{path}: {message}" if path else message


def _short(value: Any) -> str:
    text = redact(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def _path(loc: tuple[int | str, ...], data: Any) -> str:
    """A dotted path as the user would write it: without the union tags that pydantic puts between, items by name."""
    parts: list[str] = []
    here = data
    for position, key in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(here, (list, tuple)) and isinstance(key, int):
            here = here[key] if key < len(here) else None
            named = isinstance(here, dict) and isinstance(here.get("name"), str)
            parts.append(str(here["name"]) if named and isinstance(here, dict) else str(key))
        elif isinstance(here, dict) and key in here:
            here = here[key]
            parts.append(str(key))
        elif last and isinstance(here, dict) and here.get("kind") != key:
            parts.append(str(key))
    return ".".join(parts)


def _fields_at(loc: tuple[int | str, ...]) -> list[str]:
    """The names that a config has at a place in it."""
    here: list[Any] = [RunConfig]
    for key in loc:
        found: list[Any] = []
        for candidate in here:
            for model in _models(candidate):
                if isinstance(key, str) and key in model.model_fields:
                    found.append(model.model_fields[key].annotation)
                elif "kind" in model.model_fields and key in get_args(model.model_fields["kind"].annotation):
                    found.append(model)
        # An index into a list, or the name of a union's branch, stays where it is.
        here = found or here
    names = {name: None for candidate in here for model in _models(candidate) for name in model.model_fields}
    return list(names)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The config classes that an annotation admits."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, tuple, list, dict, Annotated):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []
