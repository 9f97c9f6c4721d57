"""A model made smaller, or into another runtime's file; what that costs is measured and written down.

In: a package, a format, perhaps prepared data. Out: a package with tables in fewer bits, or a folder of files with an
``export.json`` that says what they take and how far they were off. The loss is measured on validation, never on test.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
import torch
from torch import Tensor

import recmtl
from recmtl import durable
from recmtl.errors import RunError, UserError
from recmtl.evaluation.evaluate import TaskMetrics, evaluate
from recmtl.evaluation.score import score
from recmtl.exporting import (
    Check,
    InputTensor,
    check_compiled,
    check_onnx,
    check_torch,
    compile_torch,
    described,
    export_onnx,
    export_torch,
    inputs,
    made_up,
    quantised,
)
from recmtl.features.quantised import Precision, Quantised
from recmtl.loading import raw_frames, to_batch
from recmtl.manifest import Manifest
from recmtl.package import Package, load_package, with_quantised
from recmtl.progress import Progress, Silent
from recmtl.settings import Settings
from recmtl.tracking import resolved

__all__ = ["Export", "Exported", "Format", "export"]

Format = Literal["int8", "fp16", "torch", "onnx"]

_PRECISIONS: Mapping[Format, Precision] = {"int8": "int8", "fp16": "float16"}
_DESCRIPTION = "export.json"
_MADE_UP, _REAL = 256, 2048
_WEIGHTS = "model.safetensors"


class Export(Settings):
    """``export.json``: what lies beside it."""

    format: int = 1
    recmtl: str
    torch: str
    package: str
    """Digest of the package that it was made of."""
    files: Mapping[str, Check]
    """File to what it was compared on; it reads one tensor per input and gives one per output, in this order."""
    validation_rows: int
    """How many of the rows compared are real ones; the others are drawn at random."""
    inputs: tuple[InputTensor, ...]
    outputs: tuple[str, ...]
    """(batch,) float32 each: uncalibrated predictions, without the fused score."""


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote."""

    folder: Path
    bytes_before: int
    """Of the model's weights; with torch or onnx of its package's."""
    bytes_after: int
    before: TaskMetrics
    """On validation; empty without data, and for formats that change no value."""
    after: TaskMetrics
    checks: Mapping[str, Check]


def export(
    model: str,
    format: Format,
    output: Path,
    *,
    data: Path | None = None,
    compiled: bool = True,
    tracking_uri: str | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Make a smaller package of a model (int8, fp16), or files for other runtimes (torch, onnx).

    Args:
        model: a package's or a run's folder, or a registry URI.
        format: int8 and fp16: the embedding tables in fewer bits, as a package like any other; torch: ``model.pt2`` of
            ``torch.export``, and, where there is a C++ compiler, ``compiled.pt2`` of AOTInductor; onnx: ``model.onnx``.
        output: a folder, new or empty or an earlier export; written whole or not at all.
        data: a prepared dataset: the metrics before and after on its validation rows, and rows to compare on.
        compiled: whether to compile, with torch.
        tracking_uri: the store of a URI.
        progress: where to show it; nowhere by default.

    Raises:
        UserError: no such model or data; the output holds something else; the format cannot hold this model.
        RunError: what was exported predicts something else, and nothing was written.
    """
    progress = progress or Silent()
    if output.is_file() or (output.is_dir() and not _ours(output) and any(output.iterdir())):
        raise UserError(f"--output {output}: this holds something else; name another folder")
    with resolved(model, tracking_uri) as folder:
        package = load_package(folder)
        if format in _PRECISIONS:
            return _quantise(package, _PRECISIONS[format], output, data, progress)
        if package.contents.quantised is not None:
            raise UserError(f"--model {model}: its tables are quantised; export the package that it was made of")
        return _files(package, format, output, data, compiled, progress)


def _quantise(package: Package, precision: Precision, output: Path, data: Path | None, progress: Progress) -> Exported:
    folder = package.contents.folder
    smaller, tensors = quantised(package, precision)
    before: TaskMetrics = {}
    after: TaskMetrics = {}
    fingerprint, rows = None, 0
    if data is not None:
        manifest = Manifest.opened(data)
        fingerprint, rows = manifest.fingerprint, manifest.splits["validation"].rows
        before, after = (_metrics(each, data, manifest, progress) for each in (package, smaller))
    was = sum(tensor.nbytes for tensor in package.model.tensors().values())
    now = sum(tensor.nbytes for tensor in tensors.values())
    about = Quantised(
        precision=precision,
        source=package.contents.digest,
        bytes_before=was,
        bytes_after=now,
        data=fingerprint,
        rows=rows,
        before=before,
        after=after,
    )
    written = with_quantised(folder, about, tensors, output=output)
    made = load_package(written.folder)
    tried = to_batch(made.encode(pl.DataFrame({made.schema.columns[0]: [None]})), made.schema, None)
    with torch.inference_mode():  # what was written gives what was measured
        ours, theirs = (each.model.predictions(each.model(tried)) for each in (smaller, made))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    return Exported(output, was, now, before, after, {})


def _metrics(package: Package, data: Path, manifest: Manifest, progress: Progress) -> TaskMetrics:
    scored = score(package.model, package.loader(data, manifest, "validation"), progress=progress)
    return evaluate(scored, package.tasks)


def _files(
    package: Package, format: Format, output: Path, data: Path | None, compiled: bool, progress: Progress
) -> Exported:
    rows: list[dict[str, Tensor]] = [made_up(package, count, seed=count) for count in (_MADE_UP, 1)]
    real = _real_rows(package, data)
    rows += [given for _, given in real]
    checks: dict[str, Check] = {}
    with durable.replacing(output) as temporary:
        progress.say(f"exporting to {format}: half a minute or so")
        if format == "onnx":
            export_onnx(package, temporary / "model.onnx")
            checks["model.onnx"] = check_onnx(package, temporary / "model.onnx", rows)
        else:
            program = export_torch(package, temporary / "model.pt2")
            checks["model.pt2"] = check_torch(package, temporary / "model.pt2", rows)
            if compiled and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
                progress.warn("there is no C++ compiler here, so compiled.pt2 is left out")
            elif compiled:
                progress.say("compiling: a minute or so")
                compile_torch(program, temporary / "compiled.pt2")
                checks["compiled.pt2"] = check_compiled(package, temporary / "compiled.pt2", rows)
        described_ = Export(
            recmtl=recmtl.__version__,
            torch=torch.__version__,
            package=package.contents.digest,
            files=checks,
            validation_rows=sum(count for count, _ in real),
            inputs=described(package.schema),
            outputs=tuple(column for name in package.tasks for column in package.tasks.prediction_columns(name)),
        )
        (temporary / _DESCRIPTION).write_text(described_.model_dump_json(indent=2) + "\n")
        size = sum(path.stat().st_size for path in temporary.iterdir() if path.name != _DESCRIPTION)
    return Exported(output, (package.contents.folder / _WEIGHTS).stat().st_size, size, {}, {}, checks)


def _real_rows(package: Package, data: Path | None) -> list[tuple[int, dict[str, Tensor]]]:
    """The first validation rows, as the package encodes them, after their number."""
    if data is None:
        return []
    for frame in raw_frames(data, Manifest.opened(data), "validation"):
        if frame.height:
            rows = frame.head(_REAL)
            return [(rows.height, inputs(to_batch(package.encode(rows), package.schema, None), package.schema))]
    raise RunError(f"{data}: there are no validation rows to compare on")


def _ours(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (_DESCRIPTION, "hashes.json"))
