"""`python scripts/methods.py --help`: the same as `vtprune methods`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from vtprune.commands import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["methods", *sys.argv[1:]]))
