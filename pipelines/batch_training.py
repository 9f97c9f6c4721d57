"""The daily job: logs in, a registered challenger out. For any scheduler: a function to call, or a script to run.

    python pipelines/batch_training.py CONFIG [a.b.c=value ...]

Run again after a crash or a kill, it goes on where it was; run again after it finished, it says so.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from recmtl import RunResult, load_config, run
from recmtl.cli import exit_code_of
from recmtl.progress import for_stream


def batch_training(config: Path | str, overrides: Sequence[str] = (), output: Path | None = None) -> RunResult:
    """Prepare, train, evaluate and register what a config describes.

    Raises:
        recmtl.UserError: the config, its arguments or the data are wrong.
        recmtl.RunError: the run failed.
        recmtl.NotRegisteredError: trained and kept, but the registry was away.
    """
    return run(load_config(config, overrides), output=output, progress=for_stream())


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    with exit_code_of():
        print(batch_training(sys.argv[1], sys.argv[2:]).folder)
