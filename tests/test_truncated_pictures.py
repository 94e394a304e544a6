"""A picture that is cut short fails its sample by name, or is answered and marked where asked."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import warnings

import pytest
from PIL import ImageFile

from tests import bench_tools
from vtprune.harness import cli
from vtprune.harness.evaluation.data import mini
from vtprune.harness.store import index

ROOT = bench_tools.ROOT
SEEN = """
import multiprocessing, os, signal, sys, warnings
import torch, PIL.ImageFile, random, numpy
def state():
    return {
        "pillow": PIL.ImageFile.LOAD_TRUNCATED_IMAGES, "gradients": torch.is_grad_enabled(),
        "warnings": [str(f) for f in warnings.filters], "environment": dict(os.environ),
        "start": multiprocessing.get_start_method(allow_none=True),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "seed": random.getstate(), "torch": torch.get_rng_state().tolist(),
        "numpy": str(numpy.random.get_state()), "threads": torch.get_num_threads(),
    }
before = state()
{load}
after = state()
print([name for name in before if before[name] != after[name]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("load", [
    "import vtprune.harness.evaluation.engines.lmms_eval",
    "from vtprune.harness.evaluation.engines import vlm_import; vlm_import.load()",
])  # fmt: skip
def test_importing_an_engine_leaves_the_process_as_it_was(load):
    if "vlm" in load and not importlib.util.find_spec("vlmeval"):
        pytest.skip("ms-vlmeval is not installed")
    done = subprocess.run(
        [sys.executable, "-c", SEEN.replace("{load}", load)], cwd=ROOT, capture_output=True,
        text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.stdout.strip().splitlines()[-1] == "[]", done.stdout + done.stderr


@pytest.fixture
def cut(tmp_path):
    """Drawn signs, of which the picture of row 2 is cut in the middle."""
    import pyarrow
    import pyarrow.parquet

    root = tmp_path / "data"
    folder = mini.build("textvqa", root, n=4)
    for stamp in folder.glob(".*.json"):
        stamp.unlink()  # no longer what was drawn
    (file,) = folder.rglob("*.parquet")
    table = pyarrow.parquet.read_table(file)
    column = table["image"].to_pylist()
    column[2]["bytes"] = column[2]["bytes"][: len(column[2]["bytes"]) // 2]
    place = table.column_names.index("image")
    changed = pyarrow.array(column, type=table.schema.field("image").type)
    pyarrow.parquet.write_table(
        table.set_column(place, table.schema.field("image"), changed), file
    )  # fmt: skip
    return root


def run(cut, results, *more):
    status = cli.main(["method=none", "bench=textvqa", "data=hub", f"data.root={cut}",
                       "progress=false", f"paths.results={results}", *more])  # fmt: skip
    assert status == 0
    (found,) = index.finished(results)
    return found, index.samples(results / "runs" / "textvqa" / "embedded"
                                / f"none-0-{found['key'][:8]}")  # fmt: skip


def test_a_cut_picture_fails_its_sample_by_name_and_no_other(cut, tmp_path):
    with warnings.catch_warnings():
        found, samples = run(cut, tmp_path / "results")
    assert found["n_failed"] == 1 and found["n_samples"] == 4
    (failure,) = found["failures"]
    assert failure["doc_id"] == 2 and "truncated" in failure["error"]
    assert not any(sample.get("truncated_image") for sample in samples)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_where_it_is_accepted_it_is_answered_marked_and_another_cell(cut, tmp_path):
    found, samples = run(cut, tmp_path / "results", "data.truncated_images=accept")
    assert found["n_failed"] == 0
    assert [sample["doc_id"] for sample in samples if sample.get("truncated_image")] == [2]
    assert found["identity"]["data"]["truncated_images"] == "accept"
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_an_unknown_policy_is_refused(capsys):
    assert cli.main(["method=none", "data.truncated_images=acept"]) == 2
    assert "did you mean 'accept'?" in capsys.readouterr().err
