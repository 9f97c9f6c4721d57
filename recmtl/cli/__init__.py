"""The command line: one function a verb, each a thin caller of :mod:`recmtl.stages`.

Results go to standard output, progress and warnings to standard error. Exit codes: 0 done; 1 the run failed; 2 the
user's config, arguments or data; 3 trained but not registered, or, of ``plan``, it does not fit.
"""

from recmtl.cli import jobs, others
from recmtl.cli.base import app, exit_code_of, main

__all__ = ["app", "exit_code_of", "jobs", "main", "others"]
