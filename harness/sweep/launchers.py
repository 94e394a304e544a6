"""Where the jobs of a sweep run: in this process, in local ones, on SLURM."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from vtprune import places
from vtprune.harness.cell import prepare, publish, ranks
from vtprune.harness.request import several, words
from vtprune.harness.request.check import RETRY, STALE
from vtprune.harness.request.errors import HarnessError
from vtprune.harness.request.request import Request
from vtprune.harness.store import index, provenance
from vtprune.harness.store.cell import stands
from vtprune.harness.store.schema import Result
from vtprune.harness.sweep import local, slurm
from vtprune.harness.sweep import plan as plans
from vtprune.harness.sweep.outcomes import DONE, FAILED, Outcomes
from vtprune.harness.sweep.status import short
from vtprune.harness.sweep.worker import JOB_LOG, work


def launch(launcher: Any, job_overrides: Sequence[Sequence[str]], first: int) -> list[Any]:
    """Plan the cells of a multirun and run them as the launcher says."""
    from hydra.core.utils import JobReturn, JobStatus, setup_globals

    setup_globals()
    _check_group(launcher.where)
    items = plans.without_copies(_items(launcher, job_overrides, first))
    settings = launcher.config.sweep
    before = finished(items)
    jobs = plans.divide(items, settings.group_by, settings.cells_per_job, before)
    folder = Path(str(launcher.config.hydra.sweep.dir)).absolute()
    if first:  # sweeper.max_batch_size: each batch is a plan of its own
        folder = folder / f"from-{first}"
    plan = plans.Plan(folder, tuple(items), tuple(jobs), " ".join(sys.argv[1:]))
    if not ranks.secondary():
        plan.save()
        _note_finished(plan, before, launcher.where)
    if plan.jobs:
        options = {k: _plain(v) for k, v in launcher.options.items()}
        WAYS[launcher.where](plan, options)
    made = [JobReturn(overrides=list(o), status=JobStatus.COMPLETED) for o in job_overrides]
    for one in made:
        one.return_value = None
    return made


def _check_group(where: str) -> None:
    if ranks.grouped() and where != "here":
        raise HarnessError(
            "several processes on one cell (torchrun) go with hydra/launcher=basic only"
        )


def finished(items: Sequence[plans.Item]) -> dict[int, Result]:
    """Stored results of the cells that need no run, by place."""
    if ranks.grouped():
        return {}  # the processes of a group decide about each cell together
    found = {}
    for place, item in enumerate(items):
        if item.directory is None:
            continue
        stored = index.read(Path(item.directory))
        if stored and stored.result and stands(stored.result, item.request):
            found[place] = stored.result
    return found


def _note_finished(plan: plans.Plan, before: dict[int, Result], where: str) -> None:
    """Say, and write down, which cells are not run because their results are there."""
    if not before:
        return
    outcomes = Outcomes(plan.folder)
    for place, result in before.items():
        outcomes.note(place, DONE, seconds=0.0, before=True, result=result)
    verb = "run" if where == "here" else "submit"
    rest = "" if plan.jobs else f": nothing to {verb}"
    print(f"{len(before)} of {len(plan.items)} cells are finished already{rest} "
          "(force=true runs them again)", flush=True)  # fmt: skip
    if stale := sum(_is_stale(plan.items[place], result) for place, result in before.items()):
        print(f"note: the code of their methods, or of models/, changed since {stale} of them were "
              f"computed; force={STALE} runs those again")  # fmt: skip
    if partial := sum(bool(result["n_failed"]) for result in before.values()):
        print(f"note: {partial} of them have failed samples; force={RETRY} asks those again")
    if unseen := sum(_unpublished(plan.items[place], r) for place, r in before.items()):
        print(f"note: {unseen} of them are not in W&B yet: {places.command('sync')}")


def _is_stale(item: plans.Item, result: Result) -> bool:
    return provenance.is_stale(result["provenance"], item.request.config["method"])


def _unpublished(item: plans.Item, result: Result) -> bool:
    logger = item.request.logger
    return logger.name == "wandb" and not publish.published(Path(result["directory"]), logger)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _items(
    launcher: Any, job_overrides: Sequence[Sequence[str]], first: int
) -> list[plans.Item]:  # fmt: skip
    from hydra.core.hydra_config import HydraConfig

    items = []
    outer = HydraConfig.instance().cfg
    common = set.intersection(*(set(o) for o in job_overrides))
    for number, overrides in enumerate(job_overrides, first):
        cfg = launcher.hydra_context.config_loader.load_sweep_config(
            launcher.config, words.own_bench(words.own_method(overrides))
        )
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = number
        HydraConfig.instance().set_config(cfg)
        try:
            parts = several.parts(_task_config(cfg))
            varying = [o for o in overrides if o not in common]
            for part in parts:
                own = [*varying, f"bench={part.bench}"] if len(parts) > 1 else varying
                items.append(_item(number, " ".join(own) or "the only job", part))
        finally:
            HydraConfig.instance().cfg = outer
    return items


def _task_config(cfg: DictConfig) -> DictConfig:
    task = copy.deepcopy(cfg)
    with read_write(task), open_dict(task):
        del task["hydra"]
    return task


def _item(number: int, overrides: str, part: Any) -> plans.Item:
    config = several.plain(part.config)
    choices = {k: v for k, v in part.choices.items() if not k.startswith("hydra/")}
    key = directory = None
    if Request(config).task == "cell":
        key, directory = prepare.where(config, choices)
    return plans.Item(number, overrides, part.bench, config, choices, key, directory)




def _here(plan: plans.Plan, options: dict[str, Any]) -> None:
    for job in plan.jobs:
        work(plan, job)


def _joblib(plan: plans.Plan, options: dict[str, Any]) -> None:
    def run(jobs: local.Jobs, number: int) -> None:
        _supervised(plan, number, jobs)

    local.run_all(run, len(plan.jobs), local.at_once(options["n_jobs"]))


def _supervised(plan: plans.Plan, job: int, jobs: local.Jobs) -> None:
    logs = plan.folder / "logs"
    logs.mkdir(exist_ok=True)
    log = logs / f"job-{job}.log"
    command = places.module("harness.sweep.supervisor", str(plan.folder), str(job))
    status = jobs.run(command, log)
    if status is not None:
        _give_up(plan, job, f"exit status {status}", str(log))


class Job:
    """What submitit runs: one job of a plan; queued again when time runs out or it must yield."""

    def __init__(self, folder: Path, job: int) -> None:
        self.folder, self.job = folder, job

    def __call__(self) -> int:
        import submitit

        from vtprune.harness.sweep.supervisor import supervise

        os.environ[JOB_LOG] = str(submitit.JobEnvironment().paths.stderr)
        return supervise(self.folder, self.job)

    def checkpoint(self) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self)


_SHARED = (
    "timeout_min", "gpus_per_node", "cpus_per_task", "mem_gb", "name", "tasks_per_node", "nodes",
    "stderr_to_stdout",
)  # fmt: skip


def _submitit(cluster: str, plan: plans.Plan, options: dict[str, Any]) -> None:
    import submitit

    options = {k: v for k, v in options.items() if v is not None}
    folder, extra = options.pop("submitit_folder"), {}
    if cluster == "slurm":
        slurm.check_accounting()
        extra["slurm_max_num_timeout"] = options.pop("max_num_timeout")
    executor = submitit.AutoExecutor(folder, cluster=cluster, **extra)
    executor.update_parameters(
        **{k if k in _SHARED else f"{cluster}_{k}": v for k, v in options.items()}
    )
    # A job's process reads Job from a pickle, by name: it must find this package as we do.
    os.environ |= {k: v for k, v in places.environment().items() if k == "PYTHONPATH"}
    with executor.batch():
        jobs = [executor.submit(Job(plan.folder, number)) for number in range(len(plan.jobs))]
    logs = short(str(folder).removesuffix("/%j"))
    print(f"jobs: {', '.join(job.job_id for job in jobs)}; logs: {logs}", flush=True)
    for number, job in enumerate(jobs):
        try:
            job.result()
        except Exception as error:
            _give_up(plan, number, _last_line(error), str(job.paths.stderr))


def _last_line(error: Exception) -> str:
    """What happened: submitit hands on a traceback, or a report whose first line says it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip("- \n")]
    own = [line for line in lines if line.startswith("submitit.core.utils.")]
    return own[-1].partition(": ")[2] if own else " ".join(lines[:2]) or type(error).__name__


def _give_up(plan: plans.Plan, job: int, reason: str, log: str) -> None:
    """A job is over before its cells are: they failed, and this is why.

    If it lives after all, what its worker notes later stands.
    """
    outcomes = Outcomes(plan.folder)
    for place in plan.jobs[job]:
        if not outcomes.settled(place):
            how = "in the middle of it" if outcomes.get(place) else "before it was begun"
            outcomes.note(place, FAILED, error=f"its job ended {how}: {reason}", log=log)


def _local(plan: plans.Plan, options: dict[str, Any]) -> None:
    _submitit("local", plan, options)


def _slurm(plan: plans.Plan, options: dict[str, Any]) -> None:
    _need("sbatch")
    _submitit("slurm", plan, options)


def _array(plan: plans.Plan, options: dict[str, Any]) -> None:
    _need("sbatch")
    slurm.submit(plan, options)


def _need(program: str) -> None:
    if shutil.which(program) is None:
        raise HarnessError(
            f"{program} is not on the PATH: no SLURM here; hydra/launcher=basic, joblib or "
            "submitit_local run on this machine"
        )


WAYS = {
    "here": _here,
    "joblib": _joblib,
    "submitit_local": _local,
    "submitit_slurm": _slurm,
    "slurm_array": _array,
}
