"""VLMEvalKit's tables: opened without a download; rows in whole groups, prompts, pictures."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtprune.harness.evaluation.data.tables import STEP
from vtprune.harness.evaluation.engines.base import Job, Question
from vtprune.harness.request import subset
from vtprune.harness.request.errors import ConfigError, HarnessError

CIRCULAR = ("mmbench", "ccbench", "circular", "mmcr")  # substrings, as the library tests them


def open_dataset(table: str, root: Path) -> Any:
    """A fresh data set object over ``<root>/<table>.tsv``.

    The library would download the table again if it is missing or its md5 is not the published
    one, so a foreign md5 is entered for the time of construction.

    Raises:
        HarnessError: there is no such table, or the library does not know its name.
    """
    import vlmeval.dataset

    from vtprune.harness.evaluation.data.tables import md5

    file = root / f"{table}.tsv"
    if not file.is_file():
        raise HarnessError(f"{file.name} not found in {root}")
    known = (c for c in vlmeval.dataset.DATASET_CLASSES if table in c.supported_datasets())
    found = next(known, None)
    if found is None:
        raise HarnessError(f"VLMEvalKit knows no data set {table}")
    with contextlib.ExitStack() as undo:
        if table in found.DATASET_MD5:
            undo.callback(found.DATASET_MD5.__setitem__, table, found.DATASET_MD5[table])
            found.DATASET_MD5[table] = md5(file)
        return found(dataset=table)


def is_circular(table: str) -> bool:
    """True where a question counts only if it is right in every rotation of its options."""
    return any(word in table.lower() for word in CIRCULAR)


def groups(data: Any, table: str) -> dict[int, Any]:
    """Group of each row, for tables whose rows are scored together; else empty."""
    if is_circular(table):
        column = data["g_index"] if "g_index" in data else data["index"] % STEP
    elif table == "MME":
        column = data["category"] + "/" + data["image_path"]
    else:
        return {}
    return dict(enumerate(column))


def rows(job: Job, data: Any, group: dict[int, Any]) -> list[int]:
    """Rows asked about. A limit counts questions, and never takes half a group."""
    indices, limit = job.bench.indices, job.bench.limit
    everything = list(range(len(data)))
    if job.bench.subset is not None:
        kinds = {name: list(data[name]) for name in subset.STRATA if name in data}
        return subset.rows(job.bench, kinds, len(data), group)
    if indices is not None:
        return _named(job, indices, everything, group)
    if limit is None:
        return everything
    if is_circular(job.engine.table):
        wanted = set(list(dict.fromkeys(group.values()))[:limit])
    else:
        wanted = {group.get(row, row) for row in everything[:limit]}
    return [row for row in everything if group.get(row, row) in wanted]


def _named(
    job: Job, indices: Sequence[int], everything: Sequence[int], group: dict[int, Any]
) -> list[int]:
    if outside := [i for i in indices if i >= len(everything)]:
        raise ConfigError(
            f"bench.indices: {outside[0]} is outside the {len(everything)} rows of this table"
        )
    wanted = {group[row] for row in indices if row in group}
    whole = {row for row in everything if group.get(row) in wanted and row in group}
    if missing := sorted(whole - set(indices)):
        raise ConfigError(
            f"bench.indices: {job.bench.name} scores some rows together; "
            f"row {missing[0]} is missing"
        )
    return list(indices)


def question(job: Job, dataset: Any, row: int, style: str) -> Question:
    """One row as the engine's question."""
    line = dataset.data.iloc[row]
    return Question(
        doc_id=row,
        sample_id=f"{job.engine.table}:{line['index']}",
        prompt=prompt(dataset, line, style),
        images=lambda: pictures(dataset, line),
    )


def prompt(dataset: Any, line: Any, style: str) -> str:
    """The text in one of the library's prompt styles.

    ``generic`` is the data set's own, ``llava`` and ``qwen2vl`` what the library asks those models.
    """
    name, kind = dataset.dataset_name, dataset.TYPE
    if style == "llava" and kind == "MCQ":
        return _llava_choice(line)
    if style == "qwen2vl" and kind == "VQA":
        wish = "Please try to answer the question with short words or phrases if possible."
        return f"{line['question']}\n{wish}"
    # The library would write the picture to a cache that is never refreshed, keyed by row number.
    dataset.dump_image = lambda line: ["picture.png"]
    try:
        parts = dataset.build_prompt(line)
    finally:
        del dataset.dump_image
    text = "".join(part["value"] for part in parts if part["type"] == "text")
    if style == "qwen2vl" and kind == "MCQ":
        return _qwen_choice(text.rstrip())
    if style == "qwen2vl" and any(word in name for word in ("POPE", "HallusionBench")):
        return f"{text} Please answer yes or no."
    return text


def _llava_choice(line: Any) -> str:
    hint = "" if missing(line.get("hint")) else f"{line['hint']}\n"
    options = [f"\n{x}. {line[x]}" for x in "ABCDEFGH" if x in line and not missing(line[x])]
    text = f"{hint}{line['question']}{''.join(options)}"
    wish = "Answer with the option's letter from the given choices directly."
    return f"{text}\n{_LETTER_IN_CHINESE if _is_chinese(text) else wish}"


_LETTER_IN_CHINESE = "请直接回答选项字母。"


def _qwen_choice(text: str) -> str:
    """The data set's own wording, with Qwen2-VL's wish in Chinese behind a Chinese question."""
    wish = "Please select the correct answer from the options above."
    if text.endswith(wish) and _is_chinese(text):
        return text.removesuffix(wish) + _LETTER_IN_CHINESE
    return text


def _is_chinese(text: str) -> bool:
    """True if any character is Chinese, as the library's clients test it."""
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def missing(value: Any) -> bool:
    """True for an empty cell."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def pictures(dataset: Any, line: Any) -> list[Any]:
    """The row's pictures, from the table itself where it holds them."""
    from PIL import Image

    if "image" in line:
        cells = line["image"] if isinstance(line["image"], list) else [line["image"]]
        files: list[Any] = [io.BytesIO(base64.b64decode(cell)) for cell in cells]
    else:
        files = dataset.dump_image(line)
    return [Image.open(file).convert("RGB") for file in files]


def reference(line: Any) -> Any:
    """The accepted answer or answers; lists are written as text in the tables."""
    value = line["answers"] if "answers" in line else line["answer"]
    if isinstance(value, str) and value.startswith("["):
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(value)
    return value.item() if hasattr(value, "item") else value
