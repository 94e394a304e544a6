"""A grid as text, CSV, Markdown, LaTeX and HTML. The same grid gives the same bytes."""

from __future__ import annotations

import csv
import html
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vtprune.harness.cost.conventions import MEANING as MEANING_OF_COST
from vtprune.harness.reporting.tables import gate, lookup, published, retained, speed
from vtprune.harness.reporting.tables.analysis import (
    NOT_FROM_BEST,
    NOT_FROM_RANDOM,
    OTHER_COUNT,
    Grid,
    Value,
)
from vtprune.harness.reporting.tables.escape import csv_field, markdown_text
from vtprune.harness.reporting.tables.spec import Row
from vtprune.harness.request.known import entries
from vtprune.harness.request.terminal import visible_line

MEANING = {
    **lookup.MARKS,
    NOT_FROM_BEST: "not distinguishable from the best of its group (Holm over the row, 5 %)",
    NOT_FROM_RANDOM: "not significantly better than random at the same ratio (Holm, 5 %)",
    speed.OTHER_THAN_SCORES: "timed with another dtype, kernel, device or checkpoint than the "
    "scores of this row",
    speed.UNSETTLED: "stages and whole call of this timing differ by more than "
    f"{100 * speed.AGREEMENT:.0f} %: repeat it (force=true)",
    retained.OTHER_CONDITIONS: "its unpruned run has other package versions, another device, dtype "
    "or kernel",
    OTHER_COUNT: "compute counted under another convention than this column, see the CSV",
}
HEADINGS = {
    "average": "Avg", "retained": "retained %", "macs": "MACs", "removal": "removed %",
    "throughput": "samples/s", "speedup": "speed-up", "agreement": "agreement %",
}  # fmt: skip
HOLES = {
    lookup.MISSING: "·", lookup.RUNNING: "running", lookup.FAILED: "failed",
    lookup.IMPOSSIBLE: "×", lookup.DONE: "?",  # done, and yet there is no number
}  # fmt: skip


#: of a page of a table: it loads nothing and runs nothing
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Options:
    """What stands in a cell besides the number."""

    ci: bool = False
    paper: bool = False
    agree: bool = False


def heading(column: str) -> str:
    """A column's name for people."""
    entry = entries("bench", column)
    return str(entry["label"]) if entry else HEADINGS[column]


def _titles(grid: Grid, *first: str) -> list[str]:
    named = {"macs": _compute_heading(grid)}
    return [*first, *(named.get(column) or heading(column) for column in grid.columns)]


def _compute_heading(grid: Grid) -> str:
    return _giga(grid)[1] + ("FLOPs" if grid.table.cost == "flops" else "MACs")


def _giga(grid: Grid) -> tuple[float, str]:
    """Factor and letter that make the compute of a small model readable."""
    counted = [v.value for (_, column), v in grid.values.items() if column == "macs" and v.value]
    return (1e3, "G") if counted and max(counted) < 0.1 else (1.0, "T")


def row_label(row: Row) -> str:
    """The row's name with what varies in its block."""
    varied = [f"{k.rpartition('.')[2]} {v:g}" for k, v in row.varied.items()]
    return visible_line(" ".join([row.label, *varied]))


def number(value: Value, column: str, factor: float = 1.0) -> str:
    """The number alone, or the sign of a hole; ``factor`` is that of compute."""
    if value.value is None:
        return HOLES[value.status]
    if column == "macs":
        return f"{factor * value.value:.2f}"
    if column == "speedup":
        return f"{value.value:.2f}x"
    return f"{value.value:.1f}" if column in ("removal", "throughput") else f"{value.value:.2f}"


def body(grid: Grid, row: Row, column: str, options: Options) -> str:
    """Number, spread over seeds and interval; without marks."""
    value = grid.at(row, column)
    text = number(value, column, _giga(grid)[0])
    if value.spread is not None:
        text += f"±{value.spread:.2f}"
    if options.ci and value.low is not None and value.high is not None:
        text += f" [{value.low:.1f}, {value.high:.1f}]"
    if options.agree and value.agreement is not None and not row.is_baseline:
        text += f" ={value.agreement:.0f}%"
    return text


