"""``python -m vtprune`` is the command ``vtprune``."""

import sys

from vtprune.commands import main

if __name__ == "__main__":
    sys.exit(main())
