"""The model package: all that it takes to serve a model, in a folder that checks itself.

In: a trained model with its schema, tasks, statistics and config. Out: a folder, and from it a :class:`Package` that
encodes raw rows as training did and predicts. Neither TorchRec nor FBGEMM is needed to serve, and nothing is pickled::

    hashes.json             every other file's SHA-256; their hash is the package's digest
    package.json            features, tasks, the model's config, key columns, the data's fingerprint, versions
    model.safetensors       every learned tensor, by name
    statistics/             vocabularies and moments fitted on train
    config.resolved.yaml    the run that made it

Names in ``hashes.json`` may not leave the folder, and every file must be listed: nothing is read before that holds.
"""

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import torch
import yaml
from pydantic import ValidationError

import recmtl
from recmtl.errors import RunError, UserError
from recmtl.etl.encode import Encoder
from recmtl.loading import Loader, to_batch
from recmtl.manifest import Columns, Manifest, file_hash, inside
from recmtl.model import Model, ModelConfig, build_model
from recmtl.schema import Feature, Schema
from recmtl.settings import Settings
from recmtl.statistics import Statistics
from recmtl.tasks import Task, Tasks

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Contents", "Package", "load_package", "replacing", "save_package", "verify_package"]

_HASHES, _ABOUT, _WEIGHTS, _CONFIG = "hashes.json", "package.json", "model.safetensors", "config.resolved.yaml"
_FORMAT = 1
_ROW = "recmtl:row"
"""Keeps the number of rows where a frame has none of the model's columns; no feature's column may be called so."""
_LARGEST_LISTING = 1 << 24
"""Bytes of ``hashes.json`` beyond which it is none."""


class _About(Settings):
    """``package.json``."""

    format: int = _FORMAT
    features: tuple[Feature, ...]
    tasks: tuple[Task, ...]
    model: dict[str, Any]
    columns: Columns
    data: str
    statistics: str
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class Contents:
    """What a verified package says of itself, before any weight is read."""

    folder: Path
    digest: str
    """SHA-256 over the names and hashes of all its files: equal packages have equal digests."""
    schema: Schema
    tasks: Tasks
    columns: Columns
    """What the training data called its key columns."""
    model: Mapping[str, Any]
    """The model's config."""
    data: str
    """Fingerprint of the prepared data that it was trained on."""
    versions: Mapping[str, str]
    """Of recmtl and torch, when it was made."""

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        """The columns that it predicts, all Float32, in task order."""
        return tuple(column for name in self.tasks for column in self.tasks.prediction_columns(name))


def save_package(
    folder: Path,
    model: Model | Mapping[str, torch.Tensor],
    *,
    schema: Schema,
    tasks: Tasks,
    statistics: Statistics,
    columns: Columns,
    config: Mapping[str, Any],
    data: str,
) -> Contents:
    """Write a package; a package that is there is replaced once the new one is whole.

    Args:
        folder: the package's folder; no other process writes a package there meanwhile.
        model: as trained, or what its ``tensors()`` gave (ranks that hold parts of the tables call that together, and
            one of them saves); they may lie on any device and in either kind of tables.
        schema, tasks, statistics, columns: of the data that it was trained on.
        config: the run's resolved config as plain data; its ``model`` is what the model is built from.
        data: fingerprint of the prepared data.
    """
    from safetensors.torch import save_file

    about = _About(
        features=tuple(schema.values()),
        tasks=tuple(tasks.values()),
        model=dict(config["model"]),
        columns=columns,
        data=data,
        statistics=statistics.fingerprint(),
        versions={"recmtl": recmtl.__version__, "torch": torch.__version__.partition("+")[0]},
    )
    _remove_leftovers(folder)
    with replacing(folder) as temporary:
        # Cloned: two names may share storage, which safetensors refuses.
        whole = model.tensors() if isinstance(model, Model) else model
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in whole.items()}
        save_file(tensors, str(temporary / _WEIGHTS))
        statistics.save(temporary / "statistics")
        (temporary / _CONFIG).write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=120))
        (temporary / _ABOUT).write_text(about.model_dump_json(indent=2) + "\n")
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        hashes = {path.relative_to(temporary).as_posix(): file_hash(path) for path in files}
        (temporary / _HASHES).write_text(json.dumps({"format": _FORMAT, "files": hashes}, indent=2) + "\n")
    return verify_package(folder)


