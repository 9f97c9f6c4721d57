"""Score files of raw rows with a registered model, as a nightly job does.

python pipelines/batch_scoring.py MODEL OUTPUT INPUT [INPUT ...]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from recmtl import Predictions, predict
from recmtl.cli import exit_code_of
from recmtl.progress import for_stream


def batch_scoring(
    model: str, inputs: Sequence[str], output: Path | str, tracking_uri: str | None = None
) -> Predictions:
    """Score Parquet or CSV files and write Parquet: the keys and one column per task.

    Raises:
        recmtl.UserError: no such model or input, or a column that cannot be what the model's schema says.
    """
    return predict(model=model, inputs=inputs, output=Path(output), tracking_uri=tracking_uri, progress=for_stream())


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    with exit_code_of():
        print(batch_scoring(sys.argv[1], sys.argv[3:], sys.argv[2]).folder)
