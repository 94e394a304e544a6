"""A sweep as a SLURM job array that needs no parent: every job looks after itself."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

from vtprune import places
from vtprune.harness.request.errors import HarnessError
from vtprune.harness.request.files import VARIABLE as FOLDERS
from vtprune.harness.sweep.plan import Plan
from vtprune.harness.sweep.supervisor import REQUEUE
from vtprune.harness.sweep.worker import JOB_LOG

JOB_FILE = "slurm-job"
_FLAGS = {
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint",
    "exclude": "exclude", "gpus_per_node": "gpus-per-node", "cpus_per_task": "cpus-per-task",
    "timeout_min": "time", "name": "job-name",
}  # fmt: skip


def script(plan: Plan, options: dict[str, Any]) -> str:
    """The batch script of a plan.

    The shell only passes signals on and has the job queued again: when SLURM gives notice (time
    over, preempted) and when the supervisor was killed, at most ``max_requeue`` times.
    """
    logs = plan.folder / "logs"
    flags = {_FLAGS[k]: v for k, v in options.items() if k in _FLAGS and v is not None}
    if options.get("mem_gb") is not None:
        flags["mem"] = f"{options['mem_gb']}G"
    flags |= {
        "array": f"0-{len(plan.jobs) - 1}%{options['array_parallelism']}",
        "signal": f"B:USR2@{options['signal_delay_s']}",
        "output": f"{logs}/job-%a.log",
        "open-mode": "append",
        "requeue": None,
        **(options.get("additional_parameters") or {}),
    }
    head = [f"#SBATCH --{k}" + ("" if v is None else f"={v}") for k, v in flags.items()]
    command = shlex.join(places.module("harness.sweep.supervisor", str(plan.folder)))
    body = _BODY.format(
        environment=_environment(), command=command, requeue=REQUEUE,
        most=options["max_requeue"], job_log=JOB_LOG, logs=shlex.quote(str(logs)),
    )  # fmt: skip
    return "\n".join(["#!/bin/bash", *head, *(options.get("setup") or []), body])


def _environment() -> str:
    """What the job's Python needs to find: SLURM's --export may leave it out.

    A job begins in the directory it was submitted from, and stays there.
    """
    made = places.environment()
    lines = [f"export {FOLDERS}={shlex.quote(made[FOLDERS])}"] if made.get(FOLDERS) else []
    if ahead := made.get("PYTHONPATH"):
        lines.append(f"export PYTHONPATH={shlex.quote(ahead)}${{PYTHONPATH:+:$PYTHONPATH}}")
    return "\n".join(lines)


_BODY = """\
{environment}
export {job_log}={logs}/job-$SLURM_ARRAY_TASK_ID.log
{command} "$SLURM_ARRAY_TASK_ID" &
child=$!
trap 'kill -USR2 $child 2>/dev/null' USR2 TERM
wait $child; status=$?
while kill -0 $child 2>/dev/null; do wait $child; status=$?; done
trap '' USR2 TERM
if [ $status -eq {requeue} ] || [ $status -ge 128 ]; then
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {most} ]; then
        echo "queued again after status $status (start ${{SLURM_RESTART_COUNT:-0}})"
        # Not SLURM_JOB_ID: one task of an array has the array's own number there, which means all.
        scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" && sleep 60
    fi
fi
exit $status
"""


def submit(plan: Plan, options: dict[str, Any]) -> str:
    """Submit the array; returns its job id, which is also kept in the sweep's folder."""
    (plan.folder / "logs").mkdir(exist_ok=True)
    file = plan.folder / "job.sh"
    file.write_text(script(plan, options), encoding="utf-8")
    done = subprocess.run(
        ["sbatch", "--parsable", str(file)],
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
    )
    if done.returncode:
        raise HarnessError(f"sbatch refused the sweep: {done.stderr.strip()}")
    number = done.stdout.strip().partition(";")[0]
    (plan.folder / JOB_FILE).write_text(number + "\n", encoding="utf-8")
    return number


def check_accounting() -> None:
    """Refuse to wait for jobs where submitit could never learn that one was killed."""
    try:
        done = subprocess.run(["sacct", "-n", "-j", "1"], capture_output=True, timeout=60)
        works = done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        works = False
    if not works:
        raise HarnessError(
            "sacct does not work here, so waiting for killed jobs would never end; "
            "use: python scripts/submit.py (it needs no accounting)"
        )
