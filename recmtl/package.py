"""The model package: all that it takes to serve a model, in a folder that checks itself.

In: a trained model with its schema, tasks, statistics and config. Out: a folder, and from it a :class:`Package` that
encodes raw rows as training did and predicts. Neither TorchRec nor FBGEMM is needed to serve, and nothing is pickled::

    hashes.json             every other file's SHA-256; their hash is the package's digest
    package.json            features, tasks, the model's config, key columns, the data's fingerprint, versions
    model.safetensors       every learned tensor, by name
    statistics/             vocabularies and moments fitted on train; reading.json: how raw values were read
    config.resolved.yaml    the run that made it
    calibration.json        what calibrated predictions are made by (recmtl.calibration); where there is one
    fusion.json             what the column ``score`` is made by (recmtl.fusion); where there is one
    quantised.json          how many bits a table's values have (recmtl.features.quantised); where it is not 32

These names are all that a package may hold: it is data, and no file in it is ever run. Every file must be listed in
``hashes.json``; nothing is read before that holds.
"""

import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from uuid import UUID

import numpy as np
import polars as pl
import pyarrow as pa
import torch
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError

import recmtl
from recmtl import durable
from recmtl.bounded import parse_json, read_bytes, read_model
from recmtl.calibration import Calibrations
from recmtl.errors import RunError, UserError
from recmtl.etl.convert import RowEncoder
from recmtl.etl.encode import Encoder
from recmtl.features import MakeTables
from recmtl.features.quantised import Quantised, QuantisedTables, row_scales
from recmtl.fusion import SCORE, Fusion
from recmtl.loading import Loader, to_batch
from recmtl.manifest import Columns, Manifest, file_hash, inside
from recmtl.model import Model, ModelConfig, build_model
from recmtl.reading import NumberStyle, Reading, Unread
from recmtl.schema import Feature, Schema
from recmtl.settings import Settings
from recmtl.statistics import Statistics
from recmtl.tasks import Task, Tasks

if TYPE_CHECKING:
    import pandas as pd
from recmtl.failures import writing

__all__ = [
    "Contents",
    "Package",
    "check_output",
    "common_tasks",
    "load_package",
    "recover_package",
    "save_package",
    "verify_package",
    "with_calibration",
    "with_fusion",
    "with_quantised",
]

