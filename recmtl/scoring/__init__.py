"""Raw files scored by a package into a folder of Parquet: larger than memory, in processes, resumable, whole or not.

In: a :class:`recmtl.package.Package`, and Parquet or CSV files. Out: their keys and predictions, row for row, or the
best rows of each group. :mod:`~recmtl.scoring.inputs` cuts the inputs into pieces, :mod:`~recmtl.scoring.pieces` scores
one, :mod:`~recmtl.scoring.workers` does so in several processes, :mod:`~recmtl.scoring.ranking` takes the best, and
:mod:`~recmtl.scoring.files` is the whole job and what makes it resumable.

The pieces follow from the inputs alone, and every batch of a piece is scored by one thread from beginning to end. So
the output's bytes depend neither on the number of processes or threads nor on how often the job was interrupted.
"""

from recmtl.scoring.files import Predictions, predict_files
from recmtl.scoring.inputs import csv_format, encoding_of
from recmtl.scoring.ranking import TopK

__all__ = ["Predictions", "TopK", "csv_format", "encoding_of", "predict_files"]
