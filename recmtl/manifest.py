"""The prepared dataset's description of itself: ``manifest.json``.

In: what the ETL did. Out: :class:`Manifest`, read by the loader, the trainer, evaluation and tracking. It lists every
file with its hash; names in it may not leave the dataset's folder.

The layout that it describes::

    manifest.json
    statistics/                       fitted on train (recmtl.statistics)
    train/part-00000.parquet …        encoded rows, in an order shuffled by seed
    validation/part-00000.parquet …   encoded rows, in source order
    test/part-00000.parquet …
    raw/validation/part-00000.parquet …   the same rows, in the same order and part for part, before encoding:
    raw/test/part-00000.parquet …         feature columns, user, item, time, request, label and kept columns, and
                                          `recmtl:row`, the row's number
    rejected/*.parquet                quarantined rows: source, reason, and the row as text
    rejected/labels.parquet           labels that could not be read: task, column, value, row, keys

Columns of an encoded shard (names of features and tasks are :data:`recmtl.settings.Name`, so nothing clashes):

=================== ================ =========================================================================
``id:FEATURE``      Int32            table row of an id feature; Int64, a hash, where its table is managed
``bag:FEATURE``     List(Int32)      table rows of a bag or weighted bag; List(Int64) likewise
``weights:FEATURE`` List(Float32)    weighted bag: a weight per value (for pooling mean they sum to 1)
``dense``           Array(Float32)   ``schema.dense_width`` columns; absent when that is 0
``label:TASK``      Float32          as in :class:`recmtl.batch.Batch`; 0 where not observed
``observed:TASK``   Boolean          for a task with a parent: all labels of its chain are observed
``weight:TASK``     Float32          for tasks with a ``weight_column``
``group``           Int64            the user, as a number that is equal for equal users (for AUC grouped by user)
``item``            Int64            the item, as a number that is equal for equal items, whether or not a vocabulary
                                     keeps it; -1 where it is missing; absent where the log has no items
``request``         Int64            the request likewise: with the item what tells one impression from another
``row``             Int64            the row's number in source order
=================== ================ =========================================================================
"""

import hashlib
import json
from pathlib import Path

from pydantic import ValidationError

from recmtl import durable
from recmtl.errors import RunError
from recmtl.schema import Feature, Schema
from recmtl.settings import Settings
from recmtl.statistics import Statistics
from recmtl.tasks import Task, Tasks

__all__ = ["ROW", "SPLITS", "Manifest", "Shard", "SplitSummary", "TaskSummary", "file_hash", "inside"]

SPLITS = ("train", "validation", "test")
ROW = "recmtl:row"
"""The column of raw rows with the row's number in source order. A source's own column ``row`` stays what it is."""


class Shard(Settings):
    """One Parquet file of the dataset."""

    path: str
    """Relative to the dataset's folder."""
    rows: int
    sha256: str


class TaskSummary(Settings):
    """A task's labels in one split."""

    observed: int
    """Rows on which the label counts."""
    positives: int | None = None
    """binary: observed rows with label 1."""
    mean: float | None = None
    """Mean of the observed labels in label units; None when nothing is observed or the task is multiclass."""
    masked: dict[str, int] = {}
    """Rows on which the label does not count, by reason: missing, immature, not_applicable (``observed.when`` or the
    parent's mask), invalid (out of levels, classes, range, or not a number), contradiction (positive under a negative
    parent). Every row is counted once; observed and masked add up to the split's rows."""


class SplitSummary(Settings):
    """One split."""

    rows: int
    shards: tuple[Shard, ...]
    raw_shards: tuple[Shard, ...] = ()
    """Part for part the same rows before encoding; empty for train."""
    tasks: dict[str, TaskSummary]
    time_range: tuple[str, str] | None = None
    """First and last impression, ISO 8601 in UTC; None without a time column."""
    middle_half: tuple[str, str] | None = None
    """Between which instants the middle half of the impressions lies, of a sample of them; None likewise."""


class Columns(Settings):
    """What the source's key columns are called; None where it has none."""

    user: str | None = None
    item: str | None = None
    time: str | None = None
    request: str | None = None