_HASHES, _ABOUT, _WEIGHTS, _CONFIG = "hashes.json", "package.json", "model.safetensors", "config.resolved.yaml"
_CALIBRATION, _FUSION, _QUANTISED = "calibration.json", "fusion.json", "quantised.json"
_READING, _STATISTICS = "statistics/reading.json", "statistics/statistics.json"
_NAMES = frozenset({_ABOUT, _WEIGHTS, _CONFIG, _CALIBRATION, _FUSION, _QUANTISED, _READING, _STATISTICS})
"""What a package's files may be called, beside ``hashes.json`` and the vocabularies."""
_VOCABULARY = re.compile(r"statistics/vocabulary/[A-Za-z_][A-Za-z0-9_]*\.parquet")
_FORMAT = 2
"""Of what is written. Format 1 has no ``statistics/reading.json``: its rows are encoded as they arrive."""
_KNOWN = (1, 2)
_ROW = "recmtl:row"
"""Keeps the number of rows where a frame has none of the model's columns; no feature's column may be called so."""
_warned: set[str] = set()
"""Digests of the packages of format 1 that were spoken of; once is enough."""
_LARGEST_LISTING, _LARGEST_PART = 1 << 24, 1 << 26
"""Bytes of ``hashes.json``, and of its other JSON files, beyond which they are none."""
_Part = TypeVar("_Part", Calibrations, Fusion, Quantised)
_Json = TypeVar("_Json", bound=Settings)


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
    calibration: Calibrations | None = None
    """What calibrated predictions are made by."""
    fusion: Fusion | None = None
    """What the column ``score`` is made by."""
    quantised: Quantised | None = None
    """How its tables are stored, where not in 32 bits."""

    @property
    def prediction_columns(self) -> tuple[str, ...]:
        """The columns that it predicts by default, all Float32, in task order; ``score`` last, of one with a fusion."""
        columns = tuple(column for name in self.tasks for column in self.tasks.prediction_columns(name))
        return columns if self.fusion is None else (*columns, SCORE)

    def outputs(
        self, predictions: Mapping[str, NDArray[np.float32]], *, calibrated: bool = False, fused: bool | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """What is given out for what the model predicts.

        Args:
            predictions: the model's columns to (N,), uncalibrated.
            calibrated: give calibrated probabilities. The score does not change with it: it is always of what its
                formula was chosen on.
            fused: give the score; None: where there is a fusion.

        Returns:
            The same columns in task order, then ``score``.

        Raises:
            UserError: calibrated or fused is asked for, and the package has none.
        """
        if calibrated and self.calibration is None:
            raise UserError(
                f"{self.folder}: this package has no calibration; evaluate with `evaluation.calibration` in the config"
            )
        if fused and self.fusion is None:
            raise UserError(f"{self.folder}: this package has no fused score; `recmtl fuse` finds and saves one")
        raw = {column: predictions[column] for name in self.tasks for column in self.tasks.prediction_columns(name)}
        fusion = None if fused is False else self.fusion
        right = raw
        if self.calibration is not None and (calibrated or (fusion is not None and fusion.calibrated)):
            right = self.calibration.apply(raw, self.tasks)
        found = right if calibrated else raw
        if fusion is not None:
            found = {**found, SCORE: fusion.apply(right if fusion.calibrated else raw, self.tasks)}
        return found


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
        config: the run's resolved config as plain data; its ``model`` is what the model is built from, its
            ``tracking`` is left out.
        data: fingerprint of the prepared data.

    Raises:
        RunError: a tensor holds values that are not finite.
    """
    from safetensors.torch import save_file

    about = _About(
        format=1 if statistics.reading is None else _FORMAT,
        features=tuple(schema.values()),
        tasks=tuple(tasks.values()),
        model=dict(config["model"]),
        columns=columns,
        data=data,
        statistics=statistics.fingerprint(),
        versions={"recmtl": recmtl.__version__, "torch": torch.__version__.partition("+")[0]},
    )
    _remove_leftovers(folder)
    with durable.replacing(folder) as temporary:
        # Cloned: two names may share storage, which safetensors refuses.
        whole = model.tensors() if isinstance(model, Model) else model
        tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in whole.items()}
        _check_finite(folder, tensors)
        with writing(temporary / _WEIGHTS):
            save_file(tensors, str(temporary / _WEIGHTS))
        statistics.save(temporary / "statistics")
        # Where the run was tracked is no part of the model, and its address may hold what is nobody else's business.
        kept = {section: value for section, value in config.items() if section != "tracking"}
        (temporary / _CONFIG).write_text(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=120))
        (temporary / _ABOUT).write_text(about.model_dump_json(indent=2) + "\n")
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        _write_hashes(temporary, {path.relative_to(temporary).as_posix(): file_hash(path) for path in files})
    return verify_package(folder)


def with_calibration(folder: Path, calibration: Calibrations | None, *, output: Path | None = None) -> Contents:
    """Put a calibration into a package, in place of the one that it has; the package's digest changes.

    A fusion that reads calibrated predictions goes when the calibration that it was chosen on does: its weights were
    for others.

    Args:
        folder: the package; replaced once the new one is whole, while no other process writes it.
        calibration: None takes it out.
        output: write the package here instead, and leave ``folder`` as it is.

    Raises:
        UserError: it calibrates what the model does not predict; ``output`` holds something that is no package.
        RunError: as :func:`verify_package`.
    """
    contents = verify_package(folder)
    if calibration is not None:
        calibration.check(contents.tasks)
    stale = contents.fusion is not None and contents.fusion.calibrated and calibration != contents.calibration
    return _rewritten(contents, output, {_CALIBRATION: calibration} | ({_FUSION: None} if stale else {}))


def with_fusion(folder: Path, fusion: Fusion | None, *, output: Path | None = None) -> Contents:
    """Put a fusion into a package, in place of the one that it has; the package's digest changes.

    Args:
        folder: the package; replaced once the new one is whole, while no other process writes it.
        fusion: None takes it out.
        output: write the package here instead, and leave ``folder`` as it is.

    Raises:
        UserError: the formula reads what the model does not predict, or calibrated predictions where there is no
            calibration; a task is called ``score``; ``output`` holds something that is no package.
        RunError: as :func:`verify_package`.
    """
    contents = verify_package(folder)
    if fusion is not None:
        _check_fusion(fusion, contents.tasks, contents.calibration)
    return _rewritten(contents, output, {_FUSION: fusion})


def _check_fusion(fusion: Fusion, tasks: Tasks, calibration: Calibrations | None) -> None:
    fusion.check(tasks)
    if fusion.calibrated and calibration is None:
        raise UserError("this fusion reads calibrated predictions, but the package has no calibration")


def with_quantised(
    folder: Path, quantised: Quantised, tensors: Mapping[str, torch.Tensor], *, output: Path
) -> Contents:
    """Write a package with other weights beside the one that they were made of.

    Args:
        folder: a package; left as it is.
        quantised: how the tables among the weights are stored.
        tensors: all weights, by the names that they have in the package.
        output: where the new one goes.

    Raises:
        UserError: ``output`` is the package itself, or holds something that is no package.
        RunError: as :func:`verify_package`.
    """
    if output.resolve() == folder.resolve():
        raise UserError(f"--output {output}: this is the model itself; name another folder")
    return _rewritten(verify_package(folder), output, {_QUANTISED: quantised}, tensors)


def _rewritten(
    contents: Contents,
    output: Path | None,
    changes: Mapping[str, Settings | None],
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> Contents:
    """The package with some files new, or taken out (None), and perhaps other weights; the rest is not read again."""
    folder = contents.folder
    texts = {name: None if new is None else new.model_dump_json(indent=2) + "\n" for name, new in changes.items()}
    apart = output is not None and output.resolve() != folder.resolve()
    if not apart and all(_text(folder / name) == text for name, text in texts.items()):
        return contents
    place = output if output is not None and apart else folder
    if apart:
        check_output(place)
    _remove_leftovers(place)
    hashes = _read_hashes(folder)
    with durable.replacing(place) as temporary:
        # In place, the new folder's unchanged files are the old one's: nothing of the model's size is written.
        shutil.copytree(folder, temporary, copy_function=shutil.copy2 if apart else _linked, dirs_exist_ok=True)
        for name, text in texts.items():
            durable.remove(temporary / name)  # never written through: it may be the old folder's too
            hashes.pop(name, None)
            if text is not None:
                (temporary / name).write_text(text)
                hashes[name] = file_hash(temporary / name)
        if tensors is not None:
            from safetensors.torch import save_file

            _check_finite(place, tensors)
            durable.remove(temporary / _WEIGHTS)  # a file of its own: it may be linked to the old one's
            with writing(temporary / _WEIGHTS):
                save_file(dict(tensors), str(temporary / _WEIGHTS))
            hashes[_WEIGHTS] = file_hash(temporary / _WEIGHTS)
        durable.remove(temporary / _HASHES)
        _write_hashes(temporary, dict(sorted(hashes.items())))
    return verify_package(place)


def check_output(place: Path) -> None:
    """Refuse to write a package where something else is. A damaged package is one, and may be replaced.

    Raises:
        UserError: a file, or a folder that holds something and is no package.
    """
    recover_package(place)
    if place.is_file() or (place.is_dir() and any(place.iterdir()) and not _looks_like_a_package(place)):
        raise UserError(f"--output {place}: this holds something that is no package; name another folder")


def _looks_like_a_package(folder: Path) -> bool:
    """Whether it lists its files; or, where the list is gone, holds what every package does and nothing else."""
    if (folder / _HASHES).is_file():
        return True
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return {_ABOUT, _WEIGHTS} <= names and all(_is_packaged(name) for name in names)


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def _linked(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)
    return target


def _write_hashes(folder: Path, hashes: Mapping[str, str]) -> None:
    listing = {"format": _FORMAT if _READING in hashes else 1, "files": hashes}
    (folder / _HASHES).write_text(json.dumps(listing, indent=2) + "\n")


def verify_package(folder: Path) -> Contents:
    """Check every file of a package against its hash, and that it holds no other.

    A package that a killed process had moved aside to replace it, and that is nowhere else, is put back first.

    Raises:
        UserError: there is no package here.
        RunError: a file is damaged, missing or not listed, or a name leads out of the folder; the package is of a newer
            format, or does not say what a package says.
    """
    recover_package(folder)
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
    for name in (_ABOUT, _WEIGHTS, _CONFIG, _STATISTICS):
        if name not in hashes:
            raise RunError(f"{folder}: this package lists no {name}, so it is none of recmtl's")
    about = _read(folder / _ABOUT, _About)
    _check_format(folder, about.format)
    try:
        schema, tasks = Schema(about.features), Tasks(about.tasks)
    except UserError as error:
        raise _unreadable(folder / _ABOUT, error) from error
    calibration = _read_part(folder, hashes, _CALIBRATION, Calibrations)
    fusion = _read_part(folder, hashes, _FUSION, Fusion)
    try:
        if calibration is not None:
            calibration.check(tasks)
        if fusion is not None:
            _check_fusion(fusion, tasks, calibration)
    except UserError as error:
        raise RunError(f"{folder}: {error}") from error
    return Contents(
        folder=folder,
        digest=hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest(),
        schema=schema,
        tasks=tasks,
        columns=about.columns,
        model=about.model,
        data=about.data,
        versions=about.versions,
        calibration=calibration,
        fusion=fusion,
        quantised=_read_part(folder, hashes, _QUANTISED, Quantised),
    )


def _read_part(folder: Path, hashes: Mapping[str, str], name: str, kind: type[_Part]) -> _Part | None:
    """A file that a package may have."""
    return _read(folder / name, kind) if name in hashes else None


def _read(path: Path, kind: type[_Json]) -> _Json:
    try:
        return read_model(path, kind, largest=_LARGEST_PART)
    except RunError as error:
        raise RunError(f"{error} (recmtl {recmtl.__version__} cannot read it)") from error


def _is_packaged(name: str) -> bool:
    """Whether a package may hold a file of this name."""
    return name in _NAMES or _VOCABULARY.fullmatch(name) is not None


def _unreadable(path: Path, error: Exception) -> RunError:
    return RunError(f"{path}: recmtl {recmtl.__version__} cannot read it: {str(error).splitlines()[0]}")


def _check_format(folder: Path, stated: object) -> None:
    if stated not in _KNOWN:
        raise RunError(
            f"{folder}: format {stated} of packages is not known to recmtl {recmtl.__version__}; install the recmtl "
            "that made it, or a newer one"
        )


def _read_hashes(folder: Path) -> dict[str, str]:
    path = folder / _HASHES
    if not path.is_file():
        what = f"{_HASHES} is missing" if folder.is_dir() else "there is no such folder"
        raise UserError(f"{folder}: no model package here ({what})")
    try:
        listing = parse_json(read_bytes(path, largest=_LARGEST_LISTING))
        _check_format(folder, listing["format"])
        hashes = dict(listing["files"].items())
        if listing["format"] > 1 and _READING not in hashes:
            raise RunError(f"{folder}: this package lists no {_READING}, which says how raw values are read")
        if not all(isinstance(hash_, str) and re.fullmatch("[0-9a-f]{64}", hash_) for hash_ in hashes.values()):
            raise ValueError("a hash is none")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: this is no list of hashes ({error})") from error
    for name in hashes:
        if not _is_packaged(name):
            raise RunError(f"{path}: {name!r} is no name of a file in this package")
    return hashes


def load_package(folder: Path, *, device: torch.device | str = "cpu") -> "Package":
    """Verify a package and build its model.

    Nothing is allocated before names, shapes and types of the weights are seen to be those of the model that the
    package describes, so that no package takes more memory than its files hold.

    Raises:
        UserError, RunError: as :func:`verify_package`; the weights do not fit the model, or are not finite.
    """
    contents = verify_package(folder)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    stored = contents.quantised
    tables = None if stored is None else partial(QuantisedTables, precision=stored.precision)
    try:
        config = ModelConfig.model_validate(dict(contents.model))
        header = _header(folder / _WEIGHTS)
        statistics = Statistics.load(folder / "statistics", _vocabulary_sizes(folder, contents.schema, header))
        _check_header(contents, config, statistics, tables, header)
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
    if statistics.reading is None and contents.digest not in _warned:
        _warned.add(contents.digest)
        logging.getLogger("recmtl").warning(
            "%s: this package is of format 1, which does not record how raw values were read in training (separator, "
            "encoding, missing texts, units and zones of times, types); give rows as the training data had them, or "
            "train it anew",
            folder,
        )
    _check_finite(folder, tensors)
    model = build_model(config, contents.schema, contents.tasks, statistics, seed=0, tables=tables)
    model.load_tensors(tensors)
    return Package(contents, statistics, model, device=device)


_Header: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor to its type, as safetensors calls it, and its shape."""
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def _header(path: Path) -> _Header:
    """What the weights' file says of its tensors; safetensors sees that their bytes are there, and reads none."""
    from safetensors import safe_open

    found = {}
    with safe_open(str(path), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            tensor = file.get_slice(name)
            found[name] = (tensor.get_dtype(), tuple(tensor.get_shape()))
    return found


def _vocabulary_sizes(folder: Path, schema: Schema, header: _Header) -> dict[str, int]:
    """Table to the values of its vocabulary, as many as the stored table has rows for."""
    found = {}
    for name, table in schema.tables.items():
        if table.stated_rows is None:
            _, shape = header.get(f"tables.{name}", ("", ()))
            if len(shape) != 2 or shape[0] < 2:
                raise RunError(f"{folder / _WEIGHTS}: these weights are of another model: table {name!r} is missing")
            found[name] = shape[0] - 2
    return found


def _check_header(
    contents: Contents, config: ModelConfig, statistics: Statistics, tables: MakeTables | None, header: _Header
) -> None:
    """Compare the weights with the model that the package describes, which is built without any memory for that.

    Raises:
        RunError: the description makes no model, or one of other tensors.
    """
    folder = contents.folder
    try:
        with torch.device("meta"), _at_most(len(header)):
            model = build_model(config, contents.schema, contents.tasks, statistics, seed=0, tables=tables)
            described = {
                name: (_TYPES.get(piece.dtype, str(piece.dtype)), tuple(piece.shape))
                for name, piece in model.pieces().items()
            }
    except RunError as error:
        raise RunError(f"{folder / _WEIGHTS}: these weights are of another model: {error}") from error
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise RunError(
            f"{folder / _ABOUT}: no model can be built from this description ({type(error).__name__}: {reason})"
        ) from error
    if described.keys() != header.keys():
        missing, left = sorted(described.keys() - header.keys()), sorted(header.keys() - described.keys())
        raise RunError(
            f"{folder / _WEIGHTS}: these weights are of another model: "
            f"{', '.join(missing[:5]) or 'none'} are missing, {', '.join(left[:5]) or 'none'} too many"
        )
    for name, (kind, shape) in described.items():
        if header[name] != (kind, shape):
            there, held = header[name]
            raise RunError(
                f"{folder / _WEIGHTS}: these weights are of another model: {name} is {kind} of shape {shape} as "
                f"{_ABOUT} describes it, but {there} of shape {held} here"
            )


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Stop this thread from making a model of more parameters than so many, however many it was told to make.

    Raises:
        RunError: it tries to.
    """
    thread, made = threading.get_ident(), itertools.count(1)

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        # A layer makes parameters before it takes those that it is given: twice as many, and none that is None.
        if threading.get_ident() == thread and parameter is not None and next(made) > 4 * parameters + 64:
            raise RunError(f"the description makes more than {parameters:,} parameters")

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _check_finite(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """See that every value of every tensor is a number.

    Raises:
        RunError: one is infinite or none; names the tensor and how many there are.
    """
    for name, tensor in tensors.items():
        # Stored in 8 bits, a table has the scale and bias of a row as float16 at the row's start.
        values = row_scales(tensor) if name.startswith("tables.") and tensor.dtype == torch.uint8 else tensor
        if not values.is_floating_point():
            continue
        bad = values.numel() - int(values.isfinite().sum())
        if bad:
            raise RunError(
                f"{folder}: {name} holds {bad:,} values of {values.numel():,} that are not finite (NaN or infinite); "
                "a model predicts nothing with them"
            )


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
        """The columns that :meth:`predict` gives by default, in order."""
        return self.contents.prediction_columns

    @cached_property
    def _encoder(self) -> RowEncoder:
        return RowEncoder(self.schema, self.statistics)

    @property
    def reading(self) -> Reading | None:
        """How raw values were read in training; None: a package of format 1, which does not say."""
        return self.statistics.reading

    def read_as(self, style: NumberStyle) -> "Package":
        """The same model for rows whose text writes numbers in another style than the training data.

        Raises:
            UserError: a package of format 1.
        """
        if self.reading is None:
            raise UserError(f"{self.contents.folder}: a package of format 1 reads numbers with a decimal point alone")
        columns = {name: how.model_copy(update={"style": style}) for name, how in self.reading.columns.items()}
        reading = self.reading.model_copy(update={"columns": columns})
        return Package(self.contents, replace(self.statistics, reading=reading), self.model, device=self.device)

    def encode(self, frame: pl.DataFrame, *, unread: dict[str, Unread] | None = None) -> pl.DataFrame:
        """Raw rows as the model reads them: the feature columns of :mod:`recmtl.manifest`.

        Args:
            frame: raw columns under the names that the training data had.
            unread: is added what cannot be read as in training, by column, and counts as missing; None: such rows are
                refused.

        Raises:
            UserError: a column cannot be what the schema says; names feature, column and type. A value cannot be read
                as in training, and ``unread`` is None; names column, values and what to do.
        """
        # A column without any value has whatever type its file or frame gave it: it is missing, not of a wrong type.
        present = [
            column
            for column in self.schema.columns
            if column in frame.columns and frame[column].null_count() < frame.height
        ]
        rows = frame.select(pl.int_range(frame.height, dtype=pl.Int64).alias(_ROW), *present)
        try:
            return self._encoder.rows(rows, unread)
        except pl.exceptions.PolarsError as error:
            raise self._blame(rows, error) from error

    def _blame(self, rows: pl.DataFrame, error: Exception) -> UserError:
        """Which feature it was that could not be encoded."""
        rows, _ = self._encoder.converted(rows)
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

    def predict(
        self,
        frame: pl.DataFrame,
        *,
        calibrated: bool = False,
        fused: bool | None = None,
        batch_rows: int = 8192,
        unread: dict[str, Unread] | None = None,
    ) -> pl.DataFrame:
        """Predictions for raw rows.

        Args:
            frame: raw columns under the names that the training data had.
            calibrated: give calibrated probabilities; the score is the same either way.
            fused: give the column ``score``; None: where the package has a fusion.
            batch_rows: rows scored at a time.
            unread: as for :meth:`encode`.

        Returns:
            :attr:`prediction_columns` in the order of the rows, Float32: probabilities, expectations, label units; last
            the score.

        Raises:
            UserError: as :meth:`encode`; the package has no calibration, or no fusion, and it was asked for.
            RunError: a prediction is not finite.
        """
        none = {
            column: np.empty(0, np.float32) for name in self.tasks for column in self.tasks.prediction_columns(name)
        }
        empty = pl.DataFrame(self.contents.outputs(none, calibrated=calibrated, fused=fused))
        starts = range(0, frame.height, batch_rows)
        parts = [self._predict(frame.slice(start, batch_rows), calibrated, fused, unread) for start in starts]
        return pl.concat([empty, *parts])

    @torch.inference_mode()
    def _predict(
        self, frame: pl.DataFrame, calibrated: bool, fused: bool | None, unread: dict[str, Unread] | None
    ) -> pl.DataFrame:
        batch = to_batch(self.encode(frame, unread=unread), self.schema, None).to(self.device)
        predictions = self.model.predictions(self.model(batch))
        arrays = {name: values.float().cpu().numpy() for name, values in predictions.items()}
        found = self.contents.outputs(arrays, calibrated=calibrated, fused=fused)
        for name, values in (*arrays.items(), *found.items()):
            bad = values.size - int(np.isfinite(values).sum())
            if bad:
                raise RunError(
                    f"{self.contents.folder}: {name!r} is not finite (NaN or infinite) for {bad:,} of "
                    f"{values.size:,} rows; the model's weights are beyond what it can calculate with"
                )
        return pl.DataFrame(found)

    def predict_pandas(self, frame: "pd.DataFrame", *, calibrated: bool = False) -> "pd.DataFrame":
        """:meth:`predict` from and to pandas, under the frame's index: what MLflow calls.

        Columns may be of any type that holds the values: whole numbers as floats with NaN, objects, categories, lists
        or arrays as items.

        Raises:
            UserError: as :meth:`predict`; no frame; a column that stands twice.
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
        predictions = self.predict(rows, calibrated=calibrated)
        return pd.DataFrame({name: predictions[name].to_numpy() for name in predictions.columns}, index=frame.index)

    def loader(
        self,
        folder: Path,
        manifest: Manifest,
        split: str,
        *,
        batch_size: int = 8192,
        tasks: Collection[str] | None = None,
    ) -> Loader:
        """Validation or test of a prepared dataset as this package encodes its raw rows, beside their labels.

        Args:
            folder: the dataset's folder.
            manifest: the dataset's.
            split: validation or test.
            batch_size: rows of a batch.
            tasks: whose labels are read, with those of the tasks that they depend on: for a model of other tasks than
                the data's, what :func:`common_tasks` names. The model predicts all of its own whatever they are. None:
                all of the data's, which must have every task of the model.

        Raises:
            UserError: the data have no labels for one of these tasks, or mean something else by it; ``tasks`` is empty.
            RunError: the split keeps no raw rows (train).
        """
        differ = {name: _difference(name, self.tasks, manifest.tasks_) for name in self.tasks}
        wanted = None if tasks is None else _with_parents(tasks, manifest.tasks_)
        for name, why in differ.items():
            if why is not None and (wanted is None or name in wanted):
                raise UserError(f"{folder}: {why}")
        if wanted is not None and not wanted:
            said = "; ".join(why for why in differ.values() if why is not None)
            raise UserError(f"{folder}: these data and {self.contents.folder} have no task in common ({said})")
        return Loader(
            folder,
            manifest,
            split,
            batch_size=batch_size,
            shuffle_seed=None,
            encoder=(self.schema, self.statistics),
            tasks=None if wanted is None else Tasks(list(wanted.values())),
        )


def common_tasks(package: Package, manifest: Manifest) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which tasks a model and a dataset have in common.

    Returns:
        The names, in the data's order, of the tasks by which both mean the same: of equal kind, parent, levels, classes
        and mask, and dependent on such tasks alone; and a sentence, without a full stop, about each other one of
        the model's or of the data's.
    """
    ours, theirs = package.tasks, manifest.tasks_
    found = {name: _difference(name, ours, theirs) for name in (*theirs, *(n for n in ours if n not in theirs))}
    common = tuple(name for name, why in found.items() if why is None)
    return common, tuple(why for why in found.values() if why is not None)


def _difference(name: str, ours: Tasks, theirs: Tasks) -> str | None:
    """Why the model and the data do not mean the same by a task; None where they do."""
    if name not in theirs:
        return f"these data have no labels for task {name!r}, which the model predicts"
    if name not in ours:
        return f"the model does not predict task {name!r}, for which these data have labels"
    for field in ("kind", "parent", "levels", "classes", "observed"):
        mine, other = getattr(ours[name], field), getattr(theirs[name], field)
        if mine != other:
            return f"tasks.{name}: `{field}` is {mine!r} in the model but {other!r} in these data"
    if ours[name].label == theirs[name].label:  # one column, read in two ways, is two labels
        for field in ("positive", "labels"):
            mine, other = getattr(ours[name], field), getattr(theirs[name], field)
            if mine != other:
                return f"tasks.{name}: `{field}` is {mine!r} in the model but {other!r} in these data"
    for other in _above(ours[name]):
        if _difference(other, ours, theirs) is not None:
            return f"tasks.{name}: {other!r}, on which it depends, is another in the model than in these data"
    return None


def _above(task: Task) -> tuple[str, ...]:
    """The tasks whose labels say which rows of this one count."""
    when = None if task.observed is None else task.observed.when
    return tuple(name for name in (task.parent, when) if name is not None)


def _with_parents(names: Collection[str], tasks: Tasks) -> dict[str, Task]:
    """These of the tasks and all above them, in the tasks' order.

    Raises:
        UserError: one is none of the tasks.
    """
    wanted: set[str] = set()
    left = list(names)
    while left:
        name = left.pop()
        if name not in tasks:
            raise UserError(f"these data have no labels for task {name!r}")
        if name not in wanted:
            wanted.add(name)
            left += _above(tasks[name])
    return {name: task for name, task in tasks.items() if name in wanted}


def _from_pandas(name: str, column: "pd.Series[Any]") -> pl.Series:
    """A pandas column as Polars has it; one of mixed single values as objects, which encode as text does.

    Raises:
        UserError: a value is a list of lists, or deeper; lists are mixed with other values.
    """
    import pandas as pd

    _check_flat(name, column)
    if isinstance(column.dtype, pd.DatetimeTZDtype):  # pandas warns of what Polars does with it
        naive = pl.Series(name, pl.from_pandas(column.dt.tz_convert("UTC").dt.tz_localize(None)))
        return naive.dt.replace_time_zone("UTC")
    if column.dtype == object and any(isinstance(value, UUID) for value in column):  # Arrow keeps their bytes
        column = column.map(lambda value: str(value) if isinstance(value, UUID) else value)
    try:
        return pl.Series(name, pl.from_pandas(column))
    except (
        OverflowError,
        pa.ArrowInvalid,
        pa.ArrowTypeError,
        pa.ArrowNotImplementedError,
        TypeError,
        ValueError,
        pl.exceptions.PolarsError,
    ):
        values = [None if _missing(value) else value for value in column.tolist()]
    given = [value for value in values if value is not None]
    listed = [hasattr(value, "__len__") and not isinstance(value, str | bytes) for value in given]
    if not any(listed):
        return pl.Series(name, values, dtype=pl.Object)
    try:
        if not all(listed):
            raise TypeError("a value that is no list")
        return pl.Series(name, [None if value is None else list(value) for value in values], strict=False)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise UserError(f"column {name!r} mixes lists with other values; make it one kind") from error


def _check_flat(name: str, column: "pd.Series[Any]") -> None:
    """Refuse values that hold lists within lists, of which Polars overflows the stack when they are deep enough.

    No feature reads such values. A type that names its items (an Arrow list, a number) is not looked into.
    """
    if column.dtype != object:
        return
    for number, value in enumerate(column):
        if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
            continue
        inner = value.values() if isinstance(value, Mapping) else value
        if any(hasattr(one, "__iter__") and not isinstance(one, str | bytes) for one in inner):
            raise UserError(
                f"column {name!r}, row {number}: a list within a list; a value is a text, a number or one list of those"
            )


def _missing(value: Any) -> bool:
    import pandas as pd

    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def recover_package(folder: Path) -> None:
    """Put back the package that a kill left beside its place (:func:`recmtl.durable.recover`)."""
    if folder.exists():
        return
    durable.recover(folder)
    aside = [path for path in _of_older_versions(folder, "old") if (path / _HASHES).is_file()]
    if not folder.exists() and len(aside) == 1:
        with suppress(OSError):  # it was put back by another process, or may not be
            durable.files.rename(aside[0], folder)


def _remove_leftovers(folder: Path) -> None:
    """What a kill left behind while a package was replaced."""
    recover_package(folder)
    for path in _of_older_versions(folder, "tmp|old"):
        durable.remove(path)


def _of_older_versions(folder: Path, kinds: str) -> list[Path]:
    """Folders that recmtl 0.1 was replacing this one by; it did not note whose they are."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}\.({kinds})")
    parent = folder.absolute().parent
    return [path for path in parent.iterdir() if pattern.fullmatch(path.name)] if parent.is_dir() else []
