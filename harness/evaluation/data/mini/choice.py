"""Mini benchmarks answered by the letter of an option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vtprune.harness.evaluation.data.mini.questions import ASKERS, LETTERS, Question, with_options
from vtprune.harness.evaluation.data.mini.rows import Table, cell, flat, pictures
from vtprune.harness.evaluation.data.mini.world import Picture, draw

PLAN = (
    ("scene", "color"), ("scene", "shape"), ("scene", "text"), ("chart", "extreme"),
    ("scene", "ground"), ("chart", "value"), ("scene", "sky"), ("page", "text"),
)  # fmt: skip
OPEN = {"color", "shape", "text", "extreme", "ground", "value", "sky"}
TOPIC = {
    "color": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "shape": ("object_shape", "finegrained_perception (instance-level)"),
    "text": ("ocr", "finegrained_perception (instance-level)"),
    "value": ("ocr", "finegrained_perception (instance-level)"),
    "extreme": ("attribute_comparison", "finegrained_perception (cross-instance)"),
    "ground": ("image_scene", "coarse_perception"),
    "sky": ("image_scene", "coarse_perception"),
}


def _choices(bench: str, seed: int, n: int, options: tuple[int, ...]) -> list:
    """(picture, [question with options]) pairs; `options` are the numbers of options in turn."""
    out: list[tuple[Picture, list[Question]]] = []
    for at, rng in pictures(bench, seed):
        if len(out) == n:
            break
        layout, asker = PLAN[len(out) % len(PLAN)]
        picture = draw(at, layout)
        q = ASKERS[asker](picture, rng)
        if q is None or q.kind not in OPEN:
            continue
        count = min(options[len(out) % len(options)], 3 if q.kind == "sky" else 5)
        out.append((picture, [with_options(q, picture, rng, count)]))
    return out


def mmbench_features():
    from datasets import Features, Image, Value

    s = Value("string")
    return Features({
        "index": Value("int64"), "question": s, "hint": s, "answer": s, "A": s, "B": s, "C": s,
        "D": s, "category": s, "image": Image(), "source": s, "L2-category": s, "comment": s,
        "split": s,
    })  # fmt: skip


def _mmbench(
    seed: int, n: int, config: str, hint: str | None, before: Sequence[str] = ("",)
) -> list[Table]:
    rows: list[dict[str, Any]] = []
    for i, p, q in flat(_choices("mmbench", seed, n, (4, 3, 2, 4))):
        category, level = TOPIC[q.kind]
        cells = {LETTERS[k]: q.options[k] if k < len(q.options) else "nan" for k in range(4)}
        rows.append({
            "index": i + 1, "question": before[i % len(before)] + q.text, "hint": hint,
            "answer": q.letter, **cells, "category": category, "image": cell(p),
            "source": "drawn", "L2-category": level, "comment": "nan", "split": "dev",
        })  # fmt: skip
    return [Table(config, "dev", rows, mmbench_features)]


def mmbench_en(seed: int, n: int) -> list[Table]:
    return _mmbench(seed, n, "en", "nan")


def mmbench_cn(seed: int, n: int) -> list[Table]:
    """Two of three questions begin in Chinese; what is asked of the picture stays English.

    The small model reads bytes and was trained on English questions alone, so it can answer no
    others; the engines' wordings turn on whether a question holds Chinese characters.
    """
    return _mmbench(seed, n, "cn", None, ("请看图回答。", "问题：", ""))


def scienceqa_features():
    from datasets import Features, Image, List, Value

    s = Value("string")
    return Features({
        "image": Image(), "question": s, "choices": List(s), "answer": Value("int8"), "hint": s,
        "task": s, "grade": s, "subject": s, "topic": s, "category": s, "skill": s, "lecture": s,
        "solution": s,
    })  # fmt: skip


def scienceqa(seed: int, n: int) -> list[Table]:
    """Two to five options. FULL holds the same rows and a few without a picture."""
    rows: list[dict[str, Any]] = []
    hint = ("", "Look at the image.", "")
    for i, p, q in flat(_choices("scienceqa", seed, n, (2, 3, 4, 5))):
        rows.append({
            "image": cell(p), "question": q.text, "choices": list(q.options),
            "answer": q.options.index(q.answer), "hint": hint[i % 3], "task": "closed choice",
            "grade": "grade2", "subject": "natural science", "topic": "drawn world",
            "category": TOPIC[q.kind][0], "skill": q.kind, "lecture": "", "solution": "",
        })  # fmt: skip
    bare = [
        {**rows[i], "image": None, "hint": "", "question": "Which of these is a color?",
         "choices": pair, "answer": i % 2, "category": "text only", "skill": "text only"}
        for i, pair in enumerate((["red", "circle"], ["star", "green"], ["blue", "square"],
                                  ["cross", "pink"]))
        if i < len(rows)
    ]  # fmt: skip
    return [
        Table("ScienceQA-IMG", "test", rows, scienceqa_features),
        Table("ScienceQA-FULL", "test", rows + bare, scienceqa_features),
    ]


def seedbench_features():
    from datasets import Features, Image, List, Value

    s = Value("string")
    return Features({
        "answer": s, "choice_a": s, "choice_b": s, "choice_c": s, "choice_d": s, "data_id": s,
        "data_type": s, "image": List(Image()), "question": s, "question_id": s,
        "question_type_id": Value("int16"), "segment": List(Value("int64")),
    })  # fmt: skip


def seedbench(seed: int, n: int) -> list[Table]:
    """Four options each, single pictures only."""
    rows: list[dict[str, Any]] = []
    number = {"ground": 1, "sky": 1, "shape": 2, "color": 3, "extreme": 3, "text": 9, "value": 9}
    plan = [x for x in _choices("seedbench", seed, 3 * n, (4,)) if len(x[1][0].options) == 4]
    for i, p, q in flat(plan[:n]):
        rows.append({
            "answer": q.letter,
            **{f"choice_{k}": q.options["abcd".index(k)] for k in "abcd"},
            "data_id": f"drawn_{i}", "data_type": "image", "image": [cell(p)],
            "question": q.text, "question_id": str(i), "question_type_id": number[q.kind],
            "segment": [],
        })  # fmt: skip
    return [Table("data", "test", rows, seedbench_features)]


def ai2d_features():
    from datasets import Features, Image, List, Value

    s = Value("string")
    return Features({"question": s, "options": List(s), "answer": s, "image": Image()})


def ai2d(seed: int, n: int) -> list[Table]:
    """Four options; the answer is the number of the right one, as text."""
    rows = [
        {"question": q.text, "options": list(q.options),
         "answer": str(q.options.index(q.answer)), "image": cell(p)}
        for _, p, q in flat(_choices("ai2d", seed, n, (4, 4, 3, 4)))
    ]  # fmt: skip
    return [Table("data", "test", rows, ai2d_features)]


def mmstar_features():
    from datasets import Features, Image, Value

    s = Value("string")
    return Features({
        "index": Value("int64"), "question": s, "image": Image(), "answer": s, "category": s,
        "l2_category": s, "meta_info": {"source": s, "split": s, "image_path": s},
    })  # fmt: skip


#: kind of question -> category and finer category, of the benchmark's own
_STAR = {
    "color": ("fine-grained perception", "recognition"),
    "shape": ("fine-grained perception", "recognition"),
    "text": ("fine-grained perception", "recognition"),
    "value": ("math", "statistical reasoning"),
    "extreme": ("logical reasoning", "diagram reasoning"),
    "ground": ("coarse perception", "image scene and topic"),
    "sky": ("coarse perception", "image scene and topic"),
}


def _with_options(q: Question) -> str:
    return "\n".join([q.text, *(f"{LETTERS[k]}. {one}" for k, one in enumerate(q.options))])


def mmstar(seed: int, n: int) -> list[Table]:
    """Two to four options, written into the question; four of the six categories."""
    rows = [
        {"index": i, "question": _with_options(q), "image": cell(p), "answer": q.letter,
         "category": _STAR[q.kind][0], "l2_category": _STAR[q.kind][1],
         "meta_info": {"source": "drawn", "split": "val", "image_path": f"images/{i}.jpg"}}
        for i, p, q in flat(_choices("mmstar", seed, n, (4, 3, 2, 4)))
    ]  # fmt: skip
    return [Table("data", "val", rows, mmstar_features)]


def realworldqa_features():
    from datasets import Features, Image, Value

    s = Value("string")
    return Features({"image": Image(), "image_path": s, "question": s, "answer": s})


def realworldqa(seed: int, n: int) -> list[Table]:
    """Three of four questions have options, the others one word; the wish is in the question."""
    letter = "Answer with the option's letter from the given choices directly."
    word = "Answer the question using a single word or phrase."
    rows = []
    for i, p, q in flat(_choices("realworldqa", seed, n, (4, 3, 2))):
        asked, said = (f"{q.text}\n{word}", q.answer) if i % 4 == 3 else (
            f"{_with_options(q)}\n{letter}", q.letter)  # fmt: skip
        rows.append({"image": cell(p), "image_path": f"{i}.webp", "question": asked,
                     "answer": said})  # fmt: skip
    return [Table("data", "test", rows, realworldqa_features)]


#: kind of question -> subject of MMMU
_SUBJECT = {
    "color": "Art", "shape": "Design", "text": "Literature", "value": "Accounting",
    "extreme": "Economics", "ground": "Geography", "sky": "Geography",
}  # fmt: skip


def mmmu_features():
    from datasets import Features, Image, Value

    s = Value("string")
    images = {f"image_{number}": Image() for number in range(1, 8)}
    return Features({
        "id": s, "question": s, "options": s, "explanation": s, **images, "img_type": s,
        "answer": s, "topic_difficulty": s, "question_type": s, "subfield": s,
    })  # fmt: skip


def mmmu(seed: int, n: int) -> list[Table]:
    """Three of four questions have options, the others one word; one picture each."""
    rows = []
    for i, p, q in flat(_choices("mmmu", seed, n, (4, 3, 2, 4))):
        is_open = i % 4 == 3
        rows.append({
            "id": f"validation_{_SUBJECT[q.kind]}_{i + 1}", "question": f"<image 1> {q.text}",
            "options": str([] if is_open else list(q.options)), "explanation": "",
            "image_1": cell(p), **{f"image_{number}": None for number in range(2, 8)},
            "img_type": "['Drawings']", "answer": q.answer if is_open else q.letter,
            "topic_difficulty": "Easy", "question_type": "open" if is_open else "multiple-choice",
            "subfield": "drawn world",
        })  # fmt: skip
    return [Table("data", "validation", rows, mmmu_features)]
