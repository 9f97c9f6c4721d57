"""The whole job: inputs looked at, pieces scored that are not scored yet, the output put in its place.

In: a package, input files, an output folder. Out: the folder, whole. Meanwhile everything lies in a hidden folder
beside it, ``.NAME.predicting``, with a ``state.json`` that says of which package, inputs and options it is, and which
parts are done, each with its hash and rows::

    text/00000/       a CSV or JSON lines as Parquet
    scored/           a part for every piece that is done
    ranked/           with a top k: parts of the output that are done

The same call after a kill finds that and goes on; a part that is missing or has another hash is made again. A call for
anything else begins anew. An input is known by its path, size and time of change.

``.NAME.predicted.json`` beside the output keeps the state of the job that wrote it: the same call again finds that
nothing is left to do.
"""

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

import recmtl
from recmtl import durable
from recmtl.bounded import parse_json, read_bytes
from recmtl.errors import RunError, UserError
from recmtl.etl.files import find
from recmtl.fusion import SCORE
from recmtl.manifest import file_hash
from recmtl.package import Package, verify_package
from recmtl.progress import Progress
from recmtl.reading import CsvFormat, NumberStyle, Unread, add_unread
from recmtl.scoring.inputs import Piece, Source, csv_format, cut, look_at
from recmtl.scoring.pieces import Job, Part, Scorer, cores, groupless_of, part_name, unread_in, write_part
from recmtl.scoring.ranking import RANK, TopK, cuts, ranked, stretch
from recmtl.scoring.workers import score_in_processes

__all__ = ["Predictions", "predict_files"]

_FORMAT = 2
_PART = r"part-\d{5,}\.parquet"


@dataclass(frozen=True)
class Predictions:
    """What :func:`predict_files` wrote."""

    folder: Path
    rows: int
    """Rows scored."""
    columns: tuple[str, ...]
    """Of the first part: keys, kept columns, predictions."""
    kept: int = -1
    """Rows written: with a top k fewer than were scored."""


