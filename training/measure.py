"""Accuracy of an exported checkpoint, whole and pruned, by kind of question.

Answers come from `generate` of the Hugging Face model, pruned by the repository's own runtime, on
held-out pictures; the prompts of the mini benchmarks are built as lmms-eval builds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vtprune.harness.evaluation.data.mini import questions, world
from vtprune.harness.evaluation.data.mini.questions import (
    LETTERS,
    MMVET,
    OPTION,
    PLEASE,
    SINGLE,
    SW,
    VIZWIZ,
)

GROUPS = {
    "text": "reading", "exist": "yes/no", "color": "attributes", "shape": "attributes",
    "value": "chart", "extreme": "chart", "ground": "background", "sky": "background",
    "half": "half", "count": "count", "missing": "missing", "choice": "choice",
}  # fmt: skip
METHODS = ("random", "l2norm", "vispruner", "gprune", "fastv")


@dataclass(frozen=True)
class Item:
    """A prompt about a picture; any of `answers` counts, case ignored when `fold` is set."""

    group: str
    image: np.ndarray
    prompt: str
    answers: tuple[str, ...]
    fold: bool = True


def group_of(kind: str, style: str) -> str:
    if style in questions.CHOICE_STYLES:
        return "choice"
    return "yes/no" if kind.endswith("yes/no") else GROUPS[kind]


def held_out_items(
    count: int, first: int = 800_000, size: tuple[int, int] = (world.TILE, world.TILE)
) -> list[Item]:
    """Questions about `count` pictures that no stage and no gate has seen."""
    items = []
    for at in range(first, first + count):
        rng = np.random.default_rng([13, at])
        picture = world.draw(world.HELD_OUT_SEED + at, size=size)
        for q, style in questions.sample(picture, rng, 6, 0.25):
            answer = questions.answer_of(q, style)
            prompt = questions.render(q, style)
            items.append(Item(group_of(q.kind, style), picture.image, prompt, (answer,), False))
    return items


def _letters(row: dict[str, Any], options: Iterable[str]) -> str:
    return "\n".join(f"{LETTERS[i]}. {o}" for i, o in enumerate(options))


def _mmbench(suffix: str) -> Callable[[dict[str, Any]], str]:
    def prompt(row: dict[str, Any]) -> str:
        options = [row[k] for k in "ABCD" if row[k] != "nan"]
        return f"{row['question']} There are several options:\n{_letters(row, options)}\n{suffix}"

    return prompt


def _scienceqa(row: dict[str, Any]) -> str:
    context = f"Context: {row['hint']}\n" if row["hint"] else ""
    return f"{context}{row['question']}\n{_letters(row, row['choices'])}{OPTION}"


PROMPTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "textvqa": lambda r: r["question"].capitalize() + SW,
    "gqa": lambda r: r["question"] + SW,
    "vqav2": lambda r: r["question"] + SW,
    "mme": lambda r: r["question"].replace(PLEASE, "") + SW,
    "pope": lambda r: r["question"] + SW,
    "mmbench_en": _mmbench(OPTION),
    "mmbench_cn": _mmbench(questions.OPTION_CN),
    "chartqa": lambda r: r["question"] + SINGLE,
    "docvqa": lambda r: r["question"] + SW,
    "scienceqa": _scienceqa,
    "vizwiz": lambda r: r["question"].capitalize() + VIZWIZ + SW,
    "seedbench": lambda r: (
        r["question"] + "\n" + _letters(r, [r[f"choice_{k}"] for k in "abcd"]) + OPTION
    ),
    "mmvet": lambda r: MMVET + r["question"],
    "ocrbench": lambda r: r["question"],
}


def bench_items(bench: str, seed: int = 0) -> list[Item]:
    """The rows of a mini benchmark as prompts."""
    import io

    from PIL import Image

    from vtprune.harness.evaluation.data import mini

    tables = mini.tables(bench, seed)
    images = {r["id"]: r["image"] for r in tables[1].rows} if bench == "gqa" else {}
    items = []
    for row in tables[0].rows:
        cell = images[row["imageId"]] if images else row["image"]
        cell = cell[0] if isinstance(cell, list) else cell
        pixels = np.asarray(Image.open(io.BytesIO(cell["bytes"])))
        if bench == "scienceqa":
            answers = (LETTERS[row["answer"]],)
        elif bench == "vqav2":
            answers = (row["multiple_choice_answer"],)
        else:
            found = row.get("answers", row.get("answer"))
            answers = tuple(found) if isinstance(found, list) else (found,)
        items.append(Item(bench, pixels, PROMPTS[bench](row), answers))
    return items


class Student:
    """An exported checkpoint that answers items in batches."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.device = device
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.model = self.model.to(device).eval()

    def answer(self, items: list[Item], names: list[str], run: Any = None) -> list[str]:
        """Greedy answers; `names` seed the methods that draw."""
        import torch
        from PIL import Image

        chats = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": i.prompt}]}]
            for i in items
        ]
        texts = [self.processor.apply_chat_template(c, add_generation_prompt=True) for c in chats]
        inputs = self.processor(
            text=texts, images=[Image.fromarray(i.image) for i in items], padding=True,
            return_tensors="pt",
        ).to(self.device)  # fmt: skip
        if run is not None:
            run.begin(names)
        with torch.inference_mode():
            out = self.model.generate(**inputs, max_new_tokens=6, do_sample=False)
        if run is not None:
            run.take()
        new = out[:, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)


def score(
    student: Student, items: list[Item], method: str = "none", batch: int = 32, **options: Any
) -> dict[str, tuple[int, int]]:
    """Group -> (right, asked) with a pruning method in place."""
    from vtprune.models import prune

    order = sorted(range(len(items)), key=lambda i: (items[i].image.shape, len(items[i].prompt)))
    tally: dict[str, list[int]] = {}
    with prune(student.model, method, **options) as run:
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            mine = [items[i] for i in chosen]
            for item, text in zip(
                mine, student.answer(mine, [str(i) for i in chosen], run), strict=True
            ):
                fold = str.lower if item.fold else str
                good = fold(text) in {fold(a) for a in item.answers}
                one = tally.setdefault(item.group, [0, 0])
                one[0] += good
                one[1] += 1
    return {k: (a, n) for k, (a, n) in sorted(tally.items())}


def percent(found: dict[str, tuple[int, int]]) -> dict[str, float]:
    return {k: round(100 * a / n, 1) for k, (a, n) in found.items()}


def method_options(method: str, ratio: float) -> dict[str, Any]:
    """FastV counts what leaves at its layer; the others remove before the language model."""
    return {"ratio": ratio, "ratio_mode": "local"} if method == "fastv" else {"ratio": ratio}


def measure(
    folder: Path,
    pictures: int = 120,
    ratios: tuple[float, ...] = (0.5, 0.7, 0.9),
    benches: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """All figures of the model card for one checkpoint; `say` gets each as soon as it is there."""
    student = Student(folder)
    items = held_out_items(pictures)
    plain = score(student, items)
    report: dict[str, Any] = {"counts": {k: n for k, (_, n) in plain.items()}}
    report["none"] = percent(plain)
    say(f"none: {report['none']}")
    if benches:
        from vtprune.harness.evaluation.data import mini

        report["benches"] = {}
        for bench in mini.BENCHES:
            report["benches"] |= percent(score(student, bench_items(bench)))
        say(f"benches: {report['benches']}")
    for method in METHODS:
        for ratio in ratios:
            found = percent(score(student, items, method, **method_options(method, ratio)))
            report[f"{method} {ratio}"] = found
            say(f"{method} {ratio}: {found}")
    return report
