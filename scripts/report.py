"""A table as one HTML page: `python scripts/report.py table=NAME [samples=40] [out=FILE]`.

Tables, figures and a browser of samples, in a file that opens anywhere without a server. Options:
model= data= as in the table, results=DIR.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vtprune.harness.reporting.report import command  # noqa: E402

if __name__ == "__main__":
    sys.exit(command.main(sys.argv[1:], __doc__ or ""))
