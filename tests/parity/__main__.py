"""Print the table of all comparisons: ``python -m tests.parity [WORD]``.

With a WORD only those whose name holds it, and every difference in full.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.parity import compare
from tests.parity.comparisons import ALL


def main(word: str = "") -> None:
    chosen = [one for one in ALL if word in f"{one.engine}:{one.name}"]
    with tempfile.TemporaryDirectory() as folder:
        suite = compare.Suite(Path(folder), chosen)
        for engine in sorted({one.engine for one in chosen}):
            start = time.perf_counter()
            suite.run(engine)
            print(f"{engine}: {time.perf_counter() - start:.0f} s")
        counted = [suite.count(one) for one in chosen]
    if word:
        for one in counted:
            for line in one.details[:14]:
                print(one.comparison.name, line)
    print(compare.table(counted))


if __name__ == "__main__":
    main(*sys.argv[1:])
