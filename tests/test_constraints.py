"""The installation is the one that was verified: every version is pinned as installed."""

from pathlib import Path

from tests import constraints

ROOT = Path(__file__).resolve().parents[1]


def test_every_distribution_that_is_needed_is_pinned_as_installed():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert constraints.differences(text) == []


def test_requirements_of_requirements_and_of_extras_are_reached():
    reached = constraints.reached()
    assert {"filelock", "torch", "httpx", "wandb-workspaces", "json-repair"} <= set(reached)
    assert "visual-token-pruning" not in reached


def test_a_package_that_moved_is_named_with_both_versions():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    moved = text.replace("filelock==", "filelock==0.")
    assert len(constraints.differences(moved)) == 1
    assert constraints.differences(moved)[0].startswith("filelock: installed 4.")


def test_the_first_block_is_kept_when_the_second_is_renewed():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert constraints.renewed(text) == text
