"""Figures: where tokens lie, what is drawn, the same bytes twice."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests import table_tools as tools
from vtprune.harness import cli
from vtprune.harness.reporting.figures import command, curves, flow, geometry, paper, rows
from vtprune.harness.reporting.report import samples as page_samples
from vtprune.harness.reporting.tables import analysis, spec
from vtprune.harness.request.errors import ConfigError, HarnessError

pytestmark = pytest.mark.slow


def record(total, grids, kept=None):
    mask = np.ones(total, dtype=bool) if kept is None else kept
    bits = base64.b64encode(np.packbits(mask).tobytes()).decode()
    return {"visual_tokens": total, "grids": grids, "kept": [[0, bits]], "crops": grids[0][0]}


def test_one_view_is_the_middle_of_the_image_for_llava():
    found = geometry.panels(record(196, [[1, 14, 14]]), (200, 100), "llava")
    assert [panel.name for panel in found] == ["image"]
    assert found[0].region == (0.25, 0.0, 0.75, 1.0)
    assert found[0].tokens[1, 2] == 16


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1000, 250), (333, 333), (672, 335)])
def test_crops_lie_where_the_library_puts_them(size):
    import torch
    from transformers.models.llava_next.modeling_llava_next import (
        get_anyres_image_grid_shape,
        unpad_image,
    )

    pinpoints = [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]
    shape = get_anyres_image_grid_shape((size[1], size[0]), pinpoints, 112)
    marks = torch.arange(shape[0] * 14 * shape[1] * 14).reshape(1, shape[0] * 14, shape[1] * 14)
    left = unpad_image(marks, (size[1], size[0]))[0]
    rows, cols = left.shape
    total = 196 + rows * (cols + 1)
    grid = [[1 + int(shape[0] * shape[1]), 14, 14]]
    base, crops = geometry.panels(record(total, grid), size, "llava_next")
    assert crops.tokens.shape == (rows, cols)
    assert crops.tokens[0, 0] == 196 and crops.tokens[-1, -1] == total - 2
    assert geometry.newline_kept(record(total, grid), [base, crops]) == (rows, rows)


def test_what_cannot_be_placed_says_so():
    with pytest.raises(HarnessError, match="fit no layout"):
        geometry.panels(record(199, [[3, 14, 14]]), (100, 100), "llava_next")
    with pytest.raises(HarnessError, match="2 images"):
        geometry.panels(record(392, [[1, 14, 14]] * 2), (100, 100), "llava")


def test_removed_tokens_are_dark_and_kept_ones_are_not():
    kept = np.zeros(196, dtype=bool)
    kept[0] = True
    white = PIL.Image.new("RGB", (140, 140), "white")
    panel = geometry.panels(record(196, [[1, 14, 14]], kept), white.size, "llava")[0]
    pixels = geometry.veiled(white, panel, geometry.kept(record(196, [[1, 14, 14]], kept)))
    side = pixels.shape[0] // 14
    assert (pixels[:side, :side] == 255).all()
    assert pixels[side:].max() < 100 and pixels[:, side:].max() < 100


def test_later_drops_count():
    first, second = np.ones(8, dtype=bool), np.zeros(8, dtype=bool)
    second[3] = True
    bits = [base64.b64encode(np.packbits(m).tobytes()).decode() for m in (first, second)]
    entry = {"visual_tokens": 8, "kept": [[0, bits[0]], [2, bits[1]]]}
    assert geometry.kept(entry, 1).all() and geometry.kept(entry).sum() == 1


@pytest.fixture
def grid(tmp_path):
    table = spec.load("fig4", {"model": "embedded", "data": "mini"})
    shares = {"none": 0.9, "l2norm": 0.5, "gprune": 0.7}
    for cell in table.cells():
        tools.put(tmp_path, cell, tools.right_wrong(shares[cell.row.method] - cell.row.ratio / 5))
    return analysis.build(table, tmp_path)


def test_curves_hold_every_finished_cell_and_the_baseline(grid):
    made = curves.over_ratios(grid)
    axes = made.axes[0]
    lines = {c.get_label(): c.lines[0] for c in axes.containers}
    assert set(lines) == {"l2 norm", "G-Prune"}
    assert list(lines["G-Prune"].get_xdata()) == [0.1, 0.3, 0.5, 0.7, 0.9]
    expected = [100 * np.mean(tools.right_wrong(0.7 - r / 5) > 0) for r in (0.1, 0.9)]
    assert [lines["G-Prune"].get_ydata()[i] for i in (0, -1)] == pytest.approx(expected)
    assert axes.get_title() == "GQA" and len(made.axes) == 2
    bars = next(c for c in axes.containers if c.get_label() == "G-Prune").lines[2][0]
    (first, *_) = bars.get_segments()
    row = next(r for r in grid.table.rows if r.key == "gprune 0.1")
    value = grid.at(row, "gqa")
    assert sorted(y for _, y in first) == pytest.approx([value.low, value.high])


def test_cells_that_are_counted_otherwise_have_no_place_on_the_axis(grid, tmp_path):
    before = {(p.label, p.ratio) for p in curves.points(grid, "gqa")}
    for file in tmp_path.glob("runs/gqa/*/gprune-0.5-*/samples.jsonl"):
        entries = [
            {**json.loads(x), "pruning": None}
            for x in file.read_text(encoding="utf-8").splitlines()
        ]
        file.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")
    left = {(p.label, p.ratio) for p in curves.points(grid, "gqa")}
    assert before - left == {("G-Prune", 0.5)}


def test_the_published_points_stand_where_the_text_puts_them(tmp_path):
    table = spec.load("fig3")
    for cell in table.cells():
        tools.put(tmp_path, cell, tools.right_wrong(0.8 - cell.row.ratio / 5))
    grid = analysis.build(table, tmp_path, statistics=False)
    made = curves.cost_performance(grid)
    assert [a.get_title() for a in made.axes[:4]] == ["POPE", "TextVQA", "DocVQA", "MME"]
    named = [[c for c in a.collections if "published" in str(c.get_label())] for a in made.axes]
    assert [len(found) for found in named[:4]] == [1, 0, 0, 0]
    assert named[0][0].get_offsets().tolist() == [[18.3, 87.84], [6.69, 87.69], [3.37, 84.49]]
    other = analysis.build(spec.load("fig3", cost="flops"), tmp_path, statistics=False)
    axes = curves.cost_performance(other).axes[0]
    assert "FLOPs" in axes.get_xlabel()
    assert not [c for c in axes.collections if "published" in str(c.get_label())]


def test_the_front_holds_what_nothing_beats():
    def point(cost, score):
        value = analysis.Value(None, "gqa", "done", value=score)
        return curves.Point("b", "b", 0.5, cost, value)

    found = [point(1, 50), point(2, 40), point(2, 60), point(3, 60), point(4, 90)]
    assert [(p.cost, p.value.value) for p in curves.front(found)] == [(1, 50), (2, 60), (4, 90)]


def test_a_figure_is_written_three_times_with_the_same_bytes(grid, tmp_path):
    twice = []
    for name in ("one", "two"):
        files = paper.save(curves.pareto(grid), tmp_path / name / "pareto")
        assert [file.suffix for file in files] == [".png", ".svg", ".pdf"]
        twice.append([file.read_bytes() for file in files])
    assert twice[0] == twice[1]


def test_probes_are_drawn_without_a_model(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "probes" / "m"
    folder.mkdir(parents=True)
    np.savez(
        folder / "gqa-0.npz", steps=np.array([0, 1, 5]), views=1, question="What?",
        image=np.zeros((8, 8, 3), dtype=np.uint8), grid_0=np.array([4, 4]),
        norm_0=rng.random(16), flow_0=rng.random((3, 16)), foreground_0=np.arange(16) < 4,
    )  # fmt: skip
    made = flow.heat_maps(folder / "gqa-0.npz")
    assert [a.get_title() for a in made.axes] == ["image", "0 steps", "1 step", "5 steps"]
    files = command.run(["kind=norms", f"results={tmp_path}", f"out={tmp_path}"])
    assert {file.suffix for file in files} == {".png", ".svg", ".pdf"}


def test_nothing_to_draw_is_one_line(tmp_path):
    for arguments in (["kind=flow"], ["table=fig4", "kind=cost"], ["kind=kept"], []):
        with pytest.raises(ConfigError):
            command.run([*arguments, f"results={tmp_path}"])


def test_the_image_of_a_row_is_found_among_other_columns():
    import io

    stream = io.BytesIO()
    PIL.Image.new("RGB", (3, 2), "red").save(stream, "PNG")
    image = {"bytes": stream.getvalue(), "path": None}
    for value in (image, [image]):
        row = {"id": 1, "objects": [{"name": "cube"}], "meta": {"bytes": None}, "picture": value}
        assert rows.picture(rows._first_image(row)).size == (3, 2)
    with pytest.raises(HarnessError, match="no image"):
        rows._first_image({"id": 1, "objects": [{"name": "cube"}]})


def test_kept_tokens_probes_and_the_report_show_the_pictures_of_a_run(tmp_path, capsys):
    settings = {"bench.limit": 2, "data.samples": 8}
    table = spec.load("mini_table2", settings)
    cells = {cell.row.method: cell for cell in table.cells() if cell.bench == "gqa"}
    for method in ("none", "l2norm"):
        assert cli.main([*cells[method].arguments, f"paths.results={tmp_path}"]) == 0
    capsys.readouterr()
    given = [f"results={tmp_path}", "bench=gqa", "docs=[0,1]"]
    asked = ["table=mini_table2", *(f"{k}={v}" for k, v in settings.items())]
    for arguments, count in (([*asked, "kind=kept"], 2 * 3), (["probe", "model=embedded"], 2)):
        assert command.main([*arguments, *given]) == 0, capsys.readouterr().err
        written = capsys.readouterr().out.split()
        assert len(written) == count and all(Path(name).is_file() for name in written)
    shown = page_samples.collect(analysis.build(table, tmp_path), tmp_path, 5)
    assert len(shown["images"]) == 2
    assert any("visual tokens stay" in a.get("v", "") for s in shown["samples"]
               for a in s["answers"].values())  # fmt: skip
