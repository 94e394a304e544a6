"""What a command says: signs that a terminal cannot or must not get, and notes beside its answer.

Answers, questions, labels and errors come from elsewhere. A terminal obeys some of their signs
(colours, titles, "delete this line", text that runs backwards), so they are printed by name.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

#: signs that are obeyed instead of shown, but tab and the ends of lines; and those that turn the
#: direction of text
_OBEYED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)


def visible(text: str) -> str:
    """The text with every sign that a terminal would obey written out: ``\\x1b[31m``."""
    return _OBEYED.sub(lambda found: _named(found[0]), text)


def visible_line(text: str) -> str:
    """The same on one line: labels, reasons and titles have no ends of lines."""
    return " ".join(visible(text).split())


def _named(sign: str) -> str:
    return f"\\x{ord(sign):02x}" if ord(sign) < 256 else f"\\u{ord(sign):04x}"


class _Visible:
    """A stream that gets no sign it would obey; all else of it is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def show_what_can_be_shown() -> None:
    """Print ``?`` for a sign that the terminal's encoding lacks, and control characters by name.

    For the entry points of processes. Files are UTF-8 whatever the terminal is.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        reconfigure = getattr(stream, "reconfigure", None)  # None: somebody caught the output
        if reconfigure is not None:
            reconfigure(errors="replace")
            if not isinstance(stream, _Visible):
                setattr(sys, name, _Visible(stream))


def note(problems: Iterable[str]) -> None:
    """Say each problem once, as ``note: ...`` on standard error; the exit status stays."""
    for problem in dict.fromkeys(problems):
        print(f"note: {problem}", file=sys.stderr, flush=True)