def verify_package(folder: Path) -> Contents:
    """Check every file of a package against its hash, and that it holds no other.

    Raises:
        UserError: there is no package here.
        RunError: a file is damaged, missing or not listed, or a name leads out of the folder; the package is of a newer
            format, or does not say what a package says.
    """
    hashes = _read_hashes(folder)
    present = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    }
    strange = sorted(present - hashes.keys() - {_HASHES})
    if strange:
        raise RunError(f"{folder}: this package holds files that it does not list: {', '.join(strange[:5])}")
    for name, stated in hashes.items():
        path = inside(folder, name)
        if not path.is_file():
            raise RunError(f"{folder}: this package lacks {name}; fetch or make it anew")
        if file_hash(path) != stated:
            raise RunError(f"{folder}: {name} is not what was packaged (its hash differs); fetch or make it anew")
    for name in (_ABOUT, _WEIGHTS, _CONFIG, "statistics/statistics.json"):
        if name not in hashes:
            raise RunError(f"{folder}: this package lists no {name}, so it is none of recmtl's")
    try:
        about = _About.model_validate_json((folder / _ABOUT).read_text())
        schema, tasks = Schema(about.features), Tasks(about.tasks)
    except (ValidationError, UserError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"{folder / _ABOUT}: recmtl {recmtl.__version__} cannot read it: {reason}") from error
    digest = hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()
    return Contents(folder, digest, schema, tasks, about.columns, about.model, about.data, about.versions)


def _read_hashes(folder: Path) -> dict[str, str]:
    path = folder / _HASHES
    if not path.is_file():
        what = f"{_HASHES} is missing" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder}: no model package here ({what})")
    try:
        if path.stat().st_size > _LARGEST_LISTING:
            raise ValueError("too large")
        listing = json.loads(path.read_text())
        if listing["format"] != _FORMAT:
            raise RunError(
                f"{folder}: format {listing['format']} of packages is not known to recmtl {recmtl.__version__}; "
                "install the recmtl that made it, or a newer one"
            )
        hashes = dict(listing["files"].items())
        if not all(isinstance(hash_, str) and re.fullmatch("[0-9a-f]{64}", hash_) for hash_ in hashes.values()):
            raise ValueError("a hash is none")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: this is no list of hashes ({error})") from error
    for name in hashes:
        parts = PurePosixPath(name).parts
        if not parts or name != "/".join(parts) or ".." in parts or "\\" in name or name.startswith("/") or ":" in name:
            raise RunError(f"{path}: {name!r} is no name of a file in this package")
    return hashes


def load_package(folder: Path, *, device: torch.device | str = "cpu") -> "Package":
    """Verify a package and build its model.

    Raises:
        UserError, RunError: as :func:`verify_package`; the weights do not fit the model.
    """
    contents = verify_package(folder)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    statistics = Statistics.load(folder / "statistics")
    try:
        config = ModelConfig.model_validate(dict(contents.model))
        tensors = load_file(str(folder / _WEIGHTS))
    except ValidationError as error:
        reason = error.errors()[0]
        where = ".".join(str(part) for part in reason["loc"])
        raise RunError(
            f"{folder}: recmtl {recmtl.__version__} cannot build this model (model.{where}: {reason['msg']}); "
            f"it was made by recmtl {contents.versions.get('recmtl')}"
        ) from error
    except SafetensorError as error:
        raise RunError(f"{folder / _WEIGHTS}: these are no weights ({error})") from error
    model = build_model(config, contents.schema, contents.tasks, statistics, seed=0)
    model.load_tensors(tensors)
    return Package(contents, statistics, model, device=device)


