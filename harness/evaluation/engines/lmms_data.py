"""Rows, groups and task objects of lmms-eval: which documents a job asks about, and how.

Task files stay untouched. What a job needs differently is set on the composed task config, which
belongs to one call.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vtprune.harness.evaluation.data.redirect import redirect
from vtprune.harness.evaluation.engines import judge_lmms as judge
from vtprune.harness.evaluation.engines.base import Job
from vtprune.harness.evaluation.engines.lmms_packages import (
    ConfigurableTask,
    TaskManager,
    lmms_eval,
)
from vtprune.harness.request import subset
from vtprune.harness.request.errors import ConfigError, HarnessError, one_line
from vtprune.harness.request.request import Images, Task

# No task has a prompt block under this name, so every task gives its default block, which is the
# one the model's policy chose.
PROMPT_MODEL = "llava_hf"


def data(job: Job, rows: Sequence[int] | None) -> contextlib.AbstractContextManager[None]:
    """Serve the job's data set, or only these rows of its split, inside the block."""
    dataset, split = job.engine.dataset, job.engine.split
    whole = rows is None or job.engine.processed  # the task itself leaves rows out
    return redirect(
        job.data.root,
        subset=None if whole else (dataset, job.engine.config, split, rows),
        revision=(dataset, job.data.revision) if job.data.revision else None,
        cache_dir=job.data.cache,
    )


def rows(job: Job) -> tuple[list[int], dict[int, Any]]:
    """Rows of the split this job asks about, and the group of each row that is scored in one.

    ``bench.limit`` is completed to whole groups (MME's pairs); ``bench.indices`` must name whole
    groups itself.
    """
    import datasets

    try:
        with data(job, None):
            # Loaded once here, because lmms-eval retries a failing load five times.
            if job.engine.processed:
                loaded = {job.engine.split: task(job).eval_docs}
            else:
                loaded = datasets.load_dataset(job.engine.dataset, job.engine.config)
    except (OSError, ValueError) as error:
        raise HarnessError(f"data set {job.engine.dataset}: {one_line(error)}") from error
    split = loaded[job.engine.split]
    column = job.engine.group
    groups = split[column][:] if column else []
    if job.bench.subset is not None:
        kinds = {name: split[name][:] for name in subset.STRATA if name in split.column_names}
        chosen = subset.rows(job.bench, kinds, len(split), dict(enumerate(groups)))
        return chosen, {row: groups[row] for row in chosen} if column else {}
    chosen = _chosen(job, len(split))
    if not column:
        return chosen, {}
    wanted = {groups[row] for row in chosen}
    whole = [row for row, group in enumerate(groups) if group in wanted]
    if job.bench.indices is None:
        chosen = whole
    elif missing := sorted(set(whole) - set(chosen)):
        raise ConfigError(
            f"bench.indices: {job.bench.name} scores rows with the same {column} together; "
            f"row {missing[0]} is missing"
        )
    return chosen, {row: groups[row] for row in chosen}


def _chosen(job: Job, n: int) -> list[int]:
    indices, limit = job.bench.indices, job.bench.limit
    if indices is None:
        return list(range(n if limit is None else min(n, limit)))
    if outside := [i for i in indices if i >= n]:
        raise ConfigError(f"bench.indices: {outside[0]} is outside the {n} samples of this data")
    return list(indices)


def task_manager(engine: Task) -> TaskManager:
    """The tasks of one folder instead of the full index: 0.1 s instead of 3 s."""
    folder = Path(lmms_eval.__file__).parent / "tasks" / engine.folder
    return TaskManager(
        "ERROR", include_defaults=False, model_name=PROMPT_MODEL, include_path=[str(folder)]
    )


def task(job: Job, rows: Sequence[int] | None = None) -> ConfigurableTask:
    """The task object; call it inside :func:`data`.

    Args:
        rows: of the documents that the task makes of its data set, where it makes them.
    """
    engine = job.engine
    with importable_without_key():
        config = dict(task_manager(engine)._get_config(engine.task))
    if blocks := config.get("lmms_eval_specific_kwargs"):
        # A task without a block of this name words its questions in one way only.
        block = blocks.get(engine.wording or "default", blocks["default"])
        options = engine.prompt_options or {}
        config["lmms_eval_specific_kwargs"] = {**blocks, "default": {**block, **options}}
    if images := engine.images:
        # The task's own way copies the image into every row, as PNG, with eight processes:
        # gigabytes of cache for GQA.
        config["process_docs"] = None
        config["doc_to_visual"] = joined_images(engine.dataset, images)
    if engine.processed and rows is not None:
        config["process_docs"] = _only(config.get("process_docs"), list(rows))
    if rule := engine.rule_judge:
        config = judge.apply(rule, config)
    return ConfigurableTask(config=config, model_name=PROMPT_MODEL)


def _only(process: Callable[[Any], Any] | None, rows: list[int]) -> Callable[[Any], Any]:
    """A task's own preparation of its documents, and of them only these."""

    def process_docs(dataset: Any) -> Any:
        return (dataset if process is None else process(dataset)).select(rows)

    return process_docs


def joined_images(dataset: str, table: Images) -> Callable[[dict[str, Any]], list[Any]]:
    """``doc_to_visual`` that looks a document's image up in a second table by its id."""
    import datasets

    images = datasets.load_dataset(dataset, table.config, split=table.split)
    place = {name: row for row, name in enumerate(images["id"])}

    def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
        return [images[place[doc[table.key]]]["image"].convert("RGB")]

    return doc_to_visual


@contextlib.contextmanager
def importable_without_key() -> Iterator[None]:
    """Let task files that open a judge's client at import do so without credentials.

    The judge itself is replaced or unused; without this MM-Vet does not even load.
    """
    before = os.environ.get("API_TYPE")
    os.environ["API_TYPE"] = "dummy"
    try:
        yield
    finally:
        if before is None:
            del os.environ["API_TYPE"]
        else:
            os.environ["API_TYPE"] = before
