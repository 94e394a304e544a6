"""Text is UTF-8 whatever the locale: every call that reads or writes text says so."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.test_walls import ROOT, tracked

FILES = sorted(f for f in tracked("*.py") if "vtprune" not in f.relative_to(ROOT).parts[:1])


def _is_text(mode: ast.expr | None) -> bool:
    return mode is None or (isinstance(mode, ast.Constant) and "b" not in str(mode.value))


def unspoken(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and source of every call that leaves the encoding to the locale."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if "encoding" in given or None in given:
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        builtin = isinstance(node.func, ast.Name) and node.func.id == "open"
        first = node.args[0] if node.args else given.get("mode")
        mode_alone = isinstance(first, ast.Constant) and set(str(first.value)) <= set("rwaxbt+")
        text = isinstance(given.get("text"), ast.Constant) and given["text"].value is True
        if (
            (name == "read_text" and not node.args)
            or (name == "write_text" and len(node.args) == 1)
            or (name == "open" and mode_alone and _is_text(first))
            or (builtin and _is_text(node.args[1] if len(node.args) > 1 else given.get("mode")))
            or (name in ("run", "Popen", "check_output") and text)
        ):
            yield node.lineno, ast.unparse(node)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_every_reading_and_writing_of_text_names_its_encoding(file):
    assert not list(unspoken(ast.parse(file.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("code", [
    "p.read_text()", "p.write_text(x)", "open(p)", "open(p, 'w')", "p.open('a')",
    "subprocess.run(c, text=True)",
])  # fmt: skip
def test_a_forgotten_encoding_is_seen(code):
    assert [line for line, _ in unspoken(ast.parse(code))] == [1]
