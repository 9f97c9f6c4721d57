"""``python -m recmtl``: the command line, without the working directory on the search path.

Python puts it there for ``-m``; recmtl itself is found by now, and no library is looked for in it.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path and Path(sys.path[0]) == Path.cwd():
        del sys.path[0]

    from recmtl.cli import main

    main()
