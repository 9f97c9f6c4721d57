"""Evaluate a model on a config's test rows: its own run's, or any other package or registered version.

python pipelines/offline_evaluation.py CONFIG [--model PATH_OR_URI] [a.b.c=value ...]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from recmtl import RunResult, evaluate, load_config
from recmtl.cli import exit_code_of
from recmtl.progress import for_stream


def offline_evaluation(
    config: Path | str, overrides: Sequence[str] = (), model: str | None = None, output: Path | None = None
) -> RunResult:
    """Evaluate on the config's prepared test rows; ``model`` None is the config's own run.

    Raises:
        recmtl.UserError: nothing is trained yet, or the model or the config is wrong.
    """
    return evaluate(load_config(config, overrides), model=model, output=output, progress=for_stream())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--model")
    arguments = parser.parse_args()
    with exit_code_of():
        print(offline_evaluation(arguments.config, arguments.overrides, arguments.model).folder)
