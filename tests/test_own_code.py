"""A class from outside is known by its code and by every option in force: never a stale number."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

from tests import command_tools
from vtprune import places
from vtprune.harness.request import fingerprint, own_class
from vtprune.harness.request.errors import ConfigError
from vtprune.harness.request.fingerprint import Place

FILES = {
    "mine/__init__.py": "",
    "mine/pruner.py": '''
        """A method."""
        from dataclasses import dataclass
        from vtprune.methods import TokenMethod
        from mine.base import Base
        from .helpers import sign


        @dataclass(frozen=True, kw_only=True)
        class Pruner(Base, TokenMethod):
            """Keeps long tokens.

            Attributes:
                power: of the norm.
            """

            power: float = 1.0
            layers: tuple[int, ...] = (1, 2)

            def score(self, view):
                return sign() * view.features.norm(dim=-1) ** self.power  # long ones stay

            def cost(self, shape):
                return 0
        ''',
    "mine/helpers.py": '''
        from mine import constants


        def sign():
            """Which way."""
            return constants.SIGN
        ''',
    "mine/constants.py": "SIGN = 1.0\n",
    "mine/unused.py": "X = 1\n",
    "mine/base.py": "from elsewhere_base.root import Root\n\n\nclass Base(Root):\n    pass\n",
    "elsewhere_base/__init__.py": "",
    "elsewhere_base/root.py": "from elsewhere_base.more import M\n\n\nclass Root:\n    m = M\n",
    "elsewhere_base/more.py": "M = 1\n",
    "loose.py": "import beside\nfrom mine.pruner import Pruner\nclass Loose(Pruner):\n    pass\n",
    "beside.py": "Y = 1\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(text).lstrip(), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [n for n in sys.modules if n.split(".")[0] in ("mine", "elsewhere_base", "loose")]:
        del sys.modules[name]


def edit(folder: Path, name: str, old: str, new: str) -> None:
    file = folder / name
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


PRUNER = Place("mine.pruner", "Pruner")
SAME = {
    "a comment": ("mine/pruner.py", "# long ones stay", "# other words"),
    "a docstring": ("mine/pruner.py", "Keeps long tokens.", "Keeps the long tokens."),
    "a docstring of a helper": ("mine/helpers.py", "Which way.", "Up or down."),
    "the layout": ("mine/pruner.py", "return sign() *", "return sign()  *"),
    "a file that is not used": ("mine/unused.py", "1", "2"),
}
OTHER = {
    "an expression": ("mine/pruner.py", "sign() *", "-sign() *"),
    "a default": ("mine/pruner.py", "1.0", "2.0"),
    "a constant, two imports away": ("mine/constants.py", "1.0", "-1.0"),
    "a base in the package": ("mine/base.py", "pass", "x = 1"),
    "a base in another package": ("elsewhere_base/root.py", "m = M", "m = 2"),
    "what that base uses": ("elsewhere_base/more.py", "1", "2"),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_changes_no_answer_keeps_the_fingerprint(folder, change):
    before = fingerprint.of_class(PRUNER)
    edit(folder, *change)
    assert fingerprint.of_class(PRUNER) == before


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_what_can_change_an_answer_changes_the_fingerprint(folder, change):
    before = fingerprint.of_class(PRUNER)
    edit(folder, *change)
    assert fingerprint.of_class(PRUNER) != before


def test_a_loose_file_is_known_with_the_files_beside_it_that_it_imports(folder):
    place = Place("loose", "Loose")
    before = fingerprint.of_class(place)
    edit(folder, "beside.py", "1", "2")
    second = fingerprint.of_class(place)
    edit(folder, "mine/constants.py", "1.0", "2.0")
    assert len({before, second, fingerprint.of_class(place)}) == 3


def test_the_source_is_read_without_running_it(folder):
    edit(folder, "mine/constants.py", "SIGN", "raise SystemExit\nSIGN")
    fingerprint.of_class(PRUNER)
    assert "mine.pruner" not in sys.modules


def asked(target: str = "mine.pruner:Pruner", **options):
    return own_class.identity({"name": "custom", "_target_": target, **options}, options)


def test_one_request_has_one_identity_whether_a_default_is_spelled_out_or_not(folder):
    plain = asked()
    assert plain == asked(power=1.0) == asked(layers=[1, 2]) == asked("mine.pruner.Pruner")
    assert plain["power"] == 1.0 and plain["layers"] == [1, 2]
    assert plain != asked(power=2.0)


def test_a_class_that_ships_is_the_same_by_its_path_and_by_its_name():
    found = asked("vtprune.methods.gprune:GPrune")
    assert found["name"] == "gprune" and "code" not in found
    shipped = {"name": "gprune"}
    assert own_class.identity(shipped, {}) is None


@pytest.mark.parametrize(("target", "said"), [
    ("mine.pruner:Prunner", "did you mean 'Pruner'"),
    ("mine.prunr:Pruner", "No module named 'mine.prunr'"),
    ("mine.constants:SIGN", "is not a vtprune.methods.PruningMethod"),
    ("Pruner", "write package.module:Class"),
])  # fmt: skip
def test_a_class_that_is_not_there_is_one_line(folder, target, said):
    with pytest.raises(ConfigError, match=said):
        asked(target)


def test_a_broken_file_of_hers_is_named_with_its_line(folder):
    edit(folder, "mine/helpers.py", "def sign():", "def sign(:")
    with pytest.raises(ConfigError, match=r"mine/helpers\.py:4: "):
        asked()
    edit(folder, "mine/helpers.py", "def sign(:", "1 / 0\n\n\ndef sign():")
    with pytest.raises(ConfigError, match=r"mine/helpers\.py:4: ZeroDivisionError"):
        asked()


# ------------------------------------------------------------------------ methods that ship


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """The sources of methods/ and models/, free to be edited."""
    for name in ("methods", "models"):
        shutil.copytree(places.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__py*"))
    monkeypatch.setattr(places, "ROOT", tmp_path)
    fingerprint.of_runtime.cache_clear()
    fingerprint._registered.cache_clear()
    yield tmp_path
    fingerprint.of_runtime.cache_clear()
    fingerprint._registered.cache_clear()


def codes(*names: str) -> list[str | None]:
    return [fingerprint.of_method({"name": name}) for name in names]


def test_a_new_or_changed_file_marks_only_the_methods_that_use_it(checkout):
    before = codes("gprune", "fastv", "random")
    (checkout / "methods" / "fresh.py").write_text("X = 1\n", encoding="utf-8")
    assert codes("gprune", "fastv", "random") == before
    with (checkout / "methods" / "fastv.py").open("a", encoding="utf-8") as file:
        file.write("\nX = 1\n")
    now = codes("gprune", "fastv", "random")
    assert [a == b for a, b in zip(before, now, strict=True)] == [True, False, True]


def test_the_shared_bases_count_for_every_method(checkout):
    before = codes("gprune", "fastv", "random")
    with (checkout / "methods" / "registry.py").open("a", encoding="utf-8") as file:
        file.write("\nX = 1\n")
    assert all(a != b for a, b in zip(before, codes("gprune", "fastv", "random"), strict=True))


def test_the_shared_bases_count_for_a_class_from_outside_too(checkout, folder):
    own = {"name": "custom", "_target_": "mine.pruner:Pruner"}
    before = fingerprint.of_method(own)
    with (checkout / "methods" / "fastv.py").open("a", encoding="utf-8") as file:
        file.write("\nX = 1\n")
    assert fingerprint.of_method(own) == before, "another method"
    with (checkout / "methods" / "tokens.py").open("a", encoding="utf-8") as file:
        file.write("\nX = 1\n")
    assert fingerprint.of_method(own) != before


def test_a_composition_is_known_by_its_parts(checkout):
    parts = {"name": "compose", "parts": [{"name": "vispruner"}, {"name": "vtw"}]}
    two = {"name": "compose", "first": "vispruner", "then": "vtw"}
    before = [fingerprint.of_method(parts), fingerprint.of_method(two)]
    with (checkout / "methods" / "vtw.py").open("a", encoding="utf-8") as file:
        file.write("\nX = 1\n")
    after = [fingerprint.of_method(parts), fingerprint.of_method(two)]
    assert before[0] != after[0] and before[1] != after[1]


# ------------------------------------------------------------------- the case, told as a story

STORY = '''
from dataclasses import dataclass

from vtprune.methods import TokenMethod


@dataclass(frozen=True, kw_only=True)
class Mine(TokenMethod):
    """Keeps what differs from the mean."""

    def score(self, view):
        x = view.features
        return SIGN * (x - x.mean(dim=0)).norm(dim=-1)

    def cost(self, shape):
        return 0


SIGN = 1
'''


@pytest.mark.slow
def test_an_edited_method_is_run_again_and_its_answers_are_never_mixed(tmp_path):
    """Run, flip the sign, repeat; flip back, ask more rows: each number is that of one code."""
    file = tmp_path / "story.py"
    results = tmp_path / "results"

    def run(sign: int, limit: int, *more: str):
        file.write_text(STORY.replace("SIGN = 1", f"SIGN = {sign}"), encoding="utf-8")
        done = command_tools.run(
            "run.py", "method._target_=story:Mine", "ratio=0.8", f"bench.limit={limit}",
            f"paths.results={results}", *more,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        newest = max(results.rglob("result.json"), key=lambda f: f.stat().st_mtime_ns)
        return done.stdout, json.loads(newest.read_text(encoding="utf-8"))

    _, right = run(1, 8)
    said, wrong = run(-1, 8)
    assert "finished on" not in said and wrong["key"] != right["key"]
    assert wrong["score"] < right["score"]
    said, more = run(1, 12)
    assert more["reused"] == 8 and more["score"] >= 8 / 12 * right["score"]
    _, fresh = run(1, 12, "force=true")
    assert fresh["score"] == more["score"]
