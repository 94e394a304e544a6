"""Every registered method at a glance, with what it keeps of one picture: docs/methods.md.

    python scripts/gallery.py                       writes docs/methods.md and its picture
    python scripts/gallery.py --out methods.md      somewhere else, with your own methods too
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtprune import places
from vtprune.harness.request import arguments as given
from vtprune.harness.request.errors import ConfigError

RATIO = 0.9
COLUMNS = 6
_STAGES = {
    "input": "before the encoder",
    "projector": "before the LLM",
    "vision": "encoder scores, before the LLM",
    "layer": "inside the LLM",
    "compose": "before and inside the LLM",
    "none": "nowhere",
}


def main(arguments: Sequence[str]) -> int:
    """Write the page and its picture; prints their files."""
    parser = given.parser("gallery", __doc__)
    parser.add_argument("--out", type=Path, help="default: docs/methods.md of the checkout")
    options = parser.parse_args(arguments)
    if options.out is None and places.CHECKOUT is None:
        raise ConfigError("an installed package has no docs/methods.md: give --out FILE")
    page = options.out or places.CHECKOUT / "docs" / "methods.md"
    for path in write(page, places.path("models/embedded/llava")):
        print(path)
    return 0


def write(page: Path, checkpoint: Path, row: int = 3) -> list[Path]:
    """Write the page and, beside it, the picture of kept tokens; returns both paths.

    Args:
        checkpoint: a LLaVA-1.5-like model, one square view per picture.
        row: sample of the drawn TextVQA stand-in that is shown.
    """
    from vtprune import methods

    names = methods.available()
    picture = page.with_name(f"{page.stem}-kept.png")
    kept, notes, shown = _kept(checkpoint, names, row)
    _draw(kept, shown, picture)
    lines = _header(picture.name, shown["question"])
    for name in names:
        lines += _entry(methods.get(name), notes.get(name, ""))
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [page, picture]


def _kept(checkpoint: Path, names: list[str], row: int) -> tuple[dict, dict, dict[str, Any]]:
    """Kept mask ``[rows, cols]`` in the last layer per method (a picture where that is what the
    method changes), remarks, and what was asked."""
    import PIL.Image

    from vtprune import methods
    from vtprune.harness.cell.answerer import chat_inputs
    from vtprune.harness.evaluation.data import mini
    from vtprune.harness.evaluation.engines.base import Question
    from vtprune.models.load import load

    sample = mini.tables("textvqa", seed=0, n=row + 1)[0].rows[row]
    image = PIL.Image.open(io.BytesIO(sample["image"]["bytes"])).convert("RGB")
    vlm = load({"path": checkpoint, "name": "gallery", "device": "cpu", "threads": 1})
    question = Question(row, "gallery", sample["question"], lambda: [image])
    inputs = chat_inputs(vlm, [question], [[image]])
    kept, notes = {}, {}
    for name in names:
        if methods.get(name).stage == "input":
            mask, note = _changed(vlm, name, question, image)
        else:
            mask, note = _one(vlm.model, name, inputs)
        notes[name] = note
        if mask is not None:
            kept[name] = mask
    return kept, notes, {"image": image, "question": sample["question"]}


def _one(model: Any, name: str, inputs: Any) -> tuple[Any, str]:
    """Mask of one method at the page's ratio, or why there is none."""
    import torch

    from vtprune import methods
    from vtprune.models import prune
    from vtprune.models.errors import PruningUnsupported

    cls = methods.get(name)
    options = {} if name == "none" else {**cls.example, "ratio": RATIO}
    note = ""
    ways: list[dict[str, Any]] = [{}, {"ratio_mode": "local"}]
    if name == "compose":  # two methods share the ratio; its own way asks too much of a few layers
        ways = [{"first_ratio": 0.8}]
    for extra in ways:
        try:
            with prune(model, name, **options, **extra) as run, torch.inference_mode():
                run.begin(["gallery"])
                model(**inputs, use_cache=True)
                record = run.take()[0]
        except (methods.MethodError, PruningUnsupported) as error:
            note = note or str(error)
            continue
        side = round(record.visual_tokens**0.5)
        text = ", ".join(f"{k}={v}" for k, v in {**options, **extra}.items() if k != "ratio")
        mask = record.alive(record.n_layers - 1).reshape(side, side).numpy()
        removed = f"removes {record.mean_removal:.1%} on average"
        return mask, f"{removed} ({text})" if text else removed
    return None, note


