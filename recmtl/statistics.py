"""What is fitted on the training split, and nothing else: vocabularies, moments, quantiles, label means, profiles.

In: what :mod:`recmtl.etl.fit` counted. Out: :class:`Statistics`, saved as JSON and Parquet (never a pickle) beside the
prepared data and inside every model package, so that what serves encodes exactly as what was trained. Every number in
them is finite, when they are written and when they are read.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.bounded import parse_json, read_bytes, read_model
from recmtl.errors import RunError, UserError
from recmtl.failures import writing
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

        Raises:
            UserError: a number that was fitted is not finite: the values are too large for a mean or a deviation.
        """
        for problem in self._problems():
            raise UserError(f"{problem}: its values in train are too large; scale or clip them, or leave it out")
        (folder / "vocabulary").mkdir(parents=True, exist_ok=True)
        for name, vocabulary in self.tables.items():
            columns = {
                "value": pa.array(vocabulary.values, pa.string()),
                "count": pa.array(vocabulary.counts, pa.int64()),
            }
            path = folder / "vocabulary" / f"{name}.parquet"
            with writing(path):
                pq.write_table(pa.table(columns), path)
        rest: dict[str, Any] = {
            "tables": {name: {"dropped": vocabulary.dropped} for name, vocabulary in self.tables.items()},
            "numbers": {name: asdict(number) for name, number in self.numbers.items()},
            "labels": {name: asdict(label) for name, label in self.labels.items()},
            "conditional_labels": {name: asdict(label) for name, label in self.conditional_labels.items()},
            "columns": dict(self.columns),
            "train_rows": self.train_rows,
            "profiles": {name: asdict(profile) for name, profile in self.profiles.items()},
        }
        (folder / "statistics.json").write_text(json.dumps(rest, indent=2, allow_nan=False) + "\n")
        if self.reading is not None:
            (folder / _READING).write_text(self.reading.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, sizes: Mapping[str, int] | None = None) -> "Statistics":
        """Read what :meth:`save` wrote.

        Args:
            folder: where it lies.
            sizes: table to the number of values that its vocabulary must have, of all tables that have one: a file that
                holds another number is not read. None: as many as there are.

        Raises:
            RunError: a file is missing or is not what ``save`` writes; a number is not finite, or no deviation is above
                0; the vocabularies are not of these sizes.
        """
        try:
            rest = parse_json(read_bytes(folder / "statistics.json"))
            tables = {}
            if sizes is not None and sizes.keys() != rest["tables"].keys():
                raise ValueError(
                    f"vocabularies of {', '.join(rest['tables']) or 'no table'} for tables {', '.join(sizes) or 'none'}"
                )
            for name, other in rest["tables"].items():
                if not name.isidentifier():
                    raise ValueError(f"{name!r} is no table name")
                path = folder / "vocabulary" / f"{name}.parquet"
                values, counts = _read_vocabulary(path, None if sizes is None else sizes[name])
                tables[name] = Vocabulary(values, counts, other["dropped"])
            reading = folder / _READING
            found = cls(
                reading=read_model(reading, Reading) if reading.is_file() else None,
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
            for problem in found._problems():
                raise ValueError(problem)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
            lines = reason.strip().splitlines() or [type(error).__name__]
            raise RunError(
                f"{folder / 'statistics.json'}: these are not statistics that recmtl wrote ({lines[0][:300]})"
            ) from error
        return found

    def _problems(self) -> Iterator[str]:
        """What is not as it is documented, a phrase each that begins with where it stands."""
        for name, table in self.tables.items():
            if len(table.values) != len(table.counts) or not all(isinstance(value, str) for value in table.values):
                yield f"tables.{name}: the vocabulary is no list of texts with a count each"
            yield from _not_counts(f"tables.{name}", dropped=table.dropped)
        for name, number in self.numbers.items():
            where = f"features.{name}"
            yield from _not_counts(where, count=number.count, missing=number.missing)
            yield from _not_finite(
                where, mean=number.mean, std=number.std, minimum=number.minimum, maximum=number.maximum
            )
            yield from _not_rising(f"{where}.quantiles", number.quantiles)
            if not number.std > 0:
                yield f"{where}: the standard deviation is {number.std}, not above 0"
        for group in (self.labels, self.conditional_labels):
            for name, label in group.items():
                where = f"tasks.{name}"
                yield from _not_counts(where, observed=label.observed)
                known = {"mean": label.mean, "std": label.std}
                yield from _not_finite(where, **{key: value for key, value in known.items() if value is not None})
                if label.std is not None and label.std < 0:
                    yield f"{where}: the standard deviation is {label.std}, below 0"
                shares = {f"distribution[{place}]": share for place, share in enumerate(label.distribution)}
                yield from _not_finite(where, **shares)
                if any(share < 0 for share in label.distribution):
                    yield f"{where}: a share of the distribution is below 0"
        for name, profile in self.profiles.items():
            where = f"profiles.{name}"
            counts = {f"counts[{place}]": count for place, count in enumerate(profile.counts)}
            yield from _not_counts(where, unseen=profile.unseen, missing=profile.missing, **counts)
            yield from _not_rising(f"{where}.edges", profile.edges)
            if not all(_is_whole(value) for value in profile.values):
                yield f"{where}: a value is no whole number"

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


def _read_vocabulary(path: Path, size: int | None) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Values and counts of a vocabulary; what its file unpacks to is bounded by what is stored in it.

    Raises:
        ValueError: it is no vocabulary, or not of this size.
    """
    # One text that stands for a million rows is stored once: kept so, it is seen before it is unpacked.
    with pq.ParquetFile(path, read_dictionary=["value"]) as file:
        if size is not None and file.metadata.num_rows != size:
            raise ValueError(f"{path.name} holds {file.metadata.num_rows:,} values, and the table has {size:,}")
        types = file.schema_arrow.types
        if file.schema_arrow.names != ["value", "count"] or not pa.types.is_integer(types[1]):
            raise ValueError(f"{path.name} holds no texts with a count each")
        if not pa.types.is_dictionary(types[0]) or not pa.types.is_string(types[0].value_type):
            raise ValueError(f"{path.name} holds values that are no texts")
        table = file.read()
    for chunk in table["value"].chunks:
        if chunk.null_count:
            raise ValueError(f"{path.name} holds values that are no texts")
        if len(chunk.dictionary) < len(chunk):
            raise ValueError(f"{path.name} holds a value twice")
    if table["count"].null_count:
        raise ValueError(f"{path.name} holds a value without a count")
    return tuple(table["value"].cast(pa.string()).to_pylist()), tuple(table["count"].to_pylist())


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _not_counts(where: str, **values: object) -> Iterator[str]:
    for name, value in values.items():
        if not _is_whole(value) or value < 0:  # type: ignore[operator]
            yield f"{where}: {name} is {value!r}, no count"


def _not_finite(where: str, **values: object) -> Iterator[str]:
    for name, value in values.items():
        if not (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)):
            yield f"{where}: {name} is {value!r}, no finite number"


def _not_rising(where: str, values: tuple[float, ...]) -> Iterator[str]:
    problems = list(_not_finite(where, **{f"value {place}": value for place, value in enumerate(values)}))
    yield from problems
    if not problems and any(later < before for before, later in pairwise(values)):
        yield f"{where}: the values do not rise"


def _tupled(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {**values, **{key: tuple(values[key]) for key in keys}}
