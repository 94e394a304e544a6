"""Python commands as a user gives them, without paying for their imports each time.

``run("run.py", "ratio=0.9")`` is ``subprocess.run([sys.executable, "run.py", "ratio=0.9"], ...)``
in a fork of a process that has imported the large packages (see :mod:`tests.fork_server`). Tests of
what a process imports, of its death or of its signals start true processes.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from tests.fork_server import REFUSED

ROOT = Path(__file__).resolve().parent.parent
#: what a server imports: the command line alone, or all that a cell of a small model needs
CLI = ("vtprune.harness.cli",)
CELL = (
    "vtprune.harness.cli",
    "vtprune.harness.cell.run",
    "vtprune.harness.evaluation.engines.lmms_eval",
    "vtprune.models",
    "transformers.models.llava.modeling_llava",
    "transformers.models.llava.processing_llava",
    "transformers.models.clip.modeling_clip",
    "transformers.models.llama.modeling_llama",
)


def run(
    *command: str,
    loaded: tuple[str, ...] = CELL,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: int = 300,
) -> subprocess.CompletedProcess[str]:
    """Run ``python *command``; ``env`` is the whole environment, as for subprocess.

    Raises:
        AssertionError: the command sets a variable that its imports have read already.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        out.touch(), err.touch()
        request = {
            "command": [str(part) for part in command],
            "cwd": str(cwd),
            "env": dict(os.environ if env is None else env),
            "out": str(out),
            "err": str(err),
            "timeout": timeout,
        }
        status = _ask(_server(loaded), request)
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in (out, err)]
    assert status != REFUSED, texts[1]
    return subprocess.CompletedProcess([sys.executable, *command], status, *texts)


@cache
def _server(loaded: tuple[str, ...]) -> subprocess.Popen[str]:
    """One a test process: it begins at the first command and ends with the tests."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.fork_server", *loaded], cwd=ROOT, text=True, encoding="utf-8",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    atexit.register(server.communicate)  # closes its input, which ends it
    return server


def _ask(server: subprocess.Popen[str], request: dict[str, object]) -> int:
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, f"the process that runs commands has ended: {server.poll()}"
    return int(json.loads(answer)["status"])
