"""Runs Python commands in forks of one process that has imported the large packages already.

    python -m tests.fork_server MODULE...

Reads one request a line, ``{"command", "cwd", "env", "out", "err", "timeout"}``, and answers each
with one line, ``{"status"}``. A fork is a fresh process in all that a command changes: working
directory, environment, streams, imported modules, Hydra's state. What it shares is what its parent
had imported, so environment that is only read at import cannot be changed for it; that is refused.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

#: read when a package is imported: package, and how the names of its variables begin; ``sys``
#: stands for the interpreter, which reads its own before the first line
READ_AT_IMPORT = {
    "sys": ("PYTHON", "LC_", "LANG", "LD_"),
    "huggingface_hub": ("HF_", "HUGGINGFACE_", "HUB_"),
    "transformers": ("TRANSFORMERS_", "USE_"),
    "torch": ("OMP_", "MKL_", "CUDA_", "TORCH_", "PYTORCH_"),
}
#: begin as those do, but a fork is given the one, and the other is for its own children: cv2 adds
#: to it when it is imported, in whatever test that happens
HONOURED = {"PYTHONPATH", "LD_LIBRARY_PATH"}
REFUSED = 97  # exit status of a command that would not see its own environment


def main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")  # commands write to 1 and 2
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        if (child := os.fork()) == 0:
            _become(request)
            _run(request["command"])
            return  # the interpreter ends as it does after any script
        print(json.dumps({"status": _wait(child, request["timeout"])}), file=replies, flush=True)


def _wait(child: int, timeout: int) -> int:
    """Exit status as subprocess gives it; a command that takes too long is killed."""

    def kill(*_: Any) -> None:
        os.killpg(child, signal.SIGKILL)

    before = signal.signal(signal.SIGALRM, kill)
    signal.alarm(timeout)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _become(request: dict[str, Any]) -> None:
    """The process that the request asks for."""
    os.setsid()
    for number, name, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], os.O_WRONLY),
        (2, request["err"], os.O_WRONLY),
    ):
        opened = os.open(name, flags)
        os.dup2(opened, number)
        os.close(opened)
    if unseen := _unseen(request["env"]):
        print(f"needs a process of its own: {', '.join(unseen)}", file=sys.stderr, flush=True)
        os._exit(REFUSED)
    added = request["env"].get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[:] = list(dict.fromkeys([*filter(None, added), *sys.path]))
    importlib.invalidate_caches()


def _unseen(environment: dict[str, str]) -> list[str]:
    """Variables with another value than when the package was imported that reads them."""
    changed = {k for k, v in {**os.environ, **environment}.items() if os.environ.get(k) != v}
    changed |= os.environ.keys() - environment.keys()
    begins = tuple(b for name, bs in READ_AT_IMPORT.items() if name in sys.modules for b in bs)
    return sorted(name for name in changed - HONOURED if name.startswith(begins))


def _run(command: list[str]) -> None:
    """As ``python *command``: a script, ``-m module`` or ``-c code``, each with its arguments."""
    first, *rest = command
    main_module = sys.modules["__main__"]
    if first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        exec(compile(rest[0], "<string>", "exec"), main_module.__dict__)
    elif first == "-m":
        sys.argv = rest
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(first).resolve().parent))
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main()
