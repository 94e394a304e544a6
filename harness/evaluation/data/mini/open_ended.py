"""Mini benchmarks with free, one-word answers."""

from __future__ import annotations

from typing import Any

from vtprune.harness.evaluation.data.mini.questions import Question
from vtprune.harness.evaluation.data.mini.rows import Table, cell, collect, flat

# Left or right is asked in MME alone: the embedded model barely beats chance there.
SCENES = (("scene", ("color", "exist", "shape", "ground", "sky")),)


def _strings():
    from datasets import Value

    return Value("string"), Value("int32"), Value("int64")


def textvqa_features():
    from datasets import Features, Image, List

    s, i32, _ = _strings()
    return Features({
        "image_id": s, "question_id": i32, "question": s, "question_tokens": List(s),
        "image": Image(), "image_width": i32, "image_height": i32, "flickr_original_url": s,
        "flickr_300k_url": s, "answers": List(s), "image_classes": List(s), "set_name": s,
        "ocr_tokens": List(s),
    })  # fmt: skip


def textvqa(seed: int, n: int) -> list[Table]:
    """Reading signs; a few pictures are pages of text boxes."""
    plan = (("scene", ("text",)),) * 4 + (("page", ("text",)),)
    rows = []
    for i, p, q in flat(collect("textvqa", seed, n, plan)):
        rows.append({
            "image_id": f"drawn-{seed}-{i:05d}", "question_id": i, "question": q.text.lower(),
            "question_tokens": q.text.lower().rstrip("?").split(), "image": cell(p),
            "image_width": p.image.shape[1], "image_height": p.image.shape[0],
            "flickr_original_url": "", "flickr_300k_url": "", "answers": [q.answer.lower()] * 10,
            "image_classes": ["Sign"], "set_name": "val", "ocr_tokens": [x.text for x in p.signs],
        })  # fmt: skip
    return [Table("data", "validation", rows, textvqa_features)]


def gqa_features():
    from datasets import Features, List, Value

    s, i32, _ = _strings()
    pair = List({"objectId": s, "value": s})
    return Features({
        "id": s, "imageId": s, "question": s, "answer": s, "fullAnswer": s,
        "isBalanced": Value("bool"), "groups": {"global": s, "local": s}, "entailed": s,
        "equivalent": s, "types": {"structural": s, "semantic": s, "detailed": s},
        "annotations": {"question": pair, "answer": pair, "fullAnswer": pair},
        "semantic": List({"operation": s, "argument": s, "dependencies": List(i32)}),
        "semanticStr": s,
    })  # fmt: skip


def gqa_image_features():
    from datasets import Features, Image, Value

    return Features({"id": Value("string"), "image": Image()})


def gqa(seed: int, n: int) -> list[Table]:
    """Up to four questions a picture; pictures in a table of their own, as on the hub."""
    found = collect("gqa", seed, n, SCENES, each=4)
    images = [{"id": f"d{seed}{k:05d}", "image": cell(p)} for k, (p, _) in enumerate(found)]
    rows: list[dict[str, Any]] = []
    for k, (_, asked) in enumerate(found):
        for q in asked:
            verify = q.answer in ("yes", "no")
            full = f"{q.answer.capitalize()}." if verify else f"It is {q.answer}."
            rows.append({
                "id": f"{seed:02d}{len(rows):07d}", "imageId": images[k]["id"],
                "question": q.text, "answer": q.answer, "fullAnswer": full, "isBalanced": True,
                "groups": {"global": q.kind, "local": f"{k}-{q.kind}"}, "entailed": "",
                "equivalent": "",
                "types": {"structural": "verify" if verify else "query",
                          "semantic": "obj" if verify else "attr", "detailed": q.kind},
                "annotations": {"question": [], "answer": [], "fullAnswer": []},
                "semantic": [{"operation": "query", "argument": q.kind, "dependencies": []}],
                "semanticStr": f"query: {q.kind}",
            })  # fmt: skip
    return [
        Table("testdev_balanced_instructions", "testdev", rows, gqa_features),
        Table("testdev_balanced_images", "testdev", images, gqa_image_features),
    ]


def vqav2_features():
    from datasets import Features, Image, List

    s, _, i64 = _strings()
    return Features({
        "question_type": s, "multiple_choice_answer": s,
        "answers": List({"answer": s, "answer_confidence": s, "answer_id": i64}),
        "image_id": i64, "answer_type": s, "question_id": i64, "question": s, "image": Image(),
    })  # fmt: skip


def _answer_type(q: Question) -> str:
    if q.answer in ("yes", "no"):
        return "yes/no"
    return "number" if q.answer.isdigit() else "other"


def vqav2(seed: int, n: int) -> list[Table]:
    plan = (("scene", ("color", "exist", "count", "shape", "sky")),) * 4 + (("chart", ("count",)),)
    rows = []
    for i, p, q in flat(collect("vqav2", seed, n, plan)):
        rows.append({
            "question_type": " ".join(q.text.lower().split()[:2]),
            "multiple_choice_answer": q.answer,
            "answers": [{"answer": q.answer, "answer_confidence": "yes", "answer_id": k + 1}
                        for k in range(10)],
            "image_id": i, "answer_type": _answer_type(q), "question_id": i * 1000,
            "question": q.text, "image": cell(p),
        })  # fmt: skip
    return [Table("data", "validation", rows, vqav2_features)]


def chartqa_features():
    from datasets import Features, Image

    s, _, _ = _strings()
    return Features({"type": s, "question": s, "answer": s, "image": Image()})


