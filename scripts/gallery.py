"""Write docs/methods.md and its picture from the registry: ``python scripts/gallery.py``."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

if __name__ == "__main__":
    from vtprune.harness.reporting.gallery import write

    for path in write(ROOT / "docs" / "methods.md", ROOT / "models" / "embedded" / "llava"):
        print(path.relative_to(ROOT))
