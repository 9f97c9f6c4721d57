"""The command line: one function a verb, each a thin caller of :mod:`recmtl.stages`.

Results go to standard output, progress and warnings to standard error. Exit codes: 0 done; 1 the run failed; 2 the
user's config, arguments or data; 3 a no: trained but not registered, refused by the gate, or, of ``plan``, it does not
fit. Verbs are listed in the order in which their files are imported.
"""

from recmtl.cli import jobs

# isort: split
from recmtl.cli import fusing

# isort: split
from recmtl.cli import exporting

# isort: split
from recmtl.cli import promoting

# isort: split
from recmtl.cli import others, reporting
from recmtl.cli.base import app, exit_code_of, main

__all__ = ["app", "exit_code_of", "exporting", "fusing", "jobs", "main", "others", "promoting", "reporting"]
