"""The installation is the one that was verified: every version is pinned as installed."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(ROOT / "scripts" / "constraints.py"))


def test_every_distribution_that_is_needed_is_pinned_as_installed(tool):
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert tool["differences"](text) == []


def test_requirements_of_requirements_and_of_extras_are_reached(tool):
    reached = tool["reached"]()
    assert {"filelock", "torch", "httpx", "wandb-workspaces", "json-repair"} <= set(reached)
    assert "visual-token-pruning" not in reached


def test_a_package_that_moved_is_named_with_both_versions(tool):
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    moved = text.replace("filelock==", "filelock==0.")
    assert len(tool["differences"](moved)) == 1
    assert tool["differences"](moved)[0].startswith("filelock: installed 4.")


def test_the_first_block_is_kept_when_the_second_is_renewed(tool):
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert tool["renewed"](text) == text