def predict_files(
    package: Package,
    inputs: str | Sequence[str],
    output: Path,
    *,
    extra_keys: Sequence[str] = (),
    columns: Sequence[str] = (),
    calibrated: bool = False,
    top_k: int | None = None,
    by: str = "user",
    score: str | None = None,
    workers: int = 1,
    overwrite: bool = False,
    batch_rows: int = 16384,
    rows_per_part: int = 262_144,
    csv: CsvFormat | None = None,
    style: NumberStyle | None = None,
    progress: Progress,
) -> Predictions:
    """Score Parquet, CSV or JSON lines files, a batch at a time, into ``output/part-00000.parquet`` and so on.

    Each part holds, row for row and in the order of the inputs, the key columns that the input has (user, item,
    time and request as the training data called them), the columns in ``extra_keys``, and the predictions. Keys of
    a CSV are Int64 where all of a file's are whole numbers, else text as it stands.

    Where the output is this very job's (the same inputs, package and options) and whole, nothing is done; with
    ``overwrite`` it is made again.

    With ``top_k`` the output holds each group's rows of highest score alone, sorted by group and falling score through
    all parts, and :data:`recmtl.scoring.ranking.RANK`.

    Args:
        package: the model.
        inputs: paths and glob patterns.
        output: a folder; made whole or not at all.
        extra_keys: more columns to copy.
        columns: the predictions to write; by default all. The score of a top k is always written.
        calibrated: write calibrated predictions.
        top_k: rows of each group to keep; None keeps all rows.
        by: what a group is: ``user`` and ``request`` for the package's key, or a column of the inputs.
        score: the prediction that orders a group; by default the package's fused score.
        workers: processes. One uses all cores, by threads; more help where Python is what takes the time, and each
            holds the package.
        overwrite: replace predictions that are there.
        batch_rows: rows scored at a time, by a thread.
        rows_per_part: rows after which a new part begins, at the end of an input's row group.
        csv: how CSV is written; None: as the training data's (:func:`recmtl.scoring.inputs.csv_format`).
        style: how numbers are written in text; None: as in the training data.
        progress: shows rows, and warns of values that cannot be read as in training, which count as missing.

    Raises:
        UserError: no such input; a column in ``extra_keys`` that an input lacks, or that is called like a prediction;
            no such prediction, group or score; rows that cannot be what the schema says (with the file); an output
            that is not empty and of another job.
        RunError: a process was killed, or a file is damaged. What is done is kept for the same call.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: one process or more")
    files = find(inputs, "--input")
    if workers > 1:
        _require_saved(package)
    top = None if top_k is None else _top(package, top_k, by, score, calibrated)
    written = _predictions(package, columns, top, calibrated)
    keep = list(dict.fromkeys([*extra_keys, *([] if top is None else [top.by])]))
    csv = csv or csv_format(package)
    state: dict[str, Any] = {
        "format": _FORMAT,
        "recmtl": recmtl.__version__,
        "package": package.contents.digest,
        "inputs": [_identity(path) for path in files.values()],
        "options": {
            "keep": keep,
            "columns": written,
            "calibrated": calibrated,
            "top": None if top is None else top.model_dump(mode="json"),
            "batch_rows": batch_rows,
            "rows_per_part": rows_per_part,
            "csv": csv.model_dump(mode="json"),
            "style": None if style is None else style.model_dump(mode="json"),
            "device": package.device.type,
        },
    }
    place = output.absolute()
    with _held(output, place) as work:
        durable.recover(place)
        durable.remove_litter(place.parent, place.name, held=True)
        durable.remove_litter(place.parent, _record(place).name, held=True)
        found = None if overwrite else _finished(output, state, progress)
        if found is not None and found.rows >= 0:
            progress.say(f"{output}: scored already by the same model from the same inputs, nothing to do")
            durable.remove(work)
            return found
        _check_output(output, files, overwrite or found is not None)
        return _make(package, state, files, keep, written, calibrated, top, csv, style, workers, output, work, progress)


def _make(
    package: Package,
    about: Mapping[str, Any],
    files: Mapping[str, Path],
    keep: Sequence[str],
    written: Sequence[str],
    calibrated: bool,
    top: TopK | None,
    csv: CsvFormat,
    style: NumberStyle | None,
    workers: int,
    output: Path,
    work: Path,
    progress: Progress,
) -> Predictions:
    """Make the parts that are not there yet, and put them into their place."""
    batch_rows, rows_per_part = about["options"]["batch_rows"], about["options"]["rows_per_part"]
    try:
        state = _State.begin(work, about, progress)
        taken = [*_available(package, calibrated), *([] if top is None else [RANK])]
        sources = look_at(package, files, keep, taken, work / "text", progress, csv=csv)
        if top is not None:
            _require_same(sources, top)
            top = top.model_copy(update={"item": _item(package, sources)})
        job = Job(
            package=package.contents.folder.absolute(),
            digest=package.contents.digest,
            device=str(package.device),
            sources=tuple(sources),
            folder=work / "scored",
            columns=tuple(written),
            calibrated=calibrated,
            top=top,
            batch_rows=batch_rows,
            style=style,
        )
        pieces = cut(sources, rows_per_part)
        _score(package, job, pieces, workers, state, progress)
        _warn_of_unread(job, pieces, progress)
        done = job.folder if top is None else _rank(job, top, pieces, rows_per_part, work / "ranked", state, progress)
        parts = state.parts[done.name]
        first = tuple(pq.read_schema(done / part_name(0)).names)
        rows = sum(piece.rows for piece in pieces)
        _put(done, output.absolute(), {"job": about, "parts": parts, "rows": rows, "columns": first})
        durable.remove(work)
        return Predictions(output, rows, first, sum(part["rows"] for part in parts.values()))
    except UserError:
        durable.remove(work)  # it would fail so again
        raise


class _State:
    """``state.json``: what the job is, and which parts are done; told of from several threads."""

    def __init__(self, work: Path, about: Mapping[str, Any], parts: dict[str, dict[str, Any]]) -> None:
        self._path = work / "state.json"
        self._about = about
        self._lock = threading.Lock()
        self.parts = parts
        """scored and ranked → file → its sha256 and rows."""

    @classmethod
    def begin(cls, work: Path, about: Mapping[str, Any], progress: Progress) -> "_State":
        """Keep what an interrupted job of the same kind left, or remove what another left."""
        before = _read(work / "state.json")
        fresh = cls(work, about, {"scored": {}, "ranked": {}})
        if before is not None and before["job"] == about:
            fresh.parts.update({name: before["parts"].get(name, {}) for name in fresh.parts})
        else:
            if (work / "state.json").exists():
                what = "is damaged" if before is None else "is of another model, other inputs or options"
                progress.say(f"what was scored before {what}: begun anew")
            durable.remove(work / "state.json")  # first: what a kill leaves of the rest is then nobody's
            for old in work.iterdir():
                if old.name != "lock":
                    durable.remove(old)
        for name in ("text", *fresh.parts):
            durable.make_folder(work / name)
            durable.remove_litter(work / name, held=True)
        fresh._save()
        return fresh

    def note(self, folder: Path, number: int, part: Part) -> None:
        """A part is done."""
        with self._lock:
            self.parts[folder.name][part_name(number)] = {"sha256": part.sha256, "rows": part.rows}
            self._save()

    def whole(self, folder: Path, number: int, progress: Progress) -> bool:
        """Whether a part is there, with the bytes that were written; one that has others is removed."""
        path = folder / part_name(number)
        noted = self.parts[folder.name].get(path.name)
        if noted is not None and path.is_file() and file_hash(path) == noted["sha256"]:
            return True
        if noted is not None:
            progress.warn(f"{path.name}: {'damaged' if path.is_file() else 'gone'} since it was made; made again")
        durable.remove(path)
        return False

    def _save(self) -> None:
        durable.write_file(self._path, json.dumps({"job": self._about, "parts": self.parts}, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any] | None:
    """A state, or the record of a finished job; None where there is none or it is damaged."""
    try:
        found = parse_json(read_bytes(path), finite=False)
        for part in (part for name, part in _all_parts(found["parts"]) if re.fullmatch(_PART, name)):
            if not isinstance(part["sha256"], str) or not isinstance(part["rows"], int):
                return None
        return dict(found) if isinstance(found["job"], dict) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _all_parts(parts: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, part in parts.items():
        if re.fullmatch(_PART, name):
            yield name, part
        else:
            yield from part.items()


def _record(place: Path) -> Path:
    return place.with_name(f".{place.name}.predicted.json")


def _finished(output: Path, about: Mapping[str, Any], progress: Progress) -> Predictions | None:
    """The predictions that are there, where they are this job's; with rows -1 where they are and are damaged."""
    found = _read(_record(output.absolute()))
    if found is None or found["job"] != about or not output.is_dir() or not any(output.iterdir()):
        return None
    parts = found["parts"]
    for name in sorted({*parts, *(path.name for path in output.iterdir())}):
        path = output / name
        if name not in parts:
            return None  # somebody else's, who is refused or asked to --overwrite
        if not path.is_file() or file_hash(path) != parts[name]["sha256"]:
            what = "damaged" if path.is_file() else "gone"
            progress.warn(f"{path}: {what} since these predictions were written; scoring again")
            return Predictions(output, -1, ())
    kept = sum(part["rows"] for part in parts.values())
    return Predictions(output, int(found["rows"]), tuple(found["columns"]), kept)


