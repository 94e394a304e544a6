"""The committed checkpoints load without a network and can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtprune.training import measure

MODELS = Path(__file__).resolve().parents[1] / "models" / "embedded"
READING = {"llava": 0.85, "llava-next": 0.75}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("form", sorted(READING))
def test_reads_held_out_signs(form):
    student = measure.Student(MODELS / form)
    items = [i for i in measure.held_out_items(40, first=950_000) if i.group == "reading"][:32]
    assert len(items) == 32
    right, asked = measure.score(student, items)["reading"]
    assert right / asked >= READING[form] - 0.1  # 32 questions: leave room for chance


def test_random_removal_costs_reading():
    student = measure.Student(MODELS / "llava")
    items = [i for i in measure.held_out_items(40, first=950_000) if i.group == "reading"][:32]
    right, asked = measure.score(student, items, "random", ratio=0.9)["reading"]
    assert right / asked <= 0.35


def test_both_forms_fit_in_ten_megabytes():
    size = sum(p.stat().st_size for p in MODELS.rglob("*") if p.is_file())
    assert size <= 10_000_000
