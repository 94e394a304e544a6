"""The gallery page shows every registered method, with what its class says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from vtprune import methods

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


def test_the_page_has_an_entry_for_every_method_and_no_other():
    found = re.findall(r"^## (\w+):", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert found == methods.available(), "run python scripts/gallery.py"


def test_the_entries_are_those_of_the_present_docstrings():
    text = PAGE.read_text(encoding="utf-8")
    for name in methods.available():
        first = inspect.getdoc(methods.get(name)).splitlines()[0]
        assert first in text, f"{name}: run python scripts/gallery.py"
    assert (PAGE.parent / "methods-kept.png").stat().st_size > 10_000
