"""Mini benchmarks answered by yes or no."""

from __future__ import annotations

from typing import Any

from numpy.random import Generator

from vtprune.harness.evaluation.data.mini import questions, world
from vtprune.harness.evaluation.data.mini.questions import PLEASE, Question
from vtprune.harness.evaluation.data.mini.rows import Table, cell, pictures
from vtprune.harness.evaluation.data.mini.world import Picture

# category of MME -> (layout, asker, kinds of question that belong to it)
MME = {
    "existence": ("scene", "exist", ("exist",)),
    "color": ("scene", "color", ("color yes/no",)),
    "position": ("scene", "half", ("half yes/no",)),
    "scene": ("scene", "ground", ("ground yes/no",)),
    "numerical_calculation": ("chart", "extreme", ("extreme yes/no",)),
}


def _pair(p: Picture, rng: Generator, asker: str, kinds: tuple[str, ...]):
    """One question answered yes and one answered no about a picture, or None."""
    found: dict[str, Question] = {}
    for _ in range(40):
        q = questions.ASKERS[asker](p, rng)
        if q is not None and q.kind in kinds and q.answer in ("yes", "no"):
            found.setdefault(q.answer, q)
        if len(found) == 2:
            return found["yes"], found["no"]
    return None


def mme_features():
    from datasets import Features, Image, Value

    s = Value("string")
    return Features({"question_id": s, "image": Image(), "question": s, "answer": s, "category": s})


def mme(seed: int, n: int) -> list[Table]:
    """Pairs of a yes and a no question about one picture; an odd `n` is rounded up."""
    rows: list[dict[str, Any]] = []
    names = list(MME)
    for at, rng in pictures("mme", seed):
        if len(rows) >= n:
            break
        name = names[(len(rows) // 2) % len(names)]
        layout, asker, kinds = MME[name]
        picture = world.draw(at, layout)
        pair = _pair(picture, rng, asker, kinds)
        if pair is None:
            continue
        key = f"{name}/{len(rows) // 2:04d}.png"
        for q in pair:
            rows.append({
                "question_id": key, "image": cell(picture), "question": q.text + PLEASE,
                "answer": q.answer.capitalize(), "category": name,
            })  # fmt: skip
    return [Table("data", "test", rows, mme_features)]


def pope_features():
    from datasets import Features, Image, Value

    s = Value("string")
    return Features({
        "id": s, "question_id": s, "question": s, "answer": s, "image_source": s,
        "image": Image(), "category": s,
    })  # fmt: skip


def _absent(p: Picture, rng: Generator, category: str) -> tuple[str, str] | None:
    """A (colour, shape) pair that is not there.

    adversarial: colour and shape both occur, on different objects; popular: one of them occurs;
    random: any.
    """
    have = {(s.color, s.shape) for s in p.shapes}
    colors, shapes = {c for c, _ in have}, {s for _, s in have}
    free = [(c, s) for c in world.COLORS for s in world.SHAPES if (c, s) not in have]
    if category == "adversarial":
        free = [(c, s) for c, s in free if c in colors and s in shapes]
    elif category == "popular":
        free = [(c, s) for c, s in free if (c in colors) != (s in shapes)]
    return free[int(rng.integers(len(free)))] if free else None


def pope(seed: int, n: int) -> list[Table]:
    """As many yes as no in each of the three categories."""
    rows: list[dict[str, Any]] = []
    names = ("adversarial", "popular", "random")
    for at, rng in pictures("pope", seed):
        if len(rows) >= n:
            break
        category = names[(len(rows) // 2) % 3]
        picture = world.draw(at, "scene")
        absent = _absent(picture, rng, category)
        if not picture.shapes or absent is None:
            continue
        shown = picture.shapes[int(rng.integers(len(picture.shapes)))]
        for answer, (color, shape) in (("yes", (shown.color, shown.shape)), ("no", absent)):
            article = "an" if color[0] in "aeiou" else "a"
            rows.append({
                "id": str(len(rows)), "question_id": str(len(rows) + 1),
                "question": f"Is there {article} {color} {shape} in the image?",
                "answer": answer, "image_source": f"drawn_{at}", "image": cell(picture),
                "category": category,
            })  # fmt: skip
    return [Table("data", "test", rows[:n], pope_features)]


def hallusion_features():
    from datasets import Features, Image, Value

    s = Value("string")
    return Features({
        "category": s, "subcategory": s, "visual_input": s, "set_id": s, "figure_id": s,
        "sample_note": s, "question_id": s, "question": s, "gt_answer_details": s, "gt_answer": s,
        "filename": s, "image": Image(),
    })  # fmt: skip


def hallusion_bench(seed: int, n: int) -> list[Table]:
    """A yes and a no question about each figure; an odd `n` is rounded up."""
    rows: list[dict[str, Any]] = []
    names = list(MME)
    for at, rng in pictures("hallusion_bench", seed):
        if len(rows) >= n:
            break
        name = names[(len(rows) // 2) % len(names)]
        layout, asker, kinds = MME[name]
        picture = world.draw(at, layout)
        pair = _pair(picture, rng, asker, kinds)
        if pair is None:
            continue
        number = len(rows) // 2
        for question, q in enumerate(pair):
            rows.append({
                "category": "VS" if layout == "chart" else "VD", "subcategory": layout,
                "visual_input": "1", "set_id": str(number), "figure_id": "1",
                "sample_note": name, "question_id": str(question), "question": q.text + PLEASE,
                "gt_answer_details": f"The answer is {q.answer}.",
                "gt_answer": str(int(q.answer == "yes")), "filename": f"./drawn/{number}_1.png",
                "image": cell(picture),
            })  # fmt: skip
    return [Table("data", "image", rows, hallusion_features)]
