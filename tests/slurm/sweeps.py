"""What the drills sweep over: a tiny checkpoint, a method that takes its time, few samples."""

from __future__ import annotations

from pathlib import Path

from tests import checkpoint_tools


def arguments(folder: Path, samples: int) -> list[str]:
    """Overrides common to all cells; the checkpoint is written below ``folder``."""
    return [
        f"model.path={checkpoint_tools.save(folder / 'tiny')}", "method=custom",
        "method._target_=tests.slurm.methods.Drill", f"data.samples={samples}",
        "decoding.max_new_tokens=2", "batch_size=2", "model.threads=1",
    ]  # fmt: skip
