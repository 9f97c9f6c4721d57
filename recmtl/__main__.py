"""``python -m recmtl``: the command line, as torchrun starts it."""

from recmtl.cli import main

if __name__ == "__main__":
    main()
