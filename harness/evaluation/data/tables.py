"""TSV tables as VLMEvalKit reads them: drawn ones, and the place of downloaded ones.

The drawn tables hold the same questions and pictures as the parquet files of the same benchmark
and seed, in the other engine's columns, so both engines ask about the same things.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.hub import NotFetched

LIBRARY_FOLDER = "LMUData"  # the variable the library looks for its tables with
STEP = 1_000_000  # distance of the indices of a question's rotations
Row = dict[str, Any]


def build(bench: str, table: str, root: Path, seed: int = 0, n: int | None = None) -> Path:
    """Write ``<root>/<table>.tsv`` from the drawn rows of a benchmark.

    Raises:
        ConfigError: the benchmark has no such table.
    """
    from vtprune.harness.evaluation.data import mini

    if bench not in _ROWS:
        raise ConfigError(f"data=mini has no VLMEvalKit table for bench={bench}")
    rows = list(_ROWS[bench](mini.tables(bench, seed, n)))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    root.mkdir(parents=True, exist_ok=True)
    file = root / f"{table}.tsv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(
            stream, columns, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    return file


@dataclass(frozen=True)
class Origin:
    """Which hub row a table row comes from, and how far its options were turned."""

    row: int
    turn: int = 0
    options: int = 0


def origins(bench: str, made: list[Any]) -> list[Origin]:
    """The origin of every row that :func:`build` writes for these drawn tables."""
    rows = made[0].rows
    if _ROWS[bench] is not _mmbench:
        return [Origin(i) for i in range(len(rows))]
    counts = [sum(row[letter] != "nan" for letter in "ABCD") for row in rows]
    return [Origin(i, turn, n) for i, n in enumerate(counts) for turn in range(n)]


def content(file: Path) -> dict[str, Any]:
    """Row count and hash of a table."""
    data = file.read_bytes()
    return {"rows": data.count(b"\n") - 1, "content": hashlib.sha256(data).hexdigest()[:16]}


def downloaded(root: str | None, table: str) -> Path:
    """A published table below ``root`` (or the library's own folder).

    Raises:
        NotFetched: it is not there.
    """
    folder = Path(root or os.environ.get(LIBRARY_FOLDER) or "~/LMUData").expanduser()
    file = folder / f"{table}.tsv"
    if not file.is_file():
        raise NotFetched(f"data=hub: {table}.tsv is not in {folder}", "or use data=mini")
    return file.resolve()


def md5(file: Path) -> str:
    """md5 of a file of any size, as VLMEvalKit publishes them."""
    digest = hashlib.md5()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _picture(row: Row) -> str:
    return base64.b64encode(row["image"]["bytes"]).decode()


def _mmbench(tables: list[Any]) -> Iterator[Row]:
    """Every question with its options turned round, as circular evaluation wants it.

    Only the first carries the picture; the others name its row.
    """
    for row in tables[0].rows:
        options = [row[letter] for letter in "ABCD" if row[letter] != "nan"]
        right = "ABCD".index(row["answer"])
        for turn in range(len(options)):
            turned = options[turn:] + options[:turn]
            yield {
                "index": row["index"] + turn * STEP,
                "image": str(row["index"]) if turn else _picture(row),
                "question": row["question"],
                **dict(zip("ABCD", turned, strict=False)),
                "answer": "ABCD"[(right - turn) % len(options)],
                "category": row["category"],
                "l2-category": row["L2-category"],
                "split": row["split"],
            }


def _choices(options: list[str]) -> Row:
    return dict(zip("ABCDE", options, strict=False))


def _scienceqa(tables: list[Any]) -> Iterator[Row]:
    for i, row in enumerate(tables[0].rows):
        yield {
            "index": i, "image": _picture(row), "question": row["question"], "hint": row["hint"],
            **_choices(row["choices"]), "answer": "ABCDE"[row["answer"]],
            "category": row["category"], "split": "test",
        }  # fmt: skip


def _seedbench(tables: list[Any]) -> Iterator[Row]:
    for i, row in enumerate(tables[0].rows):
        yield {
            "index": i, "image": base64.b64encode(row["image"][0]["bytes"]).decode(),
            "question": row["question"], **_choices([row[f"choice_{k}"] for k in "abcd"]),
            "answer": row["answer"], "category": f"type {row['question_type_id']}",
        }  # fmt: skip


def _gqa(tables: list[Any]) -> Iterator[Row]:
    pictures = {row["id"]: _picture(row) for row in tables[1].rows}
    for i, row in enumerate(tables[0].rows):
        yield {"index": i, "image": pictures[row["imageId"]], "question": row["question"],
               "answer": row["answer"]}  # fmt: skip


def _plain(answer: Callable[[Row], str], **more: Callable[[Row], str]) -> Callable[..., Any]:
    def rows(tables: list[Any]) -> Iterator[Row]:
        for i, row in enumerate(tables[0].rows):
            yield {
                "index": i, "image": _picture(row), "question": row["question"],
                "answer": answer(row), **{name: value(row) for name, value in more.items()},
            }  # fmt: skip

    return rows


def _vizwiz(tables: list[Any]) -> Iterator[Row]:
    for row in _plain(lambda row: str(row["answers"]))(tables):
        yield {**row, "answers": row["answer"]}


_ROWS: dict[str, Callable[[list[Any]], Iterator[Row]]] = {
    "gqa": _gqa,
    "mme": _plain(
        lambda row: row["answer"],
        category=lambda row: row["category"],
        image_path=lambda row: row["question_id"],
    ),
    "pope": _plain(
        lambda row: row["answer"].capitalize(), category=lambda row: row["category"]
    ),
    "mmbench_en": _mmbench,
    "mmbench_cn": _mmbench,
    "chartqa": _plain(
        lambda row: row["answer"],
        split=lambda row: "test_" + row["type"].removesuffix("_test"),
    ),
    "docvqa": _plain(lambda row: str(row["answers"])),
    "textvqa": _plain(lambda row: str(row["answers"])),
    "scienceqa": _scienceqa,
    "seedbench": _seedbench,
    "vizwiz": _vizwiz,
    "ocrbench": _plain(
        lambda row: str(row["answer"]), category=lambda row: row["question_type"]
    ),
}  # fmt: skip
