"""Raw rows scored by a model that was trained here or elsewhere: all of them, or the best of each group."""

import codecs
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from recmtl import durable
from recmtl.config import RunConfig
from recmtl.errors import UserError, unwritable
from recmtl.etl.files import find, header, kind_of
from recmtl.package import Package, load_package
from recmtl.progress import Progress, Silent
from recmtl.reading import CsvFormat, NumberStyle
from recmtl.scoring import Predictions, csv_format, encoding_of, predict_files
from recmtl.stages.job import untrained
from recmtl.stages.preparing import prepare
from recmtl.tracking import resolved

__all__ = ["predict"]


def predict(
    config: RunConfig | None = None,
    *,
    model: str | None = None,
    inputs: Sequence[str] = (),
    output: Path | None = None,
    keep: Sequence[str] = (),
    columns: Sequence[str] = (),
    calibrated: bool = False,
    top_k: int | None = None,
    by: str = "user",
    score: str | None = None,
    workers: int = 1,
    overwrite: bool = False,
    separator: str | None = None,
    encoding: str | None = None,
    missing: Sequence[str] | None = None,
    decimal: str | None = None,
    thousands: str | None = None,
    tracking_uri: str | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """Score raw rows. Killed in the middle, the same call goes on (:func:`recmtl.scoring.predict_files`).

    Args:
        config: take its own run's model, and by default its test rows.
        model: a package's folder or a registry URI, instead.
        inputs: Parquet, CSV or JSON lines files, or glob patterns.
        output: where the predictions go; by default ``predictions/`` in the config's run folder.
        keep: columns to copy beside the predictions and the keys.
        columns: the predictions to write; all by default.
        calibrated: write calibrated predictions.
        top_k: keep so many rows of each group, those of the highest score, with their rank.
        by: what a group is: ``user``, ``request``, or a column of the inputs.
        score: the prediction that orders a group; by default the fused score.
        workers: processes that score.
        overwrite: replace predictions that are there.
        separator, encoding, missing: how CSV is written; None: as the training data's.
        decimal, thousands: how numbers are written in text; None: as in the training data.
        tracking_uri: the store of a URI.
        progress: where to show it; nowhere by default.

    Raises:
        UserError: no such model or input, or a column that cannot be what the model's schema says.
        RunError: a process was killed; the same call goes on.
    """
    progress = progress or Silent()
    if config is None:
        if model is None:
            raise UserError("predict: give a config or a model")
        if not inputs:
            raise UserError("predict: --input is missing: the Parquet, CSV or JSON lines files to score")
        if output is None:
            raise UserError("predict: --output is missing: the folder that the predictions go to")
    else:
        model = str(config.folder / "package")
        if not (config.folder / "package").is_dir():
            raise untrained(config.folder, " (of a run with --output DIR, say so with --set output=DIR)")
        inputs = inputs or [str(prepare(config, progress=progress).folder / "raw" / "test" / "*.parquet")]
        output = output or config.folder / "predictions"
    assert model is not None
    files = find(inputs, "--input")
    _require_place(output)
    with resolved(model, tracking_uri) as folder:
        package = load_package(folder)
        csv = _csv(package, separator, encoding, missing)
        style = _style(package, decimal, thousands)
        for name, file in files.items():
            written_in = encoding_of(package, kind_of(file, "--input"), csv)
            there = header(file, "--input", separator=csv.separator, encoding=written_in, quote=csv.quote or False)
            absent = [column for column in package.schema.columns if column not in there]
            if 0 < len(absent) < len(package.schema.columns):  # of all, the package says that itself
                progress.warn(f"{name}: it has no column {', '.join(absent)}; scored as missing in every row")
        return predict_files(
            package,
            list(files),
            output,
            extra_keys=tuple(keep),
            columns=tuple(columns),
            calibrated=calibrated,
            top_k=top_k,
            by=by,
            score=score,
            workers=workers,
            overwrite=overwrite,
            csv=csv,
            style=style,
            progress=progress,
        )


def _csv(package: Package, separator: str | None, encoding: str | None, missing: Sequence[str] | None) -> CsvFormat:
    """How the CSV to score is written: as the training data's, save what is said otherwise."""
    found = csv_format(package)
    if separator is not None and len(separator) != 1:
        raise UserError(f"--separator {separator!r}: one character is expected")
    if encoding is not None:
        try:
            encoding = codecs.lookup(encoding).name
        except LookupError:
            raise UserError(
                f"--encoding {encoding}: this is no text encoding; write a name such as utf-8, cp1252 or latin-1"
            ) from None
    changes = {"separator": separator, "encoding": encoding, "missing": None if missing is None else tuple(missing)}
    return found.model_copy(update={name: value for name, value in changes.items() if value is not None})


def _style(package: Package, decimal: str | None, thousands: str | None) -> NumberStyle | None:
    """How numbers are written in text, where that is said otherwise than in training; else None."""
    if decimal is None and thousands is None:
        return None
    columns = {} if package.reading is None else package.reading.columns
    trained = next((how.style for how in columns.values()), NumberStyle())
    wanted = {"decimal": decimal or trained.decimal, "thousands": trained.thousands if thousands is None else thousands}
    for option, value in wanted.items():
        try:
            NumberStyle.model_validate({option: value})
        except ValidationError:
            raise UserError(f"--{option} {value!r}: this character is not one that numbers are written with") from None
    if wanted["decimal"] == wanted["thousands"]:
        raise UserError(f"--decimal and --thousands: {wanted['decimal']!r} cannot stand for both")
    return NumberStyle.model_validate(wanted)


def _require_place(output: Path) -> None:
    """Refuse an output that nothing can be written to, before anything is scored."""
    place = output.absolute().parent
    try:
        durable.make_folder(place)
        with durable.scratch(place, output.absolute().name):
            pass
    except OSError as error:
        raise unwritable(f"--output {output}: cannot write in {place}", error) from error