def _paper(
    grid: Grid, row: Row, column: str, values: Mapping[tuple[str, str], float]
) -> str:  # fmt: skip
    printed = values.get((row.key, column))
    if printed is None or (column == "macs" and _giga(grid)[1] != "T"):
        return ""  # a model a thousand times smaller
    value = grid.at(row, column).value
    noted = "§" if (row.key, column) in published.annotations(grid.table) else ""
    difference = "" if value is None else f" {value - printed:+.2f}"
    return f" ({printed:.2f}{noted}{difference})"


def cells(
    grid: Grid,
    options: Options,
    bold: Callable[[str], str],
    mark: Callable[[Sequence[str]], str],
    escape: Callable[[str], str] = str,
) -> list[list[str]]:
    """All lines of the table as strings: label, ratio, one entry per column."""
    lines, paper = [], published.values(grid.table) if options.paper else {}
    for row in grid.table.rows:
        line = [escape(row_label(row)), f"{row.ratio:.3g}" if row.ratio else "-"]
        for column in grid.columns:
            value = grid.at(row, column)
            text = escape(body(grid, row, column, options))
            text = (bold(text) if value.best else text) + mark(value.marks)
            line.append(text + escape(_paper(grid, row, column, paper)))
        lines.append(line)
    return lines


def text(grid: Grid, options: Options) -> str:
    """For the terminal; ``*`` stands before the best of a group."""
    from tabulate import SEPARATING_LINE, tabulate

    lines: list[Any] = cells(grid, options, lambda t: f"*{t}", "".join)
    for place in reversed(_where_ours_begin(grid)):
        lines.insert(place, SEPARATING_LINE)
    titles = _titles(grid, "", "ratio")
    table = tabulate(lines, titles, disable_numparse=True, stralign="right")
    return "\n".join([visible_line(grid.table.title), "", table, "", *notes(grid, options)])


def _where_ours_begin(grid: Grid) -> list[int]:
    """Places where rows of one's own begin below others."""
    pairs = itertools.pairwise(grid.table.rows)
    return [place for place, (above, row) in enumerate(pairs, 1) if row.ours and not above.ours]


def _markdown_marks(marks: Sequence[str]) -> str:
    return f" {''.join(marks)}" if marks else ""


def markdown(grid: Grid, options: Options) -> str:
    """Markdown with the notes below."""
    lines = cells(grid, options, lambda t: f"**{t}**", _markdown_marks, markdown_text)
    titles = _titles(grid, "", "ratio")
    for line, row in zip(lines, grid.table.rows, strict=True):
        line[0] = f"*{line[0]}*" if row.ours else line[0]
    rule = ["---", *["---:"] * (len(titles) - 1)]
    table = ["| " + " | ".join(line) + " |" for line in [titles, rule, *lines]]
    told = [f"- {markdown_text(line)}" for line in notes(grid, options)]
    title = markdown_text(visible_line(grid.table.title))
    return "\n".join([f"# {title}", "", *table, "", *told]) + "\n"


_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$",
    "×": r"$\times$", "·": r"$\cdot$", "§": r"\S{}",
}  # fmt: skip
_TEX_MARKS = {NOT_FROM_BEST: r"\approx", NOT_FROM_RANDOM: r"\circ", gate.MARK: r"\dagger"}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


def _tex_marks(marks: Sequence[str]) -> str:
    shown = [_TEX_MARKS.get(m) or rf"\mathrm{{{m}}}" for m in marks]
    return f"$^{{{','.join(shown)}}}$" if shown else ""


def latex(grid: Grid, options: Options) -> str:
    """A booktabs table; needs no package but booktabs."""
    out = [r"\begin{tabular}{l" + "r" * (len(grid.columns) + 1) + "}", r"\toprule"]
    titles = _titles(grid, "Method", "Ratio")
    out += [" & ".join(map(_tex, titles)) + r" \\", r"\midrule"]
    block = grid.table.rows[0].block
    begin = {grid.table.rows[place].key for place in _where_ours_begin(grid)}
    lines = cells(grid, options, lambda t: f"\\textbf{{{t}}}", _tex_marks, _tex)
    for row, line in zip(grid.table.rows, lines, strict=True):
        if row.block != block:
            out += [r"\midrule"] * (2 if row.key in begin else 1)  # a double rule above ours
            block = row.block
        out.append(" & ".join(line) + r" \\")
    out += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(out + [f"% {line}" for line in notes(grid, options)]) + "\n"


