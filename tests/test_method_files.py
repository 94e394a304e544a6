"""Options are declared once, in the class; files, page and checks before torch come from there."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from tests import command_tools
from vtprune import methods, places
from vtprune.harness.reporting import method_files
from vtprune.harness.request import compose, method_options
from vtprune.harness.request.errors import ConfigError
from vtprune.methods.options import declared


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return method_files.files()


def test_every_file_is_as_the_classes_declare(made):
    told = f"made from the classes, which have changed: {method_files.COMMAND}"
    for name, text in made.items():
        assert (places.ROOT / name).read_text(encoding="utf-8") == text, f"{name} is {told}"


def test_no_other_file_of_a_method_is_there(made):
    there = {f"conf/method/{f.name}" for f in (places.CONF / "method").glob("*.yaml")}
    assert there - set(made) == {"conf/method/custom.yaml"}


def test_no_line_of_them_is_too_long(made):
    for name, text in made.items():
        if name.endswith(".yaml"):
            assert max(map(len, text.splitlines())) <= method_files.WIDTH, name


@pytest.mark.parametrize("name", methods.available())
def test_what_is_read_without_torch_is_what_the_class_declares(name):
    def plain(one):
        entries = dataclasses.asdict(one)
        return {**entries, "default": method_files.shown(one.default)}

    read = {k: plain(v) for k, v in method_options.declared(name).items()}
    assert read == {k: plain(v) for k, v in declared(methods.get(name)).items()}


@pytest.mark.parametrize("name", methods.available())
def test_every_default_is_allowed_and_every_option_has_a_sentence(name):
    for one in method_options.declared(name).values():
        assert one.help and (one.allowed or one.types == ("any",))
        if not one.extra and one.name != "ratio":
            assert one.wrong(one.default) == "", one


WRONG = [
    ("gprune", "threshold", 7, r"must be a number in \[-1, 1\]"),
    ("gprune", "threshold", "high", "must be a number in"),
    ("gprune", "iterations", 2.5, "must be a whole number"),
    ("gprune", "edge", "clipp", "did you mean 'clip'"),
    ("gprune", "mask_nonedges", 3, "must be true or false"),
    ("fastv", "K", -1, "must be a whole number in"),
    ("fastv", "ratio_mode", "mode", "is not one of"),
    ("gprune", "variant", None, "is not one of released,"),
]


@pytest.mark.parametrize(("method", "option", "value", "said"), WRONG)
def test_a_wrong_value_is_one_line_for_cells_and_tables(method, option, value, said):
    with pytest.raises(ConfigError, match=said) as caught:
        compose.compose({"method": method, f"method.{option}": value})
    assert str(caught.value).startswith(f"{method}: {option}=") and "\n" not in str(caught.value)


def test_a_wrong_value_is_told_before_torch_is_imported():
    code = (
        "import sys\nfrom vtprune.commands import main\n"
        "status = main(['method=gprune', 'ratio=0.9', 'method.threshold=7'])\n"
        "assert 'torch' not in sys.modules\nsys.exit(status)"
    )
    done = command_tools.run("-c", code, loaded=command_tools.CLI)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: gprune: threshold=7 must be a number in [-1, 1]\n"


def test_the_command_lists_methods_and_explains_options(capsys):
    assert method_files.main([]) == 0
    assert "gprune " in capsys.readouterr().out
    assert method_files.main(["gprune"]) == 0
    out = capsys.readouterr().out
    assert "method.threshold=0.5" in out and "a number in [-1, 1]. smallest cosine" in out
    assert method_files.main(["vtprune.methods.fastv:FastV"]) == 0
    assert "method.K=2" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="did you mean 'gprune'"):
        method_files.main(["gprun"])


def test_the_package_of_methods_is_read_without_torch():
    code = "import sys, vtprune.methods.options; sys.exit('torch' in sys.modules)"
    assert command_tools.run("-c", code, loaded=command_tools.CLI).returncode == 0
    assert sys.modules["torch"]
