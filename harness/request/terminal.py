"""What a command says: signs that a terminal cannot show, and notes beside its answer."""

from __future__ import annotations

import sys
from collections.abc import Iterable


def show_what_can_be_shown() -> None:
    """Print ``?`` for a sign that the terminal's encoding lacks, instead of failing on it.

    For the entry points of processes. Files are UTF-8 whatever the terminal is.
    """
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # None: somebody caught the output
        if reconfigure is not None:
            reconfigure(errors="replace")


def note(problems: Iterable[str]) -> None:
    """Say each problem once, as ``note: ...`` on standard error; the exit status stays."""
    for problem in dict.fromkeys(problems):
        print(f"note: {problem}", file=sys.stderr, flush=True)