class Package:
    """A model that takes raw rows. Made by :func:`load_package`, or of a model in memory to score what it trained on.

    A frame may lack columns (missing in every row) and hold others (ignored). A prediction depends on its row alone.
    """

    def __init__(
        self, contents: Contents, statistics: Statistics, model: Model, *, device: torch.device | str = "cpu"
    ) -> None:
        self.contents = contents
        self.statistics = statistics
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()

    @property
    def schema(self) -> Schema:
        """The features."""
        return self.contents.schema

    @property
    def tasks(self) -> Tasks:
        """The tasks."""
        return self.contents.tasks

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        """The columns that :meth:`predict` gives, in order."""
        return self.contents.prediction_columns

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self.schema, self.statistics)

    def encode(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Raw rows as the model reads them: the feature columns of :mod:`recmtl.manifest`.

        Raises:
            UserError: a column cannot be what the schema says; names feature, column and type.
        """
        # A column without any value has whatever type its file or frame gave it: it is missing, not of a wrong type.
        present = [
            column
            for column in self.schema.columns
            if column in frame.columns and frame[column].null_count() < frame.height
        ]
        rows = frame.select(pl.int_range(frame.height, dtype=pl.Int64).alias(_ROW), *present)
        try:
            return self._encoder.rows(rows)
        except pl.exceptions.PolarsError as error:
            raise self._blame(rows, error) from error

    def _blame(self, rows: pl.DataFrame, error: Exception) -> UserError:
        """Which feature it was that could not be encoded."""
        for feature in self.schema.values():
            alone = Encoder(Schema([feature]), self.statistics)
            try:
                alone.rows(rows)
            except UserError as its_own:
                return its_own
            except pl.exceptions.PolarsError as its_own:
                types = ", ".join(f"{c!r} ({rows.schema[c]})" for c in feature.columns if c in rows.columns)
                reason = str(its_own).splitlines()[0]
                return UserError(
                    f"features.{feature.name}: column {types} cannot be read as kind {feature.kind}: {reason}"
                )
        return UserError(f"these rows cannot be encoded: {str(error).splitlines()[0]}")

    def predict(self, frame: pl.DataFrame, *, batch_rows: int = 8192) -> pl.DataFrame:
        """Predictions for raw rows.

        Args:
            frame: raw columns under the names that the training data had.
            batch_rows: rows scored at a time.

        Returns:
            :attr:`prediction_columns` in the order of the rows, Float32: probabilities, expectations, label units.

        Raises:
            UserError: as :meth:`encode`.
        """
        parts = [self._predict(frame.slice(start, batch_rows)) for start in range(0, frame.height, batch_rows)]
        empty = pl.DataFrame(schema=dict.fromkeys(self.prediction_columns, pl.Float32))
        return pl.concat([empty, *parts])

    @torch.inference_mode()
    def _predict(self, frame: pl.DataFrame) -> pl.DataFrame:
        batch = to_batch(self.encode(frame), self.schema, None).to(self.device)
        predictions = self.model.predictions(self.model(batch))
        return pl.DataFrame({name: predictions[name].float().cpu().numpy() for name in self.prediction_columns})

    def predict_pandas(self, frame: "pd.DataFrame") -> "pd.DataFrame":
        """:meth:`predict` from and to pandas, under the frame's index: what MLflow calls.

        Columns may be of any type that holds the values: whole numbers as floats with NaN, objects, categories, lists
        or arrays as items.

        Raises:
            UserError: as :meth:`encode`; no frame; a column that stands twice.
        """
        import pandas as pd

        if not isinstance(frame, pd.DataFrame):
            raise UserError(f"expected rows as a pandas frame, not {type(frame).__name__}")
        columns = {}
        for name in self.schema.columns:
            if name in frame.columns:
                column: Any = frame[name]
                if isinstance(column, pd.DataFrame):
                    raise UserError(f"column {name!r} stands {column.shape[1]} times in these rows")
                columns[name] = _from_pandas(name, column)
        rows = pl.DataFrame({_ROW: pl.int_range(len(frame), dtype=pl.Int64, eager=True), **columns})
        predictions = self.predict(rows)
        return pd.DataFrame({name: predictions[name].to_numpy() for name in predictions.columns}, index=frame.index)

    def loader(self, folder: Path, manifest: Manifest, split: str, *, batch_size: int = 8192) -> Loader:
        """Validation or test of a prepared dataset as this package encodes its raw rows, beside their labels.

        Raises:
            UserError: the data have no labels for a task of the model, or mean something else by it.
            RunError: the split keeps no raw rows (train).
        """
        theirs = manifest.tasks_
        for name, task in self.tasks.items():
            if name not in theirs:
                raise UserError(f"{folder}: these data have no labels for task {name!r}, which the model predicts")
            for field in ("kind", "parent", "levels", "classes", "observed"):
                ours, other = getattr(task, field), getattr(theirs[name], field)
                if ours != other:
                    raise UserError(f"tasks.{name}: `{field}` is {ours!r} in the model but {other!r} in {folder}")
        return Loader(
            folder,
            manifest,
            split,
            batch_size=batch_size,
            shuffle_seed=None,
            encoder=(self.schema, self.statistics),
        )


def _from_pandas(name: str, column: "pd.Series[Any]") -> pl.Series:
    """A pandas column as Polars has it; one of mixed single values as objects, which encode as text does."""
    try:
        return pl.Series(name, pl.from_pandas(column))
    except (
        pa.ArrowInvalid,
        pa.ArrowTypeError,
        pa.ArrowNotImplementedError,
        TypeError,
        ValueError,
        pl.exceptions.PolarsError,
    ):
        values = [None if _missing(value) else value for value in column.tolist()]
    listed = [
        value for value in values if value is not None and hasattr(value, "__len__") and not isinstance(value, str)
    ]
    if not listed:
        return pl.Series(name, values, dtype=pl.Object)
    try:
        return pl.Series(name, [None if value is None else list(value) for value in values], strict=False)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise UserError(f"column {name!r} mixes lists with other values; make it one kind") from error


def _missing(value: Any) -> bool:
    import pandas as pd

    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its place at the end, or is removed on an error."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            old = folder.with_name(f"{temporary.name.removesuffix('.tmp')}.old")
            folder.rename(old)
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(folder: Path) -> None:
    """What :func:`replacing` left behind when it was killed."""
    for path in folder.absolute().parent.glob(f".{folder.name}.*"):
        if re.fullmatch(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}\.(tmp|old)", path.name):
            shutil.rmtree(path)
