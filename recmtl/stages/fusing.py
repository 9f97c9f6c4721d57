"""The weights of a package's fused score: searched on validation, told beside what they give on test, and saved.

A run's own package is changed as the run's: under its lock, noted in its ``metrics.json``, and with what was done with
the package before, evaluation and registration, to be done again.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recmtl.config import RunConfig, load_config
from recmtl.errors import UserError
from recmtl.etl.slicing import ranking_groups
from recmtl.evaluation import Scored, score
from recmtl.evaluation.calibrating import apply_to
from recmtl.evaluation.fusing import FusionConfig, FusionSearch, fused_score, objective_values, search_fusion
from recmtl.manifest import Manifest
from recmtl.package import Contents, Package, check_output, load_package, verify_package, with_fusion
from recmtl.progress import Progress, Silent
from recmtl.runs import holds_run
from recmtl.stages.job import Job, open_job, untrained
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

    Where the package is a config's own run's and replaced, the run is held meanwhile, and the next ``run`` evaluates
    and registers the new package.

    Args:
        config: take its own run's model and prepared data.
        settings: formula, objectives, trials; by default the config's ``evaluation.fusion``, else :class:`FusionConfig`
            as it is.
        model: a package's or a run's folder, or a registry URI, instead of the config's.
        data: a prepared dataset, instead of the config's; not for a run's own package where it is.
        output: the new package's folder; None: the model's own package is replaced, which a registered one cannot be.
        tracking_uri: the store of a URI.
        seed: of the search; by default the config's.
        progress: where to show it; nowhere by default.

    Raises:
        UserError: no such model or data; another process works in the run's folder; the data have neither requests nor
            users to rank within; as :func:`recmtl.evaluation.fusing.search_fusion`.
    """
    progress = progress or Silent()
    settings = settings or (config is not None and config.evaluation.fusion) or FusionConfig()
    own = config is not None and model is None and output is None
    if config is not None and model is None:
        if not holds_run(config.folder):
            raise _untrained(config)
        if own and data is not None:
            raise UserError(
                "fuse: --data goes with --model or --output; a config's own run is fused on its own validation rows"
            )
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
    with ExitStack() as stack:
        job = None
        if own:
            assert config is not None
            job = stack.enter_context(open_job(_as_trained(config), None, False, progress))
            if not job.folder.is_done("train"):
                raise _untrained(config)
            folder, manifest = job.prepared.folder, job.manifest
        elif data is not None:
            folder, manifest = data, Manifest.opened(data)
        else:
            assert config is not None
            prepared = prepare(config, progress=progress)
            folder, manifest = prepared.folder, prepared.manifest
        place = job.folder.package if job is not None else stack.enter_context(resolved(model, tracking_uri))
        work = Path(stack.enter_context(TemporaryDirectory(prefix="recmtl-")))
        settings.check(verify_package(place).tasks)  # what is wrong is said before anything is scored
        package = load_package(place, device=resolve_device(training.device))
        progress.say(f"scoring validation with {place}")
        scored = _score(package, folder, manifest, "validation", work, progress)
        contents, search = fuse_package(
            place,
            folder,
            manifest,
            scored,
            settings,
            seed=seed,
            output=output,
            progress=progress,
            before=None if job is None else lambda contents, search: _note(job, contents, search),
        )
        held_out = _held_out(package, contents, folder, manifest, search, settings.max_rows, work, progress)
    return Fused(contents.folder, search, held_out)


def _untrained(config: RunConfig) -> UserError:
    return untrained(config.folder, " (of a run with --output DIR, say so with --set output=DIR)")


def _as_trained(config: RunConfig) -> RunConfig:
    """The config under which its run is found: with the fusion that it was trained with, whatever is searched now."""
    try:
        trained = load_config(config.folder / "config.resolved.yaml").evaluation
    except UserError:  # damaged: it is written anew when the run is opened
        return config
    evaluation = config.evaluation.model_copy(update={"fusion": trained.fusion})
    return config.model_copy(update={"evaluation": evaluation})


def _note(job: Job, contents: Contents, search: FusionSearch) -> None:
    """Write down in the run what its package is about to have; what was said of the present package is said no more."""
    finding = search.finding.model_dump(mode="json")
    if (contents.fusion, job.folder.read_metrics().get("fusion")) == (search.fusion, finding):
        return
    # Before the package: a run that a kill leaves here is evaluated again for nothing, and is not told a lie about.
    job.folder.reopen("evaluate", "register", "run")
    job.folder.update_metrics({"fusion": finding})


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
    before: Callable[[Contents, FusionSearch], None] | None = None,
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
        before: called with the package as it is and what was found, just before that is saved.

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
    if before is not None:
        before(contents, search)
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
