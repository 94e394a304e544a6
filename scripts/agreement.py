"""`python scripts/agreement.py --help`: the same as `vtprune agreement`."""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from vtprune.commands import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(["agreement", *sys.argv[1:]]))
