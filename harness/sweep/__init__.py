"""Many cells: planned once, divided into jobs, worked off by processes that may die.

    plan.py        which cells, which of them share a job; plan.json in the sweep's folder
    outcomes.py    what became of every cell: one file each, by atomic rename
    worker.py      one process works off one job, cell after cell, model loaded once
    supervisor.py  starts the worker again when it dies; sets a cell aside that kills it twice
    launchers.py   where jobs run: here, in local processes, on SLURM with or without a parent
    slurm.py       the batch script of a sweep without a living parent
    status.py      what a sweep is doing, from any node that sees the folder
"""
