"""Mini benchmarks answered by a box: where is what this phrase describes?

The small model was never asked for coordinates and answers none of them; the rows are here so that
the path of such a benchmark is run, and to be answered by models that can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vtprune.harness.evaluation.data.mini.rows import Table, cell, pictures
from vtprune.harness.evaluation.data.mini.world import PATCH, Shape, draw

#: two phrases for a shape; every phrase is a question of its own
_PHRASES: dict[str, Callable[[Shape], tuple[str, str]]] = {
    "refcoco": lambda s: (f"{s.color} {s.shape}", f"the {s.shape} in {s.color}"),
    "refcoco_plus": lambda s: (f"{s.color} {s.shape}", f"{s.shape}, {s.color} one"),
    "refcocog": lambda s: (f"a {s.shape} that is painted {s.color}",
                           f"the {s.color} {s.shape} in this picture"),
}  # fmt: skip


def features():
    from datasets import Features, Image, List, Value

    s, number = Value("string"), Value("float32")
    return Features({
        "question_id": s, "image": Image(), "question": s, "answer": List(s),
        "segmentation": List(number), "bbox": List(number), "iscrowd": Value("int64"),
        "file_name": s,
    })  # fmt: skip


def _box(shape: Shape) -> list[float]:
    """Left, top, width and height in pixels of the patches that a shape covers."""
    rows, cols = [r for r, _ in shape.patches], [c for _, c in shape.patches]
    left, top = min(cols) * PATCH, min(rows) * PATCH
    right, bottom = (max(cols) + 1) * PATCH, (max(rows) + 1) * PATCH
    return [float(left), float(top), float(right - left), float(bottom - top)]


def _rows(bench: str, seed: int, n: int) -> list[Table]:
    """Scenes in which one shape has a colour and form of its own."""
    rows: list[dict[str, Any]] = []
    for at, _ in pictures(bench, seed):
        if len(rows) == n:
            break
        picture = draw(at, "scene")
        named = [(s.color, s.shape) for s in picture.shapes]
        alone = [s for s in picture.shapes if named.count((s.color, s.shape)) == 1 and s.patches]
        if not alone:
            continue
        box = _box(alone[0])
        rows.append({
            "question_id": f"{len(rows)}_0", "image": cell(picture),
            "question": "Please carefully observe the area circled in the image and come up with "
                        "a caption for the area.",
            "answer": list(_PHRASES[bench](alone[0])), "segmentation": [], "bbox": box,
            "iscrowd": 0, "file_name": f"drawn_{at}.jpg",
        })  # fmt: skip
    return [Table("data", "val", rows, features)]


def refcoco(seed: int, n: int) -> list[Table]:
    return _rows("refcoco", seed, n)


def refcoco_plus(seed: int, n: int) -> list[Table]:
    return _rows("refcoco_plus", seed, n)


def refcocog(seed: int, n: int) -> list[Table]:
    return _rows("refcocog", seed, n)
