"""Figures from stored records: `python scripts/figures.py table=NAME [bench=...] [doc=...]`.

    python scripts/figures.py table=mini_table1              curves, Pareto front, kept tokens
    python scripts/figures.py table=fig4 kind=ratios         one kind only
    python scripts/figures.py probe model=embedded bench=textvqa docs=[0,1,2]
                                                             one pass of the model for Figs. 1b, 5

Kinds: cost (Fig. 3), ratios (Fig. 4), pareto, kept (Fig. 6), flow (Fig. 5), norms (Fig. 1b).
Options: model= data= as in the table, results=DIR, out=DIR.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vtprune.harness.reporting.figures import command  # noqa: E402

if __name__ == "__main__":
    sys.exit(command.main(sys.argv[1:], __doc__ or ""))