def _changed(vlm: Any, name: str, question: Any, image: Any) -> tuple[Any, str]:
    """The picture such a method leaves, or None, and what it removes."""
    import torch

    from vtprune import methods
    from vtprune.harness.cell.answerer import chat_inputs
    from vtprune.models import prune

    cls = methods.get(name)
    ratio = cls.example["ratio"] if cls.example["ratio"] == 1 else RATIO
    with prune(vlm.model, name, ratio=ratio) as run, torch.inference_mode():
        (pictures,), processor = run.reduce([[image]], vlm.processor)
        inputs = chat_inputs(vlm, [question], [pictures], None, processor)
        run.begin(["gallery"])
        vlm.model(**inputs, use_cache=True)
        record = run.take()[0]
    note = f"removes {record.mean_removal:.1%} on average"
    if not pictures:
        return None, note
    _, rows, cols = record.grids[0]
    pixels = inputs["pixel_values"].shape[-2:]
    return pictures[0].resize((pixels[1], pixels[0])), f"{note} ({rows} x {cols} tokens)"


def _draw(kept: dict[str, Any], shown: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    rows = -(-len(kept) // COLUMNS)
    figure = Figure(figsize=(2.0 * COLUMNS, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    width, height = shown["image"].size
    for axis, (name, mask) in zip(axes, kept.items(), strict=False):
        if not hasattr(mask, "sum"):  # a smaller picture, nothing of it hidden
            axis.imshow(mask, extent=(0, width, height, 0), interpolation="nearest")
            axis.set_title(f"{name} ({mask.width} x {mask.height} pixels)", fontsize=9)
            continue
        axis.imshow(shown["image"], extent=(0, width, height, 0), interpolation="nearest")
        veil = [[(1, 1, 1, 0.0 if cell else 0.82) for cell in line] for line in mask]
        axis.imshow(veil, extent=(0, width, height, 0), interpolation="nearest")
        axis.set_title(f"{name} ({int(mask.sum())})", fontsize=9)
    figure.savefig(path, dpi=110)


def _header(picture: str, question: str) -> list[str]:
    return [
        "# Methods",
        "",
        "Made from the registry by `python scripts/gallery.py`. The pictures show the tokens in",
        f"force in the last layer of the embedded model at ratio {RATIO}, asked \"{question}\"; in",
        "brackets their number. Methods inside the language model keep more in earlier layers, and",
        "fewer layers than in a 7B model leave them less room, so some are shown with their own",
        "parameter (`ratio_mode=local`).",
        "",
        f"![kept tokens]({picture})",
        "",
    ]


def _entry(cls: Any, note: str) -> list[str]:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    own = [n for n in fields if n not in _common()]
    defaults = ", ".join(f"{n}={_default(fields[n])}" for n in own)
    facts = [_STAGES[cls.stage]]
    query = inspect.getattr_static(cls, "query_aware", False)
    facts.append("reads the question" if query is True else "blind to the question")
    if inspect.getattr_static(cls, "merges", False) is True:
        facts.append("merges")
    paper = f" ({cls.paper})" if cls.paper else ""
    return [
        f"## {cls.name}: {cls.title}{paper}",
        "",
        f"*{'; '.join(facts)}.* {note[:1].upper()}{note[1:]}.".replace("..", "."),
        "",
        *inspect.getdoc(cls).splitlines(),
        "",
        f"Defaults: `{defaults}`" if defaults else "No options of its own.",
        "",
    ]


def _common() -> set[str]:
    from vtprune import methods

    return {f.name for f in dataclasses.fields(methods.PruningMethod)}


def _default(item: Any) -> str:
    made = item.default_factory is not dataclasses.MISSING
    return str(item.default_factory() if made else item.default)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
