"""Exact metrics of more rows than memory holds, from files: an external sort in place of one in memory.

In: a target's rows as a stream that can be read several times, each row with the number of its cluster. Out: the values
that :func:`recmtl.evaluation.evaluate.measure` gives, to the last digits, and every metric's influence summed over the
rows of each cluster.

Metrics by sums are summed piece by piece. Those that rank rows need them in order: the rows are dealt into bucket files
by prediction, at cuts taken from a sample of it, so that equal predictions always share a bucket; then each bucket is
sorted in memory, from the lowest to the highest, while the counts of positive and negative rows below go along. A
bucket that came out too large is dealt again, and one that holds a single value is read in pieces, unsorted. User AUC
deals the rows of users with both classes by user, so that a user is never split. Spearman's correlation sorts by label,
deals the rows with their label's rank by prediction, sorts again, and carries the ranks of predictions back to the
labels' order for the influence. What is in memory at a time is a bucket, a piece, and some numbers a cluster; on disk
some 20 to 30 bytes a row for one sort.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from recmtl.evaluation.evaluate import Values
from recmtl.evaluation.spill import PIECE, Spill, pieces, read
from recmtl.metrics import METRICS, Examples, metrics_for
from recmtl.metrics.base import FloatArray, dot, run_ends
from recmtl.metrics.ece import BINS, Bin
from recmtl.metrics.user_auc import Pairs
from recmtl.tasks import TaskKind

__all__ = ["BUCKET_ROWS", "Stream", "Streamed", "cluster_numbers", "measure_stream"]

BUCKET_ROWS = 2_000_000
"""Rows that are sorted at once: some 150 MB with their copies."""
WITHOUT_USERS = 1 << 20
"""Clusters that rows are gathered in where users are unknown: rows are independent then, in whatever groups."""

Stream = Callable[[], Iterator[tuple[Examples, NDArray[np.int32]]]]
"""Makes a new pass over a target's rows: pieces, and (n,) the cluster of each row, from 0. Groups are not read."""


@dataclass(frozen=True)
class Streamed:
    """What a stream's rows amount to."""

    values: Values
    """As :func:`recmtl.evaluation.evaluate.measure` gives them."""
    pulls: dict[str, FloatArray]
    """Metric to (clusters,): the influence summed over each cluster's rows; a memory map. Only where defined."""
    clusters: int
    """Clusters with a row."""
    bins: tuple[Bin, ...] = ()
    """The calibration table, where it was asked for."""


def measure_stream(
    stream: Stream,
    kind: TaskKind,
    clusters: int,
    folder: Path,
    *,
    by_user: bool = True,
    names: Sequence[str] | None = None,
    influence: Sequence[str] = (),
    table: int = 0,
    bucket_rows: int = BUCKET_ROWS,
) -> Streamed:
    """Every metric of a stream's rows.

    Args:
        stream: the rows.
        kind: of the task.
        clusters: how many there are.
        folder: for files, which are gone afterwards but for those of ``pulls``.
        by_user: clusters are users; else the metrics by user are undefined.
        names: these metrics alone, without the counts; None: all of the kind, with them.
        influence: the metrics whose pulls are wanted.
        table: bins of a calibration table (binary, regression, ordinal); 0: none.
        bucket_rows: rows that are sorted at once.
    """
    work = _Work(stream, kind, clusters, folder, by_user, frozenset(influence), table, bucket_rows)
    wanted = [metric.name for metric in metrics_for(kind)] if names is None else list(names)
    scan = work.scan([name for name in wanted if _by_sums(name)])
    counts: Values = {}
    if names is None:
        counts["rows"] = scan.rows
        if kind == "binary":
            counts["positives"] = scan.positives
            counts["user_auc_users"] = int(scan.both.sum()) if by_user else None
    values: dict[str, float | None] = dict.fromkeys(wanted)
    if not scan.rows:
        return Streamed(counts | values, {}, 0)
    values |= work.sums(scan)
    if kind == "binary" and {"auc", "pr_auc", "ece"} & set(wanted):
        values |= work.ranking(scan, wanted)
    if "user_auc" in wanted and by_user:
        values["user_auc"] = work.user_auc(scan)
    if "spearman" in wanted:
        values["spearman"] = work.spearman(scan)
    if "macro_auc" in wanted:
        values["macro_auc"] = work.macro_auc(scan)
    present = int((scan.of_cluster > 0).sum())
    return Streamed(counts | {name: values[name] for name in wanted}, work.pulls, present, work.bins)


