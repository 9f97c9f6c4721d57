"""Raw logs to a prepared dataset."""

from pathlib import Path

from recmtl.config import RunConfig
from recmtl.errors import UserError
from recmtl.etl.days import prepare_day
from recmtl.etl.prepare import Prepared
from recmtl.etl.prepare import prepare as prepare_data
from recmtl.etl.sources import SOURCES
from recmtl.progress import Progress, Silent

__all__ = ["missing_input", "prepare"]


def missing_input(config: RunConfig) -> str | None:
    """What to do about the first of the config's files that is not there, or None; nothing is read."""
    try:
        SOURCES[config.data.source.kind].inputs(config.data.source)  # type: ignore[attr-defined]
    except UserError as error:
        return str(error)
    return None


def prepare(config: RunConfig, *, output: Path | None = None, progress: Progress | None = None) -> Prepared:
    """Turn raw logs into a prepared dataset; what is prepared already is left as it is.

    Args:
        config: the run.
        output: where to, instead of ``data.prepared``.
        progress: where to show it; nowhere by default.

    Raises:
        UserError: the logs, or their description in the config, are wrong.
    """
    if config.daily is not None and config.daily.date is not None:
        return prepare_day(
            # A day is divided by what was known when, whatever a `run` of the same config does.
            config.data.model_copy(update={"split": type(config.data.split)()}),
            config.explicit_features,
            config.tasks,
            config.daily,
            name=config.name,
            folder=output,
            progress=progress or Silent(),
        )
    return prepare_data(
        config.data,
        config.explicit_features,
        config.tasks,
        name=config.name,
        folder=output,
        progress=progress or Silent(),
    )
