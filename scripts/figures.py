"""`python scripts/figures.py --help`: the same as `vtprune figures`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from vtprune.commands import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["figures", *sys.argv[1:]]))