def html_table(grid: Grid, options: Options) -> str:
    """The table element alone; interval, agreement and tests are its tooltips."""
    titles, paper = _titles(grid, "Method", "Ratio"), {}
    if options.paper:
        paper = published.values(grid.table)
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    rows = []
    for row in grid.table.rows:
        ratio = f"{row.ratio:.3g}" if row.ratio else "-"
        line = f'<th scope="row">{html.escape(row_label(row))}</th><td>{ratio}</td>'
        line += "".join(_html_cell(grid, row, column, options, paper) for column in grid.columns)
        rows.append(f'<tr class="ours">{line}</tr>' if row.ours else f"<tr>{line}</tr>")
    body_ = "\n".join(rows)
    return f'<table class="grid"><thead><tr>{head}</tr></thead><tbody>\n{body_}\n</tbody></table>'


def _html_cell(
    grid: Grid,
    row: Row,
    column: str,
    options: Options,
    printed: Mapping[tuple[str, str], float],
) -> str:
    value = grid.at(row, column)
    shown = html.escape(body(grid, row, column, options))
    shown = f"<b>{shown}</b>" if value.best else shown
    marks = f"<sup>{html.escape(''.join(value.marks))}</sup>" if value.marks else ""
    paper = html.escape(_paper(grid, row, column, printed))
    sort = "" if value.value is None else f' data-sort="{value.value:.6f}"'
    title = html.escape("; ".join(details(value)), quote=True)
    kind = "" if value.value is not None else ' class="hole"'
    return f'<td{sort}{kind} title="{title}">{shown}{marks}{paper}</td>'


def details(value: Value) -> list[str]:
    """What is known about one number, in words."""
    told = []
    if value.column in speed.COLUMNS:
        told = _timing_details(value)
    elif value.column == retained.COLUMN and value.low is not None and value.high is not None:
        told.append(f"95 % interval {value.low:.2f} to {value.high:.2f}, paired with the unpruned "
                    f"runs over {value.n} samples")  # fmt: skip
    elif value.low is not None and value.high is not None:
        told.append(f"95 % interval {value.low:.2f} to {value.high:.2f}, {value.n} samples")
    if value.spread is not None:
        told.append(f"{value.runs} seeds, standard deviation {value.spread:.2f}")
    if value.agreement is not None:
        told.append(f"{value.agreement:.1f} % of the answers are those of the unpruned model")
    for name, paired in value.against.items():
        told.append(
            f"{paired.difference:+.2f} against {name} [{paired.low:.2f}, {paired.high:.2f}], "
            f"p = {value.adjusted[name]:.3g} ({paired.test}, Holm)"
            + (f", {paired.needed} samples would tell" if paired.needed else "")
        )
    return told + ([visible_line(value.reason)] if value.reason else [])


def _timing_details(value: Value) -> list[str]:
    if value.low is None or value.high is None:
        return []
    if value.timing is None:
        return [f"median over the timings of this table, {value.low:.2f} to {value.high:.2f}"]
    return [f"median of {value.runs} rounds, 90 % interval {value.low:.2f} to {value.high:.2f}"]


def html_page(grid: Grid, options: Options) -> str:
    """The table as a page of its own."""
    told = "".join(f"<li>{html.escape(line)}</li>" for line in notes(grid, options))
    title = html.escape(visible_line(grid.table.title))
    style = (
        "body{font:15px/1.45 system-ui,sans-serif;margin:1.2em}.scroll{overflow-x:auto}"
        "table{border-collapse:collapse;font-size:.94em;font-variant-numeric:tabular-nums}"
        "td,th{padding:.28em .5em;text-align:right;white-space:nowrap;"
        "border-bottom:1px solid #ddd}th:first-child{text-align:left}"
        "sup{line-height:0;color:#667}.hole{color:#999}"
        "tr:not(.ours)+.ours>*{border-top:2px solid #667}.ours th{font-weight:700}"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{title}</title><style>{style}</style><h1>{title}</h1>"
        f'<div class="scroll">{html_table(grid, options)}</div><ul>{told}</ul></html>\n'
    )


