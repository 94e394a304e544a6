"""Scores from VLMEvalKit: its own evaluation of a prediction table, and a score for each row."""

from __future__ import annotations

import ast
import contextlib
import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vtprune.harness.request.errors import HarnessError, one_line

MODEL = "model"  # names the library's files; without a slash, and without ".tsv" anywhere


def evaluate(
    dataset: Any, table: str, answers: dict[int, str], folder: Path
) -> tuple[dict[str, float], dict[int, float]]:
    """Metrics by label, and the score of each row in 0..1.

    ``answers`` by row of the table. The folder is made new: the library reuses evaluation files it
    finds there, whatever the answers beside them say.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if ".tsv" in str(folder):
        raise HarnessError(f"VLMEvalKit cannot score in a folder with .tsv in its name: {folder}")
    rows = sorted(answers)
    file = _predictions(dataset, table, rows, answers, folder)
    try:
        found = _quietly(dataset, file)
        scores = _scorer(dataset)(dataset, table, file, rows)
    except (AssertionError, KeyError, ValueError, TypeError, ZeroDivisionError) as error:
        raise HarnessError(f"VLMEvalKit could not score: {one_line(error)}") from error
    return flatten(found), scores


def _predictions(
    dataset: Any, table: str, rows: Sequence[int], answers: dict[int, str], folder: Path
) -> Path:
    from vlmeval.smp import dump

    data = dataset.data.iloc[list(rows)].drop(columns=["image"], errors="ignore").copy()
    data["prediction"] = [answers[row] for row in rows]
    file = folder / f"{MODEL}_{table}.tsv"
    dump(data, str(file))
    return file


def _quietly(dataset: Any, file: Path) -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        # Any other judge falls back to exact matching silently when it cannot be reached.
        return dataset.evaluate(str(file), model="exact_matching", nproc=1)


def flatten(result: Any) -> dict[str, float]:
    """Numbers by label: ``Overall``, or ``<split>/Overall`` where there are several splits."""
    if result is None:
        return {}
    if isinstance(result, dict):
        return {str(k): float(v) for k, v in result.items()}
    found: dict[str, float] = {}
    lines = result.to_dict("records")
    for line in lines:
        split = line.pop("split", None)
        for key, value in line.items():
            if split is not None:
                found[f"{split}/{key}"] = float(value)
            if split is None or len(lines) == 1:
                found[str(key)] = float(value)
    return found


def _scorer(dataset: Any) -> Callable[..., dict[int, float]]:
    if dataset.TYPE == "MCQ":
        return _choice
    if dataset.TYPE == "Y/N":
        return _yes_no
    return _open if _has_results(dataset) else _alone


def _has_results(dataset: Any) -> bool:
    from vlmeval.dataset.image_vqa import ImageVQADataset

    return isinstance(dataset, ImageVQADataset)


def _beside(file: Path, suffix: str) -> Any:
    from vlmeval.smp import load

    return load(str(file.with_name(f"{file.stem}{suffix}.tsv")))


def _choice(dataset: Any, table: str, file: Path, rows: Sequence[int]) -> dict[int, float]:
    """A row has the score of its question, which counts once for all rotations."""
    from vtprune.harness.evaluation.engines.vlm_table import groups

    judged = _beside(file, "_exact_matching_result")
    hits = dict(zip(judged["index"], judged["hit"], strict=True))
    group = groups(dataset.data, table)
    index = list(dataset.data["index"])
    return {row: float(hits[group.get(row, index[row])]) for row in rows}


def _yes_no(dataset: Any, table: str, file: Path, rows: Sequence[int]) -> dict[int, float]:
    judged = _beside(file, "_auxmatch")
    return dict(zip(rows, map(float, judged["score"]), strict=True))


def _open(dataset: Any, table: str, file: Path, rows: Sequence[int]) -> dict[int, float]:
    from vlmeval.dataset.utils.vqa_eval import hit_calculate

    judged = _beside(file, "_results")
    matches = [{"match": ast.literal_eval(match)} for match in judged["eval_match"]]
    return dict(zip(rows, map(float, hit_calculate(matches, table)), strict=True))


def _alone(dataset: Any, table: str, file: Path, rows: Sequence[int]) -> dict[int, float]:
    """Score each row as a table of its own, where the library keeps no scores of rows."""
    from vlmeval.smp import dump, load

    data, scores = load(str(file)), {}
    for place, row in enumerate(rows):
        folder = file.parent / "alone"
        folder.mkdir()
        single = folder / file.name
        dump(data.iloc[[place]], str(single))
        found = flatten(_quietly(dataset, single))
        scores[row] = found["Final Score"] if "Final Score" in found else found["Overall"] / 100
        shutil.rmtree(folder)
    return scores
