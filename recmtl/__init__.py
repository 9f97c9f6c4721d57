"""recmtl trains one recommender for several objectives at once, from event logs to a registered model.

The public names are few: :func:`load_config`, then :func:`prepare`, :func:`train`, :func:`evaluate`, :func:`run` and
:func:`predict`; :func:`fuse` and :func:`export` change a package; :func:`promote`, :func:`rollback` and :func:`history`
ask the registry. They load what they need when they are first used; importing recmtl imports none of it.

The rooms, from the top down (an arrow never points up):

================================ ====================================================================
:mod:`recmtl.cli`                the command line
:mod:`recmtl.stages`             config in; prepare, train, evaluate, register, promote, predict out
:mod:`recmtl.config`             the whole run in one YAML
:mod:`recmtl.training`           optimisers, schedules, checkpoints, the loop
:mod:`recmtl.evaluation`         metrics, intervals, slices, calibration, insight, the report
:mod:`recmtl.tracking`           the MLflow run, its local journal, the registry and its gate
:mod:`recmtl.scoring`            files of raw rows to predictions
:mod:`recmtl.answering`          a request to a served model, answered or refused
:mod:`recmtl.exporting`          a package for other runtimes
:mod:`recmtl.package`            the model package: what serves is what was trained
:mod:`recmtl.loading`            prepared shards to batches
:mod:`recmtl.distributed`        the ranks of a job: joining them, starting them, dealing tables to them
:mod:`recmtl.model`              features, tower and heads put together
:mod:`recmtl.features`           tables and numbers to one vector per row
:mod:`recmtl.towers`             architectures, one per file
:mod:`recmtl.balancing`          loss balancers, one per file
:mod:`recmtl.metrics`            metrics, one per file
:mod:`recmtl.etl`                raw logs to prepared rows
================================ ====================================================================
"""

import os
from typing import TYPE_CHECKING, Any

from recmtl.errors import NotRegisteredError, RecmtlError, RefusedError, RunError, UserError

if TYPE_CHECKING:
    from recmtl.config import RunConfig, load_config
    from recmtl.stages import (
        Predictions,
        RunResult,
        evaluate,
        export,
        fuse,
        history,
        predict,
        prepare,
        promote,
        rollback,
        run,
        train,
    )

__all__ = [
    "NotRegisteredError",
    "Predictions",
    "RecmtlError",
    "RefusedError",
    "RunConfig",
    "RunError",
    "RunResult",
    "UserError",
    "__version__",
    "evaluate",
    "export",
    "fuse",
    "history",
    "load_config",
    "predict",
    "prepare",
    "promote",
    "rollback",
    "run",
    "train",
]

__version__ = "0.1.0"

# OpenMP's threads spin while they wait for each other, and torch's do so at every operator: where another process or
# the loader's thread wants the core, they burn its time (2 cores at load 5: 3,000 to 8,000 rows/s spinning, 28,000 to
# 31,000 waiting). Not spinning at all costs as well: a step has some hundred parallel regions, a few microseconds apart
# (batch 1024, a quiet machine: 26,000 rows/s without, 33,000 with a thousand turns, 31,000 with a hundred thousand).
# OpenMP reads this once, when torch is loaded, so it is set here; a value of the user's own stands.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # of any OpenMP
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # of GNU's, torch's own: a microsecond or so, instead of none

_HOMES = {"RunConfig": "recmtl.config", "load_config": "recmtl.config"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        return getattr(importlib.import_module(_HOMES.get(name, "recmtl.stages")), name)
    raise AttributeError(f"module 'recmtl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