@contextmanager
def _held(output: Path, place: Path) -> Iterator[Path]:
    """The working folder, held: it is made where there is none, and goes at the end if nothing was begun in it."""
    work = place.with_name(f".{place.name}.predicting")
    durable.make_folder(place.parent)
    while True:
        durable.make_folder(work)
        lock = FileLock(work / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(f"--output {output}: another process is scoring into this folder") from error
        except FileNotFoundError:
            continue  # another process was done with the folder at this very moment, and removed it
        if (work / "lock").exists():
            break
        lock.release()
    try:
        yield work
    finally:
        if work.is_dir() and not (work / "state.json").exists():
            durable.remove(work)
        lock.release()


def _score(
    package: Package, job: Job, pieces: Sequence[Piece], workers: int, state: _State, progress: Progress
) -> None:
    """Score the pieces that have no part yet."""
    left = [piece for piece in pieces if not state.whole(job.folder, piece.number, progress)]
    total = sum(piece.rows for piece in pieces)
    done = total - sum(piece.rows for piece in left)
    if done:
        progress.say(f"going on: {len(pieces) - len(left)} of {len(pieces)} parts are scored already")
    with progress.bar("predicting", total, "rows", done=done) as bar:
        if workers > 1 and len(left) > 1:
            score_in_processes(job, left, workers, bar.advance, lambda *part: state.note(job.folder, *part))
        else:
            scorer = Scorer(package, job, cores())
            for piece in left:
                state.note(job.folder, piece.number, scorer.write(piece, bar.advance))


def _warn_of_unread(job: Job, pieces: Sequence[Piece], progress: Progress) -> None:
    """Say which values could not be read as in training, over all parts, those of an earlier start included."""
    unread: dict[str, Unread] = {}
    for piece in pieces:
        add_unread(unread, unread_in(job.folder / part_name(piece.number)))
    for name, problem in unread.items():
        progress.warn(
            f"column {name!r}: {problem.count:,} values cannot be read as in training and count as missing "
            f"(such as {', '.join(problem.examples)}): {problem.why}"
        )


def _rank(
    job: Job,
    top: TopK,
    pieces: Sequence[Piece],
    rows_per_part: int,
    folder: Path,
    state: _State,
    progress: Progress,
) -> Path:
    """Parts of the output from the best rows of all pieces."""
    scored = [job.folder / part_name(piece.number) for piece in pieces]
    groupless = sum(groupless_of(path) for path in scored)
    if groupless:
        progress.warn(f"--by {top.by}: {groupless:,} rows have no {top.by} and are left out")
    between = cuts(scored, top, rows_per_part)
    with progress.bar("ranking", len(between) + 1, "parts") as bar:
        for number in range(len(between) + 1):
            if not state.whole(folder, number, progress):
                rows = ranked(stretch(scored, top, between, number), top)
                state.note(folder, number, write_part(folder / part_name(number), [rows]))
            bar.advance()
    return folder


def _top(package: Package, k: int, by: str, score: str | None, calibrated: bool) -> TopK:
    if k < 1:
        raise UserError(f"--top-k {k}: one row or more")
    there = _available(package, calibrated)
    if RANK in there:
        raise UserError(f"--top-k: a prediction of this model is called {RANK!r}, as the column that it adds would be")
    if score is None and SCORE not in there:
        raise UserError(
            "--top-k: this package has no fused score (`recmtl fuse` gives it one); "
            f"name the prediction to sort by with --score: {', '.join(there)}"
        )
    score = score or SCORE
    if score not in there:
        raise UserError(f"--score {score}: the package predicts {', '.join(there)}")
    keys = package.contents.columns
    named = {"user": keys.user, "request": keys.request}
    if by in named and named[by] is None:
        raise UserError(f"--by {by}: the model's training data had no {by} key; name a column of the inputs")
    return TopK(k=k, by=named.get(by) or by, score=score)


def _predictions(package: Package, columns: Sequence[str], top: TopK | None, calibrated: bool) -> list[str]:
    there = _available(package, calibrated)
    strange = [column for column in columns if column not in there]
    if strange:
        raise UserError(f"--columns {', '.join(strange)}: the package predicts {', '.join(there)}")
    wanted = {*(columns or there), *([] if top is None else [top.score])}
    return [column for column in there if column in wanted]


def _available(package: Package, calibrated: bool) -> list[str]:
    return package.predict(pl.DataFrame(), calibrated=calibrated).columns


def _item(package: Package, sources: Sequence[Source]) -> str | None:
    item = package.contents.columns.item
    return item if item is not None and all(item in source.copied for source in sources) else None


def _require_same(sources: Sequence[Source], top: TopK) -> None:
    """The rows of all inputs are sorted together, so what is copied must be the same in all."""
    first = _types(sources[0])
    for source in sources[1:]:
        theirs = _types(source)
        for name in sorted({*first, *theirs}):
            if first.get(name) != theirs.get(name):
                raise UserError(
                    f"--top-k: column {name!r} is {first.get(name, 'absent')} in {sources[0].name} and "
                    f"{theirs.get(name, 'absent')} in {source.name}; write it with one type"
                )


def _types(source: Source) -> dict[str, str]:
    schema = pl.scan_parquet(source.path, glob=False).collect_schema()
    return {name: "Int64" if name in source.whole else str(schema[name]) for name in source.copied}


def _require_saved(package: Package) -> None:
    try:
        saved = verify_package(package.contents.folder).digest
    except (UserError, RunError) as error:
        raise UserError(f"--workers: several processes need the package as a folder ({error})") from error
    if saved != package.contents.digest:
        raise UserError(f"--workers: the package in {package.contents.folder} is another by now")


def _identity(path: Path) -> list[str | int]:
    about = path.stat()
    return [str(path.resolve()), about.st_size, about.st_mtime_ns]


def _check_output(output: Path, files: Mapping[str, Path], overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: this is a file; name a folder")
    there = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if there and not overwrite:
        raise UserError(f"--output {output}: this folder is not empty; name another, or --overwrite to replace it")
    # An input among what --overwrite removes would be lost before it is read.
    foreign = [name for name in there if not re.fullmatch(_PART, name)]
    if foreign:
        raise UserError(
            f"--output {output}: --overwrite replaces predictions alone, but {foreign[0]} lies there; "
            "name another folder"
        )
    for name, path in files.items():
        if path.resolve().is_relative_to(output.resolve()):
            raise UserError(f"--output {output}: the input {name} lies in it; name another folder")


def _put(done: Path, output: Path, record: Mapping[str, Any]) -> None:
    """Rename a finished folder to the output; what was there goes only when the new one is in its place."""
    for stray in done.iterdir():
        if stray.name not in record["parts"]:
            durable.remove(stray)
    # Before the output: it counts only where the output has the hashes that it states.
    durable.write_file(_record(output), json.dumps(record, indent=1) + "\n")
    durable.commit_folder(done, output)
