"""Evaluate a model on a config's test rows: its own run's, or other packages and registered versions, side by side.

python pipelines/offline_evaluation.py CONFIG [--model [NAME=]MODEL ...] [--champion MODEL] [a.b.c=value ...]

Ends with the folder of the report, and, where the config has a gate, with exit code 3 if that refuses the model.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from recmtl import RunResult, evaluate, load_config
from recmtl.cli import exit_code_of
from recmtl.progress import for_stream


def offline_evaluation(
    config: Path | str,
    overrides: Sequence[str] = (),
    model: str | Sequence[str] | None = None,
    output: Path | None = None,
    champion: str | None = None,
) -> RunResult:
    """Evaluate on the config's prepared test rows; ``model`` None is the config's own run.

    Raises:
        recmtl.UserError: nothing is trained yet, or a model or the config is wrong.
    """
    return evaluate(
        load_config(config, overrides), model=model, champion=champion, output=output, progress=for_stream()
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--model", action="append")
    parser.add_argument("--champion")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_intermixed_args()
    with exit_code_of():
        done = offline_evaluation(
            arguments.config,
            arguments.overrides,
            arguments.model,
            output=arguments.output,
            champion=arguments.champion,
        )
        print(done.folder)
        if done.report is not None and done.report.verdict.decision == "refuse":
            sys.exit(3)