CSV_FIELDS = (
    "row", "method", "ratio", "column", "status", "value", "low", "high", "spread", "runs", "n",
    "agreement", "best", "marks", "paper", "difference", "paper_note", "vs_best", "p_best",
    "vs_random", "p_random", "test", "needed_vs_best", "needed_vs_random", "reason", "keys",
)  # fmt: skip


def csv_text(grid: Grid) -> str:
    """One line per cell with everything that is known about it."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    printed, noted = published.values(grid.table), published.annotations(grid.table)
    for row in grid.table.rows:
        for column in grid.columns:
            value = grid.at(row, column)
            paper = printed.get((row.key, column))
            line = _csv_line(value, column) | {
                "paper": _digits(paper),
                "difference": _digits(_minus(value.value, paper)),
                "paper_note": noted.get((row.key, column), ""),
            }
            writer.writerow({name: csv_field(field) for name, field in line.items()})
    return stream.getvalue()


def _csv_line(value: Value, column: str) -> dict[str, Any]:
    best, random = value.against.get("best"), value.against.get("random")
    return {
        "row": value.row.key,
        "method": value.row.method,
        "ratio": f"{value.row.ratio:g}",
        "column": column,
        "status": value.status,
        **{k: _digits(getattr(value, k)) for k in ("value", "low", "high", "spread", "agreement")},
        "runs": value.runs,
        "n": value.n or "",
        "best": "yes" if value.best else "",
        "marks": "".join(value.marks),
        "vs_best": _digits(best and best.difference),
        "p_best": _digits(value.adjusted.get("best")),
        "vs_random": _digits(random and random.difference),
        "p_random": _digits(value.adjusted.get("random")),
        "test": (random or best).test if random or best else "",
        "needed_vs_best": (best and best.needed) or "",
        "needed_vs_random": (random and random.needed) or "",
        "reason": value.reason,
        "keys": " ".join(str(result["key"])[:8] for result in _behind(value)),
    }


def _behind(value: Value) -> list[Any]:
    """Stored results that a value comes from."""
    found = [value.timing] if value.timing else value.cells
    return [one.result for one in found if one.result]


def _minus(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def notes(grid: Grid, options: Options) -> list[str]:
    """What a reader of the table must know; each on one line, with nothing but signs to show."""
    return [visible_line(line) for line in _notes(grid, options)]


def _notes(grid: Grid, options: Options) -> list[str]:
    told = [f"{name}: {meaning}" for name, meaning in grid.table.conventions.items()]
    if "macs" in grid.columns:
        counted = MEANING_OF_COST[grid.table.cost]
        told.append(f"{_compute_heading(grid)}: of a prefill, counted as {grid.table.cost} "
                    f"({counted})")  # fmt: skip
    if retained.COLUMN in grid.columns:
        told.append(retained.meaning(grid.table))
    if grid.timed:
        told.append(speed.conditions(grid.timed))
    told += grid.table.notes
    done = [cell for cell in grid.found if cell.result]
    results = [cell.result for cell in done if cell.result]
    told += gate.settings_lines(results)
    if any(result["data"] == "mini" for result in results):
        told.append("data=mini: drawn stand-in images, not the benchmark; compare rows only")
    if any(result.get("judge") == "rule" for result in results):
        told.append("MMBench, MM-Vet: answers judged by rule, not by a language model")
    there = grid.marks()
    told += [f"{mark} {meaning}" for mark, meaning in MEANING.items() if mark in there - {"†"}]
    if gate.MARK in there:
        told += gate.explanations(gate.status_of(cell.unpruned) for cell in done)
    statuses = {value.status for value in grid.values.values()}
    signs = {lookup.MISSING: "not run yet", lookup.IMPOSSIBLE: "impossible, see the CSV"}
    told += [f"{HOLES[s]} {meaning}" for s, meaning in signs.items() if s in statuses]
    if any(v.status == lookup.DONE and v.value is None for v in grid.values.values()):
        told.append(f"{HOLES[lookup.DONE]} cannot be computed, see the CSV")
    if any(value.spread is not None for value in grid.values.values()):
        told.append("± standard deviation over the seeds of random")
    if options.agree:
        told.append("=: share of answers equal to the unpruned model's")
    if options.paper:
        told += _paper_notes(grid)
    return told


def _paper_notes(grid: Grid) -> list[str]:
    told = ["in brackets: the published value and the difference from it"]
    if not grid.table.published:
        return ["nothing published is kept for this table"]
    if any(gate.covers_a_part(cell.result) for cell in grid.found if cell.result):
        told.append("only a part of the benchmarks was asked: no difference from a published value "
                    "says anything about the whole")  # fmt: skip
    for (row, column), note in published.annotations(grid.table).items():
        if any(r.key == row for r in grid.table.rows) and column in grid.columns:
            told.append(f"§ {row}, {heading(column)}: {note}")
    if retained.COLUMN in grid.columns and published.derives_retained(grid.table):
        told.append("published retained %: computed here from the published columns")
    if "macs" in grid.columns and not published.same_count(grid.table):
        told.append(f"the published compute is counted under {published.count_of(grid.table)}: "
                    "not compared")  # fmt: skip
    return told


PROVENANCE_FIELDS = (
    "row", "seed", "bench", "key", "finished", "commit", "modified", "code", "checkpoint", "data",
    "preset", "device", "dtype", "torch", "transformers", "engine_version", "n", "failed",
    "resumed_after", "reused", "wall_s", "marks",
)  # fmt: skip


def provenance(grid: Grid) -> str:
    """The foot file: where each cell comes from."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, PROVENANCE_FIELDS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for cell in grid.found:
        if cell.result:
            writer.writerow({k: csv_field(v) for k, v in _provenance_line(cell).items()})
    for timed in grid.timed:
        if timed.result:
            writer.writerow({k: csv_field(v) for k, v in _timing_line(timed).items()})
    return stream.getvalue()


