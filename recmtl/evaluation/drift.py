"""Drift: a split's rows against the rows that a model was trained on. Data card: what the rows are.

In: the model's statistics, which hold a profile of its training, and what :func:`recmtl.etl.drift.look_again` sees in
the split with that model's eyes. Out: :class:`recmtl.findings.Drift`. A feature's change is one number, the population
stability index (Siddiqi 2006, "Credit Risk Scorecards"), between what lay in each cell then and now:

    PSI = Σ_cells (now - before) · ln(now / before)

Shares are smoothed by half a value in every cell, so that an empty one has a share too. The usual reading: below 0.1
little has changed, above 0.25 much. For an id the cells are its commonest values of then, all other known ones, unseen
and missing; for a number deciles, what lies beyond its range, and missing; for a vector the same of its length.
"""

from pathlib import Path

import numpy as np
from pydantic import Field

from recmtl.etl.drift import Seen, look_again
from recmtl.findings import DataCard, Drift, FeatureDrift, LabelDrift
from recmtl.manifest import Manifest
from recmtl.schema import Schema
from recmtl.settings import Settings
from recmtl.statistics import LabelStatistics, Profile, Statistics
from recmtl.tasks import Tasks

__all__ = ["DriftConfig", "data_card", "drift", "drift_note", "stability"]

_SMOOTHING = 0.5
"""Values added to every cell: an empty cell out of N values counts as a share of 1 / 2N."""


class DriftConfig(Settings):
    """Whether and how the evaluated rows are compared with those that a model was trained on."""

    enabled: bool = True
    """Whether drift is looked for."""
    max_rows: int | None = Field(default=1_000_000, ge=1)
    """Look at about this many of a split's rows, evenly taken, where there are more; null: at all. Labels are always
    compared on all rows."""


def drift(
    folder: Path,
    manifest: Manifest,
    split: str,
    schema: Schema,
    statistics: Statistics,
    tasks: Tasks,
    *,
    against: str,
    config: DriftConfig | None = None,
) -> Drift:
    """What changed between a model's training rows and a split's rows.

    Args:
        folder: a prepared dataset's.
        manifest: its manifest.
        split: validation or test.
        schema: the model's features (of a package: ``package.schema``).
        statistics: of its training (``package.statistics``); without profiles (:func:`drift_note`) features have
            no stability index and nothing from before.
        tasks: the model's; those that these data do not have are left out.
        against: whose training it was: ``champion``, or ``model``.
        config: how many rows to look at.

    Raises:
        RunError: a shard is gone or unreadable.
        UserError: a raw column cannot be what the model's schema says.
    """
    config = config or DriftConfig()
    seen = look_again(folder, manifest, split, schema, statistics, max_rows=config.max_rows)
    return Drift(
        against=against,
        split=split,
        rows_before=statistics.train_rows,
        rows_now=seen.rows,
        features=tuple(_feature(name, schema, statistics, seen) for name in schema),
        labels=tuple(_labels(tasks, statistics, seen)),
    )


def drift_note(statistics: Statistics, against: str) -> str | None:
    """The sentence for a report whose drift of features is missing; None where it is not."""
    if statistics.profiles:
        return None
    return (
        f"the {against}'s package holds no profile of its training rows (it was made by an earlier recmtl), so the "
        "drift of features is not known; that of labels is"
    )


def stability(before: Profile, now: Profile) -> float | None:
    """The population stability index between two profiles with the same cells; None where either holds nothing."""
    assert (before.values, before.edges) == (now.values, now.edges), "one was counted in the cells of the other"
    if not before.counts or not before.total or not now.total:
        return None
    then, today = (
        np.asarray([*profile.counts, profile.unseen, profile.missing], np.float64) + _SMOOTHING
        for profile in (before, now)
    )
    then, today = then / then.sum(), today / today.sum()
    return float(((today - then) * np.log(today / then)).sum())


def _feature(name: str, schema: Schema, statistics: Statistics, seen: Seen) -> FeatureDrift:
    now, before = seen.profiles[name], statistics.profiles.get(name)
    has_unseen = schema[name].sparse
    return FeatureDrift(
        feature=name,
        psi=None if before is None else stability(before, now),
        unseen_before=_unseen(before) if has_unseen else None,
        unseen_now=_unseen(now) if has_unseen else None,
        missing_before=_share(before.missing, statistics.train_rows) if before is not None else None,
        missing_now=_share(now.missing, seen.looked_at),
    )


def _unseen(profile: Profile | None) -> float | None:
    return None if profile is None else _share(profile.unseen, profile.total - profile.missing)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _labels(tasks: Tasks, statistics: Statistics, seen: Seen) -> list[LabelDrift]:
    found = []
    for name, task in tasks.items():
        found.append(_label(name, statistics.labels.get(name), seen.labels.get(name)))
        if task.parent is not None:
            before, now = statistics.conditional_labels.get(name), seen.conditional_labels.get(name)
            found.append(_label(f"{name}_given_{task.parent}", before, now))
    return [label for label in found if label is not None]


def _label(target: str, before: LabelStatistics | None, now: LabelStatistics | None) -> LabelDrift | None:
    if before is None or now is None:
        return None
    return LabelDrift(
        target=target,
        before=before.mean,
        now=now.mean,
        observed_before=before.observed,
        observed_now=now.observed,
    )


def data_card(manifest: Manifest) -> DataCard:
    """What the rows of a prepared dataset are, as its manifest says."""
    return DataCard(
        name=manifest.name,
        source=manifest.source,
        fingerprint=manifest.fingerprint,
        statistics=manifest.statistics,
        splits={
            name: {
                "rows": split.rows,
                "time_range": None if split.time_range is None else list(split.time_range),
                "tasks": {task: summary.model_dump(mode="json") for task, summary in split.tasks.items()},
            }
            for name, split in manifest.splits.items()
        },
        inputs=dict(manifest.inputs),
        read=dict(manifest.read),
        duplicates=dict(manifest.duplicates),
        rejected={name: dict(reasons) for name, reasons in manifest.rejected.items()},
        filtered={name: dict(reasons) for name, reasons in manifest.filtered.items()},
        unattributed={name: dict(reasons) for name, reasons in manifest.unattributed.items()},
        observed_until=manifest.observed_until,
        labels_as_of=manifest.labels_as_of,
        warnings=manifest.warnings,
    )