class Manifest(Settings):
    """What a prepared dataset is and where it came from."""

    format: int = 1
    name: str
    source: str
    """The source's kind."""
    fingerprint: str
    """SHA-256 over input files and the part of the config that shapes the data: what decides a rebuild."""
    statistics: str
    """Fingerprint of the statistics."""
    features: tuple[Feature, ...]
    """As configured, or as inferred."""
    tasks: tuple[Task, ...]
    columns: Columns
    splits: dict[str, SplitSummary]
    split_by: str | None = None
    """How the rows were divided: time, user, random, given; or day, by the daily pipeline, whose test also holds
    earlier rows that were held out."""
    outcomes: tuple[str, ...] = ()
    """Columns that the source knows only after the impression."""
    inputs: dict[str, str] = {}
    """Input file, as the user wrote it, to its SHA-256."""
    read: dict[str, int] = {}
    """Rows read per input log or table."""
    duplicates: dict[str, int] = {}
    """Exact duplicates dropped, per input."""
    rejected: dict[str, dict[str, int]] = {}
    """Quarantined rows: input → reason → rows."""
    filtered: dict[str, dict[str, int]] = {}
    """Rows that a condition leaves out, which are neither kept nor rejected: input → reason (``where``) → rows."""
    unattributed: dict[str, dict[str, int]] = {}
    """Events that match no impression: event → reason → events."""
    observed_until: str | None = None
    """Event logs: the instant up to which events were recorded, ISO 8601 in UTC."""
    labels_as_of: str | None = None
    """The instant as of which train labels are masked, ISO 8601 in UTC; None when they are not."""
    warnings: tuple[str, ...] = ()
    """What a person should know, each naming the setting to change."""
    truth: str | None = None
    """synthetic: the Parquet file with each row's true probabilities, as an absolute path."""
    versions: dict[str, str] = {}
    digest: str | None = None
    """SHA-256 of all the rest, written with it; None in memory, and in manifests from before there was one."""

    @property
    def schema_(self) -> Schema:
        """The features, checked against each other."""
        return Schema(self.features)

    @property
    def tasks_(self) -> Tasks:
        """The tasks, checked against each other."""
        return Tasks(self.tasks)

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` under ``folder``, with its own hash."""
        whole = self.model_copy(update={"digest": self._own_digest()})
        durable.write_file(folder / "manifest.json", whole.model_dump_json(indent=2) + "\n")

    def _own_digest(self) -> str:
        content = self.model_dump(mode="json", exclude={"digest"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def verify(self, folder: Path) -> None:
        """Compare every file of the dataset under ``folder`` with what this manifest says of it.

        Reads every byte once: about a second per GB.

        Raises:
            RunError: a shard or the statistics are gone or damaged.
        """
        for split in self.splits.values():
            for shard in (*split.shards, *split.raw_shards):
                try:
                    found = file_hash(inside(folder, shard.path))
                except OSError as error:
                    raise RunError(f"{folder / shard.path}: cannot be read ({error.strerror})") from error
                if found != shard.sha256:
                    raise RunError(f"{folder / shard.path}: damaged, its hash is not the manifest's")
        if Statistics.load(folder / "statistics").fingerprint() != self.statistics:
            raise RunError(f"{folder / 'statistics'}: damaged, they are not those of the manifest")

    @classmethod
    def opened(cls, folder: Path) -> "Manifest":
        """The manifest of a dataset whose every file is as it was prepared.

        Raises:
            RunError: there is none, or a file is damaged; says what to do.
        """
        durable.recover(folder)
        try:
            manifest = cls.read_from(folder)
            manifest.verify(folder)
        except RunError as error:
            if not (folder / "manifest.json").exists():
                raise
            raise RunError(f"{error}; `recmtl prepare` with its config builds {folder} again") from error
        return manifest

    @classmethod
    def read_from(cls, folder: Path) -> "Manifest":
        """Read ``manifest.json`` under ``folder``.

        Raises:
            RunError: it is missing, damaged, of a later format, or names a file outside ``folder``.
        """
        path = folder / "manifest.json"
        try:
            manifest = cls.model_validate_json(path.read_bytes())
            if manifest.digest is not None and manifest.digest != manifest._own_digest():
                raise RunError(f"{path}: damaged, it does not have the hash that it states")
            manifest = manifest.model_copy(update={"digest": None})
        except FileNotFoundError as error:
            raise RunError(f"{folder}: no prepared dataset here (manifest.json is missing)") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
            raise RunError(f"{path}: this is not a manifest that this recmtl reads: {reason}") from error
        except OSError as error:
            raise RunError(f"{path}: this is not a manifest that this recmtl reads: {error}") from error
        for split in manifest.splits.values():
            for shard in (*split.shards, *split.raw_shards):
                inside(folder, shard.path)
        return manifest


def inside(folder: Path, name: str) -> Path:
    """``folder / name``, for a name that was found in data.

    Raises:
        RunError: the name is absolute or leads out of ``folder``.
    """
    path = (folder / name).resolve()
    if Path(name).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise RunError(f"{name!r} leads out of {folder}")
    return path


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
