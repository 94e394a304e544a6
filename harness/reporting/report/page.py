"""One HTML page with everything in it: it needs no server, no network and no other file."""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtprune.harness.reporting.report import samples
from vtprune.harness.reporting.tables import render
from vtprune.harness.reporting.tables.analysis import Grid
from vtprune.harness.request.errors import HarnessError
from vtprune.harness.request.terminal import visible_line

TEMPLATE = Path(__file__).with_name("page.html")


def build(grid: Grid, results: Path, *, limit: int = 40) -> str:
    """The page of a table; ``limit`` samples per benchmark."""
    plain, paper = render.Options(), render.Options(paper=True)
    data = samples.collect(grid, results, limit)
    published = ""
    if grid.table.published:
        table = render.html_table(grid, paper)
        published = f'<h2>Beside the paper</h2><div class="scroll">{table}</div>'
        published += _list(render._paper_notes(grid))
    done = sum(1 for cell in grid.found if cell.done)
    parts = {
        "TITLE": html.escape(visible_line(grid.table.title)),
        "SUBTITLE": html.escape(f"{done} of {len(grid.found)} cells are finished."),
        "TABLE": render.html_table(grid, plain),
        "NOTES": _list(render.notes(grid, plain), wrap=False),
        "PUBLISHED": published,
        "FIGURES": _figures(grid),
        "SAMPLENOTE": html.escape(_sample_note(data, limit)),
        "FOOT": _foot(render.provenance(grid)),
        "DATA": as_script(data),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    parts["SCRIPT"] = script_hash(template)
    # One pass over the template: a text that happens to contain @DATA@ is never expanded.
    return re.sub(r"@([A-Z]+)@", lambda found: parts[found[1]], template)


def script_hash(page: str) -> str:
    """What a browser may run: the script of this page, by its contents, and no other."""
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def as_script(data: Any) -> str:
    """JSON that is safe inside a script element: no ``<``, ``>`` or ``&`` in it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _list(lines: Sequence[str], wrap: bool = True) -> str:
    inner = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<ul class="notes">{inner}</ul>' if wrap else inner


def _sample_note(data: dict[str, Any], limit: int) -> str:
    note = f"Up to {limit} samples of each benchmark, those on which the rows disagree first. "
    note += "Removed tokens are dark; a click on an answer shows what that row kept. "
    note += "Rows of several seeds show their first."
    return note if data["images"] else note + " The images are not on this machine."


def _figures(grid: Grid) -> str:
    from vtprune.harness.reporting.figures import curves

    made = []
    for title, draw in (
        ("Score against compute", curves.cost_performance),
        ("Score against ratio", curves.over_ratios),
        ("Pareto front of score and compute", curves.pareto),
    ):
        try:
            wide, narrow = _png(draw(grid)), _png(draw(grid, curves.NARROW))
        except HarnessError:
            continue
        made.append(
            f"<figure><figcaption>{title}</figcaption><picture>"
            f'<source media="(max-width: 620px)" srcset="{narrow}">'
            f'<img alt="{title}" src="{wide}"></picture></figure>'
        )
    return "".join(made) or "<p>No finished cell to draw.</p>"


def _png(figure: Any) -> str:
    import matplotlib.pyplot as plt

    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _foot(text: str) -> str:
    lines = list(csv.DictReader(text.splitlines()))
    kept = ("row", "seed", "bench", "key", "finished", "torch", "transformers", "n", "failed",
            "reused", "marks")  # fmt: skip
    head = "".join(f"<th>{name}</th>" for name in kept)
    rows = []
    for line in lines:
        line["key"] = line["key"][:12]
        line["finished"] = line["finished"][:16]
        cells = "".join(f"<td>{html.escape(line[name])}</td>" for name in kept)
        rows.append(f"<tr>{cells}</tr>")
    body = "".join(rows)
    return f'<table class="grid"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
