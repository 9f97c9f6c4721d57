"""How the rows of a split lie beside those that a model was trained on: what drift is told from.

In: encoded train rows, and later a split's raw rows with the statistics of the model's own training. Out: a
:class:`~recmtl.statistics.Profile` per feature, fitted on train (it travels in the package) and counted again, in the
same cells, on the split; and the split's label means.

Everything is counted in the model's own eyes, on encoded values: ids as table rows, numbers after transform and
standardising. Nothing but one part of the data is in memory at a time.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recmtl.errors import RunError
from recmtl.etl.convert import RowEncoder
from recmtl.manifest import ROW, Manifest, inside
from recmtl.reading import Unread
from recmtl.schema import MISSING, UNSEEN, Feature, Schema
from recmtl.statistics import LabelStatistics, Profile, Statistics

__all__ = ["TOP_VALUES", "Seen", "fit_profiles", "look_again"]

TOP_VALUES = 20
"""Cells of an id. More would drown a change in chance: without any change the expected stability index is about
(cells - 1) · (1 / rows before + 1 / rows now) (Yurdakul 2018, section 2.3)."""

_PARTS_OF_A_NUMBER = 10
"""A number's cells are deciles of train, and one beyond its range on either side."""

_SAMPLE = 200_000
"""Rows that choose the cells, at most."""

_VALUES = 16_000_000
"""Dense values of that sample, at most: wide vectors mean fewer rows."""

_AT_ONCE = 65_536
"""Rows whose values are taken out at a time."""

_EMPTY = -1
"""Stands for an empty bag, which is not a missing one."""


@dataclass(frozen=True)
class Seen:
    """What a split's rows look like to a model."""

    rows: int
    """Of the split."""
    looked_at: int
    """Of these, the rows that the profiles are of."""
    profiles: Mapping[str, Profile]
    """By feature: counted in the cells of the model's training; for a feature without such cells without ``counts``."""
    labels: Mapping[str, LabelStatistics] = field(default_factory=dict)
    """Task to its observed labels (without ``std`` and ``distribution``)."""
    conditional_labels: Mapping[str, LabelStatistics] = field(default_factory=dict)
    """The same of tasks with a parent, where the parent is positive."""