def cluster_numbers(group: NDArray[np.int64] | None, rows: int, spill: Spill) -> tuple[NDArray[np.int32], int]:
    """(rows,) each row's cluster, from 0, on disk, and how many there are, without holding the rows.

    Users are numbered by rising group; what grows in memory is the list of users. Without users, rows are gathered by
    their number in :data:`WITHOUT_USERS` clusters.
    """
    if group is None:
        for start, stop in pieces(rows):
            spill.append("cluster", (np.arange(start, stop) % WITHOUT_USERS).astype(np.int32))
        spill.close()
        return spill.column("cluster", "int32"), min(rows, WITHOUT_USERS)
    users, new = np.empty(0, np.int64), [np.empty(0, np.int64)]
    for start, stop in pieces(rows):
        new.append(_distinct(read(group, start, stop)))
        if sum(each.size for each in new) > max(users.size, PIECE):  # merge seldom: a merge costs all users
            users, new = _distinct(np.concatenate([users, *new])), []
    users = _distinct(np.concatenate([users, *new]))
    for start, stop in pieces(rows):
        piece, place = np.unique(read(group, start, stop), return_inverse=True)
        spill.append("cluster", np.searchsorted(users, piece).astype(np.int32)[place])
    spill.close()
    return spill.column("cluster", "int32"), users.size


def _distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The different values, rising; by sorting, which takes a fraction of the time of ``np.unique``'s hash table."""
    ordered = np.sort(values)
    distinct: NDArray[np.int64] = ordered[np.append(True, ordered[1:] != ordered[:-1])[: ordered.size]]
    return distinct


@dataclass
class _Scan:
    """What the first pass finds."""

    of_cluster: NDArray[np.int64]
    """(clusters,) rows of each."""
    positives_of: NDArray[np.int64]
    """(clusters,) positive rows of each, of a binary task."""
    sums: dict[str, FloatArray]
    """Metric by sums to its (K,) sums."""
    rows: int = 0
    positives: int = 0
    low: float = math.inf
    """Lowest prediction, and highest."""
    high: float = -math.inf
    classes: int = 0
    predictions: list[FloatArray] = field(default_factory=list)
    """A sample."""
    labels: list[FloatArray] = field(default_factory=list)

    @property
    def both(self) -> NDArray[np.bool_]:
        """(clusters,) which have both classes."""
        return (self.positives_of > 0) & (self.positives_of < self.of_cluster)


_ROW = np.dtype([("key", "<f8"), ("label", "<f4"), ("cluster", "<i4")])
_USER_ROW = np.dtype([("key", "<i4"), ("prediction", "<f8"), ("label", "<f4")])
_RANKED_ROW = np.dtype([("key", "<f8"), ("label", "<f8"), ("rank", "<f8"), ("cluster", "<i4")])