def _timing_line(timed: speed.Timed) -> dict[str, Any]:
    result = timed.result or {}
    origin, model = result["provenance"], result["identity"]["model"]
    return {
        "row": timed.wanted.row.key,
        "seed": timed.wanted.config["seed"],
        "bench": "timing",
        "key": result["key"],
        "finished": result["finished"],
        **{k: origin[k] for k in ("commit", "modified", "code")},
        "checkpoint": model.get("checkpoint", "random weights"),
        "device": origin["hardware"]["device"],
        "dtype": model["dtype"],
        "torch": origin["versions"]["torch"],
        "transformers": origin["versions"]["transformers"],
        "n": speed.rounds(timed),
        "marks": "".join(timed.marks),
    }


def _provenance_line(cell: lookup.Found) -> dict[str, Any]:
    result = cell.result or {}
    identity, origin = result["identity"], result["provenance"]
    versions = identity["versions"]
    engine = next((v for k, v in versions.items() if k.replace("-", "_").endswith("eval")), "")
    data = identity["data"]
    return {
        "row": cell.wanted.row.key,
        "seed": cell.wanted.config["seed"],
        "bench": cell.wanted.bench,
        **{k: result[k] for k in ("key", "finished", "wall_s", "resumed_after")},
        "reused": result.get("reused", 0),
        **{k: origin[k] for k in ("commit", "modified", "code")},
        "checkpoint": identity["model"]["checkpoint"],
        "data": f"{data['source']} {data.get('content') or data.get('revision') or ''}".strip(),
        "preset": gate.settings(result),
        "device": origin["hardware"]["device"],
        "dtype": identity["model"]["dtype"],
        "torch": versions["torch"],
        "transformers": versions["transformers"],
        "engine_version": engine,
        "n": result["n_samples"],
        "failed": result["n_failed"],
        "marks": "".join(cell.marks),
    }