def fit_profiles(parts: Sequence[Path], schema: Schema) -> dict[str, Profile]:
    """The profile of every feature over the train rows.

    The cells are chosen by an even sample of the rows; what lies in them is counted over all rows.

    Args:
        parts: encoded shards of train.
        schema: the features.
    """
    columns = _columns(schema)
    rows = pl.scan_parquet(list(parts), glob=False).select(pl.len()).collect().item()
    step = max(1, -(-rows // min(_SAMPLE, max(1000, _VALUES // max(1, schema.dense_width)))))

    def frames() -> Iterator[pl.DataFrame]:
        for part in parts:
            yield pl.read_parquet(part, columns=columns, glob=False)

    sample = pl.concat([frame.gather_every(step) for frame in frames()])
    empty = {feature.name: _cells(feature, _Values.of(feature, sample, schema)) for feature in schema.values()}
    return _count(frames(), schema, empty)


def look_again(
    folder: Path,
    manifest: Manifest,
    split: str,
    schema: Schema,
    statistics: Statistics,
    *,
    max_rows: int | None = None,
) -> Seen:
    """Look at validation or test with the eyes of a model.

    Args:
        folder: a prepared dataset's.
        manifest: its manifest.
        split: validation or test, which keep their raw rows.
        schema: the model's features.
        statistics: of the model's training.
        max_rows: look at about this many rows, evenly taken, where there are more; labels are always of all.

    Raises:
        RunError: a shard is gone or unreadable, or the split keeps no raw rows.
        UserError: a raw column cannot be what the model's schema says.
    """
    summary = manifest.splits[split]
    if summary.rows and not summary.raw_shards:
        raise RunError(f"{folder}: {split} keeps no raw rows, so its drift cannot be seen")
    step = 1 if max_rows is None else max(1, -(-summary.rows // max_rows))
    encoder = RowEncoder(schema, statistics)
    unread: dict[str, Unread] = {}  # counted by the evaluation, which encodes the same rows
    looked_at = 0

    def frames() -> Iterator[pl.DataFrame]:
        nonlocal looked_at
        for shard in summary.raw_shards:
            raw = _read(folder, shard.path, [ROW, *schema.columns])
            raw = raw.select(ROW, *_present(raw, schema)).gather_every(step)
            looked_at += raw.height
            for some in raw.iter_slices(_AT_ONCE):
                yield encoder.rows(some, unread)

    known = {
        name: Profile(profile.values, profile.edges, (0,) * len(profile.counts))
        for name, profile in statistics.profiles.items()
        if name in schema
    }
    profiles = _count(frames(), schema, {name: known.get(name, Profile()) for name in schema})
    labels, conditional = _labels(folder, manifest, split)
    return Seen(summary.rows, looked_at, profiles, labels, conditional)


def _present(raw: pl.DataFrame, schema: Schema) -> list[str]:
    """The columns that hold a value: one without any has whatever type its file gave it."""
    return [column for column in schema.columns if column in raw.columns and raw[column].null_count() < raw.height]


def _columns(schema: Schema) -> list[str]:
    sparse = [f"{'id' if feature.kind == 'id' else 'bag'}:{feature.name}" for feature in schema.sparse]
    return [*sparse, "dense"] if schema.dense else sparse


@dataclass(frozen=True)
class _Values:
    """One feature's values in encoded rows."""

    values: npt.NDArray[np.generic]
    """Integers of an id or bag, a bag's each; of a number or vector (its Euclidean norm) float32. Without missing ones
    and, of ids, unseen ones."""
    unseen: int
    missing: int

    @classmethod
    def of(cls, feature: Feature, frame: pl.DataFrame, schema: Schema) -> "_Values":
        """Taken out of encoded rows."""
        if not feature.sparse:
            block = _dense(feature, frame, schema)
            missing = block[:, -1] != 0
            present = block[~missing, :-1]
            values = present[:, 0] if feature.kind == "number" else np.linalg.norm(present, axis=1)
            return cls(values.astype(np.float32), 0, int(missing.sum()))
        if feature.kind == "id":
            found = frame[f"id:{feature.name}"].to_numpy()
        else:
            each = frame[f"bag:{feature.name}"].explode(keep_nulls=True, empty_as_null=True).fill_null(_EMPTY)
            found = each.to_numpy()
        missing, unseen = found == MISSING, found == UNSEEN
        hashed = schema.tables[feature.table or feature.name].hash_buckets is not None
        assert not (hashed and unseen.any()), "hashing leaves nothing unseen"
        return cls(found[~(missing | unseen)], int(unseen.sum()), int(missing.sum()))


def _dense(feature: Feature, frame: pl.DataFrame, schema: Schema) -> npt.NDArray[np.float32]:
    """(N, width): a number's or vector's columns of ``dense``, the missing indicator last."""
    start = 0
    for other in schema.dense:
        width = 2 if other.kind == "number" else (other.dim or 0) + 1
        if other.name == feature.name:
            dense: npt.NDArray[np.float32] = frame["dense"].to_numpy()
            return dense.reshape(frame.height, -1)[:, start : start + width]
        start += width
    raise KeyError(feature.name)


def _cells(feature: Feature, sample: _Values) -> Profile:
    """Cells that nothing has been counted into."""
    if feature.sparse:
        values, counts = np.unique(sample.values, return_counts=True)
        top = tuple(values[np.lexsort((values, -counts))][:TOP_VALUES].tolist())
        return Profile(values=top, counts=(0,) * (len(top) + 1))
    if not len(sample.values):
        return Profile(counts=(0,))
    shares = np.linspace(0, 1, _PARTS_OF_A_NUMBER + 1)[1:]
    numbers = sample.values.astype(np.float32)
    deciles = np.quantile(numbers, shares, method="higher").astype(np.float32)
    below = np.nextafter(numbers.min(), np.float32(-np.inf))
    edges = np.unique(np.append(deciles, below))
    return Profile(edges=tuple(edges.astype(np.float64).tolist()), counts=(0,) * (len(edges) + 1))


def _count(frames: Iterable[pl.DataFrame], schema: Schema, cells: Mapping[str, Profile]) -> dict[str, Profile]:
    """The cells with what lies in them."""
    found = {name: np.zeros(len(profile.counts), np.int64) for name, profile in cells.items()}
    unseen, missing = dict.fromkeys(cells, 0), dict.fromkeys(cells, 0)
    for frame in (some for whole in frames for some in whole.iter_slices(_AT_ONCE)):
        for name, profile in cells.items():
            values = _Values.of(schema[name], frame, schema)
            unseen[name] += values.unseen
            missing[name] += values.missing
            if len(found[name]):
                place = _place(values.values, profile)
                found[name] += np.bincount(place, minlength=len(found[name]))
    return {
        name: Profile(profile.values, profile.edges, tuple(found[name].tolist()), unseen[name], missing[name])
        for name, profile in cells.items()
    }


def _place(values: npt.NDArray[np.generic], profile: Profile) -> npt.NDArray[np.intp]:
    """The cell of each value."""
    if profile.edges:
        return np.searchsorted(np.asarray(profile.edges), values.astype(np.float64), side="left")
    known = np.asarray(profile.values, np.int64)
    if not len(known):
        return np.zeros(len(values), np.intp)
    order = np.argsort(known)
    at = np.minimum(np.searchsorted(known[order], values), len(known) - 1)
    return np.where(known[order][at] == values, order[at], len(known))


def _labels(
    folder: Path, manifest: Manifest, split: str
) -> tuple[dict[str, LabelStatistics], dict[str, LabelStatistics]]:
    """Observed labels and their mean, in label units, of every task, and of those with a parent given the parent."""
    own: dict[str, LabelStatistics] = {}
    given: dict[str, LabelStatistics] = {}
    tasks = manifest.tasks_
    counts = dict.fromkeys((name for name, task in tasks.items() if task.parent is not None), (0, 0.0))
    for name in tasks:
        summary = manifest.splits[split].tasks[name]
        own[name] = LabelStatistics(summary.observed, summary.mean, None)
    if not counts:
        return own, given
    wanted = [f"{kind}:{name}" for name in tasks for kind in ("label", "observed")]
    for shard in manifest.splits[split].shards:
        frame = _read(folder, shard.path, wanted)
        for name, (rows, total) in counts.items():
            parent = tasks[name].parent
            seen = frame.filter(pl.col(f"observed:{name}") & (pl.col(f"label:{parent}") == 1))[f"label:{name}"]
            counts[name] = rows + len(seen), total + float(seen.cast(pl.Float64).sum())
    for name, (rows, total) in counts.items():
        given[name] = LabelStatistics(rows, total / rows if rows else None, None)
    return own, given


def _read(folder: Path, path: str, columns: Sequence[str]) -> pl.DataFrame:
    """Those of the columns that the shard has."""
    try:
        there = set(pq.read_schema(inside(folder, path)).names)
        return pl.read_parquet(inside(folder, path), columns=[c for c in columns if c in there], glob=False)
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise RunError(f"{folder / path}: this shard cannot be read ({error}); prepare again") from error
