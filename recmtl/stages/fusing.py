"""The weights of a package's fused score: searched on validation, told beside what they give on test, and saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recmtl.config import RunConfig
from recmtl.errors import UserError
from recmtl.etl.slicing import ranking_groups
from recmtl.evaluation import Scored, score
from recmtl.evaluation.calibrating import apply_to
from recmtl.evaluation.fusing import FusionConfig, FusionSearch, fused_score, objective_values, search_fusion
from recmtl.manifest import Manifest
from recmtl.package import Contents, Package, check_output, load_package, verify_package, with_fusion
from recmtl.progress import Progress, Silent
from recmtl.stages.job import untrained
from recmtl.stages.preparing import prepare
from recmtl.tracking import resolved
from recmtl.training import TrainingConfig, resolve_device

__all__ = ["Fused", "fuse", "fuse_package"]

_IN_MEMORY = 5_000_000
"""Rows of a split beyond which its predictions are kept on disk."""


@dataclass(frozen=True)
class Fused:
    """What a search left."""

    package: Path
    """The package that has the score now."""
    search: FusionSearch
    held_out: Mapping[str, Mapping[str, float | None]]
    """What sorts test's rows (``score``, or a task's own prediction) → objective → NDCG@k; empty without test rows."""


def fuse(
    config: RunConfig | None = None,
    *,
    settings: FusionConfig | None = None,
    model: str | None = None,
    data: Path | None = None,
    output: Path | None = None,
    tracking_uri: str | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
) -> Fused:
    """Search a score's weights, and save it in the package.

    Args:
        config: take its own run's model and prepared data.
        settings: formula, objectives, trials; by default the config's ``evaluation.fusion``, else :class:`FusionConfig`
            as it is.
        model: a package's or a run's folder, or a registry URI, instead of the config's.
        data: a prepared dataset, instead of the config's.
        output: the new package's folder; None: the model's own package is replaced, which a registered one cannot be.
        tracking_uri: the store of a URI.
        seed: of the search; by default the config's.
        progress: where to show it; nowhere by default.

    Raises:
        UserError: no such model or data; the data have neither requests nor users to rank within; as
            :func:`recmtl.evaluation.fusing.search_fusion`.
    """
    progress = progress or Silent()
    settings = settings or (config is not None and config.evaluation.fusion) or FusionConfig()
    if config is not None and model is None:
        if not (config.folder / "package").is_dir():
            raise untrained(config.folder, " (of a run with --output DIR, say so with --set output=DIR)")
        model = str(config.folder / "package")
    if model is None:
        raise UserError("fuse: give a config, for its own run's model, or a model with --model")
    if data is None and config is None:
        raise UserError("fuse: --data is missing: the prepared dataset whose validation rows decide")
    if output is None and model.startswith(("models:/", "runs:/")):
        raise UserError(f"fuse: {model} cannot be changed where it is; --output names the new package's folder")
    if output is not None:
        check_output(output)  # before anything is scored
    training = config.training if config is not None else TrainingConfig()
    seed = training.seed if seed is None else seed
    folder = data if data is not None else prepare(config, progress=progress).folder  # type: ignore[arg-type]
    manifest = Manifest.read_from(folder)
    with resolved(model, tracking_uri) as place, TemporaryDirectory(prefix="recmtl-") as work:
        settings.check(verify_package(place).tasks)  # what is wrong is said before anything is scored
        package = load_package(place, device=resolve_device(training.device))
        progress.say(f"scoring validation with {place}")
        scored = _score(package, folder, manifest, "validation", Path(work), progress)
        contents, search = fuse_package(
            place, folder, manifest, scored, settings, seed=seed, output=output, progress=progress
        )
        held_out = _held_out(package, contents, folder, manifest, search, settings.max_rows, Path(work), progress)
    return Fused(contents.folder, search, held_out)


def fuse_package(
    package: Path,
    data: Path,
    manifest: Manifest,
    validation: Scored,
    settings: FusionConfig,
    *,
    seed: int,
    output: Path | None = None,
    progress: Progress | None = None,
) -> tuple[Contents, FusionSearch]:
    """Search a score's weights on rows that are scored already, and save it in the package.

    Args:
        package: the package's folder; its calibration, if any, is in it already.
        data: the prepared dataset.
        manifest: the dataset's.
        validation: the dataset's validation rows with this package's uncalibrated predictions.
        settings: formula, objectives, trials.
        seed: of the search.
        output: the new package's folder; None: replaces the package.
        progress: shows trials.

    Raises:
        UserError: as :func:`fuse`.
    """
    contents = verify_package(package)
    by, groups = _groups(data, manifest, "validation", settings.by)
    search = search_fusion(
        validation,
        groups,
        by,
        contents.tasks,
        settings,
        seed=seed,
        calibration=contents.calibration,
        progress=progress,
    )
    return with_fusion(package, search.fusion, output=output), search


def _groups(
    data: Path, manifest: Manifest, split: str, by: Literal["auto", "request", "user"]
) -> tuple[Literal["request", "user"], NDArray[np.int32]]:
    found = ranking_groups(data, manifest, split, by)
    if found is None:
        raise UserError(f"{data}: these data name neither requests nor users, so there is nothing to rank within")
    return found


def _score(package: Package, data: Path, manifest: Manifest, split: str, work: Path, progress: Progress) -> Scored:
    loader = package.loader(data, manifest, split)
    spill = work / split if loader.rows > _IN_MEMORY else None
    return score(package.model, loader, device=package.device, progress=progress, spill=spill)


def _held_out(
    package: Package,
    contents: Contents,
    data: Path,
    manifest: Manifest,
    search: FusionSearch,
    max_rows: int,
    work: Path,
    progress: Progress,
) -> dict[str, dict[str, float | None]]:
    """The chosen score on test, beside what each objective's own prediction gives."""
    if "test" not in manifest.splits or not manifest.splits["test"].rows:
        return {}
    finding, tasks = search.finding, contents.tasks
    objectives = tuple(finding.points[0].objectives)
    scored = _score(package, data, manifest, "test", work, progress)
    _, groups = _groups(data, manifest, "test", finding.by)
    rankings = {"score": fused_score(scored, search.fusion, tasks, contents.calibration)}
    if search.fusion.calibrated and contents.calibration is not None:
        scored = apply_to(scored, contents.calibration, tasks)
    rankings |= {name: scored.predictions[name] for name in objectives}
    return {
        name: objective_values(scored, groups, tasks, ranking, objectives=objectives, k=finding.k, max_rows=max_rows)
        for name, ranking in rankings.items()
    }
