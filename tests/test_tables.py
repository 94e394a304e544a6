"""The frame over all results, the printed table, and the counters below them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import command_tools
from vtprune.harness.cell import meter
from vtprune.harness.reporting.tables import frame
from vtprune.harness.request.errors import HarnessError

ROOT = Path(__file__).resolve().parent.parent


def sample(doc_id, removal=0.9, views=(196,), error=None, total=196):
    return {
        "doc_id": doc_id,
        "error": error,
        "visual_tokens": total,
        "visual_kept": total * (1 - removal),
        "mean_removal": removal,
        "prompt_tokens": 222,
        "generated_tokens": 4,
        "macs": {"llm": 40, "total": 50},
        "macs_full": 100,
        "latency_s": 0.5,
        "pruning": {"views": list(views)},
    }


def result(method="gprune", ratio=0.9, score=50.0, failed=0, **changes):
    samples = [sample(i) for i in range(4)] + [sample(9, error="x")] * failed
    return {
        "key": f"{method}{ratio}",
        "model": "embedded",
        "method": method,
        "ratio": ratio,
        "bench": "textvqa",
        "data": "mini",
        "engine": "lmms_eval",
        "score": score,
        "metric": "exact_match",
        "unit": "%",
        "n_samples": len(samples),
        "n_failed": failed,
        "counters": meter.summary(samples),
        "finished": "2026-01-01T00:00:00",
        "directory": "somewhere",
        "identity": {"method": {"name": method}, "bench": {"limit": None, "indices": None}},
        "metrics": {"exact_match": score / 100},
        "provenance": {"code": "abc", "versions": {}},
        **changes,
    }


@pytest.fixture
def results(tmp_path):
    for entry in (result("none", 0, 80.0), result(), result("random", score=3.0, failed=1)):
        folder = tmp_path / "runs/textvqa/embedded" / f"{entry['method']}-{entry['ratio']}-abc"
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(entry), encoding="utf-8")
    unfinished = tmp_path / "runs/textvqa/embedded/l2norm-0.9-abc"
    unfinished.mkdir()
    (unfinished / "samples.jsonl").write_text("", encoding="utf-8")
    aside = tmp_path / "runs/textvqa/embedded/none-0-abc/previous-1"
    aside.mkdir()
    (aside / "result.json").write_text(json.dumps(result("none", 0, 1.0)), encoding="utf-8")
    return tmp_path


def test_the_frame_holds_finished_cells_only(results):
    cells = frame.read(results)
    assert list(cells["method"]) == ["none", "gprune", "random"]
    assert list(cells["score"]) == [80.0, 50.0, 3.0]
    assert cells["macs_pct"].tolist() == [50.0] * 3
    assert (cells["data"] == "mini").all()


def test_a_cell_with_failures_is_marked(results):
    cells = frame.read(results)
    shown = frame.display(cells)
    assert shown["score"].tolist() == ["80.00", "50.00†", "3.00!†"]
    assert shown["n"].tolist() == ["4", "4", "4/5"]
    assert len(frame.notes(cells)) == 3


def test_engines_never_share_a_column_unseen(results):
    cells = frame.frame([frame.row(result()), frame.row(result(engine="vlmevalkit"))])
    assert frame.display(cells)["engine"].tolist() == ["lmms_eval", "vlmevalkit"]
    assert "engine" not in frame.display(frame.read(results))


def test_the_table_names_the_data(results):
    text = frame.text(frame.read(results))
    assert "mini" in text and "196 -> 19.6" in text and "90.0 %" in text


@pytest.mark.parametrize("form", [[], ["--csv"], ["--markdown"]])
def test_the_script_prints_without_torch(results, form):
    spy = "import runpy,sys; sys.argv=sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], " \
          "run_name='__main__')\nfinally: print('torch' in sys.modules)"  # fmt: skip
    command = ["-c", spy, "scripts/tables.py", "--results", str(results), *form]
    done = command_tools.run(*command, loaded=command_tools.CLI)
    assert done.returncode == 0, done.stderr
    assert "gprune" in done.stdout and done.stdout.rstrip().endswith("False")


def test_an_empty_store_is_an_error_in_one_line(tmp_path):
    command = ["scripts/tables.py", "--results", str(tmp_path)]
    done = command_tools.run(*command, loaded=command_tools.CLI)
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_counters_leave_failed_samples_out():
    counters = meter.summary([sample(0), sample(1), sample(2, removal=0.0, error="boom")])
    assert counters["removal"] == pytest.approx(0.9)
    assert counters["accuracy_pass"]["samples_per_s"] == pytest.approx(2.0)
    assert counters["macs"] == {"llm": 40, "total": 50}


def test_counters_of_text_only_samples():
    text_only = {"doc_id": 0, "error": None, "visual_tokens": 0, "latency_s": 0.1}
    counters = meter.summary([text_only])
    assert counters["removal"] is None and counters["macs"] == {}


@pytest.mark.parametrize(
    ("removal", "views", "total", "fine"),
    [
        (177 / 196, (196,), 196, True),  # 19 of 196 kept: rounding of one token
        (0.85, (196,), 196, False),
        (354 / 420, (196, 196), 420, True),  # two graphs, 28 row-end tokens kept
        (300 / 420, (196, 196), 420, False),
        ((354 + 28) / 420, (196, 196), 420, True),  # row-end tokens dropped on top
    ],
)
def test_removal_off_target_is_an_error(removal, views, total, fine):
    samples = [sample(0, removal, views, total=total)]
    if fine:
        meter.check_removal(samples, 0.9, "mean")
    else:
        with pytest.raises(HarnessError, match="off by more than one token"):
            meter.check_removal(samples, 0.9, "mean")
    meter.check_removal(samples, 0.9, "local")


def test_each_part_of_a_composed_method_rounds_for_itself():
    samples = [sample(0, 174 / 196, (196,), total=196)]  # 2.4 tokens short of 0.9
    meter.check_removal(samples, 0.9, "mean", parts=3)
    with pytest.raises(HarnessError, match="off by more than one token"):
        meter.check_removal(samples, 0.9, "mean", parts=2)
