"""Twelve drawn pictures of the shapes and modes that real benchmarks hold. Imports nothing of ours.

The mini data are squares of 112 x 112 pixels: no cropping, padding, tiling or limit of pixels is
seen there.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

#: name, mode, (width, height), file format, EXIF orientation
KINDS: tuple[tuple[str, str, tuple[int, int], str, int | None], ...] = (
    ("rgb wide", "RGB", (640, 480), "JPEG", None),
    ("grey", "L", (333, 251), "PNG", None),
    ("turned", "RGB", (500, 333), "JPEG", 6),
    ("transparent", "RGBA", (257, 129), "PNG", None),
    ("rgb tiny", "RGB", (10, 8), "PNG", None),
    ("rgb strip", "RGB", (1000, 130), "PNG", None),
    ("rgb large", "RGB", (1600, 1200), "JPEG", None),
    ("cmyk", "CMYK", (512, 384), "JPEG", None),
    ("sixteen bit", "I;16", (224, 224), "PNG", None),
    ("palette", "P", (300, 301), "PNG", None),
    ("rgb tall", "RGB", (427, 640), "PNG", None),
    ("rgb column", "RGB", (90, 700), "PNG", None),
)
TURNED = next(row for row, kind in enumerate(KINDS) if kind[4])
#: VLMEvalKit stops at a CMYK picture: it writes every picture as PNG, which has no such mode
IN_TABLES = tuple(row for row, kind in enumerate(KINDS) if kind[1] != "CMYK")


def drawn(row: int, seed: int = 0) -> bytes:
    """The file of the ``row``-th picture: smooth colours with edges and noise, from a seed."""
    _, mode, (width, height), form, orientation = KINDS[row]
    random = np.random.default_rng([seed, row])
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / random.uniform(5, 60) + y / random.uniform(5, 60)) for _ in range(3)]
    values = np.stack(waves, -1) * 90 + 128 + random.integers(-20, 20, (height, width, 3))
    values[: height // 3, : width // 4] = random.integers(0, 256, 3)  # an edge, and no symmetry
    rgb = PIL.Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    file = io.BytesIO()
    more: dict[str, Any] = {}
    if orientation:
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        more["exif"] = exif
    _in_mode(rgb, mode).save(file, form, **more)
    return file.getvalue()


def _in_mode(rgb: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    if mode == "RGBA":
        rgb.putalpha(rgb.convert("L").point(lambda value: min(255, 2 * value)))
        return rgb
    if mode == "I;16":
        # Values of a byte and a half: what is above 255 is cut, not scaled, by a plain convert.
        grey = np.asarray(rgb.convert("L")).astype(np.uint16) * 3
        return PIL.Image.fromarray(grey)
    if mode == "P":
        return rgb.quantize(64)
    return rgb.convert(mode)


def parquet(root: Path, dataset: str = "lmms-lab-encoder/ChartQA") -> Path:
    """The pictures as ChartQA's test split in the layout of the hub, below ``root``."""
    import datasets

    features = datasets.Features({
        "type": datasets.Value("string"), "question": datasets.Value("string"),
        "answer": datasets.Value("string"), "image": datasets.Image(),
    })  # fmt: skip
    rows = [
        {
            **_asked(row),
            "type": ("human_test", "augmented_test")[row % 2],
            "image": {"bytes": drawn(row), "path": None},
        }
        for row in range(len(KINDS))
    ]
    folder = root / dataset / "data"
    folder.mkdir(parents=True, exist_ok=True)
    made = datasets.Dataset.from_list(rows, features=features)
    made.to_parquet(folder / "test-00000-of-00001.parquet")
    return root


def table(root: Path, name: str = "ChartQA_TEST") -> Path:
    """The rows :data:`IN_TABLES` as VLMEvalKit's table, below ``root``."""
    import csv

    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{name}.tsv").open("w", newline="", encoding="utf-8") as stream:
        columns = ["index", "image", "question", "answer", "split"]
        writer = csv.DictWriter(stream, columns, delimiter="\t", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        for row in IN_TABLES:
            picture = base64.b64encode(drawn(row)).decode()
            split = ("test_human", "test_augmented")[row % 2]
            writer.writerow({"index": row, "image": picture, **_asked(row), "split": split})
    return root


def _asked(row: int) -> dict[str, str]:
    return {"question": f"What is shown in picture {row}?", "answer": str(row)}
