"""Text from elsewhere (labels, reasons, names) in the files that a table is written to."""

from __future__ import annotations

from typing import Any

from vtprune.harness.request.terminal import visible_line


def csv_field(value: Any) -> Any:
    """A field that no spreadsheet takes for a formula: ``=1+1`` gets an apostrophe, -3.2 none."""
    if not isinstance(value, str):
        return value
    value = visible_line(value)
    if not value.startswith(("=", "+", "-", "@")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def markdown_text(text: str) -> str:
    """Text that neither ends a cell of a table nor becomes markup or a link."""
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("](", "]\\(")):
        text = text.replace(sign, written)
    return text