class _Work:
    """One target of one system: the passes over its rows."""

    def __init__(
        self,
        stream: Stream,
        kind: TaskKind,
        clusters: int,
        folder: Path,
        by_user: bool,
        influence: frozenset[str],
        table: int,
        bucket_rows: int,
    ) -> None:
        self.stream, self.kind, self.clusters, self.folder = stream, kind, clusters, folder
        self.by_user, self.influence, self.table, self.bucket_rows = by_user, influence, table, bucket_rows
        self.pulls: dict[str, FloatArray] = {}
        self.bins: tuple[Bin, ...] = ()

    def scan(self, by_sums: Sequence[str]) -> _Scan:
        found = _Scan(
            np.zeros(self.clusters, np.int64),
            np.zeros(self.clusters if self.kind == "binary" else 0, np.int64),
            dict.fromkeys(by_sums, np.zeros(1)),
        )
        stride = max(1, self.bucket_rows // 4096)
        for rows, cluster in self.stream():
            if not len(rows):
                continue
            found.rows += len(rows)
            found.of_cluster += np.bincount(cluster, minlength=self.clusters)
            if self.kind == "binary":
                found.positives_of += np.bincount(cluster[rows.label == 1], minlength=self.clusters)
            for name, sums in found.sums.items():
                found.sums[name] = sums + np.array([np.sum(term, dtype=np.float64) for term in _terms(name, rows)])
            if rows.prediction.ndim == 1:
                found.low = min(found.low, float(rows.prediction.min()))
                found.high = max(found.high, float(rows.prediction.max()))
                found.predictions.append(rows.prediction[::stride].copy())
                found.labels.append(rows.label[::stride].copy())
            else:
                found.classes = rows.prediction.shape[1]
        found.positives = int(found.positives_of.sum())
        return found

    def sums(self, scan: _Scan) -> dict[str, float | None]:
        """Metrics by sums; a second pass for their influence."""
        values: dict[str, float | None] = {}
        slopes: dict[str, FloatArray] = {}
        for name, sums in scan.sums.items():
            additive = METRICS[name].additive
            assert additive is not None
            value = float(additive.values(sums[None])[0])
            values[name] = value if math.isfinite(value) else None
            slope = additive.gradient(sums[None])[0]
            if name in self.influence and values[name] is not None and np.isfinite(slope).all():
                slopes[name] = slope
        if slopes:
            pulls = {name: np.zeros(self.clusters) for name in slopes}
            for rows, cluster in self.stream():
                for name, slope in slopes.items():
                    influence = sum(one * np.asarray(term) for one, term in zip(slope, _terms(name, rows), strict=True))
                    pulls[name] += np.bincount(cluster, influence, self.clusters)
            for name, of_cluster in pulls.items():
                self._keep(name, of_cluster)
        return values

    def ranking(self, scan: _Scan, wanted: Sequence[str]) -> dict[str, float | None]:
        """AUC, average precision and the calibration error of a binary task, in one pass by rising prediction."""
        positives, negatives = scan.positives, scan.rows - scan.positives
        auc_pulls, precision_pulls = (
            np.zeros(self.clusters) if name in self.influence and name in wanted else None for name in ("auc", "pr_auc")
        )
        bins = [_Bins(count, scan.rows) for count in (BINS, self.table) if count]
        below, positives_below = 0, 0
        won = 0  # twice the pairs that positive rows win, exact
        precision_sum, raised, lowered = 0.0, 0.0, 0.0
        for bucket in self._by_prediction(scan):
            rows, mine = bucket.rows, bucket.sums("label").astype(np.int64)
            theirs = rows - mine
            before = below + np.cumsum(rows) - rows
            mine_before = positives_below + np.cumsum(mine) - mine
            theirs_before = before - mine_before
            for one in bins:
                one.add(bucket.values, rows, mine, before)
            won += int((mine * (2 * theirs_before + theirs)).sum())
            found, wrong = positives - mine_before, negatives - theirs_before  # at or above each run
            all_above = found + wrong
            precision = found / all_above
            precision_sum += dot(mine, precision)
            raised_to = raised + np.cumsum(mine * wrong / all_above.astype(np.float64) ** 2)
            lowered_to = lowered + np.cumsum(mine * found / all_above.astype(np.float64) ** 2)
            if auc_pulls is not None or precision_pulls is not None:
                beaten = (theirs_before + theirs / 2) / max(negatives, 1) / max(positives, 1)
                not_beaten = (1 - (mine_before + mine / 2) / max(positives, 1)) / max(negatives, 1)
                for run, part in bucket.parts():
                    is_mine = part["label"] == 1
                    if auc_pulls is not None:
                        pull = np.where(is_mine, beaten[run], not_beaten[run])
                        auc_pulls += np.bincount(part["cluster"], pull, self.clusters)
                    if precision_pulls is not None:
                        pull = np.where(is_mine, (precision + raised_to)[run], -lowered_to[run])
                        precision_pulls += np.bincount(part["cluster"], pull, self.clusters)
            below, positives_below = below + int(rows.sum()), positives_below + int(mine.sum())
            raised, lowered = float(raised_to[-1]), float(lowered_to[-1])
        if self.table:
            self.bins = bins[-1].table()
        values: dict[str, float | None] = {"auc": None, "pr_auc": None, "ece": bins[0].error()}
        if positives and negatives:
            values["auc"] = auc = won / (2 * positives * negatives)
            if auc_pulls is not None:
                share = scan.positives_of / positives + (scan.of_cluster - scan.positives_of) / negatives
                self._keep("auc", auc_pulls - auc * share)
        if positives:
            values["pr_auc"] = average = precision_sum / positives
            if precision_pulls is not None:
                self._keep("pr_auc", (precision_pulls - average * scan.positives_of) / positives)
        return {name: value for name, value in values.items() if name in wanted}

    def user_auc(self, scan: _Scan) -> float | None:
        """The mean of the users' AUCs, from the rows of users who have both classes."""
        both = scan.both
        if not both.any():
            return None
        size = np.where(both, scan.of_cluster, 0)
        if scan.low == scan.high:  # the baseline: every user's rows are level
            self._keep("user_auc", np.zeros(self.clusters))
            return 0.5
        shares = np.zeros(self.clusters)  # a user's AUC times its rows
        ends = np.cumsum(size)
        cuts = np.flatnonzero(np.diff(ends // self.bucket_rows)) + 1
        with _Buckets(self.folder, cuts, _USER_ROW, self.bucket_rows) as buckets:
            for rows, cluster in self.stream():
                kept = np.flatnonzero(both[cluster])
                columns = {"key": cluster[kept], "prediction": rows.prediction[kept], "label": rows.label[kept]}
                buckets.add(_records(_USER_ROW, columns))
            for records in buckets.whole():
                user = records["key"].astype(np.int64)
                pairs = Pairs(user, Examples(records["prediction"], records["label"]))
                auc, rows_of = pairs.at(np.ones(user.size))
                low = int(user.min())
                shares[low + np.flatnonzero(np.bincount(user - low))] = auc * rows_of
        total = float(size.sum())
        mean = float(shares.sum()) / total
        if "user_auc" in self.influence:
            self._keep("user_auc", (shares - mean * size) / total)
        return mean

    def spearman(self, scan: _Scan) -> float | None:
        """Rank correlation, by three sorts: labels' ranks, predictions' ranks, and back for the influence."""
        if scan.low == scan.high and not self.table:
            return None
        labels = np.concatenate(scan.labels)
        pulled = "spearman" in self.influence
        half = scan.rows / 2
        of_xy, of_xx, of_yy = (np.zeros(self.clusters if pulled else 0) for _ in range(3))
        xy = xx = yy = 0.0
        bins = _Bins(self.table, scan.rows) if self.table else None
        with (
            _Buckets(
                self.folder, _cuts(labels, scan.rows, self.bucket_rows), _RANKED_ROW, self.bucket_rows
            ) as by_label,
            self._buckets(scan, _RANKED_ROW) as by_prediction,
            _Buckets(self.folder, _cuts(labels, scan.rows, self.bucket_rows), _RANKED_ROW, self.bucket_rows) as back,
        ):
            for rows, cluster in self.stream():
                columns = {"key": rows.label, "label": rows.prediction, "rank": 0.0, "cluster": cluster}
                by_label.add(_records(_RANKED_ROW, columns, len(rows)))
            below = 0
            for bucket in by_label.sorted():
                y = below + np.cumsum(bucket.rows) - bucket.rows / 2 - half
                yy += dot(bucket.rows, y * y)
                for run, part in bucket.parts():
                    columns = {"key": part["label"], "label": part["key"], "rank": y[run], "cluster": part["cluster"]}
                    by_prediction.add(_records(_RANKED_ROW, columns, run.size))
                below += int(bucket.rows.sum())
            below, swept = 0, 0.0
            for bucket in by_prediction.sorted():
                before = below + np.cumsum(bucket.rows) - bucket.rows
                x = before + bucket.rows / 2 - half
                ranks = bucket.sums("rank")
                if bins is not None:
                    bins.add(bucket.values, bucket.rows, bucket.sums("label"), before)
                xx += dot(bucket.rows, x * x)
                xy += dot(ranks, x)
                if pulled:
                    # The ranks' sum is 0, so that above less below is minus twice what is below, less the run itself.
                    swept_to = swept + np.cumsum(ranks)
                    y_swept = -(swept_to - ranks / 2)
                    x_swept = _swept_ranks(before, bucket.rows, scan.rows)
                    for run, part in bucket.parts():
                        x_of, at = x[run], part["cluster"]
                        of_xy += np.bincount(at, x_of * part["rank"] + y_swept[run], self.clusters)
                        of_xx += np.bincount(at, x_of * x_of + 2 * x_swept[run], self.clusters)
                        columns = {"key": part["label"], "label": 0.0, "rank": x_of, "cluster": at}
                        back.add(_records(_RANKED_ROW, columns, run.size))
                    swept = float(swept_to[-1])
                below += int(bucket.rows.sum())
            if bins is not None:
                self.bins = bins.table()
            if not (xx > 0 and yy > 0):
                return None
            root = math.sqrt(xx * yy)
            if pulled:
                below, swept = 0, 0.0
                for bucket in back.sorted():
                    before = below + np.cumsum(bucket.rows) - bucket.rows
                    y = before + bucket.rows / 2 - half
                    ranks = bucket.sums("rank")
                    swept_to = swept + np.cumsum(ranks)
                    x_swept = -(swept_to - ranks / 2)
                    y_swept = _swept_ranks(before, bucket.rows, scan.rows)
                    for run, part in bucket.parts():
                        of_xy += np.bincount(part["cluster"], x_swept[run], self.clusters)
                        of_yy += np.bincount(part["cluster"], (y * y + 2 * y_swept)[run], self.clusters)
                    swept = float(swept_to[-1])
                    below += int(bucket.rows.sum())
                self._keep("spearman", of_xy / root - xy / root * (of_xx / xx + of_yy / yy) / 2)
            return xy / root

    def macro_auc(self, scan: _Scan) -> float | None:
        """The mean of each class's AUC against the rest."""
        found, pulls = [], np.zeros(self.clusters)
        for index in range(scan.classes):
            one = measure_stream(
                _one_against_rest(self.stream, index),
                "binary",
                self.clusters,
                self.folder,
                by_user=False,
                names=("auc",),
                influence=("auc",) if "macro_auc" in self.influence else (),
                bucket_rows=self.bucket_rows,
            )
            if one.values["auc"] is not None:
                found.append(one.values["auc"])
                pulls += one.pulls.get("auc", 0.0)
        if not found:
            return None
        if "macro_auc" in self.influence:
            self._keep("macro_auc", pulls / len(found))
        return float(np.mean(found))

    def _by_prediction(self, scan: _Scan) -> Iterator["_Bucket"]:
        """A binary task's rows, by rising prediction."""
        if scan.low == scan.high:  # the baseline: nothing to sort
            yield _Bucket(np.array([scan.low]), np.array([scan.rows]), self._level_parts)
            return
        with self._buckets(scan, _ROW) as buckets:
            for rows, cluster in self.stream():
                columns = {"key": rows.prediction, "label": rows.label, "cluster": cluster}
                buckets.add(_records(_ROW, columns, len(rows)))
            yield from buckets.sorted()

    def _level_parts(self) -> Iterator[tuple[NDArray[np.intp], NDArray[Any]]]:
        for rows, cluster in self.stream():
            columns = {"key": rows.prediction, "label": rows.label, "cluster": cluster}
            yield np.zeros(len(rows), np.intp), _records(_ROW, columns, len(rows))

    def _buckets(self, scan: _Scan, dtype: np.dtype[Any]) -> "_Buckets":
        cuts = _cuts(np.concatenate(scan.predictions), scan.rows, self.bucket_rows)
        return _Buckets(self.folder, cuts, dtype, self.bucket_rows)

    def _keep(self, name: str, pulls: FloatArray) -> None:
        """Hold a metric's pulls on disk until they are compared with another system's."""
        with Spill(Path(tempfile.mkdtemp(dir=self.folder))) as spill:
            spill.append(name, pulls)
        self.pulls[name] = spill.column(name, "float64")


class _Bucket:
    """Rows whose keys lie together, sorted: runs of equal keys, and the rows of each."""

    def __init__(
        self,
        values: FloatArray,
        rows: NDArray[np.int64],
        parts: Callable[[], Iterator[tuple[NDArray[np.intp], NDArray[Any]]]],
    ) -> None:
        self.values = values
        """(R,) the different keys, rising."""
        self.rows = rows
        """(R,) how many rows have each."""
        self.parts = parts
        """(n,) the run and (n,) the record of each row, in one part or, where a run is long, in several."""

    def sums(self, column: str) -> FloatArray:
        """(R,) a column summed over each run."""
        total = np.zeros(self.values.size)
        for run, part in self.parts():
            total += np.bincount(run, part[column], self.values.size)
        return total


class _Buckets:
    """Files of records, dealt by key; in a folder of its own, which goes with it."""

    def __init__(self, folder: Path, cuts: NDArray[Any], dtype: np.dtype[Any], limit: int) -> None:
        """Bucket i holds the keys from ``cuts[i − 1]`` up to, without, ``cuts[i]``."""
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.cuts, self.dtype, self.limit = cuts, dtype, limit
        count = cuts.size + 1
        self.rows = np.zeros(count, np.int64)
        self.low, self.high = np.full(count, np.inf), np.full(count, -np.inf)
        self._files: dict[int, IO[bytes]] = {}

    def add(self, records: NDArray[Any]) -> None:
        """Deal records into the files."""
        if not records.size:
            return
        bucket = np.searchsorted(self.cuts, records["key"], side="right").astype(np.min_scalar_type(self.cuts.size))
        order = np.argsort(bucket, kind="stable")
        counts = np.bincount(bucket, minlength=self.rows.size)
        dealt, ends = records[order], np.cumsum(counts)
        for number in np.flatnonzero(counts).tolist():
            part = dealt[ends[number] - counts[number] : ends[number]]
            self.low[number] = min(self.low[number], part["key"].min())
            self.high[number] = max(self.high[number], part["key"].max())
            if number not in self._files:
                self._files[number] = self._path(number).open("wb")
            part.tofile(self._files[number])
        self.rows += counts

    def whole(self) -> Iterator[NDArray[Any]]:
        """The records of each bucket, in the order of the buckets."""
        self._close()
        for number in np.flatnonzero(self.rows).tolist():
            yield np.fromfile(self._path(number), self.dtype)
            self._path(number).unlink()

    def sorted(self) -> Iterator[_Bucket]:
        """The buckets by rising key, each sorted; a file is gone once its bucket is done."""
        self._close()
        for number in np.flatnonzero(self.rows).tolist():
            path, rows = self._path(number), int(self.rows[number])
            if self.low[number] == self.high[number]:
                yield _Bucket(self.low[number : number + 1], self.rows[number : number + 1], _level(path, self.dtype))
            elif rows <= self.limit:
                yield _sorted(np.fromfile(path, self.dtype))
            else:
                step = max(1, rows // 65536)
                sample = np.concatenate([part["key"][::step] for part in _pieces(path, self.dtype)])
                middle = np.sort(sample)[sample.size // 2]
                cuts = np.union1d(_cuts(sample, rows, self.limit), [middle, np.nextafter(middle, np.inf)])
                with _Buckets(self.folder, cuts, self.dtype, self.limit) as smaller:
                    for part in _pieces(path, self.dtype):
                        smaller.add(part)
                    path.unlink()
                    yield from smaller.sorted()
                continue
            path.unlink()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.bin"

    def _close(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> "_Buckets":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)


class _Bins:
    """Bins of equal mass, filled run by run: as :mod:`recmtl.metrics.ece` has them."""

    def __init__(self, count: int, rows: int) -> None:
        self.count, self.total = count, rows
        self.rows, self.predicted, self.observed = np.zeros(count), np.zeros(count), np.zeros(count)

    def add(self, values: FloatArray, rows: NDArray[Any], labels: NDArray[Any], before: NDArray[Any]) -> None:
        """Runs of equal predictions: (R,) each's value, rows, sum of labels and rows below."""
        middle = before + rows / 2
        at = np.minimum((middle * (self.count / self.total)).astype(np.intp), self.count - 1)
        self.rows += np.bincount(at, rows, self.count)
        self.predicted += np.bincount(at, rows * values, self.count)
        self.observed += np.bincount(at, labels, self.count)

    def error(self) -> float:
        """The expected calibration error."""
        return float(np.abs(self.predicted - self.observed).sum() / self.total)

    def table(self) -> tuple[Bin, ...]:
        """The bins that are not empty."""
        each = zip(self.rows.tolist(), self.predicted.tolist(), self.observed.tolist(), strict=True)
        return tuple(Bin(rows, predicted / rows, observed / rows) for rows, predicted, observed in each if rows > 0)


def _swept_ranks(before: NDArray[Any], rows: NDArray[Any], total: int) -> FloatArray:
    """(R,) half of: the sum of the centred ranks above a run, less that of those below it.

    The ranks of the n rows before a run sum to n (n − N) / 2, by counting.
    """
    upto = before + rows
    below, within_or_below = before * (before - float(total)) / 2, upto * (upto - float(total)) / 2
    return np.asarray(-(below + within_or_below) / 2)


def _by_sums(name: str) -> bool:
    additive = METRICS[name].additive
    return additive is not None and not additive.by_user


def _terms(name: str, rows: Examples) -> Sequence[NDArray[Any]]:
    additive = METRICS[name].additive
    assert additive is not None
    return additive.terms(rows)


def _one_against_rest(stream: Stream, index: int) -> Stream:
    def binary() -> Iterator[tuple[Examples, NDArray[np.int32]]]:
        for rows, cluster in stream():
            yield Examples(rows.prediction[:, index], rows.label == index), cluster

    return binary


def _records(dtype: np.dtype[Any], columns: dict[str, Any], rows: int | None = None) -> NDArray[Any]:
    records = np.empty(columns["key"].size if rows is None else rows, dtype)
    for name, values in columns.items():
        records[name] = values
    return records


def _cuts(sample: FloatArray, rows: int, limit: int) -> FloatArray:
    """Rising keys at which to cut so that a bucket has about half of ``limit`` rows; a key that fills a bucket alone
    gets one to itself."""
    buckets = -(-2 * rows // limit)
    if rows <= limit or not sample.size:
        return np.empty(0)
    ordered = np.sort(sample)
    at, times = np.unique(ordered[np.arange(1, buckets) * ordered.size // buckets], return_counts=True)
    return np.unique(np.concatenate([at, np.nextafter(at[times > 1], np.inf)]))


def _sorted(records: NDArray[Any]) -> _Bucket:
    records = records[np.argsort(records["key"].copy())]
    ends = run_ends(records["key"])
    rows = np.diff(ends, prepend=-1)
    run = np.repeat(np.arange(ends.size), rows)
    return _Bucket(records["key"][ends], rows, lambda: iter([(run, records)]))


def _level(path: Path, dtype: np.dtype[Any]) -> Callable[[], Iterator[tuple[NDArray[np.intp], NDArray[Any]]]]:
    """The parts of a bucket with one key alone."""
    return lambda: ((np.zeros(part.size, np.intp), part) for part in _pieces(path, dtype))


def _pieces(path: Path, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    rows = path.stat().st_size // dtype.itemsize
    for start, stop in pieces(rows):
        yield np.fromfile(path, dtype, stop - start, offset=start * dtype.itemsize)
