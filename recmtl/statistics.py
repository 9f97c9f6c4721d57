"""What is fitted on the training split, and nothing else: vocabularies, moments, quantiles, label means, profiles.

In: what :mod:`recmtl.etl.fit` counted. Out: :class:`Statistics`, saved as JSON and Parquet (never a pickle) beside the
prepared data and inside every model package, so that what serves encodes exactly as what was trained.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.errors import RunError
from recmtl.reading import Reading

__all__ = ["LabelStatistics", "NumberStatistics", "Profile", "Statistics", "Vocabulary"]

_READING = "reading.json"


@dataclass(frozen=True)
class Vocabulary:
    """The values kept for one table, as canonical text; row of the value at position i is i + 2.

    Rows 0 and 1 stand for missing and unseen (:data:`recmtl.schema.MISSING`, :data:`recmtl.schema.UNSEEN`).
    """

    values: tuple[str, ...]
    """Distinct, by falling training count, ties by value."""
    counts: tuple[int, ...]
    """Training count of each value, aligned with ``values``."""
    dropped: int = 0
    """Values seen in training but rarer than ``min_count``."""

    @property
    def rows(self) -> int:
        """Rows of the embedding table: the values and the two reserved rows."""
        return len(self.values) + 2


@dataclass(frozen=True)
class NumberStatistics:
    """Moments of one number over the training rows where it is present, after its transform."""

    count: int
    """Training rows where the number is present and finite."""
    missing: int
    mean: float
    std: float
    """Population standard deviation; 1 where it is 0, so that standardising is always defined."""
    minimum: float
    maximum: float
    quantiles: tuple[float, ...] = ()
    """transform rank: rising training quantiles (raw values) from 0 to 1 in equal steps; else empty."""


@dataclass(frozen=True)
class LabelStatistics:
    """A task's observed training labels: the constant baseline, and where the heads start."""

    observed: int
    """Training rows on which the task is observed."""
    mean: float | None
    """Mean label (binary: positive rate; ordinal and regression: label units); None when nothing is observed."""
    std: float | None
    distribution: tuple[float, ...] = ()
    """ordinal, multiclass: share of each level or class among the observed; else empty."""


@dataclass(frozen=True)
class Profile:
    """How a feature's values lay in the training rows, in cells: what later rows are compared with (drift)."""

    values: tuple[int, ...] = ()
    """id, bag: the commonest encoded values (table rows, hashes of a managed table; -1 an empty bag), a cell each."""
    edges: tuple[float, ...] = ()
    """number, vector: rising edges of cells, each of which ends at its edge; a last one lies above them all."""
    counts: tuple[int, ...] = ()
    """Training values of each cell, aligned with ``values`` or ``edges`` and one longer: all other known values; all
    numbers above the last edge."""
    unseen: int = 0
    """id, bag: training values that the vocabulary does not keep."""
    missing: int = 0
    """Training rows where it is missing."""

    @property
    def total(self) -> int:
        """All that was counted: values, a bag's each, and missing ones."""
        return sum(self.counts) + self.unseen + self.missing


@dataclass(frozen=True)
class Statistics:
    """All that was fitted on train."""

    tables: Mapping[str, Vocabulary]
    """Vocabulary of every table that has one (a hashed table has none)."""
    numbers: Mapping[str, NumberStatistics]
    """By feature name."""
    labels: Mapping[str, LabelStatistics]
    """By task name. For a task with a parent: over rows where all labels of its chain are observed (the product)."""
    conditional_labels: Mapping[str, LabelStatistics] = field(default_factory=dict)
    """By task name, tasks with a parent alone: over the observed rows where the parent is positive."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Raw dtype of every source column that a feature reads, as Polars writes it: how a CSV is read when scoring."""
    train_rows: int = 0
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    """By feature name; empty in statistics from before there were any."""
    reading: Reading | None = None
    """How the columns that the features read were read; None in statistics of recmtl 0.1, which did not record it."""

    def save(self, folder: Path) -> None:
        """Write ``statistics.json``, ``reading.json`` and ``vocabulary/TABLE.parquet`` (value, count).

        Args:
            folder: where to; made where it is not there.
        """
        (folder / "vocabulary").mkdir(parents=True, exist_ok=True)
        for name, vocabulary in self.tables.items():
            columns = {
                "value": pa.array(vocabulary.values, pa.string()),
                "count": pa.array(vocabulary.counts, pa.int64()),
            }
            pq.write_table(pa.table(columns), folder / "vocabulary" / f"{name}.parquet")
        rest: dict[str, Any] = {
            "tables": {name: {"dropped": vocabulary.dropped} for name, vocabulary in self.tables.items()},
            "numbers": {name: asdict(number) for name, number in self.numbers.items()},
            "labels": {name: asdict(label) for name, label in self.labels.items()},
            "conditional_labels": {name: asdict(label) for name, label in self.conditional_labels.items()},
            "columns": dict(self.columns),
            "train_rows": self.train_rows,
            "profiles": {name: asdict(profile) for name, profile in self.profiles.items()},
        }
        (folder / "statistics.json").write_text(json.dumps(rest, indent=2) + "\n")
        if self.reading is not None:
            (folder / _READING).write_text(self.reading.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Statistics":
        """Read what :meth:`save` wrote.

        Raises:
            RunError: a file is missing or is not what ``save`` writes.
        """
        try:
            rest = json.loads((folder / "statistics.json").read_text())
            tables = {}
            for name, other in rest["tables"].items():
                if not name.isidentifier():
                    raise ValueError(f"{name!r} is no table name")
                columns = pq.read_table(folder / "vocabulary" / f"{name}.parquet").to_pydict()
                tables[name] = Vocabulary(tuple(columns["value"]), tuple(columns["count"]), other["dropped"])
            reading = folder / _READING
            return cls(
                reading=Reading.model_validate_json(reading.read_text()) if reading.is_file() else None,
                tables=tables,
                numbers={n: NumberStatistics(**_tupled(v, "quantiles")) for n, v in rest["numbers"].items()},
                labels={n: LabelStatistics(**_tupled(v, "distribution")) for n, v in rest["labels"].items()},
                conditional_labels={
                    n: LabelStatistics(**_tupled(v, "distribution")) for n, v in rest["conditional_labels"].items()
                },
                columns=rest["columns"],
                train_rows=rest["train_rows"],
                profiles={
                    name: Profile(**_tupled(values, "values", "edges", "counts"))
                    for name, values in rest.get("profiles", {}).items()
                },
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{folder}: these are not statistics that recmtl wrote ({error})") from error

    def fingerprint(self) -> str:
        """SHA-256 over everything fitted, as hex: equal statistics have equal fingerprints."""
        digest = hashlib.sha256()
        for name in sorted(self.tables):
            vocabulary = self.tables[name]
            digest.update(json.dumps([name, vocabulary.values, vocabulary.counts, vocabulary.dropped]).encode())
        for group in (self.numbers, self.labels, self.conditional_labels):
            digest.update(json.dumps({name: asdict(value) for name, value in group.items()}, sort_keys=True).encode())
        digest.update(json.dumps([dict(self.columns), self.train_rows], sort_keys=True).encode())
        if self.profiles:  # so that statistics from before there were any keep their fingerprint
            profiles = {name: asdict(profile) for name, profile in self.profiles.items()}
            digest.update(json.dumps(profiles, sort_keys=True).encode())
        if self.reading is not None:
            digest.update(self.reading.model_dump_json().encode())
        return digest.hexdigest()


def _tupled(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {**values, **{key: tuple(values[key]) for key in keys}}
