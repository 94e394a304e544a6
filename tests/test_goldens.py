"""Every method keeps the tokens that its published implementation keeps.

``pytest tests/test_goldens.py [--goldens DIR]`` runs every file of every folder of DIR.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from methods import build
from golden_tools import Golden, assert_same_tokens, packed_image

CHECKERS: dict[str, Callable[[Golden], None]] = {}


def checks(folder: str) -> Callable[[Callable[[Golden], None]], Callable[[Golden], None]]:
    def decorate(checker: Callable[[Golden], None]) -> Callable[[Golden], None]:
        CHECKERS[folder] = checker
        return checker

    return decorate


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden_path" not in metafunc.fixturenames:
        return
    root: Path = metafunc.config.getoption("--goldens")
    folders = sorted(p for p in root.glob("*") if p.is_dir() and not p.name.startswith((".", "_")))
    # A folder without cases stands for itself, so that it fails below instead of vanishing.
    paths = [p for folder in folders for p in sorted(folder.glob("*.npz")) or [folder]] or [root]
    ids = [str(p.relative_to(root)) for p in paths]
    metafunc.parametrize("golden_path", paths, ids=ids)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_golden(golden_path: Path) -> None:
    assert golden_path.is_file(), f"no golden cases in {golden_path}"
    folder = golden_path.parent.name
    assert folder in CHECKERS, (
        f"no checker for golden folder '{folder}'; write one in {Path(__file__).name} "
        f"(there are: {', '.join(sorted(CHECKERS))})"
    )
    CHECKERS[folder](Golden(golden_path))


# --- before the language model ------------------------------------------------------------------


@checks("gprune")
def check_gprune(golden: Golden) -> None:
    """Degrees, initial and final scores of both views, kept tokens, positions, l2, float16."""
    name = "gprune" if golden.params["init"] == "norm" else "graph_only"
    method = build(
        name,
        ratio=golden.number("ratio"),
        threshold=golden.number("threshold"),
        temperature=golden.number("temperature"),
        iterations=golden.integer("iterations"),
    )
    side, canvas = golden.params["side"], (golden.integer("rows"), golden.integer("cols"))
    image = packed_image(golden["features"], base=(side, side), canvas=canvas)
    rtol = golden.params["score_rtol"]

    score = torch.full((len(image.layout),), torch.inf)
    for view, part in zip(method._views(image), ("base", "hr"), strict=True):
        torch.testing.assert_close(
            method.initial(view), golden[f"expected_init_{part}"], rtol=rtol, atol=0
        )
        assert torch.equal(
            method.graph(view.features).degree, golden[f"expected_degree_{part}"].long()
        )
        score[view.index] = method.score(view)
        torch.testing.assert_close(
            score[view.index], golden[f"expected_score_{part}"], rtol=rtol, atol=0
        )

    kept = method.keep(image).indices
    assert_same_tokens(kept, golden["expected_kept"], score, golden, of=name)
    if torch.equal(kept, golden["expected_kept"]):
        start, end = golden.integer("image_start"), golden.integer("seq_len_full")
        text = torch.arange(start + len(image.layout), end)
        positions = torch.cat([torch.arange(start), start + kept, text])
        assert torch.equal(positions, golden["expected_position_ids"])

    if "expected_kept_l2only" in golden:
        l2 = build("l2norm", ratio=method.ratio)
        norm = torch.linalg.vector_norm(image.features, dim=-1)
        expected = golden["expected_kept_l2only"]
        assert_same_tokens(l2.keep(image).indices, expected, norm, golden, of="l2norm")
    if "expected_kept_half" in golden:
        half = method.replace(variant="released_fp16").keep(image).indices
        expected = set(golden["expected_kept_half"].tolist())
        assert len(expected & set(half.tolist())) >= 0.97 * len(expected)