def chartqa(seed: int, n: int) -> list[Table]:
    """Values (the augmented half) and comparisons (the human half) on bar charts."""
    plan = (("chart", ("value",)), ("chart", ("extreme",)), ("chart", ("value",)),
            ("chart", ("extreme", "extreme", "extreme", "count")))  # fmt: skip
    rows = []
    for _, p, q in flat(collect("chartqa", seed, n, plan)):
        split = "augmented_test" if q.kind == "value" else "human_test"
        rows.append({"type": split, "question": q.text, "answer": q.answer, "image": cell(p)})
    return [Table("data", "test", rows, chartqa_features)]


def docvqa_features():
    from datasets import Features, Image, List

    s, _, i64 = _strings()
    return Features({
        "questionId": s, "question": s, "question_types": List(s), "image": Image(),
        "docId": i64, "ucsf_document_id": s, "ucsf_document_page_no": s, "answers": List(s),
        "data_split": s,
    })  # fmt: skip


def docvqa(seed: int, n: int) -> list[Table]:
    """Pages with three or four text boxes."""
    rows = []
    for i, p, q in flat(collect("docvqa", seed, n, (("page", ("text",)),))):
        rows.append({
            "questionId": str(i), "question": q.text, "question_types": ["form"],
            "image": cell(p), "docId": i, "ucsf_document_id": f"drawn{i:04d}",
            "ucsf_document_page_no": "1", "answers": [q.answer], "data_split": "val",
        })  # fmt: skip
    return [Table("DocVQA", "validation", rows, docvqa_features)]


def infovqa_features():
    from datasets import Features, Image, List

    s, _, _ = _strings()
    return Features({
        "questionId": s, "question": s, "answers": List(s), "answer_type": List(s),
        "image": Image(), "image_url": s, "operation/reasoning": List(s), "ocr": s,
        "data_split": s,
    })  # fmt: skip


def infovqa(seed: int, n: int) -> list[Table]:
    """Charts and pages, in turn."""
    plan = (("chart", ("value",)), ("page", ("text",)), ("chart", ("extreme",)))
    rows = []
    for i, p, q in flat(collect("infovqa", seed, n, plan)):
        rows.append({
            "questionId": str(i), "question": q.text, "answers": [q.answer],
            "answer_type": ["single span"], "image": cell(p), "image_url": f"drawn{i:04d}",
            "operation/reasoning": [], "ocr": "", "data_split": "val",
        })  # fmt: skip
    return [Table("InfographicVQA", "validation", rows, infovqa_features)]


def vizwiz_features():
    from datasets import Features, Image, List

    s, _, _ = _strings()
    return Features({
        "question_id": s, "image": Image(), "question": s, "answers": List(s), "category": s,
    })  # fmt: skip


def vizwiz(seed: int, n: int) -> list[Table]:
    """A quarter of the questions are about something that is not in the picture."""
    plan = (("scene", ("text",)), ("scene", ("color", "shape")), ("scene", ("missing",)),
            ("scene", ("exist", "ground")))  # fmt: skip
    rows = []
    for i, p, q in flat(collect("vizwiz", seed, n, plan)):
        category = "unanswerable" if q.kind == "missing" else _answer_type(q)
        rows.append({
            "question_id": f"VizWiz_val_{i:08d}", "image": cell(p), "question": q.text,
            "answers": [q.answer.lower()] * 10, "category": category,
        })  # fmt: skip
    return [Table("data", "val", rows, vizwiz_features)]


def mmvet_features():
    from datasets import Features, Image

    s, _, _ = _strings()
    return Features({
        "question_id": s, "image": Image(), "question": s, "answer": s, "image_source": s,
        "capability": s,
    })  # fmt: skip


def mmvet(seed: int, n: int) -> list[Table]:
    skills = {"text": "ocr", "value": "ocr", "extreme": "rec,spat"}
    plan = (("scene", ("text", "color", "exist")), ("chart", ("value", "extreme")),
            ("scene", ("shape", "ground", "text")), ("page", ("text",)))  # fmt: skip
    rows = []
    for i, p, q in flat(collect("mmvet", seed, n, plan)):
        rows.append({
            "question_id": f"v1_{i}", "image": cell(p), "question": q.text, "answer": q.answer,
            "image_source": "drawn", "capability": skills.get(q.kind, "rec"),
        })  # fmt: skip
    return [Table("data", "test", rows, mmvet_features)]


def ocrbench_features():
    from datasets import Features, Image, List

    s, _, _ = _strings()
    return Features({
        "dataset": s, "question": s, "question_type": s, "answer": List(s), "image": Image(),
    })  # fmt: skip


def ocrbench(seed: int, n: int) -> list[Table]:
    """Words, numbers and random strings. The score is a share of 1000, as in the original."""
    plan = (("scene", ("text",)), ("scene", ("text",)), ("page", ("text",)), ("chart", ("value",)))
    rows = []
    for _, p, q in flat(collect("ocrbench", seed, n, plan)):
        if p.bars:
            kind = "Key Information Extraction"
        elif p.layout == "page":
            kind = "Doc-oriented VQA"
        elif q.answer.isdigit():
            kind = "Digit String Recognition"
        else:
            kind = "Scene Text-centric VQA"
        rows.append({
            "dataset": "drawn", "question": q.text, "question_type": kind, "answer": [q.answer],
            "image": cell(p),
        })  # fmt: skip
    return [Table("data", "test", rows, ocrbench_features)]
