"""The launchers of `hydra/launcher=...`. Hydra takes plugins from this package only."""

from typing import Any

from hydra.plugins.launcher import Launcher


class _SweepLauncher(Launcher):
    """Plans the cells of a multirun, divides them into jobs, and has them run somewhere."""

    where = ""  # a way of vtprune.harness.sweep.launchers

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.config: Any = None
        self.hydra_context: Any = None
        self.task_function: Any = None

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Called by Hydra before :meth:`launch`."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Any, initial_job_idx: int) -> Any:
        """Run all jobs; what came out is read from disk."""
        from vtprune.harness.sweep import launchers  # Hydra imports this file at every start

        return launchers.launch(self, job_overrides, initial_job_idx)


class Here(_SweepLauncher):
    """``basic``: in this process."""

    where = "here"


class Joblib(_SweepLauncher):
    """``joblib``: in some processes of this machine."""

    where = "joblib"


class SubmititLocal(_SweepLauncher):
    """``submitit_local``: every job at once on this machine."""

    where = "submitit_local"


class SubmititSlurm(_SweepLauncher):
    """``submitit_slurm``: on SLURM, and wait."""

    where = "submitit_slurm"


class SlurmArray(_SweepLauncher):
    """``slurm_array``: on SLURM, and return at once."""

    where = "slurm_array"
