"""A real SLURM of one node for the tests of this folder; skipped where it is not installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "scripts/slurm_local.sh"
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")


def _missing() -> list[str]:
    path = os.environ["PATH"] + ":/usr/local/sbin:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


def _no_slurm(reason: str) -> None:
    """Skip, but not where SLURM is promised."""
    if os.environ.get("REQUIRE_SLURM"):
        pytest.fail(f"REQUIRE_SLURM is set, but {reason}")
    pytest.skip(reason)


def _free_ports() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return min(probe.getsockname()[1], 65000)


@pytest.fixture(scope="session")
def slurm():
    """Environment in which sbatch, squeue and the rest speak to a cluster of our own."""
    if missing := _missing():
        _no_slurm(f"SLURM is not installed (missing: {', '.join(missing)}); as root: "
                  "scripts/slurm_local.sh install")  # fmt: skip
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    environment = {
        **os.environ, "SLURM_LOCAL_DIR": str(folder), "SLURM_LOCAL_CPUS": "4",
        "SLURM_LOCAL_PORT": str(_free_ports()),
    }  # fmt: skip
    try:
        start = subprocess.run(
            [TOOL, "start"], env=environment, capture_output=True, text=True, encoding="utf-8"
        )
        if start.returncode:
            _no_slurm(f"SLURM does not start here: {start.stderr.strip()[-300:]}")
        listed = subprocess.check_output(
            [TOOL, "run", "env", "-0"], env=environment, text=True, encoding="utf-8"
        )
        yield dict(line.split("=", 1) for line in listed.split("\0") if "=" in line)
    finally:
        subprocess.run([TOOL, "purge"], env=environment, capture_output=True, timeout=60)
